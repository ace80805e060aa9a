//! What /proc says: of other processes, for messages that name who is in the way; of this one, for
//! the metrics.

use crate::runtime::sys;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Whether a process runs and is not about to end. One that a `kill -9` has reached counts as dead:
/// what it holds goes away by itself, however long a write in the kernel keeps a thread of it.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stays(&stat))
}

/// The same, from the text of its stat file.
fn stays(stat: &str) -> bool {
    // Flags of the kernel's sched.h: the first thread has begun to exit, was ended by a signal.
    const EXITING: u64 = 0x4;
    const SIGNALED: u64 = 0x400;
    // A thread within an uninterruptible call has not seen its signal yet.
    const SIGKILL_PENDING: u64 = 1 << 8;
    let Some(state) = field::<char>(stat, 3) else {
        return false;
    };
    let has = |number, bits| field::<u64>(stat, number).is_some_and(|value| value & bits != 0);
    !matches!(state, 'Z' | 'X' | 'x') && !has(9, EXITING | SIGNALED) && !has(31, SIGKILL_PENDING)
}

/// "pid 4312 rrq-node".
#[must_use]
pub fn describe(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("pid {pid} {}", name.trim()).trim_end().to_owned()
}

/// The process that listens on a TCP port, as far as this user may see.
#[must_use]
pub fn listener_of(address: SocketAddr) -> Option<u32> {
    let inode = listening_inode(address)?;
    let target = format!("socket:[{inode}]");
    let numbers = fs::read_dir("/proc").ok()?;
    numbers.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
        // The first thread of a dying process is gone before the others let go.
        let threads = fs::read_dir(entry.path().join("task")).ok()?;
        threads
            .flatten()
            .any(|thread| holds(&thread.path().join("fd"), &target))
            .then_some(pid)
    })
}

fn holds(files: &Path, target: &str) -> bool {
    let is_target = |file: fs::DirEntry| {
        fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == target)
    };
    fs::read_dir(files).is_ok_and(|files| files.flatten().any(is_target))
}

fn listening_inode(address: SocketAddr) -> Option<u64> {
    const LISTEN: &str = "0A";
    let table = if address.is_ipv4() {
        "/proc/net/tcp"
    } else {
        "/proc/net/tcp6"
    };
    let port = format!(":{:04X}", address.port());
    fs::read_to_string(table)
        .ok()?
        .lines()
        .skip(1)
        .find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&port) && *fields.get(3)? == LISTEN;
            listens.then(|| fields.get(9)?.parse().ok())?
        })
}

/// The thread that asks, by the kernel's number.
#[must_use]
pub fn this_thread() -> u32 {
    let link = fs::read_link("/proc/thread-self").unwrap_or_default();
    let name = link.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.parse().ok()).unwrap_or(0)
}

/// What a thread has had of cores since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreTimes {
    /// Time on a core, in nanoseconds.
    pub ran_ns: u64,
    /// Time in which it could have run and had none. The kernel adds a wait when it ends.
    pub waited_ns: u64,
}

impl CoreTimes {
    /// Both together, since an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        (self.ran_ns + self.waited_ns).saturating_sub(earlier.ran_ns + earlier.waited_ns)
    }
}

/// What a thread of this process has had of cores, if the kernel says.
#[must_use]
pub fn core_times(thread: u32) -> Option<CoreTimes> {
    parse_core_times(&fs::read(core_times_path(thread)).ok()?)
}

/// Whether a thread of this process could run and has had no core since the last call, which leaves
/// in `ran_ns` what it had had of them by then.
#[must_use]
pub fn waits_for_core(thread: u32, ran_ns: &mut u64) -> bool {
    let Some(times) = core_times(thread) else {
        return false;
    };
    let had_none = std::mem::replace(ran_ns, times.ran_ns) == times.ran_ns;
    had_none && is_runnable(thread)
}

fn is_runnable(thread: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    stat.is_ok_and(|stat| field::<char>(&stat, 3) == Some('R'))
}

fn core_times_path(thread: u32) -> String {
    format!("/proc/self/task/{thread}/schedstat")
}

fn parse_core_times(text: &[u8]) -> Option<CoreTimes> {
    let mut fields = std::str::from_utf8(text).ok()?.split_whitespace();
    let mut next = || fields.next()?.parse().ok();
    Some(CoreTimes {
        ran_ns: next()?,
        waited_ns: next()?,
    })
}

/// The same for who asks often: the file stays open.
#[derive(Debug)]
pub struct CoreTimesFile(Option<fs::File>);

impl CoreTimesFile {
    /// Of a thread of this process.
    #[must_use]
    pub fn of(thread: u32) -> Self {
        Self(fs::File::open(core_times_path(thread)).ok())
    }

    /// As they are now; zero where the kernel does not say.
    #[must_use]
    pub fn read(&self) -> CoreTimes {
        let mut text = [0; 96];
        let read = self.0.as_ref().map(|file| file.read_at(&mut text, 0));
        let length = read.and_then(Result::ok).unwrap_or(0);
        parse_core_times(&text[..length]).unwrap_or_default()
    }
}

/// How often a thread of this process had to wait for the disk to get at its memory.
#[must_use]
pub fn major_faults(thread: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    field(&stat, 12)
}

