//! Three real nodes in trouble for a stated time, with producers and workers on all the while: is a job
//! that was acknowledged ever lost, made twice, or delivered after its ack?
//!
//! ```text
//! a trouble ──> every queue goes on (bounded) ──> healed ──> every queue goes on ──> the next trouble
//!                                                 time is over: drain, look at every job, count
//! ```
//!
//! Troubles, drawn anew each time, half of them for the node that leads most: killed with -9; frozen for up
//! to four seconds; stopped in order; two nodes killed, so that nobody leads; all killed; the disk lost and
//! replaced by an empty one, while the load is on. A node that is killed stays away for up to a second.
//! While a disk is replaced nothing else happens: until then a cluster of three bears no further loss.
//!
//! A second soak, half as long, has a network that can be cut: a node hears the others, or they it, or neither,
//! or nobody hears anybody; and a node that is cut off is killed and starts alone. Clients reach all nodes all
//! the while.
//!
//! The books ([`rrq::workload`]) hold every answer against every delivery. At the end all is healed and
//! drained until the nodes say that nothing is left, and the sets are equal: what was acknowledged is what
//! was finished, by the books, by a look at each job and by the nodes' own counters.
//!
//! `tools/soak-cluster.sh` runs it for as long as you like; by itself it takes a minute and a half in CI
//! and a quarter of that elsewhere. The seed of its draws is told; `RRQ_SOAK_SEED` draws the same again, though what the
//! processes make of it is never the same.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

#[path = "../cluster_kit/mod.rs"]
mod cluster_kit;
#[path = "../node_support/mod.rs"]
mod node_support;

use cluster_kit::{Cluster, Load};
use rrq::base::prng::Prng;
use rrq::client::QueueSettings;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;
use std::time::{Duration, Instant};

const NODES: u32 = 3;
const QUEUES: usize = 4;
/// Producers and workers of a queue, each.
const CLIENTS: usize = 2;
/// Enqueues of each queue that show that it goes on.
const GOES_ON: u64 = 10;
/// A replaced disk has every job within this.
const REPLACE_DEADLINE: Duration = Duration::from_secs(60);

/// What befalls a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Killed,
    Frozen,
    Stopped,
    TwoKilled,
    AllKilled,
    DiskLost,
    /// It hears nobody, and nobody hears it.
    CutOff,
    /// It hears nobody.
    Deaf,
    /// Nobody hears it.
    Mute,
    /// Nobody hears anybody.
    AllApart,
    /// It is killed while it is cut off, and starts before it hears anybody.
    KilledCutOff,
}

/// By how often they come.
const TROUBLES: [Trouble; 10] = [
    Trouble::Killed,
    Trouble::Killed,
    Trouble::Killed,
    Trouble::Frozen,
    Trouble::Frozen,
    Trouble::Stopped,
    Trouble::Stopped,
    Trouble::TwoKilled,
    Trouble::AllKilled,
    Trouble::DiskLost,
];
/// The same on a network that can be cut.
const TROUBLES_OF_NETWORK: [Trouble; 8] = [
    Trouble::CutOff,
    Trouble::CutOff,
    Trouble::Deaf,
    Trouble::Mute,
    Trouble::AllApart,
    Trouble::KilledCutOff,
    Trouble::Killed,
    Trouble::Frozen,
];

fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name);
    text.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn nothing_is_lost_whatever_befalls_a_minority_or_all_at_once() {
    soak(|| Cluster::start("soak", NODES), &TROUBLES, 1);
}

#[test]
fn nothing_is_lost_whoever_does_not_hear_whom() {
    let start = || Cluster::start_on_relays("soak-apart", NODES);
    soak(start, &TROUBLES_OF_NETWORK, 2);
}

/// For the asked time divided by `part`.
fn soak(start: impl FnOnce() -> Cluster, troubles: &[Trouble], part: u32) {
    let is_ci = std::env::var("CI").as_deref() == Ok("true");
    let wanted = Duration::from_secs(setting("RRQ_SOAK_SECONDS", if is_ci { 60 } else { 15 }));
    let seed = setting("RRQ_SOAK_SEED", u64::from(std::process::id()));
    let wanted = wanted / part;
    println!("{} s of trouble, seed {seed}", wanted.as_secs());
    let mut prng = Prng::new(seed);
    let mut cluster = start();
    let loads: Vec<Load> = (0..QUEUES).map(|number| load(&cluster, number)).collect();
    go_on(&loads);

    let begun = Instant::now();
    let mut tally: BTreeMap<Trouble, (u32, Duration)> = BTreeMap::new();
    while begun.elapsed() < wanted {
        let trouble = troubles[prng.below(troubles.len() as u64) as usize];
        let victim = victim(&cluster, &mut prng);
        let at = begun.elapsed();
        let gap = befall(&mut cluster, &loads, trouble, victim, &mut prng);
        let (count, longest) = tally.entry(trouble).or_default();
        (*count, *longest) = (*count + 1, gap.max(*longest));
        let jobs: u64 = loads.iter().map(Load::enqueued).sum();
        println!(
            "{:>7.1} s  {trouble:?} {victim}: every queue goes on after {gap:.0?}, {jobs} jobs acknowledged",
            at.as_secs_f64()
        );
    }

    let (mut jobs, mut failed) = (0, 0);
    for load in loads {
        let (enqueued, errors) = load.drain();
        (jobs, failed) = (jobs + enqueued, failed + errors.len());
    }
    let mut told = String::new();
    for (trouble, (count, longest)) in tally {
        let _ = write!(told, "; {trouble:?} {count} times, at most {longest:.0?}");
    }
    println!(
        "{jobs} jobs acknowledged and finished, 0 lost, 0 back, 0 twice; {failed} calls failed{told}"
    );
}

