//! Format 1 of run files, payload files and the roots in them: the only description of their bytes.
//!
//! All numbers are little-endian, all reserved bytes zero. A file number is a u64: the start number
//! of the node in the high 32 bits, a counter of that start in the low 32; no number is ever used
//! twice on a disk, and no file is ever reopened for writing.
//!
//! # File header: the first 4 KiB of both kinds of file
//!
//! | offset | size | field | why it is there |
//! | --- | --- | --- | --- |
//! | 0 | 8 | magic `rrq-run\n` or `rrq-body` | which kind of file |
//! | 8 | 2 | format, 1 | older binaries refuse a newer format by name |
//! | 10 | 2 | shard that wrote it | for people; another shard may link the file into its folder |
//! | 12 | 4 | reserved | |
//! | 16 | 16 | cluster id | a file of another cluster is refused |
//! | 32 | 16 | disk id | places are local: a file copied from another disk is refused |
//! | 48 | 8 | file number | catches files swapped or renamed |
//! | 56 | 4036 | reserved | pages behind it are 4 KiB aligned |
//! | 4092 | 4 | CRC-32C of bytes 0..4092 | |
//!
//! # Run file: one a checkpoint round of a shard
//!
//! Header, then for each group due: its new pages, then its root. A page whose length is a multiple
//! of 4 KiB starts at a multiple of 4 KiB, so that a mapped file can be used in place; all else
//! starts at a multiple of 8. Gaps are zero and under no checksum; nothing reads them. The file is
//! padded to a multiple of 4 KiB.
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
//! | 24 | C | canonical part |
//! | 24+C | | local part |
//!
//! **Canonical part**: a function of the group's state at the index, equal on every replica. Its
//! BLAKE3, first half, is the *root hash*.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 2 | format, 1 |
//! | 2 | 2 | reserved |
//! | 4 | 4 | number P of pages |
//! | 8 | 48 + 24 V | group block, below |
//! | | 48 P | directory, strictly ascending by name: kind u8, 3 reserved, length u32, queue u64, partition u64, number u64, hash of the page (16) |
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
//! **Local part**: where things lie on this disk; outside the root hash.
//!
//! | size | field |
//! | --- | --- |
//! | 24 P | for each page of the directory: file u64, offset u64, CRC-32C of the page u32, reserved u32 |
//! | 4 | number F of payload files referenced |
//! | 4 | number L of leaf lists |
//! | 24 F | ascending by file: file u64, live bytes u64 (records with heads and padding), live bodies u64 |
//! | … | L leaf lists, ascending: job id of the leaf's slot 0 (16), number N of bodies u32 (at least 1), reserved u32, then N times, ascending by slot: slot u8, 3 reserved, index of the payload file u32, offset of the body u64, length of the body u32, reserved u32 |
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
//! before. The file is padded with zeros to a multiple of 4 KiB.
//!
//! # Cases of a partial write
//!
//! | what is on the disk | what happens |
//! | --- | --- |
//! | no header, half a header, pages without a root | no base names the file; removed by its name |
//! | a whole run file without the payload file that it names | cannot be: payload files are synced first; if found, the read names file and jobs, and the older base is used |
//! | a base names a root whose bytes are short, old or damaged | length, checksum and hash tell; the older base and the log since it are used |
//! | one page or one body is damaged | its own checksum and hash tell, by page or job |
//!
//! # To change this format
//!
//! Raise [`FORMAT`], keep the decoder of each older number, give a zero of every reserved byte
//! today's meaning, and add a file of the old format to the fixtures. Never move the magic, the
//! format number, the length or the checksum: an older binary must be able to say "too new". A
//! change of the canonical part changes root hashes, so it is also a version of the job machine,
//! raised by a log entry only when all voters know it.

use crate::base::checksum::{Hash128, crc32c};
use crate::base::ids::{ClusterId, DiskId, GroupId, Incarnation, JobId, LogIndex, ShardId, Term};
use crate::base::limits::{BLOCK_BYTES, ENTRY_BYTES_MAX, LEAF_JOBS, PAYLOAD_BYTES_HARD_MAX};
use crate::base::members::Member;
use crate::base::units::GroupTime;

pub use crate::base::ids::Voter;
use crate::snapshot::builder::BuildError;

/// The format that this binary writes, and the newest that it reads.
pub const FORMAT: u16 = 1;
/// Bytes of a file header.
pub const HEADER_BYTES: usize = BLOCK_BYTES;
/// Bytes before a root's canonical part.
pub const ROOT_HEAD_BYTES: usize = 24;
/// Bytes before a body.
pub const BODY_HEAD_BYTES: usize = 24;
/// The longest body; more is a fault of its writer.
pub const BODY_BYTES_MAX: usize = ENTRY_BYTES_MAX;
/// Pages, roots and body records start at a multiple of this.
pub const ALIGN_BYTES: u64 = 8;

