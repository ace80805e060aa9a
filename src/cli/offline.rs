//! The files of a stopped node, for the commands that read them: under the directory's lock, or not
//! at all.

use crate::base::code::Code;
use crate::base::entry::{Entry, EntryKind, version_of};
use crate::base::ids::{GroupId, JobId, ShardId};
use crate::base::report::Report;
use crate::queue::view::{ApplyAt, BodyLocation, PageKind};
use crate::queue::{JobQueue, stored_pages};
use crate::runtime::data_dir::DataDir;
use crate::runtime::{recover, segments, snapshot_files};
use crate::shard::bases::page_key;
use crate::snapshot::layout::{Owner, RootRef};
use crate::snapshot::load::{Directory, LoadedGroup, read_directory, read_group};
use crate::snapshot::manifest::Manifest;
use crate::wal::record::BaseRecord;
use crate::wal::recovery::Recovered;
use crate::wal::writer::LogIdentity;
use crate::wire::command::decode_command;
use std::path::{Path, PathBuf};

/// Which directory, and of it which shard.
#[derive(clap::Args, Debug)]
pub(super) struct Where {
    /// The data directory of the stopped node [default: ./rrq-data].
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The same, as other commands take it [default: ./rrq-data].
    #[arg(
        long,
        env = "RRQ_NODE__DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    data_dir: Option<PathBuf>,
    /// Only this shard [default: all].
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
}

impl Where {
    /// Takes the directory and names the files of its shards.
    pub(super) fn open(&self) -> Result<(DataDir, Vec<ShardFiles>), Report> {
        let named = self.dir.as_deref().or(self.data_dir.as_deref());
        let dir = open(named.unwrap_or(Path::new("./rrq-data")))?;
        let count = dir.superblock.shards;
        if let Some(shard) = self.shard.filter(|shard| *shard >= count) {
            let what = format!("there is no shard {shard}");
            return Err(Report::error(Code::BadArgument, what)
                .location(format!("--shard; the directory has {count}, from 0 on"))
                .fix(format!("--shard {}", count - 1)));
        }
        let wanted = |shard: &u16| self.shard.is_none_or(|only| only == *shard);
        let shards = (0..count)
            .filter(wanted)
            .map(|shard| ShardFiles::new(&dir, shard));
        let shards = shards.collect();
        Ok((dir, shards))
    }
}

/// Takes the directory of a stopped node.
pub(super) fn open(path: &Path) -> Result<DataDir, Report> {
    DataDir::open_existing(path).map_err(|report| match report.code {
        Code::DirectoryLocked => report
            .why("a running node may write what this reads")
            .fix("stop that node, then the same command again"),
        _ => report,
    })
}

/// The files of a shard.
#[derive(Debug)]
pub(super) struct ShardFiles {
    pub(super) identity: LogIdentity,
    pub(super) owner: Owner,
    /// Its checkpoints.
    pub(super) folder: PathBuf,
    /// Its log.
    pub(super) wal: PathBuf,
}

impl ShardFiles {
    pub(super) fn new(dir: &DataDir, shard: u16) -> Self {
        let superblock = &dir.superblock;
        Self {
            identity: LogIdentity {
                cluster: superblock.cluster,
                disk: superblock.disk,
                shard: ShardId(shard),
                wal_set: superblock.wal_set,
            },
            owner: Owner {
                cluster: superblock.cluster,
                disk: superblock.disk,
            },
            folder: dir.shard(shard),
            wal: dir.wal(shard),
        }
    }

    pub(super) fn number(&self) -> u16 {
        self.identity.shard.0
    }

    /// The segments of its log, by number.
    pub(super) fn segments(&self) -> Result<Vec<(u64, PathBuf)>, Report> {
        segments::list(&self.wal)
    }

    /// Its log, as a start would take it; changes nothing.
    pub(super) fn log(&self) -> Result<Recovered, Report> {
        let segments = self.segments()?;
        recover::read_log(&self.folder, self.identity, self.owner, &segments)
    }

