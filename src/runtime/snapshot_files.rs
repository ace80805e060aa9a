//! The files of a shard's checkpoints, written by a thread of the shard's own, and how they are read.
//!
//! ```text
//! run-<writer>-<n>.run      pages and roots of some rounds
//! payload-<writer>-<n>.pay  bodies of jobs
//! manifest-<sequence>       the second anchor of the bases; the newest two are kept
//! ```
//!
//! The writer is a shard in a start of the node, 64 times the start number and the shard
//! ([`file_number`](crate::snapshot::layout::file_number)), which makes the name new: a file is made by its
//! first chunk, further rounds of the same process may add to it, and no other ever opens it for writing. A
//! round whose files cannot be written is given up: what it added to them is cut off, those that it made are
//! removed, the log stays, nothing is lost.

use crate::base::report::Report;
use crate::runtime::data_dir::{disk_full, names, sync_folder, unusable, write_durably};
use crate::runtime::{space, sys};
use crate::shard::effect::{CheckpointFile, Discarded};
use crate::shard::input::Input;
use crate::snapshot::manifest::Manifest;
use bytes::Bytes;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Written back in portions, so that the sync at the end does not hold up the log; without a sync of
/// each, which would make the disk empty its memory.
const WRITE_BACK_BYTES: u64 = 2 << 20;
/// A manifest that finds no room is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Of run files, and of payload files, so much is fetched at the start before anybody asks: about as much
/// as the disk gives in a millisecond or two.
const FETCH_BYTES: u64 = 2 << 20;
/// Manifests kept, the newest included.
const MANIFESTS_KEPT: usize = 2;

/// What the thread is asked.
#[derive(Debug)]
pub enum Order {
    /// Append a chunk to a file of a round.
    Write {
        /// The round.
        round: u64,
        /// The file.
        file: CheckpointFile,
        /// Where.
        offset: u64,
        /// What.
        bytes: Bytes,
    },
    /// Sync the files of a round and their names.
    Sync {
        /// The round.
        round: u64,
        /// Its files.
        files: Vec<CheckpointFile>,
    },
    /// Write a manifest.
    Manifest(Bytes),
    /// Unlink files.
    Drop(Vec<CheckpointFile>),
    /// Cut files off at these lengths.
    Truncate(Vec<(CheckpointFile, u64)>),
    /// Free memory: here it holds up the next round at most.
    Free(Discarded),
}

/// The thread's state.
#[derive(Debug)]
pub struct SnapshotFiles {
    folder: PathBuf,
    data_dir: PathBuf,
    open: BTreeMap<CheckpointFile, Open>,
    given_up: BTreeSet<u64>,
}

#[derive(Debug)]
struct Open {
    file: File,
    round: u64,
    /// Where the round began in it.
    from: u64,
    dirty: u64,
}

impl SnapshotFiles {
    /// For the checkpoints in `folder`.
    #[must_use]
    pub fn new(folder: PathBuf, data_dir: PathBuf) -> Self {
        Self {
            folder,
            data_dir,
            open: BTreeMap::new(),
            given_up: BTreeSet::new(),
        }
    }

