//! Who looks at every engine after each of its turns: what no two nodes may hold against each other.
//!
//! | judge | what must hold |
//! | --- | --- |
//! | leaders | at most one leader of a group in a term |
//! | prefix | what is committed is the same entry everywhere, and for ever |
//! | states | the same state wherever as much is applied (a sample: it walks all pages) |
//! | disks | what is committed is on the disks of a majority, at the moment when that is known |
//! | promises | a vote or an acknowledgement that leaves a node is on its disk; one vote a term |
//! | counting | a leader commits by counting only what is of its own term |
//! | bases | checkpoints of the same index have the same pages |
//! | time | a group's time never falls along its log, and is never ahead of the fastest clock |
//! | sessions | no leader ends the leases of a session that it heard within a second |
//! | inside | counters, orders and sums of a state and of its log are what they say (a sample) |
//! | checkpoints | none is damaged where no disk was harmed |

use super::node::Node;
use super::options::Options;
use crate::base::checksum::Hash128;
use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{GroupId, LogIndex, SessionId, ShardId, Term};
use crate::base::units::{GroupTime, Monotonic};
use crate::queue::command::Op;
use crate::raft::message::{Body, Message, Voter};
use crate::raft::node::RaftNode;
use crate::raft::role::Role;
use crate::shard::engine::ShardEngine;
use crate::shard::placement::groups_of;
use crate::sim::kept::Sealed;
use crate::wal::record::BaseRecord;
use crate::wire::command::decode_command;
use std::collections::BTreeMap;

/// Checkpoint files of a disk in the end, without those of its groups.
const FILES_MAX: usize = 32;
/// More groups than any run has.
const GROUPS_MAX: usize = 16;

/// What of a member changes whenever something does: an entry is replaced only by one that is not durable at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Brief {
    role: Role,
    term: Term,
    last: LogIndex,
    stable: LogIndex,
    committed: LogIndex,
}

impl Brief {
    fn of(raft: &RaftNode) -> Self {
        let log = raft.log();
        Self {
            role: raft.role(),
            term: raft.term(),
            last: log.last_index(),
            stable: log.stable(),
            committed: log.committed(),
        }
    }
}

/// How far a member was looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Of this process.
    start: u32,
    committed: LogIndex,
    /// The last term that it was seen to lead.
    led: Term,
    /// The term that it led when it was looked at last; 0 if it did not lead.
    leads: Term,
    /// What it was when it was looked at last: while that stays, nothing is new.
    was: Option<Brief>,
    /// The last entry that was seen to be durable there.
    stable: (LogIndex, Term),
    /// The last entry that it was seen to have proposed, or to have had when it began to lead.
    proposed: LogIndex,
}

/// The judges of a run.
#[derive(Default)]
pub(super) struct Judges {
    leaders: BTreeMap<(GroupId, Term), Voter>,
    committed: BTreeMap<GroupId, BTreeMap<LogIndex, Sealed>>,
    /// The last entry of each group whose time was looked at.
    times: BTreeMap<GroupId, (LogIndex, GroupTime)>,
    /// Whom each member gave its vote in a term.
    votes: BTreeMap<(GroupId, Term, Voter), Voter>,
    /// When a node last heard of a session.
    heard: BTreeMap<(usize, GroupId, SessionId), Monotonic>,
    /// How far each member was looked at, by node and group.
    seen: Vec<Seen>,
    states: BTreeMap<(GroupId, LogIndex), Hash128>,
    bases: BTreeMap<(GroupId, LogIndex), Hash128>,
    /// Checkpoints held against another node's.
    pub(super) bases_compared: u64,
    /// Commits held against the disks.
    pub(super) disks_read: u64,
    /// Leaders seen.
    pub(super) terms_led: u64,
    /// States that were held against another node's.
    pub(super) states_compared: u64,
}

