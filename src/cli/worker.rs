//! `rrqctl worker list`: who works.

use crate::base::report::Report;
use crate::cli::terminal::{harmless, print, say_json, span, table};
use crate::cli::{Common, Output};
use crate::client::{GroupId, WorkerSession};
use crate::runtime::json;
use serde_json::{Value, json};
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
Example:
  rrqctl worker list";

const LIST_EXAMPLES: &str = "\
Examples:
  rrqctl worker list
  rrqctl worker list --output json | jq '.workers[] | select(.leases > 0)'

A worker has a session in each group that it works in: one row each. One that
never told its name has none.";

#[derive(clap::Args, Debug)]
pub(super) struct WorkerArgs {
    #[command(subcommand)]
    verb: WorkerVerb,
}

#[derive(clap::Subcommand, Debug)]
enum WorkerVerb {
    /// Show the sessions that hold jobs or wait for some.
    #[command(after_help = LIST_EXAMPLES)]
    List,
}

pub(super) async fn run(args: &WorkerArgs, common: &Common) -> Result<(), Report> {
    let WorkerVerb::List = args.verb;
    let client = common.connect().await?;
    let workers = client.workers().await;
    client.close().await;
    let workers = workers.map_err(|error| common.complaint(&error))?;
    match common.output {
        Output::Json => {
            let workers: Vec<Value> = workers
                .iter()
                .map(|(group, worker)| json::worker(*group, worker))
                .collect();
            say_json(&json!({"workers": workers}))
        }
        Output::Table if workers.is_empty() => print("nobody works\n"),
        Output::Table => print(&as_table(&workers)),
    }
}

fn as_table(workers: &[(GroupId, WorkerSession)]) -> String {
    let heads = [
        "worker", "group", "session", "jobs", "capacity", "waiting", "silent", "tags",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(workers.iter().map(|(group, worker)| {
        let info = worker.worker.as_ref();
        let name = info.map_or("-".to_owned(), |info| harmless(info.name.as_bytes()));
        vec![
            name,
            group.to_string(),
            worker.session.0.to_string(),
            worker.leases.to_string(),
            info.map_or("-".to_owned(), |info| info.capacity.to_string()),
            worker.waiting.to_string(),
            span(Duration::from_millis(worker.silent_ms)),
            info.map_or(String::new(), |info| {
                harmless(info.tags.join(" ").as_bytes())
            }),
        ]
    }));
    table(&rows)
}
