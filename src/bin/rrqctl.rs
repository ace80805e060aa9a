//! `rrqctl`: rrq's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    rrq::cli::main_with_args(std::env::args_os())
}
