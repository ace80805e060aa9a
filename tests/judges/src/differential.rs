//! Differential runs: the same inputs to a cluster of ours and to one of raft-rs, compared after each.
//!
//! Inputs are given one at a time, and all that follows from one happens before the next: every message
//! that gets through arrives in order, everything is written and applied. What can be seen from outside
//! must then be the same for each member: whether it leads, its term, the terms of its log, its commit mark.
//! Timeouts are drawn differently, so time is an input too: a member *ticks until it asks for votes*.
//!
//! An input is an election by one member, after all that it reaches have given up their leader; a campaign
//! by order; entries proposed to every leader, or to one that crashes before its disk has them; a round of
//! heartbeats; a handover; a partition; its end; a crash.
//!
//! # Differences that are allowed
//!
//! A candidate of an earlier term is told the present one by ours (trap R2), and by theirs only if it asks
//! before it stands (`step`, "ignore other cases"; tikv/raft-rs#83, #84): nobody is ordered to stand in a
//! term below that of others that it reaches.
//!
//! A commit mark may differ between a member and its twin while its part of the cluster has no leader:
//! a vote of ours tells and learns what is committed whatever the answer, one of theirs only when it is
//! refused (`maybe_commit_by_vote`; tikv/raft-rs#411). Both marks must then
//! be of what is committed in both clusters, which [`crate::history`] holds each against.

use crate::cluster::Cluster;
use crate::member::{HEARTBEAT_TICKS, Kind, Settings};
use crate::mixed::Seen;
use rrq::base::prng::Prng;

const INPUTS: usize = 60;
/// Two looks at who is there, and the longest timeout.
const TICKS_MAX: u32 = 60;

/// What happens to both clusters.
#[derive(Clone, Debug)]
enum Input {
    Elect(u32),
    Order(u32),
    Propose(u32),
    ProposeAndCrash,
    Beat,
    Transfer(u32),
    Cut(Vec<u32>),
    Heal,
    Crash(u32),
}

/// What can be seen of a member.
#[derive(Debug, PartialEq, Eq)]
struct View {
    leads: bool,
    campaigns: bool,
    term: u64,
    log: Vec<u64>,
    committed: u64,
}

struct Twin {
    cluster: Cluster,
    proposed: u64,
}

impl Twin {
    fn new(kind: Kind, size: u32, seed: u64) -> Self {
        let settings: Vec<Settings> = (1..=size)
            .map(|number| Settings {
                kind,
                number,
                seed,
                append_bytes: 1 << 20,
                appends_in_flight: 256,
            })
            .collect();
        Self {
            cluster: Cluster::new(&settings, size),
            proposed: 0,
        }
    }

    fn take(&mut self, input: &Input) {
        let cluster = &mut self.cluster;
        match input {
            Input::Elect(me) => self.elect(*me),
            Input::Order(me) => {
                let others = cluster.all().filter(|it| cluster.passes(*me, *it));
                let term = others.map(|it| cluster.member(it).term()).max();
                let member = cluster.member(*me);
                // Who campaigns already is not moved in raft-rs (`step_candidate`).
                let stays = member.leads() || member.campaigns();
                if !stays && term <= Some(member.term() + 1) {
                    cluster.act(*me, |member| member.stand());
                }
            }
            Input::Propose(count) => (0..*count).for_each(|_| self.propose()),
            Input::ProposeAndCrash => {
                self.propose();
                for me in self.leaders() {
                    self.cluster.ready(me);
                    self.cluster.crash(me);
                }
            }
            Input::Beat => self.beat(),
            Input::Transfer(to) => {
                // It ends at once, or another would begin in one of the clusters only.
                for me in self.leaders() {
                    if me != *to && self.cluster.passes(me, *to) {
                        self.cluster.act(me, |member| member.transfer(*to));
                    }
                }
            }
            Input::Cut(members) => cluster.cut.extend(members),
            Input::Heal => cluster.cut.clear(),
            Input::Crash(me) => cluster.crash(*me),
        }
        self.cluster.settle();
        // Who started again may know of fewer commits than before: it is told.
        self.beat();
        self.cluster.settle();
    }

    fn beat(&mut self) {
        for me in self.leaders() {
            for _ in 0..HEARTBEAT_TICKS {
                self.cluster.act(me, |member| member.tick());
            }
        }
    }

