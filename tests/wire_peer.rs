//! Messages between nodes: what is written is read again, an entry is carried as its leader sealed it,
//! and what is bad has a name and takes nothing else with it.

use bytes::{Bytes, BytesMut};
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{ClusterId, DiskId, GroupId, Incarnation, LogIndex, NodeId, Term};
use rrq::base::limits::{
    APPEND_BYTES_MAX, PEER_FRAME_BYTES_FULL, PEER_FRAME_BYTES_MAX, STARTS_END,
};
use rrq::base::units::{GroupTime, Lsn, WallTime};
use rrq::raft::log::RaftLog;
use rrq::raft::message::{Body, Message, Voter};
use rrq::wire::WireError;
use rrq::wire::frame::{Frame, FrameDecoder, FrameKind, encode_frame};
use rrq::wire::peer::{
    Durable, Link, NodeBeat, PEER_PROTOCOL_VERSION, PeerHello, decode_messages, decode_node_beat,
    decode_peer_hello, encode_messages, encode_node_beat, encode_peer_hello,
};

const GROUP: GroupId = GroupId(7);
const LIFE: Incarnation = Incarnation(2);

fn member(node: u32) -> Voter {
    Voter {
        node: NodeId(node),
        disk: DiskId([node as u8; 16]),
    }
}

fn link() -> Link {
    Link {
        from: member(2),
        start: 7,
        to: member(1),
    }
}

fn entry(index: u64, payload: &Bytes) -> Entry {
    Entry {
        term: Term(3),
        index: LogIndex(index),
        time: GroupTime(1000),
        kind: EntryKind::Data,
        machine_version: 1,
        flags: 0,
        crc: 0,
        payload: payload.clone(),
    }
    .sealed(GROUP, LIFE)
}

fn message(body: Body) -> Message {
    Message {
        from: member(2),
        to: member(1),
        group: GROUP,
        incarnation: LIFE,
        term: Term(3),
        life: 7 << 32 | 1,
        recovering: true,
        body,
    }
}

fn append(entries: Vec<Entry>) -> Message {
    message(Body::Append {
        prev: (LogIndex(0), Term(0)),
        entries: entries.into(),
        commit: LogIndex(0),
    })
}

fn frames(messages: &[Message]) -> Vec<Frame> {
    let mut out = BytesMut::new();
    encode_messages(messages, &mut out);
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(PEER_FRAME_BYTES_MAX);
    decoder.push(&out);
    std::iter::from_fn(|| decoder.next().expect("it was written here")).collect()
}

fn read(frame: &Frame) -> Vec<Result<Message, WireError>> {
    assert_eq!(frame.kind, FrameKind::GroupMessages);
    decode_messages(&frame.body, &link()).expect("a list of messages")
}

/// Whether the payloads of a message that was read lie in its frame.
fn are_slices(message: &Message, frame: &Frame) -> bool {
    let Body::Append { entries, .. } = &message.body else {
        panic!("an append was sent");
    };
    let body = frame.body.as_ptr_range();
    let mut payloads = entries.iter().map(|entry| entry.payload.as_ptr());
    payloads.all(|payload| body.contains(&payload))
}

#[test]
fn an_entry_is_carried_as_it_was_sealed_and_not_copied() {
    let sent = append(vec![entry(1, &Bytes::from(vec![7; 1000]))]);
    let frames = frames(std::slice::from_ref(&sent));
    let received = read(&frames[0]).remove(0).expect("it is sound");
    assert_eq!(received, sent);
    assert!(are_slices(&received, &frames[0]));
}

#[test]
fn entries_that_are_a_small_part_of_a_frame_do_not_keep_all_of_it() {
    let large = Bytes::from(vec![7; 10_000]);
    let small = Bytes::from_static(b"a job of another group");
    let sent = [
        append(vec![entry(1, &large)]),
        append(vec![entry(1, &small), entry(2, &small)]),
    ];
    let frames = frames(&sent);
    let received: Result<Vec<_>, _> = read(&frames[0]).into_iter().collect();
    let received = received.expect("they are sound");
    assert_eq!(received, sent);
    assert!(are_slices(&received[0], &frames[0]), "it is most of it");
    assert!(!are_slices(&received[1], &frames[0]));
}

#[test]
fn an_entry_that_is_not_what_was_sealed_is_refused_alone() {
    let mut bad = entry(1, &Bytes::from_static(b"job"));
    bad.time = GroupTime(1001);
    let messages = [append(vec![bad]), message(Body::Beat { round: 3 })];
    let received = read(&frames(&messages)[0]);
    let error = received[0].as_ref().expect_err("the seal does not fit");
    assert_eq!(error.to_string(), "an entry is not what was sealed");
    assert_eq!(received[1].as_ref(), Ok(&messages[1]));
}

