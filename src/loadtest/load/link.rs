//! One connection of the load to one shard: frames, and a session of its own.
//!
//! It is leaner than the client library, which shares the cores with the node that is measured: no
//! tasks, no channels, and no reconnecting, since a node that goes away ends the measurement.

use crate::base::code::Code;
use crate::base::ids::{GroupId, SessionId};
use crate::base::limits::FRAME_BYTES_MAX;
use crate::base::report::Report;
use crate::wire::client::{PROTOCOL_VERSION, decode_reply, encode_client_hello, encode_request};
use crate::wire::frame::{FrameDecoder, FrameKind};
use crate::wire::message::{ClientHello, Reply, ReplyBody, Request, RequestBody};
use crate::wire::{Command, Op, Outcome, SessionCall, Window};
use bytes::BytesMut;
use std::io::ErrorKind;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// A connection with an open session.
pub(super) struct Link {
    stream: TcpStream,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    out: BytesMut,
    group: GroupId,
    session: SessionId,
    epoch: u32,
    next_id: u64,
}

impl Link {
    /// Connects to a shard and opens a session in one of its groups.
    ///
    /// # Errors
    /// If the shard does not let us.
    pub(super) async fn open(address: &str, group: GroupId) -> Result<Self, Report> {
        let stream = TcpStream::connect(address).await;
        let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        let stream = stream.map_err(|error| lost(address, &error.to_string()))?;
        let mut decoder = FrameDecoder::default();
        decoder.set_body_bytes_max(FRAME_BYTES_MAX);
        let mut link = Self {
            stream,
            decoder,
            buffer: vec![0; READ_BYTES],
            out: BytesMut::new(),
            group,
            session: SessionId(0),
            epoch: 0,
            next_id: 1,
        };
        let hello = ClientHello {
            protocol_min: PROTOCOL_VERSION,
            protocol_max: PROTOCOL_VERSION,
            agent: concat!("rrq-bench/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        encode_client_hello(&hello, &mut link.out);
        while link.frame(FrameKind::ServerHello)?.is_none() {
            link.ready().await?;
        }
        let worker_timeout_ms = 0;
        link.ask(Op::OpenSession { worker_timeout_ms }, None, 0);
        loop {
            match link.reply()?.map(|reply| reply.body) {
                Some(ReplyBody::Outcome(Outcome::SessionOpened { session, epoch })) => {
                    (link.session, link.epoch) = (session, epoch);
                    return Ok(link);
                }
                Some(other) => return Err(refused(&other)),
                None => link.ready().await?,
            }
        }
    }

    /// The epoch of its session, which leases name.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Asks a numbered command; it goes out with the next [`Self::flush`].
    pub(super) fn command(&mut self, op: Op, seq: u64, lowest: u64, wait_ms: u32) -> u64 {
        let window = match op {
            Op::Lease { .. } => Window::Polls,
            _ => Window::Commands,
        };
        let call = SessionCall {
            id: self.session,
            seq,
            lowest,
            window,
        };
        self.ask(op, Some(call), wait_ms)
    }

    fn ask(&mut self, op: Op, session: Option<SessionCall>, wait_ms: u32) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let body = RequestBody::Command {
            group: self.group,
            command: Command { session, op },
            wait_ms,
        };
        encode_request(&Request { id, body }, &mut self.out);
        id
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(super) fn flush(&mut self) -> Result<(), Report> {
        while !self.out.is_empty() {
            match self.stream.try_write(&self.out) {
                Ok(count) => bytes::Buf::advance(&mut self.out, count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(self.lost(&error.to_string())),
            }
        }
        Ok(())
    }

    /// Waits until there is something to read, having written all that can be; then reads it.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(super) async fn ready(&mut self) -> Result<(), Report> {
        loop {
            self.flush()?;
            let interest = match self.out.is_empty() {
                true => Interest::READABLE,
                false => Interest::READABLE | Interest::WRITABLE,
            };
            let ready = self.stream.ready(interest).await;
            ready.map_err(|error| self.lost(&error.to_string()))?;
            match self.stream.try_read(&mut self.buffer) {
                Ok(0) => return Err(self.lost("the node closed the connection")),
                Ok(count) => {
                    self.decoder.push(&self.buffer[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.lost(&error.to_string())),
            }
        }
    }

    /// The next reply that was read.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn reply(&mut self) -> Result<Option<Reply>, Report> {
        let Some(body) = self.frame(FrameKind::Reply)? else {
            return Ok(None);
        };
        let reply = decode_reply(&body).map_err(|error| self.lost(&error.to_string()))?;
        Ok(Some(reply))
    }

    fn frame(&mut self, kind: FrameKind) -> Result<Option<bytes::Bytes>, Report> {
        let frame = self.decoder.next();
        match frame.map_err(|error| self.lost(&error.to_string()))? {
            Some(frame) if frame.kind == kind => Ok(Some(frame.body)),
            Some(frame) => Err(self.lost(&format!("a frame of another kind: {:?}", frame.kind))),
            None => Ok(None),
        }
    }

    fn lost(&self, why: &str) -> Report {
        let address = self.stream.peer_addr();
        lost(
            &address.map_or_else(|_| "a shard".to_owned(), |at| at.to_string()),
            why,
        )
    }
}

fn lost(address: &str, why: &str) -> Report {
    Report::error(Code::Unreachable, format!("lost the node at {address}")).location(why)
}

/// An answer that ends the measurement.
pub(super) fn refused(answer: &ReplyBody) -> Report {
    let (code, words) = match answer {
        ReplyBody::Error(error) => (error.code, error.message.clone()),
        other => (
            other.refused_by().unwrap_or(Code::BadFrame),
            format!("{other:?}").chars().take(200).collect(),
        ),
    };
    Report::error(code, "the node refused the load").location(words)
}
