//! Drives a [`ClientCore`] over tokio: one lock around it, one task a connection, one for time.
//!
//! A call takes the lock, lets the core decide and encodes what is to be sent into the connection's
//! outbox; its task writes all that has gathered there at once. Replies are decoded outside the
//! lock and handed over in batches. Nothing waits while it holds the lock.

use crate::base::code::Code;
use crate::base::limits::FRAME_BYTES_MAX;
use crate::base::units::Monotonic;
use crate::client::error::Error;
use crate::client::session::{CallId, ClientCore, ConnNo, CoreOptions, Effect, Input, Route};
use crate::wire::client::{
    PROTOCOL_VERSION, decode_reply, decode_server_hello, encode_client_hello, encode_request,
};
use crate::wire::frame::{FrameDecoder, FrameKind};
use crate::wire::message::{ClientHello, Reply, ReplyBody, RequestBody, ServerHello, WorkerInfo};
use bytes::BytesMut;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

/// A connection that is not up after this counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A read asks for at least this much room.
const READ_BYTES: usize = 64 << 10;

type Answer = Result<Reply, Error>;

/// What waits to be written to a connection.
#[derive(Debug, Default)]
struct Outbox {
    bytes: Mutex<BytesMut>,
    filled: Notify,
}

#[derive(Debug)]
struct Connection {
    outbox: Arc<Outbox>,
    task: AbortHandle,
}

#[derive(Debug)]
struct State {
    core: ClientCore,
    effects: Vec<Effect>,
    callers: BTreeMap<CallId, oneshot::Sender<Answer>>,
    connections: BTreeMap<ConnNo, Connection>,
    /// What the task of time sleeps until.
    armed: Option<Monotonic>,
}

/// A core with its sockets. Dropped with its last [`Driver`].
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    started: Instant,
    runtime: Handle,
    agent: String,
    rearm: Notify,
}

/// Owns the tasks: when it goes, they go.
#[derive(Debug)]
pub(super) struct Driver {
    shared: Arc<Shared>,
    time: AbortHandle,
}

/// An answer to come. Dropped before, the call is abandoned.
#[derive(Debug)]
pub(super) struct Awaited {
    shared: Arc<Shared>,
    id: CallId,
    answer: oneshot::Receiver<Answer>,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if self.answer.is_terminated() {
            return;
        }
        self.answer.close();
        let answer = self.answer.try_recv().ok().and_then(Result::ok);
        let id = self.id;
        self.shared.input(Input::Abandoned { id, answer });
    }
}

impl Awaited {
    pub(super) async fn answer(mut self) -> Answer {
        (&mut self.answer)
            .await
            .unwrap_or_else(|_| Err(Error::new(Code::Stopping, "the client is closed")))
    }
}

