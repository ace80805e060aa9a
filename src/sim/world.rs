//! Virtual time, one event heap, one random generator; the real engine of one shard in the middle.

use super::agenda::Agenda;
use super::client::{Audit, SimClient};
use super::disk::SimDisk;
use super::driver::{self, Begun, Out, Work, owner_of};
use super::ledger::Ledger;
use super::operator::Operator;
use crate::base::checksum::Hash128;
use crate::base::ids::{ClusterId, ConnId, DiskId, NodeId, ShardId};
use crate::base::limits::FRAME_BYTES_MAX;
use crate::base::members::ClusterMembers;
use crate::base::prng::Prng;
use crate::base::units::{Monotonic, Now, WallTime};
use crate::queue::MACHINE_VERSION;
use crate::queue::command::{Backoff, Outcome, QueueSettings, Rejection};
use crate::shard::config::ShardConfig;
use crate::shard::effect::Effect;
use crate::shard::engine::ShardEngine;
use crate::shard::input::{Input, Origin};
use crate::shard::placement::home_group;
use crate::wal::writer::LogIdentity;
use crate::wire::client::{Received, decode_reply, encode_reply, encode_request, receive_request};
use crate::wire::frame::FrameDecoder;
use crate::wire::message::{Reply, ReplyBody, Request, RequestBody};
use bytes::{Bytes, BytesMut};
use std::time::Duration;

/// Request ids of the world's own questions.
const AUDIT_ID: u64 = 1 << 62;
/// The connection over which the world asks them.
const AUDITOR: Origin = Origin {
    shard: ShardId(0),
    conn: ConnId(1 << 62),
};
/// The operator's connection.
const OPERATOR: Origin = Origin {
    shard: ShardId(0),
    conn: ConnId(1 << 61),
};

/// What a run may do; drawn from the seed.
#[derive(Clone, Debug)]
struct Options {
    clients: u64,
    steps: u64,
    crash_one_in: u64,
    groups: u32,
    segment_bytes: usize,
    checkpoint_log_bytes: u64,
    scrub_period: Option<Duration>,
    slow_disk: bool,
    rounds_fail: bool,
    machine_version: u16,
}

impl Options {
    fn draw(prng: &mut Prng, seed: u64) -> Self {
        Self {
            clients: 1 + prng.below(5),
            steps: 400 + prng.below(2_400),
            crash_one_in: 60 + prng.below(400),
            groups: 1 << prng.below(4),
            segment_bytes: 256 << 10 << prng.below(3),
            checkpoint_log_bytes: 128 << 10 << prng.below(5),
            scrub_period: driver::scrub_period(seed),
            slow_disk: prng.chance(1, 3),
            rounds_fail: prng.chance(1, 4),
            machine_version: if prng.chance(1, 4) {
                1
            } else {
                MACHINE_VERSION
            },
        }
    }
}

