//! Every key of the configuration: its name, its flag if it has one, how it is set and shown.
//!
//! To add a key: a row in [`KEYS`], an arm in [`set`] and in [`show`], and a paragraph in each file
//! of `configs/`; tests name what is forgotten.

use super::value::{
    Refusal, address, duration, flag, number, rule, show_duration, show_size, size,
};
use super::{Member, NodeConfig, Shards};
use crate::base::ids::NodeId;
use crate::base::limits::{
    IN_FLIGHT_BYTES_SHARD_MIN, PAYLOAD_BYTES_HARD_MAX, SHARDS_MAX, VOTERS_MAX, ZONE_BYTES_MAX,
};
use crate::wal::record::MACHINE_VERSION_MAX;
use crate::wire::{BackoffKind, DeadPolicy};
use std::collections::BTreeSet;
use std::time::Duration;

/// A key of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name with its section: `log.level`.
    pub name: &'static str,
    /// The flag that sets it, if there is one: `--log-level`.
    pub flag: Option<&'static str>,
}

impl Key {
    /// The environment variable that sets it: `RRQ_LOG__LEVEL`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("RRQ_{}", self.name.replace('.', "__").to_uppercase())
    }
}

const fn key(name: &'static str) -> Key {
    Key { name, flag: None }
}

const fn with_flag(name: &'static str, flag: &'static str) -> Key {
    Key {
        name,
        flag: Some(flag),
    }
}

/// The sections.
pub(super) const SECTIONS: &[&str] = &[
    "node",
    "listen",
    "shards",
    "cluster",
    "limits",
    "queue_defaults",
    "log",
    "checkpoint",
    "upgrade",
];

/// Every key, in the order of the files in `configs/`.
pub const KEYS: &[Key] = &[
    with_flag("dev", "--dev"),
    with_flag("node.data_dir", "--data-dir"),
    with_flag("node.id", "--id"),
    with_flag("listen.client", "--listen"),
    key("listen.advertise"),
    with_flag("listen.admin", "--admin"),
    key("listen.peer"),
    with_flag("listen.insecure", "--insecure"),
    with_flag("shards.count", "--shards"),
    with_flag("shards.pin", "--no-pin"),
    with_flag("cluster.members", "--members"),
    with_flag("cluster.zone", "--zone"),
    with_flag("limits.payload_max", "--payload-max"),
    key("limits.connections_max"),
    key("limits.in_flight_max"),
    key("limits.jobs_memory_max"),
    key("queue_defaults.auto_create"),
    key("queue_defaults.lease"),
    key("queue_defaults.max_attempts"),
    key("queue_defaults.backoff"),
    key("queue_defaults.backoff_base"),
    key("queue_defaults.backoff_factor"),
    key("queue_defaults.backoff_cap"),
    key("queue_defaults.backoff_jitter"),
    key("queue_defaults.idempotency_window"),
    key("queue_defaults.idempotency_keys_max"),
    key("queue_defaults.jobs_max"),
    key("queue_defaults.bytes_max"),
    key("queue_defaults.dead"),
    key("queue_defaults.retain"),
    key("queue_defaults.partitions"),
    with_flag("log.level", "--log-level"),
    with_flag("log.format", "--log-format"),
    key("checkpoint.min_log_bytes"),
    key("checkpoint.replay_budget"),
    key("checkpoint.scrub_period"),
    key("upgrade.machine_version"),
];

/// 49 days: the longest time that 32 bits of milliseconds hold.
const DAYS_49_MS: u64 = 49 * 86_400_000;

