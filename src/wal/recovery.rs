//! Reading a log back: what is there, what was never acknowledged, what is damaged.
//!
//! # Torn or corrupt
//!
//! Let x be the first position without an intact batch. A position was acknowledged if it is proved
//! so: by an intact batch beyond it that says "durable beyond x" (each batch says how far the log was
//! durable when it was submitted, and an idle log writes a beacon to say so), or by a manifest
//! ([`Recovery::proof`]). Nothing else is proof: batches complete out of order, so an intact batch
//! beyond x may be younger than everything that was acknowledged.
//!
//! | at x | proof beyond x | outcome |
//! | --- | --- | --- |
//! | nothing, zeros, stale or torn bytes | no | end of the log, or torn: cut at x |
//! | the same | yes | corrupt: a hole from x to the next intact batch |
//! | the end that the next segment's head names | — | the segment's end; what lies beyond was judged |
//! | the head of a segment is not intact | no | the segment was never started |
//! | the head of a segment is not intact | yes | corrupt |
//! | a segment shorter than its size | — | damage, never torn: nobody shortens it |
//! | a number is missing between two segments | — | damage |
//! | a footer, and no file of the next number | — | damage: that name was durable before |
//! | a batch whose records a newer version wrote | — | refused by name |
//!
//! # Which groups a hole touches
//!
//! A hole puts every group in doubt: its entries, and its term and vote. An entry beyond the hole
//! that follows the group's last one clears the entries; a footer clears those that had none in the
//! hole; a hard state clears term and vote; a row of a group table settles both. A group whose gap is
//! seen, or whose doubt is not cleared, is damaged, and it alone. A base of a higher incarnation (a
//! repair) voids all before it.
//!
//! What remains: rot of what was acknowledged within the last writes before a crash, with no batch
//! after it to prove it, looks torn.

use crate::base::bugs::{self, Bug};
use crate::base::entry::Entry;
use crate::base::ids::{GroupId, Incarnation, LogIndex};
use crate::base::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use crate::base::units::Lsn;
use crate::wal::batch::{BATCH_HEAD_BYTES, BatchKind, ReadBatch, read_batch};
use crate::wal::record::{
    BaseRecord, FORMAT, Footer, GroupRow, HardState, Record, RecordError, RowStatus, SegmentEnd,
    SegmentHead,
};
use crate::wal::writer::{GroupMarks, LogIdentity, LogStart, OldSegment};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// What a log holds.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Where it goes on.
    pub start: LogStart,
    /// The groups.
    pub groups: BTreeMap<GroupId, GroupLog>,
    /// A tail that was never acknowledged, and is cut.
    pub torn: Option<TornTail>,
    /// What is damaged.
    pub damage: Vec<Damage>,
    /// Log bytes read.
    pub bytes: u64,
}

impl Recovered {
    /// The log of an empty directory.
    #[must_use]
    pub fn fresh() -> Self {
        let start = LogStart::fresh();
        Self {
            start,
            groups: BTreeMap::new(),
            torn: None,
            damage: Vec::new(),
            bytes: 0,
        }
    }
}

/// The log of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLog {
    /// Which life of the group.
    pub incarnation: Incarnation,
    /// Term, vote, commit.
    pub hard: HardState,
    /// Bases in force, newest first, one or two.
    pub bases: Vec<BaseRecord>,
    /// Entries above the older base, without a gap.
    pub entries: Vec<Entry>,
    /// Whether it is whole.
    pub status: GroupLogStatus,
}

/// Whether the log of a group is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupLogStatus {
    /// It is.
    Intact,
    /// Acknowledged entries may be missing behind those that are here.
    Damaged {
        /// What is missing, in words that go on "because …".
        what: String,
    },
    /// It was already in doubt when it was written.
    Recovering {
        /// From this entry on.
        since: LogIndex,
    },
}

/// A tail that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub segment: u64,
    /// Where in it, in bytes.
    pub offset: u64,
    /// Where in the log.
    pub from: Lsn,
}

/// A damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: u64,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
}

