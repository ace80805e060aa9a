//! Requests and replies of the client protocol as plain values; `client.rs` is their codec.

use crate::base::code::Code;
use crate::base::ids::{
    ClusterId, GroupId, JobId, LogIndex, NodeId, Partition, QueueUid, SessionId, Term, Token, Voter,
};
use crate::base::members::Member;
use crate::queue::command::{Command, Enqueued, ItemOutcome, Outcome, QueueInfo, Rejection};
use crate::queue::view::{
    FinishedJob, FinishedPage, JobPage, JobScan, JobState, JobView, QueueStats,
};
use bytes::Bytes;

/// The first frame of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The lowest protocol version that the client speaks.
    pub protocol_min: u32,
    /// The highest.
    pub protocol_max: u32,
    /// Name and version of the client, for logs.
    pub agent: String,
}

/// The node's answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// The version that both speak from here on.
    pub protocol: u32,
    /// Version of the node, for logs.
    pub version: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// This shard: the listener that the client reached.
    pub shard: u16,
    /// How many groups the cluster has, a power of two. The home group of a queue is
    /// `crc32c(name) & (groups - 1)`.
    pub groups: u32,
    /// The largest payload of a job, in bytes.
    pub payload_bytes_max: u32,
    /// The nodes of the cluster as far as known.
    pub nodes: Vec<NodeAddresses>,
}

/// Where the shards of a node listen: group g lives on shard `g % addresses.len()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    /// The node.
    pub node: NodeId,
    /// `host:port` of each shard, in order.
    pub addresses: Vec<String>,
}

/// A request. Replies come in any order and carry its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the client; unique among its requests under way on this connection.
    pub id: u64,
    /// What is asked.
    pub body: RequestBody,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// A command of the job machine, to be committed.
    Command {
        /// The group.
        group: GroupId,
        /// The command; for a lease of a queue without ready jobs, see `wait_ms`.
        command: Command,
        /// Leases only: wait so long for the first job (a long poll). 0 answers at once.
        wait_ms: u32,
    },
    /// A live job.
    GetJob {
        /// Its id.
        job: JobId,
    },
    /// The job that a key names.
    GetJobByKey {
        /// The queue.
        queue: QueueUid,
        /// The partition.
        partition: Partition,
        /// The group of that partition.
        group: GroupId,
        /// The key.
        key: Bytes,
    },
    /// The first jobs of a state.
    Peek {
        /// The queue.
        queue: QueueUid,
        /// The partition.
        partition: Partition,
        /// The group of that partition.
        group: GroupId,
        /// Which jobs.
        state: JobState,
        /// At most so many.
        limit: u32,
    },
    /// The home record of a queue by its name, with its counters; answered by
    /// [`ReplyBody::Queues`] with one, or by [`Code::NoSuchQueue`].
    GetQueue {
        /// The name.
        name: String,
        /// Make it with the node's settings if it is not there and the node allows that.
        create: bool,
    },
    /// The queues of a group with their counters.
    ListQueues {
        /// The group.
        group: GroupId,
    },
    /// A job's end is waited for: answered by [`ReplyBody::Finished`] where the queue retains it,
    /// by the rejection `Finished` where it does not, and by [`ReplyBody::Job`] if it is dead, or
    /// if the wait ended first.
    WaitJob {
        /// Its id.
        job: JobId,
        /// At most so long.
        wait_ms: u32,
    },
    /// Until a job can be leased, or the wait is over. Leases nothing and logs nothing; answered
    /// once, by [`ReplyBody::Ready`].
    Watch {
        /// The queue.
        queue: QueueUid,
        /// The partition.
        partition: Partition,
        /// The group of that partition.
        group: GroupId,
        /// At most so long.
        wait_ms: u32,
    },
    /// Jobs of a state that a filter lets through, from a cursor on.
    ScanJobs {
        /// The group of the partition.
        group: GroupId,
        /// Which jobs.
        scan: JobScan,
    },
    /// Finished jobs that the queue retains, the newest first.
    ScanFinished {
        /// The queue.
        queue: QueueUid,
        /// The partition.
        partition: Partition,
        /// The group of that partition.
        group: GroupId,
        /// Older than this place; 0 = from the newest.
        before: u64,
        /// At most so many.
        limit: u32,
    },
    /// The counters of one partition.
    GetPartition {
        /// The queue.
        queue: QueueUid,
        /// The partition.
        partition: Partition,
        /// The group of that partition.
        group: GroupId,
    },
    /// The sessions of a group that hold jobs, wait for some, or told who they are.
    ListWorkers {
        /// The group.
        group: GroupId,
    },
    /// These sessions are alive.
    Heartbeat {
        /// Sessions.
        sessions: Vec<(GroupId, SessionId)>,
        /// Who works on this connection; shown, kept in memory only.
        worker: Option<WorkerInfo>,
    },
    /// Changes the members of the cluster; answered by the outcome `Done` once group 0 has decided it. The
    /// other groups follow by themselves, which an operator sees by [`Self::Status`].
    ChangeMembers(MemberChange),
    /// This shard hands over what it leads from now on, or does so no more; answered by the outcome `Done`.
    Drain {
        /// Whether it shall.
        on: bool,
    },
    /// What this shard is and does.
    Status,
    /// The client leaves on purpose: its sessions' leases go back at once.
    Bye,
}

