//! A full disk refuses new jobs by name, still takes leases, acks and returns, loses nothing, and
//! when there is room again, everything goes on by itself.
#![cfg(all(feature = "server", target_os = "linux"))]

mod cluster_kit;
mod node_support;

use cluster_kit::{Cluster, Load};
use node_support::client::Client;
use node_support::{DEADLINE, Node, error_kit, folder, skip};
use rrq::base::code::Code;
use rrq::base::ids::{JobId, Partition, Token};
use rrq::wire::message::{ErrorReply, ReplyBody, RequestBody};
use rrq::wire::{AckItem, Command, Enqueued, NewJob, Op, Outcome, QueueInfo, QueueSettings};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A small file system in memory, gone with the test.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&path).expect("a folder");
        let options = format!("size={size}");
        let mut command = std::process::Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path);
        let mounted = command.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self(path))
    }

    /// Fills it, but for some bytes.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).expect("a file");
        let block = vec![0; 64 << 10];
        while file.write_all(&block).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        assert!(
            unmounted.is_ok_and(|status| status.success()),
            "the disk is in use"
        );
    }
}

struct Worker {
    client: Client,
    queue: QueueInfo,
}

impl Worker {
    fn new(node: &Node) -> Self {
        let (mut client, hello) = Client::greeted(node.clients());
        let op = Op::CreateQueue {
            name: "full".to_owned(),
            settings: QueueSettings::default(),
            must_be_new: false,
            groups: 0,
        };
        let body = RequestBody::Command {
            group: rrq::shard::placement::home_group("full", hello.groups),
            command: Command { session: None, op },
            wait_ms: 0,
        };
        match client.ask(body) {
            ReplyBody::Outcome(Outcome::Queue(queue)) => Self {
                client,
                queue: *queue,
            },
            other => panic!("not a queue: {other:?}"),
        }
    }

    fn ask(&mut self, op: Op) -> ReplyBody {
        self.client.ask(RequestBody::Command {
            group: self.queue.uid.home(),
            command: Command { session: None, op },
            wait_ms: 0,
        })
    }

    fn enqueue(&mut self, jobs: usize) -> Result<Vec<JobId>, ErrorReply> {
        let job = NewJob {
            payload: vec![7; 100].into(),
            ..NewJob::default()
        };
        let (queue, partition) = (self.queue.uid, Partition(0));
        match self.ask(Op::Enqueue {
            queue,
            partition,
            items: vec![job; jobs],
        }) {
            ReplyBody::Outcome(Outcome::Enqueued(jobs)) => Ok(jobs
                .into_iter()
                .map(|job| match job {
                    Enqueued::New(id) => id,
                    other => panic!("not new: {other:?}"),
                })
                .collect()),
            ReplyBody::Error(error) => Err(error),
            other => panic!("no answer to an enqueue: {other:?}"),
        }
    }

    fn lease(&mut self, max: u32) -> Vec<Token> {
        let (queue, partition) = (self.queue.uid, Partition(0));
        match self.ask(Op::Lease {
            queue,
            partition,
            max,
            lease_ms: 600_000,
            epoch: 0,
        }) {
            ReplyBody::Leased(jobs) => jobs
                .into_iter()
                .map(|leased| Token {
                    job: leased.job.id,
                    lease_gen: leased.lease_gen,
                })
                .collect(),
            other => panic!("not leased: {other:?}"),
        }
    }

