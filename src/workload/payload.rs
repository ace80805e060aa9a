//! Payloads that carry the number of their job, so that a delivery proves which job it is and that
//! not a byte of it has changed.

use crate::base::prng::mix;
use bytes::Bytes;

/// The smallest payload: the number itself.
pub const PAYLOAD_BYTES_MIN: usize = 8;

/// The payload of job `number`: the number, little-endian, then words that follow from it.
///
/// # Panics
/// If `len` is below [`PAYLOAD_BYTES_MIN`].
#[must_use]
pub fn payload(number: u64, len: usize) -> Bytes {
    assert!(len >= PAYLOAD_BYTES_MIN, "a payload of {len} bytes");
    let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
    bytes.extend_from_slice(&number.to_le_bytes());
    for word in 1..len.div_ceil(8) as u64 {
        bytes.extend_from_slice(&mix(number ^ (word << 40)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// The number of the job whose payload this is; `None` if it is nobody's, or damaged.
#[must_use]
pub fn number_of(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(*bytes.first_chunk()?);
    (payload(number, bytes.len()) == bytes).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_names_its_job() {
        for len in [8, 9, 15, 16, 256, 4097] {
            for number in [0, 1, 77, u64::MAX] {
                assert_eq!(number_of(&payload(number, len)), Some(number), "{len}");
            }
        }
    }

    #[test]
    fn a_damaged_payload_names_none() {
        let sound = payload(5, 33);
        for at in 0..sound.len() {
            let mut bytes = sound.to_vec();
            bytes[at] ^= 4;
            assert_eq!(number_of(&bytes), None, "byte {at}");
        }
        assert_eq!(number_of(&sound[..7]), None);
        assert_eq!(number_of(b""), None);
    }
}
