//! What a proposal takes from the allocator: nothing beside its payload, on the leader and on a follower,
//! once their lists have grown.
#![cfg(feature = "engine")]

#[path = "fuzz_kit/memory.rs"]
mod memory;

use bytes::Bytes;
use memory::calls;
use rrq::base::entry::EntryKind;
use rrq::base::ids::{DiskId, GroupId, Incarnation, LogIndex, NodeId, Term};
use rrq::base::units::GroupTime;
use rrq::raft::log::RaftLog;
use rrq::raft::membership::Membership;
use rrq::raft::message::{Body, Message, Voter, Why};
use rrq::raft::node::{Proposal, RaftConfig, RaftNode};
use rrq::raft::ready::{HardState, Ready};

const LIFE: Incarnation = Incarnation(1);

fn voter(number: u32) -> Voter {
    Voter {
        node: NodeId(number),
        disk: DiskId([number as u8; 16]),
    }
}

fn start(me: u32) -> RaftNode {
    let members = Membership::of_voters((1..=3).map(voter));
    let config = RaftConfig::new(GroupId(1), LIFE, voter(me), members);
    let log = RaftLog::new((LogIndex(0), Term(0)), Vec::new());
    RaftNode::new(config, HardState::default(), log, GroupTime(0))
}

/// All that was handed out is durable; what is committed is applied and forgotten.
fn write(node: &mut RaftNode) {
    let (index, term) = node.log().last();
    node.synced(LIFE, index, term);
    while node.next_committed().is_some() {
        node.applied();
    }
    let applied = node.log().applied();
    node.log_mut().compact(applied);
}

fn deliver(messages: &mut Vec<Message>, node: &mut RaftNode, to: u32) {
    messages.retain(|message| {
        if message.to == voter(to) {
            node.step(message.clone()).expect("it makes sense");
        }
        false
    });
}

#[test]
fn a_proposal_takes_nothing_from_the_allocator_but_its_payload() {
    let (mut leader, mut follower) = (start(1), start(2));
    let (mut ready, mut answers) = (Ready::default(), Ready::default());
    leader.campaign(Why::Transfer);
    leader.take_ready(&mut ready);
    let ballot = Message {
        from: voter(2),
        to: voter(1),
        group: GroupId(1),
        incarnation: LIFE,
        term: leader.term(),
        life: 1 << 32,
        recovering: false,
        body: Body::Ballot {
            pre: false,
            granted: true,
            commit: (LogIndex(0), Term(0)),
        },
    };
    leader.step(ballot).expect("it was asked for");
    let payload = Bytes::from_static(b"the entry itself is not counted");
    let mut taken = 0;
    for nth in 0..200 {
        let before = calls();
        if nth > 0 {
            let (kind, time, payload) = (EntryKind::Data, GroupTime(1), payload.clone());
            leader
                .propose(Proposal {
                    kind,
                    time,
                    payload,
                })
                .expect("it leads");
        }
        leader.take_ready(&mut ready);
        write(&mut leader);
        deliver(&mut ready.messages, &mut follower, 2);
        follower.take_ready(&mut answers);
        write(&mut follower);
        deliver(&mut answers.promises, &mut leader, 1);
        write(&mut leader);
        // Lists have grown by then.
        if nth >= 100 {
            taken += calls() - before;
        }
    }
    assert_eq!(leader.log().committed(), LogIndex(200));
    assert!(follower.log().committed() >= LogIndex(199));
    assert_eq!(taken, 0, "a hundred proposals on a leader and a follower");
}
