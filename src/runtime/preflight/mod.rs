//! What must hold before any shard is started, asked before glommio would panic over it.
//!
//! A start asks here for what it cannot do without; [`check`] asks the same functions, and more, for
//! a person who wants to know before.

pub mod check;

use crate::base::code::Code;
use crate::base::limits::SHARDS_MAX;
use crate::base::report::Report;
use crate::runtime::config::{CheckFormat, Loaded, Member, NodeConfig, Shards};
use crate::runtime::guest::GUESTS_MAX;
use crate::runtime::listener::REFUSED_MAX;
use crate::runtime::lock::{HOLDER_GRACE, HOLDER_PATIENCE, holder_retry};
use crate::runtime::{process, sys};
use std::fs::OpenOptions;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Registered buffers of an executor; glommio locks three times as much if it may. More makes the
/// start slower; a batch that does not fit takes ordinary memory.
pub const IO_MEMORY_BYTES: usize = 1 << 20;
/// glommio refuses to start below this.
const MEMLOCK_MIN_BYTES: u64 = 512 << 10;
/// Locked by an executor that may: its buffers for polled and for ordinary I/O.
const MEMLOCK_SHARD_BYTES: u64 = 3 * IO_MEMORY_BYTES as u64;
/// The oldest kernel that has all operations that we use.
const KERNEL_MIN: (u32, u32) = (5, 8);
/// Descriptors without a client: rings, segments, files of checkpoints, listeners, clients refused.
const FILES_SHARD: u64 = 32 + REFUSED_MAX as u64;
/// Standard streams, locks, and the guests of the admin port.
const FILES_NODE: u64 = 64 + GUESTS_MAX as u64;

/// A port in use is tried again for so long before anybody asks who holds it,
const PORT_GRACE: Duration = Duration::from_millis(50);
/// so often.
const PORT_RETRY: Duration = Duration::from_micros(500);

const MORE_MEMLOCK: &str =
    "ulimit -l unlimited   (systemd: LimitMEMLOCK=infinity; Docker: --ulimit memlock=-1)";

/// Cores that the process may use: the smaller of affinity and CPU quota.
#[must_use]
pub fn cores() -> usize {
    let quota = std::thread::available_parallelism().map_or(1, usize::from);
    sys::allowed_cores().len().min(quota).max(1)
}

/// Shards of `--shard-per-core`.
#[must_use]
pub fn per_core() -> u16 {
    cores().min(SHARDS_MAX.into()) as u16
}

/// How many shards a configuration asks for, on a directory that was made for so many, if it was made.
#[must_use]
pub fn shards(config: &NodeConfig, made: Option<u16>) -> u16 {
    match config.shards {
        Shards::Exactly(count) => count,
        Shards::PerCore => per_core(),
        Shards::AsMade => made.unwrap_or_else(per_core),
    }
}

/// The kernel lets us have io_uring, enough locked memory and enough descriptors.
///
/// # Errors
/// By name, with what to change.
pub fn kernel() -> Result<(), Report> {
    kernel_version(&kernel_release())?;
    io_uring()?;
    memlock(sys::memlock_limit())?;
    open_files(sys::open_files_limit(), 1)
}

fn kernel_release() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Whether the kernel is new enough; one whose version cannot be read is tried.
fn kernel_version(release: &str) -> Result<(), Report> {
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Ok(());
    };
    if (major, minor) >= KERNEL_MIN {
        return Ok(());
    }
    let (need_major, need_minor) = KERNEL_MIN;
    Err(Report::error(
        Code::KernelTooOld,
        format!("Linux {release} is too old: rrq-node needs {need_major}.{need_minor}"),
    )
    .why("its io_uring lacks operations that the node works with")
    .fix(format!("Linux {need_major}.{need_minor} or newer")))
}

/// The kernel gives us a ring, and all operations that the node works with.
fn io_uring() -> Result<(), Report> {
    let known = sys::probe_io_uring().map_err(|error| no_io_uring(&error))?;
    let lacking: Vec<&str> = OPERATIONS
        .iter()
        .filter(|(number, _)| !known.get(*number).is_some_and(|known| *known))
        .map(|(_, name)| *name)
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let what = "io_uring of this kernel lacks operations that rrq-node works with";
    Err(Report::error(Code::IoUringUnavailable, what)
        .location(lacking.join(", "))
        .fix("Linux 5.8 or newer, with io_uring"))
}

