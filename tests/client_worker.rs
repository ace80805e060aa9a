//! The worker against a real node: verdicts, panics, limits, long jobs, drains, crashes.
#![cfg(all(feature = "client", feature = "server", target_os = "linux"))]

mod client_support;

use client_support::{soon, stats_are};
use rrq::client::worker::{Job, Summary, Verdict};
use rrq::client::{Client, Code, JobState, JobView, Queue, Worker};
use rrq::test::Server;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc};

async fn start() -> (Server, Client, Queue) {
    let server = Server::start().expect("it starts");
    let client = Client::connect(server.address()).await.expect("connected");
    let queue = client.queue("work").await.expect("made");
    (server, client, queue)
}

async fn only(queue: &Queue, state: JobState) -> JobView {
    let mut jobs = queue.peek(state, 10).await.expect("listed");
    assert_eq!(jobs.len(), 1, "{state:?}: {jobs:?}");
    jobs.remove(0)
}

fn reason(job: &JobView) -> &str {
    std::str::from_utf8(&job.last_failure).expect("words")
}

#[tokio::test]
async fn each_verdict_has_its_effect() {
    let (_server, client, queue) = start().await;
    for payload in ["done", "fail", "later", "bury"] {
        queue.enqueue(payload).await.expect("enqueued");
    }
    let handler = async |job: Job| match &job.payload()[..] {
        b"done" => Ok(Verdict::Done(None)),
        b"fail" => Err("no route to host"),
        b"later" => Ok(Verdict::retry_after(Duration::from_secs(900), "come back")),
        b"bury" => Ok(Verdict::bury("no such user")),
        other => panic!("unexpected: {other:?}"),
    };
    let worker = Worker::new(&client, "work").concurrency(4).until_empty();
    let summary = soon(worker.run(handler)).await.expect("worked");
    let due = Summary {
        done: 1,
        failed: 2,
        buried: 1,
        ..Summary::default()
    };
    assert_eq!(summary, due);
    assert_eq!(summary.to_string(), "1 done, 2 failed, 1 buried");
    let dead = only(&queue, JobState::Dead).await;
    assert_eq!(
        (&dead.body.payload[..], reason(&dead)),
        (&b"bury"[..], "no such user")
    );
    let delayed = queue.peek(JobState::Delayed, 10).await.expect("listed");
    let left = |payload: &str| {
        let job = delayed.iter().find(|job| job.body.payload == payload);
        let job = job.expect("it waits");
        (
            job.remaining_ms.expect("by its backoff"),
            reason(job).to_owned(),
        )
    };
    let (ms, why) = left("later");
    assert!(
        (800_000..=900_000).contains(&ms) && why == "come back",
        "{ms} {why}"
    );
    let (ms, why) = left("fail");
    assert!(ms <= 1_000 && why == "no route to host", "{ms} {why}");
}

#[tokio::test]
async fn a_job_that_is_released_is_not_counted_and_comes_again() {
    let (_server, client, queue) = start().await;
    queue.enqueue("x").await.expect("enqueued");
    let seen = Arc::new(AtomicU64::new(0));
    let handler = move |job: Job| {
        let first = seen.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            assert_eq!(job.attempt(), 1);
            match first {
                true => Verdict::Release,
                false => Verdict::Done(None),
            }
        }
    };
    let worker = Worker::new(&client, "work").until_empty();
    let summary = soon(worker.run(handler)).await.expect("worked");
    assert_eq!((summary.done, summary.released, summary.failed), (1, 1, 0));
}

#[tokio::test]
async fn a_panic_is_a_failure_with_its_words() {
    let (_server, client, queue) = start().await;
    queue.enqueue("x").max_attempts(1).await.expect("enqueued");
    queue.enqueue("y").await.expect("enqueued");
    let worker = Worker::new(&client, "work").until_empty();
    let handler = async |job: Job| assert_ne!(job.payload(), "x", "no {}s today", 'x');
    let summary = soon(worker.run(handler)).await.expect("the worker goes on");
    assert_eq!((summary.done, summary.failed), (1, 1));
    let dead = only(&queue, JobState::Dead).await;
    assert!(reason(&dead).starts_with("panicked: "), "{}", reason(&dead));
    assert!(reason(&dead).contains("no xs today"), "{}", reason(&dead));
}

