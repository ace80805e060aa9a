//! Who has the state: names it, and answers what is wanted of it.
//!
//! What has changed since the last checkpoint has no hash yet: all of it is looked at first, some pieces a
//! step, and the branches of the nodes above are kept. The rest stands as it is stored.

use super::{AnyTree, Here, NamedBranch, NamedTree, Names, Wanted, is_of_tree, page_bytes};
use crate::base::checksum::Hash128;
use crate::base::limits::NODE_BRANCHES;
use crate::queue::body::StoredBody;
use crate::queue::frozen::{FrozenState, Shared};
use crate::queue::needs::PageWant;
use crate::queue::residence::{AbsentPage, Holds, StoredPart};
use crate::queue::tree::BITS;
use crate::queue::view::{BodyLocation, PageKey, StoredPage};
use crate::queue::writing::{LeftFiles, Piece, StateWriter, SummaryBytes, put_summary};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A state at one entry, for another node.
pub struct Source {
    shared: Arc<Shared>,
    files: Arc<LeftFiles>,
    /// Looks at what has changed, until all of that has a hash.
    hashing: Option<Box<StateWriter>>,
    names: Names,
    /// The nodes above what has changed.
    nodes: BTreeMap<(PageKey, u8), Vec<NamedBranch>>,
}

/// What a state has at a place.
pub enum Answer {
    /// The branches of a node.
    Node(Vec<NamedBranch>),
    /// The bytes of a page, and of a leaf the bodies that are wanted, by slot.
    Page(Bytes, Vec<(u8, StoredBody)>),
    /// This is to be read first, and answers then ([`Source::of_part`]).
    Read(PageWant),
    /// Nothing.
    Nothing,
}

impl Source {
    /// Of a state.
    #[must_use]
    pub fn new(state: &FrozenState) -> Self {
        Self {
            shared: Arc::clone(&state.shared),
            files: Arc::new(state.files()),
            hashing: Some(Box::new(state.hasher())),
            names: Names::default(),
            nodes: BTreeMap::new(),
        }
    }

    /// What it is read from: none of them may go.
    #[must_use]
    pub fn files(&self) -> &LeftFiles {
        &self.files
    }

    /// Looks at so many pages and nodes more; whether all have their hashes, so that the names are known and
    /// wants can be answered. `hash_node` hashes a node of such a key, level and branches, as it is stored.
    pub fn prepare(
        &mut self,
        pieces: usize,
        hash_node: impl Fn(PageKey, u8, &[(u8, SummaryBytes, StoredPage)]) -> Hash128,
    ) -> bool {
        let Some(writer) = &mut self.hashing else {
            return true;
        };
        let mut left = pieces;
        while left > 0 {
            left -= 1;
            match writer.next_piece() {
                Some(Piece::Pause) => {}
                Some(Piece::Read(absent)) => {
                    panic!("{absent:?} is stored and in no file that is left")
                }
                Some(Piece::Body { job, .. }) => {
                    left += 1;
                    writer.body_placed(job, BodyLocation::NOWHERE);
                }
                Some(Piece::Page { bytes, .. }) => {
                    writer.placed(StoredPage::nowhere(Hash128::of(&bytes)));
                }
                Some(Piece::Node {
                    key,
                    level,
                    branches,
                }) => {
                    writer.placed(StoredPage::nowhere(hash_node(key, level, &branches)));
                    let named = branches.into_iter();
                    let named = named.map(|(slot, summary, stored)| (slot, summary, stored.hash));
                    self.nodes.insert((key, level), named.collect());
                }
                None => {
                    let writer = self.hashing.take().expect("it was just looked at");
                    let (written, _) = writer.finish();
                    let pages = written.pages.into_iter();
                    let trees = written.trees.into_iter();
                    self.names = Names {
                        pages: pages.map(|(key, stored)| (key, stored.hash)).collect(),
                        trees: trees
                            .map(|tree| NamedTree {
                                key: tree.key,
                                level: tree.level,
                                summary: tree.summary,
                                hash: tree.stored.hash,
                            })
                            .collect(),
                    };
                    return true;
                }
            }
        }
        false
    }

