//! What has left the state and takes long to free: a million jobs take a quarter of a second, in which a
//! shard would do nothing else. Whoever drives the machine frees it where nobody waits.

use crate::base::limits::LEAF_JOBS;
use crate::queue::job_queue::JobQueue;
use crate::queue::leaf::Leaf;
use crate::queue::partition::PartitionState;
use std::fmt;
use std::sync::Arc;

/// Fewer jobs are freed at once: that takes a millisecond.
const WORTH_JOBS: u64 = 4096;

/// Memory that is to be freed, by dropping this.
#[derive(Default)]
pub struct Discarded(Vec<Box<dyn Send>>);

// Nobody sees what it is any more.
impl fmt::Debug for Discarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Discarded").field(&self.0.len()).finish()
    }
}

impl Discarded {
    /// A state that is of no more use, if it takes long to free.
    #[must_use]
    pub fn state(queue: JobQueue) -> Option<Self> {
        let partitions = queue.partitions.values();
        let live: u64 = partitions.map(|partition| partition.head.live()).sum();
        (live >= WORTH_JOBS).then(|| Self(vec![Box::new(queue)]))
    }

    /// Anything else that holds much.
    pub(super) fn rest(rest: impl Send + 'static) -> Self {
        Self(vec![Box::new(rest)])
    }

    /// Takes leaves that have left the state.
    pub(super) fn leaves(&mut self, leaves: Vec<Arc<Leaf>>) {
        if leaves.len() as u64 * LEAF_JOBS >= WORTH_JOBS {
            self.0.push(Box::new(leaves));
        }
    }

    /// Takes a partition that has left the state.
    pub(super) fn partition(&mut self, partition: PartitionState) {
        if partition.head.live() >= WORTH_JOBS {
            self.0.push(Box::new(partition));
        }
    }
}

impl JobQueue {
    /// What commands have left to be freed since the last call, if that takes long.
    pub fn take_discarded(&mut self) -> Option<Discarded> {
        let discarded = &mut self.links.discarded;
        (!discarded.0.is_empty()).then(|| std::mem::take(discarded))
    }
}
