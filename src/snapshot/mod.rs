//! Hot-state checkpoints: their files and how they are read.
