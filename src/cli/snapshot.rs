//! `rrqctl snapshot inspect` and `rrqctl snapshot verify`: the checkpoints of a stopped node. Both
//! change nothing.

use crate::base::code::Code;
use crate::base::ids::GroupId;
use crate::base::report::Report;
use crate::cli::Output;
use crate::cli::offline::{self, ShardFiles, Where, page_kind};
use crate::cli::terminal::{Progress, bytes, count, print, say_json, table};
use crate::queue::check::check;
use crate::runtime::data_dir::unusable;
use crate::runtime::snapshot_files::file_sizes;
use crate::snapshot::load::Directory;
use crate::wal::record::BaseRecord;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(super) const EXAMPLES: &str = "\
Examples (stop the node first):
  rrqctl snapshot inspect ./rrq-data
  rrqctl snapshot verify ./rrq-data";

const INSPECT_EXAMPLES: &str = "\
Examples (stop the node first):
  rrqctl snapshot inspect
  rrqctl snapshot inspect --group 7 --output json

A group has one or two bases: checkpoints that it can start from, with the log
behind them. A group that never had a checkpoint starts from nothing.";

const VERIFY_EXAMPLES: &str = "\
Examples (stop the node first):
  rrqctl snapshot verify
  rrqctl snapshot verify --group 7

Reads every page and body, compares them with their checksums, and proves the
state that they make up. Exit status 5 if something is damaged.";

#[derive(clap::Args, Debug)]
pub(super) struct SnapshotArgs {
    #[command(subcommand)]
    verb: SnapshotVerb,
}

#[derive(clap::Subcommand, Debug)]
enum SnapshotVerb {
    /// Show manifests, bases, pages by kind.
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(PartArgs),
    /// Check every page, body and cross reference.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(PartArgs),
}

#[derive(clap::Args, Debug)]
struct PartArgs {
    #[command(flatten)]
    at: Where,
    /// Only this group [default: all].
    #[arg(long, value_name = "N", value_parser = offline::group)]
    group: Option<GroupId>,
}

pub(super) fn run(args: &SnapshotArgs, output: Output) -> Result<(), Report> {
    match &args.verb {
        SnapshotVerb::Inspect(args) => inspect(args, output),
        SnapshotVerb::Verify(args) => verify(args, output),
    }
}

/// The bases that the log of a shard names, newest first in each group.
fn bases(shard: &ShardFiles, only: Option<GroupId>) -> Result<Vec<BaseRecord>, Report> {
    let groups = shard.log()?.groups.into_iter();
    let groups = groups.filter(|(id, _)| only.is_none_or(|only| only == *id));
    Ok(groups.flat_map(|(_, group)| group.bases).collect())
}

// ---- inspect -------------------------------------------------------------------------------

/// A base and its directory.
struct Inspected {
    shard: u16,
    base: BaseRecord,
    /// `None` of the empty state.
    directory: Result<Option<Directory>, String>,
}

fn inspect(args: &PartArgs, output: Output) -> Result<(), Report> {
    let (_dir, shards) = args.at.open()?;
    let mut found = Vec::new();
    let mut files = Vec::new();
    for shard in &shards {
        for base in bases(shard, args.group)? {
            found.push(Inspected {
                shard: shard.number(),
                directory: shard.directory(&base),
                base,
            });
        }
        files.push(shard_json(shard)?);
    }
    match output {
        Output::Json => {
            let bases: Vec<Value> = found.iter().map(Inspected::as_json).collect();
            say_json(&json!({"shards": files, "bases": bases}))?;
        }
        Output::Table => print(&inspected_text(&files, &found))?,
    }
    match found.iter().find_map(|one| one.directory.as_ref().err()) {
        None => Ok(()),
        Some(fault) => Err(Report::error(
            Code::CheckpointDamaged,
            "a checkpoint cannot be read; nothing was changed",
        )
        .location(fault.clone())
        .fix("rrqctl snapshot verify says which checkpoints can be used")),
    }
}

