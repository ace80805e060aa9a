//! `rrqctl`: what people type. One file a noun; `arguments.rs` reads values, `terminal.rs` writes.
//!
//! | file | command |
//! | --- | --- |
//! | `enqueue.rs`, `jobs_file.rs` | `rrqctl enqueue`: an argument, standard input or a jobs file |
//! | `work.rs`, `run.rs` | `rrqctl work`: lease jobs, run a command for each |
//! | `status.rs` | `rrqctl status` |
//! | `cluster.rs` | `rrqctl cluster`: whether the nodes agree |
//! | `members.rs` | `rrqctl cluster add`, `replace`, `remove`: who belongs to it |
//! | `demo.rs` | `rrqctl demo`: a cluster whose leaders are killed, to be watched |
//! | `queue.rs`, `queue_settings.rs` | `rrqctl queue` |
//! | `job.rs`, `job_view.rs` | `rrqctl job` |
//! | `dead.rs` | `rrqctl dead` |
//! | `filter.rs`, `listing.rs` | which jobs are meant, and lists of them |
//! | `worker.rs` | `rrqctl worker` |
//! | `log.rs`, `log_walk.rs`, `command_json.rs` | `rrqctl log`: the log of a stopped node |
//! | `snapshot.rs`, `offline.rs` | `rrqctl snapshot`: the checkpoints of a stopped node |
//! | `repair.rs`, `new_life.rs`, `salvage.rs`, `survivors.rs` | `rrqctl repair`: the files of a stopped, damaged node |
//! | `check.rs`, `config.rs`, `explain.rs` | preflight, configuration, error codes |
//! | `contexts.rs` | `rrqctl context`: saved addresses |
//! | `pages.rs` | `rrqctl completions`, `rrqctl man` |
//!
//! Standard output carries data only; what is told to people besides goes to standard error.
//! Nothing is coloured, so `NO_COLOR` holds by itself. Every failure is a [`Report`] and an exit
//! status by its kind; no panic text reaches anybody.

mod arguments;
mod check;
mod cluster;
mod command_json;
mod complaint;
mod config;
mod contexts;
mod dead;
mod demo;
mod enqueue;
mod explain;
mod filter;
mod job;
mod job_view;
pub mod jobs_file;
mod listing;
mod log;
mod log_walk;
mod members;
mod new_life;
mod offline;
mod pages;
mod queue;
mod queue_settings;
mod repair;
mod run;
mod salvage;
mod snapshot;
mod status;
mod survivors;
mod terminal;
mod work;
mod worker;

use crate::base::code::Code;
use crate::base::report::Report;
use crate::client::{Client, Options, Queue};
use crate::loadtest::NODE_SUBCOMMAND;
use crate::runtime::config::command as node_command;
use crate::runtime::node;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

/// rrq's command line: enqueue jobs, run them, look after the server.
#[derive(Debug, Parser)]
#[command(name = "rrqctl", version, max_term_width = 80, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    flags: Flags,
}

/// The queue of jobs that name none.
const DEFAULT_QUEUE: &str = "default";

/// A server that does not answer is waited for in silence no longer than this.
const SILENCE_MAX: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  rrq-node                                       start a server, in ./rrq-data
  rrqctl enqueue -q emails '{\"to\":\"a@b.c\"}'      add a job
  rrqctl work -q emails -- ./send.sh             run ./send.sh for each job
  rrqctl status                                  what the server holds

`rrqctl COMMAND --help` tells more of each.

Exit status: 0 done; 1 failed, or the answer is no; 2 a wrong flag, argument or
configuration; 3 something is missing around it; 4 a port or a directory is in
use; 5 data is damaged; 6 another version, or somebody else's data.
Standard output carries data only. Nothing is coloured.";

/// What every verb understands.
#[derive(Args, Clone, Debug)]
struct Flags {
    /// Where the server is; several addresses are separated by commas [default: that of the context
    /// in use, else 127.0.0.1:7411].
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        env = "RRQ_SERVER",
        hide_env_values = true,
        value_name = "HOST:PORT"
    )]
    server: Option<String>,
    /// The form of what is printed.
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_enum,
        env = "RRQ_OUTPUT",
        hide_env_values = true,
        default_value = "table",
        value_name = "FORM"
    )]
    output: Output,
}

