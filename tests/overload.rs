//! More than a node can take: producers that are faster than its disk, consumers that never finish,
//! backlogs larger than its memory. It tells by name what it does not take, its memory stays under a
//! bound that follows from its limits, and whoever behaves is served all the while.
#![cfg(all(feature = "server", target_os = "linux"))]
// A limit of a process can only be set by a system call.
#![allow(unsafe_code)]

mod node_support;

use node_support::load::{
    Tally, Worker, config, forget_peak, job, memory, produce, request, until,
};
use node_support::{Node, command, error_kit, folder};
use rrq::base::code::Code;
use rrq::base::ids::JobId;
use rrq::base::limits::{
    BATCHES_IN_FLIGHT_MAX, FRAME_BYTES_MAX, IN_FLIGHT_BYTES_SHARD_MIN, JOB_HELD_BYTES,
    KEY_HELD_BYTES,
};
use rrq::wire::{Backoff, BackoffKind, NewJob, QueueSettings};
use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// What the connections of a shard may make a node take, at the bound of `in_flight`.
///
/// A byte on the way is in memory up to four times: in the frame, in the command made of it, in the
/// batch of the log that gathers, and in the buffer that the disk reads from. The last is bounded by
/// itself. What was freed stays with the allocator for a while, in whole huge pages, and serves only
/// what has about its size: half as much again (80 MiB, a queue of 16 among them, took 93 to 140 in 120
/// runs, and 78 to 97 with an allocator that gives all back at once). One frame may be finished beyond
/// the bound. The rest is for the buffers of a checkpoint (4 MiB), and for all that is small.
fn connections_take(in_flight: u64) -> u64 {
    let writing = BATCHES_IN_FLIGHT_MAX as u64 * MIB;
    let one_frame = 2 * FRAME_BYTES_MAX as u64;
    let rest = 24 * MIB;
    4 * in_flight * 3 / 2 + writing + one_frame + rest
}

/// Ends the other threads of a test with it, also if it fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn producers_faster_than_the_disk_wait_and_others_are_served() {
    const PRODUCERS: usize = 48;
    const WINDOW: u64 = 16;
    const PAYLOAD: usize = 256 << 10;
    const QUOTA: u64 = 16 * MIB;
    let in_flight = IN_FLIGHT_BYTES_SHARD_MIN as u64;
    let data = folder("producers");
    let config = config(&data, "in_flight_max = \"16MiB\"");
    let args = ["--config", config.to_str().expect("a path of ours")];
    let node = Node::start(&data, &args);
    let address = node.clients();
    let settings = QueueSettings {
        bytes_max: QUOTA,
        ..QueueSettings::default()
    };
    let mut behaved = Worker::new(address, "small", QueueSettings::default());
    forget_peak(&node);
    let before = memory(&node);
    // Offered at once: more than the bound, even if each byte were in memory only once.
    let takes = connections_take(in_flight) + QUOTA;
    assert!(PRODUCERS as u64 * WINDOW * PAYLOAD as u64 > takes);

    let flag = AtomicBool::new(false);
    let (mut tally, small) = std::thread::scope(|scope| {
        let over = Over(&flag);
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut worker = Worker::new(address, "large", settings);
                    produce(&mut worker, PAYLOAD, WINDOW, 2)
                })
            })
            .collect();
        let behaved = scope.spawn(|| {
            let mut jobs = Vec::new();
            while !flag.load(Relaxed) {
                jobs.extend(behaved.enqueue(vec![job(100)]).expect("it is taken"));
            }
            jobs
        });
        let mut tally = Tally::default();
        for producer in producers {
            tally.add(producer.join().expect("a producer"));
        }
        drop(over);
        (tally, behaved.join().expect("the client that behaves"))
    });
    let after = memory(&node);
    println!(
        "before {before:?}, after {after:?}; {} taken, {} over the quota, {} busy; {} small ones",
        tally.jobs.len(),
        tally.over_quota,
        tally.busy,
        small.len()
    );
    assert!(small.len() >= 5, "{} jobs of who behaves", small.len());
    let bound = before.resident + takes;
    assert!(after.peak < bound, "{after:?}, the bound is {bound}");
    let answers = tally.jobs.len() + tally.over_quota + tally.busy;
    assert_eq!(answers, PRODUCERS * WINDOW as usize * 2);

    // All that was acknowledged is there, also after a crash, and nothing else.
    node.signal("-KILL");
    drop(node);
    let node = Node::start(&data, &args);
    let mut left: Vec<_> = Worker::new(node.clients(), "large", settings).take_all();
    left.sort_unstable();
    tally.jobs.sort_unstable();
    assert_eq!(left, tally.jobs);
    let left = Worker::new(node.clients(), "small", QueueSettings::default()).take_all();
    assert_eq!(left, small);
}

