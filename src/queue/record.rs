//! A job's record: what changes about a job, in 64 bytes.
//!
//! Layout, little-endian: 0 state u8 (0 free), 1 priority u8, 2 flags u16 (bit 0: `when` is wall
//! time), 4 attempts u16, 6 max_attempts u16, 8 when u48, 14 enqueued_at u48 (wall), 20 expires_at
//! u48 (wall, 0 none), 26 payload position u16, 28 lease_ms u32 (own, 0 the queue's), 32
//! payload_len u32, 36 payload_crc u32, 40 lease_gen u32, 44 owner u32 (session, 0 none), 48
//! payload log index u64, 56 leased_at u48 (0 in machine version 1), 62 two zeros. A free slot is all
//! zeros.
//!
//! Left out on purpose: what the enqueue fixed beside the payload (`body.rs`), the last failure
//! (its leaf's page of reasons), and any order that a job stands in (derived, `partition.rs`).

use crate::base::limits::{PAYLOAD_BYTES_HARD_MAX, PRIORITIES};
use crate::queue::codec::{Read, Reader, put_u48};
use crate::queue::view::JobState;

/// Bytes of a record.
pub(super) const RECORD_BYTES: usize = 64;

const FLAG_WALL: u16 = 1;

/// A record in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// `None` = the slot is free.
    pub(super) state: Option<JobState>,
    /// 0 is served first; below 8.
    pub(super) priority: u8,
    /// `when` is wall time: a run-at.
    pub(super) wall: bool,
    /// Grants that count.
    pub(super) attempts: u16,
    /// Grants at which it dies; its own or the queue's at the enqueue, at least 1.
    pub(super) max_attempts: u16,
    /// Delayed: when it is due. In flight: when the lease ends. Else 0. Milliseconds.
    pub(super) when: u64,
    /// Wall time of the enqueue, in milliseconds.
    pub(super) enqueued_at: u64,
    /// Wall time at which its time to live ends, in milliseconds; 0 = never.
    pub(super) expires_at: u64,
    /// The entry that holds its payload.
    pub(super) log_index: u64,
    /// Its place among the items of that entry.
    pub(super) position: u16,
    /// Its own lease time in milliseconds; 0 = the queue's.
    pub(super) lease_ms: u32,
    /// Bytes of its payload.
    pub(super) payload_len: u32,
    /// CRC-32C of its payload.
    pub(super) payload_crc: u32,
    /// Rises at every grant and requeue, never resets.
    pub(super) lease_gen: u32,
    /// The session that holds it; 0 = none.
    pub(super) owner: u32,
    /// In flight: the group's time of the grant, in milliseconds; 0 if machine version 1 made it. Else
    /// 0.
    pub(super) leased_at: u64,
}

