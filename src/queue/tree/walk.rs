//! What of a tree is not on this node's disk, or in files that are to go, bottom up; and taking note that
//! it is.
//!
//! ```text
//!   a copy of the tree ─> Walk ─> todo ─> written elsewhere ─> placed ─┐
//!                          ^ ──────────────────────────────────────────┘
//!                          └─> Placed ─> keep: what has not changed since is stored
//! ```
//!
//! What is absent is stored, and so is left alone, unless files are left that it may have something in:
//! then it is asked for. The walk takes it in, the tree does not.

use super::residence::Absent;
use super::{Below, DUES, Node, OnDisk, Page, Summary, Tree, bits, branch_of};
use crate::queue::view::StoredPage;
use crate::queue::writing::LeftFiles;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pages that a walk looks at before it pauses.
const PAUSE_AFTER: usize = 256;

/// A branch as it is written: its slot, what is in it, where it is.
pub(in crate::queue) type WrittenBranch = (u8, Summary, StoredPage);

/// What is to be written next.
pub(in crate::queue) enum Todo<T> {
    /// Nothing yet: many pages were looked at that stay where they are.
    Pause,
    /// Nothing before something is read ([`Walk::wanted`]) and taken in.
    Read,
    /// A page.
    Page {
        /// Its number.
        number: u64,
        /// What it holds.
        page: Arc<T>,
    },
    /// A node, whose branches are all stored.
    Node {
        /// 1 has pages below it.
        level: u32,
        /// Its number among those of its level.
        number: u64,
        /// By slot.
        branches: Vec<WrittenBranch>,
    },
}

/// What a walk has written: on the disk once it is synced.
#[derive(Clone, Copy, Debug)]
pub(in crate::queue) struct Placed {
    /// 0 is a page.
    level: u32,
    number: u64,
    summary: Summary,
    stored: StoredPage,
    /// Where it was before, if it was anywhere.
    before: Option<StoredPage>,
}

/// The root of a tree that is written, and what the tree keeps of run files.
pub(in crate::queue) struct WrittenTree {
    /// Its level.
    pub(in crate::queue) level: u32,
    /// Its number among the nodes of its level.
    pub(in crate::queue) number: u64,
    /// What is in the tree.
    pub(in crate::queue) summary: Summary,
    /// Where the root is.
    pub(in crate::queue) stored: StoredPage,
    /// Run files with the bytes that the tree has in them.
    pub(in crate::queue) runs: BTreeMap<u64, u64>,
}

/// A place in the tree that the walk has come to.
#[derive(Clone, Copy)]
struct Place {
    /// 0 is a page.
    level: u32,
    number: u64,
    summary: Summary,
    /// Where it is on the disk.
    before: Option<StoredPage>,
    /// It may stay there, as far as is known.
    stays: bool,
}

struct Frame<T> {
    node: Arc<Node<T>>,
    place: Place,
    /// The branches that are not looked at yet.
    left: u64,
    written: Vec<WrittenBranch>,
}

impl<T> Frame<T> {
    fn new(node: Arc<Node<T>>, place: Place) -> Self {
        Self {
            left: node.used,
            node,
            place,
            written: Vec::new(),
        }
    }
}

/// A walk over what is not stored of a tree, or is in files that are left.
pub(in crate::queue) struct Walk<T> {
    tree: Tree<T>,
    files: Arc<LeftFiles>,
    /// What is stored is looked at, too: some of it is in such files.
    looks: bool,
    /// Some bodies are in such files.
    has_payloads: bool,
    /// Pages looked at that stay, since the last pause.
    looked: usize,
    frames: Vec<Frame<T>>,
    /// What must be read.
    wanted: Option<Place>,
    /// A page that was read and is not looked at yet.
    ready: Option<(Place, Arc<T>)>,
    /// What was handed out last and has no place yet.
    open: Option<Place>,
    root: Option<(Summary, StoredPage)>,
    runs: BTreeMap<u64, u64>,
    placed: Vec<Placed>,
}

