//! Mixed clusters: our members and those of raft-rs 0.7 in one group, under random faults. Messages are
//! lost, doubled, reordered and late; members and single links are cut off; members crash and start from
//! what is durable; leaders hand over; members come and go; logs are compacted, so that checkpoints cross.
//!
//! After each step the promises of Raft are held against all that ever happened ([`crate::history`]); a
//! read that is let through must show what was committed before it was asked. Then the faults end: a leader comes
//! about, and everybody has the same log.
//!
//! A seed is one cluster. What it draws, its size and kinds included, comes from the seed alone.

use crate::cluster::Cluster;
use crate::member::{Kind, Settings};
use crate::translate::voter;
use rrq::base::bugs::{self, Bug};
use rrq::base::prng::Prng;
use rrq::raft::membership::Step;
use std::panic::{AssertUnwindSafe, catch_unwind};

const STEPS: usize = 2000;

/// How often what a run is for came about: a run that never meets it proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Entries that were committed.
    pub committed: usize,
    /// Terms that had a leader of ours, or of theirs.
    pub terms: usize,
    /// Terms whose leader had followers of the other kind.
    pub crossed: usize,
    /// Checkpoints in place of a log.
    pub installs: usize,
    /// Reads that were let through.
    pub reads: usize,
    /// Changes of the members.
    pub changes: usize,
    /// Steps at which one of ours led, and one of theirs.
    pub led: [usize; 2],
}

impl Seen {
    /// Adds what another run saw.
    pub fn add(&mut self, other: &Self) {
        self.committed += other.committed;
        self.terms += other.terms;
        self.crossed += other.crossed;
        self.installs += other.installs;
        self.reads += other.reads;
        self.changes += other.changes;
        self.led[0] += other.led[0];
        self.led[1] += other.led[1];
    }

    /// Whether so many runs met what they are for.
    #[must_use]
    pub fn is_enough(&self, runs: usize) -> bool {
        let often = [self.terms, self.led[0], self.led[1], self.reads];
        let seldom = [self.installs, self.changes];
        often.iter().all(|count| *count > runs)
            && seldom.iter().all(|count| *count > runs / 10)
            && self.committed > 5 * runs
            && self.crossed > 10 * runs
    }
}