enum Event {
    Done(Work),
    ClientActs(usize),
    OperatorActs,
    Deadline,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunReport {
    /// Enqueues acknowledged.
    pub acked: usize,
    /// Jobs finished for sure.
    pub finished: usize,
    /// Crashes.
    pub crashes: u64,
    /// Crashes before the node served again.
    pub crashes_in_recovery: u64,
    /// Checkpoint rounds published.
    pub rounds: u64,
    /// Pages that were on the disk alone and needed.
    pub pages_read: u64,
    /// Times that all that is stored was looked at.
    pub scrub_passes: u64,
    /// Torn tails cut.
    pub tails_cut: u64,
    /// Queues made, changed and deleted by the operator.
    pub operated: u64,
    /// Virtual time, in milliseconds.
    pub simulated_ms: u64,
    /// The hash of everything that clients were told.
    pub trace: Hash128,
}

/// One node in its world.
pub struct World {
    options: Options,
    prng: Prng,
    now: Monotonic,
    wall_ms: u64,
    disk: SimDisk,
    engine: ShardEngine,
    start_number: u32,
    events: Agenda<Event>,
    /// When the last segment asked for is ready.
    segment_at: Monotonic,
    /// When the engine wants to be called although nothing happens.
    deadline: Option<Monotonic>,
    clients: Vec<SimClient>,
    /// The connection of each client, made anew at each crash and when it closes.
    conns: Vec<ConnId>,
    next_conn: u64,
    operator: Operator,
    ledger: Ledger,
    audit: Audit,
    audit_answers: usize,
    report: RunReport,
    stopped: bool,
}

impl World {
    /// Runs one seed from an empty disk to a drained queue and a clean stop.
    ///
    /// # Panics
    /// If a promise is broken; the message says which.
    #[must_use]
    pub fn run(seed: u64) -> RunReport {
        let mut world = Self::new(seed);
        for step in 0..world.options.steps {
            world.step(true);
            if world.prng.chance(1, world.options.crash_one_in) {
                world.crash();
            }
            if step % 256 == 255 && world.prng.chance(1, 2) {
                world.wall_ms += world.prng.below(200_000);
            }
        }
        world.crash();
        world.drain();
        world.stop();
        world.restart();
        world.serve();
        world.audit();
        world.report.acked = world.ledger.acked();
        world.report.finished = world.ledger.finished();
        world.report.operated = world.operator.rounds;
        world.report.simulated_ms = world.now.0 / 1_000_000;
        world.report
    }

    fn new(seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        let options = Options::draw(&mut prng, seed);
        let mut disk = SimDisk::new(options.segment_bytes);
        let now = Monotonic(1_000_000_000);
        let engine = open(&options, &mut disk, 1, now, 1_700_000_000_000);
        let clients = (0..options.clients)
            .map(|number| {
                let name = format!("queue-{}", number % 3);
                let home = home_group(&name, options.groups);
                SimClient::new(number, &name, home, settings_of(number % 3))
            })
            .collect();
        let mut world = Self {
            options,
            prng,
            now,
            wall_ms: 1_700_000_000_000,
            disk,
            engine,
            start_number: 1,
            events: Agenda::default(),
            segment_at: now,
            deadline: None,
            clients,
            conns: Vec::new(),
            next_conn: 1,
            operator: Operator::default(),
            ledger: Ledger::default(),
            audit: Vec::new(),
            audit_answers: 0,
            report: RunReport::default(),
            stopped: false,
        };
        world.start_clients();
        world.pump();
        world
    }

    /// Every client connects and begins to act.
    fn start_clients(&mut self) {
        self.conns.clear();
        for client in 0..self.clients.len() {
            self.conns.push(ConnId(self.next_conn));
            self.next_conn += 1;
            self.schedule(Duration::from_micros(10), Event::ClientActs(client));
        }
        self.schedule(Duration::from_micros(10), Event::OperatorActs);
    }

    fn clock(&self) -> Now {
        Now {
            mono: self.now,
            wall: WallTime(self.wall_ms + self.now.0 / 1_000_000),
        }
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.events.schedule(self.now.plus(after), event);
    }

    fn delay(&mut self, typical_us: u64) -> Duration {
        let slow = if self.options.slow_disk && self.prng.chance(1, 10) {
            50
        } else {
            1
        };
        Duration::from_micros(1 + self.prng.below(typical_us * 2 * slow))
    }

    /// One event.
    fn step(&mut self, produce: bool) {
        let next = self.events.next();
        let event = if self
            .deadline
            .is_some_and(|at| next.is_none_or(|next| at <= next))
        {
            self.now = self
                .now
                .max(self.deadline.take().expect("it was just seen"));
            Event::Deadline
        } else {
            let due = self.events.pop().expect("clients act for ever");
            self.now = self.now.max(due.at);
            *due.what
        };
        match event {
            Event::Done(work) => {
                let fails = work.may_fail() && self.options.rounds_fail && self.prng.chance(1, 3);
                let input = if fails {
                    work.fail(&mut self.disk)
                } else {
                    work.finish(&mut self.disk, &owner_of(&identity()))
                };
                self.tell(input);
            }
            Event::ClientActs(client) => self.client_acts(client, produce),
            Event::OperatorActs => self.operator_acts(produce),
            Event::Deadline => self.tell(Input::TimePassed),
        }
        self.pump();
    }

