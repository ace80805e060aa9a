//! What a run of a cluster may meet: drawn from its seed, so that each run is of another kind; and what
//! a caller wants otherwise ([`Plan`]).

use crate::base::prng::{Prng, mix};
use crate::queue::MACHINE_VERSION;
use crate::sim::disk::Harm;
use crate::sim::driver;
use std::collections::BTreeSet;
use std::time::Duration;

/// What may befall a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The process of a node dies, and starts again after a while; perhaps it dies on the way.
    Crash,
    /// All processes die at once.
    PowerLoss,
    /// A process stands still for a while.
    Pause,
    /// Nothing passes between some nodes and the others.
    Partition,
    /// Nothing passes one way between two nodes.
    OneWay,
    /// A connection between two nodes breaks.
    Reset,
    /// The wall clock of a node jumps.
    Jump,
    /// A process is asked to stop: it hands over what it leads.
    Stop,
    /// The disk of a node is slow for a while.
    SlowDisk,
    /// A node loses its disk: an empty one takes its place.
    LoseDisk,
    /// The disk of a node is full for a while.
    FullDisk,
    /// A log write fails, perhaps half done: the process ends.
    WriteError,
    /// Checkpoint files of a node cannot be read for a while.
    ReadError,
    /// Log writes are reported done and are lost.
    LostWrite,
    /// A bit rots.
    Rot,
    /// A block reads as zeros.
    Zeroed,
    /// A block that was meant for another place was written here.
    Misdirected,
    /// A block is as it was in an earlier use of its segment.
    Stale,
    /// A data directory is replaced by an older image of itself.
    OldImage,
    /// The process of a node dies, and starts again with another number of shards.
    OtherShards,
    /// Some stored pages are damaged, or bodies of their jobs.
    DamagedPages,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 21] = [
        Self::Crash,
        Self::PowerLoss,
        Self::Pause,
        Self::Partition,
        Self::OneWay,
        Self::Reset,
        Self::Jump,
        Self::Stop,
        Self::SlowDisk,
        Self::LoseDisk,
        Self::FullDisk,
        Self::WriteError,
        Self::ReadError,
        Self::LostWrite,
        Self::Rot,
        Self::Zeroed,
        Self::Misdirected,
        Self::Stale,
        Self::OldImage,
        Self::OtherShards,
        Self::DamagedPages,
    ];

    /// Whether a disk loses by it what it had said was safe.
    #[must_use]
    pub fn is_harm(self) -> bool {
        let is_other = matches!(self, Self::LostWrite | Self::OldImage | Self::DamagedPages);
        self.harm().is_some() || is_other
    }

    /// Whether a process ends by it, and forgets what it heard of the others.
    pub(super) fn ends_process(self) -> bool {
        matches!(
            self,
            Self::Crash
                | Self::PowerLoss
                | Self::Stop
                | Self::LoseDisk
                | Self::WriteError
                | Self::OldImage
                | Self::OtherShards
        )
    }

    pub(super) fn harm(self) -> Option<Harm> {
        match self {
            Self::Rot => Some(Harm::Rot),
            Self::Zeroed => Some(Harm::Zeroed),
            Self::Misdirected => Some(Harm::Misdirected),
            Self::Stale => Some(Harm::Stale),
            _ => None,
        }
    }
}

/// What a caller wants of a run, beside its seed; nothing by default.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Of the faults of the seed, by their number, only these.
    pub only: Option<BTreeSet<u64>>,
    /// Faults of these kinds, in place of those that the seed draws.
    pub faults: Option<Vec<Fault>>,
    /// So many nodes.
    pub nodes: Option<usize>,
    /// So many groups, a power of two.
    pub groups: Option<u32>,
    /// Faults come up to so far apart, in milliseconds.
    pub fault_gap_ms: Option<u64>,
    /// Faults come for so long, in milliseconds.
    pub fault_ms: Option<u64>,
    /// A checkpoint after so many bytes of log.
    pub checkpoint_log_bytes: Option<u64>,
    /// Payloads have fewer bytes than this.
    pub payload_bytes: Option<u64>,
    /// Clients think up to so long, in microseconds.
    pub think_us: Option<u64>,
    /// Messages take up to so long, in microseconds.
    pub network_us: Option<u64>,
    /// Whether the disks of more than a minority may be harmed.
    pub helpless: Option<bool>,
    /// Whether all logs are damaged once all is healed, each elsewhere.
    pub helix: Option<bool>,
    /// Whether all clients use the client library, or none does.
    pub library: Option<bool>,
    /// Whether it is looked at what is stored, every second.
    pub scrubs: Option<bool>,
}

