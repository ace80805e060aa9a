//! The two languages: what our members and those of raft-rs say to each other, and what both keep.
//!
//! A message is translated when it is sent, since the sender knows what the words do not hold. A node is
//! its number in both; the disk of ours repeats the number, since no disk is replaced here.
//!
//! | ours | theirs | and back |
//! | --- | --- | --- |
//! | `Canvass` | `MsgRequestPreVote`, `MsgRequestVote` | `Why::Transfer` is the context `CampaignTransfer`; the commit mark of both is one (R8) |
//! | `Ballot` | `MsgRequestPreVoteResponse`, `MsgRequestVoteResponse` | |
//! | `Append` | `MsgAppend` | |
//! | `Appended` | `MsgAppendResponse` | |
//! | `Refused` | `MsgAppendResponse` with `reject` | both hint at the last entry of no higher term |
//! | `Heartbeat`, `Beat` | `MsgHeartbeat`, `MsgHeartbeatResponse` | a round is 8 bytes of context, which their followers echo; so is the number of a read of theirs, which ours echo as a round |
//! | `Offer` | `MsgSnapshot` | theirs carries the checkpoint, ours names it and the members' engines bring it over: here the harness does |
//! | `TimeoutNow` | `MsgTimeoutNow` | |
//! | `ReadIndex`, `ReadAt` | `MsgReadIndex`, `MsgReadIndexResp` | theirs asks without a term: it gets the sender's |
//!
//! What has no translation is switched off. *Changes of queues* (`QueueChange`) say nothing to Raft. *Quiet groups*: nobody asks our leaders to rest. *Proof that
//! a process died, and heirs*: nobody says `died`. *`recovering`* (`AnchorGet`, `Anchor`, `EntryGet`,
//! `EntryGot`, `EntryBase`): no disk forgets what it synced. Of theirs: group commit, priorities, batched
//! appends, `request_snapshot`, leases for reads; what a member only forwards for another
//! (proposals, reads) is not sent. The incarnation is always 1, and
//! the life of a message counts the starts of its sender, for both kinds.
//!
//! An entry of theirs has no stamp, version or seal. All of ours have stamp 0 and version 1 here, so that
//! each side can write the other's entry from index, term, kind and payload; an empty normal entry is a
//! no-op. A change of the members that touches voters is theirs with an implicit transition (joint, and
//! left by the leader by itself); one that adds learners is theirs with none. No voter becomes a learner
//! directly, and nobody removes a learner: there the encodings differ.

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{
    self as pb, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
    EntryType, MessageType,
};
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{DiskId, GroupId, Incarnation, LogIndex, NodeId, Term};
use rrq::base::units::GroupTime;
use rrq::raft::membership::{Change, Membership, Step};
use rrq::raft::message::{Body, Message, Position, Voter, Why};
use std::collections::BTreeSet;

/// The group.
pub const GROUP: GroupId = GroupId(7);
/// Its life.
pub const LIFE: Incarnation = Incarnation(1);

/// Member `number`.
#[must_use]
pub fn voter(number: u32) -> Voter {
    Voter {
        node: NodeId(number),
        disk: DiskId([number as u8; 16]),
    }
}

/// Our member of their number.
#[must_use]
pub fn voter_of(id: u64) -> Voter {
    voter(u32::try_from(id).expect("members have small numbers"))
}

/// Their number of our member.
#[must_use]
pub fn id_of(voter: Voter) -> u64 {
    u64::from(voter.node.0)
}

/// A message in the language of its receiver.
#[derive(Clone, Debug)]
pub enum Wire {
    /// To one of ours.
    Ours(Message),
    /// To one of theirs.
    Theirs(Box<pb::Message>),
}

impl Wire {
    /// Who sent it.
    #[must_use]
    pub fn from(&self) -> u32 {
        match self {
            Self::Ours(message) => message.from.node.0,
            Self::Theirs(message) => voter_of(message.from).node.0,
        }
    }

