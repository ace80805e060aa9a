//! Recovery: from the bytes of the segments to what was acknowledged.
//!
//! Reads all segments in order. Where a batch is not intact, one question decides: was this
//! position ever acknowledged? *Proof* that position x was acknowledged is an intact batch of this
//! log beyond x with a durable LSN above x, or a durable LSN above x that a manifest holds. With a
//! proof the log is corrupt there; without one it ends there, torn. Where only something outside
//! the log proves, everything from x on is lost: what lies beyond may be a tail that an earlier
//! start has cut.
//!
//! # The decision table
//!
//! Each row is an outcome; the test of the same name in `tests/wal_recovery.rs` shows it.
//!
//! | at the first bad position x | outcome |
//! | --- | --- |
//! | `clean_end`: nothing of this log at x or beyond | the end |
//! | `torn_tail`: a damaged batch at x, nothing intact beyond | torn: cut at x |
//! | `torn_hole`: intact batches beyond x, none with a proof | torn: cut at x |
//! | `corrupt_middle`: a batch beyond x with a proof | corrupt: reading goes on at the next batch |
//! | `corrupt_before_beacon`: only a beacon proves | corrupt |
//! | `corrupt_by_manifest`: only the manifest proves | corrupt: the rest is lost |
//! | `corrupt_head`: a segment's head, and its other batches prove | corrupt; the rest is read |
//! | `corrupt_footer`: a footer, and the next segment proves | corrupt |
//! | `broken_chain`: an intact batch that does not follow the one before | corrupt |
//! | `judged_tail`: x is at or beyond the end that the next head names | void, skipped silently |
//! | `passed_over`: a segment between the two that a head joins | void, skipped silently |
//! | `stale_successor`: a file behind the last segment with content of a lower number | unwritten |
//! | `blank_successor`: such a file without content | unwritten |
//! | `lost_rest`: the next head follows the batch before x | corrupt: what lies in between stays lost |
//! | `missing_segment`: a head names a segment that is not there | corrupt |
//! | `missing_successor`: a footer, and no file behind it | corrupt |
//! | `missing_among_prepared`: a gap in the numbers behind the last segment | corrupt |
//! | `short_segment`: a file shorter than a segment | corrupt where its bytes end |
//! | `swapped_segments`, `duplicated_segment`: the content of another number | corrupt |
//! | `broken_seal`: an intact batch with an entry that is not what was sealed | corrupt |
//!
//! What a hole means for a group is decided in [`crate::wal::replay`]. In an intact batch nothing is
//! skipped: an unknown type, kind or machine version is refused by name, as are the log of another
//! cluster, disk, set or shard, and a newer format.
//!
//! # What the driver must do
//!
//! Feed every file of the shard's log, also those that were only prepared, each as far as
//! [`read_written`](crate::wal::extent::read_written) says. Sync the files that were
//! read before the new log is written: what was read may not be durable yet, and the first head
//! says that it is. Drop segments in the order in which they are reported.
//!
//! Left out: reading while files still arrive. All bytes stay in memory anyway, since entries are
//! slices of them.

use crate::base::bugs::{self, Bug};
use crate::base::ids::{GroupId, ShardId};
use crate::base::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use crate::base::units::Lsn;
use crate::wal::batch::{BatchError, BatchHeader, FOOTER, SEG_HEAD};
use crate::wal::chain::{Chain, Segment, survey};
use crate::wal::codec::{RecordError, Records};
use crate::wal::ledger::{LogStart, OldSegment};
use crate::wal::record::{MACHINE_VERSION_MAX, Recap, Record};
use crate::wal::replay::Replay;
use crate::wal::segment::{Echo, SegmentEnd};
use crate::wal::writer::LogIdentity;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

pub use crate::wal::replay::{GroupLog, GroupLogStatus, Sound};

/// Where the log was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub segment: u64,
    /// Where in it.
    pub offset: u64,
    /// The position: the log ends here.
    pub from: Lsn,
}

/// Damage to what was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: u64,
    /// Where in it.
    pub offset: u64,
    /// What is wrong, in words that continue "segment 3, byte 8192: ".
    pub what: String,
}