pub(super) const HEADER_CRC_AT: usize = HEADER_BYTES - 4;
pub(super) const HEADER_USED_BYTES: usize = 56;
pub(super) const ROOT_MAGIC: [u8; 8] = *b"rrq-root";
pub(super) const CANONICAL_HEAD_BYTES: usize = 8;
pub(super) const GROUP_BYTES: usize = 48;
pub(super) const MEMBER_BYTES: usize = 24;
pub(super) const DIRECTORY_ENTRY_BYTES: usize = 48;
pub(super) const PAGE_PLACE_BYTES: usize = 24;
pub(super) const PAYLOAD_USE_BYTES: usize = 24;
pub(super) const LEAF_LIST_HEAD_BYTES: usize = 24;
pub(super) const BODY_PLACE_BYTES: usize = 24;

const _: () = assert!(HEADER_USED_BYTES < HEADER_CRC_AT);
const _: () = assert!(HEADER_BYTES == 4096, "format 1 has headers of 4 KiB");
const _: () = assert!(
    LEAF_JOBS == 64,
    "format 1 lists the bodies of 64 jobs together"
);
const _: () = assert!(PAYLOAD_BYTES_HARD_MAX < BODY_BYTES_MAX);
const _: () = assert!(BODY_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(BODY_HEAD_BYTES.is_multiple_of(ALIGN_BYTES as usize));
const _: () = assert!(ROOT_HEAD_BYTES.is_multiple_of(ALIGN_BYTES as usize));
const _: () = assert!(BLOCK_BYTES.is_multiple_of(ALIGN_BYTES as usize));

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

/// The number of the `counter`-th file of a start; `None` when the start number exceeds 32 bits.
#[must_use]
pub fn file_number(start: u64, counter: u32) -> Option<u64> {
    let start = u32::try_from(start).ok()?;
    Some(u64::from(start) << 32 | u64::from(counter))
}

impl FileHeader {
    /// The header block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&self.kind.magic());
        out.extend_from_slice(&FORMAT.to_le_bytes());
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// A page of a root's directory: what it is (canonical) and where it lies (local).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// Its name.
    pub name: PageName,
    /// Its length in bytes.
    pub len: u32,
    /// The hash of its bytes.
    pub hash: Hash128,
    /// The run file that holds it.
    pub file: u64,
    /// Where in that file.
    pub offset: u64,
    /// The CRC-32C of its bytes.
    pub crc: u32,
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

/// A root: a group, its pages and the places of its bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The group and the index.
    pub meta: GroupMeta,
    /// The directory, strictly ascending by name.
    pub pages: Vec<PageEntry>,
    /// The bodies, strictly ascending by job.
    pub bodies: Vec<BodyEntry>,
}

/// More than a page's entries take in a root, or a body's with a leaf of its own.
const ROOM_OF_ENTRY: usize = 72;
/// More than a root takes without them.
const ROOM_OF_HEAD: usize = 16 << 10;

/// A leaf holds the jobs of 64 neighbouring sequences: the id of its first, and the job's place.
pub(super) fn leaf_of(job: JobId) -> (JobId, u8) {
    let slot = job.seq() % LEAF_JOBS;
    let first = JobId::new(job.group(), job.queue(), job.partition(), job.seq() - slot);
    (first, slot as u8)
}

impl Root {
    /// What the root keeps alive of each payload file, ascending by file.
    #[must_use]
    pub fn payload_files(&self) -> Vec<PayloadUse> {
        let mut files: Vec<PayloadUse> = Vec::new();
        for body in &self.bodies {
            let place = &body.place;
            let at = match files.binary_search_by_key(&place.file, |used| used.file) {
                Ok(at) => at,
                Err(at) => {
                    let unused = PayloadUse {
                        file: place.file,
                        live_bytes: 0,
                        live_bodies: 0,
                    };
                    files.insert(at, unused);
                    at
                }
            };
            files[at].live_bytes += place.record_bytes();
            files[at].live_bodies += 1;
        }
        files
    }

    /// The run files that hold its pages, ascending; the file of the root itself is one only if it
    /// holds a page.
    #[must_use]
    pub fn run_files(&self) -> Vec<u64> {
        let mut files: Vec<u64> = self.pages.iter().map(|page| page.file).collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// The root's bytes and its hash. Pages and bodies are ascending.
    pub(super) fn encode(&self) -> Result<(Vec<u8>, Hash128), BuildError> {
        // What is not needed of it is never touched.
        let room = ROOM_OF_HEAD + ROOM_OF_ENTRY * (self.pages.len() + self.bodies.len());
        let mut out = Vec::with_capacity(room);
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
        self.meta.encode_into(out);
        for page in &self.pages {
            out.extend_from_slice(&[page.name.kind, 0, 0, 0]);
            out.extend_from_slice(&page.len.to_le_bytes());
            out.extend_from_slice(&page.name.queue.to_le_bytes());
            out.extend_from_slice(&page.name.partition.to_le_bytes());
            out.extend_from_slice(&page.name.number.to_le_bytes());
            out.extend_from_slice(&page.hash.0);
        }
        Ok(())
    }

    fn encode_local(&self, out: &mut Vec<u8>) -> Result<(), BuildError> {
        for page in &self.pages {
            out.extend_from_slice(&page.file.to_le_bytes());
            out.extend_from_slice(&page.offset.to_le_bytes());
            out.extend_from_slice(&page.crc.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
        }
        let files = self.payload_files();
        let leaves = || {
            self.bodies
                .chunk_by(|one, next| leaf_of(one.job).0 == leaf_of(next.job).0)
        };
        out.extend_from_slice(&self.count(files.len())?.to_le_bytes());
        out.extend_from_slice(&self.count(leaves().count())?.to_le_bytes());
        for used in &files {
            out.extend_from_slice(&used.file.to_le_bytes());
            out.extend_from_slice(&used.live_bytes.to_le_bytes());
            out.extend_from_slice(&used.live_bodies.to_le_bytes());
        }
        for leaf in leaves() {
            out.extend_from_slice(&leaf_of(leaf[0].job).0.to_bytes());
            out.extend_from_slice(&(leaf.len() as u32).to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            for body in leaf {
                let file = files.partition_point(|used| used.file < body.place.file);
                out.extend_from_slice(&[leaf_of(body.job).1, 0, 0, 0]);
                out.extend_from_slice(&(file as u32).to_le_bytes());
                out.extend_from_slice(&body.place.offset.to_le_bytes());
                out.extend_from_slice(&body.place.len.to_le_bytes());
                out.extend_from_slice(&[0; 4]);
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
            "7272712d72756e0a0100030000000000c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1\
             d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d107000000090000000000000000000000"
        );
        assert!(header[64..4092].iter().all(|byte| *byte == 0));
        assert_eq!(hex(&header[4092..]), "5688c5bb");
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
            hex(&root[..ROOT_HEAD_BYTES]),
            "7272712d726f6f74c0010000c80000000454eab100000000"
        );
        let pages = ROOT_HEAD_BYTES + CANONICAL_HEAD_BYTES + GROUP_BYTES + 2 * MEMBER_BYTES;
        assert_eq!(
            hex(&root[ROOT_HEAD_BYTES..pages]),
            "01000000020000000500010001000000e8030000000000000400000000000000\
             c82c010000000000f7ffffffffffffff02000000000000000100000000000000\
             d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d10200000000000000d2d2d2d2d2d2d2d2\
             d2d2d2d2d2d2d2d2"
        );
        let local = pages + 2 * DIRECTORY_ENTRY_BYTES;
        assert_eq!(
            hex(&root[pages..local]),
            "0100000005000000000000000000000000000000000000000000000000000000\
             4d167f04fb1ec2a23989900293fc1ba304000000001000000000000000000000\
             00000000000000000000000000000000cf50a58177fd2e5e6dc6100938f0f156"
        );
        assert_eq!(
            hex(&root[local..]),
            "0700000000000000001000000000000018261412000000000700000000000000\
             00200000000000001f2099530000000002000000020000000800000000000000\
             5000000000000000020000000000000009000000000000002800000000000000\
             0100000000000000000500050000010000000000000040000200000000000000\
             000000000000000018100000000000000b000000000000000100000001000000\
             18100000000000000b0000000000000000050005000001000000000000008000\
             0100000000000000020000000000000040100000000000000b00000000000000"
        );
        assert_eq!(hex(&hash.0), "b92d21f9e95c88223a7841d5a213477f");
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
    fn a_file_number_holds_start_and_counter() {
        assert_eq!(file_number(9, 7), Some(0x0000_0009_0000_0007));
        assert_eq!(file_number(1 << 32, 0), None);
    }

    #[test]
    fn a_root_knows_what_it_keeps_alive() {
        let root = samples::root();
        assert_eq!(root.run_files(), [7]);
        let used = |file, live_bytes, live_bodies| PayloadUse {
            file,
            live_bytes,
            live_bodies,
        };
        assert_eq!(root.payload_files(), [used(8, 80, 2), used(9, 40, 1)]);
    }
}
