//! The load that is on while a node is killed: producers and workers over the client library, and
//! the books of all that they hear.
//!
//! The loop is closed: an acked job makes room for a new one, so that the backlog stays as it was
//! filled. Everything here runs on one thread; between two awaits nothing else happens.
//!
//! ```text
//! Paused <-> Running      producers and workers come and go
//! Draining                workers only, until nothing is left
//! ```

use crate::base::code::Code;
use crate::base::ids::GroupId;
use crate::base::report::Report;
use crate::client::{
    AckItem, Client, Enqueued, Error, NewJob, Options, Queue, QueueInfo, QueueSettings, QueueStats,
};
use crate::loadtest::gaps::Gaps;
use crate::loadtest::report::failed;
use crate::workload::{Ledger, Misses, number_of, payload};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Queues of the load: their groups spread over all shards.
pub(super) const QUEUES: usize = 8;
/// Enqueues under way at once.
const PRODUCERS: usize = 32;
/// Jobs that a worker takes at once.
const LEASE_MAX: u32 = 8;
/// The same while the backlog is drained.
const DRAIN_LEASE_MAX: u32 = 256;
/// How long a worker waits for a job before it looks what is to be done.
const LEASE_WAIT: Duration = Duration::from_millis(50);
/// Jobs of one batch while the queues are filled.
const FILL_BATCH: usize = 512;
/// Bytes of one such batch.
const FILL_BATCH_BYTES: usize = 1 << 20;
/// Batches, or questions for a job, under way at once.
const PIPELINE: usize = 64;
/// What is waited for comes within this, or never. Longer than a lease.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Paused,
    Running,
    Draining,
}

/// When the library's first ack after a moment was confirmed.
#[derive(Clone, Copy, Debug, Default)]
struct FirstAck {
    since: Option<Instant>,
    at: Option<Instant>,
}

#[derive(Debug)]
struct Shared {
    ledger: Arc<Mutex<Ledger>>,
    phase: watch::Sender<Phase>,
    /// Calls under way.
    busy: watch::Sender<u64>,
    /// Acks confirmed through the library.
    acks: watch::Sender<u64>,
    first_ack: watch::Sender<FirstAck>,
    /// Acknowledged enqueues and confirmed acks, a stream a queue.
    gaps: Mutex<(Gaps, Gaps)>,
    /// Calls that ended with an error.
    failed: AtomicU64,
    /// What no retry can mend.
    fault: watch::Sender<Option<Error>>,
    /// A permit a job that may be enqueued.
    room: Semaphore,
    payload_len: usize,
}

/// The load, its clients and its books.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    producer: Client,
    worker: Client,
    queues: Vec<Queue>,
    tasks: JoinSet<()>,
}

/// What a load has shown when nothing of it is left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settled {
    /// Jobs whose enqueue was acknowledged.
    pub(super) enqueued: u64,
    /// Jobs finished.
    pub(super) finished: u64,
    /// All that went wrong.
    pub(super) misses: Misses,
}

/// The longest time in which a queue of the load stood still.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Longest {
    /// Between two acknowledged enqueues.
    pub(super) enqueue: Duration,
    /// Between two finished jobs.
    pub(super) finish: Duration,
}

/// Counters of the node itself, over all queues of the load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct NodeCounts {
    /// Jobs in any state.
    live: u64,
    /// Jobs ever made.
    enqueued: u64,
    /// Jobs acknowledged by workers.
    completed: u64,
}

/// A call under way.
struct Busy<'a>(&'a Shared);

impl<'a> Busy<'a> {
    fn enter(shared: &'a Shared) -> Self {
        shared.busy.send_modify(|count| *count += 1);
        Self(shared)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.send_modify(|count| *count -= 1);
    }
}

