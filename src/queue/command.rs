//! What can be asked of the job machine of a group, and what it answers.
//!
//! A [`Command`] is the payload of a log entry (kind `Data`), so what is here lasts for ever: a new
//! command or field is a new machine version. Each acts on one group; those with items have one
//! outcome per item and no atomicity over them beyond being one entry.

use crate::base::code::Code;
use crate::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Token};
use crate::queue::view::JobState;
use bytes::Bytes;

/// A command with the session that asks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Who asks; without a session a retry is not protected.
    pub session: Option<SessionCall>,
    /// What is asked.
    pub op: Op,
}

/// The place of a command in its session (Raft thesis, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionCall {
    /// The session.
    pub id: SessionId,
    /// The number of this command in its window; numbers start at 1.
    pub seq: u64,
    /// The lowest number of that window whose outcome the client has not seen. Outcomes below it
    /// are forgotten, and a command below it is never applied again.
    pub lowest: u64,
    /// Which window: polls are numbered by themselves, so that a waiting one holds nobody up.
    pub window: Window,
}

/// The two windows of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// All commands but leases: 4096 outcomes.
    Commands,
    /// Leases: 64 outcomes.
    Polls,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Opens a session; apply gives it its id.
    OpenSession {
        /// Silent this long, its leases go back; 0 = the default of 10 s.
        worker_timeout_ms: u32,
    },
    /// A client is done: leases go back at once, the session is forgotten.
    CloseSession {
        /// The session.
        session: SessionId,
    },
    /// A worker came back on another connection or to another leader: raises the epoch and returns
    /// the leases held.
    Attach {
        /// The session.
        session: SessionId,
    },
    /// By the leader: the session of this epoch was silent too long; its leases go back.
    EndLeases {
        /// The session.
        session: SessionId,
        /// The epoch that the leader saw; an older one is a no-op.
        epoch: u32,
    },
    /// By the leader: the session was idle too long. A no-op if a later command has applied or it
    /// holds leases.
    DropSession {
        /// The session.
        session: SessionId,
        /// The epoch that the leader saw.
        epoch: u32,
        /// The highest applied command number that the leader saw, over both windows.
        last_seq: u64,
    },

    /// Makes a queue in its home group, or answers the one that is there.
    CreateQueue {
        /// Its name, `[A-Za-z0-9._:-]+`.
        name: String,
        /// Its settings; ignored if the queue is there.
        settings: QueueSettings,
        /// Refuse with [`Rejection::QueueExists`] instead of answering the one that is there.
        must_be_new: bool,
        /// By the leader: how many groups the cluster has, a power of two, over which partitions
        /// are placed. 0 in machine version 1, where the only partition lives at home.
        groups: u32,
    },
    /// Replaces the settings.
    AlterQueue {
        /// The queue.
        queue: QueueUid,
        /// The version that the caller saw, or 0 for any.
        expected_version: u32,
        /// The new settings.
        settings: QueueSettings,
    },
    /// Removes a queue with all its jobs.
    DeleteQueue {
        /// The queue.
        queue: QueueUid,
    },
    /// Hands out no more jobs; everything else goes on.
    PauseQueue {
        /// The queue.
        queue: QueueUid,
    },
    /// Takes no more jobs ([`Rejection::Draining`]); those that are there are handed out. Machine
    /// version 2.
    DrainQueue {
        /// The queue.
        queue: QueueUid,
    },
    /// Hands out jobs again, and takes new ones: ends a pause and a drain.
    ResumeQueue {
        /// The queue.
        queue: QueueUid,
    },
    /// Removes all jobs of a partition that are in one of the states named.
    Purge {
        /// The queue.
        queue: QueueUid,
        /// The partition.
        partition: Partition,
        /// Which jobs.
        states: PurgeStates,
    },

    /// Adds jobs to one partition.
    Enqueue {
        /// The queue.
        queue: QueueUid,
        /// The partition, chosen by the client.
        partition: Partition,
        /// The jobs, at most [`ITEMS_MAX`](crate::base::limits::ITEMS_MAX).
        items: Vec<NewJob>,
    },
    /// Grants up to `max` jobs of one partition.
    Lease {
        /// The queue.
        queue: QueueUid,
        /// The partition.
        partition: Partition,
        /// At most so many.
        max: u32,
        /// For how long; 0 = the job's own or the queue's.
        lease_ms: u32,
        /// The epoch of the session that the client knows; ignored without a session.
        epoch: u32,
    },
    /// Extends leases: the new deadline counts from now.
    Extend {
        /// Token and time; a time of 0 is the job's own or the queue's.
        items: Vec<(Token, u32)>,
    },
    /// Jobs are done.
    Ack {
        /// Tokens.
        items: Vec<AckItem>,
    },
    /// Jobs failed and shall be tried again, or die if this was the last attempt.
    Nack {
        /// Tokens.
        items: Vec<NackItem>,
    },
    /// Jobs go back to their place, uncounted: the worker did not start them.
    Release {
        /// Tokens.
        items: Vec<Token>,
    },
    /// Jobs go to the dead at once.
    Bury {
        /// Tokens and reasons.
        items: Vec<(Token, Bytes)>,
    },
    /// Jobs shall not run: removed if pending or delayed, their lease revoked if in flight.
    Cancel {
        /// Jobs.
        items: Vec<JobId>,
    },
    /// Dead jobs become pending, with their attempts counted anew.
    RequeueDead {
        /// Jobs.
        items: Vec<JobId>,
    },
    /// Dead jobs are removed.
    DeleteDead {
        /// Jobs.
        items: Vec<JobId>,
    },

    /// Requeues or deletes dead jobs that a filter lets through: the next ones of a partition, in a
    /// bounded step, by sequence. Machine version 2.
    SweepDead {
        /// The queue.
        queue: QueueUid,
        /// The partition.
        partition: Partition,
        /// What becomes of them.
        action: SweepAction,
        /// Which ones.
        filter: JobFilter,
        /// Looks at dead jobs from this sequence on.
        from_seq: u64,
        /// Acts on at most so many, 1 to [`ITEMS_MAX`](crate::base::limits::ITEMS_MAX).
        limit: u32,
    },

    /// By the leader of the group of some partitions: does what the home group of their queue asks.
    /// Changes of one home group arrive in the order of its log; one that was applied is answered
    /// as done again. Machine version 2.
    ChangePartitions(Box<PartitionChange>),
    /// By the leader of a queue's home group: a group has done what the change at `home_index` of
    /// this group's log asked of it. Machine version 2.
    PartitionsChanged {
        /// The group that has done it.
        group: GroupId,
        /// The place of the change in the home group's log.
        home_index: LogIndex,
    },

    /// By the leader: handles what is due at this entry's time, in a fixed order: delays of group
    /// time, run-ats, leases, times to live, idempotency keys; then finished jobs beyond what their
    /// queue retains.
    Advance {
        /// At most so many things.
        limit: u32,
    },
    /// By the leader: wall time = group time + offset from here on.
    SetWallOffset {
        /// Milliseconds.
        offset_ms: i64,
    },
}

