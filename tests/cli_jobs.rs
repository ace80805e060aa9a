//! `rrqctl job list` and `wait`, `dead` by filter, `worker list`, queues of several partitions,
//! against a node; the JSON of what is read.
//!
//! Names and types of the JSON lie in `tests/snapshots/json`; `UPDATE=1` rewrites them.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod cli_support;
mod node_support;

use cli_support::{finish, queue, rrqctl, shape, signal, snapshot, start, until};
use node_support::Node;
use serde_json::Value;

fn node(name: &str) -> Node {
    Node::start_new(name, &["--shards", "1"])
}

fn json(node: &Node, args: &[&str]) -> Value {
    let said = rrqctl(node, &[args, &["--output", "json"]].concat()).ok();
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
}

/// Enqueues a job; its id.
fn enqueue(node: &Node, queue: &str, payload: &str) -> String {
    let said = rrqctl(node, &["enqueue", "-q", queue, payload]).ok();
    said.lines().next().expect("a line").to_owned()
}

/// A queue with so many dead jobs: the even ones for want of a host, the odd ones of a timeout.
fn dead(node: &Node, queue: &str, jobs: usize) {
    rrqctl(node, &["queue", "create", queue, "--max-attempts", "1"]).ok();
    for number in 0..jobs {
        enqueue(node, queue, &number.to_string());
    }
    let script = "read n; [ $((n % 2)) = 0 ] && echo no host $n >&2 || echo timeout $n >&2; exit 1";
    let work = [
        "work",
        "-q",
        queue,
        "--exit-when-empty",
        "--",
        "sh",
        "-c",
        script,
    ];
    rrqctl(node, &work).ok();
}

fn ids(list: &Value) -> Vec<String> {
    let jobs = list["jobs"].as_array().expect("a list");
    let id = |job: &Value| job["id"].as_str().expect("an id").to_owned();
    jobs.iter().map(id).collect()
}

#[test]
fn a_list_goes_on_where_it_ended() {
    let node = node("cli-list");
    let jobs: Vec<String> = (0..7)
        .map(|n| enqueue(&node, "emails", &n.to_string()))
        .collect();
    let list = ["job", "list", "-q", "emails"];
    let first = json(&node, &[&list[..], &["--limit", "3"]].concat());
    assert_eq!(ids(&first), jobs[..3]);
    let next = first["next"].as_str().expect("a cursor");
    let rest = json(
        &node,
        &[&list[..], &["--after", next, "--limit", "100"]].concat(),
    );
    assert_eq!(ids(&rest), jobs[3..]);
    assert!(rest["next"].is_null());
    assert_eq!(ids(&json(&node, &[&list[..], &["--all"]].concat())), jobs);
    let table = rrqctl(&node, &[&list[..], &["--limit", "2"]].concat());
    assert!(table.err.contains("--after "), "{}", table.err);
    assert_eq!(table.ok().lines().count(), 3);
    let none = [&list[..], &["--state", "dead"]].concat();
    assert_eq!(rrqctl(&node, &none).ok(), "no such jobs\n");
    rrqctl(&node, &[&list[..], &["--after", "x"]].concat()).failed(2, "RRQ-2001");
    // By what they are like.
    let old = [&list[..], &["--older-than", "1h"]].concat();
    assert_eq!(rrqctl(&node, &old).ok(), "no such jobs\n");
    assert_eq!(
        ids(&json(&node, &[&list[..], &["--newer-than", "1h"]].concat())),
        jobs
    );
    let urgent = ["enqueue", "-q", "emails", "--priority", "0", "now"];
    rrqctl(&node, &urgent).ok();
    let urgent = json(&node, &[&list[..], &["--priority", "0"]].concat());
    assert_eq!(urgent["jobs"][0]["payload"], "now");
    assert_eq!(ids(&urgent).len(), 1);
}

