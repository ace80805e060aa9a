//! What follows from an answer, a refusal, or the lack of one.

use super::pending::Origin;
use super::{CallId, ClientCore, Effect, Pending, Phase, Route};
use crate::base::bugs::{self, Bug};
use crate::base::code::Code;
use crate::base::ids::{GroupId, SessionId, Token};
use crate::base::units::Monotonic;
use crate::client::error::Error;
use crate::client::group::{GroupSession, SessionState};
use crate::client::links::{ConnNo, Refused};
use crate::wire::message::{ErrorReply, LeasedJob, Reply, ReplyBody};
use crate::wire::{ItemOutcome, Op, Outcome, Rejection};

/// Whether an answer means that the leader of the group is another node, if there is one.
fn is_elsewhere(body: &ReplyBody) -> bool {
    let ReplyBody::Error(error) = body else {
        return false;
    };
    matches!(
        error.code,
        Code::NotLeader | Code::Stopping | Code::Unknown | Code::GroupHalted
    )
}

impl ClientCore {
    pub(super) fn received(&mut self, now: Monotonic, conn: ConnNo, reply: Reply) {
        self.links.heard(now, conn);
        let id = CallId(reply.id);
        let Some(pending) = self.requests.get_mut(&id) else {
            self.unexpected(now, reply);
            return;
        };
        if pending.sent_on != Some(conn) {
            self.late(now, conn, reply);
            return;
        }
        let found = match pending.route {
            Route::Group(group) if !is_elsewhere(&reply.body) => self.links.found(group),
            _ => false,
        };
        match reply.body {
            ReplyBody::Error(error) => self.refused(now, id, conn, &error),
            ReplyBody::Outcome(Outcome::Rejected(Rejection::SessionExpired)) => {
                self.session_expired(now, id, reply);
            }
            ReplyBody::Outcome(Outcome::Rejected(Rejection::Reattach)) => {
                self.told_to_attach(now, id, reply);
            }
            _ => self.finish(now, id, Ok(reply)),
        }
        if found {
            self.dispatch_waiting(now);
        }
    }

    /// An answer from a node that was silent, while another is asked. An outcome is an outcome,
    /// whoever tells it first; what else it says is of the past.
    fn late(&mut self, now: Monotonic, conn: ConnNo, reply: Reply) {
        let id = CallId(reply.id);
        let pending = self.requests.get_mut(&id).expect("checked by `received`");
        let at = pending
            .sent_before
            .iter()
            .position(|before| *before == conn);
        let Some(at) = at else {
            self.unexpected(now, reply);
            return;
        };
        pending.sent_before.swap_remove(at);
        let is_of_the_past = matches!(pending.origin, Origin::Attach(_))
            || matches!(
                reply.body,
                ReplyBody::Error(_)
                    | ReplyBody::Outcome(Outcome::Rejected(
                        Rejection::SessionExpired | Rejection::Reattach
                    ))
            );
        if !is_of_the_past {
            self.finish(now, id, Ok(reply));
        }
    }

    /// An answer that nobody waits for any more: what it grants is given back, unless it is here by
    /// another answer. One that leaves open what happened may be of a lease that was given up.
    fn unexpected(&mut self, now: Monotonic, reply: Reply) {
        if let ReplyBody::Error(ErrorReply {
            maybe_applied: true,
            ..
        }) = reply.body
        {
            self.attach_unheard(now);
        } else if let ReplyBody::Leased(jobs) = reply.body {
            let tokens = jobs.iter().map(LeasedJob::token);
            let is_here = |token: &Token| {
                let group = self.groups.get(&token.job.group());
                group.is_some_and(|state| state.holds(*token))
            };
            let unknown = tokens.filter(|token| !is_here(token)).collect();
            self.give_back(now, unknown);
        }
    }

    /// Asks what the server holds wherever a lease was given up before its answer came.
    fn attach_unheard(&mut self, now: Monotonic) {
        let unheard = self.groups.iter().filter(|(_, state)| state.has_unheard());
        let groups: Vec<GroupId> = unheard.map(|(group, _)| *group).collect();
        for group in groups {
            self.attach(now, group);
        }
    }

