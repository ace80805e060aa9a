//! What of a tree is here and what is on this node's disk alone: looking for it, taking it in, letting
//! it go. Nothing of this changes what the tree holds.

use super::walk::{WrittenBranch, exact, sum_of};
use super::{BITS, Below, Branch, Node, Page, Summary, Tree, bits, branch_of};
use crate::queue::view::StoredPage;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// A page, or a node of level 1 with all pages below it, that is on this node's disk alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue) struct Absent {
    /// 0 is a page.
    pub(in crate::queue) level: u32,
    /// Its number among those of its level.
    pub(in crate::queue) number: u64,
    /// Where it is.
    pub(in crate::queue) stored: StoredPage,
}

impl Absent {
    /// The first page behind it.
    pub(in crate::queue) fn next_page(&self) -> Option<u64> {
        (self.number + 1).checked_shl(BITS * self.level)
    }
}

/// What is found at a place.
#[derive(Debug)]
pub(in crate::queue) enum Seen<'a, T> {
    /// The page.
    Here(&'a T),
    /// The page is absent, or a node above it.
    Absent(Absent),
}

/// Why what was read is not taken in.
pub(super) const NOT_SUMMED: &str = "it is not what is told above it";

impl<T: Page> Tree<T> {
    /// The run files that something of it is in.
    pub(in crate::queue) fn runs(&self) -> impl Iterator<Item = u64> {
        self.disk.runs.keys().copied()
    }

    /// Whether nothing of it is absent.
    pub(in crate::queue) fn is_here(&self) -> bool {
        self.absent == 0
    }

    /// The root, if it is absent.
    pub(super) fn absent_root(&self) -> Option<Absent> {
        let stored = self.disk.root.filter(|_| self.root.is_none())?;
        Some(Absent {
            level: self.height,
            number: self.prefix,
            stored,
        })
    }

