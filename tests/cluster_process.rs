//! Three real `rrq-node` processes that are killed, frozen, stopped and started: nothing acknowledged
//! is lost, nothing comes back after its ack, and clients go on by themselves.
#![cfg(all(feature = "server", feature = "client", target_os = "linux"))]

mod cluster_kit;
mod node_support;

use cluster_kit::{Cluster, Load, QUEUE};
use node_support::error_kit::compare;
use node_support::{DEADLINE, Node, assert_is_report, http};
use rrq::client::blocking::Stop;
use rrq::client::{GroupId, NewJob, QueueSettings, Worker};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn a_cluster_forms_by_itself_once_every_node_is_there() {
    let mut cluster = Cluster::new("forms", 3);
    let mut early = vec![cluster.spawn(1), cluster.spawn(2)];
    for node in &mut early {
        let begun = Instant::now();
        let waits = || "node 3 at";
        let mut heard = Vec::new();
        while !heard
            .iter()
            .any(|line: &String| line.contains(waits()) && line.contains("is silent"))
        {
            assert!(
                begun.elapsed() < DEADLINE,
                "it does not say for whom it waits: {heard:?}"
            );
            heard.extend(node.heard());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let late = cluster.spawn(3);
    for (number, node) in (1..).zip(early.into_iter().chain([late])) {
        let node = node.until_ready();
        let words = format!("ready: node {number} of 3, clients");
        assert!(node.ready.contains(&words), "{}", node.ready);
        cluster.nodes.insert(number, node);
    }
    let load = Load::start(&cluster, 2, 2);
    load.until_enqueued(500);
    let (jobs, errors) = load.settle();
    assert!(jobs >= 500 && errors.is_empty(), "{errors:?}");
    // Every group has one leader.
    let begun = Instant::now();
    loop {
        let leads: Vec<usize> = (1..=3).map(|number| cluster.leads(number).len()).collect();
        if leads.iter().sum::<usize>() == 64 {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{leads:?}");
    }
}

#[test]
fn leaders_killed_one_after_the_other_lose_nothing() {
    let mut cluster = Cluster::start("leaders", 3);
    let load = Load::start(&cluster, 4, 4);
    for _ in 0..6 {
        load.until_enqueued(200);
        let leader = cluster.leader();
        cluster.end(leader, "-KILL");
        load.until_enqueued(200);
        cluster.start_one(leader);
    }
    let (jobs, errors) = load.settle();
    assert!(jobs >= 2400, "{jobs}");
    assert!(errors.is_empty(), "no request fails: {errors:?}");
}

#[test]
fn a_leader_that_is_frozen_is_replaced_and_finds_its_place_again() {
    let cluster = Cluster::start("frozen", 3);
    let load = Load::start(&cluster, 4, 4);
    load.until_enqueued(200);
    let leader = cluster.leader();
    cluster.nodes[&leader].signal("-STOP");
    // What was under way is answered by the next leader.
    load.until_enqueued(500);
    cluster.nodes[&leader].signal("-CONT");
    load.until_enqueued(500);
    let (_, errors) = load.settle();
    assert!(errors.is_empty(), "no request fails: {errors:?}");
}

#[test]
fn all_nodes_killed_at_once_come_back_unattended_with_everything() {
    let mut cluster = Cluster::start("all", 3);
    let load = Load::start(&cluster, 4, 2);
    for _ in 0..3 {
        load.until_enqueued(500);
        cluster.kill_all();
        cluster.start_all();
    }
    load.until_enqueued(200);
    let (jobs, errors) = load.settle();
    assert!(jobs >= 1700 && errors.is_empty(), "{jobs} {errors:?}");
}

#[test]
fn a_node_is_ready_while_a_majority_is_connected() {
    let mut cluster = Cluster::start("ready", 3);
    let until = |cluster: &Cluster, status: u16, words: &str| {
        let (begun, admin) = (Instant::now(), cluster.admin_address(1));
        loop {
            let answer = http(admin, "/readyz");
            if answer.0 == status && answer.1.contains(words) {
                break;
            }
            assert!(begun.elapsed() < DEADLINE, "{answer:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    until(&cluster, 200, "");
    cluster.end(2, "-KILL");
    until(&cluster, 200, "");
    cluster.end(3, "-KILL");
    until(
        &cluster,
        503,
        "no majority: connected to 0 of 2 other nodes",
    );
    cluster.start_one(2);
    until(&cluster, 200, "");
    let (_, text) = http(cluster.admin_address(1), "/metrics");
    for line in ["rrq_peers 2", "rrq_peers_connected 1"] {
        assert!(text.lines().any(|shown| shown == line), "{line}: {text}");
    }
}

#[test]
fn a_node_that_was_away_for_long_gets_checkpoints_and_then_serves() {
    let mut cluster = Cluster::start("away", 3);
    let load = Load::start(&cluster, 4, 1);
    load.until_enqueued(300);
    cluster.end(3, "-KILL");
    // Each stop cuts a checkpoint; the log goes back to the one before the last.
    for _ in 0..3 {
        for number in [1, 2] {
            load.until_enqueued(300);
            cluster.end(number, "-TERM");
            cluster.start_one(number);
        }
    }
    load.until_enqueued(300);
    cluster.start_one(3);
    let begun = Instant::now();
    while cluster.metric(3, "rrq_checkpoints_installed_total") == 0.0 {
        assert!(begun.elapsed() < DEADLINE, "it gets none");
        std::thread::sleep(Duration::from_millis(10));
    }
    // With one of the others gone, nothing is acknowledged without it.
    cluster.end(1, "-KILL");
    load.until_enqueued(300);
    cluster.end(2, "-KILL");
    cluster.start_one(1);
    load.until_enqueued(300);
    let (_, errors) = load.settle();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn a_node_that_was_away_for_a_short_time_gets_what_it_lacks_from_the_log() {
    let mut cluster = Cluster::start("shortly", 3);
    let load = Load::start(&cluster, 1, 1);
    load.until_enqueued(50);
    cluster.end(3, "-KILL");
    let client = cluster.client();
    let big = client.queue("big").expect("made");
    let jobs: Vec<_> = (0..128).map(|_| NewJob::from(vec![7; 100_000])).collect();
    for job in jobs {
        big.enqueue(job).id().expect("it is taken");
    }
    let (_, errors) = load.settle();
    assert!(errors.is_empty(), "{errors:?}");
    let of_both = |cluster: &Cluster, name| cluster.metric(1, name) + cluster.metric(2, name);
    // A group at rest holds 4 MiB in memory at the most.
    let begun = Instant::now();
    while of_both(&cluster, "rrq_raft_entries_held_bytes") > 10e6 {
        assert!(begun.elapsed() < DEADLINE, "the groups do not rest");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.start_one(3);
    let begun = Instant::now();
    while cluster.metric(3, "rrq_jobs_held_bytes") < cluster.metric(1, "rrq_jobs_held_bytes") {
        assert!(begun.elapsed() < DEADLINE, "it does not catch up");
        std::thread::sleep(Duration::from_millis(10));
    }
    let read = of_both(&cluster, "rrq_entries_sent_from_log_total");
    assert!(read > 50.0, "{read} entries");
    assert_eq!(cluster.metric(3, "rrq_checkpoints_installed_total"), 0.0);
    assert_eq!(of_both(&cluster, "rrq_log_pieces_bad_total"), 0.0);
    // With one of the others gone, nothing is answered without it.
    cluster.end(1, "-KILL");
    let stats = big.info().expect("it is there").1;
    assert_eq!(stats.pending, 128);
}

#[test]
fn a_rolling_restart_fails_no_request() {
    let mut cluster = Cluster::start("rolling", 3);
    let load = Load::start(&cluster, 4, 4);
    for number in cluster.numbers() {
        load.until_enqueued(200);
        cluster.end(number, "-TERM");
        load.until_enqueued(200);
        cluster.start_one(number);
    }
    let (_, errors) = load.settle();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn an_emptied_directory_is_no_voter_and_forms_no_second_cluster() {
    let mut cluster = Cluster::start("emptied", 3);
    let load = Load::start(&cluster, 2, 2);
    load.until_enqueued(200);
    cluster.end(3, "-KILL");
    cluster.lose_disk(3);
    let mut emptied = cluster.spawn(3);
    let begun = Instant::now();
    let mut heard = Vec::new();
    while !heard
        .iter()
        .any(|line: &String| line.contains("belongs to cluster"))
    {
        assert!(begun.elapsed() < DEADLINE, "it says nothing: {heard:?}");
        heard.extend(emptied.heard());
        std::thread::sleep(Duration::from_millis(10));
    }
    load.until_enqueued(200);
    // With one of the two others gone there is no majority: the emptied one makes none.
    cluster.end(2, "-KILL");
    let acked = load.enqueued();
    std::thread::sleep(Duration::from_secs(1));
    assert!(
        load.enqueued() <= acked + 2,
        "what was under way, and no more"
    );
    cluster.start_one(2);
    load.until_enqueued(200);
    let (_, errors) = load.settle();
    assert!(errors.is_empty(), "{errors:?}");
}

/// Changes a block in the middle of what the newest segment of a node's log holds that is in use.
fn damage_log(cluster: &Cluster, number: u32) {
    let segments = cluster.segments(number);
    for segment in segments.iter().rev() {
        let mut bytes = fs::read(segment).expect("it can be read");
        // Behind the head, which names all groups. A block of zeros holds nothing.
        let blocks = bytes.chunks(4096).enumerate().skip(16);
        let is_used = |block: &[u8]| block.iter().any(|byte| *byte != 0);
        let used = blocks.filter(|(_, block)| is_used(block));
        let used: Vec<usize> = used.map(|(at, _)| at).collect();
        // One batch may hold what later ones made needless, as a vote: so many hold entries.
        let hurt = used.iter().skip(used.len() / 2).take(32);
        hurt.clone()
            .for_each(|block| bytes[block * 4096 + 30..][..30].fill(0xa5));
        if hurt.len() > 0 {
            return fs::write(segment, bytes).expect("it can be written");
        }
    }
    panic!("nothing is in {segments:?}");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()));
}

#[test]
fn an_image_from_before_the_last_start_is_found_out_and_put_right() {
    let mut cluster = Cluster::start("image", 3);
    let load = Load::start(&cluster, 4, 1);
    let (data, image) = (cluster.data(2), cluster.data(2).with_extension("image"));
    // What it says once it has noted its losses is heard as well: a later image is found out by that.
    for is_first in [true, false] {
        load.until_enqueued(200);
        cluster.end(2, "-TERM");
        let _ = fs::remove_dir_all(&image);
        copy(&data, &image);
        cluster.start_one(2);
        load.until_enqueued(500);
        cluster.end(2, "-KILL");
        fs::remove_dir_all(&data).expect("it is there");
        copy(&image, &data);
        // The image starts with the number of the start that it does not know of.
        let mut node = cluster.spawn(2);
        assert!(!node.wait().success());
        let text = node.errors();
        let report = text
            .find("error[RRQ")
            .map_or(text.as_str(), |at| &text[at..]);
        if is_first {
            // Whichever says hello first.
            compare(&report.replace("node 3 has heard", "node 1 has heard"));
        } else {
            assert!(report.starts_with("error[RRQ-3003]"), "{text}");
        }
        cluster.start_one(2);
        let begun = Instant::now();
        while cluster.metric(2, "rrq_log_ends_lost_total") == 0.0 {
            assert!(begun.elapsed() < DEADLINE, "nobody tells it");
            std::thread::sleep(Duration::from_millis(10));
        }
        cluster.until_sound(2, "an older image");
    }
    cluster.end(1, "-KILL");
    load.until_enqueued(200);
    let (_, errors) = load.settle();
    assert!(errors.is_empty(), "{errors:?}");
}

/// What `rrqctl` says, asked of whichever node takes it.
fn ctl(cluster: &Cluster, args: &[&str]) -> String {
    let nodes: Vec<_> = cluster
        .numbers()
        .map(|nr| cluster.client_address(nr))
        .collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrqctl"));
    command.args(args).env("RRQ_SERVER", nodes.join(","));
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rrqctl {args:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The node that leads a group.
fn leader_of(cluster: &Cluster, group: GroupId) -> u32 {
    let begun = Instant::now();
    loop {
        let mut numbers = cluster.nodes.keys();
        if let Some(number) = numbers.find(|number| cluster.leads(**number).contains(&group)) {
            return *number;
        }
        assert!(begun.elapsed() < DEADLINE, "nobody leads group {group}");
    }
}

#[test]
fn a_queue_of_partitions_on_all_nodes_loses_nothing_when_their_leaders_die() {
    let mut cluster = Cluster::start("partitions", 3);
    let settings = QueueSettings {
        partitions: 8,
        ..QueueSettings::default()
    };
    let client = cluster.client();
    let queue = client.create_queue(QUEUE, settings, true).expect("made");
    assert_eq!(queue.calls().partitions(), 8);
    let (info, _) = queue.info().expect("it is there");
    let leaders: BTreeSet<u32> = info
        .groups
        .iter()
        .map(|group| leader_of(&cluster, *group))
        .collect();
    assert!(leaders.len() > 1, "{leaders:?} leads all");
    let load = Load::start(&cluster, 4, 4);
    for (round, group) in info.groups.clone().into_iter().enumerate().take(3) {
        load.until_enqueued(400);
        let leader = leader_of(&cluster, group);
        cluster.end(leader, "-KILL");
        // What is asked of groups that have just lost their leader is done all the same.
        let name = format!("made-{round}");
        ctl(&cluster, &["queue", "create", &name, "--partitions", "8"]);
        let made = client.find_queue(&name).expect("it is there");
        for nth in 0..16 {
            made.enqueue(format!("job {nth}")).id().expect("each takes");
        }
        load.until_enqueued(400);
        cluster.start_one(leader);
    }
    let (jobs, errors) = load.settle();
    assert!(jobs >= 2400 && errors.is_empty(), "{errors:?}");
    // A worker works off what lies in partitions of all nodes.
    for round in 0..3 {
        let name = format!("made-{round}");
        let worker = Worker::new(client.calls(), &name).until_empty();
        let worked = client.work(worker, &Stop::default(), |_| ());
        assert_eq!(worked.expect("it works").done, 16, "{name}");
        ctl(&cluster, &["queue", "pause", &name]);
        let (info, _) = client.find_queue(&name).expect("there").info().expect("so");
        assert!(info.paused, "{info:?}");
        ctl(&cluster, &["queue", "delete", &name, "--yes"]);
        assert!(client.find_queue(&name).is_err(), "{name} is gone");
    }
}

/// What `rrqctl repair` says of a directory that it does not call sound.
fn repair(data: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrqctl"));
    command.args(["repair", "--data-dir"]).arg(data).args(args);
    let output = command.output().expect("it runs");
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{found}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn a_member_whose_log_is_damaged_is_put_right_by_the_others() {
    let mut cluster = Cluster::start("damaged", 3);
    let load = Load::start(&cluster, 4, 2);
    // In 1 MiB of log: no checkpoint comes before 4 MiB and makes what is damaged needless.
    load.until_enqueued(500);
    cluster.end(2, "-KILL");
    damage_log(&cluster, 2);
    let said = repair(&cluster.data(2), &[]);
    assert!(
        said.contains("error[RRQ-5001]") && said.contains("start the node"),
        "{said}"
    );
    load.until_enqueued(200);
    cluster.start_one(2);
    cluster.until_sound(2, "a damaged log");
    // With one of the others gone, nothing is acknowledged without it.
    cluster.end(1, "-KILL");
    load.until_enqueued(200);
    cluster.end(3, "-KILL");
    cluster.start_one(1);
    load.until_enqueued(200);
    let (_, errors) = load.settle();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn a_member_is_not_given_a_life_of_its_own() {
    let mut cluster = Cluster::start("repair", 3);
    for number in cluster.numbers() {
        cluster.end(number, "-TERM");
    }
    let text = repair(&cluster.data(2), &["--accept-loss"]);
    assert_is_report(&text);
    compare(&text);
    cluster.start_all();
}

/// A cluster that was formed and is stopped; starts a node of it that must refuse. What it says.
fn refused(name: &str, members: impl FnOnce(&Cluster) -> String) -> String {
    let mut cluster = Cluster::start(name, 3);
    for number in cluster.numbers() {
        cluster.end(number, "-TERM");
    }
    let (data, members) = (cluster.data(1), members(&cluster));
    let mut node = Node::spawn_by(&mut cluster.command(1, &data, &members));
    let status = node.wait();
    let text = node.errors();
    assert_is_report(&text);
    assert!(!status.success(), "{text}");
    // Nothing was changed.
    cluster.start_all();
    text
}

#[test]
fn a_list_of_none_of_the_other_members_is_refused() {
    compare(&refused("other-members", |cluster| {
        cluster.members().replace("2=", "8=").replace("3=", "9=")
    }));
}

#[test]
fn a_member_of_a_cluster_does_not_start_alone() {
    compare(&refused("alone", |_| "alone".to_owned()));
}

#[test]
fn a_member_whose_own_address_does_not_resolve_is_told_so() {
    // Longer than a part of a name can be: nobody is asked. How that is said differs by machine.
    let name = "x".repeat(70);
    let text = refused("unresolved", |_| {
        format!("1={name}:7421,2=127.0.0.1:2,3=127.0.0.1:3")
    });
    let words = format!("error[RRQ-2002]: {name}:7421 does not resolve");
    assert!(text.starts_with(&words), "{text}");
}
