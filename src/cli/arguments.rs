//! Values of flags.

use std::time::Duration;

const UNITS: &[(&str, u64)] = &[
    // Longer names first: every one ends in a shorter one's letters.
    ("ms", 1),
    ("min", 60_000),
    ("s", 1_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// A time span: a whole number and a unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parse = || {
        let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
        let digits = text.strip_suffix(unit)?.trim_end();
        digits.parse::<u64>().ok()?.checked_mul(*factor)
    };
    parse()
        .map(Duration::from_millis)
        .ok_or_else(|| "a whole number with ms, s, min, h or d, as 5s".to_owned())
}

/// A time span of 1 ms to 49 days, as 32 bits of milliseconds hold it.
pub(super) fn short_duration(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    if (1..=u128::from(u32::MAX)).contains(&span.as_millis()) {
        Ok(span)
    } else {
        Err("1ms to 49d".to_owned())
    }
}

/// `NAME=VALUE`.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE".to_owned()),
    }
}

/// Milliseconds, as the protocol has them.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds of a short span.
pub(super) fn millis_u32(span: Option<Duration>) -> u32 {
    span.map_or(0, |span| {
        u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let ms = |text: &str| duration(text).map(millis);
        assert_eq!(ms("250ms"), Ok(250));
        assert_eq!(ms("5s"), Ok(5_000));
        assert_eq!(ms("2min"), Ok(120_000));
        assert_eq!(ms("1 h"), Ok(3_600_000));
        assert_eq!(ms("7d"), Ok(604_800_000));
        for bad in ["5", "s", "-1s", "1.5s", "1y", "99999999999999999999d", ""] {
            assert!(duration(bad).is_err(), "{bad:?} was taken");
        }
        assert!(short_duration("0s").is_err() && short_duration("50d").is_err());
    }
}
