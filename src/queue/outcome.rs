//! Outcomes in bytes, as sessions keep them until their client has seen them.
//!
//! A tag u8, then, little-endian: 1 Done; 2 Rejected: rejection u16; 3 Queue: uid u64, version u32,
//! paused (1) and draining (2) u8, created u8, groups u16 and each u16, name length u16 and name,
//! settings (64); 4 Purged: jobs u64; 5 Enqueued: count u16 and for each a tag u8 (1 new, 2 existing: job id 16
//! bytes as sent; 3 rejected: u16); 6 Leased: count u16 and for each job id 16, lease_gen u32,
//! attempt u16, lease_ms u32; 7 Items: count u16 and for each u16, 0 done, else the rejection;
//! 8 Swept: matched u32, scanned u32, 0 or 1 u8 and, if 1, the next sequence u64.
//!
//! What answers a command without a place in a session (open, attach, advance) is never kept.

use crate::base::ids::{GroupId, JobId, QueueUid, Token};
use crate::queue::codec::{Read, Reader, len_u16};
use crate::queue::command::{Enqueued, Grant, ItemOutcome, Outcome, QueueInfo, Rejection};
use crate::queue::settings::{put_settings, read_settings};

/// Appends the bytes of an outcome that can be kept.
///
/// # Panics
/// If the outcome is of a command that has no place in a session.
pub(super) fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    match outcome {
        Outcome::Done => out.push(1),
        Outcome::Rejected(rejection) => {
            out.push(2);
            out.extend_from_slice(&(*rejection as u16).to_le_bytes());
        }
        Outcome::Queue(info) => {
            out.push(3);
            put_info(out, info);
        }
        Outcome::Purged { jobs } => {
            out.push(4);
            out.extend_from_slice(&jobs.to_le_bytes());
        }
        Outcome::Enqueued(items) => {
            out.push(5);
            out.extend_from_slice(&len_u16(items.len()).to_le_bytes());
            items.iter().for_each(|item| put_enqueued(out, item));
        }
        Outcome::Leased(grants) => {
            out.push(6);
            out.extend_from_slice(&len_u16(grants.len()).to_le_bytes());
            grants.iter().for_each(|grant| put_grant(out, grant));
        }
        Outcome::Items(items) => {
            out.push(7);
            out.extend_from_slice(&len_u16(items.len()).to_le_bytes());
            for item in items {
                let raw = match item {
                    ItemOutcome::Done => 0,
                    ItemOutcome::Rejected(rejection) => *rejection as u16,
                };
                out.extend_from_slice(&raw.to_le_bytes());
            }
        }
        Outcome::Swept {
            matched,
            scanned,
            next_seq,
        } => {
            out.push(8);
            out.extend_from_slice(&matched.to_le_bytes());
            out.extend_from_slice(&scanned.to_le_bytes());
            out.push(u8::from(next_seq.is_some()));
            if let Some(seq) = next_seq {
                out.extend_from_slice(&seq.to_le_bytes());
            }
        }
        Outcome::SessionOpened { .. } | Outcome::Attached { .. } | Outcome::Advanced { .. } => {
            panic!("{outcome:?} answers a command that has no place in a session");
        }
    }
}

/// Reads the bytes of an outcome of this machine version or a lower one; nothing may follow.
pub(super) fn read_outcome(bytes: &[u8], version: u16) -> Read<Outcome> {
    let mut from = Reader::new(bytes);
    let outcome = match from.u8()? {
        1 => Outcome::Done,
        2 => Outcome::Rejected(read_rejection(&mut from)?),
        3 => Outcome::Queue(Box::new(read_info(&mut from, version)?)),
        4 => Outcome::Purged { jobs: from.u64()? },
        5 => Outcome::Enqueued(read_list(&mut from, read_enqueued)?),
        6 => Outcome::Leased(read_list(&mut from, read_grant)?),
        7 => Outcome::Items(read_list(&mut from, read_item)?),
        8 => Outcome::Swept {
            matched: from.u32()?,
            scanned: from.u32()?,
            next_seq: match from.flag()? {
                true => Some(from.u64()?),
                false => None,
            },
        },
        _ => return Err("an outcome has an unknown tag"),
    };
    from.end()?;
    Ok(outcome)
}

fn read_list<T>(from: &mut Reader<'_>, one: fn(&mut Reader<'_>) -> Read<T>) -> Read<Vec<T>> {
    let count = usize::from(from.u16()?);
    // Every item takes two bytes or more, so a lying count cannot ask for much.
    let mut items = Vec::with_capacity(count.min(from.left() / 2));
    for _ in 0..count {
        items.push(one(from)?);
    }
    Ok(items)
}

fn read_rejection(from: &mut Reader<'_>) -> Read<Rejection> {
    Rejection::from_u16(from.u16()?).ok_or("an outcome has an unknown rejection")
}

fn read_job(from: &mut Reader<'_>) -> Read<JobId> {
    JobId::from_bytes(from.bytes16()?).map_err(|_| "an outcome names an impossible job")
}

fn put_enqueued(out: &mut Vec<u8>, item: &Enqueued) {
    match item {
        Enqueued::New(job) => {
            out.push(1);
            out.extend_from_slice(&job.to_bytes());
        }
        Enqueued::Existing(job) => {
            out.push(2);
            out.extend_from_slice(&job.to_bytes());
        }
        Enqueued::Rejected(rejection) => {
            out.push(3);
            out.extend_from_slice(&(*rejection as u16).to_le_bytes());
        }
    }
}

