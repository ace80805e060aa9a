//! The JSON that programs read: each thing has one shape, whether `/api/v1` shows it or `rrqctl
//! --output json`.
//!
//! Fields are named as in the protocol (`docs/protocol.md`), times in milliseconds (`_ms`). Bytes are
//! text where they are; else they stand as hexadecimal digits under `<name>_hex`. Fields are added,
//! never renamed.

use crate::base::ids::GroupId;
use crate::wire::message::{ShardStatus, WorkerSession};
use crate::wire::{
    BackoffKind, DeadPolicy, FinishedJob, JobEnd, JobState, JobView, QueueInfo, QueueSettings,
    QueueStats,
};
use serde_json::{Map, Value, json};

/// A shard and its groups.
#[must_use]
pub fn shard(shard: &ShardStatus) -> Value {
    let groups = shard.groups.iter().map(|group| {
        json!({
            "group": group.group.0,
            "leader": group.leader,
            "term": group.term.0,
            "commit": group.commit.0,
            "applied": group.applied.0,
            "base": group.base.0,
            "sessions": group.sessions,
            "machine_version": group.machine_version,
            "halted": (!group.halted.is_empty()).then_some(&group.halted),
        })
    });
    json!({
        "shard": shard.shard,
        "uptime_ms": shard.uptime_ms,
        "connections": shard.connections,
        "log_bytes_since_checkpoint": shard.log_bytes_since_checkpoint,
        "durable_lsn": shard.durable_lsn,
        "disk_full": shard.disk_full,
        "zone": (!shard.zone.is_empty()).then_some(&shard.zone),
        "groups": groups.collect::<Vec<_>>(),
    })
}

/// A queue with its settings and counters.
#[must_use]
pub fn queue(info: &QueueInfo, stats: &QueueStats) -> Value {
    json!({
        "name": info.name,
        "uid": info.uid.to_string(),
        "version": info.version,
        "paused": info.paused,
        "draining": info.draining,
        "groups": info.groups.iter().map(|group| group.0).collect::<Vec<_>>(),
        "settings": settings(&info.settings),
        "pending": stats.pending,
        "delayed": stats.delayed,
        "in_flight": stats.in_flight,
        "dead": stats.dead,
        "retained": stats.retained,
        "bytes": stats.bytes,
        "keys": stats.keys,
        "enqueued_total": stats.enqueued_total,
        "leased_total": stats.leased_total,
        "completed_total": stats.completed_total,
        "nacked_total": stats.nacked_total,
        "expired_total": stats.expired_total,
        "dead_total": stats.dead_total,
        "cancelled_total": stats.cancelled_total,
        "oldest_pending_ms": stats.oldest_pending.map(|at| at.0),
    })
}

/// Every setting of a queue.
#[must_use]
pub fn settings(settings: &QueueSettings) -> Value {
    json!({
        "lease_ms": settings.lease_ms,
        "max_attempts": settings.max_attempts,
        "backoff": {
            "curve": curve(settings.backoff.kind),
            "base_ms": settings.backoff.base_ms,
            "factor_milli": settings.backoff.factor_milli,
            "cap_ms": settings.backoff.cap_ms,
            "jitter_percent": settings.backoff.jitter_percent,
        },
        "idempotency_window_ms": settings.idempotency_window_ms,
        "idempotency_keys_max": settings.idempotency_keys_max,
        "jobs_max": settings.jobs_max,
        "bytes_max": settings.bytes_max,
        "retain": settings.retain,
        "dead": policy(settings.dead),
        "partitions": settings.partitions,
    })
}

/// A live job, with its payload and headers or without.
#[must_use]
pub fn job(job: &JobView, with_body: bool) -> Value {
    let mut value = json!({
        "id": job.id.to_string(),
        "state": state(job.state),
        "priority": job.priority,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "enqueued_at_ms": job.enqueued_at.0,
        "run_at_ms": job.run_at.map(|at| at.0),
        "expires_at_ms": job.expires_at.map(|at| at.0),
        "remaining_ms": job.remaining_ms,
        "run_limit_ms": job.body.run_limit_ms,
    });
    insert_bytes(&mut value, "last_failure", &job.last_failure);
    if let Some(key) = &job.body.key {
        insert_bytes(&mut value, "key", key);
    }
    if with_body {
        let headers = job.body.headers.iter();
        let headers: Map<String, Value> = headers
            .map(|(name, bytes)| text_or_hex(name, bytes))
            .collect();
        insert(&mut value, "headers", Value::Object(headers));
        insert_bytes(&mut value, "payload", &job.body.payload);
    }
    value
}

/// A finished job.
#[must_use]
pub fn finished(job: &FinishedJob) -> Value {
    let mut value = json!({
        "id": job.id.to_string(),
        "state": "finished",
        "end": end(job.end),
        "attempts": job.attempts,
        "enqueued_at_ms": job.enqueued_at.0,
        "finished_at_ms": job.finished_at.0,
    });
    match &job.result {
        Some(result) => insert_bytes(&mut value, "result", result),
        None => insert(&mut value, "result", Value::Null),
    }
    value
}

/// A session that works.
#[must_use]
pub fn worker(group: GroupId, session: &WorkerSession) -> Value {
    let worker = session.worker.as_ref();
    json!({
        "group": group.0,
        "session": session.session.0,
        "leases": session.leases,
        "waiting": session.waiting,
        "silent_ms": session.silent_ms,
        "ended": session.ended,
        "name": worker.map(|worker| &worker.name),
        "tags": worker.map_or(&[][..], |worker| &worker.tags),
        "capacity": worker.map(|worker| worker.capacity),
    })
}

/// The word for a state.
#[must_use]
pub fn state(state: JobState) -> &'static str {
    match state {
        JobState::Pending => "pending",
        JobState::Delayed => "delayed",
        JobState::InFlight => "in_flight",
        JobState::Dead => "dead",
    }
}

/// The word for an end.
#[must_use]
pub fn end(end: JobEnd) -> &'static str {
    match end {
        JobEnd::Completed => "completed",
        JobEnd::Cancelled => "cancelled",
        JobEnd::Dropped => "dropped",
    }
}

/// The word for the curve of a backoff.
#[must_use]
pub fn curve(kind: BackoffKind) -> &'static str {
    match kind {
        BackoffKind::Fixed => "fixed",
        BackoffKind::Linear => "linear",
        BackoffKind::Exponential => "exponential",
    }
}

/// The word for what becomes of dead jobs.
#[must_use]
pub fn policy(dead: DeadPolicy) -> &'static str {
    match dead {
        DeadPolicy::Keep => "keep",
        DeadPolicy::Drop => "drop",
    }
}

/// Adds a field to an object.
pub fn insert(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

/// Adds a field with bytes: as text, or under `<name>_hex`.
pub fn insert_bytes(object: &mut Value, name: &str, bytes: &[u8]) {
    if let Some(object) = object.as_object_mut() {
        object.extend([text_or_hex(name, bytes)]);
    }
}

fn text_or_hex(name: &str, bytes: &[u8]) -> (String, Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), json!(text)),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (format!("{name}_hex"), json!(hex))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_where_they_are() {
        let mut value = json!({});
        insert_bytes(&mut value, "key", "für 42".as_bytes());
        insert_bytes(&mut value, "payload", &[0, 0xff]);
        assert_eq!(value, json!({"key": "für 42", "payload_hex": "00ff"}));
    }
}
