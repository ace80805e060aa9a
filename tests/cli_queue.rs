//! `rrqctl queue`, `job cancel` and `dead` by id against a node; the JSON of what is read.
//!
//! Names and types of the JSON lie in `tests/snapshots/json`; `UPDATE=1` rewrites them.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod cli_support;
mod node_support;

use cli_support::{alone, queue, rrqctl, shape, snapshot};
use node_support::{Node, folder};
use serde_json::Value;

fn node(name: &str) -> Node {
    Node::start_new(name, &["--shards", "1"])
}

fn json(node: &Node, args: &[&str]) -> Value {
    let said = rrqctl(node, &[args, &["--output", "json"]].concat()).ok();
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
}

/// Enqueues a job under a key; its id.
fn enqueue(node: &Node, queue: &str, key: &str) -> String {
    let said = rrqctl(node, &["enqueue", "-q", queue, "--key", key, key]).ok();
    said.lines().next().expect("a line").to_owned()
}

/// Lets every job of a queue fail once, with a reason.
fn fail_all(node: &Node, queue: &str) {
    let script = "echo no such host >&2; exit 1";
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

#[test]
fn a_queue_from_its_making_to_its_end() {
    let node = node("cli-queue");
    let create = [
        "queue",
        "create",
        "emails",
        "--max-attempts",
        "2",
        "--bytes-max",
        "64MiB",
    ];
    assert_eq!(rrqctl(&node, &create).ok(), "queue emails created\n");
    rrqctl(&node, &create).failed(1, "RRQ-4102");
    rrqctl(&node, &[&create[..], &["--if-absent"]].concat()).ok();
    rrqctl(&node, &["queue", "create", "no/name"]).failed(1, "RRQ-4104");

    let alter = [
        "queue",
        "alter",
        "emails",
        "--lease",
        "2min",
        "--backoff",
        "linear",
    ];
    let altered = json(&node, &alter);
    assert_eq!(altered["settings"]["lease_ms"], 120_000);
    assert_eq!(altered["settings"]["backoff"]["curve"], "linear");
    // What was not given stays.
    assert_eq!(altered["settings"]["max_attempts"], 2);
    assert_eq!(altered["settings"]["bytes_max"], 64 << 20);
    rrqctl(&node, &["queue", "alter", "emails"]).failed(2, "RRQ-2001");
    rrqctl(&node, &["queue", "alter", "nobody", "--lease", "1s"]).failed(1, "RRQ-4014");
    let shown = rrqctl(&node, &["queue", "show", "emails"]).ok();
    assert!(shown.contains("  lease          2 min 0 s\n"), "{shown}");
    assert!(shown.contains("linear: 1 s more each time"), "{shown}");

    // A paused queue takes jobs and gives none.
    rrqctl(&node, &["queue", "pause", "emails"]).ok();
    enqueue(&node, "emails", "one");
    assert!(
        rrqctl(&node, &["queue", "list"])
            .ok()
            .contains("emails (paused)")
    );
    let work = ["work", "-q", "emails", "--exit-when-empty", "--", "true"];
    rrqctl(&node, &work).ok();
    assert_eq!(queue(&node, "emails")["pending"], 1);
    rrqctl(&node, &["queue", "resume", "emails"]).ok();
    rrqctl(&node, &work).ok();
    assert_eq!(queue(&node, "emails")["completed_total"], 1);
}

#[test]
fn what_removes_says_how_much_and_asks() {
    let node = node("cli-removes");
    for key in ["one", "two", "three"] {
        enqueue(&node, "emails", key);
    }
    let delayed = ["enqueue", "-q", "emails", "--delay", "1h", "later"];
    rrqctl(&node, &delayed).ok();
    let purge = ["queue", "purge", "emails", "--pending"];
    let said = rrqctl(&node, &purge).failed(2, "RRQ-2001");
    assert!(
        said.contains("3 pending") && said.contains("--yes"),
        "{said}"
    );
    assert_eq!(queue(&node, "emails")["pending"], 3);
    let yes = |args: &[&str]| rrqctl(&node, &[args, &["--yes"]].concat()).ok();
    assert_eq!(yes(&purge), "3 jobs removed\n");
    assert_eq!(queue(&node, "emails")["delayed"], 1);
    let delete = ["queue", "delete", "emails"];
    let said = rrqctl(&node, &delete).failed(2, "RRQ-2001");
    assert!(said.contains("with 1 job, 0 of them in flight"), "{said}");
    assert_eq!(yes(&delete), "queue emails is deleted\n");
    rrqctl(&node, &["queue", "show", "emails"]).failed(1, "RRQ-4014");
}

#[test]
fn a_job_is_cancelled_once() {
    let node = node("cli-cancel");
    let ids = [
        enqueue(&node, "emails", "one"),
        enqueue(&node, "emails", "two"),
    ];
    assert_eq!(
        rrqctl(&node, &["job", "cancel", &ids[0]]).ok(),
        "1 job cancelled\n"
    );
    let done = rrqctl(&node, &["job", "cancel", &ids[0], &ids[1]]);
    assert_eq!(done.out, "1 job cancelled\n");
    let said = done.failed(1, "RRQ-4110");
    assert!(said.contains(&ids[0]), "{said}");
    assert_eq!(queue(&node, "emails")["cancelled_total"], 2);
    rrqctl(&node, &["job", "cancel", "xyz"]).failed(2, "RRQ-2001");
}

#[test]
fn a_dead_job_is_looked_at_and_tried_again_or_removed() {
    let node = node("cli-dead-id");
    rrqctl(&node, &["queue", "create", "emails", "--max-attempts", "1"]).ok();
    let id = enqueue(&node, "emails", "one");
    let show = ["dead", "show", id.as_str()];
    rrqctl(&node, &show).failed(1, "RRQ-4112");
    fail_all(&node, "emails");
    assert!(rrqctl(&node, &show).ok().contains("no such host"));
    assert_eq!(
        rrqctl(&node, &["dead", "requeue", &id]).ok(),
        "1 job requeued\n"
    );
    rrqctl(&node, &["dead", "requeue", &id]).failed(1, "RRQ-4112");
    fail_all(&node, "emails");
    rrqctl(&node, &["dead", "delete", &id]).failed(2, "RRQ-2001");
    assert_eq!(queue(&node, "emails")["dead"], 1);
    assert_eq!(
        rrqctl(&node, &["dead", "delete", &id, "--yes"]).ok(),
        "1 job deleted\n"
    );
    assert_eq!(queue(&node, "emails")["dead"], 0);
    // It must be said which jobs are meant.
    let vague = rrqctl(&node, &["dead", "delete", "-q", "emails", "--yes"]);
    vague.failed(2, "RRQ-2001");
    rrqctl(&node, &["dead", "requeue"]).failed(2, "RRQ-2001");
}

#[test]
fn every_read_has_json_of_its_own_form() {
    let node = node("cli-json");
    rrqctl(&node, &["queue", "create", "emails"]).ok();
    let id = enqueue(&node, "emails", "one");
    let get = ["job", "get", id.as_str()];
    let reads: [(&str, &[&str]); 4] = [
        ("status", &["status"]),
        ("queue-list", &["queue", "list"]),
        ("queue-show", &["queue", "show", "emails"]),
        ("job-get", &get),
    ];
    for (name, args) in reads {
        snapshot(&format!("json/{name}.txt"), &shape(&json(&node, args)));
    }
}

#[test]
fn the_configuration_is_shown_with_its_origins() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/single.toml");
    let show = |more: &[&str]| {
        let args = [&["config", "show", "--config", file], more].concat();
        alone(&args).ok()
    };
    let shown = show(&["--origin"]);
    let line = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key));
        line.unwrap_or_else(|| panic!("{key} is missing: {shown}"))
            .to_owned()
    };
    assert!(line("listen.client = ").contains("single.toml:"), "{shown}");
    // What is shown is a file that says the same.
    let copy = folder("cli-config").with_extension("toml");
    std::fs::write(&copy, show(&[])).expect("it can be written");
    let again = alone(&["config", "show", &copy.display().to_string()]).ok();
    assert_eq!(again, show(&[]));
    let value: Value = serde_json::from_str(&show(&["--output", "json"])).expect("it is JSON");
    assert!(value["settings"][0]["key"].is_string());

    let checked = alone(&["config", "check", file]).ok();
    assert!(checked.starts_with("sound: "), "{checked}");
    std::fs::write(&copy, "[listen]\nclent = \"127.0.0.1:1\"\n").expect("it can be written");
    let said = alone(&["config", "check", &copy.display().to_string()]);
    assert!(said.failed(2, "RRQ-2002").contains("client"));
}

