//! Batches of a log that may be lost without a doubt about what was in them: a later one proves that they
//! were acknowledged, and the next one tells what they held ([`Recap`](crate::wal::record::Recap)).
//!
//! Reads what is on a disk, simulated or real, as little as it needs; what a start makes of it is told by
//! [`crate::wal::recovery`] alone.

use crate::base::ids::{GroupId, LogIndex};
use crate::base::prng::Prng;
use crate::base::units::Lsn;
use crate::wal::batch::BatchHeader;
use crate::wal::codec::Records;
use crate::wal::record::Record;
use crate::wal::segment::SegmentHead;
use bytes::Bytes;
use std::collections::BTreeSet;

/// A batch of the log of which an intact one behind it says that it was acknowledged, and what it held.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its number.
    pub batch_seq: u64,
    /// Its entries.
    pub entries: Vec<(GroupId, LogIndex)>,
    /// The segment that it is in.
    pub segment: u64,
    /// Where in it; 0 for its head.
    pub offset: usize,
    /// Its length.
    pub bytes: usize,
}

/// The batches of a log, given as its segments in their order, that a later one proves, and of which the recap
/// of the next one tells.
pub fn told_batches(segments: impl IntoIterator<Item = (u64, Bytes)>) -> Vec<Told> {
    let mut told: Vec<(Lsn, Told)> = Vec::new();
    let mut proved = Lsn(0);
    // What a file holds of its earlier use names another segment.
    let is_own = |(number, bytes): &(u64, Bytes)| {
        SegmentHead::read(bytes).is_some_and(|head| head.number == *number)
    };
    for (segment, bytes) in segments.into_iter().filter(is_own) {
        let mut before: Option<(BatchHeader, Told)> = None;
        let mut offset = 0;
        while let Ok((header, records)) = BatchHeader::read(&bytes, offset) {
            let follows = before.as_ref().is_none_or(|(last, _)| {
                last.epoch == header.epoch
                    && last.batch_seq + 1 == header.batch_seq
                    && last.crc == header.prev_crc
            });
            if !follows {
                break;
            }
            proved = proved.max(header.durable_lsn);
            let mut entries = Vec::new();
            let mut tells = BTreeSet::new();
            for record in Records::new(records) {
                match record {
                    Ok(Record::Entry { group, entry, .. }) => entries.push((group, entry.index)),
                    Ok(Record::Recap(recap)) => drop(tells.insert(recap.batch_seq)),
                    _ => {}
                }
            }
            let last = before.take();
            let last = last.filter(|(last, _)| tells.contains(&last.batch_seq));
            told.extend(last.map(|(last, batch)| (last.lsn, batch)));
            let this = Told {
                batch_seq: header.batch_seq,
                entries,
                segment,
                offset,
                bytes: header.encoded_len(),
            };
            before = Some((header, this));
            offset += header.encoded_len();
        }
    }
    told.retain(|(at, _)| *at < proved);
    told.into_iter().map(|(_, batch)| batch).collect()
}

/// Some of these, at the most so many, the late ones rather than the early, since nobody needs what lies before
/// a checkpoint. None holds an entry that is `gone` elsewhere, and the next of none is among them.
pub fn choose(
    mut told: Vec<Told>,
    gone: &BTreeSet<(GroupId, LogIndex)>,
    most: u64,
    prng: &mut Prng,
) -> Vec<Told> {
    let mut chosen = Vec::new();
    told.retain(|batch| batch.entries.iter().all(|entry| !gone.contains(entry)));
    for _ in 0..most {
        let among = 1 + prng.below((told.len() as u64).max(1));
        let back = 1 + prng.below(among) as usize;
        let Some(place) = told.len().checked_sub(back) else {
            break;
        };
        let batch = told.remove(place);
        told.retain(|other| other.batch_seq.abs_diff(batch.batch_seq) > 1);
        chosen.push(batch);
    }
    chosen
}
