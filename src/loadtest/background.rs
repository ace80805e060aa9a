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
use crate::base::report::Report;
use crate::client::{
    AckItem, Client, Enqueued, Error, NewJob, Options, Queue, QueueInfo, QueueSettings, QueueStats,
};
use crate::loadtest::first_job::Source;
use crate::workload::{Ledger, number_of, payload};
use std::future::Future;
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

/// Counters of the node itself, over all queues of the load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeCounts {
    /// Jobs in any state.
    pub(super) live: u64,
    /// Jobs ever made.
    pub(super) enqueued: u64,
    /// Jobs acknowledged by workers.
    pub(super) completed: u64,
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
        let producer = connect().await.map_err(|e| report("cannot connect", &e))?;
        let worker = connect().await.map_err(|e| report("cannot connect", &e))?;
        let shared = Arc::new(Shared {
            ledger: Arc::default(),
            phase: watch::Sender::new(Phase::Paused),
            busy: watch::Sender::new(0),
            acks: watch::Sender::new(0),
            first_ack: watch::Sender::new(FirstAck::default()),
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
            let failed = |error: Error| report("cannot make a queue", &error);
            let settings = QueueSettings::default;
            let made = load.producer.create_queue(&name, settings(), false).await;
            let producing = made.map_err(failed)?;
            let found = load.worker.create_queue(&name, settings(), false).await;
            let working = found.map_err(failed)?;
            load.queues.push(producing.clone());
            for _ in 0..PRODUCERS / QUEUES {
                let run = produce(load.shared.clone(), producing.clone());
                load.tasks.spawn(run);
            }
            let run = work(load.shared.clone(), load.worker.clone(), working);
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
                        Err(error) => return Err(report("cannot look at a job", &error)),
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
    pub(super) async fn drain(&self) -> Result<(), Report> {
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
    pub(super) async fn counts(&self) -> Result<NodeCounts, Report> {
        let mut counts = NodeCounts::default();
        for (_, stats) in self.infos().await? {
            counts.live += stats.pending + stats.delayed + stats.in_flight + stats.dead;
            counts.enqueued += stats.enqueued_total;
            counts.completed += stats.completed_total;
        }
        Ok(counts)
    }

    /// Where the first job of a queue may be taken from.
    ///
    /// # Errors
    /// If the node does not say.
    pub(super) async fn source(&self, number: usize) -> Result<Source, Report> {
        let infos = self.infos().await?;
        let (info, _) = &infos[number % infos.len()];
        let hello = self.producer.hello();
        let hello = hello.map_err(|error| report("the node is not known", &error))?;
        let group = info.groups.first().copied().unwrap_or_default();
        let node = hello.nodes.iter().find(|node| node.node == hello.node);
        let addresses = node
            .map(|node| node.addresses.as_slice())
            .unwrap_or_default();
        let address = addresses
            .get(usize::from(group.0) % addresses.len().max(1))
            .cloned()
            .ok_or_else(|| Report::error(Code::Unreachable, "the node lists no address"))?;
        Ok(Source {
            address,
            group,
            queue: info.uid,
        })
    }

    /// The queues of the load.
    async fn infos(&self) -> Result<Vec<(QueueInfo, QueueStats)>, Report> {
        let all = self.producer.queues().await;
        let all = all.map_err(|error| report("cannot read the queues' counters", &error))?;
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
                    |error| report("the load was refused", &error),
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

fn report(what: &str, error: &Error) -> Report {
    Report::error(error.code(), what).location(error.message())
}

async fn fill_batch(shared: &Shared, queue: &Queue, count: u64) -> Result<(), Report> {
    let numbers: Vec<u64> = (0..count).map(|_| lock(&shared.ledger).ask()).collect();
    let job = |number: &u64| NewJob {
        payload: payload(*number, shared.payload_len),
        ..NewJob::default()
    };
    let answers = queue.enqueue_batch(numbers.iter().map(job).collect()).await;
    let answers = answers.map_err(|error| report("cannot enqueue", &error))?;
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

async fn produce(shared: Arc<Shared>, queue: Queue) {
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
            }
            Ok(Enqueued::Rejected(_)) => lock(&shared.ledger).refused(number),
            Err(error) if error.maybe_applied() => lock(&shared.ledger).enqueue_unknown(number),
            Err(error) => {
                lock(&shared.ledger).refused(number);
                shared.room.add_permits(1);
                fail(&shared, error);
            }
        }
    }
}

async fn work(shared: Arc<Shared>, client: Client, queue: Queue) {
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
                }
                // Finished: by an ack of ours whose answer was lost. The next audit settles it.
                Err(error) if error.maybe_applied() || error.code() == Code::Finished => {
                    lock(&shared.ledger).ack_unknown(number);
                }
                // It comes back, to whomever.
                Err(error) if error.code() == Code::LeaseLost => {}
                Err(error) => fail(&shared, error),
            }
        }
    }
}

impl Shared {
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
