//! One client: bytes to frames to inputs, replies to bytes.
//!
//! One task owns the socket and does everything in one poll: what costs is wake-ups and system
//! calls, so each wake takes one large read and one large write. The read buffer belongs to the
//! shard, not to the connection.
//!
//! Back-pressure: requests not answered and replies not sent are charged to the connection. Beyond
//! [`CONNECTION_BYTES_MAX`] nothing more is read, so the client's own socket fills up.
//!
//! | what happens | what the client sees |
//! | --- | --- |
//! | no hello within 5 s | error 4013, then the end |
//! | a frame that is none | error 4006 or 4007, then the end: nobody knows where the next starts |
//! | a request that makes no sense | an error reply; the connection goes on |
//! | replies are not read for 10 s | the end |
//!
//! Before the end the socket is drained for a second: closing it with bytes unread would send a
//! reset, which can overtake the error that explains it.

use crate::base::code::Code;
use crate::base::limits::{CONNECTION_BYTES_MAX, FRAME_BYTES_MAX};
use crate::base::lookup::Lookup;
use crate::runtime::mesh::error_reply;
use crate::shard::input::{Input, Origin};
use crate::wire::client::{
    PROTOCOL_VERSION, decode_client_hello, decode_request, encode_reply, encode_server_hello,
};
use crate::wire::frame::{Frame, FrameDecoder, FrameKind};
use crate::wire::message::{Reply, ServerHello};
use bytes::{Buf, BytesMut};
use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use glommio::timer::Timer;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// From accept to the end of the hello.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// A client that does not read for so long is cut off.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// How long the last words may take to arrive.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);
/// What a request is charged beside its bytes.
const REQUEST_BYTES: usize = 256;
/// Size of the shard's read buffer.
pub const READ_BYTES: usize = 256 << 10;
/// A reply buffer larger than this is given back once it is sent.
const KEPT_BYTES: usize = 64 << 10;

/// What the driver and the connection's task share.
#[derive(Default)]
pub struct Connection {
    out: RefCell<BytesMut>,
    waker: RefCell<Option<Waker>>,
    under_way: RefCell<Lookup<u64, UnderWay>>,
    charged: Cell<usize>,
}

impl Connection {
    /// Sends a reply with the next write; the request that it answers.
    pub fn reply(&self, reply: &Reply) -> Option<UnderWay> {
        let answered = self.under_way.borrow_mut().remove(&reply.id);
        if let Some(request) = &answered {
            self.charged.set(self.charged.get() - request.bytes);
        }
        encode_reply(reply, &mut self.out.borrow_mut());
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
        answered
    }

    /// Whether every reply was handed to the kernel.
    pub fn is_flushed(&self) -> bool {
        self.out.borrow().is_empty()
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
    fn hello(&self) -> &ServerHello;
    /// Takes an input for the engine.
    fn push(&self, input: Input);
    /// The shard's read buffer.
    fn read_buffer(&self) -> &RefCell<Box<[u8]>>;
}

/// Serves one client until it is gone.
pub async fn serve(
    mut stream: TcpStream,
    origin: Origin,
    connection: &Connection,
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
    };
    poll_fn(|context| session.poll(&mut stream, context)).await;
    if session.phase == Phase::LastWords && stream.shutdown(Shutdown::Write).await.is_ok() {
        let mut timer = Timer::new(LAST_WORDS_WITHIN);
        poll_fn(|context| drain(&mut stream, shard, &mut timer, context)).await;
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
    connection: &'a Connection,
    shard: &'a S,
    decoder: FrameDecoder,
    phase: Phase,
    writing: BytesMut,
    /// When the last bytes came.
    read_at: Instant,
    /// The deadline of the hello, then of a write that does not move.
    timer: Option<Timer>,
}

impl<S: Shard> Session<'_, S> {
    /// Ready when the connection is over.
    fn poll(&mut self, stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<()> {
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
                return Poll::Ready(());
            }
            self.last_words(Code::ConnectionTimeout, "no hello within 5 s".to_owned());
            return self.poll(stream, context);
        }
        if self.phase != Phase::LastWords && self.may_read() {
            // The second read only arms the socket, unless the first one filled the buffer.
            let read = self.read(stream, context).and_then(|first| match first {
                Poll::Ready(()) if self.may_read() => self.read(stream, context),
                other => Ok(other),
            });
            match read {
                Ok(read) if read.is_ready() || !self.connection.is_flushed() => {
                    context.waker().wake_by_ref();
                }
                Ok(_) => {}
                Err(Gone) => return Poll::Ready(()),
            }
        }
        *self.connection.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    fn may_read(&self) -> bool {
        let waiting = self.connection.out.borrow().len() + self.writing.len();
        self.connection.charged.get() + waiting < CONNECTION_BYTES_MAX
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
        let mut buffer = self.shard.read_buffer().borrow_mut();
        match Pin::new(stream).poll_read(context, &mut buffer) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Ok(read)) if read > 0 => self.decoder.push(&buffer[..read]),
            Poll::Ready(_) => return Err(Gone),
        }
        drop(buffer);
        self.read_at = Instant::now();
        while self.phase != Phase::LastWords {
            match self.decoder.next() {
                Ok(Some(frame)) => self.take(&frame),
                Ok(None) => break,
                Err(error) => self.last_words(error.code(), error.to_string()),
            }
        }
        Ok(Poll::Ready(()))
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
        encode_server_hello(self.shard.hello(), &mut self.connection.out.borrow_mut());
        self.decoder.set_body_bytes_max(FRAME_BYTES_MAX);
        self.phase = Phase::Open;
        self.timer = None;
    }

    fn take_request(&mut self, frame: &Frame) {
        let request = match decode_request(&frame.body) {
            Ok(request) => request,
            Err(error) => match error.id {
                Some(id) => {
                    let reply = error_reply(id, error.error.code(), error.to_string());
                    return encode_reply(&reply, &mut self.connection.out.borrow_mut());
                }
                None => return self.last_words(error.error.code(), error.to_string()),
            },
        };
        let under_way = UnderWay {
            bytes: frame.body.len() + REQUEST_BYTES,
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
        self.shard.push(Input::ClientRequest {
            from: self.origin,
            request,
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
