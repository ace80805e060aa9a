//! The writer: records in, batches out; many groups, one log.
//!
//! Group commit, without a clock: records gather while writes are under way. A batch leaves when
//! nothing is in flight, or when [`BATCH_BYTES_GATHER`] are gathered and fewer than
//! [`BATCHES_IN_FLIGHT_MAX`] batches are in flight.
//!
//! ```text
//! append ─> filling batches ─> next_write: seal (number, position, chain, durable LSN) ─> driver
//!                                   │ with recaps of those before
//!                                   │ does not fit: FOOTER, then SEG_HEAD of the next segment
//! completed(batch) ─> durable = longest prefix without a gap ─> durable_ticket, droppable
//! ```
//!
//! # Invariants
//!
//! - Positions are dense: a batch starts where the one before ends, also across segments.
//! - Everything is noted in the ledger when it is sealed, so a segment's head repeats exactly what
//!   precedes it in the log.
//! - A footer always fits: room for it is kept before a batch is let in. It is written only when
//!   the name of the next segment is durable.
//! - A process begins a segment of its own and never appends to an old one.
//! - A batch says again what the one before it has left of each group (`recap`), unless that is the
//!   process's first head or would take too much.
//!
//! Deliberately absent: buffers and files (the driver copies the batch into its aligned buffer);
//! reading (see [`crate::wal::recovery`]); retries: a failed write ends the process.

use crate::base::bugs::{self, Bug};
use crate::base::ids::{ClusterId, DiskId, GroupId, Incarnation, LogIndex, ShardId};
use crate::base::limits::{
    BATCH_BYTES_GATHER, BATCH_BYTES_MAX, BATCHES_IN_FLIGHT_MAX, BLOCK_BYTES, SEGMENT_BYTES,
};
use crate::base::units::Lsn;
use crate::wal::batch::{
    BATCH_HEADER_BYTES, BEACON, BatchHeader, FOOTER, LARGE_NEXT, SEG_HEAD, WalBatch, batch_bytes,
};
use crate::wal::codec::{encode_entry, record_bytes};
use crate::wal::ledger::{EntryMark, Ledger};
use crate::wal::pieces::{Held, Pieces};
use crate::wal::recap::Recaps;
use crate::wal::record::{BaseRecord, Record};
use crate::wal::segment::{Echo, RUN_BYTES, RUN_ENTRY_BYTES, SegmentEnd, SegmentHead, epoch};
use std::collections::{BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

pub use crate::wal::ledger::{GroupStart, LogStart, OldSegment};

/// Whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The disk.
    pub disk: DiskId,
    /// The shard.
    pub shard: ShardId,
    /// The WAL set.
    pub wal_set: u32,
}

/// Which batch carries a record: comparable with [`LogWriter::durable_ticket`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A write that the driver must do: whole, at once, then synced.
#[derive(Clone, Debug)]
pub struct WalWrite {
    /// The segment.
    pub segment: u64,
    /// Where in it.
    pub offset: u64,
    /// What to tell [`LogWriter::completed`].
    pub batch_seq: u64,
    /// The bytes.
    pub batch: WalBatch,
}

/// What [`LogWriter::drain`] needs done.
#[derive(Debug)]
pub enum Need {
    /// A segment of this number, whole.
    Segment(u64),
    /// A write.
    Write(WalWrite),
}

/// A batch that still gathers.
#[derive(Debug)]
struct Filling {
    ticket: Ticket,
    /// Room for the header, then records.
    buffer: Vec<u8>,
    records: u32,
    marks: Vec<Mark>,
    /// The bases in it.
    bases: BTreeSet<(GroupId, LogIndex)>,
    /// Runs that the batch adds to the footer, at the most.
    runs: usize,
}

/// What the ledger must know of a record when it is sealed.
#[derive(Debug)]
enum Mark {
    Entry(EntryMark),
    Other(Box<Record>),
}

impl Filling {
    fn footer_bytes(&self) -> usize {
        self.runs * RUN_BYTES + self.marks.len() * RUN_ENTRY_BYTES
    }