impl Op {
    /// The machine version that brought it: a group of a lower one refuses it.
    #[must_use]
    pub fn since(&self) -> u16 {
        match self {
            Self::DrainQueue { .. }
            | Self::SweepDead { .. }
            | Self::ChangePartitions(_)
            | Self::PartitionsChanged { .. } => 2,
            Self::CreateQueue { groups, .. } if *groups != 0 => 2,
            _ => 1,
        }
    }

    /// Its name, as metrics show it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::OpenSession { .. } => "open_session",
            Self::CloseSession { .. } => "close_session",
            Self::Attach { .. } => "attach",
            Self::EndLeases { .. } => "end_leases",
            Self::DropSession { .. } => "drop_session",
            Self::CreateQueue { .. } => "create_queue",
            Self::AlterQueue { .. } => "alter_queue",
            Self::DeleteQueue { .. } => "delete_queue",
            Self::PauseQueue { .. } => "pause_queue",
            Self::DrainQueue { .. } => "drain_queue",
            Self::ResumeQueue { .. } => "resume_queue",
            Self::Purge { .. } => "purge",
            Self::Enqueue { .. } => "enqueue",
            Self::Lease { .. } => "lease",
            Self::Extend { .. } => "extend",
            Self::Ack { .. } => "ack",
            Self::Nack { .. } => "nack",
            Self::Release { .. } => "release",
            Self::Bury { .. } => "bury",
            Self::Cancel { .. } => "cancel",
            Self::RequeueDead { .. } => "requeue_dead",
            Self::DeleteDead { .. } => "delete_dead",
            Self::SweepDead { .. } => "sweep_dead",
            Self::ChangePartitions(_) => "change_partitions",
            Self::PartitionsChanged { .. } => "partitions_changed",
            Self::Advance { .. } => "advance",
            Self::SetWallOffset { .. } => "set_wall_offset",
        }
    }
}