    pub(super) fn give_back(&mut self, now: Monotonic, items: Vec<Token>) {
        let Some(group) = items.first().map(|token| token.job.group()) else {
            return;
        };
        if self.phase == Phase::Open {
            self.ask_command(now, group, Op::Release { items }, Origin::GiveBack);
        }
    }

    pub(super) fn refused(&mut self, now: Monotonic, id: CallId, conn: ConnNo, reply: &ErrorReply) {
        let passing = match reply.code {
            Code::NotLeader | Code::Busy | Code::DiskFull | Code::MemoryFull | Code::Stopping => {
                true
            }
            // The group stopped at this node alone, as far as it knows.
            Code::GroupHalted => self.links.has_others(),
            _ => false,
        };
        let error = Error::from_reply(reply);
        let pending = self.requests.get_mut(&id).expect("checked by `received`");
        pending.unanswered |= reply.maybe_applied;
        let again = passing || (reply.maybe_applied && reply.code == Code::Unknown);
        let given_up = matches!(pending.origin, Origin::Heartbeat | Origin::Bye);
        if !again || given_up || (pending.unanswered && !pending.is_repeatable()) {
            // Of what was sent before without an answer this refusal says nothing.
            let is_open = pending.unanswered && pending.is_mutating();
            let error = match is_open {
                true => error.and_maybe_applied(),
                false => error,
            };
            self.finish(now, id, Err(error));
            return;
        }
        pending.sent_on = None;
        pending.last_error = Some(error);
        pending.refusals += 1;
        let refusals = pending.refusals;
        let route = pending.route;
        self.waiting.insert(id);
        if let Route::Group(group) = route {
            self.links.not_asked(group, id);
        }
        if !self.moved_on(now, conn, route, reply) {
            let wait = self.links.backoff(refusals);
            let pending = self.requests.get_mut(&id).expect("it was there above");
            pending.not_before = now.plus(wait);
        }
        self.dispatch(now, id);
    }

    /// Where a refusal says that the node does not lead the group, another is asked for it. False if
    /// the same is to be asked again, after a wait.
    fn moved_on(&mut self, now: Monotonic, conn: ConnNo, route: Route, reply: &ErrorReply) -> bool {
        let elsewhere = matches!(
            reply.code,
            Code::NotLeader | Code::Stopping | Code::GroupHalted
        );
        let (Route::Group(group), true) = (route, elsewhere) else {
            return false;
        };
        let Some(by) = self.links.up_mut(conn).map(|(target, _)| target) else {
            return false;
        };
        let before = self.links.target(route);
        match self.links.refused(now, group, by, reply.leader.as_deref()) {
            Refused::Alone => return false,
            Refused::Elsewhere(None) => {}
            Refused::Elsewhere(Some(named)) => {
                if let Some(conn) = self.links.long_silent(now, named) {
                    self.effects.push(Effect::Disconnect { conn });
                    let words = "the server does not answer, and is named as the leader";
                    let error = Error::new(Code::ConnectionTimeout, words);
                    self.disconnected(now, conn, &error);
                }
                self.want(now, named);
            }
        }
        if self.links.target(route) != before {
            self.attach_if_working(now, group);
        }
        true
    }

    pub(super) fn attach_if_working(&mut self, now: Monotonic, group: GroupId) {
        if self
            .groups
            .get(&group)
            .is_some_and(GroupSession::must_attach)
        {
            self.attach(now, group);
        }
    }

