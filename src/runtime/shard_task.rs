//! The loop of a shard: gather inputs, handle each, drain, perform, sleep until the next deadline.
//!
//! ```text
//! connections ─┐ inbox                                   ┌─> WAL writes (tasks)
//! WAL writes ──┼──────> handle, handle, … drain, perform ┼─> replies (connections)
//! other threads┘ mailbox                                 └─> orders (helper threads), mesh
//! ```
//!
//! The mailbox is emptied on every turn, whoever woke the loop: no safety rests on a wake.

use crate::base::ids::{ConnId, DiskId, NodeId, ShardId};
use crate::base::members::{ClusterMembers, Member};
use crate::base::report::Report;
use crate::base::units::{Lsn, Monotonic, Now, WallTime};
use crate::runtime::budget::Budget;
use crate::runtime::clocks;
use crate::runtime::connection::{Connection, READ_BYTES, Shard};
use crate::runtime::desk::{self, Desk};
use crate::runtime::durations::Durations;
use crate::runtime::listener::{self, Admission};
use crate::runtime::mesh::{Letter, Mesh};
use crate::runtime::metrics::{NodeMetrics, ShardMetrics};
use crate::runtime::peers::link::Links;
use crate::runtime::poker::Pulse;
use crate::runtime::recover::Remains;
use crate::runtime::wal_writer::WalWriter;
use crate::runtime::{process, scrubber, segments, snapshot_files, snapshot_reads, sys};
use crate::shard::config::ShardConfig;
use crate::shard::effect::Effect;
use crate::shard::engine::ShardEngine;
use crate::shard::input::{Input, Loss, Origin, Peer};
use crate::shard::scrub::Walk;
use crate::shard::wall::VotersClock;
use crate::wal::pieces::Piece;
use crate::wal::writer::{LogIdentity, WalWrite};
use crate::wire::message::{LeasedJob, NodeAddresses, Reply, ReplyBody, ServerHello};
use crate::wire::peer::{Durable, NodeBeat, encode_messages};
use bytes::BytesMut;
use glommio::timer::Timer;
use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Sender;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

/// How long the last replies may take to be sent when the node stops.
const LAST_REPLIES_WITHIN: Duration = Duration::from_millis(200);
/// Without a deadline of the engine, the loop still looks around so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the shards tell the node.
#[derive(Debug)]
pub enum Event {
    /// A shard's executor runs.
    Running,
    /// A shard serves all its groups.
    Serving(ShardId),
    /// A shard stopped: all is durable.
    Stopped(ShardId),
    /// An operator asked the process to stop.
    Stop,
    /// Another node has heard of this data directory at a start that it has not come to: it is an older
    /// image of itself.
    OlderImage {
        /// The other node.
        heard_by: NodeId,
        /// The number of the start.
        start: u32,
    },
    /// The members of the cluster are these now.
    Members(ClusterMembers),
    /// Another node knows that this one is no member any more.
    Removed {
        /// The other node.
        said_by: NodeId,
    },
    /// The process cannot go on.
    Failed(Report),
}

/// What a shard starts with.
pub struct Parts {
    /// For the engine.
    pub config: ShardConfig,
    /// Random bits of this process.
    pub process: u64,
    /// What to say to clients; of this node's addresses a [`Letter::Door`] tells.
    pub hello: ServerHello,
    /// How long a start may read the log back.
    pub replay_budget: Duration,
    /// What live jobs of all shards may take of memory, in bytes.
    pub jobs_memory_max: u64,
    /// What the connections may hold together, in bytes.
    pub in_flight_bytes_max: usize,
    /// To and from the other threads.
    pub mesh: Mesh,
    /// The executor's pulse.
    pub pulse: Arc<Pulse>,
    /// Where its log is.
    pub wal_folder: PathBuf,
    /// To the thread of the segments.
    pub segments: Sender<segments::Order>,
    /// To the thread of the checkpoints.
    pub snapshots: Sender<snapshot_files::Order>,
    /// Orders to the thread that reads checkpoints.
    pub reads: Sender<snapshot_reads::Order>,
    /// Orders to the thread that looks whether they are there still.
    pub scrubs: Sender<scrubber::Order>,
    /// To the node.
    pub events: Sender<Event>,
    /// Where numbers are published.
    pub metrics: Arc<NodeMetrics>,
    /// Where the admin thread's questions are answered.
    pub desk: Arc<Desk>,
}