impl Driver {
    /// Must be called within a tokio runtime.
    pub(super) fn start(addresses: Vec<String>, options: CoreOptions, agent: String) -> Self {
        let seed = std::collections::hash_map::RandomState::new()
            .build_hasher()
            .finish();
        let core = ClientCore::new(addresses, CoreOptions { seed, ..options });
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                core,
                effects: Vec::new(),
                callers: BTreeMap::new(),
                connections: BTreeMap::new(),
                armed: None,
            }),
            started: Instant::now(),
            runtime: Handle::current(),
            agent,
            rearm: Notify::new(),
        });
        let time = tokio::spawn(keep_time(shared.clone())).abort_handle();
        Self { shared, time }
    }

    /// Asks; the answer is awaited apart, so that many can be under way.
    pub(super) fn ask(&self, route: Route, body: RequestBody, patience: Duration) -> Awaited {
        let (sender, answer) = oneshot::channel();
        let mut state = self.shared.lock();
        let id = state.core.take_id();
        state.callers.insert(id, sender);
        let input = Input::Call {
            id,
            route,
            body,
            patience,
        };
        self.shared.input_locked(&mut state, input);
        drop(state);
        Awaited {
            shared: self.shared.clone(),
            id,
            answer,
        }
    }

    /// Says bye; ends when the servers have heard it, or cannot.
    pub(super) fn close(&self) -> Awaited {
        let (sender, answer) = oneshot::channel();
        let mut state = self.shared.lock();
        let id = state.core.take_id();
        state.callers.insert(id, sender);
        self.shared.input_locked(&mut state, Input::Close { id });
        drop(state);
        Awaited {
            shared: self.shared.clone(),
            id,
            answer,
        }
    }

    /// Tells the servers who works here.
    pub(super) fn introduce(&self, worker: WorkerInfo) {
        self.shared.input(Input::Introduced(worker));
    }

    /// The time that the core goes by.
    pub(super) fn now(&self) -> Monotonic {
        self.shared.now()
    }

    /// Reads something of the core.
    pub(super) fn with_core<T>(&self, read: impl FnOnce(&ClientCore) -> T) -> T {
        read(&self.shared.lock().core)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.time.abort();
        for connection in self.shared.lock().connections.values() {
            connection.task.abort();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds the lock")
    }

    fn now(&self) -> Monotonic {
        // Never 0, which the core takes for "at once".
        Monotonic(1).plus(self.started.elapsed())
    }

    fn input(self: &Arc<Self>, input: Input) {
        self.input_locked(&mut self.lock(), input);
    }

    fn input_locked(self: &Arc<Self>, state: &mut State, input: Input) {
        state.core.handle(self.now(), input);
        self.perform(state);
    }

    fn perform(self: &Arc<Self>, state: &mut State) {
        let mut effects = std::mem::take(&mut state.effects);
        loop {
            state.core.drain(&mut effects);
            if effects.is_empty() {
                break;
            }
            for effect in effects.drain(..) {
                self.perform_one(state, effect);
            }
        }
        state.effects = effects;
        let next = state.core.next_deadline();
        if next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed)) {
            state.armed = next;
            self.rearm.notify_one();
        }
    }

    fn perform_one(self: &Arc<Self>, state: &mut State, effect: Effect) {
        match effect {
            Effect::Connect { conn, address } => {
                let outbox = Arc::new(Outbox::default());
                let run = run_connection(self.clone(), conn, address, outbox.clone());
                let task = self.runtime.spawn(run).abort_handle();
                state.connections.insert(conn, Connection { outbox, task });
            }
            Effect::Send { conn, id } => {
                let connection = state.connections.get(&conn);
                if let (Some(connection), Some(request)) = (connection, state.core.request(id)) {
                    encode_request(request, &mut connection.outbox.lock());
                    connection.outbox.filled.notify_one();
                }
            }
            Effect::Disconnect { conn } => {
                if let Some(connection) = state.connections.remove(&conn) {
                    connection.task.abort();
                }
            }
            Effect::Done { id, result } => {
                if let Some(caller) = state.callers.remove(&id)
                    && let Err(Ok(reply)) = caller.send(result)
                {
                    let answer = Some(reply);
                    let input = Input::Abandoned { id, answer };
                    state.core.handle(self.now(), input);
                }
            }
        }
    }

    fn replies(self: &Arc<Self>, conn: ConnNo, replies: &mut Vec<Reply>) {
        let mut state = self.lock();
        let now = self.now();
        for reply in replies.drain(..) {
            state.core.handle(now, Input::Received { conn, reply });
        }
        self.perform(&mut state);
    }

    fn lost(self: &Arc<Self>, conn: ConnNo, error: Error) {
        let mut state = self.lock();
        state.connections.remove(&conn);
        tracing::debug!(conn = conn.0, code = %error.code(), %error, "connection lost");
        self.input_locked(&mut state, Input::Disconnected { conn, error });
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, BytesMut> {
        self.bytes
            .lock()
            .expect("nothing panics while it holds the lock")
    }
}

/// Sleeps until the core's deadline, over and over.
async fn keep_time(shared: Arc<Shared>) {
    loop {
        let armed = shared.lock().armed;
        match armed {
            None => shared.rearm.notified().await,
            Some(at) => {
                let wait = at.since(shared.now());
                tokio::select! {
                    () = shared.rearm.notified() => {}
                    () = tokio::time::sleep(wait) => {
                        let mut state = shared.lock();
                        state.armed = None;
                        shared.input_locked(&mut state, Input::Tick);
                    }
                }
            }
        }
    }
}

