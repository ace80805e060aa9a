//! The job machine of one group: what a command does, in one dispatch.
//!
//! `apply` is total (every command has an outcome), deterministic (equal states and commands give
//! equal states and outcomes) and synchronous. It reads no clock: time comes with the entry and is
//! clamped so that it never falls. Jobs are in `jobs.rs`, reads in `reads.rs`, pages in `page.rs`,
//! `load.rs` and `frozen.rs`.

use crate::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId};
use crate::base::limits::{ATTACH_TOKENS_MAX, QUEUES_MAX};
use crate::base::units::{GroupTime, WallTime};
use crate::queue::command::{
    Command, Op, Outcome, PurgeStates, QueueInfo, QueueSettings, Rejection, SessionCall, Window,
};
use crate::queue::leaf::{leaf_of, slot_of};
use crate::queue::partition::{Links, PartitionState};
use crate::queue::seq_set::SeqSet;
use crate::queue::sessions::Admission;
use crate::queue::settings::{admit, name_is_valid};
use crate::queue::view::{ApplyAt, BodyLocation};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The version of the machine that this code applies.
pub const MACHINE_VERSION: u16 = 1;

/// The wall offset stays within 48 bits of milliseconds, either way.
pub(super) const WALL_OFFSET_MAX_MS: u64 = 1 << 48;

/// Which pages a command needs before it can be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagesNeeded {
    /// It can be applied.
    None,
    /// All pages of the group: none is here yet.
    All,
}

/// A queue's home record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueueRecord {
    /// Unique in its group.
    pub(super) name: String,
    /// From 1, raised by every change.
    pub(super) version: u32,
    /// Hands out no jobs.
    pub(super) paused: bool,
    /// As the last change set them.
    pub(super) settings: QueueSettings,
    /// The group of each partition.
    pub(super) groups: Vec<GroupId>,
}

impl QueueRecord {
    /// The record as it is told to a client.
    pub(super) fn info(&self, uid: QueueUid, created: bool) -> QueueInfo {
        QueueInfo {
            uid,
            name: self.name.clone(),
            version: self.version,
            paused: self.paused,
            draining: false,
            groups: self.groups.clone(),
            settings: self.settings,
            created,
        }
    }
}

/// The machine of one group: the queues at home in it, the partitions that live in it, sessions.
pub struct JobQueue {
    /// The group.
    pub(super) group: GroupId,
    /// Whether the state is here.
    pub(super) loaded: bool,
    /// The version that applies.
    pub(super) version: u16,
    /// The highest stamp seen; at most [`GroupTime::MAX`].
    pub(super) time: GroupTime,
    /// Wall time = group time + this, in milliseconds.
    pub(super) wall_offset_ms: i64,
    /// The highest counter of a queue uid ever given here.
    pub(super) queue_counter: u32,
    /// The highest home index applied of each home group that drives partitions here. Empty in
    /// version 1, where partitions live at home; pages carry it.
    pub(super) home_applied: BTreeMap<GroupId, LogIndex>,
    /// Home records.
    pub(super) queues: BTreeMap<QueueUid, Arc<QueueRecord>>,
    /// Their names.
    pub(super) names: BTreeMap<String, QueueUid>,
    /// The partitions that live here.
    pub(super) partitions: BTreeMap<(QueueUid, Partition), PartitionState>,
    /// What spans them.
    pub(super) links: Links,
}

impl JobQueue {
    /// The machine of a group at its formation: empty, at version 1, with the wall offset that its
    /// base holds.
    #[must_use]
    pub fn new(group: GroupId, wall_offset_ms: i64) -> Self {
        Self {
            loaded: true,
            wall_offset_ms,
            ..Self::absent(group)
        }
    }

    /// The machine of a group that has a base whose pages are not here yet. Until [`Self::load`]
    /// nothing can be applied, and reads find nothing.
    #[must_use]
    pub fn absent(group: GroupId) -> Self {
        Self {
            group,
            loaded: false,
            version: MACHINE_VERSION,
            time: GroupTime(0),
            wall_offset_ms: 0,
            queue_counter: 0,
            home_applied: BTreeMap::new(),
            queues: BTreeMap::new(),
            names: BTreeMap::new(),
            partitions: BTreeMap::new(),
            links: Links::default(),
        }
    }

    /// Which pages must be loaded before `command` can be applied. All or none of them, whatever
    /// the command, as long as a group is loaded whole.
    #[must_use]
    pub fn pages_needed(&self, _command: &Command) -> PagesNeeded {
        if self.loaded {
            PagesNeeded::None
        } else {
            PagesNeeded::All
        }
    }

