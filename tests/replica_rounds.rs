//! Checkpoint rounds of one node, and the files that they leave.
#![cfg(feature = "engine")]

mod replica_kit;

use replica_kit::Cluster;
use rrq::base::ids::JobId;
use rrq::shard::effect::CheckpointFile;
use std::collections::BTreeMap;

const ROUND_BYTES: u64 = 64 << 10;
const PAYLOAD_BYTES: usize = 256;

fn files(cluster: &mut Cluster) -> BTreeMap<CheckpointFile, u64> {
    cluster.node(1).disk.files()
}

fn rounds(cluster: &mut Cluster) -> u64 {
    cluster.counters(1).checkpoint_rounds_total
}

/// Enqueues until that holds; a job of each batch.
fn fill_until(cluster: &mut Cluster, mut holds: impl FnMut(&mut Cluster) -> bool) -> Vec<JobId> {
    let mut jobs = Vec::new();
    while !holds(cluster) {
        jobs.push(cluster.enqueue("mail", &[7; PAYLOAD_BYTES]));
        cluster.fill("mail", 50, PAYLOAD_BYTES);
        cluster.pass(10);
    }
    jobs
}

/// Enqueues until so many rounds are published.
fn fill_for_rounds(cluster: &mut Cluster, count: u64) -> Vec<JobId> {
    let until = rounds(cluster) + count;
    fill_until(cluster, |cluster| rounds(cluster) >= until)
}

fn has_all(cluster: &mut Cluster, jobs: &[JobId]) -> bool {
    jobs.iter().all(|job| cluster.has(*job))
}

fn restart(cluster: &mut Cluster) {
    cluster.kill(1);
    cluster.start(1);
}

#[test]
fn a_backlog_lies_in_few_files_however_many_rounds_wrote_it() {
    let mut cluster = Cluster::with_checkpoints(1, 1, ROUND_BYTES);
    let jobs = fill_for_rounds(&mut cluster, 150);
    let found = files(&mut cluster);
    let alive: u64 = found.values().sum();
    assert!(found.len() < 200, "{} files for 150 rounds", found.len());
    let largest = found.values().max().expect("there are files");
    assert!(
        *largest < alive / 16,
        "a file of {largest} of {alive} bytes"
    );
    restart(&mut cluster);
    assert!(has_all(&mut cluster, &jobs));
}

#[test]
fn a_round_that_fails_leaves_the_files_that_it_went_on_with_as_they_were() {
    let mut cluster = Cluster::with_checkpoints(1, 1, ROUND_BYTES);
    let mut jobs = fill_for_rounds(&mut cluster, 100);
    let before = files(&mut cluster);
    cluster.node(1).rounds_fail = 1;
    jobs.extend(fill_until(&mut cluster, |cluster| {
        cluster.counters(1).checkpoint_rounds_failed_total > 0
    }));
    assert_eq!(files(&mut cluster), before);
    // The next begins files of its own: what the disk did with the others is not relied on.
    cluster.pass(6_000);
    let after = files(&mut cluster);
    assert!(
        before
            .iter()
            .all(|(file, len)| after.get(file) == Some(len))
    );
    jobs.extend(fill_for_rounds(&mut cluster, 3));
    restart(&mut cluster);
    assert!(has_all(&mut cluster, &jobs));
}

#[test]
fn a_start_goes_on_with_no_file_of_the_process_before() {
    let mut cluster = Cluster::with_checkpoints(1, 1, ROUND_BYTES);
    fill_for_rounds(&mut cluster, 100);
    let before = files(&mut cluster);
    restart(&mut cluster);
    fill_for_rounds(&mut cluster, 3);
    let after = files(&mut cluster);
    for (file, len) in before {
        assert!(after.get(&file).is_none_or(|now| *now <= len), "{file:?}");
    }
}

#[test]
fn the_first_entries_after_a_start_find_their_pages() {
    let mut cluster = Cluster::with_checkpoints(1, 1, ROUND_BYTES);
    fill_for_rounds(&mut cluster, 60);
    restart(&mut cluster);
    cluster.pass(100);
    let read = |cluster: &mut Cluster| cluster.counters(1).pages_read_total;
    let before = read(&mut cluster);
    assert!(before > 0, "the ends of the queue are read");
    cluster.enqueue("mail", b"last");
    cluster.lease("mail", 1_000, None);
    assert_eq!(read(&mut cluster), before);
}
