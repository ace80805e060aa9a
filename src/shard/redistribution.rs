//! What the logs of another number of shards are to hold.
//!
//! Which shard a group lives in follows from its number ([`placement`](super::placement)). With another
//! number of shards each group goes as a whole to another log: its hard state, its status, its bases, the
//! entries above the oldest of them; the checkpoint files that its bases name go with it.
//!
//! ```text
//! logs as they are ── Recovered ──> moves ──> take(group) ──> NewLog ── writer ──> files
//!                                                               └── reads_back <── Recovered of those
//! ```
//!
//! Drivers read and write; in which order, and what a crash leaves, is theirs.
//!
//! Left out: logs that are damaged ([`damage_of`]). What is lost in one, or only in doubt, is told by what
//! lies around it there.

use super::bases::{manifest_group, root_ref};
use super::effect::CheckpointFile;
use super::loading::files_of_base;
use super::placement::{groups_of, shard_of};
use crate::base::checksum::Hash128;
use crate::base::ids::{GroupId, ShardId};
use crate::base::units::Lsn;
use crate::snapshot::layout::Owner;
use crate::snapshot::manifest::{Manifest, ManifestGroup};
use crate::wal::carry::{self, Carried};
use crate::wal::record::BaseRecord;
use crate::wal::recovery::{GroupLog, Recovered};
use crate::wal::segment::Echo;
use crate::wal::writer::{LogIdentity, LogStart, LogWriter};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// What is damaged in a log, in a sentence; `None` if its groups can be given to others.
#[must_use]
pub fn damage_of(log: &Recovered) -> Option<String> {
    if let Some(damage) = log.damage.first() {
        let (segment, offset) = (damage.segment, damage.offset);
        return Some(format!("segment {segment}, byte {offset}: {}", damage.what));
    }
    let is_damaged = |(_, log): &(&GroupId, &GroupLog)| carry::status_of(log).is_none();
    let (group, _) = log.groups.iter().find(is_damaged)?;
    Some(format!("what is left of group {group} is in doubt"))
}

/// A group that goes from one log to another.
#[derive(Debug)]
pub struct Move<'a> {
    /// The group.
    pub group: GroupId,
    /// What is recovered of it.
    pub log: &'a GroupLog,
    /// The shard that is to have it.
    pub to: ShardId,
    /// The checkpoint files that its bases name; `None` if a root cannot be read: then it may be any.
    pub files: Option<BTreeSet<CheckpointFile>>,
}

/// Where the groups of a shard go when there are `after` shards and no longer `before`. One that was never
/// formed stays out: its new shard forms it.
///
/// `read` is that of [`load_group`](super::loading::load_group).
pub fn moves<'a, E>(
    log: &'a Recovered,
    shard: ShardId,
    (before, after): (u16, u16),
    groups: u32,
    read: &'a mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
) -> impl Iterator<Item = Move<'a>> {
    let groups = groups_of(shard, before, groups);
    let formed = groups.filter_map(|group| Some((group, log.groups.get(&group)?)));
    formed.map(move |(group, log)| Move {
        group,
        log,
        to: shard_of(group, after),
        files: files_of(log, read),
    })
}

fn files_of<E>(
    log: &GroupLog,
    read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
) -> Option<BTreeSet<CheckpointFile>> {
    let mut files = BTreeSet::new();
    for root in log.bases.iter().filter_map(root_ref) {
        files.extend(files_of_base(&root, read)?.all());
    }
    Some(files)
}

/// A log keeps the ends of so many others: those of the newest sets, whole.
const ENDS_MAX: usize = 256;

/// Where the logs of a WAL set end, and those of the sets before it of which its own logs know (`earlier`),
/// newest sets first. What is `before` is the identity of any of its logs.
#[must_use]
pub fn known_ends(before: LogIdentity, ends: &[Lsn], earlier: &[Echo]) -> Vec<Echo> {
    let echo = |(shard, end): (u16, &Lsn)| Echo {
        disk: before.disk,
        wal_set: before.wal_set,
        shard: ShardId(shard),
        durable_lsn: *end,
    };
    let mut known: Vec<Echo> = (0..).zip(ends).map(echo).collect();
    known.extend_from_slice(earlier);
    while known.len() > ENDS_MAX {
        let oldest = known[known.len() - 1].wal_set;
        known.retain(|echo| echo.wal_set != oldest);
    }
    known
}

