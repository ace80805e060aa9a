//! The write-ahead log of a shard.

pub mod batch;
pub mod record;
pub mod segment;
