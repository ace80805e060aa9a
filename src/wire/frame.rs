//! Frames: how messages are told apart on a stream.
//!
//! | offset | bytes | field | |
//! | --- | --- | --- | --- |
//! | 0 | 4 | `len` | length of the body, little-endian |
//! | 4 | 4 | `crc` | CRC-32C of all bytes of the frame but these four, little-endian |
//! | 8 | 1 | `kind` | see [`FrameKind`] |
//! | 9 | 1 | `flags` | 0 |
//! | 10 | 2 | `reserved` | 0 |
//! | 12 | `len` | body | a protobuf message |
//!
//! [`FrameDecoder`] takes bytes as they come and yields whole frames. The length is compared with
//! the bound in force as soon as the header is there, and memory grows only with bytes that really
//! arrived. It is given back when nothing is left in it that waits for more. Any [`FrameError`] ends
//! the connection.

use crate::base::checksum::crc32c;
use crate::base::limits::FRAME_BYTES_HELLO_MAX;
use crate::wire::error::FrameError;
use bytes::{Buf, Bytes, BytesMut};

/// Length of the header.
pub const FRAME_HEADER_BYTES: usize = 12;
/// A buffer that held more than this is given back once it is empty: it would live as long as the
/// connection.
const KEPT_BYTES: usize = 64 << 10;

/// What a body is. 16 and up are for peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// The first frame of a client.
    ClientHello = 1,
    /// The node's answer to it.
    ServerHello = 2,
    /// A request.
    Request = 3,
    /// A reply.
    Reply = 4,
    /// The first frame of a node, on either side.
    PeerHello = 16,
    /// A node is there.
    NodeBeat = 17,
    /// Messages of members of groups.
    GroupMessages = 18,
    /// A node becomes a member of a cluster.
    Formation = 19,
}

impl FrameKind {
    /// The kind of a sent number.
    #[must_use]
    pub fn from_u8(raw: u8) -> Option<Self> {
        [
            Self::ClientHello,
            Self::ServerHello,
            Self::Request,
            Self::Reply,
            Self::PeerHello,
            Self::NodeBeat,
            Self::GroupMessages,
            Self::Formation,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == raw)
    }
}

/// A whole frame with a checksum that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: FrameKind,
    /// A slice of the read buffer, not a copy: as long as it lives, so does the buffer. The
    /// decoders of requests and replies copy what may live long.
    pub body: Bytes,
}

/// Appends a frame whose body `write` appends. The body goes straight to its place.
pub fn encode_frame(kind: FrameKind, out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, kind as u8, 0, 0, 0]);
    write(out);
    let frame = &mut out[start..];
    let len = u32::try_from(frame.len() - FRAME_HEADER_BYTES).expect("bodies are below 4 GiB");
    frame[0..4].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c(&[&frame[0..4], &frame[8..]]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Bytes in, frames out.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    /// The most that it held since it was last given back.
    held_most: usize,
    body_bytes_max: usize,
}

impl Default for FrameDecoder {
    /// A decoder that takes only what is allowed before the hello.
    fn default() -> Self {
        Self {
            buffer: BytesMut::new(),
            held_most: 0,
            body_bytes_max: FRAME_BYTES_HELLO_MAX,
        }
    }
}

