//! A client of the simulated cluster that uses the client library: a program around a [`ClientCore`], which
//! sends again, moves on, keeps sessions and gives back by itself.
//!
//! The program asks as the verbs of the library do, loses patience, drops calls, closes its client or
//! dies, and goes on with a new one. It holds what it is told against the [`Ledger`]:
//!
//! | what a call ends with | what must hold |
//! | --- | --- |
//! | an answer | as for every client |
//! | an error that leaves open what happened | it was sent; done or not, never twice |
//! | any other error | nothing was done |
//! | nothing, to its deadline | never |
//! | an error, where all is well | never |
//!
//! | file | holds |
//! | --- | --- |
//! | `core_client/asks.rs` | what the program asks |
//! | `core_client/ends.rs` | what its calls may end with |
//!
//! Deliberately absent: the spreading over several partitions, and the worker's loop.

mod asks;
mod ends;

use super::asking::Place;
use super::ledger::Ledger;
use crate::base::ids::{GroupId, JobId, LogIndex, Token};
use crate::base::prng::{Prng, mix};
use crate::base::units::Monotonic;
use crate::client::session::{CallId, ClientCore, ConnNo, CoreOptions, Effect, Input, Kept};
use crate::queue::command::{NewJob, Op, QueueSettings};
use crate::wire::client::encode_request;
use crate::wire::message::{ReplyBody, RequestBody, WorkerInfo};
use bytes::BytesMut;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// A call ends when its patience does.
const LATE: Duration = Duration::from_millis(1);
/// How long the library waits for the byes to be answered.
const CLOSES_WITHIN: Duration = Duration::from_secs(1);

/// What goes on around a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Anything may befall the cluster, and the program is careless, too.
    Faults,
    /// Faults have ended, but not all is well.
    Heals,
    /// All is well, and no more jobs come.
    Drains,
    /// What it holds is all that it still finishes.
    Leaves,
}

/// When a program acts or is told something, and the books that are kept.
#[derive(Debug)]
pub struct Moment<'a> {
    /// By the clock of the world.
    pub now: Monotonic,
    /// What goes on.
    pub mood: Mood,
    /// What was promised.
    pub ledger: &'a mut Ledger,
}

/// What a call through the library went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Through {
    /// It was sent again after its connection was lost.
    Resent,
    /// It was sent to another node while the first owed an answer.
    Moved,
    /// It ended, and whether it was done is not known.
    Unknown,
    /// It ended with an error that says that nothing was done.
    Refused,
    /// Nobody waited for it any more.
    Abandoned,
    /// It was asked for again by its key, and had been done.
    Repeated,
    /// The library released jobs of which nobody was told.
    GivenBack,
    /// It ended with the client.
    Closed,
}

impl Through {
    /// Everything.
    pub const ALL: [Self; 8] = [
        Self::Resent,
        Self::Moved,
        Self::Unknown,
        Self::Refused,
        Self::Abandoned,
        Self::Repeated,
        Self::GivenBack,
        Self::Closed,
    ];
}

/// What the program wants of the network.
#[derive(Debug)]
pub enum Wish {
    /// A connection to an address.
    Connect(ConnNo, String),
    /// This frame is sent.
    Send(ConnNo, BytesMut),
    /// The connection ends.
    Disconnect(ConnNo),
}

/// New jobs with their numbers, all with keys or none.
#[derive(Clone)]
struct Batch {
    numbers: Vec<u64>,
    items: Vec<NewJob>,
    /// It was asked for before, and what came of it is not known.
    again: bool,
}

/// Without the payloads.
impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "jobs {:?}, again: {}", self.numbers, self.again)
    }
}

/// What a call is for.
#[derive(Clone, Debug)]
enum Purpose {
    /// To be connected.
    Reach,
    Queue,
    Enqueue(Batch),
    Lease,
    Ack(Vec<Token>),
    /// Release, nack.
    GiveBack(Vec<Token>),
    Extend,
    Watch,
    /// A job, or how it ended.
    Look(JobId),
    Close,
}

