//! The engine of a core: everything that it decides.

pub mod config;
pub mod effect;
pub mod engine;
pub mod input;
