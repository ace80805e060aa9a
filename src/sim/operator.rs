//! An operator of the simulated node or cluster: makes queues of several partitions, changes and deletes them,
//! and looks after each answer whether every partition has followed.
//!
//! An answer promises that all groups have done what was asked. So what is asked next of any
//! partition must find it done, whatever crashed meanwhile. Each step is repeated until it is
//! answered, without a session: all of them are idempotent.

use super::asking::command;
use crate::base::code::Code;
use crate::base::ids::{GroupId, Partition, QueueUid};
use crate::base::prng::Prng;
use crate::queue::command::{Enqueued, NewJob, Op, Outcome, QueueInfo, QueueSettings, Rejection};
use crate::wire::message::{Reply, ReplyBody, RequestBody};

/// What the operator does next with its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    /// Each partition takes a job.
    Fill(u8),
    Pause,
    /// No partition hands out a job.
    Paused(u8),
    Drain,
    /// No partition takes a job.
    Draining(u8),
    Resume,
    /// Each partition hands out its job.
    Resumed(u8),
    Delete,
    /// No partition is there.
    Gone(u8),
}

/// An operator.
#[derive(Clone, Debug)]
pub struct Operator {
    round: u64,
    step: Step,
    partitions: u8,
    queue: Option<QueueInfo>,
    asked: Option<(u64, RequestBody)>,
    next_request: u64,
    /// Rounds done.
    pub rounds: u64,
}

impl Default for Operator {
    fn default() -> Self {
        Self {
            round: 0,
            step: Step::Create,
            partitions: 1,
            queue: None,
            asked: None,
            next_request: 1,
            rounds: 0,
        }
    }
}

impl Operator {
    /// What is unanswered, to be sent again.
    pub fn resend(&mut self) -> Option<(u64, RequestBody)> {
        self.asked.clone()
    }

    /// Whether all that it has begun is done.
    pub fn is_idle(&self) -> bool {
        self.asked.is_none() && self.step == Step::Create
    }

    /// What it asks next, if anything; `home` says where the queue of a name is at home. Without
    /// `begin` it only ends what it has begun.
    pub fn act(
        &mut self,
        prng: &mut Prng,
        home: impl Fn(&str) -> GroupId,
        begin: bool,
    ) -> Option<(u64, RequestBody)> {
        if self.asked.is_some() || (self.step == Step::Create && !begin) {
            return None;
        }
        let body = self.next(prng, home);
        let id = self.next_request;
        self.next_request += 1;
        self.asked = Some((id, body.clone()));
        Some((id, body))
    }

    fn next(&mut self, prng: &mut Prng, home: impl Fn(&str) -> GroupId) -> RequestBody {
        if self.step == Step::Create {
            self.round += 1;
            self.partitions = 1 + prng.below(5) as u8;
            let name = format!("operated-{}", self.round);
            let group = home(&name);
            let op = Op::CreateQueue {
                name,
                settings: QueueSettings {
                    partitions: self.partitions,
                    retain: prng.below(3) as u32,
                    ..QueueSettings::default()
                },
                must_be_new: false,
                groups: 0,
            };
            return command(group, op, 0);
        }
        let info = self.queue.as_ref().expect("the queue was made");
        let queue = info.uid;
        let change = |op| command(queue.home(), op, 0);
        let at = |number: u8| (Partition(number), info.groups[usize::from(number)]);
        match self.step {
            Step::Create => unreachable!("handled above"),
            Step::Pause => change(Op::PauseQueue { queue }),
            Step::Drain => change(Op::DrainQueue { queue }),
            Step::Resume => change(Op::ResumeQueue { queue }),
            Step::Delete => change(Op::DeleteQueue { queue }),
            Step::Fill(number) | Step::Draining(number) => enqueue(queue, at(number)),
            Step::Paused(number) | Step::Resumed(number) => lease(queue, at(number)),
            Step::Gone(number) => {
                let (partition, group) = at(number);
                RequestBody::GetPartition {
                    queue,
                    partition,
                    group,
                }
            }
        }
    }

