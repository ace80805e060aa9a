//! What nodes say to each other <-> frames.
//!
//! A connection begins with a [`PeerHello`] of each side. Who sends and who receives is known from
//! there on, so that no message repeats it: [`Link`] puts it back. A log entry is carried as it lies in
//! the leader's log, payload and seal unchanged, and [`decode_messages`] holds it against its seal. A
//! payload is not copied where its message is most of the frame.
//!
//! What is refused here is what cannot be a message. Whether it fits the group is up to its member
//! ([`StepError`](crate::raft::message::StepError)).

use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{
    ClusterId, DiskId, GroupId, Incarnation, LogIndex, NodeId, Partition, QueueUid, Term, Voter,
};
use crate::base::limits::{
    CHANGE_BYTES_MAX, CHECKPOINT_PART_BYTES, CHECKPOINT_WANTS_MAX, MEMBERS_MAX,
    PEER_FRAME_BYTES_FULL, PEER_SHARDS_MAX, STARTS_END, VOTERS_MAX, ZONE_BYTES_MAX,
};
use crate::base::units::{GroupTime, Lsn, WallTime};
use crate::raft::message::{Body, Checkpoint, PageWanted, Position, QueueChange, Why};
use crate::raft::recovering::Answer;
use crate::wire::bounds::check_range;
use crate::wire::command::{group_from_pb, try_each, u16_from_pb};
use crate::wire::error::{WireError, malformed};
use crate::wire::fields::check_fields;
use crate::wire::frame::{FrameKind, encode_frame};
use crate::wire::generated_peer as pb;
use bytes::{Bytes, BytesMut};
use pb::group_message::{self as gm, Body as PbBody};
use prost::Message as _;
use prost::encoding::WireType;
use prost::encoding::{encode_key, encode_varint, encoded_len_varint};

pub use crate::raft::message::Message;

/// The protocol version between nodes that this build speaks, and no other: those of version 1 ask for a
/// checkpoint as a whole.
pub const PEER_PROTOCOL_VERSION: u32 = 2;

/// The fields of a frame of messages: a full frame of entries without a payload has fewer.
const FIELDS_MAX: usize = 1 << 20;
/// Messages, message, body, entry: a payload is not walked.
const LEVELS_COUNTED: u32 = 4;
/// Field 1 of `GroupMessages`.
const MESSAGES_TAG: u32 = 1;

/// How far the logs of a node were durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// The disk.
    pub disk: DiskId,
    /// Its set of logs: numbers of another set mean nothing in this one.
    pub wal_set: u32,
    /// All below was durable, by shard.
    pub lsns: Vec<Lsn>,
    /// The start of the node in which it was, below [`STARTS_END`]; 0 while the process was told that its logs have
    /// lost something, and has not noted that durably. Nobody forgets by such a one what was heard before: the
    /// next process would not be told.
    pub start: u32,
    /// Random bits of the process. An older image of a disk starts with a number that was used before.
    pub process: u64,
}

impl Durable {
    /// Whether both are of one process of one node.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        let of = |durable: &Self| (durable.disk, durable.wal_set, durable.process);
        of(self) == of(other) && self.lsns.len() == other.lsns.len()
    }

    /// Whether this is of an earlier process on a disk than the one that works there now.
    #[must_use]
    pub fn is_of_the_past(&self, disk: DiskId, process: u64) -> bool {
        self.disk == disk && self.process != process
    }

    /// What a hearer of this knows, so that it is not said again before the logs grow; nothing while the process
    /// has not noted what it has lost.
    #[must_use]
    pub fn told(self) -> Vec<Lsn> {
        if self.start == 0 {
            Vec::new()
        } else {
            self.lsns
        }
    }

    /// The same node said more. What a later start of it says is believed, even if it is less: it was
    /// told by hello what it has lost, and has noted that. A process with the number of a start that was is an
    /// older image of the disk: it is told so and ends, but what it says until then must not make forgotten
    /// what was heard, since its next start is the one that has to know.
    pub fn hear(&mut self, said: Self) {
        if self.is_of(&said) {
            self.start = self.start.max(said.start);
            for (known, said) in self.lsns.iter_mut().zip(said.lsns) {
                *known = said.max(*known);
            }
        } else if self.disk != said.disk || self.start < said.start {
            *self = said;
        }
    }
}