    /// Whether `mark` goes on where the last mark ended.
    fn continues(&self, mark: &EntryMark) -> bool {
        matches!(self.marks.last(), Some(Mark::Entry(last))
            if (last.group, last.incarnation) == (mark.group, mark.incarnation)
                && last.index.next() == mark.index)
    }
}

/// A batch that the driver writes.
#[derive(Debug)]
struct InFlight {
    batch_seq: u64,
    end: Lsn,
    flags: u8,
    segment: u64,
    /// All records up to this ticket are in it or before it.
    ticket: Ticket,
    /// What it wrote, for a later batch: memory that was just used need not be found anew.
    buffer: Arc<Vec<u8>>,
    done: bool,
}

/// The writer of a shard's log.
#[derive(Debug)]
pub struct LogWriter {
    identity: LogIdentity,
    epoch_seed: u64,
    segment_bytes: usize,
    batch_bytes_max: usize,
    ledger: Ledger,
    pieces: Pieces,
    echoes: Vec<Echo>,

    /// The segment being written, or to be begun.
    segment: u64,
    /// Whether the segment's head is still to be written.
    head_due: bool,
    /// A batch let the segment roll and may follow without waiting again.
    rolled: bool,
    /// Bytes of the segment that are used.
    offset: usize,
    previous: Option<SegmentEnd>,
    end_lsn: Lsn,
    batch_seq: u64,
    prev_crc: u32,

    filling: VecDeque<Filling>,
    pending_bytes: usize,
    /// Emptied, for the next batches.
    spare_buffers: Vec<Vec<u8>>,
    spare_marks: Vec<Mark>,
    next_ticket: Ticket,
    sealed_ticket: Ticket,
    beacon_due: bool,
    /// The last batch says that a large one follows.
    announced: bool,
    recaps: Recaps,

    in_flight: VecDeque<InFlight>,
    durable_lsn: Lsn,
    durable_ticket: Ticket,
    /// The durable LSN in the last sealed batch.
    claimed_lsn: Lsn,
    /// Durable up to here with records worth a proof.
    unproved_lsn: Lsn,

    ready: BTreeSet<u64>,
    next_wanted: u64,
}

impl LogWriter {
    /// A writer that goes on at `start`. `epoch_seed` is drawn anew by each process.
    #[must_use]
    pub fn new(identity: LogIdentity, start: LogStart, epoch_seed: u64) -> Self {
        Self::with_segment_bytes(identity, start, epoch_seed, SEGMENT_BYTES)
    }

    /// A writer with segments of another size, for tests.
    ///
    /// # Panics
    /// If the size is no multiple of the block.
    #[must_use]
    pub fn with_segment_bytes(
        identity: LogIdentity,
        start: LogStart,
        epoch_seed: u64,
        segment_bytes: usize,
    ) -> Self {
        assert!(
            segment_bytes.is_multiple_of(BLOCK_BYTES) && segment_bytes > 0,
            "a segment of {segment_bytes} bytes is no multiple of {BLOCK_BYTES}"
        );
        let previous_end = start.previous.map_or(start.lsn, |end| end.end_lsn);
        assert!(
            previous_end == start.lsn,
            "the log starts at {} but its last segment ends at {previous_end}",
            start.lsn
        );
        let batch_bytes_max = (segment_bytes / 4).next_multiple_of(BLOCK_BYTES);
        let batch_bytes_max = batch_bytes_max.min(BATCH_BYTES_MAX);
        Self {
            identity,
            epoch_seed,
            segment_bytes,
            batch_bytes_max,
            ledger: Ledger::new(&start),
            pieces: Pieces::default(),
            segment: start.segment,
            head_due: true,
            rolled: false,
            offset: 0,
            previous: start.previous,
            end_lsn: start.lsn,
            batch_seq: start.batch_seq,
            prev_crc: start.previous.map_or(0, |end| end.end_crc),
            echoes: start.echoes,
            filling: VecDeque::new(),
            pending_bytes: 0,
            spare_buffers: Vec::new(),
            spare_marks: Vec::new(),
            next_ticket: Ticket(1),
            sealed_ticket: Ticket(0),
            beacon_due: false,
            announced: false,
            recaps: Recaps::new(batch_bytes_max / 4),
            in_flight: VecDeque::new(),
            durable_lsn: start.lsn,
            durable_ticket: Ticket(0),
            claimed_lsn: start.lsn,
            unproved_lsn: start.lsn,
            ready: BTreeSet::new(),
            next_wanted: start.segment,
        }
    }

