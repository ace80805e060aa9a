//! What a run of a cluster did: for people, and for those who must know that a batch met what it is for.

use super::coverage::{Doing, must_meet};
use super::options::Fault;
use crate::sim::core_client::{CoreClient, Through};
use std::collections::BTreeMap;

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunReport {
    /// Enqueues acknowledged.
    pub acked: usize,
    /// Jobs finished for sure.
    pub finished: usize,
    /// Queues of several partitions made, changed and deleted.
    pub operated: u64,
    /// Changes of them that one node asked of another.
    pub changes_sent: u64,
    /// Answers to clients.
    pub answers: u64,
    /// Calls of the client library that were answered.
    pub calls: u64,
    /// What calls of the client library went through.
    pub through: BTreeMap<Through, u64>,
    /// Sendings between nodes.
    pub messages: u64,
    /// Faults, by kind.
    pub faults: BTreeMap<Fault, u64>,
    /// Faults, by kind and by what the node was doing.
    pub met: BTreeMap<(Fault, Doing), u64>,
    /// Starts with another number of shards.
    pub redistributed: u64,
    /// Starts that found damage in the log.
    pub damage_found: u64,
    /// Batches that were damaged when every log was, each elsewhere.
    pub harmed_everywhere: u64,
    /// Groups of a node that stopped because their state was damaged, as of the end.
    pub halted: u64,
    /// Crashes before the node had its groups back.
    pub crashes_in_recovery: u64,
    /// Checkpoint rounds published.
    pub rounds: u64,
    /// Checkpoints of other nodes installed.
    pub installs: u64,
    /// Entries that a node read from its log for another.
    pub entries_read: u64,
    /// Leads of groups that nodes gave to others, to be level or to have none.
    pub handed_over: u64,
    /// Pages that were on a disk alone and needed.
    pub pages_read: u64,
    /// Groups of a node that got back from another what was damaged.
    pub mended: u64,
    /// Times that all that is stored was looked at.
    pub scrub_passes: u64,
    /// Parts of it that were found to be damaged before anybody needed them.
    pub scrub_found: u64,
    /// Disks that were lost.
    pub disks_lost: u64,
    /// Those of them whose place another has taken.
    pub disks_replaced: u64,
    /// Torn tails cut.
    pub tails_cut: u64,
    /// Leaders of a term that were seen.
    pub terms_led: u64,
    /// States held against each other.
    pub states_compared: u64,
    /// Commits held against the disks.
    pub disks_read: u64,
    /// Checkpoints of the same index held against another node's.
    pub bases_compared: u64,
    /// Whether the job machine began with its first version and rose.
    pub version_raised: bool,
    /// Virtual time, in milliseconds.
    pub simulated_ms: u64,
    /// A hash of everything that happened.
    pub trace: u64,
}

impl RunReport {
    /// Adds what another run did. The trace of a sum means nothing.
    pub fn add(&mut self, other: &Self) {
        self.acked += other.acked;
        self.finished += other.finished;
        self.operated += other.operated;
        self.changes_sent += other.changes_sent;
        self.answers += other.answers;
        self.calls += other.calls;
        for (through, count) in &other.through {
            *self.through.entry(*through).or_default() += count;
        }
        self.messages += other.messages;
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for (pair, count) in &other.met {
            *self.met.entry(*pair).or_default() += count;
        }
        self.redistributed += other.redistributed;
        self.damage_found += other.damage_found;
        self.harmed_everywhere += other.harmed_everywhere;
        self.halted += other.halted;
        self.bases_compared += other.bases_compared;
        self.crashes_in_recovery += other.crashes_in_recovery;
        self.rounds += other.rounds;
        self.installs += other.installs;
        self.entries_read += other.entries_read;
        self.handed_over += other.handed_over;
        self.pages_read += other.pages_read;
        self.mended += other.mended;
        self.scrub_passes += other.scrub_passes;
        self.scrub_found += other.scrub_found;
        self.disks_lost += other.disks_lost;
        self.disks_replaced += other.disks_replaced;
        self.tails_cut += other.tails_cut;
        self.terms_led += other.terms_led;
        self.states_compared += other.states_compared;
        self.disks_read += other.disks_read;
        self.version_raised |= other.version_raised;
        self.simulated_ms += other.simulated_ms;
    }

    pub(super) fn add_library(&mut self, client: &CoreClient) {
        self.calls += client.answered;
        for (through, count) in &client.through {
            *self.through.entry(*through).or_default() += count;
        }
    }

    /// What a batch must meet and has not: faults by what the node was doing, and what calls of the client
    /// library must have gone through.
    #[must_use]
    pub fn unmet(&self) -> Vec<String> {
        let pairs = must_meet().into_iter();
        let pairs = pairs.filter(|pair| !self.met.contains_key(pair));
        let calls = Through::ALL.into_iter();
        let calls = calls.filter(|through| !self.through.contains_key(through));
        pairs
            .map(|(fault, doing)| format!("{fault:?} while a node {doing:?}"))
            .chain(calls.map(|through| format!("a call of the client library: {through:?}")))
            .collect()
    }
}
