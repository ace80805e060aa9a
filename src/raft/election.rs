//! Elections: who asks, who votes, and what a later or an earlier term means (thesis 3.4, 4.2.3, 9.6).
//!
//! ```text
//!   Follower ──(timeout)──> PreCandidate ──(a majority would)──> Candidate ──(a majority does)──> Leader
//!      ^                         │                                  │
//!      └── a leader is heard, a majority would not, a later term ───┘
//! ```
//!
//! PreVote and CheckQuorum are always on. A term is used up only by who would win; who has heard its
//! leader lately votes for nobody, unless that leader itself asks, or has named the candidate.

use crate::base::bugs::{self, Bug};
use crate::base::entry::EntryKind;
use crate::base::ids::Term;
use crate::raft::message::{Body, Message, Position, Voter, Why};
use crate::raft::node::{Proposal, RaftNode};
use crate::raft::quorum::Tally;
use crate::raft::role::Role;
use bytes::Bytes;

impl RaftNode {
    /// A message of an earlier term is not heeded, but its sender learns of the present one: else a
    /// leader that was cut off, or a candidate with the longer log, would go on for ever (trap R2).
    pub(super) fn answer_the_past(&mut self, message: &Message) {
        if bugs::on(Bug::PastUnanswered) {
            return;
        }
        match message.body {
            // To who asked for entries a ballot tells the term as well as anything.
            Body::Canvass { .. } | Body::EntryGet { .. } => {
                let ballot = Body::Ballot {
                    pre: matches!(message.body, Body::Canvass { pre: true, .. }),
                    granted: false,
                    commit: self.log.last_committed(),
                };
                self.send(message.from, ballot);
            }
            Body::Append { .. } | Body::Heartbeat { .. } | Body::Offer { .. } => {
                self.send(message.from, Body::Beat { round: 0 });
            }
            _ => {}
        }
    }

    /// A message of a later term: whether it is to be looked at. The term is taken over, unless it is
    /// one that only might be.
    pub(super) fn follow_term(&mut self, message: &Message) -> bool {
        match message.body {
            Body::Canvass { why, pre, .. } => {
                if why == Why::Silence && self.believes_in_another_than(message.from) {
                    // It may be right, and this member learn of it a moment later.
                    self.put_off = Some(message.clone());
                    return false;
                }
                if !pre {
                    self.become_follower(message.term, None);
                }
            }
            Body::EntryGet { .. } => {
                if self.believes_in_another_than(message.from) {
                    return false;
                }
                if !bugs::on(Bug::AbsenceWithoutPromise) {
                    self.become_follower(message.term, None);
                }
            }
            // Of the term that was asked for, which the asker has not taken.
            Body::EntryGot { .. } | Body::EntryBase { .. } => {}
            Body::Ballot {
                pre: true,
                granted: true,
                ..
            } => {}
            Body::Append { .. } | Body::Heartbeat { .. } | Body::Offer { .. } => {
                self.become_follower(message.term, Some(message.from));
            }
            _ => self.become_follower(message.term, None),
        }
        true
    }

    /// Whether it has a leader that it heard lately, so that nobody needs another (thesis 4.2.3). Not
    /// if the candidate is that very leader: it must know (trap R4).
    fn believes_in_another_than(&self, candidate: Voter) -> bool {
        let is_another = |leader| leader != candidate || bugs::on(Bug::LeaderItselfRefused);
        let believes = self.leader.is_some_and(is_another);
        believes && self.elapsed < self.config.election_ticks
    }

    /// Asks for votes, or first whether there would be any. While a change of the members is committed and
    /// not applied, it would count the wrong voters: it does so right behind that (trap R8).
    pub fn campaign(&mut self, why: Why) {
        if self.role == Role::Leader || !self.members.is_voter(self.config.me) {
            return;
        }
        if self.recovery.is_some() {
            if why == Why::Silence {
                self.start_repair();
            }
            return;
        }
        if self.log.has_unapplied_change() && !bugs::on(Bug::CampaignOverChange) {
            self.stands_after_change = Some(why);
            return;
        }
        // With one voter, and if the leader wants it so, nobody needs to be asked first.
        if why == Why::Silence && !self.members.is_only_voter(self.config.me) {
            self.start_campaign(Role::PreCandidate);
            self.canvass(true, why);
        } else {
            self.stand(why);
        }
    }

