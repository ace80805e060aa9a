//! Finished jobs that a queue retains, page by page, over all its partitions.

use crate::base::ids::Partition;
use crate::base::limits::ITEMS_MAX;
use crate::client::queue::{Missing, group_of, partitions, refusal};
use crate::client::session::Route;
use crate::client::{Code, Error, Queue};
use crate::wire::message::{ReplyBody, RequestBody};
use crate::wire::{FinishedJob, FinishedPage};
use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

/// Jobs of one page, unless told otherwise.
const PAGE: u32 = 100;

/// The finished jobs of a queue, page by page, the newest first; see [`Queue::scan_finished`].
///
/// Between two pages the queue goes on: what it retains no more is missed, none is listed twice.
#[derive(Clone, Debug)]
pub struct FinishedScan {
    queue: Queue,
    limit: u32,
    at: FinishedCursor,
    /// What was read of each partition and is not listed yet.
    ahead: Vec<VecDeque<FinishedJob>>,
}

/// A place in a scan of finished jobs, to go on from later or elsewhere: how far each partition is
/// listed. As text: a number for each partition, with dots between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FinishedCursor {
    /// Of each partition, the place before which to go on; 0 = from its newest. Partitions that are
    /// not named are at their newest.
    before: Vec<u64>,
}

/// The place before which there is none.
const AT_END: u64 = 1;

impl FinishedScan {
    pub(super) fn new(queue: Queue) -> Self {
        Self {
            queue,
            limit: PAGE,
            at: FinishedCursor::default(),
            ahead: Vec::new(),
        }
    }

    /// At most so many jobs a page, 1 to 1024.
    #[must_use]
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = limit.clamp(1, ITEMS_MAX as u32);
        self
    }

    /// Begins at a place of an earlier scan.
    #[must_use]
    pub fn from(mut self, cursor: FinishedCursor) -> Self {
        self.at = cursor;
        self.ahead.clear();
        self
    }

    /// Where the next page begins; `None` = there is none.
    #[must_use]
    pub fn cursor(&self) -> Option<FinishedCursor> {
        let at_end = !self.at.before.is_empty()
            && self.at.before.iter().all(|before| *before == AT_END)
            && self.ahead.iter().all(VecDeque::is_empty);
        (!at_end).then(|| self.at.clone())
    }

    /// The next page, or `None` after the last.
    ///
    /// # Errors
    /// [`Code::NoSuchQueue`] if the queue was deleted, or what a call can end with. The scan stays
    /// where it was.
    pub async fn next(&mut self) -> Result<Option<Vec<FinishedJob>>, Error> {
        if self.cursor().is_none() {
            return Ok(None);
        }
        let count = partitions(&self.queue.known());
        self.at.before.resize(count.into(), 0);
        self.ahead.resize(count.into(), VecDeque::new());
        let mut jobs = Vec::new();
        while jobs.len() < self.limit as usize {
            if let Err(error) = self.read_all_ahead(count).await {
                if jobs.is_empty() {
                    return Err(error);
                }
                // It comes again at the next page, with nothing in hand that could be lost.
                break;
            }
            // Whatever a partition has yet to tell is older than what was read of it.
            let heads = self.ahead.iter().enumerate();
            let heads = heads.filter_map(|(number, ahead)| Some((number, ahead.front()?)));
            let Some((number, _)) = heads.max_by_key(|(_, job)| job.finished_at) else {
                break;
            };
            let job = self.ahead[number].pop_front().expect("it has a head");
            self.at.before[number] = job.place;
            jobs.push(job);
        }
        Ok(Some(jobs))
    }

    async fn read_all_ahead(&mut self, partitions: u8) -> Result<(), Error> {
        for number in 0..partitions {
            self.read_ahead(Partition(number)).await?;
        }
        Ok(())
    }

    /// Reads on in a partition of which all that was read is listed.
    async fn read_ahead(&mut self, partition: Partition) -> Result<(), Error> {
        let number = usize::from(partition.0);
        let before = self.at.before[number];
        if before == AT_END || !self.ahead[number].is_empty() {
            return Ok(());
        }
        let page = self.page(partition, before).await?;
        if page.jobs.is_empty() {
            self.at.before[number] = AT_END;
        }
        self.ahead[number] = page.jobs.into();
        Ok(())
    }

    async fn page(&self, partition: Partition, before: u64) -> Result<FinishedPage, Error> {
        let asked = self.queue.placed(Missing::IsAnError, |info| async move {
            let group = group_of(&info, partition)?;
            let body = RequestBody::ScanFinished {
                queue: info.uid,
                partition,
                group,
                before,
                limit: self.limit,
            };
            let client = &self.queue.client;
            match client.call(Route::Group(group), body).await?.body {
                ReplyBody::FinishedPage(page) => Ok(page),
                other => Err(refusal(other)),
            }
        });
        asked.await
    }
}

impl fmt::Display for FinishedCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, before) in self.before.iter().enumerate() {
            let dot = if number > 0 { "." } else { "" };
            write!(f, "{dot}{before}")?;
        }
        Ok(())
    }
}

impl FromStr for FinishedCursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let before: Result<Vec<u64>, _> = text.split('.').map(str::parse).collect();
        match before {
            Ok(before) => Ok(Self { before }),
            Err(_) => {
                let words = format!(
                    "`{text}` is no cursor; expected one that a list of finished jobs gave, like \
                     1021"
                );
                Err(Error::new(Code::BadArgument, words))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text() {
        for (before, text) in [
            (vec![7], "7"),
            (vec![0, u64::MAX], "0.18446744073709551615"),
        ] {
            let cursor = FinishedCursor { before };
            assert_eq!(cursor.to_string(), text);
            assert_eq!(text.parse(), Ok(cursor));
        }
        for bad in ["", "x", "1.", "-1", "1..2"] {
            let error = bad.parse::<FinishedCursor>().expect_err(bad);
            assert_eq!(error.code(), Code::BadArgument, "{bad}");
        }
    }
}
