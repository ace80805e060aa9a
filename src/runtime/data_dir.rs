//! The data directory: whose it is, and that nobody else works on it.
//!
//! ```text
//! rrq-data/
//!   lock                      exclusively locked by the process that works here; holds its pid
//!   superblock.0 .1           two copies: identity, shards, start number
//!   ballast                   room kept for a full disk, see `space.rs`
//!   shard-0000/               one for each shard
//!     wal-0001/               the log: <number>.seg, spare-<n>.seg, see `segments.rs`
//!     run-… payload-… manifest-…    checkpoints, see `snapshot_files.rs`
//!   set-<n>/                  the shards' folders after a change of their number, see `sets.rs`
//! ```
//!
//! A new directory gets its shards' folders first, then the superblock, marked as forming until
//! every shard has served for the first time. So a superblock that is missing or forming beside
//! empty folders is a first start that was cut short, and is taken up again; beside a log it is a
//! loss, and refused. The start number is raised, in at least one copy, before anything is written to
//! the log; reading it goes on meanwhile.
//!
//! A node that is to be one of several has a directory without a cluster until the cluster is formed
//! (`peers/forming.rs`); what belongs to none has no log.
//!
//! Nothing is changed in a directory that is refused: so is one with a set of logs that is newer than the
//! superblocks, since what is not in force is removed.

use crate::base::code::Code;
use crate::base::ids::{ClusterId, DiskId, LogIndex, NodeId, ShardId};
use crate::base::limits::{GROUPS_MIN, GROUPS_PER_SHARD, STARTS_END};
use crate::base::members::{ClusterMembers, Member};
use crate::base::report::Report;
use crate::base::units::WallTime;
use crate::runtime::config::{NodeConfig, Shards};
use crate::runtime::lock::{self, LOCK};
use crate::runtime::redistribute::Step;
use crate::runtime::{preflight, sets, space, sys};
use crate::snapshot::superblock::{Superblock, SuperblockError, choose};
use crate::wal::writer::LogIdentity;
use crate::wire::peer::Formation;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const COPIES: [&str; 2] = ["superblock.0", "superblock.1"];

/// An open data directory; the lock is held as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// What is known of this node. The start number is this process's own.
    pub superblock: Superblock,
    /// The copy to write first: the one that is bad or older.
    stale: usize,
    /// One copy is bad or missing.
    lacks_copy: bool,
    /// Nothing is made yet but the lock.
    new: bool,
    /// How many shards the start is for.
    wanted: u16,
    /// Folders of WAL sets that are not in force, with the numbers of those.
    others: Vec<(u32, PathBuf)>,
    /// A superblock names one of them.
    other_is_named: bool,
    lock: File,
}

impl DataDir {
    /// Opens the directory, or makes it, and takes its lock, which says whose it is once
    /// [`Self::begin`]'s is written.
    ///
    /// # Errors
    /// By name, whatever keeps this process from working on it.
    pub fn open(config: &NodeConfig, cores: usize) -> Result<Self, Report> {
        let path = config.data_dir.clone();
        preflight::durable(&path, config.dev)?;
        let found = survey(&path)?;
        let made = found == Found::Nothing && !path.exists();
        if made {
            make(&path).map_err(|error| unusable(&path, "create", &error))?;
        }
        let lock = match lock::take(&path) {
            Ok(lock) => lock,
            Err(report) => {
                if made {
                    // Left as it was found; if it cannot be removed, it is empty and harmless.
                    let _ = fs::remove_dir(&path);
                }
                return Err(report);
            }
        };
        let copies = COPIES.map(|name| read_copy(&path.join(name)));
        let stale = stale_copy(&copies);
        let sets = copies.iter().flatten().map(|copy| copy.wal_set);
        let sets: Vec<u32> = sets.collect();
        let [first, second] = copies;
        let damaged = [&first, &second]
            .into_iter()
            .find_map(|copy| copy.as_ref().err().cloned());
        let superblock = match choose(first, second) {
            Ok(superblock) => superblock,
            Err(SuperblockError::Missing) if found == Found::Nothing => {
                form(config, cores).map_err(|error| unusable(&path, "form", &error))?
            }
            Err(error) => return Err(no_superblock(&path, &error)),
        };
        let new = found == Found::Nothing;
        let mut dir = Self {
            path,
            wanted: superblock.shards,
            superblock,
            stale,
            lacks_copy: !new && damaged.is_some(),
            new,
            others: Vec::new(),
            other_is_named: false,
            lock,
        };
        if !dir.new {
            dir.wanted = fits(&dir.path, &dir.superblock, config)?;
            let others = sets::others(&dir.path, dir.superblock.wal_set);
            dir.others = others.map_err(|error| unusable(&dir.path, "read", &error))?;
            // First: who is told of a missing log puts that back, and only then hears of a newer one.
            dir.check_others()?;
            dir.check_logs()?;
            dir.other_is_named = sets.iter().any(|set| *set != dir.superblock.wal_set);
        }
        if let (Some(error), false) = (damaged, dir.superblock.forming) {
            tracing::warn!(%error, "one superblock is bad and is written anew from the other");
        }
        Ok(dir)
    }

