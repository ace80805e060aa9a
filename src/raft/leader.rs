//! What a leader does: it replicates, commits, hands over, lets read, and looks whether a majority is
//! still there.
//!
//! Nothing is sent when something happens, but when the engine takes what is due: all that was
//! proposed in a turn leaves in one append for each follower.

use crate::base::bugs::{self, Bug};
use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{LogIndex, NodeId};
use crate::base::limits::{APPEND_BYTES_MAX, CATCH_UP_ENTRIES_MAX};
use crate::raft::followers::Followers;
use crate::raft::membership::{Change, ChangeError, Step};
use crate::raft::message::{Body, Entries, Message, Position, Voter};
use crate::raft::node::{Proposal, ProposeError, RaftNode};
use crate::raft::progress::{Progress, Sending};
use crate::raft::quorum::{self, Tally};
use crate::raft::role::Role;
use std::collections::{BTreeSet, VecDeque};

/// What only a leader has; it goes with the role.
#[derive(Clone, Debug)]
pub(super) struct Leadership {
    followers: Followers,
    /// Something may have to be sent.
    due: bool,
    /// Ticks since the last heartbeat.
    since_beat: u32,
    /// Heartbeats are due now.
    beat_now: bool,
    /// Counts the rounds of heartbeats of this term.
    round: u64,
    /// Reads that wait for a round, in its order.
    reads: VecDeque<Read>,
    /// Who shall lead.
    successor: Option<Voter>,
    /// The last entry that may change the members and is perhaps not applied.
    change_at: LogIndex,
}

/// A read that waits until this member is proved to lead still.
#[derive(Clone, Copy, Debug)]
struct Read {
    /// Who asked; `None`: this member's engine.
    from: Option<Voter>,
    id: u64,
    /// What was committed when it was asked; `None`: it was not known yet.
    index: Option<LogIndex>,
    /// A majority that answers this round, or a later one, proves it.
    round: u64,
}

impl Leadership {
    pub(super) fn is_handing_over(&self) -> bool {
        self.successor.is_some()
    }

    pub(super) fn has_to_send(&self) -> bool {
        self.due || self.beat_now
    }
}

/// Why a change of the members was not proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeChangeError {
    /// As any proposal.
    #[error(transparent)]
    Refused(#[from] ProposeError),
    /// It does not fit the members.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A new voter must have the log first, as a learner: else its vote could be missing when it is
    /// needed (trap R25).
    #[error("node {} has not caught up: add it as a learner first and wait", .0.node)]
    NotCaughtUp(Voter),
}

/// Why the lead was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This member does not lead.
    #[error("this member does not lead the group")]
    NotLeader,
    /// Only a voter can lead.
    #[error("node {} is no voter of the group", .0.node)]
    NotAVoter(Voter),
}

impl RaftNode {
    /// What is known of the followers, for people and tests; nothing if this member does not lead.
    pub fn followers(&self) -> impl Iterator<Item = (Voter, &Progress)> {
        let lead = self.lead.iter();
        lead.flat_map(|lead| lead.followers.iter())
    }

    pub(super) fn take_the_lead(&mut self) {
        self.lead = Some(Box::new(Leadership {
            followers: Followers::default(),
            due: true,
            since_beat: 0,
            beat_now: false,
            round: 0,
            reads: VecDeque::new(),
            successor: None,
            // Whatever the log holds may be a change (trap R8).
            change_at: self.log.last_index(),
        }));
        self.lead_members();
    }

    /// The members are these now.
    pub(super) fn lead_members(&mut self) {
        let (me, last) = (self.config.me, self.log.last_index());
        let Some(lead) = &mut self.lead else { return };
        lead.followers.set(me, &self.members, &Progress::new(last));
        if lead
            .successor
            .is_some_and(|successor| !self.members.is_voter(successor))
        {
            lead.successor = None;
        }
        lead.due = true;
        if !self.members.is_voter(me) {
            return self.lead_no_more();
        }
        // Fewer voters may be enough now.
        self.advance_commit();
    }