    /// Applies a command that the log holds at `at`.
    ///
    /// # Panics
    /// If its pages are not here; ask [`Self::pages_needed`] first.
    pub fn apply(&mut self, at: ApplyAt, command: &Command) -> Outcome {
        assert!(
            self.pages_needed(command) == PagesNeeded::None,
            "entry {} of group {} was applied before the pages of its state were loaded",
            at.index,
            self.group
        );
        self.observe_time(at.time);
        let Some(call) = &command.session else {
            return self.perform(at, &command.op, None);
        };
        if window_of(&command.op) != Some(call.window) {
            return Outcome::Rejected(Rejection::Invalid);
        }
        match self.links.sessions.admit(call) {
            Admission::Run => {
                let outcome = self.perform(at, &command.op, Some(call));
                self.links.sessions.keep(call, &outcome);
                outcome
            }
            Admission::Repeat(Outcome::Leased(grants)) => {
                let valid = grants
                    .into_iter()
                    .filter_map(|grant| self.still_valid(grant));
                Outcome::Leased(valid.collect())
            }
            Admission::Repeat(outcome) => outcome,
            Admission::Refuse(rejection) => Outcome::Rejected(rejection),
        }
    }

    fn perform(&mut self, at: ApplyAt, op: &Op, call: Option<&SessionCall>) -> Outcome {
        match op {
            Op::OpenSession { worker_timeout_ms } => self.open_session(*worker_timeout_ms),
            Op::CloseSession { session } => self.close_session(*session),
            Op::Attach { session } => self.attach(*session),
            Op::EndLeases { session, epoch } => self.end_leases(*session, *epoch),
            Op::DropSession {
                session,
                epoch,
                last_seq,
            } => self.drop_session(*session, *epoch, *last_seq),

            Op::CreateQueue {
                name,
                settings,
                must_be_new,
                ..
            } => self.create_queue(name, settings, *must_be_new),
            Op::AlterQueue {
                queue,
                expected_version,
                settings,
            } => self.alter_queue(*queue, *expected_version, settings),
            Op::DeleteQueue { queue } => self.delete_queue(*queue),
            Op::PauseQueue { queue } => self.set_paused(*queue, true),
            Op::ResumeQueue { queue } => self.set_paused(*queue, false),
            Op::Purge {
                queue,
                partition,
                states,
            } => self.purge(*queue, *partition, *states),

            Op::Enqueue {
                queue,
                partition,
                items,
            } => self.enqueue(at.index, *queue, *partition, items),
            Op::Lease {
                queue,
                partition,
                max,
                lease_ms,
                epoch,
            } => {
                let holder = call.map(|call| (call.id, *epoch));
                self.lease(*queue, *partition, *max, *lease_ms, holder)
            }
            Op::Extend { items } => self.each(items, |machine, (token, lease_ms)| {
                machine.extend(*token, *lease_ms)
            }),
            Op::Ack { items } => self.each(items, Self::ack),
            Op::Nack { items } => self.each(items, Self::nack),
            Op::Release { items } => self.each(items, |machine, token| machine.release(*token)),
            Op::Bury { items } => self.each(items, |machine, (token, reason)| {
                machine.bury(*token, reason)
            }),
            Op::Cancel { items } => self.each(items, |machine, job| machine.cancel(*job)),
            Op::RequeueDead { items } => {
                self.each(items, |machine, job| machine.requeue_dead(*job))
            }
            Op::DeleteDead { items } => self.each(items, |machine, job| machine.delete_dead(*job)),

            Op::DrainQueue { .. }
            | Op::SweepDead { .. }
            | Op::ChangePartitions(_)
            | Op::PartitionsChanged { .. } => Outcome::Rejected(Rejection::Unsupported),

            Op::Advance { limit } => self.advance(*limit),
            Op::SetWallOffset { offset_ms } => self.set_wall_offset(*offset_ms),
        }
    }

    /// The version of the machine.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Wall time = group time + this, in milliseconds.
    #[must_use]
    pub fn wall_offset_ms(&self) -> i64 {
        self.wall_offset_ms
    }

    /// The highest stamp applied.
    #[must_use]
    pub fn time(&self) -> GroupTime {
        self.time
    }

