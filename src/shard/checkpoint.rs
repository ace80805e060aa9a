//! Checkpoint rounds: the hot state of the shard's groups, into one run file a round.
//!
//! ```text
//!   Idle ─> Freezing ─> Writing ─> Syncing ─> Placing ─> Publishing ─> Idle
//!           (CHECKPOINT  (chunks)   (files)    (bodies)   (BASE records)
//!            entries)
//! ```
//!
//! A round is due after so many bytes of log as a start reads back in the time that it may take; later, if
//! the last one wrote much that nobody gains from: what would have been over by then. Each group's cut is an
//! entry of its log, so that all replicas cut at the same index; applying it freezes the state, which costs
//! some pointers a queue.
//! What has changed since the last round is then written, bottom up ([`crate::queue::StateWriter`]), in
//! slices, one a turn, with a bounded number of bytes on the way to the disk.
//!
//! # What a crash leaves
//!
//! | crash | afterwards |
//! | --- | --- |
//! | before the files are synced | files that no base names: dropped at the next start; or more behind the end of files that bases name |
//! | after that, before the BASE records are durable | the same |
//! | after that | the new bases are in force; what only older ones named is dropped |
//!
//! Nothing is dropped before the BASE record that replaces it is durable, and the base before the
//! newest stays, with the log from there on, should the newest be damaged.
//!
//! The checkpoint of another node that a group installs is written beside the rounds, as it comes
//! (`installing`). Its BASE record is put in force as a round of that group alone. There is one round at a time.
//!
//! Pages and bodies are written once, until they change: a round writes anew what lives in files of which
//! less than half is alive, once these are much together. It looks at all pages then, and has those read
//! that are not in memory.

mod due;
mod files;
mod round_files;

use self::files::MANIFEST_EVERY;
use super::bases::{base_record, root};
use super::effect::{CheckpointFile, Effect, PageOrder, Reader};
use super::engine::ShardEngine;
use super::group::Phase as GroupPhase;
use super::installing::Joins;
use super::loading::{BaseFiles, Unread};
use crate::base::bugs::{self, Bug};
use crate::base::entry::EntryKind;
use crate::base::ids::ShardId;
use crate::base::limits::BASES_KEPT;
use crate::base::units::{Lsn, Monotonic};
use crate::queue::{
    FrozenState, JobQueue, Kept, LeftFiles, PageWant, Piece, StateWriter, StoredPart,
};
use crate::raft::role::Role;
use crate::snapshot::layout::{FileHeader, FileKind, GroupMeta, Owner, RootRef, file_number};
use crate::wal::record::{BaseRecord, Record};
use crate::wal::writer::Ticket;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub(super) use due::Due;
pub(super) use round_files::RoundFiles;
use round_files::Tail;

/// Bytes encoded in one step.
pub(super) const SLICE_BYTES: usize = 128 << 10;
/// Pages and bodies whose places are taken note of in one step.
const SLICE_PLACES: usize = 1024;
/// Rounds that leave sparse files alone after what lives in them could not be read, or not be written.
const REWRITES_AFTER: u64 = 16;

/// A group's state, frozen at a cut.
pub(super) struct Frozen {
    pub(super) slot: usize,
    pub(super) meta: GroupMeta,
    pub(super) state: FrozenState,
}

/// A group whose pages and root are written.
struct Written {
    slot: usize,
    base: BaseRecord,
    files: BaseFiles,
    /// What the group is to remember of it.
    kept: Kept,
    /// The state that was written, if it is to take the place of the group's own.
    installs: Option<Box<JobQueue>>,
}

enum Phase {
    Idle,
    Freezing {
        waiting: BTreeSet<usize>,
        frozen: VecDeque<Frozen>,
    },
    Writing(Box<Writing>),
    Syncing(Box<Writing>),
    Placing {
        written: Vec<Written>,
        group: usize,
    },
    /// All is on disk but the BASE records.
    Placed {
        written: Vec<Written>,
    },
    Publishing {
        ticket: Ticket,
        written: Vec<Written>,
    },
}

