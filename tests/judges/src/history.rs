//! All that ever happened in a cluster, and what Raft promises about it (thesis, figure 3.2).
//!
//! - *Election safety*: one leader a term, and one vote a member and term, counted when it is sent.
//! - *Log matching*: index and term name one entry, and one entry before it, in whatever log.
//! - *Leader completeness*: whoever begins to lead has all that was ever committed.
//! - *State machine safety*: what was committed at an index, or applied there, is so for ever.
//! - *Durability*: what a leader commits is on the disks of a majority; nobody says that it has what it
//!   has not synced.

use rrq::base::entry::Entry;
use std::collections::{BTreeMap, HashMap};

/// What is known of an entry that was in some log.
struct Known {
    entry: Entry,
    /// The term of the one before it.
    before: u64,
}

/// See the head.
#[derive(Default)]
pub struct History {
    leaders: BTreeMap<u64, u32>,
    votes: BTreeMap<(u32, u64), u32>,
    entries: HashMap<(u64, u64), Known>,
    /// What was committed, from index 1 on: its term, and that in which it became known.
    committed: Vec<(u64, u64)>,
    /// Of each member: what was looked at last of its commit mark.
    seen: BTreeMap<u32, u64>,
}

impl History {
    /// A member leads a term; `term_at` is its log, from `base` on. Whether that is news.
    ///
    /// # Panics
    /// If another led it, or something committed is missing.
    pub fn leads(
        &mut self,
        member: u32,
        term: u64,
        base: u64,
        term_at: impl Fn(u64) -> Option<u64>,
    ) -> bool {
        if let Some(leader) = self.leaders.get(&term) {
            assert_eq!(*leader, member, "two lead term {term}");
            return false;
        }
        self.leaders.insert(term, member);
        for (index, (known, since)) in (1_u64..).zip(&self.committed) {
            // Another may have been elected later in an earlier term.
            if index > base && *since < term {
                assert_eq!(
                    term_at(index),
                    Some(*known),
                    "member {member} leads term {term} without entry {index}, which is committed"
                );
            }
        }
        true
    }

    /// A member gives its vote of a term.
    ///
    /// # Panics
    /// If it gave it to another.
    pub fn votes(&mut self, member: u32, term: u64, candidate: u32) {
        let voted = *self.votes.entry((member, term)).or_insert(candidate);
        assert_eq!(
            voted, candidate,
            "member {member} votes twice in term {term}"
        );
    }

    /// A member has an entry in its log, behind one of the term `before`.
    ///
    /// # Panics
    /// If another log has another one of the same index and term, or another before it.
    pub fn holds(&mut self, member: u32, entry: &Entry, before: Option<u64>) {
        let Some(before) = before else { return };
        let key = (entry.index.0, entry.term.0);
        match self.entries.get(&key) {
            Some(known) => {
                assert_eq!(known.entry, *entry, "member {member} has another entry");
                assert_eq!(
                    known.before, before,
                    "member {member}: behind {key:?}'s predecessor"
                );
            }
            None => {
                let entry = entry.clone();
                self.entries.insert(key, Known { entry, before });
            }
        }
    }

    /// A member knows in this term all up to `until` to be committed; `term_at` is its log, from `base` on. The first
    /// index that nobody knew to be committed, if there is one.
    ///
    /// # Panics
    /// If something else is, or its commit mark fell while it lived.
    pub fn commits(
        &mut self,
        member: u32,
        now: u64,
        until: u64,
        base: u64,
        term_at: impl Fn(u64) -> Option<u64>,
    ) -> Option<u64> {
        let seen = self.seen.entry(member).or_default();
        assert!(
            until >= *seen,
            "member {member} takes back commit {seen} for {until}"
        );
        let first = (*seen).max(base) + 1;
        *seen = until;
        let known = self.last_committed();
        for index in first..=until {
            let term = term_at(index).unwrap_or_else(|| panic!("{member} commits a hole: {index}"));
            match self.committed_at(index) {
                Some(committed) => assert_eq!(
                    committed, term,
                    "member {member} commits another entry at {index}"
                ),
                None => {
                    assert_eq!(
                        self.last_committed() + 1,
                        index,
                        "a gap in what is committed"
                    );
                    self.committed.push((term, now));
                }
            }
        }
        (until > known).then_some(known + 1)
    }

    /// A member applies an entry.
    ///
    /// # Panics
    /// If another was committed there.
    pub fn applies(&self, member: u32, entry: &Entry) {
        let index = entry.index.0;
        assert_eq!(
            self.committed_at(index),
            Some(entry.term.0),
            "member {member} applies {index}"
        );
        let known = &self.entries[&(index, entry.term.0)];
        assert_eq!(known.entry, *entry, "member {member} applies another entry");
    }

    /// A member starts again: its commit mark may be an older one.
    pub fn starts(&mut self, member: u32) {
        self.seen.remove(&member);
    }

    /// The last index that anybody knew to be committed.
    #[must_use]
    pub fn last_committed(&self) -> u64 {
        self.committed.len() as u64
    }

    /// The term of what was committed at an index.
    #[must_use]
    pub fn committed_at(&self, index: u64) -> Option<u64> {
        let place = usize::try_from(index.checked_sub(1)?).ok()?;
        self.committed.get(place).map(|(term, _)| *term)
    }

    /// How many terms had a leader.
    #[must_use]
    pub fn terms_led(&self) -> usize {
        self.leaders.len()
    }

    /// How many changes of the members were committed.
    #[must_use]
    pub fn changes(&self) -> usize {
        let all = (1_u64..).zip(&self.committed);
        let is_change = |(index, (term, _)): &(u64, &(u64, u64))| {
            let known = self.entries.get(&(*index, *term));
            known.is_some_and(|known| known.entry.kind == rrq::base::entry::EntryKind::Conf)
        };
        all.filter(is_change).count()
    }
}
