//! Reads what a shard left: its log, by all segments and the newest manifest, and the list of its
//! checkpoint files.
//!
//! Blocking, on a plain thread a shard. Segments are read as they were written, past the kernel's cache, which
//! has nothing of the newest and would cost more than the disk: the processors are what a start is short of.
//! What was only reserved is not read at all. The bytes are read, not mapped: entries stay slices of them while
//! the files are used again. What a dead process wrote last may be readable and not durable yet: it is synced
//! before anybody is told of it ([`Unsynced`]).

use crate::base::code::Code;
use crate::base::report::Report;
use crate::runtime::data_dir::unusable;
use crate::runtime::snapshot_files::{fetch_newest, find_files, manifests, read_manifest};
use crate::runtime::sys;
use crate::shard::effect::CheckpointFile;
use crate::snapshot::layout::Owner;
use crate::snapshot::manifest::Manifest;
use crate::wal::batch::BatchHeader;
use crate::wal::extent::{QUIET_BYTES, read_written};
use crate::wal::recovery::{Recovered, Recovery, RecoveryError};
use crate::wal::segment::SegmentHead;
use crate::wal::writer::LogIdentity;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is read of a segment before anything is known of it: the head of some two hundred groups.
const FRONT_BYTES: usize = 64 << 10;
/// What is read at the most to find the head: a thousand groups.
const HEAD_BYTES: usize = 256 << 10;
/// What is read in one go: the disk gives 2 GB/s only to who asks for much at once.
const WINDOW_BYTES: usize = 1 << 20;

/// What a shard left behind.
#[derive(Debug)]
pub struct Remains {
    /// What its log holds.
    pub log: Recovered,
    /// Its checkpoint files with their lengths.
    pub files: BTreeMap<CheckpointFile, u64>,
    /// How long the reading took.
    pub read_in: Duration,
}

/// Segments that were read and may not be durable yet: a crash of the machine could take back what was found.
#[must_use]
#[derive(Debug)]
pub struct Unsynced(Vec<PathBuf>);

impl Unsynced {
    /// Makes them durable.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn sync(self) -> Result<(), Report> {
        self.0.iter().try_for_each(|path| {
            let synced = File::open(path).and_then(|file| file.sync_data());
            synced.map_err(|error| unusable(path, "sync", &error))
        })
    }
}

/// Reads a shard, and removes what its checkpoints have left half done. What is found may be worked with at once,
/// and relied on once it is synced.
///
/// # Errors
/// If a file cannot be read, or the log is not this shard's.
pub fn recover(
    folder: &Path,
    identity: LogIdentity,
    owner: Owner,
    segments: &[(u64, PathBuf)],
) -> Result<(Remains, Unsynced), Report> {
    let begun = Instant::now();
    let files = find_files(folder).map_err(|error| unusable(folder, "read", &error))?;
    fetch_newest(folder, &files);
    let (log, unsynced) = read(folder, identity, owner, segments, QUIET_BYTES)?;
    tell(identity, &log);
    let remains = Remains {
        log,
        files,
        read_in: begun.elapsed(),
    };
    Ok((remains, unsynced))
}

/// Reads the log of a shard, its last segment to the end of the file, and syncs it; changes nothing.
///
/// # Errors
/// If a file cannot be read or synced, or the log is not this shard's.
pub fn read_log(
    folder: &Path,
    identity: LogIdentity,
    owner: Owner,
    segments: &[(u64, PathBuf)],
) -> Result<Recovered, Report> {
    let (log, unsynced) = read(folder, identity, owner, segments, usize::MAX)?;
    unsynced.sync()?;
    Ok(log)
}

/// The last segment is read until `quiet` bytes have shown no batch.
fn read(
    folder: &Path,
    identity: LogIdentity,
    owner: Owner,
    segments: &[(u64, PathBuf)],
    quiet: usize,
) -> Result<(Recovered, Unsynced), Report> {
    let mut recovery = Recovery::new(identity);
    if let Some(manifest) = newest_manifest(folder, identity, owner)? {
        recovery.proof(manifest.durable);
    }
    let mut buffer = Vec::new();
    let mut unsynced = Vec::new();
    for part in plan(segments)? {
        let (number, path, length) = (part.number, part.path, part.length);
        if matches!(part.reach, Reach::End) {
            unsynced.push(path.to_owned());
        }
        let bytes = part
            .read(quiet, &mut buffer)
            .map_err(|error| unusable(path, "read", &error))?;
        recovery.feed_front(number, bytes, length);
    }
    let log = recovery.finish().map_err(|error| refused(folder, &error))?;
    Ok((log, Unsynced(unsynced)))
}

