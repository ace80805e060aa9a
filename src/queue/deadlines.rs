//! What waits for a time, over all queues of a group.
//!
//! Five orders: delays by backoff, run-ats, leases, times to live, idempotency keys. Delays, leases
//! and keys wait for group time; run-ats and times to live for wall time. Ties go by job id (by
//! queue, partition and hash for keys), so every replica handles them alike.
//!
//! All of it is derived from records and keys: nothing here is in a page. It never acts by itself;
//! only the command `Advance` takes what is due.

use crate::base::checksum::Hash128;
use crate::base::ids::{JobId, Partition, QueueUid};
use crate::base::units::GroupTime;
use std::collections::BTreeSet;

/// Where a key is remembered.
pub(super) type KeyPlace = (QueueUid, Partition, Hash128);

/// The five orders; times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Deadlines {
    /// Backoffs, group time.
    pub(super) delays: BTreeSet<(u64, JobId)>,
    /// Run-ats, wall time.
    pub(super) run_ats: BTreeSet<(u64, JobId)>,
    /// Leases, group time.
    pub(super) leases: BTreeSet<(u64, JobId)>,
    /// Times to live of jobs that wait, wall time.
    pub(super) ttls: BTreeSet<(u64, JobId)>,
    /// Idempotency keys, group time.
    pub(super) keys: BTreeSet<(u64, KeyPlace)>,
}

/// The first of an order that is due at `now`.
pub(super) fn due(order: &BTreeSet<(u64, JobId)>, now: u64) -> Option<JobId> {
    order
        .first()
        .filter(|(when, _)| *when <= now)
        .map(|(_, id)| *id)
}

impl Deadlines {
    /// The earliest group time at which something is due, with wall time = group time + offset.
    pub(super) fn next(&self, wall_offset_ms: i64) -> Option<GroupTime> {
        let head = |order: &BTreeSet<(u64, JobId)>| order.first().map(|(when, _)| *when);
        let group = [
            head(&self.delays),
            head(&self.leases),
            self.keys.first().map(|(when, _)| *when),
        ];
        let wall = [head(&self.run_ats), head(&self.ttls)]
            .map(|due| due.map(|when| when.saturating_add_signed(wall_offset_ms.saturating_neg())));
        group.into_iter().chain(wall).flatten().min().map(GroupTime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::GroupId;

    #[test]
    fn wall_dues_move_with_the_offset() {
        let queue = QueueUid::new(GroupId(0), 1).expect("in range");
        let id = JobId::new(GroupId(0), queue, Partition(0), 1);
        let mut deadlines = Deadlines::default();
        assert_eq!(deadlines.next(0), None);
        deadlines.run_ats.insert((1_000, id));
        assert_eq!(deadlines.next(300), Some(GroupTime(700)));
        assert_eq!(deadlines.next(-300), Some(GroupTime(1_300)));
        assert_eq!(deadlines.next(5_000), Some(GroupTime(0)));
        deadlines.leases.insert((900, id));
        assert_eq!(deadlines.next(-300), Some(GroupTime(900)));
        assert_eq!(due(&deadlines.leases, 899), None);
        assert_eq!(due(&deadlines.leases, 900), Some(id));
    }
}
