//! What a load has shown: figures for programs, a table for people.

use super::books::{Books, Counts, micros};
use super::{Mark, Options};
use crate::loadtest::host::HostFacts;
use crate::loadtest::html::{Chart, Page, Series};
use crate::loadtest::process::Usage;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Half are at most this.
    pub p50: u64,
    /// Nine of ten.
    pub p90: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1,000.
    pub p999: u64,
    /// 9,999 of 10,000.
    pub p9999: u64,
    /// The largest.
    pub max: u64,
}

impl Latency {
    /// Of a histogram of microseconds; all 0 if it is empty.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: histogram.max(),
        }
    }

    fn cells(&self) -> String {
        let all = [
            self.p50, self.p90, self.p99, self.p999, self.p9999, self.max,
        ];
        let cell = |micros: &u64| format!("{:>10}", shown(*micros));
        all.iter().map(cell).collect()
    }
}

/// Microseconds as people read them.
fn shown(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{micros} us"),
        10_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// One second of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Second {
    /// Seconds since the measurement began.
    pub at_s: f64,
    /// Enqueues confirmed, a second.
    pub enqueued_per_s: f64,
    /// Acks confirmed, a second.
    pub completed_per_s: f64,
    /// Of its enqueues.
    pub enqueue_us: Latency,
    /// Jobs asked for or there at its end.
    pub backlog: u64,
}

impl Second {
    pub(super) fn between(
        passed: Duration,
        length: Duration,
        from: Counts,
        to: Counts,
        enqueue_us: Latency,
    ) -> Self {
        let rate = |from: u64, to: u64| (to - from) as f64 / length.as_secs_f64();
        Self {
            at_s: passed.as_secs_f64(),
            enqueued_per_s: rate(from.enqueued, to.enqueued),
            completed_per_s: rate(from.completed, to.completed),
            enqueue_us,
            backlog: 0,
        }
    }

    pub(super) fn with_backlog(self, backlog: u64) -> Self {
        Self { backlog, ..self }
    }

    /// A line for people.
    #[must_use]
    pub fn line(&self, is_warm_up: bool) -> String {
        format!(
            "{:4.0} s {} enqueued {:>9.0}/s  completed {:>9.0}/s  enqueue p50 {:>9} p99 {:>9}  \
             backlog {}",
            self.at_s,
            if is_warm_up { "warm-up " } else { "measured" },
            self.enqueued_per_s,
            self.completed_per_s,
            shown(self.enqueue_us.p50),
            shown(self.enqueue_us.p99),
            self.backlog,
        )
    }
}

/// What was found. The fields that JSON shows are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Seconds measured.
    pub duration_s: f64,
    /// Jobs enqueued, a second.
    pub enqueued_per_s: f64,
    /// Jobs acknowledged, a second.
    pub completed_per_s: f64,
    /// Of enqueues.
    pub enqueue_us: Latency,
    /// From the enqueue to a consumer's hands.
    pub delivery_us: Latency,
    /// From the enqueue to the confirmed ack.
    pub end_to_end_us: Latency,
    /// CPU of the node, over completed jobs, or enqueued ones where nobody consumes; absent if the
    /// node is not our own.
    pub server_cpu_us_per_job: Option<f64>,
    /// CPU of the load, over the same.
    pub client_cpu_us_per_job: f64,
    /// Bytes that the node had written to disk, over the same.
    pub bytes_written_per_job: Option<f64>,
    /// Of these, bytes of the log, its padding included; absent if a node went away.
    pub log_bytes_per_job: Option<f64>,
    /// Enqueues refused by name (busy, disk full).
    pub refused: u64,
    /// Leases that ended before their ack.
    pub lease_lost: u64,
    /// Jobs that came after their ack had been confirmed.
    pub redelivered_after_ack: u64,
    /// Deliveries of what nobody had enqueued.
    pub strange: u64,
    /// Enqueues, acks and nacks of which nobody knows what became.
    pub unknown: u64,
    /// How often a connection went to another node: its own was gone, silent, or led the queue no more.
    pub moved: u64,
    /// Acknowledged jobs lost.
    pub lost: u64,
    /// Whether the disk stalled for others too, for over 50 ms.
    pub disk_stalled: bool,
    /// The 4 KiB O_DSYNC writes beside it.
    pub disk_us: Latency,
    /// Second by second.
    pub seconds: Vec<Second>,
    /// What it was measured on.
    pub host: HostFacts,
    /// What its latencies were: enqueue, delivery, life.
    #[serde(skip)]
    pub histograms: [(String, Histogram<u64>); 3],
}