    /// It has led its own removal to the end (thesis 4.2.2). The others learn of that, and one that has
    /// everything goes on at once.
    fn lead_no_more(&mut self) {
        self.send_what_is_due();
        let last = self.log.last_index();
        let has_all = |(voter, progress): &(Voter, &Progress)| {
            self.members.is_voter(*voter) && progress.counted() == last
        };
        let successor = self.followers().find(has_all).map(|(voter, _)| voter);
        if let Some(successor) = successor {
            self.send(successor, Body::TimeoutNow);
        }
        self.become_follower(self.term, None);
    }

    /// A joint configuration that is applied is left, by whoever leads then.
    pub(super) fn leave_joint(&mut self) {
        let is_due = self.members.is_joint()
            && self
                .lead
                .as_ref()
                .is_some_and(|lead| lead.change_at <= self.log.applied());
        if is_due {
            let time = self.last_time();
            let change_at = self.append(Proposal {
                kind: EntryKind::Conf,
                time,
                payload: Change::Leave.encode(),
            });
            self.lead.as_mut().expect("it leads").change_at = change_at;
        }
    }

    /// Proposes a change of the members; the leader only, one at a time. It acts when it is applied;
    /// if it touches voters, the joint configuration that follows is left without being asked.
    ///
    /// # Errors
    /// [`ProposeChangeError`]; nothing was appended.
    pub fn propose_change(&mut self, steps: Vec<Step>) -> Result<LogIndex, ProposeChangeError> {
        self.may_propose(0)?;
        let lead = self.lead.as_ref().expect("a proposal is taken by a leader");
        if lead.change_at > self.log.applied() {
            return Err(ChangeError::UnderWay.into());
        }
        let new = steps.iter().filter_map(|step| step.new_voter());
        let behind = new.filter(|new| !self.members.is_voter(*new)).find(|new| {
            let progress = lead.followers.get(*new);
            !progress.is_some_and(|progress| self.has_caught_up(progress))
        });
        let change = Change::Enter(steps);
        self.members.changed(&change)?;
        if let Some(behind) = behind {
            return Err(ProposeChangeError::NotCaughtUp(behind));
        }
        let time = self.last_time();
        let index = self.append(Proposal {
            kind: EntryKind::Conf,
            time,
            payload: change.encode(),
        });
        self.lead.as_mut().expect("it leads").change_at = index;
        Ok(index)
    }

    fn has_caught_up(&self, progress: &Progress) -> bool {
        let missing = self.log.last_index().0 - progress.counted().0;
        if bugs::on(Bug::VoterNotCaughtUp) {
            return true;
        }
        *progress.sending() == Sending::Replicate
            && !progress.is_lost()
            && missing <= CATCH_UP_ENTRIES_MAX
    }

    /// Whether a follower of this leader has so much of the log that it may vote.
    #[must_use]
    pub fn caught_up(&self, follower: Voter) -> bool {
        let mut followers = self.followers();
        followers.any(|(voter, progress)| voter == follower && self.has_caught_up(progress))
    }

    /// Whether most of these voters are there, this leader among them, also if this node is not: with others
    /// nothing would be committed any more, and the change that brought them could not be finished.
    #[must_use]
    pub fn can_reach(&self, voters: &BTreeSet<Voter>, without: Option<NodeId>) -> bool {
        let is_there = |voter: Voter| {
            if without == Some(voter.node) {
                return None;
            }
            let progress = self.lead.as_ref()?.followers.get(voter);
            let is_there = progress.is_some_and(Progress::is_there);
            (voter == self.config.me || is_there).then_some(true)
        };
        quorum::tally(voters, is_there) == Tally::Won
    }

    /// A node is there again. If it lacks something in a group that rests, the group does not rest before
    /// it has that: a member that does not vote would never ask for it.
    pub fn found_peer(&mut self, peer: Voter) {
        let last = self.log.last_index();
        let Some((progress, _)) = self.follower_mut(peer) else {
            return;
        };
        progress.found();
        if progress.counted() < last {
            self.quiet = false;
        }
    }

