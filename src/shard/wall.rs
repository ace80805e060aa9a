//! Whose wall clock the groups go by: the median of the voters'.
//!
//! ```text
//!   a beat of each node ──> shard 0: how far its clock is ahead of this machine's boot clock
//!   once a beat         ──> the median over the voters heard lately, this node among them
//!   when it changed     ──> VotersClock, to every shard of this node ──> `timers` sets wall offsets by it
//! ```
//!
//! So one machine whose clock is set wrong moves no run-at, whether it leads or not, and a change of leaders
//! moves none. A clock is kept as what it is ahead of the boot clock, which nobody sets: that this node's own
//! is set wrong shows in this node's part alone. A beat that came late makes a clock seem to be behind, never
//! ahead, so that the most of the last seconds counts.
//!
//! A voter that is silent does not count. Without most of the voters there is no median, and what was told
//! last stays: nothing can be committed then anyway. Whether most of *all* voters are within a minute of the
//! median is told with it, since a step of more than a minute needs that.
//!
//! Deliberately absent: any clock of a node that stands alone but its own.

use super::effect::Effect;
use super::engine::ShardEngine;
use crate::base::units::{Monotonic, Now, WallTime};
use std::time::Duration;

/// A correction of the wall offset beyond this is a step, for which most voters must be of one mind.
pub(super) const WALL_STEP_MS: u64 = 60_000;
/// A beat's word of its sender's clock counts for this long, and up to as long again.
const HEARD_FOR: Duration = Duration::from_secs(2);
/// The shards are told again once the median has moved by so much.
const TOLD_AGAIN_MS: u64 = 20;

/// What the clocks of the voters say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VotersClock {
    /// Their median: so many milliseconds the wall time is ahead of this machine's boot clock.
    pub ahead_ms: i64,
    /// So many of them this node's own is ahead of that median.
    pub own_ms: i64,
    /// Whether most of all voters are within a minute of it.
    pub is_agreed: bool,
}

impl VotersClock {
    /// Of the clocks that were heard, each in milliseconds ahead of the boot clock, `own` among them if this
    /// node votes; `None` if they are no majority of so many voters.
    fn of(own: i64, mut heard: Vec<i64>, voters: usize) -> Option<Self> {
        let is_most = |count: usize| count > voters / 2;
        if !is_most(heard.len()) {
            return None;
        }
        heard.sort_unstable();
        let (low, high) = (heard[(heard.len() - 1) / 2], heard[heard.len() / 2]);
        let ahead_ms = low.midpoint(high);
        let is_near = |clock: &&i64| clock.abs_diff(ahead_ms) <= WALL_STEP_MS;
        Some(Self {
            ahead_ms,
            own_ms: own.saturating_sub(ahead_ms),
            is_agreed: is_most(heard.iter().filter(is_near).count()),
        })
    }

    /// Whether it is worth telling after another.
    fn is_news(&self, told: &Self) -> bool {
        let moved = |now: i64, before: i64| now.abs_diff(before) >= TOLD_AGAIN_MS;
        moved(self.ahead_ms, told.ahead_ms)
            || moved(self.own_ms, told.own_ms)
            || self.is_agreed != told.is_agreed
    }

    fn wall(&self, now: Monotonic) -> WallTime {
        let wall = millis(now).saturating_add(self.ahead_ms);
        WallTime(u64::try_from(wall).unwrap_or(0).min(WallTime::MAX.0))
    }
}

/// What the beats of a node said of its clock.
#[derive(Debug, Default)]
pub(super) struct HeardClock {
    since: Monotonic,
    /// The most that it was ahead since then.
    most: Option<i64>,
    /// And in the time before.
    before: Option<i64>,
}

impl HeardClock {
    /// A beat came.
    pub(super) fn hear(&mut self, now: Monotonic, wall: WallTime) {
        if now.since(self.since) >= HEARD_FOR {
            (self.since, self.before) = (now, self.most.take());
        }
        self.most = self.most.max(Some(ahead(wall, now)));
    }

    /// How far it is ahead of this machine's boot clock, in milliseconds.
    pub(super) fn ahead_ms(&self) -> Option<i64> {
        self.most.max(self.before)
    }
}

fn millis(mono: Monotonic) -> i64 {
    i64::try_from(mono.0 / 1_000_000).unwrap_or(i64::MAX)
}

fn ahead(wall: WallTime, mono: Monotonic) -> i64 {
    i64::try_from(wall.0).unwrap_or(i64::MAX) - millis(mono)
}

