//! Another number of shards: the groups go to other logs, before any of them serves.
//!
//! Each shard has a log of its own, and which of them a group lives in follows from their number. So a
//! start with another number writes a second WAL set beside the one in force ([`sets`]), and then puts that
//! in force:
//!
//! ```text
//!  set 1, in force                              set 4711
//!  shard 0: groups 0 2 4 …  ── read whole ──┬─> shard 0: groups 0 3 6 …   their hard states, bases,
//!  shard 1: groups 1 3 5 …  ── one by one ──┼─> shard 1: groups 1 4 7 …   entries and status
//!                                           └─> shard 2: groups 2 5 8 …   + links to their run and
//!                                                                           payload files, a manifest
//! ```
//!
//! 1. Read all logs as a start does, one at a time. A log that is damaged is refused: what is lost in it, or only in doubt,
//!    is judged in that log, by a start with the old number.
//! 2. Write the new set; sync all of it; read it back, from the disk and not from memory, and hold it against
//!    what was read.
//! 3. Write both superblocks. With the first of them the new set is in force.
//! 4. Remove the set before.
//!
//! A crash before 3 leaves the old set in force, and behind it the new one: both are whole, and what is left
//! of the other goes at the next start. A full disk ends it before 3, and takes back what was written.
//!
//! # What others have heard
//!
//! Other nodes hold against a log what they have heard of its durable end. Positions of one set say nothing
//! in another; so each new log keeps where all the old ones ended ([`Echo`]), and what was heard of those is
//! held against that.
//!
//! Left out: moving jobs between groups; their number never changes. And sharing a file between folders for
//! good: each shard moves what it needs out of one of which the others have the larger part.

use crate::base::code::Code;
use crate::base::ids::ShardId;
use crate::base::limits::{BATCH_BYTES_MAX, SEGMENT_BYTES};
use crate::base::report::Report;
use crate::base::units::Lsn;
use crate::runtime::data_dir::{DataDir, disk_full, random, unusable, write_durably};
use crate::runtime::log_files::LogFiles;
use crate::runtime::snapshot_files::{self, find_files, manifest_name};
use crate::runtime::{recover, segments, sets};
use crate::shard::effect::CheckpointFile;
use crate::shard::redistribution::{NewLog, damage_of, known_ends, moves};
use crate::snapshot::superblock::Superblock;
use crate::wal::recovery::Recovered;
use crate::wal::segment::Echo;
use crate::wal::writer::LogIdentity;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Told of each change of the directory before it is made, in a few words. An error ends it there, as one of
/// the file system does.
pub type Step<'a> = dyn FnMut(&str) -> io::Result<()> + 'a;

/// Gives the groups to as many shards as the start is for.
///
/// # Errors
/// By name, if a log is damaged or does not belong here, a file cannot be read or written, or two checkpoint
/// files cannot lie in one folder. Until a superblock was to be written, the directory is as it was.
pub fn redistribute(dir: &mut DataDir, step: &mut Step<'_>) -> Result<(), Report> {
    let begun = Instant::now();
    let change = Change::new(dir)?;
    if let Err(report) = change.make(step) {
        // What is left of it is removed by the next start.
        let _ = fs::remove_dir_all(sets::folder(&change.path, change.set));
        return Err(report);
    }
    let (before, shards, set) = (change.superblock.shards, change.shards, change.set);
    dir.switch(set, shards, step)?;
    tracing::info!(before, shards, set, took = ?begun.elapsed(), "the groups have other shards");
    dir.drop_other_sets(step)
}

/// A change that is to be made.
struct Change {
    path: PathBuf,
    /// As it is before.
    superblock: Superblock,
    shards: u16,
    set: u32,
    /// For the epochs of the segments.
    seed: u64,
}

/// How long the logs are.
struct Ends {
    /// Of the set in force, by shard.
    logs: Vec<Lsn>,
    /// Of the sets before it.
    earlier: Vec<Echo>,
}

/// A shard to be.
struct Target {
    identity: LogIdentity,
    /// Its checkpoints.
    folder: PathBuf,
    wal: PathBuf,
    log: NewLog,
    files: LogFiles,
    /// Files that it has, by the shard that it has them from.
    linked: BTreeSet<(u16, CheckpointFile)>,
}

