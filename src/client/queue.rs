//! A queue by its name: what is asked of it finds it again when it was deleted and made anew.

use crate::base::ids::{GroupId, Partition, QueueUid};
use crate::base::limits::{ITEMS_MAX, POLL_WAIT_MS_MAX};
use crate::client::session::Route;
use crate::client::{Client, Code, Error, command, millis_u32, outcome, strange};
use crate::wire::message::{LeasedJob, Reply, ReplyBody, RequestBody};
use crate::wire::{
    Enqueued, JobState, JobView, NewJob, Op, Outcome, PurgeStates, QueueInfo, QueueSettings,
    QueueStats, Rejection,
};
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// A queue that is deleted and made anew is looked for this often within one call.
const RESOLVES_MAX: u32 = 3;

/// What a client knows of a queue; shared by all its handles.
#[derive(Debug)]
pub(super) struct QueueSlot {
    info: Mutex<Arc<QueueInfo>>,
}

impl QueueSlot {
    pub(super) fn new(info: QueueInfo) -> Self {
        Self {
            info: Mutex::new(Arc::new(info)),
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
}

/// A queue of a [`Client`]; cheap to clone. Queues have one partition in this version.
#[derive(Clone, Debug)]
pub struct Queue {
    client: Client,
    slot: Arc<QueueSlot>,
}

/// Where a queue is: its uid, and the group of its only partition.
#[derive(Clone, Copy, Debug)]
struct Place {
    uid: QueueUid,
    group: GroupId,
}

/// What becomes of a call whose queue was deleted.
#[derive(Clone, Copy, Debug)]
enum Missing {
    /// The queue is made anew, with the default settings.
    IsMade,
    /// The call ends with [`Code::NoSuchQueue`].
    IsAnError,
}

const PARTITION: Partition = Partition(0);

impl Queue {
    pub(super) fn new(client: Client, slot: Arc<QueueSlot>) -> Self {
        Self { client, slot }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.slot.lock().name.clone()
    }

    /// Adds a job: [`Enqueued::New`], or [`Enqueued::Existing`] if its key names one already.
    ///
    /// # Errors
    /// [`Code::QuotaExceeded`], [`Code::IdempotencyConflict`], [`Code::IdempotencyWindowFull`],
    /// [`Code::PayloadTooLarge`], or what a call can end with.
    pub async fn enqueue(&self, job: NewJob) -> Result<Enqueued, Error> {
        match self.enqueue_batch(vec![job]).await?.first() {
            Some(Enqueued::Rejected(rejection)) => Err(Error::rejected(*rejection)),
            Some(done) => Ok(*done),
            None => Err(strange(&"no outcome")),
        }
    }

    /// Adds up to 1024 jobs in one log entry: one outcome per job, in order. Each stands for
    /// itself; a rejected one does not hold up the others.
    ///
    /// # Errors
    /// If nothing is known of any of them: what a call can end with.
    pub async fn enqueue_batch(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, Error> {
        let count = jobs.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let changed = Enqueued::Rejected(Rejection::QueueChanged);
        let mut tries = 0;
        loop {
            let place = self.place()?;
            let op = Op::Enqueue {
                queue: place.uid,
                partition: PARTITION,
                // Payloads are shared, so that a copy for another try costs little.
                items: jobs.clone(),
            };
            let error = match self.client.command(place.group, op).await {
                Ok(Outcome::Enqueued(items)) if items.iter().all(|item| *item == changed) => {
                    Error::rejected(Rejection::QueueChanged)
                }
                Ok(Outcome::Enqueued(items)) if items.len() == count => return Ok(items),
                Ok(other) => strange(&other),
                Err(error) => error,
            };
            self.find_again(error, &mut tries, Missing::IsMade).await?;
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
        let wait_ms = millis_u32(wait.min(Duration::from_millis(POLL_WAIT_MS_MAX)));
        let mut tries = 0;
        loop {
            let place = self.place()?;
            let op = Op::Lease {
                queue: place.uid,
                partition: PARTITION,
                max: max.clamp(1, ITEMS_MAX as u32),
                lease_ms: lease.map_or(0, millis_u32),
                epoch: 0,
            };
            let body = command(place.group, op, wait_ms);
            let reply = self.client.call(Route::Group(place.group), body).await?;
            let error = match reply.body {
                ReplyBody::Leased(jobs) => return Ok(jobs),
                _ => outcome(reply).map_or_else(|error| error, |other| strange(&other)),
            };
            self.find_again(error, &mut tries, Missing::IsMade).await?;
        }
    }

    /// The live job that a key names.
    ///
    /// # Errors
    /// [`Code::NotFound`] or [`Code::Finished`], or what a call can end with.
    pub async fn job_by_key(&self, key: impl Into<Bytes>) -> Result<JobView, Error> {
        let key = key.into();
        let mut tries = 0;
        loop {
            let place = self.place()?;
            let body = RequestBody::GetJobByKey {
                queue: place.uid,
                partition: PARTITION,
                group: place.group,
                key: key.clone(),
            };
            let route = Route::Group(place.group);
            match self.client.job_reply(route, body).await {
                Err(error) => {
                    self.find_again(error, &mut tries, Missing::IsAnError)
                        .await?;
                }
                done => return done,
            }
        }
    }

    /// The first jobs of a state, at most `limit` (at most 1024); nothing is leased.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn peek(&self, state: JobState, limit: u32) -> Result<Vec<JobView>, Error> {
        let mut tries = 0;
        loop {
            let place = self.place()?;
            let body = RequestBody::Peek {
                queue: place.uid,
                partition: PARTITION,
                group: place.group,
                state,
                limit: limit.clamp(1, ITEMS_MAX as u32),
            };
            let error = match self.client.call(Route::Group(place.group), body).await {
                Ok(Reply {
                    body: ReplyBody::Jobs(jobs),
                    ..
                }) => return Ok(jobs),
                Ok(other) => strange(&other.body),
                Err(error) => error,
            };
            self.find_again(error, &mut tries, Missing::IsAnError)
                .await?;
        }
    }

    /// Its settings and counters as they are now.
    ///
    /// # Errors
    /// [`Code::NoSuchQueue`] if it was deleted, or what a call can end with.
    pub async fn info(&self) -> Result<(QueueInfo, QueueStats), Error> {
        let (info, stats) = self.client.get_queue(&self.name()).await?;
        self.slot.set(info.clone());
        Ok((info, stats))
    }

    /// Replaces its settings; with a version, only if they are still at that version.
    ///
    /// # Errors
    /// [`Code::VersionMismatch`], [`Code::Invalid`], [`Code::Unsupported`], or what a call can end
    /// with.
    pub async fn alter(
        &self,
        settings: QueueSettings,
        expected_version: Option<u32>,
    ) -> Result<QueueInfo, Error> {
        let expected_version = expected_version.unwrap_or(0);
        self.change(|queue| Op::AlterQueue {
            queue,
            expected_version,
            settings,
        })
        .await
    }

    /// Hands out no more jobs; everything else goes on.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn pause(&self) -> Result<QueueInfo, Error> {
        self.change(|queue| Op::PauseQueue { queue }).await
    }

    /// Hands out jobs again.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn resume(&self) -> Result<QueueInfo, Error> {
        self.change(|queue| Op::ResumeQueue { queue }).await
    }

    /// Removes it with all its jobs. Who enqueues or leases afterwards makes it anew.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn delete(&self) -> Result<(), Error> {
        let place = self.place()?;
        let op = Op::DeleteQueue { queue: place.uid };
        self.client.command(place.uid.home(), op).await?;
        self.client.queues_known().remove(&self.name());
        Ok(())
    }

