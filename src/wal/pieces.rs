//! Where in the log the entries of a group lie, so that the leader of one can read them again for a
//! member that was away.
//!
//! The log is divided into *pieces*: runs of whole batches of one segment, of about
//! `PIECE_BYTES`. Of each is known which entries of each group lie in it, as one range: where a later
//! entry voids earlier ones, their ranges shrink, so that an index lies in one piece at the most. A piece
//! goes with its segment.
//!
//! # Invariants
//!
//! - What a piece is said to hold is what the log means by it, once all up to its end is durable.
//! - The bytes of a piece are believed only if each batch stands where it must and each entry is what was
//!   sealed: the file may have been used again meanwhile.
//!
//! Deliberately absent: what an earlier process wrote. A start has all that in memory, and soon a
//! checkpoint in place of it.

use crate::base::entry::Entry;
use crate::base::ids::{GroupId, Incarnation, LogIndex};
use crate::base::units::Lsn;
use crate::wal::batch::BatchHeader;
use crate::wal::codec::Records;
use crate::wal::record::Record;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

/// A piece ends with the batch that makes it as long as this.
const PIECE_BYTES: u32 = 1 << 20;

/// A run of whole batches of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// Its place in the log.
    pub lsn: Lsn,
    /// The segment.
    pub segment: u64,
    /// Where in it, in bytes: a multiple of the block.
    pub offset: u32,
    /// Its length: likewise.
    pub bytes: u32,
}

/// What is to be read to get at an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The piece that holds it.
    pub piece: Piece,
    /// The last entry of the group in it.
    pub last: LogIndex,
    /// All that is in it so far is durable.
    pub is_durable: bool,
}

/// Entries of one group in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    incarnation: Incarnation,
    first: LogIndex,
    last: LogIndex,
    /// Bytes of their records.
    bytes: u64,
}

#[derive(Debug)]
struct Noted {
    piece: Piece,
    spans: BTreeMap<GroupId, Span>,
}

/// The pieces of the log that this process wrote.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Oldest first.
    list: VecDeque<Noted>,
    /// The last entry of each group in any of them.
    last: BTreeMap<GroupId, (Incarnation, LogIndex)>,
}

impl Pieces {
    /// A batch was sealed; entries that are noted from here on lie in it.
    pub(super) fn note_batch(&mut self, lsn: Lsn, segment: u64, offset: u32, bytes: u32) {
        match self.list.back_mut() {
            Some(Noted { piece, .. }) if piece.segment == segment && piece.bytes < PIECE_BYTES => {
                piece.bytes += bytes;
            }
            _ => self.list.push_back(Noted {
                piece: Piece {
                    lsn,
                    segment,
                    offset,
                    bytes,
                },
                spans: BTreeMap::new(),
            }),
        }
    }

    /// An entry, whose record takes so many bytes; it voids all of its group from its index on.
    pub(super) fn note_entry(
        &mut self,
        (group, incarnation): (GroupId, Incarnation),
        index: LogIndex,
        bytes: u32,
    ) {
        let before = self.last.insert(group, (incarnation, index));
        match before {
            Some((life, _)) if life != incarnation => self.forget_from(group, LogIndex(0)),
            Some((_, last)) if index <= last => self.forget_from(group, index),
            _ => {}
        }
        let noted = self.list.back_mut().expect("its batch was noted");
        let span = noted.spans.entry(group).or_insert(Span {
            incarnation,
            first: index,
            last: index,
            bytes: 0,
        });
        if span.last.next() < index {
            // A base was installed between them.
            (span.first, span.bytes) = (index, 0);
        }
        span.last = index;
        span.bytes += u64::from(bytes);
    }

    /// What the log holds of a group counts no more.
    pub(super) fn forget(&mut self, group: GroupId) {
        self.forget_from(group, LogIndex(0));
        self.last.remove(&group);
    }

    fn forget_from(&mut self, group: GroupId, index: LogIndex) {
        for noted in self.list.iter_mut().rev() {
            let Some(span) = noted.spans.get_mut(&group) else {
                continue;
            };
            if span.last < index {
                break;
            }
            if span.first < index {
                span.last = index.prev();
                break;
            }
            noted.spans.remove(&group);
        }
    }

    /// These segments go.
    pub(super) fn drop_segments(&mut self, numbers: &[u64]) {
        while let Some(Noted { piece, .. }) = self.list.front()
            && numbers.contains(&piece.segment)
        {
            self.list.pop_front();
        }
    }

    /// Where an entry lies.
    pub(super) fn find(
        &self,
        group: GroupId,
        incarnation: Incarnation,
        index: LogIndex,
    ) -> Option<Held> {
        let holds = |noted: &&Noted| {
            noted.spans.get(&group).is_some_and(|span| {
                span.incarnation == incarnation && (span.first..=span.last).contains(&index)
            })
        };
        let noted = self.list.iter().find(holds)?;
        Some(Held {
            piece: noted.piece,
            last: noted.spans[&group].last,
            is_durable: true,
        })
    }

    /// What the entries of a group take in the log, in bytes, with those beside them in the first of
    /// their pieces; `None` if one of them is not there.
    pub(super) fn bytes_of(
        &self,
        group: GroupId,
        incarnation: Incarnation,
        entries: RangeInclusive<LogIndex>,
    ) -> Option<u64> {
        let (first, last) = entries.into_inner();
        let spans = self.list.iter().filter_map(|noted| noted.spans.get(&group));
        let mut next = first;
        let mut bytes = 0;
        for span in spans.filter(|span| span.incarnation == incarnation && span.last >= first) {
            if span.first > next {
                return None;
            }
            next = span.last.next();
            bytes += span.bytes;
            if next > last {
                return Some(bytes);
            }
        }
        None
    }
}