    /// Moves the time on for an entry that is no command; it never falls.
    pub fn observe_time(&mut self, time: GroupTime) {
        self.time = self.time.max(time.min(GroupTime::MAX));
    }

    /// Remembers where the body of a job is on this node's disk; nothing if the job is gone.
    pub fn set_body_location(&mut self, job: JobId, at: BodyLocation) {
        let place = (job.queue(), job.partition());
        let Some(partition) = self.partitions.get_mut(&place) else {
            return;
        };
        let seq = job.seq();
        if job.group() == self.group && partition.leaves.record(seq).is_some() {
            let leaf = partition.leaves.leaf_mut(leaf_of(seq));
            leaf.expect("a live job has its leaf")
                .set_location(slot_of(seq), at);
        }
    }

    pub(super) fn wall(&self) -> WallTime {
        self.time.wall(self.wall_offset_ms)
    }

    fn open_session(&mut self, worker_timeout_ms: u32) -> Outcome {
        match self.links.sessions.open(worker_timeout_ms) {
            Ok(session) => Outcome::SessionOpened { session, epoch: 1 },
            Err(rejection) => Outcome::Rejected(rejection),
        }
    }

    fn close_session(&mut self, session: SessionId) -> Outcome {
        if self.links.sessions.get(session).is_none() {
            return Outcome::Rejected(Rejection::SessionExpired);
        }
        self.give_back_all(session);
        self.links.sessions.remove(session);
        Outcome::Done
    }

    fn attach(&mut self, session: SessionId) -> Outcome {
        let Some(page) = self.links.sessions.page_mut(session) else {
            return Outcome::Rejected(Rejection::SessionExpired);
        };
        let Some(epoch) = page.epoch.checked_add(1) else {
            return Outcome::Rejected(Rejection::IdsExhausted);
        };
        page.epoch = epoch;
        page.ended = false;
        let mut tokens = self.tokens_of(session);
        tokens.truncate(ATTACH_TOKENS_MAX);
        Outcome::Attached { epoch, tokens }
    }

    fn end_leases(&mut self, session: SessionId, epoch: u32) -> Outcome {
        let slot = self.links.sessions.get(session);
        if slot.is_some_and(|slot| slot.page.epoch == epoch) {
            self.give_back_all(session);
            let page = self.links.sessions.page_mut(session);
            page.expect("it was there above").ended = true;
        }
        Outcome::Done
    }

    fn drop_session(&mut self, session: SessionId, epoch: u32, last_seq: u64) -> Outcome {
        let idle = self.links.sessions.get(session).is_some_and(|slot| {
            slot.page.epoch == epoch && slot.page.last_seq() <= last_seq && slot.held.is_empty()
        });
        if idle {
            self.links.sessions.remove(session);
        }
        Outcome::Done
    }

    fn create_queue(&mut self, name: &str, settings: &QueueSettings, new: bool) -> Outcome {
        if !name_is_valid(name) {
            return Outcome::Rejected(Rejection::Invalid);
        }
        if let Some(uid) = self.names.get(name) {
            return if new {
                Outcome::Rejected(Rejection::QueueExists)
            } else {
                Outcome::Queue(self.queues[uid].info(*uid, false))
            };
        }
        if let Err(rejection) = admit(settings) {
            return Outcome::Rejected(rejection);
        }
        if self.queues.len() >= QUEUES_MAX {
            return Outcome::Rejected(Rejection::QuotaExceeded);
        }
        let counter = self.queue_counter.saturating_add(1);
        let Some(uid) = QueueUid::new(self.group, counter) else {
            return Outcome::Rejected(Rejection::IdsExhausted);
        };
        self.queue_counter = counter;
        let record = QueueRecord {
            name: name.to_owned(),
            version: 1,
            paused: false,
            settings: *settings,
            groups: vec![self.group],
        };
        let info = record.info(uid, true);
        self.names.insert(name.to_owned(), uid);
        self.queues.insert(uid, Arc::new(record));
        let partition = PartitionState::new(1, *settings);
        self.partitions.insert((uid, Partition(0)), partition);
        Outcome::Queue(info)
    }

    fn alter_queue(&mut self, uid: QueueUid, expected: u32, settings: &QueueSettings) -> Outcome {
        let Some(record) = self.queues.get(&uid) else {
            return Outcome::Rejected(Rejection::QueueChanged);
        };
        if expected != 0 && expected != record.version {
            return Outcome::Rejected(Rejection::VersionMismatch);
        }
        if let Err(rejection) = admit(settings) {
            return Outcome::Rejected(rejection);
        }
        self.change_queue(uid, record.paused, *settings)
    }

