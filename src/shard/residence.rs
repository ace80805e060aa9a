//! Pages that a group needs and that are on the disk alone: asked for, taken in, and let go of when memory
//! is short.
//!
//! An entry that needs such a page waits with all behind it; its group alone waits. Reads wait by themselves:
//! what one asks for never keeps an entry waiting, nor entries a read. What is read may be out of date when it
//! comes, or its file dropped: then it is asked for again by what is true by then. Only what cannot be read
//! twice over is damaged: it comes from another member (`mending`). Where nobody else votes the group stops
//! if an entry needs it; a read is refused.

use super::bases::damaged;
use super::effect::{Effect, PageOrder, Reader};
use super::engine::ShardEngine;
use super::group::Phase;
use super::loading::Unread;
use super::reads::Held;
use super::requests::Refusal;
use crate::base::code::Code;
use crate::base::ids::{GroupId, LogIndex, Term};
use crate::queue::command::Command;
use crate::queue::{PAGES_AHEAD, PAGES_AHEAD_AT_FIRST, PageWant, StoredPart};
use crate::wire::message::RequestBody;

/// Memory that is freed in one step.
const LET_GO_BYTES: u64 = 4 << 20;
/// Memory that groups whose reads wait may have beyond what all may.
const READS_BYTES_MAX: u64 = 64 << 20;

/// What somebody in a group waits for.
#[derive(Clone, Copy, Default)]
pub(super) struct PagesWanted {
    /// Pages are being read.
    under_way: bool,
    /// They could not be read.
    failed: bool,
}

/// What a group waits for.
#[derive(Default)]
pub(super) struct Waiting {
    /// The next entry.
    apply: PagesWanted,
    /// The reads that are held.
    reads: PagesWanted,
    /// How often an entry has waited.
    entries_waited: u32,
}

impl Waiting {
    /// Whether the next entry has to wait.
    pub(super) fn apply_waits(&self) -> bool {
        self.apply.under_way
    }

    /// How many pages are read at once for entries that take jobs one after the other: more each time they
    /// come to some that are not here.
    pub(super) fn ahead(&self) -> usize {
        let doublings = self.entries_waited.min(PAGES_AHEAD.ilog2());
        PAGES_AHEAD.min(PAGES_AHEAD_AT_FIRST << doublings)
    }

    fn of(&mut self, reader: Reader) -> &mut PagesWanted {
        match reader {
            Reader::Reads => &mut self.reads,
            _ => &mut self.apply,
        }
    }
}

impl ShardEngine {
    /// The command of the entry that is next, if all that it needs is here. Else that is asked for, and the
    /// command is kept.
    pub(super) fn unless_pages_lack(
        &mut self,
        slot: usize,
        (index, term): (LogIndex, Term),
        wants: Vec<PageWant>,
        command: Command,
    ) -> Option<Command> {
        if wants.is_empty() {
            return Some(command);
        }
        let group = &mut self.groups[slot];
        group.proposed.put_back(index, term, command);
        group.pages.entries_waited = group.pages.entries_waited.saturating_add(1);
        self.read_pages(slot, Reader::Apply, wants);
        None
    }

    /// Asks for pages of a group, unless some are on their way to the same.
    fn read_pages(&mut self, slot: usize, reader: Reader, wants: Vec<PageWant>) {
        let group = &mut self.groups[slot];
        let wanted = group.pages.of(reader);
        if !std::mem::replace(&mut wanted.under_way, true) {
            self.effects.push(Effect::LoadPages(PageOrder {
                group: group.id,
                wants,
                reader,
            }));
        }
    }

    /// Reads what the first entries will need, in one go. They wait for it: each would ask for the same.
    pub(super) fn read_ends(&mut self, slot: usize) {
        let wants = self.groups[slot].queue.pages_of_ends();
        if !wants.is_empty() {
            self.read_pages(slot, Reader::Apply, wants);
        }
    }

