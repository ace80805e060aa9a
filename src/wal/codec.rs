//! Records as bytes: what a batch holds behind its header.
//!
//! # Layout of a record
//!
//! Little-endian; a record starts on a multiple of 8 within its batch, zeros fill up to the next.
//!
//! | offset | size | field | in an entry | in the others |
//! | --- | --- | --- | --- | --- |
//! | 0 | 4 | length of header and body | | |
//! | 4 | 1 | type | 1 | 2 hard state, 3 group table, 4 base, 5 segment head, 6 footer, 7 recap |
//! | 5 | 1 | kind | [`EntryKind`] | 0 |
//! | 6 | 2 | machine version | of the entry | of the base, else 0 |
//! | 8 | 4 | group | | hard state and base, else 0 |
//! | 12 | 4 | incarnation | | hard state and base, else 0 |
//! | 16 | 4 | the entry's seal | | 0 |
//! | 20 | 4 | flags | of the entry | 0 |
//! | 24 | 8 | index | of the entry | commit of a hard state, index of a base, rows of a table, batch of a recap, else 0 |
//! | 32 | 8 | term | of the entry | of the hard state, of the base, else 0 |
//! | 40 | 8 | group time | of the entry | of the base, else 0 |
//! | 48 | … | body | the payload | see below |
//!
//! Body of a hard state: voted u32 (0 or 1), node u32, disk tag u32, zero u32.
//!
//! Body of a base, 64 bytes and the members: root hash (16), root file u64, root offset u64, root
//! length u32, has a root u32 (0 or 1), log start LSN u64, wall offset i64, members u32, zero u32;
//! then per member: node u32, [role](crate::base::members::MemberRole) u32, disk id (16).
//!
//! Body of a group table, and of a recap: rows of 128 bytes.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4+4 | group, incarnation |
//! | 8 | 8+8 | term, commit |
//! | 24 | 4+4 | vote: node, disk tag |
//! | 32 | 8+8 | last entry: index, term |
//! | 48 | 8+8 | newest base: index, term |
//! | 64 | 16 | root hash |
//! | 80 | 8+8+4 | root file, offset, length |
//! | 100 | 4 | flags: 1 voted, 2 has a root, 4 recovering |
//! | 104 | 8 | log start LSN |
//! | 112 | 8 | recovering since this index |
//! | 120 | 8 | in a recap: the lowest index that its batch holds of the group, 0 if none; else zero |
//!
//! Segment head and footer are told in [`crate::wal::segment`].
//!
//! # Invariants
//!
//! A decoder refuses what it does not know (a type, a kind, a reserve that is not zero): the batch
//! around it was intact, so a newer or a faulty program wrote it, and skipping it could lose what
//! was acknowledged. Only a broken seal is told apart: that entry is damaged, its neighbours stand.
//!
//! # To change this format
//!
//! Raise [`FORMAT`](crate::wal::segment::FORMAT), keep decoding the older, and add to the golden
//! bytes of the tests. A reserve may get a meaning whose zero is the old behaviour.

use crate::base::checksum::Hash128;
use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{DiskId, GroupId, Incarnation, LogIndex, NodeId, Term, Voter};
use crate::base::members::{Member, MemberRole};
use crate::base::units::{GroupTime, Lsn};
use crate::wal::batch::POSITION_END;
use crate::wal::record::{
    BaseRecord, GroupRow, HardState, Recap, RecapRow, Record, RootLocation, RowStatus, Vote,
};
use crate::wal::segment::{Footer, SegmentHead};
use bytes::Bytes;

/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 48;
/// Bytes of a row of the group table.
pub const GROUP_ROW_BYTES: usize = 128;

/// Why the bytes of an intact batch are not records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A length that leaves the batch.
    #[error("the record at byte {offset} of the batch claims {len} bytes")]
    BadLength {
        /// Where the record starts, counted from the start of the batch's records.
        offset: usize,
        /// The length.
        len: u32,
    },
    /// A type that a newer version wrote.
    #[error("the record at byte {offset} of the batch has the unknown type {found}")]
    UnknownType {
        /// Where the record starts.
        offset: usize,
        /// The type.
        found: u8,
    },
    /// A kind of entry that a newer version wrote.
    #[error("the entry at byte {offset} of the batch has the unknown kind {found}")]
    UnknownKind {
        /// Where the record starts.
        offset: usize,
        /// The kind.
        found: u8,
    },
    /// A field that makes no sense.
    #[error("the {what} of the record at byte {offset} of the batch makes no sense")]
    Malformed {
        /// Where the record starts.
        offset: usize,
        /// Which field.
        what: &'static str,
    },
    /// A segment head of a newer format.
    #[error("log format {found} is newer than the newest that this version reads, {max}")]
    TooNew {
        /// Its format.
        found: u16,
        /// The newest that this binary reads.
        max: u16,
    },
    /// An entry that is not what its leader sealed; the records around it are sound.
    #[error("the seal of entry {index} of group {group} is broken")]
    BrokenSeal {
        /// The group that the record names.
        group: GroupId,
        /// The index that the record names.
        index: LogIndex,
    },
}

