//! A group of members in one process, with disks that lose what was not synced and a network of which
//! a test decides what arrives. After every step the promises of Raft are held against all that ever
//! happened.

#![allow(dead_code, reason = "each test uses its part")]

use bytes::Bytes;
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{DiskId, GroupId, Incarnation, LogIndex, NodeId, Term};
use rrq::base::units::GroupTime;
use rrq::raft::follower::Installed;
use rrq::raft::log::RaftLog;
use rrq::raft::membership::{Change, Membership};
use rrq::raft::message::{Body, Checkpoint, Message, Position, StepError, Voter};
use rrq::raft::node::{Proposal, RaftConfig, RaftNode};
use rrq::raft::ready::{HardState, Ready, Standing};
use rrq::raft::recovering::Doubt;
use rrq::raft::role::Role;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const GROUP: GroupId = GroupId(7);
/// Of the members here, so that scripts count on it.
const ELECTION_TICKS: u32 = 10;
pub(crate) const LIFE: Incarnation = Incarnation(1);

/// Member `number`, on its first disk.
pub(crate) fn voter(number: u32) -> Voter {
    Voter {
        node: NodeId(number),
        disk: DiskId([number as u8; 16]),
    }
}

/// What a crash leaves of a member.
#[derive(Clone, Debug)]
struct Disk {
    hard: HardState,
    /// Entries above the base; what is durable of the log.
    base: Position,
    base_members: Membership,
    entries: Vec<Entry>,
    /// It lost some of it.
    doubt: Option<Doubt>,
}

/// Handed out, not durable yet.
#[derive(Clone, Debug)]
struct Write {
    hard: Option<HardState>,
    entries: Vec<Entry>,
    standing: Option<Standing>,
    promises: Vec<Message>,
}

pub(crate) struct Member {
    pub(crate) node: RaftNode,
    disk: Disk,
    writes: Vec<Write>,
    /// Reads that may go on: number and index.
    pub(crate) reads: Vec<(u64, LogIndex)>,
    starts: u32,
}

pub(crate) struct Cluster {
    pub(crate) members: BTreeMap<Voter, Member>,
    /// Under way, oldest first.
    pub(crate) network: Vec<Message>,
    /// Nothing leaves them or arrives.
    pub(crate) cut: BTreeSet<Voter>,
    /// Single links that are cut: from, to.
    pub(crate) cut_links: BTreeSet<(Voter, Voter)>,
    pub(crate) refused: Vec<(Voter, StepError)>,
    /// Checkpoints that were installed in place of a log.
    pub(crate) installs: usize,
    /// Who led each term.
    pub(crate) leaders: BTreeMap<Term, Voter>,
    /// What was committed at each index, for ever.
    committed: BTreeMap<LogIndex, Entry>,
    seed: u64,
}

impl Cluster {
    /// Members that start from nothing, all with these voters and learners.
    pub(crate) fn new(voters: &[u32], learners: &[u32], seed: u64) -> Self {
        let mut members = Membership::of_voters(voters.iter().map(|number| voter(*number)));
        for learner in learners {
            let steps = vec![rrq::raft::membership::Step::AddLearner(voter(*learner))];
            members = members.changed(&Change::Enter(steps)).expect("a new one");
        }
        let mut cluster = Self {
            members: BTreeMap::new(),
            network: Vec::new(),
            cut: BTreeSet::new(),
            cut_links: BTreeSet::new(),
            refused: Vec::new(),
            installs: 0,
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            seed,
        };
        for number in voters.iter().chain(learners) {
            cluster.add(voter(*number), members.clone());
        }
        cluster
    }

    /// A member with an empty disk, which believes these to be the members.
    pub(crate) fn add(&mut self, me: Voter, members: Membership) {
        let disk = Disk {
            hard: HardState::default(),
            base: (LogIndex(0), Term(0)),
            base_members: members,
            entries: Vec::new(),
            doubt: None,
        };
        let node = start(me, &disk, self.seed, 0);
        let member = Member {
            node,
            disk,
            writes: Vec::new(),
            reads: Vec::new(),
            starts: 0,
        };
        self.members.insert(me, member);
    }

