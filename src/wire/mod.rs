//! The wire protocol.

pub mod message;
