//! What recovery learns of each group while it reads, and what a hole in the log leaves in doubt.
//!
//! A hole puts every group in doubt twice: entries may have been in it, and a vote. Doubt ends by
//! what lies beyond the hole:
//!
//! | doubt | ends with |
//! | --- | --- |
//! | entries | the footer of the segment with the hole: it names what the hole held |
//! | entries | the group's row in a later head: it names the last entry |
//! | entries | a later entry whose predecessor is held with the same term (log matching) |
//! | vote | a later hard state, or the group's row in a later head |
//! | vote | a later entry of the term in which the vote is known: a vote is never changed |
//! | status | the group's row in a later head; in doubt only when the hole took a head |
//!
//! What is then known to be missing above the newest base makes the group damaged; so does doubt
//! that never ended.

use crate::base::entry::Entry;
use crate::base::ids::{GroupId, Incarnation, LogIndex, Term};
use crate::base::limits::BASES_KEPT;
use crate::base::units::Lsn;
use crate::wal::ledger::GroupStart;
use crate::wal::record::{BaseRecord, GroupRow, HardState, RowStatus};
use crate::wal::segment::{Footer, FooterRun};
use std::collections::BTreeMap;

/// Whether a group's log may be relied on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupLogStatus {
    /// It holds all that was acknowledged.
    Intact,
    /// It may have lost what was acknowledged.
    Damaged {
        /// What is missing or in doubt.
        what: String,
    },
    /// An earlier start found it damaged, and it was not repaired since.
    Recovering {
        /// The first index that may be missing.
        since: LogIndex,
    },
}

/// What the log holds of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLog {
    /// The group's life.
    pub incarnation: Incarnation,
    /// Its hard state; the commit lies between the newest base and the last entry.
    pub hard: HardState,
    /// Its bases, newest first: one or two; none only in a damaged group. A base whose way to the
    /// newest one is not whole is left out.
    pub bases: Vec<BaseRecord>,
    /// Its entries without a gap, from above the oldest of the bases.
    pub entries: Vec<Entry>,
    /// Whether all this may be relied on.
    pub status: GroupLogStatus,
}

#[derive(Debug, Default)]
struct Group {
    incarnation: Incarnation,
    hard: HardState,
    status: RowStatus,
    /// Newest first.
    bases: Vec<BaseRecord>,
    /// Ascending; gaps are what a hole or a dropped segment took.
    entries: Vec<(Lsn, Entry)>,
    /// The last index that the log claims, and where it does.
    claimed: (LogIndex, Lsn),
    /// The segment with the first hole that may have held entries of the group.
    entries_in_doubt: Option<u64>,
    vote_in_doubt: bool,
    status_in_doubt: bool,
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Replay {
    groups: BTreeMap<GroupId, Group>,
    /// Segments with a hole; footers matter only there.
    holes: Vec<u64>,
}

impl Replay {
    /// The group, made anew for a new life; `None` for an earlier life.
    fn group(&mut self, group: GroupId, incarnation: Incarnation) -> Option<&mut Group> {
        let found = self.groups.entry(group).or_insert_with(|| Group {
            incarnation,
            ..Group::default()
        });
        if found.incarnation < incarnation {
            *found = Group {
                incarnation,
                ..Group::default()
            };
        }
        (found.incarnation == incarnation).then_some(found)
    }

    pub(super) fn entry(&mut self, id: GroupId, life: Incarnation, entry: Entry, lsn: Lsn) {
        let Some(group) = self.group(id, life) else {
            return;
        };
        let before = entry.index.prev();
        if before == LogIndex(0) || group.term_at(before) == Some(entry.term) {
            group.entries_in_doubt = None;
        }
        if group.hard.term == entry.term && group.hard.vote.is_some() {
            group.vote_in_doubt = false;
        }
        group.forget_from(entry.index);
        group.claimed = (entry.index, lsn);
        group.entries.push((lsn, entry));
    }

    pub(super) fn hard_state(&mut self, id: GroupId, life: Incarnation, state: HardState) {
        if let Some(group) = self.group(id, life) {
            group.hard = state;
            group.vote_in_doubt = false;
        }
    }

