//! A walk over what is stored: each bit that flips is found, wherever it is, whatever else is damaged, and no
//! step reads much.
#![cfg(feature = "engine")]

mod snapshot_kit;

use bytes::Bytes;
use rrq::base::ids::{GroupId, JobId, Partition, QueueUid};
use rrq::queue::view::{BodyLocation, PageKey, PageKind, StoredPage};
use rrq::queue::{AbsentPage, BodyAt, StoredAt, StoredParts};
use rrq::shard::scrub::{Bad, Damaged, Walk};
use rrq::snapshot::builder::{PayloadBuilder, RunBuilder};
use rrq::snapshot::layout::{BodyPlace, FileKind, PageName, Place, Root, RootRef};
use snapshot_kit::{OWNER, add_nodes, header, meta};
use std::collections::{BTreeMap, BTreeSet};

const GROUP: GroupId = GroupId(3);
/// What a step reads at the most, unless one body is larger: a slice, and what was begun before it was full.
const STEP_BYTES_MAX: u64 = (1 << 20) + (512 << 10);

/// Files in memory, and what was stored in them.
struct Disk {
    files: BTreeMap<u64, Vec<u8>>,
    root: RootRef,
    flat: StoredAt,
    nodes: Vec<StoredAt>,
    pages: Vec<Place>,
    bodies: Vec<BodyPlace>,
}

/// A part, by key and level; `None` is the root.
type Found = Option<(PageKey, u8)>;

fn queue() -> QueueUid {
    QueueUid::new(GROUP, 0).expect("in range")
}

fn key(kind: PageKind, number: u64) -> PageKey {
    PageKey {
        kind,
        queue: queue(),
        partition: Partition(0),
        number,
    }
}

fn name(key: PageKey) -> PageName {
    PageName {
        kind: key.kind as u8,
        queue: key.queue.to_u64(),
        partition: 0,
        number: key.number,
    }
}

impl Disk {
    /// So many leaves with so many jobs each, whose bodies have so many bytes, below nodes that are on the disk
    /// alone.
    fn new(leaves: u64, jobs: u64, len: usize) -> Self {
        let mut payload = PayloadBuilder::new(&header(FileKind::Payload, 1));
        let mut run = RunBuilder::new(&header(FileKind::Run, 2));
        let (mut pages, mut bodies) = (Vec::new(), Vec::new());
        let mut branches = Vec::new();
        for number in 0..leaves {
            let own = (0..jobs).map(|slot| {
                let job = JobId::new(GROUP, queue(), Partition(0), number * 64 + slot);
                (slot as u8, payload.add_body(job, &vec![slot as u8; len]))
            });
            let own: Vec<_> = own.collect();
            bodies.extend(own.iter().map(|(_, place)| *place));
            let leaf = name(key(PageKind::Leaf, number));
            let page = run.add_page(GROUP, leaf, &[number as u8; 2000], &own);
            let page = page.expect("small");
            pages.push(page.place);
            branches.push((number, page.hash, page.place));
        }
        let name_of = |number| name(key(PageKind::Leaf, number));
        let nodes = add_nodes(&mut run, GROUP, (1, &branches), name_of).into_iter();
        let nodes = nodes
            .map(|(number, hash, place)| stored_at(key(PageKind::Leaf, number), 1, (hash, place)));
        let nodes = nodes.collect();
        let flat_key = key(PageKind::Queue, 0);
        let flat = run.add_page(GROUP, name(flat_key), b"a queue", &[]);
        let flat = flat.expect("small");
        let root = run.add_root(Root {
            meta: meta(GROUP, 100),
            pages: vec![flat],
            trees: Vec::new(),
        });
        payload.finish();
        run.finish();
        let mut files: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut keep = |file, (_, bytes): (u64, Bytes)| {
            files.entry(file).or_default().extend_from_slice(&bytes);
        };
        while let Some(slice) = payload.take_output() {
            keep(header(FileKind::Payload, 1).file, slice);
        }
        while let Some(slice) = run.take_output() {
            keep(header(FileKind::Run, 2).file, slice);
        }
        Self {
            files,
            root: root.expect("small"),
            flat: stored_at(flat_key, 0, (flat.hash, flat.place)),
            nodes,
            pages,
            bodies,
        }
    }

