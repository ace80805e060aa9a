//! Processes are killed with -9, stopped and slowed down under load: nothing that was acknowledged
//! is lost, and nothing comes back after its ack.
//!
//! Run one after another: a cluster at once. Set `RRQ_KILL9_ROUNDS=100` for the long run.
#![cfg(all(feature = "bench", feature = "server", target_os = "linux"))]

mod node_support;

use node_support::{DEADLINE, Node, folder, http, skip};
use rrq::client::{
    AckItem, Client, Enqueued, JobId, LeasedJob, NewJob, Options, Queue, QueueSettings,
};
use rrq::loadtest::crash_recover;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// One test at a time: each starts nodes.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// A client whose jobs go back soon after its end, whatever became of the node that it used.
async fn connect(address: SocketAddr) -> Client {
    let options = Options {
        worker_timeout: Duration::from_secs(1),
        ..Options::default()
    };
    let client = Client::connect_with(&address.to_string(), options).await;
    client.expect("the node answers")
}

async fn queue(client: &Client, name: &str) -> Queue {
    let made = client
        .create_queue(name, QueueSettings::default(), false)
        .await;
    made.expect("a queue")
}

#[test]
fn kill_9_under_load_loses_nothing() {
    let _alone = alone();
    let data = folder("kill9");
    let rounds = std::env::var("RRQ_KILL9_ROUNDS").map_or(10, |text| {
        text.parse().expect("RRQ_KILL9_ROUNDS is a number")
    });
    let outcome = crash_recover::run(&crash_recover::Options {
        jobs: 2000,
        rounds,
        shards: Some(2),
        data_dir: Some(data.to_path_buf()),
        node: Some(env!("CARGO_BIN_EXE_rrq-node").into()),
        say: |line| println!("{line}"),
        ..crash_recover::Options::default()
    });
    let outcome = outcome.unwrap_or_else(|report| panic!("{report}"));
    println!("{}", outcome.text());
    assert!(outcome.is_sound(), "{:?}", outcome.misses);
    assert_eq!(outcome.rounds.len(), rounds as usize);
    for round in &outcome.rounds {
        assert_eq!((round.lost, round.redelivered_after_ack), (0, 0));
        assert!(round.exec_to_first_ms <= round.rto_ms);
    }
}

/// A bench that finds no loss must be able to find one: this node goes back to an older image of
/// its data at its third start.
#[test]
fn a_node_that_forgets_is_found_out() {
    const SCRIPT: &str = r#"#!/bin/sh
here=$(dirname "$2")
starts=$(($(cat "$here/starts" 2>/dev/null || echo 0) + 1))
echo $starts > "$here/starts"
if [ $starts = 2 ]; then cp -a "$2" "$here/image"; fi
if [ $starts = 3 ]; then rm -rf "$2"; cp -a "$here/image" "$2"; fi
exec "$RRQ_KILL9_NODE" "$@"
"#;
    let _alone = alone();
    let data = folder("forgets");
    let scripts = folder("forgets-script");
    std::fs::create_dir_all(&scripts).expect("a folder");
    let node = scripts.join("forgetful-node");
    let script = SCRIPT.replace("$RRQ_KILL9_NODE", env!("CARGO_BIN_EXE_rrq-node"));
    std::fs::write(&node, script).expect("a script");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&node, executable).expect("it can be run");
    let outcome = crash_recover::run(&crash_recover::Options {
        jobs: 500,
        rounds: 2,
        shards: Some(2),
        data_dir: Some(data.to_path_buf()),
        node: Some(node),
        ..crash_recover::Options::default()
    });
    let outcome = outcome.unwrap_or_else(|report| panic!("{report}"));
    assert!(!outcome.is_sound(), "{}", outcome.text());
    assert_eq!(outcome.rounds[0].lost, 0);
    assert!(
        outcome.rounds[1].lost > 0 && outcome.lost > 0,
        "{outcome:?}"
    );
    assert!(outcome.text().contains("FAILED"));
}