/// Clients of a queue of their own, whose jobs never die.
fn load(cluster: &Cluster, number: usize) -> Load {
    let name = format!("soak-{number}");
    let settings = QueueSettings {
        max_attempts: u16::MAX,
        ..QueueSettings::default()
    };
    let made = cluster.client().create_queue(&name, settings, true);
    made.expect("a queue");
    Load::on(&name, cluster, CLIENTS, CLIENTS)
}

/// Waits until every queue goes on; how long that took.
fn go_on(loads: &[Load]) -> Duration {
    let begun = Instant::now();
    for load in loads {
        load.until_enqueued(GOES_ON);
    }
    begun.elapsed()
}

/// The node that leads most, or any.
fn victim(cluster: &Cluster, prng: &mut Prng) -> u32 {
    match prng.chance(1, 2) {
        true => cluster
            .numbers()
            .max_by_key(|number| cluster.leads(*number).len()),
        false => Some(1 + prng.below(NODES.into()) as u32),
    }
    .expect("there are nodes")
}

/// A trouble, until all nodes are there again; how long it took until every queue went on, as soon as it
/// could.
fn befall(
    cluster: &mut Cluster,
    loads: &[Load],
    trouble: Trouble,
    victim: u32,
    prng: &mut Prng,
) -> Duration {
    let other = 1 + victim % NODES;
    let away = Duration::from_millis(prng.below(1_000));
    let struck = Instant::now();
    match trouble {
        Trouble::Killed | Trouble::Stopped => {
            let signal = if trouble == Trouble::Killed {
                "-9"
            } else {
                "-15"
            };
            cluster.end(victim, signal);
            let gap = go_on(loads);
            std::thread::sleep(away);
            cluster.start_one(victim);
            go_on(loads);
            gap
        }
        Trouble::Frozen => {
            cluster.nodes[&victim].signal("-STOP");
            let frozen = Duration::from_millis(50 + prng.below(4_000));
            // One that is frozen for a moment may go on to lead.
            std::thread::sleep(frozen);
            cluster.nodes[&victim].signal("-CONT");
            go_on(loads);
            struck.elapsed().saturating_sub(frozen)
        }
        Trouble::TwoKilled => {
            cluster.end(victim, "-9");
            cluster.end(other, "-9");
            std::thread::sleep(away);
            cluster.start_one(victim);
            let gap = go_on(loads);
            cluster.start_one(other);
            gap
        }
        Trouble::AllKilled => {
            cluster.kill_all();
            std::thread::sleep(away);
            let begun = Instant::now();
            cluster.start_all();
            go_on(loads);
            begun.elapsed()
        }
        Trouble::DiskLost => {
            cluster.end(victim, "-9");
            cluster.lose_disk(victim);
            let gap = go_on(loads);
            // It serves once it belongs to the cluster again.
            let empty = cluster.spawn(victim);
            replace(cluster, victim);
            cluster.nodes.insert(victim, empty.until_ready());
            go_on(loads);
            gap
        }
        Trouble::CutOff | Trouble::Deaf | Trouble::Mute => {
            let (others, relays) = (cluster.others(victim), cluster.relays());
            if trouble != Trouble::Mute {
                relays.cut(&others, &[victim]);
            }
            if trouble != Trouble::Deaf {
                relays.cut(&[victim], &others);
            }
            let gap = go_on(loads);
            std::thread::sleep(away);
            cluster.relays().heal();
            go_on(loads);
            gap
        }
        Trouble::AllApart => {
            let all: Vec<u32> = cluster.numbers().collect();
            cluster.relays().cut(&all, &all);
            std::thread::sleep(away);
            let begun = Instant::now();
            cluster.relays().heal();
            go_on(loads);
            begun.elapsed()
        }
        Trouble::KilledCutOff => {
            cluster.relays().part(&[victim], &cluster.others(victim));
            let gap = go_on(loads);
            cluster.end(victim, "-9");
            let alone = cluster.spawn(victim);
            std::thread::sleep(away);
            cluster.relays().heal();
            cluster.nodes.insert(victim, alone.until_ready());
            go_on(loads);
            gap
        }
    }
}

/// Gives the place of a lost disk to the empty one, and waits until that has every job.
fn replace(cluster: &Cluster, number: u32) {
    let begun = Instant::now();
    loop {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rrqctl"));
        command.args(["cluster", "replace", &number.to_string()]);
        command.args(["--server", &cluster.client_addresses()]);
        let output = command.output().expect("rrqctl is built");
        if output.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let is_late = begun.elapsed() > REPLACE_DEADLINE;
        assert!(!is_late, "node {number} is not replaced: {said}");
        // It may not wait yet, or a change be under way.
        std::thread::sleep(Duration::from_millis(100));
    }
}
