//! Segments that a repair adds to the log of a stopped node: all of them, or none.
//!
//! ```text
//! 1. write   <number>.repair     whole segments, synced, with their names
//! 2. write   repairing           from here on the repair is made, though not in force
//! 3. rename  <number>.repair  -> <number>.seg, synced
//! 4. remove  repairing
//! ```
//!
//! A crash before 2 leaves files that nobody reads; behind it a start is refused until the repair
//! is taken up again. The new life of a group voids its old records, so that half of it would
//! lose the other half.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::runtime::data_dir::{disk_full, names, sync_folder, unusable, write_durably};
use crate::runtime::log_files::LogFiles;
use crate::wal::writer::LogWriter;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Its presence says that the segments are complete.
const MARK: &str = "repairing";
const ENDING: &str = "repair";

/// The segments of a repair.
pub struct Segments<'a> {
    folder: &'a Path,
    data_dir: &'a Path,
}

/// Refuses a log in which a repair was cut short.
///
/// # Errors
/// If it was.
pub fn refuse_half_repaired(folder: &Path) -> Result<(), Report> {
    if !folder.join(MARK).exists() {
        return Ok(());
    }
    let what = format!("a repair of {} was cut short", folder.display());
    Err(Report::error(Code::LogDamaged, what)
        .why("half of it would lose what the other half keeps")
        .fix("rrqctl repair --data-dir DIR --accept-loss, which finishes it"))
}

impl<'a> Segments<'a> {
    /// For the log in `folder`.
    #[must_use]
    pub fn new(folder: &'a Path, data_dir: &'a Path) -> Self {
        Self { folder, data_dir }
    }

    /// Finishes a repair that was cut short, or removes what is left of one that was not made.
    ///
    /// # Errors
    /// What the file system says.
    pub fn take_up(folder: &Path) -> Result<(), Report> {
        let taken_up = || {
            if folder.join(MARK).exists() {
                return enforce(folder);
            }
            for (_, path) in repaired(folder)? {
                fs::remove_file(path)?;
            }
            Ok(())
        };
        taken_up().map_err(|error: io::Error| unusable(folder, "take up the repair of", &error))
    }

    /// Writes all that `writer` holds, and puts it in force.
    ///
    /// # Errors
    /// What the file system says; then nothing is changed, or the repair can be taken up.
    pub fn write(&self, writer: &mut LogWriter) -> Result<(), Report> {
        let files = LogFiles::new(self.folder, ENDING, Some(self.data_dir));
        let write = files.finish(writer).and_then(|()| {
            write_durably(self.folder, MARK, b"", false)?;
            enforce(self.folder)
        });
        write.map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull => disk_full(self.data_dir),
            _ => unusable(self.folder, "write segments into", &error),
        })
    }
}

fn enforce(folder: &Path) -> io::Result<()> {
    for (number, path) in repaired(folder)? {
        fs::rename(path, folder.join(format!("{number:016x}.seg")))?;
    }
    sync_folder(folder)?;
    fs::remove_file(folder.join(MARK))?;
    sync_folder(folder)
}

/// The segments that a repair has written, ascending.
fn repaired(folder: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let number = |name: &str| {
        let (digits, ending) = name.split_once('.')?;
        let number = u64::from_str_radix(digits, 16).ok()?;
        (ending == ENDING).then_some(number)
    };
    let found = names(folder)?;
    let found = found
        .iter()
        .filter_map(|name| Some((number(name)?, folder.join(name))));
    Ok(found.collect())
}
