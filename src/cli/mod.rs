//! `rrqctl`: what people type. One file a verb; `arguments.rs` reads values, `terminal.rs` writes.
//!
//! | file | command |
//! | --- | --- |
//! | `enqueue.rs`, `jobs_file.rs` | `rrqctl enqueue`: an argument, standard input or a jobs file |
//! | `work.rs`, `run.rs` | `rrqctl work`: lease jobs, run a command for each |
//! | `status.rs` | `rrqctl status` |
//! | `job.rs` | `rrqctl job get` |
//! | `repair.rs`, `survivors.rs` | `rrqctl repair`: the files of a stopped, damaged node |
//!
//! Standard output carries data only; what is told to people besides goes to standard error. Every
//! failure is a [`Report`] and an exit status by its kind; no panic text reaches anybody.

mod arguments;
mod complaint;
mod enqueue;
mod job;
mod jobs_file;
mod repair;
mod run;
mod status;
mod survivors;
mod terminal;
mod work;

use crate::base::code::Code;
use crate::base::report::Report;
use crate::client::{Client, Options};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::process::ExitCode;

/// rrq's command line: enqueue jobs, run them, look after the server.
#[derive(Debug, Parser)]
#[command(name = "rrqctl", version, max_term_width = 80, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  rrq-node                                       start a server, in ./rrq-data
  rrqctl enqueue -q emails '{\"to\":\"a@b.c\"}'      add a job
  rrqctl work -q emails -- ./send.sh             run ./send.sh for each job
  rrqctl status                                  what the server holds

`rrqctl VERB --help` tells more of each.";

/// What every verb understands.
#[derive(Args, Clone, Debug)]
struct Common {
    /// Where the server is; several addresses are separated by commas.
    #[arg(
        long,
        global = true,
        env = "RRQ_SERVER",
        hide_env_values = true,
        default_value = "127.0.0.1:7411",
        value_name = "HOST:PORT"
    )]
    server: String,
    /// The form of what is printed.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "text",
        value_name = "FORM"
    )]
    output: Output,
}

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
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
    /// Look at one job.
    #[command(after_help = job::EXAMPLES)]
    Job(job::JobArgs),
    /// Show what is damaged in the data of a stopped node, and give up what is lost.
    #[command(after_help = repair::EXAMPLES)]
    Repair(repair::RepairArgs),
}

/// The whole program `rrqctl`; the first argument is its name.
#[must_use]
pub fn main_with_args(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    end_with_panics();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let result = match &cli.verb {
        Verb::Repair(args) => repair::run(args, &cli.common),
        verb => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Report::error(Code::Bug, format!("cannot start: {error}")))
            .and_then(|runtime| runtime.block_on(run(verb, &cli.common))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            terminal::warn(&report.to_string());
            ExitCode::from(report.exit_code())
        }
    }
}

async fn run(verb: &Verb, common: &Common) -> Result<(), Report> {
    match verb {
        Verb::Enqueue(args) => enqueue::run(args, common).await,
        Verb::Work(args) => work::run(args, common).await,
        Verb::Status(args) => status::run(args, common).await,
        Verb::Job(args) => job::run(args, common).await,
        Verb::Repair(args) => repair::run(args, common),
    }
}

impl Common {
    /// Connects.
    async fn connect(&self) -> Result<Client, Report> {
        let options = Options {
            agent: concat!("rrqctl/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..Options::default()
        };
        let connected = Client::connect_with(&self.server, options).await;
        connected.map_err(|error| self.complaint(&error))
    }

    fn complaint(&self, error: &crate::client::Error) -> Report {
        complaint::of(error, &self.server)
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
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let verb: Vec<&str> = usage
        .unwrap_or("rrqctl")
        .split(' ')
        .take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect();
    let help = format!("{} --help shows what there is", verb.join(" "));
    let report =
        Report::error(Code::BadArgument, what.join("\n")).fix(tip.map_or(help, str::to_owned));
    terminal::warn(&report.to_string());
    ExitCode::from(report.exit_code())
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
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.contains("Example"), "{name} shows no example");
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{name}: {line:?} is too wide");
            }
            for argument in command.get_arguments() {
                let text = argument.get_help();
                assert!(text.is_some(), "{name}: {} has no text", argument.get_id());
            }
            command.get_subcommands().for_each(look);
        }
        let command = Cli::command();
        command.clone().debug_assert();
        look(&command);
    }
}
