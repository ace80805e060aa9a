//! The bytes of a record: the only description of them.
//!
//! A record is a head of 48 bytes and a body, padded with zeros to a multiple of 8. All numbers are
//! little-endian.
//!
//! | at | bytes | field | of which types |
//! | --- | --- | --- | --- |
//! | 0 | 4 | length of the body | all |
//! | 4 | 1 | type: 1 entry, 2 hard state, 3 group table, 4 base, 5 segment head, 6 footer | all |
//! | 5 | 1 | kind of the entry | entry |
//! | 6 | 2 | version of the job machine | entry, base |
//! | 8 | 4 | group | entry, hard state, base |
//! | 12 | 4 | incarnation | entry, hard state, base |
//! | 16 | 4 | seal of the entry | entry |
//! | 20 | 4 | flags of the entry | entry |
//! | 24 | 8 | index; the commit mark of a hard state | entry, hard state, base |
//! | 32 | 8 | term | entry, hard state, base |
//! | 40 | 8 | group time, ms | entry, base |
//!
//! Bodies: an entry's is its payload. The others:
//!
//! | type | body |
//! | --- | --- |
//! | hard state | voted u8, zeros 3, node u32, disk tag u32, zeros 4 |
//! | group table | rows of 128 bytes, see [`GroupRow`] |
//! | base | root hash 16, root file u64, offset u64, length u32, has root u8, zeros 3, log start u64, wall offset i64, voters u32, zeros 4; a voter: node u32, zeros 4, disk 16 |
//! | segment head | cluster 16, disk 16, WAL set u32, format u16, shard u16, number u64, first LSN u64, first batch u64, previous segment u64, its end LSN u64, its last crc u32, echoes u32; an echo: disk 16, WAL set u32, shard u16, zeros 2, durable LSN u64 |
//! | footer | runs u32, zeros 4; a run: group u32, incarnation u32, first index u64, count u32, zeros 4, then per entry: offset in the segment u32, seal u32 |
//!
//! A row of the group table: group u32, incarnation u32, term u64, voted u8, status u8, zeros 2,
//! vote's node u32, vote's disk tag u32, root length u32, commit u64, last index u64, last term u64,
//! base index u64, base term u64, root hash 16, root file u64, root offset u64, log start u64,
//! recovering since u64, zeros 8.
//!
//! To change a format: add a record type or raise the segment's format version, and keep reading the
//! old one. A type, kind or version that is not known is refused by name, never skipped.

use crate::base::checksum::Hash128;
use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{ClusterId, DiskId, GroupId, Incarnation, LogIndex, NodeId, ShardId, Term};
use crate::base::units::{GroupTime, Lsn};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The format of segments that this version writes, and the newest that it reads.
pub const FORMAT: u16 = 1;
/// The head of a record.
pub const RECORD_HEAD_BYTES: usize = 48;
/// A row of the group table.
pub const ROW_BYTES: usize = 128;
/// The highest version of the job machine that this version reads.
pub const MACHINE_VERSION_MAX: u16 = 1;

/// Term, vote and commit mark of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The highest term seen.
    pub term: Term,
    /// Who got its vote in that term.
    pub vote: Option<Vote>,
    /// Committed as far as known when it was written.
    pub commit: LogIndex,
}

/// A vote: the node, and the first four bytes of its disk id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The node.
    pub node: NodeId,
    /// Which of its disks.
    pub disk_tag: u32,
}

/// A checkpoint of a group that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseRecord {
    /// The group.
    pub group: GroupId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// The last entry that is in it.
    pub index: LogIndex,
    /// The term of that entry.
    pub term: Term,
    /// The group's time after it.
    pub time: GroupTime,
    /// What its root hashes to.
    pub root_hash: Hash128,
    /// Where its root lies; none at formation, when it is empty.
    pub root: Option<RootLocation>,
    /// Earlier records of the group are void.
    pub log_start_lsn: Lsn,
    /// The version of the job machine after it.
    pub machine_version: u16,
    /// Wall time minus group time, in milliseconds.
    pub wall_offset_ms: i64,
    /// Who votes.
    pub voters: Vec<(NodeId, DiskId)>,
}

