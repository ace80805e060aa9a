//! The engine of a core: everything that it decides.