const HARD_STATE_BYTES: usize = 16;
const BASE_BYTES: usize = 64;
const MEMBER_BYTES: usize = 24;

const TYPE_ENTRY: u8 = 1;
const TYPE_HARD_STATE: u8 = 2;
const TYPE_GROUP_TABLE: u8 = 3;
const TYPE_BASE: u8 = 4;
const TYPE_SEGMENT_HEAD: u8 = 5;
const TYPE_FOOTER: u8 = 6;
const TYPE_RECAP: u8 = 7;

const ROW_VOTED: u32 = 1;
const ROW_ROOT: u32 = 2;
const ROW_RECOVERING: u32 = 4;

/// The header of a record, without its length.
#[derive(Clone, Copy, Debug, Default)]
struct Header {
    kind_of_record: u8,
    kind: u8,
    machine_version: u16,
    group: u32,
    incarnation: u32,
    entry_crc: u32,
    flags: u32,
    index: u64,
    term: u64,
    time: u64,
}

impl Header {
    fn to_bytes(self, len: u32) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&len.to_le_bytes());
        bytes[4] = self.kind_of_record;
        bytes[5] = self.kind;
        bytes[6..8].copy_from_slice(&self.machine_version.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.group.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.entry_crc.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.flags.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.index.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.term.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.time.to_le_bytes());
        bytes
    }
}

/// Bytes that a record with a body of `body` bytes takes in a batch.
#[must_use]
pub fn record_bytes(body: usize) -> usize {
    (RECORD_HEADER_BYTES + body).next_multiple_of(8)
}

/// Appends the record of an entry to `out`.
pub fn encode_entry(group: GroupId, incarnation: Incarnation, entry: &Entry, out: &mut Vec<u8>) {
    let header = Header {
        kind_of_record: TYPE_ENTRY,
        kind: entry.kind as u8,
        machine_version: entry.machine_version,
        group: u32::from(group.0),
        incarnation: incarnation.0,
        entry_crc: entry.crc,
        flags: entry.flags,
        index: entry.index.0,
        term: entry.term.0,
        time: entry.time.0,
    };
    put(header, &entry.payload, out);
}

fn put(header: Header, body: &[u8], out: &mut Vec<u8>) {
    let len = RECORD_HEADER_BYTES + body.len();
    let len = u32::try_from(len).expect("a record is smaller than a segment");
    out.extend_from_slice(&header.to_bytes(len));
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(8), 0);
}

impl Record {
    /// Bytes of the record's body.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        match self {
            Self::Entry { entry, .. } => entry.payload.len(),
            Self::HardState { .. } => HARD_STATE_BYTES,
            Self::GroupTable(rows) => rows.len() * GROUP_ROW_BYTES,
            Self::Base(base) => BASE_BYTES + base.members.len() * MEMBER_BYTES,
            Self::SegmentHead(head) => head.body_bytes(),
            Self::Footer(footer) => footer.body_bytes(),
            Self::Recap(recap) => recap.rows.len() * GROUP_ROW_BYTES,
        }
    }

    /// Appends the record to `out`, which holds whole records.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut header = Header::default();
        let mut body = Vec::with_capacity(self.body_bytes());
        match self {
            Self::Entry {
                group,
                incarnation,
                entry,
            } => return encode_entry(*group, *incarnation, entry, out),
            Self::HardState {
                group,
                incarnation,
                state,
            } => {
                header.kind_of_record = TYPE_HARD_STATE;
                header.group = u32::from(group.0);
                header.incarnation = incarnation.0;
                header.index = state.commit.0;
                header.term = state.term.0;
                let (node, tag) = state.vote.map_or((0, 0), |v| (v.node.0, v.disk_tag));
                for word in [u32::from(state.vote.is_some()), node, tag, 0] {
                    body.extend_from_slice(&word.to_le_bytes());
                }
            }
            Self::GroupTable(rows) => {
                header.kind_of_record = TYPE_GROUP_TABLE;
                header.index = rows.len() as u64;
                for row in rows {
                    encode_row(row, LogIndex(0), &mut body);
                }
            }
            Self::Base(base) => {
                header.kind_of_record = TYPE_BASE;
                header.machine_version = base.machine_version;
                header.group = u32::from(base.group.0);
                header.incarnation = base.incarnation.0;
                header.index = base.index.0;
                header.term = base.term.0;
                header.time = base.time.0;
                encode_base(base, &mut body);
            }
            Self::SegmentHead(head) => {
                header.kind_of_record = TYPE_SEGMENT_HEAD;
                head.encode(&mut body);
            }
            Self::Footer(footer) => {
                header.kind_of_record = TYPE_FOOTER;
                footer.encode(&mut body);
            }
            Self::Recap(recap) => {
                header.kind_of_record = TYPE_RECAP;
                header.index = recap.batch_seq;
                for row in &recap.rows {
                    encode_row(&row.row, row.first.unwrap_or_default(), &mut body);
                }
            }
        }
        assert!(
            body.len() == self.body_bytes(),
            "a body of {} bytes was announced as {}",
            body.len(),
            self.body_bytes()
        );
        put(header, &body, out);
    }
}

