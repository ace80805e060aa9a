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

/// Bytes: a whole number, alone or with KiB, MiB or GiB.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let parse = || {
        let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1_u64 << 30)];
        let unit = units.iter().find(|(unit, _)| text.ends_with(unit));
        let (digits, factor) = match unit {
            Some((unit, factor)) => (text.strip_suffix(unit)?.trim_end(), *factor),
            None => (text, 1),
        };
        digits.parse::<u64>().ok()?.checked_mul(factor)
    };
    parse().ok_or_else(|| "a whole number, alone or with KiB, MiB or GiB, as 64MiB".to_owned())
}

/// A factor of 1 to 1000 with up to three places, in thousandths.
pub(super) fn factor(text: &str) -> Result<u32, String> {
    let parse = || {
        let (whole, places) = text.split_once('.').unwrap_or((text, "0"));
        let thousandths = format!("{places:0<3}");
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if places.is_empty() || thousandths.len() > 3 || !is_digits(places) || !is_digits(whole) {
            return None;
        }
        let (whole, thousandths): (u32, u32) = (whole.parse().ok()?, thousandths.parse().ok()?);
        whole.checked_mul(1000)?.checked_add(thousandths)
    };
    parse()
        .filter(|milli| (1_000..=1_000_000).contains(milli))
        .ok_or_else(|| "1 to 1000, with up to three places, as 1.5".to_owned())
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

    #[test]
    fn sizes_and_factors() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(factor("2"), Ok(2_000));
        assert_eq!(factor("1.25"), Ok(1_250));
        for bad in ["", "1MB", "-1", "MiB", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad:?} was taken");
        }
        for bad in ["0.5", "1.0001", "1001", "x", "1.", "1.+5"] {
            assert!(factor(bad).is_err(), "{bad:?} was taken");
        }
    }
}
