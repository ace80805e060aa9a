//! One partition of a queue: its jobs, and the orders that they stand in.
//!
//! Every change of a job goes through [`PartitionState::insert`], [`PartitionState::change`] or
//! [`PartitionState::remove`], which take the job out of all its orders and put it back where its
//! record says. So the orders are a function of the records:
//!
//! | state | orders |
//! | --- | --- |
//! | pending | ready of its priority; times to live, if it has one |
//! | delayed | delayed; delays or run-ats; times to live, if it has one |
//! | in flight | in flight; leases; the jobs that its session holds |
//! | dead | dead |
//!
//! Ready is FIFO by sequence inside a priority, so a job that comes back stands where it stood.
//!
//! A job that is over may be retained (`history.rs`). Its result and its place count into the bounds
//! of the partition, but never against a live job: whatever is too much goes, the oldest first, a
//! bounded number an entry. Until then the partition stands in the group's surplus.

use crate::base::checksum::Hash128;
use crate::base::ids::{JobId, Partition, QueueUid, SessionId};
use crate::base::limits::{
    FINISHED_HELD_BYTES, JOB_HELD_BYTES, KEY_HELD_BYTES, PRIORITIES, REASON_BYTES_MAX,
};
use crate::base::units::WallTime;
use crate::queue::body::StoredBody;
use crate::queue::command::{DeadPolicy, PartitionConfig};
use crate::queue::deadlines::Deadlines;
use crate::queue::history::{Finished, History};
use crate::queue::keys::{KeyRecord, KeyTable};
use crate::queue::leaf::{Leaves, leaf_of, slot_of};
use crate::queue::record::Record;
use crate::queue::seq_set::SeqSet;
use crate::queue::sessions::Sessions;
use crate::queue::settings::share;
use crate::queue::view::{JobEnd, JobState, QueueStats};
use bytes::Bytes;
use std::collections::BTreeSet;

/// The orders that span the partitions of a group.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// What waits for a time.
    pub(super) deadlines: Deadlines,
    /// Who holds what.
    pub(super) sessions: Sessions,
    /// Partitions that may keep more finished jobs than they may; none that does is missing.
    pub(super) surplus: BTreeSet<(QueueUid, Partition)>,
    /// Memory that live jobs, keys and finished jobs take.
    pub(super) held_bytes: u64,
    /// Where bodies are put together.
    pub(super) scratch: Vec<u8>,
}

/// What the page of a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// What is in force: the queue's record as far as it has come here.
    pub(super) config: PartitionConfig,
    /// The sequence of the next job; every lower one was given out.
    pub(super) next_seq: u64,
    /// The place of the last job that was retained; 0 = none ever was.
    pub(super) last_place: u64,
    /// The counters; `oldest_pending` stays empty here, reads fill it in.
    pub(super) stats: QueueStats,
}

/// Memory that a live job takes, about.
pub(super) fn held_bytes(body: &StoredBody) -> u64 {
    (JOB_HELD_BYTES + body.encoded_len()) as u64
}

/// Memory that a finished job takes, about.
pub(super) fn finished_held_bytes(job: &Finished) -> u64 {
    FINISHED_HELD_BYTES as u64 + job.result_len()
}

/// The orders of a partition's jobs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// Pending, by priority.
    pub(super) ready: [SeqSet; PRIORITIES],
    /// Delayed, of both kinds.
    pub(super) delayed: SeqSet,
    /// Leased.
    pub(super) in_flight: SeqSet,
    /// Dead.
    pub(super) dead: SeqSet,
}

impl Head {
    /// What a partition may hold, its share of its queue's: jobs and bytes, 0 = no bound.
    pub(super) fn bounds(&self) -> (u64, u64) {
        let settings = &self.config.settings;
        let partitions = settings.partitions;
        (
            share(settings.jobs_max, partitions),
            share(settings.bytes_max, partitions),
        )
    }

    /// Finished jobs that it may keep.
    pub(super) fn retain(&self) -> u64 {
        let settings = &self.config.settings;
        share(u64::from(settings.retain), settings.partitions)
    }

