//! `rrqctl repair`: what is damaged in the data of a stopped node, and the way on without it.
//!
//! A group whose log or checkpoints are damaged stops alone. Without `--accept-loss` this only
//! shows what is damaged and what would be lost. With it, the log goes on, in segments of its own,
//! with the next life of each damaged group: its newest base that can be read, and behind it the
//! entries that are left. Other groups and all older segments stay as they are; in the new life the
//! older records of the group are void.
//!
//! A repair is done as a whole or not at all, see [`Segments`].

use crate::base::checksum::Hash128;
use crate::base::code::Code;
use crate::base::entry::Entry;
use crate::base::ids::{DiskId, GroupId, Incarnation, LogIndex, NodeId, ShardId, Term};
use crate::base::prng::mix;
use crate::base::report::Report;
use crate::base::units::{GroupTime, Lsn};
use crate::cli::survivors::{self, Survivors};
use crate::cli::terminal::{count, harmless, say, say_json};
use crate::cli::{Output, offline};
use crate::runtime::data_dir::DataDir;
use crate::runtime::repair::Segments;
use crate::runtime::{recover, segments, snapshot_files};
use crate::snapshot::layout::{Owner, RootRef};
use crate::snapshot::load::{LoadedGroup, read_group};
use crate::snapshot::manifest::{Manifest, ManifestBase};
use crate::wal::record::{BaseRecord, HardState, Record, RootLocation};
use crate::wal::recovery::{Damage, GroupLog, GroupLogStatus, Recovered};
use crate::wal::writer::{LogIdentity, LogWriter};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) const EXAMPLES: &str = "\
Examples (stop the node first):
  rrqctl repair --data-dir ./rrq-data                 show what is damaged
  rrqctl repair --data-dir ./rrq-data --accept-loss   go on without it

Keep a copy of the directory before you accept a loss.";

#[derive(clap::Args, Debug)]
pub(super) struct RepairArgs {
    /// The data directory of the node.
    #[arg(long, env = "RRQ_DATA_DIR", hide_env_values = true, value_name = "DIR")]
    data_dir: PathBuf,
    /// Give up what is shown as lost, so that the damaged groups serve again.
    #[arg(long)]
    accept_loss: bool,
}

pub(super) fn run(args: &RepairArgs, output: Output) -> Result<(), Report> {
    let dir = offline::open(&args.data_dir)?;
    let mut shards = Vec::new();
    for shard in 0..dir.superblock.shards {
        shards.push(Shard::read(&dir, shard, args.accept_loss)?);
    }
    let done = if args.accept_loss {
        for shard in &shards {
            shard.repair(&dir)?;
        }
        true
    } else {
        false
    };
    match output {
        Output::Table => say(as_text(&shards, done).trim_end())?,
        Output::Json => {
            let shards: Vec<Value> = shards.iter().map(Shard::as_json).collect();
            say_json(&json!({"repaired": done, "shards": shards}))?;
        }
    }
    finish(args, &shards, done)
}

/// The exit status: damage that is still there is an error.
fn finish(args: &RepairArgs, shards: &[Shard], done: bool) -> Result<(), Report> {
    let dir = args.data_dir.display();
    let all = || shards.iter().flat_map(|shard| &shard.groups);
    if let Some(group) = all().find(|group| matches!(group.remedy, Remedy::None)) {
        let what = format!("no checkpoint of group {} can be read", group.id);
        return Err(Report::error(Code::CheckpointDamaged, what)
            .location(harmless(group.why.as_bytes()))
            .why(
                "there is nothing that it could go on from; the other groups are not touched by it",
            )
            .fix(format!("put the files of {dir} back from a backup")));
    }
    if done || all().next().is_none() {
        return Ok(());
    }
    let groups = count(all().count() as u64, "group");
    let what = format!("{groups} of data directory {dir} cannot serve; nothing was changed");
    Err(Report::error(Code::LogDamaged, what)
        .why("acknowledged jobs may be missing, and rrq does not pass over that by itself")
        .fix(format!(
            "put the files back from a backup, or give up what is lost:\n\
             rrqctl repair --data-dir {dir} --accept-loss"
        )))
}

