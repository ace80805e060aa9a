//! What a node tells its operators: metrics and the documents, dashboard and alerts that name them,
//! the JSON view, and logs; and that nobody who asks can hold it up.
#![cfg(all(feature = "server", target_os = "linux"))]

mod node_support;

use node_support::client::Client;
use node_support::{DEADLINE, Node, http};
use rrq::base::ids::{JobId, Partition, Token};
use rrq::wire::message::{ReplyBody, RequestBody};
use rrq::wire::{Command, Enqueued, NewJob, Op, Outcome, QueueInfo, QueueSettings};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

/// A queue with a job that waits and one that is dead.
struct Filled {
    client: Client,
    queue: QueueInfo,
    waiting: JobId,
    dead: JobId,
}

const SECRET: &str = "sesame-open-thyself";

impl Filled {
    fn new(node: &Node) -> Self {
        let (client, hello) = Client::greeted(node.clients());
        let group = rrq::shard::placement::home_group("mails", hello.groups);
        let (uid, partition) = (rrq::base::ids::QueueUid::default(), Partition(0));
        let mut filled = Self {
            client,
            queue: QueueInfo {
                uid,
                name: "mails".to_owned(),
                version: 0,
                paused: false,
                draining: false,
                groups: vec![group],
                settings: QueueSettings::default(),
                created: false,
            },
            waiting: JobId::default(),
            dead: JobId::default(),
        };
        let made = filled.ask(Op::CreateQueue {
            name: "mails".to_owned(),
            settings: QueueSettings::default(),
            must_be_new: false,
            groups: 0,
        });
        let ReplyBody::Outcome(Outcome::Queue(queue)) = made else {
            panic!("not a queue: {made:?}")
        };
        let uid = queue.uid;
        filled.queue = *queue;
        filled.dead = filled.enqueue("die");
        let leased = filled.ask(Op::Lease {
            queue: uid,
            partition,
            max: 1,
            lease_ms: 60_000,
            epoch: 0,
        });
        let ReplyBody::Leased(jobs) = leased else {
            panic!("not leased: {leased:?}")
        };
        let token: Token = jobs[0].token();
        let buried = filled.ask(Op::Bury {
            items: vec![(token, "it broke".into())],
        });
        assert!(
            matches!(buried, ReplyBody::Outcome(Outcome::Items(_))),
            "{buried:?}"
        );
        filled.waiting = filled.enqueue(SECRET);
        filled
    }

    fn ask(&mut self, op: Op) -> ReplyBody {
        self.client.ask(RequestBody::Command {
            group: self.queue.groups[0],
            command: Command { session: None, op },
            wait_ms: 0,
        })
    }

    fn enqueue(&mut self, payload: &str) -> JobId {
        let answer = self.ask(Op::Enqueue {
            queue: self.queue.uid,
            partition: Partition(0),
            items: vec![NewJob {
                payload: payload.to_owned().into(),
                headers: vec![("cookie".to_owned(), SECRET.into())],
                ..NewJob::default()
            }],
        });
        match answer {
            ReplyBody::Outcome(Outcome::Enqueued(jobs)) => match jobs[0] {
                Enqueued::New(id) => id,
                ref other => panic!("not new: {other:?}"),
            },
            other => panic!("not enqueued: {other:?}"),
        }
    }
}

/// A metric as a scrape shows it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Metric {
    name: String,
    kind: String,
    labels: String,
    help: String,
}

fn metrics(page: &str) -> Vec<Metric> {
    let of = |kind: &str, name: &str| {
        let start = format!("# {kind} {name} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("{name} has no {kind}"))
            .to_owned()
    };
    let names = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next());
    let labels = |name: &str| {
        let sample = page.lines().find(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', '_', ' ']))
        });
        let inside = sample
            .and_then(|line| line.split_once('{'))
            .map(|(_, rest)| rest);
        let inside = inside.and_then(|rest| rest.rsplit_once('}'));
        let pairs = inside.map_or("", |(pairs, _)| pairs).split("\",");
        let keys = pairs.filter_map(|pair| pair.split_once('=').map(|(key, _)| key));
        let keys: BTreeSet<&str> = keys.filter(|key| *key != "le").collect();
        keys.into_iter().collect::<Vec<_>>().join(", ")
    };
    let mut found: Vec<Metric> = names
        .map(|name| Metric {
            name: name.to_owned(),
            kind: of("TYPE", name),
            labels: labels(name),
            help: of("HELP", name),
        })
        .collect();
    found.sort();
    found
}

