//! Connections between nodes, once both have said hello: on shard 0's executor, one task each.

use crate::base::ids::{NodeId, ShardId, Voter};
use crate::base::limits::{PEER_OUTBOX_BYTES_MAX, PEER_SHARDS_MAX};
use crate::base::members::{Member, MemberRole};
use crate::base::units::Lsn;
use crate::runtime::connection::Shard;
use crate::runtime::mesh::Mesh;
use crate::runtime::metrics::NodeMetrics;
use crate::runtime::peers::connector::{Linked, Way};
use crate::runtime::peers::roster::Roster;
use crate::runtime::shard_task::Hub;
use crate::runtime::sys;
use crate::shard::input::Input;
use crate::shard::placement::shard_of;
use crate::wire::frame::{Frame, FrameDecoder, FrameKind};
use crate::wire::peer::{
    Link, Message, NodeBeat, decode_messages, decode_node_beat, encode_messages, encode_node_beat,
};
use bytes::{Buf, BytesMut};
use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const _: () = assert!(PEER_SHARDS_MAX >= 64, "a hello tells of every shard");

/// A connection over which nothing comes through for so long is made anew.
const SILENT_MAX: Duration = Duration::from_secs(5);
/// Read at once.
const READ_BYTES: usize = 256 << 10;
/// A buffer larger than this is given back once it is sent.
const KEPT_BYTES: usize = 1 << 20;

/// The connections of this node to the others.
pub struct Links {
    metrics: Arc<NodeMetrics>,
    me: Voter,
    /// Who votes in the cluster, as far as known.
    voters: RefCell<BTreeSet<Voter>>,
    out: RefCell<BTreeMap<Voter, Rc<Outgoing>>>,
    /// Of each node the one that came last.
    incoming: RefCell<BTreeMap<NodeId, Rc<Incoming>>>,
}

#[derive(Default)]
struct Outgoing {
    outbox: RefCell<BytesMut>,
    /// Bytes that were taken out of it and are not sent yet.
    writing: Cell<usize>,
    waker: RefCell<Option<Waker>>,
    beats: Cell<u64>,
    /// How far the logs were durable, says the last beat.
    told: RefCell<Vec<Lsn>>,
}

impl Outgoing {
    fn waiting(&self) -> usize {
        self.outbox.borrow().len() + self.writing.get()
    }

    /// The beat's number is given here.
    fn beat(&self, beat: NodeBeat) {
        let nr = self.beats.get() + 1;
        self.beats.set(nr);
        let beat = NodeBeat { nr, ..beat };
        encode_node_beat(&beat, &mut self.outbox.borrow_mut());
        *self.told.borrow_mut() = beat.durable.told();
    }
}

#[derive(Default)]
struct Incoming {
    /// Another one came after it.
    is_over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.borrow_mut().take() {
        waker.wake();
    }
}

impl Links {
    /// None yet, of a node of a cluster with these members.
    #[must_use]
    pub fn new(metrics: Arc<NodeMetrics>, me: Voter, members: &[Member]) -> Self {
        let links = Self {
            metrics,
            me,
            voters: RefCell::default(),
            out: RefCell::default(),
            incoming: RefCell::default(),
        };
        links.set_members(members);
        links
    }

    /// The members of the cluster are these now.
    pub fn set_members(&self, members: &[Member]) {
        let voters = members
            .iter()
            .filter(|member| member.role != MemberRole::Learner);
        *self.voters.borrow_mut() = voters.map(|member| member.voter).collect();
        let nodes: BTreeSet<NodeId> = members.iter().map(|member| member.voter.node).collect();
        let others = nodes.iter().filter(|node| **node != self.me.node).count();
        self.metrics.peers.members.store(others as u64, Relaxed);
        self.note_waiting();
    }

    /// Sends frames to a node with this disk, if there is a connection to it and it takes what it gets. A
    /// beat goes before them if a log has grown since the last one: who relies on what they promise knows
    /// how far it was durable, and can tell the next process of this node what it has lost.
    pub fn send(&self, to: Voter, beat: NodeBeat, frames: &[u8]) {
        self.say(to, beat, |outbox| outbox.extend_from_slice(frames));
    }

    /// Sends messages, likewise.
    pub fn send_messages(&self, to: Voter, beat: NodeBeat, messages: &[Message]) {
        self.say(to, beat, |outbox| encode_messages(messages, outbox));
    }

    fn say(&self, to: Voter, beat: NodeBeat, write: impl FnOnce(&mut BytesMut)) {
        self.append(to, |outgoing| {
            if *outgoing.told.borrow() != beat.durable.lsns {
                outgoing.beat(beat);
            }
            write(&mut outgoing.outbox.borrow_mut());
        });
    }

    fn append(&self, to: Voter, write: impl FnOnce(&Outgoing)) {
        let out = self.out.borrow();
        let outgoing = out.get(&to);
        let taken = outgoing.filter(|outgoing| outgoing.waiting() < PEER_OUTBOX_BYTES_MAX);
        let Some(outgoing) = taken else {
            self.metrics.peers.dropped.fetch_add(1, Relaxed);
            return;
        };
        write(outgoing);
        wake(&outgoing.waker);
        drop(out);
        self.note_waiting();
    }

