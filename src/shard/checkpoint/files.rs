//! The files of checkpoints: which stay, which go, which are to be emptied; and the manifest, which tells a
//! start what they are a second time.
//!
//! A file stays while a base in force names it, or something is read from it for another node.

use crate::base::bugs::{self, Bug};
use crate::queue::LeftFiles;
use crate::shard::bases::manifest_group;
use crate::shard::effect::{CheckpointFile, Effect};
use crate::shard::engine::ShardEngine;
use crate::shard::group::Group;
use crate::shard::loading::BaseFiles;
use crate::snapshot::manifest::Manifest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Files of which less than half is alive are rewritten once so much of them is dead, and a quarter of what
/// is alive,
const DEAD_BYTES_MAX: u64 = 16 << 20;
/// or once there are more than so many: of each round one can be left.
const SPARSE_FILES_MAX: usize = 16;
/// A round moves what lives in the oldest of them, up to so many bytes,
const MOVED_BYTES_MIN: u64 = 64 << 20;
/// or up to this part of what is alive: after a change of the number of shards nearly all files are sparse,
/// and a round that moved it all would take long, and twice the room.
const MOVED_PART: u64 = 8;
/// The manifest is written at least this often while the log grows.
pub(super) const MANIFEST_EVERY: Duration = Duration::from_secs(10);

/// Files of one kind of which less than half is alive.
#[derive(Default)]
struct Sparse {
    /// With the bytes of each that are alive.
    files: BTreeMap<u64, u64>,
    /// Bytes of all files that are alive.
    alive: u64,
    /// Bytes of the sparse ones that are not.
    dead: u64,
}

impl Sparse {
    fn note(&mut self, file: u64, alive: u64, total: u64) {
        self.alive += alive;
        if alive * 2 < total {
            self.dead += total - alive;
            self.files.insert(file, alive);
        }
    }

    /// Those that the next round leaves, at least one, if moving what lives in them is worth the search for
    /// it among all that is alive. With `little_room` less is moved at once: it gives more room than it takes,
    /// but later.
    fn worth_it(&self, little_room: bool) -> BTreeSet<u64> {
        let is_much = self.dead >= DEAD_BYTES_MAX.max(self.alive / 4);
        if !is_much && self.files.len() <= SPARSE_FILES_MAX {
            return BTreeSet::new();
        }
        let part = if little_room {
            0
        } else {
            self.alive / MOVED_PART
        };
        let mut room = MOVED_BYTES_MIN.max(part);
        let fits = |(at, (file, alive)): (usize, (&u64, &u64))| {
            let is_first = at == 0;
            let fits = is_first || *alive <= room;
            room = room.saturating_sub(*alive);
            fits.then_some(*file)
        };
        self.files.iter().enumerate().map_while(fits).collect()
    }
}

impl ShardEngine {
    /// Drops files that no base in force names. While it is not known what the bases of a group name,
    /// because it loads or stopped at that, everything stays.
    pub(in crate::shard) fn drop_unreferenced_files(&mut self) {
        let unknown = |group: &Group| group.base_files.is_empty() && group.bases[0].root.is_some();
        if self.groups.iter().any(unknown) && !bugs::on(Bug::OrphansDroppedEarly) {
            return;
        }
        let groups = self.groups.iter();
        let mut kept: BTreeSet<CheckpointFile> = groups
            .flat_map(|group| group.base_files.iter().flat_map(BaseFiles::all))
            .collect();
        kept.extend(self.installs.files());
        let all = self.checkpoints.files.keys();
        let files: Vec<CheckpointFile> = all.filter(|file| !kept.contains(file)).copied().collect();
        for file in &files {
            self.checkpoints.files.remove(file);
        }
        if !files.is_empty() && !bugs::on(Bug::FilesNeverDropped) {
            self.effects.push(Effect::DropFiles { files });
        }
    }

    /// Once, when the bases of all groups are known: what a crash left is dropped.
    pub(in crate::shard) fn drop_orphans(&mut self) {
        let is_known = !self.is_loading() || bugs::on(Bug::OrphansDroppedEarly);
        if !self.checkpoints.orphans_dropped && is_known {
            self.checkpoints.orphans_dropped = true;
            self.drop_unreferenced_files();
            let live = self.choose_files_to_rewrite();
            self.checkpoints.due.live(live);
        }
    }

