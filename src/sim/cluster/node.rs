//! One node: its clock, its disks, and while its process runs an engine for each shard.

use super::options::Options;
use crate::base::ids::{ClusterId, ConnId, DiskId, GroupId, LogIndex, NodeId, ShardId};
use crate::base::members::{ClusterMembers, Member};
use crate::base::prng::Prng;
use crate::base::units::{Monotonic, Now, WallTime};
use crate::queue::command::QueueSettings;
use crate::raft::message::Voter;
use crate::shard::config::ShardConfig;
use crate::shard::engine::ShardEngine;
use crate::shard::placement::shard_of;
use crate::sim::disk::SimDisk;
use crate::sim::driver;
use crate::wal::writer::LogIdentity;
use crate::wire::peer::{Durable, PEER_PROTOCOL_VERSION, PeerHello};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
const WALL_MS: u64 = 1_800_000_000_000;

/// The node of this place, with its disk.
pub(super) fn voter(place: usize) -> Voter {
    let number = u32::try_from(place + 1).expect("few nodes");
    Voter {
        node: NodeId(number),
        disk: DiskId([number as u8; 16]),
    }
}

/// A shard of a process: place of the node, start number, shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) node: usize,
    pub(super) start: u32,
    pub(super) shard: u16,
}

/// A copy of the data directory of a node.
pub(super) struct Image {
    pub(super) disks: Vec<SimDisk>,
    pub(super) wal_set: u32,
    /// Of the start that had it.
    pub(super) number: u32,
}

/// What another node said of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) start: u32,
    pub(super) shards: u16,
}

/// A node.
pub(super) struct Node {
    pub(super) me: Voter,
    /// The disks that it has lost.
    pub(super) past: Vec<Voter>,
    /// The members of the cluster, as its superblock keeps them.
    pub(super) members: ClusterMembers,
    /// It belongs to no cluster.
    pub(super) waits: bool,
    /// Counts the processes; of the one that runs, or ran last.
    pub(super) start: u32,
    /// Its start number, as the data directory has it: an older image has a lower one.
    pub(super) number: u32,
    pub(super) image: Option<Image>,
    /// So many shards the next start is for.
    pub(super) shards_wanted: u16,
    /// The set of logs in force.
    pub(super) wal_set: u32,
    /// A disk has lost what it had said was safe.
    pub(super) is_harmed: bool,
    /// Until then its process, which has said so, goes on on a disk that has lost what it had said was safe;
    /// `u64::MAX` until the next process has noted that.
    pub(super) lies_until: Monotonic,
    /// The next log write fails.
    pub(super) write_fails: bool,
    /// Checkpoint files cannot be read before.
    pub(super) unreadable_until: Monotonic,
    /// Something could not be read: a start went on from an older checkpoint, and dropped the newest.
    pub(super) was_unreadable: bool,
    pub(super) full_until: Monotonic,
    pub(super) machine_version: u16,
    /// Thousandths of a second that its clock goes in one.
    rate: u64,
    pub(super) wall_ms: u64,
    /// One for each shard.
    pub(super) disks: Vec<SimDisk>,
    /// One for each shard; none while no process runs.
    pub(super) engines: Vec<ShardEngine>,
    /// When each engine wants a turn, by the clock of the world.
    pub(super) deadlines: Vec<Option<Monotonic>>,
    /// When the last segment that was asked for is ready, by shard.
    pub(super) segment_at: Vec<Monotonic>,
    pub(super) stopped: BTreeSet<u16>,
    /// Nothing happens before.
    pub(super) paused_until: Monotonic,
    pub(super) slow_until: Monotonic,
    /// Connections of clients that are open.
    pub(super) conns: BTreeSet<ConnId>,
    /// The other nodes, as this process has heard of them.
    pub(super) heard: BTreeMap<NodeId, Heard>,
    /// How far their logs were durable.
    pub(super) durable: BTreeMap<NodeId, Durable>,
    /// Those that shall get no lead.
    pub(super) draining: BTreeSet<Voter>,
}

