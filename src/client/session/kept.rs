//! How much a core keeps: what has ended must be forgotten.

use super::ClientCore;
use super::pending::Origin;
use crate::client::group::GroupSession;

/// What a core keeps, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Requests that have not ended, heartbeats not counted.
    pub requests: usize,
    /// Numbers of sessions that are not settled.
    pub numbers: usize,
    /// Grants that it believes to hold.
    pub grants: usize,
    /// Connections that are up, or being made.
    pub conns: usize,
}

impl ClientCore {
    /// How much it keeps.
    #[must_use]
    pub fn kept(&self) -> Kept {
        let requests = self.requests.values();
        let requests = requests.filter(|pending| pending.origin != Origin::Heartbeat);
        Kept {
            requests: requests.count(),
            numbers: self.groups.values().map(GroupSession::unsettled).sum(),
            grants: self.groups.values().map(GroupSession::held).sum(),
            conns: self.links.conns(),
        }
    }
}
