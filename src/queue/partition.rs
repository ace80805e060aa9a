//! One partition of a queue: its jobs, and the orders that they stand in.
//!
//! Every change of a job goes through [`PartitionState::insert`], [`PartitionState::change`] or
//! [`PartitionState::remove`], which keep what is a function of the records:
//!
//! | state | stands in |
//! | --- | --- |
//! | pending | its leaf's class of its priority; times to live, if it has one |
//! | delayed | the class of delayed jobs; delays or run-ats; times to live, if it has one |
//! | in flight | the class of jobs in flight; leases; the jobs that its session holds |
//! | dead | the class of the dead |
//!
//! Pending jobs are FIFO by sequence inside a priority, so one that comes back stands where it stood.
//!
//! A job that is over may be retained (`history.rs`). Its result and its place count into the bounds
//! of the partition, but never against a live job: whatever is too much goes, the oldest first, a
//! bounded number an entry. Until then the partition stands in the group's surplus.

use crate::base::ids::{GroupId, JobId, Partition, QueueUid, SessionId};
use crate::base::limits::{
    FINISHED_HELD_BYTES, JOB_HELD_BYTES, KEY_HELD_BYTES, PRIORITIES, REASON_BYTES_MAX,
};
use crate::base::units::WallTime;
use crate::queue::body::StoredBody;
use crate::queue::command::{DeadPolicy, PartitionConfig, PurgeStates};
use crate::queue::deadlines::{Deadlines, Place};
use crate::queue::discarded::Discarded;
use crate::queue::history::{Finished, History};
use crate::queue::keys::{KeyRecord, KeyTable};
use crate::queue::leaf::{Leaves, leaf_of, purged, slot_of};
use crate::queue::record::Record;
use crate::queue::sessions::Sessions;
use crate::queue::settings::share;
use crate::queue::tree::{NEVER, Page, Seen, Summary};
use crate::queue::view::{BodyLocation, JobEnd, JobState, QueueStats};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

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
    /// What is to be freed elsewhere.
    pub(super) discarded: Discarded,
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

