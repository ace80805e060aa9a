//! A checkpoint of another node takes the place of the log entries that this one lacks.
//!
//! It is gathered in memory, checked against its hash, and made a state page by page, which checks it
//! again. The state goes to the disk as a checkpoint of this node's own. Only when the BASE record is
//! durable is it in force: then Raft is told, and says to the leader that it is here.
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
//! Deliberately absent: a state that does not fit into memory twice.

use super::engine::ShardEngine;
use super::group::Phase;
use super::installs::FORGET_AFTER;
use super::loading::BaseFiles;
use crate::base::checksum::{Hash128, Hasher128};
use crate::base::ids::{GroupId, JobId};
use crate::base::limits::BASES_KEPT;
use crate::base::units::{Lsn, Monotonic};
use crate::queue::view::PageKey;
use crate::queue::{JobQueue, MACHINE_VERSION, StateLoader, stored_pages};
use crate::raft::follower::Installed;
use crate::raft::membership::Membership;
use crate::raft::message::{Checkpoint, Position, Voter};
use crate::snapshot::layout::GroupMeta;
use crate::wal::record::BaseRecord;
use crate::wire::checkpoint::{CheckpointHead, CheckpointItem, ItemDecoder};
use bytes::Bytes;
use std::time::Duration;

/// A part that does not come is asked for again after this, and after twice as long the next time.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// But not less often than this; and so often while it is written, so that the log is kept.
const ASK_AT_LEAST: Duration = Duration::from_secs(2);
/// A transfer that stands still for so long makes room for the next offer.
const STANDS_STILL: Duration = Duration::from_secs(5);
/// A group whose checkpoint cannot be installed waits so long for the next.
const PUT_OFF: Duration = Duration::from_secs(5);
/// Pages that are taken in one step, most of 64 jobs.
const PAGES_PER_STEP: usize = 32;

/// A checkpoint on its way here.
pub(super) struct Receiving {
    slot: usize,
    from: Voter,
    id: u64,
    stage: Stage,
    /// The number of the next part.
    next: u64,
    ask_at: Monotonic,
    ask_after: Duration,
    /// When the last part came.
    heard: Monotonic,
}

enum Stage {
    Gathering(Box<Gathering>),
    Loading(Box<Loading>),
    /// It waits for the round under way, and until all groups of the shard are loaded.
    Loaded(GroupMeta, Box<JobQueue>),
    /// The checkpoint round has it.
    Writing,
}

#[derive(Default)]
struct Gathering {
    decoder: ItemDecoder,
    hasher: Hasher128,
    head: Option<CheckpointHead>,
    pages: Vec<(PageKey, Bytes)>,
    bodies: Vec<(JobId, Bytes)>,
}

struct Loading {
    head: CheckpointHead,
    loader: StateLoader,
    bodies: Vec<(JobId, Bytes)>,
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
    pub(super) fn loads(&self) -> bool {
        matches!(self.stage, Stage::Loading(_))
    }

    pub(super) fn next_deadline(&self) -> Monotonic {
        self.ask_at
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

impl Gathering {
    /// Takes the items of the next part.
    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.hasher.update(bytes);
        self.decoder.push(bytes);
        while let Some(item) = self
            .decoder
            .next_item()
            .map_err(|error| error.to_string())?
        {
            match (item, &self.head) {
                (CheckpointItem::Head(head), None) => self.head = Some(head),
                (CheckpointItem::Page(key, bytes), Some(_)) => self.pages.push((key, bytes)),
                (CheckpointItem::Body(job, bytes), Some(_)) => self.bodies.push((job, bytes)),
                _ => return Err("its head is missing, or twice there".to_owned()),
            }
        }
        Ok(())
    }

    /// All parts are here, and this is the hash of what was sent.
    fn finish(self, group: GroupId, hash: Hash128) -> Result<Loading, String> {
        if hash != self.hasher.finish() || !self.decoder.is_empty() {
            return Err("what arrived is not what was sent".to_owned());
        }
        let head = self.head.ok_or("it has no head")?;
        if head.machine_version > MACHINE_VERSION {
            let version = head.machine_version;
            return Err(format!("it needs machine version {version}"));
        }
        let mut bodies = self.bodies;
        bodies.sort_unstable_by_key(|body| body.0);
        if bodies.windows(2).any(|two| two[0].0 == two[1].0) {
            return Err("a body is twice there".to_owned());
        }
        let pages = stored_pages(self.pages);
        let loader = StateLoader::new(group, pages).map_err(|error| error.to_string())?;
        Ok(Loading {
            head,
            loader,
            bodies,
        })
    }
}

impl Loading {
    /// Takes the next few pages; whether all are taken.
    fn step(&mut self) -> Result<bool, String> {
        let bodies = &self.bodies;
        let mut find = |job: JobId| {
            let at = bodies.binary_search_by_key(&job, |body| body.0).ok()?;
            Some(bodies[at].1.clone())
        };
        let taken = self.loader.step(PAGES_PER_STEP, &mut find);
        taken.map_err(|error| error.to_string())
    }

