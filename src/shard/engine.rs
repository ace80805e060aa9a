//! The engine of one core. This file is its table of contents: one line an input, then one short
//! method a stage, in the order of the data path. What a stage decides is in the files beside it.

use super::checkpoint::{Checkpointer, damaged, page_key, root_ref};
use super::clock::GroupClock;
use super::config::ShardConfig;
use super::counters::Counters;
use super::effect::{CheckpointFile, Effect};
use super::group::{Group, Phase, Waiter};
use super::input::{Input, Origin};
use super::liveness::Liveness;
use super::loading::GroupState;
use super::placement::{groups_of, shard_of};
use super::polls::{Place, Poll, Polls};
use super::requests::Refusal;
use crate::base::code::Code;
use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{GroupId, Incarnation, JobId, LogIndex, SessionId, ShardId, Term};
use crate::base::limits::{ADVANCE_ITEMS_MAX, TIME_STAMP_MS, WALL_DRIFT_MS_MAX};
use crate::base::units::{GroupTime, Lsn, Monotonic, Now};
use crate::queue::command::{Command, Grant, Op, Outcome};
use crate::queue::view::{ApplyAt, BodyLocation};
use crate::queue::{JobQueue, PagesNeeded};
use crate::raft::log::RaftLog;
use crate::raft::message::Voter;
use crate::raft::node::{Proposal, ProposeError, RaftConfig, RaftNode};
use crate::raft::ready::HardState;
use crate::snapshot::layout::Owner;
use crate::wal::record::{BaseRecord, HardState as LoggedHardState, Record, Vote};
use crate::wal::recovery::{GroupLog, GroupLogStatus, Recovered};
use crate::wal::writer::{LogWriter, Ticket};
use crate::wire::command::decode_command;
use crate::wire::message::{ErrorReply, LeasedJob, ReplyBody};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// The highest version of the job machine that this binary runs.
pub const MACHINE_VERSION_MAX: u16 = 1;

/// Idle this long after the last write, the log proves it by a beacon.
const BEACON_AFTER: Duration = Duration::from_millis(5);
/// After an entry that found nothing due although something seemed to be.
const ADVANCE_BACKOFF: Duration = Duration::from_millis(10);
/// A correction of the wall offset beyond this is counted as a step.
const WALL_STEP_MS: u64 = 60_000;

/// What a connection holds on this shard.
#[derive(Debug, Default)]
pub(super) struct Conn {
    pub(super) sessions: BTreeSet<(usize, SessionId)>,
    pub(super) polls: BTreeSet<(usize, Place, u64)>,
    /// Shards that got requests of it.
    pub(super) forwarded: BTreeSet<ShardId>,
}

/// The last entry of a group in a batch.
struct Written {
    ticket: Ticket,
    slot: usize,
    index: LogIndex,
    term: Term,
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    No,
    /// What is proposed is finished.
    Draining,
    /// The last checkpoint is cut.
    Cutting,
    /// Its manifest is written.
    Closing,
    Done,
}

/// The engine of one core.
pub struct ShardEngine {
    pub(super) config: ShardConfig,
    pub(super) now: Now,
    pub(super) started: Monotonic,
    /// The groups of this shard, ascending; a *slot* is an index into them.
    pub(super) groups: Vec<Group>,
    pub(super) wal: LogWriter,
    pub(super) effects: Vec<Effect>,
    pub(super) conns: BTreeMap<Origin, Conn>,
    pub(super) checkpoints: Checkpointer,
    pub(super) counters: Counters,
    pub(super) disk_full: bool,
    pub(super) disk_exhausted: bool,
    pub(super) next_poll: u64,
    /// Slots with work for the next drain.
    dirty: Vec<usize>,
    /// What the batches under way carry, in order.
    written: VecDeque<Written>,
    timers: BTreeSet<(Monotonic, usize)>,
    beacon_at: Option<Monotonic>,
    stop: Stop,
}

