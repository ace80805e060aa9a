//! Whether the cluster can spare a node.
//!
//! A node that is removed stops as soon as group 0 is without it, which the other groups may not be yet: to
//! leave it out they need most of the voters that they have, and they have to do without that node. So
//! before group 0 lets a node go, it is looked whether every group has most of its voters besides.
//!
//! ```text
//!   shard 1.. ── VoterSets ──> shard 0, the leader of group 0: remove 3?
//!                                 {1 2 3}    most of them are there without 3: yes
//!                                 {1 2 3 4}  4 was removed, and this group does not know it yet: no
//! ```
//!
//! Groups that have the same voters, which is almost always all of them, are spoken of as one.
//!
//! Deliberately absent: voters of a group as another node knows them. What this node has not applied yet of
//! a group is not seen.

use super::effect::Effect;
use super::engine::ShardEngine;
use super::requests::Refusal;
use crate::base::code::Code;
use crate::base::ids::{NodeId, ShardId, Voter};
use std::collections::{BTreeMap, BTreeSet};

/// Sets of voters, each of one group or of many. A group that is in the middle of a change has two.
pub type VoterSets = BTreeSet<BTreeSet<Voter>>;

/// What shard 0 knows of the others, and these have told.
#[derive(Debug, Default)]
pub(super) struct Sparing {
    /// The voters of the groups of each shard but 0; on another shard what it has told.
    known: BTreeMap<ShardId, VoterSets>,
    /// Those of this shard may be others than before.
    pub(super) changed: bool,
}

impl ShardEngine {
    /// The voters of the groups of another shard are these now.
    pub(super) fn on_voter_sets(&mut self, shard: ShardId, sets: VoterSets) {
        self.sparing.known.insert(shard, sets);
    }

    /// Shard 0 is told who votes in the groups of this one, if that has changed.
    pub(super) fn tell_voter_sets(&mut self) {
        let shard = self.config.shard;
        if shard == ShardId(0) || self.is_loading() || !self.sparing.changed {
            return;
        }
        self.sparing.changed = false;
        let sets = self.voter_sets();
        if self.sparing.known.get(&shard) != Some(&sets) {
            self.sparing.known.insert(shard, sets.clone());
            self.effects.push(Effect::VoterSets(sets));
        }
    }

    fn voter_sets(&self) -> VoterSets {
        let mut sets = VoterSets::new();
        for group in &self.groups {
            let members = group.raft.members();
            let both = [members.voters(), members.outgoing()];
            for set in both.into_iter().filter(|set| !set.is_empty()) {
                if !sets.contains(set) {
                    sets.insert(set.clone());
                }
            }
        }
        sets
    }

    /// Refuses if there are groups that could not agree on going on without this node; asked of the leader
    /// of group 0.
    pub(super) fn may_spare(&self, slot: usize, node: NodeId) -> Result<(), Refusal> {
        if self.sparing.known.len() + 1 < usize::from(self.config.shards) {
            let message = "not every shard has said yet who votes in its groups: try again";
            return Err(Refusal::new(Code::Busy, message));
        }
        let raft = &self.groups[slot].raft;
        let own = self.voter_sets();
        let others = self.sparing.known.values();
        let mut sets = others.flatten().chain(&own);
        let has_it = |set: &BTreeSet<Voter>| set.iter().any(|voter| voter.node == node);
        match sets.find(|set| has_it(set) && !raft.can_reach(set, Some(node))) {
            None => Ok(()),
            Some(set) => {
                let message = format!(
                    "to leave out node {node}, more than half of the {} nodes that vote in a group must be \
                     there besides: bring back those that are not, or add a node first",
                    set.len()
                );
                Err(Refusal::new(Code::MembersRefused, message))
            }
        }
    }
}
