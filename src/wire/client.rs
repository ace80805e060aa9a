//! Hellos and requests <-> frames; replies are in `client/reply.rs`.
//!
//! Encoders append a whole frame to a buffer. [`decode_request`] lets through only what is inside
//! every bound and fit for a client; a leader's own commands are refused by name.

pub(super) mod reply;

pub use reply::{decode_reply, encode_reply};

use crate::base::ids::{ClusterId, DiskId, GroupId, NodeId, SessionId, Voter};
use crate::base::limits::{ITEMS_MAX, KEY_BYTES_MAX, MEMBER_STEPS_MAX, REASON_BYTES_MAX};
use crate::queue::command::{Command, Op, SessionCall, Window};
use crate::queue::view::{JobCursor, JobScan, JobState};
use crate::wire::bounds::{
    check_filter, check_len, check_op, check_queue_name, check_range, check_wait, check_worker,
};
use crate::wire::command::{
    command_from_pb, command_to_pb, filter_from_pb, filter_to_pb, group_from_pb, id_from_pb,
    id_to_pb, partition_from_pb, queue_from_pb, try_each, u8_from_pb, u16_from_pb,
};
use crate::wire::error::{WireError, malformed};
use crate::wire::fields::check_fields;
use crate::wire::frame::{FrameKind, encode_frame};
use crate::wire::generated as pb;
use crate::wire::hot;
use crate::wire::message::{
    ClientHello, MemberChange, NodeAddresses, Request, RequestBody, ServerHello, WorkerInfo,
};
use bytes::{Bytes, BytesMut};
use pb::request::Body as PbRequest;
use prost::Message;
use prost::encoding::decode_varint;

/// The protocol version that this build speaks; there is one so far.
pub const PROTOCOL_VERSION: u32 = 1;

fn encode_message(kind: FrameKind, message: &impl Message, out: &mut BytesMut) {
    encode_frame(kind, out, |out| put_message(message, out));
}

fn put_message(message: &impl Message, out: &mut BytesMut) {
    message
        .encode(out)
        .expect("a buffer that grows takes every message");
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
    encode_frame(FrameKind::Request, out, |out| {
        let is_written = match &request.body {
            RequestBody::Command {
                group,
                command,
                wait_ms,
            } => hot::put_request(request.id, *group, command, *wait_ms, out),
            _ => false,
        };
        if !is_written {
            put_message(&request_to_pb(request), out);
        }
    });
}

fn request_to_pb(request: &Request) -> pb::Request {
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
        RequestBody::WaitJob { job, wait_ms } => PbRequest::WaitJob(pb::WaitJob {
            job: id_to_pb(*job),
            wait_ms: *wait_ms,
        }),
        RequestBody::Watch {
            queue,
            partition,
            group,
            wait_ms,
        } => PbRequest::Watch(pb::Watch {
            queue: queue.to_u64(),
            partition: partition.0.into(),
            group: group.0.into(),
            wait_ms: *wait_ms,
        }),
        RequestBody::ScanJobs { group, scan } => PbRequest::ScanJobs(scan_to_pb(*group, scan)),
        RequestBody::ScanFinished {
            queue,
            partition,
            group,
            before,
            limit,
        } => PbRequest::ScanFinished(pb::ScanFinished {
            queue: queue.to_u64(),
            partition: partition.0.into(),
            group: group.0.into(),
            before: *before,
            limit: *limit,
        }),
        RequestBody::GetPartition {
            queue,
            partition,
            group,
        } => PbRequest::GetPartition(pb::GetPartition {
            queue: queue.to_u64(),
            partition: partition.0.into(),
            group: group.0.into(),
        }),
        RequestBody::ListWorkers { group } => PbRequest::ListWorkers(pb::ListWorkers {
            group: group.0.into(),
        }),
        RequestBody::Heartbeat { sessions, worker } => PbRequest::Heartbeat(pb::Heartbeat {
            sessions: sessions_to_pb(sessions),
            worker: worker.as_ref().map(worker_to_pb),
        }),
        RequestBody::ChangeMembers(change) => PbRequest::ChangeMembers(member_change_to_pb(change)),
        RequestBody::Drain { on } => PbRequest::Drain(pb::Drain { on: *on }),
        RequestBody::Status => PbRequest::Status(pb::Empty {}),
        RequestBody::Bye => PbRequest::Bye(pb::Empty {}),
    };
    pb::Request {
        id: request.id,
        body: Some(body),
    }
}

fn scan_to_pb(group: GroupId, scan: &JobScan) -> pb::ScanJobs {
    pb::ScanJobs {
        queue: scan.queue.to_u64(),
        partition: scan.partition.0.into(),
        group: group.0.into(),
        state: scan.state as i32,
        filter: Some(filter_to_pb(&scan.filter)),
        cursor: scan.cursor.map(cursor_to_pb),
        limit: scan.limit,
        bodies: scan.bodies,
    }
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

/// A request as a node takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// What is asked.
    pub request: Request,
    /// The bytes of its command, if they are those that
    /// [`encode_command`](crate::wire::command::encode_command) makes of it: a log entry may carry
    /// them as they are.
    pub payload: Option<Bytes>,
}

