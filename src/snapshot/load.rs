//! A whole group from its root, by few large reads; one path for the node and the simulator.
//!
//! Order: header of the root's file, root, pages, bodies. Neighbours in one file are read together
//! in spans of at most 1 MiB. Each file's header is checked before anything in it is believed, so
//! that a swapped, renamed or foreign file is called that instead of damaged.
//!
//! The first thing that is wrong ends the load: the caller then tries the older base of the group.

use crate::base::ids::JobId;
use crate::snapshot::layout::{
    BODY_HEAD_BYTES, BodyEntry, BodyPlace, FileHeader, FileKind, GroupMeta, HEADER_BYTES, Owner,
    PageEntry, PageName, PayloadUse, Root, RootRef,
};
use crate::snapshot::view::{
    BodyError, HeaderError, PageError, RootError, verify_body, verify_page,
};
use bytes::Bytes;
use std::fmt;

/// Neighbours are read together up to this many bytes; one larger item is read alone.
pub const SPAN_BYTES_MAX: u64 = 1 << 20;
/// Neighbours with a larger gap between them are read apart.
pub const SPAN_GAP_BYTES_MAX: u64 = 64 << 10;

/// A group as its checkpoint holds it.
#[derive(Clone, Debug)]
pub struct LoadedGroup {
    /// The group and the index.
    pub meta: GroupMeta,
    /// The directory: what the next checkpoint may keep.
    pub directory: Vec<PageEntry>,
    /// What of each payload file is alive.
    pub payload_files: Vec<PayloadUse>,
    /// The pages, ascending by name.
    pub pages: Vec<(PageName, Bytes)>,
    /// The bodies, ascending by job.
    pub bodies: Vec<LoadedBody>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The header of a file.
    Header,
    /// The root.
    Root,
    /// Pages, from the first to the last by place.
    Pages(PageName, PageName),
    /// Bodies, the lowest and the highest job among them.
    Bodies(JobId, JobId),
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "header"),
            Self::Root => write!(f, "root"),
            Self::Pages(first, last) if first == last => write!(f, "page {first}"),
            Self::Pages(first, last) => write!(f, "pages {first} to {last}"),
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
    /// A page is not the one that the directory names.
    #[error("file {file:016x}, page {page} at byte {offset}: {error}")]
    Page {
        /// The file.
        file: u64,
        /// Where.
        offset: u64,
        /// Which page.
        page: PageName,
        /// What is wrong.
        error: PageError,
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
    let mut files = Files {
        owner,
        read,
        checked: Vec::new(),
    };
    let span = Span {
        file: root.file,
        start: root.offset,
        end: root.offset.saturating_add(u64::from(root.len)),
        items: 0..0,
    };
    let bytes = files.read(FileKind::Run, &span, Reading::Root)?;
    let decoded = Root::decode(&bytes, root.hash).map_err(|error| LoadError::Root {
        file: root.file,
        offset: root.offset,
        error,
    })?;
    drop(bytes);
    let pages = files.pages(&decoded.pages)?;
    let bodies = files.bodies(&decoded.bodies)?;
    Ok(LoadedGroup {
        payload_files: decoded.payload_files(),
        meta: decoded.meta,
        directory: decoded.pages,
        pages,
        bodies,
    })
}

struct Files<'a, 'r, E> {
    owner: &'a Owner,
    read: &'a mut Read<'r, E>,
    /// Files whose header is right, ascending.
    checked: Vec<(u64, FileKind)>,
}

impl<E> Files<'_, '_, E> {
    fn pages(&mut self, entries: &[PageEntry]) -> Result<Vec<(PageName, Bytes)>, LoadError<E>> {
        let place = |entry: &PageEntry| {
            (
                entry.file,
                entry.offset,
                entry.offset + u64::from(entry.len),
            )
        };
        let (order, spans) = spans(entries, place);
        let mut pages: Vec<(PageName, Bytes)> = entries
            .iter()
            .map(|entry| (entry.name, Bytes::new()))
            .collect();
        for span in spans {
            let items = &order[span.items.clone()];
            let (first, last) = (items[0], items[items.len() - 1]);
            let reading = Reading::Pages(entries[first].name, entries[last].name);
            let bytes = self.read(FileKind::Run, &span, reading)?;
            for &item in items {
                let entry = &entries[item];
                let at = (entry.offset - span.start) as usize;
                let page = bytes.slice(at..at + entry.len as usize);
                verify_page(entry, &page).map_err(|error| LoadError::Page {
                    file: entry.file,
                    offset: entry.offset,
                    page: entry.name,
                    error,
                })?;
                pages[item].1 = page;
            }
        }
        Ok(pages)
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
        let bytes = (self.read)(file, offset, len as usize).map_err(|error| LoadError::Read {
            file,
            offset,
            len,
            reading,
            error,
        })?;
        if bytes.len() as u64 == len {
            return Ok(bytes);
        }
        Err(LoadError::Truncated {
            file,
            offset,
            reading,
            needed: len,
            found: bytes.len() as u64,
        })
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
