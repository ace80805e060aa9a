//! What the soak does to the machine, and what the machine does to the soak.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A thread's time on a core and its waits for one, as the kernel counts them.
pub(crate) struct CoreTimes(File);

impl CoreTimes {
    /// Of a thread of a process.
    pub(crate) fn of(pid: u32, thread: u32) -> Self {
        let path = format!("/proc/{pid}/task/{thread}/schedstat");
        Self(File::open(path).expect("the kernel counts what threads wait"))
    }

    /// Of the thread that asks.
    pub(crate) fn own() -> Self {
        let link = fs::read_link("/proc/thread-self").expect("a thread has a number");
        let name = link.file_name().and_then(|name| name.to_str());
        let thread = name.and_then(|name| name.parse().ok()).expect("a number");
        Self::of(std::process::id(), thread)
    }

    /// Both together, since the thread's start. A wait is added when it ends.
    pub(crate) fn read(&self) -> Duration {
        let mut text = [0; 96];
        // A thread that has ended needs no core.
        let length = self.0.read_at(&mut text, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..length]);
        let fields = text.split_whitespace().take(2);
        fields
            .filter_map(|field| field.parse().ok())
            .map(Duration::from_nanos)
            .sum()
    }
}

/// The first thread of each name that begins so; those that it starts are called the same.
pub(crate) fn threads(pid: u32, prefix: &str) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let mut found: Vec<(String, u32)> = tasks
        .flatten()
        .filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let number = task.file_name().to_str()?.parse().ok()?;
            name.starts_with(prefix)
                .then(|| (name.trim().to_owned(), number))
        })
        .collect();
    found.sort();
    found.dedup_by(|later, first| later.0 == first.0);
    found.into_iter().map(|(_, number)| number).collect()
}

/// Keeps this thread, and whatever it starts, on two cores, so that four hogs are many; which.
pub(crate) fn keep_to_two_cores() -> Vec<usize> {
    // SAFETY: a set of cores is plain bits, and all zero is the empty one.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer and the size are those of the set.
    let asked = unsafe { libc::sched_getaffinity(0, size_of_val(&allowed), &raw mut allowed) };
    assert_eq!(asked, 0, "the kernel says where we may run");
    let cores: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
        // SAFETY: below the size of a set.
        .filter(|core| unsafe { libc::CPU_ISSET(*core, &allowed) })
        .take(2)
        .collect();
    keep_to(&cores);
    cores
}

fn keep_to(cores: &[usize]) {
    // SAFETY: as above.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for core in cores {
        // SAFETY: it was found in a set.
        unsafe { libc::CPU_SET(*core, &mut set) };
    }
    // SAFETY: the pointer and the size are those of the set.
    let kept = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(kept, 0, "we may choose among our cores");
}

/// Threads that end when this is dropped.
pub(crate) struct Threads<T = ()> {
    over: Arc<AtomicBool>,
    running: Vec<JoinHandle<T>>,
}

impl<T: Send + 'static> Threads<T> {
    /// One for each of `work`, which ends once the flag is set.
    pub(crate) fn start<W>(work: impl IntoIterator<Item = W>) -> Self
    where
        W: FnOnce(&AtomicBool) -> T + Send + 'static,
    {
        let over = Arc::new(AtomicBool::new(false));
        let running = work.into_iter().map(|work| {
            let over = over.clone();
            std::thread::spawn(move || work(&over))
        });
        let running = running.collect();
        Self { over, running }
    }

    /// Whether one has ended although it was not asked to: it failed.
    pub(crate) fn one_failed(&self) -> bool {
        self.running.iter().any(JoinHandle::is_finished)
    }

    /// Ends them; what they found.
    pub(crate) fn end(mut self) -> Vec<T> {
        self.over.store(true, Relaxed);
        let ended = std::mem::take(&mut self.running).into_iter();
        ended
            .map(|thread| thread.join().expect("a thread of the soak failed"))
            .collect()
    }
}

impl<T> Drop for Threads<T> {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        for thread in self.running.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Threads that do nothing but take a core.
pub(crate) fn hogs(count: usize) -> Threads {
    Threads::start((0..count).map(|_| {
        |over: &AtomicBool| {
            while !over.load(Relaxed) {
                std::hint::spin_loop();
            }
        }
    }))
}

/// Its begin, and its end unless it lasts.
type Pause = (Instant, Option<Instant>);

/// Times at which something stood still.
#[derive(Clone, Default)]
pub(crate) struct Pauses(Arc<Mutex<Vec<Pause>>>);

impl Pauses {
    fn list(&self) -> MutexGuard<'_, Vec<Pause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that begins now, or is over.
    pub(crate) fn add(&self, from: Instant, to: Option<Instant>) {
        self.list().push((from, to));
    }

    /// The last one ends.
    fn end(&self) {
        if let Some((_, to)) = self.list().last_mut() {
            *to = Some(Instant::now());
        }
    }

    /// How much of them lies between these two.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> Duration {
        let list = self.list();
        let recent = list.iter().rev().take(1000);
        recent
            .map(|(begun, ended)| {
                let ended = ended.unwrap_or(to).min(to);
                ended.saturating_duration_since((*begun).max(from))
            })
            .sum()
    }

