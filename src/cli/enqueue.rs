//! `rrqctl enqueue`: one job, or the jobs of a file in pipelined batches.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::jobs_file::{self, FileJob};
use crate::cli::terminal::{count, say, say_json, warn};
use crate::cli::{Common, DEFAULT_QUEUE, Output, arguments, queue_or_new};
use crate::client::{Client, Enqueued, Error, NewJob, Queue, Start};
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinSet;

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl enqueue -q emails '{\"to\":\"a@b.c\"}'
  rrqctl enqueue -q emails --key order-42 --delay 5min 'remind order 42'
  gzip -c report.txt | rrqctl enqueue -q reports -
  rrqctl enqueue --file jobs.json
  ID=$(rrqctl enqueue -q emails hello)

A key is remembered for the queue's window, a day unless it was set, also when
its job is over, cancelled or purged: until then an enqueue with it adds none.

A jobs file is a JSON array; `id` is the idempotency key, `timeout_ms` how long
the job may run (may be left out, as may `queue`):
  [{\"id\":\"job-001\",\"payload\":{\"to\":\"a@b.c\"},\"timeout_ms\":5000}]";

/// A batch is sent when it holds this many jobs,
const BATCH_JOBS: usize = 256;
/// or this many bytes of payload.
const BATCH_BYTES: usize = 512 << 10;
/// Batches under way at once.
const BATCHES_UNDER_WAY: usize = 32;
#[derive(clap::Args, Debug)]
pub(super) struct EnqueueArgs {
    /// The queue [default: what a job of a file names, else `default`].
    #[arg(short, long, value_name = "NAME")]
    queue: Option<String>,
    /// What the worker gets; `-` or nothing reads standard input to its end.
    #[arg(value_name = "PAYLOAD", conflicts_with = "file")]
    payload: Option<OsString>,
    /// Add all jobs of this file; `-` reads it from standard input [default: none].
    #[arg(long, value_name = "JOBS.json")]
    file: Option<PathBuf>,
    /// The idempotency key: a second job with it is the first one [default: none].
    #[arg(long, conflicts_with = "file", value_name = "KEY")]
    key: Option<OsString>,
    /// Run it not before this time has passed, as 5s or 2h [default: at once].
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    delay: Option<Duration>,
    /// 0 is served first, 7 last [default: 4].
    #[arg(long, value_name = "0-7", value_parser = clap::value_parser!(u8).range(0..=7))]
    priority: Option<u8>,
    /// It dies if it has not started to run after this time [default: never].
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    ttl: Option<Duration>,
    /// How long a worker may hold it without a word [default: the queue's].
    #[arg(long, value_name = "TIME", value_parser = arguments::short_duration)]
    lease: Option<Duration>,
    /// How often it is tried before it is dead [default: the queue's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_attempts: Option<u16>,
    /// How long one run may take [default: no limit].
    #[arg(long, conflicts_with = "file", value_name = "TIME",
          value_parser = arguments::short_duration)]
    run_limit: Option<Duration>,
    /// A name and value for the worker; may be given more than once [default: none].
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = arguments::header)]
    headers: Vec<(String, String)>,
}

pub(super) async fn run(args: &EnqueueArgs, common: &Common) -> Result<(), Report> {
    match &args.file {
        Some(file) => enqueue_file(args, file, common).await,
        None => enqueue_one(args, common).await,
    }
}

impl EnqueueArgs {
    /// A job with all but its payload and key.
    fn template(&self) -> NewJob {
        let headers = self.headers.iter();
        NewJob {
            priority: self.priority,
            start: self
                .delay
                .map_or(Start::Now, |delay| Start::After(arguments::millis(delay))),
            ttl_ms: self.ttl.map_or(0, arguments::millis),
            lease_ms: arguments::millis_u32(self.lease),
            max_attempts: self.max_attempts.unwrap_or(0),
            run_limit_ms: arguments::millis_u32(self.run_limit),
            headers: headers
                .map(|(name, value)| (name.clone(), value.clone().into()))
                .collect(),
            ..NewJob::default()
        }
    }
}

