//! A client of the simulated node: producer, worker and operator in one, with a session.
//!
//! It keeps every request until it is answered and sends it again after a crash, under the same
//! number, as a real client does.

use super::ledger::Ledger;
use crate::base::code::Code;
use crate::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Token};
use crate::base::prng::Prng;
use crate::queue::command::{
    AckItem, Command, Enqueued, ItemOutcome, NackItem, NewJob, Op, Outcome, QueueInfo,
    QueueSettings, Rejection, SessionCall, Start, Window,
};
use crate::queue::view::{JobEnd, JobState};
use crate::wire::message::{LeasedJob, Reply, ReplyBody, RequestBody};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Requests under way at once.
const OUTSTANDING_MAX: usize = 6;
/// Tokens held at once.
const HELD_MAX: usize = 8;

/// A session that holds jobs and is silent for so long loses them, in milliseconds.
const WORKER_TIMEOUT_MS: u32 = 3_000;

/// What a request is for.
#[derive(Clone, Debug)]
enum Purpose {
    /// The queue of this client's settings.
    Create,
    /// The queue as the node makes it.
    Queue,
    Session,
    Attach,
    Enqueue(Vec<u64>),
    Lease,
    End(Vec<Token>),
    GiveBack,
    Watch,
    /// The end of a job.
    Wait(JobId),
    /// A job as it is.
    Look(JobId),
    Other,
}

#[derive(Clone, Debug)]
struct Outstanding {
    body: RequestBody,
    purpose: Purpose,
    seq: Option<(Window, u64)>,
    sent: u32,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    id: SessionId,
    epoch: u32,
    next: [u64; 2],
}

/// A client.
#[derive(Clone, Debug)]
pub struct SimClient {
    number: u64,
    name: String,
    /// How its queue is to be made; `None` = as the node makes it.
    settings: Option<QueueSettings>,
    /// The home of its queue.
    home: GroupId,
    /// The group of its partition, once that is known.
    group: GroupId,
    partition: Partition,
    queue: Option<QueueUid>,
    session: Option<Session>,
    next_request: u64,
    next_job: u64,
    /// Its payloads are shorter than this, and eight bytes.
    payload_bytes: u64,
    outstanding: BTreeMap<u64, Outstanding>,
    held: Vec<Token>,
}

impl SimClient {
    /// Client `number`, which works with one partition of the queue of this name and home.
    #[must_use]
    pub fn new(number: u64, name: &str, home: GroupId, settings: Option<QueueSettings>) -> Self {
        Self {
            number,
            name: name.to_owned(),
            settings,
            home,
            group: home,
            partition: Partition(0),
            queue: None,
            session: None,
            next_request: 1,
            // Job numbers are unique over the clients.
            next_job: number << 32,
            payload_bytes: 2_000,
            outstanding: BTreeMap::new(),
            held: Vec::new(),
        }
    }

    /// With payloads of fewer than so many bytes, and eight.
    #[must_use]
    pub fn with_payloads(self, payload_bytes: u64) -> Self {
        Self {
            payload_bytes,
            ..self
        }
    }

    /// A request that is not answered yet.
    #[must_use]
    pub fn request(&self, id: u64) -> Option<RequestBody> {
        self.outstanding
            .get(&id)
            .map(|request| request.body.clone())
    }

    /// How often a request was sent.
    #[must_use]
    pub fn times_sent(&self, id: u64) -> u32 {
        self.outstanding.get(&id).map_or(0, |request| request.sent)
    }

    /// One of them, to be sent again.
    pub fn resend_one(&mut self, id: u64) -> Option<RequestBody> {
        let request = self.outstanding.get_mut(&id)?;
        request.sent += 1;
        Some(request.body.clone())
    }

    /// Everything unanswered, to be sent again.
    pub fn resend(&mut self) -> Vec<(u64, RequestBody)> {
        for outstanding in self.outstanding.values_mut() {
            outstanding.sent += 1;
        }
        self.outstanding
            .iter()
            .map(|(id, request)| (*id, request.body.clone()))
            .collect()
    }

