//! A client of the simulated node: producer, worker and operator in one, with a session.
//!
//! It keeps every request until it is answered and sends it again after a crash, under the same
//! number, as a real client does.

use super::asking::{
    Place, ack, command, extend, find_queue, give_back, lease_wait_ms, new_job, take_finished,
    take_grants, take_held,
};
use super::ledger::Ledger;
use crate::base::code::Code;
use crate::base::ids::{GroupId, JobId, LogIndex, SessionId, Token};
use crate::base::prng::Prng;
use crate::queue::command::{
    Command, Enqueued, ItemOutcome, Op, Outcome, QueueInfo, QueueSettings, Rejection, SessionCall,
    Window,
};
use crate::queue::view::JobState;
use crate::wire::message::{LeasedJob, Reply, ReplyBody, RequestBody};
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
    /// Its partition, once that is known.
    place: Option<Place>,
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
            place: None,
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

    /// Whether jobs may still be made that it has asked for.
    #[must_use]
    pub fn produces(&self) -> bool {
        let mut requests = self.outstanding.values();
        requests.any(|request| matches!(request.purpose, Purpose::Enqueue(_)))
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
        let Some(place) = self.place else {
            return self.find_queue();
        };
        if self.session.is_none() {
            let op = Op::OpenSession {
                worker_timeout_ms: WORKER_TIMEOUT_MS,
            };
            return self.send_once(command(place.group, op, 0), Purpose::Session);
        }
        match prng.below(20) {
            16 => Some(self.send(place.watch(prng), Purpose::Watch, None)),
            17 => self.wait(prng),
            18 => self.look(prng, ledger),
            0..=4 if produce => self.enqueue(place, prng, ledger),
            0..=1 | 5..=8 => self.lease(place, prng),
            2..=4 | 9..=12 => self.finish(prng, ledger),
            // When all that is left is worked off, nobody makes that last longer.
            13 | 15 | 19 if !produce => self.finish(prng, ledger),
            13 => self.give_back(prng),
            14 => {
                let sessions = self.session.iter().map(|s| (place.group, s.id)).collect();
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
                    take_finished(id, &job, ledger);
                }
                purpose => panic!("{purpose:?} was answered by {job:?}"),
            },
            ReplyBody::Leased(jobs) => self.on_leased(&request, &jobs, at, ledger),
            ReplyBody::Outcome(outcome) => self.on_outcome(&request, outcome, at, ledger),
            ReplyBody::HeartbeatTaken { unknown } => {
                if let (Some(place), Some(session)) = (self.place, self.session)
                    && unknown.contains(&(place.group, session.id))
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
                if let (Some(place), Some(session)) = (self.place, self.session) {
                    let op = Op::Attach {
                        session: session.id,
                    };
                    self.send(command(place.group, op, 0), Purpose::Attach, None);
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
        jobs: &[LeasedJob],
        at: LogIndex,
        ledger: &mut Ledger,
    ) {
        let granted = take_grants(jobs, at, request.sent > 1, ledger);
        self.held.extend(granted);
    }

    /// Finds or makes the queue.
    fn find_queue(&mut self) -> Option<(u64, RequestBody)> {
        let body = find_queue(&self.name, self.settings, self.home);
        let purpose = match self.settings {
            Some(_) => Purpose::Create,
            None => Purpose::Queue,
        };
        self.send_once(body, purpose)
    }

    fn take_queue(&mut self, info: &QueueInfo) {
        self.place = Some(Place::of(info, self.number));
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
        place: Place,
        prng: &mut Prng,
        ledger: &mut Ledger,
    ) -> Option<(u64, RequestBody)> {
        let mut numbers = Vec::new();
        let mut items = Vec::new();
        for _ in 0..=prng.below(3) {
            self.next_job += 1;
            ledger.enqueue_sent(self.next_job);
            numbers.push(self.next_job);
            items.push(new_job(self.next_job, self.payload_bytes, prng));
        }
        let op = place.enqueue(items);
        Some(self.send_in_session(op, Window::Commands, 0, Purpose::Enqueue(numbers)))
    }

    fn lease(&mut self, place: Place, prng: &mut Prng) -> Option<(u64, RequestBody)> {
        let polling = self
            .outstanding
            .values()
            .any(|o| matches!(o.purpose, Purpose::Lease));
        if polling || self.held.len() >= HELD_MAX {
            return None;
        }
        let op = place.lease(prng, self.session?.epoch);
        let wait_ms = lease_wait_ms(prng);
        Some(self.send_in_session(op, Window::Polls, wait_ms, Purpose::Lease))
    }

    fn finish(&mut self, prng: &mut Prng, ledger: &mut Ledger) -> Option<(u64, RequestBody)> {
        let tokens = take_held(&mut self.held, prng);
        if tokens.is_empty() {
            return None;
        }
        tokens.iter().for_each(|token| ledger.end_sent(token.job));
        let op = ack(&tokens);
        Some(self.send_in_session(op, Window::Commands, 0, Purpose::End(tokens)))
    }

    fn give_back(&mut self, prng: &mut Prng) -> Option<(u64, RequestBody)> {
        let tokens = take_held(&mut self.held, prng);
        if tokens.is_empty() {
            return None;
        }
        let op = give_back(tokens, prng);
        Some(self.send_in_session(op, Window::Commands, 0, Purpose::GiveBack))
    }

    fn extend(&mut self, prng: &mut Prng) -> Option<(u64, RequestBody)> {
        let op = extend(*self.held.first()?, prng);
        Some(self.send_in_session(op, Window::Commands, 0, Purpose::GiveBack))
    }

    fn forget_session(&mut self) {
        self.session = None;
        self.held.clear();
        self.outstanding.retain(|_, request| request.seq.is_none());
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
            group: self.place.expect("its queue is known").group,
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

/// The ids among which an audit looks: see [`Ledger::audit`].
pub type Audit = Vec<(JobId, bool)>;
