//! The client over real sockets against a scripted server: answers come late, or never.
#![cfg(feature = "client")]

mod error_kit;

use bytes::BytesMut;
use rrq::base::code::Code;
use rrq::base::ids::{ClusterId, GroupId, JobId, NodeId, Partition, QueueUid, SessionId};
use rrq::base::limits::FRAME_BYTES_MAX;
use rrq::client::{Client, NewJob, Options};
use rrq::wire::client::{decode_client_hello, decode_request, encode_reply, encode_server_hello};
use rrq::wire::frame::{Frame, FrameDecoder, FrameKind};
use rrq::wire::message::{
    ErrorReply, NodeAddresses, Reply, ReplyBody, Request, RequestBody, ServerHello, ShardStatus,
};
use rrq::wire::{Enqueued, Op, Outcome, QueueInfo, QueueSettings, QueueStats, SessionCall};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const GROUP: GroupId = GroupId(0);

struct Server {
    listener: TcpListener,
    address: String,
}

struct Peer {
    stream: TcpStream,
    decoder: FrameDecoder,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        Self { listener, address }
    }

    /// The next client, with the hellos done.
    async fn accept(&self) -> Peer {
        let (stream, _) = self.listener.accept().await.expect("a client");
        let mut peer = Peer {
            stream,
            decoder: FrameDecoder::default(),
        };
        let hello = peer.frame().await.expect("a hello");
        assert_eq!(hello.kind, FrameKind::ClientHello);
        decode_client_hello(&hello.body).expect("a sound hello");
        peer.decoder.set_body_bytes_max(FRAME_BYTES_MAX);
        let node = NodeId(1);
        let addresses = vec![self.address.clone()];
        let hello = ServerHello {
            protocol: 1,
            version: "scripted".to_owned(),
            cluster: ClusterId([9; 16]),
            node,
            shard: 0,
            groups: 1,
            payload_bytes_max: 1 << 20,
            nodes: vec![NodeAddresses { node, addresses }],
        };
        let mut out = BytesMut::new();
        encode_server_hello(&hello, &mut out);
        peer.stream.write_all(&out).await.expect("sent");
        peer
    }
}

impl Peer {
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next().expect("sound frames") {
                return Some(frame);
            }
            if self.stream.read_buf(self.decoder.buffer_mut()).await.ok()? == 0 {
                return None;
            }
        }
    }

    async fn request(&mut self) -> Option<Request> {
        let frame = self.frame().await?;
        Some(decode_request(&frame.body).expect("a sound request"))
    }

    async fn reply(&mut self, id: u64, body: ReplyBody) {
        let mut out = BytesMut::new();
        encode_reply(
            &Reply {
                id,
                stamp: None,
                body,
            },
            &mut out,
        );
        self.stream.write_all(&out).await.expect("sent");
    }

    /// Answers all requests up to an enqueue, which is returned unanswered.
    async fn serve_to_enqueue(&mut self) -> Option<(u64, SessionCall, usize)> {
        loop {
            let request = self.request().await?;
            let body = match &request.body {
                RequestBody::Status => ReplyBody::Status(ShardStatus::default()),
                RequestBody::GetQueue { name, create: true } => {
                    ReplyBody::Queues(vec![(info(name), QueueStats::default())])
                }
                RequestBody::Command { command, .. } => match &command.op {
                    Op::OpenSession { .. } => {
                        let session = SessionId(5);
                        ReplyBody::Outcome(Outcome::SessionOpened { session, epoch: 1 })
                    }
                    Op::Enqueue { items, .. } => {
                        let call = command.session.expect("in a session");
                        return Some((request.id, call, items.len()));
                    }
                    other => panic!("unexpected: {other:?}"),
                },
                RequestBody::Heartbeat { .. } => ReplyBody::HeartbeatTaken {
                    unknown: Vec::new(),
                },
                RequestBody::Bye => ReplyBody::Outcome(Outcome::Done),
                other => panic!("unexpected: {other:?}"),
            };
            self.reply(request.id, body).await;
        }
    }
}

