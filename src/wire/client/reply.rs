//! Replies <-> frames.

use super::{
    check_len, cursor_from_pb, cursor_to_pb, member_id_from_pb, member_id_to_pb, put_message,
    sessions_from_pb, sessions_to_pb, state_from_pb, worker_from_pb, worker_to_pb,
};
use crate::base::code::Code;
use crate::base::ids::{LogIndex, SessionId, Term, Token};
use crate::base::members::{Member, MemberRole};
use crate::base::units::WallTime;
use crate::queue::command::{Enqueued, Grant, ItemOutcome, Outcome, QueueInfo, Rejection};
use crate::queue::view::{Body, FinishedJob, FinishedPage, JobEnd, JobPage, JobView, QueueStats};
use crate::wire::command::{
    backoff_from_pb, backoff_to_pb, group_from_pb, headers_from_pb, headers_to_pb, id_from_pb,
    id_to_pb, queue_from_pb, settings_from_pb, settings_to_pb, token_from_parts, token_from_pb,
    token_to_pb, try_each, u8_from_pb, u16_from_pb,
};
use crate::wire::error::{WireError, malformed};
use crate::wire::frame::{FrameKind, encode_frame};
use crate::wire::generated as pb;
use crate::wire::hot;
use crate::wire::message::{
    CommitStamp, ErrorReply, GroupStatus, LeasedJob, Reply, ReplyBody, ShardStatus, WaitingNode,
    WorkerSession,
};
use bytes::{Bytes, BytesMut};
use pb::outcome::Kind as PbOutcome;
use pb::reply::Body as PbReply;
use prost::Message;

/// Appends a reply.
pub fn encode_reply(reply: &Reply, out: &mut BytesMut) {
    encode_frame(FrameKind::Reply, out, |out| {
        if !hot::put_reply(reply, out) {
            put_message(&reply_to_pb(reply), out);
        }
    });
}

pub(in crate::wire) fn reply_to_pb(reply: &Reply) -> pb::Reply {
    let body = match &reply.body {
        ReplyBody::Outcome(outcome) => PbReply::Outcome(outcome_to_pb(outcome)),
        ReplyBody::Leased(jobs) => PbReply::Leased(pb::Leased {
            jobs: jobs
                .iter()
                .map(|leased| pb::LeasedJob {
                    lease_gen: leased.lease_gen,
                    lease_ms: leased.lease_ms,
                    job: Some(view_to_pb(&leased.job)),
                })
                .collect(),
        }),
        ReplyBody::Job(job) => PbReply::Job(view_to_pb(job)),
        ReplyBody::Jobs(jobs) => PbReply::Jobs(pb::Jobs {
            jobs: jobs.iter().map(view_to_pb).collect(),
        }),
        ReplyBody::Queues(queues) => PbReply::Queues(pb::Queues {
            queues: queues
                .iter()
                .map(|(info, stats)| pb::QueueWithStats {
                    info: Some(info_to_pb(info)),
                    stats: Some(stats_to_pb(stats)),
                })
                .collect(),
        }),
        ReplyBody::Status(status) => PbReply::Status(status_to_pb(status)),
        ReplyBody::Finished(job) => PbReply::Finished(finished_to_pb(job)),
        ReplyBody::Ready(jobs) => PbReply::Ready(pb::Ready { jobs: *jobs }),
        ReplyBody::JobPage(page) => PbReply::JobPage(pb::JobPage {
            jobs: page.jobs.iter().map(view_to_pb).collect(),
            matched: page.matched,
            scanned: page.scanned,
            next: page.next.map(cursor_to_pb),
        }),
        ReplyBody::FinishedPage(page) => PbReply::FinishedPage(pb::FinishedPage {
            jobs: page.jobs.iter().map(finished_to_pb).collect(),
            next: page.next,
        }),
        ReplyBody::Partition(stats) => PbReply::Partition(stats_to_pb(stats)),
        ReplyBody::Workers(workers) => PbReply::Workers(pb::Workers {
            workers: workers.iter().map(session_to_pb).collect(),
        }),
        ReplyBody::HeartbeatTaken { unknown } => PbReply::HeartbeatTaken(pb::HeartbeatTaken {
            unknown: sessions_to_pb(unknown),
        }),
        ReplyBody::Error(error) => PbReply::Error(pb::ErrorReply {
            code: error.code.number().into(),
            message: error.message.clone(),
            leader: error.leader.clone(),
            maybe_applied: error.maybe_applied,
        }),
    };
    pb::Reply {
        id: reply.id,
        stamp: reply.stamp.map(|stamp| pb::CommitStamp {
            group: stamp.group.0.into(),
            term: stamp.term.0,
            index: stamp.index.0,
        }),
        body: Some(body),
    }
}