/// What the tasks of a shard share.
pub struct Hub {
    shard: ShardId,
    hello: RefCell<ServerHello>,
    /// To the other nodes; shard 0 has them.
    links: Links,
    inbox: RefCell<Vec<Input>>,
    driver: RefCell<Option<Waker>>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    next_conn: Cell<u64>,
    stopping: Cell<bool>,
    read_buffer: RefCell<Box<[u8]>>,
    budget: Rc<Budget>,
    metrics: Arc<NodeMetrics>,
    durations: RefCell<Durations>,
    /// When the replies of this turn were ready.
    turn: Cell<Instant>,
    desk: Arc<Desk>,
}

impl Hub {
    /// Which shard it is.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Whether the node stops.
    pub fn stopping(&self) -> bool {
        self.stopping.get()
    }

    /// The connections to other nodes.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Clients are told where another node's shards are.
    fn note_node(&self, peer: &Peer) {
        self.note_addresses(NodeAddresses {
            node: peer.voter.node,
            addresses: peer.client_addresses.clone(),
        });
    }

    fn note_addresses(&self, of: NodeAddresses) {
        let nodes = &mut self.hello.borrow_mut().nodes;
        nodes.retain(|listed| listed.node != of.node);
        if !of.addresses.is_empty() {
            nodes.push(of);
            nodes.sort_unstable_by_key(|listed| listed.node);
        }
    }

    /// Clients are told of no node that belongs no more.
    fn forget_strangers(&self, members: &[Member]) {
        let is_member = |node| members.iter().any(|member| member.voter.node == node);
        let nodes = &mut self.hello.borrow_mut().nodes;
        nodes.retain(|listed| is_member(listed.node));
    }

    /// A new client.
    pub fn add(&self) -> (ConnId, Rc<Connection>) {
        let number = self.next_conn.get();
        self.next_conn.set(number + 1);
        let conn = ConnId(number);
        let connection = Rc::new(Connection::new(conn, self.budget.clone()));
        let mut connections = self.connections.borrow_mut();
        connections.insert(number, connection.clone());
        self.numbers()
            .connections
            .store(connections.len() as u64, Relaxed);
        (conn, connection)
    }

    /// A client is gone.
    pub fn remove(&self, conn: ConnId) {
        let mut connections = self.connections.borrow_mut();
        connections.remove(&conn.0);
        self.numbers()
            .connections
            .store(connections.len() as u64, Relaxed);
    }

    fn reply(&self, conn: ConnId, reply: Reply) {
        if desk::is_asker(conn) {
            return self.desk.answer(conn, reply);
        }
        let reply = &reply;
        // A client that left in the meantime needs no answer.
        if let Some(connection) = self.connections.borrow().get(&conn.0) {
            if let ReplyBody::Leased(jobs) = &reply.body {
                self.observe_waits(jobs);
            }
            if let Some(answered) = connection.reply(reply) {
                let took = self.turn.get().saturating_duration_since(answered.read_at);
                let code = reply.body.refused_by();
                let mut durations = self.durations.borrow_mut();
                durations.answered(answered.method, code, took);
            }
        }
    }

    /// How long jobs waited for their first lease, by the shard that holds the worker's connection.
    fn observe_waits(&self, jobs: &[LeasedJob]) {
        if jobs.is_empty() {
            return;
        }
        let wall = now().wall.0;
        for leased in jobs.iter().filter(|leased| leased.job.attempts == 1) {
            let waited = wall.saturating_sub(leased.job.enqueued_at.0);
            let durations = self.durations.borrow();
            durations.waited(Duration::from_millis(waited));
        }
    }

    fn wake(&self) {
        if let Some(driver) = self.driver.borrow_mut().take() {
            driver.wake();
        }
    }

