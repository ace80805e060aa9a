//! Leases that wait for a job: long polls, in the order in which they came.
//!
//! A poll that wins nothing, because another took the job between proposal and apply, keeps its
//! place. Bounded by [`POLLS_WAITING_MAX`](crate::base::limits::POLLS_WAITING_MAX) for the shard.

use super::input::Origin;
use crate::base::ids::{Partition, QueueUid, SessionId};
use crate::base::units::Monotonic;
use crate::queue::command::Command;
use std::collections::{BTreeMap, BTreeSet};

/// A partition of a queue.
pub(super) type Place = (QueueUid, Partition);

/// A lease that waits.
#[derive(Clone, Debug)]
pub(super) struct Poll {
    /// Its place in the line; given once.
    pub(super) number: u64,
    /// Who asked.
    pub(super) to: Origin,
    /// Which request.
    pub(super) request: u64,
    /// What to propose.
    pub(super) command: Command,
    /// Where.
    pub(super) place: Place,
    /// At most so many jobs.
    pub(super) max: u32,
    /// It is answered with nothing at this time.
    pub(super) deadline: Monotonic,
}

/// The waiting polls of one group.
#[derive(Debug, Default)]
pub(super) struct Polls {
    waiting: BTreeMap<Place, BTreeMap<u64, Poll>>,
    deadlines: BTreeSet<(Monotonic, Place, u64)>,
    /// Jobs asked for by leases that are proposed and not applied.
    claimed: BTreeMap<Place, u64>,
}

impl Polls {
    /// Lets a poll wait at its place in the line.
    pub(super) fn park(&mut self, poll: Poll) {
        self.deadlines
            .insert((poll.deadline, poll.place, poll.number));
        self.waiting
            .entry(poll.place)
            .or_default()
            .insert(poll.number, poll);
    }

    /// Takes a poll out, if it still waits.
    pub(super) fn remove(&mut self, place: Place, number: u64) -> Option<Poll> {
        let line = self.waiting.get_mut(&place)?;
        let poll = line.remove(&number)?;
        if line.is_empty() {
            self.waiting.remove(&place);
        }
        self.deadlines.remove(&(poll.deadline, place, number));
        Some(poll)
    }

    /// When [`Self::take_late`] has something.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.deadlines.first().map(|(at, ..)| *at)
    }

    /// A poll whose wait is over.
    pub(super) fn take_late(&mut self, now: Monotonic) -> Option<Poll> {
        let (_, place, number) = self
            .deadlines
            .first()
            .copied()
            .filter(|(at, ..)| *at <= now)?;
        self.remove(place, number)
    }

    /// The sessions of the polls that wait, once for each poll.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> {
        let polls = self.waiting.values().flat_map(BTreeMap::values);
        polls.filter_map(|poll| poll.command.session.map(|call| call.id))
    }

    /// Every poll; the group stops serving.
    pub(super) fn take_all(&mut self) -> Vec<Poll> {
        self.deadlines.clear();
        std::mem::take(&mut self.waiting)
            .into_values()
            .flat_map(BTreeMap::into_values)
            .collect()
    }

    /// The polls that can be proposed now, given how many jobs are ready at each place.
    pub(super) fn take_winners(&mut self, ready: impl Fn(Place) -> u64) -> Vec<Poll> {
        let mut winners = Vec::new();
        for (place, line) in &self.waiting {
            let claimed = self.claimed.get(place).copied().unwrap_or(0);
            let mut free = ready(*place).saturating_sub(claimed);
            for (number, poll) in line {
                if free == 0 {
                    break;
                }
                winners.push((*place, *number));
                free = free.saturating_sub(poll.max.into());
            }
        }
        let take = |(place, number)| self.remove(place, number).expect("it waits");
        winners.into_iter().map(take).collect()
    }

    /// A lease was proposed.
    pub(super) fn claim(&mut self, place: Place, max: u32) {
        *self.claimed.entry(place).or_default() += u64::from(max);
    }

    /// A lease was applied.
    pub(super) fn unclaim(&mut self, place: Place, max: u32) {
        let claimed = self
            .claimed
            .get_mut(&place)
            .expect("what is applied was claimed");
        *claimed -= u64::from(max);
        if *claimed == 0 {
            self.claimed.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ConnId, ShardId};
    use crate::queue::command::Op;

    const PLACE: Place = (QueueUid::FIRST, Partition(0));

    fn poll(number: u64, max: u32) -> Poll {
        let op = Op::Lease {
            queue: PLACE.0,
            partition: PLACE.1,
            max,
            lease_ms: 0,
            epoch: 0,
        };
        Poll {
            number,
            to: Origin {
                shard: ShardId(0),
                conn: ConnId(number),
            },
            request: number,
            command: Command { session: None, op },
            place: PLACE,
            max,
            deadline: Monotonic(100 + number),
        }
    }

    fn numbers(polls: &[Poll]) -> Vec<u64> {
        polls.iter().map(|poll| poll.number).collect()
    }

    #[test]
    fn the_first_in_line_wins_and_keeps_its_place_when_it_wins_nothing() {
        let mut polls = Polls::default();
        (1..=3).for_each(|number| polls.park(poll(number, 2)));
        let winners = polls.take_winners(|_| 3);
        assert_eq!(numbers(&winners), [1, 2]);
        winners.into_iter().for_each(|poll| polls.park(poll));
        assert_eq!(numbers(&polls.take_winners(|_| 1)), [1]);
    }

    #[test]
    fn jobs_claimed_by_proposed_leases_are_not_promised_again() {
        let mut polls = Polls::default();
        polls.park(poll(1, 1));
        polls.claim(PLACE, 2);
        assert!(polls.take_winners(|_| 2).is_empty());
        polls.unclaim(PLACE, 2);
        assert_eq!(numbers(&polls.take_winners(|_| 2)), [1]);
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let mut polls = Polls::default();
        polls.park(poll(1, 1));
        polls.park(poll(2, 1));
        assert_eq!(polls.next_deadline(), Some(Monotonic(101)));
        assert_eq!(
            polls.take_late(Monotonic(101)).map(|poll| poll.number),
            Some(1)
        );
        assert!(polls.take_late(Monotonic(101)).is_none());
        assert_eq!(numbers(&polls.take_all()), [2]);
        assert_eq!(polls.next_deadline(), None);
    }
}
