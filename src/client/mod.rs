//! The client library: enqueue, lease and finish jobs from any tokio program.
//!
//! ```no_run
//! use rrq::client::{Client, Error, NewJob};
//! use std::time::Duration;
//!
//! async fn example() -> Result<(), Error> {
//!     let client = Client::connect("127.0.0.1:7411").await?;
//!     let emails = client.queue("emails").await?;
//!     emails.enqueue(NewJob { payload: "hello".into(), ..NewJob::default() }).await?;
//!     for job in emails.lease(10, Duration::from_secs(5)).await? {
//!         println!("{:?}", job.job.body.payload);
//!         client.ack(job.token(), None).await?;
//!     }
//!     client.close().await;
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
//! | `session.rs` | what is decided: no socket, no clock; a simulator can drive it |
//! | `group.rs`, `links.rs` | its sessions, its connections |
//! | `tcp.rs` | the hands: tokio |
//! | `queue.rs` | [`Queue`] |

mod error;
mod group;
mod links;
mod queue;
pub mod session;
mod tcp;

pub use crate::base::code::Code;
pub use crate::base::ids::{GroupId, JobId, NodeId, Token};
pub use crate::wire::message::{GroupStatus, LeasedJob, ServerHello, ShardStatus};
pub use crate::wire::{
    AckItem, Backoff, BackoffKind, DeadPolicy, Enqueued, JobState, JobView, NackItem, NewJob,
    PurgeStates, QueueInfo, QueueSettings, QueueStats, Start,
};
pub use error::Error;
pub use queue::Queue;

use crate::base::limits::{FRAME_BYTES_MAX, ITEMS_MAX};
use crate::client::queue::QueueSlot;
use crate::client::session::{CoreOptions, Route};
use crate::client::tcp::{Awaited, Driver};
use crate::wire::client::is_queue_name;
use crate::wire::message::{Reply, ReplyBody, RequestBody};
use crate::wire::{Command, ItemOutcome, Op, Outcome};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The default client port of a node.
const DEFAULT_PORT: u16 = 7411;
/// In-flight bytes are counted in units of this.
const BYTES_UNIT: usize = 1 << 10;
/// More than what surrounds the variable parts of an item on the wire.
const ITEM_OVERHEAD_BYTES: usize = 128;
/// How long [`Client::close`] waits for the servers to hear it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How a client behaves; the default is right for most.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name and version of the program, for the server's logs.
    pub agent: String,
    /// How long [`Client::connect_with`] tries.
    pub connect_deadline: Duration,
    /// How long a call tries, over lost connections and refusals that pass (default 30 s).
    pub deadline: Duration,
    /// Requests under way at once, polls not counted; more wait (default 1024).
    pub requests_in_flight: usize,
    /// Bytes of requests under way at once; more wait (default 16 MiB).
    pub bytes_in_flight: usize,
    /// Whether commands run in sessions (default). Without, a command whose answer is lost ends as
    /// [`Code::Unknown`] at once.
    pub sessions: bool,
    /// Silent this long, the jobs that this client holds go back (default 10 s).
    pub worker_timeout: Duration,
    /// The first wait before a new attempt is drawn from zero to this (default 10 ms).
    pub backoff_min: Duration,
    /// Every wait before a new attempt is at most this (default 1 s).
    pub backoff_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let core = CoreOptions::default();
        Self {
            agent: concat!("rrq-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_deadline: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            requests_in_flight: 1024,
            bytes_in_flight: 16 << 20,
            sessions: core.sessions,
            worker_timeout: core.worker_timeout,
            backoff_min: core.backoff_min,
            backoff_max: core.backoff_max,
        }
    }
}

/// A client of a cluster; clones share everything.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    driver: Driver,
    options: Options,
    slots: Semaphore,
    bytes: Semaphore,
    queues: Mutex<BTreeMap<String, Arc<QueueSlot>>>,
}

/// A call under way, with the room that it takes.
struct Call<'a> {
    answer: Awaited,
    _room: Option<(SemaphorePermit<'a>, SemaphorePermit<'a>)>,
}

impl Call<'_> {
    async fn reply(self) -> Result<Reply, Error> {
        self.answer.answer().await
    }
}