async fn run_connection(shared: Arc<Shared>, conn: ConnNo, address: String, outbox: Arc<Outbox>) {
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, open(&address, &shared.agent)).await;
    let (reader, writer, decoder, hello) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return shared.lost(conn, error),
        Err(_) => {
            let words = format!("{address}: no hello within {CONNECT_TIMEOUT:?}");
            return shared.lost(conn, Error::new(Code::Unreachable, words));
        }
    };
    tracing::debug!(
        conn = conn.0,
        address,
        node = hello.node.0,
        shard = hello.shard,
        "connected"
    );
    shared.input(Input::Connected { conn, hello });
    let error = tokio::select! {
        error = read_replies(&shared, conn, reader, decoder, &address) => error,
        error = write_requests(writer, &outbox, &address) => error,
    };
    shared.lost(conn, error);
}

type Opened = (OwnedReadHalf, OwnedWriteHalf, FrameDecoder, ServerHello);

fn unreachable(address: &str, error: &std::io::Error) -> Error {
    Error::new(Code::Unreachable, format!("{address}: {error}"))
}

fn garbled(address: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(
        Code::BadFrame,
        format!("{address} does not speak rrq's protocol: {error}"),
    )
}

async fn open(address: &str, agent: &str) -> Result<Opened, Error> {
    let failed = |error: std::io::Error| unreachable(address, &error);
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (mut reader, mut writer) = stream.into_split();
    let mut hello = BytesMut::new();
    let ours = ClientHello {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        agent: agent.to_owned(),
    };
    encode_client_hello(&ours, &mut hello);
    writer.write_all(&hello).await.map_err(failed)?;
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(FRAME_BYTES_MAX);
    let frame = loop {
        if let Some(frame) = decoder.next().map_err(|error| garbled(address, &error))? {
            break frame;
        }
        if reader
            .read_buf(decoder.buffer_mut())
            .await
            .map_err(failed)?
            == 0
        {
            let words = format!("{address}: closed before its hello");
            return Err(Error::new(Code::Unreachable, words));
        }
    };
    match frame.kind {
        FrameKind::ServerHello => {
            let hello = decode_server_hello(&frame.body).map_err(|e| garbled(address, &e))?;
            Ok((reader, writer, decoder, hello))
        }
        FrameKind::Reply => {
            let reply = decode_reply(&frame.body).map_err(|e| garbled(address, &e))?;
            Err(farewell(address, &reply))
        }
        FrameKind::ClientHello | FrameKind::Request => {
            Err(garbled(address, &"it sent a client's frame"))
        }
        FrameKind::PeerHello
        | FrameKind::NodeBeat
        | FrameKind::GroupMessages
        | FrameKind::Formation => Err(garbled(address, &"it spoke as to another node")),
    }
}

/// What a reply without a request says: why the server ends the connection.
fn farewell(address: &str, reply: &Reply) -> Error {
    match &reply.body {
        ReplyBody::Error(error) => Error::new(error.code, format!("{address}: {}", error.message)),
        _ => garbled(address, &"a reply that nobody asked for"),
    }
}

async fn read_replies(
    shared: &Arc<Shared>,
    conn: ConnNo,
    mut reader: OwnedReadHalf,
    mut decoder: FrameDecoder,
    address: &str,
) -> Error {
    let mut replies = Vec::new();
    loop {
        loop {
            let frame = match decoder.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return garbled(address, &error),
            };
            if frame.kind != FrameKind::Reply {
                return garbled(address, &"another frame where a reply was due");
            }
            match decode_reply(&frame.body) {
                Ok(reply) if reply.id == 0 => return farewell(address, &reply),
                Ok(reply) => replies.push(reply),
                Err(error) => return garbled(address, &error),
            }
        }
        if !replies.is_empty() {
            shared.replies(conn, &mut replies);
        }
        decoder.buffer_mut().reserve(READ_BYTES);
        match reader.read_buf(decoder.buffer_mut()).await {
            Ok(0) => {
                let words = format!("{address}: the server closed the connection");
                return Error::new(Code::Unreachable, words);
            }
            Ok(_) => {}
            Err(error) => return unreachable(address, &error),
        }
    }
}

async fn write_requests(mut writer: OwnedWriteHalf, outbox: &Outbox, address: &str) -> Error {
    loop {
        outbox.filled.notified().await;
        loop {
            let bytes = outbox.lock().split();
            if bytes.is_empty() {
                break;
            }
            if let Err(error) = writer.write_all(&bytes).await {
                return unreachable(address, &error);
            }
        }
    }
}
