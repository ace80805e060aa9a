//! Sessions of a group: what makes a retry safe, and whose leases end with whom.
//!
//! A session keeps the outcomes of two windows, commands and polls, from the lowest number whose
//! outcome its client has not seen. The lowest only rises; below it nothing is applied again.
//!
//! ```text
//!   seq < lowest            Superseded
//!   seq with a kept outcome the outcome again, nothing applied
//!   seq < lowest + window   applied, outcome kept
//!   else                    WindowExceeded
//! ```
//!
//! Not kept: an empty grant (the long poll asks again under its number) and the refusals that say
//! that nothing was looked at. Which jobs a session holds is derived from their records. Left out
//! on purpose: timeouts; a leader watches them and says so by a command.

use crate::base::bugs::{self, Bug};
use crate::base::ids::{JobId, SessionId};
use crate::base::limits::{
    SESSION_BYTES_MAX, SESSION_POLL_WINDOW, SESSION_WINDOW, SESSIONS_MAX, WORKER_TIMEOUT_MS,
};
use crate::queue::command::{Outcome, Rejection, SessionCall, Window};
use crate::queue::job_queue::MACHINE_VERSION;
use crate::queue::outcome::{put_outcome, read_outcome};
use crate::queue::outcomes::Outcomes;
use crate::queue::view::SessionView;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The windows in the order of their pages.
pub(super) const WINDOWS: [Window; 2] = [Window::Commands, Window::Polls];

/// Outcomes that a window keeps.
pub(super) fn window_len(window: Window) -> u64 {
    match window {
        Window::Commands => SESSION_WINDOW,
        Window::Polls => SESSION_POLL_WINDOW,
    }
}

/// One window of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WindowState {
    /// Below it everything is superseded; at least 1, only rises.
    pub(super) lowest: u64,
    /// The highest number let through.
    pub(super) last: u64,
    /// Outcomes kept, encoded, by number; all in `lowest .. lowest + window`.
    pub(super) outcomes: Outcomes,
}

impl Default for WindowState {
    fn default() -> Self {
        Self {
            lowest: 1,
            last: 0,
            outcomes: Outcomes::default(),
        }
    }
}

/// What a session's page holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Raised by each attach, from 1.
    pub(super) epoch: u32,
    /// The leases of this epoch were ended.
    pub(super) ended: bool,
    /// In milliseconds.
    pub(super) worker_timeout_ms: u32,
    /// As in [`WINDOWS`].
    pub(super) windows: [WindowState; 2],
}

impl Session {
    /// The highest number let through, over both windows.
    pub(super) fn last_seq(&self) -> u64 {
        self.windows[0].last.max(self.windows[1].last)
    }

    /// Bytes of all outcomes kept.
    pub(super) fn bytes(&self) -> u64 {
        let windows = self.windows.iter();
        windows.map(|window| window.outcomes.bytes()).sum()
    }
}

/// A session with what is derived for it.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// Shared with frozen states.
    pub(super) page: Arc<Session>,
    /// The jobs that it holds.
    pub(super) held: BTreeSet<JobId>,
}

/// What becomes of a command with a place in a session.
pub(super) enum Admission {
    /// It is new: apply it.
    Run,
    /// It was applied before; this was the outcome.
    Repeat(Outcome),
    /// It is refused without being looked at.
    Refuse(Rejection),
}

/// The sessions of a group.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    slots: BTreeMap<SessionId, Slot>,
    /// The highest id ever given; ids are not reused.
    last_id: u32,
    /// Bytes of all outcomes kept by all sessions.
    bytes: u64,
    scratch: Vec<u8>,
}

impl Sessions {
    /// With the counter of ids where it stood.
    pub(super) fn with_last_id(last_id: u32) -> Self {
        let is_kept = !bugs::on(Bug::SessionIdsReused);
        let last_id = if is_kept { last_id } else { last_id / 2 };
        Self {
            last_id,
            ..Self::default()
        }
    }

    /// The highest id ever given.
    pub(super) fn last_id(&self) -> u32 {
        self.last_id
    }

    /// Bytes of all outcomes kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// A session.
    pub(super) fn get(&self, id: SessionId) -> Option<&Slot> {
        self.slots.get(&id)
    }

