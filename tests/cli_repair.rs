//! `rrqctl repair`: refuses beside a running node, shows, then lets the damaged groups serve again.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod cli_support;
mod node_support;

use cli_support::{alone, rrqctl, until};
use node_support::{Node, TestFolder, folder};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const BLOCK: usize = 4096;

/// A directory with `jobs` jobs in each of some queues, killed.
fn filled(name: &str, queues: &[&str], jobs: usize) -> TestFolder {
    let data = folder(name);
    let node = Node::start(&data, &["--shards", "1"]);
    for number in 0..jobs {
        for queue in queues {
            let payload = format!("{queue} {number}");
            rrqctl(
                &node,
                &["enqueue", "-q", queue, "--key", &payload, &payload],
            )
            .ok();
        }
    }
    // A beacon proves that the last one was durable.
    until("a beacon", || beacon(&data));
    node.signal("-KILL");
    drop(node);
    data
}

fn log(data: &Path) -> PathBuf {
    data.join("shard-0000/wal-0001")
}

fn first_segment(data: &Path) -> PathBuf {
    log(data).join("0000000000000001.seg")
}

/// The blocks of the log in which `text` stands.
fn blocks_with(bytes: &[u8], text: &str) -> Vec<usize> {
    let text = text.as_bytes();
    let found = bytes.windows(text.len()).enumerate();
    let found = found.filter(|(_, window)| *window == text);
    found.map(|(at, _)| at / BLOCK * BLOCK).collect()
}

/// An empty batch, with the flag of a beacon, as the last of the log.
fn beacon(data: &Path) -> Option<()> {
    let bytes = fs::read(first_segment(data)).ok()?;
    let last = bytes
        .chunks(BLOCK)
        .rposition(|block| block.starts_with(b"rrqB"))?;
    (bytes[last * BLOCK + 5] & 1 != 0).then_some(())
}

fn files(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let names = fs::read_dir(log(data)).expect("it can be read");
    let paths = names.map(|entry| entry.expect("an entry").path());
    paths
        .map(|path| (path.clone(), fs::read(path).expect("it can be read")))
        .collect()
}

#[test]
fn a_running_node_is_left_alone() {
    let data = folder("repair-running");
    let node = Node::start(&data, &["--shards", "1"]);
    let dir = data.display().to_string();
    let said = alone(&["repair", "--data-dir", &dir, "--accept-loss"]).failed(4, "RRQ-1007");
    assert!(said.contains("stop that node"), "{said}");
    drop(node);
    assert_eq!(
        alone(&["repair", "--data-dir", &dir]).ok(),
        "no damage was found\n"
    );
}

#[test]
fn what_is_no_data_directory_is_refused() {
    let data = folder("repair-nothing");
    let dir = data.display().to_string();
    let said = alone(&["repair", "--data-dir", &dir]).failed(5, "RRQ-5004");
    assert!(said.contains("holds no data of a node"), "{said}");
    assert!(!data.exists(), "nothing is made");
}

