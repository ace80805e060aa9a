//! Records: what the log says, as plain types. How they look on disk is told in
//! [`crate::wal::codec`].

use crate::base::checksum::Hash128;
use crate::base::entry::Entry;
use crate::base::ids::{DiskId, GroupId, Incarnation, LogIndex, NodeId, Term};
use crate::base::members::Member;
use crate::base::units::{GroupTime, Lsn};
use crate::wal::segment::{Footer, SegmentHead};

/// The newest version of the job machine whose entries this binary reads.
pub const MACHINE_VERSION_MAX: u16 = 2;

/// Who got the vote of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The node.
    pub node: NodeId,
    /// The first four bytes of its disk's id: a node with another disk is another voter.
    pub disk_tag: u32,
}

impl Vote {
    /// The vote for `node` with `disk`.
    #[must_use]
    pub fn new(node: NodeId, disk: DiskId) -> Self {
        let [a, b, c, d, ..] = disk.0;
        Self {
            node,
            disk_tag: u32::from_le_bytes([a, b, c, d]),
        }
    }
}

/// What a member of a group must not forget besides its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The highest term seen.
    pub term: Term,
    /// Who got the vote of that term.
    pub vote: Option<Vote>,
    /// Committed as far as known; may lag.
    pub commit: LogIndex,
}

/// Where the root of a checkpoint lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootLocation {
    /// The number of the file, see [`crate::snapshot::layout`].
    pub file: u64,
    /// Where the root begins.
    pub offset: u64,
    /// Its length.
    pub len: u32,
}

/// What a group starts from: its state at an index, and where its log goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseRecord {
    /// The group.
    pub group: GroupId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The state is that after this entry; 0 at formation.
    pub index: LogIndex,
    /// The term of that entry.
    pub term: Term,
    /// The group's time there.
    pub time: GroupTime,
    /// The hash of the root page.
    pub root_hash: Hash128,
    /// Where the root lies; none for the empty state of formation.
    pub root: Option<RootLocation>,
    /// Records of the group before this position are void. A base cut from the group's own log
    /// keeps that of the base before it (0 at first); one received from a peer has the end of the
    /// log at that moment. So it is never beyond the batch that holds the base.
    pub log_start_lsn: Lsn,
    /// The version of the job machine in force there.
    pub machine_version: u16,
    /// The group's wall offset there, in milliseconds.
    pub wall_offset_ms: i64,
    /// The members as of there, ascending; none as long as the group has no state here: it begins with
    /// a checkpoint of another node.
    pub members: Vec<Member>,
}

/// Whether a group's log on this disk may be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowStatus {
    /// It may.
    #[default]
    Ok,
    /// Acknowledged entries from `since` on, or a vote, may be missing: it neither votes nor acks.
    Recovering {
        /// The first index that may be missing.
        since: LogIndex,
    },
}

/// A group as the head of each segment repeats it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupRow {
    /// The group.
    pub group: GroupId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its hard state.
    pub hard: HardState,
    /// Index and term of the last entry of the log, or of the base if that is higher.
    pub last: (LogIndex, Term),
    /// Index and term of the newest base.
    pub base: (LogIndex, Term),
    /// The hash of its root.
    pub root_hash: Hash128,
    /// Where its root lies.
    pub root: Option<RootLocation>,
    /// Records of the group before this position are void.
    pub log_start_lsn: Lsn,
    /// Whether the log may be relied on.
    pub status: RowStatus,
}

/// What a batch shortly before has held. Its bases stand beside it, each again in a record of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recap {
    /// The number of that batch.
    pub batch_seq: u64,
    /// The groups of which it says anything.
    pub rows: Vec<RecapRow>,
}

/// A group in a [`Recap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecapRow {
    /// The group as it is before the batch that holds the recap.
    pub row: GroupRow,
    /// The lowest index of its entries in the batch that it tells of, if there are any: what lies below was as it
    /// is.
    pub first: Option<LogIndex>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry of a group's log. A later one voids all earlier ones of the group from its index.
    Entry {
        /// The group.
        group: GroupId,
        /// Its life.
        incarnation: Incarnation,
        /// The entry.
        entry: Entry,
    },
    /// The newest of a group counts.
    HardState {
        /// The group.
        group: GroupId,
        /// Its life.
        incarnation: Incarnation,
        /// Its hard state.
        state: HardState,
    },
    /// All groups, in a segment's head; or some, whose status changed.
    GroupTable(Vec<GroupRow>),
    /// A checkpoint that is complete on disk.
    Base(BaseRecord),
    /// The first record of a segment.
    SegmentHead(SegmentHead),
    /// The last record of a segment.
    Footer(Footer),
    /// The last records of most batches.
    Recap(Recap),
}