    /// Takes an answer.
    ///
    /// # Panics
    /// If a partition has not followed what was answered as done.
    pub fn on_reply(&mut self, reply: &Reply) {
        if self.asked.as_ref().is_none_or(|(id, _)| *id != reply.id) {
            return;
        }
        if let ReplyBody::Error(error) = &reply.body {
            let again = matches!(
                error.code,
                Code::NotLeader | Code::Busy | Code::DiskFull | Code::Stopping | Code::GroupHalted
            );
            assert!(again, "{:?}: {}: {}", self.step, error.code, error.message);
            self.asked = None;
            return;
        }
        self.asked = None;
        self.step = match (self.step, &reply.body) {
            // The group is of version 1 still, or of version 2 and another group is not yet: then
            // the answer waits. A drain of a single partition is of version 2 too.
            (Step::Create | Step::Drain, ReplyBody::Outcome(Outcome::Rejected(rejection)))
                if *rejection == Rejection::Unsupported =>
            {
                if self.step == Step::Create {
                    Step::Create
                } else {
                    Step::Delete
                }
            }
            (Step::Create, ReplyBody::Outcome(Outcome::Queue(info))) => {
                self.queue = Some(QueueInfo::clone(info));
                Step::Fill(0)
            }
            (Step::Fill(number), ReplyBody::Outcome(Outcome::Enqueued(items))) => {
                assert!(matches!(items[..], [Enqueued::New(_)]), "{items:?}");
                self.each(number, Step::Fill, Step::Pause)
            }
            (Step::Pause, ReplyBody::Outcome(Outcome::Queue(_))) => Step::Paused(0),
            (Step::Paused(number), ReplyBody::Leased(jobs)) => {
                assert!(jobs.is_empty(), "partition {number} is not paused");
                self.each(number, Step::Paused, Step::Drain)
            }
            (Step::Drain, ReplyBody::Outcome(Outcome::Queue(_))) => Step::Draining(0),
            (Step::Draining(number), ReplyBody::Outcome(Outcome::Enqueued(items))) => {
                let refused = [Enqueued::Rejected(Rejection::Draining)];
                assert!(items[..] == refused, "partition {number}: {items:?}");
                self.each(number, Step::Draining, Step::Resume)
            }
            (Step::Resume, ReplyBody::Outcome(Outcome::Queue(_))) => Step::Resumed(0),
            (Step::Resumed(number), ReplyBody::Leased(jobs)) => {
                // An enqueue that was repeated made a second job; a lease that was, took one.
                assert!(jobs.len() <= 8, "{jobs:?}");
                self.each(number, Step::Resumed, Step::Delete)
            }
            (Step::Delete, ReplyBody::Outcome(Outcome::Done)) => Step::Gone(0),
            // It was answered before, and the answer was lost. Whether all have followed is not
            // known then.
            (Step::Delete, ReplyBody::Outcome(Outcome::Rejected(Rejection::QueueChanged))) => {
                self.end()
            }
            (Step::Gone(number), ReplyBody::Outcome(Outcome::Rejected(rejection))) => {
                assert_eq!(*rejection, Rejection::QueueChanged, "partition {number}");
                if number + 1 < self.count() {
                    Step::Gone(number + 1)
                } else {
                    self.end()
                }
            }
            (step, body) => panic!("{step:?} was answered by {body:?}"),
        };
    }

    fn end(&mut self) -> Step {
        self.rounds += 1;
        self.queue = None;
        Step::Create
    }

    fn count(&self) -> u8 {
        let groups = self.queue.as_ref().map_or(0, |info| info.groups.len());
        u8::try_from(groups).expect("at most 255 partitions")
    }

    fn each(&self, number: u8, step: fn(u8) -> Step, then: Step) -> Step {
        if number + 1 < self.count() {
            step(number + 1)
        } else {
            then
        }
    }
}

fn enqueue(queue: QueueUid, (partition, group): (Partition, GroupId)) -> RequestBody {
    let items = vec![NewJob::default()];
    let op = Op::Enqueue {
        queue,
        partition,
        items,
    };
    command(group, op, 0)
}

fn lease(queue: QueueUid, (partition, group): (Partition, GroupId)) -> RequestBody {
    let op = Op::Lease {
        queue,
        partition,
        max: 8,
        lease_ms: 0,
        epoch: 0,
    };
    command(group, op, 0)
}