    /// Its newest manifest that is intact.
    pub(super) fn manifest(&self) -> Result<Option<Manifest>, Report> {
        recover::newest_manifest(&self.folder, self.identity, self.owner)
    }

    /// A group's state at a base; `None` for the empty state of a group that never had a checkpoint.
    pub(super) fn state(&self, base: &BaseRecord) -> Result<Option<LoadedGroup>, String> {
        let Some(root) = root_of(base) else {
            return Ok(None);
        };
        let mut read = snapshot_files::reader(&self.folder);
        let group = read_group(&self.owner, &root, &mut read).map_err(|error| error.to_string())?;
        Ok(Some(group))
    }

    /// What the root of a base names.
    pub(super) fn directory(&self, base: &BaseRecord) -> Result<Option<Directory>, String> {
        let Some(root) = root_of(base) else {
            return Ok(None);
        };
        let mut read = snapshot_files::reader(&self.folder);
        let directory = read_directory(&self.owner, &root, &mut read);
        Ok(Some(directory.map_err(|error| error.to_string())?))
    }
}

/// Where the root of a base lies.
pub(super) fn root_of(base: &BaseRecord) -> Option<RootRef> {
    base.root.map(|root| RootRef {
        file: root.file,
        offset: root.offset,
        len: root.len,
        hash: base.root_hash,
    })
}

/// The job machine of a group at a base.
pub(super) fn machine(base: &BaseRecord, state: Option<LoadedGroup>) -> Result<JobQueue, String> {
    let Some(state) = state else {
        let mut machine = JobQueue::new(base.group, base.wall_offset_ms);
        machine.raise_version(base.machine_version);
        return Ok(machine);
    };
    let mut pages = Vec::with_capacity(state.pages.len());
    for (name, bytes) in state.pages {
        let key = page_key(&name).ok_or_else(|| format!("page {name} has an unknown name"))?;
        pages.push((key, bytes));
    }
    let bodies = state.bodies;
    let mut find = |job: JobId| {
        let at = bodies.binary_search_by_key(&job, |body| body.job).ok()?;
        let place = bodies[at].place;
        let (file, offset, len) = (place.file, place.offset, place.len);
        Some((bodies[at].bytes.clone(), BodyLocation { file, offset, len }))
    };
    let mut machine = JobQueue::absent(base.group);
    machine
        .load(&stored_pages(pages), &mut find)
        .map_err(|error| error.to_string())?;
    Ok(machine)
}

/// Applies the entries above a base, as a start does; the first that cannot be is named.
pub(super) fn apply(
    machine: &mut JobQueue,
    base: &BaseRecord,
    entries: &[Entry],
) -> Result<(), String> {
    for entry in entries.iter().filter(|entry| entry.index > base.index) {
        let at = ApplyAt {
            index: entry.index,
            time: entry.time,
        };
        match entry.kind {
            EntryKind::Data => {
                let command = decode_command(&entry.payload, entry.machine_version)
                    .map_err(|error| format!("entry {}: {error}", entry.index))?;
                machine.apply(at, &command);
            }
            EntryKind::Version => {
                let version = version_of(&entry.payload)
                    .ok_or_else(|| format!("entry {} names no version", entry.index))?;
                machine.observe_time(entry.time);
                machine.raise_version(version);
            }
            _ => machine.observe_time(entry.time),
        }
    }
    Ok(())
}

/// The word for a kind of page.
pub(super) fn page_kind(kind: u8) -> &'static str {
    match PageKind::from_u8(kind) {
        Some(PageKind::Group) => "group",
        Some(PageKind::Queue) => "queue",
        Some(PageKind::Partition) => "partition",
        Some(PageKind::Leaf) => "leaf",
        Some(PageKind::Reasons) => "reasons",
        Some(PageKind::Keys) => "keys",
        Some(PageKind::Session) => "session",
        Some(PageKind::Finished) => "finished",
        None => "unknown",
    }
}

/// Parses the number of a group.
pub(super) fn group(text: &str) -> Result<GroupId, String> {
    text.parse()
        .map(GroupId)
        .map_err(|_| "a number from 0 to 65535".to_owned())
}