/// Why a log is not this shard's, or not of this version. Nothing can be said of its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Of another data directory or cluster.
    #[error("segment {segment} belongs to another data directory or cluster")]
    Foreign {
        /// The segment.
        segment: u64,
    },
    /// Of another shard.
    #[error("segment {segment} belongs to shard {found}")]
    WrongShard {
        /// The segment.
        segment: u64,
        /// Its shard.
        found: u16,
    },
    /// Of another life of the log.
    #[error("segment {segment} belongs to WAL set {found}")]
    WrongSet {
        /// The segment.
        segment: u64,
        /// Its set.
        found: u32,
    },
    /// A newer version wrote the segment.
    #[error("segment {segment} has format {found}; this version reads up to {max}")]
    TooNew {
        /// The segment.
        segment: u64,
        /// Its format.
        found: u16,
        /// The newest that this version reads.
        max: u16,
    },
    /// A newer version wrote a record.
    #[error("segment {segment}, byte {offset}: {error}")]
    NewerRecord {
        /// The segment.
        segment: u64,
        /// Where in it, in bytes.
        offset: u64,
        /// What it is.
        error: RecordError,
    },
}

/// Reads a log.
pub struct Recovery {
    identity: LogIdentity,
    segment_bytes: usize,
    segments: BTreeMap<u64, Bytes>,
    proof: Lsn,
}

impl Recovery {
    /// For the log of this shard.
    #[must_use]
    pub fn new(identity: LogIdentity) -> Self {
        Self::with_segment_bytes(identity, SEGMENT_BYTES)
    }

    /// The same, with segments of another size: for tests.
    #[must_use]
    pub fn with_segment_bytes(identity: LogIdentity, segment_bytes: usize) -> Self {
        Self {
            identity,
            segment_bytes,
            segments: BTreeMap::new(),
            proof: Lsn(0),
        }
    }

    /// Everything before this position is known to have been durable.
    pub fn proof(&mut self, durable: Lsn) {
        self.proof = self.proof.max(durable);
    }

    /// Takes a segment file, whole.
    pub fn feed(&mut self, number: u64, bytes: Bytes) {
        self.segments.insert(number, bytes);
    }

    /// Says what the log holds.
    ///
    /// # Errors
    /// [`RecoveryError`] if it is not this shard's or a newer version wrote it.
    pub fn finish(self) -> Result<Recovered, RecoveryError> {
        let mut heads = BTreeMap::new();
        for (number, bytes) in &self.segments {
            if let Some(head) = self.read_head(*number, bytes)? {
                heads.insert(*number, head);
            }
        }
        let mut walk = Walk::new(&self, heads);
        walk.run()?;
        Ok(walk.finish())
    }

    /// The head of a segment, if it is intact and of this number: recycled segments have the head of
    /// a lower one.
    fn read_head(&self, number: u64, bytes: &Bytes) -> Result<Option<SegmentHead>, RecoveryError> {
        let Some(batch) = read_batch(bytes, 0) else {
            return Ok(None);
        };
        if batch.head.kind != BatchKind::SegmentHead {
            return Ok(None);
        }
        let mut records = batch.records;
        let head = match Record::decode(&mut records) {
            Ok(Record::SegmentHead(head)) => head,
            Err(error) if error.is_newer() => {
                return Err(RecoveryError::NewerRecord {
                    segment: number,
                    offset: 0,
                    error,
                });
            }
            _ => return Ok(None),
        };
        if head.format > FORMAT {
            let (found, max) = (head.format, FORMAT);
            return Err(RecoveryError::TooNew {
                segment: number,
                found,
                max,
            });
        }
        if (head.cluster, head.disk) != (self.identity.cluster, self.identity.disk) {
            return Err(RecoveryError::Foreign { segment: number });
        }
        if head.shard != self.identity.shard {
            return Err(RecoveryError::WrongShard {
                segment: number,
                found: head.shard.0,
            });
        }
        if head.wal_set != self.identity.wal_set {
            return Err(RecoveryError::WrongSet {
                segment: number,
                found: head.wal_set,
            });
        }
        Ok((head.number == number && head.first_lsn == batch.head.lsn).then_some(head))
    }
}

/// What is known of a group while the log is read.
struct Reading {
    marks: GroupMarks,
    /// Entries in the order of the log, dense; later ones replace earlier ones.
    entries: VecDeque<Entry>,
    /// Entries may be missing behind the last one; term and vote may be.
    entries_in_doubt: bool,
    hard_in_doubt: bool,
    /// What is missing for sure.
    missing: Option<String>,
}

impl Reading {
    fn new(marks: GroupMarks) -> Self {
        Self {
            marks,
            entries: VecDeque::new(),
            entries_in_doubt: false,
            hard_in_doubt: false,
            missing: None,
        }
    }

    /// The index of the last entry known of, here or in a base.
    fn last(&self) -> LogIndex {
        let base = self.marks.bases[0].index;
        self.entries
            .back()
            .map_or(self.marks.last.0, |entry| entry.index)
            .max(base)
    }

