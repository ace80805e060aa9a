//! A checkpoint on its way from another node.

use super::assert_is_told;
use super::pages::GROUP;
use bytes::BytesMut;
use rrq::base::checksum::Hash128;
use rrq::base::ids::{DiskId, LogIndex, NodeId, Term};
use rrq::base::members::Member;
use rrq::base::units::GroupTime;
use rrq::queue::view::{BodyLocation, PageKey, StoredPage};
use rrq::queue::{
    Answer, Difference, Found, JobQueue, NamedBranch, Names, Piece, Source, SummaryBytes, Wanted,
};
use rrq::raft::message::Voter;
use rrq::snapshot::layout::{Branch, Node, PageName, Place};
use rrq::wire::WireError;
use rrq::wire::checkpoint::{CheckpointHead, CheckpointItem, ItemDecoder, encode_item};
use std::collections::{BTreeSet, VecDeque};

/// The items of a stream, and what ended it.
fn items(bytes: &[u8], piece: usize) -> (Vec<CheckpointItem>, Option<WireError>, bool) {
    let mut decoder = ItemDecoder::default();
    let mut items = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_item() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => return (items, Some(error), false),
            }
        }
    }
    (items, None, decoder.is_empty())
}

/// Whether the stream is one of items that make up a state.
pub(super) fn stream(input: &[u8]) -> bool {
    let (items, error, is_whole) = self::items(input, input.len());
    let pieces = self::items(input, input.len() % 61 + 1);
    assert_eq!((&items, &error, is_whole), (&pieces.0, &pieces.1, pieces.2));
    if let Some(error) = &error {
        assert_is_told(error);
    }
    let mut again = BytesMut::new();
    for item in &items {
        encode_item(item, &mut again);
    }
    assert_eq!(
        self::items(&again, again.len()),
        (items.clone(), None, true)
    );
    match take(items.into()) {
        Ok(is_whole_state) => is_whole && is_whole_state,
        Err(what) => {
            assert!(!what.is_empty(), "it says what is wrong");
            false
        }
    }
}

/// A node that has nothing takes the items; whether they are a whole state.
fn take(mut items: VecDeque<CheckpointItem>) -> Result<bool, String> {
    let mut names = Names::default();
    while let Some(item) = items.pop_front() {
        match item {
            CheckpointItem::Head(_) => {}
            CheckpointItem::Name(key, hash) => names.pages.push((key, hash)),
            CheckpointItem::Tree(tree) => names.trees.push(tree),
            answer => {
                items.push_front(answer);
                break;
            }
        }
    }
    let own = JobQueue::new(GROUP, 0);
    let mut difference = Difference::new(&own.freeze(), &names, Found::default(), BTreeSet::new())?;
    let mut asked = VecDeque::new();
    while !difference.is_done() {
        // All that was asked for is answered before more is.
        if asked.is_empty() {
            difference.step(1000);
            place_all(&mut difference)?;
            asked.extend(difference.wants(1000));
        }
        let Some(item) = items.pop_front() else {
            return Ok(false);
        };
        let is_body = matches!(item, CheckpointItem::Body(..));
        match item {
            CheckpointItem::Node(bytes) => {
                let next: &Wanted = asked.front().ok_or("nothing is wanted")?;
                let name = name_of(next.key);
                let node = Node::decode_canonical((&name, next.level), &bytes);
                let node = node.map_err(|error| error.to_string())?;
                let branches = node.branches.iter();
                let branches = branches.map(|branch| (branch.slot, branch.summary, branch.hash));
                difference.take_node(Hash128::of(&bytes), branches.collect())?;
            }
            CheckpointItem::Page(_, bytes) => difference.take_page(bytes)?,
            CheckpointItem::Body(slot, bytes) => difference.take_body(slot, &bytes)?,
            other => return Err(format!("{other:?} is no answer")),
        }
        if !is_body {
            asked.pop_front();
        }
        place_all(&mut difference)?;
    }
    let (written, _) = difference.finish();
    assert_eq!(written.pages.len(), names.pages.len());
    assert_eq!(written.trees.len(), names.trees.len());
    Ok(items.is_empty())
}

fn stored(hash: Hash128, offset: u64) -> StoredPage {
    let (file, len, crc) = (1, 8, 0);
    StoredPage {
        hash,
        file,
        offset,
        len,
        crc,
    }
}