/// The first frame of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// The oldest version of this protocol that it speaks.
    pub protocol_min: u32,
    /// The newest.
    pub protocol_max: u32,
    /// Its version, for logs.
    pub version: String,
    /// Its cluster; `None` before that was formed.
    pub cluster: Option<ClusterId>,
    /// The node.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// Rises with each start, below [`STARTS_END`].
    pub start: u32,
    /// Its shards.
    pub shards: u16,
    /// Groups of the cluster, a power of two.
    pub groups: u32,
    /// The newest version of the job machine that it can apply.
    pub machine_version_max: u16,
    /// What it has heard of the receiver.
    pub heard: Option<Durable>,
    /// Where its clients connect, `host:port`, by shard.
    pub client_addresses: Vec<String>,
    /// Where nodes are reached, `host:port`, itself too, as far as it knows; at most
    /// [`MEMBERS_MAX`].
    pub nodes: Vec<(NodeId, String)>,
    /// The receiver was a member of the cluster, and is none any more.
    pub removed: bool,
    /// Its zone, at most [`ZONE_BYTES_MAX`] bytes; empty: none.
    pub zone: String,
}

/// How a cluster began, and who belongs to it by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formation {
    /// Its id.
    pub cluster: ClusterId,
    /// Its groups, a power of two.
    pub groups: u32,
    /// When it was formed.
    pub formed_at: WallTime,
    /// The first voters of every group, ascending.
    pub founders: Vec<Voter>,
    /// Its members, ascending. One that is no founder begins with a checkpoint in every group.
    pub members: Vec<Voter>,
}

/// A node is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeBeat {
    /// Counts the beats of a connection, from 1.
    pub nr: u64,
    /// The sender's clock.
    pub wall: WallTime,
    /// How far its logs are durable.
    pub durable: Durable,
    /// It shall get no lead.
    pub draining: bool,
}

/// Who sends and who receives on a connection, as their hellos said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The node that sends.
    pub from: Voter,
    /// Its start.
    pub start: u32,
    /// The node that receives.
    pub to: Voter,
}

/// Why two nodes do not talk to each other. Nothing was said but the hellos.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloRefusal {
    /// They speak no version in common.
    #[error(
        "node {node} runs {version} and speaks versions {} to {} between nodes, this one {} to {}: \
         upgrade the older node first",
        .theirs.0, .theirs.1, .ours.0, .ours.1
    )]
    Protocol {
        /// The other node.
        node: NodeId,
        /// What it runs.
        version: String,
        /// From and to.
        theirs: (u32, u32),
        /// From and to.
        ours: (u32, u32),
    },
    /// One of them belongs to another cluster, or to none.
    #[error(
        "node {node} belongs to cluster {}, this one to {}: take it off the list of peers, or check \
         which data directory it was started with",
        name(*.theirs), name(*.ours)
    )]
    OtherCluster {
        /// The other node.
        node: NodeId,
        /// Its cluster.
        theirs: Option<ClusterId>,
        /// Ours.
        ours: Option<ClusterId>,
    },
    /// Both have the same number.
    #[error("both nodes have the id {0}: give one of them another node.id")]
    SameNode(NodeId),
    /// Their groups differ, which formation has fixed.
    #[error(
        "node {node} has {theirs} groups, this one {ours}: one cluster has one number of groups"
    )]
    OtherGroups {
        /// The other node.
        node: NodeId,
        /// Its groups.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
}

fn name(cluster: Option<ClusterId>) -> String {
    cluster.map_or("none yet".to_owned(), |cluster| cluster.to_string())
}