impl ShardEngine {
    /// The engine of a shard that found `recovered` in its log and `files` beside it.
    ///
    /// A group that is not in a whole log is formed: an empty base, this node its only voter.
    #[must_use]
    pub fn new(
        config: ShardConfig,
        recovered: Recovered,
        files: BTreeMap<CheckpointFile, u64>,
        now: Now,
    ) -> Self {
        let Recovered {
            start,
            groups: mut logs,
            torn,
            damage,
            segments,
            bytes,
        } = recovered;
        let mut wal = LogWriter::with_segment_bytes(
            config.identity,
            start,
            config.seed,
            config.segment_bytes,
        );
        let owner = Owner {
            cluster: config.identity.cluster,
            disk: config.identity.disk,
        };
        // Each start takes a segment of its own, so that a few quick ones call for a round too.
        let held = (segments.len().saturating_sub(1) * config.segment_bytes) as u64;
        let log = (wal.end_lsn(), bytes.max(held));
        let checkpoints = Checkpointer::new(
            owner,
            config.shard,
            config.start_number,
            files,
            log,
            now.mono,
        );
        let mut groups = Vec::new();
        let mut effects = Vec::new();
        for id in groups_of(config.shard, config.shards, config.groups) {
            let log = logs.remove(&id).unwrap_or_else(|| {
                let base = formation(&config, id, now, wal.end_lsn());
                let status = if damage.is_empty() {
                    wal.append(Record::Base(base.clone()));
                    GroupLogStatus::Intact
                } else {
                    GroupLogStatus::Damaged {
                        what: "none of its records is left".into(),
                    }
                };
                let (incarnation, hard) = (base.incarnation, LoggedHardState::default());
                GroupLog {
                    incarnation,
                    hard,
                    bases: vec![base],
                    entries: Vec::new(),
                    status,
                }
            });
            groups.push(open_group(&config, id, log, now, &mut effects));
        }
        let counters = Counters {
            groups: groups.len() as u64,
            log_tails_cut_total: u64::from(torn.is_some()),
            ..Counters::default()
        };
        let mut engine = Self {
            config,
            now,
            started: now.mono,
            dirty: (0..groups.len()).collect(),
            groups,
            wal,
            effects,
            conns: BTreeMap::new(),
            checkpoints,
            counters,
            disk_full: false,
            disk_exhausted: false,
            next_poll: 1,
            written: VecDeque::new(),
            timers: BTreeSet::new(),
            beacon_at: None,
            stop: Stop::No,
        };
        for group in engine.groups.iter_mut().filter(|group| !group.is_halted()) {
            group.raft.tick();
        }
        engine
    }

    /// Takes what happened. Effects follow at the next [`Self::drain`].
    pub fn handle(&mut self, now: Now, input: Input) {
        self.now = now;
        match input {
            Input::ClientRequest { from, request } => self.on_request(from, request),
            Input::ClientClosed { from } => self.on_client_closed(from),
            Input::WalSynced { batch_seq } => self.on_wal_synced(batch_seq),
            Input::SegmentReady { number } => self.wal.segment_ready(number),
            Input::GroupLoaded { group, result } => self.on_group_loaded(group, result),
            Input::ChunkWritten { bytes } => self.on_chunk_written(bytes),
            Input::FilesSynced { round } => self.on_files_synced(round),
            Input::RoundFailed { round } => self.on_round_failed(round),
            Input::ManifestWritten => self.on_manifest_written(),
            Input::DiskSpace { full, exhausted } => {
                (self.disk_full, self.disk_exhausted) = (full || exhausted, exhausted);
            }
            Input::StopRequested => self.on_stop_requested(),
            Input::TimePassed => {}
        }
    }

    /// Moves all that is to be done into `out`. Must be called until it adds nothing before the
    /// driver waits.
    pub fn drain(&mut self, out: &mut Vec<Effect>) {
        self.fire_timers();
        while let Some(slot) = self.dirty.pop() {
            self.settle(slot);
        }
        self.start_due_round();
        self.step_round();
        self.write_due_manifest();
        self.step_stop();
        while let Some(slot) = self.dirty.pop() {
            self.settle(slot);
        }
        self.pump_log();
        out.append(&mut self.effects);
    }

