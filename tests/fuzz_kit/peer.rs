//! What nodes say to each other: each message is taken or refused by a member, whatever it is.

use super::wire::{body_of, wire_error};
use bytes::{Bytes, BytesMut};
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{
    ClusterId, DiskId, GroupId, Incarnation, LogIndex, NodeId, Partition, QueueUid, Term,
};
use rrq::base::units::{GroupTime, Lsn, WallTime};
use rrq::raft::log::RaftLog;
use rrq::raft::membership::Membership;
use rrq::raft::message::{Body, Checkpoint, Message, PageWanted, QueueChange, Voter, Why};
use rrq::raft::node::{RaftConfig, RaftNode};
use rrq::raft::ready::{HardState, Ready};
use rrq::raft::recovering::Answer;
use rrq::wire::peer::{
    Durable, Formation, Link, NodeBeat, PEER_PROTOCOL_VERSION, PeerHello, decode_formation,
    decode_messages, decode_node_beat, decode_peer_hello, encode_formation, encode_messages,
    encode_node_beat, encode_peer_hello,
};

pub(super) fn peer_hello(body: &Bytes) -> bool {
    let hello = match decode_peer_hello(body) {
        Ok(hello) => hello,
        Err(error) => return wire_error(&error),
    };
    let again = body_of(|out| encode_peer_hello(&hello, out));
    assert_eq!(decode_peer_hello(&again), Ok(hello));
    true
}

pub(super) fn node_beat(body: &Bytes) -> bool {
    let beat = match decode_node_beat(body) {
        Ok(beat) => beat,
        Err(error) => return wire_error(&error),
    };
    let again = body_of(|out| encode_node_beat(&beat, out));
    assert_eq!(decode_node_beat(&again), Ok(beat));
    true
}

pub(super) fn formation(body: &Bytes) -> bool {
    let formation = match decode_formation(body) {
        Ok(formation) => formation,
        Err(error) => return wire_error(&error),
    };
    let again = body_of(|out| encode_formation(&formation, out));
    assert_eq!(decode_formation(&again), Ok(formation));
    true
}

fn member(node: u32) -> Voter {
    Voter {
        node: NodeId(node),
        disk: DiskId([node as u8; 16]),
    }
}

/// Whether each message is one, and there are some. A member takes or refuses whatever is.
pub(super) fn group_messages(body: &Bytes) -> bool {
    let (from, to, start) = (member(2), member(1), 7);
    let link = Link { from, start, to };
    let messages = match decode_messages(body, &link) {
        Ok(messages) => messages,
        Err(error) => return wire_error(&error),
    };
    let count = messages.len();
    let mut sound = Vec::new();
    for message in messages {
        match message {
            Ok(message) => sound.push(message),
            Err(error) => drop(wire_error(&error)),
        }
    }
    if sound.is_empty() {
        return false;
    }
    let again = body_of(|out| encode_messages(&sound, out));
    let again = decode_messages(&again, &link).expect("it was written here");
    let again: Result<Vec<_>, _> = again.into_iter().collect();
    assert_eq!(again.as_ref(), Ok(&sound));
    let mut node = follower(sound[0].group, sound[0].incarnation, to, from);
    let mut ready = Ready::default();
    for message in &sound {
        // A refusal is as good: it has a name.
        let _ = node.step(message.clone());
        node.take_ready(&mut ready);
    }
    sound.len() == count
}

/// A member of a group of two that has just started.
fn follower(group: GroupId, incarnation: Incarnation, me: Voter, other: Voter) -> RaftNode {
    let members = Membership::of_voters([me, other]);
    let config = RaftConfig::new(group, incarnation, me, members);
    let log = RaftLog::new((LogIndex(0), Term(0)), Vec::new());
    RaftNode::new(config, HardState::default(), log, GroupTime(0))
}