impl Client {
    /// Connects to a cluster. `addresses` is one or more `host:port`, separated by commas, each
    /// with or without `rrq://` before it; the port may be left out.
    ///
    /// # Errors
    /// [`Code::BadArgument`] if an address cannot be read, [`Code::Unreachable`] if no server
    /// answers, [`Code::ProtocolMismatch`] if it is of another version.
    pub async fn connect(addresses: &str) -> Result<Self, Error> {
        Self::connect_with(addresses, Options::default()).await
    }

    /// Connects with options of your own.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_with(addresses: &str, options: Options) -> Result<Self, Error> {
        let addresses = parse_addresses(addresses)?;
        let core = CoreOptions {
            sessions: options.sessions,
            worker_timeout: options.worker_timeout,
            backoff_min: options.backoff_min,
            backoff_max: options.backoff_max,
            seed: 0,
        };
        let bytes = (options.bytes_in_flight / BYTES_UNIT).max(1);
        let inner = Inner {
            driver: Driver::start(addresses, core, options.agent.clone()),
            slots: Semaphore::new(options.requests_in_flight.max(1)),
            bytes: Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)),
            queues: Mutex::new(BTreeMap::new()),
            options,
        };
        let client = Self {
            inner: Arc::new(inner),
        };
        let patience = client.inner.options.connect_deadline;
        let driver = &client.inner.driver;
        driver
            .ask(Route::Any, RequestBody::Status, patience)
            .answer()
            .await?;
        Ok(client)
    }

    /// The queue of this name; made with the default settings if it is not there.
    ///
    /// # Errors
    /// [`Code::Invalid`] if this cannot be a name, or what a call can end with.
    pub async fn queue(&self, name: &str) -> Result<Queue, Error> {
        let known = self.queues_known().get(name).cloned();
        if let Some(slot) = known {
            return Ok(Queue::new(self.clone(), slot));
        }
        let info = self.resolve(name).await?;
        Ok(self.remember(info))
    }

    /// The queue of this name, if it is there.
    ///
    /// # Errors
    /// [`Code::NoSuchQueue`], or what a call can end with.
    pub async fn find_queue(&self, name: &str) -> Result<Queue, Error> {
        let (info, _) = self.get_queue(name).await?;
        Ok(self.remember(info))
    }

    /// The queues whose home is one group, with their counters.
    ///
    /// # Errors
    /// What a call can end with, as [`Code::GroupHalted`].
    pub async fn queues_of(&self, group: GroupId) -> Result<Vec<(QueueInfo, QueueStats)>, Error> {
        let body = RequestBody::ListQueues { group };
        match self.call(Route::Group(group), body).await?.body {
            ReplyBody::Queues(queues) => Ok(queues),
            other => Err(strange(&other)),
        }
    }

    /// Makes a queue; with `must_be_new`, one that is there is an error, else it is left as it is.
    ///
    /// # Errors
    /// [`Code::QueueExists`], [`Code::Invalid`], [`Code::Unsupported`], or what a call can end with.
    pub async fn create_queue(
        &self,
        name: &str,
        settings: QueueSettings,
        must_be_new: bool,
    ) -> Result<Queue, Error> {
        let info = self.create(name, settings, must_be_new).await?;
        Ok(self.remember(info))
    }

    /// All queues with their counters, in the order of their names.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn queues(&self) -> Result<Vec<(QueueInfo, QueueStats)>, Error> {
        let mut calls = Vec::new();
        for group in 0..self.hello()?.groups {
            let group = GroupId((group & 0xffff) as u16);
            calls.push(
                self.start(Route::Group(group), RequestBody::ListQueues { group })
                    .await?,
            );
        }
        let mut queues = Vec::new();
        for call in calls {
            match call.reply().await?.body {
                ReplyBody::Queues(part) => queues.extend(part),
                other => return Err(strange(&other)),
            }
        }
        queues.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        Ok(queues)
    }

    /// What each shard of each node is and does; a node that cannot be reached is an error.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn status(&self) -> Result<Vec<(NodeId, ShardStatus)>, Error> {
        let mut calls = Vec::new();
        for node in &self.hello()?.nodes {
            for shard in 0..node.addresses.len() {
                let shard = u16::try_from(shard).unwrap_or(u16::MAX);
                let route = Route::Shard(node.node, shard);
                calls.push((node.node, self.start(route, RequestBody::Status).await?));
            }
        }
        let mut shards = Vec::new();
        for (node, call) in calls {
            match call.reply().await?.body {
                ReplyBody::Status(status) => shards.push((node, status)),
                other => return Err(strange(&other)),
            }
        }
        Ok(shards)
    }

    /// What the server last said of itself and its cluster.
    ///
    /// # Errors
    /// [`Code::Unreachable`]; never once connected.
    pub fn hello(&self) -> Result<ServerHello, Error> {
        let hello = self.inner.driver.with_core(|core| core.hello().cloned());
        hello.ok_or_else(|| Error::new(Code::Unreachable, "no server was reached yet"))
    }

    /// A live job.
    ///
    /// # Errors
    /// [`Code::Finished`] or [`Code::NotFound`], or what a call can end with.
    pub async fn job(&self, job: JobId) -> Result<JobView, Error> {
        let route = Route::Group(job.group());
        self.job_reply(route, RequestBody::GetJob { job }).await
    }

    async fn job_reply(&self, route: Route, body: RequestBody) -> Result<JobView, Error> {
        match self.call(route, body).await?.body {
            ReplyBody::Job(job) => Ok(*job),
            other => Err(strange(&other)),
        }
    }

    /// The job is done; a result is kept only where the queue retains results.
    ///
    /// # Errors
    /// [`Code::LeaseLost`] or [`Code::Finished`]: the lease ended before, and the job was or will
    /// be run again; or what a call can end with.
    pub async fn ack(&self, token: Token, result: Option<Bytes>) -> Result<(), Error> {
        first(self.ack_batch(vec![AckItem { token, result }]).await)
    }

    /// Many jobs are done; one outcome per item, in order.
    pub async fn ack_batch(&self, items: Vec<AckItem>) -> Vec<Result<(), Error>> {
        let op = |items| Op::Ack { items };
        self.by_group(items, |item| item.token.job, op).await
    }

    /// The job failed and shall be tried again after `delay`, or by its backoff; it dies if this
    /// was its last attempt. The reason is for people and cut at 256 bytes.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn nack(
        &self,
        token: Token,
        delay: Option<Duration>,
        reason: impl Into<Bytes>,
    ) -> Result<(), Error> {
        let item = NackItem {
            token,
            delay_ms: delay.map(millis),
            reason: reason.into(),
        };
        first(self.nack_batch(vec![item]).await)
    }

    /// Many jobs failed; one outcome per item, in order.
    pub async fn nack_batch(&self, items: Vec<NackItem>) -> Vec<Result<(), Error>> {
        let op = |items| Op::Nack { items };
        self.by_group(items, |item| item.token.job, op).await
    }

    /// The lease lasts this long from now; `None` = as long as the job's own or the queue's.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn extend(&self, token: Token, lease: Option<Duration>) -> Result<(), Error> {
        let items = vec![(token, lease.map_or(0, millis_u32))];
        let op = |items| Op::Extend { items };
        first(self.by_group(items, |(token, _)| token.job, op).await)
    }

    /// The job goes back to its place, uncounted: it was not started.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn release(&self, token: Token) -> Result<(), Error> {
        first(self.release_batch(vec![token]).await)
    }

    /// Many jobs go back; one outcome per item, in order.
    pub async fn release_batch(&self, tokens: Vec<Token>) -> Vec<Result<(), Error>> {
        let op = |items| Op::Release { items };
        self.by_group(tokens, |token| token.job, op).await
    }

    /// The job goes to the dead at once.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn bury(&self, token: Token, reason: impl Into<Bytes>) -> Result<(), Error> {
        let op = |items| Op::Bury { items };
        first(
            self.by_group(vec![(token, reason.into())], |(token, _)| token.job, op)
                .await,
        )
    }

    /// The job shall not run; a worker that has it loses its lease.
    ///
    /// # Errors
    /// [`Code::Finished`], [`Code::NotFound`], or what a call can end with.
    pub async fn cancel(&self, job: JobId) -> Result<(), Error> {
        let op = |items| Op::Cancel { items };
        first(self.by_group(vec![job], |job| *job, op).await)
    }

    /// Dead jobs become pending again, with their attempts counted anew; one outcome per job.
    pub async fn requeue_dead(&self, jobs: Vec<JobId>) -> Vec<Result<(), Error>> {
        let op = |items| Op::RequeueDead { items };
        self.by_group(jobs, |job| *job, op).await
    }

    /// Dead jobs are removed; one outcome per job.
    pub async fn delete_dead(&self, jobs: Vec<JobId>) -> Vec<Result<(), Error>> {
        let op = |items| Op::DeleteDead { items };
        self.by_group(jobs, |job| *job, op).await
    }

    /// Ends the client and all its clones: what it holds goes back at once, calls under way end
    /// with an error. Waits up to a second for the servers to hear it. Without it, what the client
    /// holds goes back once the servers see its connections gone.
    pub async fn close(&self) {
        let closed = self.inner.driver.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, closed.answer())
            .await
            .is_err()
        {
            tracing::debug!("a server did not answer the bye");
        }
    }

    // ---- underneath ------------------------------------------------------------------------

    fn queues_known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<QueueSlot>>> {
        self.inner
            .queues
            .lock()
            .expect("nothing panics while it holds the lock")
    }

    fn remember(&self, info: QueueInfo) -> Queue {
        let mut queues = self.queues_known();
        let slot = match queues.get(&info.name) {
            Some(slot) => {
                slot.set(info);
                slot.clone()
            }
            None => {
                let name = info.name.clone();
                let slot = Arc::new(QueueSlot::new(info));
                queues.insert(name, slot.clone());
                slot
            }
        };
        Queue::new(self.clone(), slot)
    }

    /// The queue of a name, made with the node's settings if it is not there.
    async fn resolve(&self, name: &str) -> Result<QueueInfo, Error> {
        Ok(self.ask_queue(name, true).await?.0)
    }

    async fn get_queue(&self, name: &str) -> Result<(QueueInfo, QueueStats), Error> {
        self.ask_queue(name, false).await
    }

    async fn ask_queue(&self, name: &str, create: bool) -> Result<(QueueInfo, QueueStats), Error> {
        let group = self.home_group(name)?;
        let name = name.to_owned();
        let body = RequestBody::GetQueue { name, create };
        let reply = self.call(Route::Group(group), body).await?;
        match reply.body {
            ReplyBody::Queues(mut queues) if queues.len() == 1 => Ok(queues.remove(0)),
            other => Err(strange(&other)),
        }
    }

    async fn create(
        &self,
        name: &str,
        settings: QueueSettings,
        must_be_new: bool,
    ) -> Result<QueueInfo, Error> {
        let op = Op::CreateQueue {
            name: name.to_owned(),
            settings,
            must_be_new,
            groups: 0,
        };
        match self.command(self.home_group(name)?, op).await? {
            Outcome::Queue(info) => Ok(info),
            other => Err(strange(&other)),
        }
    }

    fn home_group(&self, name: &str) -> Result<GroupId, Error> {
        if !is_queue_name(name) {
            let words = "a queue's name is 1 to 128 of A-Z a-z 0-9 . _ : -";
            return Err(Error::new(Code::Invalid, words));
        }
        let home = self.inner.driver.with_core(|core| core.home_group(name));
        home.ok_or_else(|| Error::new(Code::Unreachable, "no server was reached yet"))
    }

    /// Starts a call once there is room for it.
    async fn start(&self, route: Route, body: RequestBody) -> Result<Call<'_>, Error> {
        let room = self.room_for(&body).await?;
        let answer = self
            .inner
            .driver
            .ask(route, body, self.inner.options.deadline);
        Ok(Call {
            answer,
            _room: room,
        })
    }

    /// Polls wait long and are few, so they take no room: an ack must never wait for them.
    async fn room_for(
        &self,
        body: &RequestBody,
    ) -> Result<Option<(SemaphorePermit<'_>, SemaphorePermit<'_>)>, Error> {
        let bytes = match body {
            RequestBody::Command { command, .. } => match &command.op {
                Op::Lease { .. } => return Ok(None),
                op => op_bytes(op)?,
            },
            _ => 0,
        };
        let all = (self.inner.options.bytes_in_flight / BYTES_UNIT).max(1);
        let units = (bytes / BYTES_UNIT + 1).min(all);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let closed = |_| Error::new(Code::Stopping, "the client is closed");
        let slot = self.inner.slots.acquire().await.map_err(closed)?;
        let bytes = self.inner.bytes.acquire_many(units).await.map_err(closed)?;
        Ok(Some((slot, bytes)))
    }

    /// Asks; a rejection is an error, of a read as of a command.
    async fn call(&self, route: Route, body: RequestBody) -> Result<Reply, Error> {
        let reply = self.start(route, body).await?.reply().await?;
        match reply.body {
            ReplyBody::Outcome(Outcome::Rejected(rejection)) => Err(Error::rejected(rejection)),
            _ => Ok(reply),
        }
    }

    /// Asks a command; a rejection is an error.
    async fn command(&self, group: GroupId, op: Op) -> Result<Outcome, Error> {
        let reply = self
            .call(Route::Group(group), command(group, op, 0))
            .await?;
        outcome(reply)
    }

    /// Asks for items of any groups, one command a group and at most 1024 items each.
    async fn by_group<T>(
        &self,
        items: Vec<T>,
        job: impl Fn(&T) -> JobId,
        op: impl Fn(Vec<T>) -> Op,
    ) -> Vec<Result<(), Error>> {
        let count = items.len();
        let mut batches: Vec<(GroupId, Vec<usize>, Vec<T>)> = Vec::new();
        let mut open: BTreeMap<GroupId, usize> = BTreeMap::new();
        for (place, item) in items.into_iter().enumerate() {
            let group = job(&item).group();
            let batch = open
                .get(&group)
                .copied()
                .filter(|at| batches[*at].1.len() < ITEMS_MAX);
            let batch = batch.unwrap_or_else(|| {
                batches.push((group, Vec::new(), Vec::new()));
                open.insert(group, batches.len() - 1);
                batches.len() - 1
            });
            batches[batch].1.push(place);
            batches[batch].2.push(item);
        }
        let mut calls = Vec::new();
        for (group, places, items) in batches {
            let call = self
                .start(Route::Group(group), command(group, op(items), 0))
                .await;
            calls.push((places, call));
        }
        let mut outcomes = vec![Ok(()); count];
        for (places, call) in calls {
            let reply = match call {
                Ok(call) => call.reply().await,
                Err(error) => Err(error),
            };
            let answer = reply.and_then(outcome).and_then(|outcome| match outcome {
                Outcome::Items(items) if items.len() == places.len() => Ok(items),
                other => Err(strange(&other)),
            });
            for (index, place) in places.into_iter().enumerate() {
                outcomes[place] = match &answer {
                    Ok(items) => match items[index] {
                        ItemOutcome::Done => Ok(()),
                        ItemOutcome::Rejected(rejection) => Err(Error::rejected(rejection)),
                    },
                    Err(error) => Err(error.clone()),
                };
            }
        }
        outcomes
    }
}