impl<T: Page> Walk<T> {
    /// Over a copy of a tree, whose pages are known to have something in payload files that are left, or
    /// not.
    pub(in crate::queue) fn new(tree: Tree<T>, files: &Arc<LeftFiles>, has_payloads: bool) -> Self {
        let looks = has_payloads || tree.disk.runs.keys().any(|file| files.runs.contains(file));
        let runs = tree.disk.runs.iter();
        let runs = runs.filter(|(file, _)| !files.runs.contains(file));
        let mut walk = Self {
            runs: runs.map(|(file, bytes)| (*file, *bytes)).collect(),
            files: Arc::clone(files),
            looks,
            has_payloads,
            looked: 0,
            frames: Vec::new(),
            wanted: None,
            ready: None,
            open: None,
            root: None,
            placed: Vec::new(),
            tree,
        };
        if walk.tree.height != 0 {
            let (height, prefix) = (walk.tree.height, walk.tree.prefix);
            let place = walk.place((height, prefix), walk.tree.summary, walk.tree.disk.root);
            match (place.before, walk.tree.root.clone()) {
                (Some(stored), _) if place.stays && !looks => {
                    walk.root = Some((place.summary, stored));
                }
                (_, Some(node)) => walk.frames.push(Frame::new(node, place)),
                (_, None) => walk.wanted = Some(place),
            }
        }
        walk
    }

    fn place(
        &self,
        (level, number): (u32, u64),
        summary: Summary,
        before: Option<StoredPage>,
    ) -> Place {
        Place {
            level,
            number,
            summary,
            before,
            stays: before.is_some_and(|at| !self.files.runs.contains(&at.file)),
        }
    }

    /// What is to be written next.
    ///
    /// # Panics
    /// If what was handed out before has no place yet.
    pub(in crate::queue) fn next(&mut self) -> Option<Todo<T>> {
        assert!(
            self.open.is_none(),
            "{:?} was not placed",
            self.open.map(|place| (place.level, place.number))
        );
        if let Some((place, page)) = self.ready.take()
            && let Some(todo) = self.see(place, &page)
        {
            return Some(todo);
        }
        loop {
            if self.wanted.is_some() {
                return Some(Todo::Read);
            }
            let frame = self.frames.last_mut()?;
            let Some(at) = bits(frame.left).next() else {
                let frame = self.frames.pop()?;
                let place = frame.place;
                if let Some(stored) = place.before.filter(|_| place.stays) {
                    self.put(&place, stored);
                    continue;
                }
                let (level, number) = (place.level, place.number);
                self.open = Some(Place {
                    summary: sum_of(&frame.written),
                    ..place
                });
                return Some(Todo::Node {
                    level,
                    number,
                    branches: frame.written,
                });
            };
            frame.left &= frame.left - 1;
            let node = Arc::clone(&frame.node);
            let branch = node.branch(at);
            let number = frame.place.number << super::BITS | at as u64;
            let level = frame.place.level - 1;
            let place = self.place((level, number), branch.summary, branch.stored);
            if let Some(stored) = place.before.filter(|_| place.stays && !self.looks) {
                self.put(&place, stored);
                continue;
            }
            let todo = match &branch.below {
                Below::Page(page) => self.see(place, page),
                Below::Node(node) => {
                    self.frames.push(Frame::new(Arc::clone(node), place));
                    None
                }
                // Only bodies can tell that it does not stay.
                Below::Absent if level == 0 && place.stays && !self.has_payloads => {
                    self.stay(&place)
                }
                Below::Absent => {
                    self.wanted = Some(place);
                    None
                }
            };
            if todo.is_some() {
                return todo;
            }
        }
    }

    /// What is to be done with a page.
    fn see(&mut self, place: Place, page: &Arc<T>) -> Option<Todo<T>> {
        if place.stays && !page.lies_in(&self.files.payloads) {
            return self.stay(&place);
        }
        let summary = exact(page.as_ref());
        self.open = Some(Place { summary, ..place });
        let (number, page) = (place.number, Arc::clone(page));
        Some(Todo::Page { number, page })
    }

    /// A page stays where it is.
    fn stay(&mut self, place: &Place) -> Option<Todo<T>> {
        let stored = place.before.expect("what stays is stored");
        self.put(place, stored);
        self.looked += 1;
        let pauses = self.looked.is_multiple_of(PAUSE_AFTER);
        pauses.then_some(Todo::Pause)
    }

