//! What `rrqctl demo` shows: nodes of its own under load whose leader is killed again and again.
//!
//! ```text
//! load on, until the next kill is due -> one round of `failover` -> audit -> all caught up -+
//!    ^                                                                                      |
//!    '--------------------------------------------------------------------------------------'
//! ```
//!
//! Load, strikes, gaps and books are those of [`failover`]; here they have a pace, and somebody who
//! looks on. Deliberately absent: figures of the host and histograms, which `rrq-bench failover` has.

use crate::base::code::Code;
use crate::base::prng::Prng;
use crate::base::report::Report;
use crate::client::{Client, Options as ClientOptions};
use crate::loadtest::background::{Load, Settled};
use crate::loadtest::cluster::{self, Cluster, View};
use crate::loadtest::disk_probe::DiskProbe;
use crate::loadtest::failover::{self, Round, Strike, Victim};
use crate::loadtest::report::{Percentiles, verdict};
use crate::loadtest::setting::{self, Place};
use crate::workload::Misses;
use serde::Serialize;
use std::cell::RefCell;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Jobs in the queues while the load is on.
const JOBS: u64 = 1_000;
/// Between two looks at who leads.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A node that does not say how it is within this is shown as down.
const LOOK_DEADLINE: Duration = Duration::from_millis(300);
/// How long and how often, at the most: the books of all jobs are kept in memory.
pub const DURATION_MAX: Duration = Duration::from_secs(600);
/// The least time between two kills.
pub const KILL_EVERY_MIN: Duration = Duration::from_secs(1);

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes: 1, 3 or 5.
    pub nodes: u32,
    /// How long, at most [`DURATION_MAX`].
    pub duration: Duration,
    /// Time between two kills, at least [`KILL_EVERY_MIN`] and at most `duration`.
    pub kill_every: Duration,
    /// Where the data goes; `None` = a folder that is removed afterwards.
    pub data_dir: Option<PathBuf>,
    /// The nodes' program; `None` = this one, by its hidden subcommand.
    pub node: Option<PathBuf>,
    /// Time between two [`Event::Now`].
    pub every: Duration,
    /// Whether signals that end a program end the nodes and remove the data first.
    pub obey_signals: bool,
}

/// What is to be seen.
#[derive(Clone, Debug)]
pub enum Event {
    /// The nodes serve and the queues are filled.
    Started {
        /// Where clients reach them.
        address: String,
        /// Where their data is.
        data: PathBuf,
    },
    /// How it is.
    Now(Now),
    /// A leader was killed and is back, and each job was looked at.
    Killed(Kill),
}

/// How it is at a moment.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// Time since the load was put on.
    pub at: Duration,
    /// How many groups each node leads, by its place; `None` if it does not answer.
    pub leads: Vec<Option<usize>>,
    /// Jobs whose enqueue was acknowledged.
    pub acked: u64,
    /// Jobs whose end was acknowledged.
    pub finished: u64,
    /// Acknowledged jobs lost, as far as was looked.
    pub lost: u64,
}

/// A kill and what clients saw of it.
#[derive(Clone, Debug, Serialize)]
pub struct Kill {
    /// Seconds from the moment when the load was put on until then.
    pub at_s: f64,
    /// The same until the node was back and each job had been looked at.
    pub looked_at_s: f64,
    /// The node: the one that led the most.
    pub node: u32,
    /// The longest time without an answer in a queue: to an enqueue, or a job finished.
    pub outage_ms: f64,
    /// Calls of clients that ended with an error.
    pub failed_requests: u64,
    /// Acknowledged jobs that it lost.
    pub lost: u64,
    /// Whether the disk stalled for others, too.
    pub disk_stalled: bool,
}

/// What was found. The fields that JSON shows are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Nodes.
    pub nodes: u32,
    /// Each kill.
    pub kills: Vec<Kill>,
    /// Over all kills.
    pub outage_ms: Percentiles,
    /// Jobs whose enqueue was acknowledged.
    pub acked: u64,
    /// Jobs finished.
    pub finished: u64,
    /// Acknowledged jobs lost.
    pub lost: u64,
    /// Jobs that came back after their ack was confirmed.
    pub redelivered_after_ack: u64,
    /// Calls of clients that ended with an error, after all that the client library tried.
    pub failed_requests: u64,
    /// All that went wrong.
    #[serde(skip)]
    pub misses: Misses,
}

