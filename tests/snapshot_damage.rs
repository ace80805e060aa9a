//! A small checkpoint, manifest and superblock, cut at every byte and with every bit flipped: the
//! outcome is the same content or an error by name; never a panic, never other content. And
//! arbitrary bytes, and checkpoints of many groups there and back.
#![cfg(feature = "engine")]

mod snapshot_kit;

use bytes::Bytes;
use proptest::prelude::*;
use rrq::base::checksum::Hash128;
use rrq::base::ids::{GroupId, JobId, LogIndex, NodeId, Partition, QueueUid, ShardId};
use rrq::base::units::{Lsn, WallTime};
use rrq::snapshot::builder::{PayloadBuilder, RunBuilder};
use rrq::snapshot::layout::{
    BodyPlace, FileHeader, FileKind, PageName, Root, RootRef, SUMMARY_BYTES, TreeEntry,
};
use rrq::snapshot::load::{LoadError, LoadedGroup, read_group};
use rrq::snapshot::manifest::{Manifest, ManifestBase, ManifestGroup};
use rrq::snapshot::superblock::{Superblock, choose};
use rrq::snapshot::view::decode_body_record;
use snapshot_kit::{OWNER, add_nodes, header, meta};
use std::collections::BTreeMap;
use std::ops::Range;

/// Files in memory.
#[derive(Clone, Default)]
struct Disk(BTreeMap<u64, Vec<u8>>);

/// What a reader of [`Disk`] may say.
#[derive(Debug, PartialEq, Eq)]
struct NoSuchFile;

impl Disk {
    fn write(&mut self, file: u64, mut take: impl FnMut() -> Option<(u64, Bytes)>) {
        let bytes = self.0.entry(file).or_default();
        while let Some((offset, slice)) = take() {
            assert_eq!(offset, bytes.len() as u64, "slices follow one another");
            bytes.extend_from_slice(&slice);
        }
    }

    fn load(&self, root: &RootRef) -> Result<LoadedGroup, LoadError<NoSuchFile>> {
        read_group(&OWNER, root, &mut |file, offset, len| {
            let bytes = self.0.get(&file).ok_or(NoSuchFile)?;
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            Ok(Bytes::copy_from_slice(&rest[..len.min(rest.len())]))
        })
    }
}

fn job(group: u16, seq: u64) -> JobId {
    let queue = QueueUid::new(GroupId(group), 0).expect("in range");
    JobId::new(GroupId(group), queue, Partition(0), seq)
}

fn name(kind: u8, number: u64) -> PageName {
    PageName {
        kind,
        queue: 1,
        partition: 0,
        number,
    }
}

/// A group: its pages and its bodies.
type Content = (Vec<(PageName, Vec<u8>)>, Vec<(JobId, Vec<u8>)>);

/// The kind of the pages that hold the bodies of 64 jobs each.
const LEAF: u8 = 0xff;

/// Writes all groups into one run file and one payload file: the pages named by the root, the bodies in
/// leaves below a tree of nodes.
fn write(groups: &BTreeMap<u16, Content>) -> (Disk, Vec<RootRef>) {
    let mut disk = Disk::default();
    let mut payload = PayloadBuilder::new(&header(FileKind::Payload, 1));
    let mut run = RunBuilder::new(&header(FileKind::Run, 2));
    let mut roots = Vec::new();
    for (&group, (pages, bodies)) in groups {
        let group_id = GroupId(group);
        let mut leaves: BTreeMap<u64, Vec<(u8, BodyPlace)>> = BTreeMap::new();
        for (job, body) in bodies {
            let place = payload.add_body(*job, body);
            let leaf = leaves.entry(job.seq() / 64).or_default();
            leaf.push(((job.seq() % 64) as u8, place));
        }
        let leaves = leaves.iter().map(|(number, bodies)| {
            let page = run.add_page(group_id, leaf_name(group, *number), b"leaf", bodies);
            let page = page.expect("small");
            (*number, page.hash, page.place)
        });
        let mut level: Vec<_> = leaves.collect();
        let mut height = 0;
        while height == 0 && !level.is_empty() || level.len() > 1 {
            height += 1;
            let name = |number| leaf_name(group, number);
            level = add_nodes(&mut run, group_id, (height, &level), name);
        }
        let trees = level.iter().map(|(number, hash, place)| TreeEntry {
            name: leaf_name(group, *number),
            level: height,
            summary: [7; SUMMARY_BYTES],
            hash: *hash,
            place: *place,
            runs: Vec::new(),
            payloads: Vec::new(),
        });
        let trees = trees.collect();
        let pages = pages.iter().map(|(name, page)| {
            let page = run.add_page(group_id, *name, page, &[]);
            page.expect("small")
        });
        let pages = pages.collect();
        let meta = meta(group_id, 100);
        let root = run.add_root(Root { meta, pages, trees });
        roots.push(root.expect("small"));
    }
    payload.finish();
    run.finish();
    disk.write(header(FileKind::Payload, 1).file, || payload.take_output());
    disk.write(header(FileKind::Run, 2).file, || run.take_output());
    (disk, roots)
}

