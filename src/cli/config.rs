//! `rrqctl config`: what a node would be started with, and where each value comes from.

use crate::base::report::Report;
use crate::cli::Output;
use crate::cli::terminal::{print, say, say_json, warn};
use crate::runtime::config::{self, Loaded, Origin};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl config show configs/single.toml --origin
  rrqctl config check configs/single.toml";

const SHOW_EXAMPLES: &str = "\
Examples:
  rrqctl config show
  rrqctl config show configs/single.toml --origin
  rrqctl config show > node.toml

Flags of rrq-node come on top of what is shown. The output is a file that
`--config` takes.";

const CHECK_EXAMPLES: &str = "\
Example:
  rrqctl config check configs/single.toml

Tells all errors at once; exit status 2 if there are any.";

#[derive(clap::Args, Debug)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(clap::Subcommand, Debug)]
enum ConfigVerb {
    /// Show every key with its value.
    #[command(after_help = SHOW_EXAMPLES)]
    Show {
        #[command(flatten)]
        file: FileArgs,
        /// Say beside each where it comes from.
        #[arg(long)]
        origin: bool,
    },
    /// Look for errors.
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        #[command(flatten)]
        file: FileArgs,
    },
}

#[derive(clap::Args, Debug)]
struct FileArgs {
    /// The configuration file of a node [default: none].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same, as rrq-node takes it [default: none].
    #[arg(long, env = "RRQ_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl FileArgs {
    fn path(&self) -> Option<&Path> {
        self.file.as_deref().or(self.config.as_deref())
    }
}

pub(super) fn run(args: &ConfigArgs, output: Output) -> Result<(), Report> {
    let (file, shown) = match &args.verb {
        ConfigVerb::Show { file, origin } => (file, Some(*origin)),
        ConfigVerb::Check { file } => (file, None),
    };
    let loaded = config::read(file.path(), config::environment())?;
    for warning in &loaded.warnings {
        warn(&warning.to_string());
    }
    match (shown, output) {
        (Some(_), Output::Json) => say_json(&as_json(&loaded)),
        (Some(origin), Output::Table) => print(&as_toml(&loaded, origin)),
        (None, _) => {
            let is_default = |origin: &Origin| matches!(origin, Origin::Default);
            let settings = loaded.settings.iter();
            let defaults = settings.filter(|one| is_default(&one.origin)).count();
            let set = loaded.settings.len() - defaults;
            match output {
                Output::Json => say_json(&json!({
                    "set": set,
                    "defaults": defaults,
                    "warnings": loaded.warnings.iter().map(|one| &one.what).collect::<Vec<_>>(),
                })),
                Output::Table => say(&format!("sound: {set} keys set, {defaults} at defaults")),
            }
        }
    }
}

fn as_json(loaded: &Loaded) -> Value {
    let settings = loaded.settings.iter().map(|setting| {
        json!({
            "key": setting.key.name,
            "value": setting.value,
            "origin": setting.origin.to_string(),
            "variable": setting.key.env(),
            "flag": setting.key.flag,
        })
    });
    json!({"settings": settings.collect::<Vec<_>>()})
}

fn as_toml(loaded: &Loaded, origin: bool) -> String {
    let line = |setting: &config::Setting| {
        let text = format!("{} = {}", setting.key.name, setting.toml());
        match origin {
            true => format!("{text:<44} # {}\n", setting.origin),
            false => format!("{text}\n"),
        }
    };
    loaded.settings.iter().map(line).collect()
}
