//! One member of one Raft group. Synchronous; owns no clock, socket or file.
//!
//! What comes in and what goes out is here. Elections are in `election.rs`, what a leader does in
//! `leader.rs`, what its followers do in `follower.rs`. Each handler ends in what must now hold.

use crate::base::bugs::{self, Bug};
use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{GroupId, Incarnation, LogIndex, Term};
use crate::base::limits::{ELECTION_TICKS, GROUP_UNCOMMITTED_BYTES_MAX, HEARTBEAT_TICKS};
use crate::base::prng::Prng;
use crate::base::units::GroupTime;
use crate::raft::leader::Leadership;
use crate::raft::log::RaftLog;
use crate::raft::membership::{Change, Membership};
use crate::raft::message::{
    Body, Checkpoint, Message, Position, QueueChange, StepError, Voter, Why,
};
use crate::raft::ready::{HardState, Ready};
use crate::raft::recovering::{Doubt, Recovery};
use crate::raft::role::Role;
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a member knows when it starts.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// The group.
    pub group: GroupId,
    /// The life of the group.
    pub incarnation: Incarnation,
    /// This member.
    pub me: Voter,
    /// The members as of the base of the log.
    pub members: Membership,
    /// The version of the job machine that the first entry after the log carries.
    pub machine_version: u16,
    /// Without a leader for so many ticks, and a random part of as many again, a voter campaigns.
    pub election_ticks: u32,
    /// A leader sends a heartbeat each so many ticks.
    pub heartbeat_ticks: u32,
    /// Seeds the random part.
    pub seed: u64,
    /// Counts the starts of this node.
    pub start: u32,
    /// What is in doubt, if the log may have lost what was promised.
    pub doubt: Option<Doubt>,
}

impl RaftConfig {
    /// Of a member whose log is whole, with the usual bounds in ticks.
    #[must_use]
    pub fn new(group: GroupId, incarnation: Incarnation, me: Voter, members: Membership) -> Self {
        Self {
            group,
            incarnation,
            me,
            members,
            machine_version: 1,
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: HEARTBEAT_TICKS,
            seed: 1,
            start: 1,
            doubt: None,
        }
    }
}

/// Why a proposal was refused. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member does not lead.
    #[error("this member does not lead the group")]
    NotLeader,
    /// It is about to hand over to another.
    #[error("the leader of the group is handing over")]
    HandingOver,
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
    pub(super) config: RaftConfig,
    pub(super) role: Role,
    /// The highest term seen; never falls.
    pub(super) term: Term,
    /// Whom this member voted for in `term`.
    pub(super) vote: Option<Voter>,
    /// Term or vote changed and were not handed out yet.
    pub(super) hard_state_dirty: bool,
    pub(super) log: RaftLog,
    /// The stamp of the last entry, or the base's; never falls.
    pub(super) last_time: GroupTime,
    /// The version of the job machine that the next entry carries.
    machine_version: u16,
    /// The members as of the applied entry.
    pub(super) members: Membership,
    /// Who leads this term, as far as known.
    pub(super) leader: Option<Voter>,
    /// Ticks since the leader was heard, since the campaign began, or since a leader last looked whether
    /// a majority is there.
    pub(super) elapsed: u32,
    /// Ticks after which it campaigns, drawn anew each time.
    pub(super) timeout: u32,
    pub(super) prng: Prng,
    /// The ballots of the campaign under way.
    pub(super) ballots: BTreeMap<Voter, bool>,
    /// What only a leader has.
    pub(super) lead: Option<Box<Leadership>>,
    /// Nothing is under way: ticks are not counted.
    pub(super) quiet: bool,
    /// A checkpoint that the leader offers, or a voter to one that recovers, for the engine.
    pub(super) offered: Option<(Voter, Position)>,
    /// What was said about checkpoints on their way, for the engine.
    checkpoints: Vec<(Voter, Checkpoint)>,
    /// The engine reads what is not in memory.
    pub(super) reads_log: bool,
    /// Members for which it shall.
    pub(super) behind: Vec<Voter>,
    /// What was said about partitions of queues, for the engine.
    queue_changes: Vec<(Voter, QueueChange)>,
    /// It goes on if the leader dies.
    pub(super) heir: bool,
    /// Its leader died, and it waits for the heir; not once it has voted for somebody, or said that it would.
    pub(super) waits_for_heir: bool,
    /// It asks whether it would be voted for because the leader is proved to be dead.
    pub(super) asks_on_proof: bool,
    /// A canvass that was not looked at since the leader was believed in.
    pub(super) put_off: Option<Message>,
    /// It would have campaigned, but for a change of the members that it has to apply first.
    pub(super) stands_after_change: Option<Why>,
    /// Ticks until the proof that a leader is dead may start another campaign.
    pub(super) proof_rest: u32,
    /// What it may have lost, until it has that back.
    pub(super) recovery: Option<Box<Recovery>>,
    /// See [`Message::life`].
    pub(super) life: u64,
    /// Whether it recovers changed and was not handed out yet.
    pub(super) standing_dirty: bool,
    pub(super) messages: Vec<Message>,
    pub(super) promises: Vec<Message>,
    pub(super) reads: Vec<(u64, LogIndex)>,
}

