//! Bytes to roots, pages and bodies; every way in which they can be wrong, by name.
//!
//! Checks go from the outside in, and each is made before what it guards is believed: length,
//! magic, checksum, format, then (of a root) the hash that the base promised, then every field.
//! So a flipped bit anywhere is `BadChecksum`, and `TooNew` is only said of bytes that a newer
//! binary wrote whole. The layouts are told in [`crate::snapshot::layout`].

use crate::base::checksum::{Hash128, crc32c};
use crate::base::ids::{DiskId, GroupId, Incarnation, JobId, LogIndex, NodeId, Term};
use crate::base::limits::{BLOCK_BYTES, LEAF_JOBS};
use crate::base::members::{Member, MemberRole};
use crate::base::units::GroupTime;
use crate::snapshot::fields::{Fields, u16_at, u32_at};
use crate::snapshot::header::format_is_known;
use crate::snapshot::layout::{
    ALIGN_BYTES, BODY_BYTES_MAX, BODY_HEAD_BYTES, BODY_PLACE_BYTES, BodyEntry, BodyPlace,
    CANONICAL_HEAD_BYTES, DIRECTORY_ENTRY_BYTES, FORMAT, GROUP_BYTES, GroupMeta, HEADER_BYTES,
    LEAF_LIST_HEAD_BYTES, MEMBER_BYTES, PAGE_PLACE_BYTES, PAYLOAD_USE_BYTES, PageEntry, PageName,
    PayloadUse, ROOT_HEAD_BYTES, ROOT_MAGIC, Root, Voter, leaf_of,
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

impl Root {
    /// Reads a whole root, which must hash to `expected`.
    ///
    /// # Errors
    /// By name, see [`RootError`].
    pub fn decode(bytes: &[u8], expected: Hash128) -> Result<Self, RootError> {
        let canonical = checked_canonical(bytes)?;
        let hash = Hash128::of(canonical);
        if hash != expected {
            return Err(RootError::HashMismatch {
                expected,
                found: hash,
            });
        }
        let mut fields = Fields::new(&bytes[..ROOT_HEAD_BYTES + canonical.len()], ROOT_HEAD_BYTES);
        let (meta, mut pages) = canonical_part(&mut fields)?;
        fields.end()?;
        let mut fields = Fields::new(bytes, ROOT_HEAD_BYTES + canonical.len());
        page_places(&mut fields, &mut pages)?;
        let bodies = body_places(&mut fields, meta.group)?;
        fields.end()?;
        Ok(Self {
            meta,
            pages,
            bodies,
        })
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
    if u16_at(head, ROOT_HEAD_BYTES) > FORMAT {
        return Err(RootError::TooNew {
            found: u16_at(head, ROOT_HEAD_BYTES),
            max: FORMAT,
        });
    }
    Fields::new(head, 20).zeros(4)?;
    let canonical = u32_at(head, 12) as usize;
    bytes[ROOT_HEAD_BYTES..]
        .get(..canonical)
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

/// The group and its directory; the places of the pages are still zero.
fn canonical_part(fields: &mut Fields<'_>) -> Result<(GroupMeta, Vec<PageEntry>), Malformed> {
    format_is_known(fields)?;
    fields.zeros(2)?;
    let count = fields.u32("number of pages")?;
    let meta = group_block(fields)?;
    let count = fields.room(count, DIRECTORY_ENTRY_BYTES, "number of pages")?;
    let mut pages: Vec<PageEntry> = Vec::with_capacity(count);
    for _ in 0..count {
        let unsorted = fields.malformed("order of pages");
        let kind = fields.u8("kind of a page")?;
        fields.zeros(3)?;
        let len = fields.u32("length of a page")?;
        let name = PageName {
            kind,
            queue: fields.u64("name of a page")?,
            partition: fields.u64("name of a page")?,
            number: fields.u64("name of a page")?,
        };
        let hash = Hash128(fields.id("hash of a page")?);
        if pages.last().is_some_and(|last| last.name >= name) {
            return Err(unsorted);
        }
        pages.push(PageEntry {
            name,
            len,
            hash,
            file: 0,
            offset: 0,
            crc: 0,
        });
    }
    Ok((meta, pages))
}

fn page_places(fields: &mut Fields<'_>, pages: &mut [PageEntry]) -> Result<(), Malformed> {
    fields.room(pages.len() as u32, PAGE_PLACE_BYTES, "places of pages")?;
    for page in pages {
        let misplaced = fields.malformed("place of a page");
        page.file = fields.u64("place of a page")?;
        page.offset = fields.u64("place of a page")?;
        page.crc = fields.u32("checksum of a page")?;
        fields.zeros(4)?;
        let len = page.len as usize;
        let align = if len > 0 && len.is_multiple_of(BLOCK_BYTES) {
            BLOCK_BYTES as u64
        } else {
            ALIGN_BYTES
        };
        let fits = page.offset.checked_add(u64::from(page.len)).is_some();
        if page.offset < HEADER_BYTES as u64 || !page.offset.is_multiple_of(align) || !fits {
            return Err(misplaced);
        }
    }
    Ok(())
}

fn body_places(fields: &mut Fields<'_>, group: GroupId) -> Result<Vec<BodyEntry>, Malformed> {
    let at_files = fields.malformed("payload files");
    let files = fields.u32("number of payload files")?;
    let leaves = fields.u32("number of leaf lists")?;
    let count = fields.room(files, PAYLOAD_USE_BYTES, "number of payload files")?;
    let mut listed: Vec<PayloadUse> = Vec::with_capacity(count);
    for _ in 0..count {
        listed.push(PayloadUse {
            file: fields.u64("payload file")?,
            live_bytes: fields.u64("payload file")?,
            live_bodies: fields.u64("payload file")?,
        });
    }
    let least = LEAF_LIST_HEAD_BYTES + BODY_PLACE_BYTES;
    fields.room(leaves, least, "number of leaf lists")?;
    let mut bodies = Vec::new();
    // What the lists use of each file must come to what the table says.
    let mut left = listed.clone();
    let mut last: Option<JobId> = None;
    for _ in 0..leaves {
        leaf_list(fields, group, &mut last, &mut left, &mut bodies)?;
    }
    let spent = |used: &PayloadUse| used.live_bytes == 0 && used.live_bodies == 0;
    let ascending = listed.windows(2).all(|pair| pair[0].file < pair[1].file);
    if !ascending || !left.iter().all(spent) || listed.iter().any(spent) {
        return Err(at_files);
    }
    Ok(bodies)
}

fn leaf_list(
    fields: &mut Fields<'_>,
    group: GroupId,
    last: &mut Option<JobId>,
    left: &mut [PayloadUse],
    bodies: &mut Vec<BodyEntry>,
) -> Result<(), Malformed> {
    let bad_leaf = fields.malformed("first job of a leaf list");
    let first = JobId::from_bytes(fields.id("first job of a leaf list")?);
    let first = first
        .ok()
        .filter(|job| job.group() == group && job.seq().is_multiple_of(LEAF_JOBS))
        .filter(|job| last.is_none_or(|before| leaf_of(before).0 < *job))
        .ok_or(bad_leaf)?;
    let count = fields.u32("number of bodies")?;
    fields.zeros(4)?;
    if count == 0 {
        return Err(fields.malformed("number of bodies"));
    }
    let count = fields.room(count, BODY_PLACE_BYTES, "number of bodies")?;
    for _ in 0..count {
        let misplaced = fields.malformed("place of a body");
        let slot = u64::from(fields.u8("slot of a body")?);
        fields.zeros(3)?;
        let file = fields.u32("payload file of a body")? as usize;
        let offset = fields.u64("offset of a body")?;
        let len = fields.u32("length of a body")?;
        fields.zeros(4)?;
        if slot >= LEAF_JOBS {
            return Err(misplaced);
        }
        let job = JobId::new(group, first.queue(), first.partition(), first.seq() + slot);
        let used = left.get_mut(file).ok_or(misplaced)?;
        let place = BodyPlace {
            file: used.file,
            offset,
            len,
        };
        let fits = offset >= (HEADER_BYTES + BODY_HEAD_BYTES) as u64
            && offset.is_multiple_of(ALIGN_BYTES)
            && offset.checked_add(u64::from(len)).is_some()
            && len as usize <= BODY_BYTES_MAX
            && last.is_none_or(|before| before < job);
        let bytes = used.live_bytes.checked_sub(place.record_bytes());
        let count = used.live_bodies.checked_sub(1);
        let (true, Some(bytes), Some(count)) = (fits, bytes, count) else {
            return Err(misplaced);
        };
        (used.live_bytes, used.live_bodies) = (bytes, count);
        *last = Some(job);
        bodies.push(BodyEntry { job, place });
    }
    Ok(())
}

/// Why bytes are not the page of a directory entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Too few bytes, or too many.
    #[error("the page has {found} bytes, the directory says {expected}")]
    WrongLength {
        /// The directory's.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The page is damaged.
    #[error("the page's checksum is {found:08x}, the root says {expected:08x}")]
    BadChecksum {
        /// The root's.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// The bytes are whole, but another page's.
    #[error("the page's hash is {found:?}, the directory says {expected:?}")]
    HashMismatch {
        /// The directory's.
        expected: Hash128,
        /// The hash of the bytes.
        found: Hash128,
    },
}

/// The bytes are those that the directory names.
///
/// # Errors
/// By name, see [`PageError`].
pub fn verify_page(entry: &PageEntry, bytes: &[u8]) -> Result<(), PageError> {
    if bytes.len() as u64 != u64::from(entry.len) {
        return Err(PageError::WrongLength {
            expected: u64::from(entry.len),
            found: bytes.len() as u64,
        });
    }
    let crc = crc32c(&[bytes]);
    if crc != entry.crc {
        return Err(PageError::BadChecksum {
            expected: entry.crc,
            found: crc,
        });
    }
    let hash = Hash128::of(bytes);
    if hash != entry.hash {
        return Err(PageError::HashMismatch {
            expected: entry.hash,
            found: hash,
        });
    }
    Ok(())
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
mod tests {
    use super::*;
    use crate::snapshot::samples::{self, job};
    use proptest::prelude::*;

    fn reseal_root(root: &mut [u8]) -> Hash128 {
        let crc = crc32c(&[&root[..16], &root[20..]]);
        root[16..20].copy_from_slice(&crc.to_le_bytes());
        let end = ROOT_HEAD_BYTES + u32_at(root, 12) as usize;
        Hash128::of(root.get(ROOT_HEAD_BYTES..end).unwrap_or_default())
    }

    #[test]
    fn a_root_is_read_as_it_was_built() {
        let root = samples::root();
        let (bytes, hash) = root.encode().expect("small");
        assert_eq!(Root::decode(&bytes, hash), Ok(root));
    }

    #[test]
    fn the_root_hash_knows_no_places() {
        let (_, hash) = samples::root().encode().expect("small");
        let mut elsewhere = samples::root();
        for page in &mut elsewhere.pages {
            page.offset += 8192;
            page.file += 1;
        }
        elsewhere.bodies.clear();
        assert_eq!(elsewhere.encode().expect("small").1, hash);
        elsewhere.meta.index = elsewhere.meta.index.next();
        assert_ne!(elsewhere.encode().expect("small").1, hash);
    }

    #[test]
    fn each_fault_of_a_root_has_its_name() {
        let (whole, hash) = samples::root().encode().expect("small");
        let damaged = |at: usize, value: u8| {
            let mut bytes = whole.clone();
            bytes[at] = value;
            bytes
        };
        let resealed = |at: usize, value: u8| {
            let mut bytes = damaged(at, value);
            let hash = reseal_root(&mut bytes);
            Root::decode(&bytes, hash)
        };
        let len = whole.len() as u64;
        assert_eq!(
            Root::decode(&whole[..31], hash),
            Err(RootError::Truncated {
                needed: 32,
                found: 31
            })
        );
        assert_eq!(
            Root::decode(&whole[..whole.len() - 1], hash),
            Err(RootError::Truncated {
                needed: len,
                found: len - 1
            })
        );
        assert!(matches!(
            Root::decode(&damaged(0, b'x'), hash),
            Err(RootError::BadMagic { .. })
        ));
        assert!(matches!(
            Root::decode(&damaged(whole.len() - 1, 1), hash),
            Err(RootError::BadChecksum { offset: 16, .. })
        ));
        assert!(matches!(
            Root::decode(&whole, Hash128([1; 16])),
            Err(RootError::HashMismatch { .. })
        ));
        assert_eq!(resealed(24, 2), Err(RootError::TooNew { found: 2, max: 1 }));

        let malformed = |offset, what| Err(RootError::Malformed(Malformed { offset, what }));
        let mut longer = whole.clone();
        longer.push(0);
        let wrong_len = malformed(8, "length of the root");
        assert_eq!(Root::decode(&longer, hash), wrong_len);
        assert_eq!(resealed(20, 1), malformed(20, "reserved field"));
        assert_eq!(resealed(24, 0), malformed(24, "format number"));
        assert_eq!(
            resealed(15, 1),
            malformed(12, "length of the canonical part")
        );
        // More pages or members than there are bytes for: no memory is reserved.
        let pages = CANONICAL_HEAD_BYTES + ROOT_HEAD_BYTES + GROUP_BYTES + 2 * MEMBER_BYTES;
        assert_eq!(
            resealed(31, 255),
            malformed(pages as u64, "number of pages")
        );
        assert_eq!(resealed(73, 255), malformed(80, "number of members"));
        // The members, and the pages, in another order.
        assert_eq!(resealed(80, 200), malformed(104, "order of members"));
        let second = pages + DIRECTORY_ENTRY_BYTES;
        assert_eq!(
            resealed(pages, 9),
            malformed(second as u64, "order of pages")
        );

        let places = pages + 2 * DIRECTORY_ENTRY_BYTES;
        let misplaced = |offset: usize| malformed(offset as u64, "place of a page");
        // The first page at byte 4 of the second block; the leaf off its block.
        assert_eq!(resealed(places + 8, 4), misplaced(places));
        let leaf = places + PAGE_PLACE_BYTES;
        assert_eq!(resealed(leaf + 8, 8), misplaced(leaf));

        let files = leaf + PAGE_PLACE_BYTES;
        let too_many = malformed(files as u64 + 8, "number of payload files");
        assert_eq!(resealed(files + 3, 255), too_many);
        let too_many = malformed(files as u64 + 8 + 48, "number of leaf lists");
        assert_eq!(resealed(files + 7, 255), too_many);
        // The table says another use than the lists.
        let table = malformed(files as u64, "payload files");
        assert_eq!(resealed(files + 8 + 17, 1), table);

        let list = files + 8 + 2 * PAYLOAD_USE_BYTES;
        let bad_leaf = malformed(list as u64, "first job of a leaf list");
        assert_eq!(resealed(list, 1), bad_leaf, "another group");
        assert_eq!(resealed(list + 14, 1), bad_leaf, "not the first of a leaf");
        assert_eq!(resealed(list + 15, 1), bad_leaf, "reserved bits");
        let none = malformed(list as u64 + 24, "number of bodies");
        assert_eq!(resealed(list + 16, 0), none);
        assert_eq!(resealed(list + 19, 255), none);
        let body = list + LEAF_LIST_HEAD_BYTES;
        let misplaced = |offset: usize| malformed(offset as u64, "place of a body");
        assert_eq!(resealed(body, 64), misplaced(body), "no such slot");
        assert_eq!(resealed(body + 4, 9), misplaced(body), "no such file");
        assert_eq!(resealed(body + 9, 0), misplaced(body), "inside the header");
        assert_eq!(resealed(body + 19, 255), misplaced(body), "too long");
        let second = body + BODY_PLACE_BYTES;
        assert_eq!(resealed(second, 0), misplaced(second), "a slot twice");
    }

    #[test]
    fn each_fault_of_a_page_has_its_name() {
        let page = samples::page(b"page bytes");
        assert_eq!(verify_page(&page, b"page bytes"), Ok(()));
        assert_eq!(
            verify_page(&page, b"page byte"),
            Err(PageError::WrongLength {
                expected: 10,
                found: 9
            })
        );
        assert!(matches!(
            verify_page(&page, b"page bytez"),
            Err(PageError::BadChecksum { .. })
        ));
        let other = PageEntry {
            crc: crc32c(&[b"page bytez"]),
            ..page
        };
        assert!(matches!(
            verify_page(&other, b"page bytez"),
            Err(PageError::HashMismatch { .. })
        ));
    }

    #[test]
    fn each_fault_of_a_body_has_its_name() {
        let (entry, record) = samples::body_record(job(70), b"hello");
        assert_eq!(decode_body_record(&record), Ok((job(70), &b"hello"[..])));
        assert_eq!(verify_body(&entry, &record), Ok(&b"hello"[..]));
        let truncated = |needed, found| Err(BodyError::Truncated { needed, found });
        assert_eq!(decode_body_record(&record[..23]), truncated(24, 23));
        assert_eq!(decode_body_record(&record[..28]), truncated(29, 28));
        for at in 4..29 {
            let mut damaged = record.clone();
            damaged[at] ^= 1;
            assert!(matches!(
                decode_body_record(&damaged),
                Err(BodyError::BadChecksum { offset: 4, .. })
            ));
        }
        let mut reserved = record.clone();
        reserved[23] = 1;
        let crc = crc32c(&[&reserved[..4], &reserved[8..]]);
        reserved[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            decode_body_record(&reserved),
            Err(BodyError::Malformed(Malformed {
                offset: 8,
                what: "job id"
            }))
        );
        let mut other = entry;
        other.job = job(71);
        assert_eq!(
            verify_body(&other, &record),
            Err(BodyError::OtherJob {
                expected: job(71),
                found: job(70)
            })
        );
        let mut longer = entry;
        longer.place.len = 6;
        assert_eq!(
            verify_body(&longer, &record),
            Err(BodyError::WrongLength {
                expected: 6,
                found: 5
            })
        );
    }

    proptest! {
        /// What a decoder accepts is exactly what the encoder writes.
        #[test]
        fn an_accepted_root_has_one_form(
            changes in proptest::collection::vec((20_usize..600, any::<u8>()), 1..4),
        ) {
            let (mut bytes, _) = samples::root().encode().expect("small");
            for (at, value) in changes {
                let at = at % bytes.len();
                if at >= 12 {
                    bytes[at] = value;
                }
            }
            let hash = reseal_root(&mut bytes);
            if let Ok(root) = Root::decode(&bytes, hash) {
                prop_assert_eq!(root.encode(), Ok((bytes, hash)));
            }
        }

        #[test]
        fn arbitrary_bytes_under_a_right_checksum_never_panic(
            rest in proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 8..400),
            canonical in 0_u32..400,
        ) {
            let mut bytes = ROOT_MAGIC.to_vec();
            bytes.extend_from_slice(&(rest.len() as u32 + 24).to_le_bytes());
            bytes.extend_from_slice(&canonical.to_le_bytes());
            bytes.extend_from_slice(&[0; 8]);
            bytes.extend_from_slice(&rest);
            bytes[24..26].copy_from_slice(&[1, 0]);
            let hash = reseal_root(&mut bytes);
            let _ = Root::decode(&bytes, hash);
        }
    }
}
