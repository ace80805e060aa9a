//! Group commit as pure data: records in, batches with their places out.
//!
//! A batch is submitted when nothing is under way, or when enough has gathered and fewer than
//! [`BATCHES_IN_FLIGHT_MAX`] are. So a lone request waits for nobody, and a busy log writes few large
//! batches. Completions come in any order; what counts is the longest contiguous prefix.
//!
//! Segments are asked for one ahead ([`LogWriter::segment_wanted`]); a batch never waits for a file
//! to be made unless the disk is that slow. A full segment ends with a footer, and the next begins
//! with a head that repeats what older segments alone knew.

use crate::base::ids::{ClusterId, DiskId, GroupId, Incarnation, LogIndex, ShardId, Term};
use crate::base::limits::{
    BATCH_BYTES_GATHER, BATCH_BYTES_MAX, BATCHES_IN_FLIGHT_MAX, SEGMENT_BYTES,
};
use crate::base::prng::mix;
use crate::base::units::Lsn;
use crate::wal::batch::{BatchHead, BatchKind, WalBatch, batch_len};
use crate::wal::record::{
    BaseRecord, FORMAT, Footer, GroupRow, HardState, RECORD_HEAD_BYTES, Record, RowStatus, Run,
    SegmentEnd, SegmentHead,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data directory.
    pub disk: DiskId,
    /// The shard.
    pub shard: ShardId,
    /// Which life of the shard's log.
    pub wal_set: u32,
}

/// Which batch carries a record. A record is durable when its ticket is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What the log knows of a group without its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMarks {
    /// Which life of the group.
    pub incarnation: Incarnation,
    /// Term, vote, commit.
    pub hard: HardState,
    /// Index and term of its last entry.
    pub last: (LogIndex, Term),
    /// Bases in force, newest first, at most two.
    pub bases: Vec<BaseRecord>,
    /// Whether its log can be trusted.
    pub status: RowStatus,
}

impl GroupMarks {
    /// The marks of a group of which only a base is known.
    #[must_use]
    pub fn of_base(base: BaseRecord) -> Self {
        Self {
            incarnation: base.incarnation,
            hard: HardState::default(),
            last: (base.index, base.term),
            bases: vec![base],
            status: RowStatus::Ok,
        }
    }

    /// Puts a base in force. A higher incarnation makes everything before it void.
    pub(super) fn install(&mut self, base: &BaseRecord) {
        if base.incarnation > self.incarnation {
            *self = Self {
                hard: self.hard,
                ..Self::of_base(base.clone())
            };
            return;
        }
        if base.incarnation == self.incarnation {
            self.bases.retain(|held| held.index != base.index);
            self.bases.push(base.clone());
            self.bases.sort_by_key(|held| std::cmp::Reverse(held.index));
            self.bases.truncate(2);
        }
    }

    fn row(&self) -> GroupRow {
        let base = &self.bases[0];
        GroupRow {
            group: base.group,
            incarnation: self.incarnation,
            hard: self.hard,
            last: self.last,
            base: (base.index, base.term),
            root_hash: base.root_hash,
            root: base.root,
            log_start_lsn: base.log_start_lsn,
            status: self.status,
        }
    }
}

/// A segment that is full, or of an earlier process: which entries it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OldSegment {
    /// Its number.
    pub number: u64,
    /// The highest index of each group in it.
    pub highest: BTreeMap<GroupId, LogIndex>,
}

/// Where a log goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStart {
    /// The first segment to write.
    pub segment: u64,
    /// Its number of the first batch.
    pub batch_seq: u64,
    /// Where the log ends.
    pub end: SegmentEnd,
    /// The groups.
    pub groups: BTreeMap<GroupId, GroupMarks>,
    /// Segments that hold what is still needed, ascending.
    pub old: VecDeque<OldSegment>,
    /// The size of a segment, in bytes.
    pub segment_bytes: usize,
}

impl LogStart {
    /// The start of a log that has nothing in it.
    #[must_use]
    pub fn fresh() -> Self {
        Self {
            segment: 1,
            batch_seq: 1,
            segment_bytes: SEGMENT_BYTES,
            ..Self::default()
        }
    }
}

/// A batch with its place: what a driver writes.
#[derive(Clone, Debug)]
pub struct WalWrite {
    /// The segment.
    pub segment: u64,
    /// Where in it, in bytes.
    pub offset: u64,
    /// The number to report when it is durable.
    pub batch_seq: u64,
    /// The bytes.
    pub batch: WalBatch,
}

/// The segment being written.
struct Current {
    number: u64,
    epoch: u64,
    first_lsn: Lsn,
    runs: Vec<Run>,
    /// Length of the footer's body so far.
    footer_body: usize,
    highest: BTreeMap<GroupId, LogIndex>,
    footer_written: bool,
}