    fn take_entry(&mut self, entry: Entry) {
        if entry.index.0 > self.last().0 + 1 {
            let (after, next) = (self.last(), entry.index);
            let what = format!("entries between {after} and {next} are missing from its log");
            self.missing.get_or_insert(what);
        }
        self.entries_in_doubt = false;
        while self
            .entries
            .back()
            .is_some_and(|held| held.index >= entry.index)
        {
            self.entries.pop_back();
        }
        self.marks.last = (entry.index, entry.term);
        self.entries.push_back(entry);
    }

    fn take_row(&mut self, row: &GroupRow) {
        if row.incarnation != self.marks.incarnation {
            return;
        }
        if row.last.0 > self.last() {
            let (after, last) = (self.last(), row.last.0);
            let what = format!("entries {} to {last} are missing from its log", after.0 + 1);
            self.missing.get_or_insert(what);
        }
        self.marks.hard = row.hard;
        self.marks.status = row.status;
        self.entries_in_doubt = false;
        self.hard_in_doubt = false;
    }

    fn take_base(&mut self, base: &BaseRecord) {
        if base.incarnation > self.marks.incarnation {
            *self = Self {
                marks: self.marks.clone(),
                ..Self::new(GroupMarks::of_base(base.clone()))
            };
        }
        self.marks.install(base);
    }

    fn finish(mut self) -> (GroupMarks, GroupLog) {
        let floor = self.marks.bases.last().expect("a group has a base").index;
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.index <= floor)
        {
            self.entries.pop_front();
        }
        let first = self
            .entries
            .front()
            .map_or(self.last().0 + 1, |entry| entry.index.0);
        if first > floor.0 + 1 {
            let what = format!(
                "entries {} to {} are missing from its log",
                floor.0 + 1,
                first - 1
            );
            self.missing.get_or_insert(what);
            self.entries.clear();
        }
        // Keep what is dense from the base on; what lies behind a gap cannot be applied.
        let mut next = floor;
        let dense = self.entries.iter().take_while(|entry| {
            next = next.next();
            entry.index == next
        });
        let entries: Vec<Entry> = dense.cloned().collect();
        let last = entries.last().map_or(floor, |entry| entry.index);
        let doubt = (self.entries_in_doubt || self.hard_in_doubt).then(|| {
            let part = if self.entries_in_doubt {
                "entries"
            } else {
                "its term and vote"
            };
            format!("its log is damaged behind entry {last} and {part} may be missing there")
        });
        let status = match (self.missing.or(doubt), self.marks.status) {
            (Some(what), _) => GroupLogStatus::Damaged { what },
            (None, RowStatus::Recovering { since }) => GroupLogStatus::Recovering { since },
            (None, RowStatus::Ok) => GroupLogStatus::Intact,
        };
        let log = GroupLog {
            incarnation: self.marks.incarnation,
            hard: self.marks.hard,
            bases: self.marks.bases.clone(),
            entries,
            status,
        };
        (self.marks, log)
    }
}

/// Where the next batch must be.
struct Position {
    segment: u64,
    offset: usize,
    lsn: Lsn,
    epoch: u64,
    batch_seq: u64,
    crc: u32,
}

struct Walk<'a> {
    log: &'a Recovery,
    heads: BTreeMap<u64, SegmentHead>,
    groups: BTreeMap<GroupId, Reading>,
    damage: Vec<Damage>,
    torn: Option<TornTail>,
    old: VecDeque<OldSegment>,
    bytes: u64,
    end: SegmentEnd,
    next_batch: u64,
}

enum Step {
    /// On to the next segment.
    Next,
    /// The log ends here.
    End,
}

impl<'a> Walk<'a> {
    fn new(log: &'a Recovery, heads: BTreeMap<u64, SegmentHead>) -> Self {
        Self {
            log,
            heads,
            groups: BTreeMap::new(),
            damage: Vec::new(),
            torn: None,
            old: VecDeque::new(),
            bytes: 0,
            end: SegmentEnd::default(),
            next_batch: 1,
        }
    }

    fn run(&mut self) -> Result<(), RecoveryError> {
        let Some((&first, head)) = self.heads.first_key_value() else {
            return self.without_a_head();
        };
        self.end = head.previous;
        self.next_batch = head.first_batch;
        if head.first_lsn == Lsn(0) || self.log.segments.keys().next() == Some(&first) {
            // The first segment there is a segment that was started.
        } else {
            let number = first - 1;
            self.hole(number, 0, "the head of the segment is damaged");
        }
        let mut number = first;
        while let Step::Next = self.segment(number)? {
            number += 1;
        }
        Ok(())
    }

