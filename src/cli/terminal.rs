//! Writing to whoever reads: text, tables, JSON.

use crate::base::code::Code;
use crate::base::report::Report;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Duration;

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
pub(super) fn print(text: &str) -> Result<(), Report> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Report::error(
            Code::BadArgument,
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Writes a line to standard output.
pub(super) fn say(text: &str) -> Result<(), Report> {
    print(&format!("{text}\n"))
}

/// Writes JSON to standard output.
pub(super) fn say_json(value: &serde_json::Value) -> Result<(), Report> {
    say(&format!("{value:#}"))
}

/// Writes a line to standard error. If that is gone too, nobody is left to be told.
pub(super) fn warn(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Text that may come from anybody, made harmless for the terminal.
pub(super) fn harmless(bytes: &[u8]) -> String {
    let mut out = String::new();
    for c in String::from_utf8_lossy(bytes).chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Rows under their heads, columns aligned; the first to the left, the others to the right.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                line += &format!("{cell:<width$}");
            } else {
                line += &format!("  {cell:>width$}");
            }
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// How far long work has come: a bar on the terminal's standard error, nothing elsewhere.
#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Of `total` things.
    pub(super) fn new(things: &'static str, total: u64) -> Self {
        let bar = match io::stderr().is_terminal() {
            true => ProgressBar::new(total),
            false => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template("{bar:30} {pos} of {len} {msg}, {eta} left");
        bar.set_style(style.expect("the template is right"));
        bar.set_message(things);
        Self(bar)
    }

    /// So many more are done.
    pub(super) fn add(&self, more: u64) {
        self.0.inc(more);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Asks before something is lost: `what` continues "This would". On a terminal by a question, whose
/// answer may be no; elsewhere `--yes` must be given.
pub(super) fn may(what: &str, yes: bool) -> Result<bool, Report> {
    if yes {
        return Ok(true);
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(
            Report::error(Code::BadArgument, format!("this would {what}"))
                .why("there is no terminal to ask on; nothing was changed")
                .fix("the same command with --yes"),
        );
    }
    let mut err = io::stderr().lock();
    let asked = write!(err, "This will {what}. Go on? [y/N] ").and_then(|()| err.flush());
    let mut answer = String::new();
    let answered = asked.and_then(|()| io::stdin().lock().read_line(&mut answer));
    let is_yes = answered.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes");
    drop(err);
    if !is_yes {
        warn("nothing was changed");
    }
    Ok(is_yes)
}

/// "3 jobs", "1 job".
pub(super) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// A time span, to two units.
pub(super) fn span(span: Duration) -> String {
    let ms = span.as_millis();
    let (s, min, h, d) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match () {
        () if ms < 1000 => format!("{ms} ms"),
        () if s < 60 => format!("{s} s"),
        () if min < 60 => format!("{min} min {} s", s % 60),
        () if h < 24 => format!("{h} h {} min", min % 60),
        () => format!("{d} d {} h", h % 24),
    }
}

/// Bytes in the largest unit that leaves at least one.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in units {
        if bytes >= size {
            return format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size);
        }
    }
    format!("{bytes} B")
}

/// A moment in milliseconds since 1970, as RFC 3339 in UTC. One that no calendar has is shown as the
/// number it is.
pub(super) fn moment(ms: u64) -> String {
    let moment = i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(|| format!("{ms} ms"), |moment| format!("{moment:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        assert_eq!(moment(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(moment(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(moment(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(moment(1_795_425_000_123), "2026-11-23T09:10:00.123Z");
        assert_eq!(moment(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(moment(u64::MAX), "18446744073709551615 ms");
    }

    #[test]
    fn numbers_carry_units() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(span(Duration::from_secs(3_700)), "1 h 1 min");
        assert_eq!(count(1, "job"), "1 job");
    }

    #[test]
    fn tables_are_aligned() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["queue", "jobs"]), row(["emails", "7"])]);
        assert_eq!(text, "queue   jobs\nemails     7\n");
    }
}
