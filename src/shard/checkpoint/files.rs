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
/// The manifest is written at least this often while the log grows.
pub(super) const MANIFEST_EVERY: Duration = Duration::from_secs(10);

/// Files of one kind of which less than half is alive.
#[derive(Default)]
struct Sparse {
    files: BTreeSet<u64>,
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
            self.files.insert(file);
        }
    }

    /// Those, if moving what lives in them is worth the search for it among all that is alive.
    fn worth_it(self) -> BTreeSet<u64> {
        let is_much = self.dead >= DEAD_BYTES_MAX.max(self.alive / 4);
        if is_much || self.files.len() > SPARSE_FILES_MAX {
            self.files
        } else {
            BTreeSet::new()
        }
    }
}

impl ShardEngine {
    /// Whether no base in force names the file.
    pub(super) fn is_of_round(&self, file: CheckpointFile) -> bool {
        let mut kept = self.groups.iter().flat_map(|group| &group.base_files);
        !kept.any(|files| files.all().any(|kept| kept == file))
    }

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
        let left = match self.checkpoints.round >= self.checkpoints.rewrites_from {
            true => LeftFiles {
                runs: runs.worth_it(),
                payloads: payloads.worth_it(),
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
