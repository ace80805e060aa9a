//! Who waits without a place in the log: watches for jobs that can be leased, and waits for the end
//! of a job.
//!
//! A watch is a hint, given once: as many are woken at a time as there are jobs, in the order in
//! which they came, since one that is woken will lease. Should it not, the next turn of its group
//! wakes others, [`WATCH_AGAIN`] later at the latest. A wait for a job is looked at when an entry may
//! have ended that job. Both are answered at their deadline with what is so then, and both count
//! towards [`POLLS_WAITING_MAX`] of the shard.

use super::engine::ShardEngine;
use super::input::Origin;
use super::polls::Place;
use super::reads::Held;
use super::requests::Refusal;
use crate::base::code::Code;
use crate::base::ids::{JobId, Partition, QueueUid};
use crate::base::limits::POLLS_WAITING_MAX;
use crate::base::units::Monotonic;
use crate::queue::command::{Op, Outcome, Rejection};
use crate::queue::view::JobState;
use crate::wire::message::{ErrorReply, ReplyBody, RequestBody};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// With jobs ready and watches left, the next of them are woken after this.
const WATCH_AGAIN: Duration = Duration::from_millis(50);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A job of this place that can be leased.
    Ready(Place),
    /// The end of this job.
    End(JobId),
}

/// One who waits.
#[derive(Clone, Copy, Debug)]
struct Wait {
    to: Origin,
    request: u64,
    what: What,
    deadline: Monotonic,
}

/// The waits of one group, by their numbers, which rise.
#[derive(Debug, Default)]
pub(super) struct Waits {
    all: BTreeMap<u64, Wait>,
    places: BTreeSet<(Place, u64)>,
    jobs: BTreeSet<(JobId, u64)>,
    deadlines: BTreeSet<(Monotonic, u64)>,
    /// When the watches that were not woken are looked at again.
    again: Option<Monotonic>,
}

impl Waits {
    fn insert(&mut self, number: u64, wait: Wait) {
        match wait.what {
            What::Ready(place) => self.places.insert((place, number)),
            What::End(job) => self.jobs.insert((job, number)),
        };
        self.deadlines.insert((wait.deadline, number));
        self.all.insert(number, wait);
    }

    fn remove(&mut self, number: u64) -> Option<Wait> {
        let wait = self.all.remove(&number)?;
        match wait.what {
            What::Ready(place) => self.places.remove(&(place, number)),
            What::End(job) => self.jobs.remove(&(job, number)),
        };
        self.deadlines.remove(&(wait.deadline, number));
        Some(wait)
    }

    /// When something of it is due.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        let first = self.deadlines.first().map(|(at, _)| *at);
        first.into_iter().chain(self.again).min()
    }

    fn late(&self, now: Monotonic) -> Option<u64> {
        let (at, number) = self.deadlines.first()?;
        (*at <= now).then_some(*number)
    }

    /// The watches to wake, given how many jobs can be leased at each place; whether some are left
    /// although there are jobs.
    fn winners(&self, ready: impl Fn(Place) -> u64) -> (Vec<u64>, bool) {
        let (mut winners, mut left) = (Vec::new(), false);
        // The place that is being looked at, the jobs there, and those that are promised.
        let mut at: Option<(Place, u64, u64)> = None;
        for (place, number) in &self.places {
            let (jobs, promised) = match at {
                Some((last, jobs, promised)) if last == *place => (jobs, promised),
                _ => (ready(*place), 0),
            };
            let wins = promised < jobs;
            if wins {
                winners.push(*number);
            }
            left |= jobs > 0 && !wins;
            at = Some((*place, jobs, promised + u64::from(wins)));
        }
        (winners, left)
    }

    fn of_job(&self, job: JobId) -> Vec<u64> {
        let range = self.jobs.range((job, 0)..=(job, u64::MAX));
        range.map(|(_, number)| *number).collect()
    }

    /// Those who wait at a place, by who asked.
    pub(super) fn watches(&self) -> impl Iterator<Item = Origin> {
        self.places.iter().map(|(_, number)| self.all[number].to)
    }
}

/// The jobs that an entry may have ended.
enum MayHaveEnded<'a> {
    None,
    Each(Box<dyn Iterator<Item = JobId> + 'a>),
    Any,
}

