//! Both codecs, against each other.

use super::{put_command, put_reply, put_request, read_command, read_reply, read_request};
use crate::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Term, Token};
use crate::base::units::WallTime;
use crate::queue::command::{
    AckItem, Command, Enqueued, ItemOutcome, NewJob, Op, Outcome, Rejection, SessionCall, Start,
    Window,
};
use crate::queue::view::{Body, JobState, JobView};
use crate::wire::client::decode_request;
use crate::wire::client::reply::{reply_from_pb, reply_to_pb};
use crate::wire::command::{command_from_pb, command_to_pb};
use crate::wire::generated as pb;
use crate::wire::message::{CommitStamp, LeasedJob, Reply, ReplyBody};
use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use prost::encoding::{decode_varint, encode_varint};

fn write_command(command: &Command) -> Option<Bytes> {
    let mut out = BytesMut::new();
    put_command(command, &mut out).then(|| out.freeze())
}

/// Numbers of every length, and the defaults often.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), 0_u64..300, any::<u64>()]
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(u32::MAX), 0_u32..300, any::<u32>()]
}

fn blob() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn queue() -> impl Strategy<Value = QueueUid> {
    prop_oneof![Just(0), 0_u64..1 << 40].prop_map(|raw| QueueUid::from_u64(raw).expect("40 bits"))
}

fn job_id() -> impl Strategy<Value = JobId> {
    (any::<u16>(), queue(), any::<u8>(), 0..=JobId::SEQ_MAX).prop_map(
        |(group, queue, part, seq)| JobId::new(GroupId(group), queue, Partition(part), seq),
    )
}

fn token() -> impl Strategy<Value = Token> {
    (job_id(), small()).prop_map(|(job, lease_gen)| Token { job, lease_gen })
}