/// Numbers of this process, as Prometheus' own client libraries name them.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnNumbers {
    /// Processor time, in seconds.
    pub cpu_seconds: f64,
    /// Memory in use, in bytes.
    pub resident_bytes: u64,
    /// Memory mapped, in bytes.
    pub virtual_bytes: u64,
    /// Open descriptors.
    pub open_files: u64,
    /// Threads.
    pub threads: u64,
    /// When it was started, in seconds since 1970.
    pub start_seconds: f64,
}

/// What /proc says of this process; what cannot be read is 0.
#[must_use]
pub fn own_numbers() -> OwnNumbers {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let of = |number| field(&stat, number).unwrap_or(0);
    let ticks = sys::clock_ticks() as f64;
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime "));
    let boot: f64 = boot
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0.0);
    OwnNumbers {
        cpu_seconds: (of(14) + of(15)) as f64 / ticks,
        resident_bytes: of(24) * sys::page_bytes(),
        virtual_bytes: of(23),
        open_files: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
        threads: of(20),
        start_seconds: boot + of(22) as f64 / ticks,
    }
}

/// Memory that this process may have, in bytes: the smallest of what the machine has, what its
/// control groups allow and RLIMIT_AS; `u64::MAX` if nothing says.
#[must_use]
pub fn memory_limit() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| machine_memory(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = limit_files(&groups)
        .filter_map(|path| fs::read_to_string(path).ok())
        // "max" is no number.
        .filter_map(|text| text.trim().parse().ok());
    let known = machine.into_iter().chain(groups);
    known.fold(sys::address_space_limit(), u64::min)
}

fn machine_memory(meminfo: &str) -> Option<u64> {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Where the memory limits of a process's control groups stand, those above included, of both
/// versions. In a container the group's own path may not be there, but its root is the container's.
fn limit_files(cgroup: &str) -> impl Iterator<Item = PathBuf> {
    cgroup.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next().unwrap_or_default();
        let group = fields.next().unwrap_or_default().trim_start_matches('/');
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        };
        let counts = controllers.is_empty() || controllers.split(',').any(|name| name == "memory");
        let group = Path::new(group).to_owned();
        let above: Vec<PathBuf> = group.ancestors().map(Path::to_owned).collect();
        above
            .into_iter()
            .filter(move |_| counts)
            .map(move |group| Path::new(root).join(group).join(file))
    })
}

/// A field of a stat file, counted from 1 as proc(5) does; only those behind the name.
fn field<T: FromStr>(stat: &str, number: usize) -> Option<T> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace()
        .nth(number.checked_sub(3)?)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn knows_its_own_numbers() {
        let thread = this_thread();
        assert!(thread > 0 && major_faults(thread).is_some());
        let (file, begun) = (CoreTimesFile::of(thread), Instant::now());
        let mut first = file.read();
        // The kernel adds up the time of a thread that runs at its ticks.
        while first.ran_ns == 0 && begun.elapsed() < Duration::from_secs(10) {
            first = file.read();
        }
        let second = core_times(thread).expect("the kernel says");
        assert!(first.ran_ns > 0 && first.ran_ns <= second.ran_ns);
        assert_eq!(CoreTimesFile::of(u32::MAX).read(), CoreTimes::default());
        let own = own_numbers();
        assert!(own.resident_bytes > 1 << 16 && own.virtual_bytes >= own.resident_bytes);
        assert!(own.open_files >= 3 && own.threads >= 1);
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("after 1970");
        let age = now.as_secs_f64() - own.start_seconds;
        assert!((-2.0..86_400.0).contains(&age), "{age} s old");
        assert_eq!(field("1 (a ) b) S 2 3", 4), Some(2));
    }

    #[test]
    fn the_memory_limit_is_looked_for_in_both_kinds_of_control_groups() {
        assert_eq!(
            machine_memory("MemFree: 1 kB\nMemTotal:   24683520 kB\n"),
            Some(24_683_520 << 10)
        );
        let files = limit_files("9:cpu,cpuacct:/a\n4:memory:/a/b\n0::/user.slice\n");
        let files: Vec<String> = files.map(|path| path.display().to_string()).collect();
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/user.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert!(memory_limit() >= 64 << 20);
    }

    #[test]
    fn a_process_that_was_killed_within_a_write_is_dead() {
        let stat = |state, flags: u64, pending: u64| {
            format!(
                "17 (a ) b) {state} 1 17 17 0 -1 {flags} 8 0 0 0 0 0 0 0 20 0 9 0 5 4096 64 \
                 18446744073709551615 1 1 0 0 0 {pending} 0 4096 0 0 0 0 17 1 0 0 0 0 0"
            )
        };
        const USUAL: u64 = 0x40_0100;
        assert!(stays(&stat('S', USUAL, 0)));
        // A SIGTERM on its way: it may be handled.
        assert!(stays(&stat('D', USUAL, 1 << 14)));
        assert!(!stays(&stat('D', USUAL, 1 << 8)));
        assert!(!stays(&stat('D', USUAL | 0x400, 0)));
        assert!(!stays(&stat('R', USUAL | 0x4, 0)));
        assert!(!stays(&stat('Z', USUAL, 0)));
        assert!(!stays("damaged"));
    }

    #[test]
    fn finds_itself() {
        let me = std::process::id();
        assert!(is_alive(me));
        assert!(!is_alive(u32::MAX));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        assert_eq!(listener_of(address), Some(me));
        drop(listener);
        assert_eq!(listener_of(address), None);
    }
}
