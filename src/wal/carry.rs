//! A group taken over into another log: as it is when the number of shards changes, or as its next life
//! when it is repaired.
//!
//! ```text
//! log of a shard, as recovered                  another log
//!   bases   previous ── newest                  BASE previous, HARDSTATE, entries …, BASE newest,
//!   entries     └─ 1 2 3 ─┴─ 4 5        ──>     entries …, and its status, if it is recovering
//!   hard state, status
//! ```
//!
//! What is written reads back as what it was, but for the position from which on the records of the group
//! count. [`fingerprint`] proves that.
//!
//! Left out: groups whose log is damaged. What of them is beyond doubt depends on where in the old log the
//! damage lies, so they stay there.

use crate::base::checksum::Hash128;
use crate::base::entry::Entry;
use crate::base::ids::{GroupId, Incarnation};
use crate::base::units::Lsn;
use crate::wal::record::{BaseRecord, GroupRow, HardState, Record, RowStatus};
use crate::wal::recovery::{GroupLog, GroupLogStatus};
use crate::wal::writer::LogWriter;

/// What of a group another log gets.
#[derive(Clone, Copy, Debug)]
pub struct Carried<'a> {
    /// The group.
    pub group: GroupId,
    /// The life that it goes on with.
    pub incarnation: Incarnation,
    /// Its hard state.
    pub hard: HardState,
    /// Its bases, oldest first, one or two.
    pub bases: &'a [BaseRecord],
    /// Its entries above the oldest base, sealed for this life.
    pub entries: &'a [Entry],
    /// Whether they may be relied on.
    pub status: RowStatus,
}

/// Appends a group to a log, in which earlier records of it are void: `log_start` is the end of that log.
///
/// # Panics
/// If the group has no base.
pub fn append(writer: &mut LogWriter, carried: &Carried<'_>, log_start: Lsn) {
    let (group, incarnation) = (carried.group, carried.incarnation);
    let mut bases = carried.bases.iter().map(|base| BaseRecord {
        incarnation,
        log_start_lsn: log_start,
        ..base.clone()
    });
    writer.append(Record::Base(bases.next().expect("a group has a base")));
    let state = carried.hard;
    writer.append(Record::HardState {
        group,
        incarnation,
        state,
    });
    if carried.status != RowStatus::Ok {
        // Only the status counts of a row outside a segment's head.
        writer.append(Record::GroupTable(vec![GroupRow {
            group,
            incarnation,
            status: carried.status,
            ..GroupRow::default()
        }]));
    }
    let mut next = bases.next();
    for entry in carried.entries {
        if let Some(base) = next.take_if(|base| base.index < entry.index) {
            writer.append(Record::Base(base));
        }
        writer.append(Record::Entry {
            group,
            incarnation,
            entry: entry.clone(),
        });
    }
    if let Some(base) = next {
        writer.append(Record::Base(base));
    }
}

/// A hash over all that the log says of a group, but for the position from which on it counts. `None` for
/// a group whose log is damaged.
#[must_use]
pub fn fingerprint(log: &GroupLog) -> Option<Hash128> {
    let status = status_of(log)?;
    let mut said = Vec::new();
    let hard = &log.hard;
    let vote = hard
        .vote
        .map_or((0, 0), |vote| (vote.node.0, vote.disk_tag));
    let since = match status {
        RowStatus::Ok => None,
        RowStatus::Recovering { since } => Some(since.0),
    };
    for word in [
        log.incarnation.0.into(),
        hard.term.0,
        u64::from(hard.vote.is_some()),
        vote.0.into(),
        vote.1.into(),
        hard.commit.0,
        u64::from(since.is_some()),
        since.unwrap_or_default(),
        log.bases.len() as u64,
    ] {
        said.extend_from_slice(&word.to_le_bytes());
    }
    for base in &log.bases {
        let base = BaseRecord {
            log_start_lsn: Lsn(0),
            ..base.clone()
        };
        Record::Base(base).encode(&mut said);
    }
    // A seal covers the payload too.
    for entry in &log.entries {
        said.extend_from_slice(&entry.index.0.to_le_bytes());
        said.extend_from_slice(&entry.term.0.to_le_bytes());
        said.extend_from_slice(&entry.crc.to_le_bytes());
    }
    Some(Hash128::of(&said))
}

/// How the row of a group says whether its log may be relied on; `None` if it is damaged.
#[must_use]
pub fn status_of(log: &GroupLog) -> Option<RowStatus> {
    match log.status {
        GroupLogStatus::Intact => Some(RowStatus::Ok),
        GroupLogStatus::Recovering { since } => Some(RowStatus::Recovering { since }),
        GroupLogStatus::Damaged { .. } => None,
    }
}
