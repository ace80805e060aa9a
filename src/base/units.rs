//! Numbers that carry their unit.
//!
//! Three clocks, never mixed. [`Monotonic`] is this machine's boot clock and an argument of every
//! engine call. [`GroupTime`] belongs to a group: stamped into entries by its leader, it stands
//! still while there is none. [`WallTime`] is group time plus the group's replicated offset.

use std::fmt;
use std::time::Duration;

/// Nanoseconds of this machine's `CLOCK_BOOTTIME`. Says nothing on another machine or after a boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// This instant plus `duration`, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// The time since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What the driver tells the engine of time, read once a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The boot clock: all timeouts.
    pub mono: Monotonic,
    /// This machine's wall clock in milliseconds since 1970: only ever proposed, never applied.
    pub wall: WallTime,
}

/// Milliseconds of a group's own time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupTime(pub u64);

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(pub u64);

impl GroupTime {
    /// The largest time that a job record can hold (48 bits: year 10,889).
    pub const MAX: Self = Self((1 << 48) - 1);

    /// This time plus `ms`, at most [`Self::MAX`].
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms).min(Self::MAX.0))
    }

    /// The wall time at this group time, for an offset in milliseconds.
    #[must_use]
    pub fn wall(self, offset_ms: i64) -> WallTime {
        WallTime(self.0.saturating_add_signed(offset_ms).min(WallTime::MAX.0))
    }
}

impl WallTime {
    /// The largest time that a job record can hold (48 bits: year 10,889).
    pub const MAX: Self = Self((1 << 48) - 1);

    /// This time plus `ms`, at most [`Self::MAX`].
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms).min(Self::MAX.0))
    }
}

/// A position in a shard's log: bytes since the first batch ever written, 4 KiB aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_saturate_instead_of_wrapping() {
        assert_eq!(Monotonic(u64::MAX).plus(Duration::MAX), Monotonic(u64::MAX));
        assert_eq!(Monotonic(1).since(Monotonic(5)), Duration::ZERO);
        assert_eq!(GroupTime(5).plus_ms(u64::MAX), GroupTime::MAX);
        assert_eq!(GroupTime(5).wall(i64::MIN), WallTime(0));
        assert_eq!(GroupTime(5).wall(i64::MAX), WallTime::MAX);
    }
}
