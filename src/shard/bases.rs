//! What a base is called in the log, in a root and in a manifest: the same, in the words of each; and
//! pages and nodes of the job machine as run files hold them.

use crate::base::checksum::Hash128;
use crate::base::ids::{GroupId, Partition, QueueUid};
use crate::base::units::Lsn;
use crate::queue::view::{BodyLocation, PageKey, PageKind, StoredPage};
use crate::queue::{
    AbsentPage, JobQueue, NamedBranch, Names, Piece, Source, StoredPart, StoredTree, SummaryBytes,
    WrittenState,
};
use crate::snapshot::builder::{BuildError, RunBuilder};
use crate::snapshot::layout::{
    BodyPlace, Branch, GroupMeta, Node, PageEntry, PageName, PayloadUse, Place, Root, RootRef,
    RunUse, TreeEntry,
};
use crate::snapshot::load::{NodeEntry, Part, PartHolds};
use crate::snapshot::manifest::{ManifestBase, ManifestGroup};
use crate::wal::record::{BaseRecord, RootLocation};
use bytes::Bytes;
use std::collections::BTreeMap;

pub(super) fn page_name(key: PageKey) -> PageName {
    PageName {
        kind: key.kind as u8,
        queue: key.queue.to_u64(),
        partition: key.partition.0.into(),
        number: key.number,
    }
}

fn place(stored: &StoredPage) -> Place {
    Place {
        file: stored.file,
        offset: stored.offset,
        len: stored.len,
        crc: stored.crc,
    }
}

/// What was written, as the job machine remembers it.
pub(super) fn stored_page(hash: Hash128, place: &Place) -> StoredPage {
    StoredPage {
        hash,
        file: place.file,
        offset: place.offset,
        len: place.len,
        crc: place.crc,
    }
}

/// A part that is on the disk alone, as run files name it.
pub(super) fn absent_entry(absent: &AbsentPage) -> NodeEntry {
    NodeEntry {
        name: page_name(absent.key),
        level: absent.level,
        hash: absent.stored.hash,
        place: place(&absent.stored),
    }
}

/// What was read of a group, as the job machine takes it in.
///
/// # Errors
/// A sentence, if this version never wrote such a part, or it is damaged.
pub(super) fn stored_part(group: GroupId, part: Part) -> Result<StoredPart, String> {
    let at = AbsentPage {
        key: known_key(&part.entry.name)?,
        level: part.entry.level,
        stored: stored_page(part.entry.hash, &part.entry.place),
    };
    match part.holds {
        PartHolds::Page(bytes, bodies) => {
            let bodies = bodies.into_iter().map(|(slot, place, bytes)| {
                let BodyPlace { file, offset, len } = place;
                (slot, BodyLocation { file, offset, len }, bytes)
            });
            let bodies: Vec<_> = bodies.collect();
            let page = StoredPart::page(group, at, &bytes, &bodies);
            page.map_err(|error| error.to_string())
        }
        PartHolds::Places(bytes, places) => {
            let places = places.into_iter().map(|(slot, place)| {
                let BodyPlace { file, offset, len } = place;
                (slot, BodyLocation { file, offset, len })
            });
            Ok(StoredPart::places(at, bytes, places.collect()))
        }
        PartHolds::Node(branches) => {
            let branches = branches.iter().map(|branch| {
                let stored = stored_page(branch.hash, &branch.place);
                (branch.slot, branch.summary, stored)
            });
            Ok(StoredPart::node(at, &branches.collect::<Vec<_>>()))
        }
    }
}

/// A tree as a root names it, in the words of the job machine.
///
/// # Errors
/// A sentence, if this version never wrote such a tree.
pub(super) fn stored_tree(tree: &TreeEntry) -> Result<StoredTree, String> {
    let runs = tree.runs.iter();
    let payloads = tree.payloads.iter();
    Ok(StoredTree {
        key: known_key(&tree.name)?,
        level: tree.level,
        summary: tree.summary,
        stored: stored_page(tree.hash, &tree.place),
        runs: runs.map(|used| (used.file, used.live_bytes)).collect(),
        payloads: payloads
            .map(|used| (used.file, (used.live_bytes, used.live_bodies)))
            .collect(),
    })
}

/// A hash over a state: what a checkpoint of it would have in its root, but for places. Equal for equal
/// states, whatever of them is in memory, or on the disk.
pub(super) fn state_hash(queue: &JobQueue) -> Hash128 {
    let mut source = Source::new(&queue.freeze());
    while !source.prepare(usize::MAX, hash_of_node) {}
    let names = source.names();
    let mut all = Vec::new();
    let trees = names.trees.iter();
    let trees = trees.map(|tree| (tree.key, tree.level, &tree.summary[..], tree.hash));
    let pages = names.pages.iter();
    let pages = pages.map(|(key, hash)| (*key, 0, &[][..], *hash));
    for (key, level, summary, hash) in pages.chain(trees) {
        all.extend_from_slice(&[key.kind as u8, level, key.partition.0]);
        all.extend_from_slice(&key.queue.to_u64().to_le_bytes());
        all.extend_from_slice(&key.number.to_le_bytes());
        all.extend_from_slice(summary);
        all.extend_from_slice(&hash.0);
    }
    Hash128::of(&all)
}

