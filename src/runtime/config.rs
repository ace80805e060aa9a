//! What a node is told at its start: a file, then the environment, then flags; the last one wins.
//!
//! Every value goes through `set` as text, whatever its source, so that bounds and messages are
//! the same everywhere. All errors are reported in one run, each with its place. Checked once,
//! never read again.

use crate::base::code::Code;
use crate::base::ids::NodeId;
use crate::base::limits::{PAYLOAD_BYTES_DEFAULT_MAX, PAYLOAD_BYTES_HARD_MAX};
use crate::base::report::Report;
use crate::wire::{BackoffKind, DeadPolicy, QueueSettings};
use clap::Parser;
use std::ffi::OsString;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

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
    /// The listener of metrics and health.
    pub admin: SocketAddr,
    /// Kept for the other nodes.
    pub peer: SocketAddr,
    /// How many shards.
    pub shards: Shards,
    /// Whether shards stay on cores of their own.
    pub pin: bool,
    /// The largest payload of a job.
    pub payload_bytes_max: usize,
    /// Connections of clients at once, over all shards.
    pub connections_max: usize,
    /// Whether a queue is made at its first use.
    pub auto_create: bool,
    /// What such a queue gets.
    pub queue_defaults: QueueSettings,
    /// The least severe messages shown.
    pub log_level: tracing::Level,
    /// Whether logs are JSON.
    pub log_json: bool,
    /// A checkpoint is cut each so many bytes of log.
    pub checkpoint_log_bytes: u64,
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
            admin: loopback(7480),
            peer: loopback(7421),
            shards: Shards::AsMade,
            pin: true,
            payload_bytes_max: PAYLOAD_BYTES_DEFAULT_MAX,
            connections_max: 10_000,
            auto_create: true,
            queue_defaults: QueueSettings::default(),
            log_level: tracing::Level::INFO,
            log_json: false,
            checkpoint_log_bytes: 32 << 20,
        }
    }
}

/// Starts one rrq node: a durable job queue that listens until it is stopped.
#[derive(Debug, Parser)]
#[command(
    name = "rrq-node",
    version,
    after_help = "Every key of the configuration file can be given as an environment variable too: \
                  RRQ_LISTEN__CLIENT=127.0.0.1:7411. Flags win over the environment, the \
                  environment over the file.\n\nExample: rrq-node --data-dir /var/lib/rrq --shards 2"
)]
struct Flags {
    /// Configuration file; configs/single.toml in the source shows every key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the node keeps everything [default: ./rrq-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where clients connect; shard k listens k ports further [default: 127.0.0.1:7411]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Where /metrics, /livez and /readyz are served [default: 127.0.0.1:7480]
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<String>,
    /// Number of shards, 1 to 64 [default: one for each core, or as the directory was made]
    #[arg(long, value_name = "N", conflicts_with = "shard_per_core")]
    shards: Option<String>,
    /// One shard for each core that the process may use
    #[arg(long)]
    shard_per_core: bool,
    /// Leave the choice of cores to the kernel: for crowded machines
    #[arg(long)]
    no_pin: bool,
    /// For trying things out: allow a data directory in memory, which loses jobs at a reboot
    #[arg(long)]
    dev: bool,
    /// Listen beyond loopback although there is no authentication yet
    #[arg(long)]
    insecure: bool,
    /// Number of this node in its cluster [default: 1]
    #[arg(long, value_name = "N")]
    id: Option<String>,
    /// Largest payload of a job, up to 4MiB [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    payload_max: Option<String>,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum NoConfig {
    /// Help or version was asked for: print this and end well.
    Asked(String),
    /// Something is wrong.
    Wrong(Box<Report>),
}

impl From<Report> for NoConfig {
    fn from(report: Report) -> Self {
        Self::Wrong(Box::new(report))
    }
}

