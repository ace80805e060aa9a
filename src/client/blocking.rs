//! The client for programs without async: the same calls, each waiting for its answer.
//!
//! ```no_run
//! use rrq::client::blocking::Client;
//! use std::time::Duration;
//!
//! fn example() -> Result<(), rrq::client::Error> {
//!     let client = Client::connect("127.0.0.1:7411")?;
//!     client.enqueue("emails", "hello").key("order-42").send()?;
//!     let emails = client.queue("emails")?;
//!     for job in emails.lease(10, Duration::from_secs(5))? {
//!         println!("{:?}", job.job.body.payload);
//!         client.ack(job.token(), None)?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A client has a thread of its own with a tokio runtime, which keeps its connections and leases
//! alive between the calls; clones share it. Calls may come from any number of threads, and are
//! pipelined. What has no method here goes through [`Client::run`].
//!
//! Called by a task of a tokio runtime, every method panics, since it would hold up that runtime:
//! use [`crate::client`] there.

use crate::client::worker::{IntoVerdict, Job, Summary};
use crate::client::{
    AckItem, Addresses, Backoff, Code, Ended, Enqueued, Error, FinishedJob, JobFilter, JobId,
    JobPage, JobState, JobView, LeasedJob, NackItem, NewJob, NodeId, NodeView, Options,
    PurgeStates, QueueInfo, QueueSettings, QueueStats, ShardStatus, SweepAction, Swept, Token,
    WallTime, Worker,
};
use bytes::Bytes;
use std::future::IntoFuture;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

/// A client of a cluster; clones share everything. See the [module](self).
#[derive(Clone, Debug)]
pub struct Client {
    calls: crate::client::Client,
    thread: Arc<RuntimeThread>,
}

/// A queue of a [`Client`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct Queue {
    calls: crate::client::Queue,
    client: Client,
}

/// A thread that drives a runtime until this is dropped.
#[derive(Debug)]
struct RuntimeThread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RuntimeThread {
    fn start() -> Result<Self, Error> {
        let failed = |error: std::io::Error| {
            let words = format!("cannot start the client's thread: {error}");
            Error::new(Code::Unreachable, words)
        };
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            // Ends by a word, or when nobody is left to say one.
            let _ = runtime.block_on(stopped);
            // Does not wait for handlers that run on after their limit.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("rrq-client".to_owned());
        let thread = thread.spawn(run).map_err(failed)?;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for RuntimeThread {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // It runs nothing of ours that panics.
            let _ = thread.join();
        }
    }
}

/// Methods that wait for those of the same name.
macro_rules! wait_for {
    ($of:literal: $($name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {
        $(
            #[doc = concat!("As [`", $of, "::", stringify!($name), "`](crate::client::", $of, "::",
                stringify!($name), "), waiting for the answer.")]
            ///
            /// # Errors
            /// As there.
            ///
            /// # Panics
            /// Called by a task of a tokio runtime.
            #[allow(clippy::missing_errors_doc)]
            pub fn $name(&self, $($argument: $kind),*) -> $answer {
                self.run(self.calls.$name($($argument),*))
            }
        )*
    };
}

impl Client {
    /// As [`Client::connect`](crate::client::Client::connect), waiting for the answer.
    ///
    /// # Errors
    /// As there, or [`Code::Unreachable`] if the system gives no thread.
    ///
    /// # Panics
    /// Called by a task of a tokio runtime.
    pub fn connect(addresses: impl Into<Addresses>) -> Result<Self, Error> {
        Self::connect_with(addresses, Options::default())
    }

    /// As [`Client::connect_with`](crate::client::Client::connect_with), waiting for the answer.
    ///
    /// # Errors
    /// As [`Self::connect`].
    ///
    /// # Panics
    /// Called by a task of a tokio runtime.
    pub fn connect_with(addresses: impl Into<Addresses>, options: Options) -> Result<Self, Error> {
        let thread = RuntimeThread::start()?;
        let connected = crate::client::Client::connect_with(addresses, options);
        let calls = thread.handle.block_on(connected)?;
        Ok(Self {
            calls,
            thread: Arc::new(thread),
        })
    }

    /// The same client for async calls, which [`Self::run`] waits for.
    #[must_use]
    pub fn calls(&self) -> &crate::client::Client {
        &self.calls
    }

