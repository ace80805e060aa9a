//! A cluster of simulated nodes around a [`ClientCore`]: who leads, who is dead, frozen or cut off.
//!
//! Everything is answered at once, in simulated time; only a deadline of the core lets time pass.
//! Commands take effect once for each session and number, whichever node leads, as in a cluster.

use super::*;

/// What becomes of what is sent to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Well,
    /// Refuses connections.
    Dead,
    /// Takes connections and requests, and says nothing.
    Frozen,
}

pub(super) struct Node {
    pub(super) health: Health,
    /// What its hello lists.
    pub(super) lists: Vec<u32>,
    /// What it names as the leader's address.
    pub(super) names: Option<String>,
    /// The group has stopped here.
    pub(super) has_halted: bool,
    /// Sent to it while it was frozen.
    held: Vec<(ConnNo, Request)>,
}

/// What a node was asked.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) node: u32,
    pub(super) what: Request,
}

pub(super) struct World {
    pub(super) client: Client,
    pub(super) nodes: BTreeMap<u32, Node>,
    pub(super) leader: Option<u32>,
    pub(super) asked: Vec<Noted>,
    pub(super) connects: Vec<(Monotonic, String)>,
    conns: BTreeMap<ConnNo, u32>,
    /// Outcomes by session, window and number.
    outcomes: BTreeMap<(u32, bool, u64), ReplyBody>,
    pub(super) jobs_made: u64,
    pub(super) leases_made: u64,
    sessions_made: u32,
    pub(super) epoch: u32,
    /// So many commands are refused by the leader as too much.
    pub(super) busy: u32,
    /// Jobs that a lease finds.
    pub(super) ready: u64,
    /// Polls that wait: their node, connection and request.
    pub(super) parked: Vec<(u32, ConnNo, Request)>,
}

