//! The bytes of a batch: the unit of log I/O.
//!
//! A batch starts and ends on a block of 4 KiB and is never rewritten, so that a torn write cannot
//! hurt what was acknowledged before it. All numbers are little-endian.
//!
//! | at | bytes | field | why |
//! | --- | --- | --- | --- |
//! | 0 | 4 | magic `rrqB` | |
//! | 4 | 1 | format, 1 | |
//! | 5 | 1 | flags: 1 beacon, 2 segment head, 4 footer | |
//! | 6 | 2 | length of this head, 64 | |
//! | 8 | 8 | LSN of the batch | must fit its place: finds misdirected and stale blocks |
//! | 16 | 8 | epoch of the segment | recycled bytes never match |
//! | 24 | 8 | number of the batch | contiguous |
//! | 32 | 8 | durable LSN | all before it was durable when this batch was submitted |
//! | 40 | 4 | length of the records | |
//! | 44 | 4 | number of records | |
//! | 48 | 4 | checksum of the batch before | a chain: finds lost writes |
//! | 52 | 4 | checksum of the records and their padding | |
//! | 56 | 4 | key, 0 = clear | for encryption at rest |
//! | 60 | 4 | checksum of this head, without itself | |
//!
//! To change it: raise the format, and keep reading the old one.

use crate::base::checksum::crc32c;
use crate::base::limits::BLOCK_BYTES;
use crate::base::units::Lsn;
use crate::wal::record::Record;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The head of a batch.
pub const BATCH_HEAD_BYTES: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"rrqB");
const FORMAT: u8 = 1;
const CRC_AT: usize = BATCH_HEAD_BYTES - 4;

const _: () = assert!(BATCH_HEAD_BYTES < BLOCK_BYTES);

/// What a batch is besides its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// Records of groups.
    Data,
    /// No records: it only tells how far the log is durable.
    Beacon,
    /// The first of a segment.
    SegmentHead,
    /// The last of a segment.
    Footer,
}

impl BatchKind {
    fn flags(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Beacon => 1,
            Self::SegmentHead => 2,
            Self::Footer => 4,
        }
    }

    fn from_flags(flags: u8) -> Option<Self> {
        [Self::Data, Self::Beacon, Self::SegmentHead, Self::Footer]
            .into_iter()
            .find(|kind| kind.flags() == flags)
    }
}

/// The head of a batch, read or to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHead {
    /// What it is.
    pub kind: BatchKind,
    /// Where in the log it stands.
    pub lsn: Lsn,
    /// The epoch of its segment.
    pub epoch: u64,
    /// Its number.
    pub batch_seq: u64,
    /// Everything before this was durable when it was submitted.
    pub durable: Lsn,
    /// The checksum of the batch before it.
    pub previous_crc: u32,
}

/// A batch, sealed: its bytes will not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalBatch {
    bytes: Bytes,
    crc: u32,
}

/// The length on disk of a batch with this much of records.
#[must_use]
pub fn batch_len(records: usize) -> usize {
    (BATCH_HEAD_BYTES + records).next_multiple_of(BLOCK_BYTES)
}

impl WalBatch {
    /// Seals records into a batch.
    #[must_use]
    pub fn seal(head: &BatchHead, records: &[Record]) -> Self {
        let body: usize = records.iter().map(Record::encoded_len).sum();
        let mut out = BytesMut::with_capacity(batch_len(body));
        out.put_bytes(0, BATCH_HEAD_BYTES);
        records.iter().for_each(|record| record.encode(&mut out));
        assert!(
            out.len() == BATCH_HEAD_BYTES + body,
            "records of {} bytes were announced with {body}",
            out.len() - BATCH_HEAD_BYTES
        );
        out.resize(batch_len(body), 0);
        let payload_crc = crc32c(&[&out[BATCH_HEAD_BYTES..]]);
        let mut header = &mut out[..BATCH_HEAD_BYTES];
        header.put_u32_le(MAGIC);
        header.put_u8(FORMAT);
        header.put_u8(head.kind.flags());
        header.put_u16_le(BATCH_HEAD_BYTES as u16);
        header.put_u64_le(head.lsn.0);
        header.put_u64_le(head.epoch);
        header.put_u64_le(head.batch_seq);
        header.put_u64_le(head.durable.0);
        header.put_u32_le(u32::try_from(body).expect("a batch is far below 4 GiB"));
        header.put_u32_le(u32::try_from(records.len()).expect("a batch holds few records"));
        header.put_u32_le(head.previous_crc);
        header.put_u32_le(payload_crc);
        header.put_u32_le(0);
        let crc = crc32c(&[&out[..CRC_AT]]);
        out[CRC_AT..BATCH_HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        Self {
            bytes: out.freeze(),
            crc,
        }
    }

    /// Its length on disk in bytes: whole blocks.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.bytes.len()
    }

    /// Copies it into the buffer of the driver.
    ///
    /// # Panics
    /// If the buffer has another length.
    pub fn encode_into(&self, out: &mut [u8]) {
        out.copy_from_slice(&self.bytes);
    }

    /// What the next batch names as the checksum of the one before it. It covers all: the head
    /// holds the checksum of the records.
    #[must_use]
    pub fn crc(&self) -> u32 {
        self.crc
    }
}

/// A batch read back, its checksums right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadBatch {
    /// Its head.
    pub head: BatchHead,
    /// Its length on disk.
    pub len: usize,
    /// Its checksum.
    pub crc: u32,
    /// The number of its records.
    pub count: u32,
    /// Their bytes.
    pub records: Bytes,
}

/// Reads the batch at `offset`, or `None` if there is no intact one. Cheap where there is none: all
/// but a batch's first block fail at the magic.
#[must_use]
pub fn read_batch(segment: &Bytes, offset: usize) -> Option<ReadBatch> {
    let header = segment.get(offset..offset.checked_add(BATCH_HEAD_BYTES)?)?;
    let mut fields = header;
    if fields.get_u32_le() != MAGIC {
        return None;
    }
    let (format, flags, head_len) = (fields.get_u8(), fields.get_u8(), fields.get_u16_le());
    let crc = crc32c(&[&header[..CRC_AT]]);
    let stored = u32::from_le_bytes(header[CRC_AT..].try_into().expect("four bytes"));
    if format != FORMAT || usize::from(head_len) != BATCH_HEAD_BYTES || crc != stored {
        return None;
    }
    let kind = BatchKind::from_flags(flags)?;
    let (lsn, epoch) = (Lsn(fields.get_u64_le()), fields.get_u64_le());
    let (batch_seq, durable) = (fields.get_u64_le(), Lsn(fields.get_u64_le()));
    let (body, count) = (fields.get_u32_le() as usize, fields.get_u32_le());
    let (previous_crc, payload_crc, key) = (
        fields.get_u32_le(),
        fields.get_u32_le(),
        fields.get_u32_le(),
    );
    let len = batch_len(body);
    let payload = segment.get(offset + BATCH_HEAD_BYTES..offset.checked_add(len)?)?;
    if key != 0 || crc32c(&[payload]) != payload_crc {
        return None;
    }
    let start = offset + BATCH_HEAD_BYTES;
    Some(ReadBatch {
        head: BatchHead {
            kind,
            lsn,
            epoch,
            batch_seq,
            durable,
            previous_crc,
        },
        len,
        crc,
        count,
        records: segment.slice(start..start + body),
    })
}
