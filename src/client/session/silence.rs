//! Servers that say nothing while an answer is due: frozen, or cut off.
//!
//! ```text
//! an answer is due, nothing heard for a while ──> ask for something that is answered at once
//! not answered in time ──> silent: its groups are looked for at other nodes, with its requests
//! anything heard       ──> as if nothing had been
//! ```
//!
//! Requests that wait at the server on purpose, as long polls do, make that while longer. Where no
//! other node is known nothing is asked and nothing moves: heartbeats find out in their time.

use super::pending::Origin;
use super::{CallId, ClientCore, Pending, Route};
use crate::base::code::Code;
use crate::base::units::Monotonic;
use crate::client::error::Error;
use crate::client::links::{ConnNo, QUIET, QUIET_WAIT, Target};
use crate::wire::message::RequestBody;

impl ClientCore {
    /// Looks at the connections where that is due.
    pub(super) fn look(&mut self, now: Monotonic) {
        let due = |at: Monotonic| at <= now;
        let up = self.links.up_links();
        let conns: Vec<ConnNo> = up
            .filter(|(_, up)| up.look_at.is_some_and(due))
            .map(|(_, up)| up.conn)
            .collect();
        for conn in conns {
            self.look_at(now, conn);
        }
    }

    fn look_at(&mut self, now: Monotonic, conn: ConnNo) {
        let Some((_, up)) = self.links.up_mut(conn) else {
            return;
        };
        let lively_at = up.lively_at;
        let here = self
            .requests
            .values()
            .filter(|pending| pending.sent_on == Some(conn) && pending.origin != Origin::Bye);
        let dues = here.map(|pending| match pending.poll_until > now {
            // It may wait at the server; once its time is over it may not.
            true => lively_at
                .plus(QUIET_WAIT)
                .min(pending.poll_until.plus(QUIET)),
            false => lively_at.plus(QUIET),
        });
        let due = dues.min();
        let Some((target, up)) = self.links.up_mut(conn) else {
            return;
        };
        up.look_at = None;
        let Some(due) = due.filter(|_| up.silent_since.is_none()) else {
            return;
        };
        if let Some(asked_at) = up.asked_at {
            let until = asked_at.plus(up.answer_within);
            if until <= now {
                up.silent_since = Some(now);
                self.fell_silent(conn);
            } else {
                up.look_at = Some(until);
            }
            return;
        }
        if due > now {
            up.is_lively();
            up.look_at = Some(due);
            return;
        }
        up.asked_at = Some(now);
        up.look_at = Some(now.plus(up.answer_within));
        up.unanswered_beat.get_or_insert(now);
        if let Target::Shard(node, shard) = target {
            let body = RequestBody::Heartbeat {
                sessions: Vec::new(),
                worker: None,
            };
            self.ask(now, Route::Shard(node, shard), body, Origin::Heartbeat);
        }
    }

    /// What may be sent again waits to be sent elsewhere, as the tick goes on to do; the answers of this
    /// one still count if they come.
    fn fell_silent(&mut self, conn: ConnNo) {
        tracing::debug!(conn = conn.0, "silent: its groups are looked for elsewhere");
        let error = Error::new(Code::ConnectionTimeout, "the server does not answer");
        let moves = |(id, pending): (&CallId, &Pending)| {
            let elsewhere = !matches!(pending.route, Route::Shard(..)) && pending.is_repeatable();
            (pending.sent_on == Some(conn) && elsewhere).then_some(*id)
        };
        let moved: Vec<CallId> = self.requests.iter().filter_map(moves).collect();
        for id in moved {
            let Some(pending) = self.requests.get_mut(&id) else {
                continue;
            };
            pending.sent_on = None;
            pending.sent_before.push(conn);
            pending.unanswered = true;
            pending.last_error = Some(error.clone());
            if let Route::Group(group) = pending.route {
                self.links.not_asked(group, id);
            }
            self.waiting.insert(id);
        }
    }
}
