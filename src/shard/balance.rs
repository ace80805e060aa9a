//! Leaders spread over the zones and the nodes.
//!
//! Every node has every group, so each can count by itself who leads how many: of those that its shard
//! shares with others, by what its members have heard. First zones are made level, then nodes:
//!
//! ```text
//!   zone a: n1 leads 22, n2 21        zone a: n1 16, n2 16
//!   zone b: n3 leads 21         ──>   zone b: n3 32
//! ```
//!
//! The node that leads most in a zone hands groups to a zone that leads fewer, and every node to one of its
//! own zone that leads fewer; always to the one that leads fewest, a few at a time, until no two differ by
//! more than one. So a node that comes back after a failure gets its share, and a cluster that has just
//! been formed is level within seconds. A node without a zone is one by itself: where nobody has a zone,
//! nodes are made level.
//!
//! Nodes whose numbers of shards differ do not count the same groups, and may give each other one for ever: a node
//! that has given a group away and soon leads it again keeps it for twice as long as the time before ([`Stay`]).
//!
//! Nothing moves while leaders change anyway: an election is not made worse by a transfer. A member gets
//! a group only if it has most of its log, so that requests wait for as long as two messages take.
//!
//! A node that *drains* hands over all that it leads, and what it comes to lead; nobody hands it anything.
//! So does one whose disk is full, which refuses new jobs, as long as another has room: it tells the others
//! that it shall get no lead, and where all are full nobody hands over anything. Nor shall a node get one
//! while some group of it is mended: it would only give it back.
//!
//! Deliberately absent: load, since a group counts one, however busy it is; and the placement of replicas,
//! since every node has one of each group.

use super::engine::ShardEngine;
use crate::base::ids::{LogIndex, Voter};
use crate::base::limits::{
    BALANCE_AFTER_MS, BALANCE_DOUBLINGS_MAX, BALANCE_EVERY_MS, BALANCE_GROUPS, BALANCE_LAG_MAX,
};
use crate::base::units::Monotonic;
use crate::raft::progress::Sending;
use crate::raft::role::Role;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// What may be lost together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Zone {
    Named(String),
    /// A node that has none.
    Alone(Voter),
}

impl Zone {
    fn of(voter: Voter, name: Option<&String>) -> Self {
        let name = name.filter(|name| !name.is_empty());
        name.map_or(Self::Alone(voter), |name| Self::Named(name.clone()))
    }
}

/// Who leads how many groups.
#[derive(Debug, Default)]
struct Leads {
    zones: BTreeMap<Voter, Zone>,
    by_node: BTreeMap<Voter, usize>,
    by_zone: BTreeMap<Zone, usize>,
}

impl Leads {
    fn new(zones: BTreeMap<Voter, Zone>, leaders: impl Iterator<Item = Voter>) -> Self {
        let mut leads = Self {
            zones,
            ..Self::default()
        };
        for leader in leaders {
            *leads.by_node.entry(leader).or_default() += 1;
            let zone = leads.zone(leader);
            *leads.by_zone.entry(zone).or_default() += 1;
        }
        leads
    }

    /// One that has gone may lead still.
    fn zone(&self, voter: Voter) -> Zone {
        let zone = self.zones.get(&voter);
        zone.cloned().unwrap_or(Zone::Alone(voter))
    }

    /// Groups that its zone leads, and groups that it leads.
    fn of(&self, voter: Voter) -> (usize, usize) {
        let by_zone = self.by_zone.get(&self.zone(voter));
        let by_node = self.by_node.get(&voter);
        let or_none = |count: Option<&usize>| count.copied().unwrap_or_default();
        (or_none(by_zone), or_none(by_node))
    }

    /// Whether a group led by `from` is better led by `to`. Into another zone only the node of a zone gives
    /// that leads most in it, of equals the first: it alone, so that not all of them give at once.
    fn may_give(&self, from: Voter, to: Voter) -> bool {
        let ((from_zone, from_node), (to_zone, to_node)) = (self.of(from), self.of(to));
        let zone = self.zone(from);
        if zone == self.zone(to) {
            return to_node + 1 < from_node;
        }
        let neighbours = self.zones.iter().filter(|(_, other)| **other == zone);
        let first = neighbours
            .map(|(voter, _)| *voter)
            .max_by_key(|voter| (self.of(*voter).1, Reverse(*voter)));
        to_zone + 1 < from_zone && first == Some(from)
    }

