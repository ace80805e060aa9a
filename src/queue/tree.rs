//! Numbered pages in a tree that knows, above each page, what is below: where the next job of a class
//! is, and which is due first.
//!
//! ```text
//!                        root: prefix, height 2                 a summary beside each branch:
//!            ┌──────────────┬──────────────┐                    live, bytes, classes, first dues
//!          node 0         node 1         node 7
//!        ┌───┼───┐          │          ┌───┴───┐
//!     page 0 3  63         64         450     511
//! ```
//!
//! A node has 64 branches; page `n` stands below branch `n / 64^(level - 1) % 64` of the node of each
//! level. The root is the lowest node that covers all pages, so a tree is as high as its pages lie
//! apart, and its shape is a function of their numbers alone.
//!
//! # Invariants
//! - A summary is that of the pages below it; an empty page, or a node without a page, does not exist.
//! - A first time in a summary is a bound: a page may have lost what stood there, and nobody has looked
//!   for the next since. [`Tree::settle`] does. It is exact where nothing waits at all.
//! - Pages and nodes are shared with copies of the tree, and copied when they change: a copy costs one
//!   pointer, a change one path.
//! - What is *stored* of a tree, a page or node, is on this node's disk as it is in memory; whatever has
//!   changed is not. A stored page's first times are exact, and so is what is above it.
//! - A stored page, or a stored node of level 1 with all pages below it, may be *absent*: on the disk
//!   alone. Its summary is here. Nodes above are always here, since only they tell how high a tree is.
//!
//! Whoever reads or changes what may be absent asks for it first ([`Tree::page`], [`Tree::look`]); the
//! other operations take it for a bug of the caller.
//!
//! Left out on purpose: what a page holds.

mod dropping;
mod places;
mod residence;
mod walk;

use crate::base::bugs::{self, Bug};
use crate::base::limits::NODE_BRANCHES;
use crate::queue::view::StoredPage;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) use dropping::Fate;
pub(super) use places::{At, Stored};
pub(super) use residence::{Absent, Seen};
pub(super) use walk::{Placed, Todo, Walk, WrittenBranch, WrittenTree};

/// Branches of a node.
const FAN_OUT: usize = NODE_BRANCHES as usize;
/// Bits of a page's number that choose a branch.
pub(super) const BITS: u32 = FAN_OUT.trailing_zeros();
/// The orders of times in a summary.
pub(super) const DUES: usize = 4;

/// What is in a page, or in all pages below a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// Things that live there.
    pub(super) live: u64,
    /// Bytes of payloads or results.
    pub(super) bytes: u64,
    /// A bit for each class that has a member there; what the classes are is the page's business.
    pub(super) classes: u16,
    /// No later than the first time of each order; [`NEVER`] if, and only if, nothing waits in it.
    pub(super) dues: [u64; DUES],
}

/// Nothing is due.
pub(super) const NEVER: u64 = u64::MAX;

impl Default for Summary {
    fn default() -> Self {
        Self {
            live: 0,
            bytes: 0,
            classes: 0,
            dues: [NEVER; DUES],
        }
    }
}

impl Summary {
    /// What is in both.
    fn add(&mut self, other: &Self) {
        self.live += other.live;
        self.bytes += other.bytes;
        self.classes |= other.classes;
        for (first, due) in self.dues.iter_mut().zip(other.dues) {
            *first = due.min(*first);
        }
    }
}

/// What a tree holds.
pub(super) trait Page: Clone + Default {
    /// What is in it; [`Summary::live`] is 0 if it is as good as new.
    fn summary(&self) -> Summary;

    /// The first time of an order, looked for.
    fn first_due(&self, order: usize) -> u64 {
        self.all_dues(order).min().unwrap_or(NEVER)
    }

    /// All times of an order, in any order.
    fn all_dues(&self, order: usize) -> impl Iterator<Item = u64>;

    /// Takes note of it.
    fn set_due(&mut self, order: usize, when: u64);

    /// Whether anything of it lies in these payload files.
    fn lies_in(&self, _payloads: &BTreeSet<u64>) -> bool {
        false
    }
}

