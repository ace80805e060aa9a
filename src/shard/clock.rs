//! The time of a group: stamped by its leader, advanced by the leader's boot clock.
//!
//! It goes on from the last stamp in the log, so it stands still while there is no leader: no
//! outage and no wall clock can end a lease.
//!
//! Deliberately absent: the time in heartbeats, from which the next leader could go on. What a leader read
//! after the last stamp is lost with it, and that only makes leases and delays of the group longer, never
//! shorter: every deadline is an entry's stamp and a duration, and is held against later stamps alone. At most
//! [`TIME_STAMP_MS`](crate::base::limits::TIME_STAMP_MS) is lost a change of leaders, since a group that waits
//! for something is stamped so often. Heartbeats would save less than that: a group that proposes carries the
//! time in its entries, and one that proposes nothing is at rest after
//! [`REST_AFTER_MS`](crate::base::limits::REST_AFTER_MS) and has none.

use crate::base::units::{GroupTime, Monotonic};
use std::time::Duration;

/// A leader's reading of its group's time.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupClock {
    since: Monotonic,
    from: GroupTime,
}

impl GroupClock {
    /// Goes on from the last stamp.
    pub(super) fn start(last_stamp: GroupTime, now: Monotonic) -> Self {
        Self {
            since: now,
            from: last_stamp,
        }
    }

    /// The group's time.
    pub(super) fn at(self, now: Monotonic) -> GroupTime {
        let elapsed = u64::try_from(now.since(self.since).as_millis()).unwrap_or(u64::MAX);
        self.from.plus_ms(elapsed)
    }

    /// When this machine's clock will show `time`; never before `now`.
    pub(super) fn when(self, time: GroupTime, now: Monotonic) -> Monotonic {
        let wait = Duration::from_millis(time.0.saturating_sub(self.from.0));
        self.since.plus(wait).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_from_the_last_stamp_whatever_the_boot_clock_says() {
        let clock = GroupClock::start(GroupTime(500), Monotonic(7_000_000));
        assert_eq!(clock.at(Monotonic(7_000_000)), GroupTime(500));
        assert_eq!(clock.at(Monotonic(9_000_000)), GroupTime(502));
        assert_eq!(
            clock.at(Monotonic(0)),
            GroupTime(500),
            "a clock that falls is ignored"
        );
        assert_eq!(
            clock.when(GroupTime(502), Monotonic(0)),
            Monotonic(9_000_000)
        );
        assert_eq!(
            clock.when(GroupTime(1), Monotonic(8_000_000)),
            Monotonic(8_000_000)
        );
    }
}
