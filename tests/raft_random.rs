//! Groups under random faults: messages lost, doubled, reordered and late, members cut off, crashed and
//! started from what is durable, disks that lose what was acknowledged and say so, leaders that hand over,
//! members that change. After every step the
//! promises of Raft are held against all that ever happened (`raft_kit`), and once the faults end the
//! group goes on. A failing seed is printed; keep it as a script with its reason.

#![cfg(feature = "engine")]

mod raft_kit;

use raft_kit::{Cluster, GROUP, LIFE, voter};
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{GroupId, LogIndex, Term};
use rrq::base::prng::Prng;
use rrq::base::units::GroupTime;
use rrq::raft::membership::Step;
use rrq::raft::message::{
    Body, Checkpoint, Message, PageWanted, Position, QueueChange, Voter, Why,
};
use rrq::raft::node::RaftNode;
use rrq::raft::ready::Ready;
use rrq::raft::recovering::Answer;
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
    faults: Faults,
    losses: usize,
}

/// What happens beside crashes and a bad network.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    /// Members come and go.
    changes: bool,
    /// Disks of so many members at once may have lost what was acknowledged.
    losses: usize,
}

impl Run {
    /// Three members that all have the thirty entries of a leader, which are acknowledged.
    fn with_thirty_entries(seed: u64) -> Self {
        let mut run = Self::new(seed, 3, Faults::default());
        run.cluster.node(voter(1)).campaign(Why::Silence);
        run.cluster.settle();
        for _ in 0..30 {
            run.propose(voter(1));
            run.cluster.settle();
        }
        run.take_acks();
        assert_eq!(run.acked.len(), 30, "seed {seed}");
        run
    }

