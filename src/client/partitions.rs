//! Which partition a job goes to, and how many jobs are taken from each.
//!
//! The client chooses. A job with a key goes to the partition of its key, the same from every
//! client, so that the queue can know the key again. Jobs without one take turns. Nothing here
//! waits or sends.

use crate::base::checksum::crc32c;
use crate::base::ids::Partition;
use crate::wire::NewJob;
use std::collections::BTreeMap;

/// The partition of a key: `crc32c(key) % partitions`, with CRC-32C as in RFC 3720. Every client,
/// in any language, must choose alike, else the same key would name two jobs.
#[must_use]
pub fn partition_of_key(key: &[u8], partitions: u8) -> Partition {
    let partitions = u32::from(partitions.max(1));
    // The remainder of a division by at most 255.
    Partition((crc32c(&[key]) % partitions) as u8)
}

/// The jobs of one partition, with their places in the batch that they come from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) partition: Partition,
    pub(super) places: Vec<usize>,
    pub(super) jobs: Vec<NewJob>,
}

/// Divides a batch. Jobs without a key stay together, in partition `turn`; those with a key go to
/// its partition. One partition gets the batch whole.
pub(super) fn divide(jobs: Vec<NewJob>, partitions: u8, turn: u32) -> Vec<Part> {
    let turn = Partition((turn % u32::from(partitions.max(1))) as u8);
    let mut parts: BTreeMap<Partition, Part> = BTreeMap::new();
    for (place, job) in jobs.into_iter().enumerate() {
        let key = job.key.as_ref();
        let partition = key.map_or(turn, |key| partition_of_key(key, partitions));
        let part = parts.entry(partition).or_insert_with(|| Part {
            partition,
            places: Vec::new(),
            jobs: Vec::new(),
        });
        part.places.push(place);
        part.jobs.push(job);
    }
    parts.into_values().collect()
}

/// How many jobs to take from each partition, where `ready` of each can be leased: never more than
/// `max` in all, and one of each in turn, beginning at `turn`, so that none starves.
pub(super) fn shares(ready: &[u64], max: u32, turn: u32) -> Vec<u32> {
    let mut shares = vec![0; ready.len()];
    let mut left = max;
    while left > 0 {
        let mut given = false;
        for step in 0..ready.len() {
            let at = (turn as usize + step) % ready.len();
            if left > 0 && u64::from(shares[at]) < ready[at] {
                shares[at] += 1;
                left -= 1;
                given = true;
            }
        }
        if !given {
            break;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(key: Option<&'static str>) -> NewJob {
        NewJob {
            key: key.map(Into::into),
            ..NewJob::default()
        }
    }

    #[test]
    fn a_key_has_its_partition() {
        // 0xe3069283, the published check value, modulo 7 and 16.
        assert_eq!(partition_of_key(b"123456789", 7), Partition(2));
        assert_eq!(partition_of_key(b"123456789", 16), Partition(3));
        assert_eq!(partition_of_key(b"123456789", 1), Partition(0));
        let used: std::collections::BTreeSet<_> = (0..100_u8)
            .map(|key| partition_of_key(&[key], 255))
            .collect();
        assert!(used.len() > 50, "keys spread: {}", used.len());
    }

    #[test]
    fn a_batch_without_keys_goes_whole_to_the_partition_whose_turn_it_is() {
        let parts = divide(vec![job(None); 5], 4, 6);
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].partition, Partition(2));
        assert_eq!(parts[0].places, [0, 1, 2, 3, 4]);
        assert!(divide(Vec::new(), 4, 0).is_empty());
    }

    #[test]
    fn jobs_with_keys_go_where_their_keys_do_and_keep_their_places() {
        let keys = [Some("a"), None, Some("b"), Some("a"), None, Some("c")];
        let parts = divide(keys.map(job).to_vec(), 16, 9);
        let mut seen = [false; 6];
        for part in &parts {
            for (place, job) in part.places.iter().zip(&part.jobs) {
                assert_eq!(job.key.as_deref(), keys[*place].map(str::as_bytes));
                let of_key = |key| partition_of_key(key, 16);
                let due = job.key.as_deref().map_or(Partition(9), of_key);
                assert_eq!(part.partition, due);
                seen[*place] = true;
            }
        }
        assert_eq!(seen, [true; 6]);
        let whole = divide(keys.map(job).to_vec(), 1, 3);
        assert_eq!(whole.len(), 1, "one partition has them all");
        assert_eq!(whole[0].places, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn shares_are_fair_and_never_more_than_asked() {
        assert_eq!(shares(&[100, 100, 100], 10, 0), [4, 3, 3]);
        assert_eq!(shares(&[100, 100, 100], 10, 2), [3, 3, 4]);
        assert_eq!(shares(&[1, 0, 100], 10, 1), [1, 0, 9]);
        assert_eq!(shares(&[2, 2], 10, 7), [2, 2]);
        assert_eq!(shares(&[5, 5, 5, 5], 1, 3), [0, 0, 0, 1]);
        assert_eq!(shares(&[0, 0], 3, 0), [0, 0]);
        assert_eq!(shares(&[], 3, 0), [0; 0]);
    }
}
