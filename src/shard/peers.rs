//! Groups with several voters: what their members say to each other, and when.
//!
//! ```text
//!   PeerMessages ─> step ─┐                      ┌─> at once, if no vote is on its way to the disk
//!   PeerLost ─────> died ─┼─> Raft ─> messages ──┤
//!   a tick ───────> tick ─┘            promises ─┴─> when what they speak of is durable
//!                                                     └─> one outbox a node ─> SendPeer
//! ```
//!
//! Shard 0 tells the other nodes that this one is there, and notices when one of them is silent: one
//! beat a pair of nodes, whatever the number of groups.
//!
//! ```text
//!   groups x followers heartbeats          nodes x nodes beats
//!     g1: n1 ─> n2, n1 ─> n3                  n1 <─> n2
//!     g2: n2 ─> n1, n2 ─> n3        ──>       n1 <─> n3
//!     ...                                     n2 <─> n3
//! ```
//!
//! A group at rest is not ticked and says nothing: it costs nothing, however many there are. What wakes
//! it is a proposal, a message, or the loss of a node.
//!
//! # Roles
//!
//! A member that begins to lead starts every timeout of its sessions in full and goes on from the
//! last stamp in the log, so that no lease ends by a change of leaders. One that leads no more tells
//! everybody who waits that it cannot know what becomes of their requests.
//!
//! Deliberately absent: connections. The driver tells of those that broke, and of processes that are
//! proved to be dead.

use super::clock::GroupClock;
use super::effect::Effect;
use super::engine::ShardEngine;
use super::group::Phase;
use super::input::{Loss, Peer};
use super::liveness::Liveness;
use super::placement::shard_of;
use super::requests::Refusal;
use super::wall::HeardClock;
use crate::base::code::Code;
use crate::base::ids::ShardId;
use crate::base::limits::{BEAT_MS, HEIR_WAIT_MS, REST_AFTER_MS, SILENT_MS, TICK_MS};
use crate::base::units::{Monotonic, WallTime};
use crate::raft::message::{Body, Message, Voter};
use crate::raft::role::Role;
use crate::wal::writer::Ticket;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What the groups of a shard have to say, and when.
#[derive(Default)]
pub(super) struct Peers {
    /// By receiver, in the order in which it was said.
    outbox: BTreeMap<Voter, Vec<Message>>,
    /// Checkpoints on their way, behind all else.
    bulk: BTreeMap<Voter, Vec<Message>>,
    /// What waits for the disk, by the batch that it waits for.
    held: BTreeMap<Ticket, Vec<Message>>,
    /// Slots that are ticked.
    awake: BTreeSet<usize>,
    next_tick: Option<Monotonic>,
    /// Slots that wait for the heir of a leader that died.
    stand_in: BTreeSet<usize>,
    stand_in_at: Option<Monotonic>,
    /// The other members of the cluster.
    members: BTreeSet<Voter>,
    /// Those of them that shall get no lead.
    draining: BTreeSet<Voter>,
    /// Those that are watched; nobody on all shards but the first.
    nodes: BTreeMap<Voter, Watched>,
    next_beat: Option<Monotonic>,
    /// What the other nodes said of themselves.
    known: BTreeMap<Voter, Peer>,
    /// Those of them that were lost, and have said nothing since.
    away: BTreeSet<Voter>,
}

/// Another node, watched.
struct Watched {
    heard: Monotonic,
    is_silent: bool,
    clock: HeardClock,
}

impl Watched {
    fn new(now: Monotonic) -> Self {
        Self {
            heard: now,
            is_silent: false,
            clock: HeardClock::default(),
        }
    }
}

impl Peers {
    /// The other members of the cluster are these from now on; whether they are watched here.
    pub(super) fn set_members(
        &mut self,
        members: impl Iterator<Item = Voter>,
        watches: bool,
        now: Monotonic,
    ) {
        self.members = members.collect();
        let watched = self.members.iter().filter(|_| watches);
        let watched = watched.map(|member| {
            let known = self.nodes.remove(member);
            (*member, known.unwrap_or_else(|| Watched::new(now)))
        });
        self.nodes = watched.collect();
        self.next_beat = (!self.nodes.is_empty()).then(|| self.next_beat.unwrap_or(now));
    }