    fn client_acts(&mut self, number: usize, produce: bool) {
        if self.prng.chance(1, 100) {
            self.reconnect(number);
        }
        let client = &mut self.clients[number];
        let again = self.prng.chance(1, 20);
        let mut requests = if again { client.resend() } else { Vec::new() };
        requests.extend(client.act(&mut self.prng, &mut self.ledger, produce));
        for (id, body) in requests {
            let from = self.origin(number);
            self.ask(from, id, body);
        }
        let pause = Duration::from_micros(1 + self.prng.below(8_000));
        self.schedule(pause, Event::ClientActs(number));
    }

    fn operator_acts(&mut self, begin: bool) {
        let groups = self.options.groups;
        let home = |name: &str| home_group(name, groups);
        if let Some((id, body)) = self.operator.act(&mut self.prng, home, begin) {
            self.ask(OPERATOR, id, body);
        }
        let pause = Duration::from_micros(1 + self.prng.below(20_000));
        self.schedule(pause, Event::OperatorActs);
    }

    fn origin(&self, client: usize) -> Origin {
        Origin {
            shard: ShardId(0),
            conn: self.conns[client],
        }
    }

    /// The connection of a client breaks, and it connects again.
    fn reconnect(&mut self, client: usize) {
        let from = self.origin(client);
        self.tell(Input::ClientClosed { from });
        self.conns[client] = ConnId(self.next_conn);
        self.next_conn += 1;
        for (id, body) in self.clients[client].resend() {
            let from = self.origin(client);
            self.ask(from, id, body);
        }
    }

    /// Sends a request through the real codec.
    fn ask(&mut self, from: Origin, id: u64, body: RequestBody) {
        let mut bytes = BytesMut::new();
        encode_request(&Request { id, body }, &mut bytes);
        let received = receive_request(&unframe(&bytes));
        let Received { request, payload } = received.expect("a request is decoded as it was sent");
        self.tell(Input::ClientRequest {
            from,
            request,
            payload,
        });
    }

    fn tell(&mut self, input: Input) {
        let now = self.clock();
        self.engine.handle(now, input);
    }

    /// Performs what the engine wants, until it wants nothing.
    fn pump(&mut self) {
        let mut effects = Vec::new();
        loop {
            self.engine.drain(&mut effects);
            if effects.is_empty() {
                break;
            }
            for effect in effects.drain(..) {
                self.perform(effect);
            }
        }
        let soonest = self.now.plus(Duration::from_micros(1));
        self.deadline = self.engine.next_deadline().map(|at| at.max(soonest));
    }

    fn perform(&mut self, effect: Effect) {
        match driver::begin(&mut self.disk, effect) {
            Begun::Work(work) => {
                let mut delay = self.delay(work.typical_us());
                if matches!(work, Work::Segment(_)) {
                    self.segment_at = self.segment_at.max(self.now).plus(delay);
                    delay = self.segment_at.since(self.now);
                }
                self.schedule(delay, Event::Done(work));
            }
            Begun::Out(Out::Reply(to, reply)) => self.on_reply(to, &reply),
            Begun::Out(Out::Stopped) => self.stopped = true,
            // There is no other shard.
            Begun::Out(Out::Members(_) | Out::VoterSets(_)) => {}
            Begun::Out(other) => panic!("one node of one shard has nobody for {other:?}"),
            Begun::Done => {}
        }
    }

