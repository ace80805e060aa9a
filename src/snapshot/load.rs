//! A whole group from its root, by few large reads; one path for the node and the simulator.
//!
//! Order: header of the root's file, root, nodes level by level, pages, bodies. Neighbours in one file
//! are read together in spans of at most 1 MiB. Each file's header is checked before anything in it is believed, so
//! that a swapped, renamed or foreign file is called that instead of damaged.
//!
//! The first thing that is wrong ends the load: the caller then tries the older base of the group.

mod parts;

use crate::base::checksum::Hash128;
use crate::base::ids::{GroupId, JobId, Partition, QueueUid};
use crate::base::limits::LEAF_JOBS;
use crate::snapshot::format1::RootV1;
use crate::snapshot::header::HeaderError;
use crate::snapshot::layout::{
    BODY_HEAD_BYTES, BodyEntry, BodyPlace, FileHeader, FileKind, GroupMeta, HEADER_BYTES, Owner,
    PageEntry, PageName, PayloadUse, Place, Root, RootRef, RunUse,
};
use crate::snapshot::view::{
    BodyError, Malformed, PackError, RootError, RootParts, check_bytes, check_hash, decode_bodies,
    open_pack, verify_body,
};
use bytes::Bytes;
use std::fmt;

pub use parts::{
    Opened, OpenedGroup, Part, PartHolds, Wanted, With, check_bodies, open_group, read_parts,
    read_root,
};

/// Neighbours are read together up to this many bytes; one larger item is read alone.
pub const SPAN_BYTES_MAX: u64 = 1 << 20;
/// Neighbours with a larger gap between them are read apart.
pub const SPAN_GAP_BYTES_MAX: u64 = 64 << 10;

/// A group as its checkpoint holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedGroup {
    /// The group and the index.
    pub meta: GroupMeta,
    /// Where each page lies, as `pages`.
    pub directory: Vec<PageEntry>,
    /// The nodes of its trees; none in format 1.
    pub nodes: Vec<NodeEntry>,
    /// What of each run file is alive, without the root.
    pub run_files: Vec<RunUse>,
    /// What of each payload file is alive.
    pub payload_files: Vec<PayloadUse>,
    /// The pages, ascending by name.
    pub pages: Vec<(PageName, Bytes)>,
    /// The bodies, ascending by job.
    pub bodies: Vec<LoadedBody>,
}

/// What a root names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The group and the index.
    pub meta: GroupMeta,
    /// The pages, ascending by name.
    pub pages: Vec<PageEntry>,
    /// The nodes of its trees, level by level from above; none in format 1.
    pub nodes: Vec<NodeEntry>,
    /// All bodies in format 1; in others pages name them.
    pub bodies: Vec<BodyEntry>,
    /// Whether what is named can be kept by the next checkpoint: it has packs.
    pub is_kept: bool,
    /// What of each run file is alive, without the root.
    pub run_files: Vec<RunUse>,
    /// What of each payload file is alive.
    pub payload_files: Vec<PayloadUse>,
}

/// What is left of a group whose checkpoint is damaged.
#[derive(Debug)]
pub struct Remains<E> {
    /// The group and the index.
    pub meta: GroupMeta,
    /// The pages that are whole, ascending by name.
    pub pages: Vec<(PageName, Bytes)>,
    /// The bodies that they name, ascending by job.
    pub bodies: Vec<BodyEntry>,
    /// What is not, and why.
    pub bad: Vec<(Bad, LoadError<E>)>,
}

/// What cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// A page.
    Page(PageName),
    /// A node of this level, with all pages below it.
    Node(PageName, u8),
}

/// A node of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// Kind, queue and partition of its pages; its number.
    pub name: PageName,
    /// Its level.
    pub level: u8,
    /// Its hash.
    pub hash: Hash128,
    /// Its pack.
    pub place: Place,
}

/// A job's encoded body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedBody {
    /// The job.
    pub job: JobId,
    /// Where it lies.
    pub place: BodyPlace,
    /// The body as the job machine encoded it.
    pub bytes: Bytes,
}