#[test]
fn consumers_that_never_ack_keep_no_job_from_one_that_does() {
    const JOBS: usize = 100;
    const HOARDERS: usize = 4;
    const LEASE_MS: u32 = 50;
    let data = folder("hoarders");
    let config = config(&data, "in_flight_max = \"16MiB\"");
    let node = Node::start(
        &data,
        &["--config", config.to_str().expect("a path of ours")],
    );
    let address = node.clients();
    let settings = QueueSettings {
        max_attempts: u16::MAX,
        backoff: Backoff {
            kind: BackoffKind::Fixed,
            base_ms: 0,
            cap_ms: 0,
            ..Backoff::default()
        },
        ..QueueSettings::default()
    };
    let mut behaved = Worker::new(address, "hoarded", settings);
    let jobs: BTreeSet<_> = behaved
        .enqueue(vec![job(1000); JOBS])
        .expect("they are taken")
        .into_iter()
        .collect();
    forget_peak(&node);
    let before = memory(&node);
    let (flag, hoarded) = (AtomicBool::new(false), AtomicUsize::new(0));
    let done = std::thread::scope(|scope| {
        let _over = Over(&flag);
        for _ in 0..HOARDERS {
            scope.spawn(|| {
                let mut hoarder = Worker::new(address, "hoarded", settings);
                while !flag.load(Relaxed) {
                    let tokens = hoarder.lease(JOBS as u32, LEASE_MS);
                    hoarded.fetch_add(tokens.len(), Relaxed);
                }
            });
        }
        until("the jobs to be hoarded", || {
            (hoarded.load(Relaxed) >= JOBS).then_some(())
        });
        let mut done = BTreeSet::new();
        until("all jobs to come round", || {
            // Who waits in line is served before those who only grab.
            let tokens = behaved.lease_within(50, 600_000, 5_000);
            done.extend(tokens.iter().map(|token| token.job));
            if !tokens.is_empty() {
                behaved.ack(tokens);
            }
            (done.len() == JOBS).then_some(())
        });
        done
    });
    let hoarded = hoarded.into_inner();
    let after = memory(&node);
    println!("before {before:?}, after {after:?}; {hoarded} jobs leased and never acknowledged");
    assert_eq!(done, jobs);
    assert!(
        hoarded >= JOBS,
        "{hoarded} leases that were never acknowledged"
    );
    let bound = before.resident + connections_take(IN_FLIGHT_BYTES_SHARD_MIN as u64);
    assert!(after.peak < bound, "{after:?}, the bound is {bound}");
}

/// Gives a node so many jobs, some at a time, however long it takes; what was taken.
fn fill(worker: &mut Worker, (jobs, each): (usize, usize), payload: usize) -> Vec<JobId> {
    let mut taken = Vec::new();
    let mut waited = Duration::ZERO;
    while taken.len() < jobs {
        match worker.enqueue(vec![job(payload); each]) {
            Ok(jobs) => taken.extend(jobs),
            // Its checkpoints come too late; a client of the library waits as well.
            Err(error) => {
                let late = [Code::Busy, Code::MemoryFull];
                assert!(late.contains(&error.code), "{error:?}");
                sleep(Duration::from_millis(5));
                waited += Duration::from_millis(5);
                assert!(waited < Duration::from_secs(60), "it takes no more jobs");
            }
        }
    }
    taken
}

