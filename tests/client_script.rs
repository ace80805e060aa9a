//! The client against a scripted server: several partitions, scans, sweeps, waits.
#![cfg(feature = "client")]

mod client_support;
mod error_kit;

use client_support::script::{Answer, info, serve, serve_nodes, uid};
use client_support::soon;
use rrq::base::ids::{GroupId, JobId, Partition};
use rrq::base::units::WallTime;
use rrq::client::worker::Job;
use rrq::client::{
    Client, Code, Ended, Enqueued, FinishedJob, JobCursor, JobEnd, JobFilter, JobPage, JobState,
    JobView, LeasedJob, NewJob, QueueStats, ScanCursor, SweepAction, Swept, Worker, WorkerInfo,
    partition_of_key,
};
use rrq::wire::JobScan;
use rrq::wire::message::{ErrorReply, ReplyBody, RequestBody};
use rrq::wire::{Body, Op, Outcome, Rejection};
use std::future::IntoFuture;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(30);

fn job(partition: u8, seq: u64) -> JobId {
    JobId::new(GroupId(partition.into()), uid(), Partition(partition), seq)
}

fn view(id: JobId, state: JobState) -> JobView {
    JobView {
        id,
        state,
        priority: 4,
        attempts: 1,
        max_attempts: 20,
        run_at: None,
        remaining_ms: None,
        enqueued_at: WallTime(0),
        expires_at: None,
        token: None,
        owner: None,
        last_failure: Default::default(),
        body: Body::default(),
    }
}

fn leased(partition: u8, count: u32) -> ReplyBody {
    let job = |seq| LeasedJob {
        lease_gen: 1,
        job: view(job(partition, seq), JobState::InFlight),
        lease_ms: 30_000,
    };
    ReplyBody::Leased((1..=count.into()).map(job).collect())
}

fn op(request: &RequestBody) -> Option<&Op> {
    match request {
        RequestBody::Command { command, .. } => Some(&command.op),
        _ => None,
    }
}

/// What a script notes for the test.
type Notes<T> = Arc<Mutex<Vec<T>>>;

fn notes<T>() -> (Notes<T>, Notes<T>) {
    let notes = Notes::default();
    (notes.clone(), notes)
}

fn taken<T>(notes: &Notes<T>) -> Vec<T> {
    std::mem::take(&mut *notes.lock().expect("no panic"))
}

async fn connect(address: String) -> Client {
    Client::connect(address).await.expect("connected")
}

#[tokio::test]
async fn a_lease_over_partitions_takes_a_fair_share_of_each_and_never_more_than_asked() {
    let (leases, noted) = notes();
    let address = serve(3, move |request| match request {
        RequestBody::Watch { partition, .. } => {
            Answer::Now(ReplyBody::Ready([100, 0, 100][usize::from(partition.0)]))
        }
        RequestBody::Command { wait_ms, .. } => match op(request) {
            Some(Op::Lease { partition, max, .. }) => {
                assert_eq!(*wait_ms, 0, "only one partition is polled");
                leases.lock().expect("no panic").push((partition.0, *max));
                Answer::Now(leased(partition.0, *max))
            }
            Some(Op::Release { .. }) => panic!("what was leased was asked for"),
            _ => Answer::Usual,
        },
        _ => Answer::Usual,
    })
    .await;
    let client = connect(address).await;
    let queue = client.queue("emails").await.expect("there");
    assert_eq!(queue.partitions(), 3);
    let mut more = [0; 3];
    for _ in 0..30 {
        let jobs = soon(queue.lease(7, WAIT)).await.expect("leased");
        assert_eq!(jobs.len(), 7);
        let mut leases = taken(&noted);
        leases.sort_unstable();
        let [(0, first), (2, second)] = leases[..] else {
            panic!("of the two that have some: {leases:?}");
        };
        assert!(first + second == 7 && first.abs_diff(second) == 1);
        more[if first > second { 0 } else { 2 }] += 1;
    }
    assert!(
        more[0] >= 10 && more[2] >= 10,
        "none is always first: {more:?}"
    );
    let one = soon(queue.lease(1, WAIT)).await.expect("leased");
    assert_eq!((one.len(), taken(&noted).len()), (1, 1));
}