/// What was being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The header of a file.
    Header,
    /// The root.
    Root,
    /// Nodes, the first and the last by place; boxed, as errors are to be small.
    Nodes(Box<[PageName; 2]>),
    /// Pages, likewise.
    Pages(Box<[PageName; 2]>),
    /// Bodies, the lowest and the highest job among them.
    Bodies(JobId, JobId),
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "header"),
            Self::Root => write!(f, "root"),
            Self::Nodes(ends) if ends[0] == ends[1] => write!(f, "node {}", ends[0]),
            Self::Nodes(ends) => write!(f, "nodes {} to {}", ends[0], ends[1]),
            Self::Pages(ends) if ends[0] == ends[1] => write!(f, "page {}", ends[0]),
            Self::Pages(ends) => write!(f, "pages {} to {}", ends[0], ends[1]),
            Self::Bodies(first, last) if first == last => write!(f, "body of job {first}"),
            Self::Bodies(first, last) => write!(f, "bodies of jobs {first} to {last}"),
        }
    }
}

impl fmt::Display for PageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            queue,
            partition,
            number,
        } = self;
        write!(f, "{kind}/{queue}/{partition}/{number}")
    }
}

/// Why a group cannot be loaded. `E` is the error of the reader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError<E> {
    /// The reader failed.
    #[error(
        "file {file:016x}: the {reading} at byte {offset} ({len} bytes) cannot be read: {error}"
    )]
    Read {
        /// The file.
        file: u64,
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// What.
        reading: Reading,
        /// The reader's error.
        error: E,
    },
    /// The file ends too early.
    #[error("file {file:016x} ends in the {reading} at byte {offset}: {found} bytes of {needed}")]
    Truncated {
        /// The file.
        file: u64,
        /// Where.
        offset: u64,
        /// What.
        reading: Reading,
        /// Bytes wanted.
        needed: u64,
        /// Bytes there.
        found: u64,
    },
    /// The file is not the one it is named.
    #[error("file {file:016x}: {error}")]
    Header {
        /// The file.
        file: u64,
        /// What is wrong.
        error: HeaderError,
    },
    /// The root is not the one that the base names.
    #[error("file {file:016x}, root at byte {offset}: {error}")]
    Root {
        /// The file.
        file: u64,
        /// Where.
        offset: u64,
        /// What is wrong.
        error: RootError,
    },
    /// A node is not the one that is named.
    #[error("file {file:016x}, node {node} of level {level} at byte {offset}: {error}")]
    Node {
        /// The file.
        file: u64,
        /// Where.
        offset: u64,
        /// Which node.
        node: PageName,
        /// Its level.
        level: u8,
        /// What is wrong.
        error: PackError,
    },
    /// A page is not the one that is named.
    #[error("file {file:016x}, page {page} at byte {offset}: {error}")]
    Page {
        /// The file.
        file: u64,
        /// Where.
        offset: u64,
        /// Which page.
        page: PageName,
        /// What is wrong.
        error: PackError,
    },
    /// A body is not the one that the root names.
    #[error("file {file:016x}, body of job {job} at byte {offset}: {error}")]
    Body {
        /// The file.
        file: u64,
        /// Where the body's record starts.
        offset: u64,
        /// The job.
        job: JobId,
        /// What is wrong.
        error: BodyError,
    },
}

/// The reader: `(file, offset, len)` to exactly that many bytes, or fewer at the end of the file.
type Read<'r, E> = dyn FnMut(u64, u64, usize) -> Result<Bytes, E> + 'r;

/// Reads the group at `root` and verifies every byte of it.
///
/// # Errors
/// The first thing that is wrong, with file, place and page or job.
pub fn read_group<E>(
    owner: &Owner,
    root: &RootRef,
    read: &mut Read<'_, E>,
) -> Result<LoadedGroup, LoadError<E>> {
    let mut files = Files::new(owner, read);
    let directory = files.directory(root)?;
    let mut bodies = directory.bodies;
    let mut pages = Vec::with_capacity(directory.pages.len());
    let of = |page: &PageEntry| (page.name, page.place);
    let found = files.items(&directory.pages, of, Reading::Pages)?;
    for (entry, bytes) in directory.pages.iter().zip(found) {
        let place = (directory.meta.group, directory.is_kept);
        let (page, own) = open_page(place, entry, &bytes)?;
        pages.push((entry.name, page));
        bodies.extend(own);
    }
    bodies.sort_unstable_by_key(|body| body.job);
    Ok(LoadedGroup {
        bodies: files.bodies(&bodies)?,
        meta: directory.meta,
        directory: directory.pages,
        nodes: directory.nodes,
        run_files: directory.run_files,
        payload_files: directory.payload_files,
        pages,
    })
}

