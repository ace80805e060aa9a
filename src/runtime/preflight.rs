//! What must hold before any shard is started, asked before glommio would panic over it.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::runtime::config::NodeConfig;
use crate::runtime::data_dir::{HOLDER_GRACE, HOLDER_PATIENCE, HOLDER_RETRY};
use crate::runtime::{process, sys};
use std::fs::OpenOptions;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

/// Registered buffers of an executor; glommio locks three times as much if it may. More makes the
/// start slower; a batch that does not fit takes ordinary memory.
pub const IO_MEMORY_BYTES: usize = 1 << 20;
/// glommio refuses to start below this.
const MEMLOCK_MIN_BYTES: u64 = 512 << 10;

/// Cores that the process may use: the smaller of affinity and CPU quota.
#[must_use]
pub fn cores() -> usize {
    let quota = std::thread::available_parallelism().map_or(1, usize::from);
    sys::allowed_cores().len().min(quota).max(1)
}

/// Shards of `--shard-per-core`.
#[must_use]
pub fn per_core() -> u16 {
    cores().min(64) as u16
}

/// The kernel lets us have io_uring and enough locked memory.
///
/// # Errors
/// By name, with what to change.
pub fn kernel() -> Result<(), Report> {
    sys::probe_io_uring().map_err(|error| no_io_uring(&error))?;
    let limit = sys::memlock_limit();
    if limit < MEMLOCK_MIN_BYTES {
        let what = format!("locked-memory limit too low: {} KiB", limit >> 10);
        return Err(Report::error(Code::MemlockTooLow, what)
            .location(format!(
                "RLIMIT_MEMLOCK; needed: {} KiB",
                MEMLOCK_MIN_BYTES >> 10
            ))
            .why("io_uring keeps its rings in locked memory")
            .fix(
                "ulimit -l unlimited   (systemd: LimitMEMLOCK=infinity; \
                 Docker: --ulimit memlock=-1)",
            ));
    }
    Ok(())
}

fn no_io_uring(error: &io::Error) -> Report {
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let disabled = setting.trim();
    let (why, fix) = match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), "1" | "2") => (
            "the kernel setting kernel.io_uring_disabled turns it off for this user",
            "sudo sysctl -w kernel.io_uring_disabled=0",
        ),
        (Some(libc::EPERM), _) => (
            "a seccomp profile forbids it, as Docker's default one does",
            "docker run --security-opt seccomp=unconfined, or a profile that allows \
             io_uring_setup, io_uring_enter and io_uring_register",
        ),
        (Some(libc::ENOMEM), _) => (
            "the kernel refuses the memory: too little may be locked",
            "ulimit -l unlimited   (systemd: LimitMEMLOCK=infinity; Docker: --ulimit memlock=-1)",
        ),
        _ => (
            "the kernel is too old or built without it",
            "Linux 5.8 or newer, with io_uring",
        ),
    };
    let setting = match disabled {
        "" => String::new(),
        value => format!(" (kernel.io_uring_disabled = {value})"),
    };
    let what = "io_uring is not available, and rrq-node cannot run without it";
    Report::error(Code::IoUringUnavailable, what)
        .location(format!("io_uring_setup(2): {error}{setting}"))
        .why(why)
        .fix(fix)
}

/// The file system that a directory is on, or would be made on, keeps what is written.
///
/// # Errors
/// If it lives in memory and `dev` does not permit it.
pub fn durable(directory: &Path, dev: bool) -> Result<(), Report> {
    let there = directory
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() {
        Path::new(".")
    } else {
        there
    };
    match sys::file_system(there) {
        Ok(system) if system.is_memory() && !dev => Err(Report::error(
            Code::NotDurable,
            format!(
                "data directory {} is in memory (tmpfs)",
                directory.display()
            ),
        )
        .why("jobs acknowledged as durable would be lost at a reboot")
        .fix("--data-dir on a disk (ext4, xfs), or --dev to accept losing jobs")),
        // What cannot be asked shows itself when the directory is made.
        _ => Ok(()),
    }
}

/// Reads a file of at least 4 KiB with O_DIRECT; a file system without it refuses the open.
///
/// # Errors
/// EINVAL from a file system that cannot do it.
pub fn try_direct_io(file: &Path) -> io::Result<()> {
    const BLOCK: usize = 4096;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(file)?;
    let mut buffer = vec![0; 2 * BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    file.read_exact_at(&mut buffer[start..start + BLOCK], 0)
}

/// The file system has no O_DIRECT.
#[must_use]
pub fn no_direct_io(directory: &Path, error: &io::Error) -> Report {
    let what = format!("data directory {} refuses O_DIRECT", directory.display());
    Report::error(Code::DirectIoUnavailable, what)
        .location(error.to_string())
        .why("the log is written past the page cache, so that one write makes it durable")
        .fix("--data-dir on ext4 or xfs (in a container: a volume)")
}

/// Binds the listeners of clients, one a shard, and of the admin thread. What a dying process
/// still holds is waited for.
///
/// # Errors
/// If one is taken, by whom.
pub fn listeners(
    config: &NodeConfig,
    shards: u16,
) -> Result<(Vec<TcpListener>, TcpListener), Report> {
    let clients = (0..shards).map(|shard| {
        let mut address = config.client;
        if address.port() != 0 {
            let port = address.port().checked_add(shard).ok_or_else(|| {
                Report::error(
                    Code::BadConfig,
                    format!("no port for shard {shard} after {address}"),
                )
                .fix(format!(
                    "--listen with a port up to {}",
                    u16::MAX - shards + 1
                ))
            })?;
            address.set_port(port);
        }
        bind(
            address,
            &format!("client port of shard {shard}"),
            "--listen",
        )
    });
    let clients = clients.collect::<Result<_, _>>()?;
    let admin = bind(config.admin, "admin port", "--admin")?;
    Ok((clients, admin))
}

fn bind(address: SocketAddr, purpose: &str, flag: &str) -> Result<TcpListener, Report> {
    let begun = Instant::now();
    loop {
        let error = match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(Report::error(
                Code::BadConfig,
                format!("cannot listen on {address} ({purpose})"),
            )
            .location(error.to_string())
            .fix(format!(
                "{flag} with an address of this machine and a port that is free"
            )));
        }
        let holder = process::listener_of(address);
        let alive = holder.is_none_or(process::is_alive);
        let patience = if alive { HOLDER_GRACE } else { HOLDER_PATIENCE };
        if begun.elapsed() > patience {
            let what = format!("{address} is already in use ({purpose})");
            let who = holder.map_or("a process of another user".to_owned(), process::describe);
            let stop = holder.map_or(String::new(), |pid| format!("stop it (kill {pid}), or "));
            return Err(Report::error(Code::PortInUse, what)
                .location(who)
                .why("two processes cannot listen on one port")
                .fix(format!(
                    "{stop}{flag} with another port; port 0 takes any that is free"
                )));
        }
        std::thread::sleep(HOLDER_RETRY);
    }
}