    /// Hands the lead over to a voter (thesis 3.10): it gets the rest of the log, then campaigns at
    /// once. Nothing is proposed meanwhile; after an election timeout it is given up.
    ///
    /// # Errors
    /// [`TransferError`].
    pub fn transfer_to(&mut self, successor: Voter) -> Result<(), TransferError> {
        if self.role != Role::Leader {
            return Err(TransferError::NotLeader);
        }
        if !self.members.is_voter(successor) {
            return Err(TransferError::NotAVoter(successor));
        }
        if successor == self.config.me {
            return Ok(());
        }
        self.elapsed = 0;
        self.quiet = false;
        let lead = self.lead.as_mut().expect("it leads");
        lead.successor = Some(successor);
        lead.due = true;
        if let Some(progress) = lead.followers.get_mut(successor) {
            progress.check();
        }
        self.hand_over_if_caught_up();
        Ok(())
    }

    /// Whether it hands the lead over, and takes no proposals.
    #[must_use]
    pub fn is_handing_over(&self) -> bool {
        self.lead
            .as_ref()
            .is_some_and(|lead| lead.is_handing_over())
    }

    /// Hands the lead over to the heir, before a node stops. Nothing happens where this member does not
    /// lead, or nobody else votes.
    pub fn hand_over(&mut self) {
        if let Some(heir) = self.heir() {
            let asked = self.transfer_to(heir);
            asked.expect("an heir is a voter, and only a leader has one");
        }
    }

    fn hand_over_if_caught_up(&mut self) {
        let Some(lead) = &self.lead else { return };
        let Some(successor) = lead.successor else {
            return;
        };
        let progress = lead.followers.get(successor);
        if progress.is_some_and(|progress| progress.counted() == self.log.last_index()) {
            self.send(successor, Body::TimeoutNow);
        }
    }

    /// Asks from which index on a read is the latest (thesis 6.4). The answer stands in
    /// [`Ready::reads`](crate::raft::ready::Ready::reads); if the lead is lost meanwhile there is none.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] if nobody is known to lead.
    pub fn read_index(&mut self, id: u64) -> Result<(), ProposeError> {
        if self.role == Role::Leader {
            self.start_read(None, id);
            return Ok(());
        }
        let leader = self.leader.ok_or(ProposeError::NotLeader)?;
        self.send(leader, Body::ReadIndex { id });
        Ok(())
    }

    pub(super) fn on_read_index(&mut self, from: Voter, id: u64) {
        if self.role == Role::Leader {
            self.start_read(Some(from), id);
        }
    }

    fn start_read(&mut self, from: Option<Voter>, id: u64) {
        self.quiet = false;
        // Before an entry of its own term is committed it does not know what is (trap R11).
        let index = self.leads_for_sure().then(|| self.log.committed());
        let lead = self.lead.as_mut().expect("only a leader is asked");
        lead.beat_now = true;
        // Only answers to a round that begins after this count: older ones prove an older past,
        // however late they arrive (trap R11).
        let round = lead.round + 1;
        lead.reads.push_back(Read {
            from,
            id,
            index,
            round,
        });
        self.finish_reads();
    }

    /// Answers the reads that are proved.
    fn finish_reads(&mut self) {
        if !self.leads_for_sure() {
            return;
        }
        let (me, committed) = (self.config.me, self.log.committed());
        let Some(lead) = &mut self.lead else { return };
        let mut done = Vec::new();
        while let Some(read) = lead.reads.front() {
            let answered = |voter: Voter| {
                let round = lead.followers.get(voter).map(Progress::round);
                (voter == me || round >= Some(read.round)).then_some(true)
            };
            let is_proved = self.members.tally(answered) == Tally::Won;
            if !is_proved && !bugs::on(Bug::ReadUnproved) {
                break;
            }
            done.extend(lead.reads.pop_front());
        }
        for Read {
            from, id, index, ..
        } in done
        {
            let index = index.unwrap_or(committed);
            match from {
                None => self.reads.push((id, index)),
                Some(from) => self.send(from, Body::ReadAt { id, index }),
            }
        }
    }

