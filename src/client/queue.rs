//! A queue by its name: what is asked of it finds it again when it was deleted and made anew.
//!
//! Jobs of a queue with several partitions are spread by `partitions.rs`. A lease of one partition
//! is a long poll. Of several it is first asked how much is ready in each, which costs no log
//! entry; then each gives its share, never more than the room in all; while nothing is ready, all
//! are watched.

use crate::base::ids::{GroupId, Partition};
use crate::base::limits::{ITEMS_MAX, POLL_WAIT_MS_MAX};
use crate::client::call::{command, millis_u32, outcome, strange, traced};
use crate::client::partitions::{divide, partition_of_key, shares};
use crate::client::session::Route;
use crate::client::{Call, Client, Code, Error};
use crate::wire::message::{LeasedJob, ReplyBody, RequestBody};
use crate::wire::{Enqueued, JobState, JobView, NewJob, Op, Outcome, QueueInfo, Rejection};
use bytes::Bytes;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::task::JoinSet;

/// A queue that is deleted and made anew is looked for this often within one call.
const RESOLVES_MAX: u32 = 3;
/// A watch of one of several partitions lasts at most this long: those that another made
/// superfluous are not kept much longer.
const WATCH: Duration = Duration::from_secs(2);

/// What a client knows of a queue; shared by all its handles.
#[derive(Debug)]
pub(super) struct QueueSlot {
    info: Mutex<Arc<QueueInfo>>,
    /// Raised by every choice of a partition.
    turn: AtomicU32,
}

impl QueueSlot {
    pub(super) fn new(info: QueueInfo) -> Self {
        Self {
            info: Mutex::new(Arc::new(info)),
            turn: AtomicU32::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<QueueInfo>> {
        self.info
            .lock()
            .expect("nothing panics while it holds the lock")
    }

    pub(super) fn set(&self, info: QueueInfo) {
        *self.lock() = Arc::new(info);
    }

    fn take_turn(&self) -> u32 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

/// A queue of a [`Client`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct Queue {
    pub(super) client: Client,
    pub(super) slot: Arc<QueueSlot>,
}

/// What becomes of a call whose queue was deleted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Missing {
    /// The queue is made anew, with the default settings.
    IsMade,
    /// The call ends with [`Code::NoSuchQueue`].
    IsAnError,
}

/// The partitions of a queue with their groups.
pub(super) fn places(info: &QueueInfo) -> impl Iterator<Item = (Partition, GroupId)> {
    (0..=u8::MAX)
        .map(Partition)
        .zip(info.groups.iter().copied())
}

/// How many partitions a queue has.
pub(super) fn partitions(info: &QueueInfo) -> u8 {
    u8::try_from(info.groups.len()).unwrap_or(u8::MAX)
}

pub(super) fn group_of(info: &QueueInfo, partition: Partition) -> Result<GroupId, Error> {
    let group = info.groups.get(usize::from(partition.0)).copied();
    group.ok_or_else(|| {
        let words = format!("queue {} has no partition {partition}", info.name);
        Error::new(Code::Invalid, words)
    })
}

impl Queue {
    pub(super) fn new(client: Client, slot: Arc<QueueSlot>) -> Self {
        Self { client, slot }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.slot.lock().name.clone()
    }

    /// How many partitions it has, from 1: the first in, first out order is that of one partition.
    #[must_use]
    pub fn partitions(&self) -> u8 {
        partitions(&self.known())
    }

    pub(super) async fn add(&self, job: NewJob) -> Result<Enqueued, Error> {
        match self.enqueue_batch(vec![job]).await?.first() {
            Some(Enqueued::Rejected(rejection)) => Err(Error::rejected(*rejection)),
            Some(done) => Ok(*done),
            None => Err(strange(&"no outcome")),
        }
    }

    /// Adds up to 1024 jobs: one outcome per job, in order. Each stands for itself; a rejected one
    /// does not hold up the others. Jobs without a key go to one partition, in one log entry; those
    /// with a key go to the partition of their key.
    ///
    /// # Errors
    /// If it is not known of all of them what became of them: what a call can end with. Where keys
    /// lead to several partitions, some may then have been added, which
    /// [`Error::maybe_applied`] tells.
    pub async fn enqueue_batch(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, Error> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let span = tracing::debug_span!("enqueue", queue = %self.name(), jobs = jobs.len());
        let (turn, jobs) = (self.slot.take_turn(), &jobs);
        let call = self.placed(Missing::IsMade, |info| async move {
            // Payloads are shared, so that a copy for another try costs little.
            let done = self.enqueue_at(&info, jobs.clone(), turn).await?;
            for job in done.iter().filter_map(|done| done.id()) {
                tracing::trace!(%job, "enqueued");
            }
            Ok(done)
        });
        traced(span, call).await
    }

