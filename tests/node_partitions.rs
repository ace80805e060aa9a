//! A queue of several partitions over the shards of a real node: what its home group decides reaches
//! them all, also through `kill -9`; watches, waits and results.
#![cfg(all(feature = "server", target_os = "linux"))]

mod node_support;

use bytes::BytesMut;
use node_support::client::Client;
use node_support::{DEADLINE, Node, folder};
use rrq::base::ids::{GroupId, JobId, Partition, QueueUid, Token};
use rrq::shard::placement::home_group;
use rrq::wire::client::encode_request;
use rrq::wire::message::{LeasedJob, ReplyBody, Request, RequestBody};
use rrq::wire::{
    AckItem, Command, Enqueued, JobEnd, NewJob, Op, Outcome, QueueInfo, QueueSettings, Rejection,
};
use std::time::Instant;

const PARTITIONS: u8 = 5;
const WAIT_MS: u32 = 20_000;

fn ask_command(client: &mut Client, group: GroupId, op: Op) -> ReplyBody {
    let command = Command { session: None, op };
    client.ask(RequestBody::Command {
        group,
        command,
        wait_ms: 0,
    })
}

/// Makes the queue; a group that is still of the first version of the job machine is asked again.
fn create(client: &mut Client, groups: u32, name: &str) -> QueueInfo {
    let begun = Instant::now();
    loop {
        let op = Op::CreateQueue {
            name: name.to_owned(),
            settings: QueueSettings {
                partitions: PARTITIONS,
                retain: 10,
                ..QueueSettings::default()
            },
            must_be_new: false,
            groups: 0,
        };
        match ask_command(client, home_group(name, groups), op) {
            ReplyBody::Outcome(Outcome::Queue(info)) => return *info,
            ReplyBody::Outcome(Outcome::Rejected(Rejection::Unsupported)) => {
                assert!(begun.elapsed() < DEADLINE, "the group is not raised");
            }
            other => panic!("not a queue: {other:?}"),
        }
    }
}

fn places(info: &QueueInfo) -> impl Iterator<Item = (Partition, GroupId)> {
    (0..PARTITIONS).map(Partition).zip(info.groups.clone())
}

fn enqueue(client: &mut Client, uid: QueueUid, place: (Partition, GroupId)) -> Enqueued {
    let op = Op::Enqueue {
        queue: uid,
        partition: place.0,
        items: vec![NewJob {
            payload: format!("job of {}", place.0).into(),
            ..NewJob::default()
        }],
    };
    match ask_command(client, place.1, op) {
        ReplyBody::Outcome(Outcome::Enqueued(jobs)) => jobs[0],
        other => panic!("not enqueued: {other:?}"),
    }
}

fn lease(client: &mut Client, uid: QueueUid, place: (Partition, GroupId)) -> Vec<LeasedJob> {
    let op = Op::Lease {
        queue: uid,
        partition: place.0,
        max: 1,
        lease_ms: 0,
        epoch: 0,
    };
    match ask_command(client, place.1, op) {
        ReplyBody::Leased(jobs) => jobs,
        other => panic!("not leased: {other:?}"),
    }
}

fn new_id(enqueued: Enqueued) -> JobId {
    match enqueued {
        Enqueued::New(id) => id,
        other => panic!("not new: {other:?}"),
    }
}

#[test]
fn every_partition_follows_its_home_through_kill_9() {
    let data = folder("partitions");
    let mut node = Node::start(&data, &["--shards", "2", "--no-pin"]);
    let (mut client, hello) = Client::greeted(node.clients());
    let info = create(&mut client, hello.groups, "wide");
    assert_eq!(info.groups.len(), usize::from(PARTITIONS));
    let shards: std::collections::BTreeSet<u16> =
        info.groups.iter().map(|group| group.0 % 2).collect();
    assert_eq!(shards.len(), 2, "over both shards: {:?}", info.groups);
    for place in places(&info) {
        new_id(enqueue(&mut client, info.uid, place));
    }

    for round in 0..5 {
        let pause = round % 2 == 0;
        let queue = info.uid;
        let op = if pause {
            Op::PauseQueue { queue }
        } else {
            Op::ResumeQueue { queue }
        };
        let command = Command { session: None, op };
        let mut out = BytesMut::new();
        let body = RequestBody::Command {
            group: queue.home(),
            command,
            wait_ms: 0,
        };
        encode_request(&Request { id: 7, body }, &mut out);
        client.send(&out);
        // Killed on the way in odd rounds, after the answer in even ones.
        if round % 2 == 0 {
            assert!(matches!(
                client.reply().body,
                ReplyBody::Outcome(Outcome::Queue(_))
            ));
        }
        node.signal("-9");
        node.wait();
        node = Node::start(&data, &["--shards", "2", "--no-pin"]);
        client = Client::greeted(node.clients()).0;
        // An answer about the queue waits until every partition has followed.
        let name = "wide".to_owned();
        let body = client.ask(RequestBody::GetQueue {
            name,
            create: false,
        });
        let ReplyBody::Queues(queues) = body else {
            panic!("not a queue: {body:?}")
        };
        let paused = queues[0].0.paused;
        assert!(pause == paused || round % 2 == 1, "what was answered holds");
        for place in places(&info) {
            let jobs = lease(&mut client, info.uid, place);
            assert_eq!(jobs.is_empty(), paused, "round {round}, {place:?}");
            for job in jobs {
                let items = vec![job.token()];
                ask_command(&mut client, place.1, Op::Release { items });
            }
        }
    }

    let delete = Op::DeleteQueue { queue: info.uid };
    let gone = ask_command(&mut client, info.uid.home(), delete);
    assert_eq!(gone, ReplyBody::Outcome(Outcome::Done));
    for (partition, group) in places(&info) {
        let body = client.ask(RequestBody::GetPartition {
            queue: info.uid,
            partition,
            group,
        });
        let refused = Outcome::Rejected(Rejection::QueueChanged);
        assert_eq!(body, ReplyBody::Outcome(refused), "{partition}");
    }
}

#[test]
fn a_watch_is_woken_and_a_wait_gets_the_result() {
    let node = Node::start_new("waits", &["--shards", "2", "--no-pin"]);
    let (mut client, hello) = Client::greeted(node.clients());
    let (mut waiting, _) = Client::greeted(node.clients());
    let info = create(&mut client, hello.groups, "results");
    let (partition, group) = places(&info).last().expect("five");

    let mut out = BytesMut::new();
    let body = RequestBody::Watch {
        queue: info.uid,
        partition,
        group,
        wait_ms: WAIT_MS,
    };
    encode_request(&Request { id: 1, body }, &mut out);
    waiting.send(&out);
    let id = new_id(enqueue(&mut client, info.uid, (partition, group)));
    assert_eq!(waiting.reply().body, ReplyBody::Ready(1));

    out.clear();
    let body = RequestBody::WaitJob {
        job: id,
        wait_ms: WAIT_MS,
    };
    encode_request(&Request { id: 2, body }, &mut out);
    waiting.send(&out);
    let jobs = lease(&mut client, info.uid, (partition, group));
    let token: Token = jobs[0].token();
    let result = Some("done well".into());
    let items = vec![AckItem { token, result }];
    ask_command(&mut client, group, Op::Ack { items });
    let ReplyBody::Finished(job) = waiting.reply().body else {
        panic!("not finished")
    };
    assert_eq!((job.id, job.end), (id, JobEnd::Completed));
    assert_eq!(job.result.as_deref(), Some(&b"done well"[..]));
}
