//! One member of one Raft group. Synchronous; owns no clock, socket or file.
//!
//! Every transition is here. Handlers sit together by role; each ends in what must now hold.

use crate::base::bugs::{self, Bug};
use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{GroupId, Incarnation, LogIndex, Term};
use crate::base::limits::GROUP_UNCOMMITTED_BYTES_MAX;
use crate::base::units::GroupTime;
use crate::raft::log::RaftLog;
use crate::raft::message::{Message, StepError, Voter};
use crate::raft::ready::{HardState, Ready};
use crate::raft::role::Role;
use bytes::Bytes;

/// What a member knows when it starts.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// The group.
    pub group: GroupId,
    /// The life of the group.
    pub incarnation: Incarnation,
    /// This member.
    pub me: Voter,
    /// The voters as of the base.
    pub voters: Vec<Voter>,
    /// The version of the job machine that the first entry after the log carries.
    pub machine_version: u16,
}

/// Why a proposal was refused. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member does not lead.
    #[error("this member does not lead the group")]
    NotLeader,
    /// Too much is proposed and not applied (bytes).
    #[error("too much is under way in the group")]
    Busy,
}

/// What a leader proposes.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// What the entry is for.
    pub kind: EntryKind,
    /// The group's time; raised to that of the last entry if it is lower.
    pub time: GroupTime,
    /// The encoded command.
    pub payload: Bytes,
}

/// A member of a group.
#[derive(Clone, Debug)]
pub struct RaftNode {
    config: RaftConfig,
    role: Role,
    /// The highest term seen; never falls.
    term: Term,
    /// Whom this member voted for in `term`.
    vote: Option<Voter>,
    /// Term or vote changed and were not handed out yet.
    hard_state_dirty: bool,
    log: RaftLog,
    /// The stamp of the last entry, or the base's; never falls.
    last_time: GroupTime,
    /// The version of the job machine that the next entry carries; only rises.
    machine_version: u16,
}

impl RaftNode {
    /// A member that starts with what its disk holds.
    ///
    /// With one voter, what is durable is committed: nobody else could have decided otherwise.
    ///
    /// # Panics
    /// If the voters are not just this member: groups of several are not built yet.
    #[must_use]
    pub fn new(config: RaftConfig, hard: HardState, log: RaftLog, last_time: GroupTime) -> Self {
        assert!(
            config.voters == [config.me],
            "group {} has {} voters; this version serves groups whose only voter it is",
            config.group,
            config.voters.len()
        );
        let mut node = Self {
            machine_version: config.machine_version,
            config,
            role: Role::Follower,
            term: hard.term.max(log.last_term()),
            vote: hard.vote.filter(|_| hard.term >= log.last_term()),
            hard_state_dirty: false,
            log,
            last_time,
        };
        let durable = node.log.last_index();
        node.log.commit_to(durable);
        node
    }

    /// Takes a message of another member.
    ///
    /// # Errors
    /// [`StepError`] if it does not belong here; the state is untouched.
    pub fn step(&mut self, message: &Message) -> Result<(), StepError> {
        if message.group != self.config.group {
            return Err(StepError::WrongGroup(message.group));
        }
        if message.incarnation != self.config.incarnation {
            return Err(StepError::WrongIncarnation(message.incarnation));
        }
        if message.from == self.config.me {
            return Err(StepError::FromSelf);
        }
        Err(StepError::NotAVoter(message.from.node))
    }

    /// Time went on by one tick. A single voter campaigns at once: there is nobody to wait for.
    pub fn tick(&mut self) {
        if self.role == Role::Follower {
            self.campaign();
        }
    }

    /// Appends an entry; the leader only. It is committed when it is durable on a majority.
    ///
    /// # Errors
    /// [`ProposeError`]; nothing was appended. An entry passes the bound on bytes if nothing else
    /// is under way, however large it is.
    pub fn propose(&mut self, proposal: Proposal) -> Result<LogIndex, ProposeError> {
        if self.role != Role::Leader {
            return Err(ProposeError::NotLeader);
        }
        let under_way = self.log.unapplied_bytes();
        if under_way > 0 && under_way + proposal.payload.len() > GROUP_UNCOMMITTED_BYTES_MAX {
            return Err(ProposeError::Busy);
        }
        Ok(self.append(proposal))
    }

    /// The entry of this index and term, and all before it, are on this member's disk.
    ///
    /// The pair matters, not the index: a completion for an entry that a later leader has replaced
    /// must not count for its replacement.
    pub fn synced(&mut self, index: LogIndex, term: Term) {
        self.log.synced(index, term);
        self.advance_commit();
    }

    /// The next committed entry has been applied.
    pub fn applied(&mut self) {
        self.log.applied_next();
    }

