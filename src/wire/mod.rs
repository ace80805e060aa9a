//! Bytes to values and back: the only folder that knows protobuf.
//!
//! ```text
//! socket bytes -> frame::FrameDecoder -> Frame { kind, body }
//!                                          |-> client::decode_request -> message::Request
//!                                          |-> client::decode_reply   -> message::Reply
//!                                          '-> peer::decode_messages  -> raft::Message, each
//! queue::Command -> command::encode_command -> payload of a log entry (and back)
//! ```
//!
//! The messages of a job's life take a short way (`hot`); all others go through generated structs.
//!
//! Rules: a decoder never panics, whatever the bytes, never allocates by a length that it has not
//! seen arrive, and names the fault in a [`WireError`] or [`FrameError`]. What leaves
//! [`decode_request`](client::decode_request) is inside every bound of [`limits`](
//! crate::base::limits), so that the engine checks none of them again. The protocol itself is
//! described in `docs/protocol.md`; log entries in `proto/log.proto`.
//!
//! What is deliberately absent: I/O, time, and any opinion on what a request means.

pub mod bounds;
pub mod checkpoint;
pub mod client;
pub mod command;
pub mod error;
mod fields;
pub mod frame;
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod generated;
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod generated_peer;
mod hot;
pub mod message;
pub mod peer;

pub use crate::queue::command::{
    AckItem, Backoff, BackoffKind, Command, DeadPolicy, Enqueued, Grant, ItemOutcome, JobFilter,
    NackItem, NewJob, Op, Outcome, PurgeStates, QueueInfo, QueueSettings, Rejection, SessionCall,
    Start, SweepAction, Window,
};
pub use crate::queue::view::{
    Body, FinishedJob, FinishedPage, JobCursor, JobEnd, JobPage, JobScan, JobState, JobView,
    QueueStats,
};
pub use error::{FrameError, WireError};