#[test]
fn finished_jobs_are_listed_on_where_a_list_ended() {
    let node = node("cli-finished");
    rrqctl(&node, &["queue", "create", "kept", "--retain", "100"]).ok();
    let mut jobs: Vec<String> = (0..7)
        .map(|n| enqueue(&node, "kept", &n.to_string()))
        .collect();
    jobs.reverse();
    let work = ["work", "-q", "kept", "--exit-when-empty", "--", "true"];
    rrqctl(&node, &work).ok();
    let list = ["job", "list", "-q", "kept", "--state", "finished"];
    let first = json(&node, &[&list[..], &["--limit", "3"]].concat());
    assert_eq!(ids(&first), jobs[..3]);
    let next = first["next"].as_str().expect("a cursor");
    let rest = json(&node, &[&list[..], &["--after", next]].concat());
    assert_eq!(ids(&rest), jobs[3..]);
    assert!(rest["next"].is_null());
    assert_eq!(ids(&json(&node, &[&list[..], &["--all"]].concat())), jobs);
    let bad = [&list[..], &["--after", "0.4.x"]].concat();
    rrqctl(&node, &bad).failed(2, "RRQ-2001");
    let filtered = [&list[..], &["--priority", "0"]].concat();
    rrqctl(&node, &filtered).failed(2, "RRQ-2001");
}

#[test]
fn dead_jobs_are_grouped_counted_and_swept() {
    let node = node("cli-dead");
    dead(&node, "emails", 10);
    let grouped = json(
        &node,
        &["dead", "list", "-q", "emails", "--group-by", "reason"],
    );
    let reasons = grouped["reasons"].as_array().expect("a list");
    assert_eq!(reasons.len(), 2, "{grouped}");
    for reason in reasons {
        assert_eq!(reason["jobs"], 5);
        assert!(
            reason["reason"].as_str().expect("a text").ends_with(" #"),
            "{reason}"
        );
    }
    let table = rrqctl(
        &node,
        &["dead", "list", "-q", "emails", "--reason", "timeout"],
    )
    .ok();
    assert_eq!(table.lines().count(), 6, "{table}");
    assert!(
        table.contains("1 of 1") && table.contains("timeout 3"),
        "{table}"
    );

    let requeue = ["dead", "requeue", "-q", "emails", "--reason", "timeout"];
    let dry = rrqctl(&node, &[&requeue[..], &["--dry-run"]].concat()).ok();
    assert_eq!(dry, "5 of 10 dead jobs of queue emails\n");
    let said = rrqctl(&node, &requeue).failed(2, "RRQ-2001");
    assert!(said.contains("requeue 5 of 10 dead jobs"), "{said}");
    assert_eq!(queue(&node, "emails")["dead"], 10);
    let yes = [&requeue[..], &["--yes", "--rate", "100"]].concat();
    assert_eq!(rrqctl(&node, &yes).ok(), "5 jobs requeued\n");
    let left = queue(&node, "emails");
    assert_eq!((&left["dead"], &left["pending"]), (&5.into(), &5.into()));

    let delete = ["dead", "delete", "-q", "emails", "--all", "--yes"];
    assert_eq!(rrqctl(&node, &delete).ok(), "5 jobs deleted\n");
    assert_eq!(queue(&node, "emails")["dead"], 0);
}

#[test]
fn the_end_of_a_job_is_waited_for() {
    let node = node("cli-wait");
    rrqctl(&node, &["queue", "create", "kept", "--retain", "10"]).ok();
    let id = enqueue(&node, "kept", "one");
    let wait = ["job", "wait", id.as_str()];
    let late = [&wait[..], &["--timeout", "10ms"]].concat();
    rrqctl(&node, &late).failed(1, "RRQ-4011");
    let waiting = start(&node, &[&wait[..], &["--output", "json"]].concat());
    rrqctl(
        &node,
        &["work", "-q", "kept", "--exit-when-empty", "--", "true"],
    )
    .ok();
    let ended: Value = serde_json::from_str(&finish(waiting).ok()).expect("it is JSON");
    assert_eq!(ended["end"], "completed");
    snapshot("json/job-wait.txt", &shape(&ended));
    let finished = json(&node, &["job", "list", "-q", "kept", "--state", "finished"]);
    assert_eq!(ids(&finished), std::slice::from_ref(&id));
    snapshot("json/job-list-finished.txt", &shape(&finished));
    let got = rrqctl(&node, &["job", "get", &id]).ok();
    assert!(got.contains("  state     completed\n"), "{got}");
    assert_eq!(json(&node, &["job", "get", &id])["end"], "completed");
    // No queue ever had such a number.
    let nobody = "003f003f00ffff000000000000000000";
    rrqctl(&node, &["job", "get", nobody]).failed(1, "RRQ-4111");

    // Where nothing is retained, all that is known is that it is over.
    let id = enqueue(&node, "plain", "one");
    rrqctl(
        &node,
        &["work", "-q", "plain", "--exit-when-empty", "--", "true"],
    )
    .ok();
    let ended = json(&node, &["job", "wait", &id]);
    assert_eq!(
        (&ended["state"], &ended["end"]),
        (&"finished".into(), &Value::Null)
    );
    // A dead one is no success.
    dead(&node, "bad", 1);
    let bad = json(&node, &["dead", "list", "-q", "bad"]);
    rrqctl(&node, &["job", "wait", &ids(&bad)[0]]).failed(1, "RRQ-4112");
    let never = format!("{}9900", &id[..28]);
    rrqctl(&node, &["job", "wait", &never]).failed(1, "RRQ-4111");
}

