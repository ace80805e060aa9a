//! A checkpoint of another node takes the place of the log entries that this one lacks.
//!
//! Only what differs from the state here comes, and is written as it comes (`gathering`), as a checkpoint of
//! this node's own. Once that is synced it is opened, as by a start: what it names is checked again. Only when
//! the BASE record is durable is it in force: then Raft is told, and says to the leader that it is here.
//!
//! A transfer that breaks off, whoever sent it, leaves what it has written for the next one of the group, for
//! a while: pages that are wanted again by then are found there by their hashes.
//!
//! # What a crash leaves
//!
//! | crash | afterwards |
//! | --- | --- |
//! | before the BASE record is durable | the old base and the log; files that no base names go |
//! | after that | the new base, whether Raft was told or not |
//!
//! # The log around the new base
//!
//! A log that has the base's last entry leads to it, as to a base of this node's own: what follows stays
//! and counts. One that has not says nothing about what comes after: its records are void, which the
//! base tells by its `log_start_lsn`. That names a position, so that none of them may still be on its
//! way to the disk when the record is written. While it is on its way nothing is applied, and no leader
//! of an earlier term is heeded: what reaches the log behind the record goes on from the base, or lies
//! below it.
//!
//! Deliberately absent: going on after a start of this node with what an earlier one has written.

use super::effect::{CheckpointFile, Effect, GroupReader, PageOrder, Reader};
use super::engine::ShardEngine;
use super::gathering::{Gathering, Partly, Whole};
use super::installs::FORGET_AFTER;
use super::loading::{BaseFiles, GroupState, Unread};
use super::opening::open_state;
use crate::base::limits::{BASES_KEPT, CHECKPOINT_WANTS_MAX};
use crate::base::units::{Lsn, Monotonic};
use crate::queue::{Discarded, JobQueue, StoredPart, Wanted};
use crate::raft::follower::Installed;
use crate::raft::membership::Membership;
use crate::raft::message::{Checkpoint, Position, Voter};
use crate::wal::record::BaseRecord;
use crate::wire::checkpoint::page_wanted;
use std::time::Duration;

/// A part that does not come is asked for again after this, and after twice as long the next time.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// But not less often than this; and so often while it is put in force, so that the log is kept.
const ASK_AT_LEAST: Duration = Duration::from_secs(2);
/// A transfer that stands still for so long makes room for the next offer.
const STANDS_STILL: Duration = Duration::from_secs(5);
/// A group whose checkpoint cannot be installed waits so long for the next.
const PUT_OFF: Duration = Duration::from_secs(5);

/// A checkpoint on its way here.
pub(super) struct Receiving {
    slot: usize,
    from: Voter,
    id: u64,
    stage: Stage,
    /// The number of the next part.
    next: u64,
    /// How many wants were told.
    told: u64,
    /// The next parts are not asked for before the disk has more room.
    holds: bool,
    ask_at: Monotonic,
    ask_after: Duration,
    /// When it went on last: a part came, or this node's own disk was read, or written to.
    heard: Monotonic,
}

enum Stage {
    Gathering(Box<Gathering>),
    /// Its files are on their way to the disk.
    Syncing(Box<Whole>),
    /// It is read as a start would read it.
    Opening(Box<Whole>),
    /// It waits for the round under way, and until all groups of the shard are loaded.
    Opened(Box<Whole>, BaseFiles, Box<JobQueue>),
    /// The checkpoint round has it.
    Placed(Box<Whole>),
    /// Only while one stage becomes another.
    Between,
}

/// What was written of a checkpoint of a slot that broke off, until it is of no more use.
pub(super) struct SetAside {
    slot: usize,
    partly: Partly,
    until: Monotonic,
}

impl SetAside {
    pub(super) fn files(&self) -> impl Iterator<Item = CheckpointFile> {
        self.partly.files()
    }

    pub(super) fn until(&self) -> Monotonic {
        self.until
    }
}

