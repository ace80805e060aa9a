//! `crash-recover`: how long a node is away after a kill -9, and whether it forgot anything. Of several
//! nodes all are killed at once, and started again at once.
//!
//! ```text
//! fill -> load on -> kill -9 -> reaped -> exec -> connected -> replied -> leased -> acked
//!          ^             |------------------------- rto ------------------------------|
//!          |                                |------------ exec to first --------------|
//!          '---- audit: look at every job that must be there <- load off <------------'
//! ... and at the end: drain, and compare the books with the node's own counters.
//! ```
//!
//! Times are what a client sees, never those of a sleep. The new process is started as soon as the
//! kernel has reaped the old one, on the same data and port.

use crate::base::code::Code;
use crate::base::prng::Prng;
use crate::base::report::Report;
use crate::loadtest::background::{Load, Settled};
use crate::loadtest::cluster::{self, Cluster, View};
use crate::loadtest::cold;
use crate::loadtest::disk_probe::{DiskProbe, new_histogram};
use crate::loadtest::first_job::{self, Marks, Source};
use crate::loadtest::host::HostFacts;
use crate::loadtest::html::{Chart, Page, Series};
use crate::loadtest::node::{Node, NodeCommand, NodePlan, Signal};
use crate::loadtest::report::{Marked, Percentiles, bars, disk_line, millis, verdict};
use crate::loadtest::setting::{self, Place};
use crate::runtime::preflight;
use crate::workload::{Ledger, Misses};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Acks of the load before a kill.
const ACKS_BEFORE_KILL: u64 = 300;
/// A kill comes at a random moment of this time.
const KILL_WITHIN_MS: u64 = 50;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes: 1, 3 or 5.
    pub nodes: u32,
    /// Jobs in the queues while the load is on.
    pub jobs: u64,
    /// Bytes of each payload.
    pub payload: usize,
    /// How often to kill.
    pub rounds: u32,
    /// What ends the node.
    pub signal: Signal,
    /// Whether it starts with none of its data and program in memory.
    pub cold: bool,
    /// Where the data goes; `None` = a folder that is removed afterwards.
    pub data_dir: Option<PathBuf>,
    /// Shards of the node; `None` = one for each core.
    pub shards: Option<u16>,
    /// The port of its first shard; 0 = any that is free.
    pub port: u16,
    /// The node's program; `None` = this one.
    pub node: Option<PathBuf>,
    /// Whether signals that end a program end the run in good order.
    pub obey_signals: bool,
    /// Gets each line as soon as there is one.
    pub say: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 1,
            jobs: 10_000,
            payload: 256,
            rounds: 10,
            signal: Signal::Kill,
            cold: false,
            data_dir: None,
            shards: None,
            port: 0,
            node: None,
            obey_signals: false,
            say: |_| {},
        }
    }
}

/// One kill.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// From the kill to the first job leased and acked after it.
    pub rto_ms: f64,
    /// From the exec of the new process to the same.
    pub exec_to_first_ms: f64,
    /// As the first client saw it. `reaped` and `library` (the first ack through the client library) from the kill on, the
    /// others from the exec on.
    pub phases_ms: BTreeMap<&'static str, f64>,
    /// How long each part of the start took, as the node itself tells: `rrq_recovery_seconds`. Of several
    /// nodes, the first one's.
    pub node_phases_ms: BTreeMap<String, f64>,
    /// Jobs whose enqueue was acknowledged up to this round's audit.
    pub acked: u64,
    /// Acknowledged jobs that this round lost.
    pub lost: u64,
    /// Jobs that came back in this round after their ack was confirmed.
    pub redelivered_after_ack: u64,
    /// Whether the disk stalled for others too.
    pub marked: bool,
}

/// What was found. The fields that JSON shows are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Nodes.
    pub nodes: u32,
    /// Jobs in the queues while the load was on.
    pub jobs: u64,
    /// Bytes of each payload.
    pub payload: usize,
    /// Each kill.
    pub rounds: Vec<Round>,
    /// Over all rounds.
    pub rto_ms: Percentiles,
    /// Over all rounds.
    pub exec_to_first_ms: Percentiles,
    /// Acknowledged jobs lost, in rounds and at the end.
    pub lost: u64,
    /// All that went wrong.
    #[serde(skip)]
    pub misses: Misses,
    /// Jobs whose enqueue was acknowledged.
    #[serde(skip)]
    pub enqueued: u64,
    /// Jobs finished.
    #[serde(skip)]
    pub finished: u64,
    /// Writes of the disk probe.
    #[serde(skip)]
    pub disk_ms: Percentiles,
    /// What it was measured on.
    pub host: HostFacts,
}