    /// One tick of a leader.
    pub(super) fn tick_leader(&mut self) {
        let lead = self.lead.as_mut().expect("it leads");
        lead.since_beat += 1;
        if lead.since_beat >= self.config.heartbeat_ticks {
            lead.beat_now = true;
        }
        if self.elapsed < self.config.election_ticks {
            return;
        }
        self.elapsed = 0;
        // CheckQuorum (thesis 6.2): without a majority it leads nobody, and who is still in touch with
        // it must not be kept from another (trap R3).
        let me = self.config.me;
        let followers = &lead.followers;
        let was_heard = |voter: Voter| followers.get(voter).is_some_and(Progress::was_heard);
        let is_there = |voter: Voter| (voter == me || was_heard(voter)).then_some(true);
        let is_majority = self.members.tally(is_there) == Tally::Won;
        let leads_a_majority = is_majority || bugs::on(Bug::QuorumUnchecked);
        for (_, progress) in lead.followers.iter_mut() {
            progress.looked();
            // An offer that nobody takes up is made again (trap R17).
            if !bugs::on(Bug::OfferNotRepeated) {
                progress.gave_up();
            }
        }
        if !bugs::on(Bug::TransferNeverEnds) {
            lead.successor = None;
        }
        lead.due = true;
        if !leads_a_majority {
            self.become_follower(self.term, None);
        }
    }

    /// Stops to count ticks if nothing is under way and every member that is there, a majority at least,
    /// has everything; its followers do the same when they hear of it. Whether it rests. The engine
    /// watches the nodes meanwhile, and
    /// tells of one that is lost ([`Self::lost_peer`]).
    pub fn rest(&mut self) -> bool {
        let (last, term) = self.log.last();
        let is_done = self.log.applied() == last && term == self.term && !self.members.is_joint();
        let Some(lead) = &mut self.lead else {
            return self.quiet;
        };
        let has_all = |progress: &Progress| {
            progress.counted() == last
                && *progress.sending() == Sending::Replicate
                && progress.knows_commit(last)
        };
        let me = self.config.me;
        let is_there = |voter: Voter| {
            let progress = lead.followers.get(voter);
            (voter == me || progress.is_some_and(|progress| !progress.is_lost())).then_some(true)
        };
        let rests = is_done
            && lead.successor.is_none()
            && lead.reads.is_empty()
            && !lead.has_to_send()
            && self.members.tally(is_there) == Tally::Won
            && lead
                .followers
                .iter()
                .all(|(_, progress)| progress.is_lost() || has_all(progress));
        if rests && !self.quiet {
            self.quiet = true;
            self.beat();
        }
        rests
    }

    /// Sends a heartbeat to every follower.
    fn beat(&mut self) {
        let (committed, heir) = (self.log.committed(), self.heir());
        let last = self.log.last_index();
        let mut lead = self.lead.take().expect("it leads");
        lead.beat_now = false;
        lead.since_beat = 0;
        lead.round += 1;
        for (to, progress) in lead.followers.iter_mut() {
            // What is not known to be in its log cannot be told to be committed (trap R13).
            let is_matched = !bugs::on(Bug::HeartbeatBeyondMatched);
            let commit = committed.min(if is_matched {
                progress.matched()
            } else {
                committed
            });
            progress.told(commit);
            // One that comes back while the group rests must ask for what it lacks.
            let quiet = self.quiet && progress.counted() == last;
            let heartbeat = Body::Heartbeat {
                commit,
                round: lead.round,
                quiet,
                heir: heir == Some(to),
            };
            self.send(to, heartbeat);
        }
        self.lead = Some(lead);
    }

    pub(super) fn send_what_is_due(&mut self) {
        // Taken out, so that what is sent can be put together beside it.
        let Some(mut lead) = self.lead.take() else {
            return;
        };
        if std::mem::take(&mut lead.due) {
            for (follower, progress) in lead.followers.iter_mut() {
                while let Some(body) = self.next_append(progress) {
                    self.send(follower, body);
                }
                if progress.wants_to_be_read_for() {
                    self.behind.push(follower);
                }
            }
        }
        let beats = lead.beat_now;
        self.lead = Some(lead);
        if beats {
            self.beat();
        }
    }

