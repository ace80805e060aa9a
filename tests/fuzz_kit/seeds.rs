//! Valid inputs of every target: the corpus to begin with, and what tests mutate.

use super::checkpoint::{OWNER, header};
use super::log::{SEGMENT, segment_input};
use super::pages::{GROUP, pages_input};
use super::peer::peer_stream;
use super::stream::stream_of;
use super::wal_kit::{BLOCK, Log, hard};
use bytes::{Bytes, BytesMut};
use rrq::base::checksum::Hash128;
use rrq::base::code::Code;
use rrq::base::ids::{
    ClusterId, DiskId, GroupId, Incarnation, JobId, LogIndex, NodeId, Partition, QueueUid,
    SessionId, ShardId, Term, Token,
};
use rrq::base::members::Member;
use rrq::base::units::{GroupTime, Lsn, WallTime};
use rrq::queue::JobQueue;
use rrq::queue::command::{PartitionChange, PartitionConfig};
use rrq::queue::view::ApplyAt;
use rrq::snapshot::builder::{PayloadBuilder, RunBuilder};
use rrq::snapshot::layout::{
    Branch, FileKind, GroupMeta, Node, PageName, PayloadUse, Root, RootRef, RunUse, SUMMARY_BYTES,
    TreeEntry, Voter,
};
use rrq::snapshot::manifest::{Manifest, ManifestBase, ManifestGroup};
use rrq::snapshot::superblock::Superblock;
use rrq::wire::client::{encode_client_hello, encode_reply, encode_request, encode_server_hello};
use rrq::wire::command::encode_command;
use rrq::wire::frame::FRAME_HEADER_BYTES;
use rrq::wire::message::{
    ClientHello, CommitStamp, ErrorReply, LeasedJob, NodeAddresses, Reply, ReplyBody, Request,
    RequestBody, ServerHello, ShardStatus, WorkerInfo,
};
use rrq::wire::{
    AckItem, Backoff, Body, Command, Enqueued, ItemOutcome, JobFilter, JobScan, JobState, JobView,
    NackItem, NewJob, Op, Outcome, QueueSettings, SessionCall, Start, SweepAction, Window,
};

