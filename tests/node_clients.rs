//! What a node does with bytes that are no protocol, clients that do not behave, and too many.
#![cfg(all(feature = "server", target_os = "linux"))]

mod node_support;

use bytes::{Buf, BytesMut};
use node_support::client::{Client, hello};
use node_support::{DEADLINE, Node, folder};
use rrq::base::code::Code;
use rrq::base::ids::Partition;
use rrq::queue::command::{Command, NewJob, Op, Outcome, SessionCall, Window};
use rrq::wire::client::encode_request;
use rrq::wire::frame::{FrameKind, encode_frame};
use rrq::wire::message::{ReplyBody, Request, RequestBody};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

fn status(id: u64) -> BytesMut {
    let mut out = BytesMut::new();
    encode_request(
        &Request {
            id,
            body: RequestBody::Status,
        },
        &mut out,
    );
    out
}

#[test]
fn requests_are_answered_on_every_shard_however_they_are_cut() {
    let node = Node::start_new("requests", &["--shards", "2"]);
    let (_, hello) = Client::greeted(node.clients());
    assert_eq!(hello.nodes[0].addresses[0], node.clients().to_string());
    for (shard, address) in hello.nodes[0].addresses.iter().enumerate() {
        let (mut client, hello) = Client::greeted(address.parse().expect("an address"));
        assert_eq!(usize::from(hello.shard), shard);
        let mut all = BytesMut::new();
        (1..=1000).for_each(|id| all.extend_from_slice(&status(id)));
        for part in all.chunks(7000) {
            client.send(part);
        }
        let mut answered: Vec<u64> = (1..=1000).map(|_| client.reply().id).collect();
        answered.sort_unstable();
        assert!(answered.into_iter().eq(1..=1000));
    }
}

#[test]
fn what_is_no_protocol_is_answered_once_and_cut_off() {
    let node = Node::start_new("garbage", &[]);
    let mut damaged = status(1);
    damaged[15] ^= 1;
    let mut oversized = BytesMut::new();
    encode_frame(FrameKind::Request, &mut oversized, |out| {
        out.extend_from_slice(&[0; 5000]);
    });
    let mut senseless = BytesMut::new();
    encode_frame(FrameKind::Request, &mut senseless, |out| {
        out.extend_from_slice(&[0xff; 50]);
    });
    let huge = [0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 3, 0, 0, 0];
    let cases: [(&str, bool, &[u8], Code); 7] = [
        (
            "a browser",
            false,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            Code::BadFrame,
        ),
        ("a large first frame", false, &oversized, Code::BadFrame),
        ("no hello first", false, &status(1), Code::BadRequest),
        (
            "a newer protocol",
            false,
            &hello(7, 9),
            Code::ProtocolMismatch,
        ),
        ("a flipped bit", true, &damaged, Code::BadFrame),
        ("a length that lies", true, &huge, Code::BadFrame),
        ("a body that is none", true, &senseless, Code::BadRequest),
    ];
    for (what, greeted, bytes, code) in cases {
        let mut client = match greeted {
            true => Client::greeted(node.clients()).0,
            false => Client::connect(node.clients()),
        };
        client.send(bytes);
        assert_eq!(client.last_words(), code, "{what}");
    }
    let (mut client, _) = Client::greeted(node.clients());
    client.send(&status(1));
    assert_eq!(client.reply().id, 1, "others are served as before");
}

