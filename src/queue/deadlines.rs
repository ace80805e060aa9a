//! What waits for a time, over all queues of a group: for each order, the partitions by the first
//! time that each has in it, as far as its tree has looked: a bound ([`Summary::dues`]).
//!
//! Five orders: those of jobs ([`Order`]), and idempotency keys, which wait for group time. Ties go by
//! queue and partition, inside one by sequence (keys: by hash), so every replica handles them alike.
//!
//! All of it is derived: nothing here is in a page. It never acts by itself; only the command
//! `Advance` takes what is due.

use crate::base::ids::{Partition, QueueUid};
use crate::base::units::GroupTime;
use crate::queue::leaf::Order;
use crate::queue::tree::{DUES, NEVER, Summary};
use std::collections::BTreeSet;

/// A partition of a queue.
pub(super) type Place = (QueueUid, Partition);

fn until(order: &BTreeSet<(u64, Place)>, by: u64) -> impl Iterator<Item = Place> {
    let due = order.iter().take_while(move |(when, _)| *when <= by);
    due.map(|(_, place)| *place)
}

/// The partitions by their first times, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Deadlines {
    jobs: [BTreeSet<(u64, Place)>; DUES],
    keys: BTreeSet<(u64, Place)>,
}

fn note(order: &mut BTreeSet<(u64, Place)>, place: Place, before: u64, after: u64) {
    if before == after {
        return;
    }
    if before != NEVER {
        let was = order.remove(&(before, place));
        assert!(was, "{place:?} did not wait for {before}");
    }
    if after != NEVER {
        order.insert((after, place));
    }
}

impl Deadlines {
    /// The jobs of a partition have changed.
    pub(super) fn note_jobs(&mut self, place: Place, before: &Summary, after: &Summary) {
        if before.dues == after.dues {
            return;
        }
        for (order, set) in self.jobs.iter_mut().enumerate() {
            note(set, place, before.dues[order], after.dues[order]);
        }
    }

    /// The first time at which a key of a partition is forgotten has changed.
    pub(super) fn note_keys(&mut self, place: Place, before: u64, after: u64) {
        note(&mut self.keys, place, before, after);
    }

    /// The partition with the first time in an order.
    pub(super) fn first(&self, order: Order) -> Option<(u64, Place)> {
        self.jobs[order as usize].first().copied()
    }

    /// The partition with the first time at which a key is forgotten.
    pub(super) fn first_key(&self) -> Option<(u64, Place)> {
        self.keys.first().copied()
    }

    /// The partitions that may have something due in an order by a time.
    pub(super) fn until(&self, order: Order, by: u64) -> impl Iterator<Item = Place> {
        until(&self.jobs[order as usize], by)
    }

    /// The partitions that may have a key to be forgotten by a time.
    pub(super) fn keys_until(&self, by: u64) -> impl Iterator<Item = Place> {
        until(&self.keys, by)
    }

    /// Whether anything stands in an order.
    pub(super) fn has(&self, order: Order) -> bool {
        !self.jobs[order as usize].is_empty()
    }

    /// The group time before which nothing is due, with wall time = group time + offset.
    pub(super) fn next(&self, wall_offset_ms: i64) -> Option<GroupTime> {
        let first = |set: &BTreeSet<(u64, Place)>| set.first().map(|(when, _)| *when);
        let of = |order: Order| first(&self.jobs[order as usize]);
        let group = [of(Order::Delays), of(Order::Leases), first(&self.keys)];
        let wall = [of(Order::RunAts), of(Order::Ttls)]
            .map(|due| due.map(|when| when.saturating_add_signed(wall_offset_ms.saturating_neg())));
        group.into_iter().chain(wall).flatten().min().map(GroupTime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::GroupId;

    fn at(order: Order, when: u64) -> Summary {
        let mut summary = Summary::default();
        summary.dues[order as usize] = when;
        summary
    }

    #[test]
    fn wall_dues_move_with_the_offset() {
        let queue = QueueUid::new(GroupId(0), 1).expect("in range");
        let (one, two) = ((queue, Partition(0)), (queue, Partition(1)));
        let mut deadlines = Deadlines::default();
        assert_eq!(deadlines.next(0), None);
        deadlines.note_jobs(one, &Summary::default(), &at(Order::RunAts, 1_000));
        assert_eq!(deadlines.next(300), Some(GroupTime(700)));
        assert_eq!(deadlines.next(-300), Some(GroupTime(1_300)));
        assert_eq!(deadlines.next(5_000), Some(GroupTime(0)));
        deadlines.note_jobs(two, &Summary::default(), &at(Order::Leases, 900));
        assert_eq!(deadlines.next(-300), Some(GroupTime(900)));
        assert_eq!(deadlines.first(Order::Leases), Some((900, two)));
        deadlines.note_keys(one, NEVER, 5);
        assert_eq!(
            (deadlines.first_key(), deadlines.next(0)),
            (Some((5, one)), Some(GroupTime(5)))
        );
    }

    #[test]
    fn of_partitions_that_are_due_at_once_the_first_comes_first() {
        let queue = QueueUid::new(GroupId(0), 1).expect("in range");
        let mut deadlines = Deadlines::default();
        for number in [2, 0, 1] {
            let place = (queue, Partition(number));
            deadlines.note_jobs(place, &Summary::default(), &at(Order::Ttls, 7));
        }
        for number in [0, 1, 2] {
            let place = (queue, Partition(number));
            assert_eq!(deadlines.first(Order::Ttls), Some((7, place)));
            deadlines.note_jobs(place, &at(Order::Ttls, 7), &Summary::default());
        }
        assert_eq!(deadlines, Deadlines::default());
    }
}