    fn done(&mut self, op: Op) {
        match self.ask(op) {
            ReplyBody::Outcome(Outcome::Items(_)) => {}
            other => panic!("not done: {other:?}"),
        }
    }
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_full_disk_stops_new_jobs_only_and_everything_goes_on_when_there_is_room() {
    let folder = folder("full-disk");
    let Some(disk) = Disk::mount(folder.to_path_buf(), "400m") else {
        return skip("root, to mount a small file system");
    };
    let data = disk.0.join("data");
    let node = Node::start(&data, &["--dev"]);
    let mut worker = Worker::new(&node);
    let mut jobs: BTreeSet<JobId> = worker
        .enqueue(1000)
        .expect("there is room")
        .into_iter()
        .collect();

    node_support::wait_for_spares(&data);
    let filler = disk.fill();
    let refusal = until("a refusal", || match worker.enqueue(1) {
        Ok(added) => {
            jobs.extend(added);
            None
        }
        Err(error) => Some(error),
    });
    assert_eq!(refusal.code, Code::DiskFull);
    error_kit::compare(&format!("{}: {}", refusal.code, refusal.message));

    // Enough log for several segments: the spares, what checkpoints give back, the ballast.
    for _ in 0..600 {
        let items = worker.lease(1000);
        assert!(!items.is_empty(), "jobs are handed out on a full disk");
        worker.done(Op::Release { items });
    }
    let some = worker.lease(100);
    assert_eq!(some.len(), 100);
    for token in &some {
        assert!(jobs.remove(&token.job), "a job that was enqueued");
    }
    let acks = some.into_iter().map(|token| AckItem {
        token,
        result: None,
    });
    worker.done(Op::Ack {
        items: acks.collect(),
    });
    assert_eq!(worker.enqueue(1), Err(refusal));

    fs::remove_file(filler).expect("the filler can go");
    let added = until("room again", || worker.enqueue(1).ok());
    jobs.extend(added);
    drop(node);
    check(&data, &jobs);
}

#[test]
fn a_leader_whose_disk_is_full_gives_its_groups_to_nodes_that_have_room() {
    let mut cluster = Cluster::new("full-disk", 3);
    let Some(disk) = Disk::mount(cluster.data(2), "400m") else {
        return skip("root, to mount a small file system");
    };
    let members = cluster.members();
    let started: Vec<(u32, Node)> = cluster
        .numbers()
        .map(|number| {
            let data = match number {
                2 => disk.0.join("data"),
                _ => cluster.data(number),
            };
            let mut command = cluster.command(number, &data, &members);
            (number, Node::spawn_by(command.arg("--dev")))
        })
        .collect();
    for (number, node) in started {
        cluster.nodes.insert(number, node.until_ready());
    }
    until("the node to lead its share", || {
        (cluster.leads(2).len() > 15).then_some(())
    });
    let load = Load::start(&cluster, 4, 4);
    load.until_enqueued(100);

    let filler = disk.fill();
    until("others to lead", || {
        let is_full = cluster.metric(2, "rrq_disk_full") > 0.0;
        (is_full && cluster.leads(2).is_empty()).then_some(())
    });
    load.until_enqueued(500);
    let led: usize = [1, 3]
        .iter()
        .map(|number| cluster.leads(*number).len())
        .sum();
    assert_eq!(led, 64);

    fs::remove_file(filler).expect("the filler can go");
    until("the node to lead its share again", || {
        (cluster.leads(2).len() > 15).then_some(())
    });
    load.until_enqueued(500);
    let (enqueued, errors) = load.settle();
    assert!(enqueued >= 1_100, "{enqueued}");
    assert!(errors.is_empty(), "{errors:?}");
    // The small disk is unmounted next, then the folder of all goes.
    cluster.nodes.clear();
}

#[test]
fn a_full_disk_refuses_another_number_of_shards_and_the_one_of_before_serves() {
    let folder = folder("full-disk-shards");
    // Once the filler is gone, eight logs with their files ahead fit beside the two that they replace, or the
    // last node might find the disk full.
    let Some(disk) = Disk::mount(folder.to_path_buf(), "900m") else {
        return skip("root, to mount a small file system");
    };
    let data = disk.0.join("data");
    let two = ["--dev", "--shards", "2", "--no-pin"];
    let mut node = Node::start(&data, &two);
    let jobs = Worker::new(&node).enqueue(1000).expect("there is room");
    let jobs: BTreeSet<JobId> = jobs.into_iter().collect();
    node_support::wait_for_spares(&data);
    node.signal("-KILL");
    node.wait();
    let filler = disk.fill();
    // What the ballast leaves is not enough for eight logs.
    let eight = ["--dev", "--shards", "8", "--no-pin"];
    let Err((status, text)) = Node::start_or_end(&data, &eight) else {
        panic!("there is no room for it");
    };
    assert_eq!(status, 3, "{text}");
    let words = ["error[RRQ-1009]", "or --shards 2"];
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    let names = fs::read_dir(&data).expect("it is there");
    let names = names.map(|name| name.expect("it can be listed").file_name());
    let left = names.filter(|name| name.to_string_lossy().starts_with("set-"));
    assert_eq!(left.count(), 0, "what was written is taken back");
    drop(Node::start(&data, &two));
    fs::remove_file(filler).expect("the filler can go");
    drop(Node::start(&data, &eight));
    check(&data, &jobs);
}

/// After a kill and a restart, exactly these jobs are there.
fn check(data: &Path, jobs: &BTreeSet<JobId>) {
    let config = data.with_extension("toml");
    fs::write(&config, "[shards]\npin = false\n").expect("there is room");
    let path = config.to_str().expect("a path of ours");
    // With the shards that it has.
    let node = Node::start(data, &["--dev", "--config", path]);
    let mut worker = Worker::new(&node);
    let mut found = BTreeSet::new();
    loop {
        let tokens = worker.lease(1000);
        if tokens.is_empty() {
            break;
        }
        found.extend(tokens.into_iter().map(|token| token.job));
    }
    assert_eq!(&found, jobs);
}
