//! What of a state this node's disk has as it is, in an order: for who looks whether the disk has it still.
//!
//! ```text
//!   flat pages ─> a partition: leaves ─> keys ─> finished jobs ─> the next partition ─> … ─> the end
//! ```
//!
//! What has changed since it was stored is left out: the next checkpoint stores it anew; but for the bodies of
//! its jobs, which never change. What is below a node that is on the disk alone is told by that node, and by
//! nothing here.
//!
//! # Invariants
//! - Whatever is stored when a walk begins, and stays where it is until the walk is over, is met by it.
//! - A walk is a place: it holds on to nothing, and goes on however the state changes.

use crate::queue::deadlines::Place;
use crate::queue::job_queue::JobQueue;
use crate::queue::partition::PartitionState;
use crate::queue::residence::AbsentPage;
use crate::queue::tree::{At, BITS, Page, Seen, Stored, Tree};
use crate::queue::view::{BodyLocation, PageKey, PageKind, StoredPage};
use std::ops::Bound;

/// The kinds of pages that stand in trees, in the order of a walk.
const KINDS: [PageKind; 3] = [PageKind::Leaf, PageKind::Keys, PageKind::Finished];

/// Where a walk over what is stored goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPlace(Next);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Behind this one of the pages of which a group has few; `None`: at the first.
    Flat(Option<PageKey>),
    /// At this page of the pages of a kind of the first partition from this one on.
    Tree(Place, usize, u64),
}

impl StoredPlace {
    /// The beginning.
    pub const FIRST: Self = Self(Next::Flat(None));
}

/// A page or node that is on the disk as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredAt {
    /// It, and where it is.
    pub at: AbsentPage,
    /// It is a node, and what is below it is on the disk alone, too.
    pub with_all_below: bool,
}

fn stored_part(kind: PageKind, place: Place, stored: &Stored) -> StoredAt {
    let key = PageKey {
        kind,
        queue: place.0,
        partition: place.1,
        number: stored.at.number,
    };
    let level = u8::try_from(stored.at.level).expect("a tree has few levels");
    StoredAt {
        at: AbsentPage {
            key,
            level,
            stored: stored.at.stored,
        },
        with_all_below: stored.with_all_below,
    }
}

/// The body of a job in a page that has changed since it was stored: it stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyAt {
    /// The page.
    pub key: PageKey,
    /// The job, by its slot there.
    pub slot: u8,
    /// Where its body is.
    pub at: BodyLocation,
}

/// Some of what is stored.
#[derive(Debug, Default)]
pub struct StoredParts {
    /// Pages and nodes.
    pub parts: Vec<StoredAt>,
    /// What of other pages is.
    pub bodies: Vec<BodyAt>,
}

impl JobQueue {
    /// What is stored from a place on, of up to `places` places that are looked at; and where to go on, unless
    /// that is all.
    #[must_use]
    pub fn stored_from(
        &self,
        from: StoredPlace,
        places: usize,
    ) -> (StoredParts, Option<StoredPlace>) {
        let (mut from, mut left) = (Some(from.0), places);
        let mut found = StoredParts::default();
        while let Some(next) = from
            && left > 0
        {
            from = match next {
                Next::Flat(behind) => self.flat_from(behind, &mut left, &mut found),
                Next::Tree(place, kind, page) => {
                    self.tree_from((place, kind, page), &mut left, &mut found)
                }
            };
        }
        (found, from.map(StoredPlace))
    }

    fn flat_from(
        &self,
        behind: Option<PageKey>,
        left: &mut usize,
        found: &mut StoredParts,
    ) -> Option<Next> {
        let mut last = None;
        for (key, stored) in self.flat.behind(behind).take(*left) {
            let (level, with_all_below) = (0, false);
            let at = AbsentPage { key, level, stored };
            found.parts.push(StoredAt { at, with_all_below });
            (last, *left) = (Some(key), *left - 1);
        }
        match *left {
            0 => Some(Next::Flat(last.or(behind))),
            _ => self.partition_from(Bound::Unbounded),
        }
    }

    fn partition_from(&self, from: Bound<Place>) -> Option<Next> {
        let mut places = self.partitions.range((from, Bound::Unbounded));
        places.next().map(|(place, _)| Next::Tree(*place, 0, 0))
    }

