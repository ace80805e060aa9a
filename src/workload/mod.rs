//! A stream of requests by seed.
