//! The network between nodes: one connection a pair and direction, as the driver makes them.
//!
//! A connection carries bytes in order and late, in pieces, until it breaks; then what was under way is
//! lost from some point on. While a way is cut nothing arrives and nothing is lost: it arrives when the
//! cut ends, unless the connection breaks then. Who connects learns of a refusal, and of the end of its
//! own connections only.
//!
//! | what is seen | what the engines are told |
//! | --- | --- |
//! | both hellos fit | `HeardDurable`, `PeerKnown` |
//! | the connection out ends | `Loss::Broken` |
//! | the next attempt is refused, the first time | `Loss::Dead` |
//! | a hello with a higher start number | `Loss::Dead`, of the process before |

use super::node::{Heard, Node};
use super::{Cluster, Event};
use crate::base::limits::PEER_FRAME_BYTES_MAX;
use crate::base::units::{Lsn, Monotonic};
use crate::raft::message::Voter;
use crate::shard::input::{Input, Loss};
use crate::wire::frame::{Frame, FrameDecoder, FrameKind};
use crate::wire::peer::{
    Link, PeerHello, decode_messages, decode_node_beat, decode_peer_hello, encode_peer_hello,
};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::time::Duration;

const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// One way between two nodes.
pub(super) struct Way {
    /// The connection on it; its numbers are never used twice.
    pub(super) conn: Option<(u64, Link)>,
    decoder: FrameDecoder,
    /// Beats sent on the connection.
    pub(super) beats: u64,
    /// How far the logs were durable, says the last of them.
    pub(super) told: Vec<Lsn>,
    /// When the last bytes arrive.
    last: Monotonic,
    pub(super) cut_until: Monotonic,
    held: Vec<(u64, Bytes)>,
    /// The connection ended while nobody could say so.
    ended_unheard: bool,
    retry: Duration,
    is_refused: bool,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            conn: None,
            decoder: FrameDecoder::default(),
            beats: 0,
            told: Vec::new(),
            last: Monotonic(0),
            cut_until: Monotonic(0),
            held: Vec::new(),
            ended_unheard: false,
            retry: RETRY_MIN,
            is_refused: false,
        }
    }
}