    /// No segment was started, as far as can be seen.
    fn without_a_head(&mut self) -> Result<(), RecoveryError> {
        let first = self.log.segments.keys().next().copied().unwrap_or(1);
        self.end.segment = first.saturating_sub(1);
        let proof = self.proof_beyond(first, 0, Lsn(0));
        if proof {
            self.hole(first, 0, "no segment of the log has an intact head");
        }
        Ok(())
    }

    fn segment(&mut self, number: u64) -> Result<Step, RecoveryError> {
        let Some(bytes) = self.log.segments.get(&number).cloned() else {
            return Ok(self.missing_segment(number));
        };
        let mut at = match self.heads.get(&number) {
            Some(head) if head.previous.lsn == self.end.lsn || !self.damage.is_empty() => {
                let epoch = read_batch(&bytes, 0).expect("the head was read").head.epoch;
                let (lsn, batch_seq) = (head.first_lsn, head.first_batch);
                let crc = head.previous.crc;
                Position {
                    segment: number,
                    offset: 0,
                    lsn,
                    epoch,
                    batch_seq,
                    crc,
                }
            }
            _ => {
                if !self.proof_beyond(number, 0, self.end.lsn) {
                    return Ok(Step::End);
                }
                self.hole(number, 0, "the head of the segment is damaged");
                match self.resume(number, 0, &bytes) {
                    Some(at) => at,
                    None => return Ok(self.after_segment(number)),
                }
            }
        };
        self.old.push_back(OldSegment {
            number,
            highest: BTreeMap::new(),
        });
        let short = bytes.len() < self.log.segment_bytes;
        let limit = self.heads.get(&(number + 1)).map(|head| head.previous);
        loop {
            let judged = limit.filter(|end| end.segment == number && end.lsn == at.lsn);
            if judged.is_some_and(|end| end.crc == at.crc) {
                return Ok(Step::Next);
            }
            let batch = read_batch(&bytes, at.offset).filter(|batch| {
                let head = &batch.head;
                (head.lsn, head.epoch, head.batch_seq) == (at.lsn, at.epoch, at.batch_seq)
                    && head.previous_crc == at.crc
            });
            let Some(batch) = batch else {
                if short {
                    let what = format!(
                        "the file has {} bytes instead of {}",
                        bytes.len(),
                        self.log.segment_bytes
                    );
                    self.hole(number, at.offset, &what);
                } else if self.proof_beyond(number, at.offset, at.lsn) && !bugs::on(Bug::CutOnProof)
                {
                    let what =
                        "the batch there is damaged, and later ones prove that it was durable";
                    self.hole(number, at.offset, what);
                } else {
                    self.note_torn(&bytes, &at);
                    return Ok(Step::End);
                }
                match self.resume(number, at.offset, &bytes) {
                    Some(next) => at = next,
                    None => return Ok(self.after_segment(number)),
                }
                continue;
            };
            let footer = batch.head.kind == BatchKind::Footer;
            self.take_batch(number, at.offset, &batch)?;
            at.offset += batch.len;
            at.lsn = Lsn(at.lsn.0 + batch.len as u64);
            at.batch_seq += 1;
            at.crc = batch.crc;
            self.bytes += batch.len as u64;
            self.end = SegmentEnd {
                segment: number,
                lsn: at.lsn,
                crc: at.crc,
            };
            self.next_batch = at.batch_seq;
            if footer {
                return Ok(Step::Next);
            }
        }
    }

    /// A file that is not there: the end of the log, or damage if something says that it was.
    fn missing_segment(&mut self, number: u64) -> Step {
        let sealed = self.end.segment + 1 == number && self.is_sealed(self.end.segment);
        let later = self.heads.range(number..).next().is_some();
        if sealed || later || self.log.proof > self.end.lsn {
            self.hole(number, 0, "the file is missing");
        }
        self.after_segment(number)
    }

    fn is_sealed(&self, number: u64) -> bool {
        let Some(bytes) = self.log.segments.get(&number) else {
            return false;
        };
        let last = (0..bytes.len()).step_by(BLOCK_BYTES).rev();
        let epoch = read_batch(bytes, 0).map(|head| head.head.epoch);
        last.filter_map(|at| read_batch(bytes, at))
            .any(|batch| batch.head.kind == BatchKind::Footer && Some(batch.head.epoch) == epoch)
    }

