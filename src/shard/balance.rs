//! Leaders spread over the nodes.
//!
//! Every node has every group, so each can count by itself who leads how many: of those that its shard
//! shares with others, by what its members have heard. A node that leads more than another hands groups
//! to the one that leads fewest, a few at a time, until no two differ by more than one. So a node that
//! comes back after a failure gets its share, and a cluster that has just been formed is level within
//! seconds.
//!
//! Nothing moves while leaders change anyway: an election is not made worse by a transfer. A member gets
//! a group only if it has most of its log, so that requests wait for as long as two messages take.
//!
//! A node that *drains* hands over all that it leads, and what it comes to lead; nobody hands it anything.
//!
//! Deliberately absent: load. A group counts one, however busy it is.

use super::engine::ShardEngine;
use crate::base::ids::{LogIndex, Voter};
use crate::base::limits::{BALANCE_AFTER_MS, BALANCE_EVERY_MS, BALANCE_GROUPS, BALANCE_LAG_MAX};
use crate::base::units::Monotonic;
use crate::raft::progress::Sending;
use crate::raft::role::Role;
use std::collections::BTreeMap;
use std::time::Duration;

impl ShardEngine {
    /// Leaders changed, or another node is there: nothing is moved for a while, then it is looked.
    pub(super) fn put_off_balance(&mut self) {
        if !self.peers.members().is_empty() {
            let at = self.now.mono.plus(Duration::from_millis(BALANCE_AFTER_MS));
            self.balance_at = Some(at);
        }
    }

    /// Hands over some groups, if it is time to look and this node leads too many.
    pub(super) fn balance_leaders(&mut self) {
        let now = self.now.mono;
        if self.stopping() || self.balance_at.is_none_or(|at| at > now) {
            return;
        }
        if self.draining {
            return self.hand_over_all();
        }
        let mut counts = self.leads_by_node();
        let me = self.config.me();
        let of = |voter: &Voter| counts.get(voter).copied().unwrap_or_default();
        let level = |peer: &Voter| self.peers.drains(peer) || of(peer) + 1 >= of(&me);
        if self.peers.members().iter().all(level) {
            // Until something changes.
            self.balance_at = None;
            return;
        }
        self.balance_at = Some(now.plus(Duration::from_millis(BALANCE_EVERY_MS)));
        let mut moves = 0;
        for slot in 0..self.groups.len() {
            if moves == BALANCE_GROUPS {
                return;
            }
            let Some(to) = self.successor(slot, &counts) else {
                continue;
            };
            if self.groups[slot].raft.transfer_to(to).is_ok() {
                *counts.entry(me).or_default() -= 1;
                *counts.entry(to).or_default() += 1;
                moves += 1;
                self.counters.raft_groups_handed_over_total += 1;
                self.mark(slot);
            }
        }
    }

    /// From now on this node hands over what it leads, or does so no more.
    pub(super) fn drain_leads(&mut self, on: bool) {
        self.draining = on;
        self.balance_at = Some(self.now.mono);
    }

    /// Whether this node hands over whatever it leads.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Another node hands over whatever it leads, or does so no more.
    pub(super) fn on_peer_drains(&mut self, peer: Voter, on: bool) {
        self.peers.set_drains(peer, on);
        self.put_off_balance();
    }

    /// Until it leads nothing that another could.
    fn hand_over_all(&mut self) {
        let mut is_left = false;
        let mut counts = self.leads_by_node();
        for slot in 0..self.groups.len() {
            let group = &self.groups[slot];
            if group.raft.role() != Role::Leader || group.raft.leads_alone() {
                continue;
            }
            is_left = true;
            let to = self.fit_to_lead(slot).min_by_key(|voter| {
                let of = counts.get(voter);
                of.copied().unwrap_or_default()
            });
            let Some(to) = to else { continue };
            if self.groups[slot].raft.transfer_to(to).is_ok() {
                *counts.entry(to).or_default() += 1;
                self.counters.raft_groups_handed_over_total += 1;
                self.mark(slot);
            }
        }
        let again = self.now.mono.plus(Duration::from_millis(BALANCE_EVERY_MS));
        self.balance_at = is_left.then_some(again);
    }

    /// How many groups each node leads, as far as known here.
    fn leads_by_node(&self) -> BTreeMap<Voter, usize> {
        let mut counts = BTreeMap::new();
        for leader in self.groups.iter().filter_map(|group| group.raft.leader()) {
            *counts.entry(leader).or_default() += 1;
        }
        counts
    }

    /// Who shall lead a group that this node leads: of those that can the one that leads fewest groups, if
    /// that are too few.
    fn successor(&self, slot: usize, counts: &BTreeMap<Voter, usize>) -> Option<Voter> {
        let of = |voter: &Voter| counts.get(voter).copied().unwrap_or_default();
        let least = self.fit_to_lead(slot).min_by_key(of)?;
        (of(&least) + 1 < of(&self.config.me())).then_some(least)
    }

    /// Who could lead a group at once in place of this node: those that have most of its log.
    fn fit_to_lead(&self, slot: usize) -> impl Iterator<Item = Voter> {
        let group = &self.groups[slot];
        let raft = &group.raft;
        let may_hand_over = group.serves() && !raft.is_handing_over();
        let last = raft.log().last_index();
        let has_most = move |counted: LogIndex| last.0 - counted.0 <= BALANCE_LAG_MAX;
        let fit = raft.followers().filter(move |(voter, progress)| {
            may_hand_over
                && raft.members().is_voter(*voter)
                && !self.peers.drains(voter)
                && !progress.is_lost()
                && *progress.sending() == Sending::Replicate
                && has_most(progress.counted())
        });
        fit.map(|(voter, _)| voter)
    }

    /// When it looks again.
    pub(super) fn next_balance(&self) -> Option<Monotonic> {
        self.balance_at.filter(|_| !self.stopping())
    }
}