impl Load {
    /// Connects; producers and workers wait.
    ///
    /// # Errors
    /// If the node cannot be reached.
    pub(super) async fn connect(address: &str, payload_len: usize) -> Result<Self, Report> {
        let options = Options {
            agent: concat!("rrq-bench/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..Options::default()
        };
        let connect = || Client::connect_with(address, options.clone());
        let producer = connect().await.map_err(|e| failed("cannot connect", &e))?;
        let worker = connect().await.map_err(|e| failed("cannot connect", &e))?;
        let shared = Arc::new(Shared {
            ledger: Arc::default(),
            phase: watch::Sender::new(Phase::Paused),
            busy: watch::Sender::new(0),
            acks: watch::Sender::new(0),
            first_ack: watch::Sender::new(FirstAck::default()),
            gaps: Mutex::default(),
            failed: AtomicU64::new(0),
            fault: watch::Sender::new(None),
            room: Semaphore::new(0),
            payload_len,
        });
        let mut load = Self {
            shared,
            producer,
            worker,
            queues: Vec::new(),
            tasks: JoinSet::new(),
        };
        for number in 0..QUEUES {
            let name = format!("bench-{number}");
            let failed = |error: Error| failed("cannot make a queue", &error);
            let settings = QueueSettings::default;
            let made = load.producer.create_queue(&name, settings(), false).await;
            let producing = made.map_err(failed)?;
            let found = load.worker.create_queue(&name, settings(), false).await;
            let working = found.map_err(failed)?;
            load.queues.push(producing.clone());
            for _ in 0..PRODUCERS / QUEUES {
                let run = produce(load.shared.clone(), producing.clone(), number);
                load.tasks.spawn(run);
            }
            let run = work(load.shared.clone(), load.worker.clone(), working, number);
            load.tasks.spawn(run);
        }
        Ok(load)
    }

    /// The books.
    #[must_use]
    pub(super) fn ledger(&self) -> Arc<Mutex<Ledger>> {
        self.shared.ledger.clone()
    }

    /// Enqueues so many jobs, in batches.
    ///
    /// # Errors
    /// If one is refused.
    pub(super) async fn fill(&self, jobs: u64) -> Result<(), Report> {
        let len = self.shared.payload_len;
        let batch = (FILL_BATCH_BYTES / (len + 128)).clamp(1, FILL_BATCH) as u64;
        let mut calls = JoinSet::new();
        let mut done = 0;
        while done < jobs || !calls.is_empty() {
            if done < jobs && calls.len() < PIPELINE / 8 {
                let count = batch.min(jobs - done);
                let at = (done / batch) as usize % self.queues.len();
                let (shared, queue) = (self.shared.clone(), self.queues[at].clone());
                calls.spawn(async move { fill_batch(&shared, &queue, count).await });
                done += count;
            } else if let Some(ended) = calls.join_next().await {
                ended.expect("a fill does not panic")?;
            }
        }
        Ok(())
    }

    /// Puts the load on.
    pub(super) fn resume(&self) {
        self.shared.phase.send_replace(Phase::Running);
    }

    /// Takes the load off, and waits until all calls have ended.
    ///
    /// # Errors
    /// If they do not.
    pub(super) async fn pause(&self) -> Result<(), Report> {
        self.shared.phase.send_replace(Phase::Paused);
        let mut busy = self.shared.busy.subscribe();
        let idle = async { drop(busy.wait_for(|count| *count == 0).await) };
        self.within_deadline("the calls under way to end", idle)
            .await
    }

    /// Waits until so many more jobs were acked.
    ///
    /// # Errors
    /// If they are not.
    pub(super) async fn acks(&self, more: u64) -> Result<(), Report> {
        let mut acks = self.shared.acks.subscribe();
        let target = *acks.borrow() + more;
        let enough = async { drop(acks.wait_for(|count| *count >= target).await) };
        self.within_deadline("the load to run", enough).await
    }

    /// From now on looks for the first ack that is asked for after `since`.
    pub(super) fn watch_first_ack(&self) -> impl Fn(Instant) + Send + 'static {
        let shared = self.shared.clone();
        move |since| {
            shared.first_ack.send_replace(FirstAck {
                since: Some(since),
                at: None,
            });
        }
    }

    /// When that ack was confirmed.
    ///
    /// # Errors
    /// If it is not.
    pub(super) async fn first_ack(&self) -> Result<Instant, Report> {
        let mut first = self.shared.first_ack.subscribe();
        let seen = async { drop(first.wait_for(|first| first.at.is_some()).await) };
        self.within_deadline("the load to run again", seen).await?;
        let first = *self.shared.first_ack.borrow();
        Ok(first.at.expect("it was waited for"))
    }

