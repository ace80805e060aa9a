//! A measurement as one HTML file that needs nothing else: percentile curves, a timeline, the facts
//! of the host, and the raw histograms.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2Serializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

/// Inside of a chart's frame, in pixels.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 240.0;
/// Room for the labels: left, and below.
const LEFT: f64 = 80.0;
const BELOW: f64 = 34.0;
const COLOURS: [&str; 4] = ["#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce"];

/// Points of one line.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// Its name.
    pub(super) name: String,
    /// Rising in the first.
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over one axis.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// Its title.
    pub(super) title: &'static str,
    /// Of the upright axis.
    pub(super) unit: &'static str,
    /// Of the other.
    pub(super) across: &'static str,
    /// The lines.
    pub(super) lines: Vec<Series>,
}

/// What a page shows.
#[derive(Debug)]
pub(super) struct Page<'a> {
    /// Its title.
    pub(super) title: &'a str,
    /// The figures as the terminal shows them.
    pub(super) text: &'a str,
    /// Name and value.
    pub(super) facts: Vec<(&'static str, String)>,
    /// Microseconds; those that are empty are left out.
    pub(super) latencies: &'a [(String, Histogram<u64>)],
    /// Further charts.
    pub(super) charts: Vec<Chart>,
}

impl Page<'_> {
    /// The file.
    #[must_use]
    pub(super) fn html(&self) -> String {
        let mut out = String::from(HEAD);
        let title = escaped(self.title);
        let _ = write!(out, "<title>{title}</title></head><body><h1>{title}</h1>");
        let _ = write!(out, "<pre>{}</pre>", escaped(self.text.trim()));
        let curves = self.latencies.iter();
        let curves: Vec<Series> = curves
            .filter(|(_, histogram)| !histogram.is_empty())
            .map(|(name, histogram)| curve(name, histogram))
            .collect();
        if !curves.is_empty() {
            out += "<h2>Latency by percentile</h2>";
            out += &chart("ms", "percentile", &curves, Scale::Percentile);
        }
        for of in &self.charts {
            let _ = write!(out, "<h2>{}</h2>", escaped(of.title));
            out += &chart(of.unit, of.across, &of.lines, Scale::Linear);
        }
        out += "<h2>Measured on</h2><table>";
        for (name, value) in &self.facts {
            let _ = write!(
                out,
                "<tr><th>{}</th><td>{}</td></tr>",
                escaped(name),
                escaped(value)
            );
        }
        out += "</table><h2>Raw histograms</h2>";
        out += "<p>HdrHistogram log, values in microseconds; any HdrHistogram tool reads it.</p>";
        let _ = writeln!(out, "<pre>{}</pre></body></html>", escaped(&self.log()));
        out
    }

    /// In the format of `HistogramLogWriter`, version 1.3.
    fn log(&self) -> String {
        let mut bytes = Vec::new();
        let mut serializer = V2Serializer::new();
        let mut builder = IntervalLogWriterBuilder::new();
        builder
            .with_start_time(UNIX_EPOCH)
            .with_max_value_divisor(1000.0);
        let mut writer = builder
            .begin_log_with(&mut bytes, &mut serializer)
            .expect("memory takes all");
        for (name, histogram) in self.latencies {
            let tag = name.replace([' ', ','], "-");
            let tag = hdrhistogram::serialization::interval_log::Tag::new(&tag);
            let start = Duration::ZERO;
            writer
                .write_histogram(histogram, start, Duration::from_secs(1), tag)
                .expect("memory takes all");
        }
        String::from_utf8(bytes).expect("it is text")
    }
}

