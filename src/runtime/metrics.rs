//! Numbers of the shards where another thread can read them, and their form for Prometheus.
//!
//! `/metrics` has numbers of the node and its shards only: their count does not grow with use.
//! Those of queues and groups are on a path of their own, see `api.rs`. Each name is explained in
//! `docs/metrics.md`; a test compares it, the dashboard and the alerts with a scrape.

use crate::runtime::poker::Pulse;
use crate::runtime::{process, sys};
use crate::shard::counters::Counters;
use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How a number of a shard is read.
type Read = fn(&ShardMetrics) -> u64;

/// The numbers of one shard; the shard writes them once a turn.
#[derive(Debug)]
pub struct ShardMetrics {
    values: Vec<AtomicU64>,
    /// Clients of this shard.
    pub connections: AtomicU64,
    /// Memory that its jobs take.
    jobs_held_bytes: AtomicU64,
    /// Where its log is durable up to.
    pub durable_lsn: AtomicU64,
    /// How often it was told how long its logs were, all that it has lost by that noted.
    pub ends_noted: AtomicU64,
    /// Whether it serves.
    pub serving: AtomicBool,
    /// Whether it shall get leads of other nodes.
    pub takes_leads: AtomicBool,
    /// From submitting a batch of the log to its completion: one write that is also its sync.
    pub wal_fsync: Histogram,
    /// Records of a batch.
    pub wal_batch_entries: Histogram,
    /// Bytes of a batch.
    pub wal_batch_bytes: Histogram,
    /// From the enqueue of a job to its first lease.
    pub job_wait: Histogram,
    /// From the lease of a job to its acknowledgement.
    pub job_run: Histogram,
    /// From reading a request to its reply, by method and code.
    pub rpc: HistogramVec,
    /// Segments of its log that are ready for use; taken for one until it was counted.
    pub spares: Arc<AtomicUsize>,
    /// Its executor's pulse.
    pub pulse: Arc<Pulse>,
}

impl ShardMetrics {
    fn new(pulse: Arc<Pulse>) -> Result<Self, prometheus::Error> {
        let histogram = |name, help, first, factor, count| {
            let buckets = prometheus::exponential_buckets(first, factor, count)?;
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
        };
        Ok(Self {
            values: (0..Counters::LEN).map(|_| AtomicU64::new(0)).collect(),
            connections: AtomicU64::new(0),
            jobs_held_bytes: AtomicU64::new(0),
            durable_lsn: AtomicU64::new(0),
            ends_noted: AtomicU64::new(0),
            serving: AtomicBool::new(false),
            takes_leads: AtomicBool::new(true),
            wal_fsync: histogram(
                "rrq_wal_fsync_seconds",
                "Time of a write of the log that is also its sync (O_DSYNC).",
                50e-6,
                2.0,
                16,
            )?,
            wal_batch_entries: histogram(
                "rrq_wal_batch_entries",
                "Records of a batch of the log.",
                1.0,
                2.0,
                13,
            )?,
            wal_batch_bytes: histogram(
                "rrq_wal_batch_bytes",
                "Bytes of a batch of the log, padding included.",
                4096.0,
                2.0,
                11,
            )?,
            job_wait: histogram(
                "rrq_job_wait_seconds",
                "Time from the enqueue of a job, delays included, to its first lease.",
                1e-3,
                4.0,
                12,
            )?,
            job_run: histogram(
                "rrq_job_run_seconds",
                "Time from the lease of a job to its acknowledgement.",
                1e-3,
                4.0,
                12,
            )?,
            rpc: HistogramVec::new(
                HistogramOpts::new(
                    "rrq_rpc_seconds",
                    "Time from reading a request to its reply; asked waits included.",
                )
                .buckets(prometheus::exponential_buckets(250e-6, 4.0, 9)?),
                &["method", "code"],
            )?,
            spares: Arc::new(AtomicUsize::new(1)),
            pulse,
        })
    }

