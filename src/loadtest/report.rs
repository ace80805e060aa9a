//! How figures are shown: percentiles, bars for the terminal, JSON for programs.

use crate::base::report::Report;
use crate::client::Error;
use crate::loadtest::disk_probe::new_histogram;
use crate::workload::Misses;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// Rows of a histogram.
const ROWS: usize = 12;
/// Width of its longest bar.
const BAR: usize = 48;

/// Milliseconds with three digits after the point: what is measured is exact to a microsecond.
#[must_use]
pub(super) fn millis(duration: Duration) -> f64 {
    micros_to_millis(duration.as_micros() as u64)
}

fn micros_to_millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// What the client library says of a call that failed.
pub(super) fn failed(what: &str, error: &Error) -> Report {
    Report::error(error.code(), what).location(error.message())
}

/// What the probe of the disk saw, and in how many rounds it stalled.
#[must_use]
pub(super) fn disk_line(disk_ms: &Percentiles, marked: usize) -> String {
    let line = format!("disk     4 KiB O_DSYNC beside it: {}", disk_ms.line());
    match marked {
        0 => line,
        _ => format!("{line}; it stalled over 50 ms in {marked} rounds (marked, ░)"),
    }
}

/// The verdict on jobs of which so many were acknowledged and finished, after `what` was done to them.
#[must_use]
pub(super) fn verdict(what: &str, (acked, finished): (u64, u64), misses: &Misses) -> String {
    let Misses {
        lost,
        redelivered_after_ack,
        made_twice,
        strange,
    } = misses;
    let is_sound = misses.is_none() && acked == finished;
    let word = if is_sound { "ok" } else { "FAILED" };
    let mut line = format!(
        "VERDICT  {word}  {what}, {acked} jobs acknowledged, {finished} finished, {lost} lost, \
         {redelivered_after_ack} came back after their ack"
    );
    if made_twice + strange > 0 {
        line += &format!(", {made_twice} made twice, {strange} unaccounted for");
    }
    line
}

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The smallest.
    pub min: f64,
    /// Half are at most this.
    pub p50: f64,
    /// Nine of ten are at most this.
    pub p90: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Percentiles {
    /// Of these milliseconds; all 0 if there are none.
    #[must_use]
    pub fn of(values_ms: impl IntoIterator<Item = f64>) -> Self {
        let mut histogram = new_histogram();
        let mut max: f64 = 0.0;
        for value in values_ms {
            histogram.saturating_record((value * 1000.0).round() as u64);
            max = max.max(value);
        }
        // A histogram rounds up, in its fifth digit.
        let Self {
            min, p50, p90, p99, ..
        } = Self::of_histogram(&histogram);
        let [p50, p90, p99] = [p50, p90, p99].map(|value| value.min(max));
        Self {
            min,
            p50,
            p90,
            p99,
            max,
        }
    }

    /// Of a histogram of microseconds; all 0 if it is empty.
    #[must_use]
    pub fn of_histogram(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| micros_to_millis(histogram.value_at_quantile(quantile));
        Self {
            min: micros_to_millis(histogram.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: micros_to_millis(histogram.max()),
        }
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "min {:.1}  p50 {:.1}  p90 {:.1}  p99 {:.1}  max {:.1} ms",
            self.min, self.p50, self.p90, self.p99, self.max
        )
    }
}

/// A value with whether its round was marked.
pub(super) type Marked = (f64, bool);

/// Bars for the terminal: `█` for each round, `░` for each that is marked.
#[must_use]
pub(super) fn bars(values_ms: &[Marked]) -> String {
    let low = values_ms
        .iter()
        .map(|(value, _)| *value)
        .fold(f64::MAX, f64::min);
    let high = values_ms
        .iter()
        .map(|(value, _)| *value)
        .fold(0.0, f64::max);
    if values_ms.is_empty() {
        return String::new();
    }
    let step = round_up((high - low) / ROWS as f64);
    let first = (low / step).floor();
    let mut rows = [[0_usize; 2]; ROWS + 2];
    for (value, marked) in values_ms {
        let row = (value / step - first).floor() as usize;
        rows[row.min(ROWS + 1)][usize::from(*marked)] += 1;
    }
    let used = rows
        .iter()
        .rposition(|row| row[0] + row[1] > 0)
        .unwrap_or(0)
        + 1;
    let longest = rows.iter().map(|row| row[0] + row[1]).max().unwrap_or(1);
    let scale = |count: usize| match longest <= BAR {
        true => count,
        false => (count * BAR).div_ceil(longest),
    };
    let digits = usize::from(step < 1.0) + usize::from(step < 0.1);
    let mut text = String::new();
    for (number, [sound, marked]) in rows.into_iter().take(used).enumerate() {
        let begin = (first + number as f64) * step;
        let bar = "█".repeat(scale(sound)) + &"░".repeat(scale(marked));
        let line = format!("{begin:9.digits$} ms │{bar} {}", sound + marked);
        let line = line.trim_end_matches(" 0");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// The next of 1, 2, 5, 10, 20, ... that is not smaller, at least 0.01.
fn round_up(step: f64) -> f64 {
    let mut unit = 0.01;
    loop {
        for factor in [1.0, 2.0, 5.0] {
            if unit * factor >= step {
                return unit * factor;
            }
        }
        unit *= 10.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_to_four_digits() {
        let all = Percentiles::of((1..=1000).map(f64::from));
        assert_eq!((all.min, all.max), (1.0, 1000.0));
        for (found, expected) in [(all.p50, 500.0), (all.p90, 900.0), (all.p99, 990.0)] {
            assert!(
                (found - expected).abs() / expected < 0.0002,
                "{found} {expected}"
            );
        }
        assert_eq!(Percentiles::of([]), Percentiles::default());
        let one = Percentiles::of([41.234]);
        assert_eq!((one.min, one.p50, one.max), (41.234, 41.234, 41.234));
    }

    #[test]
    fn bars_show_each_round_once() {
        let text = bars(&[(10.0, false), (10.4, false), (12.1, true), (22.0, false)]);
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        assert_eq!(lines[..3], ["10 ms │██ 2", "11 ms │", "12 ms │░ 1"]);
        assert_eq!((lines[12], lines.len()), ("22 ms │█ 1", 13));
        assert_eq!(bars(&[]), "");
        assert_eq!(bars(&[(5.0, false)]).lines().count(), 1);
        let many: Vec<Marked> = (0..1000).map(|n| (f64::from(n % 7), false)).collect();
        assert!(bars(&many).lines().all(|line| line.chars().count() < 80));
    }

    #[test]
    fn steps_are_round() {
        for (step, expected) in [
            (0.0, 0.01),
            (0.3, 0.5),
            (1.0, 1.0),
            (3.0, 5.0),
            (70.0, 100.0),
        ] {
            assert!((round_up(step) - expected).abs() < 1e-9, "{step}");
        }
    }
}