struct Writing {
    queue: VecDeque<Frozen>,
    current: Option<Current>,
    files: RoundFiles,
    written: Vec<Written>,
    /// Pages that must be looked at are being read.
    reads: bool,
}

/// The group being written.
struct Current {
    slot: usize,
    meta: GroupMeta,
    writer: StateWriter,
}

/// The checkpoints of a shard.
pub(super) struct Checkpointer {
    owner: Owner,
    shard: ShardId,
    start_number: u32,
    next_file: u32,
    /// The number of the round under way, or of the last one.
    round: u64,
    /// The last number that was given to a round, or to a checkpoint that is brought here.
    last_round: u64,
    phase: Phase,
    /// What is on disk, with its length.
    files: BTreeMap<CheckpointFile, u64>,
    /// Run and payload files of which less than half is alive: the next round moves what lives.
    rewrite: Arc<LeftFiles>,
    /// The round from which on it does: something that had to be moved could not be read.
    rewrites_from: u64,
    /// With what the next round goes on.
    run_tail: Tail,
    payload_tail: Tail,
    due: Due,
    manifest_sequence: u64,
    manifest_under_way: bool,
    /// The durable end of the log that the newest manifest knows.
    manifest_durable: Lsn,
    manifest_at: Monotonic,
    orphans_dropped: bool,
}

impl Checkpointer {
    /// A checkpointer that finds these files on disk.
    pub(super) fn new(
        owner: Owner,
        shard: ShardId,
        start_number: u32,
        files: BTreeMap<CheckpointFile, u64>,
        due: Due,
        now: Monotonic,
    ) -> Self {
        Self {
            owner,
            shard,
            start_number,
            next_file: 1,
            round: 0,
            last_round: 0,
            phase: Phase::Idle,
            files,
            rewrite: Arc::default(),
            rewrites_from: 0,
            run_tail: Tail::default(),
            payload_tail: Tail::default(),
            due,
            manifest_sequence: u64::from(start_number) << 32,
            manifest_under_way: false,
            manifest_durable: Lsn(0),
            manifest_at: now.plus(MANIFEST_EVERY),
            orphans_dropped: false,
        }
    }

    /// Bytes of log since the last cut.
    pub(super) fn log_bytes(&self, log_end: Lsn) -> u64 {
        self.due.log_bytes(log_end)
    }

    /// Whether no round is under way.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Whether what a round has written is being taken note of, step by step. A node and what is below it
    /// may be told to lie in different rounds meanwhile, so that none is taken in or let go of.
    pub(super) fn is_placing(&self) -> bool {
        matches!(self.phase, Phase::Placing { .. })
    }

    /// When a round is due that only waits for its time.
    pub(super) fn next_round(
        &self,
        log_end: Lsn,
        log_max: u64,
        now: Monotonic,
    ) -> Option<Monotonic> {
        let waits = self.due.waits_until(log_end, log_max, now);
        waits.filter(|_| self.is_idle())
    }

    /// Whether the newest manifest is on its way.
    pub(super) fn manifest_under_way(&self) -> bool {
        self.manifest_under_way
    }

    /// Whether the next slice can be made at once.
    pub(super) fn wants_a_turn(&self) -> bool {
        match &self.phase {
            Phase::Writing(writing) => !writing.reads && !writing.files.is_full(),
            Phase::Placing { .. } => true,
            _ => false,
        }
    }

    /// When the next manifest is due, if the log has grown since the last.
    pub(super) fn next_manifest(&self, durable: Lsn) -> Option<Monotonic> {
        (durable > self.manifest_durable && !self.manifest_under_way).then_some(self.manifest_at)
    }

    /// A number for a round, or for what is written beside it.
    pub(super) fn new_round(&mut self) -> u64 {
        self.last_round += 1;
        self.last_round
    }

    /// A file on the disk ends there, or later.
    fn grow(&mut self, file: CheckpointFile, end: u64) {
        let len = self.files.entry(file).or_default();
        *len = (*len).max(end);
    }

    /// These files are on the disk no more.
    fn forget(&mut self, files: &[CheckpointFile]) {
        for file in files {
            self.files.remove(file);
        }
    }