/// Reads flags (the first argument is the program's name), environment and file.
///
/// # Errors
/// [`NoConfig`].
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<NodeConfig, NoConfig> {
    let flags = Flags::try_parse_from(args).map_err(usage)?;
    let mut config = NodeConfig::default();
    let mut faults = Vec::new();
    if let Some(path) = &flags.config {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Report::error(Code::BadConfig, format!("cannot read {}", path.display()))
                .location(error.to_string())
                .fix("--config FILE with a file that is there, or leave it out: defaults serve")
        })?;
        read_file(&mut config, path, &text, &mut faults);
    }
    read_env(&mut config, env, &mut faults);
    read_flags(&mut config, flags, &mut faults);
    check(&mut config, &mut faults);
    match faults.len() {
        0 => Ok(config),
        1 => Err(faults.swap_remove(0).report().into()),
        n => {
            let list: Vec<String> = faults.iter().map(Fault::line).collect();
            Err(
                Report::error(Code::BadConfig, format!("{n} errors in the configuration"))
                    .location(list.join("\n"))
                    .fix("configs/single.toml shows every key with its bounds")
                    .into(),
            )
        }
    }
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
    Report::error(Code::BadArgument, what.join("\n"))
        .fix(hint.map_or_else(
            || "rrq-node --help lists all flags".to_owned(),
            str::to_owned,
        ))
        .into()
}

/// Something wrong with one value.
#[derive(Debug)]
struct Fault {
    code: Code,
    what: String,
    location: String,
    /// The line of the file, with a mark under the fault.
    excerpt: String,
}

impl Fault {
    fn line(&self) -> String {
        format!("{}: {}", self.location, self.what)
    }

    fn report(self) -> Report {
        let location = format!("{}\n{}", self.location, self.excerpt);
        Report::error(self.code, self.what)
            .location(location)
            .fix("configs/single.toml shows every key with its bounds")
    }
}

/// A parsed file with what is needed to point into it.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn fault(&self, what: String, span: Range<usize>) -> Fault {
        let start = span.start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..]
            .find('\n')
            .map_or(self.text.len(), |at| start + at);
        let number = self.text[..start].matches('\n').count() + 1;
        let column = self.text[line_start..start].chars().count();
        let end = span.end.clamp(start, line_end);
        let width = self.text[start..end].chars().count().max(1);
        let digits = number.to_string().len();
        Fault {
            code: Code::BadConfig,
            what,
            location: format!("{}:{number}:{}", self.path.display(), column + 1),
            excerpt: format!(
                "{number} | {}\n{:digits$} | {:column$}{:^<width$}",
                &self.text[line_start..line_end],
                "",
                "",
                ""
            ),
        }
    }
}

fn read_file(config: &mut NodeConfig, path: &Path, text: &str, faults: &mut Vec<Fault>) {
    let source = Source { path, text };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let what = error
            .message()
            .lines()
            .next()
            .unwrap_or("not TOML")
            .to_owned();
        faults.push(source.fault(what, error.span().unwrap_or(0..0)));
    }
    if faults.is_empty() {
        read_table(config, "", table.get_ref(), &source, faults);
    }
}

fn read_table(
    config: &mut NodeConfig,
    prefix: &str,
    table: &DeTable<'_>,
    source: &Source<'_>,
    faults: &mut Vec<Fault>,
) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        let text = match value.get_ref() {
            DeValue::Table(inner) if SECTIONS.contains(&key.as_str()) => {
                read_table(config, &format!("{key}."), inner, source, faults);
                continue;
            }
            DeValue::Table(_) => {
                let what = unknown(&key, SECTIONS.iter().copied());
                faults.push(source.fault(what, name.span()));
                continue;
            }
            other => scalar(other),
        };
        match set(config, &key, &text) {
            Ok(()) => {}
            Err(Refusal::UnknownKey) => {
                let what = unknown(&key, KEYS.iter().copied());
                faults.push(source.fault(what, name.span()));
            }
            Err(Refusal::Value(rule)) => {
                faults.push(source.fault(refused(&key, &text, &rule), Spanned::span(value)));
            }
        }
    }
}