    /// A row of the table in a segment's head: all that the log said of the group up to here.
    pub(super) fn head_row(&mut self, row: &GroupRow, lsn: Lsn) {
        let Some(group) = self.group(row.group, row.incarnation) else {
            return;
        };
        let (index, term) = row.last;
        group.hard = row.hard;
        group.status = row.status;
        group.forget_from(index.next());
        if group
            .entries
            .last()
            .is_some_and(|(_, last)| last.index == index && last.term != term)
        {
            group.entries.pop();
        }
        group.claimed = (index, lsn);
        group.entries_in_doubt = None;
        group.vote_in_doubt = false;
        group.status_in_doubt = false;
    }

    /// A row outside a head: only its status counts.
    pub(super) fn status_row(&mut self, row: &GroupRow) {
        if let Some(group) = self.group(row.group, row.incarnation) {
            group.status = row.status;
            group.status_in_doubt = false;
        }
    }

    pub(super) fn base(&mut self, base: BaseRecord) {
        let Some(group) = self.group(base.group, base.incarnation) else {
            return;
        };
        let (index, start) = (base.index, base.log_start_lsn);
        group
            .entries
            .retain(|(lsn, entry)| entry.index <= index || *lsn >= start);
        if group.claimed.0 < index || group.claimed.1 < start {
            let last = group.entries.last().map_or(index, |(_, last)| last.index);
            group.claimed.0 = last.max(index);
        }
        let place = group.bases.partition_point(|old| old.index > index);
        if group.bases.get(place).is_some_and(|old| old.index == index) {
            group.bases[place] = base;
        } else {
            group.bases.insert(place, base);
            group.bases.truncate(BASES_KEPT);
        }
    }

    /// The footer of `segment`: names what it held, which matters only if there was a hole.
    pub(super) fn footer(&mut self, segment: u64, footer: &Footer, lsn: Lsn) {
        if !self.holes.contains(&segment) {
            return;
        }
        for run in &footer.runs {
            self.group(run.group, run.incarnation);
        }
        for (id, group) in &mut self.groups {
            let runs = footer.runs.iter();
            group.compare(runs.filter(|run| run.group == *id), lsn);
            if group.entries_in_doubt == Some(segment) {
                group.entries_in_doubt = None;
            }
        }
    }

    /// An entry of `segment` is not what was sealed; whose, its own header cannot be trusted to say.
    pub(super) fn broken_seal(&mut self, segment: u64) {
        self.holes.push(segment);
        for group in self.groups.values_mut() {
            group.entries_in_doubt.get_or_insert(segment);
        }
    }

    /// A hole in `segment` puts all groups in doubt.
    pub(super) fn hole(&mut self, segment: u64, takes_head: bool) {
        self.broken_seal(segment);
        for group in self.groups.values_mut() {
            group.vote_in_doubt = true;
            group.status_in_doubt |= takes_head;
        }
    }

    /// What is left of each group, and how the log goes on with it.
    pub(super) fn finish(self) -> (BTreeMap<GroupId, GroupLog>, Vec<GroupStart>) {
        let mut logs = BTreeMap::new();
        let mut starts = Vec::new();
        for (id, group) in self.groups {
            let (log, start) = group.finish(id);
            logs.insert(id, log);
            starts.push(start);
        }
        (logs, starts)
    }
}

impl Group {
    fn term_at(&self, index: LogIndex) -> Option<Term> {
        let place = self.entries.partition_point(|(_, e)| e.index < index);
        let entry = self.entries.get(place).filter(|(_, e)| e.index == index);
        let base = self.bases.iter().find(|base| base.index == index);
        entry
            .map(|(_, entry)| entry.term)
            .or(base.map(|base| base.term))
    }

    fn forget_from(&mut self, index: LogIndex) {
        while self
            .entries
            .pop_if(|(_, last)| last.index >= index)
            .is_some()
        {}
    }

    /// Keeps of the entries that a segment held only what its footer names.
    fn compare<'a>(&mut self, runs: impl Iterator<Item = &'a FooterRun>, lsn: Lsn) {
        let mut named = BTreeMap::new();
        for run in runs.filter(|run| run.incarnation == self.incarnation) {
            named.split_off(&run.first.0);
            let crcs = run.entries.iter().map(|(_, crc)| *crc);
            named.extend((run.first.0..).zip(crcs));
        }
        let (Some((first, _)), Some((last, _))) = (named.first_key_value(), named.last_key_value())
        else {
            return;
        };
        let (first, last) = (*first, LogIndex(*last));
        self.entries.retain(|(_, entry)| {
            entry.index.0 < first || named.get(&entry.index.0) == Some(&entry.crc)
        });
        self.claimed = (last, lsn);
    }

