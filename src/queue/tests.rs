//! Situations that need the inside of the machine, and bytes that nobody wrote.

use crate::base::checksum::Hash128;
use crate::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Token};
use crate::base::limits::{ITEMS_MAX, PAYLOAD_BYTES_HARD_MAX, QUEUES_MAX};
use crate::base::units::GroupTime;
use crate::queue::body::encode_body;
use crate::queue::check::check;
use crate::queue::command::{
    Command, Enqueued, NackItem, NewJob, Op, Outcome, QueueSettings, Rejection, SessionCall, Start,
    Window,
};
use crate::queue::group_page;
use crate::queue::history::FinishedPage;
use crate::queue::job_queue::{JobQueue, MACHINE_VERSION};
use crate::queue::outcome::{put_outcome, read_outcome, tests::samples};
use crate::queue::page;
use crate::queue::view::{ApplyAt, BodyLocation, JobState, PageKey, PageKind};
use bytes::Bytes;
use proptest::prelude::*;

pub(super) const GROUP: GroupId = GroupId(7);
const AT: BodyLocation = BodyLocation {
    file: 3,
    offset: 4096,
    len: 9,
};

pub(super) fn apply(machine: &mut JobQueue, time: u64, op: Op) -> Outcome {
    in_session(machine, time, None, op)
}

pub(super) fn in_session(
    machine: &mut JobQueue,
    time: u64,
    session: Option<SessionCall>,
    op: Op,
) -> Outcome {
    let at = ApplyAt {
        index: LogIndex(11),
        time: GroupTime(time),
    };
    let outcome = machine.apply(at, &Command { session, op });
    check(machine).expect("all invariants hold");
    outcome
}

pub(super) fn uid(counter: u32) -> QueueUid {
    QueueUid::new(GROUP, counter).expect("in range")
}

pub(super) fn job(seq: u64) -> JobId {
    JobId::new(GROUP, uid(1), Partition(0), seq)
}

fn create(machine: &mut JobQueue, name: &str) -> Outcome {
    let op = Op::CreateQueue {
        name: name.to_owned(),
        settings: QueueSettings::default(),
        must_be_new: false,
        groups: 0,
    };
    apply(machine, 0, op)
}

pub(super) fn enqueue(items: Vec<NewJob>) -> Op {
    Op::Enqueue {
        queue: uid(1),
        partition: Partition(0),
        items,
    }
}

pub(super) fn lease(max: u32) -> Op {
    Op::Lease {
        queue: uid(1),
        partition: Partition(0),
        max,
        lease_ms: 0,
        epoch: 1,
    }
}

/// A machine with something in every kind of page.
pub(super) fn rich() -> JobQueue {
    let mut machine = JobQueue::new(GROUP, 0);
    create(&mut machine, "mail");
    create(&mut machine, "other");
    let call = |seq, window| SessionCall {
        id: SessionId(1),
        seq,
        lowest: 1,
        window,
    };
    apply(
        &mut machine,
        5,
        Op::OpenSession {
            worker_timeout_ms: 0,
        },
    );
    let items = (0..70).map(|n: u8| NewJob {
        payload: Bytes::from(vec![n; usize::from(n % 5)]),
        priority: Some(n % 8),
        start: if n.is_multiple_of(9) {
            Start::After(50)
        } else {
            Start::Now
        },
        ttl_ms: u64::from(n % 3) * 1000,
        key: n.is_multiple_of(20).then(|| Bytes::from(vec![n])),
        headers: vec![("h".to_owned(), Bytes::from_static(b"v"))],
        ..NewJob::default()
    });
    let op = enqueue(items.collect());
    in_session(&mut machine, 6, Some(call(1, Window::Commands)), op);
    in_session(&mut machine, 7, Some(call(1, Window::Polls)), lease(5));
    let Outcome::Leased(grants) = apply(&mut machine, 8, lease(3)) else {
        panic!("jobs are ready");
    };
    let nack = |token, delay_ms| NackItem {
        token,
        delay_ms,
        reason: Bytes::from_static(b"why"),
    };
    let items = vec![nack(grants[0].token, None), nack(grants[1].token, Some(0))];
    apply(&mut machine, 9, Op::Nack { items });
    let items = vec![(grants[2].token, Bytes::from_static(b"broken"))];
    apply(&mut machine, 9, Op::Bury { items });
    machine
}

