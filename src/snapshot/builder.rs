//! Pages and bodies to the bytes of run and payload files, in slices.
//!
//! ```text
//! RunBuilder:      new ─ (add_page | add_node)* add_root ─ … ─ finish
//! PayloadBuilder:  new ─ add_body* ───────────────────────────────── finish
//!                        └── take_output at any time: whole blocks, in file order
//! ```
//!
//! A file that was finished is gone on with by `resume`, at the end that it had.
//!
//! Nothing is written here: the caller takes `(offset, bytes)` slices, each a whole number of
//! 4 KiB blocks at a multiple of 4 KiB (the last one too: files are padded), and writes them as it
//! sees fit. What is not taken stays in memory. Layouts are told in [`crate::snapshot::layout`].

use crate::base::checksum::{Hash128, crc32c};
use crate::base::ids::{GroupId, JobId};
use crate::base::limits::BLOCK_BYTES;
use crate::snapshot::layout::{
    ALIGN_BYTES, BODY_BYTES_MAX, BODY_HEAD_BYTES, BodyPlace, FileHeader, FileKind, Node,
    PACK_HEAD_BYTES, PageEntry, PageName, Place, Root, RootRef, TreeEntry, encode_bodies, pack,
};
use bytes::{Bytes, BytesMut};

/// A slice of output is at most this long.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Memory that is taken at once for what is to be put.
const ROOM_BYTES: usize = 256 << 10;

const _: () = assert!(OUTPUT_BYTES_MAX.is_multiple_of(BLOCK_BYTES));

/// Why a file cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The group has more pages and jobs than a root of 4 GiB can list.
    #[error("the root of group {group} would take {bytes} bytes, more than 4 GiB")]
    RootTooLarge {
        /// The group.
        group: GroupId,
        /// What its root, or a list in it, would hold.
        bytes: u64,
    },
    /// A page is 4 GiB or longer.
    #[error("a page of group {group} takes {bytes} bytes, more than 4 GiB")]
    PageTooLarge {
        /// The group.
        group: GroupId,
        /// The page's length.
        bytes: u64,
    },
}

/// The end of a file that is being built: what is not taken yet.
#[derive(Debug)]
struct Output {
    taken: u64,
    buffer: BytesMut,
}

impl Output {
    fn new(header: &FileHeader) -> Self {
        Self {
            taken: 0,
            buffer: BytesMut::from(&header.encode()[..]),
        }
    }

    fn resume(end: u64) -> Self {
        let is_whole = end > 0 && end.is_multiple_of(BLOCK_BYTES as u64);
        assert!(is_whole, "a finished file does not end at {end}");
        Self {
            taken: end,
            buffer: BytesMut::new(),
        }
    }

    fn end(&self) -> u64 {
        self.taken + self.buffer.len() as u64
    }

    fn put(&mut self, bytes: &[u8]) {
        // What was taken took its memory along; growing from nothing would copy each slice often.
        if self.buffer.capacity() - self.buffer.len() < bytes.len() {
            self.buffer.reserve(bytes.len().max(ROOM_BYTES));
        }
        self.buffer.extend_from_slice(bytes);
    }

    fn align(&mut self, to: u64) {
        let padding = self.end().next_multiple_of(to) - self.end();
        self.buffer.resize(self.buffer.len() + padding as usize, 0);
    }

    fn take(&mut self) -> Option<(u64, Bytes)> {
        let whole = self.buffer.len() / BLOCK_BYTES * BLOCK_BYTES;
        if whole == 0 {
            return None;
        }
        let slice = self.buffer.split_to(whole.min(OUTPUT_BYTES_MAX)).freeze();
        let offset = self.taken;
        self.taken += slice.len() as u64;
        Some((offset, slice))
    }
}

/// Builds what a checkpoint round adds to a run file: all groups that are due, one after the other, each bottom
/// up.
#[derive(Debug)]
pub struct RunBuilder {
    file: u64,
    output: Output,
}

impl RunBuilder {
    /// Starts the file.
    ///
    /// # Panics
    /// If the header is not that of a run file.
    #[must_use]
    pub fn new(header: &FileHeader) -> Self {
        assert_eq!(header.kind, FileKind::Run, "a run file has a run header");
        Self {
            file: header.file,
            output: Output::new(header),
        }
    }

    /// Goes on with file number `file`, which was finished at `end`.
    ///
    /// # Panics
    /// If no file is finished there.
    #[must_use]
    pub fn resume(file: u64, end: u64) -> Self {
        Self {
            file,
            output: Output::resume(end),
        }
    }

