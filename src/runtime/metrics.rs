//! Numbers of the shards where another thread can read them, and their form for Prometheus.

use crate::runtime::poker::Pulse;
use crate::shard::counters::Counters;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// How a number of a shard is read.
type Read = fn(&ShardMetrics) -> u64;

/// The numbers of one shard; the shard writes them once a turn.
#[derive(Debug)]
pub struct ShardMetrics {
    values: Vec<AtomicU64>,
    /// Clients of this shard.
    pub connections: AtomicU64,
    /// Whether it serves.
    pub serving: AtomicBool,
    /// From submitting a batch of the log to its completion.
    pub wal_write: Histogram,
    /// Segments of its log that are ready for use; taken for one until it was counted.
    pub spares: Arc<AtomicUsize>,
    /// Its executor's pulse.
    pub pulse: Arc<Pulse>,
}

impl ShardMetrics {
    fn new(pulse: Arc<Pulse>) -> Result<Self, prometheus::Error> {
        let buckets = prometheus::exponential_buckets(50e-6, 2.0, 16)?;
        let help = "Time of a durable write of the log.";
        let options = HistogramOpts::new("rrq_wal_write_seconds", help).buckets(buckets);
        Ok(Self {
            values: (0..Counters::LEN).map(|_| AtomicU64::new(0)).collect(),
            connections: AtomicU64::new(0),
            serving: AtomicBool::new(false),
            wal_write: Histogram::with_opts(options)?,
            spares: Arc::new(AtomicUsize::new(1)),
            pulse,
        })
    }

    /// Publishes what the engine counted.
    pub fn publish(&self, counters: &Counters) {
        let mut values = self.values.iter();
        counters.each(|_, _, _, value| {
            if let Some(slot) = values.next() {
                slot.store(value, Relaxed);
            }
        });
    }
}

/// The numbers of the node.
#[derive(Debug)]
pub struct NodeMetrics {
    /// In the order of the shards.
    pub shards: Vec<ShardMetrics>,
    /// The process shall stop.
    pub stopping: AtomicBool,
    /// Bytes free on the disk of the data directory.
    pub disk_free_bytes: AtomicU64,
    /// Clients admitted.
    pub clients: Arc<AtomicUsize>,
    /// How long each part of the start took, in seconds.
    recovery: Mutex<Vec<(&'static str, f64)>>,
}

impl NodeMetrics {
    /// All zero.
    ///
    /// # Errors
    /// Never with the buckets that are written here.
    pub fn new(pulses: &[Arc<Pulse>]) -> Result<Self, prometheus::Error> {
        let shards = pulses.iter().map(|pulse| ShardMetrics::new(pulse.clone()));
        Ok(Self {
            shards: shards.collect::<Result<_, _>>()?,
            stopping: AtomicBool::new(false),
            disk_free_bytes: AtomicU64::new(0),
            clients: Arc::default(),
            recovery: Mutex::default(),
        })
    }

    /// Notes how long a part of the start took; of several shards, the longest counts.
    pub fn recovered(&self, phase: &'static str, seconds: f64) {
        let mut phases = self.recovery.lock().unwrap_or_else(PoisonError::into_inner);
        match phases.iter_mut().find(|(name, _)| *name == phase) {
            Some((_, longest)) => *longest = longest.max(seconds),
            None => phases.push((phase, seconds)),
        }
    }