    /// Adds a record to the batch that gathers. Segment heads, footers and recaps are the writer's own.
    ///
    /// # Panics
    /// If the record is one of those.
    pub fn append(&mut self, record: Record) -> Ticket {
        assert!(
            !matches!(
                record,
                Record::SegmentHead(_) | Record::Footer(_) | Record::Recap(_)
            ),
            "heads, footers and recaps are written by the writer itself, not appended: {record:?}"
        );
        let room = record_bytes(record.body_bytes());
        let filling = self.filling_for(room);
        let before = filling.buffer.len();
        filling.records += 1;
        match record {
            Record::Entry {
                group,
                incarnation,
                entry,
            } => {
                encode_entry(group, incarnation, &entry, &mut filling.buffer);
                let size = |bytes| u32::try_from(bytes).expect("a batch is smaller than a segment");
                let mark = EntryMark {
                    group,
                    incarnation,
                    index: entry.index,
                    term: entry.term,
                    crc: entry.crc,
                    offset: size(before),
                    bytes: size(filling.buffer.len() - before),
                };
                filling.runs += usize::from(!filling.continues(&mark));
                filling.marks.push(Mark::Entry(mark));
            }
            other => {
                other.encode(&mut filling.buffer);
                if let Record::Base(base) = &other {
                    filling.bases.insert((base.group, base.index));
                }
                filling.marks.push(Mark::Other(Box::new(other)));
            }
        }
        let (grown, ticket) = (filling.buffer.len() - before, filling.ticket);
        self.pending_bytes += grown;
        ticket
    }

    /// The batch that a record of `room` bytes goes into.
    fn filling_for(&mut self, room: usize) -> &mut Filling {
        let full = self.batch_bytes_max - self.recaps.bytes_of(self.ledger.groups());
        let is_full = self
            .filling
            .back()
            .is_none_or(|last| last.buffer.len() + room > full);
        if is_full {
            let mut buffer = self.spare_buffers.pop().unwrap_or_default();
            buffer.reserve(batch_bytes(room));
            buffer.resize(BATCH_HEADER_BYTES, 0);
            self.filling.push_back(Filling {
                ticket: self.next_ticket,
                buffer,
                records: 0,
                marks: std::mem::take(&mut self.spare_marks),
                bases: BTreeSet::new(),
                runs: 0,
            });
            self.next_ticket.0 += 1;
        }
        self.filling.back_mut().expect("there is one now")
    }

