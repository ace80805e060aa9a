//! The books of a load: what was asked for each job, and what came back.
//!
//! ```text
//! enqueue:  asked -> acknowledged (has an id)          then it must be found: delivered, or
//!                 -> unknown (no answer is sure)       still there, or its ack confirmed;
//!                 -> refused                           refused: must never appear
//! finish:   -    -> delivered (grant g) -> acknowledged: never delivered again with a later grant
//!                                       -> unknown: finished, or still there
//! ```
//!
//! Answers may come late, so a delivery is held against an ack by its grant: an *earlier* grant than
//! the one whose ack was confirmed may have been under way for long. The same grant once more, or a
//! later one, is a job that came back.

use crate::base::ids::{JobId, Token};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enqueue {
    Asked,
    Acknowledged,
    Unknown,
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    Open,
    /// An ack ended without a sure answer.
    Unknown,
    /// The ack of this grant was confirmed; 0 if all that is known is that it is finished.
    Confirmed(u32),
}

/// A job by its number.
#[derive(Clone, Copy, Debug)]
struct Entry {
    enqueue: Enqueue,
    finish: Finish,
    /// Its id, once an enqueue or a delivery told it.
    id: Option<JobId>,
}

/// What went wrong; all zero is what is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Misses {
    /// Acknowledged jobs that are neither there nor finished, or whose payload changed.
    pub lost: u64,
    /// Deliveries of a job after its ack was confirmed.
    pub redelivered_after_ack: u64,
    /// Jobs that exist under more than one id.
    pub made_twice: u64,
    /// Deliveries of what nobody enqueued, or what was refused.
    pub strange: u64,
}

impl Misses {
    /// Whether nothing went wrong.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Jobs in one piece of the books. One that had to move to grow would keep the load waiting: with a million jobs
/// 0.1 s, which it would take for an outage.
const PIECE_JOBS: usize = 1 << 12;

/// See the head of this file. A job is known by its number: 0, 1, 2 and so on.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// All full but the last.
    pieces: Vec<Vec<Entry>>,
    misses: Misses,
    enqueued: u64,
    unknown: u64,
    finished: u64,
}

impl Ledger {
    /// The number of a job that is now asked for.
    pub fn ask(&mut self) -> u64 {
        let new = Entry {
            enqueue: Enqueue::Asked,
            finish: Finish::Open,
            id: None,
        };
        if self
            .pieces
            .last()
            .is_none_or(|last| last.len() == PIECE_JOBS)
        {
            self.pieces.push(Vec::with_capacity(PIECE_JOBS));
        }
        let last = self.pieces.len() - 1;
        self.pieces[last].push(new);
        (last * PIECE_JOBS + self.pieces[last].len() - 1) as u64
    }

    /// Its enqueue was acknowledged, or is proven by a delivery.
    pub fn enqueued(&mut self, number: u64, id: JobId) {
        let Some(entry) = self.entry(number) else {
            self.misses.strange += 1;
            return;
        };
        let was = entry.enqueue;
        let other = *entry.id.get_or_insert(id) != id;
        entry.enqueue = Enqueue::Acknowledged;
        self.enqueued += u64::from(was != Enqueue::Acknowledged);
        self.unknown -= u64::from(was == Enqueue::Unknown);
        self.misses.made_twice += u64::from(other);
        self.misses.strange += u64::from(was == Enqueue::Refused);
    }

    /// Its enqueue ended, and nobody can know how.
    pub fn enqueue_unknown(&mut self, number: u64) {
        if let Some(entry) = self.entry(number)
            && entry.enqueue == Enqueue::Asked
        {
            entry.enqueue = Enqueue::Unknown;
            self.unknown += 1;
        }
    }

    /// Its enqueue was refused for good.
    pub fn refused(&mut self, number: u64) {
        if let Some(entry) = self.entry(number) {
            // Refused, yet delivered: it is both, and must not be.
            let strange = entry.enqueue == Enqueue::Acknowledged;
            entry.enqueue = Enqueue::Refused;
            self.misses.strange += u64::from(strange);
            self.enqueued -= u64::from(strange);
        }
    }