impl Node {
    pub(super) fn new(place: usize, options: &Options, prng: &mut Prng) -> Self {
        let shards = usize::from(options.shards);
        let drift = options.drift_per_mille;
        Self {
            me: voter(place),
            past: Vec::new(),
            members: ClusterMembers {
                as_of: LogIndex(0),
                members: (0..options.nodes).map(voter).map(Member::voting).collect(),
            },
            waits: false,
            start: 0,
            number: 0,
            image: None,
            shards_wanted: options.shards,
            wal_set: 1,
            is_harmed: false,
            write_fails: false,
            lies_until: Monotonic(0),
            unreadable_until: Monotonic(0),
            was_unreadable: false,
            full_until: Monotonic(0),
            machine_version: options.machine_version,
            rate: 1_000 - drift + prng.below(2 * drift + 1),
            wall_ms: WALL_MS,
            disks: vec![Self::empty(options); shards],
            engines: Vec::new(),
            deadlines: vec![None; shards],
            segment_at: vec![Monotonic(0); shards],
            stopped: BTreeSet::new(),
            paused_until: Monotonic(0),
            slow_until: Monotonic(0),
            conns: BTreeSet::new(),
            heard: BTreeMap::new(),
            durable: BTreeMap::new(),
            draining: BTreeSet::new(),
        }
    }

    /// A disk with nothing on it.
    pub(super) fn empty(options: &Options) -> SimDisk {
        SimDisk::new(options.segment_bytes)
    }

    /// Whether it says that it shall get no lead, for all of its shards.
    pub(super) fn takes_no_leads(&self) -> bool {
        !self.engines.iter().all(ShardEngine::takes_leads)
    }

    /// Whether it has started, and does not serve yet.
    pub(super) fn loads(&self) -> bool {
        self.runs() && !self.engines.iter().all(ShardEngine::serving)
    }

    pub(super) fn runs(&self) -> bool {
        !self.engines.is_empty()
    }

    /// Its clocks at a moment of the world.
    pub(super) fn clock(&self, now: Monotonic) -> Now {
        let mono = Monotonic(scale(now.0, self.rate, 1_000));
        Now {
            mono,
            wall: WallTime(self.wall_ms + mono.0 / 1_000_000),
        }
    }

    /// Its wall clock is set right.
    pub(super) fn set_clock(&mut self) {
        self.wall_ms = WALL_MS;
    }

    /// The first moment of the world at which its clock shows so much.
    pub(super) fn moment(&self, mono: Monotonic) -> Monotonic {
        Monotonic(scale(mono.0, 1_000, self.rate) + 1_000)
    }

    pub(super) fn identity(&self, shard: u16) -> LogIdentity {
        LogIdentity {
            cluster: CLUSTER,
            disk: self.me.disk,
            shard: ShardId(shard),
            wal_set: self.wal_set,
        }
    }

    /// How many shards it has.
    pub(super) fn shards(&self) -> u16 {
        u16::try_from(self.disks.len()).expect("few shards")
    }

    /// The shard that a group lives in.
    pub(super) fn shard_of(&self, group: GroupId) -> u16 {
        shard_of(group, self.shards()).0
    }

    /// The engine that has a group, if the process runs.
    pub(super) fn engine_of(&self, group: GroupId) -> Option<&ShardEngine> {
        self.engines.get(usize::from(self.shard_of(group)))
    }

    /// Gives the groups to as many shards as are wanted, unless a log is damaged.
    fn redistribute(&mut self, options: &Options, prng: &mut Prng) {
        let set = self.wal_set + 1 + prng.below(1 << 16) as u32;
        let before = self.identity(0);
        let made = driver::redistribute(
            &mut self.disks,
            before,
            (self.shards_wanted, set),
            (options.groups, self.number),
            options.segment_bytes,
            self.is_harmed,
        );
        if let Some(disks) = made {
            (self.disks, self.wal_set) = (disks, set);
        }
    }