/// What glommio's executors submit.
#[rustfmt::skip]
const OPERATIONS: &[(usize, &str)] = &[
    (0, "NOP"), (3, "FSYNC"), (4, "READ_FIXED"), (5, "WRITE_FIXED"), (6, "POLL_ADD"),
    (7, "POLL_REMOVE"), (9, "SENDMSG"), (10, "RECVMSG"), (11, "TIMEOUT"), (12, "TIMEOUT_REMOVE"),
    (13, "ACCEPT"), (14, "ASYNC_CANCEL"), (15, "LINK_TIMEOUT"), (16, "CONNECT"), (17, "FALLOCATE"),
    (18, "OPENAT"), (19, "CLOSE"), (21, "STATX"), (22, "READ"), (23, "WRITE"), (26, "SEND"),
    (27, "RECV"),
];

fn memlock(limit: u64) -> Result<(), Report> {
    if limit >= MEMLOCK_MIN_BYTES {
        return Ok(());
    }
    let what = format!("locked-memory limit too low: {} KiB", limit >> 10);
    Err(Report::error(Code::MemlockTooLow, what)
        .location(format!(
            "RLIMIT_MEMLOCK; needed: {} KiB",
            MEMLOCK_MIN_BYTES >> 10
        ))
        .why("io_uring keeps its rings in locked memory")
        .fix(MORE_MEMLOCK))
}

/// Descriptors that are left for clients.
#[must_use]
pub fn files_for_clients(shards: u16) -> u64 {
    sys::open_files_limit().saturating_sub(FILES_NODE + FILES_SHARD * u64::from(shards))
}

/// Whether the buffers of so many shards may be locked in memory; else the kernel copies.
#[must_use]
pub fn buffers_fit(shards: u16) -> bool {
    sys::memlock_limit() >= MEMLOCK_SHARD_BYTES * u64::from(shards)
}

/// Enough descriptors for the node itself.
fn open_files(limit: u64, shards: u16) -> Result<(), Report> {
    let needed = FILES_NODE + FILES_SHARD * u64::from(shards);
    if limit >= needed {
        return Ok(());
    }
    let what = format!("too few files may be open: {limit}");
    Err(Report::error(Code::OpenFilesTooFew, what)
        .location(format!(
            "RLIMIT_NOFILE; needed: {needed}, and one for each client"
        ))
        .why("segments of the log, rings and clients each take a descriptor")
        .fix("ulimit -n 65536   (systemd: LimitNOFILE=65536; Docker: --ulimit nofile=65536)"))
}