    /// Takes the next term and its own vote.
    fn stand(&mut self, why: Why) {
        self.term = self.term.next();
        self.vote = Some(self.config.me);
        self.hard_state_dirty = true;
        self.start_campaign(Role::Candidate);
        match self.count() {
            // The only voter. The no-op lies behind the vote in the log, so that nothing of this term
            // can be durable before the vote is.
            Tally::Won => self.become_leader(),
            _ => self.canvass(false, why),
        }
    }

    /// A campaign begins without a leader and with one ballot (trap R1).
    fn start_campaign(&mut self, role: Role) {
        self.role = role;
        if !bugs::on(Bug::LeaderNotForgotten) {
            self.leader = None;
        }
        self.heir = false;
        self.waits_for_heir = false;
        self.asks_on_proof = false;
        self.stands_after_change = None;
        self.quiet = false;
        self.elapsed = 0;
        self.draw_timeout();
        self.ballots.clear();
        self.ballots.insert(self.config.me, true);
    }

    /// A question may go at once. A request for votes is a promise: whoever sends it has voted for
    /// itself, and would stand twice in one term if it forgot that.
    fn canvass(&mut self, pre: bool, why: Why) {
        let body = Body::Canvass {
            pre,
            last: self.log.last(),
            commit: self.log.last_committed(),
            why,
        };
        let term = if pre { self.term.next() } else { self.term };
        let others: Vec<Voter> = self.other_voters().collect();
        for to in others {
            let message = self.message(to, term, body.clone());
            let list = if pre {
                &mut self.messages
            } else {
                &mut self.promises
            };
            list.push(message);
        }
    }

    /// The process of a member is proved to be dead: its port refuses, or it has started again. If it
    /// led, nobody has to wait any more: this member votes for another at once, and stands if the
    /// leader named it its heir. Whether it is to stand a moment later ([`Self::stand_in`]), if
    /// nobody else has by then.
    pub fn died(&mut self, peer: Voter) -> bool {
        if self.leader != Some(peer) {
            return false;
        }
        let is_heir = self.heir;
        self.leader = None;
        self.quiet = false;
        if is_heir {
            self.campaign_on_proof();
        }
        match self.put_off.take() {
            // It asks in a term that may have passed; it was looked at before.
            Some(canvass) => {
                let _ = self.step(canvass);
                false
            }
            None => {
                self.waits_for_heir = !is_heir && self.members.is_voter(self.config.me);
                self.waits_for_heir
            }
        }
    }

    /// The heir of a leader that died has not been heard of.
    pub fn stand_in(&mut self) {
        if self.waits_for_heir && self.leader.is_none() {
            self.campaign_on_proof();
        }
    }

    /// At most one an election timeout: a process that dies again and again must not keep the group
    /// busy with elections.
    fn campaign_on_proof(&mut self) {
        if self.proof_rest == 0 {
            self.proof_rest = self.config.election_ticks;
            self.campaign(Why::Silence);
            self.asks_on_proof = self.role == Role::PreCandidate;
        }
    }

    fn count(&self) -> Tally {
        let ballots = &self.ballots;
        self.members.tally(|voter| ballots.get(&voter).copied())
    }

