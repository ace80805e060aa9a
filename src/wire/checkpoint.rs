//! A checkpoint on its way to another node <-> a stream of bytes, which is cut into parts anywhere.
//!
//! Each item stands behind its length: first the head and as many names as it tells, then what of the state
//! is wanted, in the order in which it is asked for: nodes, and pages, each before the bodies of its jobs that
//! are wanted. Pages, nodes and bodies are as they lie on disk, so that what checks a checkpoint there checks
//! it here. What is refused here is what cannot be an item; whether the items make up a state is up to the
//! job machine.

use crate::base::checksum::Hash128;
use crate::base::ids::{DiskId, LogIndex, NodeId, Partition, QueueUid, Term};
use crate::base::limits::{
    CHECKPOINT_ITEM_BYTES_MAX, CHECKPOINT_NAMES_MAX, INDEX_MAX, LEAF_JOBS, MEMBERS_MAX, TERM_MAX,
};
use crate::base::members::{Member, MemberRole};
use crate::base::units::GroupTime;
use crate::queue::view::{PageKey, PageKind};
use crate::queue::{NamedTree, SummaryBytes, Wanted};
use crate::raft::message::{PageWanted, Voter};
use crate::wire::bounds::check_range;
use crate::wire::command::u16_from_pb;
use crate::wire::error::{WireError, malformed};
use crate::wire::fields::check_fields;
use crate::wire::generated_peer as pb;
use bytes::{Buf, Bytes, BytesMut};
use pb::checkpoint_item::{self as ci, Item as PbItem};
use prost::Message as _;
use prost::encoding::decode_varint;

/// The fields of an item: a head has the most, with four for each member.
const FIELDS_MAX: usize = 8 + 4 * MEMBERS_MAX;
/// Item, head or page or body.
const LEVELS_COUNTED: u32 = 2;
/// Levels of a tree: page numbers have at most 60 bits.
const LEVELS_MAX: u64 = 10;
/// A length takes no more bytes than this.
const LENGTH_BYTES_MAX: usize = 5;

/// The group at the index of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointHead {
    /// The last entry that is in it.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// The group's time there.
    pub time: GroupTime,
    /// The version of the job machine in force there.
    pub machine_version: u16,
    /// The group's wall offset there, in milliseconds.
    pub wall_offset_ms: i64,
    /// The members as of there, ascending.
    pub members: Vec<Member>,
    /// How many names follow.
    pub names: u32,
    /// The hash of the root of a run file with this state.
    pub root: Hash128,
}

/// An item of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointItem {
    /// The first.
    Head(CheckpointHead),
    /// A page of which a group has few, and the hash of its bytes.
    Name(PageKey, Hash128),
    /// A tree of the others.
    Tree(NamedTree),
    /// The canonical part of a node, as in a run file.
    Node(Bytes),
    /// A page, as in a run file.
    Page(PageKey, Bytes),
    /// The body of the job at a slot of the page before it, as in a payload file.
    Body(u8, Bytes),
}

/// Appends an item.
pub fn encode_item(item: &CheckpointItem, out: &mut BytesMut) {
    let item = match item {
        CheckpointItem::Head(head) => PbItem::Head(ci::Head {
            index: head.index.0,
            term: head.term.0,
            time_ms: head.time.0,
            machine_version: head.machine_version.into(),
            wall_offset_ms: head.wall_offset_ms,
            members: head.members.iter().map(member_to_pb).collect(),
            names: head.names,
            root: Bytes::copy_from_slice(&head.root.0),
        }),
        CheckpointItem::Name(key, hash) => PbItem::Name(ci::Name {
            at: Some(place_to_pb(*key, 0)),
            hash: Bytes::copy_from_slice(&hash.0),
            summary: Bytes::new(),
        }),
        CheckpointItem::Tree(tree) => PbItem::Name(ci::Name {
            at: Some(place_to_pb(tree.key, tree.level)),
            hash: Bytes::copy_from_slice(&tree.hash.0),
            summary: Bytes::copy_from_slice(&tree.summary),
        }),
        CheckpointItem::Node(bytes) => PbItem::Node(ci::Node {
            bytes: bytes.clone(),
        }),
        CheckpointItem::Page(key, bytes) => PbItem::Page(ci::Page {
            kind: key.kind as u32,
            queue: key.queue.to_u64(),
            partition: key.partition.0.into(),
            number: key.number,
            bytes: bytes.clone(),
        }),
        CheckpointItem::Body(slot, bytes) => PbItem::Body(ci::Body {
            bytes: bytes.clone(),
            slot: (*slot).into(),
        }),
    };
    let item = pb::CheckpointItem { item: Some(item) };
    item.encode_length_delimited(out)
        .expect("a buffer that grows takes every item");
}