impl FrameDecoder {
    /// The largest body from the next frame on: `FRAME_BYTES_MAX` once the hello is done.
    pub fn set_body_bytes_max(&mut self, max: usize) {
        self.body_bytes_max = max;
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer, for a reader that appends to it itself.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Bytes that are here and not yet part of a frame taken.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes until the frame that has begun is whole, as far as known; 0 if none has begun.
    #[must_use]
    pub fn missing(&self) -> usize {
        let here = self.buffer.len();
        match self.buffer.first_chunk::<4>() {
            _ if here == 0 => 0,
            Some(len) if here >= FRAME_HEADER_BYTES => {
                let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
                len.saturating_add(FRAME_HEADER_BYTES).saturating_sub(here)
            }
            _ => FRAME_HEADER_BYTES - here,
        }
    }

    /// The next whole frame, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`]; the decoder is then of no more use.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        self.held_most = self.held_most.max(self.buffer.len());
        let Some(header) = self.buffer.first_chunk::<FRAME_HEADER_BYTES>() else {
            if self.buffer.is_empty() && self.held_most > KEPT_BYTES {
                self.buffer = BytesMut::new();
                self.held_most = 0;
            }
            return Ok(None);
        };
        let [l0, l1, l2, l3, c0, c1, c2, c3, kind, flags, r0, r1] = *header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let body_bytes = usize::try_from(len).unwrap_or(usize::MAX);
        if [b"HTTP", b"GET ", b"POST", b"HEAD"].contains(&&[l0, l1, l2, l3]) {
            return Err(FrameError::Http);
        }
        if body_bytes > self.body_bytes_max {
            return Err(FrameError::TooLarge {
                len,
                max: self.body_bytes_max,
            });
        }
        let reserved = u16::from_le_bytes([r0, r1]);
        if flags != 0 || reserved != 0 {
            return Err(FrameError::ReservedSet { flags, reserved });
        }
        let kind = FrameKind::from_u8(kind).ok_or(FrameError::UnknownKind(kind))?;
        if self.buffer.len() < FRAME_HEADER_BYTES + body_bytes {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(FRAME_HEADER_BYTES + body_bytes);
        let sent = u32::from_le_bytes([c0, c1, c2, c3]);
        let computed = crc32c(&[&frame[0..4], &frame[8..]]);
        if sent != computed {
            return Err(FrameError::BadChecksum { sent, computed });
        }
        frame.advance(FRAME_HEADER_BYTES);
        Ok(Some(Frame {
            kind,
            body: frame.freeze(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::FRAME_BYTES_MAX;
    use proptest::prelude::*;

    fn frame(kind: FrameKind, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        encode_frame(kind, &mut out, |out| out.extend_from_slice(body));
        out
    }

    fn decode(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        let mut decoder = FrameDecoder::default();
        decoder.push(bytes);
        decoder.next()
    }

    fn all(decoder: &mut FrameDecoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next().expect("frames are sound")).collect()
    }

    #[test]
    fn a_length_is_refused_by_its_header_alone() {
        let mut bytes = frame(FrameKind::Request, &[0; 5000]);
        bytes.truncate(FRAME_HEADER_BYTES);
        let error = decode(&bytes).expect_err("too large before the hello");
        assert_eq!(
            error,
            FrameError::TooLarge {
                len: 5000,
                max: FRAME_BYTES_HELLO_MAX
            }
        );
    }

    #[test]
    fn what_is_missing_is_known_as_soon_as_the_header_is_there() {
        let bytes = frame(FrameKind::Request, &[0; 100]);
        let mut decoder = FrameDecoder::default();
        assert_eq!(decoder.missing(), 0);
        for at in 0..bytes.len() {
            decoder.push(&bytes[at..=at]);
            let here = at + 1;
            let whole = if here < FRAME_HEADER_BYTES {
                FRAME_HEADER_BYTES
            } else {
                FRAME_HEADER_BYTES + 100
            };
            assert_eq!(decoder.missing(), whole - here);
        }
        assert!(decoder.next().expect("sound").is_some());
        assert_eq!(decoder.missing(), 0);
    }

    #[test]
    fn the_memory_of_a_large_frame_is_given_back() {
        let mut decoder = FrameDecoder::default();
        decoder.set_body_bytes_max(FRAME_BYTES_MAX);
        decoder.push(&frame(FrameKind::Request, &vec![0; 1 << 20]));
        let taken = all(&mut decoder);
        assert_eq!((taken.len(), decoder.held_most), (1, 0));
        // Nobody but the frame itself holds its memory.
        let body = taken.into_iter().next().expect("one").body;
        assert!(body.try_into_mut().is_ok());
    }

    #[test]
    fn a_web_browser_is_told_off() {
        for line in ["GET / HTTP/1.1\r\n", "HTTP/1.1 400 Bad Request\r\n"] {
            assert_eq!(decode(line.as_bytes()), Err(FrameError::Http));
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = frame(FrameKind::Reply, b"some body");
        assert!(decode(&good).expect("sound").is_some());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !matches!(decode(&bad), Ok(Some(_))),
                "bit {bit} went unnoticed"
            );
        }
    }

    #[test]
    fn unknown_kinds_and_reserved_bits_are_named() {
        let mut bytes = frame(FrameKind::Reply, b"");
        bytes[8] = 99;
        assert_eq!(decode(&bytes), Err(FrameError::UnknownKind(99)));
        bytes[9] = 1;
        assert_eq!(
            decode(&bytes),
            Err(FrameError::ReservedSet {
                flags: 1,
                reserved: 0
            })
        );
    }

    proptest! {
        #[test]
        fn chunks_of_any_size_yield_the_same_frames(
            bodies in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..300), 0..20),
            chunk in 1_usize..64,
        ) {
            let mut bytes = BytesMut::new();
            for body in &bodies {
                bytes.extend_from_slice(&frame(FrameKind::Request, body));
            }
            let mut whole = FrameDecoder::default();
            whole.push(&bytes);
            let expected = all(&mut whole);
            prop_assert_eq!(expected.len(), bodies.len());
            let mut decoder = FrameDecoder::default();
            let mut got = Vec::new();
            for part in bytes.chunks(chunk) {
                decoder.push(part);
                got.extend(all(&mut decoder));
            }
            prop_assert_eq!(got, expected);
            prop_assert_eq!(decoder.buffered(), 0);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut decoder = FrameDecoder::default();
            decoder.set_body_bytes_max(FRAME_BYTES_MAX);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }
}