    /// Who asks may not be a voter by what this member knows, and this member may be none by what the
    /// asker knows: both may be behind. So neither is looked at (trap R7).
    pub(super) fn on_canvass(
        &mut self,
        from: Voter,
        term: Term,
        pre: bool,
        last: Position,
        commit: Position,
    ) {
        self.learn_commit(commit);
        let is_free = self.vote.is_none() && self.leader.is_none();
        let repeats = self.vote == Some(from) && !bugs::on(Bug::VoteNotRepeated);
        let may_vote = repeats || is_free || (pre && term > self.term);
        let may_vote = may_vote || bugs::on(Bug::VoteTwice);
        let has_all = self.log.is_behind_or_at(last)
            || bugs::on(Bug::VoteWithoutLogCheck)
            || (pre && bugs::on(Bug::PreVoteWithoutLog));
        let is_sound = self.recovery.is_none() || bugs::on(Bug::RecoveringVotes);
        let is_known = self.members.is_voter(self.config.me) && self.members.is_voter(from);
        let is_known = is_known || !bugs::on(Bug::StrangersRefused);
        let granted = may_vote && has_all && is_sound && is_known && !self.is_blank();
        let ballot = Body::Ballot {
            pre,
            granted,
            commit: self.log.last_committed(),
        };
        let answer = self.message(from, if granted { term } else { self.term }, ballot);
        if pre {
            if granted {
                self.give_way_to(from, last);
            }
            self.messages.push(answer);
            return;
        }
        if granted {
            // The same candidate may ask again, if the answer was lost (trap R27).
            self.hard_state_dirty |= self.vote != Some(from);
            self.vote = Some(from);
            self.elapsed = 0;
        }
        self.promises.push(answer);
    }

    /// Who asks has this member's word that it would vote for it, and is about to stand. If both stood, each
    /// with its own vote, both would wait for a timeout: so nobody stands in for the heir then, and of two whose
    /// questions cross one gives way, the one with the shorter log or the lower number. Its own question is
    /// answered in vain: on one connection the other's question comes before that answer. Only where a proof
    /// made all of them ask at once; timeouts are drawn apart.
    fn give_way_to(&mut self, other: Voter, last: Position) {
        self.waits_for_heir = false;
        // It has all that this member has, or this would not vote for it.
        let is_before = self.log.last() != last || self.config.me < other;
        if self.asks_on_proof && self.role == Role::PreCandidate && is_before {
            self.become_follower(self.term, None);
        }
    }

    pub(super) fn on_ballot(
        &mut self,
        from: Voter,
        term: Term,
        pre: bool,
        granted: bool,
        commit: Position,
    ) {
        self.learn_commit(commit);
        let is_answer = match (self.role, pre) {
            (Role::PreCandidate, true) => !granted || term == self.term.next(),
            (Role::Candidate, false) => term == self.term,
            _ => false,
        };
        if !is_answer {
            return;
        }
        self.ballots.entry(from).or_insert(granted);
        match (self.count(), pre) {
            (Tally::Won, true) => self.stand(Why::Silence),
            (Tally::Won, false) => self.become_leader(),
            (Tally::Lost, _) => self.become_follower(self.term, None),
            (Tally::Open, _) => {}
        }
    }

    /// Another knows this entry to be committed. If it is here, it is here too: a change of the
    /// members that is committed must not keep everybody from campaigning (trap R8).
    pub(super) fn learn_commit(&mut self, commit: Position) {
        if self.role != Role::Leader && self.log.term_at(commit.0) == Some(commit.1) {
            self.log.commit_to(commit.0);
        }
    }

    pub(super) fn become_follower(&mut self, term: Term, leader: Option<Voter>) {
        if term > self.term {
            self.term = term;
            self.vote = None;
            self.hard_state_dirty = true;
        }
        self.role = Role::Follower;
        self.leader = leader;
        self.heir = false;
        self.waits_for_heir = false;
        self.put_off = None;
        self.stands_after_change = None;
        self.lead = None;
        self.quiet = false;
        self.elapsed = 0;
        self.draw_timeout();
        self.ballots.clear();
    }

    fn become_leader(&mut self) {
        assert!(
            self.role == Role::Candidate && self.vote == Some(self.config.me),
            "only a candidate that voted for itself leads, not a {}",
            self.role.name()
        );
        self.role = Role::Leader;
        self.leader = Some(self.config.me);
        self.elapsed = 0;
        self.ballots.clear();
        self.take_the_lead();
        let time = self.last_time;
        self.append(Proposal {
            kind: EntryKind::Noop,
            time,
            payload: Bytes::new(),
        });
        self.leave_joint();
    }

    pub(super) fn draw_timeout(&mut self) {
        let ticks = self.config.election_ticks;
        self.timeout = ticks + self.prng.below(u64::from(ticks)) as u32;
    }
}
