//! One client: bytes to frames to inputs, replies to bytes.
//!
//! One task owns the socket and does everything in one poll: what costs is wake-ups and system
//! calls, so each wake takes one large read and one large write. The read buffer belongs to the
//! shard, not to the connection.
//!
//! Back-pressure: requests not answered and replies not sent are charged to the connection. Beyond
//! [`CONNECTION_BYTES_MAX`] no more requests are taken and nothing is read, so the client's own socket
//! fills up. All connections of a shard together have a bound too ([`Budget`]). A read whose answer
//! may be large is charged with the largest, so that it is alone on its connection; if the shard has
//! no room for it, it is refused. An answered lease is not: what leases hand out is held anyway.
//!
//! | what happens | what the client sees |
//! | --- | --- |
//! | no hello within 5 s | error 4013, then the end |
//! | in the middle of a frame, no byte for 10 s; or, slower than 256 KiB/s, still no end | the same |
//! | a frame that is none | error 4006 or 4007, then the end: nobody knows where the next starts |
//! | a request that makes no sense | an error reply; the connection goes on |
//! | replies are not read for 10 s | a reset, which also frees what the kernel holds for it |
//!
//! Before the end the socket is drained for a second: closing it with bytes unread would send a
//! reset, which can overtake the error that explains it.

use crate::base::code::Code;
use crate::base::ids::ConnId;
use crate::base::limits::{
    CONNECTION_BYTES_MAX, FRAME_BYTES_MAX, REPLY_JOB_BYTES, REPLY_JOBS_BYTES_MAX,
};
use crate::base::lookup::Lookup;
use crate::runtime::budget::{Budget, Wish};
use crate::runtime::mesh::error_reply;
use crate::runtime::sys;
use crate::shard::input::{Input, Origin};
use crate::wire::client::{
    PROTOCOL_VERSION, Received, decode_client_hello, encode_reply, encode_server_hello,
    receive_request,
};
use crate::wire::frame::{Frame, FrameDecoder, FrameKind};
use crate::wire::message::{Reply, RequestBody, ServerHello};
use bytes::{Buf, BytesMut};
use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use glommio::timer::Timer;
use std::cell::{Cell, Ref, RefCell};
use std::future::{Future, poll_fn};
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// From accept to the end of the hello.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// In the middle of a frame, the next byte comes within this; the whole comes within this, and
const FRAME_WITHIN: Duration = Duration::from_secs(10);
/// a second more for each so many bytes of it.
const FRAME_BYTES_SECOND: usize = 256 << 10;
/// A client that does not read for so long is cut off.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// How long the last words may take to arrive.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);
/// What a request is charged beside its bytes.
const REQUEST_BYTES: usize = 256;
/// What the answer to a question for the shard's state is charged.
const STATUS_BYTES: usize = 16 << 10;
/// Size of the shard's read buffer.
pub const READ_BYTES: usize = 256 << 10;
/// A reply buffer larger than this is given back once it is sent.
const KEPT_BYTES: usize = 64 << 10;

/// What the driver and the connection's task share.
pub struct Connection {
    conn: ConnId,
    budget: Rc<Budget>,
    out: RefCell<BytesMut>,
    waker: RefCell<Option<Waker>>,
    under_way: RefCell<Lookup<u64, UnderWay>>,
    charged: Cell<usize>,
    /// Bytes that the task holds: frames half here, replies half sent.
    with_task: Cell<usize>,
    /// What the budget knows of all this.
    told: Cell<usize>,
    /// Whether it stands in a line of the budget: between two frames, in a frame.
    in_line: [Cell<bool>; 2],
}

impl Connection {
    /// A connection that holds nothing.
    #[must_use]
    pub fn new(conn: ConnId, budget: Rc<Budget>) -> Self {
        Self {
            conn,
            budget,
            out: RefCell::default(),
            waker: RefCell::default(),
            under_way: RefCell::default(),
            charged: Cell::default(),
            with_task: Cell::default(),
            told: Cell::default(),
            in_line: Default::default(),
        }
    }

    /// Sends a reply with the next write; the request that it answers.
    pub fn reply(&self, reply: &Reply) -> Option<UnderWay> {
        let answered = self.under_way.borrow_mut().remove(&reply.id);
        if let Some(request) = &answered {
            self.charged.set(self.charged.get() - request.bytes);
        }
        encode_reply(reply, &mut self.out.borrow_mut());
        self.tell();
        self.wake();
        answered
    }

    /// It is the first of a line of the budget, and leaves it.
    pub fn go_on(&self, in_a_frame: bool) {
        self.in_line[usize::from(in_a_frame)].set(false);
        self.wake();
    }