/// Manifest and files of a shard.
fn shard_json(shard: &ShardFiles) -> Result<Value, Report> {
    let manifest = shard.manifest()?;
    let sizes = file_sizes(&shard.folder);
    let sizes = sizes.map_err(|error| unusable(&shard.folder, "read", &error))?;
    Ok(json!({
        "shard": shard.number(),
        "manifest": manifest.map(|manifest| json!({
            "sequence": manifest.sequence,
            "start": manifest.start,
            "durable_lsn": manifest.durable.0,
            "groups": manifest.groups.len(),
        })),
        "run_files": sizes.run_files,
        "run_bytes": sizes.run_bytes,
        "payload_files": sizes.payload_files,
        "payload_bytes": sizes.payload_bytes,
    }))
}

/// Pages and their bytes by the number of their kind.
fn by_kind(directory: &Directory) -> BTreeMap<u8, (u64, u64)> {
    let mut kinds = BTreeMap::new();
    for page in &directory.pages {
        let kind: &mut (u64, u64) = kinds.entry(page.name.kind).or_default();
        *kind = (kind.0 + 1, kind.1 + u64::from(page.place.len));
    }
    kinds
}

/// Bodies, and what they take on the disk.
fn bodies(directory: &Directory) -> (u64, u64) {
    let files = directory.payload_files.iter();
    files.fold((0, 0), |(bodies, bytes), used| {
        (bodies + used.live_bodies, bytes + used.live_bytes)
    })
}

impl Inspected {
    fn as_json(&self) -> Value {
        let base = &self.base;
        let mut value = json!({
            "shard": self.shard,
            "group": base.group.0,
            "incarnation": base.incarnation.0,
            "index": base.index.0,
            "term": base.term.0,
            "time_ms": base.time.0,
            "machine_version": base.machine_version,
            "root_hash": format!("{:?}", base.root_hash),
            "root_file": base.root.map(|root| root.file),
            "fault": self.directory.as_ref().err(),
        });
        let directory = self.directory.as_ref().ok().and_then(Option::as_ref);
        let kinds = directory.map(by_kind).unwrap_or_default();
        let kinds = kinds.iter().map(|(kind, (pages, bytes))| {
            json!({"kind": page_kind(*kind), "pages": pages, "bytes": bytes})
        });
        let nodes = directory.map_or(&[][..], |directory| &directory.nodes);
        let (bodies, body_bytes) = directory.map_or((0, 0), bodies);
        if let Some(object) = value.as_object_mut() {
            object.insert("pages".to_owned(), kinds.collect());
            object.insert("nodes".to_owned(), json!(nodes.len()));
            object.insert("bodies".to_owned(), json!(bodies));
            object.insert("body_bytes".to_owned(), json!(body_bytes));
        }
        value
    }
}

