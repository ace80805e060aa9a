//! What all connections of the load share: the phase, the counts, the latencies, and what became of
//! each job. One thread runs them all, so that nothing here is locked.

use crate::loadtest::disk_probe::new_histogram;
use hdrhistogram::Histogram;
use std::cell::{Cell, RefCell};
use std::time::Instant;
use tokio::sync::Notify;

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Caches fill; nothing is counted yet.
    WarmUp,
    /// What happens now is the figure.
    Measured,
    /// Nothing new is enqueued; what is there is worked.
    Ending,
    /// Everybody goes.
    Over,
}

/// Jobs so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Their enqueue was confirmed.
    pub(super) enqueued: u64,
    /// Their ack was confirmed.
    pub(super) completed: u64,
    /// Refused at the enqueue: busy, no room.
    pub(super) refused: u64,
    /// Their nack was confirmed; they come again.
    pub(super) nacked: u64,
    /// Their lease ended before the ack; they come again.
    pub(super) lease_lost: u64,
    /// Delivered although their ack had been confirmed.
    pub(super) redelivered_after_ack: u64,
    /// Delivered with a payload that nobody enqueued.
    pub(super) strange: u64,
    /// Their enqueue, ack or nack may have been taken or not; nobody can tell any more, and nothing
    /// since has shown it.
    pub(super) unknown: u64,
    /// Connections that went to another node, or back to one.
    pub(super) moved: u64,
}

/// Latencies in microseconds.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    /// From the enqueue, or when it was due, to its confirmation.
    pub(super) enqueue: Histogram<u64>,
    /// From the same to the job in a consumer's hands.
    pub(super) delivery: Histogram<u64>,
    /// From the same to the confirmation of its ack.
    pub(super) life: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            enqueue: new_histogram(),
            delivery: new_histogram(),
            life: new_histogram(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asked,
    Enqueued,
    Done,
    /// Refused: it never was.
    Void,
    /// Nobody knows whether it was made, or is done.
    Unknown,
}

/// A job of a whole life.
#[derive(Clone, Copy, Debug)]
struct Job {
    /// When its enqueue was due, in microseconds of the run.
    due_us: u32,
    state: State,
    /// Whether its time counts: it was neither delayed nor failed on purpose.
    timed: bool,
}

/// The books of a run.
#[derive(Debug)]
pub(super) struct Books {
    begun: Instant,
    phase: Cell<Phase>,
    counts: Cell<Counts>,
    next: Cell<u64>,
    /// Of each job by its number; empty where jobs are only enqueued.
    jobs: Option<RefCell<Vec<Job>>>,
    /// Of what is measured.
    measured: RefCell<Latencies>,
    /// Of the enqueues of the present second, for the live line.
    lately: RefCell<Histogram<u64>>,
    /// Jobs that may be there at once; producers wait for room.
    backlog_max: u64,
    /// There may be room again, or nothing more is to be enqueued.
    pub(super) room: Notify,
    /// Everybody goes.
    pub(super) over: Notify,
}

