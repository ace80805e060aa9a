//! Who belongs to the cluster, and how every group comes to have just these members.
//!
//! Group 0 decides: its members are the cluster's. An operator adds a node or removes one there, and
//! nowhere else; the leader of every other group follows what its node knows of group 0, a step at a
//! time, until the two are the same. So nothing has to remember how far a change has come: whoever leads
//! next sees what is missing.
//!
//! ```text
//!   operator ── add 4 ──> group 0: +learner 4 ──(4 has caught up)──> joint ──> voters 1 2 3 4
//!                            │                                                      │
//!                            v  known on every node                                 v
//!                         groups 1..: +learner 4 ──(caught up there, and a voter of group 0)──> voters
//! ```
//!
//! | a member of the cluster | is here | step |
//! | --- | --- | --- |
//! | yes | no | it learns |
//! | votes | learns, and has caught up | it votes; in place of the disk that its node had before |
//! | no | yes | it goes, once nobody learns who shall vote |
//!
//! # Invariants
//!
//! - A new disk is a learner first: what votes has the log (trap R25).
//! - A change acts on a member once its disk has it that it is committed: a restart takes none back.
//! - No step is taken after which most voters are not there: it could not be finished. Nor is a node let go
//!   that some group cannot do without ([`super::sparing`]).
//! - A step is safe by itself, whoever takes it and however old what it knows of group 0 is: a leader
//!   that is behind may take back what one before it did, and does it again when it has caught up.
//!
//! Deliberately absent: groups that live on some nodes only.

use super::effect::Effect;
use super::engine::ShardEngine;
use super::group::{Phase, Waiter};
use super::input::{Origin, Peer};
use super::requests::Refusal;
use crate::base::code::Code;
use crate::base::ids::{LogIndex, NodeId, ShardId};
use crate::base::limits::{CLUSTER_GROUP, LEARNERS_MAX, MEMBER_STEPS_MAX};
use crate::base::members::ClusterMembers;
use crate::base::units::Monotonic;
use crate::queue::command::Outcome;
use crate::raft::leader::ProposeChangeError;
use crate::raft::membership::{Change, ChangeError, Membership, Step};
use crate::raft::message::Voter;
use crate::raft::node::ProposeError;
use crate::wire::message::{MemberChange, ReplyBody};
use std::collections::BTreeMap;
use std::time::Duration;

/// Who wants to be added says so more often than this.
const WAITS_FOR: Duration = Duration::from_secs(5);
/// A new member whom its leader has not heard for so long keeps nobody waiting.
const COMES_WITHIN: Duration = Duration::from_secs(5);

/// The members of the cluster as this shard knows them.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// Those of group 0; nobody is known to be one before that has said so.
    members: Membership,
    /// After this entry.
    as_of: LogIndex,
    /// Nodes that belong to no cluster and list nodes of this one, and when they were heard.
    waiting: BTreeMap<NodeId, (Peer, Monotonic)>,
}

impl Cluster {
    /// As it was known last. What nobody dates is not gone by: where to find others, and no more.
    pub(super) fn known(last: &ClusterMembers) -> Self {
        let members = Membership::from_list(&last.members).ok();
        Self {
            members: members
                .filter(|_| last.as_of > LogIndex(0))
                .unwrap_or_default(),
            as_of: last.as_of,
            waiting: BTreeMap::new(),
        }
    }

    /// The members.
    pub(super) fn members(&self) -> &Membership {
        &self.members
    }

    /// Nodes that wait to be added.
    pub(super) fn waiting(&self, now: Monotonic) -> impl Iterator<Item = &Peer> {
        let waiting = self.waiting.values();
        let lately = waiting.filter(move |(_, heard)| heard.plus(WAITS_FOR) > now);
        lately.map(|(peer, _)| peer)
    }

    fn waits(&self, node: Voter, now: Monotonic) -> bool {
        self.waiting(now).any(|peer| peer.voter == node)
    }
}

impl ShardEngine {
    /// A node that belongs to no cluster wants to belong to this one.
    pub(super) fn on_peer_waits(&mut self, peer: Peer) {
        let now = self.now.mono;
        let waiting = &mut self.cluster.waiting;
        waiting.retain(|_, (_, heard)| heard.plus(WAITS_FOR) > now);
        waiting.insert(peer.voter.node, (peer, now));
    }

    /// The members of group 0 are these, as the shard says on which it lives.
    pub(super) fn on_cluster_members(&mut self, known: &ClusterMembers) {
        match Membership::from_list(&known.members) {
            Ok(members) => self.follow_cluster(members, known.as_of),
            Err(_) => unreachable!("they are those of a group of this node"),
        }
    }

