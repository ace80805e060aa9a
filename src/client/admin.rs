//! What is done to queues as a whole, and what is asked of them: settings, counters, lists of jobs,
//! sweeps of the dead.

use crate::base::ids::QueueUid;
use crate::base::limits::ITEMS_MAX;
use crate::client::call::{command, outcome, strange, traced};
use crate::client::queue::{Missing, group_of, places, refusal};
use crate::client::scan::Scan;
use crate::client::session::Route;
use crate::client::{Client, Code, Error, FinishedScan, Queue};
use crate::wire::message::{ReplyBody, RequestBody, WorkerSession};
use crate::wire::{
    FinishedJob, JobFilter, JobState, Op, Outcome, PurgeStates, QueueInfo, QueueSettings,
    QueueStats, SweepAction,
};
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

/// A sweep with a rate takes a step about this often.
const STEPS_A_SECOND: u32 = 10;

impl Queue {
    /// Its settings and counters as they are now, over all its partitions.
    ///
    /// # Errors
    /// [`Code::NoSuchQueue`] if it was deleted, or what a call can end with.
    pub async fn info(&self) -> Result<(QueueInfo, QueueStats), Error> {
        let (info, stats) = self.client.get_queue(&self.name()).await?;
        self.slot.set(info.clone());
        let stats = self.client.sum(&info, stats).await?;
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

    /// Takes no more jobs: an enqueue ends with [`Code::Draining`]. Those that are there are handed
    /// out.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn drain(&self) -> Result<QueueInfo, Error> {
        self.change(|queue| Op::DrainQueue { queue }).await
    }

    /// Hands out jobs again, and takes new ones: ends a pause and a drain.
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
        let uid = self.known().uid;
        let op = Op::DeleteQueue { queue: uid };
        self.client.command(uid.home(), op).await?;
        self.client.queues_known().remove(&self.name());
        Ok(())
    }

    /// Removes all jobs in the states named, of all its partitions; how many there were.
    ///
    /// # Errors
    /// What a call can end with; some partitions may then have been purged.
    pub async fn purge(&self, states: PurgeStates) -> Result<u64, Error> {
        self.placed(Missing::IsAnError, |info| async move {
            let mut calls = Vec::new();
            for (partition, group) in places(&info) {
                let op = Op::Purge {
                    queue: info.uid,
                    partition,
                    states,
                };
                let call = self
                    .client
                    .start(Route::Group(group), command(group, op, 0));
                calls.push(call.await?);
            }
            let mut purged = 0;
            for call in calls {
                match outcome(call.reply().await?)? {
                    Outcome::Purged { jobs } => purged += jobs,
                    other => return Err(strange(&other)),
                }
            }
            Ok(purged)
        })
        .await
    }

    /// Its jobs of a state, page by page; nothing is leased. See [`Scan`].
    #[must_use]
    pub fn scan(&self, state: JobState) -> Scan {
        Scan::new(self.clone(), state)
    }

    /// How many of its jobs are in a state and as the filter says. Looks at every one of that
    /// state, in steps.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn count(&self, state: JobState, filter: JobFilter) -> Result<u64, Error> {
        let mut scan = self.scan(state).filter(filter).limit(0);
        let mut matched = 0;
        while let Some(page) = scan.next().await? {
            matched += page.matched;
        }
        Ok(matched)
    }

    /// Requeues or deletes its dead jobs that a filter lets through, when what is returned is
    /// awaited. Count them before with [`Self::count`] of [`JobState::Dead`].
    ///
    /// ```no_run
    /// # async fn example(queue: rrq::client::Queue) -> Result<(), rrq::client::Error> {
    /// use rrq::client::{JobFilter, SweepAction};
    ///
    /// let filter = JobFilter { reason_contains: "timeout".into(), ..JobFilter::default() };
    /// let swept = queue.sweep_dead(SweepAction::Requeue, filter).rate(100).await?;
    /// println!("{} requeued", swept.matched);
    /// # Ok(()) }
    /// ```
    pub fn sweep_dead(&self, action: SweepAction, filter: JobFilter) -> Sweep {
        Sweep {
            queue: self.clone(),
            action,
            filter,
            rate: None,
        }
    }

    /// The jobs that ended last, the newest first, at most `limit` (at most 1024), with their
    /// results: as many as the queue's `retain` keeps, which is none unless it is set.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn finished(&self, limit: u32) -> Result<Vec<FinishedJob>, Error> {
        let page = self.scan_finished().limit(limit).next().await?;
        Ok(page.unwrap_or_default())
    }

    /// All finished jobs that the queue retains, page by page, the newest first.
    #[must_use]
    pub fn scan_finished(&self) -> FinishedScan {
        FinishedScan::new(self.clone())
    }

    async fn change(&self, op: impl Fn(QueueUid) -> Op) -> Result<QueueInfo, Error> {
        let op = &op;
        let span = tracing::debug_span!("change", queue = %self.name());
        let call = self.placed(Missing::IsAnError, |info| async move {
            match self.client.command(info.uid.home(), op(info.uid)).await? {
                Outcome::Queue(info) => Ok(*info),
                other => Err(strange(&other)),
            }
        });
        let info = traced(span, call).await?;
        self.slot.set(info.clone());
        Ok(info)
    }

    async fn sweep_step(
        &self,
        sweep: &Sweep,
        uid: QueueUid,
        at: (u8, u64),
        limit: u32,
    ) -> Result<(Swept, Option<u64>), Error> {
        let info = self.known();
        if info.uid != uid {
            let words = "the queue was deleted and made anew during the sweep";
            return Err(Error::new(Code::QueueChanged, words));
        }
        let partition = crate::base::ids::Partition(at.0);
        let group = group_of(&info, partition)?;
        let op = Op::SweepDead {
            queue: uid,
            partition,
            action: sweep.action,
            filter: sweep.filter.clone(),
            from_seq: at.1,
            limit,
        };
        match self.client.command(group, op).await? {
            Outcome::Swept {
                matched,
                scanned,
                next_seq,
            } => {
                let step = Swept {
                    matched: matched.into(),
                    scanned: scanned.into(),
                };
                Ok((step, next_seq))
            }
            other => Err(strange(&other)),
        }
    }
}