fn encode_base(base: &BaseRecord, out: &mut Vec<u8>) {
    let root = base.root.unwrap_or(NO_ROOT);
    out.extend_from_slice(&base.root_hash.0);
    out.extend_from_slice(&root.file.to_le_bytes());
    out.extend_from_slice(&root.offset.to_le_bytes());
    out.extend_from_slice(&root.len.to_le_bytes());
    out.extend_from_slice(&u32::from(base.root.is_some()).to_le_bytes());
    out.extend_from_slice(&base.log_start_lsn.0.to_le_bytes());
    out.extend_from_slice(&base.wall_offset_ms.to_le_bytes());
    out.extend_from_slice(&(base.members.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for Member { voter, role } in &base.members {
        out.extend_from_slice(&voter.node.0.to_le_bytes());
        out.extend_from_slice(&(*role as u32).to_le_bytes());
        out.extend_from_slice(&voter.disk.0);
    }
}

const NO_ROOT: RootLocation = RootLocation {
    file: 0,
    offset: 0,
    len: 0,
};

fn encode_row(row: &GroupRow, first: LogIndex, out: &mut Vec<u8>) {
    let root = row.root.unwrap_or(NO_ROOT);
    let (node, tag) = row.hard.vote.map_or((0, 0), |v| (v.node.0, v.disk_tag));
    let mut flags = 0;
    if row.hard.vote.is_some() {
        flags |= ROW_VOTED;
    }
    if row.root.is_some() {
        flags |= ROW_ROOT;
    }
    let mut since = 0;
    if let RowStatus::Recovering { since: index } = row.status {
        flags |= ROW_RECOVERING;
        since = index.0;
    }
    out.extend_from_slice(&u32::from(row.group.0).to_le_bytes());
    out.extend_from_slice(&row.incarnation.0.to_le_bytes());
    out.extend_from_slice(&row.hard.term.0.to_le_bytes());
    out.extend_from_slice(&row.hard.commit.0.to_le_bytes());
    out.extend_from_slice(&node.to_le_bytes());
    out.extend_from_slice(&tag.to_le_bytes());
    for (index, term) in [row.last, row.base] {
        out.extend_from_slice(&index.0.to_le_bytes());
        out.extend_from_slice(&term.0.to_le_bytes());
    }
    out.extend_from_slice(&row.root_hash.0);
    out.extend_from_slice(&root.file.to_le_bytes());
    out.extend_from_slice(&root.offset.to_le_bytes());
    out.extend_from_slice(&root.len.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&row.log_start_lsn.0.to_le_bytes());
    out.extend_from_slice(&since.to_le_bytes());
    out.extend_from_slice(&first.0.to_le_bytes());
}

/// The records of a batch, one after the other. A broken seal is passed over; any other error ends
/// the walk.
#[derive(Debug)]
pub struct Records {
    payload: Bytes,
    at: usize,
}

impl Records {
    /// Walks `payload`, the records of one batch.
    #[must_use]
    pub fn new(payload: Bytes) -> Self {
        Self { payload, at: 0 }
    }

    /// Where the next record starts, counted from the start of the batch's records.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn take(&mut self) -> Result<Record, RecordError> {
        let offset = self.at;
        let rest = &self.payload[offset..];
        self.at = self.payload.len();
        let malformed = |what| RecordError::Malformed { offset, what };
        if rest.len() < RECORD_HEADER_BYTES {
            return Err(malformed("header"));
        }
        let mut head = Fields::new(rest, offset);
        let len = head.u32("length")?;
        let size = len as usize;
        let end = size.next_multiple_of(8);
        if size < RECORD_HEADER_BYTES || end > rest.len() {
            return Err(RecordError::BadLength { offset, len });
        }
        if rest[size..end].iter().any(|byte| *byte != 0) {
            return Err(malformed("padding"));
        }
        let header = Header {
            kind_of_record: head.u8("type")?,
            kind: head.u8("kind")?,
            machine_version: head.u16("machine version")?,
            group: head.u32("group")?,
            incarnation: head.u32("incarnation")?,
            entry_crc: head.u32("seal")?,
            flags: head.u32("flags")?,
            index: head.u64("index")?,
            term: head.u64("term")?,
            time: head.u64("time")?,
        };
        let body = self
            .payload
            .slice(offset + RECORD_HEADER_BYTES..offset + size);
        let record = decode(header, body, offset);
        if matches!(record, Ok(_) | Err(RecordError::BrokenSeal { .. })) {
            self.at = offset + end;
        }
        record
    }
}

impl Iterator for Records {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.at < self.payload.len()).then(|| self.take())
    }
}

