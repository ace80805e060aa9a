//! One job in the hands of a handler: its run limit, its panic, its lease, and the telling of how
//! it ended.

use super::job::{IntoVerdict, Job, Verdict};
use crate::base::limits::RESULT_BYTES_MAX;
use crate::client::{Client, Code, Error, Token};
use bytes::Bytes;
use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::watch;

/// Between two tries to tell the server how a job ended.
const RETRY: Duration = Duration::from_secs(1);

/// What became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    Failed,
    Buried,
    Released,
    /// The lease went before the end was heard.
    Lost,
}

/// What all jobs of a worker share.
pub(super) struct Hands<F> {
    pub(super) client: Client,
    pub(super) handler: F,
    /// The worker's own run limit; zero = none.
    pub(super) run_limit: Duration,
    /// True once nothing may run any more.
    pub(super) ended: watch::Receiver<bool>,
}

/// Runs the handler for a job to whichever end, and tells the server.
pub(super) async fn handle<F, Fut, V>(hands: Arc<Hands<F>>, job: Job) -> Fate
where
    F: Fn(Job) -> Fut,
    Fut: Future<Output = V>,
    V: IntoVerdict,
{
    let limit = run_limit(&hands.run_limit, job.view().body.run_limit_ms);
    let mut run = Box::pin(async { (hands.handler)(job.clone()).await.into_verdict() });
    let verdict = tokio::select! {
        caught = caught(&mut run) => Some(caught.unwrap_or_else(|panic| {
            tracing::warn!(job = %job.id(), reason = %panic, "a handler panicked");
            Verdict::retry(panic)
        })),
        () = job.lost() => None,
        () = passed(limit) => {
            tracing::warn!(job = %job.id(), ?limit, "the run limit has passed");
            Some(Verdict::retry(format!("timeout: it ran longer than {limit:?}")))
        }
        () = is_true(hands.ended.clone()) => {
            let reason = "the worker was stopped before the job was done";
            Some(Verdict::retry_after(Duration::ZERO, reason))
        }
    };
    // A destructor of the handler's may panic as well.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(run)));
    match verdict {
        Some(verdict) => tell(&hands, job.token(), fit(verdict)).await,
        None => Fate::Lost,
    }
}

/// The shorter of two limits; zero = none.
fn run_limit(of_worker: &Duration, of_job_ms: u32) -> Duration {
    let of_job = Duration::from_millis(of_job_ms.into());
    let limits = [*of_worker, of_job].into_iter();
    let limit = limits.filter(|limit| !limit.is_zero()).min();
    limit.unwrap_or_default()
}

async fn passed(limit: Duration) {
    match limit {
        Duration::ZERO => std::future::pending().await,
        limit => tokio::time::sleep(limit).await,
    }
}

pub(in crate::client) async fn is_true(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|is| *is).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a future ends with, or the words of its panic.
async fn caught<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Result<T, String> {
    let mut future = std::pin::Pin::new(future);
    poll_fn(
        |context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(panic) => Poll::Ready(Err(words_of(&*panic))),
        },
    )
    .await
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    words.map_or("panicked".to_owned(), |words| format!("panicked: {words}"))
}

/// A result that no queue keeps would be refused for ever: the job failed.
fn fit(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Done(Some(result)) if result.len() > RESULT_BYTES_MAX => {
            let bytes = result.len();
            let words =
                format!("its result has {bytes} bytes, at most {RESULT_BYTES_MAX} are kept");
            Verdict::retry(words)
        }
        other => other,
    }
}