    fn header(&mut self, kind: FileKind) -> FileHeader {
        let start = if bugs::on(Bug::FileNamesReused) {
            1
        } else {
            self.start_number
        };
        let file = file_number(start.into(), self.shard, self.next_file);
        let file = file.expect("no start has a number from STARTS_END on");
        self.next_file += 1;
        FileHeader {
            kind,
            owner: self.owner,
            shard: self.shard,
            file,
        }
    }
}

impl ShardEngine {
    /// Starts a round if one is due.
    pub(super) fn start_due_round(&mut self) {
        let held_max = self.config.jobs_held_bytes_max;
        // Only what is stored can be let go of.
        let lacks_memory = self.counters.jobs_held_bytes > held_max && !self.may_let_go;
        let held_max = lacks_memory.then_some(held_max);
        let log_max = self.config.checkpoint_log_bytes_max;
        let (log_end, now) = (self.wal.end_lsn(), self.now.mono);
        let checkpoints = &mut self.checkpoints;
        let is_due = checkpoints.due.is_due(log_end, log_max, held_max, now)
            && checkpoints.is_idle()
            && !self.stopping();
        // Looked at last: there may be many groups.
        if is_due && !self.is_loading() {
            self.start_round(|_| true);
        }
    }

    /// The driver has measured how long this start took to read back so many bytes of log; one may take
    /// `budget`.
    pub fn bound_tail(&mut self, budget: Duration, read: (u64, Duration)) {
        self.checkpoints.due.bound_tail(budget, read);
    }

    /// Whether the bases of a group are not known yet. Nothing new is written until then: what a crash
    /// left is dropped by what bases name, and files of a round under way are named by none.
    pub(super) fn is_loading(&self) -> bool {
        let mut groups = self.groups.iter();
        groups.any(|group| group.phase == GroupPhase::Loading)
    }

    /// Whether checkpoints are written more slowly than the log grows, so that it would soon be more
    /// than a start has memory for. Enqueues wait then.
    pub(super) fn log_is_full(&self) -> bool {
        let log_bytes = self.checkpoints.log_bytes(self.wal.end_lsn());
        log_bytes >= self.config.checkpoint_log_bytes_max.saturating_mul(2)
    }

    /// Starts a round over the groups that serve and that `choose` names.
    pub(super) fn start_round(&mut self, choose: impl Fn(&super::group::Group) -> bool) {
        let written = self.counters.checkpoint_bytes_total;
        let due = &mut self.checkpoints.due;
        due.cut(self.wal.end_lsn(), written, self.now.mono);
        let mut waiting = BTreeSet::new();
        let mut frozen = VecDeque::new();
        for slot in 0..self.groups.len() {
            let group = &self.groups[slot];
            // What has no state has nothing to keep.
            let is_fit = group.phase == GroupPhase::Serving && !group.raft.is_blank();
            if !is_fit || !choose(group) {
                continue;
            }
            let is_leader = self.groups[slot].raft.role() == Role::Leader;
            let waits = bugs::on(Bug::RoundWaitsUnserved) && is_leader;
            if !self.groups[slot].leads && !waits {
                // Who follows freezes what it has applied, whenever that is; so does who does not serve as
                // a leader yet: nobody would say that it has lost the lead again.
                frozen.push_back(self.freeze(slot));
            } else if self.propose_kind(slot, EntryKind::Checkpoint).is_ok() {
                waiting.insert(slot);
            }
        }
        if !waiting.is_empty() || !frozen.is_empty() {
            self.checkpoints.round = self.checkpoints.new_round();
            self.checkpoints.phase = Phase::Freezing { waiting, frozen };
            self.write_if_frozen();
        }
    }

    fn freeze(&mut self, slot: usize) -> Frozen {
        let group = &mut self.groups[slot];
        Frozen {
            slot,
            meta: group.meta(),
            state: group.queue.cut(),
        }
    }

