//! Format 2 of run files and the roots in them, format 1 of payload files: the only description of
//! their bytes. (Roots of format 1 are told and read in [`crate::snapshot::format1`].)
//!
//! All numbers are little-endian, all reserved bytes zero. A file number is a u64: from the highest bit
//! on 26 bits the start number of the node, 6 the shard, 32 a counter of that shard in that start (see
//! [`file_number`]). So files of different shards can lie in one folder. No number is ever used twice on
//! a disk, and no file is ever opened for writing by another process than the one that made it.
//!
//! Files of early versions have the start number in the high 32 bits and no shard: two shards of one start
//! have used the same numbers. They are lower than all that this version gives out, since starts rise.
//!
//! # File header: the first 4 KiB of both kinds of file
//!
//! | offset | size | field | why it is there |
//! | --- | --- | --- | --- |
//! | 0 | 8 | magic `rrq-run\n` or `rrq-body` | which kind of file |
//! | 8 | 2 | format, 2 or 1 | older binaries refuse a newer format by name |
//! | 10 | 2 | shard that wrote it | for people; another shard may link the file into its folder |
//! | 12 | 4 | reserved | |
//! | 16 | 16 | cluster id | a file of another cluster is refused |
//! | 32 | 16 | disk id | places are local: a file copied from another disk is refused |
//! | 48 | 8 | file number | catches files swapped or renamed |
//! | 56 | 4036 | reserved | |
//! | 4092 | 4 | CRC-32C of bytes 0..4092 | |
//!
//! # Run file: one or more checkpoint rounds of a shard
//!
//! Header, then for each round and each group due what changed of it since its last root, bottom up: pages, the
//! nodes of its trees, its root. Each is a *pack* at a multiple of 8; gaps are zero and under no checksum,
//! nothing reads them. Each round is padded to a multiple of 4 KiB.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | length C of the canonical part |
//! | 4 | 4 | length L of the local part |
//! | 8 | C | **canonical part**: a function of the group's state, equal on every replica; its BLAKE3, first half, is the pack's *hash* |
//! | 8+C | L | **local part**: where things lie on this disk |
//!
//! A pack is named by whoever needs it: its *place* (file u64, offset u64, length of the pack u32,
//! CRC-32C of the pack u32: 24 bytes) stands in the local part of what is above, its hash in the
//! canonical part. So the hash of a root names the whole state, and what is above of an unchanged pack
//! names it where it was written once.
//!
//! ```text
//!   BASE record ─> root ─┬─> pages that a group has few of
//!                        └─> trees of those that it has many of: node ─> … ─> node ─> page ─> bodies
//! ```
//!
//! **Page**: canonical as the job machine made it. Its local part is empty, or the places of the bodies
//! of its jobs: number of payload files u8; each u64; a bit for each of 64 slots u64; and for each body,
//! by slot: index of its file u8, its length, and how far it begins behind where the body before it in
//! the list ended, in steps of 8 bytes (zigzag; in another file: its offset / 8), both as varints.
//!
//! **Node**: the pages, or nodes of the level below, whose numbers are alike but for their last 6 bits.
//!
//! | size | field, canonical |
//! | --- | --- |
//! | 4 | kind of the pages u8, level u8 (1 has pages below it), number N of branches u16 |
//! | 4 | reserved |
//! | 24 | queue u64, partition u64, number of the node among those of its level u64 |
//! | 64 N | by slot: slot u8, 3 reserved, summary (44, the job machine's), hash of what is below (16) |
//!
//! Local: 24 N, the places of what is below.
//!
//! # Root: a group at one index
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `rrq-root` |
//! | 8 | 4 | length of the whole root; a root of 4 GiB or more is refused when it is built |
//! | 12 | 4 | length C of the canonical part |
//! | 16 | 4 | CRC-32C of bytes 0..16 and 20..length |
//! | 20 | 4 | reserved |
//! | 24 | C | canonical part; its BLAKE3, first half, is the *root hash* |
//! | 24+C | | local part |
//!
//! | size | field, canonical |
//! | --- | --- |
//! | 4 | format u16, 2; reserved u16 |
//! | 8 | number P of pages u32, number T of trees u32 |
//! | 48 + 24 M | group block, below |
//! | 48 P | strictly ascending by name: kind u8, 7 reserved, queue u64, partition u64, number u64, hash (16) |
//! | 92 T | the highest node of each tree, strictly ascending by kind, queue and partition: kind u8, level u8, 6 reserved, queue u64, partition u64, number u64, summary (44), hash (16) |
//!
//! | size | field, local |
//! | --- | --- |
//! | 24 P | places of the pages |
//! | … | for each tree: its place (24), number of run files u32, of payload files u32; each run file: file u64, live bytes u64 (whole packs); each payload file: file u64, live bytes u64 (records with heads and padding), live bodies u64; both ascending by file |
//!
//! **Group block**, also in manifests:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 2 | group |
//! | 2 | 2 | version of the job machine at the index |
//! | 4 | 4 | incarnation |
//! | 8 | 8 | applied index |
//! | 16 | 8 | term of that entry |
//! | 24 | 8 | group time |
//! | 32 | 8 | wall offset in ms, signed |
//! | 40 | 2 | number M of members |
//! | 42 | 6 | reserved |
//! | 48 | 24 M | members, strictly ascending by node and disk: node u32, [role](crate::base::members::MemberRole) u32, disk id (16) |
//!
//! # Payload file
//!
//! Header, then body records, each at a multiple of 8:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | length N of the body |
//! | 4 | 4 | CRC-32C of bytes 0..4 and 8..24+N |
//! | 8 | 16 | job id |
//! | 24 | N | the body as the job machine encoded it |
//!
//! A body's *offset*, wherever one is kept, is that of the body; its head stands in the 24 bytes
//! before. Each round is padded with zeros to a multiple of 4 KiB.
//!
//! # Cases of a partial write
//!
//! | what is on the disk | what happens |
//! | --- | --- |
//! | no header, half a header, packs without a root | no base names the file; removed by its name |
//! | a whole run file without the payload file that it names | cannot be: payload files are synced first; if found, the read names file and jobs, and the older base is used |
//! | a base names a root whose bytes are short, old or damaged | length, checksum and hash tell; the older base and the log since it are used |
//! | one pack or one body is damaged | its own checksum and hash tell, by page or job |
//!
//! # To change this format
//!
//! Raise [`FORMAT`], keep the decoder of each older number, give a zero of every reserved byte
//! today's meaning, and add a file of the old format to the fixtures. Never move the magic, the
//! format number, the length or the checksum: an older binary must be able to say "too new". The
//! canonical parts of nodes and roots are also what nodes of a cluster compare with each other
//! ([`crate::wire::checkpoint`]): with another shape of trees goes another version of the peer protocol.
//! A change of a *page* is a version of the job machine, raised by a log entry only when all voters know it.

