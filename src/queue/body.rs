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
use crate::queue::page::PageError;
use crate::queue::settings::{put_backoff, read_backoff};
use crate::queue::view::Body;
use bytes::Bytes;

const VERSION: u8 = 1;
const FLAG_KEY: u8 = 1;
const FLAG_BACKOFF: u8 = 2;

/// The bytes of a body.
#[must_use]
pub fn encode_body(body: &Body) -> Bytes {
    let mut out = Vec::with_capacity(encoded_len(body));
    let key = if body.key.is_some() { FLAG_KEY } else { 0 };
    let backoff = if body.backoff.is_some() {
        FLAG_BACKOFF
    } else {
        0
    };
    out.extend_from_slice(&[VERSION, key | backoff]);
    out.extend_from_slice(&len_u16(body.headers.len()).to_le_bytes());
    out.extend_from_slice(&body.run_limit_ms.to_le_bytes());
    if let Some(backoff) = &body.backoff {
        put_backoff(&mut out, backoff);
    }
    if let Some(key) = &body.key {
        out.extend_from_slice(&len_u16(key.len()).to_le_bytes());
        out.extend_from_slice(key);
    }
    for (name, value) in &body.headers {
        out.extend_from_slice(&len_u16(name.len()).to_le_bytes());
        out.extend_from_slice(&len_u32(value.len()).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(value);
    }
    out.extend_from_slice(&len_u32(body.payload.len()).to_le_bytes());
    out.extend_from_slice(&body.payload);
    let crc = crc32c(&[&out]);
    out.extend_from_slice(&crc.to_le_bytes());
    let len = encoded_len(body);
    assert!(
        out.len() == len,
        "a body took {} bytes, not {len}",
        out.len()
    );
    Bytes::from(out)
}

/// The length of the bytes of a body.
pub(super) fn encoded_len(body: &Body) -> usize {
    let headers = body
        .headers
        .iter()
        .map(|(name, value)| 6 + name.len() + value.len());
    8 + body.backoff.map_or(0, |_| 16)
        + body.key.as_ref().map_or(0, |key| 2 + key.len())
        + headers.sum::<usize>()
        + 4
        + body.payload.len()
        + 4
}

/// Reads the bytes of a body. The payload, key and values are slices of `bytes`, not copies.
///
/// # Errors
/// [`PageError`] says what is wrong; no bytes make it panic.
pub fn decode_body(bytes: &Bytes) -> Result<Body, PageError> {
    decode(bytes).map_err(PageError::of_body)
}

fn decode(bytes: &Bytes) -> Read<Body> {
    let split = bytes.len().checked_sub(4).ok_or("it is cut short")?;
    let (sealed, crc) = bytes.split_at(split);
    if crc32c(&[sealed]).to_le_bytes() != crc {
        return Err("its checksum does not fit");
    }
    let mut from = Reader::new(sealed);
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
    use crate::queue::command::Backoff;

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
