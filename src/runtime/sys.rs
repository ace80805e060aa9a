//! One safe function a system call that the standard library does not offer, each with its reason.
//!
//! This and `snapshot_files.rs` are the only files of rrq with `unsafe`.

#![allow(unsafe_code)]

use crate::base::code::Code;
use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files and memory are aligned so for direct reads and writes, whatever the disk has for a sector.
const DIRECT_ALIGN: usize = 4096;

/// Registers this process for expedited membarriers. glommio does so on the first park of an
/// executor, where it waits for an RCU grace period (12-14 ms) once there are several threads;
/// before the first thread it takes a microsecond.
pub fn register_membarrier() {
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
    // SAFETY: takes no pointer; an unknown command is an error that glommio meets again by itself.
    unsafe { libc::syscall(libc::SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0) };
}

/// Makes a small io_uring, asks it which operations it knows, and drops it: one truth value an
/// operation, by its number. glommio panics where this fails, so it is asked first.
///
/// # Errors
/// What `io_uring_setup(2)` or `io_uring_register(2)` says: EPERM (seccomp, sysctl), ENOSYS, ENOMEM.
pub fn probe_io_uring() -> io::Result<Vec<bool>> {
    const REGISTER_PROBE: libc::c_int = 8;
    const OPERATIONS: usize = 256;
    const SUPPORTED: u16 = 1;
    // struct io_uring_params: 120 bytes, all zero means "no wishes"; the kernel fills it.
    let mut params = [0_u64; 15];
    // SAFETY: `params` is as large as the kernel's struct and lives across the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor and nobody else has it.
    let ring = unsafe { File::from_raw_fd(fd as libc::c_int) };
    // struct io_uring_probe: 16 bytes, then 8 for each operation (number u8, u8, flags u16, u32).
    let mut probe = [0_u64; 2 + OPERATIONS];
    // SAFETY: `probe` has room for as many operations as we say and lives across the call.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_PROBE,
            probe.as_mut_ptr(),
            OPERATIONS,
        )
    } < 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    let supported = |operation: &u64| {
        let bytes = operation.to_ne_bytes();
        u16::from_ne_bytes([bytes[2], bytes[3]]) & SUPPORTED != 0
    };
    Ok(probe[2..].iter().map(supported).collect())
}

/// The soft limit of locked memory in bytes, `u64::MAX` for none. io_uring's rings and buffers
/// count against it unless the process may lock memory anyway (root).
pub fn memlock_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the result.
    match unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// The soft limit of open files.
pub fn open_files_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the result.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// The soft limit of mapped memory in bytes, `u64::MAX` for none.
pub fn address_space_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the result.
    match unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// Units of processor time in /proc, a second.
pub fn clock_ticks() -> u64 {
    // SAFETY: takes no pointer.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
}

/// Bytes of a page of memory.
pub fn page_bytes() -> u64 {
    // SAFETY: takes no pointer.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Whether a call failed only because too many files are open, in this process or on this machine:
/// nothing has happened, and it may go well when others have closed some.
#[must_use]
pub fn lacks_descriptors(error: Option<i32>) -> bool {
    matches!(error, Some(libc::EMFILE | libc::ENFILE))
}

/// Raises the soft limit of open files to the hard one: sockets and segments need more than the
/// usual 1024. A failure leaves what there was.
pub fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the result, and is read only after it was filled.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// The cores that this process may run on, in order. The standard library only counts them.
pub fn allowed_cores() -> Vec<usize> {
    // SAFETY: a cpu_set_t of zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the size is that of `set`.
    let failed = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0;
    if failed {
        return vec![0];
    }
    // SAFETY: every index is below the size of the set.
    (0..libc::CPU_SETSIZE as usize)
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &set) })
        .collect()
}

/// Nanoseconds since boot, suspended time included: `std::time::Instant` stands still then.
pub fn boot_time_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds that the calling thread has run: what benches go by, since it stands still while others
/// have the core.
pub fn thread_run_time_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result; the clock exists since Linux 2.6.12.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Takes the exclusive lock of an open file without waiting; false if another descriptor holds it.
/// The lock belongs to the open file: writes of a dead process that are still under way keep it.
///
/// # Errors
/// What `flock(2)` says, other than that it is held.
pub fn try_lock(file: &impl AsRawFd) -> io::Result<bool> {
    // SAFETY: takes no pointer; the descriptor is open as long as `file` is borrowed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock {
        Ok(false)
    } else {
        Err(error)
    }
}

