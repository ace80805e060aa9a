//! Frames of clients: bytes to requests and replies to bytes, as a node does it, and the reverse, as
//! a client does. A step does as many as a read buffer of 64 KiB may hold; the cost told is that of a
//! message.

mod support;

use bytes::{Bytes, BytesMut};
use rrq::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Term, Token};
use rrq::base::limits::FRAME_BYTES_MAX;
use rrq::base::units::WallTime;
use rrq::wire::client::{decode_reply, decode_request, encode_reply, encode_request};
use rrq::wire::frame::FrameDecoder;
use rrq::wire::message::{CommitStamp, LeasedJob, Reply, ReplyBody, Request};
use rrq::wire::{AckItem, Body, Enqueued, ItemOutcome, JobState, JobView, Op, Outcome, Window};
use rrq::workload::payload;
use std::hint::black_box;
use support::Suite;
use support::load::{PAYLOAD_BYTES, command, new_jobs, request};

/// Steps on one state.
const STEPS: u64 = 1_000;

/// What a message is, how many fit into a read buffer, and one of them.
type Sample<T> = (&'static str, u64, fn() -> T);

fn main() {
    let mut suite = Suite::from_args("frame_decode");
    let requests: [Sample<Op>; 4] = [
        ("request that enqueues 1 job", 64, || enqueue(1)),
        ("request that enqueues 64 jobs", 2, || enqueue(64)),
        ("request that leases", 64, lease),
        ("request that acks 1 job", 64, ack),
    ];
    for (what, frames, op) in requests {
        let sample = move || asked(op());
        measure(&mut suite, what, frames, sample, encode_request, |body| {
            black_box(decode_request(body).expect("it is whole"));
        });
    }
    let replies: [Sample<ReplyBody>; 4] = [
        ("reply of 1 enqueued job", 64, || enqueued(1)),
        ("reply of 64 enqueued jobs", 32, || enqueued(64)),
        ("reply of 8 leased jobs", 16, leased),
        ("reply of 1 acked job", 64, acked),
    ];
    for (what, frames, body) in replies {
        let sample = move || answered(body());
        measure(&mut suite, what, frames, sample, encode_reply, |body| {
            black_box(decode_reply(body).expect("it is whole"));
        });
    }
    suite.finish();
}

/// Measures both ways of a message.
fn measure<M>(
    suite: &mut Suite,
    what: &str,
    frames: u64,
    sample: impl Fn() -> M,
    encode: impl Fn(&M, &mut BytesMut),
    decode: impl Fn(&Bytes),
) {
    let name = format!("encode a {what}");
    let make = |_| (sample(), BytesMut::new());
    suite.operation(&name, frames, STEPS, make, |(message, out)| {
        for _ in 0..frames {
            encode(message, out);
        }
        out.clear();
    });
    let name = format!("decode a {what}");
    let make = |_| {
        let mut bytes = BytesMut::new();
        for _ in 0..frames {
            encode(&sample(), &mut bytes);
        }
        let mut decoder = FrameDecoder::default();
        decoder.set_body_bytes_max(FRAME_BYTES_MAX);
        (bytes, decoder)
    };
    suite.operation(&name, frames, STEPS, make, |(bytes, decoder)| {
        decoder.push(bytes);
        while let Some(frame) = decoder.next().expect("frames are whole") {
            decode(&frame.body);
        }
    });
}

fn asked(op: Op) -> Request {
    let window = match op {
        Op::Lease { .. } => Window::Polls,
        _ => Window::Commands,
    };
    request(
        70_000,
        GroupId(5),
        command(SessionId(9), window, 70_000, op),
    )
}

fn answered(body: ReplyBody) -> Reply {
    let stamp = CommitStamp {
        group: GroupId(5),
        term: Term(1),
        index: LogIndex(1_000_000),
    };
    Reply {
        id: 70_000,
        stamp: Some(stamp),
        body,
    }
}

fn queue() -> QueueUid {
    QueueUid::new(GroupId(5), 1).expect("in range")
}

fn job(number: u64) -> JobId {
    JobId::new(GroupId(5), queue(), Partition(0), 1_000_000 + number)
}

fn token(number: u64) -> Token {
    Token {
        job: job(number),
        lease_gen: 1,
    }
}

fn enqueue(jobs: u64) -> Op {
    Op::Enqueue {
        queue: queue(),
        partition: Partition(0),
        items: new_jobs(0, jobs),
    }
}

fn lease() -> Op {
    Op::Lease {
        queue: queue(),
        partition: Partition(0),
        max: 32,
        lease_ms: 0,
        epoch: 1,
    }
}

fn ack() -> Op {
    let item = AckItem {
        token: token(0),
        result: None,
    };
    Op::Ack { items: vec![item] }
}

fn enqueued(jobs: u64) -> ReplyBody {
    let new = |number| Enqueued::New(job(number));
    ReplyBody::Outcome(Outcome::Enqueued((0..jobs).map(new).collect()))
}

fn leased() -> ReplyBody {
    let leased = |number| LeasedJob {
        lease_gen: 1,
        lease_ms: 30_000,
        job: JobView {
            id: job(number),
            state: JobState::InFlight,
            priority: 4,
            attempts: 1,
            max_attempts: 20,
            run_at: None,
            remaining_ms: Some(30_000),
            enqueued_at: WallTime(1_700_000_000_000),
            expires_at: None,
            token: Some(token(number)),
            owner: Some(SessionId(9)),
            last_failure: Bytes::new(),
            body: Body {
                payload: payload(number, PAYLOAD_BYTES),
                ..Body::default()
            },
        },
    };
    ReplyBody::Leased((0..8).map(leased).collect())
}

fn acked() -> ReplyBody {
    ReplyBody::Outcome(Outcome::Items(vec![ItemOutcome::Done]))
}