/// The request of a frame's body. Payloads, keys and values share memory with it, as long as they
/// live: who keeps one for long copies it.
///
/// # Errors
/// [`RequestError`] if it cannot be understood, is out of bounds, or is not for clients.
pub fn receive_request(body: &Bytes) -> Result<Received, RequestError> {
    received_from_bytes(body).map_err(|error| RequestError {
        id: read_id(body),
        error,
    })
}

/// The request alone, as [`receive_request`] takes it.
///
/// # Errors
/// As there.
pub fn decode_request(body: &Bytes) -> Result<Request, RequestError> {
    receive_request(body).map(|received| received.request)
}

fn received_from_bytes(body: &Bytes) -> Result<Received, WireError> {
    if let Some((mut request, encoded)) = hot::read_request(body) {
        if let RequestBody::Command {
            command, wait_ms, ..
        } = &mut request.body
        {
            // Of these operations nothing is cut to its bounds: they are as they were written.
            check_command(command, *wait_ms)?;
        }
        let payload = Some(encoded);
        return Ok(Received { request, payload });
    }
    let (request, payload) = (request_from_bytes(body)?, None);
    Ok(Received { request, payload })
}

fn request_from_bytes(body: &Bytes) -> Result<Request, WireError> {
    if body.len() > COUNTED_FROM_BYTES {
        check_fields("a request, in fields,", body, LEVELS_COUNTED, FIELDS_MAX)?;
    }
    let message = pb::Request::decode(body.clone()).map_err(malformed("a request"))?;
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
                worker: request.worker.map(worker_from_pb).transpose()?,
            }
        }
        PbRequest::WaitJob(request) => {
            check_wait(request.wait_ms)?;
            RequestBody::WaitJob {
                job: id_from_pb("job", &request.job)?,
                wait_ms: request.wait_ms,
            }
        }
        PbRequest::Watch(request) => {
            check_wait(request.wait_ms)?;
            RequestBody::Watch {
                queue: queue_from_pb(request.queue)?,
                partition: partition_from_pb(request.partition)?,
                group: group_from_pb(request.group)?,
                wait_ms: request.wait_ms,
            }
        }
        PbRequest::ScanJobs(request) => RequestBody::ScanJobs {
            group: group_from_pb(request.group)?,
            scan: scan_from_pb(request)?,
        },
        PbRequest::ScanFinished(request) => {
            check_range("limit", request.limit.into(), 1, ITEMS_MAX as u64)?;
            RequestBody::ScanFinished {
                queue: queue_from_pb(request.queue)?,
                partition: partition_from_pb(request.partition)?,
                group: group_from_pb(request.group)?,
                before: request.before,
                limit: request.limit,
            }
        }
        PbRequest::GetPartition(request) => RequestBody::GetPartition {
            queue: queue_from_pb(request.queue)?,
            partition: partition_from_pb(request.partition)?,
            group: group_from_pb(request.group)?,
        },
        PbRequest::ListWorkers(request) => RequestBody::ListWorkers {
            group: group_from_pb(request.group)?,
        },
        PbRequest::ChangeMembers(change) => {
            RequestBody::ChangeMembers(member_change_from_pb(change)?)
        }
        PbRequest::Drain(drain) => RequestBody::Drain { on: drain.on },
        PbRequest::Status(_) => RequestBody::Status,
        PbRequest::Bye(_) => RequestBody::Bye,
    })
}

fn member_change_to_pb(change: &MemberChange) -> pb::ChangeMembers {
    let change = match change {
        MemberChange::Add(nodes) => {
            let nodes = nodes.iter().map(member_id_to_pb).collect();
            pb::change_members::Change::Add(pb::MemberIds { nodes })
        }
        MemberChange::Remove(node) => pb::change_members::Change::Remove(node.0),
    };
    let change = Some(change);
    pb::ChangeMembers { change }
}

fn member_change_from_pb(change: pb::ChangeMembers) -> Result<MemberChange, WireError> {
    let change = change.change.ok_or(WireError::Missing("change"))?;
    Ok(match change {
        pb::change_members::Change::Add(add) => {
            check_len("nodes", add.nodes.len(), 1, MEMBER_STEPS_MAX)?;
            MemberChange::Add(try_each(add.nodes, |node| member_id_from_pb(&node))?)
        }
        pb::change_members::Change::Remove(node) => MemberChange::Remove(NodeId(node)),
    })
}

fn member_id_to_pb(id: &Voter) -> pb::MemberId {
    pb::MemberId {
        node: id.node.0,
        disk: Bytes::copy_from_slice(&id.disk.0),
    }
}

