//! A [`Command`] as the payload of a log entry, and as part of a request.
//!
//! The leader encodes it once; log and peers carry the bytes. `proto/log.proto` is for ever, so
//! decoding a payload is total on whatever this code ever wrote, and strict beyond: a machine
//! version that this build does not apply, an operation that the entry's version does not have, or
//! an unknown field is refused by name and never skipped.
//! Payloads, keys and values of a decoded command are slices of the entry, not copies.

use crate::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Token};
use crate::queue::MACHINE_VERSION;
use crate::queue::command::{
    AckItem, Backoff, BackoffKind, Command, DeadPolicy, JobFilter, NackItem, NewJob, Op,
    PartitionChange, PartitionConfig, PurgeStates, QueueSettings, SessionCall, Start, SweepAction,
    Window,
};
use crate::wire::error::{WireError, malformed};
use crate::wire::generated as pb;
use crate::wire::hot;
use bytes::{Bytes, BytesMut};
use pb::command::Op as PbOp;
use pb::new_job::Start as PbStart;
use prost::Message;

/// The payload of a log entry that asks `command`.
#[must_use]
pub fn encode_command(command: &Command) -> Bytes {
    let mut out = BytesMut::new();
    append_command(command, &mut out);
    out.freeze()
}

/// Appends the payload of a log entry that asks `command`: payloads that go out together share
/// memory.
pub fn append_command(command: &Command, out: &mut BytesMut) {
    if !hot::put_command(command, out) {
        command_to_pb(command)
            .encode(out)
            .expect("a buffer that grows takes every message");
    }
}

/// The command that a log entry asks.
///
/// # Errors
/// [`WireError`] if another machine version wrote it, or nothing of ours did.
pub fn decode_command(payload: &Bytes, machine_version: u16) -> Result<Command, WireError> {
    if !(1..=MACHINE_VERSION).contains(&machine_version) {
        return Err(WireError::MachineVersion(machine_version));
    }
    if let Some(command) = hot::read_command(payload) {
        return Ok(command);
    }
    let message = pb::Command::decode(payload.clone()).map_err(malformed("a command"))?;
    let unknown = payload.len().abs_diff(message.encoded_len());
    if unknown != 0 {
        return Err(WireError::UnknownFields(unknown));
    }
    let command = command_from_pb(message)?;
    if command.op.since() > machine_version {
        return Err(WireError::UnknownOperation("a command of its version"));
    }
    Ok(command)
}

pub(super) fn command_to_pb(command: &Command) -> pb::Command {
    pb::Command {
        session: command.session.map(|call| pb::SessionCall {
            id: call.id.0,
            seq: call.seq,
            lowest: call.lowest,
            window: match call.window {
                Window::Commands => pb::Window::Commands.into(),
                Window::Polls => pb::Window::Polls.into(),
            },
        }),
        op: Some(op_to_pb(&command.op)),
    }
}

