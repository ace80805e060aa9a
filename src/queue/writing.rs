//! A frozen state to disk: what of it is not there yet, piece by piece; and what the machine remembers
//! of it afterwards.
//!
//! ```text
//!   cut ─> FrozenState ─> StateWriter ─> bodies, pages, nodes ─> their places ─┐
//!                          │    ^ ─────────────────────────────────────────────┘
//!                          │    └ bottom up: a node names where what is below it lies
//!                          └─> WrittenState: what the root names;  Kept ─> JobQueue::keep
//! ```
//!
//! A page that has not changed since the last checkpoint is not looked at, nor is a node above none that
//! has: what is written is what changed, and a node for each level above it. Only where files are left is
//! all looked at that may have something in them, some pages a step.
//!
//! # Invariants
//! - Bodies come before the page of their job, pages and nodes before the node above.
//! - The machine believes that something is stored once the checkpoint is durable, not earlier, and only
//!   if it has not changed since the cut.

use crate::base::checksum::Hash128;
use crate::base::ids::{JobId, Partition, QueueUid};
use crate::base::limits::LEAF_JOBS;
use crate::queue::body::StoredBody;
use crate::queue::codec::put_u48;
use crate::queue::deadlines::Place;
use crate::queue::frozen::{FrozenPartition, FrozenState, Shared};
use crate::queue::history::FinishedPage;
use crate::queue::job_queue::JobQueue;
use crate::queue::keys::Bucket;
use crate::queue::leaf::Leaf;
use crate::queue::needs::PAGES_AHEAD;
use crate::queue::page::{PageError, put_finished, put_keys};
use crate::queue::queues::QueueRecord;
use crate::queue::residence::{AbsentPage, Holds, StoredPart};
use crate::queue::sessions::Session;
use crate::queue::shipping::leaf_bytes;
use crate::queue::tree::{NEVER, Placed, Summary, Todo, Walk, WrittenTree};
use crate::queue::view::{BodyLocation, PageKey, PageKind, StoredPage};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// Bytes of a summary.
const SUMMARY_BYTES: usize = 44;

/// What is in the pages below a branch, in bytes: live u64, payload bytes u64, classes u16, zeros (2),
/// and the first time of each order u48, all ones if nothing waits in it.
pub type SummaryBytes = [u8; SUMMARY_BYTES];

pub(super) fn put_summary(summary: &Summary) -> SummaryBytes {
    let mut out = Vec::with_capacity(SUMMARY_BYTES);
    out.extend_from_slice(&summary.live.to_le_bytes());
    out.extend_from_slice(&summary.bytes.to_le_bytes());
    out.extend_from_slice(&summary.classes.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    for due in summary.dues {
        put_u48(&mut out, if due == NEVER { (1 << 48) - 1 } else { due });
    }
    out.try_into().expect("a summary has 44 bytes")
}

/// What [`put_summary`] has put.
pub(super) fn read_summary(bytes: &SummaryBytes) -> Summary {
    let word = |at: usize, len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&bytes[at..at + len]);
        u64::from_le_bytes(word)
    };
    let due = |order: usize| Some(word(20 + 6 * order, 6)).filter(|due| *due != (1 << 48) - 1);
    Summary {
        live: word(0, 8),
        bytes: word(8, 8),
        classes: word(16, 2) as u16,
        dues: std::array::from_fn(|order| due(order).unwrap_or(NEVER)),
    }
}

/// Files of this node's disk that a checkpoint leaves: what lives in them is written anew.
#[derive(Debug, Default)]
pub struct LeftFiles {
    /// Run files.
    pub runs: BTreeSet<u64>,
    /// Payload files.
    pub payloads: BTreeSet<u64>,
}

/// What is to be written next.
pub enum Piece {
    /// Nothing yet: much was looked at that stays where it is.
    Pause,
    /// Nothing before the first of these is read, with the bodies of its jobs, and given to the writer. The
    /// others, pages behind it, are taken as well, in this order.
    Read(Vec<AbsentPage>),
    /// The body of a job.
    Body {
        /// The job.
        job: JobId,
        /// Its body.
        body: StoredBody,
    },
    /// A page.
    Page {
        /// Its key.
        key: PageKey,
        /// Its bytes.
        bytes: Bytes,
        /// Where the bodies of its jobs are, by slot.
        bodies: Vec<(u8, BodyLocation)>,
    },
    /// A node above pages of which a partition has many.
    Node {
        /// Kind, queue and partition of the pages; its number among the nodes of its level.
        key: PageKey,
        /// 1 has pages below it.
        level: u8,
        /// By slot: what is in it, and where it is.
        branches: Vec<(u8, SummaryBytes, StoredPage)>,
    },
}