    fn all(&self) -> Walk {
        let mut parts = vec![self.flat];
        parts.extend(&self.nodes);
        let bodies = Vec::new();
        Walk::new(GROUP, Some(self.root), &StoredParts { parts, bodies })
    }

    fn flip(&mut self, file: u64, offset: u64) {
        let bytes = self.files.get_mut(&file).expect("there is such a file");
        bytes[offset as usize] ^= 0x10;
    }

    /// What is found by the steps of a walk, of which none reads more than it may; and the bytes that are stored.
    fn look(&self, mut walk: Walk, read_max: u64) -> (Vec<Damaged>, u64) {
        let (mut found, mut stored) = (Vec::new(), 0);
        for step in 0.. {
            assert!(step < 100_000, "a walk has no end");
            if walk.is_done() {
                break;
            }
            walk.step(&OWNER, &mut |file, offset, len| {
                let bytes = self.files.get(&file).ok_or("no such file")?;
                let rest = bytes.get(offset as usize..).unwrap_or_default();
                Ok::<_, &str>(Bytes::copy_from_slice(&rest[..len.min(rest.len())]))
            });
            let looked = walk.take_looked();
            assert!(looked.read_bytes <= read_max, "{} bytes", looked.read_bytes);
            assert!(looked.damaged.len() <= 128, "{}", looked.damaged.len());
            stored += looked.stored_bytes;
            found.extend(looked.damaged);
        }
        (found, stored)
    }

    fn found(&self) -> BTreeSet<Found> {
        let (found, _) = self.look(self.all(), STEP_BYTES_MAX);
        found.iter().map(part_of).collect()
    }
}

fn part_of(damaged: &Damaged) -> Found {
    match damaged.bad {
        Bad::Root(_) => None,
        Bad::Part { at, .. } => Some((at.key, at.level)),
        Bad::Body { it, .. } => Some((it.key, 0)),
    }
}

fn stored_at(
    key: PageKey,
    level: u8,
    (hash, place): (rrq::base::checksum::Hash128, Place),
) -> StoredAt {
    StoredAt {
        at: AbsentPage {
            key,
            level,
            stored: StoredPage {
                hash,
                file: place.file,
                offset: place.offset,
                len: place.len,
                crc: place.crc,
            },
        },
        with_all_below: level > 0,
    }
}

#[test]
fn all_is_looked_at_and_what_is_whole_is_not_found() {
    let disk = Disk::new(200, 64, 100);
    let (found, stored) = disk.look(disk.all(), STEP_BYTES_MAX);
    assert!(found.is_empty(), "{found:?}");
    let nodes = disk.nodes.iter().chain([&disk.flat]);
    let parts: u64 = nodes.map(|node| u64::from(node.at.stored.len)).sum();
    let pages: u64 = disk.pages.iter().map(|page| u64::from(page.len)).sum();
    let bodies: u64 = disk.bodies.iter().map(BodyPlace::record_bytes).sum();
    assert_eq!(stored, u64::from(disk.root.len) + parts + pages + bodies);
}

