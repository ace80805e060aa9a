//! What of a group's state cannot be read comes from another member.
//!
//! ```text
//!   a page twice unreadable ───┐
//!                              ├─> mend: applies no further ─> hands the lead over, if it leads
//!   no base readable at start ─┤                                           │
//!   found by a look (scrubbing)┘                                           │
//!   goes on, from the log behind it <─ in force <─ a checkpoint of an intact member, by difference
//! ```
//!
//! The member has all but what is damaged, so that hardly more comes than that and what has changed since. It
//! stops where it is meanwhile, so that a checkpoint is ahead of it; its log goes on, and is as good as ever.
//! A member that has read no base at a start begins with nothing: all comes. Its log is whole, so that it votes
//! and counts as before. A disk that could not be read may be readable again: once all others were asked in
//! vain, it is tried anew. No checkpoint is asked for until that is read, or cannot be: the log goes on from one
//! state alone.
//!
//! # Invariants
//! - Who mends does not serve, and leads no longer than it takes to hand that over.
//! - A group in which nobody else votes is not mended: it stops, and is repaired by hand.
//! - One group of a shard is mended at a time, and none keeps the others from it: who does not answer is
//!   followed by the next group, and there by the next member.

use super::bases::root_ref;
use super::effect::{Effect, GroupReader};
use super::engine::ShardEngine;
use super::group::{Group, Phase};
use crate::base::units::Monotonic;
use crate::queue::view::PageKey;
use crate::raft::message::Voter;
use crate::raft::role::Role;
use std::collections::BTreeSet;
use std::time::Duration;

/// Another member is asked after this, if the last one did not answer, or this one leads still.
const ASK_ANOTHER: Duration = Duration::from_secs(1);

/// More than so many times more was found to be damaged: nothing is believed any more.
const FOUND_MAX: usize = 8;

/// Who leads still after it was to hand over so many times finds nobody who can: it goes on.
const HAND_OVERS_MAX: usize = 3;

/// What a group waits for that is mended.
pub(super) struct Mending {
    /// Parts of its state that are damaged, by key and level.
    damaged: BTreeSet<(PageKey, u8)>,
    /// How often more was found to be damaged.
    found: usize,
    /// How often somebody was asked since then.
    asked: usize,
    /// How often it led still when somebody was to be asked.
    led: usize,
    /// Nobody is asked before.
    next: Monotonic,
    /// Its own bases are being read again.
    is_tried_anew: bool,
}

impl Group {
    /// What of its state is damaged, as far as known.
    pub(super) fn damaged(&self) -> BTreeSet<(PageKey, u8)> {
        let mending = self.mending.as_ref();
        mending.map_or_else(BTreeSet::new, |mending| mending.damaged.clone())
    }

    /// Whether nothing of its state is to be kept: it is not here, or more and more of it is found to be
    /// damaged.
    pub(super) fn is_given_up(&self) -> bool {
        let is_rotten = |mending: &Mending| mending.found > FOUND_MAX;
        matches!(self.phase, Phase::Lost(_)) || self.mending.as_ref().is_some_and(is_rotten)
    }

    /// Whether its own bases are being read again. What is read takes the place of the state as of the base:
    /// no other may come there meanwhile.
    pub(super) fn is_tried_anew(&self) -> bool {
        let mending = self.mending.as_ref();
        mending.is_some_and(|mending| mending.is_tried_anew)
    }

    /// They were read again; false if nobody waits for that.
    pub(super) fn end_attempt(&mut self) -> bool {
        let is_lost = matches!(self.phase, Phase::Lost(_));
        let mending = self.mending.as_mut().filter(|_| is_lost);
        mending.is_some_and(|mending| std::mem::take(&mut mending.is_tried_anew))
    }

    /// Whether a checkpoint of another member may take the place of its state.
    pub(super) fn takes_checkpoints(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Lost(_))
    }
}

impl ShardEngine {
    /// Whether another member may have what is damaged here, and one can lead meanwhile: a learner cannot.
    pub(super) fn can_mend(&self, slot: usize) -> bool {
        let members = self.groups[slot].raft.members();
        let me = self.config.me();
        let mut others = members.members().filter(|member| *member != me);
        others.any(|other| members.is_voter(other))
    }