/// A tree of pages as a root names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTree {
    /// Kind, queue and partition of its pages; the number of its highest node.
    pub key: PageKey,
    /// The level of that node.
    pub level: u8,
    /// What is in it.
    pub summary: SummaryBytes,
    /// Where the node is.
    pub stored: StoredPage,
    /// Run files with the bytes that its pages and nodes have in them.
    pub runs: BTreeMap<u64, u64>,
    /// Payload files with the bytes and the number of the bodies of its jobs.
    pub payloads: BTreeMap<u64, (u64, u64)>,
}

/// What a root names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrittenState {
    /// The pages that a group has few of.
    pub pages: Vec<(PageKey, StoredPage)>,
    /// The trees of the others.
    pub trees: Vec<StoredTree>,
}

/// What tells that a page which a group has few of is as it was written.
#[derive(Clone)]
pub(super) enum Same {
    Queue(Arc<QueueRecord>),
    Session(Arc<Session>),
    /// Its bytes alone.
    Bytes,
}

/// The pages that a group has few of, as they are on this node's disk.
#[derive(Clone, Default)]
pub(super) struct Flat {
    /// The version of the machine by which they are laid out.
    version: u16,
    pages: BTreeMap<PageKey, (StoredPage, Same)>,
}

impl Flat {
    /// Where a page was stored last, whatever has become of it since.
    pub(super) fn stored(&self, key: PageKey) -> Option<StoredPage> {
        self.pages.get(&key).map(|(stored, _)| *stored)
    }

    /// Those behind one, or all.
    pub(super) fn behind(
        &self,
        key: Option<PageKey>,
    ) -> impl Iterator<Item = (PageKey, StoredPage)> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        let pages = self.pages.range((from, Bound::Unbounded));
        pages.map(|(key, (stored, _))| (*key, *stored))
    }
}

/// What the machine is to remember of a checkpoint once that is durable.
#[derive(Default)]
pub struct Kept {
    trees: VecDeque<KeptTree>,
    /// Jobs, where their bodies are, and where those were before.
    bodies: VecDeque<(JobId, BodyLocation, Option<BodyLocation>)>,
    flat: Option<Flat>,
}

struct KeptTree {
    kind: PageKind,
    place: Place,
    epoch: u32,
    placed: VecDeque<Placed>,
}

enum Walking {
    Leaves(Walk<Leaf>),
    Keys(Walk<Bucket>),
    Finished(Walk<FinishedPage>),
}

/// The leaf that is being written: bodies first.
struct OpenLeaf {
    number: u64,
    leaf: Arc<Leaf>,
    bodies: Vec<(u8, BodyLocation)>,
    /// Slots that are not looked at yet, and where their bodies were.
    left: VecDeque<(usize, Option<BodyLocation>)>,
}

/// Writes a frozen state.
pub struct StateWriter {
    shared: Arc<Shared>,
    files: Arc<LeftFiles>,
    /// The trees that are not begun, in the order of partitions.
    left: VecDeque<(Place, PageKind)>,
    walking: Option<(Place, Walking)>,
    leaf: Option<OpenLeaf>,
    /// What was read before its turn.
    ahead: VecDeque<StoredPart>,
    /// Of the partition whose leaves are written.
    payloads: BTreeMap<u64, (u64, u64)>,
    /// The lowest key of a page that a group has few of which can come next.
    flat: Option<PageKey>,
    open_flat: Option<(PageKey, Same)>,
    written_flat: Flat,
    written: WrittenState,
    /// `None`: nothing is to be remembered of it.
    kept: Option<Kept>,
}

