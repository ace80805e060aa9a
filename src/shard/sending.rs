//! A checkpoint for a node that lacks more than the log holds in memory.
//!
//! The state is frozen when it is asked for, which costs a pointer a tree; what has changed since it was stored
//! is hashed then, some pages a turn. What the state names leaves first; then what the other wants of it, since
//! it has not the same ([`crate::queue::Source`]), a part at a time, when there is room for it on the way. What
//! is not in memory is read for it, from files that stay as long. Any member can do that, whoever leads:
//! what it has applied is committed.
//!
//! A leader keeps the log from there on until the follower has caught up: else it would need another
//! checkpoint as soon as it has this one, for ever. If the log grows faster than the checkpoint gets
//! there, it is not kept any more ([`CHECKPOINT_TAIL_BYTES_MAX`]).

use super::bases::{hash_of_node, named_root, node_bytes};
use super::effect::{CheckpointFile, Effect, PageOrder, Reader, files_of};
use super::engine::ShardEngine;
use super::group::Phase;
use super::installs::FORGET_AFTER;
use super::loading::Unread;
use crate::base::entry::EntryKind;
use crate::base::ids::LogIndex;
use crate::base::limits::{
    CHECKPOINT_PART_BYTES, CHECKPOINT_PARTS_IN_FLIGHT, CHECKPOINT_TAIL_BYTES_MAX,
    CHECKPOINT_WANTS_MAX,
};
use crate::base::units::Monotonic;
use crate::queue::view::PageKey;
use crate::queue::{Answer, FrozenState, PageWant, Source, StoredPart, Wanted};
use crate::raft::message::{Checkpoint, PageWanted, Voter};
use crate::raft::progress::Progress;
use crate::raft::role::Role;
use crate::snapshot::layout::GroupMeta;
use crate::wire::checkpoint::{CheckpointHead, CheckpointItem, encode_item, wanted};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A checkpoint that was not asked for since then lets another go to the same node.
const BUSY_FOR: Duration = Duration::from_secs(5);
/// Pages and nodes that are hashed in one turn.
const HASHED_PER_TURN: usize = 32;
/// Pages and nodes that are read at once.
const READS_MAX: usize = 16;

/// A checkpoint on its way to another node.
pub(super) struct Sending {
    id: u64,
    /// The last entry that is in it.
    index: LogIndex,
    /// What makes the parts; `None` once nothing more is wanted.
    stream: Option<Box<Stream>>,
    /// Parts that were made and are not known to have arrived.
    parts: VecDeque<Bytes>,
    /// The number of the first of them.
    first: u64,
    /// The number of the next to be sent.
    next: u64,
    /// Bytes of all parts so far.
    bytes: usize,
    /// Up to here the follower had the log, when it was looked at last.
    matched: LogIndex,
    /// The log behind it is kept.
    keeps_log: bool,
    /// When it was asked for, or seen to go on, last.
    heard: Monotonic,
}

/// What comes next.
enum Next {
    /// This part leaves: its number, and its bytes.
    Part(u64, Bytes),
    /// This is read, without which nothing more can be made.
    Read(Vec<PageWant>),
}

/// Makes the parts.
struct Stream {
    meta: GroupMeta,
    source: Source,
    /// What is named was made.
    is_named: bool,
    /// What is wanted and not made.
    wants: VecDeque<Wanted>,
    /// How many wants were told.
    told: u64,
    /// What was read for them.
    read: BTreeMap<(PageKey, u8), StoredPart>,
    /// Something is being read.
    reads: bool,
    /// It could not be read the last time.
    failed: bool,
    /// What is made and in no part yet.
    made: BytesMut,
}

/// Why a stream cannot go on.
enum Stuck {
    /// This is to be read first.
    Read(Vec<PageWant>),
    /// Something was wanted that is not there.
    Nonsense,
}

impl Stream {
    fn new(meta: GroupMeta, state: &FrozenState) -> Self {
        Self {
            meta,
            source: Source::new(state),
            is_named: false,
            wants: VecDeque::new(),
            told: 0,
            read: BTreeMap::new(),
            reads: false,
            failed: false,
            made: BytesMut::new(),
        }
    }

    /// Looks at some pages more; once all have their hashes, what is named is made.
    fn prepare(&mut self) {
        if self.is_named || !self.source.prepare(HASHED_PER_TURN, hash_of_node) {
            return;
        }
        self.is_named = true;
        let (meta, names) = (&self.meta, self.source.names());
        let root = named_root(meta, names).hash();
        let count = names.pages.len() + names.trees.len();
        let head = CheckpointHead {
            index: meta.index,
            term: meta.term,
            time: meta.time,
            machine_version: meta.machine_version,
            wall_offset_ms: meta.wall_offset_ms,
            members: meta.members.clone(),
            names: u32::try_from(count).expect("sessions and partitions are few"),
            root: root.expect("what a group has few of is far below 4 GiB"),
        };
        encode_item(&CheckpointItem::Head(head), &mut self.made);
        for (key, hash) in &names.pages {
            encode_item(&CheckpointItem::Name(*key, *hash), &mut self.made);
        }
        for tree in &names.trees {
            encode_item(&CheckpointItem::Tree(*tree), &mut self.made);
        }
    }

