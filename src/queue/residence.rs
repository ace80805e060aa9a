//! Which pages of a state are here, and which are on this node's disk alone.
//!
//! ```text
//!   pages_needed(command) ──> what must be read first ──> the driver reads it ──> take_part
//!        └─> nothing: apply        (needs.rs)                                        │
//!                   ^ ──────────────────────────────────────────────────────────────┘
//! ```
//!
//! Leaves and buckets of keys may be absent: a start reads what must be here and no more. A leaf is here
//! with the bodies of its jobs or not at all.
//!
//! # Invariants
//! - Which pages are here changes no outcome and no answer: who needs one waits until it is.
//! - A leaf with a job in flight is always here: its session gives it back at once, and a token whose
//!   leaf is absent is therefore stale.
//! - Finished jobs that are retained are all here. Keys come when they are needed and stay.

use crate::base::bugs::{self, Bug};
use crate::base::ids::{GroupId, JobId};
use crate::base::limits::{LEAF_JOBS, NODE_BRANCHES};
use crate::queue::history::FinishedPage;
use crate::queue::job_queue::JobQueue;
use crate::queue::keys::Bucket;
use crate::queue::leaf::{IN_FLIGHT, Leaf};
use crate::queue::load::{Loading, body_of, check_owner, check_version};
use crate::queue::page::{
    LEAF_BYTES, PageError, read_finished, read_keys, read_leaf, read_reasons,
};
use crate::queue::partition::PartitionState;
use crate::queue::tree::{Absent, Summary, WrittenBranch};
use crate::queue::view::{BodyLocation, PageKey, PageKind, StoredPage};
use crate::queue::writing::{StoredTree, SummaryBytes, put_summary, read_summary};
use bytes::Bytes;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

/// What is wrong with a page that has such a sequence.
pub(super) const NEVER_GIVEN: &str = "a sequence was never given out";

/// A page that is on this node's disk alone, or a node above pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbsentPage {
    /// Its key; of a node, with its number among those of its level.
    pub key: PageKey,
    /// 0 is a page, 1 a node above pages.
    pub level: u8,
    /// Where it is.
    pub stored: StoredPage,
}

/// A page or node of a tree as it was read from this node's disk: decoded, so that taking it in costs a
/// shard little.
pub struct StoredPart {
    /// What it is, and where it was read.
    pub at: AbsentPage,
    pub(super) holds: Holds,
}

/// What a part holds.
pub(super) enum Holds {
    Leaf(Arc<Leaf>),
    Keys(Arc<Bucket>),
    Finished(Arc<FinishedPage>),
    Node(Vec<WrittenBranch>),
    /// The bytes of a page, and where the bodies of its jobs are, by slot.
    Places(Bytes, Vec<(u8, BodyLocation)>),
}

// Without what it holds, which is much.
impl fmt::Debug for StoredPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoredPart").field(&self.at).finish()
    }
}

impl StoredPart {
    /// A page of a group, of its bytes and of the bodies of its jobs by slot. All of it is looked at: not
    /// on the thread of a shard.
    ///
    /// # Errors
    /// [`PageError`] if it cannot be what was written there: it is damaged. No bytes make it panic.
    pub fn page(
        group: GroupId,
        at: AbsentPage,
        bytes: &Bytes,
        bodies: &[(u8, BodyLocation, Bytes)],
    ) -> Result<Self, PageError> {
        let number = at.key.number;
        let of_page = |what| PageError::of_page(at.key, what);
        let holds = match at.key.kind {
            PageKind::Leaf => Holds::Leaf(Arc::new(leaf_of_page((group, at.key), bytes, bodies)?)),
            PageKind::Keys => {
                let keys = read_keys(bytes, number).map_err(of_page)?;
                Holds::Keys(Arc::new(Bucket::of_keys(keys)))
            }
            PageKind::Finished => {
                let jobs = read_finished(bytes, number).map_err(of_page)?;
                Holds::Finished(Arc::new(FinishedPage::of_jobs(jobs)))
            }
            _ => return Err(of_page("there are no trees of such pages")),
        };
        Ok(Self { at, holds })
    }

    /// A page of which nothing is wanted but its bytes and where the bodies of its jobs are, by slot.
    #[must_use]
    pub fn places(at: AbsentPage, bytes: Bytes, places: Vec<(u8, BodyLocation)>) -> Self {
        let holds = Holds::Places(bytes, places);
        Self { at, holds }
    }

