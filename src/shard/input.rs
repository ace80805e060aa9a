//! What happened: the only way into a [`ShardEngine`](super::engine::ShardEngine). Past tense.

use super::effect::{GroupReader, Reader};
use super::loading::{GroupState, Unread};
use super::scrub::Walk;
use super::sparing::VoterSets;
use super::wall::VotersClock;
use crate::base::ids::{ConnId, GroupId, ShardId};
use crate::base::members::ClusterMembers;
use crate::base::units::WallTime;
use crate::queue::StoredPart;
use crate::raft::message::{Message, Voter};
use crate::wal::pieces::Piece;
use crate::wire::message::{Reply, Request};
use crate::wire::peer::{Durable, PeerHello};
use bytes::Bytes;

/// Where a request came from: a connection of a shard of this node. Another shard than the one
/// that handles it means that the request was forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The shard that holds the connection.
    pub shard: ShardId,
    /// The connection.
    pub conn: ConnId,
}

impl Origin {
    /// The engine of a shard itself, where it asks another. Its answers come back as
    /// [`Input::Answered`], never over a connection.
    #[must_use]
    pub fn engine(shard: ShardId) -> Self {
        Self {
            shard,
            conn: ConnId(u64::MAX),
        }
    }

    /// Whether an engine asked, not a client.
    #[must_use]
    pub fn is_engine(self) -> bool {
        self.conn == ConnId(u64::MAX)
    }
}

/// Another node, as its hello said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node, with its disk.
    pub voter: Voter,
    /// Where its clients connect, `host:port`, by shard.
    pub client_addresses: Vec<String>,
    /// The newest version of the job machine that it can apply.
    pub machine_version_max: u16,
    /// Its zone; empty if it has none.
    pub zone: String,
}

impl From<&PeerHello> for Peer {
    fn from(hello: &PeerHello) -> Self {
        Self {
            voter: Voter {
                node: hello.node,
                disk: hello.disk,
            },
            client_addresses: hello.client_addresses.clone(),
            machine_version_max: hello.machine_version_max,
            zone: hello.zone.clone(),
        }
    }
}

/// What became of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The connection to it broke: what was sent last may not have arrived.
    Broken,
    /// It has not been heard for [`SILENT_MS`](crate::base::limits::SILENT_MS).
    Silent,
    /// Its process is proved to be dead: its port refuses, or it has started again.
    Dead,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A client asked something. Its hello is done.
    ClientRequest {
        /// Who asked.
        from: Origin,
        /// What.
        request: Request,
        /// The bytes of its command, if they are fit for an entry of the log as they are.
        payload: Option<Bytes>,
    },
    /// A client's connection ended, by it or by the network.
    ClientClosed {
        /// Which.
        from: Origin,
    },
    /// Another shard answered what this engine itself asked, as
    /// [`Origin::engine`].
    Answered {
        /// The answer.
        reply: Reply,
    },
    /// A batch of the log is on disk, whole.
    WalSynced {
        /// Its number.
        batch_seq: u64,
    },
    /// A segment can be written: preallocated, and its name durable.
    SegmentReady {
        /// Its number.
        number: u64,
    },
    /// A piece of the log was read, or could not be. The bytes may be anything: the segment may have
    /// been used again.
    LogRead {
        /// The piece.
        piece: Piece,
        /// As many bytes as were asked for.
        bytes: Option<Bytes>,
    },
    /// The hot state of a group was read and verified, or could not be.
    GroupLoaded {
        /// The group.
        group: GroupId,
        /// Who waits for it.
        reader: GroupReader,
        /// Its state, or what is damaged.
        result: Result<GroupState, Unread>,
    },
    /// Pages of a group were read and verified, or could not be.
    PagesLoaded {
        /// The group.
        group: GroupId,
        /// Who waits for them.
        reader: Reader,
        /// They, each node before what is below it, or what is wrong.
        result: Result<Vec<StoredPart>, Unread>,
    },
    /// A step of a walk over what is stored is done.
    Scrubbed(Box<Walk>),
    /// A chunk of a checkpoint round was handed to the disk, or given up with its round.
    ChunkWritten {
        /// The round.
        round: u64,
        /// Its length in bytes.
        bytes: usize,
    },
    /// All chunks of a checkpoint round so far, and the names of their files, are on disk.
    FilesSynced {
        /// The round.
        round: u64,
    },
    /// A checkpoint round could not be written (no space): what it wrote is gone, the log stays.
    RoundFailed {
        /// The round.
        round: u64,
    },
    /// The manifest is on disk under its name.
    ManifestWritten,
    /// The room left on the disk changed.
    DiskSpace {
        /// Whether enqueues must wait: less is left than the log and two checkpoints need.
        full: bool,
        /// Whether even leases and nacks must wait: only acks, which shrink the state, go on.
        exhausted: bool,
    },
    /// Live jobs take all the memory that they may, or no longer.
    Memory {
        /// Whether enqueues must wait.
        full: bool,
    },
    /// The process shall stop: finish what is proposed, cut a checkpoint, then say
    /// [`Effect::Stopped`](super::effect::Effect::Stopped).
    StopRequested,
    /// Another node said hello.
    PeerKnown(Peer),
    /// A node that belongs to no cluster, and lists nodes of this one, said hello. Again and again, as
    /// long as it waits to be added. For shard 0.
    PeerWaits(Peer),
    /// The members of the cluster are these, as shard 0 has said
    /// ([`Effect::ClusterMembers`](super::effect::Effect::ClusterMembers)).
    ClusterMembers(ClusterMembers),
    /// The voters of the groups of another shard are these, as it has said
    /// ([`Effect::VoterSets`](super::effect::Effect::VoterSets)). For shard 0.
    VoterSets {
        /// That shard.
        shard: ShardId,
        /// Each set of voters once.
        sets: VoterSets,
    },
    /// Another node has heard, before this process was started, how far the logs of this one were durable.
    HeardDurable(Durable),
    /// Another node sent messages to groups of this shard.
    PeerMessages {
        /// In the order in which they were sent.
        messages: Vec<Message>,
        /// Others that were no messages, or held entries that are not what was sealed.
        refused: u64,
    },
    /// Another node is there. For shard 0, which watches the nodes for all.
    PeerBeat {
        /// The node.
        from: Voter,
        /// Its wall clock, as it sent this.
        wall: WallTime,
    },
    /// Another shard has heard a node that was lost. For shard 0, which watches the nodes for all.
    PeerHeard {
        /// The node.
        peer: Voter,
    },
    /// The clocks of the voters say this, as shard 0 has said
    /// ([`Effect::TellClock`](super::effect::Effect::TellClock)).
    VotersClock(VotersClock),
    /// Another node shall get no lead, or may again.
    PeerDrains {
        /// The node.
        peer: Voter,
        /// Whether it shall get none.
        on: bool,
    },
    /// Another node is not what it was.
    PeerLost {
        /// The node, with the disk that it had.
        peer: Voter,
        /// How.
        loss: Loss,
    },
    /// Nothing but time: a deadline may have passed.
    TimePassed,
}