use crate::base::checksum::{Hash128, crc32c};
use crate::base::ids::{ClusterId, DiskId, GroupId, Incarnation, JobId, LogIndex, ShardId, Term};
use crate::base::limits::{
    BLOCK_BYTES, ENTRY_BYTES_MAX, LEAF_JOBS, NODE_BRANCHES, PAYLOAD_BYTES_HARD_MAX, SHARDS_MAX,
    STARTS_END,
};
pub use crate::base::limits::{BODY_HEAD_BYTES, DISK_ALIGN_BYTES as ALIGN_BYTES};
use crate::base::members::Member;
use crate::base::units::GroupTime;

pub use crate::base::ids::Voter;
use crate::snapshot::builder::BuildError;
use std::collections::BTreeMap;

/// The format of run files and roots that this binary writes, and the newest that it reads.
pub const FORMAT: u16 = 2;
/// The format of payload files.
pub const PAYLOAD_FORMAT: u16 = 1;
/// Bytes of a file header.
pub const HEADER_BYTES: usize = BLOCK_BYTES;
/// Bytes before a root's canonical part.
pub const ROOT_HEAD_BYTES: usize = 24;
/// The longest body; more is a fault of its writer.
pub const BODY_BYTES_MAX: usize = ENTRY_BYTES_MAX;

