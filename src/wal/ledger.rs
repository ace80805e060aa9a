//! What the writer knows of groups and segments: rows and bases to repeat, the footer to come, and
//! which segments nobody needs.
//!
//! # The drop rule
//!
//! A segment goes when all of this holds; only whole prefixes of the log go, oldest first:
//!
//! - a later segment's head is durable: it repeats every hard state and both bases of each group;
//! - no group has a needed entry in it. Needed are entries above the group's *previous* base, or
//!   above its only one; without a base, all. A base counts from when it is durable.
//!
//! A group that is idle above its previous base pins nothing. An entry that a later one voided
//! pins as if it stood: that ends with the next base.

use crate::base::bugs::{self, Bug};
use crate::base::ids::{GroupId, Incarnation, LogIndex, Term};
use crate::base::limits::BASES_KEPT;
use crate::base::units::Lsn;
use crate::wal::record::{BaseRecord, GroupRow, Record};
use crate::wal::segment::{Echo, Footer, FooterRun, RUN_BYTES, RUN_ENTRY_BYTES, SegmentEnd};
use std::collections::{BTreeMap, VecDeque};

/// A group as the log goes on with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStart {
    /// Its row.
    pub row: GroupRow,
    /// Its bases, newest first, at most two.
    pub bases: Vec<BaseRecord>,
}

/// A segment that an earlier process wrote, or that this one has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldSegment {
    /// Its number.
    pub number: u64,
    /// Where it ends.
    pub end_lsn: Lsn,
    /// The highest index of each group in it.
    pub entries: BTreeMap<GroupId, (Incarnation, LogIndex)>,
}

/// Where and with what a writer begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// The segment to begin: never one that exists.
    pub segment: u64,
    /// Its position.
    pub lsn: Lsn,
    /// Where the log before it was judged to end.
    pub previous: Option<SegmentEnd>,
    /// The number of the next batch.
    pub batch_seq: u64,
    /// All groups.
    pub groups: Vec<GroupStart>,
    /// The segments kept, oldest first.
    pub old: Vec<OldSegment>,
    /// Files that hold nothing of the log: the writer reports them as droppable once its first
    /// segment head is durable.
    pub unused: Vec<u64>,
    /// What the log knows of others; each head repeats it.
    pub echoes: Vec<Echo>,
}

impl LogStart {
    /// The start of a log that has nothing yet.
    #[must_use]
    pub fn fresh() -> Self {
        Self {
            segment: 1,
            lsn: Lsn(0),
            previous: None,
            batch_seq: 1,
            groups: Vec::new(),
            old: Vec::new(),
            unused: Vec::new(),
            echoes: Vec::new(),
        }
    }
}

/// What of an entry the ledger keeps until the footer.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryMark {
    pub(super) group: GroupId,
    pub(super) incarnation: Incarnation,
    pub(super) index: LogIndex,
    pub(super) term: Term,
    pub(super) crc: u32,
    /// Where its record starts in the batch.
    pub(super) offset: u32,
    /// What its record takes.
    pub(super) bytes: u32,
}

/// Below this, entries of a group are not needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Floor {
    index: LogIndex,
    log_start: Lsn,
}

#[derive(Debug, Default)]
struct Track {
    row: GroupRow,
    /// Newest first, at most two.
    bases: Vec<BaseRecord>,
    /// Position of the batch with the last entry.
    last_entry_lsn: Lsn,
    /// The highest index in the segment being written.
    highest: Option<LogIndex>,
    runs: Vec<FooterRun>,
    floor: Floor,
}

/// Groups and segments. Everything is noted when its batch is sealed, so the ledger is what the log
/// says up to the end of the last sealed batch.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    groups: BTreeMap<GroupId, Track>,
    /// Segments that are left, oldest first.
    old: VecDeque<OldSegment>,
    unused: Vec<u64>,
    /// Floors that hold once the log is durable up to a position.
    floors: VecDeque<(Lsn, GroupId, Incarnation, Floor)>,
    /// The newest segment whose head is durable.
    durable_head: Option<u64>,
    footer_bytes: usize,
    /// Something happened that may let a segment go.
    dirty: bool,
}