/// A place in a run file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootLocation {
    /// The file: start number (high 32 bits) and counter.
    pub file: u64,
    /// Where in it, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A group as a segment head repeats it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRow {
    /// The group.
    pub group: GroupId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Term, vote, commit.
    pub hard: HardState,
    /// Index and term of its last entry in the log.
    pub last: (LogIndex, Term),
    /// Index and term of its newest base.
    pub base: (LogIndex, Term),
    /// What the root of that base hashes to.
    pub root_hash: Hash128,
    /// Where it lies.
    pub root: Option<RootLocation>,
    /// Earlier records of the group are void.
    pub log_start_lsn: Lsn,
    /// Whether it may vote and acknowledge.
    pub status: RowStatus,
}

/// Whether the log of a group can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowStatus {
    /// It can.
    Ok,
    /// Entries from this index on may be missing: no vote, no ack.
    Recovering {
        /// The first in doubt.
        since: LogIndex,
    },
}

/// The first record of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data directory.
    pub disk: DiskId,
    /// Which life of the shard's log.
    pub wal_set: u32,
    /// The format of the segment.
    pub format: u16,
    /// The shard.
    pub shard: ShardId,
    /// The number of the segment; rises by one.
    pub number: u64,
    /// Where in the log it starts.
    pub first_lsn: Lsn,
    /// The number of its first batch.
    pub first_batch: u64,
    /// Where the segment before it ends. What lies beyond was judged never acknowledged.
    pub previous: SegmentEnd,
    /// How far the logs of peers are durable, as heard.
    pub echoes: Vec<Echo>,
}

/// The end of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentEnd {
    /// Its number; 0 if there was none.
    pub segment: u64,
    /// The position after its last batch.
    pub lsn: Lsn,
    /// The checksum of that batch.
    pub crc: u32,
}

/// What a peer said of its own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Its disk.
    pub disk: DiskId,
    /// Which life of its log.
    pub wal_set: u32,
    /// Its shard.
    pub shard: ShardId,
    /// Durable up to here.
    pub durable: Lsn,
}

/// What a segment holds, so that entries are known by name even if their bytes are damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footer {
    /// Runs of entries with consecutive indexes, in the order of the log.
    pub runs: Vec<Run>,
}

/// Entries of one group with consecutive indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The group.
    pub group: GroupId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// The index of the first.
    pub first: LogIndex,
    /// Offset in the segment and seal of each.
    pub entries: Vec<(u32, u32)>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry of a group.
    Entry {
        /// The group.
        group: GroupId,
        /// Which life of it.
        incarnation: Incarnation,
        /// The entry.
        entry: Entry,
    },
    /// Term, vote and commit of a group.
    HardState {
        /// The group.
        group: GroupId,
        /// Which life of it.
        incarnation: Incarnation,
        /// Term, vote and commit.
        state: HardState,
    },
    /// All groups, in a segment head.
    GroupTable(Vec<GroupRow>),
    /// A checkpoint that is in force.
    Base(BaseRecord),
    /// The first of a segment.
    SegmentHead(SegmentHead),
    /// The last of a segment.
    Footer(Footer),
}

/// Why bytes are not a record of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The record is longer than what is left of its batch.
    #[error("a record of {needed} bytes in {left} bytes")]
    Truncated {
        /// Its length.
        needed: usize,
        /// What is left.
        left: usize,
    },
    /// A type that a newer version wrote.
    #[error("a record of the unknown type {0}")]
    UnknownType(u8),
    /// A kind of entry that a newer version wrote.
    #[error("an entry of the unknown kind {0}")]
    UnknownKind(u8),
    /// A job machine that a newer version runs.
    #[error("machine version {found}, this version knows {MACHINE_VERSION_MAX}")]
    MachineTooNew {
        /// The version found.
        found: u16,
    },
    /// The entry's seal does not fit.
    #[error("the seal of entry {index} of group {group} does not fit")]
    BrokenSeal {
        /// The group.
        group: GroupId,
        /// The index.
        index: LogIndex,
    },
    /// A field is out of its bounds.
    #[error("a record with an impossible {0}")]
    Impossible(&'static str),
}

impl RecordError {
    /// Whether a newer version wrote it, rather than chance or damage.
    #[must_use]
    pub fn is_newer(self) -> bool {
        matches!(
            self,
            Self::UnknownType(_) | Self::UnknownKind(_) | Self::MachineTooNew { .. }
        )
    }
}

