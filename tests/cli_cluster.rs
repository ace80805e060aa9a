//! `rrqctl cluster` against three nodes, and `rrqctl demo`, which starts its own.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod cli_support;
mod cluster_kit;
mod node_support;

use cli_support::{Done, alone, appears, command, finish, signal, until};
use cluster_kit::{Cluster, Load};
use node_support::{DEADLINE, TestFolder, folder};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

fn status(cluster: &Cluster, args: &[&str]) -> Done {
    let args = [&["cluster", "status"], args].concat();
    let started = command(&cluster.client_addresses(), &args).spawn();
    finish(started.expect("rrqctl is built"))
}

#[test]
fn a_cluster_tells_who_is_away_and_what_has_no_leader() {
    let mut cluster = Cluster::start("status", 3);
    let load = Load::start(&cluster, 2, 2);
    load.until_enqueued(200);
    let text = status(&cluster, &[]).ok();
    let verdict = "\nall 3 nodes answer, every group has a leader\n";
    assert!(text.ends_with(verdict), "{text}");
    let json = status(&cluster, &["--output", "json"]).ok();
    let json: Value = serde_json::from_str(&json).expect("it is JSON");
    let nodes = json["nodes"].as_array().expect("a list");
    let leads = |node: &Value| node["leads"].as_u64().expect("a number");
    assert_eq!(nodes.iter().map(leads).sum::<u64>(), 64, "{json}");
    for node in nodes {
        assert_eq!(node["version"], env!("CARGO_PKG_VERSION"), "{json}");
        assert_eq!((&node["error"], &node["behind"]), (&Value::Null, &0.into()));
    }

    // One of three: all goes on.
    cluster.end(1, "-KILL");
    load.until_enqueued(200);
    let text = until("the others lead", || {
        let text = status(&cluster, &[]).out;
        text.contains("every group has a leader").then_some(text)
    });
    assert!(
        text.contains("NO ANSWER") && text.contains("node 1 does not answer"),
        "{text}"
    );
    let (_, errors) = load.settle();
    assert!(errors.is_empty(), "{errors:?}");

    // Two of three: nothing is led.
    cluster.end(2, "-KILL");
    let done = until("nobody leads", || {
        let done = status(&cluster, &[]);
        done.out.contains("no group has a leader").then_some(done)
    });
    assert_eq!(done.status, 1, "{}", done.out);
    assert!(
        done.out.contains("nodes 1, 2 do not answer"),
        "{}",
        done.out
    );
    cluster.start_all();
    until("all is well again", || {
        let done = status(&cluster, &[]);
        done.out.ends_with(verdict).then_some(())
    });
}

/// Processes that were told of a path.
fn told_of(path: &str) -> usize {
    let all = fs::read_dir("/proc").expect("Linux has it");
    let lines = all
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(path))
        .count()
}

/// A demo with its output in file `out` of a folder, and the folder of its data.
fn demo(name: &str, args: &[&str]) -> (std::process::Child, TestFolder, String) {
    let place = folder(name);
    fs::create_dir_all(&place).expect("a folder");
    let out = place.join("out");
    let file = fs::File::create(&out).expect("a file");
    let child = command("", &[&["demo"], args].concat())
        .stdout(Stdio::from(file))
        .spawn()
        .expect("rrqctl is built");
    let begun = Instant::now();
    let data = loop {
        let text = appears(&out);
        let first = text.lines().next().unwrap_or_default();
        if let Some((_, data)) = first.split_once(", data ") {
            break data.to_owned();
        }
        assert!(begun.elapsed() < DEADLINE, "{text}");
    };
    (child, place, data)
}

#[test]
fn a_demo_kills_leaders_counts_every_job_and_leaves_nothing_behind() {
    let args = ["--duration", "4s", "--kill-every", "2s"];
    let (child, place, data) = demo("demo", &args);
    assert_eq!(told_of(&data), 3, "three nodes on {data}");
    let done = finish(child);
    let text = fs::read_to_string(place.join("out")).expect("it was written");
    assert_eq!(done.status, 0, "{text}{}", done.err);
    assert!(text.starts_with("3 nodes at 127.0.0.1:"), "{text}");
    let kills = text.matches("was killed -9 at").count();
    assert_eq!(kills, 2, "{text}");
    assert!(text.contains("VERDICT  ok  2 kills, "), "{text}");
    assert!(
        text.contains(" 0 lost, 0 came back after their ack\n"),
        "{text}"
    );
    assert!(text.contains("\noutage   median "), "{text}");
    assert!(!text.contains('\u{1b}'), "it is no terminal: {text}");
    assert!(!Path::new(&data).exists() && told_of(&data) == 0, "{data}");
}

#[test]
fn a_demo_that_is_interrupted_ends_its_nodes_and_removes_their_data() {
    let (child, _place, data) = demo("demo-interrupted", &["--nodes", "1"]);
    signal(child.id(), "-INT");
    let done = finish(child);
    assert!(done.err.contains("stopped by a signal"), "{}", done.err);
    assert!(done.status != 0);
    assert!(!Path::new(&data).exists() && told_of(&data) == 0, "{data}");
}

#[test]
fn a_demo_of_one_node_has_figures_for_programs() {
    let dir = folder("demo-figures");
    let dir = dir.to_str().expect("text");
    let args = "demo --nodes 1 --duration 1s --kill-every 1s --output json --dir";
    let args: Vec<&str> = args.split(' ').chain([dir]).collect();
    let found: Value = serde_json::from_str(&alone(&args).ok()).expect("it is JSON");
    assert_eq!(found["kills"].as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!((&found["lost"], &found["nodes"]), (&0.into(), &1.into()));
    assert_eq!(found["acked"], found["finished"], "{found}");
    assert!(found["outage_ms"]["max"].as_f64() > Some(0.0), "{found}");
    // It is kept, and not used again.
    assert!(Path::new(dir).join("data").exists());
    alone(&args).failed(3, "RRQ-1008");
}

#[test]
fn what_a_demo_cannot_show_is_refused() {
    alone(&["demo", "--nodes", "2"]).failed(2, "RRQ-2001");
    alone(&["demo", "--duration", "2s"]).failed(2, "RRQ-2001");
}
