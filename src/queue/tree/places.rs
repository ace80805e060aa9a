//! What of a tree is at a place, page or node by its number: for who holds it against another tree, or against
//! what is on the disk.

use super::residence::Absent;
use super::{BITS, Below, FAN_OUT, Node, Page, Summary, Tree, bits};
use crate::queue::view::StoredPage;
use std::sync::Arc;

/// What is at a place.
pub(in crate::queue) enum At<T> {
    /// Nothing, nor below it.
    Nothing,
    /// No node, but the root of the tree is below it.
    Above,
    /// A page that is here, and where it is on this node's disk as it is, if it is.
    Page(Arc<T>, Option<StoredPage>),
    /// A node that is here, likewise, and its slots that are used.
    Node(Option<StoredPage>, Vec<u8>),
    /// On this node's disk alone.
    Absent(StoredPage),
    /// Whatever is below a node that is absent.
    Below,
}

impl<T: Page> Tree<T> {
    /// The place of the root: its level and its number there; `None` in an empty tree.
    pub(in crate::queue) fn top(&self) -> Option<(u32, u64)> {
        (self.height != 0).then_some((self.height, self.prefix))
    }

    /// Run files, each with the bytes that the tree has in it.
    pub(in crate::queue) fn run_bytes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.disk.runs.iter().map(|(file, bytes)| (*file, *bytes))
    }

    /// What is there: level 0 has pages.
    pub(in crate::queue) fn at(&self, level: u32, number: u64) -> At<T> {
        if self.height == 0 {
            return At::Nothing;
        }
        if level > self.height {
            let is_above = self.prefix >> (BITS * (level - self.height)) == number;
            return if is_above { At::Above } else { At::Nothing };
        }
        if number >> (BITS * (self.height - level)) != self.prefix {
            return At::Nothing;
        }
        let stored = self.disk.root;
        let Some(mut node) = self.root.as_deref() else {
            let stored = stored.expect("a root that is absent is stored");
            return match level == self.height {
                true => At::Absent(stored),
                false => At::Below,
            };
        };
        if level == self.height {
            return At::Node(stored, slots(node.used));
        }
        let mut height = self.height;
        loop {
            height -= 1;
            let at = (number >> (BITS * (height - level))) as usize % FAN_OUT;
            let Some(branch) = node.branches[at].as_ref() else {
                return At::Nothing;
            };
            match &branch.below {
                Below::Page(page) => return At::Page(Arc::clone(page), branch.stored),
                Below::Node(below) if height == level => {
                    return At::Node(branch.stored, slots(below.used));
                }
                Below::Node(below) => node = below,
                Below::Absent if height == level => {
                    return At::Absent(branch.stored.expect("what is absent is stored"));
                }
                Below::Absent => return At::Below,
            }
        }
    }
}

impl<T: Page> Tree<T> {
    /// What a node tells of the page or node at a place below it: what is in that, and where it is on this
    /// node's disk as it is, if it is.
    pub(in crate::queue) fn told_of(
        &self,
        level: u32,
        number: u64,
    ) -> Option<(Summary, Option<StoredPage>)> {
        let is_below =
            level < self.height && number >> (BITS * (self.height - level)) == self.prefix;
        let mut node = self.root.as_deref().filter(|_| is_below)?;
        let mut height = self.height;
        loop {
            height -= 1;
            let at = (number >> (BITS * (height - level))) as usize % FAN_OUT;
            let branch = node.branches[at].as_ref()?;
            match &branch.below {
                _ if height == level => return Some((branch.summary, branch.stored)),
                Below::Node(below) => node = below,
                Below::Page(_) | Below::Absent => return None,
            }
        }
    }
}

/// What is on this node's disk as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue) struct Stored {
    /// A page, or a node.
    pub(in crate::queue) at: Absent,
    /// It is a node, and on the disk alone: so is what is below it.
    pub(in crate::queue) with_all_below: bool,
}

/// A look at what is stored, in the order of pages, each node before what is below it.
pub(in crate::queue) struct Look {
    /// What ends before this page was looked at.
    from: u64,
    /// Places that are looked at yet.
    left: usize,
    /// What is stored as it is.
    pub(in crate::queue) found: Vec<Stored>,
    /// The numbers of pages that are not.
    pub(in crate::queue) changed: Vec<u64>,
    /// The page before which the next look begins, if this one does not come to the end.
    pub(in crate::queue) stopped: Option<u64>,
}

impl Look {
    fn note(&mut self, at: Absent, with_all_below: bool) {
        // One that was let go of since the last look was not looked at with all that is below it.
        if at.number << (BITS * at.level) >= self.from || with_all_below {
            self.found.push(Stored { at, with_all_below });
        }
    }

    /// The page before which it stops, unless it comes to the end of the node.
    fn below<T: Page>(&mut self, node: &Node<T>, (level, prefix): (u32, u64)) -> Option<u64> {
        for slot in bits(node.used) {
            let branch = node.branch(slot);
            let (level, number) = (level - 1, prefix << BITS | slot as u64);
            let first = number << (BITS * level);
            let last = first | ((1 << (BITS * level)) - 1);
            if last < self.from {
                continue;
            }
            if self.left == 0 {
                return Some(first.max(self.from));
            }
            self.left -= 1;
            let is_absent = matches!(branch.below, Below::Absent);
            if let Some(stored) = branch.stored {
                let at = Absent {
                    level,
                    number,
                    stored,
                };
                self.note(at, is_absent && level > 0);
            }
            if branch.stored.is_none() && level == 0 {
                self.changed.push(number);
            }
            if let Below::Node(below) = &branch.below {
                let stopped = self.below(below, (level, number));
                if stopped.is_some() {
                    return stopped;
                }
            }
        }
        None
    }
}

impl<T: Page> Tree<T> {
    /// What is stored as it is from a page on, of so many places.
    pub(in crate::queue) fn stored_from(&self, from: u64, places: usize) -> Look {
        let mut look = Look {
            from,
            left: places,
            found: Vec::new(),
            changed: Vec::new(),
            stopped: None,
        };
        if let Some(stored) = self.disk.root.filter(|_| self.height != 0) {
            let at = Absent {
                level: self.height,
                number: self.prefix,
                stored,
            };
            look.note(at, self.root.is_none());
        }
        let root = self.root.as_deref();
        look.stopped = root.and_then(|root| look.below(root, (self.height, self.prefix)));
        look
    }
}

fn slots(used: u64) -> Vec<u8> {
    bits(used).map(|slot| slot as u8).collect()
}