struct Node<T> {
    /// Bit n: branch n exists.
    used: u64,
    branches: [Option<Branch<T>>; FAN_OUT],
}

struct Branch<T> {
    summary: Summary,
    stored: Option<StoredPage>,
    /// The epoch of its last change.
    changed: u32,
    below: Below<T>,
}

enum Below<T> {
    Page(Arc<T>),
    Node(Arc<Node<T>>),
    /// A page or a node of level 1 that is where `stored` says, and nowhere else.
    Absent,
}

// Derived, these would ask for the same of `T`, or copy it.
impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            used: 0,
            branches: [const { None }; FAN_OUT],
        }
    }
}

impl<T> Clone for Node<T> {
    fn clone(&self) -> Self {
        Self {
            used: self.used,
            branches: self.branches.clone(),
        }
    }
}

impl<T> Clone for Branch<T> {
    fn clone(&self) -> Self {
        Self {
            summary: self.summary,
            stored: self.stored,
            changed: self.changed,
            below: self.below.clone(),
        }
    }
}

impl<T> Clone for Below<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Page(page) => Self::Page(Arc::clone(page)),
            Self::Node(node) => Self::Node(Arc::clone(node)),
            Self::Absent => Self::Absent,
        }
    }
}

/// The last page and node that became empty, for the next: what is nearly empty would else make and
/// drop one for each job.
struct Spare<T> {
    page: Option<Arc<T>>,
    node: Option<Arc<Node<T>>>,
}

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Self {
            page: None,
            node: None,
        }
    }
}

impl<T: Page> Spare<T> {
    fn node(&mut self) -> Arc<Node<T>> {
        self.node.take().unwrap_or_default()
    }

    /// An empty branch of a node of this level.
    fn branch(&mut self, level: u32) -> Branch<T> {
        let below = if level == 1 {
            Below::Page(self.page.take().unwrap_or_default())
        } else {
            Below::Node(self.node())
        };
        Branch {
            summary: Summary::default(),
            stored: None,
            changed: 0,
            below,
        }
    }

    /// Keeps what has become empty, if no copy of the tree shares it.
    fn keep(&mut self, below: Below<T>) {
        match below {
            Below::Page(page) => self.page = Some(page).filter(|page| Arc::strong_count(page) == 1),
            Below::Node(node) => self.node = Some(node).filter(|node| Arc::strong_count(node) == 1),
            Below::Absent => {}
        }
    }
}

/// The branch that leads to a page, in a node of this level.
fn branch_of(number: u64, level: u32) -> usize {
    (number >> (BITS * (level - 1))) as usize % FAN_OUT
}

impl<T: Page> Node<T> {
    fn branch(&self, at: usize) -> &Branch<T> {
        self.branches[at].as_ref().expect("a used branch exists")
    }

    fn all(&self) -> impl Iterator<Item = &Branch<T>> {
        bits(self.used).map(|at| self.branch(at))
    }

    /// Brings its summary up to date with a branch whose summary was `before`.
    fn sum_up(&self, at: usize, before: &Summary, own: &mut Summary) {
        let gone = Summary::default();
        let branch = self.branches[at].as_ref();
        let after = branch.map_or(&gone, |branch| &branch.summary);
        own.live = own.live - before.live + after.live;
        own.bytes = own.bytes - before.bytes + after.bytes;
        own.classes |= after.classes;
        if before.classes & !after.classes != 0 {
            let classes = self.all().map(|branch| branch.summary.classes);
            own.classes = classes.fold(0, |all, one| all | one);
        }
        if before.dues == after.dues {
            return;
        }
        for order in 0..DUES {
            let (was, is, first) = (before.dues[order], after.dues[order], own.dues[order]);
            if is <= first {
                own.dues[order] = is;
            } else if was == first {
                let dues = self.all().map(|branch| branch.summary.dues[order]);
                own.dues[order] = dues.min().unwrap_or(NEVER);
            }
        }
    }

