//! What of a log is on its disk for good: kept up with each write that lands, so that every
//! acknowledgement can be held against the disks at the moment when it is given.
//!
//! A batch counts when it and all before it are on disk, whole: that is what a start would read. After
//! a start it is what that start has read.

use crate::base::ids::{GroupId, Incarnation, LogIndex, NodeId, Term};
use crate::base::units::Lsn;
use crate::wal::batch::BatchHeader;
use crate::wal::codec::Records;
use crate::wal::record::{BaseRecord, HardState, Record};
use crate::wal::recovery::Recovered;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Term and seal of an entry.
pub type Sealed = (Term, u32);

#[derive(Clone, Debug, Default)]
struct KeptGroup {
    incarnation: Incarnation,
    /// Index of the newest base, and of the one before.
    bases: [LogIndex; 2],
    entries: BTreeMap<LogIndex, (Sealed, Lsn)>,
    hard: HardState,
}

/// What is kept of a log.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    groups: BTreeMap<GroupId, KeptGroup>,
    /// Batches that landed before one ahead of them did.
    early: BTreeMap<u64, (u64, Bytes)>,
    next_batch: u64,
    /// Where the log ends.
    end: Lsn,
    /// The newest segment that this process has begun.
    head: u64,
    /// Bases that became durable and nobody has asked for yet.
    bases: Vec<BaseRecord>,
}

impl Kept {
    /// A start has read this, and goes on from there.
    pub fn restart(&mut self, read: &Recovered) {
        self.early.clear();
        self.next_batch = read.start.batch_seq;
        (self.end, self.head) = (read.start.lsn, 0);
        self.groups.clear();
        for (id, log) in &read.groups {
            let base = |nth: usize| log.bases.get(nth).map_or(LogIndex(0), |base| base.index);
            let entries = log.entries.iter();
            let sealed = |entry: &crate::base::entry::Entry| {
                (entry.index, ((entry.term, entry.crc), read.start.lsn))
            };
            self.groups.insert(
                *id,
                KeptGroup {
                    incarnation: log.incarnation,
                    bases: [base(0), base(1)],
                    entries: entries.map(sealed).collect(),
                    hard: log.hard,
                },
            );
        }
    }

    /// A batch of this segment is on disk, whole.
    ///
    /// # Panics
    /// If it is no batch that the writer has sealed.
    pub fn landed(&mut self, batch_seq: u64, segment: u64, bytes: Bytes) {
        if self.next_batch == 0 {
            self.next_batch = 1;
        }
        self.early.insert(batch_seq, (segment, bytes));
        while let Some((segment, bytes)) = self.early.remove(&self.next_batch) {
            self.next_batch += 1;
            self.head = segment;
            let header = BatchHeader::decode(&bytes).expect("a batch is read as it was sealed");
            self.end = Lsn(header.lsn.0 + bytes.len() as u64);
            let from = crate::wal::batch::BATCH_HEADER_BYTES;
            let records = bytes.slice(from..from + header.payload_len as usize);
            for record in Records::new(records) {
                let record = record.expect("a record is read as it was written");
                self.note(record, header.lsn);
            }
        }
    }

    fn group(&mut self, group: GroupId, incarnation: Incarnation) -> Option<&mut KeptGroup> {
        let kept = self.groups.entry(group).or_default();
        if kept.incarnation < incarnation {
            *kept = KeptGroup {
                incarnation,
                ..KeptGroup::default()
            };
        }
        (kept.incarnation == incarnation).then_some(kept)
    }

    fn note(&mut self, record: Record, lsn: Lsn) {
        match record {
            Record::Entry {
                group,
                incarnation,
                entry,
            } => {
                let Some(kept) = self.group(group, incarnation) else {
                    return;
                };
                if kept
                    .entries
                    .last_key_value()
                    .is_some_and(|(last, _)| *last >= entry.index)
                {
                    kept.entries.split_off(&entry.index);
                }
                kept.entries
                    .insert(entry.index, ((entry.term, entry.crc), lsn));
            }
            Record::Base(base) => {
                let Some(kept) = self.group(base.group, base.incarnation) else {
                    return;
                };
                if base.index > kept.bases[0] {
                    kept.bases = [base.index, kept.bases[0]];
                }
                let (before, start) = (kept.bases[1], base.log_start_lsn);
                kept.entries
                    .retain(|index, (_, at)| *index > before && *at >= start);
                self.bases.push(base);
            }
            Record::HardState {
                group,
                incarnation,
                state,
            } => {
                if let Some(kept) = self.group(group, incarnation) {
                    kept.hard = state;
                }
            }
            Record::GroupTable(_)
            | Record::SegmentHead(_)
            | Record::Footer(_)
            | Record::Recap(_) => {}
        }
    }

