//! Groups as they were built, read again; damaged in every place, each fault by its name.

use super::*;
use crate::snapshot::builder::{PayloadBuilder, RunBuilder};
use crate::snapshot::layout::{Branch, Node, SUMMARY_BYTES, TreeEntry};
use crate::snapshot::samples::{self, job, meta, name, owner};
use std::collections::BTreeMap;

/// Files in memory; a reader of them that counts its reads.
#[derive(Clone, Default)]
struct Disk(BTreeMap<u64, Vec<u8>>);

impl Disk {
    fn keep(&mut self, file: u64, mut take: impl FnMut() -> Option<(u64, Bytes)>) {
        let bytes = self.0.entry(file).or_default();
        while let Some((_, slice)) = take() {
            bytes.extend_from_slice(&slice);
        }
    }

    fn load(&self, root: &RootRef) -> (Result<LoadedGroup, LoadError<&'static str>>, usize) {
        let mut reads = 0;
        let loaded = read_group(&owner(), root, &mut |file, offset, len| {
            reads += 1;
            let bytes = self.0.get(&file).ok_or("no such file")?;
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            Ok(Bytes::copy_from_slice(&rest[..len.min(rest.len())]))
        });
        (loaded, reads)
    }
}

const GROUP: GroupId = GroupId(5);

/// A group of `pages` leaves below two levels of nodes, and `jobs` bodies of `len` bytes in the first
/// of them, in run file 7, payload file 8.
fn disk(pages: u64, jobs: u64, len: usize) -> (Disk, RootRef) {
    let mut disk = Disk::default();
    let mut payload = PayloadBuilder::new(&samples::header(FileKind::Payload, 8));
    // Backwards, so that the order by place is not that by job.
    let bodies = (0..jobs).rev().map(|seq| {
        let place = payload.add_body(job(seq), &vec![seq as u8; len]);
        (seq, place)
    });
    let bodies: std::collections::BTreeMap<u64, BodyPlace> = bodies.collect();
    payload.finish();
    disk.keep(8, || payload.take_output());
    let mut run = RunBuilder::new(&samples::header(FileKind::Run, 7));
    let group = run.add_page(GROUP, name(1, 0), b"group", &[]);
    let group = group.expect("small");
    let mut level = Vec::new();
    for number in 0..pages {
        let own = bodies.range(64 * number..64 * (number + 1));
        let own = own.map(|(seq, place)| ((seq % 64) as u8, *place));
        let own: Vec<_> = own.collect();
        let page = vec![number as u8; 4096];
        let page = run.add_page(GROUP, name(4, number), &page, &own);
        let page = page.expect("small");
        level.push((number, page.hash, page.place));
    }
    let mut trees = Vec::new();
    for height in 1..=2 {
        let mut above = Vec::new();
        for branches in level.chunk_by(|one, next| one.0 >> 6 == next.0 >> 6) {
            let number = branches[0].0 >> 6;
            let branches = branches.iter().map(|(number, hash, place)| Branch {
                slot: (number % 64) as u8,
                summary: [0; SUMMARY_BYTES],
                hash: *hash,
                place: *place,
            });
            let node = Node {
                name: name(4, number),
                level: height,
                branches: branches.collect(),
            };
            let (hash, place) = run.add_node(GROUP, &node).expect("small");
            above.push((number, hash, place));
        }
        level = above;
    }
    for (number, hash, place) in level {
        let (runs, payloads) = (Vec::new(), Vec::new());
        trees.push(TreeEntry {
            name: name(4, number),
            level: 2,
            summary: [0; SUMMARY_BYTES],
            hash,
            place,
            runs,
            payloads,
        });
    }
    let root = run.add_root(Root {
        meta: meta(),
        pages: vec![group],
        trees,
    });
    run.finish();
    disk.keep(7, || run.take_output());
    (disk, root.expect("small"))
}

#[test]
fn neighbours_are_read_together() {
    let (disk, root) = disk(3000, 20_000, 100);
    let (loaded, reads) = disk.load(&root);
    let loaded = loaded.expect("whole");
    assert_eq!((loaded.pages.len(), loaded.bodies.len()), (3001, 20_000));
    assert_eq!((loaded.nodes.len(), &loaded.meta), (1 + 47, &meta()));
    for (seq, body) in (0..).zip(&loaded.bodies) {
        assert_eq!(body.job, job(seq));
        assert_eq!(body.bytes, vec![seq as u8; 100]);
    }
    // 11.8 MiB of pages, 2.5 MiB of bodies, two levels of nodes, two headers and the root.
    assert_eq!(reads, 12 + 3 + 2 + 2 + 1);
}

#[test]
fn far_or_large_bodies_are_read_alone() {
    let (disk, root) = disk(1, 5, (1 << 20) + 1);
    let (loaded, reads) = disk.load(&root);
    assert_eq!(loaded.expect("whole").bodies.len(), 5);
    assert_eq!(reads, 5 + 1 + 2 + 2 + 1);
    let place = |at: &u64| (1, *at, *at + 8);
    let (_, spans) = spans(&[0, 16, 16 + 8 + SPAN_GAP_BYTES_MAX, 1 << 19], place);
    assert_eq!(spans.len(), 2);
    assert_eq!(spans[0].items, 0..3);
}

