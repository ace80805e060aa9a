//! `rrqctl queue`: make, show, change, hold up, empty and remove queues.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::queue_settings::{SettingsArgs, settings_rows};
use crate::cli::terminal::{count, may, moment, print, say, say_json, table};
use crate::cli::{Common, Output};
use crate::client::{Client, Error, PurgeStates, Queue, QueueInfo, QueueSettings, QueueStats};
use crate::runtime::json;
use serde_json::json;

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl queue create emails --max-attempts 5
  rrqctl queue list
  rrqctl queue pause emails

A queue is also made by the first job that is enqueued to it.";

const CREATE_EXAMPLES: &str = "\
Examples:
  rrqctl queue create emails
  rrqctl queue create reports --lease 10min --max-attempts 3 --backoff fixed
  rrqctl queue create events --partitions 8 --if-absent

More partitions than one serve more workers at once, without an order over all.";

const LIST_EXAMPLES: &str = "\
Examples:
  rrqctl queue list
  rrqctl queue list --output json | jq -r '.queues[].name'";

const SHOW_EXAMPLES: &str = "\
Example:
  rrqctl queue show emails";

const ALTER_EXAMPLES: &str = "\
Examples:
  rrqctl queue alter emails --lease 2min
  rrqctl queue alter emails --backoff linear --backoff-base 5s

What is not given stays as it is; the defaults shown are those of a new queue.
Jobs that are there keep what their enqueue gave them.";

const PAUSE_EXAMPLES: &str = "\
Example:
  rrqctl queue pause emails

A paused queue takes jobs and hands out none; leases that are held go on.";

const RESUME_EXAMPLES: &str = "\
Example:
  rrqctl queue resume emails

Ends a pause and a drain.";

const DRAIN_EXAMPLES: &str = "\
Example:
  rrqctl queue drain emails

A draining queue takes no more jobs and hands out those that it has, until
`rrqctl queue resume`.";

const PURGE_EXAMPLES: &str = "\
Examples:
  rrqctl queue purge emails                    asks, then removes what waits
  rrqctl queue purge emails --dead --yes       removes the dead jobs, unasked

Without --pending, --delayed or --dead: all three. Jobs in flight stay. The keys
of what was removed are remembered on: an enqueue with one adds no job until the
queue's window for keys has passed.";

const DELETE_EXAMPLES: &str = "\
Example:
  rrqctl queue delete emails --yes

Its jobs go with it. Whoever enqueues to the name afterwards makes it anew.";

#[derive(clap::Args, Debug)]
pub(super) struct QueueArgs {
    #[command(subcommand)]
    verb: QueueVerb,
}

#[derive(clap::Subcommand, Debug)]
enum QueueVerb {
    /// Make a queue.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// Show all queues with their counters.
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Show one queue: counters and settings.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(Name),
    /// Change settings.
    #[command(after_help = ALTER_EXAMPLES)]
    Alter(AlterArgs),
    /// Hand out no more jobs.
    #[command(after_help = PAUSE_EXAMPLES)]
    Pause(Name),
    /// Hand out jobs again, and take new ones.
    #[command(after_help = RESUME_EXAMPLES)]
    Resume(Name),
    /// Take no more jobs; hand out those that are there.
    #[command(after_help = DRAIN_EXAMPLES)]
    Drain(Name),
    /// Remove jobs.
    #[command(after_help = PURGE_EXAMPLES)]
    Purge(PurgeArgs),
    /// Remove a queue with all its jobs.
    #[command(after_help = DELETE_EXAMPLES)]
    Delete(DeleteArgs),
}