#[derive(Default)]
struct Head {
    kind: u8,
    version: u16,
    group: u32,
    incarnation: u32,
    seal: u32,
    flags: u32,
    index: u64,
    term: u64,
    time: u64,
}

const ENTRY: u8 = 1;
const HARD_STATE: u8 = 2;
const GROUP_TABLE: u8 = 3;
const BASE: u8 = 4;
const SEGMENT_HEAD: u8 = 5;
const FOOTER: u8 = 6;

/// The length on disk of a record with this much body.
fn padded(body: usize) -> usize {
    (RECORD_HEAD_BYTES + body).next_multiple_of(8)
}

impl Record {
    /// Its length on disk.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        padded(match self {
            Self::Entry { entry, .. } => entry.payload.len(),
            Self::HardState { .. } => 16,
            Self::GroupTable(rows) => rows.len() * ROW_BYTES,
            Self::Base(base) => 64 + base.voters.len() * 24,
            Self::SegmentHead(head) => 88 + head.echoes.len() * 32,
            Self::Footer(footer) => footer.body_len(),
        })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        match self {
            Self::Entry {
                group,
                incarnation,
                entry,
            } => {
                let head = Head {
                    kind: entry.kind as u8,
                    version: entry.machine_version,
                    group: group.0.into(),
                    incarnation: incarnation.0,
                    seal: entry.crc,
                    flags: entry.flags,
                    index: entry.index.0,
                    term: entry.term.0,
                    time: entry.time.0,
                };
                put_head(out, ENTRY, entry.payload.len(), &head);
                out.put_slice(&entry.payload);
            }
            Self::HardState {
                group,
                incarnation,
                state,
            } => {
                let head = Head {
                    group: group.0.into(),
                    incarnation: incarnation.0,
                    index: state.commit.0,
                    term: state.term.0,
                    ..Head::default()
                };
                put_head(out, HARD_STATE, 16, &head);
                put_vote(out, state.vote, 0);
                out.put_bytes(0, 4);
            }
            Self::GroupTable(rows) => {
                put_head(out, GROUP_TABLE, rows.len() * ROW_BYTES, &Head::default());
                rows.iter().for_each(|row| put_row(out, row));
            }
            Self::Base(base) => put_base(out, base),
            Self::SegmentHead(head) => put_segment_head(out, head),
            Self::Footer(footer) => put_footer(out, footer),
        }
        let len = out.len() - start;
        out.put_bytes(0, len.next_multiple_of(8) - len);
        assert!(
            out.len() - start == self.encoded_len(),
            "a record of {} bytes was announced with {}",
            out.len() - start,
            self.encoded_len()
        );
    }

    /// Takes the first record of `bytes`. Payloads are slices, not copies.
    ///
    /// # Errors
    /// [`RecordError`]; `bytes` is then as it was.
    pub fn decode(bytes: &mut Bytes) -> Result<Self, RecordError> {
        let left = bytes.len();
        if left < RECORD_HEAD_BYTES {
            return Err(RecordError::Truncated {
                needed: RECORD_HEAD_BYTES,
                left,
            });
        }
        let mut rest = bytes.clone();
        let body_len = rest.get_u32_le() as usize;
        let tag = rest.get_u8();
        let head = Head {
            kind: rest.get_u8(),
            version: rest.get_u16_le(),
            group: rest.get_u32_le(),
            incarnation: rest.get_u32_le(),
            seal: rest.get_u32_le(),
            flags: rest.get_u32_le(),
            index: rest.get_u64_le(),
            term: rest.get_u64_le(),
            time: rest.get_u64_le(),
        };
        let needed = padded(body_len);
        if needed > left {
            return Err(RecordError::Truncated { needed, left });
        }
        let body = rest.split_to(body_len);
        let record = decode_body(tag, &head, body)?;
        bytes.advance(needed);
        Ok(record)
    }
}

fn put_head(out: &mut BytesMut, tag: u8, body: usize, head: &Head) {
    out.put_u32_le(u32::try_from(body).expect("a record is far below 4 GiB"));
    out.put_u8(tag);
    out.put_u8(head.kind);
    out.put_u16_le(head.version);
    out.put_u32_le(head.group);
    out.put_u32_le(head.incarnation);
    out.put_u32_le(head.seal);
    out.put_u32_le(head.flags);
    out.put_u64_le(head.index);
    out.put_u64_le(head.term);
    out.put_u64_le(head.time);
}

