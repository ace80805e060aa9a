//! The loop of a worker: polls, starts, extends, drains. What it may do says `plan.rs`.

use super::handle::{Fate, Hands, handle, is_lost};
use super::job::{IntoVerdict, Job};
use super::plan::Plan;
use super::{Summary, Worker};
use crate::base::units::Monotonic;
use crate::client::{Error, LeasedJob, Queue, Token};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Instrument;

/// How long a poll waits for a job.
const POLL: Duration = Duration::from_secs(20);
/// After a poll that failed, the next one waits this long.
const RETRY: Duration = Duration::from_secs(1);

type Poll = Pin<Box<dyn Future<Output = Result<Vec<LeasedJob>, Error>> + Send>>;

/// What ended.
enum Event {
    Handled(Token, Fate),
    Extended(Vec<Token>, Vec<Result<(), Error>>),
    /// So many jobs that never started went back, and so many did not.
    Released(u64, u64),
}

/// A job in hand.
struct InHand {
    /// Until it starts.
    leased: Option<Arc<LeasedJob>>,
    /// Tells its handler that the lease is over.
    lost: watch::Sender<bool>,
}

pub(super) struct Loop<F> {
    worker: Worker,
    queue: Queue,
    name: Arc<str>,
    hands: Arc<Hands<F>>,
    end: watch::Sender<bool>,
    plan: Plan,
    jobs: BTreeMap<Token, InHand>,
    tasks: JoinSet<Event>,
    /// No poll before this.
    poll_at: Monotonic,
    /// The last poll brought nothing.
    empty: bool,
    /// Since when it drains, and why: an error if it gave up.
    draining: Option<(Monotonic, Result<(), Error>)>,
    summary: Summary,
}