fn op_to_pb(op: &Op) -> PbOp {
    match op {
        Op::Enqueue {
            queue,
            partition,
            items,
        } => PbOp::Enqueue(pb::Enqueue {
            queue: queue.to_u64(),
            partition: partition.0.into(),
            items: items.iter().map(job_to_pb).collect(),
        }),
        Op::Lease {
            queue,
            partition,
            max,
            lease_ms,
            epoch,
        } => PbOp::Lease(pb::Lease {
            queue: queue.to_u64(),
            partition: partition.0.into(),
            max: *max,
            lease_ms: *lease_ms,
            epoch: *epoch,
        }),
        Op::Ack { items } => PbOp::Ack(pb::Ack {
            items: items
                .iter()
                .map(|item| pb::AckItem {
                    job: id_to_pb(item.token.job),
                    lease_gen: item.token.lease_gen,
                    result: item.result.clone(),
                })
                .collect(),
        }),
        Op::Extend { items } => PbOp::Extend(pb::Extend {
            items: items
                .iter()
                .map(|(token, lease_ms)| pb::ExtendItem {
                    job: id_to_pb(token.job),
                    lease_gen: token.lease_gen,
                    lease_ms: *lease_ms,
                })
                .collect(),
        }),
        Op::Nack { items } => PbOp::Nack(pb::Nack {
            items: items
                .iter()
                .map(|item| pb::NackItem {
                    job: id_to_pb(item.token.job),
                    lease_gen: item.token.lease_gen,
                    delay_ms: item.delay_ms,
                    reason: item.reason.clone(),
                })
                .collect(),
        }),
        Op::Release { items } => PbOp::Release(pb::Release {
            items: items.iter().map(token_to_pb).collect(),
        }),
        Op::Bury { items } => PbOp::Bury(pb::Bury {
            items: items
                .iter()
                .map(|(token, reason)| pb::BuryItem {
                    job: id_to_pb(token.job),
                    lease_gen: token.lease_gen,
                    reason: reason.clone(),
                })
                .collect(),
        }),
        Op::Cancel { items } => PbOp::Cancel(pb::Cancel {
            jobs: ids_to_pb(items),
        }),
        Op::RequeueDead { items } => PbOp::RequeueDead(pb::RequeueDead {
            jobs: ids_to_pb(items),
        }),
        Op::DeleteDead { items } => PbOp::DeleteDead(pb::DeleteDead {
            jobs: ids_to_pb(items),
        }),
        Op::CreateQueue {
            name,
            settings,
            must_be_new,
            groups,
        } => PbOp::CreateQueue(pb::CreateQueue {
            name: name.clone(),
            settings: Some(settings_to_pb(settings)),
            must_be_new: *must_be_new,
            groups: *groups,
        }),
        Op::AlterQueue {
            queue,
            expected_version,
            settings,
        } => PbOp::AlterQueue(pb::AlterQueue {
            queue: queue.to_u64(),
            expected_version: *expected_version,
            settings: Some(settings_to_pb(settings)),
        }),
        Op::DeleteQueue { queue } => PbOp::DeleteQueue(pb::DeleteQueue {
            queue: queue.to_u64(),
        }),
        Op::PauseQueue { queue } => PbOp::PauseQueue(pb::PauseQueue {
            queue: queue.to_u64(),
        }),
        Op::DrainQueue { queue } => PbOp::DrainQueue(pb::DrainQueue {
            queue: queue.to_u64(),
        }),
        Op::ResumeQueue { queue } => PbOp::ResumeQueue(pb::ResumeQueue {
            queue: queue.to_u64(),
        }),
        Op::Purge {
            queue,
            partition,
            states,
        } => PbOp::Purge(pb::Purge {
            queue: queue.to_u64(),
            partition: partition.0.into(),
            pending: states.pending,
            delayed: states.delayed,
            dead: states.dead,
        }),
        Op::OpenSession { worker_timeout_ms } => PbOp::OpenSession(pb::OpenSession {
            worker_timeout_ms: *worker_timeout_ms,
        }),
        Op::CloseSession { session } => PbOp::CloseSession(pb::CloseSession { session: session.0 }),
        Op::Attach { session } => PbOp::Attach(pb::Attach { session: session.0 }),
        Op::EndLeases { session, epoch } => PbOp::EndLeases(pb::EndLeases {
            session: session.0,
            epoch: *epoch,
        }),
        Op::DropSession {
            session,
            epoch,
            last_seq,
        } => PbOp::DropSession(pb::DropSession {
            session: session.0,
            epoch: *epoch,
            last_seq: *last_seq,
        }),
        Op::SweepDead {
            queue,
            partition,
            action,
            filter,
            from_seq,
            limit,
        } => PbOp::SweepDead(pb::SweepDead {
            queue: queue.to_u64(),
            partition: partition.0.into(),
            action: *action as i32,
            filter: Some(filter_to_pb(filter)),
            from_seq: *from_seq,
            limit: *limit,
        }),
        Op::ChangePartitions(change) => PbOp::ChangePartitions(change_to_pb(change)),
        Op::PartitionsChanged { group, home_index } => {
            PbOp::PartitionsChanged(pb::PartitionsChanged {
                group: group.0.into(),
                home_index: home_index.0,
            })
        }
        Op::Advance { limit } => PbOp::Advance(pb::Advance { limit: *limit }),
        Op::SetWallOffset { offset_ms } => PbOp::SetWallOffset(pb::SetWallOffset {
            offset_ms: *offset_ms,
        }),
    }
}