/// What every verb that asks a server goes by.
#[derive(Clone, Debug)]
struct Common {
    server: String,
    output: Output,
}

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[value(alias = "text")]
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a job, or all jobs of a file.
    #[command(after_help = enqueue::EXAMPLES)]
    Enqueue(enqueue::EnqueueArgs),
    /// Take jobs from a queue and run a command for each.
    #[command(after_help = work::EXAMPLES)]
    Work(work::WorkArgs),
    /// Show nodes, shards, groups and queues.
    #[command(after_help = status::EXAMPLES)]
    Status(status::StatusArgs),
    /// Show whether the nodes of a cluster are there and agree, and change who belongs to it.
    #[command(after_help = cluster::EXAMPLES)]
    Cluster(cluster::ClusterArgs),
    /// Make, show, change, hold up, empty and remove queues.
    #[command(after_help = queue::EXAMPLES)]
    Queue(queue::QueueArgs),
    /// Look at jobs, cancel them, wait for their end.
    #[command(after_help = job::EXAMPLES)]
    Job(job::JobArgs),
    /// Look at dead jobs, let them be tried again, remove them.
    #[command(after_help = dead::EXAMPLES)]
    Dead(dead::DeadArgs),
    /// Show who works.
    #[command(after_help = worker::EXAMPLES)]
    Worker(worker::WorkerArgs),
    /// Read the log of a stopped node.
    #[command(after_help = log::EXAMPLES)]
    Log(log::LogArgs),
    /// Read the checkpoints of a stopped node.
    #[command(after_help = snapshot::EXAMPLES)]
    Snapshot(snapshot::SnapshotArgs),
    /// Show what is damaged in the data of a stopped node, and give up what is lost.
    #[command(after_help = repair::EXAMPLES)]
    Repair(repair::RepairArgs),
    /// Look whether a node could run here.
    #[command(after_help = check::EXAMPLES)]
    Check(check::CheckArgs),
    /// Show or check the configuration of a node.
    #[command(after_help = config::EXAMPLES)]
    Config(config::ConfigArgs),
    /// Start nodes here, kill their leader again and again, and count every job.
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::DemoArgs),
    /// Tell what an error code stands for.
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::ExplainArgs),
    /// Save addresses of servers under names.
    #[command(after_help = contexts::EXAMPLES)]
    Context(contexts::ContextArgs),
    /// Print completions for a shell.
    #[command(after_help = pages::COMPLETIONS_EXAMPLES)]
    Completions(pages::CompletionsArgs),
    /// Write the manual pages.
    #[command(after_help = pages::MAN_EXAMPLES)]
    Man(pages::ManArgs),
}

/// The whole program `rrqctl`; the first argument is its name.
#[must_use]
pub fn main_with_args(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.get(1).is_some_and(|arg| arg == NODE_SUBCOMMAND) {
        args.remove(1);
        return node::main_with_args(args);
    }
    end_with_panics();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let output = cli.flags.output;
    let result = match &cli.verb {
        Verb::Log(args) => done(log::run(args, output)),
        Verb::Snapshot(args) => done(snapshot::run(args, output)),
        Verb::Repair(args) => done(repair::run(args, output)),
        Verb::Check(args) => check::run(args, output),
        Verb::Config(args) => done(config::run(args, output)),
        Verb::Demo(args) => demo::run(args, output),
        Verb::Explain(args) => done(explain::run(args, output)),
        Verb::Context(args) => done(contexts::run(args, output)),
        Verb::Completions(args) => done(pages::completions(args, Cli::command())),
        Verb::Man(args) => done(pages::man(args, vec![Cli::command(), node_command()])),
        verb => ask(verb, &cli.flags),
    };
    match result {
        Ok(status) => status,
        Err(report) => {
            terminal::warn(&report.to_string());
            ExitCode::from(report.exit_code())
        }
    }
}

/// What a verb that has no answer of its own ends with.
fn done(result: Result<(), Report>) -> Result<ExitCode, Report> {
    result.map(|()| ExitCode::SUCCESS)
}

/// The verbs that ask a server.
fn ask(verb: &Verb, flags: &Flags) -> Result<ExitCode, Report> {
    let common = Common {
        server: match &flags.server {
            Some(server) => server.clone(),
            None => contexts::current()?,
        },
        output: flags.output,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Report::error(Code::Bug, format!("cannot start: {error}")))?;
    runtime.block_on(async {
        match verb {
            Verb::Enqueue(args) => done(enqueue::run(args, &common).await),
            Verb::Work(args) => done(work::run(args, &common).await),
            Verb::Cluster(args) => cluster::run(args, &common).await,
            Verb::Status(args) => done(status::run(args, &common).await),
            Verb::Queue(args) => done(queue::run(args, &common).await),
            Verb::Job(args) => done(job::run(args, &common).await),
            Verb::Dead(args) => done(dead::run(args, &common).await),
            Verb::Worker(args) => done(worker::run(args, &common).await),
            _ => unreachable!("the other verbs ask no server"),
        }
    })
}