#[test]
fn figures_have_the_fields_that_programs_read() {
    let _alone = alone();
    let data = folder("figures");
    let outcome = crash_recover::run(&crash_recover::Options {
        jobs: 10,
        payload: 8,
        rounds: 1,
        shards: Some(1),
        data_dir: Some(data.to_path_buf()),
        node: Some(env!("CARGO_BIN_EXE_rrq-node").into()),
        ..crash_recover::Options::default()
    });
    let outcome = outcome.unwrap_or_else(|report| panic!("{report}"));
    let json = serde_json::to_value(&outcome).expect("plain fields");
    let keys = |value: &serde_json::Value| -> Vec<String> {
        let object = value.as_object().expect("an object");
        object.keys().cloned().collect()
    };
    let sorted = |names: &[&str]| {
        let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        names.sort();
        names
    };
    let top = [
        "nodes",
        "jobs",
        "payload",
        "rounds",
        "rto_ms",
        "exec_to_first_ms",
        "lost",
        "host",
    ];
    assert_eq!(keys(&json), sorted(&top));
    let round = [
        "rto_ms",
        "exec_to_first_ms",
        "node_phases_ms",
        "phases_ms",
        "acked",
        "lost",
        "redelivered_after_ack",
        "marked",
    ];
    assert_eq!(keys(&json["rounds"][0]), sorted(&round));
    let percentiles = ["min", "p50", "p90", "p99", "max"];
    assert_eq!(keys(&json["rto_ms"]), sorted(&percentiles));
    assert_eq!(keys(&json["exec_to_first_ms"]), sorted(&percentiles));
}

/// Jobs that a worker process takes; it finishes some and keeps the rest.
const TAKEN: u32 = 40;
const FINISHED: usize = 15;
const WORKER_OF: &str = "RRQ_KILL9_WORKER_OF";

/// The process that the next test starts and kills; does nothing else.
#[test]
fn a_worker_to_be_killed() {
    let Ok(address) = std::env::var(WORKER_OF) else {
        return;
    };
    runtime().block_on(async {
        let client = connect(address.parse().expect("an address")).await;
        let queue = queue(&client, "work").await;
        let mut taken = Vec::new();
        while taken.len() < TAKEN as usize {
            let more = TAKEN - taken.len() as u32;
            let jobs = queue.lease(more, Duration::from_secs(5)).await;
            taken.extend(jobs.expect("jobs"));
        }
        for job in taken.iter().take(FINISHED) {
            client.ack(job.token(), None).await.expect("acked");
        }
        println!("\nholds its jobs");
        // Alive, with heartbeats, until it is killed.
        std::future::pending::<()>().await;
    });
}

/// Killed when it goes.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn jobs_of_a_killed_worker_are_finished_by_another() {
    let _alone = alone();
    let node = Node::start_new("worker", &["--shards", "1", "--no-pin"]);
    runtime().block_on(async {
        let client = connect(node.clients()).await;
        let queue = queue(&client, "work").await;
        let jobs = (0..100).map(|number| NewJob {
            payload: format!("job {number}").into(),
            ..NewJob::default()
        });
        let made = queue.enqueue_batch(jobs.collect()).await.expect("enqueued");
        assert_eq!(made.len(), 100);

        let mut worker = Worker(
            Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", "a_worker_to_be_killed", "--nocapture"])
                .env(WORKER_OF, node.clients().to_string())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("it starts"),
        );
        let out = worker.0.stdout.take().expect("it is piped");
        let held = BufReader::new(out)
            .lines()
            .map_while(Result::ok)
            .any(|line| line == "holds its jobs");
        assert!(held, "the worker ended early");
        worker.0.kill().expect("it is ours");
        let killed = Instant::now();

        let mut finished = BTreeSet::new();
        let mut again = 0;
        while finished.len() < 100 - FINISHED {
            assert!(
                killed.elapsed() < DEADLINE,
                "only {} jobs came",
                finished.len()
            );
            let jobs = queue.lease(64, Duration::from_secs(1)).await.expect("jobs");
            for job in jobs {
                again += usize::from(job.job.attempts > 1);
                client.ack(job.token(), None).await.expect("acked");
                assert!(finished.insert(job.job.id), "a job came twice");
            }
        }
        println!(
            "all jobs back and finished {:?} after the kill",
            killed.elapsed()
        );
        assert_eq!(
            again,
            TAKEN as usize - FINISHED,
            "those that the dead worker held"
        );
        // Within the grace of a closed connection, long before their leases end.
        assert!(
            killed.elapsed() < Duration::from_secs(8),
            "{:?}",
            killed.elapsed()
        );
        let queues = client.queues().await.expect("counters");
        let (_, stats) = &queues[0];
        let left = stats.pending + stats.delayed + stats.in_flight + stats.dead;
        assert_eq!((left, stats.completed_total), (0, 100));
        client.close().await;
    });
}