fn scalar(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.as_str().replace('_', ""),
        DeValue::Float(number) => number.as_str().replace('_', ""),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) | DeValue::Table(_) => "a list".to_owned(),
    }
}

fn env_name(key: &str) -> String {
    format!("RRQ_{}", key.replace('.', "__").to_uppercase())
}

fn read_env(
    config: &mut NodeConfig,
    env: impl Iterator<Item = (String, String)>,
    faults: &mut Vec<Fault>,
) {
    for (name, text) in env {
        let Some(key) = KEYS.iter().find(|key| env_name(key) == name) else {
            continue;
        };
        if let Err(Refusal::Value(rule)) = set(config, key, &text) {
            faults.push(Fault {
                code: Code::BadConfig,
                what: refused(key, &text, &rule),
                location: format!("environment variable {name}"),
                excerpt: String::new(),
            });
        }
    }
}

fn read_flags(config: &mut NodeConfig, flags: Flags, faults: &mut Vec<Fault>) {
    let when = |given: bool, text: &str| given.then(|| text.to_owned());
    let given = [
        ("--data-dir", "node.data_dir", flags.data_dir),
        ("--id", "node.id", flags.id),
        ("--listen", "listen.client", flags.listen),
        ("--admin", "listen.admin", flags.admin),
        ("--shards", "shards.count", flags.shards),
        (
            "--shard-per-core",
            "shards.count",
            when(flags.shard_per_core, "per-core"),
        ),
        ("--no-pin", "shards.pin", when(flags.no_pin, "false")),
        ("--dev", "dev", when(flags.dev, "true")),
        ("--payload-max", "limits.payload_max", flags.payload_max),
        ("--log-level", "log.level", flags.log_level),
        ("--log-format", "log.format", flags.log_format),
    ];
    config.insecure = flags.insecure;
    for (flag, key, text) in given {
        let Some(text) = text else { continue };
        if let Err(Refusal::Value(rule)) = set(config, key, &text) {
            faults.push(Fault {
                code: Code::BadArgument,
                what: refused(flag, &text, &rule),
                location: "command line".to_owned(),
                excerpt: String::new(),
            });
        }
    }
}

/// What no single value can be blamed for.
fn check(config: &mut NodeConfig, faults: &mut Vec<Fault>) {
    let mut fault = |what: String, location: &str| {
        faults.push(Fault {
            code: Code::BadConfig,
            what,
            location: location.to_owned(),
            excerpt: String::new(),
        });
    };
    for (key, address) in [
        ("listen.client", config.client),
        ("listen.admin", config.admin),
    ] {
        if !address.ip().is_loopback() && !config.insecure {
            let what = format!(
                "{address} is not loopback, and there is no authentication yet: --insecure if all \
                 who reach it are trusted"
            );
            fault(what, key);
        }
    }
    let backoff = &mut config.queue_defaults.backoff;
    if backoff.cap_ms < backoff.base_ms {
        fault(
            "backoff_cap is below backoff_base".to_owned(),
            "queue_defaults",
        );
    }
}

fn refused(name: &str, text: &str, rule: &str) -> String {
    format!("{name} = \"{text}\": must be {rule}")
}

/// "unknown key" with the nearest known one.
fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest = known.map(|name| (distance(key, name), name)).min();
    match nearest {
        Some((steps, name)) if steps <= 3 => {
            format!("unknown key `{key}`: did you mean `{name}`?")
        }
        _ => format!("unknown key `{key}`"),
    }
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

const SECTIONS: &[&str] = &[
    "node",
    "listen",
    "shards",
    "limits",
    "queue_defaults",
    "log",
    "checkpoint",
];