    /// On to the next segment that was started, if there is one.
    fn after_segment(&mut self, number: u64) -> Step {
        if self.heads.range(number + 1..).next().is_some() {
            Step::Next
        } else {
            Step::End
        }
    }

    /// Whether something proves that position `lsn`, at `offset` of a segment, was acknowledged.
    fn proof_beyond(&self, number: u64, offset: usize, lsn: Lsn) -> bool {
        if self.log.proof > lsn {
            return true;
        }
        self.log.segments.range(number..).any(|(segment, bytes)| {
            let from = if *segment == number { offset } else { 0 };
            let ours = |batch: &ReadBatch, at: usize| match self.heads.get(segment) {
                // Stale batches of a recycled file lie at other positions.
                Some(head) => batch.head.lsn.0 == head.first_lsn.0 + at as u64,
                None => batch.head.lsn >= lsn,
            };
            (from..bytes.len())
                .step_by(BLOCK_BYTES)
                .filter_map(|at| Some((at, read_batch(bytes, at)?)))
                .any(|(at, batch)| batch.head.durable > lsn && ours(&batch, at))
        })
    }

    /// The next intact batch of a segment behind a hole.
    fn resume(&self, number: u64, offset: usize, bytes: &Bytes) -> Option<Position> {
        let head = self.heads.get(&number);
        let epoch = head
            .and_then(|_| read_batch(bytes, 0))
            .map(|batch| batch.head.epoch);
        (offset + BLOCK_BYTES..bytes.len())
            .step_by(BLOCK_BYTES)
            .filter_map(|at| Some((at, read_batch(bytes, at)?)))
            .find(|(at, batch)| match (head, epoch) {
                (Some(head), Some(epoch)) => {
                    batch.head.epoch == epoch && batch.head.lsn.0 == head.first_lsn.0 + *at as u64
                }
                _ => batch.head.lsn.0 == self.end.lsn.0 + *at as u64,
            })
            .map(|(offset, batch)| Position {
                segment: number,
                offset,
                lsn: batch.head.lsn,
                epoch: batch.head.epoch,
                batch_seq: batch.head.batch_seq,
                crc: batch.head.previous_crc,
            })
    }

    fn hole(&mut self, segment: u64, offset: usize, what: &str) {
        let what = what.to_owned();
        self.damage.push(Damage {
            segment,
            offset: offset as u64,
            what,
        });
        for reading in self.groups.values_mut() {
            reading.entries_in_doubt = true;
            reading.hard_in_doubt = true;
        }
    }

    /// Whether the end of the log is torn, rather than just its end: something of this segment's
    /// epoch lies at or beyond it.
    fn note_torn(&mut self, bytes: &Bytes, at: &Position) {
        let block = bytes.get(at.offset..at.offset + BATCH_HEAD_BYTES);
        let zeros = block.is_none_or(|block| block.iter().all(|byte| *byte == 0));
        let later = (at.offset..bytes.len())
            .step_by(BLOCK_BYTES)
            .filter_map(|at| read_batch(bytes, at))
            .any(|batch| batch.head.epoch == at.epoch);
        let stale = read_batch(bytes, at.offset).is_some_and(|batch| batch.head.epoch != at.epoch);
        if later || !(zeros || stale) {
            let offset = at.offset as u64;
            self.torn = Some(TornTail {
                segment: at.segment,
                offset,
                from: at.lsn,
            });
        }
    }

