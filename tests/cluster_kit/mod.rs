//! Clusters of real `rrq-node` processes on addresses of their own of this machine, and clients that
//! enqueue and finish jobs all the time and keep books.

// Each test program uses its own part of it.
#![allow(dead_code)]

pub(crate) mod relays;

use super::node_support::{DEADLINE, Node, TestFolder, folder, http};
use relays::Relays;
use rrq::client::blocking::{Client, Queue};
use rrq::client::{Code, Error, GroupId, NodeId, Options};
use rrq::shard::placement::home_group;
use rrq::wire::AckItem;
use rrq::workload::{Ledger, number_of, payload};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where a node is found by the others, and where it listens if a relay stands there.
const PEER_PORT: u16 = 7421;
const OWN_PORT: u16 = 7431;

/// Where the jobs of [`Load`] go.
pub(crate) const QUEUE: &str = "load";

/// Nodes 1 to n, each with a loopback address of its own: another test cannot have its ports.
pub(crate) struct Cluster {
    net: String,
    size: u32,
    pub(crate) nodes: BTreeMap<u32, Node>,
    /// Of nodes that have more than one shard.
    pub(crate) shards: BTreeMap<u32, u16>,
    /// Of nodes that are held at an earlier version of the job machine.
    pub(crate) held_at: BTreeMap<u32, u16>,
    /// The network between the nodes, if it can be cut.
    relays: Option<Relays>,
    /// Behind the nodes: it goes when they have ended.
    folder: TestFolder,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Nodes that are not started, on an empty folder.
    pub(crate) fn new(name: &str, size: u32) -> Self {
        // One cluster at a time: three nodes are enough for a small machine.
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        // 127.0.0.0/8 is this machine; the low numbers are what people use.
        let net = format!("127.{}.{}", 32 + pid % 200, pid / 200 % 250);
        let folder = folder(&format!("cluster-{name}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        Self {
            net,
            size,
            nodes: BTreeMap::new(),
            shards: BTreeMap::new(),
            held_at: BTreeMap::new(),
            relays: None,
            folder,
            _turn: turn,
        }
    }

    /// A cluster whose nodes all serve.
    pub(crate) fn start(name: &str, size: u32) -> Self {
        let mut cluster = Self::new(name, size);
        cluster.start_all();
        cluster
    }

    /// The same, with a network between them that can be cut.
    pub(crate) fn start_on_relays(name: &str, size: u32) -> Self {
        let mut cluster = Self::new(name, size);
        let nodes = cluster.numbers().map(|number| {
            let address = |port| format!("{}.{number}:{port}", cluster.net).parse();
            let [listed, own] =
                [PEER_PORT, OWN_PORT].map(|port| address(port).expect("an address"));
            (number, listed, own)
        });
        cluster.relays = Some(Relays::start(nodes));
        cluster.start_all();
        cluster
    }

    pub(crate) fn relays(&self) -> &Relays {
        self.relays.as_ref().expect("it was started on relays")
    }

    /// Starts the nodes that do not run, and waits until all are ready.
    pub(crate) fn start_all(&mut self) {
        let missing = (1..=self.size).filter(|number| !self.nodes.contains_key(number));
        let started: Vec<_> = missing.map(|number| (number, self.spawn(number))).collect();
        for (number, node) in started {
            self.nodes.insert(number, node.until_ready());
        }
    }

    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        1..=self.size
    }

    /// All nodes but one.
    pub(crate) fn others(&self, number: u32) -> Vec<u32> {
        self.numbers().filter(|other| *other != number).collect()
    }

    pub(crate) fn data(&self, number: u32) -> PathBuf {
        self.folder.join(number.to_string())
    }

    /// The list that every node gets.
    pub(crate) fn members(&self) -> String {
        self.list(self.numbers())
    }

    /// A list of some nodes.
    pub(crate) fn list(&self, numbers: impl IntoIterator<Item = u32>) -> String {
        let numbers = numbers.into_iter();
        let members = numbers.map(|number| format!("{number}={}.{number}:{PEER_PORT}", self.net));
        members.collect::<Vec<_>>().join(",")
    }

    /// Where clients find every node.
    pub(crate) fn client_addresses(&self) -> String {
        let addresses = self.numbers().map(|number| self.client_address(number));
        addresses.collect::<Vec<_>>().join(",")
    }

