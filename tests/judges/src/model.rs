//! A model checker (stateright) over the real `src/raft`: every order of what may happen to a few members,
//! up to a bound, not a sample of it.
//!
//! # What may happen
//!
//! Any message under way arrives, at any time and in any order, or never: a message that is never delivered
//! is lost, and so is the oldest of a link on which more are under way than the bound. With `doubles`, one may arrive and stay under way. A member's oldest write becomes durable, at
//! any time; a crash loses those that are not. A member campaigns, a leader proposes or sends heartbeats,
//! without waiting for a timeout. In the model of the proof rule (decision 10), a leader crashes and the others
//! learn of it (`died`), in any order, and stand in for its heir. In that of `recovering` (decision 8), a crash takes
//! durable entries and votes as well, and the member knows that something is gone.
//!
//! # What must hold
//!
//! Election safety, log matching, leader completeness and state machine safety (thesis, figure 3.2), that
//! what is committed is on the disks of a majority (where none loses what it had), and that nothing
//! panics.
//!
//! # What counts as one state
//!
//! Members that print alike (`Debug`), but for the random part of their timeouts, which nothing here waits
//! for: a field that is added to the core is so part of the state by itself. Messages that can change nothing
//! any more, answers of a term that the receiver has durably left, are taken out of the network. Applying and
//! sending follow at once what causes them: no change of the members is in these models, so nothing
//! depends on when an entry is applied.

use crate::bounds::Bounds;
use crate::translate::{GROUP, LIFE, voter};
use bytes::Bytes;
use rrq::base::bugs;
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{LogIndex, Term};
use rrq::base::units::GroupTime;
use rrq::raft::log::RaftLog;
use rrq::raft::membership::Membership;
use rrq::raft::message::{Body, Message, Voter, Why};
use rrq::raft::node::{Proposal, RaftConfig, RaftNode};
use rrq::raft::ready::{HardState, Ready, Standing};
use rrq::raft::recovering::Doubt;
use rrq::raft::role::Role;
use stateright::{Checker, Model, Property};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Clone)]
struct Disk {
    hard: HardState,
    entries: Vec<Entry>,
    doubt: Option<Doubt>,
}

#[derive(Clone)]
struct Write {
    hard: Option<HardState>,
    entries: Vec<Entry>,
    standing: Option<Standing>,
    promises: Vec<Message>,
}

/// A member, with what a crash leaves of it and what it does not.
#[derive(Clone)]
struct Part {
    node: RaftNode,
    disk: Disk,
    writes: Vec<Write>,
    starts: u32,
    /// Stands for all of it.
    print: u64,
}

/// A message under way, with what stands for it.
#[derive(Clone)]
struct Envelope {
    print: u64,
    message: Arc<Message>,
}

impl Envelope {
    fn link(&self) -> (Voter, Voter) {
        (self.message.from, self.message.to)
    }
}

/// What happened, as far as it matters to what must hold.
#[derive(Clone, Debug, Default, Hash)]
struct Past {
    leaders: BTreeMap<u64, u32>,
    /// What was committed, from index 1 on: its term, and that in which it became known.
    committed: Vec<(u64, u64)>,
    broken: Option<&'static str>,
}

