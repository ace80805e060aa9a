//! Calls of the client against a real node that is killed, or whose answers are lost.
#![cfg(all(feature = "client", feature = "server", target_os = "linux"))]

mod client_support;
mod error_kit;

use client_support::{Proxy, soon, stats_are};
use rrq::client::{
    Client, Code, Enqueued, Error, JobState, NewJob, Options, PurgeStates, QueueSettings, Worker,
    blocking,
};
use rrq::test::Server;
use std::collections::BTreeSet;
use std::time::Duration;

async fn connect(address: &str) -> Client {
    Client::connect(address).await.expect("the node answers")
}

#[tokio::test]
async fn a_kill_in_the_middle_makes_no_job_twice_and_loses_none() {
    const JOBS: usize = 400;
    let mut server = Server::start().expect("it starts");
    let client = connect(server.address()).await;
    let queue = client.queue("many").await.expect("made");
    let calls: Vec<_> = (0..JOBS)
        .map(|number| {
            let queue = queue.clone();
            // A few at a time, so that the kill hits calls of every stage.
            let start = Duration::from_millis(number as u64 / 2);
            tokio::spawn(async move {
                tokio::time::sleep(start).await;
                queue.enqueue(number.to_string()).await
            })
        })
        .collect();
    let killer = tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(60));
            server.restart().expect("it starts again");
        }
        server
    });
    let mut ids = BTreeSet::new();
    for call in calls {
        let done = soon(call).await.expect("no panic").expect("enqueued");
        assert!(matches!(done, Enqueued::New(_)));
        assert!(ids.insert(done.id()), "one id for two jobs");
    }
    let server = soon(killer).await.expect("no panic");
    let client = connect(server.address()).await;
    stats_are(&client, "many", |stats| stats.pending == JOBS as u64).await;
    let (_, stats) = queue.info().await.expect("its counters");
    assert_eq!(stats.enqueued_total, JOBS as u64, "made once each");
}

#[tokio::test]
async fn an_enqueue_and_an_ack_whose_answers_are_lost_are_answered_again() {
    let server = Server::start().expect("it starts");
    let watcher = connect(server.address()).await;
    let proxy = Proxy::before(server.address()).await;
    let client = connect(&proxy.address).await;
    let queue = client.queue("emails").await.expect("made");
    queue.enqueue("first").await.expect("opens the session");
    proxy.mute();
    let call = tokio::spawn({
        let queue = queue.clone();
        async move { queue.enqueue("second").await }
    });
    stats_are(&watcher, "emails", |stats| stats.pending == 2).await;
    proxy.cut();
    let done = soon(call).await.expect("no panic").expect("answered again");
    assert!(matches!(done, Enqueued::New(_)), "{done:?}");
    stats_are(&watcher, "emails", |stats| stats.enqueued_total == 2).await;

    let proxy = Proxy::before(server.address()).await;
    let client = connect(&proxy.address).await;
    let queue = client.queue("emails").await.expect("there");
    let jobs = queue
        .lease(2, Duration::from_secs(5))
        .await
        .expect("leased");
    assert_eq!(jobs.len(), 2);
    proxy.mute();
    let token = jobs[0].token();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.ack(token, None).await }
    });
    stats_are(&watcher, "emails", |stats| stats.completed_total == 1).await;
    proxy.cut();
    soon(call)
        .await
        .expect("no panic")
        .expect("the first answer again");
    // The lease that was held over the cut is as good as before.
    client.ack(jobs[1].token(), None).await.expect("acked");
    stats_are(&watcher, "emails", |stats| stats.completed_total == 2).await;
}

#[tokio::test]
async fn what_nobody_can_know_is_said() {
    let server = Server::start().expect("it starts");
    let watcher = connect(server.address()).await;
    watcher.queue("emails").await.expect("made");
    let bare = Options {
        sessions: false,
        ..Options::default()
    };
    let error = lost_enqueue(&server, &watcher, bare, 1, true).await;
    assert_eq!(
        error.code(),
        Code::Unknown,
        "no session, and the connection cut: {error}"
    );
    assert!(error.maybe_applied() && error.is_retryable());
    error_kit::compare(&error.to_string());
    let hasty = Options {
        deadline: Duration::from_millis(500),
        ..Options::default()
    };
    let error = lost_enqueue(&server, &watcher, hasty.clone(), 2, false).await;
    assert_eq!(
        error.code(),
        Code::Unknown,
        "silence until the deadline: {error}"
    );
    assert!(error.maybe_applied() && error.is_retryable());
    error_kit::compare(&error.to_string());
    let address = server.address().to_owned();
    let client = Client::connect_with(&address, hasty)
        .await
        .expect("connected");
    let queue = client.queue("emails").await.expect("there");
    drop(server);
    let error = soon(queue.enqueue("never sent").id())
        .await
        .expect_err("nobody is there");
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    error_kit::compare(&error.to_string());
    assert!(
        error.is_retryable() && !error.maybe_applied(),
        "it never left: {error}"
    );
}

/// An enqueue that is applied and whose answer does not arrive.
async fn lost_enqueue(
    server: &Server,
    watcher: &Client,
    options: Options,
    pending: u64,
    cut: bool,
) -> Error {
    let proxy = Proxy::before(server.address()).await;
    let client = Client::connect_with(&proxy.address, options)
        .await
        .expect("connected");
    let queue = client.queue("emails").await.expect("there");
    // A session is opened by the first command.
    let none = PurgeStates::default();
    queue.purge(none).await.expect("nothing purged");
    proxy.mute();
    let call = tokio::spawn(async move { queue.enqueue("x").id().await });
    stats_are(watcher, "emails", |stats| stats.pending == pending).await;
    if cut {
        proxy.cut();
    }
    soon(call)
        .await
        .expect("no panic")
        .expect_err("the answer is lost")
}

