//! What a leader knows of another member, and how it sends to it (thesis 10.2.1; the states are those
//! of etcd's implementation).
//!
//! ```text
//!   Probe ──(an append is accepted)──> Replicate ──(entries it lacks are compacted)──> Snapshot
//!     ^                                    │                                            │  │
//!     ├──────────(a conflict, a loss)──────┘                                            │  │
//!     └──────────(given up, or what it has is followed by what the log has)─────────────┘  │
//!                                         Replicate <──(installed)─────────────────────────┘
//! ```
//!
//! Where the engine can read entries again that memory does not hold any more, *Behind* stands before
//! Snapshot: it ends as Probe does, or in a Snapshot if the engine does not find them.
//!
//! - *Probe*: where its log parts from the leader's is not known. One append at a time, and nothing
//!   more until it is answered or a heartbeat is (a lost message must not stop it, trap R18).
//! - *Replicate*: appends follow each other without waiting, up to a number and a sum of bytes.
//! - *Behind*: it needs entries that the engine reads. One append of them at a time.
//! - *Snapshot*: it needs what the log does not hold any more. Nothing is sent but the offer.
//!
//! # Invariants
//!
//! - `matched < next`, in every state: what is known to be there is never sent again (R18).
//! - What is in flight is counted by entries of one list, which a change of state empties: nothing
//!   leaks (R19). A single append passes whatever its size if nothing is in flight.

use crate::base::bugs::{self, Bug};
use crate::base::ids::LogIndex;
use crate::base::limits::{APPENDS_IN_FLIGHT_BYTES_MAX, APPENDS_IN_FLIGHT_MAX};
use crate::raft::message::Position;
use std::collections::VecDeque;

/// How the leader sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sending {
    /// One append at a time.
    Probe {
        /// One is under way.
        waits: bool,
    },
    /// Many.
    Replicate,
    /// What the engine reads of the log.
    Behind {
        /// An append of that is under way.
        waits: bool,
    },
    /// Nothing: a checkpoint is on its way.
    Snapshot {
        /// The index that was offered.
        index: LogIndex,
    },
}

/// What a leader knows of another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    matched: LogIndex,
    next: LogIndex,
    sending: Sending,
    /// The last index of each append under way, with its bytes.
    in_flight: VecDeque<(LogIndex, usize)>,
    in_flight_bytes: usize,
    /// It was heard since the last look at who is there.
    heard: bool,
    /// The commit mark that it was told last.
    told_commit: LogIndex,
    /// The newest round of heartbeats that it answered.
    round: u64,
    /// An append without entries shall show whether those under way have arrived.
    checks: bool,
    /// Its present life ([`Message::life`](crate::raft::message::Message::life)).
    life: u64,
    /// It was not heard since messages to it were lost.
    is_lost: bool,
    /// It may have lost what it promised: it counts nowhere.
    recovering: bool,
    /// It refused the very beginning of the log: it has no state to go on from.
    is_blank: bool,
    /// The entry that its recovery was given, and the number of that recovery.
    pub(super) anchor: Option<(u64, Position)>,
}

impl Progress {
    /// Of a member of which nothing is known; its log may be as long as the leader's.
    #[must_use]
    pub fn new(last: LogIndex) -> Self {
        Self {
            matched: LogIndex(0),
            next: last.next(),
            sending: Sending::Probe { waits: false },
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            heard: false,
            told_commit: LogIndex(0),
            round: 0,
            checks: false,
            life: 0,
            is_lost: false,
            recovering: false,
            is_blank: false,
            anchor: None,
        }
    }

    /// Its log is the leader's up to here.
    #[must_use]
    pub fn matched(&self) -> LogIndex {
        self.matched
    }

    /// Its log is the leader's up to here for good; nothing if it may have lost what it promised.
    #[must_use]
    pub fn counted(&self) -> LogIndex {
        if self.recovering && !bugs::on(Bug::RecoveringCounts) {
            LogIndex(0)
        } else {
            self.matched
        }
    }

    /// The next entry to be sent.
    #[must_use]
    pub fn next(&self) -> LogIndex {
        self.next
    }

