//! A data directory with something of everything in it, and a look at what is left of it later.

// Each test program uses its own part of it.
#![allow(dead_code)]

use super::node_support::{Node, wait_for_spares};
use rrq::base::code::Code;
use rrq::base::ids::JobId;
use rrq::client::{Client, NewJob, Options, Start};
use rrq::wire::JobState;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Two shards, wherever the kernel puts them.
pub(crate) const ARGS: &[&str] = &["--shards", "2", "--no-pin"];
const QUEUES: usize = 8;
/// Nothing of this kind ends by time while a test runs, or while a fixture is kept.
const FOR_EVER: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
const LONG_LEASE: Duration = Duration::from_secs(40 * 24 * 3600);

/// A job as it was when the directory was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) id: JobId,
    /// `pending`, `delayed`, `leased`, `dead` or `finished`.
    pub(crate) state: String,
    pub(crate) payload: String,
    pub(crate) key: String,
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}\t{}\t{}\t{}",
            self.id, self.state, self.payload, self.key
        )
    }
}

impl Known {
    /// From a line that `Display` wrote.
    pub(crate) fn parse(line: &str) -> Self {
        let mut parts = line.split('\t').map(str::to_owned);
        let mut next = || parts.next().expect("four columns");
        let id = next().parse().expect("a job id");
        Self {
            id,
            state: next(),
            payload: next(),
            key: next(),
        }
    }
}

/// Runs a client's future to its end.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// Without sessions leases end by time alone, so that they outlive the client.
pub(crate) async fn connect(node: &Node) -> Client {
    let options = Options {
        sessions: false,
        ..Options::default()
    };
    let address = node.clients().to_string();
    Client::connect_with(&address, options)
        .await
        .expect("the node listens")
}

async fn add(client: &Client, queue: &str, job: NewJob) -> JobId {
    let queue = client.queue(queue).await.expect("a queue");
    let enqueued = queue.enqueue(job).await.expect("it is taken");
    enqueued.id().expect("it is a job")
}

/// Fills every queue: pending, delayed, leased, dead, finished, and one with a key.
async fn fill(node: &Node, round: u32) -> Vec<Known> {
    let client = connect(node).await;
    let mut known = Vec::new();
    for number in 0..QUEUES {
        let name = format!("queue-{number}");
        for kind in ["leased", "dead", "finished", "pending", "delayed"] {
            let payload = format!("{kind} {round} of {name}");
            let key = if kind == "pending" {
                format!("key-{round}")
            } else {
                String::new()
            };
            let job = NewJob {
                payload: payload.clone().into(),
                priority: Some(if matches!(kind, "pending" | "delayed") {
                    7
                } else {
                    0
                }),
                start: match kind {
                    "delayed" => Start::After(FOR_EVER.as_millis() as u64),
                    _ => Start::Now,
                },
                key: (!key.is_empty()).then(|| key.clone().into()),
                headers: vec![("round".to_owned(), round.to_string().into())],
                ..NewJob::default()
            };
            let id = add(&client, &name, job).await;
            known.push(Known {
                id,
                state: kind.to_owned(),
                payload,
                key,
            });
        }
        let queue = client.queue(&name).await.expect("it is there");
        let leased = queue.lease_for(3, Duration::ZERO, Some(LONG_LEASE)).await;
        for job in leased.expect("jobs are ready") {
            match &job.job.body.payload[..4] {
                b"dead" => client.bury(job.token(), "made so").await.expect("buried"),
                b"fini" => client.ack(job.token(), None).await.expect("acknowledged"),
                _ => {}
            }
        }
    }
    client.close().await;
    known
}

/// A directory with a checkpoint of every shard, a tail of log beyond it, and a node killed by -9.
/// `older`, if it is given, becomes a copy of the directory as of the checkpoint.
pub(crate) fn make(data: &Path, older: Option<&Path>) -> Vec<Known> {
    make_with(data, older, ARGS)
}

/// The same, by nodes that are started with these arguments.
pub(crate) fn make_with(data: &Path, older: Option<&Path>, args: &[&str]) -> Vec<Known> {
    let mut node = Node::start(data, args);
    let mut known = block_on(fill(&node, 1));
    // A session with its outcomes is part of the state too.
    block_on(async {
        let client = Client::connect(&node.clients().to_string())
            .await
            .expect("it listens");
        let job = NewJob {
            payload: "in a session".into(),
            priority: Some(7),
            ..NewJob::default()
        };
        let id = add(&client, "queue-0", job).await;
        let (state, payload) = ("pending".to_owned(), "in a session".to_owned());
        known.push(Known {
            id,
            state,
            payload,
            key: String::new(),
        });
    });
    node.signal("-TERM");
    assert!(node.wait().success(), "it stops");
    if let Some(older) = older {
        copy(data, older);
    }
    let mut node = Node::start(data, args);
    known.extend(block_on(fill(&node, 2)));
    // With a segment behind it the last one is missed if it is not there.
    wait_for_spares(data);
    node.signal("-KILL");
    node.wait();
    known
}

/// What became of the jobs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// As they were.
    pub(crate) same: usize,
    /// Of groups that stopped.
    pub(crate) halted: usize,
    /// Changed or missing, in words.
    pub(crate) wrong: Vec<String>,
}

/// Looks at every job.
pub(crate) fn survey(node: &Node, known: &[Known]) -> Survey {
    block_on(async {
        let client = connect(node).await;
        let mut survey = Survey::default();
        for job in known {
            let found = match client.job(job.id).await {
                Ok(view) => {
                    let state = match view.state {
                        JobState::Pending => "pending",
                        JobState::Delayed => "delayed",
                        JobState::InFlight => "leased",
                        JobState::Dead => "dead",
                    };
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let payload = text(&view.body.payload);
                    let key = text(view.body.key.as_deref().unwrap_or_default());
                    let found = Known {
                        id: view.id,
                        state: state.to_owned(),
                        payload,
                        key,
                    };
                    (found == *job)
                        .then_some(())
                        .ok_or_else(|| found.to_string())
                }
                Err(error) if error.code() == Code::Finished && job.state == "finished" => Ok(()),
                Err(error) if error.code() == Code::GroupHalted => {
                    assert!(
                        error.message().contains("rrqctl repair"),
                        "no remedy: {error}"
                    );
                    survey.halted += 1;
                    continue;
                }
                Err(error) => Err(error.to_string()),
            };
            match found {
                Ok(()) => survey.same += 1,
                Err(found) => survey.wrong.push(format!("{job}: {found}")),
            }
        }
        client.close().await;
        survey
    })
}

/// Copies a directory with all in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder is made");
    for entry in std::fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("it can be listed");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("it can be copied");
        }
    }
}

/// The files under a folder, sorted.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("it is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all.sort();
    all
}
