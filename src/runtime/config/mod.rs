//! What a node is told at its start: a file, then the environment, then flags; the last one wins.
//!
//! ```text
//! defaults < FILE (`file`) < RRQ_SECTION__KEY < flags (`flags`)
//!               └────────────── as text ──────────┴─> `keys::set`: one table, one set of bounds
//! ```
//!
//! Every value keeps where it came from. All errors are reported in one run, each with its place.
//! Checked once, never read again.
//!
//! A variable that starts with `RRQ_` and is no key is a warning, not an error: the environment is
//! shared with other programs and outlives versions.

mod file;
mod flags;
mod keys;
mod value;

pub use flags::CheckFormat;
pub use keys::{KEYS, Key};

use crate::base::code::Code;
use crate::base::ids::NodeId;
use crate::base::limits::{
    CHECKPOINT_LOG_BYTES_MIN, IN_FLIGHT_BYTES_DEFAULT_MAX, IN_FLIGHT_BYTES_SHARD_MIN,
    PAYLOAD_BYTES_DEFAULT_MAX, TAILS_BYTES_MAX, TAILS_BYTES_MIN,
};
use crate::base::report::Report;
use crate::wal::record::MACHINE_VERSION_MAX;
use crate::wire::QueueSettings;
use clap::Parser;
use flags::{Flags, Verb};
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use value::Refusal;

/// Names the configuration file, as `--config` does.
pub const CONFIG_VARIABLE: &str = "RRQ_CONFIG";
/// Variables of the other programs, and of containers that name a service `rrq`.
const NOT_OURS: &[&str] = &[
    "RRQ_OUTPUT",
    "RRQ_SERVER",
    "RRQ_NODE",
    "RRQ_JOB",
    "RRQ_QUEUE",
    "RRQ_ATTEMPT",
];
const ADVICE: &str =
    "`rrqctl config show` lists every key; configs/single.toml of the source has their bounds";
/// Errors that a report lists; of more it gives the number.
const FAULTS_SHOWN: usize = 20;

/// The settings of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Whether a data directory in memory is allowed.
    pub dev: bool,
    /// Whether listening beyond loopback is allowed.
    pub insecure: bool,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Which node this is; `None` takes what the directory says, 1 for a new one.
    pub node: Option<NodeId>,
    /// The first shard's listener; shard k takes the k-th port after it, or any if it is 0.
    pub client: SocketAddr,
    /// The host by which clients reach this node, for the ports of its shards; `None`: see
    /// [`Self::advertised`].
    pub advertise: Option<String>,
    /// The listener of metrics and health.
    pub admin: SocketAddr,
    /// Where the other nodes connect; `None`: where the list of members has this node.
    pub peer: Option<SocketAddr>,
    /// All nodes of the cluster with this one, ascending; none: it stands alone.
    pub members: Vec<Member>,
    /// What this node shares with others that may be lost together.
    pub zone: Option<String>,
    /// How many shards.
    pub shards: Shards,
    /// Whether shards stay on cores of their own.
    pub pin: bool,
    /// The largest payload of a job.
    pub payload_bytes_max: usize,
    /// Connections of clients at once, over all shards.
    pub connections_max: usize,
    /// Bytes that the connections may hold together: frames half here, requests and replies under
    /// way; `None`: as the memory allows.
    pub in_flight_bytes_max: Option<usize>,
    /// Memory that jobs and keys may take, in bytes; `None`: a quarter of what the process may have.
    pub jobs_memory_max: Option<u64>,
    /// Whether a queue is made at its first use.
    pub auto_create: bool,
    /// What such a queue gets.
    pub queue_defaults: QueueSettings,
    /// The least severe messages shown.
    pub log_level: tracing::Level,
    /// Whether logs are JSON.
    pub log_json: bool,
    /// Within a second of the last one no checkpoint is cut after fewer bytes of log, a shard, unless memory
    /// is short.
    pub checkpoint_log_bytes: u64,
    /// How long a start may read back, and apply, the log between two checkpoints.
    pub replay_budget: Duration,
    /// All that the newest checkpoints have on the disk is looked at within this; `None`: not until it is needed.
    pub scrub_period: Option<Duration>,
    /// The highest version of the job machine that this node proposes.
    pub machine_version_max: u16,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub node: NodeId,
    /// Where the others reach it, `host:port`.
    pub address: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.node, self.address)
    }
}

/// How many shards a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shards {
    /// As the data directory was made; one for each core if it is new.
    AsMade,
    /// One for each core that the process may use.
    PerCore,
    /// So many.
    Exactly(u16),
}