    /// Delivers a reply through the real codec.
    fn on_reply(&mut self, to: Origin, reply: &Reply) {
        let mut bytes = BytesMut::new();
        encode_reply(reply, &mut bytes);
        let mut seen = self.report.trace.0.to_vec();
        seen.extend_from_slice(&bytes);
        self.report.trace = Hash128::of(&seen);
        let decoded = decode_reply(&unframe(&bytes)).expect("a reply is decoded as it was sent");
        assert_eq!(&decoded, reply, "a reply changed on its way");
        if decoded.id >= AUDIT_ID {
            return self.on_audit_reply(&decoded);
        }
        if to == OPERATOR {
            return self.operator.on_reply(&decoded);
        }
        if let Some(client) = self.conns.iter().position(|conn| *conn == to.conn) {
            self.clients[client].on_reply(decoded, &mut self.ledger);
        }
    }

    fn on_audit_reply(&mut self, reply: &Reply) {
        let at = usize::try_from(reply.id - AUDIT_ID).expect("few jobs");
        let (job, live) = self.audit[at];
        match &reply.body {
            ReplyBody::Job(view) => {
                assert!(live && view.id == job, "job {job} was acked and is back");
            }
            ReplyBody::Outcome(Outcome::Rejected(Rejection::Finished)) | ReplyBody::Finished(_) => {
                assert!(!live, "job {job} was acknowledged and is lost");
            }
            other => panic!("job {job} (live: {live}): {other:?}"),
        }
        self.audit_answers += 1;
    }

    /// The process dies and starts again, perhaps dying on the way.
    fn crash(&mut self) {
        self.restart();
        while self.prng.chance(1, 3) {
            for _ in 0..self.prng.below(20) {
                if self.events.next().is_none() || self.engine.serving() {
                    break;
                }
                self.step(false);
            }
            if !self.engine.serving() {
                self.report.crashes_in_recovery += 1;
            }
            self.restart();
        }
        self.serve();
        self.audit();
        if self.prng.chance(1, 2) {
            // The binary is newer now.
            self.options.machine_version = MACHINE_VERSION;
        }
        self.start_clients();
        if let Some((id, body)) = self.operator.resend() {
            self.ask(OPERATOR, id, body);
        }
        for number in 0..self.clients.len() {
            for (id, body) in self.clients[number].resend() {
                let from = self.origin(number);
                self.ask(from, id, body);
            }
        }
        self.pump();
    }

    fn restart(&mut self) {
        self.report.crashes += 1;
        self.report.rounds += self.engine.counters().checkpoint_rounds_total;
        self.report.pages_read += self.engine.counters().pages_read_total;
        self.report.scrub_passes += self.engine.counters().scrub_passes_total;
        let damaged = self.engine.counters().scrub_damaged_total;
        assert!(
            damaged == 0,
            "{damaged} stored parts are found to be damaged, and nothing was done to the disk"
        );
        self.events = Agenda::default();
        self.disk.crash(&mut self.prng);
        self.now = self.now.plus(Duration::from_millis(self.prng.below(500)));
        self.start_number += 1;
        let wall = self.clock().wall.0;
        self.engine = open(
            &self.options,
            &mut self.disk,
            self.start_number,
            self.now,
            wall,
        );
        self.report.tails_cut += self.engine.counters().log_tails_cut_total;
        self.stopped = false;
        self.pump();
    }

    /// Runs until every group serves.
    fn serve(&mut self) {
        let deadline = self.now.plus(Duration::from_secs(30));
        while !self.engine.serving() {
            assert!(self.now < deadline, "not serving 30 s after the start");
            self.step(false);
        }
        let halted: Vec<_> = self.engine.halted().collect();
        assert!(
            halted.is_empty(),
            "groups stopped although nothing was damaged: {halted:?}"
        );
    }

    /// Asks for every job that must be there, and for every one that must not.
    fn audit(&mut self) {
        self.audit = self.ledger.audit().collect();
        self.audit_answers = 0;
        for (at, (job, _)) in self.audit.clone().into_iter().enumerate() {
            let from = AUDITOR;
            self.ask(from, AUDIT_ID + at as u64, RequestBody::GetJob { job });
        }
        self.pump();
        // Some have to be read from the disk.
        let deadline = self.now.plus(Duration::from_secs(30));
        while self.audit_answers < self.audit.len() && self.now < deadline {
            self.step(false);
        }
        assert_eq!(
            self.audit_answers,
            self.audit.len(),
            "every question of the audit is answered"
        );
    }