#[tokio::test]
async fn a_job_that_takes_longer_than_its_lease_keeps_it() {
    let (_server, client, queue) = start().await;
    queue
        .enqueue("long")
        .lease(Duration::from_millis(300))
        .await
        .expect("enqueued");
    let other = Client::connect(_server.address()).await.expect("connected");
    let worker = Worker::new(&client, "work").until_empty();
    let work = worker.run(async |_: Job| tokio::time::sleep(Duration::from_millis(1500)).await);
    let rival = async {
        let queue = other.queue("work").await.expect("there");
        stats_are(&other, "work", |stats| stats.in_flight == 1).await;
        queue
            .lease(1, Duration::from_millis(1200))
            .await
            .expect("polled")
    };
    let (summary, stolen) = soon(async { tokio::join!(work, rival) }).await;
    assert_eq!(summary.expect("worked").done, 1);
    assert!(stolen.is_empty(), "the lease was lost: {stolen:?}");
    let (_, stats) = queue.info().await.expect("its counters");
    assert_eq!((stats.leased_total, stats.expired_total), (1, 0));
}

#[tokio::test]
async fn the_run_limit_ends_a_handler() {
    let (_server, client, queue) = start().await;
    let limit = Duration::from_millis(100);
    queue
        .enqueue("x")
        .run_limit(limit)
        .max_attempts(1)
        .await
        .expect("enqueued");
    let worker = Worker::new(&client, "work").until_empty();
    let never = async |_: Job| std::future::pending::<()>().await;
    let summary = soon(worker.run(never)).await.expect("worked");
    assert_eq!(summary.failed, 1);
    let dead = only(&queue, JobState::Dead).await;
    assert_eq!(reason(&dead), "timeout: it ran longer than 100ms");
    queue.enqueue("y").max_attempts(1).await.expect("enqueued");
    let worker = Worker::new(&client, "work").until_empty().run_limit(limit);
    assert_eq!(soon(worker.run(never)).await.expect("worked").failed, 1);
}

