//! A member whose log may have lost what it promised: what it may not do until it has that back, and
//! the two ways to get it (Alagappan et al., *Protocol-Aware Recovery for Consensus-Based Storage*,
//! FAST '18, for groups whose members share a log).
//!
//! # What it may not
//!
//! It does not vote or stand, and nothing that it says counts: its messages say that it recovers, and
//! its leader moves its probe by its answers and counts it nowhere (commits, CheckQuorum, reads). The
//! engine writes that it recovers into the log, so that a crash does not end it.
//!
//! # The way out while a leader is heard: an anchor
//!
//! It asks the leader for an entry that is *proposed after the recovery began*. Once its own durable
//! log holds that entry and it is committed, the member is sound. No answer of it counted for that commit,
//! so a majority without it has the entry, in the entry's term: whatever was committed with the help
//! of what was forgotten lies before the entry, and no candidate that got a forgotten vote can win
//! any more, since all who would have to vote for it too have the entry and it has not.
//!
//! # The way out while nobody leads: entry repair
//!
//! It asks the members what they hold from its first missing index on, in a term above all that it
//! knows. Who answers has taken that term durably before, and so acknowledges nothing of an earlier
//! one any more. An answer is *definite* about an index if it gives the entry or says that the log
//! ends before it; a log that is itself in doubt there is not. With definite answers of a majority, its
//! own not counted, about an index (learners, and who is no member here, count for nothing):
//!
//! - An entry was committed with its help only if one of them holds it, and then it is the one with
//!   the highest term (thesis 3.6.3). It is taken, if it follows what is here.
//! - If nobody holds one, or it does not follow, nothing was committed there with its help: the log
//!   ends.
//!
//! What the member's own disk holds beyond the hole is in doubt for nobody: it is taken when it follows.
//! What leads to it in any one answer is what was in the hole (log matching), and likewise what leads to
//! the entry that was the last, where the log still says which that was: the member then has what it had,
//! and nobody else need be asked. That answer, like a checkpoint, may be anybody's, be it of a learner: the members
//! may have changed beyond the hole, until none of those that are voters here is left. Whoever sends something
//! meanwhile is asked as well. So logs are made whole that are damaged on all nodes, each elsewhere.
//! A vote that may be lost is beyond doubt once *all* voters have taken the term of the repair, since
//! no candidate of an earlier one is left.
//!
//! # Deliberately absent
//!
//! Repair behind a change of the members that is not applied, but with what the member had: who would be a
//! majority is not known then. The commit marks of the answers get it applied if it is committed.

use crate::base::bugs::{self, Bug};
use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{LogIndex, Term};
use crate::base::limits::APPEND_BYTES_MAX;
use crate::raft::check::check_entries;
use crate::raft::log::RaftLog;
use crate::raft::message::{Body, Position, StepError, Voter};
use crate::raft::node::{Proposal, RaftNode};
use crate::raft::quorum::Tally;
use crate::raft::ready::Standing;
use crate::raft::role::Role;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a start knows of a log that is in doubt behind its last entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// Entries that lie beyond the hole, rising, and are beyond doubt themselves.
    pub salvaged: Vec<Entry>,
    /// The entry that was the last of all, be it lost or not; `None` if that is not known.
    pub end: Option<Position>,
    /// The hard state is the last that was promised.
    pub vote_is_known: bool,
}

/// The state of a member that recovers.
#[derive(Clone, Debug)]
pub(super) struct Recovery {
    anchor: Option<Position>,
    salvaged: VecDeque<Entry>,
    /// The entry that was the last of all, if that is known.
    end: Option<Position>,
    vote_is_known: bool,
    /// The term of the repair under way, or of the last one.
    repair_term: Term,
    answers: BTreeMap<Voter, Answer>,
    /// Others that sent something, and are no members here: they may be beyond the hole.
    strangers: BTreeSet<Voter>,
    /// Up to here the log is that of the leader of this term.
    followed: (Term, LogIndex),
}

/// What a voter holds from the first missing index on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The first index that was asked for.
    pub first: LogIndex,
    /// The term of the entry before it, if that is known.
    pub before: Option<Term>,
    /// Dense, from `first` on.
    pub entries: Vec<Entry>,
    /// Nothing follows them.
    pub ends: bool,
}

/// What an answer says about one index.
enum Held<'a> {
    /// The entry there, and the term of the one before it as far as known.
    Entry(&'a Entry, Option<Term>),
    Nothing,
    InDoubt,
}

impl Answer {
    /// Whether it can be, from one of this term.
    pub(super) fn check(&self, term: Term) -> Result<(), StepError> {
        let first = self.entries.first().map_or(Term(0), |entry| entry.term);
        let before = (self.first.prev(), self.before.unwrap_or(first));
        if self.first == LogIndex(0) {
            return Err(StepError::Nonsense("it tells of what is no entry"));
        }
        check_entries(term, before, &self.entries)
    }