    /// A group is led by another from now on.
    fn moved(&mut self, from: Voter, to: Voter) {
        for (voter, step) in [(from, -1), (to, 1)] {
            let zone = self.zone(voter);
            let by_node = self.by_node.entry(voter).or_default();
            *by_node = by_node.saturating_add_signed(step);
            let by_zone = self.by_zone.entry(zone).or_default();
            *by_zone = by_zone.saturating_add_signed(step);
        }
    }
}

/// A group that comes back within this, on whatever ways, came back soon: it may pass through all other nodes.
const SOON: Duration = Duration::from_secs(60);

/// How long a group stays with a node that has given it away, should it come back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stay {
    /// It came back so often, each time soon.
    doublings: u32,
    until: Monotonic,
}

impl Stay {
    /// The group is given away. That it was given away before counts for as long again as it had to stay, and
    /// for [`SOON`] at the least.
    fn gave_away(&mut self, now: Monotonic) {
        let time = |doublings| Duration::from_millis(BALANCE_AFTER_MS << doublings);
        let is_again = now < self.until.plus(time(self.doublings).max(SOON));
        let doublings = if is_again { self.doublings + 1 } else { 1 };
        self.doublings = doublings.min(BALANCE_DOUBLINGS_MAX);
        self.until = now.plus(time(self.doublings));
    }
}

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
        if self.hands_over() {
            return self.hand_over_all();
        }
        let mut leads = self.leads();
        let me = self.config.me();
        let level = |peer: &Voter| self.peers.drains(peer) || !leads.may_give(me, *peer);
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
            if self.groups[slot].stay.until > now {
                continue;
            }
            let Some(to) = self.successor(slot, &leads) else {
                continue;
            };
            if self.groups[slot].raft.transfer_to(to).is_ok() {
                leads.moved(me, to);
                moves += 1;
                self.groups[slot].stay.gave_away(now);
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

    /// Whether this node was told to hand over whatever it leads.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether it hands over whatever it leads: it was told to, or its disk is full.
    fn hands_over(&self) -> bool {
        self.draining || self.disk_full
    }

    /// Whether another may give it a lead: it hands over none, and has the state of all its groups.
    #[must_use]
    pub fn takes_leads(&self) -> bool {
        !self.hands_over() && self.counters.groups_mending == 0
    }

    /// The room left on the disk changed.
    pub(super) fn on_disk_space(&mut self, full: bool, exhausted: bool) {
        self.disk_exhausted = exhausted;
        let full = full || exhausted;
        self.counters.disk_full = u64::from(full);
        if std::mem::replace(&mut self.disk_full, full) != full {
            self.balance_at = Some(self.now.mono);
        }
    }

    /// Another node shall get no lead, or may again.
    pub(super) fn on_peer_drains(&mut self, peer: Voter, on: bool) {
        self.peers.set_drains(peer, on);
        self.put_off_balance();
    }

    /// Until it leads nothing that another could.
    fn hand_over_all(&mut self) {
        let mut is_left = false;
        let (me, mut leads) = (self.config.me(), self.leads());
        for slot in 0..self.groups.len() {
            let group = &self.groups[slot];
            if group.raft.role() != Role::Leader || group.raft.leads_alone() {
                continue;
            }
            is_left = true;
            let fit = self.fit_to_lead(slot);
            let Some(to) = fit.min_by_key(|voter| leads.of(*voter)) else {
                continue;
            };
            if self.groups[slot].raft.transfer_to(to).is_ok() {
                leads.moved(me, to);
                self.counters.raft_groups_handed_over_total += 1;
                self.mark(slot);
            }
        }
        let again = self.now.mono.plus(Duration::from_millis(BALANCE_EVERY_MS));
        self.balance_at = is_left.then_some(again);
    }

    /// How many groups each node and each zone leads, as far as known here.
    fn leads(&self) -> Leads {
        let me = self.config.me();
        let zones = self.peers.members().iter().copied().chain([me]);
        let zones = zones.map(|voter| {
            let known = self.peers.zone(&voter);
            let name = if voter == me {
                Some(&self.config.zone)
            } else {
                known
            };
            (voter, Zone::of(voter, name))
        });
        let leaders = self.groups.iter().filter_map(|group| group.raft.leader());
        Leads::new(zones.collect(), leaders)
    }

    /// Who shall lead a group that this node leads: of those that can and lead too few the one whose zone,
    /// and that itself, leads fewest.
    fn successor(&self, slot: usize, leads: &Leads) -> Option<Voter> {
        let me = self.config.me();
        let fit = self.fit_to_lead(slot);
        fit.filter(|voter| leads.may_give(me, *voter))
            .min_by_key(|voter| leads.of(*voter))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{DiskId, NodeId};

    fn voter(node: u32) -> Voter {
        Voter {
            node: NodeId(node),
            disk: DiskId([node as u8; 16]),
        }
    }

    /// Nodes from 1 on, each with its zone and what it leads.
    fn leads(nodes: &[(&str, usize)]) -> Leads {
        let numbered = || (1..).map(voter).zip(nodes);
        let zone = |(voter, (name, _)): (Voter, &(&str, usize))| {
            (voter, Zone::of(voter, Some(&(*name).to_owned())))
        };
        let leaders = numbered().flat_map(|(voter, (_, count))| std::iter::repeat_n(voter, *count));
        Leads::new(numbered().map(zone).collect(), leaders)
    }

    /// All nodes give, one group at a time each, until none may; what they lead then.
    fn level(mut leads: Leads) -> Vec<usize> {
        let nodes: Vec<Voter> = leads.zones.keys().copied().collect();
        for _ in 0..1_000 {
            let before = leads.by_node.clone();
            for from in &nodes {
                let others = nodes.iter().filter(|to| *to != from);
                let fit = others.filter(|to| leads.may_give(*from, **to));
                if let Some(to) = fit.min_by_key(|to| leads.of(**to)).copied() {
                    leads.moved(*from, to);
                }
            }
            if leads.by_node == before {
                let counts = nodes.iter().map(|voter| leads.of(*voter).1);
                return counts.collect();
            }
        }
        panic!("it never ends: {leads:?}");
    }

    #[test]
    fn a_group_that_always_comes_back_stays_longer_each_time() {
        let mut stay = Stay::default();
        let mut give = |now: Monotonic| {
            stay.gave_away(now);
            stay.until.since(now).as_secs()
        };
        let mut now = Monotonic(0);
        for secs in [4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 2048] {
            assert_eq!(give(now), secs);
            // It came back meanwhile.
            now = now.plus(Duration::from_secs(secs + 2));
        }
        // It was good to have given it away.
        now = now.plus(Duration::from_secs(4096));
        assert_eq!(give(now), 4);
    }

    #[test]
    fn a_group_that_goes_round_stays_longer_each_time_however_long_its_way_is() {
        let mut stay = Stay::default();
        stay.gave_away(Monotonic(0));
        let mut now = Monotonic(0);
        for doublings in 2..=5 {
            now = now.max(stay.until).plus(Duration::from_secs(30));
            stay.gave_away(now);
            assert_eq!(stay.doublings, doublings);
        }
    }

    #[test]
    fn zones_are_level_before_nodes_are() {
        assert_eq!(
            level(leads(&[("a", 22), ("a", 21), ("b", 21)])),
            [16, 16, 32]
        );
        assert_eq!(level(leads(&[("a", 64), ("a", 0), ("b", 0)])), [16, 16, 32]);
        let five = [("a", 0), ("a", 64), ("b", 0), ("b", 0), ("c", 0)];
        let counts = level(leads(&five));
        let zones = [counts[0] + counts[1], counts[2] + counts[3], counts[4]];
        assert!(
            zones.iter().all(|count| (21..=22).contains(count)),
            "{counts:?}"
        );
        assert!(counts[0].abs_diff(counts[1]) <= 1 && counts[2].abs_diff(counts[3]) <= 1);
    }

    #[test]
    fn without_zones_nodes_are_level() {
        for nodes in [[("", 64), ("", 0), ("", 0)], [("", 10), ("", 50), ("", 4)]] {
            let counts = level(leads(&nodes));
            assert!(
                counts.iter().all(|count| (21..=22).contains(count)),
                "{counts:?}"
            );
        }
        // One without a zone is one by itself.
        assert_eq!(level(leads(&[("a", 64), ("a", 0), ("", 0)])), [16, 16, 32]);
        // All in one: as if there were none.
        let counts = level(leads(&[("a", 64), ("a", 0), ("a", 0)]));
        assert!(
            counts.iter().all(|count| (21..=22).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn one_node_of_a_zone_gives_to_another_zone() {
        let leads = leads(&[("a", 20), ("a", 20), ("b", 0)]);
        assert!(leads.may_give(voter(1), voter(3)));
        assert!(
            !leads.may_give(voter(2), voter(3)),
            "the first of equals gives"
        );
        assert!(!leads.may_give(voter(1), voter(2)));
        assert!(!leads.may_give(voter(3), voter(1)));
    }
}
