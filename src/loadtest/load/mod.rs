//! `load`: how much a node does, how fast, and at what cost.
//!
//! ```text
//! producers --enqueue--> queues --lease--> consumers --ack-->      one connection each
//!     '--------------- room, while the backlog is bounded ---'
//! fill | warm-up | measured: counts, latencies, CPU, bytes | ending: what is there is worked | audit
//! ```
//!
//! Latencies count from the moment at which a request was due. Without a rate that is when it was
//! sent (a closed loop); with one it is the schedule's moment, also if the connection was still
//! busy then, so that a stall is seen by all that it held up (coordinated omission).
//!
//! The generator is one thread without the client library, since it shares the cores with what it
//! measures. Every request is numbered in a session, as those of the library are: where a group has
//! several members, a connection whose node goes away, or leads no more, finds the leader and asks again
//! what was under way, by the same numbers. What became of it is unknown only if the session is gone.

mod books;
mod consumer;
mod link;
mod outcome;
mod producer;

pub use outcome::{Latency, Outcome, Second};

use self::books::{Books, Counts, Phase};
use self::consumer::Consumer;
use self::link::Link;
use self::producer::{Producer, Shape};
use crate::base::code::Code;
use crate::base::ids::{GroupId, QueueUid};
use crate::base::report::Report;
use crate::client::{Client, Error, QueueSettings, ShardStatus};
use crate::loadtest::cluster::{self, Cluster, View};
use crate::loadtest::disk_probe::DiskProbe;
use crate::loadtest::host::HostFacts;
use crate::loadtest::node::NodeCommand;
use crate::loadtest::process::Usage;
use crate::loadtest::report::failed;
use crate::loadtest::setting::{self, Place};
use crate::runtime::preflight;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What is left is worked as long as this does not pass without a job.
const ENDING_PATIENCE: Duration = Duration::from_secs(45);
/// The load remembers each job while consumers work: 12 bytes.
const FILL_MAX: u64 = 100_000_000;
/// Jobs of a request that fills.
const FILL_BATCH: u64 = 64;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections that enqueue.
    pub producers: u32,
    /// Connections that lease and acknowledge; 0 = jobs are only enqueued.
    pub consumers: u32,
    /// Requests under way at once on a producer, jobs in hand on a consumer.
    pub window: u32,
    /// Jobs of a request.
    pub batch: u32,
    /// Bytes of a payload.
    pub payload: usize,
    /// Queues, spread over the groups.
    pub queues: u32,
    /// Priority classes used; 0 = the default alone.
    pub priorities: u8,
    /// Percent of the requests whose jobs are delayed by a second.
    pub delayed: u8,
    /// Percent of the jobs that are nacked when they are delivered.
    pub nack_rate: u8,
    /// Jobs a second, over all producers; `None` = as fast as answers come.
    pub rate: Option<u64>,
    /// Jobs that may be there at once where consumers work, beside those of `fill`; `None` = twice what
    /// all windows hold.
    pub backlog: Option<u64>,
    /// Jobs that are there before the load begins.
    pub fill: u64,
    /// How long is measured.
    pub duration: Duration,
    /// How long the load is on before.
    pub warm_up: Duration,
    /// A node that runs; `None` = our own.
    pub address: Option<String>,
    /// Nodes of our own: 1, 3 or 5.
    pub nodes: u32,
    /// Shards of our own node; `None` = one for each core.
    pub shards: Option<u16>,
    /// Where our own node keeps its data; `None` = a folder that is removed.
    pub data_dir: Option<PathBuf>,
    /// The program of our own node; `None` = this one.
    pub node: Option<PathBuf>,
    /// Whether SIGINT, SIGTERM and SIGHUP end the run.
    pub obey_signals: bool,
    /// Gets each line as soon as there is one.
    pub say: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            producers: 32,
            consumers: 0,
            window: 64,
            batch: 1,
            payload: 256,
            queues: 8,
            priorities: 0,
            delayed: 0,
            nack_rate: 0,
            rate: None,
            backlog: None,
            fill: 0,
            duration: Duration::from_secs(10),
            warm_up: Duration::from_secs(2),
            address: None,
            nodes: 1,
            shards: None,
            data_dir: None,
            node: None,
            obey_signals: false,
            say: |_| {},
        }
    }
}

/// Runs it.
///
/// # Errors
/// If it could not be measured. What was measured and is wrong is in the [`Outcome`].
pub fn run(options: &Options) -> Result<Outcome, Report> {
    check(options)?;
    setting::run(
        options.data_dir.as_deref(),
        options.obey_signals,
        async |place, probe| measure(options, place, probe).await,
    )
}

