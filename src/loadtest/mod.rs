//! `rrq-bench`: measures rrq from outside, with its own client library, and keeps the books.
//!
//! | file | holds |
//! | --- | --- |
//! | `crash_recover.rs` | kill -9 under load: how long, and is anything lost |
//! | `failover.rs`, `failover/outcome.rs` | one node of several goes: how long do clients wait for the others |
//! | `demo.rs` | the same to be watched: `rrqctl demo` shows it |
//! | `load/` | how much a node does, how fast, at what cost |
//! | `writes.rs` | what a node writes for a change of a job |
//! | `background.rs` | the load that is on meanwhile: producers, workers, audits |
//! | `cold.rs` | a start with nothing in memory |
//! | `first_job.rs` | the impatient client that times a start |
//! | `node.rs` | a node as a child process, its port and folder |
//! | `cluster.rs` | several of them, and who leads what |
//! | `network.rs` | namespaces in which a node can be cut off |
//! | `sim.rs` | the simulator over many seeds |
//! | `gaps.rs` | the longest silence of streams of answers |
//! | `setting.rs` | the folder of the data, the signal that ends a run early |
//! | `disk_probe.rs`, `host.rs`, `process.rs` | what the figures were taken on |
//! | `report.rs` | percentiles, bars |
//! | `args.rs` | the command line |
//!
//! What a job's answer means for the books is decided in [`workload`](crate::workload).

mod args;
mod background;
mod cluster;
mod cold;
pub mod crash_recover;
pub mod demo;
mod disk_probe;
pub mod failover;
mod first_job;
mod gaps;
mod host;
mod html;
pub mod load;
mod network;
mod node;
mod process;
mod report;
mod setting;
mod sim;
pub mod writes;

pub use args::main_with_args;
pub use host::HostFacts;
pub use report::Percentiles;

/// The subcommand by which a bench starts itself as a node, and `rrqctl demo` as well.
pub const NODE_SUBCOMMAND: &str = "__node";