    /// Who gets it.
    #[must_use]
    pub fn to(&self) -> u32 {
        match self {
            Self::Ours(message) => message.to.node.0,
            Self::Theirs(message) => voter_of(message.to).node.0,
        }
    }
}

/// What a sender knows beside its message.
pub struct Sender<'a> {
    /// Its term.
    pub term: u64,
    /// How often it has started.
    pub starts: u32,
    /// Its newest checkpoint, and the members as of it.
    pub checkpoint: (Position, &'a Membership),
}

/// The [`Message::life`] of a member that has started so often.
#[must_use]
pub fn life(starts: u32) -> u64 {
    u64::from(starts) << 32
}

/// Our message in their words.
///
/// # Panics
/// If it is of a kind that is switched off here.
#[must_use]
pub fn to_theirs(message: Message, sender: &Sender<'_>) -> pb::Message {
    let mut out = pb::Message {
        from: id_of(message.from),
        to: id_of(message.to),
        term: message.term.0,
        ..pb::Message::default()
    };
    let kind = match message.body {
        Body::Canvass {
            pre,
            last,
            commit,
            why,
        } => {
            (out.index, out.log_term) = (last.0.0, last.1.0);
            (out.commit, out.commit_term) = (commit.0.0, commit.1.0);
            if why == Why::Transfer {
                out.context = raft::CAMPAIGN_TRANSFER.into();
            }
            if pre {
                MessageType::MsgRequestPreVote
            } else {
                MessageType::MsgRequestVote
            }
        }
        Body::Ballot {
            pre,
            granted,
            commit,
        } => {
            out.reject = !granted;
            (out.commit, out.commit_term) = (commit.0.0, commit.1.0);
            if pre {
                MessageType::MsgRequestPreVoteResponse
            } else {
                MessageType::MsgRequestVoteResponse
            }
        }
        Body::Append {
            prev,
            entries,
            commit,
        } => {
            (out.index, out.log_term) = (prev.0.0, prev.1.0);
            let entries: Vec<pb::Entry> = entries.iter().map(entry_to_theirs).collect();
            out.set_entries(entries.into());
            out.commit = commit.0;
            MessageType::MsgAppend
        }
        Body::Appended { matched } => {
            out.index = matched.0;
            MessageType::MsgAppendResponse
        }
        Body::Refused { prev, hint } => {
            out.reject = true;
            out.index = prev.0;
            (out.reject_hint, out.log_term) = (hint.0.0, hint.1.0);
            MessageType::MsgAppendResponse
        }
        Body::Heartbeat { commit, round, .. } => {
            out.commit = commit.0;
            out.context = context_of(round);
            MessageType::MsgHeartbeat
        }
        Body::Beat { round } => {
            out.context = context_of(round);
            MessageType::MsgHeartbeatResponse
        }
        Body::Offer { .. } => {
            let (base, members) = sender.checkpoint;
            out.set_snapshot(snapshot(base, members));
            MessageType::MsgSnapshot
        }
        Body::TimeoutNow => MessageType::MsgTimeoutNow,
        Body::ReadIndex { id } => {
            out.set_entries(vec![numbered(id)].into());
            MessageType::MsgReadIndex
        }
        Body::ReadAt { id, index } => {
            out.index = index.0;
            out.set_entries(vec![numbered(id)].into());
            MessageType::MsgReadIndexResp
        }
        body @ (Body::Checkpoint(_)
        | Body::QueueChange(_)
        | Body::AnchorGet { .. }
        | Body::Anchor { .. }
        | Body::EntryGet { .. }
        | Body::EntryGot { .. }
        | Body::EntryBase { .. }) => panic!("{body:?} is switched off in mixed clusters"),
    };
    out.set_msg_type(kind);
    out
}

