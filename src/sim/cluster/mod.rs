//! A cluster under simulated time: several nodes of several shards, their disks, the network between
//! them, clients, and what befalls them.
//!
//! # A run
//!
//! 1. Faults come, of the kinds that the seed has drawn ([`Fault`]).
//! 2. Faults end. A random majority is healed, of those whose disks are whole; the others stay as they
//!    are, cut off. Every group must make progress.
//! 3. All is healed. No more jobs come, and all are worked off; then every group is the same on all
//!    nodes, and no job that was acknowledged is missing.
//! 4. All nodes stop in order, start again, and have what they had.
//!
//! `judges` look at every engine after each turn.
//!
//! Disks may lose what they said was safe: those of a minority, or in some runs of all nodes. Such a run
//! ends after the first step: what was lost may be gone for good, and the judges have seen whether anybody
//! went on as if it were not. In some runs all logs are damaged at disjoint places once all is healed
//! (`helix`), and nothing may be gone.
//!
//! In half of the runs an operator makes, changes and deletes queues of several partitions, whose groups
//! any node may lead.
//!
//! Some clients are programs that use the client library ([`CoreClient`]), so that what it does by itself
//! is judged too; the others keep their session by hand ([`SimClient`]), and see what the library hides.
//!
//! Deliberately absent: more or fewer nodes than there were; and the network between them and the clients,
//! but that connections are late and break.

mod coverage;
mod faults;
mod helix;
mod judges;
mod network;
mod node;
mod options;
mod phases;
mod renewal;
mod report;
mod sockets;
mod traffic;

pub use coverage::Doing;
pub use options::{Fault, Plan};
pub use report::RunReport;

use super::agenda::Agenda;
use super::client::SimClient;
use super::core_client::CoreClient;
use super::disk::SimDisk;
use super::driver::{Begun, Out, Work, begin, owner_of};
use super::ledger::Ledger;
use super::operator::Operator;
use crate::base::ids::{ConnId, GroupId, LogIndex, ShardId};
use crate::base::limits::FRAME_BYTES_MAX;
use crate::base::prng::{Prng, mix};
use crate::base::units::Monotonic;
use crate::queue::MACHINE_VERSION;
use crate::queue::command::{Backoff, QueueSettings};
use crate::shard::effect::Effect;
use crate::shard::input::{Input, Loss};
use crate::shard::placement::home_group;
use crate::wire::frame::FrameDecoder;
use crate::wire::peer::{NodeBeat, encode_messages, encode_node_beat};
use bytes::{Bytes, BytesMut};
use judges::Judges;
use network::Way;
use node::{At, Node};
use options::Options;
use renewal::Renewal;
use sockets::{Happens, Socket};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use traffic::{Asker, Conn};

/// No run has so many events, and no turn of an engine so many steps.
const EVENTS_MAX: u64 = 5_000_000;
const STEPS_MAX: u32 = 10_000;
/// With disks that nobody can put right, it is watched for so long whether all stay safe.
const SAFE_FOR: Duration = Duration::from_secs(5);
/// Nodes that are asked to stop have stopped within this, or are killed.
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
/// After one turn in so many a state is compared.
const STATES_ONE_IN: u64 = 1_000;

enum Event {
    /// A disk is done.
    Done(At, Work),
    /// Something happened on a shard.
    Tell(At, Input),
    Arrive(usize, usize, u64, Bytes),
    Connect(usize, u32, usize),
    Broken(usize, u32, usize),
    Healed(usize, usize),
    Request(ConnId, Bytes),
    AskAgain(usize, u64),
    ClientActs(usize),
    LibraryActs(usize),
    /// Something may be due for a client that uses the library.
    LibraryTick(usize),
    /// Something happens to a connection of such a client.
    Socket(ConnId, Happens),
    OperatorActs,
    Fault(u64, Prng),
    /// A disk that is being replaced is looked after.
    Renew,
    /// A disk may have room again.
    Space(usize),
    /// What a dead process had on its way to the files of a disk lands.
    Late(usize),
    /// A node dies, if it is still this process.
    Die(usize, u32),
    /// The same, by a fault.
    Crash(usize, u32),
    /// All nodes die.
    PowerLoss,
    Start(usize),
}

