//! A job in the hands of a handler, and what the handler says of it.

use crate::client::{JobId, JobView, LeasedJob, Token, WallTime};
use bytes::Bytes;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A job in the hands of a handler; cheap to clone.
///
/// Its lease is extended for as long as the handler runs. Should it be lost nonetheless, because
/// the job was cancelled or the server did not hear of this worker for too long, the handler is
/// dropped at its next await, and what it runs elsewhere can look at [`Self::is_lost`].
#[derive(Clone, Debug)]
pub struct Job {
    leased: Arc<LeasedJob>,
    queue: Arc<str>,
    lost: watch::Receiver<bool>,
}

impl Job {
    pub(super) fn new(
        leased: Arc<LeasedJob>,
        queue: Arc<str>,
        lost: watch::Receiver<bool>,
    ) -> Self {
        Self {
            leased,
            queue,
            lost,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.leased.job.id
    }

    /// What was enqueued.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.leased.job.body.payload
    }

    /// Its headers, as they were enqueued.
    #[must_use]
    pub fn headers(&self) -> &[(String, Bytes)] {
        &self.leased.job.body.headers
    }

    /// The first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        let mut headers = self.headers().iter();
        headers.find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Its idempotency key.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        self.leased.job.body.key.as_ref()
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u16 {
        self.leased.job.attempts
    }

    /// Whether it dies if this attempt fails.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.leased.job.attempts >= self.leased.job.max_attempts
    }

    /// When it was enqueued.
    #[must_use]
    pub fn enqueued_at(&self) -> WallTime {
        self.leased.job.enqueued_at
    }

    /// The name of its queue.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The grant: what the calls of [`Client`](crate::client::Client) ask for.
    #[must_use]
    pub fn token(&self) -> Token {
        self.leased.token()
    }

    /// All that is known of it.
    #[must_use]
    pub fn view(&self) -> &JobView {
        &self.leased.job
    }

    /// Whether its lease is over: it was lost, or the job is done with.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow() || self.lost.has_changed().is_err()
    }

    /// Waits until its lease is over.
    pub async fn lost(&self) {
        // An error says that the worker is done with the job.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }
}

/// What becomes of a job that was handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done. A result is kept, at most 4 KiB, where the queue's `retain` is above 0.
    Done(Option<Bytes>),
    /// It failed, and shall be tried again: after a time, or by its backoff. It dies if this was
    /// its last attempt. The reason is for people and cut at 256 bytes.
    Retry {
        /// How long it waits; `None` = by its backoff.
        after: Option<Duration>,
        /// Why it failed.
        reason: Bytes,
    },
    /// It can never succeed: it goes to the dead at once.
    Bury {
        /// Why it failed.
        reason: Bytes,
    },
    /// It was not really tried: it goes back to its place, and the attempt does not count.
    Release,
}

impl Verdict {
    /// It failed and is tried again by its backoff.
    #[must_use]
    pub fn retry(reason: impl Into<Bytes>) -> Self {
        let (after, reason) = (None, reason.into());
        Self::Retry { after, reason }
    }

    /// It failed and is tried again after so long.
    #[must_use]
    pub fn retry_after(after: Duration, reason: impl Into<Bytes>) -> Self {
        let (after, reason) = (Some(after), reason.into());
        Self::Retry { after, reason }
    }

    /// It goes to the dead at once.
    #[must_use]
    pub fn bury(reason: impl Into<Bytes>) -> Self {
        let reason = reason.into();
        Self::Bury { reason }
    }
}

/// What a handler may return: nothing, a result, a [`Verdict`], or a `Result` of these whose error
/// is a failure, tried again by the job's backoff with the error's words as the reason.
pub trait IntoVerdict {
    /// The verdict.
    fn into_verdict(self) -> Verdict;
}

impl IntoVerdict for Verdict {
    fn into_verdict(self) -> Verdict {
        self
    }
}

impl IntoVerdict for () {
    fn into_verdict(self) -> Verdict {
        Verdict::Done(None)
    }
}

impl IntoVerdict for Bytes {
    fn into_verdict(self) -> Verdict {
        Verdict::Done(Some(self))
    }
}

impl IntoVerdict for Vec<u8> {
    fn into_verdict(self) -> Verdict {
        Verdict::Done(Some(self.into()))
    }
}

impl IntoVerdict for String {
    fn into_verdict(self) -> Verdict {
        Verdict::Done(Some(self.into()))
    }
}

impl<T: IntoVerdict, E: Display> IntoVerdict for Result<T, E> {
    fn into_verdict(self) -> Verdict {
        match self {
            Ok(done) => done.into_verdict(),
            Err(error) => Verdict::retry(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_handlers_return_is_a_verdict() {
        assert_eq!(().into_verdict(), Verdict::Done(None));
        let done = Verdict::Done(Some("4".into()));
        assert_eq!(String::from("4").into_verdict(), done);
        assert_eq!(Ok::<_, String>(vec![b'4']).into_verdict(), done);
        let failed = Verdict::retry("no route");
        assert_eq!(Err::<(), _>("no route").into_verdict(), failed);
        let boxed: Result<(), Box<dyn std::error::Error>> = Err("no route".into());
        assert_eq!(boxed.into_verdict(), failed);
        let buried = Ok::<_, String>(Verdict::bury("a bad address"));
        assert_eq!(buried.into_verdict(), Verdict::bury("a bad address"));
    }
}
