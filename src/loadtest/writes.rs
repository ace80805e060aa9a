//! `writes`: what a node writes to its disk for a change of a job, beside its log.
//!
//! ```text
//! fill -> settle -> case -> settle -> case -> settle ...
//!                |----- counted ----|
//! ```
//!
//! Jobs are changed in one way after the other, and what log and checkpoints have grown by is read from the
//! node's own counters. Before and after each case the node is made to *settle*: so many small jobs come and go
//! on queues of their own that each shard has to finish two more rounds of checkpoints, the second of which began
//! after the case. What such a small job costs is measured, too, and taken off.

use crate::base::code::Code;
use crate::base::ids::JobId;
use crate::base::prng::Prng;
use crate::base::report::Report;
use crate::client::{AckItem, Client, Enqueued, LeasedJob, NewJob, Queue};
use crate::loadtest::cluster::{self, Cluster};
use crate::loadtest::host::HostFacts;
use crate::loadtest::node::{NodeCommand, NodePlan};
use crate::loadtest::report::failed;
use crate::loadtest::setting::{self, Place};
use crate::runtime::preflight;
use crate::workload::payload;
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Queues of the backlog, and of jobs that come and go.
const QUEUES: usize = 8;
/// Jobs of a request.
const BATCH: u64 = 64;
/// Requests of a fill at once.
const AT_ONCE: usize = 32;
/// Cancels at once: so many that they take little log, and are over before a round begins.
const CANCELS_AT_ONCE: usize = 256;
/// In the two cases of jobs that pass through there are so many times as many.
const PASSING: u64 = 20;
/// Queues to settle with, for each shard.
const SETTLING: usize = 4;
/// The counters are read after so many small jobs on each of those.
const BETWEEN_LOOKS: usize = 32;
/// Settling takes no longer.
const SETTLE_DEADLINE: Duration = Duration::from_secs(120);
/// How long a lease waits for a job.
const LEASE_WAIT: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Jobs in the queues.
    pub jobs: u64,
    /// Jobs that are changed in each case.
    pub changes: u64,
    /// Bytes of each payload.
    pub payload: usize,
    /// Where the data goes; `None` = a folder that is removed afterwards.
    pub data_dir: Option<PathBuf>,
    /// Shards of the node; `None` = one for each core.
    pub shards: Option<u16>,
    /// The node's program; `None` = this one.
    pub node: Option<PathBuf>,
    /// Whether signals that end a program end the run in good order.
    pub obey_signals: bool,
    /// Gets each line as soon as there is one.
    pub say: fn(&str),
}

/// What one way of changing jobs has cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// Which: `random`, `ends`, `fifo` or `brief`.
    pub case: &'static str,
    /// Jobs that were changed.
    pub jobs: u64,
    /// Bytes that the log grew by, padding included.
    pub log_bytes: u64,
    /// Bytes of checkpoint files written.
    pub checkpoint_bytes: u64,
    /// The latter, for each job.
    pub checkpoint_bytes_per_job: f64,
    /// Both, for each byte of log.
    pub written_over_log: f64,
}

impl Case {
    fn new(case: &'static str, jobs: u64, written: Written) -> Self {
        let Written { log, checkpoints } = written;
        Self {
            case,
            jobs,
            log_bytes: log,
            checkpoint_bytes: checkpoints,
            checkpoint_bytes_per_job: checkpoints as f64 / jobs as f64,
            written_over_log: (log + checkpoints) as f64 / log.max(1) as f64,
        }
    }

    fn line(&self) -> String {
        format!(
            "{:7} {:9} jobs, log {:9.2} MB, checkpoints {:9.2} MB, {:8.0} B a job, written over log {:.3}",
            self.case,
            self.jobs,
            self.log_bytes as f64 / 1e6,
            self.checkpoint_bytes as f64 / 1e6,
            self.checkpoint_bytes_per_job,
            self.written_over_log,
        )
    }
}

/// What was found. The fields that JSON shows are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Jobs in the queues.
    pub jobs: u64,
    /// Bytes of each payload.
    pub payload: usize,
    /// Each way.
    pub cases: Vec<Case>,
    /// What it was measured on.
    pub host: HostFacts,
}

