//! The job state machine of a group.
//!
//! ```text
//!              run-at, delay           due
//!   enqueue ──────────────> Delayed ─────────┐
//!      │                       ^             v
//!      └───────────────────────┼────────> Pending <─────────────┬──────────────┐
//!                         nack │             │ lease            │ release,     │ requeue
//!                              │             v                  │ lease lost   │
//!                              └───────── InFlight ─────────────┘              │
//!                                 ack │      │ last attempt, bury              │
//!                                     v      v                                 │
//!                                  (gone)   Dead ──────────────────────────────┘
//! ```
//!
//! Waiting jobs also die of their time to live; any but a dead one can be cancelled; dead ones can
//! be deleted. A job that is done, cancelled or deleted leaves the state.
//!
//! # Invariants
//! - Every live job stands in exactly the orders that its record says (`partition.rs`), and every
//!   counter is what it counts; [`check::check`] proves it.
//! - A waiting job has an attempt left. A job in flight was granted; its token is (id, generation),
//!   and the generation rises at each grant and requeue and never falls.
//! - Sequences, queue uids and session ids are given out once.
//! - A number of a session's window is applied once; its outcome is kept until the client has it.
//! - Keys are forgotten at the end of their window, never earlier.
//!
//! # What `apply` may never do
//! Read a clock, draw a random number, wait, do I/O, depend on which pages or bodies are in memory,
//! refuse by an error instead of an outcome, or expire anything by the way: what is due is handled
//! by the command `Advance` alone.
//!
//! What is deliberately absent: who leads, what is durable, connections, long polls (a poll that
//! finds nothing is proposed again under its number), and the encoding of commands.

mod backoff;
mod body;
pub mod check;
mod codec;
pub mod command;
mod deadlines;
mod discarded;
mod filter;
mod frozen;
mod group_page;
mod history;
mod job_queue;
mod jobs;
mod keys;
mod leaf;
mod load;
mod needs;
mod outbox;
mod outcome;
mod outcomes;
mod page;
mod partition;
mod queues;
mod reads;
mod record;
mod residence;
mod salvage;
mod scan;
mod sessions;
mod settings;
mod shipping;
mod stored;
mod tree;
pub mod view;
mod writing;

#[cfg(test)]
mod shipping_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod version_tests;
#[cfg(test)]
mod writing_tests;

pub use body::{StoredBody, decode_body, encode_body};
pub use discarded::Discarded;
pub use frozen::{BodyCursor, FrozenBody, FrozenState};
pub use job_queue::{JobQueue, MACHINE_VERSION};
pub use load::stored_pages;
pub use needs::{PAGES_AHEAD, PAGES_AHEAD_AT_FIRST, PageWant};
pub use page::{PageError, PagePlace};
pub use residence::{AbsentPage, StoredPart, is_read_at_start};
pub use salvage::Lost;
pub use shipping::{Answer, Difference, Found, NamedBranch, NamedTree, Names, Source, Wanted};
pub use stored::{BodyAt, StoredAt, StoredParts, StoredPlace};
pub use writing::{Kept, LeftFiles, Piece, StateWriter, StoredTree, SummaryBytes, WrittenState};