    fn leaders(&self) -> Vec<u32> {
        let all = self.cluster.all();
        all.filter(|me| self.cluster.member(*me).leads()).collect()
    }

    fn propose(&mut self) {
        self.proposed += 1;
        let text = format!("x{}", self.proposed);
        for me in self.leaders() {
            self.cluster.act(me, |member| member.propose(&text));
        }
    }

    /// All that `me` reaches give up their leader; then it alone asks.
    fn elect(&mut self, me: u32) {
        let cut = self.cluster.cut.clone();
        let is_with = |other: &u32| other == &me || !(cut.contains(&me) || cut.contains(other));
        for other in self.cluster.all().filter(is_with) {
            self.tick_until_it_asks(other);
            self.cluster.network.clear();
        }
        self.tick_until_it_asks(me);
    }

    fn tick_until_it_asks(&mut self, me: u32) {
        for _ in 0..TICKS_MAX {
            self.cluster.act(me, |member| member.tick());
            self.cluster.ready(me);
            self.cluster.write(me, usize::MAX);
            let has_sent = !self.cluster.network.is_empty();
            if has_sent && self.cluster.member(me).campaigns() {
                return;
            }
            self.cluster.network.clear();
        }
        panic!("member {me} does not ask for votes in {TICKS_MAX} ticks");
    }

    fn view(&self, me: u32) -> View {
        let member = self.cluster.member(me);
        let term = |index| member.term_at(index).expect("nothing is compacted here");
        View {
            leads: member.leads(),
            campaigns: member.campaigns(),
            term: member.term(),
            log: (1..=member.last()).map(term).collect(),
            committed: member.committed(),
        }
    }
}

fn any_input(prng: &mut Prng, size: u32) -> Input {
    let me = 1 + prng.below(u64::from(size)) as u32;
    match prng.below(20) {
        0..=4 => Input::Elect(me),
        5 => Input::Order(me),
        6..=9 => Input::Propose(1 + prng.below(3) as u32),
        10 => Input::ProposeAndCrash,
        11 | 12 => Input::Beat,
        13 => Input::Transfer(me),
        14 | 15 => {
            let count = 1 + prng.below(u64::from(size) / 2 + 1);
            let any = |_| 1 + prng.below(u64::from(size)) as u32;
            Input::Cut((0..count).map(any).collect())
        }
        16 | 17 => Input::Heal,
        _ => Input::Crash(me),
    }
}

/// One list of inputs.
///
/// # Panics
/// If the clusters differ, or a promise is broken.
#[must_use]
pub fn run(seed: u64, trace: bool) -> Seen {
    let mut prng = Prng::new(seed ^ 0xd1ff);
    let size = if prng.chance(2, 3) { 3 } else { 5 };
    let mut twins = [Kind::Ours, Kind::Theirs].map(|kind| Twin::new(kind, size, seed));
    for twin in &mut twins {
        twin.cluster.trace = trace;
    }
    let mut seen = Seen::default();
    for place in 0..INPUTS {
        let input = any_input(&mut prng, size);
        if trace {
            println!("{place}: {input:?}");
        }
        for twin in &mut twins {
            twin.take(&input);
        }
        for me in 1..=size {
            let [ours, theirs] = [0, 1].map(|it: usize| twins[it].view(me));
            if trace {
                println!("  {me}: {ours:?}\n     {theirs:?}");
            }
            assert!(
                are_alike(&twins[0], &ours, &theirs, me),
                "input {place}, {input:?}: member {me} of ours {ours:?}, of theirs {theirs:?}"
            );
            seen.led[0] += usize::from(ours.leads);
            seen.led[1] += usize::from(theirs.leads);
        }
    }
    for twin in &twins {
        seen.terms += twin.cluster.history.terms_led();
        seen.committed += twin.cluster.history.last_committed() as usize;
    }
    seen
}

fn are_alike(twin: &Twin, ours: &View, theirs: &View, me: u32) -> bool {
    let cluster = &twin.cluster;
    let is_with = |other: &u32| !cluster.cut.contains(other) || *other == me;
    let is_led = !cluster.cut.contains(&me)
        && (cluster.all().filter(is_with)).any(|it| cluster.member(it).leads());
    let commits = ours.committed == theirs.committed || !is_led;
    let without_commits = |view: &View| View {
        log: view.log.clone(),
        committed: 0,
        ..*view
    };
    commits && without_commits(ours) == without_commits(theirs)
}
