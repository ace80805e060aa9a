//! Bytes to roots, nodes, pages and bodies; every way in which they can be wrong, by name.
//!
//! Checks go from the outside in, and each is made before what it guards is believed: length,
//! magic, checksum, format, then (of a root) the hash that the base promised, then every field.
//! So a flipped bit anywhere is `BadChecksum`, and `TooNew` is only said of bytes that a newer
//! binary wrote whole. The layouts are told in [`crate::snapshot::layout`].

use crate::base::checksum::{Hash128, crc32c};
use crate::base::ids::{DiskId, GroupId, Incarnation, JobId, LogIndex, NodeId, Term};
use crate::base::members::{Member, MemberRole};
use crate::base::units::GroupTime;
use crate::snapshot::fields::{Fields, u16_at, u32_at};
use crate::snapshot::layout::{
    ALIGN_BYTES, BODY_BYTES_MAX, BODY_HEAD_BYTES, BRANCH_BYTES, BRANCHES_MAX, BodyEntry, BodyPlace,
    Branch, CANONICAL_HEAD_BYTES, FORMAT, GROUP_BYTES, GroupMeta, HEADER_BYTES, LEVELS_MAX,
    MEMBER_BYTES, Node, PACK_HEAD_BYTES, PAGE_ENTRY_BYTES, PAYLOAD_USE_BYTES, PageEntry, PageName,
    PayloadUse, Place, ROOT_HEAD_BYTES, ROOT_MAGIC, RUN_USE_BYTES, Root, RunUse, TREE_ENTRY_BYTES,
    TreeEntry, Voter, next_step,
};

pub use crate::snapshot::fields::Malformed;

/// Why bytes are not the root that a base names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Fewer bytes than the root has.
    #[error("the root is cut off: {found} bytes of {needed}")]
    Truncated {
        /// Bytes of the whole root, or of its head.
        needed: u64,
        /// Bytes there.
        found: u64,
    },
    /// No root begins here.
    #[error("no root begins here, but {:016x}", u64::from_be_bytes(*.found))]
    BadMagic {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// A newer binary wrote it.
    #[error("root format {found} is newer than the newest that this version reads, {max}")]
    TooNew {
        /// Its format.
        found: u16,
        /// The newest that this binary reads.
        max: u16,
    },
    /// The root is damaged.
    #[error("the root's checksum at byte {offset} is {expected:08x}, its bytes give {found:08x}")]
    BadChecksum {
        /// Where the checksum stands, from the start of the root.
        offset: u64,
        /// The checksum stored.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// The root is whole, but another one.
    #[error("the root's hash is {found:?}, its base names {expected:?}")]
    HashMismatch {
        /// The hash that the base promises.
        expected: Hash128,
        /// The hash of the canonical part.
        found: Hash128,
    },
    /// Whole, but senseless.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// The parts of a root whose length, magic, checksum and hash are right, and whose format is known.
pub(super) struct RootParts<'a> {
    bytes: &'a [u8],
    canonical: usize,
}

impl<'a> RootParts<'a> {
    /// Looks at a whole root, which must hash to `expected`.
    pub(super) fn of(bytes: &'a [u8], expected: Hash128) -> Result<Self, RootError> {
        let canonical = checked_canonical(bytes)?;
        let hash = Hash128::of(canonical);
        if hash != expected {
            return Err(RootError::HashMismatch {
                expected,
                found: hash,
            });
        }
        Ok(Self {
            bytes,
            canonical: canonical.len(),
        })
    }

    pub(super) fn format(&self) -> u16 {
        u16_at(self.bytes, ROOT_HEAD_BYTES)
    }

    pub(super) fn canonical(&self) -> Fields<'a> {
        let end = ROOT_HEAD_BYTES + self.canonical;
        Fields::new(&self.bytes[..end], ROOT_HEAD_BYTES)
    }

    pub(super) fn local(&self) -> Fields<'a> {
        Fields::new(self.bytes, ROOT_HEAD_BYTES + self.canonical)
    }
}

impl Root {
    /// Reads a whole root, which must hash to `expected`.
    ///
    /// # Errors
    /// By name, see [`RootError`].
    pub fn decode(bytes: &[u8], expected: Hash128) -> Result<Self, RootError> {
        Self::of_parts(&RootParts::of(bytes, expected)?)
    }