    /// The number of the file.
    #[must_use]
    pub fn file(&self) -> u64 {
        self.file
    }

    fn add_pack(
        &mut self,
        group: GroupId,
        canonical: &[u8],
        local: &[u8],
    ) -> Result<(Hash128, Place), BuildError> {
        let bytes = PACK_HEAD_BYTES as u64 + canonical.len() as u64 + local.len() as u64;
        let len = u32::try_from(bytes).map_err(|_| BuildError::PageTooLarge { group, bytes })?;
        self.output.align(ALIGN_BYTES);
        let pack = pack(canonical, local);
        let place = Place {
            file: self.file,
            offset: self.output.end(),
            len,
            crc: crc32c(&[&pack]),
        };
        self.output.put(&pack);
        Ok((Hash128::of(canonical), place))
    }

    /// Writes a page of `group`, with the places of the bodies of its jobs, strictly ascending by slot.
    ///
    /// # Errors
    /// If the page is 4 GiB or longer.
    pub fn add_page(
        &mut self,
        group: GroupId,
        name: PageName,
        bytes: &[u8],
        bodies: &[(u8, BodyPlace)],
    ) -> Result<PageEntry, BuildError> {
        let (hash, place) = self.add_pack(group, bytes, &encode_bodies(bodies))?;
        Ok(PageEntry { name, hash, place })
    }

    /// Writes a node of `group`, over what was written before or lies in older run files of this disk.
    ///
    /// # Errors
    /// Never in effect: a node is small.
    pub fn add_node(
        &mut self,
        group: GroupId,
        node: &Node,
    ) -> Result<(Hash128, Place), BuildError> {
        let (canonical, local) = node.encode();
        self.add_pack(group, &canonical, &local)
    }

    /// Writes the root of a group. Its pages and trees lie in this file or in older ones of this disk, in
    /// any order.
    ///
    /// # Errors
    /// If the root would be 4 GiB or longer; the group's pages then lie in the file unnamed.
    ///
    /// # Panics
    /// If a page or a tree is named twice.
    pub fn add_root(&mut self, mut root: Root) -> Result<RootRef, BuildError> {
        root.sort();
        for pair in root.pages.windows(2) {
            assert!(pair[0].name < pair[1].name, "{:?} twice", pair[0].name);
        }
        let place = |tree: &TreeEntry| (tree.name.kind, tree.name.queue, tree.name.partition);
        for pair in root.trees.windows(2) {
            let is_rising = place(&pair[0]) < place(&pair[1]);
            assert!(is_rising, "the tree of {:?} twice", pair[0].name);
        }
        let (bytes, hash) = root.encode()?;
        self.output.align(ALIGN_BYTES);
        let offset = self.output.end();
        self.output.put(&bytes);
        Ok(RootRef {
            file: self.file,
            offset,
            len: bytes.len() as u32,
            hash,
        })
    }

    /// Pads the file to whole blocks; its length. The last slices are then there to take.
    pub fn finish(&mut self) -> u64 {
        self.output.align(BLOCK_BYTES as u64);
        self.output.end()
    }

    /// The next slice to write and its offset, whole blocks; `None` until more is added.
    pub fn take_output(&mut self) -> Option<(u64, Bytes)> {
        self.output.take()
    }
}

/// Builds a payload file.
#[derive(Debug)]
pub struct PayloadBuilder {
    file: u64,
    output: Output,
}

impl PayloadBuilder {
    /// Starts the file.
    ///
    /// # Panics
    /// If the header is not that of a payload file.
    #[must_use]
    pub fn new(header: &FileHeader) -> Self {
        assert_eq!(header.kind, FileKind::Payload, "a payload file says so");
        Self {
            file: header.file,
            output: Output::new(header),
        }
    }

    /// Goes on with file number `file`, which was finished at `end`.
    ///
    /// # Panics
    /// If no file is finished there.
    #[must_use]
    pub fn resume(file: u64, end: u64) -> Self {
        Self {
            file,
            output: Output::resume(end),
        }
    }

    /// The number of the file.
    #[must_use]
    pub fn file(&self) -> u64 {
        self.file
    }

    /// Writes the encoded body of a job; where it lies.
    ///
    /// # Panics
    /// If the body exceeds [`BODY_BYTES_MAX`]: no entry could have brought it.
    pub fn add_body(&mut self, job: JobId, body: &[u8]) -> BodyPlace {
        assert!(
            body.len() <= BODY_BYTES_MAX,
            "the body of job {job} has {} bytes",
            body.len()
        );
        let len = body.len() as u32;
        let id = job.to_bytes();
        let crc = crc32c(&[&len.to_le_bytes(), &id, body]);
        self.output.align(ALIGN_BYTES);
        self.output.put(&len.to_le_bytes());
        self.output.put(&crc.to_le_bytes());
        self.output.put(&id);
        let place = BodyPlace {
            file: self.file,
            offset: self.output.end(),
            len,
        };
        assert!(place.offset >= (BLOCK_BYTES + BODY_HEAD_BYTES) as u64);
        self.output.put(body);
        place
    }

