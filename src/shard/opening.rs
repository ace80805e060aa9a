//! How a group comes to serve: from its log, and from the newest of its checkpoints that is intact.
//!
//! | newest base | older base | the group |
//! | --- | --- | --- |
//! | readable | any | starts from the newest |
//! | damaged | readable | starts from the older; the log leads from there |
//! | damaged | the empty one of formation | the log is applied from its beginning |
//! | damaged | damaged, or none | is brought from another member (`mending`); where nobody else votes it stops, alone, and names what is damaged |

use super::balance::Stay;
use super::bases::{damaged, known_key, root_ref};
use super::changes::Changes;
use super::clock::GroupClock;
use super::config::ShardConfig;
use super::effect::{Effect, GroupReader};
use super::engine::ShardEngine;
use super::following::Following;
use super::group::{Group, Phase, Proposed};
use super::liveness::Liveness;
use super::loading::{BaseFiles, GroupState, Loaded, Unread};
use super::polls::Polls;
use super::reads::Reads;
use super::residence::Waiting;
use super::waits::Waits;
use crate::base::bugs::{self, Bug};
use crate::base::checksum::Hash128;
use crate::base::entry::Entry;
use crate::base::ids::{DiskId, GroupId, Incarnation, JobId, LogIndex, Term};
use crate::base::members::Member;
use crate::base::units::{GroupTime, Lsn, Now};
use crate::queue::view::BodyLocation;
use crate::queue::{JobQueue, MACHINE_VERSION, stored_pages};
use crate::raft::log::RaftLog;
use crate::raft::membership::Membership;
use crate::raft::message::Voter;
use crate::raft::node::{RaftConfig, RaftNode};
use crate::raft::ready::{HardState, Standing};
use crate::raft::recovering::Doubt;
use crate::snapshot::load::LoadedGroup;
use crate::wal::record::{BaseRecord, GroupRow, HardState as LoggedHardState, RowStatus, Vote};
use crate::wal::recovery::{GroupLog, GroupLogStatus};
use crate::wal::writer::Ticket;
use std::collections::VecDeque;

impl ShardEngine {
    /// The hot state of a group is here, or cannot be read.
    pub(super) fn on_group_loaded(
        &mut self,
        group: GroupId,
        reader: GroupReader,
        result: Result<GroupState, Unread>,
    ) {
        let slot = self.slot(group);
        if let GroupReader::Install { id } = reader {
            return self.on_install_loaded(id, result);
        }
        if self.groups[slot].phase != Phase::Loading && !self.groups[slot].end_attempt() {
            return;
        }
        let result = result.map_err(|unread| unread.what);
        match result.and_then(|state| self.install(slot, state)) {
            Ok(()) => {
                self.mended(slot);
                self.start_serving(slot);
            }
            Err(_) if self.start_from_empty(slot) => self.start_serving(slot),
            Err(what) if self.can_mend(slot) => self.lose_state(slot, &damaged(group, &what)),
            Err(what) => self.halt(slot, &damaged(group, &what)),
        }
        self.drop_orphans();
        self.mark(slot);
    }

    fn install(&mut self, slot: usize, state: GroupState) -> Result<(), String> {
        let GroupState {
            base,
            loaded,
            files,
            ..
        } = state;
        let group = &mut self.groups[slot];
        group.queue = open_state(group.id, loaded)?;
        group.bases.drain(..base);
        // An older base whose root cannot be read is of no use; the empty one of formation always is.
        let mut readable = 0..files.len();
        group
            .bases
            .retain(|base| readable.next().is_some() || base.root.is_none());
        group.base_files = files;
        group
            .base_files
            .resize(group.bases.len(), BaseFiles::default());
        start_from_base(group);
        self.counters.checkpoints_damaged_total += base as u64;
        Ok(())
    }

    /// No checkpoint of the group can be read. If its log still leads from its formation, nothing is
    /// lost: it is applied from there. False if it does not.
    fn start_from_empty(&mut self, slot: usize) -> bool {
        let group = &mut self.groups[slot];
        let Some(at) = group.bases.iter().position(|base| base.root.is_none()) else {
            return false;
        };
        group.bases.drain(..at);
        group.base_files = vec![BaseFiles::default()];
        group.queue = JobQueue::new(group.id, group.bases[0].wall_offset_ms);
        start_from_base(group);
        self.counters.checkpoints_damaged_total += at as u64;
        true
    }

    /// From here on entries are applied.
    fn start_serving(&mut self, slot: usize) {
        self.groups[slot].phase = Phase::Serving;
        self.members_changed(slot);
        self.read_ends(slot);
    }
}

