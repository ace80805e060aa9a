//! Hellos, requests and replies <-> frames.
//!
//! Encoders append a whole frame to a buffer. [`decode_request`] lets through only what is inside
//! every bound and fit for a client; a leader's own commands are refused by name.

use crate::base::code::Code;
use crate::base::ids::{ClusterId, GroupId, LogIndex, NodeId, SessionId, Term, Token};
use crate::base::limits::{
    HEADERS_BYTES_MAX, HEADERS_MAX, ITEMS_MAX, KEY_BYTES_MAX, PAYLOAD_BYTES_HARD_MAX,
    POLL_WAIT_MS_MAX, PRIORITIES, QUEUE_NAME_BYTES_MAX, REASON_BYTES_MAX, RESULT_BYTES_MAX,
};
use crate::base::units::WallTime;
use crate::queue::command::{
    Command, Enqueued, Grant, ItemOutcome, NewJob, Op, Outcome, QueueInfo, Rejection, SessionCall,
    Window,
};
use crate::queue::view::{Body, JobState, JobView, QueueStats};
use crate::wire::command::{
    backoff_from_pb, backoff_to_pb, command_from_pb, command_to_pb, headers_from_pb, headers_to_pb,
    id_from_pb, id_to_pb, partition_from_pb, queue_from_pb, settings_from_pb, settings_to_pb,
    token_from_parts, token_from_pb, token_to_pb, try_each, u8_from_pb, u16_from_pb,
};
use crate::wire::error::{WireError, malformed};
use crate::wire::frame::{FrameKind, encode_frame};
use crate::wire::generated as pb;
use crate::wire::message::{
    ClientHello, CommitStamp, ErrorReply, GroupStatus, LeasedJob, NodeAddresses, Reply, ReplyBody,
    Request, RequestBody, ServerHello, ShardStatus,
};
use bytes::{Bytes, BytesMut};
use pb::outcome::Kind as PbOutcome;
use pb::reply::Body as PbReply;
use pb::request::Body as PbRequest;
use prost::Message;

/// The protocol version that this build speaks; there is one so far.
pub const PROTOCOL_VERSION: u32 = 1;

fn encode_message(kind: FrameKind, message: &impl Message, out: &mut BytesMut) {
    encode_frame(kind, out, |out| {
        message
            .encode(out)
            .expect("a buffer that grows takes every message");
    });
}

/// Appends a client hello.
pub fn encode_client_hello(hello: &ClientHello, out: &mut BytesMut) {
    let message = pb::ClientHello {
        protocol_min: hello.protocol_min,
        protocol_max: hello.protocol_max,
        agent: hello.agent.clone(),
    };
    encode_message(FrameKind::ClientHello, &message, out);
}

/// The client hello of a frame's body.
///
/// # Errors
/// [`WireError`] if it is not one, or its versions are no range.
pub fn decode_client_hello(body: &Bytes) -> Result<ClientHello, WireError> {
    let hello = pb::ClientHello::decode(body.clone()).map_err(malformed("a client hello"))?;
    if hello.protocol_min == 0 || hello.protocol_min > hello.protocol_max {
        return Err(WireError::Contradiction(
            "protocol_min is from 1 and not above protocol_max",
        ));
    }
    Ok(ClientHello {
        protocol_min: hello.protocol_min,
        protocol_max: hello.protocol_max,
        agent: hello.agent,
    })
}

/// Appends a server hello.
pub fn encode_server_hello(hello: &ServerHello, out: &mut BytesMut) {
    let message = pb::ServerHello {
        protocol: hello.protocol,
        version: hello.version.clone(),
        cluster: Bytes::copy_from_slice(&hello.cluster.0),
        node: hello.node.0,
        shard: hello.shard.into(),
        groups: hello.groups,
        payload_bytes_max: hello.payload_bytes_max,
        nodes: hello
            .nodes
            .iter()
            .map(|node| pb::NodeAddresses {
                node: node.node.0,
                addresses: node.addresses.clone(),
            })
            .collect(),
    };
    encode_message(FrameKind::ServerHello, &message, out);
}

