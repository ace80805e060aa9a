//! A set of sequences in order: a word of bits for each leaf that has one.
//!
//! Jobs of a class stand close together, so a set costs a bit a job and a map entry a leaf; first,
//! insert and remove cost the depth of that map. Left out on purpose: priorities (one set a class).

use crate::base::limits::LEAF_JOBS;
use crate::queue::leaf::{bits, leaf_of, slot_of};
use std::collections::BTreeMap;

/// A set of sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SeqSet(BTreeMap<u64, u64>);

impl SeqSet {
    /// Adds a sequence that is not in it.
    pub(super) fn insert(&mut self, seq: u64) {
        let word = self.0.entry(leaf_of(seq)).or_default();
        let bit = 1 << slot_of(seq);
        assert!(
            *word & bit == 0,
            "sequence {seq} is in the set already, word {word:x}"
        );
        *word |= bit;
    }

    /// Takes out a sequence that is in it.
    pub(super) fn remove(&mut self, seq: u64) {
        let leaf = leaf_of(seq);
        let word = self
            .0
            .get_mut(&leaf)
            .expect("the leaf of a member has a word");
        let bit = 1 << slot_of(seq);
        assert!(
            *word & bit != 0,
            "sequence {seq} is not in the set, word {word:x}"
        );
        *word &= !bit;
        if *word == 0 {
            self.0.remove(&leaf);
        }
    }

    /// The lowest sequence.
    pub(super) fn first(&self) -> Option<u64> {
        let (leaf, word) = self.0.first_key_value()?;
        Some(leaf * LEAF_JOBS + u64::from(word.trailing_zeros()))
    }

    /// All sequences, rising.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        self.from(0)
    }

    /// The sequences from `seq` on, rising.
    pub(super) fn from(&self, seq: u64) -> impl Iterator<Item = u64> {
        let (first, slot) = (leaf_of(seq), slot_of(seq));
        self.0.range(first..).flat_map(move |(leaf, word)| {
            let skipped = if *leaf == first { slot } else { 0 };
            let rest = *word & (u64::MAX << skipped);
            bits(rest).map(move |bit| leaf * LEAF_JOBS + bit as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yields_its_members_in_order_over_leaves() {
        let mut set = SeqSet::default();
        for seq in [200, 64, 0, 63, 65] {
            set.insert(seq);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 65, 200]);
        let from = |seq| set.from(seq).collect::<Vec<_>>();
        assert_eq!(from(1), [63, 64, 65, 200]);
        assert_eq!(from(63), [63, 64, 65, 200]);
        assert_eq!(from(66), [200]);
        assert_eq!(from(201), [0; 0]);
        assert_eq!(from(u64::MAX), [0; 0]);
        set.remove(0);
        set.remove(63);
        assert_eq!(set.first(), Some(64));
        for seq in [64, 65, 200] {
            set.remove(seq);
        }
        assert_eq!(set, SeqSet::default());
    }
}