/// What a home group asks of the group of some of a queue's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionChange {
    /// The home group.
    pub home: GroupId,
    /// The place of the change in its log.
    pub home_index: LogIndex,
    /// The queue.
    pub queue: QueueUid,
    /// Its partitions that live in the group, rising.
    pub partitions: Vec<Partition>,
    /// What they follow from now on; `None` removes them with all their jobs.
    pub config: Option<PartitionConfig>,
}

impl PartitionChange {
    /// Whether it can be for `group`: no home group asks anything else.
    #[must_use]
    pub fn fits(&self, group: GroupId) -> bool {
        let numbers = &self.partitions;
        let count = self
            .config
            .map_or(u8::MAX, |config| config.settings.partitions);
        self.home == self.queue.home()
            && self.home != group
            && numbers.is_sorted_by(|a, b| a < b)
            && numbers.first().is_some_and(|first| first.0 != 0)
            && numbers.last().is_some_and(|last| last.0 < count)
    }
}

/// The state of a queue's home record that its partitions follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionConfig {
    /// The version of the record.
    pub version: u32,
    /// Hands out no jobs.
    pub paused: bool,
    /// Takes no jobs.
    pub draining: bool,
    /// The settings of the queue; each partition takes its share of the bounds.
    pub settings: QueueSettings,
}

/// What a sweep does to the dead jobs that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SweepAction {
    /// They become pending, with their attempts counted anew.
    Requeue = 1,
    /// They are removed.
    Delete = 2,
}

/// What a job must be like; all conditions that are given hold together. The default lets every job
/// through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// The last failure contains these bytes, at most 256; empty = any.
    pub reason_contains: Bytes,
    /// This priority.
    pub priority: Option<u8>,
    /// Enqueued at or after this wall time, in milliseconds since 1970; 0 = any.
    pub enqueued_from_ms: u64,
    /// Enqueued before this wall time, in milliseconds since 1970; 0 = any.
    pub enqueued_before_ms: u64,
    /// Granted at least so often.
    pub attempts_min: u32,
}

/// A job to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewJob {
    /// What the worker gets.
    pub payload: Bytes,
    /// 0 is served first; `None` is the default, 4.
    pub priority: Option<u8>,
    /// When it may run.
    pub start: Start,
    /// It dies if it has not started to run this long after the enqueue; 0 = never.
    pub ttl_ms: u64,
    /// Its own lease time; 0 = the queue's.
    pub lease_ms: u32,
    /// Its own attempts; 0 = the queue's.
    pub max_attempts: u16,
    /// How long a worker may run it, enforced by the worker; 0 = no limit.
    pub run_limit_ms: u32,
    /// Its own backoff; `None` = the queue's.
    pub backoff: Option<Backoff>,
    /// A second job with this key, within the queue's window, is the first one.
    pub key: Option<Bytes>,
    /// Small names and values for the worker.
    pub headers: Vec<(String, Bytes)>,
}

/// When a job may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At once.
    #[default]
    Now,
    /// So many milliseconds after the enqueue.
    After(u64),
    /// At this wall time, in milliseconds since 1970.
    At(u64),
}

/// One ack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckItem {
    /// The grant.
    pub token: Token,
    /// A small result, kept where the queue retains results.
    pub result: Option<Bytes>,
}

/// One nack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NackItem {
    /// The grant.
    pub token: Token,
    /// Try again after this; `None` = by the backoff.
    pub delay_ms: Option<u64>,
    /// Why, for people; cut at 256 bytes.
    pub reason: Bytes,
}