fn put_vote(out: &mut BytesMut, vote: Option<Vote>, status: u8) {
    out.put_u8(u8::from(vote.is_some()));
    out.put_u8(status);
    out.put_bytes(0, 2);
    out.put_u32_le(vote.map_or(0, |vote| vote.node.0));
    out.put_u32_le(vote.map_or(0, |vote| vote.disk_tag));
}

fn put_row(out: &mut BytesMut, row: &GroupRow) {
    let (status, since) = match row.status {
        RowStatus::Ok => (0, 0),
        RowStatus::Recovering { since } => (1, since.0),
    };
    let root = row.root.unwrap_or(RootLocation {
        file: 0,
        offset: 0,
        len: 0,
    });
    out.put_u32_le(row.group.0.into());
    out.put_u32_le(row.incarnation.0);
    out.put_u64_le(row.hard.term.0);
    put_vote(out, row.hard.vote, status);
    out.put_u32_le(root.len);
    out.put_u64_le(row.hard.commit.0);
    out.put_u64_le(row.last.0.0);
    out.put_u64_le(row.last.1.0);
    out.put_u64_le(row.base.0.0);
    out.put_u64_le(row.base.1.0);
    out.put_slice(&row.root_hash.0);
    out.put_u64_le(root.file);
    out.put_u64_le(root.offset);
    out.put_u64_le(row.log_start_lsn.0);
    out.put_u64_le(since);
    out.put_bytes(0, 8);
}

fn put_base(out: &mut BytesMut, base: &BaseRecord) {
    let head = Head {
        version: base.machine_version,
        group: base.group.0.into(),
        incarnation: base.incarnation.0,
        index: base.index.0,
        term: base.term.0,
        time: base.time.0,
        ..Head::default()
    };
    put_head(out, BASE, 64 + base.voters.len() * 24, &head);
    let root = base.root.unwrap_or(RootLocation {
        file: 0,
        offset: 0,
        len: 0,
    });
    out.put_slice(&base.root_hash.0);
    out.put_u64_le(root.file);
    out.put_u64_le(root.offset);
    out.put_u32_le(root.len);
    out.put_u8(u8::from(base.root.is_some()));
    out.put_bytes(0, 3);
    out.put_u64_le(base.log_start_lsn.0);
    out.put_i64_le(base.wall_offset_ms);
    out.put_u32_le(u32::try_from(base.voters.len()).expect("voters are few"));
    out.put_bytes(0, 4);
    for (node, disk) in &base.voters {
        out.put_u32_le(node.0);
        out.put_bytes(0, 4);
        out.put_slice(&disk.0);
    }
}

fn put_segment_head(out: &mut BytesMut, head: &SegmentHead) {
    put_head(
        out,
        SEGMENT_HEAD,
        88 + head.echoes.len() * 32,
        &Head::default(),
    );
    out.put_slice(&head.cluster.0);
    out.put_slice(&head.disk.0);
    out.put_u32_le(head.wal_set);
    out.put_u16_le(head.format);
    out.put_u16_le(head.shard.0);
    out.put_u64_le(head.number);
    out.put_u64_le(head.first_lsn.0);
    out.put_u64_le(head.first_batch);
    out.put_u64_le(head.previous.segment);
    out.put_u64_le(head.previous.lsn.0);
    out.put_u32_le(head.previous.crc);
    out.put_u32_le(u32::try_from(head.echoes.len()).expect("peers are few"));
    for echo in &head.echoes {
        out.put_slice(&echo.disk.0);
        out.put_u32_le(echo.wal_set);
        out.put_u16_le(echo.shard.0);
        out.put_bytes(0, 2);
        out.put_u64_le(echo.durable.0);
    }
}

impl Footer {
    /// The length of the body.
    fn body_len(&self) -> usize {
        8 + self
            .runs
            .iter()
            .map(|run| 24 + run.entries.len() * 8)
            .sum::<usize>()
    }
}