fn decode(header: Header, body: Bytes, offset: usize) -> Result<Record, RecordError> {
    let malformed = |what| RecordError::Malformed { offset, what };
    let group = u16::try_from(header.group).map_err(|_| malformed("group"))?;
    let (group, incarnation) = (GroupId(group), Incarnation(header.incarnation));
    if header.index >= POSITION_END || header.term >= POSITION_END {
        return Err(malformed("index or term"));
    }
    if header.kind_of_record == TYPE_ENTRY {
        return decode_entry(header, group, incarnation, body, offset);
    }
    if header.kind != 0 || header.entry_crc != 0 || header.flags != 0 {
        return Err(malformed("header of no entry"));
    }
    let mut fields = Fields::new(&body, offset);
    let record = match header.kind_of_record {
        TYPE_HARD_STATE => Record::HardState {
            group,
            incarnation,
            state: HardState {
                term: Term(header.term),
                vote: decode_vote(&mut fields)?,
                commit: LogIndex(header.index),
            },
        },
        TYPE_GROUP_TABLE => {
            if header.index != (body.len() / GROUP_ROW_BYTES) as u64 {
                return Err(malformed("number of rows"));
            }
            let rows = decode_rows(&mut fields)?;
            if rows.iter().any(|row| row.first.is_some()) {
                return Err(malformed("reserve of a row"));
            }
            Record::GroupTable(rows.iter().map(|row| row.row).collect())
        }
        TYPE_BASE => Record::Base(decode_base(header, group, incarnation, &mut fields)?),
        TYPE_SEGMENT_HEAD => Record::SegmentHead(SegmentHead::decode(&mut fields)?),
        TYPE_FOOTER => Record::Footer(Footer::decode(&mut fields)?),
        TYPE_RECAP => Record::Recap(Recap {
            batch_seq: header.index,
            rows: decode_rows(&mut fields)?,
        }),
        found => return Err(RecordError::UnknownType { offset, found }),
    };
    fields.end("length")?;
    Ok(record)
}

fn decode_entry(
    header: Header,
    group: GroupId,
    incarnation: Incarnation,
    payload: Bytes,
    offset: usize,
) -> Result<Record, RecordError> {
    let entry = Entry {
        term: Term(header.term),
        index: LogIndex(header.index),
        time: GroupTime(header.time),
        kind: EntryKind::from_u8(header.kind).ok_or(RecordError::UnknownKind {
            offset,
            found: header.kind,
        })?,
        machine_version: header.machine_version,
        flags: header.flags,
        crc: header.entry_crc,
        payload,
    };
    if !entry.is_intact(group, incarnation) {
        let index = entry.index;
        return Err(RecordError::BrokenSeal { group, index });
    }
    Ok(Record::Entry {
        group,
        incarnation,
        entry,
    })
}

fn decode_vote(fields: &mut Fields<'_>) -> Result<Option<Vote>, RecordError> {
    let voted = fields.bool("vote")?;
    let vote = Vote {
        node: NodeId(fields.u32("vote")?),
        disk_tag: fields.u32("vote")?,
    };
    fields.zero::<4>("vote")?;
    Ok(voted.then_some(vote))
}