    /// Takes wants, the first of which has this number; false if they cannot be.
    fn want(&mut self, from: u64, wants: &[PageWanted]) -> bool {
        for (number, want) in (from..).zip(wants) {
            // What is missing before it is told again.
            if number > self.told {
                return true;
            }
            if number < self.told {
                continue;
            }
            let Some(want) = wanted(want) else {
                return false;
            };
            self.wants.push_back(want);
            self.told += 1;
        }
        self.wants.len() <= CHECKPOINT_WANTS_MAX
    }

    /// The next part; `None` while nothing is wanted.
    fn next_part(&mut self) -> Result<Option<Bytes>, Stuck> {
        while self.made.len() < CHECKPOINT_PART_BYTES && self.is_named {
            let Some(want) = self.wants.front().copied() else {
                break;
            };
            if self.reads {
                return Err(Stuck::Read(Vec::new()));
            }
            let answer = match self.read.remove(&(want.key, want.level)) {
                Some(part) => Source::of_part(&want, &part),
                None => Some(self.source.answer(&want)),
            };
            match answer {
                Some(Answer::Node(branches)) => {
                    let bytes = node_bytes(want.key, want.level, &branches);
                    encode_item(&CheckpointItem::Node(bytes), &mut self.made);
                }
                Some(Answer::Page(bytes, bodies)) => {
                    encode_item(&CheckpointItem::Page(want.key, bytes), &mut self.made);
                    for (slot, body) in bodies {
                        let mut bytes = Vec::with_capacity(body.encoded_len());
                        body.encode_into(&mut bytes);
                        encode_item(&CheckpointItem::Body(slot, bytes.into()), &mut self.made);
                    }
                }
                Some(Answer::Read(_)) => {
                    self.reads = true;
                    return Err(Stuck::Read(self.to_read()));
                }
                Some(Answer::Nothing) | None => return Err(Stuck::Nonsense),
            }
            self.wants.pop_front();
        }
        let len = self.made.len().min(CHECKPOINT_PART_BYTES);
        Ok((len != 0).then(|| self.made.split_to(len).freeze()))
    }

    /// What is to be read for the next wants.
    fn to_read(&self) -> Vec<PageWant> {
        let wants = self.wants.iter().take(READS_MAX);
        let wants = wants.filter(|want| !self.read.contains_key(&(want.key, want.level)));
        let answers = wants.filter_map(|want| match self.source.answer(want) {
            Answer::Read(want) => Some(want),
            Answer::Node(_) | Answer::Page(..) | Answer::Nothing => None,
        });
        answers.collect()
    }

    /// Parts were read. Those above pages that are wanted are of no more use. False if what is wanted next is
    /// not among them: it does not exist, and would be read again for ever.
    fn take(&mut self, parts: Vec<StoredPart>) -> bool {
        (self.reads, self.failed) = (false, false);
        for part in parts {
            let place = (part.at.key, part.at.level);
            if self
                .wants
                .iter()
                .any(|want| (want.key, want.level) == place)
            {
                self.read.insert(place, part);
            }
        }
        let is_read = |want: &Wanted| self.read.contains_key(&(want.key, want.level));
        self.wants.front().is_none_or(is_read)
    }
}

/// What is asked of who sends a checkpoint.
pub(super) struct Get<'a> {
    pub(super) id: u64,
    pub(super) above: LogIndex,
    pub(super) next: u64,
    pub(super) again: bool,
    pub(super) wants_from: u64,
    pub(super) wants: &'a [PageWanted],
    pub(super) done: bool,
}

impl Sending {
    /// Files that it reads from.
    pub(super) fn files(&self) -> impl Iterator<Item = CheckpointFile> {
        let streams = self.stream.iter();
        streams.flat_map(|stream| files_of(stream.source.files()))
    }