/// A sweep of dead jobs, done when this is awaited; see [`Queue::sweep_dead`].
#[derive(Clone, Debug)]
#[must_use = "a sweep is done when this is awaited"]
pub struct Sweep {
    queue: Queue,
    action: SweepAction,
    filter: JobFilter,
    rate: Option<u32>,
}

/// What a sweep has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs requeued or deleted.
    pub matched: u64,
    /// Dead jobs looked at.
    pub scanned: u64,
}

impl Sweep {
    /// At most so many jobs a second, at least 1; without it, as fast as the server can.
    pub fn rate(mut self, jobs_a_second: u32) -> Self {
        self.rate = Some(jobs_a_second.max(1));
        self
    }

    /// As awaiting it; `progress` is told after every step what was done so far.
    ///
    /// # Errors
    /// What a call can end with. What was done until then stays done, and `progress` knows it.
    pub async fn run(self, mut progress: impl FnMut(Swept)) -> Result<Swept, Error> {
        let (info, queue) = (self.queue.known(), self.queue.clone());
        let step_max = self.rate.map_or(ITEMS_MAX as u32, |rate| {
            (rate / STEPS_A_SECOND).clamp(1, ITEMS_MAX as u32)
        });
        let mut swept = Swept::default();
        for (partition, _) in places(&info) {
            let mut from = Some(0);
            while let Some(seq) = from {
                let at = (partition.0, seq);
                let (step, next) = queue.sweep_step(&self, info.uid, at, step_max).await?;
                swept.matched += step.matched;
                swept.scanned += step.scanned;
                progress(swept);
                from = next;
                if let Some(rate) = self.rate {
                    tokio::time::sleep(pause(step.matched, rate)).await;
                }
            }
        }
        Ok(swept)
    }
}