prop_compose! {
    fn new_job()(
        payload in blob(),
        priority in option::of(any::<u8>()),
        start in prop_oneof![
            Just(Start::Now), number().prop_map(Start::After), number().prop_map(Start::At)
        ],
        ttl_ms in number(),
        lease_ms in small(),
        max_attempts in prop_oneof![Just(0), any::<u16>()],
        run_limit_ms in small(),
        key in option::of(blob()),
    ) -> NewJob {
        let (backoff, headers) = (None, Vec::new());
        NewJob {
            payload, priority, start, ttl_ms, lease_ms, max_attempts, run_limit_ms, backoff, key,
            headers,
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let partition = || any::<u8>().prop_map(Partition);
    let ack = (token(), option::of(blob())).prop_map(|(token, result)| AckItem { token, result });
    prop_oneof![
        (queue(), partition(), vec(new_job(), 0..4)).prop_map(|(queue, partition, items)| {
            Op::Enqueue {
                queue,
                partition,
                items,
            }
        }),
        (queue(), partition(), small(), small(), small()).prop_map(
            |(queue, partition, max, lease_ms, epoch)| Op::Lease {
                queue,
                partition,
                max,
                lease_ms,
                epoch,
            }
        ),
        vec(ack, 0..4).prop_map(|items| Op::Ack { items }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let window = prop_oneof![Just(Window::Commands), Just(Window::Polls)];
    let call =
        (small(), number(), number(), window).prop_map(|(id, seq, lowest, window)| SessionCall {
            id: SessionId(id),
            seq,
            lowest,
            window,
        });
    (option::of(call), op()).prop_map(|(session, op)| Command { session, op })
}

prop_compose! {
    fn job_view()(
        id in job_id(),
        state in prop_oneof![Just(JobState::Pending), Just(JobState::InFlight)],
        (priority, attempts, max_attempts) in any::<(u8, u16, u16)>(),
        run_at in option::of(number().prop_map(WallTime)),
        remaining_ms in option::of(number()),
        enqueued_at in number().prop_map(WallTime),
        expires_at in option::of(number().prop_map(WallTime)),
        lease_gen in option::of(small()),
        owner in option::of(small().prop_map(SessionId)),
        last_failure in blob(),
        payload in blob(),
        key in option::of(blob()),
    ) -> JobView {
        let token = lease_gen.map(|lease_gen| Token { job: id, lease_gen });
        let body = Body { payload, key, ..Body::default() };
        JobView {
            id, state, priority, attempts, max_attempts, run_at, remaining_ms, enqueued_at,
            expires_at, token, owner, last_failure, body,
        }
    }
}

fn reply() -> impl Strategy<Value = Reply> {
    let rejection = || prop::sample::select(&Rejection::ALL[..]);
    let enqueued = prop_oneof![
        job_id().prop_map(Enqueued::New),
        job_id().prop_map(Enqueued::Existing),
        rejection().prop_map(Enqueued::Rejected),
    ];
    let item = prop_oneof![
        Just(ItemOutcome::Done),
        rejection().prop_map(ItemOutcome::Rejected)
    ];
    let leased = (small(), job_view(), small()).prop_map(|(lease_gen, job, lease_ms)| LeasedJob {
        lease_gen,
        job,
        lease_ms,
    });
    let body = prop_oneof![
        vec(enqueued, 0..5).prop_map(|jobs| ReplyBody::Outcome(Outcome::Enqueued(jobs))),
        vec(item, 0..5).prop_map(|items| ReplyBody::Outcome(Outcome::Items(items))),
        vec(leased, 0..4).prop_map(ReplyBody::Leased),
    ];
    let stamp = (any::<u16>(), number(), number()).prop_map(|(group, term, index)| CommitStamp {
        group: GroupId(group),
        term: Term(term),
        index: LogIndex(index),
    });
    (number(), option::of(stamp), body).prop_map(|(id, stamp, body)| Reply { id, stamp, body })
}

/// Changes a byte, or cuts the end off, or adds one.
fn damage(bytes: &[u8], at: prop::sample::Index, to: u8, how: u8) -> Bytes {
    let mut bytes = bytes.to_vec();
    if !bytes.is_empty() {
        let at = at.index(bytes.len());
        match how % 3 {
            0 => bytes[at] = to,
            1 => bytes.truncate(at),
            _ => bytes.insert(at, to),
        }
    }
    bytes.into()
}

/// Adds bytes within the first field of the first field and so on, so deep; all lengths fit.
fn with_junk(bytes: &[u8], depth: u8, junk: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    let key = rest.first().copied().unwrap_or_default();
    if depth == 0 || key & 7 != 2 {
        return [bytes, junk].concat();
    }
    rest = &rest[1..];
    let len = decode_varint(&mut rest).expect("it was encoded") as usize;
    let inner = with_junk(&rest[..len], depth - 1, junk);
    let mut out = vec![key];
    encode_varint(inner.len() as u64, &mut out);
    out.extend_from_slice(&inner);
    out.extend_from_slice(&rest[len..]);
    out
}

/// As the general codec sees it, with nothing left over.
fn general_command(bytes: &Bytes) -> Option<Command> {
    let message = pb::Command::decode(bytes.clone()).ok()?;
    (message.encoded_len() == bytes.len()).then(|| command_from_pb(message).ok())?
}

proptest! {
    #[test]
    fn commands_are_written_and_read_as_by_the_general_codec(command in command()) {
        let bytes = write_command(&command).expect("it is hot");
        prop_assert_eq!(&bytes[..], &command_to_pb(&command).encode_to_vec()[..]);
        prop_assert_eq!(read_command(&bytes), Some(command));
    }

    #[test]
    fn a_damaged_command_is_read_as_by_the_general_codec_or_not_at_all(
        command in command(), at in any::<prop::sample::Index>(), to in any::<u8>(), how in any::<u8>()
    ) {
        let bytes = damage(&write_command(&command).expect("it is hot"), at, to, how);
        if let Some(read) = read_command(&bytes) {
            prop_assert_eq!(general_command(&bytes), Some(read.clone()));
            prop_assert_eq!(write_command(&read), Some(bytes));
        }
    }

    #[test]
    fn a_command_with_something_added_is_read_as_by_the_general_codec_or_not_at_all(
        op in op(), depth in 0_u8..3, junk in vec(any::<u8>(), 1..4)
    ) {
        let bytes = write_command(&Command { session: None, op }).expect("it is hot");
        let bytes = Bytes::from(with_junk(&bytes, depth, &junk));
        if let Some(read) = read_command(&bytes) {
            prop_assert_eq!(general_command(&bytes), Some(read.clone()));
            prop_assert_eq!(write_command(&read), Some(bytes));
        }
    }

    #[test]
    fn a_reply_with_something_added_is_read_as_by_the_general_codec_or_not_at_all(
        reply in reply(), depth in 0_u8..4, junk in vec(any::<u8>(), 1..4)
    ) {
        let (id, stamp) = (0, None);
        let mut out = BytesMut::new();
        let is_written = put_reply(&Reply { id, stamp, ..reply }, &mut out);
        prop_assert!(is_written);
        let bytes = Bytes::from(with_junk(&out, depth, &junk));
        if let Some(read) = read_reply(&bytes) {
            prop_assert_eq!(reply_from_pb(bytes).ok(), Some(read));
        }
    }

    #[test]
    fn requests_are_written_and_read_as_by_the_general_codec(
        id in 1..=u64::MAX, group in any::<u16>(), command in command(), wait_ms in small()
    ) {
        let mut out = BytesMut::new();
        prop_assert!(put_request(id, GroupId(group), &command, wait_ms, &mut out));
        let call = pb::GroupCommand {
            group: group.into(),
            command: Some(command_to_pb(&command)),
            wait_ms,
        };
        let body = Some(pb::request::Body::Command(call));
        prop_assert_eq!(&out[..], &pb::Request { id, body }.encode_to_vec()[..]);
        let out = out.freeze();
        let (request, encoded) = read_request(&out).expect("it is hot");
        prop_assert_eq!(request.id, id);
        prop_assert_eq!(Some(encoded), write_command(&command));
        // Both ways end in the same bounds.
        if let Ok(checked) = decode_request(&out) {
            prop_assert_eq!(checked, request);
        }
    }

    #[test]
    fn replies_are_written_and_read_as_by_the_general_codec(reply in reply()) {
        let mut out = BytesMut::new();
        prop_assert!(put_reply(&reply, &mut out));
        prop_assert_eq!(&out[..], &reply_to_pb(&reply).encode_to_vec()[..]);
        prop_assert_eq!(read_reply(&out.freeze()), Some(reply));
    }

    #[test]
    fn a_damaged_reply_is_read_as_by_the_general_codec_or_not_at_all(
        reply in reply(), at in any::<prop::sample::Index>(), to in any::<u8>(), how in any::<u8>()
    ) {
        let mut out = BytesMut::new();
        prop_assert!(put_reply(&reply, &mut out));
        let bytes = damage(&out, at, to, how);
        if let Some(read) = read_reply(&bytes) {
            prop_assert_eq!(reply_from_pb(bytes).ok(), Some(read));
        }
    }
}

#[test]
fn a_key_without_a_value_behind_the_items_is_no_command() {
    let job = JobId::new(
        GroupId(1),
        QueueUid::from_u64(7).expect("40 bits"),
        Partition(0),
        3,
    );
    let token = Token { job, lease_gen: 5 };
    let op = Op::Ack {
        items: vec![AckItem {
            token,
            result: None,
        }],
    };
    let bytes = write_command(&Command { session: None, op }).expect("it is hot");
    for key in [0x10, 0x12, 0x7a] {
        let bytes = Bytes::from(with_junk(&bytes, 1, &[key]));
        assert_eq!(
            (read_command(&bytes), general_command(&bytes)),
            (None, None)
        );
    }
}

#[test]
fn what_is_rare_goes_the_general_way() {
    let job = NewJob {
        headers: vec![("trace".to_owned(), Bytes::from_static(b"1"))],
        ..NewJob::default()
    };
    let queue = QueueUid::from_u64(7).expect("40 bits");
    let command = Command {
        session: None,
        op: Op::Enqueue {
            queue,
            partition: Partition(0),
            items: vec![job],
        },
    };
    assert_eq!(write_command(&command), None);
    let bytes = Bytes::from(command_to_pb(&command).encode_to_vec());
    assert_eq!(read_command(&bytes), None);
}