    fn finish(mut self, id: GroupId) -> (GroupLog, GroupStart) {
        let Some(newest) = self.bases.first().cloned() else {
            return self.without_base(id);
        };
        let from = self
            .entries
            .partition_point(|(_, entry)| entry.index <= newest.index);
        let whole = count_dense(&self.entries[from..], newest.index);
        self.entries.truncate(from + whole);
        let last = LogIndex(newest.index.0 + whole as u64);
        let last_term = self
            .entries
            .last()
            .filter(|_| whole > 0)
            .map_or(newest.term, |(_, entry)| entry.term);
        let what = self.damage(last);
        let keep_from = match self.bases.get(1) {
            Some(previous) if self.leads(previous, &newest, from) => self
                .entries
                .partition_point(|(_, entry)| entry.index <= previous.index),
            _ => {
                self.bases.truncate(1);
                from
            }
        };
        self.hard.commit = self.hard.commit.clamp(newest.index, last);
        let row = GroupRow {
            group: id,
            incarnation: self.incarnation,
            hard: self.hard,
            last: (last, last_term),
            base: (newest.index, newest.term),
            root_hash: newest.root_hash,
            root: newest.root,
            log_start_lsn: newest.log_start_lsn,
            status: self.row_status(what.is_some(), last.next()),
        };
        let entries = self.entries.drain(keep_from..).map(|(_, entry)| entry);
        let entries = entries.collect();
        self.end(row, entries, what)
    }

    fn without_base(self, id: GroupId) -> (GroupLog, GroupStart) {
        let row = GroupRow {
            group: id,
            incarnation: self.incarnation,
            hard: self.hard,
            status: self.row_status(true, LogIndex(1)),
            ..GroupRow::default()
        };
        self.end(row, Vec::new(), Some("no base is left".to_string()))
    }

    fn end(
        self,
        row: GroupRow,
        entries: Vec<Entry>,
        what: Option<String>,
    ) -> (GroupLog, GroupStart) {
        let log = GroupLog {
            incarnation: self.incarnation,
            hard: self.hard,
            bases: self.bases.clone(),
            entries,
            status: match (what, row.status) {
                (Some(what), _) => GroupLogStatus::Damaged { what },
                (None, RowStatus::Recovering { since }) => GroupLogStatus::Recovering { since },
                (None, RowStatus::Ok) => GroupLogStatus::Intact,
            },
        };
        let bases = self.bases;
        (log, GroupStart { row, bases })
    }

    fn row_status(&self, is_damaged: bool, since: LogIndex) -> RowStatus {
        match self.status {
            RowStatus::Recovering { since: earlier } => RowStatus::Recovering {
                since: earlier.min(since),
            },
            RowStatus::Ok if is_damaged => RowStatus::Recovering { since },
            RowStatus::Ok => RowStatus::Ok,
        }
    }

    /// What is missing or in doubt, if the entries end at `last`.
    fn damage(&self, last: LogIndex) -> Option<String> {
        if self.claimed.0 > last {
            let claimed = self.claimed.0;
            return Some(format!(
                "entries from {} to {claimed} are missing",
                last.next()
            ));
        }
        if self.entries_in_doubt.is_some() {
            return Some(format!("entries from {} on may be missing", last.next()));
        }
        if self.vote_in_doubt {
            return Some("a vote may be missing".to_string());
        }
        self.status_in_doubt
            .then(|| "its status may be missing".to_string())
    }

    /// Whether the entries, of which those before place `to` are not above `newest`, lead from
    /// `previous` to it without a gap.
    fn leads(&self, previous: &BaseRecord, newest: &BaseRecord, to: usize) -> bool {
        let from = self.entries[..to].partition_point(|(_, e)| e.index <= previous.index);
        let between = &self.entries[from..to];
        count_dense(between, previous.index) as u64 == newest.index.0 - previous.index.0
            && between
                .iter()
                .all(|(lsn, _)| *lsn >= previous.log_start_lsn)
            && between.last().is_none_or(|(_, e)| e.term == newest.term)
    }
}

/// How many of `entries` follow `base` without a gap.
fn count_dense(entries: &[(Lsn, Entry)], base: LogIndex) -> usize {
    (base.0 + 1..)
        .zip(entries)
        .take_while(|(index, (_, entry))| entry.index.0 == *index)
        .count()
}
