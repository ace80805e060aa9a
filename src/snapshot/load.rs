//! A whole group from its root, by few large reads; one path for the node and the simulator.
//!
//! Order: header of the root's file, root, pages, bodies. Neighbours in one file are read together
//! in spans of at most 1 MiB. Each file's header is checked before anything in it is believed, so
//! that a swapped, renamed or foreign file is called that instead of damaged.
//!
//! The first thing that is wrong ends the load: the caller then tries the older base of the group.

use crate::base::ids::JobId;
use crate::snapshot::header::HeaderError;
use crate::snapshot::layout::{
    BODY_HEAD_BYTES, BodyEntry, BodyPlace, FileHeader, FileKind, GroupMeta, HEADER_BYTES, Owner,
    PageEntry, PageName, PayloadUse, Root, RootRef,
};
use crate::snapshot::view::{BodyError, PageError, RootError, verify_body, verify_page};
use bytes::Bytes;
use std::fmt;

/// Neighbours are read together up to this many bytes; one larger item is read alone.
pub const SPAN_BYTES_MAX: u64 = 1 << 20;
/// Neighbours with a larger gap between them are read apart.
pub const SPAN_GAP_BYTES_MAX: u64 = 64 << 10;

/// A group as its checkpoint holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The header of a file.
    Header,
    /// The root.
    Root,
    /// Pages, the first and the last by place; boxed, as errors are to be small.
    Pages(Box<[PageName; 2]>),
    /// Bodies, the lowest and the highest job among them.
    Bodies(JobId, JobId),
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "header"),
            Self::Root => write!(f, "root"),
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
            let reading = Reading::Pages(Box::new([entries[first].name, entries[last].name]));
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
mod tests {
    use super::*;
    use crate::base::ids::GroupId;
    use crate::snapshot::builder::{PayloadBuilder, RunBuilder};
    use crate::snapshot::samples::{self, job, meta, owner};
    use std::collections::BTreeMap;

    /// Files in memory; a reader of them that counts its reads.
    #[derive(Clone, Default)]
    struct Disk(BTreeMap<u64, Vec<u8>>);

    impl Disk {
        fn keep(&mut self, file: u64, mut take: impl FnMut() -> Option<(u64, Bytes)>) {
            let bytes = self.0.entry(file).or_default();
            while let Some((_, slice)) = take() {
                bytes.extend_from_slice(&slice);
            }
        }

        fn load(&self, root: &RootRef) -> (Result<LoadedGroup, LoadError<&'static str>>, usize) {
            let mut reads = 0;
            let loaded = read_group(&owner(), root, &mut |file, offset, len| {
                reads += 1;
                let bytes = self.0.get(&file).ok_or("no such file")?;
                let rest = bytes.get(offset as usize..).unwrap_or_default();
                Ok(Bytes::copy_from_slice(&rest[..len.min(rest.len())]))
            });
            (loaded, reads)
        }
    }

    /// A group of `pages` leaves and `jobs` bodies of `len` bytes, in run file 7, payload file 8.
    fn disk(pages: u64, jobs: u64, len: usize) -> (Disk, RootRef) {
        let mut disk = Disk::default();
        let mut payload = PayloadBuilder::new(&samples::header(FileKind::Payload, 8));
        // Backwards, so that the order by place is not that by job.
        let bodies: Vec<BodyEntry> = (0..jobs)
            .rev()
            .map(|seq| BodyEntry {
                job: job(seq),
                place: payload.add_body(job(seq), &vec![seq as u8; len]),
            })
            .collect();
        payload.finish();
        disk.keep(8, || payload.take_output());
        let mut run = RunBuilder::new(&samples::header(FileKind::Run, 7));
        for number in 0..pages {
            let name = PageName {
                kind: 4,
                queue: 1,
                partition: 0,
                number,
            };
            run.add_page(GroupId(5), name, &vec![number as u8; 4096])
                .expect("small");
        }
        let root = run.finish_group(&meta(), bodies).expect("small");
        run.finish();
        disk.keep(7, || run.take_output());
        (disk, root)
    }