impl RequestBody {
    /// The name of what is asked, as metrics show it; a lease that may wait is named apart.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Command {
                command, wait_ms, ..
            } => match command.op.name() {
                "lease" if *wait_ms > 0 => "lease_wait",
                name => name,
            },
            Self::GetJob { .. } => "get_job",
            Self::GetJobByKey { .. } => "get_job_by_key",
            Self::Peek { .. } => "peek",
            Self::GetQueue { .. } => "get_queue",
            Self::ListQueues { .. } => "list_queues",
            Self::WaitJob { .. } => "wait_job",
            Self::Watch { .. } => "watch",
            Self::ScanJobs { .. } => "scan_jobs",
            Self::ScanFinished { .. } => "scan_finished",
            Self::GetPartition { .. } => "get_partition",
            Self::ListWorkers { .. } => "list_workers",
            Self::Heartbeat { .. } => "heartbeat",
            Self::ChangeMembers(_) => "change_members",
            Self::Drain { .. } => "drain",
            Self::Status => "status",
            Self::Bye => "bye",
        }
    }
}

/// How the members of the cluster shall change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// These nodes, which wait for it, with the disks that they have: each takes the place of the disk that
    /// its node had before, if it was a member. At most [`MEMBER_STEPS_MAX`](crate::base::limits::MEMBER_STEPS_MAX).
    Add(Vec<Voter>),
    /// This node goes, whatever its disk.
    Remove(NodeId),
}

/// Who works, as shown to people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Its name, at most 128 bytes.
    pub name: String,
    /// Words about it, at most 16 of 128 bytes each.
    pub tags: Vec<String>,
    /// Jobs that it runs at once.
    pub capacity: u32,
}

/// A session that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSession {
    /// The session.
    pub session: SessionId,
    /// Jobs that it holds.
    pub leases: u64,
    /// Polls and watches of it that wait.
    pub waiting: u32,
    /// Milliseconds since it was heard.
    pub silent_ms: u64,
    /// Whether its leases were ended.
    pub ended: bool,
    /// Who it is; `None` if it never told, or is not connected.
    pub worker: Option<WorkerInfo>,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// Where a command took effect, or where a read was made. A lease that found nothing may have none: the
    /// leader that says so may have been replaced.
    pub stamp: Option<CommitStamp>,
    /// The answer.
    pub body: ReplyBody,
}

