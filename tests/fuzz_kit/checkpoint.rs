//! Roots, headers and bodies of checkpoint files; manifests and superblocks.

use super::{Input, assert_is_told};
use bytes::Bytes;
use rrq::base::checksum::{Hash128, crc32c};
use rrq::base::ids::{ClusterId, DiskId, GroupId, ShardId};
use rrq::queue::{decode_body, encode_body};
use rrq::snapshot::builder::{PayloadBuilder, RunBuilder};
use rrq::snapshot::layout::{
    FileHeader, FileKind, HEADER_BYTES, Node, Owner, PageName, ROOT_HEAD_BYTES, Root, RootRef,
};
use rrq::snapshot::load::read_group;
use rrq::snapshot::manifest::Manifest;
use rrq::snapshot::superblock::{SUPERBLOCK_BYTES, Superblock, choose};
use rrq::snapshot::view::{decode_bodies, decode_body_record};

pub(super) const OWNER: Owner = Owner {
    cluster: ClusterId([0xc1; 16]),
    disk: DiskId([0xd1; 16]),
};

pub(super) fn header(kind: FileKind, file: u64) -> FileHeader {
    FileHeader {
        kind,
        owner: OWNER,
        shard: ShardId(0),
        file,
    }
}

/// What a checkpoint file may hold; the first byte says what.
pub(super) fn root(input: &[u8]) -> bool {
    let mut input = Input(input);
    let what = input.u8();
    let bytes = input.0;
    match what % 7 {
        0 => root_bytes(bytes, Hash128::default()) | root_with_checksums(bytes),
        1 => file_header(bytes) | file_header(&sealed_block(bytes)),
        2 => {
            let accepted = body_record(bytes);
            let mut sealed = bytes.to_vec();
            if let Some(head) = sealed.first_chunk_mut::<24>() {
                let len = u32::try_from(bytes.len() - 24).expect("inputs are small");
                head[..4].copy_from_slice(&len.to_le_bytes());
                let crc = crc32c(&[&sealed[..4], &sealed[8..]]);
                sealed[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            accepted | body_record(&sealed)
        }
        3 => {
            let accepted = body(bytes);
            let split = bytes.len().saturating_sub(4);
            let mut sealed = bytes[..split].to_vec();
            let crc = crc32c(&[&sealed]);
            sealed.extend_from_slice(&crc.to_le_bytes());
            accepted | body(&sealed)
        }
        4 => group(bytes),
        5 => node(bytes),
        _ => bodies(bytes),
    }
}

/// The root with the length, checksum and hash of its bytes.
fn root_with_checksums(bytes: &[u8]) -> bool {
    if bytes.len() < ROOT_HEAD_BYTES + 8 {
        return false;
    }
    let mut sealed = bytes.to_vec();
    sealed[..8].copy_from_slice(b"rrq-root");
    let len = u32::try_from(bytes.len()).expect("inputs are small");
    sealed[8..12].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c(&[&sealed[..16], &sealed[20..]]);
    sealed[16..20].copy_from_slice(&crc.to_le_bytes());
    let canonical = u32::from_le_bytes([sealed[12], sealed[13], sealed[14], sealed[15]]);
    let canonical = sealed[ROOT_HEAD_BYTES..].get(..canonical as usize);
    let hash = canonical.map_or(Hash128::default(), Hash128::of);
    root_bytes(&sealed, hash)
}

fn root_bytes(bytes: &[u8], hash: Hash128) -> bool {
    let root = match Root::decode(bytes, hash) {
        Ok(root) => root,
        Err(error) => return refused(&error),
    };
    let (again, place) = encode_root(&root);
    assert_eq!(place.hash, hash, "equal states have equal hashes");
    assert_eq!(again, bytes, "a root has one form");
    true
}

/// A refusal in words.
fn refused(error: &dyn std::fmt::Display) -> bool {
    assert_is_told(error);
    false
}

/// The root's bytes, and where they were put.
fn encode_root(root: &Root) -> (Vec<u8>, RootRef) {
    let mut run = RunBuilder::new(&header(FileKind::Run, 1));
    let place = run.add_root(root.clone());
    let place = place.expect("a root that was decoded is small");
    run.finish();
    let file = output(|| run.take_output());
    let start = place.offset as usize;
    (file[start..start + place.len as usize].to_vec(), place)
}

/// A node, known by what it says of itself.
fn node(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let canonical = input.u16();
    let canonical = input.take(usize::from(canonical));
    let (mut name, mut level) = (PageName::default(), 0);
    if let Some(head) = canonical.first_chunk::<32>() {
        let number = |at: usize| {
            let bytes = head[at..at + 8].try_into();
            u64::from_le_bytes(bytes.expect("8 bytes"))
        };
        (name.kind, level) = (head[0], head[1]);
        (name.queue, name.partition, name.number) = (number(8), number(16), number(24));
    }
    match Node::decode((&name, level), canonical, input.0) {
        Ok(node) => {
            let mut run = RunBuilder::new(&header(FileKind::Run, 1));
            let (hash, place) = run.add_node(GroupId(0), &node).expect("it is small");
            assert_eq!(
                hash,
                Hash128::of(canonical),
                "equal states have equal hashes"
            );
            run.finish();
            let file = output(|| run.take_output());
            let start = place.offset as usize + 8;
            let parts = [canonical, input.0].concat();
            assert_eq!(
                file[start..start + parts.len()],
                parts,
                "a node has one form"
            );
            true
        }
        Err(error) => refused(&error),
    }
}

/// The places of a page's bodies.
fn bodies(bytes: &[u8]) -> bool {
    match decode_bodies(bytes) {
        Ok(bodies) => {
            let mut run = RunBuilder::new(&header(FileKind::Run, 1));
            let page = run.add_page(GroupId(0), PageName::default(), b"", &bodies);
            let start = page.expect("it is small").place.offset as usize + 8;
            run.finish();
            let file = output(|| run.take_output());
            assert_eq!(
                file[start..start + bytes.len()],
                *bytes,
                "they have one form"
            );
            true
        }
        Err(error) => refused(&error),
    }
}

fn output(mut take: impl FnMut() -> Option<(u64, Bytes)>) -> Vec<u8> {
    let mut file = Vec::new();
    while let Some((offset, bytes)) = take() {
        assert_eq!(offset, file.len() as u64, "slices follow one another");
        file.extend_from_slice(&bytes);
    }
    file
}

/// The bytes as a block of 4 KiB with a checksum that fits.
fn sealed_block(bytes: &[u8]) -> Vec<u8> {
    let mut block = bytes.to_vec();
    block.resize(HEADER_BYTES - 4, 0);
    let crc = crc32c(&[&block]);
    block.extend_from_slice(&crc.to_le_bytes());
    block
}

/// Where a file header says its format.
const FORMAT: std::ops::Range<usize> = 8..10;

fn file_header(bytes: &[u8]) -> bool {
    match FileHeader::decode(bytes) {
        Ok(header) => {
            let again = header.encode();
            // One of an older format is read, and written in the present one: all else has one form.
            let mut present = bytes[..HEADER_BYTES - 4].to_vec();
            present[FORMAT].copy_from_slice(&again[FORMAT]);
            assert_eq!(again, sealed_block(&present));
            true
        }
        Err(error) => refused(&error),
    }
}

fn body_record(bytes: &[u8]) -> bool {
    match decode_body_record(bytes) {
        Ok((job, body)) => {
            let mut file = PayloadBuilder::new(&header(FileKind::Payload, 1));
            let place = file.add_body(job, body);
            file.finish();
            let file = output(|| file.take_output());
            let record = &file[place.offset as usize - 24..];
            assert_eq!(decode_body_record(record), Ok((job, body)));
            assert_eq!(record[..24 + body.len()], bytes[..24 + body.len()]);
            true
        }
        Err(error) => refused(&error),
    }
}

fn body(bytes: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(bytes);
    match decode_body(&bytes) {
        Ok(body) => {
            assert_eq!(encode_body(&body), bytes, "a body has one form");
            true
        }
        Err(error) => refused(&error),
    }
}

/// A whole group, from a run file and a payload file that the input fills behind their headers.
/// The base names what its writer wrote; a reader may be given anything else.
fn group(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let (canonical, pages_len, records_len) = (input.u16(), input.u16(), input.u16());
    let pages = input.take(usize::from(pages_len));
    let records = input.take(usize::from(records_len));
    let mut run = header(FileKind::Run, 1).encode();
    run.extend_from_slice(pages);
    run.resize(run.len().next_multiple_of(8), 0);
    let offset = run.len() as u64;
    run.extend_from_slice(input.0);
    let payload = [&header(FileKind::Payload, 2).encode(), records].concat();
    let hash = input.0.get(ROOT_HEAD_BYTES..);
    let hash = hash.and_then(|rest| rest.get(..usize::from(canonical)));
    let root = RootRef {
        file: 1,
        offset,
        len: u32::try_from(input.0.len()).expect("inputs are small"),
        hash: hash.map_or(Hash128::default(), Hash128::of),
    };
    let loaded = read_group(&OWNER, &root, &mut |file, offset, len| {
        let file = match file {
            1 => &run,
            2 => &payload,
            _ => return Err("there is no such file"),
        };
        let rest = file.get(offset as usize..).unwrap_or_default();
        Ok(Bytes::copy_from_slice(&rest[..len.min(rest.len())]))
    });
    match loaded {
        Ok(loaded) => {
            for ((name, bytes), entry) in loaded.pages.iter().zip(&loaded.directory) {
                assert_eq!(*name, entry.name);
                assert_eq!(Hash128::of(bytes), entry.hash, "every byte is verified");
            }
            true
        }
        Err(error) => {
            assert!(error.to_string().starts_with("file 0"), "{error}: where?");
            refused(&error)
        }
    }
}

/// A manifest, as it is and with a length and a checksum that fit.
pub(super) fn manifest(input: &[u8]) -> bool {
    let accepted = manifest_bytes(input);
    let mut sealed = input.to_vec();
    if sealed.len() < 20 {
        return accepted;
    }
    sealed[..8].copy_from_slice(b"rrq-mani");
    let len = u32::try_from(input.len()).expect("inputs are small");
    sealed[12..16].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c(&[&sealed[..16], &sealed[20..]]);
    sealed[16..20].copy_from_slice(&crc.to_le_bytes());
    accepted | manifest_bytes(&sealed)
}

fn manifest_bytes(bytes: &[u8]) -> bool {
    match Manifest::decode(bytes) {
        Ok(manifest) => {
            assert_eq!(manifest.encode(), bytes, "a manifest has one form");
            if let Err(error) = manifest.check(&OWNER, ShardId(3)) {
                assert_is_told(&error);
            }
            true
        }
        Err(error) => refused(&error),
    }
}

/// Two copies of a superblock, as they are and with checksums that fit.
pub(super) fn superblock(input: &[u8]) -> bool {
    let (first, second) = input.split_at(input.len() / 2);
    superblocks(first, second)
        | superblocks(&sealed_block(first), second)
        | superblocks(&sealed_block(first), &sealed_block(second))
}

fn superblocks(first: &[u8], second: &[u8]) -> bool {
    let copies = [first, second].map(Superblock::decode);
    for (copy, bytes) in copies.iter().zip([first, second]) {
        match copy {
            Ok(copy) => assert_eq!(copy.encode(), bytes[..SUPERBLOCK_BYTES]),
            Err(error) => assert_is_told(error),
        }
    }
    let [one, other] = copies;
    let chosen = choose(one.clone(), other.clone());
    let swapped = choose(other.clone(), one.clone());
    assert_eq!(chosen.as_ref().ok(), swapped.as_ref().ok());
    match chosen {
        Ok(chosen) => {
            let copies = [&one, &other].map(|copy| copy.as_ref().ok());
            assert!(copies.contains(&Some(&chosen)), "it is one of the two");
            let newest = copies.iter().flatten().map(|copy| copy.generation).max();
            assert_eq!(Some(chosen.generation), newest);
            true
        }
        Err(error) => refused(&error),
    }
}