impl Books {
    /// Of a run that only enqueues, or of whole lives with at most so many jobs there at once.
    #[must_use]
    pub(super) fn new(backlog_max: Option<u64>) -> Self {
        Self {
            begun: Instant::now(),
            phase: Cell::new(Phase::WarmUp),
            counts: Cell::default(),
            next: Cell::default(),
            jobs: backlog_max.map(|_| RefCell::default()),
            measured: RefCell::default(),
            lately: RefCell::new(new_histogram()),
            backlog_max: backlog_max.unwrap_or(u64::MAX),
            room: Notify::new(),
            over: Notify::new(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.room.notify_waiters();
        if phase == Phase::Over {
            self.over.notify_waiters();
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts.get()
    }

    /// The latencies of what was measured.
    pub(super) fn latencies(&self) -> Latencies {
        self.measured.borrow().clone()
    }

    /// The enqueues since the last call.
    pub(super) fn take_lately(&self) -> Histogram<u64> {
        self.lately.replace(new_histogram())
    }

    /// Jobs that were asked for so far, those aside that were refused.
    pub(super) fn asked(&self) -> u64 {
        self.next.get() - self.counts.get().refused
    }

    /// Jobs that are asked for or there.
    pub(super) fn backlog(&self) -> u64 {
        let counts = self.counts.get();
        self.asked() - counts.completed - counts.unknown
    }

    /// Whether so many more jobs may be enqueued.
    pub(super) fn has_room(&self, jobs: u64) -> bool {
        self.backlog() + jobs <= self.backlog_max
    }

    /// So many jobs are enqueued, due at this moment: the number of the first.
    pub(super) fn ask(&self, jobs: u64, due: Instant, timed: bool) -> u64 {
        let first = self.next.get();
        self.next.set(first + jobs);
        if let Some(known) = &self.jobs {
            let job = Job {
                due_us: micros(due.saturating_duration_since(self.begun)) as u32,
                state: State::Asked,
                timed,
            };
            let mut known = known.borrow_mut();
            known.extend(std::iter::repeat_n(job, jobs as usize));
        }
        first
    }

    /// An enqueue was confirmed.
    pub(super) fn enqueued(&self, first: u64, jobs: u64, due: Instant, now: Instant) {
        self.count(|counts| counts.enqueued += jobs);
        let took = micros(now.saturating_duration_since(due));
        self.lately.borrow_mut().saturating_record_n(took, jobs);
        if self.phase.get() == Phase::Measured {
            let mut measured = self.measured.borrow_mut();
            measured.enqueue.saturating_record_n(took, jobs);
        }
        for number in first..first + jobs {
            // It may have been worked before its producer heard of it.
            self.change(number, |job| {
                if job.state == State::Asked {
                    job.state = State::Enqueued;
                }
            });
        }
    }

    /// A job was refused.
    pub(super) fn refused(&self, number: u64) {
        self.count(|counts| counts.refused += 1);
        self.change(number, |job| job.state = State::Void);
    }

    /// What was asked of a job has no answer and never gets one.
    pub(super) fn unknown(&self, number: u64) {
        let state = self.job(number).map(|job| job.state);
        // What became of it was seen already, or it is counted.
        if matches!(state, Some(State::Done | State::Unknown)) {
            return;
        }
        self.count(|counts| counts.unknown += 1);
        self.change(number, |job| job.state = State::Unknown);
    }

    /// A connection went to another node.
    pub(super) fn moved(&self) {
        self.count(|counts| counts.moved += 1);
    }

    /// A consumer got a job.
    pub(super) fn delivered(&self, number: Option<u64>, now: Instant) {
        let known = number.and_then(|number| self.job(number));
        let Some(job) = known else {
            return self.count(|counts| counts.strange += 1);
        };
        if job.state == State::Done {
            self.count(|counts| counts.redelivered_after_ack += 1);
        }
        if job.timed && self.phase.get() == Phase::Measured {
            let took = self.since(job, now);
            let mut measured = self.measured.borrow_mut();
            measured.delivery.saturating_record(took);
        }
    }

    /// An ack was confirmed.
    pub(super) fn acked(&self, number: u64, now: Instant) {
        self.count(|counts| counts.completed += 1);
        let Some(job) = self.job(number) else {
            return;
        };
        if job.state == State::Unknown {
            self.count(|counts| counts.unknown -= 1);
        }
        self.change(number, |job| job.state = State::Done);
        if job.timed && self.phase.get() == Phase::Measured {
            let took = self.since(job, now);
            let mut measured = self.measured.borrow_mut();
            measured.life.saturating_record(took);
        }
    }

    /// A nack was confirmed.
    pub(super) fn nacked(&self, number: u64) {
        self.count(|counts| counts.nacked += 1);
        self.change(number, |job| job.timed = false);
    }

    /// An ack came too late.
    pub(super) fn lease_lost(&self, number: u64) {
        self.count(|counts| counts.lease_lost += 1);
        self.change(number, |job| job.timed = false);
    }

    /// Jobs whose enqueue was confirmed and whose end was not.
    pub(super) fn unfinished(&self) -> u64 {
        let jobs = self.jobs.as_ref().map(RefCell::borrow);
        let jobs = jobs.iter().flat_map(|jobs| jobs.iter());
        jobs.filter(|job| job.state == State::Enqueued).count() as u64
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    fn job(&self, number: u64) -> Option<Job> {
        let jobs = self.jobs.as_ref()?.borrow();
        jobs.get(usize::try_from(number).ok()?).copied()
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Job)) {
        let jobs = self.jobs.as_ref().map(RefCell::borrow_mut);
        if let Some(mut jobs) = jobs
            && let Some(job) = jobs.get_mut(number as usize)
        {
            change(job);
        }
    }

    fn since(&self, job: Job, now: Instant) -> u64 {
        let now = micros(now.saturating_duration_since(self.begun));
        now.saturating_sub(job.due_us.into())
    }
}

pub(super) fn micros(duration: std::time::Duration) -> u64 {
    duration.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_job_is_unfinished_from_its_enqueue_to_its_ack() {
        let books = Books::new(Some(4));
        let at = Instant::now();
        assert_eq!(books.ask(3, at, true), 0);
        assert!(books.has_room(1) && !books.has_room(2));
        books.enqueued(0, 2, at, at);
        assert_eq!(books.unfinished(), 2);
        books.refused(2);
        books.delivered(Some(0), at);
        books.acked(0, at);
        assert_eq!((books.unfinished(), books.backlog()), (1, 1));
        // Worked before its producer heard of it.
        books.ask(1, at, true);
        books.acked(3, at);
        books.enqueued(3, 1, at, at);
        assert_eq!(books.unfinished(), 1);
        let counts = books.counts();
        assert_eq!((counts.enqueued, counts.completed), (3, 2));
        assert_eq!((counts.redelivered_after_ack, counts.strange), (0, 0));
        books.delivered(Some(0), at);
        books.delivered(Some(99), at);
        books.delivered(None, at);
        let counts = books.counts();
        assert_eq!((counts.redelivered_after_ack, counts.strange), (1, 2));
    }

    #[test]
    fn what_is_unknown_is_waited_for_by_nobody_and_known_once_it_is_seen() {
        let books = Books::new(Some(4));
        let at = Instant::now();
        books.ask(2, at, true);
        books.enqueued(1, 1, at, at);
        books.unknown(0);
        books.unknown(1);
        books.unknown(1);
        assert_eq!((books.unfinished(), books.backlog()), (0, 0));
        books.delivered(Some(0), at);
        books.acked(0, at);
        let counts = books.counts();
        assert_eq!((counts.unknown, books.backlog()), (1, 0));
        assert_eq!((counts.redelivered_after_ack, counts.strange), (0, 0));
        books.unknown(0);
        assert_eq!(books.counts().unknown, 1, "it is done");
    }

    #[test]
    fn latencies_count_from_when_a_job_was_due_and_only_while_measured() {
        let books = Books::new(Some(100));
        let due = Instant::now();
        let now = due + Duration::from_millis(5);
        let first = books.ask(2, due, true);
        books.enqueued(first, 1, due, now);
        books.enter(Phase::Measured);
        books.enqueued(first + 1, 1, due, now);
        books.delivered(Some(first), now);
        books.acked(first, now);
        books.nacked(first + 1);
        books.acked(first + 1, now);
        let seen = books.latencies();
        assert_eq!((seen.enqueue.len(), seen.delivery.len()), (1, 1));
        assert_eq!(seen.life.len(), 1, "one failed on purpose");
        assert!((4_990..=5_010).contains(&seen.enqueue.max()));
        assert_eq!(books.take_lately().len(), 2);
        assert_eq!(books.take_lately().len(), 0);
    }
}
