//! Deadlines, heartbeats, and the end of a client.

use super::pending::Origin;
use super::{CallId, ClientCore, Effect, Pending, Phase, Route};
use crate::base::bugs::{self, Bug};
use crate::base::code::Code;
use crate::base::ids::{GroupId, SessionId};
use crate::base::limits::ITEMS_MAX;
use crate::base::units::Monotonic;
use crate::client::error::Error;
use crate::client::group::GroupSession;
use crate::client::links::{ConnNo, Target};
use crate::wire::Outcome;
use crate::wire::message::{Reply, ReplyBody, RequestBody, WorkerInfo};
use std::time::Duration;

impl ClientCore {
    pub(super) fn tick(&mut self, now: Monotonic) {
        if self.earliest_deadline.is_some_and(|at| at <= now) {
            self.expire(now);
        }
        self.links.end_waits(now);
        self.look(now);
        self.beat(now);
        self.keep_links(now);
        self.dispatch_waiting(now);
    }

    pub(super) fn expire(&mut self, now: Monotonic) {
        let late = |(id, pending): (&CallId, &Pending)| (pending.deadline <= now).then_some(*id);
        let late: Vec<CallId> = self.requests.iter().filter_map(late).collect();
        for id in late {
            let wanted = self.wanted_until(now, id).filter(|until| *until > now);
            if let Some(until) = wanted
                && let Some(own) = self.requests.get_mut(&id)
            {
                own.deadline = until;
            } else if let Some(pending) = self.requests.get(&id) {
                let error = self.given_up(pending);
                self.finish(now, id, Err(error));
            }
        }
        self.earliest_deadline = self.requests.values().map(|pending| pending.deadline).min();
    }

    /// Until when a request of this client itself is needed: a session as long as somebody waits for it, and what
    /// the server holds for one as long as that is not known.
    fn wanted_until(&self, now: Monotonic, id: CallId) -> Option<Monotonic> {
        match self.requests.get(&id)?.origin {
            Origin::OpenSession(group) => {
                let waiting = self.waiting_for_session(group);
                waiting.map(|(_, pending)| pending.deadline).max()
            }
            Origin::Attach(group) => {
                let state = self.groups.get(&group);
                let is_wanted = state.is_some_and(GroupSession::must_attach);
                is_wanted.then(|| now.plus(self.own_patience()))
            }
            _ => None,
        }
    }

    /// Why the session that a request waits for is not open yet. The request itself was never sent, whatever
    /// became of that.
    fn why_no_session(&self, waits: &Pending) -> Option<Error> {
        let (group, _) = waits.command().filter(|_| waits.waits_for_session())?;
        let mut requests = self.requests.values();
        let opens = requests.find(|pending| pending.origin == Origin::OpenSession(group))?;
        let error = opens.last_error.as_ref()?;
        Some(Error::new(error.code(), error.message()))
    }

    /// What may be said of a request without an answer.
    pub(super) fn given_up(&self, pending: &Pending) -> Error {
        let under_way = pending.sent_on.is_some() || pending.unanswered;
        let last = pending.last_error.as_ref();
        if pending.is_mutating() && under_way && !bugs::on(Bug::UnansweredAsRefused) {
            let last = last.map_or(String::new(), |error| format!("; last: {error}"));
            return Error::unknown(format!("no answer within the deadline{last}"));
        }
        let link = self.links.up(self.links.target(pending.route));
        let unreachable = self.links.last_error().filter(|_| link.is_none());
        last.cloned()
            .or_else(|| unreachable.cloned())
            .or_else(|| self.why_no_session(pending))
            .unwrap_or_else(|| Error::new(Code::Timeout, "no answer within the deadline"))
    }

    /// The servers hear of it at once where something is under way, else with the next work.
    pub(super) fn introduced(&mut self, now: Monotonic, worker: WorkerInfo) {
        self.worker = Some(worker);
        self.beat_soon(now, None);
    }

    /// The next heartbeats are due now: on all connections, or on that of a route.
    pub(super) fn beat_soon(&mut self, now: Monotonic, route: Option<Route>) {
        let target = route.map(|route| self.links.target(route));
        let here = |of: &Target| target.is_none_or(|target| target == *of);
        let up = self.links.up_links().filter(|(of, _)| here(of));
        let conns: Vec<ConnNo> = up.map(|(_, up)| up.conn).collect();
        for conn in conns {
            if let Some((_, up)) = self.links.up_mut(conn) {
                up.next_beat = up.next_beat.min(now);
            }
        }
    }

    pub(super) fn beat_interval(&self) -> Duration {
        self.options.worker_timeout / 3
    }

    /// Heartbeats on connections where sessions work or something is awaited; a connection that
    /// does not answer them is given up.
    pub(super) fn beat(&mut self, now: Monotonic) {
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
                    worker: self.worker.clone(),
                };
                self.ask(now, Route::Shard(node, shard), body, Origin::Heartbeat);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
        }
    }

    pub(super) fn working_sessions(
        &mut self,
        now: Monotonic,
        target: Target,
    ) -> Vec<(GroupId, SessionId)> {
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

    pub(super) fn close(&mut self, now: Monotonic, id: CallId) {
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
        let lively = self
            .links
            .up_links()
            .filter(|(_, up)| up.silent_since.is_none());
        let targets: Vec<Target> = lively.map(|(target, _)| target).collect();
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

    pub(super) fn check_closed(&mut self) {
        let Phase::Closing(id) = self.phase else {
            return;
        };
        if !self.requests.is_empty() {
            return;
        }
        self.phase = Phase::Closed;
        self.earliest_deadline = None;
        let conns = self.links.forget_all().into_iter();
        let closes = conns.map(|conn| Effect::Disconnect { conn });
        self.effects.extend(closes);
        let result = Ok(Reply {
            id: id.0,
            stamp: None,
            body: ReplyBody::Outcome(Outcome::Done),
        });
        self.effects.push(Effect::Done { id, result });
    }
}