    /// Whether the next step can be made at once.
    pub(super) fn wants_a_turn(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| !stream.is_named)
    }

    /// When it is forgotten if nothing more is heard of it.
    pub(super) fn forget_at(&self) -> Monotonic {
        self.heard.plus(FORGET_AFTER)
    }

    /// Whether it keeps others from going to the same node. Who still wants it asks more often.
    fn is_busy(&self, now: Monotonic) -> bool {
        self.stream.is_some() && self.heard.plus(BUSY_FOR) > now
    }

    /// All before `next` has arrived, and what was sent behind it is lost if it is asked for `again`.
    /// False if that cannot be.
    fn arrived(&mut self, next: u64, again: bool) -> bool {
        if !(self.first..=self.next).contains(&next) {
            return false;
        }
        while self.first < next {
            self.parts.pop_front();
            self.first += 1;
        }
        if again {
            self.next = next;
        }
        true
    }

    /// The next part that may leave, with its number; or what must be read first.
    fn next_to_send(&mut self) -> Result<Option<Next>, Stuck> {
        if self.next >= self.first + CHECKPOINT_PARTS_IN_FLIGHT {
            return Ok(None);
        }
        let place = usize::try_from(self.next - self.first).expect("a few are on their way");
        if place == self.parts.len() {
            let Some(stream) = self.stream.as_mut() else {
                return Ok(None);
            };
            match stream.next_part() {
                Ok(Some(part)) => {
                    self.bytes += part.len();
                    self.parts.push_back(part);
                }
                Ok(None) => return Ok(None),
                Err(Stuck::Read(wants)) => {
                    return Ok((!wants.is_empty()).then_some(Next::Read(wants)));
                }
                Err(stuck) => return Err(stuck),
            }
        }
        let bytes = self.parts[place].clone();
        let number = self.next;
        self.next += 1;
        Ok(Some(Next::Part(number, bytes)))
    }
}

impl ShardEngine {
    /// Another member wants a checkpoint above an index, and of that what it says. What cannot be is ignored:
    /// it asks again, or for another.
    pub(super) fn on_get(&mut self, slot: usize, to: Voter, get: &Get<'_>) {
        let known = self.installs.sending.get(&(to, slot));
        if known.is_none_or(|sending| sending.id != get.id) {
            if get.next != 0 || get.done {
                return;
            }
            if !self.may_send(slot, to, get.above) {
                return self.go_beyond(slot, get.above);
            }
            let sending = self.freeze_for(slot, get.id);
            self.installs.sending.insert((to, slot), sending);
        }
        let sending = self.installs.sending.get_mut(&(to, slot));
        let sending = sending.expect("it is known, or was just made");
        if !sending.arrived(get.next, get.again) {
            return;
        }
        sending.heard = self.now.mono;
        if get.done {
            sending.stream = None;
            sending.parts.clear();
            sending.first = sending.next;
        }
        let stream = sending.stream.as_mut();
        if stream.is_some_and(|stream| !stream.want(get.wants_from, get.wants)) {
            self.installs.sending.remove(&(to, slot));
            return;
        }
        self.send_parts(slot, to);
    }

    /// Goes on with those that are not ready to be asked what of them is wanted.
    pub(super) fn step_sending(&mut self) {
        let sending = self.installs.sending.iter_mut();
        let mut ready = Vec::new();
        for (place, sending) in sending {
            if let Some(stream) = sending.stream.as_mut().filter(|it| !it.is_named) {
                stream.prepare();
                ready.extend(stream.is_named.then_some(*place));
            }
        }
        for (to, slot) in ready {
            self.send_parts(slot, to);
        }
    }

    /// Sends what may leave.
    fn send_parts(&mut self, slot: usize, to: Voter) {
        let Some(sending) = self.installs.sending.get_mut(&(to, slot)) else {
            return;
        };
        let group = &self.groups[slot];
        let id = sending.id;
        loop {
            match sending.next_to_send() {
                Ok(None) => return,
                Ok(Some(Next::Part(number, bytes))) => {
                    self.counters.checkpoint_parts_sent_total += 1;
                    self.counters.checkpoint_part_bytes_sent_total += bytes.len() as u64;
                    let part = Checkpoint::Part { id, number, bytes };
                    self.peers.send_last(group.raft.carry(to, part));
                }
                Ok(Some(Next::Read(wants))) => self.effects.push(Effect::LoadPages(PageOrder {
                    group: group.id,
                    wants,
                    reader: Reader::Sending { to, id },
                })),
                Err(_) => break,
            }
        }
        self.installs.sending.remove(&(to, slot));
    }

    /// Pages were read that are to be sent, or cannot be. A read may fail in passing; what cannot be read twice
    /// over is damaged, since its files stay: others may send a checkpoint, and this node is mended by one, else
    /// who is behind would be sent the same in vain for ever.
    pub(super) fn on_pages_to_send(
        &mut self,
        slot: usize,
        (to, id): (Voter, u64),
        result: Result<Vec<StoredPart>, Unread>,
    ) {
        let sending = self.installs.sending.get_mut(&(to, slot));
        let sending = sending.filter(|sending| sending.id == id);
        let Some(stream) = sending.and_then(|sending| sending.stream.as_mut()) else {
            return;
        };
        match result {
            Ok(parts) => {
                if !stream.take(parts) {
                    self.installs.sending.remove(&(to, slot));
                    return;
                }
            }
            Err(_) if !stream.failed => (stream.reads, stream.failed) = (false, true),
            Err(unread) => {
                self.installs.sending.remove(&(to, slot));
                if self.groups[slot].phase == Phase::Serving && self.can_mend(slot) {
                    self.mend(slot, unread.parts());
                }
                return;
            }
        }
        self.send_parts(slot, to);
    }

