//! How long a failed job waits: a pure function of curve, attempts and job id.
//!
//! Saturating throughout; jitter is drawn by mixing id and attempts, so that every replica draws
//! the same. Left out on purpose: the deadline itself (the caller adds group time).

use crate::base::ids::JobId;
use crate::base::prng::mix;
use crate::queue::command::{Backoff, BackoffKind};

/// The wait after `attempts` grants, in milliseconds, at most the cap.
pub(super) fn wait_ms(backoff: &Backoff, attempts: u16, job: JobId) -> u64 {
    let base = u64::from(backoff.base_ms);
    let cap = u64::from(backoff.cap_ms);
    let attempts = attempts.max(1);
    let curve = match backoff.kind {
        BackoffKind::Fixed => base,
        BackoffKind::Linear => base.saturating_mul(u64::from(attempts)),
        BackoffKind::Exponential => {
            let mut wait = base;
            for _ in 1..attempts {
                let next = wait.saturating_mul(u64::from(backoff.factor_milli)) / 1000;
                if next == wait || wait >= cap {
                    break;
                }
                wait = next;
            }
            wait
        }
    };
    let wait = curve.min(cap);
    let span = wait * u64::from(backoff.jitter_percent.min(100)) / 100;
    wait - draw(job, attempts) % (span + 1)
}

fn draw(job: JobId, attempts: u16) -> u64 {
    let bytes = job.to_bytes();
    let half = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_be_bytes(word)
    };
    mix(mix(mix(half(0)) ^ half(8)) ^ u64::from(attempts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{GroupId, Partition, QueueUid};

    fn job(seq: u64) -> JobId {
        let queue = QueueUid::new(GroupId(1), 1).expect("in range");
        JobId::new(GroupId(1), queue, Partition(0), seq)
    }

    fn plain(kind: BackoffKind) -> Backoff {
        Backoff {
            kind,
            base_ms: 100,
            factor_milli: 2_000,
            cap_ms: 1_000,
            jitter_percent: 0,
        }
    }

    #[test]
    fn each_curve_rises_as_its_name_says_up_to_the_cap() {
        let waits = |kind| [1, 2, 3, 5, 11].map(|n| wait_ms(&plain(kind), n, job(1)));
        assert_eq!(waits(BackoffKind::Fixed), [100; 5]);
        assert_eq!(waits(BackoffKind::Linear), [100, 200, 300, 500, 1_000]);
        assert_eq!(
            waits(BackoffKind::Exponential),
            [100, 200, 400, 1_000, 1_000]
        );
    }

    #[test]
    fn extremes_saturate() {
        let steep = Backoff {
            base_ms: u32::MAX,
            factor_milli: u32::MAX,
            cap_ms: u32::MAX,
            ..plain(BackoffKind::Exponential)
        };
        assert_eq!(wait_ms(&steep, u16::MAX, job(1)), u64::from(u32::MAX));
        let none = Backoff {
            base_ms: 0,
            ..steep
        };
        assert_eq!(wait_ms(&none, u16::MAX, job(1)), 0);
        let flat = Backoff {
            base_ms: 1,
            factor_milli: 1_001,
            ..steep
        };
        assert_eq!(wait_ms(&flat, u16::MAX, job(1)), 1);
    }

    #[test]
    fn jitter_shortens_by_its_percent_at_most_and_is_drawn_alike() {
        let jittered = Backoff {
            jitter_percent: 20,
            ..plain(BackoffKind::Fixed)
        };
        let waits: Vec<u64> = (0..1000)
            .map(|seq| wait_ms(&jittered, 1, job(seq)))
            .collect();
        assert!(waits.iter().all(|wait| (80..=100).contains(wait)));
        assert!(waits.contains(&80) && waits.contains(&100));
        let again: Vec<u64> = (0..1000)
            .map(|seq| wait_ms(&jittered, 1, job(seq)))
            .collect();
        assert_eq!(waits, again);
    }
}
