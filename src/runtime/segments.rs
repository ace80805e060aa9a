//! The files of a shard's log: made, named, dropped and used again, by a thread of the shard's own.
//!
//! ```text
//! <16 hexadecimal digits>.seg   a segment in use: its number
//! spare-<n>.seg                 zeroed or used before, of full length, ready for a name
//! *.tmp                         half zeroed: deleted at start
//! ```
//!
//! A segment is written in place, so it must have its blocks before its first batch: reserved, zeroed in
//! large writes, synced, renamed, directory synced. That takes some ten milliseconds, so spares are
//! made ahead, and dropped segments become spares (what they hold is told apart by the epoch in
//! each batch). Where there is no spare, at a start soon after another, nobody waits for zeros but those of
//! the *front*: the rest is reserved alone, which costs a batch there twice its time, the file system
//! having to note each block's first write (it keeps room of its own for that, also on a full disk). Such a
//! segment becomes a spare only if all of it was written.
//!
//! **The dead process's writes** can reach a file after its successor has read it. Each write
//! descriptor holds an exclusive lock of its file, which lives as long as a write is under way; so
//! a start takes the lock of every file, spares included, before it reads or chooses it.
//!
//! Without room or descriptors a segment is waited for: nothing was written, so nothing is in doubt.

use crate::base::code::Code;
use crate::base::limits::SEGMENT_BYTES;
use crate::base::report::Report;
use crate::runtime::data_dir::{names, segment_number, sync_folder, unusable};
use crate::runtime::lock::{HOLDER_PATIENCE, holder_retry};
use crate::runtime::repair::refuse_half_repaired;
use crate::runtime::{space, sys};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Spares kept; what is dropped beyond that is deleted.
const SPARES_MAX: usize = 4;
/// Spares made ahead when there is nothing else to do.
const SPARES_AHEAD: usize = 2;
/// Spares are made so long after they may be, at the start or when there is room again: sixteen MiB of zeros on their way to the disk
/// would hold up the first jobs.
const AHEAD_AFTER: Duration = Duration::from_millis(250);
/// For the same reason the second segment of a process waits for a spare so long: one is on its way, what
/// the process before had prepared. The first is not full sooner.
const SUCCESSOR_AFTER: Duration = Duration::from_millis(100);
/// With no room, how often it is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// What is zeroed at a time; of a segment that is waited for, this is the front.
const ZEROS_BYTES: usize = 1 << 20;

/// The files found at start, each free of writes of a dead process.
#[derive(Debug)]
pub struct Found {
    /// Number and path, ascending.
    pub segments: Vec<(u64, PathBuf)>,
    /// The pool, for the thread.
    pub pool: Pool,
}

impl Found {
    /// The segment with which the log goes on: what its recovery will say, too.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.segments.last().map_or(1, |(number, _)| number + 1)
    }
}

/// Looks through the folder of a log.
///
/// # Errors
/// If a file cannot be opened, or stays locked.
pub fn find(folder: &Path, data_dir: &Path, count: Arc<AtomicUsize>) -> Result<Found, Report> {
    refuse_half_repaired(folder)?;
    let names = names(folder).map_err(|error| unusable(folder, "read", &error))?;
    let mut segments = Vec::new();
    let mut pool = Pool {
        folder: folder.to_owned(),
        data_dir: data_dir.to_owned(),
        spares: Vec::new(),
        next_spare: 0,
        ahead_from: None,
        lacks_descriptors: false,
        is_left: false,
        made: None,
        count,
    };
    for name in names {
        let path = folder.join(&name);
        if name.ends_with(".tmp") {
            fs::remove_file(&path).map_err(|error| unusable(&path, "remove", &error))?;
            continue;
        }
        let Some(number) = segment_number(&name).map(Some).or_else(|| spare(&name)) else {
            continue;
        };
        wait_for_writes(&path)?;
        match number {
            Some(number) => segments.push((number, path)),
            None if is_whole(&path) => pool.spares.push(path),
            // Not one that we finished: its blocks are not there.
            None => fs::remove_file(&path).map_err(|error| unusable(&path, "remove", &error))?,
        }
    }
    segments.sort();
    pool.is_left = !segments.is_empty();
    Ok(Found { segments, pool })
}