pub(super) fn pages_of(machine: &JobQueue) -> Vec<(PageKey, Bytes)> {
    machine.freeze().next_pages(usize::MAX)
}

pub(super) fn body_of(machine: &JobQueue, id: JobId) -> Option<(Bytes, BodyLocation)> {
    let view = machine.job(id).ok()?;
    Some((encode_body(&view.body), AT))
}

pub(super) fn load(
    pages: &[(PageKey, Bytes)],
    like: &JobQueue,
) -> Result<JobQueue, page::PageError> {
    let mut machine = JobQueue::absent(GROUP);
    machine.load(pages, &mut |id| body_of(like, id))?;
    Ok(machine)
}

pub(super) fn why(result: Result<JobQueue, page::PageError>) -> String {
    match result {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error.to_string(),
    }
}

pub(super) fn page_mut(pages: &mut [(PageKey, Bytes)], kind: PageKind) -> &mut Bytes {
    let page = pages.iter_mut().find(|(key, _)| key.kind == kind);
    &mut page.expect("the rich machine has every kind").1
}

pub(super) fn poke(bytes: &mut Bytes, at: usize, byte: u8) {
    let mut changed = bytes.to_vec();
    changed[at] = byte;
    *bytes = Bytes::from(changed);
}

#[test]
fn the_pages_of_a_state_are_the_same_for_ever() {
    let pages = pages_of(&rich());
    let kinds: Vec<(u8, usize)> = pages
        .iter()
        .map(|(key, bytes)| (key.kind as u8, bytes.len()))
        .collect();
    let expected = [
        (1, 40),
        (2, 82),
        (2, 83),
        (3, 184),
        (3, 184),
        (4, 4096),
        (4, 4096),
        (5, 18),
        (5, 14),
        (6, 48),
        (6, 48),
        (6, 48),
        (6, 48),
        (7, 1414),
    ];
    assert_eq!(kinds, expected);
    // A new value here means that older checkpoints cannot be read any more.
    assert_eq!(
        format!("{:?}", rich().state_hash()),
        "95f5d04801b6c4f07abd9a5f15b8f200"
    );
}

#[test]
fn pages_come_in_order_in_slices_of_any_size() {
    let machine = rich();
    let whole = pages_of(&machine);
    assert!(whole.is_sorted_by(|a, b| a.0 < b.0));
    let mut frozen = machine.freeze();
    let mut sliced = Vec::new();
    loop {
        let slice = frozen.next_pages(1);
        assert!(slice.len() <= 1);
        if slice.is_empty() {
            break;
        }
        sliced.extend(slice);
    }
    assert_eq!(sliced, whole);
    assert!(frozen.next_pages(1).is_empty());
}

#[test]
fn bodies_come_in_order_with_their_locations() {
    let mut machine = rich();
    machine.set_body_location(job(3), AT, None);
    machine.set_body_location(job(1000), AT, None);
    machine.set_body_location(JobId::new(GroupId(1), uid(1), Partition(0), 4), AT, None);
    let mut cursor = machine.freeze().bodies();
    let mut ids = Vec::new();
    loop {
        let slice = cursor.next_bodies(40);
        if slice.is_empty() {
            break;
        }
        for body in slice {
            assert_eq!(body.location, (body.job == job(3)).then_some(AT));
            let view = machine.job(body.job).expect("live");
            assert_eq!(body.body.body(), view.body);
            ids.push(body.job);
        }
    }
    assert_eq!(ids, (0..70).map(job).collect::<Vec<_>>());
}

#[test]
fn a_location_is_no_part_of_the_state() {
    let mut machine = rich();
    let hash = machine.state_hash();
    machine.set_body_location(job(3), AT, None);
    assert_eq!(machine.state_hash(), hash);
}

#[test]
fn a_missing_page_is_noticed_whatever_it_is() {
    let machine = rich();
    let pages = pages_of(&machine);
    for at in 0..pages.len() {
        let mut fewer = pages.clone();
        let (key, _) = fewer.remove(at);
        let loaded = load(&fewer, &machine);
        match key.kind {
            // Nothing refers to these; the root that names all pages notices.
            PageKind::Reasons => assert!(loaded.is_ok()),
            _ => assert!(loaded.is_err(), "without {key:?}"),
        }
    }
    assert_eq!(
        why(load(&[], &machine)),
        "the pages of the group: there is no group page"
    );
}

