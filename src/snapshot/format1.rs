//! Roots of format 1, which listed every page and every body of a group. They are read, never written:
//! what a start finds in this format is written anew by its first checkpoint.
//!
//! Head, group block and payload files are those of [`crate::snapshot::layout`]. A page lay bare, without
//! a pack; one whose length is a multiple of 4 KiB began at a multiple of 4 KiB.
//!
//! **Canonical part**
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 2 | format, 1 |
//! | 2 | 2 | reserved |
//! | 4 | 4 | number P of pages |
//! | 8 | 48 + 24 M | group block |
//! | | 48 P | directory, strictly ascending by name: kind u8, 3 reserved, length u32, queue u64, partition u64, number u64, hash of the page (16) |
//!
//! **Local part**
//!
//! | size | field |
//! | --- | --- |
//! | 24 P | for each page of the directory: file u64, offset u64, CRC-32C of the page u32, reserved u32 |
//! | 4 | number F of payload files referenced |
//! | 4 | number L of leaf lists |
//! | 24 F | ascending by file: file u64, live bytes u64 (records with heads and padding), live bodies u64 |
//! | ... | L leaf lists, ascending: job id of the leaf's slot 0 (16), number N of bodies u32 (at least 1), reserved u32, then N times, ascending by slot: slot u8, 3 reserved, index of the payload file u32, offset of the body u64, length of the body u32, reserved u32 |

use crate::base::checksum::Hash128;
use crate::base::ids::{GroupId, JobId};
use crate::base::limits::{BLOCK_BYTES, LEAF_JOBS};
use crate::snapshot::fields::{Fields, Malformed};
use crate::snapshot::layout::{
    ALIGN_BYTES, BODY_BYTES_MAX, BODY_HEAD_BYTES, BodyEntry, BodyPlace, GroupMeta, HEADER_BYTES,
    PAYLOAD_USE_BYTES, PageEntry, PageName, PayloadUse, Place, RunUse,
};
use crate::snapshot::view::{RootError, RootParts, group_block};
use std::collections::BTreeMap;

const DIRECTORY_ENTRY_BYTES: usize = 48;
const PAGE_PLACE_BYTES: usize = 24;
const LEAF_LIST_HEAD_BYTES: usize = 24;
const BODY_PLACE_BYTES: usize = 24;

/// A root of format 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootV1 {
    /// The group and the index.
    pub meta: GroupMeta,
    /// All pages, ascending by name; they have no packs.
    pub pages: Vec<PageEntry>,
    /// All bodies, ascending by job.
    pub bodies: Vec<BodyEntry>,
    /// What it keeps alive of payload files.
    pub payloads: Vec<PayloadUse>,
}

impl RootV1 {
    /// Reads the parts of a root, which are whole.
    pub(super) fn decode(parts: &RootParts<'_>) -> Result<Self, RootError> {
        let (mut fields, local) = (parts.canonical(), parts.local());
        let (meta, mut pages) = canonical_part(&mut fields)?;
        fields.end()?;
        let mut fields = local;
        page_places(&mut fields, &mut pages)?;
        let (bodies, payloads) = body_places(&mut fields, meta.group)?;
        fields.end()?;
        Ok(Self {
            meta,
            pages,
            bodies,
            payloads,
        })
    }

    /// What it keeps alive of each run file, ascending by file, without the root itself.
    #[must_use]
    pub fn run_files(&self) -> Vec<RunUse> {
        let mut files: BTreeMap<u64, u64> = BTreeMap::new();
        for Place { file, len, .. } in self.pages.iter().map(|page| page.place) {
            *files.entry(file).or_default() += u64::from(len);
        }
        let used = files.into_iter();
        used.map(|(file, live_bytes)| RunUse { file, live_bytes })
            .collect()
    }
}

/// The group and its directory; the places of the pages are still zero.
fn canonical_part(fields: &mut Fields<'_>) -> Result<(GroupMeta, Vec<PageEntry>), Malformed> {
    fields.u16("format number")?;
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
        let place = Place {
            file: 0,
            offset: 0,
            len,
            crc: 0,
        };
        pages.push(PageEntry { name, hash, place });
    }
    Ok((meta, pages))
}