/// The segments of a log alone, each free of writes of a dead process; changes nothing.
///
/// # Errors
/// If a file cannot be opened, or stays locked.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, Report> {
    refuse_half_repaired(folder)?;
    let names = names(folder).map_err(|error| unusable(folder, "read", &error))?;
    let mut segments = Vec::new();
    for name in names {
        if let Some(number) = segment_number(&name) {
            let path = folder.join(&name);
            wait_for_writes(&path)?;
            segments.push((number, path));
        }
    }
    segments.sort();
    Ok(segments)
}

/// `Some(None)` for the name of a spare.
fn spare(name: &str) -> Option<Option<u64>> {
    (name.starts_with("spare-") && name.ends_with(".seg")).then_some(None)
}

fn is_whole(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() == SEGMENT_BYTES as u64)
}

/// Whether it is whole, and each of its blocks was written at some time.
fn is_written(path: &Path) -> bool {
    is_whole(path) && File::open(path).is_ok_and(|file| !sys::has_unwritten(&file))
}

fn wait_for_writes(path: &Path) -> Result<(), Report> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| unusable(path, "open", &error))?;
    let begun = Instant::now();
    while !sys::try_lock(&file).map_err(|error| unusable(path, "lock", &error))? {
        if begun.elapsed() > HOLDER_PATIENCE {
            let what = format!(
                "{} is still being written by another process",
                path.display()
            );
            return Err(Report::error(Code::DirectoryLocked, what)
                .why("its writes could destroy what this process reads")
                .fix("stop whatever works in this directory, then start again"));
        }
        std::thread::sleep(holder_retry(begun.elapsed()));
    }
    Ok(())
}

/// What the thread is asked.
#[derive(Debug)]
pub enum Order {
    /// Make this segment.
    Prepare(u64),
    /// These are not needed.
    Drop(Vec<u64>),
    /// Whether spares may be made ahead: not before the first job, nor with a full disk.
    MayMakeAhead(bool),
}

/// The spares of a log.
#[derive(Debug)]
pub struct Pool {
    folder: PathBuf,
    data_dir: PathBuf,
    spares: Vec<PathBuf>,
    next_spare: u64,
    /// When spares may be made ahead.
    ahead_from: Option<Instant>,
    /// That descriptors are missing was said, and they are missing still.
    lacks_descriptors: bool,
    /// Segments of an earlier process were found: what it had prepared will be a spare soon.
    is_left: bool,
    /// A segment that was made before it was asked for.
    made: Option<u64>,
    /// How many spares there are, for who judges the room on the disk.
    count: Arc<AtomicUsize>,
}

impl Pool {
    /// Makes a segment that will be asked for; whether it could. A name takes some milliseconds to be durable,
    /// for which a start would wait.
    pub fn make_ahead(&mut self, number: u64) -> bool {
        // Whoever asks for it hears why not.
        self.made = self.prepare(number).ok().map(|()| number);
        self.made.is_some()
    }