/// Why a log is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// The log of another cluster or disk.
    #[error("segment {segment} belongs to {what} {found}, not to {expected}")]
    Foreign {
        /// The segment.
        segment: u64,
        /// `cluster` or `disk`.
        what: &'static str,
        /// Its id.
        found: String,
        /// Ours.
        expected: String,
    },
    /// The log of another shard.
    #[error("segment {segment} belongs to shard {found}, not to {expected}")]
    WrongShard {
        /// The segment.
        segment: u64,
        /// Its shard.
        found: ShardId,
        /// Ours.
        expected: ShardId,
    },
    /// The log of another WAL set.
    #[error("segment {segment} belongs to WAL set {found}, not to {expected}")]
    WrongSet {
        /// The segment.
        segment: u64,
        /// Its set.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// A newer binary wrote it.
    #[error("log format {found} is newer than the newest that this version reads, {max}")]
    TooNew {
        /// Its format.
        found: u16,
        /// The newest that this binary reads.
        max: u16,
    },
    /// An entry or a base for a newer job machine.
    #[error("segment {segment} holds machine version {found}; this version knows up to {max}")]
    MachineVersion {
        /// The segment.
        segment: u64,
        /// Its version.
        found: u16,
        /// The newest that this binary knows.
        max: u16,
    },
    /// An intact batch that this version does not understand.
    #[error("segment {segment}, byte {offset}: {error}")]
    Batch {
        /// The segment.
        segment: u64,
        /// Where the batch starts.
        offset: u64,
        /// What is not understood.
        error: BatchError,
    },
    /// An intact batch with a record that this version does not understand.
    #[error("segment {segment}, batch at byte {offset}: {error}")]
    Record {
        /// The segment.
        segment: u64,
        /// Where the batch starts.
        offset: u64,
        /// What is not understood.
        error: RecordError,
    },
}

impl RecoveryError {
    pub(super) fn record(segment: u64, offset: u64, error: RecordError) -> Self {
        Self::Record {
            segment,
            offset,
            error,
        }
    }
}

/// What the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Where the writer goes on. A damaged group goes on as recovering.
    pub start: LogStart,
    /// The groups. A group that should be here and is not, while there is damage, is damaged too.
    pub groups: BTreeMap<GroupId, GroupLog>,
    /// Where the log was cut, if it did not end cleanly.
    pub torn: Option<TornTail>,
    /// All damage; some of it may touch no group.
    pub damage: Vec<Damage>,
    /// The segments that hold the log, oldest first.
    pub segments: Vec<u64>,
    /// Bytes of the log that were read.
    pub bytes: u64,
}

impl Recovered {
    /// What an empty directory holds.
    #[must_use]
    pub fn fresh() -> Self {
        Self {
            start: LogStart::fresh(),
            groups: BTreeMap::new(),
            torn: None,
            damage: Vec::new(),
            segments: Vec::new(),
            bytes: 0,
        }
    }
}

impl Default for Recovered {
    fn default() -> Self {
        Self::fresh()
    }
}

/// Reads a log.
#[derive(Debug)]
pub struct Recovery {
    identity: LogIdentity,
    segment_bytes: usize,
    machine_version_max: u16,
    proof: Lsn,
    files: BTreeMap<u64, FileBytes>,
}

/// A file of the log, as far as it was read.
#[derive(Debug)]
pub(super) struct FileBytes {
    pub(super) bytes: Bytes,
    /// The length of the file. What was not read of it counts as never written.
    pub(super) length: usize,
}

impl Recovery {
    /// For the log of `identity`.
    #[must_use]
    pub fn new(identity: LogIdentity) -> Self {
        Self::with_segment_bytes(identity, SEGMENT_BYTES)
    }

    /// With segments of another size, for tests.
    #[must_use]
    pub fn with_segment_bytes(identity: LogIdentity, bytes: usize) -> Self {
        Self {
            identity,
            segment_bytes: bytes,
            machine_version_max: MACHINE_VERSION_MAX,
            proof: Lsn(0),
            files: BTreeMap::new(),
        }
    }

    /// Everything below `durable_lsn` was acknowledged: says a manifest.
    pub fn proof(&mut self, durable_lsn: Lsn) {
        self.proof = self.proof.max(durable_lsn);
    }

