//! `rrq-bench`: measures rrq from outside. It can start itself as a node.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: rrq::runtime::sys::Allocator = rrq::runtime::sys::Allocator;

fn main() -> ExitCode {
    rrq::loadtest::main_with_args(std::env::args_os())
}