impl Outcome {
    /// Whether nothing was lost, came back, or was made twice, and all that was acknowledged is
    /// accounted for.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.misses.is_none() && self.enqueued == self.finished
    }

    /// Histograms, percentiles and the verdict, for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let marked = self.rounds.iter().filter(|round| round.marked).count();
        let values = |value: fn(&Round) -> f64| -> Vec<Marked> {
            let rounds = self.rounds.iter();
            rounds.map(|round| (value(round), round.marked)).collect()
        };
        let rto = values(|round| round.rto_ms);
        let exec = values(|round| round.exec_to_first_ms);
        for (title, values) in [
            ("rto: kill -9 to the first job leased and acked", rto),
            ("exec of the new process to the same", exec),
        ] {
            let all = Percentiles::of(values.iter().map(|(value, _)| *value));
            text += &format!("\n{title}\n{}", bars(&values));
            text += &format!("  all {:3}  {}\n", values.len(), all.line());
            if marked > 0 && marked < values.len() {
                let sound = values.iter().filter(|(_, marked)| !marked);
                let sound = Percentiles::of(sound.map(|(value, _)| *value));
                let count = values.len() - marked;
                text += &format!("  unmarked {count}  {}\n", sound.line());
            }
        }
        text += &format!(
            "\n{}\n{}\n",
            disk_line(&self.disk_ms, marked),
            self.verdict()
        );
        text
    }

    fn verdict(&self) -> String {
        let what = format!("{} kills", self.rounds.len());
        verdict(&what, (self.enqueued, self.finished), &self.misses)
    }
}

/// What runs with several numbers of jobs have shown: whether more of them take longer.
#[must_use]
pub fn curve(outcomes: &[Outcome]) -> String {
    let mut text = String::from("\n      jobs   rto p50      p99   exec to first p50      p99\n");
    for outcome in outcomes {
        let (rto, exec) = (&outcome.rto_ms, &outcome.exec_to_first_ms);
        text += &format!(
            "{:10} {:6.1} ms {:5.1} ms {:16.1} ms {:5.1} ms\n",
            outcome.jobs, rto.p50, rto.p99, exec.p50, exec.p99
        );
    }
    text.truncate(text.trim_end().len());
    text
}

/// A time of a round, and how it is read.
type OfRound = (&'static str, fn(&Round) -> f64);
const TIMES: [OfRound; 2] = [
    ("rto", |round| round.rto_ms),
    ("exec to first", |round| round.exec_to_first_ms),
];

/// Runs with one or several numbers of jobs as one HTML file.
#[must_use]
pub fn html(outcomes: &[Outcome]) -> String {
    let histogram = |outcome: &Outcome, value: fn(&Round) -> f64| {
        let mut histogram = new_histogram();
        for round in &outcome.rounds {
            histogram.saturating_record((value(round) * 1000.0).round() as u64);
        }
        histogram
    };
    let mut latencies = Vec::new();
    let mut rounds = Vec::new();
    for outcome in outcomes {
        for (what, value) in TIMES {
            let name = format!("{what}, {} jobs", outcome.jobs);
            latencies.push((name.clone(), histogram(outcome, value)));
            let points = outcome.rounds.iter().enumerate();
            let points = points.map(|(number, round)| (number as f64 + 1.0, value(round)));
            let points = points.collect();
            rounds.push(Series { name, points });
        }
    }
    let mut charts = vec![Chart {
        title: "Round by round",
        unit: "ms",
        across: "",
        lines: rounds,
    }];
    if outcomes.len() > 1 {
        let line = |name: &str, value: fn(&Outcome) -> f64| Series {
            name: name.to_owned(),
            points: outcomes.iter().map(|o| (o.jobs as f64, value(o))).collect(),
        };
        let by_jobs = vec![
            line("rto p50", |outcome| outcome.rto_ms.p50),
            line("exec to first p50", |outcome| outcome.exec_to_first_ms.p50),
        ];
        charts.push(Chart {
            title: "By jobs in the queues",
            unit: "ms",
            across: "jobs",
            lines: by_jobs,
        });
    }
    let texts: String = outcomes.iter().map(Outcome::text).collect();
    let facts = outcomes.first().map(|outcome| outcome.host.facts());
    let page = Page {
        title: "rrq-bench crash-recover",
        text: &texts,
        facts: facts.unwrap_or_default(),
        latencies: &latencies,
        charts,
    };
    page.html()
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
        async |place, probe| {
            let host = HostFacts::told(place.path(), options.say);
            let stop = StopWhenDropped::default();
            let outcome = measure(options, place, probe, &stop.0).await?;
            Ok(Outcome { host, ..outcome })
        },
    )
}

