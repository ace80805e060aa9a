//! What clients do to a cluster: whom they ask, what they take for the leader, and when they ask again.
//!
//! A client that keeps its session by hand has a connection to each shard of each node that it has asked. A
//! request that is in nobody's hands when its connection ends is lost; answers arrive at once or never. Those
//! that use the client library are in `sockets.rs`.

use super::node::listener_of;
use super::{Cluster, Event};
use crate::base::checksum::crc32c;
use crate::base::code::Code;
use crate::base::ids::{ConnId, GroupId, ShardId};
use crate::base::limits::CLUSTER_GROUP;
use crate::queue::command::{Command, Op, Outcome};
use crate::shard::input::{Input, Origin};
use crate::shard::placement::home_group;
use crate::wire::client::{Received, decode_reply, encode_reply, encode_request, receive_request};
use crate::wire::message::{Reply, ReplyBody, Request, RequestBody};
use bytes::{Bytes, BytesMut};
use std::time::Duration;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asker {
    Client(usize),
    /// One that uses the client library.
    Library(usize),
    /// Who makes, changes and deletes queues.
    Operator,
    /// The world itself, whether a group makes progress.
    Probe,
    /// The world itself, as the operator who has an empty disk added.
    Members,
}

/// A connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conn {
    pub(super) asker: Asker,
    pub(super) node: usize,
    pub(super) shard: u16,
}

