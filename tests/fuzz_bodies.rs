//! The bodies of the fuzz targets (`fuzz_kit`) over the committed corpus, over random bytes and over
//! valid inputs that were flipped, cut and spliced: a few seconds of what `tools/fuzz.sh` does for
//! hours. And that each target runs its body, so that none can rot.
//!
//! `UPDATE=1` writes the valid inputs of `fuzz_kit::seeds` into `fuzz/corpus/`; files that a fuzzer
//! found stay.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod fuzz_kit;

use bytes::{Bytes, BytesMut};
use fuzz_kit::memory::peak_of;
use fuzz_kit::seeds::seeds;
use fuzz_kit::{TARGETS, run};
use rrq::base::ids::{GroupId, Partition, QueueUid};
use rrq::base::limits::{FRAME_BYTES_MAX, HEADERS_MAX, ITEMS_MAX};
use rrq::base::prng::Prng;
use rrq::wire::client::{decode_request, encode_request};
use rrq::wire::frame::FRAME_HEADER_BYTES;
use rrq::wire::message::{Request, RequestBody};
use rrq::wire::{Backoff, Command, NewJob, Op, Start};
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Generated inputs, a target.
const INPUTS: u64 = 1000;
const INPUT_BYTES_MAX: u64 = 600;

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("the folder can be listed").path();
            let name = path.file_name().expect("it has one").to_string_lossy();
            let bytes = fs::read(&path).expect("a file can be read");
            (name.into_owned(), bytes)
        })
        .collect();
    files.sort();
    files
}

