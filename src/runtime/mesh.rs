//! What reaches a shard from other threads, and what it sends to other shards.
//!
//! Each shard has one [`Mailbox`]. A shared channel of glommio would keep a waker for every time
//! that it is looked at in vain, and a task can hold 32,767; this one keeps a single waker, in the
//! task that the poker knows, and can be emptied on every turn.
//!
//! Requests are bounded: with `FORWARDED_MAX` letters waiting, the sender answers `Busy` itself.
//! Replies are not refused, since each answers a request that was let in.

use crate::base::code::Code;
use crate::base::ids::{ShardId, Voter};
use crate::base::members::ClusterMembers;
use crate::runtime::listener::Admission;
use crate::runtime::peers::connector::Linked;
use crate::runtime::poker::Mailbox;
use crate::runtime::recover::Remains;
use crate::runtime::space::Level;
use crate::shard::input::{Input, Loss, Origin};
use crate::shard::sparing::VoterSets;
use crate::shard::wall::VotersClock;
use crate::wire::message::{ErrorReply, NodeAddresses, Reply, ReplyBody, Request};
use bytes::Bytes;
use std::net::TcpListener;
use std::sync::Arc;

/// Letters in a mailbox beyond which requests are refused.
const FORWARDED_MAX: usize = 4096;

/// What a shard is told by other threads.
#[derive(Debug)]
pub enum Letter {
    /// What it left was read.
    Recovered(Box<Remains>),
    /// Where clients come in, and what they are told of it.
    Door(Box<Door>),
    /// The segment that will be asked for first was made.
    SegmentAhead(u64),
    /// A segment was made.
    SegmentMade(u64),
    /// Something that the engine waits for happened.
    Happened(Input),
    /// The room on the disk changed.
    Space(Level),
    /// The process shall stop.
    Stop,
    /// Another shard's client asks something.
    Request(Origin, Request),
    /// Another shard answers a client of this one.
    Reply(Origin, Reply),
    /// A client of another shard is gone.
    Closed(Origin),
    /// A connection to another node stands. For shard 0.
    Linked(Box<Linked>),
    /// Frames for another node. For shard 0.
    ToPeer(Voter, Bytes),
}

/// Where the clients of a shard come in.
#[derive(Debug)]
pub struct Door {
    /// The bound socket.
    pub listener: TcpListener,
    /// Who may come in.
    pub admission: Admission,
    /// The addresses of all shards of this node.
    pub node: NodeAddresses,
}

/// All mailboxes of the node, as one shard sees them.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// Whose mesh it is.
    pub me: ShardId,
    /// In the order of the shards.
    pub boxes: Arc<[Mailbox<Letter>]>,
}

impl Mesh {
    /// This shard's own mailbox.
    #[must_use]
    pub fn mine(&self) -> &Mailbox<Letter> {
        self.of(self.me)
    }

    /// Hands a request over; the reply to give instead, if too many wait there.
    #[must_use]
    pub fn forward(&self, to: ShardId, from: Origin, request: Request) -> Option<Reply> {
        match self
            .of(to)
            .try_send(Letter::Request(from, request), FORWARDED_MAX)
        {
            Err(Letter::Request(_, request)) => {
                let text = "too many requests wait for that shard";
                Some(error_reply(request.id, Code::Busy, text))
            }
            _ => None,
        }
    }

    /// Sends an answer to the shard that holds the connection.
    pub fn reply(&self, to: Origin, reply: Reply) {
        self.of(to.shard).send(Letter::Reply(to, reply));
    }

    /// Tells a shard that a connection is gone.
    pub fn closed(&self, to: ShardId, from: Origin) {
        self.of(to).send(Letter::Closed(from));
    }

    /// Tells the engine of a shard what happened.
    pub fn happened(&self, to: ShardId, input: Input) {
        self.of(to).send(Letter::Happened(input));
    }

    /// Tells the engines of all shards what became of another node.
    pub fn peer_lost(&self, peer: Voter, loss: Loss) {
        for mailbox in self.boxes.iter() {
            mailbox.send(Letter::Happened(Input::PeerLost { peer, loss }));
        }
    }

    /// The first shard is told that a node which was lost has been heard here.
    pub fn peer_heard(&self, peer: Voter) {
        self.of(ShardId(0))
            .send(Letter::Happened(Input::PeerHeard { peer }));
    }

    /// Every shard is told that another node hands over whatever it leads, or does so no more.
    pub fn peer_drains(&self, peer: Voter, on: bool) {
        for mailbox in self.boxes.iter() {
            mailbox.send(Letter::Happened(Input::PeerDrains { peer, on }));
        }
    }

    /// Every shard is told what the voters' clocks say.
    pub fn voters_clock(&self, clock: VotersClock) {
        for mailbox in self.boxes.iter() {
            mailbox.send(Letter::Happened(Input::VotersClock(clock)));
        }
    }

    /// Every other shard is told who belongs to the cluster.
    pub fn cluster_members(&self, members: &ClusterMembers) {
        let others = (0..).map(ShardId).zip(self.boxes.iter());
        for (_, mailbox) in others.filter(|(shard, _)| *shard != self.me) {
            let members = Input::ClusterMembers(members.clone());
            mailbox.send(Letter::Happened(members));
        }
    }

    /// Shard 0 is told who votes in the groups of this one.
    pub fn voter_sets(&self, sets: VoterSets) {
        let shard = self.me;
        let told = Input::VoterSets { shard, sets };
        self.of(ShardId(0)).send(Letter::Happened(told));
    }

    /// Has shard 0 send frames to another node.
    pub fn to_peer(&self, to: Voter, frames: Bytes) {
        self.of(ShardId(0)).send(Letter::ToPeer(to, frames));
    }

    fn of(&self, shard: ShardId) -> &Mailbox<Letter> {
        &self.boxes[usize::from(shard.0)]
    }
}

/// A refusal that the runtime makes itself: the request was never let in.
#[must_use]
pub fn error_reply(id: u64, code: Code, message: impl Into<String>) -> Reply {
    let error = ErrorReply {
        code,
        message: message.into(),
        leader: None,
        maybe_applied: false,
    };
    Reply {
        id,
        stamp: None,
        body: ReplyBody::Error(error),
    }
}
