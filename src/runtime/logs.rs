//! Logs on standard error, as text or as JSON, without what is secret.
//!
//! Payloads and headers of jobs are never logged: a test looks for them at the lowest level. What
//! others say of themselves may be (a client's name, an address), so user names and passwords in URLs
//! are taken out of every line on its way: `amqp://ada:pw@host` becomes `amqp://***@host`.

use crate::runtime::config::NodeConfig;
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging as configured, for the whole process.
pub fn start(config: &NodeConfig) {
    let targets = Targets::new()
        .with_default(LevelFilter::from_level(config.log_level))
        // It warns of registered buffers at each start of an ordinary user.
        .with_target("glommio", LevelFilter::ERROR);
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Redacting(io::stderr()));
    let registry = tracing_subscriber::registry().with(targets);
    // Fails if a test has its own.
    let _ = if config.log_json {
        registry.with(lines.json()).try_init()
    } else {
        registry
            .with(lines.with_ansi(io::stderr().is_terminal()))
            .try_init()
    };
}

/// A line without the user names and passwords of the URLs in it.
#[must_use]
pub fn redact(line: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        let ends = |c: char| c.is_whitespace() || "/?#\"'<>`,;".contains(c);
        let authority = &after[..after.find(ends).unwrap_or(after.len())];
        out.push_str(before);
        rest = after;
        if let Some(user) = authority.rfind('@') {
            out.push_str("***");
            rest = &after[user..];
        }
    }
    if out.is_empty() {
        return line.into();
    }
    out.push_str(rest);
    out.into()
}

/// Redacts what is written; each event is one write, made whole before.
struct Redacting<W>(W);

impl<W: Write> Write for Redacting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.0.write_all(redact(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_passwords_are_taken_out_of_urls() {
        for (line, shown) in [
            (
                "from http://ada:pw@host:1/x?y",
                "from http://***@host:1/x?y",
            ),
            (
                "a=\"tcp://u@h\" b='x://:p@@h'",
                "a=\"tcp://***@h\" b='x://***@h'",
            ),
            (
                "http://host/path@2 and me@host",
                "http://host/path@2 and me@host",
            ),
            ("://", "://"),
            ("no url", "no url"),
        ] {
            assert_eq!(redact(line), shown);
        }
        let mut out = Vec::new();
        let mut writer = Redacting(&mut out);
        writer.write_all(b"x://a:b@c\n").expect("memory takes it");
        assert_eq!(out, b"x://***@c\n");
    }
}