fn page_places(fields: &mut Fields<'_>, pages: &mut [PageEntry]) -> Result<(), Malformed> {
    fields.room(pages.len() as u32, PAGE_PLACE_BYTES, "places of pages")?;
    for page in pages.iter_mut().map(|page| &mut page.place) {
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

type Bodies = (Vec<BodyEntry>, Vec<PayloadUse>);

fn body_places(fields: &mut Fields<'_>, group: GroupId) -> Result<Bodies, Malformed> {
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
    Ok((bodies, listed))
}

/// The job of the leaf's slot 0.
fn first_of_leaf(job: JobId) -> JobId {
    let first = job.seq() - job.seq() % LEAF_JOBS;
    JobId::new(job.group(), job.queue(), job.partition(), first)
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
        .filter(|job| last.is_none_or(|before| first_of_leaf(before) < *job))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::checksum::crc32c;
    use crate::snapshot::samples::{job, meta};

    /// A root as the binaries of format 1 wrote it: two pages, one of them a block; three bodies in two
    /// leaves and two files.
    const WRITTEN: &str = "7272712d726f6f74c0010000c80000000454eab1000000000100000002000000\
             0500010001000000e8030000000000000400000000000000c82c010000000000\
             f7ffffffffffffff02000000000000000100000000000000d1d1d1d1d1d1d1d1\
             d1d1d1d1d1d1d1d10200000000000000d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2\
             0100000005000000000000000000000000000000000000000000000000000000\
             4d167f04fb1ec2a23989900293fc1ba304000000001000000000000000000000\
             00000000000000000000000000000000cf50a58177fd2e5e6dc6100938f0f156\
             0700000000000000001000000000000018261412000000000700000000000000\
             00200000000000001f2099530000000002000000020000000800000000000000\
             5000000000000000020000000000000009000000000000002800000000000000\
             0100000000000000000500050000010000000000000040000200000000000000\
             000000000000000018100000000000000b000000000000000100000001000000\
             18100000000000000b0000000000000000050005000001000000000000008000\
             0100000000000000020000000000000040100000000000000b00000000000000";
    const HASH: &str = "b92d21f9e95c88223a7841d5a213477f";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().chunks_exact(2);
        let byte = |two: &[u8]| {
            let two = std::str::from_utf8(two).expect("ASCII");
            u8::from_str_radix(two, 16).expect("a hex digit")
        };
        digits.map(byte).collect()
    }

    fn decode(bytes: &[u8], hash: Hash128) -> Result<RootV1, RootError> {
        let parts = RootParts::of(bytes, hash)?;
        assert_eq!(parts.format(), 1);
        RootV1::decode(&parts)
    }

    fn hash() -> Hash128 {
        Hash128(bytes(HASH).try_into().expect("16 bytes"))
    }

    #[test]
    fn a_root_that_was_written_once_is_read() {
        let root = decode(&bytes(WRITTEN), hash()).expect("whole");
        assert_eq!(root.meta, meta());
        let pages = root.pages.iter().map(|page| {
            let (kind, at) = (page.name.kind, page.place);
            (kind, at.file, at.offset, at.len)
        });
        let pages: Vec<_> = pages.collect();
        assert_eq!(pages, [(1, 7, 4096, 5), (4, 7, 8192, 4096)]);
        let bodies = root.bodies.iter().map(|body| {
            let at = body.place;
            (body.job, at.file, at.offset, at.len)
        });
        let bodies: Vec<_> = bodies.collect();
        let wanted = [
            (job(64), 8, 4120, 11),
            (job(65), 9, 4120, 11),
            (job(130), 8, 4160, 11),
        ];
        assert_eq!(bodies, wanted);
        let used = |file, live_bytes, live_bodies| PayloadUse {
            file,
            live_bytes,
            live_bodies,
        };
        assert_eq!(root.payloads, [used(8, 80, 2), used(9, 40, 1)]);
        let runs = root.run_files();
        let live_bytes = 4101;
        assert_eq!(
            runs,
            [RunUse {
                file: 7,
                live_bytes
            }]
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let resealed = |at: usize, value: u8| {
            let mut root = bytes(WRITTEN);
            root[at] = value;
            let crc = crc32c(&[&root[..16], &root[20..]]);
            root[16..20].copy_from_slice(&crc.to_le_bytes());
            let canonical = usize::from(u16::from_le_bytes([root[12], root[13]]));
            let hash = Hash128::of(&root[24..24 + canonical]);
            decode(&root, hash)
        };
        let malformed = |offset, what| Err(RootError::Malformed(Malformed { offset, what }));
        let pages = 24 + 8 + 48 + 2 * 24;
        assert_eq!(resealed(31, 255), malformed(128, "number of pages"));
        let second = pages + DIRECTORY_ENTRY_BYTES;
        assert_eq!(
            resealed(pages, 9),
            malformed(second as u64, "order of pages")
        );
        let leaf = pages + 2 * DIRECTORY_ENTRY_BYTES + PAGE_PLACE_BYTES;
        let off_its_block = malformed(leaf as u64, "place of a page");
        assert_eq!(resealed(leaf + 8, 8), off_its_block);
        let files = leaf + PAGE_PLACE_BYTES;
        let too_many = malformed(files as u64 + 8, "number of payload files");
        assert_eq!(resealed(files + 3, 255), too_many);
        let table = malformed(files as u64, "payload files");
        assert_eq!(
            resealed(files + 8 + 17, 1),
            table,
            "another use than the lists"
        );
        let list = files + 8 + 2 * PAYLOAD_USE_BYTES;
        let bad_leaf = malformed(list as u64, "first job of a leaf list");
        assert_eq!(resealed(list, 1), bad_leaf, "another group");
        let body = list + LEAF_LIST_HEAD_BYTES;
        let misplaced = |offset: usize| malformed(offset as u64, "place of a body");
        assert_eq!(resealed(body, 64), misplaced(body), "no such slot");
        assert_eq!(resealed(body + 4, 9), misplaced(body), "no such file");
        assert_eq!(resealed(body + 9, 0), misplaced(body), "inside the header");
        let second = body + BODY_PLACE_BYTES;
        assert_eq!(resealed(second, 0), misplaced(second), "a slot twice");
    }
}
