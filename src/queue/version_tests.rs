//! What machine version 2 brought, where the inside of the machine is needed; and how a group comes
//! to it.

use crate::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Token};
use crate::base::limits::{ADVANCE_ITEMS_MAX, CHANGES_MAX, QUEUES_MAX, SCAN_STEP_JOBS};
use crate::base::units::GroupTime;
use crate::queue::check::check;
use crate::queue::command::{
    AckItem, Command, JobFilter, NackItem, NewJob, Op, Outcome, PartitionChange, PartitionConfig,
    QueueInfo, QueueSettings, Rejection, SweepAction,
};
use crate::queue::job_queue::{JobQueue, MACHINE_VERSION};
use crate::queue::tests::{
    GROUP, apply, config, enqueue, job, lease, load, page_mut, pages_of, poke, rich, uid, why,
};
use crate::queue::view::{
    ApplyAt, FinishedJob, JobCursor, JobEnd, JobPage, JobScan, JobState, PageKind,
};
use bytes::Bytes;
use proptest::prelude::*;

const ZERO: Partition = Partition(0);

fn at(machine: &mut JobQueue, index: u64, op: Op) -> Outcome {
    let at = ApplyAt {
        index: LogIndex(index),
        time: GroupTime(9),
    };
    let outcome = machine.apply(at, &Command { session: None, op });
    check(machine).expect("all invariants hold");
    outcome
}

fn second() -> JobQueue {
    let mut machine = JobQueue::new(GROUP, 0);
    machine.raise_version(2);
    machine
}

fn create(machine: &mut JobQueue, index: u64, name: &str, settings: QueueSettings) -> Outcome {
    let op = Op::CreateQueue {
        name: name.to_owned(),
        settings,
        must_be_new: true,
        groups: 64,
    };
    at(machine, index, op)
}

fn info(outcome: Outcome) -> QueueInfo {
    match outcome {
        Outcome::Queue(info) => *info,
        other => panic!("{other:?} is no queue"),
    }
}

fn foreign() -> QueueUid {
    QueueUid::new(GroupId(3), 1).expect("in range")
}

fn change(index: u64, partitions: &[u8], version: Option<u32>) -> PartitionChange {
    let config = |version| PartitionConfig {
        version,
        paused: false,
        draining: false,
        settings: QueueSettings {
            partitions: 64,
            ..QueueSettings::default()
        },
    };
    PartitionChange {
        home: GroupId(3),
        home_index: LogIndex(index),
        queue: foreign(),
        partitions: partitions.iter().copied().map(Partition).collect(),
        config: version.map(config),
    }
}

/// Leases all that is ready and acknowledges it, each with a result of this length.
fn complete(machine: &mut JobQueue, result_len: usize) -> usize {
    let Outcome::Leased(grants) = apply(machine, 20, lease(1024)) else {
        panic!("a lease answers grants");
    };
    let items = grants.iter().map(|grant| AckItem {
        token: grant.token,
        result: (result_len != 0).then(|| Bytes::from(vec![b'r'; result_len])),
    });
    let items: Vec<AckItem> = items.collect();
    let done = items.len();
    apply(machine, 21, Op::Ack { items });
    done
}

fn retaining(retain: u32) -> QueueSettings {
    QueueSettings {
        retain,
        ..QueueSettings::default()
    }
}

fn alter(settings: QueueSettings) -> Op {
    Op::AlterQueue {
        queue: uid(1),
        expected_version: 0,
        settings,
    }
}

