//! What a base is called in the log, in a root and in a manifest: the same, in the words of each.

use crate::base::ids::{GroupId, Partition, QueueUid};
use crate::base::units::Lsn;
use crate::queue::view::{PageKey, PageKind};
use crate::snapshot::layout::{BodyEntry, GroupMeta, PageName, PayloadUse, RootRef};
use crate::snapshot::manifest::{ManifestBase, ManifestGroup};
use crate::wal::record::{BaseRecord, RootLocation};
use std::collections::BTreeMap;

pub(super) fn page_name(key: PageKey) -> PageName {
    PageName {
        kind: key.kind as u8,
        queue: key.queue.to_u64(),
        partition: key.partition.0.into(),
        number: key.number,
    }
}

pub(super) fn payload_use(bodies: &[BodyEntry]) -> Vec<PayloadUse> {
    let mut files: BTreeMap<u64, PayloadUse> = BTreeMap::new();
    for body in bodies {
        let file = body.place.file;
        let used = files.entry(file).or_insert(PayloadUse {
            file,
            live_bytes: 0,
            live_bodies: 0,
        });
        used.live_bytes += body.place.record_bytes();
        used.live_bodies += 1;
    }
    files.into_values().collect()
}

pub(super) fn base_record(meta: &GroupMeta, root: &RootRef, log_start_lsn: Lsn) -> BaseRecord {
    BaseRecord {
        group: meta.group,
        incarnation: meta.incarnation,
        index: meta.index,
        term: meta.term,
        time: meta.time,
        root_hash: root.hash,
        root: Some(RootLocation {
            file: root.file,
            offset: root.offset,
            len: root.len,
        }),
        log_start_lsn,
        machine_version: meta.machine_version,
        wall_offset_ms: meta.wall_offset_ms,
        members: meta.members.clone(),
    }
}

/// Where the root of a base lies; `None` for the empty base of formation.
pub(super) fn root_ref(base: &BaseRecord) -> Option<RootRef> {
    base.root.map(|root| RootRef {
        file: root.file,
        offset: root.offset,
        len: root.len,
        hash: base.root_hash,
    })
}

fn manifest_base(base: &BaseRecord) -> ManifestBase {
    ManifestBase {
        meta: GroupMeta {
            group: base.group,
            incarnation: base.incarnation,
            index: base.index,
            term: base.term,
            time: base.time,
            machine_version: base.machine_version,
            wall_offset_ms: base.wall_offset_ms,
            members: base.members.clone(),
        },
        root: root_ref(base),
        log_start: base.log_start_lsn,
    }
}

pub(super) fn manifest_group(bases: &[BaseRecord]) -> ManifestGroup {
    ManifestGroup {
        newest: manifest_base(&bases[0]),
        previous: bases.get(1).map(manifest_base),
    }
}

/// The page that a name in a root stands for; `None` for a name that this version never wrote.
pub(super) fn page_key(name: &PageName) -> Option<PageKey> {
    Some(PageKey {
        kind: PageKind::from_u8(name.kind)?,
        queue: QueueUid::from_u64(name.queue)?,
        partition: Partition(u8::try_from(name.partition).ok()?),
        number: name.number,
    })
}

/// The group that a file error is about, for messages.
pub(super) fn damaged(group: GroupId, what: &str) -> String {
    format!("the checkpoint of group {group} is damaged: {what}")
}
