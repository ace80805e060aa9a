//! One connection of the load to one group: frames, and a session of its own.
//!
//! It is leaner than the client library, which shares the cores with the node that is measured: no
//! tasks, no channels, and of what is under way it keeps nothing. If the node goes away, falls silent or
//! leads the group no more, [`Link::again`] finds another member that leads, and attaches the session
//! there; who asked asks again by the same numbers. A node without others that goes away ends the
//! measurement.

use crate::base::code::Code;
use crate::base::ids::{GroupId, SessionId};
use crate::base::limits::FRAME_BYTES_MAX;
use crate::base::report::Report;
use crate::wire::client::{PROTOCOL_VERSION, decode_reply, encode_client_hello, encode_request};
use crate::wire::frame::{FrameDecoder, FrameKind};
use crate::wire::message::{ClientHello, Reply, ReplyBody, Request, RequestBody};
use crate::wire::{Command, Op, Outcome, Rejection, SessionCall, Window};
use bytes::BytesMut;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// A member that does not take the session within this is passed over.
const MEMBER_PATIENCE: Duration = Duration::from_secs(2);
/// A group that nobody leads after this is lost.
const GROUP_PATIENCE: Duration = Duration::from_secs(30);
/// Between two rounds through the members.
const ROUND_PAUSE: Duration = Duration::from_millis(10);
/// A node that owes an answer and says nothing for this long is frozen or cut off. Polls are answered
/// within half of it.
const SILENT: Duration = Duration::from_secs(2);
/// How often that is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A connection with an open session.
pub(super) struct Link {
    /// Where the group's members listen.
    addresses: Rc<[String]>,
    /// The one in use.
    at: usize,
    group: GroupId,
    stream: TcpStream,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    out: BytesMut,
    session: Option<SessionId>,
    epoch: u32,
    next_id: u64,
    /// Requests without an answer.
    owed: u64,
    /// When it was last heard, or began to owe something.
    heard: Instant,
    look: Interval,
}

impl Link {
    /// Connects to the first of a group's members and opens a session there.
    ///
    /// # Errors
    /// If it does not let us, and no other does.
    pub(super) async fn open(addresses: Rc<[String]>, group: GroupId) -> Result<Self, Report> {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut link = Self {
            stream: connect(&addresses[0]).await?,
            addresses,
            at: 0,
            group,
            decoder: FrameDecoder::default(),
            buffer: vec![0; READ_BYTES],
            out: BytesMut::new(),
            session: None,
            epoch: 0,
            next_id: 1,
            owed: 0,
            heard: Instant::now(),
            look,
        };
        match link.enter().await {
            Ok(_) => {}
            Err(why) => drop(link.again(why).await?),
        }
        Ok(link)
    }

    /// Finds the member that leads the group now, if that may help against what went wrong. Whether
    /// the session is still there; else it has a new one, and nobody knows what became of what was under
    /// way.
    ///
    /// # Errors
    /// What went wrong, if the group has no other members, or another would say the same, or none
    /// leads.
    pub(super) async fn again(&mut self, why: Report) -> Result<bool, Report> {
        if self.addresses.len() < 2 || !may_pass(why.code) {
            return Err(why);
        }
        let begun = Instant::now();
        let mut last = why;
        while begun.elapsed() < GROUP_PATIENCE {
            for _ in 0..self.addresses.len() {
                // The one that failed comes last: if it is frozen, it takes its connection still.
                self.at = (self.at + 1) % self.addresses.len();
                let address = &self.addresses.clone()[self.at];
                let entered = async {
                    self.stream = connect(address).await?;
                    self.enter().await
                };
                match timeout(MEMBER_PATIENCE, entered).await {
                    Ok(Ok(is_same)) => return Ok(is_same),
                    Ok(Err(error)) if may_pass(error.code) => last = error,
                    Ok(Err(error)) => return Err(error),
                    Err(_) => last = lost(address, "it does not answer"),
                }
            }
            sleep(ROUND_PAUSE).await;
        }
        let what = format!("group {} has had no leader for 30 s", self.group);
        Err(Report::error(last.code, what).location(last.to_string()))
    }