/// Logs what was cut off a log, and what is damaged in it.
pub fn tell(identity: LogIdentity, recovered: &Recovered) {
    if let Some(torn) = recovered.torn {
        let (segment, offset) = (torn.segment, torn.offset);
        tracing::warn!(shard = %identity.shard, segment, offset, "cut a tail that nobody was told of");
    }
    for damage in &recovered.damage {
        let (segment, offset) = (damage.segment, damage.offset);
        tracing::error!(shard = %identity.shard, segment, offset, "{}", damage.what);
    }
}

/// What is to be read of a segment. Its file is opened when it is read: there may be many.
struct Part<'a> {
    number: u64,
    path: &'a Path,
    /// Of the file.
    length: usize,
    /// The first bytes, the whole head if it is short.
    front: Bytes,
    reach: Reach,
}

/// How far a segment is read.
enum Reach {
    /// The rest was judged before and is as good as zero.
    Judged(usize),
    /// It has the head of another: it was prepared and never written.
    Other,
    /// To its end, wherever that is, which may not be durable.
    End,
}

/// The head of a segment names the end of the one before, so that only the last is searched for its end.
/// A process begins a segment of its own, so after a few quick restarts that is most of the work.
fn plan(segments: &[(u64, PathBuf)]) -> Result<Vec<Part<'_>>, Report> {
    let mut parts: Vec<Part<'_>> = Vec::new();
    let mut before: Option<SegmentHead> = None;
    for (number, path) in segments {
        let (mut part, head) =
            Part::open(*number, path).map_err(|error| unusable(path, "read", &error))?;
        let is_other = head.as_ref().is_some_and(|head| head.number != *number);
        if is_other {
            part.reach = Reach::Other;
        }
        let head = head.filter(|_| !is_other);
        if let (Some(last), Some(before), Some(head)) = (parts.last_mut(), &before, &head)
            && let Some(end) = head.previous.filter(|end| end.segment == last.number)
            && end.end_lsn > before.base_lsn
            && let Ok(used) = usize::try_from(end.end_lsn.0 - before.base_lsn.0)
            && used <= last.length
        {
            last.reach = Reach::Judged(used);
        }
        parts.push(part);
        before = head;
    }
    Ok(parts)
}

impl<'a> Part<'a> {
    /// Reads the front of a segment, and its head, if that is intact and short: else the segment before is
    /// searched.
    fn open(number: u64, path: &'a Path) -> io::Result<(Self, Option<SegmentHead>)> {
        let file = sys::open_for_pieces(path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let mut front = Vec::new();
        read_to(&file, &mut front, FRONT_BYTES.min(length))?;
        let head_bytes = BatchHeader::decode(&front).map_or(0, |header| header.encoded_len());
        if head_bytes > front.len() {
            read_to(&file, &mut front, head_bytes.min(HEAD_BYTES).min(length))?;
        }
        let front = Bytes::from(front);
        let head = SegmentHead::read(&front);
        let part = Self {
            number,
            path,
            length,
            front,
            reach: Reach::End,
        };
        Ok((part, head))
    }

    /// What is written of it, by way of a buffer.
    fn read(self, quiet: usize, buffer: &mut Vec<u8>) -> io::Result<Bytes> {
        let (length, front) = (self.length, self.front);
        let used = match self.reach {
            Reach::Judged(used) if used <= front.len() => return Ok(front.slice(..used)),
            Reach::Other => return Ok(front),
            Reach::Judged(used) => Some(used),
            Reach::End => None,
        };
        let end = used.unwrap_or(length);
        let mut windows = Windows::open(self.path, end, std::mem::take(buffer))?;
        let bytes = if let Some(used) = used {
            let mut bytes = vec![0; used];
            let (before, rest) = bytes.split_at_mut(front.len());
            before.copy_from_slice(&front);
            windows.read(before.len(), rest)?;
            bytes.into()
        } else {
            let read = |from: usize, piece: &mut [u8]| windows.read(from, piece);
            read_written(self.number, front, (length, quiet), read)?
        };
        *buffer = windows.file.into_buffer();
        Ok(bytes)
    }
}

/// Reads a file in windows, some of it a few times, and nothing that was only reserved.
struct Windows {
    file: sys::Uncached,
    /// Nothing is read behind it.
    length: usize,
    /// Where the window is that was read last.
    at: usize,
}

impl Windows {
    fn open(path: &Path, length: usize, buffer: Vec<u8>) -> io::Result<Self> {
        let file = sys::Uncached::with_buffer(path, buffer)?;
        Ok(Self {
            file,
            length,
            at: 0,
        })
    }