    /// Which files the next round leaves; the bytes that the newest bases need of all.
    pub(super) fn choose_files_to_rewrite(&mut self) -> u64 {
        let mut live: BTreeMap<CheckpointFile, u64> = BTreeMap::new();
        let newest = self
            .groups
            .iter()
            .filter_map(|group| group.base_files.first());
        for files in newest {
            let runs = files.runs.iter();
            let runs = runs.map(|(file, bytes)| (CheckpointFile::Run(*file), *bytes));
            let payloads = files.payloads.iter();
            let payloads = payloads.map(|(file, bytes)| (CheckpointFile::Payload(*file), *bytes));
            for (file, bytes) in runs.chain(payloads) {
                *live.entry(file).or_default() += bytes;
            }
        }
        let needed = live.values().sum();
        let (mut runs, mut payloads) = (Sparse::default(), Sparse::default());
        for (file, alive) in live {
            let total = self.checkpoints.files.get(&file).copied();
            let total = total.unwrap_or(alive);
            match file {
                CheckpointFile::Run(number) => runs.note(number, alive, total),
                CheckpointFile::Payload(number) => payloads.note(number, alive, total),
            }
        }
        self.checkpoints.run_tail.alive(runs.alive);
        self.checkpoints.payload_tail.alive(payloads.alive);
        let left = match self.checkpoints.round >= self.checkpoints.rewrites_from {
            true => LeftFiles {
                runs: runs.worth_it(self.disk_full),
                payloads: payloads.worth_it(self.disk_full),
            },
            false => LeftFiles::default(),
        };
        self.checkpoints.rewrite = Arc::new(left);
        needed
    }

    /// Writes a manifest if one is due.
    pub(in crate::shard) fn write_due_manifest(&mut self) {
        let due = self.checkpoints.next_manifest(self.wal.durable_lsn());
        if due.is_some_and(|at| at <= self.now.mono) {
            self.write_manifest();
        }
    }

    /// Writes the manifest: the second anchor of the bases, and a proof of what is durable.
    pub(in crate::shard) fn write_manifest(&mut self) {
        if self.checkpoints.manifest_under_way {
            return;
        }
        let durable = if bugs::on(Bug::ManifestClaimsEarly) {
            self.wal.end_lsn()
        } else {
            self.wal.durable_lsn()
        };
        let checkpoints = &mut self.checkpoints;
        checkpoints.manifest_under_way = true;
        checkpoints.manifest_durable = durable;
        checkpoints.manifest_at = self.now.mono.plus(MANIFEST_EVERY);
        checkpoints.manifest_sequence += 1;
        let manifest = Manifest {
            owner: checkpoints.owner,
            shard: checkpoints.shard,
            wal_set: self.config.identity.wal_set,
            start: checkpoints.start_number.into(),
            sequence: checkpoints.manifest_sequence,
            durable,
            groups: self
                .groups
                .iter()
                .map(|group| manifest_group(&group.bases))
                .collect(),
        };
        self.effects.push(Effect::WriteManifest {
            bytes: manifest.encode().into(),
        });
    }

    /// The manifest is durable.
    pub(in crate::shard) fn on_manifest_written(&mut self) {
        self.checkpoints.manifest_under_way = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_moves_a_part_of_what_lives_in_sparse_files() {
        let of = |files: &[(u64, u64)]| {
            let mut sparse = Sparse::default();
            for (file, alive) in (0..).zip(files) {
                sparse.note(file, alive.0 << 20, alive.1 << 20);
            }
            sparse
        };
        let left = |files| Vec::from_iter(of(files).worth_it(false));
        assert_eq!(left(&[(10, 20), (90, 100)]), [0; 0], "none is sparse");
        assert_eq!(left(&[(9, 20), (900, 901)]), [0; 0], "it is not worth it");
        assert_eq!(left(&[(9, 30), (9, 30), (1, 1)]), [0, 1]);
        // The oldest first: as a shard has them that has a quarter of what there was.
        assert_eq!(left(&[(25, 100); 20]), [0, 1]);
        let many = [(1000, 4000); 20];
        assert_eq!(left(&many), [0, 1], "an eighth of all");
        assert_eq!(Vec::from_iter(of(&many).worth_it(true)), [0]);
        assert_eq!(left(&[(1000, 4000), (1, 4)]), [0], "one at least");
    }
}
