//! How far the models of [`crate::model`] go.

use rrq::base::bugs::Bug;

/// How far a model goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Its name.
    pub name: &'static str,
    /// How many vote.
    pub members: u32,
    /// Who may campaign; the others only vote.
    pub candidates: u32,
    /// So many have elected member 1 before, have its no-op, and were sent a heartbeat.
    pub begun: u32,
    /// Nobody campaigns beyond this term.
    pub terms: u64,
    /// Nobody proposes with so many entries in its log, no-ops counted.
    pub entries: u64,
    /// How often a member campaigns after silence, asking first (PreVote).
    pub silences: u32,
    /// How often a member campaigns as if told to: at any time, without asking first.
    pub orders: u32,
    /// How often a member crashes.
    pub crashes: u32,
    /// Writes become durable when it suits, not at once.
    pub slow_disks: bool,
    /// Messages under way on a link; the oldest of more is lost.
    pub in_flight: usize,
    /// How often a message arrives and stays under way.
    pub doubles: u32,
    /// How often a leader sends heartbeats.
    pub beats: u32,
    /// How often a disk loses what it had synced.
    pub losses: u32,
    /// A leader that crashes is proved to be dead.
    pub proofs: bool,
    /// It is checked by default, in seconds.
    pub is_quick: bool,
    /// A bug that is planted.
    pub bug: Option<Bug>,
}

const NOTHING: Bounds = Bounds {
    name: "",
    members: 3,
    candidates: 3,
    begun: 0,
    terms: 2,
    entries: 3,
    silences: 0,
    orders: 0,
    crashes: 0,
    slow_disks: false,
    in_flight: 1,
    doubles: 0,
    beats: 0,
    losses: 0,
    proofs: false,
    is_quick: false,
    bug: None,
};

/// The models, by name.
pub const MODELS: &[Bounds] = &[
    // Votes and entries, from nothing.
    Bounds {
        name: "order",
        orders: 2,
        candidates: 2,
        is_quick: true,
        ..NOTHING
    },
    Bounds {
        name: "orders",
        orders: 3,
        candidates: 2,
        ..NOTHING
    },
    // The same, whose members ask before they stand.
    Bounds {
        name: "silence",
        silences: 2,
        candidates: 2,
        entries: 2,
        is_quick: true,
        ..NOTHING
    },
    // Two messages on a link may pass each other.
    Bounds {
        name: "reorder",
        orders: 2,
        candidates: 2,
        entries: 2,
        in_flight: 2,
        ..NOTHING
    },
    Bounds {
        name: "double",
        orders: 2,
        candidates: 2,
        entries: 2,
        doubles: 1,
        ..NOTHING
    },
    // Disks are slow, and a crash takes what they do not have.
    Bounds {
        name: "crash",
        begun: 2,
        orders: 1,
        crashes: 1,
        slow_disks: true,
        entries: 2,
        is_quick: true,
        ..NOTHING
    },
    Bounds {
        name: "crashes",
        orders: 2,
        candidates: 2,
        crashes: 1,
        slow_disks: true,
        ..NOTHING
    },
    // Decision 10: the leader dies, and all that is known of it is that.
    Bounds {
        name: "proof",
        begun: 3,
        crashes: 1,
        proofs: true,
        entries: 2,
        is_quick: true,
        ..NOTHING
    },
    // Decision 8: a majority has an entry, and one of it loses it, with its vote.
    Bounds {
        name: "recovering",
        members: 5,
        // The last two are alike.
        candidates: 4,
        begun: 3,
        orders: 1,
        losses: 1,
        entries: 1,
        is_quick: true,
        ..NOTHING
    },
    // The same, with repairs while nobody leads, and anchors of a leader.
    Bounds {
        name: "recovered",
        members: 5,
        candidates: 4,
        begun: 3,
        orders: 1,
        silences: 1,
        losses: 1,
        beats: 2,
        terms: 3,
        entries: 2,
        ..NOTHING
    },
];
