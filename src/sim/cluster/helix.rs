//! A helix: all nodes lose power, and of each log another part is damaged, so that no node has all, and
//! of everything that was acknowledged one has an intact copy. All of it must be back, unattended.
//!
//! Damaged is only what its node can tell was there: batches whose recap stands in an intact one. Of what
//! nobody can prove, or name, the README promises no more than that nobody goes on as if it had not been.
//!
//! Deliberately absent: faults while the nodes put each other right. A member forgets at the next start
//! what it has beyond a hole, and a second crash so may take the only copy.

use super::Cluster;
use super::judges;
use crate::base::ids::{GroupId, LogIndex};
use crate::base::prng::Prng;
use crate::raft::node::RaftNode;
use crate::sim::disk::Harm;
use crate::sim::told::choose;
use std::collections::BTreeSet;
use std::time::Duration;

/// Members have put each other right within this.
const MENDED_WITHIN: Duration = Duration::from_secs(30);
/// Batches of a node that are damaged.
const BATCHES_MAX: u64 = 3;

impl Cluster<'_> {
    /// Everything is lost somewhere, and comes back.
    pub(super) fn survive_a_helix(&mut self) {
        let all: Vec<usize> = (0..self.options.nodes).collect();
        self.must_make_progress(&all);
        self.until_all_is_mended();
        let more = self.prng.below(400);
        self.go_on_for(Duration::from_millis(more));
        self.lose_power();
        let mut gone = BTreeSet::new();
        for node in all.clone() {
            let harmed = self.damage_what_others_have(node, &mut gone);
            self.report.harmed_everywhere += harmed;
        }
        self.must_make_progress(&all);
        self.until_all_is_mended();
        self.say(|| "all logs are put right".to_owned());
    }

    /// Damages some batches of a node of which nothing is `gone` at another; how many.
    fn damage_what_others_have(
        &mut self,
        node: usize,
        gone: &mut BTreeSet<(GroupId, LogIndex)>,
    ) -> u64 {
        let mut prng = Prng::new(self.prng.next_u64());
        let mut lost = Vec::new();
        let mut harmed = 0;
        for disk in &mut self.nodes[node].disks {
            let most = 1 + prng.below(BATCHES_MAX);
            for batch in choose(disk.told_batches(), gone, most, &mut prng) {
                let harms = [Harm::Rot, Harm::Zeroed, Harm::Misdirected, Harm::Stale];
                // With the head of another segment a file passes for a copy of that, and all of it is lost.
                let kinds = if batch.offset == 0 { 2 } else { 4 };
                let harm = harms[prng.below(kinds) as usize];
                disk.harm_batch(&batch, harm, &mut prng);
                harmed += 1;
                lost.extend(batch.entries);
            }
        }
        self.nodes[node].is_harmed |= harmed > 0;
        self.say(|| {
            let lost: Vec<_> = lost
                .iter()
                .map(|(group, index)| (group.0, index.0))
                .collect();
            format!("node {} loses (group, entry): {lost:?}", node + 1)
        });
        gone.extend(lost);
        harmed
    }

    /// No member of any group lacks what it once promised, and no disk that was lost is still a member: of what
    /// only that had beside another, one copy is left.
    fn until_all_is_mended(&mut self) {
        let end = self.now.plus(MENDED_WITHIN);
        while self.renewal.is_some() || self.is_any_amiss() {
            assert!(
                self.now < end,
                "members do not put each other right: {:?}",
                self.groups_of_running()
            );
            self.step();
        }
    }

    fn is_any_amiss(&self) -> bool {
        self.nodes.iter().any(|node| {
            let shards = (0..).zip(&node.engines);
            let mut members = shards.flat_map(|(shard, engine)| {
                judges::groups(node, &self.options, shard).map(move |group| engine.member(group))
            });
            !node.runs() || members.any(RaftNode::is_recovering)
        })
    }
}
