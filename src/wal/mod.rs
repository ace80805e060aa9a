//! The write-ahead log of a shard: many Raft groups, one log, one sync for all of them.
//!
//! ```text
//!   segment 7            segment 8 (being written)        segment 9 (prepared)
//!   ┌──────┬───┬──┬────┐ ┌──────┬──────┬───┬ ─ ─ ─ ─ ─ ┐  ┌ ─ ─ ─ ─ ─ ─ ─ ─ ─┐
//!   │ head │ b │b │foot│ │ head │  b   │ b │  old bytes    old bytes
//!   └──────┴───┴──┴────┘ └──────┴──────┴───┴ ─ ─ ─ ─ ─ ┘  └ ─ ─ ─ ─ ─ ─ ─ ─ ─┘
//!      └ rows and bases of all groups    └ durable LSN: proves what lies before
//! ```
//!
//! | file | holds |
//! | --- | --- |
//! | [`record`] | what the log says: entries, hard states, bases, group rows |
//! | [`codec`] | records as bytes |
//! | [`batch`] | batches, the unit of writing, as bytes |
//! | [`segment`] | segment head and footer, epochs |
//! | [`ledger`] | what the writer repeats, and which segments may go |
//! | [`writer`] | group commit: records in, batches out |
//! | `recap` | what each batch says again of those before it |
//! | [`pieces`] | where the entries of a group lie, to be read again |
//! | [`extent`] | how much of a segment a start must read |
//! | `chain` | which files make up the log |
//! | [`recovery`] | torn or corrupt: the decision table |
//! | [`replay`] | what a hole means for each group |
//! | [`carry`] | a group taken over into another log, or into its next life |
//!
//! Pure: no file, clock or thread. A driver writes, syncs, prepares, deletes and reads segments.
//!
//! # Invariants
//!
//! - What [`writer::LogWriter::durable_ticket`] covers comes back from [`recovery::Recovery`], or
//!   the group is reported as damaged. Never is it silently missing. Left open: damage to the last
//!   batches before any later batch, manifest or peer could prove them.
//! - Nothing depends on a clock or on the order of a hash map.

pub mod batch;
pub mod carry;
mod chain;
pub mod codec;
pub mod extent;
pub mod ledger;
pub mod pieces;
mod recap;
pub mod record;
pub mod recovery;
pub mod replay;
pub mod segment;
pub mod writer;