fn leaf_name(group: u16, number: u64) -> PageName {
    PageName {
        kind: LEAF,
        queue: job(group, 0).queue().to_u64(),
        partition: 0,
        number,
    }
}

fn check(disk: &Disk, roots: &[RootRef], groups: &BTreeMap<u16, Content>) {
    assert_eq!(roots.len(), groups.len());
    for (root, (&group, (pages, bodies))) in roots.iter().zip(groups) {
        let loaded = disk.load(root).expect("whole");
        assert_eq!(loaded.meta, meta(GroupId(group), 100));
        let same = |(one, two): (&(PageName, Bytes), &(PageName, Vec<u8>))| {
            one.0 == two.0 && one.1 == two.1
        };
        let named = loaded.pages.iter().filter(|(name, _)| name.kind != LEAF);
        assert_eq!(named.clone().count(), pages.len());
        assert!(named.zip(pages).all(same));
        assert_eq!(loaded.bodies.len(), bodies.len());
        for (loaded, (job, body)) in loaded.bodies.iter().zip(bodies) {
            assert_eq!(loaded.job, *job);
            assert_eq!(loaded.bytes, *body);
        }
    }
}

fn small() -> (Disk, RootRef, LoadedGroup) {
    let pages = vec![
        (name(1, 0), b"the group's page".to_vec()),
        (name(4, 0), vec![4; 4096]),
        (name(5, 0), b"reasons".to_vec()),
    ];
    let bodies = (0..3).map(|seq| (job(0, seq * 50), vec![seq as u8; 21]));
    let content = (pages, bodies.collect());
    let (disk, roots) = write(&BTreeMap::from([(0, content)]));
    let loaded = disk.load(&roots[0]).expect("whole");
    (disk, roots[0], loaded)
}

/// The bytes of a file that somebody believes.
fn believed(disk: &Disk, file: u64, root: &RootRef, loaded: &LoadedGroup) -> Vec<Range<usize>> {
    let header = 0..4096;
    if file != root.file {
        let record = |body: &rrq::snapshot::load::LoadedBody| {
            let start = body.place.offset as usize - 24;
            start..start + 24 + body.bytes.len()
        };
        return std::iter::once(header)
            .chain(loaded.bodies.iter().map(record))
            .collect();
    }
    assert!(disk.0[&file].len() >= root.offset as usize + root.len as usize);
    let at_root = root.offset as usize..root.offset as usize + root.len as usize;
    let packs = loaded.directory.iter().map(|page| page.place);
    let packs = packs.chain(loaded.nodes.iter().map(|node| node.place));
    let packs = packs.map(|at| at.offset as usize..at.offset as usize + at.len as usize);
    [header, at_root].into_iter().chain(packs).collect()
}

#[test]
fn a_checkpoint_with_any_bit_flipped_is_refused_or_the_same() {
    let (mut disk, root, whole) = small();
    let files: Vec<u64> = disk.0.keys().copied().collect();
    for file in files {
        let believed = believed(&disk, file, &root, &whole);
        for at in 0..disk.0[&file].len() {
            let matters = believed.iter().any(|range| range.contains(&at));
            for bit in 0..8 {
                disk.0.get_mut(&file).expect("there")[at] ^= 1 << bit;
                match disk.load(&root) {
                    Ok(loaded) => {
                        assert!(!matters, "byte {at} of file {file:x} is under no check");
                        assert_eq!(loaded, whole, "byte {at} of file {file:x}");
                    }
                    Err(error) => {
                        assert!(matters, "byte {at} of file {file:x}: {error:?}");
                        assert_names(&error, file);
                    }
                }
                disk.0.get_mut(&file).expect("there")[at] ^= 1 << bit;
            }
        }
    }
}