impl Change {
    fn new(dir: &DataDir) -> Result<Self, Report> {
        let path = dir.path().to_owned();
        let superblock = dir.superblock.clone();
        let bits = random().map_err(|error| unusable(&path, "draw a number for", &error))?;
        let [a, b, seed @ ..] = bits;
        let [seed @ .., _, _, _, _, _, _] = seed;
        Ok(Self {
            path,
            shards: dir.shards_wanted(),
            set: sets::after(superblock.wal_set, u16::from_le_bytes([a, b])),
            superblock,
            seed: u64::from_le_bytes(seed),
        })
    }

    fn identity(&self, wal_set: u32, shard: u16) -> LogIdentity {
        LogIdentity {
            cluster: self.superblock.cluster,
            disk: self.superblock.disk,
            shard: ShardId(shard),
            wal_set,
        }
    }

    /// The folder of a shard as it is.
    fn folder(&self, shard: u16) -> PathBuf {
        sets::shard(&self.path, self.superblock.wal_set, shard)
    }

    /// Reads the log of a shard as it is, all of it, and refuses one that is damaged.
    fn read(&self, shard: u16) -> Result<Recovered, Report> {
        let set = self.superblock.wal_set;
        let wal = sets::wal(&self.path, set, shard);
        let log = self.read_log(&self.folder(shard), &wal, self.identity(set, shard))?;
        // A shard that has served has written something.
        let is_lost = log.segments.is_empty() && !self.superblock.forming;
        let lost = || is_lost.then(|| "it holds nothing".to_owned());
        match damage_of(&log).or_else(lost) {
            None => Ok(log),
            Some(damage) => Err(self.refused(
                format!("the log of shard {shard} is damaged: {damage}"),
                "what of it is lost is judged by a start with the old number; nothing was changed",
                "",
            )),
        }
    }

    fn read_log(
        &self,
        folder: &Path,
        wal: &Path,
        identity: LogIdentity,
    ) -> Result<Recovered, Report> {
        let segments = segments::list(wal)?;
        recover::read_log(folder, identity, self.superblock.owner(), &segments)
    }

    /// Where each log ends, and what they know of earlier ones, if all are whole; `None` if none was ever
    /// begun.
    fn look(&self) -> Result<Option<Ends>, Report> {
        let (mut logs, mut earlier) = (Vec::new(), Vec::new());
        let mut is_begun = false;
        for shard in 0..self.superblock.shards {
            let log = self.read(shard)?;
            is_begun |= !log.segments.is_empty();
            logs.push(log.start.lsn);
            // All logs of a set were made knowing the same.
            earlier = log.start.echoes;
        }
        Ok(is_begun.then_some(Ends { logs, earlier }))
    }

    fn refused(&self, location: String, why: &str, alternative: &str) -> Report {
        let (shards, old) = (self.shards, self.superblock.shards);
        let path = self.path.display();
        let what = format!("data directory {path} cannot go from {old} to {shards} shards");
        Report::error(Code::ShardCountChanged, what)
            .location(location)
            .why(why)
            .fix(format!("--shards {old}{alternative}"))
    }

    fn failed(&self, error: &io::Error) -> Report {
        match error.kind() {
            io::ErrorKind::StorageFull => disk_full(&self.path)
                .why("the logs of another number of shards are written beside those of before, which stay")
                .fix(format!("make room, or --shards {}", self.superblock.shards)),
            // The directory serves as it is: what it does not allow may be links, or more of anything.
            _ => unusable(&self.path, "write another set of logs into", error).fix(format!(
                "--shards {}, or a --data-dir within which this user may make files and hard links",
                self.superblock.shards
            )),
        }
    }