    /// What must be written now, in place of what `ready` held. Hard state and entries belong
    /// together, in this order.
    pub fn take_ready(&mut self, ready: &mut Ready) {
        ready.hard_state = std::mem::take(&mut self.hard_state_dirty).then(|| self.hard_state());
        ready.entries.clear();
        self.log.take_unwritten(&mut ready.entries);
        if bugs::on(Bug::AckBeforeSync)
            && let Some(entry) = ready.entries.last()
        {
            self.synced(entry.index, entry.term);
        }
    }

    /// Whether [`Self::take_ready`] would yield something.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.hard_state_dirty || self.log.has_unwritten()
    }

    /// The next entry to apply.
    #[must_use]
    pub fn next_committed(&self) -> Option<&Entry> {
        self.log.next_committed()
    }

    /// Term, vote and commit as they are now.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        HardState {
            term: self.term,
            vote: self.vote,
            commit: self.log.committed(),
        }
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &RaftLog {
        &self.log
    }

    /// The log, to compact it.
    pub fn log_mut(&mut self) -> &mut RaftLog {
        &mut self.log
    }

    /// The present role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The present term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The stamp of the last entry.
    #[must_use]
    pub fn last_time(&self) -> GroupTime {
        self.last_time
    }

    /// Whether this member leads and has committed an entry of its own term, so that what it
    /// applied is the latest (thesis 6.4).
    #[must_use]
    pub fn leads_for_sure(&self) -> bool {
        self.role == Role::Leader && self.log.term_at(self.log.committed()) == Some(self.term)
    }

    fn campaign(&mut self) {
        self.term = self.term.next();
        self.vote = Some(self.config.me);
        self.hard_state_dirty = true;
        self.role = Role::Candidate;
        // With one voter its own vote is the majority. The no-op lies behind the vote in the log, so
        // that nothing of this term can be durable before the vote is.
        self.become_leader();
    }

    fn become_leader(&mut self) {
        assert!(
            self.role == Role::Candidate && self.vote == Some(self.config.me),
            "only a candidate that voted for itself leads, not a {}",
            self.role.name()
        );
        self.role = Role::Leader;
        let time = self.last_time;
        self.append(Proposal {
            kind: EntryKind::Noop,
            time,
            payload: Bytes::new(),
        });
    }

    fn append(&mut self, proposal: Proposal) -> LogIndex {
        self.last_time = self.last_time.max(proposal.time);
        let index = self.log.last_index().next();
        let entry = Entry {
            term: self.term,
            index,
            time: self.last_time,
            kind: proposal.kind,
            machine_version: self.machine_version,
            flags: 0,
            crc: 0,
            payload: proposal.payload,
        };
        self.machine_version = entry.version_after().max(self.machine_version);
        self.log
            .append(entry.sealed(self.config.group, self.config.incarnation));
        index
    }

    /// Thesis 3.6.2: an entry is committed by counting replicas only if it is of the present term;
    /// those before it follow. With one voter, its own disk is the majority.
    fn advance_commit(&mut self) {
        let stable = self.log.stable();
        if self.role == Role::Leader && self.log.term_at(stable) == Some(self.term) {
            self.log.commit_to(stable);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{DiskId, NodeId};

    const ME: Voter = Voter {
        node: NodeId(1),
        disk: DiskId([7; 16]),
    };

    fn config() -> RaftConfig {
        RaftConfig {
            group: GroupId(3),
            incarnation: Incarnation(1),
            me: ME,
            voters: vec![ME],
            machine_version: 1,
        }
    }

    fn fresh() -> RaftNode {
        let log = RaftLog::new((LogIndex(0), Term(0)), Vec::new());
        RaftNode::new(config(), HardState::default(), log, GroupTime(0))
    }

    fn taken(node: &mut RaftNode) -> Ready {
        let mut ready = Ready::default();
        node.take_ready(&mut ready);
        ready
    }

    fn data(time: u64) -> Proposal {
        Proposal {
            kind: EntryKind::Data,
            time: GroupTime(time),
            payload: Bytes::from_static(b"job"),
        }
    }

    fn leader() -> RaftNode {
        let mut node = fresh();
        node.tick();
        taken(&mut node);
        node.synced(LogIndex(1), Term(1));
        node.applied();
        node
    }

    #[test]
    fn a_single_voter_leads_after_one_tick_with_vote_and_noop_in_one_ready() {
        let mut node = fresh();
        assert_eq!(node.propose(data(1)), Err(ProposeError::NotLeader));
        node.tick();
        let ready = taken(&mut node);
        let hard = ready.hard_state.expect("the vote must be written");
        assert_eq!((hard.term, hard.vote), (Term(1), Some(ME)));
        assert_eq!(ready.entries.len(), 1);
        assert_eq!(ready.entries[0].kind, EntryKind::Noop);
        assert!(!node.leads_for_sure(), "the no-op is not durable yet");
        assert!(node.next_committed().is_none());
        node.synced(LogIndex(1), Term(1));
        assert!(node.leads_for_sure());
        assert!(taken(&mut node).is_empty());
    }

    #[test]
    fn nothing_commits_before_it_is_durable() {
        let mut node = leader();
        assert_eq!(node.propose(data(5)), Ok(LogIndex(2)));
        assert_eq!(node.propose(data(6)), Ok(LogIndex(3)));
        assert_eq!(taken(&mut node).entries.len(), 2);
        assert!(node.next_committed().is_none());
        node.synced(LogIndex(2), Term(1));
        assert_eq!(
            node.next_committed().map(|entry| entry.index),
            Some(LogIndex(2))
        );
        node.applied();
        assert!(node.next_committed().is_none());
    }

    #[test]
    fn a_completion_of_another_term_counts_for_nothing() {
        let mut node = leader();
        node.propose(data(5)).expect("leads");
        taken(&mut node);
        node.synced(LogIndex(2), Term(9));
        assert!(node.next_committed().is_none());
        node.synced(LogIndex(7), Term(1));
        assert!(node.next_committed().is_none());
    }

    #[test]
    fn restart_commits_what_is_durable_and_takes_a_higher_term() {
        let mut old = leader();
        old.propose(data(5)).expect("leads");
        let entries = vec![
            Entry {
                term: Term(1),
                index: LogIndex(1),
                time: GroupTime(0),
                kind: EntryKind::Noop,
                machine_version: 0,
                flags: 0,
                crc: 0,
                payload: Bytes::new(),
            },
            taken(&mut old).entries.remove(0),
        ];
        let log = RaftLog::new((LogIndex(0), Term(0)), entries);
        let mut node = RaftNode::new(config(), HardState::default(), log, GroupTime(5));
        assert_eq!(node.log().committed(), LogIndex(2));
        node.tick();
        assert_eq!(node.term(), Term(2));
        assert_eq!(
            taken(&mut node).entries[0].time,
            GroupTime(5),
            "time goes on from its last stamp"
        );
    }

    #[test]
    fn time_never_falls_along_the_log() {
        let mut node = leader();
        node.propose(data(50)).expect("leads");
        node.propose(data(40)).expect("leads");
        let times: Vec<_> = taken(&mut node)
            .entries
            .iter()
            .map(|entry| entry.time.0)
            .collect();
        assert_eq!(times, [50, 50]);
    }

    #[test]
    fn too_much_under_way_is_refused_but_one_large_entry_passes() {
        let mut node = leader();
        let huge = Proposal {
            payload: vec![0; GROUP_UNCOMMITTED_BYTES_MAX + 1].into(),
            ..data(1)
        };
        assert_eq!(node.propose(huge), Ok(LogIndex(2)));
        assert_eq!(node.propose(data(1)), Err(ProposeError::Busy));
        taken(&mut node);
        node.synced(LogIndex(2), Term(1));
        node.applied();
        assert_eq!(
            node.propose(data(1)),
            Ok(LogIndex(3)),
            "the count falls with apply"
        );
    }

    #[test]
    fn messages_of_strangers_are_refused_by_name() {
        let mut node = leader();
        let stranger = Voter {
            node: NodeId(9),
            disk: DiskId([1; 16]),
        };
        let message = |group, incarnation, from| Message {
            from,
            group: GroupId(group),
            incarnation: Incarnation(incarnation),
            term: Term(99),
        };
        assert_eq!(
            node.step(&message(4, 1, stranger)),
            Err(StepError::WrongGroup(GroupId(4)))
        );
        let wrong = StepError::WrongIncarnation(Incarnation(2));
        assert_eq!(node.step(&message(3, 2, stranger)), Err(wrong));
        assert_eq!(node.step(&message(3, 1, ME)), Err(StepError::FromSelf));
        assert_eq!(
            node.step(&message(3, 1, stranger)),
            Err(StepError::NotAVoter(NodeId(9)))
        );
        assert_eq!(node.term(), Term(1), "a refused message changes nothing");
    }

    #[test]
    fn compaction_keeps_what_is_not_applied() {
        let mut node = leader();
        node.propose(data(1)).expect("leads");
        taken(&mut node);
        node.log_mut().compact(LogIndex(9));
        node.synced(LogIndex(2), Term(1));
        assert_eq!(
            node.next_committed().map(|entry| entry.index),
            Some(LogIndex(2))
        );
        assert_eq!(
            node.log().term_at(LogIndex(1)),
            Some(Term(1)),
            "the base keeps its term"
        );
    }
}
