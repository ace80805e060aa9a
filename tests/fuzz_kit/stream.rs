//! A checkpoint on its way from another node.

use super::assert_is_told;
use super::pages::{GROUP, pages_of};
use bytes::{Bytes, BytesMut};
use rrq::base::checksum::crc32c;
use rrq::base::ids::{DiskId, JobId, LogIndex, NodeId, Term};
use rrq::base::members::Member;
use rrq::base::units::GroupTime;
use rrq::queue::check::check;
use rrq::queue::view::{BodyLocation, PageKey};
use rrq::queue::{JobQueue, PageError, StateLoader, encode_body};
use rrq::raft::message::Voter;
use rrq::wire::WireError;
use rrq::wire::checkpoint::{CheckpointHead, CheckpointItem, ItemDecoder, encode_item};
use std::collections::BTreeMap;

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
    let (mut pages, mut bodies) = (Vec::new(), BTreeMap::new());
    for item in items {
        match item {
            CheckpointItem::Head(_) => {}
            CheckpointItem::Page(key, bytes) => pages.push((key, bytes)),
            CheckpointItem::Body(job, bytes) => drop(bodies.insert(job, with_checksum(&bytes))),
        }
    }
    let stepwise = by_steps(&pages, &bodies);
    match (at_once(&pages, &bodies), stepwise) {
        (Ok(one), Ok(other)) => {
            assert_eq!(one.state_hash(), other.state_hash());
            check(&other).expect("what is loaded obeys all rules");
            is_whole
        }
        (Err(one), Err(other)) => {
            assert_eq!(one.to_string(), other.to_string());
            assert_is_told(&one);
            false
        }
        (one, other) => panic!(
            "steps change what is loaded: {:?} {:?}",
            one.err(),
            other.err()
        ),
    }
}

fn with_checksum(bytes: &[u8]) -> Bytes {
    let mut body = bytes[..bytes.len().saturating_sub(4)].to_vec();
    let crc = crc32c(&[&body]);
    body.extend_from_slice(&crc.to_le_bytes());
    body.into()
}

type Bodies = BTreeMap<JobId, Bytes>;

fn at_once(pages: &[(PageKey, Bytes)], bodies: &Bodies) -> Result<JobQueue, PageError> {
    let (file, offset, len) = (1, 4096, 1);
    let at = BodyLocation { file, offset, len };
    let mut machine = JobQueue::absent(GROUP);
    machine.load(pages, &mut |job| Some((bodies.get(&job)?.clone(), at)))?;
    Ok(machine)
}

fn by_steps(pages: &[(PageKey, Bytes)], bodies: &Bodies) -> Result<JobQueue, PageError> {
    let mut loader = StateLoader::new(GROUP, pages.to_vec())?;
    let mut steps = 0;
    while !loader.step(2, &mut |job| bodies.get(&job).cloned())? {
        steps += 1;
        assert!(steps <= pages.len(), "each step takes a page");
    }
    loader.finish()
}

/// The state of `machine` as a leader sends it.
pub(super) fn stream_of(machine: &JobQueue) -> Vec<u8> {
    let voter = |node: u32| Voter {
        node: NodeId(node),
        disk: DiskId([node as u8; 16]),
    };
    let head = CheckpointHead {
        index: LogIndex(90),
        term: Term(4),
        time: GroupTime(machine.time().0),
        machine_version: machine.version(),
        wall_offset_ms: machine.wall_offset_ms(),
        members: (1..=3).map(voter).map(Member::voting).collect(),
    };
    let pages = pages_of(machine).into_iter();
    let bodies = machine.freeze().bodies().next_bodies(usize::MAX);
    let bodies = bodies
        .into_iter()
        .map(|body| CheckpointItem::Body(body.job, encode_body(&body.body.body())));
    let mut out = BytesMut::new();
    std::iter::once(CheckpointItem::Head(head))
        .chain(pages.map(|(key, bytes)| CheckpointItem::Page(key, bytes)))
        .chain(bodies)
        .for_each(|item| encode_item(&item, &mut out));
    out.to_vec()
}
