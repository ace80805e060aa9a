//! The longest time in which a stream of answers stood still: what an outage is to those who wait.
//!
//! Each stream counts for itself. Of groups that are led by different nodes some go on while others
//! have no leader; over all of them together nothing would be seen.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
struct Stream {
    last: Instant,
    longest: Duration,
}

/// Streams of answers, looked at for a while.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Empty while nobody looks.
    streams: Vec<Stream>,
}

impl Gaps {
    /// From now on looks at so many streams.
    pub(super) fn begin(&mut self, streams: usize, now: Instant) {
        let (last, longest) = (now, Duration::ZERO);
        self.streams = vec![Stream { last, longest }; streams];
    }

    /// Something was answered in a stream.
    pub(super) fn answered(&mut self, stream: usize, now: Instant) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.longest = stream.longest.max(now - stream.last);
            stream.last = now;
        }
    }

    /// Whether something was answered in each stream after a moment.
    #[must_use]
    pub(super) fn all_answered_since(&self, moment: Instant) -> bool {
        self.streams.iter().all(|stream| stream.last > moment)
    }

    /// Looks no more; the longest time without an answer of any stream.
    pub(super) fn end(&mut self, now: Instant) -> Duration {
        let streams = std::mem::take(&mut self.streams);
        let longest = streams
            .iter()
            .map(|stream| stream.longest.max(now - stream.last));
        longest.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_any_stream_counts_up_to_the_end() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut gaps = Gaps::default();
        gaps.answered(0, at(5));
        gaps.begin(2, at(10));
        for ms in [20, 30, 40, 50, 60] {
            gaps.answered(0, at(ms));
        }
        gaps.answered(1, at(45));
        assert!(gaps.all_answered_since(at(44)) && !gaps.all_answered_since(at(45)));
        gaps.answered(1, at(60));
        assert_eq!(gaps.end(at(65)), Duration::from_millis(35));
        gaps.begin(1, at(70));
        gaps.answered(0, at(71));
        assert_eq!(
            gaps.end(at(90)),
            Duration::from_millis(19),
            "it still lasts"
        );
        assert_eq!(gaps.end(at(200)), Duration::ZERO, "nobody looks");
    }
}
