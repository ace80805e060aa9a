//! `rrqctl enqueue`, `job get` and `status` against a node.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod cli_support;
mod node_support;

use cli_support::{alone, queue, rrqctl, rrqctl_fed};
use node_support::{Node, folder};
use serde_json::Value;
use std::fs;

const FIVE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/jobs/five.json");

fn node(name: &str) -> Node {
    Node::start_new(name, &["--shards", "1"])
}

fn id(said: &str) -> &str {
    said.lines().next().expect("a line")
}

#[test]
fn a_jobs_file_enqueued_twice_is_there_once() {
    let node = node("cli-file");
    let enqueue = || rrqctl(&node, &["enqueue", "--file", FIVE]).ok();
    assert_eq!(enqueue(), "5 enqueued, 0 already there\n");
    assert_eq!(enqueue(), "0 enqueued, 5 already there\n");
    assert_eq!(queue(&node, "default")["pending"], 5);
    let get = [
        "job", "get", "-q", "default", "--key", "job-003", "--output", "json",
    ];
    let job: Value = serde_json::from_str(&rrqctl(&node, &get).ok()).expect("it is JSON");
    assert_eq!(
        job["payload"],
        r#"{"kind":"resize","image":"cat.png","width":640}"#
    );
    assert_eq!(job["run_limit_ms"], 10_000);
    // -q wins over nothing and over the file's own.
    let said = rrqctl(
        &node,
        &["enqueue", "-q", "other", "--file", FIVE, "--output", "json"],
    )
    .ok();
    let said: Value = serde_json::from_str(&said).expect("it is JSON");
    assert_eq!(
        (&said["enqueued"], &said["already_there"]),
        (&5.into(), &0.into())
    );
    assert_eq!(queue(&node, "other")["pending"], 5);
}

#[test]
fn a_large_file_keeps_its_order_and_its_queues() {
    let data = folder("cli-large");
    let node = Node::start(&data, &["--shards", "1"]);
    let jobs: Vec<Value> = (0..3000)
        .map(|n| {
            let queue = format!("q{}", n % 3);
            serde_json::json!({"id": format!("j{n}"), "payload": n, "queue": queue})
        })
        .collect();
    let file = data.join("../cli-large.json");
    fs::write(&file, Value::from(jobs).to_string()).expect("it can be written");
    let file = file.display().to_string();
    let said = rrqctl(&node, &["enqueue", "--file", &file]).ok();
    assert_eq!(said, "3000 enqueued, 0 already there\n");
    let first = rrqctl(&node, &["job", "get", "-q", "q2", "--key", "j2"]).ok();
    let last = rrqctl(&node, &["job", "get", "-q", "q2", "--key", "j2999"]).ok();
    let seq = |job: &str| u64::from_str_radix(&job[4 + 18..4 + 32 - 2], 16).expect("an id");
    assert_eq!((seq(&first), seq(&last)), (0, 999));
}

#[test]
fn an_argument_or_standard_input_is_a_job() {
    let node = node("cli-one");
    let hello = ["enqueue", "-q", "a", "--key", "k", "hello"];
    let first = rrqctl(&node, &hello);
    assert_eq!(
        first.err,
        "there was no queue a: it is made\n1 enqueued, 0 already there\n"
    );
    let said = first.ok();
    assert_eq!(
        said,
        format!("{}\n", id(&said)),
        "the id alone: $(rrqctl enqueue ...)"
    );
    let again = rrqctl(&node, &hello);
    assert_eq!(
        (&*again.out, &*again.err),
        (&*said, "0 enqueued, 1 already there\n")
    );
    // A key that is used up adds no job, and that is said.
    let late = ["enqueue", "-q", "a", "--key", "over", "x"];
    let over = rrqctl(&node, &late).ok();
    rrqctl(&node, &["job", "cancel", over.trim()]).ok();
    let again = rrqctl(&node, &late);
    assert_eq!(
        again.err,
        "0 enqueued, 1 already there; it is over and does not run again\n"
    );
    rrqctl(&node, &["enqueue", "-q", "a", "--key", "k", "other"]).failed(1, "RRQ-4108");

    let by_id = rrqctl(&node, &["job", "get", id(&said)]).ok();
    assert!(
        by_id.contains("state     pending") && by_id.contains("payload   hello"),
        "{by_id}"
    );

    for dash in [
        &["enqueue", "-q", "a", "--key", "in", "-"][..],
        &["enqueue", "-q", "a"],
    ] {
        rrqctl_fed(&node, dash, b"two\nlines \xff").ok();
    }
    let get = ["job", "get", "-q", "a", "--key", "in", "--output", "json"];
    let job: Value = serde_json::from_str(&rrqctl(&node, &get).ok()).expect("it is JSON");
    assert_eq!(job["payload_hex"], "74776f0a6c696e657320ff");

    let later = [
        "enqueue",
        "-q",
        "a",
        "--key",
        "later",
        "--delay",
        "1h",
        "--priority",
        "0",
        "--max-attempts",
        "3",
        "--run-limit",
        "5s",
        "--ttl",
        "2d",
        "--header",
        "trace=1",
        "x",
    ];
    rrqctl(&node, &later).ok();
    let job = rrqctl(&node, &["job", "get", "-q", "a", "--key", "later"]).ok();
    for part in [
        "delayed, due at 2",
        "0 of 3",
        "priority  0",
        "run limit 5 s",
        "header    trace=1",
    ] {
        assert!(job.contains(part), "{part} is missing in {job}");
    }
    let status = rrqctl(&node, &["status", "--groups"]).ok();
    for part in [
        "1 node, 1 shard, 64 groups",
        "queue  pending",
        "a            3        1",
    ] {
        assert!(status.contains(part), "{part} is missing in {status}");
    }
}