    /// The next append or offer to a follower; nothing if there is nothing to send, or no room.
    fn next_append(&self, progress: &mut Progress) -> Option<Body> {
        let (last, commit, base) = (self.log.last_index(), self.log.committed(), self.log.base());
        let is_new = progress.next() <= last || !progress.knows_commit(commit);
        if !progress.may_send() || !(is_new || progress.wants_one()) {
            return None;
        }
        let before = progress.next().prev();
        if progress.is_blank() {
            return self.offer_all(progress);
        }
        let Some(term) = self.log.term_at(before) else {
            if self.reads_log {
                progress.fell_behind();
                return None;
            }
            progress.offered(base.0);
            return Some(Body::Offer { base });
        };
        let entries = if progress.next() <= last && progress.has_room() {
            let room = progress.room().min(APPEND_BYTES_MAX);
            self.log.slice(progress.next(), room)
        } else {
            Entries::new()
        };
        let sent = entries.last().map_or(before, |entry| entry.index);
        let bytes = entries.iter().map(Entry::held_bytes).sum();
        progress.sent(sent, bytes, commit);
        let prev = (before, term);
        Some(Body::Append {
            prev,
            entries,
            commit,
        })
    }

    /// An offer to a member that has nothing: of what is applied here, once that is something.
    fn offer_all(&self, progress: &mut Progress) -> Option<Body> {
        let applied = self.log.applied();
        let term = self.log.term_at(applied)?;
        (applied > LogIndex(0)).then(|| {
            progress.offered(applied);
            let base = (applied, term);
            Body::Offer { base }
        })
    }

    /// The engine reads entries again that are not in memory any more, for members that are behind
    /// ([`Self::take_behind`]). Without this they are offered a checkpoint at once.
    pub fn read_log(&mut self) {
        self.reads_log = true;
    }

    /// Members that fell behind since the last call: each is to get [`Self::append_old`] or
    /// [`Self::offer`].
    pub fn take_behind(&mut self) -> Vec<Voter> {
        std::mem::take(&mut self.behind)
    }

    /// The first entry that a member lacks, if it is to be read for it.
    #[must_use]
    pub fn reads_for(&self, follower: Voter) -> Option<LogIndex> {
        let progress = self.lead.as_ref()?.followers.get(follower)?;
        progress.wants_to_be_read_for().then(|| progress.next())
    }

    /// Whether entries are read for a member, now or once it has answered to those that it got.
    #[must_use]
    pub fn is_behind(&self, follower: Voter) -> bool {
        let progress = self
            .lead
            .as_ref()
            .and_then(|lead| lead.followers.get(follower));
        progress.is_some_and(|progress| matches!(progress.sending(), Sending::Behind { .. }))
    }

    /// Entries behind `prev` were read for a member: all of them committed, and what its log has up to
    /// `prev` may be the leader's. False if that is not what it lacks.
    pub fn append_old(&mut self, follower: Voter, prev: Position, entries: Entries) -> bool {
        let is_wanted = self.reads_for(follower) == Some(prev.0.next());
        let Some(last) = entries.last().filter(|_| is_wanted) else {
            return false;
        };
        let (last, commit) = (last.index, self.log.committed());
        let (progress, _) = self.follower_mut(follower).expect("it is led");
        progress.sent(last, 0, last);
        let append = Body::Append {
            prev,
            entries,
            commit,
        };
        self.send(follower, append);
        true
    }

    /// What a member lacks cannot be read: it is offered a checkpoint.
    pub fn offer(&mut self, follower: Voter) {
        let base = self.log.base();
        if self.reads_for(follower).is_some() {
            let (progress, _) = self.follower_mut(follower).expect("it is led");
            progress.offered(base.0);
            self.send(follower, Body::Offer { base });
        }
    }

    pub(super) fn has_appended(&mut self) {
        self.quiet = false;
        if let Some(lead) = &mut self.lead {
            lead.due = !lead.followers.is_empty();
        }
    }

    fn follower_mut(&mut self, from: Voter) -> Option<(&mut Progress, &mut bool)> {
        let lead = self.lead.as_mut()?;
        let progress = lead.followers.get_mut(from)?;
        Some((progress, &mut lead.due))
    }

