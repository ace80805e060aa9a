//! `rrq-bench`: measures rrq from outside. It can start itself as a node.

use std::process::ExitCode;

fn main() -> ExitCode {
    rrq::loadtest::main_with_args(std::env::args_os())
}