#[test]
fn a_truncated_frame_and_a_silent_client_are_let_go() {
    let node = Node::start_new("silent", &[]);
    let (mut client, _) = Client::greeted(node.clients());
    let whole = status(1);
    client.send(&whole[..whole.len() - 1]);
    drop(client);
    let begun = Instant::now();
    let mut silent = Client::connect(node.clients());
    assert_eq!(silent.last_words(), Code::ConnectionTimeout);
    assert!(
        begun.elapsed() > Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_client_too_many_is_told_so() {
    let config = folder("many").with_extension("toml");
    std::fs::write(
        &config,
        "[shards]\ncount = 1\n[limits]\nconnections_max = 2\n",
    )
    .expect("a file");
    let path = config.to_str().expect("a path of ours");
    let node = Node::start_new("many", &["--config", path]);
    let (first, _) = Client::greeted(node.clients());
    let (_second, _) = Client::greeted(node.clients());
    assert_eq!(Client::connect(node.clients()).last_words(), Code::Busy);
    drop(first);
    let begun = Instant::now();
    loop {
        let mut client = Client::connect(node.clients());
        client.send(&hello(1, 1));
        match client.frame() {
            Some(frame) if frame.kind == FrameKind::ServerHello => return,
            _ => assert!(
                begun.elapsed() < DEADLINE,
                "a place that is free is given away"
            ),
        }
    }
}

#[test]
fn a_client_that_does_not_read_is_held_back_and_then_cut_off() {
    let node = Node::start_new("deaf", &[]);
    let (client, _) = Client::greeted(node.clients());
    let mut stream = client.stream;
    stream
        .set_write_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    let mut longest = Duration::ZERO;
    let mut sent: u64 = 0;
    let mut batch = BytesMut::new();
    let mut id = 0;
    loop {
        if !batch.has_remaining() {
            (0..1000).for_each(|_| {
                id += 1;
                batch.extend_from_slice(&status(id));
            });
        }
        let before = Instant::now();
        match stream.write(&batch) {
            Ok(written) => {
                batch.advance(written);
                sent += written as u64;
                longest = longest.max(before.elapsed());
            }
            Err(error) => {
                assert_eq!(
                    error.kind(),
                    ErrorKind::ConnectionReset,
                    "the node gave up first"
                );
                break;
            }
        }
        assert!(sent < 1 << 30, "nothing holds this client back");
    }
    assert!(
        longest > Duration::from_secs(5),
        "{longest:?} of waiting after {sent} bytes"
    );
    let (mut other, _) = Client::greeted(node.clients());
    other.send(&status(1));
    assert_eq!(other.reply().id, 1, "others are served meanwhile");
}

#[test]
fn a_request_that_lands_on_the_wrong_shard_is_handed_on_and_so_is_the_end_of_its_client() {
    let node = Node::start_new("forward", &["--shards", "2", "--no-pin"]);
    // All by way of shard 0, whatever the shard of the queue's group.
    let (mut client, _) = Client::greeted(node.clients());
    let mut shards = BTreeSet::new();
    for number in 0..8 {
        let name = format!("queue-{number}");
        let asked = client.ask(RequestBody::GetQueue { name, create: true });
        let ReplyBody::Queues(queues) = asked else {
            panic!("{asked:?}")
        };
        let info = &queues[0].0;
        let (queue, group, partition) = (info.uid, info.groups[0], Partition(0));
        shards.insert(group.0 % 2);
        let mut ask = |op| {
            let command = Command { session: None, op };
            client.ask(RequestBody::Command {
                group,
                command,
                wait_ms: 0,
            })
        };
        let session = match ask(Op::OpenSession {
            worker_timeout_ms: 0,
        }) {
            ReplyBody::Outcome(Outcome::SessionOpened { session, .. }) => session,
            other => panic!("{other:?}"),
        };
        let items = vec![NewJob {
            payload: "x".into(),
            ..NewJob::default()
        }];
        let enqueued = ask(Op::Enqueue {
            queue,
            partition,
            items,
        });
        assert!(
            matches!(enqueued, ReplyBody::Outcome(Outcome::Enqueued(_))),
            "{enqueued:?}"
        );
        let op = Op::Lease {
            queue,
            partition,
            max: 1,
            lease_ms: 0,
            epoch: 1,
        };
        let call = SessionCall {
            id: session,
            seq: 1,
            lowest: 1,
            window: Window::Polls,
        };
        let command = Command {
            session: Some(call),
            op,
        };
        let leased = client.ask(RequestBody::Command {
            group,
            command,
            wait_ms: 0,
        });
        assert!(
            matches!(&leased, ReplyBody::Leased(jobs) if jobs.len() == 1),
            "{leased:?}"
        );
    }
    assert_eq!(shards.len(), 2, "queues on both shards");
    drop(client);
    // The shard that holds the session hears of the close, and gives the job back within seconds.
    let (mut client, _) = Client::greeted(node.clients());
    let begun = Instant::now();
    for number in 0..8 {
        loop {
            let name = format!("queue-{number}");
            let ReplyBody::Queues(queues) = client.ask(RequestBody::GetQueue {
                name,
                create: false,
            }) else {
                panic!("the queue is there");
            };
            if queues[0].1.pending == 1 {
                break;
            }
            assert!(begun.elapsed() < DEADLINE, "its lease does not go back");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // Well before the worker's timeout of ten seconds, which would have ended it as well.
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "the close was not heard"
    );
}
