//! `rrqctl`: rrq's command line. It can start itself as a node, for `rrqctl demo`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: rrq::runtime::sys::Allocator = rrq::runtime::sys::Allocator;

fn main() -> ExitCode {
    rrq::cli::main_with_args(std::env::args_os())
}
