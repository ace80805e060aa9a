//! What a run of a cluster may meet: drawn from its seed, so that each run is of another kind.

use crate::base::prng::{Prng, mix};
use crate::queue::MACHINE_VERSION;

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
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 10] = [
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
    ];
}

/// The options of a run.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) nodes: usize,
    pub(super) shards: u16,
    /// A power of two.
    pub(super) groups: u32,
    pub(super) clients: u64,
    /// Queues of several partitions are made, changed and deleted.
    pub(super) operates: bool,
    pub(super) segment_bytes: usize,
    /// What is read of the log for a member that is behind.
    pub(super) catch_up_bytes: u64,
    pub(super) checkpoint_log_bytes: u64,
    /// Payloads have fewer bytes than this.
    pub(super) payload_bytes: u64,
    /// A client thinks up to so long between its acts.
    pub(super) think_us: u64,
    pub(super) faults: Vec<Fault>,
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
    pub(super) fn draw(prng: &mut Prng, seed: u64) -> Self {
        let mut faults: Vec<Fault> = Fault::ALL.to_vec();
        faults.retain(|_| prng.chance(1, 2));
        let is_bulky = prng.chance(1, 4);
        Self {
            nodes: if prng.chance(1, 4) { 5 } else { 3 },
            shards: 1 + prng.below(2) as u16,
            // Each shard has one at least.
            groups: 2 << prng.below(3),
            clients: 1 + prng.below(4),
            // Drawn apart, so that a seed without it means what it meant before there was an operator.
            operates: mix(!seed) & 1 == 0,
            // Likewise.
            catch_up_bytes: [0, 4 << 20][(mix(!seed) >> 1 & 1) as usize],
            segment_bytes: 256 << 10 << prng.below(3),
            checkpoint_log_bytes: 128 << 10 << prng.below(5),
            payload_bytes: if is_bulky { 60_000 } else { 1_000 },
            think_us: 10_000 << prng.below(3),
            faults,
            fault_gap_ms: 200 << prng.below(5),
            fault_ms: 4_000 + prng.below(16_000),
            network_us: 100 << prng.below(8),
            rounds_fail: prng.chance(1, 4),
            drift_per_mille: if prng.chance(1, 2) { 50 } else { 0 },
            machine_version: if prng.chance(1, 4) {
                1
            } else {
                MACHINE_VERSION
            },
        }
    }
}
