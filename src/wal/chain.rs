//! Which files make up the log, before a record is read.
//!
//! A file belongs to the log if its head is intact and names it, and if the chain of the heads
//! behind it leads back to it. Numbers that a head passes over were judged void when it was
//! written. A file whose head is damaged is adopted if it was certainly written: a later head names
//! it, or one of its own batches says that the position of its head is durable.

use crate::base::bugs::{self, Bug};
use crate::base::limits::BLOCK_BYTES;
use crate::base::units::Lsn;
use crate::wal::batch::{BatchError, BatchHeader, SEG_HEAD};
use crate::wal::codec::{RecordError, Records};
use crate::wal::record::Record;
use crate::wal::recovery::{Damage, FileBytes, RecoveryError};
use crate::wal::segment::{SegmentEnd, SegmentHead};
use crate::wal::writer::LogIdentity;
use bytes::Bytes;
use std::collections::BTreeMap;

/// A file that belongs to the log.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// What was read of it.
    pub(super) bytes: Bytes,
    /// The length of its file.
    pub(super) length: usize,
    /// The position of its first byte.
    pub(super) base: Lsn,
    pub(super) epoch: u64,
    /// The end of the segment before it; `None` if there was none or the head is damaged.
    previous: Option<SegmentEnd>,
}

impl Segment {
    /// The intact batch of this segment at `offset`, if there is one.
    pub(super) fn batch(&self, offset: usize) -> Result<(BatchHeader, Bytes), BatchError> {
        // Most positions hold no batch of this segment: decide before the records are summed up.
        if self.traces(offset) < 3 && !bugs::on(Bug::StaleTailRead) {
            return Err(BatchError::NoHeader);
        }
        let (header, records) = BatchHeader::read(&self.bytes, offset)?;
        if (header.flags == SEG_HEAD) != (offset == 0) {
            return Err(BatchError::NoHeader);
        }
        Ok((header, records))
    }

    /// See [`BatchHeader::traces`].
    pub(super) fn traces(&self, offset: usize) -> usize {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        BatchHeader::traces(rest, Lsn(self.base.0 + offset as u64), self.epoch)
    }

    /// Whether its head names the batch with checksum `crc` in `segment` as the last before it.
    pub(super) fn follows(&self, segment: u64, crc: u32) -> bool {
        let previous = self.previous.as_ref();
        previous.is_some_and(|end| (end.segment, end.end_crc) == (segment, crc))
    }

    fn previous_number(&self) -> Option<u64> {
        self.previous.map(|end| end.segment)
    }
}

/// What the files say before a record is read.
#[derive(Debug)]
pub(super) struct Chain {
    /// The segments, oldest first; positions rise.
    pub(super) segments: Vec<Segment>,
    /// Files that are not what they should be.
    pub(super) damage: Vec<Damage>,
    /// What lies behind the last segment and cannot be a tail that was never acknowledged.
    pub(super) lost_behind: Option<String>,
    /// Whether a file is there that may become the next segment.
    pub(super) has_successor: bool,
}

/// A file by its first batch.
enum Kind {
    Written {
        segment: Segment,
    },
    /// The first batch is not intact.
    Headless,
    /// Never written under this number: it holds what it was recycled from.
    Unwritten {
        holds: u64,
    },
    Suspect {
        what: String,
        /// The number that its head names.
        holds: u64,
    },
}

