//! A log on a pretended disk, with a model of what was acknowledged.
//!
//! [`Log`] drives a [`LogWriter`] as an engine would, but decides itself which write reaches the
//! disk and which is reported. [`check`] holds what recovery found against the model: nothing
//! acknowledged is silently missing.

#![allow(dead_code, reason = "each test program uses a part")]

use bytes::Bytes;
use rrq::base::checksum::Hash128;
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{
    ClusterId, DiskId, GroupId, Incarnation, LogIndex, NodeId, ShardId, Term, Voter,
};
use rrq::base::members::Member;
use rrq::base::units::{GroupTime, Lsn};
use rrq::wal::batch::BatchHeader;
use rrq::wal::extent::read_written;
use rrq::wal::record::{BaseRecord, HardState, Record, RootLocation, Vote};
use rrq::wal::recovery::{GroupLogStatus, Recovered, Recovery, RecoveryError};
use rrq::wal::writer::{LogIdentity, LogStart, LogWriter, Ticket, WalWrite};
use std::collections::BTreeMap;

pub(crate) const BLOCK: usize = 4096;
pub(crate) const LIFE: Incarnation = Incarnation(1);

pub(crate) fn identity() -> LogIdentity {
    LogIdentity {
        cluster: ClusterId([0xc1; 16]),
        disk: DiskId([0xd1; 16]),
        shard: ShardId(3),
        wal_set: 1,
    }
}

pub(crate) fn entry(group: u16, index: u64, term: u64, len: usize) -> Entry {
    let seed = [group as u8, index as u8, term as u8];
    let payload = (0..len).map(|at| seed[at % 3].wrapping_add(at as u8));
    Entry {
        term: Term(term),
        index: LogIndex(index),
        time: GroupTime(1000 + index),
        kind: EntryKind::Data,
        machine_version: 1,
        flags: 0,
        crc: 0,
        payload: payload.collect::<Vec<_>>().into(),
    }
    .sealed(GroupId(group), LIFE)
}

pub(crate) fn base(group: u16, index: u64, term: u64) -> BaseRecord {
    BaseRecord {
        group: GroupId(group),
        incarnation: LIFE,
        index: LogIndex(index),
        term: Term(term),
        time: GroupTime(1000 + index),
        root_hash: Hash128::of(&index.to_le_bytes()),
        root: (index > 0).then_some(RootLocation {
            file: 1 << 32 | index,
            offset: 4096,
            len: 100,
        }),
        log_start_lsn: Lsn(0),
        machine_version: 1,
        wall_offset_ms: -5,
        members: vec![Member::voting(Voter {
            node: NodeId(1),
            disk: DiskId([0xd1; 16]),
        })],
    }
}

pub(crate) fn hard(term: u64, node: u32, commit: u64) -> HardState {
    HardState {
        term: Term(term),
        vote: (node > 0).then(|| Vote::new(NodeId(node), DiskId([0xd1; 16]))),
        commit: LogIndex(commit),
    }
}

/// Files by segment number.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) segment_bytes: usize,
    pub(crate) files: BTreeMap<u64, Vec<u8>>,
}

impl Disk {
    pub(crate) fn new(segment_bytes: usize) -> Self {
        Self {
            segment_bytes,
            files: BTreeMap::new(),
        }
    }

    pub(crate) fn write(&mut self, write: &WalWrite) {
        let mut bytes = vec![0xee; write.batch.encoded_len()];
        write.batch.encode_into(&mut bytes);
        let at = write.offset as usize;
        let file = self.files.get_mut(&write.segment).expect("prepared");
        file[at..at + bytes.len()].copy_from_slice(&bytes);
    }

    pub(crate) fn recover_with(&self, proof: Lsn) -> Result<Recovered, RecoveryError> {
        let mut recovery = Recovery::with_segment_bytes(identity(), self.segment_bytes);
        recovery.proof(proof);
        for (number, bytes) in &self.files {
            recovery.feed(*number, Bytes::copy_from_slice(bytes));
        }
        recovery.finish()
    }