fn uid() -> QueueUid {
    QueueUid::new(GROUP, 1).expect("in range")
}

fn info(name: &str) -> QueueInfo {
    QueueInfo {
        uid: uid(),
        name: name.to_owned(),
        version: 1,
        paused: false,
        draining: false,
        groups: vec![GROUP],
        settings: QueueSettings::default(),
        created: true,
    }
}

fn enqueued(first: u64, count: usize) -> ReplyBody {
    let id = |seq| Enqueued::New(JobId::new(GROUP, uid(), Partition(0), seq));
    let count = count as u64;
    ReplyBody::Outcome(Outcome::Enqueued((first..first + count).map(id).collect()))
}

#[tokio::test]
async fn an_enqueue_whose_answer_is_lost_is_sent_again_under_its_number() {
    let server = Server::start().await;
    let address = server.address.clone();
    let script = tokio::spawn(async move {
        let mut peer = server.accept().await;
        let (_, first, _) = peer.serve_to_enqueue().await.expect("an enqueue");
        drop(peer);
        let mut peer = server.accept().await;
        let (id, again, _) = peer.serve_to_enqueue().await.expect("the enqueue again");
        assert_eq!(first, again);
        peer.reply(id, enqueued(1, 1)).await;
        assert!(
            peer.serve_to_enqueue().await.is_none(),
            "closed after the bye"
        );
    });
    let client = Client::connect(&address).await.expect("connected");
    let queue = client.queue("emails").await.expect("made");
    let job = NewJob {
        payload: "hello".into(),
        ..NewJob::default()
    };
    let done = queue.enqueue(job).await.expect("enqueued");
    assert!(matches!(done, Enqueued::New(id) if id.seq() == 1));
    client.close().await;
    script.await.expect("the script holds");
}

#[tokio::test]
async fn many_calls_are_under_way_at_once() {
    const CALLS: u64 = 500;
    let server = Server::start().await;
    let address = server.address.clone();
    let script = tokio::spawn(async move {
        let mut peer = server.accept().await;
        // Answers nothing until all are there, then backwards.
        let mut open = Vec::new();
        for _ in 0..CALLS {
            open.push(peer.serve_to_enqueue().await.expect("an enqueue"));
        }
        for (id, call, count) in open.into_iter().rev() {
            peer.reply(id, enqueued(call.seq, count)).await;
        }
        peer
    });
    let client = Client::connect(&format!("rrq://{address}"))
        .await
        .expect("connected");
    let queue = client.queue("emails").await.expect("made");
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.enqueue(NewJob::default()).await })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic").expect("enqueued");
    }
    script.await.expect("the script holds");
}

#[tokio::test]
async fn nobody_there_is_told_within_the_deadline() {
    let address = Server::start().await.address;
    let connect_deadline = Duration::from_millis(200);
    let options = Options {
        connect_deadline,
        ..Options::default()
    };
    let error = Client::connect_with(&address, options)
        .await
        .expect_err("refused");
    assert_eq!(error.code(), Code::Unreachable);
    error_kit::compare(&error.to_string());
    assert!(error.message().contains(&address), "{error}");
}

#[tokio::test]
async fn another_protocol_is_told_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let error = ErrorReply {
            code: Code::ProtocolMismatch,
            message: "this node speaks protocol 2 to 3".to_owned(),
            leader: None,
            maybe_applied: false,
        };
        let mut out = BytesMut::new();
        let reply = Reply {
            id: 0,
            stamp: None,
            body: ReplyBody::Error(error),
        };
        encode_reply(&reply, &mut out);
        stream.write_all(&out).await.expect("sent");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let error = Client::connect(&address).await.expect_err("refused");
    assert_eq!(error.code(), Code::ProtocolMismatch);
    error_kit::compare(&error.to_string());
    assert!(error.message().contains("protocol 2 to 3"), "{error}");
    server.await.expect("the script holds");
}