    /// Live jobs, in any state.
    pub(super) fn live(&self) -> u64 {
        let stats = &self.stats;
        stats.pending + stats.delayed + stats.in_flight + stats.dead
    }
}

impl Orders {
    fn of(&mut self, state: JobState, priority: u8) -> &mut SeqSet {
        match state {
            JobState::Pending => &mut self.ready[usize::from(priority)],
            JobState::Delayed => &mut self.delayed,
            JobState::InFlight => &mut self.in_flight,
            JobState::Dead => &mut self.dead,
        }
    }
}

/// A partition.
pub(super) struct PartitionState {
    /// Settings, next sequence, counters.
    pub(super) head: Head,
    /// The live jobs.
    pub(super) leaves: Leaves,
    /// The idempotency keys.
    pub(super) keys: KeyTable,
    /// Derived from the records.
    pub(super) orders: Orders,
    /// The finished jobs that are retained.
    pub(super) history: History,
}

impl PartitionState {
    /// An empty partition.
    pub(super) fn new(config: PartitionConfig) -> Self {
        Self::restored(Head {
            config,
            next_seq: 0,
            last_place: 0,
            stats: QueueStats::default(),
        })
    }

    /// A partition as its page says, its jobs still to come.
    pub(super) fn restored(head: Head) -> Self {
        Self {
            head,
            leaves: Leaves::default(),
            keys: KeyTable::default(),
            orders: Orders::default(),
            history: History::default(),
        }
    }

    /// Adds a live job: to the leaves, to its orders and to the counters of its state.
    pub(super) fn insert(&mut self, id: JobId, record: Record, body: StoredBody, on: &mut Links) {
        on.held_bytes += held_bytes(&body);
        self.leaves.insert(id.seq(), record, body);
        self.head.stats.bytes += u64::from(record.payload_len);
        self.link(id, &record, on);
        self.mark_surplus((id.queue(), id.partition()), on);
    }

    /// Takes a live job out of the state.
    pub(super) fn remove(&mut self, id: JobId, on: &mut Links) {
        let (record, body) = self.leaves.remove(id.seq());
        on.held_bytes -= held_bytes(&body);
        self.head.stats.bytes -= u64::from(record.payload_len);
        self.unlink(id, &record, on);
    }

    /// Changes the record of a live job.
    pub(super) fn change(&mut self, id: JobId, on: &mut Links, change: impl FnOnce(&mut Record)) {
        let seq = id.seq();
        let leaf = self
            .leaves
            .leaf_mut(leaf_of(seq))
            .expect("a live job has its leaf");
        let record = leaf.record_mut(slot_of(seq));
        let before = *record;
        change(record);
        let after = *record;
        assert!(
            before.state.is_some() && after.rules() == Ok(()),
            "job {id} went from {before:?} to {after:?}: {:?}",
            after.rules()
        );
        self.unlink(id, &before, on);
        self.link(id, &after, on);
    }

    /// A live job is over: it leaves the state, and is retained if the queue wants that.
    pub(super) fn finish(
        &mut self,
        id: JobId,
        end: JobEnd,
        result: Option<&Bytes>,
        wall: WallTime,
        on: &mut Links,
    ) {
        let record = self.leaves.record(id.seq()).copied();
        let record = record.expect("the caller found the job live");
        self.remove(id, on);
        if self.head.retain() == 0 {
            return;
        }
        let job = Finished {
            seq: id.seq(),
            end,
            attempts: record.attempts,
            enqueued_at: record.enqueued_at,
            finished_at: wall.0,
            // A slice would keep the whole entry in memory that the result came with.
            result: result.map(|bytes| Bytes::copy_from_slice(bytes)),
        };
        self.head.last_place += 1;
        self.retain(self.head.last_place, job, on);
        self.mark_surplus((id.queue(), id.partition()), on);
    }

