//! Waiting for the end of a job.

use crate::base::limits::POLL_WAIT_MS_MAX;
use crate::base::units::Monotonic;
use crate::client::call::{millis_u32, strange, traced};
use crate::client::session::Route;
use crate::client::{Client, Code, Error, JobId, Queue};
use crate::wire::message::{ReplyBody, RequestBody};
use crate::wire::{FinishedJob, JobState, JobView};
use std::time::Duration;

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was acknowledged, cancelled or dropped, and its queue still remembers it: see
    /// [`FinishedJob::end`] and [`FinishedJob::result`].
    Finished(Box<FinishedJob>),
    /// It is over, and nothing more is known of it: its queue's `retain` is 0, or so many other
    /// jobs ended after it that it is forgotten.
    Unrecorded,
    /// It is dead, and its queue keeps it: it may be requeued.
    Dead(Box<JobView>),
}

impl Client {
    /// Waits for the end of a job, at most so long. The wait outlasts lost connections and a server
    /// that is away for less than [`Options::deadline`](super::Options::deadline) at a time.
    ///
    /// What became of the job is certain only where its queue's `retain` is above 0; else the
    /// answer is [`Ended::Unrecorded`].
    ///
    /// # Errors
    /// [`Code::Timeout`] if it has not ended by then, [`Code::NotFound`] if it never was, or what a
    /// call can end with.
    pub async fn wait(&self, job: JobId, patience: Duration) -> Result<Ended, Error> {
        let span = tracing::debug_span!("wait", %job);
        traced(span, self.wait_until(job, self.now().plus(patience))).await
    }

    async fn wait_until(&self, job: JobId, until: Monotonic) -> Result<Ended, Error> {
        loop {
            let left = until.since(self.now());
            let wait = left.min(Duration::from_millis(POLL_WAIT_MS_MAX));
            let body = RequestBody::WaitJob {
                job,
                wait_ms: millis_u32(wait),
            };
            let reply = self.call(Route::Group(job.group()), body).await;
            match reply.map(|reply| reply.body) {
                Ok(ReplyBody::Finished(job)) => return Ok(Ended::Finished(job)),
                Ok(ReplyBody::Job(job)) if job.state == JobState::Dead => {
                    return Ok(Ended::Dead(job));
                }
                Ok(ReplyBody::Job(_)) if !left.is_zero() => {}
                Ok(ReplyBody::Job(view)) => {
                    let words = format!("job {job} has not ended, it is {:?}", view.state);
                    return Err(Error::new(Code::Timeout, words));
                }
                Ok(other) => return Err(strange(&other)),
                Err(error) if error.code() == Code::Finished => return Ok(Ended::Unrecorded),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Queue {
    /// As [`Client::wait`].
    ///
    /// # Errors
    /// As [`Client::wait`].
    pub async fn wait(&self, job: JobId, patience: Duration) -> Result<Ended, Error> {
        self.client.wait(job, patience).await
    }
}