    /// Publishes what the engine counted.
    pub fn publish(&self, counters: &Counters) {
        self.jobs_held_bytes
            .store(counters.jobs_held_bytes, Relaxed);
        let mut values = self.values.iter();
        counters.each(|_, _, _, value| {
            if let Some(slot) = values.next() {
                slot.store(value, Relaxed);
            }
        });
    }
}

/// Takes one histogram of a shard, to be written with those of the other shards.
type PickHistogram = fn(&ShardMetrics) -> Box<dyn Collector>;

/// What the node has to do with the others of its cluster.
#[derive(Debug, Default)]
pub struct PeerMetrics {
    /// Other members.
    pub members: AtomicU64,
    /// Those that it can send to.
    pub connected: AtomicU64,
    /// Who votes in the cluster; nobody on a node that stands alone.
    pub voters: AtomicU64,
    /// Those of them that it can send to, and itself.
    pub voters_here: AtomicU64,
    /// Bytes that wait to be sent.
    pub waiting_bytes: AtomicU64,
    /// What was not sent, since too much waited or there was no connection.
    pub dropped: AtomicU64,
}

impl PeerMetrics {
    /// Whether most voters are there, this node perhaps among them.
    fn has_majority(&self) -> bool {
        let (voters, here) = (self.voters.load(Relaxed), self.voters_here.load(Relaxed));
        voters == 0 || here * 2 > voters
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
    /// Of the other nodes.
    pub peers: PeerMetrics,
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
            peers: PeerMetrics::default(),
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

    /// Memory that the jobs of all shards take.
    #[must_use]
    pub fn jobs_held_bytes(&self) -> u64 {
        let shards = self.shards.iter();
        shards
            .map(|shard| shard.jobs_held_bytes.load(Relaxed))
            .sum()
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
        if !waiting.is_empty() {
            return Some(format!("recovering: shards {}", waiting.join(", ")));
        }
        (!self.peers.has_majority()).then(|| {
            format!(
                "no majority: connected to {} of {} other nodes",
                self.peers.connected.load(Relaxed),
                self.peers.members.load(Relaxed)
            )
        })
    }

    /// The text that a scrape gets.
    ///
    /// # Errors
    /// If two metrics have one name.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let registry = Registry::new();
        self.register_counters(&registry)?;
        let opts = Opts::new(
            "rrq_build_info",
            "Always 1; what was built is in the labels.",
        )
        .const_label("version", env!("CARGO_PKG_VERSION"))
        .const_label("rust_version", env!("CARGO_PKG_RUST_VERSION"))
        .const_label("profile", PROFILE);
        let build = IntGauge::with_opts(opts)?;
        build.set(1);
        registry.register(Box::new(build))?;
        register_process(&registry)?;
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
                "Whether every shard serves, and in a cluster a majority is connected.",
                f64::from(self.not_ready().is_none()),
            ),
            (
                "rrq_peers",
                "Other nodes of the cluster.",
                self.peers.members.load(Relaxed) as f64,
            ),
            (
                "rrq_peers_connected",
                "Other nodes of the cluster that this one can send to.",
                self.peers.connected.load(Relaxed) as f64,
            ),
            (
                "rrq_peers_waiting_bytes",
                "Bytes that wait to be sent to other nodes.",
                self.peers.waiting_bytes.load(Relaxed) as f64,
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
        let dropped = Counter::new(
            "rrq_peers_dropped_total",
            "Times that nothing was sent to another node: too much waited, or it was not connected.",
        )?;
        dropped.inc_by(self.peers.dropped.load(Relaxed) as f64);
        registry.register(Box::new(dropped))?;
        let mut text = TextEncoder::new().encode_to_string(&registry.gather())?;
        let histograms: [PickHistogram; 6] = [
            |shard| Box::new(shard.wal_fsync.clone()),
            |shard| Box::new(shard.wal_batch_entries.clone()),
            |shard| Box::new(shard.wal_batch_bytes.clone()),
            |shard| Box::new(shard.job_wait.clone()),
            |shard| Box::new(shard.job_run.clone()),
            |shard| Box::new(shard.rpc.clone()),
        ];
        for histogram in histograms {
            let mut named = false;
            for (number, shard) in self.shards.iter().enumerate() {
                let labels = [("shard".to_owned(), number.to_string())].into();
                let registry = Registry::new_custom(None, Some(labels))?;
                registry.register(histogram(shard))?;
                let part = TextEncoder::new().encode_to_string(&registry.gather())?;
                // Help and type stand once, before the first shard that has the metric.
                let first = !named;
                named |= !part.is_empty();
                let wanted = |line: &&str| first || !line.starts_with('#');
                part.lines().filter(wanted).for_each(|line| {
                    text.push_str(line);
                    text.push('\n');
                });
            }
        }
        Ok(text)
    }

