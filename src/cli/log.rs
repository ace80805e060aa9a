//! `rrqctl log verify` and `rrqctl log dump`: the log of a stopped node. Both change nothing.

use crate::base::code::Code;
use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{GroupId, Incarnation};
use crate::base::members::{Member, MemberRole};
use crate::base::report::Report;
use crate::cli::Output;
use crate::cli::command_json::command_json;
use crate::cli::log_walk::{Found, end_before, is_written, walk};
use crate::cli::offline::{self, ShardFiles, Where};
use crate::cli::terminal::{self, Progress, print, say_json, table};
use crate::runtime::data_dir::unusable;
use crate::wal::batch::BatchHeader;
use crate::wal::record::{BaseRecord, GroupRow, HardState, RecapRow, Record, RowStatus};
use crate::wal::recovery::{GroupLogStatus, Recovered};
use crate::wal::segment::Echo;
use crate::wire::command::decode_command;
use bytes::Bytes;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

pub(super) const EXAMPLES: &str = "\
Examples (stop the node first):
  rrqctl log verify ./rrq-data
  rrqctl log dump ./rrq-data --group 7";

const VERIFY_EXAMPLES: &str = "\
Examples (stop the node first):
  rrqctl log verify
  rrqctl log verify /var/lib/rrq --output json

A torn tail is no damage: nobody was told of what stood there. Exit status 5 if
something acknowledged is damaged or missing; `rrqctl repair` shows the way on.";

const DUMP_EXAMPLES: &str = "\
Examples (stop the node first):
  rrqctl log dump --limit 20
  rrqctl log dump --group 7 --from 1000
  rrqctl log dump --output json | jq 'select(.command == \"enqueue\")'

With `--output json` each line is a JSON object.";

#[derive(clap::Args, Debug)]
pub(super) struct LogArgs {
    #[command(subcommand)]
    verb: LogVerb,
}

#[derive(clap::Subcommand, Debug)]
enum LogVerb {
    /// Read all of it, and say what a start would say.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Print each record.
    #[command(after_help = DUMP_EXAMPLES)]
    Dump(DumpArgs),
}

#[derive(clap::Args, Debug)]
struct VerifyArgs {
    #[command(flatten)]
    at: Where,
}

#[derive(clap::Args, Debug)]
struct DumpArgs {
    #[command(flatten)]
    at: Where,
    /// Only what is said of this group [default: all].
    #[arg(long, value_name = "N", value_parser = offline::group)]
    group: Option<GroupId>,
    /// Only entries from this index on, and nothing else [default: all records].
    #[arg(long, value_name = "INDEX")]
    from: Option<u64>,
    /// At most so many records [default: all].
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Show the payloads of jobs, which may hold secrets.
    #[arg(long)]
    payloads: bool,
}

pub(super) fn run(args: &LogArgs, output: Output) -> Result<(), Report> {
    match &args.verb {
        LogVerb::Verify(args) => verify(args, output),
        LogVerb::Dump(args) => dump(args, output),
    }
}

// ---- verify --------------------------------------------------------------------------------

/// What is to be said of a shard's log.
struct Verdict {
    shard: u16,
    log: Recovered,
    entries: u64,
    /// Entries that this version cannot apply: group, index, why.
    unreadable: Vec<(GroupId, u64, String)>,
}

fn verify(args: &VerifyArgs, output: Output) -> Result<(), Report> {
    let (dir, shards) = args.at.open()?;
    let mut verdicts = Vec::new();
    let progress = Progress::new("shards", shards.len() as u64);
    for shard in &shards {
        verdicts.push(Verdict::of(shard)?);
        progress.add(1);
    }
    drop(progress);
    let is_sound = verdicts.iter().all(Verdict::is_sound);
    match output {
        Output::Json => {
            let shards: Vec<Value> = verdicts.iter().map(Verdict::as_json).collect();
            say_json(&json!({"sound": is_sound, "shards": shards}))?;
        }
        Output::Table => print(&as_text(&verdicts))?,
    }
    if is_sound {
        return Ok(());
    }
    let dir = dir.path().display();
    let what = format!("the log of data directory {dir} is damaged; nothing was changed");
    Err(Report::error(Code::LogDamaged, what)
        .why("what was acknowledged may be missing")
        .fix(format!("rrqctl repair --data-dir {dir} shows what is lost")))
}