    /// Obeys until the other end is gone.
    pub fn obey(mut self, orders: &Receiver<Order>, mut tell: impl FnMut(Input)) {
        let mut manifest: Option<Bytes> = None;
        loop {
            let order = match &manifest {
                Some(_) => orders.recv_timeout(RETRY_EVERY),
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match order {
                Ok(Order::Write {
                    round,
                    file,
                    offset,
                    bytes,
                }) => {
                    self.write(round, file, offset, &bytes);
                    let bytes = bytes.len();
                    tell(Input::ChunkWritten { round, bytes });
                }
                Ok(Order::Sync { round, files }) => tell(self.sync(round, &files)),
                Ok(Order::Manifest(bytes)) => manifest = Some(bytes),
                Ok(Order::Drop(files)) => self.drop_files(&files),
                Ok(Order::Truncate(files)) => files
                    .iter()
                    .for_each(|(file, len)| self.cut_off(*file, *len)),
                Ok(Order::Free(discarded)) => drop(discarded),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Some(bytes) = manifest.take() {
                match self.write_manifest(&bytes) {
                    Ok(()) => tell(Input::ManifestWritten),
                    Err(error) => {
                        tracing::warn!(%error, "a manifest cannot be written; it is tried again");
                        manifest = Some(bytes);
                    }
                }
            }
        }
    }

    fn write(&mut self, round: u64, file: CheckpointFile, offset: u64, bytes: &[u8]) {
        if self.given_up.contains(&round) {
            return;
        }
        if let Err(error) = self.try_write(round, file, offset, bytes) {
            tracing::warn!(%error, round, "a checkpoint round is given up; the log stays");
            self.give_up(round);
        }
    }

    fn try_write(
        &mut self,
        round: u64,
        file: CheckpointFile,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        if !self.open.contains_key(&file) {
            let opened = File::options()
                .write(true)
                .create_new(offset == 0)
                .open(self.path(file))?;
            self.open.insert(
                file,
                Open {
                    file: opened,
                    round,
                    from: offset,
                    dirty: 0,
                },
            );
        }
        let open = self.open.get_mut(&file).expect("it was just made");
        open.file.write_all_at(bytes, offset)?;
        open.dirty += bytes.len() as u64;
        if open.dirty >= WRITE_BACK_BYTES {
            // Chunks of a file come one after the other.
            let end = offset + bytes.len() as u64;
            sys::write_back(&open.file, end - open.dirty, open.dirty)?;
            open.dirty = 0;
        }
        Ok(())
    }

    fn sync(&mut self, round: u64, files: &[CheckpointFile]) -> Input {
        if self.given_up.remove(&round) {
            return Input::RoundFailed { round };
        }
        let open = files.iter().filter_map(|file| self.open.get(file));
        let synced = open
            .map(|open| &open.file)
            .try_for_each(File::sync_all)
            .and_then(|()| sync_folder(&self.folder));
        match synced {
            Ok(()) => {
                self.open.retain(|_, open| open.round != round);
                Input::FilesSynced { round }
            }
            Err(error) => {
                tracing::warn!(%error, round, "a checkpoint round is given up; the log stays");
                self.undo(round);
                Input::RoundFailed { round }
            }
        }
    }

    fn give_up(&mut self, round: u64) {
        self.given_up.insert(round);
        self.undo(round);
    }

    /// Removes what a round has written.
    fn undo(&mut self, round: u64) {
        let of_round = |(file, open): (&CheckpointFile, &Open)| {
            (open.round == round).then_some((*file, open.from))
        };
        let files: Vec<_> = self.open.iter().filter_map(of_round).collect();
        for (file, from) in files {
            match from {
                0 => self.drop_files(&[file]),
                _ => self.cut_off(file, from),
            }
        }
    }

    /// What lies behind `len` goes. If it does not, it takes room and nothing reads it.
    fn cut_off(&mut self, file: CheckpointFile, len: u64) {
        self.open.remove(&file);
        let path = self.path(file);
        let open = File::options().write(true).open(&path);
        if let Err(error) = open.and_then(|file| file.set_len(len)) {
            tracing::warn!(%error, file = %path.display(), "cannot be truncated");
        }
    }

    fn drop_files(&mut self, files: &[CheckpointFile]) {
        for file in files {
            self.open.remove(file);
            let path = self.path(*file);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, file = %path.display(), "cannot be removed");
            }
        }
    }

    fn write_manifest(&self, bytes: &[u8]) -> io::Result<()> {
        let manifest = Manifest::decode(bytes).expect("the engine encodes what decodes");
        let name = manifest_name(manifest.sequence);
        let write = || write_durably(&self.folder, &name, bytes, false);
        write().or_else(|error| {
            let full = error.kind() == io::ErrorKind::StorageFull;
            if full && space::give_up_ballast(&self.data_dir) {
                write()
            } else {
                Err(error)
            }
        })?;
        let mut all = manifests(&self.folder)?;
        while all.len() > MANIFESTS_KEPT {
            fs::remove_file(self.folder.join(manifest_name(all.remove(0))))?;
        }
        Ok(())
    }

    fn path(&self, file: CheckpointFile) -> PathBuf {
        self.folder.join(file_name(file))
    }
}

/// Reads the checkpoint files in a folder: file, offset, length. Each is opened once.
pub fn reader(folder: &Path) -> impl FnMut(u64, u64, usize) -> io::Result<Bytes> {
    let mut files: BTreeMap<u64, File> = BTreeMap::new();
    move |file, offset, length| {
        let file = match files.entry(file) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(free) => free.insert(find(folder, file, sys::open_for_pieces)?),
        };
        read_at(file, offset, length)
    }
}

/// What the disk has of the checkpoint files in a folder, whatever the kernel keeps of them in memory: file,
/// offset, length. Each is opened once.
pub fn reader_of_disk(folder: &Path) -> impl FnMut(u64, u64, usize) -> io::Result<Bytes> {
    let mut files: BTreeMap<u64, sys::Uncached> = BTreeMap::new();
    move |file, offset, length| {
        let file = match files.entry(file) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(free) => free.insert(find(folder, file, sys::Uncached::open)?),
        };
        file.read_at(offset, length).map(Bytes::copy_from_slice)
    }
}

