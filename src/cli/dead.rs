//! `rrqctl dead`: the jobs that gave up, and what becomes of them.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::filter::FilterArgs;
use crate::cli::job::{parse_id, parse_ids, tell};
use crate::cli::job_view::{as_text, cell, dead_rows, now_ms};
use crate::cli::listing::{self, Broken, Look, PartArgs};
use crate::cli::terminal::{Progress, count, harmless, may, print, say, say_json, span, table};
use crate::cli::{Common, Output};
use crate::client::{Client, Error, JobId, JobState, JobView, Queue, SweepAction};
use crate::runtime::json;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl dead list -q emails --group-by reason
  rrqctl dead requeue -q emails --reason timeout --rate 100";

const LIST_EXAMPLES: &str = "\
Examples:
  rrqctl dead list -q emails
  rrqctl dead list -q emails --group-by reason
  rrqctl dead list -q emails --reason 'status 1' --older-than 1h --all

Grouped reasons are cut at the first line and have `#` for their numbers.";

const SHOW_EXAMPLES: &str = "\
Example:
  rrqctl dead show 00070000070000010000000000000000";

const REQUEUE_EXAMPLES: &str = "\
Examples:
  rrqctl dead requeue 00070000070000010000000000000000
  rrqctl dead requeue -q emails --reason timeout --dry-run
  rrqctl dead requeue -q emails --reason timeout --rate 100 --yes
  rrqctl dead requeue -q emails --all

The jobs become pending, with their attempts counted anew.";

const DELETE_EXAMPLES: &str = "\
Examples:
  rrqctl dead delete 00070000070000010000000000000000
  rrqctl dead delete -q emails --older-than 30d --dry-run
  rrqctl dead delete -q emails --older-than 30d --yes

Their keys are remembered on: an enqueue with one adds no job until the queue's
window for keys has passed.";

/// Jobs looked at in one step when they are counted.
const PAGE: u32 = 1024;

#[derive(clap::Args, Debug)]
pub(super) struct DeadArgs {
    #[command(subcommand)]
    verb: DeadVerb,
}

#[derive(clap::Subcommand, Debug)]
enum DeadVerb {
    /// Show dead jobs: why, after how many attempts, how old.
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Show one dead job whole.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowArgs),
    /// Let dead jobs be tried again.
    #[command(after_help = REQUEUE_EXAMPLES)]
    Requeue(ActArgs),
    /// Remove dead jobs, for good.
    #[command(after_help = DELETE_EXAMPLES)]
    Delete(ActArgs),
}

#[derive(clap::Args, Debug)]
struct ListArgs {
    /// The queue.
    #[arg(short, long, value_name = "NAME")]
    queue: String,
    /// Count the jobs that are alike instead [default: none].
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["limit", "after", "all"])]
    group_by: Option<GroupBy>,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    part: PartArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GroupBy {
    /// Why they died.
    Reason,
}

#[derive(clap::Args, Debug)]
struct ShowArgs {
    /// The job's id.
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(clap::Args, Debug)]
struct ActArgs {
    /// The jobs' ids; or --queue and a filter, or --all.
    #[arg(
        value_name = "ID",
        required_unless_present = "queue",
        conflicts_with = "queue"
    )]
    ids: Vec<String>,
    /// The queue in which to look [default: none].
    #[arg(short, long, value_name = "NAME")]
    queue: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// All dead jobs of the queue.
    #[arg(long, requires = "queue")]
    all: bool,
    /// Only say how many there are.
    #[arg(long, requires = "queue")]
    dry_run: bool,
    /// At most so many jobs a second [default: as fast as it goes].
    #[arg(long, value_name = "N", requires = "queue",
          value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(args: &DeadArgs, common: &Common) -> Result<(), Report> {
    let ids = match &args.verb {
        DeadVerb::Show(args) => vec![parse_id(&args.id)?],
        DeadVerb::List(_) => Vec::new(),
        DeadVerb::Requeue(args) | DeadVerb::Delete(args) => args.check()?,
    };
    let client = common.connect().await?;
    let done = match &args.verb {
        DeadVerb::List(args) => list(args, &client, common).await,
        DeadVerb::Show(_) => show(&client, ids[0], common).await,
        DeadVerb::Requeue(args) => act(args, SweepAction::Requeue, &ids, &client, common).await,
        DeadVerb::Delete(args) => act(args, SweepAction::Delete, &ids, &client, common).await,
    };
    client.close().await;
    done.map_err(|broken| match broken {
        Broken::Call(error) => common.complaint(&error),
        Broken::Report(report) => report,
    })
}

