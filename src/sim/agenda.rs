//! What is to happen and when: the soonest first, and of one moment what was scheduled first.

use crate::base::units::Monotonic;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// What is to happen in a world.
pub(super) struct Agenda<T> {
    due: BinaryHeap<Due<T>>,
    scheduled: u64,
}

/// One thing.
pub(super) struct Due<T> {
    pub(super) at: Monotonic,
    /// It was scheduled as the so manieth.
    pub(super) number: u64,
    /// In a box, since many are moved whenever one comes or goes.
    pub(super) what: Box<T>,
}

impl<T> Agenda<T> {
    pub(super) fn schedule(&mut self, at: Monotonic, what: T) {
        self.scheduled += 1;
        self.due.push(Due {
            at,
            number: self.scheduled,
            what: Box::new(what),
        });
    }

    /// How many things were scheduled so far.
    pub(super) fn scheduled(&self) -> u64 {
        self.scheduled
    }

    /// When the next one happens.
    pub(super) fn next(&self) -> Option<Monotonic> {
        self.due.peek().map(|due| due.at)
    }

    pub(super) fn pop(&mut self) -> Option<Due<T>> {
        self.due.pop()
    }

    /// It happens later.
    pub(super) fn put_off(&mut self, due: Due<T>, until: Monotonic) {
        self.due.push(Due { at: until, ..due });
    }

    pub(super) fn retain(&mut self, mut stays: impl FnMut(&T) -> bool) {
        self.due.retain(|due| stays(&due.what));
    }

    /// What of `these` was to happen at a moment happens now, in its order.
    pub(super) fn bring(&mut self, at: Monotonic, now: Monotonic, these: impl Fn(&T) -> bool) {
        let mut all = std::mem::take(&mut self.due).into_vec();
        for due in &mut all {
            if due.at == at && these(&due.what) {
                due.at = now;
            }
        }
        self.due = all.into();
    }
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self {
            due: BinaryHeap::new(),
            scheduled: 0,
        }
    }
}

impl<T> Due<T> {
    fn turn(&self) -> Reverse<(Monotonic, u64)> {
        Reverse((self.at, self.number))
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.turn().cmp(&other.turn())
    }
}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.turn() == other.turn()
    }
}

impl<T> Eq for Due<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut agenda: Agenda<char>) -> Vec<(u64, char)> {
        let mut all = Vec::new();
        while let Some(due) = agenda.pop() {
            all.push((due.at.0, *due.what));
        }
        all
    }

    fn agenda(of: &[(u64, char)]) -> Agenda<char> {
        let mut agenda = Agenda::default();
        for (at, what) in of {
            agenda.schedule(Monotonic(*at), *what);
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