impl Verdict {
    fn of(shard: &ShardFiles) -> Result<Self, Report> {
        let log = shard.log()?;
        let mut entries = 0;
        let mut unreadable = Vec::new();
        for (group, held) in &log.groups {
            entries += held.entries.len() as u64;
            let commands = held.entries.iter();
            for entry in commands.filter(|entry| entry.kind == EntryKind::Data) {
                if let Err(error) = decode_command(&entry.payload, entry.machine_version) {
                    unreadable.push((*group, entry.index.0, error.to_string()));
                }
            }
        }
        Ok(Self {
            shard: shard.number(),
            log,
            entries,
            unreadable,
        })
    }

    /// The groups that a start would not let serve, and why.
    fn broken(&self) -> Vec<(GroupId, String)> {
        let groups = self.log.groups.iter();
        let broken = groups.filter_map(|(id, group)| match &group.status {
            GroupLogStatus::Intact => None,
            GroupLogStatus::Damaged { what } => Some((*id, what.clone())),
            GroupLogStatus::Recovering { since } => Some((
                *id,
                format!("an earlier start found that entries from {since} on may be missing"),
            )),
        });
        broken.collect()
    }

    fn is_sound(&self) -> bool {
        self.log.damage.is_empty() && self.broken().is_empty() && self.unreadable.is_empty()
    }

    fn as_json(&self) -> Value {
        let damage = self.log.damage.iter().map(|damage| {
            json!({"segment": damage.segment, "offset": damage.offset, "what": damage.what})
        });
        let broken = self.broken();
        let broken = broken
            .iter()
            .map(|(group, why)| json!({"group": group.0, "why": why}));
        let unreadable = self.unreadable.iter();
        let unreadable = unreadable
            .map(|(group, index, why)| json!({"group": group.0, "index": index, "why": why}));
        json!({
            "shard": self.shard,
            "segments": self.log.segments,
            "bytes": self.log.bytes,
            "groups": self.log.groups.len(),
            "entries": self.entries,
            "torn": self.log.torn.map(|torn| json!({
                "segment": torn.segment,
                "offset": torn.offset,
                "lsn": torn.from.0,
            })),
            "damage": damage.collect::<Vec<_>>(),
            "broken_groups": broken.collect::<Vec<_>>(),
            "unreadable_entries": unreadable.collect::<Vec<_>>(),
        })
    }
}

fn as_text(verdicts: &[Verdict]) -> String {
    let heads = ["shard", "segments", "log", "groups", "entries", "verdict"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let mut told = String::new();
    for verdict in verdicts {
        let log = &verdict.log;
        let word = match (verdict.is_sound(), log.torn) {
            (false, _) => "damaged",
            (true, Some(_)) => "torn tail",
            (true, None) => "sound",
        };
        rows.push(vec![
            verdict.shard.to_string(),
            log.segments.len().to_string(),
            terminal::bytes(log.bytes),
            log.groups.len().to_string(),
            verdict.entries.to_string(),
            word.to_owned(),
        ]);
        let mut tell = |text: String| told += &format!("shard {}, {text}\n", verdict.shard);
        if let Some(torn) = log.torn {
            tell(format!(
                "{} byte {}: a tail that nobody was told of; a start cuts it",
                file(torn.segment),
                torn.offset,
            ));
        }
        for damage in &log.damage {
            tell(format!(
                "{} byte {}: {}",
                file(damage.segment),
                damage.offset,
                damage.what
            ));
        }
        for (group, why) in verdict.broken() {
            tell(format!("group {group} cannot serve: {why}"));
        }
        for (group, index, why) in &verdict.unreadable {
            tell(format!("entry {index} of group {group}: {why}"));
        }
    }
    table(&rows) + &told
}

fn file(segment: u64) -> String {
    format!("segment {segment:016x}.seg,")
}

// ---- dump ----------------------------------------------------------------------------------

fn dump(args: &DumpArgs, output: Output) -> Result<(), Report> {
    let (_dir, shards) = args.at.open()?;
    let mut printer = Printer {
        args,
        output,
        out: BufWriter::new(io::stdout().lock()),
        printed: 0,
        end: None,
    };
    for shard in &shards {
        let segments = shard.segments()?;
        let read = |path: &Path| {
            let read = fs::read(path);
            read.map(Bytes::from)
                .map_err(|error| unusable(path, "read", &error))
        };
        let mut segments = segments.iter().peekable();
        let mut now = match segments.peek() {
            Some((_, path)) => Some(read(path)?),
            None => None,
        };
        while let (Some((number, _)), Some(content)) = (segments.next(), now.take()) {
            let next = segments.peek();
            let mut end = None;
            if let Some((next, path)) = next {
                let content = read(path)?;
                end = end_before(&content, *next);
                now = Some(content);
            }
            let end = end.filter(|(segment, _)| segment == number);
            let place = (shard.number(), *number);
            if !is_written(&content, *number) {
                continue;
            }
            let more = walk(&content, end.map(|(_, lsn)| lsn), &mut |found| {
                printer.found(place, &found)
            });
            if !more {
                return printer.finish();
            }
        }
    }
    printer.finish()
}

struct Printer<'a> {
    args: &'a DumpArgs,
    output: Output,
    out: BufWriter<io::StdoutLock<'static>>,
    printed: u64,
    /// Why nothing more can be written.
    end: Option<io::Error>,
}

