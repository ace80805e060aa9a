//! Sees that what the home group of a queue decides is done in the groups of its partitions.
//!
//! ```text
//! home group:   create, alter, pause, delete ─> applied ─> outbox in its state
//!                                                              │ one at a time to a group, in log order
//! other group:                       ChangePartitions <────────┘
//! home group:   PartitionsChanged <───── done               ... out of the outbox; who waits is told
//! ```
//!
//! The outbox is replicated state, so a change survives any crash and is asked for again by the next
//! leader; the receiving group knows which it has applied. Here is only what a leader remembers:
//! which change it has asked for, when to ask again, and which clients wait until all groups have done
//! what they asked.
//!
//! The engine of this node that has the other group is asked, as any client asks it, with this engine
//! itself as the origin; `following` there finds who leads. It says *done* or nothing: what is not
//! done is asked for again, less and less often.

use super::effect::Effect;
use super::engine::ShardEngine;
use super::input::Origin;
use super::placement::shard_of;
use super::reads::Held;
use crate::base::ids::{GroupId, LogIndex, QueueUid};
use crate::base::units::Monotonic;
use crate::queue::command::{Command, Op, Outcome, PartitionChange};
use crate::wire::message::{Reply, ReplyBody, Request, RequestBody};
use std::collections::BTreeMap;
use std::time::Duration;

/// A change that is not done is asked for again after this, and after twice as long the next time.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// But not less often than this.
const ASK_AT_LEAST: Duration = Duration::from_secs(1);

/// What the leader of a home group remembers of its changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// By the group that is asked: the change that was asked for last.
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
    /// The number of the request that asks for it.
    request: u64,
    /// When it is asked for again.
    again: Monotonic,
    /// How long after that once more.
    pause: Duration,
}

impl Changes {
    /// Clients that nobody will tell.
    pub(super) fn take_waiting(&mut self) -> Vec<Waiting> {
        std::mem::take(&mut self.waiting)
    }

    /// When a change is to be asked for again.
    pub(super) fn next_try(&self) -> Option<Monotonic> {
        self.under_way.values().map(|way| way.again).min()
    }
}

/// What the engine has asked, itself or another of this node, by the number of the request: the slot of
/// the home group, and the group that is asked. There is one for each change under way.
#[derive(Debug, Default)]
pub(super) struct Questions {
    last: u64,
    open: BTreeMap<u64, (usize, GroupId)>,
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
            None => self.answer_when_here(slot, (to, request), Held::Queue(queue)),
        }
    }

    /// Asks for what the groups of partitions have not done yet.
    pub(super) fn drive_changes(&mut self, slot: usize) {
        let serves = self.groups[slot].serves() && !self.stopping();
        let group = &mut self.groups[slot];
        let mut before = std::mem::take(&mut group.changes.under_way);
        if before.is_empty() && !(serves && group.queue.has_changes()) {
            return;
        }
        let now = self.now.mono;
        let mut due = Vec::new();
        for (to, change) in group.queue.next_changes().filter(|_| serves) {
            let home_index = change.home_index;
            let known = before.get(&to).copied();
            let known = known.filter(|way| way.home_index == home_index);
            if let Some(way) = known.filter(|way| way.again > now) {
                before.remove(&to);
                group.changes.under_way.insert(to, way);
            } else {
                let pause = known.map_or(ASK_AGAIN, |way| (2 * way.pause).min(ASK_AT_LEAST));
                due.push((to, change.clone(), pause));
            }
        }
        for way in before.values() {
            self.questions.open.remove(&way.request);
        }
        for (to, change, pause) in due {
            self.ask_for(slot, to, change, pause);
        }
    }

    fn ask_for(&mut self, slot: usize, group: GroupId, change: PartitionChange, pause: Duration) {
        self.questions.last += 1;
        let id = self.questions.last;
        self.questions.open.insert(id, (slot, group));
        let way = UnderWay {
            home_index: change.home_index,
            request: id,
            again: self.now.mono.plus(pause),
            pause,
        };
        self.groups[slot].changes.under_way.insert(group, way);
        let command = Command {
            session: None,
            op: Op::ChangePartitions(Box::new(change)),
        };
        let body = RequestBody::Command {
            group,
            command,
            wait_ms: 0,
        };
        let (from, request) = (Origin::engine(self.config.shard), Request { id, body });
        let to = shard_of(group, self.config.shards);
        if to == self.config.shard {
            self.on_request(from, request, None);
        } else {
            self.effects.push(Effect::Forward { to, from, request });
        }
    }

    /// An engine of this node answered a change.
    pub(super) fn on_answered(&mut self, reply: &Reply) {
        // Anything else means that it is asked for again.
        if !matches!(reply.body, ReplyBody::Outcome(Outcome::Done)) {
            return;
        }
        let Some((slot, group)) = self.questions.open.remove(&reply.id) else {
            return;
        };
        let way = self.groups[slot].changes.under_way.get(&group);
        let Some(home_index) = way.map(|way| way.home_index) else {
            return;
        };
        // If the group is too busy to take it, it is told again.
        if self.groups[slot].serves() && !self.stopping() {
            self.propose_own(slot, Op::PartitionsChanged { group, home_index }, None);
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