fn place_to_pb(key: PageKey, level: u8) -> pb::PagePlace {
    pb::PagePlace {
        kind: key.kind as u32,
        queue: key.queue.to_u64(),
        partition: key.partition.0.into(),
        number: key.number,
        level: level.into(),
    }
}

/// What is wanted of a checkpoint, as its asker says it.
#[must_use]
pub fn page_wanted(wanted: &Wanted) -> PageWanted {
    let key = wanted.key;
    PageWanted {
        kind: key.kind as u8,
        level: wanted.level,
        queue: key.queue,
        partition: key.partition,
        number: key.number,
        held: wanted.held,
    }
}

/// What an asker wants; `None` if there are no such pages.
#[must_use]
pub fn wanted(page: &PageWanted) -> Option<Wanted> {
    let key = PageKey {
        kind: PageKind::from_u8(page.kind)?,
        queue: page.queue,
        partition: page.partition,
        number: page.number,
    };
    Some(Wanted {
        key,
        level: page.level,
        held: page.held,
    })
}

fn member_to_pb(member: &Member) -> ci::Member {
    ci::Member {
        node: member.voter.node.0,
        disk: Bytes::copy_from_slice(&member.voter.disk.0),
        role: member.role as u32,
    }
}

/// Puts items together again from the pieces of a stream.
#[derive(Debug, Default)]
pub struct ItemDecoder {
    buffer: BytesMut,
}

impl ItemDecoder {
    /// The next piece.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next item; `None` if it is not all here.
    ///
    /// # Errors
    /// [`WireError`] if the bytes are no item: nobody knows where the next one starts.
    pub fn next_item(&mut self) -> Result<Option<CheckpointItem>, WireError> {
        let length_bytes = self.buffer.len().min(LENGTH_BYTES_MAX);
        let mut length = &self.buffer[..length_bytes];
        if length_bytes < LENGTH_BYTES_MAX && length.iter().all(|byte| *byte >= 0x80) {
            return Ok(None);
        }
        let len = decode_varint(&mut length).map_err(malformed("the length of an item"))?;
        let max = CHECKPOINT_ITEM_BYTES_MAX as u64;
        check_range("the length of an item", len, 1, max)?;
        let len = usize::try_from(len).expect("it was just compared");
        let length_bytes = length_bytes - length.len();
        if self.buffer.len() - length_bytes < len {
            return Ok(None);
        }
        self.buffer.advance(length_bytes);
        let bytes = self.buffer.split_to(len).freeze();
        check_fields("an item, in fields,", &bytes, LEVELS_COUNTED, FIELDS_MAX)?;
        let item = pb::CheckpointItem::decode(bytes).map_err(malformed("an item"))?;
        item_from_pb(item).map(Some)
    }