impl RaftNode {
    /// A member that starts with what its disk holds.
    ///
    /// With one voter, what is durable is committed: nobody else could have decided otherwise. That
    /// holds up to the first change of the members only, since behind it others may decide.
    ///
    /// # Panics
    /// If the bounds in ticks are 0.
    #[must_use]
    pub fn new(
        mut config: RaftConfig,
        hard: HardState,
        log: RaftLog,
        last_time: GroupTime,
    ) -> Self {
        assert!(
            config.election_ticks > config.heartbeat_ticks && config.heartbeat_ticks > 0,
            "an election timeout of {} ticks and heartbeats each {} make no sense",
            config.election_ticks,
            config.heartbeat_ticks
        );
        let doubt = config.doubt.take();
        let mut node = Self {
            machine_version: config.machine_version,
            role: Role::Follower,
            term: hard.term.max(log.last_term()),
            vote: hard.vote.filter(|_| hard.term >= log.last_term()),
            hard_state_dirty: false,
            log,
            last_time,
            members: config.members.clone(),
            leader: None,
            elapsed: 0,
            timeout: 0,
            prng: Prng::new(config.seed),
            ballots: BTreeMap::new(),
            lead: None,
            quiet: false,
            offered: None,
            checkpoints: Vec::new(),
            reads_log: false,
            behind: Vec::new(),
            queue_changes: Vec::new(),
            heir: false,
            waits_for_heir: false,
            asks_on_proof: false,
            put_off: None,
            stands_after_change: None,
            proof_rest: 0,
            recovery: None,
            life: u64::from(config.start) << 32,
            standing_dirty: false,
            messages: Vec::new(),
            promises: Vec::new(),
            reads: Vec::new(),
            config,
        };
        let last = node.log.last_index();
        let known = if node.members.is_only_voter(node.config.me) {
            let change = node.log.first_change();
            let change = change.filter(|_| !bugs::on(Bug::ReplayPastChange));
            change.map_or(last, LogIndex::prev)
        } else if bugs::on(Bug::ReplayPastCommit) {
            last
        } else {
            hard.commit
        };
        node.log.commit_to(known.max(hard.commit).min(last));
        node.draw_timeout();
        if let Some(doubt) = doubt
            && !bugs::on(Bug::RecoveringForgotten)
        {
            node.recover(doubt);
        }
        node
    }