    /// Says hello on a new connection, and attaches the session, or opens one if there is none. Whether
    /// it was there.
    async fn enter(&mut self) -> Result<bool, Report> {
        self.decoder = FrameDecoder::default();
        self.decoder.set_body_bytes_max(FRAME_BYTES_MAX);
        self.out.clear();
        (self.owed, self.heard) = (0, Instant::now());
        let hello = ClientHello {
            protocol_min: PROTOCOL_VERSION,
            protocol_max: PROTOCOL_VERSION,
            agent: concat!("rrq-bench/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        encode_client_hello(&hello, &mut self.out);
        while self.frame(FrameKind::ServerHello)?.is_none() {
            self.ready().await?;
        }
        if let Some(session) = self.session {
            match self.answer(Op::Attach { session }).await? {
                ReplyBody::Outcome(Outcome::Attached { epoch, .. }) => {
                    self.epoch = epoch;
                    return Ok(true);
                }
                ReplyBody::Outcome(Outcome::Rejected(Rejection::SessionExpired)) => {
                    self.session = None;
                }
                other => return Err(refused(&other)),
            }
        }
        let worker_timeout_ms = 0;
        match self.answer(Op::OpenSession { worker_timeout_ms }).await? {
            ReplyBody::Outcome(Outcome::SessionOpened { session, epoch }) => {
                (self.session, self.epoch) = (Some(session), epoch);
                Ok(false)
            }
            other => Err(refused(&other)),
        }
    }

    /// Asks something without a number, while nothing else is under way.
    async fn answer(&mut self, op: Op) -> Result<ReplyBody, Report> {
        self.ask(op, None, 0);
        loop {
            match self.reply()? {
                Some(reply) => return Ok(reply.body),
                None => self.ready().await?,
            }
        }
    }

    /// The epoch of its session, which leases name.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Asks a numbered command; it goes out with the next [`Self::flush`].
    ///
    /// # Panics
    /// If no session was opened.
    pub(super) fn command(&mut self, op: Op, seq: u64, lowest: u64, wait_ms: u32) -> u64 {
        let window = match op {
            Op::Lease { .. } => Window::Polls,
            _ => Window::Commands,
        };
        let call = SessionCall {
            id: self.session.expect("an open link has a session"),
            seq,
            lowest,
            window,
        };
        self.ask(op, Some(call), wait_ms)
    }

    fn ask(&mut self, op: Op, session: Option<SessionCall>, wait_ms: u32) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if self.owed == 0 {
            self.heard = Instant::now();
        }
        self.owed += 1;
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
    /// If the connection is lost, or silent while the group has other members.
    pub(super) async fn ready(&mut self) -> Result<(), Report> {
        loop {
            self.flush()?;
            let interest = match self.out.is_empty() {
                true => Interest::READABLE,
                false => Interest::READABLE | Interest::WRITABLE,
            };
            let ready = tokio::select! {
                ready = self.stream.ready(interest) => ready,
                _ = self.look.tick(), if self.addresses.len() > 1 => {
                    if self.owed > 0 && self.heard.elapsed() > SILENT {
                        return Err(self.lost("it owes an answer and says nothing"));
                    }
                    continue;
                }
            };
            ready.map_err(|error| self.lost(&error.to_string()))?;
            match self.stream.try_read(&mut self.buffer) {
                Ok(0) => return Err(self.lost("the node closed the connection")),
                Ok(count) => {
                    self.heard = Instant::now();
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
        self.owed = self.owed.saturating_sub(1);
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

async fn connect(address: &str) -> Result<TcpStream, Report> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    stream.map_err(|error| lost(address, &error.to_string()))
}

/// Whether a group's other members, or the same a little later, may say something else.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unreachable
            | Code::NotLeader
            | Code::Stopping
            | Code::Unknown
            | Code::GroupHalted
            | Code::Busy
            | Code::Reattach
    )
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
