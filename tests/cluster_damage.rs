//! Disks that change or lose what three real nodes gave them: nothing acknowledged is lost, and members put
//! each other right. What one node alone makes of the same damage is told by tests/node_damage.rs.
#![cfg(all(feature = "server", feature = "client", target_os = "linux"))]

mod cluster_kit;
mod damage_kit;
mod data_kit;
mod node_support;

use cluster_kit::{Cluster, Load};
use damage_kit::{DAMAGES, damage, targets};
use node_support::{DEADLINE, assert_is_report};
use rrq::base::ids::{GroupId, LogIndex};
use rrq::base::prng::Prng;
use rrq::shard::placement::home_group;
use rrq::sim::told::{choose, told_batches};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Jobs that wait all the time, so that there is something in every kind of file.
const KEPT: u32 = 200;

/// Each of the two pairs that a node is in acknowledges jobs without the third.
fn carries(cluster: &mut Cluster, load: &Load, number: u32) {
    for other in cluster.numbers().filter(|other| *other != number) {
        cluster.end(other, "-KILL");
        load.until_enqueued(100);
        cluster.start_one(other);
        cluster.until_sound(other, "a kill");
    }
}

/// Ends a node so that it leaves files that `row` is about: a checkpoint, if the last one is damaged and not replaced
/// yet, or two segments of a log, if a checkpoint has just made all but one needless.
fn end_with(cluster: &mut Cluster, number: u32, row: &str) {
    cluster.end(number, "-KILL");
    let signal = if row.ends_with("segment") {
        "-KILL"
    } else {
        "-TERM"
    };
    let begun = Instant::now();
    while targets(&cluster.data(number), row).0.is_empty() {
        assert!(begun.elapsed() < DEADLINE, "{row}: no such file");
        cluster.start_one(number);
        cluster.until_sound(number, row);
        cluster.end(number, signal);
    }
}

#[test]
fn a_member_with_any_file_damaged_in_any_way_is_put_right_by_the_others() {
    let mut cluster = Cluster::new("any-file", 3);
    cluster.shards.insert(2, 2);
    cluster.start_all();
    let load = Load::start(&cluster, 2, 1);
    let kept: Vec<String> = (0..KEPT).map(|number| format!("kept {number}")).collect();
    let client = cluster.client();
    // In the shard whose files are damaged.
    let mut names = (0..).map(|number| format!("kept-{number}"));
    let name = names.find(|name| home_group(name, 64).0.is_multiple_of(2));
    let name = name.expect("every second");
    for payload in &kept {
        let enqueued = client.enqueue(&name, payload.clone());
        enqueued.id().expect("it is taken");
    }
    // A stop in order leaves a checkpoint.
    cluster.end(2, "-TERM");
    cluster.start_one(2);
    let (data, older) = (cluster.data(2), cluster.data(2).with_extension("older"));
    data_kit::copy(&data, &older);
    let mut told = 0;
    for row in [
        "superblock.0",
        "lock",
        "ballast",
        "first segment",
        "last segment",
        "run",
        "payload",
        "manifest",
    ] {
        for how in DAMAGES {
            load.until_enqueued(30);
            end_with(&mut cluster, 2, row);
            let (paths, other) = targets(&data, row);
            let path = paths.first().expect("it was just seen");
            let before = older.join(path.strip_prefix(&data).expect("it is in there"));
            let is_possible = match how {
                "swapped" => other.is_some(),
                "older" => before.exists(),
                _ => true,
            };
            if is_possible {
                damage(path, how, other.as_deref(), &before);
            }
            let started = cluster.spawn(2).until_ready_or_end();
            let node = started.unwrap_or_else(|(_, said)| {
                // The others know it by a later start; from the next on they put it right.
                let is_image = how == "older" && said.contains("is an older image of itself");
                assert!(is_image, "{row}, {how}: {said}");
                cluster.spawn(2).until_ready()
            });
            cluster.nodes.insert(2, node);
            cluster.until_sound(2, &format!("{row}, {how}"));
            let said = cluster.nodes.get_mut(&2).expect("it runs").heard();
            let tells = |line: &String| line.contains("WARN") || line.contains("ERROR");
            told += usize::from(said.iter().any(tells));
        }
    }
    assert!(told > 10, "{told} starts found something amiss");
    // Without both copies of the superblock it does not know who it is, and says so.
    cluster.end(2, "-KILL");
    let copies: Vec<_> = targets(&data, "superblock.*").0;
    let copies: Vec<_> = copies
        .into_iter()
        .map(|path| (fs::read(&path).expect("it is there"), path))
        .collect();
    for (_, path) in &copies {
        fs::write(path, []).expect("it can be written");
    }
    let mut refused = cluster.spawn(2);
    assert!(!refused.wait().success());
    assert_is_report(&refused.errors());
    for (bytes, path) in &copies {
        fs::write(path, bytes).expect("it can be written");
    }
    cluster.start_one(2);
    cluster.until_sound(2, "a superblock that is back");
    carries(&mut cluster, &load, 2);
    let queue = client.queue(&name).expect("it is there");
    let jobs = queue.lease(KEPT, Duration::ZERO).expect("it serves");
    let found = jobs.iter().map(|leased| leased.job.body.payload.to_vec());
    assert!(found.eq(kept.iter().map(|payload| payload.as_bytes().to_vec())));
    let (_, errors) = load.drain();
    assert!(errors.is_empty(), "no request fails: {errors:?}");
}