    /// All sessions by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, &Slot)> {
        self.slots.iter().map(|(id, slot)| (*id, slot))
    }

    /// Opens a session.
    pub(super) fn open(&mut self, worker_timeout_ms: u32) -> Result<SessionId, Rejection> {
        if self.slots.len() >= SESSIONS_MAX || self.bytes >= SESSION_BYTES_MAX as u64 {
            return Err(Rejection::TooManySessions);
        }
        let next = self.last_id.checked_add(1).ok_or(Rejection::IdsExhausted)?;
        self.last_id = next;
        let default_ms = u32::try_from(WORKER_TIMEOUT_MS).expect("10 s fits");
        let worker_timeout_ms = if worker_timeout_ms == 0 {
            default_ms
        } else {
            worker_timeout_ms
        };
        let session = Session {
            epoch: 1,
            ended: false,
            worker_timeout_ms,
            windows: Default::default(),
        };
        self.restore(SessionId(next), session);
        Ok(SessionId(next))
    }

    /// Puts a session in that a page holds, without jobs.
    pub(super) fn restore(&mut self, id: SessionId, session: Session) {
        self.bytes += session.bytes();
        let slot = Slot {
            page: Arc::new(session),
            held: BTreeSet::new(),
        };
        let before = self.slots.insert(id, slot);
        assert!(
            before.is_none(),
            "session {id} was there already: {before:?}"
        );
    }

    /// Forgets a session, which holds nothing any more.
    pub(super) fn remove(&mut self, id: SessionId) {
        let slot = self
            .slots
            .remove(&id)
            .expect("the session to forget is there");
        assert!(
            slot.held.is_empty(),
            "session {id} goes while it holds {:?}",
            slot.held
        );
        self.bytes -= slot.page.bytes();
    }

    /// Changes what the page holds besides the windows.
    pub(super) fn page_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.slots
            .get_mut(&id)
            .map(|slot| Arc::make_mut(&mut slot.page))
    }

    /// The session holds this job from now on.
    pub(super) fn hold(&mut self, owner: u32, job: JobId) {
        let slot = self.slots.get_mut(&SessionId(owner));
        let fresh = slot
            .expect("the owner of a lease is a session")
            .held
            .insert(job);
        assert!(fresh, "session {owner} holds job {job} already");
    }

    /// The session holds this job no more.
    pub(super) fn let_go(&mut self, owner: u32, job: JobId) {
        let slot = self.slots.get_mut(&SessionId(owner));
        let was = slot
            .expect("the owner of a lease is a session")
            .held
            .remove(&job);
        assert!(was, "session {owner} does not hold job {job}");
    }

    /// Whether the outcome of this number is kept, so that it would be repeated.
    pub(super) fn has_outcome(&self, call: &SessionCall) -> bool {
        self.slots.get(&call.id).is_some_and(|slot| {
            let window = &slot.page.windows[call.window as usize];
            window.outcomes.get(call.seq).is_some()
        })
    }

    /// Decides about a command with a place in a session, and forgets what its client has seen.
    pub(super) fn admit(&mut self, call: &SessionCall) -> Admission {
        let Some(slot) = self.slots.get_mut(&call.id) else {
            return Admission::Refuse(Rejection::SessionExpired);
        };
        let window = &slot.page.windows[call.window as usize];
        let lowest = window.lowest.max(call.lowest);
        if call.seq < lowest && bugs::on(Bug::SupersededApplied) {
            return Admission::Run;
        }
        if call.seq < lowest {
            return Admission::Refuse(Rejection::Superseded);
        }
        if call.seq - lowest >= window_len(call.window) {
            return Admission::Refuse(Rejection::WindowExceeded);
        }
        let window = &mut Arc::make_mut(&mut slot.page).windows[call.window as usize];
        window.lowest = lowest;
        self.bytes -= window.outcomes.forget_below(lowest);
        if let Some(bytes) = window.outcomes.get(call.seq) {
            let outcome = read_outcome(bytes, MACHINE_VERSION)
                .expect("what was kept was encoded or checked here");
            return Admission::Repeat(outcome);
        }
        if self.bytes >= SESSION_BYTES_MAX as u64 {
            return Admission::Refuse(Rejection::TooManySessions);
        }
        window.last = window.last.max(call.seq);
        Admission::Run
    }

    /// Keeps the outcome of a command that was let through, if it is one to keep.
    pub(super) fn keep(&mut self, call: &SessionCall, outcome: &Outcome) {
        let kept = match outcome {
            Outcome::Leased(grants) => !grants.is_empty(),
            Outcome::Rejected(rejection) => *rejection != Rejection::Reattach,
            _ => true,
        };
        let is_enqueue = matches!(outcome, Outcome::Enqueued(_));
        if !kept || (is_enqueue && bugs::on(Bug::OutcomeNotKept)) {
            return;
        }
        self.scratch.clear();
        put_outcome(&mut self.scratch, outcome);
        self.bytes += self.scratch.len() as u64;
        let slot = self.slots.get_mut(&call.id);
        let slot = slot.expect("a session that was let through is there");
        let window = &mut Arc::make_mut(&mut slot.page).windows[call.window as usize];
        window.outcomes.insert(call.seq, &self.scratch);
    }
}

