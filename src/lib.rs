//! rrq: a distributed, durable job queue. At least once; nothing acknowledged is lost.
//!
//! # Codemap
//!
//! Pure, synchronous cores decide; thin drivers do. A pure folder owns no clock, file, socket or
//! thread: time and randomness are arguments, everything else is an effect that a driver performs.
//!
//! ```text
//! bytes in -> runtime/connection -> wire::decode -> Input ─┐
//!                                                          v
//!   ┌───────────────── ShardEngine (pure, one per core) ─────────────────┐
//!   │ requests: admit, leader? ─> raft::propose ─> Ready.entries         │
//!   │   ─> wal::LogWriter (all groups of the shard; group commit)        │
//!   │      ─> Effect::WriteWal ......... Input::WalSynced ─> raft::synced│
//!   │ raft commit ─> queue::JobQueue::apply ─> pending: who waits?       │
//!   └──────────────────────────────────────────────────── Effect::Reply ─┘
//!                                              └-> wire::encode -> bytes out
//! ```
//!
//! | folder | holds | layer |
//! | --- | --- | --- |
//! | [`base`] | ids, units, entries, bounds: the vocabulary | |
//! | [`queue`] | the job state machine: total, deterministic, reads no clock | Core |
//! | `raft` | one member of one Raft group | Beaver |
//! | `wal` | the write-ahead log of a shard: batches, segments, recovery | Beaver |
//! | `snapshot` | hot-state checkpoints: run files, payload files, manifests | Beaver |
//! | [`wire`] | framing and protobuf, the only place that knows the encoding | Falcon |
//! | `shard` | the engine: everything that a core decides | Falcon |
//! | `runtime` | the engine's hands: the only folder that names glommio | Falcon |
//! | `client`, `test` | the client library; a server for the tests of its users | Falcon |
//! | `workload`, `sim` | load by seed; the engine and the client's core under simulated faults | |
//! | `loadtest`, `cli` | `rrq-bench` and `rrqctl` | |
//!
//! Which folder may name which is a test: `tests/architecture.rs`.

pub mod base;
pub mod queue;
pub mod raft;
#[cfg(feature = "engine")]
pub mod shard;
#[cfg(feature = "engine")]
pub mod sim;
#[cfg(feature = "engine")]
pub mod snapshot;
#[cfg(feature = "engine")]
pub mod wal;
pub mod wire;
#[cfg(feature = "engine")]
pub mod workload;

#[cfg(all(feature = "server", not(target_os = "linux")))]
compile_error!(
    "rrq's server needs Linux (io_uring); build the client elsewhere with \
     --no-default-features --features client"
);

#[cfg(all(feature = "cli", target_os = "linux"))]
pub mod cli;
#[cfg(any(feature = "client", feature = "engine"))]
pub mod client;
#[cfg(feature = "bench")]
pub mod loadtest;
#[cfg(all(feature = "server", target_os = "linux"))]
pub mod runtime;
#[cfg(feature = "client")]
pub mod test;