/// What became of a shard's files.
struct Shard {
    identity: LogIdentity,
    log: Recovered,
    wal: PathBuf,
    /// The groups that cannot serve.
    groups: Vec<Broken>,
    /// A damaged checkpoint in front of an intact one: the node passes over it.
    passed_over: Vec<String>,
}

/// A group that cannot serve.
struct Broken {
    id: GroupId,
    why: String,
    remedy: Remedy,
}

/// How a group can go on.
enum Remedy {
    /// From this base.
    From(Box<NewLife>),
    /// Not at all.
    None,
}

/// What a group goes on with.
struct NewLife {
    /// Its bases, oldest first, one or two; the last is that which was read.
    bases: Vec<BaseRecord>,
    /// The entries above the first base.
    entries: Vec<Entry>,
    hard: HardState,
    /// What is left in it, if that can be told.
    survivors: Option<Survivors>,
}

impl NewLife {
    /// The last entry that is kept.
    fn last(&self) -> LogIndex {
        let base = self.bases.last().map_or(LogIndex(0), |base| base.index);
        self.entries
            .last()
            .map_or(base, |entry| entry.index.max(base))
    }
}

impl Shard {
    fn read(dir: &DataDir, shard: u16, accept_loss: bool) -> Result<Self, Report> {
        let superblock = &dir.superblock;
        let identity = LogIdentity {
            cluster: superblock.cluster,
            disk: superblock.disk,
            shard: ShardId(shard),
            wal_set: superblock.wal_set,
        };
        let owner = Owner {
            cluster: superblock.cluster,
            disk: superblock.disk,
        };
        let (folder, wal) = (dir.shard(shard), dir.wal(shard));
        if accept_loss {
            Segments::take_up(&wal)?;
        }
        let found = segments::list(&wal)?;
        let log = recover::read_log(&folder, identity, owner, &found)?;
        let manifest = recover::newest_manifest(&folder, identity, owner)?;
        let mut this = Self {
            identity,
            log,
            wal,
            groups: Vec::new(),
            passed_over: Vec::new(),
        };
        let voter = (superblock.node, superblock.disk);
        let files = Files {
            folder,
            owner,
            voter,
        };
        let step = usize::from(superblock.shards);
        for id in (u32::from(shard)..superblock.groups).step_by(step) {
            let id = GroupId(u16::try_from(id).unwrap_or(u16::MAX));
            let group = this.log.groups.get(&id).cloned();
            this.examine(id, group, manifest.as_ref(), &files);
        }
        Ok(this)
    }

    /// Judges one group.
    fn examine(
        &mut self,
        id: GroupId,
        log: Option<GroupLog>,
        manifest: Option<&Manifest>,
        files: &Files,
    ) {
        let Some(log) = log else {
            // A group that is in no whole log is yet to be formed.
            if !self.log.damage.is_empty() {
                let why = "none of its records is left".to_owned();
                self.broken(id, why, from_manifest(id, manifest, None, files));
            }
            return;
        };
        let why = match &log.status {
            GroupLogStatus::Intact => None,
            GroupLogStatus::Damaged { what } => Some(what.clone()),
            GroupLogStatus::Recovering { since } => Some(format!(
                "an earlier start found that entries from {since} on may be missing"
            )),
        };
        let (read, faults) = files.newest_readable(&log.bases);
        match (why, read) {
            (None, Some((0, _))) => {}
            (None, Some(_)) => self.passed_over.push(format!(
                "group {id}: its newest checkpoint is damaged, the one before is used: {}",
                faults.join("; ")
            )),
            (None, None) => self.broken(id, faults.join("; "), None),
            (Some(why), Some((place, state))) => {
                let life = from_log(log, place, state);
                self.broken(id, why, Some(life));
            }
            (Some(why), None) => {
                let life = log
                    .bases
                    .is_empty()
                    .then(|| from_manifest(id, manifest, Some(log.incarnation), files));
                let why = std::iter::once(why)
                    .chain(faults)
                    .collect::<Vec<_>>()
                    .join("; ");
                self.broken(id, why, life.flatten());
            }
        }
    }

    fn broken(&mut self, id: GroupId, why: String, life: Option<NewLife>) {
        let remedy = life.map_or(Remedy::None, |life| Remedy::From(Box::new(life)));
        self.groups.push(Broken { id, why, remedy });
    }

