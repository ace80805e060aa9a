//! The command line of `rrq-bench`.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::loadtest::NODE_SUBCOMMAND;
use crate::loadtest::crash_recover;
use crate::loadtest::failover::{self, Strike, Victim};
use crate::loadtest::load;
use crate::loadtest::network;
use crate::loadtest::node::Signal;
use crate::loadtest::sim;
use crate::loadtest::writes;
use crate::runtime::node;
use crate::runtime::sys;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Measures rrq from outside and checks that it keeps its promises.
#[derive(Debug, Parser)]
#[command(name = "rrq-bench", version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kill a node with -9 under load, again and again: how long until it works again, and is any
    /// acknowledged job lost?
    CrashRecover(CrashRecover),
    /// Kill or freeze a node of a cluster under load, again and again: how long do clients wait, and
    /// is any acknowledged job lost?
    Failover(Failover),
    /// Enqueue, and lease and ack, as fast as answers come or at a rate: how much, how fast, at what
    /// cost?
    Load(Load),
    /// Run simulated clusters under faults, one for each seed: is any promise broken?
    Sim(Sim),
    /// Change some jobs of a backlog in one way after the other: what does a node write for that, beside
    /// its log?
    Writes(Writes),
}

#[derive(Args, Debug)]
#[command(after_help = "\
Starts a node, fills it, keeps load on, kills it with -9, starts it again on the same data,
and takes the time until a client has leased and acked a job. After each round it looks at
every job that must be there; at the end it drains all and compares its books with the
node's own counters.

Exit status: 0 if all is accounted for, 1 if a job is lost or came back after its ack.

Examples:
  rrq-bench crash-recover
  rrq-bench crash-recover --jobs 100000 --rounds 30 --cold
  rrq-bench crash-recover --jobs 1000,10000,100000,1000000 --html curve.html
  rrq-bench crash-recover --rounds 100 --json result.json
  rrq-bench crash-recover --nodes 3
  rrq-bench crash-recover --data-dir /mnt/disk/new-folder --shards 1")]
struct CrashRecover {
    /// Nodes: 1, 3 or 5; all are killed at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: u32,
    /// Jobs that wait in the queues while the load is on; several numbers give a curve
    #[arg(
        long,
        value_name = "N,...",
        default_value = "10000",
        value_delimiter = ','
    )]
    jobs: Vec<u64>,
    /// Bytes of each job's payload
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    payload: usize,
    /// How often to kill
    #[arg(long, value_name = "N", default_value_t = 10)]
    rounds: u32,
    /// What ends the node
    #[arg(long, value_name = "SIGNAL", value_enum, default_value_t = Signal::Kill)]
    signal: Signal,
    /// Start each time with nothing of the data and the program in memory, as after a reboot
    #[arg(long)]
    cold: bool,
    /// Write the figures to a file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write curves, a timeline and the raw histograms to a file that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// A new or empty folder for the data, which is kept [default: one that is removed]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Shards of a node [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: Option<u16>,
    /// Port of the first shard, shard k takes the k-th after it; of several nodes each listens at an
    /// address of its own, 127.0.0.N [default: any that is free]
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 0,
        hide_default_value = true
    )]
    port: u16,
    /// The program to start as a node [default: this one]
    #[arg(long, value_name = "FILE")]
    node: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Starts a cluster on this machine, keeps load on, and strikes: by KILL the node ends at once
and is started again, by TERM in order, by STOP it is frozen for two seconds, by --partition
it is cut off from the others and from clients for as long. A round's gap
is the longest time in which a queue had no answer, as callers of the client library see it.
After each round it looks at every job that must be there; at the end it drains all and
compares its books with the nodes' own counters.

Exit status: 0 if all is accounted for, 1 if a job is lost or came back after its ack.

Examples:
  rrq-bench failover
  rrq-bench failover --rounds 100 --signal STOP --json result.json --html result.html
  rrq-bench failover --nodes 5 --target follower
  rrq-bench failover --partition --rounds 100
  rrq-bench failover --target all --signal TERM")]
