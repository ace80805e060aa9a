//! A checkpoint for a node that lacks more than the log holds in memory.
//!
//! The state is frozen when it is asked for, which costs a pointer a tree; pages, each behind the bodies of
//! its jobs, are made a part at a time, when there is room for it on the way. What is not in memory is read
//! for it, from files that stay as long. Any member can do that, whoever leads:
//! what it has applied is committed.
//!
//! A leader keeps the log from there on until the follower has caught up: else it would need another
//! checkpoint as soon as it has this one, for ever. If the log grows faster than the checkpoint gets
//! there, it is not kept any more ([`CHECKPOINT_TAIL_BYTES_MAX`]).

use super::effect::{CheckpointFile, Effect, PageOrder, Reader};
use super::engine::ShardEngine;
use super::group::Phase;
use super::installs::FORGET_AFTER;
use crate::base::checksum::{Hash128, Hasher128};
use crate::base::ids::LogIndex;
use crate::base::limits::{
    CHECKPOINT_PART_BYTES, CHECKPOINT_PARTS_IN_FLIGHT, CHECKPOINT_TAIL_BYTES_MAX,
};
use crate::base::units::Monotonic;
use crate::queue::view::{BodyLocation, StoredPage};
use crate::queue::{AbsentPage, FrozenState, LeftFiles, PageWant, Piece, StateWriter, StoredPart};
use crate::raft::message::{Checkpoint, Voter};
use crate::raft::progress::Progress;
use crate::raft::role::Role;
use crate::snapshot::layout::GroupMeta;
use crate::wire::checkpoint::{CheckpointHead, CheckpointItem, encode_item};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// A checkpoint that was not asked for since then lets another go to the same node.
const BUSY_FOR: Duration = Duration::from_secs(5);

/// A checkpoint on its way to another node.
pub(super) struct Sending {
    id: u64,
    /// The last entry that is in it.
    index: LogIndex,
    /// What makes the parts; `None` once all have arrived.
    stream: Option<Stream>,
    /// Parts that were made and are not known to have arrived.
    parts: VecDeque<(Bytes, Option<Hash128>)>,
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
    /// This part leaves: its number, its bytes, and of the last one the hash of all.
    Part(u64, Bytes, Option<Hash128>),
    /// This is read, without which nothing more can be made.
    Read(Vec<AbsentPage>),
}

/// Makes the parts.
struct Stream {
    writer: StateWriter,
    /// What it reads from, if it is not in memory: none of them may go.
    files: Arc<LeftFiles>,
    /// Pages are being read without which nothing more can be made.
    reads: bool,
    is_ended: bool,
    /// What is made and in no part yet.
    made: BytesMut,
    hasher: Hasher128,
}

impl Stream {
    fn new(meta: &GroupMeta, state: &FrozenState) -> Self {
        let head = CheckpointHead {
            index: meta.index,
            term: meta.term,
            time: meta.time,
            machine_version: meta.machine_version,
            wall_offset_ms: meta.wall_offset_ms,
            members: meta.members.clone(),
        };
        let mut made = BytesMut::new();
        encode_item(&CheckpointItem::Head(head), &mut made);
        let files = Arc::new(state.files());
        Self {
            writer: state.whole(&files),
            files,
            reads: false,
            is_ended: false,
            made,
            hasher: Hasher128::default(),
        }
    }

    /// The next part, of which the last one has the hash; or what must be read first, or is being read.
    fn next_part(&mut self) -> Result<(Bytes, Option<Hash128>), Vec<AbsentPage>> {
        // One byte more than the part takes: whether it is the last is known then.
        while self.made.len() <= CHECKPOINT_PART_BYTES && !self.is_ended {
            if self.reads {
                return Err(Vec::new());
            }
            self.make()?;
        }
        let len = self.made.len().min(CHECKPOINT_PART_BYTES);
        let part = self.made.split_to(len).freeze();
        self.hasher.update(&part);
        let is_last = self.made.is_empty() && self.is_ended;
        Ok((part, is_last.then(|| self.hasher.finish())))
    }