/// A place in the history of a group: replies sorted by it are the order in which all happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommitStamp {
    /// The group.
    pub group: GroupId,
    /// The term of the leader that answers.
    pub term: Term,
    /// The index applied.
    pub index: LogIndex,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyBody {
    /// What the machine said. A lease is answered by [`ReplyBody::Leased`].
    Outcome(Outcome),
    /// Leased jobs; none if the wait ended first.
    Leased(Vec<LeasedJob>),
    /// A job.
    Job(Box<JobView>),
    /// Jobs.
    Jobs(Vec<JobView>),
    /// A queue with its counters.
    Queues(Vec<(QueueInfo, QueueStats)>),
    /// A shard.
    Status(ShardStatus),
    /// A job that is over.
    Finished(Box<FinishedJob>),
    /// So many jobs can be leased; 0 = the wait is over.
    Ready(u64),
    /// A page of jobs.
    JobPage(JobPage),
    /// A page of finished jobs.
    FinishedPage(FinishedPage),
    /// The counters of a partition.
    Partition(Box<QueueStats>),
    /// Sessions that work.
    Workers(Vec<WorkerSession>),
    /// Heartbeats are taken; these sessions are not known here.
    HeartbeatTaken {
        /// Unknown sessions.
        unknown: Vec<(GroupId, SessionId)>,
    },
    /// Refused, or its fate is unknown.
    Error(ErrorReply),
}

impl ReplyBody {
    /// The code that refused it. If items were refused one by one, that of the first of them.
    #[must_use]
    pub fn refused_by(&self) -> Option<Code> {
        let rejected = match self {
            Self::Error(error) => return Some(error.code),
            Self::Outcome(Outcome::Rejected(rejection)) => Some(*rejection),
            Self::Outcome(Outcome::Items(items)) => items.iter().find_map(|item| match item {
                ItemOutcome::Rejected(rejection) => Some(*rejection),
                ItemOutcome::Done => None,
            }),
            Self::Outcome(Outcome::Enqueued(items)) => items.iter().find_map(|item| match item {
                Enqueued::Rejected(rejection) => Some(*rejection),
                Enqueued::New(_) | Enqueued::Existing(_) => None,
            }),
            _ => None,
        };
        rejected.map(Rejection::code)
    }
}

/// A job in the hands of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedJob {
    /// What to show on ack, nack, extend.
    pub lease_gen: u32,
    /// The job with its body.
    pub job: JobView,
    /// How long the lease is from now, in milliseconds.
    pub lease_ms: u32,
}

impl LeasedJob {
    /// What to show on ack, nack, extend.
    #[must_use]
    pub fn token(&self) -> Token {
        Token {
            job: self.job.id,
            lease_gen: self.lease_gen,
        }
    }
}

/// An error of a whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorReply {
    /// Its stable code.
    pub code: Code,
    /// For people.
    pub message: String,
    /// Try there: `host:port` of the leader, if known.
    pub leader: Option<String>,
    /// Whether the request may have taken effect: only where nobody can know.
    pub maybe_applied: bool,
}

/// A shard as `rrqctl status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStatus {
    /// The shard.
    pub shard: u16,
    /// Shards of this node.
    pub shards: u16,
    /// Milliseconds since the process was started.
    pub uptime_ms: u64,
    /// Client connections.
    pub connections: u64,
    /// Bytes of log since the last checkpoint.
    pub log_bytes_since_checkpoint: u64,
    /// Durable position of the log.
    pub durable_lsn: u64,
    /// Whether enqueues are refused because the disk is full.
    pub disk_full: bool,
    /// Groups of the shard.
    pub groups: Vec<GroupStatus>,
    /// Who belongs to the cluster, as far as this shard knows, ascending; nobody before it knows.
    pub members: Vec<Member>,
    /// Nodes that want to belong to it; shard 0 knows them.
    pub waiting: Vec<WaitingNode>,
    /// Whether it hands over whatever it leads.
    pub draining: bool,
    /// The node's zone; empty if it has none.
    pub zone: String,
}

/// A node that belongs to no cluster and wants to belong to this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingNode {
    /// The node, with its disk.
    pub id: Voter,
    /// Where its clients will connect, `host:port`, by shard.
    pub addresses: Vec<String>,
}

/// A group as `rrqctl status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// Its term.
    pub term: Term,
    /// Whether this node leads it.
    pub leader: bool,
    /// Committed.
    pub commit: LogIndex,
    /// Applied.
    pub applied: LogIndex,
    /// Index of its newest base.
    pub base: LogIndex,
    /// Sessions open.
    pub sessions: u64,
    /// Why it does not serve; empty if it does.
    pub halted: String,
    /// The version of its job machine.
    pub machine_version: u16,
    /// Its members, as this replica knows them, are not those of the cluster.
    pub members_unsettled: bool,
}
