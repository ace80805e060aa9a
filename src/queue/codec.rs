//! Reading and writing little-endian fields of a slice, bounded at every step.
//!
//! The reader trusts nothing: each method says what is missing instead of panicking. What it leaves
//! out on purpose: formats. Those are in `page.rs`, `record.rs`, `body.rs` and `outcome.rs`.

/// What a read yields: the value, or a sentence that says what is wrong.
pub(super) type Read<T> = Result<T, &'static str>;

/// A place in a slice; moves on with each read.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes not read yet.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Read<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or("it is cut short")?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// 8 bits.
    pub(super) fn u8(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// 16 bits.
    pub(super) fn u16(&mut self) -> Read<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// 32 bits.
    pub(super) fn u32(&mut self) -> Read<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// 48 bits.
    pub(super) fn u48(&mut self) -> Read<u64> {
        let mut wide = [0; 8];
        wide[..6].copy_from_slice(self.take(6)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// 64 bits.
    pub(super) fn u64(&mut self) -> Read<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// 64 bits with a sign.
    pub(super) fn i64(&mut self) -> Read<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// 16 bytes as they stand.
    pub(super) fn bytes16(&mut self) -> Read<[u8; 16]> {
        self.array()
    }

    /// A byte that is 0 or 1.
    pub(super) fn flag(&mut self) -> Read<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    /// `len` bytes that this version keeps at zero.
    pub(super) fn zeros(&mut self, len: usize) -> Read<()> {
        if self.take(len)?.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            Err("a reserved byte is not zero")
        }
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Read<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err("bytes follow its end")
        }
    }
}

/// Appends the low 48 bits of `value`.
pub(super) fn put_u48(out: &mut Vec<u8>, value: u64) {
    assert!(value < 1 << 48, "{value} does not fit 48 bits");
    out.extend_from_slice(&value.to_le_bytes()[..6]);
}

/// The length of a slice whose bound was checked when it entered the state.
pub(super) fn len_u16(len: usize) -> u16 {
    u16::try_from(len).expect("bounds of limits.rs keep lengths below 64 Ki")
}

/// The length of a slice whose bound was checked when it entered the state.
pub(super) fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("bounds of limits.rs keep lengths below 4 Gi")
}