/// The values at the percentiles where it bends, over "nines".
fn curve(name: &str, histogram: &Histogram<u64>) -> Series {
    let mut points = Vec::new();
    for step in 0..=100 {
        // From p0 to as many nines as the number of values can show.
        let nines = f64::from(step) / 20.0;
        let quantile = 1.0 - 10_f64.powf(-nines);
        let rest = (1.0 - quantile) * histogram.len() as f64;
        if rest < 0.999 {
            break;
        }
        points.push((nines, histogram.value_at_quantile(quantile) as f64 / 1000.0));
    }
    Series {
        name: name.to_owned(),
        points,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    /// Across: nines.
    Percentile,
}

fn chart(unit: &str, across: &str, lines: &[Series], scale: Scale) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let far = points().map(|point| point.0).fold(0.0, f64::max).max(1e-9);
    let high = points().map(|point| point.1).fold(0.0, f64::max).max(1e-9);
    let x = |value: f64| LEFT + value / far * WIDTH;
    let y = |value: f64| HEIGHT - value / high * HEIGHT + 8.0;
    let mut out = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\">",
        LEFT + WIDTH + 20.0,
        HEIGHT + BELOW + 8.0
    );
    for part in 0..=4 {
        let value = high * f64::from(part) / 4.0;
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{} {}</text>",
            LEFT + WIDTH,
            LEFT - 6.0,
            y(value) + 4.0,
            number(value),
            escaped(unit),
            y = y(value),
        );
    }
    let marks: Vec<(f64, String)> = match scale {
        Scale::Percentile => (0..=far as u32)
            .map(|nines| (f64::from(nines), percentile(nines)))
            .collect(),
        Scale::Linear => (0..=4)
            .map(|part| far * f64::from(part) / 4.0)
            .map(|value| (value, format!("{} {}", number(value), escaped(across))))
            .collect(),
    };
    for (value, label) in marks {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            x(value),
            HEIGHT + 26.0
        );
    }
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let path: String = line.points.iter().fold(String::new(), |mut path, point| {
            let _ = write!(path, "{:.1},{:.1} ", x(point.0), y(point.1));
            path
        });
        let _ = write!(
            out,
            "<polyline points=\"{}\" stroke=\"{colour}\"/>",
            path.trim_end()
        );
    }
    out += "</svg><p class=\"legend\">";
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let name = escaped(&line.name);
        let _ = write!(out, "<span style=\"color:{colour}\">&#9632; {name}</span> ");
    }
    out + "</p>"
}

fn percentile(nines: u32) -> String {
    match nines {
        0 => "p0".to_owned(),
        1 => "p90".to_owned(),
        2 => "p99".to_owned(),
        more => format!("p99.{}", "9".repeat(more as usize - 2)),
    }
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2}M", v / 1e6),
        v if v >= 1e4 => format!("{:.0}k", v / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

/// Text as text.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            other => out.push(other),
        }
    }
    out
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em}\
pre{background:#f4f4f4;padding:1em;overflow-x:auto;font-size:12px}svg{width:100%}\
polyline{fill:none;stroke-width:2}.grid{stroke:#ddd}text{font-size:12px;fill:#555}\
th{text-align:left;padding-right:2em}.legend span{margin-right:1.5em}</style>";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::disk_probe::new_histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    fn page(histogram: Histogram<u64>) -> String {
        let page = Page {
            title: "load <x>",
            text: "a & b",
            facts: vec![("kernel", "6.1".to_owned())],
            latencies: &[("enqueue".to_owned(), histogram)],
            charts: vec![Chart {
                title: "Jobs",
                unit: "/s",
                across: "s",
                lines: vec![Series {
                    name: "enqueued".to_owned(),
                    points: vec![(1.0, 10.0), (2.0, 20.0)],
                }],
            }],
        };
        page.html()
    }

    #[test]
    fn it_stands_alone_and_text_is_text() {
        let mut histogram = new_histogram();
        histogram.record_n(250, 10_000).expect("in range");
        let html = page(histogram);
        assert!(html.contains("load &lt;x&gt;") && html.contains("a &amp; b"));
        assert!(
            !html.contains("http") && !html.contains("<script"),
            "{html}"
        );
        assert_eq!(html.matches("<svg").count(), 2);
        assert!(html.contains("p99.99<"), "as many nines as values can show");
        assert!(!html.contains("p99.999<"));
        assert!(!html.contains("NaN") && !html.contains("inf"));
        // Nothing to show is no fault.
        let empty = page(new_histogram());
        assert_eq!(empty.matches("<svg").count(), 1);
    }

    #[test]
    fn the_raw_log_is_read_by_hdr_tools() {
        let mut histogram = new_histogram();
        histogram.record_n(250, 77).expect("in range");
        let html = page(histogram);
        let log = html.split("<pre>").nth(2).expect("the log");
        let log = log.split("</pre>").next().expect("its end");
        let log = log.replace("&quot;", "\"");
        let found = IntervalLogIterator::new(log.as_bytes()).find_map(|entry| match entry {
            Ok(LogEntry::Interval(interval)) => Some(interval.encoded_histogram().to_owned()),
            _ => None,
        });
        let bytes = base64_of(&found.expect("an interval"));
        let read: Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .expect("a histogram");
        assert_eq!((read.len(), read.max()), (77, 250));
    }

    fn base64_of(text: &str) -> Vec<u8> {
        let value = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let mut out = Vec::new();
        for four in text.trim_end_matches('=').as_bytes().chunks(4) {
            let word = four
                .iter()
                .fold(0_u32, |word, c| word << 6 | u32::from(value(*c)));
            let word = word << (6 * (4 - four.len()));
            out.extend_from_slice(&word.to_be_bytes()[1..four.len()]);
        }
        out
    }
}
