//! What can be read of the machine: copies, made between two entries.
//!
//! A read never changes anything: a lease that has ended shows 0 milliseconds left until the leader
//! has it taken back.

use crate::base::checksum::Hash128;
use crate::base::ids::{GroupId, JobId, Partition, QueueUid, SessionId, Token};
use crate::base::units::{GroupTime, WallTime};
use crate::queue::command::{PartitionChange, QueueInfo, Rejection, SessionCall};
use crate::queue::history::Finished;
use crate::queue::job_queue::JobQueue;
use crate::queue::jobs::ReplyRoom;
use crate::queue::leaf::{Order, leaf_of, slot_of};
use crate::queue::partition::{PartitionState, owner_of};
use crate::queue::scan::in_order;
use crate::queue::sessions::view;
use crate::queue::view::{
    Body, FinishedJob, JobCursor, JobState, JobView, QueueStats, SessionView,
};

impl JobQueue {
    /// A live job.
    ///
    /// # Errors
    /// `QueueChanged` if its queue is not here, `Finished` if its id was given out and it is not
    /// live, `NotFound` if the id was never given out.
    pub fn job(&self, id: JobId) -> Result<JobView, Rejection> {
        let place = self.partition(id.queue(), id.partition());
        let partition = place.filter(|_| id.group() == self.group);
        let partition = partition.ok_or(Rejection::QueueChanged)?;
        self.view_of(partition, id, true)
            .ok_or(if id.seq() < partition.head.next_seq {
                Rejection::Finished
            } else {
                Rejection::NotFound
            })
    }

    /// The job that a key names.
    ///
    /// # Errors
    /// `QueueChanged` if the queue is not here, `NotFound` if the key is not remembered, `Finished`
    /// if its job is not live.
    pub fn job_by_key(
        &self,
        queue: QueueUid,
        partition: Partition,
        key: &[u8],
    ) -> Result<JobView, Rejection> {
        let state = self
            .partition(queue, partition)
            .ok_or(Rejection::QueueChanged)?;
        let known = state
            .keys
            .get(Hash128::of(key))
            .ok_or(Rejection::NotFound)?;
        let id = JobId::new(self.group, queue, partition, known.seq);
        self.view_of(state, id, true).ok_or(Rejection::Finished)
    }

    /// Up to `limit` jobs of a state, and no more than a reply holds: pending ones in the order in
    /// which they would be leased, others by sequence.
    ///
    /// # Errors
    /// `QueueChanged` if the queue is not here.
    pub fn peek(
        &self,
        queue: QueueUid,
        partition: Partition,
        state: JobState,
        limit: usize,
    ) -> Result<Vec<JobView>, Rejection> {
        let place = self
            .partition(queue, partition)
            .ok_or(Rejection::QueueChanged)?;
        let mut room = ReplyRoom::default();
        let fits = |seq: &u64| {
            let record = place.leaves.record(*seq);
            room.takes(record.expect("a job in an order is live").payload_len)
        };
        let seqs = in_order(place, state, JobCursor::default())
            .map(|cursor| cursor.seq)
            .take(limit)
            .take_while(fits);
        let view = |seq| {
            let id = JobId::new(self.group, queue, partition, seq);
            self.view_of(place, id, true)
                .expect("a job in an order is live")
        };
        Ok(seqs.map(view).collect())
    }

    /// The queue of this name that is at home here.
    #[must_use]
    pub fn queue_by_name(&self, name: &str) -> Option<QueueInfo> {
        let uid = self.names.get(name)?;
        Some(self.queues[uid].info(*uid, false))
    }

    /// All queues at home here, by uid, with their counters.
    #[must_use]
    pub fn queues(&self) -> Vec<(QueueInfo, QueueStats)> {
        let queues = self.queues.keys();
        queues.filter_map(|uid| self.queue(*uid)).collect()
    }

    /// A queue at home here, with its counters.
    #[must_use]
    pub fn queue(&self, uid: QueueUid) -> Option<(QueueInfo, QueueStats)> {
        let record = self.queues.get(&uid)?;
        let partition = &self.partitions[&(uid, Partition(0))];
        Some((record.info(uid, false), partition.stats()))
    }

    /// Jobs that are live and not dead, over all partitions that live here.
    #[must_use]
    pub fn live_jobs(&self) -> u64 {
        let stats = self.partitions.values().map(|place| &place.head.stats);
        stats
            .map(|stats| stats.pending + stats.delayed + stats.in_flight)
            .sum()
    }