    /// The whole file of segment `number`, as read.
    pub fn feed(&mut self, number: u64, bytes: Bytes) {
        let length = bytes.len();
        self.feed_front(number, bytes, length);
    }

    /// The first bytes of the file of segment `number`, which has `length`. The rest is not looked at, as
    /// if nobody had written it.
    ///
    /// # Panics
    /// If there are more bytes than the file has.
    pub fn feed_front(&mut self, number: u64, bytes: Bytes, length: usize) {
        let read = bytes.len();
        assert!(read <= length, "{read} bytes of a file of {length}");
        self.files.insert(number, FileBytes { bytes, length });
    }

    /// Reads everything.
    ///
    /// # Errors
    /// If the log is not ours or not understood. Damage is no error.
    pub fn finish(self) -> Result<Recovered, RecoveryError> {
        let mut chain = survey(self.identity, self.segment_bytes, &self.files)?;
        let first = chain.segments.first().map_or(Lsn(0), |first| first.base);
        let mut reader = Reader {
            proof: self.proof,
            segment_bytes: self.segment_bytes as u64,
            machine_version_max: self.machine_version_max,
            replay: Replay::default(),
            old: Vec::new(),
            echoes: Vec::new(),
            damage: std::mem::take(&mut chain.damage),
            torn: None,
            at: first,
            last: None,
            resync: true,
            bytes: 0,
        };
        let mut has_ended = false;
        for place in 0..chain.segments.len() {
            has_ended = has_ended || !reader.read_segment(&chain, place)?;
        }
        if !has_ended {
            reader.end(&chain);
        }
        Ok(reader.finish(&self.files))
    }
}

/// The last intact batch.
#[derive(Clone, Copy, Debug)]
struct Last {
    segment: u64,
    batch_seq: u64,
    crc: u32,
    flags: u8,
}

/// What proves that a position was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    None,
    /// A later batch: the log goes on behind the hole.
    Log,
    /// A manifest, or a file that cannot be what it should be. What lies behind the hole may be a
    /// tail that an earlier start has judged void.
    Outside,
}

#[derive(Debug)]
struct Reader {
    proof: Lsn,
    segment_bytes: u64,
    machine_version_max: u16,
    replay: Replay,
    old: Vec<OldSegment>,
    echoes: Vec<Echo>,
    damage: Vec<Damage>,
    torn: Option<TornTail>,
    /// The position to be read next: the end of the log so far.
    at: Lsn,
    last: Option<Last>,
    /// The next batch need not follow the last one.
    resync: bool,
    bytes: u64,
}

impl Reader {
    /// Reads one segment; false if the log ends in it.
    fn read_segment(&mut self, chain: &Chain, place: usize) -> Result<bool, RecoveryError> {
        let segment = &chain.segments[place];
        let next = chain.segments.get(place + 1);
        let limit = next.map_or(Lsn(segment.base.0 + self.segment_bytes), |next| next.base);
        let mut is_sealed = false;
        while self.at < limit {
            let offset = offset_in(segment, self.at);
            let read = segment.batch(offset);
            match read {
                Ok((header, records)) if !is_sealed && fits(&header, limit) => {
                    self.batch(segment, offset, &header, records)?;
                    is_sealed = header.flags == FOOTER;
                }
                Err(error) if error.is_foreign() && !is_sealed => {
                    let (segment, offset) = (segment.number, offset as u64);
                    return Err(RecoveryError::Batch {
                        segment,
                        offset,
                        error,
                    });
                }
                _ if next.is_none() && is_sealed => return Ok(true),
                _ => {
                    let is_end = is_sealed || self.ends_before(next);
                    let beyond = (!is_end).then(|| next_batch(segment, offset, limit));
                    let to = beyond.flatten().unwrap_or(limit);
                    match self.proof_at(chain, place, offset) {
                        Proof::None => {
                            self.cut(chain, place, offset);
                            return Ok(false);
                        }
                        Proof::Outside => {
                            self.lose_rest(
                                segment.number,
                                offset,
                                "acknowledged batches are damaged",
                            );
                            return Ok(false);
                        }
                        Proof::Log => {
                            let what = "acknowledged batches are damaged";
                            match self.recaps(segment, offset, to) {
                                Some(told) => self.told_hole(segment.number, offset, to, &told),
                                None => self.hole(segment.number, offset, to, what),
                            }
                        }
                    }
                }
            }
        }
        Ok(true)
    }

