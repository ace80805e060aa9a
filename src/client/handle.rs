//! A client of a cluster, its options, and how its calls reach what decides.

use crate::base::units::Monotonic;
use crate::client::call::{command, op_bytes, outcome, strange};
use crate::client::queue::{QueueSlot, refusal};
use crate::client::session::{ClientCore, CoreOptions, Route};
use crate::client::tcp::{Awaited, Driver};
use crate::client::{
    Addresses, Code, Error, GroupId, JobId, JobView, NodeId, Queue, QueueInfo, QueueSettings,
    QueueStats, ServerHello, ShardStatus, WorkerInfo,
};
use crate::wire::bounds::is_queue_name;
use crate::wire::message::{Reply, ReplyBody, RequestBody};
use crate::wire::{Op, Outcome, Rejection};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// In-flight bytes are counted in units of this.
const BYTES_UNIT: usize = 1 << 10;
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
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) driver: Driver,
    pub(super) options: Options,
    slots: Semaphore,
    bytes: Semaphore,
    queues: Mutex<BTreeMap<String, Arc<QueueSlot>>>,
}

/// A call under way, with the room that it takes.
pub(super) struct Call<'a> {
    answer: Awaited,
    _room: Option<(SemaphorePermit<'a>, SemaphorePermit<'a>)>,
}

impl Call<'_> {
    pub(super) async fn reply(self) -> Result<Reply, Error> {
        self.answer.answer().await
    }
}

impl Client {
    /// Connects to a cluster by one or more of its nodes' [`Addresses`]: `"127.0.0.1:7411"`,
    /// `"rrq://a,b"`, `["a:7411", "b:7411"]`. Tries for [`Options::connect_deadline`].
    ///
    /// # Errors
    /// [`Code::BadArgument`] if an address cannot be read, [`Code::Unreachable`] if no server
    /// answers, [`Code::ProtocolMismatch`] if it is of another version.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time and I/O enabled.
    pub async fn connect(addresses: impl Into<Addresses>) -> Result<Self, Error> {
        Self::connect_with(addresses, Options::default()).await
    }

    /// Connects with options of your own.
    ///
    /// # Errors
    /// As [`Self::connect`].
    ///
    /// # Panics
    /// As [`Self::connect`].
    pub async fn connect_with(
        addresses: impl Into<Addresses>,
        options: Options,
    ) -> Result<Self, Error> {
        let addresses = addresses.into().parse()?;
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

    /// The queues whose home is one group, with their counters over all their partitions.
    ///
    /// # Errors
    /// What a call can end with, as [`Code::GroupHalted`].
    pub async fn queues_of(&self, group: GroupId) -> Result<Vec<(QueueInfo, QueueStats)>, Error> {
        let body = RequestBody::ListQueues { group };
        let mut queues = match self.call(Route::Group(group), body).await?.body {
            ReplyBody::Queues(queues) => queues,
            other => return Err(strange(&other)),
        };
        for (info, stats) in &mut queues {
            *stats = self.sum(info, *stats).await?;
        }
        Ok(queues)
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

    /// All queues with their counters over all their partitions, in the order of their names.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn queues(&self) -> Result<Vec<(QueueInfo, QueueStats)>, Error> {
        let mut calls = Vec::new();
        for group in self.groups()? {
            let body = RequestBody::ListQueues { group };
            calls.push(self.start(Route::Group(group), body).await?);
        }
        let mut queues = Vec::new();
        for call in calls {
            match call.reply().await?.body {
                ReplyBody::Queues(part) => queues.extend(part),
                other => return Err(refusal(other)),
            }
        }
        for (info, stats) in &mut queues {
            *stats = self.sum(info, *stats).await?;
        }
        queues.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        Ok(queues)
    }

    /// What each shard of each node is and does; a node that cannot be reached is an error. See
    /// [`Self::nodes`] for the others.
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

    /// A live job. How a finished one ended says [`Client::wait`] with a time of zero, where its queue
    /// remembers it.
    ///
    /// # Errors
    /// [`Code::Finished`] or [`Code::NotFound`], or what a call can end with.
    pub async fn job(&self, job: JobId) -> Result<JobView, Error> {
        let route = Route::Group(job.group());
        self.job_reply(route, RequestBody::GetJob { job }).await
    }

    pub(super) async fn job_reply(
        &self,
        route: Route,
        body: RequestBody,
    ) -> Result<JobView, Error> {
        match self.call(route, body).await?.body {
            ReplyBody::Job(job) => Ok(*job),
            // Its queue remembers how: see `wait`.
            ReplyBody::Finished(_) => Err(Error::rejected(Rejection::Finished)),
            other => Err(strange(&other)),
        }
    }

    /// Whether it was closed: all calls end with [`Code::Stopping`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.driver.with_core(ClientCore::is_closed)
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

    /// Says who works here, for people.
    pub(crate) fn introduce(&self, worker: WorkerInfo) {
        self.inner.driver.introduce(worker);
    }

    /// All groups of the cluster.
    pub(super) fn groups(&self) -> Result<impl Iterator<Item = GroupId> + use<>, Error> {
        let last = self.hello()?.groups.saturating_sub(1);
        let last = u16::try_from(last).unwrap_or(u16::MAX);
        Ok((0..=last).map(GroupId))
    }

    /// The time that the core goes by.
    pub(super) fn now(&self) -> Monotonic {
        self.inner.driver.now()
    }

    pub(super) fn queues_known(
        &self,
    ) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<QueueSlot>>> {
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
    pub(super) async fn resolve(&self, name: &str) -> Result<QueueInfo, Error> {
        Ok(self.ask_queue(name, true).await?.0)
    }

    pub(super) async fn get_queue(&self, name: &str) -> Result<(QueueInfo, QueueStats), Error> {
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
            Outcome::Queue(info) => Ok(*info),
            other => Err(strange(&other)),
        }
    }

    pub(super) fn home_group(&self, name: &str) -> Result<GroupId, Error> {
        if !is_queue_name(name) {
            let words = "a queue's name is 1 to 128 of A-Z a-z 0-9 . _ : -";
            return Err(Error::new(Code::Invalid, words));
        }
        let home = self.inner.driver.with_core(|core| core.home_group(name));
        home.ok_or_else(|| Error::new(Code::Unreachable, "no server was reached yet"))
    }

    /// Starts a call once there is room for it.
    pub(super) async fn start(&self, route: Route, body: RequestBody) -> Result<Call<'_>, Error> {
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
            RequestBody::Watch { .. } | RequestBody::WaitJob { .. } => return Ok(None),
            RequestBody::Command { command, .. } => {
                let bytes = op_bytes(&command.op)?;
                if matches!(command.op, Op::Lease { .. }) {
                    return Ok(None);
                }
                bytes
            }
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
    pub(super) async fn call(&self, route: Route, body: RequestBody) -> Result<Reply, Error> {
        let reply = self.start(route, body).await?.reply().await?;
        match reply.body {
            ReplyBody::Outcome(Outcome::Rejected(rejection)) => Err(Error::rejected(rejection)),
            _ => Ok(reply),
        }
    }

    /// Asks a command; a rejection is an error.
    pub(super) async fn command(&self, group: GroupId, op: Op) -> Result<Outcome, Error> {
        let reply = self
            .call(Route::Group(group), command(group, op, 0))
            .await?;
        outcome(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::NewJob;

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
}