    /// A process starts. Whether it found damage.
    ///
    /// # Panics
    /// If damage is found where none was done.
    pub(super) fn start(
        &mut self,
        options: &Options,
        defaults: &QueueSettings,
        now: Monotonic,
        prng: &mut Prng,
    ) -> bool {
        assert!(!self.runs(), "one process a node");
        self.start += 1;
        self.number += 1;
        if self.shards_wanted != self.shards() {
            self.redistribute(options, prng);
        }
        let shards = self.shards();
        self.deadlines = vec![None; shards.into()];
        self.segment_at = vec![now; shards.into()];
        self.stopped.clear();
        self.conns.clear();
        self.heard.clear();
        self.draining.clear();
        self.durable.clear();
        let mut has_damage = false;
        for shard in 0..shards {
            let identity = self.identity(shard);
            let disk = &mut self.disks[usize::from(shard)];
            let recovered = driver::start(disk, identity, options.segment_bytes, self.is_harmed);
            let recovered = recovered.expect("the log is this node's own");
            if !self.is_harmed && !self.was_unreadable {
                driver::must_have_bases(disk, &recovered);
            }
            has_damage |= !recovered.damage.is_empty();
            let config = ShardConfig {
                zone: String::new(),
                identity,
                node: self.me.node,
                founders: (0..options.nodes).map(voter).collect(),
                members: self.members.clone(),
                formed_at: Some(WallTime(WALL_MS)),
                shard: ShardId(shard),
                shards,
                groups: options.groups,
                start_number: self.number,
                seed: u64::from(self.me.node.0) << 40
                    | u64::from(shard) << 32
                    | u64::from(self.start),
                machine_version_max: self.machine_version,
                payload_bytes_max: 1 << 20,
                auto_create: true,
                queue_defaults: *defaults,
                checkpoint_log_bytes: options.checkpoint_log_bytes,
                checkpoint_log_bytes_max: 2 * options.checkpoint_log_bytes,
                jobs_held_bytes_max: driver::jobs_held_bytes_max(options.checkpoint_log_bytes),
                scrub_period: options.scrub_period,
                tails_bytes: 256 << 10,
                catch_up_bytes: options.catch_up_bytes,
                segment_bytes: options.segment_bytes,
            };
            let engine = ShardEngine::new(config, recovered, disk.files(), self.clock(now));
            self.engines.push(engine);
        }
        has_damage
    }

    /// Its data directory is replaced by a copy that was made while a process ran, as a crash would
    /// leave it.
    pub(super) fn restore(&mut self, image: Image, prng: &mut Prng) {
        (self.disks, self.wal_set, self.number) = (image.disks, image.wal_set, image.number);
        self.disks.iter_mut().for_each(|disk| disk.crash(prng));
        self.is_harmed = true;
    }

    /// The process is gone, however it went.
    pub(super) fn die(&mut self, prng: &mut Prng) {
        self.engines.clear();
        self.deadlines.fill(None);
        self.paused_until = Monotonic(0);
        self.write_fails = false;
        self.disks.iter_mut().for_each(|disk| disk.crash(prng));
    }

    /// What it says of itself to another node.
    pub(super) fn hello(&self, to: NodeId, options: &Options) -> PeerHello {
        let shards = 0..self.shards();
        PeerHello {
            zone: String::new(),
            protocol_min: PEER_PROTOCOL_VERSION,
            protocol_max: PEER_PROTOCOL_VERSION,
            version: "simulated".to_owned(),
            cluster: Some(CLUSTER),
            node: self.me.node,
            disk: self.me.disk,
            start: self.number,
            shards: self.shards(),
            groups: options.groups,
            machine_version_max: self.machine_version,
            heard: self.durable.get(&to).cloned(),
            client_addresses: shards.map(|shard| address(self.me.node, shard)).collect(),
            nodes: Vec::new(),
            removed: false,
        }
    }

    /// Whether the process was told how long its logs were.
    pub(super) fn was_told(&self) -> bool {
        self.ends_heard() > 0
    }

    fn ends_heard(&self) -> u64 {
        self.engines.first().map_or(0, ShardEngine::ends_heard)
    }

    /// How far its logs are durable, as it says to the others.
    pub(super) fn durable(&self) -> Durable {
        let heard = self.ends_heard();
        let have_noted = self
            .engines
            .iter()
            .all(|engine| engine.ends_noted() >= heard);
        Durable {
            disk: self.me.disk,
            wal_set: self.wal_set,
            lsns: self.engines.iter().map(ShardEngine::durable_lsn).collect(),
            start: if have_noted { self.number } else { 0 },
            process: self.start.into(),
        }
    }
}

pub(super) fn address(node: NodeId, shard: u16) -> String {
    format!("{node}:{shard}")
}

/// The place of the node that listens there, and the shard.
pub(super) fn listener_of(address: &str) -> Option<(usize, u16)> {
    let (number, shard) = address.split_once(':')?;
    let number: usize = number.parse().ok()?;
    Some((number.checked_sub(1)?, shard.parse().ok()?))
}

fn scale(value: u64, by: u64, of: u64) -> u64 {
    let scaled = u128::from(value) * u128::from(by) / u128::from(of);
    u64::try_from(scaled).expect("a run is short")
}