/// A cluster in its world.
pub struct Cluster<'a> {
    seed: u64,
    options: Options,
    only: Option<BTreeSet<u64>>,
    next_fault: u64,
    /// The faults that happened, by their numbers.
    befallen: &'a mut Vec<(u64, Fault)>,
    prng: Prng,
    now: Monotonic,
    events: Agenda<Event>,
    /// Room for those of a turn.
    effects: Vec<Effect>,
    nodes: Vec<Node>,
    /// From each node to each, itself too.
    ways: Vec<Way>,
    next_conn: u64,
    conns: BTreeMap<ConnId, Conn>,
    clients: Vec<SimClient>,
    /// Those that use the client library.
    library: Vec<CoreClient>,
    sockets: BTreeMap<ConnId, Socket>,
    operator: Operator,
    /// Whom each asker takes for the leader of a group.
    leaders: BTreeMap<(Asker, GroupId), usize>,
    /// What every answer to a request must have seen.
    floors: BTreeMap<(Asker, u64), LogIndex>,
    /// Groups that made an entry for the world.
    probed: BTreeSet<GroupId>,
    ledger: Ledger,
    judges: Judges,
    defaults: QueueSettings,
    has_faults: bool,
    produces: bool,
    /// Clients that use the library ask nothing new.
    leaves: bool,
    /// Nodes that do not start again by themselves.
    stay_down: BTreeSet<usize>,
    renewal: Option<Renewal>,
    report: RunReport,
    teller: Option<&'a mut dyn FnMut(&str)>,
}

impl<'a> Cluster<'a> {
    /// Runs one seed to its end; `teller` is told what happens, a line each.
    ///
    /// # Panics
    /// If a promise is broken; the message says which.
    #[must_use]
    pub fn run(seed: u64, teller: Option<&'a mut dyn FnMut(&str)>) -> RunReport {
        Self::run_as(seed, &Plan::default(), teller)
    }

    /// Runs one seed as planned.
    ///
    /// # Panics
    /// If a promise is broken; the message says which.
    #[must_use]
    pub fn run_as(seed: u64, plan: &Plan, teller: Option<&'a mut dyn FnMut(&str)>) -> RunReport {
        let teller = teller.map(|teller| teller as &mut dyn FnMut(&str));
        Cluster::run_noting(seed, plan, teller, &mut Vec::new())
    }

    /// The same; the faults that happened are noted, by their numbers, also if it fails.
    ///
    /// # Panics
    /// If a promise is broken; the message says which.
    #[must_use]
    pub fn run_noting(
        seed: u64,
        plan: &Plan,
        teller: Option<&'a mut dyn FnMut(&str)>,
        befallen: &'a mut Vec<(u64, Fault)>,
    ) -> RunReport {
        let mut cluster = Self::new(seed, plan, teller, befallen);
        cluster.meet_faults();
        let harmed = cluster.nodes.iter().filter(|node| node.is_harmed).count();
        if 2 * harmed < cluster.options.nodes {
            cluster.heal_a_majority();
            cluster.heal_all();
            if harmed == 0 && cluster.options.helix {
                cluster.survive_a_helix();
            }
            cluster.drain();
            cluster.stop_and_start();
        } else {
            cluster.heal_all();
            cluster.go_on_for(SAFE_FOR);
        }
        for node in 0..cluster.options.nodes {
            cluster.count(node);
        }
        let mut report = cluster.report;
        for client in &cluster.library {
            report.add_library(client);
        }
        report.bases_compared = cluster.judges.bases_compared;
        report.disks_read = cluster.judges.disks_read;
        report.acked = cluster.ledger.acked();
        report.finished = cluster.ledger.finished();
        report.operated = cluster.operator.rounds;
        report.terms_led = cluster.judges.terms_led;
        report.states_compared = cluster.judges.states_compared;
        report.simulated_ms = cluster.now.0 / 1_000_000;
        report.version_raised = cluster.options.machine_version < MACHINE_VERSION;
        report
    }

