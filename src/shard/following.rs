//! Has done, in the groups of this shard, what the home groups of queues ask of them.
//!
//! ```text
//!   changes (home) ── engine request ──> leads here?  yes: an entry ─────────────> applied ──┐
//!        ^                                 │ no                                              │
//!        │                                 └─ Change ──> who leads: an entry ──> applied     │
//!        │                                                                          │        │
//!        └──────────── done <── applied here too, or Changed came <── Changed ──────┴────────┘
//! ```
//!
//! # Invariants
//!
//! - Nothing is remembered that must not be lost: who asks asks again until it is told, and what was
//!   done is replicated state. So a lost message, a change of leaders of either group, and a crash
//!   delay a change and never lose it; a message that comes twice or late finds it done.
//! - *Done* is said of what is applied alone, so that it is committed.
//! - Who asks is remembered once for each home group and asker, until it is told.
//!
//! A replica that has the change done says so, whether it leads or not. One that neither leads nor has
//! it ignores what another node asks: the asker takes another member the next time.

use super::engine::ShardEngine;
use super::group::{Group, Phase};
use super::input::Origin;
use crate::base::ids::{GroupId, LogIndex, Term};
use crate::queue::MACHINE_VERSION;
use crate::queue::command::{Command, Op, Outcome, PartitionChange};
use crate::raft::message::{QueueChange, Voter};
use crate::wire::command::{decode_command, encode_command};
use crate::wire::message::{ReplyBody, Request, RequestBody};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a group remembers of what is asked of it.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// Who waits to be told that it is done, by home group.
    asking: BTreeMap<GroupId, BTreeMap<Asker, Asked>>,
    /// The last change of each home group that was proposed here, and in which term: one that is on its
    /// way already is not proposed again.
    proposed: BTreeMap<GroupId, (Term, LogIndex)>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asker {
    /// The leader of the home group, which is on this node.
    Here(Origin),
    /// The same on another node.
    There(Voter),
}

/// What was asked last.
#[derive(Clone, Copy, Debug)]
struct Asked {
    home_index: LogIndex,
    /// The number of the request; 0 from another node.
    request: u64,
    /// How often.
    times: usize,
}

impl ShardEngine {
    /// An engine of this node asks for a change.
    pub(super) fn on_engine_request(&mut self, from: Origin, slot: usize, request: Request) {
        let Request { id, body } = request;
        if let RequestBody::Command { command, .. } = body
            && let Op::ChangePartitions(change) = command.op
        {
            self.follow(slot, (Asker::Here(from), id), *change);
        }
    }

    /// What other nodes said about partitions.
    pub(super) fn on_changes(&mut self, slot: usize) {
        for (from, what) in self.groups[slot].raft.take_queue_changes() {
            match what {
                QueueChange::Ask { command } => match self.change_of(slot, &command) {
                    Some(change) => self.follow(slot, (Asker::There(from), 0), change),
                    None => self.counters.peer_messages_refused_total += 1,
                },
                QueueChange::Done { home, home_index } => {
                    self.tell_all(slot, home, |_, asker, asked| {
                        matches!(asker, Asker::Here(_)) && asked.home_index == home_index
                    });
                }
            }
        }
    }

    /// The change that another node asks for; `None` if none can be so.
    fn change_of(&self, slot: usize, command: &Bytes) -> Option<PartitionChange> {
        let Ok(Command { session: None, op }) = decode_command(command, MACHINE_VERSION) else {
            return None;
        };
        let Op::ChangePartitions(change) = op else {
            return None;
        };
        let (group, groups) = (self.groups[slot].id, self.config.groups);
        let home = u32::from(change.home.0);
        let mut numbers = change.partitions.iter();
        let lies_here =
            numbers.all(|number| (home + u32::from(number.0)) % groups == u32::from(group.0));
        (home < groups && lies_here && change.fits(group)).then_some(*change)
    }