/// A machine with something in every kind of page and every field of version 2.
fn rich_second() -> JobQueue {
    let mut machine = rich();
    machine.raise_version(2);
    let settings = QueueSettings {
        retain: 3,
        dead: crate::queue::command::DeadPolicy::Drop,
        ..QueueSettings::default()
    };
    at(&mut machine, 12, alter(settings));
    let Outcome::Leased(grants) = apply(&mut machine, 10, lease(2)) else {
        panic!("jobs are ready");
    };
    let ack = |token: Token, result: Option<&'static [u8]>| AckItem {
        token,
        result: result.map(Bytes::from_static),
    };
    let items = vec![
        ack(grants[0].token, Some(b"result")),
        ack(grants[1].token, None),
    ];
    apply(&mut machine, 11, Op::Ack { items });
    apply(
        &mut machine,
        12,
        Op::Cancel {
            items: vec![job(64), job(65)],
        },
    );
    let many = QueueSettings {
        partitions: 5,
        ..QueueSettings::default()
    };
    create(&mut machine, 13, "wide", many);
    create(&mut machine, 14, "gone", many);
    at(&mut machine, 15, Op::DrainQueue { queue: uid(2) });
    at(&mut machine, 16, Op::DeleteQueue { queue: uid(4) });
    let told = change(8, &[4, 40], Some(3));
    at(&mut machine, 17, Op::ChangePartitions(Box::new(told)));
    let op = Op::Enqueue {
        queue: foreign(),
        partition: Partition(40),
        items: vec![NewJob::default(); 2],
    };
    at(&mut machine, 18, op);
    let leased = apply(&mut machine, 19, lease(1));
    assert!(matches!(leased, Outcome::Leased(grants) if grants.len() == 1));
    machine
}

#[test]
fn a_group_is_raised_and_never_falls() {
    let mut machine = JobQueue::new(GROUP, 0);
    assert_eq!(machine.version(), 1);
    machine.raise_version(0);
    assert_eq!(machine.version(), 1);
    machine.raise_version(2);
    machine.raise_version(1);
    assert_eq!(machine.version(), 2);
    machine.raise_version(u16::MAX);
    assert_eq!(machine.version(), MACHINE_VERSION);
}

#[test]
fn pages_of_version_1_are_read_raised_and_written_as_version_2() {
    let first = rich();
    let mut machine = load(&pages_of(&first), &first).expect("its own pages");
    assert_eq!(
        (machine.version(), machine.state_hash()),
        (1, first.state_hash())
    );
    machine.raise_version(2);
    let pages = pages_of(&machine);
    for (key, bytes) in &pages {
        let follows = matches!(
            key.kind,
            PageKind::Group | PageKind::Queue | PageKind::Partition
        );
        if follows {
            assert_eq!(bytes[..2], [2, 0], "{key:?}");
        } else {
            let same = pages_of(&first).into_iter().find(|(other, _)| other == key);
            assert_eq!(same.map(|(_, bytes)| bytes).as_ref(), Some(bytes));
        }
    }
    let loaded = load(&pages, &machine).expect("its own pages");
    assert_eq!(loaded.state_hash(), machine.state_hash());
    assert_ne!(loaded.state_hash(), first.state_hash());
    assert_eq!(loaded.queues(), first.queues());
}

#[test]
fn the_pages_of_a_state_of_version_2_are_the_same_for_ever() {
    let machine = rich_second();
    let loaded = load(&pages_of(&machine), &machine).expect("its own pages");
    check(&loaded).expect("all invariants hold");
    assert_eq!(pages_of(&loaded), pages_of(&machine));
    assert_eq!(
        loaded.next_changes().collect::<Vec<_>>(),
        machine.next_changes().collect::<Vec<_>>()
    );
    let sizes: Vec<(u8, usize)> = pages_of(&machine)
        .iter()
        .map(|(key, bytes)| (key.kind as u8, bytes.len()))
        .filter(|(kind, _)| matches!(kind, 1..=3 | 8))
        .collect();
    let changes = 4 * (24 + 1 + 68) + 4 * (24 + 1);
    let expected = [
        (1, 40 + 16 + changes),
        (2, 82),
        (2, 83),
        (2, 90),
        (3, 200),
        (3, 200),
        (3, 200),
        (3, 200),
        (3, 200),
        (8, 8 + 3 * 28 + 6),
    ];
    assert_eq!(sizes, expected);
    // A new value here means that older checkpoints cannot be read any more.
    assert_eq!(
        format!("{:?}", machine.state_hash()),
        "bee6bf7cbc0e138cc0f82c84a8119140"
    );
}