/// The state of a group, of what was read of it.
///
/// # Errors
/// What is damaged, in a sentence.
pub(super) fn open_state(group: GroupId, loaded: Loaded) -> Result<JobQueue, String> {
    let mut queue = JobQueue::absent(group);
    match loaded {
        Loaded::Needed {
            pages,
            places,
            trees,
            parts,
        } => {
            let opened = queue.open(&pages, &trees, parts);
            opened.map_err(|error| error.to_string())?;
            for ((key, _), stored) in pages.iter().zip(places) {
                queue.found(*key, stored);
            }
        }
        // It is written anew by the next checkpoint.
        Loaded::Whole(group) => load_whole(&mut queue, group)?,
    }
    Ok(queue)
}

/// Loads all of a group, whose root is of format 1.
fn load_whole(queue: &mut JobQueue, group: LoadedGroup) -> Result<(), String> {
    let pages = group.pages.into_iter();
    let pages = pages.map(|(name, bytes)| Ok((known_key(&name)?, bytes)));
    let pages: Vec<_> = pages.collect::<Result<_, String>>()?;
    let bodies = group.bodies;
    let mut find = |job: JobId| {
        let at = bodies.binary_search_by_key(&job, |body| body.job).ok()?;
        let place = bodies[at].place;
        let (file, offset, len) = (place.file, place.offset, place.len);
        Some((bodies[at].bytes.clone(), BodyLocation { file, offset, len }))
    };
    queue
        .load(&stored_pages(pages), &mut find)
        .map_err(|error| error.to_string())
}

/// The newest base that can be read is the one to begin with.
fn start_from_base(group: &mut Group) {
    let base = &group.bases[0];
    let members = Membership::from_list(&base.members);
    let members = members.expect("it was looked at when the group was opened");
    group.raft.start_from(base.index, members);
}

/// The base of a group that is not in the log: at formation nothing in it, and its founders the voters.
/// A node that came to the cluster later has nothing to begin with, not even that.
pub(super) fn formation(
    config: &ShardConfig,
    group: GroupId,
    now: Now,
    log_start_lsn: Lsn,
) -> BaseRecord {
    let me = config.me();
    let members = match &config.founders[..] {
        [] => vec![Member::voting(me)],
        founders if founders.contains(&me) => {
            founders.iter().copied().map(Member::voting).collect()
        }
        _ => Vec::new(),
    };
    BaseRecord {
        group,
        incarnation: Incarnation(1),
        index: LogIndex(0),
        term: Term(0),
        time: GroupTime(0),
        root_hash: Hash128::default(),
        root: None,
        log_start_lsn,
        machine_version: 1,
        wall_offset_ms: i64::try_from(config.formed_at.unwrap_or(now.wall).0).unwrap_or(i64::MAX),
        members,
    }
}

/// A group as its log tells it. Its pages, if it has any, are asked for.
pub(super) fn open_group(
    config: &ShardConfig,
    id: GroupId,
    log: GroupLog,
    now: Now,
    effects: &mut Vec<Effect>,
) -> Group {
    let GroupLog {
        incarnation,
        hard,
        bases,
        mut entries,
        status,
        sound,
    } = log;
    let newest = bases[0].clone();
    let oldest = bases.last().expect("a group has a base");
    let me = config.me();
    let known = bases
        .iter()
        .map(|base| Membership::from_list(&base.members));
    let known: Result<Vec<_>, _> = known.collect();
    let members = known
        .as_ref()
        .map_or_else(|_| Membership::default(), |known| known[0].clone());
    let is_alone = members.is_only_voter(me);
    // With other voters a damaged log is put right by them.
    let doubt = match &status {
        GroupLogStatus::Intact => None,
        _ if is_alone => None,
        GroupLogStatus::Recovering { .. } => Some(Doubt::default()),
        GroupLogStatus::Damaged { .. } => {
            entries.retain(|entry| entry.index <= sound.last);
            Some(Doubt {
                salvaged: sound.beyond,
                end: sound.end,
                vote_is_known: sound.vote_is_known,
            })
        }
    };
    let roots: Vec<_> = bases.iter().filter_map(root_ref).collect();
    let phase = match status {
        _ if known.is_err() => {
            Phase::Halted(halted(id, "the members in one of its bases cannot be"))
        }
        _ if newest.machine_version > MACHINE_VERSION => Phase::Halted(halted(
            id,
            &format!("it needs machine version {}", newest.machine_version),
        )),
        GroupLogStatus::Damaged { what } if is_alone => Phase::Halted(halted(id, &what)),
        GroupLogStatus::Recovering { since } if is_alone => Phase::Halted(halted(
            id,
            &format!("its log is in doubt since entry {since}"),
        )),
        _ if newest.root.is_some() => {
            effects.push(Effect::LoadGroup {
                group: id,
                bases: roots,
                reader: GroupReader::Group,
            });
            Phase::Loading
        }
        _ => Phase::Serving,
    };
    let last_time = entries
        .last()
        .map_or(newest.time, |entry| entry.time)
        .max(newest.time);
    // Versions only rise along the log.
    let machine_version = entries
        .last()
        .map_or(newest.machine_version, Entry::version_after)
        .max(newest.machine_version);
    let mut raft_log = RaftLog::new((oldest.index, oldest.term), entries);
    if newest.index <= raft_log.last_index() {
        raft_log.start_at(newest.index);
    }
    let raft = RaftNode::new(
        RaftConfig {
            machine_version,
            seed: config.seed ^ u64::from(id.0),
            start: config.start_number,
            doubt,
            ..RaftConfig::new(id, incarnation, me, members.clone())
        },
        raft_hard_state(hard, &members),
        raft_log,
        last_time,
    );
    let queue = if newest.root.is_some() {
        JobQueue::absent(id)
    } else {
        JobQueue::new(id, newest.wall_offset_ms)
    };
    Group {
        id,
        incarnation,
        raft,
        queue,
        clock: GroupClock::start(last_time, now.mono),
        phase,
        bases,
        base_files: Vec::new(),
        commit_written: hard.commit,
        hard_state_ticket: None,
        proposed: Proposed::default(),
        waiters: VecDeque::new(),
        polls: Polls::default(),
        reads: Reads::default(),
        pages: Waiting::default(),
        mending: None,
        waits: Waits::default(),
        changes: Changes::default(),
        members_unsettled: false,
        members_since: now.mono,
        following: Following::default(),
        raising: false,
        liveness: Liveness::default(),
        advancing: false,
        advance_not_before: now.mono,
        setting_offset: false,
        held_bytes: 0,
        entries_bytes: 0,
        last_proposed: now.mono,
        stay: Stay::default(),
        wall_checked: now.mono,
        timer: None,
        dirty: true,
        recovers: false,
        leads: false,
        led_by: None,
        installing: false,
        promise_ticket: Ticket::default(),
        vote_ticket: Ticket::default(),
    }
}

