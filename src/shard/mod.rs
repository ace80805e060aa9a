//! The engine of a core: everything that it decides, and nothing that it does.
//!
//! # The way through
//!
//! A request becomes a command, the command a proposal, the proposal an entry in the shard's log
//! ([`engine`], `requests`). When the batch that carries it is on disk, Raft commits it; then the
//! job machine of its group applies it, and whoever waits for that index is answered
//! (`apply`). Leases that found nothing wait in `polls`, watches and waits for a job's end in
//! `waits`; `reads` answers without an entry. `changes` sees that what a queue's home group
//! decides is done in the groups of its partitions, and `following` has it done there, by another node
//! if that leads; `versions` raises the version of a group's machine. What is due and
//! who is silent is found by `timers` and `liveness`; [`wall`] is the clock of the wall that the nodes have
//! in common; `checkpoint` cuts the hot state of the groups so
//! that the log stays short, and `opening` brings a group back from it, of whose pages `residence` keeps
//! what fits into memory. What the members of a group say
//! to each other goes through `peers`, and `balance` spreads leaders over the nodes; who the members are
//! decides `members`, and [`sparing`] which of them can go. What a
//! follower lacks and memory does not hold any more is read from the log by `log_reads`. A checkpoint for a
//! follower that lacks more than its leader's log has goes through `sending` there and `installing`
//! here, which takes of it what differs (`gathering`); `installs` knows which are under way. So comes, too,
//! what of a state is damaged (`mending`); `scrubbing` looks for that before it is needed ([`scrub`]). What other nodes have heard of the log tells `lost_ends` whether it
//! was longer once; [`redistribution`] says what the logs hold when the node gets another number of shards.
//!
//! # The contract
//!
//! - Inputs are facts ([`input::Input`]), effects are orders ([`effect::Effect`]).
//! - Handle, then drain, then handle. Many inputs may be handled before one drain: that is the
//!   batching. Effects are drained to empty before a driver waits.
//! - Durability order lives here, once: nothing that promises durability becomes an effect before
//!   [`WalSynced`](input::Input::WalSynced) says so. A driver only writes batches in order.
//!
//! # Who owns what
//!
//! One engine a core, one log a shard, many groups. A shard shares nothing with another: a request
//! for a group of another shard leaves as [`Forward`](effect::Effect::Forward), once.
//!
//! Deliberately absent: clocks (time is an argument), files, sockets, threads, and any branch that
//! asks whether there is one node or many: a group has one voter or several, and that is all.

mod apply;
mod balance;
pub mod bases;
mod changes;
mod checkpoint;
mod clock;
pub mod config;
pub mod counters;
pub mod effect;
pub mod engine;
mod following;
mod gathering;
mod group;
pub mod input;
mod installing;
mod installs;
mod liveness;
pub mod loading;
mod log_reads;
mod lost_ends;
pub mod members;
mod mending;
mod opening;
mod peers;
pub mod placement;
mod polls;
mod reads;
pub mod redistribution;
mod requests;
mod residence;
pub mod scrub;
mod scrubbing;
mod sending;
pub mod sparing;
mod tails;
mod timers;
mod versions;
mod waits;
pub mod wall;