/// Tells the server until it hears it.
async fn tell<F>(hands: &Hands<F>, token: Token, verdict: Verdict) -> Fate {
    let client = &hands.client;
    let mut maybe_applied = false;
    loop {
        let told = match verdict.clone() {
            Verdict::Done(result) => client.ack(token, result).await,
            Verdict::Retry { after, reason } => client.nack(token, after, cut(reason)).await,
            Verdict::Bury { reason } => client.bury(token, cut(reason)).await,
            Verdict::Release => client.release(token).await,
        };
        let error = match told {
            Ok(()) => return fate_of(&verdict),
            Err(error) => error,
        };
        if is_lost(&error) {
            if maybe_applied && was_heard(&verdict, error.code()) {
                return fate_of(&verdict);
            }
            tracing::debug!(job = %token.job, %error, "the end of a job came too late");
            return Fate::Lost;
        }
        if !error.is_retryable() || client.is_closed() || *hands.ended.borrow() {
            tracing::warn!(job = %token.job, %error, "the end of a job cannot be told");
            return Fate::Lost;
        }
        maybe_applied |= error.maybe_applied();
        tracing::debug!(job = %token.job, %error, "telling the end of a job again");
        tokio::time::sleep(RETRY).await;
    }
}

/// Reasons are cut by the server as well; a long one need not travel.
fn cut(reason: Bytes) -> Bytes {
    reason.slice(..reason.len().min(crate::base::limits::REASON_BYTES_MAX))
}

fn fate_of(verdict: &Verdict) -> Fate {
    match verdict {
        Verdict::Done(_) => Fate::Done,
        Verdict::Retry { .. } => Fate::Failed,
        Verdict::Bury { .. } => Fate::Buried,
        Verdict::Release => Fate::Released,
    }
}

/// Whether an earlier try, whose answer was lost, must have been heard: an acknowledged job is
/// finished, any other is out of our hands.
fn was_heard(verdict: &Verdict, code: Code) -> bool {
    match verdict {
        Verdict::Done(_) => code == Code::Finished,
        _ => code == Code::LeaseLost || code == Code::WrongState,
    }
}

/// Whether the job is no longer ours, whatever we do.
pub(super) fn is_lost(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::LeaseLost
            | Code::Finished
            | Code::NotFound
            | Code::QueueChanged
            | Code::WrongState
            | Code::SessionExpired
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_limit_holds_and_zero_is_none() {
        let ms = Duration::from_millis;
        assert_eq!(run_limit(&Duration::ZERO, 0), Duration::ZERO);
        assert_eq!(run_limit(&ms(5), 0), ms(5));
        assert_eq!(run_limit(&Duration::ZERO, 7), ms(7));
        assert_eq!(run_limit(&ms(5), 7), ms(5));
        assert_eq!(run_limit(&ms(9), 7), ms(7));
    }

    #[tokio::test]
    async fn a_panic_is_caught_with_its_words() {
        async fn panics(words: &'static str) -> u8 {
            tokio::task::yield_now().await;
            match words {
                "" => std::panic::panic_any(7),
                words => panic!("{words}"),
            }
        }
        let mut said = Box::pin(panics("no such user"));
        assert_eq!(
            caught(&mut said).await,
            Err("panicked: no such user".to_owned())
        );
        let mut silent = Box::pin(panics(""));
        assert_eq!(caught(&mut silent).await, Err("panicked".to_owned()));
        assert_eq!(caught(&mut Box::pin(async { 4 })).await, Ok(4));
    }

    #[test]
    fn a_result_that_is_too_large_is_a_failure() {
        let of = |bytes: usize| fit(Verdict::Done(Some(vec![0; bytes].into())));
        assert!(matches!(of(RESULT_BYTES_MAX), Verdict::Done(Some(_))));
        let Verdict::Retry { reason, .. } = of(RESULT_BYTES_MAX + 1) else {
            panic!("it was taken");
        };
        assert_eq!(reason, "its result has 4097 bytes, at most 4096 are kept");
    }

    #[test]
    fn an_answer_that_was_lost_may_be_known_by_the_next() {
        let done = Verdict::Done(None);
        assert!(was_heard(&done, Code::Finished));
        assert!(!was_heard(&done, Code::LeaseLost), "the job runs again");
        assert!(was_heard(&Verdict::retry("x"), Code::LeaseLost));
    }
}