    /// Makes the next item.
    fn make(&mut self) -> Result<(), Vec<AbsentPage>> {
        // Places are not sent.
        let nowhere = StoredPage::nowhere(Hash128::default());
        match self.writer.next_piece() {
            None => self.is_ended = true,
            Some(Piece::Pause) => {}
            Some(Piece::Read(absent)) => {
                self.reads = true;
                return Err(absent);
            }
            Some(Piece::Body { job, body }) => {
                let mut bytes = Vec::with_capacity(body.encoded_len());
                body.encode_into(&mut bytes);
                encode_item(&CheckpointItem::Body(job, bytes.into()), &mut self.made);
                self.writer.body_placed(job, BodyLocation::NOWHERE);
            }
            Some(Piece::Page { key, bytes, .. }) => {
                encode_item(&CheckpointItem::Page(key, bytes), &mut self.made);
                self.writer.placed(nowhere);
            }
            Some(Piece::Node { .. }) => self.writer.placed(nowhere),
        }
        Ok(())
    }
}

impl Sending {
    /// Files that it reads from.
    pub(super) fn files(&self) -> impl Iterator<Item = CheckpointFile> {
        let files = self.stream.iter().map(|stream| &stream.files);
        files.flat_map(|files| {
            let runs = files.runs.iter().map(|file| CheckpointFile::Run(*file));
            let payloads = files.payloads.iter();
            runs.chain(payloads.map(|file| CheckpointFile::Payload(*file)))
        })
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
        // The last part was made, and is not among those that are missing.
        let is_last = |stream: &Stream| stream.is_ended && stream.made.is_empty();
        if self.parts.is_empty() && self.stream.as_ref().is_some_and(is_last) {
            self.stream = None;
        }
        true
    }

    /// The next part that may leave, with its number; or what must be read first.
    fn next_to_send(&mut self) -> Option<Next> {
        if self.next >= self.first + CHECKPOINT_PARTS_IN_FLIGHT {
            return None;
        }
        let place = usize::try_from(self.next - self.first).expect("a few are on their way");
        if place == self.parts.len() {
            let is_ended = self.parts.back().is_some_and(|(_, hash)| hash.is_some());
            let stream = self.stream.as_mut().filter(|_| !is_ended)?;
            let part = match stream.next_part() {
                Ok(part) => part,
                Err(absent) => return (!absent.is_empty()).then_some(Next::Read(absent)),
            };
            self.bytes += part.0.len();
            self.parts.push_back(part);
        }
        let (bytes, hash) = self.parts[place].clone();
        let number = self.next;
        self.next += 1;
        Some(Next::Part(number, bytes, hash))
    }
}

impl ShardEngine {
    /// Another member wants parts of a checkpoint above an index. What cannot be is ignored: it asks
    /// again, or for another.
    pub(super) fn on_get(
        &mut self,
        slot: usize,
        to: Voter,
        (id, above): (u64, LogIndex),
        next: u64,
        again: bool,
    ) {
        let known = self.installs.sending.get(&(to, slot));
        if known.is_none_or(|sending| sending.id != id) {
            if next != 0 || !self.may_send(slot, to, above) {
                return;
            }
            let sending = self.freeze_for(slot, id);
            self.installs.sending.insert((to, slot), sending);
        }
        let sending = self.installs.sending.get_mut(&(to, slot));
        let sending = sending.expect("it is known, or was just made");
        if !sending.arrived(next, again) {
            return;
        }
        sending.heard = self.now.mono;
        self.send_parts(slot, to);
    }

    /// Sends what may leave.
    fn send_parts(&mut self, slot: usize, to: Voter) {
        let Some(sending) = self.installs.sending.get_mut(&(to, slot)) else {
            return;
        };
        let group = &self.groups[slot];
        let id = sending.id;
        while let Some(next) = sending.next_to_send() {
            match next {
                Next::Part(number, bytes, hash) => {
                    let part = Checkpoint::Part {
                        id,
                        number,
                        bytes,
                        hash,
                    };
                    self.peers.send_last(group.raft.carry(to, part));
                    self.counters.checkpoint_parts_sent_total += 1;
                }
                Next::Read(absent) => self.effects.push(Effect::LoadPages(PageOrder {
                    group: group.id,
                    wants: absent.into_iter().map(PageWant::only).collect(),
                    reader: Reader::Sending { to, id },
                })),
            }
        }
    }

