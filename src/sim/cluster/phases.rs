//! The phases of a run: faults, a healed majority, all healed and worked off, a stop in order.

use super::judges::{self, Judges};
use super::node::Node;
use super::traffic::Asker;
use super::{Cluster, Event, STOPPED_WITHIN};
use crate::base::ids::GroupId;
use crate::raft::role::Role;
use crate::shard::engine::ShardEngine;
use crate::sim::client::SimClient;
use crate::sim::core_client::CoreClient;
use std::time::Duration;

/// A majority that is healed makes progress within this.
const PROGRESS_WITHIN: Duration = Duration::from_secs(30);
/// A whole cluster has worked off everything, and is equal, within this.
const DRAINED_WITHIN: Duration = Duration::from_secs(400);

impl Cluster<'_> {
    pub(super) fn meet_faults(&mut self) {
        let end = self.now.plus(Duration::from_millis(self.options.fault_ms));
        self.schedule_fault();
        while self.now < end {
            self.step();
        }
        self.has_faults = false;
    }

    /// Runs on for so long, whatever happens.
    pub(super) fn go_on_for(&mut self, time: Duration) {
        let end = self.now.plus(time);
        while self.now < end {
            self.step();
        }
    }

    pub(super) fn heal_a_majority(&mut self) {
        // Who has nothing yet helps nobody.
        let renewed = self.renewed();
        let all = (0..self.options.nodes).filter(|node| Some(*node) != renewed);
        let mut core: Vec<usize> = all.collect();
        core.retain(|node| !self.nodes[*node].is_harmed);
        while core.len() > self.options.nodes / 2 + 1 {
            core.remove(self.prng.below(core.len() as u64) as usize);
        }
        self.say(|| format!("the nodes at {core:?} are healed, the others cut off"));
        for other in (0..self.options.nodes).filter(|other| !core.contains(other)) {
            self.stay_down.insert(other);
            for node in core.clone() {
                self.cut(node, other, 3_600_000);
                self.cut(other, node, 3_600_000);
            }
        }
        for node in core.clone() {
            for other in core.clone() {
                if node != other {
                    self.way(node, other).cut_until = self.now;
                    self.heal(node, other);
                }
            }
            self.heal_node(node);
        }
        self.must_make_progress(&core);
    }

    pub(super) fn must_make_progress(&mut self, core: &[usize]) {
        self.probed.clear();
        let end = self.now.plus(PROGRESS_WITHIN);
        let mut next = self.now;
        while self.probed.len() < self.options.groups as usize {
            if self.now >= next {
                self.probe(core);
                next = self.now.plus(Duration::from_millis(20));
            }
            assert!(
                self.now < end,
                "a healed majority at {core:?} makes no progress: only {:?} do, of {:?}",
                self.probed,
                self.groups_of_running()
            );
            self.step();
        }
        self.close_all_of(Asker::Probe);
    }

    /// The process of a node runs, its disk works, and its clock is right. What could not be read is read at another start.
    fn heal_node(&mut self, node: usize) {
        let place = &mut self.nodes[node];
        let could_not_read = place.unreadable_until > self.now;
        place.slow_until = self.now;
        place.full_until = self.now;
        place.unreadable_until = self.now;
        place.write_fails = false;
        place.set_clock();
        if could_not_read || self.halted_of(node) > 0 {
            self.die(node);
        }
        self.resume(node);
        self.on_space(node);
        self.start(node);
    }

    /// Groups of a node that stopped.
    fn halted_of(&self, node: usize) -> usize {
        let engines = self.nodes[node].engines.iter();
        engines.map(|engine| engine.halted().count()).sum()
    }

    pub(super) fn heal_all(&mut self) {
        self.say(|| "all is healed".to_owned());
        self.stay_down.clear();
        for node in 0..self.options.nodes {
            self.heal_node(node);
        }
        for from in 0..self.options.nodes {
            for to in 0..self.options.nodes {
                self.way(from, to).cut_until = self.now;
                self.heal(from, to);
            }
        }
    }

    /// No more jobs: everything is worked off, and all nodes have the same.
    pub(super) fn drain(&mut self) {
        self.produces = false;
        let end = self.now.plus(DRAINED_WITHIN);
        let mut next = self.now;
        loop {
            if self.now >= next {
                next = self.now.plus(Duration::from_millis(50));
                if self.is_drained() {
                    break;
                }
            }
            let live = |node: &Node| node.engines.iter().map(ShardEngine::live_jobs).sum();
            assert!(
                self.now < end,
                "not drained: jobs that are live on each node: {:?} in {:?}",
                self.nodes.iter().map(live).collect::<Vec<u64>>(),
                self.groups_of_running()
            );
            self.step();
        }
        self.say(|| "all is worked off".to_owned());
        self.close_library();
        let lost: Vec<_> = self
            .ledger
            .audit()
            .filter(|(_, is_live)| *is_live)
            .collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        self.must_be_equal();
    }

    fn is_drained(&self) -> bool {
        let nodes = self.nodes.iter().flat_map(|node| &node.engines);
        let live = nodes.map(ShardEngine::live_jobs).max();
        let produces = self.library.iter().any(CoreClient::produces)
            || self.clients.iter().any(SimClient::produces);
        live == Some(0) && self.operator.is_idle() && !produces && self.all_is_applied()
    }

    /// Whether every group has a leader that has applied all that it has: what lies in a log and is not known to
    /// be committed yet may be a job.
    fn all_is_applied(&self) -> bool {
        let leads = |group: GroupId| {
            let members = self.nodes.iter().filter_map(|node| node.engine_of(group));
            let mut members = members.map(|engine| engine.member(group));
            members.any(|raft| {
                raft.role() == Role::Leader && raft.log().applied() == raft.log().last_index()
            })
        };
        (0..self.options.groups).all(|group| leads(GroupId(group as u16)))
    }

    /// Nobody asks any more, and every group comes to be the same on all nodes.
    fn must_be_equal(&mut self) {
        self.events.retain(|event| {
            !matches!(
                event,
                Event::ClientActs(_)
                    | Event::LibraryActs(_)
                    | Event::AskAgain(..)
                    | Event::OperatorActs
            )
        });
        let end = self.now.plus(DRAINED_WITHIN);
        let mut next = self.now;
        loop {
            if self.now >= next {
                next = self.now.plus(Duration::from_millis(100));
                let mut groups = (0..self.options.groups).map(|group| GroupId(group as u16));
                let is_equal = |group| Judges::are_equal(&self.nodes, group);
                if self.renewal.is_none() && groups.all(is_equal) {
                    return;
                }
            }
            assert!(self.now < end, "the nodes do not become equal");
            self.step();
        }
    }

    /// All stop in order, start again, and have what they had.
    pub(super) fn stop_and_start(&mut self) {
        for number in self.conns.keys().copied().collect::<Vec<_>>() {
            self.close(number);
        }
        self.stay_down = (0..self.options.nodes).collect();
        for node in 0..self.options.nodes {
            self.stop(node);
        }
        let end = self.now.plus(STOPPED_WITHIN);
        while self.nodes.iter().any(Node::runs) {
            assert!(
                self.now < end,
                "not stopped although nothing is asked: {:?}",
                self.groups_of_running()
            );
            self.step();
        }
        self.stay_down.clear();
        for node in 0..self.options.nodes {
            self.start(node);
        }
        let all: Vec<usize> = (0..self.options.nodes).collect();
        self.must_make_progress(&all);
        self.must_be_equal();
        for node in &self.nodes {
            self.judges.is_small(node, &self.options);
        }
    }

    /// The groups of all that runs, for people.
    pub(super) fn groups_of_running(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for node in &self.nodes {
            for (shard, engine) in (0..).zip(&node.engines) {
                for group in judges::groups(node, &self.options, shard) {
                    let raft = engine.member(group);
                    let (role, log) = (raft.role(), raft.log());
                    let leader = raft.leader().map(|leader| leader.node);
                    let rests = if raft.is_quiet() { ", rests" } else { "" };
                    let recovers = if raft.is_recovering() {
                        ", recovers"
                    } else {
                        ""
                    };
                    lines.push(format!(
                        "node {} group {group} {role:?} of term {} under {leader:?}{rests}{recovers}: {} of {} \
                         applied, {} committed; {:?}",
                        node.me.node,
                        raft.term(),
                        log.applied(),
                        log.last_index(),
                        log.committed(),
                        raft.members().to_list(),
                    ));
                }
            }
        }
        lines
    }
}
