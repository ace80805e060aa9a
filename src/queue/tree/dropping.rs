//! Pages that go whole, told by what stands above them: nobody looks at what is in them.

use super::{Below, Branch, Node, OnDisk, Page, Summary, Tree, bits};
use std::sync::Arc;

/// What becomes of a page, or of all pages below a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue) enum Fate {
    /// They go.
    Go,
    /// They stay.
    Stay,
    /// Some of the pages may go. A single page stays: what of it is to go is somebody else's business.
    Mixed,
}

impl<T: Page> Tree<T> {
    /// Drops the pages that go, here or absent; `gone` gets those that were here.
    ///
    /// # Panics
    /// If a node is absent below which a page may go: where its pages lie must be known.
    pub(in crate::queue) fn drop_pages(
        &mut self,
        fate: &dyn Fn(&Summary) -> Fate,
        gone: &mut dyn FnMut(Arc<T>),
    ) {
        let Some(mut root) = self.root.take() else {
            let goes = self
                .absent_root()
                .filter(|_| fate(&self.summary) != Fate::Stay);
            assert!(goes.is_none(), "{goes:?} was asked for before it was here");
            return;
        };
        let mut dropping = Dropping {
            fate,
            gone,
            disk: &mut self.disk,
            absent: &mut self.absent,
        };
        let has_changed = dropping.pages_below(&mut root, self.height);
        if has_changed {
            self.summary = root.sum();
            self.disk.changed = self.disk.epoch;
            let mut stored = self.disk.root.take();
            self.disk.forget(&mut stored);
        }
        self.root = Some(root);
        self.lower();
    }
}

/// A walk over what may go.
struct Dropping<'a, T> {
    fate: &'a dyn Fn(&Summary) -> Fate,
    gone: &'a mut dyn FnMut(Arc<T>),
    disk: &'a mut OnDisk,
    absent: &'a mut u64,
}

impl<T: Page> Dropping<'_, T> {
    /// Drops what goes below a node of this level; whether anything has.
    fn pages_below(&mut self, node: &mut Arc<Node<T>>, level: u32) -> bool {
        let may_go = |branch: &Branch<T>| match (self.fate)(&branch.summary) {
            Fate::Go => true,
            Fate::Stay => false,
            Fate::Mixed => level > 1,
        };
        let may_go: Vec<usize> = bits(node.used)
            .filter(|at| may_go(node.branch(*at)))
            .collect();
        if may_go.is_empty() {
            // It is not copied.
            return false;
        }
        let node = Arc::make_mut(node);
        let mut has_changed = false;
        for at in may_go {
            let branch = node.branches[at].as_mut().expect("a used branch exists");
            if (self.fate)(&branch.summary) == Fate::Go {
                self.drop_branch(branch, level);
                branch.summary = Summary::default();
            } else {
                let Below::Node(below) = &mut branch.below else {
                    panic!("a node of level {level} was asked for before it was here");
                };
                if !self.pages_below(below, level - 1) {
                    continue;
                }
                branch.summary = below.sum();
                branch.changed = self.disk.epoch;
                self.disk.forget(&mut branch.stored);
            }
            has_changed = true;
            if branch.summary.live == 0 {
                node.branches[at] = None;
                node.used &= !(1 << at);
            }
        }
        has_changed
    }

    /// Takes leave of all that a branch of a node of this level leads to.
    fn drop_branch(&mut self, branch: &Branch<T>, level: u32) {
        let mut stored = branch.stored;
        self.disk.forget(&mut stored);
        match &branch.below {
            Below::Page(page) => (self.gone)(Arc::clone(page)),
            Below::Node(node) => {
                for branch in node.all() {
                    self.drop_branch(branch, level - 1);
                }
            }
            Below::Absent if level == 1 => *self.absent -= 1,
            Below::Absent => panic!("a node of level {level} was asked for before it was here"),
        }
    }
}

impl<T: Page> Node<T> {
    fn sum(&self) -> Summary {
        let mut sum = Summary::default();
        self.all().for_each(|branch| sum.add(&branch.summary));
        sum
    }
}
