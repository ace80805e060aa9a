//! Each fault of roots, packs, nodes, places and bodies by its name; and one form of all that is accepted.

use super::*;
use crate::snapshot::layout::{PLACE_BYTES, encode_bodies, pack};
use crate::snapshot::samples::{self, job};
use proptest::prelude::*;

fn reseal_root(root: &mut [u8]) -> Hash128 {
    let crc = crc32c(&[&root[..16], &root[20..]]);
    root[16..20].copy_from_slice(&crc.to_le_bytes());
    let end = ROOT_HEAD_BYTES + u32_at(root, 12) as usize;
    Hash128::of(root.get(ROOT_HEAD_BYTES..end).unwrap_or_default())
}

#[test]
fn a_root_is_read_as_it_was_built() {
    let root = samples::root();
    let (bytes, hash) = root.encode().expect("small");
    assert_eq!(Root::decode(&bytes, hash), Ok(root));
}

#[test]
fn the_root_hash_knows_no_places() {
    let (_, hash) = samples::root().encode().expect("small");
    let mut elsewhere = samples::root();
    for page in &mut elsewhere.pages {
        page.place.offset += 8192;
        page.place.file += 1;
    }
    elsewhere.trees[0].payloads.clear();
    elsewhere.trees[1].place.crc ^= 1;
    assert_eq!(elsewhere.encode().expect("small").1, hash);
    elsewhere.meta.index = elsewhere.meta.index.next();
    assert_ne!(elsewhere.encode().expect("small").1, hash);
}

#[test]
fn each_fault_of_a_root_has_its_name() {
    let (whole, hash) = samples::root().encode().expect("small");
    let damaged = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        bytes
    };
    let resealed = |at: usize, value: u8| {
        let mut bytes = damaged(at, value);
        let hash = reseal_root(&mut bytes);
        Root::decode(&bytes, hash)
    };
    let len = whole.len() as u64;
    assert_eq!(
        Root::decode(&whole[..35], hash),
        Err(RootError::Truncated {
            needed: 36,
            found: 35
        })
    );
    assert_eq!(
        Root::decode(&whole[..whole.len() - 1], hash),
        Err(RootError::Truncated {
            needed: len,
            found: len - 1
        })
    );
    assert!(matches!(
        Root::decode(&damaged(0, b'x'), hash),
        Err(RootError::BadMagic { .. })
    ));
    assert!(matches!(
        Root::decode(&damaged(whole.len() - 1, 1), hash),
        Err(RootError::BadChecksum { offset: 16, .. })
    ));
    assert!(matches!(
        Root::decode(&whole, Hash128([1; 16])),
        Err(RootError::HashMismatch { .. })
    ));
    assert_eq!(resealed(24, 3), Err(RootError::TooNew { found: 3, max: 2 }));

    let malformed = |offset, what| Err(RootError::Malformed(Malformed { offset, what }));
    let mut longer = whole.clone();
    longer.push(0);
    let wrong_len = malformed(8, "length of the root");
    assert_eq!(Root::decode(&longer, hash), wrong_len);
    assert_eq!(resealed(20, 1), malformed(20, "reserved field"));
    assert_eq!(resealed(24, 0), malformed(24, "format number"));
    assert_eq!(
        resealed(15, 1),
        malformed(12, "length of the canonical part")
    );
    // More pages, trees or members than there are bytes for: no memory is reserved.
    let pages = ROOT_HEAD_BYTES + CANONICAL_HEAD_BYTES + GROUP_BYTES + 2 * MEMBER_BYTES;
    let trees = pages + 2 * PAGE_ENTRY_BYTES;
    assert_eq!(
        resealed(31, 255),
        malformed(pages as u64, "number of pages")
    );
    assert_eq!(
        resealed(35, 255),
        malformed(trees as u64, "number of trees")
    );
    assert_eq!(resealed(77, 255), malformed(84, "number of members"));
    // The members, the pages and the trees in another order.
    assert_eq!(resealed(84, 200), malformed(108, "order of members"));
    let second = (pages + PAGE_ENTRY_BYTES) as u64;
    assert_eq!(resealed(pages, 9), malformed(second, "order of pages"));
    let second = (trees + TREE_ENTRY_BYTES) as u64;
    assert_eq!(resealed(trees, 9), malformed(second, "order of trees"));
    // A tree without a level, or with more than there can be; a page with one.
    let first = malformed(trees as u64, "order of trees");
    assert_eq!(resealed(trees + 1, 0), first);
    assert_eq!(resealed(trees + 1, 11), first);
    assert_eq!(resealed(trees + 31, 4), first, "no such node on its level");
    assert_eq!(
        resealed(pages + 1, 1),
        malformed(pages as u64, "order of pages")
    );

    let places = trees + 2 * TREE_ENTRY_BYTES;
    let misplaced = malformed(places as u64, "place of a page");
    assert_eq!(
        resealed(places + 8, 4),
        misplaced,
        "between two steps of 8 bytes"
    );
    assert_eq!(resealed(places + 9, 0), misplaced, "inside the header");
    assert_eq!(resealed(places + 16, 7), misplaced, "shorter than a pack");
    let tree = places + 2 * PLACE_BYTES;
    let files = tree + PLACE_BYTES;
    let too_many = malformed(files as u64 + 8, "number of run files");
    assert_eq!(resealed(files + 3, 255), too_many);
    let table = malformed(files as u64, "files of a tree");
    assert_eq!(resealed(files + 8, 9), table, "a file twice");
    assert_eq!(
        resealed(files + 8 + 14, 1),
        table,
        "more bytes than any file has"
    );
}

