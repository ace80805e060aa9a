//! Settings of queues and backoffs: their bounds and their bytes.
//!
//! Bytes of settings, 64, little-endian: 0 lease_ms u32, 4 max_attempts u16, 6 dead u8, 7
//! partitions u8, 8 backoff (16), 24 idempotency_window_ms u64, 32 idempotency_keys_max u32, 36
//! retain u32, 40 jobs_max u64, 48 bytes_max u64, 56 eight zeros. Of a backoff, 16: 0 kind u8, 1
//! jitter_percent u8, 2 two zeros, 4 base_ms u32, 8 factor_milli u32, 12 cap_ms u32.

use crate::base::limits::QUEUE_NAME_BYTES_MAX;
use crate::queue::codec::{Read, Reader};
use crate::queue::command::{Backoff, BackoffKind, DeadPolicy, QueueSettings, Rejection};

/// Whether `name` can be a queue's name.
pub(super) fn name_is_valid(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    (1..=QUEUE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

/// Whether a backoff is within its bounds: jitter at most 100 percent, a factor of 1 or more.
pub(super) fn backoff_is_valid(backoff: &Backoff) -> bool {
    backoff.jitter_percent <= 100
        && (backoff.kind != BackoffKind::Exponential || backoff.factor_milli >= 1_000)
}

/// A partition's share of a bound of its queue, rounded up: a bound stays one, none stays none.
pub(super) fn share(whole: u64, partitions: u8) -> u64 {
    whole.div_ceil(u64::from(partitions.max(1)))
}

/// Refuses settings out of their bounds, and those that the machine version cannot do.
pub(super) fn admit(settings: &QueueSettings, version: u16) -> Result<(), Rejection> {
    let valid = settings.lease_ms >= 1
        && settings.max_attempts >= 1
        && settings.idempotency_window_ms >= 1
        && backoff_is_valid(&settings.backoff);
    if !valid {
        return Err(Rejection::Invalid);
    }
    match version {
        1 if settings.partitions != 1 || settings.retain != 0 => Err(Rejection::Unsupported),
        _ if settings.partitions == 0 => Err(Rejection::Invalid),
        _ => Ok(()),
    }
}

/// Appends the 16 bytes of a backoff.
pub(super) fn put_backoff(out: &mut Vec<u8>, backoff: &Backoff) {
    out.extend_from_slice(&[backoff.kind as u8, backoff.jitter_percent, 0, 0]);
    for field in [backoff.base_ms, backoff.factor_milli, backoff.cap_ms] {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

/// Reads the 16 bytes of a backoff.
pub(super) fn read_backoff(from: &mut Reader<'_>) -> Read<Backoff> {
    let kind = match from.u8()? {
        1 => BackoffKind::Fixed,
        2 => BackoffKind::Linear,
        3 => BackoffKind::Exponential,
        _ => return Err("a backoff has an unknown curve"),
    };
    let jitter_percent = from.u8()?;
    from.zeros(2)?;
    let backoff = Backoff {
        kind,
        jitter_percent,
        base_ms: from.u32()?,
        factor_milli: from.u32()?,
        cap_ms: from.u32()?,
    };
    if backoff_is_valid(&backoff) {
        Ok(backoff)
    } else {
        Err("a backoff is out of its bounds")
    }
}

/// Appends the 64 bytes of settings.
pub(super) fn put_settings(out: &mut Vec<u8>, settings: &QueueSettings) {
    out.extend_from_slice(&settings.lease_ms.to_le_bytes());
    out.extend_from_slice(&settings.max_attempts.to_le_bytes());
    out.extend_from_slice(&[settings.dead as u8, settings.partitions]);
    put_backoff(out, &settings.backoff);
    out.extend_from_slice(&settings.idempotency_window_ms.to_le_bytes());
    out.extend_from_slice(&settings.idempotency_keys_max.to_le_bytes());
    out.extend_from_slice(&settings.retain.to_le_bytes());
    out.extend_from_slice(&settings.jobs_max.to_le_bytes());
    out.extend_from_slice(&settings.bytes_max.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// Reads the 64 bytes of settings; what apply would refuse in this machine version is refused.
pub(super) fn read_settings(from: &mut Reader<'_>, version: u16) -> Read<QueueSettings> {
    let lease_ms = from.u32()?;
    let max_attempts = from.u16()?;
    let dead = match from.u8()? {
        1 => DeadPolicy::Keep,
        2 => DeadPolicy::Drop,
        _ => return Err("its settings have an unknown policy for dead jobs"),
    };
    let partitions = from.u8()?;
    let backoff = read_backoff(from)?;
    let idempotency_window_ms = from.u64()?;
    let idempotency_keys_max = from.u32()?;
    let retain = from.u32()?;
    let jobs_max = from.u64()?;
    let bytes_max = from.u64()?;
    from.zeros(8)?;
    let settings = QueueSettings {
        lease_ms,
        max_attempts,
        backoff,
        idempotency_window_ms,
        idempotency_keys_max,
        jobs_max,
        bytes_max,
        retain,
        dead,
        partitions,
    };
    admit(&settings, version).map_err(|_| "its settings are out of their bounds")?;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "default", "mail.out:eu-1_x", &"q".repeat(128)] {
            assert!(name_is_valid(good), "{good}");
        }
        for bad in ["", "a b", "ä", "a/b", &"q".repeat(129)] {
            assert!(!name_is_valid(bad), "{bad}");
        }
    }

    #[test]
    fn settings_survive_their_bytes() {
        let settings = QueueSettings {
            jobs_max: 3,
            bytes_max: u64::MAX,
            dead: DeadPolicy::Drop,
            ..QueueSettings::default()
        };
        let mut out = Vec::new();
        put_settings(&mut out, &settings);
        assert_eq!(out.len(), 64);
        assert_eq!(read_settings(&mut Reader::new(&out), 1), Ok(settings));
        out[7] = 2;
        assert!(read_settings(&mut Reader::new(&out), 1).is_err());
        let later = QueueSettings {
            partitions: 2,
            ..settings
        };
        assert_eq!(read_settings(&mut Reader::new(&out), 2), Ok(later));
        out[7] = 0;
        assert!(read_settings(&mut Reader::new(&out), 2).is_err());
    }

    #[test]
    fn each_bound_of_settings_is_refused_by_its_name() {
        let good = QueueSettings::default();
        assert_eq!(admit(&good, 1), Ok(()));
        assert_eq!(admit(&good, 2), Ok(()));
        let jitter = Backoff {
            jitter_percent: 101,
            ..good.backoff
        };
        let factor = Backoff {
            factor_milli: 999,
            ..good.backoff
        };
        for bad in [
            QueueSettings {
                lease_ms: 0,
                ..good
            },
            QueueSettings {
                max_attempts: 0,
                ..good
            },
            QueueSettings {
                idempotency_window_ms: 0,
                ..good
            },
            QueueSettings {
                backoff: jitter,
                ..good
            },
            QueueSettings {
                backoff: factor,
                ..good
            },
        ] {
            assert_eq!(admit(&bad, 1), Err(Rejection::Invalid), "{bad:?}");
            assert_eq!(admit(&bad, 2), Err(Rejection::Invalid), "{bad:?}");
        }
        for later in [
            QueueSettings {
                partitions: 2,
                ..good
            },
            QueueSettings {
                partitions: 0,
                ..good
            },
            QueueSettings { retain: 1, ..good },
        ] {
            assert_eq!(admit(&later, 1), Err(Rejection::Unsupported), "{later:?}");
            let second = match later.partitions {
                0 => Err(Rejection::Invalid),
                _ => Ok(()),
            };
            assert_eq!(admit(&later, 2), second, "{later:?}");
        }
    }

    #[test]
    fn a_share_of_a_bound_is_never_none() {
        assert_eq!(share(0, 4), 0);
        assert_eq!(share(1, 4), 1);
        assert_eq!(share(9, 4), 3);
        assert_eq!(share(u64::MAX, 1), u64::MAX);
        assert_eq!(share(u64::MAX, 255), u64::MAX / 255);
    }
}