#[test]
fn a_flipped_byte_is_shown_then_given_up() {
    let data = filled("repair-flip", &["first", "second"], 3);
    let dir = data.display().to_string();
    let path = first_segment(&data);
    let mut bytes = fs::read(&path).expect("a segment");
    let at = blocks_with(&bytes, "second 1")[0];
    bytes[at + 100] ^= 0x10;
    fs::write(&path, &bytes).expect("it can be written");

    // The node serves what is whole, and names what is not.
    let node = Node::start(&data, &[]);
    let status = rrqctl(&node, &["status"]).ok();
    assert!(status.contains("STOPPED: group"), "{status}");
    assert!(status.contains("rrqctl repair"), "{status}");
    let get = |node: &Node, queue: &str, key: &str| {
        rrqctl(node, &["job", "get", "-q", queue, "--key", key])
    };
    get(&node, "first", "first 2").ok();
    get(&node, "second", "second 0").failed(1, "RRQ-4010");
    node.signal("-KILL");
    drop(node);

    // It shows, and changes nothing.
    let before = files(&data);
    let shown = alone(&["repair", "--data-dir", &dir]);
    assert!(shown.out.contains(&format!("byte {at}")), "{}", shown.out);
    assert!(
        shown
            .out
            .contains("queue second: 1 job left, 0 done; jobs after its first 1 are lost"),
        "{}",
        shown.out
    );
    let said = shown.failed(5, "RRQ-5001");
    assert!(said.contains("--accept-loss"), "{said}");
    assert!(files(&data) == before, "showing changes nothing");

    let done = alone(&["repair", "--data-dir", &dir, "--accept-loss"]).ok();
    assert!(done.contains("done; start the node again"), "{done}");
    let after = files(&data);
    for (path, bytes) in &before {
        assert!(
            after.get(path) == Some(bytes),
            "{} was changed",
            path.display()
        );
    }
    // Twice: the second start reads what the first one wrote.
    for _ in 0..2 {
        let mut node = Node::start(&data, &[]);
        let status = rrqctl(&node, &["status"]).ok();
        assert!(!status.contains("STOPPED"), "{status}");
        get(&node, "first", "first 2").ok();
        get(&node, "second", "second 0").ok();
        get(&node, "second", "second 2").failed(1, "RRQ-4111");
        node.signal("-TERM");
        assert!(node.wait().success());
    }
    let node = Node::start(&data, &[]);
    let again = ["enqueue", "-q", "second", "--key", "second 2", "again"];
    let done = rrqctl(&node, &again);
    assert_eq!(done.err, "1 enqueued, 0 already there\n");
    drop(node);
    let shown = alone(&["repair", "--data-dir", &dir]).ok();
    assert!(
        shown.contains("a start serves all of them") || shown.contains("no damage"),
        "{shown}"
    );
}

#[test]
fn a_repair_that_was_cut_short_is_finished() {
    let data = filled("repair-cut", &["first", "second"], 2);
    let dir = data.display().to_string();
    let path = first_segment(&data);
    let mut bytes = fs::read(&path).expect("a segment");
    let at = blocks_with(&bytes, "second 1")[0];
    bytes[at + 100] ^= 0x10;
    fs::write(&path, &bytes).expect("it can be written");
    let old = files(&data);
    alone(&["repair", "--data-dir", &dir, "--accept-loss"]).ok();
    let new: Vec<PathBuf> = files(&data)
        .into_keys()
        .filter(|path| !old.contains_key(path))
        .collect();
    let [segment] = &new[..] else {
        panic!("{new:?} instead of one segment")
    };
    let (mark, written) = (
        log(&data).join("repairing"),
        segment.with_extension("repair"),
    );

    // As after a crash behind the mark: refused until it is taken up.
    fs::rename(segment, &written).expect("it can be renamed");
    fs::write(&mark, b"").expect("it can be written");
    let (status, text) = node_support::refused(&data, &[]);
    assert_eq!(status, 5, "{text}");
    assert!(
        text.contains("error[RRQ-5001]") && text.contains("cut short"),
        "{text}"
    );
    alone(&["repair", "--data-dir", &dir]).failed(5, "RRQ-5001");
    alone(&["repair", "--data-dir", &dir, "--accept-loss"]).ok();
    assert!(!mark.exists() && !written.exists() && segment.exists());

    // As after a crash before it: nothing has happened.
    fs::rename(segment, &written).expect("it can be renamed");
    let shown = alone(&["repair", "--data-dir", &dir]);
    assert!(shown.out.contains("cannot serve"), "{}", shown.out);
    alone(&["repair", "--data-dir", &dir, "--accept-loss"]).ok();
    assert!(!written.exists() && segment.exists());
    let node = Node::start(&data, &[]);
    let status = rrqctl(&node, &["status"]).ok();
    assert!(!status.contains("STOPPED"), "{status}");
}

/// A node's data with a checkpoint, which a stop cuts, and the file of its pages.
fn with_checkpoint(name: &str) -> (TestFolder, PathBuf) {
    let data = folder(name);
    let mut node = Node::start(&data, &["--shards", "1"]);
    for key in ["1", "2"] {
        rrqctl(&node, &["enqueue", "-q", "a", "--key", key, key]).ok();
    }
    node.signal("-TERM");
    assert!(node.wait().success());
    let run = runs(&data).pop().expect("a stop cuts a checkpoint");
    (data, run)
}

