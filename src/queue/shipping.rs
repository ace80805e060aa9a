//! A state from one node to another by difference: only what the other has not.
//!
//! ```text
//!   Source (who has it)                        Difference (who lacks it)
//!   names: flat pages, trees, by hash ───────> what is here by that hash, at that place, stays
//!   a node: its branches, by hash     <─────── Wanted: node ─┐
//!                                     ───────> compared ─────┘ down to the pages that differ
//!   a page, and bodies of its jobs    <─────── Wanted: page, but not the bodies that are here
//!                                     ───────> written: bodies, page, the nodes above it
//! ```
//!
//! Pages and nodes are named by the hash of their bytes, which are a function of the state: what has the same
//! hash at the same place of both trees is the same, with all that is below it, and so are the bodies of its
//! jobs: a job's body never changes.
//!
//! # Invariants
//! - Whatever comes is held against the hash by which it was asked for, down from the names; a body against
//!   the record of its job. So what is written is the state that was named, or nothing is.
//! - A hash is believed at its place only: leaves of other jobs may have the same bytes, and other bodies.
//!
//! Left out on purpose: how wants and answers travel, and the bytes of a node ([`crate::wire::checkpoint`]).

mod difference;
mod source;

use crate::base::checksum::Hash128;
use crate::queue::deadlines::Place;
use crate::queue::frozen::Shared;
use crate::queue::history::FinishedPages;
use crate::queue::keys::Bucket;
use crate::queue::leaf::{Leaf, Leaves};
use crate::queue::page::{put_finished, put_keys, put_leaf, put_reasons};
use crate::queue::residence::Holds;
use crate::queue::tree::{At, Summary, Tree};
use crate::queue::view::{PageKey, PageKind, StoredPage};
use crate::queue::writing::SummaryBytes;
use bytes::Bytes;

pub use difference::{Difference, Found};
pub use source::{Answer, Source};

/// The kinds of pages of which a partition has many, in trees.
const TREE_KINDS: [PageKind; 3] = [PageKind::Leaf, PageKind::Keys, PageKind::Finished];

/// A branch of a node: its slot, what is in it, the hash of what is below.
pub type NamedBranch = (u8, SummaryBytes, Hash128);

/// Something of a state that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its key; of a node, with its number among those of its level.
    pub key: PageKey,
    /// 0 is a page.
    pub level: u8,
    /// Of a leaf: the slots whose bodies are not wanted, a bit each.
    pub held: u64,
}

/// What a state names: all else is below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The pages of which a group has few, rising by key.
    pub pages: Vec<(PageKey, Hash128)>,
    /// The trees of the others.
    pub trees: Vec<NamedTree>,
}

/// A tree as a state names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedTree {
    /// Kind, queue and partition of its pages; the number of its highest node.
    pub key: PageKey,
    /// The level of that node.
    pub level: u8,
    /// What is in it.
    pub summary: SummaryBytes,
    /// The hash of that node.
    pub hash: Hash128,
}

/// Whether pages of a kind stand in trees.
fn is_of_tree(kind: PageKind) -> bool {
    TREE_KINDS.contains(&kind)
}

/// The bytes of a page of a tree.
fn page_bytes(holds: &Holds) -> Option<Bytes> {
    Some(match holds {
        Holds::Leaf(leaf) => leaf_bytes(leaf),
        Holds::Keys(bucket) => put_keys(bucket.keys()),
        Holds::Finished(page) => put_finished(page),
        Holds::Places(bytes, _) => bytes.clone(),
        Holds::Node(_) => return None,
    })
}

/// The bytes of a leaf's page, its reasons behind it.
pub(super) fn leaf_bytes(leaf: &Leaf) -> Bytes {
    let bytes = put_leaf(leaf);
    if leaf.reasons().is_empty() {
        return bytes;
    }
    [&bytes[..], &put_reasons(leaf.reasons())].concat().into()
}

/// A tree of a partition.
enum AnyTree<'a> {
    Leaves(&'a Leaves),
    Keys(&'a Tree<Bucket>),
    Finished(&'a FinishedPages),
}

/// What is at a place of it.
enum Here {
    Nothing,
    Above,
    Page(Holds, Option<StoredPage>),
    Node(Option<StoredPage>, Vec<u8>),
    Absent(StoredPage),
    Below,
}

impl Here {
    /// Where it is on this node's disk as it is, if it is.
    fn stored(&self) -> Option<StoredPage> {
        match self {
            Self::Page(_, stored) | Self::Node(stored, _) => *stored,
            Self::Absent(stored) => Some(*stored),
            Self::Nothing | Self::Above | Self::Below => None,
        }
    }
}

impl<'a> AnyTree<'a> {
    /// The tree of such pages, if its partition exists.
    fn of(shared: &'a Shared, kind: PageKind, place: Place) -> Option<Self> {
        let partition = shared.partitions.get(&place)?;
        Some(match kind {
            PageKind::Leaf => Self::Leaves(&partition.leaves),
            PageKind::Keys => Self::Keys(partition.keys.tree()),
            _ => Self::Finished(&partition.finished),
        })
    }

    fn at(&self, level: u8, number: u64) -> Here {
        fn here<T>(at: At<T>, holds: impl Fn(std::sync::Arc<T>) -> Holds) -> Here {
            match at {
                At::Nothing => Here::Nothing,
                At::Above => Here::Above,
                At::Page(page, stored) => Here::Page(holds(page), stored),
                At::Node(stored, slots) => Here::Node(stored, slots),
                At::Absent(stored) => Here::Absent(stored),
                At::Below => Here::Below,
            }
        }
        let level = level.into();
        match self {
            Self::Leaves(tree) => here(tree.at(level, number), Holds::Leaf),
            Self::Keys(tree) => here(tree.at(level, number), Holds::Keys),
            Self::Finished(tree) => here(tree.at(level, number), Holds::Finished),
        }
    }

    /// What is in a page or node that is at a place, and where it is on this node's disk as it is.
    fn branch(&self, level: u8, number: u64) -> Option<(Summary, Option<StoredPage>)> {
        let level = level.into();
        match self {
            Self::Leaves(tree) => tree.told_of(level, number),
            Self::Keys(tree) => tree.told_of(level, number),
            Self::Finished(tree) => tree.told_of(level, number),
        }
    }

    fn top(&self) -> Option<(u8, u64)> {
        let top = match self {
            Self::Leaves(tree) => tree.top(),
            Self::Keys(tree) => tree.top(),
            Self::Finished(tree) => tree.top(),
        };
        top.map(|(level, number)| (u8::try_from(level).expect("a tree has few levels"), number))
    }

    /// Run files, each with the bytes that it has in it.
    fn run_bytes(&self) -> std::collections::BTreeMap<u64, u64> {
        match self {
            Self::Leaves(tree) => tree.run_bytes().collect(),
            Self::Keys(tree) => tree.run_bytes().collect(),
            Self::Finished(tree) => tree.run_bytes().collect(),
        }
    }
}