    /// The file's length so far: what a caller compares with its bound before the next body.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.output.end()
    }

    /// Whether no body has been added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.output.end() == BLOCK_BYTES as u64
    }

    /// Pads the file to whole blocks; its length. The last slices are then there to take.
    pub fn finish(&mut self) -> u64 {
        self.output.align(BLOCK_BYTES as u64);
        self.output.end()
    }

    /// The next slice to write and its offset, whole blocks; `None` until more is added.
    pub fn take_output(&mut self) -> Option<(u64, Bytes)> {
        self.output.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::{self, job};

    fn name(kind: u8, number: u64) -> PageName {
        PageName {
            kind,
            queue: 1,
            partition: 0,
            number,
        }
    }

    fn drain(mut take: impl FnMut() -> Option<(u64, Bytes)>, file: &mut Vec<u8>) {
        while let Some((offset, bytes)) = take() {
            assert_eq!(offset, file.len() as u64, "slices come in file order");
            assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
            assert!(bytes.len() <= OUTPUT_BYTES_MAX);
            file.extend_from_slice(&bytes);
        }
    }

    #[test]
    fn slices_are_whole_blocks_and_do_not_depend_on_when_they_are_taken() {
        let build = |eager: bool| {
            let mut builder = RunBuilder::new(&samples::header(FileKind::Run, 7));
            let mut file = Vec::new();
            for number in 0..700 {
                let page = vec![number as u8; if number % 3 == 0 { 4096 } else { 100 }];
                let entry = builder.add_page(GroupId(5), name(4, number), &page, &[]);
                let entry = entry.expect("small");
                assert!(entry.place.offset.is_multiple_of(ALIGN_BYTES));
                if eager {
                    drain(|| builder.take_output(), &mut file);
                }
            }
            let root = builder.add_root(samples::root()).expect("small");
            let end = builder.finish();
            drain(|| builder.take_output(), &mut file);
            assert_eq!(file.len() as u64, end);
            (root, file)
        };
        assert_eq!(build(true), build(false));
    }

    #[test]
    fn pages_and_trees_may_come_in_any_order() {
        let mut builder = RunBuilder::new(&samples::header(FileKind::Run, 7));
        let mut backwards = samples::root();
        backwards.pages.reverse();
        backwards.trees.reverse();
        assert_ne!(backwards, samples::root());
        let hashes = [samples::root(), backwards].map(|root| {
            let root = builder.add_root(root);
            root.expect("small").hash
        });
        assert_eq!(hashes[0], hashes[1]);
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn a_tree_named_twice_is_a_bug() {
        let mut builder = RunBuilder::new(&samples::header(FileKind::Run, 7));
        let mut root = samples::root();
        root.trees[1].name = root.trees[0].name;
        let _ = builder.add_root(root);
    }

    #[test]
    fn bodies_are_aligned_and_empty_files_know_it() {
        let mut builder = PayloadBuilder::new(&samples::header(FileKind::Payload, 8));
        assert!(builder.is_empty());
        for len in 0..20 {
            let place = builder.add_body(job(len), &vec![1; len as usize]);
            assert!(place.offset.is_multiple_of(8));
            assert_eq!(builder.len(), place.offset + len);
        }
        assert!(!builder.is_empty());
        assert_eq!(builder.finish() % 4096, 0);
    }

    #[test]
    fn a_finished_file_is_gone_on_with_in_the_next_block() {
        let mut file = Vec::new();
        let mut first = PayloadBuilder::new(&samples::header(FileKind::Payload, 8));
        first.add_body(job(1), b"before");
        let end = first.finish();
        drain(|| first.take_output(), &mut file);
        assert_eq!(end, file.len() as u64);
        let before = file.clone();
        let mut second = PayloadBuilder::resume(first.file(), end);
        let place = second.add_body(job(2), b"behind");
        let at = end + BODY_HEAD_BYTES as u64;
        assert_eq!((place.file, place.offset), (8, at));
        second.finish();
        drain(|| second.take_output(), &mut file);
        assert!(file.starts_with(&before), "what was there is not touched");
        assert!(file[at as usize..].starts_with(b"behind"));
    }
}