impl Judges {
    /// Looks at an engine; the groups of which something is committed for the first time, and the newest
    /// such entry of each.
    pub(super) fn look(
        &mut self,
        node: &Node,
        shard: u16,
        groups: impl Iterator<Item = GroupId>,
        clock: (Monotonic, u64),
    ) -> Vec<(GroupId, LogIndex)> {
        let mut news = Vec::new();
        let (me, start) = (node.me, node.start);
        let engine = &node.engines[usize::from(shard)];
        let disk = &node.disks[usize::from(shard)];
        let (kept, has_lied) = (&disk.kept, disk.has_lied());
        for group in groups {
            let raft = engine.member(group);
            let place = me.node.0 as usize * GROUPS_MAX + usize::from(group.0);
            if self.seen.len() <= place {
                self.seen.resize(place + 1, Seen::default());
            }
            let seen = &mut self.seen[place];
            let is = Some(Brief::of(raft));
            if seen.start == start && seen.was == is {
                continue;
            }
            seen.was = is;
            if raft.role() == Role::Leader && seen.led != raft.term() {
                seen.led = raft.term();
                let first = *self.leaders.entry((group, seen.led)).or_insert_with(|| {
                    self.terms_led += 1;
                    me
                });
                assert!(
                    first == me,
                    "{first:?} and {me:?} lead group {group} in term {}",
                    raft.term()
                );
            }
            let leads = if raft.role() == Role::Leader {
                raft.term()
            } else {
                Term(0)
            };
            let led = std::mem::replace(&mut seen.leads, leads);
            let log = raft.log();
            if raft.role() == Role::Leader && seen.proposed < log.last_index() {
                let from = seen.proposed.max(log.base().0);
                seen.proposed = log.last_index();
                let place = me.node.0 as usize - 1;
                for entry in log.slice(from.next(), usize::MAX) {
                    if entry.term == raft.term() {
                        judge_proposal(&self.heard, (place, group), &entry, clock);
                    }
                }
            } else if raft.role() != Role::Leader {
                seen.proposed = log.last_index();
            }
            if seen.start != start {
                (seen.start, seen.committed) = (start, LogIndex(0));
                seen.stable = (LogIndex(0), Term(0));
            }
            let stable = (log.stable(), log.term_at(log.stable()).unwrap_or_default());
            if seen.stable != stable && log.stable() > log.base().0 {
                seen.stable = stable;
                let entry = log.slice(stable.0, 1);
                let entry = entry.first().expect("what is above the base is held");
                let sealed = (entry.term, entry.crc);
                assert!(
                    has_lied || kept.holds(group, stable.0, sealed),
                    "entry {} of group {group} counts as durable on {me:?}, and is not on its disk",
                    stable.0
                );
            }
            let from = seen.committed.max(log.base().0);
            if log.committed() <= from {
                continue;
            }
            // Whoever leads learns of a commit by counting alone.
            let counted = leads != Term(0) && led == leads;
            assert!(
                !counted || log.term_at(log.committed()) == Some(raft.term()),
                "{me:?} commits entry {} of group {group}, of an earlier term than its own, by counting",
                log.committed()
            );
            seen.committed = log.committed();
            let mut newest = None;
            let known = self.committed.entry(group).or_default();
            let entries = log.slice(from.next(), usize::MAX).into_iter();
            let last = self.times.entry(group).or_default();
            for entry in entries.take_while(|entry| entry.index <= log.committed()) {
                if entry.index > last.0 {
                    assert!(
                        entry.time >= last.1,
                        "the time of group {group} falls from {:?} to {:?} at entry {}",
                        last.1,
                        entry.time,
                        entry.index
                    );
                    let fastest = clock.0.0 / 1_000_000 * (1_000 + clock.1) / 1_000 + 1;
                    assert!(
                        entry.time.0 <= fastest,
                        "the time of group {group} is {:?} at entry {}, and no clock has gone that far",
                        entry.time,
                        entry.index
                    );
                    *last = (entry.index, entry.time);
                }
                let sealed = (entry.term, entry.crc);
                let before = *known.entry(entry.index).or_insert_with(|| {
                    newest = Some(entry.index);
                    sealed
                });
                assert!(
                    before == sealed,
                    "entry {} of group {group} is committed as {before:?}, on {me:?} as {sealed:?}",
                    entry.index
                );
            }
            news.extend(newest.map(|index| (group, index)));
        }
        news
    }