    pub(crate) fn client_address(&self, number: u32) -> String {
        format!("{}.{number}:7411", self.net)
    }

    pub(crate) fn admin_address(&self, number: u32) -> SocketAddr {
        let address = format!("{}.{number}:7480", self.net);
        address.parse().expect("an address")
    }

    /// Sums up a number of a node over its shards.
    pub(crate) fn metric(&self, number: u32, name: &str) -> f64 {
        let (_, text) = http(self.admin_address(number), "/metrics");
        let values = text.lines().filter_map(|line| {
            let (shown, value) = line.rsplit_once(' ')?;
            (shown.split('{').next() == Some(name)).then_some(value)
        });
        values
            .map(|value| value.parse::<f64>().expect("a number"))
            .sum()
    }

    /// What starts a node.
    pub(crate) fn command(&self, number: u32, data: &Path, members: &str) -> Command {
        let shards = self.shards.get(&number).copied().unwrap_or(1).to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-node"));
        command
            .args(["--id", &number.to_string(), "--members", members])
            .args(["--listen", &self.client_address(number)])
            .args(["--admin", &self.admin_address(number).to_string()])
            .args(["--shards", &shards, "--no-pin", "--data-dir"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if self.relays.is_some() {
            let own = format!("{}.{number}:{OWN_PORT}", self.net);
            command.env("RRQ_LISTEN__PEER", own);
        }
        if let Some(version) = self.held_at.get(&number) {
            command.env("RRQ_UPGRADE__MACHINE_VERSION", version.to_string());
        }
        command
    }

    pub(crate) fn spawn(&self, number: u32) -> Node {
        self.spawn_with(number, &self.members())
    }

    /// Starts a node with a list of its own.
    pub(crate) fn spawn_with(&self, number: u32, members: &str) -> Node {
        let data = self.data(number);
        Node::spawn_by(&mut self.command(number, &data, members))
    }

    /// Loses the disk of a node that does not run.
    pub(crate) fn lose_disk(&self, number: u32) {
        assert!(!self.nodes.contains_key(&number), "it runs");
        std::fs::remove_dir_all(self.data(number)).expect("it is there");
    }

    /// Starts a node and waits until it is ready.
    pub(crate) fn start_one(&mut self, number: u32) {
        let node = self.spawn(number).until_ready();
        self.nodes.insert(number, node);
    }

    /// Ends a node by a signal, and waits for its end.
    pub(crate) fn end(&mut self, number: u32, signal: &str) {
        let mut node = self.nodes.remove(&number).expect("it runs");
        node.signal(signal);
        node.wait();
    }

    /// Kills all nodes that run, at once.
    pub(crate) fn kill_all(&mut self) {
        for node in self.nodes.values() {
            node.signal("-KILL");
        }
        for mut node in std::mem::take(&mut self.nodes).into_values() {
            node.wait();
        }
    }

    /// Waits until no group on a node lacks anything that it once promised.
    pub(crate) fn until_sound(&self, number: u32, after: &str) {
        let begun = Instant::now();
        loop {
            let counts = [
                "rrq_raft_groups_recovering",
                "rrq_groups_halted",
                "rrq_groups_mending",
            ];
            let counts = counts.map(|name| (name, self.metric(number, name)));
            if counts.iter().all(|(_, count)| *count == 0.0) {
                return;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "after {after} node {number} is not put right: {counts:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The segments of the log of a node's first shard, in their order, without spares.
    pub(crate) fn segments(&self, number: u32) -> Vec<PathBuf> {
        let wal = self.data(number).join("shard-0000/wal-0001");
        let names = std::fs::read_dir(wal).expect("a log");
        let names = names.map(|entry| entry.expect("a name").path());
        let is_spare = |path: &PathBuf| path.to_string_lossy().contains("spare");
        let mut segments: Vec<PathBuf> = names.filter(|path| !is_spare(path)).collect();
        segments.sort();
        segments
    }

    /// A client that knows all nodes.
    pub(crate) fn client(&self) -> Client {
        self.client_with(Options::default())
    }

    pub(crate) fn client_with(&self, options: Options) -> Client {
        let addresses: Vec<String> = self.numbers().map(|nr| self.client_address(nr)).collect();
        Client::connect_with(addresses, options).expect("a node answers")
    }

    /// Which node leads the group of [`QUEUE`].
    pub(crate) fn leader(&self) -> u32 {
        let begun = Instant::now();
        loop {
            for number in self.nodes.keys() {
                if self.leads(*number).contains(&home_group(QUEUE, 64)) {
                    return *number;
                }
            }
            assert!(begun.elapsed() < DEADLINE, "nobody leads");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The groups that a node says it leads.
    pub(crate) fn leads(&self, number: u32) -> Vec<GroupId> {
        let options = Options {
            connect_deadline: Duration::from_millis(500),
            deadline: Duration::from_millis(500),
            ..Options::default()
        };
        let Ok(client) = Client::connect_with([self.client_address(number)], options) else {
            return Vec::new();
        };
        let nodes = client.nodes().unwrap_or_default();
        let node = nodes.iter().find(|view| view.node == NodeId(number));
        let shards = node.and_then(|view| view.shards.as_ref().ok());
        let groups = shards.into_iter().flatten().flat_map(|shard| &shard.groups);
        groups
            .filter(|group| group.leader)
            .map(|group| group.group)
            .collect()
    }
}

/// What a thread of [`Load`] does.
type Work = fn(&Client, &str, &Mutex<Ledger>, &AtomicBool, &Mutex<Vec<Error>>);

/// Clients that work all the time.
pub(crate) struct Load {
    queue: String,
    ledger: Arc<Mutex<Ledger>>,
    client: Client,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    errors: Arc<Mutex<Vec<Error>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with it")
}

impl Load {
    /// Producers and workers on [`QUEUE`].
    pub(crate) fn start(cluster: &Cluster, producers: usize, workers: usize) -> Self {
        Self::on(QUEUE, cluster, producers, workers)
    }

    /// Producers and workers on one queue.
    pub(crate) fn on(queue: &str, cluster: &Cluster, producers: usize, workers: usize) -> Self {
        let mut load = Self {
            queue: queue.to_owned(),
            ledger: Arc::default(),
            client: cluster.client(),
            stop: Arc::default(),
            threads: Vec::new(),
            errors: Arc::default(),
        };
        load.client.queue(queue).expect("a queue");
        for _ in 0..producers {
            load.spawn(Self::produce);
        }
        for _ in 0..workers {
            load.spawn(Self::work);
        }
        load
    }

    fn spawn(&mut self, what: Work) {
        let (client, ledger) = (self.client.clone(), self.ledger.clone());
        let (stop, errors) = (self.stop.clone(), self.errors.clone());
        let queue = self.queue.clone();
        let run = move || what(&client, &queue, &ledger, &stop, &errors);
        self.threads.push(std::thread::spawn(run));
    }

    fn produce(
        client: &Client,
        queue: &str,
        ledger: &Mutex<Ledger>,
        stop: &AtomicBool,
        errors: &Mutex<Vec<Error>>,
    ) {
        while !stop.load(Relaxed) {
            let number = lock(ledger).ask();
            match client.enqueue(queue, payload(number, 200)).id() {
                Ok(id) => lock(ledger).enqueued(number, id),
                Err(error) => {
                    if error.maybe_applied() {
                        lock(ledger).enqueue_unknown(number);
                    } else {
                        lock(ledger).refused(number);
                    }
                    lock(errors).push(error);
                }
            }
        }
    }

    fn work(
        client: &Client,
        queue: &str,
        ledger: &Mutex<Ledger>,
        stop: &AtomicBool,
        errors: &Mutex<Vec<Error>>,
    ) {
        let queue = client.queue(queue).expect("it is there");
        while !stop.load(Relaxed) {
            match queue.lease(8, Duration::from_millis(200)) {
                Ok(jobs) => finish(client, ledger, jobs, errors),
                Err(error) => lock(errors).push(error),
            }
        }
    }

    /// How many jobs are acknowledged by now.
    pub(crate) fn enqueued(&self) -> u64 {
        lock(&self.ledger).enqueued_count()
    }

    /// Waits until so many more jobs are acknowledged; how long that took.
    pub(crate) fn until_enqueued(&self, more: u64) -> Duration {
        let (begun, goal) = (Instant::now(), self.enqueued() + more);
        while self.enqueued() < goal {
            assert!(begun.elapsed() < DEADLINE, "nothing is enqueued any more");
            std::thread::sleep(Duration::from_millis(1));
        }
        begun.elapsed()
    }

    /// Ends the load, finishes what is left, and holds the books against it: how many jobs there were,
    /// and the errors that the clients saw.
    pub(crate) fn settle(mut self) -> (u64, Vec<Error>) {
        self.end();
        let queue = self.client.queue(&self.queue).expect("it is there");
        while self.finish_some(&queue) {}
        self.audit();
        let ledger = lock(&self.ledger);
        // What an earlier grant of a dead worker holds is still leased.
        let errors = std::mem::take(&mut *lock(&self.errors));
        (ledger.enqueued_count(), errors)
    }

    /// As [`Self::settle`], until the nodes say that nothing is left: every job that was acknowledged is
    /// finished, and every one that is finished was acknowledged.
    pub(crate) fn drain(mut self) -> (u64, Vec<Error>) {
        self.end();
        let queue = self.client.queue(&self.queue).expect("it is there");
        let begun = Instant::now();
        let counts = loop {
            while self.finish_some(&queue) {}
            let (_, counts) = queue.info().expect("it serves again");
            if counts.pending + counts.delayed + counts.in_flight + counts.dead == 0 {
                break counts;
            }
            // What a grant holds whose answer was lost comes back when its lease ends.
            assert!(begun.elapsed() < 4 * DEADLINE, "jobs never go: {counts:?}");
            std::thread::sleep(Duration::from_millis(50));
        };
        self.audit();
        let ledger = lock(&self.ledger);
        let enqueued = ledger.enqueued_count();
        assert_eq!(ledger.finished_count(), enqueued, "some are not finished");
        let told = (counts.enqueued_total, counts.completed_total);
        assert_eq!(told, (enqueued, enqueued), "by the nodes' own counters");
        (enqueued, std::mem::take(&mut *lock(&self.errors)))
    }

    fn end(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client does not panic");
        }
    }

    /// Whether there was something to finish.
    fn finish_some(&self, queue: &Queue) -> bool {
        let jobs = queue.lease(256, Duration::ZERO).expect("it serves again");
        let is_some = !jobs.is_empty();
        // The load is over: what a dead worker's grant says is no error that a client saw under it.
        finish(&self.client, &self.ledger, jobs, &Mutex::default());
        is_some
    }

    /// Looks at every job that must be there.
    fn audit(&self) {
        let left: Vec<_> = lock(&self.ledger).live().collect();
        for (number, id) in left {
            match self.client.run(self.client.calls().job(id)) {
                Ok(job) => lock(&self.ledger).found_live(number, number_of(&job.body.payload)),
                Err(error) if [Code::Finished, Code::NotFound].contains(&error.code()) => {
                    lock(&self.ledger).found_gone(number);
                }
                Err(error) => panic!("job {id} cannot be looked for: {error}"),
            }
        }
        let ledger = lock(&self.ledger);
        assert!(ledger.misses().is_none(), "{:?}", ledger.misses());
    }
}

fn finish(
    client: &Client,
    ledger: &Mutex<Ledger>,
    jobs: Vec<rrq::client::LeasedJob>,
    errors: &Mutex<Vec<Error>>,
) {
    let mut numbers = Vec::new();
    let mut items = Vec::new();
    for leased in &jobs {
        let number = number_of(&leased.job.body.payload);
        lock(ledger).delivered(number, leased.token());
        numbers.extend(number.map(|number| (number, leased.token())));
        items.push(AckItem {
            token: leased.token(),
            result: None,
        });
    }
    let outcomes = client.run(client.calls().ack_batch(items));
    for ((number, token), outcome) in numbers.into_iter().zip(outcomes) {
        match outcome {
            Ok(()) => lock(ledger).acked(number, token),
            Err(error) => {
                // Finished: by an ack of ours whose answer was lost. The audit settles it.
                if error.maybe_applied() || error.code() == Code::Finished {
                    lock(ledger).ack_unknown(number);
                }
                lock(errors).push(error);
            }
        }
    }
}