fn read_enqueued(from: &mut Reader<'_>) -> Read<Enqueued> {
    Ok(match from.u8()? {
        1 => Enqueued::New(read_job(from)?),
        2 => Enqueued::Existing(read_job(from)?),
        3 => Enqueued::Rejected(read_rejection(from)?),
        _ => return Err("an outcome has an unknown tag"),
    })
}

fn put_grant(out: &mut Vec<u8>, grant: &Grant) {
    out.extend_from_slice(&grant.token.job.to_bytes());
    out.extend_from_slice(&grant.token.lease_gen.to_le_bytes());
    out.extend_from_slice(&grant.attempt.to_le_bytes());
    out.extend_from_slice(&grant.lease_ms.to_le_bytes());
}

fn read_grant(from: &mut Reader<'_>) -> Read<Grant> {
    Ok(Grant {
        token: Token {
            job: read_job(from)?,
            lease_gen: from.u32()?,
        },
        attempt: from.u16()?,
        lease_ms: from.u32()?,
    })
}

fn read_item(from: &mut Reader<'_>) -> Read<ItemOutcome> {
    match from.u16()? {
        0 => Ok(ItemOutcome::Done),
        raw => Rejection::from_u16(raw)
            .map(ItemOutcome::Rejected)
            .ok_or("an outcome has an unknown rejection"),
    }
}

fn put_info(out: &mut Vec<u8>, info: &QueueInfo) {
    out.extend_from_slice(&info.uid.to_u64().to_le_bytes());
    out.extend_from_slice(&info.version.to_le_bytes());
    let rest = u8::from(info.paused) | u8::from(info.draining) << 1;
    out.extend_from_slice(&[rest, u8::from(info.created)]);
    out.extend_from_slice(&len_u16(info.groups.len()).to_le_bytes());
    for group in &info.groups {
        out.extend_from_slice(&group.0.to_le_bytes());
    }
    out.extend_from_slice(&len_u16(info.name.len()).to_le_bytes());
    out.extend_from_slice(info.name.as_bytes());
    put_settings(out, &info.settings);
}

fn read_info(from: &mut Reader<'_>, machine_version: u16) -> Read<QueueInfo> {
    let uid = QueueUid::from_u64(from.u64()?).ok_or("an outcome names an impossible queue")?;
    let version = from.u32()?;
    let rest = from.u8()?;
    if rest > 3 {
        return Err("an outcome has a queue in an unknown mode");
    }
    let created = from.flag()?;
    let groups = read_list(from, |from| Ok(GroupId(from.u16()?)))?;
    let name_len = usize::from(from.u16()?);
    let name = std::str::from_utf8(from.take(name_len)?);
    let name = name
        .map_err(|_| "an outcome's queue name is not UTF-8")?
        .to_owned();
    Ok(QueueInfo {
        uid,
        name,
        version,
        paused: rest & 1 != 0,
        draining: rest & 2 != 0,
        groups,
        settings: read_settings(from, machine_version)?,
        created,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::ids::Partition;
    use crate::queue::command::QueueSettings;
    use crate::queue::job_queue::MACHINE_VERSION;

    /// One outcome of each kind that can be kept.
    pub(crate) fn samples() -> Vec<Outcome> {
        let uid = QueueUid::new(GroupId(3), 7).expect("in range");
        let job = JobId::new(GroupId(3), uid, Partition(0), 99);
        let token = Token { job, lease_gen: 5 };
        vec![
            Outcome::Done,
            Outcome::Rejected(Rejection::QueueChanged),
            Outcome::Queue(Box::new(QueueInfo {
                uid,
                name: "mail".to_owned(),
                version: 2,
                paused: true,
                draining: true,
                groups: vec![GroupId(3)],
                settings: QueueSettings::default(),
                created: true,
            })),
            Outcome::Purged { jobs: 12 },
            Outcome::Enqueued(vec![
                Enqueued::New(job),
                Enqueued::Existing(job),
                Enqueued::Rejected(Rejection::QuotaExceeded),
            ]),
            Outcome::Leased(vec![Grant {
                token,
                attempt: 2,
                lease_ms: 30_000,
            }]),
            Outcome::Swept {
                matched: 3,
                scanned: 7,
                next_seq: None,
            },
            Outcome::Swept {
                matched: 1024,
                scanned: 2000,
                next_seq: Some(9),
            },
            Outcome::Items(vec![
                ItemOutcome::Done,
                ItemOutcome::Rejected(Rejection::LeaseLost),
            ]),
        ]
    }

    #[test]
    fn each_kind_survives_its_bytes_and_no_cut_does() {
        for outcome in samples() {
            let mut out = Vec::new();
            put_outcome(&mut out, &outcome);
            assert_eq!(read_outcome(&out, MACHINE_VERSION), Ok(outcome.clone()));
            for at in 0..out.len() {
                assert!(
                    read_outcome(&out[..at], MACHINE_VERSION).is_err(),
                    "{outcome:?} cut at {at}"
                );
            }
            out.push(0);
            assert!(
                read_outcome(&out, MACHINE_VERSION).is_err(),
                "{outcome:?} with a byte more"
            );
        }
    }

    #[test]
    fn a_count_that_lies_costs_nothing() {
        assert!(read_outcome(&[7, 0xff, 0xff], MACHINE_VERSION).is_err());
        assert!(read_outcome(&[], MACHINE_VERSION).is_err());
        assert!(read_outcome(&[9], MACHINE_VERSION).is_err());
    }
}
