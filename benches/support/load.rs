//! Clients of a node as `rrq-bench load` has them: queues, producers and consumers with sessions, each
//! request as the node decodes it.
//!
//! What clients ask next depends on what they were told, and telling must not be measured. So a load
//! is rehearsed: a node answers, and every turn is kept. A second node that is asked the same gives
//! the same answers, since the engine is deterministic; that one is measured.

use super::node::{GROUPS, Node};
use bytes::{Bytes, BytesMut};
use rrq::base::ids::{ConnId, GroupId, Partition, QueueUid, SessionId, ShardId, Token};
use rrq::base::limits::FRAME_BYTES_MAX;
use rrq::shard::input::Origin;
use rrq::shard::placement::home_group;
use rrq::wire::client::{Received, encode_request, receive_request};
use rrq::wire::frame::FrameDecoder;
use rrq::wire::message::{Reply, ReplyBody, Request, RequestBody};
use rrq::wire::{AckItem, Command, ItemOutcome, NewJob, Op, Outcome, SessionCall, Window};
use rrq::workload::payload;
use std::collections::VecDeque;

/// Bytes of a payload.
pub(crate) const PAYLOAD_BYTES: usize = 256;
/// Queues, in as many groups.
pub(crate) const QUEUES: usize = 8;
/// Requests of a client under way at once.
const WINDOW: u64 = 64;

/// What is asked in one turn, in order.
pub(crate) type Turn = Vec<(Origin, Received)>;

/// Jobs to be enqueued.
pub(crate) fn new_jobs(first: u64, jobs: u64) -> Vec<NewJob> {
    let job = |number| NewJob {
        payload: payload(number, PAYLOAD_BYTES),
        ..NewJob::default()
    };
    (first..first + jobs).map(job).collect()
}

/// A command of a session, with as many before it not yet answered as its window allows.
pub(crate) fn command(session: SessionId, window: Window, seq: u64, op: Op) -> Command {
    let session = Some(SessionCall {
        id: session,
        seq,
        lowest: seq.saturating_sub(WINDOW - 1).max(1),
        window,
    });
    Command { session, op }
}

/// The request of a command.
pub(crate) fn request(id: u64, group: GroupId, command: Command) -> Request {
    let body = RequestBody::Command {
        group,
        command,
        wait_ms: 0,
    };
    Request { id, body }
}

/// The body of the only frame of `bytes`.
pub(crate) fn unframed(bytes: &[u8]) -> Bytes {
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(FRAME_BYTES_MAX);
    decoder.push(bytes);
    let frame = decoder.next().expect("a frame is decoded as it was sent");
    frame.expect("a whole frame was sent").body
}

/// The request as it arrives.
fn as_sent(request: &Request) -> Received {
    let mut bytes = BytesMut::new();
    encode_request(request, &mut bytes);
    receive_request(&unframed(&bytes)).expect("a request is decoded as it was sent")
}

/// A connection with a session.
struct Client {
    origin: Origin,
    queue: QueueUid,
    session: SessionId,
    next_id: u64,
    next_command: u64,
    next_poll: u64,
}

impl Client {
    fn ask(&mut self, op: Op) -> (Origin, Received) {
        let is_poll = matches!(op, Op::Lease { .. });
        let (window, next) = match is_poll {
            true => (Window::Polls, &mut self.next_poll),
            false => (Window::Commands, &mut self.next_command),
        };
        let command = command(self.session, window, *next, op);
        *next += 1;
        self.next_id += 1;
        let request = request(self.next_id, self.queue.home(), command);
        (self.origin, as_sent(&request))
    }
}

/// A rehearsal.
pub(crate) struct Load {
    node: Node,
    turns: VecDeque<Turn>,
    producers: Vec<Client>,
    consumers: Vec<Client>,
    next_job: u64,
    prelude: usize,
    held: Vec<VecDeque<Token>>,
}

impl Load {
    /// Queues are made, 32 producers and a consumer for each queue are there with their sessions.
    pub(crate) fn new() -> Self {
        let mut load = Self {
            node: Node::new(false),
            turns: VecDeque::new(),
            producers: Vec::new(),
            consumers: Vec::new(),
            next_job: 0,
            prelude: 0,
            held: vec![VecDeque::new(); QUEUES],
        };
        let queues: Vec<QueueUid> = names().map(|name| load.make_queue(name)).collect();
        for number in 0..32 {
            let client = load.connect(number, queues[number % QUEUES]);
            load.producers.push(client);
        }
        for (number, queue) in queues.iter().enumerate() {
            let client = load.connect(32 + number, *queue);
            load.consumers.push(client);
        }
        load
    }

    fn make_queue(&mut self, name: String) -> QueueUid {
        let body = RequestBody::GetQueue { name, create: true };
        let asked = (origin(0), as_sent(&Request { id: 1, body }));
        match &self.take_turn(vec![asked])[..] {
            [
                Reply {
                    body: ReplyBody::Queues(queues),
                    ..
                },
            ] => queues[0].0.uid,
            other => panic!("no queue was made: {other:?}"),
        }
    }

