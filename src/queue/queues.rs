//! Queues: their home records, and the partitions that follow them.
//!
//! A queue lives where its name hashes to, its *home group*, with partition 0. Partition `p` lies in
//! group `(home + p) mod groups`: consecutive groups lie on consecutive shards of every node,
//! whatever their number, and a queue of more partitions than groups goes round.
//!
//! A change of the home record acts at once on the partitions of the home group. Each other group is
//! asked by a change that stays in the outbox (`outbox.rs`) until that group has done it. Each
//! partition takes its share of the queue's bounds.

use crate::base::bugs::{self, Bug};
use crate::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid};
use crate::base::limits::{CHANGES_MAX, GROUPS_MAX, QUEUES_MAX};
use crate::queue::command::{
    Outcome, PartitionChange, PartitionConfig, PurgeStates, QueueInfo, QueueSettings, Rejection,
};
use crate::queue::job_queue::JobQueue;
use crate::queue::partition::PartitionState;
use crate::queue::settings::{admit, name_is_valid};
use crate::queue::view::JobState;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A queue's home record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueueRecord {
    /// Unique in its group.
    pub(super) name: String,
    /// What its partitions follow; the version is from 1 and raised by every change.
    pub(super) config: PartitionConfig,
    /// The group of each partition.
    pub(super) groups: Vec<GroupId>,
}

impl QueueRecord {
    /// The record as it is told to a client.
    pub(super) fn info(&self, uid: QueueUid, created: bool) -> QueueInfo {
        QueueInfo {
            uid,
            name: self.name.clone(),
            version: self.config.version,
            paused: self.config.paused,
            draining: self.config.draining,
            groups: self.groups.clone(),
            settings: self.config.settings,
            created,
        }
    }

    /// The partitions of each group, rising.
    pub(super) fn places(&self) -> BTreeMap<GroupId, Vec<Partition>> {
        let mut places: BTreeMap<GroupId, Vec<Partition>> = BTreeMap::new();
        for (group, number) in self.groups.iter().zip(0..=u8::MAX) {
            places.entry(*group).or_default().push(Partition(number));
        }
        places
    }
}

/// The group of each partition of a queue; `None` if `groups` is no number of groups that a cluster
/// with this home can have.
pub(super) fn placed(home: GroupId, partitions: u8, groups: u32) -> Option<Vec<GroupId>> {
    if groups == 0 {
        return (partitions == 1).then(|| vec![home]);
    }
    let possible =
        groups.is_power_of_two() && groups as usize <= GROUPS_MAX && u32::from(home.0) < groups;
    let group = |number: u8| {
        let group = (u32::from(home.0) + u32::from(number)) % groups;
        GroupId(u16::try_from(group).expect("below the number of groups, at most 65,536"))
    };
    possible.then(|| (0..partitions).map(group).collect())
}

impl JobQueue {
    pub(super) fn create_queue(
        &mut self,
        index: LogIndex,
        name: &str,
        settings: &QueueSettings,
        new: bool,
        groups: u32,
    ) -> Outcome {
        if !name_is_valid(name) {
            return Outcome::Rejected(Rejection::Invalid);
        }
        if let Some(uid) = self.names.get(name) {
            return if new {
                Outcome::Rejected(Rejection::QueueExists)
            } else {
                Outcome::Queue(Box::new(self.queues[uid].info(*uid, false)))
            };
        }
        if let Err(rejection) = admit(settings, self.version) {
            return Outcome::Rejected(rejection);
        }
        let Some(groups) = placed(self.group, settings.partitions, groups) else {
            return Outcome::Rejected(Rejection::Invalid);
        };
        if self.homed + groups.len() > QUEUES_MAX {
            return Outcome::Rejected(Rejection::QuotaExceeded);
        }
        let counter = self.queue_counter.saturating_add(1);
        let Some(uid) = QueueUid::new(self.group, counter) else {
            return Outcome::Rejected(Rejection::IdsExhausted);
        };
        let record = QueueRecord {
            name: name.to_owned(),
            config: PartitionConfig {
                version: 1,
                paused: false,
                draining: false,
                settings: *settings,
            },
            groups,
        };
        if !self.has_room_to_ask(uid, &record) {
            return Outcome::Rejected(Rejection::QuotaExceeded);
        }
        let info = record.info(uid, true);
        self.queue_counter = counter;
        self.homed += record.groups.len();
        self.names.insert(name.to_owned(), uid);
        self.drive(index, uid, &record, Some(record.config));
        self.queues.insert(uid, Arc::new(record));
        Outcome::Queue(Box::new(info))
    }