    /// What is found if no more is read than a start reads, and how many bytes that are.
    pub(crate) fn recover_in_part(&self, quiet: usize) -> (Recovered, usize) {
        let mut recovery = Recovery::with_segment_bytes(identity(), self.segment_bytes);
        let mut all = 0;
        for (number, bytes) in &self.files {
            let front = Bytes::copy_from_slice(&bytes[..2 * BLOCK]);
            let read = |from: usize, piece: &mut [u8]| -> Result<(), ()> {
                piece.copy_from_slice(&bytes[from..][..piece.len()]);
                all += piece.len();
                Ok(())
            };
            let written = read_written(*number, front, (bytes.len(), quiet), read);
            let written = written.expect("all can be read");
            recovery.feed_front(*number, written, bytes.len());
        }
        (recovery.finish().expect("the log is ours"), all)
    }

    pub(crate) fn recover(&self) -> Recovered {
        self.recover_with(Lsn(0)).expect("the log is ours")
    }
}

/// What was appended for a group, up to some ticket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupModel {
    pub(crate) hard: HardState,
    pub(crate) entries: BTreeMap<u64, Entry>,
    pub(crate) base: u64,
}

pub(crate) type Model = BTreeMap<u16, GroupModel>;

/// A batch that was handed out.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) segment: u64,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) header: BatchHeader,
}

pub(crate) struct Log {
    pub(crate) disk: Disk,
    pub(crate) writer: LogWriter,
    /// Handed out, not completed.
    pub(crate) flying: Vec<WalWrite>,
    pub(crate) batches: Vec<Sealed>,
    /// Files dropped, to be recycled.
    pub(crate) spares: Vec<Vec<u8>>,
    events: Vec<(Ticket, Record)>,
    before: Model,
}

impl Log {
    pub(crate) fn fresh(segment_bytes: usize) -> Self {
        Self::start(Disk::new(segment_bytes), LogStart::fresh(), Model::new(), 7)
    }

    pub(crate) fn start(disk: Disk, start: LogStart, before: Model, seed: u64) -> Self {
        let bytes = disk.segment_bytes;
        Self {
            disk,
            writer: LogWriter::with_segment_bytes(identity(), start, seed, bytes),
            flying: Vec::new(),
            batches: Vec::new(),
            spares: Vec::new(),
            events: Vec::new(),
            before,
        }
    }

    /// A new process after a crash; what recovery found is the model from now on.
    pub(crate) fn restart(disk: Disk, seed: u64) -> (Self, Recovered) {
        let recovered = disk.recover();
        let model = model_of(&recovered);
        let log = Self::start(disk, recovered.start.clone(), model, seed);
        (log, recovered)
    }

    pub(crate) fn append(&mut self, record: Record) -> Ticket {
        let ticket = self.writer.append(record.clone());
        self.events.push((ticket, record));
        ticket
    }

    pub(crate) fn entry(&mut self, group: u16, index: u64, term: u64, len: usize) {
        self.append(Record::Entry {
            group: GroupId(group),
            incarnation: LIFE,
            entry: entry(group, index, term, len),
        });
    }

    pub(crate) fn hard(&mut self, group: u16, state: HardState) {
        self.append(Record::HardState {
            group: GroupId(group),
            incarnation: LIFE,
            state,
        });
    }

    pub(crate) fn base(&mut self, group: u16, index: u64, term: u64) {
        self.append(Record::Base(base(group, index, term)));
    }

    pub(crate) fn prepare(&mut self) {
        while let Some(number) = self.writer.segment_wanted() {
            let blank = vec![0; self.disk.segment_bytes];
            let file = self.spares.pop().unwrap_or(blank);
            self.disk.files.insert(number, file);
            self.writer.segment_ready(number);
        }
    }

    /// Hands out what may leave; nothing reaches the disk.
    pub(crate) fn submit(&mut self) -> usize {
        let before = self.flying.len();
        loop {
            self.prepare();
            let Some(write) = self.writer.next_write() else {
                return self.flying.len() - before;
            };
            let mut bytes = vec![0; write.batch.encoded_len()];
            write.batch.encode_into(&mut bytes);
            self.batches.push(Sealed {
                segment: write.segment,
                offset: write.offset as usize,
                len: bytes.len(),
                header: BatchHeader::decode(&bytes).expect("just sealed"),
            });
            self.flying.push(write);
        }
    }

    /// The oldest write reaches the disk and is reported.
    pub(crate) fn complete(&mut self, nth: usize) {
        let write = self.flying.remove(nth);
        self.disk.write(&write);
        self.writer.completed(write.batch_seq);
    }