/// What a file system says of itself.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem {
    /// Its magic number.
    pub magic: u64,
    /// Bytes that an ordinary user may still write.
    pub free_bytes: u64,
}

impl FileSystem {
    /// Whether its files live in memory alone.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        const RAMFS_MAGIC: u64 = 0x8584_58f6;
        self.magic == libc::TMPFS_MAGIC as u64 || self.magic == RAMFS_MAGIC
    }

    /// Its usual name, or its magic number.
    #[must_use]
    pub fn name(&self) -> String {
        const XFS_MAGIC: u64 = 0x5846_5342;
        const BTRFS_MAGIC: u64 = 0x9123_683e;
        let name = match self.magic {
            magic if magic == libc::EXT4_SUPER_MAGIC as u64 => "ext4",
            magic if magic == libc::TMPFS_MAGIC as u64 => "tmpfs (in memory)",
            magic if magic == libc::OVERLAYFS_SUPER_MAGIC as u64 => "overlayfs",
            magic if magic == libc::NFS_SUPER_MAGIC as u64 => "nfs",
            XFS_MAGIC => "xfs",
            BTRFS_MAGIC => "btrfs",
            magic => return format!("file system {magic:#x}"),
        };
        name.to_owned()
    }
}

/// Asks the file system of a directory for its kind and its room.
///
/// # Errors
/// What `statfs(2)` says.
pub fn file_system(directory: &Path) -> io::Result<FileSystem> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends in a zero byte and `stat` is a valid place for the result.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled the struct.
    let stat = unsafe { stat.assume_init() };
    Ok(FileSystem {
        magic: stat.f_type as u64,
        free_bytes: stat.f_bavail.saturating_mul(stat.f_bsize as u64),
    })
}

/// Reserves blocks for the first `bytes` of a file, so that they cannot be missing later.
///
/// # Errors
/// ENOSPC, or what else `posix_fallocate(3)` says.
pub fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    // SAFETY: takes no pointer; the descriptor is open as long as `file` is borrowed.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Zeros, where a file that was opened with O_DIRECT can be written from.
#[derive(Debug)]
pub struct Zeros {
    memory: Vec<u8>,
    bytes: usize,
}

impl Zeros {
    /// So many, a multiple of 4096.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self {
            memory: vec![0; bytes + DIRECT_ALIGN],
            bytes,
        }
    }

    /// Writes all of them there: at a multiple of 4096, too.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_at(&self, file: &File, offset: u64) -> io::Result<()> {
        let start = self.memory.as_ptr().align_offset(DIRECT_ALIGN);
        file.write_all_at(&self.memory[start..][..self.bytes], offset)
    }
}

/// Whether a file has blocks that were reserved and never written, or none where there could be some. What
/// the file system does not tell counts as written.
pub fn has_unwritten(file: &File) -> bool {
    // What was read of such blocks counts as written as long as it is in memory.
    let _ = drop_cached(file);
    let len = file.metadata().map_or(0, |file| file.len());
    // SAFETY: takes no pointer; the descriptor is open as long as `file` is borrowed.
    let hole = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_HOLE) };
    u64::try_from(hole).is_ok_and(|hole| hole < len)
}

/// Gives a bound socket to the executor of this thread. glommio's own `bind` shares the port
/// (SO_REUSEPORT) with whoever asks, so that a taken port would go unnoticed.
pub fn adopt_listener(listener: std::net::TcpListener) -> glommio::net::TcpListener {
    // SAFETY: the descriptor is open and ours: `into_raw_fd` gives it up here.
    unsafe { glommio::net::TcpListener::from_raw_fd(listener.into_raw_fd()) }
}

/// Gives a connection to the executor of this thread.
pub fn adopt_stream(stream: std::net::TcpStream) -> glommio::net::TcpStream {
    // SAFETY: the descriptor is open and ours: `into_raw_fd` gives it up here.
    unsafe { glommio::net::TcpStream::from_raw_fd(stream.into_raw_fd()) }
}

/// Drops a connection half-closed by a peer that lost its power: the kernel asks after a minute.
pub fn keep_alive(socket: &impl AsRawFd) {
    ask_after(socket, 60, 10, 6);
}

/// Drops a connection to a node that has taken nothing for so long, or does not answer: one that was cut
/// off would else be sent to again and again, less and less often, long after it is back.
pub fn give_up_after(socket: &impl AsRawFd, within: Duration) {
    let within = libc::c_int::try_from(within.as_millis()).unwrap_or(libc::c_int::MAX);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, within);
    ask_after(socket, 1, 1, 4);
}