fn put_footer(out: &mut BytesMut, footer: &Footer) {
    put_head(out, FOOTER, footer.body_len(), &Head::default());
    out.put_u32_le(u32::try_from(footer.runs.len()).expect("a segment holds fewer"));
    out.put_bytes(0, 4);
    for run in &footer.runs {
        out.put_u32_le(run.group.0.into());
        out.put_u32_le(run.incarnation.0);
        out.put_u64_le(run.first.0);
        out.put_u32_le(u32::try_from(run.entries.len()).expect("a segment holds fewer"));
        out.put_bytes(0, 4);
        for (offset, seal) in &run.entries {
            out.put_u32_le(*offset);
            out.put_u32_le(*seal);
        }
    }
}

fn decode_body(tag: u8, head: &Head, mut body: Bytes) -> Result<Record, RecordError> {
    match tag {
        ENTRY => decode_entry(head, body),
        HARD_STATE => {
            need(&body, 16)?;
            let (vote, _) = get_vote(&mut body)?;
            let state = HardState {
                term: Term(head.term),
                vote,
                commit: LogIndex(head.index),
            };
            let incarnation = Incarnation(head.incarnation);
            Ok(Record::HardState {
                group: group(head.group)?,
                incarnation,
                state,
            })
        }
        GROUP_TABLE => {
            if !body.len().is_multiple_of(ROW_BYTES) {
                return Err(RecordError::Impossible("group table"));
            }
            let mut rows = Vec::with_capacity(body.len() / ROW_BYTES);
            while body.has_remaining() {
                rows.push(get_row(&mut body.split_to(ROW_BYTES))?);
            }
            Ok(Record::GroupTable(rows))
        }
        BASE => decode_base(head, body).map(Record::Base),
        SEGMENT_HEAD => decode_segment_head(body).map(Record::SegmentHead),
        FOOTER => decode_footer(body).map(Record::Footer),
        unknown => Err(RecordError::UnknownType(unknown)),
    }
}

fn need(body: &Bytes, bytes: usize) -> Result<(), RecordError> {
    if body.len() < bytes {
        return Err(RecordError::Truncated {
            needed: bytes,
            left: body.len(),
        });
    }
    Ok(())
}

fn group(raw: u32) -> Result<GroupId, RecordError> {
    u16::try_from(raw)
        .map(GroupId)
        .map_err(|_| RecordError::Impossible("group"))
}

fn machine_version(found: u16) -> Result<u16, RecordError> {
    if found > MACHINE_VERSION_MAX {
        return Err(RecordError::MachineTooNew { found });
    }
    Ok(found)
}

fn decode_entry(head: &Head, payload: Bytes) -> Result<Record, RecordError> {
    let group = group(head.group)?;
    let incarnation = Incarnation(head.incarnation);
    let entry = Entry {
        term: Term(head.term),
        index: LogIndex(head.index),
        time: GroupTime(head.time),
        kind: EntryKind::from_u8(head.kind).ok_or(RecordError::UnknownKind(head.kind))?,
        machine_version: machine_version(head.version)?,
        flags: head.flags,
        crc: head.seal,
        payload,
    };
    if !entry.is_intact(group, incarnation) {
        return Err(RecordError::BrokenSeal {
            group,
            index: entry.index,
        });
    }
    Ok(Record::Entry {
        group,
        incarnation,
        entry,
    })
}

fn get_vote(body: &mut Bytes) -> Result<(Option<Vote>, u8), RecordError> {
    let voted = body.get_u8();
    let status = body.get_u8();
    body.advance(2);
    let vote = Vote {
        node: NodeId(body.get_u32_le()),
        disk_tag: body.get_u32_le(),
    };
    match voted {
        0 => Ok((None, status)),
        1 => Ok((Some(vote), status)),
        _ => Err(RecordError::Impossible("vote")),
    }
}

fn get_hash(body: &mut Bytes) -> [u8; 16] {
    let mut bytes = [0; 16];
    body.copy_to_slice(&mut bytes);
    bytes
}

