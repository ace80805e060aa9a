//! The process: starts everything in the order that makes a restart short, waits, ends.
//!
//! 1. what must be known first: kernel, directory and its lock, ports; groups that are to have other shards
//!    get them; a node of a cluster that is not formed yet waits until it is;
//! 2. the poker, and on plain threads, a shard each: find the segments, read the log, tell the shard
//!    (`log_threads`); meanwhile the number of this start goes into a superblock (before, on a node of a cluster
//!    and at a first start), and a shard begins when it is there;
//! 3. all executors, before any of them works: a busy pinned executor would delay the start of the next;
//! 4. when every shard serves: one line on standard output;
//! 5. not in the way of the first job: both superblocks, ballast, spare segments.
//!
//! The first signal stops the node: no new clients, what is proposed is finished, a checkpoint is
//! cut. The second ends it at once. Either way nothing acknowledged is lost.

use crate::base::code::Code;
use crate::base::ids::{ClusterId, NodeId, ShardId, Voter};
use crate::base::limits::{CATCH_UP_BYTES_MAX, SEGMENT_BYTES};
use crate::base::members::ClusterMembers;
use crate::base::report::Report;
use crate::runtime::api::Api;
use crate::runtime::config::{self, Asked, NoConfig, NodeConfig};
use crate::runtime::data_dir::{self, DataDir, RaisedStart, fits_members};
use crate::runtime::desk::Desk;
use crate::runtime::listener::Admission;
use crate::runtime::log_threads::{Gate, LogThreads};
use crate::runtime::mesh::{Door, Letter, Mesh};
use crate::runtime::metrics::NodeMetrics;
use crate::runtime::peers::roster::{Process, Roster};
use crate::runtime::peers::{connector, forming};
use crate::runtime::poker::{self, Mailbox, Pulse};
use crate::runtime::redistribute::redistribute;
use crate::runtime::scrubber::Scrubber;
use crate::runtime::shard_task::{self, Event, Parts};
use crate::runtime::snapshot_files::{self, SnapshotFiles};
use crate::runtime::snapshot_reads::{self, SnapshotReads};
use crate::runtime::space::{self, Space};
use crate::runtime::{admin, logs, preflight, process, scrubber, segments, supervisor, sys};
use crate::shard::config::ShardConfig;
use crate::wire::message::{NodeAddresses, ServerHello};
use crate::wire::peer::{Formation, PEER_PROTOCOL_VERSION, PeerHello};
use glommio::{LocalExecutorBuilder, Placement};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// From the signal to the end of the process, whatever the shards do.
const STOP_WITHIN: Duration = Duration::from_millis(1800);
/// The superblock's other copy is written so long after the start, not in the way of the first job.
const SETTLE_AFTER: Duration = Duration::from_secs(1);
/// Entries of an executor's rings.
const RING_DEPTH: usize = 128;

