//! A node is started with another number of shards: every group is served, with all that it had, whatever
//! comes in between.
#![cfg(all(feature = "server", feature = "client", target_os = "linux"))]

mod cluster_kit;
mod data_kit;
mod node_support;

use cluster_kit::{Cluster, Load};
use data_kit::{ARGS, Known, Survey, block_on, connect, files, make, make_with, survey};
use node_support::{Node, folder, refused};
use rrq::base::code::Code;
use rrq::base::limits::SEGMENT_BYTES;
use rrq::base::report::Report;
use rrq::client::{Client, NewJob, Token};
use rrq::runtime::config::{NodeConfig, Shards};
use rrq::runtime::data_dir::DataDir;
use rrq::runtime::redistribute::redistribute;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Of a large payload.
const LARGE_BYTES: usize = 512 << 10;
/// The one that a directory is made with, whose folders lie in the directory itself.
const FIRST_SET: &str = "set 1";

fn whole(known: &[Known]) -> Survey {
    Survey {
        same: known.len(),
        ..Survey::default()
    }
}

/// The arguments of a node of so many shards.
fn args(shards: u16) -> [&'static str; 3] {
    let shards = ["0", "1", "2", "3", "4"][usize::from(shards)];
    ["--shards", shards, "--no-pin"]
}

