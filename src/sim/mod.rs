//! The engine under simulated time, disk and faults, with real codecs: one node of one shard ([`world`]),
//! and several nodes of several shards ([`cluster`]). [`driver`] does for both what a driver does.
//!
//! # Fault model
//!
//! - The process may die at any point, during recovery too. What was never handed to the disk is
//!   gone.
//! - A log write under way at that moment lands sector by sector: any subset of its 512-byte sectors,
//!   whatever became of the writes before it. A write that was reported complete is on disk.
//! - Writes complete in any order, after any delay.
//! - A checkpoint file that was not synced keeps any subset of its sectors, or is not there at all. A
//!   manifest that was not reported written is the old one or the new one.
//! - Recycled segments hold what was in them before.
//! - A checkpoint round may fail for lack of space; the disk may be full for a while.
//! - The wall clock may jump.
//!
//! - In a cluster, also: messages are late, connections break, nothing passes some ways, processes stand
//!   still, and clocks go at different rates.
//!
//! What it may not do: lose or change a byte that was synced (that is damage, and belongs to the
//! tests of the log and of the checkpoint files), or report a write that did not happen.
//!
//! # What is checked
//!
//! [`ledger`] holds every promise made to a client against every later answer: no acknowledged job
//! is lost, none is delivered after its ack, no token is granted twice, a retry never makes a second
//! job, payloads are what was enqueued, nobody is told of an end that nobody asked for. [`operator`]
//! checks that what was answered of a queue holds in each of its partitions. In some runs the groups
//! start at the first version of the job machine and rise on the way. What nodes may not hold against each
//! other is said in [`cluster`].
//!
//! Some clients of a cluster are programs that use the client library's core ([`core_client`]); the others
//! ([`client`]) keep their session by hand.
//!
//! A run is a pure function of its seed. What is deliberately absent: the network between client and node
//! (frames arrive whole or not at all), and `runtime/`.

mod agenda;
mod asking;
pub mod client;
pub mod cluster;
pub mod core_client;
pub mod disk;
pub mod driver;
pub mod history;
pub mod kept;
pub mod ledger;
pub mod operator;
pub mod shrink;
pub mod told;
pub mod world;
