//! What to do: the only way out of a [`ShardEngine`](super::engine::ShardEngine). Imperative.
//!
//! The driver performs [`Effect::WriteWal`] in order of their batch numbers (several may be under
//! way at once); everything else may run in any order. What promises durability is kept inside the
//! engine until it is durable, so a driver cannot answer too early.

use super::input::Origin;
use super::scrub::Walk;
use super::sparing::VoterSets;
use super::wall::VotersClock;
use crate::base::ids::{GroupId, NodeId, ShardId};
use crate::base::members::ClusterMembers;
use crate::queue::{LeftFiles, PageWant};
use crate::raft::message::{Message, Voter};
use crate::snapshot::layout::RootRef;
use crate::wal::pieces::Piece;
use crate::wal::writer::WalWrite;
use crate::wire::message::{Reply, Request};
use bytes::Bytes;

pub use crate::queue::Discarded;

/// A file of a checkpoint, by its number: [`file_number`](crate::snapshot::layout::file_number).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckpointFile {
    /// Pages and roots of a round, or of some.
    Run(u64),
    /// Bodies of jobs.
    Payload(u64),
}

/// The files that something is in.
pub(super) fn files_of(files: &LeftFiles) -> impl Iterator<Item = CheckpointFile> {
    let runs = files.runs.iter().map(|file| CheckpointFile::Run(*file));
    let payloads = files.payloads.iter();
    runs.chain(payloads.map(|file| CheckpointFile::Payload(*file)))
}

/// Who waits for pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The next entry of the group.
    Apply,
    /// Reads of clients.
    Reads,
    /// This checkpoint round.
    Round(u64),
    /// A checkpoint on its way to another node.
    Sending {
        /// The node.
        to: Voter,
        /// The number under which it is asked for.
        id: u64,
    },
    /// A checkpoint on its way here, which needs no bodies of what is here.
    Receiving {
        /// The number under which it is asked for.
        id: u64,
    },
}

/// Who waits for the state of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupReader {
    /// The group, which has none.
    Group,
    /// A checkpoint of another node, which is opened.
    Install {
        /// The number under which it was asked for.
        id: u64,
    },
}

/// Pages that are to be read.
#[derive(Debug)]
pub struct PageOrder {
    /// The group.
    pub group: GroupId,
    /// What is wanted.
    pub wants: Vec<PageWant>,
    /// Who waits for it.
    pub reader: Reader,
}

/// What to do.
#[derive(Debug)]
pub enum Effect {
    /// Write a batch at its place, durably; then [`Input::WalSynced`](super::input::Input).
    /// A failure ends the process: recovery decides.
    WriteWal(WalWrite),
    /// Make a segment: take a spare or zero a new file, give it its name, sync the directory; then
    /// `SegmentReady`.
    PrepareSegment {
        /// Its number.
        number: u64,
    },
    /// Read a piece of the log, of which all is durable; then `LogRead`. It may be gone by then.
    ReadLog(Piece),
    /// These segments are not needed any more: keep their files as spares or delete them.
    DropSegments {
        /// Their numbers.
        numbers: Vec<u64>,
    },
    /// Read the hot state of a group off the shard thread, by
    /// [`load_group`](super::loading::load_group); then `GroupLoaded`.
    LoadGroup {
        /// The group.
        group: GroupId,
        /// Its bases, newest first.
        bases: Vec<RootRef>,
        /// Who waits for it.
        reader: GroupReader,
    },
    /// Read pages of a group off the shard thread, by
    /// [`load_pages`](super::loading::load_pages); then `PagesLoaded`. Their files may be gone by then.
    LoadPages(PageOrder),
    /// Look whether the disk has still what was stored: one [`step`](Walk::step) of a walk, off the shard
    /// thread, behind whatever somebody waits for; then `Scrubbed`. Files may be gone by then.
    Scrub(Box<Walk>),
    /// Tell the operator of damage that was found before anybody needed what is damaged.
    TellDamage {
        /// Of which group.
        group: GroupId,
        /// What, and what becomes of it.
        text: String,
        /// Nobody else has it.
        is_lost: bool,
    },
    /// Append a chunk to a checkpoint file, which is made by the chunk at 0; then `ChunkWritten`.
    WriteChunk {
        /// The round that it belongs to.
        round: u64,
        /// The file.
        file: CheckpointFile,
        /// Where.
        offset: u64,
        /// What.
        bytes: Bytes,
    },
    /// Sync these files, then the directory; then `FilesSynced`. If a chunk of the round could not be written,
    /// remove what the round has made and truncate what it went on with to the length that it had; then
    /// `RoundFailed`.
    SyncFiles {
        /// The round.
        round: u64,
        /// Its files.
        files: Vec<CheckpointFile>,
    },
    /// Write the shard's manifest: temporary file, sync, rename, sync directory; then
    /// `ManifestWritten`.
    WriteManifest {
        /// Its bytes.
        bytes: Bytes,
    },
    /// Unlink checkpoint files that nothing refers to.
    DropFiles {
        /// Which.
        files: Vec<CheckpointFile>,
    },
    /// Truncate checkpoint files to these lengths: a round that had added to them is given up.
    TruncateFiles {
        /// Which.
        files: Vec<(CheckpointFile, u64)>,
    },
    /// Answer a client; through the shard that holds the connection.
    Reply {
        /// Who asked.
        to: Origin,
        /// The answer.
        reply: Reply,
    },
    /// Send messages to another node, in this order, over the connection to the disk that they are
    /// for; drop them if there is none. Raft sends again what matters.
    SendPeer {
        /// The node, with that disk.
        to: Voter,
        /// What to say.
        messages: Vec<Message>,
    },
    /// Tell another node that this one is there, with a
    /// [`NodeBeat`](crate::wire::peer::NodeBeat): one for all groups of all shards.
    SendBeat {
        /// The node.
        to: NodeId,
    },
    /// Tell every shard of this node, this one too, that another is silent:
    /// [`Input::PeerLost`](super::input::Input::PeerLost).
    TellSilent {
        /// The node.
        peer: Voter,
    },
    /// Tell the first shard, which watches the nodes for all, that one which was lost has been heard:
    /// [`Input::PeerHeard`](super::input::Input::PeerHeard).
    TellHeard {
        /// The node.
        peer: Voter,
    },
    /// Tell every shard of this node, this one too, what the clocks of the voters say:
    /// [`Input::VotersClock`](super::input::Input::VotersClock).
    TellClock(VotersClock),
    /// The members of the cluster are these now, this node perhaps none of them: tell the other shards
    /// ([`Input::ClusterMembers`](super::input::Input::ClusterMembers)), keep it for the next start, and
    /// speak with these nodes alone.
    ClusterMembers(ClusterMembers),
    /// Tell shard 0 who votes in the groups of this shard: [`Input::VoterSets`](super::input::Input::VoterSets).
    VoterSets(VoterSets),
    /// Hand a request to the shard whose group it is for. If its inbox is full, answer `Busy`.
    Forward {
        /// That shard.
        to: ShardId,
        /// Who asked.
        from: Origin,
        /// What.
        request: Request,
    },
    /// Tell a shard that got forwarded requests of this connection that it closed.
    ForwardClosed {
        /// That shard.
        to: ShardId,
        /// The connection.
        from: Origin,
    },
    /// Free this memory, which takes long, where nobody waits.
    Discard(Discarded),
    /// Jobs that were acknowledged on the request of a client ran so long, in milliseconds of group
    /// time. For metrics only.
    JobsRan {
        /// One each.
        times_ms: Vec<u64>,
    },
    /// All is durable and the checkpoint is cut: the shard can end.
    Stopped,
}
