//! When a checkpoint round is due: as often as a start needs it, but where much is written, less often, and
//! later where rounds write in vain.
//!
//! The log from the base before the newest on is kept, and a start reads it. So the last round of a burst is
//! followed by another when the burst is over: else all starts would read the burst's end until as much has been
//! written again.

use crate::base::units::{Lsn, Monotonic};
use std::time::Duration;

/// A round that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(5);
/// Memory is short: a round is due after so much log, or a sixteenth of that memory. A small job takes six
/// times as much memory as log.
const PRESSED_LOG_BYTES: u64 = 1 << 20;
/// A round that is due at the start waits for so long, since its writes would hold up the first jobs.
const ROUNDS_AFTER: Duration = Duration::from_millis(50);
/// A round comes so long after the one before, unless there is log for one that may come at any time.
const ROUNDS_APART: Duration = Duration::from_secs(1);
/// Of a log of fewer bytes the time to read it back tells nothing.
const TELLING_BYTES: u64 = 4 << 20;
/// Bytes of log that a shard reads back in a second, unless this start has told.
const USUAL_RATE: u64 = 400 << 20;
/// So much log is read back in no time.
const TAIL_BYTES_MIN: u64 = 1 << 20;
/// What a round has written needlessly is at most this part of the log between two rounds,
const NEEDLESS_PART: u64 = 12;
/// unless that were so many times what a round may come after at any time.
const TAILS_MAX: u64 = 4;
/// A burst is over when no more than this part of what a start may read has come
const CALM_PART: u64 = 4;
/// within so long.
const CALM_AFTER: Duration = Duration::from_secs(1);

/// When the next round is due.
pub(in crate::shard) struct Due {
    /// The end of the log at the last cut.
    cut_at: Lsn,
    /// Where the log was cut for the base before the newest, from where on a start reads, and for the newest;
    /// a round under way counts.
    bases_at: (Lsn, Lsn),
    /// The same without it.
    bases_before: (Lsn, Lsn),
    /// Little has come since then: the end of the log, and when it was that.
    calm_since: (Lsn, Monotonic),
    /// Log bytes that count as since the last cut, until there is one: found at the start, or those of a
    /// round that failed.
    carried: u64,
    /// What the round under way has cut off, in bytes of log.
    cut_off: u64,
    /// Not before this.
    not_before: Monotonic,
    /// Nor before this, unless there is log for a round that may come at any time.
    apart_until: Monotonic,
    /// Bytes of log that a start reads back in the time that it may take.
    tail_bytes: u64,
    /// With fewer bytes of log, rounds are some time apart.
    often_bytes: u64,
    /// What had been written when the round under way began, in bytes.
    written_before: u64,
    /// What the newest bases need of what is on disk, in bytes.
    live_bytes: u64,
    /// What the last round wrote beyond that by which it made that grow, in bytes.
    needless_bytes: u64,
}

impl Due {
    /// At a start that found this much log to replay.
    pub(in crate::shard) fn new(
        (log_end, found): (Lsn, u64),
        often_bytes: u64,
        now: Monotonic,
    ) -> Self {
        let found_at = Lsn(log_end.0.saturating_sub(found));
        Self {
            cut_at: log_end,
            bases_at: (found_at, found_at),
            bases_before: (found_at, found_at),
            calm_since: (log_end, now),
            carried: found,
            cut_off: 0,
            not_before: now.plus(ROUNDS_AFTER),
            apart_until: now,
            tail_bytes: often_bytes,
            often_bytes,
            written_before: 0,
            live_bytes: 0,
            needless_bytes: 0,
        }
    }

    /// This start took so long to read back, and apply, so many bytes of log: a start may take `budget`.
    pub(super) fn bound_tail(&mut self, budget: Duration, (bytes, took): (u64, Duration)) {
        let rate = match bytes {
            TELLING_BYTES.. => bytes as f64 / took.as_secs_f64().max(0.001),
            _ => USUAL_RATE as f64,
        };
        self.tail_bytes = TAIL_BYTES_MIN.max((rate * budget.as_secs_f64()) as u64);
    }

    /// Bytes of log since the last cut.
    pub(super) fn log_bytes(&self, log_end: Lsn) -> u64 {
        self.carried + (log_end.0 - self.cut_at.0)
    }

