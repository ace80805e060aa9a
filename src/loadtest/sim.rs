//! `rrq-bench sim`: the simulator over many seeds, and one seed as a readable trace.
//!
//! Seeds go over the cores one by one. A panic of a run is its failure; all other seeds are run all the
//! same, so that the figures say how many fail.

use crate::sim::cluster::{Cluster, RunReport};
use serde::Serialize;
use std::cell::RefCell;
use std::num::NonZero;
use std::panic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

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
            let result = panic::catch_unwind(|| Cluster::run(seed, None));
            let mut outcome = outcome.lock().expect("nobody panics with it");
            match result {
                Ok(report) => outcome.total.add(&report),
                Err(_) => {
                    outcome.failed += 1;
                    let first = outcome.first_failing.get_or_insert(seed);
                    *first = seed.min(*first);
                    let said = SAID.with(RefCell::take);
                    say(&format!(
                        "seed {seed} failed: {said}\n  again: rrq-bench sim --seed {seed} --trace"
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
    outcome
}

/// Runs one seed; `say` is told what happens, if `traced`, and the end. Whether it kept its promises.
pub(super) fn replay(seed: u64, traced: bool, say: impl Fn(&str) + panic::RefUnwindSafe) -> bool {
    let begun = Instant::now();
    let result = panic::catch_unwind(|| {
        let mut tell = |line: &str| say(line);
        Cluster::run(seed, traced.then_some(&mut tell))
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
    /// Whether no seed failed.
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        self.failed == 0
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
            None => "ok".to_owned(),
            Some(seed) => {
                format!(
                    "{failed} of {seeds} failed, seed {seed} first: rrq-bench sim --seed {seed} --trace"
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
             JUDGED    {} terms led, {} states compared, {} entries looked for on the disks\n\
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
            total.terms_led,
            total.states_compared,
            total.disks_read,
        )
    }
}