impl Link {
    /// What the sender of `theirs` will say to the sender of `ours`.
    ///
    /// # Errors
    /// [`HelloRefusal`] if they must not talk to each other.
    pub fn from_hellos(theirs: &PeerHello, ours: &PeerHello) -> Result<Self, HelloRefusal> {
        let node = theirs.node;
        if theirs.protocol_min > ours.protocol_max || ours.protocol_min > theirs.protocol_max {
            return Err(HelloRefusal::Protocol {
                node,
                version: theirs.version.clone(),
                theirs: (theirs.protocol_min, theirs.protocol_max),
                ours: (ours.protocol_min, ours.protocol_max),
            });
        }
        if theirs.cluster != ours.cluster || ours.cluster.is_none() {
            return Err(HelloRefusal::OtherCluster {
                node,
                theirs: theirs.cluster,
                ours: ours.cluster,
            });
        }
        if node == ours.node {
            return Err(HelloRefusal::SameNode(node));
        }
        if theirs.groups != ours.groups {
            return Err(HelloRefusal::OtherGroups {
                node,
                theirs: theirs.groups,
                ours: ours.groups,
            });
        }
        let voter = |hello: &PeerHello| Voter {
            node: hello.node,
            disk: hello.disk,
        };
        Ok(Self {
            from: voter(theirs),
            start: theirs.start,
            to: voter(ours),
        })
    }
}

fn durable_to_pb(durable: &Durable) -> pb::Durable {
    pb::Durable {
        disk: Bytes::copy_from_slice(&durable.disk.0),
        wal_set: durable.wal_set,
        lsns: durable.lsns.iter().map(|lsn| lsn.0).collect(),
        start: durable.start,
        process: durable.process,
    }
}

fn disk_from_pb(bytes: &[u8]) -> Result<DiskId, WireError> {
    let disk = bytes.try_into().map(DiskId);
    disk.map_err(|_| bad_id("the id of a disk", bytes))
}

fn bad_id(field: &'static str, bytes: &[u8]) -> WireError {
    WireError::BadLength {
        field,
        got: bytes.len(),
        min: 16,
        max: 16,
    }
}

fn durable_from_pb(durable: pb::Durable) -> Result<Durable, WireError> {
    check_range(
        "the shards of a node",
        durable.lsns.len() as u64,
        0,
        PEER_SHARDS_MAX as u64,
    )?;
    check_start(durable.start)?;
    Ok(Durable {
        disk: disk_from_pb(&durable.disk)?,
        wal_set: durable.wal_set,
        lsns: durable.lsns.into_iter().map(Lsn).collect(),
        start: durable.start,
        process: durable.process,
    })
}

/// A node goes on behind a start of its own that it is told of.
fn check_start(start: u32) -> Result<(), WireError> {
    check_range(
        "the start of a node",
        start.into(),
        0,
        u64::from(STARTS_END) - 1,
    )
}

fn encode_message(kind: FrameKind, message: &impl prost::Message, out: &mut BytesMut) {
    encode_frame(kind, out, |out| {
        message
            .encode(out)
            .expect("a buffer that grows takes every message");
    });
}

/// Appends a hello.
pub fn encode_peer_hello(hello: &PeerHello, out: &mut BytesMut) {
    let cluster = hello.cluster.map(|id| Bytes::copy_from_slice(&id.0));
    let message = pb::PeerHello {
        protocol_min: hello.protocol_min,
        protocol_max: hello.protocol_max,
        version: hello.version.clone(),
        cluster: cluster.unwrap_or_default(),
        node: hello.node.0,
        disk: Bytes::copy_from_slice(&hello.disk.0),
        start: hello.start,
        shards: hello.shards.into(),
        groups: hello.groups,
        machine_version_max: hello.machine_version_max.into(),
        heard: hello.heard.as_ref().map(durable_to_pb),
        client_addresses: hello.client_addresses.clone(),
        nodes: hello
            .nodes
            .iter()
            .map(|(node, address)| pb::NodeAddress {
                node: node.0,
                address: address.clone(),
            })
            .collect(),
        removed: hello.removed,
        zone: hello.zone.clone(),
    };
    encode_message(FrameKind::PeerHello, &message, out);
}