/// Runs it.
///
/// # Errors
/// If it could not be measured.
pub fn run(options: &Options) -> Result<Outcome, Report> {
    if options.changes == 0 || options.changes > options.jobs {
        let what = "--changes must be at least 1, and no more than --jobs";
        return Err(Report::error(Code::BadArgument, what));
    }
    setting::check_payload(options.payload)?;
    setting::run(
        options.data_dir.as_deref(),
        options.obey_signals,
        async |place, _| {
            let host = HostFacts::told(place.path(), options.say);
            let cases = measure(options, place).await?;
            Ok(Outcome {
                jobs: options.jobs,
                payload: options.payload,
                cases,
                host,
            })
        },
    )
}

async fn measure(options: &Options, place: &Place) -> Result<Vec<Case>, Report> {
    let shards = options.shards.unwrap_or_else(preflight::per_core);
    let command = match &options.node {
        Some(program) => NodeCommand::of(program.clone()),
        None => NodeCommand::itself()?,
    };
    let plans = cluster::plans(&command, &place.path().join("data"), 1, shards, 0, None)?;
    let mut meter = Meter::start(plans, shards).await?;
    let backlog = queues(&meter.client, "writes", QUEUES).await?;
    let brief = queues(&meter.client, "brief", QUEUES).await?;
    let begun = Instant::now();
    let sample = fill(options, &backlog).await?;
    let (jobs, took) = (options.jobs, begun.elapsed().as_secs_f64());
    (options.say)(&format!("fill    {jobs:9} jobs in {took:.1} s"));

    meter.settle().await?;
    meter.small = meter.settle().await?.each();
    let (changes, passing) = (options.changes, PASSING * options.changes);
    let mut cases = Vec::new();
    let mut told = |case: Case| {
        (options.say)(&case.line());
        cases.push(case);
    };
    cancel(&meter.client, sample).await?;
    told(Case::new("random", changes, meter.count().await?));
    for (case, queues, jobs) in [
        ("ends", &backlog, changes),
        ("fifo", &backlog, passing),
        ("brief", &brief, passing),
    ] {
        pass(&meter.client, queues, jobs, options.payload).await?;
        told(Case::new(case, jobs, meter.count().await?));
    }
    meter.client.close().await;
    Ok(cases)
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Written {
    log: u64,
    checkpoints: u64,
}

/// What was written from one settling to the next, and how many small jobs that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Settled {
    written: Written,
    small_jobs: u64,
}

/// Bytes for each small job.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Small {
    log: f64,
    checkpoints: f64,
}

impl Settled {
    /// If nothing else was done.
    fn each(self) -> Small {
        let each = |bytes| bytes as f64 / self.small_jobs.max(1) as f64;
        Small {
            log: each(self.written.log),
            checkpoints: each(self.written.checkpoints),
        }
    }

    /// What all else has cost.
    fn without(self, small: Small) -> Written {
        let less =
            |bytes: u64, each: f64| bytes.saturating_sub((each * self.small_jobs as f64) as u64);
        Written {
            log: less(self.written.log, small.log),
            checkpoints: less(self.written.checkpoints, small.checkpoints),
        }
    }
}

/// A node, and what it has written.
struct Meter {
    cluster: Cluster,
    client: Client,
    settling: Vec<Queue>,
    /// What a small job costs.
    small: Small,
    /// When it was settled last.
    last: Written,
}

impl Meter {
    async fn start(plans: Vec<NodePlan>, shards: u16) -> Result<Self, Report> {
        let cluster = tokio::task::spawn_blocking(|| Cluster::start(plans))
            .await
            .expect("starting a node does not panic")?;
        let client = Client::connect(cluster.address().as_str())
            .await
            .map_err(|error| failed("cannot connect", &error))?;
        let settling = queues(&client, "settle", SETTLING * usize::from(shards)).await?;
        Ok(Self {
            cluster,
            client,
            settling,
            small: Small::default(),
            last: Written::default(),
        })
    }

    /// What was written since it was settled last, without what settling costs.
    async fn count(&mut self) -> Result<Written, Report> {
        Ok(self.settle().await?.without(self.small))
    }