impl ShardEngine {
    /// The shards of this node learn what the clocks say, if that has changed. On shard 0, once a beat.
    pub(super) fn tell_clocks(&mut self) {
        let voters = self.cluster.members().voters();
        let own = ahead(self.now.wall, self.now.mono);
        let mut heard: Vec<i64> = self
            .peers
            .clocks()
            .filter(|(node, _)| voters.contains(node))
            .map(|(_, ahead_ms)| ahead_ms)
            .collect();
        heard.extend(voters.contains(&self.config.me()).then_some(own));
        let clock = VotersClock::of(own, heard, voters.len());
        let told = &mut self.clock_told;
        if let Some(clock) = clock.filter(|clock| told.is_none_or(|told| clock.is_news(&told))) {
            *told = Some(clock);
            self.effects.push(Effect::TellClock(clock));
        }
    }

    /// The voters' clocks say this, by shard 0.
    pub(super) fn on_voters_clock(&mut self, clock: VotersClock) {
        self.voters_clock = Some(clock);
        self.counters.wall_clock_off_ms = clock.own_ms.unsigned_abs();
        self.counters.wall_clock_disputed = u64::from(!clock.is_agreed);
    }

    /// The wall time that groups shall have, and whether they may be set to it by a step; `None` while too
    /// few clocks were heard.
    pub(super) fn wall_time(&self) -> Option<(WallTime, bool)> {
        let Now { mono, wall } = self.now;
        if self.peers.members().is_empty() {
            return Some((wall, true));
        }
        let clock = self.voters_clock?;
        Some((clock.wall(mono), clock.is_agreed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn of(heard: &[i64], voters: usize) -> Option<(i64, bool)> {
        let clock = VotersClock::of(heard[0], heard.to_vec(), voters)?;
        assert_eq!(clock.own_ms, heard[0] - clock.ahead_ms);
        Some((clock.ahead_ms, clock.is_agreed))
    }

    #[test]
    fn one_wrong_clock_of_three_moves_nothing() {
        assert_eq!(of(&[5, 9, 7], 3), Some((7, true)));
        assert_eq!(of(&[90 * MINUTE, 9, 7], 3), Some((9, true)));
        assert_eq!(of(&[5, -90 * MINUTE, 7], 3), Some((5, true)));
        assert_eq!(of(&[5], 1), Some((5, true)), "one voter: its own");
    }

    #[test]
    fn without_most_voters_there_is_no_median() {
        assert_eq!(of(&[5], 3), None);
        assert_eq!(of(&[5, 7], 5), None);
        assert_eq!(of(&[4, 8], 3), Some((6, true)));
    }

    #[test]
    fn a_step_needs_most_of_all_voters_within_a_minute() {
        // Two that do not agree, of three: the middle between them is near to none.
        assert_eq!(of(&[0, 10 * MINUTE], 3), Some((5 * MINUTE, false)));
        assert_eq!(of(&[0, 2 * MINUTE], 3), Some((MINUTE, true)));
        // Three of five are heard, and one of them is elsewhere.
        assert_eq!(of(&[0, 1, 9 * MINUTE], 5), Some((1, false)));
        assert_eq!(of(&[0, 10 * MINUTE, -10 * MINUTE], 3), Some((0, false)));
        assert_eq!(
            of(&[9 * MINUTE, 9 * MINUTE + 2, 0], 3),
            Some((9 * MINUTE, true))
        );
    }

    #[test]
    fn a_late_beat_moves_no_clock_and_a_clock_that_is_set_back_does() {
        let at = |ms: u64| Monotonic(ms * 1_000_000);
        let mut heard = HeardClock::default();
        assert_eq!(heard.ahead_ms(), None);
        heard.hear(at(10_000), WallTime(10_500));
        heard.hear(at(11_000), WallTime(11_100));
        assert_eq!(heard.ahead_ms(), Some(500), "the second took 400 ms");
        for ms in (11_500..16_000).step_by(30) {
            heard.hear(at(ms), WallTime(ms - 7_000));
        }
        assert_eq!(heard.ahead_ms(), Some(-7_000));
    }

    #[test]
    fn the_wall_time_goes_on_with_the_boot_clock() {
        let clock = VotersClock {
            ahead_ms: 1_000,
            ..VotersClock::default()
        };
        assert_eq!(clock.wall(Monotonic(5_000_000)), WallTime(1_005));
        let before_1970 = VotersClock {
            ahead_ms: -9,
            ..VotersClock::default()
        };
        assert_eq!(before_1970.wall(Monotonic(5_000_000)), WallTime(0));
    }
}
