//! A connection that leases and acknowledges, with so many jobs in hand.

use super::books::{Books, Phase};
use super::link::{Link, refused};
use crate::base::ids::{Partition, QueueUid, Token};
use crate::base::prng::Prng;
use crate::base::report::Report;
use crate::wire::message::{LeasedJob, Reply, ReplyBody};
use crate::wire::{AckItem, ItemOutcome, NackItem, Op, Outcome, Rejection};
use crate::workload::number_of;
use bytes::Bytes;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

/// How long a poll waits for a job, in milliseconds.
const POLL_WAIT_MS: u32 = 1_000;

pub(super) struct Consumer {
    link: Link,
    books: Rc<Books>,
    queue: QueueUid,
    /// Jobs in hand at once.
    window: u32,
    /// Acks of one request.
    batch: usize,
    /// Percent of the jobs that are nacked.
    nack_rate: u8,
    prng: Prng,
    /// Under way.
    poll: Option<Poll>,
    polls: u64,
    in_hand: u32,
    under_way: VecDeque<Request>,
    next_seq: u64,
}

/// A lease that waits for jobs.
#[derive(Clone, Copy)]
struct Poll {
    id: u64,
    seq: u64,
    max: u32,
}

/// Acks, or nacks, under way.
struct Request {
    id: u64,
    seq: u64,
    is_ack: bool,
    /// Their numbers and grants.
    jobs: Vec<(u64, Token)>,
}

impl Request {
    fn op(&self) -> Op {
        let tokens = self.jobs.iter().map(|(_, token)| *token);
        let ack = |token| AckItem {
            token,
            result: None,
        };
        let nack = |token| NackItem {
            token,
            delay_ms: Some(0),
            reason: Bytes::from_static(b"failed on purpose"),
        };
        match self.is_ack {
            true => Op::Ack {
                items: tokens.map(ack).collect(),
            },
            false => Op::Nack {
                items: tokens.map(nack).collect(),
            },
        }
    }
}

impl Consumer {
    pub(super) fn new(
        link: Link,
        books: Rc<Books>,
        queue: QueueUid,
        window: u32,
        batch: usize,
        nack_rate: u8,
        seed: u64,
    ) -> Self {
        Self {
            link,
            books,
            queue,
            window,
            batch,
            nack_rate,
            prng: Prng::new(seed),
            poll: None,
            polls: 0,
            in_hand: 0,
            under_way: VecDeque::new(),
            next_seq: 1,
        }
    }

    /// Works until all is over.
    ///
    /// # Errors
    /// If a node refuses what it must take, or the group is lost.
    pub(super) async fn run(mut self) -> Result<(), Report> {
        loop {
            if self.books.phase() == Phase::Over {
                return Ok(());
            }
            self.ask_for_jobs();
            if let Err(why) = self.hear().await {
                let is_same_session = self.link.again(why).await?;
                self.ask_again(is_same_session);
            }
            self.books.room.notify_waiters();
        }
    }

    /// Waits for answers, or until all is over.
    async fn hear(&mut self) -> Result<(), Report> {
        let books = self.books.clone();
        tokio::select! {
            ready = self.link.ready() => ready?,
            () = books.over.notified() => {}
        }
        let now = Instant::now();
        while let Some(reply) = self.link.reply()? {
            self.note(reply, now)?;
        }
        Ok(())
    }

    /// Another node leads, or the session was attached anew: asks what is under way, by the same numbers,
    /// unless their session is gone.
    fn ask_again(&mut self, is_same_session: bool) {
        self.books.moved();
        let under_way = std::mem::take(&mut self.under_way);
        if is_same_session {
            let lowest = under_way.front().map_or(0, |request| request.seq);
            for request in under_way {
                let id = self.link.command(request.op(), request.seq, lowest, 0);
                self.under_way.push_back(Request { id, ..request });
            }
            if let Some(Poll { seq, max, .. }) = self.poll {
                self.poll_for(seq, max);
            }
            return;
        }
        (self.next_seq, self.polls, self.poll) = (1, 0, None);
        for request in under_way {
            self.in_hand -= request.jobs.len() as u32;
            let numbers = request.jobs.iter().map(|(number, _)| *number);
            numbers.for_each(|number| self.books.unknown(number));
        }
    }

    /// Polls once half of the hands are free: fewer, fuller answers.
    fn ask_for_jobs(&mut self) {
        let free = self.window - self.in_hand;
        if self.poll.is_some() || free < self.window.div_ceil(2) {
            return;
        }
        self.polls += 1;
        self.poll_for(self.polls, free);
    }

    fn poll_for(&mut self, seq: u64, max: u32) {
        let op = Op::Lease {
            queue: self.queue,
            partition: Partition(0),
            max,
            lease_ms: 0,
            epoch: self.link.epoch(),
        };
        let id = self.link.command(op, seq, seq, POLL_WAIT_MS);
        self.poll = Some(Poll { id, seq, max });
    }

    fn note(&mut self, reply: Reply, now: Instant) -> Result<(), Report> {
        if self.poll.is_some_and(|poll| poll.id == reply.id) {
            let ReplyBody::Leased(jobs) = reply.body else {
                return Err(refused(&reply.body));
            };
            self.poll = None;
            self.settle(&jobs, now);
            return Ok(());
        }
        let mut known = self.under_way.iter();
        let Some(at) = known.position(|request| request.id == reply.id) else {
            return Err(refused(&reply.body));
        };
        let ReplyBody::Outcome(Outcome::Items(items)) = reply.body else {
            return Err(refused(&reply.body));
        };
        let request = self.under_way.remove(at).expect("it was just found");
        self.in_hand -= request.jobs.len() as u32;
        for ((number, _), item) in request.jobs.into_iter().zip(items) {
            match item {
                ItemOutcome::Done if request.is_ack => self.books.acked(number, now),
                ItemOutcome::Done => self.books.nacked(number),
                ItemOutcome::Rejected(Rejection::LeaseLost) => self.books.lease_lost(number),
                ItemOutcome::Rejected(_) => {
                    return Err(refused(&ReplyBody::Outcome(Outcome::Items(vec![item]))));
                }
            }
        }
        Ok(())
    }

    /// Acknowledges jobs, or fails them on purpose.
    fn settle(&mut self, jobs: &[LeasedJob], now: Instant) {
        let (mut acks, mut nacks) = (Vec::new(), Vec::new());
        for job in jobs {
            let number = number_of(&job.job.body.payload);
            self.books.delivered(number, now);
            let Some(number) = number else {
                continue;
            };
            self.in_hand += 1;
            match self.prng.below(100) < self.nack_rate.into() {
                true => nacks.push((number, job.token())),
                false => acks.push((number, job.token())),
            }
        }
        for part in acks.chunks(self.batch) {
            self.ask(part, true);
        }
        for part in nacks.chunks(self.batch) {
            self.ask(part, false);
        }
    }

    fn ask(&mut self, jobs: &[(u64, Token)], is_ack: bool) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let lowest = self.under_way.front().map_or(seq, |request| request.seq);
        let mut request = Request {
            id: 0,
            seq,
            is_ack,
            jobs: jobs.to_vec(),
        };
        request.id = self.link.command(request.op(), seq, lowest, 0);
        self.under_way.push_back(request);
    }
}
