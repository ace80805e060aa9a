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

/// The bugs of the bank that break what is judged here.
pub const BUGS: &[Bug] = &[Bug::AckBeforeSync];
