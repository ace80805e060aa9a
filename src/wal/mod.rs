//! The write-ahead log of a shard.

pub mod batch;
pub mod ledger;
pub mod record;
pub mod segment;
pub mod writer;