fn assert_names(error: &LoadError<NoSuchFile>, damaged: u64) {
    let file = match error {
        LoadError::Read { file, .. }
        | LoadError::Truncated { file, .. }
        | LoadError::Header { file, .. }
        | LoadError::Root { file, .. }
        | LoadError::Node { file, .. }
        | LoadError::Page { file, .. }
        | LoadError::Body { file, .. } => *file,
    };
    assert_eq!(file, damaged, "the error names the damaged file: {error:?}");
}

#[test]
fn a_checkpoint_cut_at_any_byte_is_refused_or_the_same() {
    let (whole_disk, root, whole) = small();
    for (&file, bytes) in &whole_disk.0 {
        let believed = believed(&whole_disk, file, &root, &whole);
        let needed = believed.iter().map(|range| range.end).max().expect("some");
        let mut disk = whole_disk.clone();
        for len in (0..bytes.len()).rev() {
            disk.0.get_mut(&file).expect("there").truncate(len);
            match disk.load(&root) {
                Ok(loaded) => assert!(len >= needed && loaded == whole),
                Err(error) => {
                    assert!(len < needed);
                    assert!(matches!(error, LoadError::Truncated { .. }), "{error:?}");
                    assert_names(&error, file);
                }
            }
        }
    }
}

#[test]
fn a_file_swapped_missing_or_of_an_older_round_is_named() {
    let (whole, root, _) = small();
    let (payload, run) = (
        header(FileKind::Payload, 1).file,
        header(FileKind::Run, 2).file,
    );
    for file in [payload, run] {
        let mut disk = whole.clone();
        disk.0.remove(&file);
        let error = disk.load(&root).expect_err("missing");
        assert!(matches!(
            error,
            LoadError::Read {
                error: NoSuchFile,
                ..
            }
        ));
        assert_names(&error, file);

        let mut disk = whole.clone();
        let other = disk.0[&(payload + run - file)].clone();
        disk.0.insert(file, other);
        let error = disk.load(&root).expect_err("swapped");
        assert!(matches!(error, LoadError::Header { .. }), "{error:?}");
        assert_names(&error, file);
    }
    // A run file of the right name and an older content: the hash tells.
    let mut run_builder = RunBuilder::new(&header(FileKind::Run, 2));
    let page = run_builder.add_page(GroupId(0), name(1, 0), b"older", &[]);
    let older = run_builder.add_root(Root {
        meta: meta(GroupId(0), 99),
        pages: vec![page.expect("small")],
        trees: Vec::new(),
    });
    let older = older.expect("small");
    run_builder.finish();
    let mut disk = whole.clone();
    disk.0.remove(&run);
    disk.write(run, || run_builder.take_output());
    assert!(disk.load(&older).is_ok());
    assert!(matches!(
        disk.load(&root),
        Err(LoadError::Root { .. } | LoadError::Truncated { .. })
    ));
    let stale = RootRef {
        hash: root.hash,
        ..older
    };
    assert!(matches!(disk.load(&stale), Err(LoadError::Root { .. })));
}

fn manifest() -> Manifest {
    let base = |index, root| ManifestBase {
        meta: meta(GroupId(7), index),
        root,
        log_start: Lsn(4096),
    };
    let root = RootRef {
        file: 1 << 32,
        offset: 4096,
        len: 200,
        hash: Hash128([5; 16]),
    };
    Manifest {
        owner: OWNER,
        shard: ShardId(0),
        wal_set: 1,
        start: 1,
        sequence: 2,
        durable: Lsn(8192),
        groups: vec![ManifestGroup {
            newest: base(100, Some(root)),
            previous: Some(base(0, None)),
        }],
    }
}