#[test]
fn damage_is_named() {
    let machine = rich();
    let damaged = |kind, at, byte| {
        let mut pages = pages_of(&machine);
        poke(page_mut(&mut pages, kind), at, byte);
        why(load(&pages, &machine))
    };
    assert_eq!(
        damaged(PageKind::Group, 2, 9),
        "the group page: it is of a machine version that this binary does not apply"
    );
    assert_eq!(
        damaged(PageKind::Group, 4, 9),
        "the group page: it is of another group"
    );
    assert_eq!(
        damaged(PageKind::Queue, 0, 9),
        "the page of queue 7.1: its layout has an unknown version"
    );
    assert_eq!(
        damaged(PageKind::Queue, 0, 2),
        "the page of queue 7.1: its layout is that of another machine version"
    );
    assert_eq!(
        damaged(PageKind::Leaf, 0, 9),
        "leaf 0 of queue 7.1 partition 0: a record has an unknown state"
    );
    assert_eq!(
        damaged(PageKind::Leaf, 36, 1),
        format!(
            "the body of job {}: its payload is not the one that its record tells",
            job(0)
        )
    );
    assert_eq!(
        damaged(PageKind::Session, 4, 0),
        "the page of session 1: its epoch or timeout is 0"
    );
    let mut twice = pages_of(&machine);
    twice.insert(1, twice[0].clone());
    assert_eq!(
        why(load(&twice, &machine)),
        "the group page: it is out of order or twice there"
    );
}

#[test]
fn a_missing_body_is_named_and_the_machine_stays_as_it_was() {
    let machine = rich();
    let mut other = JobQueue::new(GROUP, 0);
    create(&mut other, "kept");
    let hash = other.state_hash();
    let missing = |id| body_of(&machine, id).filter(|_| id != job(66));
    let error = other
        .load(&pages_of(&machine), &mut { missing })
        .expect_err("a body is missing");
    assert_eq!(
        error.to_string(),
        format!("the body of job {}: it is missing", job(66))
    );
    assert_eq!(other.state_hash(), hash);
}

#[test]
#[should_panic(expected = "applied before the pages of its state were loaded")]
fn nothing_is_applied_before_the_pages_are_there() {
    let mut machine = JobQueue::absent(GROUP);
    assert_eq!(machine.job(job(0)), Err(Rejection::QueueChanged));
    assert_eq!(machine.next_due(), None);
    apply(&mut machine, 0, lease(1));
}

#[test]
fn a_job_whose_generations_are_used_up_is_buried_not_granted() {
    let mut machine = JobQueue::new(GROUP, 0);
    create(&mut machine, "q");
    apply(
        &mut machine,
        0,
        enqueue(vec![NewJob::default(), NewJob::default()]),
    );
    let partition = machine
        .partitions
        .get_mut(&(uid(1), Partition(0)))
        .expect("made above");
    partition
        .leaves
        .change(0, |record| record.lease_gen = u32::MAX);
    let Outcome::Leased(grants) = apply(&mut machine, 0, lease(1)) else {
        panic!("a lease answers grants");
    };
    assert_eq!(
        grants[0].token,
        Token {
            job: job(1),
            lease_gen: 1
        }
    );
    let buried = machine.job(job(0)).expect("kept");
    assert_eq!(
        (buried.state, &buried.last_failure[..]),
        (JobState::Dead, &b"grants exhausted"[..])
    );
}

#[test]
fn used_up_ids_are_refused() {
    let mut machine = JobQueue::new(GROUP, 0);
    create(&mut machine, "q");
    let partition = machine
        .partitions
        .get_mut(&(uid(1), Partition(0)))
        .expect("made above");
    partition.head.next_seq = JobId::SEQ_MAX;
    let outcome = apply(
        &mut machine,
        0,
        enqueue(vec![NewJob::default(), NewJob::default()]),
    );
    let last = Enqueued::New(job(JobId::SEQ_MAX));
    let refused = Enqueued::Rejected(Rejection::IdsExhausted);
    assert_eq!(outcome, Outcome::Enqueued(vec![last, refused]));
    let loaded = load(&pages_of(&machine), &machine).expect("its own pages");
    assert_eq!(loaded.state_hash(), machine.state_hash());
    machine.queue_counter = QueueUid::COUNTER_MAX;
    let exhausted = Outcome::Rejected(Rejection::IdsExhausted);
    assert_eq!(create(&mut machine, "another"), exhausted);
}