fn runs(data: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(data.join("shard-0000")).expect("it can be read");
    let paths = names.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "run"))
        .collect()
}

#[test]
fn a_damaged_checkpoint_in_front_of_an_intact_log_costs_nothing() {
    let (data, run) = with_checkpoint("repair-passed");
    let dir = data.display().to_string();
    let mut bytes = fs::read(&run).expect("a run");
    let at = bytes.len() - 100;
    bytes[BLOCK..at].fill(0x55);
    fs::write(&run, &bytes).expect("it can be written");
    let shown = alone(&["repair", "--data-dir", &dir]).ok();
    assert!(
        shown.contains("its newest checkpoint is damaged"),
        "{shown}"
    );
    assert!(shown.ends_with("a start serves all of them\n"), "{shown}");
    let node = Node::start(&data, &[]);
    assert!(!rrqctl(&node, &["status"]).ok().contains("STOPPED"));
    rrqctl(&node, &["job", "get", "-q", "a", "--key", "2"]).ok();
}

#[test]
fn a_group_without_a_checkpoint_to_go_on_from_is_named_and_left() {
    let (data, _) = with_checkpoint("repair-nothing-left");
    let dir = data.display().to_string();
    let mut node = Node::start(&data, &[]);
    rrqctl(&node, &["enqueue", "-q", "a", "--key", "3", "3"]).ok();
    node.signal("-TERM");
    assert!(node.wait().success());
    let runs = runs(&data);
    assert_eq!(runs.len(), 2, "each stop cuts a checkpoint");
    for run in runs {
        let mut bytes = fs::read(&run).expect("a run");
        bytes[BLOCK..].fill(0x55);
        fs::write(&run, &bytes).expect("it can be written");
    }
    let before = files(&data);
    for accept in [&[][..], &["--accept-loss"][..]] {
        let done = alone(&[&["repair", "--data-dir", &dir][..], accept].concat());
        println!("{}", done.out);
        assert!(!done.out.contains("done; start"), "{}", done.out);
        let said = done.failed(5, "RRQ-5002");
        assert!(said.contains("from a backup"), "{said}");
    }
    assert!(files(&data) == before, "nothing is changed");
}

#[test]
fn damage_at_any_place_ends_with_all_groups_serving() {
    let data = filled("repair-anywhere", &["a", "b", "c", "d", "e"], 4);
    let dir = data.display().to_string();
    let path = first_segment(&data);
    let whole = fs::read(&path).expect("a segment");
    let old = files(&data);
    let used = whole
        .chunks(BLOCK)
        .rposition(|block| block.iter().any(|byte| *byte != 0));
    let used = used.expect("it was written") * BLOCK;
    for at in [70, used / 4 + 70, used / 2 + 70, used * 3 / 4 + 70] {
        for (path, bytes) in &old {
            fs::write(path, bytes).expect("it can be written");
        }
        for path in files(&data)
            .into_keys()
            .filter(|path| !old.contains_key(path))
        {
            fs::remove_file(path).expect("it can be removed");
        }
        let mut bytes = whole.clone();
        bytes[at] ^= 0x01;
        fs::write(&path, &bytes).expect("it can be written");
        let shown = alone(&["repair", "--data-dir", &dir]);
        println!("byte {at}: {}", shown.out);
        assert!(!shown.err.contains("RRQ-9999"), "{}", shown.err);
        alone(&["repair", "--data-dir", &dir, "--accept-loss"]).ok();
        let node = Node::start(&data, &[]);
        let status = rrqctl(&node, &["status"]).ok();
        assert!(!status.contains("STOPPED"), "byte {at}: {status}");
        let done = rrqctl(&node, &["enqueue", "-q", "a", "x"]);
        assert_eq!(done.err, "1 enqueued, 0 already there\n");
    }
}