fn outcome_to_pb(outcome: &Outcome) -> pb::Outcome {
    let kind = match outcome {
        Outcome::Done => PbOutcome::Done(pb::Empty {}),
        Outcome::Rejected(rejection) => PbOutcome::Rejected(rejection_to_pb(*rejection)),
        Outcome::SessionOpened { session, epoch } => PbOutcome::SessionOpened(pb::SessionOpened {
            session: session.0,
            epoch: *epoch,
        }),
        Outcome::Attached { epoch, tokens } => PbOutcome::Attached(pb::Attached {
            epoch: *epoch,
            tokens: tokens.iter().map(token_to_pb).collect(),
        }),
        Outcome::Queue(info) => PbOutcome::Queue(info_to_pb(info)),
        Outcome::Purged { jobs } => PbOutcome::Purged(*jobs),
        Outcome::Enqueued(items) => PbOutcome::Enqueued(pb::EnqueuedJobs {
            items: items.iter().map(enqueued_to_pb).collect(),
        }),
        Outcome::Leased(grants) => PbOutcome::Grants(pb::Grants {
            items: grants
                .iter()
                .map(|grant| pb::Grant {
                    job: id_to_pb(grant.token.job),
                    lease_gen: grant.token.lease_gen,
                    attempt: grant.attempt.into(),
                    lease_ms: grant.lease_ms,
                })
                .collect(),
        }),
        Outcome::Items(items) => PbOutcome::Items(pb::ItemOutcomes {
            items: items
                .iter()
                .map(|item| match item {
                    ItemOutcome::Done => 0,
                    ItemOutcome::Rejected(rejection) => rejection_to_pb(*rejection),
                })
                .collect(),
        }),
        Outcome::Swept {
            matched,
            scanned,
            next_seq,
        } => PbOutcome::Swept(pb::Swept {
            matched: *matched,
            scanned: *scanned,
            next_seq: *next_seq,
        }),
        Outcome::Advanced { handled } => PbOutcome::Advanced(*handled),
    };
    pb::Outcome { kind: Some(kind) }
}

fn rejection_to_pb(rejection: Rejection) -> u32 {
    u32::from(rejection as u16)
}

fn enqueued_to_pb(item: &Enqueued) -> pb::EnqueuedJob {
    use pb::enqueued_job::Kind;
    pb::EnqueuedJob {
        kind: Some(match item {
            Enqueued::New(id) => Kind::New(id_to_pb(*id)),
            Enqueued::Existing(id) => Kind::Existing(id_to_pb(*id)),
            Enqueued::Rejected(rejection) => Kind::Rejected(rejection_to_pb(*rejection)),
        }),
    }
}

fn info_to_pb(info: &QueueInfo) -> pb::QueueInfo {
    pb::QueueInfo {
        uid: info.uid.to_u64(),
        name: info.name.clone(),
        version: info.version,
        paused: info.paused,
        settings: Some(settings_to_pb(&info.settings)),
        groups: info.groups.iter().map(|group| group.0.into()).collect(),
        created: info.created,
        draining: info.draining,
    }
}