    /// A CHECKPOINT entry was applied. Those of an earlier process have no round and cut nothing.
    pub(super) fn on_cut_applied(&mut self, slot: usize) {
        let Phase::Freezing { waiting, .. } = &mut self.checkpoints.phase else {
            return;
        };
        if !waiting.remove(&slot) {
            return;
        }
        let state = self.freeze(slot);
        if let Phase::Freezing { frozen, .. } = &mut self.checkpoints.phase {
            frozen.push_back(state);
        }
        self.write_if_frozen();
    }

    /// Once every group of the round is frozen, it is written.
    fn write_if_frozen(&mut self) {
        let Phase::Freezing { waiting, frozen } = &mut self.checkpoints.phase else {
            return;
        };
        if waiting.is_empty() {
            let queue = std::mem::take(frozen);
            if queue.is_empty() {
                self.checkpoints.phase = Phase::Idle;
                return;
            }
            self.start_writing(queue);
        }
    }

    fn start_writing(&mut self, queue: VecDeque<Frozen>) {
        let files = self.resume_files(self.checkpoints.round);
        self.checkpoints.phase = Phase::Writing(Box::new(Writing {
            queue,
            current: None,
            files,
            written: Vec::new(),
            reads: false,
        }));
    }

    /// A checkpoint that was brought here is on the disk, all but its BASE record: that is what a round is
    /// left to do. There must be none.
    pub(super) fn place_install(
        &mut self,
        slot: usize,
        (meta, root): (&GroupMeta, &RootRef),
        files: BaseFiles,
        queue: Box<JobQueue>,
    ) {
        assert!(self.checkpoints.is_idle(), "there is one round at a time");
        let before = &self.groups[slot].bases[0];
        let written = vec![Written {
            slot,
            base: base_record(meta, root, before.log_start_lsn),
            files,
            kept: Kept::default(),
            installs: Some(queue),
        }];
        self.checkpoints.phase = Phase::Placed { written };
        self.append_bases();
    }

    /// A group stopped serving: a round does not wait for it.
    pub(super) fn round_without(&mut self, slot: usize) {
        if let Phase::Freezing { waiting, .. } = &mut self.checkpoints.phase
            && waiting.remove(&slot)
        {
            self.write_if_frozen();
        }
    }

    /// The next slice of the round, if there is one to make.
    pub(super) fn step_round(&mut self) {
        if !self.checkpoints.wants_a_turn() {
            return;
        }
        match std::mem::replace(&mut self.checkpoints.phase, Phase::Idle) {
            Phase::Writing(writing) => self.step_writing(writing),
            Phase::Placing { written, group } => self.step_placing(written, group),
            _ => unreachable!("only writing and placing want a turn"),
        }
    }

    fn step_writing(&mut self, mut writing: Box<Writing>) {
        let next = writing.current.take().or_else(|| {
            // Who stops has no time to look at all pages.
            let files = match self.stopping() {
                true => Arc::default(),
                false => Arc::clone(&self.checkpoints.rewrite),
            };
            let frozen = writing.queue.pop_front();
            frozen.map(|frozen| Current::new(frozen, &files))
        });
        let Some(current) = next else {
            return self.finish_writing(writing);
        };
        self.step_group(&mut writing, current);
        self.emit_chunks(&mut writing.files);
        self.checkpoints.phase = Phase::Writing(writing);
    }

    fn finish_writing(&mut self, mut writing: Box<Writing>) {
        self.end_files(&mut writing.files, |file| {
            matches!(file, CheckpointFile::Run(_)) || !bugs::on(Bug::PayloadsUnsynced)
        });
        self.checkpoints.phase = Phase::Syncing(writing);
    }

    /// Writes some of a group, and its root behind the last.
    fn step_group(&mut self, writing: &mut Writing, mut current: Current) {
        let group = current.meta.group;
        let mut bytes = 0;
        while bytes < SLICE_BYTES {
            match current.writer.next_piece() {
                Some(Piece::Body { job, body }) => {
                    let (at, len) = self.add_body(&mut writing.files, job, &body);
                    bytes += len;
                    current.writer.body_placed(job, at);
                }
                Some(Piece::Pause) => break,
                Some(Piece::Read(absent)) => {
                    writing.reads = true;
                    self.effects.push(Effect::LoadPages(PageOrder {
                        group,
                        wants: absent.into_iter().map(PageWant::only).collect(),
                        reader: Reader::Round(self.checkpoints.round),
                    }));
                    break;
                }
                Some(piece) => {
                    let stored = writing.files.add_piece(group, &piece);
                    bytes += stored.len as usize;
                    current.writer.placed(stored);
                }
                None => return self.finish_group(writing, current),
            }
        }
        writing.current = Some(current);
    }

