//! The vocabulary that every other folder shares: ids, units, entries, bounds.
//!
//! Nothing here does I/O, reads a clock or knows another folder. What is deliberately absent:
//! a general utilities file. A thing lives here only when two siblings must agree on it.

pub mod bugs;
pub mod catalogue;
pub mod checksum;
pub mod code;
pub mod entry;
pub mod ids;
pub mod limits;
pub mod lookup;
pub mod members;
pub mod prng;
pub mod report;
pub mod units;
