//! Every bound of the system in one place, and the relations between them, checked by the compiler.

use crate::base::ids::{GroupId, LogIndex, Term};

/// The unit of disk I/O: batches start and end on it.
pub const BLOCK_BYTES: usize = 4096;
/// A log segment.
pub const SEGMENT_BYTES: usize = 16 << 20;
/// A log batch holds at most this, or one entry if that is larger.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Batches of a shard that may be under way to the disk at once.
pub const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// However little memory there is, a shard's log may grow by this between two checkpoints.
pub const CHECKPOINT_LOG_BYTES_MIN: u64 = 4 << 20;
/// With a write under way, a batch waits until it holds this much.
pub const BATCH_BYTES_GATHER: usize = 128 << 10;
/// The largest payload that any configuration allows.
pub const PAYLOAD_BYTES_HARD_MAX: usize = 4 << 20;
/// The largest payload unless configured otherwise.
pub const PAYLOAD_BYTES_DEFAULT_MAX: usize = 1 << 20;
/// A frame's body after the hello: a batch of payloads and what describes them.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// A frame's body before the hello is done.
pub const FRAME_BYTES_HELLO_MAX: usize = 4 << 10;
/// The encoded commands of one entry.
pub const ENTRY_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// Items of one request: jobs enqueued, tokens acknowledged, jobs leased.
pub const ITEMS_MAX: usize = 1024;
/// Jobs in one reply, counted with payload and [`REPLY_JOB_BYTES`] each; a first job always fits.
pub const REPLY_JOBS_BYTES_MAX: usize = 7 << 20;
/// What a job may take in a reply besides its payload: headers, key, reason and fixed fields.
pub const REPLY_JOB_BYTES: usize = 5 << 10;
/// Tokens that the answer to an attach lists; leases beyond it end by time.
pub const ATTACH_TOKENS_MAX: usize = 200_000;
/// Queues at home in one group, each counted with all its partitions, wherever they live. So the
/// partitions of a cluster are bounded too; a group that is asked for some by another takes them.
pub const QUEUES_MAX: usize = 16_384;
/// Changes that a home group may have outstanding in other groups, over all its queues.
pub const CHANGES_MAX: usize = 16_384;
/// The command of such a change on its way to another node: 255 partitions and the settings of a queue.
pub const CHANGE_BYTES_MAX: usize = 4096;
/// Due delays and expiries that one entry handles.
pub const ADVANCE_ITEMS_MAX: u32 = 1024;

/// Length of a queue's name in bytes; a name is `[A-Za-z0-9._:-]+`.
pub const QUEUE_NAME_BYTES_MAX: usize = 128;
/// Length of an idempotency key in bytes.
pub const KEY_BYTES_MAX: usize = 256;
/// Headers of one job.
pub const HEADERS_MAX: usize = 32;
/// Names and values of one job's headers together, in bytes.
pub const HEADERS_BYTES_MAX: usize = 4 << 10;
/// A failure reason is cut at this many bytes.
pub const REASON_BYTES_MAX: usize = 256;
/// A job's result, in bytes.
pub const RESULT_BYTES_MAX: usize = 4 << 10;
/// A worker's name, in bytes.
pub const WORKER_NAME_BYTES_MAX: usize = 128;
/// Tags of a worker, each at most [`WORKER_NAME_BYTES_MAX`] long.
pub const WORKER_TAGS_MAX: usize = 16;
/// Jobs that one step of a scan or a sweep looks at.
pub const SCAN_STEP_JOBS: usize = 4096;

/// Priority classes; 0 is served first.
pub const PRIORITIES: usize = 8;
/// What a live job takes in memory beside its body: its record, its places in the orders, and what
/// holds its body together.
pub const JOB_HELD_BYTES: usize = 512;
/// What a remembered key takes in memory: its record, its place among the windows' ends, and room to
/// grow.
pub const KEY_HELD_BYTES: usize = 192;
/// What a finished job that is kept takes in memory beside its result.
pub const FINISHED_HELD_BYTES: usize = 192;
/// Branches of a node above the pages of which a group has many.
pub const NODE_BRANCHES: u64 = 64;
/// Bytes before a body in a payload file.
pub const BODY_HEAD_BYTES: usize = 24;
/// What lies in a checkpoint file begins at a multiple of this.
pub const DISK_ALIGN_BYTES: u64 = 8;
/// Jobs of one leaf page.
pub const LEAF_JOBS: u64 = 64;
/// Places of one page of finished jobs.
pub const FINISHED_PAGE_JOBS: u64 = 64;