    /// How many, all together, and the longest.
    pub(crate) fn tally(&self) -> (usize, Duration, Duration) {
        let list = self.list();
        let lengths = list
            .iter()
            .filter_map(|(from, to)| Some(to.as_ref()?.duration_since(*from)));
        let longest = lengths.clone().max().unwrap_or_default();
        (list.len(), lengths.sum(), longest)
    }
}

/// Watches whether the cores themselves stand still, as those of a virtual machine do: a thread on
/// each sleeps for a millisecond again and again. What it sleeps longer and did not wait for its core
/// is a pause of the host.
pub(crate) fn watch_cores(cores: &[usize], pauses: &Pauses) -> Threads {
    const NAP: Duration = Duration::from_millis(1);
    const MATTERS: Duration = Duration::from_millis(5);
    Threads::start(cores.iter().map(|core| {
        let (core, pauses) = (*core, pauses.clone());
        move |over: &AtomicBool| {
            keep_to(&[core]);
            let times = CoreTimes::own();
            while !over.load(Relaxed) {
                let (begun, before) = (Instant::now(), times.read());
                std::thread::sleep(NAP);
                let busy = times.read() - before;
                let ended = Instant::now();
                let paused = (ended - begun).saturating_sub(NAP + busy);
                if paused > MATTERS {
                    pauses.add(ended - paused, Some(ended));
                }
            }
        }
    }))
}

/// A process that can be stopped and given less of the cores.
pub(crate) struct Victim {
    pid: u32,
    quota: Option<Quota>,
    /// When it was stopped.
    pub(crate) stops: Pauses,
}

impl Victim {
    pub(crate) fn new(pid: u32) -> Self {
        Self {
            pid,
            quota: Quota::of(pid),
            stops: Pauses::default(),
        }
    }

    /// How a quota is set.
    pub(crate) fn quota_kind(&self) -> String {
        match &self.quota {
            Some(quota) => quota.folder.display().to_string(),
            None => "SIGSTOP and SIGCONT by turns: no control group can be written".to_owned(),
        }
    }

    /// Stops it for a while.
    pub(crate) fn stop_for(&self, time: Duration) {
        self.stops.add(Instant::now(), None);
        self.signal(libc::SIGSTOP);
        std::thread::sleep(time);
        self.signal(libc::SIGCONT);
        self.stops.end();
    }

    fn signal(&self, signal: i32) {
        // SAFETY: takes no pointer. The process is our child and was not waited for.
        let sent = unsafe { libc::kill(self.pid as i32, signal) };
        assert_eq!(sent, 0, "the node runs");
    }

    /// Lets it have `share` of each `period`, for a while.
    pub(crate) fn squeeze(&self, share: Duration, period: Duration, time: Duration) {
        let Some(quota) = &self.quota else {
            let until = Instant::now() + time;
            while Instant::now() < until {
                std::thread::sleep(share);
                self.stop_for(period - share);
            }
            return;
        };
        quota.set(Some(share), period);
        std::thread::sleep(time);
        quota.set(None, period);
    }
}

/// A control group with a bound for the cores.
struct Quota {
    folder: PathBuf,
    version: u32,
}

impl Quota {
    /// Moves the process into a group of its own, if that can be done here.
    fn of(pid: u32) -> Option<Self> {
        let places = [
            ("/sys/fs/cgroup/cpu", 1),
            ("/sys/fs/cgroup/cpu,cpuacct", 1),
            ("/sys/fs/cgroup", 2),
        ];
        places.into_iter().find_map(|(root, version)| {
            let file = ["cpu.cfs_quota_us", "cpu.max"][version as usize - 1];
            let folder = Path::new(root).join(format!("rrq-soak-{pid}"));
            fs::create_dir(&folder).ok()?;
            let quota = Self { folder, version };
            quota.folder.join(file).exists().then_some(())?;
            fs::write(quota.folder.join("cgroup.procs"), pid.to_string()).ok()?;
            Some(quota)
        })
    }

    fn set(&self, share: Option<Duration>, period: Duration) {
        let period = period.as_micros();
        let share = share.map(|share| share.as_micros().to_string());
        let write = |file, text: &str| {
            fs::write(self.folder.join(file), text).expect("the group is ours");
        };
        if self.version == 2 {
            let share = share.as_deref().unwrap_or("max");
            write("cpu.max", &format!("{share} {period}"));
        } else {
            write("cpu.cfs_quota_us", "-1");
            write("cpu.cfs_period_us", &period.to_string());
            write("cpu.cfs_quota_us", share.as_deref().unwrap_or("-1"));
        }
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // The process may still run: it goes back to where groups begin.
        if let Some(root) = self.folder.parent()
            && let Ok(members) = fs::read_to_string(self.folder.join("cgroup.procs"))
        {
            for pid in members.lines() {
                let _ = fs::write(root.join("cgroup.procs"), pid);
            }
        }
        let _ = fs::remove_dir(&self.folder);
    }
}