fn get_row(row: &mut Bytes) -> Result<GroupRow, RecordError> {
    let group = group(row.get_u32_le())?;
    let incarnation = Incarnation(row.get_u32_le());
    let term = Term(row.get_u64_le());
    let (vote, status) = get_vote(row)?;
    let len = row.get_u32_le();
    let commit = LogIndex(row.get_u64_le());
    let last = (LogIndex(row.get_u64_le()), Term(row.get_u64_le()));
    let base = (LogIndex(row.get_u64_le()), Term(row.get_u64_le()));
    let root_hash = Hash128(get_hash(row));
    let root = RootLocation {
        file: row.get_u64_le(),
        offset: row.get_u64_le(),
        len,
    };
    let log_start_lsn = Lsn(row.get_u64_le());
    let since = LogIndex(row.get_u64_le());
    let status = match status {
        0 => RowStatus::Ok,
        1 => RowStatus::Recovering { since },
        _ => return Err(RecordError::Impossible("status")),
    };
    Ok(GroupRow {
        group,
        incarnation,
        hard: HardState { term, vote, commit },
        last,
        base,
        root_hash,
        root: (root.len > 0).then_some(root),
        log_start_lsn,
        status,
    })
}

fn decode_base(head: &Head, mut body: Bytes) -> Result<BaseRecord, RecordError> {
    need(&body, 64)?;
    let root_hash = Hash128(get_hash(&mut body));
    let (file, offset, len) = (body.get_u64_le(), body.get_u64_le(), body.get_u32_le());
    let has_root = body.get_u8();
    body.advance(3);
    let log_start_lsn = Lsn(body.get_u64_le());
    let wall_offset_ms = body.get_i64_le();
    let count = body.get_u32_le() as usize;
    body.advance(4);
    if body.len() != count.saturating_mul(24) || has_root > 1 {
        return Err(RecordError::Impossible("base"));
    }
    let mut voters = Vec::with_capacity(count);
    while body.has_remaining() {
        let node = NodeId(body.get_u32_le());
        body.advance(4);
        voters.push((node, DiskId(get_hash(&mut body))));
    }
    Ok(BaseRecord {
        group: group(head.group)?,
        incarnation: Incarnation(head.incarnation),
        index: LogIndex(head.index),
        term: Term(head.term),
        time: GroupTime(head.time),
        root_hash,
        root: (has_root == 1).then_some(RootLocation { file, offset, len }),
        log_start_lsn,
        machine_version: machine_version(head.version)?,
        wall_offset_ms,
        voters,
    })
}

fn decode_segment_head(mut body: Bytes) -> Result<SegmentHead, RecordError> {
    need(&body, 88)?;
    let cluster = ClusterId(get_hash(&mut body));
    let disk = DiskId(get_hash(&mut body));
    let (wal_set, format) = (body.get_u32_le(), body.get_u16_le());
    let shard = ShardId(body.get_u16_le());
    let number = body.get_u64_le();
    let (first_lsn, first_batch) = (Lsn(body.get_u64_le()), body.get_u64_le());
    let (segment, lsn, crc) = (body.get_u64_le(), Lsn(body.get_u64_le()), body.get_u32_le());
    let count = body.get_u32_le() as usize;
    if body.len() != count.saturating_mul(32) {
        return Err(RecordError::Impossible("segment head"));
    }
    let mut echoes = Vec::with_capacity(count);
    while body.has_remaining() {
        let disk = DiskId(get_hash(&mut body));
        let (wal_set, shard) = (body.get_u32_le(), ShardId(body.get_u16_le()));
        body.advance(2);
        echoes.push(Echo {
            disk,
            wal_set,
            shard,
            durable: Lsn(body.get_u64_le()),
        });
    }
    let previous = SegmentEnd { segment, lsn, crc };
    Ok(SegmentHead {
        cluster,
        disk,
        wal_set,
        format,
        shard,
        number,
        first_lsn,
        first_batch,
        previous,
        echoes,
    })
}

fn decode_footer(mut body: Bytes) -> Result<Footer, RecordError> {
    need(&body, 8)?;
    let count = body.get_u32_le();
    body.advance(4);
    let mut runs = Vec::new();
    for _ in 0..count {
        need(&body, 24)?;
        let group = group(body.get_u32_le())?;
        let incarnation = Incarnation(body.get_u32_le());
        let first = LogIndex(body.get_u64_le());
        let entries = body.get_u32_le() as usize;
        body.advance(4);
        need(&body, entries.saturating_mul(8))?;
        let entries = (0..entries)
            .map(|_| (body.get_u32_le(), body.get_u32_le()))
            .collect();
        runs.push(Run {
            group,
            incarnation,
            first,
            entries,
        });
    }
    if body.has_remaining() {
        return Err(RecordError::Impossible("footer"));
    }
    Ok(Footer { runs })
}
