//! The other nodes of the cluster: who they are, how a cluster begins, and the connections to them.
//!
//! ```text
//!   plain threads                                            shard 0's executor
//!   acceptor ── hello ──┐                                    ┌─> incoming: frames ─> inputs of all shards
//!   connector a node ───┼─> Letter::Linked(stream) ──────────┤
//!      ^   resolve,     │                                    └─> outgoing: one outbox a node ─> frames
//!      └── connect, hello                                             │
//!          └───────────────────────── it ended ───────────────────────┘
//! ```
//!
//! Each node opens one connection to each other and says everything over it; what it hears comes over
//! the connection that the other opened. So there is one ordered stream a node pair and direction. A
//! connection is made by blocking calls on a plain thread ([`connector`]), which may wait for names,
//! routes and slow greetings; once both hellos fit, shard 0 has it ([`link`]), and the thread waits for
//! its end.
//!
//! | what is seen | what the engines are told |
//! | --- | --- |
//! | both hellos fit | [`Input::PeerKnown`](crate::shard::input::Input::PeerKnown): addresses, versions |
//! | the connection out ends | [`Loss::Broken`](crate::shard::input::Loss::Broken) |
//! | the next attempt is refused, the first time | [`Loss::Dead`](crate::shard::input::Loss::Dead): no process listens |
//! | a hello with a higher start number | [`Loss::Dead`](crate::shard::input::Loss::Dead): of the process before |
//! | no beat for a while | [`Loss::Silent`](crate::shard::input::Loss::Silent), by shard 0's engine |
//!
//! Memory is bounded: what cannot be sent to a node waits up to
//! [`PEER_OUTBOX_BYTES_MAX`](crate::base::limits::PEER_OUTBOX_BYTES_MAX) and is dropped beyond, and
//! while there is no connection; Raft says again what matters.
//!
//! Who is connected to changes with the members of the cluster, which shard 0's engine knows
//! ([`Effect::ClusterMembers`](crate::shard::effect::Effect::ClusterMembers)). Where a node is reached it says
//! itself, and others pass that on: a configuration that does not list a node that came later is no fault.

pub mod connector;
pub mod forming;
pub mod handshake;
pub mod link;
pub mod roster;