    fn at(&self, index: LogIndex) -> Held<'_> {
        let Some(place) = index.0.checked_sub(self.first.0) else {
            return Held::InDoubt;
        };
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        match self.entries.get(place) {
            Some(entry) => {
                let before = place.checked_sub(1).map(|place| self.entries[place].term);
                Held::Entry(entry, before.or(self.before))
            }
            None if self.ends => Held::Nothing,
            None => Held::InDoubt,
        }
    }
}

/// What is to be done at the end of a log under repair.
enum Next {
    Take(Entry),
    Ends,
    Wait,
}

impl Recovery {
    fn new(doubt: Doubt) -> Self {
        Self {
            anchor: None,
            salvaged: doubt.salvaged.into(),
            end: doubt.end,
            vote_is_known: doubt.vote_is_known,
            repair_term: Term(0),
            answers: BTreeMap::new(),
            strangers: BTreeSet::new(),
            followed: (Term(0), LogIndex(0)),
        }
    }

    /// Whether nothing lies behind `last`, for certain.
    fn ends_at(&self, last: LogIndex) -> bool {
        let ends = self.end.is_some_and(|end| end.0 <= last);
        ends && self.salvaged.iter().all(|entry| entry.index <= last)
    }

    /// A leader's log replaces what lay beyond the hole.
    fn forget_salvaged(&mut self) {
        self.salvaged.clear();
        self.end = None;
    }

    /// The next entry of the member's own disk, if what is beyond the hole goes on behind `last`.
    fn own_next(&mut self, last: Position) -> Next {
        while self
            .salvaged
            .pop_front_if(|entry| entry.index <= last.0)
            .is_some()
        {}
        match self.salvaged.front() {
            None if self.end.is_some_and(|end| end.0 <= last.0) => Next::Ends,
            // One leader a term, and one log of that leader: an entry of the same term follows.
            Some(entry) if entry.index == last.0.next() && entry.term == last.1 => {
                Next::Take(self.salvaged.pop_front().expect("the front was just seen"))
            }
            Some(entry) if entry.index == last.0.next() && entry.term < last.1 => {
                self.forget_salvaged();
                Next::Wait
            }
            _ => Next::Wait,
        }
    }

    /// The entry behind `last` as it was here, if an answer has it: one that leads to an entry that was here.
    fn as_it_was(&self, last: Position) -> Option<&Entry> {
        let index = last.0.next();
        let salvaged = self.salvaged.front().map(|entry| (entry.index, entry.term));
        let known = salvaged.or(self.end).filter(|known| known.0 >= index)?;
        let mut answers = self.answers.values();
        answers.find_map(|answer| {
            let Held::Entry(entry, before) = answer.at(index) else {
                return None;
            };
            let then = answer.at(known.0);
            let leads = matches!(then, Held::Entry(then, _) if then.term == known.1);
            // One leader a term, and one log of that leader.
            let is_it = leads || entry.term == known.1;
            let follows = before.is_none_or(|term| term == last.1);
            (is_it && follows).then_some(entry)
        })
    }
}

/// What a log, with what lies beyond its hole, holds from `first` on.
fn answer(log: &RaftLog, recovery: Option<&Recovery>, first: LogIndex) -> Answer {
    let last = log.last_index();
    if first <= last || recovery.is_none() {
        let is_held = first > log.base().0 && first <= last;
        let entries = if is_held {
            log.slice(first, APPEND_BYTES_MAX).into_vec()
        } else {
            Vec::new()
        };
        let until = entries.last().map_or(first.prev(), |entry| entry.index);
        return Answer {
            first,
            before: log.term_at(first.prev()),
            ends: until >= last && recovery.is_none_or(|beyond| beyond.ends_at(last)),
            entries,
        };
    }
    let recovery = recovery.expect("the other case has just returned");
    let salvaged = || recovery.salvaged.iter();
    let mut next = first;
    let mut bytes = 0;
    let run = salvaged().skip_while(|entry| entry.index < first);
    let entries: Vec<Entry> = run
        .take_while(|entry| {
            let is_first = bytes == 0;
            bytes += entry.held_bytes();
            let is_dense = entry.index == next && (is_first || bytes <= APPEND_BYTES_MAX);
            next = next.next();
            is_dense
        })
        .cloned()
        .collect();
    let before = salvaged().find(|entry| entry.index == first.prev());
    let until = entries.last().map_or(first.prev(), |entry| entry.index);
    Answer {
        first,
        before: before
            .map(|entry| entry.term)
            .or_else(|| log.term_at(first.prev())),
        ends: recovery.ends_at(until),
        entries,
    }
}

