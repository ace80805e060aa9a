//! `rrq-bench` as people run it: its figures, its files, its books, its refusals.
#![cfg(all(feature = "bench", feature = "server", target_os = "linux"))]

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn load(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
    command.arg("load").args(args).args(["--shards", "1"]);
    command.args(["--producers", "4", "--warm-up", "100ms"]);
    command.output().expect("it runs")
}

/// The figures of a run that must be sound.
fn figures(name: &str, args: &[&str]) -> Value {
    let json = file(name);
    let path = json.to_str().expect("text").to_owned();
    let output = load(&[args, &["--json", &path]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("VERDICT   ok  0 lost"), "{said}");
    let text = std::fs::read_to_string(&json).expect("the figures");
    serde_json::from_str(&text).expect("JSON")
}

fn number(figures: &Value, name: &str) -> f64 {
    let found = name.split('.').fold(figures, |value, part| &value[part]);
    found
        .as_f64()
        .unwrap_or_else(|| panic!("{name}: {figures}"))
}

#[test]
fn enqueues_are_counted_and_timed() {
    let html = file("load-enqueue.html");
    let page = html.to_str().expect("text");
    let duration = ["--duration", "700ms", "--html", page];
    let found = figures("load-enqueue.json", &duration);
    assert!(number(&found, "enqueued_per_s") > 0.0);
    assert!(number(&found, "completed_per_s") == 0.0);
    for name in [
        "enqueue_us.p50",
        "enqueue_us.p99",
        "enqueue_us.p999",
        "server_cpu_us_per_job",
        "client_cpu_us_per_job",
        "bytes_written_per_job",
    ] {
        assert!(number(&found, name) > 0.0, "{name}: {found}");
    }
    // A job's bytes go through the log at least once.
    assert!(number(&found, "log_bytes_per_job") > 256.0, "{found}");
    let page = std::fs::read_to_string(html).expect("a page");
    assert!(page.contains("<svg") && page.contains("rrq-bench load"));
}

#[test]
fn whole_lives_with_all_that_can_befall_a_job_are_accounted_for() {
    let args = [
        "--consumers",
        "4",
        "--queues",
        "2",
        "--batch",
        "3",
        "--priorities",
        "3",
        "--delayed",
        "5",
        "--nack-rate",
        "10",
        "--duration",
        "700ms",
    ];
    let found = figures("load-life.json", &args);
    assert!(number(&found, "completed_per_s") > 0.0);
    assert!(number(&found, "end_to_end_us.p50") >= number(&found, "delivery_us.p50"));
}

#[test]
fn a_rate_is_not_exceeded() {
    let args = ["--rate", "400", "--duration", "1s", "--consumers", "8"];
    let found = figures("load-rate.json", &args);
    let rate = number(&found, "enqueued_per_s");
    assert!(rate > 0.0 && rate <= 440.0, "{found}");
}

#[test]
fn what_fills_the_queues_first_is_there_and_counts_for_nothing() {
    let args = ["--fill", "3000", "--rate", "400", "--duration", "1s"];
    let found = figures("load-fill.json", &args);
    assert!(number(&found, "enqueued_per_s") <= 440.0, "{found}");
    let backlog = found["seconds"][0]["backlog"].as_u64();
    assert!(
        backlog.is_some_and(|jobs| (3000..4000).contains(&jobs)),
        "{found}"
    );
}

#[test]
fn more_jobs_than_memory_fill_the_queues_all_the_same() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
    command.args(["load", "--shards", "1", "--fill", "300000"]);
    command.args(["--rate", "400", "--duration", "1s", "--warm-up", "100ms"]);
    // A job takes 350 B of memory: six times as much as there is, and faster than it can be written down.
    command.env("RRQ_LIMITS__JOBS_MEMORY_MAX", "16MiB");
    let (found, said) = measured("load-memory.json", &mut command);
    let backlog = found["seconds"][0]["backlog"].as_u64();
    assert!(backlog.is_some_and(|jobs| jobs >= 300_000), "{said}");
    let refused = said.split(" refused,").next();
    let refused = refused.and_then(|said| said.rsplit(' ').next());
    assert!(refused.is_some_and(|count| count != "0"), "{said}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (args, words) in [
        (&["--window", "0"][..], "--window must be 1 to"),
        (&["--consumers", "3"], "each takes one"),
        (&["127.0.0.1:7411"], "of the bench's own"),
        (&["--duration", "5"], "a whole number with ms, s or min"),
    ] {
        let output = load(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(said.starts_with("error[RRQ-2001]"), "{said}");
    }
}

#[test]
fn a_cold_curve_of_recoveries() {
    let (json, html) = (file("curve.json"), file("curve.html"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
    command.args(["crash-recover", "--jobs", "50,400", "--rounds", "2"]);
    command
        .args(["--shards", "1", "--cold", "--json"])
        .arg(&json);
    let output = command.arg("--html").arg(&html).output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert_eq!(said.matches("VERDICT  ok").count(), 2, "{said}");
    assert!(said.contains("exec to first p50"), "{said}");
    let text = std::fs::read_to_string(&json).expect("the figures");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    for (at, jobs) in [(0, 50), (1, 400)] {
        let of = &found["curve"][at];
        assert_eq!(of["jobs"], jobs, "{of}");
        assert_eq!(of["lost"], 0, "{of}");
        assert_eq!(of["rounds"].as_array().map(Vec::len), Some(2), "{of}");
        assert!(number(of, "rto_ms.p50") > 0.0 && number(of, "exec_to_first_ms.p50") > 0.0);
    }
    let page = std::fs::read_to_string(html).expect("a page");
    assert!(page.contains("By jobs in the queues"), "{page}");
}

#[test]
fn an_orderly_stop_is_measured_too() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
    command.args(["crash-recover", "--jobs", "50", "--rounds", "1"]);
    command.args(["--shards", "1", "--signal", "term"]);
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("VERDICT  ok"), "{said}");
}

/// Runs a command of its own and reads its figures; it must be sound.
fn sound(name: &str, args: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
    let (found, said) = measured(name, command.args(args));
    assert!(said.contains("VERDICT  ok"), "{said}");
    found
}

/// Runs a command: its figures, and what it said.
fn measured(name: &str, command: &mut Command) -> (Value, String) {
    let json = file(name);
    command.arg("--json").arg(&json);
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    let text = std::fs::read_to_string(&json).expect("the figures");
    (
        serde_json::from_str(&text).expect("JSON"),
        said.into_owned(),
    )
}

#[test]
fn what_is_written_for_a_change_is_counted() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
    command.args(["writes", "--jobs", "20000", "--changes", "500"]);
    // Rounds come sooner, so that less is to be done until they have.
    command.args(["--shards", "1"]);
    command.env("RRQ_CHECKPOINT__MIN_LOG_BYTES", "1MiB");
    command.env("RRQ_CHECKPOINT__REPLAY_BUDGET", "1ms");
    let (found, said) = measured("writes.json", &mut command);
    assert_eq!(found["jobs"], 20_000, "{found}");
    let cases = found["cases"].as_array().expect("cases");
    let names: Vec<_> = cases.iter().map(|case| &case["case"]).collect();
    assert_eq!(names, ["random", "ends", "fifo", "brief"], "{said}");
    let [random, ends, fifo, brief] = &cases[..] else {
        panic!("{found}");
    };
    for (case, jobs) in [(random, 500), (ends, 500), (fifo, 10_000), (brief, 10_000)] {
        assert_eq!(case["jobs"], jobs, "{case}");
        assert!(number(case, "written_over_log") >= 1.0, "{case}");
    }
    // Each job's payload is in the log, and once more in a checkpoint only where the job stays.
    assert!(number(fifo, "log_bytes") > 10_000.0 * 256.0, "{fifo}");
    assert!(number(fifo, "checkpoint_bytes") > 8000.0 * 256.0, "{fifo}");
    // What is under way when one is cut is in it: several hundred.
    let brief = number(brief, "checkpoint_bytes");
    assert!(brief < number(fifo, "checkpoint_bytes") / 4.0, "{found}");
}