    /// A committed entry is on the disks of a majority, as they are now, without what is under way. A
    /// disk that has lost what it had said was safe may have had it, and so may one that was lost (`renewed`).
    pub(super) fn is_on_disks(
        &mut self,
        nodes: &[Node],
        renewed: Option<usize>,
        (group, index): (GroupId, LogIndex),
    ) {
        self.disks_read += 1;
        let sealed = self.committed[&group][&index];
        let has = |(place, node): &(usize, &Node)| {
            let may_have_had = node.is_harmed || Some(*place) == renewed;
            let disk = &node.disks[usize::from(node.shard_of(group))];
            may_have_had || disk.kept.holds(group, index, sealed)
        };
        let count = (0..).zip(nodes).filter(has).count();
        assert!(
            2 * count > nodes.len(),
            "entry {index} of group {group} is committed and on {count} of {} disks",
            nodes.len()
        );
    }

    /// Checkpoints that became durable, held against those of other nodes.
    pub(super) fn compare_bases(&mut self, bases: &[BaseRecord]) {
        for base in bases.iter().filter(|base| base.root.is_some()) {
            let place = (base.group, base.index);
            let hash = base.root_hash;
            match self.bases.get(&place) {
                Some(known) => {
                    self.bases_compared += 1;
                    assert!(
                        *known == hash,
                        "two checkpoints of group {} at {} have other pages",
                        base.group,
                        base.index
                    );
                }
                None => drop(self.bases.insert(place, hash)),
            }
        }
    }

    /// A node says this to another: what it promises is on its disk.
    pub(super) fn hear(&mut self, node: &Node, options: &Options, shard: u16, message: &Message) {
        let Message {
            from,
            to,
            group,
            term,
            ..
        } = *message;
        let disk = &node.disks[usize::from(shard)];
        if disk.has_lied() {
            return;
        }
        let kept = &disk.kept;
        let voted_for = match message.body {
            Body::Ballot {
                pre: false,
                granted: true,
                ..
            } => to,
            Body::Canvass { pre: false, .. } => from,
            Body::EntryGot { .. } | Body::EntryBase { .. } => {
                assert!(
                    kept.has_term(group, term),
                    "{from:?} says what it has of group {group} in term {term}, and has not written that term"
                );
                return;
            }
            // What it had in an earlier term may have been replaced in the batch for which this waited.
            Body::Appended { matched } => {
                assert!(
                    kept.reaches(group, matched) || kept.has_term(group, term.next()),
                    "{from:?} acknowledges entry {matched} of group {group}, which is not on its disk"
                );
                return;
            }
            _ => return,
        };
        assert!(
            kept.has_voted(group, term, voted_for.node),
            "{from:?} votes for {voted_for:?} in term {term} of group {group}, and has not written it"
        );
        // What a disk has lost without a proof may be a vote.
        if node.is_harmed && !options.keeps_unproved() {
            return;
        }
        let first = *self.votes.entry((group, term, from)).or_insert(voted_for);
        assert!(
            first == voted_for,
            "{from:?} votes for {first:?} and for {voted_for:?} in term {term} of group {group}"
        );
    }

    /// A disk holds little more than what its groups need: two checkpoints of each. Where a group has
    /// stopped nobody knows what that needs, and all stays.
    pub(super) fn is_small(&self, node: &Node, options: &Options) {
        if node.is_harmed || node.was_unreadable {
            return;
        }
        for disk in &node.disks {
            let (files, most) = (disk.files().len(), FILES_MAX + 8 * options.groups as usize);
            assert!(
                files <= most,
                "a disk of {:?} holds {files} checkpoint files in the end, and {most} are enough",
                node.me
            );
        }
    }

