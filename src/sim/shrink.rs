//! From a run that fails to the few faults that it fails by: the others are left out, half of them at a
//! time, then fewer, as long as it still fails (Zeller, Hildebrandt, *Simplifying and Isolating
//! Failure-Inducing Input*, 2002, without the tests of complements that are not smaller).
//!
//! What is left is minimal in this: leaving out any one of it, the run does not fail.

use std::collections::BTreeSet;

/// The fewest of `all` that are found with which `fails` still says so. `fails` is asked about sets that
/// get smaller, about `n log n` times for `n` faults, more often if many are needed.
pub fn shrink(all: &BTreeSet<u64>, mut fails: impl FnMut(&BTreeSet<u64>) -> bool) -> BTreeSet<u64> {
    let mut kept = all.clone();
    let mut size = kept.len().div_ceil(2);
    while size > 0 {
        let mut has_shrunk = false;
        for chunk in kept.iter().copied().collect::<Vec<_>>().chunks(size) {
            let mut less = kept.clone();
            less.retain(|number| !chunk.contains(number));
            if less.len() < kept.len() && fails(&less) {
                kept = less;
                has_shrunk = true;
            }
        }
        // The last pass must find nothing, one by one.
        size = match size {
            1 if has_shrunk => 1,
            1 => 0,
            _ => size / 2,
        };
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_is_left() {
        let all: BTreeSet<u64> = (1..=100).collect();
        let needed = BTreeSet::from([3, 4, 77]);
        let mut asked = 0;
        let left = shrink(&all, |some| {
            asked += 1;
            needed.is_subset(some)
        });
        assert_eq!(left, needed);
        assert!(asked < 60, "asked {asked} times");
        assert!(shrink(&all, |_| true).is_empty());
        assert_eq!(shrink(&all, |some| some.len() == 100), all);
    }
}
