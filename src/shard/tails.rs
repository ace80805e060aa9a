//! What the groups of a shard hold of applied entries, for members that are a little behind.
//!
//! | a group | keeps its newest entries, of |
//! | --- | --- |
//! | that is awake | its share of [`ShardConfig::tails_bytes`] |
//! | at rest, and all together hold less than that | as much as it has: its next burst finds the memory in place |
//! | at rest, else | its part of as much again |
//!
//! To forget an entry takes 0.1 us or more, and a tail has hundreds of thousands: when a share becomes less, because
//! others wake up, they are forgotten a few in each turn of the shard, so that nobody waits for it.
//!
//! Deliberately absent: what a member that gets a checkpoint needs ([`super::sending`]).
//!
//! [`ShardConfig::tails_bytes`]: super::config::ShardConfig::tails_bytes

use super::engine::ShardEngine;
use super::group::Phase;
use std::collections::BTreeSet;

/// So many entries are forgotten in one turn; of a group that applies more, twice as many as it applies.
const FORGOTTEN_AT_ONCE: usize = 256;

/// Tails that are longer than they may be.
#[derive(Debug, Default)]
pub(super) struct Tails {
    /// Of groups by slot: these are next.
    long: BTreeSet<usize>,
    /// Of groups at rest, which keep them until others need the room.
    resting: BTreeSet<usize>,
}

impl Tails {
    fn next(&self, has_room: bool) -> Option<usize> {
        let resting = self.resting.first().filter(|_| !has_room);
        self.long.first().or(resting).copied()
    }
}

impl ShardEngine {
    /// What a group that is awake may hold of applied entries, in bytes.
    pub(super) fn tail_bytes(&self) -> usize {
        self.config.tails_bytes / self.peers.awake().max(1)
    }

    fn has_room_for_tails(&self) -> bool {
        self.counters.raft_entries_held_bytes <= self.config.tails_bytes as u64
    }

    /// Whether it wants a turn although nothing happened.
    pub(super) fn has_long_tails(&self) -> bool {
        self.tails.next(self.has_room_for_tails()).is_some()
    }

    /// Forgets some entries of one of the tails that are too long.
    pub(super) fn trim_tails(&mut self) {
        if let Some(slot) = self.tails.next(self.has_room_for_tails()) {
            self.trim_tail(slot, 0);
        }
    }

    /// Forgets some of what a group that has just applied so many entries need not hold any more.
    pub(super) fn trim_tail(&mut self, slot: usize, applied: usize) {
        self.tails.long.remove(&slot);
        self.tails.resting.remove(&slot);
        // While it loads, an older base may turn out to be the one to start from.
        if self.groups[slot].phase == Phase::Serving {
            self.shorten_tail(slot, applied);
        }
        self.count_entries(slot);
    }

    fn shorten_tail(&mut self, slot: usize, applied: usize) {
        let needed = self.entries_needed(slot);
        let (is_awake, has_room) = (self.peers.is_awake(slot), self.has_room_for_tails());
        let share = self.tail_bytes();
        let part = self.config.tails_bytes / self.groups.len();
        let raft = &mut self.groups[slot].raft;
        if raft.is_alone() {
            let applied = raft.log().applied();
            return raft.log_mut().compact(applied);
        }
        if has_room && !is_awake {
            if raft.log().held_bytes() > part {
                self.tails.resting.insert(slot);
            }
            return;
        }
        let bytes = if is_awake { share } else { part };
        let at_once = FORGOTTEN_AT_ONCE.max(2 * applied);
        if raft.log_mut().compact_but(bytes, needed, at_once) {
            self.tails.long.insert(slot);
        }
    }

    fn count_entries(&mut self, slot: usize) {
        let group = &mut self.groups[slot];
        let held = group.raft.log().held_bytes() as u64;
        let before = std::mem::replace(&mut group.entries_bytes, held);
        let counter = &mut self.counters.raft_entries_held_bytes;
        *counter = *counter - before + held;
    }
}