    /// Makes the new set, durable and proved.
    fn make(&self, step: &mut Step<'_>) -> Result<(), Report> {
        let ends = self.look()?;
        step("make folders")
            .and_then(|()| sets::make(&self.path, self.set, self.shards))
            .map_err(|error| self.failed(&error))?;
        let Some(Ends { logs, earlier }) = ends else {
            return Ok(());
        };
        let known = known_ends(self.identity(self.superblock.wal_set, 0), &logs, &earlier);
        let mut targets: Vec<Target> = (0..self.shards)
            .map(|shard| self.target(shard, known.clone()))
            .collect();
        for (shard, end) in (0..).zip(&logs) {
            let log = self.read(shard)?;
            recover::tell(self.identity(self.superblock.wal_set, shard), &log);
            if log.start.lsn != *end {
                return Err(self.refused(
                    format!(
                        "the log of shard {shard} ends at {}, and has just ended at {end}",
                        log.start.lsn
                    ),
                    "the disk fails, or somebody else writes into the directory",
                    "",
                ));
            }
            self.hand_out(shard, &log, &mut targets, step)?;
        }
        for target in targets {
            self.finish(target, step)?;
        }
        Ok(())
    }

    fn target(&self, shard: u16, known: Vec<Echo>) -> Target {
        let identity = self.identity(self.set, shard);
        let seed = self.seed ^ u64::from(shard) << 48;
        let wal = sets::wal(&self.path, self.set, shard);
        Target {
            identity,
            folder: sets::shard(&self.path, self.set, shard),
            log: NewLog::new(identity, known, seed, SEGMENT_BYTES),
            files: LogFiles::new(&wal, "seg", None),
            wal,
            linked: BTreeSet::new(),
        }
    }

    /// Gives the groups of a shard, whose log is whole, to those that are to have them.
    fn hand_out(
        &self,
        shard: u16,
        log: &Recovered,
        targets: &mut [Target],
        step: &mut Step<'_>,
    ) -> Result<(), Report> {
        let Superblock { shards, groups, .. } = self.superblock;
        let folder = self.folder(shard);
        let mut read = snapshot_files::reader(&folder);
        let change = (shards, self.shards);
        for moved in moves(log, ShardId(shard), change, groups, &mut read) {
            let target = &mut targets[usize::from(moved.to.0)];
            let files = match moved.files {
                Some(files) => files,
                None => find_files(&folder)
                    .map_err(|error| unusable(&folder, "read", &error))?
                    .into_keys()
                    .collect(),
            };
            for file in files {
                if !target.linked.insert((shard, file)) {
                    continue;
                }
                let linked = step("link a file")
                    .and_then(|()| snapshot_files::link(file, &folder, &target.folder));
                if !linked.map_err(|error| self.failed(&error))? {
                    let name = snapshot_files::file_name(file);
                    return Err(self.refused(
                        format!(
                            "{name} of shard {shard} and that of another would lie in one folder"
                        ),
                        "an early version has numbered the files of each shard alike",
                        ", or a multiple of it",
                    ));
                }
            }
            target.log.take(moved.group, moved.log);
            if target.log.writer.pending_bytes() >= BATCH_BYTES_MAX {
                step("write a log")
                    .and_then(|()| target.files.drain(&mut target.log.writer))
                    .map_err(|error| self.failed(&error))?;
            }
        }
        Ok(())
    }

    /// Makes a shard durable, and reads back what it is.
    fn finish(&self, target: Target, step: &mut Step<'_>) -> Result<(), Report> {
        let Target {
            identity,
            folder,
            wal,
            mut log,
            files,
            ..
        } = target;
        let write = || {
            step("write the rest of a log")?;
            files.finish(&mut log.writer)?;
            step("write a manifest")?;
            let manifest = log.manifest(self.superblock.start);
            let name = manifest_name(manifest.sequence);
            // With its name those of the links are durable.
            write_durably(&folder, &name, &manifest.encode(), false)
        };
        write().map_err(|error| self.failed(&error))?;
        if log.reads_back(&self.read_log(&folder, &wal, identity)?) {
            return Ok(());
        }
        let shown = wal.display();
        let what = format!("the new log in {shown} does not read back as it was written");
        Err(Report::error(Code::LogWriteFailed, what)
            .why("the logs of the old number of shards stay in force")
            .fix("look for errors of the disk (dmesg), then start again: nothing acknowledged is lost"))
    }
}
