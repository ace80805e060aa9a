//! What was promised to clients, held against every later answer.

use super::history::History;
use crate::base::ids::{JobId, LogIndex, Token};
use crate::base::prng::Prng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Jobs that are looked at.
const RECENT_MAX: usize = 16;

/// What is known of a job that was enqueued, or may have been.
#[derive(Clone, Debug, Default)]
struct Fate {
    /// The id that the enqueue was answered with.
    acked_as: Option<JobId>,
    /// The id under which it was delivered.
    delivered_as: Option<JobId>,
    /// Its enqueue was refused for good: it is not there.
    refused: bool,
    /// Acks that were asked, and may have ended it.
    ends_asked: u32,
    /// The ack of this grant was answered.
    end_confirmed: Option<u32>,
}

/// The promises of one run. Each job carries a number of its own as its payload.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    jobs: BTreeMap<u64, Fate>,
    by_id: BTreeMap<JobId, u64>,
    granted: BTreeSet<Token>,
    /// The newest grant of each job that a client was told of.
    newest: BTreeMap<JobId, u32>,
    /// Jobs that were told of lately.
    recent: VecDeque<JobId>,
    /// What replies said, by their stamps.
    pub history: History,
}

impl Ledger {
    /// An enqueue was sent.
    pub fn enqueue_sent(&mut self, number: u64) {
        self.jobs.entry(number).or_default();
    }

    /// An enqueue was answered.
    pub fn enqueue_acked(&mut self, number: u64, id: JobId) {
        let fate = self
            .jobs
            .get_mut(&number)
            .expect("an answer follows a request");
        let before = fate.acked_as.replace(id);
        assert!(
            before.is_none_or(|before| before == id),
            "job {number} was acked as {before:?} and {id}"
        );
        self.bind(number, id);
    }

    /// A job that a client was told of lately, if there is one.
    pub fn some_job(&self, prng: &mut Prng) -> Option<JobId> {
        let nth = prng.below(self.recent.len().max(1) as u64) as usize;
        self.recent.get(nth).copied()
    }

    /// An enqueue, asked but once, certainly made nothing.
    pub fn enqueue_refused(&mut self, number: u64) {
        let fate = self.jobs.get_mut(&number);
        let fate = fate.expect("a refusal follows a request");
        fate.refused = true;
        let there = fate.delivered_as.or(fate.acked_as);
        assert!(
            there.is_none(),
            "job {number} is there as {there:?}, and its enqueue was refused"
        );
    }

    fn bind(&mut self, number: u64, id: JobId) {
        self.recent.push_front(id);
        self.recent.truncate(RECENT_MAX);
        let before = self.by_id.insert(id, number);
        assert!(
            before.is_none_or(|before| before == number),
            "id {id} was given to job {number} and to job {before:?}"
        );
        let fate = &self.jobs[&number];
        assert!(
            !fate.refused,
            "job {number} is there as {id}, and its enqueue was refused"
        );
        for known in [fate.acked_as, fate.delivered_as].into_iter().flatten() {
            assert!(
                known == id,
                "job {number} is there twice: as {known} and as {id}"
            );
        }
    }

    /// A job was delivered, by an answer that is true at `at`. `repeated` says that the lease was asked
    /// before under the same number.
    pub fn delivered(&mut self, number: u64, token: Token, at: LogIndex, repeated: bool) {
        self.history.granted(token, at);
        let fate = self.jobs.get_mut(&number);
        let fate = fate.unwrap_or_else(|| panic!("job {number} was delivered but never enqueued"));
        // What was granted before may arrive late: its token is worth nothing.
        assert!(
            fate.end_confirmed
                .is_none_or(|lease_gen| token.lease_gen <= lease_gen),
            "job {number} ({}) was delivered after its ack",
            token.job
        );
        let before = fate.delivered_as.replace(token.job);
        assert!(
            before.is_none_or(|before| before == token.job),
            "job {number} was delivered as {before:?} and as {}",
            token.job
        );
        self.bind(number, token.job);
        let newest = self.newest.entry(token.job).or_default();
        *newest = (*newest).max(token.lease_gen);
        let new = self.granted.insert(token);
        assert!(new || repeated, "{token:?} was granted twice");
    }

    /// Something was sent that may end a job.
    pub fn end_sent(&mut self, id: JobId) {
        let number = self.by_id[&id];
        let fate = self.jobs.get_mut(&number);
        fate.expect("bound jobs are known").ends_asked += 1;
    }

    /// It certainly ended nothing.
    pub fn end_refused(&mut self, id: JobId) {
        let number = self.by_id[&id];
        let fate = self.jobs.get_mut(&number);
        fate.expect("bound jobs are known").ends_asked -= 1;
    }

    /// It was answered at `at`: the job is done. `repeated` says that it was asked before.
    pub fn end_acked(&mut self, token: Token, at: LogIndex, repeated: bool) {
        self.history.ended(token, at, repeated);
        let newest = self.newest[&token.job];
        assert!(
            token.lease_gen >= newest,
            "{token:?} was accepted although grant {newest} is in other hands"
        );
        let number = self.by_id[&token.job];
        self.jobs
            .get_mut(&number)
            .expect("bound jobs are known")
            .end_confirmed = Some(token.lease_gen);
    }

    /// Somebody was told that a job is over.
    pub fn told_finished(&self, id: JobId) {
        let number = self.by_id[&id];
        assert!(
            self.jobs[&number].ends_asked > 0,
            "job {number} ({id}) is said to be over, and nobody ended it"
        );
    }

    /// Jobs that must be live, and jobs that must not be.
    pub fn audit(&self) -> impl Iterator<Item = (JobId, bool)> {
        self.jobs.values().filter_map(|fate| {
            match (fate.acked_as, fate.ends_asked, fate.end_confirmed.is_some()) {
                (Some(id), 0, _) => Some((id, true)),
                (Some(id), _, true) => Some((id, false)),
                _ => None,
            }
        })
    }

    /// How many enqueues were acknowledged.
    #[must_use]
    pub fn acked(&self) -> usize {
        self.jobs
            .values()
            .filter(|fate| fate.acked_as.is_some())
            .count()
    }

    /// How many jobs were finished for sure.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.jobs
            .values()
            .filter(|fate| fate.end_confirmed.is_some())
            .count()
    }
}