    /// When the engine wants to be called next although nothing happened.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        if self.checkpoints.wants_a_turn() {
            return Some(self.now.mono);
        }
        let timer = self.timers.first().map(|(at, _)| *at);
        let manifest = self.checkpoints.next_manifest(self.wal.durable_lsn());
        [timer, self.beacon_at, manifest]
            .into_iter()
            .flatten()
            .min()
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether every group that is not damaged serves.
    #[must_use]
    pub fn serving(&self) -> bool {
        self.groups
            .iter()
            .all(|group| group.is_halted() || group.serves())
    }

    /// Why groups do not serve, for the operator.
    pub fn halted(&self) -> impl Iterator<Item = (GroupId, &str)> {
        self.groups.iter().filter_map(|group| match &group.phase {
            Phase::Halted(why) => Some((group.id, why.as_str())),
            Phase::Loading | Phase::Serving => None,
        })
    }

    /// Jobs that are live and not dead, over all groups.
    #[must_use]
    pub fn live_jobs(&self) -> u64 {
        let queues = self.groups.iter().flat_map(|group| group.queue.queues());
        queues
            .map(|(_, stats)| stats.pending + stats.delayed + stats.in_flight)
            .sum()
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop != Stop::No
    }

    pub(super) fn slot(&self, group: GroupId) -> usize {
        assert!(
            shard_of(group, self.config.shards) == self.config.shard,
            "group {group} is not on shard {}",
            self.config.shard
        );
        usize::from(group.0 / self.config.shards)
    }

    /// The slot has work for the next drain.
    pub(super) fn mark(&mut self, slot: usize) {
        if !std::mem::replace(&mut self.groups[slot].dirty, true) {
            self.dirty.push(slot);
        }
    }

    // Proposals.

    /// Proposes an entry; the waiter is told when it is applied.
    pub(super) fn propose(
        &mut self,
        slot: usize,
        kind: EntryKind,
        payload: Bytes,
        waiter: Option<Waiter>,
    ) -> Result<(), Refusal> {
        let group = &mut self.groups[slot];
        let time = group.clock.at(self.now.mono);
        let index = group
            .raft
            .propose(Proposal {
                kind,
                time,
                payload,
            })
            .map_err(|error| {
                let code = match error {
                    ProposeError::NotLeader => Code::NotLeader,
                    ProposeError::Busy => Code::Busy,
                };
                Refusal::new(code, error.to_string())
            })?;
        group.last_proposed = self.now.mono;
        group.waiters.extend(waiter.map(|waiter| (index, waiter)));
        self.counters.entries_proposed_total += 1;
        self.mark(slot);
        Ok(())
    }

    /// Proposes an entry without a payload.
    pub(super) fn propose_kind(&mut self, slot: usize, kind: EntryKind) -> Result<(), Refusal> {
        self.propose(slot, kind, Bytes::new(), None)
    }

    /// Before anything else is proposed: sets the group's wall offset right if it has drifted.
    pub(super) fn correct_wall(&mut self, slot: usize) {
        self.groups[slot].wall_checked = self.now.mono;
        let group = &self.groups[slot];
        let time = group.clock.at(self.now.mono);
        let drift = time
            .wall(group.queue.wall_offset_ms())
            .0
            .abs_diff(self.now.wall.0);
        if drift <= WALL_DRIFT_MS_MAX || group.setting_offset || !group.serves() {
            return;
        }
        let offset_ms = i64::try_from(self.now.wall.0).unwrap_or(i64::MAX)
            - i64::try_from(time.0).unwrap_or(i64::MAX);
        self.counters.wall_clock_steps_total += u64::from(drift > WALL_STEP_MS);
        let command = Command {
            session: None,
            op: Op::SetWallOffset { offset_ms },
        };
        let payload = crate::wire::command::encode_command(&command);
        let proposed = self.propose(slot, EntryKind::Data, payload, Some(Waiter::WallOffset));
        self.groups[slot].setting_offset = proposed.is_ok();
    }

    /// Proposes what the leader itself wants; if the group is too busy, a timer tries again.
    fn propose_own(&mut self, slot: usize, op: Op, waiter: Option<Waiter>) -> bool {
        self.propose_command(slot, &Command { session: None, op }, waiter)
            .is_ok()
    }

    // The log.

    fn on_wal_synced(&mut self, batch_seq: u64) {
        if !self.wal.completed(batch_seq) {
            return;
        }
        let durable = self.wal.durable_ticket();
        while self
            .written
            .front()
            .is_some_and(|written| written.ticket <= durable)
        {
            let Written {
                slot, index, term, ..
            } = self.written.pop_front().expect("the front was just seen");
            self.groups[slot].raft.synced(index, term);
            self.mark(slot);
        }
        self.publish_if_durable(durable);
        let numbers = self.wal.droppable();
        if !numbers.is_empty() {
            self.effects.push(Effect::DropSegments { numbers });
        }
        self.beacon_at = Some(self.now.mono.plus(BEACON_AFTER));
    }

    /// Puts what Raft wants written into the log.
    fn collect_ready(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        if !group.raft.has_ready() {
            return;
        }
        let (id, incarnation) = (group.id, group.incarnation);
        let ready = group.raft.take_ready();
        let logged = |state: HardState| Record::HardState {
            group: id,
            incarnation,
            state: log_hard_state(state),
        };
        if let Some(state) = ready.hard_state {
            group.hard_state_ticket = Some(self.wal.append(logged(state)));
            group.commit_written = state.commit;
        }
        let mut last = None;
        for entry in ready.entries {
            let (index, term) = (entry.index, entry.term);
            let ticket = self.wal.append(Record::Entry {
                group: id,
                incarnation,
                entry,
            });
            if let Some(Written {
                ticket: before,
                index: held,
                term: held_term,
                ..
            }) = &mut last
                && *before == ticket
            {
                (*held, *held_term) = (index, term);
            } else {
                self.written.extend(last.replace(Written {
                    ticket,
                    slot,
                    index,
                    term,
                }));
            }
        }
        // The commit mark rides along, once a batch, so that a restart knows how far it may apply.
        let state = group.raft.hard_state();
        if let Some(Written { ticket, .. }) = &last
            && state.commit > group.commit_written
            && group.hard_state_ticket != Some(*ticket)
        {
            group.hard_state_ticket = Some(self.wal.append(logged(state)));
            group.commit_written = state.commit;
        }
        self.written.extend(last);
    }

    /// Hands batches to the disk, and asks for segments before they are needed.
    fn pump_log(&mut self) {
        if self.beacon_at.is_some_and(|at| at <= self.now.mono) {
            self.beacon_at = None;
            if !self.wal.has_pending() && self.wal.in_flight() == 0 {
                self.wal.beacon();
            }
        }
        while let Some(write) = self.wal.next_write() {
            self.counters.wal_batches_total += 1;
            self.counters.wal_bytes_total += write.batch.encoded_len() as u64;
            self.effects.push(Effect::WriteWal(write));
        }
        while let Some(number) = self.wal.segment_wanted() {
            self.effects.push(Effect::PrepareSegment { number });
        }
        let since = self.checkpoints.log_bytes(self.wal.end_lsn());
        self.counters.wal_bytes_since_checkpoint = since;
    }

    // Groups.

    /// Brings a group to rest: what it wants written is in the log, what is committed is applied,
    /// who waited is answered, and its next timer is set.
    fn settle(&mut self, slot: usize) {
        self.groups[slot].dirty = false;
        self.collect_ready(slot);
        self.apply_committed(slot);
        self.wake_polls(slot);
        self.collect_ready(slot);
        self.set_timer(slot);
    }

    fn apply_committed(&mut self, slot: usize) {
        while self.groups[slot].phase == Phase::Serving
            && let Some(entry) = self.groups[slot].raft.next_committed().cloned()
        {
            if let Err(why) = self.apply(slot, &entry) {
                return self.halt(slot, &why);
            }
            self.counters.entries_applied_total += 1;
        }
        // While it loads, an older base may turn out to be the one to start from.
        if self.groups[slot].phase == Phase::Serving {
            let applied = self.groups[slot].raft.log().applied();
            self.groups[slot].raft.log_mut().compact(applied);
        }
    }

    fn apply(&mut self, slot: usize, entry: &Entry) -> Result<(), String> {
        let group = &mut self.groups[slot];
        let at = ApplyAt {
            index: entry.index,
            time: entry.time,
        };
        match entry.kind {
            EntryKind::Data => {
                let command = decode_command(&entry.payload, entry.machine_version)
                    .map_err(|error| format!("entry {} cannot be applied: {error}", entry.index))?;
                let needed = group.queue.pages_needed(&command);
                assert!(
                    needed == PagesNeeded::None,
                    "a group serves when its pages are loaded"
                );
                let outcome = group.queue.apply(at, &command);
                group.raft.applied();
                self.after_apply(slot, entry.index, &command.op, outcome);
            }
            EntryKind::Noop | EntryKind::Checkpoint => {
                group.queue.observe_time(entry.time);
                group.raft.applied();
                if entry.kind == EntryKind::Checkpoint {
                    self.on_cut_applied(slot);
                }
            }
            EntryKind::Conf | EntryKind::Version | EntryKind::Cut => {
                return Err(format!(
                    "entry {} is of a kind ({:?}) that a newer version wrote",
                    entry.index, entry.kind
                ));
            }
        }
        Ok(())
    }

    /// Answers who waited for the entry, and takes note of what its outcome means to the leader.
    fn after_apply(&mut self, slot: usize, index: LogIndex, op: &Op, outcome: Outcome) {
        self.count(op, &outcome);
        let waiters = &mut self.groups[slot].waiters;
        let waits = waiters.front().is_some_and(|(at, _)| *at == index);
        let waiter = waits.then(|| waiters.pop_front().expect("the front was just seen").1);
        if let Outcome::SessionOpened { session, .. } = outcome {
            let conn = match &waiter {
                Some(Waiter::Client { to, .. }) => Some(*to),
                _ => None,
            };
            self.watch_session(slot, session, conn);
        }
        match waiter {
            None => {}
            Some(Waiter::Advance) => {
                let group = &mut self.groups[slot];
                group.advancing = false;
                if outcome == (Outcome::Advanced { handled: 0 }) {
                    group.advance_not_before = self.now.mono.plus(ADVANCE_BACKOFF);
                }
            }
            Some(Waiter::WallOffset) => self.groups[slot].setting_offset = false,
            Some(Waiter::Client { to, request }) => {
                let stamp = self.stamp(slot);
                self.reply(to, request, Some(stamp), ReplyBody::Outcome(outcome));
            }
            Some(Waiter::Queue { to, request }) => match outcome {
                Outcome::Queue(info) => self.reply_queue(slot, to, request, info.uid),
                other => self.reply(to, request, None, ReplyBody::Outcome(other)),
            },
            Some(Waiter::Lease { poll, place }) => {
                self.groups[slot].polls.unclaim(place, poll.max);
                self.on_leased(slot, poll, outcome);
            }
        }
    }

    /// A lease was applied. One that won nothing goes on waiting at its place in the line.
    fn on_leased(&mut self, slot: usize, poll: Poll, outcome: Outcome) {
        let body = match outcome {
            Outcome::Leased(grants) if grants.is_empty() && poll.deadline > self.now.mono => {
                return self.park(slot, poll);
            }
            Outcome::Leased(grants) => {
                let jobs = grants
                    .iter()
                    .filter_map(|grant| self.leased_job(slot, grant));
                ReplyBody::Leased(jobs.collect())
            }
            other => ReplyBody::Outcome(other),
        };
        let stamp = self.stamp(slot);
        self.reply(poll.to, poll.request, Some(stamp), body);
    }

    fn leased_job(&self, slot: usize, grant: &Grant) -> Option<LeasedJob> {
        let job = self.groups[slot].queue.job(grant.token.job).ok()?;
        Some(LeasedJob {
            lease_gen: grant.token.lease_gen,
            job,
            lease_ms: grant.lease_ms,
        })
    }

    /// Proposes the waiting leases that can win something now.
    fn wake_polls(&mut self, slot: usize) {
        if !self.groups[slot].serves() {
            return;
        }
        let group = &mut self.groups[slot];
        let queue = &group.queue;
        // A queue that is gone wakes its polls too, so that they are told.
        let ready = |(uid, partition)| queue.ready(uid, partition).unwrap_or(u64::MAX);
        let winners = group.polls.take_winners(ready);
        for poll in winners {
            self.unpark(slot, &poll);
            let (to, request) = (poll.to, poll.request);
            if let Err(refusal) = self.propose_poll(slot, poll) {
                self.refuse(to, request, &refusal);
            }
        }
    }

    fn count(&mut self, op: &Op, outcome: &Outcome) {
        use crate::queue::command::{Enqueued, ItemOutcome};
        let counters = &mut self.counters;
        match (op, outcome) {
            (Op::Enqueue { .. }, Outcome::Enqueued(items)) => {
                let new = items
                    .iter()
                    .filter(|item| matches!(item, Enqueued::New(_)))
                    .count();
                counters.jobs_enqueued_total += new as u64;
            }
            (Op::Lease { .. }, Outcome::Leased(grants)) => {
                counters.jobs_leased_total += grants.len() as u64;
            }
            (Op::Ack { .. } | Op::Nack { .. }, Outcome::Items(items)) => {
                let done = items
                    .iter()
                    .filter(|item| **item == ItemOutcome::Done)
                    .count() as u64;
                match op {
                    Op::Ack { .. } => counters.jobs_acked_total += done,
                    _ => counters.jobs_nacked_total += done,
                }
            }
            (Op::EndLeases { .. }, _) => counters.sessions_ended_total += 1,
            _ => {}
        }
    }

    /// The group stops, alone: the others go on.
    fn halt(&mut self, slot: usize, why: &str) {
        let group = &mut self.groups[slot];
        let why = halted(group.id, why);
        group.phase = Phase::Halted(why.clone());
        let waiters = std::mem::take(&mut group.waiters);
        let polls = group.polls.take_all();
        for (_, waiter) in waiters {
            let (to, request) = match waiter {
                Waiter::Client { to, request } | Waiter::Queue { to, request } => (to, request),
                Waiter::Lease { poll, .. } => (poll.to, poll.request),
                Waiter::Advance | Waiter::WallOffset => continue,
            };
            let (message, leader) = (why.clone(), None);
            let error = ErrorReply {
                code: Code::GroupHalted,
                message,
                leader,
                maybe_applied: true,
            };
            self.reply(to, request, None, ReplyBody::Error(error));
        }
        for poll in polls {
            self.unpark(slot, &poll);
            self.refuse(
                poll.to,
                poll.request,
                &Refusal::new(Code::GroupHalted, why.clone()),
            );
        }
        self.round_without(slot);
        self.counters.groups_halted = self.halted().count() as u64;
    }

    /// The hot state of a group is here, or cannot be read.
    fn on_group_loaded(&mut self, group: GroupId, result: Result<GroupState, String>) {
        let slot = self.slot(group);
        if self.groups[slot].phase != Phase::Loading {
            return;
        }
        match result.and_then(|state| self.install(slot, state)) {
            Ok(()) => self.start_serving(slot),
            Err(what) => self.halt(slot, &damaged(group, &what)),
        }
        self.drop_orphans();
        self.mark(slot);
    }

    fn install(&mut self, slot: usize, state: GroupState) -> Result<(), String> {
        let GroupState {
            base,
            loaded,
            files,
            ..
        } = state;
        self.checkpoints.note_pages(&loaded.pages);
        let group = &mut self.groups[slot];
        let mut pages = Vec::with_capacity(loaded.pages.len());
        for (name, bytes) in loaded.pages {
            let key = page_key(&name).ok_or_else(|| format!("it has an unknown page {name}"))?;
            pages.push((key, bytes));
        }
        let bodies = loaded.bodies;
        let mut find = |job: JobId| {
            let at = bodies.binary_search_by_key(&job, |body| body.job).ok()?;
            let place = bodies[at].place;
            let (file, offset, len) = (place.file, place.offset, place.len);
            Some((bodies[at].bytes.clone(), BodyLocation { file, offset, len }))
        };
        let mut queue = JobQueue::absent(group.id);
        queue
            .load(&pages, &mut find)
            .map_err(|error| error.to_string())?;
        group.queue = queue;
        group.bases.drain(..base);
        group.bases.truncate(files.len());
        group.base_files = files;
        let index = group.bases[0].index;
        group.raft.log_mut().start_at(index);
        Ok(())
    }

    /// From here on entries are applied; every timeout starts anew.
    fn start_serving(&mut self, slot: usize) {
        self.groups[slot].phase = Phase::Serving;
        self.groups[slot].last_proposed = self.now.mono;
        for session in self.groups[slot].queue.sessions() {
            self.watch_session(slot, session.id, None);
        }
    }

    // Time.

    fn fire_timers(&mut self) {
        while let Some((_, slot)) = self
            .timers
            .first()
            .copied()
            .filter(|(at, _)| *at <= self.now.mono)
        {
            self.timers.pop_first();
            self.groups[slot].timer = None;
            self.mark(slot);
            if self.groups[slot].serves() {
                self.on_timer(slot);
            }
        }
    }

    fn on_timer(&mut self, slot: usize) {
        let now = self.now.mono;
        while let Some(poll) = self.groups[slot].polls.take_late(now) {
            self.unpark(slot, &poll);
            let stamp = self.stamp(slot);
            self.reply(
                poll.to,
                poll.request,
                Some(stamp),
                ReplyBody::Leased(Vec::new()),
            );
        }
        if self.stopping() {
            return;
        }
        let group = &mut self.groups[slot];
        for op in group.liveness.check(now, |id| group.queue.session(id)) {
            self.propose_own(slot, op, None);
        }
        if self.advance_at(slot).is_some_and(|at| at <= now) {
            let op = Op::Advance {
                limit: ADVANCE_ITEMS_MAX,
            };
            let proposed = self.propose_own(slot, op, Some(Waiter::Advance));
            let group = &mut self.groups[slot];
            group.advancing = proposed;
            if !proposed {
                group.advance_not_before = now.plus(ADVANCE_BACKOFF);
            }
        }
        if self.wall_check_at(slot).is_some_and(|at| at <= now) {
            self.correct_wall(slot);
        }
        if self.stamp_at(slot).is_some_and(|at| at <= now) {
            // Too busy means that entries are under way, which carry the time as well.
            let _ = self.propose_kind(slot, EntryKind::Noop);
            self.groups[slot].last_proposed = now;
        }
    }

    /// When due things are to be handled.
    fn advance_at(&self, slot: usize) -> Option<Monotonic> {
        let group = &self.groups[slot];
        let due = group.queue.next_due().filter(|_| !group.advancing)?;
        Some(
            group
                .clock
                .when(due, self.now.mono)
                .max(group.advance_not_before),
        )
    }

    /// When the time is to be stamped, so that a restart forgets little of it.
    fn stamp_at(&self, slot: usize) -> Option<Monotonic> {
        let group = &self.groups[slot];
        let stamp = group
            .last_proposed
            .plus(Duration::from_millis(TIME_STAMP_MS));
        group.queue.waits_on_time().then_some(stamp)
    }

    /// When the wall time of a group that nobody writes to is to be held against the clock: run-ats
    /// must not wait for a request to learn that the clock was set.
    fn wall_check_at(&self, slot: usize) -> Option<Monotonic> {
        let group = &self.groups[slot];
        let next = group
            .wall_checked
            .plus(Duration::from_millis(TIME_STAMP_MS));
        group.queue.next_due().map(|_| next)
    }

    fn set_timer(&mut self, slot: usize) {
        let group = &self.groups[slot];
        let next = if group.serves() && !self.stopping() {
            let checks = [group.liveness.next_check(), group.polls.next_deadline()];
            let own = [
                self.advance_at(slot),
                self.stamp_at(slot),
                self.wall_check_at(slot),
            ];
            checks.into_iter().chain(own).flatten().min()
        } else {
            None
        };
        let before = std::mem::replace(&mut self.groups[slot].timer, next);
        if before != next {
            if let Some(at) = before {
                self.timers.remove(&(at, slot));
            }
            self.timers.extend(next.map(|at| (at, slot)));
        }
    }

    // The end.

    fn on_stop_requested(&mut self) {
        if self.stop != Stop::No {
            return;
        }
        self.stop = Stop::Draining;
        for slot in 0..self.groups.len() {
            for poll in self.groups[slot].polls.take_all() {
                self.unpark(slot, &poll);
                let refusal = Refusal::new(Code::Stopping, "the node is stopping");
                self.refuse(poll.to, poll.request, &refusal);
            }
            self.mark(slot);
        }
    }

    /// Goes as far towards the end as nothing has to be waited for.
    fn step_stop(&mut self) {
        loop {
            let quiet = !self.wal.has_pending()
                && self.wal.in_flight() == 0
                && self.checkpoints.is_idle()
                && !self.checkpoints.manifest_under_way()
                && self.groups.iter().all(Group::is_quiet);
            if !quiet {
                return;
            }
            self.stop = match self.stop {
                Stop::Draining => {
                    if !self.disk_full {
                        self.start_round(|group| group.raft.log().applied() > group.bases[0].index);
                    }
                    Stop::Cutting
                }
                Stop::Cutting => {
                    self.write_manifest();
                    Stop::Closing
                }
                Stop::Closing => {
                    self.effects.push(Effect::Stopped);
                    Stop::Done
                }
                Stop::No | Stop::Done => return,
            };
        }
    }
}

