//! The engine's hands: files, sockets, threads and clocks. It performs and decides nothing.
//!
//! The only folder that may name glommio. What it relies on of glommio 0.9, and what it does
//! against its hazards, is told where it matters:
//!
//! | hazard | met by |
//! | --- | --- |
//! | an executor sleeps though it has work | [`poker`]: pokes from outside; [`mesh`]: mailboxes |
//! | it panics without io_uring or locked memory | [`preflight`] asks first |
//! | the first park waits for an RCU grace period | [`sys::register_membarrier`], in `main` |
//! | a first file that is empty spoils all reads | only whole segments are opened, [`wal_writer`] |
//! | a runnable task starves all I/O | no loops on executors; long work on [`segments`]', [`snapshot_files`]', [`snapshot_reads`]' and [`scrubber`]'s threads |
//! | a panic ends one executor alone | the hook in [`node`] ends the process |
//!
//! Threads: one executor a shard ([`shard_task`]); a shard's three helpers, for the files of its log, for
//! writing its checkpoints and for reading them; two that end with the start, for the superblock and for
//! fetching the program; poker, signals, space, admin; in a cluster one for each other node, and one
//! that accepts them ([`peers`]).

pub mod admin;
pub mod api;
pub mod budget;
pub mod clocks;
pub mod config;
pub mod connection;
pub mod data_dir;
pub mod desk;
pub mod durations;
pub mod guest;
pub mod json;
pub mod listener;
pub mod lock;
pub mod log_files;
mod log_threads;
pub mod logs;
pub mod mesh;
pub mod metrics;
pub mod node;
pub mod peers;
pub mod poker;
pub mod preflight;
pub mod process;
pub mod recover;
pub mod redistribute;
pub mod repair;
pub mod scrubber;
pub mod segments;
pub mod sets;
pub mod shard_task;
pub mod snapshot_files;
pub mod snapshot_reads;
pub mod space;
pub mod supervisor;
pub mod sys;
pub mod wal_writer;
