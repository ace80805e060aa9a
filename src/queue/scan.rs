//! Steps through many jobs: scans, which read, and sweeps, which act on dead ones.
//!
//! A step looks at a bounded number of jobs and says where to go on, so that no queue is too large
//! for it. A job that comes into a state behind the cursor is missed, one that moves ahead of it is
//! seen twice; what stays where it is is seen once.

use crate::base::ids::{JobId, Partition, QueueUid};
use crate::base::limits::{ITEMS_MAX, PRIORITIES, SCAN_STEP_JOBS};
use crate::queue::command::{JobFilter, Outcome, Rejection, SweepAction};
use crate::queue::filter::{filter_is_valid, lets_through};
use crate::queue::job_queue::JobQueue;
use crate::queue::jobs::{ReplyRoom, requeue};
use crate::queue::leaf::{leaf_of, slot_of};
use crate::queue::partition::PartitionState;
use crate::queue::reads::view_of_finished;
use crate::queue::view::{FinishedPage, JobCursor, JobPage, JobScan, JobState};

impl JobQueue {
    /// A step through the jobs of a state: pending ones in the order in which they would be leased,
    /// others by sequence. It looks at no more than 4096 jobs and lists no more than
    /// `scan.limit` and a reply hold; a limit of 0 lists none and counts only.
    ///
    /// # Errors
    /// `QueueChanged` if the partition is not here, `Invalid` if the filter is out of its bounds.
    pub fn scan(&self, scan: &JobScan) -> Result<JobPage, Rejection> {
        let place = self
            .partition(scan.queue, scan.partition)
            .ok_or(Rejection::QueueChanged)?;
        if !filter_is_valid(&scan.filter) {
            return Err(Rejection::Invalid);
        }
        let mut page = JobPage::default();
        let mut room = ReplyRoom::default();
        for cursor in in_order(place, scan.state, scan.cursor.unwrap_or_default()) {
            let full = scan.limit != 0 && page.jobs.len() >= scan.limit as usize;
            if full || page.scanned == SCAN_STEP_JOBS as u64 {
                page.next = Some(cursor);
                break;
            }
            let id = JobId::new(self.group, scan.queue, scan.partition, cursor.seq);
            let leaf = place.leaves.get(leaf_of(cursor.seq));
            let leaf = leaf.expect("a job in an order has its leaf");
            let slot = slot_of(cursor.seq);
            if lets_through(&scan.filter, leaf, slot) {
                if scan.limit != 0 {
                    let len = leaf.records()[slot].payload_len;
                    if !room.takes(if scan.bodies { len } else { 0 }) {
                        page.next = Some(cursor);
                        break;
                    }
                    let view = self.view_of(place, id, scan.bodies);
                    page.jobs.push(view.expect("a job in an order is live"));
                }
                page.matched += 1;
            }
            page.scanned += 1;
        }
        Ok(page)
    }

    /// Finished jobs that a partition retains, older than place `before` (0 = from the newest), the
    /// newest first: up to `limit`, and no more than a reply holds.
    ///
    /// # Errors
    /// `QueueChanged` if the partition is not here.
    pub fn scan_finished(
        &self,
        queue: QueueUid,
        partition: Partition,
        before: u64,
        limit: usize,
    ) -> Result<FinishedPage, Rejection> {
        let place = self
            .partition(queue, partition)
            .ok_or(Rejection::QueueChanged)?;
        let history = &place.history;
        let last = place.head.last_place;
        let mut at = if before == 0 {
            last
        } else {
            last.min(before - 1)
        };
        let mut page = FinishedPage::default();
        let mut room = ReplyRoom::default();
        while let Some(job) = history.at(at) {
            let len = u32::try_from(job.result_len()).expect("results are bounded by 4 KiB");
            if page.jobs.len() >= limit || !room.takes(len) {
                page.next = at + 1;
                break;
            }
            let id = JobId::new(self.group, queue, partition, job.seq);
            page.jobs.push(view_of_finished(id, at, job));
            at -= 1;
        }
        Ok(page)
    }

    /// Acts on the dead jobs of a partition that a filter lets through, from a sequence on.
    pub(super) fn sweep_dead(
        &mut self,
        (queue, number): (QueueUid, Partition),
        action: SweepAction,
        filter: &JobFilter,
        from_seq: u64,
        limit: u32,
    ) -> Outcome {
        let limit = limit as usize;
        if !(1..=ITEMS_MAX).contains(&limit) || !filter_is_valid(filter) {
            return Outcome::Rejected(Rejection::Invalid);
        }
        let (wall, group) = (self.wall(), self.group);
        let Some(partition) = self.partitions.get_mut(&(queue, number)) else {
            return Outcome::Rejected(Rejection::QueueChanged);
        };
        let mut found = Vec::new();
        let mut scanned = 0;
        let mut next_seq = None;
        for seq in partition.leaves.of_state(JobState::Dead, 0, from_seq) {
            if found.len() == limit || scanned == SCAN_STEP_JOBS {
                next_seq = Some(seq);
                break;
            }
            scanned += 1;
            let leaf = partition.leaves.get(leaf_of(seq));
            let leaf = leaf.expect("a dead job has its leaf");
            if lets_through(filter, leaf, slot_of(seq)) {
                found.push(seq);
            }
        }
        for seq in &found {
            let id = JobId::new(group, queue, number, *seq);
            match action {
                SweepAction::Requeue => requeue(partition, &mut self.links, id, wall),
                SweepAction::Delete => partition.remove(id, &mut self.links),
            }
        }
        let count = |jobs: usize| u32::try_from(jobs).expect("bounded by the step of a scan");
        Outcome::Swept {
            matched: count(found.len()),
            scanned: count(scanned),
            next_seq,
        }
    }
}

/// The jobs of a state in the order of a scan, from a cursor on.
pub(super) fn in_order(
    place: &PartitionState,
    state: JobState,
    from: JobCursor,
) -> impl Iterator<Item = JobCursor> {
    let classes = match state {
        JobState::Pending => from.priority..PRIORITIES as u8,
        JobState::Delayed | JobState::InFlight | JobState::Dead => 0..1,
    };
    let first = classes.start;
    classes.flat_map(move |priority| {
        let seq = if priority == first { from.seq } else { 0 };
        let jobs = place.leaves.of_state(state, priority, seq);
        jobs.map(move |seq| JobCursor { priority, seq })
    })
}
