//! `rrq-bench sim`: the simulator over many seeds, and one seed as a readable trace.
//!
//! Seeds go over the cores one by one. A panic of a run is its failure; all other seeds are run all the
//! same, so that the figures say how many fail. One in [`TWICE_ONE_IN`] is run twice and must be the same.
//! A batch of [`COVERED_FROM`] seeds or more fails, too, if a fault never met a node in a state that it must
//! meet it in.

use crate::sim::cluster::{Cluster, Plan, RunReport};
use crate::sim::shrink::shrink;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::num::NonZero;
use std::panic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

/// One seed in so many is run twice.
const TWICE_ONE_IN: u64 = 64;
/// So many seeds must meet every pair of fault and state.
const COVERED_FROM: u64 = 2_000;

thread_local! {
    /// What the last panic of this thread said.
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The figures of a run over many seeds.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Outcome {
    /// Seeds run.
    pub(super) seeds: u64,
    /// Those that failed.
    pub(super) failed: u64,
    /// The first of them.
    pub(super) first_failing: Option<u64>,
    /// Virtual time of those that did not, in seconds.
    pub(super) simulated_s: f64,
    /// Time it took, in seconds.
    pub(super) wall_s: f64,
    /// Faults that never met a node that did this, if the batch was large enough.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) unmet: Vec<String>,
    #[serde(skip)]
    total: RunReport,
}

/// Runs the seeds from `from` on; `say` is told of each failure.
pub(super) fn run(from: u64, seeds: u64, say: impl Fn(&str) + Sync) -> Outcome {
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let outcome = Mutex::new(Outcome {
        seeds,
        ..Outcome::default()
    });
    let before = panic::take_hook();
    panic::set_hook(Box::new(|info| {
        SAID.with(|said| *said.borrow_mut() = info.to_string());
    }));
    let work = || {
        while let Some(seed) = from.checked_add(next.fetch_add(1, Relaxed))
            && seed - from < seeds
        {
            let result = panic::catch_unwind(|| run_one(seed));
            let mut outcome = outcome.lock().expect("nobody panics with it");
            match result {
                Ok(report) => outcome.total.add(&report),
                Err(_) => {
                    outcome.failed += 1;
                    let first = outcome.first_failing.get_or_insert(seed);
                    *first = seed.min(*first);
                    let said = SAID.with(RefCell::take);
                    say(&format!(
                        "seed {seed} failed: {said}\n  again: rrq-bench sim --seed {seed} --shrink"
                    ));
                }
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    panic::set_hook(before);
    let mut outcome = outcome.into_inner().expect("nobody panicked with it");
    outcome.simulated_s = outcome.total.simulated_ms as f64 / 1_000.0;
    outcome.wall_s = begun.elapsed().as_secs_f64();
    if seeds >= COVERED_FROM {
        outcome.unmet = outcome.total.unmet();
    }
    outcome
}

fn run_one(seed: u64) -> RunReport {
    let report = Cluster::run(seed, None);
    if seed.is_multiple_of(TWICE_ONE_IN) {
        let again = Cluster::run(seed, None);
        assert!(report == again, "seed {seed} is not the same twice");
    }
    report
}

/// Leaves out all faults of a seed that its failure does not need, and tells what happens with the rest.
/// Whether it kept its promises.
pub(super) fn minimize(seed: u64, say: impl Fn(&str) + panic::RefUnwindSafe) -> bool {
    let before = panic::take_hook();
    panic::set_hook(Box::new(|info| {
        let at = info
            .location()
            .map_or_else(String::new, ToString::to_string);
        SAID.with(|said| *said.borrow_mut() = at);
    }));
    // Where it fails, and by which faults.
    let failure = |only: Option<BTreeSet<u64>>| {
        let mut befallen = Vec::new();
        let plan = Plan {
            only,
            ..Plan::default()
        };
        let noted = panic::AssertUnwindSafe(&mut befallen);
        let result = panic::catch_unwind(move || {
            let panic::AssertUnwindSafe(befallen) = { noted };
            Cluster::run_noting(seed, &plan, None, befallen)
        });
        let at = result.is_err().then(|| SAID.with(RefCell::take));
        at.map(|at| (at, befallen))
    };
    let first = failure(None);
    let left = first.map(|(at, befallen)| {
        let all: BTreeSet<u64> = befallen.iter().map(|(number, _)| *number).collect();
        let left = shrink(&all, |some| {
            failure(Some(some.clone())).is_some_and(|(now, _)| now == at)
        });
        (all.len(), left)
    });
    panic::set_hook(before);
    let Some((all, left)) = left else {
        say(&format!("seed {seed} is ok: there is nothing to shrink"));
        return true;
    };
    let kept = replay(seed, Some(left.clone()), true, &say);
    let numbers: Vec<String> = left.iter().map(u64::to_string).collect();
    say(&format!(
        "of {all} faults it needs {}: rrq-bench sim --seed {seed} --trace --faults {}",
        left.len(),
        if numbers.is_empty() {
            "0".to_owned()
        } else {
            numbers.join(",")
        }
    ));
    kept
}

/// Runs one seed, with these of its faults if any are named; `say` is told what happens, if `traced`, and
/// the end. Whether it kept its promises.
pub(super) fn replay(
    seed: u64,
    only: Option<BTreeSet<u64>>,
    traced: bool,
    say: impl Fn(&str) + panic::RefUnwindSafe,
) -> bool {
    let begun = Instant::now();
    let result = panic::catch_unwind(|| {
        let mut tell = |line: &str| say(line);
        let plan = Plan {
            only: only.clone(),
            ..Plan::default()
        };
        Cluster::run_as(seed, &plan, traced.then_some(&mut tell))
    });
    match result {
        Ok(report) => {
            let wall = begun.elapsed().as_secs_f64();
            say(&format!("{report:#?}\nseed {seed} is ok, in {wall:.3} s"));
            true
        }
        Err(_) => {
            say(&format!("seed {seed} failed"));
            false
        }
    }
}

impl Outcome {
    /// Whether no seed failed, and the batch met what it had to.
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        self.failed == 0 && self.unmet.is_empty()
    }

    /// The figures, for people.
    #[must_use]
    pub(super) fn text(&self) -> String {
        let Self {
            seeds,
            failed,
            simulated_s,
            wall_s,
            total,
            ..
        } = self;
        let wall = wall_s.max(f64::MIN_POSITIVE);
        let verdict = match self.first_failing {
            None if !self.unmet.is_empty() => {
                format!(
                    "never met, so that nothing is proved of it: {}",
                    self.unmet.join(", ")
                )
            }
            None => "ok".to_owned(),
            Some(seed) => {
                format!(
                    "{failed} of {seeds} failed, seed {seed} first: rrq-bench sim --seed {seed} --shrink"
                )
            }
        };
        format!(
            "SEEDS     {seeds} in {wall_s:.1} s, {:.1} a second\n\
             TIME      {simulated_s:.0} s simulated, {:.0} a second\n\
             WORK      {} jobs acknowledged, {} answers, {} sendings between nodes\n\
             QUEUES    {} made over several groups, changed and deleted, {} changes sent to another node\n\
             FAULTS    {:?}, {} crashes in recovery\n\
             STORAGE   {} checkpoint rounds, {} installed from another node, {} entries read for one, {} torn tails cut\n\
             DISKS     {} starts found damage, {} groups stopped for it\n\
             JUDGED    {} terms led, {} states and {} checkpoints compared, {} commits looked for on the disks\n\
             VERDICT   {verdict}",
            *seeds as f64 / wall,
            simulated_s / wall,
            total.acked,
            total.answers,
            total.messages,
            total.operated,
            total.changes_sent,
            total.faults,
            total.crashes_in_recovery,
            total.rounds,
            total.installs,
            total.entries_read,
            total.tails_cut,
            total.damage_found,
            total.halted,
            total.terms_led,
            total.states_compared,
            total.bases_compared,
            total.disks_read,
        )
    }
}