    /// The members of a group may be others than before.
    pub(super) fn members_changed(&mut self, slot: usize) {
        let now = self.now.mono;
        self.sparing.changed = true;
        let group = &mut self.groups[slot];
        (group.members_unsettled, group.members_since) = (true, now);
        self.mark(slot);
        let group = &self.groups[slot];
        let is_known = group.phase == Phase::Serving && !group.raft.is_blank();
        let as_of = group.raft.log().applied();
        // After a start the log leads from an older state to what was known before.
        if group.id == CLUSTER_GROUP && is_known && as_of >= self.cluster.as_of {
            let members = group.raft.members().clone();
            if members != self.cluster.members {
                let known = ClusterMembers {
                    as_of,
                    members: members.to_list(),
                };
                self.effects.push(Effect::ClusterMembers(known));
                self.follow_cluster(members, as_of);
            }
        }
    }

    fn follow_cluster(&mut self, members: Membership, as_of: LogIndex) {
        let me = self.config.me();
        let others = members.members().filter(|member| *member != me);
        let is_first = self.config.shard == ShardId(0);
        self.peers.set_members(others, is_first, self.now.mono);
        for member in members.members() {
            self.cluster.waiting.remove(&member.node);
        }
        (self.cluster.members, self.cluster.as_of) = (members, as_of);
        for slot in 0..self.groups.len() {
            self.groups[slot].members_unsettled = true;
            self.mark(slot);
        }
        self.put_off_balance();
    }

    /// Takes the next step towards the members of the cluster, if there is one and this member leads.
    pub(super) fn settle_members(&mut self, slot: usize) {
        let group = &self.groups[slot];
        if !group.members_unsettled || !group.serves() || self.stopping() {
            return;
        }
        let members = group.raft.members();
        if members.is_joint() || self.cluster.members.is_empty() {
            return;
        }
        let steps = self.next_steps(slot);
        if steps.is_empty() {
            // Learners are waited for: their answers bring this group here again.
            let is_like = *members == self.cluster.members;
            self.groups[slot].members_unsettled = !is_like || !members.learners().is_empty();
            return;
        }
        // What cannot be now is tried again at the next turn of this group.
        let _ = self.propose_members(slot, steps);
    }

    /// What is to be done next in a group that is not in the middle of a change.
    fn next_steps(&self, slot: usize) -> Vec<Step> {
        let group = &self.groups[slot];
        let (raft, members) = (&group.raft, group.raft.members());
        let cluster = &self.cluster.members;
        let is_first = group.id == CLUSTER_GROUP;
        let missing = cluster
            .members()
            .filter(|member| !members.contains(*member));
        let places = LEARNERS_MAX.saturating_sub(members.learners().len());
        let missing = missing.take(places.min(MEMBER_STEPS_MAX));
        let missing: Vec<Step> = missing.map(Step::AddLearner).collect();
        if !missing.is_empty() {
            return missing;
        }
        // Of group 0 every learner shall vote, of another group those that vote in group 0.
        let shall_vote = |learner: &Voter| is_first || cluster.voters().contains(learner);
        let pupils = || {
            members
                .learners()
                .iter()
                .filter(|learner| shall_vote(learner))
        };
        let (ready, behind): (Vec<Voter>, Vec<Voter>) =
            pupils().partition(|learner| raft.caught_up(**learner));
        // One change for all that come at once: fewer would be an even number of voters for a while. One
        // that is not there keeps nobody waiting for long.
        let may_come = self.now.mono < group.members_since.plus(COMES_WITHIN);
        let is_coming = |learner: &Voter| {
            let mut followers = raft.followers();
            followers.any(|(voter, progress)| {
                let may_come = may_come && !progress.is_lost();
                voter == *learner && (progress.is_there() || may_come)
            })
        };
        if behind.iter().any(is_coming) {
            return Vec::new();
        }
        let mut replaced = Vec::new();
        let mut steps: Vec<Step> = Vec::new();
        for new in ready {
            let has_voted = |old: &&Voter| old.node == new.node && !replaced.contains(*old);
            match members.voters().iter().find(has_voted) {
                Some(old) => {
                    replaced.push(*old);
                    let (old, disk) = (*old, new.disk);
                    steps.push(Step::ReplaceDisk { old, disk });
                }
                None => steps.push(Step::AddVoter(new)),
            }
        }
        // An old disk votes until the new one does; one that nobody replaces goes at once.
        let is_awaited = |gone: &Voter| behind.iter().any(|learner| learner.node == gone.node);
        let gone = members.members().filter(|member| {
            !is_first
                && !cluster.contains(*member)
                && !replaced.contains(member)
                && !is_awaited(member)
        });
        steps.extend(gone.map(Step::Remove));
        steps.truncate(MEMBER_STEPS_MAX);
        self.without_stall(slot, steps)
    }

