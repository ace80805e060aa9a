//! The engine of one core. This file is its table of contents: one line an input, then one short
//! method a stage, in the order of the data path. What a stage decides is in the files beside it.

use super::bases::state_hash;
use super::changes::Questions;
use super::checkpoint::{Checkpointer, Due};
use super::config::ShardConfig;
use super::counters::Counters;
use super::effect::{CheckpointFile, Effect, Reader};
use super::group::{Group, Phase, Waiter};
use super::input::{Input, Origin};
use super::installs::Installs;
use super::loading::Unread;
use super::log_reads::LogReads;
use super::lost_ends::{KnownEnds, Losses};
use super::members::Cluster;
use super::opening::{formation, log_hard_state, open_group, standing_row};
use super::peers::Peers;
use super::placement::{groups_of, shard_of};
use super::polls::Place;
use super::requests::{Refusal, STOPPING};
use super::scrubbing::Scrubber;
use super::sparing::Sparing;
use super::tails::Tails;
use super::wall::VotersClock;
use crate::base::bugs::{self, Bug};
use crate::base::checksum::Hash128;
use crate::base::code::Code;
use crate::base::entry::EntryKind;
use crate::base::ids::{GroupId, Incarnation, LogIndex, SessionId, ShardId, Term};
use crate::base::limits::GROUP_UNCOMMITTED_BYTES_MAX;
use crate::base::units::{GroupTime, Lsn, Monotonic, Now};
use crate::queue::MACHINE_VERSION;
use crate::queue::StoredPart;
use crate::queue::check::check;
use crate::queue::command::{Command, Op};
use crate::raft::node::{Proposal, ProposeError, RaftNode};
use crate::raft::ready::{HardState, Ready};
use crate::snapshot::layout::Owner;
use crate::wal::record::{BaseRecord, GroupRow, HardState as LoggedHardState, Record, RowStatus};
use crate::wal::recovery::{GroupLog, GroupLogStatus, Recovered, Sound};
use crate::wal::writer::{GroupStart, LogStart, LogWriter, Ticket};
use crate::wire::message::WorkerInfo;
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

// What recovery lets through is what the machine applies.
const _: () = assert!(MACHINE_VERSION == crate::wal::record::MACHINE_VERSION_MAX);

/// Idle this long after the last write, the log proves it by a beacon.
const BEACON_AFTER: Duration = Duration::from_millis(5);
/// Payloads of entries share pieces of memory of this size.
const PAYLOADS_BYTES: usize = 64 << 10;

/// What a connection holds on this shard.
#[derive(Debug, Default)]
pub(super) struct Conn {
    pub(super) sessions: BTreeSet<(usize, SessionId)>,
    pub(super) polls: BTreeSet<(usize, Place, u64)>,
    /// Watches and waits for a job's end.
    pub(super) waits: BTreeSet<(usize, u64)>,
    /// Who works on it.
    pub(super) worker: Option<WorkerInfo>,
    /// Shards that got requests of it.
    pub(super) forwarded: BTreeSet<ShardId>,
}

