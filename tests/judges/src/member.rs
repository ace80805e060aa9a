//! A member of a cluster, ours or theirs, behind one face; and its disk, which is the same for both.
//!
//! What a member wants written lies in `writes` until the harness syncs it; a crash leaves the disk. Both
//! kinds start from a disk in the same way: from its newest checkpoint, applying what follows.

use crate::history::History;
use crate::translate::{
    self, GROUP, LIFE, Sender, Wire, conf_change, conf_state, entry_to_ours, entry_to_theirs,
    id_of, members_of, number_of, to_ours, to_theirs, voter, voter_of,
};
use bytes::Bytes;
use raft::eraftpb::{self as pb, MessageType};
use raft::{
    Config, GetEntriesContext, ProgressState, RaftState, RawNode, SnapshotStatus, StateRole,
    Storage, StorageError,
};
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{LogIndex, Term};
use rrq::base::prng::{Prng, mix};
use rrq::base::units::GroupTime;
use rrq::raft::follower::Installed;
use rrq::raft::log::RaftLog;
use rrq::raft::membership::{Change, Membership, Step};
use rrq::raft::message::{Body, Position, Why};
use rrq::raft::node::{Proposal, RaftConfig, RaftNode};
use rrq::raft::ready::{HardState, Ready};
use rrq::raft::role::Role;
use std::collections::VecDeque;

/// Without a leader for so many ticks, and fewer than as many again, a voter campaigns.
pub const ELECTION_TICKS: u32 = 10;
/// A leader sends a heartbeat each so many ticks.
pub const HEARTBEAT_TICKS: u32 = 2;

/// Whose code a member runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `src/raft`.
    Ours,
    /// raft-rs.
    Theirs,
}

/// What a member is configured with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whose code it runs.
    pub kind: Kind,
    /// Its number, from 1.
    pub number: u32,
    /// Seeds its timeouts.
    pub seed: u64,
    /// Of theirs: entries of an append, in bytes, beside its first.
    pub append_bytes: u64,
    /// Of theirs: appends in flight to a follower.
    pub appends_in_flight: usize,
}

/// What a crash leaves.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Term, vote and commit.
    pub hard: HardState,
    /// Where its newest checkpoint is cut.
    pub base: Position,
    /// The members as of it.
    pub members: Membership,
    /// What follows it.
    pub entries: Vec<Entry>,
}

impl Disk {
    fn last(&self) -> u64 {
        self.base.0.0 + self.entries.len() as u64
    }

    /// Whether it holds this entry, or a checkpoint behind it.
    #[must_use]
    pub fn has(&self, index: u64, term: u64) -> bool {
        let Some(place) = index.checked_sub(self.base.0.0 + 1) else {
            return true;
        };
        let entry = self.entries.get(place as usize);
        entry.is_some_and(|entry| entry.term.0 == term)
    }
}

/// Handed out, not durable yet.
#[derive(Default)]
struct Write {
    hard: Option<HardState>,
    checkpoint: Option<(Position, Membership)>,
    entries: Vec<Entry>,
    promises: Vec<Wire>,
    /// Their name for it.
    ready: u64,
}

enum Node {
    Ours(Box<RaftNode>),
    Theirs(Box<RawNode<Store>>),
}

/// A member.
pub struct Member {
    settings: Settings,
    /// The kinds of all members, by number.
    kinds: Vec<Kind>,
    node: Node,
    /// What is durable.
    pub disk: Disk,
    writes: VecDeque<Write>,
    /// Theirs hand out what is committed once.
    to_apply: VecDeque<Entry>,
    members: Membership,
    /// Reads that may go on: the asker's number, the index.
    pub reads: Vec<(u64, u64)>,
    starts: u32,
    ticks: u32,
}

impl Member {
    /// A member with an empty disk; `kinds` are those of all members, by number.
    #[must_use]
    pub fn new(settings: Settings, kinds: &[Kind], members: Membership) -> Self {
        let disk = Disk {
            hard: HardState::default(),
            base: (LogIndex(0), Term(0)),
            members: members.clone(),
            entries: Vec::new(),
        };
        Self {
            node: start(settings, &disk, 0),
            settings,
            kinds: kinds.to_vec(),
            disk,
            writes: VecDeque::new(),
            to_apply: VecDeque::new(),
            members,
            reads: Vec::new(),
            starts: 0,
            ticks: 0,
        }
    }

