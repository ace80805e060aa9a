//! `rrq-node`: one node of rrq.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: rrq::runtime::sys::Allocator = rrq::runtime::sys::Allocator;

fn main() -> ExitCode {
    rrq::runtime::node::main_with_args(std::env::args_os())
}