    /// Writes the next life of each damaged group.
    fn repair(&self, dir: &DataDir) -> Result<(), Report> {
        let lives = || {
            self.groups.iter().filter_map(|group| match &group.remedy {
                Remedy::From(life) => Some((group.id, life)),
                Remedy::None => None,
            })
        };
        if lives().next().is_none() {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_nanos() as u64);
        let seed = mix(now ^ u64::from(std::process::id()));
        let start = self.log.start.clone();
        let (first, lsn) = (start.segment, start.lsn);
        let mut writer = LogWriter::new(self.identity, start, seed);
        for (id, life) in lives() {
            append(&mut writer, id, life, lsn);
        }
        Segments::new(&self.wal, dir.path(), first).write(&mut writer)
    }

    fn as_json(&self) -> Value {
        let damage = self.log.damage.iter().map(|damage| {
            json!({"segment": damage.segment, "offset": damage.offset, "what": damage.what})
        });
        let groups = self.groups.iter().map(|group| {
            let life = match &group.remedy {
                Remedy::From(life) => Some(life),
                Remedy::None => None,
            };
            json!({
                "group": group.id.0,
                "why": group.why,
                "kept_through_entry": life.map(|life| life.last().0),
                "queues": life
                    .and_then(|life| life.survivors.as_ref())
                    .map(Survivors::as_json),
            })
        });
        json!({
            "shard": self.identity.shard.0,
            "damage": damage.collect::<Vec<_>>(),
            "groups": groups.collect::<Vec<_>>(),
            "passed_over": self.passed_over,
        })
    }
}

/// Everything that makes up a new life, behind the end of the log.
fn append(writer: &mut LogWriter, group: GroupId, life: &NewLife, lsn: Lsn) {
    let incarnation = life
        .bases
        .first()
        .map_or(Incarnation(1), |base| base.incarnation);
    let mut bases = life.bases.iter().map(|base| BaseRecord {
        log_start_lsn: lsn,
        ..base.clone()
    });
    writer.append(Record::Base(bases.next().expect("a life has a base")));
    writer.append(Record::HardState {
        group,
        incarnation,
        state: life.hard,
    });
    let mut next = bases.next();
    for entry in &life.entries {
        if let Some(base) = next.take_if(|base| base.index < entry.index) {
            writer.append(Record::Base(base));
        }
        writer.append(Record::Entry {
            group,
            incarnation,
            entry: entry.clone().sealed(group, incarnation),
        });
    }
    if let Some(base) = next {
        writer.append(Record::Base(base));
    }
}

/// The next life of a group by its own log, from the base at `place`.
fn from_log(log: GroupLog, place: usize, state: Option<LoadedGroup>) -> NewLife {
    let incarnation = Incarnation(log.incarnation.0 + 1);
    let mut bases: Vec<BaseRecord> = log.bases[place..].to_vec();
    for base in &mut bases {
        base.incarnation = incarnation;
    }
    bases.reverse();
    let newest = bases.last().expect("the base at `place` is one");
    let survivors = survivors::count(newest, state, &log.entries);
    let mut life = NewLife {
        survivors,
        bases,
        entries: log.entries,
        hard: log.hard,
    };
    let base = life.bases.last().map_or(LogIndex(0), |base| base.index);
    life.hard.commit = life.hard.commit.clamp(base, life.last());
    life
}

/// The next life of a group whose log holds no base: by the manifest, or from nothing.
fn from_manifest(
    id: GroupId,
    manifest: Option<&Manifest>,
    life: Option<Incarnation>,
    files: &Files,
) -> Option<NewLife> {
    let known = manifest.and_then(|manifest| {
        let mut groups = manifest.groups.iter();
        groups.find(|group| group.newest.meta.group == id)
    });
    let known_life = known.map(|group| group.newest.meta.incarnation);
    let life = life.max(known_life).unwrap_or(Incarnation(1));
    let bases: Vec<BaseRecord> = match known {
        Some(group) => {
            let previous = group.previous.as_ref();
            std::iter::once(&group.newest)
                .chain(previous)
                .map(base_of)
                .collect()
        }
        None => vec![formation(id, files.voter)],
    };
    let (place, state) = files.newest_readable(&bases).0?;
    let base = &bases[place];
    let log = GroupLog {
        incarnation: life,
        hard: HardState {
            term: base.term,
            vote: None,
            commit: base.index,
        },
        bases: vec![base.clone()],
        entries: Vec::new(),
        status: GroupLogStatus::Intact,
    };
    Some(from_log(log, 0, state))
}