    /// A page, if it exists.
    pub(in crate::queue) fn page(&self, number: u64) -> Option<Seen<'_, T>> {
        if !self.covers(number) {
            return None;
        }
        let Some(mut node) = self.root.as_deref() else {
            return self.absent_root().map(Seen::Absent);
        };
        let mut level = self.height;
        loop {
            let branch = node.branches[branch_of(number, level)].as_ref()?;
            level -= 1;
            match &branch.below {
                Below::Page(page) => return Some(Seen::Here(page)),
                Below::Node(below) => node = below,
                Below::Absent => {
                    return Some(Seen::Absent(branch.absent(level, number >> (BITS * level))));
                }
            }
        }
    }

    /// The first page from `number` on whose summary `wanted` lets through, or an absent node that has
    /// such a page, with the number of the first page that it can have. So must the summary of every node
    /// above such a page.
    pub(in crate::queue) fn look(
        &self,
        number: u64,
        wanted: impl Fn(&Summary) -> bool,
    ) -> Option<(u64, Seen<'_, T>)> {
        match self.root.as_deref() {
            Some(root) => look_below(root, (self.height, self.prefix), number, &wanted),
            None => {
                let root = self.absent_root()?;
                let is_before = number >> (BITS * self.height) <= self.prefix;
                let first = number.max(self.prefix << (BITS * self.height));
                (is_before && wanted(&self.summary)).then_some((first, Seen::Absent(root)))
            }
        }
    }

    /// All that is absent and that `wanted` lets through, rising: pages, and nodes with all that is below
    /// them.
    pub(in crate::queue) fn all_absent(
        &self,
        number: u64,
        wanted: impl Fn(&Summary) -> bool,
    ) -> impl Iterator<Item = Absent> {
        let mut from = Some(number).filter(|_| !self.is_here());
        std::iter::from_fn(move || {
            loop {
                let (number, seen) = self.look(from?, &wanted)?;
                match seen {
                    Seen::Here(_) => from = number.checked_add(1),
                    Seen::Absent(absent) => {
                        from = absent.next_page();
                        return Some(absent);
                    }
                }
            }
        })
    }

    /// What is absent, with what is in it, but for what is below absent nodes.
    pub(in crate::queue) fn each_absent(&self, mut look: impl FnMut(Absent, &Summary)) {
        match (&self.root, self.absent_root()) {
            _ if self.is_here() => {}
            (Some(root), _) => each_absent_below(root, (self.height, self.prefix), &mut look),
            (None, Some(root)) => look(root, &self.summary),
            (None, None) => {}
        }
    }

    /// The pages that are here, rising.
    pub(in crate::queue) fn here(&self) -> impl Iterator<Item = (u64, &T)> {
        let mut from = Some(0);
        std::iter::from_fn(move || {
            loop {
                let (number, seen) = self.look(from?, |_| true)?;
                match seen {
                    Seen::Here(page) => {
                        from = number.checked_add(1);
                        return Some((number, page));
                    }
                    Seen::Absent(absent) => from = absent.next_page(),
                }
            }
        })
    }

    /// A tree of which nothing is here yet: what a root says of it. Nodes above level 1 are taken in
    /// before anything else is done with it.
    pub(in crate::queue) fn absent(
        (level, number): (u32, u64),
        summary: Summary,
        stored: StoredPage,
        runs: impl Iterator<Item = (u64, u64)>,
    ) -> Self {
        let mut tree = Self {
            height: level,
            prefix: number,
            summary,
            absent: 1,
            ..Self::default()
        };
        tree.disk.root = Some(stored);
        tree.disk.runs = runs.collect();
        tree
    }

    /// Whether all nodes above level 1 are here.
    pub(in crate::queue) fn is_open(&self) -> bool {
        let node_is_absent = |absent: Absent| absent.level > 1;
        !self.all_absent(0, |_| true).any(node_is_absent)
    }

    /// Takes in a page that was absent; false if it is not absent there, or not any more.
    ///
    /// # Errors
    /// If it is not what is told above it.
    pub(in crate::queue) fn take_page(
        &mut self,
        (number, stored): (u64, StoredPage),
        page: Arc<T>,
    ) -> Result<bool, &'static str> {
        let absent = Absent {
            level: 0,
            number,
            stored,
        };
        let summary = exact(page.as_ref());
        self.take(absent, &summary, Below::Page(page), 0)
    }

    /// Takes in a node that was absent, likewise; what is below it is absent.
    ///
    /// # Errors
    /// If it is not what is told above it.
    pub(in crate::queue) fn take_node(
        &mut self,
        absent: Absent,
        branches: Vec<WrittenBranch>,
    ) -> Result<bool, &'static str> {
        let summary = sum_of(&branches);
        let (node, count) = Node::of_absent(branches)?;
        self.take(absent, &summary, Below::Node(node), count)
    }

    fn take(
        &mut self,
        absent: Absent,
        summary: &Summary,
        below: Below<T>,
        absent_below: u64,
    ) -> Result<bool, &'static str> {
        if self.absent_root() == Some(absent) {
            if self.summary != *summary {
                return Err(NOT_SUMMED);
            }
            if let Below::Node(node) = below {
                self.root = Some(node);
            }
            self.absent = self.absent - 1 + absent_below;
            return Ok(true);
        }
        let first = absent.number << (BITS * absent.level);
        let found = self.page(first);
        if !matches!(found, Some(Seen::Absent(found)) if found == absent) {
            return Ok(false);
        }
        let branch = self.branch_mut(absent.level, first);
        let branch = branch.expect("it was just found");
        if branch.summary != *summary {
            return Err(NOT_SUMMED);
        }
        branch.below = below;
        self.absent = self.absent - 1 + absent_below;
        Ok(true)
    }

    /// The branch that a page or node of a level hangs on, whose first page is `first`.
    fn branch_mut(&mut self, level: u32, first: u64) -> Option<&mut Branch<T>> {
        let mut node = self.root.as_mut()?;
        let mut height = self.height;
        loop {
            let branch = &mut Arc::make_mut(node).branches[branch_of(first, height)];
            height -= 1;
            if height == level {
                return branch.as_mut();
            }
            match &mut branch.as_mut()?.below {
                Below::Node(below) => node = below,
                Below::Page(_) | Below::Absent => return None,
            }
        }
    }

    /// The last page below `number` that is here and stored, and whose summary `wanted` lets through.
    pub(in crate::queue) fn last_stored(
        &self,
        number: u64,
        wanted: impl Fn(&Summary) -> bool,
    ) -> Option<u64> {
        let root = self.root.as_deref()?;
        last_stored_below(root, (self.height, self.prefix), number, &wanted)
    }

    /// Lets go of a page that is stored; what it was, if it was here and is absent now.
    pub(in crate::queue) fn let_go(&mut self, number: u64) -> Option<Arc<T>> {
        if !matches!(self.page(number), Some(Seen::Here(_))) {
            return None;
        }
        let branch = self.branch_mut(0, number)?;
        branch.stored?;
        let Below::Page(page) = std::mem::replace(&mut branch.below, Below::Absent) else {
            unreachable!("a page was found there");
        };
        self.absent += 1;
        if self.height > 1 {
            self.let_go_of_node(number);
        }
        Some(page)
    }

    /// Lets go of the node above a page, if that is stored and nothing below it is here.
    fn let_go_of_node(&mut self, number: u64) {
        let Some(branch) = self.branch_mut(1, number).filter(|it| it.stored.is_some()) else {
            return;
        };
        let Below::Node(node) = &branch.below else {
            return;
        };
        if node.all().all(|below| matches!(below.below, Below::Absent)) {
            let count = u64::from(node.used.count_ones());
            branch.below = Below::Absent;
            self.absent = self.absent - count + 1;
        }
    }
}

impl<T> Branch<T> {
    fn absent(&self, level: u32, number: u64) -> Absent {
        Absent {
            level,
            number,
            stored: self.stored.expect("what is absent is stored"),
        }
    }
}

impl<T: Page> Node<T> {
    /// A node below which all is absent, and how much that is.
    pub(super) fn of_absent(
        branches: Vec<WrittenBranch>,
    ) -> Result<(Arc<Self>, u64), &'static str> {
        let mut node = Self::default();
        let count = branches.len() as u64;
        for (slot, summary, stored) in branches {
            let place = node.branches.get_mut(usize::from(slot));
            let place = place.filter(|place| place.is_none() && summary.live != 0);
            *place.ok_or(NOT_SUMMED)? = Some(Branch {
                summary,
                stored: Some(stored),
                changed: 0,
                below: Below::Absent,
            });
            node.used |= 1 << slot;
        }
        Ok((Arc::new(node), count))
    }
}

