//! Looks whether the disk has still what was stored, for all shards of the node.
//!
//! On one thread of its own, so that the shards ask the disk for one thing at a time, and who waits for a page
//! does not wait for what nobody needs. It asks with the lowest priority that the kernel knows, and past what
//! the kernel keeps of the files in memory: that may be whole where the disk is not.

use crate::runtime::snapshot_files::reader_of_disk;
use crate::runtime::sys;
use crate::shard::input::Input;
use crate::shard::scrub::Walk;
use crate::snapshot::layout::Owner;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

/// A step of a walk of a shard.
#[derive(Debug)]
pub struct Order {
    /// The shard.
    pub shard: u16,
    /// The walk.
    pub walk: Box<Walk>,
}

/// The thread's state.
#[derive(Debug)]
pub struct Scrubber {
    /// Of each shard, where its checkpoints are.
    folders: Vec<PathBuf>,
    owner: Owner,
}

impl Scrubber {
    /// For the checkpoints in these folders, by shard.
    #[must_use]
    pub fn new(folders: Vec<PathBuf>, owner: Owner) -> Self {
        Self { folders, owner }
    }

    /// Obeys until the other ends are gone.
    pub fn obey(self, orders: &Receiver<Order>, mut tell: impl FnMut(u16, Input)) {
        sys::read_when_idle();
        for Order { shard, mut walk } in orders {
            // Files are open for a step alone: one that is dropped keeps its room on the disk.
            let mut read = reader_of_disk(&self.folders[usize::from(shard)]);
            walk.step(&self.owner, &mut read);
            tell(shard, Input::Scrubbed(walk));
        }
    }
}
