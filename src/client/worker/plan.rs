//! What a worker holds, and what that allows and asks for: no wait, no clock.
//!
//! ```text
//! leased ─> waiting ─(a place is free)─> running ─> ended
//!              │                            │
//!              └──────── extended at a third of the lease, or lost
//! ```
//!
//! Invariants: at most `concurrency` run; at most `concurrency + prefetch` are held by what the
//! plan asks for; once draining, nothing is asked for and nothing starts.

use crate::base::ids::Token;
use crate::base::units::Monotonic;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A lease is not extended more often than this.
const EXTEND_MIN: Duration = Duration::from_millis(20);

/// A job in hand.
#[derive(Debug)]
struct Held {
    lease_ms: u32,
    /// When it is to be extended; `None` while that is under way.
    extend_at: Option<Monotonic>,
    running: bool,
}

#[derive(Debug)]
pub(super) struct Plan {
    concurrency: usize,
    prefetch: usize,
    draining: bool,
    held: BTreeMap<Token, Held>,
    /// Held and not started, in the order of their grants.
    waiting: VecDeque<Token>,
}

impl Plan {
    pub(super) fn new(concurrency: u32, prefetch: u32) -> Self {
        Self {
            concurrency: concurrency.max(1) as usize,
            prefetch: prefetch as usize,
            draining: false,
            held: BTreeMap::new(),
            waiting: VecDeque::new(),
        }
    }

