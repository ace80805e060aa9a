//! Groups under random faults: messages lost, doubled, reordered and late, members cut off, crashed and
//! started from what is durable, leaders that hand over, members that change. After every step the
//! promises of Raft are held against all that ever happened (`raft_kit`), and once the faults end the
//! group goes on. A failing seed is printed; keep it as a script with its reason.

#![cfg(feature = "engine")]

mod raft_kit;

use raft_kit::{Cluster, voter};
use rrq::base::ids::LogIndex;
use rrq::base::prng::Prng;
use rrq::raft::membership::Step;
use rrq::raft::message::{Voter, Why};
use rrq::raft::role::Role;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs of each kind.
const RUNS: u64 = 300;
const STEPS: usize = 1500;

struct Run {
    cluster: Cluster,
    prng: Prng,
    /// Acknowledged: index and text.
    acked: Vec<(LogIndex, String)>,
    /// Proposed by a leader in its term, not yet known to be committed.
    proposed: Vec<(LogIndex, String)>,
    next: u64,
    changes: bool,
}

impl Run {
    fn new(seed: u64, size: u32, changes: bool) -> Self {
        let voters: Vec<u32> = (1..=size).collect();
        Self {
            cluster: Cluster::new(&voters, &[], seed),
            prng: Prng::new(seed),
            acked: Vec::new(),
            proposed: Vec::new(),
            next: 0,
            changes,
        }
    }

    fn pick(&mut self) -> Voter {
        let all = self.cluster.all();
        all[self.prng.below(all.len() as u64) as usize]
    }

    fn step(&mut self) {
        let me = self.pick();
        match self.prng.below(100) {
            0..=24 => drop(self.cluster.ready(me)),
            25..=39 => drop(self.cluster.write(me, 1 + self.prng.below(3) as usize)),
            40..=49 => self.cluster.apply(me),
            50..=79 => self.network(),
            80..=89 => self.cluster.node(me).tick(),
            90..=95 => self.propose(me),
            96 => self.fault(me),
            97 => self.read_or_transfer(me),
            98 => {
                let index = self.cluster.node(me).log().applied();
                self.cluster.compact(me, index);
            }
            _ => drop(self.cluster.install(me)),
        }
        if self.changes
            && self.prng.chance(1, 30)
            && let Some(leader) = self.cluster.leader()
        {
            self.change(leader);
        }
        self.take_acks();
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
            self.prng.below(count)
        };
        match self.prng.below(20) {
            0 => drop(self.cluster.network.remove(place as usize)),
            1 => {
                let again = self.cluster.network[place as usize].clone();
                self.cluster.network.push(again);
            }
            _ => self.cluster.deliver(place as usize),
        }
    }

    fn propose(&mut self, me: Voter) {
        let text = format!("x{}", self.next);
        if let Ok(index) = self.cluster.propose(me, &text) {
            self.next += 1;
            self.proposed.push((index, text));
        }
    }

    /// What is applied where it was proposed is acknowledged, and must never be lost.
    fn take_acks(&mut self) {
        let cluster = &self.cluster;
        let acked = &mut self.acked;
        self.proposed.retain(|(index, text)| {
            let Some(entry) = cluster.committed_at(*index) else {
                return true;
            };
            if entry.payload == text.as_bytes() {
                acked.push((*index, text.clone()));
            }
            false
        });
    }

    fn fault(&mut self, me: Voter) {
        match self.prng.below(6) {
            0 | 1 => self.cluster.crash(me),
            2 => {
                self.cluster.cut.insert(me);
            }
            3 => {
                let other = self.pick();
                self.cluster.cut_links.insert((me, other));
            }
            _ => {
                self.cluster.cut.clear();
                self.cluster.cut_links.clear();
            }
        }
    }

    fn read_or_transfer(&mut self, me: Voter) {
        if self.prng.chance(1, 2) {
            let other = self.pick();
            // Refusals are as good.
            let _ = self.cluster.node(me).transfer_to(other);
        } else {
            let asked_at = self.cluster.last_committed();
            // The number says what was committed when it was asked.
            let _ = self.cluster.node(me).read_index(asked_at.0);
        }
    }

    /// Whatever fits: a learner that becomes a voter, a voter that goes, a member that comes back.
    fn change(&mut self, me: Voter) {
        let other = self.pick();
        let members = self.cluster.node(me).members().clone();
        let step = if members.learners().contains(&other) {
            Step::AddVoter(other)
        } else if members.voters().len() > 2 && self.prng.chance(1, 2) {
            Step::Remove(other)
        } else if !members.contains(other) {
            Step::AddLearner(other)
        } else {
            return;
        };
        let _ = self.cluster.node(me).propose_change(vec![step]);
    }

    /// A read that was let through shows everything that was committed before it was asked; how many.
    fn check_reads(&mut self) -> usize {
        let mut count = 0;
        for me in self.cluster.all() {
            let reads = std::mem::take(&mut self.cluster.member(me).reads);
            count += reads.len();
            for (asked_at, index) in reads {
                assert!(
                    index.0 >= asked_at,
                    "a read asked at {asked_at} was let through at {index} (R11)"
                );
            }
        }
        count
    }

    /// The faults end: a leader comes about, takes an entry, and everybody has it.
    fn heal(&mut self) {
        self.cluster.cut.clear();
        self.cluster.cut_links.clear();
        let begun = self.cluster.last_committed();
        for round in 0..400 {
            self.cluster.settle();
            for me in self.cluster.all() {
                self.cluster.install(me);
                self.cluster.node(me).tick();
            }
            if let Some(leader) = self.cluster.leader()
                && round % 40 == 39
            {
                let _ = self.cluster.propose(leader, "healed");
            }
        }
        self.cluster.settle();
        assert!(
            self.cluster.last_committed() > begun,
            "nothing was committed after the faults had ended (U8)"
        );
        let leader = self.cluster.leader().expect("somebody leads");
        let members = self.cluster.node(leader).members().clone();
        let last = self.cluster.node(leader).log().last_index();
        for me in members.members() {
            let log = self.cluster.node(me).log();
            assert_eq!(log.applied(), last, "member {} is behind", me.node);
        }
        for (index, text) in &self.acked {
            let entry = self.cluster.committed_at(*index).expect("it was committed");
            assert_eq!(entry.payload, text.as_bytes(), "{index} was acknowledged");
            assert!(self.cluster.is_durable_on_a_majority(*index, &members));
        }
    }
}