    /// Everything reaches the disk and is reported.
    pub(crate) fn sync(&mut self) {
        while self.submit() > 0 || !self.flying.is_empty() {
            self.complete(0);
        }
    }

    /// As [`Self::sync`], then a beacon proves it.
    pub(crate) fn sync_proved(&mut self) {
        self.sync();
        self.writer.beacon();
        self.sync();
    }

    pub(crate) fn drop_segments(&mut self) -> Vec<u64> {
        let dropped = self.writer.droppable();
        for number in &dropped {
            let file = self.disk.files.remove(number);
            self.spares.push(file.expect("a live segment has a file"));
        }
        dropped
    }

    /// What holds once everything up to `ticket` is in the log.
    pub(crate) fn model(&self, ticket: Ticket) -> Model {
        let mut model = self.before.clone();
        for (at, record) in &self.events {
            if *at > ticket {
                continue;
            }
            match record {
                Record::Entry { group, entry, .. } => {
                    let group = model.entry(group.0).or_default();
                    group.entries.split_off(&entry.index.0);
                    group.entries.insert(entry.index.0, entry.clone());
                }
                Record::HardState { group, state, .. } => {
                    model.entry(group.0).or_default().hard = *state;
                }
                Record::Base(base) => {
                    model.entry(base.group.0).or_default().base = base.index.0;
                }
                _ => {}
            }
        }
        model
    }

    pub(crate) fn acked(&self) -> Model {
        self.model(self.writer.durable_ticket())
    }
}

pub(crate) fn model_of(recovered: &Recovered) -> Model {
    let of = |log: &rrq::wal::recovery::GroupLog| GroupModel {
        hard: log.hard,
        entries: log
            .entries
            .iter()
            .map(|entry| (entry.index.0, entry.clone()))
            .collect(),
        base: log.bases.first().map_or(0, |base| base.index.0),
    };
    let groups = recovered.groups.iter();
    groups.map(|(id, log)| (id.0, of(log))).collect()
}

/// How a group of the model came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    Whole,
    Reported,
    Lost,
}

/// Whether everything that `acked` holds of `group` is there, or reported as damaged.
pub(crate) fn fate(recovered: &Recovered, acked: &Model, group: u16) -> Fate {
    let Some(log) = recovered.groups.get(&GroupId(group)) else {
        return if recovered.damage.is_empty() {
            Fate::Lost
        } else {
            Fate::Reported
        };
    };
    if log.status != GroupLogStatus::Intact {
        return Fate::Reported;
    }
    let model = &acked[&group];
    let from = log.bases.first().expect("an intact group has a base").index;
    let found = log.entries.iter().map(|entry| (entry.index.0, entry));
    let found = found.collect::<BTreeMap<_, _>>();
    // A later leader's entry that was not acknowledged may have reached the disk and void it.
    let is_voided = |index: u64, entry: &Entry| {
        let mut up_to = found.range(..=index);
        up_to.any(|(_, other)| other.term > entry.term)
    };
    let is_there = |(index, entry): (&u64, &Entry)| {
        *index <= from.0 || found.get(index).copied() == Some(entry) || is_voided(*index, entry)
    };
    let has_vote = log.hard.term > model.hard.term
        || (log.hard.term, log.hard.vote) == (model.hard.term, model.hard.vote);
    if model.entries.iter().all(is_there) && has_vote {
        Fate::Whole
    } else {
        Fate::Lost
    }
}

/// Panics if something acknowledged is silently missing; the fates of the groups otherwise.
pub(crate) fn check(recovered: &Recovered, acked: &Model, context: &str) -> BTreeMap<u16, Fate> {
    let fates = acked.keys().map(|id| (*id, fate(recovered, acked, *id)));
    let fates = fates.collect::<BTreeMap<_, _>>();
    for (group, fate) in &fates {
        assert!(
            *fate != Fate::Lost,
            "{context}: group {group} lost what was acknowledged:\n  found {}\n  acked {}",
            brief(&model_of(recovered)[group]),
            brief(&acked[group])
        );
    }
    fates
}

fn brief(group: &GroupModel) -> String {
    let entries = group.entries.iter();
    let entries = entries.map(|(index, entry)| format!("{index}@{}", entry.term));
    let entries = entries.collect::<Vec<_>>().join(" ");
    format!("base {} {:?} [{entries}]", group.base, group.hard)
}