/// Their message in our words.
///
/// # Panics
/// If it is of a kind that is switched off here.
#[must_use]
pub fn to_ours(message: pb::Message, sender: &Sender<'_>) -> Message {
    let pre = matches!(
        message.get_msg_type(),
        MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse
    );
    let commit = (LogIndex(message.commit), Term(message.commit_term));
    let at = (LogIndex(message.index), Term(message.log_term));
    let body = match message.get_msg_type() {
        MessageType::MsgRequestPreVote | MessageType::MsgRequestVote => Body::Canvass {
            pre,
            last: at,
            commit,
            why: if message.context == raft::CAMPAIGN_TRANSFER {
                Why::Transfer
            } else {
                Why::Silence
            },
        },
        MessageType::MsgRequestPreVoteResponse | MessageType::MsgRequestVoteResponse => {
            Body::Ballot {
                pre,
                granted: !message.reject,
                commit,
            }
        }
        MessageType::MsgAppend => Body::Append {
            prev: at,
            entries: message.entries.iter().map(entry_to_ours).collect(),
            commit: commit.0,
        },
        MessageType::MsgAppendResponse if message.reject => Body::Refused {
            prev: at.0,
            hint: (LogIndex(message.reject_hint), Term(message.log_term)),
        },
        MessageType::MsgAppendResponse => Body::Appended { matched: at.0 },
        MessageType::MsgHeartbeat => Body::Heartbeat {
            commit: commit.0,
            round: number_of(&message.context),
            quiet: false,
            heir: false,
        },
        MessageType::MsgHeartbeatResponse => Body::Beat {
            round: number_of(&message.context),
        },
        MessageType::MsgSnapshot => {
            let base = message.get_snapshot().get_metadata();
            Body::Offer {
                base: (LogIndex(base.index), Term(base.term)),
            }
        }
        MessageType::MsgTimeoutNow => Body::TimeoutNow,
        MessageType::MsgReadIndex => Body::ReadIndex {
            id: number_of(&message.entries[0].data),
        },
        MessageType::MsgReadIndexResp => Body::ReadAt {
            id: number_of(&message.entries[0].data),
            index: at.0,
        },
        kind => panic!("{kind:?} is switched off in mixed clusters"),
    };
    Message {
        from: voter_of(message.from),
        to: voter_of(message.to),
        group: GROUP,
        incarnation: LIFE,
        term: Term(if message.term == 0 {
            sender.term
        } else {
            message.term
        }),
        life: life(sender.starts),
        recovering: false,
        body,
    }
}

fn context_of(round: u64) -> Bytes {
    if round == 0 {
        return Bytes::new();
    }
    Bytes::copy_from_slice(&round.to_le_bytes())
}

/// The number in a context; 0 in none.
#[must_use]
pub fn number_of(context: &[u8]) -> u64 {
    context.try_into().map_or(0, u64::from_le_bytes)
}

fn numbered(id: u64) -> pb::Entry {
    pb::Entry {
        data: Bytes::copy_from_slice(&id.to_le_bytes()),
        ..pb::Entry::default()
    }
}

/// Their checkpoint that is cut at `base`.
#[must_use]
pub fn snapshot(base: Position, members: &Membership) -> pb::Snapshot {
    let mut snapshot = pb::Snapshot::default();
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (base.0.0, base.1.0);
    metadata.set_conf_state(conf_state(members));
    snapshot
}

/// Our members in their words.
#[must_use]
pub fn conf_state(members: &Membership) -> ConfState {
    let ids = |members: &BTreeSet<Voter>| members.iter().map(|it| id_of(*it)).collect();
    ConfState {
        voters: ids(members.voters()),
        learners: ids(members.learners()),
        voters_outgoing: ids(members.outgoing()),
        auto_leave: members.is_joint(),
        ..ConfState::default()
    }
}

