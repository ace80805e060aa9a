//! rrq-node

fn main() {}