/// Where everything stands.
#[derive(Clone)]
pub struct State {
    parts: Vec<Arc<Part>>,
    /// By link, and on each oldest first.
    network: Vec<Envelope>,
    past: Arc<Past>,
    silences: u32,
    orders: u32,
    crashes: u32,
    doubles: u32,
    beats: u32,
    losses: u32,
    /// Who has learned that this leader's process died, and may stand in for its heir.
    dead: Option<(u32, Vec<u32>)>,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for part in &self.parts {
            part.print.hash(hasher);
        }
        for envelope in &self.network {
            envelope.print.hash(hasher);
        }
        self.past.hash(hasher);
        let left = [self.silences, self.orders, self.crashes, self.doubles];
        (left, self.beats, self.losses, &self.dead).hash(hasher);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let print = |state: &Self| {
            let mut hasher = DefaultHasher::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        print(self) == print(other)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, part) in (1..).zip(&self.parts) {
            let (node, log) = (&part.node, part.node.log());
            let recovers = if node.is_recovering() {
                " recovers"
            } else {
                ""
            };
            writeln!(
                f,
                "  {number}: {}{recovers} term={} log={:?} committed={} durable={} vote={:?}",
                node.role().name(),
                node.term(),
                terms(log),
                log.committed(),
                part.disk.entries.len(),
                node.hard_state().vote.map(|vote| vote.node.0),
            )?;
        }
        for envelope in &self.network {
            writeln!(f, "  under way: {}", show(&envelope.message))?;
        }
        writeln!(f, "  {:?}", self.past)
    }
}

/// What happens next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// This message arrives.
    Deliver(u64),
    /// It arrives, and will again.
    Double(u64),
    /// A member's oldest write is durable.
    Sync(u32),
    /// It campaigns.
    Campaign(u32, Why),
    /// A leader proposes an entry.
    Propose(u32),
    /// A leader sends heartbeats.
    Beat(u32),
    /// A member crashes, and starts again.
    Crash(u32),
    /// Its disk loses its entries from this one on, and its vote.
    Lose(u32, u64),
    /// A member learns that its leader is dead.
    Died(u32),
    /// It has waited for the heir for long enough.
    StandIn(u32),
}

fn terms(log: &RaftLog) -> Vec<u64> {
    let all = log.slice(log.base().0.next(), usize::MAX);
    all.iter().map(|entry| entry.term.0).collect()
}

fn show(message: &Message) -> String {
    let (from, to) = (message.from.node, message.to.node);
    format!("{from}>{to} t{} {:?}", message.term, message.body)
}

/// Hashes what is printed, without the fields that only time makes use of.
struct Print {
    hasher: DefaultHasher,
    skips: bool,
    skipped: u32,
}

/// The fields of a member that hold the random part of its timeouts.
const OF_TIMEOUTS: [&str; 2] = ["prng", "timeout"];

impl fmt::Write for Print {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if OF_TIMEOUTS.contains(&text) {
            self.skips = true;
            self.skipped += 1;
        } else if text == ", " {
            self.skips = false;
        }
        if !self.skips {
            self.hasher.write(text.as_bytes());
        }
        Ok(())
    }
}

/// What stands for something, and how many fields were left out.
fn print(it: &impl fmt::Debug) -> (u64, u32) {
    let mut print = Print {
        hasher: DefaultHasher::new(),
        skips: false,
        skipped: 0,
    };
    write!(print, "{it:?}").expect("hashing takes everything");
    (print.hasher.finish(), print.skipped)
}

impl Part {
    fn start(number: u32, bounds: &Bounds, disk: Disk, starts: u32) -> Self {
        let me = voter(number);
        let members = Membership::of_voters((1..=bounds.members).map(voter));
        let config = RaftConfig {
            start: starts,
            doubt: disk.doubt.clone(),
            // Nobody waits for a timeout, and no leader looks for its majority.
            election_ticks: 1 << 20,
            heartbeat_ticks: 1,
            ..RaftConfig::new(GROUP, LIFE, me, members)
        };
        let log = RaftLog::new((LogIndex(0), Term(0)), disk.entries.clone());
        Self {
            node: RaftNode::new(config, disk.hard, log, GroupTime(0)),
            disk,
            writes: Vec::new(),
            starts,
            print: 0,
        }
    }

    /// What a crash leaves.
    fn crash(&mut self, number: u32, bounds: &Bounds) {
        let disk = self.disk.clone();
        *self = Self::start(number, bounds, disk, self.starts + 1);
        // What lies beyond a hole is known to one start only.
        self.disk.doubt = self.disk.doubt.take().map(|_| Doubt::default());
    }

