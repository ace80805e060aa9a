//! Reads what a shard left: its log, by all segments and the newest manifest, and the list of its
//! checkpoint files.
//!
//! Blocking, on plain threads, segments side by side: the disk gives 2 GB/s only to several readers
//! or a long sequential one. The bytes are read, not mapped: entries stay slices of them while the
//! files are used again. The last segment is synced before it is believed: what a dead process wrote
//! may be readable and not durable yet.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::runtime::data_dir::unusable;
use crate::runtime::snapshot_files::{find_files, manifests, read_manifest};
use crate::shard::effect::CheckpointFile;
use crate::snapshot::layout::Owner;
use crate::snapshot::manifest::Manifest;
use crate::wal::recovery::{Recovered, Recovery, RecoveryError};
use crate::wal::segment::SegmentHead;
use crate::wal::writer::LogIdentity;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;

/// What is read to find the head of a segment: a thousand groups.
const HEAD_BYTES: usize = 256 << 10;
/// Segments read at once, a shard.
const READERS: usize = 4;

/// What a shard left behind.
#[derive(Debug)]
pub struct Remains {
    /// What its log holds.
    pub log: Recovered,
    /// Its checkpoint files with their lengths.
    pub files: BTreeMap<CheckpointFile, u64>,
}

/// Reads a shard, and removes what its checkpoints have left half done.
///
/// # Errors
/// If a file cannot be read, or the log is not this shard's.
pub fn recover(
    folder: &Path,
    identity: LogIdentity,
    owner: Owner,
    segments: &[(u64, PathBuf)],
) -> Result<Remains, Report> {
    let log = read_log(folder, identity, owner, segments)?;
    let files = find_files(folder).map_err(|error| unusable(folder, "read", &error))?;
    Ok(Remains { log, files })
}

/// Reads the log of a shard; changes nothing.
///
/// # Errors
/// If a file cannot be read, or the log is not this shard's.
pub fn read_log(
    folder: &Path,
    identity: LogIdentity,
    owner: Owner,
    segments: &[(u64, PathBuf)],
) -> Result<Recovered, Report> {
    let mut recovery = Recovery::new(identity);
    if let Some(manifest) = newest_manifest(folder, identity, owner)? {
        recovery.proof(manifest.durable);
    }
    let plan = plan(segments)?;
    for some in plan.chunks(READERS) {
        let read = thread::scope(|scope| {
            let readers: Vec<_> = some
                .iter()
                .map(|part| scope.spawn(move || part.read()))
                .collect();
            let joined = readers
                .into_iter()
                .map(|reader| reader.join().expect("panics end it all"));
            joined.collect::<Vec<_>>()
        });
        for (part, bytes) in some.iter().zip(read) {
            recovery.feed(
                part.number,
                bytes.map_err(|error| unusable(part.path, "read", &error))?,
            );
        }
    }
    let recovered = recovery.finish().map_err(|error| refused(folder, &error))?;
    if let Some(torn) = recovered.torn {
        let (segment, offset) = (torn.segment, torn.offset);
        tracing::warn!(shard = %identity.shard, segment, offset, "cut a tail that nobody was told of");
    }
    for damage in &recovered.damage {
        let (segment, offset) = (damage.segment, damage.offset);
        tracing::error!(shard = %identity.shard, segment, offset, "{}", damage.what);
    }
    Ok(recovered)
}

/// What is to be read of a segment.
struct Part<'a> {
    number: u64,
    path: &'a Path,
    /// Only so many bytes; the rest was judged before and is as good as zero. `None`: all, and what
    /// is read is synced first.
    used: Option<usize>,
}

/// The head of a segment names the end of the one before, so that only the last is read whole. A
/// process begins a segment of its own, so after a few quick restarts that is most of the work.
fn plan(segments: &[(u64, PathBuf)]) -> Result<Vec<Part<'_>>, Report> {
    let mut parts: Vec<Part<'_>> = Vec::new();
    let mut before: Option<SegmentHead> = None;
    for (number, path) in segments {
        let head = read_head(path).map_err(|error| unusable(path, "read", &error))?;
        let head = head.filter(|head| head.number == *number);
        if let (Some(part), Some(before), Some(head)) = (parts.last_mut(), &before, &head)
            && let Some(end) = head.previous.filter(|end| end.segment == part.number)
            && end.end_lsn > before.base_lsn
        {
            part.used = usize::try_from(end.end_lsn.0 - before.base_lsn.0).ok();
        }
        parts.push(Part {
            number: *number,
            path,
            used: None,
        });
        before = head;
    }
    Ok(parts)
}

/// The head, if it is intact and short: else the segment before is read whole.
fn read_head(path: &Path) -> io::Result<Option<SegmentHead>> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES);
    File::open(path)?
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut bytes)?;
    Ok(SegmentHead::read(&bytes.into()))
}

impl Part<'_> {
    fn read(&self) -> io::Result<Bytes> {
        let mut file = File::open(self.path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let Some(used) = self.used.filter(|used| *used <= length) else {
            let mut bytes = Vec::with_capacity(length + 1);
            file.read_to_end(&mut bytes)?;
            file.sync_data()?;
            return Ok(bytes.into());
        };
        // Zeros that nobody touches take no memory.
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes[..used])?;
        Ok(bytes.into())
    }
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