/// Sets a key.
pub(super) fn set(config: &mut NodeConfig, key: &str, text: &str) -> Result<(), Refusal> {
    let queue = &mut config.queue_defaults;
    match key {
        "dev" => config.dev = flag(text)?,
        "node.data_dir" if text.is_empty() => return Err(rule("a path")),
        "node.data_dir" => config.data_dir = text.into(),
        "node.id" => config.node = Some(NodeId(number(text, 1..=65_535)?)),
        "listen.client" => config.client = address(text)?,
        "listen.advertise" if text == "auto" => config.advertise = None,
        "listen.advertise" if text.is_empty() || text.contains([' ', '/']) => {
            return Err(rule("a host name or an address without a port, or auto"));
        }
        "listen.advertise" => config.advertise = Some(text.to_owned()),
        "listen.admin" => config.admin = address(text)?,
        "listen.peer" if text == "as-listed" => config.peer = None,
        "listen.peer" => config.peer = Some(address(text)?),
        "listen.insecure" => config.insecure = flag(text)?,
        "shards.count" if text == "as-made" => config.shards = Shards::AsMade,
        "shards.count" if text == "per-core" => config.shards = Shards::PerCore,
        "shards.count" => {
            let count = number(text, 1..=SHARDS_MAX)
                .map_err(|_| rule("1 to 64, or per-core, or as-made"))?;
            config.shards = Shards::Exactly(count);
        }
        "shards.pin" => config.pin = flag(text)?,
        "cluster.members" => config.members = members(text)?,
        "cluster.zone" => config.zone = zone(text)?,
        "limits.payload_max" => {
            config.payload_bytes_max = size(text, 1..=PAYLOAD_BYTES_HARD_MAX as u64)? as usize;
        }
        "limits.connections_max" => config.connections_max = number(text, 1..=1_000_000)?,
        "limits.in_flight_max" if text == "auto" => config.in_flight_bytes_max = None,
        "limits.in_flight_max" => {
            let bytes = size(text, IN_FLIGHT_BYTES_SHARD_MIN as u64..=1 << 40);
            let bytes = bytes.map_err(|_| rule("16MiB to 1024GiB, or auto"))?;
            config.in_flight_bytes_max = Some(bytes as usize);
        }
        "limits.jobs_memory_max" if text == "auto" => config.jobs_memory_max = None,
        "limits.jobs_memory_max" => {
            let bytes = size(text, 16 << 20..=1 << 50);
            config.jobs_memory_max = Some(bytes.map_err(|_| rule("16MiB to 1048576GiB, or auto"))?);
        }
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
            queue.idempotency_window_ms = duration(text, 1..=365 * 86_400_000)?;
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
        "queue_defaults.retain" => queue.retain = number(text, 0..=u32::MAX)?,
        "queue_defaults.partitions" => queue.partitions = number(text, 1..=u8::MAX)?,
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
        "checkpoint.replay_budget" => {
            config.replay_budget = Duration::from_millis(duration(text, 1..=60_000)?);
        }
        "checkpoint.scrub_period" if text == "off" => config.scrub_period = None,
        "checkpoint.scrub_period" => {
            let rule = |_| rule("1s to 365d, a whole number with ms, s, min, h or d, or off");
            let ms = duration(text, 1000..=365 * 86_400_000).map_err(rule)?;
            config.scrub_period = Some(Duration::from_millis(ms));
        }
        "upgrade.machine_version" if text == "latest" => {
            config.machine_version_max = MACHINE_VERSION_MAX;
        }
        "upgrade.machine_version" => {
            config.machine_version_max = number(text, 1..=MACHINE_VERSION_MAX)
                .map_err(|_| rule(format!("1 to {MACHINE_VERSION_MAX}, or latest")))?;
        }
        _ => return Err(Refusal::UnknownKey),
    }
    Ok(())
}