#[tokio::test]
async fn while_nothing_is_ready_all_partitions_are_watched_and_the_first_wakes() {
    let (events, noted) = notes();
    let address = serve(3, move |request| {
        let note = |event: String| events.lock().expect("no panic").push(event);
        match request {
            RequestBody::Watch { wait_ms: 0, .. } => {
                let watched = |event: &String| event.starts_with("watch");
                let woken = events.lock().expect("no panic").iter().any(watched);
                let RequestBody::Watch { partition, .. } = request else {
                    unreachable!("matched above");
                };
                Answer::Now(ReplyBody::Ready(u64::from(woken && partition.0 == 1)))
            }
            RequestBody::Watch { partition, .. } => {
                note(format!("watch {partition}"));
                match partition.0 {
                    1 => Answer::After(Duration::from_millis(50), ReplyBody::Ready(1)),
                    _ => Answer::Never,
                }
            }
            _ => match op(request) {
                Some(Op::Lease { partition, max, .. }) => {
                    note(format!("lease {max} of {partition}"));
                    Answer::Now(leased(partition.0, 1))
                }
                _ => Answer::Usual,
            },
        }
    })
    .await;
    let client = connect(address).await;
    let queue = client.queue("emails").await.expect("there");
    assert!(
        soon(queue.lease(5, Duration::ZERO))
            .await
            .expect("none")
            .is_empty()
    );
    assert!(
        taken(&noted).is_empty(),
        "without a wait nothing is watched"
    );
    let jobs = soon(queue.lease(5, WAIT)).await.expect("leased");
    assert_eq!(jobs.len(), 1);
    let mut events = taken(&noted);
    events.sort_unstable();
    assert_eq!(events, ["lease 1 of 1", "watch 0", "watch 1", "watch 2"]);
}

#[tokio::test]
async fn a_job_goes_to_the_partition_of_its_key_and_a_batch_whole_to_one() {
    let (enqueues, noted) = notes();
    let address = serve(4, move |request| match (request, op(request)) {
        (
            RequestBody::Command { group, .. },
            Some(Op::Enqueue {
                partition, items, ..
            }),
        ) => {
            assert_eq!(
                *group,
                GroupId(partition.0.into()),
                "to the group of the partition"
            );
            enqueues
                .lock()
                .expect("no panic")
                .push((partition.0, items.len()));
            let id = |seq| Enqueued::New(job(partition.0, seq));
            let done = (1..=items.len() as u64).map(id).collect();
            Answer::Now(ReplyBody::Outcome(Outcome::Enqueued(done)))
        }
        _ => Answer::Usual,
    })
    .await;
    let client = connect(address).await;
    let queue = client.queue("emails").await.expect("there");
    for key in ["a", "b", "c", "d", "e"] {
        for _ in 0..2 {
            let id = queue.enqueue("x").key(key).id().await.expect("enqueued");
            assert_eq!(id.partition(), partition_of_key(key.as_bytes(), 4));
        }
    }
    taken(&noted);
    for _ in 0..8 {
        queue.enqueue("x").await.expect("enqueued");
    }
    let turns: Vec<u8> = taken(&noted)
        .into_iter()
        .map(|(partition, _)| partition)
        .collect();
    assert_eq!(turns[..4], turns[4..], "round and round");
    assert_eq!(
        turns
            .iter()
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        4
    );
    let batch = vec![NewJob::default(); 100];
    assert_eq!(
        queue.enqueue_batch(batch).await.expect("enqueued").len(),
        100
    );
    assert_eq!(taken(&noted)[0].1, 100, "one entry");
    let keyed = |key: String| NewJob {
        key: Some(key.into()),
        ..NewJob::default()
    };
    let keys = || (0..50).map(|number| number.to_string());
    let done = queue
        .enqueue_batch(keys().map(keyed).collect())
        .await
        .expect("enqueued");
    for (key, done) in keys().zip(done) {
        let partition = done.id().expect("enqueued").partition();
        assert_eq!(
            partition,
            partition_of_key(key.as_bytes(), 4),
            "in its place"
        );
    }
}

