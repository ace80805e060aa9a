//! What of a tree is at a place, page or node by its number: for who holds it against another tree.

use super::{BITS, Below, FAN_OUT, Page, Summary, Tree, bits};
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

fn slots(used: u64) -> Vec<u8> {
    bits(used).map(|slot| slot as u8).collect()
}