    fn register_counters(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let opts = Opts::new(
            "rrq_shard_reactor_stall_seconds",
            "The longest that a poked executor did not run, less its waits for a core and stops of the process.",
        );
        let longest = GaugeVec::new(opts, &["shard"])?;
        for (number, shard) in self.shards.iter().enumerate() {
            let stall = Duration::from_nanos(shard.pulse.longest_stall_ns.load(Relaxed));
            longest
                .with_label_values(&[&number.to_string()])
                .set(stall.as_secs_f64());
        }
        registry.register(Box::new(longest))?;
        let mut names = Vec::new();
        Counters::default().each(|name, help, rises, _| names.push((name, help, rises)));
        for (at, (name, help, rises)) in names.into_iter().enumerate() {
            let value = |shard: &ShardMetrics| shard.values[at].load(Relaxed);
            self.register(registry, name, help.trim(), rises, value)?;
        }
        let rows: [(&str, &str, bool, Read); 4] = [
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
                "Times that an executor did not run for 50 ms, for want of a core or not.",
                true,
                |shard| shard.pulse.stalls.load(Relaxed),
            ),
            (
                "shard_major_faults_total",
                "Times that the shard's thread waited for the disk to get at its memory.",
                true,
                |shard| process::major_faults(shard.pulse.thread.load(Relaxed)).unwrap_or(0),
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

/// The build: with debug assertions, or as users run it.
const PROFILE: &str = if cfg!(debug_assertions) {
    "debug"
} else {
    "release"
};

/// The numbers that every process has, under their usual names.
fn register_process(registry: &Registry) -> Result<(), prometheus::Error> {
    let own = process::own_numbers();
    let cpu = Counter::new("process_cpu_seconds_total", "Processor time used.")?;
    cpu.inc_by(own.cpu_seconds);
    registry.register(Box::new(cpu))?;
    for (name, help, value) in [
        (
            "process_resident_memory_bytes",
            "Memory in use.",
            own.resident_bytes as f64,
        ),
        (
            "process_virtual_memory_bytes",
            "Memory mapped.",
            own.virtual_bytes as f64,
        ),
        ("process_open_fds", "Open files.", own.open_files as f64),
        (
            "process_max_fds",
            "Files that may be open.",
            sys::open_files_limit() as f64,
        ),
        ("process_threads", "Threads.", own.threads as f64),
        (
            "process_start_time_seconds",
            "When the process was started, since 1970.",
            own.start_seconds,
        ),
    ] {
        let gauge = Gauge::new(name, help)?;
        gauge.set(value);
        registry.register(Box::new(gauge))?;
    }
    Ok(())
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
            "rrq_wal_fsync_seconds_count{shard=\"1\"} 0",
            "rrq_ready 1",
        ] {
            assert!(
                text.lines().any(|other| other == line),
                "{line} is missing in\n{text}"
            );
        }
        assert_eq!(text.matches("# TYPE rrq_wal_fsync_seconds ").count(), 1);
    }
}
