//! The first block of each file: bytes to headers, and every way in which they can be wrong, by name.
//!
//! Checks go from the outside in, as those of roots do ([`crate::snapshot::view`]).

use crate::base::checksum::crc32c;
use crate::base::ids::{ClusterId, DiskId, ShardId};
use crate::snapshot::fields::{Fields, Malformed, u16_at, u32_at};
use crate::snapshot::layout::{
    FileHeader, FileKind, HEADER_BYTES, HEADER_CRC_AT, HEADER_USED_BYTES, Owner,
};

/// Why the first block of a file is not the header asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file is shorter than a header.
    #[error("the header is cut off: {found} bytes of {HEADER_BYTES}")]
    Truncated {
        /// Bytes there.
        found: u64,
    },
    /// The file is neither a run nor a payload file.
    #[error("not a checkpoint file of rrq: it starts with {:016x}", u64::from_be_bytes(*.found))]
    BadMagic {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// A newer binary wrote it.
    #[error("format {found} is newer than the newest that this version reads, {max}")]
    TooNew {
        /// Its format.
        found: u16,
        /// The newest that this binary reads.
        max: u16,
    },
    /// The header is damaged.
    #[error("the checksum at byte {offset} is {expected:08x}, the bytes give {found:08x}")]
    BadChecksum {
        /// Where the checksum stands.
        offset: u64,
        /// The checksum stored.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// Whole, but senseless.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A run file where a payload file should be, or the other way round.
    #[error("a {found:?} file where a {expected:?} file should be")]
    OtherKind {
        /// What was asked for.
        expected: FileKind,
        /// What is there.
        found: FileKind,
    },
    /// The file was written in another cluster.
    #[error("belongs to cluster {found}, not to {expected}")]
    OtherCluster {
        /// Our cluster.
        expected: ClusterId,
        /// The file's.
        found: ClusterId,
    },
    /// The file was written on another disk.
    #[error("was written on disk {found}, not on {expected}")]
    OtherDisk {
        /// Our disk.
        expected: DiskId,
        /// The file's.
        found: DiskId,
    },
    /// The file bears another file's name.
    #[error("is file {found:016x}, not {expected:016x}: renamed or swapped")]
    OtherFile {
        /// The number asked for.
        expected: u64,
        /// The number in the header.
        found: u64,
    },
}

impl FileHeader {
    /// Reads the first block of a file.
    ///
    /// # Errors
    /// By name, see [`HeaderError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let truncated = HeaderError::Truncated {
            found: bytes.len() as u64,
        };
        let block = bytes.get(..HEADER_BYTES).ok_or(truncated)?;
        let mut magic = [0; 8];
        magic.copy_from_slice(&block[..8]);
        let kind = [FileKind::Run, FileKind::Payload]
            .into_iter()
            .find(|kind| kind.magic() == magic)
            .ok_or(HeaderError::BadMagic { found: magic })?;
        let (expected, found) = block_checksums(block);
        if expected != found {
            return Err(HeaderError::BadChecksum {
                offset: HEADER_CRC_AT as u64,
                expected,
                found,
            });
        }
        if u16_at(block, 8) > kind.format() {
            return Err(HeaderError::TooNew {
                found: u16_at(block, 8),
                max: kind.format(),
            });
        }
        let mut fields = Fields::new(&block[..HEADER_CRC_AT], 8);
        let unknown = fields.malformed("format number");
        if fields.u16("format number")? == 0 {
            return Err(unknown.into());
        }
        let shard = ShardId(fields.u16("shard")?);
        fields.zeros(4)?;
        let owner = Owner {
            cluster: ClusterId(fields.id("cluster id")?),
            disk: DiskId(fields.id("disk id")?),
        };
        let file = fields.u64("file number")?;
        fields.zeros(HEADER_CRC_AT - HEADER_USED_BYTES)?;
        Ok(Self {
            kind,
            owner,
            shard,
            file,
        })
    }

    /// The header is that of file `file` of `owner`, of the given kind. The shard is not asked:
    /// files are linked into another shard's folder when the number of shards changes.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, kind: FileKind, owner: &Owner, file: u64) -> Result<(), HeaderError> {
        if self.kind != kind {
            return Err(HeaderError::OtherKind {
                expected: kind,
                found: self.kind,
            });
        }
        if self.owner.cluster != owner.cluster {
            return Err(HeaderError::OtherCluster {
                expected: owner.cluster,
                found: self.owner.cluster,
            });
        }
        if self.owner.disk != owner.disk {
            return Err(HeaderError::OtherDisk {
                expected: owner.disk,
                found: self.owner.disk,
            });
        }
        if self.file != file {
            return Err(HeaderError::OtherFile {
                expected: file,
                found: self.file,
            });
        }
        Ok(())
    }
}

