//! What members of a group say to each other.

use crate::base::ids::{DiskId, GroupId, Incarnation, NodeId, Term};

/// A member that votes: a node with the disk that it was admitted with. An emptied or copied disk
/// is another voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Voter {
    /// The node.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
}

/// The head of every message: who, to which life of which group, in which term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender.
    pub from: Voter,
    /// The group.
    pub group: GroupId,
    /// The life of the group that the sender belongs to.
    pub incarnation: Incarnation,
    /// The sender's term.
    pub term: Term,
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
    /// The sender is no voter of the group.
    #[error("node {0} with this disk is not a voter of the group")]
    NotAVoter(NodeId),
    /// The sender claims to be this member.
    #[error("the message claims to come from this member itself")]
    FromSelf,
}
