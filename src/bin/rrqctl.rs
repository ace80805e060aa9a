//! rrqctl

fn main() {}
