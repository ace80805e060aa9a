//! A job's body in bytes: written once, to a payload file, and shipped by job id.
//!
//! Layout, little-endian: 0 version u8 (1), 1 flags u8 (bit 0 key, bit 1 backoff), 2 headers u16,
//! 4 run_limit_ms u32, then the backoff (16, as in `settings.rs`) if there is one, the key (length
//! u16, bytes) if there is one, each header (name length u16, value length u32, name, value), the
//! payload (length u32, bytes), and the CRC-32C u32 of all before it. Each body has one form only.
//!
//! To change this: raise the version and keep reading the old one; a body is never rewritten.

use crate::base::checksum::crc32c;
use crate::queue::codec::{Read, Reader, len_u16, len_u32};
use crate::queue::command::{Backoff, NewJob};
use crate::queue::page::PageError;
use crate::queue::settings::{put_backoff, read_backoff};
use crate::queue::view::Body;
use bytes::Bytes;
use std::sync::Arc;

const VERSION: u8 = 1;
const FLAG_KEY: u8 = 1;
const FLAG_BACKOFF: u8 = 2;
/// Version, flags, headers, run limit.
const HEAD_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 4;

/// A body as a group keeps it in memory: its bytes but the checksum, in one piece that frozen states
/// share. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBody(Arc<[u8]>);

impl StoredBody {
    /// The body of a job to be. `scratch` is used on the way.
    pub(super) fn of_job(job: &NewJob, scratch: &mut Vec<u8>) -> Self {
        scratch.clear();
        let parts = Parts {
            payload: &job.payload,
            headers: &job.headers,
            key: job.key.as_ref(),
            run_limit_ms: job.run_limit_ms,
            backoff: job.backoff.as_ref(),
        };
        parts.put(scratch);
        Self(Arc::from(scratch.as_slice()))
    }

    /// The body of these bytes, which [`decode_body`] has read.
    pub(super) fn of_checked(bytes: &[u8]) -> Self {
        Self(Arc::from(&bytes[..bytes.len() - CHECKSUM_BYTES]))
    }

    /// The length of the bytes that [`Self::encode_into`] appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.0.len() + CHECKSUM_BYTES
    }

    /// Appends the body in bytes, as [`encode_body`] makes them.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
        out.extend_from_slice(&crc32c(&[&self.0]).to_le_bytes());
    }

    /// The body. Payload, key and values share its memory.
    #[must_use]
    pub fn body(&self) -> Body {
        let bytes = Bytes::from_owner(Arc::clone(&self.0));
        read(&bytes).expect("what is stored was encoded or read here")
    }

    /// The backoff of its own.
    pub(super) fn backoff(&self) -> Option<Backoff> {
        let has_own = self.0[1] & FLAG_BACKOFF != 0;
        let read = || read_backoff(&mut Reader::new(&self.0[HEAD_BYTES..]));
        has_own.then(|| read().expect("what is stored was encoded or read here"))
    }
}

/// What stands in a body.
struct Parts<'a> {
    payload: &'a Bytes,
    headers: &'a [(String, Bytes)],
    key: Option<&'a Bytes>,
    run_limit_ms: u32,
    backoff: Option<&'a Backoff>,
}

impl Parts<'_> {
    /// Appends all but the checksum.
    fn put(&self, out: &mut Vec<u8>) {
        let key = if self.key.is_some() { FLAG_KEY } else { 0 };
        let backoff = if self.backoff.is_some() {
            FLAG_BACKOFF
        } else {
            0
        };
        out.extend_from_slice(&[VERSION, key | backoff]);
        out.extend_from_slice(&len_u16(self.headers.len()).to_le_bytes());
        out.extend_from_slice(&self.run_limit_ms.to_le_bytes());
        if let Some(backoff) = self.backoff {
            put_backoff(out, backoff);
        }
        if let Some(key) = self.key {
            out.extend_from_slice(&len_u16(key.len()).to_le_bytes());
            out.extend_from_slice(key);
        }
        for (name, value) in self.headers {
            out.extend_from_slice(&len_u16(name.len()).to_le_bytes());
            out.extend_from_slice(&len_u32(value.len()).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value);
        }
        out.extend_from_slice(&len_u32(self.payload.len()).to_le_bytes());
        out.extend_from_slice(self.payload);
    }
}