    /// Opens the directory of a node that is not running, and takes its lock; makes nothing.
    ///
    /// # Errors
    /// If there is no node's data, or whatever keeps this process from working on it.
    pub fn open_existing(path: &Path) -> Result<Self, Report> {
        if survey(path)? == Found::Nothing {
            let what = format!("{} holds no data of a node", path.display());
            return Err(Report::error(Code::FileMissing, what)
                .fix("--data-dir with the directory that rrq-node prints when it starts"));
        }
        let config = NodeConfig {
            data_dir: path.to_owned(),
            dev: true,
            ..NodeConfig::default()
        };
        let dir = Self::open(&config, 1)?;
        lock::sign(&dir.lock, path)?;
        Ok(dir)
    }

    /// Raises the start number; a new directory gets its folders first. To be done after all that could
    /// still refuse the start. The log may be read before what this gives is written, not more.
    ///
    /// # Errors
    /// If the directory cannot be written, or no start may follow.
    pub fn begin(&mut self) -> Result<RaisedStart, Report> {
        // The copy that is lost may be that of a later start, whose number names files and was told to others.
        let raise = if self.lacks_copy { 2 } else { 1 };
        let start = self.superblock.start.saturating_add(raise);
        if start >= STARTS_END.into() {
            return Err(no_more_starts(&self.path, self.superblock.start));
        }
        if self.new {
            let Superblock {
                wal_set, shards, ..
            } = self.superblock;
            let made = sets::make(&self.path, wal_set, shards);
            made.map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull => disk_full(&self.path),
                _ => unusable(&self.path, "make folders in", &error),
            })?;
        }
        self.superblock.start = start;
        self.superblock.generation += 1;
        let lock = self.lock.try_clone();
        Ok(RaisedStart {
            lock: lock.map_err(|error| unusable(&self.path.join(LOCK), "open", &error))?,
            path: self.path.clone(),
            copy: self.stale,
            both: self.lacks_copy,
            bytes: self.superblock.encode(),
            probe: self.new,
        })
    }

    /// Whether there was nothing before this start.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// Whether there is something of other WAL sets, which [`Self::drop_other_sets`] removes.
    #[must_use]
    pub fn has_other_sets(&self) -> bool {
        self.other_is_named || !self.others.is_empty()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What names the log of a shard.
    #[must_use]
    pub fn identity(&self, shard: u16) -> LogIdentity {
        LogIdentity {
            cluster: self.superblock.cluster,
            disk: self.superblock.disk,
            shard: ShardId(shard),
            wal_set: self.superblock.wal_set,
        }
    }

    /// How many shards this start is for: if that is not what the superblock says, the groups are to be
    /// redistributed first ([`redistribute`](crate::runtime::redistribute)).
    #[must_use]
    pub fn shards_wanted(&self) -> u16 {
        self.wanted
    }

    /// The folder of a shard.
    #[must_use]
    pub fn shard(&self, shard: u16) -> PathBuf {
        sets::shard(&self.path, self.superblock.wal_set, shard)
    }

    /// The folder of a shard's log.
    #[must_use]
    pub fn wal(&self, shard: u16) -> PathBuf {
        sets::wal(&self.path, self.superblock.wal_set, shard)
    }

    /// Whether no file can be opened, since too many are.
    #[must_use]
    pub fn lacks_descriptors(&self) -> bool {
        let error = File::open(&self.path).err();
        sys::lacks_descriptors(error.and_then(|error| error.raw_os_error()))
    }

    /// Writes both copies anew, after every shard has served: formation is over, and should one
    /// copy rot, the other knows the start number too. Not in the way of the first job.
    ///
    /// # Errors
    /// If a copy cannot be written.
    pub fn settle(&mut self) -> Result<(), Report> {
        self.superblock.forming = false;
        self.superblock.generation += 1;
        self.write_copy(0)?;
        self.write_copy(1)
    }

    /// Puts another WAL set, which is durable, in force. From the first of the two writes on it is; before the
    /// second is done, nothing of the set before may be removed: should the first copy rot, it is in force
    /// again. `step` is told before each.
    ///
    /// # Errors
    /// If a copy cannot be written, or that of `step`; either set may be in force then, and is whole.
    pub fn switch(&mut self, set: u32, shards: u16, step: &mut Step<'_>) -> Result<(), Report> {
        (self.superblock.wal_set, self.superblock.shards) = (set, shards);
        // First the one that this start has not written: of the number of a start there is always a copy.
        for copy in [1 - self.stale, self.stale] {
            step("write a superblock")
                .map_err(|error| unusable(&self.path.join(COPIES[copy]), "write", &error))?;
            self.superblock.generation += 1;
            self.write_copy(copy)?;
        }
        self.other_is_named = false;
        let others = sets::others(&self.path, set);
        self.others = others.map_err(|error| unusable(&self.path, "read", &error))?;
        Ok(())
    }

    /// Removes what belongs to WAL sets that are not in force, once no superblock names them any more.
    /// What cannot be removed only takes room: the next start tries again.
    ///
    /// # Errors
    /// If a superblock cannot be written.
    pub fn drop_other_sets(&mut self, step: &mut Step<'_>) -> Result<(), Report> {
        if std::mem::take(&mut self.other_is_named) {
            self.superblock.generation += 1;
            self.write_copy(0)?;
            self.write_copy(1)?;
        }
        for (_, folder) in std::mem::take(&mut self.others) {
            let removed = step("remove a set").and_then(|()| fs::remove_dir_all(&folder));
            if let Err(error) = removed {
                let folder = folder.display();
                tracing::warn!(%folder, %error, "what is left of another number of shards stays");
            }
        }
        Ok(())
    }

    /// Becomes a member of a cluster.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn join(&mut self, formation: &Formation) -> Result<(), Report> {
        let superblock = &mut self.superblock;
        superblock.cluster = formation.cluster;
        superblock.groups = formation.groups;
        superblock.formed_at = formation.formed_at;
        superblock.founders.clone_from(&formation.founders);
        superblock.members = formation
            .members
            .iter()
            .copied()
            .map(Member::voting)
            .collect();
        superblock.members_as_of = LogIndex(0);
        superblock.generation += 1;
        self.write_copy(0)?;
        self.superblock.generation += 1;
        self.write_copy(1)
    }

    /// The members of the cluster are these now. Nothing is written if they are those that were known.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn set_members(&mut self, known: &ClusterMembers) -> Result<(), Report> {
        if self.superblock.members == known.members {
            return Ok(());
        }
        self.superblock.members.clone_from(&known.members);
        self.superblock.members_as_of = known.as_of;
        self.superblock.generation += 1;
        self.write_copy(0)?;
        self.superblock.generation += 1;
        self.write_copy(1)
    }

    /// Goes on with starts behind this one, which an older image of the directory does not know of.
    ///
    /// # Errors
    /// If a copy cannot be written.
    pub fn raise_start(&mut self, start: u64) -> Result<(), Report> {
        self.superblock.start = self.superblock.start.max(start);
        self.superblock.generation += 1;
        self.write_copy(0)?;
        self.write_copy(1)
    }

    /// Refuses superblocks that are older than a later set of logs, as those of a backup are: what was
    /// acknowledged since may be there alone. What a change leaves that was cut off knows of no start that the
    /// superblock does not: that number was durable first.
    fn check_others(&self) -> Result<(), Report> {
        let Superblock { wal_set, start, .. } = self.superblock;
        for (_, folder) in self.others.iter().filter(|(set, _)| *set > wal_set) {
            let last = sets::last_start(folder);
            let last = last.map_err(|error| unusable(folder, "read", &error))?;
            if last > start {
                let (path, folder) = (self.path.display(), folder.display());
                let what =
                    format!("the superblocks of data directory {path} are older than its logs");
                return Err(Report::error(Code::SuperblockDamaged, what)
                    .location(format!("{folder} is of start {last}, the superblocks of start {start}"))
                    .why("what was acknowledged since may be there alone; nothing was changed")
                    .fix(format!(
                        "put back superblocks from after the change of shards; or, to go on without what came \
                         after the backup, move {folder} away"
                    )));
            }
        }
        Ok(())
    }

    fn check_logs(&self) -> Result<(), Report> {
        let superblock = &self.superblock;
        for shard in 0..superblock.shards {
            let wal = self.wal(shard);
            let names = names(&wal).map_err(|error| missing(&wal, &error.to_string()))?;
            if !superblock.forming && !names.iter().any(|name| is_segment(name)) {
                return Err(missing(
                    &wal.join("*.seg"),
                    "no segment of the log is there",
                ));
            }
        }
        Ok(())
    }

    fn write_copy(&self, copy: usize) -> Result<(), Report> {
        write_copy(&self.path, copy, &self.superblock.encode(), false)
    }
}

