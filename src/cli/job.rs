//! `rrqctl job get`: one job, by its id or by its key.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::terminal::{harmless, moment, print, say_json, span};
use crate::cli::{Common, Output};
use crate::client::{Error, JobId, JobState, JobView};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

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
            Output::Text => print(&as_text(&job)),
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
        Output::Text => print(&format!("job {asked}\n  state     finished\n")),
        Output::Json => say_json(&json!({
            "id": id.map(|id| id.to_string()),
            "state": "finished",
        })),
    }
}

fn state(state: JobState) -> &'static str {
    match state {
        JobState::Pending => "pending",
        JobState::Delayed => "delayed",
        JobState::InFlight => "in flight",
        JobState::Dead => "dead",
    }
}

fn as_text(job: &JobView) -> String {
    let mut out = format!("job {}\n", job.id);
    let mut row = |label: &str, text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {label:<9} {}", text.replace('\n', "\n            "));
    };
    let left = job.remaining_ms.map(|ms| span(Duration::from_millis(ms)));
    let detail = match (job.state, left, job.run_at) {
        (JobState::Delayed, _, Some(at)) => format!(", due at {}", moment(at.0)),
        (JobState::Delayed, Some(left), _) => format!(", next attempt in {left}"),
        (JobState::InFlight, Some(left), _) => format!(", lease ends in {left}"),
        _ => String::new(),
    };
    row("state", format!("{}{detail}", state(job.state)));
    row(
        "attempts",
        format!("{} of {}", job.attempts, job.max_attempts),
    );
    row("priority", job.priority.to_string());
    row("enqueued", moment(job.enqueued_at.0));
    if let Some(at) = job.expires_at {
        row("expires", moment(at.0));
    }
    if job.body.run_limit_ms > 0 {
        let limit = Duration::from_millis(job.body.run_limit_ms.into());
        row("run limit", span(limit));
    }
    if let Some(key) = &job.body.key {
        row("key", harmless(key));
    }
    for (name, value) in &job.body.headers {
        row(
            "header",
            format!("{}={}", harmless(name.as_bytes()), harmless(value)),
        );
    }
    if !job.last_failure.is_empty() {
        row("failure", harmless(&job.last_failure).trim_end().to_owned());
    }
    row("payload", harmless(&job.body.payload).trim_end().to_owned());
    out
}

/// Bytes as text if they are, else as hexadecimal digits under another name.
fn text_or_hex(name: &str, bytes: &[u8]) -> (String, Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), json!(text)),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (format!("{name}_hex"), json!(hex))
        }
    }
}

fn as_json(job: &JobView) -> Value {
    let mut value = json!({
        "id": job.id.to_string(),
        "state": state(job.state).replace(' ', "_"),
        "priority": job.priority,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "enqueued_at_ms": job.enqueued_at.0,
        "run_at_ms": job.run_at.map(|at| at.0),
        "expires_at_ms": job.expires_at.map(|at| at.0),
        "remaining_ms": job.remaining_ms,
        "run_limit_ms": job.body.run_limit_ms,
    });
    let headers = job.body.headers.iter();
    let headers = headers.map(|(name, bytes)| text_or_hex(name, bytes));
    if let Some(object) = value.as_object_mut() {
        object.insert("headers".to_owned(), Value::Object(headers.collect()));
        object.extend([text_or_hex("payload", &job.body.payload)]);
        object.extend([text_or_hex("last_failure", &job.last_failure)]);
        object.extend(job.body.key.iter().map(|key| text_or_hex("key", key)));
    }
    value
}