    pub(super) fn alter_queue(
        &mut self,
        index: LogIndex,
        uid: QueueUid,
        expected: u32,
        settings: &QueueSettings,
    ) -> Outcome {
        let Some(record) = self.queues.get(&uid) else {
            return Outcome::Rejected(Rejection::QueueChanged);
        };
        let config = record.config;
        if expected != 0 && expected != config.version {
            return Outcome::Rejected(Rejection::VersionMismatch);
        }
        if let Err(rejection) = admit(settings, self.version) {
            return Outcome::Rejected(rejection);
        }
        if settings.partitions != config.settings.partitions {
            return Outcome::Rejected(Rejection::Invalid);
        }
        let settings = *settings;
        self.change_queue(index, uid, |config| config.settings = settings)
    }

    /// Sets what can be changed of a queue; what stays as it is raises no version.
    pub(super) fn change_queue(
        &mut self,
        index: LogIndex,
        uid: QueueUid,
        change: impl FnOnce(&mut PartitionConfig),
    ) -> Outcome {
        let Some(record) = self.queues.get(&uid) else {
            return Outcome::Rejected(Rejection::QueueChanged);
        };
        let mut config = record.config;
        change(&mut config);
        if config != record.config {
            let Some(version) = config.version.checked_add(1) else {
                return Outcome::Rejected(Rejection::IdsExhausted);
            };
            if !self.has_room_to_ask(uid, record) {
                return Outcome::Rejected(Rejection::QuotaExceeded);
            }
            config.version = version;
            let mut record = Arc::clone(record);
            Arc::make_mut(&mut record).config = config;
            self.drive(index, uid, &record, Some(config));
            self.queues.insert(uid, record);
        }
        Outcome::Queue(Box::new(self.queues[&uid].info(uid, false)))
    }

    pub(super) fn delete_queue(&mut self, index: LogIndex, uid: QueueUid) -> Outcome {
        let Some(record) = self.queues.get(&uid).map(Arc::clone) else {
            return Outcome::Rejected(Rejection::QueueChanged);
        };
        if !self.has_room_to_ask(uid, &record) {
            return Outcome::Rejected(Rejection::QuotaExceeded);
        }
        self.queues.remove(&uid);
        self.names.remove(&record.name);
        self.homed -= record.groups.len();
        self.drive(index, uid, &record, None);
        Outcome::Done
    }

    /// Whether every other group of a queue can be asked for one more change.
    fn has_room_to_ask(&self, uid: QueueUid, record: &QueueRecord) -> bool {
        let places = record.places();
        let others = places.keys().filter(|group| **group != self.group);
        let fresh = others.filter(|group| !self.outbox.holds(uid, **group));
        self.outbox.len() + fresh.count() <= CHANGES_MAX
    }

    /// Makes the partitions of a queue follow `config`: here at once, elsewhere by asking.
    fn drive(
        &mut self,
        index: LogIndex,
        uid: QueueUid,
        record: &QueueRecord,
        config: Option<PartitionConfig>,
    ) {
        for (group, partitions) in record.places() {
            if group == self.group {
                self.follow(uid, &partitions, config);
                continue;
            }
            let change = PartitionChange {
                home: self.group,
                home_index: index,
                queue: uid,
                partitions,
                config,
            };
            self.outbox.ask(group, change);
        }
    }

    /// Makes, changes or removes partitions of a queue that live here.
    fn follow(&mut self, uid: QueueUid, partitions: &[Partition], config: Option<PartitionConfig>) {
        for number in partitions {
            let place = (uid, *number);
            match config {
                Some(config) => {
                    let fresh = || PartitionState::new(config);
                    let state = self.partitions.entry(place).or_insert_with(fresh);
                    state.head.config = config;
                    state.mark_surplus(place, &mut self.links);
                }
                None => self.remove_partition(uid, *number),
            }
        }
    }