/// The kernel asks whether the other side is there after so many idle seconds, and again each
/// `again`, so many times.
fn ask_after(socket: &impl AsRawFd, idle: libc::c_int, again: libc::c_int, times: libc::c_int) {
    set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, idle);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, again);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, times);
}

/// A failure leaves the kernel's own value.
fn set_option(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
    // SAFETY: the option's value is an int, and lives across the call.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
}

/// Lets the close of a connection throw away what its peer has not taken: without, the kernel would
/// keep it, megabytes, until the peer takes it or is gone.
pub fn reset_on_close(socket: &impl AsRawFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the option's value is a `linger`, and lives across the call.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        )
    };
}

/// Ends the process now, without unwinding, destructors or exit handlers: from a panic hook or
/// beside executors that do not answer, anything more could hang.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: takes no pointer and does not return.
    unsafe { libc::_exit(libc::c_int::from(status)) }
}

/// Asks a process of ours to end in order.
pub fn terminate(process: u32) {
    send_signal(process, libc::SIGTERM);
}

/// Freezes a process of ours: it keeps all that it has, and does nothing.
pub fn freeze(process: u32) {
    send_signal(process, libc::SIGSTOP);
}

/// Lets a frozen process of ours go on.
pub fn thaw(process: u32) {
    send_signal(process, libc::SIGCONT);
}

fn send_signal(process: u32, signal: libc::c_int) {
    // 0 would mean our own group.
    if let Ok(process) = libc::pid_t::try_from(process)
        && process > 0
    {
        // SAFETY: takes no pointer. A process that is gone already is an error that changes nothing.
        unsafe { libc::kill(process, signal) };
    }
}

/// mimalloc, since the system's took a quarter of a node's time under load. It ends the process by
/// name when there is no more memory; the standard library would abort it with a line of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