/// Entries of one life of each group, by index.
type ByGroup = BTreeMap<(GroupId, Incarnation), BTreeMap<LogIndex, Entry>>;

/// The entries of a piece that was read.
#[derive(Debug)]
pub struct Entries(ByGroup);

impl Entries {
    /// What the bytes of a piece hold, or of its beginning up to the end of a batch; `None` if they are
    /// not what was written there.
    #[must_use]
    pub fn of(piece: &Piece, bytes: &Bytes) -> Option<Self> {
        let mut groups = ByGroup::new();
        let mut at = 0;
        while at < bytes.len() {
            let (header, payload) = BatchHeader::read(bytes, at).ok()?;
            if header.lsn.0 != piece.lsn.0 + at as u64 {
                return None;
            }
            at += header.encoded_len();
            for record in Records::new(payload) {
                if let Record::Entry {
                    group,
                    incarnation,
                    entry,
                } = record.ok()?
                {
                    let entries = groups.entry((group, incarnation)).or_default();
                    // A later one voids those behind it.
                    entries.split_off(&entry.index);
                    entries.insert(entry.index, entry);
                }
            }
        }
        Some(Self(groups))
    }

    /// Those of a group in a range, as far as they follow each other.
    pub fn range(
        &self,
        group: GroupId,
        incarnation: Incarnation,
        range: RangeInclusive<LogIndex>,
    ) -> impl Iterator<Item = &Entry> {
        let first = range.start().0;
        let entries = self.0.get(&(group, incarnation)).into_iter();
        let entries = entries.flat_map(move |entries| entries.range(range.clone()));
        let dense = (first..)
            .zip(entries)
            .take_while(|(index, (at, _))| at.0 == *index);
        dense.map(|(_, (_, entry))| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Incarnation = Incarnation(1);
    const GROUP: GroupId = GroupId(3);

    /// One batch of a whole piece in each of so many segments, with these entries.
    fn pieces(batches: &[&[u64]]) -> Pieces {
        let mut pieces = Pieces::default();
        for (number, entries) in (1..).zip(batches) {
            pieces.note_batch(Lsn(number << 24), number, 4096, PIECE_BYTES);
            for index in *entries {
                pieces.note_entry((GROUP, LIFE), LogIndex(*index), 100);
            }
        }
        pieces
    }

    fn at(pieces: &Pieces, index: u64) -> Option<(u64, u64)> {
        let held = pieces.find(GROUP, LIFE, LogIndex(index))?;
        Some((held.piece.segment, held.last.0))
    }

    fn bytes(pieces: &Pieces, first: u64, last: u64) -> Option<u64> {
        pieces.bytes_of(GROUP, LIFE, LogIndex(first)..=LogIndex(last))
    }

    #[test]
    fn an_entry_is_found_where_it_was_written_last() {
        let pieces = pieces(&[&[1, 2, 3, 4], &[3, 4], &[5, 6, 6, 7]]);
        assert_eq!(at(&pieces, 2), Some((1, 2)));
        assert_eq!(at(&pieces, 3), Some((2, 4)));
        assert_eq!(at(&pieces, 6), Some((3, 7)));
        assert_eq!(at(&pieces, 8), None);
        assert_eq!(pieces.find(GROUP, Incarnation(2), LogIndex(2)), None);
        assert_eq!(bytes(&pieces, 2, 7), Some(400 + 200 + 400));
        assert_eq!(bytes(&pieces, 4, 4), Some(200));
    }

    #[test]
    fn a_replaced_tail_is_gone_from_every_piece() {
        let pieces = pieces(&[&[1, 2], &[3, 4], &[5, 6], &[2]]);
        assert_eq!(at(&pieces, 1), Some((1, 1)));
        assert_eq!(at(&pieces, 2), Some((4, 2)));
        assert_eq!(at(&pieces, 4), None);
        assert_eq!(bytes(&pieces, 1, 4), None);
    }

    #[test]
    fn what_an_installed_base_passed_over_is_not_there() {
        let mut pieces = pieces(&[&[1, 2, 3], &[9, 10]]);
        assert_eq!(bytes(&pieces, 2, 10), None);
        pieces.note_entry((GROUP, LIFE), LogIndex(20), 100);
        assert_eq!(at(&pieces, 10), None, "one range a piece");
        assert_eq!(at(&pieces, 20), Some((2, 20)));
        pieces.forget(GROUP);
        assert_eq!(at(&pieces, 20), None);
    }

    #[test]
    fn pieces_go_with_their_segments() {
        let mut pieces = pieces(&[&[1, 2], &[3, 4]]);
        pieces.drop_segments(&[1]);
        assert_eq!((at(&pieces, 2), at(&pieces, 3)), (None, Some((2, 4))));
        pieces.note_entry((GROUP, Incarnation(2)), LogIndex(1), 100);
        assert_eq!(at(&pieces, 3), None, "another life");
    }

    #[test]
    fn batches_are_gathered_into_pieces_that_end_with_their_segment() {
        let mut pieces = Pieces::default();
        let mut lsn = 0;
        for segment in 1..=2 {
            for nth in 0..5 {
                let bytes = PIECE_BYTES / 2;
                pieces.note_batch(Lsn(lsn), segment, nth * bytes, bytes);
                lsn += u64::from(bytes);
            }
        }
        let sizes: Vec<_> = pieces
            .list
            .iter()
            .map(|noted| (noted.piece.segment, noted.piece.bytes / (PIECE_BYTES / 2)))
            .collect();
        assert_eq!(sizes, [(1, 2), (1, 2), (1, 1), (2, 2), (2, 2), (2, 1)]);
    }
}