    fn note_waiting(&self) {
        let out = self.out.borrow();
        let waiting: usize = out.values().map(|outgoing| outgoing.waiting()).sum();
        let peers = &self.metrics.peers;
        peers.waiting_bytes.store(waiting as u64, Relaxed);
        peers.connected.store(out.len() as u64, Relaxed);
        let voters = self.voters.borrow();
        let is_here = |voter: &&Voter| **voter == self.me || out.contains_key(voter);
        let here = voters.iter().filter(is_here).count();
        peers.voters.store(voters.len() as u64, Relaxed);
        peers.voters_here.store(here as u64, Relaxed);
    }

    /// Tells a node that this one is there, if there is a connection to it.
    pub fn beat(&self, to: NodeId, beat: NodeBeat) {
        let connected = self
            .out
            .borrow()
            .keys()
            .find(|other| other.node == to)
            .copied();
        if let Some(to) = connected {
            self.append(to, |outgoing| outgoing.beat(beat));
        }
    }

    /// Serves a connection until it ends.
    pub fn open(linked: Linked, shards: u16, hub: Rc<Hub>, mesh: Mesh) {
        let Linked {
            link,
            way,
            stream,
            decoder,
            roster,
            alive,
        } = linked;
        sys::give_up_after(&stream, SILENT_MAX);
        let stream = sys::adopt_stream(stream);
        let task = async move {
            match way {
                Way::Out => hub.links().serve_out(link.to, stream).await,
                Way::In => {
                    let reader = Reader {
                        link,
                        shards,
                        hub: &hub,
                        mesh: &mesh,
                        roster: &roster,
                        decoder,
                        buffer: vec![0; READ_BYTES],
                    };
                    hub.links().serve_in(reader, stream).await;
                }
            }
            tracing::debug!(?link, ?way, "a connection between nodes has ended");
            drop(alive);
        };
        glommio::spawn_local(task).detach();
    }

    async fn serve_out(&self, to: Voter, mut stream: TcpStream) {
        let outgoing = Rc::new(Outgoing::default());
        self.out.borrow_mut().insert(to, outgoing.clone());
        self.note_waiting();
        let mut writing = BytesMut::new();
        poll_fn(|context| {
            *outgoing.waker.borrow_mut() = Some(context.waker().clone());
            let over = write_out(&mut stream, &outgoing.outbox, &mut writing, context);
            outgoing.writing.set(writing.len());
            self.note_waiting();
            over
        })
        .await;
        self.out.borrow_mut().remove(&to);
        self.note_waiting();
    }

    async fn serve_in(&self, mut reader: Reader<'_>, mut stream: TcpStream) {
        let incoming = Rc::new(Incoming::default());
        let from = reader.link.from.node;
        let before = self.incoming.borrow_mut().insert(from, incoming.clone());
        if let Some(before) = before {
            before.is_over.set(true);
            wake(&before.waker);
        }
        // What came with the hello is read first.
        let sound = reader.take_frames();
        if sound.is_ok() {
            poll_fn(|context| {
                *incoming.waker.borrow_mut() = Some(context.waker().clone());
                if incoming.is_over.get() {
                    return Poll::Ready(());
                }
                reader.poll(&mut stream, context)
            })
            .await;
        }
    }
}

/// Ready when the connection is over. The other node says nothing on it: what can be read is its end.
fn write_out(
    stream: &mut TcpStream,
    outbox: &RefCell<BytesMut>,
    writing: &mut BytesMut,
    context: &mut Context<'_>,
) -> Poll<()> {
    loop {
        if writing.is_empty() {
            if writing.capacity() > KEPT_BYTES {
                *writing = BytesMut::new();
            }
            std::mem::swap(writing, &mut outbox.borrow_mut());
            if writing.is_empty() {
                break;
            }
        }
        match Pin::new(&mut *stream).poll_write(context, writing) {
            Poll::Ready(Ok(sent)) if sent > 0 => writing.advance(sent),
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => break,
        }
    }
    let mut none = [0; 1];
    Pin::new(stream).poll_read(context, &mut none).map(drop)
}

/// The frames of one connection.
struct Reader<'a> {
    link: Link,
    shards: u16,
    hub: &'a Hub,
    mesh: &'a Mesh,
    roster: &'a Roster,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
}

/// The connection is over: nobody knows where the next frame starts.
struct Broken;

