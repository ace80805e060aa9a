//! The write-ahead log of a shard.

pub mod batch;
mod chain;
pub mod ledger;
pub mod record;
pub mod recovery;
pub mod replay;
pub mod segment;
pub mod writer;
