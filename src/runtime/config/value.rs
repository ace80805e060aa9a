//! How a value is written as text: numbers, flags, addresses, sizes and durations, both ways.
//!
//! Whatever its source, a value comes as text and goes through here, so that bounds and messages
//! are the same everywhere.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Why a value is not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There is no such key.
    UnknownKey,
    /// What it must be.
    Value(String),
}

pub(super) fn rule(text: impl Into<String>) -> Refusal {
    Refusal::Value(text.into())
}

pub(super) fn flag(text: &str) -> Result<bool, Refusal> {
    text.parse().map_err(|_| rule("true or false"))
}

pub(super) fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, Refusal>
where
    T: FromStr + PartialOrd + Display,
{
    text.parse()
        .ok()
        .filter(|value| range.contains(value))
        .ok_or_else(|| rule(format!("{} to {}", range.start(), range.end())))
}

pub(super) fn address(text: &str) -> Result<SocketAddr, Refusal> {
    text.parse()
        .map_err(|_| rule("an address and a port, for example 127.0.0.1:7411"))
}

const SIZE_UNITS: &[(&str, u64)] = &[
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("B", 1),
];
const TIME_UNITS: &[(&str, u64)] = &[
    ("ms", 1),
    ("min", 60_000),
    ("s", 1000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

pub(super) fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, Refusal> {
    with_unit(text, SIZE_UNITS, &range).ok_or_else(|| {
        let (low, high) = (show_size(*range.start()), show_size(*range.end()));
        rule(format!(
            "{low} to {high}, a whole number with B, KiB, MiB or GiB"
        ))
    })
}

pub(super) fn duration(text: &str, range: RangeInclusive<u64>) -> Result<u64, Refusal> {
    with_unit(text, TIME_UNITS, &range).ok_or_else(|| {
        let (low, high) = (show_duration(*range.start()), show_duration(*range.end()));
        rule(format!(
            "{low} to {high}, a whole number with ms, s, min, h or d"
        ))
    })
}

fn with_unit(text: &str, units: &[(&str, u64)], range: &RangeInclusive<u64>) -> Option<u64> {
    let (digits, factor) = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits, factor)))?;
    let value = digits
        .trim_end()
        .parse::<u64>()
        .ok()?
        .checked_mul(*factor)?;
    range.contains(&value).then_some(value)
}

/// Bytes, in the largest unit that leaves them whole.
pub(super) fn show_size(bytes: u64) -> String {
    if bytes == 0 {
        return "0B".to_owned();
    }
    in_unit(bytes, SIZE_UNITS)
}

/// Milliseconds, in the largest unit that leaves them whole.
pub(super) fn show_duration(ms: u64) -> String {
    in_unit(ms, TIME_UNITS)
}

fn in_unit(value: u64, units: &[(&str, u64)]) -> String {
    let fits = |(_, factor): &&(&str, u64)| value.is_multiple_of(*factor) && value >= *factor;
    let best = units.iter().filter(fits).max_by_key(|(_, factor)| *factor);
    let (unit, factor) = best.unwrap_or(&units[0]);
    format!("{}{unit}", value / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_units() {
        let any = 0..=u64::MAX;
        assert_eq!(duration("90s", any.clone()).ok(), Some(90_000));
        assert_eq!(duration("10min", any.clone()).ok(), Some(600_000));
        assert!(duration("90", any.clone()).is_err());
        assert!(size("18446744073709551615GiB", any.clone()).is_err());
        assert_eq!(show_size(1 << 22), "4MiB");
        assert_eq!(show_size(0), "0B");
        assert_eq!(show_duration(0), "0ms");
        for ms in [1, 999, 1000, 60_000, 86_400_000, 90_061_001] {
            assert_eq!(duration(&show_duration(ms), any.clone()).ok(), Some(ms));
        }
    }
}