fn decode_base(
    header: Header,
    group: GroupId,
    incarnation: Incarnation,
    fields: &mut Fields<'_>,
) -> Result<BaseRecord, RecordError> {
    let root_hash = Hash128(fields.array("root hash")?);
    let root = decode_root(fields)?;
    let root = fields.bool("root")?.then_some(root);
    let log_start_lsn = Lsn(fields.u64("log start")?);
    let wall_offset_ms = fields.u64("wall offset")?.cast_signed();
    let count = fields.u32("number of members")?;
    fields.zero::<4>("reserve")?;
    let mut members = Vec::new();
    for _ in 0..count {
        let node = NodeId(fields.u32("member")?);
        let role = MemberRole::from_u32(fields.u32("member")?);
        let role = role.ok_or_else(|| fields.malformed("member"))?;
        let disk = DiskId(fields.array("member")?);
        let voter = Voter { node, disk };
        members.push(Member { voter, role });
    }
    Ok(BaseRecord {
        group,
        incarnation,
        index: LogIndex(header.index),
        term: Term(header.term),
        time: GroupTime(header.time),
        root_hash,
        root,
        log_start_lsn,
        machine_version: header.machine_version,
        wall_offset_ms,
        members,
    })
}

fn decode_root(fields: &mut Fields<'_>) -> Result<RootLocation, RecordError> {
    Ok(RootLocation {
        file: fields.u64("root file")?,
        offset: fields.u64("root offset")?,
        len: fields.u32("root length")?,
    })
}

/// All rows that are left.
fn decode_rows(fields: &mut Fields<'_>) -> Result<Vec<RecapRow>, RecordError> {
    let mut rows = Vec::new();
    while !fields.is_empty() {
        rows.push(decode_row(fields)?);
    }
    Ok(rows)
}

fn decode_row(fields: &mut Fields<'_>) -> Result<RecapRow, RecordError> {
    let group = u16::try_from(fields.u32("group of a row")?)
        .map(GroupId)
        .map_err(|_| fields.malformed("group of a row"))?;
    let incarnation = Incarnation(fields.u32("row")?);
    let term = Term(fields.u64("row")?);
    let commit = LogIndex(fields.u64("row")?);
    let vote = Vote {
        node: NodeId(fields.u32("row")?),
        disk_tag: fields.u32("row")?,
    };
    let last = (LogIndex(fields.u64("row")?), Term(fields.u64("row")?));
    let base = (LogIndex(fields.u64("row")?), Term(fields.u64("row")?));
    if [commit, last.0, base.0]
        .iter()
        .any(|index| index.0 >= POSITION_END)
    {
        return Err(fields.malformed("index of a row"));
    }
    let root_hash = Hash128(fields.array("row")?);
    let root = decode_root(fields)?;
    let flags = fields.u32("row")?;
    if flags & !(ROW_VOTED | ROW_ROOT | ROW_RECOVERING) != 0 {
        return Err(fields.malformed("flags of a row"));
    }
    let log_start_lsn = Lsn(fields.u64("row")?);
    let since = LogIndex(fields.u64("row")?);
    let first = LogIndex(fields.u64("row")?);
    if first > last.0 {
        return Err(fields.malformed("first entry of a row"));
    }
    let row = GroupRow {
        group,
        incarnation,
        hard: HardState {
            term,
            vote: (flags & ROW_VOTED != 0).then_some(vote),
            commit,
        },
        last,
        base,
        root_hash,
        root: (flags & ROW_ROOT != 0).then_some(root),
        log_start_lsn,
        status: if flags & ROW_RECOVERING == 0 {
            RowStatus::Ok
        } else {
            RowStatus::Recovering { since }
        },
    };
    let first = (first.0 > 0).then_some(first);
    Ok(RecapRow { row, first })
}

/// Takes numbers off a body whose every length may be a lie.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    /// Where the record starts, for the error.
    offset: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(rest: &'a [u8], offset: usize) -> Self {
        Self { rest, offset }
    }

    pub(super) fn malformed(&self, what: &'static str) -> RecordError {
        let offset = self.offset;
        RecordError::Malformed { offset, what }
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], RecordError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.malformed(what))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, RecordError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, RecordError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, RecordError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, RecordError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn bool(&mut self, what: &'static str) -> Result<bool, RecordError> {
        match self.u32(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed(what)),
        }
    }

    /// `N` bytes that must be zero.
    pub(super) fn zero<const N: usize>(&mut self, what: &'static str) -> Result<(), RecordError> {
        match self.array(what)? {
            bytes if bytes == [0; N] => Ok(()),
            _ => Err(self.malformed(what)),
        }
    }

    /// Nothing may be left.
    fn end(&self, what: &'static str) -> Result<(), RecordError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(self.malformed(what))
        }
    }
}