/// How the record of a base fits behind the log.
pub(super) enum Joins {
    /// With this `log_start_lsn`.
    At(Lsn),
    /// Not while records of the group are on their way to the disk.
    Later,
    /// It is not needed any more.
    Never,
}

impl Receiving {
    pub(super) fn from(&self) -> Voter {
        self.from
    }

    /// Whether parts are missing.
    pub(super) fn gathers(&self) -> bool {
        matches!(self.stage, Stage::Gathering(_))
    }

    /// Whether it can go on at once.
    pub(super) fn wants_a_turn(&self) -> bool {
        match &self.stage {
            Stage::Gathering(gathering) => gathering.wants_a_turn(),
            _ => false,
        }
    }

    pub(super) fn next_deadline(&self) -> Monotonic {
        self.ask_at
    }

    /// Files that it needs.
    pub(super) fn files(&self) -> Vec<CheckpointFile> {
        match &self.stage {
            Stage::Gathering(gathering) => gathering.files().collect(),
            Stage::Syncing(whole)
            | Stage::Opening(whole)
            | Stage::Opened(whole, ..)
            | Stage::Placed(whole) => whole.files().collect(),
            Stage::Between => Vec::new(),
        }
    }

    /// What was sent last may not have arrived.
    pub(super) fn ask_soon(&mut self, now: Monotonic) {
        self.ask_after = ASK_AGAIN / 4;
        self.ask_at = now.plus(self.ask_after);
    }

    fn stands_still(&self, now: Monotonic) -> bool {
        self.gathers() && self.heard.plus(STANDS_STILL) <= now
    }
}

impl ShardEngine {
    /// The group may have been offered a checkpoint that it needs. It is offered again as long as it
    /// does, so that nothing is lost by not taking it up.
    pub(super) fn take_offer(&mut self, slot: usize) {
        let Some((from, base)) = self.groups[slot].raft.take_offer() else {
            return;
        };
        let now = self.now.mono;
        if !self.may_install(slot) {
            return;
        }
        let makes_room = |under_way: &Receiving| {
            let is_of_another = under_way.slot == slot && under_way.from != from;
            under_way.stands_still(now) || (under_way.gathers() && is_of_another)
        };
        let is_free = self.installs.receiving.as_ref().is_none_or(makes_room);
        // A node and what is below it must be told alike.
        if is_free && !self.checkpoints.is_placing() {
            self.begin_install(slot, from);
        } else {
            self.installs.offered.insert(slot, (from, base));
        }
    }

    /// Whether a checkpoint of another node may be asked for. A group that is mended gets one although the disk
    /// is full: nothing of the shard goes before it is known what that group needs.
    pub(super) fn may_install(&self, slot: usize) -> bool {
        let group = &self.groups[slot];
        group.takes_checkpoints()
            && !group.is_tried_anew()
            && !self.stopping()
            && (!self.disk_full || group.mending.is_some())
            && !self.installs.put_off.contains_key(&slot)
    }

    /// What was offered while another was under way begins as soon as that is done: a node that has just
    /// been added needs a checkpoint of every group.
    fn begin_offered(&mut self) {
        while self.installs.receiving.is_none()
            && !self.checkpoints.is_placing()
            && let Some((slot, (from, base))) = self.installs.offered.pop_first()
        {
            let raft = &self.groups[slot].raft;
            // Who leads by now offers its own.
            let needs_it = raft.log().applied() < base.0 && raft.leader() == Some(from);
            if needs_it && self.may_install(slot) {
                self.begin_install(slot, from);
            }
        }
    }