fn superblock(generation: u64) -> Superblock {
    Superblock {
        generation,
        node: NodeId(1),
        disk: OWNER.disk,
        cluster: OWNER.cluster,
        forming: false,
        wal_set: 1,
        shards: 2,
        groups: 64,
        start: 3,
        created_by: "0.1.0".to_owned(),
        formed_at: WallTime(0),
        founders: Vec::new(),
        members: Vec::new(),
        members_as_of: LogIndex(0),
    }
}

/// Every cut, and every flip, of bytes that are wholly under a checksum is an error.
fn refused_whatever_happens(bytes: &[u8], accepts: impl Fn(&[u8]) -> bool) {
    assert!(accepts(bytes));
    for len in 0..bytes.len() {
        assert!(!accepts(&bytes[..len]), "cut at {len}");
    }
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(!accepts(&bytes), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn a_damaged_manifest_is_refused() {
    refused_whatever_happens(&manifest().encode(), |bytes| {
        Manifest::decode(bytes).is_ok()
    });
}

#[test]
fn a_damaged_superblock_is_refused_and_the_other_copy_serves() {
    let whole = superblock(5).encode();
    refused_whatever_happens(&whole, |bytes| {
        let damaged = Superblock::decode(bytes);
        let chosen = choose(damaged.clone(), Ok(superblock(4))).expect("one is whole");
        assert_eq!(chosen, damaged.clone().unwrap_or(superblock(4)));
        damaged.is_ok()
    });
}

#[test]
fn many_groups_one_of_them_empty_come_back() {
    let groups = (0..64).map(|group| {
        let leaves = u64::from(group) * 3;
        let mut pages = vec![(name(1, 0), vec![group as u8; 33])];
        pages.extend((0..leaves).map(|leaf| (name(4, leaf), vec![leaf as u8; 4096])));
        pages.extend((0..leaves).map(|leaf| (name(5, leaf), vec![leaf as u8; leaf as usize])));
        let jobs = u64::from(group) * 40;
        let bodies = (0..jobs).map(|seq| (job(group, seq * 3), vec![seq as u8; seq as usize % 99]));
        (group, (pages, bodies.collect()))
    });
    let mut groups: BTreeMap<u16, Content> = groups.collect();
    groups.insert(64, (Vec::new(), Vec::new()));
    let (disk, roots) = write(&groups);
    check(&disk, &roots, &groups);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_groups_come_back(
        groups in proptest::collection::btree_map(
            any::<u16>(),
            (
                proptest::collection::btree_map(
                    (1_u8..8, any::<u64>(), 0_u64..256, any::<u64>()),
                    prop_oneof![
                        proptest::collection::vec(any::<u8>(), 0..300),
                        any::<u8>().prop_map(|byte| vec![byte; 4096]),
                        any::<u8>().prop_map(|byte| vec![byte; 8192]),
                    ],
                    0..12,
                ),
                proptest::collection::btree_map(
                    0..=JobId::SEQ_MAX,
                    proptest::collection::vec(any::<u8>(), 0..300),
                    0..40,
                ),
            ),
            0..8,
        ),
    ) {
        let groups: BTreeMap<u16, Content> = groups
            .into_iter()
            .map(|(group, (pages, bodies))| {
                let pages = pages.into_iter().map(|((kind, queue, partition, number), page)| {
                    (PageName { kind, queue, partition, number }, page)
                });
                let bodies = bodies.into_iter().map(|(seq, body)| (job(group, seq), body));
                (group, (pages.collect(), bodies.collect()))
            })
            .collect();
        let (disk, roots) = write(&groups);
        check(&disk, &roots, &groups);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_without_panic(
        magic in prop_oneof![
            Just(*b"rrq-run\n"), Just(*b"rrq-body"), Just(*b"rrq-root"), Just(*b"rrq-mani"),
            Just(*b"rrqsuper"), any::<[u8; 8]>(),
        ],
        rest in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            proptest::collection::vec(any::<u8>(), 4088..4100),
        ],
    ) {
        let bytes = [&magic[..], &rest].concat();
        prop_assert!(FileHeader::decode(&bytes).is_err());
        prop_assert!(Root::decode(&bytes, Hash128([0; 16])).is_err());
        prop_assert!(Manifest::decode(&bytes).is_err());
        prop_assert!(Superblock::decode(&bytes).is_err());
        prop_assert!(decode_body_record(&bytes).is_err());
    }
}