#[test]
fn each_fault_of_a_pack_has_its_name() {
    let bytes = pack(b"page", b"places");
    let place = Place {
        file: 7,
        offset: 4096,
        len: bytes.len() as u32,
        crc: crc32c(&[&bytes]),
    };
    let hash = Hash128::of(b"page");
    let parts = (&b"page"[..], &b"places"[..]);
    assert_eq!(open_pack(hash, &place, &bytes), Ok(parts));
    assert_eq!(
        open_pack(hash, &place, &bytes[1..]),
        Err(PackError::WrongLength {
            expected: 18,
            found: 17
        })
    );
    let mut damaged = bytes.clone();
    damaged[17] ^= 1;
    assert!(matches!(
        open_pack(hash, &place, &damaged),
        Err(PackError::BadChecksum { .. })
    ));
    assert!(matches!(
        open_pack(Hash128::of(b"other"), &place, &bytes),
        Err(PackError::HashMismatch { .. })
    ));
    let mut longer = bytes.clone();
    longer[4] += 1;
    let resealed = Place {
        crc: crc32c(&[&longer]),
        ..place
    };
    assert!(matches!(
        open_pack(hash, &resealed, &longer),
        Err(PackError::Malformed(Malformed { offset: 12, .. }))
    ));
}

#[test]
fn each_fault_of_a_node_has_its_name() {
    let node = samples::node();
    let (canonical, local) = node.encode();
    let name = (&node.name, node.level);
    assert_eq!(Node::decode(name, &canonical, &local), Ok(node.clone()));
    let changed = |at: usize, value: u8| {
        let mut canonical = canonical.clone();
        canonical[at] = value;
        Node::decode(name, &canonical, &local)
    };
    let malformed = |offset, what| Err(Malformed { offset, what });
    assert_eq!(changed(0, 6), malformed(0, "name of a node"));
    assert_eq!(changed(1, 2), malformed(0, "name of a node"));
    assert_eq!(changed(24, 0), malformed(0, "name of a node"));
    assert_eq!(changed(3, 255), malformed(32, "number of branches"));
    assert_eq!(changed(2, 0), malformed(32, "number of branches"));
    assert_eq!(changed(4, 1), malformed(4, "reserved field"));
    assert_eq!(changed(32, 63), malformed(96, "order of branches"));
    assert_eq!(changed(96, 64), malformed(96, "order of branches"));
    let short = Node::decode(name, &canonical, &local[..24]);
    assert_eq!(short, malformed(24, "place of a branch"));
}