    pub(super) fn begin_install(&mut self, slot: usize, from: Voter) {
        let now = self.now.mono;
        self.break_off_install();
        self.installs.offered.remove(&slot);
        self.installs.asked += 1;
        let partly = match self.installs.set_aside.take_if(|it| it.slot == slot) {
            Some(aside) => aside.partly,
            None => {
                self.forget_set_aside();
                Partly::new()
            }
        };
        let (group, me) = (&self.groups[slot], self.config.me());
        let is_rotten = self.installs.rotten.contains(&slot) || group.is_given_up();
        let own = match is_rotten {
            true => JobQueue::new(group.id, 0).freeze(),
            false => group.queue.freeze(),
        };
        let gathering = Gathering::new(group, me, own, partly);
        self.installs.receiving = Some(Receiving {
            slot,
            from,
            id: u64::from(self.config.start_number) << 32 | u64::from(self.installs.asked),
            stage: Stage::Gathering(Box::new(gathering)),
            next: 0,
            told: 0,
            holds: false,
            ask_at: now,
            ask_after: ASK_AGAIN,
            heard: now,
        });
        self.ask(false);
    }

    /// Asks for the next parts, and tells what is wanted; all that has not come if it is asked `again`.
    fn ask(&mut self, again: bool) {
        let now = self.now.mono;
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        receiving.ask_at = now.plus(receiving.ask_after);
        receiving.holds = false;
        let mut wants: Vec<Wanted> = Vec::new();
        let mut wants_from = receiving.told;
        if let Stage::Gathering(gathering) = &mut receiving.stage {
            if again {
                wants = gathering.unanswered();
                wants_from -= wants.len() as u64;
            }
            wants.extend(gathering.wants(CHECKPOINT_WANTS_MAX - wants.len()));
            receiving.told = wants_from + wants.len() as u64;
        }
        let raft = &self.groups[receiving.slot].raft;
        let get = Checkpoint::Get {
            id: receiving.id,
            above: raft.log().applied(),
            next: receiving.next,
            again,
            wants_from,
            wants: wants.iter().map(page_wanted).collect(),
            done: !receiving.gathers(),
        };
        self.peers.send_last(raft.carry(receiving.from, get));
    }

    /// A part is here.
    pub(super) fn on_part(
        &mut self,
        slot: usize,
        (from, id): (Voter, u64),
        number: u64,
        bytes: &[u8],
    ) {
        let now = self.now.mono;
        let is_asked_for = |receiving: &&mut Receiving| {
            let place = (receiving.slot, receiving.from, receiving.id);
            place == (slot, from, id) && receiving.next == number && receiving.gathers()
        };
        let Some(receiving) = self.installs.receiving.as_mut().filter(is_asked_for) else {
            self.counters.checkpoint_parts_refused_total += 1;
            return;
        };
        receiving.next += 1;
        (receiving.heard, receiving.ask_after) = (now, ASK_AGAIN);
        receiving.holds = true;
        self.gather(|engine, gathering| engine.take_part_of(gathering, bytes));
    }

    /// Goes on with what gathers, and asks for what it needs next.
    fn gather(&mut self, go_on: impl FnOnce(&mut Self, &mut Gathering) -> Result<(), String>) {
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        let stage = std::mem::replace(&mut receiving.stage, Stage::Between);
        let Stage::Gathering(mut gathering) = stage else {
            receiving.stage = stage;
            return;
        };
        let (slot, id) = (receiving.slot, receiving.id);
        let gone_on = go_on(self, &mut gathering);
        let gone_on = gone_on.and_then(|()| self.compare(&mut gathering));
        if let Err(what) = gone_on {
            self.set_stage(Stage::Gathering(gathering));
            return self.install_failed(&what);
        }
        if gathering.is_whole() {
            return match self.end_gathering(*gathering) {
                Ok(whole) => {
                    self.set_stage(Stage::Syncing(Box::new(whole)));
                    // It needs not be held still there any more.
                    self.ask(false);
                }
                Err(what) => self.install_failed(&what),
            };
        }
        let wants = gathering.reads();
        if !wants.is_empty() {
            self.effects.push(Effect::LoadPages(PageOrder {
                group: self.groups[slot].id,
                wants,
                reader: Reader::Receiving { id },
            }));
        }
        let is_full = gathering.is_full();
        let has_wants = gathering.has_wants();
        self.set_stage(Stage::Gathering(gathering));
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        if (receiving.holds || has_wants) && !is_full {
            self.ask(false);
        }
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(receiving) = &mut self.installs.receiving {
            receiving.stage = stage;
        }
    }