#[derive(Debug)]
struct Call {
    purpose: Purpose,
    /// Whether it is a command that does more than lease.
    mutates: bool,
    /// When it ends at the latest.
    due: Monotonic,
    must_succeed: bool,
    /// What its answer must have seen.
    floor: (GroupId, LogIndex),
    /// Where an answer to it is due.
    under_way: Vec<ConnNo>,
    /// It was sent before, and may have been done.
    in_doubt: bool,
    sent: bool,
}

impl Call {
    fn new(purpose: Purpose, due: Monotonic, mood: Mood) -> Self {
        Self {
            purpose,
            mutates: false,
            due,
            must_succeed: matches!(mood, Mood::Drains | Mood::Leaves),
            floor: (GroupId(0), LogIndex(0)),
            under_way: Vec::new(),
            in_doubt: false,
            sent: false,
        }
    }

    fn sent_on(&mut self, conn: ConnNo) -> Option<Through> {
        let through = match (self.under_way.is_empty(), self.in_doubt) {
            (false, _) => Some(Through::Moved),
            (true, true) => Some(Through::Resent),
            (true, false) => None,
        };
        self.in_doubt |= through.is_some();
        self.under_way.push(conn);
        self.sent = true;
        through
    }
}

/// A program and its client.
#[derive(Debug)]
pub struct CoreClient {
    number: u64,
    name: String,
    settings: Option<QueueSettings>,
    payload_bytes: u64,
    /// Where the cluster may be reached, and how many of these each client is given at the least.
    addresses: (Vec<String>, usize),
    /// Of its own, so that it does not change what befalls the others.
    prng: Prng,
    core: ClientCore,
    /// Whether its commands run in sessions.
    sessions: bool,
    conns: BTreeSet<ConnNo>,
    calls: BTreeMap<CallId, Call>,
    /// It is being closed, until then.
    closing: Option<Monotonic>,
    place: Option<Place>,
    next_job: u64,
    held: Vec<Token>,
    /// Jobs with keys of which it is not known whether they are there: to be asked for again.
    in_doubt: Vec<Batch>,
    /// When its next tick comes.
    armed: Option<Monotonic>,
    /// Calls that were answered.
    pub answered: u64,
    /// What its calls went through.
    pub through: BTreeMap<Through, u64>,
}

impl CoreClient {
    /// Program `number` of a run, which works with the first partition of the queue of this name.
    #[must_use]
    pub fn new(
        (seed, number): (u64, u64),
        name: &str,
        settings: Option<QueueSettings>,
        payload_bytes: u64,
        addresses: (Vec<String>, usize),
    ) -> Self {
        let mut prng = Prng::new(mix(seed ^ mix(!number)));
        let (core, sessions) = draw_core(&addresses, &mut prng);
        Self {
            number,
            name: name.to_owned(),
            settings,
            payload_bytes,
            addresses,
            prng,
            core,
            sessions,
            conns: BTreeSet::new(),
            calls: BTreeMap::new(),
            closing: None,
            place: None,
            next_job: number << 32,
            held: Vec::new(),
            in_doubt: Vec::new(),
            armed: None,
            answered: 0,
            through: BTreeMap::new(),
        }
    }

    /// Draws of its own, also for what its connections go through.
    pub fn prng(&mut self) -> &mut Prng {
        &mut self.prng
    }

    /// When the next tick is due, if it is to be scheduled; not before `soonest`.
    pub fn arm(&mut self, soonest: Monotonic) -> Option<Monotonic> {
        let next = self.core.next_deadline()?.max(soonest);
        let is_sooner = self.armed.is_none_or(|armed| next < armed);
        is_sooner.then(|| *self.armed.insert(next))
    }