    /// Remembers a key until its window ends.
    pub(super) fn remember(
        &mut self,
        (queue, number): (QueueUid, Partition),
        key: KeyRecord,
        on: &mut Links,
    ) {
        on.held_bytes += KEY_HELD_BYTES as u64;
        on.deadlines
            .keys
            .insert((key.expires, (queue, number, key.hash)));
        self.keys.insert(key);
        self.head.stats.keys += 1;
    }

    /// Forgets a key whose window has ended, and which is no deadline any more.
    pub(super) fn forget(&mut self, hash: Hash128, held_bytes: &mut u64) {
        *held_bytes -= KEY_HELD_BYTES as u64;
        self.keys.remove(hash);
        self.head.stats.keys -= 1;
    }

    /// Memory that keys and finished jobs take.
    pub(super) fn held_beside_jobs(&self) -> u64 {
        let stats = &self.head.stats;
        stats.keys * KEY_HELD_BYTES as u64
            + stats.retained * FINISHED_HELD_BYTES as u64
            + self.history.result_bytes()
    }

    /// Puts a finished job at its place.
    pub(super) fn retain(&mut self, place: u64, job: Finished, on: &mut Links) {
        on.held_bytes += finished_held_bytes(&job);
        self.head.stats.retained += 1;
        self.head.stats.bytes += job.result_len();
        self.history.push(place, job);
    }

    /// Drops the oldest finished job, which is there.
    pub(super) fn drop_oldest(&mut self, held_bytes: &mut u64) {
        let job = self.history.pop().expect("a surplus has an oldest job");
        *held_bytes -= finished_held_bytes(&job);
        self.head.stats.retained -= 1;
        self.head.stats.bytes -= job.result_len();
    }

    /// Whether finished jobs have to go: there are more than the queue retains, or, since history
    /// refuses no enqueue, live jobs need their room.
    pub(super) fn keeps_too_much(&self) -> bool {
        let (head, stats) = (&self.head, &self.head.stats);
        let (jobs_max, bytes_max) = head.bounds();
        stats.retained != 0
            && (stats.retained > head.retain()
                || (jobs_max != 0 && head.live() + stats.retained > jobs_max)
                || (bytes_max != 0 && stats.bytes > bytes_max))
    }

    /// Remembers the partition if finished jobs have to go.
    pub(super) fn mark_surplus(&self, place: (QueueUid, Partition), on: &mut Links) {
        if self.keeps_too_much() {
            on.surplus.insert(place);
        }
    }

    /// Sets why a live job failed last, cut at 256 bytes.
    pub(super) fn set_reason(&mut self, id: JobId, reason: &Bytes) {
        let seq = id.seq();
        let old_is_empty = {
            let leaf = self
                .leaves
                .leaf(leaf_of(seq))
                .expect("a live job has its leaf");
            leaf.reason(slot_of(seq)).is_empty()
        };
        if reason.is_empty() && old_is_empty {
            return;
        }
        // A slice would keep the whole entry in memory that the reason came with.
        let cut = Bytes::copy_from_slice(&reason[..reason.len().min(REASON_BYTES_MAX)]);
        self.leaves.set_reason(seq, cut);
    }

    /// A job used up its attempts or its time: kept as dead or dropped, as the queue wants it.
    pub(super) fn die(&mut self, id: JobId, reason: &Bytes, wall: WallTime, on: &mut Links) {
        match self.head.config.settings.dead {
            DeadPolicy::Keep => self.bury(id, reason, on),
            DeadPolicy::Drop => {
                self.count_dead();
                self.finish(id, JobEnd::Dropped, None, wall, on);
            }
        }
    }

    /// A job is put among the dead whatever the queue's policy.
    pub(super) fn bury(&mut self, id: JobId, reason: &Bytes, on: &mut Links) {
        self.count_dead();
        self.set_reason(id, reason);
        self.change(id, on, |record| rest(record, JobState::Dead));
    }

    fn count_dead(&mut self) {
        let stats = &mut self.head.stats;
        stats.dead_total = stats.dead_total.saturating_add(1);
    }