fn job_to_pb(job: &NewJob) -> pb::NewJob {
    pb::NewJob {
        payload: job.payload.clone(),
        priority: job.priority.map(u32::from),
        start: match job.start {
            Start::Now => None,
            Start::After(ms) => Some(PbStart::AfterMs(ms)),
            Start::At(ms) => Some(PbStart::RunAtMs(ms)),
        },
        ttl_ms: job.ttl_ms,
        lease_ms: job.lease_ms,
        max_attempts: job.max_attempts.into(),
        run_limit_ms: job.run_limit_ms,
        backoff: job.backoff.as_ref().map(backoff_to_pb),
        key: job.key.clone(),
        headers: headers_to_pb(&job.headers),
    }
}

pub(super) fn headers_to_pb(headers: &[(String, Bytes)]) -> Vec<pb::Header> {
    headers
        .iter()
        .map(|(name, value)| pb::Header {
            name: name.clone(),
            value: value.clone(),
        })
        .collect()
}

pub(super) fn headers_from_pb(headers: Vec<pb::Header>) -> Vec<(String, Bytes)> {
    headers
        .into_iter()
        .map(|header| (header.name, header.value))
        .collect()
}

pub(super) fn backoff_to_pb(backoff: &Backoff) -> pb::Backoff {
    pb::Backoff {
        kind: backoff.kind as i32,
        base_ms: backoff.base_ms,
        factor_milli: backoff.factor_milli,
        cap_ms: backoff.cap_ms,
        jitter_percent: backoff.jitter_percent.into(),
    }
}

pub(super) fn settings_to_pb(settings: &QueueSettings) -> pb::QueueSettings {
    pb::QueueSettings {
        lease_ms: settings.lease_ms,
        max_attempts: settings.max_attempts.into(),
        backoff: Some(backoff_to_pb(&settings.backoff)),
        idempotency_window_ms: settings.idempotency_window_ms,
        idempotency_keys_max: settings.idempotency_keys_max,
        jobs_max: settings.jobs_max,
        bytes_max: settings.bytes_max,
        retain: settings.retain,
        dead: settings.dead as i32,
        partitions: settings.partitions.into(),
    }
}

pub(super) fn filter_to_pb(filter: &JobFilter) -> pb::JobFilter {
    pb::JobFilter {
        reason_contains: filter.reason_contains.clone(),
        priority: filter.priority.map(u32::from),
        enqueued_from_ms: filter.enqueued_from_ms,
        enqueued_before_ms: filter.enqueued_before_ms,
        attempts_min: filter.attempts_min,
    }
}

fn change_to_pb(change: &PartitionChange) -> pb::ChangePartitions {
    pb::ChangePartitions {
        home: change.home.0.into(),
        home_index: change.home_index.0,
        queue: change.queue.to_u64(),
        partitions: change.partitions.iter().map(|part| part.0.into()).collect(),
        config: change.config.as_ref().map(|config| pb::PartitionConfig {
            version: config.version,
            paused: config.paused,
            draining: config.draining,
            settings: Some(settings_to_pb(&config.settings)),
        }),
    }
}

pub(super) fn token_to_pb(token: &Token) -> pb::Token {
    pb::Token {
        job: id_to_pb(token.job),
        lease_gen: token.lease_gen,
    }
}

pub(super) fn id_to_pb(id: JobId) -> Bytes {
    Bytes::copy_from_slice(&id.to_bytes())
}

fn ids_to_pb(ids: &[JobId]) -> Vec<Bytes> {
    ids.iter().copied().map(id_to_pb).collect()
}

pub(super) fn command_from_pb(message: pb::Command) -> Result<Command, WireError> {
    let session = message.session.map(session_call_from_pb).transpose()?;
    let op = message.op.ok_or(WireError::UnknownOperation("a command"))?;
    Ok(Command {
        session,
        op: op_from_pb(op)?,
    })
}