#[test]
fn an_entry_of_another_group_or_life_is_not_what_was_sealed() {
    let strange = [
        entry(1, &Bytes::new()).sealed(GroupId(8), LIFE),
        entry(1, &Bytes::new()).sealed(GROUP, Incarnation(3)),
    ];
    for strange in strange {
        let received = read(&frames(&[append(vec![strange])])[0]);
        assert!(received[0].is_err());
    }
}

#[test]
fn many_messages_are_told_in_frames_of_bounded_size() {
    let payload = Bytes::from(vec![7; 100_000]);
    let messages: Vec<Message> = (1..=50)
        .map(|index| append(vec![entry(index, &payload)]))
        .collect();
    let frames = frames(&messages);
    assert!(frames.len() > 3, "5 MB in {} frames", frames.len());
    for frame in &frames {
        assert!(frame.body.len() < PEER_FRAME_BYTES_FULL + 110_000);
    }
    let received: Vec<Message> = frames
        .iter()
        .flat_map(read)
        .map(|message| message.expect("it is sound"))
        .collect();
    assert_eq!(received, messages);
}

#[test]
fn an_append_of_as_many_entries_as_can_be_fits_into_a_frame() {
    // Entries without payload, of which only their number is much.
    let entries = (1..=200_000)
        .map(|index| entry(index, &Bytes::new()))
        .collect();
    let log = RaftLog::new((LogIndex(0), Term(0)), entries);
    let largest = append(log.slice(LogIndex(1), APPEND_BYTES_MAX).into_vec());
    let frames = frames(std::slice::from_ref(&largest));
    assert!(frames[0].body.len() < PEER_FRAME_BYTES_FULL);
    assert_eq!(read(&frames[0]), [Ok(largest)]);
}

#[test]
fn what_cannot_be_a_message_has_a_name() {
    let list = |message: &[u8]| {
        let mut body = vec![0x0a, message.len() as u8];
        body.extend_from_slice(message);
        decode_messages(&body.into(), &link())
    };
    let refused = |message: &[u8]| {
        let received = list(message).expect("a list").remove(0);
        received.expect_err("no message").to_string()
    };
    assert_eq!(
        refused(&[]),
        "a message of a group holds no operation that this version knows"
    );
    // A group beyond 65535; a canvass without a position.
    assert_eq!(
        refused(&[0x08, 0x80, 0x80, 0x04, 0x62, 0]),
        "group is 65536, allowed are 0 to 65535"
    );
    assert_eq!(refused(&[0x32, 0]), "last is missing");
    // No kind of an entry.
    assert_eq!(
        refused(&[0x42, 4, 0x0a, 0, 0x12, 0]),
        "unknown value 0 of the kind of an entry"
    );
    // A change of a queue that asks nothing; one of a home group beyond 65535.
    assert_eq!(
        refused(&[0xc2, 0x01, 0]),
        "the bytes of a change is 0, allowed are 1 to 4096"
    );
    assert_eq!(
        refused(&[0xca, 0x01, 4, 0x08, 0x80, 0x80, 0x04]),
        "group is 65536, allowed are 0 to 65535"
    );
    assert!(list(&[0xff]).is_err(), "no protobuf");
}

fn hello(node: u32) -> PeerHello {
    PeerHello {
        zone: "eu-1".to_owned(),
        protocol_min: PEER_PROTOCOL_VERSION,
        protocol_max: PEER_PROTOCOL_VERSION,
        version: "0.1.0".into(),
        cluster: Some(ClusterId([9; 16])),
        node: NodeId(node),
        disk: member(node).disk,
        start: 7,
        shards: 2,
        groups: 64,
        machine_version_max: 2,
        heard: None,
        client_addresses: Vec::new(),
        nodes: Vec::new(),
        removed: false,
    }
}

#[test]
fn hellos_say_who_sends_and_who_receives() {
    assert_eq!(Link::from_hellos(&hello(2), &hello(1)), Ok(link()));
}