    /// No more jobs and no more faults: everything is worked off.
    fn drain(&mut self) {
        self.options.rounds_fail = false;
        let deadline = self.now.plus(Duration::from_secs(900));
        while self.engine.live_jobs() > 0 || self.operator.resend().is_some() {
            assert!(
                self.now < deadline,
                "{} jobs are left after 15 min without faults",
                self.engine.live_jobs()
            );
            self.step(false);
        }
        self.audit();
    }

    fn stop(&mut self) {
        for client in 0..self.clients.len() {
            let from = self.origin(client);
            self.tell(Input::ClientClosed { from });
        }
        self.pump();
        let waiting = self.engine.counters().polls_waiting;
        assert_eq!(waiting, 0, "polls of clients that are gone still wait");
        // Nobody else keeps the engine going: it must get to its end by itself.
        self.events
            .retain(|event| !matches!(event, Event::ClientActs(_) | Event::OperatorActs));
        self.tell(Input::StopRequested);
        self.pump();
        let deadline = self.now.plus(Duration::from_secs(2));
        while !self.stopped {
            assert!(self.now < deadline, "not stopped after 2 s");
            self.step(false);
        }
    }
}

/// How the queues of the clients are made: one as the node makes it, one of several partitions, one
/// that retains what is finished.
fn settings_of(queue: u64) -> Option<QueueSettings> {
    let (partitions, retain) = match queue {
        0 => return None,
        1 => (3, 0),
        _ => (2, 20),
    };
    Some(QueueSettings {
        partitions,
        retain,
        ..queue_defaults()
    })
}

fn queue_defaults() -> QueueSettings {
    let backoff = Backoff {
        cap_ms: 5_000,
        ..Backoff::default()
    };
    QueueSettings {
        max_attempts: 1_000,
        backoff,
        ..QueueSettings::default()
    }
}

fn identity() -> LogIdentity {
    LogIdentity {
        cluster: ClusterId([1; 16]),
        disk: DiskId([2; 16]),
        shard: ShardId(0),
        wal_set: 1,
    }
}

fn unframe(bytes: &BytesMut) -> Bytes {
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(FRAME_BYTES_MAX);
    decoder.push(bytes);
    let frame = decoder.next().expect("a frame is decoded as it was sent");
    frame.expect("a whole frame was sent").body
}

/// Starts a process on the disk: the real recovery, then the real engine.
fn open(
    options: &Options,
    disk: &mut SimDisk,
    start: u32,
    now: Monotonic,
    wall: u64,
) -> ShardEngine {
    let identity = identity();
    let recovered = driver::start(disk, identity, options.segment_bytes, false);
    let recovered = recovered.expect("nothing of the log is damaged");
    let config = ShardConfig {
        zone: String::new(),
        founders: Vec::new(),
        identity,
        node: NodeId(1),
        members: ClusterMembers::default(),
        formed_at: None,
        shard: ShardId(0),
        shards: 1,
        groups: options.groups,
        start_number: start,
        seed: u64::from(start),
        machine_version_max: options.machine_version,
        payload_bytes_max: 1 << 20,
        auto_create: true,
        queue_defaults: queue_defaults(),
        checkpoint_log_bytes: options.checkpoint_log_bytes,
        checkpoint_log_bytes_max: 2 * options.checkpoint_log_bytes,
        jobs_held_bytes_max: driver::jobs_held_bytes_max(options.checkpoint_log_bytes),
        scrub_period: options.scrub_period,
        tails_bytes: 1 << 20,
        catch_up_bytes: 0,
        segment_bytes: options.segment_bytes,
    };
    let now = Now {
        mono: now,
        wall: WallTime(wall),
    };
    ShardEngine::new(config, recovered, disk.files(), now)
}