/// Names and bytes of the valid inputs of a target.
pub(crate) fn seeds(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    match target {
        "client_frame" => vec![("as_client", requests_stream()), ("as_server", replies_stream())],
        "peer_frame" => vec![("of_each_kind", peer_stream())],
        "client_message" => messages(),
        "command" => commands(),
        "log_block" => log_blocks(),
        "log_segment" => log_segments(),
        "log_damage" => vec![
            ("plain", vec![0, 9, 1, 20, 8, 11, 2, 30, 9, 15, 0, 0, 0, 3, 1, 2, 3]),
            ("conflict", vec![0, 9, 65, 20, 10, 6, 2, 72, 66, 90, 12, 14, 15, 1, 0, 16, 2, 9, 9]),
            ("two_segments", [[0, 255, 9].repeat(20), vec![11, 1, 9, 12, 13, 0, 15, 1, 5, 0, 1, 7]].concat()),
            // A checkpoint in each step, as many steps as can be.
            ("long_history", [vec![0x48; 196], vec![0, 9, 9]].concat()),
        ],
        "checkpoint_page" => vec![("rich", pages_input(&rich(2))), ("first_version", pages_input(&rich(1)))],
        "checkpoint_stream" => vec![("rich", stream_of(&rich(2))), ("first_version", stream_of(&rich(1)))],
        "checkpoint_root" => roots(),
        "manifest" => vec![("two_groups", manifest().encode())],
        "superblock" => vec![("two_copies", superblocks())],
        "config" => vec![
            ("node", br#"dev = true
[node]
data_dir = "./d"
id = 3
[listen]
client = "127.0.0.1:0"
[shards]
count = 2
[queue_defaults]
lease = "30s"
backoff = "linear"
backoff_factor = 1.5
bytes_max = "4KiB"
[log]
level = "debug"
"#.to_vec()),
            ("wrong", b"[node]\nidd = 3\n[listen]\nclient = 5\nadmin = { a = 1 }\n".to_vec()),
        ],
        "jobs_file" => vec![
            ("two", br#"[{"id": "a", "payload": {"z": [1.10, "x \" y"], "u": "\u00fc"}, "timeout_ms": 5},
 {"payload": null, "queue": "q", "id": "b"}]"#.to_vec()),
            ("wrong", b"[\n{\"id\":\"a\",\n\"paylod\":1}]".to_vec()),
        ],
        _ => panic!("{target} has no seeds"),
    }
}

fn queue() -> QueueUid {
    QueueUid::new(GROUP, 1).expect("in range")
}

fn token() -> Token {
    Token {
        job: JobId::new(GROUP, queue(), Partition(0), 7),
        lease_gen: 2,
    }
}

fn job() -> NewJob {
    NewJob {
        payload: Bytes::from_static(b"payload"),
        priority: Some(3),
        start: Start::After(5),
        ttl_ms: 9000,
        lease_ms: 1000,
        max_attempts: 4,
        run_limit_ms: 8,
        backoff: Some(Backoff::default()),
        key: Some(Bytes::from_static(b"key")),
        headers: vec![("h".to_owned(), Bytes::from_static(b"v"))],
    }
}

/// A command of each kind that differs in form.
fn ops() -> Vec<Op> {
    let (queue, partition) = (queue(), Partition(0));
    let filter = JobFilter {
        reason_contains: Bytes::from_static(b"why"),
        priority: Some(1),
        ..JobFilter::default()
    };
    vec![
        Op::Enqueue {
            queue,
            partition,
            items: vec![job(), NewJob::default()],
        },
        Op::Lease {
            queue,
            partition,
            max: 9,
            lease_ms: 100,
            epoch: 1,
        },
        Op::Ack {
            items: vec![AckItem {
                token: token(),
                result: Some(Bytes::from_static(b"r")),
            }],
        },
        Op::Nack {
            items: vec![NackItem {
                token: token(),
                delay_ms: Some(0),
                reason: Bytes::from_static(b"why"),
            }],
        },
        Op::Extend {
            items: vec![(token(), 77)],
        },
        Op::Cancel {
            items: vec![token().job],
        },
        Op::CreateQueue {
            name: "mail".to_owned(),
            settings: QueueSettings::default(),
            must_be_new: true,
            groups: 0,
        },
        Op::SweepDead {
            queue,
            partition,
            action: SweepAction::Requeue,
            filter,
            from_seq: 3,
            limit: 10,
        },
    ]
}

fn call(seq: u64, op: &Op) -> Option<SessionCall> {
    Some(SessionCall {
        id: SessionId(1),
        seq,
        lowest: 1,
        window: if matches!(op, Op::Lease { .. }) {
            Window::Polls
        } else {
            Window::Commands
        },
    })
}

fn requests() -> Vec<Request> {
    let commands = ops().into_iter().map(|op| RequestBody::Command {
        group: GROUP,
        command: Command {
            session: call(4, &op),
            op,
        },
        wait_ms: 0,
    });
    let others = [
        RequestBody::GetJobByKey {
            queue: queue(),
            partition: Partition(0),
            group: GROUP,
            key: Bytes::from_static(b"key"),
        },
        RequestBody::ScanJobs {
            group: GROUP,
            scan: JobScan {
                queue: queue(),
                partition: Partition(0),
                state: JobState::Dead,
                filter: JobFilter::default(),
                cursor: None,
                limit: 5,
                bodies: true,
            },
        },
        RequestBody::Heartbeat {
            sessions: vec![(GROUP, SessionId(1))],
            worker: Some(WorkerInfo {
                name: "w".to_owned(),
                tags: vec!["t".to_owned()],
                capacity: 4,
            }),
        },
        RequestBody::Bye,
    ];
    let bodies = commands.chain(others);
    (1..)
        .zip(bodies)
        .map(|(id, body)| Request { id, body })
        .collect()
}

fn view() -> JobView {
    JobView {
        id: token().job,
        state: JobState::InFlight,
        priority: 4,
        attempts: 1,
        max_attempts: 20,
        run_at: Some(WallTime(5)),
        remaining_ms: Some(9),
        enqueued_at: WallTime(1),
        expires_at: None,
        token: Some(token()),
        owner: Some(SessionId(1)),
        last_failure: Bytes::from_static(b"why"),
        body: Body {
            payload: Bytes::from_static(b"payload"),
            ..Body::default()
        },
    }
}

fn replies() -> Vec<Reply> {
    let bodies = vec![
        ReplyBody::Outcome(Outcome::Enqueued(vec![Enqueued::New(token().job)])),
        ReplyBody::Outcome(Outcome::Items(vec![ItemOutcome::Done])),
        ReplyBody::Leased(vec![LeasedJob {
            lease_gen: 2,
            job: view(),
            lease_ms: 1000,
        }]),
        ReplyBody::Partition(Box::default()),
        ReplyBody::Status(ShardStatus::default()),
        ReplyBody::Error(ErrorReply {
            code: Code::NoSuchQueue,
            message: "m".to_owned(),
            leader: Some("a:1".to_owned()),
            maybe_applied: true,
        }),
    ];
    let stamp = Some(CommitStamp {
        group: GROUP,
        term: Term(2),
        index: LogIndex(9),
    });
    let reply = |(id, body)| Reply { id, stamp, body };
    (1..).zip(bodies).map(reply).collect()
}

fn client_hello() -> ClientHello {
    ClientHello {
        protocol_min: 1,
        protocol_max: 1,
        agent: "fuzz".to_owned(),
    }
}

fn server_hello() -> ServerHello {
    ServerHello {
        protocol: 1,
        version: "0".to_owned(),
        cluster: ClusterId([0xc1; 16]),
        node: NodeId(1),
        shard: 0,
        groups: 64,
        payload_bytes_max: 1 << 20,
        nodes: vec![NodeAddresses {
            node: NodeId(1),
            addresses: vec!["127.0.0.1:1".to_owned()],
        }],
    }
}

fn requests_stream() -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_client_hello(&client_hello(), &mut out);
    requests()
        .iter()
        .for_each(|request| encode_request(request, &mut out));
    out.to_vec()
}