    async fn enqueue_at(
        &self,
        info: &QueueInfo,
        jobs: Vec<NewJob>,
        turn: u32,
    ) -> Result<Vec<Enqueued>, Error> {
        let count = jobs.len();
        let mut calls = Vec::new();
        for part in divide(jobs, partitions(info), turn) {
            let group = group_of(info, part.partition)?;
            let op = Op::Enqueue {
                queue: info.uid,
                partition: part.partition,
                items: part.jobs,
            };
            let call = self
                .client
                .start(Route::Group(group), command(group, op, 0));
            calls.push((part.places, call.await));
        }
        let changed = Enqueued::Rejected(Rejection::QueueChanged);
        let mut outcomes = vec![changed; count];
        let (mut failed, mut some) = (None, false);
        for (places, call) in calls {
            let answer = match call {
                Ok(call) => call.reply().await.and_then(outcome),
                Err(error) => Err(error),
            };
            let error = match answer {
                Ok(Outcome::Enqueued(items)) if items.iter().all(|item| *item == changed) => {
                    Error::rejected(Rejection::QueueChanged)
                }
                Ok(Outcome::Enqueued(items)) if items.len() == places.len() => {
                    for (place, item) in places.into_iter().zip(items) {
                        outcomes[place] = item;
                        some |= item.id().is_some();
                    }
                    continue;
                }
                Ok(other) => strange(&other),
                Err(error) => error,
            };
            failed.get_or_insert(error);
        }
        match failed {
            None => Ok(outcomes),
            Some(error) if some => Err(error.and_maybe_applied()),
            Some(error) => Err(error),
        }
    }

    /// Takes up to `max` jobs (at most 1024), waiting up to `wait` (at most 60 s) for the first;
    /// none if the wait ended first. Finish each by [`Client::ack`], [`Client::nack`],
    /// [`Client::release`] or [`Client::bury`] within its lease, or [`Client::extend`] it. Jobs of
    /// a call that is dropped go back.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn lease(&self, max: u32, wait: Duration) -> Result<Vec<LeasedJob>, Error> {
        self.lease_for(max, wait, None).await
    }