    /// Changes a page below it, and brings its summary up to date.
    fn update<R>(
        &mut self,
        (level, number): (u32, u64),
        own: &mut Summary,
        (spare, disk): (&mut Spare<T>, &mut OnDisk),
        change: impl FnOnce(&mut T) -> R,
    ) -> R {
        let at = branch_of(number, level);
        let branch = self.branches[at].get_or_insert_with(|| spare.branch(level));
        self.used |= 1 << at;
        branch.changed = disk.epoch;
        disk.forget(&mut branch.stored);
        let before = branch.summary;
        let result = match &mut branch.below {
            Below::Page(page) => {
                let page = Arc::make_mut(page);
                let result = change(page);
                branch.summary = page.summary();
                result
            }
            Below::Node(node) => {
                let place = (level - 1, number);
                let own = &mut branch.summary;
                Arc::make_mut(node).update(place, own, (&mut *spare, disk), change)
            }
            Below::Absent => panic!("page {number} was changed before it was here"),
        };
        if branch.summary.live == 0 {
            self.used &= !(1 << at);
            let empty = self.branches[at].take().expect("it was there just now");
            spare.keep(empty.below);
        }
        self.sum_up(at, &before, own);
        result
    }
}

/// What is on this node's disk.
#[derive(Clone, Default)]
struct OnDisk {
    /// The root, if it is.
    root: Option<StoredPage>,
    /// When the root changed last.
    changed: u32,
    /// Changes are of this epoch; a checkpoint begins the next.
    epoch: u32,
    /// Run files with the bytes that stored pages and nodes have in them.
    runs: BTreeMap<u64, u64>,
}

impl OnDisk {
    fn forget(&mut self, stored: &mut Option<StoredPage>) {
        if let Some(page) = stored.take() {
            let bytes = self.runs.get_mut(&page.file);
            let bytes = bytes.expect("the file of a stored page is counted");
            *bytes -= u64::from(page.len);
            if *bytes == 0 {
                self.runs.remove(&page.file);
            }
        }
    }

    fn keep(&mut self, page: StoredPage) -> Option<StoredPage> {
        *self.runs.entry(page.file).or_default() += u64::from(page.len);
        Some(page)
    }
}

/// Pages by number. A copy shares all of them.
pub(super) struct Tree<T> {
    /// `None` in an empty tree, and where a root of level 1 is absent.
    root: Option<Arc<Node<T>>>,
    /// The level of the root; 1 has pages below it, 0 is an empty tree.
    height: u32,
    /// The number of the root among the nodes of its level.
    prefix: u64,
    summary: Summary,
    disk: OnDisk,
    /// Pages and nodes that are absent, without those below absent nodes.
    absent: u64,
    spare: Spare<T>,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self {
            root: None,
            height: 0,
            prefix: 0,
            summary: Summary::default(),
            disk: OnDisk::default(),
            absent: 0,
            spare: Spare::default(),
        }
    }
}

impl<T> Clone for Tree<T> {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            height: self.height,
            prefix: self.prefix,
            summary: self.summary,
            disk: self.disk.clone(),
            absent: self.absent,
            spare: Spare::default(),
        }
    }
}

impl<T: Page> Tree<T> {
    /// What is in all pages.
    pub(super) fn summary(&self) -> &Summary {
        &self.summary
    }

    /// A page, if it exists.
    ///
    /// # Panics
    /// If it is absent.
    pub(super) fn get(&self, number: u64) -> Option<&T> {
        match self.page(number)? {
            Seen::Here(page) => Some(page),
            Seen::Absent(absent) => panic!("{absent:?} was asked for before it was here"),
        }
    }

    /// Changes a page, which is made if it does not exist and goes if it is left empty.
    pub(super) fn update<R>(&mut self, number: u64, change: impl FnOnce(&mut T) -> R) -> R {
        self.cover(number);
        let root = self.root.as_mut().expect("it was made to cover the page");
        let place = (self.height, number);
        let root = Arc::make_mut(root);
        self.disk.changed = self.disk.epoch;
        let mut stored = self.disk.root.take();
        self.disk.forget(&mut stored);
        let with = (&mut self.spare, &mut self.disk);
        let result = root.update(place, &mut self.summary, with, change);
        self.lower();
        result
    }