    pub(super) fn of_parts(parts: &RootParts<'_>) -> Result<Self, RootError> {
        let mut fields = parts.canonical();
        let mut root = canonical_part(&mut fields)?;
        fields.end()?;
        let mut fields = parts.local();
        for page in &mut root.pages {
            page.place = place(&mut fields, "place of a page")?;
        }
        for tree in &mut root.trees {
            tree.place = place(&mut fields, "place of a tree")?;
            uses(&mut fields, tree)?;
        }
        fields.end()?;
        Ok(root)
    }
}

/// The canonical part of a root whose length, magic, checksum and format are right.
fn checked_canonical(bytes: &[u8]) -> Result<&[u8], RootError> {
    let truncated = |needed: u64| RootError::Truncated {
        needed,
        found: bytes.len() as u64,
    };
    let head_bytes = ROOT_HEAD_BYTES + CANONICAL_HEAD_BYTES;
    let head = bytes
        .get(..head_bytes)
        .ok_or_else(|| truncated(head_bytes as u64))?;
    let mut magic = [0; 8];
    magic.copy_from_slice(&head[..8]);
    if magic != ROOT_MAGIC {
        return Err(RootError::BadMagic { found: magic });
    }
    let len = u32_at(head, 8) as usize;
    if len > bytes.len() {
        return Err(truncated(len as u64));
    }
    let malformed = |offset, what| Malformed { offset, what };
    if len < bytes.len() {
        return Err(malformed(8, "length of the root").into());
    }
    let (expected, found) = (u32_at(head, 16), crc32c(&[&bytes[..16], &bytes[20..]]));
    if expected != found {
        return Err(RootError::BadChecksum {
            offset: 16,
            expected,
            found,
        });
    }
    let format = u16_at(head, ROOT_HEAD_BYTES);
    if format > FORMAT {
        return Err(RootError::TooNew {
            found: format,
            max: FORMAT,
        });
    }
    if format == 0 {
        return Err(malformed(ROOT_HEAD_BYTES as u64, "format number").into());
    }
    Fields::new(head, 20).zeros(4)?;
    let canonical = u32_at(head, 12) as usize;
    bytes[ROOT_HEAD_BYTES..]
        .get(..canonical)
        .filter(|part| part.len() >= CANONICAL_HEAD_BYTES)
        .ok_or_else(|| malformed(12, "length of the canonical part").into())
}

/// Takes a group block.
pub(super) fn group_block(fields: &mut Fields<'_>) -> Result<GroupMeta, Malformed> {
    let group = GroupId(fields.u16("group")?);
    let machine_version = fields.u16("machine version")?;
    let incarnation = Incarnation(fields.u32("incarnation")?);
    let index = LogIndex(fields.u64("index")?);
    let term = Term(fields.u64("term")?);
    let time = GroupTime(fields.u64("group time")?);
    let wall_offset_ms = fields.i64("wall offset")?;
    let count = fields.u16("number of members")?;
    fields.zeros(6)?;
    let count = fields.room(u32::from(count), MEMBER_BYTES, "number of members")?;
    let mut members: Vec<Member> = Vec::with_capacity(count);
    for _ in 0..count {
        let unsorted = fields.malformed("order of members");
        let node = NodeId(fields.u32("member")?);
        let unknown = fields.malformed("role of a member");
        let role = MemberRole::from_u32(fields.u32("member")?).ok_or(unknown)?;
        let disk = DiskId(fields.id("member")?);
        let voter = Voter { node, disk };
        if members.last().is_some_and(|last| last.voter >= voter) {
            return Err(unsorted);
        }
        members.push(Member { voter, role });
    }
    Ok(GroupMeta {
        group,
        incarnation,
        index,
        term,
        time,
        machine_version,
        wall_offset_ms,
        members,
    })
}

const _: () = assert!(GROUP_BYTES == 2 + 2 + 4 + 8 + 8 + 8 + 8 + 2 + 6);

const NOWHERE: Place = Place {
    file: 0,
    offset: 0,
    len: 0,
    crc: 0,
};

