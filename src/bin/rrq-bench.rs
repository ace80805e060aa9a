//! rrq-bench

fn main() {}
