//! Clients that ask for a lot, and what they cost the node.

use super::client::Client;
use super::{DEADLINE, Node};
use bytes::BytesMut;
use rrq::base::code::Code;
use rrq::base::ids::{JobId, Partition, Token};
use rrq::wire::client::encode_request;
use rrq::wire::message::{ErrorReply, ReplyBody, Request, RequestBody};
use rrq::wire::{AckItem, Command, Enqueued, NewJob, Op, Outcome, QueueInfo, QueueSettings};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Now.
    pub(crate) resident: u64,
    /// Mapped, whether used or not.
    pub(crate) mapped: u64,
    /// The most since the last [`forget_peak`].
    pub(crate) peak: u64,
}

/// What /proc says of a node's memory.
pub(crate) fn memory(node: &Node) -> Memory {
    let text = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("it runs");
    let of = |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.trim().strip_suffix("kB"));
        let kib: u64 = kib.expect("a line").trim().parse().expect("a number");
        kib << 10
    };
    Memory {
        resident: of("VmRSS:"),
        mapped: of("VmSize:"),
        peak: of("VmHWM:"),
    }
}

/// The peak counts anew from here.
pub(crate) fn forget_peak(node: &Node) {
    fs::write(format!("/proc/{}/clear_refs", node.pid()), "5").expect("it is our child");
}

/// Descriptors that a node has open.
pub(crate) fn open_files(node: &Node) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", node.pid()));
    files.expect("it runs").count()
}

/// A configuration for one shard that shares its core, with these lines under `[limits]`.
pub(crate) fn config(data: &Path, limits: &str) -> PathBuf {
    let path = data.with_extension("toml");
    let text = format!("[shards]\ncount = 1\npin = false\n[limits]\n{limits}\n");
    fs::write(&path, text).expect("a file");
    path
}

/// Asks again and again until there is an answer.
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One request as bytes.
pub(crate) fn request(id: u64, body: RequestBody) -> BytesMut {
    let mut out = BytesMut::new();
    encode_request(&Request { id, body }, &mut out);
    out
}

/// A job with so many bytes of payload.
pub(crate) fn job(payload_bytes: usize) -> NewJob {
    NewJob {
        payload: vec![7; payload_bytes].into(),
        ..NewJob::default()
    }
}

/// A connection with a queue.
pub(crate) struct Worker {
    pub(crate) client: Client,
    pub(crate) queue: QueueInfo,
}

impl Worker {
    /// Connects, and makes the queue if it is not there.
    pub(crate) fn new(address: SocketAddr, name: &str, settings: QueueSettings) -> Self {
        let (mut client, hello) = Client::greeted(address);
        let op = Op::CreateQueue {
            name: name.to_owned(),
            settings,
            must_be_new: false,
            groups: 0,
        };
        let body = RequestBody::Command {
            group: rrq::shard::placement::home_group(name, hello.groups),
            command: Command { session: None, op },
            wait_ms: 0,
        };
        match client.ask(body) {
            ReplyBody::Outcome(Outcome::Queue(queue)) => Self {
                client,
                queue: *queue,
            },
            other => panic!("not a queue: {other:?}"),
        }
    }

    /// A command for the queue's only partition.
    pub(crate) fn command(&self, op: Op) -> RequestBody {
        RequestBody::Command {
            group: self.queue.uid.home(),
            command: Command { session: None, op },
            wait_ms: 0,
        }
    }

    fn ask(&mut self, op: Op) -> ReplyBody {
        let body = self.command(op);
        self.client.ask(body)
    }

    pub(crate) fn enqueue_op(&self, items: Vec<NewJob>) -> Op {
        Op::Enqueue {
            queue: self.queue.uid,
            partition: Partition(0),
            items,
        }
    }

    pub(crate) fn lease_op(&self, max: u32, lease_ms: u32) -> Op {
        Op::Lease {
            queue: self.queue.uid,
            partition: Partition(0),
            max,
            lease_ms,
            epoch: 0,
        }
    }

    pub(crate) fn enqueue(&mut self, items: Vec<NewJob>) -> Result<Vec<JobId>, ErrorReply> {
        let op = self.enqueue_op(items);
        match self.ask(op) {
            ReplyBody::Outcome(Outcome::Enqueued(jobs)) => Ok(jobs.iter().map(new).collect()),
            ReplyBody::Error(error) => Err(error),
            other => panic!("no answer to an enqueue: {other:?}"),
        }
    }