    fn new(seed: u64, size: u32, faults: Faults) -> Self {
        let voters: Vec<u32> = (1..=size).collect();
        Self {
            cluster: Cluster::new(&voters, &[], seed),
            prng: Prng::new(seed),
            acked: Vec::new(),
            proposed: Vec::new(),
            next: 0,
            faults,
            losses: 0,
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
            40..=49 => drop(self.cluster.apply(me)),
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
        if self.faults.changes
            && self.prng.chance(1, 30)
            && let Some(leader) = self.cluster.leader()
        {
            self.change(leader);
        }
        if self.prng.chance(1, 200) {
            self.lose(me);
        }
        self.take_acks();
    }

    /// A hole in the log of a member, or its end is gone. What was acknowledged stays on enough disks.
    fn lose(&mut self, me: Voter) {
        let mut all = self.cluster.recovering();
        all.retain(|other| *other != me);
        let base = self.cluster.node(me).log().base().0;
        let last = self.cluster.last_durable(me);
        if all.len() >= self.faults.losses || last <= base {
            return;
        }
        let first = LogIndex(base.0 + 1 + self.prng.below(last.0 - base.0));
        let is_hole = self.prng.chance(1, 2);
        let until = if is_hole {
            LogIndex(first.0 + self.prng.below(3))
        } else {
            last
        };
        let vote = !is_hole && self.prng.chance(1, 2);
        self.cluster.lose(me, first, until, vote);
        self.losses += 1;
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
        // With two voters nobody could tell what the other forgot.
        } else if members.voters().len() > 2 + self.faults.losses && self.prng.chance(1, 2) {
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
        let mut recovering = self.cluster.recovering();
        recovering.retain(|me| members.contains(*me));
        assert_eq!(recovering, [], "they are sound again");
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
    losses: usize,
}

fn run(seed: u64, size: u32, faults: Faults) -> Seen {
    let mut run = Run::new(seed, size, faults);
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
        losses: run.losses,
    }
}

fn runs(size: u32, faults: Faults) {
    let mut all = Seen::default();
    for seed in std::env::var("SEED").map_or(0, |s| s.parse().unwrap())..RUNS {
        let result = catch_unwind(AssertUnwindSafe(|| run(seed, size, faults)));
        let seen =
            result.unwrap_or_else(|_| panic!("seed {seed} of {size} members fails: {faults:?}"));
        all.acked += seen.acked;
        all.leaders += seen.leaders;
        all.installs += seen.installs;
        all.reads += seen.reads;
        all.changes += seen.changes;
        all.losses += seen.losses;
    }
    println!("{RUNS} runs of {size} members: {all:?}");
    let often = RUNS as usize;
    // Who forgot is out for a while, and the group often without a leader.
    let few = if faults.losses > 0 { 2 } else { 5 };
    assert!(all.acked > few * often && all.leaders > often, "{all:?}");
    assert!(all.installs > often / 10 && all.reads > often, "{all:?}");
    assert!(!faults.changes || all.changes > often, "{all:?}");
    assert!(faults.losses == 0 || all.losses > often, "{all:?}");
}

#[test]
fn three_members_keep_their_promises() {
    runs(3, Faults::default());
}

#[test]
fn five_members_keep_their_promises() {
    runs(5, Faults::default());
}

#[test]
fn three_members_of_which_one_forgets_keep_their_promises() {
    let losses = 1;
    runs(
        3,
        Faults {
            losses,
            ..Faults::default()
        },
    );
}

#[test]
fn five_members_of_which_two_forget_keep_their_promises() {
    let losses = 2;
    runs(
        5,
        Faults {
            losses,
            ..Faults::default()
        },
    );
}

#[test]
fn members_that_change_keep_their_promises() {
    let changes = true;
    runs(
        4,
        Faults {
            changes,
            ..Faults::default()
        },
    );
}

#[test]
fn members_that_change_and_forget_keep_their_promises() {
    runs(
        4,
        Faults {
            changes: true,
            losses: 1,
        },
    );
}

/// Every member has another hole, so that nobody may vote; each has what the others lack.
#[test]
fn members_with_different_holes_repair_each_other() {
    for seed in 0..RUNS {
        let mut run = Run::with_thirty_entries(seed);
        // Three ranges that have no index in common, in any order.
        let mut cuts: Vec<u64> = (0..6).map(|_| 2 + run.prng.below(30)).collect();
        cuts.sort_unstable();
        let turn = run.prng.below(3) as u32;
        for (place, range) in (0..).zip(cuts.chunks(2)) {
            let (first, last) = (LogIndex(range[0]), LogIndex(range[1] - 1));
            run.cluster
                .lose(voter(1 + (place + turn) % 3), first, last, false);
        }
        assert_eq!(run.cluster.recovering().len(), 3);
        run.heal();
        assert_eq!(run.cluster.recovering(), [], "seed {seed}");
    }
}

/// Every member lacks something and knows what it was: one copy of each entry is enough.
#[test]
fn members_that_know_what_they_had_need_one_copy() {
    for seed in 0..RUNS {
        let mut run = Run::with_thirty_entries(seed);
        // Of what all three would lack, one keeps a copy.
        let mut copies = [3; 33];
        for number in 1..=3 {
            let first = 2 + run.prng.below(30);
            let most = first + run.prng.below(32 - first);
            let mut last = first - 1;
            while last < most && copies[last as usize + 1] > 1 {
                last += 1;
                copies[last as usize] -= 1;
            }
            if last >= first {
                let range = (LogIndex(first), LogIndex(last));
                run.cluster.lose_told(voter(number), range, false, true);
            }
        }
        run.heal();
        assert_eq!(run.cluster.recovering(), [], "seed {seed}");
    }
}

#[test]
fn one_member_keeps_its_promises() {
    let mut run = Run::new(1, 1, Faults::default());
    for _ in 0..STEPS {
        run.step();
    }
    assert!(!run.acked.is_empty());
    assert_eq!(run.cluster.node(voter(1)).role(), Role::Leader);
}

/// A number that is small, or as large as can be.
fn edge(prng: &mut Prng) -> u64 {
    match prng.below(12) {
        0 => u64::MAX,
        1 => u64::MAX - 1,
        small => small - 2,
    }
}

/// Mostly what follows `prev`, and sometimes not.
fn any_entries(prng: &mut Prng, prev: Position) -> Vec<Entry> {
    let mut index = prev.0.0;
    let count = prng.below(4);
    let mut next = || {
        index = match prng.below(8) {
            0 => edge(prng),
            _ => index.wrapping_add(1),
        };
        let term = match prng.below(8) {
            0 => Term(edge(prng)),
            _ => prev.1,
        };
        let kinds = [EntryKind::Data, EntryKind::Noop, EntryKind::Conf];
        Entry {
            term,
            index: LogIndex(index),
            time: GroupTime(edge(prng)),
            kind: kinds[prng.below(3) as usize],
            machine_version: 1,
            flags: 0,
            crc: 0,
            payload: vec![prng.below(5) as u8; prng.below(40) as usize].into(),
        }
        .sealed(GROUP, LIFE)
    };
    (0..count).map(|_| next()).collect()
}

/// What a peer may say to a member whose log ends at `last`.
fn any_body(prng: &mut Prng, last: Position) -> Body {
    let position = |prng: &mut Prng| match prng.below(3) {
        0 => last,
        _ => (LogIndex(edge(prng)), Term(edge(prng))),
    };
    match prng.below(20) {
        0 => Body::Canvass {
            pre: prng.chance(1, 2),
            last: position(prng),
            commit: position(prng),
            why: [Why::Silence, Why::Transfer][prng.below(2) as usize],
        },
        1 => Body::Ballot {
            pre: prng.chance(1, 2),
            granted: prng.chance(1, 2),
            commit: position(prng),
        },
        2..=4 => {
            let prev = position(prng);
            Body::Append {
                prev,
                entries: any_entries(prng, prev).into(),
                commit: LogIndex(edge(prng)),
            }
        }
        5 => Body::Appended {
            matched: LogIndex(edge(prng)),
        },
        6 => Body::Refused {
            prev: LogIndex(edge(prng)),
            hint: position(prng),
        },
        7 => Body::Heartbeat {
            commit: LogIndex(edge(prng)),
            round: edge(prng),
            quiet: prng.chance(1, 2),
            heir: prng.chance(1, 2),
        },
        8 => Body::Beat { round: edge(prng) },
        9 => Body::Offer {
            base: position(prng),
        },
        10 => Body::TimeoutNow,
        11 => Body::AnchorGet { id: edge(prng) },
        12 => Body::Anchor {
            id: edge(prng),
            at: position(prng),
        },
        13 => Body::EntryGet {
            first: LogIndex(edge(prng)),
        },
        14 => {
            let before = position(prng);
            let answer = Answer {
                first: LogIndex(before.0.0.wrapping_add(1)),
                before: prng.chance(1, 2).then_some(before.1),
                entries: any_entries(prng, before),
                ends: prng.chance(1, 2),
            };
            Body::EntryGot {
                answer,
                commit: position(prng),
            }
        }
        15 => Body::EntryBase {
            base: position(prng),
        },
        16 => Body::Checkpoint(Checkpoint::Get {
            id: edge(prng),
            above: LogIndex(edge(prng)),
            next: edge(prng),
            again: prng.chance(1, 2),
            wants_from: edge(prng),
            wants: vec![PageWanted::default(); prng.below(3) as usize],
            done: prng.chance(1, 4),
        }),
        17 => Body::QueueChange(QueueChange::Ask {
            command: vec![1; prng.below(40) as usize].into(),
        }),
        18 => Body::QueueChange(QueueChange::Done {
            home: GroupId(prng.below(4) as u16),
            home_index: LogIndex(edge(prng)),
        }),
        _ => Body::Checkpoint(Checkpoint::Part {
            id: edge(prng),
            number: edge(prng),
            bytes: vec![1; prng.below(40) as usize].into(),
        }),
    }
}

/// Whatever a peer says, in whatever state a member is: it is taken, or refused with nothing changed.
#[test]
fn any_message_is_taken_or_refused() {
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..RUNS {
        let mut prng = Prng::new(seed);
        let mut cluster = Cluster::new(&[1, 2, 3], &[4], seed);
        cluster.node(voter(1)).campaign(Why::Transfer);
        cluster.settle();
        let leader_proposes = prng.chance(1, 2);
        // The leader, a follower, or the learner.
        let me = voter([1, 2, 4][prng.below(3) as usize]);
        for _ in 0..200 {
            if leader_proposes && prng.chance(1, 10) {
                let _ = cluster.propose(me, "x");
            }
            // Mostly of the present term: who leads is soon deposed by others.
            let term = match prng.below(20) {
                0 => Term(edge(&mut prng)),
                _ => cluster.node(me).term(),
            };
            let last = cluster.node(me).log().last();
            let message = Message {
                from: voter(1 + prng.below(5) as u32),
                to: me,
                group: GROUP,
                incarnation: LIFE,
                term,
                life: edge(&mut prng),
                recovering: prng.chance(1, 4),
                body: any_body(&mut prng, last),
            };
            let node = cluster.node(me);
            let state = |node: &RaftNode| {
                let (hard, last) = (node.hard_state(), node.log().last());
                (hard, last, node.role(), node.leader())
            };
            let before = state(node);
            if node.step(message.clone()).is_ok() {
                taken += 1;
            } else {
                assert_eq!(before, state(node), "seed {seed}: {message:?}");
                refused += 1;
            }
            let (hard, _, _, leader) = state(node);
            let known = before.3.filter(|_| before.0.term == hard.term);
            assert!(
                known.is_none() || leader.is_none() || leader == known,
                "seed {seed}: two lead term {} after {message:?}",
                hard.term
            );
            node.tick();
            node.take_ready(&mut Ready::default());
            while node.next_committed().is_some() {
                node.applied();
            }
        }
    }
    assert!(taken > 10_000 && refused > 10_000, "{taken} and {refused}");
}