impl Outcome {
    pub(super) fn between(
        options: &Options,
        from: &Mark,
        to: &Mark,
        books: &Books,
        seconds: Vec<Second>,
    ) -> Self {
        let seconds_measured = (to.at - from.at).as_secs_f64();
        let enqueued = to.counts.enqueued - from.counts.enqueued;
        let completed = to.counts.completed - from.counts.completed;
        let jobs = if options.consumers == 0 {
            enqueued
        } else {
            completed
        };
        let a_job = |amount: f64| amount / jobs.max(1) as f64;
        let used = |to: Option<Usage>, from: Option<Usage>| Some(to?.since(from?));
        let server = used(to.server, from.server);
        let generator = used(to.generator, from.generator).unwrap_or_default();
        let latencies = books.latencies();
        let counts = books.counts();
        let cpu = |usage: Usage| a_job(micros(usage.cpu) as f64);
        Self {
            duration_s: seconds_measured,
            enqueued_per_s: enqueued as f64 / seconds_measured,
            completed_per_s: completed as f64 / seconds_measured,
            enqueue_us: Latency::of(&latencies.enqueue),
            delivery_us: Latency::of(&latencies.delivery),
            end_to_end_us: Latency::of(&latencies.life),
            server_cpu_us_per_job: server.map(cpu),
            client_cpu_us_per_job: cpu(generator),
            bytes_written_per_job: server.map(|usage| a_job(usage.written as f64)),
            log_bytes_per_job: Option::zip(to.log_bytes, from.log_bytes)
                .map(|(to, from)| a_job(to.saturating_sub(from) as f64)),
            refused: counts.refused,
            lease_lost: counts.lease_lost,
            redelivered_after_ack: counts.redelivered_after_ack,
            strange: counts.strange,
            unknown: counts.unknown,
            moved: counts.moved,
            lost: 0,
            disk_stalled: false,
            disk_us: Latency::default(),
            seconds,
            host: HostFacts::default(),
            histograms: [
                ("enqueue".to_owned(), latencies.enqueue),
                ("delivery".to_owned(), latencies.delivery),
                ("whole life".to_owned(), latencies.life),
            ],
        }
    }

    /// Whether nothing was lost, came back after its ack, or came from nowhere.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.lost + self.redelivered_after_ack + self.strange == 0
    }

    /// All of it as one HTML file.
    #[must_use]
    pub fn html(&self) -> String {
        let line = |name: &str, value: fn(&Second) -> f64| Series {
            name: name.to_owned(),
            points: self.seconds.iter().map(|s| (s.at_s, value(s))).collect(),
        };
        let mut rates = vec![line("enqueued", |s| s.enqueued_per_s)];
        if self.completed_per_s > 0.0 {
            rates.push(line("completed", |s| s.completed_per_s));
        }
        let latency = vec![
            line("p50", |s| s.enqueue_us.p50 as f64 / 1e3),
            line("p99", |s| s.enqueue_us.p99 as f64 / 1e3),
            line("max", |s| s.enqueue_us.max as f64 / 1e3),
        ];
        let page = Page {
            title: "rrq-bench load",
            text: &self.text(),
            facts: self.host.facts(),
            latencies: &self.histograms,
            charts: vec![
                Chart {
                    title: "Jobs a second",
                    unit: "/s",
                    across: "s",
                    lines: rates,
                },
                Chart {
                    title: "Latency of an enqueue",
                    unit: "ms",
                    across: "s",
                    lines: latency,
                },
            ],
        };
        page.html()
    }

    /// Figures and the verdict, for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let heads = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];
        let heads: String = heads.iter().map(|head| format!("{head:>10}")).collect();
        let _ = writeln!(text, "\n{:12}{heads}", "latency");
        for (what, histogram) in &self.histograms {
            if !histogram.is_empty() {
                let _ = writeln!(text, "{what:12}{}", Latency::of(histogram).cells());
            }
        }
        let _ = writeln!(text, "{:12}{}", "disk, 4 KiB", self.disk_us.cells());
        let _ = writeln!(
            text,
            "\nenqueued  {:>10.0}/s\ncompleted {:>10.0}/s over {:.1} s{}",
            self.enqueued_per_s,
            self.completed_per_s,
            self.duration_s,
            if self.disk_stalled {
                "; the disk stalled over 50 ms for others too"
            } else {
                ""
            },
        );
        let maybe =
            |value: Option<f64>| value.map_or("?".to_owned(), |value| format!("{value:.2}"));
        let log_bytes = self.log_bytes_per_job;
        let log_bytes = log_bytes.map_or("?".to_owned(), |bytes| format!("{bytes:.0}"));
        let _ = writeln!(
            text,
            "a job     server {} us CPU, load {:.2} us CPU, {} bytes written, {log_bytes} of them log",
            maybe(self.server_cpu_us_per_job),
            self.client_cpu_us_per_job,
            maybe(self.bytes_written_per_job),
        );
        let _ = writeln!(
            text,
            "VERDICT   {}  {} lost, {} came back after their ack, {} from nowhere, {} unknown, {} \
             refused, {} leases lost",
            if self.is_sound() { "ok" } else { "FAILED" },
            self.lost,
            self.redelivered_after_ack,
            self.strange,
            self.unknown,
            self.refused,
            self.lease_lost,
        );
        if self.moved > 0 {
            let _ = writeln!(
                text,
                "          connections went to another node {} times",
                self.moved
            );
        }
        text
    }
}