#[test]
fn who_works_is_shown() {
    let node = node("cli-workers");
    assert_eq!(rrqctl(&node, &["worker", "list"]).ok(), "nobody works\n");
    let id = enqueue(&node, "emails", "one");
    let mut worker = start(&node, &["work", "-q", "emails", "--", "sleep", "60"]);
    let get = ["job", "get", id.as_str()];
    until("the job in flight", || {
        (json(&node, &get)["state"] == "in_flight").then_some(())
    });
    let listed = json(&node, &["worker", "list"]);
    assert_eq!(listed["workers"][0]["leases"], 1, "{listed}");
    snapshot("json/worker-list.txt", &shape(&listed));
    // The first lets the job end, the second does not. Two at once may arrive as one.
    until("the worker's end", || {
        signal(worker.id(), "-TERM");
        worker.try_wait().expect("it is a child")
    });
    finish(worker);
}

#[test]
fn a_draining_queue_takes_nothing_and_gives_what_it_has() {
    let node = node("cli-drain");
    enqueue(&node, "emails", "one");
    rrqctl(&node, &["queue", "drain", "emails"]).ok();
    assert!(
        rrqctl(&node, &["queue", "list"])
            .ok()
            .contains("emails (draining)")
    );
    let refused = rrqctl(&node, &["enqueue", "-q", "emails", "two"]);
    assert_ne!(refused.status, 0, "{}", refused.out);
    rrqctl(
        &node,
        &["work", "-q", "emails", "--exit-when-empty", "--", "true"],
    )
    .ok();
    assert_eq!(queue(&node, "emails")["completed_total"], 1);
    rrqctl(&node, &["queue", "resume", "emails"]).ok();
    enqueue(&node, "emails", "three");
}

#[test]
fn a_queue_of_several_partitions_is_seen_as_one() {
    let node = node("cli-partitions");
    rrqctl(&node, &["queue", "create", "wide", "--partitions", "4"]).ok();
    for number in 0..12 {
        enqueue(&node, "wide", &number.to_string());
    }
    assert_eq!(json(&node, &["queue", "show", "wide"])["pending"], 12);
    let listed = rrqctl(&node, &["queue", "list"]).ok();
    let wide = listed.lines().find(|line| line.starts_with("wide "));
    let cells = wide.unwrap_or_default().split_whitespace().nth(1);
    assert_eq!(cells, Some("12"), "{listed}");
    assert_eq!(queue(&node, "wide")["pending"], 12);
    let first = json(&node, &["job", "list", "-q", "wide", "--limit", "5"]);
    let next = first["next"].as_str().expect("a cursor");
    let rest = json(
        &node,
        &["job", "list", "-q", "wide", "--all", "--after", next],
    );
    let mut all = [ids(&first), ids(&rest)].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 12);
}

#[test]
fn every_list_has_json_of_its_own_form() {
    let node = node("cli-json-lists");
    enqueue(&node, "emails", "one");
    dead(&node, "bad", 2);
    let reads: [(&str, &[&str]); 3] = [
        ("job-list", &["job", "list", "-q", "emails"]),
        ("dead-list", &["dead", "list", "-q", "bad"]),
        (
            "dead-list-grouped",
            &["dead", "list", "-q", "bad", "--group-by", "reason"],
        ),
    ];
    for (name, args) in reads {
        snapshot(&format!("json/{name}.txt"), &shape(&json(&node, args)));
    }
}