    /// Takes what it wants done; what leaves at once.
    fn ready(&mut self) -> Vec<Message> {
        let mut ready = Ready::default();
        self.node.take_ready(&mut ready);
        let mut sent = std::mem::take(&mut ready.messages);
        let write = Write {
            hard: ready.hard_state,
            entries: ready.entries,
            standing: ready.standing,
            promises: ready.promises,
        };
        let is_empty = write.hard.is_none() && write.entries.is_empty();
        if !is_empty || write.standing.is_some() || !write.promises.is_empty() {
            self.writes.push(write);
        }
        // What promises nothing waits only for hard states that are under way.
        let waits = self.writes.iter().any(|write| write.hard.is_some());
        if waits && let Some(write) = self.writes.last_mut() {
            write.promises.append(&mut sent);
        }
        sent
    }

    /// Its oldest write is durable; what leaves.
    fn sync(&mut self) -> Vec<Message> {
        let write = self.writes.remove(0);
        if let Some(hard) = write.hard {
            self.disk.hard = hard;
        }
        for entry in &write.entries {
            self.disk.entries.truncate(entry.index.0 as usize - 1);
            self.disk.entries.push(entry.clone());
        }
        if let Some(last) = write.entries.last() {
            self.node.synced(LIFE, last.index, last.term);
        }
        match write.standing {
            Some(Standing::Sound) => self.disk.doubt = None,
            Some(Standing::Recovering { .. }) => self.disk.doubt = Some(Doubt::default()),
            None => {}
        }
        write.promises
    }

    fn set_print(&mut self) {
        let (node, skipped) = print(&self.node);
        assert_eq!(
            skipped,
            OF_TIMEOUTS.len() as u32,
            "fields of a member were renamed"
        );
        let writes = self.writes.iter();
        let writes: Vec<_> = writes
            .map(|it| (it.hard, &it.entries, it.standing, &it.promises))
            .collect();
        let disk = (self.disk.hard, &self.disk.entries, &self.disk.doubt);
        self.print = print(&(node, disk, writes)).0;
    }
}

impl State {
    fn new(bounds: &Bounds) -> Self {
        let part = |number| {
            let disk = Disk {
                hard: HardState::default(),
                entries: Vec::new(),
                doubt: None,
            };
            let mut part = Part::start(number, bounds, disk, 1);
            part.set_print();
            Arc::new(part)
        };
        Self {
            parts: (1..=bounds.members).map(part).collect(),
            network: Vec::new(),
            past: Arc::default(),
            silences: bounds.silences,
            orders: bounds.orders,
            crashes: bounds.crashes,
            doubles: bounds.doubles,
            beats: bounds.beats,
            losses: bounds.losses,
            dead: None,
        }
    }

    fn node(&self, number: u32) -> &RaftNode {
        &self.parts[number as usize - 1].node
    }

    fn send(&mut self, bounds: &Bounds, messages: Vec<Message>) {
        for message in messages {
            let envelope = Envelope {
                print: print(&message).0,
                message: Arc::new(message),
            };
            let link = envelope.link();
            let first = self.network.partition_point(|it| it.link() < link);
            let end = self.network.partition_point(|it| it.link() <= link);
            if self.network[first..end]
                .iter()
                .any(|it| it.print == envelope.print)
            {
                continue;
            }
            self.network.insert(end, envelope);
            if end - first == bounds.in_flight {
                self.network.remove(first);
            }
        }
    }

    /// Lets a member act, and does what follows at once.
    fn act(&mut self, bounds: &Bounds, number: u32, act: impl FnOnce(&mut Part) -> Vec<Message>) {
        let place = number as usize - 1;
        let mut part = (*self.parts[place]).clone();
        let mut sent = act(&mut part);
        loop {
            sent.append(&mut part.ready());
            while !bounds.slow_disks && !part.writes.is_empty() {
                sent.append(&mut part.sync());
            }
            if part.node.next_committed().is_none() && !part.node.has_ready() {
                break;
            }
            while part.node.next_committed().is_some() {
                part.node.applied();
            }
        }
        part.set_print();
        self.parts[place] = Arc::new(part);
        self.send(bounds, sent);
        self.drop_dead_letters(number);
        self.look_at(bounds, number);
    }