struct Run {
    cluster: Cluster,
    prng: Prng,
    changes: bool,
    proposed: u64,
    seen: Seen,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        let voters = if prng.chance(2, 3) { 3 } else { 5 };
        let changes = prng.chance(1, 3);
        let size = voters + u32::from(changes);
        let mut settings: Vec<Settings> = (1..=size)
            .map(|number| Settings {
                kind: [Kind::Ours, Kind::Theirs][prng.below(2) as usize],
                number,
                seed,
                append_bytes: [0, 64, 1 << 20][prng.below(3) as usize],
                appends_in_flight: [1, 3, 256][prng.below(3) as usize],
            })
            .collect();
        // One of each at least.
        let turn = prng.below(u64::from(voters)) as usize;
        settings[turn].kind = Kind::Ours;
        settings[(turn + 1) % voters as usize].kind = Kind::Theirs;
        Self {
            cluster: Cluster::new(&settings, voters),
            prng,
            changes,
            proposed: 0,
            seen: Seen::default(),
        }
    }

    fn pick(&mut self) -> u32 {
        let count = self.cluster.all().count() as u64;
        1 + self.prng.below(count) as u32
    }

    fn step(&mut self) {
        let me = self.pick();
        let cluster = &mut self.cluster;
        match self.prng.below(100) {
            0..=24 => cluster.ready(me),
            25..=39 => cluster.write(me, 1 + self.prng.below(3) as usize),
            40..=49 => cluster.apply(me),
            50..=79 => self.network(),
            80..=89 => cluster.act(me, |member| member.tick()),
            90..=95 => self.propose(me),
            96 => self.fault(me),
            97 => self.read_or_transfer(me),
            98 => cluster.act(me, |member| member.compact()),
            _ => cluster.install(me),
        }
        if self.changes && self.prng.chance(1, 30) {
            self.change();
        }
        self.take_reads();
        if let Some(leader) = self.cluster.leader() {
            let theirs = self.cluster.member(leader).kind() == Kind::Theirs;
            self.seen.led[usize::from(theirs)] += 1;
        }
    }

    fn network(&mut self) {
        let count = self.cluster.network.len() as u64;
        if count == 0 {
            return;
        }
        // Mostly in order, sometimes any.
        let place = if self.prng.chance(3, 4) {
            0
        } else {
            self.prng.below(count) as usize
        };
        match self.prng.below(20) {
            0 => drop(self.cluster.network.remove(place)),
            1 => {
                let again = self.cluster.network[place].clone();
                self.cluster.network.push(again);
            }
            _ => self.cluster.deliver(place),
        }
    }

    fn propose(&mut self, me: u32) {
        let text = format!("x{}", self.proposed);
        if self
            .cluster
            .act(me, |member| member.propose(&text))
            .is_some()
        {
            self.proposed += 1;
        }
    }

    fn fault(&mut self, me: u32) {
        match self.prng.below(6) {
            0 | 1 => self.cluster.crash(me),
            2 => drop(self.cluster.cut.insert(me)),
            3 => {
                let other = self.pick();
                self.cluster.cut_links.insert((me, other));
            }
            _ => self.reconnect(),
        }
    }

    fn reconnect(&mut self) {
        self.cluster.cut.clear();
        self.cluster.cut_links.clear();
    }

    fn read_or_transfer(&mut self, me: u32) {
        if self.prng.chance(1, 2) {
            let other = self.pick();
            self.cluster.act(me, |member| member.transfer(other));
        } else {
            // The number says what was committed when it was asked; theirs takes one number once.
            let asked_at = self.cluster.history.last_committed();
            self.proposed += 1;
            let id = asked_at << 32 | self.proposed;
            self.cluster.act(me, |member| member.read(id));
        }
    }

    /// A read that was let through shows everything that was committed before it was asked.
    fn take_reads(&mut self) {
        for me in self.cluster.all() {
            let reads = self
                .cluster
                .act(me, |member| std::mem::take(&mut member.reads));
            self.seen.reads += reads.len();
            for (id, index) in reads {
                let asked_at = id >> 32;
                assert!(
                    index >= asked_at,
                    "a read asked at {asked_at} shows {index} (R11)"
                );
            }
        }
    }

    /// Whatever fits: a learner that becomes a voter, a voter that goes, a member that comes back.
    fn change(&mut self) {
        let Some(leader) = self.cluster.leader() else {
            return;
        };
        let other = voter(self.pick());
        let members = self.cluster.member(leader).members().clone();
        let step = if members.is_joint() {
            return;
        } else if members.learners().contains(&other) {
            Step::AddVoter(other)
        } else if members.voters().contains(&other) && members.voters().len() > 2 {
            Step::Remove(other)
        } else if !members.contains(other) {
            Step::AddLearner(other)
        } else {
            return;
        };
        self.cluster.act(leader, |member| member.change(vec![step]));
    }

    /// The faults end: a leader comes about, takes an entry, and everybody has it.
    fn heal(&mut self) {
        self.reconnect();
        let begun = self.cluster.history.last_committed();
        for round in 0..400 {
            self.cluster.settle();
            for me in self.cluster.all() {
                self.cluster.install(me);
                self.cluster.act(me, |member| member.tick());
            }
            if round % 40 == 39
                && let Some(leader) = self.cluster.leader()
            {
                self.propose(leader);
                self.cluster.settle();
                if self.is_whole(begun) {
                    return;
                }
            }
        }
        let state: Vec<String> = (self.cluster.all())
            .map(|me| self.cluster.state(me))
            .collect();
        panic!("400 ticks after the faults: {}", state.join("; "));
    }

    /// Whether something was committed since, and every member has everything.
    fn is_whole(&self, begun: u64) -> bool {
        let Some(leader) = self.cluster.leader() else {
            return false;
        };
        let leader = self.cluster.member(leader);
        let has_all = |me| self.cluster.member(me).applied() == leader.last();
        let mut members = leader.members().members();
        self.cluster.history.last_committed() > begun && members.all(|it| has_all(it.node.0))
    }
}

/// One cluster.
///
/// # Panics
/// If a promise is broken.
#[must_use]
pub fn run(seed: u64, trace: bool) -> Seen {
    let mut run = Run::new(seed);
    run.cluster.trace = trace;
    // Somebody leads soon, so that not all of a run is an election.
    let first = 1 + run.prng.below(3) as u32;
    run.cluster.act(first, |member| member.stand());
    for _ in 0..STEPS {
        run.step();
    }
    run.heal();
    let history = &run.cluster.history;
    Seen {
        committed: history.last_committed() as usize,
        terms: history.terms_led(),
        crossed: run.cluster.crossed,
        installs: run.cluster.installs,
        changes: history.changes(),
        ..run.seen
    }
}

/// What a run of many clusters came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was seen.
    pub seen: Seen,
    /// Seeds that failed, with the reason.
    pub failures: Vec<(u64, String)>,
}

/// A cluster for each seed, with a bug planted or none.
#[must_use]
pub fn runs(
    seeds: impl Iterator<Item = u64>,
    bug: Option<Bug>,
    run: impl Fn(u64) -> Seen,
) -> Outcome {
    let mut outcome = Outcome::default();
    for seed in seeds {
        bugs::plant(bug);
        let result = catch_unwind(AssertUnwindSafe(|| run(seed)));
        bugs::plant(None);
        match result {
            Ok(seen) => outcome.seen.add(&seen),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
                outcome.failures.push((seed, text.unwrap_or_default()));
            }
        }
    }
    outcome
}