#[test]
fn a_bit_that_flips_is_found_wherever_it_is() {
    let leaf = |number| Some((key(PageKind::Leaf, number), 0));
    let node = |number| Some((key(PageKind::Leaf, number), 1));
    let of = || Disk::new(130, 3, 50);
    let disk = of();
    let place = |at: &StoredAt| (at.at.stored.file, at.at.stored.offset + 9);
    let page = |nth: usize| (disk.pages[nth].file, disk.pages[nth].offset + 1000);
    let body = |nth: usize| (disk.bodies[nth].file, disk.bodies[nth].offset + 20);
    let cases = [
        ((disk.root.file, disk.root.offset + 40), None),
        (place(&disk.flat), Some((disk.flat.at.key, 0))),
        (place(&disk.nodes[0]), node(0)),
        (place(&disk.nodes[2]), node(2)),
        (page(0), leaf(0)),
        (page(129), leaf(129)),
        (body(0), leaf(0)),
        (body(3 * 77 + 1), leaf(77)),
    ];
    let mut all = of();
    let mut expected = BTreeSet::new();
    for ((file, offset), part) in cases {
        let mut one = of();
        one.flip(file, offset);
        assert_eq!(
            one.found(),
            BTreeSet::from([part]),
            "byte {offset} of {file:x}"
        );
        all.flip(file, offset);
        // Of what is below a damaged node nobody knows.
        if ![leaf(0), leaf(129)].contains(&part) {
            expected.insert(part);
        }
    }
    assert_eq!(all.found(), expected, "one does not hide another");
}

#[test]
fn a_file_whose_head_is_damaged_or_that_is_gone_is_found_part_by_part() {
    for is_gone in [false, true] {
        let mut disk = Disk::new(500, 2, 50);
        let payload = disk.bodies[0].file;
        match is_gone {
            true => drop(disk.files.remove(&payload)),
            false => disk.flip(payload, 20),
        }
        let leaves = (0..500).map(|number| Some((key(PageKind::Leaf, number), 0)));
        assert_eq!(disk.found(), leaves.collect());
    }
}

#[test]
fn a_step_reads_a_slice_or_one_large_body() {
    let disk = Disk::new(3, 64, 100 << 10);
    let (found, _) = disk.look(disk.all(), STEP_BYTES_MAX);
    assert!(found.is_empty());
    let disk = Disk::new(1, 3, 5 << 20);
    let (found, _) = disk.look(disk.all(), STEP_BYTES_MAX + (5 << 20));
    assert!(found.is_empty());
}

#[test]
fn what_can_be_read_the_second_time_is_not_found_again() {
    let mut disk = Disk::new(100, 3, 50);
    let (page, body) = (disk.pages[5], disk.bodies[3 * 80]);
    let node = disk.nodes[0].at.stored;
    disk.flip(node.file, node.offset + 9);
    disk.flip(page.file, page.offset + 9);
    disk.flip(body.file, body.offset);
    let (found, _) = disk.look(disk.all(), STEP_BYTES_MAX);
    let again = |disk: &Disk| {
        let (found, _) = disk.look(Walk::again(GROUP, &found), STEP_BYTES_MAX);
        let parts = found.iter().map(part_of);
        parts.collect::<BTreeSet<_>>()
    };
    assert_eq!(again(&disk), disk.found());
    // Below the node that can be read now there is more.
    disk.flip(node.file, node.offset + 9);
    let leaf = |number| Some((key(PageKind::Leaf, number), 0));
    assert_eq!(again(&disk), BTreeSet::from([leaf(5), leaf(80)]));
    disk.flip(page.file, page.offset + 9);
    disk.flip(body.file, body.offset);
    assert!(again(&disk).is_empty());
}

#[test]
fn bodies_of_pages_that_have_changed_are_looked_at_too() {
    let mut disk = Disk::new(2, 40, 50);
    let own = |nth: u64| {
        let BodyPlace { file, offset, len } = disk.bodies[nth as usize];
        BodyAt {
            key: key(PageKind::Leaf, nth / 40),
            slot: (nth % 40) as u8,
            at: BodyLocation { file, offset, len },
        }
    };
    let stored = StoredParts {
        parts: Vec::new(),
        bodies: (0..80).map(own).collect(),
    };
    let look = |disk: &Disk| disk.look(Walk::new(GROUP, None, &stored), STEP_BYTES_MAX);
    assert!(look(&disk).0.is_empty());
    let at = disk.bodies[41];
    disk.flip(at.file, at.offset);
    let (found, _) = look(&disk);
    assert_eq!(found.len(), 1);
    assert!(matches!(found[0].bad, Bad::Body { it, page: None } if it.key.number == 1));
}