pub(super) const HEADER_CRC_AT: usize = HEADER_BYTES - 4;
pub(super) const HEADER_USED_BYTES: usize = 56;
pub(super) const ROOT_MAGIC: [u8; 8] = *b"rrq-root";
pub(super) const CANONICAL_HEAD_BYTES: usize = 12;
pub(super) const GROUP_BYTES: usize = 48;
pub(super) const MEMBER_BYTES: usize = 24;
pub(super) const NAME_BYTES: usize = 32;
pub(super) const PLACE_BYTES: usize = 24;
pub(super) const RUN_USE_BYTES: usize = 16;
pub(super) const PAYLOAD_USE_BYTES: usize = 24;
/// Bytes of what the job machine says of a branch of a tree.
pub const SUMMARY_BYTES: usize = 44;
pub(super) const PAGE_ENTRY_BYTES: usize = NAME_BYTES + 16;
pub(super) const TREE_ENTRY_BYTES: usize = NAME_BYTES + SUMMARY_BYTES + 16;
/// Bytes before the canonical part of a pack.
pub(super) const PACK_HEAD_BYTES: usize = 8;
pub(super) const NODE_HEAD_BYTES: usize = 32;
pub(super) const BRANCH_BYTES: usize = 4 + SUMMARY_BYTES + 16;
/// Branches of a node.
pub const BRANCHES_MAX: usize = NODE_BRANCHES as usize;
/// Levels of a tree: page numbers have at most 60 bits.
pub const LEVELS_MAX: u8 = 10;

const _: () = assert!(HEADER_USED_BYTES < HEADER_CRC_AT);
const _: () = assert!(HEADER_BYTES == 4096, "headers have 4 KiB");
const _: () = assert!(LEAF_JOBS == 64, "a page has the bodies of 64 jobs");
const _: () = assert!(PAYLOAD_BYTES_HARD_MAX < BODY_BYTES_MAX);
const _: () = assert!(BODY_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(BODY_HEAD_BYTES.is_multiple_of(ALIGN_BYTES as usize));
const _: () = assert!(ROOT_HEAD_BYTES.is_multiple_of(ALIGN_BYTES as usize));
const _: () = assert!(BLOCK_BYTES.is_multiple_of(ALIGN_BYTES as usize));
const _: () = assert!(SHARDS_MAX.is_power_of_two());

/// Whose files these are: a copy from another disk is refused, its places would mislead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data directory.
    pub disk: DiskId,
}

/// The two kinds of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Pages and roots.
    Run,
    /// Bodies.
    Payload,
}

impl FileKind {
    /// The first eight bytes of such a file.
    #[must_use]
    pub fn magic(self) -> [u8; 8] {
        match self {
            Self::Run => *b"rrq-run\n",
            Self::Payload => *b"rrq-body",
        }
    }

    /// The newest format of such a file.
    #[must_use]
    pub fn format(self) -> u16 {
        match self {
            Self::Run => FORMAT,
            Self::Payload => PAYLOAD_FORMAT,
        }
    }
}

/// The first block of a run or payload file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// What the file holds.
    pub kind: FileKind,
    /// Whose it is.
    pub owner: Owner,
    /// The shard that wrote it.
    pub shard: ShardId,
    /// Its number, see [`file_number`].
    pub file: u64,
}

/// Bits of a file number that tell the shard.
const SHARD_BITS: u32 = SHARDS_MAX.ilog2();

/// The number of the `counter`-th file of a shard in a start; `None` from start [`STARTS_END`] on, and
/// from shard [`SHARDS_MAX`] on.
#[must_use]
pub fn file_number(start: u64, shard: ShardId, counter: u32) -> Option<u64> {
    let is_one = start < u64::from(STARTS_END) && shard.0 < SHARDS_MAX;
    let of_shard = start << SHARD_BITS | u64::from(shard.0);
    is_one.then_some(of_shard << 32 | u64::from(counter))
}

