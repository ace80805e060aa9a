//! Reads the configuration file, and points into it where something is wrong.

use super::keys::{KEYS, SECTIONS};
use super::value::Refusal;
use super::{Fault, Origin, Reading, did_you_mean, refused};
use crate::base::code::Code;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Characters of a line that are shown before a fault, and from it on.
const SHOWN_CHARS: usize = 80;

/// The first of the characters, and dots if there are more.
fn around(mut chars: impl Iterator<Item = char>) -> (String, &'static str) {
    let shown = chars.by_ref().take(SHOWN_CHARS).collect();
    (shown, chars.next().map_or("", |_| "..."))
}

/// A parsed file with what is needed to point into it.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn line(&self, at: usize) -> usize {
        self.text[..at.min(self.text.len())].matches('\n').count() + 1
    }

    fn fault(&self, what: String, span: Range<usize>) -> Fault {
        let start = span.start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..]
            .find('\n')
            .map_or(self.text.len(), |at| start + at);
        let number = self.line(start);
        let column = self.text[line_start..start].chars().count();
        let (before, skipped) = around(self.text[line_start..start].chars().rev());
        let before: String = before.chars().rev().collect();
        let (behind, cut) = around(self.text[start..line_end].chars());
        let end = span.end.clamp(start, line_end);
        let width = self.text[start..end].chars().count();
        let width = width.clamp(1, SHOWN_CHARS);
        let digits = number.to_string().len();
        let margin = skipped.len() + before.chars().count();
        Fault {
            code: Code::BadConfig,
            what,
            location: format!("{}:{number}:{}", self.path.display(), column + 1),
            excerpt: format!(
                "{number} | {skipped}{before}{behind}{cut}\n{:digits$} | {:margin$}{:^<width$}",
                "", "", ""
            ),
        }
    }
}

/// Reads the text of a file; each value that is sound is taken, each that is not is a fault.
pub(super) fn read_text(reading: &mut Reading, path: &Path, text: &str) {
    let source = Source { path, text };
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return read_table(reading, "", table.get_ref(), &source);
    }
    for error in errors {
        let what = error
            .message()
            .lines()
            .next()
            .unwrap_or("not TOML")
            .to_owned();
        let fault = source.fault(what, error.span().unwrap_or(0..0));
        reading.faults.push(fault);
    }
}

fn read_table(reading: &mut Reading, prefix: &str, table: &DeTable<'_>, source: &Source<'_>) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        let text = match value.get_ref() {
            DeValue::Table(inner) if SECTIONS.contains(&key.as_str()) => {
                read_table(reading, &format!("{key}."), inner, source);
                continue;
            }
            DeValue::Table(_) => {
                let what = unknown(&key, SECTIONS.iter().copied());
                reading.faults.push(source.fault(what, name.span()));
                continue;
            }
            other => scalar(other),
        };
        let origin = Origin::File {
            path: source.path.to_owned(),
            line: source.line(name.span().start),
        };
        match reading.set(&key, &text, origin) {
            Ok(()) => {}
            Err(Refusal::UnknownKey) => {
                let what = unknown(&key, KEYS.iter().map(|key| key.name));
                reading.faults.push(source.fault(what, name.span()));
            }
            Err(Refusal::Value(rule)) => {
                let fault = source.fault(refused(&key, &text, &rule), Spanned::span(value));
                reading.faults.push(fault);
            }
        }
    }
}

fn scalar(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.as_str().replace('_', ""),
        DeValue::Float(number) => number.as_str().replace('_', ""),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) | DeValue::Table(_) => "a list".to_owned(),
    }
}

fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    match did_you_mean(key, known) {
        Some(name) => format!("unknown key `{key}`: did you mean `{name}`?"),
        None => format!("unknown key `{key}`"),
    }
}