impl Default for NodeConfig {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            dev: false,
            insecure: false,
            data_dir: "./rrq-data".into(),
            node: None,
            client: loopback(7411),
            advertise: None,
            admin: loopback(7480),
            peer: None,
            members: Vec::new(),
            zone: None,
            shards: Shards::AsMade,
            pin: true,
            payload_bytes_max: PAYLOAD_BYTES_DEFAULT_MAX,
            connections_max: 10_000,
            in_flight_bytes_max: None,
            jobs_memory_max: None,
            auto_create: true,
            queue_defaults: QueueSettings::default(),
            log_level: tracing::Level::INFO,
            log_json: false,
            checkpoint_log_bytes: 4 << 20,
            replay_budget: Duration::from_millis(10),
            scrub_period: Some(Duration::from_secs(7 * 86_400)),
            machine_version_max: MACHINE_VERSION_MAX,
        }
    }
}

impl NodeConfig {
    /// What the connections of one of `shards` shards may hold together, in bytes. Unless it is set,
    /// a sixteenth of the memory that the process may have, at most [`IN_FLIGHT_BYTES_DEFAULT_MAX`]:
    /// a byte on the way takes up to four of memory.
    #[must_use]
    pub fn in_flight_bytes_shard(&self, shards: u16, memory: u64) -> usize {
        let auto = usize::try_from(memory / 16).unwrap_or(usize::MAX);
        let auto = auto.min(IN_FLIGHT_BYTES_DEFAULT_MAX);
        let all = self.in_flight_bytes_max.unwrap_or(auto);
        (all / usize::from(shards.max(1))).max(IN_FLIGHT_BYTES_SHARD_MIN)
    }

    /// Where clients are told to connect to a shard that listens at `bound`: at that address, unless
    /// another host is configured or it stands for every address of this machine. Then it is the host
    /// by which the other nodes reach this one, if there are any.
    #[must_use]
    pub fn advertised(&self, bound: SocketAddr) -> String {
        let member = self
            .members
            .iter()
            .find(|member| Some(member.node) == self.node);
        let listed = member.and_then(|member| member.address.rsplit_once(':'));
        let listed = listed
            .map(|(host, _)| host)
            .filter(|_| bound.ip().is_unspecified());
        match self.advertise.as_deref().or(listed) {
            // The brackets of an IPv6 address belong to it.
            Some(host) if host.contains(':') && !host.starts_with('[') => {
                format!("[{host}]:{}", bound.port())
            }
            Some(host) => format!("{host}:{}", bound.port()),
            None => bound.to_string(),
        }
    }

    /// What jobs and keys may take, in bytes: a quarter of the memory unless it is set, since a checkpoint
    /// of another node that is installed comes to it.
    #[must_use]
    pub fn jobs_memory(&self, memory: u64) -> u64 {
        self.jobs_memory_max.unwrap_or(memory / 4)
    }

    /// What the groups of a shard hold together of applied entries for members that are behind, in
    /// bytes: all shards together have a thirty-second of the memory.
    #[must_use]
    pub fn tails_bytes(&self, shards: u16, memory: u64) -> usize {
        let part = memory / 32 / u64::from(shards.max(1));
        let part = usize::try_from(part).unwrap_or(usize::MAX);
        part.clamp(TAILS_BYTES_MIN, TAILS_BYTES_MAX)
    }

    /// Beyond so many bytes of jobs a shard lets go of those that are on the disk: half of what jobs may
    /// take, so that there is room for those that are not yet.
    #[must_use]
    pub fn jobs_held(&self, shards: u16, memory: u64) -> u64 {
        self.jobs_memory(memory) / 2 / u64::from(shards.max(1))
    }