    /// Parts of this node's own were read, or cannot be.
    pub(super) fn on_pages_of_install(&mut self, id: u64, result: Result<Vec<StoredPart>, Unread>) {
        let result = result.map_err(|unread| unread.what);
        let receiving = self.installs.receiving.as_mut();
        if let Some(receiving) = receiving.filter(|receiving| receiving.id == id) {
            receiving.heard = self.now.mono;
            self.gather(|_, gathering| {
                gathering.read(result);
                Ok(())
            });
        }
    }

    /// A chunk of what comes is on its way no more.
    pub(super) fn chunk_of_install_written(&mut self, round: u64, bytes: usize) {
        let aside = self.installs.set_aside.as_mut();
        if let Some(files) = aside.and_then(|aside| aside.partly.files_of_round(round)) {
            return files.chunk_written(bytes);
        }
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        if let Stage::Gathering(gathering) = &mut receiving.stage
            && let Some(files) = gathering.files_of_round(round)
        {
            files.chunk_written(bytes);
            receiving.heard = self.now.mono;
            if receiving.holds && !gathering.is_full() {
                self.ask(false);
            }
        }
    }

    /// Whether the files of a checkpoint that was brought here are synced under this number.
    pub(super) fn is_install(&self, round: u64) -> bool {
        let receiving = self.installs.receiving.as_ref();
        let stage = receiving.map(|receiving| &receiving.stage);
        matches!(stage, Some(Stage::Syncing(whole)) if whole.round == round)
    }

    /// They are: it is opened.
    pub(super) fn install_synced(&mut self) {
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        let stage = std::mem::replace(&mut receiving.stage, Stage::Between);
        if let Stage::Syncing(whole) = stage {
            self.effects.push(Effect::LoadGroup {
                group: whole.meta.group,
                bases: vec![whole.root],
                reader: GroupReader::Install { id: receiving.id },
            });
            receiving.stage = Stage::Opening(whole);
        } else {
            receiving.stage = stage;
        }
    }

    /// It was read, or cannot be: something that was here already is damaged, or what was written.
    pub(super) fn on_install_loaded(&mut self, id: u64, result: Result<GroupState, Unread>) {
        let receiving = self.installs.receiving.as_mut();
        let Some(receiving) = receiving.filter(|receiving| receiving.id == id) else {
            return;
        };
        let slot = receiving.slot;
        let stage = std::mem::replace(&mut receiving.stage, Stage::Between);
        let Stage::Opening(whole) = stage else {
            receiving.stage = stage;
            return;
        };
        let (group, meta) = (whole.meta.group, &whole.meta);
        let told = (meta.time, meta.machine_version, meta.wall_offset_ms);
        let opened = result.and_then(|state| {
            let files = state.files.first().cloned().unwrap_or_default();
            let what = match open_state(group, state.loaded) {
                Ok(queue) if told == (queue.time(), queue.version(), queue.wall_offset_ms()) => {
                    return Ok((queue, files));
                }
                Ok(_) => "its head is of another state".to_owned(),
                Err(what) => what,
            };
            let damaged = Vec::new();
            Err(Unread { what, damaged })
        });
        match opened {
            Ok((queue, files)) => receiving.stage = Stage::Opened(whole, files, Box::new(queue)),
            Err(mut unread) => {
                // What has just been written says nothing about what was here.
                unread.damaged.retain(|at| !whole.has_written(&at.stored));
                receiving.stage = Stage::Opening(whole);
                self.counters.checkpoint_installs_unread_total += 1;
                self.install_failed(&unread.what);
                let keeps_less = if unread.damaged.is_empty() || !self.can_mend(slot) {
                    self.installs.rotten.insert(slot)
                } else {
                    self.mend(slot, unread.parts());
                    true
                };
                // The next can be another outcome, and keeps nothing in the end.
                if keeps_less {
                    self.installs.put_off.remove(&slot);
                }
            }
        }
    }

