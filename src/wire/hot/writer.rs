//! Values -> bytes; or nothing, if the value is for the general codec.
//!
//! Each message has its length (`*_len`) and its bytes (`put_*`), in the order of its fields.

use crate::base::ids::{GroupId, JobId};
use crate::queue::command::{
    AckItem, Command, Enqueued, ItemOutcome, NewJob, Op, Outcome, SessionCall, Start,
};
use crate::queue::view::{Body, JobView};
use crate::wire::message::{CommitStamp, LeasedJob, Reply, ReplyBody};
use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

/// Appends the payload of a log entry that asks `command`; whether it did.
pub(in crate::wire) fn put_command(command: &Command, out: &mut BytesMut) -> bool {
    if !is_hot(&command.op) {
        return false;
    }
    out.reserve(command_len(command));
    put_call_and_op(command, out);
    true
}

/// Appends the body of a request; whether it did.
pub(in crate::wire) fn put_request(
    id: u64,
    group: GroupId,
    command: &Command,
    wait_ms: u32,
    out: &mut impl BufMut,
) -> bool {
    if !is_hot(&command.op) {
        return false;
    }
    let command_len = command_len(command);
    let len = number_len(group.0.into()) + field_len(command_len) + number_len(wait_ms.into());
    put_number(1, id, out);
    put_head(2, len, out);
    put_number(1, group.0.into(), out);
    put_head(2, command_len, out);
    put_call_and_op(command, out);
    put_number(3, wait_ms.into(), out);
    true
}

fn is_hot(op: &Op) -> bool {
    match op {
        Op::Enqueue { items, .. } => items.iter().all(is_plain_job),
        Op::Lease { .. } | Op::Ack { .. } => true,
        _ => false,
    }
}

/// Every field is named here and in [`is_plain`], so that a new one is not forgotten.
fn is_plain_job(job: &NewJob) -> bool {
    let NewJob {
        payload: _,
        priority: _,
        start: _,
        ttl_ms: _,
        lease_ms: _,
        max_attempts: _,
        run_limit_ms: _,
        key: _,
        backoff,
        headers,
    } = job;
    backoff.is_none() && headers.is_empty()
}

fn command_len(command: &Command) -> usize {
    let session = command.session.as_ref();
    session.map_or(0, |call| field_len(session_call_len(call))) + field_len(op_len(&command.op))
}

fn put_call_and_op(command: &Command, out: &mut impl BufMut) {
    if let Some(call) = &command.session {
        put_head(1, session_call_len(call), out);
        put_number(1, call.id.0.into(), out);
        put_number(2, call.seq, out);
        put_number(3, call.lowest, out);
        put_number(4, call.window as u64, out);
    }
    let len = op_len(&command.op);
    match &command.op {
        Op::Enqueue {
            queue,
            partition,
            items,
        } => {
            put_head(2, len, out);
            put_number(1, queue.to_u64(), out);
            put_number(2, partition.0.into(), out);
            for job in items {
                put_head(3, new_job_len(job), out);
                put_new_job(job, out);
            }
        }
        Op::Lease {
            queue,
            partition,
            max,
            lease_ms,
            epoch,
        } => {
            put_head(3, len, out);
            put_number(1, queue.to_u64(), out);
            put_number(2, partition.0.into(), out);
            put_number(3, (*max).into(), out);
            put_number(4, (*lease_ms).into(), out);
            put_number(5, (*epoch).into(), out);
        }
        Op::Ack { items } => {
            put_head(4, len, out);
            for item in items {
                let AckItem { token, result } = item;
                put_head(1, ack_item_len(item), out);
                put_job_id(1, token.job, out);
                put_number(2, token.lease_gen.into(), out);
                put_optional_bytes(3, result.as_ref(), out);
            }
        }
        _ => unreachable!("asked of no other operation"),
    }
}

fn session_call_len(call: &SessionCall) -> usize {
    let numbers = [call.id.0.into(), call.seq, call.lowest, call.window as u64];
    numbers.into_iter().map(number_len).sum()
}

fn op_len(op: &Op) -> usize {
    match op {
        Op::Enqueue {
            queue,
            partition,
            items,
        } => {
            let items = items.iter().map(|job| field_len(new_job_len(job)));
            number_len(queue.to_u64()) + number_len(partition.0.into()) + items.sum::<usize>()
        }
        Op::Lease {
            queue,
            partition,
            max,
            lease_ms,
            epoch,
        } => {
            let small = [partition.0.into(), *max, *lease_ms, *epoch];
            let small = small.into_iter().map(|number| number_len(number.into()));
            number_len(queue.to_u64()) + small.sum::<usize>()
        }
        Op::Ack { items } => {
            let items = items.iter().map(|item| field_len(ack_item_len(item)));
            items.sum()
        }
        _ => unreachable!("asked of no other operation"),
    }
}