/// What a start is to write first: the superblock with its number, and its process into the lock. Both wait
/// for the disk.
#[derive(Debug)]
#[must_use = "nothing of this start may be written before its number is"]
pub struct RaisedStart {
    lock: File,
    path: PathBuf,
    copy: usize,
    /// The other copy, too: it would be older by two starts, and the next might find that alone.
    both: bool,
    bytes: Vec<u8>,
    /// The directory is new: what it cannot do shows itself only now.
    probe: bool,
}

impl RaisedStart {
    /// Writes it; the superblock is durable afterwards.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(self) -> Result<(), Report> {
        write_copy(&self.path, self.copy, &self.bytes, self.probe)?;
        if self.both {
            write_copy(&self.path, 1 - self.copy, &self.bytes, self.probe)?;
        }
        lock::sign(&self.lock, &self.path)
    }
}

fn write_copy(path: &Path, copy: usize, bytes: &[u8], probe: bool) -> Result<(), Report> {
    let name = COPIES[copy];
    let write = || write_durably(path, name, bytes, probe);
    let result = write().or_else(|error| {
        if error.kind() == io::ErrorKind::StorageFull && space::give_up_ballast(path) {
            return write();
        }
        Err(error)
    });
    result.map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => disk_full(path),
        io::ErrorKind::InvalidInput if probe => preflight::no_direct_io(path, &error),
        _ => unusable(&path.join(name), "write", &error),
    })
}