/// Outcomes that a session keeps for commands.
pub const SESSION_WINDOW: u64 = 4096;
/// Outcomes that a session keeps for polls.
pub const SESSION_POLL_WINDOW: u64 = 64;
/// Sessions of a group.
pub const SESSIONS_MAX: usize = 16_384;
/// Outcomes kept by all sessions of a group, in bytes.
pub const SESSION_BYTES_MAX: usize = 64 << 20;
/// A session without command and heartbeat is dropped after this.
pub const SESSION_IDLE_MS: u64 = 15 * 60 * 1000;
/// The leases of a session that is silent this long go back, unless it asked for another time.
pub const WORKER_TIMEOUT_MS: u64 = 10_000;
/// The leases of a session whose connection closed without a word go back after this.
pub const WORKER_CLOSED_MS: u64 = 1_000;
/// A long poll waits at most this.
pub const POLL_WAIT_MS_MAX: u64 = 60_000;
/// Polls that wait, a shard.
pub const POLLS_WAITING_MAX: usize = 65_536;
/// Proposed and not yet applied, a group; more is refused as busy.
pub const GROUP_UNCOMMITTED_BYTES_MAX: usize = 64 << 20;
/// A tick of the groups that are not at rest, in milliseconds.
pub const TICK_MS: u64 = 15;
/// A node tells each other node that it is there so often, in milliseconds.
pub const BEAT_MS: u64 = 30;
/// A node that was not heard for so many milliseconds is silent: groups that it leads look for
/// another leader. Longer than a busy machine keeps a process waiting for a core.
pub const SILENT_MS: u64 = 240;
/// A group rests after so many milliseconds without a proposal.
pub const REST_AFTER_MS: u64 = 150;
/// Who is not the heir of a leader that died waits so many milliseconds for the heir.
pub const HEIR_WAIT_MS: u64 = 10;
/// What the applied entries take, in bytes, that the groups of a shard hold together for members that
/// are behind: at least,
pub const TAILS_BYTES_MIN: usize = 16 << 20;
/// and at most.
pub const TAILS_BYTES_MAX: usize = 64 << 20;
/// Leaders are spread over the nodes once none has changed on a node for so many milliseconds,
pub const BALANCE_AFTER_MS: u64 = 2_000;
/// with a look each so many,
pub const BALANCE_EVERY_MS: u64 = 250;
/// at most so many groups a look and shard,
pub const BALANCE_GROUPS: usize = 4;
/// to members that lack at most so many entries.
pub const BALANCE_LAG_MAX: u64 = 256;
/// A group that was given away and came back stays for [`BALANCE_AFTER_MS`], doubled each time and so often at the
/// most: half an hour.
pub const BALANCE_DOUBLINGS_MAX: u32 = 10;
/// Without a leader for so many ticks, and a random part of as many again, a voter campaigns.
pub const ELECTION_TICKS: u32 = 16;
/// A leader of a group that is not quiet sends a heartbeat each so many ticks.
pub const HEARTBEAT_TICKS: u32 = 2;
/// Shards of a node.
pub const SHARDS_MAX: u16 = 64;
/// No start of a node has this number or a higher one: with that of a shard it makes 32 bits of the number of
/// a checkpoint file.
pub const STARTS_END: u32 = 1 << (32 - SHARDS_MAX.ilog2());
/// Shards of a node that another node keeps numbers of.
pub const PEER_SHARDS_MAX: usize = 1024;
/// The group whose members are the cluster's.
pub const CLUSTER_GROUP: GroupId = GroupId(0);
/// Voters of a group.
pub const VOTERS_MAX: usize = 15;
/// Steps of one change of the members of a group.
pub const MEMBER_STEPS_MAX: usize = 16;
/// Learners of a group.
pub const LEARNERS_MAX: usize = 15;
/// Members of a group: while a change is half done there are two sets of voters.
pub const MEMBERS_MAX: usize = 2 * VOTERS_MAX + LEARNERS_MAX;
/// Bytes of the name of a zone.
pub const ZONE_BYTES_MAX: usize = 64;
/// Largest body of a frame between nodes.
pub const PEER_FRAME_BYTES_MAX: usize = 16 << 20;
/// A frame between nodes takes no further message once it is as large as this.
pub const PEER_FRAME_BYTES_FULL: usize = 1 << 20;
/// What waits to be sent to another node, in bytes; more is dropped, and said again by Raft.
pub const PEER_OUTBOX_BYTES_MAX: usize = 64 << 20;
/// What the entries of one append to a follower take, or one entry if that is larger.
pub const APPEND_BYTES_MAX: usize = 1 << 20;
/// Appends that are not answered, a follower of a group.
pub const APPENDS_IN_FLIGHT_MAX: usize = 64;
/// What their entries take; one append passes whatever its size.
pub const APPENDS_IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// A checkpoint goes to another node in parts of at most this.
pub const CHECKPOINT_PART_BYTES: usize = 128 << 10;
/// What a leader reads of its log for a member of a group that is behind, in bytes of entries of that
/// group; a member that lacks more gets a checkpoint, unless that is larger.
pub const CATCH_UP_BYTES_MAX: u64 = 16 << 20;
/// Parts on their way to a node that it has not answered.
pub const CHECKPOINT_PARTS_IN_FLIGHT: u64 = 4;
/// Pages and nodes of a checkpoint that are asked for and have not come.
pub const CHECKPOINT_WANTS_MAX: usize = 512;
/// A page or a body on its way to another node, at the most: a session may hold all outcomes of its
/// group.
pub const CHECKPOINT_ITEM_BYTES_MAX: usize = 128 << 20;
/// Names of a checkpoint: its queues and their partitions, each of which has up to three trees, and sessions.
pub const CHECKPOINT_NAMES_MAX: usize = 1 << 24;
/// While a checkpoint goes to a follower, its leader keeps the entries behind it in memory as long as
/// they take no more than this, or no more than the checkpoint so far.
pub const CHECKPOINT_TAIL_BYTES_MAX: usize = 64 << 20;
/// No index is ever higher: a log would grow for millions of years to get there.
pub const INDEX_MAX: LogIndex = LogIndex(1 << 62);
/// A learner that lacks more entries than this cannot become a voter yet.
pub const CATCH_UP_ENTRIES_MAX: u64 = 1024;
/// No term is ever higher: elections would take millions of years to get there.
pub const TERM_MAX: Term = Term(1 << 62);
/// Requests and replies under way, a connection; reading stops beyond it.
pub const CONNECTION_BYTES_MAX: usize = 4 << 20;
/// What a connection may hold of these however much the others hold.
pub const CONNECTION_BYTES_ASSURED: usize = 16 << 10;
/// Frames half here, requests and replies under way, over all connections of a node, unless
/// configured otherwise; shards share it evenly.
pub const IN_FLIGHT_BYTES_DEFAULT_MAX: usize = 256 << 20;
/// A shard's share of that is at least so much.
pub const IN_FLIGHT_BYTES_SHARD_MIN: usize = 16 << 20;
/// A group's wall offset is corrected when it is off by more than this.
pub const WALL_DRIFT_MS_MAX: u64 = 100;
/// While something is due, a leader that wrote nothing for this long stamps the time.
pub const TIME_STAMP_MS: u64 = 5_000;