fn session_call_from_pb(call: pb::SessionCall) -> Result<SessionCall, WireError> {
    let window = match pb::Window::try_from(call.window) {
        Ok(pb::Window::Commands) => Window::Commands,
        Ok(pb::Window::Polls) => Window::Polls,
        Err(_) => {
            return Err(WireError::UnknownValue {
                field: "window",
                got: call.window.into(),
            });
        }
    };
    Ok(SessionCall {
        id: SessionId(call.id),
        seq: call.seq,
        lowest: call.lowest,
        window,
    })
}

fn op_from_pb(op: PbOp) -> Result<Op, WireError> {
    Ok(match op {
        PbOp::Enqueue(op) => Op::Enqueue {
            queue: queue_from_pb(op.queue)?,
            partition: partition_from_pb(op.partition)?,
            items: op
                .items
                .into_iter()
                .map(job_from_pb)
                .collect::<Result<_, _>>()?,
        },
        PbOp::Lease(op) => Op::Lease {
            queue: queue_from_pb(op.queue)?,
            partition: partition_from_pb(op.partition)?,
            max: op.max,
            lease_ms: op.lease_ms,
            epoch: op.epoch,
        },
        PbOp::Ack(op) => Op::Ack {
            items: try_each(op.items, ack_from_pb)?,
        },
        PbOp::Extend(op) => Op::Extend {
            items: try_each(op.items, |item| {
                Ok((token_from_parts(&item.job, item.lease_gen)?, item.lease_ms))
            })?,
        },
        PbOp::Nack(op) => Op::Nack {
            items: try_each(op.items, nack_from_pb)?,
        },
        PbOp::Release(op) => Op::Release {
            items: try_each(op.items, |item| token_from_pb(&item))?,
        },
        PbOp::Bury(op) => Op::Bury {
            items: try_each(op.items, |item| {
                Ok((token_from_parts(&item.job, item.lease_gen)?, item.reason))
            })?,
        },
        PbOp::Cancel(op) => Op::Cancel {
            items: ids_from_pb(op.jobs)?,
        },
        PbOp::RequeueDead(op) => Op::RequeueDead {
            items: ids_from_pb(op.jobs)?,
        },
        PbOp::DeleteDead(op) => Op::DeleteDead {
            items: ids_from_pb(op.jobs)?,
        },
        PbOp::CreateQueue(op) => Op::CreateQueue {
            name: op.name,
            settings: settings_from_pb(op.settings)?,
            must_be_new: op.must_be_new,
            groups: op.groups,
        },
        PbOp::AlterQueue(op) => Op::AlterQueue {
            queue: queue_from_pb(op.queue)?,
            expected_version: op.expected_version,
            settings: settings_from_pb(op.settings)?,
        },
        PbOp::DeleteQueue(op) => Op::DeleteQueue {
            queue: queue_from_pb(op.queue)?,
        },
        PbOp::PauseQueue(op) => Op::PauseQueue {
            queue: queue_from_pb(op.queue)?,
        },
        PbOp::DrainQueue(op) => Op::DrainQueue {
            queue: queue_from_pb(op.queue)?,
        },
        PbOp::ResumeQueue(op) => Op::ResumeQueue {
            queue: queue_from_pb(op.queue)?,
        },
        PbOp::Purge(op) => Op::Purge {
            queue: queue_from_pb(op.queue)?,
            partition: partition_from_pb(op.partition)?,
            states: PurgeStates {
                pending: op.pending,
                delayed: op.delayed,
                dead: op.dead,
            },
        },
        PbOp::OpenSession(op) => Op::OpenSession {
            worker_timeout_ms: op.worker_timeout_ms,
        },
        PbOp::CloseSession(op) => Op::CloseSession {
            session: SessionId(op.session),
        },
        PbOp::Attach(op) => Op::Attach {
            session: SessionId(op.session),
        },
        PbOp::EndLeases(op) => Op::EndLeases {
            session: SessionId(op.session),
            epoch: op.epoch,
        },
        PbOp::DropSession(op) => Op::DropSession {
            session: SessionId(op.session),
            epoch: op.epoch,
            last_seq: op.last_seq,
        },
        PbOp::SweepDead(op) => Op::SweepDead {
            queue: queue_from_pb(op.queue)?,
            partition: partition_from_pb(op.partition)?,
            action: match pb::SweepAction::try_from(op.action) {
                Ok(pb::SweepAction::Requeue) => SweepAction::Requeue,
                Ok(pb::SweepAction::Delete) => SweepAction::Delete,
                Ok(pb::SweepAction::Unspecified) | Err(_) => {
                    let got = op.action.into();
                    return Err(WireError::UnknownValue {
                        field: "sweep action",
                        got,
                    });
                }
            },
            filter: filter_from_pb(op.filter)?,
            from_seq: op.from_seq,
            limit: op.limit,
        },
        PbOp::ChangePartitions(op) => Op::ChangePartitions(Box::new(change_from_pb(op)?)),
        PbOp::PartitionsChanged(op) => Op::PartitionsChanged {
            group: group_from_pb(op.group)?,
            home_index: LogIndex(op.home_index),
        },
        PbOp::Advance(op) => Op::Advance { limit: op.limit },
        PbOp::SetWallOffset(op) => Op::SetWallOffset {
            offset_ms: op.offset_ms,
        },
    })
}

