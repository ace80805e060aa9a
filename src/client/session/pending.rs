//! A request that has not ended.

use super::Route;
use crate::base::ids::GroupId;
use crate::base::units::Monotonic;
use crate::client::error::Error;
use crate::client::links::ConnNo;
use crate::wire::message::{Request, RequestBody};
use crate::wire::{Command, Op};

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
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
pub(super) struct Pending {
    pub(super) request: Request,
    pub(super) route: Route,
    pub(super) origin: Origin,
    /// Where it was sent and its answer is awaited.
    pub(super) sent_on: Option<ConnNo>,
    /// Where it was sent before, to nodes that fell silent: their answers may still come.
    pub(super) sent_before: Vec<ConnNo>,
    /// Not to be sent again before this.
    pub(super) not_before: Monotonic,
    pub(super) deadline: Monotonic,
    /// Leases, watches and waits: until when to wait at the server.
    pub(super) poll_until: Monotonic,
    /// A send of it went without an answer: it may have taken effect.
    pub(super) unanswered: bool,
    /// Sends that were refused.
    pub(super) refusals: u32,
    pub(super) last_error: Option<Error>,
}

impl Pending {
    pub(super) fn command(&self) -> Option<(GroupId, &Command)> {
        match &self.request.body {
            RequestBody::Command { group, command, .. } => Some((*group, command)),
            _ => None,
        }
    }

    pub(super) fn command_mut(&mut self) -> Option<&mut Command> {
        match &mut self.request.body {
            RequestBody::Command { command, .. } => Some(command),
            _ => None,
        }
    }

    /// How long it waits at the server, if it is of those that do.
    pub(super) fn wait_ms_mut(&mut self) -> Option<&mut u32> {
        match &mut self.request.body {
            RequestBody::Command { wait_ms, .. }
            | RequestBody::Watch { wait_ms, .. }
            | RequestBody::WaitJob { wait_ms, .. } => Some(wait_ms),
            _ => None,
        }
    }

    pub(super) fn is_lease(&self) -> bool {
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
    pub(super) fn is_mutating(&self) -> bool {
        self.command().is_some() && !self.is_lease()
    }

    pub(super) fn is_numbered(&self) -> bool {
        self.command()
            .is_some_and(|(_, command)| command.session.is_some())
    }

    /// Whether it cannot have a number before its group has a session. Without sessions nothing has one.
    pub(super) fn waits_for_session(&self) -> bool {
        let opens = matches!(self.origin, Origin::OpenSession(_) | Origin::Attach(_));
        self.sent_on.is_none() && !self.is_numbered() && !opens
    }

    /// Whether it may be sent again although an earlier send may have taken effect.
    pub(super) fn is_repeatable(&self) -> bool {
        let harmless = matches!(self.origin, Origin::OpenSession(_) | Origin::Attach(_));
        harmless || self.is_numbered() || !self.is_mutating()
    }
}