const KEYS: &[&str] = &[
    "dev",
    "node.data_dir",
    "node.id",
    "listen.client",
    "listen.admin",
    "listen.peer",
    "shards.count",
    "shards.pin",
    "limits.payload_max",
    "limits.connections_max",
    "queue_defaults.auto_create",
    "queue_defaults.lease",
    "queue_defaults.max_attempts",
    "queue_defaults.backoff",
    "queue_defaults.backoff_base",
    "queue_defaults.backoff_factor",
    "queue_defaults.backoff_cap",
    "queue_defaults.backoff_jitter",
    "queue_defaults.idempotency_window",
    "queue_defaults.idempotency_keys_max",
    "queue_defaults.jobs_max",
    "queue_defaults.bytes_max",
    "queue_defaults.dead",
    "log.level",
    "log.format",
    "checkpoint.min_log_bytes",
];

/// Why a value is not taken.
enum Refusal {
    UnknownKey,
    /// What it must be.
    Value(String),
}

/// 49 days: the longest time that 32 bits of milliseconds hold.
const DAYS_49_MS: u64 = 49 * 86_400_000;

fn set(config: &mut NodeConfig, key: &str, text: &str) -> Result<(), Refusal> {
    let queue = &mut config.queue_defaults;
    match key {
        "dev" => config.dev = flag(text)?,
        "node.data_dir" if text.is_empty() => return Err(rule("a path")),
        "node.data_dir" => config.data_dir = text.into(),
        "node.id" => config.node = Some(NodeId(number(text, 1..=65_535)?)),
        "listen.client" => config.client = address(text)?,
        "listen.admin" => config.admin = address(text)?,
        "listen.peer" => config.peer = address(text)?,
        "shards.count" if text == "per-core" => config.shards = Shards::PerCore,
        "shards.count" => {
            let count = number(text, 1..=64).map_err(|_| rule("1 to 64, or per-core"))?;
            config.shards = Shards::Exactly(count);
        }
        "shards.pin" => config.pin = flag(text)?,
        "limits.payload_max" => {
            config.payload_bytes_max = size(text, 1..=PAYLOAD_BYTES_HARD_MAX as u64)? as usize;
        }
        "limits.connections_max" => config.connections_max = number(text, 1..=1_000_000)?,
        "queue_defaults.auto_create" => config.auto_create = flag(text)?,
        "queue_defaults.lease" => queue.lease_ms = duration(text, 1..=DAYS_49_MS)? as u32,
        "queue_defaults.max_attempts" => queue.max_attempts = number(text, 1..=65_535)?,
        "queue_defaults.backoff" => {
            queue.backoff.kind = match text {
                "fixed" => BackoffKind::Fixed,
                "linear" => BackoffKind::Linear,
                "exponential" => BackoffKind::Exponential,
                _ => return Err(rule("fixed, linear or exponential")),
            }
        }
        "queue_defaults.backoff_base" => {
            queue.backoff.base_ms = duration(text, 0..=DAYS_49_MS)? as u32;
        }
        "queue_defaults.backoff_factor" => {
            let factor: f64 = text.parse().map_err(|_| rule("1.0 to 1000.0"))?;
            if !(1.0..=1000.0).contains(&factor) {
                return Err(rule("1.0 to 1000.0"));
            }
            queue.backoff.factor_milli = (factor * 1000.0).round() as u32;
        }
        "queue_defaults.backoff_cap" => {
            queue.backoff.cap_ms = duration(text, 0..=DAYS_49_MS)? as u32;
        }
        "queue_defaults.backoff_jitter" => queue.backoff.jitter_percent = number(text, 0..=100)?,
        "queue_defaults.idempotency_window" => {
            queue.idempotency_window_ms = duration(text, 0..=365 * 86_400_000)?;
        }
        "queue_defaults.idempotency_keys_max" => {
            queue.idempotency_keys_max = number(text, 1..=u32::MAX)?;
        }
        "queue_defaults.jobs_max" => queue.jobs_max = number(text, 0..=u64::MAX)?,
        "queue_defaults.bytes_max" => queue.bytes_max = size(text, 0..=u64::MAX)?,
        "queue_defaults.dead" => {
            queue.dead = match text {
                "keep" => DeadPolicy::Keep,
                "drop" => DeadPolicy::Drop,
                _ => return Err(rule("keep or drop")),
            }
        }
        "log.level" => {
            config.log_level = text
                .parse()
                .map_err(|_| rule("error, warn, info, debug or trace"))?;
        }
        "log.format" => {
            config.log_json = match text {
                "text" => false,
                "json" => true,
                _ => return Err(rule("text or json")),
            }
        }
        "checkpoint.min_log_bytes" => {
            config.checkpoint_log_bytes = size(text, 1 << 20..=1 << 30)?;
        }
        _ => return Err(Refusal::UnknownKey),
    }
    Ok(())
}

