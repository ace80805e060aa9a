//! What a failover run has shown: figures for programs, a histogram for people.

use super::{Strike, Victim};
use crate::loadtest::disk_probe::new_histogram;
use crate::loadtest::host::HostFacts;
use crate::loadtest::html::{Chart, Page, Series};
use crate::loadtest::report::{Marked, Percentiles, bars, disk_line, verdict};
use crate::workload::Misses;
use serde::Serialize;

/// One strike.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// The longest time between two acknowledged enqueues of a queue.
    pub gap_ms: f64,
    /// The longest time between two finished jobs of a queue.
    pub finish_gap_ms: f64,
    /// From the strike until in each queue something was enqueued and something finished; of a node
    /// that ends in order, its end included.
    pub worked_again_ms: f64,
    /// Numbers of the nodes that were struck.
    pub victims: Vec<u32>,
    /// Jobs whose enqueue was acknowledged up to this round's audit.
    pub acked: u64,
    /// Acknowledged jobs that this round lost.
    pub lost: u64,
    /// Jobs that came back in this round after their ack was confirmed.
    pub redelivered_after_ack: u64,
    /// Calls of this round that ended with an error.
    pub failed_requests: u64,
    /// Whether the disk stalled for others too.
    pub marked: bool,
}

/// What was found. The fields that JSON shows are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Nodes.
    pub nodes: u32,
    /// Each strike.
    pub rounds: Vec<Round>,
    /// Over all rounds.
    pub gap_ms: Percentiles,
    /// Over all rounds.
    pub finish_gap_ms: Percentiles,
    /// Calls that ended with an error, after all that the client library tried.
    pub failed_requests: u64,
    /// Acknowledged jobs lost, in rounds and at the end.
    pub lost: u64,
    /// All that went wrong.
    #[serde(skip)]
    pub misses: Misses,
    /// Jobs whose enqueue was acknowledged.
    #[serde(skip)]
    pub enqueued: u64,
    /// Jobs finished.
    #[serde(skip)]
    pub finished: u64,
    /// What befell the nodes.
    #[serde(skip)]
    pub signal: Strike,
    /// Which nodes.
    #[serde(skip)]
    pub target: Victim,
    /// Writes of the disk probe.
    #[serde(skip)]
    pub disk_ms: Percentiles,
    /// What it was measured on.
    pub host: HostFacts,
}

/// A time of a round, and how it is read.
type OfRound = (&'static str, fn(&Round) -> f64);
const TIMES: [OfRound; 2] = [
    ("enqueue gap", |round| round.gap_ms),
    ("finish gap", |round| round.finish_gap_ms),
];

impl Round {
    pub(super) fn line(&self, number: u32, of: u32) -> String {
        let victims: Vec<String> = self.victims.iter().map(u32::to_string).collect();
        format!(
            "{number:4}/{of:<4} node {}  enqueue gap {:7.1} ms, finish gap {:7.1} ms, worked again \
             after {:7.1} ms  {} acked, {} failed, {} lost, {} back{}",
            victims.join("+"),
            self.gap_ms,
            self.finish_gap_ms,
            self.worked_again_ms,
            self.acked,
            self.failed_requests,
            self.lost,
            self.redelivered_after_ack,
            if self.marked { "  disk stalled" } else { "" },
        )
    }
}

impl Outcome {
    /// Whether nothing was lost, came back, or was made twice, and all that was acknowledged is
    /// accounted for.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.misses.is_none() && self.enqueued == self.finished
    }

    /// Histograms, percentiles and the verdict, for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (title, value) in TIMES {
            let rounds = self.rounds.iter();
            let values: Vec<Marked> = rounds.map(|of| (value(of), of.marked)).collect();
            let all = Percentiles::of(values.iter().map(|(value, _)| *value));
            text += &format!(
                "\n{title}: the longest time without an answer in a queue\n{}",
                bars(&values)
            );
            text += &format!("  all {:3}  {}\n", values.len(), all.line());
        }
        let marked = self.rounds.iter().filter(|round| round.marked).count();
        text += &format!(
            "\n{}\n{}\n",
            disk_line(&self.disk_ms, marked),
            self.verdict()
        );
        text
    }

    fn verdict(&self) -> String {
        let strikes = self.rounds.len();
        let what = format!("{strikes} strikes ({:?}, {:?})", self.signal, self.target);
        let line = verdict(&what, (self.enqueued, self.finished), &self.misses);
        format!("{line}, {} requests failed", self.failed_requests)
    }

    /// As one HTML file.
    #[must_use]
    pub fn html(&self) -> String {
        let mut latencies = Vec::new();
        let mut lines = Vec::new();
        for (name, value) in TIMES {
            let mut histogram = new_histogram();
            let values = self.rounds.iter().map(value);
            for value in values.clone() {
                histogram.saturating_record((value * 1000.0).round() as u64);
            }
            latencies.push((name.to_owned(), histogram));
            let points = values.enumerate();
            let points = points.map(|(number, value)| (number as f64 + 1.0, value));
            lines.push(Series {
                name: name.to_owned(),
                points: points.collect(),
            });
        }
        let page = Page {
            title: "rrq-bench failover",
            text: &self.text(),
            facts: self.host.facts(),
            latencies: &latencies,
            charts: vec![Chart {
                title: "Round by round",
                unit: "ms",
                across: "",
                lines,
            }],
        };
        page.html()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lost: u64) -> Outcome {
        let round = |gap_ms: f64, marked| Round {
            gap_ms,
            finish_gap_ms: gap_ms * 2.0,
            worked_again_ms: gap_ms,
            victims: vec![2],
            acked: 10,
            lost: 0,
            redelivered_after_ack: 0,
            failed_requests: 0,
            marked,
        };
        let rounds = vec![round(20.0, false), round(41.0, true)];
        Outcome {
            nodes: 3,
            gap_ms: Percentiles::of(rounds.iter().map(|round| round.gap_ms)),
            finish_gap_ms: Percentiles::of(rounds.iter().map(|round| round.finish_gap_ms)),
            rounds,
            failed_requests: 0,
            lost,
            misses: Misses {
                lost,
                ..Misses::default()
            },
            enqueued: 10,
            finished: 10,
            signal: Strike::Kill,
            target: Victim::Leader,
            disk_ms: Percentiles::default(),
            host: HostFacts::default(),
        }
    }

    #[test]
    fn one_lost_job_fails_the_run() {
        assert!(outcome(0).is_sound() && !outcome(1).is_sound());
        assert!(outcome(1).text().contains("VERDICT  FAILED  2 strikes"));
        let unfinished = Outcome {
            finished: 9,
            ..outcome(0)
        };
        assert!(!unfinished.is_sound());
    }

    #[test]
    fn the_figures_have_their_names() {
        let found = serde_json::to_value(outcome(0)).expect("plain fields");
        assert_eq!(found["nodes"], 3);
        assert_eq!(found["gap_ms"]["max"], 41.0);
        assert_eq!(found["finish_gap_ms"]["max"], 82.0);
        assert_eq!(found["rounds"][1]["marked"], true);
        for name in ["gap_ms", "finish_gap_ms", "lost", "failed_requests"] {
            assert!(found["rounds"][0].get(name).is_some(), "{name}");
        }
        assert_eq!(
            (&found["failed_requests"], &found["lost"]),
            (&0.into(), &0.into())
        );
        let text = outcome(0).text();
        assert!(text.contains("█ 1") && text.contains("░ 1"), "{text}");
        assert!(outcome(0).html().contains("finish gap"));
    }
}
