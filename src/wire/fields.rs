//! Counts the fields of a body before there are values of it: a value takes up to a hundred times the two
//! bytes of an empty message.

use crate::wire::error::WireError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Refuses a body of more than `max` fields, those of its inner messages counted down to `levels`.
///
/// Texts are walked as if they were messages where they stand so high; they are short there. What is no
/// message ends the count: its decoder says what it is.
pub(super) fn check_fields(
    what: &'static str,
    body: &[u8],
    levels: u32,
    max: usize,
) -> Result<(), WireError> {
    let mut left = max;
    if count(body, levels, &mut left) {
        return Ok(());
    }
    Err(WireError::BadLength {
        field: what,
        got: max + 1,
        min: 1,
        max,
    })
}

/// False if there are more than were left.
fn count(mut bytes: &[u8], levels: u32, left: &mut usize) -> bool {
    while levels > 0 && !bytes.is_empty() {
        let Some(rest) = left.checked_sub(1) else {
            return false;
        };
        *left = rest;
        let Ok((tag, wire_type)) = decode_key(&mut bytes) else {
            return true;
        };
        if wire_type == WireType::LengthDelimited {
            let len = decode_varint(&mut bytes).map(usize::try_from);
            let Ok(Ok(len)) = len else {
                return true;
            };
            let Some((inner, rest)) = bytes.split_at_checked(len) else {
                return true;
            };
            if !count(inner, levels - 1, left) {
                return false;
            }
            bytes = rest;
        } else if skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).is_err() {
            return true;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_ends_where_there_is_no_message() {
        let mut left = 10;
        for bytes in [&[0x1a, 200][..], &[0xff; 20], &[0x1b, 0x1a], &[7, 0]] {
            let before = left;
            assert!(count(bytes, 5, &mut left));
            assert_eq!(left, before - 1, "{bytes:?}");
        }
    }
}