impl Outcome {
    /// Whether all that was acknowledged is accounted for, once.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.misses.is_none() && self.acked == self.finished
    }

    /// Two lines for people.
    #[must_use]
    pub fn text(&self) -> String {
        let kills = self.kills.len();
        let what = format!("{kills} kill{}", if kills == 1 { "" } else { "s" });
        let mut text = verdict(&what, (self.acked, self.finished), &self.misses);
        let Percentiles { p50, max, .. } = self.outage_ms;
        text += &format!(
            "\noutage   median {p50:.0} ms, worst {max:.0} ms: the longest that a queue had no answer"
        );
        text
    }
}

/// Runs it. `show` gets what is to be seen as soon as it is.
///
/// # Errors
/// If it could not be run, or was ended by a signal. What was seen and is wrong is in the [`Outcome`].
pub fn run(options: &Options, show: &mut dyn FnMut(Event)) -> Result<Outcome, Report> {
    check(options)?;
    let show = RefCell::new(show);
    setting::run(
        options.data_dir.as_deref(),
        options.obey_signals,
        async |place, probe| perform(options, place, probe, &show).await,
    )
}

fn check(options: &Options) -> Result<(), Report> {
    let wrong = |what: String| {
        let fix = "rrqctl demo --duration 30s --kill-every 3s";
        Err(Report::error(Code::BadArgument, what).fix(fix))
    };
    cluster::check_nodes(options.nodes)?;
    if options.duration > DURATION_MAX {
        let most = DURATION_MAX.as_secs() / 60;
        return wrong(format!("--duration must be at most {most}min"));
    }
    if options.kill_every < KILL_EVERY_MIN || options.kill_every > options.duration {
        let least = KILL_EVERY_MIN.as_secs();
        return wrong(format!("--kill-every must be {least}s to the --duration"));
    }
    Ok(())
}

type Show<'a> = RefCell<&'a mut dyn FnMut(Event)>;

async fn perform(
    options: &Options,
    place: &Place,
    probe: &DiskProbe,
    show: &Show<'_>,
) -> Result<Outcome, Report> {
    let script = failover::Options {
        nodes: options.nodes,
        signal: Strike::Kill,
        target: match options.nodes {
            1 => Victim::All,
            _ => Victim::Leader,
        },
        jobs: JOBS,
        node: options.node.clone(),
        ..failover::Options::default()
    };
    let (cluster, load) = failover::begin(&script, place).await?;
    let address = cluster.address();
    (show.borrow_mut())(Event::Started {
        address: address.clone(),
        data: place.path().to_owned(),
    });
    let begun = Instant::now();
    let leads = RefCell::new(vec![None; options.nodes as usize]);
    let now = || Now {
        at: begun.elapsed(),
        leads: leads.borrow().clone(),
        acked: load.enqueued(),
        finished: load.finished(),
        lost: load.misses().lost,
    };
    let kills = tokio::select! {
        kills = kill_again_and_again(options, &script, cluster, &load, probe, show) => kills,
        never = look_again_and_again(&address, &leads) => match never {},
        never = show_again_and_again(options.every, show, &now) => match never {},
    };
    let (cluster, kills) = kills?;
    (show.borrow_mut())(Event::Now(now()));
    let Settled {
        enqueued,
        finished,
        misses,
    } = load.settle().await?;
    let failed_requests = load.failed();
    load.close().await;
    drop(cluster);
    Ok(Outcome {
        nodes: options.nodes,
        outage_ms: Percentiles::of(kills.iter().map(|kill| kill.outage_ms)),
        kills,
        acked: enqueued,
        finished,
        lost: misses.lost,
        redelivered_after_ack: misses.redelivered_after_ack,
        failed_requests,
        misses,
    })
}

async fn kill_again_and_again(
    options: &Options,
    script: &failover::Options,
    mut cluster: Cluster,
    load: &Load,
    probe: &DiskProbe,
    show: &Show<'_>,
) -> Result<(Cluster, Vec<Kill>), Report> {
    let begun = Instant::now();
    let address = cluster.address();
    let groups = load.groups().await?;
    let mut prng = Prng::new(u64::from(std::process::id()));
    let mut kills = Vec::new();
    let mut due = options.kill_every;
    load.resume();
    while due <= options.duration {
        tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        let view = View::of(&address, options.nodes).await?;
        let victims = failover::victims(script.target, &view.by_leads(&groups));
        let before = (load.misses(), load.failed());
        let at = begun.elapsed();
        let (same, round) =
            failover::one_round(script, cluster, load, &victims, &mut prng, probe).await?;
        cluster = same;
        load.audit().await?;
        let round = round.audited(load, before);
        let kill = Kill::of(&round, at, begun.elapsed());
        (show.borrow_mut())(Event::Killed(kill.clone()));
        kills.push(kill);
        View::all_caught_up(&address, options.nodes).await?;
        load.top_up(JOBS);
        load.resume();
        due = (due + options.kill_every).max(begun.elapsed());
    }
    tokio::time::sleep(options.duration.saturating_sub(begun.elapsed())).await;
    load.pause().await?;
    Ok((cluster, kills))
}