impl FrozenState {
    /// All files that something of it is in.
    #[must_use]
    pub fn files(&self) -> LeftFiles {
        let mut files = LeftFiles::default();
        let flat = self.shared.flat.pages.values();
        files.runs.extend(flat.map(|(stored, _)| stored.file));
        for partition in self.shared.partitions.values() {
            files.runs.extend(partition.leaves.runs());
            files.runs.extend(partition.keys.tree().runs());
            files.runs.extend(partition.finished.runs());
            files.payloads.extend(partition.payloads.keys());
        }
        files
    }

    /// Begins to hand out what has changed since it was stored, only to be looked at.
    #[must_use]
    pub(super) fn hasher(&self) -> StateWriter {
        let mut writer = self.writer(&Arc::default());
        writer.kept = None;
        writer
    }

    /// Begins to write what is not on the disk, or in files that are left.
    #[must_use]
    pub fn writer(&self, files: &Arc<LeftFiles>) -> StateWriter {
        let kinds = [PageKind::Leaf, PageKind::Keys, PageKind::Finished];
        let places = self.shared.partitions.keys();
        let left = places.flat_map(|place| kinds.map(|kind| (*place, kind)));
        StateWriter {
            left: left.collect(),
            shared: Arc::clone(&self.shared),
            files: Arc::clone(files),
            walking: None,
            leaf: None,
            ahead: VecDeque::new(),
            payloads: BTreeMap::new(),
            flat: Some(Shared::first_key()),
            open_flat: None,
            written_flat: Flat {
                version: self.shared.group.version,
                pages: BTreeMap::new(),
            },
            written: WrittenState::default(),
            kept: Some(Kept::default()),
        }
    }
}

fn key(kind: PageKind, (queue, partition): Place, number: u64) -> PageKey {
    PageKey {
        kind,
        queue,
        partition,
        number,
    }
}

impl StateWriter {
    /// What is to be written next; `None` at the end. What was handed out before has its place.
    pub fn next_piece(&mut self) -> Option<Piece> {
        loop {
            if self.leaf.is_some() {
                return Some(self.next_of_leaf());
            }
            let Some((place, walking)) = &mut self.walking else {
                if self.begin_tree() {
                    continue;
                }
                return self.next_flat();
            };
            let place = *place;
            let piece = match walking {
                Walking::Leaves(walk) => match walk.next() {
                    Some(Todo::Read) => return self.next_read(),
                    Some(Todo::Page { number, page }) => {
                        self.open_leaf(number, page);
                        continue;
                    }
                    todo => todo.map(|todo| node_of(PageKind::Leaf, place, todo)),
                },
                Walking::Keys(walk) => match walk.next() {
                    Some(Todo::Read) => return self.next_read(),
                    Some(Todo::Page { number, page }) => {
                        let bytes = put_keys(page.keys());
                        Some(page_of(key(PageKind::Keys, place, number), bytes))
                    }
                    todo => todo.map(|todo| node_of(PageKind::Keys, place, todo)),
                },
                Walking::Finished(walk) => match walk.next() {
                    Some(Todo::Read) => return self.next_read(),
                    Some(Todo::Page { number, page }) => {
                        let bytes = put_finished(&page);
                        Some(page_of(key(PageKind::Finished, place, number), bytes))
                    }
                    todo => todo.map(|todo| node_of(PageKind::Finished, place, todo)),
                },
            };
            if piece.is_some() {
                return piece;
            }
            self.end_tree();
        }
    }

    /// What is read ahead is taken. If it is not what is wanted, that is to be read: whoever reads is told
    /// what is wrong with it.
    fn next_read(&mut self) -> Option<Piece> {
        let wanted = self.wanted();
        if let Some(part) = self.ahead.pop_front()
            && wanted.first() == Some(&part.at)
            && self.take(part).is_ok()
        {
            return Some(Piece::Pause);
        }
        self.ahead.clear();
        Some(Piece::Read(wanted))
    }