fn command(group: GroupId, op: Op, wait_ms: u32) -> RequestBody {
    RequestBody::Command {
        group,
        command: Command { session: None, op },
        wait_ms,
    }
}

/// What the machine said; a rejection is an error.
fn outcome(reply: Reply) -> Result<Outcome, Error> {
    match reply.body {
        ReplyBody::Outcome(Outcome::Rejected(rejection)) => Err(Error::rejected(rejection)),
        ReplyBody::Outcome(outcome) => Ok(outcome),
        other => Err(strange(&other)),
    }
}

fn strange(answer: &impl std::fmt::Debug) -> Error {
    let mut words = format!("the server answered something else than was asked: {answer:?}");
    if let Some((cut, _)) = words.char_indices().nth(200) {
        words.truncate(cut);
    }
    Error::new(Code::BadFrame, words)
}

fn first(outcomes: Vec<Result<(), Error>>) -> Result<(), Error> {
    outcomes.into_iter().next().unwrap_or(Ok(()))
}

/// Bounds that a server would answer by closing the connection are checked before sending.
fn op_bytes(op: &Op) -> Result<usize, Error> {
    let (count, bytes) = match op {
        Op::Enqueue { items, .. } => (items.len(), items.iter().map(job_bytes).sum()),
        Op::Ack { items } => {
            let result = |item: &AckItem| item.result.as_ref().map_or(0, Bytes::len);
            (items.len(), items.iter().map(result).sum())
        }
        Op::Nack { items } => (
            items.len(),
            items.iter().map(|item| item.reason.len()).sum(),
        ),
        Op::Bury { items } => (
            items.len(),
            items.iter().map(|(_, reason)| reason.len()).sum(),
        ),
        Op::Extend { items } => (items.len(), 0),
        Op::Release { items } => (items.len(), 0),
        Op::Cancel { items } | Op::RequeueDead { items } | Op::DeleteDead { items } => {
            (items.len(), 0)
        }
        _ => (1, 0),
    };
    let bytes = bytes + (count + 1) * ITEM_OVERHEAD_BYTES;
    if count > ITEMS_MAX {
        let words = format!("{count} items in one request, at most {ITEMS_MAX} are allowed");
        return Err(Error::new(Code::Invalid, words));
    }
    if bytes > FRAME_BYTES_MAX {
        let words = format!("a request of {bytes} bytes, at most {FRAME_BYTES_MAX} are allowed");
        return Err(Error::new(Code::PayloadTooLarge, words));
    }
    Ok(bytes)
}