#[test]
fn too_many_items_are_refused_whole() {
    let mut machine = JobQueue::new(GROUP, 0);
    create(&mut machine, "q");
    let many = vec![NewJob::default(); ITEMS_MAX + 1];
    let refused = Outcome::Rejected(Rejection::Invalid);
    assert_eq!(apply(&mut machine, 0, enqueue(many)), refused);
    let items = vec![job(0); ITEMS_MAX + 1];
    assert_eq!(apply(&mut machine, 0, Op::Cancel { items }), refused);
    let full = apply(&mut machine, 0, enqueue(vec![NewJob::default(); ITEMS_MAX]));
    assert!(matches!(full, Outcome::Enqueued(items) if items.len() == ITEMS_MAX));
    let Outcome::Leased(grants) = apply(&mut machine, 0, lease(1024)) else {
        panic!("a lease answers grants");
    };
    assert_eq!(grants.len(), ITEMS_MAX);
}

#[test]
fn times_at_the_end_of_their_range_saturate() {
    let mut machine = JobQueue::new(GROUP, 0);
    create(&mut machine, "q");
    let late = NewJob {
        start: Start::After(u64::MAX),
        ttl_ms: u64::MAX,
        key: Some(Bytes::from_static(b"k")),
        ..NewJob::default()
    };
    apply(
        &mut machine,
        u64::MAX,
        Op::SetWallOffset { offset_ms: 1 << 48 },
    );
    apply(
        &mut machine,
        u64::MAX,
        enqueue(vec![late, NewJob::default()]),
    );
    apply(&mut machine, u64::MAX, lease(2));
    assert_eq!(machine.time(), GroupTime::MAX);
    apply(&mut machine, u64::MAX, Op::Advance { limit: 9 });
    apply(
        &mut machine,
        0,
        Op::SetWallOffset {
            offset_ms: -(1 << 48),
        },
    );
    assert!(load(&pages_of(&machine), &machine).is_ok());
    let refused = Outcome::Rejected(Rejection::Invalid);
    let beyond = Op::SetWallOffset {
        offset_ms: (1 << 48) + 1,
    };
    assert_eq!(apply(&mut machine, 0, beyond), refused);
}

#[test]
fn a_noop_moves_the_time_on_and_never_back() {
    let mut machine = JobQueue::new(GROUP, 0);
    machine.observe_time(GroupTime(9));
    machine.observe_time(GroupTime(4));
    assert_eq!(machine.time(), GroupTime(9));
    assert_eq!(machine.version(), 1);
    assert_eq!(machine.wall_offset_ms(), 0);
}

/// What can be read of any bytes must be refused or read, and written as it was read.
fn read_as_anything(bytes: &[u8]) {
    if let Ok(group) = group_page::read_group(bytes) {
        assert_eq!(group_page::put_group(&group), bytes);
    }
    for version in 1..=MACHINE_VERSION {
        if let Ok(queue) = page::read_queue(bytes, version) {
            assert_eq!(page::put_queue(&queue, version), bytes);
        }
        if let Ok(head) = page::read_partition(bytes, version) {
            assert_eq!(page::put_partition(&head, version), bytes);
        }
        if let Ok(session) = page::read_session(bytes, version) {
            assert_eq!(page::put_session(&session), bytes);
        }
        if let Ok(outcome) = read_outcome(bytes, version) {
            let mut out = Vec::new();
            put_outcome(&mut out, &outcome);
            assert_eq!(out, bytes);
        }
    }
    if let Ok(records) = page::read_leaf(bytes) {
        assert!(!records.is_empty());
    }
    if let Ok(reasons) = page::read_reasons(bytes) {
        assert_eq!(page::put_reasons(&reasons.into_iter().collect()), bytes);
    }
    if let Ok(keys) = page::read_keys(bytes, 0) {
        assert_eq!(page::put_keys(&keys), bytes);
    }
    if let Ok(jobs) = page::read_finished(bytes, 0) {
        let first = jobs[0].0;
        let jobs = jobs.into_iter().map(|(_, job)| job).collect();
        assert_eq!(page::put_finished(&FinishedPage { first, jobs }), bytes);
    }
    let body = Bytes::copy_from_slice(bytes);
    if let Ok(read) = crate::queue::decode_body(&body) {
        assert_eq!(encode_body(&read), body);
    }
}