/// What a root says but for places.
fn canonical_part(fields: &mut Fields<'_>) -> Result<Root, Malformed> {
    let unknown = fields.malformed("format number");
    if fields.u16("format number")? != FORMAT {
        return Err(unknown);
    }
    fields.zeros(2)?;
    let pages = fields.u32("number of pages")?;
    let trees = fields.u32("number of trees")?;
    let meta = group_block(fields)?;
    let count = fields.room(pages, PAGE_ENTRY_BYTES, "number of pages")?;
    let mut pages: Vec<PageEntry> = Vec::with_capacity(count);
    for _ in 0..count {
        let unsorted = fields.malformed("order of pages");
        let (name, level) = page_name(fields, "name of a page")?;
        let hash = Hash128(fields.id("hash of a page")?);
        if level != 0 || pages.last().is_some_and(|last| last.name >= name) {
            return Err(unsorted);
        }
        let place = NOWHERE;
        pages.push(PageEntry { name, hash, place });
    }
    let count = fields.room(trees, TREE_ENTRY_BYTES, "number of trees")?;
    let mut trees: Vec<TreeEntry> = Vec::with_capacity(count);
    for _ in 0..count {
        let unsorted = fields.malformed("order of trees");
        let (name, level) = page_name(fields, "name of a tree")?;
        let summary = fields.summary("summary of a tree")?;
        let hash = Hash128(fields.id("hash of a tree")?);
        let of = |name: &PageName| (name.kind, name.queue, name.partition);
        let is_rising = trees.last().is_none_or(|last| of(&last.name) < of(&name));
        if !is_rising || !is_node(level, name.number) {
            return Err(unsorted);
        }
        trees.push(TreeEntry {
            name,
            level,
            summary,
            hash,
            place: NOWHERE,
            runs: Vec::new(),
            payloads: Vec::new(),
        });
    }
    Ok(Root { meta, pages, trees })
}

/// Whether there can be a node of this number on a level.
fn is_node(level: u8, number: u64) -> bool {
    let bits = 60_u32.saturating_sub(6 * u32::from(level));
    (1..=LEVELS_MAX).contains(&level) && number >> bits == 0
}

fn page_name(fields: &mut Fields<'_>, what: &'static str) -> Result<(PageName, u8), Malformed> {
    let kind = fields.u8(what)?;
    let level = fields.u8(what)?;
    fields.zeros(6)?;
    let name = PageName {
        kind,
        queue: fields.u64(what)?,
        partition: fields.u64(what)?,
        number: fields.u64(what)?,
    };
    Ok((name, level))
}

fn place(fields: &mut Fields<'_>, what: &'static str) -> Result<Place, Malformed> {
    let misplaced = fields.malformed(what);
    let place = Place {
        file: fields.u64(what)?,
        offset: fields.u64(what)?,
        len: fields.u32(what)?,
        crc: fields.u32(what)?,
    };
    let fits = place.offset >= HEADER_BYTES as u64
        && place.offset.is_multiple_of(ALIGN_BYTES)
        && place.offset.checked_add(u64::from(place.len)).is_some()
        && place.len as usize >= PACK_HEAD_BYTES;
    if fits { Ok(place) } else { Err(misplaced) }
}

/// What a tree keeps alive.
fn uses(fields: &mut Fields<'_>, tree: &mut TreeEntry) -> Result<(), Malformed> {
    let at_files = fields.malformed("files of a tree");
    let runs = fields.u32("number of run files")?;
    let payloads = fields.u32("number of payload files")?;
    let count = fields.room(runs, RUN_USE_BYTES, "number of run files")?;
    for _ in 0..count {
        tree.runs.push(RunUse {
            file: fields.u64("run file")?,
            live_bytes: fields.u64("run file")?,
        });
    }
    let count = fields.room(payloads, PAYLOAD_USE_BYTES, "number of payload files")?;
    for _ in 0..count {
        tree.payloads.push(PayloadUse {
            file: fields.u64("payload file")?,
            live_bytes: fields.u64("payload file")?,
            live_bodies: fields.u64("payload file")?,
        });
    }
    let is_rising = tree.runs.windows(2).all(|two| two[0].file < two[1].file)
        && tree
            .payloads
            .windows(2)
            .all(|two| two[0].file < two[1].file);
    let runs = tree.runs.iter().map(|used| used.live_bytes);
    let payloads = tree.payloads.iter();
    let payloads = payloads.map(|used| used.live_bytes.min(used.live_bodies));
    // So far apart that nobody can add them up to more than 64 bits.
    let fits = |bytes: u64| bytes != 0 && bytes < 1 << 48;
    let fit = runs.chain(payloads).all(fits)
        && tree.payloads.iter().all(|used| used.live_bytes < 1 << 48);
    if is_rising && fit {
        Ok(())
    } else {
        Err(at_files)
    }
}

/// The canonical and the local part of a pack.
///
/// # Errors
/// By name, see [`PackError`].
pub fn open_pack<'a>(
    hash: Hash128,
    place: &Place,
    bytes: &'a [u8],
) -> Result<(&'a [u8], &'a [u8]), PackError> {
    check_bytes(place, bytes)?;
    let mut fields = Fields::new(bytes, 0);
    let canonical = fields.u32("length of the canonical part")? as usize;
    let local = fields.u32("length of the local part")? as usize;
    let canonical = fields.take(canonical, "length of the canonical part")?;
    let local = fields.take(local, "length of the local part")?;
    fields.end()?;
    check_hash(hash, canonical)?;
    Ok((canonical, local))
}

