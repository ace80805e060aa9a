//! Segments: the first and the last record of a file of the log, and its epoch.
//!
//! A segment is a file of fixed size, written front to back and recycled without zeroing. Its head
//! says where it stands in the log and repeats, with the records behind it in the same batch, what
//! must outlive the segments before it: each group's row and its newest two bases. Its footer names
//! every entry of the segment, so that damage can be told group by group.
//!
//! # Layout of a segment head's body, 88 bytes and the echoes
//!
//! | offset | size | field | why it is there |
//! | --- | --- | --- | --- |
//! | 0 | 16 | cluster id | catches a foreign file |
//! | 16 | 16 | disk id | catches a copied directory |
//! | 32 | 4 | WAL set | LSNs of another set say nothing |
//! | 36 | 2 | format, 2 | older binaries refuse a newer format by name |
//! | 38 | 2 | shard | catches a file in another shard's folder |
//! | 40 | 8 | segment number | a recycled file that was never written holds a lower one |
//! | 48 | 8 | base LSN | position of the segment's first byte |
//! | 56 | 8 | previous segment; 0 = none | the chain; numbers between are void |
//! | 64 | 8 | previous end LSN = base LSN | what lies there or beyond in it was judged void |
//! | 72 | 4 | previous end CRC | |
//! | 76 | 4 | number of echoes | |
//! | 80 | 8 | batch number of the head | |
//! | 88 | 32 each | echoes: disk id (16), WAL set u32, shard u16, zero u16, durable LSN u64 | what others have heard of a log is held against them: see [`Echo`] |
//!
//! # Layout of a footer's body
//!
//! Runs of consecutive indexes, those of one group in the order of the log; a run that starts at or
//! below the end of the one before voids what it overlaps. A run is: group u32, incarnation u32,
//! first index u64, count u32, zero u32; then per entry: offset of its record in the segment u32,
//! seal u32.
//!
//! Format 1 had no recaps ([`Recap`](crate::wal::record::Recap)).
//!
//! # To change this format
//!
//! Raise [`FORMAT`] and keep its place in the head: a reader looks at it before the rest.

use crate::base::ids::{ClusterId, DiskId, GroupId, Incarnation, LogIndex, ShardId};
use crate::base::prng::mix;
use crate::base::units::Lsn;
use crate::wal::batch::{BatchHeader, POSITION_END};
use crate::wal::codec::{Fields, RecordError, Records};
use crate::wal::record::Record;
use bytes::Bytes;

/// The format that this binary writes, and the newest that it reads.
pub const FORMAT: u16 = 2;

const HEAD_BYTES: usize = 88;
const ECHO_BYTES: usize = 32;
/// Bytes of a run in a footer, without its entries.
pub(super) const RUN_BYTES: usize = 24;
/// Bytes of an entry in a run.
pub(super) const RUN_ENTRY_BYTES: usize = 8;

/// Where a segment was judged to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEnd {
    /// The segment.
    pub segment: u64,
    /// Its end.
    pub end_lsn: Lsn,
    /// The checksum of its last batch.
    pub end_crc: u32,
}

/// How far a log was durable that is not this one: where a log of an earlier WAL set ended when its groups were
/// taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// The disk.
    pub disk: DiskId,
    /// The WAL set that its LSN counts in.
    pub wal_set: u32,
    /// The shard.
    pub shard: ShardId,
    /// Durable up to here.
    pub durable_lsn: Lsn,
}

/// The first record of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// The cluster.
    pub cluster: ClusterId,
    /// The disk.
    pub disk: DiskId,
    /// The WAL set.
    pub wal_set: u32,
    /// The shard.
    pub shard: ShardId,
    /// The segment's number.
    pub number: u64,
    /// The position of its first byte.
    pub base_lsn: Lsn,
    /// The segment before it; none for the first of a log.
    pub previous: Option<SegmentEnd>,
    /// The number of the head's batch.
    pub batch_seq: u64,
    /// What the log knows of others, the same in each head.
    pub echoes: Vec<Echo>,
}

impl SegmentHead {
    /// The head at the start of a segment's bytes, which may be cut off behind it; `None` if there is
    /// no intact one.
    #[must_use]
    pub fn read(bytes: &Bytes) -> Option<Self> {
        let (_, payload) = BatchHeader::read(bytes, 0).ok()?;
        match Records::new(payload).next()? {
            Ok(Record::SegmentHead(head)) => Some(head),
            _ => None,
        }
    }

