//! Taking little-endian numbers off a slice whose every length and count may be a lie.

use crate::snapshot::layout::SummaryBytes;

/// Bytes that pass their checksum and still make no sense: written by a faulty program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {what} at byte {offset} makes no sense")]
pub struct Malformed {
    /// Where, counted from the start of the decoded slice.
    pub offset: u64,
    /// Which field.
    pub what: &'static str,
}

/// A position in a slice. Each method names the field that it takes, for the error.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Starts at byte `at` of `bytes`.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// The error that names the field before the present position.
    pub(super) fn malformed(&self, what: &'static str) -> Malformed {
        Malformed {
            offset: self.at as u64,
            what,
        }
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..len).ok_or_else(|| self.malformed(what))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self, what: &'static str) -> Result<i64, Malformed> {
        self.array(what).map(i64::from_le_bytes)
    }

    pub(super) fn id(&mut self, what: &'static str) -> Result<[u8; 16], Malformed> {
        self.array(what)
    }

    pub(super) fn summary(&mut self, what: &'static str) -> Result<SummaryBytes, Malformed> {
        self.array(what)
    }

    /// A number of at most 64 bits, seven a byte, in its shortest form.
    pub(super) fn varint(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let unknown = self.malformed(what);
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift != 0) {
                return Err(unknown);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(unknown)
    }

    /// `len` reserved bytes, which are zero.
    pub(super) fn zeros(&mut self, len: usize) -> Result<(), Malformed> {
        let at = self.at;
        let reserved = self.take(len, "reserved field")?;
        // Without an end at the first that is not zero: 4 KiB of a header are looked at many bytes at a time.
        if reserved.iter().fold(0, |set, byte| set | byte) == 0 {
            return Ok(());
        }
        Err(Malformed {
            offset: at as u64,
            what: "reserved field",
        })
    }

    /// `count` items of at least `each` bytes, as a length that memory may be reserved for: refused
    /// unless the bytes left can hold them.
    pub(super) fn room(
        &self,
        count: u32,
        each: usize,
        what: &'static str,
    ) -> Result<usize, Malformed> {
        let count = count as usize;
        let left = self.bytes.len().saturating_sub(self.at);
        match count.checked_mul(each) {
            Some(needed) if needed <= left => Ok(count),
            _ => Err(self.malformed(what)),
        }
    }

    /// All bytes are taken.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.at == self.bytes.len() {
            return Ok(());
        }
        Err(self.malformed("rest after the last field"))
    }
}

/// The little-endian number at `at` of a slice that was checked to be long enough.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut array = [0; 4];
    array.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(array)
}

/// The little-endian number at `at` of a slice that was checked to be long enough.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_beyond_the_end() {
        let mut fields = Fields::new(&[1, 2, 3], 0);
        assert_eq!(fields.u16("first"), Ok(0x0201));
        let short = Malformed {
            offset: 2,
            what: "second",
        };
        assert_eq!(fields.u32("second"), Err(short));
        assert_eq!(fields.room(u32::MAX, usize::MAX, "second"), Err(short));
        assert_eq!(fields.room(1, 1, "second"), Ok(1));
        assert!(fields.end().is_err());
        assert!(fields.zeros(1).is_err());
        assert_eq!(fields.end(), Ok(()));
        assert!(Fields::new(&[], 9).u8("far away").is_err());
    }
}
