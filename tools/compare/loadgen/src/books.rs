//! What all connections share: the phase, the counts, and what became of each job.
//!
//! A payload begins with the job's number and the moment at which it was sent, in microseconds of
//! the run, so that a consumer knows both without a table. Latencies are kept by each connection
//! and put together at the end.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Jobs that the books have room for: some 130 s at a million a second.
const JOBS_MAX: u64 = 1 << 27;
/// The longest latency that is told apart, in microseconds.
const US_MAX: u64 = 60_000_000;
/// A producer that waits for room looks again after this, also if nobody told it.
const LOOK: Duration = Duration::from_millis(2);

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
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
pub struct Counts {
    /// Their enqueue was sent.
    pub asked: u64,
    /// Their enqueue was confirmed.
    pub enqueued: u64,
    /// Their ack was confirmed.
    pub completed: u64,
    /// Delivered again after that.
    pub repeated: u64,
    /// Delivered with a payload that nobody sent.
    pub strange: u64,
}

/// The books of a run.
pub struct Books {
    begun: Instant,
    phase: AtomicU8,
    asked: AtomicU64,
    enqueued: AtomicU64,
    completed: AtomicU64,
    repeated: AtomicU64,
    strange: AtomicU64,
    /// One bit a job: its ack was confirmed.
    done: Vec<AtomicU64>,
    backlog_max: u64,
    room: Notify,
    filler: Vec<u8>,
}

/// Latencies that a connection has seen while it was measured, in microseconds.
#[derive(Clone)]
pub struct Times {
    /// From the sending of an enqueue to its confirmation.
    pub enqueue: Histogram<u64>,
    /// From the same to the confirmation of the job's ack.
    pub life: Histogram<u64>,
}

impl Times {
    pub fn new() -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, US_MAX, 3).expect("the bounds are in order");
        Self {
            enqueue: histogram(),
            life: histogram(),
        }
    }

    /// Takes in what another connection has seen.
    pub fn add(&mut self, other: &Self) {
        self.enqueue += &other.enqueue;
        self.life += &other.life;
    }
}

/// A job in a consumer's hands.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    number: u64,
    sent_us: u64,
}

