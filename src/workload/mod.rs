//! What a load test or a simulator asks of the queue, and the books that it keeps of the answers.
//!
//! Pure: no clock, no I/O. [`payload()`] makes the bytes of job number n and knows them again;
//! [`Ledger`] is told of each answer and says which jobs are lost, came back after their ack, or
//! were made twice.

mod ledger;
mod payload;

pub use ledger::{Ledger, Misses};
pub use payload::{PAYLOAD_BYTES_MIN, number_of, payload};
