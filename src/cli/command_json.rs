//! A command of the log as JSON: its verb, and all of its fields but the payloads' bytes, which are
//! shown only where they are asked for.

use crate::base::ids::Token;
use crate::queue::command::{
    AckItem, Command, JobFilter, NackItem, NewJob, Op, PartitionChange, PurgeStates, QueueSettings,
    SessionCall, Start, SweepAction, Window,
};
use crate::runtime::json;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::fmt::Display;

/// The verb of a command and its fields.
pub(super) fn command_json(command: &Command, payloads: bool) -> (&'static str, Value) {
    let (verb, mut fields) = op_json(&command.op, payloads);
    if let (Some(call), Some(object)) = (&command.session, fields.as_object_mut()) {
        object.insert("session_call".to_owned(), call_json(call));
    }
    (verb, fields)
}

fn call_json(call: &SessionCall) -> Value {
    json!({
        "session": call.id.0,
        "seq": call.seq,
        "lowest": call.lowest,
        "window": match call.window {
            Window::Commands => "commands",
            Window::Polls => "polls",
        },
    })
}

fn op_json(op: &Op, payloads: bool) -> (&'static str, Value) {
    let text = |id: &dyn Display| id.to_string();
    match op {
        Op::OpenSession { worker_timeout_ms } => (
            "open_session",
            json!({"worker_timeout_ms": worker_timeout_ms}),
        ),
        Op::CloseSession { session } => ("close_session", json!({"session": session.0})),
        Op::Attach { session } => ("attach", json!({"session": session.0})),
        Op::EndLeases { session, epoch } => {
            ("end_leases", json!({"session": session.0, "epoch": epoch}))
        }
        Op::DropSession {
            session,
            epoch,
            last_seq,
        } => (
            "drop_session",
            json!({"session": session.0, "epoch": epoch, "last_seq": last_seq}),
        ),
        Op::CreateQueue {
            name,
            settings,
            must_be_new,
            groups,
        } => (
            "create_queue",
            json!({
                "name": name,
                "settings": json::settings(settings),
                "must_be_new": must_be_new,
                "groups": groups,
            }),
        ),
        Op::AlterQueue {
            queue,
            expected_version,
            settings,
        } => (
            "alter_queue",
            alter_json(text(queue), *expected_version, settings),
        ),
        Op::DeleteQueue { queue } => ("delete_queue", json!({"queue": text(queue)})),
        Op::PauseQueue { queue } => ("pause_queue", json!({"queue": text(queue)})),
        Op::DrainQueue { queue } => ("drain_queue", json!({"queue": text(queue)})),
        Op::ResumeQueue { queue } => ("resume_queue", json!({"queue": text(queue)})),
        Op::Purge {
            queue,
            partition,
            states,
        } => (
            "purge",
            json!({"queue": text(queue), "partition": partition.0, "states": states_json(*states)}),
        ),
        Op::Enqueue {
            queue,
            partition,
            items,
        } => {
            let items: Vec<Value> = items.iter().map(|job| job_json(job, payloads)).collect();
            (
                "enqueue",
                json!({"queue": text(queue), "partition": partition.0, "items": items}),
            )
        }
        Op::Lease {
            queue,
            partition,
            max,
            lease_ms,
            epoch,
        } => (
            "lease",
            json!({
                "queue": text(queue),
                "partition": partition.0,
                "max": max,
                "lease_ms": lease_ms,
                "epoch": epoch,
            }),
        ),
        Op::Extend { items } => {
            let item = |(token, lease_ms): &(Token, u32)| {
                json!({
                    "job": text(&token.job),
                    "lease_gen": token.lease_gen,
                    "lease_ms": lease_ms,
                })
            };
            ("extend", list(items, item))
        }
        Op::Ack { items } => {
            let item = |item: &AckItem| {
                json!({
                    "job": text(&item.token.job),
                    "lease_gen": item.token.lease_gen,
                    "result_bytes": item.result.as_ref().map(Bytes::len),
                })
            };
            ("ack", list(items, item))
        }
        Op::Nack { items } => {
            let item = |item: &NackItem| {
                let mut value = json!({
                    "job": text(&item.token.job),
                    "lease_gen": item.token.lease_gen,
                    "delay_ms": item.delay_ms,
                });
                json::insert_bytes(&mut value, "reason", &item.reason);
                value
            };
            ("nack", list(items, item))
        }
        Op::Release { items } => {
            let item =
                |token: &Token| json!({"job": text(&token.job), "lease_gen": token.lease_gen});
            ("release", list(items, item))
        }
        Op::Bury { items } => {
            let item = |(token, reason): &(Token, Bytes)| {
                let mut value = json!({"job": text(&token.job), "lease_gen": token.lease_gen});
                json::insert_bytes(&mut value, "reason", reason);
                value
            };
            ("bury", list(items, item))
        }
        Op::Cancel { items } => ("cancel", list(items, |job| json!(text(job)))),
        Op::RequeueDead { items } => ("requeue_dead", list(items, |job| json!(text(job)))),
        Op::DeleteDead { items } => ("delete_dead", list(items, |job| json!(text(job)))),
        Op::SweepDead {
            queue,
            partition,
            action,
            filter,
            from_seq,
            limit,
        } => (
            "sweep_dead",
            json!({
                "queue": text(queue),
                "partition": partition.0,
                "action": match action {
                    SweepAction::Requeue => "requeue",
                    SweepAction::Delete => "delete",
                },
                "filter": filter_json(filter),
                "from_seq": from_seq,
                "limit": limit,
            }),
        ),
        Op::ChangePartitions(change) => ("change_partitions", change_json(change)),
        Op::PartitionsChanged { group, home_index } => (
            "partitions_changed",
            json!({"by_group": group.0, "home_index": home_index.0}),
        ),
        Op::Advance { limit } => ("advance", json!({"limit": limit})),
        Op::SetWallOffset { offset_ms } => ("set_wall_offset", json!({"offset_ms": offset_ms})),
    }
}

