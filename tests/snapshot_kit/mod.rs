//! Checkpoint files that a test builds by itself, piece by piece.

use rrq::base::checksum::Hash128;
use rrq::base::ids::{ClusterId, DiskId, GroupId, Incarnation, LogIndex, NodeId, ShardId, Term};
use rrq::base::members::Member;
use rrq::base::units::GroupTime;
use rrq::snapshot::builder::RunBuilder;
use rrq::snapshot::layout::{
    Branch, FileHeader, FileKind, GroupMeta, Node, Owner, PageName, Place, SUMMARY_BYTES, Voter,
    file_number,
};

/// Whose they are.
pub(crate) const OWNER: Owner = Owner {
    cluster: ClusterId([0xc1; 16]),
    disk: DiskId([0xd1; 16]),
};

/// A page or a node below another: its number, its hash, and where it is.
pub(crate) type Below = (u64, Hash128, Place);

/// The header of the n-th file of shard 0.
pub(crate) fn header(kind: FileKind, counter: u32) -> FileHeader {
    FileHeader {
        kind,
        owner: OWNER,
        shard: ShardId(0),
        file: file_number(1, ShardId(0), counter).expect("a small start number"),
    }
}

/// What the root of a group tells of it, as of an index.
pub(crate) fn meta(group: GroupId, index: u64) -> GroupMeta {
    GroupMeta {
        group,
        incarnation: Incarnation(1),
        index: LogIndex(index),
        term: Term(2),
        time: GroupTime(3),
        machine_version: 1,
        wall_offset_ms: 1_700_000_000_000,
        members: vec![Member::voting(Voter {
            node: NodeId(1),
            disk: OWNER.disk,
        })],
    }
}

/// Writes the nodes of a level above all that is below them, which ascends.
pub(crate) fn add_nodes(
    run: &mut RunBuilder,
    group: GroupId,
    (level, below): (u8, &[Below]),
    name: impl Fn(u64) -> PageName,
) -> Vec<Below> {
    let nodes = below.chunk_by(|one, next| one.0 >> 6 == next.0 >> 6);
    let nodes = nodes.map(|branches| {
        let number = branches[0].0 >> 6;
        let branches = branches.iter().map(|(number, hash, place)| Branch {
            slot: (number % 64) as u8,
            summary: [7; SUMMARY_BYTES],
            hash: *hash,
            place: *place,
        });
        let node = Node {
            name: name(number),
            level,
            branches: branches.collect(),
        };
        let (hash, place) = run.add_node(group, &node).expect("small");
        (number, hash, place)
    });
    nodes.collect()
}