    /// Parts of a group's state are damaged. It goes on once they have come from another member.
    pub(super) fn mend(&mut self, slot: usize, damaged: impl IntoIterator<Item = (PageKey, u8)>) {
        let now = self.now.mono;
        let group = &mut self.groups[slot];
        let is_new = group.mending.is_none();
        let mending = group.mending.get_or_insert_with(|| Mending {
            damaged: BTreeSet::new(),
            found: 0,
            asked: 0,
            led: 0,
            next: now,
            is_tried_anew: false,
        });
        mending.damaged.extend(damaged);
        // Who leads has what was missing, most likely.
        (mending.found, mending.asked, mending.next) = (mending.found + 1, 0, now);
        group.raft.hand_over();
        self.counters.groups_mending += u64::from(is_new);
        self.mark(slot);
    }

    /// None of the group's checkpoints can be read: all of it comes from another member.
    pub(super) fn lose_state(&mut self, slot: usize, why: &str) {
        let group = &mut self.groups[slot];
        let id = group.id;
        group.phase = Phase::Lost(format!(
            "group {id} waits for its state from another member, because {why}"
        ));
        self.mend(slot, []);
    }

    /// A checkpoint has taken the place of the group's state.
    pub(super) fn mended(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        if group.mending.take().is_some() {
            group.pages = Default::default();
            group.phase = Phase::Serving;
            self.counters.groups_mending -= 1;
            self.counters.groups_mended_total += 1;
        }
    }

    /// When the next is asked.
    pub(super) fn next_mending(&self) -> Option<Monotonic> {
        if self.counters.groups_mending == 0 || self.installs.receiving.is_some() {
            return None;
        }
        let mending = self
            .groups
            .iter()
            .filter_map(|group| group.mending.as_ref());
        let mending = mending.filter(|mending| !mending.is_tried_anew);
        mending.map(|mending| mending.next).min()
    }

    /// Asks for what a group needs to be mended, if nothing else is on its way here.
    pub(super) fn begin_mending(&mut self) {
        self.hand_over_mending();
        let now = self.now.mono;
        if self.next_mending().is_none_or(|at| at > now) {
            return;
        }
        let is_due = |slot: &usize| {
            let mending = self.groups[*slot].mending.as_ref();
            mending.is_some_and(|mending| mending.next <= now && !mending.is_tried_anew)
        };
        let mut due: Vec<usize> = (0..self.groups.len()).filter(is_due).collect();
        // Who has waited longest: one that nobody can help must not keep the others from being helped.
        due.sort_by_key(|slot| self.groups[*slot].mending.as_ref().map(|it| it.next));
        for slot in due {
            let all = self.may_be_intact(slot);
            let may = self.may_install(slot) && !self.checkpoints.is_placing();
            let group = &mut self.groups[slot];
            let leads = group.raft.role() == Role::Leader;
            let Some(mending) = &mut group.mending else {
                continue;
            };
            mending.next = now.plus(ASK_ANOTHER);
            if leads {
                mending.led += 1;
                if mending.led.is_multiple_of(HAND_OVERS_MAX) {
                    self.try_anew(slot);
                }
                continue;
            }
            // Who cannot be asked now was not asked in vain.
            let nth = mending.asked % (all.len() + 1);
            if nth < all.len() && !may {
                continue;
            }
            mending.asked += 1;
            match all.get(nth) {
                Some(from) => return self.begin_install(slot, *from),
                None => self.try_anew(slot),
            }
        }
    }

    /// Who mends cannot serve: as soon as another can lead, it does.
    fn hand_over_mending(&mut self) {
        if self.counters.groups_mending == 0 {
            return;
        }
        for slot in 0..self.groups.len() {
            let group = &mut self.groups[slot];
            let leads = group.raft.role() == Role::Leader && !group.raft.is_handing_over();
            if group.mending.is_some() && leads {
                group.raft.hand_over();
                self.mark(slot);
            }
        }
    }

    /// The other members that may answer, first the leader.
    fn may_be_intact(&self, slot: usize) -> Vec<Voter> {
        let (raft, me) = (&self.groups[slot].raft, self.config.me());
        let leader = raft.leader();
        let others = raft.members().members();
        let others = others.filter(|other| Some(*other) != leader);
        let all = leader.into_iter().chain(others);
        all.filter(|other| *other != me && self.peers.is_there(other))
            .collect()
    }

    /// Nobody has answered: what could not be read here may be readable by now.
    fn try_anew(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        if let (Phase::Lost(_), Some(mending)) = (&group.phase, &mut group.mending) {
            mending.is_tried_anew = true;
            self.effects.push(Effect::LoadGroup {
                group: group.id,
                bases: group.bases.iter().filter_map(root_ref).collect(),
                reader: GroupReader::Group,
            });
            return;
        }
        group.mending = None;
        group.pages = Default::default();
        self.counters.groups_mending -= 1;
        self.mark(slot);
    }
}
