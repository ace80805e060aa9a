//! What is committed is applied, and who waited is answered.
//!
//! A group whose log cannot be applied stops, alone; those who waited are told that their request may
//! have taken effect.

use super::effect::Effect;
use super::engine::ShardEngine;
use super::group::{Phase, Waiter};
use super::opening::halted;
use super::polls::Poll;
use super::requests::Refusal;
use super::timers::ADVANCE_BACKOFF;
use crate::base::code::Code;
use crate::base::entry::{Entry, EntryKind, version_of};
use crate::base::ids::{LogIndex, QueueUid};
use crate::queue::MACHINE_VERSION;
use crate::queue::command::{Command, Enqueued, Grant, ItemOutcome, Op, Outcome};
use crate::queue::view::ApplyAt;
use crate::wire::command::decode_command;
use crate::wire::message::{ErrorReply, LeasedJob, ReplyBody};

impl ShardEngine {
    pub(super) fn apply_committed(&mut self, slot: usize) {
        let before = self.counters.entries_applied_total;
        while self.groups[slot].phase == Phase::Serving
            && !self.groups[slot].installing
            && self.groups[slot].mending.is_none()
            && !self.groups[slot].pages.apply_waits()
            && self.groups[slot].raft.next_committed().is_some()
            && self.may_change_members(slot)
        {
            match self.apply_next(slot) {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => return self.halt(slot, &why),
            }
            self.counters.entries_applied_total += 1;
        }
        self.count_held(slot);
        let applied = self.counters.entries_applied_total - before;
        self.trim_tail(slot, applied as usize);
    }

    /// Counts the memory of a group's jobs.
    pub(super) fn count_held(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        let held = group.queue.held_bytes();
        let before = std::mem::replace(&mut group.held_bytes, held);
        let counter = &mut self.counters.jobs_held_bytes;
        *counter = *counter - before + held;
    }

    /// Applies the next entry, unless it has to wait for pages.
    fn apply_next(&mut self, slot: usize) -> Result<bool, String> {
        let group = &mut self.groups[slot];
        let entry = group.raft.next_committed();
        let entry = entry.expect("there is one to apply");
        let (index, time, term) = (entry.index, entry.time, entry.term);
        match entry.kind {
            EntryKind::Data => {
                let command = match group.proposed.take(index, term) {
                    Some(command) => {
                        debug_assert_eq!(command_of(entry).as_ref(), Ok(&command));
                        command
                    }
                    None => command_of(entry)?,
                };
                let at = ApplyAt { index, time };
                let wants = group.queue.pages_needed(at, &command, group.pages.ahead());
                let command = self.unless_pages_lack(slot, (index, term), wants, command);
                let Some(command) = command else {
                    return Ok(false);
                };
                let group = &mut self.groups[slot];
                let outcome = group.queue.apply(at, &command);
                self.effects
                    .extend(group.queue.take_discarded().map(Effect::Discard));
                group.raft.applied();
                // What an earlier process proposed was counted by that one.
                if group.raft.leads_for_sure() && term == group.raft.term() {
                    self.count(&command.op, &outcome);
                }
                self.after_apply(slot, index, &command.op, outcome);
            }
            EntryKind::Noop | EntryKind::Checkpoint => {
                let is_cut = entry.kind == EntryKind::Checkpoint;
                group.queue.observe_time(time);
                group.raft.applied();
                if is_cut {
                    self.on_cut_applied(slot);
                }
            }
            EntryKind::Version => {
                let version =
                    version_of(&entry.payload).filter(|version| *version <= MACHINE_VERSION);
                let Some(version) = version else {
                    return Err(format!("entry {index} asks for a newer version of rrq"));
                };
                group.queue.observe_time(time);
                group.queue.raise_version(version);
                group.raising = false;
                group.raft.applied();
            }
            EntryKind::Conf => {
                group.queue.observe_time(time);
                group.raft.applied();
                self.counters.raft_members_changed_total += 1;
                self.members_changed(slot);
                self.answer_member_change(slot, index);
            }
            EntryKind::Cut => {
                return Err(format!(
                    "entry {index} is of a kind ({:?}) that a newer version wrote",
                    entry.kind
                ));
            }
        }
        Ok(true)
    }

    /// Answers who waited for the entry, and takes note of what its outcome means to the leader.
    fn after_apply(&mut self, slot: usize, index: LogIndex, op: &Op, outcome: Outcome) {
        let waiters = &mut self.groups[slot].waiters;
        let waits = waiters.front().is_some_and(|(at, _)| *at == index);
        let waiter = waits.then(|| waiters.pop_front().expect("the front was just seen").1);
        if waiter.is_some() {
            let times = self.groups[slot].queue.run_times();
            self.run_times_ms.extend_from_slice(times);
        }
        if let Outcome::SessionOpened { session, .. } = outcome
            && self.groups[slot].leads
        {
            let conn = match &waiter {
                Some(Waiter::Client { to, .. }) => Some(*to),
                _ => None,
            };
            self.watch_session(slot, session, conn);
        }
        match waiter {
            None => {}
            Some(Waiter::Advance) => {
                let group = &mut self.groups[slot];
                group.advancing = false;
                if outcome == (Outcome::Advanced { handled: 0 }) {
                    group.advance_not_before = self.now.mono.plus(ADVANCE_BACKOFF);
                }
            }
            Some(Waiter::WallOffset) => self.groups[slot].setting_offset = false,
            Some(Waiter::Client { to, request }) => match changed_queue(op, &outcome) {
                Some(queue) => self.tell_changed(slot, queue, (to, request), Some(outcome)),
                None => {
                    let stamp = self.stamp(slot);
                    self.reply(to, request, Some(stamp), ReplyBody::Outcome(outcome));
                }
            },
            Some(Waiter::Queue { to, request }) => match outcome {
                Outcome::Queue(info) => self.tell_changed(slot, info.uid, (to, request), None),
                other => self.reply(to, request, None, ReplyBody::Outcome(other)),
            },
            Some(Waiter::Lease { poll, place }) => {
                self.groups[slot].polls.unclaim(place, poll.max);
                self.on_leased(slot, *poll, outcome);
            }
        }
        self.wake_job_waits(slot, op);
        match op {
            Op::PartitionsChanged { .. } => self.answer_changed(slot),
            Op::ChangePartitions(change) => self.answer_followed(slot, change.home),
            _ => {}
        }
    }