/// The bytes of a body.
#[must_use]
pub fn encode_body(body: &Body) -> Bytes {
    let parts = Parts {
        payload: &body.payload,
        headers: &body.headers,
        key: body.key.as_ref(),
        run_limit_ms: body.run_limit_ms,
        backoff: body.backoff.as_ref(),
    };
    let mut out = Vec::new();
    parts.put(&mut out);
    let crc = crc32c(&[&out]);
    out.extend_from_slice(&crc.to_le_bytes());
    Bytes::from(out)
}

/// Reads the bytes of a body. The payload, key and values are slices of `bytes`, not copies.
///
/// # Errors
/// [`PageError`] says what is wrong; no bytes make it panic.
pub fn decode_body(bytes: &Bytes) -> Result<Body, PageError> {
    decode(bytes).map_err(|what| PageError::of_body(None, what))
}

fn decode(bytes: &Bytes) -> Read<Body> {
    let split = bytes.len().checked_sub(CHECKSUM_BYTES);
    let split = split.ok_or("it is cut short")?;
    let (sealed, crc) = bytes.split_at(split);
    if crc32c(&[sealed]).to_le_bytes() != crc {
        return Err("its checksum does not fit");
    }
    read(&bytes.slice(..split))
}

/// Reads a body without its checksum.
fn read(bytes: &Bytes) -> Read<Body> {
    let mut from = Reader::new(bytes);
    if from.u8()? != VERSION {
        return Err("its version is unknown");
    }
    let flags = from.u8()?;
    if flags & !(FLAG_KEY | FLAG_BACKOFF) != 0 {
        return Err("it has an unknown flag");
    }
    let headers_len = from.u16()?;
    let run_limit_ms = from.u32()?;
    let backoff = if flags & FLAG_BACKOFF == 0 {
        None
    } else {
        Some(read_backoff(&mut from)?)
    };
    let key = if flags & FLAG_KEY == 0 {
        None
    } else {
        let len = usize::from(from.u16()?);
        Some(bytes.slice_ref(from.take(len)?))
    };
    let mut headers = Vec::new();
    for _ in 0..headers_len {
        let name_len = usize::from(from.u16()?);
        let value_len = from.u32()? as usize;
        let name = std::str::from_utf8(from.take(name_len)?);
        let name = name.map_err(|_| "a header's name is not UTF-8")?.to_owned();
        headers.push((name, bytes.slice_ref(from.take(value_len)?)));
    }
    let payload_len = from.u32()? as usize;
    let payload = bytes.slice_ref(from.take(payload_len)?);
    from.end()?;
    Ok(Body {
        payload,
        headers,
        key,
        run_limit_ms,
        backoff,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Body {
        Body {
            payload: Bytes::from_static(b"payload"),
            headers: vec![
                ("trace".to_owned(), Bytes::from_static(b"1")),
                (String::new(), Bytes::new()),
            ],
            key: Some(Bytes::from_static(b"key")),
            run_limit_ms: 5,
            backoff: Some(Backoff::default()),
        }
    }

    #[test]
    fn the_smallest_body_is_sixteen_bytes() {
        let bytes = encode_body(&Body::default());
        assert_eq!(bytes[..12], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes.len(), 16);
        assert_eq!(decode_body(&bytes), Ok(Body::default()));
    }

    #[test]
    fn a_stored_body_is_the_body_and_its_bytes() {
        for body in [full(), Body::default()] {
            let job = NewJob {
                payload: body.payload.clone(),
                headers: body.headers.clone(),
                key: body.key.clone(),
                run_limit_ms: body.run_limit_ms,
                backoff: body.backoff,
                ..NewJob::default()
            };
            let stored = StoredBody::of_job(&job, &mut vec![1, 2, 3]);
            let mut bytes = Vec::new();
            stored.encode_into(&mut bytes);
            assert_eq!(bytes, encode_body(&body));
            assert_eq!(stored.encoded_len(), bytes.len());
            assert_eq!(StoredBody::of_checked(&bytes), stored);
            assert_eq!(
                (stored.body(), stored.backoff()),
                (body.clone(), body.backoff)
            );
        }
    }

    #[test]
    fn the_payload_is_not_copied() {
        let bytes = encode_body(&full());
        let body = decode_body(&bytes).expect("intact");
        assert_eq!(body, full());
        assert!(bytes.as_ptr_range().contains(&body.payload.as_ptr()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = encode_body(&full());
        for at in 0..bytes.len() {
            assert!(decode_body(&bytes.slice(..at)).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 1 << bit;
                assert!(
                    decode_body(&flipped.into()).is_err(),
                    "bit {bit} of byte {at}"
                );
            }
        }
    }
}