    fn tree_from(
        &self,
        (place, kind, page): (Place, usize, u64),
        left: &mut usize,
        found: &mut StoredParts,
    ) -> Option<Next> {
        let Some(kind_of_pages) = KINDS.get(kind) else {
            return self.partition_from(Bound::Excluded(place));
        };
        let Some(state) = self.partitions.get(&place) else {
            return self.partition_from(Bound::Excluded(place));
        };
        // An empty tree is a look, too, since there may be many.
        *left -= 1;
        let look = match kind_of_pages {
            PageKind::Leaf => state.leaves.stored_from(page, *left),
            PageKind::Keys => state.keys.tree().stored_from(page, *left),
            _ => state.history.pages().stored_from(page, *left),
        };
        *left = left.saturating_sub(look.found.len() + look.changed.len());
        let stored = look.found.iter();
        let stored = stored.map(|stored| stored_part(*kind_of_pages, place, stored));
        found.parts.extend(stored);
        if *kind_of_pages == PageKind::Leaf {
            let changed = look.changed.iter();
            let bodies = changed.flat_map(|number| bodies_of(state, place, *number));
            found.bodies.extend(bodies);
        }
        Some(match look.stopped {
            Some(page) => {
                *left = 0;
                Next::Tree(place, kind, page)
            }
            None => Next::Tree(place, kind + 1, 0),
        })
    }

    /// Whether the body of a job is at this place still.
    #[must_use]
    pub fn has_body(&self, it: &BodyAt) -> bool {
        let place = (it.key.queue, it.key.partition);
        let state = self.partitions.get(&place);
        state.is_some_and(|state| bodies_of(state, place, it.key.number).any(|body| body == *it))
    }

    /// Whether a page or node is on the disk at this place still, as it was. If what is above it is on the
    /// disk alone, that was `above`.
    #[must_use]
    pub fn has_stored(&self, it: &AbsentPage, above: Option<StoredPage>) -> bool {
        let key = it.key;
        let state = || self.partitions.get(&(key.queue, key.partition));
        match key.kind {
            PageKind::Leaf => state().is_some_and(|state| has(&state.leaves, it, above)),
            PageKind::Keys => state().is_some_and(|state| has(state.keys.tree(), it, above)),
            PageKind::Finished => {
                state().is_some_and(|state| has(state.history.pages(), it, above))
            }
            _ => self.flat.stored(key) == Some(it.stored),
        }
    }
}

/// Where the bodies of a leaf's jobs are, if it is here.
fn bodies_of(
    state: &PartitionState,
    place: Place,
    number: u64,
) -> impl Iterator<Item = BodyAt> + use<'_> {
    let leaf = match state.leaves.page(number) {
        Some(Seen::Here(leaf)) => Some(leaf),
        _ => None,
    };
    let key = PageKey {
        kind: PageKind::Leaf,
        queue: place.0,
        partition: place.1,
        number,
    };
    leaf.into_iter().flat_map(move |leaf| {
        leaf.live_slots().filter_map(move |slot| {
            let at = leaf.location(slot)?;
            let slot = slot as u8;
            Some(BodyAt { key, slot, at })
        })
    })
}