    /// A node, of its branches by slot.
    #[must_use]
    pub fn node(at: AbsentPage, branches: &[(u8, SummaryBytes, StoredPage)]) -> Self {
        let branches = branches.iter();
        let branches =
            branches.map(|(slot, summary, stored)| (*slot, read_summary(summary), *stored));
        let holds = Holds::Node(branches.collect());
        Self { at, holds }
    }
}

impl StoredPart {
    /// What is below it, with what is told of that; nothing below a page.
    pub fn below(&self) -> impl Iterator<Item = (AbsentPage, SummaryBytes)> {
        let at = self.at;
        let branches = match &self.holds {
            Holds::Node(branches) => &branches[..],
            _ => &[],
        };
        branches.iter().map(move |(slot, summary, stored)| {
            let below = AbsentPage {
                key: PageKey {
                    number: at.key.number * NODE_BRANCHES + u64::from(*slot),
                    ..at.key
                },
                level: at.level - 1,
                stored: *stored,
            };
            (below, put_summary(summary))
        })
    }

    /// Where the bodies of its jobs are, if it was read with [`Self::places`].
    pub fn bodies(&self) -> impl Iterator<Item = (u8, BodyLocation)> {
        let places = match &self.holds {
            Holds::Places(_, places) => &places[..],
            _ => &[],
        };
        places.iter().copied()
    }
}

/// A leaf, of its page's bytes and of the bodies of its jobs.
fn leaf_of_page(
    (group, key): (GroupId, PageKey),
    bytes: &Bytes,
    bodies: &[(u8, BodyLocation, Bytes)],
) -> Result<Leaf, PageError> {
    let of_page = |what| PageError::of_page(key, what);
    let mut leaf = Leaf::default();
    let (records, reasons) = bytes.split_at(bytes.len().min(LEAF_BYTES));
    let mut bodies = bodies.iter();
    for (slot, record) in read_leaf(records).map_err(of_page)? {
        let seq = key.number.checked_mul(LEAF_JOBS);
        let seq = seq.and_then(|first| first.checked_add(slot));
        let seq = seq.filter(|seq| *seq <= JobId::SEQ_MAX);
        let seq = seq.ok_or_else(|| of_page(NEVER_GIVEN))?;
        let id = JobId::new(group, key.queue, key.partition, seq);
        let body = bodies.next().filter(|body| u64::from(body.0) == slot);
        let (_, at, body) = body.ok_or_else(|| PageError::of_body(Some(id), "it is missing"))?;
        let body = body_of(&record, body).map_err(|what| PageError::of_body(Some(id), what))?;
        let slot = slot as usize;
        leaf.insert(slot, record, body);
        leaf.set_location(slot, *at);
    }
    if bodies.next().is_some() {
        return Err(of_page("it has a body without a job"));
    }
    if !reasons.is_empty() {
        for (slot, reason) in read_reasons(reasons).map_err(of_page)? {
            let slot = usize::from(slot);
            if leaf.records()[slot].state.is_none() {
                return Err(of_page("a reason is of a job that is not live"));
            }
            leaf.set_reason(slot, reason);
        }
    }
    Ok(leaf)
}

/// A tree with no more in it is read whole at a start.
const SMALL: u64 = 1024;

/// Whether a start reads a page (level 0) or node with this in it, of a tree with that in it.
#[must_use]
pub fn is_read_at_start(
    kind: PageKind,
    level: u8,
    tree: &SummaryBytes,
    summary: &SummaryBytes,
) -> bool {
    let is_small = || read_summary(tree).live <= SMALL;
    let is_held = || read_summary(summary).classes & (1 << IN_FLIGHT) != 0;
    level > 1
        || match kind {
            PageKind::Leaf => is_held() || is_small(),
            PageKind::Keys => is_small(),
            _ => true,
        }
}

