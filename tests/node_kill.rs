//! Jobs that were acknowledged are there after `kill -9`, at any moment, round after round.
#![cfg(all(feature = "server", target_os = "linux"))]

mod node_support;

use bytes::BytesMut;
use node_support::client::Client;
use node_support::error_kit::compare;
use node_support::{Node, folder, http};
use rrq::base::code::Code;
use rrq::base::ids::{JobId, Partition};
use rrq::wire::client::encode_request;
use rrq::wire::message::{ReplyBody, Request, RequestBody};
use rrq::wire::{Command, Enqueued, NewJob, Op, Outcome, QueueInfo, QueueSettings};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const ROUNDS: usize = 10;
const BATCH: usize = 16;
const WINDOW: u64 = 64;

/// The queue, made on the first round, in a group that the reached shard runs or forwards to.
fn queue(client: &mut Client, groups: u32) -> QueueInfo {
    let name = "kill";
    let group = rrq::shard::placement::home_group(name, groups);
    let op = Op::CreateQueue {
        name: name.to_owned(),
        settings: QueueSettings::default(),
        must_be_new: false,
        groups: 0,
    };
    match client.ask(RequestBody::Command {
        group,
        command: Command { session: None, op },
        wait_ms: 0,
    }) {
        ReplyBody::Outcome(Outcome::Queue(info)) => *info,
        other => panic!("not a queue: {other:?}"),
    }
}

fn enqueue(id: u64, queue: &QueueInfo) -> Request {
    let items = (0..BATCH).map(|at| NewJob {
        payload: format!("job {at} of request {id}").into(),
        ..NewJob::default()
    });
    let op = Op::Enqueue {
        queue: queue.uid,
        partition: Partition(0),
        items: items.collect(),
    };
    let body = RequestBody::Command {
        group: queue.uid.home(),
        command: Command { session: None, op },
        wait_ms: 0,
    };
    Request { id, body }
}

/// Enqueues with many requests under way until the connection ends; notes what was acknowledged.
fn load(mut client: Client, queue: &QueueInfo, acked: &mut Vec<JobId>) {
    let mut next = 1_000_000;
    let mut out = BytesMut::new();
    for _ in 0..WINDOW {
        encode_request(&enqueue(next, queue), &mut out);
        next += 1;
    }
    while client.try_send(&out) {
        out.clear();
        let Some(reply) = client.try_reply() else {
            return;
        };
        let jobs = match reply.body {
            ReplyBody::Outcome(Outcome::Enqueued(jobs)) => jobs,
            ReplyBody::Error(error) if error.code == Code::Stopping => return,
            other => panic!("not enqueued: {other:?}"),
        };
        acked.extend(jobs.into_iter().map(|job| match job {
            Enqueued::New(id) => id,
            other => panic!("not new: {other:?}"),
        }));
        encode_request(&enqueue(next, queue), &mut out);
        next += 1;
    }
}

#[test]
fn what_was_acknowledged_is_there_after_every_kill() {
    let data = folder("kill");
    let mut acked: Vec<JobId> = Vec::new();
    for round in 0..=ROUNDS {
        let begun = Instant::now();
        let node = Node::start(&data, &["--shards", "2"]);
        let (mut client, hello) = Client::greeted(node.clients());
        let queue = queue(&mut client, hello.groups);
        println!(
            "round {round}: {:?} to the first answer, {} jobs",
            begun.elapsed(),
            acked.len()
        );
        client.look_for(&acked, |job, told| match told {
            ReplyBody::Job(found) => assert_eq!(found.id, job),
            other => panic!("round {round}: job {job} was acknowledged and is lost: {other:?}"),
        });
        if round == ROUNDS {
            return;
        }
        std::thread::scope(|scope| {
            let loading = scope.spawn(|| load(client, &queue, &mut acked));
            std::thread::sleep(Duration::from_millis(37 * (round as u64 % 5) + 20));
            node.signal("-KILL");
            loading.join().expect("it ends with the connection");
        });
    }
}

/// What became of jobs that were acknowledged: how many are there, how many are in a group that
/// stopped for damage. Anything else is a loss.
fn account(node: &Node, acked: &[JobId]) -> (usize, usize) {
    let (mut client, _) = Client::greeted(node.clients());
    let (mut there, mut halted) = (0, 0);
    client.look_for(acked, |job, told| match told {
        ReplyBody::Job(_) => there += 1,
        ReplyBody::Error(error) if error.code == Code::GroupHalted => halted += 1,
        other => panic!("job {job} was acknowledged and is lost: {other:?}"),
    });
    (there, halted)
}