/// Ends the round that is under way, on a thread of its own, once nobody waits for it.
#[derive(Default)]
struct StopWhenDropped(Arc<AtomicBool>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn check(options: &Options) -> Result<(), Report> {
    let wrong = |what: String| Err(Report::error(Code::BadArgument, what));
    cluster::check_nodes(options.nodes)?;
    if options.jobs == 0 || options.rounds == 0 {
        return wrong("--jobs and --rounds must be at least 1".to_owned());
    }
    setting::check_payload(options.payload)
}

async fn measure(
    options: &Options,
    place: &Place,
    probe: &DiskProbe,
    stop: &Arc<AtomicBool>,
) -> Result<Outcome, Report> {
    let shards = options.shards.unwrap_or_else(preflight::per_core);
    let mut command = match &options.node {
        Some(program) => NodeCommand::of(program.clone()),
        None => NodeCommand::itself()?,
    };
    if options.cold {
        // A copy, which nobody else runs: it would stay in memory.
        command.program = copied(&command.program, place.path())?;
    }
    let folder = place.path().join("data");
    let plans = cluster::plans(&command, &folder, options.nodes, shards, options.port, None)?;
    let mut cluster = tokio::task::spawn_blocking(|| Cluster::start(plans))
        .await
        .expect("starting a node does not panic")?;
    let address = cluster.address();
    let load = Load::connect(&address, options.payload).await?;
    let begun = Instant::now();
    load.fill(options.jobs).await?;
    let jobs = options.jobs;
    (options.say)(&format!(
        "fill     {jobs} jobs of {} B in {:.1} s, {shards} shards at {address}",
        options.payload,
        begun.elapsed().as_secs_f64(),
    ));
    let mut prng = Prng::new(u64::from(std::process::id()));
    let mut rounds = Vec::new();
    for number in 0..options.rounds {
        let (survivor, round) =
            one_round(options, cluster, &load, number, &mut prng, probe, stop).await?;
        cluster = survivor;
        load.audit().await?;
        load.top_up(options.jobs);
        let round = round.audited(&load, &rounds);
        (options.say)(&round.line(number + 1, options.rounds));
        rounds.push(round);
    }
    let outcome = finish(options, &load, rounds, probe).await?;
    load.close().await;
    drop(cluster);
    Ok(outcome)
}

fn copied(program: &Path, folder: &Path) -> Result<PathBuf, Report> {
    let copy = folder.join("node");
    let copied = std::fs::copy(program, &copy).map_err(|error| {
        let what = format!("cannot copy {} to {}", program.display(), copy.display());
        Report::error(Code::DirectoryUnusable, what).location(error.to_string())
    });
    copied.map(|_| copy)
}

/// One kill under load; afterwards the load is off.
async fn one_round(
    options: &Options,
    cluster: Cluster,
    load: &Load,
    number: u32,
    prng: &mut Prng,
    probe: &DiskProbe,
    stop: &Arc<AtomicBool>,
) -> Result<(Cluster, Round), Report> {
    let source = source(options, &cluster, load, number as usize).await?;
    load.resume();
    load.acks(ACKS_BEFORE_KILL.min(1 + prng.below(ACKS_BEFORE_KILL)))
        .await?;
    tokio::time::sleep(Duration::from_millis(prng.below(KILL_WITHIN_MS))).await;
    let (ledger, stop, watch) = (load.ledger(), stop.clone(), load.watch_first_ack());
    let (signal, cold) = (options.signal, options.cold);
    let killed = tokio::task::spawn_blocking(move || {
        kill_and_restart(cluster, (signal, cold), &source, &ledger, &stop, watch)
    });
    let (mut cluster, crash) = killed.await.expect("a round does not panic")?;
    load.make_room();
    let library = load.first_ack().await?;
    load.pause().await?;
    let told = tokio::task::spawn_blocking(move || {
        let phases = cluster.nodes_mut().first_mut().map(Node::start_phases);
        phases.transpose().map(|phases| (cluster, phases))
    });
    let (cluster, phases) = told.await.expect("asking a node does not panic")?;
    let round = crash.round(library, phases.unwrap_or_default(), probe);
    Ok((cluster, round))
}

/// Where the first job of a queue may be taken from.
async fn source(
    options: &Options,
    cluster: &Cluster,
    load: &Load,
    number: usize,
) -> Result<Source, Report> {
    let queue = load.queue(number).await?;
    let group = queue.groups.first().copied().unwrap_or_default();
    let view = View::of(&cluster.address(), options.nodes).await?;
    let addresses = view.addresses_of(group);
    if addresses.is_empty() {
        let report = Report::error(Code::Unreachable, "the node lists no address");
        return Err(report);
    }
    Ok(Source {
        addresses,
        group,
        queue: queue.uid,
    })
}

/// The moments of a round.
struct Crash {
    killed: Instant,
    reaped: Instant,
    exec: Instant,
    marks: Marks,
}

fn kill_and_restart(
    mut cluster: Cluster,
    (signal, cold): (Signal, bool),
    source: &Source,
    ledger: &Mutex<Ledger>,
    stop: &AtomicBool,
    watch_first_ack: impl Fn(Instant),
) -> Result<(Cluster, Crash), Report> {
    let killed = Instant::now();
    for node in cluster.nodes_mut() {
        node.signal(signal)?;
    }
    watch_first_ack(Instant::now());
    cluster.reap()?;
    let reaped = Instant::now();
    let plans = cluster.plans();
    let begun = Instant::now();
    if cold {
        for NodePlan {
            data_dir, command, ..
        } in &plans
        {
            cold::forget(&[data_dir, &command.program])?;
        }
    }
    let forgotten = begun.elapsed();
    let exec = Instant::now();
    let mut cluster = Cluster::spawn(plans)?;
    let marks = first_job::take_one(source, ledger, || match stop.load(Relaxed) {
        true => Err(setting::stopped()),
        false => cluster.check(),
    })?;
    let crash = Crash {
        // The time that it took to forget is not the node's.
        killed: killed + forgotten,
        reaped: reaped + forgotten,
        exec,
        marks,
    };
    Ok((cluster, crash))
}

impl Crash {
    fn round(
        self,
        library: Instant,
        node_phases_ms: BTreeMap<String, f64>,
        probe: &DiskProbe,
    ) -> Round {
        let Self {
            killed,
            reaped,
            exec,
            marks,
        } = self;
        let phases_ms = BTreeMap::from([
            ("reaped", millis(reaped - killed)),
            ("listening", millis(marks.connected - exec)),
            ("first_reply", millis(marks.replied - exec)),
            ("first_job", millis(marks.leased - exec)),
            ("library", millis(library - killed)),
        ]);
        Round {
            rto_ms: millis(marks.acked - killed),
            exec_to_first_ms: millis(marks.acked - exec),
            phases_ms,
            node_phases_ms,
            acked: 0,
            lost: 0,
            redelivered_after_ack: 0,
            marked: probe.stalled_between(killed, marks.acked),
        }
    }
}

impl Round {
    /// With what the audit found since the rounds before.
    fn audited(mut self, load: &Load, before: &[Self]) -> Self {
        let ledger = load.ledger();
        let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let misses = ledger.misses();
        self.acked = ledger.enqueued_count();
        self.lost = misses.lost - before.iter().map(|round| round.lost).sum::<u64>();
        let earlier: u64 = before.iter().map(|round| round.redelivered_after_ack).sum();
        self.redelivered_after_ack = misses.redelivered_after_ack - earlier;
        self
    }

    fn line(&self, number: u32, of: u32) -> String {
        let phase = |name| self.phases_ms.get(name).copied().unwrap_or_default();
        format!(
            "{number:4}/{of:<4} rto {:7.1} ms = reap {:.1} + exec to first {:6.1} (listening {:.1}, \
             reply {:.1}, job {:.1})  library {:.1}  {} acked, {} lost, {} back{}",
            self.rto_ms,
            phase("reaped"),
            self.exec_to_first_ms,
            phase("listening"),
            phase("first_reply"),
            phase("first_job"),
            phase("library"),
            self.acked,
            self.lost,
            self.redelivered_after_ack,
            if self.marked { "  disk stalled" } else { "" },
        )
    }
}

/// Empties the queues, and compares the books with the node's own counters.
async fn finish(
    options: &Options,
    load: &Load,
    rounds: Vec<Round>,
    probe: &DiskProbe,
) -> Result<Outcome, Report> {
    let Settled {
        enqueued,
        finished,
        misses,
    } = load.settle().await?;
    let writes = probe.writes_us();
    let disk_ms = Percentiles::of_histogram(&writes);
    Ok(Outcome {
        nodes: options.nodes,
        jobs: options.jobs,
        payload: options.payload,
        rto_ms: Percentiles::of(rounds.iter().map(|round| round.rto_ms)),
        exec_to_first_ms: Percentiles::of(rounds.iter().map(|round| round.exec_to_first_ms)),
        rounds,
        lost: misses.lost,
        misses,
        enqueued,
        finished,
        disk_ms,
        host: HostFacts::default(),
    })
}