fn each_absent_below<T: Page>(
    node: &Node<T>,
    (level, prefix): (u32, u64),
    look: &mut impl FnMut(Absent, &Summary),
) {
    for at in bits(node.used) {
        let (branch, number) = (node.branch(at), prefix << BITS | at as u64);
        match &branch.below {
            Below::Page(_) => {}
            Below::Node(node) => each_absent_below(node, (level - 1, number), look),
            Below::Absent => look(branch.absent(level - 1, number), &branch.summary),
        }
    }
}

fn last_stored_below<T: Page>(
    node: &Node<T>,
    (level, prefix): (u32, u64),
    before: u64,
    wanted: &impl Fn(&Summary) -> bool,
) -> Option<u64> {
    let mut left = node.used;
    while left != 0 {
        let at = left.ilog2();
        left &= !(1 << at);
        let number = prefix << BITS | u64::from(at);
        if number << (BITS * (level - 1)) >= before {
            continue;
        }
        let branch = node.branch(at as usize);
        match &branch.below {
            Below::Page(_) if branch.stored.is_some() && wanted(&branch.summary) => {
                return Some(number);
            }
            Below::Node(below) => {
                let found = last_stored_below(below, (level - 1, number), before, wanted);
                if found.is_some() {
                    return found;
                }
            }
            Below::Page(_) | Below::Absent => {}
        }
    }
    None
}

fn look_below<'a, T: Page>(
    node: &'a Node<T>,
    (level, prefix): (u32, u64),
    from: u64,
    wanted: &impl Fn(&Summary) -> bool,
) -> Option<(u64, Seen<'a, T>)> {
    let span = BITS * level;
    let first = prefix << span;
    let start = if from <= first {
        0
    } else if from >> span == prefix {
        branch_of(from, level)
    } else {
        return None;
    };
    for at in bits(node.used & (u64::MAX << start)) {
        let branch = node.branch(at);
        if !wanted(&branch.summary) {
            continue;
        }
        let number = prefix << BITS | at as u64;
        match &branch.below {
            Below::Page(page) => return Some((number, Seen::Here(page))),
            Below::Node(below) => {
                let found = look_below(below, (level - 1, number), from, wanted);
                if found.is_some() {
                    return found;
                }
            }
            Below::Absent => {
                let first = number << (BITS * (level - 1));
                let absent = branch.absent(level - 1, number);
                return Some((first.max(from), Seen::Absent(absent)));
            }
        }
    }
    None
}

/// What stands in an order of times, as the search for the first comes to it.
enum Waiting<'a, T> {
    Node(&'a Node<T>, (u32, u64)),
    Page(&'a T),
    Absent(Absent),
    /// One of those in a page.
    One,
}

impl<T: Page> Tree<T> {
    /// What is absent among the pages of the first `count` things that are due in an order by a time; not
    /// all of it, if that is much.
    pub(in crate::queue) fn absent_due(
        &self,
        order: usize,
        by: u64,
        count: usize,
        much: usize,
    ) -> Vec<Absent> {
        let mut found = Vec::new();
        if self.is_here() || self.summary.dues[order] > by {
            return found;
        }
        let root = match (&self.root, self.absent_root()) {
            (Some(root), _) => Waiting::Node(root, (self.height, self.prefix)),
            (None, Some(root)) => Waiting::Absent(root),
            (None, None) => return found,
        };
        // By time, then page; what has pages below it before what is in a page.
        let mut seen = vec![root];
        let mut next = BinaryHeap::from([Reverse((0, 0, 0))]);
        let mut left = count;
        while let Some(Reverse((_, first, at))) = next.pop() {
            let mut met = Vec::new();
            match std::mem::replace(&mut seen[at], Waiting::One) {
                Waiting::One => left -= 1,
                Waiting::Absent(absent) => found.push(absent),
                Waiting::Page(page) => {
                    let dues = page.all_dues(order);
                    met.extend(dues.map(|when| (when, first, Waiting::One)));
                }
                Waiting::Node(node, (level, prefix)) => {
                    for at in bits(node.used) {
                        let branch = node.branch(at);
                        let number = prefix << BITS | at as u64;
                        let it = match &branch.below {
                            Below::Page(page) => Waiting::Page(page.as_ref()),
                            Below::Node(node) => Waiting::Node(node, (level - 1, number)),
                            Below::Absent => Waiting::Absent(branch.absent(level - 1, number)),
                        };
                        let page = number << (BITS * (level - 1));
                        met.push((branch.summary.dues[order], page, it));
                    }
                }
            }
            for (when, page, it) in met.into_iter().filter(|(when, ..)| *when <= by) {
                next.push(Reverse((when, page, seen.len())));
                seen.push(it);
            }
            if left == 0 || found.len() >= much {
                break;
            }
        }
        found
    }
}