    /// Goes on as far as nothing has to be waited for.
    pub(super) fn step_receiving(&mut self) {
        let now = self.now.mono;
        if self
            .installs
            .set_aside
            .as_ref()
            .is_some_and(|it| it.until <= now)
        {
            self.forget_set_aside();
        }
        self.begin_offered();
        self.begin_mending();
        let Some(receiving) = &self.installs.receiving else {
            return;
        };
        let slot = receiving.slot;
        let applied = self.groups[slot].raft.log().applied();
        let is_needed = match &receiving.stage {
            Stage::Gathering(gathering) => {
                let head = gathering.head();
                head.is_none_or(|head| head.index > applied)
            }
            Stage::Syncing(whole) | Stage::Opening(whole) | Stage::Opened(whole, ..) => {
                whole.meta.index > applied
            }
            Stage::Placed(_) | Stage::Between => true,
        };
        let is_heard = !receiving.gathers() || receiving.heard.plus(FORGET_AFTER) > now;
        let may_go_on = self.groups[slot].takes_checkpoints() && !self.stopping();
        // What is placed, the round sees to; what is being synced or read is waited for.
        let is_waited_for = matches!(
            receiving.stage,
            Stage::Placed(_) | Stage::Syncing(_) | Stage::Opening(_)
        );
        let goes_on = is_waited_for || (is_needed && may_go_on);
        if !goes_on {
            return self.give_up_install();
        }
        // Another member may be intact.
        let is_mended = self.groups[slot].mending.is_some();
        let is_there = self.peers.is_there(&receiving.from);
        let is_in_vain = receiving.gathers() && (receiving.stands_still(now) || !is_there);
        if !is_heard || (is_mended && is_in_vain) {
            return self.break_off_install();
        }
        if receiving.wants_a_turn() {
            self.gather(|_, _| Ok(()));
        }
        self.place_if_opened();
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        if receiving.ask_at <= now && receiving.holds {
            // What has come waits for the disk: more of it would only come twice.
            receiving.ask_at = now.plus(ASK_AT_LEAST);
        } else if receiving.ask_at <= now {
            let gathers = receiving.gathers();
            receiving.ask_after = match gathers {
                true => (2 * receiving.ask_after).min(ASK_AT_LEAST),
                false => ASK_AT_LEAST,
            };
            self.ask(gathers);
        }
    }

    fn place_if_opened(&mut self) {
        let may = self.checkpoints.is_idle() && !self.is_loading();
        let Some(receiving) = self.installs.receiving.as_mut().filter(|_| may) else {
            return;
        };
        let stage = std::mem::replace(&mut receiving.stage, Stage::Between);
        let Stage::Opened(whole, files, queue) = stage else {
            receiving.stage = stage;
            return;
        };
        let slot = receiving.slot;
        let (meta, root) = (whole.meta.clone(), whole.root);
        receiving.stage = Stage::Placed(whole);
        self.place_install(slot, (&meta, &root), files, queue);
    }

    /// Where the record of the new base may stand in the log, which has everything of the group that
    /// Raft knows. If it may, nothing is applied from here on until it is in force.
    pub(super) fn join_log(&mut self, slot: usize, base: Position) -> Joins {
        let takes_it = self.groups[slot].takes_checkpoints();
        if !takes_it || !self.groups[slot].raft.prepare_install(base) {
            return Joins::Never;
        }
        self.collect_ready(slot);
        let group = &mut self.groups[slot];
        let start = if group.raft.log().term_at(base.0) == Some(base.1) {
            group.bases[0].log_start_lsn
        } else if group.promise_ticket <= self.wal.durable_ticket() {
            self.wal.end_lsn()
        } else {
            return Joins::Later;
        };
        group.installing = true;
        Joins::At(start)
    }