    /// As [`Self::lease`], with a lease time of the caller's own.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn lease_for(
        &self,
        max: u32,
        wait: Duration,
        lease: Option<Duration>,
    ) -> Result<Vec<LeasedJob>, Error> {
        let max = max.clamp(1, ITEMS_MAX as u32);
        let wait = wait.min(Duration::from_millis(POLL_WAIT_MS_MAX));
        let lease_ms = lease.map_or(0, millis_u32);
        let span = tracing::debug_span!("lease", queue = %self.name(), max);
        let call = self.placed(Missing::IsMade, |info| async move {
            match info.groups.len() {
                1 => {
                    let call = self.start_lease(&info, Partition(0), max, wait, lease_ms);
                    leased(call.await?).await
                }
                _ => self.lease_over(&info, max, wait, lease_ms).await,
            }
        });
        traced(span, call).await
    }

    async fn start_lease(
        &self,
        info: &QueueInfo,
        partition: Partition,
        max: u32,
        wait: Duration,
        lease_ms: u32,
    ) -> Result<Call<'_>, Error> {
        let group = group_of(info, partition)?;
        let op = Op::Lease {
            queue: info.uid,
            partition,
            max,
            lease_ms,
            epoch: 0,
        };
        let body = command(group, op, millis_u32(wait));
        self.client.start(Route::Group(group), body).await
    }

    /// From several partitions: see the head of this file.
    async fn lease_over(
        &self,
        info: &Arc<QueueInfo>,
        max: u32,
        wait: Duration,
        lease_ms: u32,
    ) -> Result<Vec<LeasedJob>, Error> {
        let until = self.client.now().plus(wait);
        loop {
            let ready = self.ready(info).await?;
            let shares = shares(&ready, max, self.slot.take_turn());
            let jobs = self.lease_shares(info, &shares, lease_ms).await?;
            let left = until.since(self.client.now());
            if !jobs.is_empty() || left.is_zero() {
                return Ok(jobs);
            }
            self.watch(info, left.min(WATCH)).await?;
        }
    }

    /// How many jobs of each partition can be leased now.
    async fn ready(&self, info: &QueueInfo) -> Result<Vec<u64>, Error> {
        let mut calls = Vec::new();
        for (partition, group) in places(info) {
            let body = watch(info, partition, group, Duration::ZERO);
            calls.push(self.client.start(Route::Group(group), body).await?);
        }
        let mut ready = Vec::new();
        for call in calls {
            match call.reply().await?.body {
                ReplyBody::Ready(jobs) => ready.push(jobs),
                other => return Err(refusal(other)),
            }
        }
        Ok(ready)
    }

    /// Waits until a job of any partition can be leased, or the wait is over.
    async fn watch(&self, info: &Arc<QueueInfo>, wait: Duration) -> Result<(), Error> {
        let mut watches = JoinSet::new();
        for (partition, group) in places(info) {
            let (client, body) = (self.client.clone(), watch(info, partition, group, wait));
            watches.spawn(async move { client.call(Route::Group(group), body).await });
        }
        while let Some(answer) = watches.join_next().await {
            match answer.map(|reply| reply.map(|reply| reply.body)) {
                Ok(Ok(ReplyBody::Ready(0))) => {}
                Ok(Ok(ReplyBody::Ready(_))) => return Ok(()),
                Ok(Ok(other)) => return Err(refusal(other)),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(Error::new(Code::Stopping, "the runtime is stopping")),
            }
        }
        Ok(())
    }

    /// Takes its share from each partition. What some give is kept although others fail.
    async fn lease_shares(
        &self,
        info: &QueueInfo,
        shares: &[u32],
        lease_ms: u32,
    ) -> Result<Vec<LeasedJob>, Error> {
        let mut calls = Vec::new();
        for ((partition, _), max) in places(info).zip(shares).filter(|(_, max)| **max > 0) {
            let call = self.start_lease(info, partition, *max, Duration::ZERO, lease_ms);
            calls.push(call.await?);
        }
        let (mut jobs, mut failed) = (Vec::new(), None);
        for call in calls {
            match leased(call).await {
                Ok(part) => jobs.extend(part),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if jobs.is_empty() => Err(error),
            _ => Ok(jobs),
        }
    }

    /// The live job that a key names.
    ///
    /// # Errors
    /// [`Code::NotFound`] or [`Code::Finished`], or what a call can end with.
    pub async fn job_by_key(&self, key: impl Into<Bytes>) -> Result<JobView, Error> {
        let key = &key.into();
        self.placed(Missing::IsAnError, |info| async move {
            let partition = partition_of_key(key, partitions(&info));
            let group = group_of(&info, partition)?;
            let body = RequestBody::GetJobByKey {
                queue: info.uid,
                partition,
                group,
                key: key.clone(),
            };
            self.client.job_reply(Route::Group(group), body).await
        })
        .await
    }

    /// The first jobs of a state, at most `limit` (at most 1024), one partition after the other;
    /// nothing is leased.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn peek(&self, state: JobState, limit: u32) -> Result<Vec<JobView>, Error> {
        let limit = limit.clamp(1, ITEMS_MAX as u32);
        self.placed(Missing::IsAnError, |info| async move {
            let mut jobs = Vec::new();
            for (partition, group) in places(&info) {
                let left = limit - u32::try_from(jobs.len()).unwrap_or(limit);
                if left == 0 {
                    break;
                }
                let body = RequestBody::Peek {
                    queue: info.uid,
                    partition,
                    group,
                    state,
                    limit: left,
                };
                match self.client.call(Route::Group(group), body).await?.body {
                    ReplyBody::Jobs(part) => jobs.extend(part.into_iter().take(left as usize)),
                    other => return Err(strange(&other)),
                }
            }
            Ok(jobs)
        })
        .await
    }

    // ---- underneath ------------------------------------------------------------------------

    pub(super) fn known(&self) -> Arc<QueueInfo> {
        self.slot.lock().clone()
    }

    /// Asks with the queue as it is known. Where it is not there any more, finds it by its name
    /// and asks again.
    pub(super) async fn placed<T, F>(
        &self,
        missing: Missing,
        ask: impl Fn(Arc<QueueInfo>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut tries = 0;
        loop {
            let error = match ask(self.known()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if error.code() != Code::QueueChanged || tries == RESOLVES_MAX {
                return Err(error);
            }
            tries += 1;
            let name = self.name();
            tracing::debug!(queue = name, tries, "the queue has changed: looking for it");
            let info = match missing {
                Missing::IsMade => self.client.resolve(&name).await?,
                Missing::IsAnError => self.client.get_queue(&name).await?.0,
            };
            self.slot.set(info);
        }
    }
}

fn watch(info: &QueueInfo, partition: Partition, group: GroupId, wait: Duration) -> RequestBody {
    RequestBody::Watch {
        queue: info.uid,
        partition,
        group,
        wait_ms: millis_u32(wait),
    }
}

async fn leased(call: Call<'_>) -> Result<Vec<LeasedJob>, Error> {
    match call.reply().await?.body {
        ReplyBody::Leased(jobs) => {
            for leased in &jobs {
                tracing::trace!(job = %leased.job.id, attempt = leased.job.attempts, "leased");
            }
            Ok(jobs)
        }
        other => Err(refusal(other)),
    }
}

/// What an answer is that is not the one asked for.
pub(super) fn refusal(body: ReplyBody) -> Error {
    match body {
        ReplyBody::Outcome(Outcome::Rejected(rejection)) => Error::rejected(rejection),
        other => strange(&other),
    }
}
