//! The outcomes that a session's window keeps, by number.
//!
//! A ring: numbers come nearly in order and leave at the low end, so that an outcome costs a place and
//! no search. It spans from the lowest number kept to the highest, which its window bounds; a number
//! between them whose outcome is not kept costs an empty place. Short outcomes, which are nearly all,
//! stand in their places, so that a frozen state and its successor are made by one copy.

use std::collections::VecDeque;
use std::sync::Arc;

/// Longer outcomes are kept apart: one job enqueued takes 20 bytes, an ack of eight 19.
const INLINE_BYTES: usize = 22;

/// An outcome in bytes.
#[derive(Clone, Debug)]
enum Kept {
    Inline(u8, [u8; INLINE_BYTES]),
    Apart(Arc<[u8]>),
}

impl Kept {
    fn of(bytes: &[u8]) -> Self {
        match u8::try_from(bytes.len()) {
            Ok(len) if bytes.len() <= INLINE_BYTES => {
                let mut place = [0; INLINE_BYTES];
                place[..bytes.len()].copy_from_slice(bytes);
                Self::Inline(len, place)
            }
            _ => Self::Apart(bytes.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline(len, place) => &place[..usize::from(*len)],
            Self::Apart(bytes) => bytes,
        }
    }
}

/// Outcomes by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcomes {
    /// The number of the first place.
    first: u64,
    /// The first place is not empty, nor is the last.
    places: VecDeque<Option<Kept>>,
    len: usize,
}

impl PartialEq for Outcomes {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Outcomes {}

impl Outcomes {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// The outcome of a number.
    pub(super) fn get(&self, number: u64) -> Option<&[u8]> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.places.get(at)?.as_ref().map(Kept::bytes)
    }

    /// Numbers and outcomes, rising.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let places = (self.first..).zip(&self.places);
        places.filter_map(|(number, place)| Some((number, place.as_ref()?.bytes())))
    }

    /// Keeps the outcome of a number that has none. The number is within a window of all others.
    pub(super) fn insert(&mut self, number: u64, bytes: &[u8]) {
        if self.places.is_empty() {
            self.first = number;
        }
        while number < self.first {
            self.places.push_front(None);
            self.first -= 1;
        }
        let at = usize::try_from(number - self.first).expect("a window is in memory");
        if at >= self.places.len() {
            self.places.resize(at + 1, None);
        }
        let before = self.places[at].replace(Kept::of(bytes));
        assert!(before.is_none(), "number {number} had an outcome");
        self.len += 1;
    }

    /// Forgets the numbers below `lowest`; how many bytes their outcomes had.
    pub(super) fn forget_below(&mut self, lowest: u64) -> u64 {
        let mut bytes = 0;
        while let Some(place) = self.places.front() {
            match place {
                Some(_) if self.first >= lowest => break,
                Some(kept) => {
                    bytes += kept.bytes().len() as u64;
                    self.len -= 1;
                }
                None => {}
            }
            self.places.pop_front();
            self.first += 1;
        }
        bytes
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::collections::btree_map::Entry;

    const WINDOW: u64 = 40;

    proptest! {
        #[test]
        fn a_ring_keeps_what_a_map_keeps(
            steps in proptest::collection::vec((0..WINDOW, 0_usize..60, any::<bool>()), 0..300)
        ) {
            let (mut ring, mut map) = (Outcomes::default(), BTreeMap::<u64, Vec<u8>>::new());
            let mut lowest = 1;
            for (ahead, len, slides) in steps {
                let number = lowest + ahead;
                match map.entry(number) {
                    Entry::Occupied(kept) => prop_assert_eq!(ring.get(number), Some(&kept.get()[..])),
                    Entry::Vacant(free) => {
                        let outcome = free.insert(vec![len as u8; len]);
                        ring.insert(number, outcome);
                    }
                }
                if slides {
                    lowest = number + 1;
                    let rest = map.split_off(&lowest);
                    let gone: usize = map.values().map(Vec::len).sum();
                    prop_assert_eq!(ring.forget_below(lowest), gone as u64);
                    map = rest;
                }
                prop_assert_eq!(ring.len(), map.len());
                let kept = map.iter().map(|(number, outcome)| (*number, &outcome[..]));
                prop_assert!(ring.iter().eq(kept));
                prop_assert!(ring.places.len() as u64 <= WINDOW);
                let mut again = Outcomes::default();
                map.iter().rev().for_each(|(number, outcome)| again.insert(*number, outcome));
                prop_assert_eq!(&again, &ring);
            }
        }
    }
}