    /// Waits for a call of [`Self::calls`], or for anything that runs on tokio.
    ///
    /// # Panics
    /// Called by a task of a tokio runtime.
    pub fn run<F: IntoFuture>(&self, call: F) -> F::Output {
        self.thread.handle.block_on(call.into_future())
    }

    /// A job for a queue, which is made with the default settings if it is not there; it is
    /// enqueued by [`Enqueue::send`].
    pub fn enqueue(&self, queue: impl Into<String>, job: impl Into<NewJob>) -> Enqueue {
        Enqueue {
            call: self.calls.enqueue(queue, job),
            client: self.clone(),
        }
    }

    /// As [`Client::queue`](crate::client::Client::queue), waiting for the answer.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// Called by a task of a tokio runtime.
    pub fn queue(&self, name: &str) -> Result<Queue, Error> {
        self.run(self.calls.queue(name)).map(|queue| self.of(queue))
    }

    /// As [`Client::find_queue`](crate::client::Client::find_queue), waiting for the answer.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// Called by a task of a tokio runtime.
    pub fn find_queue(&self, name: &str) -> Result<Queue, Error> {
        let found = self.run(self.calls.find_queue(name));
        found.map(|queue| self.of(queue))
    }

    /// As [`Client::create_queue`](crate::client::Client::create_queue), waiting for the answer.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// Called by a task of a tokio runtime.
    pub fn create_queue(
        &self,
        name: &str,
        settings: QueueSettings,
        must_be_new: bool,
    ) -> Result<Queue, Error> {
        let made = self.run(self.calls.create_queue(name, settings, must_be_new));
        made.map(|queue| self.of(queue))
    }

