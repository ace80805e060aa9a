//! Pages that a group needs and that are on the disk alone: asked for, taken in, and let go of when memory
//! is short.
//!
//! An entry that needs such a page waits with all behind it; its group alone waits. A read that needs one
//! waits by itself. What is read may be out of date when it comes, or its file dropped: then it is asked for
//! again by what is true by then. Only what cannot be read twice over is damaged: the group stops if an entry
//! needs it; a read is refused.

use super::bases::damaged;
use super::effect::{Effect, PageOrder, Reader};
use super::engine::ShardEngine;
use super::group::Phase;
use super::input::Origin;
use super::requests::Refusal;
use crate::base::code::Code;
use crate::base::ids::{GroupId, LogIndex, QueueUid, Term};
use crate::queue::command::Command;
use crate::queue::{PageWant, StoredPart};
use crate::wire::message::RequestBody;
use std::collections::VecDeque;

/// Memory that is freed in one step.
const LET_GO_BYTES: u64 = 4 << 20;

/// What a group waits for.
#[derive(Default)]
pub(super) struct PagesWanted {
    /// Some are being read.
    under_way: bool,
    /// The next entry cannot be applied without some.
    apply_waits: bool,
    /// How often in a row they could not be read.
    failures: u32,
    /// Reads that wait.
    held: VecDeque<(Origin, u64, Held)>,
}

/// A read that waits for pages.
pub(super) enum Held {
    /// Of a client.
    Read(RequestBody),
    /// The queue that a command has made or changed.
    Queue(QueueUid),
}

impl PagesWanted {
    /// Whether the next entry has to wait.
    pub(super) fn apply_waits(&self) -> bool {
        self.apply_waits && self.under_way
    }

    /// All reads that wait: who asked, and which request.
    pub(super) fn take_held(&mut self) -> impl Iterator<Item = (Origin, u64)> {
        let held = std::mem::take(&mut self.held).into_iter();
        held.map(|(from, request, _)| (from, request))
    }
}

impl ShardEngine {
    /// Whether the command of the entry that is next needs nothing that is not here. If it does, that is
    /// asked for, and the command is kept.
    pub(super) fn has_pages(
        &mut self,
        slot: usize,
        (index, term): (LogIndex, Term),
        wants: Vec<PageWant>,
        command: Command,
    ) -> Option<Command> {
        let group = &mut self.groups[slot];
        group.pages.apply_waits = !wants.is_empty();
        if wants.is_empty() {
            return Some(command);
        }
        group.proposed.put_back(index, term, command);
        self.read_pages(slot, wants);
        None
    }

    /// Asks for pages of a group, unless some are on their way.
    fn read_pages(&mut self, slot: usize, wants: Vec<PageWant>) {
        let group = &mut self.groups[slot];
        if !std::mem::replace(&mut group.pages.under_way, true) {
            self.effects.push(Effect::LoadPages(PageOrder {
                group: group.id,
                wants,
                reader: Reader::Group,
            }));
        }
    }

    /// Whether a read needs pages that are not here. It is held then.
    pub(super) fn is_held(
        &mut self,
        slot: usize,
        (from, request): (Origin, u64),
        held: &mut Option<Held>,
    ) -> bool {
        let queue = &self.groups[slot].queue;
        let wants = match held {
            None => return false,
            Some(Held::Queue(uid)) => queue.pages_of_queue(*uid),
            Some(Held::Read(body)) => match body {
                RequestBody::GetJob { job } | RequestBody::WaitJob { job, .. } => {
                    queue.pages_of_job(*job)
                }
                RequestBody::GetJobByKey {
                    queue: uid,
                    partition,
                    key,
                    ..
                } => queue.pages_of_key(*uid, *partition, key),
                RequestBody::Peek {
                    queue: uid,
                    partition,
                    state,
                    limit,
                    ..
                } => {
                    let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
                    queue.pages_of_peek(*uid, *partition, *state, limit)
                }
                RequestBody::ScanJobs { scan, .. } => queue.pages_of_scan(scan),
                RequestBody::GetPartition {
                    queue: uid,
                    partition,
                    ..
                } => queue.pages_of_stats(*uid, *partition),
                RequestBody::ListQueues { .. } => queue.pages_of_queues(),
                _ => Vec::new(),
            },
        };
        if wants.is_empty() {
            return false;
        }
        let held = held.take().expect("it was just looked at");
        let pages = &mut self.groups[slot].pages;
        pages.held.push_back((from, request, held));
        self.read_pages(slot, wants);
        true
    }