/// Groups of a new cluster, for each shard of its first node.
pub const GROUPS_PER_SHARD: usize = 8;
/// Groups of a new cluster, at the least.
pub const GROUPS_MIN: usize = 64;
/// Groups of a cluster, at the most: a job id holds 16 bits of it.
pub const GROUPS_MAX: usize = 1 << 16;
/// Bases of a group that are kept: the newest and the one before, should the newest be damaged.
pub const BASES_KEPT: usize = 2;

const _: () = assert!(SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(PAYLOAD_BYTES_DEFAULT_MAX <= PAYLOAD_BYTES_HARD_MAX);
const _: () = assert!(PAYLOAD_BYTES_HARD_MAX + HEADERS_BYTES_MAX + KEY_BYTES_MAX < FRAME_BYTES_MAX);
// Whatever a reply lists fits into a frame.
const _: () = assert!(REPLY_JOBS_BYTES_MAX + REPLY_JOB_BYTES < FRAME_BYTES_MAX);
const _: () = assert!(PAYLOAD_BYTES_HARD_MAX + REPLY_JOB_BYTES <= REPLY_JOBS_BYTES_MAX);
const _: () = assert!(HEADERS_BYTES_MAX + KEY_BYTES_MAX + REASON_BYTES_MAX < REPLY_JOB_BYTES);
const _: () = assert!(ATTACH_TOKENS_MAX * 40 < FRAME_BYTES_MAX);
const _: () = assert!(QUEUES_MAX * (QUEUE_NAME_BYTES_MAX + 256) < FRAME_BYTES_MAX);
// A segment holds its head, its footer and the largest batch.
const _: () = assert!(ENTRY_BYTES_MAX + BATCH_BYTES_MAX < SEGMENT_BYTES);
const _: () = assert!(BATCH_BYTES_GATHER <= BATCH_BYTES_MAX);
// A frame that is not full, and the largest message: one entry with its fields, or many.
const _: () =
    assert!(PEER_FRAME_BYTES_FULL + ENTRY_BYTES_MAX + APPEND_BYTES_MAX < PEER_FRAME_BYTES_MAX);
// The largest frame and the largest reply go through even the smallest shard.
const _: () = assert!(FRAME_BYTES_MAX + REPLY_JOBS_BYTES_MAX <= IN_FLIGHT_BYTES_SHARD_MIN);
const _: () = assert!(CONNECTION_BYTES_MAX < IN_FLIGHT_BYTES_SHARD_MIN);
// Whoever has not said hello yet is never held back.
const _: () = assert!(FRAME_BYTES_HELLO_MAX < CONNECTION_BYTES_ASSURED);
const _: () = assert!(SESSION_BYTES_MAX < CHECKPOINT_ITEM_BYTES_MAX);
const _: () = assert!(WORKER_CLOSED_MS <= WORKER_TIMEOUT_MS);
const _: () = assert!(WORKER_TIMEOUT_MS < SESSION_IDLE_MS);