    /// Whether a record waits to be written.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.filling.is_empty()
    }

    /// Bytes of records that wait to be written.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Batches handed out and not completed, or completed behind one that is not.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The next batch to write, if one may leave now. Called until there is none.
    pub fn next_write(&mut self) -> Option<WalWrite> {
        if self.in_flight.len() >= BATCHES_IN_FLIGHT_MAX {
            return None;
        }
        if self.head_due {
            return self.ready.contains(&self.segment).then(|| self.seal_head());
        }
        if !self.may_leave() {
            return None;
        }
        if self.fits() {
            let is_large = self.is_large();
            if is_large && !self.announced {
                self.announced = true;
                return Some(self.seal_empty(LARGE_NEXT));
            }
            self.announced = false;
            return Some(match self.filling.pop_front() {
                Some(filling) => self.seal_filling(filling),
                None => self.seal_empty(BEACON),
            });
        }
        let has_successor = self.ready.contains(&(self.segment + 1));
        (has_successor || bugs::on(Bug::FooterBeforeSuccessor)).then(|| self.seal_footer())
    }

    /// The submit rule.
    fn may_leave(&self) -> bool {
        let is_idle = self.in_flight.is_empty() || self.rolled;
        match self.filling.len() {
            0 => self.beacon_due,
            1 => is_idle || self.pending_bytes >= BATCH_BYTES_GATHER.min(self.batch_bytes_max),
            _ => true,
        }
    }

    /// Whether the next batch is longer than others.
    fn is_large(&self) -> bool {
        let next = self.filling.front();
        next.is_some_and(|filling| filling.buffer.len() > self.batch_bytes_max)
    }

    /// Whether the next batch, what announces it, and a footer fit into the segment.
    fn fits(&self) -> bool {
        let recap = self.recaps.bytes_due();
        let (payload, more) = self.filling.front().map_or((0, 0), |filling| {
            (
                filling.buffer.len() - BATCH_HEADER_BYTES,
                filling.footer_bytes(),
            )
        });
        let batch = batch_bytes(payload + recap);
        let footer = batch_bytes(record_bytes(self.ledger.footer_bytes() + more));
        let notice = match self.is_large() && !self.announced {
            true => batch_bytes(recap),
            false => 0,
        };
        self.offset + notice + batch + footer <= self.segment_bytes
    }

    fn seal_filling(&mut self, mut filling: Filling) -> WalWrite {
        self.rolled = false;
        self.pending_bytes -= filling.buffer.len() - BATCH_HEADER_BYTES;
        self.sealed_ticket = filling.ticket;
        let at = u32::try_from(self.offset).expect("a segment is smaller than 4 GiB");
        let start = self.end_lsn;
        let write = self.seal_with_recaps(filling.buffer, 0, filling.records, &filling.bases);
        for mark in filling.marks.drain(..) {
            match mark {
                Mark::Entry(mark) => {
                    self.recaps.note_entry(mark.group, mark.index);
                    let of = (mark.group, mark.incarnation);
                    self.pieces.note_entry(of, mark.index, mark.bytes);
                    self.ledger.note_entry(mark, start, at);
                }
                Mark::Other(record) => {
                    self.recaps.note(&record);
                    if let Record::Base(base) = &*record
                        && self.ledger.starts_anew(base)
                    {
                        self.pieces.forget(base.group);
                    }
                    self.ledger.note(*record, self.end_lsn);
                }
            }
        }
        self.spare_marks = filling.marks;
        write
    }

    fn seal_footer(&mut self) -> WalWrite {
        let mut buffer = vec![0; BATCH_HEADER_BYTES];
        let footer_bytes = self.ledger.footer_bytes();
        let end = Lsn(self.end_lsn.0 + batch_bytes(record_bytes(footer_bytes)) as u64);
        let footer = self.ledger.close(self.segment, end);
        Record::Footer(footer).encode(&mut buffer);
        let write = self.seal(buffer, FOOTER, 1);
        assert!(
            self.end_lsn == end,
            "the footer ends at {} instead of {end}",
            self.end_lsn
        );
        self.previous = Some(SegmentEnd {
            segment: self.segment,
            end_lsn: end,
            end_crc: self.prev_crc,
        });
        self.ready.remove(&self.segment);
        self.segment += 1;
        self.offset = 0;
        self.head_due = true;
        self.rolled = true;
        write
    }

    fn seal_head(&mut self) -> WalWrite {
        let head = Record::SegmentHead(SegmentHead {
            cluster: self.identity.cluster,
            disk: self.identity.disk,
            wal_set: self.identity.wal_set,
            shard: self.identity.shard,
            number: self.segment,
            base_lsn: self.end_lsn,
            previous: self.previous,
            batch_seq: self.batch_seq,
            echoes: self.echoes.clone(),
        });
        let mut buffer = vec![0; BATCH_HEADER_BYTES];
        let mut records = 0;
        for record in std::iter::once(head).chain(self.ledger.repeated()) {
            record.encode(&mut buffer);
            records += 1;
        }
        self.head_due = false;
        let write = self.seal(buffer, SEG_HEAD, records);
        assert!(
            self.filling.is_empty() || self.fits(),
            "a segment of {} bytes has no room for its head of {} bytes and the next batch",
            self.segment_bytes,
            self.offset
        );
        write
    }

    fn seal_empty(&mut self, flags: u8) -> WalWrite {
        self.seal_with_recaps(vec![0; BATCH_HEADER_BYTES], flags, 0, &BTreeSet::new())
    }

    /// Seals a batch with so many records, these bases among them, none of which is noted yet.
    fn seal_with_recaps(
        &mut self,
        mut buffer: Vec<u8>,
        flags: u8,
        records: u32,
        bases: &BTreeSet<(GroupId, LogIndex)>,
    ) -> WalWrite {
        // Of two bases at one index, what is read last is the newer.
        let is_in_force = |base: &BaseRecord| {
            self.ledger.has_base(base) && !bases.contains(&(base.group, base.index))
        };
        let more = self
            .recaps
            .encode(&self.ledger, is_in_force, self.batch_seq, &mut buffer);
        self.seal(buffer, flags, records + more)
    }

    /// Seals a batch at the end of the log.
    fn seal(&mut self, mut buffer: Vec<u8>, flags: u8, records: u32) -> WalWrite {
        let header = BatchHeader {
            flags,
            lsn: self.end_lsn,
            epoch: epoch(self.epoch_seed, self.segment),
            batch_seq: self.batch_seq,
            durable_lsn: if bugs::on(Bug::DurableClaimedEarly) {
                self.end_lsn
            } else {
                self.durable_lsn
            },
            records,
            prev_crc: self.prev_crc,
            ..BatchHeader::default()
        };
        self.prev_crc = header.seal(&mut buffer);
        let buffer = Arc::new(buffer);
        self.claimed_lsn = self.durable_lsn;
        self.beacon_due = false;
        let write = WalWrite {
            segment: self.segment,
            offset: self.offset as u64,
            batch_seq: self.batch_seq,
            batch: WalBatch(buffer.clone()),
        };
        let size = |bytes| u32::try_from(bytes).expect("a segment is smaller than 4 GiB");
        let (at, bytes) = (size(self.offset), size(write.batch.encoded_len()));
        self.pieces
            .note_batch(self.end_lsn, self.segment, at, bytes);
        self.offset += write.batch.encoded_len();
        assert!(
            self.offset <= self.segment_bytes,
            "batch {} ends at byte {} of a segment of {}",
            self.batch_seq,
            self.offset,
            self.segment_bytes
        );
        self.end_lsn.0 += write.batch.encoded_len() as u64;
        self.in_flight.push_back(InFlight {
            batch_seq: self.batch_seq,
            end: self.end_lsn,
            flags,
            segment: self.segment,
            ticket: self.sealed_ticket,
            buffer,
            done: false,
        });
        self.batch_seq += 1;
        // Of the first head of a process nothing is said again.
        if flags != SEG_HEAD || self.rolled {
            self.recaps.begin();
        }
        write
    }

    /// Lets an empty batch carry the durable LSN if no later batch has done so. The driver calls it
    /// after 5 ms without a write; whether there is something to prove.
    pub fn beacon(&mut self) -> bool {
        let is_idle = self.in_flight.is_empty() && self.filling.is_empty();
        if is_idle && !self.head_due && self.unproved_lsn > self.claimed_lsn {
            self.beacon_due = true;
        }
        self.beacon_due
    }

    /// Writes all that waits, of a log that no shard writes yet: `meet` does what it needs, one after the
    /// other, and makes a segment only when something waits for it. A write counts as durable once it is met;
    /// the driver syncs all of them before anything depends on it.
    ///
    /// # Errors
    /// The first of `meet`.
    pub fn drain<E>(&mut self, meet: &mut impl FnMut(Need) -> Result<(), E>) -> Result<(), E> {
        loop {
            if let Some(write) = self.next_write() {
                let batch_seq = write.batch_seq;
                meet(Need::Write(write))?;
                self.completed(batch_seq);
            } else if self.head_due || self.has_pending() || self.beacon_due {
                let number = self.segment_wanted();
                let number = number.expect("with no write under way only a segment can be missing");
                meet(Need::Segment(number))?;
                self.segment_ready(number);
            } else {
                return Ok(());
            }
        }
    }

    /// As [`Self::drain`], and then proves all of it by an empty batch.
    ///
    /// # Errors
    /// The first of `meet`.
    pub fn drain_proved<E>(
        &mut self,
        meet: &mut impl FnMut(Need) -> Result<(), E>,
    ) -> Result<(), E> {
        self.drain(meet)?;
        while self.beacon() {
            self.drain(meet)?;
        }
        Ok(())
    }

    /// The driver has written and synced a batch; whether the durable prefix grew.
    ///
    /// # Panics
    /// If the batch is not in flight.
    pub fn completed(&mut self, batch_seq: u64) -> bool {
        let has_gap = bugs::on(Bug::DurableWithGap);
        let batch = self
            .in_flight
            .iter_mut()
            .find(|batch| batch.batch_seq == batch_seq && !batch.done);
        if has_gap && batch.is_none() {
            return false;
        }
        batch.expect("a batch completes once").done = true;
        for before in &mut self.in_flight {
            before.done |= has_gap && before.batch_seq < batch_seq;
        }
        let before = self.durable_lsn;
        while let Some(batch) = self.in_flight.pop_front_if(|batch| batch.done) {
            self.durable_lsn = batch.end;
            self.durable_ticket = batch.ticket;
            if !matches!(batch.flags, BEACON | LARGE_NEXT) {
                self.unproved_lsn = batch.end;
            }
            if batch.flags == SEG_HEAD {
                self.ledger.durable_head(batch.segment);
            }
            // A single large entry may have made it larger than a batch.
            let is_usual = batch.buffer.capacity() <= 2 * self.batch_bytes_max;
            if is_usual && self.spare_buffers.len() < BATCHES_IN_FLIGHT_MAX {
                let emptied = |mut buffer: Vec<u8>| {
                    buffer.clear();
                    buffer
                };
                // The driver may hold it still.
                self.spare_buffers
                    .extend(Arc::try_unwrap(batch.buffer).ok().map(emptied));
            }
        }
        self.ledger.durable(self.durable_lsn);
        self.durable_lsn > before
    }

    /// All records with this ticket or an earlier one are durable.
    #[must_use]
    pub fn durable_ticket(&self) -> Ticket {
        self.durable_ticket
    }

    /// The log is durable up to here.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.durable_lsn
    }

    /// The end of all batches handed out.
    #[must_use]
    pub fn end_lsn(&self) -> Lsn {
        self.end_lsn
    }

    /// The number of the segment to prepare next, each once: that to be begun, and one ahead. The
    /// names must become durable in this order, since a gap in the numbers is damage.
    pub fn segment_wanted(&mut self) -> Option<u64> {
        let wanted = self.next_wanted;
        (wanted <= self.segment + 1).then(|| {
            self.next_wanted += 1;
            wanted
        })
    }

    /// The file of this segment has its full size, and its name is durable.
    pub fn segment_ready(&mut self, number: u64) {
        assert!(
            number >= self.segment && number < self.next_wanted,
            "segment {number} is ready but was not wanted; {} is being written",
            self.segment
        );
        self.ready.insert(number);
    }

    /// Segments that nobody needs any more, each once; see [`crate::wal::ledger`].
    pub fn droppable(&mut self) -> Vec<u64> {
        let numbers = self.ledger.droppable();
        self.pieces.drop_segments(&numbers);
        numbers
    }

    /// Where an entry that this process wrote lies in the log, with the rest of its piece that is
    /// durable; `None` if it does not, or not any more. It may not be durable yet: then the piece ends
    /// before it.
    #[must_use]
    pub fn find(&self, group: GroupId, incarnation: Incarnation, index: LogIndex) -> Option<Held> {
        let mut held = self.pieces.find(group, incarnation, index)?;
        let durable = self.durable_lsn.0.saturating_sub(held.piece.lsn.0);
        if let Ok(durable) = u32::try_from(durable)
            && durable < held.piece.bytes
        {
            (held.piece.bytes, held.is_durable) = (durable, false);
        }
        Some(held)
    }

    /// What entries of a group take in the log, in bytes; `None` if one of them is not there any more.
    #[must_use]
    pub fn bytes_of(
        &self,
        group: GroupId,
        incarnation: Incarnation,
        entries: RangeInclusive<LogIndex>,
    ) -> Option<u64> {
        self.pieces.bytes_of(group, incarnation, entries)
    }
}
