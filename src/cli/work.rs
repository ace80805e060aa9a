//! `rrqctl work`: takes jobs and runs a command for each.
//!
//! No more jobs are leased than can start at once. A signal drains: nothing more is leased, what
//! runs is finished, what did not start goes back; a second signal kills what runs and gives it
//! back. A server that is away is waited for.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::Common;
use crate::cli::run::{self, End, is_lost};
use crate::cli::terminal::{count, warn};
use crate::client::{Client, Error, LeasedJob, Queue, WorkerInfo};
use std::ffi::OsString;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl work -q emails -- ./send.sh
  rrqctl work -q reports --concurrency 4 -- python3 make_report.py --fast
  rrqctl work -q emails --exit-when-empty -- sh -c 'cat >> sent.txt'

The payload is on standard input; RRQ_JOB_ID, RRQ_ATTEMPT and RRQ_QUEUE are in
the environment. Exit status 0: the job is done. Anything else: it is tried
again later, with the end of standard error as the reason. A job may run twice
(at least once), so let the command check what it has done already.";

/// How long a poll waits for a job.
const POLL: Duration = Duration::from_secs(20);
/// After a poll that failed, the next one waits this long.
const RETRY: Duration = Duration::from_secs(1);

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
    let stop = Stop::new()?;
    let client = common.connect().await?;
    client.introduce(WorkerInfo {
        name: args.name.clone().unwrap_or_else(own_name),
        tags: Vec::new(),
        capacity: args.concurrency,
    });
    let queue = client.queue(&args.queue).await;
    let queue = queue.map_err(|error| common.complaint(&error))?;
    let worker = Worker {
        args,
        client: client.clone(),
        queue,
        command: args.command.as_slice().into(),
        running: JoinSet::new(),
        draining: false,
        empty: false,
        tally: Tally::default(),
        failed: None,
    };
    let (tally, result) = LocalSet::new().run_until(worker.work(stop)).await;
    client.close().await;
    warn(&tally.to_string());
    result
}

/// The signals that ask for an end.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
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

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What became of the jobs.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    done: u64,
    failed: u64,
    lost: u64,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} done, {} failed", self.done, self.failed)?;
        if self.lost > 0 {
            write!(f, ", {} lost", count(self.lost, "lease"))?;
        }
        Ok(())
    }
}

/// What became of one job.
enum Fate {
    Done,
    Failed,
    Lost,
    NotStarted(std::io::Error),
}

type Poll = Pin<Box<dyn Future<Output = Result<Vec<LeasedJob>, Error>>>>;

struct Worker<'a> {
    args: &'a WorkArgs,
    client: Client,
    queue: Queue,
    command: Rc<[OsString]>,
    running: JoinSet<Fate>,
    draining: bool,
    /// The last poll brought nothing.
    empty: bool,
    tally: Tally,
    /// Why the worker gives up.
    failed: Option<Report>,
}

impl Worker<'_> {
    async fn work(mut self, mut stop: Stop) -> (Tally, Result<(), Report>) {
        let mut poll: Option<Poll> = None;
        loop {
            if self.draining {
                // A poll under way is given up: what it brings goes back.
                poll = None;
            } else if poll.is_none() {
                poll = self.next_poll();
            }
            if poll.is_none() && self.running.is_empty() {
                break;
            }
            tokio::select! {
                answer = wait(&mut poll) => {
                    poll = None;
                    self.take_jobs(answer).await;
                }
                Some(fate) = self.running.join_next() => {
                    // It did not panic: a panic ends the process.
                    if let Ok(fate) = fate {
                        self.note(fate);
                    }
                }
                () = stop.asked() => {
                    if self.draining {
                        warn("killed what was running; its jobs go back");
                        break;
                    }
                    self.draining = true;
                    let running = count(self.running.len() as u64, "job");
                    warn(&format!("draining: {running} to finish; again to kill"));
                }
            }
        }
        drop(poll);
        self.running.shutdown().await;
        (self.tally, self.failed.map_or(Ok(()), Err))
    }

    fn next_poll(&self) -> Option<Poll> {
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let free = self.args.concurrency.saturating_sub(running);
        if free == 0 || (self.args.exit_when_empty && self.empty) {
            return None;
        }
        let wait = if self.args.exit_when_empty {
            Duration::ZERO
        } else {
            POLL
        };
        let queue = self.queue.clone();
        Some(Box::pin(async move { queue.lease(free, wait).await }))
    }

    async fn take_jobs(&mut self, answer: Result<Vec<LeasedJob>, Error>) {
        let jobs = match answer {
            Ok(jobs) => jobs,
            Err(error) => {
                warn(&format!("no jobs: {error}; trying again"));
                tokio::time::sleep(RETRY).await;
                return;
            }
        };
        self.empty = jobs.is_empty();
        for job in jobs {
            let (client, command) = (self.client.clone(), self.command.clone());
            let queue = self.args.queue.clone();
            self.running
                .spawn_local(async move { handle(&client, &queue, &command, &job).await });
        }
    }

    fn note(&mut self, fate: Fate) {
        // A job that ended may have made others ready.
        self.empty = false;
        match fate {
            Fate::Done => self.tally.done += 1,
            Fate::Failed => self.tally.failed += 1,
            Fate::Lost => self.tally.lost += 1,
            Fate::NotStarted(error) => {
                let program = self.args.command[0].display();
                let what = format!("cannot run `{program}`: {error}");
                self.draining = true;
                self.failed.get_or_insert(
                    Report::error(Code::BadArgument, what)
                        .why("its job goes back; no more are taken")
                        .fix("rrqctl work -q NAME -- COMMAND, with a command that can be run"),
                );
            }
        }
    }
}

/// The answer of a poll, if there is one.
async fn wait(poll: &mut Option<Poll>) -> Result<Vec<LeasedJob>, Error> {
    match poll {
        Some(poll) => poll.await,
        None => std::future::pending().await,
    }
}

/// Runs the command for a job and tells the server how it ended.
async fn handle(client: &Client, queue: &str, command: &[OsString], leased: &LeasedJob) -> Fate {
    let (id, token) = (leased.job.id, leased.token());
    let (fate, told) = match run::run(client, queue, command, leased).await {
        End::Done => (Fate::Done, tell(|| client.ack(token, None)).await),
        End::Failed(reason) => {
            warn(&format!("job {id}: {}", String::from_utf8_lossy(&reason)));
            (
                Fate::Failed,
                tell(|| client.nack(token, None, reason.clone())).await,
            )
        }
        End::LeaseLost(error) => {
            warn(&format!("job {id}: its command was killed: {error}"));
            (Fate::Lost, Ok(()))
        }
        End::NotStarted(error) => (
            Fate::NotStarted(error),
            tell(|| client.release(token)).await,
        ),
    };
    match told {
        Ok(()) => fate,
        Err(error) => {
            warn(&format!("job {id}: its end came too late: {error}"));
            Fate::Lost
        }
    }
}

/// Tells the server until it hears it. What was applied by an earlier try counts as heard.
async fn tell<F>(call: impl Fn() -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let mut maybe_applied = false;
    loop {
        match call().await {
            Ok(()) => return Ok(()),
            Err(error) if is_lost(&error) => {
                return if maybe_applied { Ok(()) } else { Err(error) };
            }
            Err(error) if error.is_retryable() => {
                maybe_applied |= error.maybe_applied();
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
    }
}
