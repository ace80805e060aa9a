//! Hot-state checkpoints: their files, how they are built and how they are read.
//!
//! A checkpoint of a group holds what is *live* at one index of its log: jobs that are pending,
//! delayed, leased or dead, their queues, sessions and idempotency keys. A job that is finished
//! before the cut is in none of its files; restart and copying cost what lives, not what happened.
//!
//! ```text
//! MANIFEST / BASE record of the log                    what the superblock says: whose disk it is
//!   └─ RootRef {file, offset, len, hash}
//!        └─ root ── canonical part: applied index, voters, directory (page -> length, hash)
//!             │         └─ its hash names the state; replicas agree on it
//!             └──── local part: where on *this* disk each page and each job's body lies
//!                       ├─ pages, in this or an older run file
//!                       └─ bodies, in payload files
//! ```
//!
//! # What is durable when
//!
//! Payload files, then the run file, then their directory entries, all synced; only then the BASE
//! record in the log, and with the next round of it the manifest. Nothing that an older base names
//! is removed before the newer is durable. A crash between any two steps leaves files that no base
//! names (they are removed at start by their name) and an older base that is whole.
//!
//! # Invariants
//!
//! - This folder is bytes in, bytes out: it opens no file and waits for nothing.
//! - A page is opaque here: named, hashed, placed, never interpreted. The canonical part of a root
//!   is a function of the state alone, so that equal states have equal hashes on every node.
//! - Every byte that a decoder believes is under a checksum, and what a hash names is checked
//!   against the hash; a decoder of damaged bytes yields an error by name, never other content.
//! - No decoder reserves memory by a count that the bytes at hand cannot bear out.
//! - Numbers are little-endian. Reserved bytes are zero, written and demanded: a meaning given to
//!   them later raises the format number, so that an older binary refuses by name.
//!
//! | file | holds |
//! | --- | --- |
//! | [`layout`] | the byte layout of run files, payload files and roots, and their nouns |
//! | [`builder`] | jobs and pages to bytes, in slices |
//! | [`header`] | the first block of each file |
//! | [`view`] | bytes to roots, pages, bodies; every way in which they can be wrong |
//! | [`load`] | a whole group from its root, by few large reads |
//! | [`manifest`] | the second anchor of a shard's bases |
//! | [`superblock`] | whose disk this is, and which log is in force |

pub mod builder;
mod fields;
pub mod format1;
pub mod header;
pub mod layout;
pub mod load;
pub mod manifest;
#[cfg(test)]
mod samples;
pub mod superblock;
pub mod view;