    /// Whether a round is due. `log_max` bytes of log are too many in any case; `held_max` is the memory
    /// that jobs may take, if only a round can free some of it.
    pub(super) fn is_due(
        &mut self,
        log_end: Lsn,
        log_max: u64,
        held_max: Option<u64>,
        now: Monotonic,
    ) -> bool {
        if log_end.0 - self.calm_since.0.0 > self.tail_bytes / CALM_PART {
            self.calm_since = (log_end, now);
        }
        let log_bytes = self.log_bytes(log_end);
        let presses = |held_max: u64| log_bytes >= PRESSED_LOG_BYTES.max(held_max / 16);
        let is_due = self.due_at(log_end, log_max).is_some_and(|at| now >= at);
        is_due || (held_max.is_some_and(presses) && now >= self.not_before)
    }

    /// From when on a round is due for the log that there is.
    fn due_at(&self, log_end: Lsn, log_max: u64) -> Option<Monotonic> {
        let log_bytes = self.log_bytes(log_end);
        if log_bytes >= self.bytes().min(log_max) {
            return Some(self.not_before);
        }
        let apart = self.not_before.max(self.apart_until);
        if log_bytes >= self.tail_bytes {
            return Some(apart);
        }
        let (older_at, newest_at) = self.bases_at;
        let once_calm = apart.max(self.calm_since.1.plus(CALM_AFTER));
        (newest_at.0 - older_at.0 >= self.tail_bytes).then_some(once_calm)
    }

    /// Bytes of log after which a round may come at any time.
    fn bytes(&self) -> u64 {
        let least = self.tail_bytes.max(self.often_bytes);
        let worth = self.needless_bytes.saturating_mul(NEEDLESS_PART);
        worth.clamp(least, least.saturating_mul(TAILS_MAX))
    }

    /// A round cuts here; so many bytes of checkpoints have been written before it.
    pub(super) fn cut(&mut self, log_end: Lsn, written: u64, now: Monotonic) {
        self.cut_off = self.log_bytes(log_end);
        (self.cut_at, self.carried) = (log_end, 0);
        self.bases_before = self.bases_at;
        self.bases_at = (self.bases_at.1, log_end);
        self.apart_until = now.plus(ROUNDS_APART);
        self.written_before = written;
    }

    /// The round came to nothing: the log is as long as if there had been none, and it is made again after
    /// a while.
    pub(super) fn retry(&mut self, now: Monotonic) {
        self.carried += std::mem::take(&mut self.cut_off);
        self.bases_at = self.bases_before;
        self.not_before = now.plus(RETRY);
    }

    /// When a round is due for which there is log enough already, if it is not yet.
    pub(super) fn waits_until(
        &self,
        log_end: Lsn,
        log_max: u64,
        now: Monotonic,
    ) -> Option<Monotonic> {
        self.due_at(log_end, log_max).filter(|at| now < *at)
    }

    /// The newest bases need so many bytes of what is on disk.
    pub(super) fn live(&mut self, bytes: u64) {
        self.live_bytes = bytes;
    }

