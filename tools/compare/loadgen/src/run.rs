//! The course of a run: connect all, warm up, measure, work what is left, count what is there.

use crate::books::{Books, Counts, Phase, Times};
use crate::options::{Options, Rival};
use crate::process::Usage;
use crate::{beanstalkd, nats, rabbitmq, redis_streams};
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// What is left is worked as long as this does not pass without a job.
const ENDING_PATIENCE: Duration = Duration::from_secs(20);

/// What a connection is given.
#[derive(Clone)]
pub struct Seat {
    pub options: Arc<Options>,
    pub books: Arc<Books>,
    /// Which of the producers or consumers it is.
    pub number: u32,
    /// Waited at by each connection once it is there.
    pub start: Arc<Barrier>,
}

impl Seat {
    pub fn queue(&self) -> String {
        self.options.queue_of(self.number)
    }
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

/// What was found; the names are those of `rrq-bench load --json`.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub duration_s: f64,
    pub enqueued_per_s: f64,
    pub completed_per_s: f64,
    pub enqueue_us: Latency,
    pub end_to_end_us: Latency,
    pub server_cpu_us_per_job: Option<f64>,
    pub client_cpu_us_per_job: f64,
    pub bytes_written_per_job: Option<f64>,
    /// Jobs that came after their ack had been confirmed.
    pub redelivered_after_ack: u64,
    /// Deliveries of what nobody had enqueued.
    pub strange: u64,
    /// Confirmed jobs that are neither worked nor there.
    pub lost: u64,
}

impl Outcome {
    pub fn is_sound(&self) -> bool {
        self.lost + self.redelivered_after_ack + self.strange == 0
    }
}

#[derive(Clone, Copy)]
struct Mark {
    at: Instant,
    counts: Counts,
    server: Option<Usage>,
    load: Usage,
}

/// Runs it.
pub fn run(options: &Options) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.threads)
        .enable_all()
        .build()?;
    runtime.block_on(measure(Arc::new(options.clone())))
}

async fn measure(options: Arc<Options>) -> Result<Outcome> {
    match options.rival {
        Rival::Redis => redis_streams::prepare(&options).await,
        Rival::Rabbitmq => rabbitmq::prepare(&options).await,
        Rival::Nats => nats::prepare(&options).await,
        Rival::Beanstalkd => Ok(()),
    }
    .context("cannot make the queues")?;
    let books = Arc::new(Books::new(options.backlog_max(), options.payload));
    let connections = (options.producers + options.consumers) as usize;
    let start = Arc::new(Barrier::new(connections + 1));
    let seat = |number| Seat {
        options: options.clone(),
        books: books.clone(),
        number,
        start: start.clone(),
    };
    let mut producers = JoinSet::new();
    let mut consumers = JoinSet::new();
    for number in 0..options.producers {
        producers.spawn(produce(seat(number)));
    }
    for number in 0..options.consumers {
        consumers.spawn(consume(seat(number)));
    }
    let mut times = Times::new();
    let watch = async {
        start.wait().await;
        tokio::time::sleep(options.warm_up).await;
        let from = mark(&options, &books);
        books.enter(Phase::Measured);
        tokio::time::sleep(options.duration).await;
        let to = mark(&options, &books);
        books.enter(Phase::Ending);
        (from, to)
    };
    let (from, to) = tokio::select! {
        marks = watch => marks,
        error = broken(&mut producers) => return Err(error),
        error = broken(&mut consumers) => return Err(error),
    };
    while let Some(ended) = producers.join_next().await {
        times.add(&ended.context("a producer panicked")??);
    }
    if options.consumers > 0 {
        tokio::select! {
            () = work_the_rest(&books) => {}
            error = broken(&mut consumers) => return Err(error),
        }
    }
    books.enter(Phase::Over);
    while let Some(ended) = consumers.join_next().await {
        times.add(&ended.context("a consumer panicked")??);
    }
    let left = match options.rival {
        Rival::Redis => redis_streams::left(&options).await,
        Rival::Rabbitmq => rabbitmq::left(&options).await,
        Rival::Nats => nats::left(&options).await,
        Rival::Beanstalkd => beanstalkd::left(&options).await,
    }
    .context("cannot count what is left")?;
    Ok(outcome(&options, &from, &to, &books, &times, left))
}

async fn produce(seat: Seat) -> Result<Times> {
    match seat.options.rival {
        Rival::Redis => redis_streams::produce(seat).await,
        Rival::Rabbitmq => rabbitmq::produce(seat).await,
        Rival::Nats => nats::produce(seat).await,
        Rival::Beanstalkd => beanstalkd::produce(seat).await,
    }
    .context("a producer failed")
}

async fn consume(seat: Seat) -> Result<Times> {
    match seat.options.rival {
        Rival::Redis => redis_streams::consume(seat).await,
        Rival::Rabbitmq => rabbitmq::consume(seat).await,
        Rival::Nats => nats::consume(seat).await,
        Rival::Beanstalkd => beanstalkd::consume(seat).await,
    }
    .context("a consumer failed")
}

fn mark(options: &Options, books: &Books) -> Mark {
    Mark {
        at: Instant::now(),
        counts: books.counts(),
        server: options.pid.and_then(Usage::of),
        load: Usage::of(std::process::id()).unwrap_or_default(),
    }
}

/// Waits for a connection that fails.
async fn broken(tasks: &mut JoinSet<Result<Times>>) -> anyhow::Error {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return error,
            Err(panicked) => return panicked.into(),
        }
    }
    std::future::pending().await
}

/// Waits until all that was enqueued is worked, or nothing happens any more.
async fn work_the_rest(books: &Books) {
    let mut seen = (Instant::now(), books.counts());
    while seen.1.completed < seen.1.asked && seen.0.elapsed() < ENDING_PATIENCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let counts = books.counts();
        if counts != seen.1 {
            seen = (Instant::now(), counts);
        }
    }
}

fn outcome(
    options: &Options,
    from: &Mark,
    to: &Mark,
    books: &Books,
    times: &Times,
    left: u64,
) -> Outcome {
    let seconds = (to.at - from.at).as_secs_f64();
    let enqueued = to.counts.enqueued - from.counts.enqueued;
    let completed = to.counts.completed - from.counts.completed;
    let jobs = if options.consumers == 0 {
        enqueued
    } else {
        completed
    };
    let a_job = |amount: u64| amount as f64 / jobs.max(1) as f64;
    let server = from.server.zip(to.server);
    let counts = books.counts();
    Outcome {
        duration_s: seconds,
        enqueued_per_s: enqueued as f64 / seconds,
        completed_per_s: completed as f64 / seconds,
        enqueue_us: Latency::of(&times.enqueue),
        end_to_end_us: Latency::of(&times.life),
        server_cpu_us_per_job: server.map(|(from, to)| a_job(to.cpu_us - from.cpu_us)),
        client_cpu_us_per_job: a_job(to.load.cpu_us - from.load.cpu_us),
        bytes_written_per_job: server.map(|(from, to)| a_job(to.written - from.written)),
        redelivered_after_ack: counts.repeated,
        strange: counts.strange,
        lost: counts.enqueued.saturating_sub(counts.completed + left),
    }
}

/// A connection that failed because the server refused something.
pub fn refused<T>(what: &str, answer: impl std::fmt::Debug) -> Result<T> {
    bail!("the server refused {what}: {answer:?}")
}
