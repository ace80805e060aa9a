//! An error as a person sees it: what happened, where, why, and what to do.
//!
//! ```text
//! error[RRQ-1006]: 127.0.0.1:7411 is already in use (client port)
//!   where: pid 4312 rrq-node, data directory ./rrq-data
//!   why:   two processes cannot listen on one port
//!   fix:   stop it (kill 4312) or choose another port with --listen
//! ```
//!
//! One form for all three programs. A part without a text is left out; the further lines of a text
//! stand under its first. `fix:` names only what exists. Control characters are escaped, since a
//! text may quote a file or a peer and must not steer the terminal.

use crate::base::code::Code;
use std::fmt;

/// What went wrong, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether the program gives up or goes on.
    pub severity: Severity,
    /// The stable code.
    pub code: Code,
    /// What happened, in a sentence without a full stop.
    pub what: String,
    /// Where: a file and line, an offset, a process, a system call with its error.
    pub location: Option<String>,
    /// Why this is refused, if that is not plain.
    pub why: Option<String>,
    /// What to do, best as something to copy.
    pub fix: Option<String>,
}

/// Whether the program gives up or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It gives up.
    Error,
    /// It goes on.
    Warning,
}

impl Report {
    /// The program gives up because of `what`.
    #[must_use]
    pub fn error(code: Code, what: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            what: what.into(),
            location: None,
            why: None,
            fix: None,
        }
    }

    /// The program goes on in spite of `what`.
    #[must_use]
    pub fn warning(code: Code, what: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, what)
        }
    }

    /// Adds where it happened, shown as `where:`.
    #[must_use]
    pub fn location(mut self, location: impl Into<String>) -> Self {
        self.location = Some(location.into());
        self
    }

    /// Adds why it is so.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// The exit status of a program that ends with this: 2 usage or configuration, 3 the
    /// environment, 4 locked or in use, 5 damaged data, 6 incompatible, 1 anything else, 0 for a
    /// warning, which ends no program.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.severity == Severity::Warning {
            return 0;
        }
        match (self.code, self.code.number() / 1000) {
            (Code::PortInUse | Code::DirectoryLocked, _) => 4,
            (_, 1) => 3,
            (_, 2) => 2,
            (_, 3) => 6,
            (_, 5) => 5,
            _ => 1,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = match self.severity {
            Severity::Error => format!("error[{}]: ", self.code),
            Severity::Warning => format!("warning[{}]: ", self.code),
        };
        write_part(f, &head, &self.what)?;
        let parts = [
            ("\n  where: ", &self.location),
            ("\n  why:   ", &self.why),
            ("\n  fix:   ", &self.fix),
        ];
        for (label, text) in parts {
            if let Some(text) = text {
                write_part(f, label, text)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// Writes `label` and `text`, each further line of it under the first.
fn write_part(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    let indent = label.trim_start_matches('\n').len();
    f.write_str(label)?;
    for (number, line) in text.trim_end().lines().enumerate() {
        if number > 0 {
            // An empty line carries no trailing blanks.
            write!(f, "\n{:1$}", "", if line.is_empty() { 0 } else { indent })?;
        }
        for part in line.split_inclusive(is_unsafe_to_show) {
            let kept = part.trim_end_matches(is_unsafe_to_show);
            f.write_str(kept)?;
            write!(f, "{}", part[kept.len()..].escape_default())?;
        }
    }
    Ok(())
}

/// Whether `c` could steer a terminal. Tabs are kept: they stand in lines quoted from files.
fn is_unsafe_to_show(c: char) -> bool {
    c.is_control() && c != '\t'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_form() {
        let report = Report::error(
            Code::PortInUse,
            "127.0.0.1:7411 is already in use (client port)",
        )
        .location("pid 4312 rrq-node, data directory ./rrq-data")
        .why("two processes cannot listen on one port")
        .fix("stop it (kill 4312)\nor choose another port: --listen 127.0.0.1:7421");
        assert_eq!(
            report.to_string(),
            "error[RRQ-1006]: 127.0.0.1:7411 is already in use (client port)\n  \
               where: pid 4312 rrq-node, data directory ./rrq-data\n  \
               why:   two processes cannot listen on one port\n  \
               fix:   stop it (kill 4312)\n         \
                      or choose another port: --listen 127.0.0.1:7421"
        );
    }

    #[test]
    fn absent_parts_are_left_out() {
        let report = Report::error(Code::BadArgument, "--shards must be at least 1");
        assert_eq!(
            report.to_string(),
            "error[RRQ-2001]: --shards must be at least 1"
        );
        let report = report.fix("--shards 1");
        assert_eq!(
            report.to_string(),
            "error[RRQ-2001]: --shards must be at least 1\n  fix:   --shards 1"
        );
    }

    #[test]
    fn lines_stand_under_the_first() {
        let report = Report::error(Code::BadConfig, "2 errors:\nthis one\n\nand that one\n")
            .location("node.toml:14:1\n14 | flush = 1\n   | ^^^^^");
        assert_eq!(
            report.to_string(),
            "error[RRQ-2002]: 2 errors:\n                 this one\n\n                 \
             and that one\n  where: node.toml:14:1\n         14 | flush = 1\n            | ^^^^^"
        );
    }

    #[test]
    fn warnings_say_so_and_end_nothing() {
        let report = Report::warning(Code::MemlockTooLow, "registered buffers are off");
        assert_eq!(
            report.to_string(),
            "warning[RRQ-1002]: registered buffers are off"
        );
        assert_eq!(report.exit_code(), 0);
    }

    #[test]
    fn quoted_bytes_cannot_steer_the_terminal() {
        let report = Report::error(Code::BadConfig, "unknown key `a\u{1b}[2Jb\r\tc\u{7}\u{9b}`");
        assert_eq!(
            report.to_string(),
            "error[RRQ-2002]: unknown key `a\\u{1b}[2Jb\\r\tc\\u{7}\\u{9b}`"
        );
    }

    #[test]
    fn exit_codes_follow_the_kind() {
        let exit_code = |code| Report::error(code, "").exit_code();
        assert_eq!(exit_code(Code::BadArgument), 2);
        assert_eq!(exit_code(Code::IoUringUnavailable), 3);
        assert_eq!(exit_code(Code::PortInUse), 4);
        assert_eq!(exit_code(Code::DirectoryLocked), 4);
        assert_eq!(exit_code(Code::DirectoryUnusable), 3);
        assert_eq!(exit_code(Code::LogDamaged), 5);
        assert_eq!(exit_code(Code::FormatTooNew), 6);
        assert_eq!(exit_code(Code::LeaseLost), 1);
        assert_eq!(exit_code(Code::Bug), 1);
        for code in Code::ALL {
            assert!((1..=6).contains(&exit_code(*code)), "{code}");
        }
    }
}
