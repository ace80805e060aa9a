//! The impatient client: connects, leases and acks one job as soon as a node lets it.
//!
//! It speaks the protocol over one blocking socket and tries to connect three times a millisecond,
//! so that what it measures is the node and not a client's backoff. What it gets goes into the same
//! books as everybody's.

use crate::base::code::Code;
use crate::base::ids::{GroupId, Partition, QueueUid};
use crate::base::limits::FRAME_BYTES_MAX;
use crate::base::report::Report;
use crate::wire::client::{PROTOCOL_VERSION, decode_reply, encode_client_hello, encode_request};
use crate::wire::frame::{Frame, FrameDecoder, FrameKind};
use crate::wire::message::{ClientHello, LeasedJob, ReplyBody, Request, RequestBody};
use crate::wire::{AckItem, Command, ItemOutcome, Op, Outcome};
use crate::workload::{Ledger, number_of};
use bytes::BytesMut;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two attempts to connect, or two questions that were refused.
const RETRY: Duration = Duration::from_micros(300);
/// A read that takes longer asks whether the node still lives.
const READ_PATIENCE: Duration = Duration::from_millis(50);
/// No job after this is a failure.
const DEADLINE: Duration = Duration::from_secs(120);

/// Which queue to take a job from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Where the shards listen that may lead the queue's group, one of each node; not empty.
    pub(super) addresses: Vec<String>,
    /// The group.
    pub(super) group: GroupId,
    /// The queue.
    pub(super) queue: QueueUid,
}

/// When what happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    /// The node let us connect.
    pub(super) connected: Instant,
    /// It answered our hello.
    pub(super) replied: Instant,
    /// It gave us a job.
    pub(super) leased: Instant,
    /// It confirmed our ack of it.
    pub(super) acked: Instant,
}

/// Takes and finishes one job. `check` is asked again and again whether to go on.
///
/// # Errors
/// What `check` says; or if no job comes.
pub(super) fn take_one(
    source: &Source,
    ledger: &Mutex<Ledger>,
    mut check: impl FnMut() -> Result<(), Report>,
) -> Result<Marks, Report> {
    let begun = Instant::now();
    let mut last = String::from("nobody listens");
    let mut turn = source.addresses.iter().cycle();
    while begun.elapsed() < DEADLINE {
        check()?;
        let address = turn.next().map_or("", String::as_str);
        match TcpStream::connect(address) {
            Ok(stream) => match attempt(stream, source, ledger, &mut check) {
                Ok(marks) => return Ok(marks),
                Err(Broken::Stopped(report)) => return Err(report),
                Err(Broken::Lost(words)) => last = words,
            },
            Err(error) => last = error.to_string(),
        }
        std::thread::sleep(RETRY);
    }
    let from = source.addresses.join(", ");
    let what = format!("no job from {from} in {} s", DEADLINE.as_secs());
    Err(Report::error(Code::Unreachable, what).location(last))
}

/// Why a connection is of no more use.
enum Broken {
    /// We are to give up.
    Stopped(Report),
    /// Another may do better.
    Lost(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

struct Link<'a> {
    stream: TcpStream,
    decoder: FrameDecoder,
    next_id: u64,
    check: &'a mut dyn FnMut() -> Result<(), Report>,
}

fn attempt(
    stream: TcpStream,
    source: &Source,
    ledger: &Mutex<Ledger>,
    check: &mut dyn FnMut() -> Result<(), Report>,
) -> Result<Marks, Broken> {
    let connected = Instant::now();
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_PATIENCE))?;
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(FRAME_BYTES_MAX);
    let mut link = Link {
        stream,
        decoder,
        next_id: 1,
        check,
    };
    link.hello()?;
    let replied = Instant::now();
    let job = link.lease(source)?;
    let leased = Instant::now();
    let lock = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
    let (number, token) = (number_of(&job.job.body.payload), job.token());
    lock().delivered(number, token);
    let Some(number) = number else {
        return Err(Broken::Lost("a payload that nobody enqueued".to_owned()));
    };
    match link.ack(source, &job) {
        Ok(true) => {
            let acked = Instant::now();
            lock().acked(number, token);
            Ok(Marks {
                connected,
                replied,
                leased,
                acked,
            })
        }
        Ok(false) => Err(Broken::Lost("the ack was refused".to_owned())),
        Err(broken) => {
            lock().ack_unknown(number);
            Err(broken)
        }
    }
}

impl Link<'_> {
    fn hello(&mut self) -> Result<(), Broken> {
        let hello = ClientHello {
            protocol_min: PROTOCOL_VERSION,
            protocol_max: PROTOCOL_VERSION,
            agent: concat!("rrq-bench/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let mut bytes = BytesMut::new();
        encode_client_hello(&hello, &mut bytes);
        self.stream.write_all(&bytes)?;
        match self.frame()?.kind {
            FrameKind::ServerHello => Ok(()),
            _ => Err(Broken::Lost("no hello".to_owned())),
        }
    }

    fn lease(&mut self, source: &Source) -> Result<LeasedJob, Broken> {
        let op = Op::Lease {
            queue: source.queue,
            partition: Partition(0),
            max: 1,
            lease_ms: 0,
            epoch: 0,
        };
        loop {
            match self.ask(source, op.clone(), 1000)? {
                ReplyBody::Leased(mut jobs) if !jobs.is_empty() => return Ok(jobs.remove(0)),
                ReplyBody::Outcome(Outcome::Rejected(rejection)) => {
                    let what = "the node lost a queue with all its jobs";
                    let report = Report::error(Code::QueueChanged, what);
                    let location = format!(
                        "queue {}, group {}: {rejection:?}",
                        source.queue, source.group
                    );
                    return Err(Broken::Stopped(report.location(location)));
                }
                // Another node may lead it.
                ReplyBody::Error(error)
                    if error.code == Code::NotLeader && source.addresses.len() > 1 =>
                {
                    return Err(Broken::Lost(error.message));
                }
                // No job yet, or the group does not serve yet.
                _ => {
                    (self.check)().map_err(Broken::Stopped)?;
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    /// Whether the ack was taken.
    fn ack(&mut self, source: &Source, job: &LeasedJob) -> Result<bool, Broken> {
        let item = AckItem {
            token: job.token(),
            result: None,
        };
        let op = Op::Ack { items: vec![item] };
        let reply = self.ask(source, op, 0)?;
        Ok(reply == ReplyBody::Outcome(Outcome::Items(vec![ItemOutcome::Done])))
    }

    fn ask(&mut self, source: &Source, op: Op, wait_ms: u32) -> Result<ReplyBody, Broken> {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request {
            id,
            body: RequestBody::Command {
                group: source.group,
                command: Command { session: None, op },
                wait_ms,
            },
        };
        let mut bytes = BytesMut::new();
        encode_request(&request, &mut bytes);
        self.stream.write_all(&bytes)?;
        let frame = self.frame()?;
        let reply = decode_reply(&frame.body).map_err(|e| Broken::Lost(e.to_string()))?;
        match reply.id == id {
            true => Ok(reply.body),
            false => Err(Broken::Lost(format!("{:?}", reply.body))),
        }
    }

    fn frame(&mut self) -> Result<Frame, Broken> {
        let mut bytes = [0; 16 << 10];
        loop {
            let next = self.decoder.next();
            if let Some(frame) = next.map_err(|error| Broken::Lost(error.to_string()))? {
                return Ok(frame);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Broken::Lost("the node closed the connection".to_owned())),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if is_patience(&error) => (self.check)().map_err(Broken::Stopped)?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_patience(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
