//! The connections of clients that use the client library: each names an address, waits for the node's
//! hello, and carries frames in order, either way late.
//!
//! | what befalls | what the client is told |
//! | --- | --- |
//! | no process runs there | soon: unreachable |
//! | the process stands still | nothing, or after [`CONNECT_TIMEOUT`]: unreachable |
//! | the process dies | mostly soon: the connection is lost, and perhaps what was on its way |
//! | the connection breaks | both ends lose it, and what was on its way |
//!
//! These clients reach every node, also one that no other node reaches.

use super::node::{CLUSTER, Node, address, listener_of};
use super::traffic::{Asker, Conn};
use super::{Cluster, Event, unframe};
use crate::base::code::Code;
use crate::base::ids::{ConnId, NodeId};
use crate::base::units::Monotonic;
use crate::client::Error;
use crate::client::session::{ConnNo, Input, Kept};
use crate::sim::cluster::options::Options;
use crate::sim::core_client::{CoreClient, Moment, Mood, Wish};
use crate::wire::client::{PROTOCOL_VERSION, decode_server_hello, encode_server_hello};
use crate::wire::message::{NodeAddresses, Reply, ServerHello};
use bytes::BytesMut;
use std::time::Duration;

/// A connection that is not up after this counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a process that died with its machine nobody tells, for up to so long.
const UNHEARD_MS: u64 = 4_000;
/// The clients that leave a cluster where all is well are gone within this.
const LEFT_WITHIN: Duration = Duration::from_secs(90);

/// A connection, as its client has it.
#[derive(Debug)]
pub(super) struct Socket {
    client: usize,
    conn: ConnNo,
    node: usize,
    shard: u16,
    /// The node has it, too, or had it.
    was_reached: bool,
    is_up: bool,
    /// When the last frame arrives, there and here.
    there: Monotonic,
    here: Monotonic,
}

/// What happens to a connection.
#[derive(Debug)]
pub(super) enum Happens {
    /// It reaches the node.
    Reaches,
    /// The client hears the hello.
    Hello(ServerHello),
    Reply(Reply),
    /// The client hears that it is lost, or was refused.
    Ends(Error),
    /// The client waits no longer for the hello.
    IsLate,
    /// The node hears that the client closed it.
    IsClosed,
}