/// Reads what the root at `root` names, but neither pages nor bodies.
///
/// # Errors
/// The first thing that is wrong.
pub fn read_directory<E>(
    owner: &Owner,
    root: &RootRef,
    read: &mut Read<'_, E>,
) -> Result<Directory, LoadError<E>> {
    Files::new(owner, read).directory(root)
}

/// Reads what is whole of the group at `root`, piece by piece, but no bodies: slow, and for a repair.
///
/// # Errors
/// If the root cannot be read: nothing can be had.
pub fn read_remains<E>(
    owner: &Owner,
    root: &RootRef,
    read: &mut Read<'_, E>,
) -> Result<Remains<E>, LoadError<E>> {
    let mut files = Files::new(owner, read);
    let (mut directory, mut nodes) = files.root(root)?;
    let mut remains = Remains {
        meta: directory.meta,
        pages: Vec::new(),
        bodies: directory.bodies,
        bad: Vec::new(),
    };
    while let Some(node) = nodes.pop() {
        match files.below(std::slice::from_ref(&node), &mut directory.pages) {
            Ok(below) => nodes.extend(below),
            Err(error) => remains.bad.push((Bad::Node(node.name, node.level), error)),
        }
    }
    directory.pages.sort_unstable_by_key(|page| page.name);
    for entry in &directory.pages {
        let place = (remains.meta.group, directory.is_kept);
        let of = |page: &PageEntry| (page.name, page.place);
        let found = files.items(std::slice::from_ref(entry), of, Reading::Pages);
        match found.and_then(|found| open_page(place, entry, &found[0])) {
            Ok((page, bodies)) => {
                remains.pages.push((entry.name, page));
                remains.bodies.extend(bodies);
            }
            Err(error) => remains.bad.push((Bad::Page(entry.name), error)),
        }
    }
    remains.bodies.sort_unstable_by_key(|body| body.job);
    Ok(remains)
}

/// What is in a page's bytes on disk: the page, and where the bodies of its jobs are.
fn open_page<E>(
    (group, has_pack): (GroupId, bool),
    entry: &PageEntry,
    bytes: &Bytes,
) -> Result<(Bytes, Vec<BodyEntry>), LoadError<E>> {
    let wrong = |error| bad_page(entry, error);
    if !has_pack {
        check_bytes(&entry.place, bytes).map_err(wrong)?;
        check_hash(entry.hash, bytes).map_err(wrong)?;
        return Ok((bytes.clone(), Vec::new()));
    }
    let (canonical, local) = open_pack(entry.hash, &entry.place, bytes).map_err(wrong)?;
    let places = decode_bodies(local).map_err(|error| wrong(error.into()))?;
    let misnamed = Malformed {
        offset: 0,
        what: "name of a page with bodies",
    };
    let bodies = places.into_iter().map(|(slot, place)| {
        let job = job_of(group, &entry.name, slot);
        let job = job.ok_or_else(|| wrong(misnamed.into()))?;
        Ok(BodyEntry { job, place })
    });
    Ok((
        bytes.slice_ref(canonical),
        bodies.collect::<Result<_, _>>()?,
    ))
}

/// What a root keeps alive of run files, without its own, and of payload files.
///
/// # Errors
/// By name, see [`RootError`].
pub fn files_of_root(
    bytes: &[u8],
    expected: Hash128,
) -> Result<(Vec<RunUse>, Vec<PayloadUse>), RootError> {
    let parts = RootParts::of(bytes, expected)?;
    if parts.format() == 1 {
        let root = RootV1::decode(&parts)?;
        return Ok((root.run_files(), root.payloads));
    }
    let root = Root::of_parts(&parts)?;
    Ok((root.run_files(), root.payload_files()))
}

/// The jobs of a page, by slot.
fn job_of(group: GroupId, page: &PageName, slot: u8) -> Option<JobId> {
    let queue = QueueUid::from_u64(page.queue)?;
    let partition = Partition(u8::try_from(page.partition).ok()?);
    let seq = page.number.checked_mul(LEAF_JOBS)?;
    let seq = seq.checked_add(u64::from(slot));
    let seq = seq.filter(|seq| *seq <= JobId::SEQ_MAX)?;
    Some(JobId::new(group, queue, partition, seq))
}

fn bad_page<E>(page: &PageEntry, error: PackError) -> LoadError<E> {
    LoadError::Page {
        file: page.place.file,
        offset: page.place.offset,
        page: page.name,
        error,
    }
}