fn stats_to_pb(stats: &QueueStats) -> pb::QueueStats {
    pb::QueueStats {
        pending: stats.pending,
        delayed: stats.delayed,
        in_flight: stats.in_flight,
        dead: stats.dead,
        bytes: stats.bytes,
        keys: stats.keys,
        enqueued_total: stats.enqueued_total,
        leased_total: stats.leased_total,
        completed_total: stats.completed_total,
        nacked_total: stats.nacked_total,
        expired_total: stats.expired_total,
        dead_total: stats.dead_total,
        cancelled_total: stats.cancelled_total,
        oldest_pending_at_ms: stats.oldest_pending.map(|at| at.0),
        retained: stats.retained,
    }
}

fn finished_to_pb(job: &FinishedJob) -> pb::FinishedJob {
    pb::FinishedJob {
        id: id_to_pb(job.id),
        end: job.end as i32,
        attempts: job.attempts.into(),
        enqueued_at_ms: job.enqueued_at.0,
        finished_at_ms: job.finished_at.0,
        result: job.result.clone(),
        place: job.place,
    }
}

fn session_to_pb(worker: &WorkerSession) -> pb::WorkerSession {
    pb::WorkerSession {
        session: worker.session.0,
        leases: worker.leases,
        waiting: worker.waiting,
        silent_ms: worker.silent_ms,
        ended: worker.ended,
        worker: worker.worker.as_ref().map(worker_to_pb),
    }
}

fn view_to_pb(view: &JobView) -> pb::JobView {
    if let Some(token) = view.token {
        assert_eq!(token.job, view.id, "the token of a job is of that job");
    }
    pb::JobView {
        id: id_to_pb(view.id),
        state: view.state as i32,
        priority: view.priority.into(),
        attempts: view.attempts.into(),
        max_attempts: view.max_attempts.into(),
        run_at_ms: view.run_at.map(|at| at.0),
        remaining_ms: view.remaining_ms,
        enqueued_at_ms: view.enqueued_at.0,
        expires_at_ms: view.expires_at.map(|at| at.0),
        lease_gen: view.token.map(|token| token.lease_gen),
        owner: view.owner.map(|owner| owner.0),
        last_failure: view.last_failure.clone(),
        payload: view.body.payload.clone(),
        headers: headers_to_pb(&view.body.headers),
        key: view.body.key.clone(),
        run_limit_ms: view.body.run_limit_ms,
        backoff: view.body.backoff.as_ref().map(backoff_to_pb),
    }
}

fn status_to_pb(status: &ShardStatus) -> pb::ShardStatus {
    pb::ShardStatus {
        shard: status.shard.into(),
        shards: status.shards.into(),
        uptime_ms: status.uptime_ms,
        connections: status.connections,
        log_bytes_since_checkpoint: status.log_bytes_since_checkpoint,
        durable_lsn: status.durable_lsn,
        disk_full: status.disk_full,
        groups: status
            .groups
            .iter()
            .map(|group| pb::GroupStatus {
                group: group.group.0.into(),
                term: group.term.0,
                leader: group.leader,
                commit: group.commit.0,
                applied: group.applied.0,
                base: group.base.0,
                sessions: group.sessions,
                halted: group.halted.clone(),
                machine_version: group.machine_version.into(),
                members_unsettled: group.members_unsettled,
            })
            .collect(),
        members: status
            .members
            .iter()
            .map(|member| pb::ClusterMember {
                id: Some(member_id_to_pb(&member.voter)),
                role: member.role as u32,
            })
            .collect(),
        waiting: status
            .waiting
            .iter()
            .map(|node| pb::WaitingNode {
                id: Some(member_id_to_pb(&node.id)),
                addresses: node.addresses.clone(),
            })
            .collect(),
        draining: status.draining,
        zone: status.zone.clone(),
    }
}