/// The value of a key as text that [`set`] takes.
pub(super) fn show(config: &NodeConfig, key: &str) -> String {
    let queue = &config.queue_defaults;
    match key {
        "dev" => config.dev.to_string(),
        "node.data_dir" => config.data_dir.display().to_string(),
        "node.id" => config.node.unwrap_or(NodeId(1)).to_string(),
        "listen.client" => config.client.to_string(),
        "listen.advertise" => config
            .advertise
            .clone()
            .unwrap_or_else(|| "auto".to_owned()),
        "listen.admin" => config.admin.to_string(),
        "listen.peer" => config
            .peer
            .map_or_else(|| "as-listed".to_owned(), |address| address.to_string()),
        "listen.insecure" => config.insecure.to_string(),
        "shards.count" => match config.shards {
            Shards::AsMade => "as-made".to_owned(),
            Shards::PerCore => "per-core".to_owned(),
            Shards::Exactly(count) => count.to_string(),
        },
        "shards.pin" => config.pin.to_string(),
        "cluster.members" => show_members(&config.members),
        "cluster.zone" => config.zone.clone().unwrap_or_else(|| "none".to_owned()),
        "limits.payload_max" => show_size(config.payload_bytes_max as u64),
        "limits.connections_max" => config.connections_max.to_string(),
        "limits.in_flight_max" => config
            .in_flight_bytes_max
            .map_or_else(|| "auto".to_owned(), |bytes| show_size(bytes as u64)),
        "limits.jobs_memory_max" => config
            .jobs_memory_max
            .map_or_else(|| "auto".to_owned(), show_size),
        "queue_defaults.auto_create" => config.auto_create.to_string(),
        "queue_defaults.lease" => show_duration(u64::from(queue.lease_ms)),
        "queue_defaults.max_attempts" => queue.max_attempts.to_string(),
        "queue_defaults.backoff" => match queue.backoff.kind {
            BackoffKind::Fixed => "fixed",
            BackoffKind::Linear => "linear",
            BackoffKind::Exponential => "exponential",
        }
        .to_owned(),
        "queue_defaults.backoff_base" => show_duration(u64::from(queue.backoff.base_ms)),
        "queue_defaults.backoff_factor" => {
            format!("{:?}", f64::from(queue.backoff.factor_milli) / 1000.0)
        }
        "queue_defaults.backoff_cap" => show_duration(u64::from(queue.backoff.cap_ms)),
        "queue_defaults.backoff_jitter" => queue.backoff.jitter_percent.to_string(),
        "queue_defaults.idempotency_window" => show_duration(queue.idempotency_window_ms),
        "queue_defaults.idempotency_keys_max" => queue.idempotency_keys_max.to_string(),
        "queue_defaults.jobs_max" => queue.jobs_max.to_string(),
        "queue_defaults.bytes_max" => show_size(queue.bytes_max),
        "queue_defaults.dead" => match queue.dead {
            DeadPolicy::Keep => "keep",
            DeadPolicy::Drop => "drop",
        }
        .to_owned(),
        "queue_defaults.retain" => queue.retain.to_string(),
        "queue_defaults.partitions" => queue.partitions.to_string(),
        "log.level" => config.log_level.to_string().to_lowercase(),
        "log.format" => if config.log_json { "json" } else { "text" }.to_owned(),
        "checkpoint.min_log_bytes" => show_size(config.checkpoint_log_bytes),
        "checkpoint.replay_budget" => show_duration(config.replay_budget.as_millis() as u64),
        "checkpoint.scrub_period" => config.scrub_period.map_or_else(
            || "off".to_owned(),
            |period| show_duration(period.as_millis() as u64),
        ),
        "upgrade.machine_version" if config.machine_version_max == MACHINE_VERSION_MAX => {
            "latest".to_owned()
        }
        "upgrade.machine_version" => config.machine_version_max.to_string(),
        _ => unreachable!("only keys of the table are shown"),
    }
}

/// The members of a cluster, as `1=host:port,2=host:port`, in any order, or `alone`.
fn members(text: &str) -> Result<Vec<Member>, Refusal> {
    let wrong = || rule("alone, or ID=HOST:PORT for each node with commas between");
    let member = |part: &str| {
        let (node, address) = part.trim().split_once('=')?;
        let node = node
            .parse()
            .ok()
            .filter(|node| (1..=65_535).contains(node))?;
        let (host, port) = address.rsplit_once(':')?;
        let is_one = !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0);
        is_one.then(|| Member {
            node: NodeId(node),
            address: address.to_owned(),
        })
    };
    if text == "alone" {
        return Ok(Vec::new());
    }
    let members: Option<Vec<Member>> = text.split(',').map(member).collect();
    let mut members = members.ok_or_else(wrong)?;
    members.sort_by_key(|member| member.node);
    if members.windows(2).any(|pair| pair[0].node == pair[1].node) {
        return Err(rule("a list in which each id stands once"));
    }
    let addresses: BTreeSet<&str> = members.iter().map(|member| &*member.address).collect();
    if addresses.len() < members.len() {
        return Err(rule("a list in which each address stands once"));
    }
    if members.len() > VOTERS_MAX {
        return Err(rule(format!("a list of at most {VOTERS_MAX} nodes")));
    }
    Ok(members)
}

/// The name of a zone, or `none`.
fn zone(text: &str) -> Result<Option<String>, Refusal> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if text.is_empty() || text.len() > ZONE_BYTES_MAX || !text.chars().all(is_fit) {
        let form = format!("none, or 1 to {ZONE_BYTES_MAX} letters, digits and -._");
        return Err(rule(form));
    }
    Ok((text != "none").then(|| text.to_owned()))
}

fn show_members(members: &[Member]) -> String {
    if members.is_empty() {
        return "alone".to_owned();
    }
    let shown = members.iter().map(ToString::to_string);
    shown.collect::<Vec<_>>().join(",")
}

