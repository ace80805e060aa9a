//! Small files that the tests of this folder share.

use crate::base::checksum::{Hash128, crc32c};
use crate::base::ids::{
    ClusterId, DiskId, GroupId, Incarnation, JobId, LogIndex, NodeId, Partition, QueueUid, ShardId,
    Term,
};
use crate::base::members::Member;
use crate::base::units::GroupTime;
use crate::snapshot::builder::PayloadBuilder;
use crate::snapshot::layout::{
    BODY_HEAD_BYTES, BodyEntry, BodyPlace, FileHeader, FileKind, GroupMeta, HEADER_BYTES, Owner,
    PageEntry, PageName, Root, Voter,
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

/// A page of the first block behind a header.
pub(super) fn page(bytes: &[u8]) -> PageEntry {
    PageEntry {
        name: PageName {
            kind: 1,
            queue: 0,
            partition: 0,
            number: 0,
        },
        len: bytes.len() as u32,
        hash: Hash128::of(bytes),
        file: 7,
        offset: HEADER_BYTES as u64,
        crc: crc32c(&[bytes]),
    }
}

/// Two pages, one of them a block; three bodies in two leaves and two files.
pub(super) fn root() -> Root {
    let small = page(b"group");
    let mut leaf = page(&[8; 4096]);
    leaf.name.kind = 4;
    leaf.offset = 8192;
    let body = |seq, file, offset| BodyEntry {
        job: job(seq),
        place: BodyPlace {
            file,
            offset,
            len: 11,
        },
    };
    Root {
        meta: meta(),
        pages: vec![small, leaf],
        bodies: vec![body(64, 8, 4120), body(65, 9, 4120), body(130, 8, 4160)],
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
