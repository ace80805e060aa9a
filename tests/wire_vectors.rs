//! The hex blocks of `docs/protocol.md` are what the code sends and takes. `UPDATE=1` rewrites them.

use bytes::{Bytes, BytesMut};
use rrq::base::checksum::crc32c;
use rrq::base::code::Code;
use rrq::base::ids::{
    ClusterId, GroupId, JobId, LogIndex, NodeId, Partition, QueueUid, SessionId, Term, Token,
};
use rrq::base::limits::FRAME_BYTES_MAX;
use rrq::base::units::WallTime;
use rrq::wire::client::{
    PROTOCOL_VERSION, decode_client_hello, decode_reply, decode_request, decode_server_hello,
    encode_client_hello, encode_reply, encode_request, encode_server_hello,
};
use rrq::wire::frame::{FrameDecoder, FrameKind, encode_frame};
use rrq::wire::message::{
    ClientHello, CommitStamp, ErrorReply, LeasedJob, NodeAddresses, Reply, ReplyBody, Request,
    RequestBody, ServerHello,
};
use rrq::wire::{
    AckItem, Body, Command, Enqueued, FinishedJob, FinishedPage, ItemOutcome, JobCursor, JobEnd,
    JobFilter, JobPage, JobScan, JobState, JobView, NewJob, Op, Outcome, SessionCall, SweepAction,
    Window,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

const GROUP: GroupId = GroupId(3);

enum Value {
    ClientHello(ClientHello),
    ServerHello(ServerHello),
    Request(Request),
    Reply(Reply),
    /// What no encoder of ours writes.
    Hostile(Vec<u8>),
}

impl Value {
    fn encode(&self) -> Vec<u8> {
        let mut out = BytesMut::new();
        match self {
            Self::ClientHello(hello) => encode_client_hello(hello, &mut out),
            Self::ServerHello(hello) => encode_server_hello(hello, &mut out),
            Self::Request(request) => encode_request(request, &mut out),
            Self::Reply(reply) => encode_reply(reply, &mut out),
            Self::Hostile(bytes) => out.extend_from_slice(bytes),
        }
        out.to_vec()
    }
}

fn queue() -> QueueUid {
    QueueUid::new(GROUP, 1).expect("in range")
}

fn job() -> JobId {
    JobId::new(GROUP, queue(), Partition(0), 1)
}

fn token() -> Token {
    Token {
        job: job(),
        lease_gen: 1,
    }
}

fn call(seq: u64, window: Window) -> Option<SessionCall> {
    Some(SessionCall {
        id: SessionId(5),
        seq,
        lowest: 1,
        window,
    })
}

fn command(id: u64, session: Option<SessionCall>, op: Op, wait_ms: u32) -> Request {
    let command = Command { session, op };
    Request {
        id,
        body: RequestBody::Command {
            group: GROUP,
            command,
            wait_ms,
        },
    }
}

fn reply(id: u64, index: u64, body: ReplyBody) -> Value {
    let stamp = CommitStamp {
        group: GROUP,
        term: Term(1),
        index: LogIndex(index),
    };
    Value::Reply(Reply {
        id,
        stamp: (index > 0).then_some(stamp),
        body,
    })
}

fn error(id: u64, code: Code, message: &str) -> Value {
    let message = message.to_owned();
    reply(
        id,
        0,
        ReplyBody::Error(ErrorReply {
            code,
            message,
            leader: None,
            maybe_applied: false,
        }),
    )
}

fn enqueue(items: Vec<NewJob>) -> Op {
    Op::Enqueue {
        queue: queue(),
        partition: Partition(0),
        items,
    }
}

fn lease() -> Op {
    Op::Lease {
        queue: queue(),
        partition: Partition(0),
        max: 1,
        lease_ms: 0,
        epoch: 1,
    }
}

fn timeout() -> JobFilter {
    JobFilter {
        reason_contains: "timeout".into(),
        ..JobFilter::default()
    }
}

fn sweep() -> Op {
    Op::SweepDead {
        queue: queue(),
        partition: Partition(0),
        action: SweepAction::Requeue,
        filter: timeout(),
        from_seq: 0,
        limit: 100,
    }
}

fn scan_jobs() -> Request {
    let scan = JobScan {
        queue: queue(),
        partition: Partition(0),
        state: JobState::Dead,
        filter: timeout(),
        cursor: None,
        limit: 2,
        bodies: false,
    };
    Request {
        id: 11,
        body: RequestBody::ScanJobs { group: GROUP, scan },
    }
}

fn scan_finished() -> Request {
    let body = RequestBody::ScanFinished {
        queue: queue(),
        partition: Partition(0),
        group: GROUP,
        before: 0,
        limit: 1,
    };
    Request { id: 12, body }
}

fn finished() -> FinishedJob {
    FinishedJob {
        id: job(),
        end: JobEnd::Completed,
        attempts: 1,
        enqueued_at: WallTime(1_700_000_000_000),
        finished_at: WallTime(1_700_000_000_250),
        result: Some("ok".into()),
        place: 1,
    }
}

fn watch() -> Request {
    let body = RequestBody::Watch {
        queue: queue(),
        partition: Partition(0),
        group: GROUP,
        wait_ms: 1000,
    };
    Request { id: 14, body }
}

fn wait_job() -> Request {
    let body = RequestBody::WaitJob {
        job: job(),
        wait_ms: 1000,
    };
    Request { id: 15, body }
}

fn raw(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_frame(kind, &mut out, |out| out.extend_from_slice(body));
    out.to_vec()
}

/// A frame with one header byte changed, and a checksum that fits again.
fn with_header(byte: usize, value: u8) -> Vec<u8> {
    let mut bytes = raw(FrameKind::Request, &[0x08, 0x01, 0x4a, 0x00]);
    bytes[byte] = value;
    let crc = crc32c(&[&bytes[0..4], &bytes[8..]]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn vectors() -> Vec<(&'static str, Value)> {
    let hello = |max| ClientHello {
        protocol_min: max,
        protocol_max: max,
        agent: "demo/1".into(),
    };
    let node = NodeId(1);
    let addresses = vec!["127.0.0.1:7411".to_owned(), "127.0.0.1:7412".to_owned()];
    let hello_job = NewJob {
        payload: "hello".into(),
        ..NewJob::default()
    };
    let view = JobView {
        id: job(),
        state: JobState::InFlight,
        priority: 4,
        attempts: 1,
        max_attempts: 20,
        run_at: None,
        remaining_ms: Some(30_000),
        enqueued_at: WallTime(1_700_000_000_000),
        expires_at: None,
        token: Some(token()),
        owner: Some(SessionId(5)),
        last_failure: Bytes::new(),
        body: Body {
            payload: "hello".into(),
            ..Body::default()
        },
    };
    let leased = vec![LeasedJob {
        lease_gen: 1,
        job: view,
        lease_ms: 30_000,
    }];
    let ack = Op::Ack {
        items: vec![AckItem {
            token: token(),
            result: None,
        }],
    };
    let status = raw(FrameKind::Request, &[0x08, 0x01, 0x4a, 0x00]);
    let mut bad_crc = status.clone();
    bad_crc[4] ^= 1;
    let mut oversize = status.clone();
    oversize[0..4].copy_from_slice(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
    let lowest_above = SessionCall {
        id: SessionId(5),
        seq: 1,
        lowest: 2,
        window: Window::Commands,
    };
    vec![
        ("client-hello", Value::ClientHello(hello(1))),
        (
            "server-hello",
            Value::ServerHello(ServerHello {
                protocol: 1,
                version: "0.1.0".to_owned(),
                cluster: ClusterId(std::array::from_fn(|at| at as u8)),
                node,
                shard: 0,
                groups: 64,
                payload_bytes_max: 1 << 20,
                nodes: vec![NodeAddresses { node, addresses }],
            }),
        ),
        (
            "refused-hello",
            error(0, Code::ProtocolMismatch, "this node speaks protocol 1"),
        ),
        (
            "request-get-queue",
            Value::Request(Request {
                id: 7,
                body: RequestBody::GetQueue {
                    name: "emails".into(),
                    create: false,
                },
            }),
        ),
        (
            "reply-no-such-queue",
            error(7, Code::NoSuchQueue, "no queue is named emails"),
        ),
        (
            "request-enqueue",
            Value::Request(command(
                8,
                call(1, Window::Commands),
                enqueue(vec![hello_job]),
                0,
            )),
        ),
        (
            "reply-enqueued",
            reply(
                8,
                12,
                ReplyBody::Outcome(Outcome::Enqueued(vec![Enqueued::New(job())])),
            ),
        ),
        (
            "request-lease",
            Value::Request(command(9, call(1, Window::Polls), lease(), 1000)),
        ),
        ("reply-leased", reply(9, 13, ReplyBody::Leased(leased))),
        (
            "request-ack",
            Value::Request(command(10, call(2, Window::Commands), ack, 0)),
        ),
        (
            "reply-acked",
            reply(
                10,
                14,
                ReplyBody::Outcome(Outcome::Items(vec![ItemOutcome::Done])),
            ),
        ),
        ("request-scan-jobs", Value::Request(scan_jobs())),
        (
            "reply-job-page",
            reply(
                11,
                15,
                ReplyBody::JobPage(JobPage {
                    jobs: Vec::new(),
                    matched: 0,
                    scanned: 4096,
                    next: Some(JobCursor {
                        priority: 0,
                        seq: 5_000,
                    }),
                }),
            ),
        ),
        ("request-scan-finished", Value::Request(scan_finished())),
        (
            "reply-finished-page",
            reply(
                12,
                15,
                ReplyBody::FinishedPage(FinishedPage {
                    jobs: vec![finished()],
                    next: 0,
                }),
            ),
        ),
        (
            "request-sweep-dead",
            Value::Request(command(13, call(3, Window::Commands), sweep(), 0)),
        ),
        (
            "reply-swept",
            reply(
                13,
                16,
                ReplyBody::Outcome(Outcome::Swept {
                    matched: 2,
                    scanned: 7,
                    next_seq: None,
                }),
            ),
        ),
        ("request-watch", Value::Request(watch())),
        ("request-wait-job", Value::Request(wait_job())),
        ("RRQ-4007 closes: oversize", Value::Hostile(oversize)),
        ("RRQ-4007 closes: bad-crc", Value::Hostile(bad_crc)),
        (
            "RRQ-4007 closes: unknown-kind",
            Value::Hostile(with_header(8, 9)),
        ),
        (
            "RRQ-4007 closes: flags-set",
            Value::Hostile(with_header(9, 1)),
        ),
        ("waits: truncated", Value::Hostile(status[..13].to_vec())),
        (
            "RRQ-4006: unknown-request",
            Value::Hostile(raw(FrameKind::Request, &[0x08, 0x01, 0xfa, 0x06, 0x00])),
        ),
        (
            "RRQ-4006: no-items",
            Value::Request(command(1, None, enqueue(Vec::new()), 0)),
        ),
        (
            "RRQ-4006: leader-only",
            Value::Request(command(1, None, Op::Advance { limit: 9 }, 0)),
        ),
        (
            "RRQ-4006: lowest-above-seq",
            Value::Request(command(
                1,
                Some(lowest_above),
                enqueue(vec![NewJob::default()]),
                0,
            )),
        ),
        (
            "RRQ-4006: not-protobuf",
            Value::Hostile(raw(FrameKind::Request, &[0x08, 0x01, 0x12, 0xff])),
        ),
        (
            "RRQ-3002 closes: future-version",
            Value::ClientHello(hello(9)),
        ),
    ]
}

fn hex_lines(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(24) {
        for (at, byte) in line.iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            write!(text, "{space}{byte:02x}").expect("text grows");
        }
        text.push('\n');
    }
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let byte = |digits: &str| u8::from_str_radix(digits, 16).expect("two hexadecimal digits");
    text.split_whitespace().map(byte).collect()
}

fn document() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/protocol.md")
}

/// The hex blocks by name.
fn blocks(text: &str) -> BTreeMap<String, String> {
    let mut blocks = BTreeMap::new();
    let mut parts = text.split("```hex ");
    parts.next();
    for part in parts {
        let (name, rest) = part.split_once('\n').expect("a block has lines");
        let (hex, _) = rest.split_once("```").expect("a block is closed");
        let before = blocks.insert(name.to_owned(), hex.to_owned());
        assert!(before.is_none(), "two blocks are named {name}");
    }
    blocks
}

#[test]
fn documented_bytes_are_what_the_code_sends() {
    let path = document();
    let mut text = std::fs::read_to_string(&path).expect("docs/protocol.md is there");
    let present = blocks(&text);
    if std::env::var_os("UPDATE").is_some() {
        for (name, value) in vectors() {
            let old = format!("```hex {name}\n{}```", present[name]);
            let new = format!("```hex {name}\n{}```", hex_lines(&value.encode()));
            text = text.replace(&old, &new);
        }
        std::fs::write(&path, text).expect("docs/protocol.md is written");
        return;
    }
    for (name, value) in vectors() {
        let hex = present
            .get(name)
            .unwrap_or_else(|| panic!("no block is named {name}"));
        assert_eq!(from_hex(hex), value.encode(), "{name}: run with UPDATE=1");
    }
    assert_eq!(present.len(), vectors().len(), "every block is checked");
    let crc = crc32c(&[b"emails"]);
    let example = format!(
        "`crc32c(\"emails\") = 0x{crc:08x}`, so with 64 groups its home group is {}",
        crc & 63
    );
    assert!(
        text.contains(&example),
        "the document should say: {example}"
    );
}

/// What a server makes of bytes: the code of its refusal, or `None`.
fn judge(bytes: &[u8]) -> Option<Code> {
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(FRAME_BYTES_MAX);
    decoder.push(bytes);
    let frame = match decoder.next() {
        Ok(frame) => frame?,
        Err(error) => return Some(error.code()),
    };
    match frame.kind {
        FrameKind::ClientHello => {
            let hello = decode_client_hello(&frame.body).expect("a sound hello");
            let speaks = hello.protocol_min..=hello.protocol_max;
            (!speaks.contains(&PROTOCOL_VERSION)).then_some(Code::ProtocolMismatch)
        }
        FrameKind::Request => {
            let error = decode_request(&frame.body).err()?;
            assert_eq!(
                error.id,
                Some(1),
                "its id can be read, so it can be answered"
            );
            Some(error.error.code())
        }
        FrameKind::ServerHello | FrameKind::Reply => panic!("not for servers"),
        FrameKind::PeerHello
        | FrameKind::NodeBeat
        | FrameKind::GroupMessages
        | FrameKind::Formation => {
            panic!("not for clients")
        }
    }
}

#[test]
fn documented_bytes_are_taken_or_refused_as_documented() {
    let text = std::fs::read_to_string(document()).expect("docs/protocol.md is there");
    let present = blocks(&text);
    for (name, value) in vectors() {
        let bytes = from_hex(&present[name]);
        let refused = name.strip_prefix("RRQ-").map(|rest| &rest[..4]);
        if let Some(number) = refused {
            let number = number.parse().expect("a number");
            assert_eq!(judge(&bytes), Code::from_number(number), "{name}");
            continue;
        }
        if name.starts_with("waits") {
            assert_eq!(judge(&bytes), None, "{name}");
            continue;
        }
        let mut decoder = FrameDecoder::default();
        decoder.push(&bytes);
        let body = decoder.next().expect("sound").expect("whole").body;
        match value {
            Value::ClientHello(hello) => assert_eq!(decode_client_hello(&body), Ok(hello)),
            Value::ServerHello(hello) => assert_eq!(decode_server_hello(&body), Ok(hello)),
            Value::Request(request) => assert_eq!(decode_request(&body), Ok(request)),
            Value::Reply(reply) => assert_eq!(decode_reply(&body), Ok(reply)),
            Value::Hostile(_) => panic!("{name} says no code"),
        }
    }
}

/// The table of errors names every code that a server can send, by the right name.
#[test]
fn the_table_of_errors_is_complete() {
    let text = std::fs::read_to_string(document()).expect("docs/protocol.md is there");
    let local = [Code::Unreachable, Code::Timeout]; // Of the client library.
    for code in Code::ALL
        .iter()
        .filter(|code| (4000..5000).contains(&code.number()))
    {
        let row = format!("| {} | {} |", code.number(), code.name());
        let listed = text.contains(&row);
        assert_eq!(listed, !local.contains(code), "{row}");
    }
}