/// How often what a run is for came about: a test that never meets it proves nothing.
#[derive(Debug, Default)]
struct Seen {
    acked: usize,
    leaders: usize,
    installs: usize,
    reads: usize,
    changes: usize,
}

fn run(seed: u64, size: u32, changes: bool) -> Seen {
    let mut run = Run::new(seed, size, changes);
    // Somebody leads soon, so that not all of a run is an election.
    run.cluster.node(voter(1)).campaign(Why::Silence);
    let mut reads = 0;
    for _ in 0..STEPS {
        run.step();
        reads += run.check_reads();
    }
    run.heal();
    Seen {
        acked: run.acked.len(),
        leaders: run.cluster.leaders.len(),
        installs: run.cluster.installs,
        reads,
        changes: run.cluster.changes(),
    }
}

fn runs(size: u32, changes: bool) {
    let mut all = Seen::default();
    for seed in 0..RUNS {
        let result = catch_unwind(AssertUnwindSafe(|| run(seed, size, changes)));
        let seen = result.unwrap_or_else(|_| {
            panic!("seed {seed} of {size} members fails (changes of members: {changes})")
        });
        all.acked += seen.acked;
        all.leaders += seen.leaders;
        all.installs += seen.installs;
        all.reads += seen.reads;
        all.changes += seen.changes;
    }
    println!("{RUNS} runs of {size} members: {all:?}");
    let often = RUNS as usize;
    assert!(all.acked > 5 * often && all.leaders > 2 * often, "{all:?}");
    assert!(all.installs > often / 10 && all.reads > often, "{all:?}");
    assert!(!changes || all.changes > often, "{all:?}");
}

#[test]
fn three_members_keep_their_promises() {
    runs(3, false);
}

#[test]
fn five_members_keep_their_promises() {
    runs(5, false);
}

#[test]
fn members_that_change_keep_their_promises() {
    runs(4, true);
}

#[test]
fn one_member_keeps_its_promises() {
    let mut run = Run::new(1, 1, false);
    for _ in 0..STEPS {
        run.step();
    }
    assert!(!run.acked.is_empty());
    assert_eq!(run.cluster.node(voter(1)).role(), Role::Leader);
}