impl Printer<'_> {
    /// Whether more is wanted.
    fn found(&mut self, place: (u16, u64), found: &Found) -> bool {
        let value = match found {
            Found::Record {
                offset,
                batch,
                record,
            } => {
                let said = match record {
                    Ok(record) => self.record(record),
                    Err(error) => Some(json!({"type": "bad_record", "why": error})),
                };
                said.map(|value| (*offset, Some(*batch), value))
            }
            Found::Damaged { offset, to } => {
                Some((*offset, None, json!({"type": "damaged", "to_offset": to})))
            }
            Found::Torn { offset } => Some((*offset, None, json!({"type": "torn"}))),
        };
        let Some((offset, batch, value)) = value else {
            return true;
        };
        if self.args.limit.is_some_and(|limit| self.printed >= limit) {
            return false;
        }
        self.printed += 1;
        let line = line(self.output, place, offset, batch, value);
        if let Err(error) = writeln!(self.out, "{line}") {
            self.end = Some(error);
            return false;
        }
        true
    }

    /// A record as JSON, if it is one of those asked for.
    fn record(&self, record: &Record) -> Option<Value> {
        let wanted = |group: GroupId| self.args.group.is_none_or(|only| only == group);
        if let Some(from) = self.args.from
            && !matches!(record, Record::Entry { entry, .. } if entry.index.0 >= from)
        {
            return None;
        }
        match record {
            Record::Entry {
                group,
                incarnation,
                entry,
            } => wanted(*group).then(|| self.entry(*group, *incarnation, entry)),
            Record::HardState {
                group,
                incarnation,
                state,
            } => wanted(*group).then(|| {
                let mut value = hard_json(state);
                put(&mut value, "type", json!("hard_state"));
                put(&mut value, "group", json!(group.0));
                put(&mut value, "incarnation", json!(incarnation.0));
                value
            }),
            Record::Base(base) => wanted(base.group).then(|| base_json(base)),
            Record::GroupTable(rows) => {
                let rows = rows.iter().filter(|row| wanted(row.group));
                let rows: Vec<Value> = rows.map(row_json).collect();
                (!rows.is_empty()).then(|| json!({"type": "group_table", "rows": rows}))
            }
            Record::SegmentHead(head) => self.args.group.is_none().then(|| {
                json!({
                    "type": "segment_head",
                    "cluster": head.cluster.to_string(),
                    "disk": head.disk.to_string(),
                    "wal_set": head.wal_set,
                    "base_lsn": head.base_lsn.0,
                    "previous_segment": head.previous.map(|end| end.segment),
                    "previous_end_lsn": head.previous.map(|end| end.end_lsn.0),
                    "logs_before": head.echoes.iter().map(echo_json).collect::<Vec<_>>(),
                })
            }),
            Record::Footer(footer) => self.args.group.is_none().then(|| {
                let entries: usize = footer.runs.iter().map(|run| run.entries.len()).sum();
                json!({"type": "footer", "entries": entries})
            }),
            Record::Recap(recap) => {
                let rows = recap.rows.iter().filter(|row| wanted(row.row.group));
                let rows: Vec<Value> = rows.map(recap_row_json).collect();
                let batch = recap.batch_seq;
                (!rows.is_empty()).then(|| json!({"type": "recap", "batch": batch, "rows": rows}))
            }
        }
    }

    fn entry(&self, group: GroupId, life: Incarnation, entry: &Entry) -> Value {
        let mut value = json!({
            "type": "entry",
            "group": group.0,
            "incarnation": life.0,
            "index": entry.index.0,
            "term": entry.term.0,
            "time_ms": entry.time.0,
            "kind": kind(entry.kind),
            "machine_version": entry.machine_version,
        });
        if entry.kind == EntryKind::Data {
            match decode_command(&entry.payload, entry.machine_version) {
                Ok(command) => {
                    let (verb, fields) = command_json(&command, self.args.payloads);
                    put(&mut value, "command", json!(verb));
                    put(&mut value, "fields", fields);
                }
                Err(error) => put(&mut value, "unreadable", json!(error.to_string())),
            }
        }
        value
    }

    fn finish(mut self) -> Result<(), Report> {
        let flushed = match self.end.take() {
            Some(error) => Err(error),
            None => self.out.flush(),
        };
        match flushed {
            // A reader that has seen enough is no error.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Report::error(
                Code::BadArgument,
                format!("cannot write to standard output: {error}"),
            )),
            _ => Ok(()),
        }
    }
}

