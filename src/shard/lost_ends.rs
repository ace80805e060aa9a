//! Whether the log has lost its end, as other nodes have heard of it.
//!
//! What this process has found is held against what others heard before it was started. If the log was
//! longer once, it has lost its end, or the disk is an older image of itself: nothing that was promised in
//! what is missing is known any more.
//!
//! | heard of | a group has lost something if |
//! | --- | --- |
//! | this WAL set | the log of this shard was longer |
//! | one before it, in which the node had other shards | the log that the group was in then was longer than when it was taken over |
//! | one before it of which no end is known | the log that the group was in then held anything |
//! | a later one | always: this is an image from before it |
//!
//! Who hears of a later process forgets what it heard of the one before. So what a process says of its logs is not
//! believed before it has noted durably what it was told that they have lost ([`Losses`]): it may die before, and
//! the next one must be told as well.
//!
//! The others hear of a new set as soon as the node speaks to them; so only who was cut off meanwhile tells of
//! an earlier one. Nobody knows how long the logs of a set were if it was in force long ago, or if the next one
//! came before anything was written: then nothing of it was ever durable.

use super::engine::ShardEngine;
use super::placement::shard_of;
use crate::base::bugs::{self, Bug};
use crate::base::ids::{GroupId, ShardId};
use crate::base::units::Lsn;
use crate::wal::segment::Echo;
use crate::wal::writer::{LogIdentity, Ticket};
use crate::wire::peer::Durable;
use std::collections::{BTreeMap, BTreeSet};

/// How long the logs of this disk were, and are.
#[derive(Debug)]
pub(super) struct KnownEnds {
    identity: LogIdentity,
    /// Where the log ended that this process has found.
    found: Lsn,
    /// Where those of the sets before ended.
    before: Vec<Echo>,
}

impl KnownEnds {
    /// A log that ends at `found`, and knows of others.
    pub(super) fn new(identity: LogIdentity, found: Lsn, echoes: &[Echo]) -> Self {
        Self {
            identity,
            found,
            before: echoes.to_vec(),
        }
    }

    /// Where the log ended that this process has found.
    pub(super) fn found(&self) -> Lsn {
        self.found
    }

    /// Which groups miss something of which another node has heard that it was durable.
    fn lacks(&self, heard: &Durable) -> impl Fn(GroupId) -> bool + use<> {
        let lost = self.lost_logs(heard);
        let shards = u16::try_from(lost.len()).unwrap_or(u16::MAX);
        move |group| shards > 0 && lost[usize::from(shard_of(group, shards).0)]
    }

    /// Which logs have lost something: by the shards that the node had then, or the one of this shard alone.
    fn lost_logs(&self, heard: &Durable) -> Vec<bool> {
        let LogIdentity { wal_set, shard, .. } = self.identity;
        if heard.wal_set == wal_set {
            let own = heard.lsns.get(usize::from(shard.0));
            return vec![own.is_some_and(|own| *own > self.found)];
        }
        if heard.wal_set > wal_set {
            return vec![true; heard.lsns.len()];
        }
        if bugs::on(Bug::EarlierLogsVoid) {
            return Vec::new();
        }
        let ends = self
            .before
            .iter()
            .filter(|end| end.wal_set == heard.wal_set);
        let ends: BTreeMap<ShardId, Lsn> = ends.map(|end| (end.shard, end.durable_lsn)).collect();
        let is_longer = |(shard, heard): (u16, &Lsn)| {
            let end = ends.get(&ShardId(shard)).copied();
            *heard > end.unwrap_or(Lsn(0))
        };
        (0..).zip(&heard.lsns).map(is_longer).collect()
    }
}

/// What this process was told that its log has lost, until that is durable in it.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// How often it was told how long its logs were.
    heard: u64,
    /// Groups that have lost something, and do not say so in the log yet. One that stopped never does.
    unwritten: BTreeSet<usize>,
    /// With this all others do.
    written: Option<Ticket>,
}

impl Losses {
    /// What a group has lost stands in the log.
    pub(super) fn wrote(&mut self, slot: usize, ticket: Ticket) {
        if self.unwritten.remove(&slot) {
            self.written = Some(ticket);
        }
    }

    fn are_durable(&self, durable: Ticket) -> bool {
        self.unwritten.is_empty() && self.written.is_none_or(|written| written <= durable)
    }
}

impl ShardEngine {
    /// How often this process was told how long its logs were.
    #[must_use]
    pub fn ends_heard(&self) -> u64 {
        self.losses.heard
    }