/// The hello of a frame's body.
///
/// # Errors
/// [`WireError`] if it is none, or its numbers cannot be.
pub fn decode_peer_hello(body: &Bytes) -> Result<PeerHello, WireError> {
    let hello = pb::PeerHello::decode(body.clone()).map_err(malformed("the hello of a node"))?;
    if hello.protocol_min == 0 || hello.protocol_min > hello.protocol_max {
        return Err(WireError::Contradiction(
            "protocol_min is from 1 and not above protocol_max",
        ));
    }
    if !hello.groups.is_power_of_two() {
        return Err(WireError::Contradiction("groups are a power of two"));
    }
    check_range("shards", hello.shards.into(), 1, PEER_SHARDS_MAX as u64)?;
    check_start(hello.start)?;
    check_range(
        "addresses of clients",
        hello.client_addresses.len() as u64,
        0,
        hello.shards.into(),
    )?;
    let nodes = hello.nodes.len() as u64;
    check_range("addresses of nodes", nodes, 0, MEMBERS_MAX as u64)?;
    let zone = hello.zone.len() as u64;
    check_range("the name of a zone", zone, 0, ZONE_BYTES_MAX as u64)?;
    let cluster = match &hello.cluster[..] {
        [] => None,
        bytes => Some(
            bytes
                .try_into()
                .map(ClusterId)
                .map_err(|_| bad_id("the id of a cluster", bytes))?,
        ),
    };
    Ok(PeerHello {
        protocol_min: hello.protocol_min,
        protocol_max: hello.protocol_max,
        version: hello.version,
        cluster,
        node: NodeId(hello.node),
        disk: disk_from_pb(&hello.disk)?,
        start: hello.start,
        shards: u16_from_pb("shards", hello.shards)?,
        groups: hello.groups,
        machine_version_max: u16_from_pb("machine_version_max", hello.machine_version_max)?,
        heard: hello.heard.map(durable_from_pb).transpose()?,
        client_addresses: hello.client_addresses,
        nodes: hello
            .nodes
            .into_iter()
            .map(|node| (NodeId(node.node), node.address))
            .collect(),
        removed: hello.removed,
        zone: hello.zone,
    })
}

/// Appends a formation.
pub fn encode_formation(formation: &Formation, out: &mut BytesMut) {
    let member = |member: &Voter| pb::formation::Member {
        node: member.node.0,
        disk: Bytes::copy_from_slice(&member.disk.0),
    };
    let message = pb::Formation {
        cluster: Bytes::copy_from_slice(&formation.cluster.0),
        groups: formation.groups,
        formed_at_ms: formation.formed_at.0,
        founders: formation.founders.iter().map(member).collect(),
        members: formation.members.iter().map(member).collect(),
    };
    encode_message(FrameKind::Formation, &message, out);
}

/// The formation of a frame's body.
///
/// # Errors
/// [`WireError`] if it is none, or no cluster can begin so: members are ascending, the founders at most
/// [`VOTERS_MAX`], all at most [`MEMBERS_MAX`], and groups a power of two.
pub fn decode_formation(body: &Bytes) -> Result<Formation, WireError> {
    let formation = pb::Formation::decode(body.clone()).map_err(malformed("a formation"))?;
    if !formation.groups.is_power_of_two() {
        return Err(WireError::Contradiction("groups are a power of two"));
    }
    check_range("formed_at_ms", formation.formed_at_ms, 0, WallTime::MAX.0)?;
    let founders = voters_from_pb(formation.founders, VOTERS_MAX)?;
    if !founders.is_sorted_by(|a, b| a.node < b.node) {
        return Err(WireError::Contradiction("a founder has one disk"));
    }
    let members = voters_from_pb(formation.members, MEMBERS_MAX)?;
    let bytes = &formation.cluster[..];
    let cluster = bytes.try_into().map(ClusterId);
    Ok(Formation {
        cluster: cluster.map_err(|_| bad_id("the id of a cluster", bytes))?,
        groups: formation.groups,
        formed_at: WallTime(formation.formed_at_ms),
        founders,
        members,
    })
}

