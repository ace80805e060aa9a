//! What a worker says of the jobs that it holds, and what an operator does to jobs by their ids.

use crate::base::ids::GroupId;
use crate::base::limits::ITEMS_MAX;
#[cfg(doc)]
use crate::client::Code;
use crate::client::call::{command, first, millis, millis_u32, outcome, strange};
use crate::client::session::Route;
use crate::client::{AckItem, Client, Error, JobId, NackItem, Token};
use crate::wire::{ItemOutcome, Op, Outcome};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tracing::Instrument;

impl Client {
    /// The job is done; a result is kept only where the queue retains results.
    ///
    /// # Errors
    /// [`Code::LeaseLost`] or [`Code::Finished`]: the lease ended before, and the job was or will
    /// be run again; or what a call can end with.
    pub async fn ack(&self, token: Token, result: Option<Bytes>) -> Result<(), Error> {
        first(self.ack_batch(vec![AckItem { token, result }]).await)
    }

    /// Many jobs are done; one outcome per item, in order.
    pub async fn ack_batch(&self, items: Vec<AckItem>) -> Vec<Result<(), Error>> {
        let op = |items| Op::Ack { items };
        self.by_group("ack", items, |item| item.token.job, op).await
    }

    /// The job failed and shall be tried again after `delay`, or by its backoff; it dies if this
    /// was its last attempt. The reason is for people and cut at 256 bytes.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn nack(
        &self,
        token: Token,
        delay: Option<Duration>,
        reason: impl Into<Bytes>,
    ) -> Result<(), Error> {
        let item = NackItem {
            token,
            delay_ms: delay.map(millis),
            reason: reason.into(),
        };
        first(self.nack_batch(vec![item]).await)
    }

    /// Many jobs failed; one outcome per item, in order.
    pub async fn nack_batch(&self, items: Vec<NackItem>) -> Vec<Result<(), Error>> {
        let op = |items| Op::Nack { items };
        self.by_group("nack", items, |item| item.token.job, op)
            .await
    }

    /// The lease lasts this long from now; `None` = as long as the job's own or the queue's.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn extend(&self, token: Token, lease: Option<Duration>) -> Result<(), Error> {
        first(
            self.extend_batch(vec![(token, lease.unwrap_or_default())])
                .await,
        )
    }

    /// Many leases last so long from now, a time of zero being the job's own or the queue's; one
    /// outcome per item, in order.
    pub async fn extend_batch(&self, items: Vec<(Token, Duration)>) -> Vec<Result<(), Error>> {
        let op = |items: Vec<(Token, Duration)>| Op::Extend {
            items: items
                .into_iter()
                .map(|(token, lease)| (token, millis_u32(lease)))
                .collect(),
        };
        self.by_group("extend", items, |(token, _)| token.job, op)
            .await
    }

    /// The job goes back to its place, uncounted: it was not started.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn release(&self, token: Token) -> Result<(), Error> {
        first(self.release_batch(vec![token]).await)
    }

    /// Many jobs go back; one outcome per item, in order.
    pub async fn release_batch(&self, tokens: Vec<Token>) -> Vec<Result<(), Error>> {
        let op = |items| Op::Release { items };
        self.by_group("release", tokens, |token| token.job, op)
            .await
    }

    /// The job goes to the dead at once.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub async fn bury(&self, token: Token, reason: impl Into<Bytes>) -> Result<(), Error> {
        let op = |items| Op::Bury { items };
        first(
            self.by_group(
                "bury",
                vec![(token, reason.into())],
                |(token, _)| token.job,
                op,
            )
            .await,
        )
    }

    /// The job shall not run; a worker that has it loses its lease.
    ///
    /// # Errors
    /// [`Code::Finished`], [`Code::NotFound`], or what a call can end with.
    pub async fn cancel(&self, job: JobId) -> Result<(), Error> {
        let op = |items| Op::Cancel { items };
        first(self.by_group("cancel", vec![job], |job| *job, op).await)
    }

    /// Dead jobs become pending again, with their attempts counted anew; one outcome per job.
    pub async fn requeue_dead(&self, jobs: Vec<JobId>) -> Vec<Result<(), Error>> {
        let op = |items| Op::RequeueDead { items };
        self.by_group("requeue", jobs, |job| *job, op).await
    }

    /// Dead jobs are removed; one outcome per job.
    pub async fn delete_dead(&self, jobs: Vec<JobId>) -> Vec<Result<(), Error>> {
        let op = |items| Op::DeleteDead { items };
        self.by_group("delete", jobs, |job| *job, op).await
    }

    /// Asks for items of any groups, and tells in the span of the call what became of each job.
    async fn by_group<T>(
        &self,
        call: &'static str,
        items: Vec<T>,
        job: impl Fn(&T) -> JobId,
        op: impl Fn(Vec<T>) -> Op,
    ) -> Vec<Result<(), Error>> {
        let span = tracing::debug_span!("jobs", call, items = items.len());
        let told = async {
            let jobs: Vec<JobId> = items.iter().map(&job).collect();
            let outcomes = self.each_group(items, job, op).await;
            for (job, outcome) in jobs.iter().zip(&outcomes) {
                match outcome {
                    Ok(()) => tracing::trace!(%job, "done"),
                    Err(error) => tracing::debug!(%job, code = %error.code(), "failed"),
                }
            }
            outcomes
        };
        told.instrument(span).await
    }

    /// One command a group and at most 1024 items each.
    async fn each_group<T>(
        &self,
        items: Vec<T>,
        job: impl Fn(&T) -> JobId,
        op: impl Fn(Vec<T>) -> Op,
    ) -> Vec<Result<(), Error>> {
        let count = items.len();
        let mut batches: Vec<(GroupId, Vec<usize>, Vec<T>)> = Vec::new();
        let mut open: BTreeMap<GroupId, usize> = BTreeMap::new();
        for (place, item) in items.into_iter().enumerate() {
            let group = job(&item).group();
            let batch = open
                .get(&group)
                .copied()
                .filter(|at| batches[*at].1.len() < ITEMS_MAX);
            let batch = batch.unwrap_or_else(|| {
                batches.push((group, Vec::new(), Vec::new()));
                open.insert(group, batches.len() - 1);
                batches.len() - 1
            });
            batches[batch].1.push(place);
            batches[batch].2.push(item);
        }
        let mut calls = Vec::new();
        for (group, places, items) in batches {
            let call = self
                .start(Route::Group(group), command(group, op(items), 0))
                .await;
            calls.push((places, call));
        }
        let mut outcomes = vec![Ok(()); count];
        for (places, call) in calls {
            let reply = match call {
                Ok(call) => call.reply().await,
                Err(error) => Err(error),
            };
            let answer = reply.and_then(outcome).and_then(|outcome| match outcome {
                Outcome::Items(items) if items.len() == places.len() => Ok(items),
                other => Err(strange(&other)),
            });
            for (index, place) in places.into_iter().enumerate() {
                outcomes[place] = match &answer {
                    Ok(items) => match items[index] {
                        ItemOutcome::Done => Ok(()),
                        ItemOutcome::Rejected(rejection) => Err(Error::rejected(rejection)),
                    },
                    Err(error) => Err(error.clone()),
                };
            }
        }
        outcomes
    }
}
