//! What reads of the job machine return: copies, detached from its state.

use crate::base::checksum::Hash128;
use crate::base::ids::{JobId, Partition, QueueUid, SessionId, Token};
use crate::base::limits::{BODY_HEAD_BYTES, DISK_ALIGN_BYTES};
use crate::base::units::{GroupTime, WallTime};
use crate::queue::command::{Backoff, JobFilter};
use bytes::Bytes;

/// The state of a live job. Completed and cancelled jobs are not live: asking for one yields
/// `Finished`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum JobState {
    /// Ready to be leased.
    Pending = 1,
    /// Waits for its run-at, or for its backoff.
    Delayed = 2,
    /// Leased by a worker.
    InFlight = 3,
    /// Out of attempts, out of time, or buried.
    Dead = 4,
}

impl JobState {
    /// The state of a stored number.
    #[must_use]
    pub fn from_u8(raw: u8) -> Option<Self> {
        [Self::Pending, Self::Delayed, Self::InFlight, Self::Dead]
            .into_iter()
            .find(|state| *state as u8 == raw)
    }
}

/// Everything about a job that its enqueue fixed, besides its record: written once, never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// What the worker gets.
    pub payload: Bytes,
    /// Small names and values.
    pub headers: Vec<(String, Bytes)>,
    /// The idempotency key.
    pub key: Option<Bytes>,
    /// How long a worker may run it, in milliseconds; 0 = no limit.
    pub run_limit_ms: u32,
    /// Its own backoff.
    pub backoff: Option<Backoff>,
}

/// A live job as a read shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView {
    /// The job.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// Its class.
    pub priority: u8,
    /// Grants so far.
    pub attempts: u16,
    /// Grants at which it dies.
    pub max_attempts: u16,
    /// Delayed by run-at: when it is due, wall time.
    pub run_at: Option<WallTime>,
    /// Delayed by backoff, or leased: milliseconds left of the group's time.
    pub remaining_ms: Option<u64>,
    /// When it was enqueued.
    pub enqueued_at: WallTime,
    /// When its time to live ends.
    pub expires_at: Option<WallTime>,
    /// The present grant, if it is leased.
    pub token: Option<Token>,
    /// Who leases it.
    pub owner: Option<SessionId>,
    /// Why its last attempt failed, cut at 256 bytes; empty if it never did.
    pub last_failure: Bytes,
    /// Payload, headers, key, limits.
    pub body: Body,
}

/// A job that is over, as a queue with `retain` remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedJob {
    /// The job.
    pub id: JobId,
    /// How it ended.
    pub end: JobEnd,
    /// Grants that it had.
    pub attempts: u16,
    /// When it was enqueued.
    pub enqueued_at: WallTime,
    /// When it ended.
    pub finished_at: WallTime,
    /// What its worker gave back, at most 4 KiB; only of a completed job.
    pub result: Option<Bytes>,
    /// Its place among the finished jobs of its partition, rising from 1.
    pub place: u64,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum JobEnd {
    /// Acknowledged by its worker.
    Completed = 1,
    /// Cancelled.
    Cancelled = 2,
    /// It used up its attempts or its time, in a queue that keeps no dead jobs.
    Dropped = 3,
}

impl JobEnd {
    /// The end of a stored number.
    #[must_use]
    pub fn from_u8(raw: u8) -> Option<Self> {
        [Self::Completed, Self::Cancelled, Self::Dropped]
            .into_iter()
            .find(|end| *end as u8 == raw)
    }
}

/// A place in the order of a scan: pending jobs stand by priority and sequence, others by sequence
/// (and priority 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobCursor {
    /// The priority.
    pub priority: u8,
    /// The sequence.
    pub seq: u64,
}

/// A step through the jobs of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobScan {
    /// The queue.
    pub queue: QueueUid,
    /// The partition.
    pub partition: Partition,
    /// Which jobs.
    pub state: JobState,
    /// What they must be like.
    pub filter: JobFilter,
    /// Where to begin; `None` = with the first.
    pub cursor: Option<JobCursor>,
    /// At most so many jobs; 0 = only count.
    pub limit: u32,
    /// Whether payloads, headers and keys are shown; without them a job's body is empty.
    pub bodies: bool,
}

/// A page of a scan. A step looks at a bounded number of jobs, so that it may be empty and yet not
/// the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobPage {
    /// Jobs that the filter let through.
    pub jobs: Vec<JobView>,
    /// How many the filter let through; more than are listed only where none was asked for.
    pub matched: u64,
    /// How many were looked at.
    pub scanned: u64,
    /// Where to go on; `None` = this was the last page.
    pub next: Option<JobCursor>,
}