    /// Pages that the round must look at were read, or cannot be: then what is in sparse files stays there
    /// for some rounds, and this one is made again without them.
    pub(super) fn on_pages_of_round(
        &mut self,
        round: u64,
        result: Result<Vec<StoredPart>, Unread>,
    ) {
        let is_current = self.checkpoints.round == round;
        let Phase::Writing(writing) = &mut self.checkpoints.phase else {
            return;
        };
        if !is_current || !std::mem::replace(&mut writing.reads, false) {
            return;
        }
        let current = writing.current.as_mut().expect("its group reads");
        let is_taken = result.is_ok_and(|parts| {
            let mut parts = parts.into_iter();
            parts.all(|part| current.writer.read(part).is_ok())
        });
        if !is_taken {
            self.give_up_rewriting();
        }
    }

    fn give_up_rewriting(&mut self) {
        let phase = std::mem::replace(&mut self.checkpoints.phase, Phase::Idle);
        let Phase::Writing(writing) = phase else {
            unreachable!("only a round that is being written reads");
        };
        self.drop_files_of(&writing.files.made());
        self.effects.push(Effect::TruncateFiles {
            files: writing.files.resumed().collect(),
        });
        self.forget_round(&writing.files);
        self.leave_sparse_files();
        self.retry_round();
    }

    /// The next rounds move nothing out of sparse files.
    fn leave_sparse_files(&mut self) {
        self.checkpoints.rewrite = Arc::default();
        self.checkpoints.rewrites_from = self.checkpoints.round + REWRITES_AFTER;
    }

    /// A round that came to nothing is made again after a while.
    fn retry_round(&mut self) {
        self.counters.checkpoint_rounds_failed_total += 1;
        self.checkpoints.due.retry(self.now.mono);
    }

    fn finish_group(&mut self, writing: &mut Writing, current: Current) {
        let Current { slot, meta, writer } = current;
        let (state, kept) = writer.finish();
        let root = root(&meta, &state);
        let (runs, payloads) = (root.run_files(), root.payload_files());
        let root = writing.files.add_root(root).unwrap_or_else(|error| {
            panic!(
                "the root of group {} cannot be written: {error}",
                meta.group
            )
        });
        let before = &self.groups[slot].bases[0];
        writing.written.push(Written {
            slot,
            base: base_record(&meta, &root, before.log_start_lsn),
            files: BaseFiles::new(&root, &runs, &payloads),
            kept,
            installs: None,
        });
    }

    /// A chunk is on its way no more.
    pub(super) fn on_chunk_written(&mut self, round: u64, bytes: usize) {
        if let Phase::Writing(writing) = &mut self.checkpoints.phase
            && writing.files.round() == round
        {
            return writing.files.chunk_written(bytes);
        }
        self.chunk_of_install_written(round, bytes);
    }

    /// The files of the round are durable.
    pub(super) fn on_files_synced(&mut self, round: u64) {
        if self.is_install(round) {
            return self.install_synced();
        }
        assert!(
            round == self.checkpoints.round,
            "round {round} was synced during round {}",
            self.checkpoints.round
        );
        let Phase::Syncing(writing) = std::mem::replace(&mut self.checkpoints.phase, Phase::Idle)
        else {
            panic!("round {round} was synced before it was written");
        };
        self.note_tails(&writing.files);
        let written = writing.written;
        self.checkpoints.phase = Phase::Placing { written, group: 0 };
    }