fn new_job_len(job: &NewJob) -> usize {
    let start = match job.start {
        Start::Now => None,
        Start::After(ms) | Start::At(ms) => Some(ms),
    };
    bytes_len(&job.payload)
        + optional_number_len(job.priority.map(u64::from))
        + optional_number_len(start)
        + number_len(job.ttl_ms)
        + number_len(job.lease_ms.into())
        + number_len(job.max_attempts.into())
        + number_len(job.run_limit_ms.into())
        + optional_bytes_len(job.key.as_ref())
}

fn put_new_job(job: &NewJob, out: &mut impl BufMut) {
    put_bytes(1, &job.payload, out);
    put_optional_number(2, job.priority.map(u64::from), out);
    match job.start {
        Start::Now => {}
        Start::After(ms) => put_optional_number(3, Some(ms), out),
        Start::At(ms) => put_optional_number(4, Some(ms), out),
    }
    put_number(5, job.ttl_ms, out);
    put_number(6, job.lease_ms.into(), out);
    put_number(7, job.max_attempts.into(), out);
    put_number(8, job.run_limit_ms.into(), out);
    put_optional_bytes(10, job.key.as_ref(), out);
}

fn ack_item_len(item: &AckItem) -> usize {
    JOB_ID_LEN + number_len(item.token.lease_gen.into()) + optional_bytes_len(item.result.as_ref())
}

/// Appends the body of a reply; whether it did.
pub(in crate::wire) fn put_reply(reply: &Reply, out: &mut impl BufMut) -> bool {
    match &reply.body {
        ReplyBody::Outcome(outcome @ (Outcome::Enqueued(_) | Outcome::Items(_))) => {
            put_reply_head(reply, out);
            put_outcome(outcome, out);
        }
        ReplyBody::Leased(jobs) if jobs.iter().all(is_plain) => {
            put_reply_head(reply, out);
            let len = jobs.iter().map(|leased| field_len(leased_job_len(leased)));
            put_head(4, len.sum(), out);
            for leased in jobs {
                put_head(1, leased_job_len(leased), out);
                put_number(1, leased.lease_gen.into(), out);
                put_number(2, leased.lease_ms.into(), out);
                put_head(3, job_view_len(&leased.job), out);
                put_job_view(&leased.job, out);
            }
        }
        _ => return false,
    }
    true
}

fn put_reply_head(reply: &Reply, out: &mut impl BufMut) {
    put_number(1, reply.id, out);
    if let Some(stamp) = &reply.stamp {
        put_head(2, commit_stamp_len(stamp), out);
        put_number(1, stamp.group.0.into(), out);
        put_number(2, stamp.term.0, out);
        put_number(3, stamp.index.0, out);
    }
}

fn commit_stamp_len(stamp: &CommitStamp) -> usize {
    number_len(stamp.group.0.into()) + number_len(stamp.term.0) + number_len(stamp.index.0)
}

fn put_outcome(outcome: &Outcome, out: &mut impl BufMut) {
    match outcome {
        Outcome::Enqueued(jobs) => {
            let len = jobs.iter().map(|job| field_len(enqueued_len(job))).sum();
            put_head(3, field_len(len), out);
            put_head(7, len, out);
            for job in jobs {
                put_head(1, enqueued_len(job), out);
                match job {
                    Enqueued::New(id) => put_job_id(1, *id, out),
                    Enqueued::Existing(id) => put_job_id(2, *id, out),
                    Enqueued::Rejected(rejection) => put_number(3, *rejection as u64, out),
                }
            }
        }
        Outcome::Items(items) => {
            let packed = items
                .iter()
                .map(|item| encoded_len_varint(item_number(item)));
            let packed = packed.sum::<usize>();
            let len = if items.is_empty() {
                0
            } else {
                field_len(packed)
            };
            put_head(3, field_len(len), out);
            put_head(9, len, out);
            if !items.is_empty() {
                put_head(1, packed, out);
            }
            for item in items {
                encode_varint(item_number(item), out);
            }
        }
        _ => unreachable!("asked of no other outcome"),
    }
}

fn enqueued_len(job: &Enqueued) -> usize {
    match job {
        Enqueued::New(_) | Enqueued::Existing(_) => JOB_ID_LEN,
        Enqueued::Rejected(rejection) => number_len(*rejection as u64),
    }
}

fn item_number(item: &ItemOutcome) -> u64 {
    match item {
        ItemOutcome::Done => 0,
        ItemOutcome::Rejected(rejection) => *rejection as u64,
    }
}

