//! The log of one group as its member sees it: entries above a base, and four marks.
//!
//! ```text
//!   base ........ applied ........ committed ........ last
//!                     stable is somewhere in [base, last]
//! ```
//!
//! Entries at or below `base` live only in a checkpoint. The entries here are shared, not copied:
//! the log batch, the apply loop and this list hold the same payload. Deliberately absent: reading
//! entries back from disk; the engine calls [`RaftLog::compact`] for what nobody needs any more.
//!
//! A follower's tail may be replaced (`RaftLog::follow`), never at or below `committed`. `taken` and
//! `stable` fall with it, and a completion for a replaced entry is void by its term (trap R15).

use crate::base::bugs::{self, Bug};
use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{LogIndex, Term};
use crate::raft::message::{Entries, Position};
use std::collections::VecDeque;

/// Entries and marks of one group.
#[derive(Clone, Debug)]
pub struct RaftLog {
    /// The index and term just below the first entry held.
    base: Position,
    entries: VecDeque<Entry>,
    /// The entries that change the members, rising: a start must not walk the log for them.
    changes: VecDeque<LogIndex>,
    /// Entries up to here were handed out to be written.
    taken: LogIndex,
    stable: LogIndex,
    committed: LogIndex,
    applied: LogIndex,
    /// Payload bytes above `applied`.
    unapplied_bytes: usize,
    /// What all entries take.
    held_bytes: usize,
}

impl RaftLog {
    /// The log of a member that starts: `entries` are durable and follow `base` without a gap.
    ///
    /// # Panics
    /// If the entries are not dense or their terms fall: recovery has checked both.
    #[must_use]
    pub fn new(base: Position, entries: Vec<Entry>) -> Self {
        let mut before = base;
        let mut changes = VecDeque::new();
        for entry in &entries {
            assert!(
                entry.index == before.0.next() && entry.term >= before.1,
                "entry {}@{} does not follow {}@{}",
                entry.index,
                entry.term,
                before.0,
                before.1
            );
            before = (entry.index, entry.term);
            changes.extend(change_in(entry));
        }
        let unapplied_bytes = entries.iter().map(|entry| entry.payload.len()).sum();
        let held_bytes = entries.iter().map(Entry::held_bytes).sum();
        Self {
            base,
            entries: entries.into(),
            changes,
            taken: before.0,
            stable: before.0,
            committed: base.0,
            applied: base.0,
            unapplied_bytes,
            held_bytes,
        }
    }

