//! The command line of `rrq-node`.
//!
//! Each flag's help names its default and its environment variable; a test compares them with the
//! table of keys.

use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Starts one rrq node: a durable job queue that listens until it is stopped.
#[derive(Debug, Parser)]
#[command(
    name = "rrq-node",
    version,
    after_help = "Every key of the configuration file can be given as an environment variable too: \
                  RRQ_LISTEN__CLIENT=127.0.0.1:7411. Flags win over the environment, the \
                  environment over the file.\n\nExamples:\n  rrq-node --data-dir /var/lib/rrq --shards 2\n  \
                  rrq-node check --data-dir /var/lib/rrq"
)]
pub(super) struct Flags {
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
    /// Configuration file; configs/single.toml in the source shows every key [default: none] [env:
    /// RRQ_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) config: Option<PathBuf>,
    /// Where the node keeps everything [default: ./rrq-data] [env: RRQ_NODE__DATA_DIR]
    #[arg(long, value_name = "DIR", global = true)]
    pub(super) data_dir: Option<String>,
    /// Where clients connect; shard k listens k ports further [default: 127.0.0.1:7411] [env:
    /// RRQ_LISTEN__CLIENT]
    #[arg(long, value_name = "ADDR:PORT", global = true)]
    pub(super) listen: Option<String>,
    /// Where metrics, health and /api/v1 are served [default: 127.0.0.1:7480] [env:
    /// RRQ_LISTEN__ADMIN]
    #[arg(long, value_name = "ADDR:PORT", global = true)]
    pub(super) admin: Option<String>,
    /// Number of shards, 1 to 64, or per-core, or as-made: as the directory was made, one for each
    /// core if it is new [default: as-made] [env: RRQ_SHARDS__COUNT]
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "shard_per_core",
        global = true
    )]
    pub(super) shards: Option<String>,
    /// One shard for each core that the process may use, as --shards per-core [default: as the
    /// directory was made] [env: RRQ_SHARDS__COUNT=per-core]
    #[arg(long, global = true)]
    pub(super) shard_per_core: bool,
    /// Leave the choice of cores to the kernel: for crowded machines [default: shards are pinned]
    /// [env: RRQ_SHARDS__PIN=false]
    #[arg(long, global = true)]
    pub(super) no_pin: bool,
    /// For trying things out: allow a data directory in memory, which loses jobs at a reboot
    /// [default: refused] [env: RRQ_DEV=true]
    #[arg(long, global = true)]
    pub(super) dev: bool,
    /// Listen beyond loopback although there is no authentication yet [default: refused] [env:
    /// RRQ_LISTEN__INSECURE=true]
    #[arg(long, global = true)]
    pub(super) insecure: bool,
    /// Number of this node in its cluster [default: 1] [env: RRQ_NODE__ID]
    #[arg(long, value_name = "N", global = true)]
    pub(super) id: Option<String>,
    /// All nodes of the cluster, this one too, as ID=HOST:PORT with commas between: the same list on
    /// each of them [default: alone] [env: RRQ_CLUSTER__MEMBERS]
    #[arg(long, value_name = "LIST", global = true)]
    pub(super) members: Option<String>,
    /// What this node shares with others that may be lost together, a rack or a site: leaders are spread
    /// over zones first [default: none] [env: RRQ_CLUSTER__ZONE]
    #[arg(long, value_name = "NAME", global = true)]
    pub(super) zone: Option<String>,
    /// Largest payload of a job, up to 4MiB [default: 1MiB] [env: RRQ_LIMITS__PAYLOAD_MAX]
    #[arg(long, value_name = "SIZE", global = true)]
    pub(super) payload_max: Option<String>,
    /// error, warn, info, debug or trace [default: info] [env: RRQ_LOG__LEVEL]
    #[arg(long, value_name = "LEVEL", global = true)]
    pub(super) log_level: Option<String>,
    /// text or json [default: text] [env: RRQ_LOG__FORMAT]
    #[arg(long, value_name = "FORMAT", global = true)]
    pub(super) log_format: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Looks whether a node could run here, and how well; starts nothing
    #[command(
        after_help = "Looks at the kernel, its limits, the data directory and its disk, the ports \
                      and the configuration, in less than 2 s. A few blocks are written to a \
                      temporary file in the data directory and removed; a running node's \
                      directory is only read.\n\n\
                      Exit status: 0 all is well, 1 with warnings, 3 if a node could not run.\n\n\
                      Examples:\n  rrq-node check --data-dir /var/lib/rrq\n  \
                      rrq-node check --format nagios"
    )]
    Check {
        /// One line for each check, an object, or one line for a monitoring system [default: text]
        /// [env: none]
        #[arg(
            long,
            value_name = "FORMAT",
            default_value = "text",
            hide_default_value = true
        )]
        format: CheckFormat,
    },
}

