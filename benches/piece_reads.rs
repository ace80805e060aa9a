//! Pieces of a checkpoint file, mapped or read: what a helper thread pays until it has a verified copy of one
//! that is its own, from the disk and from the kernel's memory. The one bench that has to do with a disk.
//!
//! ```text
//! cargo bench --bench piece_reads -- FILE    writes 1 GiB there, and removes it
//! ```
//!
//! *read* is what a node does (`runtime/snapshot_files`): memory for the piece, pread, checksum. *map* maps the
//! file once, has the piece fetched and mapped (MADV_WILLNEED, MADV_POPULATE_READ), and takes the checksum in
//! place. A shard must not touch that yet, since the kernel may take it away again before: *map, copy* copies it
//! out, *map, lock* locks it, and unlocks it in the end.
#![allow(
    unsafe_code,
    reason = "what is measured is how a file is mapped; the product maps none"
)]

use rrq::base::prng::Prng;
use rrq::runtime::sys::{drop_cached, open_for_pieces};
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A page of jobs with its neighbours, a span of bodies, the longest span.
const PIECES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];
/// Pieces of each size that are taken in a row, at most.
const TAKES: usize = 1_000;

struct Mapping {
    start: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    fn new(file: &File) -> io::Result<Self> {
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is whole. As for the files that are read: nothing beside what is asked for.
        unsafe { libc::madvise(start, bytes, libc::MADV_RANDOM) };
        Ok(Self { start, bytes })
    }

    /// A piece that has been fetched.
    fn piece(&self, offset: usize, bytes: usize) -> io::Result<&[u8]> {
        assert!(offset + bytes <= self.bytes, "a piece of the file");
        // SAFETY: within the mapping, whose file nobody cuts meanwhile.
        let piece = unsafe {
            std::slice::from_raw_parts(self.start.cast::<u8>().add(offset).cast_const(), bytes)
        };
        let start = piece.as_ptr().cast_mut().cast();
        // At once: by itself a fault fetches a page, and waits for it.
        // SAFETY: the place is whole pages of the mapping.
        unsafe { libc::madvise(start, bytes, libc::MADV_WILLNEED) };
        // SAFETY: as above.
        match unsafe { libc::madvise(start, bytes, libc::MADV_POPULATE_READ) } {
            0 => Ok(piece),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody has a piece of it any more.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}

/// How a piece is got.
type Take = fn(&File, &Mapping, usize, usize) -> io::Result<u32>;

const WAYS: [(&str, Take); 4] = [
    ("read", |file, _, offset, bytes| {
        let mut piece = vec![0; bytes];
        file.read_exact_at(&mut piece, offset as u64)?;
        let sum = crc32c::crc32c(&piece);
        black_box(piece);
        Ok(sum)
    }),
    ("map", |_, mapping, offset, bytes| {
        Ok(crc32c::crc32c(mapping.piece(offset, bytes)?))
    }),
    ("map, copy", |_, mapping, offset, bytes| {
        let piece = mapping.piece(offset, bytes)?.to_vec();
        let sum = crc32c::crc32c(&piece);
        black_box(piece);
        Ok(sum)
    }),
    ("map, lock", |_, mapping, offset, bytes| {
        let piece = mapping.piece(offset, bytes)?;
        let start = piece.as_ptr().cast();
        // SAFETY: whole pages of the mapping.
        if unsafe { libc::mlock(start, bytes) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let sum = crc32c::crc32c(piece);
        // SAFETY: as above.
        unsafe { libc::munlock(start, bytes) };
        Ok(sum)
    }),
];

/// A file of so many bytes that nobody else has, on the disk.
fn write(path: &Path, bytes: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut prng = Prng::new(1);
    let mut chunk = Vec::with_capacity(1 << 20);
    for _ in 0..bytes >> 20 {
        chunk.clear();
        chunk.extend((0..1 << 17).flat_map(|_| prng.next_u64().to_le_bytes()));
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

/// An odd number leads through a power of two of places, each once.
const LEAP: usize = 7_919;

/// Times of pieces at places here and there, none of which is taken twice, ascending.
fn times(path: &Path, take: Take, bytes: usize, is_cold: bool) -> io::Result<Vec<Duration>> {
    let file = open_for_pieces(path)?;
    if is_cold {
        drop_cached(&file)?;
    }
    let mapping = Mapping::new(&file)?;
    let places = mapping.bytes / bytes;
    let mut times = Vec::new();
    for place in (0..places.min(TAKES)).map(|nth| nth * LEAP % places) {
        let begun = Instant::now();
        black_box(take(&file, &mapping, place * bytes, bytes)?);
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_bench = args.iter().any(|arg| arg == "--bench");
    let named = args.iter().find(|arg| !arg.starts_with("--"));
    let (Some(path), true) = (named.map(PathBuf::from), is_bench) else {
        let file = tempfile::NamedTempFile::new()?;
        write(file.path(), 2 << 20)?;
        for (_, take) in WAYS {
            times(file.path(), take, PIECES[0], false)?;
        }
        return Ok(());
    };
    write(&path, 1 << 30)?;
    println!("| us a piece | from | p50 | p99 |\n| --- | --- | ---: | ---: |");
    for bytes in PIECES {
        for is_cold in [true, false] {
            for (name, take) in WAYS {
                let times = times(&path, take, bytes, is_cold)?;
                let at =
                    |part: usize| times[(times.len() - 1) * part / 100].as_nanos() as f64 / 1e3;
                let from = if is_cold { "disk" } else { "memory" };
                let kib = bytes >> 10;
                println!(
                    "| {name}, {kib} KiB | {from} | {:.1} | {:.1} |",
                    at(50),
                    at(99)
                );
            }
        }
    }
    std::fs::remove_file(path)
}
