//! What each batch says again of the batches before it: should one of them be damaged, nothing is in doubt but
//! the entries that were in it.
//!
//! A batch ends with a [`Recap`] of the one before: of each group in it the row, as the head of a segment has
//! it, and the lowest index of its entries; bases that are still in force stand there once more. Earlier
//! batches are told of, too, as far as the last block has room that would be zeros otherwise: under little load
//! a disk may so lose some batches in a row.
//!
//! A base that another replaced at its index is not told again: what is read last at an index is the newer.
//!
//! Entries are not said again: who has a copy is another member. Nor is what the first head of a process
//! says, since a start judges in it what the log before it is worth, and whoever has not read that cannot
//! go by what follows.

use crate::base::bugs::{self, Bug};
use crate::base::ids::{GroupId, LogIndex};
use crate::base::limits::BATCHES_IN_FLIGHT_MAX;
use crate::wal::batch::{BATCH_HEADER_BYTES, batch_bytes};
use crate::wal::codec::{GROUP_ROW_BYTES, record_bytes};
use crate::wal::ledger::Ledger;
use crate::wal::record::{BaseRecord, Recap, RecapRow, Record};
use std::collections::VecDeque;

/// A batch tells of no more than may be under way to the disk at once.
const BATCHES_MAX: usize = BATCHES_IN_FLIGHT_MAX;

/// What there is to say again of a batch.
#[derive(Debug, Default)]
struct Told {
    /// Its groups, rising, and the lowest index of each in it.
    groups: Vec<(GroupId, Option<LogIndex>)>,
    /// Its bases.
    bases: Vec<Record>,
}

impl Told {
    fn bytes(&self) -> usize {
        let bases = self.bases.iter();
        let bases = bases.map(|base| record_bytes(base.body_bytes()));
        recap_bytes(self.groups.len()) + bases.sum::<usize>()
    }
}

/// What a recap of so many groups takes.
fn recap_bytes(groups: usize) -> usize {
    record_bytes(groups * GROUP_ROW_BYTES)
}

/// The last batches that were sealed.
#[derive(Debug)]
pub(super) struct Recaps {
    /// The newest last.
    recent: VecDeque<Told>,
    /// What is said again in a batch takes no more.
    bytes_max: usize,
}

impl Recaps {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            recent: VecDeque::new(),
            bytes_max,
        }
    }

    /// Another batch is sealed; what is in it is noted next.
    pub(super) fn begin(&mut self) {
        let is_full = self.recent.len() == BATCHES_MAX;
        let emptied = is_full.then(|| self.recent.pop_front()).flatten();
        let mut told = emptied.unwrap_or_default();
        told.groups.clear();
        told.bases.clear();
        self.recent.push_back(told);
    }

    pub(super) fn note_entry(&mut self, group: GroupId, index: LogIndex) {
        self.name(group, Some(index));
    }

    pub(super) fn note(&mut self, record: &Record) {
        match record {
            Record::HardState { group, .. } => self.name(*group, None),
            Record::GroupTable(rows) => rows.iter().for_each(|row| self.name(row.group, None)),
            Record::Base(base) => {
                self.name(base.group, None);
                let told = self.recent.back_mut().expect("its batch was begun");
                if !bugs::on(Bug::BasesNotToldAgain) {
                    told.bases.push(record.clone());
                }
            }
            Record::Entry { .. }
            | Record::SegmentHead(_)
            | Record::Footer(_)
            | Record::Recap(_) => {}
        }
    }

    fn name(&mut self, group: GroupId, entry: Option<LogIndex>) {
        let told = self.recent.back_mut().expect("its batch was begun");
        match told
            .groups
            .binary_search_by_key(&group, |(known, _)| *known)
        {
            Ok(place) => {
                let lowest = &mut told.groups[place].1;
                *lowest = [*lowest, entry].into_iter().flatten().min();
            }
            Err(place) => told.groups.insert(place, (group, entry)),
        }
    }

    /// What the next batch has to say again, at the least.
    pub(super) fn bytes_due(&self) -> usize {
        let due = self.recent.back().map_or(0, Told::bytes);
        if due > self.bytes_max { 0 } else { due }
    }

    /// What a batch says again that follows one with so many groups.
    pub(super) fn bytes_of(&self, groups: usize) -> usize {
        recap_bytes(groups).min(self.bytes_max)
    }

    /// Says all this, of the bases those that are still in force, at the end of batch number `batch_seq`, whose
    /// records stand in `buffer` behind room for its header; in how many records.
    pub(super) fn encode(
        &self,
        ledger: &Ledger,
        is_in_force: impl Fn(&BaseRecord) -> bool,
        batch_seq: u64,
        buffer: &mut Vec<u8>,
    ) -> u32 {
        let due = self.bytes_due();
        let end = batch_bytes(buffer.len() - BATCH_HEADER_BYTES + due);
        let mut count = 0;
        for (before, told) in (0..batch_seq).rev().zip(self.recent.iter().rev()) {
            let bytes = told.bytes();
            if bytes > self.bytes_max || buffer.len() + bytes > end {
                break;
            }
            let rows = told.groups.iter().filter_map(|(group, first)| {
                let row = ledger.row(*group)?;
                // It was of an earlier life, or replaced since.
                let first = first.filter(|first| *first <= row.last.0);
                Some(RecapRow { row, first })
            });
            let recap = Record::Recap(Recap {
                batch_seq: before,
                rows: rows.collect(),
            });
            let bases = told.bases.iter();
            let bases =
                bases.filter(|base| matches!(base, Record::Base(base) if is_in_force(base)));
            for record in bases.chain(std::iter::once(&recap)) {
                record.encode(buffer);
                count += 1;
            }
        }
        count
    }
}