    /// The clocks of the other nodes that are not silent, in milliseconds ahead of this machine's boot
    /// clock.
    pub(super) fn clocks(&self) -> impl Iterator<Item = (Voter, i64)> {
        let there = self.nodes.iter().filter(|(_, node)| !node.is_silent);
        there.filter_map(|(voter, node)| Some((*voter, node.clock.ahead_ms()?)))
    }

    /// A node shall get no lead, or may again.
    pub(super) fn set_drains(&mut self, node: Voter, on: bool) {
        if on {
            self.draining.insert(node);
        } else {
            self.draining.remove(&node);
        }
    }

    /// Whether a node shall get no lead.
    pub(super) fn drains(&self, node: &Voter) -> bool {
        self.draining.contains(node)
    }

    /// What a node that has said hello said of its zone.
    pub(super) fn zone(&self, node: &Voter) -> Option<&String> {
        self.known.get(node).map(|peer| &peer.zone)
    }

    /// Whether a node may answer: it has said hello, and was not lost since.
    pub(super) fn is_there(&self, node: &Voter) -> bool {
        self.known.contains_key(node) && !self.away.contains(node)
    }

    /// The other members of the cluster.
    pub(super) fn members(&self) -> &BTreeSet<Voter> {
        &self.members
    }

    /// Sends now, or once the batch is durable.
    fn send(&mut self, messages: &mut Vec<Message>, after: Ticket, durable: Ticket) {
        if messages.is_empty() {
            return;
        }
        if after <= durable {
            self.post(messages.drain(..));
        } else {
            self.held.entry(after).or_default().append(messages);
        }
    }

    fn post(&mut self, messages: impl Iterator<Item = Message>) {
        for message in messages {
            self.outbox.entry(message.to).or_default().push(message);
        }
    }

    /// Sends what promises nothing.
    pub(super) fn send_now(&mut self, message: Message) {
        self.post(std::iter::once(message));
    }

    /// Sends once all else is said.
    pub(super) fn send_last(&mut self, message: Message) {
        let bulk = self.bulk.entry(message.to).or_default();
        bulk.push(message);
    }

    /// Batches are durable up to here.
    pub(super) fn durable(&mut self, ticket: Ticket) {
        while let Some(first) = self.held.first_entry()
            && *first.key() <= ticket
        {
            let messages = first.remove();
            self.post(messages.into_iter());
        }
    }

    /// When it wants a turn although nothing happened.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        let tick = self.next_tick.filter(|_| !self.awake.is_empty());
        let times = [tick, self.stand_in_at, self.next_beat];
        times.into_iter().flatten().min()
    }

    /// The newest version of the job machine that all these nodes can apply; `None` until each of them
    /// has said so.
    pub(super) fn machine_version_max<'a>(
        &self,
        nodes: impl Iterator<Item = &'a Voter>,
    ) -> Option<u16> {
        let of = |node| Some(self.known.get(node)?.machine_version_max);
        let versions: Option<Vec<u16>> = nodes.map(of).collect();
        Some(versions?.into_iter().min().unwrap_or(u16::MAX))
    }

    /// Groups that are not at rest.
    pub(super) fn awake(&self) -> usize {
        self.awake.len()
    }

    pub(super) fn is_awake(&self, slot: usize) -> bool {
        self.awake.contains(&slot)
    }
}

impl ShardEngine {
    /// Another node sent messages.
    pub(super) fn on_peer_messages(&mut self, messages: Vec<Message>) {
        for message in messages {
            if self.peers.away.remove(&message.from) {
                // It may have put a group to rest, and is to be watched again.
                match self.config.shard {
                    ShardId(0) => self.on_peer_heard(message.from),
                    _ => self.effects.push(Effect::TellHeard { peer: message.from }),
                }
            }
            let group = message.group;
            let is_here = u32::from(group.0) < self.config.groups
                && shard_of(group, self.config.shards) == self.config.shard;
            let slot = is_here.then(|| self.slot(group));
            let is_of_use = |slot: &usize| {
                !self.groups[*slot].is_halted() || matches!(message.body, Body::QueueChange(_))
            };
            let slot = slot.filter(is_of_use);
            let taken = slot.map(|slot| self.groups[slot].raft.step(message));
            match (slot, taken) {
                (Some(slot), Some(Ok(()))) => {
                    self.on_checkpoints(slot);
                    self.on_changes(slot);
                    self.mark(slot);
                }
                _ => self.counters.peer_messages_refused_total += 1,
            }
        }
    }

