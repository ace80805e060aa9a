//! The session that a client has in one group: numbers, epoch, and the grants that it holds.

use crate::base::bugs::{self, Bug};
use crate::base::ids::{SessionId, Token};
use crate::base::limits::{SESSION_POLL_WINDOW, SESSION_WINDOW};
use crate::base::units::Monotonic;
use crate::wire::Window;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A grant whose time ended is kept this much longer, since the group's time may stand still.
const GRANT_KEPT_AFTER: Duration = Duration::from_secs(60);

/// The numbers of one window: given out upwards, settled in any order.
#[derive(Debug)]
struct Numbers {
    next: u64,
    unanswered: BTreeSet<u64>,
    span: u64,
}

impl Numbers {
    fn new(span: u64) -> Self {
        Self {
            next: 1,
            unanswered: BTreeSet::new(),
            span,
        }
    }

    fn lowest(&self) -> u64 {
        self.unanswered.first().copied().unwrap_or(self.next)
    }

    /// The next number, or `None` while the window is full.
    fn take(&mut self) -> Option<u64> {
        if self.next >= self.lowest() + self.span {
            return None;
        }
        let seq = self.next;
        self.next += 1;
        self.unanswered.insert(seq);
        Some(seq)
    }
}

/// How long a grant lasts.
#[derive(Clone, Copy, Debug)]
struct Grant {
    until: Monotonic,
    lease_ms: u32,
}

impl Grant {
    fn new(now: Monotonic, lease_ms: u32) -> Self {
        let until = now.plus(Duration::from_millis(lease_ms.into()));
        Self { until, lease_ms }
    }
}

/// Whether there is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionState {
    /// None yet, or none any more.
    None,
    /// Its opening is under way.
    Opening,
    /// There is one.
    Open(SessionId),
}

/// The session of one group.
#[derive(Debug)]
pub(super) struct GroupSession {
    pub(super) state: SessionState,
    pub(super) epoch: u32,
    /// An attach is under way: leases wait for its epoch.
    pub(super) attaching: bool,
    commands: Numbers,
    polls: Numbers,
    /// What it holds, as far as the client was told.
    grants: BTreeMap<Token, Grant>,
    /// Held by the server's account, but never seen here; the answer may still be under way.
    unseen: Vec<Token>,
    /// Polls below this were under way when `unseen` was learnt.
    unseen_polls: u64,
    /// A lease was given up that may have been granted, or the giving back of jobs: its connection brings the answer,
    /// or an attach tells.
    has_unheard: bool,
}

impl Default for GroupSession {
    fn default() -> Self {
        Self {
            state: SessionState::None,
            epoch: 0,
            attaching: false,
            commands: Numbers::new(SESSION_WINDOW),
            polls: Numbers::new(SESSION_POLL_WINDOW),
            grants: BTreeMap::new(),
            unseen: Vec::new(),
            unseen_polls: 0,
            has_unheard: false,
        }
    }
}

impl GroupSession {
    fn numbers(&mut self, window: Window) -> &mut Numbers {
        match window {
            Window::Commands => &mut self.commands,
            Window::Polls => &mut self.polls,
        }
    }

    /// The open session.
    pub(super) fn id(&self) -> Option<SessionId> {
        match self.state {
            SessionState::Open(id) => Some(id),
            SessionState::None | SessionState::Opening => None,
        }
    }

    /// The next number of a window, or `None` while it is full.
    pub(super) fn take_number(&mut self, window: Window) -> Option<u64> {
        self.numbers(window).take()
    }

    /// The lowest number whose answer is not here.
    pub(super) fn lowest(&mut self, window: Window) -> u64 {
        self.numbers(window).lowest()
    }

    /// The answer to a number is here, or nobody waits for it any more.
    pub(super) fn settle(&mut self, window: Window, seq: u64) {
        self.numbers(window).unanswered.remove(&seq);
    }

    /// Whether the server must hear of it: it holds jobs, or may be given some.
    pub(super) fn is_working(&self) -> bool {
        self.id().is_some() && !(self.grants.is_empty() && self.polls.unanswered.is_empty())
    }

    /// Whether the server must be asked what it holds for this session, where the connection is another.
    pub(super) fn must_attach(&self) -> bool {
        self.is_working() || self.has_unheard()
    }

    /// Whether jobs may have been granted to it of which this client has not heard.
    pub(super) fn has_unheard(&self) -> bool {
        self.id().is_some() && self.has_unheard
    }

    /// A lease, or the giving back of jobs, was given up before its answer came.
    pub(super) fn may_hold_unheard(&mut self) {
        self.has_unheard = true;
    }

    /// A job was granted.
    pub(super) fn granted(&mut self, token: Token, now: Monotonic, lease_ms: u32) {
        self.grants.insert(token, Grant::new(now, lease_ms));
    }

    /// A lease was extended, by as much as it had if `lease_ms` is 0.
    pub(super) fn extended(&mut self, token: Token, now: Monotonic, lease_ms: u32) {
        if let Some(grant) = self.grants.get_mut(&token) {
            let lease_ms = if lease_ms == 0 {
                grant.lease_ms
            } else {
                lease_ms
            };
            *grant = Grant::new(now, lease_ms);
        }
    }

    /// A grant is over.
    pub(super) fn ended(&mut self, token: Token) {
        self.grants.remove(&token);
    }

    /// Numbers that are not settled.
    pub(super) fn unsettled(&self) -> usize {
        self.commands.unanswered.len() + self.polls.unanswered.len()
    }

    /// Grants that it holds, or may.
    pub(super) fn held(&self) -> usize {
        self.grants.len() + self.unseen.len()
    }

    /// Whether the client was told of this grant.
    pub(super) fn holds(&self, token: Token) -> bool {
        self.grants.contains_key(&token)
    }

    /// Forgets grants whose time is long over.
    pub(super) fn forget_old_grants(&mut self, now: Monotonic) {
        self.grants
            .retain(|_, grant| grant.until.plus(GRANT_KEPT_AFTER) > now);
    }

    /// The answer to an attach: what the server holds for this session.
    pub(super) fn attached(&mut self, epoch: u32, tokens: Vec<Token>) {
        self.epoch = epoch;
        self.attaching = false;
        self.has_unheard = false;
        let held: BTreeSet<Token> = tokens.into_iter().collect();
        self.grants.retain(|token, _| held.contains(token));
        self.unseen = held
            .into_iter()
            .filter(|token| !self.holds(*token))
            .collect();
        self.unseen_polls = self.polls.next;
    }

    /// Grants that no answer can tell the client of any more: to be released.
    pub(super) fn take_unclaimed(&mut self) -> Vec<Token> {
        if self.unseen.is_empty() || self.polls.lowest() < self.unseen_polls {
            return Vec::new();
        }
        let unseen = std::mem::take(&mut self.unseen);
        if bugs::on(Bug::UnseenGrantsKept) {
            return Vec::new();
        }
        unseen
            .into_iter()
            .filter(|token| !self.holds(*token))
            .collect()
    }
}
