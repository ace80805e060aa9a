//! What consensus costs beside the log and the job machine: a member of groups of three, without a
//! disk and a network. Messages are values; nothing is encoded.
//!
//! - *proposal, leader*: proposed, taken, durable, accepted by both followers, applied, forgotten.
//! - *proposal, follower*: the append that brings it, and the commit mark of the one before.
//! - *heartbeat round*: a heartbeat to each follower and their answers.
//!
//! With many groups each proposal finds another group, whose state is not in the cache.

mod support;

use bytes::Bytes;
use rrq::base::entry::EntryKind;
use rrq::base::ids::{DiskId, GroupId, Incarnation, LogIndex, NodeId, Term};
use rrq::base::units::GroupTime;
use rrq::raft::log::RaftLog;
use rrq::raft::membership::Membership;
use rrq::raft::message::{Body, Message, Voter, Why};
use rrq::raft::node::{Proposal, RaftConfig, RaftNode};
use rrq::raft::ready::{HardState, Ready};
use rrq::raft::role::Role;
use std::collections::VecDeque;
use std::hint::black_box;
use support::Suite;

const LIFE: Incarnation = Incarnation(1);
const HEARTBEAT_TICKS: u32 = 1;
/// Calls on one state.
const CALLS: u64 = 20_000;

fn main() {
    let mut suite = Suite::from_args("raft_step");
    for groups in [1, 64, 1024] {
        let of = format!("{groups} groups");
        let of = of.strip_suffix('s').filter(|_| groups == 1).unwrap_or(&of);
        let leaders = |_| Node::leading(groups, false);
        suite.operation(
            &format!("proposal, leader, {of}"),
            1,
            CALLS,
            leaders,
            Node::propose,
        );
        let followers = |steps| Following::new(groups, steps);
        suite.operation(
            &format!("proposal, follower, {of}"),
            1,
            CALLS,
            followers,
            Following::follow,
        );
        suite.operation(
            &format!("heartbeat round, {of}"),
            1,
            CALLS,
            leaders,
            Node::beat,
        );
    }
    suite.finish();
}

fn voter(number: u32) -> Voter {
    Voter {
        node: NodeId(number),
        disk: DiskId([number as u8; 16]),
    }
}

fn start(group: u16, me: u32) -> RaftNode {
    let members = Membership::of_voters((1..=3).map(voter));
    let config = RaftConfig {
        heartbeat_ticks: HEARTBEAT_TICKS,
        ..RaftConfig::new(GroupId(group), LIFE, voter(me), members)
    };
    let log = RaftLog::new((LogIndex(0), Term(0)), Vec::new());
    RaftNode::new(config, HardState::default(), log, GroupTime(0))
}

/// One member of each group.
struct Node {
    groups: Vec<RaftNode>,
    turn: usize,
    ready: Ready,
    payload: Bytes,
    /// Whether appends to member 2 are kept here.
    keeps: bool,
    sent_to_2: Vec<Message>,
}

impl Node {
    /// Member 1 leads every group, and its no-ops are applied everywhere.
    fn leading(count: u16, keeps: bool) -> Self {
        let mut node = Self {
            groups: (0..count).map(|group| start(group, 1)).collect(),
            turn: 0,
            ready: Ready::default(),
            payload: vec![7; 256].into(),
            keeps,
            sent_to_2: Vec::new(),
        };
        for group in 0..node.groups.len() {
            node.groups[group].campaign(Why::Transfer);
            node.take(group);
            let ballot = Body::Ballot {
                pre: false,
                granted: true,
                commit: (LogIndex(0), Term(0)),
            };
            node.hear(group, 2, ballot);
            node.commit_last(group);
            assert_eq!(node.groups[group].role(), Role::Leader);
        }
        node
    }

    fn take(&mut self, group: usize) {
        self.groups[group].take_ready(&mut self.ready);
        black_box(&self.ready);
        if self.keeps {
            let to_2 = |message: &&Message| {
                message.to == voter(2) && matches!(message.body, Body::Append { .. })
            };
            let sent = self.ready.messages.iter().filter(to_2).cloned();
            self.sent_to_2.extend(sent);
        }
    }

    fn hear(&mut self, group: usize, from: u32, body: Body) {
        let member = &mut self.groups[group];
        let message = Message {
            from: voter(from),
            to: voter(1),
            group: GroupId(group as u16),
            incarnation: LIFE,
            term: member.term(),
            life: 1 << 32,
            recovering: false,
            body,
        };
        member.step(message).expect("it makes sense");
    }

    /// What was proposed is taken, durable here and there, applied, and forgotten.
    fn commit_last(&mut self, group: usize) {
        self.take(group);
        let member = &mut self.groups[group];
        let (index, term) = member.log().last();
        member.synced(LIFE, index, term);
        for follower in [2, 3] {
            self.hear(group, follower, Body::Appended { matched: index });
        }
        let member = &mut self.groups[group];
        assert!(member.next_committed().is_some());
        member.applied();
        member.log_mut().compact(index);
    }

    fn next(&mut self) -> usize {
        self.turn = (self.turn + 1) % self.groups.len();
        self.turn
    }

    fn propose(&mut self) {
        let group = self.next();
        let proposal = Proposal {
            kind: EntryKind::Data,
            time: GroupTime(1),
            payload: self.payload.clone(),
        };
        self.groups[group].propose(proposal).expect("it leads");
        self.commit_last(group);
    }

    fn beat(&mut self) {
        let group = self.next();
        self.groups[group].tick();
        self.take(group);
        let round = match self.ready.messages.last().map(|message| &message.body) {
            Some(Body::Heartbeat { round, .. }) => *round,
            other => panic!("no heartbeat is last: {other:?}"),
        };
        for follower in [2, 3] {
            self.hear(group, follower, Body::Beat { round });
        }
    }
}

/// Member 2 of each group, and what its leaders will send.
struct Following {
    groups: Vec<RaftNode>,
    appends: VecDeque<Message>,
    ready: Ready,
}

impl Following {
    fn new(count: u16, steps: u64) -> Self {
        let mut leaders = Node::leading(count, true);
        for _ in 0..steps {
            leaders.propose();
        }
        let mut following = Self {
            groups: (0..count).map(|group| start(group, 2)).collect(),
            appends: leaders.sent_to_2.into(),
            ready: Ready::default(),
        };
        // The no-ops come first.
        for _ in 0..count {
            following.follow();
        }
        assert_eq!(following.appends.len() as u64, steps);
        following
    }

    fn follow(&mut self) {
        let message = self.appends.pop_front().expect("one for each step");
        let member = &mut self.groups[usize::from(message.group.0)];
        member.step(message).expect("it makes sense");
        member.take_ready(&mut self.ready);
        black_box(&self.ready);
        let (index, term) = member.log().last();
        member.synced(LIFE, index, term);
        while member.next_committed().is_some() {
            member.applied();
        }
        let applied = member.log().applied();
        member.log_mut().compact(applied);
    }
}