#[tokio::test]
async fn a_part_of_a_batch_that_fails_makes_the_rest_uncertain() {
    let address = serve(2, move |request| match op(request) {
        Some(Op::Enqueue {
            partition, items, ..
        }) if partition.0 == 0 => {
            let done = vec![Enqueued::New(job(0, 1)); items.len()];
            Answer::Now(ReplyBody::Outcome(Outcome::Enqueued(done)))
        }
        Some(Op::Enqueue { .. }) => {
            let rejected = Outcome::Rejected(Rejection::TooManySessions);
            Answer::Now(ReplyBody::Outcome(rejected))
        }
        _ => Answer::Usual,
    })
    .await;
    let client = connect(address).await;
    let queue = client.queue("emails").await.expect("there");
    let keyed = |number: u8| NewJob {
        key: Some(vec![number].into()),
        ..NewJob::default()
    };
    let error = queue
        .enqueue_batch((0..20).map(keyed).collect())
        .await
        .expect_err("a part");
    assert_eq!(error.code(), Code::TooManySessions);
    error_kit::compare(&error.to_string());
    assert!(error.maybe_applied());
}

#[tokio::test]
async fn a_wait_is_asked_again_after_a_cut_and_ends_with_the_job() {
    let id = job(0, 7);
    let mut asked = 0;
    let address = serve(1, move |request| match request {
        RequestBody::WaitJob { job, wait_ms } => {
            assert_eq!(*job, id);
            asked += 1;
            match asked {
                1 => Answer::Close,
                2 => {
                    assert!(
                        *wait_ms <= 30_000,
                        "{wait_ms}: the time that passed is gone"
                    );
                    Answer::Now(ReplyBody::Job(Box::new(view(id, JobState::InFlight))))
                }
                _ => Answer::Now(ReplyBody::Finished(Box::new(FinishedJob {
                    id,
                    end: JobEnd::Completed,
                    attempts: 1,
                    enqueued_at: WallTime(1),
                    finished_at: WallTime(2),
                    result: Some("144".into()),
                    place: 1,
                }))),
            }
        }
        _ => Answer::Usual,
    })
    .await;
    let client = connect(address).await;
    let Ended::Finished(job) = soon(client.wait(id, WAIT)).await.expect("it ended") else {
        panic!("its result is there");
    };
    assert_eq!(
        (job.end, job.result),
        (JobEnd::Completed, Some("144".into()))
    );
}

#[tokio::test]
async fn a_wait_without_a_record_a_dead_job_and_a_late_one_are_told_apart() {
    let address = serve(1, move |request| match request {
        RequestBody::WaitJob { job, .. } => match job.seq() {
            1 => Answer::Now(ReplyBody::Outcome(Outcome::Rejected(Rejection::Finished))),
            2 => Answer::Now(ReplyBody::Job(Box::new(view(*job, JobState::Dead)))),
            3 => Answer::Now(ReplyBody::Outcome(Outcome::Rejected(Rejection::NotFound))),
            _ => {
                let pending = ReplyBody::Job(Box::new(view(*job, JobState::Pending)));
                Answer::After(Duration::from_millis(5), pending)
            }
        },
        _ => Answer::Usual,
    })
    .await;
    let client = connect(address).await;
    assert_eq!(
        soon(client.wait(job(0, 1), WAIT)).await,
        Ok(Ended::Unrecorded)
    );
    let dead = soon(client.wait(job(0, 2), WAIT)).await;
    assert!(matches!(dead, Ok(Ended::Dead(_))), "{dead:?}");
    let none = soon(client.wait(job(0, 3), WAIT))
        .await
        .expect_err("never was");
    assert_eq!(none.code(), Code::NotFound);
    let late = soon(client.wait(job(0, 4), Duration::from_millis(50))).await;
    let late = late.expect_err("it has not ended");
    assert_eq!(late.code(), Code::Timeout);
    assert!(late.is_retryable() && !late.maybe_applied());
}