    fn new(
        seed: u64,
        plan: &Plan,
        teller: Option<&'a mut dyn FnMut(&str)>,
        befallen: &'a mut Vec<(u64, Fault)>,
    ) -> Self {
        let mut prng = Prng::new(mix(seed));
        let options = Options::draw(&mut prng, seed, plan);
        let defaults = QueueSettings {
            max_attempts: 1_000,
            lease_ms: 3_000,
            backoff: Backoff {
                cap_ms: 2_000,
                ..Backoff::default()
            },
            ..QueueSettings::default()
        };
        let node_address = |place| node::address(node::voter(place).node, 0);
        let (mut clients, mut library) = (Vec::new(), Vec::new());
        for number in 0..options.clients {
            let name = format!("queue-{}", number % 3);
            let retain = [None, Some(0), Some(20)][(number % 3) as usize];
            let settings = retain.map(|retain| QueueSettings { retain, ..defaults });
            let payload_bytes = options.payload_bytes;
            if options.uses_library(number) {
                let addresses = (0..options.nodes).map(node_address).collect();
                // Where a group has stopped, nobody names its leader: who knows that node alone stays there.
                let fewest = 1 + usize::from(options.faults.iter().any(|fault| fault.is_harm()));
                let addresses = (addresses, fewest);
                let number = (seed, number);
                let client = CoreClient::new(number, &name, settings, payload_bytes, addresses);
                library.push(client);
            } else {
                let home = home_group(&name, options.groups);
                let client = SimClient::new(number, &name, home, settings);
                clients.push(client.with_payloads(payload_bytes));
            }
        }
        let mut cluster = Self {
            seed,
            only: plan.only.clone(),
            next_fault: 0,
            befallen,
            clients,
            library,
            sockets: BTreeMap::new(),
            nodes: (0..options.nodes)
                .map(|place| Node::new(place, &options, &mut prng))
                .collect(),
            ways: (0..options.nodes * options.nodes)
                .map(|_| Way::default())
                .collect(),
            options,
            prng,
            now: Monotonic(1_000_000_000),
            events: Agenda::default(),
            effects: Vec::new(),
            next_conn: 0,
            conns: BTreeMap::new(),
            operator: Operator::default(),
            leaders: BTreeMap::new(),
            floors: BTreeMap::new(),
            probed: BTreeSet::new(),
            ledger: Ledger::default(),
            judges: Judges::default(),
            defaults,
            has_faults: true,
            produces: true,
            leaves: false,
            stay_down: BTreeSet::new(),
            renewal: None,
            report: RunReport::default(),
            teller,
        };
        let options = format!("{:?}", cluster.options);
        cluster.say(|| options);
        for node in 0..cluster.options.nodes {
            cluster.start(node);
        }
        for client in 0..cluster.clients.len() {
            cluster.schedule(Duration::from_millis(1), Event::ClientActs(client));
        }
        for client in 0..cluster.library.len() {
            cluster.schedule(Duration::from_millis(1), Event::LibraryActs(client));
        }
        if cluster.options.operates {
            cluster.schedule(Duration::from_millis(1), Event::OperatorActs);
        }
        cluster
    }

    /// Tells what happens, if anybody listens.
    fn say(&mut self, text: impl FnOnce() -> String) {
        let now = self.now.0;
        if let Some(teller) = &mut self.teller {
            let (seconds, micros) = (now / 1_000_000_000, now / 1_000 % 1_000_000);
            teller(&format!("{seconds:5}.{micros:06} {}", text()));
        }
    }