    /// The most that the log of a shard grows between two checkpoints, in bytes: all shards together
    /// have a sixteenth of the memory. A start reads up to four times this, and holds the jobs as well.
    #[must_use]
    pub fn checkpoint_log_max(&self, shards: u16, memory: u64) -> u64 {
        (memory / 16 / u64::from(shards.max(1))).max(CHECKPOINT_LOG_BYTES_MIN)
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file.
    File {
        /// Which.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// A key with its value and where that came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: Key,
    /// The value as text, as it would be given in a variable: `30s`, `per-core`, `true`.
    pub value: String,
    /// Who set it.
    pub origin: Origin,
}

impl Setting {
    /// The value as TOML: words in quotes, numbers and truth values without.
    #[must_use]
    pub fn toml(&self) -> String {
        if keys::is_bare(&self.value) {
            self.value.clone()
        } else {
            toml::Value::String(self.value.clone()).to_string()
        }
    }
}

/// A configuration that is sound.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What a node works with.
    pub config: NodeConfig,
    /// Every key with its origin, in the order of [`KEYS`].
    pub settings: Vec<Setting>,
    /// What is odd but not wrong: unknown variables.
    pub warnings: Vec<Report>,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// Run a node.
    Run(Loaded),
    /// Look whether one could run, whatever the configuration says of itself.
    Check(Result<Loaded, Box<Report>>, CheckFormat),
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum NoConfig {
    /// Help or version was asked for: print this and end well.
    Asked(String),
    /// Something is wrong.
    Wrong(Box<Report>),
}

/// The environment, without what is not text.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text)
}

/// The command line of `rrq-node`, for its manual.
#[must_use]
pub fn command() -> clap::Command {
    <Flags as clap::CommandFactory>::command()
}

/// Reads flags (the first argument is the program's name), environment and file.
///
/// # Errors
/// [`NoConfig`].
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Asked, NoConfig> {
    let flags = Flags::try_parse_from(args).map_err(usage)?;
    let mut reading = Reading::new(flags.config.as_deref(), env);
    for (flag, key, text) in flags.given() {
        if let Err(Refusal::Value(rule)) = reading.set(key, &text, Origin::Flag(flag)) {
            let what = refused(flag, &text, &rule);
            reading.fault(Code::BadArgument, what, "command line");
        }
    }
    let loaded = reading.finish().map_err(Box::new);
    match flags.verb {
        None => loaded.map(Asked::Run).map_err(NoConfig::Wrong),
        Some(Verb::Check { format }) => Ok(Asked::Check(loaded, format)),
    }
}

/// Reads environment and file alone, as a node without flags would.
///
/// # Errors
/// Every fault of the configuration in one report.
pub fn read(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, Report> {
    Reading::new(file, env).finish()
}

fn usage(error: clap::Error) -> NoConfig {
    if !error.use_stderr() {
        return NoConfig::Asked(error.to_string());
    }
    let text = error.to_string();
    let text = text.trim_start_matches("error: ");
    let what: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
    let hint = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    let report = Report::error(Code::BadArgument, what.join("\n")).fix(hint.map_or_else(
        || "rrq-node --help lists all flags".to_owned(),
        str::to_owned,
    ));
    NoConfig::Wrong(Box::new(report))
}

/// Something wrong with one value.
#[derive(Debug)]
struct Fault {
    code: Code,
    what: String,
    location: String,
    /// The line of the file, with a mark under the fault; empty if it is in no file.
    excerpt: String,
}

impl Fault {
    /// One of several.
    fn entry(&self) -> String {
        let text = format!("{}: {}\n{}", self.location, self.what, self.excerpt);
        text.trim_end().to_owned()
    }

    fn report(self) -> Report {
        let location = format!("{}\n{}", self.location, self.excerpt);
        Report::error(self.code, self.what)
            .location(location.trim_end())
            .fix(ADVICE)
    }
}

/// A configuration that is being read.
struct Reading {
    config: NodeConfig,
    /// In the order of [`KEYS`].
    origins: Vec<Origin>,
    faults: Vec<Fault>,
    warnings: Vec<Report>,
}

impl Reading {
    fn new(file: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Self {
        let mut reading = Self {
            config: NodeConfig::default(),
            origins: vec![Origin::Default; KEYS.len()],
            faults: Vec::new(),
            warnings: Vec::new(),
        };
        let mut env: Vec<_> = env.filter(|(name, _)| name.starts_with("RRQ_")).collect();
        env.sort();
        let named = env.iter().find(|(name, _)| name == CONFIG_VARIABLE);
        let file = file.or(named.map(|(_, path)| Path::new(path)));
        if let Some(path) = file {
            reading.read_file(path);
        }
        env.iter()
            .for_each(|(name, text)| reading.read_variable(name, text));
        reading
    }

    fn read_file(&mut self, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => file::read_text(self, path, &text),
            Err(error) => {
                let what = format!("cannot read {}", path.display());
                self.fault(Code::BadConfig, what, &error.to_string());
            }
        }
    }

    fn read_variable(&mut self, name: &str, text: &str) {
        if let Some(key) = KEYS.iter().find(|key| key.env() == name) {
            let origin = Origin::Environment(name.to_owned());
            if let Err(Refusal::Value(rule)) = self.set(key.name, text, origin) {
                let location = format!("environment variable {name}");
                self.fault(Code::BadConfig, refused(key.name, text, &rule), &location);
            }
            return;
        }
        // A service named rrq in Kubernetes sets RRQ_SERVICE_HOST, RRQ_PORT and more.
        let service = name.starts_with("RRQ_SERVICE_") || name.starts_with("RRQ_PORT");
        if name == CONFIG_VARIABLE || NOT_OURS.contains(&name) || service {
            return;
        }
        let names: Vec<String> = KEYS.iter().map(Key::env).collect();
        let report = Report::warning(
            Code::BadConfig,
            format!("environment variable {name} is no key and has no effect"),
        );
        self.warnings
            .push(match did_you_mean(name, names.iter().map(String::as_str)) {
                Some(nearest) => report.fix(format!("did you mean {nearest}?")),
                None => report.fix(ADVICE),
            });
    }

    fn set(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), Refusal> {
        keys::set(&mut self.config, key, text)?;
        let at = KEYS.iter().position(|known| known.name == key);
        self.origins[at.expect("what can be set is in the table")] = origin;
        Ok(())
    }

    fn fault(&mut self, code: Code, what: String, location: &str) {
        self.faults.push(Fault {
            code,
            what,
            location: location.to_owned(),
            excerpt: String::new(),
        });
    }

    fn origin(&self, key: &str) -> String {
        let at = KEYS.iter().position(|known| known.name == key);
        at.map_or(String::new(), |at| format!("{key} ({})", self.origins[at]))
    }

    /// What no single value can be blamed for.
    fn check(&mut self) {
        for (key, address) in [
            ("listen.client", Some(self.config.client)),
            ("listen.admin", Some(self.config.admin)),
            ("listen.peer", self.config.peer),
        ] {
            let Some(address) = address else { continue };
            if !address.ip().is_loopback() && !self.config.insecure {
                let what = format!(
                    "{address} is not loopback, and there is no authentication yet: --insecure if \
                     all who reach it are trusted"
                );
                let location = self.origin(key);
                self.fault(Code::BadConfig, what, &location);
            }
        }
        if self.config.client == self.config.admin && self.config.client.port() != 0 {
            let what = format!("clients and metrics cannot share {}", self.config.client);
            let location = format!(
                "{}, {}",
                self.origin("listen.client"),
                self.origin("listen.admin")
            );
            self.fault(Code::BadConfig, what, &location);
        }
        let members = &self.config.members;
        let is_one = |node| members.iter().any(|member| member.node == node);
        if !members.is_empty() && !self.config.node.is_some_and(is_one) {
            let what = "node.id must say which of the cluster.members this node is".to_owned();
            let location = format!(
                "{}, {}",
                self.origin("node.id"),
                self.origin("cluster.members")
            );
            self.fault(Code::BadConfig, what, &location);
        }
        let backoff = &self.config.queue_defaults.backoff;
        if backoff.cap_ms < backoff.base_ms {
            let location = self.origin("queue_defaults.backoff_cap");
            let what = "backoff_cap is below backoff_base".to_owned();
            self.fault(Code::BadConfig, what, &location);
        }
    }

    fn finish(mut self) -> Result<Loaded, Report> {
        self.check();
        match self.faults.len() {
            0 => {}
            1 => return Err(self.faults.swap_remove(0).report()),
            n => {
                let shown = self.faults.iter().take(FAULTS_SHOWN);
                let mut list: Vec<String> = shown.map(Fault::entry).collect();
                if let Some(more) = n.checked_sub(FAULTS_SHOWN).filter(|more| *more > 0) {
                    list.push(format!("and {more} more"));
                }
                let flags = self
                    .faults
                    .iter()
                    .all(|fault| fault.code == Code::BadArgument);
                let code = if flags {
                    Code::BadArgument
                } else {
                    Code::BadConfig
                };
                let report = Report::error(code, format!("{n} errors in the configuration"));
                return Err(report.location(list.join("\n")).fix(ADVICE));
            }
        }
        let settings = KEYS.iter().zip(self.origins).map(|(key, origin)| Setting {
            key: *key,
            value: keys::show(&self.config, key.name),
            origin,
        });
        Ok(Loaded {
            settings: settings.collect(),
            config: self.config,
            warnings: self.warnings,
        })
    }
}

fn refused(name: &str, text: &str, rule: &str) -> String {
    format!("{name} = \"{text}\": must be {rule}")
}

/// The known name that is nearest, if one is near.
fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const STEPS_MAX: usize = 3;
    let chars = name.chars().count();
    known
        // Each step changes the length by one at most, and garbage is long.
        .filter(|known| known.chars().count().abs_diff(chars) <= STEPS_MAX)
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(steps, _)| *steps <= STEPS_MAX)
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests;