    /// The BASE record is durable: the checkpoint is this group's state.
    pub(super) fn put_in_force(
        &mut self,
        slot: usize,
        base: BaseRecord,
        files: BaseFiles,
        queue: JobQueue,
    ) {
        let group = &mut self.groups[slot];
        let installed = Installed {
            base: (base.index, base.term),
            time: base.time,
            machine_version: base.machine_version,
            members: Membership::from_list(&base.members).expect("it was looked at when it came"),
        };
        // As the log has it: a base that its records do not lead to stands alone.
        let leads =
            |old: &BaseRecord| old.index < base.index && old.log_start_lsn == base.log_start_lsn;
        let mut led = group
            .bases
            .iter()
            .map(leads)
            .collect::<Vec<_>>()
            .into_iter();
        group
            .base_files
            .resize(group.bases.len(), BaseFiles::default());
        group.base_files.retain(|_| led.next() == Some(true));
        group.bases.retain(leads);
        group.base_files.insert(0, files);
        group.base_files.truncate(BASES_KEPT);
        group.bases.insert(0, base);
        group.bases.truncate(BASES_KEPT);
        let old = std::mem::replace(&mut group.queue, queue);
        self.effects
            .extend(Discarded::state(old).map(Effect::Discard));
        group.installing = false;
        group.raft.installed(installed);
        self.installs.rotten.remove(&slot);
        self.mended(slot);
        self.members_changed(slot);
        self.counters.checkpoints_installed_total += 1;
        self.end_install();
        self.mark(slot);
    }

    /// The checkpoint that is under way here is of no use. The group waits a while for the next.
    pub(super) fn install_failed(&mut self, what: &str) {
        if let Some(receiving) = &self.installs.receiving {
            let until = self.now.mono.plus(PUT_OFF);
            self.installs.put_off.insert(receiving.slot, until);
            self.counters.checkpoint_installs_failed_total += 1;
            let (group, from) = (self.groups[receiving.slot].id, receiving.from.node);
            let failure = format!("the checkpoint of group {group} from node {from}: {what}");
            self.installs.failure = Some(failure);
        }
        self.give_up_install();
    }

    /// The checkpoint that is under way here breaks off, if it still gathers; what was written of it stays for
    /// the next.
    pub(super) fn break_off_install(&mut self) {
        let receiving = self.installs.receiving.take_if(|it| it.gathers());
        let Some(Receiving { slot, stage, .. }) = receiving else {
            return;
        };
        self.forget_set_aside();
        if let Stage::Gathering(gathering) = stage {
            self.installs.set_aside = Some(SetAside {
                slot,
                partly: gathering.into_partly(),
                until: self.now.mono.plus(FORGET_AFTER),
            });
        }
    }

    /// What was set aside is of no more use.
    fn forget_set_aside(&mut self) {
        if let Some(aside) = self.installs.set_aside.take() {
            self.drop_files_of(aside.partly.own_files());
        }
    }

    /// The checkpoint that is under way here is given up, and its files go.
    pub(super) fn give_up_install(&mut self) {
        let Some(receiving) = self.installs.receiving.take() else {
            return;
        };
        let files = match receiving.stage {
            Stage::Gathering(gathering) => gathering.into_partly().own_files().to_vec(),
            Stage::Syncing(whole)
            | Stage::Opening(whole)
            | Stage::Opened(whole, ..)
            | Stage::Placed(whole) => whole.own_files().to_vec(),
            Stage::Between => Vec::new(),
        };
        if !files.is_empty() {
            self.drop_files_of(&files);
        }
    }

    /// Nothing is under way here any more.
    pub(super) fn end_install(&mut self) {
        self.installs.receiving = None;
    }
}