    /// Whether an earlier start lost the rest of this segment, after the last batch that was read, and
    /// went on in the next. What it did not take must not come back.
    fn ends_before(&self, next: Option<&Segment>) -> bool {
        let last = self.last.as_ref();
        last.zip(next)
            .is_some_and(|(last, next)| next.follows(last.segment, last.crc))
    }

    /// The log has been read to the end of its last segment. Something may have followed.
    fn end(&mut self, chain: &Chain) {
        let is_sealed = self.last.is_some_and(|last| last.flags == FOOTER);
        let lost = match &chain.lost_behind {
            Some(lost) => lost,
            None if is_sealed && !chain.has_successor => "the segment behind this one is missing",
            None if self.proof > self.at => "acknowledged batches are missing",
            None => return,
        };
        let offset = chain
            .segments
            .last()
            .map_or(0, |last| offset_in(last, self.at));
        let segment = self.last.map_or(0, |last| last.segment);
        self.lose_rest(segment, offset, lost);
    }

    /// Everything from the present position on is lost, and what may lie beyond is not trusted.
    fn lose_rest(&mut self, segment: u64, offset: usize, what: &str) {
        // What was lost had positions that a peer may have heard of: stay clear of them.
        let to = Lsn(self.at.0 + self.segment_bytes).max(self.proof);
        self.hole(segment, offset, to, what);
    }

    /// What proves that the present position was acknowledged.
    fn proof_at(&self, chain: &Chain, place: usize, offset: usize) -> Proof {
        if bugs::on(Bug::CutOnProof) {
            return Proof::None;
        }
        let mut is_cut_short = false;
        for (nth, segment) in chain.segments[place..].iter().enumerate() {
            let next = chain.segments.get(place + nth + 1);
            let limit = next.map_or(Lsn(u64::MAX), |next| next.base);
            let from = if nth == 0 { offset } else { 0 };
            if proves(segment, from, limit, self.at) {
                return Proof::Log;
            }
            let length = segment.length as u64;
            is_cut_short |= length < self.segment_bytes && segment.base.0 + length < limit.0;
        }
        if is_cut_short || self.proof > self.at || chain.lost_behind.is_some() {
            Proof::Outside
        } else {
            Proof::None
        }
    }

    /// What the batch at `to` says of all batches that are missing from the present position on, if it does.
    /// Where a head is missing, it counts only if a footer stands before it: then the log behind that had
    /// nothing else to judge.
    fn recaps(&self, segment: &Segment, offset: usize, to: Lsn) -> Option<BTreeMap<u64, Recap>> {
        let last = self.last?;
        let is_closed = last.segment == segment.number || (offset == 0 && last.flags == FOOTER);
        let (header, records) = segment.batch(offset_in(segment, to)).ok()?;
        let missing = last.batch_seq + 1..header.batch_seq;
        let recaps = Records::new(records).filter_map(|record| match record {
            Ok(Record::Recap(recap)) => Some((recap.batch_seq, recap)),
            _ => None,
        });
        let told: BTreeMap<u64, Recap> = recaps.filter(|(at, _)| missing.contains(at)).collect();
        let is_all = told.len() as u64 == missing.end.saturating_sub(missing.start);
        (is_closed && is_all && !bugs::on(Bug::RecapsIgnored)).then_some(told)
    }

    /// A hole from the present position to `to`, where a batch tells what it held.
    fn told_hole(&mut self, segment: u64, offset: usize, to: Lsn, told: &BTreeMap<u64, Recap>) {
        let mut groups = BTreeSet::new();
        for recap in told.values() {
            self.replay.told_hole(&recap.rows, to);
            groups.extend(recap.rows.iter().map(|row| row.row.group));
        }
        let what = match groups.len() {
            0 => "an acknowledged batch is damaged, which held nothing of any group".to_owned(),
            1 => "acknowledged batches of one group are damaged".to_owned(),
            count => format!("acknowledged batches of {count} groups are damaged"),
        };
        self.skip(segment, offset, to, &what);
    }

