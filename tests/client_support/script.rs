//! A server that answers by a script: what no real one does on demand.

use bytes::BytesMut;
use rrq::base::ids::{ClusterId, GroupId, NodeId, QueueUid, SessionId};
use rrq::base::limits::FRAME_BYTES_MAX;
use rrq::client::{QueueInfo, QueueSettings, QueueStats, ShardStatus};
use rrq::wire::client::{decode_client_hello, decode_request, encode_reply, encode_server_hello};
use rrq::wire::frame::FrameDecoder;
use rrq::wire::message::{NodeAddresses, Reply, ReplyBody, Request, RequestBody, ServerHello};
use rrq::wire::{Op, Outcome};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What the script does with a request.
pub(crate) enum Answer {
    Now(ReplyBody),
    After(Duration, ReplyBody),
    Never,
    /// The connection ends.
    Close,
    /// As every server would: hellos, sessions, heartbeats, the queue.
    Usual,
}

type Script = Arc<Mutex<dyn FnMut(&RequestBody) -> Answer + Send>>;

/// A queue of several partitions, in groups 0, 1, and so on.
pub(crate) fn info(partitions: u8) -> QueueInfo {
    QueueInfo {
        uid: uid(),
        name: "emails".to_owned(),
        version: 1,
        paused: false,
        draining: false,
        groups: (0..partitions).map(|group| GroupId(group.into())).collect(),
        settings: QueueSettings {
            partitions,
            ..QueueSettings::default()
        },
        created: false,
    }
}

pub(crate) fn uid() -> QueueUid {
    QueueUid::new(GroupId(0), 1).expect("in range")
}

/// Starts a server with one queue of so many partitions; its address.
pub(crate) async fn serve(
    partitions: u8,
    script: impl FnMut(&RequestBody) -> Answer + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    accept(listener, vec![address.clone()], 0, partitions, script);
    address
}

/// Starts several nodes that list each other, with one queue of one partition; their addresses. A
/// script is told at which of them, from 0 on, it is asked.
pub(crate) async fn serve_nodes(
    nodes: usize,
    script: impl FnMut(usize, &RequestBody) -> Answer + Send + 'static,
) -> Vec<String> {
    let mut listeners = Vec::new();
    for _ in 0..nodes {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    }
    let address = |of: &TcpListener| of.local_addr().expect("bound").to_string();
    let addresses: Vec<String> = listeners.iter().map(address).collect();
    let script = Arc::new(Mutex::new(script));
    for (at, listener) in listeners.into_iter().enumerate() {
        let script = script.clone();
        let of_one = move |body: &RequestBody| script.lock().expect("no panic")(at, body);
        accept(listener, addresses.clone(), at, 1, of_one);
    }
    addresses
}

fn accept(
    listener: TcpListener,
    addresses: Vec<String>,
    at: usize,
    partitions: u8,
    script: impl FnMut(&RequestBody) -> Answer + Send + 'static,
) {
    let script: Script = Arc::new(Mutex::new(script));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let hello = hello(&addresses, at);
            tokio::spawn(talk(stream, hello, partitions, script.clone()));
        }
    });
}

async fn talk(stream: TcpStream, hello: ServerHello, partitions: u8, script: Script) {
    let (mut reader, mut writer) = stream.into_split();
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(FRAME_BYTES_MAX);
    let (sender, mut replies) = mpsc::unbounded_channel::<Reply>();
    let write = async move {
        let mut out = BytesMut::new();
        encode_server_hello(&hello, &mut out);
        while writer.write_all(&out.split()).await.is_ok() {
            match replies.recv().await {
                Some(reply) => encode_reply(&reply, &mut out),
                None => return,
            }
        }
    };
    let read = async move {
        let mut greeted = false;
        loop {
            let frame = loop {
                match decoder.next().expect("sound frames") {
                    Some(frame) => break frame,
                    None => match reader.read_buf(decoder.buffer_mut()).await {
                        Ok(1..) => {}
                        Ok(0) | Err(_) => return,
                    },
                }
            };
            if !greeted {
                decode_client_hello(&frame.body).expect("a sound hello");
                greeted = true;
                continue;
            }
            let Request { id, body } = decode_request(&frame.body).expect("a sound request");
            let answer = script.lock().expect("no panic")(&body);
            let reply = |body| Reply {
                id,
                stamp: None,
                body,
            };
            match answer {
                Answer::Now(body) => drop(sender.send(reply(body))),
                Answer::Usual => drop(sender.send(reply(usual(&body, partitions)))),
                Answer::Never => {}
                Answer::Close => return,
                Answer::After(wait, body) => {
                    let (sender, reply) = (sender.clone(), reply(body));
                    tokio::spawn(async move {
                        tokio::time::sleep(wait).await;
                        let _ = sender.send(reply);
                    });
                }
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
}

fn node(at: usize) -> NodeId {
    NodeId(u32::try_from(at).expect("few") + 1)
}

fn hello(addresses: &[String], at: usize) -> ServerHello {
    let listed = |(at, address): (usize, &String)| NodeAddresses {
        node: node(at),
        addresses: vec![address.clone()],
    };
    ServerHello {
        protocol: 1,
        version: "scripted".to_owned(),
        cluster: ClusterId([9; 16]),
        node: node(at),
        shard: 0,
        groups: 1,
        payload_bytes_max: 1 << 20,
        nodes: addresses.iter().enumerate().map(listed).collect(),
    }
}

fn usual(request: &RequestBody, partitions: u8) -> ReplyBody {
    match request {
        RequestBody::Status => ReplyBody::Status(ShardStatus::default()),
        RequestBody::GetQueue { .. } | RequestBody::ListQueues { .. } => {
            ReplyBody::Queues(vec![(info(partitions), QueueStats::default())])
        }
        RequestBody::Heartbeat { .. } => ReplyBody::HeartbeatTaken {
            unknown: Vec::new(),
        },
        RequestBody::Bye => ReplyBody::Outcome(Outcome::Done),
        RequestBody::Command { command, .. } => match &command.op {
            Op::OpenSession { .. } => ReplyBody::Outcome(Outcome::SessionOpened {
                session: SessionId(5),
                epoch: 1,
            }),
            Op::Attach { .. } => ReplyBody::Outcome(Outcome::Attached {
                epoch: 2,
                tokens: Vec::new(),
            }),
            other => panic!("not in the script: {other:?}"),
        },
        other => panic!("not in the script: {other:?}"),
    }
}