    /// Has a change done, and remembers whom to tell.
    fn follow(&mut self, slot: usize, (asker, request): (Asker, u64), change: PartitionChange) {
        let group = &mut self.groups[slot];
        let (home, home_index) = (change.home, change.home_index);
        let before = group.following.take(home, asker);
        let again = before.filter(|before| before.home_index == home_index);
        let times = again.map_or(0, |before| before.times + 1);
        let asked = Asked {
            home_index,
            request,
            times,
        };
        if group.phase == Phase::Serving && group.queue.has_followed(home, home_index) {
            return self.tell(slot, asker, home, asked);
        }
        if group.serves() {
            self.propose_change(slot, change);
        } else if matches!(asker, Asker::Here(_)) {
            self.pass_on(slot, change, times);
        } else {
            return;
        }
        let following = &mut self.groups[slot].following;
        let asking = following.asking.entry(home).or_default();
        asking.insert(asker, asked);
    }

    fn propose_change(&mut self, slot: usize, change: PartitionChange) {
        let group = &self.groups[slot];
        let (home, home_index, term) = (change.home, change.home_index, group.raft.term());
        let is_under_way = group
            .following
            .proposed
            .get(&home)
            .is_some_and(|(of, index)| *of == term && *index >= home_index);
        let can_follow = group.queue.can_follow(&change);
        let op = Op::ChangePartitions(Box::new(change));
        let is_known = op.since() <= group.queue.version();
        if self.stopping() || is_under_way || !is_known || !can_follow {
            return;
        }
        // Too busy now means that it is asked for again.
        if self.propose_own(slot, op, None) {
            let following = &mut self.groups[slot].following;
            following.proposed.insert(home, (term, home_index));
        }
    }

    /// Asks who leads the group, as far as is known here; else one member after the other.
    fn pass_on(&mut self, slot: usize, change: PartitionChange, times: usize) {
        let group = &self.groups[slot];
        let me = self.config.me();
        let leader = group.raft.leader().filter(|_| !group.is_halted());
        let mut members: Vec<Voter> = group.raft.members().members().collect();
        members.retain(|member| *member != me);
        let in_turn = members.get(times % members.len().max(1)).copied();
        let Some(to) = leader.filter(|leader| *leader != me).or(in_turn) else {
            return;
        };
        let command = Command {
            session: None,
            op: Op::ChangePartitions(Box::new(change)),
        };
        let command = encode_command(&command);
        let message = group.raft.tell_of(to, QueueChange::Ask { command });
        self.peers.send_now(message);
        self.counters.partition_changes_sent_total += 1;
    }

    /// A change of a home group was applied: tells who asked for it, or for one before it.
    pub(super) fn answer_followed(&mut self, slot: usize, home: GroupId) {
        self.tell_all(slot, home, |group, _, asked| {
            group.queue.has_followed(home, asked.home_index)
        });
    }

    /// Tells those of whom it holds that what they have asked for is done.
    fn tell_all(
        &mut self,
        slot: usize,
        home: GroupId,
        is_done: impl Fn(&Group, &Asker, &Asked) -> bool,
    ) {
        let group = &self.groups[slot];
        let asking = group.following.asking.get(&home);
        let done: Vec<(Asker, Asked)> = asking
            .into_iter()
            .flatten()
            .filter(|(asker, asked)| is_done(group, asker, asked))
            .map(|(asker, asked)| (*asker, *asked))
            .collect();
        for (asker, asked) in done {
            self.groups[slot].following.take(home, asker);
            self.tell(slot, asker, home, asked);
        }
    }

    fn tell(&mut self, slot: usize, asker: Asker, home: GroupId, asked: Asked) {
        match asker {
            Asker::Here(engine) => {
                let done = ReplyBody::Outcome(Outcome::Done);
                self.reply(engine, asked.request, None, done);
            }
            Asker::There(node) => {
                let home_index = asked.home_index;
                let done = QueueChange::Done { home, home_index };
                let message = self.groups[slot].raft.tell_of(node, done);
                self.peers.send_now(message);
            }
        }
    }
}

impl Following {
    /// Who asked need not be told any more.
    fn take(&mut self, home: GroupId, asker: Asker) -> Option<Asked> {
        let asking = self.asking.get_mut(&home)?;
        let asked = asking.remove(&asker);
        if asking.is_empty() {
            self.asking.remove(&home);
        }
        asked
    }
}