    /// Why the node does not serve, or `None` if it does.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        if self.stopping.load(Relaxed) {
            return Some("stopping".to_owned());
        }
        let waiting = self
            .shards
            .iter()
            .enumerate()
            .filter(|(_, shard)| !shard.serving.load(Relaxed));
        let waiting: Vec<String> = waiting.map(|(shard, _)| shard.to_string()).collect();
        (!waiting.is_empty()).then(|| format!("recovering: shards {}", waiting.join(", ")))
    }

    /// The text that a scrape gets.
    ///
    /// # Errors
    /// If two metrics have one name.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let registry = Registry::new();
        self.register_counters(&registry)?;
        let opts = Opts::new("rrq_build_info", "Always 1; the version is a label.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        let build = IntGauge::with_opts(opts)?;
        build.set(1);
        registry.register(Box::new(build))?;
        let opts = Opts::new(
            "rrq_recovery_seconds",
            "How long each part of the start took.",
        );
        let recovery = GaugeVec::new(opts, &["phase"])?;
        let phases = self
            .recovery
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (phase, seconds) in phases {
            recovery.with_label_values(&[phase]).set(seconds);
        }
        registry.register(Box::new(recovery))?;
        for (name, help, value) in [
            (
                "rrq_disk_free_bytes",
                "Bytes free on the disk of the data directory.",
                self.disk_free_bytes.load(Relaxed) as f64,
            ),
            (
                "rrq_ready",
                "Whether every shard serves.",
                f64::from(self.not_ready().is_none()),
            ),
            (
                "rrq_clients",
                "Clients connected.",
                self.clients.load(Relaxed) as f64,
            ),
        ] {
            let gauge = Gauge::new(name, help)?;
            gauge.set(value);
            registry.register(Box::new(gauge))?;
        }
        let mut text = TextEncoder::new().encode_to_string(&registry.gather())?;
        for (number, shard) in self.shards.iter().enumerate() {
            let labels = [("shard".to_owned(), number.to_string())].into();
            let registry = Registry::new_custom(None, Some(labels))?;
            registry.register(Box::new(shard.wal_write.clone()))?;
            let part = TextEncoder::new().encode_to_string(&registry.gather())?;
            // Help and type stand once, before the first shard's.
            let comment = |line: &&str| number == 0 || !line.starts_with('#');
            part.lines().filter(comment).for_each(|line| {
                text.push_str(line);
                text.push('\n');
            });
        }
        Ok(text)
    }

    fn register_counters(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let mut names = Vec::new();
        Counters::default().each(|name, help, rises, _| names.push((name, help, rises)));
        for (at, (name, help, rises)) in names.into_iter().enumerate() {
            let value = |shard: &ShardMetrics| shard.values[at].load(Relaxed);
            self.register(registry, name, help.trim(), rises, value)?;
        }
        let rows: [(&str, &str, bool, Read); 3] = [
            ("connections", "Clients of the shard.", false, |shard| {
                shard.connections.load(Relaxed)
            }),
            (
                "shard_pokes_total",
                "Wakes of an executor whose beat stood still.",
                true,
                |shard| shard.pulse.pokes.load(Relaxed),
            ),
            (
                "shard_stalls_total",
                "Times that an executor did not run for 50 ms.",
                true,
                |shard| shard.pulse.stalls.load(Relaxed),
            ),
        ];
        rows.into_iter().try_for_each(|(name, help, rises, value)| {
            self.register(registry, name, help, rises, value)
        })
    }

    fn register(
        &self,
        registry: &Registry,
        name: &str,
        help: &str,
        rises: bool,
        value: impl Fn(&ShardMetrics) -> u64,
    ) -> Result<(), prometheus::Error> {
        let opts = Opts::new(format!("rrq_{name}"), help);
        let values = self
            .shards
            .iter()
            .enumerate()
            .map(|(at, shard)| (at.to_string(), value(shard)));
        if rises {
            let counter = IntCounterVec::new(opts, &["shard"])?;
            values.for_each(|(shard, value)| counter.with_label_values(&[&shard]).inc_by(value));
            registry.register(Box::new(counter))
        } else {
            let gauge = IntGaugeVec::new(opts, &["shard"])?;
            values.for_each(|(shard, value)| {
                gauge
                    .with_label_values(&[&shard])
                    .set(i64::try_from(value).unwrap_or(i64::MAX));
            });
            registry.register(Box::new(gauge))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_names_every_counter_once_and_says_who_is_not_ready() {
        let pulses = [Arc::new(Pulse::default()), Arc::new(Pulse::default())];
        let node = NodeMetrics::new(&pulses).expect("the buckets are sound");
        node.recovered("replay", 0.25);
        node.recovered("replay", 0.125);
        node.shards[0].serving.store(true, Relaxed);
        assert_eq!(node.not_ready().as_deref(), Some("recovering: shards 1"));
        node.shards[1].serving.store(true, Relaxed);
        assert_eq!(node.not_ready(), None);
        let text = node.text().expect("names are unique");
        for line in [
            "rrq_jobs_enqueued_total{shard=\"1\"} 0",
            "rrq_recovery_seconds{phase=\"replay\"} 0.25",
            "rrq_shard_stalls_total{shard=\"0\"} 0",
            "rrq_wal_write_seconds_count{shard=\"1\"} 0",
            "rrq_ready 1",
        ] {
            assert!(
                text.lines().any(|other| other == line),
                "{line} is missing in\n{text}"
            );
        }
        assert_eq!(text.matches("# TYPE rrq_wal_write_seconds ").count(), 1);
    }
}
