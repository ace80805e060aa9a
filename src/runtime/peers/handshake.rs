//! The first frames of a connection between nodes, by blocking calls: nothing waits for them but a
//! thread of their own.

use crate::base::limits::PEER_FRAME_BYTES_MAX;
use crate::wire::frame::{Frame, FrameDecoder, FrameKind};
use crate::wire::peer::{
    Formation, PeerHello, decode_formation, decode_peer_hello, encode_formation, encode_peer_hello,
};
use bytes::BytesMut;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// A node that does not take a connection within this is tried again later.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Each frame of the greeting comes within this.
const GREET_WITHIN: Duration = Duration::from_secs(5);

/// A connection on which the nodes greet each other.
#[derive(Debug)]
pub struct Greeting {
    stream: TcpStream,
    decoder: FrameDecoder,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Trouble {
    /// Nobody listens there: the process that did is dead.
    Refused,
    /// Anything else.
    Other(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::UnexpectedEof => Self::Other("it closed the connection".to_owned()),
            // A time-out of a socket.
            io::ErrorKind::WouldBlock => {
                Self::Other(format!("nothing came for {GREET_WITHIN:?} in the greeting"))
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

impl Greeting {
    /// Connects to `host:port`; of several addresses the first that answers.
    ///
    /// # Errors
    /// [`Trouble`]; refused only if every address refuses.
    pub fn connect(address: &str) -> Result<Self, Trouble> {
        let resolved = address.to_socket_addrs();
        let resolved = resolved
            .map_err(|error| Trouble::Other(format!("{address} does not resolve: {error}")))?;
        let mut trouble = Trouble::Other(format!("{address} resolves to nothing"));
        let mut all_refuse = true;
        for one in resolved {
            match TcpStream::connect_timeout(&one, CONNECT_WITHIN) {
                Ok(stream) => return Ok(Self::on(stream)?),
                Err(error) => trouble = error.into(),
            }
            all_refuse &= matches!(trouble, Trouble::Refused);
        }
        match trouble {
            Trouble::Refused if !all_refuse => {
                Err(Trouble::Other("one of its addresses refuses".to_owned()))
            }
            trouble => Err(trouble),
        }
    }

    /// On a connection that stands.
    ///
    /// # Errors
    /// If it broke already.
    pub fn on(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GREET_WITHIN))?;
        stream.set_write_timeout(Some(GREET_WITHIN))?;
        Ok(Self {
            stream,
            decoder: FrameDecoder::default(),
        })
    }

    /// Says hello.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn say_hello(&mut self, hello: &PeerHello) -> io::Result<()> {
        let mut out = BytesMut::new();
        encode_peer_hello(hello, &mut out);
        self.stream.write_all(&out)
    }

    /// Gives a formation.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn say_formation(&mut self, formation: &Formation) -> io::Result<()> {
        let mut out = BytesMut::new();
        encode_formation(formation, &mut out);
        self.stream.write_all(&out)
    }

    /// Hears a hello.
    ///
    /// # Errors
    /// If none comes, or something else.
    pub fn hear_hello(&mut self) -> Result<PeerHello, Trouble> {
        let frame = self.hear(FrameKind::PeerHello)?;
        decode_peer_hello(&frame.body).map_err(|error| Trouble::Other(error.to_string()))
    }

    /// Hears a formation.
    ///
    /// # Errors
    /// If none comes, or something else.
    pub fn hear_formation(&mut self) -> Result<Formation, Trouble> {
        let frame = self.hear(FrameKind::Formation)?;
        decode_formation(&frame.body).map_err(|error| Trouble::Other(error.to_string()))
    }

    fn hear(&mut self, kind: FrameKind) -> Result<Frame, Trouble> {
        let mut buffer = [0; 4096];
        loop {
            let frame = self.decoder.next();
            match frame.map_err(|error| Trouble::Other(error.to_string()))? {
                Some(frame) if frame.kind == kind => return Ok(frame),
                Some(frame) => {
                    let text = format!("it sent a {:?} where a {kind:?} was due", frame.kind);
                    return Err(Trouble::Other(text));
                }
                None => {}
            }
            let read = self.stream.read(&mut buffer)?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.decoder.push(&buffer[..read]);
        }
    }

    /// The connection, once the greeting is done, with what was read beyond it.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn done(mut self) -> io::Result<(TcpStream, FrameDecoder)> {
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)?;
        self.decoder.set_body_bytes_max(PEER_FRAME_BYTES_MAX);
        Ok((self.stream, self.decoder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn nobody_who_listens_is_told_from_everything_else() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("it is bound").port()
        };
        let of = |address: &str| Greeting::connect(address).map(drop);
        assert!(matches!(
            of(&format!("127.0.0.1:{port}")),
            Err(Trouble::Refused)
        ));
        // Longer than a part of a name can be: nobody is asked.
        let Err(Trouble::Other(text)) = of(&format!("{}:1", "x".repeat(70))) else {
            panic!("no such host is found");
        };
        assert!(text.contains("does not resolve"), "{text}");
    }

    #[test]
    fn a_stranger_who_says_something_else_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let words = |bytes: &'static [u8]| {
            let mut greeting = Greeting::connect(&address).expect("somebody listens");
            let (mut other, _) = listener.accept().expect("it has connected");
            other.write_all(bytes).expect("it listens");
            drop(other);
            match greeting.hear_hello() {
                Err(Trouble::Other(text)) => text,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(words(b""), "it closed the connection");
        let text = words(b"GET / HTTP/1.1\r\n\r\n");
        assert!(text.contains("HTTP is spoken there"), "{text}");
    }
}
