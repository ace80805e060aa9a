//! `failover`: one node of several goes, or all; how long do clients wait, and is anything forgotten?
//!
//! ```text
//! fill -> load on -> look for gaps -> strike -> all queues are worked again -> heal -> settle
//!          ^                                                                             |
//!          '-- all nodes caught up <-- audit: look at every job <-- load off <-----------'
//! ```
//!
//! A round's gap is the longest time in which one of the queues had no answer, as the callers of the
//! client library see it: from a moment before the strike until the node is back and some time has
//! passed, so that the way back counts, too. A node that is killed is started again once all queues are
//! worked again; one that is frozen, or cut off, goes on after two seconds.

mod outcome;

pub use outcome::{Outcome, Round};

use crate::base::code::Code;
use crate::base::ids::NodeId;
use crate::base::prng::Prng;
use crate::base::report::Report;
use crate::loadtest::background::{Load, Settled};
use crate::loadtest::cluster::{self, Cluster, View};
use crate::loadtest::disk_probe::DiskProbe;
use crate::loadtest::host::HostFacts;
use crate::loadtest::network::Network;
use crate::loadtest::node::{self, NodeCommand};
use crate::loadtest::report::{Percentiles, millis};
use crate::loadtest::setting::{self, Place};
use crate::workload::Misses;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Acks of the load before a strike.
const ACKS_BEFORE: u64 = 300;
/// A strike comes at a random moment of this time.
const STRIKE_WITHIN_MS: u64 = 50;
/// Answers that were on their way when a node was struck come within this.
const ON_THE_WAY: Duration = Duration::from_millis(20);
/// How long a frozen node is frozen, and one that is cut off is away.
const FROZEN: Duration = Duration::from_secs(2);
/// How long is looked on once all nodes are there again.
const LOOK_ON: Duration = Duration::from_millis(500);

/// What befalls a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Strike {
    /// It ends at once, as by a crash.
    #[default]
    Kill,
    /// It is frozen for two seconds, and says nothing.
    Stop,
    /// It ends in order.
    Term,
    /// It is cut off from the others and from clients for two seconds: `--partition`.
    #[value(skip)]
    Cut,
    /// Nothing: what the load and the machine alone do to the longest gap.
    None,
}

impl Strike {
    /// Whether the node's process ends.
    fn ends(self) -> bool {
        matches!(self, Self::Kill | Self::Term)
    }

    /// Whether the node is away for a while, and lives on.
    fn is_survived(self) -> bool {
        matches!(self, Self::Stop | Self::Cut)
    }
}

/// Whom it befalls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Victim {
    /// The node that leads the most of the queues' groups.
    #[default]
    Leader,
    /// The one that leads the fewest.
    Follower,
    /// All nodes at once.
    All,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes: 3 or 5.
    pub nodes: u32,
    /// How often to strike.
    pub rounds: u32,
    /// What befalls a node.
    pub signal: Strike,
    /// Whom it befalls.
    pub target: Victim,
    /// Jobs in the queues while the load is on.
    pub jobs: u64,
    /// Bytes of each payload.
    pub payload: usize,
    /// Where the data goes; `None` = a folder that is removed afterwards.
    pub data_dir: Option<PathBuf>,
    /// Shards of each node.
    pub shards: u16,
    /// The first port of each node; 0 = any that is free.
    pub port: u16,
    /// The nodes' program; `None` = this one.
    pub node: Option<PathBuf>,
    /// Whether signals that end a program end the run in good order.
    pub obey_signals: bool,
    /// Gets each line as soon as there is one.
    pub say: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            rounds: 10,
            signal: Strike::Kill,
            target: Victim::Leader,
            jobs: 1_000,
            payload: 256,
            data_dir: None,
            shards: 1,
            port: 0,
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
    let wrong = |what: String| Err(Report::error(Code::BadArgument, what));
    if options.nodes < 2 {
        return wrong("--nodes must be 3 or 5: one node alone has no others".to_owned());
    }
    cluster::check_nodes(options.nodes)?;
    if options.jobs == 0 || options.rounds == 0 {
        return wrong("--jobs and --rounds must be at least 1".to_owned());
    }
    setting::check_payload(options.payload)
}