    /// What it asks next, if anything. `produce` says whether it may make new jobs.
    pub fn act(
        &mut self,
        prng: &mut Prng,
        ledger: &mut Ledger,
        produce: bool,
    ) -> Option<(u64, RequestBody)> {
        if self.outstanding.len() >= OUTSTANDING_MAX {
            return None;
        }
        let Some(queue) = self.queue else {
            return self.find_queue();
        };
        if self.session.is_none() {
            let body = self.command(
                Op::OpenSession {
                    worker_timeout_ms: WORKER_TIMEOUT_MS,
                },
                None,
            );
            return self.send_once(body, Purpose::Session);
        }
        match prng.below(20) {
            16 => self.watch(queue, prng),
            17 => self.wait(prng),
            18 => self.look(prng, ledger),
            0..=4 if produce => self.enqueue(queue, prng, ledger),
            5..=8 => self.lease(queue, prng),
            9..=12 => self.finish(prng, ledger),
            13 => self.give_back(prng),
            14 => {
                let sessions = self.session.iter().map(|s| (self.group, s.id)).collect();
                let worker = None;
                Some(self.send(
                    RequestBody::Heartbeat { sessions, worker },
                    Purpose::Other,
                    None,
                ))
            }
            _ => self.extend(prng),
        }
    }

    /// Takes an answer.
    pub fn on_reply(&mut self, reply: Reply, ledger: &mut Ledger) {
        let Some(request) = self.outstanding.remove(&reply.id) else {
            return;
        };
        let at = reply.stamp.map_or(LogIndex(0), |stamp| stamp.index);
        match reply.body {
            ReplyBody::Error(error) => match error.code {
                Code::NotLeader
                | Code::Busy
                | Code::DiskFull
                | Code::Stopping
                | Code::GroupHalted => {
                    self.outstanding.insert(reply.id, request);
                }
                code => panic!("{code}: {}", error.message),
            },
            ReplyBody::Queues(queues) => self.take_queue(&queues[0].0),
            ReplyBody::Ready(_) if matches!(request.purpose, Purpose::Watch) => {}
            ReplyBody::Job(job) => match request.purpose {
                Purpose::Wait(id) => {
                    assert!(job.id == id && job.state != JobState::Dead, "{job:?}");
                    ledger.history.seen_live(id, at);
                }
                Purpose::Look(id) => {
                    assert!(job.id == id, "{job:?}");
                    ledger.history.seen_live(id, at);
                }
                purpose => panic!("{purpose:?} was answered by {job:?}"),
            },
            ReplyBody::Finished(job) => match request.purpose {
                Purpose::Wait(id) | Purpose::Look(id) => {
                    assert!(job.id == id && job.end == JobEnd::Completed, "{job:?}");
                    assert!(job.result == Some(result_of(id)), "{job:?}");
                    ledger.told_finished(id);
                }
                purpose => panic!("{purpose:?} was answered by {job:?}"),
            },
            ReplyBody::Leased(jobs) => self.on_leased(&request, jobs, at, ledger),
            ReplyBody::Outcome(outcome) => self.on_outcome(&request, outcome, at, ledger),
            ReplyBody::HeartbeatTaken { unknown } => {
                if self
                    .session
                    .is_some_and(|s| unknown.contains(&(self.group, s.id)))
                {
                    self.forget_session();
                }
            }
            other => panic!("{:?} was answered by {other:?}", request.purpose),
        }
    }

    fn on_outcome(
        &mut self,
        request: &Outstanding,
        outcome: Outcome,
        at: LogIndex,
        ledger: &mut Ledger,
    ) {
        match (&request.purpose, outcome) {
            (_, Outcome::Rejected(Rejection::SessionExpired)) => self.forget_session(),
            (Purpose::Create, Outcome::Queue(info)) => self.take_queue(&info),
            // The group is of version 1 still.
            (Purpose::Create, Outcome::Rejected(Rejection::Unsupported)) => self.settings = None,
            (Purpose::Wait(id) | Purpose::Look(id), Outcome::Rejected(Rejection::Finished)) => {
                ledger.told_finished(*id);
            }
            (Purpose::Lease, Outcome::Rejected(Rejection::Reattach)) => {
                if let Some(session) = self.session {
                    let body = self.command(
                        Op::Attach {
                            session: session.id,
                        },
                        None,
                    );
                    self.send(body, Purpose::Attach, None);
                }
            }
            (Purpose::Session, Outcome::SessionOpened { session, epoch }) => {
                self.session = Some(Session {
                    id: session,
                    epoch,
                    next: [1, 1],
                });
            }
            (Purpose::Attach, Outcome::Attached { epoch, tokens }) => {
                if let Some(session) = &mut self.session {
                    session.epoch = session.epoch.max(epoch);
                }
                self.held.retain(|token| tokens.contains(token));
            }
            (Purpose::Enqueue(numbers), Outcome::Enqueued(items)) => {
                assert_eq!(numbers.len(), items.len(), "one outcome for each job");
                for (number, item) in numbers.iter().zip(items) {
                    match item {
                        Enqueued::New(id) => ledger.enqueue_acked(*number, id),
                        other => panic!("job {number} was answered by {other:?}"),
                    }
                }
            }
            (Purpose::End(tokens), Outcome::Items(items)) => {
                for (token, item) in tokens.iter().zip(items) {
                    match item {
                        ItemOutcome::Done => {
                            ledger.end_acked(*token, at, request.sent > 1);
                        }
                        ItemOutcome::Rejected(Rejection::LeaseLost) => {}
                        ItemOutcome::Rejected(other) => panic!("ack of {token:?}: {other:?}"),
                    }
                }
            }
            (Purpose::GiveBack | Purpose::Other, Outcome::Items(_) | Outcome::Done) => {}
            (purpose, outcome) => panic!("{purpose:?} was answered by {outcome:?}"),
        }
    }