impl Cluster<'_> {
    /// The node where it happens, if it is not the client.
    pub(super) fn place_of_socket(&self, number: ConnId, happens: &Happens) -> Option<usize> {
        match happens {
            Happens::Reaches => self.sockets.get(&number).map(|socket| socket.node),
            Happens::IsClosed => self.conns.get(&number).map(|conn| conn.node),
            _ => None,
        }
    }

    pub(super) fn on_socket(&mut self, number: ConnId, happens: Happens) {
        if let Happens::IsClosed = happens {
            return self.close(number);
        }
        let Some(socket) = self.sockets.get_mut(&number) else {
            return;
        };
        let (client, conn) = (socket.client, socket.conn);
        let input = match happens {
            Happens::IsClosed => return,
            Happens::Reaches => return self.reaches(number),
            Happens::IsLate if socket.is_up => return,
            Happens::IsLate => {
                self.drop_socket(number);
                let error = Error::new(Code::Unreachable, "no hello in time");
                Input::Disconnected { conn, error }
            }
            Happens::Hello(hello) => {
                socket.is_up = true;
                Input::Connected { conn, hello }
            }
            Happens::Reply(reply) => Input::Received { conn, reply },
            Happens::Ends(error) => {
                self.sockets.remove(&number);
                Input::Disconnected { conn, error }
            }
        };
        self.tell_client(client, |client, at| client.hear(input, at));
    }

    /// A client reaches the listener of a shard.
    fn reaches(&mut self, number: ConnId) {
        let socket = self
            .sockets
            .get_mut(&number)
            .expect("it was just looked up");
        let node = &self.nodes[socket.node];
        // It may have fewer shards by now.
        if usize::from(socket.shard) >= node.engines.len() {
            let error = Error::new(Code::Unreachable, "nobody listens");
            return self.bring(number, Happens::Ends(error));
        }
        socket.was_reached = true;
        let conn = Conn {
            asker: Asker::Library(socket.client),
            node: socket.node,
            shard: socket.shard,
        };
        self.conns.insert(number, conn);
        let hello = node.client_hello(socket.shard, &self.options);
        self.bring(number, Happens::Hello(hello));
    }

    /// An answer leaves a node.
    pub(super) fn answer_socket(&mut self, number: ConnId, reply: Reply) {
        self.bring(number, Happens::Reply(reply));
    }

    /// Something comes to a client, behind what came before.
    fn bring(&mut self, number: ConnId, what: Happens) {
        let Some(socket) = self.sockets.get_mut(&number) else {
            return;
        };
        let delay = delay(&mut self.library[socket.client], &self.options);
        socket.here = self.now.plus(delay).max(socket.here);
        let after = socket.here.since(self.now);
        self.schedule(after, Event::Socket(number, what));
    }

    /// The process of a node is gone: its connections end, which some hear late.
    pub(super) fn end_sockets(&mut self, node: usize) {
        let is_there = |socket: &Socket| socket.node == node && socket.was_reached;
        let there = self.sockets.iter().filter(|(_, socket)| is_there(socket));
        let numbers: Vec<ConnId> = there.map(|(number, _)| *number).collect();
        for number in numbers {
            let socket = &self.sockets[&number];
            let client = &mut self.library[socket.client];
            let mut after = delay(client, &self.options);
            let prng = client.prng();
            if prng.chance(1, 8) {
                after = Duration::from_millis(prng.below(UNHEARD_MS));
            } else if prng.chance(1, 2) {
                // What it has sent arrives before.
                after = after.max(socket.here.since(self.now));
            }
            let error = Error::new(Code::Unreachable, "the process is gone");
            self.schedule(after, Event::Socket(number, Happens::Ends(error)));
        }
    }

    // ---- the clients -----------------------------------------------------------------------

    fn mood(&self) -> Mood {
        match (self.has_faults, self.produces, self.leaves) {
            (true, ..) => Mood::Faults,
            (false, true, _) => Mood::Heals,
            (false, false, false) => Mood::Drains,
            (false, false, true) => Mood::Leaves,
        }
    }

    /// A client is told something, and has what it wants then.
    fn tell_client(
        &mut self,
        client: usize,
        tell: impl FnOnce(&mut CoreClient, &mut Moment<'_>) -> Vec<Wish>,
    ) {
        let mut moment = Moment {
            now: self.now,
            mood: self.mood(),
            ledger: &mut self.ledger,
        };
        let wishes = tell(&mut self.library[client], &mut moment);
        for wish in wishes {
            self.grant(client, wish);
        }
        let soonest = self.now.plus(Duration::from_micros(1));
        if let Some(at) = self.library[client].arm(soonest) {
            self.schedule(at.since(self.now), Event::LibraryTick(client));
        }
    }

    pub(super) fn library_ticks(&mut self, client: usize) {
        self.tell_client(client, CoreClient::tick);
    }

    pub(super) fn library_acts(&mut self, client: usize) {
        if self.has_faults && self.library[client].prng().chance(1, 100) {
            self.break_sockets(client);
        }
        self.tell_client(client, CoreClient::act);
        let think_us = self.options.think_us;
        let pause = 1 + self.library[client].prng().below(think_us);
        self.schedule(Duration::from_micros(pause), Event::LibraryActs(client));
    }

    fn grant(&mut self, client: usize, wish: Wish) {
        let after = delay(&mut self.library[client], &self.options);
        match wish {
            Wish::Connect(conn, address) => {
                let (node, shard) = listener_of(&address).expect("it names a shard of a node");
                self.next_conn += 1;
                let number = ConnId(self.next_conn);
                let socket = Socket {
                    client,
                    conn,
                    node,
                    shard,
                    was_reached: false,
                    is_up: false,
                    there: self.now.plus(after),
                    here: self.now,
                };
                self.sockets.insert(number, socket);
                self.schedule(after, Event::Socket(number, Happens::Reaches));
                self.schedule(CONNECT_TIMEOUT, Event::Socket(number, Happens::IsLate));
            }
            Wish::Send(conn, frame) => {
                let number = self.socket_of(client, conn);
                let socket = self.sockets.get_mut(&number).expect("it was just found");
                assert!(socket.is_up, "{conn:?} is not up");
                socket.there = self.now.plus(after).max(socket.there);
                let after = socket.there.since(self.now);
                self.schedule(after, Event::Request(number, unframe(&frame)));
            }
            Wish::Disconnect(conn) => {
                let number = self.socket_of(client, conn);
                self.drop_socket(number);
            }
        }
    }

    fn socket_of(&self, client: usize, conn: ConnNo) -> ConnId {
        let is_it = |socket: &Socket| (socket.client, socket.conn) == (client, conn);
        let found = self.sockets.iter().find(|(_, socket)| is_it(socket));
        *found.unwrap_or_else(|| panic!("there is no {conn:?}")).0
    }

    /// The client is done with a connection; the node hears it behind what was sent before.
    fn drop_socket(&mut self, number: ConnId) {
        let socket = self.sockets.remove(&number).expect("it is there");
        let after = delay(&mut self.library[socket.client], &self.options);
        let after = self.now.plus(after).max(socket.there).since(self.now);
        self.schedule(after, Event::Socket(number, Happens::IsClosed));
    }

    /// The network loses all connections of a client.
    fn break_sockets(&mut self, client: usize) {
        let of = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.client == client && socket.is_up);
        let numbers: Vec<ConnId> = of.map(|(number, _)| *number).collect();
        for number in numbers {
            self.close(number);
            let error = Error::new(Code::Unreachable, "the connection broke");
            self.on_socket(number, Happens::Ends(error));
        }
    }

    /// No client asks any more: what each holds is finished, and it is closed. Nothing of it is left, neither
    /// with it nor in the network.
    pub(super) fn close_library(&mut self) {
        self.leaves = true;
        let end = self.now.plus(LEFT_WITHIN);
        let all = 0..self.library.len();
        let run_until =
            |cluster: &mut Self, tell: fn(&mut Self), is_done: fn(&CoreClient) -> bool| {
                loop {
                    tell(cluster);
                    if cluster.library.iter().all(is_done) {
                        return;
                    }
                    let kept = cluster.library.iter().map(CoreClient::kept);
                    assert!(
                        cluster.now < end,
                        "a client never leaves: they keep {:?}",
                        kept.collect::<Vec<Kept>>()
                    );
                    cluster.step();
                }
            };
        run_until(
            self,
            |_| {},
            |client| client.is_idle() && client.kept().requests == 0,
        );
        for client in all.clone() {
            let kept = self.library[client].kept();
            assert!(
                (kept.numbers, kept.grants) == (0, 0),
                "what ended is kept: {kept:?}"
            );
        }
        run_until(self, Self::close_idle, |client| {
            client.is_closed() && client.kept().conns == 0
        });
        for client in all {
            let kept = self.library[client].kept();
            assert!(kept == Kept::default(), "a closed client keeps {kept:?}");
        }
        assert!(
            self.sockets.is_empty(),
            "nobody has these: {:?}",
            self.sockets
        );
    }

    /// Closes every client that has nothing left to do, also one that follows one whose closing was given up.
    fn close_idle(&mut self) {
        for client in 0..self.library.len() {
            if self.library[client].is_to_close() {
                self.tell_client(client, CoreClient::close);
            }
        }
    }
}