impl RaftNode {
    /// Whether the member may have lost what it promised.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        self.recovery.is_some()
    }

    /// Something outside the group shows that its log may have lost its end, votes included: a peer
    /// heard of more than is here, or an older image of the disk was restored.
    pub fn distrust(&mut self) {
        if let Some(recovery) = &mut self.recovery {
            // What followed may have replaced what lies beyond the hole, and was a vote, perhaps.
            recovery.forget_salvaged();
            recovery.vote_is_known = false;
            return;
        }
        self.recover(Doubt::default());
        self.standing_dirty = true;
        if self.role != Role::Follower {
            self.become_follower(self.term, None);
        }
    }

    pub(super) fn recover(&mut self, doubt: Doubt) {
        self.life += 1;
        self.recovery = Some(Box::new(Recovery::new(doubt)));
    }

    /// What is to be written of it.
    pub(super) fn standing(&self) -> Standing {
        match self.recovery {
            Some(_) => Standing::Recovering {
                since: self.log.last_index().next(),
            },
            None => Standing::Sound,
        }
    }

    pub(super) fn recovered(&mut self) {
        self.recovery = None;
        self.standing_dirty = true;
    }

    // While a leader is heard.

    /// A leader was heard: whoever recovers asks it for an anchor.
    pub(super) fn ask_for_anchor(&mut self) {
        let Some(recovery) = &self.recovery else {
            return;
        };
        let leader = self.leader.filter(|leader| *leader != self.config.me);
        // Of a leader that is gone it may never come.
        let is_coming = |anchor: Position| {
            let may_come = anchor.1 == self.term && anchor.0 > self.log.last_index();
            may_come || self.log.term_at(anchor.0) == Some(anchor.1)
        };
        if let (Some(leader), false) = (leader, recovery.anchor.is_some_and(is_coming)) {
            self.send(leader, Body::AnchorGet { id: self.life });
        }
    }

    /// A leader answers a member that recovers. The same question gets the same entry again, as long as
    /// that is under way: who still asks then has got it in a checkpoint, and cannot know it.
    pub(super) fn on_anchor_get(&mut self, from: Voter, id: u64) {
        let is_free = self.may_propose(0).is_ok();
        let next = (self.log.last_index().next(), self.term);
        let committed = self.log.committed();
        let Some(known) = self.anchor_of(from) else {
            return;
        };
        let at = match *known {
            Some((of, at)) if of == id && at.0 > committed => at,
            _ if is_free => {
                *known = Some((id, next));
                self.append(Proposal {
                    kind: EntryKind::Noop,
                    time: self.last_time,
                    payload: Bytes::new(),
                });
                next
            }
            _ => return,
        };
        self.send(from, Body::Anchor { id, at });
    }

    pub(super) fn on_anchor(&mut self, id: u64, at: Position) {
        if let Some(recovery) = self.recovery.as_mut().filter(|_| id == self.life) {
            recovery.anchor = Some(at);
            self.look_at_anchor();
        }
    }

    /// The anchor may be here, durable and committed.
    pub(super) fn look_at_anchor(&mut self) {
        let Some(anchor) = self.recovery.as_ref().and_then(|recovery| recovery.anchor) else {
            return;
        };
        // Another entry at its index may have been committed before the recovery began.
        let is_here = self.log.term_at(anchor.0) == Some(anchor.1);
        if is_here && self.log.stable().min(self.log.committed()) >= anchor.0 {
            self.recovered();
        }
    }

    /// A leader's entries were taken, and the log is the leader's up to `matched`.
    pub(super) fn follows_leader(&mut self, matched: LogIndex) {
        let term = self.term;
        if let Some(recovery) = &mut self.recovery {
            recovery.forget_salvaged();
            recovery.followed = (term, matched);
        }
    }

    /// Up to here the log is the leader's, if that has counted on it in its term. Not all of it while
    /// this member recovers: the leader may count on what it has lost, and what is left may be an entry
    /// that was replaced since.
    pub(super) fn followed(&self) -> LogIndex {
        match &self.recovery {
            Some(recovery) if !bugs::on(Bug::MarkBelievedInRecovery) => {
                let (term, matched) = recovery.followed;
                if term == self.term {
                    matched
                } else {
                    LogIndex(0)
                }
            }
            _ => self.log.last_index(),
        }
    }

    // While nobody leads.

    /// Somebody sent a message.
    pub(super) fn hear_stranger(&mut self, from: Voter) {
        let is_stranger = !self.members.contains(from);
        if let (Some(recovery), true) = (&mut self.recovery, is_stranger) {
            recovery.strangers.insert(from);
        }
    }

    /// Whether it is asked although it is no member here.
    pub(super) fn asks_stranger(&self, voter: Voter) -> bool {
        let recovery = self.recovery.as_ref();
        recovery.is_some_and(|recovery| recovery.strangers.contains(&voter))
    }

    /// Nobody was heard for an election timeout: asks all that may know.
    pub(super) fn start_repair(&mut self) {
        self.leader = None;
        self.quiet = false;
        self.elapsed = 0;
        self.draw_timeout();
        let known = self.term;
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        recovery.anchor = None;
        recovery.repair_term = recovery.repair_term.max(known).next();
        recovery.answers.clear();
        let term = recovery.repair_term;
        let first = self.log.last_index().next();
        let strangers = recovery.strangers.iter().copied();
        let others: BTreeSet<Voter> = self.members.members().chain(strangers).collect();
        let me = self.config.me;
        for to in others.into_iter().filter(|other| *other != me) {
            let message = self.message(to, term, Body::EntryGet { first });
            self.messages.push(message);
        }
        self.go_on_with_repair();
    }

    /// Has taken the asker's term just now.
    pub(super) fn on_entry_get(&mut self, from: Voter, first: LogIndex) {
        let commit = self.log.last_committed();
        if first <= self.log.base().0 {
            let base = self.log.base();
            return self.promise(from, Body::EntryBase { base });
        }
        let answer = answer(&self.log, self.recovery.as_deref(), first);
        self.promise(from, Body::EntryGot { answer, commit });
    }

    pub(super) fn on_entry_got(
        &mut self,
        from: Voter,
        term: Term,
        answer: Answer,
        commit: Position,
    ) {
        self.learn_commit(commit);
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        if recovery.repair_term == term {
            recovery.answers.insert(from, answer);
            self.go_on_with_repair();
        }
    }

    /// What is missing is committed, and only in checkpoints.
    pub(super) fn on_entry_base(&mut self, from: Voter, base: Position) {
        if self.recovery.is_some() && base.0 > self.log.committed() {
            self.offered = Some((from, base));
        }
    }

    /// Takes what the answers leave no doubt about.
    fn go_on_with_repair(&mut self) {
        let begun = self.log.last_index();
        let ends = loop {
            match self.next_in_repair() {
                Next::Take(entry) => {
                    self.log.append(entry);
                    self.go_on_from_log();
                }
                Next::Ends => break true,
                Next::Wait => break false,
            }
        };
        if ends {
            self.end_repair();
        } else if self.log.last_index() > begun {
            // More may be had at once.
            self.start_repair();
        }
    }

    fn next_in_repair(&mut self) -> Next {
        let last = self.log.last();
        let is_past_change = self.log.last_change() > self.log.applied();
        let recovery = self.recovery.as_mut().expect("only who recovers repairs");
        match recovery.own_next(last) {
            Next::Wait => {}
            own => return own,
        }
        if let Some(entry) = recovery.as_it_was(last) {
            return Next::Take(entry.clone());
        }
        // Who is a majority behind it is not known.
        if is_past_change {
            return Next::Wait;
        }
        let index = last.0.next();
        let is_definite = |voter: Voter| {
            let held = recovery.answers.get(&voter).map(|answer| answer.at(index));
            held.is_some_and(|held| !matches!(held, Held::InDoubt))
        };
        let definite = |voter| is_definite(voter).then_some(true);
        let is_enough = self.members.tally(definite) == Tally::Won;
        let is_one = !recovery.answers.is_empty();
        let is_answered = is_enough || (is_one && bugs::on(Bug::CutByOneAnswer));
        if !is_answered {
            return Next::Wait;
        }
        let voters = recovery.answers.iter();
        let voters = voters.filter(|(from, _)| self.members.is_voter(**from));
        let held = voters.map(|(_, answer)| answer.at(index));
        let entries = held.filter_map(|held| match held {
            Held::Entry(entry, before) => Some((entry, before)),
            _ => None,
        });
        match entries.max_by_key(|(entry, before)| (entry.term, *before)) {
            Some((entry, _)) if entry.term == last.1 => Next::Take(entry.clone()),
            Some((entry, before)) if entry.term > last.1 => match before {
                Some(term) if term == last.1 => Next::Take(entry.clone()),
                Some(_) => Next::Ends,
                None => Next::Wait,
            },
            _ => Next::Ends,
        }
    }

    /// The log is whole. A vote that may be lost needs all voters.
    fn end_repair(&mut self) {
        let recovery = self.recovery.as_ref().expect("only who recovers repairs");
        let term = recovery.repair_term;
        let has_answered = |voter: Voter| recovery.answers.contains_key(&voter);
        if recovery.vote_is_known || self.other_voters().all(has_answered) {
            self.become_follower(self.term.max(term), None);
            self.recovered();
        }
    }
}