impl Record {
    /// Appends the 64 bytes.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let Some(state) = self.state else {
            out.extend_from_slice(&[0; RECORD_BYTES]);
            return;
        };
        out.extend_from_slice(&[state as u8, self.priority]);
        let flags = if self.wall { FLAG_WALL } else { 0 };
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&self.attempts.to_le_bytes());
        out.extend_from_slice(&self.max_attempts.to_le_bytes());
        put_u48(out, self.when);
        put_u48(out, self.enqueued_at);
        put_u48(out, self.expires_at);
        out.extend_from_slice(&self.position.to_le_bytes());
        out.extend_from_slice(&self.lease_ms.to_le_bytes());
        out.extend_from_slice(&self.payload_len.to_le_bytes());
        out.extend_from_slice(&self.payload_crc.to_le_bytes());
        out.extend_from_slice(&self.lease_gen.to_le_bytes());
        out.extend_from_slice(&self.owner.to_le_bytes());
        out.extend_from_slice(&self.log_index.to_le_bytes());
        put_u48(out, self.leased_at);
        out.extend_from_slice(&[0; 2]);
    }

    /// Reads the 64 bytes; what breaks a rule of a record is refused.
    pub(super) fn decode(bytes: &[u8; RECORD_BYTES]) -> Read<Self> {
        if bytes[0] == 0 {
            return if bytes.iter().all(|byte| *byte == 0) {
                Ok(Self::default())
            } else {
                Err("a free record is not zero")
            };
        }
        let mut from = Reader::new(bytes);
        let state = JobState::from_u8(from.u8()?).ok_or("a record has an unknown state")?;
        let priority = from.u8()?;
        let flags = from.u16()?;
        let attempts = from.u16()?;
        let max_attempts = from.u16()?;
        let when = from.u48()?;
        let enqueued_at = from.u48()?;
        let expires_at = from.u48()?;
        let position = from.u16()?;
        let lease_ms = from.u32()?;
        let payload_len = from.u32()?;
        let payload_crc = from.u32()?;
        let lease_gen = from.u32()?;
        let owner = from.u32()?;
        let log_index = from.u64()?;
        let leased_at = from.u48()?;
        from.zeros(2)?;
        if flags & !FLAG_WALL != 0 {
            return Err("a record has an unknown flag");
        }
        let record = Self {
            state: Some(state),
            priority,
            wall: flags & FLAG_WALL != 0,
            attempts,
            max_attempts,
            when,
            enqueued_at,
            expires_at,
            log_index,
            position,
            lease_ms,
            payload_len,
            payload_crc,
            lease_gen,
            owner,
            leased_at,
        };
        record.rules()?;
        Ok(record)
    }

    /// The rules that a record keeps by itself; free ones are zero.
    pub(super) fn rules(&self) -> Read<()> {
        let Some(state) = self.state else {
            return if *self == Self::default() {
                Ok(())
            } else {
                Err("a free record is not zero")
            };
        };
        if usize::from(self.priority) >= PRIORITIES {
            return Err("a record's priority is out of range");
        }
        if self.payload_len as usize > PAYLOAD_BYTES_HARD_MAX {
            return Err("a record's payload is larger than any may be");
        }
        if self.max_attempts == 0 || self.attempts > self.max_attempts {
            return Err("a record's attempts exceed their bound");
        }
        if self.wall && state != JobState::Delayed {
            return Err("a record that is not delayed has a run-at");
        }
        let timed = matches!(state, JobState::Delayed | JobState::InFlight);
        if !timed && self.when != 0 {
            return Err("a record that waits for nothing has a due time");
        }
        if state != JobState::InFlight && self.owner != 0 {
            return Err("a record that is not leased has an owner");
        }
        if state != JobState::InFlight && self.leased_at != 0 {
            return Err("a record that is not leased has a time of its grant");
        }
        if state == JobState::InFlight && (self.attempts == 0 || self.lease_gen == 0) {
            return Err("a leased record was never granted");
        }
        let waits = matches!(state, JobState::Pending | JobState::Delayed);
        if waits && self.attempts == self.max_attempts {
            return Err("a record waits without an attempt left");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leased() -> Record {
        Record {
            state: Some(JobState::InFlight),
            priority: 7,
            wall: false,
            attempts: 0x0102,
            max_attempts: 0x0304,
            when: 0x0605_0403_0201,
            enqueued_at: 0x1605_0403_0201,
            expires_at: 0x2605_0403_0201,
            log_index: u64::MAX,
            position: 0x0506,
            lease_ms: 0x0708_090a,
            payload_len: 0x0010_0000,
            payload_crc: 0x0b0c_0d0e,
            lease_gen: 0x0f10_1112,
            owner: 0x1314_1516,
            leased_at: 0x3605_0403_0201,
        }
    }

    fn encoded(record: &Record) -> [u8; RECORD_BYTES] {
        let mut out = Vec::new();
        record.encode(&mut out);
        out.try_into().expect("64 bytes")
    }

    #[test]
    fn every_field_has_its_place() {
        let bytes = encoded(&leased());
        assert_eq!(bytes[0], 3);
        assert_eq!(bytes[1], 7);
        assert_eq!(bytes[4..6], [2, 1]);
        assert_eq!(bytes[8..14], [1, 2, 3, 4, 5, 6]);
        assert_eq!(bytes[26..28], [6, 5]);
        assert_eq!(bytes[28..32], [0x0a, 9, 8, 7]);
        assert_eq!(bytes[40..44], [0x12, 0x11, 0x10, 0x0f]);
        assert_eq!(bytes[44..48], [0x16, 0x15, 0x14, 0x13]);
        assert_eq!(bytes[48..56], [0xff; 8]);
        assert_eq!(bytes[56..], [1, 2, 3, 4, 5, 0x36, 0, 0]);
        assert_eq!(Record::decode(&bytes), Ok(leased()));
    }

    #[test]
    fn a_record_that_breaks_a_rule_is_refused() {
        let mut unknown = encoded(&leased());
        unknown[0] = 5;
        assert_eq!(
            Record::decode(&unknown),
            Err("a record has an unknown state")
        );
        let mut reserved = encoded(&leased());
        reserved[62] = 1;
        assert_eq!(
            Record::decode(&reserved),
            Err("a reserved byte is not zero")
        );
        let mut free = encoded(&Record::default());
        free[20] = 1;
        assert_eq!(Record::decode(&free), Err("a free record is not zero"));
        let wall = Record {
            wall: true,
            ..leased()
        };
        assert!(Record::decode(&encoded(&wall)).is_err());
        let resting = Record {
            state: Some(JobState::Pending),
            when: 0,
            owner: 0,
            ..leased()
        };
        assert_eq!(
            Record::decode(&encoded(&resting)),
            Err("a record that is not leased has a time of its grant")
        );
        let spent = Record {
            attempts: 9,
            max_attempts: 8,
            ..leased()
        };
        assert!(Record::decode(&encoded(&spent)).is_err());
    }
}