    /// A node hears of a session.
    pub(super) fn heard(
        &mut self,
        node: usize,
        group: GroupId,
        session: SessionId,
        now: Monotonic,
    ) {
        self.heard.insert((node, group, session), now);
    }

    /// Holds the state of a group against what others had when they had applied as much, and against
    /// itself. `could_read` says that nothing of the node's checkpoints can be damaged.
    pub(super) fn compare(
        &mut self,
        me: Voter,
        engine: &ShardEngine,
        group: GroupId,
        could_read: bool,
    ) {
        if could_read {
            let halted: Vec<_> = engine.halted().collect();
            let counters = engine.counters();
            let damaged = counters.checkpoints_damaged_total;
            let parts = counters.scrub_damaged_total;
            let mended = counters.groups_mending + counters.groups_mended_total;
            assert!(
                halted.is_empty() && damaged == 0 && mended == 0 && parts == 0,
                "{me:?} finds {damaged} checkpoints and {parts} parts of them damaged, has stopped \
                 {halted:?} and mends {mended} groups, and nothing was done to its disk"
            );
            assert!(
                counters.checkpoint_installs_unread_total == 0,
                "{me:?} cannot read again what it has written of the checkpoint of another node, and \
                 nothing was done to its disk: {:?}",
                engine.install_failure()
            );
        }
        if let Err(why) = engine.check(group) {
            panic!("group {group} on {me:?} is not what it says: {why}");
        }
        let Some((index, hash)) = engine.state_hash(group) else {
            return;
        };
        let mut is_new = false;
        let known = *self.states.entry((group, index)).or_insert_with(|| {
            is_new = true;
            hash
        });
        self.states_compared += u64::from(!is_new);
        assert!(
            known == hash,
            "{me:?} has another state of group {group} at {index} than another node had"
        );
    }

    /// Whether a group is the same on all nodes, all of which run: also where its state was damaged, since
    /// others have it.
    pub(super) fn are_equal(nodes: &[Node], group: GroupId) -> bool {
        let mut states = nodes.iter().map(|node| {
            let engine = node.engine_of(group)?;
            let log = engine.member(group).log();
            (log.applied() == log.last_index()).then(|| engine.state_hash(group))?
        });
        let first = states.next().expect("there are nodes");
        first.is_some() && states.all(|state| state == first)
    }
}

/// A leader has just proposed this: if it ends the leases of a session, it has not heard of it lately.
/// The least that it waits is a second of its own clock, after a connection was closed.
fn judge_proposal(
    heard: &BTreeMap<(usize, GroupId, SessionId), Monotonic>,
    (node, group): (usize, GroupId),
    entry: &Entry,
    (now, drift_per_mille): (Monotonic, u64),
) {
    if entry.kind != EntryKind::Data {
        return;
    }
    let command = decode_command(&entry.payload, entry.machine_version);
    let session = match command.map(|command| command.op) {
        Ok(Op::EndLeases { session, .. } | Op::DropSession { session, .. }) => session,
        _ => return,
    };
    let wait_us = 1_000 * 1_000 * 1_000 / (1_000 + drift_per_mille) - 1_000;
    let wait = std::time::Duration::from_micros(wait_us);
    if let Some(at) = heard.get(&(node, group, session)) {
        assert!(
            at.plus(wait) <= now,
            "the leases of session {session} of group {group} are ended at {now:?}, and it was heard at {at:?}"
        );
    }
}

/// The groups of a shard of a node.
pub(super) fn groups(
    node: &Node,
    options: &Options,
    shard: u16,
) -> impl Iterator<Item = GroupId> + use<> {
    groups_of(ShardId(shard), node.shards(), options.groups)
}