// SAFETY: all is mimalloc's; what does not return breaks no promise.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the promises of `GlobalAlloc::alloc`.
        given(unsafe { MiMalloc.alloc(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the promises of `GlobalAlloc::dealloc`.
        unsafe { MiMalloc.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the promises of `GlobalAlloc::alloc_zeroed`.
        given(unsafe { MiMalloc.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller keeps the promises of `GlobalAlloc::realloc`.
        given(unsafe { MiMalloc.realloc(at, layout, bytes) }, bytes)
    }
}

fn given(at: *mut u8, bytes: usize) -> *mut u8 {
    if at.is_null() {
        out_of_memory(bytes);
    }
    at
}

/// Gives what is freed back to the kernel after half a minute instead of a second, for as long as nothing else is
/// said by `MIMALLOC_PURGE_DELAY`: what a burst or a checkpoint has taken the next one takes again, and while the
/// kernel clears a huge page for it (0.3 ms, or 5 where a host must find the memory first) its shard does nothing
/// else. For the start of a process: no other thread may do the same meanwhile.
pub fn keep_freed_memory() {
    /// `mi_option_purge_delay`, which the binding gives no name.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const KEPT_MS: libc::c_long = 30_000;
    // SAFETY: takes no pointer; the caller is alone.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, KEPT_MS) };
}

/// Says so without taking memory, and ends the process.
#[cold]
fn out_of_memory(bytes: usize) -> ! {
    const STANDARD_ERROR: libc::c_int = 2;
    const ENVIRONMENT: u8 = 3;
    let mut text = [0_u8; 512];
    let mut rest = &mut text[..];
    // What does not fit is cut off.
    let _ = write!(
        rest,
        "error[{}]: no more memory: {bytes} bytes were refused\n  where: RLIMIT_AS, or the machine's \
         memory\n  why:   the process ends, so that a restart can go on: nothing acknowledged is \
         lost\n  fix:   a smaller limits.jobs_memory_max or limits.in_flight_max, or more memory\n",
        Code::OutOfMemory
    );
    let left = rest.len();
    let said = &text[..text.len() - left];
    // SAFETY: `said` lives across the call.
    unsafe { libc::write(STANDARD_ERROR, said.as_ptr().cast(), said.len()) };
    exit_now(ENVIRONMENT)
}

/// Kills a process group: the command that a worker runs, with all that it has started.
pub fn kill_group(leader: u32) {
    // 0 and 1 would mean our own group and every process.
    if let Ok(leader) = libc::pid_t::try_from(leader)
        && leader > 1
    {
        // SAFETY: takes no pointer. A group that is gone already is an error that changes nothing.
        unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
}

/// Has a part of a file written back, and waits for it. That is no promise that it is durable: names,
/// sizes and the disk's own memory are for a sync.
///
/// # Errors
/// If the kernel could not write it.
pub fn write_back(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    const AND_WAIT: libc::c_uint = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let (offset, bytes) = (offset as libc::off64_t, bytes as libc::off64_t);
    // SAFETY: takes no pointer, and the descriptor is open.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, AND_WAIT) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks the kernel to forget what it keeps of a file in memory. Pages that somebody has mapped, or
/// that are not written yet, stay.
///
/// # Errors
/// If the kernel refuses.
pub fn drop_cached(file: &File) -> io::Result<()> {
    // SAFETY: takes no pointer, and the descriptor is open.
    let error = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Has the kernel fetch the code and the constants of this program, all at once, and a thread map them:
/// else a cold start waits for the disk at each piece that it comes to. After
/// [`register_membarrier`]. A kernel that does not know how is only slower.
pub fn fetch_program() {
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let (from, to) = (
        (&raw const __executable_start).addr(),
        (&raw const etext).addr(),
    );
    let advise = move |advice| {
        // SAFETY: both symbols are the linker's, around what is mapped for reading as long as the process
        // lives; neither advice changes what is there.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(from), to - from, advice) };
    };
    advise(libc::MADV_WILLNEED);
    let populate = move || advise(libc::MADV_POPULATE_READ);
    // Without it pages are mapped one by one.
    let _ = std::thread::Builder::new()
        .name("rrq-text".to_owned())
        .spawn(populate);
}

/// Tells the kernel that a part of a file is read soon: it begins to fetch all of it at once. A kernel
/// that does not is only slower.
pub fn will_read(file: &File, offset: u64, bytes: u64) {
    let (offset, bytes) = (offset as libc::off_t, bytes as libc::off_t);
    // SAFETY: takes no pointer, and the descriptor is open.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, bytes, libc::POSIX_FADV_WILLNEED) };
}

/// Opens a file of which only what is asked for is to be read: by itself the kernel fetches up to some
/// MiB more around each read, as its device is set up, and a start would wait for those.
///
/// # Errors
/// If it cannot be opened.
pub fn open_for_pieces(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    // SAFETY: takes no pointer, and the descriptor is open. A kernel that ignores it is only slower.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
    Ok(file)
}

/// A file that is read from the disk, past what the kernel keeps of it in memory, and nothing of which is kept
/// there for having been read.
#[derive(Debug)]
pub struct Uncached {
    file: File,
    path: PathBuf,
    is_direct: bool,
    /// What is read goes here, where it can be aligned,
    buffer: Vec<u8>,
    /// and was read to here last.
    last: Range<usize>,
}

impl Uncached {
    /// Opens it.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_buffer(path, Vec::new())
    }

    /// Opens it, and reads to this memory if there is enough of it: fresh memory costs more than reading.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn with_buffer(path: &Path, buffer: Vec<u8>) -> io::Result<Self> {
        let direct = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path);
        let (file, is_direct) = match direct {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (forgotten(path)?, false),
            file => (file?, true),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            is_direct,
            buffer,
            last: 0..0,
        })
    }

    /// Closes it. The memory that was read to, for the next.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// So many bytes, or fewer at the end of the file.
    ///
    /// # Errors
    /// If the disk cannot read them.
    pub fn read_at(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        self.last = match self.try_read_at(offset, length) {
            // Some file systems say only now that they do not read so, or not so aligned.
            Err(error) if self.is_direct && error.raw_os_error() == Some(libc::EINVAL) => {
                (self.file, self.is_direct) = (forgotten(&self.path)?, false);
                self.try_read_at(offset, length)?
            }
            result => result?,
        };
        Ok(self.last_read())
    }

    /// What was read last.
    #[must_use]
    pub fn last_read(&self) -> &[u8] {
        &self.buffer[self.last.clone()]
    }

    /// Where the next byte is, from `offset` on, that somebody has written; `u64::MAX` if there is none. What was
    /// only reserved, or skipped, reads as zeros. What the file system does not tell counts as written.
    #[must_use]
    pub fn written_from(&self, offset: u64) -> u64 {
        let from = offset as libc::off_t;
        // SAFETY: takes no pointer; the descriptor is open as long as the file is.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), from, libc::SEEK_DATA) };
        match u64::try_from(found) {
            Ok(found) => found,
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => u64::MAX,
            Err(_) => offset,
        }
    }

    /// Where in the buffer it was read to.
    fn try_read_at(&mut self, offset: u64, length: usize) -> io::Result<Range<usize>> {
        let align = if self.is_direct { DIRECT_ALIGN } else { 1 };
        // No more is taken from memory than the file has.
        let there = self.file.metadata()?.len().saturating_sub(offset);
        let length = length.min(usize::try_from(there).unwrap_or(usize::MAX));
        let before = (offset % align as u64) as usize;
        let wanted = (before + length).next_multiple_of(align);
        if self.buffer.len() < wanted + align {
            self.buffer = vec![0; wanted + align];
        }
        let start = self.buffer.as_ptr().align_offset(align);
        let (mut filled, from) = (0, offset - before as u64);
        while filled < before + length {
            let rest = &mut self.buffer[start..][filled..wanted];
            match self.file.read_at(rest, from + filled as u64)? {
                0 => break,
                // Only the end of the file is not aligned, and nothing is behind it.
                read => filled += read,
            }
        }
        let end = filled.min(before + length).max(before);
        Ok(start + before..start + end)
    }
}

/// Where the file system reads nothing directly, the kernel is asked to forget the file first. Pages that
/// somebody else is at stay, so that this is second choice.
fn forgotten(path: &Path) -> io::Result<File> {
    let file = open_for_pieces(path)?;
    drop_cached(&file)?;
    Ok(file)
}

/// The calling thread asks the disk for something only when nobody else does: in the idle class, where the
/// scheduler of the disk has classes. A kernel that refuses, or a disk without, is only less polite.
pub fn read_when_idle() {
    const WHO_PROCESS: libc::c_int = 1;
    const CALLER: libc::c_int = 0;
    const CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: takes no pointer.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, CALLER, CLASS_IDLE) };
}

/// How many pages of a file the kernel keeps in memory.
///
/// # Errors
/// If it cannot be mapped.
pub fn cached_pages(file: &File) -> io::Result<usize> {
    let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if bytes == 0 {
        return Ok(0);
    }
    // SAFETY: a new mapping at a place of the kernel's choice; nothing reads through it.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_NONE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut states = vec![0_u8; bytes.div_ceil(4096)];
    // SAFETY: the mapping is whole, and there is a byte for each of its pages.
    let asked = unsafe { libc::mincore(map, bytes, states.as_mut_ptr()) };
    let failed = (asked != 0).then(io::Error::last_os_error);
    // SAFETY: the mapping was made above and nothing points into it.
    unsafe { libc::munmap(map, bytes) };
    match failed {
        Some(error) => Err(error),
        None => Ok(states.iter().filter(|state| **state & 1 == 1).count()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_is_forgotten_when_it_is_on_disk() {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        file.write_all(&[7; 64 << 10]).expect("written");
        assert_eq!(cached_pages(&file).expect("mapped"), 16);
        file.sync_all().expect("synced");
        drop_cached(&file).expect("asked");
        assert_eq!(cached_pages(&file).expect("mapped"), 0);
    }

    #[test]
    fn a_file_is_read_past_what_is_cached_of_it() {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        let bytes: Vec<u8> = (0..40_000_u32).map(|byte| (byte % 251) as u8).collect();
        file.write_all(&bytes).expect("written");
        file.as_file().sync_all().expect("synced");
        drop_cached(file.as_file()).expect("asked");
        let mut uncached = Uncached::open(file.path()).expect("opened");
        for (offset, length) in [(0, 1), (4095, 2), (5000, 20_000), (0, 40_000), (40_000, 9)] {
            let read = uncached.read_at(offset as u64, length).expect("read");
            let end = bytes.len().min(offset + length);
            assert_eq!(read, &bytes[offset..end], "{length} bytes at {offset}");
        }
        assert_eq!(uncached.read_at(39_990, 100).expect("read").len(), 10);
        assert!(uncached.read_at(1 << 40, 1).expect("read").is_empty());
        if uncached.is_direct {
            assert_eq!(cached_pages(file.as_file()).expect("mapped"), 0);
        }
    }

    #[test]
    fn what_is_only_reserved_is_no_byte_that_somebody_has_written() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        reserve(file.as_file(), 1 << 20).expect("reserved");
        file.as_file()
            .write_all_at(&[7; 4096], 512 << 10)
            .expect("written");
        file.as_file().sync_all().expect("synced");
        let uncached = Uncached::open(file.path()).expect("opened");
        assert_eq!(uncached.written_from(0), 512 << 10);
        assert_eq!(uncached.written_from(513 << 10), 513 << 10);
        assert_eq!(uncached.written_from(516 << 10), u64::MAX);
        assert_eq!(uncached.written_from(1 << 40), u64::MAX);
    }
}