fn member_id_from_pb(id: &pb::MemberId) -> Result<Voter, WireError> {
    let disk = id.disk[..].try_into().map(DiskId);
    let disk = disk.map_err(|_| WireError::BadLength {
        field: "the id of a disk",
        got: id.disk.len(),
        min: 16,
        max: 16,
    })?;
    let node = NodeId(id.node);
    Ok(Voter { node, disk })
}

fn scan_from_pb(request: pb::ScanJobs) -> Result<JobScan, WireError> {
    check_range("limit", request.limit.into(), 0, ITEMS_MAX as u64)?;
    let filter = filter_from_pb(request.filter)?;
    check_filter(&filter)?;
    Ok(JobScan {
        queue: queue_from_pb(request.queue)?,
        partition: partition_from_pb(request.partition)?,
        state: state_from_pb(request.state)?,
        filter,
        cursor: request.cursor.map(cursor_from_pb).transpose()?,
        limit: request.limit,
        bodies: request.bodies,
    })
}

/// The most fields of a request, those of its items among them: 1024 jobs with all that a job has and
/// 32 headers each are a third less.
const FIELDS_MAX: usize = 64 << 10;

/// A value takes up to a hundred times the two bytes of an empty item, so that of a larger body the
/// fields are counted before there are values. Of a smaller one all values fit into a few MiB.
const COUNTED_FROM_BYTES: usize = 64 << 10;

/// Request, command of a group, command, operation, item: nothing below an item is many.
const LEVELS_COUNTED: u32 = 5;

/// The id of a request whose rest may be garbage: field 1, if it comes first.
fn read_id(body: &[u8]) -> Option<u64> {
    let mut rest = body.strip_prefix(&[0x08])?;
    decode_varint(&mut rest).ok().filter(|id| *id != 0)
}

/// Every bound of a client's command. Reasons, which are for people, are cut instead of refused.
fn check_command(command: &mut Command, wait_ms: u32) -> Result<(), WireError> {
    if let Some(call) = &command.session {
        check_session_call(call, matches!(command.op, Op::Lease { .. }))?;
    }
    check_wait(wait_ms)?;
    if wait_ms > 0 && !matches!(command.op, Op::Lease { .. }) {
        return Err(WireError::Contradiction("only a lease can wait"));
    }
    match &mut command.op {
        Op::OpenSession { .. } | Op::CloseSession { .. } | Op::Attach { .. }
            if command.session.is_some() =>
        {
            return Err(WireError::Contradiction(
                "a command on a session is not numbered in one",
            ));
        }
        // The leader says how many there are, not the client.
        Op::CreateQueue { groups, .. } => *groups = 0,
        Op::Nack { items } => items
            .iter_mut()
            .for_each(|item| item.reason.truncate(REASON_BYTES_MAX)),
        Op::Bury { items } => items
            .iter_mut()
            .for_each(|(_, reason)| reason.truncate(REASON_BYTES_MAX)),
        _ => {}
    }
    check_op(&command.op)
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

fn cursor_to_pb(cursor: JobCursor) -> pb::JobCursor {
    pb::JobCursor {
        priority: cursor.priority.into(),
        seq: cursor.seq,
    }
}

fn cursor_from_pb(cursor: pb::JobCursor) -> Result<JobCursor, WireError> {
    Ok(JobCursor {
        priority: u8_from_pb("priority", cursor.priority)?,
        seq: cursor.seq,
    })
}

fn worker_to_pb(worker: &WorkerInfo) -> pb::WorkerInfo {
    pb::WorkerInfo {
        name: worker.name.clone(),
        tags: worker.tags.clone(),
        capacity: worker.capacity,
    }
}

fn worker_from_pb(worker: pb::WorkerInfo) -> Result<WorkerInfo, WireError> {
    let worker = WorkerInfo {
        name: worker.name,
        tags: worker.tags,
        capacity: worker.capacity,
    };
    check_worker(&worker)?;
    Ok(worker)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Field 2 of a message, a message itself.
    fn nested(content: &[u8]) -> Vec<u8> {
        let mut out = vec![2 << 3 | 2];
        prost::encoding::encode_varint(content.len() as u64, &mut out);
        out.extend_from_slice(content);
        out
    }

    #[test]
    fn more_fields_than_any_request_has_are_refused_before_there_are_values() {
        let body = |jobs: usize| {
            let enqueue = [0x1a, 0].repeat(jobs);
            let request = nested(&nested(&nested(&enqueue)));
            Bytes::from([vec![8, 1], request].concat())
        };
        let refused = decode_request(&body(FIELDS_MAX)).expect_err("too many");
        assert_eq!(refused.id, Some(1), "it can be answered");
        assert_eq!(
            refused.to_string(),
            "a request, in fields, has length 65537, allowed are 1 to 65536"
        );
        // Four of the fields are the id and what the jobs stand in.
        let refused = decode_request(&body(FIELDS_MAX - 4)).expect_err("too many jobs");
        assert_eq!(
            refused.to_string(),
            "items has length 65532, allowed are 1 to 1024"
        );
    }
}
