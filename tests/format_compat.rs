//! Data directories that earlier versions wrote still open.
//!
//! A fixture is a directory as a killed node left it. Segments are kept without their trailing zeros
//! and padded here. `RRQ_WRITE_FIXTURE=1 cargo test --release --test format_compat` writes that of
//! the present version anew; do so only when a format has changed, under a new name.

#![cfg(all(feature = "server", feature = "client", target_os = "linux"))]

mod data_kit;
mod node_support;

use data_kit::{ARGS, Known, Survey, files, make, survey};
use node_support::{Node, TestFolder, folder, refused};
use std::fs;
use std::path::{Path, PathBuf};

const SEGMENT_BYTES: u64 = 16 << 20;

fn fixture(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(version)
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "seg")
}

/// What a fixture leaves out: the room that is kept free, and segments that hold nothing yet.
fn is_spare(path: &Path) -> bool {
    let name = path.file_name().expect("a file").to_string_lossy();
    name == "ballast" || name.starts_with("spare-")
}

fn write(version: &str) {
    let data = folder("fixture-made");
    let known = make(&data, None);
    let target = fixture(version);
    let _ = fs::remove_dir_all(&target);
    for file in files(&data).into_iter().filter(|file| !is_spare(file)) {
        let copy = target
            .join("data")
            .join(file.strip_prefix(&data).expect("it is in there"));
        fs::create_dir_all(copy.parent().expect("a folder")).expect("a folder is made");
        let mut bytes = fs::read(&file).expect("it can be read");
        if is_segment(&file) {
            let used = bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1);
            bytes.truncate(used);
        }
        fs::write(copy, bytes).expect("it can be written");
    }
    let lines: Vec<String> = known.iter().map(Known::to_string).collect();
    fs::write(target.join("jobs.tsv"), lines.join("\n") + "\n").expect("it can be written");
}

fn unpack(version: &str, name: &str) -> (TestFolder, Vec<Known>) {
    let (from, to) = (fixture(version), folder(&format!("fixture-{name}")));
    data_kit::copy(&from.join("data"), &to);
    for file in files(&to).into_iter().filter(|file| is_segment(file)) {
        let file = fs::File::options()
            .write(true)
            .open(file)
            .expect("it is there");
        file.set_len(SEGMENT_BYTES).expect("it can grow");
    }
    let jobs = fs::read_to_string(from.join("jobs.tsv")).expect("it is there");
    (to, jobs.lines().map(Known::parse).collect())
}

#[test]
fn a_directory_of_format_1_opens_with_every_job_and_goes_on() {
    opens_and_goes_on("v1");
}

#[test]
fn a_directory_of_format_2_opens_with_every_job_and_goes_on() {
    if std::env::var_os("RRQ_WRITE_FIXTURE").is_some() {
        write("v2");
    }
    opens_and_goes_on("v2");
}

fn opens_and_goes_on(version: &str) {
    let (data, known) = unpack(version, &format!("opens-{version}"));
    assert!(known.len() > 80, "the fixture has {} jobs", known.len());
    let whole = Survey {
        same: known.len(),
        ..Survey::default()
    };
    let mut node = Node::start(&data, ARGS);
    assert_eq!(survey(&node, &known), whole);
    // It is used on, killed, and opened again.
    let more = data_kit::block_on(async {
        let client = data_kit::connect(&node).await;
        let queue = client.queue("queue-1").await.expect("it is there");
        let pending = known
            .iter()
            .find(|job| job.key == "key-1")
            .expect("one has a key");
        let again = queue.job_by_key("key-1").await.expect("keys are kept");
        assert_eq!(again.body.key.as_deref(), Some(pending.key.as_bytes()));
        let job = rrq::client::NewJob {
            payload: "new".into(),
            ..Default::default()
        };
        let id = queue
            .enqueue(job)
            .await
            .expect("it is taken")
            .id()
            .expect("a job");
        let (state, payload) = ("pending".to_owned(), "new".to_owned());
        Known {
            id,
            state,
            payload,
            key: String::new(),
        }
    });
    assert!(
        known.iter().all(|job| job.id != more.id),
        "ids are never given out again"
    );
    node.signal("-KILL");
    node.wait();
    let node = Node::start(&data, ARGS);
    assert_eq!(survey(&node, &known), whole);
    assert_eq!(survey(&node, &[more]).same, 1);
}

#[test]
fn files_numbered_without_their_shard_go_to_a_multiple_of_shards_and_are_refused_for_others() {
    let (data, known) = unpack("v1", "shards");
    let whole = Survey {
        same: known.len(),
        ..Survey::default()
    };
    let before = files(&data);
    let (status, text) = refused(&data, &["--shards", "1", "--no-pin"]);
    assert_eq!(status, 6, "{text}");
    assert!(text.contains("error[RRQ-3004]"), "{text}");
    assert!(text.contains("--shards 2, or a multiple of it"), "{text}");
    assert_eq!(files(&data), before, "nothing was changed");
    let node = Node::start(&data, &["--shards", "4", "--no-pin"]);
    assert_eq!(survey(&node, &known), whole);
    drop(node);
    let node = Node::start(&data, &["--shards", "2", "--no-pin"]);
    assert_eq!(
        survey(&node, &known),
        whole,
        "two of the four have one origin"
    );
}