/// The log of a shard to be.
#[derive(Debug)]
pub struct NewLog {
    identity: LogIdentity,
    /// What it holds is written by the driver, like any log.
    pub writer: LogWriter,
    /// What its groups are to read back as.
    prints: BTreeMap<GroupId, Hash128>,
    bases: BTreeMap<GroupId, ManifestGroup>,
}

impl NewLog {
    /// A log without a group yet, which knows where others end: [`known_ends`]. The seed and the size of the
    /// segments are those of [`LogWriter::with_segment_bytes`].
    #[must_use]
    pub fn new(identity: LogIdentity, ends: Vec<Echo>, seed: u64, segment_bytes: usize) -> Self {
        let start = LogStart {
            echoes: ends,
            ..LogStart::fresh()
        };
        Self {
            identity,
            writer: LogWriter::with_segment_bytes(identity, start, seed, segment_bytes),
            prints: BTreeMap::new(),
            bases: BTreeMap::new(),
        }
    }

    /// Takes a group over.
    ///
    /// # Panics
    /// If its log is damaged.
    pub fn take(&mut self, group: GroupId, log: &GroupLog) {
        let whole = "a damaged log is left where it is";
        let mut bases: Vec<BaseRecord> = log.bases.clone();
        bases
            .iter_mut()
            .for_each(|base| base.log_start_lsn = Lsn(0));
        self.bases.insert(group, manifest_group(&bases));
        bases.reverse();
        let carried = Carried {
            group,
            incarnation: log.incarnation,
            hard: log.hard,
            bases: &bases,
            entries: &log.entries,
            status: carry::status_of(log).expect(whole),
        };
        carry::append(&mut self.writer, &carried, Lsn(0));
        let print = carry::fingerprint(log).expect(whole);
        self.prints.insert(group, print);
    }

    /// The manifest of the shard in this start, when all of its log is durable. It comes before all that the
    /// shard itself will write.
    #[must_use]
    pub fn manifest(&self, start: u64) -> Manifest {
        let LogIdentity { cluster, disk, .. } = self.identity;
        Manifest {
            owner: Owner { cluster, disk },
            shard: self.identity.shard,
            wal_set: self.identity.wal_set,
            start,
            sequence: start << 32,
            durable: self.writer.end_lsn(),
            groups: self.bases.values().cloned().collect(),
        }
    }

    /// Whether a start finds in the log what was taken over, all of it, and nothing else.
    #[must_use]
    pub fn reads_back(&self, log: &Recovered) -> bool {
        let prints = log.groups.iter();
        let prints = prints.map(|(group, log)| (*group, carry::fingerprint(log)));
        let told = self.prints.iter();
        let told = told.map(|(group, print)| (*group, Some(*print)));
        prints.eq(told) && log.damage.is_empty() && log.torn.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ClusterId, DiskId};

    fn identity(wal_set: u32) -> LogIdentity {
        LogIdentity {
            cluster: ClusterId([1; 16]),
            disk: DiskId([2; 16]),
            shard: ShardId(0),
            wal_set,
        }
    }

    #[test]
    fn the_ends_of_the_newest_sets_are_known_and_of_none_a_part() {
        let mut known = Vec::new();
        for set in 1..=9 {
            let ends: Vec<Lsn> = (0..60)
                .map(|shard| Lsn(u64::from(set) << 8 | shard))
                .collect();
            known = known_ends(identity(set), &ends, &known);
            assert!(known.len() <= ENDS_MAX);
        }
        let sets: Vec<u32> = known.iter().map(|echo| echo.wal_set).collect();
        let wanted: Vec<u32> = [9, 8, 7, 6].iter().flat_map(|set| [*set; 60]).collect();
        assert_eq!(sets, wanted);
        let last = known.last().expect("there are some");
        assert_eq!(
            (last.shard, last.durable_lsn),
            (ShardId(59), Lsn(6 << 8 | 59))
        );
        let most: Vec<Lsn> = vec![Lsn(1); 64];
        assert_eq!(known_ends(identity(10), &most, &known).len(), 64 + 3 * 60);
    }
}