    /// How the leader sends to it.
    #[must_use]
    pub fn sending(&self) -> &Sending {
        &self.sending
    }

    /// The newest round of heartbeats that it answered. Who may have lost what it promised may have
    /// elected another, and answers for nobody.
    #[must_use]
    pub fn round(&self) -> u64 {
        if self.recovering { 0 } else { self.round }
    }

    /// Whether an append may be sent now; with entries only if there is also
    /// [`room`](Self::has_room) for them.
    #[must_use]
    pub fn may_send(&self) -> bool {
        match self.sending {
            Sending::Probe { waits } => !waits,
            Sending::Replicate => self.checks || self.has_room(),
            Sending::Behind { .. } | Sending::Snapshot { .. } => false,
        }
    }

    /// Whether another append with entries may be under way.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.in_flight.len() < APPENDS_IN_FLIGHT_MAX
            && self.in_flight_bytes < APPENDS_IN_FLIGHT_BYTES_MAX
    }

    /// Whether an append is wanted though there may be nothing new.
    #[must_use]
    pub fn wants_one(&self) -> bool {
        self.checks || matches!(self.sending, Sending::Probe { .. })
    }

    /// Bytes of entries that the next append may carry beside its first.
    #[must_use]
    pub fn room(&self) -> usize {
        APPENDS_IN_FLIGHT_BYTES_MAX.saturating_sub(self.in_flight_bytes)
    }

    /// Whether it was told of this commit mark.
    #[must_use]
    pub fn knows_commit(&self, commit: LogIndex) -> bool {
        self.told_commit >= commit
    }

    /// An append with entries up to `last` (none: `last < next`) and this commit mark is sent.
    pub(super) fn sent(&mut self, last: LogIndex, bytes: usize, commit: LogIndex) {
        self.told_commit = self.told_commit.max(commit);
        self.checks = false;
        let has_entries = last >= self.next;
        match &mut self.sending {
            Sending::Replicate if has_entries => {
                self.next = last.next();
                self.in_flight.push_back((last, bytes));
                self.in_flight_bytes += bytes;
            }
            Sending::Replicate => {}
            Sending::Probe { waits } => *waits = true,
            Sending::Behind { waits } => *waits = true,
            Sending::Snapshot { .. } => {
                panic!("nothing is appended while a checkpoint is on its way")
            }
        }
    }

    /// Heartbeats carry a commit mark too.
    pub(super) fn told(&mut self, commit: LogIndex) {
        self.told_commit = self.told_commit.max(commit);
    }

    /// Its log is the leader's up to `index`, durably; whether that is news. `first` is the first entry
    /// that the leader's log holds.
    pub(super) fn accepted(&mut self, index: LogIndex, first: LogIndex) -> bool {
        let is_news = index > self.matched;
        self.is_blank &= !is_news;
        self.matched = self.matched.max(index);
        self.next = self.next.max(self.matched.next());
        while let Some((_, bytes)) = self.in_flight.pop_front_if(|(last, _)| *last <= index) {
            self.in_flight_bytes -= bytes;
        }
        match self.sending {
            Sending::Probe { .. } | Sending::Behind { .. } => self.replicate(),
            // Whatever it has got, the log goes on from there (R17).
            Sending::Snapshot { .. } if self.matched.next() >= first => self.replicate(),
            _ => {}
        }
        is_news
    }

    /// It refused the append behind `rejected`; its log may be the leader's up to `hint`. False if that
    /// is no news.
    pub(super) fn refused(&mut self, rejected: LogIndex, hint: LogIndex) -> bool {
        match self.sending {
            Sending::Replicate if rejected <= self.matched => return false,
            // Late: it was refused before the present probe.
            Sending::Probe { .. } | Sending::Behind { .. } if rejected.next() != self.next => {
                return false;
            }
            Sending::Snapshot { .. } => return false,
            _ => {}
        }
        self.probe();
        // Whoever belongs to the group from its formation has that.
        self.is_blank = rejected == LogIndex(0);
        self.next = rejected.min(hint.next()).max(self.matched.next());
        true
    }

    /// It answered a heartbeat. What was sent to it before may have been lost all the same.
    pub(super) fn beat(&mut self, round: u64) {
        self.round = self.round.max(round);
        self.check();
    }

    /// If something is under way to it, the next append shows whether it has arrived: what it lacks, it
    /// refuses (trap R18).
    pub(super) fn check(&mut self) {
        match &mut self.sending {
            Sending::Probe { waits } => *waits &= bugs::on(Bug::ProbeNotRepeated),
            Sending::Replicate => self.checks = self.matched.next() < self.next,
            Sending::Behind { .. } | Sending::Snapshot { .. } => {}
        }
    }

    /// Messages to it may have been lost.
    pub(super) fn lost(&mut self) {
        self.is_lost = true;
        if matches!(
            self.sending,
            Sending::Replicate | Sending::Behind { waits: true }
        ) {
            self.probe();
        }
    }

    /// It needs entries that are not in memory any more.
    pub(super) fn fell_behind(&mut self) {
        self.clear_flight();
        self.sending = Sending::Behind { waits: false };
    }

    /// Whether entries shall be read for it now.
    #[must_use]
    pub fn wants_to_be_read_for(&self) -> bool {
        self.sending == Sending::Behind { waits: false }
    }

    /// It is there again, which is not to say that it was heard.
    pub(super) fn found(&mut self) {
        self.is_lost = false;
    }

    /// A checkpoint of `index` is offered.
    pub(super) fn offered(&mut self, index: LogIndex) {
        self.clear_flight();
        self.sending = Sending::Snapshot { index };
    }

    /// The offer was taken up and failed, or is not answered; or what was read is not.
    pub(super) fn gave_up(&mut self) {
        if matches!(
            self.sending,
            Sending::Snapshot { .. } | Sending::Behind { waits: true }
        ) {
            self.probe();
        }
    }

    /// Whether it has no state that the log could lead on from, however far back that reaches.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.is_blank
    }

    /// Whether it was not heard since messages to it were lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Whether it has answered this leader, and nothing is known that speaks against it since.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.life > 0 && !self.is_lost
    }

    /// It was heard of; false if it has said that in an earlier life. What it had may be gone (trap
    /// R13): where the logs part is looked for anew.
    pub(super) fn heard(&mut self, life: u64, recovering: bool) -> bool {
        if life < self.life {
            return false;
        }
        self.is_lost = false;
        let is_news = !self.recovering || life > self.life;
        self.life = life;
        self.heard |= !recovering;
        if recovering && is_news {
            self.matched = LogIndex(0);
            self.clear_flight();
            self.sending = Sending::Probe { waits: false };
        }
        self.recovering = recovering;
        true
    }

    /// Whether it was heard of since the last look.
    pub(super) fn was_heard(&self) -> bool {
        self.heard
    }

    /// A look was taken.
    pub(super) fn looked(&mut self) {
        self.heard = false;
    }

    fn probe(&mut self) {
        self.clear_flight();
        self.next = self.matched.next();
        self.sending = Sending::Probe { waits: false };
    }

    fn replicate(&mut self) {
        self.clear_flight();
        self.next = self.matched.next();
        self.sending = Sending::Replicate;
    }

    fn clear_flight(&mut self) {
        self.checks = false;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: LogIndex = LogIndex(1);

    fn replicating() -> Progress {
        let mut progress = Progress::new(LogIndex(10));
        progress.accepted(LogIndex(10), FIRST);
        progress
    }

    #[test]
    fn a_probe_waits_for_its_answer_or_for_a_heartbeats() {
        let mut progress = Progress::new(LogIndex(10));
        assert_eq!(progress.next(), LogIndex(11));
        progress.sent(LogIndex(10), 0, LogIndex(5));
        assert!(!progress.may_send());
        progress.beat(1);
        assert!(progress.may_send(), "the append may have been lost");
        progress.sent(LogIndex(10), 0, LogIndex(5));
        assert!(progress.accepted(LogIndex(10), FIRST));
        assert_eq!(progress.sending(), &Sending::Replicate);
    }

    #[test]
    fn appends_in_flight_are_bounded_in_number_and_in_bytes() {
        let mut progress = replicating();
        let mut last = 10;
        while progress.may_send() {
            last += 1;
            progress.sent(LogIndex(last), 10, LogIndex(0));
        }
        assert_eq!(last - 10, APPENDS_IN_FLIGHT_MAX as u64);
        progress.accepted(LogIndex(12), FIRST);
        assert!(progress.may_send(), "two of them are answered");
        let mut progress = replicating();
        progress.sent(LogIndex(11), 2 * APPENDS_IN_FLIGHT_BYTES_MAX, LogIndex(0));
        assert!(!progress.may_send(), "one of any size passes, and no more");
        progress.accepted(LogIndex(11), FIRST);
        assert!(progress.may_send() && progress.room() == APPENDS_IN_FLIGHT_BYTES_MAX);
    }

    #[test]
    fn a_heartbeats_answer_makes_no_room_for_entries() {
        let mut progress = replicating();
        for last in 11..=10 + APPENDS_IN_FLIGHT_MAX as u64 {
            progress.sent(LogIndex(last), 10, LogIndex(0));
        }
        progress.beat(1);
        assert!(
            progress.may_send() && progress.wants_one(),
            "to see what has arrived"
        );
        assert!(
            !progress.has_room(),
            "a follower that answers no append gets no more of them"
        );
        progress.sent(progress.next().prev(), 0, LogIndex(0));
        assert!(!progress.may_send());
    }

    #[test]
    fn what_is_in_flight_is_forgotten_with_its_state() {
        let mut progress = replicating();
        progress.sent(LogIndex(20), 1000, LogIndex(0));
        progress.lost();
        assert_eq!(progress.room(), APPENDS_IN_FLIGHT_BYTES_MAX);
        assert_eq!(progress.next(), LogIndex(11), "all behind the match again");
    }

    #[test]
    fn late_refusals_and_answers_move_nothing_back() {
        let mut progress = replicating();
        assert!(
            !progress.refused(LogIndex(9), LogIndex(3)),
            "it has accepted 10"
        );
        assert_eq!(progress.sending(), &Sending::Replicate);
        assert!(!progress.accepted(LogIndex(4), FIRST));
        assert_eq!(
            (progress.matched(), progress.next()),
            (LogIndex(10), LogIndex(11))
        );
        let mut progress = Progress::new(LogIndex(10));
        assert!(progress.refused(LogIndex(10), LogIndex(4)));
        assert_eq!(progress.next(), LogIndex(5));
        assert!(
            !progress.refused(LogIndex(10), LogIndex(2)),
            "the same again"
        );
        assert_eq!(progress.next(), LogIndex(5));
    }

    #[test]
    fn next_is_always_above_matched() {
        let mut progress = replicating();
        progress.sent(LogIndex(20), 0, LogIndex(0));
        assert!(progress.refused(LogIndex(15), LogIndex(2)));
        assert_eq!(
            (progress.matched(), progress.next()),
            (LogIndex(10), LogIndex(11))
        );
    }

    #[test]
    fn any_state_that_the_log_goes_on_from_ends_a_snapshot() {
        let mut progress = Progress::new(LogIndex(100));
        progress.offered(LogIndex(90));
        assert!(!progress.may_send());
        progress.accepted(LogIndex(40), LogIndex(60));
        assert_eq!(
            progress.sending(),
            &Sending::Snapshot {
                index: LogIndex(90)
            }
        );
        progress.accepted(LogIndex(59), LogIndex(60));
        assert_eq!(progress.sending(), &Sending::Replicate);
        assert_eq!(progress.next(), LogIndex(60));
    }

    #[test]
    fn a_snapshot_that_is_given_up_is_probed_again() {
        let mut progress = Progress::new(LogIndex(100));
        progress.offered(LogIndex(90));
        progress.gave_up();
        assert_eq!(progress.sending(), &Sending::Probe { waits: false });
    }
}
