//! Batches: the unit in which the log is written.
//!
//! A batch starts and ends on a block of 4 KiB and is never rewritten, so a torn write cannot hurt
//! what was acknowledged. It says where it must stand and what was durable when it was sealed.
//!
//! # Layout of the header, 64 bytes, little-endian
//!
//! | offset | size | field | why it is there |
//! | --- | --- | --- | --- |
//! | 0 | 4 | magic `rrqB` | |
//! | 4 | 1 | version, 1 | older binaries refuse a newer batch by name |
//! | 5 | 1 | flags: 1 beacon, 2 segment head, 4 footer, 8 a large batch follows | |
//! | 6 | 2 | length of the header, 64 | |
//! | 8 | 8 | LSN | must be the position implied by the segment: misdirected writes |
//! | 16 | 8 | epoch of the segment | what a recycled file still holds never matches |
//! | 24 | 8 | batch number, dense | |
//! | 32 | 8 | durable LSN | all below was durable when this was sealed: the proof |
//! | 40 | 4 | length of the records | |
//! | 44 | 4 | number of records | |
//! | 48 | 4 | CRC of the batch before | a chain: finds a lost write in the middle |
//! | 52 | 4 | CRC-32C of records and padding up to the end of the last block | |
//! | 56 | 4 | key id, 0 = clear | |
//! | 60 | 4 | CRC-32C of bytes 0..60 | the batch's own CRC in the chain: it covers the other |
//!
//! # To change this format
//!
//! Raise [`VERSION`], and keep magic, version and the last CRC in place.

use crate::base::checksum::crc32c;
use crate::base::limits::BLOCK_BYTES;
use crate::base::units::Lsn;
use bytes::Bytes;
use std::sync::Arc;

/// Bytes of a batch's header.
pub const BATCH_HEADER_BYTES: usize = 64;
/// The version that this binary writes, and the newest that it reads.
pub const VERSION: u8 = 1;
/// A batch without records but a recap, written to carry a durable LSN.
pub const BEACON: u8 = 1;
/// The first batch of a segment.
pub const SEG_HEAD: u8 = 2;
/// The last batch of a segment.
pub const FOOTER: u8 = 4;
/// A batch without records but a recap, in front of one that is longer than others, for one large entry: a start that
/// cannot read the header of that looks further for what follows it.
pub const LARGE_NEXT: u8 = 8;

/// Positions, batch numbers, indexes and terms lie below this, so that sums of them stay in range.
pub(super) const POSITION_END: u64 = 1 << 62;

const MAGIC: u32 = u32::from_le_bytes(*b"rrqB");

/// The header of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchHeader {
    /// [`BEACON`], [`SEG_HEAD`], [`FOOTER`] or [`LARGE_NEXT`], or 0.
    pub flags: u8,
    /// Its position.
    pub lsn: Lsn,
    /// The epoch of its segment.
    pub epoch: u64,
    /// Its number.
    pub batch_seq: u64,
    /// All below was durable when it was sealed.
    pub durable_lsn: Lsn,
    /// Bytes of its records.
    pub payload_len: u32,
    /// Its records.
    pub records: u32,
    /// The CRC of the batch before.
    pub prev_crc: u32,
    /// The CRC of records and padding.
    pub payload_crc: u32,
    /// The CRC of the header: the batch's own in the chain.
    pub crc: u32,
}

/// Why there is no batch at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Nothing that looks like the header of a batch.
    #[error("no batch header")]
    NoHeader,
    /// The header's checksum does not fit.
    #[error("the checksum of the batch header does not fit")]
    HeaderCrc,
    /// The batch leaves the segment.
    #[error("the batch leaves the segment")]
    TooLong,
    /// The checksum of the records does not fit.
    #[error("the checksum of the records does not fit")]
    PayloadCrc,
    /// A newer binary wrote it.
    #[error("batch version {0} is unknown")]
    Version(u8),
    /// An intact header with a field that this version does not know.
    #[error("the {0} of the batch header is unknown")]
    Unknown(&'static str),
}

impl BatchError {
    /// Whether the batch is intact and only not understood.
    #[must_use]
    pub fn is_foreign(self) -> bool {
        matches!(self, Self::Version(_) | Self::Unknown(_))
    }
}

/// Bytes of a batch with `payload` bytes of records.
#[must_use]
pub fn batch_bytes(payload: usize) -> usize {
    (BATCH_HEADER_BYTES + payload).next_multiple_of(BLOCK_BYTES)
}

