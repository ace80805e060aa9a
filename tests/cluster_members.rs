//! Clusters of real processes whose members change under load: nodes are added, replaced and removed, and
//! die on the way.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod cli_support;
mod cluster_kit;
mod node_support;

use cli_support::{Done, command, finish, until};
use cluster_kit::{Cluster, Load};
use node_support::Node;
use serde_json::Value;

fn rrqctl(cluster: &Cluster, args: &[&str]) -> Done {
    let args = [&["cluster"], args].concat();
    let started = command(&cluster.client_addresses(), &args).spawn();
    finish(started.expect("rrqctl is built"))
}

fn status(cluster: &Cluster) -> Value {
    let done = rrqctl(cluster, &["status", "--output", "json"]);
    serde_json::from_str(&done.out).expect("it is JSON")
}

/// Waits until these nodes wait to be added.
fn until_waiting(cluster: &Cluster, nodes: &[u64]) {
    until("the nodes wait to be added", || {
        let json = status(cluster);
        let waiting = json["waiting"].as_array().expect("a list");
        let waits = |node: &u64| waiting.iter().any(|waiting| waiting["node"] == *node);
        nodes.iter().all(waits).then_some(())
    });
}

/// A cluster of the first `size` nodes, out of more that may come.
fn begun(name: &str, size: u32, of: u32) -> Cluster {
    let mut cluster = Cluster::new(name, of);
    let list = cluster.list(1..=size);
    let started: Vec<_> = (1..=size)
        .map(|number| (number, cluster.spawn_with(number, &list)))
        .collect();
    for (number, node) in started {
        cluster.nodes.insert(number, node.until_ready());
    }
    cluster
}

/// Adds nodes that were started with the list of all.
fn add(cluster: &mut Cluster, numbers: &[u32]) {
    let started: Vec<_> = numbers
        .iter()
        .map(|number| (*number, cluster.spawn(*number)))
        .collect();
    let waiting: Vec<u64> = numbers.iter().copied().map(u64::from).collect();
    until_waiting(cluster, &waiting);
    let names: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    let mut args = vec!["add"];
    args.extend(names.iter().map(String::as_str));
    let text = rrqctl(cluster, &args).ok();
    assert!(text.contains("in every group"), "{text}");
    for (number, node) in started {
        cluster.nodes.insert(number, node.until_ready());
    }
}