impl Common {
    /// Connects.
    async fn connect(&self) -> Result<Client, Report> {
        let options = Options {
            agent: concat!("rrqctl/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..Options::default()
        };
        let patience = options.connect_deadline;
        let connect = Client::connect_with(&self.server, options);
        let mut connect = std::pin::pin!(connect);
        let connected = match tokio::time::timeout(SILENCE_MAX, &mut connect).await {
            Ok(connected) => connected,
            Err(_) => {
                let seconds = patience.as_secs();
                terminal::warn(&format!(
                    "no answer from {} yet; waiting up to {seconds} s",
                    self.server
                ));
                connect.await
            }
        };
        connected.map_err(|error| self.complaint(&error))
    }

    fn complaint(&self, error: &crate::client::Error) -> Report {
        complaint::of(error, &self.server)
    }
}

/// A queue by its name; that one was made of it is said, since it may be a typing error.
async fn queue_or_new(client: &Client, name: &str) -> Result<Queue, crate::client::Error> {
    match client.find_queue(name).await {
        Err(error) if error.code() == Code::NoSuchQueue => {
            let made = client.queue(name).await?;
            if name != DEFAULT_QUEUE {
                terminal::warn(&format!("there was no queue {name}: it is made"));
            }
            Ok(made)
        }
        found => found,
    }
}

/// What clap has to say, in the form of all messages.
fn explain(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    if !error.use_stderr() {
        return match terminal::print(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(report) => ExitCode::from(report.exit_code()),
        };
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        terminal::warn(text.trim_end());
        return ExitCode::from(2);
    }
    let text = text.trim_start_matches("error: ");
    let what: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
    let tip = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    let help = format!("{} --help shows what there is", named_verb().join(" "));
    let report =
        Report::error(Code::BadArgument, what.join("\n")).fix(tip.map_or(help, str::to_owned));
    terminal::warn(&report.to_string());
    ExitCode::from(report.exit_code())
}

/// The program and the verbs that the command line names, as far as there are such.
fn named_verb() -> Vec<String> {
    let mut verb = vec!["rrqctl".to_owned()];
    let mut known = Cli::command();
    for word in std::env::args().skip(1) {
        let Some(below) = known.find_subcommand(&word).cloned() else {
            break;
        };
        verb.push(word);
        known = below;
    }
    verb
}

/// A bug is told as one, without a backtrace.
fn end_with_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let text = panic.payload_as_str().unwrap_or("no message");
        let report = Report::error(Code::Bug, format!("rrqctl has a bug: {text}"))
            .location(place.unwrap_or_else(|| "an unknown place".to_owned()))
            .fix("report this message");
        terminal::warn(&report.to_string());
        std::process::exit(i32::from(report.exit_code()));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_has_an_example_and_every_flag_a_text() {
        fn look(command: &clap::Command) {
            let name = command.get_name();
            if name == "help" {
                return;
            }
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.contains("Example"), "{name} shows no example");
            for argument in command.get_arguments() {
                let (id, text) = (argument.get_id(), argument.get_help());
                let text = text.map(ToString::to_string).unwrap_or_default();
                assert!(!text.is_empty(), "{name}: {id} has no text");
                assert!(
                    !argument.is_hide_env_set() || argument.get_env().is_none(),
                    "{name}: the variable of {id} is not told"
                );
                let is_option = argument.get_long().is_some();
                let takes_value = argument.get_action().takes_values();
                let has_default =
                    !argument.get_default_values().is_empty() || text.contains("[default: ");
                assert!(
                    !is_option || !takes_value || argument.is_required_set() || has_default,
                    "{name}: the default of {id} is not told"
                );
            }
            let shown = command
                .clone()
                .term_width(80)
                .render_long_help()
                .to_string();
            for line in shown.lines() {
                assert!(line.chars().count() <= 80, "{name}: {line:?} is too wide");
            }
            command.get_subcommands().for_each(look);
        }
        let mut command = Cli::command();
        command.clone().debug_assert();
        command.build();
        look(&command);
    }
}