impl FileHeader {
    /// The header block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&self.kind.magic());
        out.extend_from_slice(&self.kind.format().to_le_bytes());
        out.extend_from_slice(&self.shard.0.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.owner.cluster.0);
        out.extend_from_slice(&self.owner.disk.0);
        out.extend_from_slice(&self.file.to_le_bytes());
        assert_eq!(out.len(), HEADER_USED_BYTES, "the table has these fields");
        seal_block(out)
    }
}

/// Fills a block with zeros and puts the checksum of all before it into its last four bytes.
pub(super) fn seal_block(mut out: Vec<u8>) -> Vec<u8> {
    out.resize(HEADER_CRC_AT, 0);
    let crc = crc32c(&[&out]);
    out.extend_from_slice(&crc.to_le_bytes());
    assert_eq!(out.len(), HEADER_BYTES, "a block is 4 KiB");
    out
}

/// Names a page within its group. Pages sort by kind, then queue, partition, number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageName {
    /// What the page holds; a number of the job machine.
    pub kind: u8,
    /// The queue, or 0.
    pub queue: u64,
    /// The partition, or 0.
    pub partition: u64,
    /// Which page of that kind.
    pub number: u64,
}

impl PageName {
    fn encode_into(&self, level: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.kind, level, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.queue.to_le_bytes());
        out.extend_from_slice(&self.partition.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
    }
}

/// Where a pack lies on this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The run file.
    pub file: u64,
    /// Where in that file.
    pub offset: u64,
    /// The length of the pack.
    pub len: u32,
    /// The CRC-32C of the pack.
    pub crc: u32,
}

impl Place {
    fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.file.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
    }
}

/// A page: what it is (canonical) and where it lies (local).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// Its name.
    pub name: PageName,
    /// The hash of its bytes.
    pub hash: Hash128,
    /// Its pack.
    pub place: Place,
}

/// What the job machine says of what is below a branch.
pub type SummaryBytes = [u8; SUMMARY_BYTES];

/// A node of a tree. Its name's number is its own, among the nodes of its level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Kind, queue and partition of the pages below it; its number.
    pub name: PageName,
    /// 1 has pages below it; at most [`LEVELS_MAX`].
    pub level: u8,
    /// Strictly ascending by slot, at least one.
    pub branches: Vec<Branch>,
}

/// What is below a node: the page or node whose number is that of the node times 64, plus the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Below [`BRANCHES_MAX`].
    pub slot: u8,
    /// What is in it.
    pub summary: SummaryBytes,
    /// Its hash.
    pub hash: Hash128,
    /// Its pack.
    pub place: Place,
}

impl Node {
    /// The canonical and the local part.
    #[must_use]
    pub fn encode(&self) -> (Vec<u8>, Vec<u8>) {
        let count = self.branches.len();
        let mut canonical = Vec::with_capacity(NODE_HEAD_BYTES + BRANCH_BYTES * count);
        let mut local = Vec::with_capacity(PLACE_BYTES * count);
        let count = u16::try_from(count).expect("a node has at most 64 branches");
        canonical.extend_from_slice(&[self.name.kind, self.level]);
        canonical.extend_from_slice(&count.to_le_bytes());
        canonical.extend_from_slice(&[0; 4]);
        canonical.extend_from_slice(&self.name.queue.to_le_bytes());
        canonical.extend_from_slice(&self.name.partition.to_le_bytes());
        canonical.extend_from_slice(&self.name.number.to_le_bytes());
        for branch in &self.branches {
            canonical.extend_from_slice(&[branch.slot, 0, 0, 0]);
            canonical.extend_from_slice(&branch.summary);
            canonical.extend_from_slice(&branch.hash.0);
            branch.place.encode_into(&mut local);
        }
        (canonical, local)
    }
}

