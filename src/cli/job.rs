//! `rrqctl job`: look at jobs, cancel them, wait for their end.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::complaint::NO_SUCH_JOB;
use crate::cli::filter::FilterArgs;
use crate::cli::job_view::{as_rows, as_text, finished_rows};
use crate::cli::listing::{self, Broken, Look, PartArgs};
use crate::cli::terminal::{count, harmless, moment, print, say, say_json};
use crate::cli::{Common, Output, arguments};
use crate::client::{Client, Ended, Error, JobEnd, JobId, JobState, JobView};
use crate::runtime::json;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl job list -q emails --state delayed
  rrqctl job get -q emails --key order-42";

const GET_EXAMPLES: &str = "\
Examples:
  rrqctl job get 00070000070000010000000000000000
  rrqctl job get -q emails --key order-42
  rrqctl job get -q emails --key order-42 --output json";

const LIST_EXAMPLES: &str = "\
Examples:
  rrqctl job list -q emails
  rrqctl job list -q emails --state delayed --older-than 1h
  rrqctl job list -q emails --all --output json | jq -r '.jobs[].id'

Pending jobs come in the order in which they are handed out. Finished jobs are
remembered only where the queue retains them: `rrqctl queue alter --retain N`.";

const CANCEL_EXAMPLES: &str = "\
Example:
  rrqctl job cancel 00070000070000010000000000000000

A worker that has the job in hand loses its lease: it notices when it next
extends it. The job's key is remembered on for the queue's window.";

const WAIT_EXAMPLES: &str = "\
Examples:
  rrqctl job wait 00070000070000010000000000000000
  rrqctl job wait 00070000070000010000000000000000 --timeout 5min

Exit status 0 if it is done, 1 if it is dead, cancelled or dropped, or has not
ended in time. How it ended is certain only where its queue retains finished
jobs; elsewhere all that is known is that it is over.";

#[derive(clap::Args, Debug)]
pub(super) struct JobArgs {
    #[command(subcommand)]
    verb: JobVerb,
}

#[derive(clap::Subcommand, Debug)]
enum JobVerb {
    /// Show a job: its state, attempts, times, payload.
    #[command(after_help = GET_EXAMPLES)]
    Get(GetArgs),
    /// Show the jobs of a queue; none is leased by it.
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Take jobs out of their queues, for good.
    #[command(after_help = CANCEL_EXAMPLES)]
    Cancel(CancelArgs),
    /// Wait until a job is over.
    #[command(after_help = WAIT_EXAMPLES)]
    Wait(WaitArgs),
}

#[derive(clap::Args, Debug)]
struct GetArgs {
    /// The job's id, as `rrqctl enqueue` prints it.
    #[arg(
        value_name = "ID",
        required_unless_present = "key",
        conflicts_with_all = ["key", "queue"]
    )]
    id: Option<String>,
    /// The queue of the key [default: none].
    #[arg(short, long, value_name = "NAME", requires = "key")]
    queue: Option<String>,
    /// The job's idempotency key [default: none].
    #[arg(long, value_name = "KEY", requires = "queue")]
    key: Option<OsString>,
}

#[derive(clap::Args, Debug)]
struct ListArgs {
    /// The queue.
    #[arg(short, long, value_name = "NAME")]
    queue: String,
    /// Which jobs.
    #[arg(long, value_name = "STATE", default_value = "pending")]
    state: State,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    part: PartArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    /// Ready to be handed out.
    Pending,
    /// Waiting for a time.
    Delayed,
    /// In the hands of a worker.
    InFlight,
    /// Out of attempts or time, or buried.
    Dead,
    /// Over, and remembered.
    Finished,
}