fn rule(text: impl Into<String>) -> Refusal {
    Refusal::Value(text.into())
}

fn flag(text: &str) -> Result<bool, Refusal> {
    text.parse().map_err(|_| rule("true or false"))
}

fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, Refusal>
where
    T: FromStr + PartialOrd + Display,
{
    text.parse()
        .ok()
        .filter(|value| range.contains(value))
        .ok_or_else(|| rule(format!("{} to {}", range.start(), range.end())))
}

fn address(text: &str) -> Result<SocketAddr, Refusal> {
    text.parse()
        .map_err(|_| rule("an address and a port, for example 127.0.0.1:7411"))
}

const SIZE_UNITS: &[(&str, u64)] = &[
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("B", 1),
];
const TIME_UNITS: &[(&str, u64)] = &[
    ("ms", 1),
    ("min", 60_000),
    ("s", 1000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, Refusal> {
    with_unit(text, SIZE_UNITS, &range).ok_or_else(|| {
        let shown = |bytes| in_unit(bytes, SIZE_UNITS);
        let (low, high) = (shown(*range.start()), shown(*range.end()));
        rule(format!(
            "{low} to {high}, a whole number with B, KiB, MiB or GiB"
        ))
    })
}

fn duration(text: &str, range: RangeInclusive<u64>) -> Result<u64, Refusal> {
    with_unit(text, TIME_UNITS, &range).ok_or_else(|| {
        let shown = |ms| in_unit(ms, TIME_UNITS);
        let (low, high) = (shown(*range.start()), shown(*range.end()));
        rule(format!(
            "{low} to {high}, a whole number with ms, s, min, h or d"
        ))
    })
}

fn with_unit(text: &str, units: &[(&str, u64)], range: &RangeInclusive<u64>) -> Option<u64> {
    let (digits, factor) = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits, factor)))?;
    let value = digits
        .trim_end()
        .parse::<u64>()
        .ok()?
        .checked_mul(*factor)?;
    range.contains(&value).then_some(value)
}

