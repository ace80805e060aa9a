//! The write-ahead log of a shard: many groups, one stream of batches, one sync for all of them.
//!
//! ```text
//!   segment n                                   segment n+1
//!   ┌──────┬───────┬───────┬─ ─ ─┬────────┐     ┌──────┬───────┬─ ─
//!   │ HEAD │ batch │ batch │     │ FOOTER │     │ HEAD │ batch │
//!   └──────┴───────┴───────┴─ ─ ─┴────────┘     └──────┴───────┴─ ─
//! ```
//!
//! # What is durable when
//!
//! A batch is written with one synchronous write; several may be under way. A record is durable when
//! its batch *and all batches before it* are: [`writer::LogWriter`] reports the longest contiguous
//! prefix and nothing else. Each batch says how far the log was durable when it was submitted, which
//! is what later tells a torn tail from damage ([`recovery`]).
//!
//! # Invariants
//!
//! - A position in the log (LSN) is never written twice by one process, and an LSN that was
//!   reported durable is never given to another batch.
//! - A new process starts a new segment; its head says where the segment before it ends.
//! - The head of a segment repeats term, vote, commit and bases of every group, so that older
//!   segments hold nothing but entries, and an idle group pins none of them.
//!
//! Deliberately absent: files (a driver writes what [`writer::LogWriter::next_write`] yields), reading
//! single entries back, and any knowledge of what entries mean.

pub mod batch;
pub mod record;
pub mod recovery;
pub mod writer;