struct Failover {
    /// Nodes: 3 or 5
    #[arg(long, value_name = "N", default_value_t = 3)]
    nodes: u32,
    /// How often to strike
    #[arg(long, value_name = "N", default_value_t = 10)]
    rounds: u32,
    /// What befalls a node: KILL, STOP, TERM or, to compare with, NONE
    #[arg(long, value_name = "SIGNAL", value_enum, ignore_case = true, default_value_t = Strike::Kill)]
    signal: Strike,
    /// Cut the node off instead, in network namespaces: for root, or where user namespaces are allowed
    #[arg(long, conflicts_with = "signal")]
    partition: bool,
    /// This is a namespace of its own
    #[arg(long, hide = true, requires = "partition")]
    in_namespace: bool,
    /// Whom it befalls
    #[arg(long, value_name = "WHO", value_enum, default_value_t = Victim::Leader)]
    target: Victim,
    /// Jobs that wait in the queues while the load is on
    #[arg(long, value_name = "N", default_value_t = 1000)]
    jobs: u64,
    /// Bytes of each job's payload
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    payload: usize,
    /// Write the figures to a file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write curves, a timeline and the raw histograms to a file that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// A new or empty folder for the data, which is kept [default: one that is removed]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Shards of each node
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// First port of each node, which listens at an address of its own, 127.0.0.N [default: any that
    /// is free]
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 0,
        hide_default_value = true
    )]
    port: u16,
    /// The program to start as a node [default: this one]
    #[arg(long, value_name = "FILE")]
    node: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Without an address it starts a node of its own, or several. Latencies are measured from the moment at
which a request was due: with --rate that is its place in the schedule, also if the node
was late before (no coordinated omission). Where the queues are led by one of several nodes, a
connection whose node goes away or leads no more finds the leader and asks again what was under
way; of what nobody knows any more what became is counted as unknown. At the end all jobs are
accounted for.

Exit status: 0 if all is accounted for, 1 if a job is lost or came back after its ack.

Examples:
  rrq-bench load
  rrq-bench load --consumers 32
  rrq-bench load --batch 64 --duration 30s
  rrq-bench load --consumers 32 --rate 50000 --json result.json --html result.html
  rrq-bench load --nodes 3 --consumers 32
  rrq-bench load --consumers 32 --fill 10000000
  rrq-bench load 127.0.0.1:7411 --producers 1 --window 1")]
struct Load {
    /// A node that runs [default: one of its own, which goes at the end]
    #[arg(value_name = "HOST:PORT")]
    address: Option<String>,
    /// Nodes of its own: 1, 3 or 5
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: u32,
    /// Connections that enqueue
    #[arg(long, value_name = "N", default_value_t = 32)]
    producers: u32,
    /// Connections that lease and ack; 0 = jobs are only enqueued
    #[arg(long, value_name = "N", default_value_t = 0)]
    consumers: u32,
    /// Requests under way at once on a producer, jobs in hand on a consumer
    #[arg(long, value_name = "N", default_value_t = 64)]
    window: u32,
    /// Jobs of a request
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: u32,
    /// Bytes of each job's payload
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    payload: usize,
    /// Queues, spread over the groups
    #[arg(long, value_name = "N", default_value_t = 8)]
    queues: u32,
    /// Priority classes used, from 0 on; 0 = the default alone
    #[arg(long, value_name = "N", default_value_t = 0)]
    priorities: u8,
    /// Percent of the requests whose jobs wait a second first
    #[arg(long, value_name = "PERCENT", default_value_t = 0)]
    delayed: u8,
    /// Percent of the deliveries that are nacked
    #[arg(long, value_name = "PERCENT", default_value_t = 0)]
    nack_rate: u8,
    /// Jobs a second over all producers [default: as fast as answers come]
    #[arg(long, value_name = "N")]
    rate: Option<u64>,
    /// Jobs that may be there at once while consumers work [default: twice what the windows hold]
    #[arg(long, value_name = "N")]
    backlog: Option<u64>,
    /// Jobs that are put into the queues first, before the load begins; they are worked with the others
    #[arg(long, value_name = "N", default_value_t = 0)]
    fill: u64,
    /// How long is measured
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    duration: Duration,
    /// How long the load is on before that
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time)]
    warm_up: Duration,
    /// Write the figures to a file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write curves, a timeline and the raw histograms to a file that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// A new or empty folder for its own node's data, which is kept [default: one that is removed]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Shards of a node of its own [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: Option<u16>,
    /// The program to start as a node [default: this one]
    #[arg(long, value_name = "FILE")]
    node: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Each seed is a cluster of its own kind: nodes, shards, groups, sizes, and which faults come how often.
The real engines run on simulated disks, clocks and a simulated network; the same seed is the same run.
Seeds are spread over the cores.

Exit status: 0 if every promise was kept, 1 if a seed failed.

Examples:
  rrq-bench sim
  rrq-bench sim --seeds 100000 --from 5000 --json result.json
  rrq-bench sim --seed 35 --trace
  rrq-bench sim --seed 35 --shrink")]
struct Sim {
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    from: u64,
    /// Run this one alone
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "from", "json"])]
    seed: Option<u64>,
    /// Say what happens in it, a line each
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Leave out the faults that its failure does not need, and say what happens with the rest
    #[arg(long, requires = "seed", conflicts_with_all = ["trace", "faults"])]
    shrink: bool,
    /// Let only these of its faults happen, by their numbers in the trace
    #[arg(long, value_name = "N,...", requires = "seed", value_delimiter = ',')]
    faults: Option<Vec<u64>>,
    /// Write the figures to a file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Starts a node, fills it, and changes jobs of the backlog:

  random  some, each as likely as any other, are cancelled
  ends    as many come, and as many go, the oldest first
  fifo    the same with twenty times as many
  brief   twenty times as many come and go at once, through queues of their own

