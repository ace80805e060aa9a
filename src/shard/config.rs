//! What an engine is told at its start, and never again.

use crate::base::ids::{NodeId, ShardId};
use crate::base::members::ClusterMembers;
use crate::base::units::WallTime;
use crate::queue::command::QueueSettings;
use crate::raft::message::Voter;
use crate::wal::writer::LogIdentity;
use std::time::Duration;

/// The settings of one shard's engine.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Whose log it is: cluster, disk, shard, WAL set.
    pub identity: LogIdentity,
    /// This node.
    pub node: NodeId,
    /// Its zone; empty if it has none.
    pub zone: String,
    /// The first voters of every group; none on a node that stands alone. If this node is none of them,
    /// it came later.
    pub founders: Vec<Voter>,
    /// The members of the cluster as they were known last; nobody on a node that stands alone.
    pub members: ClusterMembers,
    /// The wall time with which groups begin that are formed now, on every member the same; `None`: this
    /// node's own.
    pub formed_at: Option<WallTime>,
    /// This shard.
    pub shard: ShardId,
    /// Shards of this node; group g lives on shard `g % shards`.
    pub shards: u16,
    /// Groups of the cluster, a power of two.
    pub groups: u32,
    /// The start number of this process, from the superblock: part of the names of files.
    pub start_number: u32,
    /// Seeds election timeouts and segment epochs.
    pub seed: u64,
    /// The highest version of the job machine that this node proposes to a group.
    pub machine_version_max: u16,
    /// Largest payload of a job, in bytes.
    pub payload_bytes_max: usize,
    /// Whether a queue is made at its first use.
    pub auto_create: bool,
    /// Settings of a queue made at its first use.
    pub queue_defaults: QueueSettings,
    /// A checkpoint round may be cut each so many bytes of log; after fewer, some time apart.
    pub checkpoint_log_bytes: u64,
    /// A start has the log since the last round in memory, beside the jobs: at twice so many bytes
    /// enqueues wait for the round.
    pub checkpoint_log_bytes_max: u64,
    /// Beyond so many bytes of jobs and keys in memory, those that a checkpoint has on the disk are let go of.
    pub jobs_held_bytes_max: u64,
    /// All that the newest checkpoints have on the disk is looked at within this; `None`: not until it is
    /// needed.
    pub scrub_period: Option<Duration>,
    /// What the groups hold together of applied entries for members that are behind, in bytes.
    pub tails_bytes: usize,
    /// A member that lacks more of a group than is in memory gets it from the log of the leader, if that
    /// has it still and it takes no more than this, in bytes, or than the group's jobs; else a
    /// checkpoint. 0: always a checkpoint.
    pub catch_up_bytes: u64,
    /// The size of a log segment, in bytes:
    /// [`SEGMENT_BYTES`](crate::base::limits::SEGMENT_BYTES), or less in a simulation.
    pub segment_bytes: usize,
}

impl ShardConfig {
    /// This node as a voter.
    #[must_use]
    pub fn me(&self) -> Voter {
        Voter {
            node: self.node,
            disk: self.identity.disk,
        }
    }
}
