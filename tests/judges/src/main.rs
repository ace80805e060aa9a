//! Runs the judges of `src/raft`.
//!
//! ```text
//! rrq-judges mixed        [--seeds 1000] [--from 0] [--threads 1] [--bug NAME]
//! rrq-judges differential [--seeds 1000] [--from 0] [--threads 1] [--bug NAME]
//! rrq-judges mixed --seed 7        one cluster, with a trace of all that happens
//! rrq-judges model        [NAME] [--minutes 1] [--threads 1] [--bug NAME] [--entries 3] [--orders 2]
//!                         [--silences 2] [--crashes 1] [--in-flight 2] [--doubles 1] [--beats 1]
//! ```
//!
//! Exits with 1 if a promise is broken; the seed or the way to it is printed.

use rrq::base::bugs::Bug;
use rrq_judges::bounds::{Bounds, MODELS};
use rrq_judges::mixed::{Outcome, Seen, runs};
use rrq_judges::{differential, mixed, model};
use std::process::ExitCode;
use std::time::{Duration, Instant};

struct Arguments {
    words: Vec<String>,
}

impl Arguments {
    /// What stands behind `--name`.
    fn take(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(place) = self.words.iter().position(|word| word == name) else {
            return Ok(None);
        };
        self.words.remove(place);
        if place == self.words.len() {
            return Err(format!("{name} needs a value"));
        }
        Ok(Some(self.words.remove(place)))
    }

    fn number(&mut self, name: &str) -> Result<Option<u64>, String> {
        let text = self.take(name)?;
        let number = text.map(|text| {
            let number = text.parse();
            number.map_err(|_| format!("{name} {text}: not a number"))
        });
        number.transpose()
    }

    fn bug(&mut self) -> Result<Option<Bug>, String> {
        let Some(name) = self.take("--bug")? else {
            return Ok(None);
        };
        let mut known = Bug::ALL.into_iter();
        let found = known.find(|bug| format!("{bug:?}") == name);
        let Some(bug) = found else {
            return Err(format!("no bug {name}; there are {:?}", Bug::ALL));
        };
        Ok(Some(bug))
    }

    fn finish(self) -> Result<(), String> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(format!("{word}: what is that? See the head of src/main.rs")),
        }
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let judge = words.next().unwrap_or_default();
    let arguments = Arguments {
        words: words.collect(),
    };
    let result = match judge.as_str() {
        "mixed" => clusters(arguments, mixed::run),
        "differential" => clusters(arguments, differential::run),
        "model" => models(arguments),
        _ => Err("which judge: mixed, differential or model?".to_owned()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn clusters(mut arguments: Arguments, run: fn(u64, bool) -> Seen) -> Result<bool, String> {
    let seed = arguments.number("--seed")?;
    let count = arguments.number("--seeds")?.unwrap_or(1000);
    let from = arguments.number("--from")?.unwrap_or(0);
    let threads = arguments.number("--threads")?.unwrap_or(1).max(1);
    let bug = arguments.bug()?;
    arguments.finish()?;
    if let Some(seed) = seed {
        rrq::base::bugs::plant(bug);
        println!("{:?}", run(seed, true));
        return Ok(true);
    }
    // A failure is told below, with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let begun = Instant::now();
    let seeds = |thread| (from + thread..from + count).step_by(threads as usize);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let one = |thread| scope.spawn(move || runs(seeds(thread), bug, |seed| run(seed, false)));
        let all: Vec<_> = (0..threads).map(one).collect();
        let joined = all.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(|it| it.expect("failures are caught")).collect()
    });
    let took = begun.elapsed().as_secs_f64();
    let mut all = Seen::default();
    let mut failures = Vec::new();
    for outcome in outcomes {
        all.add(&outcome.seen);
        failures.extend(outcome.failures);
    }
    failures.sort();
    for (seed, reason) in failures.iter().take(10) {
        println!("seed {seed} fails: {reason}");
    }
    let (failed, rate) = (failures.len(), count as f64 / took);
    println!("{count} seeds from {from}: {failed} failed; {took:.1} s, {rate:.0}/s; {all:?}");
    Ok(failures.is_empty())
}

fn models(mut arguments: Arguments) -> Result<bool, String> {
    let minutes = arguments.number("--minutes")?.unwrap_or(1);
    let threads = arguments.number("--threads")?.unwrap_or(1).max(1);
    let bug = arguments.bug()?;
    let mut bounds = [
        "--entries",
        "--orders",
        "--silences",
        "--crashes",
        "--in-flight",
        "--doubles",
        "--beats",
    ]
    .map(|name| (name, None));
    for (name, bound) in &mut bounds {
        *bound = arguments.number(name)?;
    }
    let name = (!arguments.words.is_empty()).then(|| arguments.words.remove(0));
    arguments.finish()?;
    let chosen = |bounds: &&Bounds| match &name {
        Some(name) => *name == bounds.name,
        None => bounds.is_quick,
    };
    let chosen: Vec<&Bounds> = MODELS.iter().filter(chosen).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = MODELS.iter().map(|it| it.name).collect();
        return Err(format!("no such model; there are {}", names.join(", ")));
    }
    std::panic::set_hook(Box::new(|_| {}));
    let mut kept = true;
    for model in chosen {
        let bounds = bounded(Bounds { bug, ..*model }, &bounds);
        let limit = Duration::from_secs(60 * minutes);
        let found = model::check(bounds, threads as usize, limit);
        if let Some((promise, way)) = &found.broken {
            println!("{way}broken: {promise}");
            kept = false;
        }
        let (states, steps, depth) = (found.states, found.steps, found.depth);
        let took = found.took.as_secs_f64();
        let end = if found.whole { "all of it" } else { "not all" };
        let name = bounds.name;
        println!("{name}: {states} states, {steps} steps, {depth} deep, {took:.1} s, {end}");
    }
    Ok(kept)
}

/// A model with other bounds.
fn bounded(mut model: Bounds, bounds: &[(&str, Option<u64>)]) -> Bounds {
    for (name, bound) in bounds {
        let Some(bound) = *bound else { continue };
        match *name {
            "--entries" => model.entries = bound,
            "--orders" => model.orders = bound as u32,
            "--silences" => model.silences = bound as u32,
            "--crashes" => model.crashes = bound as u32,
            "--in-flight" => model.in_flight = bound as usize,
            "--doubles" => model.doubles = bound as u32,
            "--beats" => model.beats = bound as u32,
            name => unreachable!("{name} is not asked for"),
        }
    }
    model
}
