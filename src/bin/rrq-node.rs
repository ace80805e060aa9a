//! `rrq-node`: one node of rrq.

use std::process::ExitCode;

fn main() -> ExitCode {
    rrq::runtime::node::main_with_args(std::env::args_os())
}
