//! A connection that enqueues, with so many requests under way.

use super::books::{Books, Phase};
use super::link::{Link, refused};
use crate::base::code::Code;
use crate::base::ids::{Partition, QueueUid};
use crate::base::prng::Prng;
use crate::base::report::Report;
use crate::wire::message::{Reply, ReplyBody};
use crate::wire::{NewJob, Op, Outcome, Start};
use crate::workload::payload;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What producers send.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Requests under way at once.
    pub(super) window: usize,
    /// Jobs of a request.
    pub(super) batch: u64,
    /// Bytes of a payload.
    pub(super) payload: usize,
    /// Classes used, from 0 on; 0 = the default alone.
    pub(super) priorities: u8,
    /// Percent of the requests whose jobs are delayed.
    pub(super) delayed: u8,
    /// Between two requests of one connection; `None` = as fast as answers come.
    pub(super) every: Option<Duration>,
    /// Ends when all producers together have asked for so many jobs, those aside that were refused; their
    /// latencies do not count. `None` = when the end of the load is near.
    pub(super) until: Option<u64>,
}

/// How long delayed jobs wait.
const DELAY_MS: u64 = 1_000;
/// A producer that waits for a time looks again after this.
const LOOK: Duration = Duration::from_millis(100);
/// So long nothing is asked of a node that has no memory for jobs: it writes some of them down.
const MEMORY_PAUSE: Duration = Duration::from_millis(20);

pub(super) struct Producer {
    link: Link,
    books: Rc<Books>,
    shape: Shape,
    queue: QueueUid,
    prng: Prng,
    under_way: VecDeque<Request>,
    next_seq: u64,
    /// When the next request is due, with a rate.
    due: Instant,
    /// Nothing is asked before this.
    paused_until: Option<Instant>,
}

struct Request {
    id: u64,
    seq: u64,
    due: Instant,
    first: u64,
    jobs: u64,
    is_delayed: bool,
}

impl Producer {
    /// Its first request is due at `begin`.
    pub(super) fn new(
        link: Link,
        books: Rc<Books>,
        shape: Shape,
        queue: QueueUid,
        seed: u64,
        begin: Instant,
    ) -> Self {
        Self {
            link,
            books,
            shape,
            queue,
            prng: Prng::new(seed),
            under_way: VecDeque::new(),
            next_seq: 1,
            due: begin,
            paused_until: None,
        }
    }

    /// Enqueues until the end.
    ///
    /// # Errors
    /// If a node refuses what it must take, or the group is lost.
    pub(super) async fn run(mut self) -> Result<(), Report> {
        loop {
            let wait = self.send();
            if self.under_way.is_empty() && self.is_over() {
                return Ok(());
            }
            if let Err(why) = self.hear(wait).await {
                let is_same_session = self.link.again(why).await?;
                self.ask_again(is_same_session);
            }
        }
    }

    /// Waits for answers, or until it is time to send.
    async fn hear(&mut self, wait: Option<Duration>) -> Result<(), Report> {
        let books = self.books.clone();
        tokio::select! {
            ready = self.link.ready() => ready?,
            () = books.room.notified(), if self.under_way.is_empty() => {}
            () = tokio::time::sleep(wait.unwrap_or(LOOK)), if wait.is_some() => {}
        }
        let now = Instant::now();
        while let Some(reply) = self.link.reply()? {
            self.note(reply, now)?;
        }
        Ok(())
    }

    /// Another node leads: asks it what is under way, by the same numbers, unless their session is gone.
    fn ask_again(&mut self, is_same_session: bool) {
        self.books.moved();
        let under_way = std::mem::take(&mut self.under_way);
        if is_same_session {
            let lowest = under_way.front().map_or(0, |request| request.seq);
            for request in under_way {
                let id = self.link.command(self.op(&request), request.seq, lowest, 0);
                self.under_way.push_back(Request { id, ..request });
            }
            return;
        }
        self.next_seq = 1;
        for request in under_way {
            let numbers = request.first..request.first + request.jobs;
            numbers.for_each(|number| self.books.unknown(number));
        }
    }

    /// Sends what may go now; how long until more is due, if time decides.
    fn send(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return Some(until - now);
        }
        while self.under_way.len() < self.shape.window
            && !self.is_over()
            && self.books.has_room(self.shape.batch)
        {
            let due = match self.shape.every {
                None => now,
                Some(_) if self.due > now => return Some(self.due - now),
                Some(every) => {
                    let due = self.due;
                    self.due += every;
                    due
                }
            };
            self.ask(due);
        }
        None
    }

    fn is_over(&self) -> bool {
        match self.shape.until {
            Some(jobs) => self.books.asked() >= jobs,
            None => self.books.phase() >= Phase::Ending,
        }
    }

    fn ask(&mut self, due: Instant) {
        let left = self.shape.until.map(|jobs| jobs - self.books.asked());
        let jobs = left.map_or(self.shape.batch, |left| left.min(self.shape.batch));
        let is_delayed = self.prng.below(100) < self.shape.delayed.into();
        let is_timed = left.is_none() && !is_delayed;
        let first = self.books.ask(jobs, due, is_timed);
        let seq = self.next_seq;
        self.next_seq += 1;
        let lowest = self.under_way.front().map_or(seq, |request| request.seq);
        let mut request = Request {
            id: 0,
            seq,
            due,
            first,
            jobs,
            is_delayed,
        };
        request.id = self.link.command(self.op(&request), seq, lowest, 0);
        self.under_way.push_back(request);
    }

    fn op(&self, request: &Request) -> Op {
        let job = |number: u64| NewJob {
            payload: payload(number, self.shape.payload),
            priority: (self.shape.priorities > 0)
                .then(|| (number % u64::from(self.shape.priorities)) as u8),
            start: match request.is_delayed {
                true => Start::After(DELAY_MS),
                false => Start::Now,
            },
            ..NewJob::default()
        };
        Op::Enqueue {
            queue: self.queue,
            partition: Partition(0),
            items: (request.first..request.first + request.jobs)
                .map(job)
                .collect(),
        }
    }

    fn note(&mut self, reply: Reply, now: Instant) -> Result<(), Report> {
        let mut known = self.under_way.iter();
        let Some(at) = known.position(|request| request.id == reply.id) else {
            return Err(refused(&reply.body));
        };
        let Request {
            first, jobs, due, ..
        } = self.under_way[at];
        match reply.body {
            ReplyBody::Outcome(Outcome::Enqueued(made)) => {
                if made.iter().any(|job| job.id().is_none()) {
                    return Err(refused(&ReplyBody::Outcome(Outcome::Enqueued(made))));
                }
                self.books.enqueued(first, jobs, due, now);
            }
            // Told by name and tried again with the next request.
            ReplyBody::Error(error)
                if matches!(error.code, Code::Busy | Code::DiskFull | Code::MemoryFull) =>
            {
                (first..first + jobs).for_each(|number| self.books.refused(number));
                if error.code == Code::MemoryFull {
                    self.paused_until = Some(now + MEMORY_PAUSE);
                }
            }
            // It is under way still, for whoever leads now.
            other => return Err(refused(&other)),
        }
        self.under_way.remove(at);
        Ok(())
    }
}
