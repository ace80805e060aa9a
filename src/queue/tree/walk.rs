//! What of a tree is not on this node's disk, or in files that are to go, bottom up; and taking note that
//! it is.
//!
//! ```text
//!   a copy of the tree ─> Walk ─> todo ─> written elsewhere ─> placed ─┐
//!                          ^ ──────────────────────────────────────────┘
//!                          └─> Placed ─> keep: what has not changed since is stored
//! ```

use super::{Below, DUES, Node, Page, Summary, Tree, bits, branch_of};
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

struct Frame<T> {
    node: Arc<Node<T>>,
    level: u32,
    number: u64,
    /// Where it is on the disk, if it may stay there.
    stays: Option<(Summary, StoredPage)>,
    /// The branches that are not looked at yet.
    left: u64,
    written: Vec<WrittenBranch>,
}

impl<T> Frame<T> {
    fn new(
        node: &Arc<Node<T>>,
        (level, number): (u32, u64),
        stays: Option<(Summary, StoredPage)>,
    ) -> Self {
        Self {
            node: Arc::clone(node),
            level,
            number,
            stays,
            left: node.used,
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
    /// Pages looked at that stay, since the last pause.
    looked: usize,
    frames: Vec<Frame<T>>,
    /// What was handed out last and has no place yet.
    open: Option<(u32, u64, Summary)>,
    root: Option<(Summary, StoredPage)>,
    runs: BTreeMap<u64, u64>,
    placed: Vec<Placed>,
}

impl<T: Page> Walk<T> {
    /// Over a copy of a tree, whose pages are known to have something in payload files that are left, or
    /// not.
    pub(in crate::queue) fn new(tree: Tree<T>, files: &Arc<LeftFiles>, has_payloads: bool) -> Self {
        let (mut frames, mut root) = (Vec::new(), None);
        let looks = has_payloads || tree.disk.runs.keys().any(|file| files.runs.contains(file));
        let stays = tree.disk.root.filter(|at| !files.runs.contains(&at.file));
        let stays = stays.map(|stored| (tree.summary, stored));
        match &tree.root {
            Some(node) if looks || stays.is_none() => {
                frames.push(Frame::new(node, (tree.height, tree.prefix), stays));
            }
            _ => root = stays,
        }
        let runs = tree.disk.runs.iter();
        let runs = runs.filter(|(file, _)| !files.runs.contains(file));
        Self {
            runs: runs.map(|(file, bytes)| (*file, *bytes)).collect(),
            root,
            tree,
            files: Arc::clone(files),
            looks,
            looked: 0,
            frames,
            open: None,
            placed: Vec::new(),
        }
    }

    /// What is to be written next.
    ///
    /// # Panics
    /// If what was handed out before has no place yet.
    pub(in crate::queue) fn next(&mut self) -> Option<Todo<T>> {
        assert!(self.open.is_none(), "{:?} was not placed", self.open);
        loop {
            let frame = self.frames.last_mut()?;
            let Some(at) = bits(frame.left).next() else {
                let frame = self.frames.pop()?;
                if let Some((summary, stored)) = frame.stays {
                    self.put(frame.number, summary, stored);
                    continue;
                }
                let summary = sum_of(&frame.written);
                self.open = Some((frame.level, frame.number, summary));
                return Some(Todo::Node {
                    level: frame.level,
                    number: frame.number,
                    branches: frame.written,
                });
            };
            frame.left &= frame.left - 1;
            let branch = frame.node.branch(at);
            let number = frame.number << super::BITS | at as u64;
            let (level, summary) = (frame.level - 1, branch.summary);
            let stays = branch
                .stored
                .filter(|at| !self.files.runs.contains(&at.file));
            match (stays, &branch.below) {
                (Some(stored), _) if !self.looks => {
                    frame.written.push((at as u8, summary, stored));
                }
                (Some(stored), Below::Page(page)) if !page.lies_in(&self.files.payloads) => {
                    frame.written.push((at as u8, summary, stored));
                    self.looked += 1;
                    if self.looked.is_multiple_of(PAUSE_AFTER) {
                        return Some(Todo::Pause);
                    }
                }
                (stays, Below::Page(page)) => {
                    self.open = Some((0, number, exact(page.as_ref())));
                    let page = Arc::clone(page);
                    if let Some(before) = stays {
                        self.not_kept(&before);
                    }
                    return Some(Todo::Page { number, page });
                }
                (stays, Below::Node(node)) => {
                    let stays = stays.map(|stored| (summary, stored));
                    let below = Frame::new(node, (level, number), stays);
                    self.frames.push(below);
                }
            }
        }
    }

    /// What is at this number lies there.
    fn put(&mut self, number: u64, summary: Summary, stored: StoredPage) {
        match self.frames.last_mut() {
            Some(frame) => {
                let slot = number % super::FAN_OUT as u64;
                frame.written.push((slot as u8, summary, stored));
            }
            None => self.root = Some((summary, stored)),
        }
    }

    /// What was handed out is written there.
    ///
    /// # Panics
    /// If nothing was.
    pub(in crate::queue) fn placed(&mut self, stored: StoredPage) {
        let open = self.open.take();
        let (level, number, summary) = open.expect("something was handed out to be placed");
        *self.runs.entry(stored.file).or_default() += u64::from(stored.len);
        self.placed.push(Placed {
            level,
            number,
            summary,
            stored,
        });
        // What is above names where it was before.
        let above = self.frames.iter_mut();
        let above: Vec<_> = above.filter_map(|frame| frame.stays.take()).collect();
        for (_, before) in above {
            self.not_kept(&before);
        }
        self.put(number, summary, stored);
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
        let is_done = self.frames.is_empty() && self.open.is_none();
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
fn exact<T: Page>(page: &T) -> Summary {
    let mut summary = page.summary();
    for order in 0..DUES {
        summary.dues[order] = page.first_due(order);
    }
    summary
}

fn sum_of(branches: &[WrittenBranch]) -> Summary {
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
        } = *placed;
        if level == self.height && number == self.prefix && self.root.is_some() {
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
        let root = self.root.as_mut().expect("it covers the number");
        let (root, disk) = (Arc::make_mut(root), &mut self.disk);
        let place = (self.height, level, first);
        if let Some(kept) = root.is_unchanged(place, epoch) {
            disk.forget(&mut kept.clone());
            let stored = disk.keep(stored);
            root.keep(place, &mut self.summary, &summary, stored);
        }
    }

    /// A page (level 0) or node was read from there when the tree was made.
    pub(in crate::queue) fn found(&mut self, level: u32, number: u64, stored: StoredPage) {
        let summary = if level == self.height && number == self.prefix {
            Some(self.summary)
        } else {
            self.summary_of(level, number)
        };
        if let Some(summary) = summary {
            let placed = Placed {
                level,
                number,
                summary,
                stored,
            };
            self.keep(&placed, self.disk.epoch);
        }
    }

    fn summary_of(&self, level: u32, number: u64) -> Option<Summary> {
        let first = number << (super::BITS * level);
        let mut node = self.root.as_deref().filter(|_| self.covers(first))?;
        let mut height = self.height;
        while height > level {
            let branch = node.branches[branch_of(first, height)].as_ref()?;
            if height - 1 == level {
                return Some(branch.summary);
            }
            let Below::Node(below) = &branch.below else {
                return None;
            };
            (node, height) = (below, height - 1);
        }
        None
    }
}

impl<T: Page> Node<T> {
    /// What is stored of a branch that has not changed since an epoch ended; `None` if it has.
    fn is_unchanged(
        &self,
        (height, level, first): (u32, u32, u64),
        epoch: u32,
    ) -> Option<&Option<StoredPage>> {
        let branch = self.branches[branch_of(first, height)].as_ref()?;
        if height - 1 == level {
            return (branch.changed <= epoch).then_some(&branch.stored);
        }
        match &branch.below {
            Below::Node(node) => node.is_unchanged((height - 1, level, first), epoch),
            Below::Page(_) => None,
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