fn document(node: &[Metric], queues: &[Metric]) -> String {
    let mut out = String::from(
        "# Metrics\n\nWhat `rrq-node` exports on its admin port (`listen.admin`), in the text format \
         of Prometheus. This\nfile is made from a live scrape by the test that compares them: \
         `UPDATE=1 cargo test --release --test\nnode_admin`. \
         [configs/grafana-dashboard.json](../configs/grafana-dashboard.json) shows them,\n\
         [configs/alerts.yml](../configs/alerts.yml) watches them, and \
         [migration.md](migration.md) names those of the\ninspiring system beside them.\n\n\
         Units are seconds and bytes. Counters end in `_total` and start at 0 with the process, but \
         for those of\nqueues, which are part of the replicated state and start at 0 with the \
         queue.\n",
    );
    for (path, about, metrics) in [
        (
            "/metrics",
            "The node and its shards: as many lines however much it is used. Read from memory; \
             answers\nwhatever the shards do.",
            node,
        ),
        (
            "/metrics/queues",
            "Queues and groups: a line for each. The shards are asked, with a deadline of a \
             second; without an\nanswer the status is 503. Scrape it less often.",
            queues,
        ),
    ] {
        out += &format!("\n## {path}\n\n{about}\n\n| name | type | labels | meaning |\n");
        out += "| --- | --- | --- | --- |\n";
        for metric in metrics {
            out += &format!(
                "| `{}` | {} | {} | {} |\n",
                metric.name, metric.kind, metric.labels, metric.help
            );
        }
    }
    out
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of metrics in a text: words that begin like ours and are no part of a longer word.
fn names_in(text: &str) -> BTreeSet<&str> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || "_-./".contains(c));
    text.split(word)
        .filter(|word| word.starts_with("rrq_") || word.starts_with("process_"))
        .map(|word| word.trim_end_matches(['.', '/', '-']))
        .map(|word| {
            let ends = ["_bucket", "_sum", "_count"];
            ends.iter()
                .find_map(|end| word.strip_suffix(end))
                .unwrap_or(word)
        })
        .collect()
}

#[test]
fn every_metric_named_anywhere_is_exported_and_every_one_exported_is_explained() {
    let node = Node::start_new("admin-metrics", &["--shards", "2"]);
    let _filled = Filled::new(&node);
    let (status, page) = http(node.admin(), "/metrics");
    assert_eq!(status, 200, "{page}");
    let (status, queue_page) = http(node.admin(), "/metrics/queues");
    assert_eq!(status, 200, "{queue_page}");
    for line in [
        "rrq_jobs{queue=\"mails\",state=\"pending\"} 1",
        "rrq_jobs{queue=\"mails\",state=\"dead\"} 1",
        "rrq_queue_jobs_enqueued_total{queue=\"mails\"} 2",
    ] {
        assert!(
            queue_page.contains(line),
            "{line} is missing in {queue_page}"
        );
    }
    assert!(
        page.contains("rrq_wal_batch_entries_count{shard=\"1\"}"),
        "{page}"
    );
    let (of_node, of_queues) = (metrics(&page), metrics(&queue_page));
    let exported = |name: &str| {
        let mut all = of_node.iter().chain(&of_queues);
        all.any(|metric| metric.name == name)
    };
    for metric in of_node.iter().chain(&of_queues) {
        let name = &metric.name;
        assert!(
            name.starts_with("rrq_") || name.starts_with("process_"),
            "{name}"
        );
        assert!(metric.help.ends_with('.'), "{name}: {}", metric.help);
        assert_eq!(metric.kind == "counter", name.ends_with("_total"), "{name}");
        let unbounded = ["queue", "group"]
            .iter()
            .any(|label| metric.labels.contains(label));
        assert!(
            !(unbounded && of_node.contains(metric)),
            "{name}: {}",
            metric.labels
        );
    }
    for file in [
        "configs/grafana-dashboard.json",
        "configs/alerts.yml",
        "docs/operations.md",
        "docs/guide.md",
        "docs/recovery.md",
        "docs/migration.md",
        "docs/errors.md",
        "README.md",
    ] {
        for name in names_in(&read(file)) {
            assert!(exported(name), "{file} names {name}, which is not exported");
        }
    }
    let dashboard: Value =
        serde_json::from_str(&read("configs/grafana-dashboard.json")).expect("it is JSON");
    assert!(
        dashboard["panels"]
            .as_array()
            .is_some_and(|panels| panels.len() > 10)
    );
    let shown = document(&of_node, &of_queues);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &shown).expect("the document can be written");
    }
    let told = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        told, shown,
        "docs/metrics.md is not what is exported: UPDATE=1 writes it anew"
    );
}

