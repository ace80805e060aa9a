//! Entries that a follower lacks and memory does not hold any more, read again from this shard's own log.
//!
//! ```text
//!   Raft: a follower is behind ─> which piece of the log has what it lacks?
//!                                   │             │ none, or far too much: a checkpoint is offered
//!                                   │ (held)      └─> ReadLog ─> LogRead ─> held
//!                                   └─> one append ─> (accepted) ─> Raft: is it behind still?
//! ```
//!
//! Groups share the log, and a node that was away lacks about the same of each: what is read is read once
//! for all of them, and kept for a while.
//!
//! # Invariants
//!
//! - What is sent was applied here, so it is committed: it is the last that the log says of its index, it
//!   is what was sealed, and its terms lead to the entry that memory goes on from.
//! - [`READS_MAX`] pieces are read at a time, and [`PIECES_HELD`] are held, as long as anybody is behind;
//!   a follower of a group has one append of them under way.
//!
//! Deliberately absent: keeping the log for who is behind. What goes meanwhile, by a checkpoint, ends in
//! an offer of that.

use super::effect::Effect;
use super::engine::ShardEngine;
use crate::base::entry::Entry;
use crate::base::ids::{LogIndex, Term};
use crate::base::limits::APPEND_BYTES_MAX;
use crate::base::units::Lsn;
use crate::raft::message::{Entries, Position, Voter};
use crate::wal::pieces::{self, Piece};
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};

/// Pieces that are read at the same time.
const READS_MAX: usize = 2;
/// Pieces that are held, each of about 1 MiB.
const PIECES_HELD: usize = 8;

/// What is read of the log, and for whom.
#[derive(Debug, Default)]
pub(super) struct LogReads {
    /// By slot: who is behind, also while an append of what was read is under way.
    behind: BTreeSet<(usize, Voter)>,
    under_way: BTreeSet<Piece>,
    /// The one that was of use last is the last; without entries where they are not what they should be.
    held: VecDeque<(Piece, Option<pieces::Entries>)>,
}

impl LogReads {
    /// These followers are behind.
    pub(super) fn wanted(&mut self, slot: usize, followers: Vec<Voter>) {
        let places = followers.into_iter().map(|follower| (slot, follower));
        self.behind.extend(places);
    }

    /// The piece that begins there, as far as it was read, if it is held.
    fn use_held(&mut self, at: Lsn) -> Option<&(Piece, Option<pieces::Entries>)> {
        let place = self.held.iter().position(|(piece, _)| piece.lsn == at)?;
        let held = self.held.remove(place).expect("it was just seen");
        self.held.push_back(held);
        self.held.back()
    }

    fn hold(&mut self, piece: Piece, entries: Option<pieces::Entries>) {
        // It may have been shorter.
        self.held.retain(|(held, _)| held.lsn != piece.lsn);
        self.held.push_back((piece, entries));
        if self.held.len() > PIECES_HELD {
            self.held.pop_front();
        }
    }
}

/// What is known of the entries that a follower lacks.
enum Found {
    /// They are these, behind this place.
    Entries(Position, Vec<Entry>),
    /// This is to be read first.
    In(Piece),
    /// They are not durable here yet.
    Later,
    /// They are not there.
    Nowhere,
    /// They are not where they should be, or are not what was written.
    Bad,
}

impl ShardEngine {
    /// Sends what is held to those who are behind, and reads what they need next.
    pub(super) fn read_for_followers(&mut self) {
        let groups = &self.groups;
        self.log_reads
            .behind
            .retain(|(slot, follower)| groups[*slot].raft.is_behind(*follower));
        if self.log_reads.behind.is_empty() {
            self.log_reads.held.clear();
            return;
        }
        for (slot, follower) in self.log_reads.behind.clone() {
            let Some(next) = self.groups[slot].raft.reads_for(follower) else {
                continue;
            };
            match self.find_for(slot, next) {
                Found::Entries(prev, entries) => self.append_old(slot, follower, prev, entries),
                Found::In(piece) => {
                    let reads = &mut self.log_reads.under_way;
                    if reads.len() < READS_MAX && reads.insert(piece) {
                        self.effects.push(Effect::ReadLog(piece));
                    }
                    continue;
                }
                Found::Later => continue,
                Found::Bad => {
                    self.counters.log_pieces_bad_total += 1;
                    self.groups[slot].raft.offer(follower);
                }
                Found::Nowhere => self.groups[slot].raft.offer(follower),
            }
            self.mark(slot);
        }
    }

    /// Looks for the entry before `next`, and those from there on.
    fn find_for(&mut self, slot: usize, next: LogIndex) -> Found {
        let group = &self.groups[slot];
        let (id, life, base) = (group.id, group.incarnation, group.raft.log().base());
        // Who was not there when the group began lacks the very first, and no entry is before that.
        let before = usize::from(next > LogIndex(1));
        let first = LogIndex(next.0 - before as u64);
        let size = self.wal.bytes_of(id, life, first..=base.0);
        let bound = self.config.catch_up_bytes.max(group.queue.held_bytes());
        if size.is_none_or(|bytes| bytes > bound) {
            return Found::Nowhere;
        }
        let mut found: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut at = first;
        // The entry before may be the last of its piece.
        while found.len() <= before {
            let Some(held) = self.wal.find(id, life, at) else {
                return Found::Nowhere;
            };
            if held.piece.bytes == 0 {
                return Found::Later;
            }
            let Some((read, entries)) = self.log_reads.use_held(held.piece.lsn) else {
                return Found::In(held.piece);
            };
            let Some(entries) = entries else {
                return Found::Nowhere;
            };
            let last = held.last.min(base.0);
            let count = found.len();
            for entry in entries.range(id, life, at..=last) {
                bytes += entry.held_bytes();
                if found.len() > before && bytes > APPEND_BYTES_MAX {
                    break;
                }
                found.push(entry.clone());
            }
            if found.len() == count {
                return match held.is_durable {
                    _ if read.bytes < held.piece.bytes => Found::In(held.piece),
                    true => Found::Bad,
                    false => Found::Later,
                };
            }
            at = LogIndex(first.0 + found.len() as u64);
        }
        let leads_to_base = found.is_sorted_by_key(|entry| entry.term)
            && found.last().is_some_and(|last| {
                last.term == base.1 || (last.term < base.1 && last.index < base.0)
            });
        if !leads_to_base {
            return Found::Bad;
        }
        let entry_before = found.drain(..before).next();
        let start = (LogIndex(0), Term(0));
        let prev = entry_before.map_or(start, |entry| (entry.index, entry.term));
        Found::Entries(prev, found)
    }

    fn append_old(&mut self, slot: usize, follower: Voter, prev: Position, entries: Vec<Entry>) {
        let count = entries.len() as u64;
        let entries: Entries = entries.into_iter().collect();
        if self.groups[slot].raft.append_old(follower, prev, entries) {
            self.counters.entries_sent_from_log_total += count;
        }
    }

    /// A piece of the log was read.
    pub(super) fn on_log_read(&mut self, piece: Piece, bytes: Option<&Bytes>) {
        self.log_reads.under_way.remove(&piece);
        self.counters.log_pieces_read_total += 1;
        let whole = bytes.filter(|bytes| bytes.len() == piece.bytes as usize);
        let entries = whole.and_then(|bytes| pieces::Entries::of(&piece, bytes));
        self.counters.log_pieces_bad_total += u64::from(entries.is_none());
        self.log_reads.hold(piece, entries);
    }
}