Before and after each, small jobs come and go until the node has checkpoints of all that was done;
what those cost is taken off.

Examples:
  rrq-bench writes
  rrq-bench writes --jobs 10000000 --json result.json")]
struct Writes {
    /// Jobs that wait in the queues
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    jobs: u64,
    /// Jobs that are changed
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    changes: u64,
    /// Bytes of each job's payload
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    payload: usize,
    /// Write the figures to a file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A new or empty folder for the data, which is kept [default: one that is removed]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Shards of the node [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: Option<u16>,
    /// The program to start as a node [default: this one]
    #[arg(long, value_name = "FILE")]
    node: Option<PathBuf>,
}

/// The whole program `rrq-bench`; the first argument is its name.
#[must_use]
pub fn main_with_args(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.get(1).is_some_and(|arg| arg == NODE_SUBCOMMAND) {
        args.remove(1);
        return node::main_with_args(args);
    }
    let flags = match Flags::try_parse_from(&args) {
        Ok(flags) => flags,
        Err(error) if error.use_stderr() => return fail(&usage(&error)),
        Err(asked) => {
            say(asked.to_string().trim_end());
            return ExitCode::SUCCESS;
        }
    };
    let is_sound = match flags.command {
        Command::CrashRecover(command) => command.run(),
        Command::Failover(command) => command.run(&args),
        Command::Load(command) => command.run(),
        Command::Sim(command) => command.run(),
        Command::Writes(command) => command.run(),
    };
    match is_sound {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(report) => fail(&report),
    }
}

fn fail(report: &Report) -> ExitCode {
    eprintln!("{report}");
    ExitCode::from(report.exit_code())
}

/// Who reads us may have gone away; the measurement goes on.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn usage(error: &clap::Error) -> Report {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let report = Report::error(Code::BadArgument, "no command was given");
        return report.fix("rrq-bench load; rrq-bench --help shows all commands");
    }
    let text = error.to_string();
    let text = text.trim_start_matches("error: ");
    let what: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
    let tip = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    let fix = tip.unwrap_or("rrq-bench --help; rrq-bench load --help shows examples");
    Report::error(Code::BadArgument, what.join("\n")).fix(fix)
}

impl CrashRecover {
    /// Whether all was as it must be.
    fn run(self) -> Result<bool, Report> {
        let json = self.json.as_deref().map(create).transpose()?;
        let html = self.html.as_deref().map(create).transpose()?;
        if self.jobs.len() > 1 && self.data_dir.is_some() {
            let what = "--data-dir holds the data of one number of --jobs";
            return Err(Report::error(Code::BadArgument, what).fix("one number, or no --data-dir"));
        }
        let mut outcomes = Vec::new();
        for jobs in &self.jobs {
            let options = crash_recover::Options {
                nodes: self.nodes,
                jobs: *jobs,
                payload: self.payload,
                rounds: self.rounds,
                signal: self.signal,
                cold: self.cold,
                data_dir: self.data_dir.clone(),
                shards: self.shards,
                port: self.port,
                node: self.node.clone(),
                obey_signals: true,
                say,
            };
            let outcome = crash_recover::run(&options)?;
            say(outcome.text().trim_end_matches('\n'));
            outcomes.push(outcome);
        }
        if let [outcome] = &outcomes[..] {
            write(json, || pretty(outcome))?;
            write(html, || crash_recover::html(&outcomes))?;
            return Ok(outcome.is_sound());
        }
        say(&crash_recover::curve(&outcomes));
        write(json, || pretty(&serde_json::json!({ "curve": outcomes })))?;
        write(html, || crash_recover::html(&outcomes))?;
        Ok(outcomes.iter().all(crash_recover::Outcome::is_sound))
    }
}

impl Sim {
    /// Whether all was as it must be.
    fn run(self) -> Result<bool, Report> {
        // Each run takes what the one before has freed: the kernel would clear it every time.
        sys::keep_freed_memory();
        if let Some(seed) = self.seed {
            if self.shrink {
                return Ok(sim::minimize(seed, say));
            }
            let faults = self.faults.map(|faults| faults.into_iter().collect());
            return Ok(sim::replay(seed, faults, self.trace, say));
        }
        let json = self.json.as_deref().map(create).transpose()?;
        let outcome = sim::run(self.from, self.seeds, say);
        say(&outcome.text());
        write(json, || pretty(&outcome))?;
        Ok(outcome.is_sound())
    }
}