/// The options of a run.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) nodes: usize,
    /// Of each node, at first.
    pub(super) shards: u16,
    /// A power of two.
    pub(super) groups: u32,
    pub(super) clients: u64,
    /// Those of them that use the client library, a bit each.
    pub(super) library: u64,
    /// Queues of several partitions are made, changed and deleted.
    pub(super) operates: bool,
    pub(super) segment_bytes: usize,
    /// What is read of the log for a member that is behind.
    pub(super) catch_up_bytes: u64,
    pub(super) checkpoint_log_bytes: u64,
    /// What is stored is looked at within this.
    pub(super) scrub_period: Option<Duration>,
    /// Payloads have fewer bytes than this.
    pub(super) payload_bytes: u64,
    /// A client thinks up to so long between its acts.
    pub(super) think_us: u64,
    pub(super) faults: Vec<Fault>,
    /// Nodes whose disks may lose what they said was safe. A minority, so that of everything a majority
    /// has an intact copy; or all, and then nothing is asked of the run but that no promise is broken.
    pub(super) frail: Vec<usize>,
    /// All logs are damaged once all is healed, each elsewhere.
    pub(super) helix: bool,
    /// Faults come up to so far apart.
    pub(super) fault_gap_ms: u64,
    /// How long faults come.
    pub(super) fault_ms: u64,
    /// Messages take up to so long on their way.
    pub(super) network_us: u64,
    /// Rounds may find no room.
    pub(super) rounds_fail: bool,
    /// A second of the world is up to so many thousandths more or less on a node's clock.
    pub(super) drift_per_mille: u64,
    pub(super) machine_version: u16,
}

impl Options {
    pub(super) fn draw(prng: &mut Prng, seed: u64, plan: &Plan) -> Self {
        let harms = prng.chance(1, 3);
        let mut faults: Vec<Fault> = Fault::ALL.to_vec();
        faults.retain(|fault| *fault != Fault::OtherShards);
        let damages = harms && mix(!seed) >> 3 & 1 == 0;
        faults.retain(|fault| match fault {
            Fault::DamagedPages => damages,
            fault => prng.chance(1, 2) && (harms || !fault.is_harm()),
        });
        // Who loses a disk beside one that is harmed has lost more than a minority.
        faults.retain(|fault| *fault != Fault::LoseDisk || !harms);
        let is_bulky = prng.chance(1, 4);
        let nodes = if prng.chance(1, 8) { 5 } else { 3 };
        let nodes = plan.nodes.unwrap_or(nodes);
        let helpless = plan.helpless.unwrap_or(prng.chance(1, 6));
        let mut frail: Vec<usize> = (0..nodes).collect();
        while !helpless && frail.len() > (nodes - 1) / 2 {
            frail.remove(prng.below(frail.len() as u64) as usize);
        }
        if helpless {
            // Of these nothing proves that something is missing, if enough others have forgotten too.
            let is_proved = |fault: &Fault| fault.harm().is_some() || *fault == Fault::DamagedPages;
            faults.retain(|fault| !fault.is_harm() || is_proved(fault));
        }
        if mix(!seed) >> 2 & 1 == 0 {
            faults.push(Fault::OtherShards);
        }
        let clients = 1 + prng.below(4);
        let drawn = Self {
            nodes,
            shards: 1 + prng.below(2) as u16,
            // Each shard has one at least.
            groups: 2 << prng.below(3),
            clients,
            library: mix(!seed) >> 8,
            operates: mix(!seed) & 1 == 0,
            catch_up_bytes: [0, 4 << 20][(mix(!seed) >> 1 & 1) as usize],
            segment_bytes: 256 << 10 << prng.below(2),
            checkpoint_log_bytes: 128 << 10 << prng.below(4),
            scrub_period: driver::scrub_period(seed),
            payload_bytes: if is_bulky { 24_000 } else { 1_000 },
            think_us: clients * (14_000 << prng.below(3)),
            faults,
            frail,
            helix: mix(!seed) >> 4 & 7 == 0,
            fault_gap_ms: 200 << prng.below(5),
            fault_ms: 4_000 + prng.below(7_000),
            network_us: 100 << prng.below(8),
            rounds_fail: prng.chance(1, 4),
            drift_per_mille: if prng.chance(1, 2) { 50 } else { 0 },
            machine_version: if prng.chance(1, 4) {
                1
            } else {
                MACHINE_VERSION
            },
        };
        drawn.with_plan(plan)
    }

    fn with_plan(mut self, plan: &Plan) -> Self {
        if let Some(faults) = &plan.faults {
            self.faults.clone_from(faults);
        }
        self.groups = plan.groups.unwrap_or(self.groups);
        self.helix = plan.helix.unwrap_or(self.helix);
        self.fault_gap_ms = plan.fault_gap_ms.unwrap_or(self.fault_gap_ms);
        self.fault_ms = plan.fault_ms.unwrap_or(self.fault_ms);
        let bytes = plan.checkpoint_log_bytes;
        self.checkpoint_log_bytes = bytes.unwrap_or(self.checkpoint_log_bytes);
        self.payload_bytes = plan.payload_bytes.unwrap_or(self.payload_bytes);
        self.library = plan
            .library
            .map_or(self.library, |all| u64::from(all) * u64::MAX);
        self.scrub_period = match plan.scrubs {
            Some(true) => Some(Duration::from_secs(1)),
            Some(false) => None,
            None => self.scrub_period,
        };
        // Beside other harm there may be nothing left of what a helix takes.
        self.helix &= !self.faults.iter().any(|fault| fault.is_harm());
        self.think_us = plan.think_us.unwrap_or(self.think_us);
        self.network_us = plan.network_us.unwrap_or(self.network_us);
        self
    }

    /// Whether this client uses the client library.
    pub(super) fn uses_library(&self, client: u64) -> bool {
        self.library >> client & 1 == 1
    }

    /// Whether no log loses what nothing proves to be missing.
    pub(super) fn keeps_unproved(&self) -> bool {
        self.is_helpless() || self.helix
    }

    /// Whether more disks may be harmed than can be put right.
    pub(super) fn is_helpless(&self) -> bool {
        2 * self.frail.len() > self.nodes
    }
}