    /// Whether no piece of an item is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

fn item_from_pb(item: pb::CheckpointItem) -> Result<CheckpointItem, WireError> {
    let item = item.item.ok_or(WireError::Missing("an item"))?;
    Ok(match item {
        PbItem::Head(head) => CheckpointItem::Head(head_from_pb(head)?),
        PbItem::Name(name) => name_from_pb(name)?,
        PbItem::Node(node) => CheckpointItem::Node(node.bytes),
        PbItem::Page(page) => {
            let place = (page.kind, page.queue, page.partition, page.number);
            CheckpointItem::Page(page_key(place)?, page.bytes)
        }
        PbItem::Body(body) => {
            check_range("the slot of a body", body.slot.into(), 0, LEAF_JOBS - 1)?;
            CheckpointItem::Body(body.slot as u8, body.bytes)
        }
    })
}

fn page_key((kind, queue, partition, number): (u32, u64, u32, u64)) -> Result<PageKey, WireError> {
    let kind = u8::try_from(kind).ok().and_then(PageKind::from_u8);
    let place = (kind, QueueUid::from_u64(queue), u8::try_from(partition));
    let (Some(kind), Some(queue), Ok(partition)) = place else {
        return Err(WireError::Contradiction("the key of a page cannot be"));
    };
    Ok(PageKey {
        kind,
        queue,
        partition: Partition(partition),
        number,
    })
}

fn name_from_pb(name: ci::Name) -> Result<CheckpointItem, WireError> {
    let at = name.at.ok_or(WireError::Missing("the place of a name"))?;
    let key = page_key((at.kind, at.queue, at.partition, at.number))?;
    let hash = hash_from_pb("the hash of a name", &name.hash)?;
    if at.level == 0 && name.summary.is_empty() {
        return Ok(CheckpointItem::Name(key, hash));
    }
    let summary: SummaryBytes = name.summary[..]
        .try_into()
        .map_err(|_| WireError::BadLength {
            field: "what is in a tree",
            got: name.summary.len(),
            min: size_of::<SummaryBytes>(),
            max: size_of::<SummaryBytes>(),
        })?;
    check_range("the level of a tree", at.level.into(), 1, LEVELS_MAX)?;
    let highest = (1 << (6 * (LEVELS_MAX - u64::from(at.level)))) - 1;
    check_range("the number of a node", key.number, 0, highest)?;
    Ok(CheckpointItem::Tree(NamedTree {
        key,
        level: at.level as u8,
        summary,
        hash,
    }))
}

fn hash_from_pb(field: &'static str, bytes: &Bytes) -> Result<Hash128, WireError> {
    let hash = bytes[..].try_into().map(Hash128);
    hash.map_err(|_| WireError::BadLength {
        field,
        got: bytes.len(),
        min: 16,
        max: 16,
    })
}

fn head_from_pb(head: ci::Head) -> Result<CheckpointHead, WireError> {
    check_range("the index of a checkpoint", head.index, 1, INDEX_MAX.0)?;
    check_range("the term of a checkpoint", head.term, 1, TERM_MAX.0)?;
    let names_max = CHECKPOINT_NAMES_MAX as u64;
    check_range("the names of a checkpoint", head.names.into(), 1, names_max)?;
    let count = head.members.len() as u64;
    check_range("the members of a checkpoint", count, 1, MEMBERS_MAX as u64)?;
    let members = head.members.into_iter().map(|member| {
        let disk = member.disk[..].try_into().map(DiskId);
        let disk = disk.map_err(|_| WireError::BadLength {
            field: "the id of a disk",
            got: member.disk.len(),
            min: 16,
            max: 16,
        })?;
        let node = NodeId(member.node);
        let role = MemberRole::from_u32(member.role);
        let role = role.ok_or(WireError::Contradiction(
            "a member has a role that is known",
        ))?;
        let voter = Voter { node, disk };
        Ok(Member { voter, role })
    });
    let members = members.collect::<Result<Vec<_>, WireError>>()?;
    if !members.is_sorted_by(|one, next| one.voter < next.voter) {
        return Err(WireError::Contradiction(
            "the members of a checkpoint ascend by node and disk",
        ));
    }
    Ok(CheckpointHead {
        index: LogIndex(head.index),
        term: Term(head.term),
        time: GroupTime(head.time_ms),
        machine_version: u16_from_pb("machine_version", head.machine_version)?,
        wall_offset_ms: head.wall_offset_ms,
        members,
        names: head.names,
        root: hash_from_pb("the hash of a checkpoint", &head.root)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::GroupId;
    use crate::base::prng::Prng;

    fn items() -> Vec<CheckpointItem> {
        let voter = |node: u32| Voter {
            node: NodeId(node),
            disk: DiskId([node as u8; 16]),
        };
        let queue = QueueUid::new(GroupId(7), 3).expect("a small counter");
        let key = PageKey {
            kind: PageKind::Leaf,
            queue,
            partition: Partition(2),
            number: 9,
        };
        vec![
            CheckpointItem::Head(CheckpointHead {
                index: LogIndex(100),
                term: Term(5),
                time: GroupTime(77),
                machine_version: 2,
                wall_offset_ms: -3,
                members: (1..=3).map(voter).map(Member::voting).collect(),
                names: 2,
                root: Hash128([7; 16]),
            }),
            CheckpointItem::Name(key, Hash128([8; 16])),
            CheckpointItem::Tree(NamedTree {
                key,
                level: 8,
                summary: [3; size_of::<SummaryBytes>()],
                hash: Hash128([9; 16]),
            }),
            CheckpointItem::Node(Bytes::from(vec![4; 160])),
            CheckpointItem::Page(key, Bytes::from(vec![1; 300])),
            CheckpointItem::Page(key, Bytes::new()),
            CheckpointItem::Body(63, Bytes::from(vec![2; 70_000])),
        ]
    }

    fn stream() -> BytesMut {
        let mut out = BytesMut::new();
        for item in items() {
            encode_item(&item, &mut out);
        }
        out
    }

    #[test]
    fn pieces_of_any_size_yield_the_same_items() {
        for size in [1, 2, 3, 7, 100, 10_000, 1 << 20] {
            let mut decoder = ItemDecoder::default();
            let mut read = Vec::new();
            for piece in stream().chunks(size) {
                decoder.push(piece);
                while let Some(item) = decoder.next_item().expect("they are items") {
                    read.push(item);
                }
            }
            assert_eq!(read, items(), "pieces of {size} bytes");
            assert!(decoder.is_empty());
        }
    }

    #[test]
    fn what_is_no_item_is_refused() {
        let mut too_long = BytesMut::new();
        prost::encoding::encode_varint(1 << 30, &mut too_long);
        let head = |change: fn(&mut CheckpointHead)| {
            let mut head = match items().remove(0) {
                CheckpointItem::Head(head) => head,
                other => panic!("not a head: {other:?}"),
            };
            change(&mut head);
            let mut out = BytesMut::new();
            encode_item(&CheckpointItem::Head(head), &mut out);
            out
        };
        let voters = |head: &mut CheckpointHead| {
            head.members = vec![head.members[0]; 100];
        };
        for bad in [
            too_long,
            BytesMut::from(&[0xff; 10][..]),
            BytesMut::from(&[0][..]),
            BytesMut::from(&[2, 0x22, 0][..]),
            head(|head| head.index = LogIndex(u64::MAX)),
            head(|head| head.term = Term(0)),
            head(|head| head.names = 0),
            head(|head| head.names = u32::MAX),
            head(|head| head.members.clear()),
            head(|head| head.members.reverse()),
            head(voters),
        ] {
            let mut decoder = ItemDecoder::default();
            decoder.push(&bad);
            assert!(decoder.next_item().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn damaged_streams_never_panic() {
        let mut prng = Prng::new(1);
        for _ in 0..3000 {
            let mut bytes = stream();
            bytes.truncate(600);
            for _ in 0..1 + prng.below(4) {
                let at = prng.below(600) as usize;
                bytes[at] = prng.below(256) as u8;
            }
            let mut decoder = ItemDecoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_item() {}
        }
    }
}