    /// Another node said hello.
    pub(super) fn on_peer_known(&mut self, peer: Peer) {
        let voter = peer.voter;
        self.peers.known.insert(voter, peer);
        self.peers.away.remove(&voter);
        self.put_off_balance();
        for slot in 0..self.groups.len() {
            self.groups[slot].raft.found_peer(voter);
            // A version may be raised now.
            self.mark(slot);
        }
    }

    /// Another node is there.
    pub(super) fn on_peer_beat(&mut self, from: Voter, wall: WallTime) {
        self.on_peer_heard(from);
        if let Some(node) = self.peers.nodes.get_mut(&from) {
            node.clock.hear(self.now.mono, wall);
        }
    }

    /// Another node was heard: if it falls silent from here on, all are told again.
    pub(super) fn on_peer_heard(&mut self, peer: Voter) {
        if let Some(node) = self.peers.nodes.get_mut(&peer) {
            node.heard = self.now.mono;
            node.is_silent = false;
        }
    }

    /// Tells the other nodes that this one is there, and looks for those that are silent. This node may
    /// have slept itself: what was said meanwhile is heard first, in the time of one beat.
    pub(super) fn beat_nodes(&mut self) {
        let now = self.now.mono;
        let Some(at) = self.peers.next_beat.filter(|at| *at <= now) else {
            return;
        };
        let beat = Duration::from_millis(BEAT_MS);
        let slept = now.since(at);
        self.peers.next_beat = Some(now.plus(beat));
        for (peer, node) in &mut self.peers.nodes {
            self.effects.push(Effect::SendBeat { to: peer.node });
            if slept > beat {
                node.heard = node.heard.plus(slept);
            }
            let is_late = node.heard.plus(Duration::from_millis(SILENT_MS)) <= now;
            if is_late && !std::mem::replace(&mut node.is_silent, true) {
                self.effects.push(Effect::TellSilent { peer: *peer });
            }
        }
        self.tell_clocks();
    }

    /// Another node is not what it was.
    pub(super) fn on_peer_lost(&mut self, peer: Voter, loss: Loss) {
        self.peers.away.insert(peer);
        self.installs_lost(peer, loss);
        for slot in 0..self.groups.len() {
            let raft = &mut self.groups[slot].raft;
            if !raft.members().contains(peer) {
                continue;
            }
            match loss {
                Loss::Broken => raft.lost_peer(peer),
                Loss::Silent => raft.fell_silent(peer),
                Loss::Dead => {
                    raft.lost_peer(peer);
                    if raft.died(peer) {
                        self.peers.stand_in.insert(slot);
                    }
                }
            }
            self.mark(slot);
        }
        if !self.peers.stand_in.is_empty() {
            let at = self.now.mono.plus(Duration::from_millis(HEIR_WAIT_MS));
            self.peers.stand_in_at.get_or_insert(at);
        }
    }

    /// Time goes on for the groups that are not at rest. After a long pause by one tick only: what the
    /// others have said meanwhile is heard first.
    pub(super) fn tick_groups(&mut self) {
        let now = self.now.mono;
        if self.peers.stand_in_at.is_some_and(|at| at <= now) {
            self.peers.stand_in_at = None;
            for slot in std::mem::take(&mut self.peers.stand_in) {
                self.groups[slot].raft.stand_in();
                self.mark(slot);
            }
        }
        let tick = Duration::from_millis(TICK_MS);
        let at = *self.peers.next_tick.get_or_insert(now.plus(tick));
        if at > now {
            return;
        }
        self.peers.next_tick = Some(at.plus(tick).max(now));
        let awake: Vec<usize> = self.peers.awake.iter().copied().collect();
        for slot in awake {
            let group = &mut self.groups[slot];
            group.raft.tick();
            let rest = group
                .last_proposed
                .plus(Duration::from_millis(REST_AFTER_MS));
            if rest <= now {
                group.raft.rest();
            }
            self.mark(slot);
        }
    }