    /// Takes a message of another member.
    ///
    /// # Errors
    /// [`StepError`] if it does not belong here or makes no sense; the state is untouched.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        self.check(&message)?;
        self.hear_stranger(message.from);
        // A change is committed in its home group and will be in this one, whatever either of them lives
        // through: a group at rest goes on resting.
        if let Body::QueueChange(change) = message.body {
            self.queue_changes.push((message.from, change));
            return Ok(());
        }
        // Whoever says more than that it is there has something under way (trap R22).
        self.quiet &= matches!(message.body, Body::Beat { .. });
        if !self.hear_follower(&message) {
            return Ok(());
        }
        // A checkpoint holds what is committed, whoever leads and in whatever term.
        if let Body::Checkpoint(checkpoint) = message.body {
            self.checkpoints.push((message.from, checkpoint));
            return Ok(());
        }
        // Who is asked for entries takes a new term by it, so that it is bound by none before.
        let asks_in_vain =
            matches!(message.body, Body::EntryGet { .. }) && message.term == self.term;
        if message.term < self.term || asks_in_vain {
            self.answer_the_past(&message);
            return Ok(());
        }
        if message.term > self.term && !self.follow_term(&message) {
            return Ok(());
        }
        let Message { from, term, .. } = message;
        match message.body {
            Body::Canvass {
                pre,
                last,
                commit,
                why: _,
            } => self.on_canvass(from, term, pre, last, commit),
            Body::Ballot {
                pre,
                granted,
                commit,
            } => self.on_ballot(from, term, pre, granted, commit),
            Body::Append { .. } | Body::Heartbeat { .. }
                if bugs::on(Bug::CampaignerDeaf) && self.role != Role::Follower => {}
            Body::Append {
                prev,
                entries,
                commit,
            } => {
                self.hear_leader(from);
                self.on_append(prev, entries, commit);
            }
            Body::Heartbeat {
                commit,
                round,
                quiet,
                heir,
            } => {
                self.hear_leader(from);
                self.heir = heir;
                self.on_heartbeat(commit, round, quiet);
            }
            Body::Offer { base } => {
                self.hear_leader(from);
                self.on_offer(base);
            }
            Body::Checkpoint(_) | Body::QueueChange(_) => {
                unreachable!("it was handed to the engine")
            }
            Body::TimeoutNow => self.campaign(Why::Transfer),
            Body::Appended { matched } => self.on_appended(from, matched),
            Body::Refused { prev, hint } => self.on_refused(from, prev, hint),
            Body::Beat { round } => self.on_beat(from, round),
            Body::ReadIndex { id } => self.on_read_index(from, id),
            Body::ReadAt { id, index } => self.reads.push((id, index)),
            Body::AnchorGet { id } => self.on_anchor_get(from, id),
            Body::Anchor { id, at } => self.on_anchor(id, at),
            Body::EntryGet { first } => self.on_entry_get(from, first),
            Body::EntryGot { answer, commit } => self.on_entry_got(from, term, answer, commit),
            Body::EntryBase { base } => self.on_entry_base(from, base),
        }
        Ok(())
    }

    /// Whoever sends as a leader of this term leads it.
    fn hear_leader(&mut self, from: Voter) {
        if self.role != Role::Follower {
            self.become_follower(self.term, Some(from));
        }
        self.leader = Some(from);
        self.stands_after_change = None;
        self.elapsed = 0;
        self.quiet = false;
    }

    /// Time went on by one tick. A single voter campaigns at once: there is nobody to wait for.
    pub fn tick(&mut self) {
        if self.quiet {
            return;
        }
        self.elapsed += 1;
        self.proof_rest = self.proof_rest.saturating_sub(1);
        if self.role == Role::Leader {
            self.tick_leader();
        } else if self.elapsed >= self.patience() || self.members.is_only_voter(self.config.me) {
            self.elapsed = 0;
            // Nor must who may not campaign keep others from it for a leader that is gone (trap R7).
            if !bugs::on(Bug::LeaderNotForgotten) {
                self.leader = None;
            }
            self.campaign(Why::Silence);
        }
    }

    /// Ticks until it campaigns. Who recovers asks in a new term as well, and lets the others elect a
    /// leader first, if they can.
    fn patience(&self) -> u32 {
        self.timeout * if self.recovery.is_some() { 2 } else { 1 }
    }

    /// The connection to a node broke: what rests because of it counts ticks again.
    pub fn lost_peer(&mut self, peer: Voter) {
        if self.leader == Some(peer) || self.role == Role::Leader {
            self.quiet &= bugs::on(Bug::RestNotWoken);
        }
        self.lose_follower(peer);
    }

    /// A node has not been heard for an election timeout, whatever the group: whom it leads campaigns
    /// soon, even if the group rests.
    pub fn fell_silent(&mut self, peer: Voter) {
        if self.leader == Some(peer) && self.quiet {
            self.elapsed = self.elapsed.max(self.config.election_ticks);
        }
        self.lost_peer(peer);
    }

    /// Appends an entry; the leader only. It is committed when it is durable on a majority.
    ///
    /// # Errors
    /// [`ProposeError`]; nothing was appended. An entry passes the bound on bytes if nothing else
    /// is under way, however large it is.
    pub fn propose(&mut self, proposal: Proposal) -> Result<LogIndex, ProposeError> {
        self.may_propose(proposal.payload.len())?;
        Ok(self.append(proposal))
    }

    pub(super) fn may_propose(&self, bytes: usize) -> Result<(), ProposeError> {
        let Some(lead) = &self.lead else {
            return Err(ProposeError::NotLeader);
        };
        if lead.is_handing_over() {
            return Err(ProposeError::HandingOver);
        }
        let under_way = self.log.unapplied_bytes();
        if under_way > 0 && under_way + bytes > GROUP_UNCOMMITTED_BYTES_MAX {
            return Err(ProposeError::Busy);
        }
        Ok(())
    }

    /// The entry of this index and term, and all before it, are on this member's disk.
    ///
    /// The pair matters, not the index: a completion for an entry that a later leader has replaced
    /// must not count for its replacement. Nor may one of an earlier life of the group (trap R21).
    pub fn synced(&mut self, life: Incarnation, index: LogIndex, term: Term) {
        if life == self.config.incarnation || bugs::on(Bug::EarlierLifeCounts) {
            self.log.synced(index, term);
            self.advance_commit();
            self.look_at_anchor();
        }
    }

    /// The next committed entry has been applied. A change of the members acts now, on this member as
    /// on every other (traps R8, R9).
    pub fn applied(&mut self) {
        let entry = self.log.next_committed();
        let entry = entry.expect("only a committed entry is applied");
        let change = (entry.kind == EntryKind::Conf).then(|| entry.payload.clone());
        self.log.applied_next();
        if let Some(payload) = change {
            self.change_members(&payload);
        }
        self.leave_joint();
        if !self.log.has_unapplied_change()
            && let Some(why) = self.stands_after_change.take()
        {
            self.campaign(why);
        }
    }

    fn change_members(&mut self, payload: &[u8]) {
        let change = Change::decode(payload);
        // What does not fit these members fits them nowhere: the entry changes nothing.
        let Ok(members) = change.and_then(|change| self.members.changed(&change)) else {
            return;
        };
        self.members = members;
        if self.role == Role::Leader {
            self.lead_members();
        }
    }

    /// What is to be done now, in place of what `ready` held.
    pub fn take_ready(&mut self, ready: &mut Ready) {
        self.send_what_is_due();
        // Whoever holds a change knows the one before it to be committed, and must not forget that: two
        // changes behind, its majority need not meet that of the present members (trap R29).
        self.hard_state_dirty |=
            self.log.has_unwritten_change() && !bugs::on(Bug::ChangeMarkForgotten);
        ready.hard_state = std::mem::take(&mut self.hard_state_dirty).then(|| self.hard_state());
        ready.entries.clear();
        self.log.take_unwritten(&mut ready.entries);
        ready.standing = std::mem::take(&mut self.standing_dirty).then(|| self.standing());
        ready.messages.clear();
        ready.messages.append(&mut self.messages);
        ready.promises.clear();
        ready.promises.append(&mut self.promises);
        ready.reads.clear();
        ready.reads.append(&mut self.reads);
        if bugs::on(Bug::AckBeforeSync)
            && let Some(entry) = ready.entries.last()
        {
            self.synced(self.config.incarnation, entry.index, entry.term);
        }
    }

    /// Whether it rests: ticks are not counted, and need not be told.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether [`Self::take_ready`] would yield something.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.hard_state_dirty
            || self.log.has_unwritten()
            || self.standing_dirty
            || !self.messages.is_empty()
            || !self.promises.is_empty()
            || !self.reads.is_empty()
            || self.lead.as_ref().is_some_and(|lead| lead.has_to_send())
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

    /// The members as of the applied entry.
    #[must_use]
    pub fn members(&self) -> &Membership {
        &self.members
    }

    /// Whether this member is the only voter, so that it needs nobody else to lead.
    #[must_use]
    pub fn leads_alone(&self) -> bool {
        self.members.is_only_voter(self.config.me)
    }

    /// Whether there is nobody else, so that there is nobody to tell anything.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.leads_alone() && self.members.learners().is_empty()
    }

    /// Whether this member has no state yet: it does not know who belongs to the group, votes for nobody
    /// and waits for a checkpoint.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.members.is_empty()
    }

    /// An older base than the newest is the one to begin with.
    pub fn start_from(&mut self, base: LogIndex, members: Membership) {
        self.log.start_at(base);
        self.members = members;
        if self.role == Role::Leader {
            self.lead_members();
        }
    }

    /// Who leads this term, as far as known.
    #[must_use]
    pub fn leader(&self) -> Option<Voter> {
        self.leader
    }

    pub(super) fn append(&mut self, proposal: Proposal) -> LogIndex {
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
        self.machine_version = entry.version_after();
        self.log
            .append(entry.sealed(self.config.group, self.config.incarnation));
        self.has_appended();
        index
    }

    /// The next entry goes on from the log as it is now: it is a leader's, or replaced.
    pub(super) fn go_on_from_log(&mut self) {
        if let Some(last) = self.log.last_entry() {
            if !bugs::on(Bug::TimeOfEntriesForgotten) {
                self.last_time = self.last_time.max(last.time);
            }
            self.machine_version = last.version_after();
        }
    }

    /// The next entry goes on from a checkpoint.
    pub(super) fn go_on_from_base(&mut self, time: GroupTime, machine_version: u16) {
        self.last_time = self.last_time.max(time);
        self.machine_version = machine_version;
    }

    /// What was said about checkpoints on their way since the last call.
    pub fn take_checkpoints(&mut self) -> Vec<(Voter, Checkpoint)> {
        std::mem::take(&mut self.checkpoints)
    }

    /// What this member says about a checkpoint on its way.
    #[must_use]
    pub fn carry(&self, to: Voter, what: Checkpoint) -> Message {
        self.message(to, self.term, Body::Checkpoint(what))
    }

    /// What was said about partitions of queues since the last call.
    pub fn take_queue_changes(&mut self) -> Vec<(Voter, QueueChange)> {
        std::mem::take(&mut self.queue_changes)
    }

    /// What this member says about partitions of a queue.
    #[must_use]
    pub fn tell_of(&self, to: Voter, what: QueueChange) -> Message {
        self.message(to, self.term, Body::QueueChange(what))
    }

    pub(super) fn message(&self, to: Voter, term: Term, body: Body) -> Message {
        Message {
            from: self.config.me,
            to,
            group: self.config.group,
            incarnation: self.config.incarnation,
            term,
            life: self.life,
            recovering: self.recovery.is_some(),
            body,
        }
    }

    /// The voters but this member.
    pub(super) fn other_voters(&self) -> impl Iterator<Item = Voter> {
        let me = self.config.me;
        let is_other = move |member: &Voter| *member != me && self.members.is_voter(*member);
        self.members.members().filter(is_other)
    }

    /// Sends what promises nothing.
    pub(super) fn send(&mut self, to: Voter, body: Body) {
        let message = self.message(to, self.term, body);
        self.messages.push(message);
    }

    /// Sends when all that was handed out is durable.
    pub(super) fn promise(&mut self, to: Voter, body: Body) {
        let message = self.message(to, self.term, body);
        self.promises.push(message);
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
        let members = Membership::of_voters([ME]);
        RaftConfig::new(GroupId(3), Incarnation(1), ME, members)
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
        node.synced(Incarnation(1), LogIndex(1), Term(1));
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
        node.synced(Incarnation(1), LogIndex(1), Term(1));
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
        node.synced(Incarnation(1), LogIndex(2), Term(1));
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
        node.synced(Incarnation(1), LogIndex(2), Term(9));
        assert!(node.next_committed().is_none());
        node.synced(Incarnation(1), LogIndex(7), Term(1));
        assert!(node.next_committed().is_none());
    }

    #[test]
    fn a_completion_of_another_life_counts_for_nothing() {
        let mut node = leader();
        node.propose(data(5)).expect("leads");
        taken(&mut node);
        for life in [0, 2] {
            node.synced(Incarnation(life), LogIndex(2), Term(1));
            assert_eq!(node.log().stable(), LogIndex(1));
            assert!(node.next_committed().is_none());
        }
        node.synced(Incarnation(1), LogIndex(2), Term(1));
        assert!(node.next_committed().is_some());
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
        node.synced(Incarnation(1), LogIndex(2), Term(1));
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
            to: ME,
            group: GroupId(group),
            incarnation: Incarnation(incarnation),
            term: Term(99),
            life: 1,
            recovering: false,
            body: Body::Beat { round: 1 },
        };
        assert_eq!(
            node.step(message(4, 1, stranger)),
            Err(StepError::WrongGroup(GroupId(4)))
        );
        let wrong = StepError::WrongIncarnation(Incarnation(2));
        assert_eq!(node.step(message(3, 2, stranger)), Err(wrong));
        assert_eq!(node.step(message(3, 1, ME)), Err(StepError::FromSelf));
        assert_eq!(
            node.step(message(3, 1, stranger)),
            Err(StepError::NotAMember(NodeId(9)))
        );
        assert_eq!(node.term(), Term(1), "a refused message changes nothing");
    }

    #[test]
    fn compaction_keeps_what_is_not_applied() {
        let mut node = leader();
        node.propose(data(1)).expect("leads");
        taken(&mut node);
        node.log_mut().compact(LogIndex(9));
        node.synced(Incarnation(1), LogIndex(2), Term(1));
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