/// Runs a body; on a failure, says with which input. Whether anything was accepted.
fn run_named(target: &str, name: &str, input: &[u8]) -> bool {
    let result = catch_unwind(AssertUnwindSafe(|| run(target, input)));
    result.unwrap_or_else(|_| panic!("{target} fails on {name}: {}", hex(input)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_corpus_holds_what_is_promised() {
    for target in TARGETS {
        let place = folder("fuzz/corpus").join(target.name);
        if std::env::var_os("UPDATE").is_some() {
            fs::create_dir_all(&place).expect("a folder can be made");
            for (name, bytes) in seeds(target.name) {
                fs::write(place.join(name), bytes).expect("a file can be written");
            }
        }
        let files = files(&place);
        for (name, bytes) in seeds(target.name) {
            let found = files.iter().find(|(other, _)| other == name);
            assert!(
                found.is_some_and(|(_, found)| *found == bytes),
                "fuzz/corpus/{}/{name} is not what the code makes: UPDATE=1 writes it",
                target.name
            );
        }
        for (name, bytes) in &files {
            let accepted = run_named(target.name, name, bytes);
            let is_seed = seeds(target.name).iter().any(|(seed, _)| seed == name);
            assert!(
                accepted || !is_seed || name == "wrong",
                "{}/{name} is refused, so that it tests little",
                target.name
            );
        }
    }
}

#[test]
fn the_corpus_is_small() {
    let bytes: usize = TARGETS
        .iter()
        .flat_map(|target| files(&folder("fuzz/corpus").join(target.name)))
        .map(|(_, bytes)| bytes.len())
        .sum();
    assert!(bytes < 200 << 10, "the corpus has {bytes} bytes");
}

#[test]
fn random_bytes_hold_what_is_promised() {
    let mut prng = Prng::new(1);
    for target in TARGETS {
        for nth in 0..INPUTS {
            let len = prng.below(INPUT_BYTES_MAX);
            let input: Vec<u8> = (0..len).map(|_| prng.below(256) as u8).collect();
            run_named(target.name, &format!("random input {nth}"), &input);
        }
    }
}

#[test]
fn mutated_inputs_hold_what_is_promised() {
    let mut prng = Prng::new(2);
    for target in TARGETS {
        let seeds: Vec<_> = seeds(target.name)
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect();
        for nth in 0..INPUTS {
            let input = mutated(&mut prng, &seeds);
            run_named(target.name, &format!("mutated input {nth}"), &input);
        }
    }
}

/// One of the inputs with some flips, cuts, splices and numbers at the end of their range.
fn mutated(prng: &mut Prng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let pick = |prng: &mut Prng| &seeds[prng.below(seeds.len() as u64) as usize];
    let mut input = pick(prng).clone();
    for _ in 0..1 + prng.below(4) {
        let at = prng.below(input.len() as u64 + 1) as usize;
        match prng.below(6) {
            0 => input.truncate(at),
            1 => {
                let other = pick(prng);
                let from = prng.below(other.len() as u64 + 1) as usize;
                let to = from + prng.below((other.len() - from) as u64 + 1) as usize;
                input.splice(at..at, other[from..to].iter().copied());
            }
            2 => {
                let end = (at + 1 + prng.below(8) as usize).min(input.len());
                let ends = [0, 0xff, 0x7f, 0x80];
                input[at..end].fill(ends[prng.below(4) as usize]);
            }
            3 => {
                let end = (at + prng.below(40) as usize).min(input.len());
                input.drain(at..end);
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << prng.below(8);
                }
            }
        }
    }
    input
}

/// A message with `content` in its field `tag`, in front of which `before` stands.
fn nested(before: &[u8], tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = before.to_vec();
    out.push(tag << 3 | 2);
    let mut len = content.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(content);
    out
}

/// The largest frame, full of empty items: two bytes each, of which values would take gigabytes.
#[test]
fn a_giant_request_takes_little_more_memory_than_its_bytes() {
    let count = FRAME_BYTES_MAX / 2 - 32;
    let in_command = |op: &[u8]| nested(&[8, 1], 2, &nested(&[], 2, &nested(&[], 2, op)));
    let jobs = in_command(&[0x1a, 0].repeat(count));
    let headers = in_command(&nested(&[], 3, &[0x5a, 0].repeat(count)));
    let sessions = nested(&[8, 1], 8, &[0x0a, 0].repeat(count));
    for (what, body) in [("jobs", jobs), ("headers", headers), ("sessions", sessions)] {
        let body = Bytes::from(body);
        let mut answer = None;
        let taken = peak_of(|| answer = Some(decode_request(&body)));
        let refused = answer.expect("it was asked").expect_err("too many");
        assert_eq!(refused.id, Some(1), "{what}: it can be answered");
        assert!(
            taken < body.len() + (8 << 20),
            "{what}: {taken} bytes of memory, {refused}"
        );
    }
}

/// The most that a client may send in one request is not too many fields.
#[test]
fn a_request_at_every_bound_is_taken() {
    let item = NewJob {
        payload: Bytes::from(vec![0xff; 2000]),
        priority: Some(7),
        start: Start::After(1),
        ttl_ms: 1,
        lease_ms: 1,
        max_attempts: 1,
        run_limit_ms: 1,
        backoff: Some(Backoff::default()),
        key: Some(Bytes::from_static(b"key")),
        headers: vec![("h".to_owned(), Bytes::from_static(b"v")); HEADERS_MAX],
    };
    let op = Op::Enqueue {
        queue: QueueUid::default(),
        partition: Partition(0),
        items: vec![item; ITEMS_MAX],
    };
    let request = Request {
        id: 1,
        body: RequestBody::Command {
            group: GroupId(0),
            command: Command { session: None, op },
            wait_ms: 0,
        },
    };
    let mut frame = BytesMut::new();
    encode_request(&request, &mut frame);
    let body = frame.freeze().slice(FRAME_HEADER_BYTES..);
    assert!(body.len() < FRAME_BYTES_MAX, "{} bytes", body.len());
    assert_eq!(decode_request(&body), Ok(request));
}

#[test]
fn each_target_runs_its_body_and_has_a_corpus() {
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name).collect();
    let manifest = fs::read_to_string(folder("fuzz/Cargo.toml")).expect("it is there");
    let mut found = BTreeSet::new();
    for (file, text) in files(&folder("fuzz/fuzz_targets")) {
        let text = String::from_utf8(text).expect("it is source");
        let name = file.strip_suffix(".rs").expect("it is source");
        assert!(names.contains(name), "{file} is no target of fuzz_kit");
        assert!(text.starts_with("//! "), "{file} does not say what it is");
        assert!(text.contains("#[path = \"../../tests/fuzz_kit/mod.rs\"]"));
        let call = format!("fuzz_kit::run(\"{name}\", input);");
        assert!(text.contains(&call), "{file} does not call {call}");
        let entry = format!("name = \"{name}\"\npath = \"fuzz_targets/{file}\"");
        assert!(manifest.contains(&entry), "fuzz/Cargo.toml lacks {name}");
        found.insert(name.to_owned());
    }
    assert!(
        names.iter().copied().eq(found.iter()),
        "a target is missing"
    );
}
