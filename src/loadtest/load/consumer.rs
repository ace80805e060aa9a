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
    /// The request of the poll under way.
    poll: Option<u64>,
    polls: u64,
    in_hand: u32,
    under_way: VecDeque<Request>,
    next_seq: u64,
}

/// Acks, or nacks, under way.
struct Request {
    id: u64,
    seq: u64,
    is_ack: bool,
    numbers: Vec<u64>,
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
    /// If the node refuses what it must take, or is lost.
    pub(super) async fn run(mut self) -> Result<(), Report> {
        loop {
            if self.books.phase() == Phase::Over {
                return Ok(());
            }
            self.ask_for_jobs();
            let books = self.books.clone();
            tokio::select! {
                ready = self.link.ready() => ready?,
                () = books.over.notified() => {}
            }
            let now = Instant::now();
            while let Some(reply) = self.link.reply()? {
                self.note(reply, now)?;
            }
            self.books.room.notify_waiters();
        }
    }

    /// Polls once half of the hands are free: fewer, fuller answers.
    fn ask_for_jobs(&mut self) {
        let free = self.window - self.in_hand;
        if self.poll.is_some() || free < self.window.div_ceil(2) {
            return;
        }
        let op = Op::Lease {
            queue: self.queue,
            partition: Partition(0),
            max: free,
            lease_ms: 0,
            epoch: self.link.epoch(),
        };
        self.polls += 1;
        let id = self.link.command(op, self.polls, self.polls, POLL_WAIT_MS);
        self.poll = Some(id);
    }

    fn note(&mut self, reply: Reply, now: Instant) -> Result<(), Report> {
        if self.poll == Some(reply.id) {
            self.poll = None;
            return match reply.body {
                ReplyBody::Leased(jobs) => {
                    self.settle(&jobs, now);
                    Ok(())
                }
                other => Err(refused(&other)),
            };
        }
        let mut known = self.under_way.iter();
        let Some(at) = known.position(|request| request.id == reply.id) else {
            return Err(refused(&reply.body));
        };
        let request = self.under_way.remove(at).expect("it was just found");
        let ReplyBody::Outcome(Outcome::Items(items)) = reply.body else {
            return Err(refused(&reply.body));
        };
        self.in_hand -= request.numbers.len() as u32;
        for (number, item) in request.numbers.into_iter().zip(items) {
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
            let item = |(_, token): &(u64, Token)| AckItem {
                token: *token,
                result: None,
            };
            let items = part.iter().map(item).collect();
            self.ask(Op::Ack { items }, part, true);
        }
        for part in nacks.chunks(self.batch) {
            let item = |(_, token): &(u64, Token)| NackItem {
                token: *token,
                delay_ms: Some(0),
                reason: Bytes::from_static(b"failed on purpose"),
            };
            let items = part.iter().map(item).collect();
            self.ask(Op::Nack { items }, part, false);
        }
    }

    fn ask(&mut self, op: Op, jobs: &[(u64, Token)], is_ack: bool) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let lowest = self.under_way.front().map_or(seq, |request| request.seq);
        let id = self.link.command(op, seq, lowest, 0);
        self.under_way.push_back(Request {
            id,
            seq,
            is_ack,
            numbers: jobs.iter().map(|(number, _)| *number).collect(),
        });
    }
}