/// A run or a payload file: their numbers are of one sequence.
fn find<F>(folder: &Path, number: u64, open: impl Fn(&Path) -> io::Result<F>) -> io::Result<F> {
    let open = |file| open(&folder.join(file_name(file)));
    open(CheckpointFile::Run(number)).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => open(CheckpointFile::Payload(number)),
        _ => Err(error),
    })
}

fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
    // No more is taken from memory than the file has.
    let there = file.metadata()?.len().saturating_sub(offset);
    let mut bytes = vec![0; length.min(usize::try_from(there).unwrap_or(usize::MAX))];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.into())
}

/// The name of a checkpoint file.
#[must_use]
pub fn file_name(file: CheckpointFile) -> String {
    let (prefix, number, suffix) = match file {
        CheckpointFile::Run(number) => ("run", number, "run"),
        CheckpointFile::Payload(number) => ("payload", number, "pay"),
    };
    format!(
        "{prefix}-{:08x}-{:08x}.{suffix}",
        number >> 32,
        number & 0xffff_ffff
    )
}

fn file_of(name: &str) -> Option<CheckpointFile> {
    let number = |body: &str| {
        let (start, counter) = body.split_once('-')?;
        let hex = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
        Some(hex(start)? << 32 | hex(counter)?)
    };
    if let Some(body) = name.strip_prefix("run-") {
        return body
            .strip_suffix(".run")
            .and_then(number)
            .map(CheckpointFile::Run);
    }
    let body = name.strip_prefix("payload-")?.strip_suffix(".pay")?;
    number(body).map(CheckpointFile::Payload)
}

/// The name of a manifest's file.
#[must_use]
pub fn manifest_name(sequence: u64) -> String {
    format!("manifest-{sequence:016x}")
}

/// The checkpoint files in a folder with their lengths; half-written manifests are removed.
///
/// # Errors
/// If the folder cannot be read.
pub fn find_files(folder: &Path) -> io::Result<BTreeMap<CheckpointFile, u64>> {
    let mut found = BTreeMap::new();
    for name in names(folder)? {
        let path = folder.join(&name);
        if name.ends_with(".tmp") {
            fs::remove_file(path)?;
        } else if let Some(file) = file_of(&name) {
            found.insert(file, fs::metadata(path)?.len());
        }
    }
    Ok(found)
}

/// Has the kernel fetch what was added last to run files, and to payload files: the first groups that are read
/// would else wait for the disk at each page.
pub fn fetch_newest(folder: &Path, files: &BTreeMap<CheckpointFile, u64>) {
    let is_run = |file: &CheckpointFile| matches!(file, CheckpointFile::Run(_));
    let (runs, payloads): (Vec<_>, Vec<_>) = files.iter().partition(|(file, _)| is_run(file));
    for newest_last in [runs, payloads] {
        let mut left = FETCH_BYTES;
        for (file, bytes) in newest_last.into_iter().rev() {
            let end = left.min(*bytes);
            left -= end;
            // Whoever needs it says why it cannot be opened.
            if let Ok(open) = File::open(folder.join(file_name(*file))) {
                sys::will_read(&open, bytes - end, end);
            }
            if left == 0 {
                break;
            }
        }
    }
}

/// Has a checkpoint file of one folder lie in another too; false if there is another file of its name. One
/// that is missing stays missing. The name is durable once the folder is synced.
///
/// # Errors
/// What the file system says; some have no links.
pub fn link(file: CheckpointFile, from: &Path, to: &Path) -> io::Result<bool> {
    let name = file_name(file);
    let (from, to) = (from.join(&name), to.join(&name));
    match fs::hard_link(&from, &to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let identity = |path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
            Ok(identity(from)? == identity(to)?)
        }
        Err(error) => Err(error),
    }
}

/// How many checkpoint files there are, and how large they are together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSizes {
    /// Run files.
    pub run_files: u64,
    /// Their bytes.
    pub run_bytes: u64,
    /// Payload files.
    pub payload_files: u64,
    /// Their bytes.
    pub payload_bytes: u64,
}

