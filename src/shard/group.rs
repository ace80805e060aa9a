//! One group of a shard: its member of Raft, its job machine, and who waits for what.

use super::balance::Stay;
use super::changes::Changes;
use super::clock::GroupClock;
use super::following::Following;
use super::input::Origin;
use super::liveness::Liveness;
use super::loading::BaseFiles;
use super::mending::Mending;
use super::polls::{Place, Poll, Polls};
use super::reads::Reads;
use super::residence::Waiting;
use super::waits::Waits;
use crate::base::ids::{GroupId, Incarnation, LogIndex, Term, Voter};
use crate::base::units::Monotonic;
use crate::queue::JobQueue;
use crate::queue::command::Command;
use crate::raft::node::RaftNode;
use crate::snapshot::layout::GroupMeta;
use crate::wal::record::BaseRecord;
use crate::wal::writer::Ticket;
use std::collections::VecDeque;

/// Whether a group serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its hot state is being read; entries wait to be applied.
    Loading,
    /// It serves.
    Serving,
    /// Its state cannot be read: it comes from another member. The text says what is damaged.
    Lost(String),
    /// Its log or state is damaged: it stopped, alone. The text says what and names the way out.
    Halted(String),
}

/// Who waits for an entry to be applied.
#[derive(Debug)]
pub(super) enum Waiter {
    /// A client, for the outcome.
    Client {
        /// Who.
        to: Origin,
        /// Which request.
        request: u64,
    },
    /// A client, for the queue that the entry makes or changes.
    Queue {
        /// Who.
        to: Origin,
        /// Which request.
        request: u64,
    },
    /// A lease; if it wins nothing it goes on waiting until its deadline.
    Lease {
        /// The poll that it is; apart, since most waiters are clients.
        poll: Box<Poll>,
        /// Where it claimed jobs.
        place: Place,
    },
    /// The leader itself: due things are handled.
    Advance,
    /// The leader itself: the wall offset is set.
    WallOffset,
}

/// Commands proposed here that are not applied yet, by index and term, which name one entry: the
/// leader need not decode what it has just encoded.
#[derive(Default)]
pub(super) struct Proposed(VecDeque<(LogIndex, Term, Command)>);

impl Proposed {
    /// Keeps the command of the entry that was proposed last.
    pub(super) fn keep(&mut self, index: LogIndex, term: Term, command: Command) {
        self.0.push_back((index, term, command));
    }

    /// Keeps a command that was taken and cannot be applied yet.
    pub(super) fn put_back(&mut self, index: LogIndex, term: Term, command: Command) {
        self.0.push_front((index, term, command));
    }

    /// The command of the entry that is applied next, if it was proposed here and kept.
    pub(super) fn take(&mut self, index: LogIndex, term: Term) -> Option<Command> {
        while self.0.front().is_some_and(|(at, ..)| *at <= index) {
            let (at, of, command) = self.0.pop_front().expect("the front was just seen");
            if (at, of) == (index, term) {
                return Some(command);
            }
        }
        None
    }
}

/// A group.
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) incarnation: Incarnation,
    pub(super) raft: RaftNode,
    pub(super) queue: JobQueue,
    pub(super) clock: GroupClock,
    pub(super) phase: Phase,
    /// The bases in force, newest first; never empty.
    pub(super) bases: Vec<BaseRecord>,
    /// What each of them keeps on disk, as far as known.
    pub(super) base_files: Vec<BaseFiles>,
    /// The commit mark of the last hard state in the log.
    pub(super) commit_written: LogIndex,
    /// The batch that carries it.
    pub(super) hard_state_ticket: Option<Ticket>,
    pub(super) proposed: Proposed,
    /// Who waits, in the order of the log.
    pub(super) waiters: VecDeque<(LogIndex, Waiter)>,
    pub(super) polls: Polls,
    pub(super) reads: Reads,
    pub(super) pages: Waiting,
    /// Some of its state is damaged, and comes from another member: nothing is applied until then.
    pub(super) mending: Option<Mending>,
    pub(super) waits: Waits,
    pub(super) changes: Changes,
    /// Its members may be others than those of the cluster.
    pub(super) members_unsettled: bool,
    /// When they changed last, or this member began to lead them.
    pub(super) members_since: Monotonic,
    pub(super) following: Following,
    /// An entry that raises the version of the machine is on its way.
    pub(super) raising: bool,
    pub(super) liveness: Liveness,
    /// An entry that handles due things is on its way; or, after one that found nothing to do,
    /// the next is not proposed before this time.
    pub(super) advancing: bool,
    pub(super) advance_not_before: Monotonic,
    /// An entry that sets the wall offset is on its way.
    pub(super) setting_offset: bool,
    pub(super) last_proposed: Monotonic,
    /// Until when its lead stays here, once this node gave it away to make nodes level.
    pub(super) stay: Stay,
    /// When its wall time was last held against the clock of this machine.
    pub(super) wall_checked: Monotonic,
    /// The memory of its jobs, as far as the shard has counted it.
    pub(super) held_bytes: u64,
    /// The memory of its log entries, likewise.
    pub(super) entries_bytes: u64,
    /// Its place among the timers of the shard.
    pub(super) timer: Option<Monotonic>,
    /// It has work for the next drain.
    pub(super) dirty: bool,
    /// It counts among those that recover.
    pub(super) recovers: bool,
    /// It leads and serves, and its timeouts run.
    pub(super) leads: bool,
    /// Who leads it, as far as it was known at its last look.
    pub(super) led_by: Option<Voter>,
    /// The record of a base that was brought here is on its way to the disk: nothing is applied until
    /// it is in force.
    pub(super) installing: bool,
    /// The batch with the last of what its promises speak of.
    pub(super) promise_ticket: Ticket,
    /// The batch with the last term or vote that is not a mere commit mark.
    pub(super) vote_ticket: Ticket,
}

impl Group {
    /// The group as of what is applied.
    pub(super) fn meta(&self) -> GroupMeta {
        let index = self.raft.log().applied();
        GroupMeta {
            group: self.id,
            incarnation: self.incarnation,
            index,
            term: self
                .raft
                .log()
                .term_at(index)
                .expect("the applied entry is held until compacted"),
            time: self.queue.time(),
            machine_version: self.queue.version(),
            wall_offset_ms: self.queue.wall_offset_ms(),
            members: self.raft.members().to_list(),
        }
    }

    /// Whether this member leads, and what it applied is the latest.
    pub(super) fn serves(&self) -> bool {
        self.phase == Phase::Serving
            && self.raft.leads_for_sure()
            && !self.installing
            && self.mending.is_none()
    }

    /// Whether it stopped.
    pub(super) fn is_halted(&self) -> bool {
        matches!(self.phase, Phase::Halted(_))
    }

    /// Whether nothing is under way that would have to be waited for.
    pub(super) fn is_quiet(&self) -> bool {
        let follows = !self.raft.leads_alone() && !self.leads;
        self.is_halted()
            || self.mending.is_some()
            || follows
            || (self.waiters.is_empty()
                && !self.raft.is_handing_over()
                && self.raft.log().applied() == self.raft.log().last_index())
    }
}