pub(super) fn halted(group: GroupId, why: &str) -> String {
    format!(
        "group {group} stopped because {why}; the other groups serve. Look with \
         `rrqctl repair --data-dir DIR`, which shows what would be lost before it changes anything"
    )
}

/// The row of a group whose standing has changed.
pub(super) fn standing_row(group: &Group, standing: Standing) -> GroupRow {
    let base = &group.bases[0];
    GroupRow {
        group: group.id,
        incarnation: group.incarnation,
        hard: log_hard_state(group.raft.hard_state()),
        last: group.raft.log().last(),
        base: (base.index, base.term),
        root_hash: base.root_hash,
        root: base.root,
        log_start_lsn: base.log_start_lsn,
        status: match standing {
            Standing::Sound => RowStatus::Ok,
            Standing::Recovering { since } => RowStatus::Recovering { since },
        },
    }
}

fn logged_vote(voter: Voter) -> Vote {
    Vote::new(voter.node, voter.disk)
}

pub(super) fn log_hard_state(state: HardState) -> LoggedHardState {
    LoggedHardState {
        term: state.term,
        vote: state.vote.map(logged_vote),
        commit: state.commit,
    }
}

/// The log names whom it voted for by the node and a part of the disk. One that is no voter any more
/// got the vote all the same: nobody else may have it.
fn raft_hard_state(state: LoggedHardState, members: &Membership) -> HardState {
    let voted = state.vote.filter(|_| !bugs::on(Bug::VoteForgotten));
    let vote = voted.map(|vote| {
        let is_it = |voter: &Voter| logged_vote(*voter) == vote;
        let gone = || {
            let mut disk = [0; 16];
            disk[..4].copy_from_slice(&vote.disk_tag.to_le_bytes());
            Voter {
                node: vote.node,
                disk: DiskId(disk),
            }
        };
        members.members().find(is_it).unwrap_or_else(gone)
    });
    HardState {
        term: state.term,
        vote,
        commit: state.commit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::NodeId;

    #[test]
    fn a_vote_survives_the_log_for_whomever_it_was() {
        let voter = |node: u32| Voter {
            node: NodeId(node),
            disk: DiskId([node as u8; 16]),
        };
        let members = Membership::of_voters([1, 2, 3].map(voter));
        let read_back = |vote: Voter| {
            let state = HardState {
                term: Term(7),
                vote: Some(vote),
                commit: LogIndex(3),
            };
            let again = raft_hard_state(log_hard_state(state), &members);
            assert_eq!((again.term, again.commit), (state.term, state.commit));
            again.vote.expect("it has voted")
        };
        assert_eq!(read_back(voter(2)), voter(2));
        // It is no voter any more, or has another disk: nobody else gets that vote.
        let gone = read_back(voter(9));
        assert!(gone.node == NodeId(9) && !members.contains(gone));
        let replaced = Voter {
            disk: DiskId([8; 16]),
            ..voter(2)
        };
        assert!(!members.contains(read_back(replaced)));
    }
}