/// What a root is.
enum Named {
    Trees(Root),
    /// Of format 1, which names all pages and bodies.
    All(Directory),
}

struct Files<'a, 'r, E> {
    owner: &'a Owner,
    read: &'a mut Read<'r, E>,
    /// Files whose header is right, ascending.
    checked: Vec<(u64, FileKind)>,
}

impl<'a, 'r, E> Files<'a, 'r, E> {
    fn new(owner: &'a Owner, read: &'a mut Read<'r, E>) -> Self {
        Self {
            owner,
            read,
            checked: Vec::new(),
        }
    }

    /// A root.
    fn named(&mut self, root: &RootRef) -> Result<Named, LoadError<E>> {
        let span = Span {
            file: root.file,
            start: root.offset,
            end: root.offset.saturating_add(u64::from(root.len)),
            items: 0..0,
        };
        let bytes = self.read(FileKind::Run, &span, Reading::Root)?;
        let wrong = |error| LoadError::Root {
            file: root.file,
            offset: root.offset,
            error,
        };
        let parts = RootParts::of(&bytes, root.hash).map_err(wrong)?;
        if parts.format() == 1 {
            let root = RootV1::decode(&parts).map_err(wrong)?;
            return Ok(Named::All(Directory {
                run_files: root.run_files(),
                meta: root.meta,
                pages: root.pages,
                nodes: Vec::new(),
                bodies: root.bodies,
                is_kept: false,
                payload_files: root.payloads,
            }));
        }
        Ok(Named::Trees(Root::of_parts(&parts).map_err(wrong)?))
    }

    /// What a root names itself: pages, and the highest node of each tree.
    fn root(&mut self, root: &RootRef) -> Result<(Directory, Vec<NodeEntry>), LoadError<E>> {
        let root = match self.named(root)? {
            Named::Trees(root) => root,
            Named::All(directory) => return Ok((directory, Vec::new())),
        };
        let tops = root.trees.iter().map(|tree| NodeEntry {
            name: tree.name,
            level: tree.level,
            hash: tree.hash,
            place: tree.place,
        });
        let tops = tops.collect();
        let directory = Directory {
            run_files: root.run_files(),
            payload_files: root.payload_files(),
            meta: root.meta,
            pages: root.pages,
            nodes: Vec::new(),
            bodies: Vec::new(),
            is_kept: true,
        };
        Ok((directory, tops))
    }

    fn directory(&mut self, root: &RootRef) -> Result<Directory, LoadError<E>> {
        let (mut directory, mut level) = self.root(root)?;
        while !level.is_empty() {
            let below = self.below(&level, &mut directory.pages)?;
            directory.nodes.append(&mut level);
            level = below;
        }
        directory.pages.sort_unstable_by_key(|page| page.name);
        Ok(directory)
    }

    /// The nodes below these, and the pages.
    fn below(
        &mut self,
        nodes: &[NodeEntry],
        pages: &mut Vec<PageEntry>,
    ) -> Result<Vec<NodeEntry>, LoadError<E>> {
        let mut below = Vec::new();
        let found = self.items(nodes, |node| (node.name, node.place), Reading::Nodes)?;
        for (entry, bytes) in nodes.iter().zip(found) {
            for branch in parts::open_node(entry, &bytes)? {
                let (hash, place) = (branch.hash, branch.place);
                let name = PageName {
                    number: entry.name.number << 6 | u64::from(branch.slot),
                    ..entry.name
                };
                match entry.level - 1 {
                    0 => pages.push(PageEntry { name, hash, place }),
                    level => below.push(NodeEntry {
                        name,
                        level,
                        hash,
                        place,
                    }),
                }
            }
        }
        Ok(below)
    }

    /// The bytes of pages or nodes, as they are, in their order.
    fn items<T>(
        &mut self,
        entries: &[T],
        of: impl Fn(&T) -> (PageName, Place),
        reading: impl Fn(Box<[PageName; 2]>) -> Reading,
    ) -> Result<Vec<Bytes>, LoadError<E>> {
        let range = |entry: &T| {
            let (_, place) = of(entry);
            let end = place.offset + u64::from(place.len);
            (place.file, place.offset, end)
        };
        let (order, spans) = spans(entries, range);
        let mut found = vec![Bytes::new(); entries.len()];
        for span in spans {
            let items = &order[span.items.clone()];
            let ends = [items[0], items[items.len() - 1]].map(|item| of(&entries[item]).0);
            let bytes = self.read(FileKind::Run, &span, reading(Box::new(ends)))?;
            for &item in items {
                let (_, place) = of(&entries[item]);
                let at = (place.offset - span.start) as usize;
                found[item] = bytes.slice(at..at + place.len as usize);
            }
        }
        Ok(found)
    }

