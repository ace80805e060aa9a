//! A node loses its disk, and gets the place of the old one for an empty one.
//!
//! ```text
//!   LoseDisk ──> the process is gone, its disks are empty and have another id; it belongs to nothing
//!            ──> it waits; the world, as an operator, has it added, again and again until that is done
//!            ──> it starts, with the members that some node knows
//!            ──> every group on every node has its new disk for the old one: another may be lost
//! ```
//!
//! One at a time: of what was committed with its help, a majority of the other disks has a part alone.

use super::node::Node;
use super::traffic::Asker;
use super::{Cluster, Event};
use crate::base::ids::{DiskId, GroupId};
use crate::base::members::{ClusterMembers, Member};
use crate::raft::message::Voter;
use crate::shard::input::{Input, Peer};
use crate::wire::message::{MemberChange, RequestBody};
use std::time::Duration;

/// Between two looks at how far it has come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A disk that is being replaced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renewal {
    node: usize,
    /// Group 0 has taken the change.
    is_added: bool,
}

impl Cluster<'_> {
    /// The node that has lost its disk, until all groups have its new one.
    pub(super) fn renewed(&self) -> Option<usize> {
        self.renewal.map(|renewal| renewal.node)
    }

    /// The disk of a node is lost, unless another was lost before and is not replaced yet.
    pub(super) fn lose_disk(&mut self, node: usize) {
        if self.renewal.is_some() {
            return;
        }
        self.die(node);
        let place = &mut self.nodes[node];
        place.renew(&self.options);
        let new = place.me;
        self.say(|| format!("node {} has an empty disk now: {new:?}", node + 1));
        let is_added = false;
        self.renewal = Some(Renewal { node, is_added });
        self.report.disks_lost += 1;
        self.schedule(LOOK_EVERY, Event::Renew);
    }

    /// Goes on with the disk that is being replaced.
    pub(super) fn on_renew(&mut self) {
        let Some(Renewal { node, is_added }) = self.renewal else {
            return;
        };
        let new = self.nodes[node].me;
        if !is_added {
            self.have_added(node, new);
        } else if self.nodes[node].waits {
            self.join(node, new);
        } else if self.is_settled() {
            self.say(|| format!("node {} has its place again", node + 1));
            self.renewal = None;
            self.report.disks_replaced += 1;
            return;
        }
        self.schedule(LOOK_EVERY, Event::Renew);
    }

    /// The node says to the others that it waits, and the world asks that it be added.
    fn have_added(&mut self, node: usize, new: Voter) {
        for other in (0..self.options.nodes).filter(|other| *other != node) {
            if self.nodes[other].runs() && self.nodes[other].paused_until <= self.now {
                let peer = Peer {
                    zone: String::new(),
                    voter: new,
                    client_addresses: Vec::new(),
                    machine_version_max: self.nodes[node].machine_version,
                };
                self.tell(other, 0, Input::PeerWaits(peer));
            }
        }
        let body = RequestBody::ChangeMembers(MemberChange::Add(vec![new]));
        self.ask(Asker::Members, 1, body);
    }

    /// The change was taken.
    pub(super) fn was_added(&mut self) {
        if let Some(renewal) = &mut self.renewal {
            renewal.is_added = true;
        }
    }

    /// The node starts, if some other knows that it is a member and tells it who they are.
    fn join(&mut self, node: usize, new: Voter) {
        let knows = |other: &&Node| {
            let mut members = other.members.members.iter();
            other.runs() && members.any(|member| member.voter == new)
        };
        let Some(known) = self
            .nodes
            .iter()
            .find(knows)
            .map(|other| other.members.clone())
        else {
            return;
        };
        // As a formation has them: when they were so is not told.
        let members = known.members.iter().map(|member| member.voter);
        let place = &mut self.nodes[node];
        place.members = ClusterMembers {
            members: members.map(Member::voting).collect(),
            ..ClusterMembers::default()
        };
        place.waits = false;
        if !self.stay_down.contains(&node) {
            self.start(node);
        }
    }

    /// Whether every node knows of every group that it has the disks that the nodes have now, and nobody
    /// else. What the leader alone knows may be lost with it: the others would need those who have left.
    fn is_settled(&self) -> bool {
        let disks: Vec<Member> = self
            .nodes
            .iter()
            .map(|node| Member::voting(node.me))
            .collect();
        let mut groups = (0..self.options.groups).map(|group| GroupId(group as u16));
        groups.all(|group| {
            self.nodes.iter().all(|node| {
                let engine = node.engine_of(group);
                engine.is_some_and(|engine| engine.member(group).members().to_list() == disks)
            })
        })
    }
}

impl Node {
    /// Its disks are lost, and those that it has now are empty.
    fn renew(&mut self, options: &super::options::Options) {
        self.past.push(self.me);
        let life = u8::try_from(self.past.len() % 0x80).expect("it is less");
        let mut disk = self.past[0].disk.0;
        disk[15] = 0x80 | life;
        self.me.disk = DiskId(disk);
        let shards = usize::from(self.shards_wanted);
        self.disks = vec![Self::empty(options); shards];
        self.wal_set = 1;
        self.members = ClusterMembers::default();
        self.waits = true;
    }
}
