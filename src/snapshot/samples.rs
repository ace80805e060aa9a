//! Small files that the tests of this folder share.

use crate::base::checksum::Hash128;
use crate::base::ids::{
    ClusterId, DiskId, GroupId, Incarnation, JobId, LogIndex, NodeId, Partition, QueueUid, ShardId,
    Term,
};
use crate::base::members::Member;
use crate::base::units::GroupTime;
use crate::snapshot::builder::PayloadBuilder;
use crate::snapshot::layout::{
    BODY_HEAD_BYTES, BodyEntry, Branch, FileHeader, FileKind, GroupMeta, Node, Owner, PageEntry,
    PageName, PayloadUse, Place, Root, RunUse, SUMMARY_BYTES, TreeEntry, Voter,
};

pub(super) fn owner() -> Owner {
    Owner {
        cluster: ClusterId([0xc1; 16]),
        disk: DiskId([0xd1; 16]),
    }
}

pub(super) fn header(kind: FileKind, file: u64) -> FileHeader {
    FileHeader {
        kind,
        owner: owner(),
        shard: ShardId(3),
        file,
    }
}

pub(super) fn meta() -> GroupMeta {
    let voter = |node, disk| Voter {
        node: NodeId(node),
        disk: DiskId([disk; 16]),
    };
    GroupMeta {
        group: GroupId(5),
        incarnation: Incarnation(1),
        index: LogIndex(1000),
        term: Term(4),
        time: GroupTime(77_000),
        machine_version: 1,
        wall_offset_ms: -9,
        members: [voter(1, 0xd1), voter(2, 0xd2)].map(Member::voting).into(),
    }
}

/// Job `seq` of one partition of the sample group.
pub(super) fn job(seq: u64) -> JobId {
    let queue = QueueUid::new(GroupId(5), 1).expect("in range");
    JobId::new(GroupId(5), queue, Partition(0), seq)
}

pub(super) fn name(kind: u8, number: u64) -> PageName {
    PageName {
        kind,
        queue: job(0).queue().to_u64(),
        partition: 0,
        number,
    }
}

/// A place in run file 7.
fn place(offset: u64, len: u32) -> Place {
    Place {
        file: 7,
        offset,
        len,
        crc: 0xc5c5_c5c5,
    }
}

/// A node above pages 64 and 127.
pub(super) fn node() -> Node {
    let branch = |slot: u8| Branch {
        slot,
        summary: [slot; SUMMARY_BYTES],
        hash: Hash128([0xa0 | slot; 16]),
        place: place(8192 + 4200 * u64::from(slot), 4104),
    };
    Node {
        name: name(4, 1),
        level: 1,
        branches: vec![branch(0), branch(63)],
    }
}

/// Two pages and two trees.
pub(super) fn root() -> Root {
    let page = |kind: u8, offset| PageEntry {
        name: name(kind, 0),
        hash: Hash128([kind; 16]),
        place: place(offset, 40),
    };
    let used = |file, live_bytes, live_bodies| PayloadUse {
        file,
        live_bytes,
        live_bodies,
    };
    let tree = |kind: u8, offset, payloads| TreeEntry {
        name: name(kind, 1),
        level: 1,
        summary: [kind; SUMMARY_BYTES],
        hash: Hash128([0xe0 | kind; 16]),
        place: place(offset, 300),
        runs: [7, 9]
            .map(|file| RunUse {
                file,
                live_bytes: 4096 * file,
            })
            .to_vec(),
        payloads,
    };
    Root {
        meta: meta(),
        pages: vec![page(1, 4096), page(3, 4136)],
        trees: vec![
            tree(4, 4176, vec![used(8, 80, 2), used(9, 40, 1)]),
            tree(6, 4480, Vec::new()),
        ],
    }
}

/// A body's record, without what follows it, and its entry.
pub(super) fn body_record(job: JobId, body: &[u8]) -> (BodyEntry, Vec<u8>) {
    let mut builder = PayloadBuilder::new(&header(FileKind::Payload, 8));
    let place = builder.add_body(job, body);
    builder.finish();
    let (_, bytes) = builder.take_output().expect("two blocks");
    let start = place.offset as usize - BODY_HEAD_BYTES;
    let end = place.offset as usize + body.len();
    (BodyEntry { job, place }, bytes[start..end].to_vec())
}