    /// Changes what a page knows of this node's disk, if it exists and is here: no part of the state.
    pub(super) fn touch(&mut self, number: u64, change: impl FnOnce(&mut T)) {
        if !matches!(self.page(number), Some(Seen::Here(_))) {
            return;
        }
        let mut node = self.root.as_mut().expect("the page was found");
        let mut level = self.height;
        loop {
            let branch = &mut Arc::make_mut(node).branches[branch_of(number, level)];
            match &mut branch.as_mut().expect("the page was found").below {
                Below::Page(page) => return change(Arc::make_mut(page)),
                Below::Node(below) => (node, level) = (below, level - 1),
                Below::Absent => unreachable!("the page was found"),
            }
        }
    }

    /// Makes the first time of an order exact.
    pub(super) fn settle(&mut self, order: usize) -> u64 {
        loop {
            let when = self.summary.dues[order];
            if when == NEVER {
                return NEVER;
            }
            let found = self.look(0, |summary| summary.dues[order] == when);
            let (number, page) = match found.expect("a first time stands in some page") {
                (number, Seen::Here(page)) => (number, page),
                (_, Seen::Absent(_)) => return when,
            };
            let first = page.first_due(order);
            if first == when {
                return when;
            }
            self.update(number, |page| page.set_due(order, first));
        }
    }

    /// The first page with the first time of an order, which must be exact.
    ///
    /// # Panics
    /// If it is absent.
    pub(super) fn first_due(&self, order: usize) -> Option<(u64, &T)> {
        let when = self.summary.dues[order];
        let found = self.next(0, |summary| summary.dues[order] == when);
        found.filter(|_| when != NEVER)
    }

    /// The first page from `number` on whose summary `wanted` lets through; so must that of every node
    /// above such a page.
    ///
    /// # Panics
    /// If it is absent.
    pub(super) fn next(&self, number: u64, wanted: impl Fn(&Summary) -> bool) -> Option<(u64, &T)> {
        match self.look(number, wanted)? {
            (number, Seen::Here(page)) => Some((number, page)),
            (_, Seen::Absent(_)) if bugs::on(Bug::AbsentIsNothing) => None,
            (_, Seen::Absent(absent)) => panic!("{absent:?} was asked for before it was here"),
        }
    }

    /// The pages from `number` on, rising.
    ///
    /// # Panics
    /// If one is absent.
    pub(super) fn from(&self, number: u64) -> impl Iterator<Item = (u64, &T)> {
        self.wanted_from(number, |_| true)
    }

    /// The pages from `number` on that [`Self::next`] finds, rising.
    ///
    /// # Panics
    /// If one is absent.
    pub(super) fn wanted_from(
        &self,
        number: u64,
        wanted: impl Fn(&Summary) -> bool,
    ) -> impl Iterator<Item = (u64, &T)> {
        let mut from = Some(number);
        std::iter::from_fn(move || {
            let found = self.next(from?, &wanted);
            from = found.and_then(|(number, _)| number.checked_add(1));
            found
        })
    }

    fn covers(&self, number: u64) -> bool {
        self.height != 0 && number >> (BITS * self.height) == self.prefix
    }

    /// Raises the root until the page is below it.
    fn cover(&mut self, number: u64) {
        if self.height == 0 {
            (self.height, self.prefix) = (1, number >> BITS);
            self.root = Some(self.spare.node());
        }
        while !self.covers(number) {
            let below = self.root.take().map_or(Below::Absent, Below::Node);
            let mut root = self.spare.node();
            let node = Arc::get_mut(&mut root).expect("it is new");
            let at = self.prefix as usize % FAN_OUT;
            node.used = 1 << at;
            node.branches[at] = Some(Branch {
                summary: self.summary,
                stored: self.disk.root.take(),
                changed: self.disk.changed,
                below,
            });
            self.root = Some(root);
            (self.height, self.prefix) = (self.height + 1, self.prefix >> BITS);
        }
    }

