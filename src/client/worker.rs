//! A worker: takes jobs of a queue and runs a handler for each, several at once.
//!
//! ```no_run
//! # async fn send(_: &[u8]) -> std::io::Result<()> { Ok(()) }
//! # async fn example(client: rrq::client::Client) -> Result<(), rrq::client::Error> {
//! use rrq::client::Worker;
//! use std::time::Duration;
//!
//! let summary = Worker::new(&client, "emails")
//!     .concurrency(16)
//!     .run_limit(Duration::from_secs(60))
//!     .run(|job| async move { send(job.payload()).await })
//!     .await?;
//! println!("{summary}");
//! # Ok(()) }
//! ```
//!
//! - A handler that returns `Ok`, or nothing, acknowledges the job; an error, a panic or the run
//!   limit gives it back, to be tried again by its backoff, with the words as the reason. Anything
//!   else says a [`Verdict`].
//! - Leases are extended at a third of their time, also of jobs that wait to be started, so that a
//!   short lease is no bound of a long job.
//! - A lost lease ends the handler, since the job may be in other hands by now: see [`Job`].
//! - At the stop nothing more is leased, what did not start goes back uncounted, what runs is
//!   finished. What is not done at the drain's deadline is dropped and tried again at once.
//! - A server that is away is waited for.
//!
//! Handlers that block the thread hold up the others: use `tokio::task::spawn_blocking`. A program
//! built with `panic = "abort"` ends at the first panic.
//!
//! | file | holds |
//! | --- | --- |
//! | `plan.rs` | what is decided: how many to lease, what to start, what to extend |
//! | `run.rs` | the loop |
//! | `handle.rs` | one job |
//! | `job.rs` | what a handler gets and may return |

pub(super) mod handle;
mod job;
mod plan;
mod run;

pub use job::{IntoVerdict, Job, Verdict};

use crate::client::call::out_of_bounds;
use crate::client::{Client, Error, WorkerInfo};
use crate::wire::bounds::check_worker;
use std::fmt;
use std::future::Future;
use std::time::Duration;

/// How long running jobs may take after the stop, unless told otherwise.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// A worker of one queue; see the [module](self).
#[derive(Clone, Debug)]
#[must_use = "a worker does nothing until it is run"]
pub struct Worker {
    client: Client,
    queue: String,
    info: WorkerInfo,
    prefetch: u32,
    lease: Option<Duration>,
    run_limit: Duration,
    drain_deadline: Duration,
    until_empty: bool,
}

/// What became of the jobs of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Acknowledged.
    pub done: u64,
    /// To be tried again, or dead if that was the last attempt: errors, panics, run limits, and
    /// what was not finished in time at the stop.
    pub failed: u64,
    /// Buried.
    pub buried: u64,
    /// Gone back uncounted: not started, or released by the handler.
    pub released: u64,
    /// The lease went first, or the server could not be told.
    pub lost: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} done, {} failed", self.done, self.failed)?;
        let rest = [
            (self.buried, "buried"),
            (self.released, "released"),
            (self.lost, "lost"),
        ];
        for (count, what) in rest.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        Ok(())
    }
}

impl Worker {
    /// A worker of a queue, which is made with the default settings if it is not there.
    pub fn new(client: &Client, queue: impl Into<String>) -> Self {
        Self {
            client: client.clone(),
            queue: queue.into(),
            info: WorkerInfo {
                capacity: 1,
                ..WorkerInfo::default()
            },
            prefetch: 0,
            lease: None,
            run_limit: Duration::ZERO,
            drain_deadline: DRAIN_DEADLINE,
            until_empty: false,
        }
    }

    /// How many jobs run at once, at least 1 (default 1).
    pub fn concurrency(mut self, jobs: u32) -> Self {
        self.info.capacity = jobs.max(1);
        self
    }

    /// How many jobs more are leased ahead, so that a place that gets free is filled at once
    /// (default 0). They are held back from other workers.
    pub fn prefetch(mut self, jobs: u32) -> Self {
        self.prefetch = jobs;
        self
    }

    /// A lease time of its own, instead of the job's or the queue's: how soon others get its jobs
    /// should it hang. It is extended while a job runs.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// How long a job may run, besides the job's own limit; the shorter one holds. None unless set.
    pub fn run_limit(mut self, limit: Duration) -> Self {
        self.run_limit = limit;
        self
    }

    /// How long running jobs may take after the stop (default 30 s).
    pub fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.drain_deadline = deadline;
        self
    }

    /// A name for people, at most 128 bytes; `rrqctl worker list` shows it. What a client's last
    /// worker says of itself stands for the client: workers that are to be told apart need a client
    /// each.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.info.name = name.into();
        self
    }

    /// A word about it for people, 1 to 128 bytes; at most 16. It does not route.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.info.tags.push(tag.into());
        self
    }

    /// Ends by itself when no job is ready and none is running here.
    pub fn until_empty(mut self) -> Self {
        self.until_empty = true;
        self
    }

    /// Works until an error that does not pass, or for ever; with [`Self::until_empty`], until
    /// then. Dropped, it drops its handlers, and its jobs go back when their leases end.
    ///
    /// # Errors
    /// As [`Self::run_until`].
    pub async fn run<F, Fut, V>(self, handler: F) -> Result<Summary, Error>
    where
        F: Fn(Job) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = V> + Send + 'static,
        V: IntoVerdict + 'static,
    {
        self.run_until(std::future::pending::<()>(), handler).await
    }

    /// Works until `stop` ends, then drains: see the [module](self).
    ///
    /// # Errors
    /// [`Code::Invalid`](super::Code::Invalid) if the queue's name, or the worker's, cannot be one,
    /// and what a call can end with, if waiting does not help ([`Error::is_retryable`]); jobs in
    /// hand are drained before. A server that is away at the start is an error.
    pub async fn run_until<F, Fut, V>(self, stop: impl Future, handler: F) -> Result<Summary, Error>
    where
        F: Fn(Job) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = V> + Send + 'static,
        V: IntoVerdict + 'static,
    {
        check_worker(&self.info).map_err(out_of_bounds)?;
        let queue = self.client.queue(&self.queue).await?;
        self.client.introduce(self.info.clone());
        run::Loop::new(self, queue, handler).run(stop).await
    }
}