/// Looks at all files.
pub(super) fn survey(
    identity: LogIdentity,
    segment_bytes: usize,
    files: &BTreeMap<u64, FileBytes>,
) -> Result<Chain, RecoveryError> {
    let mut written: BTreeMap<u64, Segment> = BTreeMap::new();
    let mut headless = Vec::new();
    let mut suspects = BTreeMap::new();
    let mut recycled = BTreeMap::new();
    for (number, file) in files {
        if file.length < segment_bytes {
            let what = format!("{} bytes instead of {segment_bytes}", file.length);
            suspects.insert(*number, (*number, what));
        }
        match kind(identity, *number, file, &written)? {
            Kind::Written { segment } => {
                written.insert(*number, segment);
            }
            Kind::Headless => headless.push(*number),
            Kind::Unwritten { holds } => {
                recycled.insert(*number, holds);
            }
            Kind::Suspect { what, holds } => {
                suspects.insert(*number, (holds.max(*number), what));
            }
        }
    }
    let mut void = void_numbers(&written);
    written.retain(|number, _| !void.contains(*number));
    // From the last on: the place of each is bounded by the one behind it.
    for number in headless.into_iter().rev() {
        if !void.contains(number) {
            let adopted = adopt(number, &files[&number], &written);
            written.extend(adopted.map(|segment| (number, segment)));
        }
    }
    // A segment at or beyond the position at which a later one begins was judged void.
    let mut segments: Vec<Segment> = Vec::new();
    for (number, segment) in written.into_iter().rev() {
        match segments.last() {
            Some(later) if segment.base >= later.base => void.0.push((number, number)),
            _ => segments.push(segment),
        }
    }
    segments.reverse();
    // Only what lies before the last segment is ever recycled.
    let last = segments.last().map_or(0, |segment| segment.number);
    for (number, holds) in recycled.into_iter().filter(|(_, holds)| *holds > last) {
        suspects.insert(number, (holds, format!("the content of segment {holds}")));
    }
    let mut chain = Chain {
        segments,
        damage: Vec::new(),
        lost_behind: None,
        has_successor: false,
    };
    for (number, (holds, what)) in suspects {
        if !void.contains(number) {
            chain.judge_suspect(number, holds, what);
        }
    }
    chain.find_missing(files);
    Ok(chain)
}

impl Chain {
    /// A file is not what it should be, and segment `holds` was certainly written.
    fn judge_suspect(&mut self, number: u64, holds: u64, what: String) {
        let last = self.segments.last().map(|segment| segment.number);
        if last.is_none_or(|last| holds > last) {
            self.lost_behind
                .get_or_insert_with(|| format!("segment {number} holds {what}"));
        }
        self.damage.push(Damage {
            segment: number,
            offset: 0,
            what,
        });
    }

    fn find_missing(&mut self, files: &BTreeMap<u64, FileBytes>) {
        for pair in self.segments.windows(2) {
            let previous = pair[1].previous_number();
            let missing = previous.filter(|number| *number > pair[0].number);
            if let Some(number) = missing.filter(|number| !files.contains_key(number)) {
                self.damage.push(missing_file(number));
            }
        }
        let before = self.segments.first().and_then(Segment::previous_number);
        if let Some(number) = before.filter(|number| files.contains_key(number)) {
            self.damage.push(Damage {
                segment: number,
                offset: 0,
                what: "the head and all that could tell its place are damaged".to_string(),
            });
        }
        // Numbers are prepared one after the other, the first of a log is 1.
        let mut expected = self.segments.last().map_or(1, |last| last.number + 1);
        for (number, _) in files.range(expected..) {
            self.has_successor = true;
            if *number != expected {
                self.damage.push(missing_file(expected));
                self.lost_behind
                    .get_or_insert_with(|| format!("segment {expected} is missing"));
            }
            expected = number + 1;
        }
    }
}

fn missing_file(number: u64) -> Damage {
    Damage {
        segment: number,
        offset: 0,
        what: "the file is missing".to_string(),
    }
}

/// Ranges of numbers that later heads passed over, both ends included.
struct Void(Vec<(u64, u64)>);

impl Void {
    fn contains(&self, number: u64) -> bool {
        let mut ranges = self.0.iter();
        ranges.any(|(first, last)| (*first..=*last).contains(&number))
    }
}

fn void_numbers(written: &BTreeMap<u64, Segment>) -> Void {
    let mut void = Void(Vec::new());
    for (number, segment) in written.iter().rev() {
        if void.contains(*number) {
            continue;
        }
        if let Some(previous) = segment.previous_number().filter(|p| p + 1 < *number) {
            void.0.push((previous + 1, number - 1));
        }
    }
    void
}

