//! Stub.
use crate::base::ids::{GroupId, JobId, Partition, QueueUid};
use crate::queue::command::{PartitionChange, Rejection};
use crate::queue::job_queue::JobQueue;
use crate::queue::view::{FinishedJob, FinishedPage, JobPage, JobScan, QueueStats};
#[allow(missing_docs, clippy::all)]
impl JobQueue {
    pub fn raise_version(&mut self, version: u16) {
        self.version = self.version.max(version);
    }
    pub fn scan(&self, _scan: &JobScan) -> Result<JobPage, Rejection> {
        Err(Rejection::Unsupported)
    }
    pub fn scan_finished(
        &self,
        _queue: QueueUid,
        _partition: Partition,
        _before: u64,
        _limit: usize,
    ) -> Result<FinishedPage, Rejection> {
        Err(Rejection::Unsupported)
    }
    pub fn finished(&self, _job: JobId) -> Option<FinishedJob> {
        None
    }
    pub fn partition_stats(
        &self,
        _queue: QueueUid,
        _partition: Partition,
    ) -> Result<QueueStats, Rejection> {
        Err(Rejection::Unsupported)
    }
    pub fn next_changes(&self) -> impl Iterator<Item = (GroupId, &PartitionChange)> {
        std::iter::empty()
    }
    pub fn is_changing(&self, _queue: QueueUid) -> bool {
        false
    }
    pub fn live_jobs(&self) -> u64 {
        self.partitions
            .values()
            .map(|p| {
                let s = p.stats();
                s.pending + s.delayed + s.in_flight
            })
            .sum()
    }
    pub fn has_changes(&self) -> bool {
        false
    }
}