    fn bodies(&mut self, entries: &[BodyEntry]) -> Result<Vec<LoadedBody>, LoadError<E>> {
        let start = |entry: &BodyEntry| entry.place.offset - BODY_HEAD_BYTES as u64;
        let place = |entry: &BodyEntry| {
            let end = entry.place.offset + u64::from(entry.place.len);
            (entry.place.file, start(entry), end)
        };
        let (order, spans) = spans(entries, place);
        let mut bodies: Vec<LoadedBody> = entries
            .iter()
            .map(|entry| LoadedBody {
                job: entry.job,
                place: entry.place,
                bytes: Bytes::new(),
            })
            .collect();
        for span in spans {
            let items = &order[span.items.clone()];
            // Entries ascend by job, so the lowest item is the lowest job.
            let (low, high) = items.iter().fold((usize::MAX, 0), |(low, high), &item| {
                (low.min(item), high.max(item))
            });
            let reading = Reading::Bodies(entries[low].job, entries[high].job);
            let bytes = self.read(FileKind::Payload, &span, reading)?;
            for &item in items {
                let entry = &entries[item];
                let record = &bytes[(start(entry) - span.start) as usize..];
                let body = verify_body(entry, record).map_err(|error| LoadError::Body {
                    file: entry.place.file,
                    offset: start(entry),
                    job: entry.job,
                    error,
                })?;
                // A copy: a job that lives long must not hold on to its whole span.
                bodies[item].bytes = Bytes::copy_from_slice(body);
            }
        }
        Ok(bodies)
    }

    /// Reads exactly a span, after its file's header.
    fn read(
        &mut self,
        kind: FileKind,
        span: &Span,
        reading: Reading,
    ) -> Result<Bytes, LoadError<E>> {
        if let Err(at) = self
            .checked
            .binary_search_by_key(&span.file, |(file, _)| *file)
        {
            let header = self.exactly(span.file, 0, HEADER_BYTES as u64, Reading::Header)?;
            let wrong = |error| LoadError::Header {
                file: span.file,
                error,
            };
            let header = FileHeader::decode(&header).map_err(wrong)?;
            header.check(kind, self.owner, span.file).map_err(wrong)?;
            self.checked.insert(at, (span.file, kind));
        }
        self.exactly(span.file, span.start, span.end - span.start, reading)
    }

    fn exactly(
        &mut self,
        file: u64,
        offset: u64,
        len: u64,
        reading: Reading,
    ) -> Result<Bytes, LoadError<E>> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        match (self.read)(file, offset, len as usize) {
            Ok(bytes) if bytes.len() as u64 == len => Ok(bytes),
            Ok(bytes) => Err(LoadError::Truncated {
                file,
                offset,
                reading,
                needed: len,
                found: bytes.len() as u64,
            }),
            Err(error) => Err(LoadError::Read {
                file,
                offset,
                len,
                reading,
                error,
            }),
        }
    }
}

/// One read, and the items in it as a range of the order by place.
struct Span {
    file: u64,
    start: u64,
    end: u64,
    items: std::ops::Range<usize>,
}

/// The items by place, and the reads that cover them.
fn spans<T>(items: &[T], place: impl Fn(&T) -> (u64, u64, u64)) -> (Vec<usize>, Vec<Span>) {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_unstable_by_key(|&item| place(&items[item]));
    let mut spans: Vec<Span> = Vec::new();
    for (at, &item) in order.iter().enumerate() {
        let (file, start, end) = place(&items[item]);
        match spans.last_mut() {
            Some(span)
                if span.file == file
                    && start.saturating_sub(span.end) <= SPAN_GAP_BYTES_MAX
                    && end.max(span.end) - span.start <= SPAN_BYTES_MAX =>
            {
                span.end = span.end.max(end);
                span.items.end = at + 1;
            }
            _ => spans.push(Span {
                file,
                start,
                end,
                items: at..at + 1,
            }),
        }
    }
    (order, spans)
}

#[cfg(test)]
mod tests;