/// Their members in our words. `learners_next` is empty, see the head.
///
/// # Panics
/// If a voter is to become a learner.
#[must_use]
pub fn members_of(state: &ConfState) -> Membership {
    assert!(state.learners_next.is_empty(), "{state:?}");
    let first = if state.voters_outgoing.is_empty() {
        &state.voters
    } else {
        &state.voters_outgoing
    };
    let mut members = Membership::of_voters(first.iter().map(|id| voter_of(*id)));
    let learners = state
        .learners
        .iter()
        .map(|id| Step::AddLearner(voter_of(*id)));
    let learners: Vec<Step> = learners.collect();
    if !learners.is_empty() {
        let change = Change::Enter(learners);
        members = members.changed(&change).expect("learners fit");
    }
    if !state.voters_outgoing.is_empty() {
        let (new, old) = (&state.voters, &state.voters_outgoing);
        let added = new.iter().filter(|id| !old.contains(id));
        let removed = old.iter().filter(|id| !new.contains(id));
        let added = added.map(|id| Step::AddVoter(voter_of(*id)));
        let removed = removed.map(|id| Step::Remove(voter_of(*id)));
        let change = Change::Enter(added.chain(removed).collect());
        members = members.changed(&change).expect("voters fit");
    }
    members
}

/// Our entry in their words.
#[must_use]
pub fn entry_to_theirs(entry: &Entry) -> pb::Entry {
    let mut out = pb::Entry::default();
    (out.index, out.term) = (entry.index.0, entry.term.0);
    match entry.kind {
        EntryKind::Data => out.data = entry.payload.clone(),
        EntryKind::Noop => {}
        EntryKind::Conf => {
            out.set_entry_type(EntryType::EntryConfChangeV2);
            let change = Change::decode(&entry.payload).expect("the harness proposed it");
            out.data = change_to_theirs(&change);
        }
        kind => panic!("{kind:?} entries are not proposed here"),
    }
    out
}

/// Their entry in our words.
#[must_use]
pub fn entry_to_ours(entry: &pb::Entry) -> Entry {
    let (kind, payload) = match entry.get_entry_type() {
        EntryType::EntryNormal if entry.data.is_empty() => (EntryKind::Noop, Bytes::new()),
        EntryType::EntryNormal => (EntryKind::Data, entry.data.clone()),
        EntryType::EntryConfChangeV2 => (EntryKind::Conf, change_to_ours(&entry.data).encode()),
        EntryType::EntryConfChange => panic!("changes have version 2 here"),
    };
    Entry {
        term: Term(entry.term),
        index: LogIndex(entry.index),
        time: GroupTime(0),
        kind,
        machine_version: 1,
        flags: 0,
        crc: 0,
        payload,
    }
    .sealed(GROUP, LIFE)
}

/// Our steps as their change.
#[must_use]
pub fn conf_change(steps: &[Step]) -> ConfChangeV2 {
    let mut out = ConfChangeV2::default();
    let is_learner = |step: &Step| matches!(step, Step::AddLearner(_));
    if !steps.iter().all(is_learner) {
        out.set_transition(ConfChangeTransition::Implicit);
    }
    let changes = steps.iter().map(|step| {
        let (kind, member) = match *step {
            Step::AddVoter(member) => (ConfChangeType::AddNode, member),
            Step::AddLearner(member) => (ConfChangeType::AddLearnerNode, member),
            Step::Remove(member) => (ConfChangeType::RemoveNode, member),
            Step::ReplaceDisk { .. } => panic!("no disk is replaced here"),
        };
        let mut change = ConfChangeSingle {
            node_id: id_of(member),
            ..ConfChangeSingle::default()
        };
        change.set_change_type(kind);
        change
    });
    out.set_changes(changes.collect::<Vec<_>>().into());
    out
}

fn change_to_theirs(change: &Change) -> Bytes {
    match change {
        Change::Leave => Bytes::new(),
        Change::Enter(steps) => {
            let bytes = conf_change(steps).write_to_bytes();
            bytes.expect("it has no required fields").into()
        }
    }
}

fn change_to_ours(data: &[u8]) -> Change {
    if data.is_empty() {
        return Change::Leave;
    }
    let change = ConfChangeV2::parse_from_bytes(data).expect("the harness proposed it");
    let steps = change.changes.iter().map(|single| {
        let member = voter_of(single.node_id);
        match single.get_change_type() {
            ConfChangeType::AddNode => Step::AddVoter(member),
            ConfChangeType::AddLearnerNode => Step::AddLearner(member),
            ConfChangeType::RemoveNode => Step::Remove(member),
        }
    });
    Change::Enter(steps.collect())
}