/// The reply of a frame's body; if it holds payloads it is copied once, so that they, which are slices
/// of the copy, do not hold a large read buffer. A code that this build does not know becomes
/// [`Code::Unknown`] with the number in the message.
///
/// # Errors
/// [`WireError`] if it cannot be understood.
pub fn decode_reply(body: &Bytes) -> Result<Reply, WireError> {
    match hot::read_reply(body) {
        Some(reply) => Ok(reply),
        None => reply_from_pb(Bytes::copy_from_slice(body)),
    }
}

pub(in crate::wire) fn reply_from_pb(body: Bytes) -> Result<Reply, WireError> {
    let message = pb::Reply::decode(body).map_err(malformed("a reply"))?;
    let stamp = message.stamp.map(stamp_from_pb).transpose()?;
    let body = message.body.ok_or(WireError::UnknownOperation("a reply"))?;
    Ok(Reply {
        id: message.id,
        stamp,
        body: reply_body_from_pb(body)?,
    })
}

fn stamp_from_pb(stamp: pb::CommitStamp) -> Result<CommitStamp, WireError> {
    Ok(CommitStamp {
        group: group_from_pb(stamp.group)?,
        term: Term(stamp.term),
        index: LogIndex(stamp.index),
    })
}

fn reply_body_from_pb(body: PbReply) -> Result<ReplyBody, WireError> {
    Ok(match body {
        PbReply::Outcome(outcome) => ReplyBody::Outcome(outcome_from_pb(outcome)?),
        PbReply::Leased(leased) => ReplyBody::Leased(try_each(leased.jobs, |leased| {
            Ok(LeasedJob {
                lease_gen: leased.lease_gen,
                lease_ms: leased.lease_ms,
                job: view_from_pb(leased.job.ok_or(WireError::Missing("a leased job"))?)?,
            })
        })?),
        PbReply::Job(job) => ReplyBody::Job(Box::new(view_from_pb(job)?)),
        PbReply::Jobs(jobs) => ReplyBody::Jobs(try_each(jobs.jobs, view_from_pb)?),
        PbReply::Queues(queues) => ReplyBody::Queues(try_each(queues.queues, |queue| {
            Ok((
                info_from_pb(queue.info.ok_or(WireError::Missing("a queue's info"))?)?,
                stats_from_pb(&queue.stats.unwrap_or_default()),
            ))
        })?),
        PbReply::Status(status) => ReplyBody::Status(status_from_pb(status)?),
        PbReply::Finished(job) => ReplyBody::Finished(Box::new(finished_from_pb(job)?)),
        PbReply::Ready(ready) => ReplyBody::Ready(ready.jobs),
        PbReply::JobPage(page) => ReplyBody::JobPage(JobPage {
            jobs: try_each(page.jobs, view_from_pb)?,
            matched: page.matched,
            scanned: page.scanned,
            next: page.next.map(cursor_from_pb).transpose()?,
        }),
        PbReply::FinishedPage(page) => ReplyBody::FinishedPage(FinishedPage {
            jobs: try_each(page.jobs, finished_from_pb)?,
            next: page.next,
        }),
        PbReply::Partition(stats) => ReplyBody::Partition(Box::new(stats_from_pb(&stats))),
        PbReply::Workers(workers) => {
            ReplyBody::Workers(try_each(workers.workers, session_from_pb)?)
        }
        PbReply::HeartbeatTaken(taken) => ReplyBody::HeartbeatTaken {
            unknown: sessions_from_pb(taken.unknown)?,
        },
        PbReply::Error(error) => ReplyBody::Error(error_from_pb(error)),
    })
}

fn error_from_pb(error: pb::ErrorReply) -> ErrorReply {
    let code = u16::try_from(error.code).ok().and_then(Code::from_number);
    ErrorReply {
        code: code.unwrap_or(Code::Unknown),
        message: match code {
            Some(_) => error.message,
            None => format!("RRQ-{:04}: {}", error.code, error.message),
        },
        leader: error.leader,
        maybe_applied: error.maybe_applied,
    }
}