impl Books {
    /// Of a run with at most so many jobs there at once.
    pub fn new(backlog_max: u64, payload: usize) -> Self {
        // Without order, so that no disk or server can make it smaller.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let filler = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let words = JOBS_MAX / 64;
        Self {
            begun: Instant::now(),
            phase: AtomicU8::new(Phase::WarmUp as u8),
            asked: AtomicU64::new(0),
            enqueued: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            strange: AtomicU64::new(0),
            done: (0..words).map(|_| AtomicU64::new(0)).collect(),
            backlog_max,
            room: Notify::new(),
            filler: filler.take(payload).collect(),
        }
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::WarmUp,
            1 => Phase::Measured,
            2 => Phase::Ending,
            _ => Phase::Over,
        }
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.room.notify_waiters();
    }

    pub fn counts(&self) -> Counts {
        Counts {
            asked: self.asked.load(Relaxed),
            enqueued: self.enqueued.load(Relaxed),
            completed: self.completed.load(Relaxed),
            repeated: self.repeated.load(Relaxed),
            strange: self.strange.load(Relaxed),
        }
    }

    /// Microseconds of the run.
    pub fn now_us(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    /// Numbers for as many jobs as there is room for, in whole requests of so many, at most
    /// `requests`; empty if there is no room now or nothing more is to be enqueued.
    pub fn take(&self, requests: u64, batch: u64) -> Result<Range<u64>> {
        if self.phase() >= Phase::Ending {
            return Ok(0..0);
        }
        let mut first = self.asked.load(Relaxed);
        loop {
            let there = first.saturating_sub(self.completed.load(Relaxed));
            let room = self.backlog_max.saturating_sub(there);
            let jobs = requests.min(room / batch) * batch;
            if first + jobs > JOBS_MAX {
                bail!("the run is too long for the books: {JOBS_MAX} jobs");
            }
            match self
                .asked
                .compare_exchange_weak(first, first + jobs, Relaxed, Relaxed)
            {
                Ok(_) => return Ok(first..first + jobs),
                Err(other) => first = other,
            }
        }
    }

    /// The same, after waiting for room; `None` at the end.
    pub async fn wait_and_take(&self, requests: u64, batch: u64) -> Result<Option<Range<u64>>> {
        loop {
            let told = self.room.notified();
            let jobs = self.take(requests, batch)?;
            if !jobs.is_empty() {
                return Ok(Some(jobs));
            }
            if self.phase() >= Phase::Ending {
                return Ok(None);
            }
            let _ = tokio::time::timeout(LOOK, told).await;
        }
    }

    /// Writes the payload of a job that is sent now.
    pub fn write_payload(&self, number: u64, sent_us: u64, to: &mut Vec<u8>) {
        to.extend_from_slice(&number.to_le_bytes());
        to.extend_from_slice(&sent_us.to_le_bytes());
        to.extend_from_slice(&self.filler[16..]);
    }

    /// The same as bytes of its own.
    pub fn payload(&self, number: u64, sent_us: u64) -> Bytes {
        let mut bytes = Vec::with_capacity(self.filler.len());
        self.write_payload(number, sent_us, &mut bytes);
        bytes.into()
    }

    /// So many enqueues, sent at the same moment, are confirmed.
    pub fn enqueued(&self, jobs: u64, sent_us: u64, times: &mut Times) {
        self.enqueued.fetch_add(jobs, Relaxed);
        if self.phase() == Phase::Measured {
            let took = self.now_us().saturating_sub(sent_us);
            times.enqueue.saturating_record_n(took, jobs);
        }
    }

    /// A consumer got a job; an error if it is none of this run.
    pub fn held(&self, payload: &[u8]) -> Result<Held> {
        let read = || {
            let number = u64::from_le_bytes(*payload.first_chunk()?);
            let sent_us = u64::from_le_bytes(*payload.get(8..)?.first_chunk()?);
            let is_ours = payload.len() == self.filler.len()
                && payload[16..] == self.filler[16..]
                && number < self.asked.load(Relaxed);
            is_ours.then_some(Held { number, sent_us })
        };
        let held = read();
        if held.is_none() {
            self.strange.fetch_add(1, Relaxed);
        }
        held.context("a job came that nobody had enqueued")
    }

    /// The ack of a job is confirmed.
    pub fn completed(&self, job: Held, times: &mut Times) {
        let bit = 1 << (job.number % 64);
        let before = self.done[(job.number / 64) as usize].fetch_or(bit, Relaxed);
        if before & bit != 0 {
            self.repeated.fetch_add(1, Relaxed);
            return;
        }
        self.completed.fetch_add(1, Relaxed);
        if self.phase() == Phase::Measured {
            let took = self.now_us().saturating_sub(job.sent_us);
            times.life.saturating_record(took);
        }
    }

    /// Producers may look whether there is room.
    pub fn tell_room(&self) {
        self.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_counted_once() {
        let books = Books::new(10, 32);
        assert_eq!(books.take(64, 1).unwrap(), 0..10);
        assert!(books.take(64, 1).unwrap().is_empty(), "no room");
        let mut times = Times::new();
        let job = books.held(&books.payload(3, 0)).unwrap();
        books.completed(job, &mut times);
        books.completed(job, &mut times);
        let counts = books.counts();
        assert_eq!((counts.completed, counts.repeated), (1, 1));
        assert_eq!(books.take(64, 1).unwrap(), 10..11);
        assert!(books.held(&books.payload(11, 0)).is_err(), "never sent");
        assert!(books.held(b"short").is_err());
        books.enter(Phase::Ending);
        assert!(books.take(64, 1).unwrap().is_empty(), "the end");
    }

    #[test]
    fn room_is_for_whole_requests() {
        let books = Books::new(100, 16);
        assert_eq!(books.take(4, 64).unwrap(), 0..64);
        assert!(books.take(4, 64).unwrap().is_empty());
    }
}