/// The whole program `rrq-node`; the first argument is its name.
#[must_use]
pub fn main_with_args(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Before any thread: afterwards it costs 12 ms.
    sys::register_membarrier();
    sys::fetch_program();
    let loaded = match config::load(args, config::environment()) {
        Ok(Asked::Run(loaded)) => loaded,
        Ok(Asked::Check(loaded, format)) => return preflight::main(loaded, format),
        Err(NoConfig::Asked(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(NoConfig::Wrong(report)) => return fail(&report),
    };
    logs::start(&loaded.config);
    end_with_panics();
    loaded
        .warnings
        .iter()
        .for_each(|warning| eprintln!("{}", logs::redact(&warning.to_string())));
    match run(loaded.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => fail(&report),
    }
}

fn fail(report: &Report) -> ExitCode {
    eprintln!("{}", logs::redact(&report.to_string()));
    ExitCode::from(report.exit_code())
}

/// Runs a node until it is stopped.
///
/// # Errors
/// Why it cannot start, or go on.
pub fn run(config: NodeConfig) -> Result<(), Report> {
    let begun = Instant::now();
    sys::keep_freed_memory();
    sys::raise_open_files();
    preflight::kernel()?;
    let cores = preflight::cores();
    let mut dir = DataDir::open(&config, cores)?;
    let shards = dir.shards_wanted();
    fits_members(dir.path(), &dir.superblock, &config)?;
    for warning in preflight::check::at_start(&config, shards) {
        tracing::warn!("{}: {}", warning.code, warning.what);
    }
    let redistributes = shards != dir.superblock.shards;
    let (events, inbox) = channel();
    let pulses: Vec<Arc<Pulse>> = (0..shards).map(|_| Arc::default()).collect();
    let boxes: Arc<[Mailbox<Letter>]> = pulses
        .iter()
        .map(|pulse| Mailbox::new(pulse.clone()))
        .collect();
    let metrics = NodeMetrics::new(&pulses).map_err(|error| no_thread("metrics", &error))?;
    let metrics = Arc::new(metrics);
    let begun_on_disk = Arc::new(Gate::default());
    let log_threads = LogThreads {
        boxes: boxes.clone(),
        metrics: metrics.clone(),
        events: events.clone(),
        begun_on_disk: begun_on_disk.clone(),
        is_alone: config.members.is_empty(),
    };
    // A process that was killed holds its ports for some milliseconds yet, but not the directory any more.
    // Where all that is there stays as it is, the shards read it meanwhile; they write nothing before the number
    // of this start is durable, for which the ports have to be ours.
    let stays =
        !dir.is_new() && !redistributes && !dir.has_other_sets() && config.members.is_empty();
    let raised = stays.then(|| dir.begin()).transpose()?;
    let (scrubs, scrub_orders) = channel();
    let mut node = Node {
        config,
        dir,
        events: events.clone(),
        desk: Arc::new(Desk::new(boxes.clone())),
        boxes,
        metrics,
        pulses,
        begun,
        process: random_bits()?,
        roster: None,
        scrubs,
        scrub_orders: Some(scrub_orders),
    };
    if stays {
        node.start_shards(&log_threads, cores)?;
    }
    let (clients, admin) = preflight::listeners(&node.config, shards)?;
    let peers = match node.config.members[..] {
        [] => None,
        _ => Some(preflight::peer_listener(&node.config)?),
    };
    let addresses = Addresses::of(&clients, &admin)?;
    if let Some(raised) = raised {
        write_meanwhile(raised, &begun_on_disk, &events)?;
    } else {
        node.dir.drop_other_sets(&mut |_| Ok(()))?;
        // Nothing was begun yet that could go on meanwhile; other nodes hear of the number first.
        node.dir.begin()?.write()?;
        if redistributes {
            redistribute(&mut node.dir, &mut |_| Ok(()))?;
        }
        begun_on_disk.open();
    }
    watch_signals(events)?;
    if let Some(listener) = peers
        && !node.meet_peers((&addresses, listener), &inbox)?
    {
        return Ok(());
    }
    node.metrics
        .recovered("open", begun.elapsed().as_secs_f64());
    if !stays {
        node.start_shards(&log_threads, cores)?;
    }
    node.open_doors(clients, &addresses);
    node.watch_space()?;
    admin::start(admin, node.metrics.clone(), node.api())
        .map_err(|error| no_thread("admin", &error))?;
    supervisor::watch(node.metrics.clone()).map_err(|error| no_thread("watchdog", &error))?;
    node.attend(&inbox, &addresses)
}

/// Bits that no other process has.
fn random_bits() -> Result<u64, Report> {
    let bits = data_dir::random().map_err(|error| no_thread("random bits", &error))?;
    Ok(u128::from_le_bytes(bits) as u64)
}

struct Addresses {
    clients: Vec<SocketAddr>,
    admin: SocketAddr,
}

impl Addresses {
    fn of(clients: &[TcpListener], admin: &TcpListener) -> Result<Self, Report> {
        let ask = || {
            let clients = clients
                .iter()
                .map(TcpListener::local_addr)
                .collect::<Result<_, _>>()?;
            Ok(Self {
                clients,
                admin: admin.local_addr()?,
            })
        };
        ask().map_err(|error: io::Error| no_thread("listeners", &error))
    }

    /// What clients and other nodes are told of the shards.
    fn advertised(&self, config: &NodeConfig) -> Vec<String> {
        let clients = self.clients.iter();
        clients.map(|bound| config.advertised(*bound)).collect()
    }
}

/// What the helpers of a shard read their orders from.
struct Helpers {
    shard: u16,
    snapshots: Receiver<snapshot_files::Order>,
    reads: Receiver<snapshot_reads::Order>,
}

struct Node {
    config: NodeConfig,
    dir: DataDir,
    events: Sender<Event>,
    boxes: Arc<[Mailbox<Letter>]>,
    desk: Arc<Desk>,
    pulses: Vec<Arc<Pulse>>,
    metrics: Arc<NodeMetrics>,
    begun: Instant,
    /// Random bits of this process.
    process: u64,
    /// The other nodes, if there may be some.
    roster: Option<Arc<Roster>>,
    /// Steps of walks over what is stored, and who makes them once the start is over.
    scrubs: Sender<scrubber::Order>,
    scrub_orders: Option<Receiver<scrubber::Order>>,
}

/// Writes the superblock while executors start and logs are read. If it cannot be written, the gate stays
/// shut and the process ends.
fn write_meanwhile(
    raised: RaisedStart,
    gate: &Arc<Gate>,
    events: &Sender<Event>,
) -> Result<(), Report> {
    let (gate, events) = (gate.clone(), events.clone());
    let write = move || match raised.write() {
        Ok(()) => gate.open(),
        Err(report) => {
            let _ = events.send(Event::Failed(report));
        }
    };
    let started = std::thread::Builder::new()
        .name("rrq-superblock".to_owned())
        .spawn(write);
    started
        .map(drop)
        .map_err(|error| no_thread("superblock", &error))
}

impl Node {
    fn shards(&self) -> u16 {
        self.dir.superblock.shards
    }

    /// Has the other nodes connected to, and this node belong to a cluster. False if the process shall stop
    /// before there is one. A node that stood alone is the first of a cluster from here on.
    fn meet_peers(
        &mut self,
        (addresses, listener): (&Addresses, TcpListener),
        inbox: &Receiver<Event>,
    ) -> Result<bool, Report> {
        let (config, dir) = (&self.config, &mut self.dir);
        let is_formed = dir.superblock.cluster != ClusterId::default();
        if is_formed && dir.superblock.founders.is_empty() {
            dir.join(&forming::of_one(&dir.superblock))?;
        }
        let superblock = &dir.superblock;
        let formation = is_formed.then(|| Formation {
            cluster: superblock.cluster,
            groups: superblock.groups,
            formed_at: superblock.formed_at,
            founders: superblock.founders.clone(),
            members: superblock
                .members
                .iter()
                .map(|member| member.voter)
                .collect(),
        });
        let hello = PeerHello {
            protocol_min: PEER_PROTOCOL_VERSION,
            protocol_max: PEER_PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: is_formed.then_some(superblock.cluster),
            node: superblock.node,
            disk: superblock.disk,
            start: superblock.start as u32,
            shards: superblock.shards,
            groups: superblock.groups,
            machine_version_max: config.machine_version_max,
            heard: None,
            client_addresses: addresses.advertised(config),
            nodes: Vec::new(),
            removed: false,
            zone: config.zone.clone().unwrap_or_default(),
        };
        let me = Process {
            id: self.process,
            events: self.events.clone(),
        };
        let roster = Roster::new(&config.members, self.boxes.clone(), me, hello, formation);
        let roster = Arc::new(roster);
        connector::start(&roster, listener).map_err(|error| no_thread("peers", &error))?;
        let belongs = is_formed || forming::form(&roster, dir, inbox)?;
        self.roster = Some(roster);
        Ok(belongs)
    }

    /// Has the shards read what they left, and start.
    fn start_shards(&self, log_threads: &LogThreads, cores: usize) -> Result<(), Report> {
        poker::start(self.pulses.clone()).map_err(|error| no_thread("poker", &error))?;
        let logs = log_threads.start(&self.dir)?;
        let helpers = self.start_executors(logs, cores)?;
        self.start_helpers(helpers, &log_threads.begun_on_disk)
    }

    /// Lets clients in to each shard that serves.
    fn open_doors(&self, clients: Vec<TcpListener>, addresses: &Addresses) {
        let superblock = &self.dir.superblock;
        for (mailbox, listener) in self.boxes.iter().zip(clients) {
            let door = Door {
                listener,
                admission: Admission::new(
                    self.metrics.clients.clone(),
                    self.config.connections_max,
                    preflight::files_for_clients(superblock.shards),
                ),
                node: NodeAddresses {
                    node: superblock.node,
                    addresses: addresses.advertised(&self.config),
                },
            };
            mailbox.send(Letter::Door(Box::new(door)));
        }
    }

    fn api(&self) -> Api {
        let superblock = &self.dir.superblock;
        Api {
            desk: self.desk.clone(),
            metrics: self.metrics.clone(),
            node: superblock.node,
            cluster: superblock.cluster,
            groups: superblock.groups,
        }
    }

    fn start_executors(
        &self,
        logs: Vec<Sender<segments::Order>>,
        cores: usize,
    ) -> Result<Vec<Helpers>, Report> {
        let pinned = self.config.pin && usize::from(self.shards()) <= cores;
        let allowed = sys::allowed_cores();
        let mut helpers = Vec::new();
        for (shard, segments) in (0..self.shards()).zip(logs) {
            let (snapshots, snapshot_orders) = channel();
            let (reads, read_orders) = channel();
            helpers.push(Helpers {
                shard,
                snapshots: snapshot_orders,
                reads: read_orders,
            });
            let parts = self.parts(shard, segments, (snapshots, reads));
            let placement = match allowed.get(usize::from(shard)) {
                Some(&core) if pinned => Placement::Fixed(core),
                _ => Placement::Unbound,
            };
            let executor = LocalExecutorBuilder::new(placement)
                .name(&format!("rrq-shard-{shard}"))
                .io_memory(preflight::IO_MEMORY_BYTES)
                .ring_depth(RING_DEPTH)
                .spawn(move || shard_task::run(parts))
                .map_err(|error| no_thread("executor", &error))?;
            let events = self.events.clone();
            // An executor that cannot be set up says so only to who joins it.
            self.thread(&format!("rrq-join-{shard}"), move || {
                if let Err(error) = executor.join() {
                    let _ = events.send(Event::Failed(no_thread("executor", &error)));
                }
            })?;
        }
        Ok(helpers)
    }

    fn parts(
        &self,
        shard: u16,
        segments: Sender<segments::Order>,
        (snapshots, reads): (Sender<snapshot_files::Order>, Sender<snapshot_reads::Order>),
    ) -> Parts {
        let (config, superblock) = (&self.config, &self.dir.superblock);
        let memory = process::memory_limit();
        Parts {
            config: ShardConfig {
                zone: self.config.zone.clone().unwrap_or_default(),
                identity: self.dir.identity(shard),
                node: superblock.node,
                founders: superblock.founders.clone(),
                members: ClusterMembers {
                    as_of: superblock.members_as_of,
                    members: superblock.members.clone(),
                },
                formed_at: (!superblock.founders.is_empty()).then_some(superblock.formed_at),
                shard: ShardId(shard),
                shards: superblock.shards,
                groups: superblock.groups,
                start_number: superblock.start as u32,
                seed: sys::boot_time_ns() ^ u64::from(shard) << 48,
                machine_version_max: config.machine_version_max,
                payload_bytes_max: config.payload_bytes_max,
                auto_create: config.auto_create,
                queue_defaults: config.queue_defaults,
                checkpoint_log_bytes: config.checkpoint_log_bytes,
                checkpoint_log_bytes_max: config.checkpoint_log_max(superblock.shards, memory),
                jobs_held_bytes_max: config.jobs_held(superblock.shards, memory),
                scrub_period: config.scrub_period,
                tails_bytes: config.tails_bytes(superblock.shards, memory),
                catch_up_bytes: CATCH_UP_BYTES_MAX,
                segment_bytes: SEGMENT_BYTES,
            },
            hello: ServerHello {
                protocol: crate::wire::client::PROTOCOL_VERSION,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                cluster: superblock.cluster,
                node: superblock.node,
                shard,
                groups: superblock.groups,
                payload_bytes_max: config.payload_bytes_max as u32,
                nodes: Vec::new(),
            },
            process: self.process,
            replay_budget: config.replay_budget,
            jobs_memory_max: config.jobs_memory(memory),
            in_flight_bytes_max: config.in_flight_bytes_shard(superblock.shards, memory),
            mesh: Mesh {
                me: ShardId(shard),
                boxes: self.boxes.clone(),
            },
            pulse: self.pulses[usize::from(shard)].clone(),
            wal_folder: self.dir.wal(shard),
            segments,
            snapshots,
            reads,
            scrubs: self.scrubs.clone(),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
            desk: self.desk.clone(),
        }
    }

    /// One thread for all shards looks whether the disk has still what was stored; not before the first jobs, to
    /// which a thread costs time.
    fn start_scrubber(&mut self) -> Result<(), Report> {
        let Some(orders) = self.scrub_orders.take() else {
            return Ok(());
        };
        let folders = (0..self.shards()).map(|shard| self.dir.shard(shard));
        let scrubber = Scrubber::new(folders.collect(), self.dir.superblock.owner());
        let boxes = self.boxes.clone();
        self.thread("rrq-scrub", move || {
            scrubber.obey(&orders, |shard, input| {
                boxes[usize::from(shard)].send(Letter::Happened(input));
            });
        })
    }

    /// Two more threads a shard: one writes checkpoints, so that a slow sync there does not hold up a segment;
    /// and one reads them.
    fn start_helpers(&self, helpers: Vec<Helpers>, gate: &Arc<Gate>) -> Result<(), Report> {
        for Helpers {
            shard,
            snapshots,
            reads,
        } in helpers
        {
            let (data_dir, folder) = (self.dir.path().to_owned(), self.dir.shard(shard));
            let pages = SnapshotReads::new(folder.clone(), self.dir.superblock.owner());
            let boxes = self.boxes.clone();
            self.thread(&format!("rrq-pages-{shard}"), move || {
                let mine = &boxes[usize::from(shard)];
                pages.obey(&reads, |input| mine.send(Letter::Happened(input)));
            })?;

            let files = SnapshotFiles::new(folder, data_dir);
            let (boxes, gate) = (self.boxes.clone(), gate.clone());
            self.thread(&format!("rrq-files-{shard}"), move || {
                gate.wait();
                let mine = &boxes[usize::from(shard)];
                files.obey(&snapshots, |input| mine.send(Letter::Happened(input)));
            })?;
        }
        Ok(())
    }

    /// Waits for what happens until the end.
    fn attend(mut self, inbox: &Receiver<Event>, addresses: &Addresses) -> Result<(), Report> {
        let (mut running, mut serving, mut stopped) = (0, 0, 0);
        let mut stop_by: Option<Instant> = None;
        let mut settle_at: Option<Instant> = None;
        let mut removed = None;
        while stopped < self.shards() {
            let event = match stop_by.or(settle_at) {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(by) => inbox.recv_timeout(by.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(Event::Running) => {
                    running += 1;
                    if running == self.shards() {
                        self.metrics
                            .recovered("executors", self.begun.elapsed().as_secs_f64());
                    }
                }
                Ok(Event::Serving(_)) => {
                    serving += 1;
                    if serving == self.shards() && stop_by.is_none() {
                        self.ready(addresses);
                        settle_at = Some(Instant::now() + SETTLE_AFTER);
                    }
                }
                Ok(Event::Stopped(shard)) => {
                    tracing::debug!(%shard, "stopped");
                    stopped += 1;
                }
                Ok(Event::Stop) => stop_by = Some(self.stop()),
                Ok(Event::Members(members)) => {
                    if !self.set_members(&members)? {
                        removed = Some(self.removed(None));
                        stop_by = stop_by.or_else(|| Some(self.stop()));
                    }
                }
                Ok(Event::Removed { said_by }) => return Err(self.removed(Some(said_by))),
                Ok(Event::Failed(report)) => return Err(report),
                Ok(Event::OlderImage { heard_by, start }) => {
                    return Err(self.older_image(heard_by, start));
                }
                Err(RecvTimeoutError::Timeout) if stop_by.is_some() => {
                    tracing::warn!("stopped without a last checkpoint: the next start reads more");
                    return removed.map_or(Ok(()), Err);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.start_scrubber()?;
                    // Without descriptors it waits: jobs are served by one good copy.
                    settle_at = self
                        .dir
                        .lacks_descriptors()
                        .then(|| Instant::now() + SETTLE_AFTER);
                    if settle_at.is_none() {
                        self.dir.settle()?;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        if settle_at.is_some() {
            self.dir.settle()?;
        }
        removed.map_or(Ok(()), Err)
    }

    /// Nothing new is taken; by when the process has ended.
    fn stop(&self) -> Instant {
        self.metrics.stopping.store(true, Relaxed);
        supervisor::stopping();
        self.boxes
            .iter()
            .for_each(|mailbox| mailbox.send(Letter::Stop));
        Instant::now() + STOP_WITHIN
    }

    /// The members of the cluster are these now. False if this node is none of them.
    fn set_members(&mut self, known: &ClusterMembers) -> Result<bool, Report> {
        let Some(roster) = &self.roster else {
            return Ok(true);
        };
        let superblock = &self.dir.superblock;
        let (node, disk) = (superblock.node, superblock.disk);
        let members: Vec<Voter> = known.members.iter().map(|member| member.voter).collect();
        if !members.contains(&Voter { node, disk }) {
            return Ok(false);
        }
        // First for the next start, then for the nodes that may be met by it.
        self.dir.set_members(known)?;
        roster.set_members(&members);
        Ok(true)
    }

    /// An operator has removed this node, as its own log says, or another node.
    fn removed(&self, said_by: Option<NodeId>) -> Report {
        let node = self.dir.superblock.node;
        let what = format!("node {node} was removed from its cluster");
        Report::error(Code::WrongIdentity, what)
            .location(match said_by {
                Some(by) => format!("node {by} says so"),
                None => "its own log says so".to_owned(),
            })
            .why("the others have every job; what is here is of no more use to them")
            .fix(format!(
                "leave it stopped; or empty {}, start it, and rrqctl cluster add {node}",
                self.dir.path().display()
            ))
    }

    /// What this process says would be taken for what an earlier one has said. The next start is numbered
    /// so that it is not, and asks the others for what is missing.
    fn older_image(&mut self, heard_by: NodeId, start: u32) -> Report {
        if let Err(report) = self.dir.raise_start(start.into()) {
            return report;
        }
        let path = self.dir.path().display();
        Report::error(
            Code::WrongIdentity,
            format!("data directory {path} is an older image of itself"),
        )
        .location(format!("node {heard_by} has heard of its start {start}"))
        .why("what it acknowledged since is missing; the other nodes have it")
        .fix("start the node again: the others put it right")
    }

    /// Every shard serves: says so.
    fn ready(&self, addresses: &Addresses) {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.metrics.recovered("serve", seconds);
        let mut out = io::stdout().lock();
        let line = writeln!(
            out,
            "rrq-node {} ready: {}clients {}, admin {}, {} shard{}, data {}{}, stop with Ctrl-C or \
             kill {}",
            env!("CARGO_PKG_VERSION"),
            match self.dir.superblock.members.len() {
                0 => String::new(),
                members => format!("node {} of {members}, ", self.dir.superblock.node),
            },
            addresses.clients[0],
            addresses.admin,
            self.shards(),
            if self.shards() == 1 { "" } else { "s" },
            self.dir.path().display(),
            if self.config.dev {
                " (--dev: jobs may be lost)"
            } else {
                ""
            },
            std::process::id(),
        );
        if let Err(error) = line.and_then(|()| out.flush()) {
            tracing::debug!(%error, "nobody reads the standard output");
        }
        supervisor::ready(&format!("serving clients at {}", addresses.clients[0]));
    }

    /// From the start on, so that a full disk is known before the first enqueue.
    fn watch_space(&self) -> Result<(), Report> {
        let spares = self.metrics.shards.iter().map(|shard| shard.spares.clone());
        let mut space = Space::new(self.dir.path(), spares.collect());
        let boxes = self.boxes.clone();
        let metrics = self.metrics.clone();
        self.thread("rrq-space", move || {
            loop {
                if let Some(level) = space.look() {
                    boxes
                        .iter()
                        .for_each(|mailbox| mailbox.send(Letter::Space(level)));
                }
                metrics.disk_free_bytes.store(space.free_bytes, Relaxed);
                std::thread::sleep(space::LOOK_EVERY);
            }
        })
    }

    fn thread(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Report> {
        let started = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body);
        started.map(drop).map_err(|error| no_thread(name, &error))
    }
}

/// A thread cannot be had, or what it needs.
pub(super) fn no_thread(what: &str, error: &dyn std::fmt::Display) -> Report {
    Report::error(
        Code::TooManyShards,
        format!("this machine cannot carry the node: {what}"),
    )
    .location(error.to_string())
    .fix("fewer --shards, or higher limits of threads, files and locked memory (ulimit -a)")
}

/// The first signal is an event, the second ends the process.
fn watch_signals(events: Sender<Event>) -> Result<(), Report> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])
        .map_err(|error| no_thread("signals", &error))?;
    std::thread::Builder::new()
        .name("rrq-signals".to_owned())
        .spawn(move || {
            for (before, signal) in signals.forever().enumerate() {
                if before > 0 || events.send(Event::Stop).is_err() {
                    sys::exit_now(128 + signal as u8);
                }
            }
        })
        .map(drop)
        .map_err(|error| no_thread("signals", &error))
}

/// A bug ends all shards at once: one that unwinds alone would leave a node that half answers.
fn end_with_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or("an unknown place".to_owned(), ToString::to_string);
        let thread = std::thread::current();
        let text = panic.payload_as_str().unwrap_or("no message");
        let report = Report::error(Code::Bug, format!("rrq has a bug: {text}"))
            .location(format!(
                "{place}, thread {}",
                thread.name().unwrap_or("without a name")
            ))
            .why("the process ends; nothing acknowledged is lost")
            .fix("start again, and report this message");
        eprintln!("{report}");
        sys::exit_now(report.exit_code());
    }));
}
