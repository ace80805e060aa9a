//! The members of a group as they are written down: in the log, in checkpoints, between nodes.
//!
//! What they mean, and how they change, is up to Raft
//! ([`Membership`](crate::raft::membership::Membership)).

use crate::base::ids::{LogIndex, Voter};

/// What a member is. The numbers are on disks for ever; 0 is what every member was before there were
/// others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum MemberRole {
    /// It votes; while a change is half done, in the old set and in the new one.
    #[default]
    Voter = 0,
    /// It gets the log and does not vote.
    Learner = 1,
    /// It votes in the new set alone.
    Incoming = 2,
    /// It votes in the old set alone, and leaves with it.
    Outgoing = 3,
    /// It votes in the old set alone, and becomes a learner when that is left.
    Demoted = 4,
}

impl MemberRole {
    /// The role of this number.
    #[must_use]
    pub fn from_u32(number: u32) -> Option<Self> {
        [
            Self::Voter,
            Self::Learner,
            Self::Incoming,
            Self::Outgoing,
            Self::Demoted,
        ]
        .into_iter()
        .find(|role| *role as u32 == number)
    }
}

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The node, with its disk.
    pub voter: Voter,
    /// What it is.
    pub role: MemberRole,
}

impl Member {
    /// One that votes while no change is half done.
    #[must_use]
    pub fn voting(voter: Voter) -> Self {
        let role = MemberRole::Voter;
        Self { voter, role }
    }
}

/// The members of the cluster as of a place in the log of group 0, whose members they are. What is known as
/// of an earlier place is older.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterMembers {
    /// After this entry; 0 where that is not known.
    pub as_of: LogIndex,
    /// Ascending.
    pub members: Vec<Member>,
}