    /// Pages were read that are to be sent, or cannot be: then others may send a checkpoint, this node
    /// cannot.
    pub(super) fn on_pages_to_send(
        &mut self,
        slot: usize,
        (to, id): (Voter, u64),
        result: Result<Vec<StoredPart>, String>,
    ) {
        let sending = self.installs.sending.get_mut(&(to, slot));
        let sending = sending.filter(|sending| sending.id == id);
        let Some(stream) = sending.and_then(|sending| sending.stream.as_mut()) else {
            return;
        };
        stream.reads = false;
        let taken = result.and_then(|parts| {
            let mut parts = parts.into_iter();
            let taken = parts.try_for_each(|part| stream.writer.read(part));
            taken.map_err(|error| error.to_string())
        });
        if taken.is_err() {
            self.installs.sending.remove(&(to, slot));
            return;
        }
        self.send_parts(slot, to);
    }

    /// Whether a checkpoint may be sent there: one at a time to each node.
    fn may_send(&self, slot: usize, to: Voter, above: LogIndex) -> bool {
        let group = &self.groups[slot];
        let is_busy = |((other, at), sending): (&(Voter, usize), &Sending)| {
            other.node == to.node && *at != slot && sending.is_busy(self.now.mono)
        };
        group.phase == Phase::Serving
            && group.raft.log().applied() > above
            && !self.installs.sending.iter().any(is_busy)
    }

    fn freeze_for(&self, slot: usize, id: u64) -> Sending {
        let group = &self.groups[slot];
        let meta = group.meta();
        Sending {
            id,
            index: meta.index,
            stream: Some(Stream::new(&meta, &group.queue.freeze())),
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
            if matched > sending.matched && matched >= sending.index {
                (sending.matched, sending.heard) = (matched, now);
            }
            let log = raft.log();
            let is_installed = sending.matched >= sending.index;
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
    use crate::base::ids::{GroupId, Incarnation, LogIndex, Partition, QueueUid, Term};
    use crate::base::units::GroupTime;
    use crate::queue::JobQueue;
    use crate::queue::command::{Command, NewJob, Op, QueueSettings};
    use crate::queue::view::ApplyAt;

    /// The lengths of the parts of a group with one job, and whether each has the hash.
    fn parts(payload_len: usize) -> Vec<(usize, bool)> {
        let group = GroupId(0);
        let mut queue = JobQueue::new(group, 0);
        let create = Op::CreateQueue {
            name: "q".to_owned(),
            settings: QueueSettings::default(),
            must_be_new: true,
            groups: 0,
        };
        let job = NewJob {
            payload: vec![1; payload_len].into(),
            ..NewJob::default()
        };
        let enqueue = Op::Enqueue {
            queue: QueueUid::new(group, 1).expect("in range"),
            partition: Partition(0),
            items: vec![job],
        };
        for op in [create, enqueue] {
            let at = ApplyAt {
                index: LogIndex(1),
                time: GroupTime(1),
            };
            queue.apply(at, &Command { session: None, op });
        }
        let meta = GroupMeta {
            group,
            incarnation: Incarnation(1),
            index: LogIndex(2),
            term: Term(1),
            time: GroupTime(1),
            machine_version: 1,
            wall_offset_ms: 0,
            members: Vec::new(),
        };
        let mut stream = Stream::new(&meta, &queue.freeze());
        let mut parts = Vec::new();
        loop {
            let (bytes, hash) = stream.next_part().expect("all is in memory");
            parts.push((bytes.len(), hash.is_some()));
            if hash.is_some() {
                return parts;
            }
        }
    }

    #[test]
    fn no_part_is_empty_wherever_the_stream_ends() {
        let all = |payload_len| parts(payload_len).iter().map(|part| part.0).sum::<usize>();
        for whole in 1..=3 {
            // A byte of payload more is a byte of the stream more here.
            let short = (whole * CHECKPOINT_PART_BYTES).saturating_sub(all(1000)) + 800;
            let missing = whole * CHECKPOINT_PART_BYTES - all(short);
            let parts = parts(short + missing);
            let mut wanted = vec![(CHECKPOINT_PART_BYTES, false); whole];
            wanted[whole - 1].1 = true;
            assert_eq!(parts, wanted);
        }
    }
}