    /// Its session is gone. What was sent once and answered by this never happened, and is asked
    /// again in a new session; what was sent before without an answer may have.
    pub(super) fn session_expired(&mut self, now: Monotonic, id: CallId, reply: Reply) {
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

    pub(super) fn drop_session(&mut self, group: GroupId, session: SessionId) {
        let state = self.groups.entry(group).or_default();
        if state.id() == Some(session) {
            *state = GroupSession::default();
        }
    }

    /// The session's leases were ended: a lease is asked again, with another number, once attached.
    pub(super) fn told_to_attach(&mut self, now: Monotonic, id: CallId, reply: Reply) {
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
    pub(super) fn finish(&mut self, now: Monotonic, id: CallId, result: Result<Reply, Error>) {
        let Some((origin, group)) = self.requests.get(&id).map(|pending| {
            let group = pending.command().map(|(group, _)| group);
            (pending.origin, group)
        }) else {
            return;
        };
        let is_unheard = match &result {
            Ok(reply) => {
                self.note_grants(now, id, &reply.body);
                false
            }
            Err(_) => self.give_up(id),
        };
        match origin {
            Origin::OpenSession(group) => self.session_opened(now, group, &result),
            Origin::Attach(group) => self.attached(now, group, &result),
            Origin::Heartbeat => self.heartbeat_taken(now, &result),
            Origin::Nobody if bugs::on(Bug::AbandonedLeaseKept) => {}
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
        if let Some(group) = group.filter(|_| is_unheard) {
            self.attach(now, group);
        }
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
    pub(super) fn note_grants(&mut self, now: Monotonic, id: CallId, body: &ReplyBody) {
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

    pub(super) fn session_opened(
        &mut self,
        now: Monotonic,
        group: GroupId,
        result: &Result<Reply, Error>,
    ) {
        let state = self.groups.entry(group).or_default();
        let error = match result {
            Ok(Reply {
                body: ReplyBody::Outcome(Outcome::SessionOpened { session, epoch }),
                ..
            }) => {
                state.state = SessionState::Open(*session);
                state.epoch = *epoch;
                if self.worker.is_some() {
                    self.beat_soon(now, None);
                }
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
        // What waits for the session was never sent, whatever became of the opening.
        let error = Error::new(error.code(), error.message());
        let stranded: Vec<CallId> = self.waiting_for_session(group).map(|(id, _)| id).collect();
        for id in stranded {
            self.finish(now, id, Err(error.clone()));
        }
    }

    /// What waits for a session in this group.
    pub(super) fn waiting_for_session(
        &self,
        group: GroupId,
    ) -> impl Iterator<Item = (CallId, &Pending)> {
        let all = self.requests.iter().map(|(id, pending)| (*id, pending));
        all.filter(move |(_, pending)| {
            let here = pending.command().is_some_and(|(at, _)| at == group);
            here && pending.waits_for_session()
        })
    }

    pub(super) fn attached(
        &mut self,
        now: Monotonic,
        group: GroupId,
        result: &Result<Reply, Error>,
    ) {
        let state = self.groups.entry(group).or_default();
        match result {
            Ok(Reply {
                body: ReplyBody::Outcome(Outcome::Attached { epoch, tokens }),
                ..
            }) => state.attached(*epoch, tokens.clone()),
            _ => {
                state.attaching = false;
                return;
            }
        }
        // Where it is attached it is alive: before the grace of its last connection ends.
        self.beat_soon(now, Some(Route::Group(group)));
    }

    pub(super) fn heartbeat_taken(&mut self, now: Monotonic, result: &Result<Reply, Error>) {
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

    /// A request is about to be taken out without its answer. If it is a lease, jobs may have been granted
    /// of which nobody will hear if its connection is lost, too; if it gives jobs back, nobody has them who would
    /// end them, and the server must not be told that they are worked on. Whether it must be asked now what it
    /// holds: of a lease, because the last answer left it open and no other can come.
    pub(super) fn give_up(&mut self, id: CallId) -> bool {
        let Some(pending) = self.requests.get(&id) else {
            return false;
        };
        let Some((group, command)) = pending.command() else {
            return false;
        };
        let session = command.session.map(|call| call.id);
        let state = self.groups.get_mut(&group);
        let Some(state) = state.filter(|state| session.is_some() && session == state.id()) else {
            return false;
        };
        match &command.op {
            Op::Release { items } if pending.origin == Origin::GiveBack => {
                items.iter().for_each(|token| state.ended(*token));
                state.may_hold_unheard();
                true
            }
            _ if pending.is_lease() && (pending.sent_on.is_some() || pending.unanswered) => {
                state.may_hold_unheard();
                pending.sent_on.is_none()
            }
            _ => false,
        }
    }

    /// Takes a request out and settles its number.
    pub(super) fn forget(&mut self, id: CallId) -> Option<Pending> {
        let pending = self.requests.remove(&id)?;
        self.waiting.remove(&id);
        if let Route::Group(group) = pending.route {
            self.links.not_asked(group, id);
        }
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
    pub(super) fn end(&mut self, id: CallId, result: Result<Reply, Error>) {
        if let Some(pending) = self.forget(id)
            && pending.origin == Origin::Caller
        {
            self.effects.push(Effect::Done { id, result });
        }
    }
}
