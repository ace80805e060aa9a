//! What the benches share: how an operation is measured, and ([`load`]) who asks an engine for what.
//!
//! An operation has a state and a step. The state bears so many steps, each of which does the
//! operation so many times (a request of 64 jobs does an enqueue 64 times); what is told is always
//! the cost of one time. Making the state costs nothing, in both measures.
//!
//! ```text
//! cargo bench                        nanoseconds of the thread, by criterion
//! cargo test --benches               each step once: it works, and asserts what it did
//! BENCH --instructions               names the operations, a line each
//! BENCH --instructions NAME half|all makes the state and takes half of its steps, or all
//! ```
//!
//! `tools/instructions.sh` runs the last two under callgrind: the difference of two counts is what
//! the steps between them cost, without the program's start, the making of the state and the first
//! steps, which fill caches and grow buffers.

#![allow(dead_code, reason = "each bench uses a part")]

pub(crate) mod load;
pub(crate) mod node;

use criterion::{Criterion, Throughput};
use std::env;
use std::hint::black_box;
use std::mem;
use std::time::Duration;

// The node's own.
#[cfg(all(feature = "server", target_os = "linux"))]
#[global_allocator]
static ALLOCATOR: rrq::runtime::sys::Allocator = rrq::runtime::sys::Allocator;

/// A clock that stands still while another thread has the core.
#[cfg(all(feature = "server", target_os = "linux"))]
fn clock() -> Duration {
    Duration::from_nanos(rrq::runtime::sys::thread_run_time_ns())
}

/// The time since the first call.
#[cfg(not(all(feature = "server", target_os = "linux")))]
fn clock() -> Duration {
    static BEGIN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    BEGIN.get_or_init(std::time::Instant::now).elapsed()
}

/// Steps on one state while instructions are counted do the operation about this often.
const COUNTED_TIMES: u64 = 8_192;

/// What becomes of the operations of a bench.
pub(crate) enum Suite {
    /// Criterion takes their time.
    Time(&'static str, Box<Criterion>),
    /// Each is done once.
    Once(&'static str),
    /// They are named.
    Name,
    /// One of them is done so that a counter of instructions sees it.
    Count { name: String, all: bool },
}

impl Suite {
    /// The suite that the arguments ask for.
    pub(crate) fn from_args(subject: &'static str) -> Self {
        let args: Vec<String> = env::args().skip(1).collect();
        let mut after = args.iter().skip_while(|arg| *arg != "--instructions");
        if after.next().is_some() {
            let mut named = after.filter(|arg| *arg != "--bench");
            return match (named.next(), named.next()) {
                (Some(name), Some(steps)) => Self::Count {
                    name: name.clone(),
                    all: steps == "all",
                },
                _ => Self::Name,
            };
        }
        if !args.iter().any(|arg| arg == "--bench") {
            return Self::Once(subject);
        }
        let criterion = Criterion::default()
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2))
            .sample_size(30)
            .configure_from_args();
        Self::Time(subject, Box::new(criterion))
    }

    /// Measures an operation. `make` makes a state that bears the given number of steps, at most
    /// `steps`; a step does the operation `times` times.
    pub(crate) fn operation<S>(
        &mut self,
        name: &str,
        times: u64,
        steps: u64,
        make: impl Fn(u64) -> S,
        mut step: impl FnMut(&mut S),
    ) {
        let counted = (COUNTED_TIMES / times).clamp(1, steps);
        match self {
            Self::Time(subject, criterion) => {
                let mut group = criterion.benchmark_group(*subject);
                group.throughput(Throughput::Elements(1));
                group.bench_function(name, |bencher| {
                    bencher.iter_custom(|iterations| {
                        let wanted = iterations.div_ceil(times);
                        let taken = timed(wanted, steps, &make, &mut step);
                        scaled(taken, iterations, wanted * times)
                    });
                });
                group.finish();
            }
            Self::Once(subject) => {
                step(&mut make(1));
                println!("{subject}: {name}: done once");
            }
            Self::Name => println!("{name}\t{}", (counted - counted / 2) * times),
            Self::Count { name: wanted, all } if wanted == name => {
                let mut state = make(counted);
                for _ in 0..if *all { counted } else { counted / 2 } {
                    step(black_box(&mut state));
                }
                // What is dropped, and how long that takes, depends on the steps.
                mem::forget(state);
            }
            Self::Count { .. } => {}
        }
    }

    /// All operations were given.
    pub(crate) fn finish(self) {
        if let Self::Time(_, criterion) = self {
            criterion.final_summary();
        }
    }
}

/// How long `wanted` steps take, on as many states as they need.
fn timed<S>(
    wanted: u64,
    steps: u64,
    make: impl Fn(u64) -> S,
    mut step: impl FnMut(&mut S),
) -> Duration {
    let mut taken = Duration::ZERO;
    let mut left = wanted;
    while left > 0 {
        let now = left.min(steps);
        let mut state = make(now);
        let begun = clock();
        for _ in 0..now {
            step(black_box(&mut state));
        }
        taken += clock() - begun;
        left -= now;
    }
    taken
}

/// The part of a time that `part` of `whole` took.
fn scaled(taken: Duration, part: u64, whole: u64) -> Duration {
    taken.mul_f64(part as f64 / whole as f64)
}