fn check(options: &Options) -> Result<(), Report> {
    use crate::base::limits::{ITEMS_MAX, PAYLOAD_BYTES_DEFAULT_MAX, PRIORITIES, SESSION_WINDOW};
    let wrong = |what: String| Err(Report::error(Code::BadArgument, what));
    let bounds = [
        ("--producers", options.producers.into(), 1, 10_000),
        ("--consumers", options.consumers.into(), 0, 10_000),
        ("--window", options.window.into(), 1, SESSION_WINDOW / 2),
        ("--batch", options.batch.into(), 1, ITEMS_MAX as u64),
        (
            "--payload",
            options.payload as u64,
            crate::workload::PAYLOAD_BYTES_MIN as u64,
            PAYLOAD_BYTES_DEFAULT_MAX as u64,
        ),
        ("--queues", options.queues.into(), 1, 1_000),
        (
            "--priorities",
            options.priorities.into(),
            0,
            PRIORITIES as u64,
        ),
        ("--delayed", options.delayed.into(), 0, 100),
        ("--nack-rate", options.nack_rate.into(), 0, 90),
        ("--rate", options.rate.unwrap_or(1), 1, 100_000_000),
        ("--fill", options.fill, 0, FILL_MAX),
    ];
    for (flag, given, least, most) in bounds {
        if !(least..=most).contains(&given) {
            return wrong(format!("{flag} must be {least} to {most}, not {given}"));
        }
    }
    if options.duration.is_zero() {
        return wrong("--duration must be above 0".to_owned());
    }
    if options.consumers > 0 && options.consumers < options.queues {
        let what = format!(
            "{} consumers cannot work {} queues: each takes one",
            options.consumers, options.queues
        );
        let report = Report::error(Code::BadArgument, what);
        return Err(report.fix("--consumers with at least as many as --queues"));
    }
    cluster::check_nodes(options.nodes)?;
    if options.address.is_some() && options.nodes > 1 {
        return wrong("--nodes is for nodes of the bench's own".to_owned());
    }
    if options.address.is_some() && (options.shards.is_some() || options.data_dir.is_some()) {
        return wrong("--shards and --data-dir are for a node of the bench's own".to_owned());
    }
    Ok(())
}

/// A queue of the load, and where the shards of its group listen.
struct Target {
    queue: QueueUid,
    group: GroupId,
    /// One of each node, first the leader's.
    addresses: Rc<[String]>,
}

async fn measure(options: &Options, place: &Place, probe: &DiskProbe) -> Result<Outcome, Report> {
    let host = HostFacts::told(place.path(), options.say);
    let (cluster, address) = match &options.address {
        Some(address) => (None, address.clone()),
        None => {
            let started = start(options, place).await?;
            let address = started.address();
            (Some(started), address)
        }
    };
    let client = Client::connect(&address).await;
    let client = client.map_err(|error| failed("cannot connect", &error))?;
    let names = queue_names(options);
    make_queues(&client, &names).await?;
    let view = View::settled(&address, options.nodes).await?;
    let targets = targets(&client, &names, &view).await?;
    let server = || Usage::of_all(cluster.as_ref()?.pids());
    let run = Run {
        options,
        probe,
        client: &client,
        server: &server,
        names: &names,
    };
    let measured = run.with(&targets).await;
    if cluster.is_none() {
        // Nothing of ours stays on a node that is somebody else's.
        for name in &names {
            let queue = client.find_queue(name).await;
            let deleted = async { queue?.delete().await }.await;
            deleted.map_err(|error| failed("cannot delete a queue of the load", &error))?;
        }
    }
    client.close().await;
    Ok(Outcome { host, ..measured? })
}

async fn start(options: &Options, place: &Place) -> Result<Cluster, Report> {
    let shards = options.shards.unwrap_or_else(preflight::per_core);
    let command = match &options.node {
        Some(program) => NodeCommand::of(program.clone()),
        None => NodeCommand::itself()?,
    };
    let folder = place.path().join("data");
    let plans = cluster::plans(&command, &folder, options.nodes, shards, 0, None)?;
    let started = tokio::task::spawn_blocking(|| Cluster::start(plans)).await;
    started.expect("starting a node does not panic")
}

fn queue_names(options: &Options) -> Vec<String> {
    let run = match options.address {
        None => String::new(),
        Some(_) => format!("{}-", std::process::id()),
    };
    let names = 0..options.queues;
    names.map(|number| format!("load-{run}{number}")).collect()
}

async fn make_queues(client: &Client, names: &[String]) -> Result<(), Report> {
    let settings = QueueSettings {
        max_attempts: u16::MAX,
        ..QueueSettings::default()
    };
    for name in names {
        let made = client.create_queue(name, settings, true).await;
        made.map_err(|error| failed("cannot make a queue", &error))?;
    }
    Ok(())
}

