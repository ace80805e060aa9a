//! One segment of a log from its first batch to its last, damaged ones named and passed over.
//!
//! What recovery would do with it is for `rrqctl log verify` to say; this only finds what stands in
//! the file. A file whose head is not intact is not walked: nothing tells its batches from those of
//! the segment that the file was before.

use crate::base::limits::BLOCK_BYTES;
use crate::base::units::Lsn;
use crate::wal::batch::{BatchHeader, FOOTER, SEG_HEAD};
use crate::wal::codec::Records;
use crate::wal::record::Record;
use crate::wal::segment::SegmentHead;
use bytes::Bytes;

/// What stands in a segment.
pub(super) enum Found {
    /// A record, and the batch that it stands in.
    Record {
        /// Where the batch starts.
        offset: usize,
        /// The batch.
        batch: BatchHeader,
        /// The record, or why it is none.
        record: Result<Record, String>,
    },
    /// No intact batch from here to there, though the log goes on behind it.
    Damaged {
        /// Where it starts.
        offset: usize,
        /// The next intact batch, or the end that the next segment names.
        to: usize,
    },
    /// Remains of a batch, with nothing intact behind it.
    Torn {
        /// Where.
        offset: usize,
    },
}

/// Where the segment before a head ends; `None` without an intact head of this number.
pub(super) fn end_before(bytes: &Bytes, number: u64) -> Option<(u64, Lsn)> {
    let head = SegmentHead::read(bytes).filter(|head| head.number == number)?;
    head.previous.map(|end| (end.segment, end.end_lsn))
}

/// Whether a file holds a segment of this number, and not what it was before.
pub(super) fn is_written(bytes: &Bytes, number: u64) -> bool {
    SegmentHead::read(bytes).is_some_and(|head| head.number == number)
}

/// Walks a segment up to `end`, where the next one says that it ends; as long as `each` wants more.
pub(super) fn walk(bytes: &Bytes, end: Option<Lsn>, each: &mut dyn FnMut(Found) -> bool) -> bool {
    let (Some(head), Ok((first, _))) = (SegmentHead::read(bytes), BatchHeader::read(bytes, 0))
    else {
        return true;
    };
    let base = head.base_lsn;
    let judged = end.and_then(|end| usize::try_from(end.0.saturating_sub(base.0)).ok());
    let limit = judged.unwrap_or(bytes.len()).min(bytes.len());
    let place = Place {
        bytes,
        base,
        epoch: first.epoch,
    };
    let mut offset = 0;
    while offset < limit {
        let Some((batch, records)) = place.batch(offset) else {
            let next = (offset + BLOCK_BYTES..limit)
                .step_by(BLOCK_BYTES)
                .find(|at| place.batch(*at).is_some());
            let to = match (next, judged) {
                (Some(next), _) => next,
                (None, Some(end)) => end,
                (None, None) if place.traces(offset) >= 2 => return each(Found::Torn { offset }),
                (None, None) => return true,
            };
            if !each(Found::Damaged { offset, to }) {
                return false;
            }
            offset = to;
            continue;
        };
        for record in Records::new(records) {
            let record = record.map_err(|error| error.to_string());
            let found = Found::Record {
                offset,
                batch,
                record,
            };
            if !each(found) {
                return false;
            }
        }
        if batch.flags == FOOTER {
            return true;
        }
        offset += batch.encoded_len();
    }
    true
}

struct Place<'a> {
    bytes: &'a Bytes,
    base: Lsn,
    epoch: u64,
}

impl Place<'_> {
    fn traces(&self, offset: usize) -> usize {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        BatchHeader::traces(rest, Lsn(self.base.0 + offset as u64), self.epoch)
    }

    fn batch(&self, offset: usize) -> Option<(BatchHeader, Bytes)> {
        if self.traces(offset) < 3 {
            return None;
        }
        let read = BatchHeader::read(self.bytes, offset).ok()?;
        ((read.0.flags == SEG_HEAD) == (offset == 0)).then_some(read)
    }
}