fn put(value: &mut Value, name: &str, field: Value) {
    if let Some(object) = value.as_object_mut() {
        object.insert(name.to_owned(), field);
    }
}

/// One line: place, then what is there.
fn line(
    output: Output,
    (shard, segment): (u16, u64),
    offset: usize,
    batch: Option<BatchHeader>,
    mut value: Value,
) -> String {
    match output {
        Output::Json => {
            put(&mut value, "shard", json!(shard));
            put(&mut value, "segment", json!(segment));
            put(&mut value, "offset", json!(offset));
            put(
                &mut value,
                "batch",
                json!(batch.map(|batch| batch.batch_seq)),
            );
            value.to_string()
        }
        Output::Table => {
            let mut take = |name: &str| {
                let field = value.as_object_mut().and_then(|object| object.remove(name));
                field.map(|field| match field {
                    Value::String(text) => text,
                    other => other.to_string(),
                })
            };
            let mut words = vec![format!("{shard}/{segment}@{offset}")];
            for (name, label) in [
                ("type", ""),
                ("group", "group "),
                ("incarnation", "life "),
                ("term", "term "),
                ("index", "index "),
                ("time_ms", "at ms "),
                ("kind", ""),
                ("machine_version", "v"),
                ("command", ""),
            ] {
                words.extend(take(name).map(|text| format!("{label}{text}")));
            }
            words.extend(take("fields"));
            if value.as_object().is_some_and(|object| !object.is_empty()) {
                words.push(value.to_string());
            }
            words.join(" ")
        }
    }
}

fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Data => "data",
        EntryKind::Noop => "noop",
        EntryKind::Conf => "conf",
        EntryKind::Checkpoint => "checkpoint",
        EntryKind::Version => "version",
        EntryKind::Cut => "cut",
    }
}

fn hard_json(hard: &HardState) -> Value {
    json!({
        "term": hard.term.0,
        "vote": hard.vote.map(|vote| vote.node.0),
        "commit": hard.commit.0,
    })
}

fn echo_json(echo: &Echo) -> Value {
    json!({
        "disk": echo.disk.to_string(),
        "wal_set": echo.wal_set,
        "shard": echo.shard.0,
        "end_lsn": echo.durable_lsn.0,
    })
}

fn base_json(base: &BaseRecord) -> Value {
    let of = |learns: bool| {
        let is_one = move |member: &&Member| (member.role == MemberRole::Learner) == learns;
        base.members
            .iter()
            .filter(is_one)
            .map(|member| member.voter.node.0)
    };
    let (voters, learners) = (of(false), of(true));
    json!({
        "type": "base",
        "group": base.group.0,
        "incarnation": base.incarnation.0,
        "index": base.index.0,
        "term": base.term.0,
        "time_ms": base.time.0,
        "machine_version": base.machine_version,
        "root_hash": format!("{:?}", base.root_hash),
        "root_file": base.root.map(|root| root.file),
        "root_offset": base.root.map(|root| root.offset),
        "log_start_lsn": base.log_start_lsn.0,
        "voters": voters.collect::<Vec<_>>(),
        "learners": learners.collect::<Vec<_>>(),
    })
}

fn recap_row_json(row: &RecapRow) -> Value {
    let mut value = row_json(&row.row);
    put(
        &mut value,
        "first_index",
        json!(row.first.map(|first| first.0)),
    );
    value
}

fn row_json(row: &GroupRow) -> Value {
    json!({
        "group": row.group.0,
        "incarnation": row.incarnation.0,
        "hard": hard_json(&row.hard),
        "last_index": row.last.0.0,
        "last_term": row.last.1.0,
        "base_index": row.base.0.0,
        "status": match row.status {
            RowStatus::Ok => "ok",
            RowStatus::Recovering { .. } => "recovering",
        },
    })
}