impl Node {
    /// Reads a node from the parts of its pack. `name` and `level` are those by which it is known.
    ///
    /// # Errors
    /// [`Malformed`] says what, at which byte of the canonical or the local part.
    pub fn decode(
        known: (&PageName, u8),
        canonical: &[u8],
        local: &[u8],
    ) -> Result<Self, Malformed> {
        let mut node = Self::decode_canonical(known, canonical)?;
        let mut places = Fields::new(local, 0);
        for branch in &mut node.branches {
            branch.place = place(&mut places, "place of a branch")?;
        }
        places.end()?;
        Ok(node)
    }

    /// Reads a node from its canonical part; what is below it lies nowhere.
    ///
    /// # Errors
    /// [`Malformed`] says what, at which byte.
    pub fn decode_canonical(
        (name, level): (&PageName, u8),
        canonical: &[u8],
    ) -> Result<Self, Malformed> {
        let mut fields = Fields::new(canonical, 0);
        let other = fields.malformed("name of a node");
        let (kind, own_level) = (fields.u8("kind of a node")?, fields.u8("level of a node")?);
        let count = fields.u16("number of branches")?;
        fields.zeros(4)?;
        let own = PageName {
            kind,
            queue: fields.u64("name of a node")?,
            partition: fields.u64("name of a node")?,
            number: fields.u64("name of a node")?,
        };
        if own != *name || own_level != level || !is_node(level, own.number) {
            return Err(other);
        }
        let count = fields.room(count.into(), BRANCH_BYTES, "number of branches")?;
        let mut branches: Vec<Branch> = Vec::with_capacity(count);
        for _ in 0..count {
            let unsorted = fields.malformed("order of branches");
            let slot = fields.u8("slot of a branch")?;
            fields.zeros(3)?;
            let branch = Branch {
                slot,
                summary: fields.summary("summary of a branch")?,
                hash: Hash128(fields.id("hash of a branch")?),
                place: NOWHERE,
            };
            let is_rising = branches.last().is_none_or(|last| last.slot < slot);
            if !is_rising || usize::from(slot) >= BRANCHES_MAX {
                return Err(unsorted);
            }
            branches.push(branch);
        }
        if branches.is_empty() {
            return Err(fields.malformed("number of branches"));
        }
        fields.end()?;
        Ok(Self {
            name: *name,
            level,
            branches,
        })
    }
}

/// The places of bodies in the local part of a page, ascending by slot.
///
/// # Errors
/// [`Malformed`] says what, at which byte.
pub fn decode_bodies(local: &[u8]) -> Result<Vec<(u8, BodyPlace)>, Malformed> {
    let mut bodies: Vec<(u8, BodyPlace)> = Vec::new();
    if local.is_empty() {
        return Ok(bodies);
    }
    let mut fields = Fields::new(local, 0);
    let at_files = fields.malformed("files of bodies");
    let count = usize::from(fields.u8("number of files")?);
    let mut files: Vec<u64> = Vec::new();
    for _ in 0..count {
        files.push(fields.u64("file of bodies")?);
    }
    let slots = fields.u64("slots of bodies")?;
    if slots == 0 || !files.windows(2).all(|two| two[0] < two[1]) {
        return Err(at_files);
    }
    let mut unused = files.clone();
    for slot in (0..64).filter(|slot| slots & 1 << slot != 0) {
        let misplaced = fields.malformed("place of a body");
        let file = usize::from(fields.u8("file of a body")?);
        let file = *files.get(file).ok_or(misplaced)?;
        unused.retain(|other| *other != file);
        let len = fields.varint("length of a body")?;
        let step = fields.varint("place of a body")?;
        let before = bodies.last().map(|(_, place)| place);
        let step = match before.filter(|before| before.file == file) {
            Some(before) => {
                let gap = (step >> 1) as i64 ^ -((step & 1) as i64);
                next_step(before).checked_add_signed(gap).ok_or(misplaced)?
            }
            None => step,
        };
        let offset = step.checked_mul(ALIGN_BYTES).ok_or(misplaced)?;
        let len = u32::try_from(len).map_err(|_| misplaced)?;
        let fits = offset >= (HEADER_BYTES + BODY_HEAD_BYTES) as u64
            && offset < 1 << 60
            && len as usize <= BODY_BYTES_MAX;
        if !fits {
            return Err(misplaced);
        }
        bodies.push((slot, BodyPlace { file, offset, len }));
    }
    fields.end()?;
    if unused.is_empty() {
        Ok(bodies)
    } else {
        Err(at_files)
    }
}