    /// Takes a word into the trace.
    fn note(&mut self, word: u64) {
        self.report.trace = mix(self.report.trace ^ word.wrapping_add(self.now.0));
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.events.schedule(self.now.plus(after), event);
    }

    // Processes.

    /// The process of a node starts, if none runs.
    fn start(&mut self, node: usize) {
        if self.nodes[node].runs() || self.nodes[node].waits {
            return;
        }
        if self.prng.chance(1, 2) {
            // The binary is newer now.
            self.nodes[node].machine_version = MACHINE_VERSION;
        }
        let before = self.nodes[node].shards();
        let (options, defaults) = (&self.options, &self.defaults);
        let damage = self.nodes[node].start(options, defaults, self.now, &mut self.prng);
        self.report.damage_found += u64::from(damage);
        let shards = self.nodes[node].shards();
        if shards != before {
            self.report.redistributed += 1;
            self.say(|| format!("node {} has {shards} shards now, {before} before", node + 1));
        }
        let start = self.nodes[node].start;
        self.say(|| format!("node {} starts for the {start}. time", node + 1));
        self.connect_all(node);
        for shard in 0..shards {
            self.pump(node, shard);
        }
    }

    /// The process of a node is gone.
    fn die(&mut self, node: usize) {
        if !self.nodes[node].runs() {
            return;
        }
        self.say(|| format!("node {} is gone", node + 1));
        self.count(node);
        if self.nodes[node].loads() {
            self.report.crashes_in_recovery += 1;
            self.has_met(Fault::Crash, Doing::Loads);
        }
        self.lose_lied(node);
        self.nodes[node].die(&mut self.prng);
        let late = Duration::from_micros(self.prng.below(20_000));
        self.schedule(late, Event::Late(node));
        self.conns.retain(|_, conn| conn.node != node);
        self.end_sockets(node);
        self.hang_up(node);
        if !self.stay_down.contains(&node) {
            let pause = match self.prng.below(3) {
                0 => self.prng.below(5),
                1 => self.prng.below(300),
                _ => self.prng.below(4_000),
            };
            self.schedule(Duration::from_millis(pause), Event::Start(node));
        }
    }

    /// A process that stands still goes on: what has waited for it happens now, in its order.
    fn resume(&mut self, node: usize) {
        let until = std::mem::replace(&mut self.nodes[node].paused_until, self.now);
        if until <= self.now {
            return;
        }
        let mut events = std::mem::take(&mut self.events);
        events.bring(until, self.now, |event| self.place(event) == Some(node));
        self.events = events;
    }

    /// The process of a node is asked to stop.
    fn stop(&mut self, node: usize) {
        if self.nodes[node].runs() {
            self.say(|| format!("node {} is asked to stop", node + 1));
            for shard in 0..self.nodes[node].shards() {
                self.tell(node, shard, Input::StopRequested);
            }
            let start = self.nodes[node].start;
            self.schedule(STOPPED_WITHIN, Event::Die(node, start));
        }
    }

    /// What the engines of a node have counted.
    fn count(&mut self, node: usize) {
        for engine in &self.nodes[node].engines {
            let counters = engine.counters();
            self.report.rounds += counters.checkpoint_rounds_total;
            self.report.installs += counters.checkpoints_installed_total;
            self.report.entries_read += counters.entries_sent_from_log_total;
            self.report.handed_over += counters.raft_groups_handed_over_total;
            self.report.pages_read += counters.pages_read_total;
            self.report.mended += counters.groups_mended_total;
            self.report.scrub_passes += counters.scrub_passes_total;
            self.report.scrub_found += counters.scrub_damaged_total;
            self.report.tails_cut += counters.log_tails_cut_total;
            self.report.changes_sent += counters.partition_changes_sent_total;
            self.report.halted += engine.halted().count() as u64;
        }
    }

    // Events.