/// The highest node of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// Kind, queue and partition of its pages; the number of the node.
    pub name: PageName,
    /// Its level.
    pub level: u8,
    /// What is in the tree.
    pub summary: SummaryBytes,
    /// The hash of the node.
    pub hash: Hash128,
    /// The pack of the node.
    pub place: Place,
    /// What the packs of the tree keep alive of run files, ascending by file.
    pub runs: Vec<RunUse>,
    /// What the bodies of its jobs keep alive of payload files, ascending by file.
    pub payloads: Vec<PayloadUse>,
}

/// How much of a run file a tree keeps alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunUse {
    /// The file.
    pub file: u64,
    /// Bytes of live packs.
    pub live_bytes: u64,
}

/// Where a job's encoded body lies on this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BodyPlace {
    /// The payload file.
    pub file: u64,
    /// Offset of the body; its head stands in the [`BODY_HEAD_BYTES`] before it.
    pub offset: u64,
    /// Length of the body.
    pub len: u32,
}

impl BodyPlace {
    /// Bytes of the file that the record takes, head and padding included.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        (BODY_HEAD_BYTES as u64 + u64::from(self.len)).next_multiple_of(ALIGN_BYTES)
    }
}

/// A live job and the place of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyEntry {
    /// The job.
    pub job: JobId,
    /// Where its body lies.
    pub place: BodyPlace,
}

/// How much of a payload file a root keeps alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadUse {
    /// The file.
    pub file: u64,
    /// Bytes of live records, heads and padding included.
    pub live_bytes: u64,
    /// Live bodies.
    pub live_bodies: u64,
}

/// A group at one index of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMeta {
    /// The group.
    pub group: GroupId,
    /// Which life of that group.
    pub incarnation: Incarnation,
    /// The last entry applied.
    pub index: LogIndex,
    /// The term of that entry.
    pub term: Term,
    /// The group's time after it.
    pub time: GroupTime,
    /// The version of the job machine after it.
    pub machine_version: u16,
    /// Wall time minus group time, in milliseconds.
    pub wall_offset_ms: i64,
    /// The members after it, in any order; written and read ascending by node and disk.
    pub members: Vec<Member>,
}

impl GroupMeta {
    /// Appends the group block.
    ///
    /// # Panics
    /// If somebody is a member twice, or there are more than 65,535.
    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        let mut members = self.members.clone();
        members.sort_unstable();
        assert!(
            members.windows(2).all(|pair| pair[0].voter < pair[1].voter),
            "a member twice: {members:?}"
        );
        let count = u16::try_from(members.len()).expect("members are few");
        out.extend_from_slice(&self.group.0.to_le_bytes());
        out.extend_from_slice(&self.machine_version.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.index.0.to_le_bytes());
        out.extend_from_slice(&self.term.0.to_le_bytes());
        out.extend_from_slice(&self.time.0.to_le_bytes());
        out.extend_from_slice(&self.wall_offset_ms.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        for Member { voter, role } in &members {
            out.extend_from_slice(&voter.node.0.to_le_bytes());
            out.extend_from_slice(&(*role as u32).to_le_bytes());
            out.extend_from_slice(&voter.disk.0);
        }
    }
}

/// Where a root lies and what it must hash to: what a base record or a manifest keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootRef {
    /// The run file.
    pub file: u64,
    /// Where in that file.
    pub offset: u64,
    /// Length of the whole root.
    pub len: u32,
    /// The hash of its canonical part.
    pub hash: Hash128,
}

/// A root: a group, the pages that it has few of, the trees of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The group and the index.
    pub meta: GroupMeta,
    /// Strictly ascending by name.
    pub pages: Vec<PageEntry>,
    /// Strictly ascending by kind, queue and partition.
    pub trees: Vec<TreeEntry>,
}

/// The parts of a pack in one.
pub(super) fn pack(canonical: &[u8], local: &[u8]) -> Vec<u8> {
    let len = |part: &[u8]| u32::try_from(part.len()).expect("the caller has looked at it");
    let mut out = Vec::with_capacity(PACK_HEAD_BYTES + canonical.len() + local.len());
    out.extend_from_slice(&len(canonical).to_le_bytes());
    out.extend_from_slice(&len(local).to_le_bytes());
    out.extend_from_slice(canonical);
    out.extend_from_slice(local);
    out
}