/// The queues, each with its leader and the others.
async fn targets(client: &Client, names: &[String], view: &View) -> Result<Vec<Target>, Report> {
    let mut targets = Vec::new();
    for name in names {
        let info = async { client.find_queue(name).await?.info().await }.await;
        let (info, _) = info.map_err(|error| failed("a queue is not there", &error))?;
        let group = info.groups.first().copied().unwrap_or_default();
        let Some(leader) = view.leader_address(group) else {
            let report = Report::error(Code::Unreachable, "the node lists no address");
            return Err(report);
        };
        let mut addresses = view.addresses_of(group);
        addresses.sort_by_key(|address| address != leader);
        targets.push(Target {
            queue: info.uid,
            group,
            addresses: addresses.into(),
        });
    }
    Ok(targets)
}

/// What stands still at a moment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    counts: Counts,
    server: Option<Usage>,
    generator: Option<Usage>,
    /// Written to the logs so far; unknown if a node does not say.
    log_bytes: Option<u64>,
}

struct Run<'a> {
    options: &'a Options,
    probe: &'a DiskProbe,
    client: &'a Client,
    server: &'a dyn Fn() -> Option<Usage>,
    names: &'a [String],
}

impl Run<'_> {
    async fn with(&self, targets: &[Target]) -> Result<Outcome, Report> {
        let books = Rc::new(Books::new(self.backlog_max()));
        if self.options.fill > 0 {
            self.fill(targets, &books).await?;
        }
        let mut producers = self.producers(targets, &books, self.shape()).await?;
        let mut consumers = self.consumers(targets, &books).await?;
        let mut seconds = Vec::new();
        let mut from = self.mark(&books).await?;
        let ended = {
            let watch = async {
                let warm = from.at + self.options.warm_up;
                self.watch(&books, warm, &mut seconds).await;
                from = self.mark(&books).await?;
                seconds.clear();
                books.enter(Phase::Measured);
                let until = from.at + self.options.duration;
                self.watch(&books, until, &mut seconds).await;
                let to = self.mark(&books).await?;
                books.enter(Phase::Ending);
                Ok((from, to))
            };
            tokio::select! {
                marks = watch => marks,
                report = broken(&mut producers) => Err(report),
                report = broken(&mut consumers) => Err(report),
            }
        };
        let (from, to) = ended?;
        while let Some(ended) = producers.join_next().await {
            ended.expect("a producer does not panic")?;
        }
        let patient = tokio::select! {
            patient = self.work_the_rest(&books) => patient,
            report = broken(&mut consumers) => return Err(report),
        };
        books.enter(Phase::Over);
        while let Some(ended) = consumers.join_next().await {
            ended.expect("a consumer does not panic")?;
        }
        let mut outcome = Outcome::between(self.options, &from, &to, &books, seconds);
        outcome.lost = self.lost(&books, patient).await?;
        outcome.disk_stalled = self.probe.stalled_between(from.at, to.at);
        outcome.disk_us = Latency::of(&self.probe.writes_us());
        Ok(outcome)
    }

    fn backlog_max(&self) -> Option<u64> {
        let Options {
            producers,
            consumers,
            window,
            batch,
            ..
        } = *self.options;
        let windows = u64::from(producers * batch + consumers) * u64::from(window);
        (consumers > 0).then(|| self.options.backlog.unwrap_or(2 * windows) + self.options.fill)
    }

    /// Puts the first jobs into the queues, as fast as they are taken. Refused ones are made up for.
    async fn fill(&self, targets: &[Target], books: &Rc<Books>) -> Result<(), Report> {
        let begun = Instant::now();
        let shape = Shape {
            batch: FILL_BATCH,
            delayed: 0,
            every: None,
            until: Some(self.options.fill),
            ..self.shape()
        };
        let mut producers = self.producers(targets, books, shape).await?;
        while let Some(ended) = producers.join_next().await {
            ended.expect("a producer does not panic")?;
        }
        let (jobs, seconds) = (books.counts().enqueued, begun.elapsed().as_secs_f64());
        (self.options.say)(&format!("fill     {jobs} jobs in {seconds:.1} s"));
        Ok(())
    }

    fn shape(&self) -> Shape {
        let Options {
            producers, batch, ..
        } = *self.options;
        // Each has its share of the rate.
        let every = self.options.rate.map(|rate| {
            let requests = f64::from(producers) * f64::from(batch);
            Duration::from_secs_f64(requests / rate as f64)
        });
        Shape {
            window: self.options.window as usize,
            batch: batch.into(),
            payload: self.options.payload,
            priorities: self.options.priorities,
            delayed: self.options.delayed,
            every,
            until: None,
        }
    }

    async fn producers(
        &self,
        targets: &[Target],
        books: &Rc<Books>,
        shape: Shape,
    ) -> Result<JoinSet<Result<(), Report>>, Report> {
        let producers = self.options.producers;
        let mut links = Vec::new();
        for number in 0..producers as usize {
            let target = &targets[number % targets.len()];
            let link = Link::open(target.addresses.clone(), target.group).await?;
            links.push((link, target));
        }
        let mut tasks = JoinSet::new();
        let begin = Instant::now();
        for (number, (link, target)) in links.into_iter().enumerate() {
            let books = books.clone();
            // With a rate they begin one after the other.
            let offset = shape.every.unwrap_or_default() * number as u32 / producers;
            let begin = begin + offset;
            let seed = number as u64;
            let producer = Producer::new(link, books, shape.clone(), target.queue, seed, begin);
            tasks.spawn_local(producer.run());
        }
        Ok(tasks)
    }

    async fn consumers(
        &self,
        targets: &[Target],
        books: &Rc<Books>,
    ) -> Result<JoinSet<Result<(), Report>>, Report> {
        let Options {
            consumers,
            window,
            batch,
            nack_rate,
            ..
        } = *self.options;
        let mut tasks = JoinSet::new();
        for number in 0..consumers as usize {
            let target = &targets[number % targets.len()];
            let link = Link::open(target.addresses.clone(), target.group).await?;
            let (books, seed) = (books.clone(), number as u64);
            let (queue, batch) = (target.queue, batch as usize);
            let consumer = Consumer::new(link, books, queue, window, batch, nack_rate, seed);
            tasks.spawn_local(consumer.run());
        }
        Ok(tasks)
    }

    async fn mark(&self, books: &Books) -> Result<Mark, Report> {
        let mark = Mark {
            at: Instant::now(),
            counts: books.counts(),
            server: (self.server)(),
            generator: Usage::of(std::process::id()),
            log_bytes: None,
        };
        // A node of several may be gone.
        let nodes = self.client.nodes().await;
        let nodes = nodes.map_err(|error| failed("the nodes do not say how they are", &error))?;
        let of_node = |shards: &[ShardStatus]| shards.iter().map(|shard| shard.durable_lsn).sum();
        let log_bytes: Result<Vec<u64>, Error> = nodes
            .into_iter()
            .map(|node| Ok(of_node(&node.shards?)))
            .collect();
        let log_bytes = log_bytes.ok().map(|all| all.iter().sum());
        Ok(Mark { log_bytes, ..mark })
    }

    /// Tells each second until a moment.
    async fn watch(&self, books: &Books, until: Instant, seconds: &mut Vec<Second>) {
        let begun = Instant::now();
        let mut last = (begun, books.counts());
        while Instant::now() < until {
            let next = (last.0 + Duration::from_secs(1)).min(until);
            tokio::time::sleep_until(next.into()).await;
            let now = (Instant::now(), books.counts());
            let latency = Latency::of(&books.take_lately());
            let passed = now.0 - begun;
            let second = Second::between(passed, now.0 - last.0, last.1, now.1, latency);
            let second = second.with_backlog(books.backlog());
            last = now;
            (self.options.say)(&second.line(books.phase() == Phase::WarmUp));
            seconds.push(second);
        }
    }

    /// Waits until all that is there is worked; whether it was.
    async fn work_the_rest(&self, books: &Books) -> bool {
        if self.options.consumers == 0 {
            return true;
        }
        let mut seen = (Instant::now(), books.counts());
        while books.unfinished() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let counts = books.counts();
            if counts != seen.1 {
                seen = (Instant::now(), counts);
            } else if seen.0.elapsed() > ENDING_PATIENCE {
                return false;
            }
        }
        true
    }

    /// Jobs whose enqueue was confirmed and that are neither worked nor there.
    async fn lost(&self, books: &Books, all_worked: bool) -> Result<u64, Report> {
        let (mut made, mut live, mut completed) = (0, 0, 0);
        for name in self.names {
            let stats = async { self.client.find_queue(name).await?.info().await }.await;
            let (_, stats) = stats.map_err(|error| failed("cannot read counters", &error))?;
            made += stats.enqueued_total;
            completed += stats.completed_total;
            live += stats.pending + stats.delayed + stats.in_flight + stats.dead;
        }
        let counts = books.counts();
        if self.options.consumers == 0 {
            let never_made = counts.enqueued.saturating_sub(made);
            let gone = made.saturating_sub(live + completed);
            return Ok(never_made + gone);
        }
        let unfinished = if all_worked { 0 } else { books.unfinished() };
        Ok(unfinished.saturating_sub(live))
    }
}

/// Waits for a connection that fails.
async fn broken(tasks: &mut JoinSet<Result<(), Report>>) -> Report {
    while let Some(ended) = tasks.join_next().await {
        if let Err(report) = ended.expect("a connection does not panic") {
            return report;
        }
    }
    std::future::pending().await
}