    /// The engine whose turn is next without an event, and when.
    fn next_deadline(&self) -> Option<(Monotonic, usize, u16)> {
        let of_node = |(place, node): (usize, &Node)| {
            let deadlines = node.deadlines.iter().enumerate();
            let (at, shard) = deadlines
                .filter_map(|(shard, at)| Some(((*at)?, shard as u16)))
                .min()?;
            Some((at.max(node.paused_until), place, shard))
        };
        self.nodes.iter().enumerate().filter_map(of_node).min()
    }

    /// One event.
    fn step(&mut self) {
        assert!(
            self.events.scheduled() < EVENTS_MAX,
            "there is no end of events"
        );
        let next = self.events.next();
        let deadline = self.next_deadline();
        if let Some((at, node, shard)) = deadline
            && next.is_none_or(|next| at <= next)
        {
            self.now = self.now.max(at);
            self.nodes[node].deadlines[usize::from(shard)] = None;
            return self.tell(node, shard, Input::TimePassed);
        }
        let due = self.events.pop().expect("nodes beat for ever");
        self.now = self.now.max(due.at);
        if let Some(node) = self.place(&due.what)
            && self.nodes[node].paused_until > self.now
        {
            let until = self.nodes[node].paused_until;
            return self.events.put_off(due, until);
        }
        self.note(due.number);
        match *due.what {
            Event::Done(at, work) => self.on_done(at, work),
            Event::Tell(at, input) => {
                if self.is_current(at) {
                    self.tell(at.node, at.shard, input);
                }
            }
            Event::Arrive(from, to, conn, bytes) => self.arrive(from, to, conn, bytes),
            Event::Connect(from, start, to) => self.connect(from, start, to),
            Event::Broken(from, start, to) => self.on_broken(from, start, to),
            Event::Healed(from, to) => self.heal(from, to),
            Event::Request(conn, body) => self.receive(conn, &body),
            Event::AskAgain(client, id) => self.on_ask_again(client, id),
            Event::ClientActs(client) => self.client_acts(client),
            Event::LibraryActs(client) => self.library_acts(client),
            Event::LibraryTick(client) => self.library_ticks(client),
            Event::Socket(number, happens) => self.on_socket(number, happens),
            Event::OperatorActs => self.operator_acts(),
            Event::Fault(number, prng) => self.on_fault(number, prng),
            Event::Space(node) => self.on_space(node),
            Event::Late(node) => {
                let disks = &mut self.nodes[node].disks;
                disks.iter_mut().for_each(SimDisk::land_late);
            }
            Event::PowerLoss => self.lose_power(),
            Event::Die(node, start) => {
                if self.nodes[node].start == start {
                    self.die(node);
                }
            }
            Event::Crash(node, start) => {
                let may_die = self.liar().is_none_or(|liar| liar == node);
                if self.nodes[node].start == start && may_die {
                    self.die(node);
                }
            }
            Event::Renew => self.on_renew(),
            Event::Start(node) => {
                if !self.stay_down.contains(&node) {
                    self.start(node);
                }
            }
        }
    }

