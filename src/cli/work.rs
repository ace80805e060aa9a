//! `rrqctl work`: takes jobs and runs a command for each.
//!
//! A [`Worker`] of the client library whose handler is a process ([`Command`]). A signal drains:
//! nothing more is leased, what runs is finished, what did not start goes back; a second signal kills
//! what runs and gives it back. A server that is away is waited for.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::run::{Command, End};
use crate::cli::terminal::warn;
use crate::cli::{Common, queue_or_new};
use crate::client::worker::{Job, Verdict, Worker};
use std::ffi::OsString;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tracing::level_filters::LevelFilter;

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl work -q emails -- ./send.sh
  rrqctl work -q reports --concurrency 4 -- python3 make_report.py --fast
  rrqctl work -q emails --exit-when-empty -- sh -c 'cat >> sent.txt'

The payload is on standard input; RRQ_JOB_ID, RRQ_ATTEMPT and RRQ_QUEUE are in
the environment. Exit status 0: the job is done. Anything else: it is tried
again later, with the end of standard error as the reason. A job may run twice
(at least once), so let the command check what it has done already.";

#[derive(clap::Args, Debug)]
pub(super) struct WorkArgs {
    /// The queue.
    #[arg(short, long, value_name = "NAME")]
    queue: String,
    /// How many jobs run at once.
    #[arg(short, long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    concurrency: u32,
    /// Who it is, in `rrqctl worker list` [default: host and process].
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Option<String>,
    /// End when no job is ready and none is running here.
    #[arg(long)]
    exit_when_empty: bool,
    /// What the command prints is the job's result, at most 4 KiB. A queue with --retain keeps it, and
    /// `rrqctl job wait` prints it.
    #[arg(long)]
    result: bool,
    /// What to run for each job, with its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=128 => Ok(text.to_owned()),
        _ => Err("1 to 128 bytes".to_owned()),
    }
}

/// Host and process.
fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().chars().take(64).collect::<String>();
    format!("{host}:{}", std::process::id())
}

pub(super) async fn run(args: &WorkArgs, common: &Common) -> Result<(), Report> {
    let mut signals = Signals::new()?;
    tell_warnings();
    let client = common.connect().await?;
    let queue = async { queue_or_new(&client, &args.queue).await?.info().await };
    let (queue, _) = queue.await.map_err(|error| common.complaint(&error))?;
    if queue.paused {
        let name = &args.queue;
        warn(&format!(
            "queue {name} is paused: it hands out nothing until `rrqctl queue resume {name}`"
        ));
    }
    let mut worker = Worker::new(&client, &args.queue)
        .name(args.name.clone().unwrap_or_else(own_name))
        .concurrency(args.concurrency)
        // Until the second signal.
        .drain_deadline(Duration::MAX);
    if args.exit_when_empty {
        worker = worker.until_empty();
    }
    let command = Arc::new(Command::new(&args.command, args.result));
    let broken = Arc::new(Broken::default());
    let stop = broken.clone();
    let working = worker.run_until(async move { stop.stop.notified().await }, {
        let broken = broken.clone();
        move |job| handle(command.clone(), broken.clone(), job)
    });
    let summary = tokio::select! {
        summary = working => Some(summary),
        () = signals.drain_then_kill(&broken.stop) => None,
    };
    client.close().await;
    match summary {
        Some(Ok(summary)) => warn(&summary.to_string()),
        Some(Err(error)) => return Err(common.complaint(&error)),
        None => warn("killed what was running; its jobs go back"),
    }
    broken.report(&args.command)
}

/// What the worker warns of goes to standard error.
fn tell_warnings() {
    let lines = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time();
    // Fails if there is one already, which is as good.
    let _ = lines.try_init();
}

async fn handle(command: Arc<Command>, broken: Arc<Broken>, job: Job) -> Verdict {
    match command.run(&job).await {
        End::Done(result) => Verdict::Done(result),
        End::Failed(reason) => {
            let words = String::from_utf8_lossy(&reason);
            warn(&format!("job {}: {words}", job.id()));
            Verdict::retry(reason)
        }
        End::NotStarted(error) => {
            broken.note(error);
            Verdict::Release
        }
    }
}

/// A command that cannot be run ends the worker: no job can be worked.
#[derive(Default)]
struct Broken {
    error: Mutex<Option<io::Error>>,
    /// Asks the worker to stop.
    stop: Notify,
}

impl Broken {
    fn note(&self, error: io::Error) {
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        self.stop.notify_one();
    }

    fn report(&self, command: &[OsString]) -> Result<(), Report> {
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(error) = first.take() else {
            return Ok(());
        };
        let what = format!("cannot run `{}`: {error}", command[0].display());
        Err(Report::error(Code::BadArgument, what)
            .why("its job goes back; no more are taken")
            .fix("rrqctl work -q NAME -- COMMAND, with a command that can be run"))
    }
}

/// The signals that ask for an end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Report> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Report::error(Code::Bug, format!("cannot listen to signals: {error}"))
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// At the first signal it asks for a drain; it ends at the second.
    async fn drain_then_kill(&mut self, stop: &Notify) {
        self.next().await;
        warn("draining: what runs is finished; again to kill");
        stop.notify_one();
        self.next().await;
    }
}