/// The last entry of a group in a batch.
struct Written {
    ticket: Ticket,
    slot: usize,
    /// The life of the group that wrote it.
    incarnation: Incarnation,
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
    /// Payloads of entries are cut off it, so that a few hundred share a piece of memory.
    pub(super) payloads: BytesMut,
    /// Empty; its memory is used for each group in turn.
    ready: Ready,
    /// For the next [`Effect::JobsRan`].
    pub(super) run_times_ms: Vec<u64>,
    pub(super) disk_full: bool,
    pub(super) disk_exhausted: bool,
    pub(super) memory_full: bool,
    /// Pages that were read while a checkpoint round was being placed, by slot.
    pub(super) late_pages: Vec<(usize, Reader, Result<Vec<StoredPart>, Unread>)>,
    /// Something has come that can be let go of.
    pub(super) may_let_go: bool,
    /// The slot whose turn it is to let go of pages.
    pub(super) lets_go: usize,
    pub(super) next_poll: u64,
    pub(super) questions: Questions,
    /// Slots with work for the next drain.
    dirty: Vec<usize>,
    /// What the batches under way carry, in order.
    written: VecDeque<Written>,
    /// Slots whose next change of the members waits for the disk, and for which batch.
    changes_wait: VecDeque<(Ticket, usize)>,
    pub(super) timers: BTreeSet<(Monotonic, usize)>,
    pub(super) peers: Peers,
    pub(super) cluster: Cluster,
    pub(super) sparing: Sparing,
    pub(super) tails: Tails,
    /// When it looks whether this node leads too many groups.
    pub(super) balance_at: Option<Monotonic>,
    /// It shall lead nothing.
    pub(super) draining: bool,
    /// What the voters' clocks say, once most of them were heard.
    pub(super) voters_clock: Option<VotersClock>,
    /// What shard 0 told of that last.
    pub(super) clock_told: Option<VotersClock>,
    pub(super) ends: KnownEnds,
    /// What it was told that its log has lost.
    pub(super) losses: Losses,
    /// Groups were formed, which the log shall say before anybody is let in.
    forms: bool,
    pub(super) installs: Installs,
    pub(super) log_reads: LogReads,
    pub(super) scrub: Scrubber,
    beacon_at: Option<Monotonic>,
    stop: Stop,
}