    /// The bytes from there on; an error if some lie behind the end.
    fn read(&mut self, mut from: usize, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let window = self.file.last_read();
            let known = from.checked_sub(self.at).and_then(|at| window.get(at..));
            let done = match known {
                Some(known) if !known.is_empty() => {
                    let done = known.len().min(bytes.len());
                    bytes[..done].copy_from_slice(&known[..done]);
                    done
                }
                _ => self.skip_or_fetch(from, bytes)?,
            };
            from += done;
            bytes = &mut bytes[done..];
        }
        Ok(())
    }

    /// Fills `bytes` with zeros as far as nothing was written there; where something was, reads a window.
    fn skip_or_fetch(&mut self, from: usize, bytes: &mut [u8]) -> io::Result<usize> {
        let written = usize::try_from(self.file.written_from(from as u64)).unwrap_or(usize::MAX);
        let end = written.min(self.length);
        let zeros = end.saturating_sub(from).min(bytes.len());
        bytes[..zeros].fill(0);
        if zeros == 0 {
            let length = WINDOW_BYTES.min(self.length.saturating_sub(from));
            self.at = from;
            if self.file.read_at(from as u64, length)?.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(zeros)
    }
}

/// Reads on until there are so many bytes of the file, which has them.
fn read_to(file: &File, bytes: &mut Vec<u8>, to: usize) -> io::Result<()> {
    let from = bytes.len();
    if to > from {
        bytes.resize(to, 0);
        file.read_exact_at(&mut bytes[from..], from as u64)?;
    }
    Ok(())
}

/// The newest manifest of this log that is intact. A damaged one is no loss: the log repeats it.
///
/// # Errors
/// If the folder cannot be read.
pub fn newest_manifest(
    folder: &Path,
    identity: LogIdentity,
    owner: Owner,
) -> Result<Option<Manifest>, Report> {
    let numbers = manifests(folder).map_err(|error| unusable(folder, "read", &error))?;
    for number in numbers.into_iter().rev() {
        let bytes =
            read_manifest(folder, number).map_err(|error| unusable(folder, "read", &error))?;
        let decoded = Manifest::decode(&bytes).and_then(|manifest| {
            manifest.check(&owner, identity.shard)?;
            Ok(manifest)
        });
        match decoded {
            Ok(manifest) if manifest.wal_set == identity.wal_set => return Ok(Some(manifest)),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(shard = %identity.shard, number, %error, "a manifest is no use");
            }
        }
    }
    Ok(None)
}

fn refused(folder: &Path, error: &RecoveryError) -> Report {
    let shown = folder.display();
    let untouched = "nothing was changed";
    let report = match error {
        RecoveryError::Foreign { .. }
        | RecoveryError::WrongShard { .. }
        | RecoveryError::WrongSet { .. } => {
            let what = format!("the log in {shown} is not that of this shard");
            Report::error(Code::WrongIdentity, what)
                .fix("put the files back where they were, or restore the directory from a backup")
        }
        RecoveryError::TooNew { .. }
        | RecoveryError::MachineVersion { .. }
        | RecoveryError::Batch { .. }
        | RecoveryError::Record { .. } => {
            let what = format!("the log in {shown} was written by a newer version of rrq");
            Report::error(Code::FormatTooNew, what).fix("run the newer version")
        }
    };
    report.location(error.to_string()).why(untouched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_across_what_was_only_reserved() {
        const LENGTH: usize = 4 << 20;
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        sys::reserve(file.as_file(), LENGTH as u64).expect("reserved");
        // Within a window, across two of them, and at the end.
        for (at, bytes) in [(64 << 10, 4096), (1 << 20, 96 << 10), (LENGTH - 4096, 4096)] {
            let written: Vec<u8> = (at..at + bytes).map(|byte| (byte % 251) as u8).collect();
            let done = file.as_file().write_all_at(&written, at as u64);
            done.expect("written");
        }
        file.as_file().sync_all().expect("synced");
        let whole = std::fs::read(file.path()).expect("read");
        sys::drop_cached(file.as_file()).expect("asked");
        let mut windows = Windows::open(file.path(), LENGTH, Vec::new()).expect("opened");
        let mut read = vec![7; LENGTH];
        // Some of it a second time, as where something is found behind a gap.
        for (from, to) in [
            (0, 100_000),
            (100_000, 3 << 20),
            (50_000, 60_000),
            (3 << 20, LENGTH),
        ] {
            windows
                .read(from, &mut read[from..to])
                .expect("it is there");
        }
        assert!(read == whole, "what was read is not what is there");
        let behind = windows.read(LENGTH - 1, &mut [0; 2]);
        let error = behind.expect_err("nothing is behind the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