    /// Removes a partition with all its jobs, keys and finished jobs; nothing if it is not here.
    fn remove_partition(&mut self, uid: QueueUid, number: Partition) {
        let place = (uid, number);
        let Some(partition) = self.partitions.remove(&place) else {
            return;
        };
        for seq in partition.leaves.of_state(JobState::InFlight, 0, 0) {
            let owner = partition.leaves.in_flight(seq).map(|record| record.owner);
            if let Some(owner) = owner.filter(|owner| *owner != 0) {
                let id = JobId::new(self.group, uid, number, seq);
                self.links.sessions.let_go(owner, id);
            }
        }
        partition.leave_deadlines(place, &mut self.links);
        self.links.held_bytes -= partition.held_bytes();
        self.links.surplus.remove(&place);
        self.links.discarded.partition(partition);
    }

    /// Does what the home group of a queue asks of this one, unless it was done before.
    pub(super) fn change_partitions(&mut self, change: &PartitionChange) -> Outcome {
        if !change.fits(self.group) || !self.can_follow(change) {
            return Outcome::Rejected(Rejection::Invalid);
        }
        let of_any = bugs::on(Bug::ChangeOfAnotherHome)
            && !self.home_applied.contains_key(&change.home)
            && self.home_applied.values().max() >= Some(&change.home_index);
        if !of_any && !self.has_followed(change.home, change.home_index) {
            self.home_applied.insert(change.home, change.home_index);
            self.follow(change.queue, &change.partitions, change.config);
        }
        Outcome::Done
    }

    /// Whether this version of the machine has what the partitions are to follow.
    #[must_use]
    pub fn can_follow(&self, change: &PartitionChange) -> bool {
        let mut settings = change.config.iter().map(|config| &config.settings);
        settings.all(|settings| admit(settings, self.version).is_ok())
    }

    /// Whether what a home group asked at this place of its log is done here.
    #[must_use]
    pub fn has_followed(&self, home: GroupId, home_index: LogIndex) -> bool {
        let applied = self.home_applied.get(&home);
        applied.is_some_and(|applied| *applied >= home_index)
    }

    pub(super) fn purge(
        &mut self,
        uid: QueueUid,
        number: Partition,
        states: PurgeStates,
    ) -> Outcome {
        let Some(partition) = self.partitions.get_mut(&(uid, number)) else {
            return Outcome::Rejected(Rejection::QueueChanged);
        };
        let place = (self.group, (uid, number));
        Outcome::Purged {
            jobs: partition.purge(place, states, &mut self.links),
        }
    }

    /// Drops the oldest finished job of a partition that keeps more than it may; false if none does.
    pub(super) fn drop_surplus(&mut self) -> bool {
        while let Some(place) = self.links.surplus.first().copied() {
            let partition = self.partitions.get_mut(&place);
            let partition = partition.expect("a partition that goes is taken out of the surplus");
            if partition.keeps_too_much() {
                partition.drop_oldest(&mut self.links);
                return true;
            }
            self.links.surplus.pop_first();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_lie_in_consecutive_groups_from_home_on() {
        let numbers = |home, partitions, groups| {
            let placed = placed(GroupId(home), partitions, groups)?;
            Some(placed.iter().map(|group| group.0).collect::<Vec<_>>())
        };
        assert_eq!(numbers(5, 1, 0), Some(vec![5]));
        assert_eq!(numbers(5, 4, 64), Some(vec![5, 6, 7, 8]));
        assert_eq!(numbers(2, 5, 4), Some(vec![2, 3, 0, 1, 2]));
        assert_eq!(numbers(u16::MAX, 2, 1 << 16), Some(vec![u16::MAX, 0]));
        for (home, partitions, groups) in [(5, 2, 0), (5, 2, 3), (5, 2, 4), (5, 2, 1 << 17)] {
            assert_eq!(numbers(home, partitions, groups), None);
        }
        // On each of two shards, and in each of 64 groups, as often as on the next.
        let many = placed(GroupId(9), 192, 64).expect("possible");
        for shard in 0..2 {
            assert_eq!(many.iter().filter(|group| group.0 % 2 == shard).count(), 96);
        }
        for group in 0..64 {
            assert_eq!(many.iter().filter(|at| at.0 == group).count(), 3);
        }
    }
}