/// The hash by which a node is named above it.
pub(super) fn hash_of_node(
    key: PageKey,
    level: u8,
    branches: &[(u8, SummaryBytes, StoredPage)],
) -> Hash128 {
    let (canonical, _) = node(key, level, branches).encode();
    Hash128::of(&canonical)
}

/// The canonical part of a node.
pub(super) fn node_bytes(key: PageKey, level: u8, branches: &[NamedBranch]) -> Bytes {
    let branches = branches.iter();
    let branches =
        branches.map(|(slot, summary, hash)| (*slot, *summary, StoredPage::nowhere(*hash)));
    let (canonical, _) = node(key, level, &branches.collect::<Vec<_>>()).encode();
    canonical.into()
}

/// The branches of a node, of its canonical part.
///
/// # Errors
/// A sentence, if it is not that of this node.
pub(super) fn branches_of(
    key: PageKey,
    level: u8,
    canonical: &[u8],
) -> Result<Vec<NamedBranch>, String> {
    let node = Node::decode_canonical((&page_name(key), level), canonical);
    let branches = node.map_err(|error| error.to_string())?.branches;
    let branches = branches.into_iter();
    Ok(branches
        .map(|branch| (branch.slot, branch.summary, branch.hash))
        .collect())
}

/// The root of a state that names this, without places.
pub(super) fn named_root(meta: &GroupMeta, names: &Names) -> Root {
    let pages = names.pages.iter();
    let trees = names.trees.iter().map(|tree| StoredTree {
        key: tree.key,
        level: tree.level,
        summary: tree.summary,
        stored: StoredPage::nowhere(tree.hash),
        runs: BTreeMap::new(),
        payloads: BTreeMap::new(),
    });
    let written = WrittenState {
        pages: pages
            .map(|(key, hash)| (*key, StoredPage::nowhere(*hash)))
            .collect(),
        trees: trees.collect(),
    };
    root(meta, &written)
}

/// Writes a page or a node of a group; where it lies.
///
/// # Errors
/// If a page is 4 GiB or longer.
///
/// # Panics
/// If the piece is none of the two.
pub fn add_piece(
    run: &mut RunBuilder,
    group: GroupId,
    piece: &Piece,
) -> Result<StoredPage, BuildError> {
    match piece {
        Piece::Page { key, bytes, bodies } => {
            let bodies = bodies.iter().map(|(slot, at)| {
                let BodyLocation { file, offset, len } = *at;
                (*slot, BodyPlace { file, offset, len })
            });
            let bodies: Vec<_> = bodies.collect();
            let added = run.add_page(group, page_name(*key), bytes, &bodies)?;
            Ok(stored_page(added.hash, &added.place))
        }
        Piece::Node {
            key,
            level,
            branches,
        } => {
            let (hash, place) = run.add_node(group, &node(*key, *level, branches))?;
            Ok(stored_page(hash, &place))
        }
        Piece::Body { job, .. } => panic!("the body of job {job} goes into a payload file"),
        Piece::Read(absent) => panic!("{absent:?} is to be read"),
        Piece::Pause => panic!("a pause is nothing to write"),
    }
}

fn node(key: PageKey, level: u8, branches: &[(u8, SummaryBytes, StoredPage)]) -> Node {
    let branches = branches.iter().map(|(slot, summary, stored)| Branch {
        slot: *slot,
        summary: *summary,
        hash: stored.hash,
        place: place(stored),
    });
    Node {
        name: page_name(key),
        level,
        branches: branches.collect(),
    }
}

/// The root of a state that is written.
#[must_use]
pub fn root(meta: &GroupMeta, written: &WrittenState) -> Root {
    let pages = written.pages.iter().map(|(key, stored)| PageEntry {
        name: page_name(*key),
        hash: stored.hash,
        place: place(stored),
    });
    let trees = written.trees.iter().map(|tree| TreeEntry {
        name: page_name(tree.key),
        level: tree.level,
        summary: tree.summary,
        hash: tree.stored.hash,
        place: place(&tree.stored),
        runs: run_uses(&tree.runs),
        payloads: payload_uses(&tree.payloads),
    });
    Root {
        meta: meta.clone(),
        pages: pages.collect(),
        trees: trees.collect(),
    }
}

fn run_uses(runs: &BTreeMap<u64, u64>) -> Vec<RunUse> {
    let runs = runs.iter();
    runs.map(|(file, live_bytes)| RunUse {
        file: *file,
        live_bytes: *live_bytes,
    })
    .collect()
}

fn payload_uses(payloads: &BTreeMap<u64, (u64, u64)>) -> Vec<PayloadUse> {
    let payloads = payloads.iter();
    payloads
        .map(|(file, (live_bytes, live_bodies))| PayloadUse {
            file: *file,
            live_bytes: *live_bytes,
            live_bodies: *live_bodies,
        })
        .collect()
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
pub(crate) fn root_ref(base: &BaseRecord) -> Option<RootRef> {
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

/// The page that a name stands for, or that it is unknown, in a sentence.
pub(super) fn known_key(name: &PageName) -> Result<PageKey, String> {
    page_key(name).ok_or_else(|| format!("it has an unknown page {name}"))
}

/// The page that a name in a root stands for; `None` for a name that this version never wrote.
#[must_use]
pub fn page_key(name: &PageName) -> Option<PageKey> {
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