    fn on_leased(
        &mut self,
        request: &Outstanding,
        jobs: Vec<LeasedJob>,
        at: LogIndex,
        ledger: &mut Ledger,
    ) {
        for leased in jobs {
            let token = Token {
                job: leased.job.id,
                lease_gen: leased.lease_gen,
            };
            let number = number_of(&leased.job.body.payload);
            ledger.delivered(number, token, at, request.sent > 1);
            self.held.push(token);
        }
    }

    /// Finds or makes the queue.
    fn find_queue(&mut self) -> Option<(u64, RequestBody)> {
        let name = self.name.clone();
        let Some(settings) = self.settings else {
            let body = RequestBody::GetQueue { name, create: true };
            return self.send_once(body, Purpose::Queue);
        };
        let op = Op::CreateQueue {
            name,
            settings,
            must_be_new: false,
            groups: 0,
        };
        let body = RequestBody::Command {
            group: self.home,
            command: Command { session: None, op },
            wait_ms: 0,
        };
        self.send_once(body, Purpose::Create)
    }

    fn take_queue(&mut self, info: &QueueInfo) {
        let partitions = info.groups.len() as u64;
        let partition = (self.number % partitions) as u8;
        self.queue = Some(info.uid);
        self.partition = Partition(partition);
        self.group = info.groups[usize::from(partition)];
    }

    fn watch(&mut self, queue: QueueUid, prng: &mut Prng) -> Option<(u64, RequestBody)> {
        let body = RequestBody::Watch {
            queue,
            partition: self.partition,
            group: self.group,
            wait_ms: prng.below(2_000) as u32,
        };
        Some(self.send(body, Purpose::Watch, None))
    }

    /// Waits for the end of a job that it holds, or held a moment ago.
    fn wait(&mut self, prng: &mut Prng) -> Option<(u64, RequestBody)> {
        let job = self.held.first()?.job;
        let wait_ms = prng.below(2_000) as u32;
        let body = RequestBody::WaitJob { job, wait_ms };
        Some(self.send(body, Purpose::Wait(job), None))
    }

    /// Looks at a job, of whichever client.
    fn look(&mut self, prng: &mut Prng, ledger: &Ledger) -> Option<(u64, RequestBody)> {
        let job = ledger.some_job(prng)?;
        Some(self.send(RequestBody::GetJob { job }, Purpose::Look(job), None))
    }

    fn enqueue(
        &mut self,
        queue: QueueUid,
        prng: &mut Prng,
        ledger: &mut Ledger,
    ) -> Option<(u64, RequestBody)> {
        let mut numbers = Vec::new();
        let mut items = Vec::new();
        for _ in 0..=prng.below(3) {
            self.next_job += 1;
            ledger.enqueue_sent(self.next_job);
            numbers.push(self.next_job);
            let start = match prng.below(4) {
                0 => Start::After(prng.below(3_000)),
                _ => Start::Now,
            };
            items.push(NewJob {
                payload: payload_of(self.next_job, prng.below(self.payload_bytes)),
                priority: prng.chance(1, 3).then(|| prng.below(8) as u8),
                start,
                ..NewJob::default()
            });
        }
        let op = Op::Enqueue {
            queue,
            partition: self.partition,
            items,
        };
        Some(self.send_in_session(op, Window::Commands, 0, Purpose::Enqueue(numbers)))
    }

    fn lease(&mut self, queue: QueueUid, prng: &mut Prng) -> Option<(u64, RequestBody)> {
        let polling = self
            .outstanding
            .values()
            .any(|o| matches!(o.purpose, Purpose::Lease));
        if polling || self.held.len() >= HELD_MAX {
            return None;
        }
        let epoch = self.session?.epoch;
        let max = 1 + prng.below(4) as u32;
        let lease_ms = if prng.chance(1, 3) {
            500 + prng.below(3_000) as u32
        } else {
            0
        };
        let op = Op::Lease {
            queue,
            partition: self.partition,
            max,
            lease_ms,
            epoch,
        };
        let wait_ms = if prng.chance(1, 2) {
            prng.below(2_000) as u32
        } else {
            0
        };
        Some(self.send_in_session(op, Window::Polls, wait_ms, Purpose::Lease))
    }