    pub(crate) fn lease(&mut self, max: u32, lease_ms: u32) -> Vec<Token> {
        self.lease_within(max, lease_ms, 0)
    }

    /// Waits so long for the first job.
    pub(crate) fn lease_within(&mut self, max: u32, lease_ms: u32, wait: u32) -> Vec<Token> {
        let mut body = self.command(self.lease_op(max, lease_ms));
        if let RequestBody::Command { wait_ms, .. } = &mut body {
            *wait_ms = wait;
        }
        match self.client.ask(body) {
            ReplyBody::Leased(jobs) => jobs
                .into_iter()
                .map(|leased| Token {
                    job: leased.job.id,
                    lease_gen: leased.lease_gen,
                })
                .collect(),
            other => panic!("not leased: {other:?}"),
        }
    }

    /// Acknowledges; all must be held.
    pub(crate) fn ack(&mut self, tokens: Vec<Token>) {
        let items = tokens.into_iter().map(|token| AckItem {
            token,
            result: None,
        });
        let items: Vec<_> = items.collect();
        let count = items.len();
        match self.ask(Op::Ack { items }) {
            ReplyBody::Outcome(Outcome::Items(items)) => {
                let done = rrq::wire::ItemOutcome::Done;
                assert_eq!(items, vec![done; count]);
            }
            other => panic!("not acknowledged: {other:?}"),
        }
    }

    /// Leases and acknowledges whatever can be leased; the jobs.
    pub(crate) fn take_all(&mut self) -> Vec<JobId> {
        let mut jobs = Vec::new();
        loop {
            let tokens = self.lease(1000, 600_000);
            if tokens.is_empty() {
                return jobs;
            }
            jobs.extend(tokens.iter().map(|token| token.job));
            self.ack(tokens);
        }
    }
}

fn new(enqueued: &Enqueued) -> JobId {
    match enqueued {
        Enqueued::New(job) => *job,
        other => panic!("not new: {other:?}"),
    }
}

/// What came of many enqueues of one job each.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// These are acknowledged.
    pub(crate) jobs: Vec<JobId>,
    /// Refused by the queue's own bound.
    pub(crate) over_quota: usize,
    /// Refused by the node as busy.
    pub(crate) busy: usize,
    /// Refused by the node since jobs take all memory.
    pub(crate) memory_full: usize,
}

impl Tally {
    /// Counts an answer; any that is not expected fails the test.
    pub(crate) fn count(&mut self, body: ReplyBody) {
        match body {
            ReplyBody::Outcome(Outcome::Enqueued(jobs)) => match jobs[..] {
                [Enqueued::New(job)] => self.jobs.push(job),
                [Enqueued::Rejected(rrq::wire::Rejection::QuotaExceeded)] => self.over_quota += 1,
                _ => panic!("neither taken nor over its bound: {jobs:?}"),
            },
            ReplyBody::Error(error) if error.code == Code::Busy => self.busy += 1,
            ReplyBody::Error(error) if error.code == Code::MemoryFull => self.memory_full += 1,
            other => panic!("no answer to an enqueue: {other:?}"),
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.jobs.extend(other.jobs);
        self.over_quota += other.over_quota;
        self.busy += other.busy;
        self.memory_full += other.memory_full;
    }
}

/// Keeps `window` enqueues under way until each of its places was used `rounds` times.
pub(crate) fn produce(worker: &mut Worker, payload: usize, window: u64, rounds: usize) -> Tally {
    let items = vec![job(payload)];
    // Made once: what is measured is the node.
    let frames: Vec<BytesMut> = (1..=window)
        .map(|id| request(id, worker.command(worker.enqueue_op(items.clone()))))
        .collect();
    let mut left = vec![rounds; frames.len()];
    let mut tally = Tally::default();
    for (frame, left) in frames.iter().zip(&mut left) {
        worker.client.send(frame);
        *left -= 1;
    }
    for _ in 0..frames.len() * rounds {
        let reply = worker.client.reply();
        let place = reply.id as usize - 1;
        tally.count(reply.body);
        if left[place] > 0 {
            left[place] -= 1;
            worker.client.send(&frames[place]);
        }
    }
    tally
}
