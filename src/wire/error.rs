//! What can be wrong with bytes, by name.

use crate::base::code::Code;
use crate::queue::MACHINE_VERSION;

/// Why bytes are not a frame. The connection cannot go on: nobody knows where the next one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is beyond what is allowed here.
    #[error("a frame of {len} bytes, at most {max} are allowed here")]
    TooLarge {
        /// The length in the header.
        len: u32,
        /// The bound in force.
        max: usize,
    },
    /// The other side speaks HTTP.
    #[error("HTTP is spoken there: an admin port has the web pages, a client port the jobs")]
    Http,
    /// The checksum does not fit.
    #[error("the checksum of a frame does not fit: sent {sent:08x}, computed {computed:08x}")]
    BadChecksum {
        /// In the header.
        sent: u32,
        /// Of what arrived.
        computed: u32,
    },
    /// A kind that this version does not know.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// Flags or reserved bytes are set: made by a newer version, or garbage.
    #[error("reserved bytes of a frame header are set: flags {flags}, reserved {reserved}")]
    ReservedSet {
        /// The flags.
        flags: u8,
        /// The reserved bytes.
        reserved: u16,
    },
}

impl FrameError {
    /// The stable code: always [`Code::BadFrame`].
    #[must_use]
    pub fn code(&self) -> Code {
        Code::BadFrame
    }
}

/// Why the body of a frame, or the payload of a log entry, is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not the protobuf message that it should be.
    #[error("{what} cannot be decoded: {why}")]
    Malformed {
        /// Which message.
        what: &'static str,
        /// The decoder's words.
        why: String,
    },
    /// No operation, or one that this version does not know.
    #[error("{0} holds no operation that this version knows")]
    UnknownOperation(&'static str),
    /// Only a leader may propose this.
    #[error("{0} is not for clients")]
    LeaderOnly(&'static str),
    /// A field is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number is out of its bounds.
    #[error("{field} is {got}, allowed are {min} to {max}")]
    OutOfRange {
        /// Which field.
        field: &'static str,
        /// What was sent.
        got: u64,
        /// The least allowed.
        min: u64,
        /// The most allowed.
        max: u64,
    },
    /// A text or list is too short or too long.
    #[error("{field} has length {got}, allowed are {min} to {max}")]
    BadLength {
        /// Which field.
        field: &'static str,
        /// What was sent.
        got: usize,
        /// The least allowed.
        min: usize,
        /// The most allowed.
        max: usize,
    },
    /// A payload is larger than any configuration allows.
    #[error("a payload of {got} bytes, at most {max} are allowed")]
    PayloadTooLarge {
        /// What was sent.
        got: usize,
        /// The most allowed.
        max: usize,
    },
    /// A value that this version does not know.
    #[error("unknown value {got} of {field}")]
    UnknownValue {
        /// Which field.
        field: &'static str,
        /// What was sent.
        got: i64,
    },
    /// Not 16 bytes, or the reserved bits are set.
    #[error("{0} is not a job id")]
    BadJobId(&'static str),
    /// Not a name of a queue.
    #[error("a queue's name is 1 to 128 of A-Z a-z 0-9 . _ : -")]
    BadQueueName,
    /// Two fields contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// The log entry is of a version of the job machine that this build does not know.
    #[error("a log entry of machine version {0}; this build knows up to {MACHINE_VERSION}")]
    MachineVersion(u16),
    /// The log entry holds fields that its version does not have.
    #[error("a log entry holds {0} bytes that its machine version does not have")]
    UnknownFields(usize),
}

impl WireError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::PayloadTooLarge { .. } => Code::PayloadTooLarge,
            Self::MachineVersion(_) | Self::UnknownFields(_) => Code::FormatTooNew,
            _ => Code::BadRequest,
        }
    }
}

pub(super) fn malformed(what: &'static str) -> impl Fn(prost::DecodeError) -> WireError {
    move |error| WireError::Malformed {
        what,
        why: error.to_string(),
    }
}
