//! What all calls share: the bounds of a request, and what an answer means.

use crate::base::ids::GroupId;
use crate::base::limits::FRAME_BYTES_MAX;
use crate::client::{Code, Error};
use crate::wire::bounds::check_op;
use crate::wire::message::{Reply, ReplyBody, RequestBody};
use crate::wire::{AckItem, Command, NewJob, Op, Outcome, WireError};
use bytes::Bytes;
use std::future::Future;
use std::time::Duration;
use tracing::{Instrument, Span};

/// More than what surrounds the variable parts of an item on the wire.
const ITEM_OVERHEAD_BYTES: usize = 128;

pub(super) fn command(group: GroupId, op: Op, wait_ms: u32) -> RequestBody {
    RequestBody::Command {
        group,
        command: Command { session: None, op },
        wait_ms,
    }
}

/// What the machine said; a rejection is an error.
pub(super) fn outcome(reply: Reply) -> Result<Outcome, Error> {
    match reply.body {
        ReplyBody::Outcome(Outcome::Rejected(rejection)) => Err(Error::rejected(rejection)),
        ReplyBody::Outcome(outcome) => Ok(outcome),
        other => Err(strange(&other)),
    }
}

pub(super) fn strange(answer: &impl std::fmt::Debug) -> Error {
    let mut words = format!("the server answered something else than was asked: {answer:?}");
    if let Some((cut, _)) = words.char_indices().nth(200) {
        words.truncate(cut);
    }
    Error::new(Code::BadFrame, words)
}

pub(super) fn first(outcomes: Vec<Result<(), Error>>) -> Result<(), Error> {
    outcomes.into_iter().next().unwrap_or(Ok(()))
}

/// The bytes of a request, if all in it is within its bounds: else this tells which field is not,
/// before anything is sent.
pub(super) fn op_bytes(op: &Op) -> Result<usize, Error> {
    check_op(op).map_err(out_of_bounds)?;
    let (count, bytes) = match op {
        Op::Enqueue { items, .. } => (items.len(), items.iter().map(job_bytes).sum()),
        Op::Ack { items } => {
            let result = |item: &AckItem| item.result.as_ref().map_or(0, Bytes::len);
            (items.len(), items.iter().map(result).sum())
        }
        Op::Nack { items } => (
            items.len(),
            items.iter().map(|item| item.reason.len()).sum(),
        ),
        Op::Bury { items } => (
            items.len(),
            items.iter().map(|(_, reason)| reason.len()).sum(),
        ),
        Op::Extend { items } => (items.len(), 0),
        Op::Release { items } => (items.len(), 0),
        Op::Cancel { items } | Op::RequeueDead { items } | Op::DeleteDead { items } => {
            (items.len(), 0)
        }
        _ => (1, 0),
    };
    let bytes = bytes + (count + 1) * ITEM_OVERHEAD_BYTES;
    if bytes > FRAME_BYTES_MAX {
        let words = format!("a request of {bytes} bytes, at most {FRAME_BYTES_MAX} are allowed");
        return Err(Error::new(Code::PayloadTooLarge, words));
    }
    Ok(bytes)
}

/// What a server would refuse, told before it is asked.
pub(super) fn out_of_bounds(fault: WireError) -> Error {
    let code = match fault.code() {
        Code::PayloadTooLarge => Code::PayloadTooLarge,
        _ => Code::Invalid,
    };
    Error::new(code, fault.to_string())
}

/// Waits for a call within its span, where its failure is told.
pub(super) async fn traced<T>(
    span: Span,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let told = async {
        let answer = call.await;
        if let Err(error) = &answer {
            let maybe_applied = error.maybe_applied();
            tracing::debug!(code = %error.code(), maybe_applied, "failed");
        }
        answer
    };
    told.instrument(span).await
}

fn job_bytes(job: &NewJob) -> usize {
    let header = |(name, value): &(String, Bytes)| name.len() + value.len() + 16;
    let headers: usize = job.headers.iter().map(header).sum();
    job.payload.len() + job.key.as_ref().map_or(0, Bytes::len) + headers
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn millis_u32(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Rejection;

    #[test]
    fn what_no_frame_can_hold_is_refused_before_it_is_sent() {
        let queue = crate::base::ids::QueueUid::default();
        let partition = crate::base::ids::Partition(0);
        let job = NewJob {
            payload: vec![0; 3 << 20].into(),
            ..NewJob::default()
        };
        let enqueue = |items| Op::Enqueue {
            queue,
            partition,
            items,
        };
        assert!(op_bytes(&enqueue(vec![job.clone(); 2])).is_ok());
        let code = |op| op_bytes(&op).map_err(|error| error.code());
        assert_eq!(code(enqueue(vec![job; 3])), Err(Code::PayloadTooLarge));
        assert_eq!(
            code(enqueue(vec![NewJob::default(); 1025])),
            Err(Code::Invalid)
        );
    }

    #[test]
    fn rejections_of_a_command_are_errors() {
        let body = ReplyBody::Outcome(Outcome::Rejected(Rejection::QuotaExceeded));
        let reply = Reply {
            id: 1,
            stamp: None,
            body,
        };
        let error = outcome(reply).expect_err("rejected");
        assert_eq!(error.code(), Code::QuotaExceeded);
        assert!(error.is_retryable() && !error.maybe_applied());
    }
}
