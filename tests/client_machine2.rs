//! What version 2 of the job machine can do, asked by the client of a real node: partitions,
//! results, scans, sweeps, drains.
#![cfg(all(feature = "client", feature = "server", target_os = "linux"))]

mod client_support;
mod error_kit;

use client_support::{soon, stats_are};
use rrq::client::worker::{Job, Verdict};
use rrq::client::{
    Client, Code, Ended, FinishedJob, JobEnd, JobFilter, JobId, JobState, LeasedJob, NewJob, Queue,
    QueueSettings, SweepAction, Worker, partition_of_key,
};
use rrq::test::Server;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(30);

/// A new node, and a queue of these settings.
async fn start(settings: QueueSettings) -> (Server, Client, Queue) {
    let server = Server::start_with(["--shards", "2", "--no-pin"]).expect("it starts");
    let client = Client::connect(server.address()).await.expect("connected");
    let made = client.create_queue("new", settings, true).await;
    (server, client, made.expect("version 2 can do it"))
}

#[tokio::test]
async fn partitions_share_the_jobs_and_a_worker_takes_them_from_all() {
    const JOBS: u64 = 90;
    let settings = QueueSettings {
        partitions: 3,
        ..QueueSettings::default()
    };
    let (_server, client, queue) = start(settings).await;
    assert_eq!(queue.partitions(), 3);
    let mut partitions: BTreeMap<u8, u64> = BTreeMap::new();
    for number in 0..JOBS {
        let id = queue
            .enqueue(number.to_string())
            .id()
            .await
            .expect("enqueued");
        *partitions.entry(id.partition().0).or_default() += 1;
    }
    assert_eq!(
        partitions.into_values().collect::<Vec<_>>(),
        [JOBS / 3; 3],
        "in turn"
    );
    let keyed = |key: String| NewJob {
        key: Some(key.into()),
        ..NewJob::default()
    };
    let keys = || (0..10).map(|key| format!("key-{key}"));
    let first = queue
        .enqueue_batch(keys().map(keyed).collect())
        .await
        .expect("enqueued");
    for (key, done) in keys().zip(first) {
        let id = done.id().expect("enqueued");
        assert_eq!(id.partition(), partition_of_key(key.as_bytes(), 3));
        let again = queue.enqueue(keyed(key.clone())).id().await;
        assert_eq!(again, Ok(id), "known again by its key");
        assert_eq!(queue.job_by_key(key).await.expect("found").id, id);
    }
    let (_, stats) = queue.info().await.expect("counters");
    assert_eq!(stats.pending, JOBS + 10, "over all partitions");
    let some = soon(queue.lease(12, WAIT)).await.expect("leased");
    let of: BTreeSet<u8> = some.iter().map(|job| job.job.id.partition().0).collect();
    assert_eq!(
        (some.len(), of.len()),
        (12, 3),
        "of all, and as many as asked"
    );
    for released in client
        .release_batch(some.iter().map(LeasedJob::token).collect())
        .await
    {
        released.expect("released");
    }
    let worker = Worker::new(&client, "new").concurrency(8).until_empty();
    let summary = soon(worker.run(async |_: Job| ())).await.expect("worked");
    assert_eq!(summary.done, JOBS + 10, "{summary}");
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.lease(4, WAIT).await }
    });
    // Whether the lease watches already or not: it must wake.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let id = client
        .enqueue("new", "late")
        .key("late")
        .id()
        .await
        .expect("enqueued");
    let jobs = soon(waiting).await.expect("no panic").expect("leased");
    assert_eq!(jobs.iter().map(|job| job.job.id).collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn a_result_is_waited_for_and_kept() {
    let settings = QueueSettings {
        retain: 10,
        ..QueueSettings::default()
    };
    let (_server, client, queue) = start(settings).await;
    let worker = Worker::new(&client, "new").concurrency(4);
    let work = tokio::spawn(worker.run(async |job: Job| job.payload().to_vec()));
    let id = queue.enqueue("144").id().await.expect("enqueued");
    let Ok(Ended::Finished(job)) = soon(client.wait(id, WAIT)).await else {
        panic!("its queue retains results");
    };
    assert_eq!(
        (job.id, job.end, job.result),
        (id, JobEnd::Completed, Some("144".into()))
    );
    let late = queue
        .enqueue("x")
        .delay(Duration::from_secs(600))
        .id()
        .await
        .expect("enqueued");
    let error = client
        .wait(late, Duration::from_millis(50))
        .await
        .expect_err("it waits");
    assert_eq!(error.code(), Code::Timeout);
    error_kit::compare(&error.to_string());
    client.cancel(late).await.expect("cancelled");
    let Ok(Ended::Finished(job)) = soon(client.wait(late, WAIT)).await else {
        panic!("it was cancelled");
    };
    assert_eq!((job.end, job.result), (JobEnd::Cancelled, None));
    for number in 0..15 {
        queue.enqueue(number.to_string()).await.expect("enqueued");
    }
    stats_are(&client, "new", |stats| stats.completed_total == 16).await;
    work.abort();
    let kept = queue.finished(100).await.expect("listed");
    assert_eq!(kept.len(), 10, "the last ones: {kept:?}");
    assert!(
        kept.windows(2).all(|pair| pair[0].place > pair[1].place),
        "the newest first"
    );
    assert_eq!(
        client.wait(id, WAIT).await,
        Ok(Ended::Unrecorded),
        "long forgotten"
    );
}

#[tokio::test]
async fn finished_jobs_are_listed_to_the_oldest_over_all_partitions() {
    let settings = QueueSettings {
        retain: 300,
        partitions: 3,
        ..QueueSettings::default()
    };
    let (_server, client, queue) = start(settings).await;
    assert_eq!(queue.finished(10).await, Ok(Vec::new()));
    for number in 0..90 {
        queue.enqueue(number.to_string()).await.expect("enqueued");
    }
    let worker = Worker::new(&client, "new").concurrency(8).until_empty();
    worker.run(async |_| ()).await.expect("it works");
    let mut scan = queue.scan_finished().limit(7);
    let mut whole = Vec::new();
    let mut cursors = Vec::new();
    while let Some(page) = scan.next().await.expect("listed") {
        whole.extend(page);
        cursors.extend(scan.cursor().map(|cursor| (whole.len(), cursor)));
    }
    assert_eq!(whole.len(), 90);
    let newest_first = |pair: &[FinishedJob]| pair[0].finished_at >= pair[1].finished_at;
    assert!(whole.windows(2).all(newest_first), "{whole:?}");
    let ids: BTreeSet<JobId> = whole.iter().map(|job| job.id).collect();
    assert_eq!(ids.len(), 90, "each once");
    // From each place where a page ended, and from its text.
    for (listed, cursor) in cursors {
        let cursor = cursor.to_string().parse().expect("a cursor");
        let rest = queue.scan_finished().from(cursor).limit(1024).next().await;
        let rest = rest.expect("listed").expect("not the end");
        assert_eq!(rest[..], whole[listed..], "behind {listed}");
    }
}

#[tokio::test]
async fn dead_jobs_are_listed_counted_and_swept_by_their_reason() {
    let settings = QueueSettings {
        partitions: 2,
        ..QueueSettings::default()
    };
    let (_server, client, queue) = start(settings).await;
    for number in 0..40 {
        queue.enqueue(number.to_string()).await.expect("enqueued");
    }
    let fail = async |job: Job| {
        let number: u32 = std::str::from_utf8(job.payload())
            .expect("text")
            .parse()
            .expect("one");
        match number % 2 {
            0 => Verdict::bury("no paper"),
            _ => Verdict::bury("no ink"),
        }
    };
    let worker = Worker::new(&client, "new").concurrency(8).until_empty();
    assert_eq!(soon(worker.run(fail)).await.expect("worked").buried, 40);
    let paper = JobFilter {
        reason_contains: "paper".into(),
        ..JobFilter::default()
    };
    assert_eq!(queue.count(JobState::Dead, paper.clone()).await, Ok(20));
    let mut scan = queue
        .scan(JobState::Dead)
        .filter(paper.clone())
        .limit(7)
        .bodies();
    let mut seen = BTreeSet::new();
    while let Some(page) = scan.next().await.expect("a page") {
        assert!(page.jobs.len() <= 7);
        for job in page.jobs {
            assert_eq!(job.last_failure, "no paper");
            assert!(!job.body.payload.is_empty(), "with its body");
            assert!(seen.insert(job.id), "listed twice: {}", job.id);
        }
    }
    assert_eq!(seen.len(), 20);
    let swept = queue
        .sweep_dead(SweepAction::Requeue, paper)
        .rate(1000)
        .await
        .expect("swept");
    assert_eq!(swept.matched, 20);
    let (_, stats) = queue.info().await.expect("counters");
    assert_eq!((stats.pending, stats.dead), (20, 20));
    let all = JobFilter::default();
    let swept = queue
        .sweep_dead(SweepAction::Delete, all)
        .await
        .expect("swept");
    assert_eq!(swept.matched, 20);
    assert_eq!(queue.info().await.expect("counters").1.dead, 0);
}

#[tokio::test]
async fn a_queue_that_drains_hands_out_and_takes_nothing() {
    let settings = QueueSettings {
        partitions: 2,
        ..QueueSettings::default()
    };
    let (_server, client, queue) = start(settings).await;
    for _ in 0..4 {
        queue.enqueue("x").await.expect("enqueued");
    }
    assert!(queue.drain().await.expect("draining").draining);
    for _ in 0..2 {
        let error = queue.enqueue("y").id().await.expect_err("it takes nothing");
        assert_eq!(error.code(), Code::Draining);
    }
    let worker = Worker::new(&client, "new").until_empty();
    assert_eq!(
        soon(worker.run(async |_: Job| ()))
            .await
            .expect("worked")
            .done,
        4
    );
    assert!(!queue.resume().await.expect("open again").draining);
    queue.enqueue("z").await.expect("enqueued");
    queue.delete().await.expect("deleted");
    let error = client.find_queue("new").await.expect_err("gone");
    assert_eq!(error.code(), Code::NoSuchQueue);
}

#[tokio::test]
async fn workers_are_listed_by_name() {
    let settings = QueueSettings {
        partitions: 2,
        ..QueueSettings::default()
    };
    let (server, client, _) = start(settings).await;
    let worker = Worker::new(&client, "mail")
        .name("mailer-1")
        .tag("eu")
        .concurrency(3);
    let work = tokio::spawn(worker.run(async |_: Job| std::future::pending::<()>().await));
    client.enqueue("mail", "x").await.expect("enqueued");
    let other = Client::connect(server.address()).await.expect("connected");
    soon(async {
        loop {
            let workers = other.workers().await.expect("listed");
            let named = workers.iter().find_map(|(_, session)| {
                let worker = session.worker.as_ref()?;
                (worker.name == "mailer-1").then_some((session.leases, worker.clone()))
            });
            if let Some((1, worker)) = named {
                assert_eq!((worker.capacity, worker.tags), (3, vec!["eu".to_owned()]));
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    work.abort();
}
