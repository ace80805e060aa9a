//! The last finished jobs of a partition, as a queue with `retain` keeps them.
//!
//! Each has a *place*, from 1, in the order in which they finished. They go oldest first only, so the
//! places that are kept have no gap. 64 places make a page of a [`Tree`].
//!
//! Left out on purpose: how many may be kept. That is the partition's business (`partition.rs`).

use crate::base::limits::FINISHED_PAGE_JOBS;
use crate::queue::codec::Read;
use crate::queue::tree::{Page, Summary, Tree};
use crate::queue::view::JobEnd;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// A finished job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finished {
    /// Its sequence.
    pub(super) seq: u64,
    /// How it ended.
    pub(super) end: JobEnd,
    /// Grants that it had.
    pub(super) attempts: u16,
    /// Wall time of its enqueue, in milliseconds; 48 bits.
    pub(super) enqueued_at: u64,
    /// Wall time of its end, in milliseconds; 48 bits.
    pub(super) finished_at: u64,
    /// What its worker gave back.
    pub(super) result: Option<Bytes>,
}

impl Finished {
    /// Bytes of the result.
    pub(super) fn result_len(&self) -> u64 {
        self.result.as_ref().map_or(0, Bytes::len) as u64
    }
}

/// Consecutive finished jobs of one page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FinishedPage {
    /// The place of the first.
    pub(super) first: u64,
    /// At least one.
    pub(super) jobs: VecDeque<Finished>,
}

impl FinishedPage {
    /// Of jobs with their places, at least one, without a gap.
    pub(super) fn of_jobs(jobs: Vec<(u64, Finished)>) -> Self {
        Self {
            first: jobs.first().map_or(0, |(place, _)| *place),
            jobs: jobs.into_iter().map(|(_, job)| job).collect(),
        }
    }
}

impl Page for FinishedPage {
    fn summary(&self) -> Summary {
        Summary {
            live: self.jobs.len() as u64,
            bytes: self.jobs.iter().map(Finished::result_len).sum(),
            ..Summary::default()
        }
    }

    fn all_dues(&self, _order: usize) -> impl Iterator<Item = u64> {
        std::iter::empty()
    }

    fn set_due(&mut self, _order: usize, _when: u64) {}
}

/// The pages by number, `place / 64`. Cloning shares them.
pub(super) type FinishedPages = Tree<FinishedPage>;

/// The finished jobs of a partition.
#[derive(Default)]
pub(super) struct History {
    pages: FinishedPages,
    /// Sequence to place; derived.
    by_seq: BTreeMap<u64, u64>,
}

impl History {
    /// Of a tree whose pages are still to come; then [`Self::find_all`].
    pub(super) fn of_tree(pages: FinishedPages) -> Self {
        Self {
            pages,
            by_seq: BTreeMap::new(),
        }
    }

    /// Looks at all jobs once: they must stand at the places from `first` to `last`, each once. Pages are
    /// here.
    pub(super) fn find_all(&mut self, first: u64, last: u64) -> Read<()> {
        let mut next = first;
        for (number, page) in self.pages.from(0) {
            if page.first != next || page.first / FINISHED_PAGE_JOBS != number {
                return Err("its places are not those that its partition retains");
            }
            for job in &page.jobs {
                if self.by_seq.insert(job.seq, next).is_some() {
                    return Err("a finished job is twice there");
                }
                next += 1;
            }
        }
        if next == last + 1 {
            Ok(())
        } else {
            Err("its places are not those that its partition retains")
        }
    }

    /// The pages, shared.
    pub(super) fn pages(&self) -> &FinishedPages {
        &self.pages
    }

    /// The pages, for what this node's disk has of them.
    pub(super) fn pages_mut(&mut self) -> &mut FinishedPages {
        &mut self.pages
    }

    /// A copy for a checkpoint, see [`Tree::cut`].
    pub(super) fn cut(&mut self) -> FinishedPages {
        self.pages.cut()
    }

    /// How many are kept.
    pub(super) fn len(&self) -> u64 {
        self.by_seq.len() as u64
    }

    /// Bytes of all results.
    pub(super) fn result_bytes(&self) -> u64 {
        self.pages.summary().bytes
    }

    /// The place of a job.
    pub(super) fn place_of(&self, seq: u64) -> Option<u64> {
        self.by_seq.get(&seq).copied()
    }

    /// What stands at a place.
    pub(super) fn at(&self, place: u64) -> Option<&Finished> {
        let page = self.pages.get(place / FINISHED_PAGE_JOBS)?;
        let index = usize::try_from(place.checked_sub(page.first)?).ok()?;
        page.jobs.get(index)
    }

    /// Adds a job at the place after the last.
    pub(super) fn push(&mut self, place: u64, job: Finished) {
        let before = self.by_seq.insert(job.seq, place);
        assert!(
            before.is_none(),
            "sequence {} finished at {before:?} and again at {place}",
            job.seq
        );
        self.pages.update(place / FINISHED_PAGE_JOBS, |page| {
            if page.jobs.is_empty() {
                page.first = place;
            }
            let next = page.first + page.jobs.len() as u64;
            assert!(next == place, "place {place} comes after place {next}");
            page.jobs.push_back(job);
        });
    }

    /// Drops the oldest.
    pub(super) fn pop(&mut self) -> Option<Finished> {
        let (number, _) = self.pages.from(0).next()?;
        let job = self.pages.update(number, |page| {
            page.first += 1;
            page.jobs.pop_front()
        })?;
        self.by_seq.remove(&job.seq);
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(seq: u64) -> Finished {
        Finished {
            seq,
            end: JobEnd::Completed,
            attempts: 1,
            enqueued_at: 1,
            finished_at: 2,
            result: seq.is_multiple_of(2).then(|| Bytes::from_static(b"ok")),
        }
    }

    #[test]
    fn the_oldest_go_first_and_pages_go_with_their_last_job() {
        let mut history = History::default();
        for place in 1..=200 {
            history.push(place, job(1000 - place));
        }
        assert_eq!((history.len(), history.result_bytes()), (200, 200));
        let frozen = history.pages().clone();
        for place in 1..=130 {
            assert_eq!(history.pop(), Some(job(1000 - place)));
        }
        let numbers = |pages: &FinishedPages, from| {
            let pages = pages.from(from);
            pages
                .map(|(number, page)| (number, page.first, page.jobs.len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(history.pages(), 0), [(2, 131, 61), (3, 192, 9)]);
        assert_eq!(numbers(history.pages(), 3), [(3, 192, 9)]);
        assert_eq!(
            numbers(&frozen, 0),
            [(0, 1, 63), (1, 64, 64), (2, 128, 64), (3, 192, 9)],
            "a frozen state does not see it"
        );
        assert_eq!(history.at(130), None);
        assert_eq!(history.at(131), Some(&job(869)));
        assert_eq!(history.at(201), None);
        assert_eq!(history.place_of(800), Some(200));
        assert_eq!(history.place_of(999), None);
        while history.pop().is_some() {}
        assert_eq!((history.len(), history.result_bytes()), (0, 0));
        assert_eq!(history.pages().from(0).count(), 0);
    }

    #[test]
    fn pages_are_found_by_number() {
        let mut history = History::default();
        for place in 4_000..4_200 {
            history.push(place, job(place));
        }
        let numbers: Vec<u64> = history.pages().from(63).map(|(n, _)| n).collect();
        assert_eq!(numbers, [63, 64, 65]);
        assert_eq!(history.at(4_096), Some(&job(4_096)));
    }
}