/// How the outcome of the checks is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// A line for each check.
    Text,
    /// One object.
    Json,
    /// One line, as Nagios and its kin read it.
    Nagios,
}

impl Flags {
    /// The flags given, with the key that each sets and its text.
    pub(super) fn given(&self) -> Vec<(&'static str, &'static str, String)> {
        let when = |given: bool, text: &str| given.then(|| text.to_owned());
        [
            ("--data-dir", "node.data_dir", self.data_dir.clone()),
            ("--id", "node.id", self.id.clone()),
            ("--members", "cluster.members", self.members.clone()),
            ("--zone", "cluster.zone", self.zone.clone()),
            ("--listen", "listen.client", self.listen.clone()),
            ("--admin", "listen.admin", self.admin.clone()),
            ("--insecure", "listen.insecure", when(self.insecure, "true")),
            ("--shards", "shards.count", self.shards.clone()),
            (
                "--shard-per-core",
                "shards.count",
                when(self.shard_per_core, "per-core"),
            ),
            ("--no-pin", "shards.pin", when(self.no_pin, "false")),
            ("--dev", "dev", when(self.dev, "true")),
            (
                "--payload-max",
                "limits.payload_max",
                self.payload_max.clone(),
            ),
            ("--log-level", "log.level", self.log_level.clone()),
            ("--log-format", "log.format", self.log_format.clone()),
        ]
        .into_iter()
        .filter_map(|(flag, key, text)| Some((flag, key, text?)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::config::keys::{KEYS, show};
    use crate::runtime::config::{CONFIG_VARIABLE, NodeConfig};
    use clap::CommandFactory;

    #[test]
    fn each_flag_tells_its_default_and_its_variable() {
        let mut command = Flags::command();
        command.build();
        let check = command.find_subcommand("check").expect("it is there");
        for argument in command.get_arguments().chain(check.get_arguments()) {
            let id = argument.get_id().as_str();
            if ["help", "version"].contains(&id) {
                continue;
            }
            let help = argument.get_help().expect("a help").to_string();
            assert!(help.contains("[default: "), "{id}: {help}");
            assert!(help.contains("[env: "), "{id}: {help}");
        }
        assert!(command.get_arguments().all(|argument| {
            argument.get_id() != "config"
                || argument
                    .get_help()
                    .expect("a help")
                    .to_string()
                    .contains(CONFIG_VARIABLE)
        }));
        let defaults = NodeConfig::default();
        for key in KEYS {
            let Some(flag) = key.flag else { continue };
            let argument = command
                .get_arguments()
                .find(|argument| argument.get_long() == flag.strip_prefix("--"))
                .unwrap_or_else(|| panic!("{flag} is no flag"));
            let help = argument.get_help().expect("a help").to_string();
            assert!(help.contains(&key.env()), "{flag}: {help}");
            if argument
                .get_num_args()
                .is_some_and(|count| count.takes_values())
            {
                let default = format!("[default: {}]", show(&defaults, key.name));
                assert!(help.contains(&default), "{flag}: {default} in {help}");
            }
        }
    }
}