    pub(crate) fn node(&mut self, me: Voter) -> &mut RaftNode {
        &mut self.member(me).node
    }

    pub(crate) fn member(&mut self, me: Voter) -> &mut Member {
        let member = self.members.get_mut(&me);
        member.unwrap_or_else(|| panic!("there is no member {}", me.node))
    }

    /// All that are there.
    pub(crate) fn all(&self) -> Vec<Voter> {
        self.members.keys().copied().collect()
    }

    pub(crate) fn propose(&mut self, me: Voter, text: &str) -> Result<LogIndex, String> {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        let proposal = Proposal {
            kind: EntryKind::Data,
            time: GroupTime(0),
            payload,
        };
        let result = self.node(me).propose(proposal);
        result.map_err(|error| error.to_string())
    }

    /// Takes what a member wants done: messages leave, the rest waits for [`Self::write`]. What left.
    pub(crate) fn ready(&mut self, me: Voter) -> Vec<Message> {
        let member = self.member(me);
        let mut ready = Ready::default();
        member.node.take_ready(&mut ready);
        member.reads.append(&mut ready.reads);
        let sent = std::mem::take(&mut ready.messages);
        let write = Write {
            hard: ready.hard_state,
            entries: ready.entries,
            standing: ready.standing,
            promises: ready.promises,
        };
        let is_empty = write.hard.is_none() && write.entries.is_empty();
        if !is_empty || write.standing.is_some() || !write.promises.is_empty() {
            member.writes.push(write);
        }
        // What promises nothing waits only for hard states that are under way.
        let term_is_durable = member.writes.iter().all(|write| write.hard.is_none());
        let (sent, held) = if term_is_durable {
            (sent, Vec::new())
        } else {
            (Vec::new(), sent)
        };
        if let Some(last) = member.writes.last_mut() {
            last.promises.extend(held);
        }
        self.network.extend(sent.iter().cloned());
        self.check();
        sent
    }

    /// The oldest write of a member, or all, become durable; their promises leave.
    pub(crate) fn write(&mut self, me: Voter, count: usize) -> Vec<Message> {
        let member = self.member(me);
        let count = count.min(member.writes.len());
        let mut sent = Vec::new();
        for write in member.writes.drain(..count) {
            if let Some(hard) = write.hard {
                member.disk.hard = hard;
            }
            for entry in &write.entries {
                // What is in the checkpoint already needs no log.
                if let Some(keep) = entry.index.0.checked_sub(member.disk.base.0.0 + 1) {
                    member.disk.entries.truncate(keep as usize);
                    member.disk.entries.push(entry.clone());
                }
            }
            if let Some(last) = write.entries.last() {
                member.node.synced(LIFE, last.index, last.term);
            }
            match write.standing {
                Some(Standing::Sound) => member.disk.doubt = None,
                Some(Standing::Recovering { .. }) => member.disk.doubt = Some(Doubt::default()),
                None => {}
            }
            sent.extend(write.promises);
        }
        self.network.extend(sent.iter().cloned());
        self.check();
        sent
    }

    /// Applies all that is committed: that.
    pub(crate) fn apply(&mut self, me: Voter) -> Vec<Entry> {
        let mut applied = Vec::new();
        while let Some(entry) = self.member(me).node.next_committed().cloned() {
            let before = self
                .committed
                .entry(entry.index)
                .or_insert_with(|| entry.clone());
            assert_eq!(
                *before, entry,
                "index {} was committed twice, differently (U7)",
                entry.index
            );
            self.member(me).node.applied();
            applied.push(entry);
        }
        self.check();
        applied
    }

    fn passes(&self, message: &Message) -> bool {
        let (from, to) = (message.from, message.to);
        let is_cut = self.cut.contains(&from) || self.cut.contains(&to);
        !is_cut && !self.cut_links.contains(&(from, to)) && self.members.contains_key(&to)
    }