    /// The next tree; false if there is none.
    fn begin_tree(&mut self) -> bool {
        let Some((place, kind)) = self.left.pop_front() else {
            return false;
        };
        let (partition, files) = (&self.shared.partitions[&place], &self.files);
        let walking = match kind {
            PageKind::Leaf => {
                self.payloads.clone_from(&partition.payloads);
                self.payloads
                    .retain(|file, _| !files.payloads.contains(file));
                let has_payloads = self.payloads.len() < partition.payloads.len();
                Walking::Leaves(Walk::new(partition.leaves.clone(), files, has_payloads))
            }
            PageKind::Keys => {
                let keys = partition.keys.tree().clone();
                Walking::Keys(Walk::new(keys, files, false))
            }
            _ => Walking::Finished(Walk::new(partition.finished.clone(), files, false)),
        };
        self.walking = Some((place, walking));
        true
    }

    fn end_tree(&mut self) {
        let Some((place, walking)) = self.walking.take() else {
            return;
        };
        let (kind, (tree, epoch, placed)) = match walking {
            Walking::Leaves(walk) => (PageKind::Leaf, walk.finish()),
            Walking::Keys(walk) => (PageKind::Keys, walk.finish()),
            Walking::Finished(walk) => (PageKind::Finished, walk.finish()),
        };
        let payloads = match kind {
            PageKind::Leaf => std::mem::take(&mut self.payloads),
            _ => BTreeMap::new(),
        };
        if let Some(tree) = tree {
            let WrittenTree {
                level,
                number,
                summary,
                stored,
                runs,
            } = tree;
            self.written.trees.push(StoredTree {
                key: key(kind, place, number),
                level: u8::try_from(level).expect("a tree has few levels"),
                summary: put_summary(&summary),
                stored,
                runs,
                payloads,
            });
        }
        if let Some(kept) = self.kept.as_mut().filter(|_| !placed.is_empty()) {
            kept.trees.push_back(KeptTree {
                kind,
                place,
                epoch,
                placed: placed.into(),
            });
        }
    }

    fn open_leaf(&mut self, number: u64, leaf: Arc<Leaf>) {
        let mut bodies = Vec::new();
        let mut left = VecDeque::new();
        for slot in leaf.live_slots() {
            let at = leaf.location(slot);
            match at.filter(|at| !self.files.payloads.contains(&at.file)) {
                Some(at) => bodies.push((slot as u8, at)),
                None => left.push_back((slot, at)),
            }
        }
        self.leaf = Some(OpenLeaf {
            number,
            leaf,
            bodies,
            left,
        });
    }

    fn next_of_leaf(&mut self) -> Piece {
        let open = self.leaf.as_mut().expect("the caller has looked");
        let (place, _) = self.walking.as_ref().expect("its tree is open");
        if let Some((slot, _)) = open.left.front() {
            let seq = open.number * LEAF_JOBS + *slot as u64;
            return Piece::Body {
                job: JobId::new(self.shared.group.group, place.0, place.1, seq),
                body: open.leaf.body(*slot).clone(),
            };
        }
        let bytes = leaf_bytes(&open.leaf);
        let mut bodies = std::mem::take(&mut open.bodies);
        bodies.sort_unstable_by_key(|(slot, _)| *slot);
        let key = key(PageKind::Leaf, *place, open.number);
        self.leaf = None;
        Piece::Page { key, bytes, bodies }
    }

    /// What must be read next.
    fn wanted(&self) -> Vec<AbsentPage> {
        let (place, walking) = self.walking.as_ref().expect("its tree is open");
        let (kind, wanted) = match walking {
            Walking::Leaves(walk) => (PageKind::Leaf, walk.wanted(PAGES_AHEAD)),
            Walking::Keys(walk) => (PageKind::Keys, walk.wanted(PAGES_AHEAD)),
            Walking::Finished(walk) => (PageKind::Finished, walk.wanted(PAGES_AHEAD)),
        };
        let wanted = wanted.iter().map(|absent| AbsentPage {
            key: key(kind, *place, absent.number),
            level: u8::try_from(absent.level).expect("a tree has few levels"),
            stored: absent.stored,
        });
        wanted.collect()
    }

    /// Something that was read.
    ///
    /// # Errors
    /// [`PageError`] if it cannot be what was written there: it is damaged.
    pub fn read(&mut self, part: StoredPart) -> Result<(), PageError> {
        if self.wanted().first() == Some(&part.at) {
            return self.take(part);
        }
        self.ahead.push_back(part);
        Ok(())
    }