    /// Memory that the state takes, in bytes: bodies and `JOB_HELD_BYTES` a live job, `KEY_HELD_BYTES`
    /// a remembered key, results and `FINISHED_HELD_BYTES` a finished job.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.links.held_bytes
    }

    /// How many jobs a lease could grant now; 0 if the queue is paused.
    ///
    /// # Errors
    /// `QueueChanged` if the queue is not here.
    pub fn ready(&self, queue: QueueUid, partition: Partition) -> Result<u64, Rejection> {
        let place = self
            .partition(queue, partition)
            .ok_or(Rejection::QueueChanged)?;
        Ok(if place.head.config.paused {
            0
        } else {
            place.head.stats.pending
        })
    }

    /// The earliest group time at which `Advance` has something to do, at the present wall offset. It is
    /// looked for, which changes nothing that is told of the state.
    pub fn next_due(&mut self) -> Option<GroupTime> {
        for order in Order::ALL {
            self.settle(order);
        }
        self.settle_keys();
        self.due_bound()
    }

    /// A group time before which `Advance` has nothing to do: [`Self::next_due`], or less, without
    /// looking.
    #[must_use]
    pub fn due_bound(&self) -> Option<GroupTime> {
        let mut surplus = self.links.surplus.iter();
        let surplus = surplus
            .any(|place| self.partitions[place].keeps_too_much())
            .then_some(self.time);
        let due = self.links.deadlines.next(self.wall_offset_ms);
        due.into_iter().chain(surplus).min()
    }

    /// Whether a lease or a backoff waits for group time, so that a leader must keep it moving.
    #[must_use]
    pub fn waits_on_time(&self) -> bool {
        let deadlines = &self.links.deadlines;
        deadlines.has(Order::Leases) || deadlines.has(Order::Delays)
    }

    /// A session.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<SessionView> {
        self.links.sessions.get(id).map(|slot| view(id, slot))
    }

    /// Whether the outcome of this call is kept: proposing it again repeats the outcome.
    #[must_use]
    pub fn has_outcome(&self, call: &SessionCall) -> bool {
        self.links.sessions.has_outcome(call)
    }

    /// All sessions, by id.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionView> {
        self.links
            .sessions
            .iter()
            .map(|(id, slot)| view(id, slot))
            .collect()
    }

    /// How many sessions there are.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.links.sessions.len()
    }

    /// The counters of one partition.
    ///
    /// # Errors
    /// `QueueChanged` if it is not here.
    pub fn partition_stats(
        &self,
        queue: QueueUid,
        partition: Partition,
    ) -> Result<QueueStats, Rejection> {
        self.partition(queue, partition)
            .map(PartitionState::stats)
            .ok_or(Rejection::QueueChanged)
    }

    /// A finished job that its queue retains.
    #[must_use]
    pub fn finished(&self, job: JobId) -> Option<FinishedJob> {
        let partition = self.partition(job.queue(), job.partition());
        let partition = partition.filter(|_| job.group() == self.group)?;
        let place = partition.history.place_of(job.seq())?;
        Some(view_of_finished(job, place, partition.history.at(place)?))
    }

    /// What this group has yet to ask of others as the home of queues: the first outstanding change
    /// of each group. The leader sends each until it is done, then tells so by
    /// `Op::PartitionsChanged`.
    pub fn next_changes(&self) -> impl Iterator<Item = (GroupId, &PartitionChange)> {
        self.outbox.next()
    }

    /// Whether a change of this queue, which may be deleted by now, is outstanding in any group.
    #[must_use]
    pub fn is_changing(&self, queue: QueueUid) -> bool {
        self.outbox.is_changing(queue)
    }

    /// Whether any change is outstanding.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.outbox.len() != 0
    }

    pub(super) fn partition(
        &self,
        queue: QueueUid,
        partition: Partition,
    ) -> Option<&PartitionState> {
        self.partitions.get(&(queue, partition))
    }

    /// The view of a live job, with its body or with an empty one.
    pub(super) fn view_of(
        &self,
        partition: &PartitionState,
        id: JobId,
        with_body: bool,
    ) -> Option<JobView> {
        let slot = slot_of(id.seq());
        let leaf = partition.leaves.get(leaf_of(id.seq()))?;
        let record = &leaf.records()[slot];
        let state = record.state?;
        let wall = |ms: u64| (ms != 0).then_some(WallTime(ms));
        let remaining = record.when.saturating_sub(self.time.0);
        Some(JobView {
            id,
            state,
            priority: record.priority,
            attempts: record.attempts,
            max_attempts: record.max_attempts,
            run_at: record.wall.then_some(WallTime(record.when)),
            remaining_ms: (!record.wall && record.when != 0).then_some(remaining),
            enqueued_at: WallTime(record.enqueued_at),
            expires_at: wall(record.expires_at),
            token: (state == JobState::InFlight).then_some(Token {
                job: id,
                lease_gen: record.lease_gen,
            }),
            owner: owner_of(record),
            last_failure: leaf.reason(slot),
            body: if with_body {
                leaf.body(slot).body()
            } else {
                Body::default()
            },
        })
    }
}

/// A finished job as a read shows it.
pub(super) fn view_of_finished(id: JobId, place: u64, job: &Finished) -> FinishedJob {
    FinishedJob {
        id,
        end: job.end,
        attempts: job.attempts,
        enqueued_at: WallTime(job.enqueued_at),
        finished_at: WallTime(job.finished_at),
        result: job.result.clone(),
        place,
    }
}
