//! What a home group asks of the groups of its queues' partitions, until each has done it.
//!
//! Changes to one group go one at a time, in the order of the home group's log. A change carries
//! all that its partitions follow, so a newer one of the same queue takes the place of an older one
//! that is still outstanding: there is at most one for each queue and group, and what is kept is
//! bounded by [`CHANGES_MAX`](crate::base::limits::CHANGES_MAX). The older may be on its way or even
//! done; the group that gets both applies them in their order, and its answer to the older one finds
//! nothing here.

use crate::base::ids::{GroupId, LogIndex, QueueUid};
use crate::queue::command::PartitionChange;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The outstanding changes of a home group. Cloning shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outbox {
    /// By the group that is asked, in the order of this group's log.
    by_group: BTreeMap<GroupId, BTreeMap<LogIndex, Arc<PartitionChange>>>,
    /// Where the change of a queue stands; derived.
    by_queue: BTreeMap<(QueueUid, GroupId), LogIndex>,
}

impl Outbox {
    /// How many are outstanding.
    pub(super) fn len(&self) -> usize {
        self.by_queue.len()
    }

    /// Whether a change of this queue is outstanding in `group`.
    pub(super) fn holds(&self, queue: QueueUid, group: GroupId) -> bool {
        self.by_queue.contains_key(&(queue, group))
    }

    /// Whether any change of this queue is outstanding.
    pub(super) fn is_changing(&self, queue: QueueUid) -> bool {
        let (first, last) = ((queue, GroupId(0)), (queue, GroupId(u16::MAX)));
        self.by_queue.range(first..=last).next().is_some()
    }

    /// Asks `group` for a change, in place of an older one of the same queue.
    pub(super) fn ask(&mut self, group: GroupId, change: PartitionChange) {
        let (queue, index) = (change.queue, change.home_index);
        if let Some(older) = self.by_queue.insert((queue, group), index) {
            self.take(group, older);
        }
        let changes = self.by_group.entry(group).or_default();
        let before = changes.insert(index, Arc::new(change));
        assert!(
            before.is_none(),
            "entry {index} asked group {group} twice: {before:?}"
        );
    }

    /// The group has done what entry `index` asked of it; nothing if that is not outstanding.
    pub(super) fn done(&mut self, group: GroupId, index: LogIndex) {
        if let Some(change) = self.take(group, index) {
            self.by_queue.remove(&(change.queue, group));
        }
    }

    fn take(&mut self, group: GroupId, index: LogIndex) -> Option<Arc<PartitionChange>> {
        let changes = self.by_group.get_mut(&group)?;
        let change = changes.remove(&index);
        if changes.is_empty() {
            self.by_group.remove(&group);
        }
        change
    }

    /// The first outstanding change of each group.
    pub(super) fn next(&self) -> impl Iterator<Item = (GroupId, &PartitionChange)> {
        self.by_group.iter().filter_map(|(group, changes)| {
            let (_, change) = changes.first_key_value()?;
            Some((*group, change.as_ref()))
        })
    }

    /// All of them, by group and place in the log.
    pub(super) fn iter(&self) -> impl Iterator<Item = (GroupId, &PartitionChange)> {
        self.by_group
            .iter()
            .flat_map(|(group, changes)| changes.values().map(|change| (*group, change.as_ref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::Partition;

    fn change(counter: u32, index: u64) -> PartitionChange {
        PartitionChange {
            home: GroupId(1),
            home_index: LogIndex(index),
            queue: QueueUid::new(GroupId(1), counter).expect("in range"),
            partitions: vec![Partition(1)],
            config: None,
        }
    }

    #[test]
    fn a_newer_change_of_a_queue_takes_the_place_of_the_older() {
        let mut outbox = Outbox::default();
        outbox.ask(GroupId(2), change(1, 5));
        outbox.ask(GroupId(2), change(2, 6));
        outbox.ask(GroupId(3), change(1, 5));
        outbox.ask(GroupId(2), change(1, 7));
        assert_eq!(outbox.len(), 3);
        let next: Vec<(u16, u64)> = outbox
            .next()
            .map(|(group, change)| (group.0, change.home_index.0))
            .collect();
        assert_eq!(next, [(2, 6), (3, 5)]);
        outbox.done(GroupId(2), LogIndex(5));
        assert_eq!(outbox.len(), 3, "the older one is not there any more");
        let queue = change(1, 0).queue;
        outbox.done(GroupId(2), LogIndex(7));
        assert!(outbox.is_changing(queue), "group 3 has not done it");
        outbox.done(GroupId(3), LogIndex(5));
        assert!(!outbox.is_changing(queue));
        outbox.done(GroupId(2), LogIndex(6));
        assert_eq!(outbox, Outbox::default());
    }
}