/// What was heard of jobs while load was on.
#[derive(Debug, Default)]
struct Heard {
    enqueued: BTreeSet<JobId>,
    acked: BTreeSet<JobId>,
    /// Their ack was asked for.
    unsure: BTreeSet<JobId>,
}

type Books = Arc<Mutex<Heard>>;

fn lock(books: &Books) -> MutexGuard<'_, Heard> {
    books
        .lock()
        .expect("nothing panics while it holds the lock")
}

/// Enqueues, and works some of it, until the tasks are shut down.
fn put_load_on(client: &Client, queue: &Queue, books: &Books) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..32 {
        let (queue, books) = (queue.clone(), books.clone());
        tasks.spawn(async move {
            let payload = vec![7; 256];
            loop {
                let job = NewJob {
                    payload: payload.clone().into(),
                    ..NewJob::default()
                };
                match queue.enqueue(job).await {
                    Ok(Enqueued::New(id)) => lock(&books).enqueued.insert(id),
                    Ok(other) => panic!("not new: {other:?}"),
                    Err(_) => return,
                };
            }
        });
    }
    let (client, queue, books) = (client.clone(), queue.clone(), books.clone());
    tasks.spawn(async move {
        while let Ok(jobs) = queue.lease(8, Duration::from_millis(100)).await {
            for job in jobs {
                lock(&books).unsure.insert(job.job.id);
                if client.ack(job.token(), None).await.is_ok() {
                    lock(&books).acked.insert(job.job.id);
                }
            }
        }
    });
    tasks
}

/// Every job that was acknowledged comes to a worker, unless its own ack was confirmed, or may have
/// been; none comes whose ack was confirmed.
async fn audit(client: &Client, books: &Books) {
    let heard = std::mem::take(&mut *lock(books));
    let finished = |id: &JobId| heard.acked.contains(id) || heard.unsure.contains(id);
    let expected = || heard.enqueued.iter().filter(|id| !finished(id));
    let mut missing: BTreeSet<JobId> = expected().copied().collect();
    let queue = queue(client, "load").await;
    let begun = Instant::now();
    while !missing.is_empty() && begun.elapsed() < DEADLINE {
        let jobs = queue.lease(1024, Duration::from_secs(1)).await;
        let jobs = jobs.expect("a lease");
        for job in &jobs {
            let id = job.job.id;
            assert!(!heard.acked.contains(&id), "{id} is back after its ack");
            missing.remove(&id);
        }
        let item = |job: &LeasedJob| AckItem {
            token: job.token(),
            result: None,
        };
        let acked = client.ack_batch(jobs.iter().map(item).collect()).await;
        assert!(acked.iter().all(Result::is_ok), "{acked:?}");
    }
    let lost = missing.len();
    assert!(lost == 0, "{lost} of {} are lost", heard.enqueued.len());
    let (enqueued, finished) = (heard.enqueued.len(), heard.acked.len());
    println!("{enqueued} acknowledged, {finished} of them finished, all accounted for");
}

/// Waits until the load has got so many acknowledgements.
async fn enqueued(books: &Books, count: usize) {
    let begun = Instant::now();
    while lock(books).enqueued.len() < count {
        assert!(begun.elapsed() < DEADLINE, "the load does not run");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The sum of a metric over its labels.
fn metric(node: &Node, name: &str) -> u64 {
    let (status, text) = http(node.admin(), "/metrics");
    assert_eq!(status, 200);
    let lines = text.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
    });
    let values = lines.map(|line| line.rsplit_once(' ').expect("a value").1);
    values
        .map(|value| value.parse::<u64>().expect("a count"))
        .sum()
}

