//! Which sessions of a group are alive, as its leader hears it.
//!
//! Nothing here is replicated: a new leader restarts every timeout in full, so that a node's own
//! death is never taken for a worker's. What follows from silence is proposed as an entry
//! (`EndLeases`, `DropSession`) that names the epoch seen, and apply decides.
//!
//! A session is checked at least once per worker timeout, not at each of its commands: hearing it
//! costs one lookup.

use super::input::Origin;
use crate::base::bugs::{self, Bug};
use crate::base::ids::SessionId;
use crate::base::limits::{SESSION_IDLE_MS, WORKER_CLOSED_MS};
use crate::base::lookup::Lookup;
use crate::base::units::Monotonic;
use crate::queue::command::Op;
use crate::queue::view::SessionView;
use std::collections::BTreeSet;
use std::time::Duration;

/// After an entry was proposed for a session, it is looked at again this much later.
const RECHECK: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Watched {
    heard: Monotonic,
    conn: Option<Origin>,
    closed: Option<Monotonic>,
    check_at: Monotonic,
}

/// The sessions of one group.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    watched: Lookup<SessionId, Watched>,
    checks: BTreeSet<(Monotonic, SessionId)>,
}

impl Liveness {
    /// Starts to watch a session, in full.
    pub(super) fn watch(
        &mut self,
        id: SessionId,
        timeout_ms: u32,
        conn: Option<Origin>,
        now: Monotonic,
    ) {
        self.forget(id);
        let check_at = now.plus(Duration::from_millis(timeout_ms.into()));
        self.watched.insert(
            id,
            Watched {
                heard: now,
                conn,
                closed: None,
                check_at,
            },
        );
        self.checks.insert((check_at, id));
    }

    /// A command or heartbeat came. The connection that it was bound to before, if that changed;
    /// `None` inside if the session is not watched.
    pub(super) fn heard(&mut self, id: SessionId, conn: Origin, now: Monotonic) -> Heard {
        let Some(watched) = self.watched.get_mut(&id) else {
            return Heard::Unknown;
        };
        if !bugs::on(Bug::BeatIgnored) {
            watched.heard = now;
        }
        watched.closed = None;
        match watched.conn.replace(conn) {
            Some(before) if before == conn => Heard::Same,
            before => Heard::Moved { before },
        }
    }

    /// The connection of a session closed. Ignored if the session has moved on.
    pub(super) fn closed(&mut self, id: SessionId, conn: Origin, now: Monotonic) {
        let Some(watched) = self.watched.get_mut(&id).filter(|w| w.conn == Some(conn)) else {
            return;
        };
        watched.conn = None;
        watched.closed = Some(now);
        let check_at = now.plus(Duration::from_millis(WORKER_CLOSED_MS));
        self.reschedule(id, check_at);
    }

    /// Where and when a session was heard last; `None` if it is not watched.
    pub(super) fn last_heard(&self, id: SessionId) -> Option<(Option<Origin>, Monotonic)> {
        let watched = self.watched.get(&id)?;
        Some((watched.conn, watched.heard))
    }

    /// When [`Self::check`] has something to do.
    pub(super) fn next_check(&self) -> Option<Monotonic> {
        self.checks.first().map(|(at, _)| *at)
    }

    /// What silence up to now calls for.
    pub(super) fn check(
        &mut self,
        now: Monotonic,
        view: impl Fn(SessionId) -> Option<SessionView>,
    ) -> Vec<Op> {
        let mut ops = Vec::new();
        while let Some((at, id)) = self.checks.first().copied().filter(|(at, _)| *at <= now) {
            let Some(session) = view(id) else {
                self.forget(id);
                continue;
            };
            let watched = self
                .watched
                .get(&id)
                .expect("a session with a check is watched");
            let holds = session.leases > 0 && !session.ended;
            let timeout = Duration::from_millis(session.worker_timeout_ms.into());
            let silent = watched.heard.plus(timeout);
            let deadline = match (holds, watched.closed) {
                (true, Some(closed)) => {
                    silent.min(closed.plus(Duration::from_millis(WORKER_CLOSED_MS)))
                }
                (true, None) => silent,
                (false, _) => watched.heard.plus(Duration::from_millis(SESSION_IDLE_MS)),
            };
            let next = if deadline > now {
                deadline.min(now.plus(timeout))
            } else {
                ops.push(if holds {
                    Op::EndLeases {
                        session: id,
                        epoch: session.epoch,
                    }
                } else {
                    let last_seq = session.last_seq;
                    Op::DropSession {
                        session: id,
                        epoch: session.epoch,
                        last_seq,
                    }
                });
                now.plus(RECHECK)
            };
            debug_assert!(next > at);
            self.reschedule(id, next);
        }
        ops
    }

