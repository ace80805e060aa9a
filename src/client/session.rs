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
//! [`ClientCore::next_deadline`]; so that the simulator drives it as `tcp.rs` does. Invariants:
//!
//! - A mutating command keeps its session and number over all sends, so that it takes effect once.
//! - A number is settled only when its answer is here or nobody waits for it; the lowest unsettled
//!   number rides in every command.
//! - A request that was sent and not answered ends as [`Code::Unknown`], never as a plain failure,
//!   unless it is harmless (a read) or certainly refused.
//! - Grants whose answer can reach nobody are released.
//! - A request that is moved to another node while the first is silent may be answered by both: the
//!   first outcome counts, what comes later is dropped.

mod answers;
mod kept;
mod pending;
mod silence;
mod time;

use crate::base::bugs::{self, Bug};
use crate::base::code::Code;
use crate::base::ids::{GroupId, NodeId};
use crate::base::units::Monotonic;
use crate::client::error::Error;
use crate::client::group::{GroupSession, SessionState};
use crate::client::links::{Arrival, Links, Target, ToConnect};
pub use crate::client::links::{ConnNo, Route};
use crate::wire::message::{
    LeasedJob, Reply, ReplyBody, Request, RequestBody, ServerHello, WorkerInfo,
};
use crate::wire::{Command, Op, SessionCall, Window};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use kept::Kept;
use pending::{Origin, Pending};

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
        /// How long to try; for a lease, watch or wait, beyond its own wait.
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
    /// Who works here, for people; heartbeats carry it from now on.
    Introduced(WorkerInfo),
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
    worker: Option<WorkerInfo>,
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
            worker: None,
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

    /// The version that a node last said it has; `None` if it was never reached.
    #[must_use]
    pub fn version(&self, node: NodeId) -> Option<&String> {
        self.links.version(node)
    }

    /// Whether it was closed: no call can succeed any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase != Phase::Open
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
            Input::Introduced(worker) => self.introduced(now, worker),
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
        let looks = self.links.up_links().filter_map(|(_, up)| up.look_at);
        retries
            .chain(beats)
            .chain(looks)
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
            RequestBody::Command { wait_ms, .. }
            | RequestBody::Watch { wait_ms, .. }
            | RequestBody::WaitJob { wait_ms, .. } => *wait_ms,
            _ => 0,
        };
        let poll_until = now.plus(Duration::from_millis(wait_ms.into()));
        let deadline = poll_until.plus(patience);
        let pending = Pending {
            request: Request { id: id.0, body },
            route,
            origin,
            sent_on: None,
            sent_before: Vec::new(),
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
        self.add(now, id, route, body, self.own_patience(), origin);
        self.dispatch(now, id);
    }

    /// How long a request of this client itself may take.
    fn own_patience(&self) -> Duration {
        self.options.worker_timeout.saturating_mul(3)
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
        if let Some(Reply {
            body: ReplyBody::Leased(jobs),
            ..
        }) = answer
        {
            self.give_back(now, jobs.iter().map(LeasedJob::token).collect());
        }
        let Some(pending) = self.requests.get_mut(&id) else {
            return;
        };
        pending.origin = Origin::Nobody;
        let harmless = pending.is_lease() || !pending.is_numbered();
        if pending.sent_on.is_none() && harmless {
            let group = pending.command().map(|(group, _)| group);
            let is_unheard = self.give_up(id);
            self.forget(id);
            if let Some(group) = group.filter(|_| is_unheard) {
                self.attach(now, group);
            }
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
        let route = pending.route;
        self.leave_if_away(now, route);
        let target = self.links.target(route);
        let Some(conn) = self.links.up(target) else {
            self.want_for(now, route, target);
            return;
        };
        let group = match route {
            Route::Group(group) => Some(group),
            Route::Any | Route::Shard(..) => None,
        };
        if group.is_some_and(|group| !self.links.may_ask(now, group)) {
            return;
        }
        let Some(pending) = self.requests.get_mut(&id) else {
            return;
        };
        if let Some(at) = pending
            .sent_before
            .iter()
            .position(|before| *before == conn)
        {
            // It is under way there still.
            pending.sent_before.swap_remove(at);
            pending.sent_on = Some(conn);
            self.waiting.remove(&id);
            self.links.sent(now, conn);
            return;
        }
        if !self.take_place(now, id) {
            return;
        }
        if let Some(group) = group {
            self.links.asked(now, group, id);
        }
        self.links.sent(now, conn);
        let pending = self.requests.get_mut(&id).expect("it was there above");
        let left = pending.poll_until.since(now);
        if let Some(wait_ms) = pending.wait_ms_mut() {
            *wait_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        }
        pending.sent_on = Some(conn);
        self.waiting.remove(&id);
        self.effects.push(Effect::Send { conn, id });
    }

    /// A group whose node is away is looked for at another, with what works there.
    fn leave_if_away(&mut self, now: Monotonic, route: Route) {
        if let Route::Group(group) = route
            && self.links.leave_if_away(now, group)
        {
            tracing::debug!(group = group.0, "its node is away: another is asked");
            self.attach_if_working(now, group);
        }
    }

    /// Gives a command its session and number; false if it must wait for them.
    fn take_place(&mut self, now: Monotonic, id: CallId) -> bool {
        let sessions = self.options.sessions;
        let Some(pending) = self.requests.get_mut(&id) else {
            return false;
        };
        let forgets_number =
            bugs::on(Bug::ResendRenumbered) && pending.unanswered && pending.is_mutating();
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
        if forgets_number {
            command.session = None;
        }
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
            lowest: if bugs::on(Bug::LowestTooHigh) {
                seq
            } else {
                state.lowest(window)
            },
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
        let lookout = self.links.is_astray(target).then_some(Target::AnySeed);
        for target in [Some(target), lookout].into_iter().flatten() {
            if let Some(ToConnect { conn, address }) = self.links.want(now, target) {
                self.effects.push(Effect::Connect { conn, address });
            }
        }
    }

    // ---- connections -----------------------------------------------------------------------

    fn connected(&mut self, now: Monotonic, conn: ConnNo, hello: ServerHello) {
        if self.phase != Phase::Open {
            let error = Error::new(Code::Stopping, "the client is closed");
            if self.links.lost(now, conn, error) {
                self.effects.push(Effect::Disconnect { conn });
            }
            return;
        }
        let next_beat = now.plus(match self.worker {
            Some(_) => Duration::ZERO,
            None => self.beat_interval(),
        });
        match self.links.arrived(now, conn, hello, next_beat) {
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
                if self.links.is_lonely() {
                    // Its list may be of the first moments of a start.
                    self.want(now, Target::AnySeed);
                }
            }
        }
        self.dispatch_waiting(now);
    }

    /// A new connection to a shard: its sessions that work are attached anew.
    fn attach_all(&mut self, now: Monotonic, target: Target) {
        let links = &self.links;
        let working = |(group, state): (&GroupId, &GroupSession)| {
            let here = links.target(Route::Group(*group)) == target;
            (here && state.must_attach()).then_some(*group)
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
        let mut lost = Vec::new();
        for (id, pending) in &mut self.requests {
            pending.sent_before.retain(|before| *before != conn);
            if pending.sent_on == Some(conn) {
                lost.push(*id);
            }
        }
        for id in lost {
            self.unanswered(id, error);
        }
        let is_stranger = matches!(error.code(), Code::ProtocolMismatch | Code::WrongIdentity);
        if is_stranger && self.links.up_links().next().is_none() {
            for id in std::mem::take(&mut self.waiting) {
                self.finish(now, id, Err(error.clone()));
            }
        }
        self.keep_links(now);
        self.dispatch_waiting(now);
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
        if let Route::Group(group) = pending.route {
            self.links.not_asked(group, id);
        }
        let nobody_asks = match pending.origin {
            Origin::Heartbeat | Origin::Bye => true,
            Origin::Nobody => !pending.is_mutating(),
            _ => false,
        };
        if nobody_asks {
            // Its session is attached where a connection is made next.
            let _ = self.give_up(id);
            self.forget(id);
        } else if pending.is_repeatable() && !closing {
            tracing::debug!(request = id.0, "no answer; to be sent again");
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
            self.leave_if_away(now, route);
            let target = self.links.target(route);
            if self.links.up(target).is_none() {
                self.want_for(now, route, target);
            }
        }
    }

    /// Connects to where something is to go, and elsewhere if nobody knows better.
    fn want_for(&mut self, now: Monotonic, route: Route, target: Target) {
        self.want(now, target);
        if let Route::Group(group) = route
            && let Some(other) = self.links.elsewhere(now, group)
        {
            self.want(now, other);
        }
    }
}

#[cfg(test)]
mod tests;