/// Where a body would begin behind another one in the same file, in steps of 8 bytes.
pub(super) fn next_step(place: &BodyPlace) -> u64 {
    (place.offset + place.record_bytes()) / ALIGN_BYTES
}

/// The local part of a page with these bodies, strictly ascending by slot; empty if there are none.
pub(super) fn encode_bodies(bodies: &[(u8, BodyPlace)]) -> Vec<u8> {
    let mut out = Vec::new();
    if bodies.is_empty() {
        return out;
    }
    let mut files: Vec<u64> = bodies.iter().map(|(_, place)| place.file).collect();
    files.sort_unstable();
    files.dedup();
    out.push(u8::try_from(files.len()).expect("64 bodies lie in at most 64 files"));
    for file in &files {
        out.extend_from_slice(&file.to_le_bytes());
    }
    let slots = bodies
        .iter()
        .fold(0_u64, |slots, (slot, _)| slots | 1 << slot);
    out.extend_from_slice(&slots.to_le_bytes());
    let mut before: Option<&BodyPlace> = None;
    for (_, place) in bodies {
        let file = files.partition_point(|file| *file < place.file);
        out.push(file as u8);
        put_varint(&mut out, place.len.into());
        let step = place.offset / ALIGN_BYTES;
        match before.filter(|before| before.file == place.file) {
            Some(before) => {
                let gap = step.wrapping_sub(next_step(before)) as i64;
                put_varint(&mut out, ((gap << 1) ^ (gap >> 63)) as u64);
            }
            None => put_varint(&mut out, step),
        }
        before = Some(place);
    }
    out
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl Root {
    /// What the root keeps alive of each payload file, ascending by file.
    #[must_use]
    pub fn payload_files(&self) -> Vec<PayloadUse> {
        let mut files: BTreeMap<u64, PayloadUse> = BTreeMap::new();
        for used in self.trees.iter().flat_map(|tree| &tree.payloads) {
            let all = files.entry(used.file).or_insert(PayloadUse {
                file: used.file,
                live_bytes: 0,
                live_bodies: 0,
            });
            all.live_bytes += used.live_bytes;
            all.live_bodies += used.live_bodies;
        }
        files.into_values().collect()
    }

    /// What it keeps alive of each run file, ascending by file; the root itself does not count.
    #[must_use]
    pub fn run_files(&self) -> Vec<RunUse> {
        let mut files: BTreeMap<u64, u64> = BTreeMap::new();
        let pages = self.pages.iter();
        let pages = pages.map(|page| (page.place.file, u64::from(page.place.len)));
        let trees = self.trees.iter().flat_map(|tree| &tree.runs);
        let trees = trees.map(|used| (used.file, used.live_bytes));
        for (file, bytes) in pages.chain(trees) {
            *files.entry(file).or_default() += bytes;
        }
        let used = files.into_iter();
        used.map(|(file, live_bytes)| RunUse { file, live_bytes })
            .collect()
    }

    /// Its hash, by which a base names it, wherever its pages and trees lie.
    ///
    /// # Errors
    /// If it would take 4 GiB or more.
    pub fn hash(mut self) -> Result<Hash128, BuildError> {
        self.sort();
        Ok(self.encode()?.1)
    }

    /// Puts pages and trees in their order.
    pub(super) fn sort(&mut self) {
        self.pages.sort_unstable_by_key(|page| page.name);
        self.trees.sort_unstable_by_key(|tree| tree.name);
    }

    /// The root's bytes and its hash. Pages and trees are ascending.
    pub(super) fn encode(&self) -> Result<(Vec<u8>, Hash128), BuildError> {
        let mut out = Vec::new();
        out.extend_from_slice(&ROOT_MAGIC);
        out.extend_from_slice(&[0; ROOT_HEAD_BYTES - 8]);
        self.encode_canonical(&mut out)?;
        let hash = Hash128::of(&out[ROOT_HEAD_BYTES..]);
        let canonical = out.len() - ROOT_HEAD_BYTES;
        self.encode_local(&mut out)?;
        let too_large = || BuildError::RootTooLarge {
            group: self.meta.group,
            bytes: out.len() as u64,
        };
        let len = u32::try_from(out.len()).map_err(|_| too_large())?;
        out[8..12].copy_from_slice(&len.to_le_bytes());
        out[12..16].copy_from_slice(&(canonical as u32).to_le_bytes());
        let crc = crc32c(&[&out[..16], &out[20..]]);
        out[16..20].copy_from_slice(&crc.to_le_bytes());
        Ok((out, hash))
    }

    fn count(&self, len: usize) -> Result<u32, BuildError> {
        u32::try_from(len).map_err(|_| BuildError::RootTooLarge {
            group: self.meta.group,
            bytes: len as u64,
        })
    }

    fn encode_canonical(&self, out: &mut Vec<u8>) -> Result<(), BuildError> {
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.count(self.pages.len())?.to_le_bytes());
        out.extend_from_slice(&self.count(self.trees.len())?.to_le_bytes());
        self.meta.encode_into(out);
        for page in &self.pages {
            page.name.encode_into(0, out);
            out.extend_from_slice(&page.hash.0);
        }
        for tree in &self.trees {
            tree.name.encode_into(tree.level, out);
            out.extend_from_slice(&tree.summary);
            out.extend_from_slice(&tree.hash.0);
        }
        Ok(())
    }

    fn encode_local(&self, out: &mut Vec<u8>) -> Result<(), BuildError> {
        for page in &self.pages {
            page.place.encode_into(out);
        }
        for tree in &self.trees {
            tree.place.encode_into(out);
            out.extend_from_slice(&self.count(tree.runs.len())?.to_le_bytes());
            out.extend_from_slice(&self.count(tree.payloads.len())?.to_le_bytes());
            for used in &tree.runs {
                out.extend_from_slice(&used.file.to_le_bytes());
                out.extend_from_slice(&used.live_bytes.to_le_bytes());
            }
            for used in &tree.payloads {
                out.extend_from_slice(&used.file.to_le_bytes());
                out.extend_from_slice(&used.live_bytes.to_le_bytes());
                out.extend_from_slice(&used.live_bodies.to_le_bytes());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_header_of_a_run_file_is_these_bytes() {
        let header = samples::header(FileKind::Run, 0x0000_0009_0000_0007).encode();
        assert_eq!(
            hex(&header[..64]),
            "7272712d72756e0a0200030000000000c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1\
             d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d107000000090000000000000000000000"
        );
        assert!(header[64..4092].iter().all(|byte| *byte == 0));
        assert_eq!(hex(&header[4092..]), "42d3732e");
    }

    #[test]
    fn the_header_of_a_payload_file_is_these_bytes() {
        let header = samples::header(FileKind::Payload, 0x0000_0009_0000_0008).encode();
        assert_eq!(
            hex(&header[..64]),
            "7272712d626f64790100030000000000c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1\
             d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d108000000090000000000000000000000"
        );
        assert_eq!(hex(&header[4092..]), "952b5001");
    }

    #[test]
    fn a_root_is_these_bytes() {
        let (root, hash) = samples::root().encode().expect("small");
        assert_eq!(
            hex(&root),
            "7272712d726f6f747c02000084010000a46c85d1000000000200000002000000\
             020000000500010001000000e8030000000000000400000000000000c82c0100\
             00000000f7ffffffffffffff02000000000000000100000000000000d1d1d1d1\
             d1d1d1d1d1d1d1d1d1d1d1d10200000000000000d2d2d2d2d2d2d2d2d2d2d2d2\
             d2d2d2d201000000000000000100000500000000000000000000000000000000\
             0000000001010101010101010101010101010101030000000000000001000005\
             0000000000000000000000000000000000000000030303030303030303030303\
             0303030304010000000000000100000500000000000000000000000001000000\
             0000000004040404040404040404040404040404040404040404040404040404\
             04040404040404040404040404040404e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4\
             0601000000000000010000050000000000000000000000000100000000000000\
             0606060606060606060606060606060606060606060606060606060606060606\
             060606060606060606060606e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e607000000\
             00000000001000000000000028000000c5c5c5c5070000000000000028100000\
             0000000028000000c5c5c5c5070000000000000050100000000000002c010000\
             c5c5c5c502000000020000000700000000000000007000000000000009000000\
             0000000000900000000000000800000000000000500000000000000002000000\
             0000000009000000000000002800000000000000010000000000000007000000\
             0000000080110000000000002c010000c5c5c5c5020000000000000007000000\
             00000000007000000000000009000000000000000090000000000000"
        );
        assert_eq!(hex(&hash.0), "3721b20e7afd2ab14d2ea34bed7f02a2");
    }

    #[test]
    fn a_node_is_these_bytes() {
        let (canonical, local) = samples::node().encode();
        assert_eq!(
            hex(&pack(&canonical, &local)),
            "a000000030000000040102000000000001000005000000000000000000000000\
             0100000000000000000000000000000000000000000000000000000000000000\
             000000000000000000000000000000000000000000000000a0a0a0a0a0a0a0a0\
             a0a0a0a0a0a0a0a03f0000003f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f\
             3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3f3fbfbfbfbfbfbfbfbf\
             bfbfbfbfbfbfbfbf0700000000000000002000000000000008100000c5c5c5c5\
             0700000000000000982904000000000008100000c5c5c5c5"
        );
    }

    #[test]
    fn places_of_bodies_are_these_bytes() {
        let place = |file, offset, len| BodyPlace { file, offset, len };
        // Three behind each other, one before them, one in another file.
        let bodies = [
            (0, place(8, 4120, 11)),
            (1, place(8, 4160, 300)),
            (2, place(8, 4488, 11)),
            (9, place(9, 1 << 40, 11)),
            (63, place(8, 4128, 1 << 22)),
        ];
        assert_eq!(
            hex(&encode_bodies(&bodies)),
            "02080000000000000009000000000000000702000000000080000b830400ac02\
             00000b00010b80808080800400808080028404"
        );
        assert_eq!(encode_bodies(&[]), [0; 0]);
    }

    #[test]
    fn a_body_record_is_these_bytes() {
        let (_, record) = samples::body_record(samples::job(70), b"hello");
        assert_eq!(
            hex(&record),
            "05000000e4d20be40005000500000100000000000000460068656c6c6f"
        );
    }

    #[test]
    fn a_file_number_holds_start_shard_and_counter() {
        let of = |start, shard, counter| file_number(start, ShardId(shard), counter);
        assert_eq!(of(9, 0, 7), Some(0x0000_0240_0000_0007));
        assert_eq!(of(9, 63, 7), Some(0x0000_027f_0000_0007));
        assert_eq!(of((1 << 26) - 1, 63, u32::MAX), Some(u64::MAX));
        assert_eq!(of(1 << 26, 0, 0), None);
        assert_eq!(of(9, 64, 0), None);
        // An early version's last start, and the first of this one.
        let early = 9 << 32 | u64::from(u32::MAX);
        assert!(of(10, 0, 0) > Some(early));
    }

    #[test]
    fn a_root_knows_what_it_keeps_alive() {
        let root = samples::root();
        let run = |file, live_bytes| RunUse { file, live_bytes };
        let runs = [run(7, 80 + 2 * 4096 * 7), run(9, 2 * 4096 * 9)];
        assert_eq!(root.run_files(), runs);
        let used = |file, live_bytes, live_bodies| PayloadUse {
            file,
            live_bytes,
            live_bodies,
        };
        assert_eq!(root.payload_files(), [used(8, 80, 2), used(9, 40, 1)]);
    }
}