fn json(node: &Node, path: &str) -> (u16, Value) {
    let (status, text) = http(node.admin(), path);
    let value = serde_json::from_str(&text);
    (
        status,
        value.unwrap_or_else(|error| panic!("{path}: {error}: {text}")),
    )
}

#[test]
fn the_json_view_shows_what_is_there_and_names_what_is_not() {
    let node = Node::start_new("admin-json", &["--shards", "2"]);
    let filled = Filled::new(&node);
    let (status, value) = json(&node, "/api/v1/status");
    assert_eq!(status, 200, "{value}");
    assert_eq!(value["ready"], true);
    assert_eq!(value["shards"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        value["shards"][1]["groups"].as_array().map(Vec::len),
        Some(32)
    );
    // The asker is no client.
    let connections: u64 = (0..2)
        .map(|shard| {
            value["shards"][shard]["connections"]
                .as_u64()
                .expect("a number")
        })
        .sum();
    assert_eq!(connections, 1, "{value}");

    let (status, value) = json(&node, "/api/v1/queues");
    assert_eq!(
        (status, &value["queues"][0]["name"]),
        (200, &"mails".into())
    );
    assert_eq!(value["queues"][0]["pending"], 1);
    assert_eq!(value["queues"][0]["dead"], 1);

    let (status, value) = json(&node, &format!("/api/v1/jobs/{}", filled.waiting));
    assert_eq!((status, &value["job"]["state"]), (200, &"pending".into()));
    assert_eq!(value["job"]["payload"], SECRET);

    let (status, value) = json(&node, "/api/v1/dead?queue=mails");
    assert_eq!(status, 200, "{value}");
    assert_eq!(value["jobs"][0]["id"], filled.dead.to_string());
    assert_eq!(value["jobs"][0]["last_failure"], "it broke");

    let (status, value) = json(&node, "/api/v1/workers");
    assert_eq!(status, 200, "{value}");
    assert!(value["workers"].is_array(), "{value}");

    for (path, expected, code) in [
        ("/api/v1/jobs/xyz", 400, "RRQ-4006"),
        ("/api/v1/dead?queue=none", 404, "RRQ-4014"),
    ] {
        let (status, value) = json(&node, path);
        assert_eq!(
            (status, &value["error"]["code"]),
            (expected, &code.into()),
            "{path}"
        );
    }
    assert_eq!(http(node.admin(), "/api/v1/dead").0, 400);
    assert_eq!(http(node.admin(), "/api/v1/nothing").0, 404);
}

#[test]
fn clients_that_say_nothing_are_few_and_do_not_stay() {
    let node = Node::start_new("admin-slow", &[]);
    let descriptors = || {
        let files = fs::read_dir(format!("/proc/{}/fd", node.pid()));
        files.expect("it is our child").count()
    };
    let before = descriptors();
    let begun = Instant::now();
    let mut silent: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut stream = TcpStream::connect(node.admin()).expect("it listens");
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            if number % 2 == 0 {
                stream
                    .write_all(b"GET /metrics HTTP/1.1\r\nHo")
                    .expect("it is taken");
            }
            stream
        })
        .collect();
    // Jobs go on all the while.
    let mut filled = Filled::new(&node);
    filled.enqueue("more");
    assert!(
        descriptors() < before + 100,
        "{} descriptors",
        descriptors()
    );
    let mut end = Vec::new();
    let first = silent[0].read_to_end(&mut end);
    assert!(first.is_ok() || begun.elapsed() < DEADLINE, "{first:?}");
    drop(silent);
    assert_eq!(http(node.admin(), "/livez").0, 200);
}

#[test]
fn logs_are_lines_of_json_and_hold_no_payload() {
    let args = ["--log-level", "trace", "--log-format", "json"];
    let mut node = Node::start_new("admin-logs", &args);
    let filled = Filled::new(&node);
    let path = format!("/api/v1/jobs/{}", filled.waiting);
    assert_eq!(http(node.admin(), &path).0, 200);
    node.signal("-TERM");
    assert!(node.wait().success());
    let said = node.errors();
    assert!(!said.is_empty(), "at the lowest level something is said");
    for line in said.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(value["level"].is_string(), "{line}");
        assert!(
            !line.contains(SECRET),
            "a payload or header is logged: {line}"
        );
    }
}