    /// Looks at every job that must be there, while the load is off.
    ///
    /// # Errors
    /// If the node does not say.
    pub(super) async fn audit(&self) -> Result<(), Report> {
        let live: Vec<_> = lock(&self.shared.ledger).live().collect();
        let mut looks = JoinSet::new();
        for part in live.chunks(live.len().div_ceil(PIPELINE).max(1)) {
            let (shared, client, part) = (self.shared.clone(), self.worker.clone(), part.to_vec());
            looks.spawn(async move {
                for (number, id) in part {
                    let found = client.job(id).await;
                    let mut ledger = lock(&shared.ledger);
                    match found {
                        Ok(job) => ledger.found_live(number, number_of(&job.body.payload)),
                        Err(error) if matches!(error.code(), Code::Finished | Code::NotFound) => {
                            ledger.found_gone(number);
                        }
                        Err(error) => return Err(failed("cannot look at a job", &error)),
                    }
                }
                Ok(())
            });
        }
        while let Some(ended) = looks.join_next().await {
            ended.expect("a look does not panic")?;
        }
        Ok(())
    }

    /// Lets producers fill the backlog up to so many jobs, while the load is off.
    pub(super) fn top_up(&self, jobs: u64) {
        let ledger = lock(&self.shared.ledger);
        let there = ledger.live_count() + ledger.unknown_count();
        let room = self.shared.room.available_permits() as u64;
        let missing = jobs.saturating_sub(there + room);
        self.shared.room.add_permits(missing as usize);
    }

    /// Works until the node says that no job is left, while the load is off.
    ///
    /// # Errors
    /// If some never go.
    async fn drain(&self) -> Result<(), Report> {
        self.shared.phase.send_replace(Phase::Draining);
        loop {
            let before = *self.shared.acks.borrow();
            let left = self.counts().await?.live;
            if left == 0 {
                return self.pause().await;
            }
            // What a worker lost comes back when its lease ends.
            let some = async {
                let mut acks = self.shared.acks.subscribe();
                drop(acks.wait_for(|count| *count > before).await);
            };
            self.within_deadline(&format!("the last {left} jobs"), some)
                .await?;
        }
    }

    /// What the node itself counts.
    ///
    /// # Errors
    /// If it does not say.
    async fn counts(&self) -> Result<NodeCounts, Report> {
        let mut counts = NodeCounts::default();
        for (_, stats) in self.infos().await? {
            counts.live += stats.pending + stats.delayed + stats.in_flight + stats.dead;
            counts.enqueued += stats.enqueued_total;
            counts.completed += stats.completed_total;
        }
        Ok(counts)
    }

    /// One of the queues of the load.
    ///
    /// # Errors
    /// If the node does not say.
    pub(super) async fn queue(&self, number: usize) -> Result<QueueInfo, Report> {
        let mut infos = self.infos().await?;
        let at = number % infos.len();
        Ok(infos.swap_remove(at).0)
    }

    /// The groups of all queues of the load.
    ///
    /// # Errors
    /// If the node does not say.
    pub(super) async fn groups(&self) -> Result<Vec<GroupId>, Report> {
        let infos = self.infos().await?;
        Ok(infos
            .into_iter()
            .flat_map(|(info, _)| info.groups)
            .collect())
    }

    /// From now on looks for the longest time in which a queue stands still.
    pub(super) fn begin_gaps(&self) {
        let now = Instant::now();
        let (enqueues, finishes) = &mut *self.shared.gaps();
        enqueues.begin(QUEUES, now);
        finishes.begin(QUEUES, now);
    }