#[derive(clap::Args, Debug)]
struct CancelArgs {
    /// The jobs' ids.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

#[derive(clap::Args, Debug)]
struct WaitArgs {
    /// The job's id.
    #[arg(value_name = "ID")]
    id: String,
    /// Give up after this time.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = arguments::duration)]
    timeout: Duration,
}

pub(super) async fn run(args: &JobArgs, common: &Common) -> Result<(), Report> {
    match &args.verb {
        JobVerb::Get(args) => get(args, common).await,
        JobVerb::List(args) => list(args, common).await,
        JobVerb::Cancel(args) => {
            let ids = parse_ids(&args.ids)?;
            let client = common.connect().await?;
            let mut outcomes = Vec::new();
            for id in &ids {
                outcomes.push(client.cancel(*id).await);
            }
            client.close().await;
            tell("cancelled", &ids, &outcomes, common)
        }
        JobVerb::Wait(args) => wait(args, common).await,
    }
}

/// Reads the id of a job.
pub(super) fn parse_id(text: &str) -> Result<JobId, Report> {
    text.parse().map_err(|error| {
        Report::error(Code::BadArgument, format!("`{text}` is no job id: {error}"))
            .fix("an id as `rrqctl enqueue` and `rrqctl job list` print it")
    })
}

/// Reads the ids of jobs.
pub(super) fn parse_ids(texts: &[String]) -> Result<Vec<JobId>, Report> {
    texts.iter().map(|text| parse_id(text)).collect()
}

/// Tells what became of several jobs; the first that was refused decides how the command ends.
pub(super) fn tell(
    done: &str,
    ids: &[JobId],
    outcomes: &[Result<(), Error>],
    common: &Common,
) -> Result<(), Report> {
    let number = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let pairs = || ids.iter().zip(outcomes);
    match common.output {
        Output::Json => {
            let jobs = pairs().map(|(id, outcome)| {
                json!({
                    "id": id.to_string(),
                    "done": outcome.is_ok(),
                    "code": outcome.as_ref().err().map(|error| error.code().to_string()),
                })
            });
            let mut value = json!({"jobs": jobs.collect::<Vec<_>>()});
            json::insert(&mut value, done, json!(number));
            say_json(&value)?;
        }
        Output::Table => say(&format!("{} {done}", count(number as u64, "job")))?,
    }
    let refused = pairs().find_map(|(id, outcome)| Some((id, outcome.as_ref().err()?)));
    match refused {
        None => Ok(()),
        Some((id, error)) => Err(common.complaint(error).location(format!("job {id}"))),
    }
}

async fn get(args: &GetArgs, common: &Common) -> Result<(), Report> {
    let id = args.id.as_deref().map(parse_id).transpose()?;
    let client = common.connect().await?;
    let name = || {
        let key = args.key.as_deref().unwrap_or_default().as_bytes();
        let queue = args.queue.as_deref().unwrap_or_default();
        format!("of key {} in queue {queue}", harmless(key))
    };
    let (found, asked) = match (id, &args.queue, &args.key) {
        (Some(id), ..) => (client.job(id).await, id.to_string()),
        (None, Some(queue), Some(key)) => {
            let find = async {
                let queue = client.find_queue(queue).await?;
                queue.job_by_key(key.as_bytes().to_vec()).await
            };
            (find.await, name())
        }
        _ => return Err(Report::error(Code::BadArgument, "neither an id nor a key")),
    };
    // How it ended, if its queue remembers.
    let ended = match (&found, id) {
        (Err(error), Some(id)) if error.code() == Code::Finished => {
            Some((id, client.wait(id, Duration::ZERO).await))
        }
        _ => None,
    };
    client.close().await;
    match (found, ended) {
        (Ok(job), _) => match common.output {
            Output::Table => print(&as_text(&job)),
            Output::Json => say_json(&json::job(&job, true)),
        },
        (Err(_), Some((id, Ok(ended)))) => match common.output {
            Output::Table => print(&ended_text(id, &ended)),
            Output::Json => say_json(&ended_json(id, &ended)),
        },
        (Err(error), _) => match error.code() {
            Code::Finished => finished(&asked, common.output),
            Code::NotFound | Code::QueueChanged => Err(not_found(&error, &asked, common)),
            _ => Err(common.complaint(&error)),
        },
    }
}

fn not_found(error: &Error, asked: &str, common: &Common) -> Report {
    // That its queue is gone, or never was, is not what was asked.
    let mut report = common.complaint(error);
    report.code = Code::NotFound;
    report.what = format!("there is no job {asked}");
    report.fix(NO_SUCH_JOB)
}

/// Done, cancelled, or removed when dead: all that is left is that its key was used.
fn finished(asked: &str, output: Output) -> Result<(), Report> {
    match output {
        Output::Table => print(&format!("job {asked}\n  state     finished\n")),
        Output::Json => say_json(&json!({"id": null, "state": "finished"})),
    }
}

async fn list(args: &ListArgs, common: &Common) -> Result<(), Report> {
    let client = common.connect().await?;
    let listed = list_of(args, &client, common).await;
    client.close().await;
    listed.map_err(|broken| match broken {
        Broken::Call(error) => common.complaint(&error),
        Broken::Report(report) => report,
    })
}

async fn list_of(args: &ListArgs, client: &Client, common: &Common) -> Result<(), Broken> {
    let state = match args.state {
        State::Pending => JobState::Pending,
        State::Delayed => JobState::Delayed,
        State::InFlight => JobState::InFlight,
        State::Dead => JobState::Dead,
        State::Finished => return list_finished(args, client, common).await,
    };
    let queue = client.find_queue(&args.queue).await.map_err(Broken::Call)?;
    let scan = queue.scan(state).filter(args.filter.filter()).bodies();
    let json = |job: &JobView| json::job(job, true);
    let rows = as_rows;
    listing::list(scan, &args.part, Look { rows, json }, common.output).await
}

async fn list_finished(args: &ListArgs, client: &Client, common: &Common) -> Result<(), Broken> {
    if !args.filter.is_empty() {
        let what = "finished jobs are listed without a filter, the newest first";
        let report = Report::error(Code::BadArgument, what);
        return Err(Broken::Report(report.fix("--state finished --limit N")));
    }
    let queue = client.find_queue(&args.queue).await.map_err(Broken::Call)?;
    let (rows, json) = (finished_rows, json::finished);
    let scan = queue.scan_finished();
    listing::list(scan, &args.part, Look { rows, json }, common.output).await
}

async fn wait(args: &WaitArgs, common: &Common) -> Result<(), Report> {
    let id = parse_id(&args.id)?;
    let client = common.connect().await?;
    let ended = client.wait(id, args.timeout).await;
    client.close().await;
    let ended = ended.map_err(|error| match error.code() {
        Code::NotFound => not_found(&error, &args.id, common),
        Code::Timeout => Report::error(Code::Timeout, error.message())
            .fix("a longer --timeout; `rrqctl job get` shows where it stands"),
        _ => common.complaint(&error),
    })?;
    let bad = match &ended {
        Ended::Finished(job) if job.end != JobEnd::Completed => Some(json::end(job.end)),
        Ended::Dead(_) => Some("dead"),
        Ended::Finished(_) | Ended::Unrecorded => None,
    };
    match common.output {
        Output::Json => say_json(&ended_json(id, &ended))?,
        Output::Table => print(&ended_text(id, &ended))?,
    }
    match bad {
        None => Ok(()),
        Some(word) => Err(Report::error(
            Code::WrongState,
            format!("job {id} is {word}, not done"),
        )),
    }
}

fn ended_json(id: JobId, ended: &Ended) -> Value {
    match ended {
        Ended::Finished(job) => json::finished(job),
        Ended::Dead(job) => json::job(job, true),
        Ended::Unrecorded => json!({"id": id.to_string(), "state": "finished"}),
    }
}

fn ended_text(id: JobId, ended: &Ended) -> String {
    match ended {
        Ended::Dead(job) => as_text(job),
        Ended::Unrecorded => format!("job {id}\n  state     finished\n"),
        Ended::Finished(job) => {
            let mut out = format!(
                "job {id}\n  state     {}\n  attempts  {}\n  enqueued  {}\n  finished  {}\n",
                json::end(job.end),
                job.attempts,
                moment(job.enqueued_at.0),
                moment(job.finished_at.0),
            );
            if let Some(result) = &job.result {
                out += &format!("  result    {}\n", harmless(result).trim_end());
            }
            out
        }
    }
}