fn kind(
    identity: LogIdentity,
    number: u64,
    file: &FileBytes,
    written: &BTreeMap<u64, Segment>,
) -> Result<Kind, RecoveryError> {
    let (header, records) = match BatchHeader::read(&file.bytes, 0) {
        Ok((header, records)) if header.flags == SEG_HEAD => (header, records),
        Err(BatchError::Version(found)) => {
            return Err(RecoveryError::TooNew {
                found: u16::from(found),
                max: u16::from(crate::wal::batch::VERSION),
            });
        }
        _ => return Ok(Kind::Headless),
    };
    let head = match Records::new(records).next() {
        Some(Ok(Record::SegmentHead(head))) => head,
        Some(Err(RecordError::TooNew { found, max })) => {
            return Err(RecoveryError::TooNew { found, max });
        }
        _ => {
            let error = RecordError::Malformed {
                offset: 0,
                what: "segment head",
            };
            return Err(RecoveryError::record(number, 0, error));
        }
    };
    check_identity(identity, number, &head)?;
    let twin = written.get(&head.number);
    Ok(if head.number > number {
        Kind::Suspect {
            what: format!("the content of segment {}", head.number),
            holds: head.number,
        }
    } else if twin.is_some_and(|twin| twin.epoch == header.epoch) {
        Kind::Suspect {
            what: format!("a copy of segment {}", head.number),
            holds: number,
        }
    } else if head.number < number {
        Kind::Unwritten { holds: head.number }
    } else {
        Kind::Written {
            segment: Segment {
                number,
                bytes: file.bytes.clone(),
                length: file.length,
                base: header.lsn,
                epoch: header.epoch,
                previous: head.previous,
            },
        }
    })
}

fn check_identity(
    ours: LogIdentity,
    segment: u64,
    head: &SegmentHead,
) -> Result<(), RecoveryError> {
    if head.cluster != ours.cluster {
        return Err(RecoveryError::Foreign {
            segment,
            what: "cluster",
            found: head.cluster.to_string(),
            expected: ours.cluster.to_string(),
        });
    }
    if head.disk != ours.disk {
        return Err(RecoveryError::Foreign {
            segment,
            what: "disk",
            found: head.disk.to_string(),
            expected: ours.disk.to_string(),
        });
    }
    if head.wal_set != ours.wal_set {
        return Err(RecoveryError::WrongSet {
            segment,
            found: head.wal_set,
            expected: ours.wal_set,
        });
    }
    if head.shard != ours.shard {
        return Err(RecoveryError::WrongShard {
            segment,
            found: head.shard,
            expected: ours.shard,
        });
    }
    Ok(())
}

/// A file without an intact head, if it was certainly written.
fn adopt(number: u64, file: &FileBytes, written: &BTreeMap<u64, Segment>) -> Option<Segment> {
    let bytes = &file.bytes;
    // What was recycled comes from before the oldest segment; the one just before may be void.
    let before = written.range(..number).next().map(|(_, s)| s.base);
    let after = written.range(number + 1..).next().map(|(_, s)| s);
    let is_named = after.is_some_and(|after| after.previous_number() == Some(number));
    // An earlier start has read it, up to the batch that the next head names: it must not be read in
    // another way now.
    let is_end =
        |header: &BatchHeader| after.is_some_and(|after| after.follows(number, header.crc));
    let mut best: Option<((bool, Lsn), Segment)> = None;
    for offset in (BLOCK_BYTES..bytes.len()).step_by(BLOCK_BYTES) {
        let Ok((header, _)) = BatchHeader::read(bytes, offset) else {
            continue;
        };
        let Some(base) = header.lsn.0.checked_sub(offset as u64).map(Lsn) else {
            continue;
        };
        let is_between = before.is_none_or(|before| base > before)
            && after.is_none_or(|after| base < after.base);
        let is_proved = is_named || header.durable_lsn > base;
        let rank = (is_end(&header), header.durable_lsn);
        let is_better = best.as_ref().is_none_or(|(other, _)| rank > *other);
        if is_between && is_proved && is_better && header.flags != SEG_HEAD {
            let segment = Segment {
                number,
                bytes: bytes.clone(),
                length: file.length,
                base,
                epoch: header.epoch,
                previous: None,
            };
            best = Some((rank, segment));
        }
    }
    best.map(|(_, segment)| segment)
}