fn inspected_text(shards: &[Value], found: &[Inspected]) -> String {
    let mut out = String::new();
    for shard in shards {
        let number = |name: &str| shard[name].as_u64().unwrap_or(0);
        let manifest = match shard["manifest"]["sequence"].as_u64() {
            Some(sequence) => format!("manifest {sequence}"),
            None => "no manifest".to_owned(),
        };
        out += &format!(
            "shard {}: {manifest}, {} ({}), {} ({})\n",
            number("shard"),
            count(number("run_files"), "run file"),
            bytes(number("run_bytes")),
            count(number("payload_files"), "payload file"),
            bytes(number("payload_bytes")),
        );
    }
    // A group without queues is one small page: a hundred rows of them tell nothing.
    let is_small = |one: &&Inspected| match &one.directory {
        Ok(None) => true,
        Ok(Some(directory)) => directory.pages.len() <= 1,
        Err(_) => false,
    };
    let (small, shown): (Vec<&Inspected>, Vec<&Inspected>) = found.iter().partition(is_small);
    if !small.is_empty() {
        out += &format!(
            "{} without queues not shown\n",
            count(small.len() as u64, "base")
        );
    }
    if shown.is_empty() {
        return out;
    }
    let heads = [
        "group",
        "shard",
        "life",
        "index",
        "pages",
        "page bytes",
        "bodies",
        "body bytes",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let mut all: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
    let mut faults = String::new();
    for one in shown {
        let base = &one.base;
        let mut row = vec![
            base.group.to_string(),
            one.shard.to_string(),
            base.incarnation.0.to_string(),
            base.index.to_string(),
        ];
        match &one.directory {
            Ok(Some(directory)) => {
                for (kind, (pages, bytes)) in by_kind(directory) {
                    let sum = all.entry(kind).or_default();
                    *sum = (sum.0 + pages, sum.1 + bytes);
                }
                let sizes = directory.pages.iter().map(|page| page.place.len);
                let page_bytes = sizes.map(u64::from).sum();
                let (count, body_bytes) = bodies(directory);
                row.extend([
                    directory.pages.len().to_string(),
                    bytes(page_bytes),
                    count.to_string(),
                    bytes(body_bytes),
                ]);
            }
            Ok(None) => {}
            Err(fault) => {
                row.push("damaged".to_owned());
                faults += &format!("group {} at entry {}: {fault}\n", base.group, base.index);
            }
        }
        rows.push(row);
    }
    out.push('\n');
    out += &table(&rows);
    let mut kinds = vec![["kind", "pages", "bytes"].map(str::to_owned).to_vec()];
    kinds.extend(all.iter().map(|(kind, (pages, size))| {
        vec![page_kind(*kind).to_owned(), pages.to_string(), bytes(*size)]
    }));
    out + "\n" + &table(&kinds) + &faults
}

// ---- verify --------------------------------------------------------------------------------

/// What became of a base.
struct Verified {
    shard: u16,
    group: GroupId,
    index: u64,
    /// The newest of its group.
    newest: bool,
    pages: usize,
    bodies: usize,
    fault: Option<String>,
}

fn verify(args: &PartArgs, output: Output) -> Result<(), Report> {
    let (dir, shards) = args.at.open()?;
    let mut done: Vec<Verified> = Vec::new();
    for shard in &shards {
        let bases = bases(shard, args.group)?;
        let progress = Progress::new("checkpoints", bases.len() as u64);
        for base in &bases {
            let newest = done
                .last()
                .is_none_or(|last| (last.shard, last.group) != (shard.number(), base.group));
            done.push(verify_base(shard, base, newest));
            progress.add(1);
        }
    }
    let faults = done.iter().filter(|one| one.fault.is_some());
    let faults = faults.count() as u64;
    match output {
        Output::Json => {
            let bases: Vec<Value> = done.iter().map(Verified::as_json).collect();
            say_json(&json!({"sound": faults == 0, "bases": bases}))?;
        }
        Output::Table => print(&verified_text(&done))?,
    }
    if faults == 0 {
        return Ok(());
    }
    let dir = dir.path().display();
    let what = format!(
        "{} of data directory {dir} {} damaged; nothing was changed",
        count(faults, "checkpoint"),
        if faults == 1 { "is" } else { "are" },
    );
    Err(Report::error(Code::CheckpointDamaged, what)
        .why("a start passes over a damaged checkpoint if the one before it is whole")
        .fix(format!(
            "rrqctl repair --data-dir {dir} shows which groups cannot serve"
        )))
}

fn verify_base(shard: &ShardFiles, base: &BaseRecord, newest: bool) -> Verified {
    let mut verified = Verified {
        shard: shard.number(),
        group: base.group,
        index: base.index.0,
        newest,
        pages: 0,
        bodies: 0,
        fault: None,
    };
    let mut prove = || {
        let state = shard.state(base)?;
        if let Some(state) = &state {
            verified.pages = state.pages.len();
            verified.bodies = state.bodies.len();
        }
        let machine = offline::machine(base, state)?;
        check(&machine)
    };
    verified.fault = prove().err();
    verified
}

impl Verified {
    fn as_json(&self) -> Value {
        json!({
            "shard": self.shard,
            "group": self.group.0,
            "index": self.index,
            "newest": self.newest,
            "pages": self.pages,
            "bodies": self.bodies,
            "fault": self.fault,
        })
    }
}

fn verified_text(done: &[Verified]) -> String {
    let mut out = String::new();
    for one in done {
        if let Some(fault) = &one.fault {
            let which = if one.newest { "newest" } else { "older" };
            out += &format!(
                "group {} of shard {}: its {which} checkpoint, at entry {}, is damaged: {fault}\n",
                one.group, one.shard, one.index
            );
        }
    }
    let stored: Vec<&Verified> = done.iter().filter(|one| one.pages > 0).collect();
    let pages: usize = stored.iter().map(|one| one.pages).sum();
    let bodies: usize = stored.iter().map(|one| one.bodies).sum();
    out + &format!(
        "{}, {}, {} read and proved\n",
        count(stored.len() as u64, "checkpoint"),
        count(pages as u64, "page"),
        match bodies {
            1 => "1 body".to_owned(),
            _ => format!("{bodies} bodies"),
        },
    )
}