    /// Where the log ends.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// The newest segment of which this process has written something; 0 if there is none.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Whether this term, or a later one, is there.
    #[must_use]
    pub fn has_term(&self, group: GroupId, term: Term) -> bool {
        self.groups
            .get(&group)
            .is_some_and(|kept| kept.hard.term >= term)
    }

    /// Whether this entry is there, or a base that holds it.
    #[must_use]
    pub fn holds(&self, group: GroupId, index: LogIndex, sealed: Sealed) -> bool {
        self.groups.get(&group).is_some_and(|kept| {
            let there = kept.entries.get(&index);
            kept.bases[0] >= index || there.is_some_and(|(found, _)| *found == sealed)
        })
    }

    /// Whether this index, and all below it, are there in some form.
    #[must_use]
    pub fn reaches(&self, group: GroupId, index: LogIndex) -> bool {
        self.groups
            .get(&group)
            .is_some_and(|kept| kept.bases[0] >= index || kept.entries.contains_key(&index))
    }

    /// Whether a vote of this term for this node is there, or a later term.
    #[must_use]
    pub fn has_voted(&self, group: GroupId, term: Term, node: NodeId) -> bool {
        let hard = self.groups.get(&group).map(|kept| kept.hard);
        hard.is_some_and(|hard| {
            let is_it = hard.vote.is_some_and(|vote| vote.node == node);
            hard.term > term || (hard.term == term && is_it)
        })
    }

    /// The bases that became durable since the last call.
    pub fn take_bases(&mut self) -> Vec<BaseRecord> {
        std::mem::take(&mut self.bases)
    }

    /// Whether a start has read all that is kept: the first entry that it has not, if there is one, or
    /// entry 0 for the term and vote. What is below the newest base that it found may be gone.
    #[must_use]
    pub fn missing_in(&self, read: &Recovered) -> Option<(GroupId, LogIndex)> {
        self.groups.iter().find_map(|(id, kept)| {
            let log = read.groups.get(id);
            let base = log.and_then(|log| log.bases.first());
            let base = base.map_or(LogIndex(0), |base| base.index);
            let entries = log.map_or(&[][..], |log| &log.entries[..]);
            let first = entries.first().map_or(LogIndex(0), |entry| entry.index);
            let is_there = |index: LogIndex, sealed: Sealed| {
                let place = index.0.checked_sub(first.0);
                let place = place.and_then(|place| usize::try_from(place).ok());
                let found = place.and_then(|place| entries.get(place));
                found.is_some_and(|entry| (entry.term, entry.crc) == sealed)
            };
            // A write that failed may be on disk as a whole, and have replaced what is known.
            let is_replaced = |index: LogIndex, term: Term| {
                let place = entries.binary_search_by_key(&index, |entry| entry.index);
                place.is_ok_and(|place| entries[place].term > term)
            };
            let above = kept.entries.range(base.next()..);
            let mut above =
                above.take_while(|(index, ((term, _), _))| !is_replaced(**index, *term));
            let missing = above.find(|(index, (sealed, _))| !is_there(**index, *sealed));
            let missing = missing.map(|(index, _)| (*id, *index));
            // A write that was under way may be there too.
            let hard = log.map(|log| log.hard).unwrap_or_default();
            let has_vote = hard.term > kept.hard.term
                || (hard.term == kept.hard.term
                    && (kept.hard.vote.is_none() || kept.hard.vote == hard.vote));
            let missing = missing.or_else(|| (!has_vote).then_some((*id, LogIndex(0))));
            missing.or_else(|| (kept.bases[0] > base).then_some((*id, kept.bases[0])))
        })
    }
}
