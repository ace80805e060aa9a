//! Stable error codes: `RRQ-nnnn`, the same in replies, on the terminal and in logs.
//!
//! 1xxx the environment, 2xxx the configuration and command line, 3xxx versions and identity,
//! 4xxx requests (41nn = rejection nn of the job machine), 5xxx the data directory, 9999 a bug.
//! A number is never reused.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// A stable error code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Code {
            $($(#[$doc])* $name = $number,)*
        }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name, as used in documents.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

codes! {
    /// io_uring is not available.
    IoUringUnavailable = 1001,
    /// Too little memory may be locked.
    MemlockTooLow = 1002,
    /// Too little memory may be locked for registered buffers: it works, but slower.
    BuffersUnregistered = 1003,
    /// The file system of the data directory does not keep data (tmpfs).
    NotDurable = 1004,
    /// The file system of the data directory refuses O_DIRECT.
    DirectIoUnavailable = 1005,
    /// A port is taken.
    PortInUse = 1006,
    /// The data directory is in use by another process.
    DirectoryLocked = 1007,
    /// The data directory cannot be created, read or written.
    DirectoryUnusable = 1008,
    /// The disk is full, so that the node cannot start.
    DiskFullAtStart = 1009,
    /// Too many shards for this machine.
    TooManyShards = 1010,
    /// A write or sync to the log failed; the process ends, recovery decides.
    LogWriteFailed = 1011,
    /// An executor stopped answering; the process ends, the supervisor restarts it.
    ShardStalled = 1012,
    /// This system is not Linux.
    NotLinux = 1013,
    /// Too few files may be open.
    OpenFilesTooFew = 1014,
    /// The kernel is too old.
    KernelTooOld = 1015,
    /// Others may write to the data directory.
    DirectoryExposed = 1016,
    /// The disk takes long to make a write durable.
    DiskSlow = 1017,
    /// The process gets no more memory.
    OutOfMemory = 1018,

    /// A flag or an argument is wrong.
    BadArgument = 2001,
    /// The configuration file cannot be read or has an error.
    BadConfig = 2002,
    /// A jobs file cannot be read or has an error.
    BadJobsFile = 2003,

    /// The data directory was written by a newer version.
    FormatTooNew = 3001,
    /// Client and node share no protocol version.
    ProtocolMismatch = 3002,
    /// The data directory belongs to another node or cluster.
    WrongIdentity = 3003,
    /// The groups of the data directory cannot go to another number of shards.
    ShardCountChanged = 3004,
    /// The directory holds something else than rrq data.
    ForeignDirectory = 3005,

    /// The server cannot be reached.
    Unreachable = 4001,
    /// This node does not lead the group.
    NotLeader = 4002,
    /// Too much is under way; try again later.
    Busy = 4003,
    /// The disk is full: enqueues wait until there is room.
    DiskFull = 4004,
    /// The node is stopping.
    Stopping = 4005,
    /// The request cannot be understood.
    BadRequest = 4006,
    /// A frame is larger than allowed, damaged, or not of this protocol.
    BadFrame = 4007,
    /// The request may or may not have taken effect.
    Unknown = 4008,
    /// No such group.
    NoSuchGroup = 4009,
    /// The group stopped because its log or state is damaged.
    GroupHalted = 4010,
    /// No answer within the deadline.
    Timeout = 4011,
    /// The payload is larger than allowed.
    PayloadTooLarge = 4012,
    /// The handshake was not finished in time, or the connection was silent too long.
    ConnectionTimeout = 4013,
    /// No such queue.
    NoSuchQueue = 4014,
    /// Live jobs take all the memory that they may: enqueues wait until some are done.
    MemoryFull = 4015,
    /// The members of the cluster cannot be changed so.
    MembersRefused = 4016,

    /// The queue is not here any more.
    QueueChanged = 4101,
    /// A queue of this name exists.
    QueueExists = 4102,
    /// The settings are at another version than expected.
    VersionMismatch = 4103,
    /// A name, setting or field is out of its bounds.
    Invalid = 4104,
    /// This version of the job machine cannot do this.
    Unsupported = 4105,
    /// The queue is at its bound of jobs or bytes.
    QuotaExceeded = 4106,
    /// The queue remembers as many idempotency keys as it may.
    IdempotencyWindowFull = 4107,
    /// The idempotency key belongs to a job with another payload.
    IdempotencyConflict = 4108,
    /// The lease is lost: the job was granted anew, or is gone.
    LeaseLost = 4109,
    /// The job is finished.
    Finished = 4110,
    /// No such job was ever made.
    NotFound = 4111,
    /// The job is not in a state that allows this.
    WrongState = 4112,
    /// The session has expired.
    SessionExpired = 4113,
    /// The client said that it has this outcome already.
    Superseded = 4114,
    /// The number is beyond the session's window.
    WindowExceeded = 4115,
    /// The session's leases were ended: attach again.
    Reattach = 4116,
    /// The group has as many sessions as it may.
    TooManySessions = 4117,
    /// No ids are left in this group.
    IdsExhausted = 4118,
    /// The queue is being drained: it takes no jobs.
    Draining = 4119,

    /// A segment of the log is damaged.
    LogDamaged = 5001,
    /// A checkpoint file is damaged.
    CheckpointDamaged = 5002,
    /// The superblock is damaged.
    SuperblockDamaged = 5003,
    /// A file of the data directory is missing.
    FileMissing = 5004,

    /// A bug of rrq.
    Bug = 9999,
}

impl Code {
    /// The number after `RRQ-`.
    #[must_use]
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The code of a number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.number() == number)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RRQ-{:04}", self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_found_again() {
        for code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), Some(*code));
        }
        assert_eq!(Code::from_number(1), None);
        assert_eq!(Code::GroupHalted.to_string(), "RRQ-4010");
    }
}