    fn take(&mut self, part: StoredPart) -> Result<(), PageError> {
        let (_, walking) = self.walking.as_mut().expect("its tree is open");
        let taken = match (part.holds, walking) {
            (Holds::Leaf(leaf), Walking::Leaves(walk)) => walk.read_page(leaf),
            (Holds::Keys(bucket), Walking::Keys(walk)) => walk.read_page(bucket),
            (Holds::Finished(page), Walking::Finished(walk)) => walk.read_page(page),
            (Holds::Node(branches), Walking::Leaves(walk)) => walk.read_node(branches),
            (Holds::Node(branches), Walking::Keys(walk)) => walk.read_node(branches),
            (Holds::Node(branches), Walking::Finished(walk)) => walk.read_node(branches),
            _ => Err("it is of another kind than was asked for"),
        };
        taken.map_err(|what| PageError::of_page(part.at.key, what))
    }

    /// The body that was handed out is written there.
    ///
    /// # Panics
    /// If none was.
    pub fn body_placed(&mut self, job: JobId, at: BodyLocation) {
        let open = self.leaf.as_mut().expect("a leaf is open");
        let (slot, before) = open.left.pop_front().expect("a body was handed out");
        open.bodies.push((slot as u8, at));
        let used = self.payloads.entry(at.file).or_default();
        *used = (used.0 + at.disk_bytes(), used.1 + 1);
        if let Some(kept) = &mut self.kept {
            kept.bodies.push_back((job, at, before));
        }
    }

    /// The page or node that was handed out is written there.
    ///
    /// # Panics
    /// If none was.
    pub fn placed(&mut self, stored: StoredPage) {
        match &mut self.walking {
            Some((_, Walking::Leaves(walk))) => walk.placed(stored),
            Some((_, Walking::Keys(walk))) => walk.placed(stored),
            Some((_, Walking::Finished(walk))) => walk.placed(stored),
            None => {
                let (key, same) = self.open_flat.take().expect("a page was handed out");
                self.written_flat.pages.insert(key, (stored, same));
            }
        }
    }

    /// The next page of those that a group has few of, if it is not on the disk as it is.
    fn next_flat(&mut self) -> Option<Piece> {
        while let Some(from) = self.flat.take() {
            let (key, same) = self.shared.flat_from(from)?;
            self.flat = Some(PageKey {
                number: key.number + 1,
                ..key
            });
            let before = &self.shared.flat;
            let is_laid_out_so = before.version == self.written_flat.version;
            let known = before.pages.get(&key);
            let known = known.filter(|(stored, _)| !self.files.runs.contains(&stored.file));
            if let Some((stored, before)) =
                known.filter(|(_, before)| is_laid_out_so && is_same(before, &same))
            {
                self.written_flat
                    .pages
                    .insert(key, (*stored, before.clone()));
                continue;
            }
            let bytes = self.shared.flat_page(key, &same);
            let hash = Hash128::of(&bytes);
            if let Some((stored, _)) = known.filter(|(stored, _)| stored.hash == hash) {
                self.written_flat.pages.insert(key, (*stored, same));
                continue;
            }
            self.open_flat = Some((key, same));
            return Some(page_of(key, bytes));
        }
        None
    }

    /// What the root names, and what the machine is to remember.
    ///
    /// # Panics
    /// If something is left to be written.
    #[must_use]
    pub fn finish(mut self) -> (WrittenState, Kept) {
        let is_done = self.left.is_empty() && self.walking.is_none() && self.open_flat.is_none();
        assert!(is_done, "some of a state was not written");
        let pages = self.written_flat.pages.iter();
        self.written.pages = pages.map(|(key, (stored, _))| (*key, *stored)).collect();
        let mut kept = self.kept.unwrap_or_default();
        kept.flat = Some(self.written_flat);
        (self.written, kept)
    }
}

fn is_same(before: &Same, now: &Same) -> bool {
    match (before, now) {
        (Same::Queue(one), Same::Queue(other)) => Arc::ptr_eq(one, other),
        (Same::Session(one), Same::Session(other)) => Arc::ptr_eq(one, other),
        _ => false,
    }
}

fn page_of(key: PageKey, bytes: Bytes) -> Piece {
    let bodies = Vec::new();
    Piece::Page { key, bytes, bodies }
}