/// The checksum that a 4 KiB block holds, and the one that its bytes give.
pub(super) fn block_checksums(block: &[u8]) -> (u32, u32) {
    let stored = u32_at(block, HEADER_CRC_AT);
    (stored, crc32c(&[&block[..HEADER_CRC_AT]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::{self, owner};

    fn reseal_block(block: &mut [u8]) {
        let crc = block_checksums(block).1;
        block[HEADER_CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }

    fn header() -> Vec<u8> {
        samples::header(FileKind::Run, 7).encode()
    }

    #[test]
    fn a_header_that_is_whole_is_read() {
        let header = header();
        let decoded = FileHeader::decode(&header).expect("whole");
        assert_eq!(decoded, samples::header(FileKind::Run, 7));
        assert_eq!(decoded.check(FileKind::Run, &owner(), 7), Ok(()));
    }

    #[test]
    fn each_fault_of_a_header_has_its_name() {
        let whole = header();
        let damaged = |at: usize, value: u8| {
            let mut block = whole.clone();
            block[at] = value;
            block
        };
        let resealed = |at: usize, value: u8| {
            let mut block = damaged(at, value);
            reseal_block(&mut block);
            FileHeader::decode(&block)
        };
        assert_eq!(
            FileHeader::decode(&whole[..HEADER_BYTES - 1]),
            Err(HeaderError::Truncated { found: 4095 })
        );
        assert!(matches!(
            FileHeader::decode(&damaged(0, b'x')),
            Err(HeaderError::BadMagic { .. })
        ));
        // A flipped format number is damage; only a newer binary's whole header is too new.
        assert!(matches!(
            FileHeader::decode(&damaged(8, 3)),
            Err(HeaderError::BadChecksum { offset: 4092, .. })
        ));
        assert_eq!(
            resealed(8, 3),
            Err(HeaderError::TooNew { found: 3, max: 2 })
        );
        // Run files of format 1 are read still.
        assert!(resealed(8, 1).is_ok());
        let malformed = |offset, what| Err(HeaderError::Malformed(Malformed { offset, what }));
        assert_eq!(resealed(8, 0), malformed(8, "format number"));
        assert_eq!(resealed(12, 1), malformed(12, "reserved field"));
        assert_eq!(resealed(4091, 1), malformed(56, "reserved field"));
    }

    #[test]
    fn a_header_of_another_file_is_foreign() {
        let header = samples::header(FileKind::Run, 7);
        let other_cluster = Owner {
            cluster: ClusterId([9; 16]),
            ..owner()
        };
        let other_disk = Owner {
            disk: DiskId([9; 16]),
            ..owner()
        };
        assert!(matches!(
            header.check(FileKind::Payload, &owner(), 7),
            Err(HeaderError::OtherKind { .. })
        ));
        assert!(matches!(
            header.check(FileKind::Run, &other_cluster, 7),
            Err(HeaderError::OtherCluster { .. })
        ));
        assert!(matches!(
            header.check(FileKind::Run, &other_disk, 7),
            Err(HeaderError::OtherDisk { .. })
        ));
        assert_eq!(
            header.check(FileKind::Run, &owner(), 8),
            Err(HeaderError::OtherFile {
                expected: 8,
                found: 7
            })
        );
    }
}