/// The sets of logs that a data directory has.
fn sets(data: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(data).expect("it is there");
    let names = names.map(|name| name.expect("it can be listed").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let set = |name: String| match name.strip_prefix("shard-") {
        Some(_) => Some(FIRST_SET.to_owned()),
        None => name.starts_with("set-").then_some(name),
    };
    names.filter_map(set).collect()
}

async fn put(client: &Client, numbers: std::ops::Range<u32>) {
    let queue = client.queue("in-order").await.expect("a queue");
    for number in numbers {
        let job = NewJob {
            payload: number.to_string().into(),
            ..NewJob::default()
        };
        queue.enqueue(job).await.expect("it is taken");
    }
}

async fn take(client: &Client, count: u32) -> Vec<(u32, Token)> {
    let queue = client.queue("in-order").await.expect("a queue");
    let week = Duration::from_secs(7 * 24 * 3600);
    let jobs = queue.lease_for(count, Duration::ZERO, Some(week)).await;
    let numbered = jobs.expect("jobs are ready").into_iter().map(|job| {
        let text = String::from_utf8_lossy(&job.job.body.payload).into_owned();
        (text.parse().expect("a number"), job.token())
    });
    numbered.collect()
}

#[test]
fn every_group_has_what_it_had_with_four_shards_one_and_three() {
    let data = folder("other-shards");
    let known = make_with(&data, None, &args(4));
    let node = Node::start(&data, &args(4));
    let held = block_on(async {
        let client = connect(&node).await;
        put(&client, 0..100).await;
        take(&client, 10).await
    });
    drop(node);
    let mut set = sets(&data);
    assert_eq!(set, BTreeSet::from([FIRST_SET.to_owned()]));
    let mut next = 10;
    for (round, shards) in [1, 3, 2].into_iter().enumerate() {
        let node = Node::start(&data, &args(shards));
        let shown = format!(", {shards} shard");
        assert!(node.ready.contains(&shown), "{}", node.ready);
        assert_eq!(survey(&node, &known), whole(&known), "with {shards}");
        let before = std::mem::replace(&mut set, sets(&data));
        assert!(set.len() == 1 && set != before, "{before:?}, then {set:?}");
        block_on(async {
            let client = connect(&node).await;
            // Tokens of before are good, and the order is as it was.
            let (_, token) = held[round];
            client.ack(token, None).await.expect("its token is valid");
            let taken = take(&client, 10).await;
            let numbers: Vec<u32> = taken.iter().map(|(number, _)| *number).collect();
            assert_eq!(numbers, (next..next + 10).collect::<Vec<_>>());
            for (_, token) in taken {
                client.ack(token, None).await.expect("it is acknowledged");
            }
            let gone = client.ack(held[round].1, None).await;
            let gone = gone.expect_err("it is finished").code();
            assert!([Code::Finished, Code::LeaseLost].contains(&gone), "{gone}");
            let queue = client.queue("queue-1").await.expect("it is there");
            let again = queue.job_by_key("key-1").await.expect("keys are kept");
            assert_eq!(again.body.key.as_deref(), Some(&b"key-1"[..]));
            put(
                &client,
                1_000 + 10 * round as u32..1_010 + 10 * round as u32,
            )
            .await;
        });
        next += 10;
        // Dropped, it is killed: what it wrote in its new logs counts.
    }
    // Without a number it goes on as it is.
    let config = data.with_extension("toml");
    fs::write(&config, "[shards]\npin = false\n").expect("a file");
    let path = config.to_str().expect("a path of ours");
    let node = Node::start(&data, &["--config", path]);
    assert!(node.ready.contains(", 2 shards"), "{}", node.ready);
    assert_eq!(survey(&node, &known), whole(&known));
}

#[test]
fn a_node_that_stands_alone_changes_its_shards_under_load() {
    let mut cluster = Cluster::new("shards-alone", 1);
    let start = |cluster: &mut Cluster, shards| {
        cluster.shards.insert(1, shards);
        let node = cluster.spawn_with(1, "alone").until_ready();
        cluster.nodes.insert(1, node);
    };
    start(&mut cluster, 4);
    let load = Load::start(&cluster, 3, 3);
    for (shards, signal) in [(1, "-KILL"), (3, "-TERM"), (4, "-KILL"), (2, "-KILL")] {
        load.until_enqueued(300);
        cluster.end(1, signal);
        start(&mut cluster, shards);
    }
    load.until_enqueued(300);
    let (_, errors) = load.drain();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn the_nodes_of_a_cluster_change_their_shards_one_after_the_other_under_load() {
    let mut cluster = Cluster::new("shards-cluster", 3);
    for number in cluster.numbers() {
        cluster.shards.insert(number, 2);
    }
    cluster.start_all();
    let load = Load::start(&cluster, 2, 2);
    load.until_enqueued(300);
    for (number, shards) in [(1, 3), (2, 1), (3, 4), (1, 1), (2, 3)] {
        cluster.end(number, "-KILL");
        println!("node {number} is gone after {} jobs", load.enqueued());
        load.until_enqueued(100);
        cluster.shards.insert(number, shards);
        cluster.start_one(number);
        println!("and back with {shards} shards after {}", load.enqueued());
        load.until_enqueued(100);
    }
    // Each of them leads, with its own number of shards, when another is gone.
    for number in cluster.numbers() {
        cluster.end(number, "-KILL");
        println!("node {number} is gone after {} jobs", load.enqueued());
        load.until_enqueued(100);
        cluster.start_one(number);
        assert_eq!(cluster.metric(number, "rrq_log_ends_lost_total"), 0.0);
    }
    let (_, errors) = load.drain();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn a_damaged_log_refuses_another_number_by_name() {
    let data = folder("other-shards-damaged");
    let known = make(&data, None);
    let wal = data.join("shard-0001/wal-0001");
    let mut segments = files(&wal);
    segments.retain(|file| {
        let bytes = fs::read(file).expect("it can be read");
        bytes.iter().any(|byte| *byte != 0)
    });
    let last = segments.pop().expect("a log has a segment");
    let kept = data.with_extension("kept");
    fs::rename(&last, &kept).expect("it can be moved");
    let before = files(&data);
    let (status, text) = refused(&data, &args(1));
    assert_eq!(status, 6, "{text}");
    assert!(text.contains("error[RRQ-3004]"), "{text}");
    assert!(
        text.contains("shard 1") && text.contains("--shards 2"),
        "{text}"
    );
    assert_eq!(files(&data), before, "nothing is left of the attempt");
    // With the old number what is whole serves, and the rest stops by name.
    let node = Node::start(&data, ARGS);
    let found = survey(&node, &known);
    assert!(found.wrong.is_empty() && found.halted > 0, "{found:?}");
    drop(node);
    let data = folder("other-shards-mended");
    let known = make(&data, None);
    let node = Node::start(&data, &args(1));
    assert_eq!(
        survey(&node, &known),
        whole(&known),
        "undamaged it is taken"
    );
}

/// Takes a copy of a directory as a crash would leave it, quickly: what is zero takes no room.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let mut command = Command::new("cp");
    command.args(["-a", "--sparse=always"]).arg(from).arg(to);
    let done = command.status().expect("cp is there");
    assert!(done.success(), "{done}");
}

#[test]
fn superblocks_that_are_older_than_the_logs_are_refused_and_nothing_is_removed() {
    let data = folder("shards-older");
    let known = make(&data, None);
    let backup = data.with_extension("backup");
    copy(&data, &backup);
    let node = Node::start(&data, &args(3));
    block_on(async { put(&connect(&node).await, 0..10).await });
    drop(node);
    let newer = sets(&data).pop_first().expect("it has a set");
    let superblocks = ["superblock.0", "superblock.1"];
    let own = superblocks.map(|name| fs::read(data.join(name)).expect("it is there"));
    for name in superblocks {
        fs::copy(backup.join(name), data.join(name)).expect("it is copied");
    }
    // The superblocks alone, then with the logs that they name.
    for parts in [&[][..], &["shard-0000", "shard-0001"]] {
        for part in parts {
            copy(&backup.join(part), &data.join(part));
        }
        let before = files(&data);
        for shards in [2, 3] {
            let (status, text) = refused(&data, &args(shards));
            assert_eq!(status, 5, "{text}");
            assert!(text.contains("error[RRQ-5003]"), "{text}");
            assert!(text.contains(&format!("move {}", data.display())), "{text}");
            assert!(text.contains(&newer), "{text}");
            assert_eq!(files(&data), before);
        }
    }
    for (name, bytes) in superblocks.iter().zip(own) {
        fs::write(data.join(name), bytes).expect("it is written");
    }
    let node = Node::start(&data, &args(3));
    assert_eq!(survey(&node, &known), whole(&known));
    let taken = block_on(async { take(&connect(&node).await, 20).await });
    assert_eq!(taken.len(), 10, "what came after the backup is there");
    assert_eq!(sets(&data), BTreeSet::from([newer]));
}

/// Gives a directory another number of shards, as a start does.
fn change(
    data: &Path,
    shards: u16,
    step: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<(), Report> {
    let config = NodeConfig {
        data_dir: data.to_owned(),
        shards: Shards::Exactly(shards),
        ..NodeConfig::default()
    };
    let mut dir = DataDir::open(&config, 1)?;
    dir.begin()?.write()?;
    redistribute(&mut dir, step)
}

/// Adds jobs of one group that take more than a segment, none of which a checkpoint has.
fn fill_a_segment(data: &Path) -> Vec<Known> {
    let config = data.with_extension("toml");
    let late = "[shards]\npin = false\n[checkpoint]\nmin_log_bytes = \"1GiB\"\n";
    fs::write(&config, late).expect("a file");
    let path = config.to_str().expect("a path of ours");
    let node = Node::start(data, &["--config", path]);
    block_on(async {
        let queue = connect(&node).await.queue("large").await.expect("a queue");
        let mut known = Vec::new();
        for number in 0..=SEGMENT_BYTES / LARGE_BYTES {
            let payload = format!("{number} {}", "large ".repeat(LARGE_BYTES / 6));
            let job = NewJob {
                payload: payload.clone().into(),
                ..NewJob::default()
            };
            let enqueued = queue.enqueue(job).await.expect("it is taken");
            known.push(Known {
                id: enqueued.id().expect("it is a job"),
                state: "pending".to_owned(),
                payload,
                key: String::new(),
            });
        }
        known
    })
}

#[test]
fn a_crash_at_any_step_leaves_every_job() {
    let original = folder("shards-steps");
    let mut known = make(&original, None);
    known.extend(fill_a_segment(&original));
    let data = folder("shards-steps-made");
    copy(&original, &data);
    let mut images: Vec<(String, PathBuf)> = Vec::new();
    let done = change(&data, 3, &mut |what| {
        let image = data.with_extension(images.len().to_string());
        copy(&data, &image);
        images.push((what.to_owned(), image));
        Ok(())
    });
    done.expect("nothing is in its way");
    let second = |file: &PathBuf| file.ends_with("0000000000000002.seg");
    let segments = files(&data);
    let long = segments.iter().filter(|file| second(file)).count();
    assert_eq!(long, 1, "one of the new logs is longer than a segment");
    let words = [
        "make folders",
        "link a file",
        "write a log",
        "write the rest of a log",
        "write a manifest",
        "write a superblock",
        "remove a set",
    ];
    for word in words {
        let count = images.iter().filter(|(what, _)| what == word).count();
        println!("{count} times: {word}");
        assert!(count > 0, "no step is called {word}");
    }
    for (number, (what, image)) in images.iter().enumerate() {
        // The same start again, or one with the number of before.
        let shards = [3, 2][number % 2];
        let node = Node::start(image, &args(shards));
        assert_eq!(survey(&node, &known), whole(&known), "{number}: {what}");
        assert_eq!(sets(image).len(), 1, "{number}: {what}: {:?}", sets(image));
        drop(node);
        fs::remove_dir_all(image).expect("it can be removed");
    }
}

#[test]
fn a_fault_at_any_step_leaves_the_directory_as_it_was_or_changes_it() {
    let original = folder("shards-faults");
    let known = make(&original, None);
    let data = folder("shards-faults-made");
    let mut has_failed = true;
    for number in 0.. {
        if !has_failed {
            assert!(number > 10, "a change has more steps");
            break;
        }
        copy(&original, &data);
        let before = files(&data);
        let (mut steps, mut failed) = (0, None);
        let done = change(&data, 3, &mut |what| {
            steps += 1;
            if steps > number && failed.is_none() {
                failed = Some(what.to_owned());
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        });
        has_failed = failed.is_some();
        match (failed.as_deref(), done) {
            // What cannot be removed takes room, and no more.
            (None | Some("remove a set"), done) => done.expect("it is done"),
            (Some("write a superblock"), done) => drop(done.expect_err("it failed")),
            (Some(what), done) => {
                let report = done.expect_err("it failed");
                assert_eq!(report.code, Code::DiskFullAtStart, "{what}: {report}");
                assert_eq!(files(&data), before, "{what}: it is as it was");
            }
        }
        // Starts take long: of all that leave the directory as it was, one is enough.
        let is_usual = failed
            .as_deref()
            .is_some_and(|what| what.starts_with("link"));
        if is_usual && number > 1 {
            continue;
        }
        let shards = [2, 3][number % 2];
        let node = Node::start(&data, &args(shards));
        assert_eq!(survey(&node, &known), whole(&known), "{number}: {failed:?}");
        assert_eq!(sets(&data).len(), 1, "{number}: {:?}", sets(&data));
    }
}

#[test]
fn a_file_system_without_hard_links_is_told_of_the_number_that_serves() {
    let data = folder("shards-links");
    let known = make(&data, None);
    let before = files(&data);
    for kind in [
        io::ErrorKind::CrossesDevices,
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::TooManyLinks,
    ] {
        let done = change(&data, 3, &mut |what| match what {
            "link a file" => Err(kind.into()),
            _ => Ok(()),
        });
        let report = done.expect_err("no file can be linked");
        assert_eq!(report.code, Code::DirectoryUnusable, "{report}");
        let fix = report.fix.as_deref().unwrap_or_default();
        assert!(
            fix.starts_with("--shards 2,") && fix.contains("hard links"),
            "{fix}"
        );
        assert_eq!(files(&data), before, "{kind}: it is as it was");
    }
    let node = Node::start(&data, ARGS);
    assert_eq!(survey(&node, &known), whole(&known));
}

#[test]
fn killed_while_it_changes_its_shards_a_node_comes_back_with_every_job() {
    let data = folder("shards-killed");
    let known = make(&data, None);
    let mut cut_off = 0;
    for round in 0..12_u64 {
        let shards = [3, 1, 4, 2][round as usize % 4];
        let before = sets(&data);
        let mut node = Node::spawn(&data, &args(shards));
        // From its first step on there is another set: the moments after that are tried one by one.
        let begun = Instant::now();
        while sets(&data).is_subset(&before) && begun.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_millis(round));
        node.signal("-KILL");
        node.wait();
        let left = sets(&data);
        println!("{round}: {shards} shards, {left:?}");
        cut_off += u32::from(left.len() > 1 && !left.is_subset(&before));
    }
    assert!(cut_off > 0, "no change was cut off");
    let node = Node::start(&data, &args(3));
    assert_eq!(survey(&node, &known), whole(&known));
    assert_eq!(sets(&data).len(), 1, "{:?}", sets(&data));
}
