//! `rrqctl demo`: starts nodes on this machine, kills their leader with -9 again and again under load,
//! and shows what clients see of it. What is done is [`loadtest::demo`](crate::loadtest::demo)'s; this
//! shows it.
//!
//! On a terminal the last line is drawn anew; elsewhere there is a line a second. Either way each kill
//! has a line that stays.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::Output;
use crate::cli::arguments::duration;
use crate::cli::terminal::{count, print, say, say_json};
use crate::loadtest::demo::{self, Event, Kill, Now};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl demo
  rrqctl demo --duration 5min --kill-every 2s
  rrqctl demo --nodes 1

Each node listens at an address of its own of this machine, 127.0.0.N. Producers
and workers are on all the time; after each kill every job that must be there is
looked at, and at the end all are worked off and counted. An outage is the
longest time in which one of the 8 queues had no answer, to an enqueue or in
jobs that are finished. Ctrl-C ends the nodes and removes their data.

Exit status: 0 if all is accounted for, 1 if a job was lost or came back after
its ack.";

/// Between two drawings on a terminal, and two lines elsewhere.
const REDRAW: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

#[derive(clap::Args, Debug)]
pub(super) struct DemoArgs {
    /// Nodes: 1, 3 or 5.
    #[arg(long, value_name = "N", default_value_t = 3)]
    nodes: u32,
    /// How long, at most 10min.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    duration: Duration,
    /// Time from one kill to the next, 1s to the duration.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    kill_every: Duration,
    /// A new or empty folder for the data, which is kept [default: one that is removed].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The program to start as a node [default: the rrq-node beside this one, else this one].
    #[arg(long, value_name = "FILE")]
    node: Option<PathBuf>,
}

/// Shows it; what it ends with says whether all was well.
pub(super) fn run(args: &DemoArgs, output: Output) -> Result<ExitCode, Report> {
    let mut screen = Screen {
        is_silent: output == Output::Json,
        redraws: std::io::stdout().is_terminal(),
        lines: 0,
        failure: None,
    };
    let options = demo::Options {
        nodes: args.nodes,
        duration: args.duration,
        kill_every: args.kill_every,
        data_dir: args.dir.clone(),
        node: args.node.clone().or_else(node_beside),
        every: if screen.redraws { REDRAW.0 } else { REDRAW.1 },
        obey_signals: true,
    };
    let outcome = demo::run(&options, &mut |event| screen.show(args, &event));
    screen.end();
    let outcome = outcome?;
    if let Some(failure) = screen.failure {
        return Err(failure);
    }
    match output {
        Output::Table => say(&outcome.text())?,
        Output::Json => {
            let value = serde_json::to_value(&outcome).map_err(|error| {
                Report::error(Code::Bug, format!("the outcome has no JSON: {error}"))
            })?;
            say_json(&value)?;
        }
    }
    Ok(match outcome.is_sound() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The node that was installed with this program.
fn node_beside() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok()?.with_file_name("rrq-node");
    beside.is_file().then_some(beside)
}

/// Where it is shown.
struct Screen {
    /// Only the outcome is printed.
    is_silent: bool,
    /// The last line is drawn anew.
    redraws: bool,
    /// Lines about how it is, so far.
    lines: u64,
    /// Why nothing can be shown any more; the run goes on to its verdict.
    failure: Option<Report>,
}

impl Screen {
    fn show(&mut self, args: &DemoArgs, event: &Event) {
        if self.is_silent || self.failure.is_some() {
            return;
        }
        let text = match event {
            Event::Started { address, data } => {
                let data = data.display();
                let nodes = count(u64::from(args.nodes), "node");
                self.stay(&format!(
                    "{nodes} at {address}, data {data}\nleads: how many groups each of them leads"
                ))
            }
            Event::Now(now) => self.now(now),
            Event::Killed(kill) => self.stay(&kill_line(kill)),
        };
        self.failure = print(&text).err();
    }

    /// What stays.
    fn stay(&self, line: &str) -> String {
        // What is redrawn starts at the beginning of its line.
        match self.redraws {
            true => format!("\r\x1b[K{line}\n"),
            false => format!("{line}\n"),
        }
    }

    /// How it is.
    fn now(&mut self, now: &Now) -> String {
        let line = now_line(now);
        self.lines += 1;
        match self.redraws {
            true => format!("\r\x1b[K{line}"),
            false => format!("{line}\n"),
        }
    }

    /// What was drawn last is ended.
    fn end(&mut self) {
        if self.redraws && self.lines > 0 && !self.is_silent {
            let ended = say("");
            self.failure = self.failure.take().or(ended.err());
        }
    }
}

fn now_line(now: &Now) -> String {
    let node = |leads: &Option<usize>| match leads {
        Some(leads) => format!(" {leads:>4}"),
        None => " down".to_owned(),
    };
    let nodes: String = now.leads.iter().map(node).collect();
    format!(
        "{:5.1} s  leads{nodes}   {} acked, {} done, {} lost",
        now.at.as_secs_f64(),
        now.acked,
        now.finished,
        now.lost
    )
}

fn kill_line(kill: &Kill) -> String {
    let mut line = format!(
        "{:5.1} s  node {} was killed -9 at {:.1} s: outage {:.0} ms, {} failed, {} lost",
        kill.looked_at_s,
        kill.node,
        kill.at_s,
        kill.outage_ms,
        count(kill.failed_requests, "request"),
        kill.lost
    );
    if kill.disk_stalled {
        line += " (the disk stalled, too)";
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_away_is_shown_as_down() {
        let now = Now {
            at: Duration::from_millis(4_250),
            leads: vec![Some(33), None, Some(31)],
            acked: 9_000,
            finished: 8_900,
            lost: 0,
        };
        assert_eq!(
            now_line(&now),
            "  4.2 s  leads   33 down   31   9000 acked, 8900 done, 0 lost"
        );
    }

    #[test]
    fn a_kill_tells_what_clients_saw() {
        let kill = Kill {
            at_s: 3.04,
            looked_at_s: 4.1,
            node: 2,
            outage_ms: 41.4,
            failed_requests: 0,
            lost: 0,
            disk_stalled: true,
        };
        assert_eq!(
            kill_line(&kill),
            "  4.1 s  node 2 was killed -9 at 3.0 s: outage 41 ms, 0 requests failed, 0 lost (the disk \
             stalled, too)"
        );
    }
}
