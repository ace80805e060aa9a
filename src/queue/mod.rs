//! The job state machine of a group.

pub mod command;
pub mod view;