/// Which jobs a purge removes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PurgeStates {
    /// Pending jobs.
    pub pending: bool,
    /// Delayed jobs.
    pub delayed: bool,
    /// Dead jobs.
    pub dead: bool,
}

impl PurgeStates {
    /// The states.
    pub(super) fn all(self) -> impl Iterator<Item = JobState> {
        let wanted = [
            (self.pending, JobState::Pending),
            (self.delayed, JobState::Delayed),
            (self.dead, JobState::Dead),
        ];
        let wanted = wanted.into_iter();
        wanted.filter_map(|(is_wanted, state)| is_wanted.then_some(state))
    }
}

/// How long a failed job waits before its next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The curve over the attempts made, `n >= 1`.
    pub kind: BackoffKind,
    /// The first wait, in milliseconds.
    pub base_ms: u32,
    /// For exponential: the factor in thousandths (2000 = doubling). Ignored otherwise.
    pub factor_milli: u32,
    /// No wait is longer than this, in milliseconds.
    pub cap_ms: u32,
    /// The wait is shortened by up to this many percent, drawn from job id and attempt.
    pub jitter_percent: u8,
}

/// The curve of a backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BackoffKind {
    /// `base`.
    Fixed = 1,
    /// `base * n`.
    Linear = 2,
    /// `base * factor^(n-1)`.
    Exponential = 3,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            kind: BackoffKind::Exponential,
            base_ms: 1_000,
            factor_milli: 2_000,
            cap_ms: 600_000,
            jitter_percent: 20,
        }
    }
}

/// The settings of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// How long a worker may hold a job without a word, in milliseconds, at least 1.
    pub lease_ms: u32,
    /// Grants of a job before it is dead, at least 1.
    pub max_attempts: u16,
    /// The wait between attempts.
    pub backoff: Backoff,
    /// How long an idempotency key is remembered, in milliseconds.
    pub idempotency_window_ms: u64,
    /// Keys remembered, a partition; at the bound an enqueue with a key is refused.
    pub idempotency_keys_max: u32,
    /// Jobs of the queue, over all states; 0 = no bound.
    pub jobs_max: u64,
    /// Payload bytes of the queue; 0 = no bound.
    pub bytes_max: u64,
    /// Finished jobs kept with their results, the last ones; 0 in machine version 1.
    pub retain: u32,
    /// Whether dead jobs are kept.
    pub dead: DeadPolicy,
    /// Partitions, from 1, fixed at creation; 1 in machine version 1.
    pub partitions: u8,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            lease_ms: 30_000,
            max_attempts: 20,
            backoff: Backoff::default(),
            idempotency_window_ms: 24 * 60 * 60 * 1000,
            idempotency_keys_max: 1_000_000,
            jobs_max: 0,
            bytes_max: 0,
            retain: 0,
            dead: DeadPolicy::Keep,
            partitions: 1,
        }
    }
}

/// What becomes of a job that used up its attempts or its time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeadPolicy {
    /// It is kept as dead until it is requeued or deleted.
    Keep = 1,
    /// It is removed.
    Drop = 2,
}

/// What the machine answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; nothing to tell.
    Done,
    /// The whole command was refused; nothing changed.
    Rejected(Rejection),
    /// A session is open.
    SessionOpened {
        /// Its id.
        session: SessionId,
        /// Its epoch, to be given with each lease.
        epoch: u32,
    },
    /// A session is attached; these are the leases that it holds.
    Attached {
        /// Its epoch from now on.
        epoch: u32,
        /// The leases held.
        tokens: Vec<Token>,
    },
    /// A queue as it is now.
    Queue(Box<QueueInfo>),
    /// Jobs were removed.
    Purged {
        /// How many.
        jobs: u64,
    },
    /// One outcome per new job, in order.
    Enqueued(Vec<Enqueued>),
    /// The grants; fewer than asked if fewer were ready.
    Leased(Vec<Grant>),
    /// One outcome per item, in order.
    Items(Vec<ItemOutcome>),
    /// Dead jobs were swept.
    Swept {
        /// Jobs acted on.
        matched: u32,
        /// Jobs looked at.
        scanned: u32,
        /// The sequence to go on from; `None` = all were looked at.
        next_seq: Option<u64>,
    },
    /// What was due is handled.
    Advanced {
        /// How many things.
        handled: u32,
    },
}

