//! What is to happen and when: the soonest first, and of one moment what was scheduled first.

use crate::base::units::Monotonic;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A moment, and the number of what happens then: no two have the same.
pub(super) type Moment = (Monotonic, u64);

pub(super) struct Agenda<T> {
    due: BinaryHeap<Due<T>>,
}

/// In a box, since many are moved whenever one comes or goes.
struct Due<T> {
    at: Moment,
    what: Box<T>,
}

impl<T> Agenda<T> {
    pub(super) fn insert(&mut self, at: Moment, what: Box<T>) {
        self.due.push(Due { at, what });
    }

    /// When the next thing happens.
    pub(super) fn next(&self) -> Option<Monotonic> {
        self.due.peek().map(|due| due.at.0)
    }

    pub(super) fn pop(&mut self) -> Option<(Moment, Box<T>)> {
        self.due.pop().map(|due| (due.at, due.what))
    }

    pub(super) fn retain(&mut self, mut stays: impl FnMut(&T) -> bool) {
        self.due.retain(|due| stays(&due.what));
    }

    /// What of `these` was to happen at a moment happens now, in its order.
    pub(super) fn bring(&mut self, at: Monotonic, now: Monotonic, these: impl Fn(&T) -> bool) {
        let mut all = std::mem::take(&mut self.due).into_vec();
        for due in &mut all {
            if due.at.0 == at && these(&due.what) {
                due.at.0 = now;
            }
        }
        self.due = all.into();
    }
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self {
            due: BinaryHeap::new(),
        }
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        Reverse(self.at).cmp(&Reverse(other.at))
    }
}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<T> Eq for Due<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut agenda: Agenda<char>) -> Vec<(u64, char)> {
        let mut all = Vec::new();
        while let Some(((at, _), what)) = agenda.pop() {
            all.push((at.0, *what));
        }
        all
    }

    fn agenda(of: &[(u64, char)]) -> Agenda<char> {
        let mut agenda = Agenda::default();
        for (number, (at, what)) in (0..).zip(of) {
            agenda.insert((Monotonic(*at), number), Box::new(*what));
        }
        agenda
    }

    #[test]
    fn the_soonest_comes_first_and_of_one_moment_the_first() {
        let mut agenda = agenda(&[(7, 'c'), (3, 'a'), (9, 'x'), (7, 'd'), (3, 'b')]);
        agenda.retain(|what| *what != 'x');
        assert_eq!(agenda.next(), Some(Monotonic(3)));
        let expected = [(3, 'a'), (3, 'b'), (7, 'c'), (7, 'd')];
        assert_eq!(all(agenda), expected);
    }

    #[test]
    fn what_waited_is_brought_forward_in_its_order() {
        let mut agenda = agenda(&[(9, 'b'), (5, 'a'), (9, 'x'), (9, 'c'), (8, 'y')]);
        agenda.bring(Monotonic(9), Monotonic(6), |what| *what != 'x');
        let expected = [(5, 'a'), (6, 'b'), (6, 'c'), (8, 'y'), (9, 'x')];
        assert_eq!(all(agenda), expected);
    }
}