#[test]
fn more_changes_than_jobs_cannot_be_measured() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
    let output = command
        .args(["writes", "--jobs", "10", "--changes", "11"])
        .output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("no more than --jobs"), "{said}");
}

#[test]
fn a_leader_and_then_all_nodes_go_and_nothing_is_lost() {
    let html = file("failover.html");
    let page = html.to_str().expect("text");
    for (signal, target) in [("KILL", "leader"), ("TERM", "all")] {
        let args = ["failover", "--nodes", "3", "--rounds", "1", "--jobs", "50"];
        let more = ["--signal", signal, "--target", target, "--html", page];
        let found = sound("failover.json", &[&args[..], &more].concat());
        assert_eq!(found["nodes"], 3, "{found}");
        assert_eq!(found["lost"], 0, "{found}");
        let round = &found["rounds"][0];
        assert!(number(round, "gap_ms") > 0.0 && number(round, "finish_gap_ms") > 0.0);
        assert_eq!(number(&found, "gap_ms.max"), number(round, "gap_ms"));
        let victims = round["victims"].as_array().map(Vec::len);
        assert_eq!(
            victims,
            Some(if target == "all" { 3 } else { 1 }),
            "{found}"
        );
    }
    let page = std::fs::read_to_string(html).expect("a page");
    assert!(page.contains("rrq-bench failover") && page.contains("<svg"));
}