    /// The root is the lowest node that covers all pages.
    fn lower(&mut self) {
        while let Some(root) = &mut self.root {
            if root.used == 0 {
                let root = self.root.take().expect("it was just looked at");
                self.spare.keep(Below::Node(root));
                (self.height, self.prefix) = (0, 0);
                return;
            }
            if !root.used.is_power_of_two() || self.height == 1 {
                return;
            }
            let at = root.used.trailing_zeros() as usize;
            let only = root.branch(at);
            let below = match &only.below {
                Below::Node(node) => Some(Arc::clone(node)),
                Below::Absent => None,
                Below::Page(_) => unreachable!("pages are below level 1"),
            };
            (self.disk.root, self.disk.changed) = (only.stored, only.changed);
            self.root = below;
            self.height -= 1;
            self.prefix = self.prefix << BITS | at as u64;
        }
    }

    /// Proves the invariants of the tree, but for those of each page.
    ///
    /// # Errors
    /// The first that does not hold, as a sentence.
    pub(super) fn check(&self) -> Result<(), String> {
        let Some(root) = &self.root else {
            let is_new = self.summary == Summary::default() && self.height == 0;
            let is_absent = self.height == 1 && self.disk.root.is_some() && self.absent == 1;
            return (is_new || is_absent)
                .then_some(())
                .ok_or_else(|| format!("a tree without a root has {:?} in it", self.summary));
        };
        if root.used.is_power_of_two() && self.height > 1 {
            return Err(format!("its root of level {} has one branch", self.height));
        }
        let mut absent = 0;
        let counted = check_node(root, self.height, &mut absent)?;
        if absent != self.absent {
            return Err(format!(
                "{absent} are absent, {} are said to be",
                self.absent
            ));
        }
        if counted == self.summary {
            Ok(())
        } else {
            Err(format!(
                "it has {counted:?}, its summary says {:?}",
                self.summary
            ))
        }
    }
}

fn check_node<T: Page>(node: &Node<T>, level: u32, absent: &mut u64) -> Result<Summary, String> {
    let mut all = Summary::default();
    for (at, branch) in node.branches.iter().enumerate() {
        let is_used = node.used & 1 << at != 0;
        if is_used != branch.is_some() {
            return Err(format!(
                "branch {at} of a node of level {level} is marked {is_used}"
            ));
        }
        let Some(branch) = branch else { continue };
        let counted = match &branch.below {
            Below::Page(page) if level == 1 => page.summary(),
            Below::Node(node) if level > 1 => check_node(node, level - 1, absent)?,
            Below::Absent if level <= 2 && branch.stored.is_some() => {
                *absent += 1;
                branch.summary
            }
            _ => return Err(format!("level {level} is crooked")),
        };
        if counted != branch.summary || counted.live == 0 {
            return Err(format!(
                "branch {at} of a node of level {level} has {counted:?}, its summary says {:?}",
                branch.summary
            ));
        }
        all.add(&counted);
    }
    Ok(all)
}