/// Why bytes are not the pack that is named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Too few bytes, or too many.
    #[error("it has {found} bytes, what is above says {expected}")]
    WrongLength {
        /// As named.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The pack is damaged.
    #[error("its checksum is {found:08x}, what is above says {expected:08x}")]
    BadChecksum {
        /// As named.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// The bytes are whole, but another pack's.
    #[error("its hash is {found:?}, what is above says {expected:?}")]
    HashMismatch {
        /// As named.
        expected: Hash128,
        /// The hash of the canonical part.
        found: Hash128,
    },
    /// Whole, but senseless.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// The bytes have the length and the checksum that their place says.
pub(super) fn check_bytes(place: &Place, bytes: &[u8]) -> Result<(), PackError> {
    if bytes.len() as u64 != u64::from(place.len) {
        return Err(PackError::WrongLength {
            expected: u64::from(place.len),
            found: bytes.len() as u64,
        });
    }
    let crc = crc32c(&[bytes]);
    if crc != place.crc {
        return Err(PackError::BadChecksum {
            expected: place.crc,
            found: crc,
        });
    }
    Ok(())
}

/// The bytes are those that a hash names.
pub(super) fn check_hash(expected: Hash128, canonical: &[u8]) -> Result<(), PackError> {
    let found = Hash128::of(canonical);
    if found == expected {
        Ok(())
    } else {
        Err(PackError::HashMismatch { expected, found })
    }
}

/// Why bytes are not the body of a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Fewer bytes than the record has.
    #[error("the record is cut off: {found} bytes of {needed}")]
    Truncated {
        /// Bytes of the whole record, or of its head.
        needed: u64,
        /// Bytes there.
        found: u64,
    },
    /// The record is damaged.
    #[error("the record's checksum at byte {offset} is {expected:08x}, its bytes give {found:08x}")]
    BadChecksum {
        /// Where the checksum stands, from the start of the record.
        offset: u64,
        /// The checksum stored.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// The record is whole and has another length than its root says.
    #[error("the body has {found} bytes, the root says {expected}")]
    WrongLength {
        /// The root's.
        expected: u32,
        /// The record's.
        found: u32,
    },
    /// The record is whole and another job's.
    #[error("the body is that of job {found}, not of {expected}")]
    OtherJob {
        /// The job asked for.
        expected: JobId,
        /// The job in the record.
        found: JobId,
    },
    /// Whole, but senseless.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Reads the record at the start of `bytes`; what follows it is left alone. The job, and the body.
///
/// # Errors
/// By name, see [`BodyError`].
pub fn decode_body_record(bytes: &[u8]) -> Result<(JobId, &[u8]), BodyError> {
    let truncated = |needed: usize| BodyError::Truncated {
        needed: needed as u64,
        found: bytes.len() as u64,
    };
    let head = bytes
        .get(..BODY_HEAD_BYTES)
        .ok_or_else(|| truncated(BODY_HEAD_BYTES))?;
    let len = u32_at(head, 0) as usize;
    let needed = BODY_HEAD_BYTES.saturating_add(len);
    let body = bytes
        .get(BODY_HEAD_BYTES..needed)
        .ok_or_else(|| truncated(needed))?;
    let (expected, found) = (u32_at(head, 4), crc32c(&[&head[..4], &head[8..], body]));
    if expected != found {
        return Err(BodyError::BadChecksum {
            offset: 4,
            expected,
            found,
        });
    }
    let mut fields = Fields::new(head, 8);
    let reserved = fields.malformed("job id");
    let job = JobId::from_bytes(fields.id("job id")?).map_err(|_| reserved)?;
    Ok((job, body))
}

/// Reads the record of `entry`, head included, from the start of `bytes`; the body.
///
/// # Errors
/// By name, see [`BodyError`].
pub fn verify_body<'a>(entry: &BodyEntry, bytes: &'a [u8]) -> Result<&'a [u8], BodyError> {
    let (job, body) = decode_body_record(bytes)?;
    if job != entry.job {
        return Err(BodyError::OtherJob {
            expected: entry.job,
            found: job,
        });
    }
    if body.len() != entry.place.len as usize {
        return Err(BodyError::WrongLength {
            expected: entry.place.len,
            found: body.len() as u32,
        });
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
