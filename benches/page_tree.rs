//! A checkpoint of 16,384 jobs of 256 B: how it is cut, and how a start reads it.
//!
//! A step does the whole; the cost told is that of a job.

mod support;

use bytes::Bytes;
use rrq::base::ids::GroupId;
use rrq::shard::loading::GroupState;
use rrq::snapshot::layout::RootRef;
use rrq::wal::recovery::Recovered;
use std::collections::BTreeMap;
use support::Suite;
use support::load::Load;
use support::node::{Disk, Node, read_state};

/// Jobs of the checkpoint.
const JOBS: u64 = 16_384;

fn main() {
    let mut suite = Suite::from_args("page_tree");
    suite.operation("cut a checkpoint", JOBS, 1, |_| filled(), Node::stop);
    suite.operation(
        "read and verify a checkpoint",
        JOBS,
        1,
        |_| Start::new(),
        Start::read,
    );
    let read = |_| {
        let mut start = Start::new();
        start.read();
        start
    };
    suite.operation("take a checkpoint's state", JOBS, 1, read, Start::take);
    suite.operation(
        "find the entries of a log",
        JOBS,
        1,
        |_| Logged::new(),
        Logged::recover,
    );
    let recovered = |_| {
        let mut logged = Logged::new();
        logged.recover();
        logged
    };
    suite.operation(
        "apply the entries of a log",
        JOBS,
        1,
        recovered,
        Logged::apply,
    );
    suite.finish();
}

/// A node in whose queues the jobs wait.
fn filled() -> Node {
    let mut load = Load::new();
    load.begin();
    for _ in 0..JOBS / 512 {
        let turn = load.enqueues(512, 1);
        load.turn(turn);
    }
    let mut performance = load.perform(true);
    for _ in 0..JOBS / 512 {
        performance.turn();
    }
    assert_eq!(performance.node.live_jobs(), JOBS);
    performance.node
}

/// A node that starts from a checkpoint.
struct Start {
    node: Node,
    files: BTreeMap<u64, Bytes>,
    loads: Vec<(GroupId, Vec<RootRef>)>,
    states: Vec<(GroupId, GroupState)>,
}

impl Start {
    fn new() -> Self {
        let mut before = filled();
        before.stop();
        let disk = before.into_disk();
        let (files, recovered) = (disk.files(), disk.recover(&disk.segments()));
        let mut node = Node::start(recovered, Some(disk), 2);
        node.turn();
        let loads = node.loads();
        assert!(!loads.is_empty(), "there is a checkpoint to read");
        Self {
            node,
            files,
            loads,
            states: Vec::new(),
        }
    }

    fn read(&mut self) {
        for (group, bases) in &self.loads {
            let state = read_state(&self.files, bases);
            self.states.push((*group, state));
        }
    }

    fn take(&mut self) {
        for (group, state) in self.states.drain(..) {
            self.node.loaded(group, state);
        }
        self.node.turn();
        assert_eq!(self.node.live_jobs(), JOBS);
    }
}

/// A node that starts from its log alone.
struct Logged {
    disk: Disk,
    segments: Vec<(u64, Bytes)>,
    recovered: Option<Recovered>,
}

impl Logged {
    fn new() -> Self {
        let disk = filled().into_disk();
        Self {
            segments: disk.segments(),
            disk,
            recovered: None,
        }
    }

    fn recover(&mut self) {
        self.recovered = Some(self.disk.recover(&self.segments));
    }

    fn apply(&mut self) {
        let recovered = self.recovered.take().expect("the log was read");
        let mut node = Node::start(recovered, None, 2);
        node.turn();
        assert_eq!(node.live_jobs(), JOBS);
    }
}