    /// A job came to a worker; its payload says which one it is.
    pub fn delivered(&mut self, number: Option<u64>, token: Token) {
        let Some((number, entry)) = number.and_then(|n| Some((n, *self.entry(n)?))) else {
            self.misses.strange += 1;
            return;
        };
        if let Finish::Confirmed(grant) = entry.finish
            && token.lease_gen >= grant
        {
            self.misses.redelivered_after_ack += 1;
        }
        // The answer to its enqueue may still be under way.
        self.enqueued(number, token.job);
    }

    /// The ack of a grant was confirmed.
    pub fn acked(&mut self, number: u64, token: Token) {
        if let Some(entry) = self.entry(number)
            && entry.id == Some(token.job)
        {
            let was = std::mem::replace(&mut entry.finish, Finish::Confirmed(token.lease_gen));
            self.finished += u64::from(!matches!(was, Finish::Confirmed(_)));
        }
    }

    /// An ack ended, and nobody can know how.
    pub fn ack_unknown(&mut self, number: u64) {
        if let Some(entry) = self.entry(number)
            && entry.finish == Finish::Open
        {
            entry.finish = Finish::Unknown;
        }
    }

    /// A look at a job that must be there found this payload.
    pub fn found_live(&mut self, number: u64, found: Option<u64>) {
        if found != Some(number) {
            self.misses.lost += 1;
            return;
        }
        if let Some(entry) = self.entry(number)
            && entry.finish == Finish::Unknown
        {
            entry.finish = Finish::Open;
        }
    }

    /// A look at a job that must be there found that it is not: lost, unless an ack may have
    /// finished it. Counted once: from here on it counts as finished.
    pub fn found_gone(&mut self, number: u64) {
        let Some(entry) = self.entry(number) else {
            return;
        };
        let was = std::mem::replace(&mut entry.finish, Finish::Confirmed(0));
        self.misses.lost += u64::from(was == Finish::Open);
        self.finished += u64::from(!matches!(was, Finish::Confirmed(_)));
    }

    /// The jobs that must be there: acknowledged and not known to be finished.
    pub fn live(&self) -> impl Iterator<Item = (u64, JobId)> {
        (0..)
            .zip(self.pieces.iter().flatten())
            .filter_map(|(number, entry)| {
                let is_open = !matches!(entry.finish, Finish::Confirmed(_));
                let is_there = entry.enqueue == Enqueue::Acknowledged && is_open;
                is_there.then_some((number, entry.id?))
            })
    }

    /// How many jobs must be there.
    #[must_use]
    pub fn live_count(&self) -> u64 {
        self.enqueued - self.finished
    }

    /// Jobs whose enqueue was acknowledged, or is proven by a delivery.
    #[must_use]
    pub fn enqueued_count(&self) -> u64 {
        self.enqueued
    }

    /// Jobs whose enqueue may or may not have taken effect.
    #[must_use]
    pub fn unknown_count(&self) -> u64 {
        self.unknown
    }

    /// Jobs that are finished.
    #[must_use]
    pub fn finished_count(&self) -> u64 {
        self.finished
    }