/// `value` in the largest unit that leaves it whole.
fn in_unit(value: u64, units: &[(&str, u64)]) -> String {
    let fits = |(_, factor): &&(&str, u64)| value.is_multiple_of(*factor) && value >= *factor;
    let best = units.iter().filter(fits).max_by_key(|(_, factor)| *factor);
    let (unit, factor) = best.unwrap_or(&units[0]);
    format!("{}{unit}", value / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NodeConfig, Vec<Fault>> {
        let (mut config, mut faults) = (NodeConfig::default(), Vec::new());
        read_file(&mut config, Path::new("node.toml"), text, &mut faults);
        check(&mut config, &mut faults);
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(faults)
        }
    }

    fn with(args: &[&str], env: &[(&str, &str)]) -> Result<NodeConfig, String> {
        let args = std::iter::once("rrq-node")
            .chain(args.iter().copied())
            .map(OsString::from);
        let env = env
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        load(args, env).map_err(|error| match error {
            NoConfig::Asked(text) => text,
            NoConfig::Wrong(report) => report.to_string(),
        })
    }

    #[test]
    fn the_file_in_configs_holds_every_key_at_its_default() {
        let text = include_str!("../../configs/single.toml");
        let read = parse(text).expect("the file that we ship is sound");
        // What a file says outright is not "as made" or "as stored" any more.
        let told = NodeConfig {
            shards: Shards::PerCore,
            node: Some(NodeId(1)),
            ..read.clone()
        };
        let fresh = NodeConfig {
            shards: Shards::PerCore,
            node: Some(NodeId(1)),
            ..<_>::default()
        };
        assert_eq!(format!("{told:?}"), format!("{fresh:?}"));
        for key in KEYS {
            let name = key.rsplit('.').next().expect("a key has a name");
            assert!(
                text.contains(&format!("\n{name} = ")),
                "{key} is missing in the file"
            );
        }
    }

    #[test]
    fn a_typo_is_shown_with_its_place_and_the_nearest_key() {
        let fault = parse("[log]\nlevle = \"info\"\n")
            .expect_err("a typo")
            .remove(0);
        assert_eq!(
            fault.report().to_string(),
            "error[RRQ-2002]: unknown key `log.levle`: did you mean `log.level`?\n  \
             where: node.toml:2:1\n         2 | levle = \"info\"\n           | ^^^^^\n  \
             fix:   configs/single.toml shows every key with its bounds"
        );
        let faults = parse("[lisen]\nclient = \"x\"\n[log]\nlevel = \"loud\"\n");
        let lines: Vec<String> = faults
            .expect_err("two faults")
            .iter()
            .map(Fault::line)
            .collect();
        assert_eq!(
            lines,
            [
                "node.toml:1:2: unknown key `lisen`: did you mean `listen`?",
                "node.toml:4:9: log.level = \"loud\": must be error, warn, info, debug or trace",
            ]
        );
        assert!(parse("[log\n").is_err());
        assert!(parse("dev = [1]\n").is_err());
    }

    #[test]
    fn flags_win_over_the_environment_and_bounds_hold_everywhere() {
        let env = [
            ("RRQ_SHARDS__COUNT", "3"),
            ("RRQ_LIMITS__PAYLOAD_MAX", "64KiB"),
        ];
        let config = with(&["--shards", "2"], &env).expect("sound");
        assert_eq!(config.shards, Shards::Exactly(2));
        assert_eq!(config.payload_bytes_max, 64 << 10);
        let error = with(&["--payload-max", "5MiB"], &[]).expect_err("too large");
        assert!(
            error.contains("--payload-max = \"5MiB\": must be 1B to 4MiB"),
            "{error}"
        );
        assert!(error.starts_with("error[RRQ-2001]"), "{error}");
        let error = with(&["--shards", "0"], &[("RRQ_DEV", "maybe")]).expect_err("two");
        assert!(
            error.contains("2 errors") && error.contains("RRQ_DEV"),
            "{error}"
        );
        let error = with(&["--listen", "0.0.0.0:7411"], &[]).expect_err("open to all");
        assert!(error.contains("--insecure"), "{error}");
        assert!(with(&["--listen", "0.0.0.0:7411", "--insecure"], &[]).is_ok());
        let error = with(&["--shrads", "2"], &[]).expect_err("a typo");
        assert!(
            error.starts_with("error[RRQ-2001]") && error.contains("--shards"),
            "{error}"
        );
        assert!(
            with(&["--help"], &[])
                .expect_err("help")
                .contains("--shard-per-core")
        );
    }

    #[test]
    fn numbers_carry_units() {
        assert_eq!(duration("90s", 0..=DAYS_49_MS).ok(), Some(90_000));
        assert_eq!(duration("10min", 0..=DAYS_49_MS).ok(), Some(600_000));
        assert!(duration("90", 0..=DAYS_49_MS).is_err());
        assert!(size("18446744073709551615GiB", 0..=u64::MAX).is_err());
        assert_eq!(in_unit(1 << 22, SIZE_UNITS), "4MiB");
        assert_eq!(in_unit(0, TIME_UNITS), "0ms");
    }
}