/// A stopped node whose group of queue `emails` has two checkpoints that share their first bodies.
fn twice_stopped(name: &str) -> TestFolder {
    let data = folder(name);
    for round in 0..2 {
        let mut node = Node::start(&data, &["--shards", "1"]);
        for number in 0..3 {
            let payload = format!("payload {}", round * 3 + number);
            let add = ["enqueue", "-q", "emails", "--key", &payload, &payload];
            rrqctl(&node, &add).ok();
        }
        node.signal("-TERM");
        assert!(node.wait().success());
    }
    data
}

/// Flips a bit of `text` in every checkpoint file that holds it; how many do.
fn flip_in_checkpoints(data: &Path, text: &str) -> usize {
    let names = fs::read_dir(data.join("shard-0000")).expect("it can be read");
    let paths = names.map(|entry| entry.expect("an entry").path());
    let mut flipped = 0;
    for path in paths.filter(|path| path.is_file()) {
        let mut bytes = fs::read(&path).expect("it can be read");
        let found: Vec<usize> = bytes
            .windows(text.len())
            .enumerate()
            .filter(|(_, window)| *window == text.as_bytes())
            .map(|(at, _)| at)
            .collect();
        found.iter().for_each(|at| bytes[*at] ^= 0x40);
        flipped += usize::from(!found.is_empty());
        fs::write(&path, bytes).expect("it can be written");
    }
    flipped
}

#[test]
fn a_damaged_body_costs_its_job_alone() {
    let data = twice_stopped("repair-body");
    let dir = data.display().to_string();
    assert!(flip_in_checkpoints(&data, "payload 1") >= 1);

    let mut node = Node::start(&data, &[]);
    let status = rrqctl(&node, &["status"]).ok();
    assert!(status.contains("STOPPED: group"), "{status}");
    node.signal("-TERM");
    node.wait();

    // It shows what is lost, and changes nothing.
    let before = files(&data);
    let shown = alone(&["repair", "--data-dir", &dir]);
    assert!(shown.out.contains("  lost: job "), "{}", shown.out);
    assert!(
        shown.out.contains("queue emails: 5 jobs left"),
        "{}",
        shown.out
    );
    shown.failed(5, "RRQ-5001");
    assert_eq!(files(&data), before);

    let done = alone(&["repair", "--data-dir", &dir, "--accept-loss"]).ok();
    assert!(done.contains("done; start the node again"), "{done}");
    assert_eq!(
        alone(&["repair", "--data-dir", &dir]).ok(),
        "no damage was found\n"
    );

    let node = Node::start(&data, &[]);
    let get = |key: &str| rrqctl(&node, &["job", "get", "-q", "emails", "--key", key]);
    for number in [0, 2, 3, 4, 5] {
        let payload = format!("payload {number}");
        assert!(get(&payload).ok().contains(&payload), "{payload}");
    }
    get("payload 1").failed(1, "RRQ-4111");
    // Its key is forgotten with it, so that it can be enqueued again; another's is not.
    let add = |key: &str| rrqctl(&node, &["enqueue", "-q", "emails", "--key", key, key]).err;
    assert_eq!(add("payload 1"), "1 enqueued, 0 already there\n");
    assert!(add("payload 2").contains("1 already there"));
}

#[test]
fn a_damaged_page_of_a_queue_costs_that_queue_alone() {
    let data = twice_stopped("repair-page");
    let dir = data.display().to_string();
    // Its name stands in its page, in both checkpoints.
    assert!(flip_in_checkpoints(&data, "emails") >= 1);
    let shown = alone(&["repair", "--data-dir", &dir]);
    assert!(shown.out.contains("  lost: queue "), "{}", shown.out);
    let done = alone(&["repair", "--data-dir", &dir, "--accept-loss"]).ok();
    assert!(done.contains("done; start the node again"), "{done}");
    let node = Node::start(&data, &[]);
    let status = rrqctl(&node, &["status"]).ok();
    assert!(
        !status.contains("STOPPED") && !status.contains("emails"),
        "{status}"
    );
    rrqctl(&node, &["enqueue", "-q", "emails", "again"]).ok();
}