/// How long so many jobs take at a rate.
fn pause(jobs: u64, rate: u32) -> Duration {
    Duration::from_secs(jobs) / rate.max(1)
}

impl IntoFuture for Sweep {
    type Output = Result<Swept, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run(|_| ()))
    }
}

impl Client {
    /// The sessions that work: hold jobs, wait for some, or told who they are; with the group of
    /// each, in the order of groups. A worker has a session in every group that it works in. A
    /// group that stopped is left out: nobody works there.
    ///
    /// # Errors
    /// What a call can end with.
    pub async fn workers(&self) -> Result<Vec<(crate::base::ids::GroupId, WorkerSession)>, Error> {
        let mut calls = Vec::new();
        for group in self.groups()? {
            let body = RequestBody::ListWorkers { group };
            calls.push((group, self.start(Route::Group(group), body).await?));
        }
        let mut workers = Vec::new();
        for (group, call) in calls {
            let reply = match call.reply().await {
                Err(error) if error.code() == Code::GroupHalted => continue,
                reply => reply?,
            };
            match reply.body {
                ReplyBody::Workers(part) => {
                    workers.extend(part.into_iter().map(|worker| (group, worker)));
                }
                other => return Err(refusal(other)),
            }
        }
        Ok(workers)
    }

    /// The counters of a queue: those at home, or the sum of all its partitions if it has several.
    pub(super) async fn sum(
        &self,
        info: &QueueInfo,
        home: QueueStats,
    ) -> Result<QueueStats, Error> {
        if info.groups.len() <= 1 {
            return Ok(home);
        }
        let mut calls = Vec::new();
        for (partition, group) in places(info) {
            let body = RequestBody::GetPartition {
                queue: info.uid,
                partition,
                group,
            };
            calls.push(self.start(Route::Group(group), body).await?);
        }
        let mut sum = QueueStats::default();
        for call in calls {
            match call.reply().await?.body {
                ReplyBody::Partition(part) => add(&mut sum, &part),
                other => return Err(refusal(other)),
            }
        }
        Ok(sum)
    }
}

/// Adds the counters of a partition.
fn add(sum: &mut QueueStats, part: &QueueStats) {
    let QueueStats {
        pending,
        delayed,
        in_flight,
        dead,
        bytes,
        keys,
        enqueued_total,
        leased_total,
        completed_total,
        nacked_total,
        expired_total,
        dead_total,
        cancelled_total,
        retained,
        oldest_pending,
    } = part;
    sum.pending += pending;
    sum.delayed += delayed;
    sum.in_flight += in_flight;
    sum.dead += dead;
    sum.bytes += bytes;
    sum.keys += keys;
    sum.enqueued_total += enqueued_total;
    sum.leased_total += leased_total;
    sum.completed_total += completed_total;
    sum.nacked_total += nacked_total;
    sum.expired_total += expired_total;
    sum.dead_total += dead_total;
    sum.cancelled_total += cancelled_total;
    sum.retained += retained;
    sum.oldest_pending = match (sum.oldest_pending, *oldest_pending) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::WallTime;

    #[test]
    fn counters_of_partitions_are_added_and_the_oldest_job_is_the_oldest_of_all() {
        let part = |pending, oldest: Option<u64>| QueueStats {
            pending,
            completed_total: 10,
            oldest_pending: oldest.map(WallTime),
            ..QueueStats::default()
        };
        let mut sum = QueueStats::default();
        for part in [part(1, Some(7)), part(0, None), part(2, Some(5))] {
            add(&mut sum, &part);
        }
        let due = QueueStats {
            pending: 3,
            completed_total: 30,
            oldest_pending: Some(WallTime(5)),
            ..QueueStats::default()
        };
        assert_eq!(sum, due);
    }

    #[test]
    fn a_rate_makes_pauses() {
        assert_eq!(pause(10, 100), Duration::from_millis(100));
        assert_eq!(pause(0, 100), Duration::ZERO);
        assert_eq!(pause(1, 3), Duration::from_nanos(333_333_333));
    }
}