    /// Takes a message out of the network and gives it to its receiver, if it gets through.
    pub(crate) fn deliver(&mut self, place: usize) {
        let message = self.network.remove(place);
        self.hand(message);
    }

    /// Gives a message to its receiver, if it gets through.
    pub(crate) fn hand(&mut self, message: Message) {
        if !self.passes(&message) {
            return;
        }
        let to = message.to;
        if let Err(error) = self.node(to).step(message) {
            self.refused.push((to, error));
        }
        self.check();
    }

    /// Until nobody has anything to do: everything is written, delivered and applied at once.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            for me in self.all() {
                self.ready(me);
                self.write(me, usize::MAX);
                self.apply(me);
            }
            if self.network.is_empty() {
                let idle = |member: &Member| !member.node.has_ready();
                if self.members.values().all(idle) {
                    return;
                }
            } else {
                self.deliver(0);
            }
        }
        panic!("the members talk for ever");
    }

    /// A member loses all that is not durable, and starts again.
    pub(crate) fn crash(&mut self, me: Voter) {
        let seed = self.seed;
        let member = self.member(me);
        member.starts += 1;
        member.writes.clear();
        member.reads.clear();
        member.node = start(me, &member.disk, seed, member.starts);
        // What lies beyond a hole is known to one start only.
        member.disk.doubt = member.disk.doubt.take().map(|_| Doubt::default());
        self.check();
    }

    /// A member starts again and finds a hole in its log: entries from `first` to `last` are gone,
    /// and with `vote` what it promised in later terms. It knows that something is gone.
    pub(crate) fn lose(&mut self, me: Voter, first: LogIndex, last: LogIndex, vote: bool) {
        self.lose_told(me, (first, last), vote, false);
    }

    /// The same; if it is `told`, the member knows which entry was its last, also if that is gone.
    pub(crate) fn lose_told(
        &mut self,
        me: Voter,
        (first, last): (LogIndex, LogIndex),
        vote: bool,
        told: bool,
    ) {
        let disk = &mut self.member(me).disk;
        let end = disk.entries.last().map(|last| (last.index, last.term));
        let beyond = |entry: &Entry| entry.index > last;
        let salvaged: Vec<Entry> = disk.entries.iter().filter(|e| beyond(e)).cloned().collect();
        disk.entries.retain(|entry| entry.index < first);
        if vote {
            let term = disk.entries.last().map_or(disk.base.1, |entry| entry.term);
            disk.hard = HardState {
                term,
                vote: None,
                commit: disk.hard.commit,
            };
        }
        disk.doubt = Some(Doubt {
            // A hole at the end may have been followed by anything.
            end: end.filter(|_| told || !salvaged.is_empty()),
            salvaged,
            vote_is_known: !vote,
        });
        self.crash(me);
    }

    /// Who may have lost what it promised, or would not know better after a crash.
    pub(crate) fn recovering(&self) -> Vec<Voter> {
        let members = self.members.iter();
        let recovering = members
            .filter(|(_, member)| member.node.is_recovering() || member.disk.doubt.is_some());
        recovering.map(|(me, _)| *me).collect()
    }

    /// What a member has on its disk, without a gap.
    pub(crate) fn last_durable(&self, me: Voter) -> LogIndex {
        let disk = &self.members[&me].disk;
        disk.entries.last().map_or(disk.base.0, |entry| entry.index)
    }

    /// The entries up to `index` go into a checkpoint of this member.
    pub(crate) fn compact(&mut self, me: Voter, index: LogIndex) {
        let member = self.member(me);
        let log = member.node.log();
        let index = index.min(log.applied()).min(log.stable());
        let term = log.term_at(index).expect("it is held");
        let mut members = member.disk.base_members.clone();
        for entry in member
            .disk
            .entries
            .iter()
            .filter(|entry| entry.index <= index)
        {
            if entry.kind == EntryKind::Conf {
                let change = Change::decode(&entry.payload);
                members = change
                    .and_then(|change| members.changed(&change))
                    .unwrap_or(members);
            }
        }
        member.node.log_mut().compact(index);
        member.disk.entries.retain(|entry| entry.index > index);
        (member.disk.base, member.disk.base_members) = ((index, term), members);
    }

    /// A member that was offered a checkpoint gets the newest of its leader.
    pub(crate) fn install(&mut self, me: Voter) -> Option<Position> {
        let (source, _) = self.node(me).take_offer()?;
        let from = self.members.get(&source)?;
        let (base, members) = (from.disk.base, from.disk.base_members.clone());
        let member = self.member(me);
        let is_ahead = member.node.prepare_install(base);
        if !is_ahead && base.0 > member.node.log().applied() {
            // It leads, and has all that is in it.
            return None;
        }
        if is_ahead {
            let has_base = |entry: &Entry| (entry.index, entry.term) == base;
            let disk_follows = member.disk.entries.iter().any(has_base);
            let log_follows = member.node.log().term_at(base.0) == Some(base.1);
            let stays = |follows: bool| move |entry: &Entry| follows && entry.index > base.0;
            member.disk.base = base;
            member.disk.base_members = members.clone();
            // What does not follow the checkpoint belongs to a log that is gone.
            member.disk.entries.retain(stays(disk_follows));
            for write in &mut member.writes {
                write.entries.retain(stays(log_follows));
            }
        }
        member.node.installed(Installed {
            base,
            time: GroupTime(0),
            machine_version: 1,
            members,
        });
        self.installs += usize::from(is_ahead);
        self.check();
        Some(base)
    }

    /// Whoever leads the highest term.
    pub(crate) fn leader(&self) -> Option<Voter> {
        let leads = |(me, member): (&Voter, &Member)| {
            (member.node.role() == Role::Leader).then(|| (member.node.term(), *me))
        };
        self.members
            .iter()
            .filter_map(leads)
            .max()
            .map(|(_, me)| me)
    }

    /// What must always hold.
    fn check(&mut self) {
        for (me, member) in &self.members {
            let node = &member.node;
            if node.role() == Role::Leader {
                let leader = *self.leaders.entry(node.term()).or_insert(*me);
                assert_eq!(leader, *me, "two lead term {} (U6)", node.term());
                for (_, progress) in node.followers() {
                    assert!(progress.matched() < progress.next(), "R18: {progress:?}");
                }
            }
            let log = node.log();
            assert!(log.applied() <= log.committed() && log.committed() <= log.last_index());
            assert!(log.stable() <= log.last_index());
            let first = log.base().0.next();
            for entry in log.slice(first, usize::MAX) {
                if entry.index <= log.committed()
                    && let Some(known) = self.committed.get(&entry.index)
                {
                    assert_eq!(*known, entry, "member {}: committed twice (U7)", me.node);
                }
            }
        }
    }

    /// What a majority of the voters of the present leader has on its disks.
    pub(crate) fn is_durable_on_a_majority(&self, index: LogIndex, members: &Membership) -> bool {
        let has = |me: Voter| {
            let disk = self.members.get(&me).map(|member| &member.disk);
            disk.is_some_and(|disk| {
                index <= disk.base.0 || disk.entries.iter().any(|entry| entry.index == index)
            })
        };
        members.tally(|me| has(me).then_some(true)) == rrq::raft::quorum::Tally::Won
    }

    /// What was committed at an index.
    pub(crate) fn committed_at(&self, index: LogIndex) -> Option<&Entry> {
        self.committed.get(&index)
    }

    /// Changes of the members that were committed.
    pub(crate) fn changes(&self) -> usize {
        let all = self.committed.values();
        all.filter(|entry| entry.kind == EntryKind::Conf).count()
    }

    pub(crate) fn last_committed(&self) -> LogIndex {
        self.committed
            .last_key_value()
            .map_or(LogIndex(0), |(index, _)| *index)
    }
}