#[test]
fn a_group_without_jobs_is_three_reads() {
    let (disk, root) = disk(0, 0, 0);
    let (loaded, reads) = disk.load(&root);
    let loaded = loaded.expect("whole");
    assert!(loaded.pages.len() == 1 && loaded.bodies.is_empty());
    assert_eq!(reads, 3);
}

#[test]
fn what_did_not_change_is_read_from_its_older_file() {
    let (mut disk, first) = disk(2, 3, 9);
    let before = disk.load(&first).0.expect("whole");
    let root_of = |disk: &Disk, root: &RootRef| {
        let bytes = &disk.0[&root.file][root.offset as usize..];
        Root::decode(&bytes[..root.len as usize], root.hash).expect("whole")
    };
    let mut run = RunBuilder::new(&samples::header(FileKind::Run, 9));
    let second = run.add_root(root_of(&disk, &first)).expect("small");
    run.finish();
    disk.keep(9, || run.take_output());
    assert_eq!(second.hash, first.hash, "the same state");
    assert_eq!(disk.load(&second).0, Ok(before));
}

#[test]
fn each_fault_names_file_and_place() {
    let (whole, root) = disk(2, 3, 9);
    let loaded = whole.load(&root).0.expect("whole");
    let at_page = loaded.directory[2].place.offset as usize;
    let at_node = loaded.nodes[1].place.offset as usize;
    let at_body = 4096 + 40;
    let fails = |file: u64, change: &dyn Fn(&mut Vec<u8>)| {
        let mut disk = whole.clone();
        change(disk.0.get_mut(&file).expect("there"));
        disk.load(&root).0.expect_err("damaged").to_string()
    };
    let page = fails(7, &|file| file[at_page + 9] ^= 1);
    let expected = format!(
        "file 0000000000000007, page {} at byte {at_page}: its checksum is",
        name(4, 1)
    );
    assert!(page.starts_with(&expected), "{page}");
    let node = fails(7, &|file| file[at_node + 9] ^= 1);
    let expected = format!(
        "file 0000000000000007, node {} of level 1 at byte {at_node}: its checksum is",
        name(4, 0)
    );
    assert!(node.starts_with(&expected), "{node}");
    let body = fails(8, &|file| file[at_body + 24] ^= 1);
    let expected = format!(
        "file 0000000000000008, body of job {} at byte {at_body}: the record's checksum",
        job(1)
    );
    assert!(body.starts_with(&expected), "{body}");
    let header = fails(8, &|file| file[0] ^= 1);
    assert!(
        header.starts_with("file 0000000000000008: not a checkpoint file"),
        "{header}"
    );
    let cut = fails(8, &|file| file.truncate(at_body));
    let expected = format!(
        "file 0000000000000008 ends in the bodies of jobs {} to {} at byte 4096",
        job(0),
        job(2)
    );
    assert!(cut.starts_with(&expected), "{cut}");
    let cut = fails(7, &|file| file.truncate(root.offset as usize + 9));
    let expected = format!(
        "file 0000000000000007 ends in the root at byte {}: 9 bytes of",
        root.offset
    );
    assert!(cut.starts_with(&expected), "{cut}");
}

#[test]
fn what_is_whole_is_had_beside_what_is_not() {
    let (whole, root) = disk(200, 130, 9);
    let loaded = whole.load(&root).0.expect("whole");
    let remains = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut disk = whole.clone();
        change(disk.0.get_mut(&7).expect("there"));
        let mut read = |file: u64, offset: u64, len: usize| {
            let bytes = disk.0.get(&file).ok_or("no such file")?;
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            Ok::<_, &str>(Bytes::copy_from_slice(&rest[..len.min(rest.len())]))
        };
        let remains = read_remains(&owner(), &root, &mut read).expect("its root is whole");
        let bad: Vec<Bad> = remains.bad.iter().map(|(bad, _)| *bad).collect();
        (remains.pages.len(), remains.bodies.len(), bad)
    };
    assert_eq!(remains(&|_| ()), (201, 130, Vec::new()));
    let page = loaded.directory[1].place.offset as usize;
    let of_page = (200, 66, vec![Bad::Page(name(4, 0))]);
    assert_eq!(remains(&|file| file[page + 9] ^= 1), of_page);
    // The second of the nodes above pages: 64 of them.
    let node = loaded.nodes[2].place.offset as usize;
    let of_node = (137, 130, vec![Bad::Node(name(4, 1), 1)]);
    assert_eq!(remains(&|file| file[node + 9] ^= 1), of_node);
}

#[test]
fn a_missing_or_swapped_file_is_called_that() {
    let (mut disk, root) = disk(2, 3, 9);
    let payload = disk.0.remove(&8).expect("there");
    let (missing, _) = disk.load(&root);
    assert!(matches!(
        missing,
        Err(LoadError::Read {
            file: 8,
            reading: Reading::Header,
            error: "no such file",
            ..
        })
    ));
    assert!(payload.starts_with(b"rrq-body"));
    let run = disk.0[&7].clone();
    disk.0.insert(8, run);
    let (swapped, _) = disk.load(&root);
    assert!(matches!(
        swapped,
        Err(LoadError::Header {
            file: 8,
            error: HeaderError::OtherKind { .. }
        })
    ));
}
