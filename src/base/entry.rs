//! One entry of a group's log: the noun that crosses every seam.
//!
//! The leader encodes the payload once and seals the entry with a checksum over all that names and
//! describes it; log, peers and recovery carry it unchanged, so it has one identity everywhere.

use crate::base::checksum::crc32c;
use crate::base::ids::{GroupId, Incarnation, LogIndex, Term};
use crate::base::units::GroupTime;
use bytes::Bytes;

/// What an entry is for. The numbers are on disk for ever: never renumber, never reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A command of the job machine.
    Data = 1,
    /// Nothing: the first entry of a term, or a stamp that moves the group's time on.
    Noop = 2,
    /// A change of the members.
    Conf = 3,
    /// The point at which a hot-state checkpoint is cut.
    Checkpoint = 4,
    /// A new version of the job machine from the next entry on: two bytes, little-endian.
    Version = 5,
    /// A causally consistent cut over chosen groups; reserved.
    Cut = 6,
}

impl EntryKind {
    /// The kind of a stored number, or `None` for one that a newer version wrote.
    #[must_use]
    pub fn from_u8(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::Data,
            2 => Self::Noop,
            3 => Self::Conf,
            4 => Self::Checkpoint,
            5 => Self::Version,
            6 => Self::Cut,
            _ => return None,
        })
    }
}

/// The payload of an entry of kind [`EntryKind::Version`].
#[must_use]
pub fn version_payload(version: u16) -> Bytes {
    Bytes::copy_from_slice(&version.to_le_bytes())
}

/// The version that such a payload names; `None` if it is none.
#[must_use]
pub fn version_of(payload: &[u8]) -> Option<u16> {
    payload.try_into().ok().map(u16::from_le_bytes)
}

/// An entry. Cheap to clone: the payload is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term of the leader that proposed it.
    pub term: Term,
    /// Its place in the group's log.
    pub index: LogIndex,
    /// The group's time, stamped by the leader; never falls along the log.
    pub time: GroupTime,
    /// What it is for.
    pub kind: EntryKind,
    /// The version of the job machine that applies it.
    pub machine_version: u16,
    /// Reserved; zero.
    pub flags: u32,
    /// The seal, see [`Entry::seal`].
    pub crc: u32,
    /// The encoded command; empty for a no-op.
    pub payload: Bytes,
}

impl Entry {
    /// The version of the job machine that the entry after this one carries.
    #[must_use]
    pub fn version_after(&self) -> u16 {
        match self.kind {
            EntryKind::Version => version_of(&self.payload).unwrap_or(self.machine_version),
            _ => self.machine_version,
        }
    }

    /// What it takes, in memory and on the wire: its payload, and about as much as its place in a list.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.payload.len() + std::mem::size_of::<Self>()
    }

    /// The checksum of all fields but itself, of the group and of the incarnation.
    #[must_use]
    pub fn seal(&self, group: GroupId, incarnation: Incarnation) -> u32 {
        let mut head = [0_u8; 40];
        head[0..2].copy_from_slice(&group.0.to_le_bytes());
        head[2] = self.kind as u8;
        head[4..8].copy_from_slice(&incarnation.0.to_le_bytes());
        head[8..10].copy_from_slice(&self.machine_version.to_le_bytes());
        head[12..16].copy_from_slice(&self.flags.to_le_bytes());
        head[16..24].copy_from_slice(&self.index.0.to_le_bytes());
        head[24..32].copy_from_slice(&self.term.0.to_le_bytes());
        head[32..40].copy_from_slice(&self.time.0.to_le_bytes());
        crc32c(&[&head, &self.payload])
    }

    /// The entry with its seal set.
    #[must_use]
    pub fn sealed(mut self, group: GroupId, incarnation: Incarnation) -> Self {
        self.crc = self.seal(group, incarnation);
        self
    }

    /// Whether the seal fits the entry, the group and the incarnation.
    #[must_use]
    pub fn is_intact(&self, group: GroupId, incarnation: Incarnation) -> bool {
        self.crc == self.seal(group, incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seal_covers_every_field() {
        let (group, incarnation) = (GroupId(3), Incarnation(1));
        let entry = Entry {
            term: Term(2),
            index: LogIndex(7),
            time: GroupTime(9),
            kind: EntryKind::Data,
            machine_version: 1,
            flags: 0,
            crc: 0,
            payload: Bytes::from_static(b"x"),
        }
        .sealed(group, incarnation);
        assert!(entry.is_intact(group, incarnation));
        assert!(!entry.is_intact(GroupId(4), incarnation));
        assert!(!entry.is_intact(group, Incarnation(2)));
        let others = [
            Entry {
                term: Term(3),
                ..entry.clone()
            },
            Entry {
                index: LogIndex(8),
                ..entry.clone()
            },
            Entry {
                time: GroupTime(8),
                ..entry.clone()
            },
            Entry {
                kind: EntryKind::Noop,
                ..entry.clone()
            },
            Entry {
                machine_version: 2,
                ..entry.clone()
            },
            Entry {
                flags: 1,
                ..entry.clone()
            },
            Entry {
                payload: Bytes::from_static(b"y"),
                ..entry.clone()
            },
        ];
        assert!(
            others
                .iter()
                .all(|other| !other.is_intact(group, incarnation))
        );
    }
}
