//! What members of a group say to each other.
//!
//! | message | from | answered by |
//! | --- | --- | --- |
//! | [`Body::Canvass`] | candidate; `pre`: would you vote? | [`Body::Ballot`] |
//! | [`Body::Append`] | leader | [`Body::Appended`], [`Body::Refused`] |
//! | [`Body::Heartbeat`] | leader | [`Body::Beat`] |
//! | [`Body::Offer`] | leader, to who needs a checkpoint | [`Body::Appended`] once installed |
//! | [`Body::TimeoutNow`] | leader, to who shall lead | its canvass |
//! | [`Body::ReadIndex`] | follower | [`Body::ReadAt`] |
//! | [`Body::Checkpoint`] | who was offered one; who offered it | [`Checkpoint`] |
//! | [`Body::QueueChange`] | who leads the home of a queue; who leads this group | [`QueueChange`] |
//! | [`Body::AnchorGet`] | who recovers, to its leader | [`Body::Anchor`] |
//! | [`Body::EntryGet`] | who recovers, to whom it knows | [`Body::EntryGot`], [`Body::EntryBase`] |

use crate::base::entry::Entry;
use crate::base::ids::{GroupId, Incarnation, LogIndex, NodeId, Partition, QueueUid, Term};
use crate::raft::recovering::Answer;
use bytes::Bytes;
use smallvec::SmallVec;

pub use crate::base::ids::Voter;

/// The voter of a test: this node, on a disk of the same number.
#[cfg(test)]
pub(super) fn voter(node: u32) -> Voter {
    use crate::base::ids::DiskId;
    Voter {
        node: NodeId(node),
        disk: DiskId([node as u8; 16]),
    }
}

/// One message: who, to whom, in which life of which group, in which term, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender.
    pub from: Voter,
    /// The receiver.
    pub to: Voter,
    /// The group.
    pub group: GroupId,
    /// The life of the group that the sender belongs to.
    pub incarnation: Incarnation,
    /// The sender's term; of a canvass that only asks, and of a ballot that would grant it, the term to
    /// be; of an [`Body::EntryGet`], the term that the receiver is to take.
    pub term: Term,
    /// Rises with each start of the sender, and when it learns that it may have lost something: what it
    /// said before is not believed any more.
    pub life: u64,
    /// The sender may have lost what it promised: nothing that it says counts.
    pub recovering: bool,
    /// What.
    pub body: Body,
}

/// The entries of an append. There is seldom more than one where nothing is busy: it needs no list.
pub type Entries = SmallVec<[Entry; 1]>;

/// The index and the term of an entry.
pub type Position = (LogIndex, Term);

/// Why a candidate asks although a leader may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It heard of none for an election timeout.
    Silence,
    /// The leader has asked it to.
    Transfer,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Asks for a vote (thesis 3.4), or whether there would be one (`pre`, 9.6).
    Canvass {
        /// Only asks.
        pre: bool,
        /// The last entry of the candidate's log.
        last: Position,
        /// The last that it knows to be committed: whoever has the same entry learns of it (R8).
        commit: Position,
        /// Why now.
        why: Why,
    },
    /// Answers a canvass.
    Ballot {
        /// What was asked.
        pre: bool,
        /// The answer.
        granted: bool,
        /// The last entry that the voter knows to be committed.
        commit: Position,
    },
    /// Entries behind `prev`; none, to find where the logs part or to tell of `commit`.
    Append {
        /// The entry before them.
        prev: Position,
        /// Dense and rising.
        entries: Entries,
        /// The leader's commit mark.
        commit: LogIndex,
    },
    /// The receiver's log is the leader's up to here, durably.
    Appended {
        /// Here.
        matched: LogIndex,
    },
    /// The receiver has no such entry as `prev`.
    Refused {
        /// The index of `prev`.
        prev: LogIndex,
        /// The last entry at or below `prev` of a term that is not above that of `prev`: the leader's
        /// log may be the receiver's up to there, and nowhere between.
        hint: Position,
    },
    /// The leader is there.
    Heartbeat {
        /// Committed, and known to be in the receiver's log.
        commit: LogIndex,
        /// Counts the leader's rounds of heartbeats; answers to earlier ones prove nothing about now.
        round: u64,
        /// Nothing is under way: whoever has all may stop to count ticks.
        quiet: bool,
        /// The receiver goes on if the leader dies, before the others try.
        heir: bool,
    },
    /// Answers a heartbeat.
    Beat {
        /// Its round.
        round: u64,
    },
    /// The receiver needs entries that are in checkpoints only. The engines see to the transfer.
    Offer {
        /// Where the leader's newest checkpoint was cut.
        base: Position,
    },
    /// A checkpoint on its way. It says nothing to Raft, which only looks whether it belongs here; the
    /// engines understand it.
    Checkpoint(Checkpoint),
    /// What the home group of a queue asks of this one. It says nothing to Raft either.
    QueueChange(QueueChange),
    /// Campaign at once (thesis 3.10).
    TimeoutNow,
    /// From which index on is a read the latest (thesis 6.4)?
    ReadIndex {
        /// Chosen by the asker.
        id: u64,
    },
    /// From this one.
    ReadAt {
        /// The asker's number.
        id: u64,
        /// Apply up to here, then read.
        index: LogIndex,
    },
    /// Which entry was proposed after this recovery began?
    AnchorGet {
        /// The asker's [`Message::life`], which tells this recovery from others.
        id: u64,
    },
    /// This one.
    Anchor {
        /// The asker's number.
        id: u64,
        /// The entry.
        at: Position,
    },
    /// What do you hold from this index on? Whoever answers has taken the message's term durably.
    EntryGet {
        /// The first index that is missing.
        first: LogIndex,
    },
    /// This.
    EntryGot {
        /// What is held.
        answer: Answer,
        /// The last entry that is known to be committed.
        commit: Position,
    },
    /// Nothing but a checkpoint, which holds that index.
    EntryBase {
        /// Where it was cut.
        base: Position,
    },
}