/// Records that will be one batch.
#[derive(Default)]
struct Filling {
    ticket: Ticket,
    records: Vec<Record>,
    bytes: usize,
    /// What its entries add to a footer, at the most.
    footer_bytes: usize,
}

struct InFlight {
    batch_seq: u64,
    end: Lsn,
    ticket: Option<Ticket>,
    bases: Vec<BaseRecord>,
    starts_segment: Option<u64>,
    done: bool,
}

/// The log of a shard, as it is written.
pub struct LogWriter {
    identity: LogIdentity,
    epoch_seed: u64,
    segment_bytes: usize,
    first_segment: u64,
    current: Option<Current>,
    /// The last segment asked for, and those that are there.
    wanted: u64,
    ready: BTreeSet<u64>,
    /// The end of what was submitted, and the checksum of its last batch.
    end: Lsn,
    last_crc: u32,
    next_batch: u64,
    filling: VecDeque<Filling>,
    next_ticket: u64,
    beacon_wanted: bool,
    in_flight: VecDeque<InFlight>,
    durable: Lsn,
    durable_ticket: Ticket,
    /// The durable LSN that the last submitted batch carries.
    told: Lsn,
    groups: BTreeMap<GroupId, GroupMarks>,
    /// The oldest base of each group that is durable: the log is needed from there on.
    needed_from: BTreeMap<GroupId, Vec<LogIndex>>,
    old: VecDeque<OldSegment>,
    /// The newest segment whose head is durable.
    durable_head: u64,
    droppable_changed: bool,
}

impl LogWriter {
    /// A log that goes on at `start`. `epoch_seed` must differ between processes.
    #[must_use]
    pub fn new(identity: LogIdentity, start: LogStart, epoch_seed: u64) -> Self {
        let LogStart {
            segment,
            batch_seq,
            end,
            groups,
            old,
            segment_bytes,
        } = start;
        let needed_from = groups
            .iter()
            .map(|(group, marks)| (*group, marks.bases.iter().map(|base| base.index).collect()))
            .collect();
        Self {
            identity,
            epoch_seed,
            segment_bytes,
            first_segment: segment,
            current: None,
            wanted: segment - 1,
            ready: BTreeSet::new(),
            end: end.lsn,
            last_crc: end.crc,
            next_batch: batch_seq,
            filling: VecDeque::new(),
            next_ticket: 1,
            beacon_wanted: false,
            in_flight: VecDeque::new(),
            durable: end.lsn,
            durable_ticket: Ticket(0),
            told: Lsn(0),
            groups,
            needed_from,
            old,
            durable_head: 0,
            droppable_changed: true,
        }
    }

    /// Adds a record to the batch that is filling.
    pub fn append(&mut self, record: Record) -> Ticket {
        let bytes = record.encoded_len();
        // A run of its own is the most that an entry adds to the footer.
        let footer_bytes = if matches!(record, Record::Entry { .. }) {
            32
        } else {
            0
        };
        let fits = |filling: &Filling| filling.bytes + bytes <= BATCH_BYTES_MAX;
        if !self.filling.back().is_some_and(fits) {
            let ticket = Ticket(self.next_ticket);
            self.next_ticket += 1;
            self.filling.push_back(Filling {
                ticket,
                ..Filling::default()
            });
        }
        let filling = self.filling.back_mut().expect("one was just made sure of");
        filling.records.push(record);
        filling.bytes += bytes;
        filling.footer_bytes += footer_bytes;
        filling.ticket
    }