pub(super) fn try_each<A, B>(
    items: Vec<A>,
    convert: impl FnMut(A) -> Result<B, WireError>,
) -> Result<Vec<B>, WireError> {
    items.into_iter().map(convert).collect()
}

fn ack_from_pb(item: pb::AckItem) -> Result<AckItem, WireError> {
    Ok(AckItem {
        token: token_from_parts(&item.job, item.lease_gen)?,
        result: item.result,
    })
}

fn nack_from_pb(item: pb::NackItem) -> Result<NackItem, WireError> {
    Ok(NackItem {
        token: token_from_parts(&item.job, item.lease_gen)?,
        delay_ms: item.delay_ms,
        reason: item.reason,
    })
}

fn job_from_pb(job: pb::NewJob) -> Result<NewJob, WireError> {
    Ok(NewJob {
        payload: job.payload,
        priority: job
            .priority
            .map(|class| u8_from_pb("priority", class))
            .transpose()?,
        start: match job.start {
            None => Start::Now,
            Some(PbStart::AfterMs(ms)) => Start::After(ms),
            Some(PbStart::RunAtMs(ms)) => Start::At(ms),
        },
        ttl_ms: job.ttl_ms,
        lease_ms: job.lease_ms,
        max_attempts: u16_from_pb("max_attempts", job.max_attempts)?,
        run_limit_ms: job.run_limit_ms,
        backoff: job.backoff.map(backoff_from_pb).transpose()?,
        key: job.key,
        headers: headers_from_pb(job.headers),
    })
}

pub(super) fn backoff_from_pb(backoff: pb::Backoff) -> Result<Backoff, WireError> {
    let kind = match pb::BackoffKind::try_from(backoff.kind) {
        Ok(pb::BackoffKind::Fixed) => BackoffKind::Fixed,
        Ok(pb::BackoffKind::Linear) => BackoffKind::Linear,
        Ok(pb::BackoffKind::Exponential) => BackoffKind::Exponential,
        Ok(pb::BackoffKind::Unspecified) | Err(_) => {
            let got = backoff.kind.into();
            return Err(WireError::UnknownValue {
                field: "backoff kind",
                got,
            });
        }
    };
    Ok(Backoff {
        kind,
        base_ms: backoff.base_ms,
        factor_milli: backoff.factor_milli,
        cap_ms: backoff.cap_ms,
        jitter_percent: u8_from_pb("jitter_percent", backoff.jitter_percent)?,
    })
}

