//! Saved addresses of servers, and which one is meant: `--server`, else `RRQ_SERVER`, else the
//! current context, else this machine.
//!
//! They stand in `$XDG_CONFIG_HOME/rrq/contexts.toml` (without that variable, in
//! `~/.config/rrq/contexts.toml`), and nothing else does. The file is replaced as a whole.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::Output;
use crate::cli::terminal::{print, say, say_json, table};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl context add prod queue.internal:7411
  rrqctl context use prod
  rrqctl context list

Which server is asked: `--server`, else the variable RRQ_SERVER, else that of
the context in use, else 127.0.0.1:7411.";

const ADD_EXAMPLES: &str = "\
Examples:
  rrqctl context add prod queue1:7411,queue2:7411
  rrqctl context add local 127.0.0.1:7411 --use";

const LIST_EXAMPLES: &str = "\
Example:
  rrqctl context list --output json";

const USE_EXAMPLES: &str = "\
Example:
  rrqctl context use prod";

const REMOVE_EXAMPLES: &str = "\
Example:
  rrqctl context remove prod";

/// Where a server is looked for that nobody has named.
pub(super) const DEFAULT_SERVER: &str = "127.0.0.1:7411";

#[derive(clap::Args, Debug)]
pub(super) struct ContextArgs {
    #[command(subcommand)]
    verb: ContextVerb,
}

#[derive(clap::Subcommand, Debug)]
enum ContextVerb {
    /// Save an address under a name, in place of what the name had.
    #[command(after_help = ADD_EXAMPLES)]
    Add {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        /// Where the server is; several addresses are separated by commas.
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// Use it from now on.
        #[arg(long = "use")]
        is_used: bool,
    },
    /// Show all.
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Ask this server where no other is named.
    #[command(after_help = USE_EXAMPLES)]
    Use {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Forget an address.
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// The file.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// The context in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    /// Names and addresses.
    #[serde(default)]
    contexts: BTreeMap<String, String>,
}

pub(super) fn run(args: &ContextArgs, output: Output) -> Result<(), Report> {
    let path = path()?;
    let mut saved = Saved::read(&path)?;
    match &args.verb {
        ContextVerb::List => list(&saved, output),
        ContextVerb::Add {
            name,
            address,
            is_used,
        } => {
            check_name(name)?;
            check_address(address)?;
            saved.contexts.insert(name.clone(), address.clone());
            if *is_used {
                saved.current = Some(name.clone());
            }
            saved.write(&path)?;
            say(&format!("context {name} is {address}"))
        }
        ContextVerb::Use { name } => {
            let address = saved.find(name)?.to_owned();
            saved.current = Some(name.clone());
            saved.write(&path)?;
            say(&format!("context {name} is in use: {address}"))
        }
        ContextVerb::Remove { name } => {
            saved.find(name)?;
            saved.contexts.remove(name);
            if saved.current.as_ref() == Some(name) {
                saved.current = None;
            }
            saved.write(&path)?;
            say(&format!("context {name} is removed"))
        }
    }
}

/// The server that is meant, if no flag and no variable names one.
pub(super) fn current() -> Result<String, Report> {
    // Without a home there can be no file.
    let Ok(path) = path() else {
        return Ok(DEFAULT_SERVER.to_owned());
    };
    let saved = Saved::read(&path)?;
    match &saved.current {
        None => Ok(DEFAULT_SERVER.to_owned()),
        Some(name) => match saved.contexts.get(name) {
            Some(address) => Ok(address.clone()),
            None => Err(Report::error(
                Code::BadConfig,
                format!("the context in use, {name}, has no address"),
            )
            .location(path.display().to_string())
            .fix("rrqctl context use NAME, of one that `rrqctl context list` shows")),
        },
    }
}

fn path() -> Result<PathBuf, Report> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let folder = variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".config")));
    let folder = folder.ok_or_else(|| {
        Report::error(Code::BadConfig, "there is no place to keep contexts in")
            .why("neither XDG_CONFIG_HOME nor HOME is set")
            .fix("--server HOST:PORT, or the variable RRQ_SERVER")
    })?;
    Ok(folder.join("rrq").join("contexts.toml"))
}

fn check_name(name: &str) -> Result<(), Report> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if (1..=64).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    let what = format!("`{name}` cannot be the name of a context");
    Err(Report::error(Code::BadArgument, what)
        .why("a name is 1 to 64 of A-Z a-z 0-9 . _ -")
        .fix("rrqctl context add prod HOST:PORT"))
}

fn check_address(address: &str) -> Result<(), Report> {
    let blank = |part: &str| part.trim().is_empty() || part.trim().contains(char::is_whitespace);
    if !address.split(',').any(blank) {
        return Ok(());
    }
    let what = format!("`{address}` is no address of a server");
    Err(Report::error(Code::BadArgument, what).fix("HOST:PORT, or several with commas between"))
}

impl Saved {
    fn read(path: &Path) -> Result<Self, Report> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                let what = format!("cannot read {}", path.display());
                return Err(Report::error(Code::BadConfig, what).location(error.to_string()));
            }
        };
        toml::from_str(&text).map_err(|error| {
            let what = format!("{} has an error", path.display());
            Report::error(Code::BadConfig, what)
                .location(error.to_string())
                .fix("put it right, or remove the file and add the contexts anew")
        })
    }

    fn write(&self, path: &Path) -> Result<(), Report> {
        let text = toml::to_string(self).expect("names and addresses are valid TOML");
        let write = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let temporary = path.with_extension(format!("toml.{}", std::process::id()));
            fs::write(&temporary, &text)?;
            fs::rename(&temporary, path)
        };
        write().map_err(|error: io::Error| {
            let what = format!("cannot write {}", path.display());
            Report::error(Code::BadConfig, what)
                .location(error.to_string())
                .fix("XDG_CONFIG_HOME with a folder that this user may write")
        })
    }

    fn find(&self, name: &str) -> Result<&str, Report> {
        match self.contexts.get(name) {
            Some(address) => Ok(address),
            None => Err(
                Report::error(Code::BadArgument, format!("there is no context {name}"))
                    .fix("one that `rrqctl context list` shows, or `rrqctl context add`"),
            ),
        }
    }
}

fn list(saved: &Saved, output: Output) -> Result<(), Report> {
    let is_current = |name: &String| saved.current.as_ref() == Some(name);
    match output {
        Output::Json => {
            let contexts = saved.contexts.iter().map(|(name, address)| {
                json!({"name": name, "server": address, "current": is_current(name)})
            });
            say_json(&json!({"contexts": contexts.collect::<Vec<_>>()}))
        }
        Output::Table if saved.contexts.is_empty() => {
            say("no contexts yet; `rrqctl context add NAME HOST:PORT` saves one")
        }
        Output::Table => {
            let mut rows = vec![["context", "in use", "server"].map(str::to_owned).to_vec()];
            rows.extend(saved.contexts.iter().map(|(name, address)| {
                let mark = if is_current(name) { "yes" } else { "" };
                vec![name.clone(), mark.to_owned(), address.clone()]
            }));
            print(&table(&rows))
        }
    }
}
