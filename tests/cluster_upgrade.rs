//! Real `rrq-node` processes that are upgraded one by one under load, and back as long as one of them is not: no
//! request fails.
//!
//! The older one is the present binary that is held at the version of the job machine before; the newer one
//! says in its hello that it is of the next version.
#![cfg(all(feature = "server", feature = "client", target_os = "linux"))]

mod cluster_kit;
mod node_support;

use cluster_kit::{Cluster, Load};
use node_support::DEADLINE;
use rrq::queue::MACHINE_VERSION;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The versions of the job machine that groups have on any node.
fn versions(cluster: &Cluster) -> BTreeSet<u16> {
    let views = cluster.client().nodes().expect("they answer");
    let shards = views
        .into_iter()
        .flat_map(|view| view.shards.expect("it serves"));
    let groups = shards.flat_map(|shard| shard.groups);
    groups.map(|group| group.machine_version).collect()
}

/// Stops a node and starts it as it is to be now.
fn restart(cluster: &mut Cluster, load: &Load, number: u32) {
    load.until_enqueued(200);
    cluster.end(number, "-TERM");
    load.until_enqueued(200);
    cluster.start_one(number);
}

#[test]
fn nodes_are_upgraded_one_by_one_and_back_while_one_of_them_is_old() {
    let mut cluster = Cluster::new("upgrade", 3);
    let old = MACHINE_VERSION - 1;
    cluster.held_at = cluster.numbers().map(|number| (number, old)).collect();
    cluster.start_all();
    let load = Load::start(&cluster, 4, 4);
    for number in [1, 2] {
        cluster.held_at.remove(&number);
        restart(&mut cluster, &load, number);
    }
    // One back again.
    cluster.held_at.insert(2, old);
    restart(&mut cluster, &load, 2);
    assert_eq!(versions(&cluster), BTreeSet::from([old]));
    for number in [2, 3] {
        cluster.held_at.remove(&number);
        restart(&mut cluster, &load, number);
    }
    let begun = Instant::now();
    while versions(&cluster) != BTreeSet::from([MACHINE_VERSION]) {
        assert!(begun.elapsed() < DEADLINE, "{:?}", versions(&cluster));
        std::thread::sleep(Duration::from_millis(10));
    }
    load.until_enqueued(200);
    let (_, errors) = load.drain();
    assert!(errors.is_empty(), "no request fails: {errors:?}");
}

#[test]
fn a_node_that_speaks_a_newer_version_too_is_spoken_to_in_the_present_one() {
    let mut cluster = Cluster::start_on_relays("ahead", 3);
    let load = Load::start(&cluster, 4, 4);
    for number in cluster.numbers() {
        cluster.relays().say_ahead(number);
        restart(&mut cluster, &load, number);
    }
    assert_eq!(versions(&cluster), BTreeSet::from([MACHINE_VERSION]));
    let (_, errors) = load.drain();
    assert!(errors.is_empty(), "no request fails: {errors:?}");
}
