//! `rrqctl job get`: one job, by its id or by its key.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::job_view::{as_json, as_text};
use crate::cli::terminal::{harmless, print, say_json};
use crate::cli::{Common, Output};
use crate::client::{Error, JobId};
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

pub(super) const EXAMPLES: &str = "\
Example:
  rrqctl job get -q emails --key order-42";

const GET_EXAMPLES: &str = "\
Examples:
  rrqctl job get 00070000070000010000000000000000
  rrqctl job get -q emails --key order-42
  rrqctl job get -q emails --key order-42 --output json";

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
    /// The queue of the key.
    #[arg(short, long, value_name = "NAME", requires = "key")]
    queue: Option<String>,
    /// The job's idempotency key.
    #[arg(long, value_name = "KEY", requires = "queue")]
    key: Option<OsString>,
}

pub(super) async fn run(args: &JobArgs, common: &Common) -> Result<(), Report> {
    let JobVerb::Get(args) = &args.verb;
    let id = match &args.id {
        None => None,
        Some(text) => Some(text.parse::<JobId>().map_err(|error| {
            Report::error(Code::BadArgument, format!("`{text}` is no job id: {error}"))
                .fix("rrqctl job get takes an id as enqueue prints it, or -q NAME --key KEY")
        })?),
    };
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
    client.close().await;
    match found {
        Ok(job) => match common.output {
            Output::Table => print(&as_text(&job)),
            Output::Json => say_json(&as_json(&job)),
        },
        Err(error) if error.code() == Code::Finished => finished(id, &asked, common.output),
        Err(error) if error.code() == Code::NotFound => Err(not_found(&error, &asked, common)),
        Err(error) => Err(common.complaint(&error)),
    }
}

fn not_found(error: &Error, asked: &str, common: &Common) -> Report {
    let mut report = common.complaint(error);
    report.what = format!("there is no job {asked}");
    report
}

/// Done, cancelled, or removed when dead: all that is left is that the id was given out.
fn finished(id: Option<JobId>, asked: &str, output: Output) -> Result<(), Report> {
    match output {
        Output::Table => print(&format!("job {asked}\n  state     finished\n")),
        Output::Json => say_json(&json!({
            "id": id.map(|id| id.to_string()),
            "state": "finished",
        })),
    }
}