    /// It loses what is not durable, and starts again.
    pub fn crash(&mut self, history: &mut History) {
        self.starts += 1;
        self.writes.clear();
        self.to_apply.clear();
        self.reads.clear();
        self.members = self.disk.members.clone();
        self.node = start(self.settings, &self.disk, self.starts);
        history.starts(self.settings.number);
    }

    /// Whose code it runs.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.settings.kind
    }

    /// Whether it leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        match &self.node {
            Node::Ours(node) => node.role() == Role::Leader,
            Node::Theirs(node) => node.raft.state == StateRole::Leader,
        }
    }

    /// Whether it asks for votes, or whether there would be any.
    #[must_use]
    pub fn campaigns(&self) -> bool {
        match &self.node {
            Node::Ours(node) => matches!(node.role(), Role::PreCandidate | Role::Candidate),
            Node::Theirs(node) => matches!(
                node.raft.state,
                StateRole::PreCandidate | StateRole::Candidate
            ),
        }
    }

    /// Its term.
    #[must_use]
    pub fn term(&self) -> u64 {
        match &self.node {
            Node::Ours(node) => node.term().0,
            Node::Theirs(node) => node.raft.term,
        }
    }

    /// Its commit mark.
    #[must_use]
    pub fn committed(&self) -> u64 {
        match &self.node {
            Node::Ours(node) => node.log().committed().0,
            Node::Theirs(node) => node.raft.raft_log.committed,
        }
    }

    /// Applied up to here.
    #[must_use]
    pub fn applied(&self) -> u64 {
        match &self.node {
            Node::Ours(node) => node.log().applied().0,
            Node::Theirs(node) => node.raft.raft_log.applied,
        }
    }

    /// The index of its last entry.
    #[must_use]
    pub fn last(&self) -> u64 {
        match &self.node {
            Node::Ours(node) => node.log().last_index().0,
            Node::Theirs(node) => node.raft.raft_log.last_index(),
        }
    }

    /// The term of an entry of its log.
    #[must_use]
    pub fn term_at(&self, index: u64) -> Option<u64> {
        match &self.node {
            Node::Ours(node) => node.log().term_at(LogIndex(index)).map(|term| term.0),
            // It would say 0 of what it does not hold.
            Node::Theirs(node) if index > node.raft.raft_log.last_index() => None,
            Node::Theirs(_) if index < self.base() => None,
            Node::Theirs(node) => node.raft.raft_log.term(index).ok(),
        }
    }

    /// Just below the first entry of its log.
    #[must_use]
    pub fn base(&self) -> u64 {
        match &self.node {
            Node::Ours(node) => node.log().base().0.0,
            Node::Theirs(node) => node.raft.raft_log.first_index() - 1,
        }
    }

    /// The members as of the applied entry.
    #[must_use]
    pub fn members(&self) -> &Membership {
        match &self.node {
            Node::Ours(node) => node.members(),
            Node::Theirs(_) => &self.members,
        }
    }

    /// One tick.
    pub fn tick(&mut self) {
        self.ticks += 1;
        let is_round = self.ticks.is_multiple_of(ELECTION_TICKS);
        self.renew_checkpoint();
        match &mut self.node {
            Node::Ours(node) => node.tick(),
            Node::Theirs(node) if is_installing(node) => {}
            Node::Theirs(node) => {
                if is_round && node.raft.state == StateRole::Leader {
                    // As a checkpoint that does not arrive must be reported, by TiKV too.
                    let progress = node.raft.prs().iter();
                    let waits = progress.filter(|(_, it)| it.state == ProgressState::Snapshot);
                    let waits: Vec<u64> = waits.map(|(id, _)| *id).collect();
                    for id in waits {
                        node.report_snapshot(id, SnapshotStatus::Failure);
                    }
                }
                node.tick();
            }
        }
        self.draw_timeout();
    }

    /// Theirs refuses a checkpoint in which it is no member yet, since theirs is cut when it is asked for:
    /// so a leader has one that knows all its members.
    fn renew_checkpoint(&mut self) {
        let known = &self.disk.members;
        let is_older = self.members().members().any(|it| !known.contains(it));
        if self.leads() && is_older {
            self.compact();
        }
    }

    /// Campaigns at once, as if its leader had asked it to.
    pub fn stand(&mut self) {
        match &mut self.node {
            Node::Ours(node) => node.campaign(Why::Transfer),
            Node::Theirs(node) if is_installing(node) => {}
            Node::Theirs(node) => {
                let mut message = pb::Message::default();
                message.set_msg_type(MessageType::MsgTimeoutNow);
                let taken = node.raft.step(message);
                taken.expect("a campaign is no proposal");
            }
        }
        self.draw_timeout();
    }

    /// Takes a message.
    pub fn step(&mut self, message: Wire) {
        match (&mut self.node, message) {
            // What is refused was late; the history sees what is wrong.
            (Node::Ours(node), Wire::Ours(message)) => drop(node.step(message)),
            (Node::Theirs(node), Wire::Theirs(message))
                if is_installing(node) && message.get_msg_type() == MessageType::MsgTimeoutNow => {}
            (Node::Theirs(node), Wire::Theirs(message)) => drop(node.step(*message)),
            (_, message) => panic!("{message:?} is not in the language of its receiver"),
        }
        self.draw_timeout();
    }

    /// Proposes an entry; its index and term if it leads and takes it.
    pub fn propose(&mut self, text: &str) -> Option<(u64, u64)> {
        let last = self.last();
        match &mut self.node {
            Node::Ours(node) => {
                let proposal = Proposal {
                    kind: EntryKind::Data,
                    time: GroupTime(0),
                    payload: Bytes::copy_from_slice(text.as_bytes()),
                };
                node.propose(proposal).ok()?;
            }
            Node::Theirs(node) if node.raft.state == StateRole::Leader => {
                node.propose(Vec::new(), text.into()).ok()?;
            }
            Node::Theirs(_) => return None,
        }
        Some((last + 1, self.term()))
    }

    /// Proposes a change of the members, if it leads.
    pub fn change(&mut self, steps: Vec<Step>) {
        match &mut self.node {
            // A refusal is as good.
            Node::Ours(node) => drop(node.propose_change(steps)),
            Node::Theirs(node) if node.raft.state == StateRole::Leader => {
                drop(node.propose_conf_change(Vec::new(), conf_change(&steps)));
            }
            Node::Theirs(_) => {}
        }
    }

    /// Hands the lead over, if it leads.
    pub fn transfer(&mut self, to: u32) {
        match &mut self.node {
            Node::Ours(node) => drop(node.transfer_to(voter(to))),
            Node::Theirs(node) if node.raft.state == StateRole::Leader => {
                node.transfer_leader(u64::from(to));
            }
            Node::Theirs(_) => {}
        }
    }

    /// Asks from which index on a read is the latest.
    pub fn read(&mut self, id: u64) {
        match &mut self.node {
            Node::Ours(node) => drop(node.read_index(id)),
            Node::Theirs(node) => node.read_index(id.to_le_bytes().to_vec()),
        }
    }

    /// Takes what it wants done. What may leave at once is returned, the rest waits for
    /// [`Self::write`].
    pub fn ready(&mut self, history: &mut History) -> Vec<Wire> {
        match &mut self.node {
            Node::Ours(_) => self.ready_of_ours(history),
            Node::Theirs(_) => self.ready_of_theirs(history),
        }
    }

    fn ready_of_ours(&mut self, history: &mut History) -> Vec<Wire> {
        let Node::Ours(node) = &mut self.node else {
            return Vec::new();
        };
        let mut ready = Ready::default();
        node.take_ready(&mut ready);
        let reads = ready.reads.drain(..);
        self.reads.extend(reads.map(|(id, index)| (id, index.0)));
        if let Some(first) = ready.entries.first() {
            let before = node.log().term_at(first.index.prev()).map(|term| term.0);
            see_entries(history, self.settings.number, before, &ready.entries);
        }
        let is_empty = ready.hard_state.is_none() && ready.entries.is_empty();
        let (messages, promises) = (ready.messages, ready.promises);
        let mut sent: Vec<Wire> = messages.into_iter().map(|it| self.wire(it)).collect();
        let promises: Vec<Wire> = promises.into_iter().map(|it| self.wire(it)).collect();
        if !is_empty || !promises.is_empty() {
            self.writes.push_back(Write {
                hard: ready.hard_state,
                entries: ready.entries,
                promises,
                ..Write::default()
            });
        }
        // What promises nothing waits only for hard states that are under way.
        let waits = self.writes.iter().any(|write| write.hard.is_some());
        if waits && let Some(write) = self.writes.back_mut() {
            write.promises.append(&mut sent);
        }
        self.look_at_sent(history, &sent);
        sent
    }

    fn wire(&self, message: rrq::raft::message::Message) -> Wire {
        match self.kinds[message.to.node.0 as usize - 1] {
            Kind::Ours => Wire::Ours(message),
            Kind::Theirs => Wire::Theirs(Box::new(to_theirs(message, &self.sender()))),
        }
    }

    /// But for what it only forwards: a read that came to it in the belief that it leads.
    fn wires_of_theirs(&self, messages: Vec<pb::Message>) -> Vec<Wire> {
        let me = u64::from(self.settings.number);
        let own = messages.into_iter().filter(|message| message.from == me);
        own.map(
            |message| match self.kinds[voter_of(message.to).node.0 as usize - 1] {
                Kind::Ours => Wire::Ours(to_ours(message, &self.sender())),
                Kind::Theirs => Wire::Theirs(Box::new(message)),
            },
        )
        .collect()
    }

    fn sender(&self) -> Sender<'_> {
        Sender {
            term: self.term(),
            starts: self.starts,
            checkpoint: (self.disk.base, &self.disk.members),
        }
    }

    fn ready_of_theirs(&mut self, history: &mut History) -> Vec<Wire> {
        let Node::Theirs(node) = &mut self.node else {
            return Vec::new();
        };
        if !node.has_ready() {
            return Vec::new();
        }
        let mut ready = node.ready();
        let reads = ready.take_read_states().into_iter();
        self.reads
            .extend(reads.map(|read| (number_of(&read.request_ctx), read.index)));
        let mut write = Write {
            ready: ready.number(),
            ..Write::default()
        };
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata();
            let base = (LogIndex(metadata.index), Term(metadata.term));
            let members = members_of(metadata.get_conf_state());
            node.mut_store().install(base, &members);
            self.members = members.clone();
            self.to_apply.clear();
            write.checkpoint = Some((base, members));
        }
        write.entries = ready.entries().iter().map(entry_to_ours).collect();
        if let Some(first) = write.entries.first() {
            let before = node.store().term(first.index.0 - 1).ok();
            see_entries(history, self.settings.number, before, &write.entries);
        }
        node.mut_store().append(ready.entries());
        write.hard = ready.hs().map(|hard| HardState {
            term: Term(hard.term),
            vote: (hard.vote != 0).then(|| voter_of(hard.vote)),
            commit: LogIndex(hard.commit),
        });
        let committed = ready.take_committed_entries();
        self.to_apply.extend(committed.iter().map(entry_to_ours));
        let sent = ready.take_messages();
        let promises = ready.take_persisted_messages();
        node.advance_append_async(ready);
        let sent = self.wires_of_theirs(sent);
        write.promises = self.wires_of_theirs(promises);
        self.writes.push_back(write);
        self.look_at_sent(history, &sent);
        sent
    }

    /// So many of the oldest writes become durable; what they promised leaves.
    pub fn write(&mut self, count: usize, history: &mut History) -> Vec<Wire> {
        let count = count.min(self.writes.len());
        let writes: Vec<Write> = self.writes.drain(..count).collect();
        let mut sent = Vec::new();
        for write in writes {
            let disk = &mut self.disk;
            if let Some((base, members)) = write.checkpoint {
                disk.base = base;
                disk.members = members;
                disk.entries.clear();
            }
            for entry in &write.entries {
                // What is in the checkpoint already needs no log.
                if let Some(keep) = entry.index.0.checked_sub(disk.base.0.0 + 1) {
                    disk.entries.truncate(keep as usize);
                    disk.entries.push(entry.clone());
                }
            }
            if let Some(hard) = write.hard {
                disk.hard = hard;
            }
            match &mut self.node {
                Node::Ours(node) => {
                    if let Some(last) = write.entries.last() {
                        node.synced(LIFE, last.index, last.term);
                    }
                }
                Node::Theirs(node) => {
                    node.on_persist_ready(write.ready);
                    let base = disk.base.0.0;
                    if base > node.raft.raft_log.applied && node.raft.raft_log.persisted >= base {
                        node.advance_apply_to(base);
                    }
                }
            }
            self.look_at_sent(history, &write.promises);
            sent.extend(write.promises);
        }
        self.draw_timeout();
        sent
    }

    /// What a member says it has must be on its disk, and a vote is given once.
    fn look_at_sent(&self, history: &mut History, sent: &[Wire]) {
        let me = self.settings.number;
        for wire in sent {
            let to = wire.to();
            match wire {
                Wire::Ours(message) => match &message.body {
                    Body::Appended { matched } => self.assert_has(matched.0, message.term.0),
                    Body::Ballot {
                        pre: false,
                        granted: true,
                        ..
                    } => history.votes(me, message.term.0, to),
                    Body::Canvass { pre: false, .. } => history.votes(me, message.term.0, me),
                    _ => {}
                },
                Wire::Theirs(message) => match message.get_msg_type() {
                    MessageType::MsgAppendResponse if !message.reject => {
                        self.assert_has(message.index, message.term);
                    }
                    MessageType::MsgRequestVoteResponse if !message.reject => {
                        history.votes(me, message.term, to);
                    }
                    MessageType::MsgRequestVote => history.votes(me, message.term, me),
                    _ => {}
                },
            }
        }
    }

    fn assert_has(&self, matched: u64, term: u64) {
        // What was said in an earlier term may have been replaced since.
        if term == self.term() {
            let (me, last) = (self.settings.number, self.disk.last());
            assert!(
                last >= matched,
                "member {me} has {last}, and says {matched}"
            );
        }
    }

    /// Applies the next committed entry; whether there was one.
    pub fn apply_next(&mut self, history: &History) -> bool {
        let Some(entry) = self.next_to_apply() else {
            return false;
        };
        history.applies(self.settings.number, &entry);
        match &mut self.node {
            Node::Ours(node) => node.applied(),
            Node::Theirs(node) => {
                if entry.kind == EntryKind::Conf {
                    self.members = change_theirs(node, &self.members, &entry);
                }
                node.advance_apply_to(entry.index.0);
                self.step_down_if_removed();
            }
        }
        self.draw_timeout();
        true
    }

    fn next_to_apply(&mut self) -> Option<Entry> {
        match &self.node {
            Node::Ours(node) => node.next_committed().cloned(),
            // Its members are those of the checkpoint already.
            Node::Theirs(node) if node.snap().is_some() => None,
            Node::Theirs(_) => self.to_apply.pop_front(),
        }
    }

    /// A leader that is no member any more goes on leading in raft-rs, and panics at its next sync: what to
    /// do about it is left to who uses it (tikv/raft-rs#584; etcd-io/raft#79 is the same). TiKV destroys it.
    fn step_down_if_removed(&mut self) {
        let me = voter(self.settings.number);
        if let Node::Theirs(node) = &mut self.node
            && node.raft.state == StateRole::Leader
            && !self.members.is_voter(me)
        {
            let term = node.raft.term;
            node.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    /// The entries up to what is applied go into a checkpoint.
    pub fn compact(&mut self) {
        let index = self.applied().min(self.disk.last());
        let index = match &self.node {
            Node::Ours(node) => index.min(node.log().stable().0),
            Node::Theirs(node) => index.min(node.raft.raft_log.persisted),
        };
        let Some(count) = index.checked_sub(self.disk.base.0.0) else {
            return;
        };
        // Not held if a checkpoint that reaches farther is on its way to the disk.
        let Some(term) = self.term_at(index) else {
            return;
        };
        if !self.disk.has(index, term) {
            return;
        }
        for entry in self.disk.entries.drain(..count as usize) {
            self.disk.members = changed(&self.disk.members, &entry);
        }
        self.disk.base = (LogIndex(index), Term(term));
        match &mut self.node {
            Node::Ours(node) => node.log_mut().compact(LogIndex(index)),
            Node::Theirs(node) => {
                let members = self.disk.members.clone();
                node.mut_store().compact(index, &members);
            }
        }
    }

    /// Whose checkpoint it was offered and needs; ours only, theirs gets it in a message.
    pub fn take_offer(&mut self) -> Option<u32> {
        match &mut self.node {
            Node::Ours(node) => node.take_offer().map(|(source, _)| source.node.0),
            Node::Theirs(_) => None,
        }
    }

    /// The checkpoint that it was offered arrives; whether it was needed.
    pub fn install(&mut self, base: Position, members: Membership) -> bool {
        let Node::Ours(node) = &mut self.node else {
            return false;
        };
        let is_ahead = node.prepare_install(base);
        if !is_ahead && base.0 > node.log().applied() {
            // It leads, and has all that is in it.
            return false;
        }
        if is_ahead {
            let has_base = |entry: &Entry| (entry.index, entry.term) == base;
            let disk_follows = self.disk.entries.iter().any(has_base);
            let log_follows = node.log().term_at(base.0) == Some(base.1);
            let stays = |follows: bool| move |entry: &Entry| follows && entry.index > base.0;
            self.disk.base = base;
            self.disk.members = members.clone();
            // What does not follow the checkpoint belongs to a log that is gone.
            self.disk.entries.retain(stays(disk_follows));
            for write in &mut self.writes {
                write.entries.retain(stays(log_follows));
            }
        }
        node.installed(Installed {
            base,
            time: GroupTime(0),
            machine_version: 1,
            members,
        });
        is_ahead
    }

    /// Whether it has nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let has_ready = match &self.node {
            Node::Ours(node) => node.has_ready(),
            Node::Theirs(node) => node.has_ready(),
        };
        !has_ready && self.writes.is_empty()
    }

    /// Theirs draws its timeouts from the thread's generator: they are drawn anew from the seed.
    fn draw_timeout(&mut self) {
        if let Node::Theirs(node) = &mut self.node {
            let role = node.raft.state as u64;
            let word = mix(self.settings.seed ^ mix(node.raft.term << 8 | role << 4))
                ^ u64::from(self.settings.number) << 32
                ^ u64::from(self.starts);
            let ticks = u64::from(ELECTION_TICKS);
            let timeout = ticks + Prng::new(word).below(ticks);
            node.raft.set_randomized_election_timeout(timeout as usize);
        }
    }
}

