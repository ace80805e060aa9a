//! The job machine of one group: what a command does, in one dispatch.
//!
//! `apply` is total (every command has an outcome), deterministic (equal states and commands give
//! equal states and outcomes) and synchronous. It reads no clock: time comes with the entry and is
//! clamped so that it never falls. Queues are in `queues.rs`, jobs in `jobs.rs`, reads in `reads.rs`
//! and `scan.rs`, pages in `page.rs`, `load.rs` and `frozen.rs`, which of them are here in `residence.rs`.

use crate::base::ids::{GroupId, LogIndex, Partition, QueueUid, SessionId};
use crate::base::limits::{ADVANCE_ITEMS_MAX, ATTACH_TOKENS_MAX};
use crate::base::units::{GroupTime, WallTime};
use crate::queue::command::{Command, Op, Outcome, Rejection, SessionCall, Window};
use crate::queue::deadlines::Place;
use crate::queue::outbox::Outbox;
use crate::queue::partition::{Links, PartitionState};
use crate::queue::queues::QueueRecord;
use crate::queue::sessions::Admission;
use crate::queue::view::ApplyAt;
use crate::queue::writing::Flat;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The highest version of the machine that this code applies.
pub const MACHINE_VERSION: u16 = 2;

/// The wall offset stays within 48 bits of milliseconds, either way.
pub(super) const WALL_OFFSET_MAX_MS: u64 = 1 << 48;

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
    /// version 1, where partitions live at home.
    pub(super) home_applied: BTreeMap<GroupId, LogIndex>,
    /// What this group asks of others as the home of queues.
    pub(super) outbox: Outbox,
    /// Home records.
    pub(super) queues: BTreeMap<QueueUid, Arc<QueueRecord>>,
    /// Their partitions, counted over all groups; derived.
    pub(super) homed: usize,
    /// Their names.
    pub(super) names: BTreeMap<String, QueueUid>,
    /// The partitions that live here.
    pub(super) partitions: BTreeMap<(QueueUid, Partition), PartitionState>,
    /// What spans them.
    pub(super) links: Links,
    /// See [`Self::run_times`].
    pub(super) run_times: Vec<u64>,
    /// Where [`Self::let_go`] goes on: a partition, and the leaf above the next.
    pub(super) hand: Option<(Place, u64)>,
    /// What this node's disk has of the pages of which a group has few.
    pub(super) flat: Arc<Flat>,
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
            version: 1,
            time: GroupTime(0),
            wall_offset_ms: 0,
            queue_counter: 0,
            home_applied: BTreeMap::new(),
            outbox: Outbox::default(),
            queues: BTreeMap::new(),
            homed: 0,
            names: BTreeMap::new(),
            partitions: BTreeMap::new(),
            links: Links::default(),
            run_times: Vec::new(),
            hand: None,
            flat: Arc::default(),
        }
    }

    /// Applies a command that the log holds at `at`.
    ///
    /// # Panics
    /// If its pages are not here; ask [`Self::pages_needed`] first.
    pub fn apply(&mut self, at: ApplyAt, command: &Command) -> Outcome {
        assert!(
            self.loaded,
            "entry {} of group {} was applied before the pages of its state were loaded",
            at.index, self.group
        );
        self.observe_time(at.time);
        self.run_times.clear();
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
        if op.since() > self.version {
            return Outcome::Rejected(Rejection::Unsupported);
        }
        let outcome = self.dispatch(at, op, call);
        // Bounds of finished jobs hold after each entry, but for what is more than a step's work:
        // that goes with the entries that follow, of which `next_due` asks for one.
        for _ in 0..ADVANCE_ITEMS_MAX {
            if !self.drop_surplus() {
                break;
            }
        }
        outcome
    }

    fn dispatch(&mut self, at: ApplyAt, op: &Op, call: Option<&SessionCall>) -> Outcome {
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
                groups,
            } => self.create_queue(at.index, name, settings, *must_be_new, *groups),
            Op::AlterQueue {
                queue,
                expected_version,
                settings,
            } => self.alter_queue(at.index, *queue, *expected_version, settings),
            Op::DeleteQueue { queue } => self.delete_queue(at.index, *queue),
            Op::PauseQueue { queue } => {
                self.change_queue(at.index, *queue, |config| config.paused = true)
            }
            Op::DrainQueue { queue } => {
                self.change_queue(at.index, *queue, |config| config.draining = true)
            }
            Op::ResumeQueue { queue } => self.change_queue(at.index, *queue, |config| {
                config.paused = false;
                config.draining = false;
            }),
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

            Op::SweepDead {
                queue,
                partition,
                action,
                filter,
                from_seq,
                limit,
            } => self.sweep_dead((*queue, *partition), *action, filter, *from_seq, *limit),

            Op::ChangePartitions(change) => self.change_partitions(change),
            Op::PartitionsChanged { group, home_index } => {
                self.outbox.done(*group, *home_index);
                Outcome::Done
            }

            Op::Advance { limit } => self.advance(*limit),
            Op::SetWallOffset { offset_ms } => self.set_wall_offset(*offset_ms),
        }
    }

    /// The version of the machine.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Raises the version of the machine, as an entry of the log says. It never falls: a lower one
    /// changes nothing, and one above [`MACHINE_VERSION`] counts as that.
    pub fn raise_version(&mut self, version: u16) {
        self.version = self.version.max(version.min(MACHINE_VERSION));
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

    /// How long the jobs ran that the last command acknowledged, from their grants on, in
    /// milliseconds of the group's time; without those that machine version 1 granted. For metrics:
    /// no part of the state, and nothing decides by it.
    #[must_use]
    pub fn run_times(&self) -> &[u64] {
        &self.run_times
    }

    /// Moves the time on for an entry that is no command; it never falls.
    pub fn observe_time(&mut self, time: GroupTime) {
        self.time = self.time.max(time.min(GroupTime::MAX));
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
