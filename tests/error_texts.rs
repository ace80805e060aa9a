//! What the job machine refuses reaches a user in words: provoked over a real node by the client, and
//! pinned.
#![cfg(all(feature = "client", feature = "server", target_os = "linux"))]

mod error_kit;

use rrq::client::{
    Backoff, Client, Code, Error, JobState, NewJob, PurgeStates, QueueSettings, Token, WallTime,
    Worker,
};
use rrq::test::Server;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(10);

/// It was refused with this code, in the words that are pinned.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, code: Code) {
    let error = answer.expect_err("it must be refused");
    assert_eq!(error.code(), code, "{error}");
    error_kit::compare(&error.to_string());
}

#[tokio::test]
async fn a_queue_refuses() {
    let server = Server::start().expect("it starts");
    let client = Client::connect(server.address()).await.expect("connected");
    let queue = client.queue("mails").await.expect("made");
    let settings = QueueSettings {
        jobs_max: 2,
        idempotency_keys_max: 1,
        ..QueueSettings::default()
    };
    let again = client.create_queue("mails", settings, true).await;
    refused(again, Code::QueueExists);
    let (info, _) = queue.info().await.expect("there");
    let before = Some(info.version);
    queue.alter(settings, before).await.expect("altered");
    let late = queue.alter(settings, before).await;
    refused(late, Code::VersionMismatch);
    refused(client.find_queue("none").await, Code::NoSuchQueue);

    queue.enqueue("a").key("k").id().await.expect("enqueued");
    let other = queue.enqueue("b").key("k").id().await;
    refused(other, Code::IdempotencyConflict);
    let one_more = queue.enqueue("b").key("l").id().await;
    refused(one_more, Code::IdempotencyWindowFull);
    queue.enqueue("b").id().await.expect("enqueued");
    refused(queue.enqueue("c").id().await, Code::QuotaExceeded);
    queue.drain().await.expect("drained");
    refused(queue.enqueue("c").id().await, Code::Draining);
}

#[tokio::test]
async fn what_is_out_of_its_bounds_is_named() {
    let server = Server::start().expect("it starts");
    let client = Client::connect(server.address()).await.expect("connected");
    refused(client.queue("no spaces").await, Code::Invalid);
    let good = QueueSettings::default();
    let jitter = Backoff {
        jitter_percent: 101,
        ..good.backoff
    };
    let shrinking = Backoff {
        factor_milli: 999,
        ..good.backoff
    };
    for settings in [
        QueueSettings {
            partitions: 0,
            ..good
        },
        QueueSettings {
            lease_ms: 0,
            ..good
        },
        QueueSettings {
            max_attempts: 0,
            ..good
        },
        QueueSettings {
            idempotency_window_ms: 0,
            ..good
        },
        QueueSettings {
            backoff: jitter,
            ..good
        },
        QueueSettings {
            backoff: shrinking,
            ..good
        },
    ] {
        let made = client.create_queue("none", settings, true).await;
        refused(made, Code::Invalid);
    }
    let queue = client.queue("mails").await.expect("made");
    let late = queue.enqueue("a").run_at(WallTime(u64::MAX)).id().await;
    refused(late, Code::Invalid);
    let urgent = queue.enqueue("a").priority(8).id().await;
    refused(urgent, Code::Invalid);
    let key = queue.enqueue("a").key(vec![0; 257]).id().await;
    refused(key, Code::Invalid);
    let headers = queue.enqueue("a").header("h", vec![0; 4 << 10]).id().await;
    refused(headers, Code::Invalid);
    let large = NewJob::from(vec![0; 5 << 20]);
    refused(queue.enqueue(large).id().await, Code::PayloadTooLarge);
    queue.enqueue("a").id().await.expect("enqueued");
    let token = queue.lease(1, WAIT).await.expect("leased")[0].token();
    let result = client.ack(token, Some(vec![0; 5 << 10].into())).await;
    refused(result, Code::Invalid);
    let worker = Worker::new(&client, "mails").name("n".repeat(129));
    let run = worker.run(async |_| Ok::<_, String>(())).await;
    refused(run, Code::Invalid);
    // All that was refused took nothing with it.
    client.ack(token, None).await.expect("acked");
}

#[tokio::test]
async fn a_job_refuses() {
    let server = Server::start().expect("it starts");
    let client = Client::connect(server.address()).await.expect("connected");
    let queue = client.queue("mails").await.expect("made");
    let id = queue.enqueue("a").id().await.expect("enqueued");
    let requeued = client.requeue_dead(vec![id]).await.remove(0);
    refused(requeued, Code::WrongState);
    let jobs = queue.lease(1, WAIT).await.expect("leased");
    let token = jobs[0].token();
    let stale = Token {
        lease_gen: token.lease_gen + 1,
        ..token
    };
    refused(client.ack(stale, None).await, Code::LeaseLost);
    client.ack(token, None).await.expect("acked");
    refused(client.cancel(id).await, Code::Finished);
    let never = rrq::base::ids::JobId::new(id.group(), id.queue(), id.partition(), id.seq() + 1);
    refused(client.cancel(never).await, Code::NotFound);
    let asked = client.wait(never, Duration::from_millis(1)).await;
    refused(asked, Code::NotFound);
    queue.delete().await.expect("deleted");
    refused(client.cancel(id).await, Code::QueueChanged);
    refused(queue.peek(JobState::Pending, 1).await, Code::NoSuchQueue);
    refused(queue.purge(PurgeStates::default()).await, Code::NoSuchQueue);
}

#[tokio::test]
async fn a_group_of_version_1_refuses_what_came_later() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let config = folder.path().join("old.toml");
    std::fs::write(&config, "[upgrade]\nmachine_version = 1\n").expect("a file");
    let server = Server::start_with(["--config".as_ref(), config.as_os_str()]);
    let server = server.expect("it starts");
    let client = Client::connect(server.address()).await.expect("connected");
    let queue = client.queue("mails").await.expect("made");
    refused(queue.drain().await, Code::Unsupported);
}