/// Whether a checkpoint is on its way to the disk of one of theirs. It must not campaign meanwhile: it would
/// look through what is committed and not applied yet for changes of the members, finds that part of the log
/// gone, and panics (`hup`; matrixorigin/matrixcube#133 met the same with etcd/raft). So TiKV does not tick
/// it before (`on_raft_base_tick`).
fn is_installing(node: &RawNode<Store>) -> bool {
    node.raft.raft_log.applied < node.store().base.0
}

fn see_entries(history: &mut History, me: u32, before: Option<u64>, entries: &[Entry]) {
    let mut before = before;
    for entry in entries {
        history.holds(me, entry, before);
        before = Some(entry.term.0);
    }
}

/// The members after an entry. What does not fit them changes nothing, here as everywhere.
fn changed(members: &Membership, entry: &Entry) -> Membership {
    if entry.kind != EntryKind::Conf {
        return members.clone();
    }
    let change = Change::decode(&entry.payload);
    let next = change.and_then(|change| members.changed(&change));
    next.unwrap_or_else(|_| members.clone())
}

/// Both must come to the same members.
fn change_theirs(node: &mut RawNode<Store>, members: &Membership, entry: &Entry) -> Membership {
    let next = changed(members, entry);
    let entry = entry_to_theirs(entry);
    let mut change = pb::ConfChangeV2::default();
    let read = protobuf::Message::merge_from_bytes(&mut change, &entry.data);
    read.expect("it was just written");
    let state = node.apply_conf_change(&change);
    match state {
        Ok(state) => assert!(
            members_of(&state) == next,
            "entry {}: theirs comes to {state:?}, ours to {next:?}",
            entry.index
        ),
        Err(error) => assert!(
            next == *members,
            "entry {}: theirs refuses ({error}), ours comes to {next:?}",
            entry.index
        ),
    }
    next
}

