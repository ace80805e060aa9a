//! Who looks at every engine after each of its turns: what no two nodes may hold against each other.
//!
//! | judge | what must hold |
//! | --- | --- |
//! | leaders | at most one leader of a group in a term |
//! | prefix | what is committed is the same entry everywhere, and for ever |
//! | states | the same state wherever as much is applied (a sample: it walks all pages) |
//! | disks | what is committed is on the disks of a majority, read as a start would (a sample) |

use super::node::Node;
use super::options::Options;
use crate::base::checksum::Hash128;
use crate::base::ids::{GroupId, LogIndex, Term};
use crate::raft::message::Voter;
use crate::raft::role::Role;
use crate::shard::engine::ShardEngine;
use crate::shard::placement::groups_of;
use crate::sim::driver;
use std::collections::BTreeMap;

/// Term and seal of an entry.
type Sealed = (Term, u32);

/// The judges of a run.
#[derive(Default)]
pub(super) struct Judges {
    leaders: BTreeMap<(GroupId, Term), Voter>,
    committed: BTreeMap<GroupId, BTreeMap<LogIndex, Sealed>>,
    /// How far the present process of a node was looked at: node, start, group.
    seen: BTreeMap<(Voter, GroupId), (u32, LogIndex)>,
    states: BTreeMap<(GroupId, LogIndex), Hash128>,
    /// Leaders seen.
    pub(super) terms_led: u64,
    /// States that were held against another node's.
    pub(super) states_compared: u64,
}

impl Judges {
    /// Looks at an engine; a group and the newest entry that is committed for the first time, if any.
    pub(super) fn look(
        &mut self,
        me: Voter,
        start: u32,
        engine: &ShardEngine,
        groups: impl Iterator<Item = GroupId>,
    ) -> Option<(GroupId, LogIndex)> {
        let mut newest = None;
        for group in groups {
            let raft = engine.member(group);
            if raft.role() == Role::Leader {
                let term = (group, raft.term());
                let first = *self.leaders.entry(term).or_insert_with(|| {
                    self.terms_led += 1;
                    me
                });
                assert!(
                    first == me,
                    "{first:?} and {me:?} lead group {group} in term {}",
                    term.1
                );
            }
            let log = raft.log();
            let seen = self.seen.entry((me, group)).or_default();
            if seen.0 != start {
                *seen = (start, LogIndex(0));
            }
            let from = seen.1.max(log.base().0);
            if log.committed() <= from {
                continue;
            }
            seen.1 = log.committed();
            let known = self.committed.entry(group).or_default();
            let entries = log.slice(from.next(), usize::MAX).into_iter();
            for entry in entries.take_while(|entry| entry.index <= log.committed()) {
                let sealed = (entry.term, entry.crc);
                let before = *known.entry(entry.index).or_insert_with(|| {
                    newest = Some((group, entry.index));
                    sealed
                });
                assert!(
                    before == sealed,
                    "entry {} of group {group} is committed as {before:?}, on {me:?} as {sealed:?}",
                    entry.index
                );
            }
        }
        newest
    }

    /// A committed entry is on the disks of a majority, as they are now, without what is under way. Who has
    /// lost its disk (`renewed`) may have had it.
    pub(super) fn is_on_disks(
        &self,
        nodes: &[Node],
        options: &Options,
        renewed: Option<usize>,
        (group, index): (GroupId, LogIndex),
    ) {
        let sealed = self.committed[&group][&index];
        let shard = group.0 % options.shards;
        let has = |(place, node): &(usize, &Node)| {
            if Some(*place) == renewed {
                return true;
            }
            let disk = &node.disks[usize::from(shard)];
            let log = driver::recover(disk, node.identity(shard), options.segment_bytes);
            let mut log = log.expect("nothing of the log is damaged");
            let log = log.groups.remove(&group);
            log.is_some_and(|log| {
                let is_it = |entry: &crate::base::entry::Entry| {
                    entry.index == index && (entry.term, entry.crc) == sealed
                };
                log.entries.iter().any(is_it) || log.bases.iter().any(|base| base.index >= index)
            })
        };
        let count = (0..).zip(nodes).filter(has).count();
        assert!(
            2 * count > nodes.len(),
            "entry {index} of group {group} is committed and on {count} of {} disks",
            nodes.len()
        );
    }

    /// Holds the state of a group against what others had when they had applied as much.
    pub(super) fn compare(&mut self, me: Voter, engine: &ShardEngine, group: GroupId) {
        let Some((index, hash)) = engine.state_hash(group) else {
            return;
        };
        let mut is_new = false;
        let known = *self.states.entry((group, index)).or_insert_with(|| {
            is_new = true;
            hash
        });
        self.states_compared += u64::from(!is_new);
        assert!(
            known == hash,
            "{me:?} has another state of group {group} at {index} than another node had"
        );
    }

    /// Whether a group is the same on all nodes, all of which run.
    pub(super) fn are_equal(nodes: &[Node], options: &Options, group: GroupId) -> bool {
        let shard = usize::from(group.0 % options.shards);
        let mut states = nodes.iter().map(|node| {
            let engine = node.engines.get(shard)?;
            let log = engine.member(group).log();
            (log.applied() == log.last_index()).then(|| engine.state_hash(group))?
        });
        let first = states.next().expect("there are nodes");
        first.is_some() && states.all(|state| state == first)
    }
}

/// The groups of a shard.
pub(super) fn groups(options: &Options, shard: u16) -> impl Iterator<Item = GroupId> + use<> {
    groups_of(
        crate::base::ids::ShardId(shard),
        options.shards,
        options.groups,
    )
}