    /// Stops watching; the connection that it was bound to.
    pub(super) fn forget(&mut self, id: SessionId) -> Option<Origin> {
        let watched = self.watched.remove(&id)?;
        self.checks.remove(&(watched.check_at, id));
        watched.conn
    }

    fn reschedule(&mut self, id: SessionId, at: Monotonic) {
        let watched = self
            .watched
            .get_mut(&id)
            .expect("only a watched session is rescheduled");
        self.checks.remove(&(watched.check_at, id));
        watched.check_at = at;
        self.checks.insert((at, id));
    }
}

/// Where a session was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is not watched: unknown to this group.
    Unknown,
    /// On the connection that it had.
    Same,
    /// On another one.
    Moved {
        /// The one before.
        before: Option<Origin>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ConnId, ShardId};

    const ID: SessionId = SessionId(1);
    const CONN: Origin = Origin {
        shard: ShardId(0),
        conn: ConnId(5),
    };

    fn seconds(count: u64) -> Monotonic {
        Monotonic(count * 1_000_000_000)
    }

    fn view(leases: u64) -> impl Fn(SessionId) -> Option<SessionView> {
        move |id| {
            Some(SessionView {
                id,
                epoch: 3,
                ended: false,
                leases,
                worker_timeout_ms: 10_000,
                last_seq: 7,
            })
        }
    }

    fn watching() -> Liveness {
        let mut liveness = Liveness::default();
        liveness.watch(ID, 10_000, Some(CONN), seconds(0));
        liveness
    }

    #[test]
    fn a_silent_worker_loses_its_leases_and_a_beating_one_does_not() {
        let mut liveness = watching();
        assert_eq!(liveness.heard(ID, CONN, seconds(9)), Heard::Same);
        assert!(liveness.check(seconds(10), view(1)).is_empty());
        let end = Op::EndLeases {
            session: ID,
            epoch: 3,
        };
        assert!(liveness.check(seconds(18), view(1)).is_empty());
        assert_eq!(liveness.check(seconds(19), view(1)), [end]);
    }

    #[test]
    fn a_closed_connection_ends_leases_after_its_grace_unless_the_worker_moved_on() {
        let mut liveness = watching();
        liveness.closed(ID, CONN, seconds(2));
        assert!(liveness.check(seconds(2), view(1)).is_empty());
        assert_eq!(liveness.check(seconds(3), view(1)).len(), 1);

        let mut liveness = watching();
        let other = Origin {
            conn: ConnId(6),
            ..CONN
        };
        assert_eq!(
            liveness.heard(ID, other, seconds(1)),
            Heard::Moved { before: Some(CONN) }
        );
        liveness.closed(ID, CONN, seconds(2));
        assert!(liveness.check(seconds(4), view(1)).is_empty());
    }

    #[test]
    fn a_session_without_leases_is_dropped_after_fifteen_minutes() {
        let mut liveness = watching();
        for second in (10..900).step_by(10) {
            assert!(
                liveness.check(seconds(second), view(0)).is_empty(),
                "at {second} s"
            );
        }
        let drop = Op::DropSession {
            session: ID,
            epoch: 3,
            last_seq: 7,
        };
        assert_eq!(liveness.check(seconds(900), view(0)), [drop]);
        assert!(liveness.check(seconds(902), |_| None).is_empty());
        assert_eq!(liveness.next_check(), None);
        assert_eq!(liveness.heard(ID, CONN, seconds(903)), Heard::Unknown);
    }
}
