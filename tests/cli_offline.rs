//! `rrqctl log` and `rrqctl snapshot` on the files of a stopped node, whole and damaged.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod cli_support;
mod node_support;

use cli_support::{alone, rrqctl, shape, snapshot};
use node_support::{Node, TestFolder, folder};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A stopped node that holds three jobs of one queue, in a checkpoint and in the log before it.
fn stopped(name: &str) -> TestFolder {
    let data = folder(name);
    let mut node = Node::start(&data, &["--shards", "1"]);
    for number in 0..3 {
        let payload = format!("payload {number}");
        rrqctl(
            &node,
            &["enqueue", "-q", "emails", "--key", &payload, &payload],
        )
        .ok();
    }
    node.signal("-TERM");
    assert!(node.wait().success());
    data
}

/// Every file of a directory but the lock, which names its last holder.
fn files(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("it can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name != "lock") {
                let bytes = fs::read(&path).expect("it can be read");
                found.insert(path, bytes);
            }
        }
    }
    found
}

fn flip(path: &Path, text: &str) {
    let mut bytes = fs::read(path).expect("it can be read");
    let at = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes());
    bytes[at.expect("it is there")] ^= 0x20;
    fs::write(path, bytes).expect("it can be written");
}

fn one(data: &Path, prefix: &str) -> PathBuf {
    let found = files(data);
    let mut found = found.into_keys().filter(|path| {
        let name = path.file_name().expect("a file has a name");
        name.to_string_lossy().starts_with(prefix)
    });
    found
        .next()
        .unwrap_or_else(|| panic!("there is no {prefix} file"))
}

fn json(args: &[&str]) -> Value {
    let said = alone(&[args, &["--output", "json"]].concat()).ok();
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
}

#[test]
fn whole_files_are_proved_and_left_as_they_are() {
    let data = stopped("offline-whole");
    let dir = data.display().to_string();
    let before = files(&data);
    let said = alone(&["log", "verify", "--data-dir", &dir]).ok();
    assert!(said.contains("sound"), "{said}");
    let said = alone(&["snapshot", "verify", &dir]).ok();
    assert!(said.contains("3 bodies read and proved"), "{said}");
    let said = alone(&["snapshot", "inspect", "--data-dir", &dir]).ok();
    assert!(
        said.contains("1 payload file") && said.contains("\nleaf"),
        "{said}"
    );
    for (name, args) in [
        ("log-verify", ["log", "verify", "--data-dir", &dir]),
        (
            "snapshot-verify",
            ["snapshot", "verify", "--data-dir", &dir],
        ),
        (
            "snapshot-inspect",
            ["snapshot", "inspect", "--data-dir", &dir],
        ),
        ("repair", ["repair", "--data-dir", &dir, "--output"]),
    ] {
        let args = args.iter().copied().filter(|arg| *arg != "--output");
        let value = json(&args.collect::<Vec<_>>());
        snapshot(&format!("json/{name}.txt"), &shape(&value));
    }
    assert_eq!(files(&data), before);
}

#[test]
fn the_log_is_shown_record_by_record() {
    let data = stopped("offline-dump");
    let dir = data.display().to_string();
    let dump = |more: &[&str]| {
        let args = [&["log", "dump", "--data-dir", &dir], more].concat();
        alone(&args).ok()
    };
    let lines: Vec<Value> = dump(&["--output", "json"])
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    let kinds = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert!(kinds("segment_head") == 1 && kinds("base") > 64 && kinds("hard_state") > 64);
    let enqueued: Vec<&Value> = lines
        .iter()
        .filter(|line| line["command"] == "enqueue")
        .collect();
    assert_eq!(enqueued.len(), 3);
    assert_eq!(enqueued[0]["fields"]["items"][0]["key"], "payload 0");
    assert_eq!(enqueued[0]["fields"]["items"][0]["payload_bytes"], 9);
    assert!(enqueued[0]["fields"]["items"][0]["payload"].is_null());
    snapshot("json/log-dump-entry.txt", &shape(enqueued[0]));

    // One group, from an index on, no more than so many, with payloads.
    let group = enqueued[0]["group"].to_string();
    let from = enqueued[1]["index"].to_string();
    let some = dump(&["--group", &group, "--from", &from, "--payloads"]);
    assert!(
        !some.contains("payload 0") && some.contains("payload 2"),
        "{some}"
    );
    assert!(
        some.lines().all(|line| line.contains(" entry group ")),
        "{some}"
    );
    assert_eq!(dump(&["--limit", "7"]).lines().count(), 7);
    alone(&["log", "dump", "--data-dir", &dir, "--shard", "1"]).failed(2, "RRQ-2001");
}

#[test]
fn damage_in_the_log_is_named() {
    let data = stopped("offline-log-damage");
    let dir = data.display().to_string();
    let segment = data.join("shard-0000/wal-0001/0000000000000001.seg");
    flip(&segment, "payload 1");
    let before = files(&data);
    let shown = alone(&["log", "verify", "--data-dir", &dir]);
    assert!(shown.out.contains("damaged"), "{}", shown.out);
    assert!(
        shown.out.contains("segment 0000000000000001.seg, byte"),
        "{}",
        shown.out
    );
    let said = shown.failed(5, "RRQ-5001");
    assert!(said.contains("rrqctl repair --data-dir"), "{said}");
    let dumped = alone(&["log", "dump", "--data-dir", &dir]).ok();
    assert!(dumped.contains(" damaged {\"to_offset\""), "{dumped}");
    let shown = alone(&["log", "verify", "--data-dir", &dir, "--output", "json"]);
    let value: Value = serde_json::from_str(&shown.out).expect("it is JSON");
    assert_eq!(value["sound"], false);
    snapshot("json/log-verify-damaged.txt", &shape(&value));
    assert_eq!(files(&data), before);
}

#[test]
fn damage_in_a_checkpoint_is_named() {
    for (name, prefix, text) in [
        ("offline-body", "payload-", "payload 1"),
        ("offline-page", "run-", "emails"),
    ] {
        let data = stopped(name);
        let dir = data.display().to_string();
        flip(&one(&data, prefix), text);
        let before = files(&data);
        let shown = alone(&["snapshot", "verify", "--data-dir", &dir]);
        assert!(shown.out.contains("its newest checkpoint"), "{}", shown.out);
        let said = shown.failed(5, "RRQ-5002");
        assert!(said.contains("1 checkpoint of"), "{said}");
        assert_eq!(files(&data), before);
    }
}

#[test]
fn a_running_node_is_left_alone() {
    let data = folder("offline-running");
    let node = Node::start(&data, &["--shards", "1"]);
    let dir = data.display().to_string();
    for command in [
        ["log", "verify"],
        ["log", "dump"],
        ["snapshot", "inspect"],
        ["snapshot", "verify"],
    ] {
        let said = alone(&[&command[..], &["--data-dir", &dir]].concat()).failed(4, "RRQ-1007");
        assert!(said.contains("stop that node"), "{said}");
    }
    drop(node);
    let nothing = folder("offline-nothing").display().to_string();
    alone(&["log", "verify", "--data-dir", &nothing]).failed(5, "RRQ-5004");
}