fn job_bytes(job: &NewJob) -> usize {
    let header = |(name, value): &(String, Bytes)| name.len() + value.len() + 16;
    let headers: usize = job.headers.iter().map(header).sum();
    job.payload.len() + job.key.as_ref().map_or(0, Bytes::len) + headers
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn millis_u32(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn parse_addresses(text: &str) -> Result<Vec<String>, Error> {
    text.split(',')
        .map(|part| parse_address(part.trim()))
        .collect()
}

fn parse_address(text: &str) -> Result<String, Error> {
    let bad = || {
        let words = format!("`{text}` is no address; expected host:port, e.g. 127.0.0.1:7411");
        Error::new(Code::BadArgument, words)
    };
    let address = text.strip_prefix("rrq://").unwrap_or(text);
    let address = address.strip_suffix('/').unwrap_or(address);
    let is_ipv6 = address.starts_with('[');
    let port_at = match is_ipv6 {
        true => address.find("]:").map(|at| at + 1),
        false => address.find(':'),
    };
    let (host, port) = match port_at {
        Some(at) => (&address[..at], Some(&address[at + 1..])),
        None => (address, None),
    };
    let odd = |byte: u8| byte.is_ascii_whitespace() || b"/@?#".contains(&byte);
    let closed = !is_ipv6 || (host.len() > 2 && host.ends_with(']'));
    if host.is_empty() || host.bytes().any(odd) || !closed {
        return Err(bad());
    }
    match port {
        None => Ok(format!("{host}:{DEFAULT_PORT}")),
        Some(port) if port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(address.to_owned()),
        Some(_) => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Rejection;

    #[test]
    fn calls_can_be_spawned() {
        fn sendable<T: Send>(_: impl Fn(Client, Queue) -> T) {}
        sendable(|client, queue| async move {
            let _ = queue.enqueue(NewJob::default()).await;
            let _ = queue.lease(1, Duration::ZERO).await;
            let _ = queue.pause().await;
            let _ = queue.delete().await;
            let _ = client.ack_batch(Vec::new()).await;
            let _ = client.queues().await;
            client.close().await;
        });
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let parse = |text| parse_addresses(text).map_err(|error| error.to_string());
        let one = |text: &str| Ok(vec![text.to_owned()]);
        assert_eq!(parse("127.0.0.1:7411"), one("127.0.0.1:7411"));
        assert_eq!(parse("rrq://queue.example"), one("queue.example:7411"));
        assert_eq!(parse("rrq://[::1]:9/"), one("[::1]:9"));
        assert_eq!(parse("[::1]"), one("[::1]:7411"));
        let two = vec!["a:1".to_owned(), "b:7411".to_owned()];
        assert_eq!(parse("a:1, rrq://b"), Ok(two));
        for bad in [
            "", "a:", "a:0", "a:70000", ":1", "a b", "http://a", "[::1", "a:1,",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn what_no_frame_can_hold_is_refused_before_it_is_sent() {
        let queue = crate::base::ids::QueueUid::default();
        let partition = crate::base::ids::Partition(0);
        let job = NewJob {
            payload: vec![0; 3 << 20].into(),
            ..NewJob::default()
        };
        let enqueue = |items| Op::Enqueue {
            queue,
            partition,
            items,
        };
        assert!(op_bytes(&enqueue(vec![job.clone(); 2])).is_ok());
        let code = |op| op_bytes(&op).map_err(|error| error.code());
        assert_eq!(code(enqueue(vec![job; 3])), Err(Code::PayloadTooLarge));
        assert_eq!(
            code(enqueue(vec![NewJob::default(); 1025])),
            Err(Code::Invalid)
        );
    }

    #[test]
    fn rejections_of_a_command_are_errors() {
        let body = ReplyBody::Outcome(Outcome::Rejected(Rejection::QuotaExceeded));
        let reply = Reply {
            id: 1,
            stamp: None,
            body,
        };
        let error = outcome(reply).expect_err("rejected");
        assert_eq!(error.code(), Code::QuotaExceeded);
        assert!(error.is_retryable() && !error.maybe_applied());
    }
}