fn name_of(key: PageKey) -> PageName {
    PageName {
        kind: key.kind as u8,
        queue: key.queue.to_u64(),
        partition: key.partition.0.into(),
        number: key.number,
    }
}

fn node_bytes(key: PageKey, level: u8, branches: &[NamedBranch]) -> Vec<u8> {
    let nowhere = Place {
        file: 0,
        offset: 0,
        len: 0,
        crc: 0,
    };
    let branches = branches.iter().map(|(slot, summary, hash)| Branch {
        slot: *slot,
        summary: *summary,
        hash: *hash,
        place: nowhere,
    });
    let node = Node {
        name: name_of(key),
        level,
        branches: branches.collect(),
    };
    node.encode().0
}

fn hash_node(key: PageKey, level: u8, branches: &[(u8, SummaryBytes, StoredPage)]) -> Hash128 {
    let named = branches.iter();
    let named = named.map(|(slot, summary, stored)| (*slot, *summary, stored.hash));
    Hash128::of(&node_bytes(key, level, &named.collect::<Vec<_>>()))
}

/// The state of `machine` as a leader sends it.
pub(super) fn stream_of(machine: &JobQueue) -> Vec<u8> {
    let voter = |node: u32| Voter {
        node: NodeId(node),
        disk: DiskId([node as u8; 16]),
    };
    let mut source = Source::new(&machine.freeze());
    while !source.prepare(usize::MAX, hash_node) {}
    let names = source.names().clone();
    let head = CheckpointHead {
        index: LogIndex(90),
        term: Term(4),
        time: GroupTime(machine.time().0),
        machine_version: machine.version(),
        wall_offset_ms: machine.wall_offset_ms(),
        members: (1..=3).map(voter).map(Member::voting).collect(),
        names: u32::try_from(names.pages.len() + names.trees.len()).expect("few"),
        root: Hash128([9; 16]),
    };
    let mut out = BytesMut::new();
    let mut put = |item: &CheckpointItem| encode_item(item, &mut out);
    put(&CheckpointItem::Head(head));
    for (key, hash) in &names.pages {
        put(&CheckpointItem::Name(*key, *hash));
    }
    for tree in &names.trees {
        put(&CheckpointItem::Tree(*tree));
    }
    // As one asks who has nothing.
    let own = JobQueue::new(GROUP, 0).freeze();
    let difference = Difference::new(&own, &names, Found::default(), BTreeSet::new());
    let mut difference = difference.expect("the names are in order");
    loop {
        difference.step(1000);
        let wants = difference.wants(1000);
        if wants.is_empty() {
            break;
        }
        for wanted in wants {
            match source.answer(&wanted) {
                Answer::Node(branches) => {
                    let bytes = node_bytes(wanted.key, wanted.level, &branches);
                    let taken = difference.take_node(Hash128::of(&bytes), branches);
                    taken.expect("it was wanted");
                    put(&CheckpointItem::Node(bytes.into()));
                }
                Answer::Page(bytes, bodies) => {
                    put(&CheckpointItem::Page(wanted.key, bytes.clone()));
                    difference.take_page(bytes).expect("it was wanted");
                    place_all(&mut difference).expect("it is what was named");
                    for (slot, body) in bodies {
                        let mut bytes = Vec::new();
                        body.encode_into(&mut bytes);
                        let item = CheckpointItem::Body(slot, bytes.clone().into());
                        put(&item);
                        let taken = difference.take_body(slot, &bytes.into());
                        taken.expect("it was wanted");
                        place_all(&mut difference).expect("it is what was named");
                    }
                }
                Answer::Read(_) | Answer::Nothing => panic!("{wanted:?} is in memory"),
            }
        }
    }
    out.to_vec()
}

/// What is to be written lies somewhere.
fn place_all(difference: &mut Difference) -> Result<(), String> {
    while let Some(piece) = difference.next_piece() {
        let placed = match piece {
            Piece::Body { .. } => {
                let (file, offset, len) = (2, 8, 1);
                difference.body_placed(BodyLocation { file, offset, len });
                Ok(())
            }
            Piece::Page { bytes, .. } => difference.placed(stored(Hash128::of(&bytes), 8)),
            Piece::Node {
                key,
                level,
                branches,
            } => difference.placed(stored(hash_node(key, level, &branches), 8)),
            Piece::Read(_) | Piece::Pause => panic!("there is nothing to read"),
        };
        placed?;
    }
    Ok(())
}
