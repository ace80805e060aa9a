//! What recovery learns of each group while it reads, and what a hole in the log leaves in doubt.
//!
//! A hole puts every group in doubt: about the end of its log, about the entries before the hole
//! (entries in it may have voided them), and about its vote. Doubt ends by what lies beyond:
//!
//! | doubt | ends with |
//! | --- | --- |
//! | all | the recap of the next batch, if it tells of all that is missing |
//! | end | a later entry: whatever the hole held behind it is void; a row in a later head |
//! | entries before | a row in a later head that names one of them as the last: log matching |
//! | entries before | an entry beyond the hole that follows one of them in the same term: likewise |
//! | both | the footer of the segment with the hole: it names what the hole held |
//! | vote | a later hard state, or a row in a later head |
//! | vote | a later entry of the term in which the vote is known: a vote is never changed |
//! | status | a row in a later head; in doubt only when the hole took a head |
//!
//! Entries at or below the newest base are beyond doubt: what it holds was committed. So are those up to
//! a commit mark that lies before the hole; one beyond it may be of what replaced them. What is then
//! missing above makes the group damaged; so does doubt that never ended.

use crate::base::entry::Entry;
use crate::base::ids::{GroupId, Incarnation, LogIndex, Term};
use crate::base::limits::BASES_KEPT;
use crate::base::units::Lsn;
use crate::wal::ledger::GroupStart;
use crate::wal::record::{BaseRecord, GroupRow, HardState, RecapRow, RowStatus};
use crate::wal::segment::{Footer, FooterRun};
use std::collections::{BTreeMap, BTreeSet};

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

/// What of a damaged group is beyond doubt, so that the other voters can tell the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sound {
    /// Entries up to here are what they were; those behind may have been replaced in a hole.
    pub last: LogIndex,
    /// Entries that lie beyond a hole, rising; nothing that was lost can have voided them.
    pub beyond: Vec<Entry>,
    /// The entry that was the last, be it lost or not; `None` if that is not known.
    pub end: Option<(LogIndex, Term)>,
    /// The hard state is the last.
    pub vote_is_known: bool,
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
    /// Of a group that is damaged, what is beyond doubt; with what an earlier start found, nothing.
    pub sound: Sound,
}

/// An entry and when it was read.
#[derive(Debug)]
struct Held {
    lsn: Lsn,
    /// Counts what was read; tells an entry before a hole from one beyond it.
    order: u64,
    entry: Entry,
}

/// A hole that may have held entries of a group.
#[derive(Clone, Copy, Debug)]
struct Hole {
    segment: u64,
    order: u64,
    /// The commit mark as it was read before: entries up to it cannot have been voided.
    commit: LogIndex,
}

#[derive(Debug, Default)]
struct Group {
    incarnation: Incarnation,
    hard: HardState,
    status: RowStatus,
    /// Newest first.
    bases: Vec<BaseRecord>,
    /// Ascending; gaps are what a hole or a dropped segment took.
    entries: Vec<Held>,
    /// The last index that the log claims, and where it does.
    claimed: (LogIndex, Lsn),
    /// The term of the entry there, unless only its seal is known.
    claimed_term: Option<Term>,
    doubt: Doubt,
}

/// What holes may have taken from a group.
#[derive(Clone, Debug, Default)]
struct Doubt {
    /// Holes that may have voided entries before them.
    holes: Vec<Hole>,
    end: bool,
    vote: bool,
    status: bool,
}

impl Doubt {
    /// The footer of `segment` has named what it held.
    fn end_in_segment(&mut self, segment: u64) {
        self.holes.retain(|hole| hole.segment != segment);
        self.end &= !self.holes.is_empty();
    }
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Replay {
    groups: BTreeMap<GroupId, Group>,
    /// What holds for a group that was not seen yet.
    unseen: Doubt,
    /// Segments with a hole; footers matter only there.
    damaged: Vec<u64>,
    order: u64,
}

impl Replay {
    /// The group, made anew for a new life; `None` for an earlier life.
    fn group(&mut self, group: GroupId, incarnation: Incarnation) -> Option<&mut Group> {
        let fresh = || Group {
            incarnation,
            doubt: self.unseen.clone(),
            ..Group::default()
        };
        let found = self.groups.entry(group).or_insert_with(fresh);
        if found.incarnation < incarnation {
            *found = fresh();
        }
        (found.incarnation == incarnation).then_some(found)
    }

