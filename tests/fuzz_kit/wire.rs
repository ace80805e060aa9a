//! Frames, messages and commands: what a socket or the payload of a log entry may hold.

use super::{Input, assert_is_told, peer};
use bytes::{Bytes, BytesMut};
use rrq::base::limits::{FRAME_BYTES_HELLO_MAX, FRAME_BYTES_MAX};
use rrq::queue::MACHINE_VERSION;
use rrq::wire::bounds::check_op;
use rrq::wire::client::{
    Received, decode_client_hello, decode_reply, decode_request, decode_server_hello,
    encode_client_hello, encode_reply, encode_request, encode_server_hello, receive_request,
};
use rrq::wire::command::{decode_command, encode_command};
use rrq::wire::frame::{FRAME_HEADER_BYTES, Frame, FrameDecoder, FrameKind, encode_frame};
use rrq::wire::message::RequestBody;
use rrq::wire::{FrameError, WireError};

/// The stream of another node.
pub(super) fn peer_frame(input: &[u8]) -> bool {
    stream(input) | stream(&with_checksums(input))
}

/// A stream, as the server sees it and as the client does.
pub(super) fn client_frame(input: &[u8]) -> bool {
    stream(input) | stream(&with_checksums(input))
}

/// Whether each frame of a stream holds a message, and there are some.
fn stream(bytes: &[u8]) -> bool {
    let (frames, error) = frames(bytes, bytes.len().max(1));
    let (chunked, chunked_error) = self::frames(bytes, bytes.len() % 61 + 1);
    assert_eq!(frames, chunked, "chunks change what is read");
    assert_eq!(error, chunked_error, "chunks change what is refused");
    if let Some(error) = error {
        assert_is_told(&error);
    }
    let mut again = BytesMut::new();
    for frame in &frames {
        encode_frame(frame.kind, &mut again, |out| {
            out.extend_from_slice(&frame.body);
        });
    }
    assert!(bytes.starts_with(&again), "frames are not what was sent");
    let sound = frames.iter().filter(|frame| match frame.kind {
        FrameKind::ClientHello => client_hello(&frame.body),
        FrameKind::ServerHello => server_hello(&frame.body),
        FrameKind::Request => request(&frame.body),
        FrameKind::Reply => reply(&frame.body),
        FrameKind::PeerHello => peer::peer_hello(&frame.body),
        FrameKind::NodeBeat => peer::node_beat(&frame.body),
        FrameKind::GroupMessages => peer::group_messages(&frame.body),
        FrameKind::Formation => peer::formation(&frame.body),
    });
    sound.count() == frames.len() && !frames.is_empty()
}

/// The frames of a stream that arrives in chunks, and what ended it.
fn frames(bytes: &[u8], chunk: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = FrameDecoder::default();
    let mut frames = Vec::new();
    for part in bytes.chunks(chunk) {
        decoder.push(part);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => {
                    if frames.is_empty() {
                        assert!(frame.body.len() <= FRAME_BYTES_HELLO_MAX);
                        decoder.set_body_bytes_max(FRAME_BYTES_MAX);
                    }
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// The stream with headers that fit what follows them.
fn with_checksums(input: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let mut input = Input(input);
    while !input.is_empty() {
        let header = input.take(FRAME_HEADER_BYTES);
        let mut fields = Input(header);
        let (len, _crc, kind) = (fields.u32(), fields.u32(), fields.u8());
        let kind = FrameKind::from_u8(kind)
            .or_else(|| FrameKind::from_u8(kind % 4 + 1))
            .expect("1 to 4 are kinds");
        let body = input.take(len as usize);
        encode_frame(kind, &mut out, |out| out.extend_from_slice(body));
    }
    out
}

/// The body of a message; the first byte says of which.
pub(super) fn client_message(input: &[u8]) -> bool {
    let mut input = Input(input);
    let kind = input.u8();
    let body = Bytes::copy_from_slice(input.0);
    match kind % 4 {
        0 => request(&body),
        1 => reply(&body),
        2 => server_hello(&body),
        _ => client_hello(&body),
    }
}

/// The body of the only frame that `encode` appends.
pub(super) fn body_of(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    encode(&mut out);
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(usize::MAX);
    decoder.push(&out);
    let frame = decoder.next().expect("a sound frame").expect("a whole one");
    assert_eq!(decoder.buffered(), 0, "one message is one frame");
    frame.body
}

fn request(body: &Bytes) -> bool {
    match receive_request(body) {
        Ok(Received { request, payload }) => {
            assert_ne!(request.id, 0, "an answer could not be told apart");
            if let RequestBody::Command { command, .. } = &request.body {
                check_op(&command.op).expect("what is let through is inside every bound");
                if let Some(payload) = payload {
                    assert_eq!(payload, encode_command(command), "the log would keep it");
                }
            }
            let again = body_of(|out| encode_request(&request, out));
            assert_eq!(decode_request(&again), Ok(request));
            true
        }
        Err(refused) => {
            assert_ne!(refused.id, Some(0));
            wire_error(&refused.error)
        }
    }
}

fn reply(body: &Bytes) -> bool {
    match decode_reply(body) {
        Ok(reply) => {
            let again = body_of(|out| encode_reply(&reply, out));
            assert_eq!(decode_reply(&again), Ok(reply));
            true
        }
        Err(error) => wire_error(&error),
    }
}

fn client_hello(body: &Bytes) -> bool {
    match decode_client_hello(body) {
        Ok(hello) => {
            let again = body_of(|out| encode_client_hello(&hello, out));
            assert_eq!(decode_client_hello(&again), Ok(hello));
            true
        }
        Err(error) => wire_error(&error),
    }
}

fn server_hello(body: &Bytes) -> bool {
    match decode_server_hello(body) {
        Ok(hello) => {
            let again = body_of(|out| encode_server_hello(&hello, out));
            assert_eq!(decode_server_hello(&again), Ok(hello));
            true
        }
        Err(error) => wire_error(&error),
    }
}

pub(super) fn wire_error(error: &WireError) -> bool {
    assert_is_told(error);
    assert!(error.code().number() > 0);
    false
}

/// The payload of a log entry; the first byte says of which machine version.
pub(super) fn command(input: &[u8]) -> bool {
    let mut input = Input(input);
    let version = u16::from(input.u8() % 4);
    let payload = Bytes::copy_from_slice(input.0);
    match decode_command(&payload, version) {
        Ok(command) => {
            assert!((1..=MACHINE_VERSION).contains(&version));
            let again = encode_command(&command);
            assert_eq!(decode_command(&again, version).as_ref(), Ok(&command));
            assert_eq!(encode_command(&command), again);
            // A newer version knows all that an older one knew.
            let newest = decode_command(&payload, MACHINE_VERSION);
            assert_eq!(newest, Ok(command));
            true
        }
        Err(error) => wire_error(&error),
    }
}