    fn numbers(&self) -> &ShardMetrics {
        &self.metrics.shards[usize::from(self.shard.0)]
    }

    fn is_flushed(&self) -> bool {
        self.connections
            .borrow()
            .values()
            .all(|connection| connection.is_flushed())
    }
}

impl Shard for Hub {
    fn hello(&self) -> Ref<'_, ServerHello> {
        self.hello.borrow()
    }

    fn push(&self, input: Input) {
        self.inbox.borrow_mut().push(input);
        self.wake();
    }

    fn read_buffer(&self) -> &RefCell<Box<[u8]>> {
        &self.read_buffer
    }
}

/// Runs a shard; the first thing on its executor.
pub async fn run(parts: Parts) {
    let numbers = &parts.metrics.shards[usize::from(parts.mesh.me.0)];
    let durations = Durations::new(&numbers.rpc, &numbers.job_wait, &numbers.job_run);
    let hub = Rc::new(Hub {
        shard: parts.mesh.me,
        hello: RefCell::new(parts.hello),
        links: Links::new(
            parts.metrics.clone(),
            parts.config.me(),
            &parts.config.members.members,
        ),
        inbox: RefCell::default(),
        driver: RefCell::default(),
        connections: RefCell::default(),
        next_conn: Cell::new(1),
        stopping: Cell::new(false),
        read_buffer: RefCell::new(vec![0; READ_BYTES].into()),
        budget: Rc::new(Budget::new(parts.in_flight_bytes_max)),
        metrics: parts.metrics,
        durations: RefCell::new(durations),
        turn: Cell::new(Instant::now()),
        desk: parts.desk,
    });
    let thread = process::this_thread();
    parts.pulse.thread.store(thread, Relaxed);
    let (awake, mesh, pulse) = (hub.clone(), parts.mesh.clone(), parts.pulse.clone());
    glommio::spawn_local(async move {
        let look = || {
            if !mesh.mine().is_empty() {
                awake.wake();
            }
        };
        pulse.answer(look).await;
    })
    .detach();
    tell(&parts.events, Event::Running);
    let mut letters = VecDeque::new();
    let wal = Rc::new(WalWriter::new(parts.wal_folder));
    let remains = match wait_for_recovery(&hub, &parts.mesh, &wal, &mut letters).await {
        Some(remains) => remains,
        None => return tell(&parts.events, Event::Stopped(hub.shard)),
    };
    parts.pulse.set_opening(true);
    let begun = Instant::now();
    let LogIdentity { disk, wal_set, .. } = parts.config.identity;
    let (start, process) = (parts.config.start_number, parts.process);
    let replay = Replay {
        budget: parts.replay_budget,
        bytes: remains.log.bytes,
        read_in: remains.read_in,
    };
    let mut driver = Driver {
        engine: ShardEngine::new(parts.config, remains.log, remains.files, now()),
        wal,
        hub,
        mesh: parts.mesh,
        pulse: parts.pulse,
        segments: parts.segments,
        snapshots: parts.snapshots,
        reads: parts.reads,
        scrubs: parts.scrubs,
        events: parts.events,
        door: None,
        letters,
        effects: Vec::new(),
        timer: None,
        memory: MemoryLevel {
            max: parts.jobs_memory_max,
            full: false,
        },
        stopped: false,
        begun,
        replay,
        disk,
        wal_set,
        start,
        process,
        installs_failed: 0,
        clock: None,
    };
    driver.drive().await;
}