#[test]
fn a_missing_page_of_version_2_is_noticed_whatever_it_is() {
    let machine = rich_second();
    let pages = pages_of(&machine);
    for at in 0..pages.len() {
        let mut fewer = pages.clone();
        let (key, _) = fewer.remove(at);
        let loaded = load(&fewer, &machine);
        match key.kind {
            // Nothing refers to these; the root that names all pages notices. What another group
            // has sent here nobody here knows of.
            PageKind::Reasons => assert!(loaded.is_ok()),
            PageKind::Partition if key.partition == Partition(4) => assert!(loaded.is_ok()),
            _ => assert!(loaded.is_err(), "without {key:?}"),
        }
    }
}

#[test]
fn damage_to_pages_of_version_2_is_named() {
    let machine = rich_second();
    let damaged = |kind, at, byte| {
        let mut pages = pages_of(&machine);
        poke(page_mut(&mut pages, kind), at, byte);
        why(load(&pages, &machine))
    };
    assert_eq!(
        damaged(PageKind::Group, 2, 1),
        "the group page: its layout is that of another machine version"
    );
    assert_eq!(
        damaged(PageKind::Group, 56, 7),
        "the group page: a change is of a queue that is not at home here"
    );
    assert_eq!(
        damaged(PageKind::Finished, 8, 66),
        "finished 0 of queue 7.1 partition 0: a finished job is live, or twice there, or was never \
         made"
    );
    assert_eq!(
        damaged(PageKind::Finished, 2, 9),
        "finished 0 of queue 7.1 partition 0: its places are not those that its partition retains"
    );
    let mut pages = pages_of(&rich());
    let finished = pages_of(&machine)
        .into_iter()
        .find(|(key, _)| key.kind == PageKind::Finished);
    pages.extend(finished);
    assert_eq!(
        why(load(&pages, &rich())),
        "finished 0 of queue 7.1 partition 0: its group is of a machine version without such pages"
    );
    for counted in [32, 36] {
        let mut pages = pages_of(&rich());
        let group = page_mut(&mut pages, PageKind::Group);
        poke(group, counted, 1);
        *group = [&group[..], &[0; 16]].concat().into();
        assert_eq!(
            why(load(&pages, &rich())),
            "the group page: it is of a machine version without changes of partitions"
        );
    }
}

#[test]
fn version_1_refuses_all_that_version_2_brought() {
    let mut machine = JobQueue::new(GROUP, 0);
    let refused = Outcome::Rejected(Rejection::Unsupported);
    let one = QueueSettings::default();
    assert_eq!(create(&mut machine, 1, "q", one), refused);
    let op = Op::CreateQueue {
        name: "q".to_owned(),
        settings: one,
        must_be_new: true,
        groups: 0,
    };
    info(at(&mut machine, 2, op));
    assert_eq!(at(&mut machine, 3, alter(retaining(1))), refused);
    let sweep = sweep(SweepAction::Delete, JobFilter::default(), 0, 1);
    let told = Op::PartitionsChanged {
        group: GroupId(1),
        home_index: LogIndex(1),
    };
    for op in [
        Op::DrainQueue { queue: uid(1) },
        sweep,
        told,
        Op::ChangePartitions(Box::new(change(1, &[1], None))),
    ] {
        assert_eq!(at(&mut machine, 4, op), refused);
    }
}

fn sweep(action: SweepAction, filter: JobFilter, from_seq: u64, limit: u32) -> Op {
    Op::SweepDead {
        queue: uid(1),
        partition: ZERO,
        action,
        filter,
        from_seq,
        limit,
    }
}

