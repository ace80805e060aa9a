//! The client library: enqueue, lease and finish jobs from any tokio program.
//!
//! ```no_run
//! use rrq::client::{Client, Error, Worker};
//! use std::time::Duration;
//!
//! async fn produce() -> Result<(), Error> {
//!     let client = Client::connect("127.0.0.1:7411").await?;
//!     client.enqueue("emails", "hello").key("order-42").delay(Duration::from_secs(5)).await?;
//!     client.close().await;
//!     Ok(())
//! }
//!
//! async fn work() -> Result<(), Error> {
//!     let client = Client::connect("127.0.0.1:7411").await?;
//!     let summary = Worker::new(&client, "emails")
//!         .concurrency(16)
//!         .run(async |job| println!("{:?}", job.payload()))
//!         .await?;
//!     println!("{summary}");
//!     Ok(())
//! }
//! ```
//!
//! A [`Client`] is cheap to clone and may be shared by any number of tasks; their calls are
//! pipelined over one connection to each shard in use. Under it lies a session in each group that
//! is written to: a command that is sent again after a lost connection takes effect once, and its
//! answer is the first one. What cannot be known is said: [`Error::maybe_applied`].
//!
//! Delivery is at least once: a job whose lease ends before its ack is given out again.
//!
//! | file | holds |
//! | --- | --- |
//! | `handle.rs` | [`Client`]: its options, its calls |
//! | `queue.rs`, `enqueue.rs`, `finish.rs` | the verbs: enqueue, lease, ack and the others |
//! | `admin.rs` | what is done to queues |
//! | `cluster.rs` | the nodes, also those that cannot be reached |
//! | `scan.rs`, `finished.rs` | lists of jobs, page by page |
//! | `worker.rs` | [`Worker`]: takes jobs and runs a handler for each |
//! | `blocking.rs` | the same for programs without async |
//! | `partitions.rs` | which partition a job goes to, and a lease comes from |
//! | `session.rs` | what is decided: no socket, no clock; the simulator drives it too |
//! | `group.rs`, `links.rs` | its sessions, its connections |
//! | `tcp.rs` | the hands: tokio |
//!
//! What is decided ([`session`]) needs no tokio, and is there for the simulator too; all else only with the
//! feature `client`.

#![deny(missing_docs)]

#[cfg(feature = "client")]
mod address;
#[cfg(feature = "client")]
mod admin;
#[cfg(feature = "client")]
pub mod blocking;
#[cfg(feature = "client")]
mod call;
#[cfg(feature = "client")]
mod cluster;
#[cfg(feature = "client")]
mod enqueue;
mod error;
#[cfg(feature = "client")]
mod finish;
#[cfg(feature = "client")]
mod finished;
mod group;
#[cfg(feature = "client")]
mod handle;
mod links;
#[cfg(feature = "client")]
mod partitions;
#[cfg(feature = "client")]
mod queue;
#[cfg(feature = "client")]
mod scan;
pub mod session;
#[cfg(feature = "client")]
mod tcp;
#[cfg(feature = "client")]
mod wait;
#[cfg(feature = "client")]
pub mod worker;

pub use crate::base::code::Code;
pub use crate::base::ids::{DiskId, GroupId, JobId, NodeId, Partition, Token, Voter};
pub use crate::base::members::{Member, MemberRole};
pub use crate::base::units::WallTime;
pub use crate::wire::message::{
    GroupStatus, LeasedJob, MemberChange, ServerHello, ShardStatus, WaitingNode, WorkerInfo,
    WorkerSession,
};
pub use crate::wire::{
    AckItem, Backoff, BackoffKind, DeadPolicy, Enqueued, FinishedJob, JobCursor, JobEnd, JobFilter,
    JobPage, JobState, JobView, NackItem, NewJob, PurgeStates, QueueInfo, QueueSettings,
    QueueStats, Start, SweepAction,
};
#[cfg(feature = "client")]
pub use address::Addresses;
#[cfg(feature = "client")]
pub use admin::{Sweep, Swept};
#[cfg(feature = "client")]
pub use cluster::NodeView;
#[cfg(feature = "client")]
pub use enqueue::Enqueue;
pub use error::Error;
#[cfg(feature = "client")]
pub use finished::{FinishedCursor, FinishedScan};
#[cfg(feature = "client")]
use handle::Call;
#[cfg(feature = "client")]
pub use handle::{Client, Options};
#[cfg(feature = "client")]
pub use partitions::partition_of_key;
#[cfg(feature = "client")]
pub use queue::Queue;
#[cfg(feature = "client")]
pub use scan::{Scan, ScanCursor};
#[cfg(feature = "client")]
pub use wait::Ended;
#[cfg(feature = "client")]
pub use worker::Worker;
