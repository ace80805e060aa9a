//! placeholder
use crate::base::report::Report;
use crate::cli::Common;
pub(super) const EXAMPLES: &str = "Example:";
#[derive(clap::Args, Debug)]
pub(super) struct RepairArgs {}
pub(super) fn run(_: &RepairArgs, _: &Common) -> Result<(), Report> {
    Ok(())
}