/// The sizes of the checkpoint files in a folder; changes nothing.
///
/// # Errors
/// If the folder cannot be read.
pub fn file_sizes(folder: &Path) -> io::Result<FileSizes> {
    let mut sizes = FileSizes::default();
    for name in names(folder)? {
        let Some(file) = file_of(&name) else {
            continue;
        };
        let bytes = fs::metadata(folder.join(&name))?.len();
        match file {
            CheckpointFile::Run(_) => {
                sizes.run_files += 1;
                sizes.run_bytes += bytes;
            }
            CheckpointFile::Payload(_) => {
                sizes.payload_files += 1;
                sizes.payload_bytes += bytes;
            }
        }
    }
    Ok(sizes)
}

/// Writes a run file whole, and its name; for a repair, while no node works on the folder.
///
/// # Errors
/// What the file system says; then no such file is there.
pub fn write_run(
    folder: &Path,
    number: u64,
    mut slice: impl FnMut() -> Option<(u64, Bytes)>,
) -> Result<(), Report> {
    let path = folder.join(file_name(CheckpointFile::Run(number)));
    let mut write = || {
        let file = File::options().write(true).create_new(true).open(&path)?;
        while let Some((offset, bytes)) = slice() {
            file.write_all_at(&bytes, offset)?;
        }
        file.sync_all()?;
        sync_folder(folder)
    };
    write().map_err(|error: io::Error| {
        let _ = fs::remove_file(&path);
        match error.kind() {
            io::ErrorKind::StorageFull => disk_full(folder),
            _ => unusable(&path, "write", &error),
        }
    })
}

/// The sequence numbers of the manifests in a folder, ascending.
///
/// # Errors
/// If the folder cannot be read.
pub fn manifests(folder: &Path) -> io::Result<Vec<u64>> {
    let sequence = |name: String| u64::from_str_radix(name.strip_prefix("manifest-")?, 16).ok();
    let mut all: Vec<u64> = names(folder)?.into_iter().filter_map(sequence).collect();
    all.sort_unstable();
    Ok(all)
}

/// The last start that has written a manifest into a folder; 0 if there is none. Told by the names, so that
/// one that is damaged counts.
///
/// # Errors
/// If the folder cannot be read.
pub fn last_start(folder: &Path) -> io::Result<u64> {
    let newest = manifests(folder)?.pop();
    Ok(newest.map_or(0, |sequence| sequence >> 32))
}

/// The bytes of a manifest.
///
/// # Errors
/// If it cannot be read.
pub fn read_manifest(folder: &Path, sequence: u64) -> io::Result<Vec<u8>> {
    fs::read(folder.join(manifest_name(sequence)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        for file in [
            CheckpointFile::Run(0x0000_0003_0000_0011),
            CheckpointFile::Payload(1),
        ] {
            assert_eq!(file_of(&file_name(file)), Some(file));
        }
        assert_eq!(
            file_name(CheckpointFile::Run(3 << 32 | 17)),
            "run-00000003-00000011.run"
        );
        assert_eq!(file_of("run-1.run"), None);
        assert_eq!(file_of("manifest-0000000000000001"), None);
    }

    #[test]
    fn a_round_that_is_given_up_leaves_what_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (old, new) = (CheckpointFile::Run(1), CheckpointFile::Payload(2));
        let write = |round, file, offset, filler| Order::Write {
            round,
            file,
            offset,
            bytes: vec![filler; 4096].into(),
        };
        let obey = |round, writes: Vec<Order>| {
            let (sender, orders) = std::sync::mpsc::channel();
            for order in writes {
                sender.send(order).unwrap();
            }
            let files = vec![old, new];
            sender.send(Order::Sync { round, files }).unwrap();
            drop(sender);
            let mut last = None;
            let files = SnapshotFiles::new(folder.to_owned(), folder.to_owned());
            files.obey(&orders, |input| last = Some(input));
            last.expect("it tells what became of the round")
        };
        let made = obey(1, vec![write(1, old, 0, 1)]);
        assert!(matches!(made, Input::FilesSynced { round: 1 }));
        let gone_on = obey(2, vec![write(2, old, 4096, 2)]);
        assert!(matches!(gone_on, Input::FilesSynced { round: 2 }));
        // There is no file of which that could be the second chunk.
        let bad = write(3, CheckpointFile::Run(3), 4096, 3);
        let given_up = obey(3, vec![write(3, old, 8192, 3), write(3, new, 0, 3), bad]);
        assert!(matches!(given_up, Input::RoundFailed { round: 3 }));
        let left = BTreeMap::from([(old, 8192)]);
        assert_eq!(find_files(folder).unwrap(), left);
        let bytes = fs::read(folder.join(file_name(old))).unwrap();
        assert_eq!(bytes, [[1; 4096], [2; 4096]].concat());
    }
}