#[test]
fn a_code_is_explained() {
    let said = alone(&["explain", "RRQ-1007"]).ok();
    assert!(said.starts_with("RRQ-1007 DirectoryLocked"), "{said}");
    assert!(
        said.lines().all(|line| line.chars().count() <= 80),
        "{said}"
    );
    assert_eq!(said, alone(&["explain", "1007"]).ok());
    assert!(alone(&["explain"]).ok().lines().count() > 50);
    alone(&["explain", "RRQ-0001"]).failed(2, "RRQ-2001");
    let value = alone(&["explain", "RRQ-1007", "--output", "json"]).ok();
    let value: Value = serde_json::from_str(&value).expect("it is JSON");
    snapshot("json/explain.txt", &shape(&value));
}

#[test]
fn a_check_looks_as_the_node_does() {
    let data = folder("cli-check");
    let dir = data.display().to_string();
    let done = alone(&["check", "--data-dir", &dir, "--output", "json"]);
    let value: Value = serde_json::from_str(&done.out).expect("it is JSON");
    assert!(
        value["checks"]
            .as_array()
            .is_some_and(|checks| checks.len() > 5)
    );
    let wanted = if value["status"] == "ok" { 0 } else { 1 };
    assert_eq!(done.status, wanted, "{}{}", done.out, done.err);
    assert!(!data.exists(), "a check makes nothing");
    // With a fault: somebody else's folder.
    std::fs::create_dir_all(data.join("photos")).expect("it can be made");
    let done = alone(&["check", "--data-dir", &dir]);
    assert_eq!(done.status, 3, "{}{}", done.out, done.err);
    assert!(done.out.contains("RRQ-3005"), "{}", done.out);
}