    /// A hole from the present position to `to`.
    fn hole(&mut self, segment: u64, offset: usize, to: Lsn, what: &str) {
        let takes_head = offset == 0 || to.0 - self.at.0 >= self.segment_bytes - offset as u64;
        self.replay.hole(segment, takes_head);
        self.skip(segment, offset, to, what);
    }

    /// Goes on at `to`.
    fn skip(&mut self, segment: u64, offset: usize, to: Lsn, what: &str) {
        self.damage.push(Damage {
            segment,
            offset: offset as u64,
            what: format!(
                "{what} ({} bytes from position {})",
                to.0 - self.at.0,
                self.at
            ),
        });
        self.at = to;
        self.resync = true;
    }

    /// The log ends at the present position.
    fn cut(&mut self, chain: &Chain, place: usize, offset: usize) {
        let segment = &chain.segments[place];
        let limit = Lsn(segment.base.0 + self.segment_bytes);
        let is_torn = segment.traces(offset) >= 2
            || place + 1 < chain.segments.len()
            || next_batch(segment, offset, limit).is_some();
        self.torn = is_torn.then_some(TornTail {
            segment: segment.number,
            offset: offset as u64,
            from: self.at,
        });
    }

    fn batch(
        &mut self,
        segment: &Segment,
        offset: usize,
        header: &BatchHeader,
        records: Bytes,
    ) -> Result<(), RecoveryError> {
        let follows = self.last.is_some_and(|last| {
            last.batch_seq + 1 == header.batch_seq && last.crc == header.prev_crc
        });
        if !self.resync && !follows {
            let what = "this batch does not follow the one before";
            self.hole(segment.number, offset, self.at, what);
        }
        self.resync = false;
        self.last = Some(Last {
            segment: segment.number,
            batch_seq: header.batch_seq,
            crc: header.crc,
            flags: header.flags,
        });
        if self.old.last().map(|old| old.number) != Some(segment.number) {
            self.old.push(OldSegment {
                number: segment.number,
                end_lsn: self.at,
                entries: BTreeMap::new(),
            });
        }
        let mut count = 0;
        let mut records = Records::new(records);
        loop {
            let at = records.position();
            let Some(record) = records.next() else {
                break;
            };
            count += 1;
            match record {
                // It would void what comes after it, at the next start.
                Ok(Record::Base(base)) if base.log_start_lsn > header.lsn => {
                    let error = RecordError::Malformed {
                        offset: at,
                        what: "log start",
                    };
                    return Err(RecoveryError::record(segment.number, offset as u64, error));
                }
                Ok(record) => self.record(segment.number, header, record)?,
                Err(error @ RecordError::BrokenSeal { .. }) => {
                    self.replay.broken_seal(segment.number);
                    self.damage.push(Damage {
                        segment: segment.number,
                        offset: offset as u64,
                        what: error.to_string(),
                    });
                }
                Err(RecordError::TooNew { found, max }) => {
                    return Err(RecoveryError::TooNew { found, max });
                }
                Err(error) => {
                    return Err(RecoveryError::record(segment.number, offset as u64, error));
                }
            }
        }
        if count != header.records {
            let (offset, what) = (offset as u64, "number of records");
            let error = RecordError::Malformed { offset: 0, what };
            return Err(RecoveryError::record(segment.number, offset, error));
        }
        self.at.0 += header.encoded_len() as u64;
        self.bytes += header.encoded_len() as u64;
        Ok(())
    }