    /// A lease was applied. One that won nothing goes on waiting at its place in the line.
    fn on_leased(&mut self, slot: usize, poll: Poll, outcome: Outcome) {
        let body = match outcome {
            Outcome::Leased(grants) if grants.is_empty() && poll.deadline > self.now.mono => {
                return self.park(slot, poll);
            }
            Outcome::Leased(grants) => {
                let jobs = grants
                    .iter()
                    .filter_map(|grant| self.leased_job(slot, grant));
                ReplyBody::Leased(jobs.collect())
            }
            other => ReplyBody::Outcome(other),
        };
        let stamp = self.stamp(slot);
        self.reply(poll.to, poll.request, Some(stamp), body);
    }

    fn leased_job(&self, slot: usize, grant: &Grant) -> Option<LeasedJob> {
        let job = self.groups[slot].queue.job(grant.token.job).ok()?;
        Some(LeasedJob {
            lease_gen: grant.token.lease_gen,
            job,
            lease_ms: grant.lease_ms,
        })
    }

    /// Proposes the waiting leases that can win something now.
    pub(super) fn wake_polls(&mut self, slot: usize) {
        if !self.groups[slot].serves() {
            return;
        }
        let group = &mut self.groups[slot];
        let queue = &group.queue;
        // A queue that is gone wakes its polls too, so that they are told.
        let ready = |(uid, partition)| queue.ready(uid, partition).unwrap_or(u64::MAX);
        let winners = group.polls.take_winners(ready);
        for poll in winners {
            self.unpark(slot, &poll);
            let (to, request) = (poll.to, poll.request);
            if let Err(refusal) = self.propose_poll(slot, poll) {
                self.refuse(to, request, &refusal);
            }
        }
    }

    fn count(&mut self, op: &Op, outcome: &Outcome) {
        let counters = &mut self.counters;
        match (op, outcome) {
            (Op::Enqueue { .. }, Outcome::Enqueued(items)) => {
                let new = items
                    .iter()
                    .filter(|item| matches!(item, Enqueued::New(_)))
                    .count();
                counters.jobs_enqueued_total += new as u64;
            }
            (Op::Lease { .. }, Outcome::Leased(grants)) => {
                counters.jobs_leased_total += grants.len() as u64;
            }
            (Op::Ack { .. } | Op::Nack { .. }, Outcome::Items(items)) => {
                let done = items
                    .iter()
                    .filter(|item| **item == ItemOutcome::Done)
                    .count() as u64;
                match op {
                    Op::Ack { .. } => counters.jobs_acked_total += done,
                    _ => counters.jobs_nacked_total += done,
                }
            }
            (Op::EndLeases { .. }, _) => counters.sessions_ended_total += 1,
            _ => {}
        }
    }

    /// The group stops, alone: the others go on.
    pub(super) fn halt(&mut self, slot: usize, why: &str) {
        let group = &mut self.groups[slot];
        let why = halted(group.id, why);
        group.phase = Phase::Halted(why.clone());
        self.refuse_all(slot, Code::GroupHalted, &why);
        self.round_without(slot);
        self.counters.groups_halted = self.halted().count() as u64;
    }

    /// Tells everybody who waits for the group; what was proposed may take effect.
    pub(super) fn refuse_all(&mut self, slot: usize, code: Code, why: &str) {
        let group = &mut self.groups[slot];
        let waiters = std::mem::take(&mut group.waiters);
        let polls = group.polls.take_all();
        let reads: Vec<_> = group.reads.take_all().collect();
        for (_, waiter) in waiters {
            let (to, request) = match waiter {
                Waiter::Client { to, request } | Waiter::Queue { to, request } => (to, request),
                Waiter::Lease { poll, .. } => (poll.to, poll.request),
                Waiter::Advance | Waiter::WallOffset => continue,
            };
            let (message, leader) = (why.to_owned(), None);
            let error = ErrorReply {
                code,
                message,
                leader,
                maybe_applied: true,
            };
            self.reply(to, request, None, ReplyBody::Error(error));
        }
        for poll in polls {
            self.unpark(slot, &poll);
            self.refuse(poll.to, poll.request, &Refusal::new(code, why));
        }
        for (from, request) in reads {
            self.refuse(from, request, &Refusal::new(code, why));
        }
        self.end_waits(slot, code, why);
    }
}

/// The command of an entry of kind [`EntryKind::Data`].
fn command_of(entry: &Entry) -> Result<Command, String> {
    decode_command(&entry.payload, entry.machine_version)
        .map_err(|error| format!("entry {} cannot be applied: {error}", entry.index))
}

/// The queue that a command made or changed, whose partitions may have to follow.
fn changed_queue(op: &Op, outcome: &Outcome) -> Option<QueueUid> {
    match (op, outcome) {
        (Op::DeleteQueue { queue }, Outcome::Done) => Some(*queue),
        (_, Outcome::Queue(info)) => Some(info.uid),
        _ => None,
    }
}