fn start(me: Voter, disk: &Disk, seed: u64, starts: u32) -> RaftNode {
    let config = RaftConfig {
        seed: (seed + u64::from(starts)) ^ u64::from(me.node.0) << 32,
        start: starts,
        doubt: disk.doubt.clone(),
        election_ticks: ELECTION_TICKS,
        ..RaftConfig::new(GROUP, LIFE, me, disk.base_members.clone())
    };
    let log = RaftLog::new(disk.base, disk.entries.clone());
    RaftNode::new(config, disk.hard, log, GroupTime(0))
}

/// `2` is member 2; `2:9` is node 2 with disk 9.
pub(crate) fn name(member: Voter) -> String {
    let disk = member.disk.0[0];
    if u32::from(disk) == member.node.0 {
        member.node.to_string()
    } else {
        format!("{}:{disk}", member.node)
    }
}

/// A message in a line.
pub(crate) fn show(message: &Message) -> String {
    let at = |position: Position| format!("{}@{}", position.0, position.1);
    let what = match &message.body {
        Body::Canvass {
            pre,
            last,
            commit,
            why,
        } => {
            let name = if *pre { "pre-canvass" } else { "canvass" };
            format!("{name} last={} commit={} {why:?}", at(*last), at(*commit))
        }
        Body::Ballot { pre, granted, .. } => {
            let name = if *pre { "pre-ballot" } else { "ballot" };
            format!("{name} {}", if *granted { "yes" } else { "no" })
        }
        Body::Append {
            prev,
            entries,
            commit,
        } => {
            let entries: Vec<String> = entries.iter().map(show_entry).collect();
            format!(
                "append prev={} commit={commit} [{}]",
                at(*prev),
                entries.join(" ")
            )
        }
        Body::Appended { matched } => format!("appended {matched}"),
        Body::Refused { prev, hint } => format!("refused {prev} hint={}", at(*hint)),
        Body::Heartbeat {
            commit,
            round,
            quiet,
            heir,
        } => format!(
            "heartbeat commit={commit} round={round}{}{}",
            if *quiet { " quiet" } else { "" },
            if *heir { " heir" } else { "" }
        ),
        Body::Beat { round } => format!("beat {round}"),
        Body::Offer { base } => format!("offer {}", at(*base)),
        Body::Checkpoint(Checkpoint::Get { next, .. }) => format!("checkpoint-get {next}"),
        Body::Checkpoint(Checkpoint::Part { number, .. }) => format!("checkpoint-part {number}"),
        Body::QueueChange(what) => format!("{what:?}"),
        Body::TimeoutNow => "timeout-now".to_owned(),
        Body::ReadIndex { id } => format!("read-index {id}"),
        Body::ReadAt { id, index } => format!("read {id} at {index}"),
        Body::AnchorGet { .. } => "anchor-get".to_owned(),
        Body::Anchor { at: anchor, .. } => format!("anchor {}", at(*anchor)),
        Body::EntryGet { first } => format!("entry-get {first}"),
        Body::EntryGot { answer, .. } => {
            let entries: Vec<String> = answer.entries.iter().map(show_entry).collect();
            let before = answer
                .before
                .map_or("?".to_owned(), |term| term.to_string());
            let end = if answer.ends { "end" } else { "?" };
            let (first, entries) = (answer.first, entries.join(" "));
            format!("entry-got {first} behind t{before} [{entries}] {end}")
        }
        Body::EntryBase { base } => format!("entry-base {}", at(*base)),
    };
    let (from, to, term) = (name(message.from), name(message.to), message.term);
    let recovering = if message.recovering {
        " (recovering)"
    } else {
        ""
    };
    format!("{from}>{to} t{term} {what}{recovering}")
}

/// An entry in a word.
pub(crate) fn show_entry(entry: &Entry) -> String {
    let text = match entry.kind {
        EntryKind::Data => String::from_utf8_lossy(&entry.payload).into_owned(),
        EntryKind::Noop => "-".to_owned(),
        EntryKind::Conf if entry.payload.is_empty() => "leave".to_owned(),
        EntryKind::Conf => "change".to_owned(),
        other => format!("{other:?}"),
    };
    format!("{}@{}:{text}", entry.index, entry.term)
}