    /// The round could not be written. What it wrote is gone; the log stays, and so do the bases.
    pub(super) fn on_round_failed(&mut self, round: u64) {
        if self.is_install(round) {
            return self.install_failed("it could not be written");
        }
        assert!(
            round == self.checkpoints.round,
            "round {round} failed out of turn"
        );
        let phase = std::mem::replace(&mut self.checkpoints.phase, Phase::Idle);
        if let Phase::Syncing(writing) = phase {
            self.forget_round(&writing.files);
        }
        self.leave_sparse_files();
        self.retry_round();
    }

    fn step_placing(&mut self, mut written: Vec<Written>, mut group: usize) {
        let Some(current) = written.get_mut(group) else {
            self.checkpoints.phase = Phase::Placed { written };
            self.take_late_pages();
            return self.append_bases();
        };
        let queue = &mut self.groups[current.slot].queue;
        if !queue.keep(&mut current.kept, SLICE_PLACES) {
            group += 1;
            // What is stored now need not be in memory.
            self.may_let_go = true;
        }
        self.checkpoints.phase = Phase::Placing { written, group };
    }

    /// Puts the BASE records into the log; that of a checkpoint of another node once the log of its
    /// group lets it.
    pub(super) fn append_bases(&mut self) {
        if !matches!(self.checkpoints.phase, Phase::Placed { .. }) {
            return;
        }
        let Phase::Placed { mut written } =
            std::mem::replace(&mut self.checkpoints.phase, Phase::Idle)
        else {
            unreachable!("the phase was just looked at");
        };
        for install in written.iter_mut().filter(|written| written.is_install()) {
            let base = &mut install.base;
            match self.join_log(install.slot, (base.index, base.term)) {
                Joins::At(start) => base.log_start_lsn = start,
                Joins::Later => {
                    self.checkpoints.phase = Phase::Placed { written };
                    return;
                }
                Joins::Never => {
                    self.give_up_install();
                    return self.drop_unreferenced_files();
                }
            }
        }
        let tickets: Vec<Ticket> = written
            .iter()
            .map(|written| self.wal.append(Record::Base(written.base.clone())))
            .collect();
        let ticket = *tickets.last().expect("a round has a group");
        self.checkpoints.phase = Phase::Publishing { ticket, written };
        if bugs::on(Bug::DropBeforeBase) {
            self.publish_if_durable(ticket);
        }
    }

    /// Puts the new bases in force once their records are durable, and drops what that frees.
    pub(super) fn publish_if_durable(&mut self, durable: Ticket) {
        let Phase::Publishing { ticket, .. } = &self.checkpoints.phase else {
            return;
        };
        if *ticket > durable {
            return;
        }
        let Phase::Publishing { written, .. } =
            std::mem::replace(&mut self.checkpoints.phase, Phase::Idle)
        else {
            unreachable!("the phase was just looked at");
        };
        let is_install = written.iter().any(Written::is_install);
        for Written {
            slot,
            base,
            files,
            installs,
            ..
        } in written
        {
            if let Some(queue) = installs {
                self.put_in_force(slot, base, files, *queue);
                continue;
            }
            let group = &mut self.groups[slot];
            if group.bases[0].index == base.index {
                // Nothing was applied since: as in the log, it takes the place of that one, so that the
                // one before stays.
                group.bases.remove(0);
                group.base_files.drain(..1.min(group.base_files.len()));
            }
            group.bases.insert(0, base);
            group.bases.truncate(BASES_KEPT);
            group.base_files.insert(0, files);
            group.base_files.truncate(BASES_KEPT);
        }
        self.counters.checkpoint_rounds_total += u64::from(!is_install);
        self.drop_unreferenced_files();
        let live = self.choose_files_to_rewrite();
        let due = &mut self.checkpoints.due;
        if is_install {
            due.live(live);
        } else {
            due.published(self.counters.checkpoint_bytes_total, live);
        }
        self.write_manifest();
    }
}

impl Written {
    fn is_install(&self) -> bool {
        self.installs.is_some()
    }
}

impl Current {
    fn new(frozen: Frozen, files: &Arc<LeftFiles>) -> Self {
        Self {
            slot: frozen.slot,
            meta: frozen.meta,
            writer: frozen.state.writer(files),
        }
    }
}
