//! Which jobs a filter lets through: the one place that says so, for scans and sweeps alike.

use crate::base::limits::{PRIORITIES, REASON_BYTES_MAX};
use crate::queue::command::JobFilter;
use crate::queue::leaf::Leaf;

/// Whether a filter is within its bounds; one that is not could let nothing through.
pub(super) fn filter_is_valid(filter: &JobFilter) -> bool {
    filter.reason_contains.len() <= REASON_BYTES_MAX
        && filter
            .priority
            .is_none_or(|class| usize::from(class) < PRIORITIES)
}

/// Whether the filter lets the job of a live slot through.
pub(super) fn lets_through(filter: &JobFilter, leaf: &Leaf, slot: usize) -> bool {
    let record = &leaf.records()[slot];
    let (from, before) = (filter.enqueued_from_ms, filter.enqueued_before_ms);
    filter.priority.is_none_or(|class| class == record.priority)
        && record.enqueued_at >= from
        && (before == 0 || record.enqueued_at < before)
        && u32::from(record.attempts) >= filter.attempts_min
        && contains(leaf.reason_bytes(slot), &filter.reason_contains)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_part_is_found_anywhere_and_an_empty_one_everywhere() {
        for part in ["", "a", "abc", "bc"] {
            assert!(contains(b"abc", part.as_bytes()), "{part}");
        }
        for part in ["d", "abcd", "ac"] {
            assert!(!contains(b"abc", part.as_bytes()), "{part}");
        }
        assert!(contains(b"", b""));
        assert!(!contains(b"", b"a"));
    }

    #[test]
    fn a_filter_has_bounds() {
        assert!(filter_is_valid(&JobFilter::default()));
        let long = JobFilter {
            reason_contains: Bytes::from(vec![b'x'; 257]),
            ..JobFilter::default()
        };
        assert!(!filter_is_valid(&long));
        let class = JobFilter {
            priority: Some(8),
            ..JobFilter::default()
        };
        assert!(!filter_is_valid(&class));
    }
}