impl Cluster<'_> {
    /// Whom a request is for.
    fn target(&self, body: &RequestBody) -> GroupId {
        match body {
            RequestBody::Command { group, .. }
            | RequestBody::Watch { group, .. }
            | RequestBody::GetPartition { group, .. } => *group,
            RequestBody::WaitJob { job, .. } | RequestBody::GetJob { job } => job.group(),
            RequestBody::GetQueue { name, .. } => home_group(name, self.options.groups),
            RequestBody::Heartbeat { sessions, .. } => {
                sessions.first().map_or(GroupId(0), |session| session.0)
            }
            RequestBody::ChangeMembers(_) => CLUSTER_GROUP,
            other => panic!("no client asks {other:?}"),
        }
    }

    /// Sends a request to who is taken for the leader, through the real codec.
    pub(super) fn ask(&mut self, asker: Asker, id: u64, body: RequestBody) {
        let group = self.target(&body);
        let guess = self.prng.below(self.options.nodes as u64) as usize;
        let node = *self.leaders.get(&(asker, group)).unwrap_or(&guess);
        if !self.nodes[node].runs() {
            self.leaders.remove(&(asker, group));
            return self.ask_again(asker, id);
        }
        // Only some requests are passed on by the shard that they reach.
        let is_exact = matches!(body, RequestBody::Heartbeat { .. }) || self.prng.chance(7, 8);
        let shard = if is_exact {
            self.nodes[node].shard_of(group)
        } else {
            self.prng.below(self.nodes[node].shards().into()) as u16
        };
        let conn = self.conn(asker, node, shard);
        let floor = self.ledger.history.floor(group);
        self.floors.entry((asker, id)).or_insert(floor);
        let mut bytes = BytesMut::new();
        encode_request(&Request { id, body }, &mut bytes);
        let delay = Duration::from_micros(20 + self.prng.below(self.options.network_us));
        self.schedule(delay, Event::Request(conn, super::unframe(&bytes)));
    }

    fn conn(&mut self, asker: Asker, node: usize, shard: u16) -> ConnId {
        let open = self
            .conns
            .iter()
            .find(|(_, conn)| (conn.asker, conn.node, conn.shard) == (asker, node, shard));
        if let Some((conn, _)) = open {
            return *conn;
        }
        self.next_conn += 1;
        let number = ConnId(self.next_conn);
        let conn = Conn { asker, node, shard };
        self.conns.insert(number, conn);
        number
    }

    /// A request reaches its node, if its connection is still there.
    pub(super) fn receive(&mut self, conn: ConnId, body: &Bytes) {
        let Some(Conn { node, shard, .. }) = self.conns.get(&conn).copied() else {
            return;
        };
        let received = receive_request(body).expect("a request is decoded as it was sent");
        let Received { request, payload } = received;
        self.note_heard(node, &request.body);
        let from = origin(shard, conn);
        let input = Input::ClientRequest {
            from,
            request,
            payload,
        };
        self.tell(node, shard, input);
    }

    /// A node hears of the sessions of a request.
    fn note_heard(&mut self, node: usize, body: &RequestBody) {
        match body {
            RequestBody::Heartbeat { sessions, .. } => {
                for (group, session) in sessions {
                    self.judges.heard(node, *group, *session, self.now);
                }
            }
            RequestBody::Command { group, command, .. } => {
                if let Some(call) = &command.session {
                    self.judges.heard(node, *group, call.id, self.now);
                }
            }
            _ => {}
        }
    }

    /// A connection of a client ends.
    pub(super) fn close(&mut self, number: ConnId) {
        let Some(conn) = self.conns.remove(&number) else {
            return;
        };
        if self.nodes[conn.node].runs() {
            let from = origin(conn.shard, number);
            self.tell(conn.node, conn.shard, Input::ClientClosed { from });
        }
    }

    pub(super) fn close_all_of(&mut self, asker: Asker) {
        let of = self.conns.iter().filter(|(_, conn)| conn.asker == asker);
        let numbers: Vec<_> = of.map(|(number, _)| *number).collect();
        numbers.into_iter().for_each(|number| self.close(number));
    }

    /// An answer, through the real codec.
    pub(super) fn on_reply(&mut self, to: Origin, reply: &Reply) {
        let mut bytes = BytesMut::new();
        encode_reply(reply, &mut bytes);
        self.note(u64::from(crc32c(&[&bytes[..]])));
        let decoded = decode_reply(&super::unframe(&bytes));
        let decoded = decoded.expect("a reply is decoded as it was sent");
        assert_eq!(&decoded, reply, "a reply changed on its way");
        let Some(conn) = self.conns.get(&to.conn).copied() else {
            return;
        };
        self.report.answers += 1;
        let asker = conn.asker;
        if matches!(asker, Asker::Library(_)) {
            return self.answer_socket(to.conn, decoded);
        }
        let refusal = match &decoded.body {
            ReplyBody::Error(error) => Some((error.code, error.leader.clone())),
            _ => None,
        };
        let id = decoded.id;
        if let Some(stamp) = decoded.stamp
            && let Some(floor) = self.floors.remove(&(asker, id))
        {
            let history = &mut self.ledger.history;
            history.answered(stamp.group, stamp.index, floor);
        }
        match asker {
            Asker::Library(_) => unreachable!("handled above"),
            Asker::Client(client) => {
                let asked = self.clients[client].request(id);
                let group = asked.map(|body| self.target(&body));
                self.clients[client].on_reply(decoded, &mut self.ledger);
                if let (Some((code, leader)), Some(group)) = (refusal, group) {
                    self.refused(asker, group, code, leader.as_deref());
                    self.ask_again(asker, id);
                } else if let Some(group) = group {
                    self.leaders.insert((asker, group), conn.node);
                }
            }
            Asker::Operator => {
                let asked = self.operator.resend().filter(|(asked, _)| *asked == id);
                let group = asked.map(|(_, body)| self.target(&body));
                self.operator.on_reply(&decoded);
                if let (Some((code, leader)), Some(group)) = (&refusal, group) {
                    self.refused(asker, group, *code, leader.as_deref());
                } else if let Some(group) = group {
                    self.leaders.insert((asker, group), conn.node);
                }
            }
            Asker::Members => match refusal {
                Some((code, leader)) => {
                    self.refused(asker, CLUSTER_GROUP, code, leader.as_deref());
                }
                None => self.was_added(),
            },
            Asker::Probe => {
                if let ReplyBody::Outcome(Outcome::SessionOpened { .. }) = decoded.body {
                    self.probed.insert(GroupId((id - 1) as u16));
                }
            }
        }
    }

    fn refused(&mut self, asker: Asker, group: GroupId, code: Code, leader: Option<&str>) {
        if !matches!(code, Code::NotLeader | Code::GroupHalted) {
            return;
        }
        match leader.and_then(listener_of) {
            Some((node, _)) => drop(self.leaders.insert((asker, group), node)),
            None => drop(self.leaders.remove(&(asker, group))),
        }
    }

    /// Later, and later still the more often it was asked.
    fn ask_again(&mut self, asker: Asker, id: u64) {
        if let Asker::Client(client) = asker {
            let sent = self.clients[client].times_sent(id);
            let pause = 2_000 + self.prng.below(50_000);
            let pause = Duration::from_micros(pause << sent.min(5));
            self.schedule(pause, Event::AskAgain(client, id));
        }
    }

    pub(super) fn on_ask_again(&mut self, client: usize, id: u64) {
        if let Some(body) = self.clients[client].resend_one(id) {
            self.ask(Asker::Client(client), id, body);
        }
    }

    pub(super) fn client_acts(&mut self, client: usize) {
        let asker = Asker::Client(client);
        if self.prng.chance(1, 100) {
            self.close_all_of(asker);
        }
        let mut requests = Vec::new();
        if self.prng.chance(1, 20) {
            // What is silent may be gone.
            self.leaders.retain(|(of, _), _| *of != asker);
            requests = self.clients[client].resend();
        }
        let new = self.clients[client].act(&mut self.prng, &mut self.ledger, self.produces);
        requests.extend(new);
        for (id, body) in requests {
            self.ask(asker, id, body);
        }
        let pause = Duration::from_micros(1 + self.prng.below(self.options.think_us));
        self.schedule(pause, Event::ClientActs(client));
    }

    /// Whoever makes and changes queues goes on, or asks once more.
    pub(super) fn operator_acts(&mut self) {
        let asker = Asker::Operator;
        let begins = self.produces;
        if self.prng.chance(1, 20) {
            self.leaders.retain(|(of, _), _| *of != asker);
            if let Some((id, body)) = self.operator.resend() {
                self.ask(asker, id, body);
            }
        }
        let groups = self.options.groups;
        let home = |name: &str| home_group(name, groups);
        if let Some((id, body)) = self.operator.act(&mut self.prng, home, begins) {
            self.ask(asker, id, body);
        }
        let pause = Duration::from_micros(1 + self.prng.below(self.options.think_us));
        self.schedule(pause, Event::OperatorActs);
    }

    /// Asks these nodes for an entry in every group that was not seen to make one.
    pub(super) fn probe(&mut self, core: &[usize]) {
        for group in (0..self.options.groups).map(|group| GroupId(group as u16)) {
            if self.probed.contains(&group) {
                continue;
            }
            let node = core[self.prng.below(core.len() as u64) as usize];
            self.leaders.insert((Asker::Probe, group), node);
            let op = Op::OpenSession {
                worker_timeout_ms: 0,
            };
            let body = RequestBody::Command {
                group,
                command: Command { session: None, op },
                wait_ms: 0,
            };
            self.ask(Asker::Probe, u64::from(group.0) + 1, body);
        }
    }
}

fn origin(shard: u16, conn: ConnId) -> Origin {
    Origin {
        shard: ShardId(shard),
        conn,
    }
}
