//! The bodies of the fuzz targets: what must hold for whatever bytes arrive or lie on a disk.
//!
//! ```text
//! fuzz/fuzz_targets/NAME.rs ──┐
//!                             ├─> run(NAME, input) ─> a body: decode, compare, encode, decode
//! tests/fuzz_bodies.rs ───────┘         └─ holds the memory that it took against the input
//! ```
//!
//! A body panics if a promise is broken. The promises: no bytes make a decoder panic; what decodes
//! is encoded to bytes that decode to the same value; no memory is taken for a length that was only
//! announced; an error says where; and what lies before the first bad byte of a log is found.
//!
//! Checksums keep blind mutation out of a decoder, so each body works on the input twice: as it is,
//! and with its checksums made to fit. [`seeds`] are valid encodings, the corpus to begin with. A body
//! returns whether anything in the input was accepted, so that a test can tell that seeds are.

#![allow(dead_code, reason = "a fuzz target runs one body and needs no seeds")]

mod checkpoint;
mod log;
mod log_damage;
pub(crate) mod memory;
mod pages;
mod peer;
pub(crate) mod seeds;
mod stream;
mod text;
#[path = "../wal_kit/mod.rs"]
mod wal_kit;
mod wire;

/// A kind of input and what must hold for it.
pub(crate) struct Target {
    /// The name of the fuzz target and of its corpus.
    pub(crate) name: &'static str,
    body: fn(&[u8]) -> bool,
    /// Bytes of memory that a byte of input may take, beside [`MEMORY_BYTES`].
    memory_factor: usize,
}

/// Memory that a body may take for any input: segments in full length, messages of errors.
const MEMORY_BYTES: usize = 2 << 20;

const fn target(name: &'static str, body: fn(&[u8]) -> bool, memory_factor: usize) -> Target {
    Target {
        name,
        body,
        memory_factor,
    }
}

/// Memory for a byte of a log's history: its block on disk, as it was sent, and in a copy of the disk.
const HISTORY_FACTOR: usize = 3 * 4096;

/// All targets.
pub(crate) const TARGETS: &[Target] = &[
    target("client_frame", wire::client_frame, 700),
    target("peer_frame", wire::peer_frame, 700),
    target("client_message", wire::client_message, 700),
    target("command", wire::command, 700),
    target("log_block", log::block, 64),
    target("log_segment", log::segment, 64),
    target("log_damage", log_damage::damage, HISTORY_FACTOR),
    target("checkpoint_page", pages::pages, 2000),
    target("checkpoint_stream", stream::stream, 2000),
    target("checkpoint_root", checkpoint::root, 64),
    target("manifest", checkpoint::manifest, 64),
    target("superblock", checkpoint::superblock, 64),
    target("config", text::config, 2000),
    target("jobs_file", text::jobs_file, 200),
];

/// Runs the body of the target called `name`; whether anything in the input was accepted.
///
/// # Panics
/// If a promise is broken, or if there is no such target.
pub(crate) fn run(name: &str, input: &[u8]) -> bool {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.unwrap_or_else(|| panic!("there is no target {name}"));
    let mut accepted = false;
    let taken = memory::peak_of(|| accepted = (target.body)(input));
    let allowed = MEMORY_BYTES + input.len() * target.memory_factor;
    assert!(
        taken <= allowed,
        "{name}: {taken} bytes of memory for {} bytes of input, {allowed} are allowed",
        input.len()
    );
    accepted
}

/// An error is for people: it says something, and not without end.
fn assert_is_told(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.trim().is_empty(), "an error without words");
    assert!(
        text.len() < 2000,
        "an error of {} bytes: {text}",
        text.len()
    );
}

/// Reads an input as fields; beyond its end are zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    /// So many bytes, or what is left.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