    fn connect(&mut self, number: usize, queue: QueueUid) -> Client {
        let origin = origin(number as u64 + 1);
        let op = Op::OpenSession {
            worker_timeout_ms: 0,
        };
        let session = None;
        let asked = as_sent(&request(1, queue.home(), Command { session, op }));
        let session = match &self.take_turn(vec![(origin, asked)])[..] {
            [
                Reply {
                    body: ReplyBody::Outcome(Outcome::SessionOpened { session, .. }),
                    ..
                },
            ] => *session,
            other => panic!("no session was opened: {other:?}"),
        };
        Client {
            origin,
            queue,
            session,
            next_id: 1,
            next_command: 1,
            next_poll: 1,
        }
    }

    /// Enqueues of so many jobs each, the clients taking turns.
    pub(crate) fn enqueues(&mut self, requests: u64, jobs: u64) -> Turn {
        let mut turn = Turn::new();
        for _ in 0..requests {
            let producer = self.next_job / jobs % self.producers.len() as u64;
            let producer = &mut self.producers[producer as usize];
            turn.push(producer.ask(Op::Enqueue {
                queue: producer.queue,
                partition: Partition(0),
                items: new_jobs(self.next_job, jobs),
            }));
            self.next_job += jobs;
        }
        turn
    }

    /// A lease of so many jobs by the consumer of each queue.
    pub(crate) fn leases(&mut self, max: u32) -> Turn {
        let ask = |consumer: &mut Client| {
            consumer.ask(Op::Lease {
                queue: consumer.queue,
                partition: Partition(0),
                max,
                lease_ms: 0,
                epoch: 1,
            })
        };
        self.consumers.iter_mut().map(ask).collect()
    }

    /// Acks of jobs in hand: of each queue `requests`, with `jobs` each.
    pub(crate) fn acks(&mut self, requests: usize, jobs: usize) -> Turn {
        let mut turn = Turn::new();
        for (consumer, held) in self.consumers.iter_mut().zip(&mut self.held) {
            for _ in 0..requests {
                let item = |token| AckItem {
                    token,
                    result: None,
                };
                let items = held.drain(..jobs).map(item).collect();
                turn.push(consumer.ask(Op::Ack { items }));
            }
        }
        turn
    }

    /// The rehearsed node is asked all this in one turn, and must refuse nothing.
    pub(crate) fn turn(&mut self, turn: Turn) {
        let asked = turn.len();
        let replies = self.take_turn(turn);
        assert_eq!(replies.len(), asked, "a request is answered in its turn");
        for reply in replies {
            match reply.body {
                ReplyBody::Leased(jobs) => jobs.iter().for_each(|job| self.hold(job.token())),
                ReplyBody::Outcome(Outcome::Enqueued(jobs)) => {
                    assert!(jobs.iter().all(|job| job.id().is_some()), "{jobs:?}");
                }
                ReplyBody::Outcome(Outcome::Items(items)) => {
                    let done = |item: &ItemOutcome| *item == ItemOutcome::Done;
                    assert!(items.iter().all(done), "{items:?}");
                }
                other => panic!("not what was asked for: {other:?}"),
            }
        }
    }

    fn hold(&mut self, token: Token) {
        let of_queue = |client: &Client| client.queue == token.job.queue();
        let consumer = self.consumers.iter().position(of_queue);
        self.held[consumer.expect("it has one")].push_back(token);
    }

    fn take_turn(&mut self, turn: Turn) -> Vec<Reply> {
        self.turns.push_back(turn.clone());
        take(&mut self.node, turn);
        let replies = self.node.replies().drain(..);
        replies.map(|(_, reply)| reply).collect()
    }

    /// What was rehearsed so far belongs to no measurement.
    pub(crate) fn begin(&mut self) {
        self.prelude = self.turns.len();
    }

    /// Ends the rehearsal: another node, which has begun. `keeps` decides whether its disk does.
    pub(crate) fn perform(self, keeps: bool) -> Performance {
        let mut performance = Performance {
            node: Node::new(keeps),
            turns: self.turns,
        };
        for _ in 0..self.prelude {
            performance.turn();
        }
        performance
    }
}

/// A node, and what it is asked turn by turn.
pub(crate) struct Performance {
    pub(crate) node: Node,
    turns: VecDeque<Turn>,
}

impl Performance {
    /// The next turn; all requests are answered in it.
    pub(crate) fn turn(&mut self) {
        let turn = self.turns.pop_front().expect("it was rehearsed");
        let asked = turn.len();
        take(&mut self.node, turn);
        assert_eq!(self.node.replies().len(), asked, "all are answered");
        self.node.replies().clear();
    }
}

fn take(node: &mut Node, turn: Turn) {
    for (from, received) in turn {
        node.ask(from, received);
    }
    node.turn();
}

/// A connection to the node.
fn origin(conn: u64) -> Origin {
    Origin {
        shard: ShardId(0),
        conn: ConnId(conn),
    }
}

/// Names of queues whose home groups differ.
fn names() -> impl Iterator<Item = String> {
    let mut homes = Vec::new();
    let names = (0..).map(|number| format!("queue-{number}"));
    let apart = names.filter(move |name| {
        let home = home_group(name, GROUPS);
        let is_new = !homes.contains(&home);
        homes.push(home);
        is_new
    });
    apart.take(QUEUES)
}