/// A queue with so many dead jobs.
fn many_dead(jobs: usize) -> JobQueue {
    let mut machine = second();
    let settings = QueueSettings {
        max_attempts: 1,
        ..QueueSettings::default()
    };
    create(&mut machine, 1, "q", settings);
    let mut left = jobs;
    while left != 0 {
        let some = left.min(1024);
        left -= some;
        let items = vec![NewJob::default(); some];
        let at = ApplyAt {
            index: LogIndex(2),
            time: GroupTime(9),
        };
        // Not by the helper, which proves every invariant each time.
        let mut run = |op| machine.apply(at, &Command { session: None, op });
        run(enqueue(items));
        let Outcome::Leased(grants) = run(lease(1024)) else {
            panic!("a lease answers grants");
        };
        let nack = |(n, grant): (usize, &crate::queue::command::Grant)| NackItem {
            token: grant.token,
            delay_ms: None,
            reason: Bytes::from(if n.is_multiple_of(2) { "even" } else { "odd" }),
        };
        run(Op::Nack {
            items: grants.iter().enumerate().map(nack).collect(),
        });
    }
    machine
}

#[test]
fn a_sweep_and_a_scan_step_through_any_number_of_jobs() {
    let mut machine = many_dead(10_000);
    let filter = JobFilter {
        reason_contains: Bytes::from_static(b"odd"),
        ..JobFilter::default()
    };
    let mut scan = JobScan {
        queue: uid(1),
        partition: ZERO,
        state: JobState::Dead,
        filter: filter.clone(),
        cursor: None,
        limit: 0,
        bodies: false,
    };
    let (mut steps, mut matched, mut scanned) = (0, 0, 0);
    loop {
        let page = machine.scan(&scan).expect("the queue is there");
        assert!(page.jobs.is_empty() && page.scanned <= SCAN_STEP_JOBS as u64);
        (steps, matched, scanned) = (steps + 1, matched + page.matched, scanned + page.scanned);
        scan.cursor = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!((steps, matched, scanned), (3, 5_000, 10_000));

    let (mut from, mut steps, mut acted) = (Some(0), 0, 0);
    while let Some(seq) = from {
        let op = sweep(SweepAction::Delete, filter.clone(), seq, 1024);
        let Outcome::Swept {
            matched,
            scanned,
            next_seq,
        } = apply(&mut machine, 30, op)
        else {
            panic!("a sweep answers what it did");
        };
        assert!(matched <= 1024 && scanned as usize <= SCAN_STEP_JOBS);
        (from, steps, acted) = (next_seq, steps + 1, acted + matched);
    }
    assert_eq!((steps, acted), (5, 5_000));
    // A step ends where it has looked at enough, though it found nothing.
    let nothing = JobFilter {
        reason_contains: Bytes::from_static(b"none"),
        ..JobFilter::default()
    };
    let outcome = apply(&mut machine, 31, sweep(SweepAction::Requeue, nothing, 0, 1));
    let expected = Outcome::Swept {
        matched: 0,
        scanned: 4096,
        next_seq: Some(8192),
    };
    assert_eq!(outcome, expected);
    let rest = apply(
        &mut machine,
        32,
        sweep(SweepAction::Requeue, JobFilter::default(), 9_990, 1024),
    );
    let expected = Outcome::Swept {
        matched: 5,
        scanned: 5,
        next_seq: None,
    };
    assert_eq!(rest, expected);
    let stats = machine.partition_stats(uid(1), ZERO).expect("there");
    assert_eq!((stats.dead, stats.pending), (4_995, 5));
    for limit in [0, 1025] {
        let op = sweep(SweepAction::Delete, JobFilter::default(), 0, limit);
        let refused = Outcome::Rejected(Rejection::Invalid);
        assert_eq!(apply(&mut machine, 33, op), refused);
    }
}

#[test]
fn a_scan_goes_on_at_its_cursor_over_priorities() {
    let mut machine = second();
    create(&mut machine, 1, "q", QueueSettings::default());
    let items = (0..10).map(|n: u8| NewJob {
        priority: Some(n % 3),
        payload: Bytes::from(vec![n]),
        ..NewJob::default()
    });
    apply(&mut machine, 9, enqueue(items.collect()));
    let mut scan = JobScan {
        queue: uid(1),
        partition: ZERO,
        state: JobState::Pending,
        filter: JobFilter::default(),
        cursor: None,
        limit: 3,
        bodies: true,
    };
    let mut seen = Vec::new();
    loop {
        let JobPage { jobs, next, .. } = machine.scan(&scan).expect("the queue is there");
        assert!(jobs.len() == 3 || next.is_none());
        seen.extend(jobs);
        scan.cursor = next;
        if next.is_none() {
            break;
        }
    }
    let peeked = machine.peek(uid(1), ZERO, JobState::Pending, 100);
    assert_eq!(Ok(seen), peeked);
    scan.cursor = Some(JobCursor {
        priority: u8::MAX,
        seq: u64::MAX,
    });
    let beyond = machine.scan(&scan).expect("any cursor will do");
    assert_eq!(beyond, JobPage::default());
    scan.filter.priority = Some(8);
    assert_eq!(machine.scan(&scan), Err(Rejection::Invalid));
    scan.queue = uid(9);
    assert_eq!(machine.scan(&scan), Err(Rejection::QueueChanged));
}

#[test]
fn a_scan_lists_what_a_reply_holds() {
    let mut machine = second();
    create(&mut machine, 1, "q", QueueSettings::default());
    let large = NewJob {
        payload: Bytes::from(vec![1; 4 << 20]),
        ..NewJob::default()
    };
    apply(&mut machine, 9, enqueue(vec![large; 2]));
    let mut scan = JobScan {
        queue: uid(1),
        partition: ZERO,
        state: JobState::Pending,
        filter: JobFilter::default(),
        cursor: None,
        limit: 9,
        bodies: true,
    };
    let page = machine.scan(&scan).expect("the queue is there");
    assert_eq!((page.jobs.len(), page.matched, page.scanned), (1, 1, 1));
    assert_eq!(page.next.map(|next| next.seq), Some(1));
    scan.bodies = false;
    let page = machine.scan(&scan).expect("the queue is there");
    assert_eq!((page.jobs.len(), page.next), (2, None));
    assert!(page.jobs.iter().all(|job| job.body == Default::default()));
}

#[test]
fn a_grant_of_version_2_is_remembered_with_its_time() {
    let mut machine = JobQueue::new(GROUP, 0);
    let op = Op::CreateQueue {
        name: "q".to_owned(),
        settings: QueueSettings::default(),
        must_be_new: true,
        groups: 0,
    };
    at(&mut machine, 1, op);
    apply(&mut machine, 10, enqueue(vec![NewJob::default(); 3]));
    let grant_at = |machine: &mut JobQueue, time| match apply(machine, time, lease(1)) {
        Outcome::Leased(grants) => grants[0].token,
        other => panic!("{other:?} is no lease"),
    };
    let first = grant_at(&mut machine, 100);
    machine.raise_version(2);
    let second = grant_at(&mut machine, 200);
    let third = grant_at(&mut machine, 300);
    let extend = Op::Extend {
        items: vec![(second, 60_000)],
    };
    apply(&mut machine, 350, extend);
    let loaded = load(&pages_of(&machine), &machine).expect("its own pages");
    let (mut machine, before) = (loaded, machine);
    assert_eq!(machine.state_hash(), before.state_hash());
    let ack = |token| AckItem {
        token,
        result: None,
    };
    let items = vec![ack(first), ack(second), ack(third)];
    apply(&mut machine, 1000, Op::Ack { items });
    assert_eq!(machine.run_times(), [800, 700]);
    apply(&mut machine, 1001, lease(1));
    assert!(machine.run_times().is_empty());
}

#[test]
fn a_group_of_version_1_has_no_time_of_a_grant() {
    let machine = rich();
    let mut pages = pages_of(&machine);
    let leaf = page_mut(&mut pages, PageKind::Leaf);
    let in_flight = JobState::InFlight as u8;
    let slot = leaf.chunks(64).position(|record| record[0] == in_flight);
    let place = slot.expect("a job is leased") * 64 + 56;
    poke(leaf, place, 7);
    let told = why(load(&pages, &machine));
    assert!(told.contains("without times of grants"), "{told}");
}

#[test]
fn the_last_finished_jobs_are_retained_with_their_results() {
    let mut machine = second();
    create(&mut machine, 1, "q", retaining(100));
    for _ in 0..3 {
        apply(&mut machine, 10, enqueue(vec![NewJob::default(); 50]));
        complete(&mut machine, 4096);
    }
    let stats = machine.partition_stats(uid(1), ZERO).expect("there");
    assert_eq!((stats.retained, stats.bytes), (100, 100 * 4096));
    assert_eq!(machine.finished(job(49)), None);
    let oldest = FinishedJob {
        id: job(50),
        end: JobEnd::Completed,
        attempts: 1,
        enqueued_at: crate::base::units::WallTime(20),
        finished_at: crate::base::units::WallTime(21),
        result: Some(Bytes::from(vec![b'r'; 4096])),
        place: 51,
    };
    let found = machine.finished(job(50)).expect("retained");
    assert_eq!(
        FinishedJob {
            enqueued_at: oldest.enqueued_at,
            ..found
        },
        oldest
    );
    let elsewhere = JobId::new(GroupId(8), uid(1), ZERO, 50);
    assert_eq!(machine.finished(elsewhere), None);
    let mut before = 0;
    let mut seen = Vec::new();
    loop {
        let page = machine.scan_finished(uid(1), ZERO, before, 33);
        let page = page.expect("the queue is there");
        seen.extend(page.jobs.iter().map(|job| job.id.seq()));
        before = page.next;
        if before == 0 {
            break;
        }
    }
    assert!(seen.iter().copied().eq((50..150).rev()), "{seen:?}");
    let last = machine.scan_finished(uid(1), ZERO, 1, 33);
    assert_eq!(last.expect("there").jobs.len(), 0);
    let frozen = load(&pages_of(&machine), &machine).expect("its own pages");
    assert_eq!(frozen.state_hash(), machine.state_hash());
}

#[test]
fn a_lower_bound_lets_finished_jobs_go_a_step_an_entry() {
    let mut machine = second();
    create(&mut machine, 1, "q", retaining(5_000));
    for _ in 0..4 {
        apply(&mut machine, 10, enqueue(vec![NewJob::default(); 1024]));
        complete(&mut machine, 0);
    }
    let retained = |machine: &JobQueue| {
        let stats = machine.partition_stats(uid(1), ZERO);
        stats.expect("there").retained
    };
    assert_eq!((retained(&machine), machine.next_due()), (4096, None));
    apply(&mut machine, 30, alter(retaining(0)));
    assert_eq!(retained(&machine), 3 * 1024);
    assert_eq!(
        machine.next_due(),
        Some(machine.time()),
        "the leader is told"
    );
    let mut loaded = load(&pages_of(&machine), &machine).expect("its own pages");
    assert_eq!(loaded.next_due(), machine.next_due());
    let advance = Op::Advance {
        limit: ADVANCE_ITEMS_MAX,
    };
    for machine in [&mut machine, &mut loaded] {
        let outcome = apply(machine, 31, advance.clone());
        assert_eq!(outcome, Outcome::Advanced { handled: 1024 });
        assert_eq!(retained(machine), 1024);
        apply(machine, 32, Op::PauseQueue { queue: uid(1) });
        assert_eq!((retained(machine), machine.next_due()), (0, None));
    }
    assert_eq!(loaded.state_hash(), machine.state_hash());
    // Places go on where they were.
    apply(&mut machine, 33, Op::ResumeQueue { queue: uid(1) });
    apply(&mut machine, 33, alter(retaining(1)));
    apply(&mut machine, 33, enqueue(vec![NewJob::default()]));
    complete(&mut machine, 1);
    assert_eq!(machine.finished(job(4096)).map(|job| job.place), Some(4097));
    apply(&mut machine, 34, Op::DeleteQueue { queue: uid(1) });
    assert_eq!(machine.finished(job(4096)), None);
}

#[test]
fn many_partitions_are_bounded_by_their_home() {
    let mut machine = second();
    let many = QueueSettings {
        partitions: 255,
        ..QueueSettings::default()
    };
    let quota = Outcome::Rejected(Rejection::QuotaExceeded);
    let mut index = 0;
    let mut run = |machine: &mut JobQueue, op: Op| {
        index += 1;
        let at = ApplyAt {
            index: LogIndex(index),
            time: GroupTime(1),
        };
        machine.apply(at, &Command { session: None, op })
    };
    let create = |n: usize| Op::CreateQueue {
        name: format!("q{n}"),
        settings: many,
        must_be_new: true,
        groups: 64,
    };
    for n in 0..QUEUES_MAX / 255 {
        info(run(&mut machine, create(n)));
    }
    assert_eq!(run(&mut machine, create(9_999)), quota);
    check(&machine).expect("all invariants hold");
    // A deleted queue makes room, but its changes stay until they are done.
    let mut n = 0;
    let refused = loop {
        let uid = machine.queue_by_name(&format!("q{n}")).expect("made").uid;
        assert_eq!(
            run(&mut machine, Op::DeleteQueue { queue: uid }),
            Outcome::Done
        );
        match run(&mut machine, create(n + 64)) {
            Outcome::Queue(_) => n += 1,
            refused => break refused,
        }
    };
    assert_eq!(refused, quota);
    assert!(machine.outbox.len() <= CHANGES_MAX && machine.outbox.len() > CHANGES_MAX - 63);
    check(&machine).expect("all invariants hold");
    let loaded = load(&pages_of(&machine), &machine).expect("its own pages");
    assert_eq!(loaded.state_hash(), machine.state_hash());
}

#[test]
fn a_change_that_nobody_could_ask_is_refused() {
    let mut machine = second();
    let good = change(5, &[1, 2], Some(1));
    let bad = [
        PartitionChange {
            home: GroupId(4),
            ..good.clone()
        },
        PartitionChange {
            home: GROUP,
            queue: uid(1),
            ..good.clone()
        },
        change(5, &[], Some(1)),
        change(5, &[0, 1], Some(1)),
        change(5, &[2, 1], Some(1)),
        change(5, &[2, 64], Some(1)),
    ];
    for change in bad {
        let outcome = at(
            &mut machine,
            6,
            Op::ChangePartitions(Box::new(change.clone())),
        );
        assert_eq!(outcome, Outcome::Rejected(Rejection::Invalid), "{change:?}");
    }
    assert_eq!(
        at(&mut machine, 7, Op::ChangePartitions(Box::new(good))),
        Outcome::Done
    );
    assert!(machine.ready(foreign(), Partition(2)).is_ok());
}

proptest! {
    #![proptest_config(config())]

    /// A changed page is refused, or it is another state: with all invariants, the same pages, and
    /// able to go on.
    #[test]
    fn changed_pages_of_version_2_are_refused_or_are_another_state(
        which in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let machine = rich_second();
        let mut pages = pages_of(&machine);
        let new = [PageKind::Group, PageKind::Queue, PageKind::Partition, PageKind::Finished];
        let kind = new[which.index(new.len())];
        let mut these = pages.iter_mut().filter(|(key, _)| key.kind == kind);
        let count = machine.queues.len();
        let page = these.nth(which.index(count)).or(these.next());
        if let Some((_, page)) = page {
            let place = place.index(page.len());
            poke(page, place, byte);
            if let Some(cut) = cut {
                *page = page.slice(..cut.index(page.len()));
            }
        }
        if let Ok(mut loaded) = load(&pages, &machine) {
            prop_assert_eq!(check(&loaded), Ok(()));
            prop_assert_eq!(pages_of(&loaded), pages);
            let index = 0x7777_7777_0000;
            at(&mut loaded, index, Op::Advance { limit: 1024 });
            at(&mut loaded, index + 1, enqueue(vec![NewJob::default(); 3]));
            complete(&mut loaded, 9);
            at(&mut loaded, index + 2, Op::PauseQueue { queue: uid(3) });
            at(&mut loaded, index + 3, Op::CloseSession { session: SessionId(1) });
            at(&mut loaded, index + 4, Op::ChangePartitions(Box::new(change(1 << 60, &[40], None))));
            for counter in 1..4 {
                at(&mut loaded, index + 5 + u64::from(counter), Op::DeleteQueue { queue: uid(counter) });
            }
        }
    }
}