impl Reader<'_> {
    /// Ready when the connection is over.
    fn poll(&mut self, stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<()> {
        match Pin::new(&mut *stream).poll_read(context, &mut self.buffer) {
            Poll::Ready(Ok(read)) if read > 0 => self.decoder.push(&self.buffer[..read]),
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
        if self.take_frames().is_err() {
            return Poll::Ready(());
        }
        // The other tasks of this executor come first.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn take_frames(&mut self) -> Result<(), Broken> {
        loop {
            match self.decoder.next() {
                Ok(Some(frame)) => self.take(&frame)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.complain(&error);
                    return Err(Broken);
                }
            }
        }
    }

    fn complain(&self, error: &dyn std::fmt::Display) {
        let node = self.link.from.node.0;
        tracing::warn!(node, %error, "a node sent what is no frame; the connection is ended");
    }

    fn take(&self, frame: &Frame) -> Result<(), Broken> {
        match frame.kind {
            FrameKind::GroupMessages => {
                let messages = decode_messages(&frame.body, &self.link);
                let messages = messages.map_err(|error| self.complain(&error));
                self.pass_on(messages.map_err(|()| Broken)?);
                Ok(())
            }
            FrameKind::NodeBeat => match decode_node_beat(&frame.body) {
                Ok(beat) => {
                    let from = self.link.from;
                    let mut known = self.roster.known();
                    known.heard_durable(from.node, beat.durable);
                    let is_news = known.heard_draining(from, beat.draining);
                    drop(known);
                    if is_news {
                        self.mesh.peer_drains(from, beat.draining);
                    }
                    let wall = beat.wall;
                    self.happened(ShardId(0), Input::PeerBeat { from, wall });
                    Ok(())
                }
                Err(error) => {
                    self.complain(&error);
                    Err(Broken)
                }
            },
            kind => {
                self.complain(&format!("a {kind:?} after the hello"));
                Err(Broken)
            }
        }
    }

    /// Each shard gets what is for its groups, in one input.
    fn pass_on<E>(&self, messages: Vec<Result<Message, E>>) {
        let count = messages.len();
        let sound: Vec<Message> = messages.into_iter().flatten().collect();
        let mut refused = (count - sound.len()) as u64;
        if self.shards == 1 {
            let messages = sound;
            let input = Input::PeerMessages { messages, refused };
            return self.happened(ShardId(0), input);
        }
        let mut of_shards: BTreeMap<ShardId, Vec<Message>> = BTreeMap::new();
        for message in sound {
            let shard = shard_of(message.group, self.shards);
            of_shards.entry(shard).or_default().push(message);
        }
        if refused > 0 {
            of_shards.entry(ShardId(0)).or_default();
        }
        for (shard, messages) in of_shards {
            let refused = if shard == ShardId(0) {
                std::mem::take(&mut refused)
            } else {
                0
            };
            self.happened(shard, Input::PeerMessages { messages, refused });
        }
    }

    fn happened(&self, shard: ShardId, input: Input) {
        if shard == self.hub.shard() {
            self.hub.push(input);
        } else {
            self.mesh.happened(shard, input);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::DiskId;
    use crate::base::units::WallTime;
    use crate::wire::frame::encode_frame;
    use crate::wire::peer::Durable;

    fn member(node: u32) -> Voter {
        Voter {
            node: NodeId(node),
            disk: DiskId([node as u8; 16]),
        }
    }

    fn beat(lsns: [u64; 2]) -> NodeBeat {
        NodeBeat {
            nr: 0,
            wall: WallTime(1),
            durable: Durable {
                disk: member(1).disk,
                wal_set: 1,
                lsns: lsns.map(Lsn).to_vec(),
                start: 1,
                process: 1,
            },
            draining: false,
        }
    }

    /// The kinds of the frames that wait, in their order.
    fn taken(outgoing: &Outgoing) -> Vec<FrameKind> {
        let mut decoder = FrameDecoder::default();
        decoder.push(&outgoing.outbox.take());
        std::iter::from_fn(|| decoder.next().expect("frames"))
            .map(|frame| frame.kind)
            .collect()
    }

    #[test]
    fn nobody_hears_a_promise_before_how_far_the_log_was_durable() {
        let metrics = Arc::new(NodeMetrics::new(&[]).expect("metrics"));
        let links = Links::new(metrics, member(1), &[]);
        let outgoing = Rc::new(Outgoing::default());
        links.out.borrow_mut().insert(member(2), outgoing.clone());
        let mut frames = BytesMut::new();
        encode_frame(FrameKind::GroupMessages, &mut frames, |_| ());
        let both = [FrameKind::NodeBeat, FrameKind::GroupMessages];
        links.send(member(2), beat([64, 0]), &frames);
        assert_eq!(taken(&outgoing), both);
        links.send(member(2), beat([64, 0]), &frames);
        assert_eq!(taken(&outgoing), [FrameKind::GroupMessages], "it is known");
        // Any shard's log counts.
        links.send(member(2), beat([64, 128]), &frames);
        assert_eq!(taken(&outgoing), both);
        links.send_messages(member(2), beat([64, 192]), &[]);
        assert_eq!(taken(&outgoing), [FrameKind::NodeBeat]);
        links.beat(NodeId(2), beat([64, 256]));
        links.send(member(2), beat([64, 256]), &frames);
        assert_eq!(taken(&outgoing), both, "the regular beat counts");
        assert_eq!(outgoing.beats.get(), 4);
    }
}