#[derive(clap::Args, Debug)]
struct Name {
    /// The queue.
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(clap::Args, Debug)]
struct CreateArgs {
    #[command(flatten)]
    queue: Name,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Parts that are served side by side, for ever [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    partitions: Option<u8>,
    /// One that is there is left as it is, and is no error.
    #[arg(long)]
    if_absent: bool,
}

#[derive(clap::Args, Debug)]
struct AlterArgs {
    #[command(flatten)]
    queue: Name,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(clap::Args, Debug)]
struct PurgeArgs {
    #[command(flatten)]
    queue: Name,
    /// Remove jobs that are ready.
    #[arg(long)]
    pending: bool,
    /// Remove jobs that wait for a time.
    #[arg(long)]
    delayed: bool,
    /// Remove dead jobs.
    #[arg(long)]
    dead: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

#[derive(clap::Args, Debug)]
struct DeleteArgs {
    #[command(flatten)]
    queue: Name,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(args: &QueueArgs, common: &Common) -> Result<(), Report> {
    if let QueueVerb::Alter(args) = &args.verb
        && args.settings.is_empty()
    {
        return Err(Report::error(Code::BadArgument, "nothing is to be altered")
            .why("no setting was given")
            .fix("rrqctl queue alter --help shows them"));
    }
    let client = common.connect().await?;
    let done = perform(&args.verb, &client, common).await;
    client.close().await;
    done.map_err(|failure| match failure {
        Failure::Call(error) => common.complaint(&error),
        Failure::Report(report) => report,
    })
}

/// What can go wrong.
enum Failure {
    Call(Error),
    Report(Report),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self::Report(report)
    }
}

async fn perform(verb: &QueueVerb, client: &Client, common: &Common) -> Result<(), Failure> {
    let output = common.output;
    let find = async |queue: &Name| client.find_queue(&queue.name).await;
    match verb {
        QueueVerb::Create(args) => {
            let mut settings = args.settings.over(QueueSettings::default());
            settings.partitions = args.partitions.unwrap_or(1);
            let name = &args.queue.name;
            let queue = client.create_queue(name, settings, !args.if_absent);
            let (info, _) = queue.await?.info().await?;
            let word = if args.if_absent {
                "is there"
            } else {
                "created"
            };
            changed(output, &info, word)?;
        }
        QueueVerb::List => {
            let queues = client.queues().await?;
            match output {
                Output::Json => {
                    let queues = queues.iter().map(|(info, stats)| json::queue(info, stats));
                    say_json(&json!({"queues": queues.collect::<Vec<_>>()}))?;
                }
                Output::Table => print(&as_table(&queues))?,
            }
        }
        QueueVerb::Show(name) => {
            let (info, stats) = find(name).await?.info().await?;
            match output {
                Output::Json => {
                    say_json(&json::queue(&info, &stats))?;
                }
                Output::Table => print(&as_text(&info, &stats))?,
            }
        }
        QueueVerb::Alter(args) => {
            let queue = find(&args.queue).await?;
            let (info, _) = queue.info().await?;
            let settings = args.settings.over(info.settings);
            let info = queue.alter(settings, Some(info.version)).await?;
            changed(output, &info, "is altered")?;
        }
        QueueVerb::Pause(name) => {
            let info = find(name).await?.pause().await?;
            changed(output, &info, "hands out no jobs")?;
        }
        QueueVerb::Resume(name) => {
            let info = find(name).await?.resume().await?;
            changed(output, &info, "hands out jobs")?;
        }
        QueueVerb::Drain(name) => {
            let info = find(name).await?.drain().await?;
            changed(output, &info, "takes no more jobs")?;
        }
        QueueVerb::Purge(args) => purge(&find(&args.queue).await?, args, output).await?,
        QueueVerb::Delete(args) => delete(&find(&args.queue).await?, args, output).await?,
    }
    Ok(())
}

fn changed(output: Output, info: &QueueInfo, what: &str) -> Result<(), Report> {
    match output {
        Output::Json => say_json(&json!({
            "name": info.name,
            "uid": info.uid.to_string(),
            "version": info.version,
            "paused": info.paused,
            "draining": info.draining,
            "settings": json::settings(&info.settings),
        })),
        Output::Table => say(&format!("queue {} {what}", info.name)),
    }
}

async fn purge(queue: &Queue, args: &PurgeArgs, output: Output) -> Result<(), Failure> {
    let all = !(args.pending || args.delayed || args.dead);
    let states = PurgeStates {
        pending: all || args.pending,
        delayed: all || args.delayed,
        dead: all || args.dead,
    };
    let (info, stats) = queue.info().await?;
    let parts = [
        (states.pending, stats.pending, "pending"),
        (states.delayed, stats.delayed, "delayed"),
        (states.dead, stats.dead, "dead"),
    ];
    let parts = parts.into_iter().filter(|(is_in, ..)| *is_in);
    let parts: Vec<String> = parts
        .map(|(_, jobs, state)| format!("{jobs} {state}"))
        .collect();
    let what = format!(
        "remove the jobs of queue {} ({} now)",
        info.name,
        parts.join(", ")
    );
    if !may(&what, args.yes)? {
        return Ok(());
    }
    let jobs = queue.purge(states).await?;
    match output {
        Output::Json => say_json(&json!({"name": info.name, "removed": jobs}))?,
        Output::Table => say(&format!("{} removed", count(jobs, "job")))?,
    }
    Ok(())
}

async fn delete(queue: &Queue, args: &DeleteArgs, output: Output) -> Result<(), Failure> {
    let (info, stats) = queue.info().await?;
    let live = live(&stats);
    let what = format!(
        "delete queue {} with {}, {} of them in flight",
        info.name,
        count(live, "job"),
        stats.in_flight
    );
    if !may(&what, args.yes)? {
        return Ok(());
    }
    queue.delete().await?;
    match output {
        Output::Json => say_json(&json!({"name": info.name, "removed": live}))?,
        Output::Table => say(&format!("queue {} is deleted", info.name))?,
    }
    Ok(())
}

fn live(stats: &QueueStats) -> u64 {
    stats.pending + stats.delayed + stats.in_flight + stats.dead
}

fn mode(info: &QueueInfo) -> &'static str {
    match (info.paused, info.draining) {
        (false, false) => "",
        (true, false) => " (paused)",
        (false, true) => " (draining)",
        (true, true) => " (paused, draining)",
    }
}

/// Queues in rows.
pub(super) fn as_table(queues: &[(QueueInfo, QueueStats)]) -> String {
    if queues.is_empty() {
        return "no queues yet; `rrqctl enqueue -q NAME PAYLOAD` makes one\n".to_owned();
    }
    let heads = [
        "queue",
        "pending",
        "delayed",
        "in flight",
        "dead",
        "done",
        "oldest pending",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(queues.iter().map(|(info, stats)| {
        vec![
            format!("{}{}", info.name, mode(info)),
            stats.pending.to_string(),
            stats.delayed.to_string(),
            stats.in_flight.to_string(),
            stats.dead.to_string(),
            stats.completed_total.to_string(),
            stats
                .oldest_pending
                .map_or("-".to_owned(), |at| moment(at.0)),
        ]
    }));
    table(&rows)
}

fn as_text(info: &QueueInfo, stats: &QueueStats) -> String {
    let mut out = format!("queue {}{}\n", info.name, mode(info));
    let mut row = |label: &str, text: String| out += &format!("  {label:<14} {text}\n");
    let numbers = [
        ("pending", stats.pending),
        ("delayed", stats.delayed),
        ("in flight", stats.in_flight),
        ("dead", stats.dead),
        ("bytes", stats.bytes),
        ("keys", stats.keys),
        ("enqueued", stats.enqueued_total),
        ("leased", stats.leased_total),
        ("done", stats.completed_total),
        ("failed", stats.nacked_total),
        ("leases lost", stats.expired_total),
        ("died", stats.dead_total),
        ("cancelled", stats.cancelled_total),
    ];
    for (label, number) in numbers {
        row(label, number.to_string());
    }
    let oldest = stats.oldest_pending;
    row(
        "oldest pending",
        oldest.map_or("-".to_owned(), |at| moment(at.0)),
    );
    for (label, text) in settings_rows(&info.settings) {
        row(label, text);
    }
    out
}
