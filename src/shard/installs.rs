//! Which checkpoints are on their way between this shard and other nodes, and until when.
//!
//! ```text
//!   leader                                    follower
//!   Offer ──(each election timeout)─────────> take_offer
//!   freeze, hash <────────────────── Get 0 ── begin
//!   Part 0: the head, and names ────────────> compare with what is here
//!   Part 1, 2, 3, 4 <──── Get 1, with wants ──
//!     nodes ────────────────────────────────> compare further down
//!     pages and bodies ─────────────────────> write
//!     ...                              ...
//!   (keeps the log) <────── Get, done ─────── sync, open as a start does
//!                                             BASE record durable: in force
//!   replicate from there <──────── Appended ── Raft
//! ```
//!
//! The asker decides: whoever has it answers what it is asked, and forgets what nobody asks about.
//! A lost part is asked for again; an asker that starts anew asks under another number, and finds what it
//! has written of the last one.
//!
//! # Invariants
//!
//! - A shard gathers one checkpoint at a time, and sends one at a time to each node; the others wait for
//!   their turn, or for the next offer. A few parts are on their way, however large the checkpoint is.
//! - What is under way ends: when it is done, when a process is proved to be dead, or when nothing was
//!   heard of it for [`FORGET_AFTER`].
//!
//! Deliberately absent: going on with what another start of this node has begun.

use super::effect::CheckpointFile;
use super::engine::ShardEngine;
use super::input::Loss;
use super::installing::{Receiving, SetAside};
use super::sending::{Get, Sending};
use crate::base::units::Monotonic;
use crate::raft::message::{Checkpoint, Position, Voter};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A checkpoint of which nothing was heard for so long is forgotten.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(30);

/// Checkpoints on their way.
#[derive(Default)]
pub(super) struct Installs {
    /// By who gets it, and the slot.
    pub(super) sending: BTreeMap<(Voter, usize), Sending>,
    pub(super) receiving: Option<Receiving>,
    /// What was written of one that broke off.
    pub(super) set_aside: Option<SetAside>,
    /// What was offered meanwhile to other groups, by slot: by whom, and up to where.
    pub(super) offered: BTreeMap<usize, (Voter, Position)>,
    /// Slots of whose state something may be damaged, nobody knows what, since a checkpoint that kept it could
    /// not be opened: nothing of it is kept in the next.
    pub(super) rotten: BTreeSet<usize>,
    /// Slots whose last installation failed, and when the next may begin.
    pub(super) put_off: BTreeMap<usize, Monotonic>,
    /// Counts what was asked for.
    pub(super) asked: u32,
    /// Why the last installation failed.
    pub(super) failure: Option<String>,
}

impl Installs {
    /// Files that what is being sent is read from, and those that what is brought here needs.
    pub(super) fn files(&self) -> impl Iterator<Item = CheckpointFile> {
        let sending = self.sending.values().flat_map(Sending::files);
        let receiving = self.receiving.iter().flat_map(Receiving::files);
        let aside = self.set_aside.iter().flat_map(SetAside::files);
        sending.chain(receiving).chain(aside)
    }

    /// Whether the next step can be made at once.
    pub(super) fn wants_a_turn(&self) -> bool {
        let may_begin = self.receiving.is_none() && !self.offered.is_empty();
        may_begin
            || self.receiving.as_ref().is_some_and(Receiving::wants_a_turn)
            || self.sending.values().any(Sending::wants_a_turn)
    }

    /// When it wants a turn although nothing happened.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        let sending = self.sending.values().map(Sending::forget_at);
        let receiving = self.receiving.as_ref().map(Receiving::next_deadline);
        let aside = self.set_aside.as_ref().map(SetAside::until);
        sending.chain(receiving).chain(aside).min()
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
                    wants_from,
                    wants,
                    done,
                } => {
                    let get = Get {
                        id,
                        above,
                        next,
                        again,
                        wants_from,
                        wants: &wants,
                        done,
                    };
                    self.on_get(slot, from, &get);
                }
                Checkpoint::Part { id, number, bytes } => {
                    self.on_part(slot, (from, id), number, &bytes);
                }
            }
        }
    }

    /// Another node is not what it was. After a start it knows of nothing any more.
    pub(super) fn installs_lost(&mut self, peer: Voter, loss: Loss) {
        let now = self.now.mono;
        let is_from = |receiving: &&mut Receiving| receiving.from() == peer;
        match loss {
            Loss::Broken => {
                if let Some(receiving) = self.installs.receiving.as_mut().filter(is_from) {
                    receiving.ask_soon(now);
                }
            }
            Loss::Silent => {}
            Loss::Dead => {
                self.installs.sending.retain(|(to, _), _| *to != peer);
                self.installs.offered.retain(|_, (from, _)| *from != peer);
                let receiving = self.installs.receiving.as_ref();
                if receiving.is_some_and(|receiving| receiving.from() == peer) {
                    self.break_off_install();
                }
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
        self.step_sending();
        self.step_receiving();
    }
}