    /// What lies there is at this place of the tree.
    fn put(&mut self, place: &Place, stored: StoredPage) {
        match self.frames.last_mut() {
            Some(frame) => {
                let slot = place.number % super::FAN_OUT as u64;
                frame.written.push((slot as u8, place.summary, stored));
            }
            None => self.root = Some((place.summary, stored)),
        }
    }

    /// What must be read, and pages that will have to be next, up to `count` in all.
    pub(in crate::queue) fn wanted(&self, count: usize) -> Vec<Absent> {
        let absent = |place: &Place| {
            let (level, number) = (place.level, place.number);
            let stored = place.before.expect("what is absent is stored");
            Absent {
                level,
                number,
                stored,
            }
        };
        let mut all: Vec<_> = self.wanted.iter().map(absent).collect();
        if let (Some(Place { level: 0, .. }), Some(frame)) = (&self.wanted, self.frames.last()) {
            let branches = bits(frame.left).map(|at| (at, frame.node.branch(at)));
            let behind = branches.filter(|(_, branch)| matches!(branch.below, Below::Absent));
            let behind = behind.map(|(at, branch)| {
                let number = frame.place.number << super::BITS | at as u64;
                absent(&self.place((0, number), branch.summary, branch.stored))
            });
            all.extend(behind.take(count - 1));
        }
        all
    }

    /// The page that had to be read.
    ///
    /// # Errors
    /// If it is not what is told above it. It is still to be read then.
    ///
    /// # Panics
    /// If none had to.
    pub(in crate::queue) fn read_page(&mut self, page: Arc<T>) -> Result<(), &'static str> {
        let place = self.wanted.expect("a page had to be read");
        if exact(page.as_ref()) != place.summary {
            return Err(super::residence::NOT_SUMMED);
        }
        self.wanted = None;
        self.ready = Some((place, page));
        Ok(())
    }

    /// The node that had to be read.
    ///
    /// # Errors
    /// If it is not what is told above it. It is still to be read then.
    ///
    /// # Panics
    /// If none had to.
    pub(in crate::queue) fn read_node(
        &mut self,
        branches: Vec<WrittenBranch>,
    ) -> Result<(), &'static str> {
        let place = self.wanted.expect("a node had to be read");
        if sum_of(&branches) != place.summary {
            return Err(super::residence::NOT_SUMMED);
        }
        let (node, _) = Node::of_absent(branches)?;
        self.wanted = None;
        self.frames.push(Frame::new(node, place));
        Ok(())
    }

    /// What was handed out is written there.
    ///
    /// # Panics
    /// If nothing was.
    pub(in crate::queue) fn placed(&mut self, stored: StoredPage) {
        let place = self.open.take();
        let place = place.expect("something was handed out to be placed");
        *self.runs.entry(stored.file).or_default() += u64::from(stored.len);
        self.placed.push(Placed {
            level: place.level,
            number: place.number,
            summary: place.summary,
            stored,
            before: place.before,
        });
        if let Some(before) = place.before.filter(|_| place.stays) {
            self.not_kept(&before);
        }
        // What is above names where it was before.
        let above = self.frames.iter_mut().map(|frame| &mut frame.place);
        let above =
            above.filter_map(|place| std::mem::take(&mut place.stays).then_some(place.before));
        let above: Vec<_> = above.flatten().collect();
        for before in above {
            self.not_kept(&before);
        }
        self.put(&place, stored);
    }

    /// What lay there is written anew.
    fn not_kept(&mut self, before: &StoredPage) {
        if let Some(bytes) = self.runs.get_mut(&before.file) {
            *bytes -= u64::from(before.len);
            if *bytes == 0 {
                self.runs.remove(&before.file);
            }
        }
    }

    /// The tree as it is written, unless it is empty; and all that was, as of the epoch of the copy.
    ///
    /// # Panics
    /// If something is left to be written.
    pub(in crate::queue) fn finish(self) -> (Option<WrittenTree>, u32, Vec<Placed>) {
        let is_done = self.frames.is_empty() && self.open.is_none() && self.wanted.is_none();
        assert!(is_done, "some of a tree was not written");
        let written = self.root.map(|(summary, stored)| WrittenTree {
            level: self.tree.height,
            number: self.tree.prefix,
            summary,
            stored,
            runs: self.runs,
        });
        (written, self.tree.disk.epoch, self.placed)
    }
}