/// What the engines of two members say to each other about a checkpoint that one of them needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// The next parts, please. All that came before this number is here, so that it is the answer to
    /// parts too.
    Get {
        /// Chosen by the asker, anew for each checkpoint; never twice in a start.
        id: u64,
        /// A checkpoint of this index or below is of no use.
        above: LogIndex,
        /// The number of the next part.
        next: u64,
        /// That part and those behind it were lost.
        again: bool,
        /// The number of the first of `wants`, from 0 through the whole checkpoint.
        wants_from: u64,
        /// What of it is wanted, answered in this order; at most
        /// [`CHECKPOINT_WANTS_MAX`](crate::base::limits::CHECKPOINT_WANTS_MAX). Numbers that were told before
        /// say nothing new.
        wants: Vec<PageWanted>,
        /// Nothing more is wanted, but the log behind it.
        done: bool,
    },
    /// One part.
    Part {
        /// The asker's number.
        id: u64,
        /// Which part, from 0.
        number: u64,
        /// A piece of the stream, at most
        /// [`CHECKPOINT_PART_BYTES`](crate::base::limits::CHECKPOINT_PART_BYTES).
        bytes: Bytes,
    },
}

/// A page of a checkpoint, or a node above pages. What they are is up to the job machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageWanted {
    /// What the page holds.
    pub kind: u8,
    /// 0 is a page, 1 a node above pages.
    pub level: u8,
    /// The queue, or 0.
    pub queue: QueueUid,
    /// The partition, or 0.
    pub partition: Partition,
    /// Its number among the pages, or among the nodes of its level.
    pub number: u64,
    /// Of a page of jobs: a bit for each of its slots whose body is not wanted.
    pub held: u64,
}

/// What the engines of two members say to each other about the partitions of a queue that is at home in
/// another group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueChange {
    /// Change them so, if you lead this group.
    Ask {
        /// A command of the job machine, as an entry carries it, at most
        /// [`CHANGE_BYTES_MAX`](crate::base::limits::CHANGE_BYTES_MAX).
        command: Bytes,
    },
    /// It is done, and committed.
    Done {
        /// The home group.
        home: GroupId,
        /// The place of the change in its log.
        home_index: LogIndex,
    },
}

/// Why a message was refused. It is counted and dropped; the state is untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// For another group.
    #[error("the message is for group {0}")]
    WrongGroup(GroupId),
    /// For another life of the group.
    #[error("the message is for incarnation {0}")]
    WrongIncarnation(Incarnation),
    /// For another member.
    #[error("the message is for node {0}, or another disk of this one")]
    WrongReceiver(NodeId),
    /// The sender claims to be this member.
    #[error("the message claims to come from this member itself")]
    FromSelf,
    /// An answer of somebody who was not asked.
    #[error("node {0} with this disk is no member of the group")]
    NotAMember(NodeId),
    /// Another leads this term: two leaders of one term cannot be.
    #[error("node {0} claims to lead a term that another leads")]
    SecondLeader(NodeId),
    /// Terms or indexes that cannot be.
    #[error("the message contradicts itself: {0}")]
    Nonsense(&'static str),
    /// It would replace an entry that is committed here.
    #[error("the message contradicts entry {0}, which is committed")]
    AgainstCommitted(LogIndex),
}