    /// The steps, if most of the voters are there after them.
    fn without_stall(&self, slot: usize, steps: Vec<Step>) -> Vec<Step> {
        let raft = &self.groups[slot].raft;
        let next = raft.members().changed(&Change::Enter(steps.clone()));
        match next {
            Ok(next) if raft.can_reach(next.voters(), None) => steps,
            _ => Vec::new(),
        }
    }

    /// A change of the members was applied.
    pub(super) fn answer_member_change(&mut self, slot: usize, index: LogIndex) {
        let waiters = &mut self.groups[slot].waiters;
        let waiter = waiters.pop_front_if(|(at, _)| *at == index);
        if let Some((_, Waiter::Client { to, request })) = waiter {
            let stamp = self.stamp(slot);
            let done = ReplyBody::Outcome(Outcome::Done);
            self.reply(to, request, Some(stamp), done);
        }
    }

    fn propose_members(&mut self, slot: usize, steps: Vec<Step>) -> Result<LogIndex, Refusal> {
        let group = &mut self.groups[slot];
        let index = group.raft.propose_change(steps);
        let index = index.map_err(|error| refusal(&error))?;
        group.last_proposed = self.now.mono;
        self.mark(slot);
        Ok(index)
    }

    /// An operator changes the members of the cluster. What is so already is done.
    pub(super) fn on_change_members(
        &mut self,
        from: Origin,
        slot: usize,
        request: u64,
        change: MemberChange,
    ) -> Result<(), Refusal> {
        if self.stopping() {
            return Err(Refusal::stopping());
        }
        let steps = self.steps_of(slot, &change)?;
        if steps.is_empty() {
            let stamp = self.stamp(slot);
            let done = ReplyBody::Outcome(Outcome::Done);
            self.reply(from, request, Some(stamp), done);
            return Ok(());
        }
        let members = self.groups[slot].raft.members();
        let next = members.changed(&Change::Enter(steps.clone()));
        next.map_err(|error| refusal(&error.into()))?;
        if self.without_stall(slot, steps.clone()).is_empty() {
            let message =
                "most of the nodes that would be left are not there: bring them back first";
            return Err(Refusal::new(Code::MembersRefused, message));
        }
        if let MemberChange::Remove(node) = change {
            self.may_spare(slot, node)?;
        }
        let index = self.propose_members(slot, steps)?;
        let waiter = Waiter::Client { to: from, request };
        self.groups[slot].waiters.push_back((index, waiter));
        Ok(())
    }

    /// What a change asks for that is not so already.
    fn steps_of(&self, slot: usize, change: &MemberChange) -> Result<Vec<Step>, Refusal> {
        let members = self.groups[slot].raft.members();
        let nodes = match change {
            MemberChange::Remove(node) => {
                let gone = members.members().filter(|member| member.node == *node);
                return Ok(gone.map(Step::Remove).collect());
            }
            MemberChange::Add(nodes) => nodes,
        };
        let mut steps = Vec::new();
        for node in nodes.iter().filter(|node| !members.contains(**node)) {
            if !self.cluster.waits(*node, self.now.mono) {
                let message = format!(
                    "node {} does not wait to be added: start it with an empty data directory, and with \
                     nodes of this cluster among its cluster.members",
                    node.node
                );
                return Err(Refusal::new(Code::MembersRefused, message));
            }
            // A disk that was to come and is lost has nothing that could be missed.
            let lost = members
                .learners()
                .iter()
                .filter(|old| old.node == node.node);
            steps.extend(lost.copied().map(Step::Remove));
            steps.push(Step::AddLearner(*node));
        }
        Ok(steps)
    }
}

/// What an operator is told of a change that was not proposed.
fn refusal(error: &ProposeChangeError) -> Refusal {
    let code = match error {
        ProposeChangeError::Refused(ProposeError::Busy) | ProposeChangeError::NotCaughtUp(_) => {
            Code::Busy
        }
        ProposeChangeError::Refused(_) => Code::NotLeader,
        ProposeChangeError::Change(ChangeError::UnderWay) => Code::Busy,
        ProposeChangeError::Change(_) => Code::MembersRefused,
    };
    Refusal::new(code, error.to_string())
}