/// Where namespaces are permitted; elsewhere it is said what is needed.
#[test]
fn a_leader_is_cut_off_and_nothing_is_lost() {
    let permitted = |flags: &[&str]| {
        let unshare = Command::new("unshare").args(flags).arg("true").output();
        unshare.is_ok_and(|output| output.status.success())
    };
    let args = ["failover", "--partition", "--rounds", "1", "--jobs", "50"];
    if permitted(&["--net"]) || permitted(&["--net", "--map-root-user"]) {
        let found = sound("failover-cut.json", &args);
        assert_eq!(found["lost"], 0, "{found}");
        // Nothing tells of it but silence, which is waited for.
        let gap = number(&found["rounds"][0], "gap_ms");
        assert!(gap > 100.0, "{found}");
    }
    // Without the tools nothing is permitted anywhere.
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
    let output = command.args(args).env("PATH", "/nonexistent").output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("needs a network of its own"), "{said}");
    assert!(said.contains("util-linux"), "{said}");
}

#[test]
fn several_nodes_are_loaded_and_recover_together() {
    let found = figures("load-nodes.json", &["--nodes", "3", "--duration", "500ms"]);
    assert!(number(&found, "enqueued_per_s") > 0.0);
    let args = ["crash-recover", "--nodes", "3", "--jobs", "50"];
    let more = ["--rounds", "1", "--shards", "1"];
    let found = sound("recover-nodes.json", &[&args[..], &more].concat());
    assert!(number(&found, "rto_ms.max") > 0.0);
}

/// A child process of another, with an argument of its own.
fn child_of(parent: u32, argument: [&str; 2]) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").expect("processes are listed");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (_, rest) = stat.rsplit_once(')').unwrap_or_default();
        let is_child = rest.split_whitespace().nth(1) == Some(&parent.to_string());
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let args: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let argument = argument.map(str::as_bytes);
        is_child && args.windows(2).any(|pair| pair == argument)
    })
}

#[test]
fn a_load_goes_on_while_a_node_of_three_is_killed() {
    let json = file("load-kill.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
    command.args(["load", "--nodes", "3", "--shards", "1", "--duration", "4s"]);
    command.args([
        "--producers",
        "24",
        "--consumers",
        "24",
        "--warm-up",
        "100ms",
    ]);
    command.args(["--queues", "24"]);
    command.arg("--json").arg(&json).stdout(Stdio::piped());
    let mut bench = command.spawn().expect("it runs");
    let mut lines = BufReader::new(bench.stdout.take().expect("piped")).lines();
    let is_measured = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains(" measured "));
    assert!(is_measured, "it does not come so far");
    // It leads a third of the 64 groups, over which the queues are spread by chance.
    let node = child_of(bench.id(), ["--id", "2"]).expect("a node");
    let kill = Command::new("kill")
        .args(["-9", &node.to_string()])
        .status();
    assert!(kill.expect("kill is there").success());
    let said: Vec<String> = lines.map_while(Result::ok).collect();
    let ended = bench.wait().expect("it was started");
    assert!(ended.success(), "{}", said.join("\n"));
    let text = std::fs::read_to_string(&json).expect("the figures");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert!(number(&found, "moved") > 0.0, "{found}");
    for name in ["lost", "redelivered_after_ack", "strange", "unknown"] {
        assert!(number(&found, name) == 0.0, "{name}: {found}");
    }
    let last = found["seconds"].as_array().and_then(|all| all.last());
    let last = last.expect("a second");
    for name in ["enqueued_per_s", "completed_per_s"] {
        assert!(number(last, name) > 0.0, "{name}: {found}");
    }
}

#[test]
fn a_cluster_that_cannot_be_is_refused() {
    for (args, words) in [
        (&["failover", "--nodes", "1"][..], "has no others"),
        (&["failover", "--nodes", "4"], "must be 1, 3 or 5, not 4"),
        (
            &["crash-recover", "--nodes", "2"],
            "must be 1, 3 or 5, not 2",
        ),
        (
            &["load", "127.0.0.1:7411", "--nodes", "3"],
            "of the bench's own",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
        let output = command.args(args).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("error[RRQ-2001]"), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

fn sim(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-bench"));
    command.arg("sim").args(args).output().expect("it runs")
}

#[test]
fn simulated_clusters_are_counted_and_a_seed_is_traced() {
    let json = file("sim.json");
    let path = json.to_str().expect("text");
    let output = sim(&["--seeds", "4", "--from", "7", "--json", path]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("VERDICT   ok"), "{said}");
    let text = std::fs::read_to_string(&json).expect("the figures");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert!(number(&found, "seeds") == 4.0 && number(&found, "failed") == 0.0);
    assert!(found["first_failing"].is_null(), "{found}");
    assert!(number(&found, "simulated_s") > number(&found, "wall_s"));

    let output = sim(&["--seed", "7", "--trace"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("node 1 starts for the 1. time"), "{said}");
    assert!(said.contains("seed 7 is ok"), "{said}");

    let output = sim(&["--seed", "7", "--seeds", "2"]);
    assert_eq!(output.status.code(), Some(2));
}