    /// Time has come to what it was armed for; another tick was armed since if this says nothing.
    pub fn tick(&mut self, at: &mut Moment<'_>) -> Vec<Wish> {
        if self.armed != Some(at.now) {
            return Vec::new();
        }
        self.armed = None;
        let wishes = self.hear(Input::Tick, at);
        let next = self.core.next_deadline();
        assert!(
            next.is_none_or(|next| next > at.now),
            "a tick at {:?} leaves something due: {:?}",
            at.now,
            self.core
        );
        wishes
    }

    /// Nothing is asked or held, or in doubt.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.held.is_empty() && self.in_doubt.is_empty()
    }

    /// Nothing is left to be done, and it was not closed; its client may be a new one, since closing the
    /// last was given up.
    #[must_use]
    pub fn is_to_close(&self) -> bool {
        self.is_idle() && self.closing.is_none()
    }

    /// It asks for new jobs, or is about to.
    #[must_use]
    pub fn produces(&self) -> bool {
        let is_enqueue = |call: &Call| matches!(call.purpose, Purpose::Enqueue(_));
        !self.in_doubt.is_empty() || self.calls.values().any(is_enqueue)
    }

    /// What the core keeps.
    #[must_use]
    pub fn kept(&self) -> Kept {
        self.core.kept()
    }

    /// A connection, or time, has something for the core.
    pub fn hear(&mut self, input: Input, at: &mut Moment<'_>) -> Vec<Wish> {
        match &input {
            Input::Disconnected { conn, .. } => self.lose(*conn),
            Input::Received { conn, reply } => {
                if let Some(call) = self.calls.get_mut(&CallId(reply.id)) {
                    call.under_way.retain(|at| at != conn);
                    if let ReplyBody::Error(error) = &reply.body {
                        call.in_doubt |= error.maybe_applied;
                    }
                }
            }
            _ => {}
        }
        self.core.handle(at.now, input);
        self.perform(at)
    }

    fn lose(&mut self, conn: ConnNo) {
        self.conns.remove(&conn);
        for call in self.calls.values_mut() {
            let before = call.under_way.len();
            call.under_way.retain(|at| *at != conn);
            call.in_doubt |= call.under_way.len() < before;
        }
    }

    fn note(&mut self, through: Through) {
        *self.through.entry(through).or_default() += 1;
    }

    /// Does what the core wants, until it wants nothing more.
    fn perform(&mut self, at: &mut Moment<'_>) -> Vec<Wish> {
        let (mut wishes, mut effects) = (Vec::new(), Vec::new());
        loop {
            self.core.drain(&mut effects);
            if effects.is_empty() {
                return wishes;
            }
            for effect in effects.drain(..) {
                match effect {
                    Effect::Connect { conn, address } => {
                        self.conns.insert(conn);
                        wishes.push(Wish::Connect(conn, address));
                    }
                    Effect::Send { conn, id } => wishes.extend(self.send(conn, id)),
                    Effect::Disconnect { conn } => {
                        self.lose(conn);
                        wishes.push(Wish::Disconnect(conn));
                    }
                    Effect::Done { id, result } => self.on_done(id, result, at),
                }
            }
        }
    }

    fn send(&mut self, conn: ConnNo, id: CallId) -> Option<Wish> {
        assert!(self.conns.contains(&conn), "{conn:?} is not there");
        let request = self.core.request(id)?;
        let mut frame = BytesMut::new();
        encode_request(request, &mut frame);
        let through = match (self.calls.get_mut(&id), &request.body) {
            (Some(call), _) => call.sent_on(conn),
            (None, RequestBody::Command { command, .. }) => {
                let gives_back = matches!(command.op, Op::Release { .. });
                gives_back.then_some(Through::GivenBack)
            }
            (None, _) => None,
        };
        through.into_iter().for_each(|through| self.note(through));
        Some(Wish::Send(conn, frame))
    }

    // ---- the program -----------------------------------------------------------------------

    /// What the program does next.
    pub fn act(&mut self, at: &mut Moment<'_>) -> Vec<Wish> {
        let now = at.now;
        if let Some(call) = self.calls.values().find(|call| call.due.plus(LATE) < now) {
            panic!("a call that must have ended has not, at {now:?}: {call:?}");
        }
        if let Some(until) = self.closing {
            // Who left before all did, and is not answered, is given up then, too.
            let goes_on = until <= now && (at.mood != Mood::Leaves || !self.calls.is_empty());
            return if goes_on {
                self.begin_anew()
            } else {
                Vec::new()
            };
        }
        if at.mood == Mood::Faults {
            match self.prng.below(300) {
                0 => return self.begin_anew(),
                1 => return self.close(at),
                2..=11 => self.abandon_one(now),
                _ => {}
            }
        }
        self.ask(at);
        self.perform(at)
    }

    /// The client is dropped, with its connections; the next one knows nothing of it.
    fn begin_anew(&mut self) -> Vec<Wish> {
        let conns = std::mem::take(&mut self.conns);
        let (core, sessions) = draw_core(&self.addresses, &mut self.prng);
        (self.core, self.sessions) = (core, sessions);
        for (_, call) in std::mem::take(&mut self.calls) {
            self.put_in_doubt(call.purpose);
        }
        self.held.clear();
        self.place = None;
        (self.closing, self.armed) = (None, None);
        conns.into_iter().map(Wish::Disconnect).collect()
    }

    /// The program says that it is done with its client.
    pub fn close(&mut self, at: &mut Moment<'_>) -> Vec<Wish> {
        let until = at.now.plus(CLOSES_WITHIN);
        self.closing = Some(until);
        let id = self.core.take_id();
        // The next act gives it up.
        let due = until.plus(CLOSES_WITHIN);
        self.calls
            .insert(id, Call::new(Purpose::Close, due, at.mood));
        self.hear(Input::Close { id }, at)
    }

    /// Whether it was closed, and the nodes have heard it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.core.is_closed() && self.calls.is_empty()
    }

    fn abandon_one(&mut self, now: Monotonic) {
        let nth = self.prng.below(self.calls.len().max(1) as u64) as usize;
        let Some(id) = self.calls.keys().nth(nth).copied() else {
            return;
        };
        let call = self.calls.remove(&id).expect("it was just seen");
        self.note(Through::Abandoned);
        self.put_in_doubt(call.purpose);
        self.core.handle(now, Input::Abandoned { id, answer: None });
    }

    /// A call ended, or was dropped, and whether it was done is not known: what the program does then.
    fn put_in_doubt(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Enqueue(batch) if batch.items.iter().any(|item| item.key.is_some()) => {
                self.in_doubt.push(Batch {
                    again: true,
                    ..batch
                });
            }
            Purpose::Ack(tokens) | Purpose::GiveBack(tokens) => self.held.extend(tokens),
            _ => {}
        }
    }
}

/// A new client, of some of the addresses; and whether its commands run in sessions.
fn draw_core((all, fewest): &(Vec<String>, usize), prng: &mut Prng) -> (ClientCore, bool) {
    let mut known = all.clone();
    while known.len() > *fewest && prng.chance(1, 2) {
        known.remove(prng.below(known.len() as u64) as usize);
    }
    let options = CoreOptions {
        sessions: prng.chance(7, 8),
        worker_timeout: Duration::from_secs([3, 10][prng.below(2) as usize]),
        seed: prng.next_u64(),
        ..CoreOptions::default()
    };
    let sessions = options.sessions;
    let mut core = ClientCore::new(known, options);
    if prng.chance(1, 4) {
        let worker = WorkerInfo {
            name: "simulated".to_owned(),
            tags: Vec::new(),
            capacity: 1,
        };
        core.handle(Monotonic(1), Input::Introduced(worker));
    }
    (core, sessions)
}