    fn take_batch(
        &mut self,
        segment: u64,
        offset: usize,
        batch: &ReadBatch,
    ) -> Result<(), RecoveryError> {
        let mut records = batch.records.clone();
        for _ in 0..batch.count {
            let at = (offset + BATCH_HEAD_BYTES + batch.records.len() - records.len()) as u64;
            match Record::decode(&mut records) {
                Ok(record) => self.take_record(record),
                Err(error) if error.is_newer() => {
                    return Err(RecoveryError::NewerRecord {
                        segment,
                        offset: at,
                        error,
                    });
                }
                Err(error) => {
                    self.hole(segment, offset, &error.to_string());
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn take_record(&mut self, record: Record) {
        match record {
            Record::Entry {
                group,
                incarnation,
                entry,
            } => {
                let Some(reading) = self.groups.get_mut(&group) else {
                    return self.unknown_group(group);
                };
                if incarnation != reading.marks.incarnation {
                    return;
                }
                if let Some(old) = self.old.back_mut() {
                    let highest = old.highest.entry(group).or_default();
                    *highest = (*highest).max(entry.index);
                }
                reading.take_entry(entry);
            }
            Record::HardState {
                group,
                incarnation,
                state,
            } => {
                if let Some(reading) = self.groups.get_mut(&group)
                    && reading.marks.incarnation == incarnation
                {
                    reading.marks.hard = state;
                    reading.hard_in_doubt = false;
                }
            }
            Record::GroupTable(rows) => {
                for row in rows {
                    match self.groups.get_mut(&row.group) {
                        Some(reading) => reading.take_row(&row),
                        None => {
                            let reading = Reading::new(marks_of_row(&row));
                            self.groups.insert(row.group, reading);
                        }
                    }
                }
            }
            Record::Base(base) => match self.groups.get_mut(&base.group) {
                Some(reading) => reading.take_base(&base),
                None => {
                    let reading = Reading::new(GroupMarks::of_base(base.clone()));
                    self.groups.insert(base.group, reading);
                }
            },
            Record::Footer(footer) => self.take_footer(&footer),
            Record::SegmentHead(_) => {}
        }
    }

    /// An entry of a group of which nothing is known: the record that made it was lost.
    fn unknown_group(&mut self, group: GroupId) {
        let what = format!("group {group} has entries but no base");
        let segment = self.end.segment;
        self.damage.push(Damage {
            segment,
            offset: 0,
            what,
        });
    }

    /// Clears the entries of groups that had none in the hole.
    fn take_footer(&mut self, footer: &Footer) {
        for (group, reading) in self
            .groups
            .iter_mut()
            .filter(|(_, held)| held.entries_in_doubt)
        {
            let runs = footer.runs.iter().filter(|run| run.group == *group);
            let ours = runs.filter(|run| run.incarnation == reading.marks.incarnation);
            let highest = ours
                .map(|run| run.first.0 + run.entries.len() as u64 - 1)
                .max();
            let (last, highest) = (reading.last().0, highest.unwrap_or(0));
            if highest > last {
                let what = format!("entries {} to {highest} are missing from its log", last + 1);
                reading.missing.get_or_insert(what);
            }
            reading.entries_in_doubt = false;
        }
    }

    fn finish(mut self) -> Recovered {
        if self.log.proof > self.end.lsn && self.damage.is_empty() {
            let (segment, lsn) = (self.end.segment, self.end.lsn);
            let what = format!(
                "the log ends at {lsn}, but the manifest says that it was durable up to {}",
                self.log.proof
            );
            self.hole(segment, 0, &what);
        }
        let mut groups = BTreeMap::new();
        let mut marks = BTreeMap::new();
        for (group, reading) in self.groups {
            let (group_marks, log) = reading.finish();
            marks.insert(group, group_marks);
            groups.insert(group, log);
        }
        // Behind a hole the log goes on beyond everything that can have been written.
        let mut end = self.end;
        let mut segment = end.segment + 1;
        if !self.damage.is_empty() {
            let room = self.log.segment_bytes as u64 * (self.log.segments.len() as u64 + 1);
            end.lsn = Lsn(end
                .lsn
                .max(self.log.proof)
                .0
                .next_multiple_of(BLOCK_BYTES as u64)
                + room);
            let highest = self.log.segments.keys().next_back().copied().unwrap_or(0);
            segment = segment.max(highest + 1);
        }
        let start = LogStart {
            segment,
            batch_seq: self.next_batch,
            end,
            groups: marks,
            old: self.old,
            segment_bytes: self.log.segment_bytes,
        };
        Recovered {
            start,
            groups,
            torn: self.torn,
            damage: self.damage,
            bytes: self.bytes,
        }
    }
}

/// The marks that a row alone gives; the base record behind it adds the voters.
fn marks_of_row(row: &GroupRow) -> GroupMarks {
    let base = BaseRecord {
        group: row.group,
        incarnation: row.incarnation,
        index: row.base.0,
        term: row.base.1,
        time: crate::base::units::GroupTime(0),
        root_hash: row.root_hash,
        root: row.root,
        log_start_lsn: row.log_start_lsn,
        machine_version: 1,
        wall_offset_ms: 0,
        voters: Vec::new(),
    };
    GroupMarks {
        incarnation: row.incarnation,
        hard: row.hard,
        last: row.last,
        bases: vec![base],
        status: row.status,
    }
}