async fn enqueue_one(args: &EnqueueArgs, common: &Common) -> Result<(), Report> {
    let payload = match &args.payload {
        Some(payload) if payload != "-" => payload.as_bytes().to_vec(),
        Some(_) => read_stdin()?,
        None if std::io::stdin().is_terminal() => {
            return Err(Report::error(Code::BadArgument, "there is no payload")
                .why("none was given, and standard input is a terminal")
                .fix("rrqctl enqueue -q emails PAYLOAD, or `-` to type it (end with Ctrl-D)"));
        }
        None => read_stdin()?,
    };
    let client = common.connect().await?;
    check_payload(&client, payload.len(), common)?;
    let job = NewJob {
        payload: payload.into(),
        key: args
            .key
            .as_deref()
            .map(|key| key.as_bytes().to_vec().into()),
        ..args.template()
    };
    let complain = |error: Error| common.complaint(&error);
    let name = args.queue.as_deref().unwrap_or(DEFAULT_QUEUE);
    let queue = queue_or_new(&client, name).await.map_err(complain)?;
    let (id, new) = match queue.enqueue(job).await.map_err(complain)? {
        Enqueued::New(id) => (id, true),
        Enqueued::Existing(id) => (id, false),
        Enqueued::Rejected(rejection) => return Err(complain(Error::rejected(rejection))),
    };
    let is_over = async { matches!(client.job(id).await, Err(e) if e.code() == Code::Finished) };
    let is_over = !new && is_over.await;
    client.close().await;
    let tally = Tally {
        new: u64::from(new),
        existing: u64::from(!new),
    };
    match common.output {
        Output::Table => {
            say(&id.to_string())?;
            let over = if is_over {
                "; it is over and does not run again"
            } else {
                ""
            };
            warn(&format!("{tally}{over}"));
            Ok(())
        }
        Output::Json => {
            let (new, existing) = (tally.new, tally.existing);
            say_json(&json!({"id": id.to_string(), "enqueued": new, "already_there": existing}))
        }
    }
}

fn read_stdin() -> Result<Vec<u8>, Report> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(|error| {
        Report::error(Code::BadArgument, "cannot read standard input").location(error.to_string())
    })?;
    Ok(bytes)
}

fn payload_max(client: &Client, common: &Common) -> Result<usize, Report> {
    let hello = client.hello().map_err(|error| common.complaint(&error))?;
    Ok(hello.payload_bytes_max as usize)
}

fn check_payload(client: &Client, bytes: usize, common: &Common) -> Result<(), Report> {
    let max = payload_max(client, common)?;
    if bytes <= max {
        return Ok(());
    }
    let what = format!("a payload of {bytes} bytes; this server takes up to {max}");
    Err(Report::error(Code::PayloadTooLarge, what)
        .fix("put the data elsewhere, and its place into the payload"))
}

/// What became of the jobs so far.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    new: u64,
    existing: u64,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} enqueued, {} already there", self.new, self.existing)
    }
}

/// Jobs of one queue that go together, with their places in the file.
#[derive(Default)]
struct Batch {
    places: Vec<usize>,
    jobs: Vec<NewJob>,
    bytes: usize,
}

type Answer = (Vec<usize>, Result<Vec<Enqueued>, Error>);

/// Sends the jobs of a file.
struct Sender {
    client: Client,
    queues: BTreeMap<String, (Queue, Batch)>,
    under_way: JoinSet<Answer>,
    tally: Tally,
    /// Places and reasons of jobs that were refused.
    refused: Vec<(usize, Error)>,
    /// Nothing more is sent after this.
    failed: Option<Error>,
}