impl ActArgs {
    /// The ids that are named; a queue alone does not say which jobs are meant.
    fn check(&self) -> Result<Vec<JobId>, Report> {
        if self.queue.is_some() && self.filter.is_empty() && !self.all {
            return Err(Report::error(
                Code::BadArgument,
                "it is not said which dead jobs are meant",
            )
            .fix("a filter, as --reason TEXT or --older-than 1h, or --all"));
        }
        if self.queue.is_none() && !self.filter.is_empty() {
            return Err(Report::error(Code::BadArgument, "a filter needs a queue")
                .fix("--queue NAME in place of the ids"));
        }
        parse_ids(&self.ids)
    }
}

async fn list(args: &ListArgs, client: &Client, common: &Common) -> Result<(), Broken> {
    let queue = client.find_queue(&args.queue).await.map_err(Broken::Call)?;
    let scan = queue.scan(JobState::Dead).filter(args.filter.filter());
    if args.group_by.is_none() {
        let scan = match common.output {
            Output::Json => scan.bodies(),
            Output::Table => scan,
        };
        let json = |job: &JobView| json::job(job, true);
        let rows = dead_rows;
        return listing::list(scan, &args.part, Look { rows, json }, common.output).await;
    }
    let (_, stats) = queue.info().await.map_err(Broken::Call)?;
    let progress = Progress::new("dead jobs", stats.dead);
    let mut reasons: BTreeMap<String, Alike> = BTreeMap::new();
    let mut scan = scan.limit(PAGE);
    while let Some(page) = scan.next().await.map_err(Broken::Call)? {
        progress.add(page.scanned);
        for job in &page.jobs {
            let reason = fingerprint(&job.last_failure);
            reasons
                .entry(reason)
                .or_insert_with(|| Alike::new(job))
                .add(job);
        }
    }
    drop(progress);
    let mut reasons: Vec<(String, Alike)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, alike)| std::cmp::Reverse(alike.jobs));
    let said = match common.output {
        Output::Json => {
            let reasons = reasons.iter().map(|(reason, alike)| alike.as_json(reason));
            say_json(&json!({"reasons": reasons.collect::<Vec<_>>()}))
        }
        Output::Table if reasons.is_empty() => print("no such jobs\n"),
        Output::Table => print(&grouped(&reasons)),
    };
    said.map_err(Broken::Report)
}

/// Dead jobs with one reason.
struct Alike {
    jobs: u64,
    /// When the first and the last of them were enqueued.
    oldest: u64,
    newest: u64,
    /// One of them.
    example: JobId,
}

impl Alike {
    fn new(job: &JobView) -> Self {
        Self {
            jobs: 0,
            oldest: job.enqueued_at.0,
            newest: job.enqueued_at.0,
            example: job.id,
        }
    }

    fn add(&mut self, job: &JobView) {
        self.jobs += 1;
        self.oldest = self.oldest.min(job.enqueued_at.0);
        self.newest = self.newest.max(job.enqueued_at.0);
    }

    fn as_json(&self, reason: &str) -> Value {
        json!({
            "reason": reason,
            "jobs": self.jobs,
            "oldest_enqueued_at_ms": self.oldest,
            "newest_enqueued_at_ms": self.newest,
            "example": self.example.to_string(),
        })
    }
}

/// What reasons that differ only in their numbers have in common.
fn fingerprint(reason: &[u8]) -> String {
    let mut out = String::new();
    for c in cell(reason).chars() {
        match c.is_ascii_digit() {
            true if out.ends_with('#') => {}
            true => out.push('#'),
            false => out.push(c),
        }
    }
    out
}