    #[test]
    fn neighbours_are_read_together() {
        let (disk, root) = disk(3000, 20_000, 100);
        let (loaded, reads) = disk.load(&root);
        let loaded = loaded.expect("whole");
        assert_eq!((loaded.pages.len(), loaded.bodies.len()), (3000, 20_000));
        assert_eq!(loaded.meta, meta());
        for (seq, body) in (0..).zip(&loaded.bodies) {
            assert_eq!(body.job, job(seq));
            assert_eq!(body.bytes, vec![seq as u8; 100]);
        }
        // 11.7 MiB of pages, 2.5 MiB of bodies, two headers and the root.
        assert_eq!(reads, 12 + 3 + 2 + 1);
    }

    #[test]
    fn far_or_large_bodies_are_read_alone() {
        let (disk, root) = disk(0, 5, (1 << 20) + 1);
        let (loaded, reads) = disk.load(&root);
        assert_eq!(loaded.expect("whole").bodies.len(), 5);
        assert_eq!(reads, 5 + 2 + 1);
        let place = |at: &u64| (1, *at, *at + 8);
        let (_, spans) = spans(&[0, 16, 16 + 8 + SPAN_GAP_BYTES_MAX, 1 << 19], place);
        assert_eq!(spans.len(), 2);
        assert_eq!(spans[0].items, 0..3);
    }

    #[test]
    fn an_empty_group_is_two_reads() {
        let (disk, root) = disk(0, 0, 0);
        let (loaded, reads) = disk.load(&root);
        let loaded = loaded.expect("whole");
        assert!(loaded.pages.is_empty() && loaded.bodies.is_empty());
        assert_eq!(reads, 2);
    }

    #[test]
    fn a_kept_page_is_read_from_its_older_file() {
        let (mut disk, first) = disk(2, 3, 9);
        let before = disk.load(&first).0.expect("whole");
        let mut run = RunBuilder::new(&samples::header(FileKind::Run, 9));
        for entry in &before.directory {
            run.keep_page(GroupId(5), *entry);
        }
        let bodies = before.bodies.iter().map(|body| BodyEntry {
            job: body.job,
            place: body.place,
        });
        let second = run.finish_group(&meta(), bodies.collect()).expect("small");
        run.finish();
        disk.keep(9, || run.take_output());
        assert_eq!(second.hash, first.hash, "the same state");
        assert_eq!(disk.load(&second).0, Ok(before));
    }

    #[test]
    fn each_fault_names_file_and_place() {
        let (whole, root) = disk(2, 3, 9);
        let at_page = 8192;
        let at_body = 4096 + 40;
        let fails = |file: u64, change: &dyn Fn(&mut Vec<u8>)| {
            let mut disk = whole.clone();
            change(disk.0.get_mut(&file).expect("there"));
            disk.load(&root).0.expect_err("damaged").to_string()
        };
        let page = fails(7, &|file| file[at_page] ^= 1);
        assert!(
            page.starts_with("file 0000000000000007, page 4/1/0/1 at byte 8192: the page's check"),
            "{page}"
        );
        let body = fails(8, &|file| file[at_body + 24] ^= 1);
        let expected = format!(
            "file 0000000000000008, body of job {} at byte {at_body}: the record's checksum",
            job(1)
        );
        assert!(body.starts_with(&expected), "{body}");
        let header = fails(8, &|file| file[0] ^= 1);
        assert!(
            header.starts_with("file 0000000000000008: not a checkpoint file"),
            "{header}"
        );
        let cut = fails(8, &|file| file.truncate(at_body));
        let expected = format!(
            "file 0000000000000008 ends in the bodies of jobs {} to {} at byte 4096",
            job(0),
            job(2)
        );
        assert!(cut.starts_with(&expected), "{cut}");
        let cut = fails(7, &|file| file.truncate(root.offset as usize + 9));
        assert!(
            cut.starts_with("file 0000000000000007 ends in the root at byte 12288: 9 bytes of"),
            "{cut}"
        );
    }

    #[test]
    fn a_missing_or_swapped_file_is_called_that() {
        let (mut disk, root) = disk(2, 3, 9);
        let payload = disk.0.remove(&8).expect("there");
        let (missing, _) = disk.load(&root);
        assert!(matches!(
            missing,
            Err(LoadError::Read {
                file: 8,
                reading: Reading::Header,
                error: "no such file",
                ..
            })
        ));
        assert!(payload.starts_with(b"rrq-body"));
        let run = disk.0[&7].clone();
        disk.0.insert(8, run);
        let (swapped, _) = disk.load(&root);
        assert!(matches!(
            swapped,
            Err(LoadError::Header {
                file: 8,
                error: HeaderError::OtherKind { .. }
            })
        ));
    }
}