    pub(super) fn entry(&mut self, id: GroupId, life: Incarnation, entry: Entry, lsn: Lsn) {
        self.order += 1;
        let order = self.order;
        let Some(group) = self.group(id, life) else {
            return;
        };
        if group.hard.term == entry.term && group.hard.vote.is_some() {
            group.doubt.vote = false;
        }
        group.doubt.end = false;
        group.forget_from(entry.index);
        group.claimed = (entry.index, lsn);
        group.claimed_term = Some(entry.term);
        group.entries.push(Held { lsn, order, entry });
    }

    pub(super) fn hard_state(&mut self, id: GroupId, life: Incarnation, state: HardState) {
        if let Some(group) = self.group(id, life) {
            group.hard = state;
            group.doubt.vote = false;
        }
    }

    /// The table in a segment's head: all that the log said of any group up to here.
    pub(super) fn head_table(&mut self, rows: &[GroupRow], lsn: Lsn) {
        for row in rows {
            self.head_row(row, lsn);
        }
        self.unseen = Doubt::default();
    }

    fn head_row(&mut self, row: &GroupRow, lsn: Lsn) {
        let Some(group) = self.group(row.group, row.incarnation) else {
            return;
        };
        let (index, term) = row.last;
        group.hard = row.hard;
        group.status = row.status;
        group.forget_from(index.next());
        if let Some(last) = group
            .entries
            .last()
            .filter(|last| last.entry.index == index)
        {
            let order = last.order;
            if last.entry.term == term {
                group.doubt.holes.retain(|hole| hole.order < order);
            } else {
                group.entries.pop();
            }
        }
        group.claimed = (index, lsn);
        group.claimed_term = Some(term);
        group.doubt.end = false;
        group.doubt.vote = false;
        group.doubt.status = false;
    }

    /// A row outside a head: only its status counts.
    pub(super) fn status_row(&mut self, row: &GroupRow) {
        if let Some(group) = self.group(row.group, row.incarnation) {
            group.status = row.status;
            group.doubt.status = false;
        }
    }