pub(super) fn address(node: u32) -> String {
    format!("n{node}:1")
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

impl World {
    /// Nodes 1 to `count` that all know each other; node 1 leads; the client knows `seeds`.
    pub(super) fn new(count: u32, seeds: &[&str]) -> Self {
        let seeds = seeds.iter().map(|seed| (*seed).to_owned()).collect();
        let node = |number| {
            let node = Node {
                health: Health::Well,
                lists: (1..=count).collect(),
                names: Some(address(1)),
                has_halted: false,
                held: Vec::new(),
            };
            (number, node)
        };
        Self {
            client: Client {
                core: ClientCore::new(seeds, CoreOptions::default()),
                now: Monotonic(1),
                effects: Vec::new(),
            },
            nodes: (1..=count).map(node).collect(),
            leader: Some(1),
            asked: Vec::new(),
            connects: Vec::new(),
            conns: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            jobs_made: 0,
            leases_made: 0,
            sessions_made: 0,
            epoch: 1,
            busy: 0,
            ready: 0,
            parked: Vec::new(),
        }
    }

    /// The same, with a session open at node 1.
    pub(super) fn working(count: u32) -> Self {
        let mut world = Self::new(count, &["n1:1"]);
        let id = world.client.call(enqueue());
        world.run(ms(1));
        assert!(world.client.result(id).is_ok());
        world.asked.clear();
        world.connects.clear();
        world
    }

    pub(super) fn node(&mut self, node: u32) -> &mut Node {
        self.nodes.get_mut(&node).expect("there is one")
    }

    /// The node ends: its connections break.
    pub(super) fn kill(&mut self, node: u32) {
        self.node(node).health = Health::Dead;
        self.parked.retain(|(at, ..)| *at != node);
        for conn in self.conns_of(node) {
            self.conns.remove(&conn);
            self.client.lose(conn);
        }
    }

    pub(super) fn conns_of(&self, node: u32) -> Vec<ConnNo> {
        let of = self.conns.iter().filter(|(_, at)| **at == node);
        of.map(|(conn, _)| *conn).collect()
    }

    /// A new leader, which all who are well know.
    pub(super) fn elect(&mut self, node: u32) {
        self.leader = Some(node);
        self.all_name(Some(node));
    }

    pub(super) fn all_name(&mut self, node: Option<u32>) {
        for of in self.nodes.values_mut() {
            of.names = node.map(address);
        }
    }

    /// It goes on, and answers what was sent to it.
    pub(super) fn thaw(&mut self, node: u32) {
        let of = self.node(node);
        of.health = Health::Well;
        for (conn, request) in std::mem::take(&mut of.held) {
            self.answer(node, conn, request);
        }
    }

    /// What waits for a job is given one.
    pub(super) fn wake(&mut self) {
        for (node, conn, request) in std::mem::take(&mut self.parked) {
            self.ready = self.ready.max(1);
            self.answer(node, conn, request);
        }
    }

    /// Lets time pass, as a driver does.
    pub(super) fn run(&mut self, time: Duration) {
        let until = self.client.now.plus(time);
        let mut turns = 0;
        loop {
            self.perform();
            let next = self.client.core.next_deadline();
            let Some(next) = next.filter(|next| *next <= until) else {
                break;
            };
            turns += 1;
            assert!(turns < 10_000, "it turns without end at {next:?}");
            self.client.now = self.client.now.max(next);
            self.client.input(Input::Tick);
        }
        self.client.now = until;
    }

    /// Runs until a call has ended; how long that took.
    pub(super) fn run_to_end(&mut self, id: CallId, most: Duration) -> Duration {
        let begun = self.client.now;
        while self.client.is_under_way(id) {
            assert!(self.client.now.since(begun) < most, "it never ends");
            self.run(ms(1));
        }
        self.client.now.since(begun)
    }

    fn perform(&mut self) {
        loop {
            let is_end = |effect: &Effect| matches!(effect, Effect::Done { .. });
            let at = self
                .client
                .effects
                .iter()
                .position(|effect| !is_end(effect));
            let Some(at) = at else {
                return;
            };
            match self.client.effects.remove(at) {
                Effect::Connect { conn, address } => self.connect(conn, address),
                Effect::Disconnect { conn } => drop(self.conns.remove(&conn)),
                Effect::Send { conn, id } => {
                    let request = self.client.core.request(id).expect("it is there").clone();
                    if let Some(node) = self.conns.get(&conn).copied() {
                        self.answer(node, conn, request);
                    }
                }
                Effect::Done { .. } => {}
            }
        }
    }

    fn connect(&mut self, conn: ConnNo, to: String) {
        self.connects.push((self.client.now, to.clone()));
        let node = self.nodes.keys().copied().find(|node| address(*node) == to);
        let health = node.map_or(Health::Dead, |node| self.nodes[&node].health);
        match (node, health) {
            (Some(node), Health::Well) => {
                self.conns.insert(conn, node);
                let hello = self.hello(node);
                self.client.input(Input::Connected { conn, hello });
            }
            (_, Health::Frozen) => {}
            _ => self.client.lose(conn),
        }
    }

    fn hello(&self, node: u32) -> ServerHello {
        let listed = |node: &u32| NodeAddresses {
            node: NodeId(*node),
            addresses: vec![address(*node)],
        };
        ServerHello {
            protocol: 1,
            version: "test".to_owned(),
            cluster: ClusterId([1; 16]),
            node: NodeId(node),
            shard: 0,
            groups: 64,
            payload_bytes_max: 1 << 20,
            nodes: self.nodes[&node].lists.iter().map(listed).collect(),
        }
    }

    fn answer(&mut self, node: u32, conn: ConnNo, request: Request) {
        if self.nodes[&node].health == Health::Frozen {
            self.node(node).held.push((conn, request));
            return;
        }
        let what = request.clone();
        self.asked.push(Noted { node, what });
        let id = request.id;
        let is_command = matches!(request.body, RequestBody::Command { .. });
        let body = match &request.body {
            RequestBody::Heartbeat { .. } => ReplyBody::HeartbeatTaken {
                unknown: Vec::new(),
            },
            _ if is_command && self.nodes[&node].has_halted => ReplyBody::Error(ErrorReply {
                code: Code::GroupHalted,
                message: "no".to_owned(),
                leader: None,
                maybe_applied: false,
            }),
            _ if is_command && self.leader != Some(node) => ReplyBody::Error(ErrorReply {
                code: Code::NotLeader,
                message: "no".to_owned(),
                leader: self.nodes[&node].names.clone(),
                maybe_applied: false,
            }),
            RequestBody::Command { .. } if self.busy > 0 => {
                self.busy -= 1;
                ReplyBody::Error(ErrorReply {
                    code: Code::Busy,
                    message: "no".to_owned(),
                    leader: None,
                    maybe_applied: false,
                })
            }
            RequestBody::Command { wait_ms, .. } => {
                if *wait_ms > 0 && self.ready == 0 {
                    self.parked.push((node, conn, request));
                    return;
                }
                self.apply(&request)
            }
            _ => ReplyBody::Jobs(Vec::new()),
        };
        if self.conns.contains_key(&conn) {
            self.client.reply(conn, id, body);
        }
    }

    fn apply(&mut self, request: &Request) -> ReplyBody {
        let command = command(request);
        let place = command.session.map(|call| {
            let is_poll = call.window == Window::Polls;
            (call.id.0, is_poll, call.seq)
        });
        if let Some(known) = place.and_then(|place| self.outcomes.get(&place)) {
            return known.clone();
        }
        let body = match &command.op {
            Op::OpenSession { .. } => {
                self.sessions_made += 1;
                let session = SessionId(self.sessions_made);
                let epoch = self.epoch;
                ReplyBody::Outcome(Outcome::SessionOpened { session, epoch })
            }
            Op::Attach { .. } => {
                self.epoch += 1;
                let tokens = (1..=self.leases_made).map(token).collect();
                let epoch = self.epoch;
                ReplyBody::Outcome(Outcome::Attached { epoch, tokens })
            }
            Op::Enqueue { .. } => {
                self.jobs_made += 1;
                enqueued(self.jobs_made)
            }
            Op::Lease { .. } if self.ready > 0 => {
                self.ready -= 1;
                self.leases_made += 1;
                leased(self.leases_made)
            }
            Op::Lease { .. } => ReplyBody::Leased(Vec::new()),
            _ => ReplyBody::Outcome(Outcome::Items(vec![ItemOutcome::Done])),
        };
        if let Some(place) = place {
            self.outcomes.insert(place, body.clone());
        }
        body
    }

    /// Applies a request whose answer nobody hears; what it would be.
    pub(super) fn answer_nobody(&mut self, request: &Request) -> ReplyBody {
        self.apply(request)
    }

    /// The way to a node loses everything, on this connection alone.
    pub(super) fn deafen(&mut self, conn: ConnNo) {
        self.conns.remove(&conn);
    }

    /// The commands that a node was asked for, heartbeats and the like not counted.
    pub(super) fn commands_at(&self, node: u32) -> Vec<&Noted> {
        let is_command = |noted: &&Noted| {
            noted.node == node && matches!(noted.what.body, RequestBody::Command { .. })
        };
        self.asked.iter().filter(is_command).collect()
    }

    /// Sessions in the heartbeats that a node was sent.
    pub(super) fn beats_at(&self, node: u32) -> usize {
        let sessions = |noted: &Noted| match &noted.what.body {
            RequestBody::Heartbeat { sessions, .. } if noted.node == node => sessions.len(),
            _ => 0,
        };
        self.asked.iter().map(sessions).sum()
    }
}