    /// Whether a read needs pages that are not here, which are asked for.
    pub(super) fn needs_pages(&mut self, slot: usize, read: &Held) -> bool {
        let queue = &self.groups[slot].queue;
        let wants = match read {
            Held::Queue(uid) => queue.pages_of_queue(*uid),
            Held::Read(body) => match body {
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
        let needs = !wants.is_empty();
        if needs {
            self.read_pages(slot, Reader::Reads, wants);
        }
        needs
    }

    /// Goes on with the reads that waited for pages.
    pub(super) fn answer_held(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        if group.pages.reads.under_way {
            return;
        }
        for (from, request, held) in group.reads.take_held() {
            self.answer_when_here(slot, (from, request), held);
        }
    }

    /// Pages were read, or cannot be.
    pub(super) fn on_pages_loaded(
        &mut self,
        group: GroupId,
        reader: Reader,
        result: Result<Vec<StoredPart>, Unread>,
    ) {
        match reader {
            Reader::Apply | Reader::Reads if self.checkpoints.is_placing() => {
                self.late_pages.push((self.slot(group), reader, result));
            }
            Reader::Apply | Reader::Reads => self.take_pages(self.slot(group), reader, result),
            Reader::Round(round) => self.on_pages_of_round(round, result),
            Reader::Sending { to, id } => self.on_pages_to_send(self.slot(group), (to, id), result),
            Reader::Receiving { id } => self.on_pages_of_install(id, result),
        }
    }

    /// Takes in what was read while a round was placed. Of that, what the round has moved is asked for again.
    pub(super) fn take_late_pages(&mut self) {
        for (slot, reader, result) in std::mem::take(&mut self.late_pages) {
            self.take_pages(slot, reader, result);
        }
    }

    fn take_pages(&mut self, slot: usize, reader: Reader, result: Result<Vec<StoredPart>, Unread>) {
        let group = &mut self.groups[slot];
        let wanted = group.pages.of(reader);
        let before = std::mem::take(wanted);
        if group.phase != Phase::Serving {
            return;
        }
        let queue = &mut group.queue;
        let taken = result.and_then(|parts| {
            parts.into_iter().try_fold(0, |count, part| {
                let at = part.at;
                let taken = queue.take_part(part).map_err(|error| Unread {
                    what: error.to_string(),
                    damaged: vec![at],
                })?;
                Ok(count + u64::from(taken))
            })
        });
        match taken {
            Ok(count) => {
                self.counters.pages_read_total += count;
                self.may_let_go = true;
            }
            // A file may have been dropped since it was asked for, and a read may fail in passing.
            Err(_) if !before.failed => wanted.failed = true,
            Err(unread) if self.can_mend(slot) => self.mend(slot, unread.parts()),
            Err(unread) => {
                let why = damaged(self.groups[slot].id, &unread.what);
                return self.cannot_read(slot, reader, &why);
            }
        }
        self.mark(slot);
    }

    /// Pages are damaged, and nobody else has them: the group cannot go on without them, or those who asked to
    /// read them are told.
    fn cannot_read(&mut self, slot: usize, reader: Reader, why: &str) {
        if reader == Reader::Apply {
            return self.halt(slot, why);
        }
        for (from, request, _) in self.groups[slot].reads.take_held() {
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
            // What waits may need what is here already.
            let may_read = group.pages.reads.under_way && too_much <= READS_BYTES_MAX;
            if group.pages.apply.under_way || may_read {
                self.lets_go += 1;
                continue;
            }
            let gone = group.queue.let_go(left);
            freed += gone;
            left = left.saturating_sub(gone);
            self.count_held(slot);
            if left == 0 {
                break;
            }
            self.lets_go += 1;
        }
        self.counters.pages_let_go_bytes_total += freed;
        // What can go next is what the next checkpoint stores, or what is read.
        self.may_let_go = freed >= too_much.min(LET_GO_BYTES) && freed < too_much;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_often_entries_wait_the_more_is_read_ahead_of_them() {
        let ahead = |entries_waited| {
            let waiting = Waiting {
                entries_waited,
                ..Waiting::default()
            };
            waiting.ahead()
        };
        assert_eq!([0, 1, 2, 3, 4, u32::MAX].map(ahead), [2, 4, 8, 16, 16, 16]);
    }
}