/// The server hello of a frame's body.
///
/// # Errors
/// [`WireError`] if it is not one, or what it says cannot be followed.
pub fn decode_server_hello(body: &Bytes) -> Result<ServerHello, WireError> {
    let hello = pb::ServerHello::decode(body.clone()).map_err(malformed("a server hello"))?;
    let cluster = hello
        .cluster
        .as_ref()
        .try_into()
        .map_err(|_| WireError::BadLength {
            field: "cluster",
            got: hello.cluster.len(),
            min: 16,
            max: 16,
        })?;
    if !hello.groups.is_power_of_two() || hello.groups > 1 << 16 {
        return Err(WireError::Contradiction(
            "groups is a power of two up to 65536",
        ));
    }
    let nodes = try_each(hello.nodes, |node| {
        if node.addresses.is_empty() {
            return Err(WireError::Missing("addresses of a node"));
        }
        Ok(NodeAddresses {
            node: NodeId(node.node),
            addresses: node.addresses,
        })
    })?;
    let own = nodes.iter().find(|listed| listed.node.0 == hello.node);
    let shards = own.map_or(0, |listed| listed.addresses.len());
    if usize::try_from(hello.shard).is_ok_and(|shard| shard >= shards) {
        return Err(WireError::Contradiction(
            "a server hello lists its own node with the shard that was reached",
        ));
    }
    Ok(ServerHello {
        protocol: hello.protocol,
        version: hello.version,
        cluster: ClusterId(cluster),
        node: NodeId(hello.node),
        shard: u16_from_pb("shard", hello.shard)?,
        groups: hello.groups,
        payload_bytes_max: hello.payload_bytes_max,
        nodes,
    })
}

/// Appends a request.
pub fn encode_request(request: &Request, out: &mut BytesMut) {
    let body = match &request.body {
        RequestBody::Command {
            group,
            command,
            wait_ms,
        } => PbRequest::Command(pb::GroupCommand {
            group: group.0.into(),
            command: Some(command_to_pb(command)),
            wait_ms: *wait_ms,
        }),
        RequestBody::GetJob { job } => PbRequest::GetJob(pb::GetJob {
            job: id_to_pb(*job),
        }),
        RequestBody::GetJobByKey {
            queue,
            partition,
            group,
            key,
        } => PbRequest::GetJobByKey(pb::GetJobByKey {
            queue: queue.to_u64(),
            partition: partition.0.into(),
            group: group.0.into(),
            key: key.clone(),
        }),
        RequestBody::Peek {
            queue,
            partition,
            group,
            state,
            limit,
        } => PbRequest::Peek(pb::Peek {
            queue: queue.to_u64(),
            partition: partition.0.into(),
            group: group.0.into(),
            state: *state as i32,
            limit: *limit,
        }),
        RequestBody::GetQueue { name, create } => PbRequest::GetQueue(pb::GetQueue {
            name: name.clone(),
            create: *create,
        }),
        RequestBody::ListQueues { group } => PbRequest::ListQueues(pb::ListQueues {
            group: group.0.into(),
        }),
        RequestBody::Heartbeat { sessions } => PbRequest::Heartbeat(pb::Heartbeat {
            sessions: sessions_to_pb(sessions),
        }),
        RequestBody::Status => PbRequest::Status(pb::Empty {}),
        RequestBody::Bye => PbRequest::Bye(pb::Empty {}),
    };
    let message = pb::Request {
        id: request.id,
        body: Some(body),
    };
    encode_message(FrameKind::Request, &message, out);
}

/// A request that is not let through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct RequestError {
    /// Its id, if it could be read: then it can be answered and the connection goes on.
    pub id: Option<u64>,
    /// What is wrong.
    pub error: WireError,
}

/// The request of a frame's body. The body is copied once, so that payloads, keys and values, which
/// are slices of the copy, do not hold a large read buffer.
///
/// # Errors
/// [`RequestError`] if it cannot be understood, is out of bounds, or is not for clients.
pub fn decode_request(body: &Bytes) -> Result<Request, RequestError> {
    request_from_bytes(Bytes::copy_from_slice(body)).map_err(|error| RequestError {
        id: read_id(body),
        error,
    })
}