/// Whether a value is written without quotes in TOML, which has no `007`, `.5` or `5.`.
pub(super) fn is_bare(text: &str) -> bool {
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number =
        is_digits(whole) && is_digits(fraction) && (whole == "0" || !whole.starts_with('0'));
    text.parse::<bool>().is_ok() || is_number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_set_again() {
        let mut config = NodeConfig::default();
        for key in KEYS {
            let text = show(&config, key.name);
            assert!(set(&mut config, key.name, &text).is_ok(), "{}", key.name);
            assert_eq!(show(&config, key.name), text, "{}", key.name);
        }
        assert!(matches!(
            set(&mut config, "no.key", ""),
            Err(Refusal::UnknownKey)
        ));
    }

    #[test]
    fn members_are_ids_and_addresses_each_once() {
        let of = |text: &str| {
            let mut config = NodeConfig::default();
            match set(&mut config, "cluster.members", text) {
                Ok(()) => show(&config, "cluster.members"),
                Err(Refusal::Value(rule)) => format!("must be {rule}"),
                Err(Refusal::UnknownKey) => panic!("it is a key"),
            }
        };
        assert_eq!(of("3=c:3, 1=a:1,2=[::1]:2"), "1=a:1,2=[::1]:2,3=c:3");
        assert_eq!(of("alone"), "alone");
        let form = "must be alone, or ID=HOST:PORT for each node with commas between";
        for text in [
            "",
            "a:1",
            "0=a:1",
            "1=a",
            "1=:1",
            "1=a:0",
            "1=a:99999",
            "1=a:1,,2=b:2,3=c:3",
        ] {
            assert_eq!(of(text), form, "{text}");
        }
        for (text, words) in [
            ("1=a:1,1=b:2,3=c:3", "each id stands once"),
            ("1=a:1,2=a:1,3=c:3", "each address stands once"),
        ] {
            assert!(of(text).contains(words), "{text}: {}", of(text));
        }
    }

    #[test]
    fn a_zone_is_a_short_name_or_none() {
        let of = |text: &str| {
            let mut config = NodeConfig::default();
            let set = set(&mut config, "cluster.zone", text);
            set.map(|()| config.zone).ok()
        };
        assert_eq!(of("none"), Some(None));
        assert_eq!(of("eu-1.b"), Some(Some("eu-1.b".to_owned())));
        let longest = "z".repeat(ZONE_BYTES_MAX);
        assert_eq!(of(&longest), Some(Some(longest.clone())));
        for text in ["", "a b", "a=1", "zürich", &(longest + "z")] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn a_scrub_period_is_a_time_or_off() {
        let of = |text: &str| {
            let mut config = NodeConfig::default();
            match set(&mut config, "checkpoint.scrub_period", text) {
                Ok(()) => Ok(config.scrub_period.map(|period| period.as_secs())),
                Err(Refusal::Value(rule)) => Err(rule),
                Err(Refusal::UnknownKey) => panic!("it is a key"),
            }
        };
        assert_eq!(of("off"), Ok(None));
        assert_eq!(of("7d"), Ok(Some(7 * 86_400)));
        assert_eq!((of("1s"), of("365d").is_ok()), (Ok(Some(1)), true));
        for text in ["0s", "999ms", "366d", "7", "never", ""] {
            let rule = of(text).expect_err(text);
            assert!(rule.starts_with("1s to 365d, "), "{text}: {rule}");
            assert!(rule.ends_with(", or off"), "{text}: {rule}");
        }
    }

    #[test]
    fn each_key_has_its_section_and_a_variable_of_its_own() {
        for key in KEYS {
            let section = key.name.split_once('.').map(|(section, _)| section);
            assert!(section.is_none_or(|section| SECTIONS.contains(&section)));
        }
        assert_eq!(key("listen.client").env(), "RRQ_LISTEN__CLIENT");
    }

    #[test]
    fn words_are_quoted_and_numbers_are_not() {
        assert!(is_bare("true") && is_bare("2.0") && is_bare("7"));
        assert!(!is_bare("30s") && !is_bare("inf") && !is_bare("127.0.0.1:1"));
        for path in ["007", ".5", "5.", "1e5", "-1", "1.2.3", "", "."] {
            assert!(!is_bare(path), "{path} as the name of a folder");
        }
    }
}