fn start(settings: Settings, disk: &Disk, starts: u32) -> Node {
    match settings.kind {
        Kind::Ours => Node::Ours(Box::new(start_ours(settings, disk, starts))),
        Kind::Theirs => Node::Theirs(Box::new(start_theirs(settings, disk))),
    }
}

fn start_ours(settings: Settings, disk: &Disk, starts: u32) -> RaftNode {
    let me = voter(settings.number);
    let config = RaftConfig {
        seed: mix(settings.seed ^ u64::from(settings.number) << 32 ^ u64::from(starts)),
        start: starts,
        election_ticks: ELECTION_TICKS,
        heartbeat_ticks: HEARTBEAT_TICKS,
        ..RaftConfig::new(GROUP, LIFE, me, disk.members.clone())
    };
    assert_eq!(u64::from(starts) << 32, translate::life(starts));
    let log = RaftLog::new(disk.base, disk.entries.clone());
    RaftNode::new(config, disk.hard, log, GroupTime(0))
}

fn start_theirs(settings: Settings, disk: &Disk) -> RawNode<Store> {
    let config = Config {
        election_tick: ELECTION_TICKS as usize,
        heartbeat_tick: HEARTBEAT_TICKS as usize,
        applied: disk.base.0.0,
        max_size_per_msg: settings.append_bytes,
        max_inflight_msgs: settings.appends_in_flight,
        check_quorum: true,
        pre_vote: true,
        ..Config::new(u64::from(settings.number))
    };
    let mut store = Store::default();
    store.install(disk.base, &disk.members);
    let entries: Vec<pb::Entry> = disk.entries.iter().map(entry_to_theirs).collect();
    store.append(&entries);
    store.hard.term = disk.hard.term.0;
    store.hard.vote = disk.hard.vote.map_or(raft::INVALID_ID, id_of);
    store.hard.commit = disk.hard.commit.0.max(disk.base.0.0);
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    RawNode::new(&config, store, &logger).expect("the disk is whole")
}