/// How long something is on its way to or from a client.
fn delay(client: &mut CoreClient, options: &Options) -> Duration {
    Duration::from_micros(20 + client.prng().below(options.network_us))
}

impl Node {
    /// What it says of itself and the others to a client, through the codec: itself, and who it has heard since it started.
    fn client_hello(&self, shard: u16, options: &Options) -> ServerHello {
        let addresses = |(node, shards): (NodeId, u16)| NodeAddresses {
            node,
            addresses: (0..shards).map(|shard| address(node, shard)).collect(),
        };
        let heard = self.heard.iter();
        let heard = heard.map(|(node, heard)| (*node, heard.shards));
        let mut nodes: Vec<(NodeId, u16)> = heard.collect();
        nodes.push((self.me.node, self.shards()));
        nodes.sort_unstable();
        let hello = ServerHello {
            protocol: PROTOCOL_VERSION,
            version: "simulated".to_owned(),
            cluster: CLUSTER,
            node: self.me.node,
            shard,
            groups: options.groups,
            payload_bytes_max: 1 << 20,
            nodes: nodes.into_iter().map(addresses).collect(),
        };
        let mut bytes = BytesMut::new();
        encode_server_hello(&hello, &mut bytes);
        decode_server_hello(&unframe(&bytes)).expect("a hello is decoded as it was sent")
    }
}