/// What a directory says of itself, nothing touched; `None` if it is new or was never finished.
///
/// # Errors
/// By name, if it cannot be read or holds something else.
pub fn identify(path: &Path) -> Result<Option<Superblock>, Report> {
    if survey(path)? == Found::Nothing {
        return Ok(None);
    }
    let [first, second] = COPIES.map(|name| read_copy(&path.join(name)));
    choose(first, second)
        .map(Some)
        .map_err(|error| no_superblock(path, &error))
}

/// Whether the configuration is one for this directory; how many shards it asks for.
///
/// # Errors
/// If it names another node.
pub fn fits(path: &Path, superblock: &Superblock, config: &NodeConfig) -> Result<u16, Report> {
    let path = path.display();
    if let Some(node) = config.node
        && node != superblock.node
    {
        let what = format!("data directory {path} belongs to node {}", superblock.node);
        return Err(Report::error(Code::WrongIdentity, what)
            .location(format!("this start says --id {node}"))
            .fix(format!("--id {}, or another --data-dir", superblock.node)));
    }
    Ok(preflight::shards(config, Some(superblock.shards)))
}

/// Whether the configured members can be those of the directory's cluster. Nodes that are added need not be
/// listed by those that were there, and a node that stands alone may become the first of a cluster.
///
/// # Errors
/// If none of the other members is listed, or none is although there is a cluster.
pub fn fits_members(
    path: &Path,
    superblock: &Superblock,
    config: &NodeConfig,
) -> Result<(), Report> {
    let path = path.display();
    let is_formed = superblock.cluster != ClusterId::default();
    let list = |nodes: &[NodeId]| {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        nodes.join(", ")
    };
    let ours: Vec<NodeId> = superblock
        .members
        .iter()
        .map(|member| member.voter.node)
        .collect();
    let wanted: Vec<NodeId> = config.members.iter().map(|member| member.node).collect();
    let is_other = |node: &&NodeId| **node != superblock.node;
    // Who lists nobody else is found by the others.
    let is_alone = !ours.iter().any(|node| is_other(&node));
    let mut others = wanted.iter().filter(is_other).peekable();
    let shares = others.peek().is_none() || others.any(|node| ours.contains(node));
    let (what, fix) = match (is_formed, ours.is_empty(), wanted.is_empty()) {
        (true, true, _) | (false, _, false) => return Ok(()),
        (true, false, false) if shares || is_alone => return Ok(()),
        (true, false, _) => (
            format!(
                "data directory {path} belongs to a cluster of nodes {}",
                list(&ours)
            ),
            "--members with these nodes and where they are, some at least, or another --data-dir"
                .to_owned(),
        ),
        (false, ..) => (
            format!("data directory {path} was made for a cluster that is not formed yet"),
            "--members with all its nodes, or another --data-dir".to_owned(),
        ),
    };
    let location = if wanted.is_empty() {
        "this start names no cluster.members".to_owned()
    } else {
        format!("the cluster.members of this start are {}", list(&wanted))
    };
    Err(Report::error(Code::WrongIdentity, what)
        .location(location)
        .fix(fix))
}