fn list<T>(items: &[T], item: impl Fn(&T) -> Value) -> Value {
    json!({"items": items.iter().map(item).collect::<Vec<_>>()})
}

fn alter_json(queue: String, expected_version: u32, settings: &QueueSettings) -> Value {
    json!({
        "queue": queue,
        "expected_version": expected_version,
        "settings": json::settings(settings),
    })
}

fn filter_json(filter: &JobFilter) -> Value {
    let mut value = json!({
        "priority": filter.priority,
        "enqueued_from_ms": filter.enqueued_from_ms,
        "enqueued_before_ms": filter.enqueued_before_ms,
        "attempts_min": filter.attempts_min,
    });
    json::insert_bytes(&mut value, "reason_contains", &filter.reason_contains);
    value
}

fn change_json(change: &PartitionChange) -> Value {
    let partitions = change.partitions.iter().map(|partition| partition.0);
    let config = change.config.as_ref().map(|config| {
        json!({
            "version": config.version,
            "paused": config.paused,
            "draining": config.draining,
            "settings": json::settings(&config.settings),
        })
    });
    json!({
        "home": change.home.0,
        "home_index": change.home_index.0,
        "queue": change.queue.to_string(),
        "partitions": partitions.collect::<Vec<_>>(),
        "config": config,
    })
}

fn states_json(states: PurgeStates) -> Value {
    let named = [
        (states.pending, "pending"),
        (states.delayed, "delayed"),
        (states.dead, "dead"),
    ];
    let named = named.iter().filter(|(is_in, _)| *is_in);
    named.map(|(_, name)| json!(name)).collect()
}

fn job_json(job: &NewJob, payloads: bool) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("payload_bytes", json!(job.payload.len()));
    if let Some(priority) = job.priority {
        put("priority", json!(priority));
    }
    match job.start {
        Start::Now => None,
        Start::After(ms) => put("delay_ms", json!(ms)),
        Start::At(ms) => put("run_at_ms", json!(ms)),
    };
    let numbers = [
        ("ttl_ms", job.ttl_ms),
        ("lease_ms", job.lease_ms.into()),
        ("max_attempts", job.max_attempts.into()),
        ("run_limit_ms", job.run_limit_ms.into()),
        ("headers", job.headers.len() as u64),
    ];
    for (name, number) in numbers.into_iter().filter(|(_, number)| *number > 0) {
        put(name, json!(number));
    }
    let mut value = Value::Object(fields);
    if let Some(key) = &job.key {
        json::insert_bytes(&mut value, "key", key);
    }
    if payloads {
        json::insert_bytes(&mut value, "payload", &job.payload);
    }
    value
}