/// A partition.
pub(super) struct PartitionState {
    /// Settings, next sequence, counters.
    pub(super) head: Head,
    /// The live jobs.
    pub(super) leaves: Leaves,
    /// The idempotency keys.
    pub(super) keys: KeyTable,
    /// The finished jobs that are retained.
    pub(super) history: History,
    /// Memory that jobs, keys and finished jobs take which are here.
    held_bytes: u64,
    /// Payload files of this node's disk with the bytes and the number of bodies of live jobs.
    pub(super) payloads: BTreeMap<u64, (u64, u64)>,
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
            history: History::default(),
            held_bytes: 0,
            payloads: BTreeMap::new(),
        }
    }

    /// Adds a live job: to the leaves, to its orders and to the counters of its state.
    pub(super) fn insert(&mut self, id: JobId, record: Record, body: StoredBody, on: &mut Links) {
        self.hold(held_bytes(&body), on);
        let before = *self.leaves.summary();
        self.leaves.insert(id.seq(), record, body);
        self.head.stats.bytes += u64::from(record.payload_len);
        self.link(id, &record, on);
        on.deadlines
            .note_jobs(place_of(id), &before, self.leaves.summary());
        self.mark_surplus(place_of(id), on);
    }

    /// Takes a live job out of the state.
    pub(super) fn remove(&mut self, id: JobId, on: &mut Links) {
        let before = *self.leaves.summary();
        let (record, body, location) = self.leaves.remove(id.seq());
        if let Some(at) = location {
            self.leave_payload(at);
        }
        self.free(held_bytes(&body), on);
        self.head.stats.bytes -= u64::from(record.payload_len);
        self.unlink(id, &record, on);
        on.deadlines
            .note_jobs(place_of(id), &before, self.leaves.summary());
    }

    /// Takes all jobs of some states out; how many that were. Leaves of which nothing stays go without a
    /// look, most of all if they are absent: [`JobQueue::pages_needed`] tells what must be here.
    ///
    /// [`JobQueue::pages_needed`]: crate::queue::JobQueue::pages_needed
    pub(super) fn purge(
        &mut self,
        (group, place): (GroupId, Place),
        states: PurgeStates,
        on: &mut Links,
    ) -> u64 {
        let live = self.head.live();
        let before = *self.leaves.summary();
        let fate = |summary: &Summary| purged(states, summary);
        let mut gone = Vec::new();
        self.leaves.drop_pages(&fate, &mut |leaf| gone.push(leaf));
        let whole = before.live - self.leaves.summary().live;
        self.head.stats.bytes -= before.bytes - self.leaves.summary().bytes;
        on.deadlines
            .note_jobs(place, &before, self.leaves.summary());
        self.free(gone.iter().map(|leaf| leaf.held_bytes()).sum(), on);
        let mut rest = Vec::new();
        for state in states.all() {
            let before = rest.len() as u64;
            match state {
                JobState::Pending => {
                    let priorities = 0..PRIORITIES as u8;
                    rest.extend(priorities.flat_map(|of| self.leaves.of_state(state, of, 0)));
                }
                _ => rest.extend(self.leaves.of_state(state, 0, 0)),
            }
            *self.counter(state) = rest.len() as u64 - before;
        }
        for seq in rest {
            self.remove(JobId::new(group, place.0, place.1, seq), on);
        }
        // What lives in payload files is told by the leaves that went, or by those that stay: by the fewer, if
        // all of them are here.
        let seen: u64 = gone.iter().map(|leaf| leaf.summary().live).sum();
        let stay = self.leaves.summary().live;
        if !self.leaves.is_here() || (whole == seen && whole < stay) {
            assert_eq!(whole, seen, "a leaf went before it was here");
            for at in gone.iter().flat_map(|leaf| leaf.locations()) {
                self.leave_payload(at);
            }
        } else {
            self.payloads.clear();
            for (_, leaf) in self.leaves.here() {
                for at in leaf.locations() {
                    note_payload(&mut self.payloads, at);
                }
            }
        }
        on.discarded.leaves(gone);
        live - self.head.live()
    }

    /// Remembers where the body of a job is on this node's disk, and where it was before; nothing if the
    /// job is gone.
    pub(super) fn set_body_location(
        &mut self,
        seq: u64,
        at: BodyLocation,
        before: Option<BodyLocation>,
    ) {
        let mut before = before;
        match self.leaves.page(leaf_of(seq)) {
            // Its page says where, as it will be read.
            Some(Seen::Absent(_)) => {}
            Some(Seen::Here(leaf)) if leaf.records()[slot_of(seq)].state.is_some() => {
                self.leaves.touch(leaf_of(seq), |leaf| {
                    before = leaf.set_location(slot_of(seq), at);
                });
            }
            _ => return,
        }
        if let Some(before) = before {
            self.leave_payload(before);
        }
        note_payload(&mut self.payloads, at);
    }

    fn leave_payload(&mut self, at: BodyLocation) {
        let used = self.payloads.get_mut(&at.file);
        let used = used.expect("the file of a body is counted");
        *used = (used.0 - at.disk_bytes(), used.1 - 1);
        if used.1 == 0 {
            self.payloads.remove(&at.file);
        }
    }

    /// Changes the record of a live job.
    pub(super) fn change(&mut self, id: JobId, on: &mut Links, change: impl FnOnce(&mut Record)) {
        let before = *self.leaves.summary();
        let (old, new) = self.leaves.change(id.seq(), change);
        assert!(
            new.rules() == Ok(()),
            "job {id} went from {old:?} to {new:?}: {:?}",
            new.rules()
        );
        self.unlink(id, &old, on);
        self.link(id, &new, on);
        on.deadlines
            .note_jobs(place_of(id), &before, self.leaves.summary());
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
        self.mark_surplus(place_of(id), on);
    }

    /// Remembers a key until its window ends.
    pub(super) fn remember(&mut self, place: Place, key: KeyRecord, on: &mut Links) {
        self.hold(KEY_HELD_BYTES as u64, on);
        let before = self.keys.first_expiry();
        self.keys.insert(key);
        self.head.stats.keys += 1;
        on.deadlines
            .note_keys(place, before, self.keys.first_expiry());
    }

    /// Forgets the first key whose window ends.
    pub(super) fn forget_first(&mut self, place: Place, on: &mut Links) {
        self.free(KEY_HELD_BYTES as u64, on);
        let before = self.keys.first_expiry();
        self.keys.remove_first();
        self.head.stats.keys -= 1;
        on.deadlines
            .note_keys(place, before, self.keys.first_expiry());
    }

    /// Whether its counters fit what its trees tell of what is in them.
    pub(super) fn fits_totals(&self) -> bool {
        let (stats, leaves) = (&self.head.stats, self.leaves.summary());
        let in_flight = self.leaves.of_state(JobState::InFlight, 0, 0).count() as u64;
        self.head.live() == leaves.live
            && stats.bytes == leaves.bytes + self.history.result_bytes()
            && stats.keys == self.keys.tree().summary().live
            && stats.retained == self.history.len()
            && stats.in_flight == in_flight
    }

    /// What of it waits for a time, as its trees tell: it has come.
    pub(super) fn enter_deadlines(&self, place: Place, on: &mut Links) {
        let none = Summary::default();
        on.deadlines.note_jobs(place, &none, self.leaves.summary());
        on.deadlines
            .note_keys(place, NEVER, self.keys.first_expiry());
    }

    /// Nothing of it waits for a time any more: it goes.
    pub(super) fn leave_deadlines(&self, place: Place, on: &mut Links) {
        let none = Summary::default();
        on.deadlines.note_jobs(place, self.leaves.summary(), &none);
        on.deadlines
            .note_keys(place, self.keys.first_expiry(), NEVER);
    }

    /// Memory that what is here of it takes: jobs, keys and finished jobs.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// So much more memory is taken.
    pub(super) fn hold(&mut self, bytes: u64, on: &mut Links) {
        self.held_bytes += bytes;
        on.held_bytes += bytes;
    }

    /// So much memory is free again.
    pub(super) fn free(&mut self, bytes: u64, on: &mut Links) {
        self.held_bytes -= bytes;
        on.held_bytes -= bytes;
    }

    /// Puts a finished job at its place.
    pub(super) fn retain(&mut self, place: u64, job: Finished, on: &mut Links) {
        self.hold(finished_held_bytes(&job), on);
        self.head.stats.retained += 1;
        self.head.stats.bytes += job.result_len();
        self.history.push(place, job);
    }

    /// Drops the oldest finished job, which is there.
    pub(super) fn drop_oldest(&mut self, on: &mut Links) {
        let job = self.history.pop().expect("a surplus has an oldest job");
        self.free(finished_held_bytes(&job), on);
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
        let leaf = self.leaves.get(leaf_of(id.seq()));
        let leaf = leaf.expect("a live job has its leaf");
        if reason.is_empty() && leaf.reason_bytes(slot_of(id.seq())).is_empty() {
            return;
        }
        // A slice would keep the whole entry in memory that the reason came with.
        let cut = Bytes::copy_from_slice(&reason[..reason.len().min(REASON_BYTES_MAX)]);
        self.leaves.set_reason(id.seq(), cut);
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

    /// The counters as a read shows them. The leaf with the oldest pending job must be here.
    pub(super) fn stats(&self) -> QueueStats {
        let oldest = self.leaves.oldest_ready().and_then(|(_, leaf)| match leaf {
            Seen::Here(leaf) => Some(&leaf.records()[leaf.first_ready()?]),
            Seen::Absent(absent) => panic!("{absent:?} was asked for before it was here"),
        });
        QueueStats {
            oldest_pending: oldest.map(|record| WallTime(record.enqueued_at)),
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
        let state = record.state.expect("only live jobs are counted");
        *self.counter(state) += 1;
        if record.owner != 0 {
            on.sessions.hold(record.owner, id);
        }
    }

    fn unlink(&mut self, id: JobId, record: &Record, on: &mut Links) {
        let state = record.state.expect("only live jobs are counted");
        *self.counter(state) -= 1;
        if record.owner != 0 {
            on.sessions.let_go(record.owner, id);
        }
    }
}

/// The body of a live job lies there.
fn note_payload(payloads: &mut BTreeMap<u64, (u64, u64)>, at: BodyLocation) {
    let used = payloads.entry(at.file).or_default();
    *used = (used.0 + at.disk_bytes(), used.1 + 1);
}

/// The partition of a job.
fn place_of(id: JobId) -> Place {
    (id.queue(), id.partition())
}

/// Makes a record wait for nothing and nobody, in `state`.
pub(super) fn rest(record: &mut Record, state: JobState) {
    record.state = Some(state);
    record.when = 0;
    record.wall = false;
    record.owner = 0;
    record.leased_at = 0;
}

/// The session of a stored owner.
pub(super) fn owner_of(record: &Record) -> Option<SessionId> {
    (record.owner != 0).then_some(SessionId(record.owner))
}