impl ShardEngine {
    /// The engine of a shard that found `recovered` in its log and `files` beside it.
    ///
    /// A group that is not in a whole log is formed: an empty base, this node and its peers the voters.
    #[must_use]
    pub fn new(
        config: ShardConfig,
        recovered: Recovered,
        files: BTreeMap<CheckpointFile, u64>,
        now: Now,
    ) -> Self {
        let Recovered {
            mut start,
            groups: mut logs,
            torn,
            damage,
            segments,
            bytes,
        } = recovered;
        let ends = KnownEnds::new(config.identity, start.lsn, &start.echoes);
        let here = || groups_of(config.shard, config.shards, config.groups);
        for id in here() {
            // Without a base nothing that is left of a group says where it begins.
            let is_lost = match logs.get(&id) {
                Some(log) => log.bases.is_empty(),
                None => !damage.is_empty(),
            };
            if is_lost {
                logs.insert(id, lose(&config, id, now, &mut start));
            }
        }
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
        let held = match segments.len() {
            0..=2 => 0,
            more => more * config.segment_bytes,
        };
        let log = (wal.end_lsn(), bytes.max(held as u64));
        let checkpoints = Checkpointer::new(
            owner,
            config.shard,
            config.start_number,
            files,
            Due::new(log, config.checkpoint_log_bytes, now.mono),
            now.mono,
        );
        let mut groups = Vec::new();
        let mut effects = Vec::new();
        let mut forms = false;
        for id in here() {
            let found = logs.remove(&id);
            forms |= found.is_none();
            let log = found.unwrap_or_else(|| form(&config, id, now, &mut wal));
            groups.push(open_group(&config, id, log, now, &mut effects));
        }
        let counters = Counters {
            groups: groups.len() as u64,
            log_tails_cut_total: u64::from(torn.is_some()),
            ..Counters::default()
        };
        let (me, is_first) = (config.me(), config.shard == ShardId(0));
        let others = config.members.members.iter().map(|member| member.voter);
        let mut peers = Peers::default();
        peers.set_members(others.filter(|other| *other != me), is_first, now.mono);
        let cluster = Cluster::known(&config.members);
        let scrub = Scrubber::new(&config, groups.len(), now.mono);
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
            payloads: BytesMut::with_capacity(PAYLOADS_BYTES),
            ready: Ready::default(),
            run_times_ms: Vec::new(),
            disk_full: false,
            disk_exhausted: false,
            memory_full: false,
            late_pages: Vec::new(),
            may_let_go: false,
            lets_go: 0,
            next_poll: 1,
            questions: Questions::default(),
            written: VecDeque::new(),
            changes_wait: VecDeque::new(),
            timers: BTreeSet::new(),
            peers,
            cluster,
            sparing: Sparing::default(),
            tails: Tails::default(),
            balance_at: None,
            draining: false,
            voters_clock: None,
            clock_told: None,
            ends,
            losses: Losses::default(),
            forms,
            installs: Installs::default(),
            log_reads: LogReads::default(),
            scrub,
            beacon_at: None,
            stop: Stop::No,
        };
        // A node that stands alone leads at its first tick.
        for group in engine.groups.iter_mut().filter(|group| !group.is_halted()) {
            if engine.config.catch_up_bytes > 0 {
                group.raft.read_log();
            }
            group.raft.tick();
        }
        (0..engine.groups.len()).for_each(|slot| engine.members_changed(slot));
        engine
    }

    /// Takes what happened. Effects follow at the next [`Self::drain`].
    pub fn handle(&mut self, now: Now, input: Input) {
        self.now = now;
        match input {
            Input::ClientRequest {
                from,
                request,
                payload,
            } => self.on_request(from, request, payload),
            Input::ClientClosed { from } => self.on_client_closed(from),
            Input::Answered { reply } => self.on_answered(&reply),
            Input::WalSynced { batch_seq } => self.on_wal_synced(batch_seq),
            Input::SegmentReady { number } => self.wal.segment_ready(number),
            Input::LogRead { piece, bytes } => self.on_log_read(piece, bytes.as_ref()),
            Input::GroupLoaded {
                group,
                reader,
                result,
            } => self.on_group_loaded(group, reader, result),
            Input::PagesLoaded {
                group,
                reader,
                result,
            } => self.on_pages_loaded(group, reader, result),
            Input::Scrubbed(walk) => self.on_scrubbed(walk),
            Input::ChunkWritten { round, bytes } => self.on_chunk_written(round, bytes),
            Input::FilesSynced { round } => self.on_files_synced(round),
            Input::RoundFailed { round } => self.on_round_failed(round),
            Input::ManifestWritten => self.on_manifest_written(),
            Input::DiskSpace { full, exhausted } => self.on_disk_space(full, exhausted),
            Input::Memory { full } => {
                self.memory_full = full;
                self.counters.memory_full = u64::from(full);
            }
            Input::StopRequested => self.on_stop_requested(),
            Input::PeerMessages { messages, refused } => {
                self.counters.peer_messages_refused_total += refused;
                self.on_peer_messages(messages);
            }
            Input::PeerKnown(peer) => self.on_peer_known(peer),
            Input::PeerWaits(peer) => self.on_peer_waits(peer),
            Input::ClusterMembers(members) => self.on_cluster_members(&members),
            Input::VoterSets { shard, sets } => self.on_voter_sets(shard, sets),
            Input::HeardDurable(heard) => self.on_heard_durable(&heard),
            Input::PeerBeat { from, wall } => self.on_peer_beat(from, wall),
            Input::PeerHeard { peer } => self.on_peer_heard(peer),
            Input::VotersClock(clock) => self.on_voters_clock(clock),
            Input::PeerDrains { peer, on } => self.on_peer_drains(peer, on),
            Input::PeerLost { peer, loss } => self.on_peer_lost(peer, loss),
            Input::TimePassed => {}
        }
    }

    /// Moves all that is to be done into `out`. Must be called until it adds nothing before the
    /// driver waits.
    pub fn drain(&mut self, out: &mut Vec<Effect>) {
        self.fire_timers();
        self.beat_nodes();
        self.tick_groups();
        self.balance_leaders();
        while let Some(slot) = self.dirty.pop() {
            self.settle(slot);
        }
        self.step_installs();
        self.read_for_followers();
        self.start_due_round();
        self.step_round();
        self.let_go_of_pages();
        self.trim_tails();
        self.step_scrub();
        self.write_due_manifest();
        self.step_stop();
        while let Some(slot) = self.dirty.pop() {
            self.settle(slot);
        }
        self.tell_voter_sets();
        self.pump_log();
        self.flush_peers();
        out.append(&mut self.effects);
        if !self.run_times_ms.is_empty() {
            let times_ms = std::mem::take(&mut self.run_times_ms);
            out.push(Effect::JobsRan { times_ms });
        }
    }

    /// When the engine wants to be called next although nothing happened.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let wants_a_turn = self.checkpoints.wants_a_turn() || self.installs.wants_a_turn();
        if wants_a_turn || self.has_long_tails() {
            return Some(self.now.mono);
        }
        let timer = self.timers.first().map(|(at, _)| *at);
        let manifest = self.checkpoints.next_manifest(self.wal.durable_lsn());
        let (peers, installs) = (self.peers.next_deadline(), self.installs.next_deadline());
        let (balance, mending) = (self.next_balance(), self.next_mending());
        let (log_end, log_max) = (self.wal.end_lsn(), self.config.checkpoint_log_bytes_max);
        let round = self.checkpoints.next_round(log_end, log_max, self.now.mono);
        let round = round.filter(|_| !self.stopping());
        [
            timer,
            self.beacon_at,
            manifest,
            peers,
            installs,
            balance,
            mending,
            round,
            self.next_scrub(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether clients can be let in: every group that is not damaged is loaded, and what was formed is in
    /// the log, so that a log that is missing at a later start is known to be lost. One in which nobody
    /// else votes also leads, in the version of the job machine that it is to have; who leads the
    /// others may change at any time.
    #[must_use]
    pub fn serving(&self) -> bool {
        let version = self.config.machine_version_max;
        let is_open = |group: &Group| {
            if group.raft.leads_alone() {
                group.serves() && group.queue.version() >= version
            } else {
                group.phase == Phase::Serving
            }
        };
        let is_written = !self.forms || self.wal.durable_lsn() > self.ends.found();
        let mut groups = self.groups.iter();
        let is_without = |group: &Group| matches!(group.phase, Phase::Lost(_) | Phase::Halted(_));
        is_written && groups.all(|group| is_without(group) || is_open(group))
    }

    /// Where the log is durable up to.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.wal.durable_lsn()
    }

    /// Why groups do not serve, for the operator.
    pub fn halted(&self) -> impl Iterator<Item = (GroupId, &str)> {
        self.groups.iter().filter_map(|group| match &group.phase {
            Phase::Halted(why) => Some((group.id, why.as_str())),
            Phase::Loading | Phase::Serving | Phase::Lost(_) => None,
        })
    }

    /// Jobs that are live and not dead, over all groups that have not stopped.
    #[must_use]
    pub fn live_jobs(&self) -> u64 {
        let groups = self.groups.iter().filter(|group| !group.is_halted());
        groups.map(|group| group.queue.live_jobs()).sum()
    }

    /// The index that a group has applied, and a hash over its state there: the same on every replica.
    /// `None` while it does not serve.
    #[must_use]
    pub fn state_hash(&self, group: GroupId) -> Option<(LogIndex, Hash128)> {
        let group = &self.groups[self.slot(group)];
        let hash = || (group.raft.log().applied(), state_hash(&group.queue));
        (group.phase == Phase::Serving).then(hash)
    }

    /// Proves what a group's state and log say of themselves by counting everything again: for judges.
    ///
    /// # Errors
    /// The first that does not hold, as a sentence.
    pub fn check(&self, group: GroupId) -> Result<(), String> {
        let group = &self.groups[self.slot(group)];
        let log = group.raft.log();
        let above = log.slice(log.applied().next(), usize::MAX);
        let unapplied: usize = above.iter().map(|entry| entry.payload.len()).sum();
        if unapplied != log.unapplied_bytes() {
            let said = log.unapplied_bytes();
            return Err(format!("{said} bytes are said to wait, {unapplied} do"));
        }
        let longest = above.iter().map(|entry| entry.payload.len()).max();
        if unapplied > GROUP_UNCOMMITTED_BYTES_MAX + longest.unwrap_or(0) {
            return Err(format!("{unapplied} bytes wait, more than may"));
        }
        match group.phase {
            Phase::Serving => check(&group.queue),
            Phase::Loading | Phase::Lost(_) | Phase::Halted(_) => Ok(()),
        }
    }

    /// Whether a checkpoint is being written.
    #[must_use]
    pub fn writes_checkpoint(&self) -> bool {
        !self.checkpoints.is_idle()
    }

    /// Whether a checkpoint of another node is on its way here.
    #[must_use]
    pub fn installs(&self) -> bool {
        self.installs.receiving.is_some()
    }

    /// What this member of a group knows of it: for judges, who hold it against the others'.
    ///
    /// # Panics
    /// If the group is on another shard.
    #[must_use]
    pub fn member(&self, group: GroupId) -> &RaftNode {
        &self.groups[self.slot(group)].raft
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

    /// Proposes an entry, whose index it returns; the waiter is told when it is applied.
    pub(super) fn propose(
        &mut self,
        slot: usize,
        kind: EntryKind,
        payload: Bytes,
        waiter: Option<Waiter>,
    ) -> Result<LogIndex, Refusal> {
        let group = &mut self.groups[slot];
        let mut time = group.clock.at(self.now.mono);
        if bugs::on(Bug::LeaseByWallClock) {
            let offset_ms = u64::try_from(group.queue.wall_offset_ms()).unwrap_or(0);
            time = GroupTime(self.now.wall.0.saturating_sub(offset_ms));
        }
        let index = group
            .raft
            .propose(Proposal {
                kind,
                time,
                payload,
            })
            .map_err(|error| {
                let code = match error {
                    ProposeError::NotLeader | ProposeError::HandingOver => Code::NotLeader,
                    ProposeError::Busy => Code::Busy,
                };
                Refusal::new(code, error.to_string())
            })?;
        group.last_proposed = self.now.mono;
        group.waiters.extend(waiter.map(|waiter| (index, waiter)));
        self.counters.entries_proposed_total += 1;
        self.mark(slot);
        Ok(index)
    }

    /// Proposes an entry without a payload.
    pub(super) fn propose_kind(&mut self, slot: usize, kind: EntryKind) -> Result<(), Refusal> {
        self.propose(slot, kind, Bytes::new(), None).map(drop)
    }

    /// Proposes what the leader itself wants; if the group is too busy, a timer tries again.
    pub(super) fn propose_own(&mut self, slot: usize, op: Op, waiter: Option<Waiter>) -> bool {
        self.propose_command(slot, Command { session: None, op }, waiter)
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
                slot,
                incarnation,
                index,
                term,
                ..
            } = self.written.pop_front().expect("the front was just seen");
            self.groups[slot].raft.synced(incarnation, index, term);
            self.mark(slot);
        }
        while let Some((_, slot)) = self
            .changes_wait
            .pop_front_if(|(ticket, _)| *ticket <= durable)
        {
            self.mark(slot);
        }
        self.peers.durable(durable);
        self.publish_if_durable(durable);
        self.append_bases();
        let numbers = self.wal.droppable();
        if !numbers.is_empty() {
            self.effects.push(Effect::DropSegments { numbers });
        }
        self.beacon_at = Some(self.now.mono.plus(BEACON_AFTER));
    }

    /// Puts what Raft wants written into the log.
    pub(super) fn collect_ready(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        if !group.raft.has_ready() {
            return;
        }
        let (id, incarnation) = (group.id, group.incarnation);
        let mut ready = std::mem::take(&mut self.ready);
        group.raft.take_ready(&mut ready);
        let behind = group.raft.take_behind();
        self.log_reads.wanted(slot, behind);
        let logged = |state: HardState| Record::HardState {
            group: id,
            incarnation,
            state: log_hard_state(state),
        };
        if let Some(state) = ready.hard_state {
            let ticket = self.wal.append(logged(state));
            group.hard_state_ticket = Some(ticket);
            if !bugs::on(Bug::VoteBeforeSync) {
                (group.vote_ticket, group.promise_ticket) = (ticket, ticket);
            }
            group.commit_written = state.commit;
        }
        let mut last = None;
        for entry in ready.entries.drain(..) {
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
                    incarnation,
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
        if let Some(Written { ticket, .. }) = &last
            && !bugs::on(Bug::AppendedBeforeSync)
        {
            group.promise_ticket = *ticket;
        }
        if let Some(standing) = ready.standing {
            let row = standing_row(group, standing);
            group.promise_ticket = self.wal.append(Record::GroupTable(vec![row]));
            self.losses.wrote(slot, group.promise_ticket);
        }
        self.written.extend(last);
        self.groups[slot].reads.let_through(ready.reads.drain(..));
        self.say(slot, &mut ready.messages, &mut ready.promises);
        self.ready = ready;
    }

    /// Whether the next committed entry may be applied. A change of the members acts once this member's disk
    /// has it that it is committed: a restart must not take it back, since by then those may be gone for
    /// good who would have to vote as before.
    pub(super) fn may_change_members(&mut self, slot: usize) -> bool {
        let group = &mut self.groups[slot];
        let next = group.raft.next_committed();
        let Some(change) = next.filter(|entry| entry.kind == EntryKind::Conf) else {
            return true;
        };
        if group.commit_written < change.index {
            let state = group.raft.hard_state();
            let ticket = self.wal.append(Record::HardState {
                group: group.id,
                incarnation: group.incarnation,
                state: log_hard_state(state),
            });
            group.hard_state_ticket = Some(ticket);
            group.commit_written = state.commit;
        }
        let durable = self.wal.durable_ticket();
        let waits_for = group.hard_state_ticket.filter(|ticket| *ticket > durable);
        self.changes_wait
            .extend(waits_for.map(|ticket| (ticket, slot)));
        waits_for.is_none()
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
        self.take_offer(slot);
        self.collect_ready(slot);
        self.apply_committed(slot);
        self.note_role(slot);
        self.answer_held(slot);
        self.answer_reads(slot);
        self.wake_polls(slot);
        self.wake_watches(slot);
        self.raise_version(slot);
        self.settle_members(slot);
        self.drive_changes(slot);
        self.collect_ready(slot);
        self.set_timer(slot);
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
                self.refuse(poll.to, poll.request, &Refusal::stopping());
            }
            self.end_waits(slot, Code::Stopping, STOPPING);
            self.groups[slot].raft.hand_over();
            self.mark(slot);
        }
    }

    /// Goes as far towards the end as nothing has to be waited for.
    fn step_stop(&mut self) {
        while self.stopping() {
            let quiet = !self.wal.has_pending()
                && self.wal.in_flight() == 0
                && self.checkpoints.is_idle()
                && !self.checkpoints.manifest_under_way()
                && !self.is_loading()
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

/// The log of a group that is not in that of the shard yet: an empty base.
fn form(config: &ShardConfig, id: GroupId, now: Now, wal: &mut LogWriter) -> GroupLog {
    let base = formation(config, id, now, wal.end_lsn());
    wal.append(Record::Base(base.clone()));
    from_empty(base, GroupLogStatus::Intact)
}

/// The log of a group whose records are lost: an empty base, too, but the others must say what was in it, at
/// this start and at every later one. So it is in the first thing that this start writes, the head of its
/// segment: with what comes behind that, the loss itself might be lost, and the group seem new.
fn lose(config: &ShardConfig, id: GroupId, now: Now, start: &mut LogStart) -> GroupLog {
    let base = formation(config, id, now, start.lsn);
    let known = start.groups.iter().position(|known| known.row.group == id);
    let hard = known.map(|place| start.groups.swap_remove(place).row.hard);
    let since = LogIndex(1);
    start.groups.push(GroupStart {
        row: GroupRow {
            group: id,
            incarnation: base.incarnation,
            hard: hard.unwrap_or_default(),
            log_start_lsn: base.log_start_lsn,
            status: RowStatus::Recovering { since },
            ..GroupRow::default()
        },
        bases: vec![base.clone()],
    });
    let what = "none of its records is left".into();
    from_empty(base, GroupLogStatus::Damaged { what })
}

fn from_empty(base: BaseRecord, status: GroupLogStatus) -> GroupLog {
    GroupLog {
        incarnation: base.incarnation,
        hard: LoggedHardState::default(),
        bases: vec![base],
        entries: Vec::new(),
        status,
        sound: Sound::default(),
    }
}