    /// Whether records wait to be submitted.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.filling.is_empty() || self.beacon_wanted
    }

    /// Batches under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Asks for an empty batch if something durable is not proved so by a later batch. False if
    /// there is nothing to prove.
    pub fn beacon(&mut self) -> bool {
        self.beacon_wanted = self.current.is_some() && self.durable > self.told;
        self.beacon_wanted
    }

    /// The next batch to write, if one is to be submitted now. Call it until it yields none.
    pub fn next_write(&mut self) -> Option<WalWrite> {
        let gathered = self.filling.front().map_or(0, |filling| filling.bytes);
        let full = gathered >= BATCH_BYTES_GATHER || self.filling.len() > 1;
        let submit = match self.in_flight.len() {
            0 => self.has_pending(),
            under_way => full && under_way < BATCHES_IN_FLIGHT_MAX,
        };
        let mid_roll = self
            .current
            .as_ref()
            .is_some_and(|current| current.footer_written);
        if !submit && !(mid_roll && self.has_pending()) {
            return None;
        }
        let footer_bytes = self
            .filling
            .front()
            .map_or(0, |filling| filling.footer_bytes);
        if !self.fits(gathered, footer_bytes) {
            return self.roll();
        }
        if self.filling.is_empty() {
            self.beacon_wanted = false;
            return Some(self.submit(BatchKind::Beacon, &[], None));
        }
        let filling = self.filling.pop_front().expect("it is not empty");
        self.beacon_wanted = false;
        let write = self.submit(BatchKind::Data, &filling.records, Some(filling.ticket));
        self.note(&write, filling.records);
        Some(write)
    }

    /// Whether a batch of this much fits into the segment, with the footer after it.
    fn fits(&self, bytes: usize, footer_bytes: usize) -> bool {
        let Some(current) = self
            .current
            .as_ref()
            .filter(|current| !current.footer_written)
        else {
            return false;
        };
        let footer = 8 + RECORD_HEAD_BYTES + current.footer_body + footer_bytes;
        let used = usize::try_from(self.end.0 - current.first_lsn.0).expect("within a segment");
        used + batch_len(bytes) + batch_len(footer) <= self.segment_bytes
    }

    /// One step of the way to the next segment: the footer of the present one, then the head.
    fn roll(&mut self) -> Option<WalWrite> {
        let next = self
            .current
            .as_ref()
            .map_or(self.first_segment, |current| current.number + 1);
        if !self.ready.contains(&next) || self.in_flight.len() >= BATCHES_IN_FLIGHT_MAX {
            return None;
        }
        if let Some(current) = self
            .current
            .as_mut()
            .filter(|current| !current.footer_written)
        {
            current.footer_written = true;
            let footer = Footer {
                runs: std::mem::take(&mut current.runs),
            };
            return Some(self.submit(BatchKind::Footer, &[Record::Footer(footer)], None));
        }
        let segment = self.current.take().map_or(0, |current| {
            let old = OldSegment {
                number: current.number,
                highest: current.highest,
            };
            self.old.push_back(old);
            current.number
        });
        let segment = if segment == 0 { next - 1 } else { segment };
        let epoch = mix(self.epoch_seed ^ mix(next ^ mix(self.end.0))) | 1;
        self.current = Some(Current {
            number: next,
            epoch,
            first_lsn: self.end,
            runs: Vec::new(),
            footer_body: 8,
            highest: BTreeMap::new(),
            footer_written: false,
        });
        self.ready.remove(&next);
        let head = SegmentHead {
            cluster: self.identity.cluster,
            disk: self.identity.disk,
            wal_set: self.identity.wal_set,
            format: FORMAT,
            shard: self.identity.shard,
            number: next,
            first_lsn: self.end,
            first_batch: self.next_batch,
            previous: SegmentEnd {
                segment,
                lsn: self.end,
                crc: self.last_crc,
            },
            echoes: Vec::new(),
        };
        let rows = self.groups.values().map(GroupMarks::row).collect();
        let mut records = vec![Record::SegmentHead(head), Record::GroupTable(rows)];
        let bases = self
            .groups
            .values()
            .flat_map(|marks| marks.bases.iter().rev());
        records.extend(bases.cloned().map(Record::Base));
        let write = self.submit(BatchKind::SegmentHead, &records, None);
        self.in_flight
            .back_mut()
            .expect("it was just submitted")
            .starts_segment = Some(next);
        Some(write)
    }

    fn submit(&mut self, kind: BatchKind, records: &[Record], ticket: Option<Ticket>) -> WalWrite {
        let current = self
            .current
            .as_ref()
            .expect("a batch is written into a segment");
        let head = BatchHead {
            kind,
            lsn: self.end,
            epoch: current.epoch,
            batch_seq: self.next_batch,
            durable: self.durable,
            previous_crc: self.last_crc,
        };
        let batch = WalBatch::seal(&head, records);
        let offset = self.end.0 - current.first_lsn.0;
        assert!(
            offset + batch.encoded_len() as u64 <= self.segment_bytes as u64,
            "a batch of {} bytes at {offset} does not fit into a segment of {}",
            batch.encoded_len(),
            self.segment_bytes
        );
        let write = WalWrite {
            segment: current.number,
            offset,
            batch_seq: self.next_batch,
            batch,
        };
        self.told = self.durable;
        self.end = Lsn(self.end.0 + write.batch.encoded_len() as u64);
        self.last_crc = write.batch.crc();
        self.next_batch += 1;
        self.in_flight.push_back(InFlight {
            batch_seq: write.batch_seq,
            end: self.end,
            ticket,
            bases: Vec::new(),
            starts_segment: None,
            done: false,
        });
        write
    }

    /// Takes note of what a batch holds: for the footer, for the next head, for what is needed.
    fn note(&mut self, write: &WalWrite, records: Vec<Record>) {
        let current = self
            .current
            .as_mut()
            .expect("a batch was just written into it");
        let mut at = write.offset as usize + crate::wal::batch::BATCH_HEAD_BYTES;
        for record in records {
            let len = record.encoded_len();
            match record {
                Record::Entry {
                    group,
                    incarnation,
                    entry,
                } => {
                    let place = (u32::try_from(at).expect("within a segment"), entry.crc);
                    let next = |run: &Run| run.first.0 + run.entries.len() as u64;
                    match current.runs.iter_mut().rev().find(|run| run.group == group) {
                        Some(run)
                            if run.incarnation == incarnation && next(run) == entry.index.0 =>
                        {
                            run.entries.push(place);
                            current.footer_body += 8;
                        }
                        _ => {
                            let (first, entries) = (entry.index, vec![place]);
                            current.runs.push(Run {
                                group,
                                incarnation,
                                first,
                                entries,
                            });
                            current.footer_body += 32;
                        }
                    }
                    let highest = current.highest.entry(group).or_default();
                    *highest = (*highest).max(entry.index);
                    if let Some(marks) = self.groups.get_mut(&group) {
                        marks.last = (entry.index, entry.term);
                    }
                }
                Record::HardState { group, state, .. } => {
                    if let Some(marks) = self.groups.get_mut(&group) {
                        marks.hard = state;
                    }
                }
                Record::Base(base) => {
                    match self.groups.get_mut(&base.group) {
                        Some(marks) => marks.install(&base),
                        None => {
                            self.groups
                                .insert(base.group, GroupMarks::of_base(base.clone()));
                        }
                    }
                    self.in_flight
                        .back_mut()
                        .expect("it was just submitted")
                        .bases
                        .push(base);
                }
                Record::GroupTable(_) | Record::SegmentHead(_) | Record::Footer(_) => {
                    panic!("heads and footers are made here, not appended")
                }
            }
            at += len;
        }
    }

    /// A batch is on disk, whole. True if the durable prefix grew.
    ///
    /// # Panics
    /// If it is not under way.
    pub fn completed(&mut self, batch_seq: u64) -> bool {
        let batch = self
            .in_flight
            .iter_mut()
            .find(|batch| batch.batch_seq == batch_seq);
        batch
            .unwrap_or_else(|| panic!("batch {batch_seq} is not under way"))
            .done = true;
        let mut grew = false;
        while self.in_flight.front().is_some_and(|batch| batch.done) {
            let batch = self.in_flight.pop_front().expect("the front was just seen");
            grew = true;
            self.durable = batch.end;
            self.durable_ticket = batch.ticket.unwrap_or(self.durable_ticket);
            for base in batch.bases {
                let needed = self.needed_from.entry(base.group).or_default();
                needed.retain(|index| *index != base.index);
                needed.insert(0, base.index);
                needed.truncate(2);
                self.droppable_changed = true;
            }
            if let Some(segment) = batch.starts_segment {
                self.durable_head = segment;
                self.droppable_changed = true;
            }
        }
        grew
    }

    /// All records with this ticket or a lower one are durable.
    #[must_use]
    pub fn durable_ticket(&self) -> Ticket {
        self.durable_ticket
    }

    /// Everything before this position is durable.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.durable
    }

    /// The end of what was submitted.
    #[must_use]
    pub fn end_lsn(&self) -> Lsn {
        self.end
    }

    /// The number of a segment to make ready, each once: the next one to write, and one ahead.
    pub fn segment_wanted(&mut self) -> Option<u64> {
        let ahead = self
            .current
            .as_ref()
            .map_or(self.first_segment, |current| current.number + 1);
        (self.wanted < ahead).then(|| {
            self.wanted += 1;
            self.wanted
        })
    }

    /// A segment can be written, and its name is durable.
    pub fn segment_ready(&mut self, number: u64) {
        self.ready.insert(number);
    }

    /// Segments that nothing needs any more, oldest first, each once.
    ///
    /// A segment is needed while it holds entries above the older of a group's two bases, or while
    /// no durable head after it repeats what else is in it.
    pub fn droppable(&mut self) -> Vec<u64> {
        if !std::mem::take(&mut self.droppable_changed) {
            return Vec::new();
        }
        let mut numbers = Vec::new();
        while let Some(oldest) = self.old.front() {
            let needed = |(group, highest): (&GroupId, &LogIndex)| {
                let bases = self.needed_from.get(group);
                bases
                    .and_then(|bases| bases.last())
                    .is_none_or(|base| highest > base)
            };
            if oldest.number >= self.durable_head || oldest.highest.iter().any(needed) {
                break;
            }
            numbers.push(oldest.number);
            self.old.pop_front();
        }
        numbers
    }
}
