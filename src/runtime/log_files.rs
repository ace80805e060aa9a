//! Segments of a log that no shard writes yet: of a repair, or of another number of shards.
//!
//! Whole files, written by blocking calls while nothing depends on them. Each is zeroed before its first
//! batch, as every segment is, so that it can be used again later. Nothing is in force before
//! [`LogFiles::finish`] has synced it; so a batch counts as durable as soon as it is written, and says so in
//! the one behind it.

use crate::base::limits::SEGMENT_BYTES;
use crate::runtime::data_dir::sync_folder;
use crate::runtime::{space, sys};
use crate::wal::writer::{LogWriter, Need, WalWrite};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const ZEROS_BYTES: usize = 1 << 20;

/// The files of one log.
#[derive(Debug)]
pub struct LogFiles {
    folder: PathBuf,
    ending: &'static str,
    /// The data directory whose ballast may be given up for them.
    ballast_of: Option<PathBuf>,
    files: BTreeMap<u64, File>,
}

impl LogFiles {
    /// Files `<number>.<ending>` in `folder`. If there is no room, the ballast of the directory `ballast_of`
    /// is given up for them.
    #[must_use]
    pub fn new(folder: &Path, ending: &'static str, ballast_of: Option<&Path>) -> Self {
        Self {
            folder: folder.to_owned(),
            ending,
            ballast_of: ballast_of.map(Path::to_owned),
            files: BTreeMap::new(),
        }
    }

    /// Writes what `writer` holds. Segments that are full are synced and closed.
    ///
    /// # Errors
    /// What the file system says.
    pub fn drain(&mut self, writer: &mut LogWriter) -> io::Result<()> {
        writer.drain(&mut |need| self.meet(need))
    }

    /// Writes the rest, proves all of it by an empty batch, and syncs files and names.
    ///
    /// # Errors
    /// What the file system says.
    pub fn finish(mut self, writer: &mut LogWriter) -> io::Result<()> {
        writer.drain_proved(&mut |need| self.meet(need))?;
        self.files.values().try_for_each(settle)?;
        sync_folder(&self.folder)
    }

    fn meet(&mut self, need: Need) -> io::Result<()> {
        match need {
            Need::Segment(number) => {
                self.files.insert(number, self.make(number)?);
                Ok(())
            }
            Need::Write(write) => self.write(&write),
        }
    }

    fn write(&mut self, write: &WalWrite) -> io::Result<()> {
        let mut bytes = vec![0; write.batch.encoded_len()];
        write.batch.encode_into(&mut bytes);
        while let Some(full) = self.files.first_entry()
            && *full.key() < write.segment
        {
            settle(&full.remove())?;
        }
        let file = self.files.get(&write.segment);
        let file = file.expect("a writer writes to segments that it has asked for");
        file.write_all_at(&bytes, write.offset)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:016x}.{}", self.ending))
    }

    /// A whole segment of zeros.
    fn make(&self, number: u64) -> io::Result<File> {
        let make = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(self.path(number))?;
            let zeros = vec![0; ZEROS_BYTES];
            for _ in 0..SEGMENT_BYTES / ZEROS_BYTES {
                file.write_all(&zeros)?;
            }
            Ok(file)
        };
        make().or_else(|error: io::Error| {
            let full = error.kind() == io::ErrorKind::StorageFull;
            let ballast_of = self.ballast_of.as_ref().filter(|_| full);
            if ballast_of.is_some_and(|directory| space::give_up_ballast(directory)) {
                make()
            } else {
                Err(error)
            }
        })
    }
}

/// Makes a file durable, and has the kernel forget it: who reads it back is to see what the disk has, not
/// what is in memory.
fn settle(file: &File) -> io::Result<()> {
    file.sync_all()?;
    sys::drop_cached(file)
}

const _: () = assert!(SEGMENT_BYTES.is_multiple_of(ZEROS_BYTES));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ClusterId, DiskId, GroupId, Incarnation, ShardId};
    use crate::runtime::data_dir::names;
    use crate::wal::record::{HardState, Record};
    use crate::wal::writer::{LogIdentity, LogStart};

    #[test]
    fn what_is_written_is_read_back_from_the_disk() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
        let identity = LogIdentity {
            cluster: ClusterId([1; 16]),
            disk: DiskId([2; 16]),
            shard: ShardId(0),
            wal_set: 1,
        };
        let mut writer = LogWriter::new(identity, LogStart::fresh(), 1);
        let mut files = LogFiles::new(folder.path(), "seg", None);
        while writer.end_lsn().0 <= SEGMENT_BYTES as u64 {
            for _ in 0..10_000 {
                writer.append(Record::HardState {
                    group: GroupId(0),
                    incarnation: Incarnation(1),
                    state: HardState::default(),
                });
            }
            files.drain(&mut writer).expect("it is written");
        }
        files.finish(&mut writer).expect("it is written");
        let names = names(folder.path()).expect("it can be listed");
        assert_eq!(names.len(), 2, "one was full");
        for name in names {
            let file = File::open(folder.path().join(name)).expect("it is there");
            assert_eq!(sys::cached_pages(&file).expect("mapped"), 0);
        }
    }
}
