//! How much of a segment a start must read.
//!
//! A segment is written front to back, and most of the last one, as all of a prepared one, was never
//! written: reading it costs a start more than all else. What nobody has written says nothing, so
//! reading may stop behind the last batch of the segment: once nothing that looks like one has come for
//! [`QUIET_BYTES`].
//!
//! | the file begins with | it is read |
//! | --- | --- |
//! | its own head | up to so many bytes behind its last batch |
//! | the head of another segment | no further: nothing behind it is looked at |
//! | no intact head | up to so many bytes behind the last batch of any segment |
//!
//! # Why no damage goes unseen
//!
//! A damaged batch is told from the end of the log by a later batch that proves it. Batches follow each
//! other without gaps, so a later one begins within the length of what is damaged, and reading goes on
//! from there. A batch is not longer than a fifth of the quiet bytes, but for one that holds a single large
//! entry; that one is proved by a manifest as soon as it is durable
//! ([`crate::wal::writer::LogWriter::take_large`]).
//!
//! Left out: damage to more bytes in a row than are quiet, behind the last manifest, together with a crash.

use crate::base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES};
use crate::base::units::Lsn;
use crate::wal::batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader};
use crate::wal::segment::SegmentHead;
use bytes::Bytes;

/// Reading stops when so many bytes have shown no batch: more than all batches that can be on their way
/// to the disk at once, and the next.
pub const QUIET_BYTES: usize = 5 * BATCH_BYTES_MAX;

/// What tells a batch of the file from other bytes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The segment's own batches, and what damage leaves of one.
    Written { base: Lsn, epoch: u64 },
    /// Any batch.
    Headless,
    /// None: what the head says is all that is asked for.
    Other,
}

/// Tells, while a segment is looked at from its front, how far to look, and how much of it to read.
#[derive(Clone, Debug)]
pub struct Extent {
    kind: Kind,
    quiet: usize,
    /// What lies before was looked at.
    at: usize,
    /// Where the last batch ends.
    end: usize,
}

impl Extent {
    /// Of segment `number`, whose file begins with `front`. If the head does not fit into `front`, the
    /// file counts as one without a head. `quiet` is [`QUIET_BYTES`], or less in tests.
    #[must_use]
    pub fn new(number: u64, front: &Bytes, quiet: usize) -> Self {
        let head = SegmentHead::read(front);
        let kind = match (head, BatchHeader::decode(front)) {
            (Some(head), Ok(header)) if head.number == number => Kind::Written {
                base: header.lsn,
                epoch: header.epoch,
            },
            (Some(_), _) => Kind::Other,
            // A newer version's, perhaps: the recovery refuses it by name.
            _ => Kind::Headless,
        };
        Self {
            kind,
            quiet,
            at: 0,
            end: 0,
        }
    }

    /// Whether the file belongs to another segment: it was prepared and never written. Nothing behind
    /// its head matters.
    #[must_use]
    pub fn is_other(&self) -> bool {
        matches!(self.kind, Kind::Other)
    }

    /// Looks at `read`, the file's bytes from `from` on; pieces come one after the other and begin on a
    /// block. How many bytes of the file to look at, from its front: it rises with what is found.
    pub fn look(&mut self, from: usize, read: &[u8]) -> usize {
        if self.is_other() {
            return 0;
        }
        while let Some(rest) = self.at.checked_sub(from).and_then(|at| read.get(at..))
            && rest.len() >= BATCH_HEADER_BYTES
        {
            match self.batch_bytes(rest) {
                Some(bytes) => {
                    self.at += bytes;
                    self.end = self.at;
                }
                None => self.at += BLOCK_BYTES,
            }
        }
        self.end + self.quiet
    }

    /// Where the last batch ends that was found: what lies behind is as good as never written.
    #[must_use]
    pub fn end(&self) -> usize {
        self.end
    }