/// Until the log was read there is no engine; `None` if the node stops before.
async fn wait_for_recovery(
    hub: &Hub,
    mesh: &Mesh,
    wal: &Rc<WalWriter>,
    letters: &mut VecDeque<Letter>,
) -> Option<Remains> {
    loop {
        poll_fn(|context| {
            *hub.driver.borrow_mut() = Some(context.waker().clone());
            if mesh.mine().is_empty() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        let mut came = VecDeque::new();
        mesh.mine().take(&mut came);
        let mut recovered = None;
        for letter in came {
            match letter {
                Letter::Recovered(remains) => recovered = Some(*remains),
                Letter::Stop => return None,
                Letter::SegmentAhead(number) => open_ahead(wal, number),
                other => letters.push_back(other),
            }
        }
        if recovered.is_some() {
            return recovered;
        }
    }
}

/// Opens a segment that the engine will ask for.
fn open_ahead(wal: &Rc<WalWriter>, number: u64) {
    let wal = wal.clone();
    // Whoever needs it opens it again if this failed.
    glommio::spawn_local(async move { wal.open(number).await.ok() }).detach();
}

struct Driver {
    engine: ShardEngine,
    hub: Rc<Hub>,
    mesh: Mesh,
    pulse: Arc<Pulse>,
    wal: Rc<WalWriter>,
    segments: Sender<segments::Order>,
    snapshots: Sender<snapshot_files::Order>,
    reads: Sender<snapshot_reads::Order>,
    scrubs: Sender<scrubber::Order>,
    events: Sender<Event>,
    /// Until the shard serves.
    door: Option<(glommio::net::TcpListener, Admission)>,
    letters: VecDeque<Letter>,
    effects: Vec<Effect>,
    timer: Option<(Monotonic, Timer)>,
    memory: MemoryLevel,
    stopped: bool,
    /// When the log was read.
    begun: Instant,
    replay: Replay,
    disk: DiskId,
    wal_set: u32,
    start: u32,
    process: u64,
    /// Failures that were told of.
    installs_failed: u64,
    /// What the voters' clocks said last; on shard 0.
    clock: Option<VotersClock>,
}

/// What this start tells the next ones.
struct Replay {
    /// How long it may take.
    budget: Duration,
    /// The log that was found.
    bytes: u64,
    /// How long it took to read.
    read_in: Duration,
}

/// Whether the live jobs of all shards take what they may. It ends a little below the bound, so that
/// it does not come and go with each job.
struct MemoryLevel {
    max: u64,
    full: bool,
}

impl MemoryLevel {
    /// Looks at what is held; what changed by it.
    fn changed(&mut self, held: u64) -> Option<bool> {
        let bound = if self.full {
            self.max - self.max / 16
        } else {
            self.max
        };
        let full = held >= bound;
        (std::mem::replace(&mut self.full, full) != full).then_some(full)
    }
}

impl Driver {
    async fn drive(&mut self) {
        let mut inputs = Vec::new();
        while !self.stopped {
            let now = now();
            self.pulse.beat();
            let held = self.hub.metrics.jobs_held_bytes();
            if let Some(full) = self.memory.changed(held) {
                self.engine.handle(now, Input::Memory { full });
            }
            self.mesh.mine().take(&mut self.letters);
            while let Some(letter) = self.letters.pop_front() {
                self.open(letter, now);
            }
            std::mem::swap(&mut inputs, &mut *self.hub.inbox.borrow_mut());
            for input in inputs.drain(..) {
                self.engine.handle(now, input);
            }
            if self
                .engine
                .next_deadline()
                .is_some_and(|deadline| deadline <= now.mono)
            {
                self.engine.handle(now, Input::TimePassed);
            }
            // Before what relies on it leaves.
            let durable = self.engine.durable_lsn();
            self.hub.numbers().durable_lsn.store(durable.0, Relaxed);
            let noted = self.engine.ends_noted();
            self.hub.numbers().ends_noted.store(noted, Relaxed);
            self.perform();
            self.hub.numbers().publish(self.engine.counters());
            let takes_leads = self.engine.takes_leads();
            self.hub.numbers().takes_leads.store(takes_leads, Relaxed);
            self.tell_of_installs();
            self.hub.durations.borrow().publish();
            self.open_door();
            self.wait(now.mono).await;
        }
        let begun = Instant::now();
        while !self.hub.is_flushed() && begun.elapsed() < LAST_REPLIES_WITHIN {
            glommio::timer::sleep(Duration::from_millis(1)).await;
        }
        tell(&self.events, Event::Stopped(self.hub.shard));
    }

    /// A checkpoint of another node that could not be installed is asked for again; why, says the log.
    fn tell_of_installs(&mut self) {
        let failed = self.engine.counters().checkpoint_installs_failed_total;
        if failed != std::mem::replace(&mut self.installs_failed, failed)
            && let Some(why) = self.engine.install_failure()
        {
            tracing::warn!("a checkpoint of another node was not installed: {why}");
        }
    }

    fn open(&mut self, letter: Letter, now: Now) {
        let input = match letter {
            Letter::Door(door) => {
                self.hub.note_addresses(door.node);
                self.door = Some((sys::adopt_listener(door.listener), door.admission));
                return;
            }
            Letter::SegmentAhead(number) => return open_ahead(&self.wal, number),
            Letter::SegmentMade(number) => return self.open_segment(number),
            Letter::Happened(input) => {
                match &input {
                    Input::PeerKnown(peer) => self.hub.note_node(peer),
                    Input::ClusterMembers(members) => self.hub.forget_strangers(&members.members),
                    _ => {}
                }
                input
            }
            Letter::Linked(linked) => {
                let shards = u16::try_from(self.mesh.boxes.len()).unwrap_or(u16::MAX);
                return Links::open(*linked, shards, self.hub.clone(), self.mesh.clone());
            }
            Letter::ToPeer(to, frames) => {
                return self.hub.links.send(to, self.beat(), &frames);
            }
            Letter::Space(level) => {
                self.order_segments(segments::Order::MayMakeAhead(!level.full));
                Input::DiskSpace {
                    full: level.full,
                    exhausted: level.exhausted,
                }
            }
            Letter::Stop => {
                self.hub.stopping.set(true);
                Input::StopRequested
            }
            Letter::Request(from, request) => Input::ClientRequest {
                from,
                request,
                payload: None,
            },
            Letter::Reply(to, reply) if to.is_engine() => Input::Answered { reply },
            Letter::Reply(to, reply) => return self.hub.reply(to.conn, reply),
            Letter::Closed(from) => Input::ClientClosed { from },
            Letter::Recovered(_) => unreachable!("a log is read once"),
        };
        self.engine.handle(now, input);
    }

    fn perform(&mut self) {
        loop {
            self.engine.drain(&mut self.effects);
            self.hub.turn.set(Instant::now());
            if self.effects.is_empty() {
                return;
            }
            let mut effects = std::mem::take(&mut self.effects);
            effects.drain(..).for_each(|effect| self.do_it(effect));
            self.effects = effects;
        }
    }

    fn do_it(&mut self, effect: Effect) {
        use snapshot_files::Order;
        match effect {
            Effect::WriteWal(write) => self.write_wal(write),
            Effect::PrepareSegment { number } => {
                self.order_segments(segments::Order::Prepare(number));
            }
            Effect::DropSegments { numbers } => {
                self.wal.close(&numbers);
                self.order_segments(segments::Order::Drop(numbers));
            }
            Effect::ReadLog(piece) => self.read_log(piece),
            Effect::LoadGroup {
                group,
                bases,
                reader,
            } => {
                self.read(snapshot_reads::Order::Group {
                    group,
                    bases,
                    reader,
                });
            }
            Effect::LoadPages(order) => self.read(snapshot_reads::Order::Pages(order)),
            Effect::Scrub(walk) => self.scrub(walk),
            Effect::TellDamage {
                group,
                text,
                is_lost: true,
            } => tracing::error!(%group, "{text}"),
            Effect::TellDamage { group, text, .. } => tracing::warn!(%group, "{text}"),
            Effect::WriteChunk {
                round,
                file,
                offset,
                bytes,
            } => {
                self.order(Order::Write {
                    round,
                    file,
                    offset,
                    bytes,
                });
            }
            Effect::SyncFiles { round, files } => self.order(Order::Sync { round, files }),
            Effect::WriteManifest { bytes } => self.order(Order::Manifest(bytes)),
            Effect::DropFiles { files } => self.order(Order::Drop(files)),
            Effect::TruncateFiles { files } => self.order(Order::Truncate(files)),
            Effect::Reply { to, reply } if to.shard == self.hub.shard => {
                self.hub.reply(to.conn, reply);
            }
            Effect::Reply { to, reply } => self.mesh.reply(to, reply),
            Effect::Forward { to, from, request } => {
                if let Some(refusal) = self.mesh.forward(to, from, request) {
                    self.refuse(from, refusal);
                }
            }
            Effect::ForwardClosed { to, from } => self.mesh.closed(to, from),
            Effect::SendPeer { to, messages } if self.hub.shard == ShardId(0) => {
                self.hub.links.send_messages(to, self.beat(), &messages);
            }
            Effect::SendPeer { to, messages } => {
                let mut frames = BytesMut::new();
                encode_messages(&messages, &mut frames);
                self.mesh.to_peer(to, frames.freeze());
            }
            Effect::SendBeat { to } => self.hub.links.beat(to, self.beat()),
            Effect::ClusterMembers(members) => {
                self.mesh.cluster_members(&members);
                self.hub.links.set_members(&members.members);
                self.hub.forget_strangers(&members.members);
                tell(&self.events, Event::Members(members));
            }
            Effect::VoterSets(sets) => self.mesh.voter_sets(sets),
            Effect::TellClock(clock) => {
                for words in clocks::words(self.clock.replace(clock), clock) {
                    tracing::warn!("{words}");
                }
                self.mesh.voters_clock(clock);
            }
            Effect::TellSilent { peer } => self.mesh.peer_lost(peer, Loss::Silent),
            Effect::TellHeard { peer } => self.mesh.peer_heard(peer),
            Effect::Discard(discarded) => self.order(Order::Free(discarded)),
            Effect::JobsRan { times_ms } => {
                let durations = self.hub.durations.borrow();
                for ms in times_ms {
                    durations.ran(Duration::from_millis(ms));
                }
            }
            Effect::Stopped => self.stopped = true,
        }
    }

    fn refuse(&self, from: Origin, refusal: Reply) {
        if from == Origin::engine(self.hub.shard) {
            self.hub.push(Input::Answered { reply: refusal });
        } else if from.shard == self.hub.shard {
            self.hub.reply(from.conn, refusal);
        } else {
            self.mesh.reply(from, refusal);
        }
    }

    /// Tasks start in the order in which they are spawned, so writes are submitted in order.
    fn write_wal(&self, write: WalWrite) {
        let (wal, hub, events) = (self.wal.clone(), self.hub.clone(), self.events.clone());
        glommio::spawn_local(async move {
            let begun = Instant::now();
            match wal.write(&write).await {
                Ok(()) => {
                    let (numbers, batch) = (hub.numbers(), &write.batch);
                    numbers.wal_fsync.observe(begun.elapsed().as_secs_f64());
                    numbers.wal_batch_bytes.observe(batch.encoded_len() as f64);
                    numbers
                        .wal_batch_entries
                        .observe(f64::from(batch.records()));
                    hub.push(Input::WalSynced {
                        batch_seq: write.batch_seq,
                    });
                }
                Err(report) => tell(&events, Event::Failed(report)),
            }
        })
        .detach();
    }

    fn read_log(&self, piece: Piece) {
        let (wal, hub) = (self.wal.clone(), self.hub.clone());
        glommio::spawn_local(async move {
            let bytes = wal.read(&piece).await;
            hub.push(Input::LogRead { piece, bytes });
        })
        .detach();
    }

    fn open_segment(&self, number: u64) {
        let (wal, hub, events) = (self.wal.clone(), self.hub.clone(), self.events.clone());
        glommio::spawn_local(async move {
            match wal.open(number).await {
                Ok(_) => hub.push(Input::SegmentReady { number }),
                Err(report) => tell(&events, Event::Failed(report)),
            }
        })
        .detach();
    }

    /// Helpers end only with the process.
    fn order_segments(&self, order: segments::Order) {
        let _ = self.segments.send(order);
    }

    fn order(&self, order: snapshot_files::Order) {
        let _ = self.snapshots.send(order);
    }

    fn read(&self, order: snapshot_reads::Order) {
        let _ = self.reads.send(order);
    }

    fn scrub(&self, walk: Box<Walk>) {
        let shard = self.hub.shard.0;
        let _ = self.scrubs.send(scrubber::Order { shard, walk });
    }

    /// What this node tells the others of itself. Shard 0 was told how long the logs were when the others were, and
    /// before it had a connection to beat on.
    fn beat(&self) -> NodeBeat {
        let mut shards = self.hub.metrics.shards.iter();
        let heard = self.engine.ends_heard();
        let has_noted = |shard: &ShardMetrics| shard.ends_noted.load(Relaxed) >= heard;
        let have_noted = shards.clone().all(has_noted);
        let lsns = shards.clone();
        let lsns = lsns.map(|shard| Lsn(shard.durable_lsn.load(Relaxed)));
        NodeBeat {
            draining: shards.any(|shard| !shard.takes_leads.load(Relaxed)),
            nr: 0,
            wall: now().wall,
            durable: Durable {
                disk: self.disk,
                wal_set: self.wal_set,
                lsns: lsns.collect(),
                start: if have_noted { self.start } else { 0 },
                process: self.process,
            },
        }
    }

    /// Clients come in once the shard serves; until then they wait in the kernel's queue.
    fn open_door(&mut self) {
        if self.door.is_none() || !self.engine.serving() {
            return;
        }
        if let Some((listener, admission)) = self.door.take() {
            for (group, why) in self.engine.halted() {
                tracing::error!(%group, "{why}");
            }
            glommio::spawn_local(listener::accept(listener, self.hub.clone(), admission)).detach();
            self.pulse.set_opening(false);
            let opened_in = self.begun.elapsed();
            let metrics = &self.hub.metrics;
            metrics.recovered("groups", opened_in.as_secs_f64());
            let Replay {
                budget,
                bytes,
                read_in,
            } = self.replay;
            let took = read_in + opened_in;
            self.engine.bound_tail(budget, (bytes, took));
            self.hub.numbers().serving.store(true, Relaxed);
            self.order_segments(segments::Order::MayMakeAhead(true));
            tell(&self.events, Event::Serving(self.hub.shard));
        }
    }

    async fn wait(&mut self, now: Monotonic) {
        let latest = now.plus(LOOK_EVERY);
        let wanted = self
            .engine
            .next_deadline()
            .map_or(latest, |deadline| deadline.min(latest));
        // A timer that rings too early costs a turn; setting one costs about as much.
        let keep = self
            .timer
            .as_ref()
            .is_some_and(|(at, _)| *at <= wanted && *at > now);
        if !keep {
            self.timer = Some((wanted, Timer::new(wanted.since(now))));
        }
        let Some((_, timer)) = &mut self.timer else {
            return;
        };
        let (hub, mesh, stopped) = (&self.hub, &self.mesh, self.stopped);
        let mut first = true;
        poll_fn(|context| {
            *hub.driver.borrow_mut() = Some(context.waker().clone());
            let work = stopped || !hub.inbox.borrow().is_empty() || !mesh.mine().is_empty();
            if Pin::new(&mut *timer).poll(context).is_ready() || (work && !first) {
                return Poll::Ready(());
            }
            if work {
                // The other tasks of this executor come first.
                context.waker().wake_by_ref();
            }
            first = false;
            Poll::Pending
        })
        .await;
    }
}

/// The node listens as long as the process lives.
fn tell(events: &Sender<Event>, event: Event) {
    let _ = events.send(event);
}

fn now() -> Now {
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let wall = u64::try_from(wall.as_millis())
        .unwrap_or(u64::MAX)
        .min(WallTime::MAX.0);
    Now {
        mono: Monotonic(sys::boot_time_ns()),
        wall: WallTime(wall),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_full_at_the_bound_and_has_room_again_a_little_below() {
        let mut level = MemoryLevel {
            max: 160,
            full: false,
        };
        assert_eq!(level.changed(159), None);
        assert_eq!(level.changed(160), Some(true));
        assert_eq!(level.changed(150), None);
        assert_eq!(level.changed(149), Some(false));
        assert_eq!(level.changed(159), None);
    }
}
