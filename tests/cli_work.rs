//! `rrqctl work` against a node: acks, failures, the run limit, leases, signals, restarts.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod cli_support;
mod node_support;

use cli_support::{appears, command, finish, queue, rrqctl, signal, start, until};
use node_support::{Node, TestFolder, folder};
use std::fs;
use std::path::Path;
use std::process::Command;

fn node(name: &str) -> (TestFolder, Node) {
    let data = folder(name);
    let node = Node::start(&data, &["--shards", "1"]);
    (data, node)
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Text that a shell takes as one word.
fn word(path: &Path) -> String {
    format!("'{}'", path.display())
}

#[test]
fn a_command_gets_the_payload_and_its_success_ends_the_job() {
    let (_data, node) = node("work-ack");
    let said = rrqctl(&node, &["enqueue", "-q", "a", "hello"]).ok();
    let id = said.lines().next().expect("an id");
    let print = "cat; echo \" $RRQ_JOB_ID $RRQ_ATTEMPT $RRQ_QUEUE\"";
    let work = [
        "work",
        "-q",
        "a",
        "--exit-when-empty",
        "--",
        "sh",
        "-c",
        print,
    ];
    let done = rrqctl(&node, &work);
    assert_eq!(done.err, "1 done, 0 failed\n");
    assert_eq!(done.ok(), format!("hello {id} 1 a\n"));
    assert_eq!(queue(&node, "a")["completed_total"], 1);
    // A command need not read what it is given.
    let large = "x".repeat(100_000);
    rrqctl(&node, &["enqueue", "-q", "a", &large]).ok();
    let done = rrqctl(
        &node,
        &["work", "-q", "a", "--exit-when-empty", "--", "true"],
    );
    assert_eq!(done.err, "1 done, 0 failed\n");
}

#[test]
fn what_a_command_prints_may_be_the_result() {
    let (_data, node) = node("work-result");
    rrqctl(&node, &["queue", "create", "a", "--retain", "10"]).ok();
    let said = rrqctl(&node, &["enqueue", "-q", "a", "1 2 3"]).ok();
    let id = said.lines().next().expect("an id");
    let work = ["work", "-q", "a", "--exit-when-empty", "--result", "--"];
    let words = [&work[..], &["wc", "-w"]].concat();
    let done = rrqctl(&node, &words);
    assert_eq!(done.err, "1 done, 0 failed\n");
    assert_eq!(done.ok(), "", "it goes to the server alone");
    let waited = rrqctl(&node, &["job", "wait", id]).ok();
    assert!(waited.contains("  result    3\n"), "{waited}");
    // One that nothing could keep is a failure, told before the server has to.
    let large = [&work[..], &["seq", "2000"]].concat();
    rrqctl(&node, &["enqueue", "-q", "a", "x"]).ok();
    let done = rrqctl(&node, &large);
    assert!(
        done.err.contains("it printed more than 4096 bytes") && done.err.ends_with("1 failed\n"),
        "{}",
        done.err
    );
    // Without the flag nothing is kept.
    let said = rrqctl(&node, &["enqueue", "-q", "a", "x"]).ok();
    let id = said.lines().next().expect("an id");
    let plain = ["work", "-q", "a", "--exit-when-empty", "--", "echo", "7"];
    assert_eq!(rrqctl(&node, &plain).ok(), "7\n");
    let waited = rrqctl(&node, &["job", "wait", id]).ok();
    assert!(!waited.contains("result"), "{waited}");
}

#[test]
fn a_failure_is_told_with_the_end_of_its_words() {
    let (_data, node) = node("work-nack");
    let fail = |queue: &str, command: &str| {
        rrqctl(
            &node,
            &[
                "enqueue",
                "-q",
                queue,
                "--key",
                "k",
                "--max-attempts",
                "1",
                "x",
            ],
        )
        .ok();
        let work = [
            "work",
            "-q",
            queue,
            "--exit-when-empty",
            "--",
            "sh",
            "-c",
            command,
        ];
        assert!(rrqctl(&node, &work).err.ends_with("0 done, 1 failed\n"));
        let get = ["job", "get", "-q", queue, "--key", "k", "--output", "json"];
        let job = rrqctl(&node, &get).ok();
        let job: serde_json::Value = serde_json::from_str(&job).expect("it is JSON");
        assert_eq!(job["state"], "dead");
        job["last_failure"].as_str().expect("a text").to_owned()
    };
    assert_eq!(fail("a", "echo oh no >&2; exit 3"), "oh no");
    assert_eq!(fail("b", "exit 3"), "exit status 3");
    assert_eq!(fail("c", "kill -9 $$"), "killed by signal 9");
    let long = fail("d", "seq 1000 >&2; exit 1");
    assert!(
        (200..=256).contains(&long.len()) && long.ends_with("\n1000"),
        "{long}"
    );
}

#[test]
fn the_run_limit_ends_the_command_with_all_that_it_started() {
    let (data, node) = node("work-limit");
    let pid = data.join("../work-limit.pid");
    let _ = fs::remove_file(&pid);
    let enqueue = [
        "enqueue",
        "-q",
        "a",
        "--key",
        "k",
        "--run-limit",
        "300ms",
        "x",
    ];
    rrqctl(&node, &enqueue).ok();
    let script = format!("sleep 600 & echo $! > {}; wait", word(&pid));
    let done = rrqctl(
        &node,
        &[
            "work",
            "-q",
            "a",
            "--exit-when-empty",
            "--",
            "sh",
            "-c",
            &script,
        ],
    );
    assert!(
        done.err.contains("the run limit has passed") && done.err.ends_with("0 done, 1 failed\n"),
        "{}",
        done.err
    );
    let child = appears(&pid);
    until("the child's end", || (!is_alive(&child)).then_some(()));
    let job = rrqctl(&node, &["job", "get", "-q", "a", "--key", "k"]).ok();
    assert!(
        job.contains("failure   timeout: it ran longer than 300ms"),
        "{job}"
    );
    assert!(job.contains("delayed, next attempt in"), "{job}");
}

#[test]
fn a_lease_is_extended_while_its_command_runs() {
    let (_data, node) = node("work-extend");
    // Two thirds of the lease are left to a disk that is slow for once.
    rrqctl(&node, &["enqueue", "-q", "a", "--lease", "1s", "x"]).ok();
    let work = ["work", "-q", "a", "--exit-when-empty", "--", "sleep", "3"];
    assert_eq!(rrqctl(&node, &work).err, "1 done, 0 failed\n");
    let queue = queue(&node, "a");
    assert_eq!(
        (&queue["leased_total"], &queue["expired_total"]),
        (&1.into(), &0.into())
    );
}

#[test]
fn a_signal_drains_and_what_did_not_start_goes_back() {
    let (data, node) = node("work-drain");
    let (begun, go_on) = (data.join("../drain.begun"), data.join("../drain.go"));
    let _ = fs::remove_file(&begun);
    let _ = fs::remove_file(&go_on);
    for number in ["1", "2", "3"] {
        rrqctl(&node, &["enqueue", "-q", "a", number]).ok();
    }
    let script = format!(
        "echo begun > {}; while [ ! -e {} ]; do sleep 0.01; done",
        word(&begun),
        word(&go_on)
    );
    let worker = start(&node, &["work", "-q", "a", "--", "sh", "-c", &script]);
    appears(&begun);
    signal(worker.id(), "-TERM");
    fs::write(&go_on, "").expect("it can be written");
    let done = finish(worker);
    assert!(
        done.err.contains("draining: what runs is finished"),
        "{}",
        done.err
    );
    assert!(done.err.ends_with("1 done, 0 failed\n"), "{}", done.err);
    done.ok();
    let queue = queue(&node, "a");
    assert_eq!(
        (&queue["pending"], &queue["in_flight"]),
        (&2.into(), &0.into())
    );
}

#[test]
fn a_second_signal_kills_what_runs_and_gives_it_back() {
    let (data, node) = node("work-kill");
    let pid = data.join("../work-kill.pid");
    let _ = fs::remove_file(&pid);
    rrqctl(&node, &["enqueue", "-q", "a", "x"]).ok();
    let script = format!("echo $$ > {}; sleep 600", word(&pid));
    let worker = start(&node, &["work", "-q", "a", "--", "sh", "-c", &script]);
    let child = appears(&pid);
    signal(worker.id(), "-INT");
    until("the worker drains", || {
        // The second one is another signal, so that it is not merged with the first.
        signal(worker.id(), "-TERM");
        (!is_alive(&child)).then_some(())
    });
    finish(worker).ok();
    let back = until("the job is back", || {
        let queue = queue(&node, "a");
        (queue["in_flight"] == 0).then_some(queue)
    });
    assert_eq!(
        back["pending"]
            .as_u64()
            .zip(back["delayed"].as_u64())
            .map(|(a, b)| a + b),
        Some(1)
    );
}

#[test]
fn a_job_taken_away_stops_its_command() {
    let (data, node) = node("work-lost");
    let pid = data.join("../work-lost.pid");
    let _ = fs::remove_file(&pid);
    let said = rrqctl(&node, &["enqueue", "-q", "a", "--lease", "300ms", "x"]).ok();
    let id = said.lines().next().expect("an id").parse().expect("an id");
    let script = format!("echo $$ > {}; sleep 600", word(&pid));
    let worker = start(&node, &["work", "-q", "a", "--", "sh", "-c", &script]);
    let child = appears(&pid);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let cancel = async {
        let client = rrq::client::Client::connect(&node.clients().to_string()).await?;
        client.cancel(id).await
    };
    runtime
        .expect("a runtime")
        .block_on(cancel)
        .expect("it is cancelled");
    until("the command's end", || (!is_alive(&child)).then_some(()));
    signal(worker.id(), "-TERM");
    let done = finish(worker);
    assert!(done.err.contains("a lease is lost"), "{}", done.err);
    assert!(
        done.err.ends_with("0 done, 0 failed, 1 lost\n"),
        "{}",
        done.err
    );
}

#[test]
fn a_command_that_cannot_be_run_costs_no_attempt() {
    let (_data, node) = node("work-none");
    rrqctl(&node, &["enqueue", "-q", "a", "--key", "k", "x"]).ok();
    let done = rrqctl(&node, &["work", "-q", "a", "--", "./no-such-command"]);
    let said = done.failed(2, "RRQ-2001");
    assert!(said.contains("cannot run `./no-such-command`"), "{said}");
    let job = rrqctl(&node, &["job", "get", "-q", "a", "--key", "k"]).ok();
    assert!(
        job.contains("state     pending") && job.contains("attempts  0"),
        "{job}"
    );
}

#[test]
fn many_run_at_once() {
    let (data, node) = node("work-many");
    let folder = data.join("../work-many.d");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    for _ in 0..4 {
        rrqctl(&node, &["enqueue", "-q", "a", "x"]).ok();
    }
    // Each ends only when four have begun.
    let script = format!(
        "cd {}; touch $RRQ_JOB_ID; while [ $(ls | wc -l) -lt 4 ]; do sleep 0.01; done",
        word(&folder)
    );
    let work = [
        "work",
        "-q",
        "a",
        "-c",
        "4",
        "--exit-when-empty",
        "--",
        "sh",
        "-c",
        &script,
    ];
    assert_eq!(rrqctl(&node, &work).err, "4 done, 0 failed\n");
}

#[test]
fn a_worker_outlives_its_server() {
    let data = folder("work-restart");
    let mut node = Node::start(&data, &["--shards", "1"]);
    let server = node.clients().to_string();
    rrqctl(&node, &["enqueue", "-q", "a", "first"]).ok();
    let seen = data.join("../work-restart.seen");
    let _ = fs::remove_file(&seen);
    let script = format!("cat >> {0}; echo >> {0}", word(&seen));
    let worker = command(&server, &["work", "-q", "a", "--", "sh", "-c", &script]).spawn();
    let worker = worker.expect("rrqctl is built");
    assert_eq!(appears(&seen), "first\n");
    until("it is acked", || {
        (queue(&node, "a")["completed_total"] == 1).then_some(())
    });
    node.signal("-KILL");
    node.wait();
    let mut again = Command::new(env!("CARGO_BIN_EXE_rrq-node"));
    again
        .args(["--listen", &server, "--admin", "127.0.0.1:0", "--data-dir"])
        .arg(&*data);
    let mut again = again
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it is built");
    let enqueue = || {
        finish(
            command(&server, &["enqueue", "-q", "a", "--key", "2", "second"])
                .spawn()
                .expect("it is built"),
        )
    };
    until("it serves again", || (enqueue().status == 0).then_some(()));
    until("the second job", || {
        let text = fs::read_to_string(&seen).expect("it is there");
        (text == "first\nsecond\n").then_some(())
    });
    signal(worker.id(), "-TERM");
    let done = finish(worker);
    signal(again.id(), "-TERM");
    again.wait().expect("it ends");
    assert!(done.err.ends_with("2 done, 0 failed\n"), "{}", done.err);
}