pub(super) fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_refused_or_read_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        layout in 0..3u8,
    ) {
        let mut bytes = bytes;
        // Two thirds of them get past the version of the layout.
        if layout != 0 && bytes.len() >= 2 {
            bytes[..2].copy_from_slice(&[layout, 0]);
        }
        read_as_anything(&bytes);
    }

    #[test]
    fn changed_outcomes_are_refused_or_read_without_panic(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let samples = samples();
        let mut out = Vec::new();
        put_outcome(&mut out, &samples[which.index(samples.len())]);
        let at = at.index(out.len());
        out[at] = byte;
        read_as_anything(&out);
    }

    /// A changed page is refused, or it is another state: with all invariants, the same pages, and
    /// able to go on.
    #[test]
    fn changed_pages_are_refused_or_are_another_state(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let machine = rich();
        let mut pages = pages_of(&machine);
        let which = which.index(pages.len());
        let page = &mut pages[which].1;
        let at = at.index(page.len());
        poke(page, at, byte);
        if let Some(cut) = cut {
            *page = page.slice(..cut.index(page.len()));
        }
        if let Ok(mut loaded) = load(&pages, &machine) {
            prop_assert_eq!(check(&loaded), Ok(()));
            prop_assert_eq!(pages_of(&loaded), pages);
            apply(&mut loaded, 1 << 40, Op::Advance { limit: 1024 });
            apply(&mut loaded, 0, enqueue(vec![NewJob::default(); 3]));
            apply(&mut loaded, 0, lease(100));
            apply(&mut loaded, 0, Op::CloseSession { session: SessionId(1) });
            apply(&mut loaded, 0, Op::DeleteQueue { queue: uid(1) });
        }
    }
}

#[test]
fn the_hash_of_a_state_tells_its_keys_apart() {
    let (mut one, mut two) = (JobQueue::new(GROUP, 0), JobQueue::new(GROUP, 0));
    create(&mut one, "a");
    create(&mut two, "b");
    assert_ne!(one.state_hash(), two.state_hash());
    assert_ne!(one.state_hash(), Hash128::default());
    create(&mut two, "a");
    apply(&mut two, 0, Op::DeleteQueue { queue: uid(1) });
    assert_ne!(one.state_hash(), two.state_hash());
}

#[test]
fn a_lease_and_a_peek_list_no_more_than_a_reply_holds_and_at_least_one_job() {
    let mut machine = JobQueue::new(GROUP, 0);
    create(&mut machine, "large");
    let payload = Bytes::from(vec![7; PAYLOAD_BYTES_HARD_MAX]);
    for n in 0..3 {
        let job = NewJob {
            payload: payload.clone(),
            ..NewJob::default()
        };
        apply(&mut machine, n, enqueue(vec![job]));
    }
    let peeked = machine.peek(uid(1), Partition(0), JobState::Pending, 100);
    assert_eq!(peeked.expect("the queue is there").len(), 1);
    for n in 0..3 {
        let Outcome::Leased(grants) = apply(&mut machine, 5, lease(100)) else {
            panic!("jobs are ready");
        };
        assert_eq!(grants.len(), 1, "lease {n}");
        assert_eq!(grants[0].token.job.seq(), n, "in order, nothing left out");
    }
    let small = (0..1024).map(|_| NewJob::default()).collect();
    apply(&mut machine, 6, enqueue(small));
    let Outcome::Leased(grants) = apply(&mut machine, 7, lease(1024)) else {
        panic!("jobs are ready");
    };
    assert_eq!(grants.len(), 1024, "small jobs are not held back");
}

#[test]
fn a_group_has_a_bounded_number_of_queues() {
    let mut machine = JobQueue::new(GROUP, 0);
    let settings = QueueSettings::default();
    for n in 0..QUEUES_MAX as u64 {
        let (name, must_be_new) = (format!("queue-{n}"), true);
        let op = Op::CreateQueue {
            name,
            settings,
            must_be_new,
            groups: 0,
        };
        let at = ApplyAt {
            index: LogIndex(n + 1),
            time: GroupTime(1),
        };
        // Not by the helper, which proves every invariant each time.
        let outcome = machine.apply(at, &Command { session: None, op });
        assert!(
            matches!(outcome, Outcome::Queue(_)),
            "queue {n}: {outcome:?}"
        );
    }
    let op = Op::CreateQueue {
        name: "one-more".to_owned(),
        settings,
        must_be_new: true,
        groups: 0,
    };
    let refused = apply(&mut machine, 1, op);
    assert_eq!(refused, Outcome::Rejected(Rejection::QuotaExceeded));
}