pub(super) fn settings_from_pb(
    settings: Option<pb::QueueSettings>,
) -> Result<QueueSettings, WireError> {
    let settings = settings.ok_or(WireError::Missing("settings"))?;
    let dead = match pb::DeadPolicy::try_from(settings.dead) {
        Ok(pb::DeadPolicy::Keep) => DeadPolicy::Keep,
        Ok(pb::DeadPolicy::Drop) => DeadPolicy::Drop,
        Ok(pb::DeadPolicy::Unspecified) | Err(_) => {
            let got = settings.dead.into();
            return Err(WireError::UnknownValue {
                field: "dead policy",
                got,
            });
        }
    };
    Ok(QueueSettings {
        lease_ms: settings.lease_ms,
        max_attempts: u16_from_pb("max_attempts", settings.max_attempts)?,
        backoff: backoff_from_pb(settings.backoff.ok_or(WireError::Missing("backoff"))?)?,
        idempotency_window_ms: settings.idempotency_window_ms,
        idempotency_keys_max: settings.idempotency_keys_max,
        jobs_max: settings.jobs_max,
        bytes_max: settings.bytes_max,
        retain: settings.retain,
        dead,
        partitions: u8_from_pb("partitions", settings.partitions)?,
    })
}

/// An absent filter lets every job through.
pub(super) fn filter_from_pb(filter: Option<pb::JobFilter>) -> Result<JobFilter, WireError> {
    let filter = filter.unwrap_or_default();
    Ok(JobFilter {
        reason_contains: filter.reason_contains,
        priority: filter
            .priority
            .map(|class| u8_from_pb("priority", class))
            .transpose()?,
        enqueued_from_ms: filter.enqueued_from_ms,
        enqueued_before_ms: filter.enqueued_before_ms,
        attempts_min: filter.attempts_min,
    })
}

fn change_from_pb(op: pb::ChangePartitions) -> Result<PartitionChange, WireError> {
    let config = |config: pb::PartitionConfig| {
        Ok(PartitionConfig {
            version: config.version,
            paused: config.paused,
            draining: config.draining,
            settings: settings_from_pb(config.settings)?,
        })
    };
    Ok(PartitionChange {
        home: group_from_pb(op.home)?,
        home_index: LogIndex(op.home_index),
        queue: queue_from_pb(op.queue)?,
        partitions: try_each(op.partitions, partition_from_pb)?,
        config: op.config.map(config).transpose()?,
    })
}

pub(super) fn token_from_pb(token: &pb::Token) -> Result<Token, WireError> {
    token_from_parts(&token.job, token.lease_gen)
}

pub(super) fn token_from_parts(job: &[u8], lease_gen: u32) -> Result<Token, WireError> {
    Ok(Token {
        job: id_from_pb("a token's job", job)?,
        lease_gen,
    })
}

pub(super) fn id_from_pb(field: &'static str, bytes: &[u8]) -> Result<JobId, WireError> {
    let bytes = bytes.try_into().map_err(|_| WireError::BadJobId(field))?;
    JobId::from_bytes(bytes).map_err(|_| WireError::BadJobId(field))
}

fn ids_from_pb(ids: Vec<Bytes>) -> Result<Vec<JobId>, WireError> {
    try_each(ids, |id| id_from_pb("a job", &id))
}

pub(super) fn queue_from_pb(raw: u64) -> Result<QueueUid, WireError> {
    let max = (1 << 40) - 1;
    QueueUid::from_u64(raw).ok_or(WireError::OutOfRange {
        field: "queue",
        got: raw,
        min: 0,
        max,
    })
}

pub(super) fn group_from_pb(raw: u32) -> Result<GroupId, WireError> {
    u16_from_pb("group", raw).map(GroupId)
}

pub(super) fn partition_from_pb(raw: u32) -> Result<Partition, WireError> {
    u8_from_pb("partition", raw).map(Partition)
}

pub(super) fn u8_from_pb(field: &'static str, raw: u32) -> Result<u8, WireError> {
    let max = u8::MAX.into();
    u8::try_from(raw).map_err(|_| WireError::OutOfRange {
        field,
        got: raw.into(),
        min: 0,
        max,
    })
}

pub(super) fn u16_from_pb(field: &'static str, raw: u32) -> Result<u16, WireError> {
    let max = u16::MAX.into();
    u16::try_from(raw).map_err(|_| WireError::OutOfRange {
        field,
        got: raw.into(),
        min: 0,
        max,
    })
}