#[test]
fn a_backlog_larger_than_its_memory_is_taken_kept_and_worked_off() {
    const MAX: u64 = 32 * MIB;
    const SMALL: usize = 100;
    let data = folder("backlog");
    let limits = "in_flight_max = \"16MiB\"\njobs_memory_max = \"32MiB\"";
    let config = config(&data, limits);
    let args = ["--config", config.to_str().expect("a path of ours")];
    let node = Node::start(&data, &args);
    let mut worker = Worker::new(node.clients(), "backlog", QueueSettings::default());
    forget_peak(&node);
    let before = memory(&node);
    // Four times as much as all that it may have in memory.
    let job_bytes = JOB_HELD_BYTES + 16 + SMALL;
    let jobs = 4 * MAX as usize / job_bytes;
    let taken = fill(&mut worker, (jobs, 1000), SMALL);
    let bound = before.resident + MAX * 5 / 4 + connections_take(0);
    let after = memory(&node);
    println!("{jobs} jobs: before {before:?}, after {after:?}");
    assert!(after.peak < bound, "{after:?}, the bound is {bound}");

    node.signal("-KILL");
    drop(node);
    let node = Node::start(&data, &args);
    let started = memory(&node);
    let mut worker = Worker::new(node.clients(), "backlog", QueueSettings::default());
    assert_eq!(worker.take_all(), taken, "in their order, each once");
    let after = memory(&node);
    println!("read back: started {started:?}, after {after:?}");
    assert!(after.peak < bound, "{after:?}, the bound is {bound}");
}

#[test]
fn jobs_in_flight_that_take_all_memory_stop_new_jobs_only() {
    const MAX: u64 = 16 * MIB;
    const SMALL: usize = 100;
    let data = folder("leased");
    let limits = "in_flight_max = \"16MiB\"\njobs_memory_max = \"16MiB\"";
    let config = config(&data, limits);
    let args = ["--config", config.to_str().expect("a path of ours")];
    let node = Node::start(&data, &args);
    let mut worker = Worker::new(node.clients(), "leased", QueueSettings::default());
    let job_bytes = JOB_HELD_BYTES + 16 + SMALL;
    let jobs = 5 * MAX as usize / 4 / job_bytes;
    let taken = fill(&mut worker, (jobs, 1000), SMALL);
    let mut tokens = Vec::new();
    while tokens.len() < taken.len() {
        tokens.extend(worker.lease(1000, 600_000));
    }
    // What a worker holds stays in memory.
    let refusal = worker.enqueue(vec![job(SMALL)]).expect_err("it is full");
    assert_eq!(refusal.code, Code::MemoryFull);
    error_kit::compare(&format!("{}: {}", refusal.code, refusal.message));
    let held: Vec<_> = tokens.iter().map(|token| token.job).collect();
    assert_eq!(held, taken, "in their order, each once");
    // Acks go on, and make room.
    for some in tokens.chunks(1000) {
        worker.ack(some.to_vec());
    }
    until("room", || worker.enqueue(vec![job(SMALL)]).ok());
}

#[test]
fn keys_of_jobs_long_done_count_as_memory() {
    const MAX: u64 = 16 * MIB;
    let data = folder("keys");
    let limits = "in_flight_max = \"16MiB\"\njobs_memory_max = \"16MiB\"";
    let config = config(&data, limits);
    let args = ["--config", config.to_str().expect("a path of ours")];
    let node = Node::start(&data, &args);
    let mut worker = Worker::new(node.clients(), "keys", QueueSettings::default());
    forget_peak(&node);
    let before = memory(&node);
    let mut keys = 0;
    let refusal = loop {
        let items = (keys..keys + 1000).map(|key: u64| NewJob {
            key: Some(key.to_le_bytes().to_vec().into()),
            ..job(8)
        });
        match worker.enqueue(items.collect()) {
            Ok(jobs) => keys += jobs.len() as u64,
            Err(refusal) => break refusal,
        }
        assert_eq!(worker.take_all().len(), 1000, "no job stays");
        assert!(keys < 2 * MAX / KEY_HELD_BYTES as u64, "no end at {keys}");
    };
    assert_eq!(refusal.code, Code::MemoryFull);
    assert!(
        keys * KEY_HELD_BYTES as u64 >= MAX - MAX / 8,
        "{keys} are few"
    );
    let after = memory(&node);
    println!("{keys} keys: before {before:?}, after {after:?}");
    let bound = before.resident + MAX * 5 / 4 + connections_take(0);
    assert!(after.peak < bound, "{after:?}, the bound is {bound}");
}