    /// Whatever a member says to its leader shows that it is there. False if it comes from an earlier
    /// life of that member.
    pub(super) fn hear_follower(&mut self, message: &Message) -> bool {
        let is_of_term = message.term == self.term;
        match self.follower_mut(message.from).filter(|_| is_of_term) {
            Some((progress, _)) => progress.heard(message.life, message.recovering),
            None => true,
        }
    }

    /// Whether this member leads that one.
    pub(super) fn leads(&self, member: Voter) -> bool {
        let lead = self.lead.as_ref();
        lead.is_some_and(|lead| lead.followers.get(member).is_some())
    }

    /// The anchor that a follower was given, if this member leads it.
    pub(super) fn anchor_of(&mut self, follower: Voter) -> Option<&mut Option<(u64, Position)>> {
        let (progress, _) = self.follower_mut(follower)?;
        Some(&mut progress.anchor)
    }

    /// Who shall go on if this member dies: of the voters that are not lost one that has most of the log.
    /// Groups choose differently among equals, so that one node does not get all that another had.
    fn heir(&self) -> Option<Voter> {
        let lead = self.lead.as_ref()?;
        let voters = || {
            let voters = lead.followers.voters();
            voters.filter(|(_, progress)| !progress.is_lost())
        };
        let most = voters().map(|(_, progress)| progress.counted()).max()?;
        let best = || voters().filter(|(_, progress)| progress.counted() == most);
        let nth = usize::from(self.config.group.0) % best().count();
        best().nth(nth).map(|(voter, _)| voter)
    }

    pub(super) fn on_appended(&mut self, from: Voter, matched: LogIndex) {
        let first = self.log.base().0.next();
        let Some((progress, due)) = self.follower_mut(from) else {
            return;
        };
        *due = true;
        if progress.accepted(matched, first) {
            self.advance_commit();
            self.hand_over_if_caught_up();
        }
    }

    pub(super) fn on_refused(&mut self, from: Voter, prev: LogIndex, hint: Position) {
        // What this log has of the hint's term, or below it, is the most that both can share.
        let shared = self.log.hint(hint.0.max(self.log.base().0), hint.1).0;
        let Some((progress, due)) = self.follower_mut(from) else {
            return;
        };
        *due |= progress.refused(prev, shared.min(hint.0));
    }

    /// Whether a round of heartbeats has begun.
    pub(super) fn has_begun(&self, round: u64) -> bool {
        self.lead.as_ref().is_some_and(|lead| round <= lead.round)
    }

    pub(super) fn on_beat(&mut self, from: Voter, round: u64) {
        let Some((progress, due)) = self.follower_mut(from) else {
            return;
        };
        progress.beat(round);
        *due |= progress.wants_one();
        self.finish_reads();
    }

    /// Messages to this member may have been lost: the engine's connection broke.
    pub(super) fn lose_follower(&mut self, peer: Voter) {
        if let Some(lead) = &mut self.lead
            && let Some(progress) = lead.followers.get_mut(peer)
        {
            progress.lost();
            lead.due = true;
        }
    }

    /// The checkpoint that was offered could not be brought there.
    pub fn install_failed(&mut self, follower: Voter) {
        // Nothing was heard of the follower by this.
        if let Some(lead) = &mut self.lead
            && let Some(progress) = lead.followers.get_mut(follower)
        {
            progress.gave_up();
            lead.due = true;
        }
    }

    /// Thesis 3.6.2: an entry is committed by counting replicas only if it is of the present term;
    /// those before it follow (trap R26). Its own disk counts as any other, once it is durable there
    /// (R14); a member that is no voter any more does not count itself (R9).
    pub(super) fn advance_commit(&mut self) {
        let Some(lead) = &mut self.lead else { return };
        let reached = lead.followers.reached(self.log.stable());
        let is_of_term = self.log.term_at(reached) == Some(self.term);
        if reached > self.log.committed() && (is_of_term || bugs::on(Bug::OldTermCommitted)) {
            self.log.commit_to(reached);
            lead.due = !lead.followers.is_empty();
            self.finish_reads();
        }
    }
}