impl Kill {
    fn of(round: &Round, at: Duration, looked_at: Duration) -> Self {
        Self {
            at_s: at.as_secs_f64(),
            looked_at_s: looked_at.as_secs_f64(),
            node: round.victims.first().copied().unwrap_or_default(),
            outage_ms: round.gap_ms.max(round.finish_gap_ms),
            failed_requests: round.failed_requests,
            lost: round.lost,
            disk_stalled: round.marked,
        }
    }
}

/// Keeps up to date how many groups each node leads.
async fn look_again_and_again(address: &str, leads: &RefCell<Vec<Option<usize>>>) -> Infallible {
    let options = || ClientOptions {
        deadline: LOOK_DEADLINE,
        ..ClientOptions::default()
    };
    loop {
        // All of them may be down; then it is tried again.
        let Ok(client) = Client::connect_with(address, options()).await else {
            continue;
        };
        while let Ok(nodes) = client.nodes().await {
            for view in nodes {
                let place = view.node.0.saturating_sub(1) as usize;
                let shards = view.shards.ok();
                let led = shards.map(|shards| {
                    let groups = shards.iter().flat_map(|shard| &shard.groups);
                    groups.filter(|group| group.leader).count()
                });
                if let Some(leads) = leads.borrow_mut().get_mut(place) {
                    *leads = led;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn show_again_and_again(
    every: Duration,
    show: &Show<'_>,
    now: &impl Fn() -> Now,
) -> Infallible {
    loop {
        tokio::time::sleep(every).await;
        let now = now();
        (show.borrow_mut())(Event::Now(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(nodes: u32, duration_s: u64, kill_every_ms: u64) -> Options {
        Options {
            nodes,
            duration: Duration::from_secs(duration_s),
            kill_every: Duration::from_millis(kill_every_ms),
            data_dir: None,
            node: None,
            every: Duration::from_secs(1),
            obey_signals: false,
        }
    }

    #[test]
    fn what_cannot_be_shown_is_refused() {
        for (options, words) in [
            (options(2, 30, 3_000), "--nodes must be 1, 3 or 5"),
            (options(3, 601, 3_000), "--duration must be at most 10min"),
            (options(3, 30, 999), "--kill-every must be 1s to"),
            (options(3, 2, 3_000), "--kill-every must be 1s to"),
        ] {
            let refused = check(&options).expect_err(words);
            assert_eq!(refused.code, Code::BadArgument);
            assert!(refused.what.contains(words), "{refused}");
        }
        assert!(check(&options(1, 600, 1_000)).is_ok());
    }

    #[test]
    fn the_verdict_tells_of_a_lost_job() {
        let kill = |outage_ms| Kill {
            at_s: 3.0,
            looked_at_s: 4.0,
            node: 2,
            outage_ms,
            failed_requests: 0,
            lost: 0,
            disk_stalled: false,
        };
        let mut outcome = Outcome {
            nodes: 3,
            outage_ms: Percentiles::of([40.0, 41.0, 90.0]),
            kills: [40.0, 41.0, 90.0].map(kill).to_vec(),
            acked: 10,
            finished: 10,
            lost: 0,
            redelivered_after_ack: 0,
            failed_requests: 0,
            misses: Misses::default(),
        };
        assert!(outcome.is_sound());
        let text = outcome.text();
        assert!(text.starts_with("VERDICT  ok  3 kills, 10 jobs"), "{text}");
        assert!(text.contains("median 41 ms, worst 90 ms"), "{text}");
        outcome.misses.lost = 1;
        assert!(!outcome.is_sound());
        assert!(
            outcome
                .text()
                .contains("FAILED  3 kills, 10 jobs acknowledged, 10 finished, 1 lost")
        );
    }
}