fn request_from_bytes(body: Bytes) -> Result<Request, WireError> {
    let message = pb::Request::decode(body).map_err(malformed("a request"))?;
    if message.id == 0 {
        return Err(WireError::Missing("the id of a request, from 1,"));
    }
    let body = message
        .body
        .ok_or(WireError::UnknownOperation("a request"))?;
    Ok(Request {
        id: message.id,
        body: request_body_from_pb(body)?,
    })
}

fn request_body_from_pb(body: PbRequest) -> Result<RequestBody, WireError> {
    Ok(match body {
        PbRequest::Command(request) => {
            let message = request.command.ok_or(WireError::Missing("the command"))?;
            let mut command = command_from_pb(message)?;
            check_command(&mut command, request.wait_ms)?;
            RequestBody::Command {
                group: group_from_pb(request.group)?,
                command,
                wait_ms: request.wait_ms,
            }
        }
        PbRequest::GetJob(request) => RequestBody::GetJob {
            job: id_from_pb("job", &request.job)?,
        },
        PbRequest::GetJobByKey(request) => {
            check_len("key", request.key.len(), 1, KEY_BYTES_MAX)?;
            RequestBody::GetJobByKey {
                queue: queue_from_pb(request.queue)?,
                partition: partition_from_pb(request.partition)?,
                group: group_from_pb(request.group)?,
                key: request.key,
            }
        }
        PbRequest::Peek(request) => {
            check_range("limit", request.limit.into(), 1, ITEMS_MAX as u64)?;
            RequestBody::Peek {
                queue: queue_from_pb(request.queue)?,
                partition: partition_from_pb(request.partition)?,
                group: group_from_pb(request.group)?,
                state: state_from_pb(request.state)?,
                limit: request.limit,
            }
        }
        PbRequest::GetQueue(request) => {
            check_queue_name(&request.name)?;
            RequestBody::GetQueue {
                name: request.name,
                create: request.create,
            }
        }
        PbRequest::ListQueues(request) => RequestBody::ListQueues {
            group: group_from_pb(request.group)?,
        },
        PbRequest::Heartbeat(request) => {
            check_len("sessions", request.sessions.len(), 0, ITEMS_MAX)?;
            RequestBody::Heartbeat {
                sessions: sessions_from_pb(request.sessions)?,
            }
        }
        PbRequest::Status(_) => RequestBody::Status,
        PbRequest::Bye(_) => RequestBody::Bye,
    })
}

/// The id of a request whose rest may be garbage: field 1, if it comes first.
fn read_id(body: &[u8]) -> Option<u64> {
    let mut rest = body.strip_prefix(&[0x08])?;
    prost::encoding::decode_varint(&mut rest)
        .ok()
        .filter(|id| *id != 0)
}