fn is_plain(leased: &LeasedJob) -> bool {
    let JobView {
        id: _,
        state: _,
        priority: _,
        attempts: _,
        max_attempts: _,
        run_at: _,
        remaining_ms: _,
        enqueued_at: _,
        expires_at: _,
        token: _,
        owner: _,
        last_failure: _,
        body,
    } = &leased.job;
    let Body {
        payload: _,
        key: _,
        headers,
        run_limit_ms,
        backoff,
    } = body;
    headers.is_empty() && *run_limit_ms == 0 && backoff.is_none()
}

fn leased_job_len(leased: &LeasedJob) -> usize {
    number_len(leased.lease_gen.into())
        + number_len(leased.lease_ms.into())
        + field_len(job_view_len(&leased.job))
}

fn job_view_len(view: &JobView) -> usize {
    JOB_ID_LEN
        + number_len(view.state as u64)
        + number_len(view.priority.into())
        + number_len(view.attempts.into())
        + number_len(view.max_attempts.into())
        + optional_number_len(view.run_at.map(|at| at.0))
        + optional_number_len(view.remaining_ms)
        + number_len(view.enqueued_at.0)
        + optional_number_len(view.expires_at.map(|at| at.0))
        + optional_number_len(view.token.map(|token| token.lease_gen.into()))
        + optional_number_len(view.owner.map(|owner| owner.0.into()))
        + bytes_len(&view.last_failure)
        + bytes_len(&view.body.payload)
        + optional_bytes_len(view.body.key.as_ref())
}

fn put_job_view(view: &JobView, out: &mut impl BufMut) {
    if let Some(token) = view.token {
        assert_eq!(token.job, view.id, "the token of a job is of that job");
    }
    put_job_id(1, view.id, out);
    put_number(2, view.state as u64, out);
    put_number(3, view.priority.into(), out);
    put_number(4, view.attempts.into(), out);
    put_number(5, view.max_attempts.into(), out);
    put_optional_number(6, view.run_at.map(|at| at.0), out);
    put_optional_number(7, view.remaining_ms, out);
    put_number(8, view.enqueued_at.0, out);
    put_optional_number(9, view.expires_at.map(|at| at.0), out);
    put_optional_number(10, view.token.map(|token| token.lease_gen.into()), out);
    put_optional_number(11, view.owner.map(|owner| owner.0.into()), out);
    put_bytes(12, &view.last_failure, out);
    put_bytes(13, &view.body.payload, out);
    put_optional_bytes(15, view.body.key.as_ref(), out);
}

// Fields 1 to 15: their keys are one byte.

const NUMBER: u8 = 0;
const DELIMITED: u8 = 2;
/// A job id with its key and length.
const JOB_ID_LEN: usize = 18;

/// A delimited field of `len` bytes with its key and length.
fn field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

fn put_head(field: u8, len: usize, out: &mut impl BufMut) {
    out.put_u8(field << 3 | DELIMITED);
    encode_varint(len as u64, out);
}

fn optional_number_len(number: Option<u64>) -> usize {
    number.map_or(0, |number| 1 + encoded_len_varint(number))
}

fn put_optional_number(field: u8, number: Option<u64>, out: &mut impl BufMut) {
    if let Some(number) = number {
        out.put_u8(field << 3 | NUMBER);
        encode_varint(number, out);
    }
}

/// The default, 0, is left out.
fn number_len(number: u64) -> usize {
    optional_number_len(Some(number).filter(|number| *number != 0))
}

fn put_number(field: u8, number: u64, out: &mut impl BufMut) {
    put_optional_number(field, Some(number).filter(|number| *number != 0), out);
}

fn optional_bytes_len(bytes: Option<&Bytes>) -> usize {
    bytes.map_or(0, |bytes| field_len(bytes.len()))
}

fn put_optional_bytes(field: u8, bytes: Option<&Bytes>, out: &mut impl BufMut) {
    if let Some(bytes) = bytes {
        put_head(field, bytes.len(), out);
        out.put_slice(bytes);
    }
}

/// The default, no bytes, is left out.
fn bytes_len(bytes: &Bytes) -> usize {
    optional_bytes_len(Some(bytes).filter(|bytes| !bytes.is_empty()))
}

fn put_bytes(field: u8, bytes: &Bytes, out: &mut impl BufMut) {
    put_optional_bytes(field, Some(bytes).filter(|bytes| !bytes.is_empty()), out);
}

fn put_job_id(field: u8, id: JobId, out: &mut impl BufMut) {
    let bytes = id.to_bytes();
    put_head(field, bytes.len(), out);
    out.put_slice(&bytes);
}