/// The outcome of one new job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// It is a new job.
    New(JobId),
    /// The key named this job already; nothing was added.
    Existing(JobId),
    /// It was refused.
    Rejected(Rejection),
}

impl Enqueued {
    /// The job, new or there already; `None` if it was refused.
    #[must_use]
    pub fn id(self) -> Option<JobId> {
        match self {
            Self::New(id) | Self::Existing(id) => Some(id),
            Self::Rejected(_) => None,
        }
    }
}

/// A job granted: enough to act on it. The body is read from the machine when the reply is made,
/// so that a repeated poll need not keep payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What to show on ack, nack, extend.
    pub token: Token,
    /// Attempts including this one.
    pub attempt: u16,
    /// How long the lease is from now, in milliseconds.
    pub lease_ms: u32,
}

/// The outcome of one token or job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemOutcome {
    /// Done.
    Done,
    /// Refused.
    Rejected(Rejection),
}

/// A queue as its home record tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueInfo {
    /// Its uid.
    pub uid: QueueUid,
    /// Its name.
    pub name: String,
    /// Raised by every change.
    pub version: u32,
    /// Whether it hands out no jobs.
    pub paused: bool,
    /// Whether it takes no jobs.
    pub draining: bool,
    /// The group of each partition.
    pub groups: Vec<GroupId>,
    /// Its settings.
    pub settings: QueueSettings,
    /// Whether this command made it.
    pub created: bool,
}

/// Why something was refused. The state is as if it had never been asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum Rejection {
    /// The queue is not here (any more): resolve the name again.
    QueueChanged = 1,
    /// A queue of this name exists.
    QueueExists = 2,
    /// The settings are at another version than expected: read them again.
    VersionMismatch = 3,
    /// A name, setting or field is out of its bounds.
    Invalid = 4,
    /// The group's machine version cannot do this.
    Unsupported = 5,
    /// The queue is at its bound of jobs or bytes, or the group at its bound of queues.
    QuotaExceeded = 6,
    /// The queue remembers as many keys as it may; nothing is forgotten early.
    IdempotencyWindowFull = 7,
    /// The key belongs to a job with another payload.
    IdempotencyConflict = 8,
    /// The token is not that of the present grant; the job is untouched.
    LeaseLost = 9,
    /// The job is finished: its id was given out and it is not live.
    Finished = 10,
    /// No such job was ever made here.
    NotFound = 11,
    /// The job is not in a state that allows this.
    WrongState = 12,
    /// The session is not known (any more): what was asked may or may not have happened before.
    SessionExpired = 13,
    /// The client said that it has the outcome of this number already.
    Superseded = 14,
    /// The number is beyond the session's window.
    WindowExceeded = 15,
    /// The session's leases were ended: attach again.
    Reattach = 16,
    /// The group has as many sessions, or outcomes of them, as it may.
    TooManySessions = 17,
    /// The group has made as many queues, or the partition as many jobs, as ids allow.
    IdsExhausted = 18,
    /// The queue is being drained: it takes no jobs.
    Draining = 19,
}

impl Rejection {
    /// The code that tells it to people: RRQ-4100 plus its number.
    #[must_use]
    pub fn code(self) -> Code {
        Code::from_number(4100 + self as u16).expect("every rejection has a code")
    }

    /// Every rejection, for tables and tests.
    pub const ALL: [Self; 19] = [
        Self::QueueChanged,
        Self::QueueExists,
        Self::VersionMismatch,
        Self::Invalid,
        Self::Unsupported,
        Self::QuotaExceeded,
        Self::IdempotencyWindowFull,
        Self::IdempotencyConflict,
        Self::LeaseLost,
        Self::Finished,
        Self::NotFound,
        Self::WrongState,
        Self::SessionExpired,
        Self::Superseded,
        Self::WindowExceeded,
        Self::Reattach,
        Self::TooManySessions,
        Self::IdsExhausted,
        Self::Draining,
    ];

    /// The rejection of a stored or sent number.
    #[must_use]
    pub fn from_u16(raw: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|rejection| *rejection as u16 == raw)
    }
}