fn no_io_uring(error: &io::Error) -> Report {
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let disabled = setting.trim();
    let allow = "docker run --security-opt seccomp=configs/seccomp.json, a profile that allows \
                 io_uring_setup, io_uring_enter and io_uring_register";
    let (why, fix) = match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), "1" | "2") => (
            "the kernel setting kernel.io_uring_disabled turns it off for this user",
            "sudo sysctl -w kernel.io_uring_disabled=0",
        ),
        (Some(libc::EPERM), _) => (
            "a seccomp profile forbids it, as Docker's default one does",
            allow,
        ),
        (Some(libc::ENOMEM), _) => (
            "the kernel refuses the memory: too little may be locked",
            MORE_MEMLOCK,
        ),
        (Some(libc::ENOSYS), _) if kernel_version(&kernel_release()).is_ok() => (
            "the kernel is new enough: a seccomp profile or a sandbox hides it, or it was built \
             without it",
            allow,
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

/// `rrq-node check`: looks, says what it saw, and gives the exit status.
#[must_use]
pub fn main(loaded: Result<Loaded, Box<Report>>, format: CheckFormat) -> ExitCode {
    let findings = check::check(loaded.as_ref().map_err(|report| &**report));
    print!("{}", check::show(&findings, format));
    ExitCode::from(check::exit_code(&findings, format))
}

/// The nearest folder that is there.
fn nearest(directory: &Path) -> &Path {
    let here = Path::new(".");
    directory
        .ancestors()
        .find(|path| path.exists())
        .filter(|path| !path.as_os_str().is_empty())
        .unwrap_or(here)
}

/// The file system that a directory is on, or would be made on, keeps what is written.
///
/// # Errors
/// If it lives in memory and `dev` does not permit it.
pub fn durable(directory: &Path, dev: bool) -> Result<(), Report> {
    match sys::file_system(nearest(directory)) {
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
    let clients = client_addresses(config, shards)?.into_iter().enumerate();
    let clients = clients.map(|(shard, address)| {
        let purpose = format!("client port of shard {shard}");
        bind(address, &purpose, "--listen", true)
    });
    let clients = clients.collect::<Result<_, _>>()?;
    let admin = bind(config.admin, "admin port", "--admin", true)?;
    Ok((clients, admin))
}

/// Binds the listener of the other nodes: where the configuration says, else where the list of members
/// has this node.
///
/// # Errors
/// If it is taken, by whom; or the listed name has no address.
pub fn peer_listener(config: &NodeConfig) -> Result<TcpListener, Report> {
    let purpose = "port of the other nodes";
    if let Some(address) = config.peer {
        return bind(address, purpose, "listen.peer", true);
    }
    let listed = config
        .members
        .iter()
        .find(|member| Some(member.node) == config.node);
    let listed = listed.expect("a configuration names this node among the members");
    let address = resolve(listed)?[0];
    if !address.ip().is_loopback() && !config.insecure {
        let what = format!(
            "{address} is not loopback, and there is no authentication yet: --insecure if all who reach \
             it are trusted"
        );
        return Err(Report::error(Code::BadConfig, what)
            .location(format!("cluster.members: {listed}"))
            .fix("--insecure"));
    }
    bind(address, purpose, "--members", true)
}

/// The addresses of a member, one at least.
fn resolve(member: &Member) -> Result<Vec<SocketAddr>, Report> {
    let why = match member.address.to_socket_addrs().map(Vec::from_iter) {
        Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
        Ok(_) => "it has no address".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Report::error(
        Code::BadConfig,
        format!("{} does not resolve", member.address),
    )
    .location(format!("cluster.members: {member}: {why}"))
    .why("the nodes of a cluster find each other where the list has them")
    .fix("--members with addresses that this machine can resolve"))
}

/// Where the shards listen.
fn client_addresses(config: &NodeConfig, shards: u16) -> Result<Vec<SocketAddr>, Report> {
    let address = |shard| {
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
        Ok(address)
    };
    (0..shards).map(address).collect()
}

/// Who holds a port, why that will not do, and how to stop who does.
fn taken_by(holder: Option<u32>) -> (String, &'static str, String) {
    let two = "two processes cannot listen on one port";
    match holder {
        Some(pid) if pid == std::process::id() => (
            "this node, for another of its listeners".to_owned(),
            "each shard has a client port of its own, from that of --listen on",
            String::new(),
        ),
        Some(pid) => {
            let stop = format!("stop it (kill {pid}), or ");
            (process::describe(pid), two, stop)
        }
        None => ("a process of another user".to_owned(), two, String::new()),
    }
}

/// Binds a listener; with `wait`, a port that a process lets go of is waited for.
fn bind(address: SocketAddr, purpose: &str, flag: &str, wait: bool) -> Result<TcpListener, Report> {
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
        // What a process that was killed held is let go of within milliseconds; to find out who holds a port
        // takes tens of them.
        if wait && begun.elapsed() < PORT_GRACE {
            std::thread::sleep(PORT_RETRY);
            continue;
        }
        let holder = process::listener_of(address);
        let alive = holder.is_none_or(process::is_alive);
        let patience = if alive { HOLDER_GRACE } else { HOLDER_PATIENCE };
        if !wait || begun.elapsed() > patience {
            let what = format!("{address} is already in use ({purpose})");
            let (who, why, stop) = taken_by(holder);
            return Err(Report::error(Code::PortInUse, what)
                .location(who)
                .why(why)
                .fix(format!(
                    "{stop}{flag} with another port; port 0 takes any that is free"
                )));
        }
        std::thread::sleep(holder_retry(begun.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_named_and_an_odd_version_is_tried() {
        let report = kernel_version("5.4.0-200-generic").expect_err("5.4 is too old");
        assert_eq!(
            report.to_string(),
            "error[RRQ-1015]: Linux 5.4.0-200-generic is too old: rrq-node needs 5.8\n  \
             why:   its io_uring lacks operations that the node works with\n  \
             fix:   Linux 5.8 or newer"
        );
        for release in ["5.8.0", "6.18.44-fc-v782", "10.0-rc1", "of my own"] {
            assert!(kernel_version(release).is_ok(), "{release}");
        }
    }

    #[test]
    fn ports_end_at_the_last_one() {
        let config = NodeConfig {
            client: SocketAddr::from(([127, 0, 0, 1], u16::MAX)),
            ..NodeConfig::default()
        };
        assert!(client_addresses(&config, 1).is_ok());
        let report = client_addresses(&config, 2).expect_err("there is no port after the last");
        assert!(
            report
                .to_string()
                .contains("--listen with a port up to 65534")
        );
    }
}