fn floor_of(bases: &[BaseRecord]) -> Floor {
    bases.last().map_or_else(Floor::default, |base| Floor {
        index: base.index,
        log_start: base.log_start_lsn,
    })
}

impl Ledger {
    pub(super) fn new(start: &LogStart) -> Self {
        let track = |group: &GroupStart| Track {
            row: group.row,
            bases: group.bases.clone(),
            last_entry_lsn: start.lsn,
            floor: floor_of(&group.bases),
            ..Track::default()
        };
        Self {
            groups: start
                .groups
                .iter()
                .map(|group| (group.row.group, track(group)))
                .collect(),
            old: start.old.iter().cloned().collect(),
            unused: start.unused.clone(),
            ..Self::default()
        }
    }

    /// The group's state, made anew if `incarnation` is a new life; `None` for an earlier life.
    fn track(&mut self, group: GroupId, incarnation: Incarnation) -> Option<&mut Track> {
        let track = self.groups.entry(group).or_default();
        if track.row.group != group || track.row.incarnation < incarnation {
            *track = Track {
                row: GroupRow {
                    group,
                    incarnation,
                    ..GroupRow::default()
                },
                runs: std::mem::take(&mut track.runs),
                ..Track::default()
            };
        }
        (track.row.incarnation == incarnation).then_some(track)
    }

    /// Notes an entry of a batch that is sealed at `lsn`, `at` bytes into its segment.
    pub(super) fn note_entry(&mut self, mark: EntryMark, lsn: Lsn, at: u32) {
        let Some(track) = self.track(mark.group, mark.incarnation) else {
            return;
        };
        track.row.last = (mark.index, mark.term);
        track.last_entry_lsn = lsn;
        track.highest = track.highest.max(Some(mark.index));
        let place = (at + mark.offset, mark.crc);
        let follows = track.runs.last_mut().filter(|run| {
            run.incarnation == mark.incarnation
                && run.first.0 + run.entries.len() as u64 == mark.index.0
        });
        let mut grown = RUN_ENTRY_BYTES;
        if let Some(run) = follows {
            run.entries.push(place);
        } else {
            grown += RUN_BYTES;
            track.runs.push(FooterRun {
                group: mark.group,
                incarnation: mark.incarnation,
                first: mark.index,
                entries: vec![place],
            });
        }
        self.footer_bytes += grown;
    }

    /// Notes any other record of a batch that is sealed and ends at `end`.
    pub(super) fn note(&mut self, record: Record, end: Lsn) {
        match record {
            Record::HardState {
                group,
                incarnation,
                state,
            } => {
                let track = self.track(group, incarnation);
                if let Some(track) = track.filter(|_| !bugs::on(Bug::HeadWithoutVote)) {
                    track.row.hard = state;
                }
            }
            Record::Base(base) => self.note_base(base, end),
            Record::GroupTable(rows) => {
                for row in rows {
                    if let Some(track) = self.track(row.group, row.incarnation) {
                        track.row.status = row.status;
                    }
                }
            }
            Record::Entry { .. }
            | Record::SegmentHead(_)
            | Record::Footer(_)
            | Record::Recap(_) => {}
        }
    }

    /// How many groups there are.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// A group's row, of a group that the log says anything of.
    pub(super) fn row(&self, group: GroupId) -> Option<GroupRow> {
        self.groups.get(&group).map(|track| track.row)
    }

    /// Whether what the log holds of a group means nothing behind this base, which is not noted yet.
    pub(super) fn starts_anew(&self, base: &BaseRecord) -> bool {
        let track = self.groups.get(&base.group);
        track.is_none_or(|track| track.row.log_start_lsn != base.log_start_lsn)
    }