/// What a node may say to another, once.
pub(super) fn peer_stream() -> Vec<u8> {
    let durable = Durable {
        disk: member(1).disk,
        wal_set: 3,
        lsns: vec![Lsn(4096), Lsn(1 << 40)],
        start: 7,
        process: 1 << 40,
    };
    let hello = PeerHello {
        zone: "eu-1".to_owned(),
        protocol_min: 1,
        protocol_max: PEER_PROTOCOL_VERSION,
        version: "0.1.0".into(),
        cluster: Some(ClusterId([9; 16])),
        node: NodeId(2),
        disk: member(2).disk,
        start: 7,
        shards: 2,
        groups: 64,
        machine_version_max: 2,
        heard: Some(durable.clone()),
        client_addresses: vec!["127.0.0.2:7411".to_owned()],
        nodes: vec![(NodeId(2), "127.0.0.2:7421".to_owned())],
        removed: true,
    };
    let beat = NodeBeat {
        draining: true,
        nr: 1,
        wall: WallTime(1_800_000_000_000),
        durable,
    };
    let formation = Formation {
        cluster: ClusterId([9; 16]),
        groups: 64,
        formed_at: WallTime(1_800_000_000_000),
        founders: vec![member(1), member(2)],
        members: vec![member(1), member(2), member(3)],
    };
    let (group, incarnation) = (GroupId(7), Incarnation(1));
    let at = |index: u64, term: u64| (LogIndex(index), Term(term));
    let entry = |index: u64, kind, payload: &'static [u8]| {
        Entry {
            term: Term(1),
            index: LogIndex(index),
            time: GroupTime(1000),
            kind,
            machine_version: 1,
            flags: 0,
            crc: 0,
            payload: Bytes::from_static(payload),
        }
        .sealed(group, incarnation)
    };
    let entries = vec![
        entry(1, EntryKind::Noop, b""),
        entry(2, EntryKind::Data, b"job"),
    ];
    let answer = Answer {
        first: LogIndex(1),
        before: Some(Term(0)),
        entries: entries.clone(),
        ends: true,
    };
    let (pre, granted, why, round, id) = (true, true, Why::Transfer, 4, 5);
    let (first, commit) = (LogIndex(1), at(0, 0));
    let bodies = [
        Body::Append {
            prev: at(0, 0),
            entries: entries.into(),
            commit: LogIndex(1),
        },
        Body::Heartbeat {
            commit: LogIndex(2),
            round,
            quiet: true,
            heir: true,
        },
        Body::Appended {
            matched: LogIndex(2),
        },
        Body::Refused {
            prev: LogIndex(2),
            hint: at(1, 1),
        },
        Body::Beat { round },
        Body::Offer { base: at(9, 1) },
        Body::ReadIndex { id },
        Body::ReadAt {
            id,
            index: LogIndex(2),
        },
        Body::AnchorGet { id },
        Body::Anchor { id, at: at(3, 1) },
        Body::Canvass {
            pre,
            last: at(2, 1),
            commit,
            why,
        },
        Body::Ballot {
            pre,
            granted,
            commit,
        },
        Body::TimeoutNow,
        Body::EntryGet { first },
        Body::EntryGot { answer, commit },
        Body::EntryBase { base: at(9, 1) },
        Body::Checkpoint(Checkpoint::Get {
            id,
            above: LogIndex(2),
            next: 0,
            again: true,
            wants_from: 3,
            wants: vec![PageWanted {
                kind: 4,
                level: 1,
                queue: QueueUid::new(group, 1).expect("a small counter"),
                partition: Partition(2),
                number: 5,
                held: u64::MAX,
            }],
            done: false,
        }),
        Body::Checkpoint(Checkpoint::Part {
            id,
            number: 3,
            bytes: Bytes::from_static(b"a part"),
        }),
        Body::QueueChange(QueueChange::Ask {
            command: Bytes::from_static(b"a command"),
        }),
        Body::QueueChange(QueueChange::Done {
            home: GroupId(3),
            home_index: LogIndex(4),
        }),
    ];
    let messages = bodies.map(|body| Message {
        from: member(2),
        to: member(1),
        group,
        incarnation,
        term: Term(1),
        life: 7 << 32,
        recovering: false,
        body,
    });
    let mut out = BytesMut::new();
    encode_peer_hello(&hello, &mut out);
    encode_formation(&formation, &mut out);
    encode_node_beat(&beat, &mut out);
    encode_messages(&messages, &mut out);
    out.to_vec()
}