/// A control group that may have so much memory; removed when it goes.
struct SmallMemory(PathBuf);

impl SmallMemory {
    fn new(bytes: u64) -> std::io::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let (root, limit) = match root.join("memory").is_dir() {
            true => (root.join("memory"), "memory.limit_in_bytes"),
            false => (root.to_owned(), "memory.max"),
        };
        let path = root.join(format!("rrq-overload-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        let group = Self(path);
        std::fs::write(group.0.join(limit), bytes.to_string())?;
        Ok(group)
    }

    /// Starts a node in it, so that it finds the limit.
    fn start(&self, data: &Path, args: &[&str]) -> Node {
        let processes = self.0.join("cgroup.procs");
        let mut command = command(data, args);
        // SAFETY: the child only opens, writes and closes a file.
        unsafe { command.pre_exec(move || std::fs::write(&processes, "0")) };
        Node::spawn_by(&mut command).until_ready()
    }
}

impl Drop for SmallMemory {
    fn drop(&mut self) {
        // Fails while a process of it is about to end; an empty group does no harm.
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn in_a_container_with_little_memory_a_node_keeps_more_than_fits_and_is_not_killed() {
    const LIMIT: u64 = 256 * MIB;
    let group = match SmallMemory::new(LIMIT) {
        Ok(group) => group,
        Err(error) => return println!("skipped: needs to make a control group ({error})"),
    };
    let data = folder("container");
    let mut node = group.start(&data, &["--shards", "1"]);
    let mut worker = Worker::new(node.clients(), "container", QueueSettings::default());
    let jobs = (LIMIT * 5 / 4) as usize / (4 << 10);
    let taken = fill(&mut worker, (jobs, 256), 4 << 10);
    println!("{} jobs, {:?}", taken.len(), memory(&node));
    // The checkpoints of all this, and a start that reads it, fit too.
    for _ in 0..2 {
        node.signal("-KILL");
        drop(node);
        node = group.start(&data, &["--shards", "1"]);
        worker = Worker::new(node.clients(), "container", QueueSettings::default());
    }
    assert_eq!(worker.take_all(), taken, "in their order, each once");
    drop(node);
}

/// Bounds the memory that a node may map.
fn set_address_space(node: &Node, bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    let pid = libc::pid_t::try_from(node.pid()).expect("a pid");
    // SAFETY: `limit` lives across the call; the old limit is not asked for.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_AS, &limit, std::ptr::null_mut()) };
    assert_eq!(set, 0, "it is our child");
}

#[test]
fn without_memory_the_node_ends_by_name_and_loses_nothing() {
    let data = folder("no-memory");
    // A configuration that promises more than there is.
    let limits = "in_flight_max = \"16MiB\"\njobs_memory_max = \"4GiB\"";
    let config = config(&data, limits);
    let args = ["--config", config.to_str().expect("a path of ours")];
    let mut node = Node::start(&data, &args);
    let mut worker = Worker::new(node.clients(), "no-memory", QueueSettings::default());
    set_address_space(&node, memory(&node).mapped + 32 * MIB);
    // One job at a time, so that at most one is neither acknowledged nor refused.
    let frame = request(1, worker.command(worker.enqueue_op(vec![job(256 << 10)])));
    let mut tally = Tally::default();
    while worker.client.try_send(&frame)
        && let Some(reply) = worker.client.try_reply()
    {
        tally.count(reply.body);
        assert!(tally.jobs.len() < 4000, "it takes more than it may have");
    }
    assert!(!tally.jobs.is_empty(), "it went well for a while");
    let status = node.wait();
    assert_eq!(status.code(), Some(3), "{}", node.errors());
    let said = node.errors();
    let report = said.find("error[").map(|at| &said[at..]);
    error_kit::compare(report.unwrap_or(&said));

    drop(node);
    let node = Node::start(&data, &args);
    let mut left = Worker::new(node.clients(), "no-memory", QueueSettings::default()).take_all();
    left.truncate(tally.jobs.len());
    assert_eq!(left, tally.jobs, "and at most one that was not answered");
}