impl<F, Fut, V> Loop<F>
where
    F: Fn(Job) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = V> + Send + 'static,
    V: IntoVerdict + 'static,
{
    pub(super) fn new(worker: Worker, queue: Queue, handler: F) -> Self {
        let (end, ended) = watch::channel(false);
        let hands = Hands {
            client: worker.client.clone(),
            handler,
            run_limit: worker.run_limit,
            ended,
        };
        Self {
            plan: Plan::new(worker.info.capacity, worker.prefetch),
            name: worker.queue.as_str().into(),
            worker,
            queue,
            hands: Arc::new(hands),
            end,
            jobs: BTreeMap::new(),
            tasks: JoinSet::new(),
            poll_at: Monotonic(0),
            empty: false,
            draining: None,
            summary: Summary::default(),
        }
    }

    pub(super) async fn run(mut self, stop: impl Future) -> Result<Summary, Error> {
        let mut stop = std::pin::pin!(stop);
        let mut poll: Option<Poll> = None;
        loop {
            self.start_jobs();
            if self.draining.is_some() {
                // A poll under way is given up: what it brings goes back.
                poll = None;
            } else if poll.is_none() {
                poll = self.next_poll();
            }
            let idle = self.plan.is_idle() && self.tasks.is_empty();
            if idle && poll.is_none() && (self.draining.is_some() || self.is_out_of_work()) {
                break;
            }
            let alarm = self.alarm();
            tokio::select! {
                answer = answer_of(&mut poll) => {
                    poll = None;
                    self.take_jobs(answer);
                }
                Some(event) = self.tasks.join_next() => match event {
                    Ok(event) => self.note(event),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                () = sleep(alarm) => self.extend_due(),
                _ = &mut stop, if self.draining.is_none() => self.drain(Ok(())),
            }
        }
        match self.draining {
            Some((_, Err(error))) => Err(error),
            _ => Ok(self.summary),
        }
    }

    fn now(&self) -> Monotonic {
        self.worker.client.now()
    }

    fn is_out_of_work(&self) -> bool {
        self.worker.until_empty && self.empty
    }

    fn next_poll(&self) -> Option<Poll> {
        let room = self.plan.room();
        if room == 0 || self.now() < self.poll_at || self.is_out_of_work() {
            return None;
        }
        let wait = if self.worker.until_empty {
            Duration::ZERO
        } else {
            POLL
        };
        let (queue, lease) = (self.queue.clone(), self.worker.lease);
        Some(Box::pin(
            async move { queue.lease_for(room, wait, lease).await },
        ))
    }

    /// How long until something is due by time.
    fn alarm(&self) -> Option<Duration> {
        let now = self.now();
        let retry = (self.draining.is_none() && self.poll_at > now).then_some(self.poll_at);
        let give_up = self.draining.as_ref().filter(|_| !*self.end.borrow());
        let give_up = give_up.map(|(since, _)| since.plus(self.worker.drain_deadline));
        let next = [self.plan.next_due(), retry, give_up].into_iter().flatten();
        next.min().map(|at| at.since(now))
    }

    fn take_jobs(&mut self, answer: Result<Vec<LeasedJob>, Error>) {
        let now = self.now();
        let jobs = match answer {
            Ok(jobs) => jobs,
            Err(error) if error.is_retryable() && !self.worker.client.is_closed() => {
                tracing::warn!(queue = %self.name, %error, "no jobs; trying again");
                self.poll_at = now.plus(RETRY);
                return;
            }
            Err(error) => {
                tracing::error!(queue = %self.name, %error, "the worker gives up");
                return self.drain(Err(error));
            }
        };
        self.empty = jobs.is_empty();
        for job in jobs {
            let token = job.token();
            self.plan.leased(now, token, job.lease_ms);
            let in_hand = InHand {
                leased: Some(Arc::new(job)),
                lost: watch::Sender::new(false),
            };
            self.jobs.insert(token, in_hand);
        }
    }

    fn start_jobs(&mut self) {
        while let Some(token) = self.plan.start() {
            let in_hand = self.jobs.get_mut(&token).expect("the plan holds it");
            let leased = in_hand.leased.take().expect("it starts once");
            let span = tracing::debug_span!(
                "job",
                queue = %self.name,
                job = %token.job,
                attempt = leased.job.attempts
            );
            let job = Job::new(leased, self.name.clone(), in_hand.lost.subscribe());
            let handled = handle(self.hands.clone(), job);
            let task = async move { Event::Handled(token, handled.await) };
            self.tasks.spawn(task.instrument(span));
        }
    }

    /// What is due by time: extensions, and the end of a drain.
    fn extend_due(&mut self) {
        let now = self.now();
        if let Some((since, _)) = &self.draining
            && now.since(*since) >= self.worker.drain_deadline
        {
            self.end.send_replace(true);
        }
        let due = self.plan.take_due(now);
        if due.is_empty() {
            return;
        }
        let client = self.worker.client.clone();
        self.tasks.spawn(async move {
            let tokens = due.iter().map(|(token, _)| *token).collect();
            let lease = |(token, ms): (Token, u32)| (token, Duration::from_millis(ms.into()));
            let items = due.into_iter().map(lease).collect();
            Event::Extended(tokens, client.extend_batch(items).await)
        });
    }

    fn note(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Handled(token, fate) => {
                self.plan.ended(token);
                self.jobs.remove(&token);
                self.summary.count(fate);
                // A job that ended may have made others ready.
                self.empty = false;
            }
            Event::Extended(tokens, outcomes) => {
                for (token, outcome) in tokens.into_iter().zip(outcomes) {
                    match outcome {
                        Ok(()) => self.plan.extended(now, token),
                        Err(error) if is_lost(&error) => self.lose(token, &error),
                        Err(_) => self.plan.not_extended(now, token),
                    }
                }
            }
            Event::Released(released, lost) => {
                self.summary.released += released;
                self.summary.lost += lost;
            }
        }
    }

    fn lose(&mut self, token: Token, error: &Error) {
        if !self.plan.holds(token) {
            return;
        }
        tracing::warn!(queue = %self.name, job = %token.job, %error, "a lease is lost");
        let Some(in_hand) = self.jobs.get(&token) else {
            return;
        };
        if in_hand.leased.is_some() {
            self.plan.ended(token);
            self.jobs.remove(&token);
            self.summary.lost += 1;
        } else {
            // Its handler ends, and then its task.
            in_hand.lost.send_replace(true);
        }
    }

    fn drain(&mut self, result: Result<(), Error>) {
        if self.draining.is_some() {
            return;
        }
        self.draining = Some((self.now(), result));
        let tokens = self.plan.drain();
        for token in &tokens {
            self.jobs.remove(token);
        }
        let running = self.jobs.len();
        tracing::debug!(queue = %self.name, running, released = tokens.len(), "draining");
        if tokens.is_empty() {
            return;
        }
        let client = self.worker.client.clone();
        self.tasks.spawn(async move {
            let outcomes = client.release_batch(tokens).await;
            let lost = outcomes.iter().filter(|outcome| outcome.is_err()).count();
            Event::Released((outcomes.len() - lost) as u64, lost as u64)
        });
    }
}

impl Summary {
    fn count(&mut self, fate: Fate) {
        let counter = match fate {
            Fate::Done => &mut self.done,
            Fate::Failed => &mut self.failed,
            Fate::Buried => &mut self.buried,
            Fate::Released => &mut self.released,
            Fate::Lost => &mut self.lost,
        };
        *counter += 1;
    }
}

/// The answer of a poll, if one is under way.
async fn answer_of(poll: &mut Option<Poll>) -> Result<Vec<LeasedJob>, Error> {
    match poll {
        Some(poll) => poll.await,
        None => std::future::pending().await,
    }
}

async fn sleep(alarm: Option<Duration>) {
    match alarm {
        Some(alarm) => tokio::time::sleep(alarm).await,
        None => std::future::pending().await,
    }
}