fn replies_stream() -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_server_hello(&server_hello(), &mut out);
    replies()
        .iter()
        .for_each(|reply| encode_reply(reply, &mut out));
    out.to_vec()
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    const REQUESTS: [&str; 12] = [
        "enqueue",
        "lease",
        "ack",
        "nack",
        "extend",
        "cancel",
        "create_queue",
        "sweep_dead",
        "get_job_by_key",
        "scan_jobs",
        "heartbeat",
        "bye",
    ];
    const REPLIES: [&str; 6] = [
        "reply_enqueued",
        "reply_items",
        "reply_leased",
        "reply_partition",
        "reply_status",
        "reply_error",
    ];
    let message = |kind: u8, encode: &dyn Fn(&mut BytesMut)| {
        let mut out = BytesMut::new();
        encode(&mut out);
        [&[kind], &out[FRAME_HEADER_BYTES..]].concat()
    };
    let requests = requests();
    let requests = REQUESTS.into_iter().zip(&requests);
    let mut all: Vec<_> = requests
        .map(|(name, request)| (name, message(0, &|out| encode_request(request, out))))
        .collect();
    let replies = replies();
    let replies = REPLIES.into_iter().zip(&replies);
    all.extend(replies.map(|(name, reply)| (name, message(1, &|out| encode_reply(reply, out)))));
    all.push((
        "server_hello",
        message(2, &|out| encode_server_hello(&server_hello(), out)),
    ));
    all.push((
        "client_hello",
        message(3, &|out| encode_client_hello(&client_hello(), out)),
    ));
    all
}

fn commands() -> Vec<(&'static str, Vec<u8>)> {
    const NAMES: [&str; 8] = [
        "enqueue",
        "lease",
        "ack",
        "nack",
        "extend",
        "cancel",
        "create_queue",
        "sweep_dead",
    ];
    let encoded = |op: Op| {
        let command = Command {
            session: call(2, &op),
            op,
        };
        [&[2], &encode_command(&command)[..]].concat()
    };
    let mut all: Vec<_> = NAMES
        .into_iter()
        .zip(ops().into_iter().map(encoded))
        .collect();
    let change = Op::ChangePartitions(Box::new(PartitionChange {
        home: GROUP,
        home_index: LogIndex(4),
        queue: queue(),
        partitions: vec![Partition(1)],
        config: Some(PartitionConfig {
            version: 1,
            paused: true,
            draining: false,
            settings: QueueSettings::default(),
        }),
    }));
    all.push(("change_partitions", encoded(change)));
    all
}

/// Two groups with a conflict, votes and bases: with 14 entries each, two segments.
fn sample_log(entries: u64) -> Log {
    let mut log = Log::fresh(SEGMENT);
    for group in 1..=2 {
        log.base(group, 0, 0);
        log.hard(group, hard(1, 1, 0));
    }
    log.sync();
    for index in 1..=entries {
        log.entry(1, index, 1, 40);
        log.entry(2, index, 1, 10);
        log.sync();
    }
    log.base(1, entries - 2, 1);
    log.hard(2, hard(2, 2, 3));
    log.entry(2, entries - 1, 2, 30);
    log.sync_proved();
    log
}