    /// The node that something happens to.
    fn place(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Done(at, _) | Event::Tell(at, _) => Some(at.node),
            Event::Arrive(_, to, ..) => Some(*to),
            Event::Connect(from, ..) | Event::Broken(from, ..) => Some(*from),
            Event::Request(conn, _) => self.conns.get(conn).map(|conn| conn.node),
            Event::Socket(number, happens) => self.place_of_socket(*number, happens),
            _ => None,
        }
    }

    fn is_current(&self, at: At) -> bool {
        self.nodes[at.node].runs() && self.nodes[at.node].start == at.start
    }

    fn on_done(&mut self, at: At, work: Work) {
        if !self.is_current(at) {
            return;
        }
        let has_no_room = self.options.rounds_fail && self.prng.chance(1, 3);
        let node = &mut self.nodes[at.node];
        let is_full = node.full_until > self.now;
        let fails = work.may_fail() && (is_full || has_no_room && self.has_faults);
        let owner = owner_of(&node.identity(at.shard));
        let disk: &mut SimDisk = &mut node.disks[usize::from(at.shard)];
        disk.reads_fail = node.unreadable_until > self.now;
        node.was_unreadable |= disk.reads_fail;
        let write_fails = matches!(work, Work::Batch(_)) && std::mem::take(&mut node.write_fails);
        let input = if write_fails {
            match work.fail_write(disk, &mut self.prng) {
                Some(input) => input,
                None => return self.die(at.node),
            }
        } else if fails {
            work.fail(disk)
        } else {
            work.finish(disk, &owner)
        };
        let bases = disk.kept.take_bases();
        self.judges.compare_bases(&bases);
        self.tell(at.node, at.shard, input);
    }

    /// An engine is told what happened, and does what it wants to.
    fn tell(&mut self, node: usize, shard: u16, input: Input) {
        let place = &mut self.nodes[node];
        let now = place.clock(self.now);
        if let Some(engine) = place.engines.get_mut(usize::from(shard)) {
            engine.handle(now, input);
            self.pump(node, shard);
        }
    }

    fn pump(&mut self, node: usize, shard: u16) {
        let slot = usize::from(shard);
        let mut effects = std::mem::take(&mut self.effects);
        for step in 0.. {
            assert!(step < STEPS_MAX, "an engine has no end of effects");
            self.nodes[node].engines[slot].drain(&mut effects);
            if effects.is_empty() {
                break;
            }
            for effect in effects.drain(..) {
                self.perform(node, shard, effect);
            }
        }
        self.effects = effects;
        let place = &mut self.nodes[node];
        let soonest = self.now.plus(Duration::from_micros(1));
        let deadline = place.engines[slot].next_deadline();
        place.deadlines[slot] = deadline.map(|at| place.moment(at).max(soonest));
        self.judge(node, shard);
    }

    fn judge(&mut self, node: usize, shard: u16) {
        let place = &self.nodes[node];
        let groups = judges::groups(place, &self.options, shard);
        let clock = (self.now, self.options.drift_per_mille);
        let renewed = self.renewed();
        let news = self.judges.look(place, shard, groups, clock);
        for (group, index) in news {
            self.judges
                .is_on_disks(&self.nodes, renewed, (group, index));
        }
        if self.prng.chance(1, STATES_ONE_IN) {
            let groups: Vec<_> = judges::groups(place, &self.options, shard).collect();
            let group = groups[self.prng.below(groups.len() as u64) as usize];
            for place in self.nodes.iter().filter(|place| place.runs()) {
                let engine = place.engine_of(group).expect("it runs");
                let could_read = !place.is_harmed && !place.was_unreadable;
                self.judges.compare(place.me, engine, group, could_read);
            }
        }
    }

    fn perform(&mut self, node: usize, shard: u16, effect: Effect) {
        let start = self.nodes[node].start;
        let here = At { node, start, shard };
        let soon = Duration::from_micros(2);
        let begun = begin(&mut self.nodes[node].disks[usize::from(shard)], effect);
        let out = match begun {
            Begun::Work(work) => return self.begin(here, work),
            Begun::Out(out) => out,
            Begun::Done => return,
        };
        let at = |shard: ShardId| At {
            shard: shard.0,
            ..here
        };
        match out {
            Out::Reply(to, reply) if to.is_engine() => {
                let answered = Input::Answered { reply };
                self.schedule(soon, Event::Tell(at(to.shard), answered));
            }
            Out::Reply(to, reply) => self.on_reply(to, &reply),
            Out::Messages(to, messages) => {
                for message in &messages {
                    let place = &self.nodes[node];
                    self.judges.hear(place, &self.options, shard, message);
                }
                let place = to.node.0 as usize - 1;
                let way = &self.ways[self.way_between(node, place)];
                // There is no connection to a disk that is gone.
                if way.conn.is_some_and(|(_, link)| link.to == to) {
                    let mut frames = BytesMut::new();
                    if way.told != self.nodes[node].durable().lsns {
                        self.beat(node, place, &mut frames);
                    }
                    encode_messages(&messages, &mut frames);
                    self.send(node, place, frames.freeze());
                }
            }
            Out::Beat(to) => {
                let place = to.0 as usize - 1;
                if self.ways[self.way_between(node, place)].conn.is_some() {
                    let mut frames = BytesMut::new();
                    self.beat(node, place, &mut frames);
                    self.send(node, place, frames.freeze());
                }
            }
            Out::Silent(peer) => {
                self.say(|| format!("node {} hears nothing of {}", node + 1, peer.node));
                for shard in 0..self.nodes[node].shards() {
                    let loss = Loss::Silent;
                    let lost = Input::PeerLost { peer, loss };
                    self.schedule(soon, Event::Tell(at(ShardId(shard)), lost));
                }
            }
            Out::Heard(peer) => {
                let heard = Input::PeerHeard { peer };
                self.schedule(soon, Event::Tell(at(ShardId(0)), heard));
            }
            Out::Clock(clock) => {
                for shard in 0..self.nodes[node].shards() {
                    let told = Input::VotersClock(clock);
                    self.schedule(soon, Event::Tell(at(ShardId(shard)), told));
                }
            }
            Out::Members(members) => {
                self.nodes[node].members.clone_from(&members);
                let shards = 0..self.nodes[node].shards();
                for shard in shards.filter(|other| *other != shard) {
                    let members = members.clone();
                    let told = Input::ClusterMembers(members);
                    self.schedule(soon, Event::Tell(at(ShardId(shard)), told));
                }
            }
            Out::VoterSets(sets) => {
                let shard = ShardId(shard);
                let told = Input::VoterSets { shard, sets };
                self.schedule(soon, Event::Tell(at(ShardId(0)), told));
            }
            Out::Forward(to, from, request) => {
                let forwarded = Input::ClientRequest {
                    from,
                    request,
                    payload: None,
                };
                self.schedule(soon, Event::Tell(at(to), forwarded));
            }
            Out::Closed(to, from) => {
                let closed = Input::ClientClosed { from };
                self.schedule(soon, Event::Tell(at(to), closed));
            }
            Out::Stopped => {
                let place = &mut self.nodes[node];
                place.stopped.insert(shard);
                if place.stopped.len() == place.engines.len() {
                    self.schedule(soon, Event::Die(node, here.start));
                }
            }
        }
    }

    /// The disk works on something.
    fn begin(&mut self, at: At, work: Work) {
        let is_slow = self.nodes[at.node].slow_until > self.now && self.prng.chance(1, 5);
        let slow = if self.prng.chance(1, 4) { 3_000 } else { 200 };
        let typical = work.typical_us() * if is_slow { slow } else { 1 };
        let mut delay = Duration::from_micros(1 + self.prng.below(2 * typical));
        if matches!(work, Work::Segment(_)) {
            let ready = &mut self.nodes[at.node].segment_at[usize::from(at.shard)];
            *ready = (*ready).max(self.now).plus(delay);
            delay = ready.since(self.now);
        }
        self.schedule(delay, Event::Done(at, work));
    }

    fn beat(&mut self, node: usize, to: usize, frames: &mut BytesMut) {
        let between = self.way_between(node, to);
        let way = &mut self.ways[between];
        way.beats += 1;
        let beat = NodeBeat {
            draining: self.nodes[node].takes_no_leads(),
            nr: way.beats,
            wall: self.nodes[node].clock(self.now).wall,
            durable: self.nodes[node].durable(),
        };
        encode_node_beat(&beat, frames);
        way.told = beat.durable.told();
    }
}

fn unframe(bytes: &BytesMut) -> Bytes {
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(FRAME_BYTES_MAX);
    decoder.push(bytes);
    let frame = decoder.next().expect("a frame is decoded as it was sent");
    frame.expect("a whole frame was sent").body
}