fn may_have_ended(op: &Op) -> MayHaveEnded<'_> {
    let each = |jobs| MayHaveEnded::Each(jobs);
    match op {
        Op::Ack { items } => each(Box::new(items.iter().map(|item| item.token.job))),
        Op::Nack { items } => each(Box::new(items.iter().map(|item| item.token.job))),
        Op::Bury { items } => each(Box::new(items.iter().map(|(token, _)| token.job))),
        Op::Cancel { items } | Op::DeleteDead { items } => each(Box::new(items.iter().copied())),
        Op::Enqueue { .. }
        | Op::Extend { .. }
        | Op::Release { .. }
        | Op::RequeueDead { .. }
        | Op::CreateQueue { .. }
        | Op::AlterQueue { .. }
        | Op::PauseQueue { .. }
        | Op::ResumeQueue { .. }
        | Op::DrainQueue { .. }
        | Op::OpenSession { .. }
        | Op::Attach { .. }
        | Op::DropSession { .. }
        | Op::PartitionsChanged { .. }
        | Op::SetWallOffset { .. } => MayHaveEnded::None,
        // A lease buries a job whose generations are used up.
        Op::Lease { .. }
        | Op::Advance { .. }
        | Op::EndLeases { .. }
        | Op::CloseSession { .. }
        | Op::SweepDead { .. }
        | Op::Purge { .. }
        | Op::DeleteQueue { .. }
        | Op::ChangePartitions(_) => MayHaveEnded::Any,
    }
}

impl ShardEngine {
    /// A client wants to know when a job can be leased.
    pub(super) fn on_watch(
        &mut self,
        from: Origin,
        slot: usize,
        request: u64,
        place: (QueueUid, Partition),
        wait_ms: u32,
    ) -> Result<(), Refusal> {
        let what = What::Ready(place);
        let body = match self.groups[slot].queue.ready(place.0, place.1) {
            Ok(0) if wait_ms > 0 => return self.wait(from, slot, request, what, wait_ms),
            Ok(jobs) => ReplyBody::Ready(jobs),
            Err(rejection) => ReplyBody::Outcome(Outcome::Rejected(rejection)),
        };
        let stamp = self.stamp(slot);
        self.reply(from, request, Some(stamp), body);
        Ok(())
    }

    /// A client wants to know how a job ends.
    pub(super) fn on_wait_job(
        &mut self,
        from: Origin,
        slot: usize,
        request: u64,
        job: JobId,
        wait_ms: u32,
    ) -> Result<(), Refusal> {
        let body = self.job_answer(slot, job);
        if wait_ms > 0 && !is_over(&body) {
            return self.wait(from, slot, request, What::End(job), wait_ms);
        }
        let stamp = self.stamp(slot);
        self.reply(from, request, Some(stamp), body);
        Ok(())
    }

    fn wait(
        &mut self,
        to: Origin,
        slot: usize,
        request: u64,
        what: What,
        wait_ms: u32,
    ) -> Result<(), Refusal> {
        if self.stopping() {
            return Err(Refusal::stopping());
        }
        if self.counters.polls_waiting >= POLLS_WAITING_MAX as u64 {
            let message = "too many requests are waiting on this shard";
            return Err(Refusal::new(Code::Busy, message));
        }
        let number = self.next_poll;
        self.next_poll += 1;
        let deadline = self
            .now
            .mono
            .plus(Duration::from_millis(u64::from(wait_ms)));
        self.conn(to).waits.insert((slot, number));
        self.counters.polls_waiting += 1;
        let wait = Wait {
            to,
            request,
            what,
            deadline,
        };
        self.groups[slot].waits.insert(number, wait);
        self.mark(slot);
        Ok(())
    }

    /// Answers a wait with what is so now.
    fn answer_wait(&mut self, slot: usize, number: u64) {
        let Some(wait) = self.take_wait(slot, number) else {
            return;
        };
        let body = match wait.what {
            What::Ready((queue, partition)) => {
                match self.groups[slot].queue.ready(queue, partition) {
                    Ok(jobs) => ReplyBody::Ready(jobs),
                    Err(rejection) => ReplyBody::Outcome(Outcome::Rejected(rejection)),
                }
            }
            What::End(job) => {
                let read = Held::Read(RequestBody::GetJob { job });
                return self.answer_when_here(slot, (wait.to, wait.request), read);
            }
        };
        let stamp = self.stamp(slot);
        self.reply(wait.to, wait.request, Some(stamp), body);
    }

    fn take_wait(&mut self, slot: usize, number: u64) -> Option<Wait> {
        let wait = self.groups[slot].waits.remove(number)?;
        self.counters.polls_waiting -= 1;
        if let Some(conn) = self.conns.get_mut(&wait.to) {
            conn.waits.remove(&(slot, number));
        }
        Some(wait)
    }

    /// The connection of a wait is gone.
    pub(super) fn forget_wait(&mut self, slot: usize, number: u64) {
        if self.take_wait(slot, number).is_some() {
            self.mark(slot);
        }
    }

    /// Answers the waits whose time is over.
    pub(super) fn answer_late_waits(&mut self, slot: usize) {
        while let Some(number) = self.groups[slot].waits.late(self.now.mono) {
            self.answer_wait(slot, number);
        }
    }