/// Ten dead jobs in each of two partitions, five looked at in a step.
fn page_of(scan: &JobScan) -> JobPage {
    let from = scan.cursor.map_or(1, |cursor| cursor.seq);
    let looked = from..(from + 5).min(11);
    let fits = |seq: &u64| scan.filter.attempts_min == 0 || seq.is_multiple_of(2);
    let matched: Vec<u64> = looked.clone().filter(fits).collect();
    let listed = matched.iter().take(scan.limit as usize);
    JobPage {
        jobs: listed
            .map(|seq| view(job(scan.partition.0, *seq), scan.state))
            .collect(),
        matched: matched.len() as u64,
        scanned: looked.end - looked.start,
        next: (looked.end <= 10).then_some(JobCursor {
            priority: 0,
            seq: looked.end,
        }),
    }
}

#[tokio::test]
async fn a_scan_goes_through_all_partitions_and_on_from_a_cursor() {
    let address = serve(2, move |request| match request {
        RequestBody::ScanJobs { scan, .. } => Answer::Now(ReplyBody::JobPage(page_of(scan))),
        _ => Answer::Usual,
    })
    .await;
    let client = connect(address).await;
    let queue = client.queue("emails").await.expect("there");
    let mut scan = queue.scan(JobState::Dead);
    let (mut seen, mut cursors) = (Vec::new(), Vec::new());
    while let Some(page) = scan.next().await.expect("a page") {
        seen.extend(
            page.jobs
                .iter()
                .map(|job| (job.id.partition().0, job.id.seq())),
        );
        cursors.push(scan.cursor().map(|cursor| cursor.to_string()));
    }
    let all: Vec<(u8, u64)> = (0..2)
        .flat_map(|part| (1..11).map(move |seq| (part, seq)))
        .collect();
    assert_eq!(seen, all);
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(cursors, [text("0.0.6"), text("1"), text("1.0.6"), None]);
    let from: ScanCursor = "1.0.6".parse().expect("as it was given");
    let mut scan = queue.scan(JobState::Dead).from(from);
    let page = scan.next().await.expect("a page").expect("there is one");
    assert_eq!(page.jobs[0].id, job(1, 6));
    assert_eq!(scan.next().await.expect("the end"), None);
    let odd = JobFilter {
        attempts_min: 1,
        ..JobFilter::default()
    };
    assert_eq!(queue.count(JobState::Dead, odd).await, Ok(10));
    assert_eq!(
        queue.count(JobState::Dead, JobFilter::default()).await,
        Ok(20)
    );
}

#[tokio::test]
async fn a_sweep_goes_through_all_partitions_at_its_rate() {
    let (steps, noted) = notes();
    let address = serve(2, move |request| match op(request) {
        Some(Op::SweepDead {
            partition,
            action,
            from_seq,
            limit,
            ..
        }) => {
            assert_eq!(*action, SweepAction::Requeue);
            steps
                .lock()
                .expect("no panic")
                .push((partition.0, *from_seq, *limit));
            let next = from_seq.max(&1) + u64::from(*limit);
            Answer::Now(ReplyBody::Outcome(Outcome::Swept {
                matched: *limit,
                scanned: *limit,
                next_seq: (next <= 20).then_some(next),
            }))
        }
        _ => Answer::Usual,
    })
    .await;
    let client = connect(address).await;
    let queue = client.queue("emails").await.expect("there");
    let sweep = queue
        .sweep_dead(SweepAction::Requeue, JobFilter::default())
        .rate(100);
    let (begun, mut told) = (Instant::now(), Vec::new());
    let swept = sweep
        .run(|swept| told.push(swept.matched))
        .await
        .expect("swept");
    let due = Swept {
        matched: 40,
        scanned: 40,
    };
    assert_eq!(swept, due);
    assert_eq!(told, [10, 20, 30, 40]);
    assert!(
        begun.elapsed() >= Duration::from_millis(400),
        "40 jobs at 100 a second"
    );
    assert_eq!(
        taken(&noted),
        [(0, 0, 10), (0, 11, 10), (1, 0, 10), (1, 11, 10)]
    );
}

