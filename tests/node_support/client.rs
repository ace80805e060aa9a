//! A client of the wire protocol, as plain as can be.

use super::{DEADLINE, error_kit};
use bytes::BytesMut;
use rrq::base::code::Code;
use rrq::base::ids::JobId;
use rrq::wire::client::{decode_reply, decode_server_hello, encode_client_hello, encode_request};
use rrq::wire::frame::{Frame, FrameDecoder, FrameKind};
use rrq::wire::message::{ClientHello, Reply, ReplyBody, Request, RequestBody, ServerHello};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A connection that says what it sees.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    decoder: FrameDecoder,
}

/// Questions for jobs that are under way at once.
const LOOKS: usize = 256;

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).expect("the node listens"))
    }

    /// The client of a stream from which whole frames were read.
    pub(crate) fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut decoder = FrameDecoder::default();
        decoder.set_body_bytes_max(rrq::base::limits::FRAME_BYTES_MAX);
        Self { stream, decoder }
    }

    pub(crate) fn greeted(address: SocketAddr) -> (Self, ServerHello) {
        let mut client = Self::connect(address);
        client.send(&hello(1, 1));
        let frame = client.frame().expect("a hello");
        assert_eq!(frame.kind, FrameKind::ServerHello);
        let hello = decode_server_hello(&frame.body).expect("it can be read");
        (client, hello)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the node reads");
    }

    /// The next frame, or `None` at the end.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        let mut buffer = [0; 65536];
        loop {
            if let Some(frame) = self.decoder.next().expect("the node sends frames") {
                return Some(frame);
            }
            match self
                .stream
                .read(&mut buffer)
                .expect("the node answers or closes")
            {
                0 => return None,
                read => self.decoder.push(&buffer[..read]),
            }
        }
    }

    pub(crate) fn reply(&mut self) -> Reply {
        let frame = self.frame().expect("a reply");
        assert_eq!(frame.kind, FrameKind::Reply);
        decode_reply(&frame.body).expect("it can be read")
    }

    /// An error for the whole connection, then its end.
    pub(crate) fn last_words(&mut self) -> Code {
        let reply = self.reply();
        let ReplyBody::Error(error) = reply.body else {
            panic!("not an error: {reply:?}")
        };
        assert!(self.frame().is_none(), "the connection ends");
        error_kit::compare(&format!("{}: {}\n", error.code, error.message));
        error.code
    }

    /// Whether the node is still there to send to.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next reply, or `None` if the node is gone.
    pub(crate) fn try_reply(&mut self) -> Option<Reply> {
        let mut buffer = [0; 65536];
        loop {
            if let Some(frame) = self.decoder.next().expect("the node sends frames") {
                return Some(decode_reply(&frame.body).expect("it can be read"));
            }
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.decoder.push(&buffer[..read]),
            }
        }
    }

    /// Asks one thing and waits for the answer.
    pub(crate) fn ask(&mut self, body: RequestBody) -> ReplyBody {
        let mut out = BytesMut::new();
        encode_request(&Request { id: 1, body }, &mut out);
        self.send(&out);
        self.reply().body
    }

    /// Asks for jobs, many at a time; each is handed over with what the node says of it.
    pub(crate) fn look_for(&mut self, jobs: &[JobId], mut told: impl FnMut(JobId, ReplyBody)) {
        let mut out = BytesMut::new();
        for jobs in jobs.chunks(LOOKS) {
            for (id, job) in (1..).zip(jobs) {
                let body = RequestBody::GetJob { job: *job };
                encode_request(&Request { id, body }, &mut out);
            }
            self.send(&out.split());
            for _ in jobs {
                let reply = self.reply();
                let nth = usize::try_from(reply.id - 1).expect("it was asked");
                told(jobs[nth], reply.body);
            }
        }
    }
}

/// A client's first frame.
pub(crate) fn hello(min: u32, max: u32) -> BytesMut {
    let mut out = BytesMut::new();
    let hello = ClientHello {
        protocol_min: min,
        protocol_max: max,
        agent: "a test".to_owned(),
    };
    encode_client_hello(&hello, &mut out);
    out
}
