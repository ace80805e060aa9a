//! Replies held against each other by their commit stamps: each reply says at which index of its group's
//! log it is true, so that the order of everything is known and one look at each reply is enough.
//!
//! | what must hold |
//! | --- |
//! | what is asked after an answer is answered at no lower index of the group: no read is stale |
//! | grants of a job rise with the index: at any index at most one token is valid |
//! | an ack is accepted for the newest grant at its index, and for none once the job has ended |
//! | a job is seen live below the index of its end, and gone from there on |

use crate::base::ids::{GroupId, JobId, LogIndex, Token};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
struct Life {
    /// The lowest index at which each grant is known to have been made, by its generation.
    grants: BTreeMap<u32, LogIndex>,
    /// The highest index at which it was seen live.
    seen: LogIndex,
    ended: Option<LogIndex>,
}

/// What replies have said.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The highest index that an answer of a group has named.
    newest: BTreeMap<GroupId, LogIndex>,
    jobs: BTreeMap<JobId, Life>,
}

impl History {
    /// An answer to what is asked now of a group is true at this index or above.
    #[must_use]
    pub fn floor(&self, group: GroupId) -> LogIndex {
        self.newest.get(&group).copied().unwrap_or_default()
    }

    /// An answer of a group is true at `index`; what was asked when [`Self::floor`] was this.
    ///
    /// # Panics
    /// If it is older than what was known to everybody when it was asked for.
    pub fn answered(&mut self, group: GroupId, index: LogIndex, floor: LogIndex) {
        assert!(
            index >= floor,
            "an answer of group {group} is of entry {index}, and entry {floor} was known when it was asked for"
        );
        let newest = self.newest.entry(group).or_default();
        *newest = (*newest).max(index);
    }

    /// A token is valid at `at`.
    ///
    /// # Panics
    /// If another is.
    pub fn granted(&mut self, token: Token, at: LogIndex) {
        let life = self.jobs.entry(token.job).or_default();
        let lease_gen = token.lease_gen;
        let later = life.grants.range(lease_gen.saturating_add(1)..).next();
        if let Some((later, since)) = later {
            assert!(
                *since > at,
                "{token:?} is said to be valid at entry {at}, where grant {later} of entry {since} is"
            );
        }
        assert!(
            life.ended.is_none_or(|ended| ended > at),
            "{token:?} is said to be valid at entry {at}, and the job ended at {:?}",
            life.ended
        );
        let known = life.grants.entry(lease_gen).or_insert(at);
        *known = (*known).min(at);
        let known = *known;
        let before = life.grants.range(..lease_gen).next_back();
        // A grant that was asked for again is told with a later index than its own.
        if let Some((earlier, since)) = before {
            assert!(
                *since <= known,
                "grant {earlier} of {} was made at entry {since}, behind grant {lease_gen} of {known}",
                token.job
            );
        }
        life.seen = life.seen.max(at);
    }

    /// An ack of this token was accepted, at `at` or, if it was asked for before, below.
    ///
    /// # Panics
    /// If the token was not valid there.
    pub fn ended(&mut self, token: Token, at: LogIndex, again: bool) {
        let life = self.jobs.entry(token.job).or_default();
        let later = life.grants.range(token.lease_gen.saturating_add(1)..);
        for (later, since) in later {
            assert!(
                *since > at,
                "an ack of {token:?} is accepted at entry {at}, where grant {later} of entry {since} is valid"
            );
        }
        if !again {
            assert!(
                life.seen < at,
                "{} is ended at entry {at} and was seen live at {}",
                token.job,
                life.seen
            );
        }
        let ended = life.ended.get_or_insert(at);
        *ended = (*ended).min(at);
    }

    /// A job is live at `at`.
    ///
    /// # Panics
    /// If it had ended.
    pub fn seen_live(&mut self, job: JobId, at: LogIndex) {
        let life = self.jobs.entry(job).or_default();
        assert!(
            life.ended.is_none_or(|ended| ended > at),
            "job {job} is seen live at entry {at}, and ended at {:?}",
            life.ended
        );
        life.seen = life.seen.max(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{Partition, QueueUid};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn token(lease_gen: u32) -> Token {
        let queue = QueueUid::new(GroupId(0), 1).expect("in range");
        let job = JobId::new(GroupId(0), queue, Partition(0), 7);
        Token { job, lease_gen }
    }

    fn breaks(history: &History, act: impl FnOnce(&mut History)) -> bool {
        let mut history = history.clone();
        catch_unwind(AssertUnwindSafe(|| act(&mut history))).is_err()
    }

    #[test]
    fn each_rule_is_kept() {
        let mut history = History::default();
        history.granted(token(1), LogIndex(5));
        history.granted(token(2), LogIndex(9));
        assert!(breaks(&history, |it| it.granted(token(1), LogIndex(9))));
        assert!(!breaks(&history, |it| it.granted(token(1), LogIndex(8))));
        assert!(breaks(&history, |it| it.granted(token(3), LogIndex(8))));
        assert!(breaks(&history, |it| it.ended(
            token(1),
            LogIndex(10),
            false
        )));
        history.ended(token(2), LogIndex(12), false);
        assert!(breaks(&history, |it| it.granted(token(3), LogIndex(13))));
        assert!(breaks(&history, |it| it.seen_live(token(2).job, LogIndex(12))));
        assert!(!breaks(&history, |it| it.seen_live(token(2).job, LogIndex(11))));
        history.answered(GroupId(0), LogIndex(12), LogIndex(0));
        let floor = history.floor(GroupId(0));
        assert!(breaks(&history, |it| it.answered(
            GroupId(0),
            LogIndex(11),
            floor
        )));
        assert_eq!(history.floor(GroupId(1)), LogIndex(0));
    }
}