    /// Runs a worker of [`Worker::new`]`(client.calls(), ..)` until it is told to stop, as
    /// [`Worker::run_until`]. Each job has a thread, so that the handler may block; one that has
    /// begun cannot be dropped: after its run limit or a lost lease it runs on, unheard, and
    /// [`Job::is_lost`] tells it so.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// Called by a task of a tokio runtime.
    pub fn work<V>(
        &self,
        worker: Worker,
        stop: &Stop,
        handler: impl Fn(Job) -> V + Send + Sync + 'static,
    ) -> Result<Summary, Error>
    where
        V: IntoVerdict + Send + 'static,
    {
        let handler = Arc::new(handler);
        let on_a_thread = move |job| {
            let handler = handler.clone();
            async move {
                let task = tokio::task::spawn_blocking(move || handler(job));
                match task.await {
                    Ok(verdict) => verdict,
                    // The worker takes it for a failure.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
        };
        let stopped = crate::client::worker::handle::is_true(stop.flag.subscribe());
        self.run(worker.run_until(stopped, on_a_thread))
    }

    wait_for! { "Client":
        queues() -> Result<Vec<(QueueInfo, QueueStats)>, Error>;
        status() -> Result<Vec<(NodeId, ShardStatus)>, Error>;
        nodes() -> Result<Vec<NodeView>, Error>;
        job(job: JobId) -> Result<JobView, Error>;
        wait(job: JobId, patience: Duration) -> Result<Ended, Error>;
        ack(token: Token, result: Option<Bytes>) -> Result<(), Error>;
        ack_batch(items: Vec<AckItem>) -> Vec<Result<(), Error>>;
        nack(token: Token, delay: Option<Duration>, reason: impl Into<Bytes>) -> Result<(), Error>;
        nack_batch(items: Vec<NackItem>) -> Vec<Result<(), Error>>;
        extend(token: Token, lease: Option<Duration>) -> Result<(), Error>;
        release(token: Token) -> Result<(), Error>;
        bury(token: Token, reason: impl Into<Bytes>) -> Result<(), Error>;
        cancel(job: JobId) -> Result<(), Error>;
        requeue_dead(jobs: Vec<JobId>) -> Vec<Result<(), Error>>;
        delete_dead(jobs: Vec<JobId>) -> Vec<Result<(), Error>>;
        close() -> ();
    }

    fn of(&self, calls: crate::client::Queue) -> Queue {
        Queue {
            calls,
            client: self.clone(),
        }
    }
}

impl Queue {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.calls.name()
    }

    /// The same queue for async calls, which [`Client::run`] waits for.
    #[must_use]
    pub fn calls(&self) -> &crate::client::Queue {
        &self.calls
    }

    /// A job for this queue; it is enqueued by [`Enqueue::send`].
    pub fn enqueue(&self, job: impl Into<NewJob>) -> Enqueue {
        Enqueue {
            call: self.calls.enqueue(job),
            client: self.client.clone(),
        }
    }

    wait_for! { "Queue":
        enqueue_batch(jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, Error>;
        lease(max: u32, wait: Duration) -> Result<Vec<LeasedJob>, Error>;
        lease_for(max: u32, wait: Duration, lease: Option<Duration>)
            -> Result<Vec<LeasedJob>, Error>;
        job_by_key(key: impl Into<Bytes>) -> Result<JobView, Error>;
        peek(state: JobState, limit: u32) -> Result<Vec<JobView>, Error>;
        count(state: JobState, filter: JobFilter) -> Result<u64, Error>;
        finished(limit: u32) -> Result<Vec<FinishedJob>, Error>;
        info() -> Result<(QueueInfo, QueueStats), Error>;
        alter(settings: QueueSettings, expected_version: Option<u32>) -> Result<QueueInfo, Error>;
        pause() -> Result<QueueInfo, Error>;
        drain() -> Result<QueueInfo, Error>;
        resume() -> Result<QueueInfo, Error>;
        purge(states: PurgeStates) -> Result<u64, Error>;
        delete() -> Result<(), Error>;
        sweep_dead(action: SweepAction, filter: JobFilter) -> Result<Swept, Error>;
    }

    /// The pages of a [`Scan`](crate::client::Scan), one call each; after an error there is none.
    pub fn scan(
        &self,
        scan: crate::client::Scan,
    ) -> impl Iterator<Item = Result<JobPage, Error>> + '_ {
        let mut scan = Some(scan);
        std::iter::from_fn(move || {
            let page = self.run(scan.as_mut()?.next());
            if !matches!(page, Ok(Some(_))) {
                scan = None;
            }
            page.transpose()
        })
    }

    fn run<F: IntoFuture>(&self, call: F) -> F::Output {
        self.client.run(call)
    }
}

/// Ends a [`Client::work`]; clones end the same.
#[derive(Clone, Debug)]
pub struct Stop {
    flag: Arc<watch::Sender<bool>>,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            flag: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl Stop {
    /// The worker leases nothing more, and drains.
    pub fn stop(&self) {
        self.flag.send_replace(true);
    }
}

/// A job that is enqueued by [`Self::send`]. What can be said of it is said at
/// [`Enqueue`](crate::client::Enqueue).
#[derive(Clone, Debug)]
#[must_use = "a job is enqueued by `send`"]
pub struct Enqueue {
    call: crate::client::Enqueue,
    client: Client,
}

macro_rules! say {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        $(
            #[doc = concat!("As [`Enqueue::", stringify!($name),
                "`](crate::client::Enqueue::", stringify!($name), ").")]
            pub fn $name(self, $($argument: $kind),*) -> Self {
                let call = self.call.$name($($argument),*);
                Self { call, ..self }
            }
        )*
    };
}

impl Enqueue {
    say! {
        key(key: impl Into<Bytes>);
        delay(delay: Duration);
        run_at(at: impl Into<WallTime>);
        priority(priority: u8);
        header(name: impl Into<String>, value: impl Into<Bytes>);
        ttl(ttl: Duration);
        lease(lease: Duration);
        max_attempts(attempts: u16);
        run_limit(limit: Duration);
        backoff(backoff: Backoff);
    }

    /// Enqueues it.
    ///
    /// # Errors
    /// As [`Queue::enqueue`](crate::client::Queue::enqueue).
    ///
    /// # Panics
    /// Called by a task of a tokio runtime.
    pub fn send(self) -> Result<Enqueued, Error> {
        self.client.run(self.call)
    }

    /// Enqueues it; its id, new or there already.
    ///
    /// # Errors
    /// As [`Self::send`].
    ///
    /// # Panics
    /// As [`Self::send`].
    pub fn id(self) -> Result<JobId, Error> {
        self.client.run(self.call.id())
    }
}