async fn measure(options: &Options, place: &Place, probe: &DiskProbe) -> Result<Outcome, Report> {
    let Options {
        nodes,
        shards,
        jobs,
        payload,
        ..
    } = *options;
    let host = HostFacts::told(place.path(), options.say);
    let (mut cluster, load) = begin(options, place).await?;
    let address = cluster.address();
    (options.say)(&format!(
        "fill     {jobs} jobs of {payload} B, {nodes} nodes of {shards} shards at {address}"
    ));
    let groups = load.groups().await?;
    let mut prng = Prng::new(u64::from(std::process::id()));
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        let view = View::all_caught_up(&address, nodes).await?;
        let victims = victims(options.target, &view.by_leads(&groups));
        let before = (load.misses(), load.failed());
        let (same, round) = one_round(options, cluster, &load, &victims, &mut prng, probe).await?;
        cluster = same;
        load.audit().await?;
        load.top_up(jobs);
        let round = round.audited(&load, before);
        (options.say)(&round.line(number, options.rounds));
        rounds.push(round);
    }
    let Settled {
        enqueued,
        finished,
        misses,
    } = load.settle().await?;
    let failed_requests = load.failed();
    load.close().await;
    drop(cluster);
    Ok(Outcome {
        nodes,
        gap_ms: Percentiles::of(rounds.iter().map(|round| round.gap_ms)),
        finish_gap_ms: Percentiles::of(rounds.iter().map(|round| round.finish_gap_ms)),
        rounds,
        failed_requests,
        lost: misses.lost,
        misses,
        enqueued,
        finished,
        signal: options.signal,
        target: options.target,
        disk_ms: Percentiles::of_histogram(&probe.writes_us()),
        host,
    })
}

/// Starts the nodes, and fills the queues of a load that is off.
///
/// # Errors
/// If a node does not start, or refuses a job.
pub(super) async fn begin(options: &Options, place: &Place) -> Result<(Cluster, Load), Report> {
    let command = match &options.node {
        Some(program) => NodeCommand::of(program.clone()),
        None => NodeCommand::itself()?,
    };
    let folder = place.path().join("data");
    let Options {
        nodes,
        shards,
        port,
        signal,
        ..
    } = *options;
    let cluster = apart(move || {
        let network = (signal == Strike::Cut).then(|| Network::make(nodes as u8));
        let network = network.transpose()?;
        let plans = cluster::plans(&command, &folder, nodes, shards, port, network.as_ref())?;
        Ok(Cluster::start(plans)?.within(network))
    })
    .await?;
    let load = Load::connect(&cluster.address(), options.payload).await?;
    load.fill(options.jobs).await?;
    Ok((cluster, load))
}

/// What blocks, on a thread of its own.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Report> + Send + 'static,
) -> Result<T, Report> {
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("what nodes are started and ended by does not panic")
}

/// Places in the cluster, from the nodes in the order of what they lead.
pub(super) fn victims(target: Victim, by_leads: &[NodeId]) -> Vec<usize> {
    let place = |node: &NodeId| node.0.saturating_sub(1) as usize;
    match target {
        Victim::Leader => by_leads.first().map(place).into_iter().collect(),
        Victim::Follower => by_leads.last().map(place).into_iter().collect(),
        Victim::All => by_leads.iter().map(place).collect(),
    }
}

