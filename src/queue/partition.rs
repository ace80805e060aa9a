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

use crate::base::ids::{JobId, SessionId};
use crate::base::limits::{PRIORITIES, REASON_BYTES_MAX};
use crate::base::units::WallTime;
use crate::queue::command::{DeadPolicy, QueueSettings};
use crate::queue::deadlines::Deadlines;
use crate::queue::keys::KeyTable;
use crate::queue::leaf::{Leaves, leaf_of, slot_of};
use crate::queue::record::Record;
use crate::queue::seq_set::SeqSet;
use crate::queue::sessions::Sessions;
use crate::queue::view::{Body, JobState, QueueStats};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The orders that span the partitions of a group.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// What waits for a time.
    pub(super) deadlines: Deadlines,
    /// Who holds what.
    pub(super) sessions: Sessions,
}

/// What the page of a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The version of the queue's record that these settings are of.
    pub(super) version: u32,
    /// Hands out no jobs.
    pub(super) paused: bool,
    /// The settings in force.
    pub(super) settings: QueueSettings,
    /// The sequence of the next job; every lower one was given out.
    pub(super) next_seq: u64,
    /// The counters; `oldest_pending` stays empty here, reads fill it in.
    pub(super) stats: QueueStats,
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
}

impl PartitionState {
    /// An empty partition.
    pub(super) fn new(version: u32, settings: QueueSettings) -> Self {
        Self::restored(Head {
            version,
            paused: false,
            settings,
            next_seq: 0,
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
        }
    }

    /// Adds a live job: to the leaves, to its orders and to the counters of its state.
    pub(super) fn insert(&mut self, id: JobId, record: Record, body: Arc<Body>, on: &mut Links) {
        self.leaves.insert(id.seq(), record, body);
        self.head.stats.bytes += u64::from(record.payload_len);
        self.link(id, &record, on);
    }

    /// Takes a live job out of the state.
    pub(super) fn remove(&mut self, id: JobId, on: &mut Links) {
        let record = self.leaves.remove(id.seq());
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
    pub(super) fn die(&mut self, id: JobId, reason: &Bytes, on: &mut Links) {
        match self.head.settings.dead {
            DeadPolicy::Keep => self.bury(id, reason, on),
            DeadPolicy::Drop => {
                self.count_dead();
                self.remove(id, on);
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
    pub(super) fn lose(&mut self, id: JobId, reason: &'static str, on: &mut Links) {
        let stats = &mut self.head.stats;
        stats.expired_total = stats.expired_total.saturating_add(1);
        let record = self.leaves.record(id.seq()).expect("a leased job is live");
        if record.attempts >= record.max_attempts {
            self.die(id, &Bytes::from_static(reason.as_bytes()), on);
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