#[test]
fn nodes_that_must_not_talk_to_each_other_are_told_why() {
    type Change = fn(&mut PeerHello);
    let cases: [(Change, &str); 5] = [
        (
            |hello| (hello.protocol_min, hello.protocol_max) = (1, 1),
            "node 2 runs 0.1.0 and speaks versions 1 to 1 between nodes, this one 2 to 2: upgrade the \
             older node first",
        ),
        (
            |hello| hello.cluster = Some(ClusterId([8; 16])),
            "node 2 belongs to cluster 08080808080808080808080808080808, this one to \
             09090909090909090909090909090909: take it off the list of peers, or check which data \
             directory it was started with",
        ),
        (
            |hello| hello.cluster = None,
            "node 2 belongs to cluster none yet, this one to 09090909090909090909090909090909: take \
             it off the list of peers, or check which data directory it was started with",
        ),
        (
            |hello| hello.node = NodeId(1),
            "both nodes have the id 1: give one of them another node.id",
        ),
        (
            |hello| hello.groups = 128,
            "node 2 has 128 groups, this one 64: one cluster has one number of groups",
        ),
    ];
    for (change, words) in cases {
        let mut theirs = hello(2);
        change(&mut theirs);
        let refusal = Link::from_hellos(&theirs, &hello(1)).expect_err(words);
        assert_eq!(refusal.to_string(), words);
    }
}

#[test]
fn more_fields_than_a_full_frame_has_are_refused_before_there_are_values() {
    let entries = [0x12, 0].repeat(3_000_000);
    let mut append = BytesMut::new();
    encode_frame(FrameKind::GroupMessages, &mut append, |out| {
        let nested = |tag: u8, content: &[u8]| {
            let mut out = vec![tag << 3 | 2];
            prost::encoding::encode_varint(content.len() as u64, &mut out);
            out.extend_from_slice(content);
            out
        };
        out.extend_from_slice(&nested(1, &nested(8, &entries)));
    });
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(PEER_FRAME_BYTES_MAX);
    decoder.push(&append);
    let frame = decoder.next().expect("sound").expect("whole");
    let error = decode_messages(&frame.body, &link()).expect_err("too many");
    assert_eq!(
        error.to_string(),
        "messages of groups, in fields, has length 1048577, allowed are 1 to 1048576"
    );
}

/// A node goes on behind a start of its own of which it hears, and names files by it.
#[test]
fn a_start_that_no_node_can_have_is_refused_wherever_it_is_told() {
    let heard = |start| Durable {
        disk: member(1).disk,
        wal_set: 1,
        lsns: vec![Lsn(1)],
        start,
        process: 1,
    };
    let body = |encode: &dyn Fn(&mut BytesMut)| {
        let mut out = BytesMut::new();
        encode(&mut out);
        let mut decoder = FrameDecoder::default();
        decoder.push(&out);
        decoder.next().expect("sound").expect("whole").body
    };
    let told = |start: u32| {
        let own = PeerHello { start, ..hello(2) };
        let other = PeerHello {
            heard: Some(heard(start)),
            ..hello(2)
        };
        let hellos = [own, other].map(|hello| {
            let body = body(&|out| encode_peer_hello(&hello, out));
            decode_peer_hello(&body).map(drop)
        });
        let beat = NodeBeat {
            nr: 1,
            wall: WallTime(5),
            durable: heard(start),
            draining: false,
        };
        let beat = body(&|out| encode_node_beat(&beat, out));
        [hellos.to_vec(), vec![decode_node_beat(&beat).map(drop)]].concat()
    };
    assert_eq!(told(STARTS_END - 1), [Ok(()), Ok(()), Ok(())]);
    for start in [STARTS_END, u32::MAX] {
        for refused in told(start) {
            let words = format!(
                "the start of a node is {start}, allowed are 0 to {}",
                STARTS_END - 1
            );
            assert_eq!(refused.expect_err("refused").to_string(), words);
        }
    }
}

#[test]
fn what_an_older_image_says_makes_nothing_forgotten() {
    let of = |start: u32, process: u64, lsn: u64| Durable {
        disk: member(2).disk,
        wal_set: 1,
        lsns: vec![Lsn(lsn)],
        start,
        process,
    };
    let mut heard = of(5, 1, 9_000);
    // The image was taken before start 5, so that its first start is numbered 5 as well.
    heard.hear(of(5, 2, 4_000));
    assert_eq!(heard, of(5, 1, 9_000));
    heard.hear(of(4, 3, 5_000));
    assert_eq!(heard, of(5, 1, 9_000));
    // Its second start was told by hello what it lacks, and has not noted that yet.
    heard.hear(of(0, 4, 4_400));
    assert_eq!(heard, of(5, 1, 9_000), "the next start must be told, too");
    heard.hear(of(6, 4, 4_500));
    assert_eq!(heard, of(6, 4, 4_500));
    heard.hear(of(6, 4, 4_400));
    assert_eq!(heard, of(6, 4, 4_500), "what was durable stays so");
    let mut heard = of(0, 4, 4_400);
    assert!(heard.clone().told().is_empty(), "it is said again");
    heard.hear(of(6, 4, 4_500));
    assert_eq!(heard, of(6, 4, 4_500));
    assert_eq!(heard.told(), [Lsn(4_500)]);
}