/// A page of finished jobs, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FinishedPage {
    /// Finished jobs.
    pub jobs: Vec<FinishedJob>,
    /// Go on before this place; 0 = this was the last page.
    pub next: u64,
}

/// Counters of a queue (over the partitions of this group).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Ready to be leased.
    pub pending: u64,
    /// Waiting for a run-at or a backoff.
    pub delayed: u64,
    /// Leased.
    pub in_flight: u64,
    /// Dead.
    pub dead: u64,
    /// Payload bytes of all live jobs, and results of the finished ones that are retained.
    pub bytes: u64,
    /// Idempotency keys remembered.
    pub keys: u64,
    /// Jobs ever made.
    pub enqueued_total: u64,
    /// Grants ever made.
    pub leased_total: u64,
    /// Jobs acknowledged.
    pub completed_total: u64,
    /// Nacks, including those that killed the job.
    pub nacked_total: u64,
    /// Leases that ended by time or with their worker.
    pub expired_total: u64,
    /// Jobs that became dead or were dropped instead.
    pub dead_total: u64,
    /// Jobs cancelled.
    pub cancelled_total: u64,
    /// Finished jobs retained.
    pub retained: u64,
    /// When the oldest pending job was enqueued.
    pub oldest_pending: Option<WallTime>,
}

/// A session as its leader watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// The session.
    pub id: SessionId,
    /// Its epoch.
    pub epoch: u32,
    /// Whether the leases of this epoch were ended: it must attach before it leases.
    pub ended: bool,
    /// Jobs that it holds.
    pub leases: u64,
    /// Silent this long, its leases go back, in milliseconds.
    pub worker_timeout_ms: u32,
    /// The highest number applied, over both windows.
    pub last_seq: u64,
}

/// Where a body is on this node's disk; local, never part of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLocation {
    /// The payload file: start, shard and count within both, as `snapshot::layout::file_number` has them.
    pub file: u64,
    /// Offset of the encoded body.
    pub offset: u64,
    /// Length of the encoded body.
    pub len: u32,
}

impl BodyLocation {
    /// Nowhere: for who wants to see a state's bodies, not to write them.
    pub const NOWHERE: Self = Self {
        file: 0,
        offset: 0,
        len: 0,
    };

    /// Bytes of the file that it takes, head and padding included.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        (BODY_HEAD_BYTES as u64 + u64::from(self.len)).next_multiple_of(DISK_ALIGN_BYTES)
    }
}

/// Where a page, or a node above pages, is on this node's disk; local, never part of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPage {
    /// The hash of what it is.
    pub hash: Hash128,
    /// The run file.
    pub file: u64,
    /// Where in that file.
    pub offset: u64,
    /// Bytes that it takes there.
    pub len: u32,
    /// The checksum of these bytes.
    pub crc: u32,
}

impl StoredPage {
    /// What has this hash, and lies nowhere: for who wants to see a state's pages, not to write them.
    #[must_use]
    pub fn nowhere(hash: Hash128) -> Self {
        Self {
            hash,
            file: 0,
            offset: 0,
            len: 0,
            crc: 0,
        }
    }
}

/// Names a page of a group's hot state. Pages sort by kind, then queue, partition, number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageKey {
    /// What the page holds.
    pub kind: PageKind,
    /// The queue, or 0.
    pub queue: QueueUid,
    /// The partition, or 0.
    pub partition: Partition,
    /// Leaf number, key bucket, session or page of places; else 0.
    pub number: u64,
}

/// What a page holds. The numbers are on disk for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PageKind {
    /// The group: machine version, time, wall offset, counters, changes that others have yet to do.
    Group = 1,
    /// A queue's home record.
    Queue = 2,
    /// A partition: settings in force, next sequence, counters.
    Partition = 3,
    /// 64 records of 64 bytes.
    Leaf = 4,
    /// The last failure reasons of a leaf.
    Reasons = 5,
    /// The idempotency keys of a partition whose hash starts alike.
    Keys = 6,
    /// A session with its outcomes.
    Session = 7,
    /// The finished jobs of 64 places that a partition retains.
    Finished = 8,
}

impl PageKind {
    /// The kind of a stored number.
    #[must_use]
    pub fn from_u8(raw: u8) -> Option<Self> {
        [
            Self::Group,
            Self::Queue,
            Self::Partition,
            Self::Leaf,
            Self::Reasons,
            Self::Keys,
            Self::Session,
            Self::Finished,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == raw)
    }
}

/// The point of the log at which something is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyAt {
    /// The entry's index.
    pub index: crate::base::ids::LogIndex,
    /// The entry's stamp.
    pub time: GroupTime,
}
