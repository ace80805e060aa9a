//! Jobs of a queue, page by page, over all its partitions.

use crate::base::ids::Partition;
use crate::base::limits::ITEMS_MAX;
use crate::client::queue::{Missing, group_of, partitions, refusal};
use crate::client::session::Route;
use crate::client::{Code, Error, Queue};
use crate::wire::message::{ReplyBody, RequestBody};
use crate::wire::{JobCursor, JobFilter, JobPage, JobScan, JobState};
use std::fmt;
use std::str::FromStr;

/// Jobs listed on one page, unless told otherwise.
const PAGE: u32 = 100;

/// The jobs of one state, page by page, one partition after the other; see [`Queue::scan`].
///
/// Pending jobs come as they will be leased, others as they were enqueued. Between two pages the
/// queue goes on: a job that changes meanwhile may be missed, none is listed twice in one state.
///
/// ```no_run
/// # async fn example(queue: rrq::client::Queue) -> Result<(), rrq::client::Error> {
/// let mut scan = queue.scan(rrq::client::JobState::Dead);
/// while let Some(page) = scan.next().await? {
///     for job in page.jobs {
///         println!("{} {}", job.id, String::from_utf8_lossy(&job.last_failure));
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Scan {
    queue: Queue,
    state: JobState,
    filter: JobFilter,
    limit: u32,
    bodies: bool,
    /// Where to go on; `None` = at the end.
    at: Option<ScanCursor>,
}

/// A place in a scan, to go on from later or elsewhere. As text: `partition.priority.sequence`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanCursor {
    /// The partition.
    pub partition: Partition,
    /// The place in it; `None` = its beginning.
    pub place: Option<JobCursor>,
}

impl Scan {
    pub(super) fn new(queue: Queue, state: JobState) -> Self {
        Self {
            queue,
            state,
            filter: JobFilter::default(),
            limit: PAGE,
            bodies: false,
            at: Some(ScanCursor::default()),
        }
    }

    /// Only jobs that are like this.
    #[must_use]
    pub fn filter(mut self, filter: JobFilter) -> Self {
        self.filter = filter;
        self
    }

    /// At most so many jobs a page, up to 1024; 0 = none are listed, only counted.
    #[must_use]
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = limit.min(ITEMS_MAX as u32);
        self
    }

    /// With payloads, headers and keys, which are left out otherwise.
    #[must_use]
    pub fn bodies(mut self) -> Self {
        self.bodies = true;
        self
    }

    /// Begins at a place of an earlier scan of the same state.
    #[must_use]
    pub fn from(mut self, cursor: ScanCursor) -> Self {
        self.at = Some(cursor);
        self
    }

    /// Where the next page begins; `None` = there is none.
    #[must_use]
    pub fn cursor(&self) -> Option<ScanCursor> {
        self.at
    }

    /// The next page, or `None` after the last. A step looks at a bounded number of jobs, so that
    /// a page may be empty and yet not the last.
    ///
    /// # Errors
    /// [`Code::NoSuchQueue`] if the queue was deleted, [`Code::Invalid`] for a filter out of its
    /// bounds, or what a call can end with. The scan stays where it was.
    pub async fn next(&mut self) -> Result<Option<JobPage>, Error> {
        let Some(at) = self.at else {
            return Ok(None);
        };
        let this = &*self;
        let asked = this.queue.placed(Missing::IsAnError, |info| async move {
            let group = group_of(&info, at.partition)?;
            let scan = JobScan {
                queue: info.uid,
                partition: at.partition,
                state: this.state,
                filter: this.filter.clone(),
                cursor: at.place,
                limit: this.limit,
                bodies: this.bodies,
            };
            let body = RequestBody::ScanJobs { group, scan };
            let reply = this.queue.client.call(Route::Group(group), body).await?;
            match reply.body {
                ReplyBody::JobPage(page) => Ok((page, partitions(&info))),
                other => Err(refusal(other)),
            }
        });
        let (page, partitions) = asked.await?;
        self.at = after(at, page.next, partitions);
        Ok(Some(page))
    }
}

/// Where a scan goes on after a page of the partition of `at`.
fn after(at: ScanCursor, next: Option<JobCursor>, partitions: u8) -> Option<ScanCursor> {
    let partition = at.partition.0;
    match next {
        Some(_) => Some(ScanCursor { place: next, ..at }),
        None if partition + 1 < partitions => Some(ScanCursor {
            partition: Partition(partition + 1),
            place: None,
        }),
        None => None,
    }
}

impl fmt::Display for ScanCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            None => write!(f, "{}", self.partition),
            Some(place) => write!(f, "{}.{}.{}", self.partition, place.priority, place.seq),
        }
    }
}

impl FromStr for ScanCursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let read = || {
            let mut parts = text.split('.');
            let partition = Partition(parts.next()?.parse().ok()?);
            let place = match parts.next() {
                None => None,
                Some(priority) => Some(JobCursor {
                    priority: priority.parse().ok()?,
                    seq: parts.next()?.parse().ok()?,
                }),
            };
            let whole = parts.next().is_none();
            whole.then_some(Self { partition, place })
        };
        read().ok_or_else(|| {
            let words =
                format!("`{text}` is no cursor; expected one that a scan gave, like 0.4.17");
            Error::new(Code::BadArgument, words)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(partition: u8, place: Option<(u8, u64)>) -> ScanCursor {
        ScanCursor {
            partition: Partition(partition),
            place: place.map(|(priority, seq)| JobCursor { priority, seq }),
        }
    }

    #[test]
    fn a_cursor_survives_its_text() {
        for (cursor, text) in [
            (cursor(0, None), "0"),
            (cursor(7, Some((4, u64::MAX))), "7.4.18446744073709551615"),
        ] {
            assert_eq!(cursor.to_string(), text);
            assert_eq!(text.parse(), Ok(cursor));
        }
        for bad in ["", "0.4", "0.4.1.2", "x", "256", "0.4.-1", "0 .4.1"] {
            let error = bad.parse::<ScanCursor>().expect_err(bad);
            assert_eq!(error.code(), Code::BadArgument, "{bad}");
        }
    }

    #[test]
    fn one_partition_comes_after_the_other() {
        let next = Some(JobCursor {
            priority: 4,
            seq: 9,
        });
        assert_eq!(
            after(cursor(1, None), next, 3),
            Some(cursor(1, Some((4, 9))))
        );
        let end = cursor(1, Some((4, 9)));
        assert_eq!(after(end, None, 3), Some(cursor(2, None)));
        assert_eq!(after(cursor(2, None), None, 3), None);
    }
}