/// Writes a small file so that a crash leaves the old one or the new one. `probe` tries the
/// temporary file with O_DIRECT first.
///
/// # Errors
/// What the file system says; the temporary file is gone then.
pub fn write_durably(folder: &Path, name: &str, bytes: &[u8], probe: bool) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        drop(file);
        if probe {
            preflight::try_direct_io(&temporary)?;
        }
        fs::rename(&temporary, folder.join(name))?;
        sync_folder(folder)
    };
    write().inspect_err(|_| {
        // What is left of it is overwritten by the next attempt.
        let _ = fs::remove_file(&temporary);
    })
}

/// Makes the names in a folder durable.
///
/// # Errors
/// What the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The names in a folder.
///
/// # Errors
/// What the file system says.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Whether a file of a log's folder is a segment in use, not a spare.
#[must_use]
pub fn is_segment(name: &str) -> bool {
    segment_number(name).is_some()
}

/// The number of a segment file.
#[must_use]
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name
        .strip_suffix(".seg")
        .filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// What is in a directory, before anything is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Nothing, or what a first start leaves that was cut short.
    Nothing,
    /// A node's data.
    Node,
}

fn survey(path: &Path) -> Result<Found, Report> {
    let names = match names(path) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(unusable(path, "read", &error)),
    };
    if names.iter().any(|name| COPIES.contains(&name.as_str())) {
        return Ok(Found::Node);
    }
    let ours = |name: &str| {
        [LOCK, space::BALLAST, "lost+found"].contains(&name)
            || sets::is_of_a_set(name)
            || COPIES
                .iter()
                .any(|copy| name.strip_suffix(".tmp") == Some(copy))
    };
    if let Some(name) = names.iter().find(|name| !ours(name)) {
        let what = format!("{} holds something else than rrq data", path.display());
        return Err(Report::error(Code::ForeignDirectory, what)
            .location(format!(
                "{} and {} more",
                path.join(name).display(),
                names.len() - 1
            ))
            .why("a data directory belongs to rrq alone; nothing was changed in this one")
            .fix("--data-dir with a directory that is new or empty"));
    }
    let used = names
        .iter()
        .filter(|name| sets::is_of_a_set(name))
        .any(|name| {
            let shard = path.join(name);
            let in_log = |folder: &str| {
                let log = self::names(&shard.join(folder)).unwrap_or_default();
                log.iter().any(|name| is_segment(name))
            };
            self::names(&shard).unwrap_or_default().iter().any(|name| {
                if name.starts_with("wal-") {
                    in_log(name)
                } else {
                    !name.ends_with(".tmp")
                }
            })
        });
    if used {
        return Err(no_superblock(path, &SuperblockError::Missing));
    }
    Ok(Found::Nothing)
}

/// The identity of a new node.
fn form(config: &NodeConfig, cores: usize) -> io::Result<Superblock> {
    let shards = match config.shards {
        Shards::Exactly(count) => count,
        Shards::AsMade | Shards::PerCore => cores.min(64) as u16,
    };
    let groups = (GROUPS_PER_SHARD * usize::from(shards))
        .max(GROUPS_MIN)
        .next_power_of_two();
    let is_alone = config.members.is_empty();
    Ok(Superblock {
        generation: 0,
        node: config.node.unwrap_or(NodeId(1)),
        disk: DiskId(random()?),
        cluster: if is_alone {
            ClusterId(random()?)
        } else {
            ClusterId::default()
        },
        forming: true,
        wal_set: sets::FIRST,
        shards,
        groups: groups as u32,
        start: 0,
        created_by: env!("CARGO_PKG_VERSION").to_owned(),
        formed_at: WallTime(0),
        founders: Vec::new(),
        members: Vec::new(),
        members_as_of: LogIndex(0),
    })
}