fn grouped(reasons: &[(String, Alike)]) -> String {
    let now = now_ms();
    let age = |at: u64| span(Duration::from_millis(now.saturating_sub(at)));
    let heads = ["reason", "jobs", "oldest", "newest", "for example"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(reasons.iter().map(|(reason, alike)| {
        vec![
            reason.clone(),
            alike.jobs.to_string(),
            age(alike.oldest),
            age(alike.newest),
            alike.example.to_string(),
        ]
    }));
    table(&rows)
}

async fn show(client: &Client, id: JobId, common: &Common) -> Result<(), Broken> {
    let job = client.job(id).await.map_err(Broken::Call)?;
    if job.state != JobState::Dead {
        let what = format!("job {id} is not dead");
        let report = Report::error(Code::WrongState, what).fix("rrqctl job get shows it");
        return Err(Broken::Report(report));
    }
    let said = match common.output {
        Output::Table => print(&as_text(&job)),
        Output::Json => say_json(&json::job(&job, true)),
    };
    said.map_err(Broken::Report)
}

async fn act(
    args: &ActArgs,
    action: SweepAction,
    ids: &[JobId],
    client: &Client,
    common: &Common,
) -> Result<(), Broken> {
    let (verb, done) = match action {
        SweepAction::Requeue => ("requeue", "requeued"),
        SweepAction::Delete => ("delete", "deleted"),
    };
    if let Some(name) = &args.queue {
        let queue = client.find_queue(name).await.map_err(Broken::Call)?;
        return sweep(args, action, &queue, common).await;
    }
    let what = format!("{verb} {}", count(ids.len() as u64, "dead job"));
    // What is requeued can be cancelled; what is deleted is gone.
    let is_asked = action == SweepAction::Delete;
    if is_asked && !may(&what, args.yes).map_err(Broken::Report)? {
        return Ok(());
    }
    let outcomes: Vec<Result<(), Error>> = match action {
        SweepAction::Requeue => client.requeue_dead(ids.to_vec()).await,
        SweepAction::Delete => client.delete_dead(ids.to_vec()).await,
    };
    tell(done, ids, &outcomes, common).map_err(Broken::Report)
}

/// Acts on all that the filter lets through, having said how many they are.
async fn sweep(
    args: &ActArgs,
    action: SweepAction,
    queue: &Queue,
    common: &Common,
) -> Result<(), Broken> {
    let filter = args.filter.filter();
    let (_, stats) = queue.info().await.map_err(Broken::Call)?;
    let counted = queue.count(JobState::Dead, filter.clone()).await;
    let matched = counted.map_err(Broken::Call)?;
    let name = harmless(queue.name().as_bytes());
    if args.dry_run {
        let said = match common.output {
            Output::Json => say_json(&json!({"matched": matched, "dead": stats.dead})),
            Output::Table => say(&format!(
                "{matched} of {} of queue {name}",
                count(stats.dead, "dead job")
            )),
        };
        return said.map_err(Broken::Report);
    }
    let (verb, done) = match action {
        SweepAction::Requeue => ("requeue", "requeued"),
        SweepAction::Delete => ("delete", "deleted"),
    };
    let what = format!(
        "{verb} {matched} of {} of queue {name}",
        count(stats.dead, "dead job")
    );
    if matched > 0 && !may(&what, args.yes).map_err(Broken::Report)? {
        return Ok(());
    }
    let progress = Progress::new("dead jobs", matched);
    let sweep = queue.sweep_dead(action, filter);
    let sweep = match args.rate {
        Some(rate) => sweep.rate(rate),
        None => sweep,
    };
    let mut so_far = 0;
    let swept = sweep
        .run(|swept| {
            progress.add(swept.matched - so_far);
            so_far = swept.matched;
        })
        .await;
    drop(progress);
    let swept = match swept {
        Ok(swept) => swept,
        Err(error) => {
            let report = common.complaint(&error);
            let where_it_was = format!("after {} were {done}", count(so_far, "job"));
            return Err(Broken::Report(report.location(where_it_was)));
        }
    };
    let said = match common.output {
        Output::Json => say_json(&json!({"matched": matched, done: swept.matched})),
        Output::Table => say(&format!("{} {done}", count(swept.matched, "job"))),
    };
    said.map_err(Broken::Report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_differ_in_numbers_are_one() {
        assert_eq!(
            fingerprint(b"timeout after 31 s on host-7\nat line 9"),
            "timeout after # s on host-#"
        );
        assert_eq!(fingerprint(b""), "-");
    }
}