impl JobQueue {
    /// Takes in what was read; false if it is here, or is not what is wanted any more.
    ///
    /// # Errors
    /// [`PageError`] if it cannot be what was written there: it is damaged.
    pub fn take_part(&mut self, part: StoredPart) -> Result<bool, PageError> {
        let key = part.at.key;
        let of_page = |what| PageError::of_page(key, what);
        let place = (key.queue, key.partition);
        let Some(state) = self.partitions.get_mut(&place) else {
            return Ok(false);
        };
        let at = (key.number, part.at.stored);
        let next_seq = state.head.next_seq;
        let taken = match part.holds {
            Holds::Node(branches) => {
                let absent = Absent {
                    level: part.at.level.into(),
                    number: key.number,
                    stored: part.at.stored,
                };
                match key.kind {
                    PageKind::Leaf => state.leaves.take_node(absent, branches),
                    PageKind::Keys => state.keys.tree_mut().take_node(absent, branches),
                    _ => state.history.pages_mut().take_node(absent, branches),
                }
            }
            Holds::Leaf(leaf) => {
                let first = key.number * LEAF_JOBS;
                for slot in leaf.live_slots() {
                    let record = &leaf.records()[slot];
                    if first + slot as u64 >= next_seq {
                        return Err(of_page(NEVER_GIVEN));
                    }
                    check_version(self.version, record).map_err(of_page)?;
                    check_owner(&self.links.sessions, record.owner).map_err(of_page)?;
                }
                let taken = state.leaves.take_page(at, Arc::clone(&leaf));
                if taken == Ok(true) {
                    state.hold(leaf.held_bytes(), &mut self.links);
                    for (slot, owner) in leaf.owned() {
                        let seq = first + slot as u64;
                        let id = JobId::new(self.group, key.queue, key.partition, seq);
                        self.links.sessions.hold(owner, id);
                    }
                }
                taken
            }
            Holds::Keys(bucket) => {
                if bucket.keys().iter().any(|key| key.seq >= next_seq) {
                    return Err(of_page(NEVER_GIVEN));
                }
                let held_bytes = bucket.held_bytes();
                let taken = state.keys.tree_mut().take_page(at, bucket);
                if taken == Ok(true) {
                    state.hold(held_bytes, &mut self.links);
                }
                taken
            }
            Holds::Finished(page) => state.history.pages_mut().take_page(at, page),
            // Its bodies were not read: nobody who applies asks so.
            Holds::Places(..) => Ok(false),
        };
        taken.map_err(of_page)
    }

    /// Lets go of pages that are stored until so many bytes of memory are free, or none can go. It begins
    /// with the youngest jobs, whose turn comes last, and goes on where it stopped; the bytes.
    pub fn let_go(&mut self, bytes: u64) -> u64 {
        let mut freed = 0;
        for _ in 0..=self.partitions.len() {
            let (place, before) = match self.hand {
                Some(hand) => hand,
                None => match self.partitions.keys().next() {
                    Some(place) => (*place, u64::MAX),
                    None => break,
                },
            };
            let mut before = before;
            while let Some(state) = self.partitions.get_mut(&place)
                && freed < bytes
                && let Some((number, held)) = state.let_go_below(before)
            {
                before = number;
                freed += held;
                state.free(held, &mut self.links);
            }
            if freed >= bytes {
                self.hand = Some((place, before));
                break;
            }
            let behind = (Bound::Excluded(place), Bound::Unbounded);
            let next = self.partitions.range(behind).next();
            self.hand = next.map(|(place, _)| (*place, u64::MAX));
        }
        freed
    }

    /// The state of a group as a checkpoint on this node's disk has it: the pages of which a group has
    /// few, in the order of their keys, and of its trees what a start reads
    /// ([`is_read_at_start`]), each node before what is below it.
    ///
    /// # Errors
    /// [`PageError`] names what is damaged or missing. No bytes make it panic.
    pub fn open(
        &mut self,
        pages: &[(PageKey, Bytes)],
        trees: &[StoredTree],
        parts: Vec<StoredPart>,
    ) -> Result<(), PageError> {
        let mut loading = Loading::of_pages(self.group, pages)?;
        for tree in trees {
            loading.tree(tree)?;
        }
        for part in parts {
            loading.machine.take_part(part)?;
        }
        *self = loading.finish_open()?;
        Ok(())
    }
}

impl PartitionState {
    /// Lets go of the last leaf below `before` that can go; its number, and the memory that it took.
    fn let_go_below(&mut self, before: u64) -> Option<(u64, u64)> {
        let is_held = |summary: &Summary| summary.classes & (1 << IN_FLIGHT) != 0;
        let may_go = |summary: &Summary| !is_held(summary) || bugs::on(Bug::LetGoInFlight);
        let number = self.leaves.last_stored(before, may_go)?;
        let leaf = self.leaves.let_go(number)?;
        Some((number, leaf.held_bytes()))
    }
}