    /// Answers of a term that their receiver has durably left change nothing.
    fn drop_dead_letters(&mut self, number: u32) {
        let (me, left) = (
            voter(number),
            self.parts[number as usize - 1].disk.hard.term,
        );
        self.network.retain(|it| {
            let is_answer = matches!(
                it.message.body,
                Body::Ballot { .. }
                    | Body::Appended { .. }
                    | Body::Refused { .. }
                    | Body::Beat { .. }
            );
            it.message.to != me || it.message.term >= left || !is_answer
        });
    }

    fn look_at(&mut self, bounds: &Bounds, number: u32) {
        let mut past = (*self.past).clone();
        let node = self.node(number);
        let log = node.log();
        let term_at = |index: u64| log.term_at(LogIndex(index)).map(|term| term.0);
        let mut broken = None;
        if node.role() == Role::Leader {
            let term = node.term().0;
            let leader = *past.leaders.entry(term).or_insert(number);
            if leader != number {
                broken = Some(ELECTION);
            }
            // Another may have been elected later in an earlier term.
            let lacks = |(index, (known, since)): (u64, &(u64, u64))| {
                *since < term && term_at(index) != Some(*known)
            };
            if (1_u64..).zip(&past.committed).any(lacks) {
                broken = Some(COMPLETENESS);
            }
        }
        for index in 1..=log.committed().0 {
            let term = term_at(index).unwrap_or(0);
            match past.committed.get(index as usize - 1) {
                Some((known, _)) if *known != term => broken = Some(MACHINE),
                Some(_) => {}
                None => {
                    past.committed.push((term, node.term().0));
                    // Where disks lose what they had synced, it need not be there any more.
                    if bounds.losses == 0 && !self.is_on_a_majority(index, term) {
                        broken = Some(DURABILITY);
                    }
                }
            }
        }
        past.broken = past.broken.or(broken);
        if past.broken != self.past.broken
            || past.leaders != self.past.leaders
            || past.committed != self.past.committed
        {
            self.past = Arc::new(past);
        }
    }

    fn is_on_a_majority(&self, index: u64, term: u64) -> bool {
        let has = |part: &&Arc<Part>| {
            let entry = part.disk.entries.get(index as usize - 1);
            entry.is_some_and(|entry| entry.term.0 == term)
        };
        self.parts.iter().filter(has).count() * 2 > self.parts.len()
    }

    /// Index and term name one entry, and all before it (thesis 3.5).
    fn logs_match(&self) -> bool {
        let log = |part: &Arc<Part>| {
            let log = part.node.log();
            log.slice(log.base().0.next(), usize::MAX)
        };
        let logs: Vec<_> = self.parts.iter().map(log).collect();
        logs.iter().enumerate().all(|(place, one)| {
            logs[..place].iter().all(|other| {
                let shared = one.iter().zip(other).rposition(|(a, b)| a.term == b.term);
                shared.is_none_or(|last| one[..=last] == other[..=last])
            })
        })
    }
}

