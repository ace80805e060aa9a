//! WAL sets: which folders of a data directory belong to which.
//!
//! A set is the logs of all shards with their checkpoints. The directory is made with set 1; each change
//! of the number of shards makes another, in a folder of its own, and removes the one before.
//!
//! ```text
//! rrq-data/
//!   shard-0000/wal-0001/            set 1
//!   set-4711/shard-0000/wal-4711/   a later one
//! ```
//!
//! The superblock names the set in force. What belongs to another was never in force, or is no more; unless
//! the superblock is an older one, put beside newer logs: [`last_start`] tells.
//!
//! Numbers rise, by a step that nobody can foretell: of two changes that start from one image of a
//! directory, each makes another set, so that what others have heard of the one is not held against
//! the other ([`Durable`](crate::wire::peer::Durable)). Once in 65,536 times they draw the same number.

use crate::runtime::data_dir::{names, sync_folder};
use crate::runtime::snapshot_files;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The set that a directory is made with.
pub const FIRST: u32 = 1;

const SHARD: &str = "shard-";
const SET: &str = "set-";

/// The set after `set`; `random` is drawn for it.
///
/// # Panics
/// If there is none, after 65,536 changes at the least.
#[must_use]
pub fn after(set: u32, random: u16) -> u32 {
    let next = set.checked_add(1 + u32::from(random));
    next.expect("a directory changes its shards fewer than 65,536 times")
}

/// The folder in which the shards of a set have theirs.
#[must_use]
pub fn folder(dir: &Path, set: u32) -> PathBuf {
    match set {
        FIRST => dir.to_owned(),
        _ => dir.join(format!("{SET}{set:04}")),
    }
}

/// The folder of a shard: its checkpoints, and its log.
#[must_use]
pub fn shard(dir: &Path, set: u32, shard: u16) -> PathBuf {
    folder(dir, set).join(format!("{SHARD}{shard:04}"))
}

/// The folder of a shard's log.
#[must_use]
pub fn wal(dir: &Path, set: u32, shard: u16) -> PathBuf {
    self::shard(dir, set, shard).join(format!("wal-{set:04}"))
}

/// Makes the folders of a set, with durable names.
///
/// # Errors
/// What the file system says.
pub fn make(dir: &Path, set: u32, shards: u16) -> io::Result<()> {
    for number in 0..shards {
        fs::create_dir_all(wal(dir, set, number))?;
        sync_folder(&shard(dir, set, number))?;
    }
    sync_folder(&folder(dir, set))?;
    sync_folder(dir)
}

/// Whether a name in a data directory may be that of a set or of a shard: enough to see that it is one, not to
/// remove what has the name.
#[must_use]
pub fn is_of_a_set(name: &str) -> bool {
    name.starts_with(SHARD) || name.starts_with(SET)
}

/// The folders of all sets but this one, each with the number of its set.
///
/// # Errors
/// If the directory cannot be read.
pub fn others(dir: &Path, set: u32) -> io::Result<Vec<(u32, PathBuf)>> {
    let names = names(dir)?;
    let folders = names.iter().filter_map(|name| Some((set_of(name)?, name)));
    let mut others: Vec<(u32, PathBuf)> = folders
        .filter(|(of, _)| *of != set)
        .map(|(of, name)| (of, dir.join(name)))
        .collect();
    others.sort_unstable();
    Ok(others)
}

/// The last start that has put its manifest into a set's own folder; 0 if none has, since what makes a set
/// was cut off before.
///
/// # Errors
/// If the folder cannot be read.
pub fn last_start(folder: &Path) -> io::Result<u64> {
    let mut last = 0;
    for name in names(folder)?.iter().filter(|name| is_of_a_set(name)) {
        last = last.max(snapshot_files::last_start(&folder.join(name))?);
    }
    Ok(last)
}

/// The set whose folder, or the folder of one of whose shards, is named exactly so. What only begins like
/// one, `shard-0001.bak`, is somebody else's, and is never removed.
fn set_of(name: &str) -> Option<u32> {
    if let Some(digits) = name.strip_prefix(SHARD) {
        let shard: u16 = digits.parse().ok()?;
        return (format!("{SHARD}{shard:04}") == name).then_some(FIRST);
    }
    let set: u32 = name.strip_prefix(SET)?.parse().ok()?;
    (set != FIRST && format!("{SET}{set:04}") == name).then_some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_has_its_own_folders_and_the_first_has_those_of_old() {
        let path = tempfile::tempdir().expect("a folder");
        let dir = path.path();
        assert_eq!(wal(dir, 1, 2), dir.join("shard-0002/wal-0001"));
        assert_eq!(wal(dir, 70, 2), dir.join("set-0070/shard-0002/wal-0070"));
        for (set, shards) in [(1, 2), (70, 1), (123_456, 1)] {
            make(dir, set, shards).expect("folders are made");
        }
        fs::write(dir.join("lock"), "").expect("a file");
        let others = |set| others(dir, set).expect("it can be read");
        let named = |names: &[(u32, &str)]| {
            let named = names.iter().map(|(set, name)| (*set, dir.join(name)));
            named.collect::<Vec<_>>()
        };
        let later = [(70, "set-0070"), (123_456, "set-123456")];
        assert_eq!(others(1), named(&later));
        let all = [(1, "shard-0000"), (1, "shard-0001"), later[1]];
        assert_eq!(others(70), named(&all));
    }

    #[test]
    fn what_only_begins_like_a_folder_of_a_set_is_none() {
        for (name, set) in [
            ("shard-0001", Some(1)),
            ("shard-0001.bak", None),
            ("shard-1", None),
            ("shard-00001", None),
            ("shard-", None),
            ("set-0070", Some(70)),
            ("set-4294967295", Some(u32::MAX)),
            ("set-4294967296", None),
            ("set-0070.old", None),
            ("set-70", None),
            ("set-+070", None),
            ("set-aside", None),
            // The first has no folder of its own.
            ("set-0001", None),
        ] {
            assert_eq!(set_of(name), set, "{name}");
        }
    }

    #[test]
    fn a_set_is_never_numbered_as_one_before_it() {
        assert_eq!((after(1, 0), after(1, u16::MAX)), (2, 65_537));
    }
}
