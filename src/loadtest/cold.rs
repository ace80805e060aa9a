//! A start with nothing in memory: the kernel is asked to forget the data and the program of a node
//! that has ended, as after a reboot, and it is proved that it did. Needs no root.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::runtime::sys;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// A page that the process that ended was about to have read stays until it is.
const PATIENCE: Duration = Duration::from_secs(1);
const RETRY_EVERY: Duration = Duration::from_millis(5);

/// Makes a file, and all files below a folder, forgotten.
///
/// # Errors
/// If pages stay: the start would not be cold.
pub(super) fn forget(places: &[&Path]) -> Result<(), Report> {
    let mut files = Vec::new();
    for place in places {
        collect(place, &mut files).map_err(|error| failed(place, &error))?;
    }
    for path in &files {
        let stay = forget_file(path).map_err(|error| failed(path, &error))?;
        if stay > 0 {
            let what = format!("{stay} pages of {} stay in memory", path.display());
            let report = Report::error(Code::BadArgument, what);
            return Err(report
                .why("another process uses it, or the file system keeps it")
                .fix("a measurement without --cold, or a --data-dir of its own"));
        }
    }
    Ok(())
}

fn collect(place: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !place.is_dir() {
        files.push(place.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(place)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

/// The pages that stay.
fn forget_file(path: &Path) -> io::Result<usize> {
    let file = File::open(path)?;
    let begun = Instant::now();
    loop {
        // What is not written yet cannot be dropped.
        file.sync_all()?;
        sys::drop_cached(&file)?;
        let stay = sys::cached_pages(&file)?;
        if stay == 0 || begun.elapsed() >= PATIENCE {
            return Ok(stay);
        }
        thread::sleep(RETRY_EVERY);
    }
}

fn failed(path: &Path, error: &io::Error) -> Report {
    let what = format!("cannot make the kernel forget {}", path.display());
    Report::error(Code::DirectoryUnusable, what).location(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_forgotten_with_all_below() {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir_in(beside).expect("a folder");
        let below = folder.path().join("below");
        std::fs::create_dir(&below).expect("made");
        std::fs::write(below.join("file"), [1; 9000]).expect("written");
        forget(&[folder.path()]).expect("forgotten");
        let nobody = folder.path().join("nobody");
        let report = forget(&[&nobody]).expect_err("it is not there");
        assert_eq!(report.code, Code::DirectoryUnusable);
    }
}