const ELECTION: &str = "election safety";
const MATCHING: &str = "log matching";
const COMPLETENESS: &str = "leader completeness";
const MACHINE: &str = "state machine safety";
const DURABILITY: &str = "what is committed is durable on a majority";
const PANIC: &str = "nothing panics";

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // Bugs are planted later: the way up to here is the same for all.
        let mut state = State::new(self);
        if self.begun > 0 {
            state.begin(self);
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.past.broken.is_some() {
            return;
        }
        for (number, part) in (1..).zip(&state.parts) {
            let node = &part.node;
            let leads = node.role() == Role::Leader;
            if !part.writes.is_empty() {
                actions.push(Action::Sync(number));
            }
            if !leads && node.term().0 < self.terms && number <= self.candidates {
                if state.silences > 0 {
                    actions.push(Action::Campaign(number, Why::Silence));
                }
                if state.orders > 0 && !node.is_recovering() {
                    actions.push(Action::Campaign(number, Why::Transfer));
                }
            }
            if leads && node.log().last_index().0 < self.entries {
                actions.push(Action::Propose(number));
            }
            if leads && state.beats > 0 {
                actions.push(Action::Beat(number));
            }
            if state.crashes > 0 && (!self.proofs || leads) {
                actions.push(Action::Crash(number));
            }
            // All who have elected member 1 are alike.
            let may_lose = number == 1 || number == self.begun;
            if state.losses > 0
                && may_lose
                && part.disk.doubt.is_none()
                && !part.disk.entries.is_empty()
            {
                for first in 1..=part.disk.entries.len() as u64 {
                    actions.push(Action::Lose(number, first));
                }
            }
            if let Some((dead, told)) = &state.dead
                && number != *dead
            {
                if !told.contains(&number) {
                    actions.push(Action::Died(number));
                } else if !leads && node.leader().is_none() && node.term().0 < self.terms {
                    actions.push(Action::StandIn(number));
                }
            }
        }
        for envelope in &state.network {
            // A term beyond the bound is no part of the model: repairs ask in one above all.
            if envelope.message.term.0 > self.terms + u64::from(self.losses) {
                continue;
            }
            actions.push(Action::Deliver(envelope.print));
            if state.doubles > 0 {
                actions.push(Action::Double(envelope.print));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        // Bugs are planted a thread, and the checker has its own.
        bugs::plant(self.bug);
        let mut state = before.clone();
        let done = catch_unwind(AssertUnwindSafe(|| state.take(self, action)));
        if done.is_err() {
            state = before.clone();
            let mut past = (*state.past).clone();
            past.broken = Some(PANIC);
            state.past = Arc::new(past);
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ELECTION, |_, state| is_kept(state, ELECTION)),
            Property::always(MATCHING, |_, state: &State| state.logs_match()),
            Property::always(COMPLETENESS, |_, state| is_kept(state, COMPLETENESS)),
            Property::always(MACHINE, |_, state| is_kept(state, MACHINE)),
            Property::always(DURABILITY, |_, state| is_kept(state, DURABILITY)),
            Property::always(PANIC, |_, state| is_kept(state, PANIC)),
        ]
    }
}

fn is_kept(state: &State, promise: &'static str) -> bool {
    state.past.broken != Some(promise)
}

impl State {
    /// Member 1 is elected by the first few, who get its no-op and a heartbeat; the others hear nothing.
    fn begin(&mut self, bounds: &Bounds) {
        let campaigns = |part: &mut Part| {
            part.node.campaign(Why::Transfer);
            Vec::new()
        };
        let beats = |part: &mut Part| {
            part.node.tick();
            Vec::new()
        };
        // Disks are quick so far.
        let quick = Bounds {
            slow_disks: false,
            ..*bounds
        };
        self.act(&quick, 1, campaigns);
        self.spread(&quick);
        self.act(&quick, 1, beats);
        self.spread(&quick);
    }

    fn spread(&mut self, bounds: &Bounds) {
        let hears = |it: &Envelope| it.message.to.node.0 <= bounds.begun;
        while let Some(place) = self.network.iter().position(hears) {
            let print = self.network[place].print;
            self.take(bounds, Action::Deliver(print));
        }
        self.network.clear();
    }