fn has<T: Page>(tree: &Tree<T>, it: &AbsentPage, above: Option<StoredPage>) -> bool {
    let (level, number) = (u32::from(it.level), it.key.number);
    match tree.at(level, number) {
        At::Page(_, stored) | At::Node(stored, _) => stored == Some(it.stored),
        At::Absent(stored) => stored == it.stored,
        At::Below => {
            let node = tree.at(level + 1, number >> BITS);
            matches!(node, At::Absent(stored) if Some(stored) == above)
        }
        At::Nothing | At::Above => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use crate::queue::tests::{apply, rich};
    use crate::queue::writing::WrittenState;
    use crate::queue::writing_tests::{Disk, checkpoint, jobs, random_op};
    use std::collections::BTreeMap;

    type Parts = BTreeMap<(PageKey, u8), StoredPage>;

    fn add_with_all_below(disk: &Disk, parts: &mut Parts, top: AbsentPage) {
        let mut left = vec![top];
        while let Some(at) = left.pop() {
            parts.insert((at.key, at.level), at.stored);
            if at.level > 0 {
                left.extend(disk.below(&at).into_iter().map(|(below, _)| below));
            }
        }
    }

    /// All that a root names.
    fn named(disk: &Disk, state: &WrittenState) -> Parts {
        let pages = state.pages.iter();
        let mut parts: Parts = pages.map(|(key, stored)| ((*key, 0), *stored)).collect();
        for tree in &state.trees {
            let top = AbsentPage {
                key: tree.key,
                level: tree.level,
                stored: tree.stored,
            };
            add_with_all_below(disk, &mut parts, top);
        }
        parts
    }

    /// What a walk meets whose steps look at so many places, and what is told to be below that.
    fn walked(machine: &JobQueue, disk: &Disk, places: usize) -> (Parts, Vec<BodyAt>) {
        let mut bodies = Vec::new();
        let (mut parts, mut next) = (Parts::new(), Some(StoredPlace::FIRST));
        while let Some(place) = next {
            let (found, rest) = machine.stored_from(place, places);
            assert_ne!(rest, Some(place), "a walk stands still");
            // No more than its places, and the nodes above them.
            let parts_found = &found.parts;
            assert!(
                parts_found.len() <= places + 4,
                "{} of {places}",
                parts_found.len()
            );
            for body in &found.bodies {
                assert!(machine.has_body(body), "{body:?}");
                let there = disk.bodies.get(&(body.at.file, body.at.offset));
                let seq = body.key.number * 64 + u64::from(body.slot);
                assert_eq!(there.map(|(job, _)| job.seq()), Some(seq));
                bodies.push(*body);
            }
            for part in parts_found {
                assert!(machine.has_stored(&part.at, None), "{part:?}");
                if part.with_all_below {
                    add_with_all_below(disk, &mut parts, part.at);
                    for (below, _) in disk.below(&part.at) {
                        assert!(machine.has_stored(&below, Some(part.at.stored)));
                        assert!(!machine.has_stored(&below, None), "{below:?}");
                    }
                }
                parts.insert((part.at.key, part.at.level), part.at.stored);
            }
            next = rest;
        }
        (parts, bodies)
    }

    #[test]
    fn a_walk_meets_all_that_is_stored_and_nothing_else() {
        let mut found = 0;
        for seed in 0..20 {
            let mut prng = Prng::new(seed);
            let (mut machine, mut disk) = (rich(), Disk::default());
            for _ in 0..prng.below(12) {
                apply(&mut machine, 9, jobs(1000));
            }
            let (state, _) = checkpoint(&mut machine, &mut disk);
            let all = named(&disk, &state);
            if prng.chance(1, 2) {
                machine = disk.open(&state);
            }
            machine.let_go([0, 100_000, u64::MAX][prng.below(3) as usize]);
            for places in [8, 70, 100_000] {
                let (parts, bodies) = walked(&machine, &disk, places);
                assert!(parts == all && bodies.is_empty(), "seed {seed}");
            }
            // What has changed is left out, and nothing else is there.
            let mut whole = disk.load(&state);
            for time in 10..20 {
                let op = random_op(&whole, &mut prng);
                apply(&mut whole, time, op);
            }
            let (left, bodies) = walked(&whole, &disk, 8);
            assert!(left.iter().all(|(at, stored)| all.get(at) == Some(stored)));
            found += bodies.len();
            let (state, _) = checkpoint(&mut whole, &mut disk);
            let now = named(&disk, &state);
            for ((key, level), stored) in all {
                let at = AbsentPage { key, level, stored };
                let is_there = now.get(&(key, level)) == Some(&stored);
                assert_eq!(whole.has_stored(&at, None), is_there, "seed {seed}: {at:?}");
            }
        }
        assert!(found > 100, "{found} bodies of pages that have changed");
    }

    #[test]
    fn a_page_that_a_group_has_few_of_is_stored_anew_and_no_other() {
        let (mut machine, mut disk) = (rich(), Disk::default());
        let (state, _) = checkpoint(&mut machine, &mut disk);
        let (key, stored) = state.pages[1];
        assert!(machine.store_anew(key));
        assert!(!machine.store_anew(state.trees[0].key), "it stays");
        let (anew, _) = checkpoint(&mut machine, &mut disk);
        let moved = |at: &(PageKey, StoredPage)| !state.pages.contains(at);
        let moved: Vec<_> = anew.pages.iter().filter(|at| moved(at)).collect();
        assert_eq!(moved.len(), 1);
        assert_eq!((moved[0].0, moved[0].1.hash), (key, stored.hash));
    }
}
