//! Which messages a member refuses, by name, before anything is changed.

use crate::base::bugs::{self, Bug};
use crate::base::entry::Entry;
use crate::base::ids::{LogIndex, Term};
use crate::base::limits::TERM_MAX;
use crate::raft::message::{Body, Checkpoint, Message, Position, StepError};
use crate::raft::node::RaftNode;
use crate::raft::role::Role;

impl RaftNode {
    /// What can be told before anything is changed.
    pub(super) fn check(&self, message: &Message) -> Result<(), StepError> {
        if message.group != self.config.group {
            return Err(StepError::WrongGroup(message.group));
        }
        let is_of_life = message.incarnation == self.config.incarnation;
        if !is_of_life && !bugs::on(Bug::EarlierLifeCounts) {
            return Err(StepError::WrongIncarnation(message.incarnation));
        }
        if message.to != self.config.me {
            return Err(StepError::WrongReceiver(message.to.node));
        }
        if message.from == self.config.me {
            return Err(StepError::FromSelf);
        }
        // Who was never in a term can be asked for its vote, and refuse it.
        let may_be_none = matches!(message.body, Body::Ballot { granted: false, .. });
        if (message.term == Term(0) && !may_be_none) || message.term > TERM_MAX {
            return Err(StepError::Nonsense("its term cannot be"));
        }
        // Only members are asked, get checkpoints and change queues. Who asks for a vote or leads may be one
        // that is not known here yet.
        let answers = matches!(
            message.body,
            Body::Ballot { .. }
                | Body::Appended { .. }
                | Body::Refused { .. }
                | Body::Beat { .. }
                | Body::Checkpoint(Checkpoint::Get { .. })
                | Body::QueueChange(_)
        );
        let is_known = |of| self.members.contains(of) || self.asks_stranger(of);
        if answers && !self.leads(message.from) && !is_known(message.from) {
            return Err(StepError::NotAMember(message.from.node));
        }
        let leads = matches!(
            message.body,
            Body::Append { .. } | Body::Heartbeat { .. } | Body::Offer { .. }
        );
        let is_second = self.leader.is_some_and(|leader| leader != message.from);
        if leads && message.term == self.term && is_second {
            return Err(StepError::SecondLeader(message.from.node));
        }
        let last = self.log.last_index();
        let answers_me = self.role == Role::Leader && message.term == self.term;
        match &message.body {
            Body::Append { prev, entries, .. } => {
                check_entries(message.term, *prev, entries)?;
                let contradicts = self.log.contradicts(*prev, entries);
                match contradicts.filter(|_| message.term >= self.term) {
                    Some(index) => Err(StepError::AgainstCommitted(index)),
                    None => Ok(()),
                }
            }
            Body::Refused { prev, hint } if answers_me && (hint.0 > *prev || *prev > last) => {
                Err(StepError::Nonsense("it refuses what was never sent"))
            }
            Body::Appended { matched } if answers_me && *matched > last => {
                Err(StepError::Nonsense("it accepts what was never sent"))
            }
            // It would prove a read that nobody was asked about (trap R11).
            Body::Beat { round } if answers_me && !self.has_begun(*round) => {
                Err(StepError::Nonsense("it answers a round that has not begun"))
            }
            Body::EntryGet { first } if *first == LogIndex(0) => {
                Err(StepError::Nonsense("it asks for what is no entry"))
            }
            Body::EntryGot { answer, .. } => answer.check(message.term),
            _ => Ok(()),
        }
    }
}

/// Dense indexes, and terms that do not fall and are not above the sender's.
pub(super) fn check_entries(
    term: Term,
    prev: Position,
    entries: &[Entry],
) -> Result<(), StepError> {
    let mut before = prev;
    for entry in entries {
        let follows = before.0.0.checked_add(1) == Some(entry.index.0);
        if !follows || entry.term < before.1 || entry.term > term {
            return Err(StepError::Nonsense("its entries do not follow each other"));
        }
        before = (entry.index, entry.term);
    }
    Ok(())
}
