//! Raising the version of a group's job machine while it runs.
//!
//! A group starts at version 1, which its base of formation holds, and rises by an entry alone: so
//! every replica changes over at the same index. Its leader proposes the entry once it serves, up to
//! what [`ShardConfig`](super::config::ShardConfig) allows and what each other member has said that it
//! can apply; an operator who wants to be able to go back to an older binary holds it there. A version
//! never falls.

use super::engine::ShardEngine;
use crate::base::entry::{EntryKind, version_payload};

impl ShardEngine {
    /// Proposes the version that every member may run, if the group is below it.
    pub(super) fn raise_version(&mut self, slot: usize) {
        let (me, version) = (self.config.me(), self.config.machine_version_max);
        let group = &self.groups[slot];
        if group.raising || group.queue.version() >= version || !group.serves() || self.stopping() {
            return;
        }
        let members = group.raft.members();
        let others = members.members().filter(|member| *member != me);
        let others: Vec<_> = others.collect();
        let version = self
            .peers
            .machine_version_max(others.iter())
            .map(|max| max.min(version));
        let Some(version) = version.filter(|version| group.queue.version() < *version) else {
            return;
        };
        // Too busy now means a later turn.
        let proposed = self.propose(slot, EntryKind::Version, version_payload(version), None);
        self.groups[slot].raising = proposed.is_ok();
    }
}