fn log_blocks() -> Vec<(&'static str, Vec<u8>)> {
    let log = sample_log(14);
    let batch = |nth: usize| {
        let sealed = &log.batches[nth];
        let file = &log.disk.files[&sealed.segment];
        file[sealed.offset..sealed.offset + sealed.len].to_vec()
    };
    let second_head = log.batches.iter().position(|batch| batch.segment == 2);
    let second_head = second_head.expect("the log has two segments");
    vec![
        ("head", batch(0)),
        ("entries", batch(2)),
        ("footer", batch(second_head - 1)),
        ("second_head", batch(second_head)),
    ]
}

fn log_segments() -> Vec<(&'static str, Vec<u8>)> {
    let log = sample_log(14);
    let files = &log.disk.files;
    let mut proved = segment_input(files, false);
    proved[0] = (log.writer.durable_lsn().0 / BLOCK as u64) as u8;
    let short = sample_log(4);
    vec![
        ("two_segments", segment_input(files, false)),
        ("sealed_anew", segment_input(files, true)),
        ("proved", proved),
        ("one_segment", segment_input(&short.disk.files, false)),
    ]
}

/// A machine with something in every kind of page.
fn rich(version: u16) -> JobQueue {
    let mut machine = JobQueue::new(GROUP, -3);
    machine.raise_version(version);
    let mut time = 0;
    let mut apply = |machine: &mut JobQueue, op: Op| {
        time += 3;
        let at = ApplyAt {
            index: LogIndex(time),
            time: GroupTime(time),
        };
        let in_session = matches!(op, Op::Lease { .. });
        let session = if in_session { call(1, &op) } else { None };
        machine.apply(at, &Command { session, op })
    };
    let settings = QueueSettings {
        retain: if version > 1 { 100 } else { 0 },
        partitions: if version > 1 { 2 } else { 1 },
        ..QueueSettings::default()
    };
    let create = Op::CreateQueue {
        name: "mail".to_owned(),
        settings,
        must_be_new: true,
        groups: if version > 1 { 64 } else { 0 },
    };
    let created = apply(&mut machine, create);
    assert!(matches!(created, Outcome::Queue(_)), "{created:?}");
    apply(
        &mut machine,
        Op::OpenSession {
            worker_timeout_ms: 0,
        },
    );
    let later = NewJob {
        start: Start::Now,
        key: None,
        ..job()
    };
    let enqueue = Op::Enqueue {
        queue: queue(),
        partition: Partition(0),
        items: vec![job(), later.clone(), later.clone(), later.clone(), later],
    };
    apply(&mut machine, enqueue);
    let lease = Op::Lease {
        queue: queue(),
        partition: Partition(0),
        max: 4,
        lease_ms: 0,
        epoch: 1,
    };
    let leased = apply(&mut machine, lease);
    let Outcome::Leased(grants) = leased else {
        panic!("jobs are ready, but {leased:?}: {:?}", machine.queues());
    };
    let ack = Op::Ack {
        items: vec![AckItem {
            token: grants[0].token,
            result: Some(Bytes::from_static(b"result")),
        }],
    };
    apply(&mut machine, ack);
    let bury = Op::Bury {
        items: vec![(grants[1].token, Bytes::from_static(b"broken"))],
    };
    apply(&mut machine, bury);
    machine
}

fn meta(group: u16, index: u64) -> GroupMeta {
    GroupMeta {
        group: GroupId(group),
        incarnation: Incarnation(1),
        index: LogIndex(index),
        term: Term(2),
        time: GroupTime(3),
        machine_version: 1,
        wall_offset_ms: -9,
        members: vec![Member::voting(Voter {
            node: NodeId(1),
            disk: OWNER.disk,
        })],
    }
}

