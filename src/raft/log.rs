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

use crate::base::entry::Entry;
use crate::base::ids::{LogIndex, Term};
use std::collections::VecDeque;

/// Entries and marks of one group.
#[derive(Clone, Debug)]
pub struct RaftLog {
    /// The index and term just below the first entry held.
    base: (LogIndex, Term),
    entries: VecDeque<Entry>,
    /// Entries up to here were handed out to be written.
    taken: LogIndex,
    stable: LogIndex,
    committed: LogIndex,
    applied: LogIndex,
    /// Payload bytes above `applied`.
    unapplied_bytes: usize,
}

impl RaftLog {
    /// The log of a member that starts: `entries` are durable and follow `base` without a gap.
    ///
    /// # Panics
    /// If the entries are not dense or their terms fall: recovery has checked both.
    #[must_use]
    pub fn new(base: (LogIndex, Term), entries: Vec<Entry>) -> Self {
        let mut before = base;
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
        }
        let unapplied_bytes = entries.iter().map(|entry| entry.payload.len()).sum();
        Self {
            base,
            entries: entries.into(),
            taken: before.0,
            stable: before.0,
            committed: base.0,
            applied: base.0,
            unapplied_bytes,
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
        self.entries.push_back(entry);
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

    /// Forgets entries up to `index`, which is applied and durable.
    pub fn compact(&mut self, index: LogIndex) {
        let index = index.min(self.applied).min(self.stable);
        while let Some(entry) = self.entries.front().filter(|entry| entry.index <= index) {
            self.base = (entry.index, entry.term);
            self.entries.pop_front();
        }
    }
}
