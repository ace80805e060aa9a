//! What a request may hold: each bound of [`limits`](crate::base::limits) that a client can break,
//! told by the name of its field.
//!
//! A client checks before it sends, so that the program that asks too much is told which field it
//! was, and a server before it believes.

use crate::base::limits::{
    HEADERS_BYTES_MAX, HEADERS_MAX, ITEMS_MAX, KEY_BYTES_MAX, PAYLOAD_BYTES_HARD_MAX,
    POLL_WAIT_MS_MAX, PRIORITIES, QUEUE_NAME_BYTES_MAX, REASON_BYTES_MAX, RESULT_BYTES_MAX,
    WORKER_NAME_BYTES_MAX, WORKER_TAGS_MAX,
};
use crate::base::units::WallTime;
use crate::queue::command::{Backoff, BackoffKind, JobFilter, NewJob, Op, QueueSettings, Start};
use crate::wire::error::WireError;
use crate::wire::message::WorkerInfo;
use bytes::Bytes;

/// Whether `name` can be the name of a queue.
#[must_use]
pub fn is_queue_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    (1..=QUEUE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

pub(super) fn check_queue_name(name: &str) -> Result<(), WireError> {
    if is_queue_name(name) {
        Ok(())
    } else {
        Err(WireError::BadQueueName)
    }
}

pub(super) fn check_range(
    field: &'static str,
    got: u64,
    min: u64,
    max: u64,
) -> Result<(), WireError> {
    if (min..=max).contains(&got) {
        Ok(())
    } else {
        Err(WireError::OutOfRange {
            field,
            got,
            min,
            max,
        })
    }
}

pub(super) fn check_wait(wait_ms: u32) -> Result<(), WireError> {
    check_range("wait_ms", wait_ms.into(), 0, POLL_WAIT_MS_MAX)
}

pub(super) fn check_filter(filter: &JobFilter) -> Result<(), WireError> {
    let reason = filter.reason_contains.len();
    check_len("reason_contains", reason, 0, REASON_BYTES_MAX)?;
    let class = filter.priority.unwrap_or(0);
    check_range("priority", class.into(), 0, PRIORITIES as u64 - 1)
}

pub(super) fn check_len(
    field: &'static str,
    got: usize,
    min: usize,
    max: usize,
) -> Result<(), WireError> {
    if (min..=max).contains(&got) {
        Ok(())
    } else {
        Err(WireError::BadLength {
            field,
            got,
            min,
            max,
        })
    }
}

/// Everything that a client may ask, within its bounds; a leader's own commands are refused by name.
///
/// # Errors
/// [`WireError`] names the field and its bounds.
pub fn check_op(op: &Op) -> Result<(), WireError> {
    let items = match op {
        Op::EndLeases { .. } => return Err(WireError::LeaderOnly("EndLeases")),
        Op::DropSession { .. } => return Err(WireError::LeaderOnly("DropSession")),
        Op::Advance { .. } => return Err(WireError::LeaderOnly("Advance")),
        Op::SetWallOffset { .. } => return Err(WireError::LeaderOnly("SetWallOffset")),
        Op::ChangePartitions(_) => return Err(WireError::LeaderOnly("ChangePartitions")),
        Op::PartitionsChanged { .. } => return Err(WireError::LeaderOnly("PartitionsChanged")),
        Op::CreateQueue { name, settings, .. } => {
            check_queue_name(name)?;
            return check_settings(settings);
        }
        Op::AlterQueue { settings, .. } => return check_settings(settings),
        Op::SweepDead { filter, limit, .. } => {
            check_filter(filter)?;
            return check_range("limit", (*limit).into(), 1, ITEMS_MAX as u64);
        }
        Op::OpenSession { .. }
        | Op::CloseSession { .. }
        | Op::Attach { .. }
        | Op::DeleteQueue { .. }
        | Op::PauseQueue { .. }
        | Op::DrainQueue { .. }
        | Op::ResumeQueue { .. }
        | Op::Purge { .. } => return Ok(()),
        Op::Lease { max, .. } => return check_range("max", (*max).into(), 1, ITEMS_MAX as u64),
        Op::Enqueue { items, .. } => {
            items.iter().try_for_each(check_job)?;
            items.len()
        }
        Op::Ack { items } => {
            for item in items {
                let len = item.result.as_ref().map_or(0, Bytes::len);
                check_len("result", len, 0, RESULT_BYTES_MAX)?;
            }
            items.len()
        }
        Op::Nack { items } => items.len(),
        Op::Bury { items } => items.len(),
        Op::Extend { items } => items.len(),
        Op::Release { items } => items.len(),
        Op::Cancel { items } | Op::RequeueDead { items } | Op::DeleteDead { items } => items.len(),
    };
    check_len("items", items, 1, ITEMS_MAX)
}

fn check_settings(settings: &QueueSettings) -> Result<(), WireError> {
    let (u16_max, u32_max) = (u64::from(u16::MAX), u64::from(u32::MAX));
    let window = settings.idempotency_window_ms;
    check_range("lease_ms", settings.lease_ms.into(), 1, u32_max)?;
    check_range("max_attempts", settings.max_attempts.into(), 1, u16_max)?;
    check_range("idempotency_window_ms", window, 1, u64::MAX)?;
    check_range("partitions", settings.partitions.into(), 1, u8::MAX.into())?;
    check_backoff(&settings.backoff)
}

fn check_backoff(backoff: &Backoff) -> Result<(), WireError> {
    let jitter = backoff.jitter_percent;
    check_range("backoff.jitter_percent", jitter.into(), 0, 100)?;
    if backoff.kind != BackoffKind::Exponential {
        return Ok(());
    }
    let factor = backoff.factor_milli;
    check_range(
        "backoff.factor_milli",
        factor.into(),
        1_000,
        u32::MAX.into(),
    )
}

/// What a worker says of itself, within its bounds.
///
/// # Errors
/// [`WireError`] names the field and its bounds.
pub fn check_worker(worker: &WorkerInfo) -> Result<(), WireError> {
    let name = worker.name.len();
    check_len("a worker's name", name, 0, WORKER_NAME_BYTES_MAX)?;
    check_len("a worker's tags", worker.tags.len(), 0, WORKER_TAGS_MAX)?;
    for tag in &worker.tags {
        check_len("a worker's tag", tag.len(), 1, WORKER_NAME_BYTES_MAX)?;
    }
    Ok(())
}

fn check_job(job: &NewJob) -> Result<(), WireError> {
    if job.payload.len() > PAYLOAD_BYTES_HARD_MAX {
        return Err(WireError::PayloadTooLarge {
            got: job.payload.len(),
            max: PAYLOAD_BYTES_HARD_MAX,
        });
    }
    if let Some(priority) = job.priority {
        check_range("priority", priority.into(), 0, PRIORITIES as u64 - 1)?;
    }
    if let Some(key) = &job.key {
        check_len("key", key.len(), 1, KEY_BYTES_MAX)?;
    }
    check_len("headers", job.headers.len(), 0, HEADERS_MAX)?;
    let mut header_bytes = 0;
    for (name, value) in &job.headers {
        check_len("a header's name", name.len(), 1, HEADERS_BYTES_MAX)?;
        header_bytes += name.len() + value.len();
    }
    check_len("headers, in bytes,", header_bytes, 0, HEADERS_BYTES_MAX)?;
    if let Start::At(at) = job.start {
        check_range("run_at", at, 0, WallTime::MAX.0)?;
    }
    job.backoff.as_ref().map_or(Ok(()), check_backoff)
}