    /// Goes on with the reads that waited for pages.
    pub(super) fn answer_held(&mut self, slot: usize) {
        let pages = &mut self.groups[slot].pages;
        if pages.under_way || pages.held.is_empty() {
            return;
        }
        for (from, request, held) in std::mem::take(&mut pages.held) {
            // The connection may have closed.
            if !from.is_engine() && !self.conns.contains_key(&from) {
                continue;
            }
            match held {
                Held::Read(body) => self.answer_or_refuse(slot, (from, request), body),
                Held::Queue(uid) => self.reply_queue(slot, from, request, uid),
            }
        }
    }

    /// Pages were read, or cannot be.
    pub(super) fn on_pages_loaded(
        &mut self,
        group: GroupId,
        reader: Reader,
        result: Result<Vec<StoredPart>, String>,
    ) {
        match reader {
            Reader::Group if self.checkpoints.is_placing() => {
                self.late_pages.push((self.slot(group), result));
            }
            Reader::Group => self.take_pages(self.slot(group), result),
            Reader::Round(round) => self.on_pages_of_round(round, result),
            Reader::Sending { to, id } => self.on_pages_to_send(self.slot(group), (to, id), result),
        }
    }

    /// Takes in what was read while a round was placed. Of that, what the round has moved is asked for again.
    pub(super) fn take_late_pages(&mut self) {
        for (slot, result) in std::mem::take(&mut self.late_pages) {
            self.take_pages(slot, result);
        }
    }

    fn take_pages(&mut self, slot: usize, result: Result<Vec<StoredPart>, String>) {
        let group = &mut self.groups[slot];
        group.pages.under_way = false;
        if group.phase != Phase::Serving {
            return;
        }
        let queue = &mut group.queue;
        let taken = result.and_then(|parts| {
            let taken = parts.iter().try_fold(0, |count, part| {
                let taken = queue.take_part(part)?;
                Ok(count + u64::from(taken))
            });
            taken.map_err(|error: crate::queue::PageError| error.to_string())
        });
        match taken {
            Ok(count) => {
                group.pages.failures = 0;
                self.counters.pages_read_total += count;
                self.may_let_go = true;
            }
            // A file may have been dropped since it was asked for, and a read may fail in passing.
            Err(_) if group.pages.failures == 0 => group.pages.failures = 1,
            Err(what) => {
                let why = damaged(group.id, &what);
                return self.cannot_read(slot, &why);
            }
        }
        self.mark(slot);
    }

    /// Pages are damaged: the group cannot go on if the next entry needs them, and who asked to read them is
    /// told.
    fn cannot_read(&mut self, slot: usize, why: &str) {
        let pages = &mut self.groups[slot].pages;
        if pages.apply_waits {
            return self.halt(slot, why);
        }
        pages.failures = 0;
        let held: Vec<_> = pages.take_held().collect();
        for (from, request) in held {
            self.refuse(from, request, &Refusal::new(Code::GroupHalted, why));
        }
    }

    /// Lets go of pages while more is in memory than is to be, a few at a time.
    pub(super) fn let_go_of_pages(&mut self) {
        let held: u64 = self.counters.jobs_held_bytes;
        let may = self.may_let_go && !self.checkpoints.is_placing();
        if !may || held <= self.config.jobs_held_bytes_max {
            return;
        }
        let too_much = held - self.config.jobs_held_bytes_max;
        let mut left = too_much.min(LET_GO_BYTES);
        let mut freed = 0;
        for _ in 0..self.groups.len() {
            let slot = self.lets_go % self.groups.len();
            let group = &mut self.groups[slot];
            // What it waits for may need what it has already.
            if group.pages.under_way {
                self.lets_go += 1;
                continue;
            }
            let gone = group.queue.let_go(left);
            freed += gone;
            left = left.saturating_sub(gone);
            group.held_bytes -= gone;
            if left == 0 {
                break;
            }
            self.lets_go += 1;
        }
        self.counters.jobs_held_bytes -= freed;
        self.counters.pages_let_go_bytes_total += freed;
        // What can go next is what the next checkpoint stores, or what is read.
        self.may_let_go = freed >= too_much.min(LET_GO_BYTES) && freed < too_much;
    }
}