    /// Waits until in each queue something was enqueued and something finished after a moment.
    ///
    /// # Errors
    /// If that does not come to be.
    pub(super) async fn all_run(&self, since: Instant) -> Result<(), Report> {
        let run = async {
            loop {
                let seen = {
                    let gaps = self.shared.gaps();
                    gaps.0.all_answered_since(since) && gaps.1.all_answered_since(since)
                };
                if seen {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        self.within_deadline("all queues to be worked again", run)
            .await
    }

    /// Looks no more, and says what was seen.
    pub(super) fn end_gaps(&self) -> Longest {
        let now = Instant::now();
        let (enqueues, finishes) = &mut *self.shared.gaps();
        Longest {
            enqueue: enqueues.end(now),
            finish: finishes.end(now),
        }
    }

    /// Calls that ended with an error.
    #[must_use]
    pub(super) fn failed(&self) -> u64 {
        self.shared.failed.load(Relaxed)
    }

    /// Jobs whose enqueue was acknowledged.
    #[must_use]
    pub(super) fn enqueued(&self) -> u64 {
        lock(&self.shared.ledger).enqueued_count()
    }

    /// Jobs whose end was acknowledged.
    #[must_use]
    pub(super) fn finished(&self) -> u64 {
        lock(&self.shared.ledger).finished_count()
    }

    /// All that went wrong up to now, as far as an audit has seen it.
    #[must_use]
    pub(super) fn misses(&self) -> Misses {
        lock(&self.shared.ledger).misses()
    }

    /// Works until nothing is left, and compares the books with the node's own counters. The load is
    /// off.
    ///
    /// # Errors
    /// If some jobs never go, or the node does not say.
    pub(super) async fn settle(&self) -> Result<Settled, Report> {
        self.drain().await?;
        // Acks whose answer was lost are settled: nothing is left, so all are finished.
        self.audit().await?;
        let counts = self.counts().await?;
        let ledger = lock(&self.shared.ledger);
        let (enqueued, finished) = (ledger.enqueued_count(), ledger.finished_count());
        let mut misses = ledger.misses();
        misses.strange += counts.enqueued.abs_diff(enqueued) + counts.completed.abs_diff(finished);
        Ok(Settled {
            enqueued,
            finished,
            misses,
        })
    }

    /// The queues of the load.
    async fn infos(&self) -> Result<Vec<(QueueInfo, QueueStats)>, Report> {
        let all = self.producer.queues().await;
        let all = all.map_err(|error| failed("cannot read the queues' counters", &error))?;
        let missing = QUEUES.saturating_sub(all.len());
        match missing {
            0 => Ok(all),
            _ => Err(Report::error(
                Code::NoSuchQueue,
                format!("{missing} of {QUEUES} queues are gone"),
            )),
        }
    }

    /// A job was finished by someone else: there is room for another.
    pub(super) fn make_room(&self) {
        self.shared.room.add_permits(1);
    }

    /// Ends the clients.
    pub(super) async fn close(mut self) {
        self.tasks.shutdown().await;
        self.producer.close().await;
        self.worker.close().await;
    }

    async fn within_deadline(
        &self,
        what: &str,
        event: impl Future<Output = ()>,
    ) -> Result<(), Report> {
        let mut fault = self.shared.fault.subscribe();
        tokio::select! {
            () = event => Ok(()),
            _ = fault.wait_for(Option::is_some) => {
                let error = self.shared.fault.borrow().clone();
                Err(error.map_or_else(
                    || Report::error(Code::Bug, "a fault without an error"),
                    |error| failed("the load was refused", &error),
                ))
            }
            () = tokio::time::sleep(DEADLINE) => {
                let what = format!("waited {} s for {what}", DEADLINE.as_secs());
                Err(Report::error(Code::Timeout, what))
            }
        }
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn fill_batch(shared: &Shared, queue: &Queue, count: u64) -> Result<(), Report> {
    let numbers: Vec<u64> = (0..count).map(|_| lock(&shared.ledger).ask()).collect();
    let job = |number: &u64| NewJob {
        payload: payload(*number, shared.payload_len),
        ..NewJob::default()
    };
    let answers = queue.enqueue_batch(numbers.iter().map(job).collect()).await;
    let answers = answers.map_err(|error| failed("cannot enqueue", &error))?;
    for (number, answer) in numbers.into_iter().zip(answers) {
        match answer {
            Enqueued::New(id) | Enqueued::Existing(id) => {
                lock(&shared.ledger).enqueued(number, id);
            }
            Enqueued::Rejected(rejection) => {
                let what = format!("the node refused a job: {rejection:?}");
                return Err(Report::error(Code::BadRequest, what));
            }
        }
    }
    Ok(())
}

async fn produce(shared: Arc<Shared>, queue: Queue, stream: usize) {
    let mut phase = shared.phase.subscribe();
    loop {
        let running = phase.wait_for(|phase| *phase == Phase::Running).await;
        if running.map(drop).is_err() {
            return;
        }
        let Ok(room) = shared.room.acquire().await else {
            return;
        };
        if *shared.phase.borrow() != Phase::Running {
            continue;
        }
        let _busy = Busy::enter(&shared);
        room.forget();
        let number = lock(&shared.ledger).ask();
        let job = NewJob {
            payload: payload(number, shared.payload_len),
            ..NewJob::default()
        };
        match queue.enqueue(job).await {
            Ok(Enqueued::New(id) | Enqueued::Existing(id)) => {
                lock(&shared.ledger).enqueued(number, id);
                shared.gaps().0.answered(stream, Instant::now());
            }
            Ok(Enqueued::Rejected(_)) => lock(&shared.ledger).refused(number),
            Err(error) if error.maybe_applied() => {
                shared.failed.fetch_add(1, Relaxed);
                lock(&shared.ledger).enqueue_unknown(number);
            }
            Err(error) => {
                shared.failed.fetch_add(1, Relaxed);
                lock(&shared.ledger).refused(number);
                shared.room.add_permits(1);
                fail(&shared, error);
            }
        }
    }
}

async fn work(shared: Arc<Shared>, client: Client, queue: Queue, stream: usize) {
    let mut phase = shared.phase.subscribe();
    loop {
        let going = phase.wait_for(|phase| *phase != Phase::Paused).await;
        let max = match going.map(|phase| *phase) {
            Ok(Phase::Draining) => DRAIN_LEASE_MAX,
            Ok(_) => LEASE_MAX,
            Err(_) => return,
        };
        let _busy = Busy::enter(&shared);
        let jobs = match queue.lease(max, LEASE_WAIT).await {
            Ok(jobs) => jobs,
            Err(error) => {
                shared.failed.fetch_add(1, Relaxed);
                fail(&shared, error);
                continue;
            }
        };
        let mut taken = Vec::new();
        for job in &jobs {
            let (number, token) = (number_of(&job.job.body.payload), job.token());
            lock(&shared.ledger).delivered(number, token);
            taken.extend(number.map(|number| (number, token)));
        }
        let item = |(_, token): &(u64, _)| AckItem {
            token: *token,
            result: None,
        };
        let asked = Instant::now();
        let answers = client.ack_batch(taken.iter().map(item).collect()).await;
        for ((number, token), answer) in taken.into_iter().zip(answers) {
            match answer {
                Ok(()) => {
                    lock(&shared.ledger).acked(number, token);
                    shared.room.add_permits(1);
                    shared.acked(asked);
                    shared.gaps().1.answered(stream, Instant::now());
                }
                // Finished: by an ack of ours whose answer was lost. The next audit settles it.
                Err(error) if error.maybe_applied() || error.code() == Code::Finished => {
                    let failed = u64::from(error.maybe_applied());
                    shared.failed.fetch_add(failed, Relaxed);
                    lock(&shared.ledger).ack_unknown(number);
                }
                // It comes back, to whomever.
                Err(error) if error.code() == Code::LeaseLost => {}
                Err(error) => {
                    shared.failed.fetch_add(1, Relaxed);
                    fail(&shared, error);
                }
            }
        }
    }
}

impl Shared {
    fn gaps(&self) -> MutexGuard<'_, (Gaps, Gaps)> {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acked(&self, asked: Instant) {
        self.acks.send_modify(|count| *count += 1);
        self.first_ack.send_if_modified(|first| {
            let is_first = first.at.is_none() && first.since.is_some_and(|since| asked >= since);
            if is_first {
                first.at = Some(Instant::now());
            }
            is_first
        });
    }
}

/// What may pass is tried again; anything else ends the run.
fn fail(shared: &Shared, error: Error) {
    if !error.is_retryable() {
        shared.fault.send_replace(Some(error));
    }
}
