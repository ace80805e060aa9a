//! Independent judges of `src/raft`: another implementation of Raft, and a model checker.
//!
//! - [`mixed`]: clusters of our members and of raft-rs' under random faults.
//! - [`differential`]: the same inputs to ours and to theirs.
//! - [`model`]: every order of what may happen, up to a bound (stateright).
//!
//! The core is built with the feature `bug-bank`, so that the judges can be judged: with a bug planted they
//! must fail (`tests/small.rs`). Nothing is planted unless asked.

pub mod bounds;
pub mod cluster;
pub mod differential;
pub mod history;
pub mod member;
pub mod mixed;
pub mod model;
pub mod translate;

use rrq::base::bugs::Bug;

/// Bugs of the bank that [`mixed`] must show. Those that are planted in the engine are not in what is judged
/// here; those that need more terms than a run has are left to the simulator.
pub const IN_CLUSTERS: &[Bug] = &[
    Bug::AckBeforeSync,
    Bug::VoteWithoutLogCheck,
    Bug::VoteTwice,
    Bug::HeartbeatBeyondMatched,
    Bug::TailKeptAtInstall,
    Bug::ProbeNotRepeated,
    Bug::TransferNeverEnds,
];

/// That [`differential`] must show.
pub const IN_TWINS: &[Bug] = &[
    Bug::VoteWithoutLogCheck,
    Bug::VoteTwice,
    Bug::HeartbeatBeyondMatched,
    Bug::QuorumUnchecked,
    Bug::ProbeNotRepeated,
];

/// That a model must find, and which.
pub const IN_MODELS: &[(Bug, &str)] = &[
    (Bug::AckBeforeSync, "crash"),
    (Bug::VoteWithoutLogCheck, "order"),
    (Bug::VoteTwice, "order"),
    (Bug::RecoveringForgotten, "recovering"),
    (Bug::RecoveringVotes, "recovering"),
];