    /// Obeys until the other end is gone. `ready` is told of each segment made. Room is waited for:
    /// checkpoints, which drop segments, make some; and so are descriptors.
    ///
    /// # Errors
    /// Any other fault of the disk.
    pub fn obey(
        mut self,
        orders: &Receiver<Order>,
        mut ready: impl FnMut(u64),
    ) -> Result<(), Report> {
        let mut wanted: VecDeque<u64> = VecDeque::new();
        // Orders that came while a spare was made.
        let mut came: VecDeque<Order> = VecDeque::new();
        // When a segment may be made anew.
        let mut make_from = Instant::now();
        let mut is_first = true;
        loop {
            self.count.store(self.spares.len(), Relaxed);
            let idle = wanted.is_empty();
            let first = match idle {
                _ if !came.is_empty() => came.pop_front().ok_or(RecvTimeoutError::Timeout),
                true => match self.wants_spares_from() {
                    Some(at) => orders.recv_timeout(at.saturating_duration_since(Instant::now())),
                    None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                },
                false => {
                    orders.recv_timeout(match make_from.checked_duration_since(Instant::now()) {
                        Some(wait) if !wait.is_zero() => wait,
                        _ => RETRY_EVERY,
                    })
                }
            };
            match first {
                Ok(Order::Prepare(number)) => wanted.push_back(number),
                Ok(Order::Drop(numbers)) => {
                    self.recycle(&numbers)
                        .map_err(|error| self.failed("drop segments", &error))?;
                }
                Ok(Order::MayMakeAhead(may)) => {
                    self.ahead_from = may.then(|| Instant::now() + AHEAD_AFTER);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) if idle => {
                    let mut is_wanted = || {
                        came.extend(orders.try_iter());
                        came.iter().any(|order| matches!(order, Order::Prepare(_)))
                    };
                    match self.make_spare(&mut is_wanted) {
                        Ok(path) => self.spares.push(path),
                        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                            self.ahead_from = None;
                        }
                        Err(error) if self.passes(&error) => std::thread::sleep(RETRY_EVERY),
                        Err(error) => return Err(self.failed("make a spare segment", &error)),
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            while let Some(&number) = wanted.front() {
                let is_made = self.made == Some(number);
                if !is_made && self.spares.is_empty() && Instant::now() < make_from {
                    break;
                }
                match self.prepare(number) {
                    Ok(()) => {
                        ready(number);
                        if std::mem::take(&mut is_first) && self.is_left {
                            make_from = Instant::now() + SUCCESSOR_AFTER;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        if space::give_up_ballast(&self.data_dir) {
                            continue;
                        }
                        break;
                    }
                    Err(error) if self.passes(&error) => break,
                    Err(error) => return Err(self.failed("make a segment", &error)),
                }
                wanted.pop_front();
            }
        }
    }

    /// Whether only descriptors are missing; said once, however long it lasts.
    fn passes(&mut self, error: &io::Error) -> bool {
        let passes = sys::lacks_descriptors(error.raw_os_error());
        if passes && !std::mem::replace(&mut self.lacks_descriptors, true) {
            tracing::warn!(%error, "no segment can be made; it is tried again");
        }
        passes
    }

    fn failed(&self, what: &str, error: &io::Error) -> Report {
        let what = format!("cannot {what} in {}", self.folder.display());
        Report::error(Code::LogWriteFailed, what)
            .location(error.to_string())
            .fix("look for errors of the disk (dmesg), then start again: nothing acknowledged is lost")
    }

    /// When the next spare is to be made ahead, if one is.
    fn wants_spares_from(&self) -> Option<Instant> {
        self.ahead_from.filter(|_| self.spares.len() < SPARES_AHEAD)
    }

    fn prepare(&mut self, number: u64) -> io::Result<()> {
        if self.made.take_if(|made| *made == number).is_some() {
            return Ok(());
        }
        let spare = match self.spares.pop() {
            Some(spare) => spare,
            None => self.make_spare(&mut || true)?,
        };
        let path = self.folder.join(format!("{number:016x}.seg"));
        let named = fs::rename(&spare, &path).and_then(|()| sync_folder(&self.folder));
        if named.is_err() && spare.exists() {
            self.spares.push(spare);
        }
        named
    }

    /// Makes a spare: until it is wanted, zeroed a portion at a time, so that the log's own writes come in
    /// between; no more of it from then on.
    fn make_spare(&mut self, is_wanted: &mut dyn FnMut() -> bool) -> io::Result<PathBuf> {
        let path = self.spare_path();
        let temporary = path.with_extension("tmp");
        let mut make = || {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .custom_flags(libc::O_DIRECT)
                .open(&temporary)?;
            let is_reserved = match sys::reserve(&file, SEGMENT_BYTES as u64) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(error),
                // A file system that cannot has its blocks from the zeros.
                Err(_) => false,
            };
            let zeros = sys::Zeros::new(ZEROS_BYTES);
            for at in (0..SEGMENT_BYTES).step_by(ZEROS_BYTES) {
                zeros.write_at(&file, at as u64)?;
                if is_reserved && is_wanted() {
                    break;
                }
            }
            file.sync_data()?;
            fs::rename(&temporary, &path)
        };
        make().inspect_err(|_| {
            // Half a spare is of no use; a start deletes it too.
            let _ = fs::remove_file(&temporary);
        })?;
        self.lacks_descriptors = false;
        Ok(path)
    }

    fn spare_path(&mut self) -> PathBuf {
        loop {
            let path = self.folder.join(format!("spare-{}.seg", self.next_spare));
            self.next_spare += 1;
            if !path.exists() {
                return path;
            }
        }
    }

    fn recycle(&mut self, numbers: &[u64]) -> io::Result<()> {
        for number in numbers {
            let path = self.folder.join(format!("{number:016x}.seg"));
            if self.spares.len() < SPARES_MAX && is_written(&path) {
                let spare = self.spare_path();
                fs::rename(&path, &spare)?;
                self.spares.push(spare);
            } else if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        // A name that comes back after a crash is a segment before the base: dropped again.
        Ok(())
    }
}

const _: () = assert!(SEGMENT_BYTES.is_multiple_of(ZEROS_BYTES));

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use tempfile::TempDir;

    fn folder() -> TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder")
    }

    fn pool(folder: &TempDir) -> Pool {
        let found = find(folder.path(), folder.path(), Arc::default());
        found.expect("it can be read").pool
    }

    fn is_zero(path: &Path) -> bool {
        let bytes = fs::read(path).expect("it can be read");
        bytes.len() == SEGMENT_BYTES && bytes.iter().all(|byte| *byte == 0)
    }

    #[test]
    fn a_spare_made_ahead_is_written_and_used_again() {
        let folder = folder();
        let mut pool = pool(&folder);
        let spare = pool.make_spare(&mut || false).expect("there is room");
        assert!(is_zero(&spare) && is_written(&spare));
        pool.spares.push(spare);
        pool.prepare(7).expect("it is named");
        assert_eq!(pool.spares.len(), 0);
        pool.recycle(&[7]).expect("it is dropped");
        assert_eq!(pool.spares.len(), 1);
    }

    #[test]
    fn a_segment_made_ahead_is_not_made_again() {
        let folder = folder();
        fs::write(folder.path().join("0000000000000006.seg"), []).expect("there is room");
        let found = find(folder.path(), folder.path(), Arc::default()).expect("it can be read");
        assert_eq!(found.next(), 7);
        let mut pool = found.pool;
        assert!(pool.make_ahead(7));
        let path = folder.path().join("0000000000000007.seg");
        fs::write(&path, b"the same").expect("it is there");
        let (sender, orders) = std::sync::mpsc::channel();
        sender.send(Order::Prepare(7)).expect("it is open");
        drop(sender);
        let mut ready = Vec::new();
        let obeyed = pool.obey(&orders, |number| ready.push(number));
        obeyed.expect("there is room");
        assert_eq!(ready, [7]);
        assert_eq!(fs::read(&path).expect("it is there"), b"the same");
    }

    #[test]
    fn a_segment_that_is_waited_for_has_its_front_and_is_used_again_once_all_is_written() {
        let folder = folder();
        let mut pool = pool(&folder);
        for (number, writes_all) in [(7, false), (8, true)] {
            pool.prepare(number).expect("there is room");
            let path = pool.folder.join(format!("{number:016x}.seg"));
            assert!(is_zero(&path) && !is_written(&path));
            let file = File::options()
                .write(true)
                .open(&path)
                .expect("it is there");
            let len = if writes_all { SEGMENT_BYTES } else { 4096 };
            file.write_all_at(&vec![1; len], 0).expect("it has room");
            file.sync_data().expect("it is synced");
            pool.recycle(&[number]).expect("it is dropped");
            assert_eq!(pool.spares.len(), usize::from(writes_all));
        }
    }
}