    /// Has all that was done so far be in checkpoints.
    async fn settle(&mut self) -> Result<Settled, Report> {
        let mut small_jobs = 0;
        let begun = Instant::now();
        let before = rounds(&self.metrics()?);
        loop {
            for _ in 0..BETWEEN_LOOKS {
                let mut calls = JoinSet::new();
                for queue in &self.settling {
                    let (client, queue) = (self.client.clone(), queue.clone());
                    calls.spawn(async move { come_and_go(&client, &queue, (1, 1), 8).await });
                }
                all(calls).await?;
                small_jobs += self.settling.len() as u64;
            }
            let text = self.metrics()?;
            let mut shards = before.iter().zip(rounds(&text));
            if shards.all(|(before, now)| now >= before + 2) {
                let (now, before) = (written(&text), self.last);
                self.last = now;
                let written = Written {
                    log: now.log - before.log,
                    checkpoints: now.checkpoints - before.checkpoints,
                };
                return Ok(Settled {
                    written,
                    small_jobs,
                });
            }
            if begun.elapsed() > SETTLE_DEADLINE {
                let what = "the node does not finish its checkpoints";
                return Err(Report::error(Code::Unreachable, what));
            }
        }
    }

    /// # Errors
    /// If the node does not tell them.
    fn metrics(&mut self) -> Result<String, Report> {
        let node = self.cluster.nodes_mut().first_mut();
        let told = node.expect("one was planned").metrics()?;
        if told.is_empty() {
            let what = "the node does not tell its metrics";
            return Err(Report::error(Code::Unreachable, what));
        }
        Ok(told)
    }
}

/// A counter of each shard, in the order of the shards.
fn counters(metrics: &str, name: &str) -> Vec<u64> {
    let of = |line: &str| {
        let rest = line.strip_prefix(name)?.strip_prefix("{shard=\"")?;
        let (shard, value) = rest.split_once("\"} ")?;
        Some((
            shard.parse::<u16>().ok()?,
            value.parse::<f64>().ok()? as u64,
        ))
    };
    let mut found: Vec<_> = metrics.lines().filter_map(of).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, value)| value).collect()
}

fn rounds(metrics: &str) -> Vec<u64> {
    counters(metrics, "rrq_checkpoint_rounds_total")
}

fn written(metrics: &str) -> Written {
    Written {
        log: counters(metrics, "rrq_wal_bytes_total").iter().sum(),
        checkpoints: counters(metrics, "rrq_checkpoint_bytes_total").iter().sum(),
    }
}

async fn queues(client: &Client, name: &str, count: usize) -> Result<Vec<Queue>, Report> {
    let mut queues = Vec::new();
    for number in 0..count {
        let queue = client.queue(&format!("{name}-{number}")).await;
        queues.push(queue.map_err(|error| failed("cannot make a queue", &error))?);
    }
    Ok(queues)
}

/// Waits for all calls.
async fn all(mut calls: JoinSet<Result<(), Report>>) -> Result<(), Report> {
    while let Some(ended) = calls.join_next().await {
        ended.expect("a call does not panic")?;
    }
    Ok(())
}

/// Fills the queues; some of the jobs, each as likely as any other.
async fn fill(options: &Options, queues: &[Queue]) -> Result<Vec<JobId>, Report> {
    let mut prng = Prng::new(1);
    let (mut asked, mut seen, mut sample) = (0, 0, Vec::new());
    let mut calls = JoinSet::new();
    while asked < options.jobs || !calls.is_empty() {
        if asked < options.jobs && calls.len() < AT_ONCE {
            let count = BATCH.min(options.jobs - asked);
            let queue = queues[(asked / BATCH) as usize % queues.len()].clone();
            let bytes = options.payload;
            calls.spawn(async move { enqueue(&queue, count, bytes).await });
            asked += count;
        } else if let Some(ended) = calls.join_next().await {
            for job in ended.expect("a fill does not panic")? {
                seen += 1;
                // Reservoir sampling: Vitter, "Random Sampling with a Reservoir", 1985, algorithm R.
                let place = prng.below(seen);
                if seen <= options.changes {
                    sample.push(job);
                } else if let Some(taken) = sample.get_mut(place as usize) {
                    *taken = job;
                }
            }
        }
    }
    Ok(sample)
}

