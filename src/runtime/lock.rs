//! The lock of a data directory: one process works in it, and who that is stands in the file.
//!
//! The lock is of the kernel and goes with its process, however that ends; so one that is held says that a
//! process is alive, or on its way to its end.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::runtime::data_dir::{disk_full, unusable};
use crate::runtime::{process, sys};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The file.
pub const LOCK: &str = "lock";
/// As long as any.
const PID_DIGITS: usize = 10;

/// How long a start waits for what a dying process still holds: its writes can take seconds.
pub const HOLDER_PATIENCE: Duration = Duration::from_secs(30);
/// A living holder may have got its signal this moment.
pub const HOLDER_GRACE: Duration = Duration::from_millis(500);
/// How soon it is asked again what somebody holds for whom so long was waited: most that dying processes
/// hold is let go of within a few milliseconds, and each is one that nobody is served.
#[must_use]
pub fn holder_retry(waited: Duration) -> Duration {
    const SOON: Duration = Duration::from_micros(200);
    const LATE: Duration = Duration::from_millis(5);
    (waited / 8).clamp(SOON, LATE)
}

/// Who works in a directory right now, if anybody does.
///
/// # Errors
/// If the lock cannot be read, and which process has it.
pub fn is_free(path: &Path) -> Result<(), Report> {
    let lock_path = path.join(LOCK);
    let file = match File::open(&lock_path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(&lock_path, "read", &error)),
    };
    if sys::try_lock(&file).map_err(|error| unusable(&lock_path, "lock", &error))? {
        return Ok(());
    }
    let holder = holder(&lock_path);
    Err(locked(path, holder, holder.is_some_and(process::is_alive)))
}

fn holder(lock_path: &Path) -> Option<u32> {
    let text = fs::read_to_string(lock_path).unwrap_or_default();
    text.trim().parse().ok()
}

/// Locks the directory; a dying holder is waited for, a living one is named.
///
/// # Errors
/// If the file cannot be made, or who holds it.
pub fn take(path: &Path) -> Result<File, Report> {
    let lock_path = path.join(LOCK);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => disk_full(path),
            _ => unusable(path, "write", &error),
        })?;
    let begun = Instant::now();
    while !sys::try_lock(&file).map_err(|error| unusable(&lock_path, "lock", &error))? {
        let holder = holder(&lock_path);
        let alive = holder.is_some_and(process::is_alive);
        let patience = if alive { HOLDER_GRACE } else { HOLDER_PATIENCE };
        if begun.elapsed() > patience {
            return Err(locked(path, holder, alive));
        }
        std::thread::sleep(holder_retry(begun.elapsed()));
    }
    Ok(file)
}

/// Writes whose lock it is: over the one before, without cutting the file, which takes longer.
///
/// # Errors
/// What the file system says, but for a full disk: then the lock holds without a name.
pub fn sign(lock: &File, path: &Path) -> Result<(), Report> {
    let pid = std::process::id();
    let signed = format!("{pid:<PID_DIGITS$}\n");
    match lock.write_all_at(signed.as_bytes(), 0) {
        Err(error) if error.kind() != io::ErrorKind::StorageFull => {
            Err(unusable(&path.join(LOCK), "write", &error))
        }
        _ => Ok(()),
    }
}

fn locked(path: &Path, holder: Option<u32>, alive: bool) -> Report {
    let path = path.display();
    let who = match holder {
        Some(pid) if alive => process::describe(pid),
        Some(pid) => format!("pid {pid}, which cannot be seen from here (another container?)"),
        None => "an unknown process".to_owned(),
    };
    let fix = match holder {
        Some(pid) if alive => format!("stop it (kill {pid}), or give this node its own --data-dir"),
        _ => "stop that node, or give this one its own --data-dir".to_owned(),
    };
    let what = format!("data directory {path} is in use by another process: {who}");
    Report::error(Code::DirectoryLocked, what)
        .why("two nodes on one directory would destroy its log; a dead one leaves no lock behind")
        .fix(fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_signed_again_names_one_holder() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(LOCK);
        let lock = File::create(&path).expect("it can be made");
        lock.write_all_at(b"4294967295\n", 0)
            .expect("an earlier holder");
        for _ in 0..2 {
            sign(&lock, folder.path()).expect("it can be written");
            assert_eq!(holder(&path), Some(std::process::id()));
        }
    }
}