    /// Removes all jobs in the states named; how many there were.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn purge(&self, states: PurgeStates) -> Result<u64, Error> {
        let mut tries = 0;
        loop {
            let place = self.place()?;
            let op = Op::Purge {
                queue: place.uid,
                partition: PARTITION,
                states,
            };
            let error = match self.client.command(place.group, op).await {
                Ok(Outcome::Purged { jobs }) => return Ok(jobs),
                Ok(other) => strange(&other),
                Err(error) => error,
            };
            self.find_again(error, &mut tries, Missing::IsAnError)
                .await?;
        }
    }

    async fn change(&self, op: impl Fn(QueueUid) -> Op) -> Result<QueueInfo, Error> {
        let mut tries = 0;
        loop {
            let uid = self.place()?.uid;
            let error = match self.client.command(uid.home(), op(uid)).await {
                Ok(Outcome::Queue(info)) => {
                    self.slot.set(info.clone());
                    return Ok(info);
                }
                Ok(other) => strange(&other),
                Err(error) => error,
            };
            self.find_again(error, &mut tries, Missing::IsAnError)
                .await?;
        }
    }

    fn place(&self) -> Result<Place, Error> {
        let info = self.slot.lock();
        let group = info.groups.first().copied();
        let group = group.ok_or_else(|| strange(&"a queue without a partition"))?;
        Ok(Place {
            uid: info.uid,
            group,
        })
    }

    /// After an error: where the queue is not there any more, finds it by its name, so that the
    /// call can be tried again; any other error is the call's.
    async fn find_again(
        &self,
        error: Error,
        tries: &mut u32,
        missing: Missing,
    ) -> Result<(), Error> {
        if error.code() != Code::QueueChanged || *tries == RESOLVES_MAX {
            return Err(error);
        }
        *tries += 1;
        let info = match missing {
            Missing::IsMade => self.client.resolve(&self.name()).await?,
            Missing::IsAnError => self.client.get_queue(&self.name()).await?.0,
        };
        self.slot.set(info);
        Ok(())
    }
}
