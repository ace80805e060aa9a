//! What the client decides, without a socket or a clock: which request goes when and where, what is
//! sent again after a lost connection, and what may be said of a request without an answer.
//!
//! ```text
//! Input::Call ─> waiting ──(link up? session open? number free?)──> Effect::Send
//!                  ^                                                    │
//!                  └── link lost, Busy, NotLeader, ... (same number) ───┤
//!                                                                       v
//! Effect::Done <── answer, final refusal, deadline <──────────── Input::Received
//! ```
//!
//! The same shape as the shard engine: [`ClientCore::handle`], [`ClientCore::drain`],
//! [`ClientCore::next_deadline`]; so that a simulator can drive it. Invariants:
//!
//! - A mutating command keeps its session and number over all sends, so that it takes effect once.
//! - A number is settled only when its answer is here or nobody waits for it; the lowest unsettled
//!   number rides in every command.
//! - A request that was sent and not answered ends as [`Code::Unknown`], never as a plain failure,
//!   unless it is harmless (a read) or certainly refused.
//! - Grants whose answer can reach nobody are released.

use crate::base::code::Code;
use crate::base::ids::{GroupId, SessionId, Token};
use crate::base::limits::ITEMS_MAX;
use crate::base::units::Monotonic;
use crate::client::error::Error;
use crate::client::group::{GroupSession, SessionState};
use crate::client::links::{Arrival, Links, Target, ToConnect};
pub use crate::client::links::{ConnNo, Route};
use crate::wire::message::{
    ErrorReply, LeasedJob, Reply, ReplyBody, Request, RequestBody, ServerHello,
};
use crate::wire::{Command, ItemOutcome, Op, Outcome, Rejection, SessionCall, Window};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Number of a call and of its request; from 1, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// Whether commands run in sessions, so that a retry is never a second application.
    pub sessions: bool,
    /// Silent this long, the jobs leased go back; heartbeats are sent three times as often.
    pub worker_timeout: Duration,
    /// The bound of the first wait before a new attempt.
    pub backoff_min: Duration,
    /// The bound of every wait before a new attempt.
    pub backoff_max: Duration,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for CoreOptions {
    fn default() -> Self {
        Self {
            sessions: true,
            worker_timeout: Duration::from_millis(crate::base::limits::WORKER_TIMEOUT_MS),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_secs(1),
            seed: 0,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// Somebody asks; the id is of [`ClientCore::take_id`].
    Call {
        /// The call.
        id: CallId,
        /// Where to.
        route: Route,
        /// What.
        body: RequestBody,
        /// How long to try; for a lease, beyond its own wait.
        patience: Duration,
    },
    /// Nobody waits for this call any more.
    Abandoned {
        /// The call.
        id: CallId,
        /// Its answer, if it has ended already and the answer reached nobody.
        answer: Option<Reply>,
    },
    /// A connection was made, and the server said hello.
    Connected {
        /// The connection.
        conn: ConnNo,
        /// What it said.
        hello: ServerHello,
    },
    /// A connection is gone, or could not be made.
    Disconnected {
        /// The connection.
        conn: ConnNo,
        /// Why.
        error: Error,
    },
    /// A reply came.
    Received {
        /// The connection.
        conn: ConnNo,
        /// The reply.
        reply: Reply,
    },
    /// The deadline passed.
    Tick,
    /// The client is done: says bye, and ends all calls.
    Close {
        /// The call that ends when the byes are answered or the connections gone.
        id: CallId,
    },
}

/// What to do.
#[derive(Debug)]
pub enum Effect {
    /// Connect and say hello; then `Connected`, or `Disconnected`.
    Connect {
        /// The connection to be.
        conn: ConnNo,
        /// `host:port`.
        address: String,
    },
    /// Send [`ClientCore::request`] of this id, as it is now.
    Send {
        /// The connection.
        conn: ConnNo,
        /// The request.
        id: CallId,
    },
    /// Close a connection that the core has forgotten.
    Disconnect {
        /// The connection.
        conn: ConnNo,
    },
    /// A call has ended.
    Done {
        /// The call.
        id: CallId,
        /// How.
        result: Result<Reply, Error>,
    },
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Caller,
    /// A caller that went away; the answer of a lease is given back.
    Nobody,
    OpenSession(GroupId),
    Attach(GroupId),
    GiveBack,
    Heartbeat,
    Bye,
}

#[derive(Debug)]
struct Pending {
    request: Request,
    route: Route,
    origin: Origin,
    /// Where it was sent and its answer is awaited.
    sent_on: Option<ConnNo>,
    /// Not to be sent again before this.
    not_before: Monotonic,
    deadline: Monotonic,
    /// Leases: until when to wait for the first job.
    poll_until: Monotonic,
    /// A send of it went without an answer: it may have taken effect.
    unanswered: bool,
    /// Sends that were refused.
    refusals: u32,
    last_error: Option<Error>,
}

impl Pending {
    fn command(&self) -> Option<(GroupId, &Command)> {
        match &self.request.body {
            RequestBody::Command { group, command, .. } => Some((*group, command)),
            _ => None,
        }
    }

    fn command_mut(&mut self) -> Option<&mut Command> {
        match &mut self.request.body {
            RequestBody::Command { command, .. } => Some(command),
            _ => None,
        }
    }

    fn is_lease(&self) -> bool {
        matches!(
            self.command(),
            Some((
                _,
                Command {
                    op: Op::Lease { .. },
                    ..
                }
            ))
        )
    }

    /// Whether doing it twice is worse than doing it once. A lease is not: what it grants and
    /// nobody hears of goes back by itself.
    fn is_mutating(&self) -> bool {
        self.command().is_some() && !self.is_lease()
    }

    fn is_numbered(&self) -> bool {
        self.command()
            .is_some_and(|(_, command)| command.session.is_some())
    }

    /// Whether it may be sent again although an earlier send may have taken effect.
    fn is_repeatable(&self) -> bool {
        let harmless = matches!(self.origin, Origin::OpenSession(_) | Origin::Attach(_));
        harmless || self.is_numbered() || !self.is_mutating()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Byes are under way; this call ends with them.
    Closing(CallId),
    Closed,
}

/// See the head of this file.
#[derive(Debug)]
pub struct ClientCore {
    options: CoreOptions,
    links: Links,
    groups: BTreeMap<GroupId, GroupSession>,
    requests: BTreeMap<CallId, Pending>,
    /// Requests that are not under way.
    waiting: BTreeSet<CallId>,
    next_id: u64,
    /// No request's deadline is earlier.
    earliest_deadline: Option<Monotonic>,
    phase: Phase,
    effects: Vec<Effect>,
}

impl ClientCore {
    /// A client of the cluster that is reached at any of `addresses`; connects at the first call.
    ///
    /// # Panics
    /// Without an address.
    #[must_use]
    pub fn new(addresses: Vec<String>, options: CoreOptions) -> Self {
        let backoff = (options.backoff_min, options.backoff_max);
        Self {
            links: Links::new(addresses, backoff, options.seed),
            options,
            groups: BTreeMap::new(),
            requests: BTreeMap::new(),
            waiting: BTreeSet::new(),
            next_id: 1,
            earliest_deadline: None,
            phase: Phase::Open,
            effects: Vec::new(),
        }
    }

    /// The number of a new call.
    pub fn take_id(&mut self) -> CallId {
        let id = CallId(self.next_id);
        self.next_id += 1;
        id
    }

    /// A request, as it is to be sent now.
    #[must_use]
    pub fn request(&self, id: CallId) -> Option<&Request> {
        self.requests.get(&id).map(|pending| &pending.request)
    }

    /// What the last server said of itself and its cluster.
    #[must_use]
    pub fn hello(&self) -> Option<&ServerHello> {
        self.links.hello()
    }

    /// The home group of a queue; `None` before the first hello.
    #[must_use]
    pub fn home_group(&self, name: &str) -> Option<GroupId> {
        self.links.home_group(name)
    }

    /// Takes what happened; what is to be done for it comes from [`Self::drain`].
    pub fn handle(&mut self, now: Monotonic, input: Input) {
        match input {
            Input::Call {
                id,
                route,
                body,
                patience,
            } => self.call(now, id, route, body, patience),
            Input::Abandoned { id, answer } => self.abandoned(now, id, answer),
            Input::Connected { conn, hello } => self.connected(now, conn, hello),
            Input::Disconnected { conn, error } => self.disconnected(now, conn, &error),
            Input::Received { conn, reply } => self.received(now, conn, reply),
            Input::Tick => self.tick(now),
            Input::Close { id } => self.close(now, id),
        }
    }

    /// Moves what is to be done to `out`, in order.
    pub fn drain(&mut self, out: &mut Vec<Effect>) {
        out.append(&mut self.effects);
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let retries = self.waiting.iter().filter_map(|id| {
            let pending = self.requests.get(id)?;
            (pending.not_before > Monotonic(0)).then_some(pending.not_before)
        });
        let beats = self.links.up_links().map(|(_, up)| up.next_beat);
        let connects = self.links.next_attempt().filter(|_| self.needs_links());
        retries
            .chain(beats)
            .chain(connects)
            .chain(self.earliest_deadline)
            .min()
    }

    fn needs_links(&self) -> bool {
        !self.waiting.is_empty() || self.groups.values().any(GroupSession::is_working)
    }

    // ---- calls -----------------------------------------------------------------------------

    fn call(
        &mut self,
        now: Monotonic,
        id: CallId,
        route: Route,
        body: RequestBody,
        patience: Duration,
    ) {
        if self.phase != Phase::Open {
            let error = Error::new(Code::Stopping, "the client is closed");
            self.effects.push(Effect::Done {
                id,
                result: Err(error),
            });
            return;
        }
        self.add(now, id, route, body, patience, Origin::Caller);
        self.dispatch(now, id);
    }

    fn add(
        &mut self,
        now: Monotonic,
        id: CallId,
        route: Route,
        body: RequestBody,
        patience: Duration,
        origin: Origin,
    ) {
        let wait_ms = match &body {
            RequestBody::Command { wait_ms, .. } => *wait_ms,
            _ => 0,
        };
        let poll_until = now.plus(Duration::from_millis(wait_ms.into()));
        let deadline = poll_until.plus(patience);
        let pending = Pending {
            request: Request { id: id.0, body },
            route,
            origin,
            sent_on: None,
            not_before: Monotonic(0),
            deadline,
            poll_until,
            unanswered: false,
            refusals: 0,
            last_error: None,
        };
        self.requests.insert(id, pending);
        self.waiting.insert(id);
        let earliest = self
            .earliest_deadline
            .map_or(deadline, |at| at.min(deadline));
        self.earliest_deadline = Some(earliest);
    }

    /// Adds a request of the core's own and sends it when that is possible.
    fn ask(&mut self, now: Monotonic, route: Route, body: RequestBody, origin: Origin) {
        let id = self.take_id();
        let patience = self.options.worker_timeout.saturating_mul(3);
        self.add(now, id, route, body, patience, origin);
        self.dispatch(now, id);
    }

    fn ask_command(&mut self, now: Monotonic, group: GroupId, op: Op, origin: Origin) {
        let body = RequestBody::Command {
            group,
            command: Command { session: None, op },
            wait_ms: 0,
        };
        self.ask(now, Route::Group(group), body, origin);
    }

    fn abandoned(&mut self, now: Monotonic, id: CallId, answer: Option<Reply>) {
        if let Some(reply) = answer {
            self.unexpected(now, reply);
        }
        let Some(pending) = self.requests.get_mut(&id) else {
            return;
        };
        pending.origin = Origin::Nobody;
        let harmless = pending.is_lease() || !pending.is_numbered();
        if pending.sent_on.is_none() && harmless {
            self.forget(id);
        }
    }

    // ---- sending ---------------------------------------------------------------------------

    /// Sends a waiting request if it can go now; else what it waits for is under way.
    fn dispatch(&mut self, now: Monotonic, id: CallId) {
        let Some(pending) = self.requests.get_mut(&id) else {
            return;
        };
        if pending.not_before > now {
            return;
        }
        pending.not_before = Monotonic(0);
        let target = self.links.target(pending.route);
        let Some(conn) = self.links.up(target) else {
            self.want(now, target);
            return;
        };
        if !self.take_place(now, id) {
            return;
        }
        let pending = self.requests.get_mut(&id).expect("it was there above");
        let left = pending.poll_until.since(now);
        if let RequestBody::Command { wait_ms, .. } = &mut pending.request.body {
            *wait_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        }
        pending.sent_on = Some(conn);
        self.waiting.remove(&id);
        self.effects.push(Effect::Send { conn, id });
    }

    /// Gives a command its session and number; false if it must wait for them.
    fn take_place(&mut self, now: Monotonic, id: CallId) -> bool {
        let sessions = self.options.sessions;
        let Some(pending) = self.requests.get_mut(&id) else {
            return false;
        };
        let RequestBody::Command { group, command, .. } = &mut pending.request.body else {
            return true;
        };
        let on_session = matches!(
            command.op,
            Op::OpenSession { .. } | Op::CloseSession { .. } | Op::Attach { .. }
        );
        if on_session || !sessions {
            return true;
        }
        let group = *group;
        let state = self.groups.entry(group).or_default();
        if let Some(call) = &mut command.session
            && state.id() != Some(call.id)
        {
            return true; // Of a session that is gone: the answer will say what became of it.
        }
        let session = match state.state {
            SessionState::Open(session) => session,
            SessionState::Opening => return false,
            SessionState::None => {
                state.state = SessionState::Opening;
                let timeout = self.options.worker_timeout.as_millis();
                let op = Op::OpenSession {
                    worker_timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
                };
                self.ask_command(now, group, op, Origin::OpenSession(group));
                return false;
            }
        };
        let mut window = Window::Commands;
        if let Op::Lease { epoch, .. } = &mut command.op {
            if state.attaching {
                return false;
            }
            *epoch = state.epoch;
            window = Window::Polls;
        }
        let seq = match &command.session {
            Some(call) => call.seq,
            None => match state.take_number(window) {
                Some(seq) => seq,
                None => return false,
            },
        };
        command.session = Some(SessionCall {
            id: session,
            seq,
            lowest: state.lowest(window),
            window,
        });
        true
    }

    /// Tries all that wait; after something that they may wait for.
    fn dispatch_waiting(&mut self, now: Monotonic) {
        let ids: Vec<CallId> = self.waiting.iter().copied().collect();
        for id in ids {
            self.dispatch(now, id);
        }
    }

    fn want(&mut self, now: Monotonic, target: Target) {
        if self.phase != Phase::Open {
            return;
        }
        let lookout = self.links.is_astray(target).then_some(Target::Seed);
        for target in [Some(target), lookout].into_iter().flatten() {
            if let Some(ToConnect { conn, address }) = self.links.want(now, target) {
                self.effects.push(Effect::Connect { conn, address });
            }
        }
    }

    // ---- connections -----------------------------------------------------------------------

    fn connected(&mut self, now: Monotonic, conn: ConnNo, hello: ServerHello) {
        if self.phase != Phase::Open {
            self.effects.push(Effect::Disconnect { conn });
            return;
        }
        let next_beat = now.plus(self.beat_interval());
        match self.links.arrived(conn, hello, next_beat) {
            Arrival::Stale => {}
            Arrival::Superfluous => self.effects.push(Effect::Disconnect { conn }),
            Arrival::Refused(error) => {
                self.effects.push(Effect::Disconnect { conn });
                self.disconnected(now, conn, &error);
            }
            Arrival::Serves(target, other) => {
                if let Some(conn) = other {
                    self.effects.push(Effect::Disconnect { conn });
                }
                self.attach_all(now, target);
            }
        }
        self.dispatch_waiting(now);
    }

    /// A new connection to a shard: its sessions that work are attached anew.
    fn attach_all(&mut self, now: Monotonic, target: Target) {
        let links = &self.links;
        let working = |(group, state): (&GroupId, &GroupSession)| {
            let here = links.target(Route::Group(*group)) == target;
            (here && state.is_working()).then_some(*group)
        };
        let groups: Vec<GroupId> = self.groups.iter().filter_map(working).collect();
        for group in groups {
            self.attach(now, group);
        }
    }

    fn attach(&mut self, now: Monotonic, group: GroupId) {
        let state = self.groups.entry(group).or_default();
        if let Some(session) = state.id().filter(|_| !state.attaching) {
            state.attaching = true;
            self.ask_command(now, group, Op::Attach { session }, Origin::Attach(group));
        }
    }

    fn disconnected(&mut self, now: Monotonic, conn: ConnNo, error: &Error) {
        if !self.links.lost(now, conn, error.clone()) {
            return;
        }
        let on_it =
            |(id, pending): (&CallId, &Pending)| (pending.sent_on == Some(conn)).then_some(*id);
        let lost: Vec<CallId> = self.requests.iter().filter_map(on_it).collect();
        for id in lost {
            self.unanswered(id, error);
        }
        if matches!(error.code(), Code::ProtocolMismatch | Code::WrongIdentity) {
            for id in std::mem::take(&mut self.waiting) {
                self.finish(now, id, Err(error.clone()));
            }
        }
        self.keep_links(now);
    }

    /// The connection went before the answer came.
    fn unanswered(&mut self, id: CallId, error: &Error) {
        let closing = self.phase != Phase::Open;
        let Some(pending) = self.requests.get_mut(&id) else {
            return;
        };
        pending.sent_on = None;
        pending.unanswered = true;
        pending.last_error = Some(error.clone());
        let nobody_asks = match pending.origin {
            Origin::Heartbeat | Origin::Bye => true,
            Origin::Nobody => !pending.is_mutating(),
            _ => false,
        };
        if nobody_asks {
            self.forget(id);
        } else if pending.is_repeatable() && !closing {
            self.waiting.insert(id);
        } else {
            let words = format!(
                "the connection was lost before the answer: {}",
                error.message()
            );
            self.end(id, Err(Error::unknown(words)));
        }
        self.check_closed();
    }

    /// Connects where something is waited for or kept alive.
    fn keep_links(&mut self, now: Monotonic) {
        let waiting = self.waiting.iter().filter_map(|id| self.requests.get(id));
        let mut routes: Vec<Route> = waiting
            .filter(|pending| pending.not_before <= now)
            .map(|pending| pending.route)
            .collect();
        let working = self.groups.iter().filter(|(_, state)| state.is_working());
        routes.extend(working.map(|(group, _)| Route::Group(*group)));
        for route in routes {
            let target = self.links.target(route);
            if self.links.up(target).is_none() {
                self.want(now, target);
            }
        }
    }

    // ---- answers ---------------------------------------------------------------------------

    fn received(&mut self, now: Monotonic, conn: ConnNo, reply: Reply) {
        self.links.heard(conn);
        let id = CallId(reply.id);
        let expected = self.requests.get(&id);
        if expected.is_none_or(|pending| pending.sent_on != Some(conn)) {
            self.unexpected(now, reply);
            return;
        }
        match reply.body {
            ReplyBody::Error(error) => self.refused(now, id, &error),
            ReplyBody::Outcome(Outcome::Rejected(Rejection::SessionExpired)) => {
                self.session_expired(now, id, reply);
            }
            ReplyBody::Outcome(Outcome::Rejected(Rejection::Reattach)) => {
                self.told_to_attach(now, id, reply);
            }
            _ => self.finish(now, id, Ok(reply)),
        }
    }

    /// An answer that nobody waits for any more: what it grants is given back.
    fn unexpected(&mut self, now: Monotonic, reply: Reply) {
        if let ReplyBody::Leased(jobs) = reply.body {
            self.give_back(now, jobs.iter().map(LeasedJob::token).collect());
        }
    }

    fn give_back(&mut self, now: Monotonic, items: Vec<Token>) {
        let Some(group) = items.first().map(|token| token.job.group()) else {
            return;
        };
        if self.phase == Phase::Open {
            self.ask_command(now, group, Op::Release { items }, Origin::GiveBack);
        }
    }

    fn refused(&mut self, now: Monotonic, id: CallId, reply: &ErrorReply) {
        let passing = matches!(
            reply.code,
            Code::NotLeader | Code::Busy | Code::DiskFull | Code::Stopping
        );
        let error = Error::from_reply(reply);
        let pending = self.requests.get_mut(&id).expect("checked by `received`");
        pending.unanswered |= reply.maybe_applied;
        let again = passing || (reply.maybe_applied && reply.code == Code::Unknown);
        let given_up = matches!(pending.origin, Origin::Heartbeat | Origin::Bye);
        if !again || given_up || (pending.unanswered && !pending.is_repeatable()) {
            self.finish(now, id, Err(error));
            return;
        }
        pending.sent_on = None;
        pending.last_error = Some(error);
        pending.refusals += 1;
        let refusals = pending.refusals;
        let mut wait = self.links.backoff(refusals);
        if let Route::Group(group) = pending.route
            && reply.code == Code::NotLeader
            && self.links.leader_moved(group, reply.leader.as_deref())
        {
            if refusals <= 3 {
                wait = Duration::ZERO;
            }
            self.attach_if_working(now, group);
        }
        let pending = self.requests.get_mut(&id).expect("it was there above");
        pending.not_before = now.plus(wait);
        self.waiting.insert(id);
        self.dispatch(now, id);
    }

    fn attach_if_working(&mut self, now: Monotonic, group: GroupId) {
        if self
            .groups
            .get(&group)
            .is_some_and(GroupSession::is_working)
        {
            self.attach(now, group);
        }
    }

    /// Its session is gone. What was sent once and answered by this never happened, and is asked
    /// again in a new session; what was sent before without an answer may have.
    fn session_expired(&mut self, now: Monotonic, id: CallId, reply: Reply) {
        let pending = self.requests.get_mut(&id).expect("checked by `received`");
        let retry = pending.is_lease() || !pending.unanswered;
        let numbered = pending
            .command_mut()
            .and_then(|command| command.session.take());
        let Some(call) = numbered else {
            if let (Origin::Attach(group), Some((_, command))) = (pending.origin, pending.command())
                && let Op::Attach { session } = command.op
            {
                self.drop_session(group, session);
            }
            self.finish(now, id, Ok(reply));
            return;
        };
        let group = pending
            .command()
            .map(|(group, _)| group)
            .unwrap_or_default();
        pending.sent_on = None;
        if retry {
            self.waiting.insert(id);
        }
        self.drop_session(group, call.id);
        if retry {
            self.dispatch(now, id);
        } else {
            let words = "its session expired before the answer came";
            self.finish(now, id, Err(Error::unknown(words)));
        }
    }

    fn drop_session(&mut self, group: GroupId, session: SessionId) {
        let state = self.groups.entry(group).or_default();
        if state.id() == Some(session) {
            *state = GroupSession::default();
        }
    }

    /// The session's leases were ended: a lease is asked again, with another number, once attached.
    fn told_to_attach(&mut self, now: Monotonic, id: CallId, reply: Reply) {
        let pending = self.requests.get_mut(&id).expect("checked by `received`");
        let numbered = pending
            .command_mut()
            .and_then(|command| command.session.take());
        let (Some(call), Route::Group(group)) = (numbered, pending.route) else {
            self.finish(now, id, Ok(reply));
            return;
        };
        pending.sent_on = None;
        self.waiting.insert(id);
        let state = self.groups.entry(group).or_default();
        if state.id() == Some(call.id) {
            state.settle(call.window, call.seq);
            self.attach(now, group);
        }
        self.dispatch(now, id);
    }

    // ---- ends ------------------------------------------------------------------------------

    /// The request has its answer: tells who asked, and does what follows from it.
    fn finish(&mut self, now: Monotonic, id: CallId, result: Result<Reply, Error>) {
        let Some((origin, group)) = self.requests.get(&id).map(|pending| {
            let group = pending.command().map(|(group, _)| group);
            (pending.origin, group)
        }) else {
            return;
        };
        if let Ok(reply) = &result {
            self.note_grants(now, id, &reply.body);
        }
        match origin {
            Origin::OpenSession(group) => self.session_opened(now, group, &result),
            Origin::Attach(group) => self.attached(group, &result),
            Origin::Heartbeat => self.heartbeat_taken(now, &result),
            Origin::Nobody => {
                if let Ok(Reply {
                    body: ReplyBody::Leased(jobs),
                    ..
                }) = &result
                {
                    self.give_back(now, jobs.iter().map(LeasedJob::token).collect());
                }
            }
            Origin::Caller | Origin::GiveBack | Origin::Bye => {}
        }
        self.end(id, result);
        if let Some(group) = group {
            let state = self.groups.entry(group).or_default();
            let unclaimed = state.take_unclaimed();
            self.give_back(now, unclaimed);
        }
        if !self.waiting.is_empty() {
            self.dispatch_waiting(now);
        }
        self.check_closed();
    }

    /// Keeps account of what this client holds.
    fn note_grants(&mut self, now: Monotonic, id: CallId, body: &ReplyBody) {
        let Some((group, command)) = self.requests.get(&id).and_then(Pending::command) else {
            return;
        };
        let state = self.groups.entry(group).or_default();
        if command
            .session
            .is_none_or(|call| state.id() != Some(call.id))
        {
            return;
        }
        let outcomes = match body {
            ReplyBody::Leased(jobs) => {
                for job in jobs {
                    state.granted(job.token(), now, job.lease_ms);
                }
                return;
            }
            ReplyBody::Outcome(Outcome::Items(outcomes)) => outcomes,
            _ => return,
        };
        match &command.op {
            Op::Ack { items } => items.iter().for_each(|item| state.ended(item.token)),
            Op::Nack { items } => items.iter().for_each(|item| state.ended(item.token)),
            Op::Release { items } => items.iter().for_each(|token| state.ended(*token)),
            Op::Bury { items } => items.iter().for_each(|(token, _)| state.ended(*token)),
            Op::Extend { items } => {
                for ((token, lease_ms), outcome) in items.iter().zip(outcomes) {
                    match outcome {
                        ItemOutcome::Done => state.extended(*token, now, *lease_ms),
                        ItemOutcome::Rejected(_) => state.ended(*token),
                    }
                }
            }
            _ => {}
        }
    }

    fn session_opened(&mut self, now: Monotonic, group: GroupId, result: &Result<Reply, Error>) {
        let state = self.groups.entry(group).or_default();
        let error = match result {
            Ok(Reply {
                body: ReplyBody::Outcome(Outcome::SessionOpened { session, epoch }),
                ..
            }) => {
                state.state = SessionState::Open(*session);
                state.epoch = *epoch;
                return;
            }
            Ok(Reply {
                body: ReplyBody::Outcome(Outcome::Rejected(rejection)),
                ..
            }) => Error::rejected(*rejection),
            Ok(_) => Error::new(Code::BadFrame, "a strange answer to OpenSession"),
            Err(error) => error.clone(),
        };
        state.state = SessionState::None;
        let for_session = |(id, pending): (&CallId, &Pending)| {
            let here = pending.command().is_some_and(|(at, _)| at == group);
            let stranded = pending.sent_on.is_none() && !pending.is_numbered();
            let internal = matches!(pending.origin, Origin::OpenSession(_) | Origin::Attach(_));
            (here && stranded && !internal).then_some(*id)
        };
        let stranded: Vec<CallId> = self.requests.iter().filter_map(for_session).collect();
        for id in stranded {
            self.finish(now, id, Err(error.clone()));
        }
    }

    fn attached(&mut self, group: GroupId, result: &Result<Reply, Error>) {
        let state = self.groups.entry(group).or_default();
        match result {
            Ok(Reply {
                body: ReplyBody::Outcome(Outcome::Attached { epoch, tokens }),
                ..
            }) => state.attached(*epoch, tokens.clone()),
            _ => state.attaching = false,
        }
    }

    fn heartbeat_taken(&mut self, now: Monotonic, result: &Result<Reply, Error>) {
        let Ok(Reply {
            body: ReplyBody::HeartbeatTaken { unknown },
            ..
        }) = result
        else {
            return;
        };
        for (group, session) in unknown {
            let ours = self.groups.get(group).and_then(GroupSession::id);
            if ours == Some(*session) {
                self.attach(now, *group);
            }
        }
    }

    /// Takes a request out and settles its number.
    fn forget(&mut self, id: CallId) -> Option<Pending> {
        let pending = self.requests.remove(&id)?;
        self.waiting.remove(&id);
        if let Some((group, command)) = pending.command()
            && let Some(call) = command.session
        {
            let state = self.groups.entry(group).or_default();
            if state.id() == Some(call.id) {
                state.settle(call.window, call.seq);
            }
        }
        Some(pending)
    }

    /// Takes a request out and tells its caller.
    fn end(&mut self, id: CallId, result: Result<Reply, Error>) {
        if let Some(pending) = self.forget(id)
            && pending.origin == Origin::Caller
        {
            self.effects.push(Effect::Done { id, result });
        }
    }

    // ---- time ------------------------------------------------------------------------------

    fn tick(&mut self, now: Monotonic) {
        if self.earliest_deadline.is_some_and(|at| at <= now) {
            self.expire(now);
        }
        self.links.end_waits(now);
        self.beat(now);
        self.keep_links(now);
        self.dispatch_waiting(now);
    }

    fn expire(&mut self, now: Monotonic) {
        let late = |(id, pending): (&CallId, &Pending)| (pending.deadline <= now).then_some(*id);
        let late: Vec<CallId> = self.requests.iter().filter_map(late).collect();
        for id in late {
            if let Some(pending) = self.requests.get(&id) {
                let error = self.given_up(pending);
                self.finish(now, id, Err(error));
            }
        }
        self.earliest_deadline = self.requests.values().map(|pending| pending.deadline).min();
    }

    /// What may be said of a request without an answer.
    fn given_up(&self, pending: &Pending) -> Error {
        let under_way = pending.sent_on.is_some() || pending.unanswered;
        let last = pending.last_error.as_ref();
        if pending.is_mutating() && under_way {
            let last = last.map_or(String::new(), |error| format!("; last: {error}"));
            return Error::unknown(format!("no answer within the deadline{last}"));
        }
        let link = self.links.up(self.links.target(pending.route));
        let unreachable = self.links.last_error().filter(|_| link.is_none());
        last.or(unreachable)
            .cloned()
            .unwrap_or_else(|| Error::new(Code::Timeout, "no answer within the deadline"))
    }

    fn beat_interval(&self) -> Duration {
        self.options.worker_timeout / 3
    }

    /// Heartbeats on connections where sessions work or something is awaited; a connection that
    /// does not answer them is given up.
    fn beat(&mut self, now: Monotonic) {
        let due: Vec<ConnNo> = self
            .links
            .up_links()
            .filter(|(_, up)| up.next_beat <= now)
            .map(|(_, up)| up.conn)
            .collect();
        let interval = self.beat_interval();
        for conn in due {
            let Some((target, up)) = self.links.up_mut(conn) else {
                continue;
            };
            up.next_beat = now.plus(interval);
            if let Some(since) = up.unanswered_beat
                && now.since(since) >= self.options.worker_timeout
            {
                self.effects.push(Effect::Disconnect { conn });
                let error = Error::new(Code::ConnectionTimeout, "the server does not answer");
                self.disconnected(now, conn, &error);
                continue;
            }
            let sessions = self.working_sessions(now, target);
            let awaited = || {
                self.requests
                    .values()
                    .any(|pending| pending.sent_on == Some(conn))
            };
            if sessions.is_empty() && !awaited() {
                continue;
            }
            if let Some((_, up)) = self.links.up_mut(conn) {
                up.unanswered_beat.get_or_insert(now);
            }
            let Target::Shard(node, shard) = target else {
                continue;
            };
            let mut rest = sessions.as_slice();
            loop {
                let (part, after) = rest.split_at(rest.len().min(ITEMS_MAX));
                let body = RequestBody::Heartbeat {
                    sessions: part.to_vec(),
                };
                self.ask(now, Route::Shard(node, shard), body, Origin::Heartbeat);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
        }
    }

    fn working_sessions(&mut self, now: Monotonic, target: Target) -> Vec<(GroupId, SessionId)> {
        let links = &self.links;
        let mut sessions = Vec::new();
        for (group, state) in &mut self.groups {
            state.forget_old_grants(now);
            if state.is_working() && links.target(Route::Group(*group)) == target {
                sessions.extend(state.id().map(|id| (*group, id)));
            }
        }
        sessions
    }

    // ---- the end ---------------------------------------------------------------------------

    fn close(&mut self, now: Monotonic, id: CallId) {
        let unfinished: Vec<CallId> = self.requests.keys().copied().collect();
        for id in unfinished {
            if let Some(pending) = self.requests.get(&id) {
                let under_way = pending.sent_on.is_some() || pending.unanswered;
                let words = "the client was closed before the answer";
                let error = if pending.is_mutating() && under_way {
                    Error::unknown(words)
                } else {
                    Error::new(Code::Stopping, words)
                };
                self.end(id, Err(error));
            }
        }
        self.groups.clear();
        let targets: Vec<Target> = self.links.up_links().map(|(target, _)| target).collect();
        for target in targets {
            if let Target::Shard(node, shard) = target {
                self.ask(
                    now,
                    Route::Shard(node, shard),
                    RequestBody::Bye,
                    Origin::Bye,
                );
            }
        }
        self.phase = Phase::Closing(id);
        self.check_closed();
    }

    fn check_closed(&mut self) {
        let Phase::Closing(id) = self.phase else {
            return;
        };
        if !self.requests.is_empty() {
            return;
        }
        self.phase = Phase::Closed;
        let links = self.links.up_links().map(|(_, up)| up.conn);
        let closes = links.map(|conn| Effect::Disconnect { conn });
        self.effects.extend(closes);
        let result = Ok(Reply {
            id: id.0,
            stamp: None,
            body: ReplyBody::Outcome(Outcome::Done),
        });
        self.effects.push(Effect::Done { id, result });
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