fn voters_from_pb(
    members: Vec<pb::formation::Member>,
    max: usize,
) -> Result<Vec<Voter>, WireError> {
    check_range("members", members.len() as u64, 1, max as u64)?;
    let members = try_each(members, |member| {
        Ok(Voter {
            node: NodeId(member.node),
            disk: disk_from_pb(&member.disk)?,
        })
    })?;
    if !members.is_sorted_by(|a, b| a < b) {
        return Err(WireError::Contradiction(
            "members are in the order of their ids",
        ));
    }
    Ok(members)
}

/// Appends a beat.
pub fn encode_node_beat(beat: &NodeBeat, out: &mut BytesMut) {
    let message = pb::NodeBeat {
        nr: beat.nr,
        wall_ms: beat.wall.0,
        durable: Some(durable_to_pb(&beat.durable)),
        draining: beat.draining,
    };
    encode_message(FrameKind::NodeBeat, &message, out);
}

/// The beat of a frame's body.
///
/// # Errors
/// [`WireError`] if it is none.
pub fn decode_node_beat(body: &Bytes) -> Result<NodeBeat, WireError> {
    let beat = pb::NodeBeat::decode(body.clone()).map_err(malformed("a node's beat"))?;
    let durable = beat.durable.ok_or(WireError::Missing("durable"))?;
    Ok(NodeBeat {
        nr: beat.nr,
        wall: WallTime(beat.wall_ms),
        durable: durable_from_pb(durable)?,
        draining: beat.draining,
    })
}

/// Appends messages of this node to another, in as few frames as they fit into.
pub fn encode_messages<'a>(messages: impl IntoIterator<Item = &'a Message>, out: &mut BytesMut) {
    let mut messages = messages.into_iter().map(message_to_pb).peekable();
    while messages.peek().is_some() {
        encode_frame(FrameKind::GroupMessages, out, |out| {
            let start = out.len();
            while out.len() - start < PEER_FRAME_BYTES_FULL
                && let Some(message) = messages.next()
            {
                encode_key(MESSAGES_TAG, WireType::LengthDelimited, out);
                let len = message.encoded_len();
                out.reserve(encoded_len_varint(len as u64) + len);
                encode_varint(len as u64, out);
                message.encode_raw(out);
            }
        });
    }
}

/// The messages of a frame's body, each by itself: one that is bad says nothing about the others.
///
/// # Errors
/// [`WireError`] if the body is no list of messages.
pub fn decode_messages(
    body: &Bytes,
    link: &Link,
) -> Result<Vec<Result<Message, WireError>>, WireError> {
    check_fields(
        "messages of groups, in fields,",
        body,
        LEVELS_COUNTED,
        FIELDS_MAX,
    )?;
    let messages =
        pb::GroupMessages::decode(body.clone()).map_err(malformed("messages of groups"))?;
    let messages = messages.messages.into_iter();
    Ok(messages
        .map(|message| message_from_pb(message, link, body.len()))
        .collect())
}

fn position_to_pb((index, term): Position) -> gm::Position {
    gm::Position {
        index: index.0,
        term: term.0,
    }
}

fn position(field: &'static str, position: Option<gm::Position>) -> Result<Position, WireError> {
    let position = position.ok_or(WireError::Missing(field))?;
    Ok((LogIndex(position.index), Term(position.term)))
}