    /// What went wrong so far.
    #[must_use]
    pub fn misses(&self) -> Misses {
        self.misses
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        let number = usize::try_from(number).ok()?;
        let piece = self.pieces.get_mut(number / PIECE_JOBS)?;
        piece.get_mut(number % PIECE_JOBS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{GroupId, Partition, QueueUid};

    fn id(seq: u64) -> JobId {
        JobId::new(GroupId(0), QueueUid::FIRST, Partition(0), seq)
    }

    fn grant(seq: u64, lease_gen: u32) -> Token {
        let job = id(seq);
        Token { job, lease_gen }
    }

    /// A ledger with one acknowledged job.
    fn with_one() -> Ledger {
        let mut ledger = Ledger::default();
        let number = ledger.ask();
        ledger.enqueued(number, id(7));
        ledger
    }

    #[test]
    fn jobs_beyond_one_piece_are_found_by_their_numbers() {
        let mut ledger = Ledger::default();
        let first_of_next = PIECE_JOBS as u64;
        let count = first_of_next + 2;
        assert!((0..count).all(|number| ledger.ask() == number));
        let both = [first_of_next - 1, first_of_next];
        both.into_iter()
            .for_each(|number| ledger.enqueued(number, id(number)));
        ledger.enqueued(count, id(count));
        assert!(ledger.live().map(|(number, _)| number).eq(both));
        assert_eq!(ledger.misses().strange, 1, "nobody asked for it");
    }

    #[test]
    fn a_whole_life_leaves_nothing() {
        let mut ledger = with_one();
        assert_eq!(ledger.live().collect::<Vec<_>>(), [(0, id(7))]);
        ledger.delivered(Some(0), grant(7, 1));
        ledger.acked(0, grant(7, 1));
        assert_eq!((ledger.live_count(), ledger.finished_count()), (0, 1));
        assert_eq!(ledger.live().next(), None);
        assert!(ledger.misses().is_none());
    }

    #[test]
    fn a_job_that_is_gone_is_lost_once() {
        let mut ledger = with_one();
        ledger.found_live(0, Some(0));
        ledger.found_gone(0);
        ledger.found_gone(0);
        assert_eq!((ledger.misses().lost, ledger.live_count()), (1, 0));
    }

    #[test]
    fn a_job_with_other_bytes_is_lost() {
        let mut ledger = with_one();
        ledger.found_live(0, None);
        assert_eq!(ledger.misses().lost, 1);
    }

    #[test]
    fn an_ack_that_nobody_knows_of_may_have_finished_its_job() {
        let mut ledger = with_one();
        ledger.delivered(Some(0), grant(7, 1));
        ledger.ack_unknown(0);
        ledger.found_gone(0);
        assert!(ledger.misses().is_none());
        // Not so once the job was seen after it.
        let mut ledger = with_one();
        ledger.ack_unknown(0);
        ledger.found_live(0, Some(0));
        ledger.found_gone(0);
        assert_eq!(ledger.misses().lost, 1);
    }

    #[test]
    fn an_earlier_grant_is_late_and_any_other_came_back_after_the_ack() {
        let mut ledger = with_one();
        ledger.delivered(Some(0), grant(7, 2));
        ledger.acked(0, grant(7, 2));
        ledger.delivered(Some(0), grant(7, 1));
        assert!(ledger.misses().is_none(), "an answer that came late");
        ledger.delivered(Some(0), grant(7, 3));
        assert_eq!(ledger.misses().redelivered_after_ack, 1);
        // An old image of the data gives the same grant again.
        ledger.delivered(Some(0), grant(7, 2));
        assert_eq!(ledger.misses().redelivered_after_ack, 2);
    }

    #[test]
    fn an_unknown_enqueue_may_be_there_once() {
        let mut ledger = Ledger::default();
        let number = ledger.ask();
        ledger.enqueue_unknown(number);
        assert_eq!((ledger.unknown_count(), ledger.live_count()), (1, 0));
        ledger.delivered(Some(number), grant(4, 1));
        assert_eq!((ledger.unknown_count(), ledger.live_count()), (0, 1));
        assert!(ledger.misses().is_none());
        ledger.delivered(Some(number), grant(5, 1));
        assert_eq!(ledger.misses().made_twice, 1);
    }

    #[test]
    fn what_nobody_enqueued_is_strange() {
        let mut ledger = Ledger::default();
        ledger.delivered(None, grant(1, 1));
        ledger.delivered(Some(9), grant(1, 1));
        let number = ledger.ask();
        ledger.refused(number);
        ledger.delivered(Some(number), grant(2, 1));
        assert_eq!(ledger.misses().strange, 3);
    }
}