/// What one of theirs reads its log from: with what is being written, as it demands.
#[derive(Default)]
pub struct Store {
    hard: pb::HardState,
    base: (u64, u64),
    conf: pb::ConfState,
    entries: Vec<pb::Entry>,
}

impl Store {
    fn install(&mut self, base: Position, members: &Membership) {
        self.base = (base.0.0, base.1.0);
        self.conf = conf_state(members);
        self.entries.clear();
    }

    fn append(&mut self, entries: &[pb::Entry]) {
        if let Some(first) = entries.first() {
            let keep = first.index - self.base.0 - 1;
            self.entries.truncate(keep as usize);
            self.entries.extend_from_slice(entries);
        }
    }

    /// Not if a checkpoint that reaches farther is on its way to the disk.
    fn compact(&mut self, index: u64, members: &Membership) {
        if let Some(last) = index.checked_sub(self.base.0 + 1) {
            let term = self.entries[last as usize].term;
            self.entries.drain(..=last as usize);
            self.base = (index, term);
            self.conf = conf_state(members);
        }
    }
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<pb::Entry>> {
        let Some(first) = low.checked_sub(self.base.0 + 1) else {
            return Err(raft::Error::Store(StorageError::Compacted));
        };
        let until = high - self.base.0 - 1;
        let mut entries = self.entries[first as usize..until as usize].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        let Some(place) = index.checked_sub(self.base.0 + 1) else {
            return Err(raft::Error::Store(StorageError::Compacted));
        };
        let entry = self.entries.get(place as usize);
        entry
            .map(|entry| entry.term)
            .ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + self.entries.len() as u64)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<pb::Snapshot> {
        if self.base.0 < request_index {
            return Err(raft::Error::Store(
                StorageError::SnapshotTemporarilyUnavailable,
            ));
        }
        let members = members_of(&self.conf);
        let base = (LogIndex(self.base.0), Term(self.base.1));
        Ok(translate::snapshot(base, &members))
    }
}