/// The base of a group at formation: nothing in it, this node its only voter.
fn formation(config: &ShardConfig, group: GroupId, now: Now, log_start_lsn: Lsn) -> BaseRecord {
    BaseRecord {
        group,
        incarnation: Incarnation(1),
        index: LogIndex(0),
        term: Term(0),
        time: GroupTime(0),
        root_hash: crate::base::checksum::Hash128::default(),
        root: None,
        log_start_lsn,
        machine_version: 1,
        wall_offset_ms: i64::try_from(now.wall.0).unwrap_or(i64::MAX),
        voters: vec![(config.node, config.identity.disk)],
    }
}

/// A group as its log tells it. Its pages, if it has any, are asked for.
fn open_group(
    config: &ShardConfig,
    id: GroupId,
    log: GroupLog,
    now: Now,
    effects: &mut Vec<Effect>,
) -> Group {
    let GroupLog {
        incarnation,
        hard,
        bases,
        entries,
        status,
    } = log;
    let newest = bases[0].clone();
    let oldest = bases.last().expect("a group has a base");
    let me = Voter {
        node: config.node,
        disk: config.identity.disk,
    };
    let roots: Vec<_> = bases.iter().filter_map(root_ref).collect();
    let phase = match status {
        _ if newest.voters != [(me.node, me.disk)] => Phase::Halted(halted(
            id,
            &format!("its voters are {:?}, not this node alone", newest.voters),
        )),
        _ if newest.machine_version > MACHINE_VERSION_MAX => Phase::Halted(halted(
            id,
            &format!("it needs machine version {}", newest.machine_version),
        )),
        GroupLogStatus::Damaged { what } => Phase::Halted(halted(id, &what)),
        GroupLogStatus::Recovering { since } => Phase::Halted(halted(
            id,
            &format!("its log is in doubt since entry {since}"),
        )),
        GroupLogStatus::Intact if newest.root.is_some() => {
            effects.push(Effect::LoadGroup {
                group: id,
                bases: roots,
            });
            Phase::Loading
        }
        GroupLogStatus::Intact => Phase::Serving,
    };
    let last_time = entries
        .last()
        .map_or(newest.time, |entry| entry.time)
        .max(newest.time);
    let mut raft_log = RaftLog::new((oldest.index, oldest.term), entries);
    if newest.index <= raft_log.last_index() {
        raft_log.start_at(newest.index);
    }
    let raft = RaftNode::new(
        RaftConfig {
            group: id,
            incarnation,
            me,
            voters: vec![me],
            machine_version: newest.machine_version,
        },
        raft_hard_state(hard, me),
        raft_log,
        last_time,
    );
    let queue = if newest.root.is_some() {
        JobQueue::absent(id)
    } else {
        JobQueue::new(id, newest.wall_offset_ms)
    };
    Group {
        id,
        incarnation,
        raft,
        queue,
        clock: GroupClock::start(last_time, now.mono),
        phase,
        bases,
        base_files: Vec::new(),
        commit_written: hard.commit,
        hard_state_ticket: None,
        waiters: VecDeque::new(),
        polls: Polls::default(),
        liveness: Liveness::default(),
        advancing: false,
        advance_not_before: now.mono,
        setting_offset: false,
        last_proposed: now.mono,
        wall_checked: now.mono,
        timer: None,
        dirty: true,
    }
}

fn halted(group: GroupId, why: &str) -> String {
    format!(
        "group {group} stopped because {why}; the other groups serve. Look with \
         `rrqctl repair --data-dir DIR`, which shows what would be lost before it changes anything"
    )
}

fn log_hard_state(state: HardState) -> LoggedHardState {
    let tag = |disk: [u8; 16]| u32::from_le_bytes([disk[0], disk[1], disk[2], disk[3]]);
    let vote = state.vote.map(|vote| Vote {
        node: vote.node,
        disk_tag: tag(vote.disk.0),
    });
    LoggedHardState {
        term: state.term,
        vote,
        commit: state.commit,
    }
}

/// A vote for anybody but the only voter cannot be: it is void.
fn raft_hard_state(state: LoggedHardState, me: Voter) -> HardState {
    let vote = state.vote.filter(|vote| vote.node == me.node).map(|_| me);
    HardState {
        term: state.term,
        vote,
        commit: state.commit,
    }
}