fn entry_to_pb(entry: &Entry) -> gm::Entry {
    gm::Entry {
        index: entry.index.0,
        term: entry.term.0,
        time_ms: entry.time.0,
        kind: entry.kind as u32,
        machine_version: entry.machine_version.into(),
        flags: entry.flags,
        seal: entry.crc,
        payload: entry.payload.clone(),
    }
}

/// Entries of one message. They live long, and a slice of a frame keeps all of it: where the frame holds
/// more than these, their payloads get memory of their own, one piece for all.
fn entries_from_pb(
    entries: Vec<gm::Entry>,
    (group, incarnation): (GroupId, Incarnation),
    frame_bytes: usize,
) -> Result<Vec<Entry>, WireError> {
    let bytes: usize = entries.iter().map(|entry| entry.payload.len()).sum();
    let is_small_part = 2 * bytes < frame_bytes;
    let mut own = BytesMut::with_capacity(if is_small_part { bytes } else { 0 });
    try_each(entries, |mut entry| {
        if is_small_part {
            own.extend_from_slice(&entry.payload);
            entry.payload = own.split().freeze();
        }
        entry_from_pb(entry, group, incarnation)
    })
}

/// An entry that is what its leader has sealed.
fn entry_from_pb(
    entry: gm::Entry,
    group: GroupId,
    incarnation: Incarnation,
) -> Result<Entry, WireError> {
    let kind = u8::try_from(entry.kind).ok().and_then(EntryKind::from_u8);
    let entry = Entry {
        index: LogIndex(entry.index),
        term: Term(entry.term),
        time: GroupTime(entry.time_ms),
        kind: kind.ok_or(WireError::UnknownValue {
            field: "the kind of an entry",
            got: entry.kind.into(),
        })?,
        machine_version: u16_from_pb("machine_version", entry.machine_version)?,
        flags: entry.flags,
        crc: entry.seal,
        payload: entry.payload,
    };
    if entry.is_intact(group, incarnation) {
        Ok(entry)
    } else {
        Err(WireError::Contradiction("an entry is not what was sealed"))
    }
}

fn checkpoint_to_pb(checkpoint: &Checkpoint) -> PbBody {
    match checkpoint {
        Checkpoint::Get {
            id,
            above,
            next,
            again,
            wants_from,
            wants,
            done,
        } => PbBody::CheckpointGet(gm::CheckpointGet {
            id: *id,
            above: above.0,
            next: *next,
            again: *again,
            wants_from: *wants_from,
            wants: wants.iter().map(want_to_pb).collect(),
            done: *done,
        }),
        Checkpoint::Part { id, number, bytes } => PbBody::CheckpointPart(gm::CheckpointPart {
            id: *id,
            number: *number,
            bytes: bytes.clone(),
        }),
    }
}

fn want_to_pb(want: &PageWanted) -> gm::CheckpointWant {
    gm::CheckpointWant {
        at: Some(pb::PagePlace {
            kind: want.kind.into(),
            queue: want.queue.to_u64(),
            partition: want.partition.0.into(),
            number: want.number,
            level: want.level.into(),
        }),
        held: want.held,
    }
}

fn get_from_pb(get: gm::CheckpointGet) -> Result<Checkpoint, WireError> {
    let count = get.wants.len() as u64;
    let max = CHECKPOINT_WANTS_MAX as u64;
    check_range("the wants of a checkpoint", count, 0, max)?;
    Ok(Checkpoint::Get {
        id: get.id,
        above: LogIndex(get.above),
        next: get.next,
        again: get.again,
        wants_from: get.wants_from,
        wants: try_each(get.wants, want_from_pb)?,
        done: get.done,
    })
}

fn want_from_pb(want: gm::CheckpointWant) -> Result<PageWanted, WireError> {
    let at = want.at.ok_or(WireError::Missing("what is wanted"))?;
    check_range("the level of what is wanted", at.level.into(), 0, 10)?;
    let place = (
        u8::try_from(at.kind),
        u8::try_from(at.level),
        QueueUid::from_u64(at.queue),
        u8::try_from(at.partition),
    );
    let (Ok(kind), Ok(level), Some(queue), Ok(partition)) = place else {
        return Err(WireError::Contradiction("what is wanted cannot be"));
    };
    Ok(PageWanted {
        kind,
        level,
        queue,
        partition: Partition(partition),
        number: at.number,
        held: want.held,
    })
}

