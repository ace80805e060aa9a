//! What a majority is: of one set of voters, and of two at once while the members change.
//!
//! During a joint configuration (thesis 4.3) every decision needs a majority of the old voters *and*
//! one of the new. A voter in both sets counts in each. The empty set agrees to everything: it stands
//! for "no second set", never for a group without voters, which [`Membership`] does not let come about.
//!
//! [`Membership`]: crate::raft::membership::Membership

use crate::base::ids::LogIndex;
use crate::base::limits::VOTERS_MAX;
use crate::raft::message::Voter;
use std::collections::BTreeSet;

/// How a vote stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// A majority said yes.
    Won,
    /// A majority cannot say yes any more.
    Lost,
    /// It is open.
    Open,
}

/// How many of `voters` are a majority.
#[must_use]
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// How a vote stands in one set; `vote` is `None` for who has not answered.
#[must_use]
pub fn tally(voters: &BTreeSet<Voter>, vote: impl Fn(Voter) -> Option<bool>) -> Tally {
    if voters.is_empty() {
        return Tally::Won;
    }
    let (mut yes, mut no) = (0, 0);
    for voter in voters {
        match vote(*voter) {
            Some(true) => yes += 1,
            Some(false) => no += 1,
            None => {}
        }
    }
    let needed = majority(voters.len());
    if yes >= needed {
        Tally::Won
    } else if voters.len() - no < needed {
        Tally::Lost
    } else {
        Tally::Open
    }
}

/// The highest index that a majority of a set has reached, of which these are the indexes, one a voter;
/// `None` for the empty set, which has no opinion.
///
/// # Panics
/// If there are more than [`VOTERS_MAX`].
#[must_use]
pub fn reached(indexes: impl Iterator<Item = LogIndex>) -> Option<LogIndex> {
    // Falling. A few are sorted in place quicker than a list would be made.
    let mut sorted = [LogIndex(0); VOTERS_MAX];
    let mut count = 0;
    for index in indexes {
        let mut place = count;
        while place > 0 && sorted[place - 1] < index {
            sorted[place] = sorted[place - 1];
            place -= 1;
        }
        sorted[place] = index;
        count += 1;
    }
    (count > 0).then(|| sorted[majority(count) - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::message::voter;
    use proptest::collection::vec;
    use proptest::prelude::{any, proptest};

    fn voters(count: usize) -> BTreeSet<Voter> {
        (1..=count as u32).map(voter).collect()
    }

    #[test]
    fn a_majority_is_more_than_half() {
        let sizes: Vec<_> = (1..=7).map(majority).collect();
        assert_eq!(sizes, [1, 2, 2, 3, 3, 4, 4]);
    }

    #[test]
    fn the_empty_set_agrees_and_has_no_opinion() {
        assert_eq!(tally(&BTreeSet::new(), |_| Some(false)), Tally::Won);
        assert_eq!(reached(std::iter::empty()), None);
    }

    proptest! {
        #[test]
        fn tallies_are_what_counting_every_end_says(votes in vec(any::<Option<bool>>(), 1..8)) {
            let set = voters(votes.len());
            let vote = |voter: Voter| votes[voter.node.0 as usize - 1];
            // Whatever the silent say: is the end always yes, always no, or either?
            let silent: Vec<usize> = (0..votes.len()).filter(|at| votes[*at].is_none()).collect();
            let ends = (0..1_u32 << silent.len()).map(|bits| {
                let late = silent.iter().enumerate().filter(|(nth, _)| bits >> nth & 1 == 1).count();
                let yes = votes.iter().filter(|vote| **vote == Some(true)).count() + late;
                2 * yes > votes.len()
            });
            let ends: BTreeSet<bool> = ends.collect();
            let expected = match (ends.contains(&true), ends.contains(&false)) {
                (true, false) => Tally::Won,
                (false, true) => Tally::Lost,
                _ => Tally::Open,
            };
            assert_eq!(tally(&set, vote), expected);
        }

        #[test]
        fn reached_is_the_highest_index_that_a_majority_has(indexes in vec(0..20_u64, 1..VOTERS_MAX)) {
            let has = |index: u64| indexes.iter().filter(|at| **at >= index).count();
            let highest = (0..20).rev().find(|index| 2 * has(*index) > indexes.len());
            let indexes = indexes.iter().copied().map(LogIndex);
            assert_eq!(reached(indexes), highest.map(LogIndex));
        }
    }
}