    /// A round is published that has brought the bytes written up to `written`, and the bytes needed to
    /// `live`.
    pub(super) fn published(&mut self, written: u64, live: u64) {
        let wrote = written - self.written_before;
        let grown = live.saturating_sub(self.live_bytes);
        self.needless_bytes = wrote.saturating_sub(grown);
        self.live_bytes = live;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn rounds_come_as_often_as_a_start_needs_them_and_later_if_they_write_in_vain() {
        let mut due = Due::new((Lsn(0), 0), 4 * MIB, Monotonic(0));
        assert_eq!(due.bytes(), 4 * MIB);
        // All that was written stays: jobs that wait.
        due.published(5 * MIB, 5 * MIB);
        assert_eq!(due.bytes(), 4 * MIB);
        // As much was over by then as came.
        due.cut(Lsn(4 * MIB), 5 * MIB, Monotonic(0));
        due.published(6 * MIB, 5 * MIB);
        assert_eq!(due.bytes(), 12 * MIB);
        due.published(60 * MIB, 5 * MIB);
        assert_eq!(due.bytes(), 16 * MIB);
    }

    #[test]
    fn a_round_waits_for_the_first_jobs_and_after_a_failure() {
        let start = Monotonic(0);
        let mut due = Due::new((Lsn(0), 9 * MIB), 4 * MIB, start);
        let is_due = |due: &mut Due, now| due.is_due(Lsn(0), u64::MAX, None, now);
        let soon = start.plus(ROUNDS_AFTER);
        assert_eq!(
            (is_due(&mut due, start), is_due(&mut due, soon)),
            (false, true)
        );
        assert_eq!(due.waits_until(Lsn(0), u64::MAX, start), Some(soon));
        assert_eq!(due.waits_until(Lsn(0), u64::MAX, soon), None);
        due.cut(Lsn(0), 0, soon);
        assert!(!is_due(&mut due, soon), "nothing has come since");
        due.retry(soon);
        let later = soon.plus(RETRY);
        assert_eq!(
            (is_due(&mut due, soon), is_due(&mut due, later)),
            (false, true)
        );
        assert_eq!(due.log_bytes(Lsn(MIB)), 10 * MIB, "no round has cut it");
    }

    #[test]
    fn a_long_log_tells_how_fast_logs_are_read_back() {
        let mut due = Due::new((Lsn(0), 0), 0, Monotonic(0));
        let ms = Duration::from_millis;
        due.bound_tail(ms(10), (8 * MIB, ms(40)));
        assert_eq!(due.bytes(), 2 * MIB);
        due.bound_tail(ms(10), (8 * MIB, ms(4000)));
        assert_eq!(due.bytes(), TAIL_BYTES_MIN);
        due.bound_tail(ms(10), (4096, ms(40)));
        assert_eq!(due.bytes(), USUAL_RATE / 100);
    }

    #[test]
    fn a_log_that_grows_slowly_is_cut_off_as_a_start_needs_it() {
        let start = Monotonic(0);
        let mut due = Due::new((Lsn(0), 0), 8 * MIB, start);
        let ms = Duration::from_millis;
        due.bound_tail(ms(10), (8 * MIB, ms(40)));
        due.cut(Lsn(0), 0, start.plus(ROUNDS_AFTER));
        let apart = start.plus(ROUNDS_AFTER).plus(ROUNDS_APART);
        let at = |log_end| due.waits_until(Lsn(log_end), u64::MAX, start.plus(ROUNDS_AFTER));
        assert_eq!(at(2 * MIB - 1), None);
        assert_eq!(at(2 * MIB), Some(apart));
        let mut is_due = |log_end, now| due.is_due(Lsn(log_end), u64::MAX, None, now);
        assert!(is_due(2 * MIB, apart));
        let before = start.plus(ROUNDS_AFTER).plus(ms(1));
        assert!(!is_due(8 * MIB - 1, before));
        assert!(is_due(8 * MIB, before));
    }

    #[test]
    fn the_last_round_of_a_burst_is_followed_by_another_once_it_is_over() {
        let start = Monotonic(0).plus(ROUNDS_AFTER);
        let mut due = Due::new((Lsn(9 * MIB), 9 * MIB), 4 * MIB, Monotonic(0));
        let is_due = |due: &mut Due, log_end, now| due.is_due(Lsn(log_end), u64::MAX, None, now);
        assert!(is_due(&mut due, 9 * MIB, start), "for what was found");
        due.cut(Lsn(9 * MIB), 0, start);
        due.published(0, 0);
        let apart = start.plus(ROUNDS_APART);
        assert!(!is_due(&mut due, 9 * MIB, start));
        let waits = |due: &Due, log_end, now| due.waits_until(Lsn(log_end), u64::MAX, now);
        assert_eq!(waits(&due, 10 * MIB, start), Some(apart));
        // It goes on.
        let ms = Duration::from_millis;
        let later = start.plus(ms(500));
        assert!(!is_due(&mut due, 11 * MIB, later));
        assert!(!is_due(&mut due, 11 * MIB, apart));
        let calm = later.plus(CALM_AFTER);
        assert_eq!(waits(&due, 11 * MIB, apart), Some(calm));
        assert!(is_due(&mut due, 11 * MIB, calm), "11 MiB would be read");
        due.cut(Lsn(11 * MIB), 0, calm);
        due.retry(calm);
        let later = calm.plus(RETRY);
        assert!(is_due(&mut due, 11 * MIB, later), "none was published");
        due.cut(Lsn(11 * MIB), 0, later);
        due.published(0, 0);
        let later = later.plus(ROUNDS_APART);
        assert!(!is_due(&mut due, 11 * MIB, later), "2 MiB would be read");
        assert!(!is_due(&mut due, 15 * MIB - 1, later));
        assert!(is_due(&mut due, 15 * MIB, later), "of a new burst");
    }

    #[test]
    fn a_round_is_due_earlier_where_memory_is_short_and_the_log_is_bounded() {
        let mut due = Due::new((Lsn(0), 3 * MIB), 4 * MIB, Monotonic(0));
        let now = Monotonic(0).plus(ROUNDS_AFTER);
        let mut is_due = |log_max, held_max| due.is_due(Lsn(0), log_max, held_max, now);
        assert!(!is_due(u64::MAX, None));
        assert!(is_due(3 * MIB, None));
        assert!(is_due(u64::MAX, Some(48 * MIB)));
        assert!(!is_due(u64::MAX, Some(49 * MIB)));
    }
}