/// Whether `name` can be the name of a queue.
#[must_use]
pub fn is_queue_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    (1..=QUEUE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

fn check_queue_name(name: &str) -> Result<(), WireError> {
    if is_queue_name(name) {
        Ok(())
    } else {
        Err(WireError::BadQueueName)
    }
}

fn check_range(field: &'static str, got: u64, min: u64, max: u64) -> Result<(), WireError> {
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

fn check_len(field: &'static str, got: usize, min: usize, max: usize) -> Result<(), WireError> {
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

/// Every bound of a client's command. Reasons, which are for people, are cut instead of refused.
fn check_command(command: &mut Command, wait_ms: u32) -> Result<(), WireError> {
    if let Some(call) = &command.session {
        check_session_call(call, matches!(command.op, Op::Lease { .. }))?;
    }
    check_range("wait_ms", wait_ms.into(), 0, POLL_WAIT_MS_MAX)?;
    if wait_ms > 0 && !matches!(command.op, Op::Lease { .. }) {
        return Err(WireError::Contradiction("only a lease can wait"));
    }
    let items = match &mut command.op {
        Op::EndLeases { .. } => return Err(WireError::LeaderOnly("EndLeases")),
        Op::DropSession { .. } => return Err(WireError::LeaderOnly("DropSession")),
        Op::Advance { .. } => return Err(WireError::LeaderOnly("Advance")),
        Op::SetWallOffset { .. } => return Err(WireError::LeaderOnly("SetWallOffset")),
        Op::OpenSession { .. } | Op::CloseSession { .. } | Op::Attach { .. } => {
            return if command.session.is_none() {
                Ok(())
            } else {
                Err(WireError::Contradiction(
                    "a command on a session is not numbered in one",
                ))
            };
        }
        Op::CreateQueue { name, .. } => return check_queue_name(name),
        Op::AlterQueue { .. }
        | Op::DeleteQueue { .. }
        | Op::PauseQueue { .. }
        | Op::ResumeQueue { .. }
        | Op::Purge { .. } => return Ok(()),
        Op::Lease { max, .. } => {
            return check_range("max", (*max).into(), 1, ITEMS_MAX as u64);
        }
        Op::Enqueue { items, .. } => {
            items.iter().try_for_each(check_job)?;
            items.len()
        }
        Op::Ack { items } => {
            for item in items.iter() {
                let len = item.result.as_ref().map_or(0, Bytes::len);
                check_len("result", len, 0, RESULT_BYTES_MAX)?;
            }
            items.len()
        }
        Op::Nack { items } => {
            for item in items.iter_mut() {
                item.reason.truncate(REASON_BYTES_MAX);
            }
            items.len()
        }
        Op::Bury { items } => {
            for (_, reason) in items.iter_mut() {
                reason.truncate(REASON_BYTES_MAX);
            }
            items.len()
        }
        Op::Extend { items } => items.len(),
        Op::Release { items } => items.len(),
        Op::Cancel { items } | Op::RequeueDead { items } | Op::DeleteDead { items } => items.len(),
    };
    check_len("items", items, 1, ITEMS_MAX)
}

fn check_session_call(call: &SessionCall, is_lease: bool) -> Result<(), WireError> {
    if call.id.0 == 0 {
        return Err(WireError::Missing("the id of a session, from 1,"));
    }
    check_range("lowest", call.lowest, 1, call.seq)?;
    if is_lease != (call.window == Window::Polls) {
        return Err(WireError::Contradiction(
            "leases, and only they, are numbered in the window of polls",
        ));
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
    check_len("headers in bytes", header_bytes, 0, HEADERS_BYTES_MAX)
}

fn group_from_pb(raw: u32) -> Result<GroupId, WireError> {
    u16_from_pb("group", raw).map(GroupId)
}

fn sessions_to_pb(sessions: &[(GroupId, SessionId)]) -> Vec<pb::GroupSession> {
    sessions
        .iter()
        .map(|(group, session)| pb::GroupSession {
            group: group.0.into(),
            session: session.0,
        })
        .collect()
}

fn sessions_from_pb(
    sessions: Vec<pb::GroupSession>,
) -> Result<Vec<(GroupId, SessionId)>, WireError> {
    try_each(sessions, |item| {
        Ok((group_from_pb(item.group)?, SessionId(item.session)))
    })
}

fn state_from_pb(raw: i32) -> Result<JobState, WireError> {
    u8::try_from(raw)
        .ok()
        .and_then(JobState::from_u8)
        .ok_or(WireError::UnknownValue {
            field: "state",
            got: raw.into(),
        })
}

/// Appends a reply.
pub fn encode_reply(reply: &Reply, out: &mut BytesMut) {
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
    let message = pb::Reply {
        id: reply.id,
        stamp: reply.stamp.map(|stamp| pb::CommitStamp {
            group: stamp.group.0.into(),
            term: stamp.term.0,
            index: stamp.index.0,
        }),
        body: Some(body),
    };
    encode_message(FrameKind::Reply, &message, out);
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
            })
            .collect(),
    }
}

/// The reply of a frame's body; copied once, as in [`decode_request`]. A code that this build does
/// not know becomes [`Code::Unknown`] with the number in the message.
///
/// # Errors
/// [`WireError`] if it cannot be understood.
pub fn decode_reply(body: &Bytes) -> Result<Reply, WireError> {
    let copy = Bytes::copy_from_slice(body);
    let message = pb::Reply::decode(copy).map_err(malformed("a reply"))?;
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
        PbOutcome::Queue(info) => Outcome::Queue(info_from_pb(info)?),
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
        oldest_pending: stats.oldest_pending_at_ms.map(WallTime),
    }
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
            })
        })?,
    })
}