#[test]
fn a_job_that_is_done_says_so() {
    let node = node("cli-done");
    let said = rrqctl(&node, &["enqueue", "-q", "a", "--key", "k", "x"]).ok();
    rrqctl(
        &node,
        &["work", "-q", "a", "--exit-when-empty", "--", "true"],
    )
    .ok();
    let by_id = rrqctl(&node, &["job", "get", id(&said)]).ok();
    assert_eq!(by_id, format!("job {}\n  state     finished\n", id(&said)));
    let by_key = rrqctl(&node, &["job", "get", "-q", "a", "--key", "k"]).ok();
    assert!(by_key.ends_with("state     finished\n"), "{by_key}");
    let json = rrqctl(&node, &["job", "get", id(&said), "--output", "json"]).ok();
    let json: Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(json["state"], "finished");
    let never = format!("{}ff00", &id(&said)[..28]);
    let told = rrqctl(&node, &["job", "get", &never]).failed(1, "RRQ-4111");
    assert!(told.contains(&format!("there is no job {never}")), "{told}");
    rrqctl(&node, &["job", "get", "-q", "a", "--key", "zz"]).failed(1, "RRQ-4111");
    rrqctl(&node, &["job", "get", "-q", "nowhere", "--key", "k"]).failed(1, "RRQ-4014");
    let status = rrqctl(&node, &["status"]).ok();
    assert!(
        !status.contains("nowhere"),
        "a look makes no queue: {status}"
    );
}

#[test]
fn what_is_wrong_with_the_command_line_is_named() {
    let cases: &[(&[&str], &str)] = &[
        (&["status", "--bogus"], "unexpected argument '--bogus'"),
        (&["bogus"], "unrecognized subcommand 'bogus'"),
        (&["enqueue", "--priority", "9", "x"], "9 is not in 0..=7"),
        (
            &["enqueue", "--delay", "5", "x"],
            "a whole number with ms, s, min, h or d",
        ),
        (&["enqueue", "--file", FIVE, "x"], "cannot be used with"),
        (&["work", "-q", "a"], "<COMMAND>"),
        (&["work", "--", "true"], "--queue <NAME>"),
        (
            &["work", "-q", "a", "--concurrency", "0", "--", "true"],
            "0 is not in 1..=1024",
        ),
        (&["job", "get"], "required"),
        (&["job", "get", "12"], "`12` is no job id"),
        (&["status", "--server", "nonsense:"], "nonsense"),
    ];
    for (args, part) in cases {
        let said = alone(args).failed(2, "RRQ-2001");
        assert!(
            said.contains(part) && said.contains("\n  fix:   "),
            "{args:?}: {said}"
        );
    }
    let help = alone(&["enqueue", "--help"]).ok();
    assert!(help.contains("Examples:"), "{help}");
    assert_eq!(alone(&[]).status, 2);
}

#[test]
fn a_server_that_is_away_is_named_with_what_to_do() {
    let said = alone(&["status"]).failed(1, "RRQ-4001");
    for part in [
        "no server answers at 127.0.0.1:1",
        "refused",
        "rrq-node",
        "--server",
        "RRQ_SERVER",
    ] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
}

#[test]
fn a_bad_jobs_file_is_refused_whole_with_its_line() {
    let data = folder("cli-bad-file");
    let node = Node::start(&data, &["--shards", "1"]);
    let said = rrqctl(&node, &["enqueue", "--file", "/nowhere/jobs.json"]).failed(2, "RRQ-2003");
    assert!(
        said.contains("/nowhere/jobs.json") && said.contains("No such file"),
        "{said}"
    );
    let path = data.join("../cli-bad.json");
    let file = path.display().to_string();
    let large = "x".repeat((1 << 20) + 1);
    let good = r#"{"id":"a","payload":1}"#;
    let cases = [
        (format!("[{good},\n{{\"id\":\"b\"]"), "RRQ-2003", 2, ":2\n"),
        (
            format!("[{good},\n{{\"id\":\"b\",\"payload\":1,\n\"prio\":1}}]"),
            "RRQ-2003",
            2,
            ":3\n",
        ),
        ("[1,2".to_owned(), "RRQ-2003", 2, ":1\n"),
        (
            format!("[{good},\n\n{{\"id\":\"b\",\"payload\":\"{large}\"}}]"),
            "RRQ-4012",
            1,
            ":3: b\n",
        ),
    ];
    for (text, code, status, place) in cases {
        fs::write(&path, &text).expect("it can be written");
        let said = rrqctl(&node, &["enqueue", "--file", &file]).failed(status, code);
        assert!(said.contains(&format!("{file}{place}")), "{said}");
    }
    // A key of another job: the others are there, and the one is named.
    rrqctl(&node, &["enqueue", "--key", "b", "other"]).ok();
    let text = format!("[{good},\n{{\"id\":\"b\",\"payload\":1}}]");
    fs::write(&path, &text).expect("it can be written");
    let done = rrqctl(&node, &["enqueue", "--file", &file]);
    assert_eq!(done.out, "1 enqueued, 0 already there\n");
    let said = done.failed(1, "RRQ-4108");
    assert!(
        said.contains(&format!("{file}:2: b\n")) && said.contains("1 job refused"),
        "{said}"
    );
    assert_eq!(queue(&node, "default")["pending"], 2);
}