    fn take_held(&mut self, prng: &mut Prng) -> Vec<Token> {
        let count = (prng.below(3) as usize + 1).min(self.held.len());
        self.held.drain(..count).collect()
    }

    fn finish(&mut self, prng: &mut Prng, ledger: &mut Ledger) -> Option<(u64, RequestBody)> {
        let tokens = self.take_held(prng);
        if tokens.is_empty() {
            return None;
        }
        tokens.iter().for_each(|token| ledger.end_sent(token.job));
        let ack = |token: &Token| AckItem {
            token: *token,
            result: Some(result_of(token.job)),
        };
        let op = Op::Ack {
            items: tokens.iter().map(ack).collect(),
        };
        Some(self.send_in_session(op, Window::Commands, 0, Purpose::End(tokens)))
    }

    fn give_back(&mut self, prng: &mut Prng) -> Option<(u64, RequestBody)> {
        let tokens = self.take_held(prng);
        if tokens.is_empty() {
            return None;
        }
        let op = if prng.chance(1, 2) {
            Op::Release { items: tokens }
        } else {
            let delay_ms = prng.chance(1, 2).then(|| prng.below(1_000));
            let reason = Bytes::from_static(b"simulated");
            let nack = |token| NackItem {
                token,
                delay_ms,
                reason: reason.clone(),
            };
            Op::Nack {
                items: tokens.into_iter().map(nack).collect(),
            }
        };
        Some(self.send_in_session(op, Window::Commands, 0, Purpose::GiveBack))
    }

    fn extend(&mut self, prng: &mut Prng) -> Option<(u64, RequestBody)> {
        let token = *self.held.first()?;
        let op = Op::Extend {
            items: vec![(token, prng.below(5_000) as u32)],
        };
        Some(self.send_in_session(op, Window::Commands, 0, Purpose::GiveBack))
    }

    fn forget_session(&mut self) {
        self.session = None;
        self.held.clear();
        self.outstanding.retain(|_, request| request.seq.is_none());
    }

    fn command(&self, op: Op, session: Option<SessionCall>) -> RequestBody {
        RequestBody::Command {
            group: self.group,
            command: Command { session, op },
            wait_ms: 0,
        }
    }

    /// A request of which one is enough.
    fn send_once(&mut self, body: RequestBody, purpose: Purpose) -> Option<(u64, RequestBody)> {
        self.outstanding
            .is_empty()
            .then(|| self.send(body, purpose, None))
    }

    fn send_in_session(
        &mut self,
        op: Op,
        window: Window,
        wait_ms: u32,
        purpose: Purpose,
    ) -> (u64, RequestBody) {
        let session = self.session.as_mut().expect("a session is open");
        let next = &mut session.next[window as usize];
        let seq = *next;
        *next += 1;
        let id = session.id;
        let mine = |request: &Outstanding| request.seq.filter(|(w, _)| *w == window).map(|s| s.1);
        let lowest = self
            .outstanding
            .values()
            .filter_map(mine)
            .min()
            .unwrap_or(seq);
        let call = SessionCall {
            id,
            seq,
            lowest,
            window,
        };
        let command = Command {
            session: Some(call),
            op,
        };
        let body = RequestBody::Command {
            group: self.group,
            command,
            wait_ms,
        };
        self.send(body, purpose, Some((window, seq)))
    }

    fn send(
        &mut self,
        body: RequestBody,
        purpose: Purpose,
        seq: Option<(Window, u64)>,
    ) -> (u64, RequestBody) {
        let id = self.next_request;
        self.next_request += 1;
        let request = Outstanding {
            body: body.clone(),
            purpose,
            seq,
            sent: 1,
        };
        self.outstanding.insert(id, request);
        (id, body)
    }
}

/// What a worker gives back for a job.
fn result_of(job: JobId) -> Bytes {
    Bytes::copy_from_slice(&job.to_bytes())
}

/// A payload that tells which job it is of.
fn payload_of(number: u64, padding: u64) -> Bytes {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(8 + usize::try_from(padding).expect("small"), number as u8);
    payload.into()
}

fn number_of(payload: &Bytes) -> u64 {
    let number = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
    assert!(
        payload[8..].iter().all(|byte| *byte == number as u8),
        "payload of {number} changed"
    );
    number
}

/// The ids among which an audit looks: see [`Ledger::audit`].
pub type Audit = Vec<(JobId, bool)>;
