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
//! from there: no batch is as long as the quiet bytes but that of a single large entry, and what stands
//! before that says so ([`LARGE_NEXT`]).
//!
//! Left out: damage to more bytes in a row than are quiet, or to a large batch and what announces it, behind
//! the last manifest, together with a crash.

use crate::base::limits::{BATCH_BYTES_MAX, BLOCK_BYTES, ENTRY_BYTES_MAX};
use crate::base::units::Lsn;
use crate::wal::batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader, LARGE_NEXT};
use crate::wal::segment::SegmentHead;
use bytes::Bytes;

/// Reading stops when so many bytes have shown no batch: two full ones. Where a large one is announced, when
/// [`ENTRY_BYTES_MAX`] more have not.
pub const QUIET_BYTES: usize = 2 * BATCH_BYTES_MAX;
/// What is looked at in one go.
pub const PIECE_BYTES: usize = 64 << 10;

/// Reads what is written in the file of segment `number`, which has `length` bytes and begins with `front`: all
/// of it that is to be believed, from the front. The rest is as good as never written. `quiet` is
/// [`QUIET_BYTES`]; less in tests, or `usize::MAX` to look at all of it. `read` gives the bytes from an offset
/// on; it is asked for some twice only where something was found behind bytes that showed nothing.
///
/// # Errors
/// Those of `read`.
pub fn read_written<E>(
    number: u64,
    front: Bytes,
    (length, quiet): (usize, usize),
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<Bytes, E> {
    let mut extent = Extent::new(number, &front, quiet);
    let mut wanted = extent.look(0, &front);
    let mut looked = front.len();
    // What only tells the end is not kept: fresh memory costs more than reading.
    let mut kept = Vec::new();
    let mut piece = [0; PIECE_BYTES];
    while looked < wanted.min(length) {
        let piece = &mut piece[..PIECE_BYTES.min(length - looked)];
        read(looked, piece)?;
        wanted = extent.look(looked, piece);
        if extent.end > looked {
            if kept.is_empty() {
                // Most of it stays untouched, and then costs nothing.
                kept.reserve(QUIET_BYTES.min(length));
                kept.extend_from_slice(&front);
            }
            let gap = kept.len();
            if gap < looked {
                kept.resize(looked, 0);
                read(gap, &mut kept[gap..])?;
            }
            kept.extend_from_slice(piece);
        }
        looked += piece.len();
    }
    if kept.is_empty() {
        return Ok(front);
    }
    kept.truncate(extent.end);
    Ok(kept.into())
}

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
struct Extent {
    kind: Kind,
    quiet: usize,
    /// What lies before was looked at.
    at: usize,
    /// Where the last batch ends.
    end: usize,
    /// It announces a large one.
    announces: bool,
}

impl Extent {
    /// Of segment `number`, whose file begins with `front`. If the head does not fit into `front`, the
    /// file counts as one without a head.
    fn new(number: u64, front: &Bytes, quiet: usize) -> Self {
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
            announces: false,
        }
    }

    /// Looks at `read`, the file's bytes from `from` on; pieces come one after the other and begin on a
    /// block. How many bytes of the file to look at, from its front: it rises with what is found.
    fn look(&mut self, from: usize, read: &[u8]) -> usize {
        if matches!(self.kind, Kind::Other) {
            return 0;
        }
        while let Some(rest) = self.at.checked_sub(from).and_then(|at| read.get(at..))
            && rest.len() >= BATCH_HEADER_BYTES
        {
            match self.batch_at(rest) {
                Some(Ok(header)) => {
                    self.at += header.encoded_len();
                    self.end = self.at;
                    self.announces = header.flags == LARGE_NEXT;
                }
                // How long it is, nobody knows: what was announced may be this.
                Some(Err(_)) => {
                    self.at += BLOCK_BYTES;
                    self.end = self.at;
                }
                None => self.at += BLOCK_BYTES,
            }
        }
        let large = if self.announces { ENTRY_BYTES_MAX } else { 0 };
        self.end.saturating_add(self.quiet).saturating_add(large)
    }

    /// The header of the batch at the start of `rest`, if something there looks like one.
    fn batch_at(&self, rest: &[u8]) -> Option<Result<BatchHeader, BatchError>> {
        let header = BatchHeader::decode(rest);
        let is_batch = match self.kind {
            Kind::Written { base, epoch } => {
                BatchHeader::traces(rest, Lsn(base.0 + self.at as u64), epoch) >= 2
            }
            Kind::Headless => !matches!(header, Err(BatchError::NoHeader)),
            Kind::Other => false,
        };
        is_batch.then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ClusterId, DiskId, ShardId};
    use crate::wal::record::Record;
    use crate::wal::segment::epoch;

    const QUIET: usize = 4 * BLOCK_BYTES;

    /// The head of segment 7 and batches of so many blocks behind it, then zeros. 0 blocks: a notice of a
    /// large batch, in one.
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
            match blocks {
                0 => add(&[], LARGE_NEXT),
                _ => add(&vec![1; blocks * BLOCK_BYTES - BATCH_HEADER_BYTES], 0),
            }
        }
        bytes.resize((bytes.len() + BLOCK_BYTES).max(256 * BLOCK_BYTES), 0);
        bytes
    }

    /// How much of a file is looked at, a piece at a time, and how much is believed.
    fn reach(number: u64, file: &[u8]) -> (usize, usize) {
        let front = Bytes::copy_from_slice(&file[..BLOCK_BYTES]);
        let mut looked = front.len();
        let read = |from: usize, piece: &mut [u8]| -> Result<(), ()> {
            assert_eq!(from, looked, "pieces come one after the other");
            piece.copy_from_slice(&file[from..][..piece.len()]);
            looked += piece.len();
            Ok(())
        };
        let written = read_written(number, front, (file.len(), QUIET), read);
        let written = written.expect("all can be read");
        assert_eq!(written, file[..written.len()]);
        (looked, written.len())
    }

    /// Whole pieces, as far as there is something to be looked at.
    fn pieces(wanted: usize) -> usize {
        BLOCK_BYTES + (wanted - BLOCK_BYTES).next_multiple_of(PIECE_BYTES)
    }

    #[test]
    fn reading_stops_some_way_behind_the_last_batch() {
        for blocks in [&[][..], &[1, 3, 20]] {
            let end = (1 + blocks.iter().sum::<usize>()) * BLOCK_BYTES;
            let looked = pieces(end + QUIET);
            assert_eq!(reach(7, &segment(blocks)), (looked, end));
        }
    }

    #[test]
    fn of_a_prepared_file_only_the_head_counts() {
        for number in [6, 8] {
            let file = segment(&[1, 3]);
            assert_eq!(reach(number, &file), (BLOCK_BYTES, BLOCK_BYTES));
        }
        let zeros = vec![0; 256 * BLOCK_BYTES];
        assert_eq!(reach(7, &zeros), (pieces(QUIET), BLOCK_BYTES));
    }

    #[test]
    fn a_damaged_batch_does_not_end_the_reading() {
        let whole = segment(&[2, 3, 2]);
        for block in 0..8 {
            let mut file = whole.clone();
            file[block * BLOCK_BYTES..][..BLOCK_BYTES].fill(0xa5);
            // The rest is found from what is intact behind the damage.
            let end = if block == 6 { 6 } else { 8 };
            let (looked, believed) = reach(7, &file);
            assert!(looked >= end * BLOCK_BYTES + QUIET, "block {block}");
            assert_eq!(believed, end * BLOCK_BYTES, "block {block}");
        }
    }

    #[test]
    fn a_batch_of_one_large_entry_is_no_end_either_if_its_head_or_its_notice_is_damaged() {
        let entry = ENTRY_BYTES_MAX.div_ceil(BLOCK_BYTES) + 1;
        let whole = segment(&[1, 0, entry, 1]);
        let end = (1 + 1 + 1 + entry + 1) * BLOCK_BYTES;
        // The notice, the large batch, both, and of the large batch the length alone, so that it still
        // looks like one.
        let blocks = |from: usize, to: usize| from * BLOCK_BYTES..to * BLOCK_BYTES;
        let length = blocks(3, 3).start + 40..blocks(3, 3).start + 44;
        for (damaged, found) in [
            (blocks(2, 3), end),
            (blocks(3, 4), end),
            (blocks(2, 4), 2 * BLOCK_BYTES),
            (length, end),
        ] {
            let mut file = whole.clone();
            file[damaged.clone()].fill(0xa5);
            let front = Bytes::copy_from_slice(&file[..BLOCK_BYTES]);
            let read = |from: usize, piece: &mut [u8]| -> Result<(), ()> {
                piece.copy_from_slice(&file[from..][..piece.len()]);
                Ok(())
            };
            let written = read_written(7, front, (file.len(), QUIET_BYTES), read);
            assert_eq!(
                written.expect("all can be read"),
                file[..found],
                "{damaged:?}"
            );
        }
    }

    #[test]
    fn what_is_found_behind_a_gap_is_kept_with_the_gap() {
        let mut file = segment(&[1, 80, 1, 2]);
        // Of the large batch, more than is looked at in one go, nothing looks like one.
        file[2 * BLOCK_BYTES..][..80 * BLOCK_BYTES].fill(0xa5);
        let front = Bytes::copy_from_slice(&file[..BLOCK_BYTES]);
        let read = |from: usize, piece: &mut [u8]| -> Result<(), ()> {
            piece.copy_from_slice(&file[from..][..piece.len()]);
            Ok(())
        };
        let quiet = 100 * BLOCK_BYTES;
        let written = read_written(7, front, (file.len(), quiet), read);
        let written = written.expect("all can be read");
        assert_eq!(written, file[..85 * BLOCK_BYTES]);
    }

    #[test]
    fn a_file_without_a_head_is_read_as_far_as_there_are_batches_of_any_segment() {
        let mut file = segment(&[1, 3, 20]);
        file[..BLOCK_BYTES].fill(0);
        let end = 25 * BLOCK_BYTES;
        assert_eq!(reach(9, &file), (pieces(end + QUIET), end));
    }
}