fn base_of(base: &ManifestBase) -> BaseRecord {
    let meta = &base.meta;
    BaseRecord {
        group: meta.group,
        incarnation: meta.incarnation,
        index: meta.index,
        term: meta.term,
        time: meta.time,
        root_hash: base.root.map_or_else(Hash128::default, |root| root.hash),
        root: base.root.map(|root| RootLocation {
            file: root.file,
            offset: root.offset,
            len: root.len,
        }),
        log_start_lsn: base.log_start,
        machine_version: meta.machine_version,
        wall_offset_ms: meta.wall_offset_ms,
        voters: meta
            .voters
            .iter()
            .map(|voter| (voter.node, voter.disk))
            .collect(),
    }
}

/// A group from nothing, with this node as its only voter.
fn formation(group: GroupId, voter: (NodeId, DiskId)) -> BaseRecord {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_millis());
    BaseRecord {
        group,
        incarnation: Incarnation(1),
        index: LogIndex(0),
        term: Term(0),
        time: GroupTime(0),
        root_hash: Hash128::default(),
        root: None,
        log_start_lsn: Lsn(0),
        machine_version: 1,
        wall_offset_ms: i64::try_from(now).unwrap_or(i64::MAX),
        voters: vec![voter],
    }
}

/// The checkpoint files of a shard.
struct Files {
    folder: PathBuf,
    owner: Owner,
    /// This node, the voter of a group from nothing.
    voter: (NodeId, DiskId),
}

/// The place of a base, and its state if it is not empty.
type Readable = (usize, Option<LoadedGroup>);

impl Files {
    /// The first of `bases` whose state can be read, and why those before it cannot.
    fn newest_readable(&self, bases: &[BaseRecord]) -> (Option<Readable>, Vec<String>) {
        let mut faults = Vec::new();
        for (place, base) in bases.iter().enumerate() {
            let Some(root) = base.root else {
                return (Some((place, None)), faults);
            };
            let root = RootRef {
                file: root.file,
                offset: root.offset,
                len: root.len,
                hash: base.root_hash,
            };
            match read_root(&self.folder, &self.owner, &root) {
                Ok(state) => return (Some((place, Some(state))), faults),
                Err(fault) => faults.push(fault),
            }
        }
        (None, faults)
    }
}

fn read_root(folder: &Path, owner: &Owner, root: &RootRef) -> Result<LoadedGroup, String> {
    let mut read = snapshot_files::reader(folder);
    read_group(owner, root, &mut read).map_err(|error| error.to_string())
}

fn as_text(shards: &[Shard], done: bool) -> String {
    let mut out = String::new();
    for shard in shards {
        let number = shard.identity.shard;
        for Damage {
            segment,
            offset,
            what,
        } in &shard.log.damage
        {
            out += &format!("shard {number}, segment {segment:016x}.seg, byte {offset}: {what}\n");
        }
        for line in &shard.passed_over {
            out += &format!("shard {number}, {line}\n");
        }
        for group in &shard.groups {
            out += &format!(
                "group {} of shard {number} cannot serve: {}\n",
                group.id, group.why
            );
            let Remedy::From(life) = &group.remedy else {
                out += "  nothing is left that it could go on from\n";
                continue;
            };
            let last = life.last();
            out += &match done {
                true => format!("  it goes on behind entry {last}; later ones are given up\n"),
                false => format!("  kept: entries up to {last}; lost: all that came after it\n"),
            };
            if let Some(survivors) = &life.survivors {
                out += &survivors.as_text();
            }
        }
    }
    let groups = || shards.iter().flat_map(|shard| &shard.groups);
    let repaired = groups().any(|group| matches!(group.remedy, Remedy::From(_)));
    let hurt = |shard: &Shard| !(shard.log.damage.is_empty() && shard.passed_over.is_empty());
    match (groups().next(), shards.iter().any(hurt)) {
        (None, false) => out + "no damage was found\n",
        (None, true) => out + "no group lost anything by this: a start serves all of them\n",
        (Some(_), _) if done && repaired => out + "done; start the node again\n",
        (Some(_), _) => out,
    }
}