#[test]
fn sigterm_under_load_ends_well_and_the_next_start_reads_little() {
    let _alone = alone();
    let (data, runtime) = (folder("sigterm"), runtime());
    let books = Books::default();
    let mut node = Node::start(&data, &["--shards", "2", "--no-pin"]);
    let mut tasks = runtime.block_on(async {
        let client = connect(node.clients()).await;
        let queue = queue(&client, "load").await;
        let tasks = put_load_on(&client, &queue, &books);
        enqueued(&books, 5000).await;
        tasks
    });
    let begun = Instant::now();
    node.signal("-TERM");
    let status = node.wait();
    let took = begun.elapsed();
    println!("ended {took:?} after SIGTERM");
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    runtime.block_on(tasks.shutdown());

    let node = Node::start(&data, &["--shards", "2", "--no-pin"]);
    let applied = metric(&node, "rrq_entries_applied_total");
    println!("the next start applied {applied} entries");
    // Each group of the node's 64 may begin its term with an entry; jobs are not among them.
    assert!(applied <= 64, "{applied} entries were read again");
    runtime.block_on(async {
        let client = connect(node.clients()).await;
        audit(&client, &books).await;
        client.close().await;
    });
}

/// A cgroup that slows the writes of its processes down; removed when it goes.
struct SlowDisk {
    path: PathBuf,
    device: String,
}

impl SlowDisk {
    /// For the disk that holds `folder`.
    fn new(folder: &Path) -> std::io::Result<Self> {
        let number = std::fs::metadata(folder)?.dev();
        let (major, minor) = (
            (number >> 8) & 0xfff,
            (number & 0xff) | ((number >> 12) & 0xfff00),
        );
        // Only whole disks can be slowed down.
        let device = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
        let disk = match device.join("partition").exists() {
            true => device
                .parent()
                .expect("a partition is in a disk")
                .to_owned(),
            false => device,
        };
        let device = std::fs::read_to_string(disk.join("dev"))?.trim().to_owned();
        let name = format!("rrq-kill9-{}", std::process::id());
        let path = Path::new("/sys/fs/cgroup/blkio").join(name);
        std::fs::create_dir(&path)?;
        let slow = Self { path, device };
        slow.set("write_bps_device", 2 << 20)?;
        slow.set("write_iops_device", 5)?;
        Ok(slow)
    }

    fn set(&self, what: &str, limit: u64) -> std::io::Result<()> {
        let file = self.path.join(format!("blkio.throttle.{what}"));
        std::fs::write(file, format!("{} {limit}", self.device))
    }

    fn slow_down(&self, pid: u32) {
        let procs = self.path.join("cgroup.procs");
        std::fs::write(procs, pid.to_string()).expect("our own process can be moved");
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Fails while a process of it is about to end; an empty group does no harm.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// The successor is started while writes of the dead process are still held up in the kernel: it
/// must not read the log before they have landed.
#[test]
fn a_successor_started_at_once_on_a_slow_disk_loses_nothing() {
    const ROUNDS: usize = 5;
    let _alone = alone();
    let data = folder("slow");
    std::fs::create_dir_all(&data).expect("a folder");
    let slow = match SlowDisk::new(&data) {
        Ok(slow) => slow,
        Err(error) => return skip(&format!("root and cgroup v1 blkio ({error})")),
    };
    let runtime = runtime();
    let mut node = Node::start(&data, &["--shards", "2", "--no-pin"]);
    for round in 0..ROUNDS {
        let books = Books::default();
        let mut slowed = Duration::ZERO;
        let mut tasks = runtime.block_on(async {
            let client = connect(node.clients()).await;
            let queue = queue(&client, "load").await;
            let tasks = put_load_on(&client, &queue, &books);
            enqueued(&books, 500).await;
            slow.slow_down(node.pid());
            let so_far = lock(&books).enqueued.len();
            let begun = Instant::now();
            enqueued(&books, so_far + 40 + 10 * round).await;
            slowed = begun.elapsed();
            tasks
        });
        node.signal("-KILL");
        let killed = Instant::now();
        // The old process is not waited for.
        let (next, gone) = std::thread::scope(|scope| {
            let old = &mut node;
            let gone = scope.spawn(move || {
                old.wait();
                killed.elapsed()
            });
            let next = Node::start(&data, &["--shards", "2", "--no-pin"]);
            println!(
                "round {round}: the successor was ready {:?} after the kill",
                killed.elapsed()
            );
            (next, gone.join().expect("it waits"))
        });
        println!("the dead process was reaped {gone:?} after it; its writes took {slowed:?}");
        if slowed < Duration::from_millis(50) {
            return skip("a disk that cgroup v1 blkio slows down");
        }
        runtime.block_on(async {
            tasks.shutdown().await;
            let client = connect(next.clients()).await;
            audit(&client, &books).await;
            client.close().await;
        });
        node = next;
    }
}