    /// Whether every reply was handed to the kernel.
    pub fn is_flushed(&self) -> bool {
        self.out.borrow().is_empty()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Charges a request; false if one of this id is under way.
    fn charge(&self, id: u64, request: UnderWay) -> bool {
        let mut under_way = self.under_way.borrow_mut();
        if under_way.contains(&id) {
            return false;
        }
        self.charged.set(self.charged.get() + request.bytes);
        under_way.insert(id, request);
        true
    }

    /// All that it holds.
    fn held(&self) -> usize {
        self.charged.get() + self.out.borrow().len() + self.with_task.get()
    }

    /// Tells the budget what it holds now.
    fn tell(&self) {
        let held = self.held();
        self.budget.change(self.told.replace(held), held);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.budget.change(self.told.get(), 0);
        self.budget.pass_on(self.conn, false);
    }
}

/// A request that is not answered yet.
pub struct UnderWay {
    /// What it is charged.
    bytes: usize,
    /// What it asks.
    pub method: &'static str,
    /// When it was read.
    pub read_at: Instant,
}

/// What a connection's task needs from its shard.
pub trait Shard {
    /// What to answer to a hello.
    fn hello(&self) -> Ref<'_, ServerHello>;
    /// Takes an input for the engine.
    fn push(&self, input: Input);
    /// The shard's read buffer.
    fn read_buffer(&self) -> &RefCell<Box<[u8]>>;
}

/// Serves one client until it is gone.
pub async fn serve(
    mut stream: TcpStream,
    origin: Origin,
    connection: &Rc<Connection>,
    shard: &impl Shard,
) {
    let mut session = Session {
        origin,
        connection,
        shard,
        decoder: FrameDecoder::default(),
        phase: Phase::Hello,
        writing: BytesMut::new(),
        read_at: Instant::now(),
        timer: Some(Timer::new(HELLO_WITHIN)),
        frame_begun: None,
        frame_timer: None,
    };
    poll_fn(|context| session.poll(&mut stream, context)).await;
    if session.phase == Phase::LastWords {
        hear_out(&mut stream, shard, LAST_WORDS_WITHIN).await;
    }
}

/// After the last words: reads and forgets until the client closes, or so long.
pub async fn hear_out(stream: &mut TcpStream, shard: &impl Shard, within: Duration) {
    if stream.shutdown(Shutdown::Write).await.is_ok() {
        let mut timer = Timer::new(within);
        poll_fn(|context| drain(stream, shard, &mut timer, context)).await;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before the hello.
    Hello,
    /// Requests are served.
    Open,
    /// Something was wrong: nothing more is read, what is written is the last.
    LastWords,
}

struct Session<'a, S> {
    origin: Origin,
    connection: &'a Rc<Connection>,
    shard: &'a S,
    decoder: FrameDecoder,
    phase: Phase,
    writing: BytesMut,
    /// When the last bytes came.
    read_at: Instant,
    /// The deadline of the hello, then of a write that does not move.
    timer: Option<Timer>,
    /// Since when the rest of a frame is waited for; not while nothing is read.
    frame_begun: Option<Instant>,
    /// Looks after it, now and then.
    frame_timer: Option<Timer>,
}

impl<S: Shard> Session<'_, S> {
    /// Ready when the connection is over.
    fn poll(&mut self, stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<()> {
        let over = self.turn(stream, context);
        self.tell();
        let in_a_frame = self.decoder.missing() > 0 && self.may_take();
        self.connection.budget.pass_on(self.origin.conn, in_a_frame);
        over
    }

    fn turn(&mut self, stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<()> {
        let written_out = match self.write(stream, context) {
            Ok(written_out) => written_out,
            Err(Gone) => return Poll::Ready(()),
        };
        if self.phase == Phase::LastWords && written_out {
            return Poll::Ready(());
        }
        let expired = |timer: &mut Timer| Pin::new(timer).poll(context).is_ready();
        if self.timer.as_mut().is_some_and(expired) {
            self.timer = None;
            if self.phase != Phase::Hello {
                sys::reset_on_close(stream);
                return Poll::Ready(());
            }
            self.last_words(Code::ConnectionTimeout, "no hello within 5 s".to_owned());
            return self.turn(stream, context);
        }
        // What was held back may go on now.
        self.take_frames();
        // The second read only arms the socket, unless the first one filled the buffer.
        let read = self.read(stream, context).and_then(|first| match first {
            Poll::Ready(()) => self.read(stream, context),
            Poll::Pending => Ok(first),
        });
        match read {
            Ok(read) if read.is_ready() || !self.connection.is_flushed() => {
                context.waker().wake_by_ref();
            }
            Ok(_) => {}
            Err(Gone) => return Poll::Ready(()),
        }
        if self.frame_is_late(context) {
            return self.turn(stream, context);
        }
        *self.connection.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    /// Whether its own bound lets it take more requests.
    fn may_take(&self) -> bool {
        let waiting = self.connection.out.borrow().len() + self.writing.len();
        self.phase != Phase::LastWords
            && self.connection.charged.get() + waiting < CONNECTION_BYTES_MAX
    }

    /// How much it may read now. If only the others' bytes are in its way, it stands in line.
    fn room(&self) -> usize {
        if !self.may_take() {
            return 0;
        }
        self.tell();
        let (connection, missing) = (self.connection, self.decoder.missing());
        let room = connection.budget.grant(Wish {
            conn: self.origin.conn,
            held: connection.held(),
            missing,
            most: READ_BYTES,
        });
        let in_a_frame = missing > 0;
        if room == 0 && !connection.in_line[usize::from(in_a_frame)].replace(true) {
            connection.budget.wait(connection, in_a_frame);
        }
        room
    }

    fn tell(&self) {
        let with_task = self.decoder.buffered() + self.writing.len();
        self.connection.with_task.set(with_task);
        self.connection.tell();
    }

    /// Whether the client has taken too long over a frame; then that is said.
    fn frame_is_late(&mut self, context: &mut Context<'_>) -> bool {
        let missing = self.decoder.missing();
        // Before the hello another timer runs; held back, the client is not to blame.
        let Some(begun) = self.frame_begun.filter(|_| missing > 0) else {
            return false;
        };
        if self.phase != Phase::Open {
            return false;
        }
        let whole = self.decoder.buffered() + missing;
        let within = FRAME_WITHIN + Duration::from_secs((whole / FRAME_BYTES_SECOND) as u64);
        let due = (begun + within).min(begun.max(self.read_at) + FRAME_WITHIN);
        loop {
            let now = Instant::now();
            // Kept over many frames: setting a timer costs about as much as a turn.
            let timer = self
                .frame_timer
                .get_or_insert_with(|| Timer::new(due.saturating_duration_since(now)));
            if Pin::new(timer).poll(context).is_pending() {
                return false;
            }
            self.frame_timer = None;
            if now >= due {
                let seconds = FRAME_WITHIN.as_secs();
                let text = if now >= begun.max(self.read_at) + FRAME_WITHIN {
                    format!(
                        "no byte came for {seconds} s in the middle of a frame of {whole} bytes"
                    )
                } else {
                    let rate = FRAME_BYTES_SECOND >> 10;
                    format!("a frame of {whole} bytes comes too slowly: below {rate} KiB/s")
                };
                self.last_words(Code::ConnectionTimeout, text);
                return true;
            }
        }
    }

    /// Whether everything is written.
    fn write(&mut self, stream: &mut TcpStream, context: &mut Context<'_>) -> Result<bool, Gone> {
        loop {
            if self.writing.is_empty() {
                if self.writing.capacity() > KEPT_BYTES {
                    self.writing = BytesMut::new();
                }
                std::mem::swap(&mut self.writing, &mut self.connection.out.borrow_mut());
                if self.writing.is_empty() {
                    return Ok(true);
                }
            }
            match Pin::new(&mut *stream).poll_write(context, &self.writing) {
                Poll::Ready(Ok(sent)) if sent > 0 => {
                    self.writing.advance(sent);
                    if self.phase != Phase::Hello {
                        self.timer = None;
                    }
                }
                Poll::Ready(_) => return Err(Gone),
                Poll::Pending => {
                    if self.timer.is_none() {
                        self.timer = Some(Timer::new(WRITE_WITHIN));
                    }
                    return Ok(false);
                }
            }
        }
    }

    /// One read and what is in it. Ready if something was read.
    fn read(
        &mut self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Result<Poll<()>, Gone> {
        let room = self.room();
        if room == 0 {
            self.frame_begun = None;
            return Ok(Poll::Pending);
        }
        let mut buffer = self.shard.read_buffer().borrow_mut();
        let read = Pin::new(stream).poll_read(context, &mut buffer[..room]);
        match read {
            Poll::Pending => {}
            Poll::Ready(Ok(read)) if read > 0 => {
                self.decoder.push(&buffer[..read]);
                drop(buffer);
                self.read_at = Instant::now();
                self.take_frames();
            }
            Poll::Ready(_) => return Err(Gone),
        }
        if self.decoder.missing() > 0 {
            self.frame_begun.get_or_insert_with(Instant::now);
        }
        Ok(read.map(|_| ()))
    }

    /// Takes the frames that are whole, as far as its bound allows.
    fn take_frames(&mut self) {
        while self.may_take() {
            match self.decoder.next() {
                Ok(Some(frame)) => {
                    self.frame_begun = None;
                    self.take(&frame);
                }
                Ok(None) => break,
                Err(error) => self.last_words(error.code(), error.to_string()),
            }
        }
    }

    fn take(&mut self, frame: &Frame) {
        match (self.phase, frame.kind) {
            (Phase::Hello, FrameKind::ClientHello) => self.take_hello(frame),
            (Phase::Open, FrameKind::Request) => self.take_request(frame),
            (phase, kind) => {
                let expected = match phase {
                    Phase::Hello => "the first frame is a hello",
                    Phase::Open | Phase::LastWords => "after the hello come requests",
                };
                self.last_words(Code::BadRequest, format!("{expected}, not a {kind:?}"));
            }
        }
    }

    fn take_hello(&mut self, frame: &Frame) {
        let hello = match decode_client_hello(&frame.body) {
            Ok(hello) => hello,
            Err(error) => return self.last_words(error.code(), error.to_string()),
        };
        if !(hello.protocol_min..=hello.protocol_max).contains(&PROTOCOL_VERSION) {
            let text = format!(
                "the client speaks protocol {} to {}, this node {PROTOCOL_VERSION}",
                hello.protocol_min, hello.protocol_max
            );
            return self.last_words(Code::ProtocolMismatch, text);
        }
        tracing::debug!(agent = %hello.agent, conn = %self.origin.conn, "a client said hello");
        encode_server_hello(&self.shard.hello(), &mut self.connection.out.borrow_mut());
        self.decoder.set_body_bytes_max(FRAME_BYTES_MAX);
        self.phase = Phase::Open;
        self.timer = None;
    }

    fn take_request(&mut self, frame: &Frame) {
        let Received { request, payload } = match receive_request(&frame.body) {
            Ok(received) => received,
            Err(error) => match error.id {
                Some(id) => {
                    let reply = error_reply(id, error.error.code(), error.to_string());
                    return encode_reply(&reply, &mut self.connection.out.borrow_mut());
                }
                None => return self.last_words(error.error.code(), error.to_string()),
            },
        };
        let answer_bytes = answer_bytes(&request.body, &self.shard.hello());
        if answer_bytes > STATUS_BYTES && !self.connection.budget.has_room(answer_bytes) {
            let text = format!(
                "the answer may take {answer_bytes} bytes, and {} of {} are in use on this shard \
                 (limits.in_flight_max)",
                self.connection.budget.used(),
                self.connection.budget.max()
            );
            let reply = error_reply(request.id, Code::Busy, text);
            return encode_reply(&reply, &mut self.connection.out.borrow_mut());
        }
        let under_way = UnderWay {
            bytes: frame.body.len() + REQUEST_BYTES + answer_bytes,
            method: request.body.name(),
            read_at: self.read_at,
        };
        if !self.connection.charge(request.id, under_way) {
            let text = format!(
                "request {} is still under way on this connection",
                request.id
            );
            return self.last_words(Code::BadRequest, text);
        }
        self.connection.tell();
        self.shard.push(Input::ClientRequest {
            from: self.origin,
            request,
            payload,
        });
    }

    fn last_words(&mut self, code: Code, text: String) {
        tracing::debug!(%code, text, conn = %self.origin.conn, "a client is cut off");
        encode_reply(
            &error_reply(0, code, text),
            &mut self.connection.out.borrow_mut(),
        );
        self.phase = Phase::LastWords;
        self.timer = Some(Timer::new(LAST_WORDS_WITHIN));
    }
}

/// What the answer to a read may take; nothing for what changes or waits.
fn answer_bytes(body: &RequestBody, hello: &ServerHello) -> usize {
    match body {
        RequestBody::Peek { .. }
        | RequestBody::ScanJobs { .. }
        | RequestBody::ScanFinished { .. }
        | RequestBody::ListQueues { .. }
        | RequestBody::ListWorkers { .. } => REPLY_JOBS_BYTES_MAX,
        RequestBody::GetJob { .. } | RequestBody::GetJobByKey { .. } => {
            hello.payload_bytes_max as usize + REPLY_JOB_BYTES
        }
        RequestBody::Status => STATUS_BYTES,
        RequestBody::Command { .. }
        | RequestBody::GetQueue { .. }
        | RequestBody::GetPartition { .. }
        | RequestBody::WaitJob { .. }
        | RequestBody::Watch { .. }
        | RequestBody::Heartbeat { .. }
        | RequestBody::ChangeMembers(_)
        | RequestBody::Drain { .. }
        | RequestBody::Bye => 0,
    }
}

/// The client went away, or does not read.
struct Gone;

/// Reads and forgets until the client closes or the timer ends.
fn drain(
    stream: &mut TcpStream,
    shard: &impl Shard,
    timer: &mut Timer,
    context: &mut Context<'_>,
) -> Poll<()> {
    if Pin::new(timer).poll(context).is_ready() {
        return Poll::Ready(());
    }
    let mut buffer = shard.read_buffer().borrow_mut();
    loop {
        match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(read)) if read > 0 => {}
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
    }
}