/// The set bits of a word, rising.
pub(super) fn bits(word: u64) -> impl Iterator<Item = usize> + use<> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
        rest &= rest - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use std::collections::BTreeMap;

    /// Times of one order; the class of a page is bit `count % 16`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Times {
        times: Vec<u64>,
        bound: u64,
    }

    impl Default for Times {
        fn default() -> Self {
            Self {
                times: Vec::new(),
                bound: NEVER,
            }
        }
    }

    impl Page for Times {
        fn summary(&self) -> Summary {
            let mut dues = [NEVER; DUES];
            dues[1] = self.bound;
            let live = self.times.len() as u64;
            Summary {
                live,
                bytes: self.times.iter().sum(),
                classes: if live == 0 { 0 } else { 1 << (live % 16) },
                dues,
            }
        }

        fn all_dues(&self, order: usize) -> impl Iterator<Item = u64> {
            assert_eq!(order, 1);
            self.times.iter().copied()
        }

        fn set_due(&mut self, _order: usize, when: u64) {
            self.bound = when;
        }
    }

    impl Times {
        fn push(&mut self, time: u64) {
            self.times.push(time);
            self.bound = time.min(self.bound);
        }

        fn pop(&mut self) {
            self.times.pop();
            if self.times.is_empty() {
                *self = Self::default();
            }
        }
    }

    fn numbers<T: Page>(tree: &Tree<T>) -> Vec<u64> {
        tree.from(0).map(|(number, _)| number).collect()
    }

    #[test]
    fn a_root_is_as_high_as_its_pages_lie_apart() {
        let mut tree = Tree::<Times>::default();
        let far = 1 << 50;
        for (number, height) in [(far, 1), (far + 63, 1), (far + 64, 2), (far - 1, 9), (3, 9)] {
            tree.update(number, |page| page.push(1));
            assert_eq!((tree.height, tree.check()), (height, Ok(())));
        }
        assert_eq!(numbers(&tree), [3, far - 1, far, far + 63, far + 64]);
        for (number, height) in [(3, 9), (far - 1, 2), (far + 64, 1), (far, 1), (far + 63, 0)] {
            tree.update(number, |page| *page = Times::default());
            assert_eq!((tree.height, tree.check()), (height, Ok(())));
        }
        assert_eq!((numbers(&tree), tree.get(far)), (vec![], None));
    }

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut tree = Tree::<Times>::default();
        for number in 0..200 {
            tree.update(number, |page| page.push(number));
        }
        let copy = tree.clone();
        for number in 0..150 {
            tree.update(number, |page| *page = Times::default());
        }
        tree.update(199, |page| page.push(7));
        assert_eq!(numbers(&copy), (0..200).collect::<Vec<_>>());
        assert_eq!((copy.check(), copy.summary().live), (Ok(()), 200));
        assert_eq!((tree.check(), tree.summary().live), (Ok(()), 51));
    }

    #[test]
    fn whatever_is_done_summaries_are_what_is_below_and_the_first_is_found() {
        for seed in 0..40 {
            let mut prng = Prng::new(seed);
            let mut tree = Tree::<Times>::default();
            let mut model: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            let spread = 1 << prng.below(20);
            for _ in 0..400 {
                let number = prng.below(spread);
                let time = prng.below(50);
                if prng.chance(2, 5) {
                    tree.update(number, Times::pop);
                    if let Some(times) = model.get_mut(&number) {
                        times.pop();
                        if times.is_empty() {
                            model.remove(&number);
                        }
                    }
                } else {
                    tree.update(number, |page| page.push(time));
                    model.entry(number).or_default().push(time);
                }
                let first = model
                    .iter()
                    .filter_map(|(at, times)| Some((*times.iter().min()?, *at)));
                let first = first.min();
                let bound = tree.summary().dues[1];
                let is_bound = bound <= first.map_or(NEVER, |(time, _)| time);
                assert!(
                    is_bound && (bound == NEVER) == first.is_none(),
                    "seed {seed}"
                );
                if prng.chance(1, 3) {
                    let when = tree.settle(1);
                    let due = tree.first_due(1).map(|(at, page)| (page.first_due(1), at));
                    assert_eq!(when, due.map_or(NEVER, |(when, _)| when));
                    assert_eq!(due, first, "seed {seed}");
                }
                let from = prng.below(spread);
                let class = 1 << prng.below(4);
                let found = tree.next(from, |summary| summary.classes & class != 0);
                let mut wanted = model.range(from..);
                let wanted = wanted.find(|(_, times)| 1 << (times.len() % 16) == class);
                assert_eq!(
                    found.map(|(at, _)| at),
                    wanted.map(|(at, _)| *at),
                    "seed {seed}"
                );
            }
            assert_eq!(tree.check(), Ok(()), "seed {seed}");
            let kept: Vec<_> = tree
                .from(0)
                .map(|(at, page)| (at, page.times.clone()))
                .collect();
            assert_eq!(kept, model.into_iter().collect::<Vec<_>>());
        }
    }
}
