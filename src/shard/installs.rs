//! Which checkpoints are on their way between this shard and other nodes, and until when.
//!
//! ```text
//!   leader                                    follower
//!   Offer ──(each election timeout)─────────> take_offer
//!   freeze <──────────────────────── Get 0 ── begin
//!   Part 0, 1, 2, 3 ────────────────────────> gather
//!   Part 4 <───────────────────────── Get 1 ──
//!     ...                              ...
//!   the last Part ──────────────────────────> load, page by page
//!   (keeps the log) <─────── Get, each second  write: a checkpoint round of its own
//!                                             BASE record durable: in force
//!   replicate from there <──────── Appended ── Raft
//! ```
//!
//! The asker decides: whoever has it answers what it is asked, and forgets what nobody asks about.
//! A lost part is asked for again; an asker that starts anew asks under another number.
//!
//! # Invariants
//!
//! - A shard gathers one checkpoint at a time, and sends one at a time to each node; the others wait for
//!   their turn, or for the next offer. A few parts are on their way, however large the checkpoint is.
//! - What is under way ends: when it is done, when a process is proved to be dead, or when nothing was
//!   heard of it for [`FORGET_AFTER`].
//!
//! Deliberately absent: going on with a checkpoint that another leader began, or another start of this
//! node; sending only the pages that changed.

use super::effect::CheckpointFile;
use super::engine::ShardEngine;
use super::input::Loss;
use super::installing::Receiving;
use super::sending::Sending;
use crate::base::units::Monotonic;
use crate::raft::message::{Checkpoint, Position, Voter};
use std::collections::BTreeMap;
use std::time::Duration;

/// A checkpoint of which nothing was heard for so long is forgotten.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(30);

/// Checkpoints on their way.
#[derive(Default)]
pub(super) struct Installs {
    /// By who gets it, and the slot.
    pub(super) sending: BTreeMap<(Voter, usize), Sending>,
    pub(super) receiving: Option<Receiving>,
    /// What was offered meanwhile to other groups, by slot: by whom, and up to where.
    pub(super) offered: BTreeMap<usize, (Voter, Position)>,
    /// Slots whose last installation failed, and when the next may begin.
    pub(super) put_off: BTreeMap<usize, Monotonic>,
    /// Counts what was asked for.
    pub(super) asked: u32,
    /// Why the last installation failed.
    pub(super) failure: Option<String>,
}

impl Installs {
    /// Files that what is being sent is read from.
    pub(super) fn files(&self) -> impl Iterator<Item = CheckpointFile> {
        self.sending.values().flat_map(Sending::files)
    }

    /// Whether the next step can be made at once.
    pub(super) fn wants_a_turn(&self) -> bool {
        let may_begin = self.receiving.is_none() && !self.offered.is_empty();
        may_begin || self.receiving.as_ref().is_some_and(Receiving::loads)
    }

    /// When it wants a turn although nothing happened.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        let sending = self.sending.values().map(Sending::forget_at);
        let receiving = self.receiving.as_ref().map(Receiving::next_deadline);
        sending.chain(receiving).min()
    }

    /// Another node is not what it was. After a start it knows of nothing any more.
    pub(super) fn lost(&mut self, peer: Voter, loss: Loss, now: Monotonic) {
        match loss {
            Loss::Broken => {
                if let Some(receiving) = self.receiving.as_mut().filter(|it| it.from() == peer) {
                    receiving.ask_soon(now);
                }
            }
            Loss::Silent => {}
            Loss::Dead => {
                self.sending.retain(|(to, _), _| *to != peer);
                self.offered.retain(|_, (from, _)| *from != peer);
                self.receiving
                    .take_if(|it| it.from() == peer && it.gathers());
            }
        }
    }
}

impl ShardEngine {
    /// Why the last checkpoint of another node that failed could not be installed, for people.
    #[must_use]
    pub fn install_failure(&self) -> Option<&str> {
        self.installs.failure.as_deref()
    }

    /// What was said about checkpoints.
    pub(super) fn on_checkpoints(&mut self, slot: usize) {
        for (from, what) in self.groups[slot].raft.take_checkpoints() {
            match what {
                Checkpoint::Get {
                    id,
                    above,
                    next,
                    again,
                } => self.on_get(slot, from, (id, above), next, again),
                Checkpoint::Part {
                    id,
                    number,
                    bytes,
                    hash,
                } => self.on_part(slot, (from, id), number, &bytes, hash),
            }
        }
    }

    /// Goes on with what is under way, and forgets what has died.
    pub(super) fn step_installs(&mut self) {
        let now = self.now.mono;
        let sending = &mut self.installs.sending;
        sending.retain(|_, sending| sending.forget_at() > now);
        self.counters.checkpoints_under_way = sending.len() as u64;
        self.installs.put_off.retain(|_, until| *until > now);
        self.step_receiving();
    }
}