    /// The index of the last entry, or the base's.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        LogIndex(self.base.0.0 + self.entries.len() as u64)
    }

    /// The term of the last entry, or the base's.
    #[must_use]
    pub fn last_term(&self) -> Term {
        self.entries.back().map_or(self.base.1, |entry| entry.term)
    }

    /// The last entry, or the base.
    #[must_use]
    pub fn last(&self) -> Position {
        (self.last_index(), self.last_term())
    }

    /// The last entry, if one is held.
    #[must_use]
    pub fn last_entry(&self) -> Option<&Entry> {
        self.entries.back()
    }

    /// What lies just below the first entry held.
    #[must_use]
    pub fn base(&self) -> Position {
        self.base
    }

    /// The last entry that is committed, or the base.
    #[must_use]
    pub fn last_committed(&self) -> Position {
        let term = self.term_at(self.committed);
        (self.committed, term.expect("committed entries are held"))
    }

    /// Whether a log that ends at `last` has all that this one may have committed (thesis 3.6.1).
    #[must_use]
    pub fn is_behind_or_at(&self, last: Position) -> bool {
        (last.1, last.0) >= (self.last_term(), self.last_index())
    }

    /// The first change of the members that the log holds.
    #[must_use]
    pub fn first_change(&self) -> Option<LogIndex> {
        self.changes.front().copied()
    }

    /// The last change of the members that the log holds, or the base.
    #[must_use]
    pub fn last_change(&self) -> LogIndex {
        self.changes.back().copied().unwrap_or(self.base.0)
    }

    /// Whether a change of the members is committed and not applied.
    #[must_use]
    pub fn has_unapplied_change(&self) -> bool {
        let mut changes = self.changes.iter();
        changes.any(|index| (self.applied.next()..=self.committed).contains(index))
    }

    /// Whether what was not handed out to be written changes the members.
    #[must_use]
    pub(super) fn has_unwritten_change(&self) -> bool {
        self.changes
            .back()
            .is_some_and(|change| *change > self.taken)
    }

    /// Durable up to here.
    #[must_use]
    pub fn stable(&self) -> LogIndex {
        self.stable
    }

    /// Committed up to here.
    #[must_use]
    pub fn committed(&self) -> LogIndex {
        self.committed
    }

    /// Applied up to here.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Payload bytes that are in the log and not yet applied.
    #[must_use]
    pub fn unapplied_bytes(&self) -> usize {
        self.unapplied_bytes
    }

    /// The term at `index`; `None` below the base or above the last entry.
    #[must_use]
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// The last entry at or below `index` whose term is at most `term`, or the base: if a log that has
    /// an entry of `term` at `index` agrees with this one anywhere, then not above that. So a whole term
    /// is skipped at once (thesis 3.5, end).
    #[must_use]
    pub fn hint(&self, index: LogIndex, term: Term) -> Position {
        // Terms never fall along the log.
        let count = self.entries.partition_point(|entry| entry.term <= term) as u64;
        let index = index.min(LogIndex(self.base.0.0 + count)).max(self.base.0);
        let term = self.term_at(index);
        (index, term.expect("the index is within the log"))
    }

    /// Entries from `first` on, which is held: as many as take so many bytes
    /// ([`Entry::held_bytes`]), at least one if there is one.
    #[must_use]
    pub fn slice(&self, first: LogIndex, bytes_max: usize) -> Entries {
        let mut bytes = 0;
        let entries = self.entries.range(self.offset(first)..);
        let fitting = entries.take_while(|entry| {
            let is_first = bytes == 0;
            bytes += entry.held_bytes();
            is_first || bytes <= bytes_max
        });
        fitting.cloned().collect()
    }

    /// Where an entry stands in the list, or would.
    fn offset(&self, index: LogIndex) -> usize {
        let offset = index.0.checked_sub(self.base.0.0 + 1);
        let offset = offset.expect("the index lies above the base");
        usize::try_from(offset).expect("entries are in memory")
    }

    fn entry(&self, index: LogIndex) -> Option<&Entry> {
        let offset = index.0.checked_sub(self.base.0.0 + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// Appends an entry of the leader.
    pub(super) fn append(&mut self, entry: Entry) {
        assert!(
            entry.index == self.last_index().next(),
            "entry {} appended behind {}",
            entry.index,
            self.last_index()
        );
        self.unapplied_bytes += entry.payload.len();
        self.held_bytes += entry.held_bytes();
        self.changes.extend(change_in(&entry));
        self.entries.push_back(entry);
    }

    /// Takes the entries of a leader that follow `prev`; the last of them, or `prev`. What contradicts
    /// them goes; what is here already, or more, stays: the message may be an old one.
    ///
    /// # Errors
    /// If `prev` is not here: where the logs may agree, see [`Self::hint`]. The log is untouched.
    ///
    /// # Panics
    /// If `prev` lies below what is committed, see [`Self::contradicts`].
    pub(super) fn follow(
        &mut self,
        prev: Position,
        entries: Entries,
    ) -> Result<LogIndex, Position> {
        assert!(
            prev.0 >= self.committed,
            "entries behind {} could replace what is committed up to {}",
            prev.0,
            self.committed
        );
        if self.term_at(prev.0) != Some(prev.1) {
            return Err(self.hint(prev.0, prev.1));
        }
        let last = entries.last().map_or(prev.0, |entry| entry.index);
        for entry in entries {
            match self.term_at(entry.index) {
                Some(term) if term == entry.term => {}
                Some(_) => {
                    self.cut_from(entry.index);
                    self.append(entry);
                }
                None => self.append(entry),
            }
        }
        Ok(last)
    }

    /// The first committed entry here that a leader's entries behind `prev` contradict. There cannot be
    /// one (thesis 3.6.3): one of the two has lost or forgotten what it promised.
    #[must_use]
    pub fn contradicts(&self, prev: Position, entries: &[Entry]) -> Option<LogIndex> {
        let theirs = entries.iter().map(|entry| (entry.index, entry.term));
        std::iter::once(prev)
            .chain(theirs)
            .take_while(|(index, _)| *index <= self.committed)
            .find(|(index, term)| self.term_at(*index).is_some_and(|ours| ours != *term))
            .map(|(index, _)| index)
    }

    /// Drops this entry and all behind it.
    fn cut_from(&mut self, index: LogIndex) {
        let offset = self.offset(index);
        for entry in self.entries.drain(offset..) {
            if !bugs::on(Bug::ReplacedStillCounted) {
                self.unapplied_bytes -= entry.payload.len();
            }
            self.held_bytes -= entry.held_bytes();
        }
        while self
            .changes
            .pop_back_if(|change| *change >= index)
            .is_some()
        {}
        self.taken = self.taken.min(index.prev());
        self.stable = self.stable.min(index.prev());
    }

    /// Goes on behind a checkpoint that was installed, ahead of what is applied here.
    ///
    /// If its last entry is in this log, what follows it stays: it may be acknowledged, and counted on.
    /// Else nothing stays: a tail that the checkpoint knows nothing of may contradict what follows it
    /// (trap R16).
    pub(super) fn install(&mut self, base: Position) {
        let is_held = bugs::on(Bug::TailKeptAtInstall) && self.term_at(base.0).is_some();
        if self.term_at(base.0) != Some(base.1) && !is_held {
            *self = Self::new(base, Vec::new());
            return;
        }
        self.start_at(base.0);
        self.taken = self.taken.max(base.0);
        self.stable = self.stable.max(base.0);
        self.compact(base.0);
    }

    /// The entries appended since the last call, to be written.
    pub(super) fn take_unwritten(&mut self, out: &mut Vec<Entry>) {
        let from = usize::try_from(self.taken.0 - self.base.0.0).expect("entries are in memory");
        out.extend(self.entries.range(from..).cloned());
        self.taken = self.last_index();
    }

    /// Whether `Self::take_unwritten` would yield something.
    #[must_use]
    pub fn has_unwritten(&self) -> bool {
        self.taken < self.last_index()
    }

    /// The entry (`index`, `term`) and all before it are durable. A pair that is not in the log is
    /// void: the entry was replaced while its write was under way.
    pub(super) fn synced(&mut self, index: LogIndex, term: Term) {
        if self.term_at(index) == Some(term) && index > self.stable {
            self.stable = index;
        }
    }

    /// Raises the commit mark.
    pub(super) fn commit_to(&mut self, index: LogIndex) {
        assert!(
            index <= self.last_index(),
            "commit {index} lies beyond the last entry {}",
            self.last_index()
        );
        self.committed = self.committed.max(index);
    }

    /// The next entry that is committed and not applied.
    #[must_use]
    pub fn next_committed(&self) -> Option<&Entry> {
        (self.applied < self.committed).then(|| {
            self.entry(self.applied.next())
                .expect("committed entries are held until applied")
        })
    }

    /// The entry after the applied one has been applied.
    pub(super) fn applied_next(&mut self) {
        let entry = self
            .next_committed()
            .expect("only a committed entry is applied");
        self.unapplied_bytes -= entry.payload.len();
        self.applied = self.applied.next();
    }

    /// The state of `index` is here without applying what leads to it: it came from a checkpoint.
    ///
    /// # Panics
    /// If `index` is not within the log.
    pub fn start_at(&mut self, index: LogIndex) {
        let (base, last) = (self.base.0, self.last_index());
        assert!(
            base <= index && index <= last,
            "{index} is not within {base} to {last}"
        );
        self.applied = index;
        self.committed = self.committed.max(index);
        let unapplied = self.entries.iter().filter(|entry| entry.index > index);
        self.unapplied_bytes = unapplied.map(|entry| entry.payload.len()).sum();
    }

    /// Forgets entries that are applied and durable, but for the newest: as many as so many bytes hold
    /// stay for members that are a little behind, and all above `needed` for one that is known to need
    /// them. Forgets no more than so many at once; `true` if some are left.
    pub fn compact_but(
        &mut self,
        bytes_kept: usize,
        needed: Option<LogIndex>,
        at_once: usize,
    ) -> bool {
        let index = self.applied.min(self.stable);
        let index = needed.map_or(index, |needed| needed.min(index));
        let mut left = at_once;
        while let Some(entry) = self.entries.front()
            && entry.index <= index
            && self.held_bytes - entry.held_bytes() >= bytes_kept
        {
            if left == 0 {
                return true;
            }
            left -= 1;
            self.forget_first();
        }
        false
    }

    /// What all entries that are held take.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether the entries above `index` take more than so many bytes. Looks at no more than that.
    #[must_use]
    pub fn has_more_above(&self, index: LogIndex, bytes: usize) -> bool {
        let above = self.entries.iter().rev();
        let mut above = above.take_while(|entry| entry.index > index);
        let sum = above.try_fold(0, |sum, entry| {
            let sum = sum + entry.held_bytes();
            (sum <= bytes).then_some(sum)
        });
        sum.is_none()
    }

    /// Forgets entries up to `index`, which is applied and durable.
    pub fn compact(&mut self, index: LogIndex) {
        let index = index.min(self.applied).min(self.stable);
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.index <= index)
        {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some(entry) = self.entries.pop_front() else {
            return;
        };
        self.held_bytes -= entry.held_bytes();
        self.base = (entry.index, entry.term);
        self.changes.pop_front_if(|change| *change <= entry.index);
    }
}

/// The index of an entry that changes the members.
fn change_in(entry: &Entry) -> Option<LogIndex> {
    (entry.kind == EntryKind::Conf).then_some(entry.index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::GroupTime;

    /// Entries 1 to `count`, all applied and durable.
    fn applied(count: u64) -> RaftLog {
        let entry = |index| Entry {
            term: Term(1),
            index: LogIndex(index),
            time: GroupTime(0),
            kind: EntryKind::Data,
            machine_version: 1,
            flags: 0,
            crc: 0,
            payload: vec![0; 100].into(),
        };
        let entries = (1..=count).map(entry).collect();
        let mut log = RaftLog::new((LogIndex(0), Term(0)), entries);
        log.start_at(LogIndex(count));
        log
    }

    #[test]
    fn a_hint_is_the_last_entry_that_may_be_shared() {
        // Behind 10@2: 11@2 12@4 13@4 14@7.
        let entry = |(index, term)| Entry {
            index: LogIndex(index),
            term: Term(term),
            ..applied(1).entries[0].clone()
        };
        let entries = [(11, 2), (12, 4), (13, 4), (14, 7)].map(entry);
        let log = RaftLog::new((LogIndex(10), Term(2)), entries.to_vec());
        let hint = |index, term| {
            let (index, term) = log.hint(LogIndex(index), Term(term));
            (index.0, term.0)
        };
        assert_eq!(hint(14, 7), (14, 7), "the entry itself");
        assert_eq!(hint(20, 9), (14, 7), "no entry lies behind the last");
        assert_eq!(hint(14, 6), (13, 4), "of a later term are all above");
        assert_eq!(hint(14, 4), (13, 4));
        assert_eq!(hint(12, 6), (12, 4), "nor above the index");
        assert_eq!(hint(14, 3), (11, 2), "two terms are skipped at once");
        assert_eq!(hint(14, 1), (10, 2), "the base if there is none");
        assert_eq!(hint(3, 7), (10, 2), "nor below the base");
        let empty = RaftLog::new((LogIndex(10), Term(2)), Vec::new());
        assert_eq!(empty.hint(LogIndex(12), Term(3)), (LogIndex(10), Term(2)));
    }

    #[test]
    fn what_somebody_needs_stays_beside_the_newest() {
        let each = applied(1).held_bytes();
        let kept = |needed: Option<u64>| {
            let mut log = applied(10);
            let at_once = 5;
            while log.compact_but(3 * each, needed.map(LogIndex), at_once) {
                assert_eq!(log.base().0.0, at_once as u64, "no more at once");
            }
            assert_eq!(log.last_index(), LogIndex(10));
            log.base().0.0
        };
        assert_eq!(kept(None), 7);
        assert_eq!(kept(Some(2)), 2);
        assert_eq!(kept(Some(9)), 7);
        assert_eq!(kept(Some(100)), 7);
    }

    #[test]
    fn bytes_above_an_index_are_compared_to_the_byte() {
        let log = applied(10);
        let each = applied(1).held_bytes();
        assert!(log.has_more_above(LogIndex(6), 4 * each - 1));
        assert!(!log.has_more_above(LogIndex(6), 4 * each));
        assert!(!log.has_more_above(LogIndex(10), 0));
        assert!(log.has_more_above(LogIndex(0), 0));
    }
}