/// The summary of a page with exact first times.
pub(super) fn exact<T: Page>(page: &T) -> Summary {
    let mut summary = page.summary();
    for order in 0..DUES {
        summary.dues[order] = page.first_due(order);
    }
    summary
}

/// What is below all of these.
pub(super) fn sum_of(branches: &[WrittenBranch]) -> Summary {
    let mut all = Summary::default();
    for (_, summary, _) in branches {
        all.add(summary);
    }
    all
}

impl<T: Page> Tree<T> {
    /// A copy of it as it is now; what changes from here on is of the next epoch.
    pub(in crate::queue) fn cut(&mut self) -> Self {
        let copy = self.clone();
        self.disk.epoch += 1;
        copy
    }

    /// What a walk over a copy has written is on the disk, as far as it has not changed since the copy
    /// was made, which ended `epoch`.
    pub(in crate::queue) fn keep(&mut self, placed: &Placed, epoch: u32) {
        let Placed {
            level,
            number,
            summary,
            stored,
            before,
        } = *placed;
        if self.height == level && self.prefix == number {
            if self.disk.changed <= epoch {
                let mut before = self.disk.root.take();
                self.disk.forget(&mut before);
                self.disk.root = self.disk.keep(stored);
            }
            return;
        }
        let first = number << (super::BITS * level);
        if level >= self.height || !self.covers(first) {
            return;
        }
        let Some(root) = self.root.as_mut() else {
            return self.disk.moved(before, stored);
        };
        let (root, disk) = (Arc::make_mut(root), &mut self.disk);
        let place = (self.height, level, first);
        match root.since(place, epoch) {
            Since::Changed => {}
            Since::Absent => disk.moved(before, stored),
            Since::Kept(mut kept) => {
                disk.forget(&mut kept);
                let stored = disk.keep(stored);
                root.keep(place, &mut self.summary, &summary, stored);
            }
        }
    }
}

/// What became of a branch since an epoch ended.
enum Since {
    Changed,
    /// Nothing: it is below what is absent.
    Absent,
    /// Nothing: this was stored of it.
    Kept(Option<StoredPage>),
}

impl OnDisk {
    /// Something that is below what is absent lies there now.
    fn moved(&mut self, before: Option<StoredPage>, stored: StoredPage) {
        let mut before = before;
        self.forget(&mut before);
        self.keep(stored);
    }
}

impl<T: Page> Node<T> {
    fn since(&self, (height, level, first): (u32, u32, u64), epoch: u32) -> Since {
        let Some(branch) = self.branches[branch_of(first, height)].as_ref() else {
            return Since::Changed;
        };
        if height - 1 == level {
            return match branch.changed <= epoch {
                true => Since::Kept(branch.stored),
                false => Since::Changed,
            };
        }
        match &branch.below {
            Below::Node(node) => node.since((height - 1, level, first), epoch),
            Below::Absent => Since::Absent,
            Below::Page(_) => Since::Changed,
        }
    }

    /// Takes note of a branch that is stored, and of its exact summary.
    fn keep(
        &mut self,
        (height, level, first): (u32, u32, u64),
        own: &mut Summary,
        summary: &Summary,
        stored: Option<StoredPage>,
    ) {
        let at = branch_of(first, height);
        let branch = self.branches[at].as_mut().expect("it was just looked at");
        let before = branch.summary;
        if height - 1 == level {
            branch.stored = stored;
            branch.summary = *summary;
            if let Below::Page(page) = &mut branch.below
                && before.dues != summary.dues
            {
                let page = Arc::make_mut(page);
                for (order, when) in summary.dues.into_iter().enumerate() {
                    page.set_due(order, when);
                }
            }
        } else if let Below::Node(node) = &mut branch.below {
            let place = (height - 1, level, first);
            Arc::make_mut(node).keep(place, &mut branch.summary, summary, stored);
        }
        self.sum_up(at, &before, own);
    }
}