#[tokio::test]
async fn what_is_said_of_a_job_is_what_it_has() {
    let server = Server::start().expect("it starts");
    let client = Client::connect([server.address()])
        .await
        .expect("connected");
    let id = client
        .enqueue("emails", "hello")
        .key("order-42")
        .priority(2)
        .header("lang", "de")
        .ttl(Duration::from_secs(3600))
        .lease(Duration::from_secs(7))
        .max_attempts(3)
        .run_limit(Duration::from_millis(1500))
        .delay(Duration::from_secs(600))
        .id()
        .await
        .expect("enqueued");
    let again = client.enqueue("emails", "hello").key("order-42").await;
    assert_eq!(again, Ok(Enqueued::Existing(id)));
    let queue = client.queue("emails").await.expect("there");
    let job = queue.job_by_key("order-42").await.expect("found");
    assert_eq!(
        (job.id, job.state, job.priority),
        (id, JobState::Delayed, 2)
    );
    assert_eq!((job.max_attempts, job.body.run_limit_ms), (3, 1500));
    assert_eq!(job.body.headers, [("lang".to_owned(), "de".into())]);
    let run_at = job.run_at.expect("it is delayed").0;
    assert!((590_000..610_000).contains(&(run_at - job.enqueued_at.0)));
    let expires_at = job.expires_at.expect("it has a time to live").0;
    assert_eq!(expires_at - job.enqueued_at.0, 3_600_000);
    let other = client.enqueue("emails", "other").key("order-42").id().await;
    assert_eq!(
        other.expect_err("another payload").code(),
        Code::IdempotencyConflict
    );
}

#[test]
fn programs_without_async_have_the_same_calls() {
    let server = Server::start().expect("it starts");
    let client = blocking::Client::connect(server.address()).expect("connected");
    let settings = QueueSettings {
        max_attempts: 2,
        ..QueueSettings::default()
    };
    let queue = client.create_queue("emails", settings, true).expect("new");
    let id = client
        .enqueue("emails", "hello")
        .key("a")
        .id()
        .expect("enqueued");
    assert_eq!(
        queue.enqueue("hello").key("a").send(),
        Ok(Enqueued::Existing(id))
    );
    let jobs = queue.lease(10, Duration::from_secs(5)).expect("leased");
    assert_eq!(jobs.len(), 1);
    client.ack(jobs[0].token(), None).expect("acked");
    let gone = client.job(id).expect_err("it is over");
    assert_eq!(gone.code(), Code::Finished);

    let jobs = (0..50)
        .map(|number: u32| NewJob::from(number.to_string()))
        .collect();
    queue.enqueue_batch(jobs).expect("enqueued");
    let worker = Worker::new(client.calls(), "emails")
        .concurrency(8)
        .until_empty();
    let threads = std::sync::Mutex::new(BTreeSet::new());
    let threads = std::sync::Arc::new(threads);
    let seen = threads.clone();
    let work = move |job: rrq::client::worker::Job| {
        std::thread::sleep(Duration::from_millis(2));
        let name = format!("{:?}", std::thread::current().id());
        seen.lock().expect("not poisoned").insert(name);
        assert_ne!(job.payload(), "13", "unlucky");
    };
    let summary = client
        .work(worker, &blocking::Stop::default(), work)
        .expect("worked");
    assert_eq!((summary.done, summary.failed), (49, 1), "{summary}");
    assert!(
        threads.lock().expect("not poisoned").len() > 1,
        "jobs have threads"
    );
    let (_, stats) = queue.info().expect("its counters");
    assert_eq!((stats.completed_total, stats.delayed), (50, 1));

    let stop = blocking::Stop::default();
    stop.stop();
    let worker = Worker::new(client.calls(), "emails");
    let summary = client
        .work(worker, &stop, |_| ())
        .expect("told before it began");
    assert_eq!(summary.done, 0);
    client.close();
    let closed = queue.info().expect_err("closed");
    assert_eq!(closed.code(), Code::Stopping);
    error_kit::compare(&closed.to_string());
}

#[test]
fn a_server_for_tests_comes_back_where_it_was_and_leaves_nothing() {
    let mut server = Server::start().expect("it starts");
    let (address, folder) = (server.address().to_owned(), server.folder().to_owned());
    let client = blocking::Client::connect(&address).expect("connected");
    client.enqueue("emails", "kept").send().expect("enqueued");
    server.kill_9();
    server.kill_9();
    server.restart().expect("it starts again");
    assert_eq!(server.address(), address);
    let queue = client.queue("emails").expect("the same client");
    assert_eq!(queue.peek(JobState::Pending, 10).expect("kept").len(), 1);
    server.stop();
    server.restart().expect("after a stop in good order");
    assert_eq!(queue.peek(JobState::Pending, 10).expect("kept").len(), 1);
    drop(server);
    assert!(!folder.exists(), "its folder goes with it");
    let error = Server::start_with(["--no-such-flag"]).expect_err("it says no");
    assert!(
        error.message().contains("--no-such-flag"),
        "what it said: {error}"
    );
}