    /// Wakes watches of places that have jobs. A queue that is gone wakes its watches too.
    pub(super) fn wake_watches(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        group.waits.again = None;
        if group.waits.places.is_empty() || !group.serves() {
            return;
        }
        let queue = &group.queue;
        let ready = |(uid, partition)| queue.ready(uid, partition).unwrap_or(u64::MAX);
        let (winners, left) = group.waits.winners(ready);
        for number in winners {
            self.answer_wait(slot, number);
        }
        self.groups[slot].waits.again = left.then(|| self.now.mono.plus(WATCH_AGAIN));
    }

    /// An entry was applied: answers those who wait for the end of a job that it ended.
    pub(super) fn wake_job_waits(&mut self, slot: usize, op: &Op) {
        let waits = &self.groups[slot].waits;
        if waits.jobs.is_empty() {
            return;
        }
        let numbers: Vec<u64> = match may_have_ended(op) {
            MayHaveEnded::None => return,
            MayHaveEnded::Each(jobs) => jobs.flat_map(|job| waits.of_job(job)).collect(),
            MayHaveEnded::Any => waits.jobs.iter().map(|(_, number)| *number).collect(),
        };
        for number in numbers {
            let wait = self.groups[slot].waits.all.get(&number);
            if let Some(Wait {
                what: What::End(job),
                ..
            }) = wait
                && self.is_over(slot, *job)
            {
                self.answer_wait(slot, number);
            }
        }
    }

    /// Whether a job that was not over when it was waited for is. Where its leaf is absent nothing has
    /// happened to it since.
    fn is_over(&self, slot: usize, job: JobId) -> bool {
        let queue = &self.groups[slot].queue;
        queue.pages_of_job(job).is_empty() && is_over(&self.job_answer(slot, job))
    }

    /// Nobody waits here any more: the group or the node stops.
    pub(super) fn end_waits(&mut self, slot: usize, code: Code, message: &str) {
        let numbers: Vec<u64> = self.groups[slot].waits.all.keys().copied().collect();
        for number in numbers {
            let wait = self.take_wait(slot, number).expect("it was just listed");
            self.refuse(wait.to, wait.request, &Refusal::new(code, message));
        }
        // Their home group has decided; not every group has followed yet.
        for waiting in self.groups[slot].changes.take_waiting() {
            let error = ErrorReply {
                code,
                message: message.to_owned(),
                leader: None,
                maybe_applied: true,
            };
            self.reply(waiting.to, waiting.request, None, ReplyBody::Error(error));
        }
    }
}

/// Whether a job that is so is over for who waits for it.
fn is_over(body: &ReplyBody) -> bool {
    match body {
        ReplyBody::Job(job) => job.state == JobState::Dead,
        ReplyBody::Outcome(Outcome::Rejected(rejection)) => *rejection != Rejection::Unsupported,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ConnId, ShardId};

    const HERE: Place = (QueueUid::FIRST, Partition(0));
    const THERE: Place = (QueueUid::FIRST, Partition(1));

    fn watch(place: Place, deadline: u64) -> Wait {
        Wait {
            to: Origin {
                shard: ShardId(0),
                conn: ConnId(1),
            },
            request: 1,
            what: What::Ready(place),
            deadline: Monotonic(deadline),
        }
    }

    #[test]
    fn as_many_watches_are_woken_as_there_are_jobs() {
        let mut waits = Waits::default();
        for number in 1..=3 {
            waits.insert(number, watch(HERE, 100));
        }
        waits.insert(4, watch(THERE, 100));
        assert_eq!(waits.winners(|_| 0), (vec![], false));
        let two_here = |place| if place == HERE { 2 } else { 0 };
        assert_eq!(waits.winners(two_here), (vec![1, 2], true));
        assert_eq!(
            waits.winners(|place| u64::from(place == THERE)),
            (vec![4], false)
        );
        assert_eq!(waits.winners(|_| u64::MAX), (vec![1, 2, 3, 4], false));
    }

    #[test]
    fn a_wait_ends_once() {
        let mut waits = Waits::default();
        waits.insert(1, watch(HERE, 100));
        waits.insert(2, watch(HERE, 50));
        assert_eq!(waits.next_deadline(), Some(Monotonic(50)));
        assert_eq!(waits.late(Monotonic(49)), None);
        assert_eq!(waits.late(Monotonic(50)), Some(2));
        assert!(waits.remove(2).is_some() && waits.remove(2).is_none());
        assert_eq!(waits.next_deadline(), Some(Monotonic(100)));
        assert_eq!(waits.winners(|_| 9), (vec![1], false));
    }
}
