//! One member of one Raft group: a pure, synchronous state machine (Ongaro, *Consensus: Bridging
//! Theory and Practice*, 2014; "the thesis").
//!
//! # Roles
//!
//! ```text
//!   Follower ──(election timeout)──> Candidate ──(majority of votes)──> Leader
//!      ^                                 │                                │
//!      └────────── higher term ──────────┴───────── higher term ──────────┘
//! ```
//!
//! # Contract
//!
//! Inputs are [`step`](node::RaftNode::step) (a message), [`tick`](node::RaftNode::tick) (time went
//! on), [`propose`](node::RaftNode::propose) (leader only), [`synced`](node::RaftNode::synced) (the
//! entry of this index *and term* is on disk) and [`applied`](node::RaftNode::applied). After any of
//! them [`take_ready`](node::RaftNode::take_ready) yields what must be written; the engine performs
//! it and reports back. See [`ready::Ready`] for what must be durable before what.
//!
//! # Invariants
//!
//! - `applied <= committed <= last`, and `stable <= last`; the marks never fall within a term.
//! - A member commits only by counting an entry of its own term (thesis 3.6.2): the no-op that
//!   each leader appends first makes that possible at once (6.4).
//! - Terms never fall along the log, indexes are dense.
//! - One vote a term, durable before it is cast (3.4). A single voter casts its vote for itself
//!   into the same log batch as its no-op, which cannot be durable before it.
//!
//! # Deliberately absent
//!
//! Clocks (ticks are counted; the engine turns time into ticks), sockets, files, threads, and in
//! this version other voters: a group has one, so that no message of a peer is ever expected, and
//! one that comes is refused by name.

pub mod log;
pub mod message;
pub mod node;
pub mod ready;
pub mod role;