/// A node that was loaded for a moment and then ended by a signal.
fn loaded(data: &Path, signal: &str, acked: &mut Vec<JobId>) -> Duration {
    let mut node = Node::start(data, &[]);
    let (mut client, hello) = Client::greeted(node.clients());
    let queue = queue(&mut client, hello.groups);
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(client, &queue, acked));
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        node.signal(signal);
        let status = node.wait();
        assert_eq!(status.success(), signal == "-TERM", "{status}");
        loading.join().expect("it ends with the connection");
        begun.elapsed()
    })
}

#[test]
fn a_stop_under_load_ends_in_time_and_loses_nothing() {
    let data = folder("stop");
    let mut acked = Vec::new();
    let took = loaded(&data, "-TERM", &mut acked);
    assert!(took < Duration::from_secs(2), "{took:?}");
    let node = Node::start(&data, &[]);
    assert_eq!(account(&node, &acked), (acked.len(), 0));
}

#[test]
fn a_stop_is_told_to_who_waits() {
    let node = Node::start_new("stop-wait", &[]);
    let (mut client, hello) = Client::greeted(node.clients());
    let queue = queue(&mut client, hello.groups);
    let op = Op::Lease {
        queue: queue.uid,
        partition: Partition(0),
        max: 1,
        lease_ms: 0,
        epoch: 0,
    };
    let body = RequestBody::Command {
        group: queue.uid.home(),
        command: Command { session: None, op },
        wait_ms: 60_000,
    };
    let mut out = BytesMut::new();
    encode_request(&Request { id: 7, body }, &mut out);
    client.send(&out);
    // It waits once the shard has gone on to what came behind it.
    client.ask(RequestBody::ListQueues {
        group: queue.uid.home(),
    });
    node.signal("-TERM");
    match client.reply().body {
        ReplyBody::Error(error) if error.code == Code::Stopping => {
            compare(&format!("{}: {}", error.code, error.message));
        }
        other => panic!("no job is there: {other:?}"),
    }
}

#[test]
fn what_is_applied_again_after_a_kill_is_not_counted_again() {
    let data = folder("counted-once");
    let mut acked = Vec::new();
    loaded(&data, "-KILL", &mut acked);
    let node = Node::start(&data, &[]);
    assert_eq!(account(&node, &acked), (acked.len(), 0));
    let (_, page) = http(node.admin(), "/metrics");
    let counted = |line: &&str| line.starts_with("rrq_jobs_enqueued_total{");
    let counts: Vec<&str> = page.lines().filter(counted).collect();
    assert!(!counts.is_empty() && !acked.is_empty(), "{page}");
    assert!(counts.iter().all(|line| line.ends_with(" 0")), "{counts:?}");
}

#[test]
fn damage_is_told_and_never_passed_over() {
    let data = folder("damage");
    let mut acked = Vec::new();
    loaded(&data, "-KILL", &mut acked);
    let folder = data.join("shard-0000/wal-0001");
    let first = folder.join("0000000000000001.seg");
    let whole = fs::read(&first).expect("a segment");
    let used = whole
        .chunks(4096)
        .rposition(|block| block.iter().any(|byte| *byte != 0));
    let used = used.expect("it was written") * 4096;
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let cases = [
        ("the head", flipped(100)),
        ("early", flipped(used / 3)),
        ("late", flipped(used * 2 / 3)),
        ("cut short", whole[..used / 2].to_vec()),
    ];
    for (what, bytes) in cases {
        fs::write(&first, bytes).expect("it can be written");
        let mut node = Node::start(&data, &[]);
        let (there, halted) = account(&node, &acked);
        println!("{what}: {there} there, {halted} in a group that stopped");
        assert_eq!(there + halted, acked.len(), "{what}");
        node.signal("-KILL");
        node.wait();
        let said = node.errors();
        assert!(
            said.contains("ERROR"),
            "{what} is told to the operator: {said}"
        );
        assert!(
            !said.contains("panicked") && !said.contains("RRQ-9999"),
            "{what}: {said}"
        );
    }
}