fn part_from_pb(part: gm::CheckpointPart) -> Result<Checkpoint, WireError> {
    let len = part.bytes.len() as u64;
    let max = CHECKPOINT_PART_BYTES as u64;
    check_range("the bytes of a part", len, 1, max)?;
    Ok(Checkpoint::Part {
        id: part.id,
        number: part.number,
        bytes: part.bytes,
    })
}

fn message_to_pb(message: &Message) -> pb::GroupMessage {
    let body = match &message.body {
        Body::Canvass {
            pre,
            last,
            commit,
            why,
        } => PbBody::Canvass(gm::Canvass {
            pre: *pre,
            last: Some(position_to_pb(*last)),
            commit: Some(position_to_pb(*commit)),
            transfer: *why == Why::Transfer,
        }),
        Body::Ballot {
            pre,
            granted,
            commit,
        } => PbBody::Ballot(gm::Ballot {
            pre: *pre,
            granted: *granted,
            commit: Some(position_to_pb(*commit)),
        }),
        Body::Append {
            prev,
            entries,
            commit,
        } => PbBody::Append(gm::Append {
            prev: Some(position_to_pb(*prev)),
            entries: entries.iter().map(entry_to_pb).collect(),
            commit: commit.0,
        }),
        Body::Appended { matched } => PbBody::Appended(gm::Appended { matched: matched.0 }),
        Body::Refused { prev, hint } => PbBody::Refused(gm::Refused {
            prev: prev.0,
            hint: Some(position_to_pb(*hint)),
        }),
        Body::Heartbeat {
            commit,
            round,
            quiet,
            heir,
        } => PbBody::Heartbeat(gm::Heartbeat {
            commit: commit.0,
            round: *round,
            quiet: *quiet,
            heir: *heir,
        }),
        Body::Beat { round } => PbBody::Beat(gm::Beat { round: *round }),
        Body::Offer { base } => PbBody::Offer(position_to_pb(*base)),
        Body::TimeoutNow => PbBody::TimeoutNow(gm::TimeoutNow {}),
        Body::ReadIndex { id } => PbBody::ReadIndex(gm::ReadIndex { id: *id }),
        Body::ReadAt { id, index } => PbBody::ReadAt(gm::ReadAt {
            id: *id,
            index: index.0,
        }),
        Body::AnchorGet { id } => PbBody::AnchorGet(gm::AnchorGet { id: *id }),
        Body::Anchor { id, at } => PbBody::Anchor(gm::Anchor {
            id: *id,
            at: Some(position_to_pb(*at)),
        }),
        Body::EntryGet { first } => PbBody::EntryGet(gm::EntryGet { first: first.0 }),
        Body::EntryGot { answer, commit } => PbBody::EntryGot(gm::EntryGot {
            first: answer.first.0,
            before: answer.before.map(|term| term.0),
            entries: answer.entries.iter().map(entry_to_pb).collect(),
            ends: answer.ends,
            commit: Some(position_to_pb(*commit)),
        }),
        Body::EntryBase { base } => PbBody::EntryBase(position_to_pb(*base)),
        Body::Checkpoint(checkpoint) => checkpoint_to_pb(checkpoint),
        Body::QueueChange(QueueChange::Ask { command }) => PbBody::QueueChange(gm::QueueChange {
            command: command.clone(),
        }),
        Body::QueueChange(QueueChange::Done { home, home_index }) => {
            PbBody::QueueChanged(gm::QueueChanged {
                home: home.0.into(),
                home_index: home_index.0,
            })
        }
    };
    pb::GroupMessage {
        group: message.group.0.into(),
        incarnation: message.incarnation.0,
        term: message.term.0,
        // The low half; the high one is the start, which the hello has told.
        losses: message.life as u32,
        recovering: message.recovering,
        body: Some(body),
    }
}

