//! `rrqctl check`: whether a node could run here, as `rrq-node check` says it.

use crate::base::report::Report;
use crate::cli::Output;
use crate::cli::terminal::print;
use crate::runtime::config::{self, Asked, CheckFormat, NoConfig};
use crate::runtime::preflight::check;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl check
  rrqctl check --config /etc/rrq/node.toml --data-dir /var/lib/rrq
  rrqctl check --nagios

Looks at kernel, io_uring, limits, data directory, ports and configuration with
the rights of who calls it: as the user that runs the node. Exit status 0 all
is well, 1 with warnings, 3 if a node could not run (for Nagios 2).";

#[derive(clap::Args, Debug)]
pub(super) struct CheckArgs {
    /// The configuration file of the node [default: none].
    #[arg(long, env = "RRQ_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory of the node [default: that of the configuration].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// One line, as Nagios and its kin read it.
    #[arg(long)]
    nagios: bool,
}

/// Looks, and says how it stands by text and status.
pub(super) fn run(args: &CheckArgs, output: Output) -> Result<ExitCode, Report> {
    let format = match (args.nagios, output) {
        (true, _) => "nagios",
        (false, Output::Json) => "json",
        (false, Output::Table) => "text",
    };
    let mut words: Vec<OsString> = ["rrq-node", "check", "--format", format]
        .map(OsString::from)
        .to_vec();
    for (flag, path) in [("--config", &args.config), ("--data-dir", &args.data_dir)] {
        if let Some(path) = path {
            words.extend([flag.into(), path.clone().into_os_string()]);
        }
    }
    let (loaded, format): (_, CheckFormat) = match config::load(words, config::environment()) {
        Ok(Asked::Check(loaded, format)) => (loaded, format),
        Err(NoConfig::Wrong(report)) => return Err(*report),
        Ok(Asked::Run(_)) | Err(NoConfig::Asked(_)) => {
            unreachable!("the words above ask for a check")
        }
    };
    let findings = check::check(loaded.as_ref().map_err(|report| &**report));
    print(&check::show(&findings, format))?;
    Ok(ExitCode::from(check::exit_code(&findings, format)))
}