fn node_of<T>(kind: PageKind, place: Place, todo: Todo<T>) -> Piece {
    match todo {
        Todo::Pause => Piece::Pause,
        Todo::Read => unreachable!("what must be read was looked at before"),
        Todo::Page { number, .. } => unreachable!("page {number} was taken before"),
        Todo::Node {
            level,
            number,
            branches,
        } => {
            let branches = branches.into_iter();
            let branches =
                branches.map(|(slot, summary, stored)| (slot, put_summary(&summary), stored));
            Piece::Node {
                key: key(kind, place, number),
                level: u8::try_from(level).expect("a tree has few levels"),
                branches: branches.collect(),
            }
        }
    }
}

impl Shared {
    /// Where a page of which a group has few was stored last, whatever has become of it since.
    pub(super) fn flat_stored(&self, key: PageKey) -> Option<StoredPage> {
        self.flat.stored(key)
    }
}

impl JobQueue {
    /// The state as it is now, held still for a checkpoint: what changes from here on is not in it.
    ///
    /// # Panics
    /// If the state is not loaded.
    #[must_use]
    pub fn cut(&mut self) -> FrozenState {
        let partitions = self.partitions.iter_mut().map(|(place, state)| {
            let frozen = FrozenPartition {
                head: state.head,
                leaves: state.leaves.cut(),
                keys: state.keys.cut(),
                finished: state.history.cut(),
                payloads: state.payloads.clone(),
            };
            (*place, frozen)
        });
        let partitions = partitions.collect();
        self.frozen(partitions)
    }

    /// Takes note of up to `count` things that a checkpoint has on the disk, which is durable; whether
    /// there are more.
    pub fn keep(&mut self, kept: &mut Kept, count: usize) -> bool {
        if let Some(flat) = kept.flat.take() {
            self.flat = Arc::new(flat);
        }
        for _ in 0..count {
            if let Some((job, at, before)) = kept.bodies.pop_front() {
                self.set_body_location(job, at, before);
                continue;
            }
            let Some(tree) = kept.trees.front_mut() else {
                return false;
            };
            let placed = tree.placed.pop_front();
            let state = self.partitions.get_mut(&tree.place);
            if let (Some(placed), Some(state)) = (placed, state) {
                match tree.kind {
                    PageKind::Leaf => {
                        let before = *state.leaves.summary();
                        state.leaves.keep(&placed, tree.epoch);
                        let deadlines = &mut self.links.deadlines;
                        deadlines.note_jobs(tree.place, &before, state.leaves.summary());
                    }
                    PageKind::Keys => {
                        let before = state.keys.first_expiry();
                        state.keys.tree_mut().keep(&placed, tree.epoch);
                        let after = state.keys.first_expiry();
                        self.links.deadlines.note_keys(tree.place, before, after);
                    }
                    _ => state.history.pages_mut().keep(&placed, tree.epoch),
                }
            }
            if tree.placed.is_empty() {
                kept.trees.pop_front();
            }
        }
        !kept.bodies.is_empty() || !kept.trees.is_empty()
    }

    /// A page of which a group has few was read from there: it needs not be written again.
    pub fn found(&mut self, key: PageKey, stored: StoredPage) {
        let flat = Arc::make_mut(&mut self.flat);
        flat.pages.insert(key, (stored, Same::Bytes));
    }

    /// The next checkpoint stores this page anew, from memory. False if it is one of those that stand in trees:
    /// it stays where it is.
    pub fn store_anew(&mut self, key: PageKey) -> bool {
        let is_stored = self.flat.stored(key).is_some();
        if is_stored {
            Arc::make_mut(&mut self.flat).pages.remove(&key);
        }
        is_stored
    }

    /// Remembers where the body of a job is on this node's disk; nothing if the job is gone.
    pub(super) fn set_body_location(
        &mut self,
        job: JobId,
        at: BodyLocation,
        before: Option<BodyLocation>,
    ) {
        let place: (QueueUid, Partition) = (job.queue(), job.partition());
        let state = self.partitions.get_mut(&place);
        if let Some(state) = state.filter(|_| job.group() == self.group) {
            state.set_body_location(job.seq(), at, before);
        }
    }
}