fn outcome_from_pb(outcome: pb::Outcome) -> Result<Outcome, WireError> {
    let kind = outcome
        .kind
        .ok_or(WireError::UnknownOperation("an outcome"))?;
    Ok(match kind {
        PbOutcome::Done(_) => Outcome::Done,
        PbOutcome::Rejected(raw) => Outcome::Rejected(rejection_from_pb(raw)?),
        PbOutcome::SessionOpened(opened) => Outcome::SessionOpened {
            session: SessionId(opened.session),
            epoch: opened.epoch,
        },
        PbOutcome::Attached(attached) => Outcome::Attached {
            epoch: attached.epoch,
            tokens: try_each(attached.tokens, |token| token_from_pb(&token))?,
        },
        PbOutcome::Queue(info) => Outcome::Queue(Box::new(info_from_pb(info)?)),
        PbOutcome::Purged(jobs) => Outcome::Purged { jobs },
        PbOutcome::Enqueued(jobs) => Outcome::Enqueued(try_each(jobs.items, enqueued_from_pb)?),
        PbOutcome::Grants(grants) => Outcome::Leased(try_each(grants.items, |grant| {
            Ok(Grant {
                token: token_from_parts(&grant.job, grant.lease_gen)?,
                attempt: u16_from_pb("attempt", grant.attempt)?,
                lease_ms: grant.lease_ms,
            })
        })?),
        PbOutcome::Items(items) => Outcome::Items(try_each(items.items, |raw| match raw {
            0 => Ok(ItemOutcome::Done),
            raw => rejection_from_pb(raw).map(ItemOutcome::Rejected),
        })?),
        PbOutcome::Swept(swept) => Outcome::Swept {
            matched: swept.matched,
            scanned: swept.scanned,
            next_seq: swept.next_seq,
        },
        PbOutcome::Advanced(handled) => Outcome::Advanced { handled },
    })
}

fn rejection_from_pb(raw: u32) -> Result<Rejection, WireError> {
    u16::try_from(raw)
        .ok()
        .and_then(Rejection::from_u16)
        .ok_or(WireError::UnknownValue {
            field: "rejection",
            got: raw.into(),
        })
}

fn enqueued_from_pb(item: pb::EnqueuedJob) -> Result<Enqueued, WireError> {
    use pb::enqueued_job::Kind;
    Ok(
        match item
            .kind
            .ok_or(WireError::Missing("the outcome of a job"))?
        {
            Kind::New(id) => Enqueued::New(id_from_pb("a new job", &id)?),
            Kind::Existing(id) => Enqueued::Existing(id_from_pb("an existing job", &id)?),
            Kind::Rejected(raw) => Enqueued::Rejected(rejection_from_pb(raw)?),
        },
    )
}

fn info_from_pb(info: pb::QueueInfo) -> Result<QueueInfo, WireError> {
    check_len("groups of a queue", info.groups.len(), 1, 256)?;
    Ok(QueueInfo {
        uid: queue_from_pb(info.uid)?,
        name: info.name,
        version: info.version,
        paused: info.paused,
        draining: info.draining,
        groups: try_each(info.groups, group_from_pb)?,
        settings: settings_from_pb(info.settings)?,
        created: info.created,
    })
}

fn stats_from_pb(stats: &pb::QueueStats) -> QueueStats {
    QueueStats {
        pending: stats.pending,
        delayed: stats.delayed,
        in_flight: stats.in_flight,
        dead: stats.dead,
        bytes: stats.bytes,
        keys: stats.keys,
        enqueued_total: stats.enqueued_total,
        leased_total: stats.leased_total,
        completed_total: stats.completed_total,
        nacked_total: stats.nacked_total,
        expired_total: stats.expired_total,
        dead_total: stats.dead_total,
        cancelled_total: stats.cancelled_total,
        retained: stats.retained,
        oldest_pending: stats.oldest_pending_at_ms.map(WallTime),
    }
}