impl BatchHeader {
    /// The bytes that the batch takes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        batch_bytes(self.payload_len as usize)
    }

    /// Completes `buffer`, which holds room for the header and then the records: pads it, computes
    /// the checksums and writes the header. The CRC of the batch.
    ///
    /// # Panics
    /// If the buffer has no room for the header.
    pub fn seal(mut self, buffer: &mut Vec<u8>) -> u32 {
        let payload = buffer.len().checked_sub(BATCH_HEADER_BYTES);
        let payload = payload.expect("a batch's buffer begins with room for its header");
        self.payload_len = u32::try_from(payload).expect("a batch is smaller than a segment");
        buffer.resize(self.encoded_len(), 0);
        self.payload_crc = crc32c(&[&buffer[BATCH_HEADER_BYTES..]]);
        let mut bytes = [0; BATCH_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = VERSION;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&(BATCH_HEADER_BYTES as u16).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.lsn.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.batch_seq.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.durable_lsn.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.records.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.prev_crc.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.payload_crc.to_le_bytes());
        self.crc = crc32c(&[&bytes[..60]]);
        bytes[60..64].copy_from_slice(&self.crc.to_le_bytes());
        buffer[..BATCH_HEADER_BYTES].copy_from_slice(&bytes);
        self.crc
    }

    /// Reads the header at the start of `bytes`, the rest of a segment, without looking at records.
    ///
    /// # Errors
    /// Why there is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchError> {
        let header = bytes.get(..BATCH_HEADER_BYTES);
        let header = header.ok_or(BatchError::NoHeader)?;
        if u32_at(header, 0) != MAGIC {
            return Err(BatchError::NoHeader);
        }
        let crc = u32_at(header, 60);
        if crc != crc32c(&[&header[..60]]) {
            return Err(BatchError::HeaderCrc);
        }
        if header[4] != VERSION {
            return Err(BatchError::Version(header[4]));
        }
        let decoded = Self {
            flags: header[5],
            lsn: Lsn(u64_at(header, 8)),
            epoch: u64_at(header, 16),
            batch_seq: u64_at(header, 24),
            durable_lsn: Lsn(u64_at(header, 32)),
            payload_len: u32_at(header, 40),
            records: u32_at(header, 44),
            prev_crc: u32_at(header, 48),
            payload_crc: u32_at(header, 52),
            crc,
        };
        if usize::from(u16::from_le_bytes([header[6], header[7]])) != BATCH_HEADER_BYTES {
            return Err(BatchError::Unknown("length"));
        }
        if !matches!(decoded.flags, 0 | BEACON | SEG_HEAD | FOOTER | LARGE_NEXT) {
            return Err(BatchError::Unknown("flags"));
        }
        if u32_at(header, 56) != 0 {
            return Err(BatchError::Unknown("key"));
        }
        let positions = [decoded.lsn.0, decoded.batch_seq, decoded.durable_lsn.0];
        if positions.iter().any(|position| *position >= POSITION_END) {
            return Err(BatchError::Unknown("position"));
        }
        Ok(decoded)
    }

    /// Reads the whole batch at `offset` of a segment: its header and its records.
    ///
    /// # Errors
    /// Why there is none.
    pub fn read(segment: &Bytes, offset: usize) -> Result<(Self, Bytes), BatchError> {
        let rest = segment.get(offset..).unwrap_or_default();
        let header = Self::decode(rest)?;
        let end = header.encoded_len();
        let body = rest.get(BATCH_HEADER_BYTES..end);
        let body = body.ok_or(BatchError::TooLong)?;
        if crc32c(&[body]) != header.payload_crc {
            return Err(BatchError::PayloadCrc);
        }
        let start = offset + BATCH_HEADER_BYTES;
        Ok((
            header,
            segment.slice(start..start + header.payload_len as usize),
        ))
    }

    /// How many of magic, position and epoch stand where a header at the start of `bytes` has them:
    /// two are what damage may leave of a header, three are a header of this segment.
    #[must_use]
    pub fn traces(bytes: &[u8], lsn: Lsn, epoch: u64) -> usize {
        let Some(header) = bytes.get(..BATCH_HEADER_BYTES) else {
            return 0;
        };
        let hits = [
            u32_at(header, 0) == MAGIC,
            u64_at(header, 8) == lsn.0,
            u64_at(header, 16) == epoch,
        ];
        hits.iter().filter(|hit| **hit).count()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A sealed batch, ready to be written. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct WalBatch(pub(super) Arc<Vec<u8>>);

impl WalBatch {
    /// Its length, a multiple of the block.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.0.len()
    }

    /// How many records it holds.
    #[must_use]
    pub fn records(&self) -> u32 {
        // Sealed with a header, whose layout has it here.
        u32::from_le_bytes(self.0[44..48].try_into().expect("four bytes"))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes, shared. As long as they are held, the writer does not use their memory again.
    #[must_use]
    pub fn shared(&self) -> Bytes {
        Bytes::from_owner(Shared(self.0.clone()))
    }

    /// Copies it into the driver's buffer.
    ///
    /// # Panics
    /// If `out` has another length than [`Self::encoded_len`].
    pub fn encode_into(&self, out: &mut [u8]) {
        assert!(
            out.len() == self.0.len(),
            "a batch of {} bytes does not fill a buffer of {}",
            self.0.len(),
            out.len()
        );
        out.copy_from_slice(&self.0);
    }
}

impl std::fmt::Debug for WalBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WalBatch({} bytes)", self.0.len())
    }
}