fn message_from_pb(
    message: pb::GroupMessage,
    link: &Link,
    frame_bytes: usize,
) -> Result<Message, WireError> {
    let group = group_from_pb(message.group)?;
    let incarnation = Incarnation(message.incarnation);
    let entries =
        |entries: Vec<gm::Entry>| entries_from_pb(entries, (group, incarnation), frame_bytes);
    let body = message
        .body
        .ok_or(WireError::UnknownOperation("a message of a group"))?;
    let body = match body {
        PbBody::Canvass(canvass) => Body::Canvass {
            pre: canvass.pre,
            last: position("last", canvass.last)?,
            commit: position("commit", canvass.commit)?,
            why: if canvass.transfer {
                Why::Transfer
            } else {
                Why::Silence
            },
        },
        PbBody::Ballot(ballot) => Body::Ballot {
            pre: ballot.pre,
            granted: ballot.granted,
            commit: position("commit", ballot.commit)?,
        },
        PbBody::Append(append) => Body::Append {
            prev: position("prev", append.prev)?,
            entries: entries(append.entries)?.into(),
            commit: LogIndex(append.commit),
        },
        PbBody::Appended(appended) => Body::Appended {
            matched: LogIndex(appended.matched),
        },
        PbBody::Refused(refused) => Body::Refused {
            prev: LogIndex(refused.prev),
            hint: position("hint", refused.hint)?,
        },
        PbBody::Heartbeat(heartbeat) => Body::Heartbeat {
            commit: LogIndex(heartbeat.commit),
            round: heartbeat.round,
            quiet: heartbeat.quiet,
            heir: heartbeat.heir,
        },
        PbBody::Beat(beat) => Body::Beat { round: beat.round },
        PbBody::Offer(base) => Body::Offer {
            base: position("base", Some(base))?,
        },
        PbBody::TimeoutNow(_) => Body::TimeoutNow,
        PbBody::ReadIndex(read) => Body::ReadIndex { id: read.id },
        PbBody::ReadAt(read) => Body::ReadAt {
            id: read.id,
            index: LogIndex(read.index),
        },
        PbBody::AnchorGet(get) => Body::AnchorGet { id: get.id },
        PbBody::Anchor(anchor) => Body::Anchor {
            id: anchor.id,
            at: position("at", anchor.at)?,
        },
        PbBody::EntryGet(get) => Body::EntryGet {
            first: LogIndex(get.first),
        },
        PbBody::EntryGot(got) => Body::EntryGot {
            answer: Answer {
                first: LogIndex(got.first),
                before: got.before.map(Term),
                entries: entries(got.entries)?,
                ends: got.ends,
            },
            commit: position("commit", got.commit)?,
        },
        PbBody::EntryBase(base) => Body::EntryBase {
            base: position("base", Some(base))?,
        },
        PbBody::CheckpointGet(get) => Body::Checkpoint(get_from_pb(get)?),
        PbBody::CheckpointPart(part) => Body::Checkpoint(part_from_pb(part)?),
        PbBody::QueueChange(change) => {
            let len = change.command.len() as u64;
            check_range("the bytes of a change", len, 1, CHANGE_BYTES_MAX as u64)?;
            let command = change.command;
            Body::QueueChange(QueueChange::Ask { command })
        }
        PbBody::QueueChanged(changed) => Body::QueueChange(QueueChange::Done {
            home: group_from_pb(changed.home)?,
            home_index: LogIndex(changed.home_index),
        }),
    };
    Ok(Message {
        from: link.from,
        to: link.to,
        group,
        incarnation,
        term: Term(message.term),
        life: u64::from(link.start) << 32 | u64::from(message.losses),
        recovering: message.recovering,
        body,
    })
}