impl Cluster<'_> {
    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.ways[self.way_between(from, to)].cut_until > self.now
    }

    /// Where the way from one node to another is in the list.
    pub(super) fn way_between(&self, from: usize, to: usize) -> usize {
        from * self.options.nodes + to
    }

    pub(super) fn way(&mut self, from: usize, to: usize) -> &mut Way {
        let between = self.way_between(from, to);
        &mut self.ways[between]
    }

    /// Sends frames, if there is a connection.
    pub(super) fn send(&mut self, from: usize, to: usize, frames: Bytes) {
        let between = self.way_between(from, to);
        let Some((conn, _)) = self.ways[between].conn else {
            return;
        };
        self.report.messages += 1;
        let cut = self.prng.below(8 * frames.len() as u64) as usize;
        let cut = cut.min(frames.len());
        for piece in [frames.slice(..cut), frames.slice(cut..)] {
            if piece.is_empty() {
                continue;
            }
            let delay = Duration::from_micros(20 + self.prng.below(self.options.network_us));
            let way = &mut self.ways[between];
            let at = self.now.plus(delay).max(way.last);
            way.last = at;
            let after = at.since(self.now);
            self.schedule(after, Event::Arrive(from, to, conn, piece));
        }
    }

    pub(super) fn arrive(&mut self, from: usize, to: usize, conn: u64, bytes: Bytes) {
        let is_cut = self.is_cut(from, to);
        let way = self.way(from, to);
        let Some((_, link)) = way.conn.filter(|(number, _)| *number == conn) else {
            return;
        };
        // What is held comes first.
        if is_cut || !way.held.is_empty() {
            return way.held.push((conn, bytes));
        }
        way.decoder.push(&bytes);
        let mut frames = Vec::new();
        while let Some(frame) = way.decoder.next().expect("a frame is read as it was sent") {
            frames.push(frame);
        }
        for frame in frames {
            self.take(to, &link, &frame);
        }
    }

    fn take(&mut self, to: usize, link: &Link, frame: &Frame) {
        match frame.kind {
            FrameKind::GroupMessages => {
                let messages = decode_messages(&frame.body, link).expect("messages");
                let mut of_shards: BTreeMap<u16, Vec<_>> = BTreeMap::new();
                for message in messages {
                    let message = message.expect("it is sound");
                    let shard = self.nodes[to].shard_of(message.group);
                    of_shards.entry(shard).or_default().push(message);
                }
                for (shard, messages) in of_shards {
                    let refused = 0;
                    self.tell(to, shard, Input::PeerMessages { messages, refused });
                }
            }
            FrameKind::NodeBeat => {
                let beat = decode_node_beat(&frame.body).expect("a beat");
                let durable = &mut self.nodes[to].durable;
                match durable.get_mut(&link.from.node) {
                    Some(known) => known.hear(beat.durable),
                    None => drop(durable.insert(link.from.node, beat.durable)),
                }
                let (peer, on) = (link.from, beat.draining);
                let known = &mut self.nodes[to].draining;
                let is_news = if on {
                    known.insert(peer)
                } else {
                    known.remove(&peer)
                };
                for shard in (0..self.nodes[to].shards()).filter(|_| is_news) {
                    self.tell(to, shard, Input::PeerDrains { peer, on });
                }
                let (from, wall) = (link.from, beat.wall);
                self.tell(to, 0, Input::PeerBeat { from, wall });
            }
            kind => panic!("a {kind:?} between nodes"),
        }
    }

    /// A node that has just started connects to all others.
    pub(super) fn connect_now(&mut self, node: usize) {
        let start = self.nodes[node].start;
        for other in (0..self.options.nodes).filter(|other| *other != node) {
            self.connect(node, start, other);
            self.connect(other, self.nodes[other].start, node);
        }
    }

    /// A node tries to connect to another.
    pub(super) fn connect(&mut self, from: usize, start: u32, to: usize) {
        let is_current = self.nodes[from].runs() && self.nodes[from].start == start;
        if !is_current || self.way(from, to).conn.is_some() {
            return;
        }
        let hangs = self.is_cut(from, to)
            || self.is_cut(to, from)
            || self.nodes[to].paused_until > self.now;
        if hangs {
            return self.schedule(RETRY_MAX, Event::Connect(from, start, to));
        }
        if !self.nodes[to].runs() {
            let way = self.way(from, to);
            let wait = way.retry;
            way.retry = (2 * wait).min(RETRY_MAX);
            if !std::mem::replace(&mut way.is_refused, true) {
                self.tell_lost(from, to, Loss::Dead);
            }
            return self.schedule(wait, Event::Connect(from, start, to));
        }
        self.next_conn += 1;
        let conn = self.next_conn;
        let hello = |node: &Node, to: &Node| hello_of(node, to, self);
        let (ours, theirs) = (&self.nodes[from], &self.nodes[to]);
        let (ours, theirs) = (hello(ours, theirs), hello(theirs, ours));
        let link = Link::from_hellos(&ours, &theirs).expect("they are of one cluster");
        let way = self.way(from, to);
        let (last, cut_until) = (way.last, way.cut_until);
        *way = Way {
            conn: Some((conn, link)),
            last,
            cut_until,
            ..Way::default()
        };
        way.decoder.set_body_bytes_max(PEER_FRAME_BYTES_MAX);
        self.say(|| format!("node {} is connected to {}", from + 1, to + 1));
        self.hear_hello(to, from, &ours);
        self.hear_hello(from, to, &theirs);
    }

    fn hear_hello(&mut self, at: usize, of: usize, hello: &PeerHello) {
        let heard = Heard {
            start: hello.start,
            shards: hello.shards,
        };
        let before = self.nodes[at].heard.insert(hello.node, heard);
        if before.is_some_and(|before| before.start < hello.start) {
            self.tell_lost(at, of, Loss::Dead);
        }
        if !self.nodes[at].runs() {
            return;
        }
        let now = self.nodes[at].durable();
        let heard = hello.heard.iter();
        let heard = heard.filter(|heard| heard.is_of_the_past(now.disk, now.process));
        if let Some(heard) = heard
            .clone()
            .find(|heard| heard.start >= self.nodes[at].number)
        {
            // What it says would be taken for what an earlier process has said: it ends, and the next
            // start is numbered so that it is not.
            self.nodes[at].number = heard.start;
            return self.die(at);
        }
        let shards = self.nodes[at].shards();
        for heard in heard {
            for shard in 0..shards {
                self.tell(at, shard, Input::HeardDurable(heard.clone()));
            }
        }
        for shard in 0..shards {
            self.tell(at, shard, Input::PeerKnown(hello.into()));
        }
    }

    /// All shards of a node are told what became of another.
    pub(super) fn tell_lost(&mut self, at: usize, of: usize, loss: Loss) {
        let node = &self.nodes[of];
        let disks: Vec<Voter> = node.past.iter().chain([&node.me]).copied().collect();
        for peer in disks {
            for shard in 0..self.nodes[at].shards() {
                self.tell(at, shard, Input::PeerLost { peer, loss });
            }
        }
    }

    /// The connection of one node to another breaks, by itself or because one of them died.
    pub(super) fn break_off(&mut self, from: usize, to: usize) {
        let is_cut = self.is_cut(to, from);
        let way = self.way(from, to);
        way.held.clear();
        if way.conn.take().is_none() {
            return;
        }
        if is_cut {
            way.ended_unheard = true;
            return;
        }
        self.hear_end(from, to);
    }

    fn hear_end(&mut self, from: usize, to: usize) {
        let start = self.nodes[from].start;
        let delay = Duration::from_micros(20 + self.prng.below(self.options.network_us));
        self.schedule(delay, Event::Broken(from, start, to));
    }

    pub(super) fn on_broken(&mut self, from: usize, start: u32, to: usize) {
        if self.nodes[from].runs() && self.nodes[from].start == start {
            self.tell_lost(from, to, Loss::Broken);
            self.connect(from, start, to);
        }
    }

    /// Nothing passes this way for so long.
    pub(super) fn cut(&mut self, from: usize, to: usize, ms: u64) {
        let until = self.now.plus(Duration::from_millis(ms));
        let way = self.way(from, to);
        way.cut_until = way.cut_until.max(until);
        self.schedule(Duration::from_millis(ms), Event::Healed(from, to));
    }

    /// A cut may be over: what was held arrives, or the connection breaks.
    pub(super) fn heal(&mut self, from: usize, to: usize) {
        if self.is_cut(from, to) {
            return;
        }
        // Who stands still takes nothing; what comes meanwhile waits behind what is held.
        let paused_until = self.nodes[to].paused_until;
        if paused_until > self.now && !self.way(from, to).held.is_empty() {
            return self.schedule(paused_until.since(self.now), Event::Healed(from, to));
        }
        let held = std::mem::take(&mut self.way(from, to).held);
        if self.prng.chance(1, 2) {
            for (conn, bytes) in held {
                self.arrive(from, to, conn, bytes);
            }
        } else {
            self.break_off(from, to);
        }
        if std::mem::take(&mut self.way(to, from).ended_unheard) {
            self.hear_end(to, from);
        }
    }

    /// The process of a node is gone: its connections end.
    pub(super) fn hang_up(&mut self, node: usize) {
        for other in (0..self.options.nodes).filter(|other| *other != node) {
            let way = self.way(node, other);
            (way.conn, way.ended_unheard) = (None, false);
            way.held.clear();
            self.break_off(other, node);
        }
    }

    /// A process that has just started connects to all others.
    pub(super) fn connect_all(&mut self, node: usize) {
        let start = self.nodes[node].start;
        for other in (0..self.options.nodes).filter(|other| *other != node) {
            let way = self.way(node, other);
            (way.retry, way.is_refused) = (RETRY_MIN, false);
            let connect = Event::Connect(node, start, other);
            self.schedule(Duration::from_micros(500), connect);
        }
    }
}

/// A hello through the codec.
fn hello_of(node: &Node, to: &Node, cluster: &Cluster<'_>) -> PeerHello {
    let mut bytes = BytesMut::new();
    encode_peer_hello(&node.hello(to.me.node, &cluster.options), &mut bytes);
    let mut decoder = FrameDecoder::default();
    decoder.push(&bytes);
    let frame = decoder.next().expect("a frame is read as it was sent");
    decode_peer_hello(&frame.expect("it is whole").body).expect("a hello")
}