    /// What Raft wants said goes to the outboxes, or waits for the disk.
    pub(super) fn say(
        &mut self,
        slot: usize,
        messages: &mut Vec<Message>,
        promises: &mut Vec<Message>,
    ) {
        let group = &self.groups[slot];
        let durable = self.wal.durable_ticket();
        self.peers.send(messages, group.vote_ticket, durable);
        self.peers.send(promises, group.promise_ticket, durable);
    }

    /// A group rests or does not, leads or leads no more.
    pub(super) fn note_role(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        let is_alone = group.raft.is_alone();
        if group.raft.is_quiet() || is_alone || group.is_halted() {
            if self.peers.awake.remove(&slot) {
                self.trim_tail(slot, 0);
            }
        } else {
            self.peers.awake.insert(slot);
        }
        self.counters.raft_groups_awake = self.peers.awake() as u64;
        let group = &mut self.groups[slot];
        let recovers = group.raft.is_recovering() && !group.is_halted();
        if recovers != std::mem::replace(&mut group.recovers, recovers) {
            let recovering = &mut self.counters.raft_groups_recovering;
            *recovering = if recovers {
                *recovering + 1
            } else {
                *recovering - 1
            };
        }
        let leader = group.raft.leader();
        let is_news = std::mem::replace(&mut group.led_by, leader) != leader;
        let leads = group.serves();
        match (std::mem::replace(&mut group.leads, leads), leads) {
            (false, true) => self.take_lead(slot),
            (true, false) => self.lose_lead(slot),
            // What others lead counts as well: it may be this node's turn to give now.
            _ if is_news => {}
            _ => return,
        }
        self.put_off_balance();
    }

    fn take_lead(&mut self, slot: usize) {
        self.counters.raft_leader_changes_total += 1;
        let now = self.now.mono;
        let group = &mut self.groups[slot];
        group.clock = GroupClock::start(group.raft.last_time(), now);
        (group.last_proposed, group.members_since) = (now, now);
        for session in self.groups[slot].queue.sessions() {
            self.watch_session(slot, session.id, None);
        }
    }

    fn lose_lead(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        let why = format!("this node leads group {} no more", group.id);
        group.liveness = Liveness::default();
        (group.advancing, group.setting_offset, group.raising) = (false, false, false);
        group.proposed = super::group::Proposed::default();
        if matches!(group.phase, Phase::Serving) {
            self.refuse_all(slot, Code::NotLeader, &why);
            self.round_without(slot);
        }
    }

    /// Hands the outboxes to the driver.
    pub(super) fn flush_peers(&mut self) {
        let mut outbox = std::mem::take(&mut self.peers.outbox);
        for (to, mut messages) in std::mem::take(&mut self.peers.bulk) {
            outbox.entry(to).or_default().append(&mut messages);
        }
        for (to, messages) in outbox {
            self.effects.push(Effect::SendPeer { to, messages });
        }
    }

    /// Who leads a group that this node does not, as far as is known.
    pub(super) fn not_leader(&self, slot: usize) -> Refusal {
        let group = &self.groups[slot];
        let leader = group.raft.leader();
        let Some(leader) = leader.filter(|_| group.raft.role() != Role::Leader) else {
            let message = format!("group {} has no leader that is ready yet", group.id);
            return Refusal::not_leader(message, None);
        };
        let message = format!("group {} is led by node {}", group.id, leader.node);
        let addresses = self.peers.known.get(&leader);
        let addresses = addresses.map_or(&[][..], |peer| &peer.client_addresses);
        let shards = u16::try_from(addresses.len()).unwrap_or(u16::MAX).max(1);
        let address = addresses.get(usize::from(shard_of(group.id, shards).0));
        Refusal::not_leader(message, address.cloned())
    }
}
