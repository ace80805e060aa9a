//! `rrqctl repair`: what is damaged in the data of a stopped node, and the way on without it.
//!
//! A group whose log or checkpoints are damaged stops alone. Without `--accept-loss` this only
//! shows what is damaged and what would be lost. With it, the log goes on, in segments of its own,
//! with the next life of each damaged group: its newest base that can be read, and behind it the
//! entries that are left. Where no base can be read whole, the newest is taken without the jobs
//! whose pages or bodies are damaged, which are listed. Other groups and all older segments stay as
//! they are; in the new life the older records of the group are void.
//!
//! A repair is done as a whole or not at all, see [`Segments`].
//!
//! A member of a cluster is not repaired here: the others have what it lacks, and a life of its own would
//! cut its groups off from them.

use crate::base::code::Code;
use crate::base::ids::{GroupId, Voter};
use crate::base::prng::mix;
use crate::base::report::Report;
use crate::cli::new_life::{Files, NewLife, append, from_log, from_manifest, from_remains};
use crate::cli::offline::ShardFiles;
use crate::cli::salvage::{self, Salvage};
use crate::cli::survivors::Survivors;
use crate::cli::terminal::{count, harmless, say, say_json};
use crate::cli::{Output, offline};
use crate::runtime::data_dir::DataDir;
use crate::runtime::repair::Segments;
use crate::snapshot::layout::file_number;
use crate::snapshot::manifest::Manifest;
use crate::wal::recovery::{Damage, GroupLog, GroupLogStatus, Recovered};
use crate::wal::writer::LogWriter;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) const EXAMPLES: &str = "\
Examples (stop the node first):
  rrqctl repair --data-dir ./rrq-data                 show what is damaged
  rrqctl repair --data-dir ./rrq-data --accept-loss   go on without it

Keep a copy of the directory before you accept a loss.";

#[derive(clap::Args, Debug)]
pub(super) struct RepairArgs {
    /// The data directory of the node.
    #[arg(
        long,
        env = "RRQ_NODE__DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    data_dir: PathBuf,
    /// Give up what is shown as lost, so that the damaged groups serve again.
    #[arg(long)]
    accept_loss: bool,
}

pub(super) fn run(args: &RepairArgs, output: Output) -> Result<(), Report> {
    let mut dir = offline::open(&args.data_dir)?;
    let is_member = !dir.superblock.members.is_empty();
    if is_member && args.accept_loss {
        let what = format!(
            "data directory {} is of a member of a cluster",
            args.data_dir.display()
        );
        return Err(Report::error(Code::WrongIdentity, what)
            .why("the other members have what is missing here; nothing was changed")
            .fix("start the node: the others put its groups right"));
    }
    let mut shards = Vec::new();
    for shard in 0..dir.superblock.shards {
        shards.push(Shard::read(&dir, shard, args.accept_loss)?);
    }
    let done = args.accept_loss;
    if done {
        // A checkpoint that is written needs a file that no start has written before.
        if shards.iter().any(Shard::is_salvaged) {
            dir.begin()?.write()?;
        }
        for shard in &mut shards {
            shard.repair(&dir)?;
        }
    }
    match output {
        Output::Table => say(as_text(&shards, done).trim_end())?,
        Output::Json => {
            let shards: Vec<Value> = shards.iter().map(Shard::as_json).collect();
            say_json(&json!({"repaired": done, "shards": shards}))?;
        }
    }
    finish(args, &shards, is_member, done)
}

/// The exit status: damage that is still there is an error.
fn finish(args: &RepairArgs, shards: &[Shard], is_member: bool, done: bool) -> Result<(), Report> {
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
    if is_member {
        return Err(Report::error(Code::LogDamaged, what)
            .why("the other members of the cluster have what is missing here")
            .fix("start the node: the others put its groups right"));
    }
    Err(Report::error(Code::LogDamaged, what)
        .why("acknowledged jobs may be missing, and rrq does not pass over that by itself")
        .fix(format!(
            "put the files back from a backup, or give up what is lost:\n\
             rrqctl repair --data-dir {dir} --accept-loss"
        )))
}