    fn take(&mut self, bounds: &Bounds, action: Action) {
        let step = |part: &mut Part, message: Message| {
            // What is refused was late.
            let _ = part.node.step(message);
            Vec::new()
        };
        match action {
            Action::Deliver(print) => {
                let place = self.network.iter().position(|it| it.print == print);
                let envelope = self.network.remove(place.expect("it is under way"));
                let message = Arc::unwrap_or_clone(envelope.message);
                let to = message.to.node.0;
                self.act(bounds, to, |part| step(part, message));
            }
            Action::Double(print) => {
                self.doubles -= 1;
                let mut network = self.network.iter();
                let envelope = network.find(|it| it.print == print);
                let message = (*envelope.expect("it is under way").message).clone();
                let to = message.to.node.0;
                self.act(bounds, to, |part| step(part, message));
            }
            Action::Sync(number) => self.act(bounds, number, Part::sync),
            Action::Campaign(number, why) => {
                match why {
                    Why::Silence => self.silences -= 1,
                    Why::Transfer => self.orders -= 1,
                }
                self.act(bounds, number, |part| {
                    part.node.campaign(why);
                    Vec::new()
                });
            }
            Action::Propose(number) => self.act(bounds, number, |part| {
                let proposal = Proposal {
                    kind: EntryKind::Data,
                    time: GroupTime(0),
                    payload: Bytes::from_static(b"x"),
                };
                // It hands over, at most.
                let _ = part.node.propose(proposal);
                Vec::new()
            }),
            Action::Beat(number) => {
                self.beats -= 1;
                self.act(bounds, number, |part| {
                    part.node.tick();
                    Vec::new()
                });
            }
            Action::Crash(number) => {
                self.crashes -= 1;
                if bounds.proofs {
                    self.dead = Some((number, Vec::new()));
                }
                self.act(bounds, number, |part| {
                    part.crash(number, bounds);
                    Vec::new()
                });
            }
            Action::Lose(number, first) => {
                self.losses -= 1;
                self.act(bounds, number, |part| {
                    part.disk.entries.truncate(first as usize - 1);
                    let last = part.disk.entries.last();
                    part.disk.hard = HardState {
                        term: last.map_or(Term(0), |entry| entry.term),
                        vote: None,
                        commit: LogIndex(0),
                    };
                    part.disk.doubt = Some(Doubt::default());
                    part.crash(number, bounds);
                    Vec::new()
                });
            }
            Action::Died(number) => {
                let (dead, told) = self.dead.as_mut().expect("somebody died");
                told.push(number);
                told.sort_unstable();
                let dead = voter(*dead);
                self.act(bounds, number, |part| {
                    part.node.died(dead);
                    Vec::new()
                });
            }
            Action::StandIn(number) => self.act(bounds, number, |part| {
                part.node.stand_in();
                Vec::new()
            }),
        }
    }
}

/// What a model came to.
#[derive(Debug)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// The longest way that was looked at.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Whether every state within the bounds was looked at.
    pub whole: bool,
    /// A promise that is broken, and how.
    pub broken: Option<(&'static str, String)>,
}

/// Looks at every state within the bounds, for as long as `limit`.
#[must_use]
pub fn check(bounds: Bounds, threads: usize, limit: Duration) -> Found {
    let begun = Instant::now();
    let checker = bounds.checker().threads(threads).timeout(limit);
    let checker = checker.finish_when(stateright::HasDiscoveries::Any);
    let checker = checker.spawn_bfs().join();
    let took = begun.elapsed();
    let broken = checker.discoveries().into_iter().next();
    let broken = broken.map(|(promise, path)| {
        let steps = path.into_vec();
        let mut text = String::new();
        for (state, action) in &steps {
            write!(text, "{state:?}").expect("a text takes everything");
            if let Some(action) = action {
                let action = told(state, action);
                writeln!(text, "-> {action}").expect("a text takes everything");
            }
        }
        (promise, text)
    });
    Found {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        whole: broken.is_none() && took < limit,
        took,
        broken,
    }
}

/// An action, with what is delivered.
fn told(state: &State, action: &Action) -> String {
    let (Action::Deliver(print) | Action::Double(print)) = action else {
        return format!("{action:?}");
    };
    let envelope = state.network.iter().find(|it| it.print == *print);
    let message = envelope.map_or_else(String::new, |it| show(&it.message));
    match action {
        Action::Double(_) => format!("arrives, and stays: {message}"),
        _ => format!("arrives: {message}"),
    }
}