    /// How many jobs to ask for.
    pub(super) fn room(&self) -> u32 {
        if self.draining {
            return 0;
        }
        let room = (self.concurrency + self.prefetch).saturating_sub(self.held.len());
        u32::try_from(room).unwrap_or(u32::MAX)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    fn running(&self) -> usize {
        self.held.len() - self.waiting.len()
    }

    /// A job was granted for so long.
    pub(super) fn leased(&mut self, now: Monotonic, token: Token, lease_ms: u32) {
        let held = Held {
            lease_ms,
            extend_at: Some(now.plus(part(lease_ms, 3))),
            running: false,
        };
        self.held.insert(token, held);
        self.waiting.push_back(token);
    }

    /// The next job to start, if one may.
    pub(super) fn start(&mut self) -> Option<Token> {
        if self.draining || self.running() >= self.concurrency {
            return None;
        }
        let token = self.waiting.pop_front()?;
        let held = self.held.get_mut(&token).expect("what waits is held");
        held.running = true;
        Some(token)
    }

    /// A job is done with, whichever way.
    pub(super) fn ended(&mut self, token: Token) {
        if self.held.remove(&token).is_some_and(|held| !held.running) {
            self.waiting.retain(|waiting| *waiting != token);
        }
    }

    /// Whether it is still held.
    pub(super) fn holds(&self, token: Token) -> bool {
        self.held.contains_key(&token)
    }

    /// Nothing more is asked for or started. What waited: to be released.
    pub(super) fn drain(&mut self) -> Vec<Token> {
        self.draining = true;
        for token in &self.waiting {
            self.held.remove(token);
        }
        self.waiting.drain(..).collect()
    }

    /// The leases that are to be extended now, with their times in milliseconds; each is not named
    /// again before [`Self::extended`] or [`Self::not_extended`].
    pub(super) fn take_due(&mut self, now: Monotonic) -> Vec<(Token, u32)> {
        let mut due = Vec::new();
        for (token, held) in &mut self.held {
            if held.extend_at.is_some_and(|at| at <= now) {
                held.extend_at = None;
                due.push((*token, held.lease_ms));
            }
        }
        due
    }

    /// When the next lease is to be extended.
    pub(super) fn next_due(&self) -> Option<Monotonic> {
        self.held.values().filter_map(|held| held.extend_at).min()
    }

    /// A lease counts anew.
    pub(super) fn extended(&mut self, now: Monotonic, token: Token) {
        self.extend_after(now, token, 3);
    }

    /// It is not known whether a lease was extended: to be tried again soon.
    pub(super) fn not_extended(&mut self, now: Monotonic, token: Token) {
        self.extend_after(now, token, 12);
    }

    fn extend_after(&mut self, now: Monotonic, token: Token, parts: u32) {
        if let Some(held) = self.held.get_mut(&token) {
            held.extend_at = Some(now.plus(part(held.lease_ms, parts)));
        }
    }
}

fn part(lease_ms: u32, parts: u32) -> Duration {
    let lease = Duration::from_millis(lease_ms.into());
    (lease / parts).max(EXTEND_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{GroupId, JobId, Partition, QueueUid};

    const LEASE_MS: u32 = 3_000;

    fn token(seq: u64) -> Token {
        let job = JobId::new(GroupId(0), QueueUid::FIRST, Partition(0), seq);
        Token { job, lease_gen: 1 }
    }

    fn at(ms: u64) -> Monotonic {
        Monotonic(1).plus(Duration::from_millis(ms))
    }

    fn with(concurrency: u32, prefetch: u32, jobs: u64) -> Plan {
        let mut plan = Plan::new(concurrency, prefetch);
        (1..=jobs).for_each(|seq| plan.leased(at(0), token(seq), LEASE_MS));
        plan
    }

    #[test]
    fn no_more_run_than_may_and_no_more_are_held_than_run_and_wait() {
        let mut plan = with(2, 3, 0);
        assert_eq!(plan.room(), 5);
        (1..=5).for_each(|seq| plan.leased(at(0), token(seq), LEASE_MS));
        assert_eq!(plan.room(), 0);
        assert_eq!(plan.start(), Some(token(1)), "in the order of the grants");
        assert_eq!(plan.start(), Some(token(2)));
        assert_eq!(plan.start(), None);
        plan.ended(token(1));
        assert_eq!(plan.room(), 1);
        assert_eq!(plan.start(), Some(token(3)));
        assert_eq!(plan.start(), None);
        assert_eq!(
            Plan::new(0, 0).room(),
            1,
            "a worker runs one job at the least"
        );
    }

    #[test]
    fn a_lease_is_extended_at_a_third_and_once_at_a_time() {
        let mut plan = with(1, 1, 2);
        assert_eq!(plan.next_due(), Some(at(1_000)));
        assert!(plan.take_due(at(999)).is_empty());
        let due = plan.take_due(at(1_000));
        assert_eq!(due, [(token(1), LEASE_MS), (token(2), LEASE_MS)]);
        assert!(plan.take_due(at(2_000)).is_empty(), "under way");
        assert_eq!(plan.next_due(), None);
        plan.extended(at(1_100), token(1));
        plan.not_extended(at(1_100), token(2));
        assert_eq!(plan.next_due(), Some(at(1_350)), "the unsure one sooner");
        plan.ended(token(2));
        plan.extended(at(1_200), token(2));
        assert_eq!(plan.next_due(), Some(at(2_100)), "what is gone stays gone");
    }

    #[test]
    fn a_very_short_lease_does_not_spin() {
        let mut plan = Plan::new(1, 0);
        plan.leased(at(0), token(1), 3);
        assert_eq!(plan.next_due(), Some(at(20)));
    }

    #[test]
    fn a_waiting_job_whose_lease_is_lost_is_never_started() {
        let mut plan = with(1, 2, 3);
        assert_eq!(plan.start(), Some(token(1)));
        plan.ended(token(2));
        plan.ended(token(1));
        assert_eq!(plan.start(), Some(token(3)));
        plan.ended(token(3));
        assert!(plan.is_idle());
        assert_eq!(plan.start(), None);
    }

    #[test]
    fn a_drain_gives_up_what_waits_and_keeps_what_runs() {
        let mut plan = with(1, 2, 3);
        assert_eq!(plan.start(), Some(token(1)));
        assert_eq!(plan.drain(), [token(2), token(3)]);
        assert_eq!((plan.room(), plan.start()), (0, None));
        assert!(plan.holds(token(1)) && !plan.holds(token(2)));
        assert_eq!(plan.take_due(at(1_000)), [(token(1), LEASE_MS)]);
        plan.ended(token(1));
        assert!(plan.is_idle());
        assert!(plan.drain().is_empty());
    }
}
