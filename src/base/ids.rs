//! Identities: newtypes that do not mix.
//!
//! A [`JobId`] names a job for ever: group, queue, partition and sequence are in it, so no lookup
//! is needed to find where a job lives, and none of its parts is ever reused.

use std::fmt;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A node of a cluster, as configured; voters are (node, disk).
    NodeId(u32)
);
id!(
    /// One core's executor on one node.
    ShardId(u16)
);
id!(
    /// A Raft group. Groups are fixed at formation; at most 65,536, since a job id holds 16 bits.
    GroupId(u16)
);
id!(
    /// Which life of a group id a record or message belongs to; raised when a group is made anew.
    Incarnation(u32)
);
id!(
    /// A Raft term.
    Term(u64)
);
id!(
    /// The index of an entry in the log of a group; the first entry has index 1.
    LogIndex(u64)
);
id!(
    /// A client's session in one group: a counter of the group, from 1, never reused.
    SessionId(u32)
);
id!(
    /// A client connection of one shard; never reused while the process lives.
    ConnId(u64)
);
id!(
    /// A partition of a queue, `0..partitions`.
    Partition(u8)
);

impl Term {
    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl LogIndex {
    /// The index after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one; index 0 has none before it and stays.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// 128 random bits that name a cluster, made at formation.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

/// 128 random bits that name a data directory, made with it; a copied or emptied disk is another.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub [u8; 16]);

/// A member that votes: a node with the disk that it was admitted with. An emptied or copied disk
/// is another voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Voter {
    /// The node.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskId({self})")
    }
}

/// A queue, for ever: home group (16 bits) and a counter of that group that is never reused
/// (24 bits). 40 bits in all; a queue deleted and made again under its name has another uid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueUid(u64);

impl QueueUid {
    /// The largest counter of a home group.
    pub const COUNTER_MAX: u32 = (1 << 24) - 1;

    /// The first queue of group 0.
    pub const FIRST: Self = Self(0);

    /// The uid of the `counter`-th queue of `home`, or `None` when the counter is used up.
    #[must_use]
    pub fn new(home: GroupId, counter: u32) -> Option<Self> {
        (counter <= Self::COUNTER_MAX).then(|| Self(u64::from(home.0) << 24 | u64::from(counter)))
    }

    /// The group that holds the queue's record and its partition 0.
    #[must_use]
    pub fn home(self) -> GroupId {
        GroupId((self.0 >> 24) as u16)
    }

    /// The counter within the home group.
    #[must_use]
    pub fn counter(self) -> u32 {
        (self.0 & u64::from(Self::COUNTER_MAX)) as u32
    }

    /// The 40 bits as stored and sent.
    #[must_use]
    pub fn to_u64(self) -> u64 {
        self.0
    }

    /// From the 40 bits as stored and sent; `None` if a higher bit is set.
    #[must_use]
    pub fn from_u64(raw: u64) -> Option<Self> {
        (raw < 1 << 40).then_some(Self(raw))
    }
}

impl fmt::Display for QueueUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.home(), self.counter())
    }
}

/// A job, for ever. 128 bits, high to low: group 16, queue uid 40, partition 8, sequence 56,
/// reserved 8 (zero). Written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u128);

/// Why a text or number is not a job id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobIdError {
    /// Not 32 hexadecimal digits.
    #[error("a job id is 32 hexadecimal digits")]
    NotHex,
    /// The reserved bits are set: made by a newer version, or garbage.
    #[error("the last two digits of a job id are 00")]
    Reserved,
}

impl JobId {
    /// The largest sequence of a partition.
    pub const SEQ_MAX: u64 = (1 << 56) - 1;

    /// The id of job `seq` of a partition that lives in `group`.
    ///
    /// # Panics
    /// If `seq` exceeds [`Self::SEQ_MAX`].
    #[must_use]
    pub fn new(group: GroupId, queue: QueueUid, partition: Partition, seq: u64) -> Self {
        assert!(seq <= Self::SEQ_MAX, "sequence {seq} exceeds 56 bits");
        let high = u128::from(group.0) << 112 | u128::from(queue.to_u64()) << 72;
        Self(high | u128::from(partition.0) << 64 | u128::from(seq) << 8)
    }

    /// The group whose log holds the job.
    #[must_use]
    pub fn group(self) -> GroupId {
        GroupId((self.0 >> 112) as u16)
    }

    /// The queue.
    #[must_use]
    pub fn queue(self) -> QueueUid {
        QueueUid((self.0 >> 72) as u64 & ((1 << 40) - 1))
    }

    /// The partition of the queue.
    #[must_use]
    pub fn partition(self) -> Partition {
        Partition((self.0 >> 64) as u8)
    }

    /// The sequence in the partition: dense, rising, assigned at apply.
    #[must_use]
    pub fn seq(self) -> u64 {
        (self.0 as u64) >> 8
    }

    /// The 16 bytes as sent and stored, big-endian, so that they sort as the id does.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// From 16 bytes as sent and stored.
    ///
    /// # Errors
    /// [`JobIdError::Reserved`] if the reserved bits are set.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, JobIdError> {
        let raw = u128::from_be_bytes(bytes);
        if raw & 0xff == 0 {
            Ok(Self(raw))
        } else {
            Err(JobIdError::Reserved)
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for JobId {
    type Err = JobIdError;

    fn from_str(text: &str) -> Result<Self, JobIdError> {
        let hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let raw = u128::from_str_radix(text, 16)
            .ok()
            .filter(|_| hex)
            .ok_or(JobIdError::NotHex)?;
        Self::from_bytes(raw.to_be_bytes())
    }
}

/// What a worker shows to act on a job that it leased: the job and the grant. The generation rises
/// at every grant, requeue and restore and never resets, so a stale token is refused for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// The job.
    pub job: JobId,
    /// The grant of that job.
    pub lease_gen: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_id_keeps_every_part_at_its_extremes() {
        let queue = QueueUid::new(GroupId(u16::MAX), QueueUid::COUNTER_MAX).expect("in range");
        let id = JobId::new(GroupId(0xabcd), queue, Partition(255), JobId::SEQ_MAX);
        assert_eq!(id.group(), GroupId(0xabcd));
        assert_eq!(id.queue(), queue);
        assert_eq!(id.partition(), Partition(255));
        assert_eq!(id.seq(), JobId::SEQ_MAX);
        assert_eq!(id.to_string().parse::<JobId>(), Ok(id));
        assert_eq!(JobId::from_bytes(id.to_bytes()), Ok(id));
    }

    #[test]
    fn job_id_refuses_what_it_did_not_write() {
        assert_eq!("12".parse::<JobId>(), Err(JobIdError::NotHex));
        assert_eq!(
            "+0000000000000000000000000000000".parse::<JobId>(),
            Err(JobIdError::NotHex)
        );
        let reserved = "00000000000000000000000000000001";
        assert_eq!(reserved.parse::<JobId>(), Err(JobIdError::Reserved));
    }

    #[test]
    fn queue_counter_is_bounded() {
        assert_eq!(QueueUid::new(GroupId(1), QueueUid::COUNTER_MAX + 1), None);
        assert_eq!(QueueUid::from_u64(1 << 40), None);
    }
}