    /// The length of the batch at the start of `rest`, if something there looks like one.
    fn batch_bytes(&self, rest: &[u8]) -> Option<usize> {
        let header = BatchHeader::decode(rest);
        let is_batch = match self.kind {
            Kind::Written { base, epoch } => {
                BatchHeader::traces(rest, Lsn(base.0 + self.at as u64), epoch) >= 2
            }
            Kind::Headless => !matches!(header, Err(BatchError::NoHeader)),
            Kind::Other => false,
        };
        let bytes = header.map_or(BLOCK_BYTES, |header| header.encoded_len());
        is_batch.then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ClusterId, DiskId, ShardId};
    use crate::wal::record::Record;
    use crate::wal::segment::epoch;

    const QUIET: usize = 4 * BLOCK_BYTES;

    /// The head of segment 7 and batches of so many blocks behind it, then zeros.
    fn segment(blocks: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut add = |records: &[u8], flags| {
            let mut batch = vec![0; BATCH_HEADER_BYTES];
            batch.extend_from_slice(records);
            let header = BatchHeader {
                flags,
                lsn: Lsn((1 << 20) + bytes.len() as u64),
                epoch: epoch(1, 7),
                ..BatchHeader::default()
            };
            header.seal(&mut batch);
            bytes.extend(batch);
        };
        let head = SegmentHead {
            cluster: ClusterId([1; 16]),
            disk: DiskId([2; 16]),
            wal_set: 1,
            shard: ShardId(0),
            number: 7,
            base_lsn: Lsn(1 << 20),
            previous: None,
            batch_seq: 1,
            echoes: Vec::new(),
        };
        let mut records = Vec::new();
        Record::SegmentHead(head).encode(&mut records);
        add(&records, crate::wal::batch::SEG_HEAD);
        for blocks in blocks {
            add(&vec![1; blocks * BLOCK_BYTES - BATCH_HEADER_BYTES], 0);
        }
        bytes.resize(256 * BLOCK_BYTES, 0);
        bytes
    }

    /// How much is read of a file, a block at a time.
    fn reach(number: u64, file: &[u8]) -> usize {
        let front = Bytes::copy_from_slice(&file[..2 * BLOCK_BYTES]);
        let mut extent = Extent::new(number, &front, QUIET);
        let mut read = front.len();
        let mut wanted = extent.look(0, &front);
        while wanted > read && read < file.len() {
            wanted = extent.look(read, &file[read..][..BLOCK_BYTES]);
            read += BLOCK_BYTES;
        }
        assert!(extent.end() + QUIET == wanted || extent.is_other());
        read
    }

    #[test]
    fn reading_stops_some_way_behind_the_last_batch() {
        assert_eq!(reach(7, &segment(&[])), BLOCK_BYTES + QUIET);
        assert_eq!(reach(7, &segment(&[1, 3, 20])), 25 * BLOCK_BYTES + QUIET);
    }

    #[test]
    fn of_a_prepared_file_only_the_head_counts() {
        for number in [6, 8] {
            let file = segment(&[1, 3]);
            let mut extent = Extent::new(number, &file.clone().into(), QUIET);
            assert!(extent.is_other());
            assert_eq!((extent.look(0, &file), extent.end()), (0, 0));
        }
        assert_eq!(reach(7, &vec![0; 64 * BLOCK_BYTES]), QUIET);
    }

    #[test]
    fn a_damaged_batch_does_not_end_the_reading() {
        let whole = segment(&[2, 3, 2]);
        for block in 0..8 {
            let mut file = whole.clone();
            file[block * BLOCK_BYTES..][..BLOCK_BYTES].fill(0xa5);
            // The rest is found from what is intact behind the damage.
            let lost = [1, 3, 6, 8].map(|end| end * BLOCK_BYTES);
            let wanted = if block == 6 { lost[2] } else { lost[3] };
            assert_eq!(reach(7, &file), wanted + QUIET, "block {block}");
        }
    }

    #[test]
    fn a_file_without_a_head_is_read_as_far_as_there_are_batches_of_any_segment() {
        let mut file = segment(&[1, 3, 20]);
        file[..BLOCK_BYTES].fill(0);
        assert_eq!(reach(9, &file), 25 * BLOCK_BYTES + QUIET);
    }
}