#[tokio::test]
async fn a_handler_is_told_of_a_lost_lease_and_dropped() {
    struct Dropped(mpsc::UnboundedSender<&'static str>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }
    let (_server, client, queue) = start().await;
    let lease = Duration::from_millis(300);
    let id = queue
        .enqueue("x")
        .lease(lease)
        .id()
        .await
        .expect("enqueued");
    let (events, mut seen) = mpsc::unbounded_channel();
    let handler = move |job: Job| {
        let guard = Dropped(events.clone());
        let told = events.clone();
        let watched = job.clone();
        tokio::spawn(async move {
            watched.lost().await;
            assert!(watched.is_lost());
            let _ = told.send("told");
        });
        let _ = events.send("started");
        async move {
            let _guard = guard;
            assert!(!job.is_lost());
            std::future::pending::<()>().await;
        }
    };
    let worker = Worker::new(&client, "work");
    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let work = tokio::spawn(worker.run_until(async move { stopped.notified().await }, handler));
    assert_eq!(soon(seen.recv()).await, Some("started"));
    client.cancel(id).await.expect("cancelled");
    let mut both = [soon(seen.recv()).await, soon(seen.recv()).await];
    both.sort_unstable();
    assert_eq!(both, [Some("dropped"), Some("told")]);
    stop.notify_one();
    let summary = soon(work).await.expect("no panic").expect("worked");
    assert_eq!((summary.lost, summary.done), (1, 0), "{summary}");
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_releases_what_did_not_start() {
    let (_server, client, queue) = start().await;
    for number in 0..6 {
        queue.enqueue(number.to_string()).await.expect("enqueued");
    }
    let (started, mut starts) = mpsc::unbounded_channel();
    let go_on = Arc::new(Semaphore::new(0));
    let gate = go_on.clone();
    let handler = move |_: Job| {
        let (started, gate) = (started.clone(), gate.clone());
        async move {
            started.send(()).expect("the test listens");
            gate.acquire().await.expect("not closed").forget();
        }
    };
    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let worker = Worker::new(&client, "work").concurrency(2).prefetch(3);
    let work = tokio::spawn(worker.run_until(async move { stopped.notified().await }, handler));
    soon(starts.recv()).await;
    soon(starts.recv()).await;
    stats_are(&client, "work", |stats| {
        stats.in_flight == 5 && stats.pending == 1
    })
    .await;
    stop.notify_one();
    stats_are(&client, "work", |stats| {
        stats.in_flight == 2 && stats.pending == 4
    })
    .await;
    for job in queue.peek(JobState::Pending, 10).await.expect("listed") {
        assert_eq!(job.attempts, 0, "what did not start is not counted");
    }
    go_on.add_permits(2);
    let summary = soon(work).await.expect("no panic").expect("drained");
    let due = Summary {
        done: 2,
        released: 3,
        ..Summary::default()
    };
    assert_eq!(summary, due);
    assert!(starts.try_recv().is_err(), "nothing started after the stop");
}

#[tokio::test]
async fn what_is_not_done_at_the_drains_deadline_is_tried_again_at_once() {
    let (_server, client, queue) = start().await;
    queue.enqueue("x").await.expect("enqueued");
    let stop = Arc::new(Notify::new());
    let (stopped, started) = (stop.clone(), stop.clone());
    let worker = Worker::new(&client, "work").drain_deadline(Duration::from_millis(200));
    let handler = move |_: Job| {
        started.notify_one();
        std::future::pending::<()>()
    };
    let work = worker.run_until(async move { stopped.notified().await }, handler);
    let summary = soon(work).await.expect("drained");
    assert_eq!((summary.failed, summary.released), (1, 0));
    let job = only(&queue, JobState::Pending).await;
    assert_eq!(
        (job.attempts, reason(&job)),
        (1, "the worker was stopped before the job was done")
    );
}

#[tokio::test]
async fn a_worker_outlasts_kills_of_the_server_and_loses_no_job() {
    const JOBS: u64 = 300;
    let (mut server, client, queue) = start().await;
    for number in 0..JOBS {
        queue.enqueue(number.to_string()).await.expect("enqueued");
    }
    let runs = Arc::new(AtomicU64::new(0));
    let count = runs.clone();
    let handler = move |_: Job| {
        count.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5))
    };
    let killer = tokio::task::spawn_blocking(move || {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(80));
            server.restart().expect("it starts again");
        }
        server
    });
    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let worker = Worker::new(&client, "work").concurrency(4).prefetch(4);
    let work = tokio::spawn(worker.run_until(async move { stopped.notified().await }, handler));
    let server = soon(killer).await.expect("no panic");
    let watcher = Client::connect(server.address()).await.expect("connected");
    stats_are(&watcher, "work", |stats| stats.completed_total == JOBS).await;
    stop.notify_one();
    let summary = soon(work).await.expect("no panic").expect("worked");
    let (_, stats) = queue.info().await.expect("its counters");
    assert_eq!(
        (stats.pending, stats.in_flight, stats.delayed, stats.dead),
        (0, 0, 0, 0)
    );
    // An ack whose answer was lost is answered again, so each run is one that counts, but for
    // leases that went meanwhile.
    let again = runs.load(Ordering::Relaxed) - JOBS;
    assert_eq!(
        summary.done + summary.lost,
        JOBS + again,
        "{summary}, {again} again"
    );
}

#[tokio::test]
async fn a_worker_that_cannot_work_says_so() {
    let (server, client, _queue) = start().await;
    let refused = |worker: Worker| async move {
        let ended = soon(worker.run(async |_: Job| ())).await;
        ended.expect_err("refused").code()
    };
    assert_eq!(
        refused(Worker::new(&client, "no such name!")).await,
        Code::Invalid
    );
    let named = Worker::new(&client, "work").name("x".repeat(129));
    assert_eq!(refused(named).await, Code::Invalid);
    let tagged = (0..17).fold(Worker::new(&client, "work"), |worker, tag| {
        worker.tag(tag.to_string())
    });
    assert_eq!(refused(tagged).await, Code::Invalid);
    let worker = Worker::new(&client, "work").name("mailer").tag("eu");
    let work = tokio::spawn(worker.run(async |_: Job| ()));
    let other = Client::connect(server.address()).await.expect("connected");
    let sessions = async {
        while other.status().await.expect("status")[0]
            .1
            .groups
            .iter()
            .all(|g| g.sessions == 0)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(sessions).await;
    client.close().await;
    let error = soon(work)
        .await
        .expect("no panic")
        .expect_err("its client is closed");
    assert_eq!(error.code(), Code::Stopping);
}