#[test]
fn a_segment_that_is_as_it_was_some_time_ago_is_found_out_by_the_others() {
    let mut cluster = Cluster::start("older-segment", 3);
    let load = Load::start(&cluster, 4, 2);
    load.until_enqueued(300);
    let images: Vec<_> = cluster
        .segments(2)
        .into_iter()
        .map(|path| (fs::read(&path).expect("it can be read"), path))
        .collect();
    load.until_enqueued(300);
    cluster.end(2, "-KILL");
    for (image, path) in images.iter().filter(|(_, path)| path.exists()) {
        fs::write(path, image).expect("it can be written");
    }
    cluster.start_one(2);
    let begun = Instant::now();
    while cluster.metric(2, "rrq_log_ends_lost_total") == 0.0 {
        assert!(begun.elapsed() < DEADLINE, "nobody tells it");
        std::thread::sleep(Duration::from_millis(5));
    }
    cluster.until_sound(2, "an older segment");
    carries(&mut cluster, &load, 2);
    let (_, errors) = load.drain();
    assert!(errors.is_empty(), "no request fails: {errors:?}");
}

/// Damages some batches of a node's log of which nothing is `gone` on another; how many.
fn damage_what_others_have(
    cluster: &Cluster,
    number: u32,
    gone: &mut BTreeSet<(GroupId, LogIndex)>,
    prng: &mut Prng,
) -> usize {
    let segments = cluster.segments(number).into_iter().map(|path| {
        let name = path.file_stem().expect("a name").to_string_lossy();
        let number = u64::from_str_radix(&name, 16).expect("segments are numbered");
        (number, path)
    });
    let segments: BTreeMap<u64, PathBuf> = segments.collect();
    let bytes = segments.iter().map(|(number, path)| {
        let bytes = fs::read(path).expect("it can be read");
        (*number, bytes.into())
    });
    let mut told = told_batches(bytes);
    told.retain(|batch| !batch.entries.is_empty());
    let chosen = choose(told, gone, 5, prng);
    for batch in &chosen {
        let file = fs::File::options()
            .write(true)
            .open(&segments[&batch.segment]);
        let file = file.expect("it can be opened");
        let written = file.write_all_at(&vec![0xff; batch.bytes], batch.offset as u64);
        written.expect("it can be written");
        gone.extend(&batch.entries);
    }
    chosen.len()
}

#[test]
fn logs_that_are_damaged_on_every_node_at_different_places_are_made_whole_again() {
    let mut cluster = Cluster::start("helix", 3);
    let mut prng = Prng::new(7);
    let load = Load::start(&cluster, 4, 1);
    for round in 0..3 {
        load.until_enqueued(500);
        cluster.kill_all();
        let mut gone = BTreeSet::new();
        for number in cluster.numbers() {
            let count = damage_what_others_have(&cluster, number, &mut gone, &mut prng);
            assert!(count > 0, "nothing of node {number} can be damaged");
        }
        cluster.start_all();
        load.until_enqueued(200);
        for number in cluster.numbers() {
            cluster.until_sound(number, &format!("round {round}"));
        }
    }
    let (_, errors) = load.drain();
    assert!(errors.is_empty(), "no request fails: {errors:?}");
}