    fn set_paused(&mut self, uid: QueueUid, paused: bool) -> Outcome {
        match self.queues.get(&uid) {
            Some(record) => self.change_queue(uid, paused, record.settings),
            None => Outcome::Rejected(Rejection::QueueChanged),
        }
    }

    /// Sets what can be changed of a queue; what stays as it is raises no version.
    fn change_queue(&mut self, uid: QueueUid, paused: bool, settings: QueueSettings) -> Outcome {
        let record = self.queues.get_mut(&uid).expect("the caller found it");
        if (record.paused, record.settings) != (paused, settings) {
            let Some(version) = record.version.checked_add(1) else {
                return Outcome::Rejected(Rejection::IdsExhausted);
            };
            let record = Arc::make_mut(record);
            record.version = version;
            record.paused = paused;
            record.settings = settings;
            let partition = self.partitions.get_mut(&(uid, Partition(0)));
            let head = &mut partition.expect("a queue has its partition 0").head;
            head.version = version;
            head.paused = paused;
            head.settings = settings;
        }
        Outcome::Queue(self.queues[&uid].info(uid, false))
    }

    fn delete_queue(&mut self, uid: QueueUid) -> Outcome {
        let Some(record) = self.queues.remove(&uid) else {
            return Outcome::Rejected(Rejection::QueueChanged);
        };
        self.names.remove(&record.name);
        let place = (uid, Partition(0));
        let mut partition = self
            .partitions
            .remove(&place)
            .expect("a queue has its partition 0");
        let jobs: Vec<u64> = partition.leaves.jobs().map(|(seq, _)| seq).collect();
        for seq in jobs {
            let id = JobId::new(self.group, uid, Partition(0), seq);
            partition.remove(id, &mut self.links);
        }
        for key in partition.keys.iter() {
            let due = (key.expires, (uid, Partition(0), key.hash));
            let was = self.links.deadlines.keys.remove(&due);
            assert!(was, "key {:?} did not wait for {}", key.hash, key.expires);
        }
        Outcome::Done
    }

    fn purge(&mut self, uid: QueueUid, number: Partition, states: PurgeStates) -> Outcome {
        let Some(partition) = self.partitions.get_mut(&(uid, number)) else {
            return Outcome::Rejected(Rejection::QueueChanged);
        };
        let orders = &partition.orders;
        let mut jobs = Vec::new();
        if states.pending {
            jobs.extend(orders.ready.iter().flat_map(SeqSet::iter));
        }
        if states.delayed {
            jobs.extend(orders.delayed.iter());
        }
        if states.dead {
            jobs.extend(orders.dead.iter());
        }
        for seq in &jobs {
            let id = JobId::new(self.group, uid, number, *seq);
            partition.remove(id, &mut self.links);
        }
        Outcome::Purged {
            jobs: jobs.len() as u64,
        }
    }

    fn set_wall_offset(&mut self, offset_ms: i64) -> Outcome {
        if offset_ms.unsigned_abs() > WALL_OFFSET_MAX_MS {
            return Outcome::Rejected(Rejection::Invalid);
        }
        self.wall_offset_ms = offset_ms;
        Outcome::Done
    }
}

/// The window that numbers a command; those of leaders and of session life have none.
fn window_of(op: &Op) -> Option<Window> {
    match op {
        Op::OpenSession { .. }
        | Op::CloseSession { .. }
        | Op::Attach { .. }
        | Op::EndLeases { .. }
        | Op::DropSession { .. }
        | Op::ChangePartitions(_)
        | Op::PartitionsChanged { .. }
        | Op::Advance { .. }
        | Op::SetWallOffset { .. } => None,
        Op::Lease { .. } => Some(Window::Polls),
        Op::CreateQueue { .. }
        | Op::AlterQueue { .. }
        | Op::DeleteQueue { .. }
        | Op::PauseQueue { .. }
        | Op::DrainQueue { .. }
        | Op::ResumeQueue { .. }
        | Op::SweepDead { .. }
        | Op::Purge { .. }
        | Op::Enqueue { .. }
        | Op::Extend { .. }
        | Op::Ack { .. }
        | Op::Nack { .. }
        | Op::Release { .. }
        | Op::Bury { .. }
        | Op::Cancel { .. }
        | Op::RequeueDead { .. }
        | Op::DeleteDead { .. } => Some(Window::Commands),
    }
}
