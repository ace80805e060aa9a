//! A job under construction: what is asked beyond its payload, until it is awaited.

use crate::base::units::WallTime;
use crate::client::call::{millis, millis_u32};
use crate::client::{Backoff, Client, Enqueued, Error, JobId, NewJob, Queue, Start};
use bytes::Bytes;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

/// Where a job goes.
#[derive(Clone, Debug)]
enum Target {
    /// A queue by its name, made if it is not there.
    Name(Client, String),
    Queue(Queue),
}

/// A job that is enqueued when this is awaited; see [`Client::enqueue`] and [`Queue::enqueue`].
///
/// Durations are rounded down to milliseconds. What is not said follows the queue's settings.
#[derive(Clone, Debug)]
#[must_use = "a job is enqueued when this is awaited"]
pub struct Enqueue {
    target: Target,
    job: NewJob,
}

impl Client {
    /// A job for a queue, which is made with the default settings if it is not there. Await what
    /// is returned, after saying more of the job if need be:
    ///
    /// ```no_run
    /// # async fn example(client: rrq::client::Client) -> Result<(), rrq::client::Error> {
    /// client.enqueue("emails", "hello").key("order-42").priority(0).await?;
    /// # Ok(()) }
    /// ```
    pub fn enqueue(&self, queue: impl Into<String>, job: impl Into<NewJob>) -> Enqueue {
        Enqueue {
            target: Target::Name(self.clone(), queue.into()),
            job: job.into(),
        }
    }
}

impl Queue {
    /// A job for this queue: a payload, or a whole [`NewJob`]. Await what is returned.
    ///
    /// The answer is [`Enqueued::New`], or [`Enqueued::Existing`] if its key names a job already.
    /// An answer lost with the connection is asked for again, and is never a second job. The
    /// payload may have 1 MiB, unless the node is configured otherwise.
    ///
    /// # Errors
    /// Of the future: [`Code::QuotaExceeded`](super::Code::QuotaExceeded),
    /// [`Code::IdempotencyConflict`](super::Code::IdempotencyConflict),
    /// [`Code::IdempotencyWindowFull`](super::Code::IdempotencyWindowFull),
    /// [`Code::PayloadTooLarge`](super::Code::PayloadTooLarge), or what a call can end with. Of
    /// [`Code::Unknown`](super::Code::Unknown) see [`Error::maybe_applied`].
    pub fn enqueue(&self, job: impl Into<NewJob>) -> Enqueue {
        Enqueue {
            target: Target::Queue(self.clone()),
            job: job.into(),
        }
    }
}

/// What can be said of a job, whether it is enqueued alone or in a batch.
macro_rules! describe {
    ($of:ident $(, #[$mark:meta])?) => {
        impl $of {
            /// The idempotency key, 1 to 256 bytes: another job with it within the queue's window
            /// (a day, unless set otherwise) is the first one, if the payload is the same.
            $(#[$mark])?
            pub fn key(mut self, key: impl Into<Bytes>) -> Self {
                self.described().key = Some(key.into());
                self
            }

            /// It may run this long after its enqueue, not before.
            $(#[$mark])?
            pub fn delay(mut self, delay: Duration) -> Self {
                self.described().start = Start::After(millis(delay));
                self
            }

            /// It may run at this wall time, a [`SystemTime`] or [`WallTime`], not before.
            $(#[$mark])?
            pub fn run_at(mut self, at: impl Into<WallTime>) -> Self {
                self.described().start = Start::At(at.into().0);
                self
            }

            /// 0 to 7; 0 is served first, 4 is the default.
            $(#[$mark])?
            pub fn priority(mut self, priority: u8) -> Self {
                self.described().priority = Some(priority);
                self
            }

            /// A small name and value for the worker; at most 32, of 4 KiB together.
            $(#[$mark])?
            pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
                self.described().headers.push((name.into(), value.into()));
                self
            }

            /// It dies if it has not started to run this long after its enqueue.
            $(#[$mark])?
            pub fn ttl(mut self, ttl: Duration) -> Self {
                self.described().ttl_ms = millis(ttl);
                self
            }

            /// How long a worker may hold it without a word; the queue says 30 s unless set otherwise.
            $(#[$mark])?
            pub fn lease(mut self, lease: Duration) -> Self {
                self.described().lease_ms = millis_u32(lease);
                self
            }

            /// How often it is handed out before it is dead; the queue says 20 unless set otherwise.
            $(#[$mark])?
            pub fn max_attempts(mut self, attempts: u16) -> Self {
                self.described().max_attempts = attempts;
                self
            }

            /// How long a worker may run it: a [`Worker`](super::Worker) ends it after that, and it counts
            /// as failed.
            $(#[$mark])?
            pub fn run_limit(mut self, limit: Duration) -> Self {
                self.described().run_limit_ms = millis_u32(limit);
                self
            }

            /// How long it waits after a failure, instead of what the queue says.
            $(#[$mark])?
            pub fn backoff(mut self, backoff: Backoff) -> Self {
                self.described().backoff = Some(backoff);
                self
            }
        }
    };
}

describe!(Enqueue);
describe!(NewJob, #[must_use]);

impl Enqueue {
    fn described(&mut self) -> &mut NewJob {
        &mut self.job
    }

    /// Enqueues it; its id, new or there already.
    ///
    /// # Errors
    /// As [`Queue::enqueue`].
    pub async fn id(self) -> Result<JobId, Error> {
        match self.await? {
            Enqueued::New(id) | Enqueued::Existing(id) => Ok(id),
            Enqueued::Rejected(rejection) => Err(Error::rejected(rejection)),
        }
    }

    async fn send(self) -> Result<Enqueued, Error> {
        let queue = match self.target {
            Target::Queue(queue) => queue,
            Target::Name(client, name) => client.queue(&name).await?,
        };
        queue.add(self.job).await
    }
}

impl IntoFuture for Enqueue {
    type Output = Result<Enqueued, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl NewJob {
    fn described(&mut self) -> &mut Self {
        self
    }
}

impl From<Bytes> for NewJob {
    fn from(payload: Bytes) -> Self {
        Self {
            payload,
            ..Self::default()
        }
    }
}

macro_rules! payloads {
    ($($payload:ty),*) => {
        $(impl From<$payload> for NewJob {
            fn from(payload: $payload) -> Self {
                Bytes::from(payload).into()
            }
        })*
    };
}

payloads!(&'static str, String, Vec<u8>, &'static [u8]);

impl<const N: usize> From<&'static [u8; N]> for NewJob {
    fn from(payload: &'static [u8; N]) -> Self {
        Bytes::from_static(payload).into()
    }
}

impl From<SystemTime> for WallTime {
    /// Times before 1970 are 1970, those that no job can hold are the last that it can.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        Self(millis(since.unwrap_or(Duration::ZERO)).min(Self::MAX.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_times_are_milliseconds_since_1970() {
        let at = |time| WallTime::from(time).0;
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(at(epoch + Duration::from_micros(1_234_567)), 1_234);
        assert_eq!(at(epoch - Duration::from_secs(1)), 0);
        assert_eq!(at(epoch + Duration::from_secs(1 << 40)), WallTime::MAX.0);
    }

    #[test]
    fn payloads_are_taken_in_many_forms() {
        let payload = |job: NewJob| job.payload;
        assert_eq!(payload("a".into()), "a");
        assert_eq!(payload(String::from("a").into()), "a");
        assert_eq!(payload(vec![b'a'].into()), "a");
        assert_eq!(payload(b"a".into()), "a");
        assert_eq!(payload(b"a".as_slice().into()), "a");
    }
}
