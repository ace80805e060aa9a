//! Files of a data directory, by what they are for, and the ways in which they are damaged.

use super::data_kit::files;
use std::fs;
use std::path::{Path, PathBuf};

/// The ways in which a file is damaged.
pub(crate) const DAMAGES: [&str; 6] = ["flip", "half", "empty", "missing", "swapped", "older"];

/// The files of `data` that a row is about, none if there are none, and one of the same kind to swap the first
/// with. A log has a first and a last segment if it has two.
pub(crate) fn targets(data: &Path, row: &str) -> (Vec<PathBuf>, Option<PathBuf>) {
    let shard = data.join("shard-0000");
    let named = |part: &str, shard: &Path| -> Vec<PathBuf> {
        let all = files(shard).into_iter();
        all.filter(|file| {
            let name = file.file_name().expect("a file").to_string_lossy();
            name.contains(part) && !name.starts_with("spare-")
        })
        .collect()
    };
    let other = |part: &str| named(part, &data.join("shard-0001")).pop();
    match row {
        "superblock.*" => (
            vec![data.join("superblock.0"), data.join("superblock.1")],
            None,
        ),
        "superblock.0" => (vec![data.join(row)], Some(data.join("superblock.1"))),
        "lock" | "ballast" => (vec![data.join(row)], None),
        "run" => (named(".run", &shard), other(".run")),
        "payload" => (named(".pay", &shard), other(".pay")),
        "manifest" => (named("manifest-", &shard), other("manifest-")),
        _ => {
            let mut segments = named(".seg", &shard);
            // One that is made ahead holds nothing yet.
            segments.retain(|file| {
                let bytes = fs::read(file).expect("it can be read");
                bytes.iter().any(|byte| *byte != 0)
            });
            match (row, segments.as_slice()) {
                ("first segment", [first, .., last]) => (vec![first.clone()], Some(last.clone())),
                ("last segment", [first, .., last]) => (vec![last.clone()], Some(first.clone())),
                _ => (Vec::new(), None),
            }
        }
    }
}

/// Damages a file in a way that its checksums or its absence must tell.
pub(crate) fn damage(path: &Path, how: &str, other: Option<&Path>, older: &Path) {
    let bytes = fs::read(path).expect("it can be read");
    match how {
        "flip" => {
            let mut bytes = bytes;
            // In the middle of what is used, whatever the file is padded with.
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            bytes[used / 2] ^= 0x10;
            fs::write(path, bytes).expect("it can be written");
        }
        "half" => fs::write(path, &bytes[..bytes.len() / 2]).expect("it can be written"),
        "empty" => fs::write(path, []).expect("it can be written"),
        "missing" => fs::remove_file(path).expect("it can be removed"),
        "swapped" => {
            let other = other.expect("there is one");
            let theirs = fs::read(other).expect("it can be read");
            fs::write(other, bytes).expect("it can be written");
            fs::write(path, theirs).expect("it can be written");
        }
        "older" => {
            fs::copy(older, path).expect("it can be copied");
        }
        other => panic!("no damage is called {other}"),
    }
}