    /// Who asks has as much as there is, and cannot read it. One entry more is ahead of that.
    fn go_beyond(&mut self, slot: usize, above: LogIndex) {
        let group = &self.groups[slot];
        if group.serves() && group.raft.log().last_index() <= above {
            // If it cannot be proposed now, it is asked for again.
            let _ = self.propose_kind(slot, EntryKind::Noop);
        }
    }

    /// Whether a checkpoint may be sent there: one at a time to each node.
    fn may_send(&self, slot: usize, to: Voter, above: LogIndex) -> bool {
        let group = &self.groups[slot];
        let is_busy = |((other, at), sending): (&(Voter, usize), &Sending)| {
            other.node == to.node && *at != slot && sending.is_busy(self.now.mono)
        };
        // A node and what is below it must be told alike.
        group.phase == Phase::Serving
            && group.mending.is_none()
            && !self.checkpoints.is_placing()
            && group.raft.log().applied() > above
            && !self.installs.sending.iter().any(is_busy)
    }

    fn freeze_for(&self, slot: usize, id: u64) -> Sending {
        let group = &self.groups[slot];
        let meta = group.meta();
        let index = meta.index;
        Sending {
            id,
            index,
            stream: Some(Box::new(Stream::new(meta, &group.queue.freeze()))),
            parts: VecDeque::new(),
            first: 0,
            next: 0,
            bytes: 0,
            matched: LogIndex(0),
            keeps_log: true,
            heard: self.now.mono,
        }
    }

    /// Above which index a leader must keep its log for those that get a checkpoint, or have got one
    /// and are catching up.
    pub(super) fn entries_needed(&mut self, slot: usize) -> Option<LogIndex> {
        if self.installs.sending.is_empty() {
            return None;
        }
        let tail_bytes = self.tail_bytes();
        let raft = &self.groups[slot].raft;
        let now = self.now.mono;
        let mut needed = None;
        self.installs.sending.retain(|(to, of), sending| {
            if *of != slot || raft.role() != Role::Leader {
                return true;
            }
            let progress = raft.followers().find(|(follower, _)| follower == to);
            let matched = progress.map_or(LogIndex(0), |(_, progress)| Progress::matched(progress));
            // Who mends its state has the whole log, and gets new entries all the while.
            let is_done = sending.stream.is_none();
            if is_done && matched > sending.matched && matched >= sending.index {
                (sending.matched, sending.heard) = (matched, now);
            }
            let log = raft.log();
            let is_installed = is_done && sending.matched >= sending.index;
            if is_installed && !log.has_more_above(sending.matched, tail_bytes / 2) {
                return false;
            }
            sending.keeps_log &= log.held_bytes() <= sending.bytes.max(CHECKPOINT_TAIL_BYTES_MAX);
            if sending.keeps_log {
                let above = sending.matched.max(sending.index);
                needed = Some(needed.map_or(above, |other: LogIndex| other.min(above)));
            }
            true
        });
        needed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{GroupId, Incarnation, Partition, QueueUid, Term};
    use crate::base::units::GroupTime;
    use crate::queue::view::{PageKind, StoredPage};
    use crate::queue::{AbsentPage, JobQueue};

    #[test]
    fn what_was_read_in_vain_is_not_read_again() {
        let group = GroupId(0);
        let meta = GroupMeta {
            group,
            incarnation: Incarnation(1),
            index: LogIndex(1),
            term: Term(1),
            time: GroupTime(0),
            machine_version: 1,
            wall_offset_ms: 0,
            members: Vec::new(),
        };
        let key = |number| PageKey {
            kind: PageKind::Leaf,
            queue: QueueUid::new(group, 1).expect("a small counter"),
            partition: Partition(0),
            number,
        };
        let stored = StoredPage {
            hash: Default::default(),
            file: 1,
            offset: 4096,
            len: 100,
            crc: 0,
        };
        let at = |number, level| AbsentPage {
            key: key(number),
            level,
            stored,
        };
        let mut stream = Stream::new(meta, &JobQueue::new(group, 0).freeze());
        for number in [64, 127] {
            let (key, level, held) = (key(number), 0, 0);
            stream.wants.push_back(Wanted { key, level, held });
        }
        // The node above both has the first page alone.
        let node = || StoredPart::node(at(1, 1), &[]);
        let page = StoredPart::places(at(64, 0), Bytes::new(), Vec::new());
        assert!(stream.take(vec![node(), page]));
        stream.wants.pop_front();
        assert!(!stream.take(vec![node()]));
    }
}