impl Writes {
    /// Whether all was as it must be.
    fn run(self) -> Result<bool, Report> {
        let json = self.json.as_deref().map(create).transpose()?;
        let options = writes::Options {
            jobs: self.jobs,
            changes: self.changes,
            payload: self.payload,
            data_dir: self.data_dir,
            shards: self.shards,
            node: self.node,
            obey_signals: true,
            say,
        };
        let outcome = writes::run(&options)?;
        write(json, || pretty(&outcome))?;
        Ok(true)
    }
}

impl Failover {
    /// Whether all was as it must be.
    fn run(self, args: &[OsString]) -> Result<bool, Report> {
        if self.partition && !self.in_namespace {
            let args = args.iter().skip(1).cloned();
            let args: Vec<OsString> = args.chain(["--in-namespace".into()]).collect();
            match network::enter(&args)? {}
        }
        let json = self.json.as_deref().map(create).transpose()?;
        let html = self.html.as_deref().map(create).transpose()?;
        let options = failover::Options {
            nodes: self.nodes,
            rounds: self.rounds,
            signal: match self.partition {
                true => Strike::Cut,
                false => self.signal,
            },
            target: self.target,
            jobs: self.jobs,
            payload: self.payload,
            data_dir: self.data_dir,
            shards: self.shards,
            port: self.port,
            node: self.node,
            obey_signals: true,
            say,
        };
        let outcome = failover::run(&options)?;
        say(outcome.text().trim_end_matches('\n'));
        write(json, || pretty(&outcome))?;
        write(html, || outcome.html())?;
        Ok(outcome.is_sound())
    }
}

impl Load {
    /// Whether all was as it must be.
    fn run(self) -> Result<bool, Report> {
        let json = self.json.as_deref().map(create).transpose()?;
        let html = self.html.as_deref().map(create).transpose()?;
        let options = load::Options {
            producers: self.producers,
            consumers: self.consumers,
            window: self.window,
            batch: self.batch,
            payload: self.payload,
            queues: self.queues,
            priorities: self.priorities,
            delayed: self.delayed,
            nack_rate: self.nack_rate,
            rate: self.rate,
            backlog: self.backlog,
            fill: self.fill,
            duration: self.duration,
            warm_up: self.warm_up,
            address: self.address,
            nodes: self.nodes,
            shards: self.shards,
            data_dir: self.data_dir,
            node: self.node,
            obey_signals: true,
            say,
        };
        let outcome = load::run(&options)?;
        say(outcome.text().trim_end_matches('\n'));
        write(json, || pretty(&outcome))?;
        write(html, || outcome.html())?;
        Ok(outcome.is_sound())
    }
}

/// A whole number with ms, s or min.
fn time(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(at.unwrap_or(text.len()));
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        _ => 0,
    };
    let number: Option<u64> = number.parse().ok().filter(|_| unit_ms > 0);
    let ms = number.and_then(|number| number.checked_mul(unit_ms));
    ms.map(Duration::from_millis)
        .ok_or_else(|| "a whole number with ms, s or min, as 10s".to_owned())
}

/// Opens a file for the figures: if it cannot be written, that is better known before than after.
fn create(path: &Path) -> Result<(File, PathBuf), Report> {
    let file = File::create(path).map_err(|error| unwritable(path, &error))?;
    Ok((file, path.to_owned()))
}

fn write(file: Option<(File, PathBuf)>, text: impl FnOnce() -> String) -> Result<(), Report> {
    let Some((mut file, path)) = file else {
        return Ok(());
    };
    writeln!(file, "{}", text()).map_err(|error| unwritable(&path, &error))
}

fn pretty(outcome: &impl Serialize) -> String {
    serde_json::to_string_pretty(outcome).expect("plain fields have JSON")
}

fn unwritable(path: &Path, error: &io::Error) -> Report {
    let what = format!("cannot write {}", path.display());
    Report::error(Code::BadArgument, what)
        .location(error.to_string())
        .fix("a file in a folder that you may write to")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_sound_and_help_has_examples() {
        Flags::command().debug_assert();
        let asked = Flags::try_parse_from(["rrq-bench", "crash-recover", "--help"]);
        let text = asked.expect_err("help").to_string();
        assert!(
            text.contains("rrq-bench crash-recover --jobs 100000"),
            "{text}"
        );
        assert!(!text.contains(NODE_SUBCOMMAND));
    }

    #[test]
    fn a_wrong_flag_is_a_report() {
        let error = Flags::try_parse_from(["rrq-bench", "crash-recover", "--job", "3"]);
        let report = usage(&error.expect_err("a typo"));
        assert_eq!(report.code, Code::BadArgument);
        assert!(report.what.contains("--job"), "{report}");
        assert!(report.fix.is_some_and(|fix| fix.contains("--jobs")));
    }
}
