//! One member of one Raft group: a pure, synchronous state machine (Ongaro, *Consensus: Bridging
//! Theory and Practice*, 2014; "the thesis"). Trap numbers, R1 and so on, name mistakes that other
//! implementations have made; each has a script in `tests/scripts/raft/` or a test beside the code.
//!
//! # Roles
//!
//! ```text
//!   Follower ──(timeout)──> PreCandidate ──(a majority would)──> Candidate ──(a majority does)──> Leader
//!      ^                         │                                  │                               │
//!      └─────────────────────────┴── a later term, a leader heard ──┴── no majority answers ────────┘
//! ```
//!
//! # Contract
//!
//! Inputs are [`step`](node::RaftNode::step) (a message), [`tick`](node::RaftNode::tick) (time went
//! on), [`propose`](node::RaftNode::propose) and its kin (leader only),
//! [`synced`](node::RaftNode::synced) (the entry of this index *and term* is on disk) and
//! [`applied`](node::RaftNode::applied). After any of them
//! [`take_ready`](node::RaftNode::take_ready) yields what must be written and sent; the engine performs
//! it and reports back. See [`ready::Ready`] for what must be durable before what.
//!
//! # Invariants
//!
//! - `applied <= committed <= last`, and `stable <= last`; `committed` and `applied` never fall.
//! - One vote a term, durable before it leaves (3.4, 3.8); so is a candidate's own before it asks. A
//!   single voter casts its vote for itself into the same log batch as its no-op, which cannot be
//!   durable before it.
//! - A member commits only by counting an entry of its own term (3.6.2): the no-op that each leader
//!   appends first makes that possible at once (6.4).
//! - Terms never fall along the log, indexes are dense, and what is committed is never replaced.
//! - No message makes a member panic: what cannot be is refused with the state untouched.
//!
//! # The protocol, and where it departs from the thesis
//!
//! - *Elections* (`election.rs`): PreVote (9.6) and CheckQuorum (6.2) always; who has heard its leader
//!   lately ignores candidates (4.2.3), but not that leader itself, and not whom it has named. Canvasses
//!   and ballots carry what is known to be committed, so that a change of the members that nobody has
//!   applied keeps nobody from standing for ever. What is refused for an old term is answered.
//! - *Replication* ([`leader`], [`progress`]): pipelined, bounded in number and bytes; conflicts are
//!   found a term at a time (3.5). A leader sends before its own disk has the entry (10.2.1).
//! - *Members* ([`membership`]): joint consensus for whatever touches voters (4.3), never the single-step
//!   rule of 4.1. A change acts when it is applied, not when it is appended (the thesis: appended), so
//!   that no change has to be undone; the leader leaves the joint configuration by itself. A new voter
//!   must have the log first. Nobody is more than one change behind, or its majority could miss that of
//!   the others: a change is proposed when the one before it is applied, nobody campaigns with one that is
//!   committed and not applied, and it is written behind a commit mark that covers the one before it.
//!   Who comes with nothing does not know who belongs to the group: it votes for nobody, refuses the very
//!   first append, and is offered a checkpoint.
//! - *Reads*: ReadIndex (6.4) with numbered rounds; no leases (6.4.1), so no clock can make one stale.
//! - *Transfer* (3.10): given up after an election timeout. A leader that has led its own removal names
//!   who goes on.
//! - *Damage* ([`recovering`]): who may have lost what it promised neither votes nor counts until an
//!   anchor of a leader or the other voters have put its log right. The thesis knows no such member.
//! - *Checkpoints* take the place of InstallSnapshot (5): the leader offers, the engines bring it over.
//!   A member that comes back to a group at rest stays awake until it has everything.
//! - *Quiet groups*: who has everything stops to count ticks; the engine watches the nodes instead.
//!
//! # Deliberately absent
//!
//! Clocks (ticks are counted; the engine turns time into ticks), sockets, files, threads.

mod check;
mod election;
pub mod follower;
mod followers;
pub mod leader;
pub mod log;
pub mod membership;
pub mod message;
pub mod node;
pub mod progress;
pub mod quorum;
pub mod ready;
pub mod recovering;
pub mod role;