/// One strike under load; afterwards the load is off.
///
/// # Errors
/// If a node does not come back, or a queue is not worked again.
pub(super) async fn one_round(
    options: &Options,
    cluster: Cluster,
    load: &Load,
    victims: &[usize],
    prng: &mut Prng,
    probe: &DiskProbe,
) -> Result<(Cluster, Round), Report> {
    load.resume();
    load.acks(1 + prng.below(ACKS_BEFORE)).await?;
    load.begin_gaps();
    load.all_run(Instant::now()).await?;
    tokio::time::sleep(Duration::from_millis(prng.below(STRIKE_WITHIN_MS))).await;
    let struck = Instant::now();
    let (signal, at) = (options.signal, victims.to_vec());
    let cluster = apart(move || strike(cluster, signal, &at)).await?;
    // With all gone there is nobody to go on.
    let all_gone = options.target == Victim::All;
    if !all_gone {
        load.all_run(Instant::now() + ON_THE_WAY).await?;
    }
    let mut worked_again = struck.elapsed();
    if signal.is_survived() {
        tokio::time::sleep(FROZEN.saturating_sub(struck.elapsed())).await;
    }
    let at = victims.to_vec();
    let cluster = apart(move || heal(cluster, signal, &at)).await?;
    load.all_run(Instant::now()).await?;
    if all_gone {
        worked_again = struck.elapsed();
    }
    tokio::time::sleep(LOOK_ON).await;
    let gaps = load.end_gaps();
    let ended = Instant::now();
    load.pause().await?;
    let round = Round {
        gap_ms: millis(gaps.enqueue),
        finish_gap_ms: millis(gaps.finish),
        worked_again_ms: millis(worked_again),
        victims: victims.iter().map(|at| *at as u32 + 1).collect(),
        acked: 0,
        lost: 0,
        redelivered_after_ack: 0,
        failed_requests: 0,
        marked: probe.stalled_between(struck, ended),
    };
    Ok((cluster, round))
}

fn strike(mut cluster: Cluster, signal: Strike, victims: &[usize]) -> Result<Cluster, Report> {
    for at in victims {
        let node = &mut cluster.nodes_mut()[*at];
        match signal {
            Strike::Kill => node.signal(node::Signal::Kill)?,
            Strike::Term => node.signal(node::Signal::Term)?,
            Strike::Stop => node.freeze(true)?,
            Strike::Cut => cluster.cut(*at, true)?,
            Strike::None => {}
        }
    }
    if signal.ends() {
        for at in victims {
            cluster.nodes_mut()[*at].reap()?;
        }
    }
    Ok(cluster)
}

fn heal(mut cluster: Cluster, signal: Strike, victims: &[usize]) -> Result<Cluster, Report> {
    if signal.is_survived() {
        for at in victims {
            match signal {
                Strike::Cut => cluster.cut(*at, false)?,
                _ => cluster.nodes_mut()[*at].freeze(false)?,
            }
        }
    }
    if signal.ends() {
        let nodes = cluster.nodes_mut();
        for at in victims {
            let plan = nodes[*at].plan().clone();
            nodes[*at] = node::Node::spawn(plan)?;
        }
        for at in victims {
            nodes[*at].wait_ready()?;
        }
    }
    Ok(cluster)
}

impl Round {
    /// With what the audit found since before the round.
    pub(super) fn audited(mut self, load: &Load, (before, failed): (Misses, u64)) -> Self {
        let misses = load.misses();
        self.acked = load.enqueued();
        self.lost = misses.lost - before.lost;
        self.redelivered_after_ack = misses.redelivered_after_ack - before.redelivered_after_ack;
        self.failed_requests = load.failed() - failed;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_struck_follows_from_who_leads() {
        let order = [NodeId(3), NodeId(1), NodeId(2)];
        assert_eq!(victims(Victim::Leader, &order), [2]);
        assert_eq!(victims(Victim::Follower, &order), [1]);
        assert_eq!(victims(Victim::All, &order), [2, 0, 1]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for options in [
            Options {
                nodes: 1,
                ..Options::default()
            },
            Options {
                nodes: 4,
                ..Options::default()
            },
            Options {
                rounds: 0,
                ..Options::default()
            },
            Options {
                payload: 1,
                ..Options::default()
            },
        ] {
            let refused = check(&options).expect_err("refused");
            assert_eq!(refused.code, Code::BadArgument, "{options:?}");
        }
        assert!(check(&Options::default()).is_ok());
    }
}