    /// The same, if all that it has lost by that is noted durably; else 0.
    #[must_use]
    pub fn ends_noted(&self) -> u64 {
        let are_noted = self.losses.are_durable(self.wal.durable_ticket());
        if are_noted || bugs::on(Bug::LossNotNoted) {
            self.losses.heard
        } else {
            0
        }
    }

    /// Another node has heard how long the logs of this one were. A group in which nobody else votes has
    /// nobody to ask, and stops if others have come since: they may have gone on.
    pub(super) fn on_heard_durable(&mut self, heard: &Durable) {
        self.losses.heard += 1;
        if bugs::on(Bug::EchoIgnored) {
            return;
        }
        let lacks = self.ends.lacks(heard);
        let slots = 0..self.groups.len();
        let lost: Vec<usize> = slots.filter(|slot| lacks(self.groups[*slot].id)).collect();
        self.counters.log_ends_lost_total += u64::from(!lost.is_empty());
        let me = self.config.me();
        let has_others = self.cluster.members().members().any(|member| member != me);
        for slot in lost {
            let raft = &mut self.groups[slot].raft;
            if !raft.leads_alone() {
                // Who recovers already has that in the log, or in what was just appended to it.
                if !raft.is_recovering() {
                    self.losses.unwritten.insert(slot);
                }
                raft.distrust();
                self.mark(slot);
            } else if has_others {
                self.losses.unwritten.insert(slot);
                let what = "the end of its log is lost, and with it that other nodes have votes";
                self.halt(slot, what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ClusterId, DiskId};

    const DISK: DiskId = DiskId([7; 16]);

    fn heard(wal_set: u32, lsns: &[u64]) -> Durable {
        Durable {
            disk: DISK,
            wal_set,
            lsns: lsns.iter().map(|lsn| Lsn(*lsn)).collect(),
            start: 1,
            process: 1,
        }
    }

    /// Shard 1 of set 20, found up to 500; set 9 had two shards, that ended at 100 and 200, and set 5 one.
    fn ends() -> KnownEnds {
        let identity = LogIdentity {
            cluster: ClusterId([1; 16]),
            disk: DISK,
            shard: ShardId(1),
            wal_set: 20,
        };
        let before = |(wal_set, shard, end): (u32, u16, u64)| Echo {
            disk: DISK,
            wal_set,
            shard: ShardId(shard),
            durable_lsn: Lsn(end),
        };
        let before = [(9, 0, 100), (9, 1, 200), (5, 0, 70)].map(before);
        KnownEnds::new(identity, Lsn(500), &before)
    }

    fn lacks(ends: &KnownEnds, group: GroupId, heard: &Durable) -> bool {
        ends.lacks(heard)(group)
    }

    #[test]
    fn of_the_same_set_the_log_of_the_shard_counts() {
        let (ends, group) = (ends(), GroupId(4));
        assert!(!lacks(&ends, group, &heard(20, &[900, 500])));
        assert!(lacks(&ends, group, &heard(20, &[0, 501])));
        assert!(
            !lacks(&ends, group, &heard(20, &[900])),
            "it had no such shard"
        );
    }

    #[test]
    fn of_a_set_before_the_log_counts_that_the_group_was_in() {
        let ends = ends();
        assert!(!lacks(&ends, GroupId(4), &heard(9, &[100, 999])));
        assert!(lacks(&ends, GroupId(4), &heard(9, &[101, 0])));
        assert!(!lacks(&ends, GroupId(5), &heard(9, &[999, 200])));
        assert!(lacks(&ends, GroupId(5), &heard(9, &[0, 201])));
        assert!(!lacks(&ends, GroupId(5), &heard(5, &[70])));
        assert!(lacks(&ends, GroupId(4), &heard(5, &[71])));
    }

    #[test]
    fn nothing_is_missing_of_logs_that_were_never_begun() {
        let ends = ends();
        assert!(!lacks(&ends, GroupId(4), &heard(3, &[0, 1])));
        assert!(!lacks(&ends, GroupId(5), &heard(3, &[1, 0])));
    }

    #[test]
    fn of_any_other_set_nothing_is_known() {
        let ends = ends();
        assert!(lacks(&ends, GroupId(4), &heard(3, &[1, 0])), "long ago");
        assert!(lacks(&ends, GroupId(5), &heard(3, &[0, 1])), "long ago");
        assert!(lacks(&ends, GroupId(4), &heard(21, &[0, 0])), "an image");
        assert!(
            !lacks(&ends, GroupId(4), &heard(21, &[])),
            "nothing was heard"
        );
    }
}