    pub(super) fn base(&mut self, base: BaseRecord) {
        let Some(group) = self.group(base.group, base.incarnation) else {
            return;
        };
        let (index, term, start) = (base.index, base.term, base.log_start_lsn);
        group
            .entries
            .retain(|held| held.entry.index <= index || held.lsn >= start);
        if group.claimed.0 < index || group.claimed.1 < start {
            let last = group.entries.last().map(|last| &last.entry);
            let above = last.filter(|last| last.index > index);
            let (last, last_term) = above.map_or((index, term), |last| (last.index, last.term));
            group.claimed.0 = last;
            group.claimed_term = Some(last_term);
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
        if !self.damaged.contains(&segment) {
            return;
        }
        for run in &footer.runs {
            self.group(run.group, run.incarnation);
        }
        for (id, group) in &mut self.groups {
            let runs = footer.runs.iter();
            group.compare(runs.filter(|run| run.group == *id), lsn);
            group.doubt.end_in_segment(segment);
        }
        self.unseen.end_in_segment(segment);
    }

    /// An entry of `segment` is not what was sealed; whose, its own header cannot be trusted to say.
    pub(super) fn broken_seal(&mut self, segment: u64) {
        self.order += 1;
        let order = self.order;
        self.damaged.push(segment);
        for (doubt, commit) in self.doubts() {
            doubt.holes.push(Hole {
                segment,
                order,
                commit,
            });
            doubt.end = true;
        }
    }

    /// A hole in `segment` puts all groups in doubt.
    pub(super) fn hole(&mut self, segment: u64, takes_head: bool) {
        self.broken_seal(segment);
        for (doubt, _) in self.doubts() {
            doubt.vote = true;
            doubt.status |= takes_head;
        }
    }

    /// One batch of a hole of which the next one, at `lsn`, tells what was in it: it puts nothing in doubt.
    pub(super) fn told_hole(&mut self, rows: &[RecapRow], lsn: Lsn) {
        for RecapRow { row, first } in rows {
            let group = self.group(row.group, row.incarnation);
            if let (Some(group), Some(first)) = (group, first) {
                group.forget_from(*first);
            }
            self.head_row(row, lsn);
        }
    }

    /// The doubt about each group, and its commit mark.
    fn doubts(&mut self) -> impl Iterator<Item = (&mut Doubt, LogIndex)> {
        let known = self.groups.values_mut();
        let known = known.map(|group| (&mut group.doubt, group.hard.commit));
        known.chain(std::iter::once((&mut self.unseen, LogIndex(0))))
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
    fn forget_from(&mut self, index: LogIndex) {
        while self
            .entries
            .pop_if(|last| last.entry.index >= index)
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
        self.entries.retain(|held| {
            let index = held.entry.index.0;
            index < first || named.get(&index) == Some(&held.entry.crc)
        });
        self.claimed = (last, lsn);
        let held = self.entries.last().filter(|held| held.entry.index == last);
        self.claimed_term = held.map(|held| held.entry.term);
        self.doubt.end = false;
    }

    fn finish(mut self, id: GroupId) -> (GroupLog, GroupStart) {
        let Some(newest) = self.bases.first().cloned() else {
            return self.without_base(id);
        };
        let from = self.place_above(newest.index);
        let whole = count_dense(&self.entries[from..], newest.index);
        let beyond = self.entries.split_off(from + whole);
        let last = LogIndex(newest.index.0 + whole as u64);
        let what = self.damage(from, last);
        let keep_from = match self.bases.get(1) {
            Some(previous) if self.leads(previous, &newest, from) => {
                self.place_above(previous.index)
            }
            _ => {
                self.bases.truncate(1);
                from
            }
        };
        let sound = self.sound(&newest, from, last, &beyond);
        self.hard.commit = self.hard.commit.clamp(newest.index, sound.last);
        // Of what was said from here on, the next start must know no more: entries that look as if they
        // belonged together would be taken for a leader's. A lone voter's are as they were.
        let is_cut = what.is_some() && newest.members.len() > 1;
        let last = if is_cut { sound.last } else { last };
        let last_term = self.term_at(&newest, last);
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
        let entries = self.entries.drain(keep_from..).map(|held| held.entry);
        let entries = entries.collect();
        self.end(row, entries, what, sound)
    }

    /// The last of the entries above the newest base that no hole can have voided. What a hole held in
    /// place of one has a later term, and so has what follows that: an entry beyond the hole that is
    /// of the same term clears it, and all before it.
    fn last_sound(
        &self,
        newest: LogIndex,
        from: usize,
        last: LogIndex,
        beyond: &[Held],
    ) -> LogIndex {
        let held = &self.entries[from..];
        let mut sound = last;
        for hole in &self.doubt.holes {
            let later = held
                .iter()
                .chain(beyond)
                .filter(|held| held.order > hole.order);
            let later: BTreeSet<Term> = later.map(|held| held.entry.term).collect();
            let mut before = held.iter().rev().filter(|held| held.order < hole.order);
            let latest = before.clone().next().map(|held| held.entry.index);
            let cleared = before.find(|held| later.contains(&held.entry.term));
            let cleared = cleared.map(|held| held.entry.index);
            if latest != cleared {
                let known = hole.commit.max(newest);
                sound = sound.min(known.max(cleared.unwrap_or_default()));
            }
        }
        sound
    }

    /// What of the entries above the newest base, from place `from` to index `last`, and of those
    /// beyond a gap, is beyond doubt; all that the base holds is.
    fn sound(&self, newest: &BaseRecord, from: usize, last: LogIndex, beyond: &[Held]) -> Sound {
        let last_sound = self.last_sound(newest.index, from, last, beyond);
        let hole = self.doubt.holes.iter().map(|hole| hole.order).max();
        let above = self.entries[from..].iter().chain(beyond);
        let above = above.filter(|held| held.entry.index > last_sound);
        // What was read before the last hole may have been voided in it.
        let sound = above.filter(|held| Some(held.order) > hole);
        let mut beyond: Vec<Entry> = sound.map(|held| held.entry.clone()).collect();
        let held = beyond.last().map(|entry| (entry.index, entry.term));
        let held = held.unwrap_or_else(|| (last_sound, self.term_at(newest, last_sound)));
        let claimed = self.claimed_term.map(|term| (self.claimed.0, term));
        let end = if self.claimed.0 > held.0 {
            claimed
        } else {
            Some(held)
        };
        // What an earlier start has lost, it did not know either when it went on behind the hole.
        let is_first = self.status == RowStatus::Ok;
        beyond.retain(|_| is_first);
        Sound {
            last: last_sound,
            end: end.filter(|_| is_first && !self.doubt.end),
            vote_is_known: is_first && !self.doubt.vote && !self.doubt.status,
            beyond,
        }
    }

    /// The term of an entry that is held above the newest base, or of that.
    fn term_at(&self, newest: &BaseRecord, index: LogIndex) -> Term {
        let place = self.entries.iter().find(|held| held.entry.index == index);
        let place = place.filter(|_| index > newest.index);
        place.map_or(newest.term, |held| held.entry.term)
    }

    fn without_base(self, id: GroupId) -> (GroupLog, GroupStart) {
        let row = GroupRow {
            group: id,
            incarnation: self.incarnation,
            hard: self.hard,
            status: self.row_status(true, LogIndex(1)),
            ..GroupRow::default()
        };
        let what = Some("no base is left".to_string());
        self.end(row, Vec::new(), what, Sound::default())
    }

    fn end(
        self,
        row: GroupRow,
        entries: Vec<Entry>,
        what: Option<String>,
        sound: Sound,
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
            sound,
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

    /// How many entries are not above `index`.
    fn place_above(&self, index: LogIndex) -> usize {
        self.entries
            .partition_point(|held| held.entry.index <= index)
    }

    /// What is missing or in doubt, if the entries above the newest base begin at place `from` and
    /// end with index `last`.
    fn damage(&self, from: usize, last: LogIndex) -> Option<String> {
        let next = last.next();
        if self.claimed.0 > last {
            return Some(format!(
                "entries from {next} to {} are missing",
                self.claimed.0
            ));
        }
        if let Some(index) = self.first_doubtful(&self.entries[from..]) {
            return Some(format!("entries up to {index} may have been replaced"));
        }
        if self.doubt.end {
            return Some(format!("entries from {next} on may be missing"));
        }
        if self.doubt.vote {
            return Some("a vote may be missing".to_string());
        }
        self.doubt
            .status
            .then(|| "its status may be missing".to_string())
    }

    /// The last index before a hole that nothing beyond it confirms.
    fn first_doubtful(&self, entries: &[Held]) -> Option<LogIndex> {
        let is_joined_over_hole = |pair: &&[Held]| {
            pair[0].entry.term != pair[1].entry.term
                && self
                    .doubt
                    .holes
                    .iter()
                    .any(|hole| (pair[0].order..pair[1].order).contains(&hole.order))
        };
        let pair = entries.windows(2).find(is_joined_over_hole);
        pair.map(|pair| pair[0].entry.index)
    }

    /// Whether the entries, of which those before place `to` are not above `newest`, lead from
    /// `previous` to it without a gap and without doubt.
    fn leads(&self, previous: &BaseRecord, newest: &BaseRecord, to: usize) -> bool {
        let between = &self.entries[self.place_above(previous.index)..to];
        let start = previous.log_start_lsn;
        count_dense(between, previous.index) as u64 == newest.index.0 - previous.index.0
            && between.iter().all(|held| held.lsn >= start)
            && between
                .last()
                .is_none_or(|held| held.entry.term == newest.term)
            && self.first_doubtful(between).is_none()
    }
}

/// How many of `entries` follow `base` without a gap.
fn count_dense(entries: &[Held], base: LogIndex) -> usize {
    (base.0 + 1..)
        .zip(entries)
        .take_while(|(index, held)| held.entry.index.0 == *index)
        .count()
}