async fn enqueue(queue: &Queue, count: u64, bytes: usize) -> Result<Vec<JobId>, Report> {
    let job = |number| NewJob {
        payload: payload(number, bytes),
        ..NewJob::default()
    };
    let done = queue.enqueue_batch((0..count).map(job).collect()).await;
    let done = done.map_err(|error| failed("cannot enqueue", &error))?;
    done.into_iter()
        .map(|done| match done {
            Enqueued::New(id) | Enqueued::Existing(id) => Ok(id),
            Enqueued::Rejected(rejection) => {
                let what = format!("the node refused a job: {rejection:?}");
                Err(Report::error(Code::BadRequest, what))
            }
        })
        .collect()
}

async fn cancel(client: &Client, jobs: Vec<JobId>) -> Result<(), Report> {
    let mut calls = JoinSet::new();
    let share = jobs.len().div_ceil(CANCELS_AT_ONCE).max(1);
    for jobs in jobs.chunks(share) {
        let (client, jobs) = (client.clone(), jobs.to_vec());
        calls.spawn(async move {
            for job in jobs {
                let done = client.cancel(job).await;
                done.map_err(|error| failed("cannot cancel a job", &error))?;
            }
            Ok(())
        });
    }
    all(calls).await
}

/// So many jobs come, and as many go, the oldest first.
async fn pass(client: &Client, queues: &[Queue], jobs: u64, bytes: usize) -> Result<(), Report> {
    let mut calls = JoinSet::new();
    for (at, queue) in (0..).zip(queues) {
        let all = queues.len() as u64;
        let share = jobs / all + u64::from(at < jobs % all);
        let (client, queue) = (client.clone(), queue.clone());
        calls.spawn(async move { come_and_go(&client, &queue, (share, BATCH), bytes).await });
    }
    all(calls).await
}

async fn come_and_go(
    client: &Client,
    queue: &Queue,
    (jobs, batch): (u64, u64),
    bytes: usize,
) -> Result<(), Report> {
    let (mut come, mut gone) = (0, 0);
    while gone < jobs {
        let count = batch.min(jobs - come);
        come += enqueue(queue, count, bytes).await?.len() as u64;
        let most = u32::try_from(come - gone).unwrap_or(u32::MAX);
        let leased = queue.lease(most, LEASE_WAIT).await;
        let leased = leased.map_err(|error| failed("cannot lease", &error))?;
        let item = |job: &LeasedJob| AckItem {
            token: job.token(),
            result: None,
        };
        for done in client.ack_batch(leased.iter().map(item).collect()).await {
            done.map_err(|error| failed("cannot ack", &error))?;
            gone += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_of_each_shard_and_of_one_name() {
        let text = "rrq_wal_bytes_total{shard=\"1\"} 700\nrrq_wal_bytes_total{shard=\"0\"} 4096\n\
                    rrq_wal_bytes_total_x{shard=\"0\"} 1\nrrq_checkpoint_bytes_total{shard=\"0\"} 9\n";
        assert_eq!(counters(text, "rrq_wal_bytes_total"), [4096, 700]);
        let found = written(text);
        let (log, checkpoints) = (4796, 9);
        assert_eq!(found, Written { log, checkpoints });
    }

    #[test]
    fn what_settling_costs_is_taken_off() {
        let settled = |log, checkpoints, small_jobs| Settled {
            written: Written { log, checkpoints },
            small_jobs,
        };
        let small = settled(4096, 10, 2).each();
        let (log, checkpoints) = (900, 0);
        let left = settled(3 * 2048 + 900, 15, 3).without(small);
        assert_eq!(left, Written { log, checkpoints });
    }

    #[test]
    fn both_count_for_what_is_written() {
        let (log, checkpoints) = (1000, 250);
        let case = Case::new("ends", 10, Written { log, checkpoints });
        assert!((case.written_over_log - 1.25).abs() < 1e-9);
        assert!((case.checkpoint_bytes_per_job - 25.0).abs() < 1e-9);
    }
}