/// What became of a shard's files.
struct Shard {
    files: ShardFiles,
    log: Recovered,
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

impl Shard {
    fn read(dir: &DataDir, shard: u16, accept_loss: bool) -> Result<Self, Report> {
        let superblock = &dir.superblock;
        let files = ShardFiles::new(dir, shard);
        if accept_loss {
            Segments::take_up(&files.wal)?;
        }
        let manifest = files.manifest()?;
        let mut this = Self {
            log: files.log()?,
            files,
            groups: Vec::new(),
            passed_over: Vec::new(),
        };
        let voter = Voter {
            node: superblock.node,
            disk: superblock.disk,
        };
        let step = usize::from(superblock.shards);
        for id in (u32::from(shard)..superblock.groups).step_by(step) {
            let id = GroupId(u16::try_from(id).unwrap_or(u16::MAX));
            let group = this.log.groups.get(&id).cloned();
            this.examine(id, group, manifest.as_ref(), voter);
        }
        Ok(this)
    }

    /// Judges one group.
    fn examine(
        &mut self,
        id: GroupId,
        log: Option<GroupLog>,
        manifest: Option<&Manifest>,
        voter: Voter,
    ) {
        let shard = &self.files;
        let files = &Files { shard, voter };
        let Some(log) = log else {
            // A group that is in no whole log is yet to be formed.
            if !self.log.damage.is_empty() {
                let why = "none of its records is left".to_owned();
                let life = from_manifest(id, manifest, None, files);
                self.broken(id, why, life);
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
            (None, None) => {
                let life = from_remains(log, files);
                self.broken(id, faults.join("; "), life);
            }
            (Some(why), Some((place, state))) => {
                let life = from_log(log, place, state);
                self.broken(id, why, Some(life));
            }
            (Some(why), None) => {
                let life = match log.bases.is_empty() {
                    true => from_manifest(id, manifest, Some(log.incarnation), files),
                    false => from_remains(log, files),
                };
                let why = std::iter::once(why)
                    .chain(faults)
                    .collect::<Vec<_>>()
                    .join("; ");
                self.broken(id, why, life);
            }
        }
    }

    fn broken(&mut self, id: GroupId, why: String, life: Option<NewLife>) {
        let remedy = life.map_or(Remedy::None, |life| Remedy::From(Box::new(life)));
        self.groups.push(Broken { id, why, remedy });
    }

    /// Whether a checkpoint must be written for a group.
    fn is_salvaged(&self) -> bool {
        let mut groups = self.groups.iter();
        groups.any(|group| matches!(&group.remedy, Remedy::From(life) if life.salvage.is_some()))
    }

    /// Writes the next life of each damaged group.
    fn repair(&mut self, dir: &DataDir) -> Result<(), Report> {
        let mut salvaged = Vec::new();
        for group in &mut self.groups {
            if let Remedy::From(life) = &mut group.remedy
                && let NewLife {
                    bases,
                    salvage: Some(salvage),
                    ..
                } = &mut **life
            {
                let base = bases.last_mut().expect("a life has a base");
                salvaged.push((&*salvage, base));
            }
        }
        if !salvaged.is_empty() {
            let shard = self.files.identity.shard;
            let file = file_number(dir.superblock.start, shard, 1);
            let file = file.expect("no start has a number from STARTS_END on");
            salvage::write(&self.files, file, salvaged)?;
        }
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
        let lsn = start.lsn;
        let mut writer = LogWriter::new(self.files.identity, start, seed);
        for (id, life) in lives() {
            append(&mut writer, id, life, lsn);
        }
        Segments::new(&self.files.wal, dir.path()).write(&mut writer)
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
                "lost": life.and_then(|life| life.salvage.as_ref()).map(lost_json),
            })
        });
        json!({
            "shard": self.files.number(),
            "damage": damage.collect::<Vec<_>>(),
            "groups": groups.collect::<Vec<_>>(),
            "passed_over": self.passed_over,
        })
    }
}

fn as_text(shards: &[Shard], done: bool) -> String {
    let mut out = String::new();
    for shard in shards {
        let number = shard.files.number();
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
            if let Some(salvage) = &life.salvage {
                out += &lost_text(salvage);
            }
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

fn lost_json(salvage: &Salvage) -> Value {
    let lost = &salvage.lost;
    let jobs = lost.jobs.iter();
    let jobs = jobs.map(|(first, last)| json!([first.to_string(), last.to_string()]));
    json!({
        "jobs": jobs.collect::<Vec<_>>(),
        "queues": lost.queues.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "damaged": lost.pages.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn lost_text(salvage: &Salvage) -> String {
    let lost = &salvage.lost;
    let mut out = String::new();
    for page in &lost.pages {
        out += &format!("  damaged: {page}\n");
    }
    for queue in &lost.queues {
        out += &format!("  lost: queue {queue} with all its jobs\n");
    }
    for (first, last) in &lost.jobs {
        out += &match first == last {
            true => format!("  lost: job {first}\n"),
            false => format!("  lost: what was left of the jobs {first} to {last}\n"),
        };
    }
    out
}