    pub(super) fn body_bytes(&self) -> usize {
        HEAD_BYTES + self.echoes.len() * ECHO_BYTES
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let previous = self.previous.unwrap_or(SegmentEnd {
            segment: 0,
            end_lsn: self.base_lsn,
            end_crc: 0,
        });
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.disk.0);
        out.extend_from_slice(&self.wal_set.to_le_bytes());
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.shard.0.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.base_lsn.0.to_le_bytes());
        out.extend_from_slice(&previous.segment.to_le_bytes());
        out.extend_from_slice(&previous.end_lsn.0.to_le_bytes());
        out.extend_from_slice(&previous.end_crc.to_le_bytes());
        out.extend_from_slice(&(self.echoes.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.batch_seq.to_le_bytes());
        for echo in &self.echoes {
            out.extend_from_slice(&echo.disk.0);
            out.extend_from_slice(&echo.wal_set.to_le_bytes());
            out.extend_from_slice(&echo.shard.0.to_le_bytes());
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&echo.durable_lsn.0.to_le_bytes());
        }
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        let cluster = ClusterId(fields.array("cluster")?);
        let disk = DiskId(fields.array("disk")?);
        let wal_set = fields.u32("WAL set")?;
        let found = fields.u16("format")?;
        if found > FORMAT {
            return Err(RecordError::TooNew { found, max: FORMAT });
        }
        if found == 0 {
            return Err(fields.malformed("format"));
        }
        let shard = ShardId(fields.u16("shard")?);
        let number = fields.u64("segment number")?;
        let base_lsn = Lsn(fields.u64("base LSN")?);
        let previous = SegmentEnd {
            segment: fields.u64("previous segment")?,
            end_lsn: Lsn(fields.u64("previous end")?),
            end_crc: fields.u32("previous CRC")?,
        };
        let is_in_range = base_lsn.0 < POSITION_END && number < POSITION_END;
        if previous.end_lsn != base_lsn || previous.segment >= number || !is_in_range {
            return Err(fields.malformed("previous segment"));
        }
        let count = fields.u32("number of echoes")?;
        let batch_seq = fields.u64("batch number")?;
        let mut echoes = Vec::new();
        for _ in 0..count {
            let disk = DiskId(fields.array("echo")?);
            let wal_set = fields.u32("echo")?;
            let shard = ShardId(fields.u16("echo")?);
            fields.zero::<2>("echo")?;
            let durable_lsn = Lsn(fields.u64("echo")?);
            echoes.push(Echo {
                disk,
                wal_set,
                shard,
                durable_lsn,
            });
        }
        Ok(Self {
            cluster,
            disk,
            wal_set,
            shard,
            number,
            base_lsn,
            previous: (previous.segment != 0).then_some(previous),
            batch_seq,
            echoes,
        })
    }
}

/// Entries of one group with consecutive indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FooterRun {
    /// The group.
    pub group: GroupId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The index of the first entry.
    pub first: LogIndex,
    /// Of each entry: where its record starts in the segment, and its seal.
    pub entries: Vec<(u32, u32)>,
}

/// The last record of a segment: the identity of each entry in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footer {
    /// The runs; those of one group in the order of the log.
    pub runs: Vec<FooterRun>,
}

impl Footer {
    pub(super) fn body_bytes(&self) -> usize {
        let bytes = |run: &FooterRun| RUN_BYTES + run.entries.len() * RUN_ENTRY_BYTES;
        self.runs.iter().map(bytes).sum()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for run in &self.runs {
            out.extend_from_slice(&u32::from(run.group.0).to_le_bytes());
            out.extend_from_slice(&run.incarnation.0.to_le_bytes());
            out.extend_from_slice(&run.first.0.to_le_bytes());
            out.extend_from_slice(&(run.entries.len() as u32).to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            for (offset, crc) in &run.entries {
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&crc.to_le_bytes());
            }
        }
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        let mut runs = Vec::new();
        while !fields.is_empty() {
            let group = u16::try_from(fields.u32("group of a run")?)
                .map_err(|_| fields.malformed("group of a run"))?;
            let incarnation = Incarnation(fields.u32("run")?);
            let first = fields.u64("run")?;
            let count = fields.u32("run")?;
            fields.zero::<4>("run")?;
            if count == 0 || first >= POSITION_END {
                return Err(fields.malformed("length of a run"));
            }
            let mut entries = Vec::new();
            for _ in 0..count {
                entries.push((fields.u32("run")?, fields.u32("run")?));
            }
            runs.push(FooterRun {
                group: GroupId(group),
                incarnation,
                first: LogIndex(first),
                entries,
            });
        }
        Ok(Self { runs })
    }
}

/// The epoch of a segment: what tells its batches from older ones that its file still holds. Never
/// 0. `seed` is drawn anew by each process.
#[must_use]
pub fn epoch(seed: u64, number: u64) -> u64 {
    mix(mix(seed).wrapping_add(number)).max(1)
}