    fn record(
        &mut self,
        segment: u64,
        header: &BatchHeader,
        record: Record,
    ) -> Result<(), RecoveryError> {
        match record {
            Record::Entry {
                group,
                incarnation,
                entry,
            } => {
                self.check_machine(segment, entry.machine_version)?;
                let old = self.old.last_mut().expect("its batch has pushed one");
                let highest = old.entries.entry(group).or_default();
                *highest = (*highest).max((incarnation, entry.index));
                self.replay.entry(group, incarnation, entry, header.lsn);
            }
            Record::HardState {
                group,
                incarnation,
                state,
            } => self.replay.hard_state(group, incarnation, state),
            Record::GroupTable(rows) if header.flags == SEG_HEAD => {
                self.replay.head_table(&rows, header.lsn);
            }
            Record::GroupTable(rows) => {
                for row in &rows {
                    self.replay.status_row(row);
                }
            }
            Record::Base(base) => {
                self.check_machine(segment, base.machine_version)?;
                self.replay.base(base);
            }
            Record::SegmentHead(head) => self.echoes = head.echoes,
            Record::Footer(footer) => self.replay.footer(segment, &footer, header.lsn),
            // It repeats what was read, unless that is missing: then it was looked at before.
            Record::Recap(_) => {}
        }
        Ok(())
    }

    fn check_machine(&self, segment: u64, found: u16) -> Result<(), RecoveryError> {
        let max = self.machine_version_max;
        if found > max {
            return Err(RecoveryError::MachineVersion {
                segment,
                found,
                max,
            });
        }
        Ok(())
    }

    fn finish(mut self, files: &BTreeMap<u64, FileBytes>) -> Recovered {
        // The last segment ends where the log does; the others where the next one begins.
        let ends = self.old.iter().skip(1).map(|old| old.end_lsn);
        let ends = ends.chain(std::iter::once(self.at)).collect::<Vec<_>>();
        for (old, end) in self.old.iter_mut().zip(ends) {
            old.end_lsn = end;
        }
        let segments = self.old.iter().map(|old| old.number).collect::<Vec<_>>();
        let unused = files.keys().filter(|number| !segments.contains(number));
        let unused = unused.copied().collect();
        let (groups, starts) = self.replay.finish();
        Recovered {
            start: LogStart {
                segment: files.last_key_value().map_or(1, |(number, _)| number + 1),
                lsn: self.at,
                previous: self.last.map(|last| SegmentEnd {
                    segment: last.segment,
                    end_lsn: self.at,
                    end_crc: last.crc,
                }),
                batch_seq: self.last.map_or(1, |last| last.batch_seq + 1),
                groups: starts,
                old: self.old,
                unused,
                echoes: self.echoes,
            },
            groups,
            torn: self.torn,
            damage: self.damage,
            segments,
            bytes: self.bytes,
        }
    }
}

/// Where position `at` lies in `segment`. Positions read never lie before the segment: the one
/// before it was read up to its base.
fn offset_in(segment: &Segment, at: Lsn) -> usize {
    assert!(
        at >= segment.base,
        "position {at} lies before segment {} at {}",
        segment.number,
        segment.base
    );
    usize::try_from(at.0 - segment.base.0).unwrap_or(usize::MAX)
}

/// Whether the batch ends at or before `limit`.
fn fits(header: &BatchHeader, limit: Lsn) -> bool {
    header.lsn.0 + header.encoded_len() as u64 <= limit.0
}

/// Positions of a segment behind `offset` and before `limit`.
fn positions(segment: &Segment, offset: usize, limit: Lsn) -> impl Iterator<Item = usize> {
    let end = usize::try_from(limit.0 - segment.base.0).unwrap_or(usize::MAX);
    (offset..segment.bytes.len().min(end))
        .step_by(BLOCK_BYTES)
        .skip(1)
}

/// Where the next intact batch behind `offset` and before `limit` is.
fn next_batch(segment: &Segment, offset: usize, limit: Lsn) -> Option<Lsn> {
    positions(segment, offset, limit)
        .find(|place| {
            let batch = segment.batch(*place);
            batch.is_ok_and(|(header, _)| fits(&header, limit))
        })
        .map(|place| Lsn(segment.base.0 + place as u64))
}

/// Whether a batch of `segment` behind `offset` proves that position `at` was acknowledged.
fn proves(segment: &Segment, offset: usize, limit: Lsn, at: Lsn) -> bool {
    let has_proof = |place| {
        let batch = segment.batch(place);
        batch.is_ok_and(|(header, _)| header.durable_lsn > at && fits(&header, limit))
    };
    // The head of a later segment counts, the batch at the bad position does not.
    (offset == 0 && segment.base > at && has_proof(0))
        || positions(segment, offset, limit).any(has_proof)
}