fn roots() -> Vec<(&'static str, Vec<u8>)> {
    let job = |seq| JobId::new(GROUP, queue(), Partition(0), seq);
    let mut payload = PayloadBuilder::new(&header(FileKind::Payload, 2));
    let [first, second, third] = [3, 64, 65].map(|seq| payload.add_body(job(seq), b"the body"));
    payload.finish();
    let (_, payload) = payload.take_output().expect("one slice");
    let mut run = RunBuilder::new(&header(FileKind::Run, 1));
    let name = |kind, number| PageName {
        kind,
        queue: queue().to_u64(),
        partition: 0,
        number,
    };
    let group_page = run.add_page(GROUP, name(1, 0), b"group", &[]);
    let leaves = [vec![(3, first)], vec![(0, second), (1, third)]];
    let branches = (0..).zip(&leaves).map(|(number, bodies)| {
        let page = run.add_page(GROUP, name(4, number), &[number as u8; 40], bodies);
        let page = page.expect("small");
        Branch {
            slot: number as u8,
            summary: [number as u8; SUMMARY_BYTES],
            hash: page.hash,
            place: page.place,
        }
    });
    let node = Node {
        name: name(4, 0),
        level: 1,
        branches: branches.collect(),
    };
    let (hash, place) = run.add_node(GROUP, &node).expect("small");
    let [head, canonical_len] = [place.offset as usize, place.offset as usize + 4];
    let tree = TreeEntry {
        name: node.name,
        level: 1,
        summary: [2; SUMMARY_BYTES],
        hash,
        place,
        runs: vec![RunUse {
            file: 1,
            live_bytes: 600,
        }],
        payloads: vec![PayloadUse {
            file: 2,
            live_bytes: 96,
            live_bodies: 3,
        }],
    };
    let node_end = head + place.len as usize;
    let place = run.add_root(Root {
        meta: meta(GROUP.0, 100),
        pages: vec![group_page.expect("small")],
        trees: vec![tree],
    });
    let place = place.expect("small");
    run.finish();
    let (_, run) = run.take_output().expect("one slice");
    let root = &run[place.offset as usize..][..place.len as usize];
    let canonical = u16::from_le_bytes([root[12], root[13]]);
    let pages = &run[4096..place.offset as usize];
    let records = &payload[4096..4096 + 3 * 32];
    let group = [
        &[4][..],
        &canonical.to_le_bytes(),
        &(pages.len() as u16).to_le_bytes(),
        &(records.len() as u16).to_le_bytes(),
        pages,
        records,
        root,
    ];
    let node = [&[5][..], &run[head..head + 2], &run[head + 8..node_end]].concat();
    assert_eq!(
        run[head + 2..canonical_len],
        [0; 2],
        "a node is shorter than 64 KiB"
    );
    let places = places_of_bodies(&run[4096..]);
    let body = rich(1).freeze().bodies().next_bodies(1);
    let body = rrq::queue::encode_body(&body[0].body.body());
    vec![
        ("root", [&[0], root].concat()),
        ("run_header", [&[1], &run[..64]].concat()),
        ("payload_header", [&[1], &payload[..64]].concat()),
        ("body_record", [&[2], &payload[4096..4096 + 32]].concat()),
        ("body", [&[3], &body[..]].concat()),
        ("group", group.concat()),
        ("node", node),
        ("bodies", [&[6], &places[..]].concat()),
    ]
}

/// The local part of the third pack.
fn places_of_bodies(packs: &[u8]) -> Vec<u8> {
    let mut at = 0;
    for _ in 0..2 {
        let len = |at: usize| usize::from(u16::from_le_bytes([packs[at], packs[at + 1]]));
        at = (at + 8 + len(at) + len(at + 4)).next_multiple_of(8);
    }
    let len = |at: usize| usize::from(u16::from_le_bytes([packs[at], packs[at + 1]]));
    let start = at + 8 + len(at);
    packs[start..start + len(at + 4)].to_vec()
}

fn manifest() -> Manifest {
    let base = |group, index, has_root: bool| ManifestBase {
        meta: meta(group, index),
        root: has_root.then_some(RootRef {
            file: 7,
            offset: 8192,
            len: 300,
            hash: Hash128([0xaa; 16]),
        }),
        log_start: Lsn(4096),
    };
    Manifest {
        owner: OWNER,
        shard: ShardId(3),
        wal_set: 1,
        start: 9,
        sequence: 12,
        durable: Lsn(1 << 20),
        groups: vec![
            ManifestGroup {
                newest: base(4, 0, false),
                previous: None,
            },
            ManifestGroup {
                newest: base(5, 100, true),
                previous: Some(base(5, 90, true)),
            },
        ],
    }
}

fn superblocks() -> Vec<u8> {
    let copy = |generation| Superblock {
        generation,
        node: NodeId(1),
        disk: DiskId([0xd1; 16]),
        cluster: ClusterId([0xc1; 16]),
        forming: true,
        wal_set: 1,
        shards: 2,
        groups: 64,
        start: 9,
        created_by: "0.1.0".to_owned(),
        formed_at: WallTime(0),
        founders: Vec::new(),
        members: Vec::new(),
        members_as_of: LogIndex(0),
    };
    [copy(4), copy(5)].map(|copy| copy.encode()).concat()
}