    /// What the state names.
    ///
    /// # Panics
    /// If not all is prepared.
    #[must_use]
    pub fn names(&self) -> &Names {
        assert!(self.hashing.is_none(), "some of it has no hash yet");
        &self.names
    }

    /// What is wanted.
    ///
    /// # Panics
    /// If not all is prepared.
    #[must_use]
    pub fn answer(&self, wanted: &Wanted) -> Answer {
        assert!(self.hashing.is_none(), "some of it has no hash yet");
        let key = wanted.key;
        if !is_of_tree(key.kind) {
            let found = self.shared.flat_from(key);
            let found = found.filter(|(found, _)| *found == key && wanted.level == 0);
            return found.map_or(Answer::Nothing, |(key, same)| {
                Answer::Page(self.shared.flat_page(key, &same), Vec::new())
            });
        }
        if let Some(branches) = self.nodes.get(&(key, wanted.level)) {
            return Answer::Node(branches.clone());
        }
        let place = (key.queue, key.partition);
        let Some(tree) = AnyTree::of(&self.shared, key.kind, place) else {
            return Answer::Nothing;
        };
        match tree.at(wanted.level, key.number) {
            Here::Page(holds, _) => Self::page(wanted, &holds),
            Here::Node(_, slots) => Self::node(&tree, wanted, &slots),
            Here::Absent(stored) => Answer::Read(PageWant::only(AbsentPage {
                key,
                level: wanted.level,
                stored,
            })),
            // Only pages can be below what is absent.
            Here::Below if wanted.level == 0 => {
                let number = key.number >> BITS;
                let above = PageKey { number, ..key };
                match tree.at(1, number).stored() {
                    Some(stored) => Answer::Read(PageWant::page_below(
                        AbsentPage {
                            key: above,
                            level: 1,
                            stored,
                        },
                        key.number,
                    )),
                    None => Answer::Nothing,
                }
            }
            Here::Nothing | Here::Above | Here::Below => Answer::Nothing,
        }
    }

    /// What was read in answer to a want; `None` if it is something else.
    #[must_use]
    pub fn of_part(wanted: &Wanted, part: &StoredPart) -> Option<Answer> {
        if (part.at.key, part.at.level) != (wanted.key, wanted.level) {
            return None;
        }
        Some(match &part.holds {
            Holds::Node(branches) => Answer::Node(
                branches
                    .iter()
                    .map(|(slot, summary, stored)| (*slot, put_summary(summary), stored.hash))
                    .collect(),
            ),
            holds => Self::page(wanted, holds),
        })
    }

    /// A node that has not changed, and is here with what is told of its branches.
    fn node(tree: &AnyTree<'_>, wanted: &Wanted, slots: &[u8]) -> Answer {
        let branches = slots.iter().map(|slot| {
            let number = wanted.key.number * NODE_BRANCHES + u64::from(*slot);
            let (summary, stored) = tree.branch(wanted.level - 1, number)?;
            Some((*slot, put_summary(&summary), stored?.hash))
        });
        let branches: Option<Vec<_>> = branches.collect();
        branches.map_or(Answer::Nothing, Answer::Node)
    }

    fn page(wanted: &Wanted, holds: &Holds) -> Answer {
        let Some(bytes) = page_bytes(holds) else {
            return Answer::Nothing;
        };
        let mut bodies = Vec::new();
        if let Holds::Leaf(leaf) = holds {
            let slots = leaf.live_slots();
            let slots = slots.filter(|slot| wanted.held & 1 << slot == 0);
            bodies.extend(slots.map(|slot| (slot as u8, leaf.body(slot).clone())));
        }
        Answer::Page(bytes, bodies)
    }
}