    /// A lease ended by time or with its worker: back to its place, or dead after its last attempt.
    pub(super) fn lose(&mut self, id: JobId, reason: &'static str, wall: WallTime, on: &mut Links) {
        let stats = &mut self.head.stats;
        stats.expired_total = stats.expired_total.saturating_add(1);
        let record = self.leaves.record(id.seq()).expect("a leased job is live");
        if record.attempts >= record.max_attempts {
            self.die(id, &Bytes::from_static(reason.as_bytes()), wall, on);
        } else {
            self.change(id, on, |record| rest(record, JobState::Pending));
        }
    }

    /// The job that a lease grants next, were the queue not paused.
    pub(super) fn first_ready(&self) -> Option<u64> {
        self.orders.ready.iter().find_map(SeqSet::first)
    }

    /// The counters as a read shows them.
    pub(super) fn stats(&self) -> QueueStats {
        let oldest = self.orders.ready.iter().filter_map(SeqSet::first).min();
        QueueStats {
            oldest_pending: oldest.map(|seq| {
                let record = self.leaves.record(seq).expect("a ready job is live");
                WallTime(record.enqueued_at)
            }),
            ..self.head.stats
        }
    }

    fn counter(&mut self, state: JobState) -> &mut u64 {
        let stats = &mut self.head.stats;
        match state {
            JobState::Pending => &mut stats.pending,
            JobState::Delayed => &mut stats.delayed,
            JobState::InFlight => &mut stats.in_flight,
            JobState::Dead => &mut stats.dead,
        }
    }

    fn link(&mut self, id: JobId, record: &Record, on: &mut Links) {
        let state = record.state.expect("only live jobs stand in orders");
        self.orders.of(state, record.priority).insert(id.seq());
        *self.counter(state) += 1;
        if let Some(order) = due_order(record, &mut on.deadlines) {
            let fresh = order.insert((record.when, id));
            assert!(fresh, "job {id} waits for {} already", record.when);
        }
        if has_ttl(record) {
            let fresh = on.deadlines.ttls.insert((record.expires_at, id));
            assert!(fresh, "job {id} expires at {} already", record.expires_at);
        }
        if record.owner != 0 {
            on.sessions.hold(record.owner, id);
        }
    }

    fn unlink(&mut self, id: JobId, record: &Record, on: &mut Links) {
        let state = record.state.expect("only live jobs stand in orders");
        self.orders.of(state, record.priority).remove(id.seq());
        *self.counter(state) -= 1;
        if let Some(order) = due_order(record, &mut on.deadlines) {
            let was = order.remove(&(record.when, id));
            assert!(was, "job {id} did not wait for {}", record.when);
        }
        if has_ttl(record) {
            let was = on.deadlines.ttls.remove(&(record.expires_at, id));
            assert!(was, "job {id} did not expire at {}", record.expires_at);
        }
        if record.owner != 0 {
            on.sessions.let_go(record.owner, id);
        }
    }
}

/// Makes a record wait for nothing and nobody, in `state`.
pub(super) fn rest(record: &mut Record, state: JobState) {
    record.state = Some(state);
    record.when = 0;
    record.wall = false;
    record.owner = 0;
    record.leased_at = 0;
}

/// Whether the job dies when its time to live ends: only while it waits.
pub(super) fn has_ttl(record: &Record) -> bool {
    let waits = matches!(record.state, Some(JobState::Pending | JobState::Delayed));
    waits && record.expires_at != 0
}

/// The order of times that a record stands in, besides times to live.
pub(super) fn due_order<'a>(
    record: &Record,
    deadlines: &'a mut Deadlines,
) -> Option<&'a mut BTreeSet<(u64, JobId)>> {
    match record.state {
        Some(JobState::Delayed) if record.wall => Some(&mut deadlines.run_ats),
        Some(JobState::Delayed) => Some(&mut deadlines.delays),
        Some(JobState::InFlight) => Some(&mut deadlines.leases),
        _ => None,
    }
}

/// The session of a stored owner.
pub(super) fn owner_of(record: &Record) -> Option<SessionId> {
    (record.owner != 0).then_some(SessionId(record.owner))
}
