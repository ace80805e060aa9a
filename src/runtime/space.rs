//! The room left on the disk, and the ballast that is kept for when there is none.
//!
//! Enqueues stop (`full`) while less than `LOW_BYTES` is free, so that what is under way, leases,
//! acks and checkpoints still find room. If the log needs a segment and there is no room even so,
//! the ballast is given up for it: acks go on, and with them checkpoints, which free the log. With
//! the ballast gone, no spare segment and no room for one, only acks go on (`exhausted`). The
//! ballast is filled again before enqueues resume.

use crate::runtime::sys;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// The name of the ballast's file.
pub const BALLAST: &str = "ballast";
/// Two checkpoint rounds and the log between them.
const BALLAST_BYTES: u64 = 64 << 20;
/// With less than this left, enqueues wait.
const LOW_BYTES: u64 = 64 << 20;
/// With at least this much more, they go on.
const RESUME_BYTES: u64 = 16 << 20;
/// Free before the ballast is there, so that enqueues are taken from the start on.
pub const COMFORT_BYTES: u64 = BALLAST_BYTES + LOW_BYTES + RESUME_BYTES;
/// Room for a segment and its neighbours' metadata.
pub const SEGMENT_ROOM_BYTES: u64 = 20 << 20;
/// How often the file system is asked.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the shards are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Enqueues must wait.
    pub full: bool,
    /// All but acks must wait.
    pub exhausted: bool,
}

/// Watches one data directory.
#[derive(Debug)]
pub struct Space {
    directory: PathBuf,
    /// Spare segments of each shard.
    spares: Vec<Arc<AtomicUsize>>,
    level: Level,
    /// Bytes free at the last look, for the metrics.
    pub free_bytes: u64,
}

impl Space {
    /// Nothing is known before the first look.
    #[must_use]
    pub fn new(directory: &Path, spares: Vec<Arc<AtomicUsize>>) -> Self {
        Self {
            directory: directory.to_owned(),
            spares,
            level: Level::default(),
            free_bytes: 0,
        }
    }

    /// Looks, and refills the ballast if there is room for it; the level if it changed.
    pub fn look(&mut self) -> Option<Level> {
        // A file system that cannot be asked is not known to be full; writes tell.
        self.free_bytes = sys::file_system(&self.directory).ok()?.free_bytes;
        let path = self.directory.join(BALLAST);
        let mut has_ballast = fs::metadata(&path).is_ok_and(|file| file.len() >= BALLAST_BYTES);
        if !has_ballast && self.free_bytes >= COMFORT_BYTES {
            match fill(&path) {
                Ok(()) => {
                    has_ballast = true;
                    self.free_bytes -= BALLAST_BYTES;
                }
                Err(error) => {
                    tracing::warn!(%error, "the ballast cannot be filled");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        let next_segment = has_ballast || self.spares.iter().all(|spares| spares.load(Relaxed) > 0);
        let level = judge(self.level, has_ballast, next_segment, self.free_bytes);
        let changed = level != self.level;
        self.level = level;
        changed.then_some(level)
    }
}

fn judge(before: Level, has_ballast: bool, next_segment: bool, free_bytes: u64) -> Level {
    let wanted = if before.full {
        LOW_BYTES + RESUME_BYTES
    } else {
        LOW_BYTES
    };
    Level {
        full: free_bytes < wanted || !has_ballast,
        exhausted: !next_segment && free_bytes < SEGMENT_ROOM_BYTES,
    }
}

fn fill(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    sys::reserve(&file, BALLAST_BYTES)?;
    file.sync_all()
}

/// Gives the ballast up; whether there was one.
#[must_use]
pub fn give_up_ballast(directory: &Path) -> bool {
    let given = fs::remove_file(directory.join(BALLAST)).is_ok();
    if given {
        tracing::warn!("the disk is full: the ballast is given up so that acks can go on");
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enqueues_stop_early_and_resume_late() {
        let (calm, full) = (
            Level::default(),
            Level {
                full: true,
                exhausted: false,
            },
        );
        assert_eq!(judge(calm, true, true, LOW_BYTES), calm);
        assert_eq!(judge(calm, true, true, LOW_BYTES - 1), full);
        assert_eq!(judge(full, true, true, LOW_BYTES), full);
        assert_eq!(judge(full, true, true, LOW_BYTES + RESUME_BYTES), calm);
    }

    #[test]
    fn without_ballast_nothing_resumes() {
        let full = Level {
            full: true,
            exhausted: false,
        };
        assert_eq!(judge(full, false, true, u64::MAX), full);
        let out = Level {
            full: true,
            exhausted: true,
        };
        assert_eq!(judge(full, false, true, SEGMENT_ROOM_BYTES - 1), full);
        assert_eq!(judge(full, false, false, SEGMENT_ROOM_BYTES - 1), out);
    }
}