/// Makes the directory, for its owner alone: it holds what users sent.
fn make(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// 128 bits for a name that nobody else has.
///
/// # Errors
/// What the system says of its source of random bits.
pub fn random() -> io::Result<[u8; 16]> {
    let mut bits = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bits)?;
    Ok(bits)
}

fn read_copy(path: &Path) -> Result<Superblock, SuperblockError> {
    match fs::read(path) {
        Ok(bytes) => Superblock::decode(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SuperblockError::Missing),
        // Unreadable is as good as empty: the other copy serves, or both are named.
        Err(_) => Err(SuperblockError::Truncated { found: 0 }),
    }
}

/// The copy to overwrite: the one that is bad or older.
fn stale_copy(copies: &[Result<Superblock, SuperblockError>; 2]) -> usize {
    match copies {
        [Ok(first), Ok(second)] => usize::from(second.generation < first.generation),
        [Ok(_), Err(_)] => 1,
        _ => 0,
    }
}

fn no_superblock(path: &Path, error: &SuperblockError) -> Report {
    let shown = path.display();
    match error {
        SuperblockError::TooNew { .. } => Report::error(
            Code::FormatTooNew,
            format!("data directory {shown} was written by a newer version of rrq"),
        )
        .location(format!(
            "{error}; this is rrq {}",
            env!("CARGO_PKG_VERSION")
        ))
        .why("an older version would undo what the newer one did; nothing was changed")
        .fix("run the newer version"),
        SuperblockError::Missing => Report::error(
            Code::FileMissing,
            format!("data directory {shown} holds a log, but neither copy of its superblock"),
        )
        .location(
            COPIES
                .map(|name| path.join(name).display().to_string())
                .join(", "),
        )
        .why("without it nobody knows whose log this is; nothing was changed")
        .fix("put the two files back from a backup"),
        SuperblockError::BothDamaged { first, second } => Report::error(
            Code::SuperblockDamaged,
            format!("both superblocks of data directory {shown} are damaged"),
        )
        .location(format!("{}: {first}\n{}: {second}", COPIES[0], COPIES[1]))
        .why("without one nobody knows whose log this is; nothing was changed")
        .fix("put one of the two files back from a backup"),
        other => Report::error(
            Code::SuperblockDamaged,
            format!("the superblocks of data directory {shown} cannot be trusted"),
        )
        .location(other.to_string())
        .why("nothing that rrq does leads to this; nothing was changed")
        .fix("put one of the two files back from a backup"),
    }
}

/// So often nobody has started a node: another one, or whoever wrote the superblock, has made that up.
fn no_more_starts(path: &Path, start: u64) -> Report {
    let shown = path.display();
    let what = format!("the superblocks of data directory {shown} allow no more starts");
    let last = STARTS_END - 1;
    Report::error(Code::SuperblockDamaged, what)
        .location(format!("they are of start {start}; the last is {last}"))
        .why("files of a start could be named like those of another; no log was changed")
        .fix(
            "put a backup of the whole directory in its place; or, in a cluster, empty it, start it, \
             and rrqctl cluster add the node",
        )
}

fn missing(file: &Path, why: &str) -> Report {
    Report::error(Code::FileMissing, format!("{} is missing", file.display()))
        .location(why.to_owned())
        .why("acknowledged jobs may be in it; nothing was changed")
        .fix("put it back from a backup")
}

/// The directory cannot be used.
#[must_use]
pub fn unusable(path: &Path, verb: &str, error: &io::Error) -> Report {
    Report::error(
        Code::DirectoryUnusable,
        format!("cannot {verb} {}", path.display()),
    )
    .location(error.to_string())
    .fix("a --data-dir that this user may create, read and write")
}

/// The disk is full before anything works.
#[must_use]
pub fn disk_full(path: &Path) -> Report {
    Report::error(
        Code::DiskFullAtStart,
        format!("no room on the disk of {}", path.display()),
    )
    .why("a start needs some MiB for the log; nothing is lost")
    .fix("make room, then start again")
}