    fn finish(self) -> Result<(CheckpointHead, JobQueue), String> {
        let queue = self.loader.finish().map_err(|error| error.to_string())?;
        let told = (
            self.head.time,
            self.head.machine_version,
            self.head.wall_offset_ms,
        );
        if told != (queue.time(), queue.version(), queue.wall_offset_ms()) {
            return Err("its head is of another state".to_owned());
        }
        // Dead ones have bodies too.
        if queue.freeze().live_jobs() != self.bodies.len() as u64 {
            return Err("it has bodies of jobs that are not live".to_owned());
        }
        Ok((self.head, queue))
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
        if is_free {
            self.begin_install(slot, from);
        } else {
            self.installs.offered.insert(slot, (from, base));
        }
    }

    fn may_install(&self, slot: usize) -> bool {
        self.groups[slot].phase == Phase::Serving
            && !self.stopping()
            && !self.disk_full
            && !self.installs.put_off.contains_key(&slot)
    }

    /// What was offered while another was under way begins as soon as that is done: a node that has just
    /// been added needs a checkpoint of every group.
    fn begin_offered(&mut self) {
        while self.installs.receiving.is_none()
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

    fn begin_install(&mut self, slot: usize, from: Voter) {
        let now = self.now.mono;
        self.installs.offered.remove(&slot);
        self.installs.asked += 1;
        self.installs.receiving = Some(Receiving {
            slot,
            from,
            id: u64::from(self.config.start_number) << 32 | u64::from(self.installs.asked),
            stage: Stage::Gathering(Box::default()),
            next: 0,
            ask_at: now,
            ask_after: ASK_AGAIN,
            heard: now,
        });
        self.ask(false);
    }

    /// Asks for the next parts.
    fn ask(&mut self, again: bool) {
        let now = self.now.mono;
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        receiving.ask_at = now.plus(receiving.ask_after);
        let raft = &self.groups[receiving.slot].raft;
        let get = Checkpoint::Get {
            id: receiving.id,
            above: raft.log().applied(),
            next: receiving.next,
            again,
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
        hash: Option<Hash128>,
    ) {
        let now = self.now.mono;
        let group = self.groups[slot].id;
        let asked_for = |under_way: &&mut Receiving| {
            (under_way.slot, under_way.from, under_way.id) == (slot, from, id)
                && under_way.next == number
        };
        let Some(receiving) = self.installs.receiving.as_mut().filter(asked_for) else {
            self.counters.checkpoint_parts_refused_total += 1;
            return;
        };
        let Stage::Gathering(gathering) = &mut receiving.stage else {
            self.counters.checkpoint_parts_refused_total += 1;
            return;
        };
        receiving.next += 1;
        (receiving.heard, receiving.ask_after) = (now, ASK_AGAIN);
        if let Err(what) = gathering.take(bytes) {
            return self.install_failed(&what);
        }
        if let Some(hash) = hash {
            match std::mem::take(gathering).finish(group, hash) {
                Ok(loading) => receiving.stage = Stage::Loading(Box::new(loading)),
                Err(what) => return self.install_failed(&what),
            }
        }
        self.ask(false);
    }

    /// Goes on as far as nothing has to be waited for.
    pub(super) fn step_receiving(&mut self) {
        self.begin_offered();
        let now = self.now.mono;
        let Some(receiving) = &self.installs.receiving else {
            return;
        };
        let slot = receiving.slot;
        let log = self.groups[slot].raft.log();
        let is_needed = match &receiving.stage {
            Stage::Gathering(gathering) => {
                let head = gathering.head.as_ref();
                let is_ahead = head.is_none_or(|head| head.index > log.applied());
                is_ahead && receiving.heard.plus(FORGET_AFTER) > now
            }
            Stage::Loading(loading) => loading.head.index > log.applied(),
            Stage::Loaded(meta, _) => meta.index > log.applied(),
            Stage::Writing => true,
        };
        let may_go_on = self.groups[slot].phase == Phase::Serving && !self.stopping();
        // What is being written, the round sees to.
        let is_writing = matches!(receiving.stage, Stage::Writing);
        if !(is_writing || is_needed && may_go_on) {
            return self.end_install();
        }
        self.load_and_write();
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        if receiving.ask_at <= now {
            let gathers = receiving.gathers();
            receiving.ask_after = match gathers {
                true => (2 * receiving.ask_after).min(ASK_AT_LEAST),
                false => ASK_AT_LEAST,
            };
            self.ask(gathers);
        }
    }

    fn load_and_write(&mut self) {
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        if let Stage::Loading(loading) = &mut receiving.stage {
            match loading.step() {
                Ok(true) => return self.finish_loading(),
                Ok(false) => {}
                Err(what) => return self.install_failed(&what),
            }
        }
        let is_loaded = matches!(receiving.stage, Stage::Loaded(..));
        if !is_loaded || !self.checkpoints.is_idle() || self.is_loading() {
            return;
        }
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        let slot = receiving.slot;
        let stage = std::mem::replace(&mut receiving.stage, Stage::Writing);
        if let Stage::Loaded(meta, queue) = stage {
            self.start_install(slot, meta, queue);
        }
    }

    fn finish_loading(&mut self) {
        let me = self.config.me();
        let Some(receiving) = &mut self.installs.receiving else {
            return;
        };
        let stage = std::mem::replace(&mut receiving.stage, Stage::Writing);
        let Stage::Loading(loading) = stage else {
            unreachable!("only what loads is finished");
        };
        let group = &self.groups[receiving.slot];
        let (head, queue) = match loading.finish() {
            Ok((head, _)) if !is_member(&head, me) => {
                return self.install_failed("this node is no member in it");
            }
            Ok(loaded) => loaded,
            Err(what) => return self.install_failed(&what),
        };
        let meta = GroupMeta {
            group: group.id,
            incarnation: group.incarnation,
            index: head.index,
            term: head.term,
            time: head.time,
            machine_version: head.machine_version,
            wall_offset_ms: head.wall_offset_ms,
            members: head.members,
        };
        receiving.stage = Stage::Loaded(meta, Box::new(queue));
    }

    /// Where the record of the new base may stand in the log, which has everything of the group that
    /// Raft knows. If it may, nothing is applied from here on until it is in force.
    pub(super) fn join_log(&mut self, slot: usize, base: Position) -> Joins {
        let is_serving = self.groups[slot].phase == Phase::Serving;
        if !is_serving || !self.groups[slot].raft.prepare_install(base) {
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
        group.queue = queue;
        group.installing = false;
        group.raft.installed(installed);
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
        self.end_install();
    }

    /// Nothing is under way here any more.
    pub(super) fn end_install(&mut self) {
        self.installs.receiving = None;
    }
}

/// Whether the members of a checkpoint make sense, and this node is one of them.
fn is_member(head: &CheckpointHead, me: Voter) -> bool {
    Membership::from_list(&head.members).is_ok_and(|members| members.contains(me))
}
