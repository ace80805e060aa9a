//! Carries what the home group of a queue decides to the groups of its partitions.
//!
//! ```text
//! home group:   create, alter, pause, delete ─> applied ─> outbox in its state
//!                                                              │ one at a time to a group, in log order
//! other group:                       ChangePartitions <────────┘
//! home group:   PartitionsChanged <───── done               ... out of the outbox; who waits is told
//! ```
//!
//! The outbox is replicated state, so a change survives any crash and is sent again by the next
//! leader; the receiving group knows which it has applied. Here is only what a leader remembers:
//! which change is on its way, when to try again, and which clients wait until all groups have done
//! what they asked. A group on another shard is asked as any client asks it, with the engine itself
//! as the origin.

use super::effect::Effect;
use super::engine::ShardEngine;
use super::input::Origin;
use super::placement::shard_of;
use crate::base::ids::{GroupId, LogIndex, QueueUid};
use crate::base::units::Monotonic;
use crate::queue::command::{Command, Op, Outcome};
use crate::wire::message::{Reply, ReplyBody, Request, RequestBody};
use std::collections::BTreeMap;
use std::time::Duration;

/// A change that was refused is sent again after this.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// What the leader of a home group remembers of its changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// By the group that is asked: the change on its way there, or refused there.
    under_way: BTreeMap<GroupId, UnderWay>,
    /// Clients to be told when no change of their queue is outstanding, in the order of the log.
    waiting: Vec<Waiting>,
}

/// A client to be told when no change of its queue is outstanding.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) queue: QueueUid,
    pub(super) to: Origin,
    pub(super) request: u64,
    /// What the home group said; `None` = the queue as it is then, with its counters.
    pub(super) answer: Option<Outcome>,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    home_index: LogIndex,
    /// It was refused: not before this. `None` = it is on its way.
    again: Option<Monotonic>,
}

impl Changes {
    /// Clients that nobody will tell.
    pub(super) fn take_waiting(&mut self) -> Vec<Waiting> {
        std::mem::take(&mut self.waiting)
    }

    /// When a change is to be sent again.
    pub(super) fn next_try(&self) -> Option<Monotonic> {
        self.under_way.values().filter_map(|way| way.again).min()
    }
}

/// What the engine asked other shards, by the number of the request.
#[derive(Debug, Default)]
pub(super) struct Asked {
    next: u64,
    open: BTreeMap<u64, Question>,
}

/// A change that was sent.
#[derive(Clone, Copy, Debug)]
struct Question {
    /// The home group that asks.
    slot: usize,
    /// The group that is asked.
    group: GroupId,
    /// The change.
    home_index: LogIndex,
}

impl ShardEngine {
    /// Tells a client what became of a queue, once every group has done what that asks of it: the
    /// `answer` of the home group, or without one the queue as it is then, with its counters.
    pub(super) fn tell_changed(
        &mut self,
        slot: usize,
        queue: QueueUid,
        (to, request): (Origin, u64),
        answer: Option<Outcome>,
    ) {
        let waiting = Waiting {
            queue,
            to,
            request,
            answer,
        };
        let group = &mut self.groups[slot];
        if group.queue.is_changing(waiting.queue) {
            group.changes.waiting.push(waiting);
        } else {
            self.answer_change(slot, waiting);
        }
    }

    fn answer_change(&mut self, slot: usize, waiting: Waiting) {
        let Waiting {
            queue,
            to,
            request,
            answer,
        } = waiting;
        match answer {
            Some(outcome) => {
                let stamp = self.stamp(slot);
                self.reply(to, request, Some(stamp), ReplyBody::Outcome(outcome));
            }
            None => self.reply_queue(slot, to, request, queue),
        }
    }

    /// Sends what the groups of partitions have not done yet.
    pub(super) fn drive_changes(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        if !group.queue.has_changes() {
            group.changes.under_way.clear();
            return;
        }
        if !self.groups[slot].serves() || self.stopping() {
            return;
        }
        let group = &self.groups[slot];
        let now = self.now.mono;
        let is_due = |to: &GroupId, index: LogIndex| match group.changes.under_way.get(to) {
            Some(way) if way.home_index == index => way.again.is_some_and(|at| at <= now),
            _ => true,
        };
        let due: Vec<_> = group
            .queue
            .next_changes()
            .filter(|(to, change)| is_due(to, change.home_index))
            .map(|(to, change)| (to, change.clone()))
            .collect();
        for (to, change) in due {
            let home_index = change.home_index;
            let way = UnderWay {
                home_index,
                again: None,
            };
            self.groups[slot].changes.under_way.insert(to, way);
            self.asked.next += 1;
            let id = self.asked.next;
            let question = Question {
                slot,
                group: to,
                home_index,
            };
            self.asked.open.insert(id, question);
            let command = Command {
                session: None,
                op: Op::ChangePartitions(Box::new(change)),
            };
            let body = RequestBody::Command {
                group: to,
                command,
                wait_ms: 0,
            };
            let (from, request) = (Origin::engine(self.config.shard), Request { id, body });
            let shard = shard_of(to, self.config.shards);
            if shard == self.config.shard {
                self.on_request(from, request, None);
            } else {
                self.effects.push(Effect::Forward {
                    to: shard,
                    from,
                    request,
                });
            }
        }
    }

    /// A group answered a change.
    pub(super) fn on_answered(&mut self, reply: &Reply) {
        let Some(question) = self.asked.open.remove(&reply.id) else {
            return;
        };
        let Question {
            slot,
            group,
            home_index,
        } = question;
        let done = matches!(reply.body, ReplyBody::Outcome(Outcome::Done));
        let told = done
            && self.groups[slot].serves()
            && !self.stopping()
            && self.propose_own(slot, Op::PartitionsChanged { group, home_index }, None);
        let under_way = &mut self.groups[slot].changes.under_way;
        if let Some(way) = under_way.get_mut(&group)
            && way.home_index == home_index
            && !told
        {
            way.again = Some(self.now.mono.plus(TRY_AGAIN));
        }
        self.mark(slot);
    }

    /// An entry was applied: tells the clients whose queues every group has changed.
    pub(super) fn answer_changed(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        if group.changes.waiting.is_empty() {
            return;
        }
        let queue = &group.queue;
        let (waiting, told): (Vec<_>, Vec<_>) = group
            .changes
            .take_waiting()
            .into_iter()
            .partition(|waiting| queue.is_changing(waiting.queue));
        group.changes.waiting = waiting;
        for waiting in told {
            self.answer_change(slot, waiting);
        }
    }
}