fn no_errors(load: Load) {
    let (_, errors) = load.settle();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn a_node_that_stood_alone_grows_to_three_under_load() {
    let mut cluster = Cluster::new("grow", 3);
    let alone = cluster.spawn_with(1, "alone").until_ready();
    cluster.nodes.insert(1, alone);
    let load = Load::start(&cluster, 2, 2);
    load.until_enqueued(200);
    cluster.end(1, "-TERM");
    // The same directory is the first of a cluster now, without a job less.
    let first = cluster.spawn_with(1, &cluster.list([1])).until_ready();
    cluster.nodes.insert(1, first);
    load.until_enqueued(200);
    add(&mut cluster, &[2, 3]);
    load.until_enqueued(200);
    // Any of the three may die; the first knows of the others although it lists itself alone.
    for number in [2, 1, 3] {
        cluster.end(number, "-KILL");
        load.until_enqueued(200);
        let list = match number {
            1 => cluster.list([1]),
            _ => cluster.members(),
        };
        let node = cluster.spawn_with(number, &list).until_ready();
        cluster.nodes.insert(number, node);
    }
    no_errors(load);
    let json = status(&cluster);
    assert_eq!(json["members_unsettled"], 0, "{json}");
    let roles = json["nodes"].as_array().expect("a list").iter();
    assert!(roles.clone().all(|node| node["role"] == "votes"), "{json}");
    assert_eq!(roles.count(), 3);
}

#[test]
fn a_lost_disk_is_replaced_under_load() {
    let mut cluster = Cluster::start("replace", 3);
    let load = Load::start(&cluster, 2, 2);
    load.until_enqueued(500);
    cluster.end(3, "-KILL");
    cluster.lose_disk(3);
    load.until_enqueued(200);
    let node = cluster.spawn(3);
    until_waiting(&cluster, &[3]);
    let verdict = status(&cluster)["verdict"].to_string();
    assert!(verdict.contains("rrqctl cluster replace 3"), "{verdict}");
    // It has a place already: it is not added beside it.
    rrqctl(&cluster, &["add", "3"]).failed(1, "RRQ-4016");
    let text = rrqctl(&cluster, &["replace", "3"]).ok();
    assert_eq!(text, "node 3 votes in every group\n");
    cluster.nodes.insert(3, node.until_ready());
    // Two of three are enough, the new one among them.
    for number in [1, 2] {
        cluster.end(number, "-KILL");
        load.until_enqueued(200);
        cluster.start_one(number);
        load.until_enqueued(200);
    }
    no_errors(load);
}

#[test]
fn three_grow_to_five_while_leaders_die_and_shrink_again() {
    let mut cluster = begun("five", 3, 5);
    let load = Load::start(&cluster, 2, 2);
    load.until_enqueued(200);
    let started: Vec<_> = [4, 5].map(|number| (number, cluster.spawn(number))).into();
    until_waiting(&cluster, &[4, 5]);
    let adding = command(&cluster.client_addresses(), &["cluster", "add", "4", "5"]).spawn();
    // Whoever leads the queue dies while they are added, and comes back.
    let leader = cluster.leader();
    cluster.end(leader, "-KILL");
    load.until_enqueued(100);
    cluster.start_one(leader);
    let text = finish(adding.expect("rrqctl is built")).ok();
    assert_eq!(text, "nodes 4, 5 vote in every group\n");
    for (number, node) in started {
        cluster.nodes.insert(number, node.until_ready());
    }
    // Two of five are gone.
    cluster.end(1, "-KILL");
    cluster.end(2, "-KILL");
    load.until_enqueued(200);
    cluster.start_one(1);
    cluster.start_one(2);
    // Each is ready once it knows most of the others: who is asked to remove one may not be among them yet.
    until("all know each other", || {
        let knows_all = |number| cluster.metric(number, "rrq_peers_connected") == 4.0;
        cluster.numbers().all(knows_all).then_some(())
    });
    load.until_enqueued(200);
    // A node that is removed stops by itself, and says why if it is started again.
    let text = rrqctl(&cluster, &["remove", "5", "--yes"]).ok();
    assert_eq!(text, "node 5 belongs to the cluster no more\n");
    let mut gone = cluster.nodes.remove(&5).expect("it runs");
    assert!(!gone.wait().success());
    let text = gone.errors();
    assert!(
        text.contains("node 5 was removed from its cluster"),
        "{text}"
    );
    load.until_enqueued(200);
    let mut again = cluster.spawn(5);
    assert!(!again.wait().success());
    let text = again.errors();
    assert!(
        text.contains("node 5 was removed from its cluster"),
        "{text}"
    );
    no_errors(load);
}

#[test]
fn a_node_that_dies_while_it_learns_goes_on_where_it_was() {
    let mut cluster = begun("learn", 3, 4);
    let load = Load::start(&cluster, 2, 1);
    load.until_enqueued(1_000);
    let mut node = cluster.spawn(4);
    until_waiting(&cluster, &[4]);
    let adding = command(&cluster.client_addresses(), &["cluster", "add", "4"]).spawn();
    until("it learns", || {
        let json = status(&cluster);
        let nodes = json["nodes"].as_array().expect("a list").clone();
        let is_it = |node: &Value| node["node"] == 4 && node["role"] != "-";
        nodes.iter().any(is_it).then_some(())
    });
    node.signal("-KILL");
    node.wait();
    load.until_enqueued(500);
    cluster.start_one(4);
    let text = finish(adding.expect("rrqctl is built")).ok();
    assert_eq!(text, "node 4 votes in every group\n");
    no_errors(load);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mut cluster = Cluster::start("refuse", 3);
    rrqctl(&cluster, &["add", "9"]).failed(1, "RRQ-4016");
    rrqctl(&cluster, &["replace", "9"]).failed(1, "RRQ-4016");
    // Nobody is there to ask.
    rrqctl(&cluster, &["remove", "2"]).failed(2, "RRQ-2001");
    cluster.end(3, "-KILL");
    until("the others notice", || {
        let connected = |node| cluster.metric(node, "rrq_peers_connected");
        (connected(1) + connected(2) == 2.0).then_some(())
    });
    rrqctl(&cluster, &["remove", "2", "--yes"]).failed(1, "RRQ-4016");
    cluster.start_one(3);
}

#[test]
fn a_list_of_an_even_number_forms_no_cluster_and_says_so() {
    let cluster = Cluster::new("even", 2);
    let mut first = cluster.spawn(1);
    let _second = cluster.spawn(2);
    let mut heard: Vec<String> = Vec::new();
    until("it says why", || {
        heard.extend(first.heard());
        let words = "3, 5 or another odd number of nodes";
        heard.iter().any(|line| line.contains(words)).then_some(())
    });
}

#[test]
fn leaders_are_spread_over_zones_before_nodes() {
    let mut cluster = Cluster::new("zones", 3);
    let members = cluster.members();
    let zones = [(1, "east"), (2, "east"), (3, "west")];
    let started: Vec<_> = zones
        .into_iter()
        .map(|(number, zone)| {
            let mut command = cluster.command(number, &cluster.data(number), &members);
            (number, Node::spawn_by(command.args(["--zone", zone])))
        })
        .collect();
    for (number, node) in started {
        cluster.nodes.insert(number, node.until_ready());
    }
    for number in cluster.numbers() {
        let said = cluster.nodes.get_mut(&number).expect("it runs").heard();
        let words = "2 of the 3 members are in zone east";
        let warned = said.iter().any(|line| line.contains(words));
        assert!(warned, "node {number}: {said:?}");
    }
    until("both zones lead as many", || {
        let leads: Vec<usize> = (1..=3).map(|number| cluster.leads(number).len()).collect();
        let is_level = |wanted: usize, count: usize| count.abs_diff(wanted) <= 1;
        let wanted = [16, 16, 32].into_iter().zip(leads);
        wanted
            .into_iter()
            .all(|(wanted, count)| is_level(wanted, count))
            .then_some(())
    });
    let json = status(&cluster);
    let shown: Vec<&Value> = (0..3).map(|at| &json["nodes"][at]["zone"]).collect();
    assert_eq!(shown, ["east", "east", "west"], "{json}");
    let text = rrqctl(&cluster, &["status"]).ok();
    assert!(text.contains("version  zone"), "{text}");
    // All clocks are one here.
    assert_eq!(cluster.metric(1, "rrq_wall_clock_disputed"), 0.0);
    assert!(cluster.metric(1, "rrq_wall_clock_off_ms") < 1_000.0);
}

#[test]
fn a_drained_node_leads_nothing_until_it_is_let_again() {
    let cluster = Cluster::start("drain", 3);
    let load = Load::start(&cluster, 2, 2);
    load.until_enqueued(200);
    let text = rrqctl(&cluster, &["drain", "2"]).ok();
    assert_eq!(text, "node 2 leads nothing\n");
    load.until_enqueued(500);
    assert!(cluster.leads(2).is_empty());
    let verdict = status(&cluster)["verdict"].to_string();
    assert!(verdict.contains("node 2 is drained"), "{verdict}");
    let text = rrqctl(&cluster, &["undrain", "2"]).ok();
    assert_eq!(text, "node 2 may lead again\n");
    until("it gets its share", || {
        (!cluster.leads(2).is_empty()).then_some(())
    });
    no_errors(load);
}