async fn enqueue_file(args: &EnqueueArgs, file: &Path, common: &Common) -> Result<(), Report> {
    let (name, bytes) = if file.as_os_str() == OsStr::new("-") {
        ("standard input".to_owned(), read_stdin()?)
    } else {
        let bytes = std::fs::read(file).map_err(|error| {
            let what = format!("cannot read the jobs file {}", file.display());
            Report::error(Code::BadJobsFile, what)
                .location(error.to_string())
                .fix("--file with a file that is there and that you may read")
        })?;
        (file.display().to_string(), bytes)
    };
    let mut jobs = jobs_file::parse(&name, &bytes)?;
    drop(bytes);
    let client = common.connect().await?;
    let max = payload_max(&client, common)?;
    if let Some(job) = jobs.iter().find(|job| job.payload.len() > max) {
        let bytes = job.payload.len();
        let what = format!("a payload of {bytes} bytes; this server takes up to {max}");
        return Err(Report::error(Code::PayloadTooLarge, what)
            .location(format!("{name}:{}: {}", job.line, job.id))
            .why("no job of the file was enqueued"));
    }
    let mut sender = Sender {
        client: client.clone(),
        queues: BTreeMap::new(),
        under_way: JoinSet::new(),
        tally: Tally::default(),
        refused: Vec::new(),
        failed: None,
    };
    let template = args.template();
    for (place, job) in jobs.iter_mut().enumerate() {
        if sender.failed.is_some() {
            break;
        }
        sender
            .add(args.queue.as_deref(), place, job, &template)
            .await;
    }
    sender.finish().await;
    let Sender {
        tally,
        mut refused,
        failed,
        ..
    } = sender;
    client.close().await;
    match common.output {
        Output::Table => say(&tally.to_string())?,
        Output::Json => say_json(&json!({
            "enqueued": tally.new,
            "already_there": tally.existing,
            "refused": refused.len(),
        }))?,
    }
    if let Some(error) = failed {
        let report = common.complaint(&error);
        let rest = jobs.len() as u64 - tally.new - tally.existing;
        return Err(report
            .why(format!(
                "{} of the file: not known to be there",
                count(rest, "job")
            ))
            .fix("the same command again: only what is missing is added, by the ids"));
    }
    refused.sort_by_key(|(place, _)| *place);
    match refused.first() {
        None => Ok(()),
        Some((place, error)) => {
            let (job, refused) = (&jobs[*place], count(refused.len() as u64, "job"));
            let mut report = common.complaint(error);
            report.what = format!("{refused} refused: {}", report.what);
            Err(report.location(format!("{name}:{}: {}", job.line, job.id)))
        }
    }
}

impl Sender {
    async fn add(
        &mut self,
        queue: Option<&str>,
        place: usize,
        job: &mut FileJob,
        template: &NewJob,
    ) {
        let name = queue.or(job.queue.as_deref()).unwrap_or(DEFAULT_QUEUE);
        if !self.queues.contains_key(name) {
            match queue_or_new(&self.client, name).await {
                Ok(queue) => {
                    self.queues
                        .insert(name.to_owned(), (queue, Batch::default()));
                }
                Err(error) => {
                    self.failed = Some(error);
                    return;
                }
            }
        }
        let Some((queue, batch)) = self.queues.get_mut(name) else {
            return;
        };
        let payload = std::mem::take(&mut job.payload);
        batch.bytes += payload.len() + job.id.len();
        batch.places.push(place);
        batch.jobs.push(NewJob {
            payload: payload.into(),
            key: Some(job.id.clone().into()),
            run_limit_ms: job.timeout_ms,
            ..template.clone()
        });
        if batch.jobs.len() >= BATCH_JOBS || batch.bytes >= BATCH_BYTES {
            let (queue, batch) = (queue.clone(), std::mem::take(batch));
            self.send(queue, batch).await;
        }
    }

    async fn send(&mut self, queue: Queue, batch: Batch) {
        while self.under_way.len() >= BATCHES_UNDER_WAY {
            self.take_answer().await;
        }
        let Batch { places, jobs, .. } = batch;
        self.under_way
            .spawn(async move { (places, queue.enqueue_batch(jobs).await) });
    }

    async fn take_answer(&mut self) {
        let Some(Ok((places, answer))) = self.under_way.join_next().await else {
            return;
        };
        match answer {
            Ok(outcomes) => {
                for (place, outcome) in places.into_iter().zip(outcomes) {
                    match outcome {
                        Enqueued::New(_) => self.tally.new += 1,
                        Enqueued::Existing(_) => self.tally.existing += 1,
                        Enqueued::Rejected(rejection) => {
                            self.refused.push((place, Error::rejected(rejection)));
                        }
                    }
                }
            }
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    async fn finish(&mut self) {
        let queues = std::mem::take(&mut self.queues);
        for (queue, batch) in queues.into_values() {
            if self.failed.is_none() && !batch.jobs.is_empty() {
                self.send(queue, batch).await;
            }
        }
        while !self.under_way.is_empty() {
            self.take_answer().await;
        }
    }
}