#[tokio::test]
async fn counters_are_those_of_all_partitions() {
    let address = serve(3, move |request| match request {
        RequestBody::GetPartition { partition, .. } => {
            Answer::Now(ReplyBody::Partition(Box::new(QueueStats {
                pending: 10 + u64::from(partition.0),
                ..QueueStats::default()
            })))
        }
        _ => Answer::Usual,
    })
    .await;
    let client = connect(address).await;
    let queue = client.queue("emails").await.expect("there");
    assert_eq!(queue.info().await.expect("counters").1.pending, 33);
    let queues = client.queues().await.expect("listed");
    assert_eq!((queues.len(), queues[0].1.pending), (1, 33));
    assert_eq!(queues[0].0, info(3));
}

#[tokio::test]
async fn the_server_is_told_who_works() {
    let (workers, noted) = notes();
    let address = serve(1, move |request| match request {
        RequestBody::Heartbeat { worker, .. } => {
            workers.lock().expect("no panic").push(worker.clone());
            Answer::Usual
        }
        RequestBody::Command { .. } => match op(request) {
            Some(Op::Lease { .. }) => Answer::Never,
            _ => Answer::Usual,
        },
        _ => Answer::Usual,
    })
    .await;
    let client = connect(address).await;
    let worker = Worker::new(&client, "emails")
        .concurrency(4)
        .name("mailer-1")
        .tag("eu");
    let begun = Instant::now();
    let work = tokio::spawn(worker.run(async |_: Job| ()));
    let due = WorkerInfo {
        name: "mailer-1".to_owned(),
        tags: vec!["eu".to_owned()],
        capacity: 4,
    };
    soon(async {
        while !taken(&noted).contains(&Some(due.clone())) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "sooner than with the first beat of many"
    );
    work.abort();
}

fn led_elsewhere(leader: Option<String>) -> Answer {
    let error = ErrorReply {
        code: Code::NotLeader,
        message: "led elsewhere".to_owned(),
        leader,
        maybe_applied: false,
    };
    Answer::Now(ReplyBody::Error(error))
}

#[tokio::test]
async fn a_silent_address_does_not_keep_a_client_from_the_next() {
    // The kernel lets a client connect; nobody says hello.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let silent = silent.expect("a port");
    let first = silent.local_addr().expect("bound").to_string();
    let second = serve(1, |_| Answer::Usual).await;
    let client = soon(Client::connect([first, second])).await;
    let queue = client.expect("connected").queue("emails").await;
    assert!(queue.is_ok());
}

#[tokio::test]
async fn a_call_goes_to_the_leader_wherever_it_moves() {
    let leader = Arc::new(Mutex::new((0, Vec::new())));
    let (asked, noted) = notes();
    let known = leader.clone();
    let addresses = serve_nodes(3, move |at, request| {
        let (leads, addresses) = &*known.lock().expect("no panic");
        let is_command = op(request).is_some() || matches!(request, RequestBody::GetQueue { .. });
        if is_command && at != *leads {
            return led_elsewhere(addresses.get(*leads).cloned());
        }
        if let Some(Op::Enqueue { .. }) = op(request) {
            asked.lock().expect("no panic").push(at);
            let id = job(0, 1);
            let made = Outcome::Enqueued(vec![Enqueued::New(id)]);
            return Answer::Now(ReplyBody::Outcome(made));
        }
        Answer::Usual
    })
    .await;
    let client = connect(addresses[0].clone()).await;
    let queue = client.queue("emails").await.expect("there");
    for (leads, named) in [(0, false), (2, true), (1, false)] {
        let names = if named { addresses.clone() } else { Vec::new() };
        *leader.lock().expect("no panic") = (leads, names);
        soon(queue.enqueue("x").into_future())
            .await
            .expect("enqueued");
        assert_eq!(taken(&noted), [leads]);
    }
}

#[tokio::test]
async fn nodes_that_cannot_be_reached_are_listed_as_such() {
    let addresses = serve_nodes(2, |at, request| match (at, request) {
        (1, RequestBody::Status) => Answer::Close,
        _ => Answer::Usual,
    })
    .await;
    let client = connect(addresses[0].clone()).await;
    let nodes = soon(client.nodes()).await.expect("the list");
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes[0].shards.as_ref().map(Vec::len), Ok(1));
    let error = nodes[1].shards.as_ref().expect_err("it closes");
    assert_eq!(error.code(), Code::Unreachable);
    assert_eq!(nodes[1].addresses, addresses[1..]);
}