    /// Whether this is a base that its group may start from.
    pub(super) fn has_base(&self, base: &BaseRecord) -> bool {
        let track = self.groups.get(&base.group);
        track.is_some_and(|track| track.bases.contains(base))
    }

    fn note_base(&mut self, base: BaseRecord, end: Lsn) {
        let (group, incarnation) = (base.group, base.incarnation);
        let Some(track) = self.track(group, incarnation) else {
            return;
        };
        let start = base.log_start_lsn;
        if base.index > track.row.last.0 || track.last_entry_lsn < start {
            track.row.last = (base.index, base.term);
        }
        track.row.base = (base.index, base.term);
        track.row.root_hash = base.root_hash;
        track.row.root = base.root;
        track.row.log_start_lsn = start;
        // A base that the log below does not lead to stands alone.
        track
            .bases
            .retain(|old| old.index < base.index && old.log_start_lsn == start);
        track.bases.insert(0, base);
        track.bases.truncate(BASES_KEPT);
        let floor = if bugs::on(Bug::DropBeforeBase) {
            track.floor = floor_of(&track.bases[..1]);
            track.floor
        } else {
            floor_of(&track.bases)
        };
        self.dirty |= bugs::on(Bug::DropBeforeBase);
        self.floors.push_back((end, group, incarnation, floor));
    }

    /// The log is durable up to here.
    pub(super) fn durable(&mut self, lsn: Lsn) {
        while let Some((_, group, incarnation, floor)) =
            self.floors.pop_front_if(|(end, ..)| *end <= lsn)
        {
            if let Some(track) = self.track(group, incarnation) {
                track.floor = floor;
            }
            self.dirty = true;
        }
    }

    /// The head of this segment is durable.
    pub(super) fn durable_head(&mut self, number: u64) {
        self.durable_head = Some(number);
        self.dirty = true;
    }

    /// Bytes of the footer's body so far.
    pub(super) fn footer_bytes(&self) -> usize {
        self.footer_bytes
    }

    /// The segment being written is full: its footer.
    pub(super) fn close(&mut self, number: u64, end_lsn: Lsn) -> Footer {
        let mut footer = Footer::default();
        let mut entries = BTreeMap::new();
        for (group, track) in &mut self.groups {
            footer.runs.append(&mut track.runs);
            if let Some(highest) = track.highest.take() {
                entries.insert(*group, (track.row.incarnation, highest));
            }
        }
        self.footer_bytes = 0;
        self.old.push_back(OldSegment {
            number,
            end_lsn,
            entries,
        });
        footer
    }

    /// What a segment's head repeats.
    pub(super) fn repeated(&self) -> impl Iterator<Item = Record> {
        let rows = self.groups.values().map(|track| track.row).collect();
        let bases = self
            .groups
            .values()
            .flat_map(|track| track.bases.iter().rev().cloned().map(Record::Base));
        std::iter::once(Record::GroupTable(rows)).chain(bases)
    }

    /// Segments that nobody needs any more, each once.
    pub(super) fn droppable(&mut self) -> Vec<u64> {
        let Some(head) = self.durable_head.filter(|_| self.dirty) else {
            return Vec::new();
        };
        self.dirty = false;
        let mut dropped = std::mem::take(&mut self.unused);
        while let Some(segment) = self.old.front() {
            if segment.number >= head || self.is_pinned(segment) {
                break;
            }
            dropped.push(segment.number);
            self.old.pop_front();
        }
        dropped
    }

    fn is_pinned(&self, segment: &OldSegment) -> bool {
        segment
            .entries
            .iter()
            .any(|(group, (incarnation, highest))| {
                self.groups.get(group).is_some_and(|track| {
                    track.row.incarnation == *incarnation
                        && *highest > track.floor.index
                        && segment.end_lsn > track.floor.log_start
                })
            })
    }
}