/// What a leader sees of a session.
pub(super) fn view(id: SessionId, slot: &Slot) -> SessionView {
    SessionView {
        id,
        epoch: slot.page.epoch,
        ended: slot.page.ended,
        leases: slot.held.len() as u64,
        worker_timeout_ms: slot.page.worker_timeout_ms,
        last_seq: slot.page.last_seq(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(seq: u64, lowest: u64) -> SessionCall {
        SessionCall {
            id: SessionId(1),
            seq,
            lowest,
            window: Window::Commands,
        }
    }

    fn refused(sessions: &mut Sessions, call: SessionCall) -> Option<Rejection> {
        match sessions.admit(&call) {
            Admission::Refuse(rejection) => Some(rejection),
            Admission::Run | Admission::Repeat(_) => None,
        }
    }

    #[test]
    fn the_window_slides_with_the_lowest_and_never_back() {
        let mut sessions = Sessions::default();
        assert_eq!(
            refused(&mut sessions, call(1, 1)),
            Some(Rejection::SessionExpired)
        );
        sessions.open(0).expect("room");
        assert_eq!(
            refused(&mut sessions, call(0, 0)),
            Some(Rejection::Superseded)
        );
        assert_eq!(
            refused(&mut sessions, call(4097, 1)),
            Some(Rejection::WindowExceeded)
        );
        assert_eq!(refused(&mut sessions, call(4096, 1)), None);
        assert_eq!(refused(&mut sessions, call(4097, 2)), None);
        assert_eq!(
            refused(&mut sessions, call(1, 1)),
            Some(Rejection::Superseded)
        );
        assert_eq!(
            refused(&mut sessions, call(5, 6)),
            Some(Rejection::Superseded)
        );
        let far = refused(&mut sessions, call(u64::MAX, 1));
        assert_eq!(far, Some(Rejection::WindowExceeded));
    }

    #[test]
    fn bytes_are_counted_as_outcomes_come_and_go() {
        let mut sessions = Sessions::default();
        sessions.open(0).expect("room");
        for seq in 1..=10 {
            assert!(matches!(sessions.admit(&call(seq, 1)), Admission::Run));
            sessions.keep(&call(seq, 1), &Outcome::Purged { jobs: seq });
        }
        assert_eq!(sessions.bytes(), 90);
        let again = sessions.admit(&call(10, 10));
        assert!(matches!(
            again,
            Admission::Repeat(Outcome::Purged { jobs: 10 })
        ));
        assert_eq!(sessions.bytes(), 9);
        sessions.remove(SessionId(1));
        assert_eq!(sessions.bytes(), 0);
    }

    #[test]
    fn full_of_outcomes_a_client_makes_room_by_saying_what_it_has_seen() {
        let mut sessions = Sessions::default();
        sessions.open(0).expect("room");
        assert!(matches!(sessions.admit(&call(1, 1)), Admission::Run));
        sessions.keep(&call(1, 1), &Outcome::Done);
        sessions.bytes = SESSION_BYTES_MAX as u64;
        assert_eq!(sessions.open(0), Err(Rejection::TooManySessions));
        assert_eq!(
            refused(&mut sessions, call(2, 1)),
            Some(Rejection::TooManySessions)
        );
        assert_eq!(refused(&mut sessions, call(2, 2)), None);
    }

    #[test]
    fn sessions_are_bounded_in_number() {
        let mut sessions = Sessions::default();
        for _ in 0..SESSIONS_MAX {
            sessions.open(0).expect("room");
        }
        assert_eq!(sessions.open(0), Err(Rejection::TooManySessions));
        sessions.remove(SessionId(5));
        let next = SessionId(u32::try_from(SESSIONS_MAX).expect("small") + 1);
        assert_eq!(sessions.open(0), Ok(next));
    }
}
