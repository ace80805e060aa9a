//! Reading the hot state of a group from its bases: newest first, the one before if it is damaged.
//!
//! Drivers run it off the shard thread; `read` is all that differs between a disk and a simulation.

use super::effect::CheckpointFile;
use crate::snapshot::layout::{Owner, PayloadUse, RootRef, RunUse};
use crate::snapshot::load::{LoadedGroup, files_of_root, read_group};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt::Display;

/// What a base keeps alive on this disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseFiles {
    /// Run files, each with the bytes that its pages and nodes have in it; its root's file is one.
    pub runs: BTreeMap<u64, u64>,
    /// Payload files, each with the bytes that live jobs of the base have in it.
    pub payloads: BTreeMap<u64, u64>,
}

impl BaseFiles {
    /// The files of a base with this root.
    pub(super) fn new(root: &RootRef, runs: &[RunUse], payloads: &[PayloadUse]) -> Self {
        let mut files = Self::default();
        for used in runs {
            files.runs.insert(used.file, used.live_bytes);
        }
        *files.runs.entry(root.file).or_default() += u64::from(root.len);
        for used in payloads {
            files.payloads.insert(used.file, used.live_bytes);
        }
        files
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = CheckpointFile> {
        let runs = self.runs.keys().map(|file| CheckpointFile::Run(*file));
        runs.chain(
            self.payloads
                .keys()
                .map(|file| CheckpointFile::Payload(*file)),
        )
    }
}

/// The hot state of a group as of one of its bases.
#[derive(Debug)]
pub struct GroupState {
    /// Which base: 0 is the newest. A higher one means that those before it are damaged.
    pub base: usize,
    /// Pages and bodies.
    pub loaded: LoadedGroup,
    /// The files of each base from this one on; a base whose root cannot be read ends the list,
    /// since it is of no use any more.
    pub files: Vec<BaseFiles>,
    /// Why newer bases could not be used, for the log.
    pub damage: Vec<String>,
}

/// Loads a group from the newest of `bases` that is intact.
///
/// `read` takes file, offset and length, and yields that many bytes, or fewer at the file's end.
///
/// # Errors
/// A sentence for each base, if none is intact.
pub fn load_group<E: Display>(
    owner: &Owner,
    bases: &[RootRef],
    read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
) -> Result<GroupState, String> {
    let mut damage = Vec::new();
    for (base, root) in bases.iter().enumerate() {
        match read_group(owner, root, read) {
            Ok(loaded) => {
                let mut files = vec![BaseFiles::new(
                    root,
                    &loaded.run_files,
                    &loaded.payload_files,
                )];
                for older in &bases[base + 1..] {
                    let bytes = read(older.file, older.offset, older.len as usize);
                    let Ok(bytes) = bytes else { break };
                    let Ok((runs, payloads)) = files_of_root(&bytes, older.hash) else {
                        break;
                    };
                    files.push(BaseFiles::new(older, &runs, &payloads));
                }
                return Ok(GroupState {
                    base,
                    loaded,
                    files,
                    damage,
                });
            }
            Err(error) => damage.push(error.to_string()),
        }
    }
    Err(damage.join("; "))
}
