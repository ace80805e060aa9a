//! What a group goes on with after a repair: its next life.
//!
//! Its newest base that can be read; where none can, one made of what is left of the newest that
//! has something left; behind it the entries that are left.

use crate::base::checksum::Hash128;
use crate::base::entry::Entry;
use crate::base::ids::{GroupId, Incarnation, LogIndex, Term, Voter};
use crate::base::members::Member;
use crate::base::units::{GroupTime, Lsn};
use crate::cli::offline::{self, ShardFiles};
use crate::cli::salvage::{Salvage, salvage};
use crate::cli::survivors::{self, Survivors};
use crate::snapshot::load::LoadedGroup;
use crate::snapshot::manifest::{Manifest, ManifestBase};
use crate::wal::carry::{self, Carried};
use crate::wal::record::{BaseRecord, HardState, RootLocation, RowStatus};
use crate::wal::recovery::{GroupLog, GroupLogStatus, Sound};
use crate::wal::writer::LogWriter;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a group goes on with.
pub(super) struct NewLife {
    /// Its bases, oldest first, one or two; the last is that which was read.
    pub(super) bases: Vec<BaseRecord>,
    /// The entries above the first base.
    entries: Vec<Entry>,
    hard: HardState,
    /// What is left in it, if that can be told.
    pub(super) survivors: Option<Survivors>,
    /// Its newest base is made of what is left of a damaged checkpoint.
    pub(super) salvage: Option<Salvage>,
}

impl NewLife {
    /// The last entry that is kept.
    pub(super) fn last(&self) -> LogIndex {
        let base = self.bases.last().map_or(LogIndex(0), |base| base.index);
        self.entries
            .last()
            .map_or(base, |entry| entry.index.max(base))
    }
}

/// Everything that makes up a new life, behind the end of the log.
pub(super) fn append(writer: &mut LogWriter, group: GroupId, life: &NewLife, lsn: Lsn) {
    let first = life.bases.first();
    let incarnation = first.map_or(Incarnation(1), |base| base.incarnation);
    let entries = life.entries.iter();
    let entries: Vec<Entry> = entries
        .map(|entry| entry.clone().sealed(group, incarnation))
        .collect();
    let carried = Carried {
        group,
        incarnation,
        hard: life.hard,
        bases: &life.bases,
        entries: &entries,
        status: RowStatus::Ok,
    };
    carry::append(writer, &carried, lsn);
}

/// The next life of a group by its own log, from the base at `place`.
pub(super) fn from_log(log: GroupLog, place: usize, state: Option<LoadedGroup>) -> NewLife {
    let incarnation = Incarnation(log.incarnation.0 + 1);
    let mut bases: Vec<BaseRecord> = log.bases[place..].to_vec();
    for base in &mut bases {
        base.incarnation = incarnation;
    }
    bases.reverse();
    let newest = bases.last().expect("the base at `place` is one");
    let survivors = survivors::count(newest, state, &log.entries);
    let mut life = NewLife {
        survivors,
        salvage: None,
        bases,
        entries: log.entries,
        hard: log.hard,
    };
    let base = life.bases.last().map_or(LogIndex(0), |base| base.index);
    life.hard.commit = life.hard.commit.clamp(base, life.last());
    life
}

/// The next life of a group whose log holds no base: by the manifest, or from nothing.
pub(super) fn from_manifest(
    id: GroupId,
    manifest: Option<&Manifest>,
    life: Option<Incarnation>,
    files: &Files<'_>,
) -> Option<NewLife> {
    let known = manifest.and_then(|manifest| {
        let mut groups = manifest.groups.iter();
        groups.find(|group| group.newest.meta.group == id)
    });
    let known_life = known.map(|group| group.newest.meta.incarnation);
    let life = life.max(known_life).unwrap_or(Incarnation(1));
    let bases: Vec<BaseRecord> = match known {
        Some(group) => {
            let previous = group.previous.as_ref();
            std::iter::once(&group.newest)
                .chain(previous)
                .map(base_of)
                .collect()
        }
        None => vec![formation(id, files.voter)],
    };
    let (place, state) = files.newest_readable(&bases).0?;
    let base = &bases[place];
    let log = GroupLog {
        incarnation: life,
        hard: HardState {
            term: base.term,
            vote: None,
            commit: base.index,
        },
        bases: vec![base.clone()],
        entries: Vec::new(),
        status: GroupLogStatus::Intact,
        sound: Sound::default(),
    };
    Some(from_log(log, 0, state))
}

fn base_of(base: &ManifestBase) -> BaseRecord {
    let meta = &base.meta;
    BaseRecord {
        group: meta.group,
        incarnation: meta.incarnation,
        index: meta.index,
        term: meta.term,
        time: meta.time,
        root_hash: base.root.map_or_else(Hash128::default, |root| root.hash),
        root: base.root.map(|root| RootLocation {
            file: root.file,
            offset: root.offset,
            len: root.len,
        }),
        log_start_lsn: base.log_start,
        machine_version: meta.machine_version,
        wall_offset_ms: meta.wall_offset_ms,
        members: meta.members.clone(),
    }
}

/// A group from nothing, with this node as its only voter.
fn formation(group: GroupId, voter: Voter) -> BaseRecord {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_millis());
    BaseRecord {
        group,
        incarnation: Incarnation(1),
        index: LogIndex(0),
        term: Term(0),
        time: GroupTime(0),
        root_hash: Hash128::default(),
        root: None,
        log_start_lsn: Lsn(0),
        machine_version: 1,
        wall_offset_ms: i64::try_from(now).unwrap_or(i64::MAX),
        members: vec![Member::voting(voter)],
    }
}

/// The next life of a group none of whose checkpoints is whole: from the newest of which something
/// is left. `None` if nothing is.
pub(super) fn from_remains(mut log: GroupLog, files: &Files<'_>) -> Option<NewLife> {
    let remains = |base: &BaseRecord| Some((base.clone(), salvage(files.shard, base)?));
    let (base, found) = log.bases.iter().find_map(remains)?;
    // Once more, since the entries behind it change it.
    let mut counted = salvage(files.shard, &base)?.machine;
    let is_whole = offline::apply(&mut counted, &base, &log.entries).is_ok();
    log.entries.retain(|entry| entry.index > base.index);
    log.bases = vec![base];
    let mut life = from_log(log, 0, None);
    life.survivors = is_whole.then(|| Survivors::of(&counted));
    life.salvage = Some(found);
    Some(life)
}

/// The checkpoint files of a shard.
pub(super) struct Files<'a> {
    pub(super) shard: &'a ShardFiles,
    /// This node, the voter of a group from nothing.
    pub(super) voter: Voter,
}

/// The place of a base, and its state if it is not empty.
pub(super) type Readable = (usize, Option<LoadedGroup>);

impl Files<'_> {
    /// The first of `bases` whose state can be read, and why those before it cannot.
    pub(super) fn newest_readable(&self, bases: &[BaseRecord]) -> (Option<Readable>, Vec<String>) {
        let mut faults = Vec::new();
        for (place, base) in bases.iter().enumerate() {
            match self.shard.state(base) {
                Ok(state) => return (Some((place, state)), faults),
                Err(fault) => faults.push(fault),
            }
        }
        (None, faults)
    }
}