#[test]
fn each_fault_of_the_places_of_bodies_has_its_name() {
    let place = |file, offset| BodyPlace {
        file,
        offset,
        len: 11,
    };
    let bodies = vec![
        (3, place(8, 4120)),
        (4, place(8, 4160)),
        (9, place(9, 4120)),
    ];
    let bytes = encode_bodies(&bodies);
    assert_eq!(decode_bodies(&bytes), Ok(bodies));
    assert_eq!(decode_bodies(&[]), Ok(Vec::new()));
    let changed = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        decode_bodies(&bytes)
    };
    let malformed = |offset, what| Err(Malformed { offset, what });
    assert_eq!(
        changed(1, 9),
        malformed(0, "files of bodies"),
        "a file twice"
    );
    assert_eq!(changed(18, 0), malformed(32, "rest after the last field"));
    assert_eq!(
        changed(25, 2),
        malformed(25, "place of a body"),
        "no such file"
    );
    assert_eq!(
        changed(28, 0),
        malformed(27, "place of a body"),
        "not its shortest form"
    );
    let mut idle = encode_bodies(&[(3, place(8, 4120))]);
    idle[0] = 2;
    idle.splice(9..9, 9_u64.to_le_bytes());
    let of_files = malformed(0, "files of bodies");
    assert_eq!(decode_bodies(&idle), of_files, "a file without a body");
    let short = decode_bodies(&bytes[..bytes.len() - 1]);
    assert!(short.is_err());
}

#[test]
fn each_fault_of_a_body_has_its_name() {
    let (entry, record) = samples::body_record(job(70), b"hello");
    assert_eq!(decode_body_record(&record), Ok((job(70), &b"hello"[..])));
    assert_eq!(verify_body(&entry, &record), Ok(&b"hello"[..]));
    let truncated = |needed, found| Err(BodyError::Truncated { needed, found });
    assert_eq!(decode_body_record(&record[..23]), truncated(24, 23));
    assert_eq!(decode_body_record(&record[..28]), truncated(29, 28));
    for at in 4..29 {
        let mut damaged = record.clone();
        damaged[at] ^= 1;
        assert!(matches!(
            decode_body_record(&damaged),
            Err(BodyError::BadChecksum { offset: 4, .. })
        ));
    }
    let mut reserved = record.clone();
    reserved[23] = 1;
    let crc = crc32c(&[&reserved[..4], &reserved[8..]]);
    reserved[4..8].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(
        decode_body_record(&reserved),
        Err(BodyError::Malformed(Malformed {
            offset: 8,
            what: "job id"
        }))
    );
    let mut other = entry;
    other.job = job(71);
    assert_eq!(
        verify_body(&other, &record),
        Err(BodyError::OtherJob {
            expected: job(71),
            found: job(70)
        })
    );
    let mut longer = entry;
    longer.place.len = 6;
    assert_eq!(
        verify_body(&longer, &record),
        Err(BodyError::WrongLength {
            expected: 6,
            found: 5
        })
    );
}

proptest! {
    /// What a decoder accepts is exactly what the encoder writes.
    #[test]
    fn an_accepted_root_has_one_form(
        changes in proptest::collection::vec((20_usize..700, any::<u8>()), 1..4),
    ) {
        let (mut bytes, _) = samples::root().encode().expect("small");
        for (at, value) in changes {
            let at = at % bytes.len();
            if at >= 12 {
                bytes[at] = value;
            }
        }
        let hash = reseal_root(&mut bytes);
        if let Ok(root) = Root::decode(&bytes, hash) {
            prop_assert_eq!(root.encode(), Ok((bytes, hash)));
        }
    }

    #[test]
    fn an_accepted_node_has_one_form(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let node = samples::node();
        let (mut canonical, mut local) = node.encode();
        for (at, value) in changes {
            let at = at % (canonical.len() + local.len());
            match at.checked_sub(canonical.len()) {
                Some(at) => local[at] = value,
                None => canonical[at] = value,
            }
        }
        if let Ok(node) = Node::decode((&node.name, node.level), &canonical, &local) {
            prop_assert_eq!(node.encode(), (canonical, local));
        }
    }

    #[test]
    fn accepted_places_of_bodies_have_one_form(
        head in proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..40),
    ) {
        if let Ok(bodies) = decode_bodies(&head) {
            prop_assert_eq!(encode_bodies(&bodies), head);
        }
    }

    #[test]
    fn arbitrary_bytes_under_a_right_checksum_never_panic(
        rest in proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 12..400),
        canonical in 0_u32..400,
        format in 1_u8..=2,
    ) {
        let mut bytes = ROOT_MAGIC.to_vec();
        bytes.extend_from_slice(&(rest.len() as u32 + 24).to_le_bytes());
        bytes.extend_from_slice(&canonical.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&rest);
        bytes[24..26].copy_from_slice(&[format, 0]);
        let hash = reseal_root(&mut bytes);
        if let Ok(parts) = RootParts::of(&bytes, hash) {
            let _ = crate::snapshot::format1::RootV1::decode(&parts);
            let _ = Root::of_parts(&parts);
        }
    }
}