fn finished_from_pb(job: pb::FinishedJob) -> Result<FinishedJob, WireError> {
    let end = u8::try_from(job.end).ok().and_then(JobEnd::from_u8);
    Ok(FinishedJob {
        id: id_from_pb("a finished job", &job.id)?,
        end: end.ok_or(WireError::UnknownValue {
            field: "end",
            got: job.end.into(),
        })?,
        attempts: u16_from_pb("attempts", job.attempts)?,
        enqueued_at: WallTime(job.enqueued_at_ms),
        finished_at: WallTime(job.finished_at_ms),
        result: job.result,
        place: job.place,
    })
}

fn session_from_pb(worker: pb::WorkerSession) -> Result<WorkerSession, WireError> {
    Ok(WorkerSession {
        session: SessionId(worker.session),
        leases: worker.leases,
        waiting: worker.waiting,
        silent_ms: worker.silent_ms,
        ended: worker.ended,
        worker: worker.worker.map(worker_from_pb).transpose()?,
    })
}

fn view_from_pb(view: pb::JobView) -> Result<JobView, WireError> {
    let id = id_from_pb("a job", &view.id)?;
    Ok(JobView {
        id,
        state: state_from_pb(view.state)?,
        priority: u8_from_pb("priority", view.priority)?,
        attempts: u16_from_pb("attempts", view.attempts)?,
        max_attempts: u16_from_pb("max_attempts", view.max_attempts)?,
        run_at: view.run_at_ms.map(WallTime),
        remaining_ms: view.remaining_ms,
        enqueued_at: WallTime(view.enqueued_at_ms),
        expires_at: view.expires_at_ms.map(WallTime),
        token: view.lease_gen.map(|lease_gen| Token { job: id, lease_gen }),
        owner: view.owner.map(SessionId),
        last_failure: view.last_failure,
        body: Body {
            payload: view.payload,
            headers: headers_from_pb(view.headers),
            key: view.key,
            run_limit_ms: view.run_limit_ms,
            backoff: view.backoff.map(backoff_from_pb).transpose()?,
        },
    })
}

fn status_from_pb(status: pb::ShardStatus) -> Result<ShardStatus, WireError> {
    Ok(ShardStatus {
        shard: u16_from_pb("shard", status.shard)?,
        shards: u16_from_pb("shards", status.shards)?,
        uptime_ms: status.uptime_ms,
        connections: status.connections,
        log_bytes_since_checkpoint: status.log_bytes_since_checkpoint,
        durable_lsn: status.durable_lsn,
        disk_full: status.disk_full,
        groups: try_each(status.groups, |group| {
            Ok(GroupStatus {
                group: group_from_pb(group.group)?,
                term: Term(group.term),
                leader: group.leader,
                commit: LogIndex(group.commit),
                applied: LogIndex(group.applied),
                base: LogIndex(group.base),
                sessions: group.sessions,
                halted: group.halted,
                machine_version: u16_from_pb("machine version", group.machine_version)?,
                members_unsettled: group.members_unsettled,
            })
        })?,
        members: try_each(status.members, |member| {
            let voter = member.id.as_ref().ok_or(WireError::Missing("id"))?;
            let role = MemberRole::from_u32(member.role);
            Ok(Member {
                voter: member_id_from_pb(voter)?,
                role: role.ok_or(WireError::Contradiction(
                    "a member has a role that is known",
                ))?,
            })
        })?,
        waiting: try_each(status.waiting, |node| {
            let id = node.id.as_ref().ok_or(WireError::Missing("id"))?;
            Ok(WaitingNode {
                id: member_id_from_pb(id)?,
                addresses: node.addresses,
            })
        })?,
        draining: status.draining,
        zone: status.zone,
    })
}
