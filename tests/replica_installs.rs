//! A follower that lacks more than its leader's log holds in memory gets a checkpoint: whole, once, and
//! durable before it counts, whatever dies or is cut off on the way.
#![cfg(feature = "engine")]

mod replica_kit;

use bytes::Bytes;
use replica_kit::{Cluster, enqueue_body, queue_in, voter};
use rrq::base::ids::{GroupId, Incarnation, LogIndex, Partition, Term, Token};
use rrq::raft::message::{Body, Checkpoint, Message, PageWanted};
use rrq::shard::input::Loss;
use rrq::wire::message::{ReplyBody, RequestBody};
use rrq::wire::{
    AckItem, Command, Enqueued, ItemOutcome, JobState, NewJob, Op, Outcome, QueueSettings,
    SessionCall, Start, Window,
};

const GROUP: GroupId = GroupId(0);
/// Bytes of a command that fills the log.
const COMMAND_BYTES: usize = 200_000;

/// A cluster of one group, and a follower that is cut off while more is written than the leader's log
/// holds in memory.
fn with_one_behind(cluster: &mut Cluster) -> u32 {
    cluster.enqueue("mail", b"before");
    cluster.pass(500);
    let leader = cluster.leader(GROUP).expect("it has just answered");
    let follower = 1 + leader % 3;
    cluster.cut_off(follower);
    write(cluster, 10);
    follower
}

/// So many commands, each of 100 jobs and 200 kB.
fn write(cluster: &mut Cluster, commands: usize) {
    for _ in 0..commands {
        cluster.fill("mail", 100, COMMAND_BYTES / 100);
    }
}

fn installed(cluster: &mut Cluster, number: u32) -> u64 {
    cluster.counters(number).checkpoints_installed_total
}

/// Everybody has everything, and the follower has got it by so many checkpoints at the most.
fn all_equal(cluster: &mut Cluster, follower: u32, checkpoints: u64) {
    cluster.until_equal(GROUP);
    let failure = cluster
        .engine(follower)
        .install_failure()
        .map(str::to_owned);
    assert_eq!(failure, None);
    let counters = cluster.counters(follower);
    assert!(
        counters.checkpoints_installed_total <= checkpoints,
        "{counters:?}"
    );
    assert_eq!(counters.checkpoint_installs_failed_total, 0);
}

#[test]
fn a_follower_that_was_away_for_more_than_the_tail_gets_a_checkpoint() {
    let mut cluster = Cluster::new(3, 1);
    let follower = with_one_behind(&mut cluster);
    cluster.heal();
    cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    all_equal(&mut cluster, follower, 1);
    // The log goes on from there, and over a crash too.
    let job = cluster.enqueue("mail", b"after");
    cluster.pass(500);
    all_equal(&mut cluster, follower, 1);
    cluster.kill(follower);
    cluster.start(follower);
    cluster.pass(500);
    all_equal(&mut cluster, follower, 0);
    cluster.make_lead(follower, GROUP);
    assert!(cluster.has(job));
    assert_eq!(cluster.engine(follower).live_jobs(), 1002);
}

#[test]
fn nothing_is_installed_before_every_group_of_the_shard_is_loaded() {
    let mut cluster = Cluster::new(3, 2);
    let (first, second) = (queue_in(GroupId(0), 2), queue_in(GroupId(1), 2));
    let job = cluster.enqueue(&second, b"in the group that loads late");
    cluster.enqueue(&first, b"before");
    cluster.pass(500);
    let leader = cluster.leader(GROUP).expect("it has just answered");
    let follower = 1 + leader % 3;
    // Both groups have checkpoints, which a start reads.
    cluster.ask_to_stop(follower);
    cluster.until("it has stopped", |cluster| {
        cluster.node(follower).has_stopped
    });
    cluster.kill(follower);
    for _ in 0..10 {
        cluster.fill(&first, 100, COMMAND_BYTES / 100);
    }
    let node = cluster.node(follower);
    (node.loads_late, node.file_turns) = (Some(GroupId(1)), 50);
    let before = node.disk.files();
    cluster.start(follower);
    // A file that is there by now is of no base that is known.
    for _ in 0..2_000 {
        cluster.step();
        if cluster.node(follower).disk.files() != before {
            break;
        }
    }
    cluster.node(follower).load_it();
    cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    cluster.pass(500);
    cluster.kill(follower);
    cluster.start(follower);
    cluster.pass(1_000);
    let counters = cluster.counters(follower);
    assert_eq!(counters.checkpoints_damaged_total, 0, "its files are there");
    assert_eq!(counters.groups_halted, 0);
    all_equal(&mut cluster, follower, 0);
    cluster.make_lead(follower, GroupId(1));
    assert!(cluster.has(job));
}

#[test]
fn a_follower_that_was_away_over_checkpoints_of_its_leader_gets_one() {
    let mut cluster = Cluster::with_checkpoints(3, 1, 256 << 10);
    let follower = with_one_behind(&mut cluster);
    write(&mut cluster, 10);
    cluster.heal();
    // It cuts checkpoints of its own at the same time.
    cluster.node(follower).file_turns = 5;
    for _ in 0..10 {
        write(&mut cluster, 1);
        cluster.pass(20);
    }
    all_equal(&mut cluster, follower, 1);
    assert!(cluster.counters(follower).checkpoint_rounds_total > 2);
    for number in 1..=3 {
        cluster.kill(number);
    }
    for number in 1..=3 {
        cluster.start(number);
    }
    let job = cluster.enqueue("mail", b"after");
    all_equal(&mut cluster, follower, 0);
    assert!(cluster.has(job));
    assert_eq!(cluster.engine(follower).live_jobs(), 3002);
}

/// A lease of one job in a session.
fn lease(cluster: &mut Cluster, call: SessionCall, lease_ms: u32) -> Token {
    let op = Op::Lease {
        queue: cluster.queue("mail").uid,
        partition: Partition(0),
        max: 1,
        lease_ms,
        epoch: 1,
    };
    let body = RequestBody::Command {
        group: GROUP,
        command: Command {
            session: Some(call),
            op,
        },
        wait_ms: 0,
    };
    match cluster.ask(&body) {
        ReplyBody::Leased(jobs) => jobs[0].token(),
        other => panic!("nothing leased: {other:?}"),
    }
}

fn enqueue(cluster: &mut Cluster, job: NewJob) -> Enqueued {
    let op = Op::Enqueue {
        queue: cluster.queue("mail").uid,
        partition: Partition(0),
        items: vec![job],
    };
    match cluster.command("mail", None, op) {
        Outcome::Enqueued(items) => items[0],
        other => panic!("not enqueued: {other:?}"),
    }
}

fn ack(cluster: &mut Cluster, call: SessionCall, token: Token) -> ItemOutcome {
    let result = None;
    let op = Op::Ack {
        items: vec![AckItem { token, result }],
    };
    match cluster.command("mail", Some(call), op) {
        Outcome::Items(items) => items[0],
        other => panic!("no outcome of a token: {other:?}"),
    }
}

/// A job of a queue of several partitions that retains what is finished.
fn finish_one(cluster: &mut Cluster) {
    let create = Op::CreateQueue {
        name: "kept".to_owned(),
        settings: QueueSettings {
            retain: 10,
            partitions: 2,
            ..QueueSettings::default()
        },
        must_be_new: true,
        groups: 1,
    };
    let Outcome::Queue(info) = cluster.command("kept", None, create) else {
        panic!("no queue");
    };
    let job = cluster.enqueue("kept", b"done");
    let lease = Op::Lease {
        queue: info.uid,
        partition: Partition(0),
        max: 1,
        lease_ms: 60_000,
        epoch: 1,
    };
    cluster.command("kept", None, lease);
    let (lease_gen, result) = (1, Some(Bytes::from_static(b"result")));
    let token = Token { job, lease_gen };
    let items = vec![AckItem { token, result }];
    let done = cluster.command("kept", None, Op::Ack { items });
    assert_eq!(done, Outcome::Items(vec![ItemOutcome::Done]));
}

#[test]
fn everything_of_the_group_is_there_when_the_follower_leads() {
    let mut cluster = Cluster::new(3, 1);
    cluster.enqueue("mail", b"first");
    cluster.pass(500);
    let leader = cluster.leader(GROUP).expect("it has just answered");
    let follower = 1 + leader % 3;
    cluster.cut_off(follower);
    let opened = cluster.command(
        "mail",
        None,
        Op::OpenSession {
            worker_timeout_ms: 600_000,
        },
    );
    let Outcome::SessionOpened { session: id, .. } = opened else {
        panic!("no session: {opened:?}");
    };
    let call = |seq, window| SessionCall {
        id,
        seq,
        lowest: 1,
        window,
    };
    cluster.enqueue("mail", b"second");
    let token = lease(&mut cluster, call(1, Window::Polls), 600_000);
    let dead = lease(&mut cluster, call(2, Window::Polls), 600_000);
    let bury = Op::Bury {
        items: vec![(dead, Bytes::from_static(b"broken"))],
    };
    let buried = cluster.command("mail", Some(call(1, Window::Commands)), bury);
    assert_eq!(buried, Outcome::Items(vec![ItemOutcome::Done]));
    finish_one(&mut cluster);
    let keyed = NewJob {
        payload: Bytes::from_static(b"once"),
        key: Some(Bytes::from_static(b"key")),
        ..NewJob::default()
    };
    let once = enqueue(&mut cluster, keyed.clone());
    let delayed = NewJob {
        payload: Bytes::from_static(b"later"),
        start: Start::After(120_000),
        ..NewJob::default()
    };
    let delayed = enqueue(&mut cluster, delayed).id().expect("it is new");
    write(&mut cluster, 10);
    cluster.heal();
    cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    all_equal(&mut cluster, follower, 1);
    cluster.make_lead(follower, GROUP);
    let again = enqueue(&mut cluster, keyed);
    assert_eq!(again, Enqueued::Existing(once.id().expect("it is new")));
    assert_eq!(cluster.state(token.job), JobState::InFlight);
    assert_eq!(cluster.state(delayed), JobState::Delayed);
    assert_eq!(cluster.state(dead.job), JobState::Dead);
    let stale = Token {
        lease_gen: token.lease_gen + 1,
        ..token
    };
    let refused = ack(&mut cluster, call(2, Window::Commands), stale);
    assert_ne!(refused, ItemOutcome::Done);
    let done = ack(&mut cluster, call(3, Window::Commands), token);
    assert_eq!(done, ItemOutcome::Done);
    let retried = ack(&mut cluster, call(3, Window::Commands), token);
    assert_eq!(retried, ItemOutcome::Done, "the session knows its outcome");
    cluster.pass(121_000);
    assert_eq!(cluster.state(delayed), JobState::Pending);
}

/// Slow enough that each stage takes a few steps.
fn slow(cluster: &mut Cluster, number: u32) {
    let node = cluster.node(number);
    (node.write_turns, node.file_turns) = (6, 6);
}

#[test]
fn a_follower_may_die_at_any_step_of_the_way() {
    let (mut before, mut under_way, mut after) = (0, 0, 0);
    for step in 0..60 {
        let mut cluster = Cluster::new(3, 1);
        cluster.reseed(step);
        let follower = with_one_behind(&mut cluster);
        slow(&mut cluster, follower);
        cluster.heal();
        cluster.until("it is offered", |cluster| {
            (1..=3).any(|number| cluster.counters(number).checkpoint_parts_sent_total > 0)
        });
        cluster.pass(step);
        let (is_installed, written) = (
            installed(&mut cluster, follower) == 1,
            cluster.counters(follower).checkpoint_bytes_total,
        );
        match (is_installed, written) {
            (true, _) => after += 1,
            (false, 0) => before += 1,
            (false, _) => under_way += 1,
        }
        cluster.kill(follower);
        // By itself it has what it had: all of one of the two states.
        cluster.cut_off(follower);
        cluster.start(follower);
        cluster.pass(20);
        let alone = cluster.engine(follower).live_jobs();
        assert!(
            alone == 1001 || (alone <= 1 && !is_installed),
            "step {step}: {alone} jobs, installed: {is_installed}"
        );
        cluster.heal();
        all_equal(&mut cluster, follower, 1);
        let job = cluster.enqueue("mail", b"goes on");
        cluster.pass(200);
        cluster.kill(follower);
        cluster.start(follower);
        all_equal(&mut cluster, follower, 0);
        assert!(cluster.has(job), "step {step}");
    }
    println!("killed {before} times before, {under_way} while it was written, {after} after");
    assert!(before > 1 && under_way > 10 && after > 5);
}

#[test]
fn a_checkpoint_counts_only_once_its_base_is_durable() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, 1);
        cluster.reseed(seed);
        let follower = with_one_behind(&mut cluster);
        cluster.node(follower).write_turns = 40;
        cluster.heal();
        cluster.until("it is installed", |cluster| {
            installed(cluster, follower) == 1
        });
        cluster.kill(follower);
        cluster.cut_off(follower);
        cluster.start(follower);
        cluster.pass(20);
        assert_eq!(cluster.engine(follower).live_jobs(), 1001, "seed {seed}");
    }
}

#[test]
fn parts_that_a_broken_link_has_lost_are_sent_again_and_no_others() {
    let whole = {
        let mut cluster = Cluster::new(3, 1);
        let follower = with_one_behind(&mut cluster);
        cluster.heal();
        cluster.until("it is installed", |cluster| {
            installed(cluster, follower) == 1
        });
        parts_sent(&mut cluster)
    };
    assert!(whole > 15, "{whole} parts");
    let mut cluster = Cluster::new(3, 1);
    let follower = with_one_behind(&mut cluster);
    cluster.heal();
    for parts in [5, 10] {
        cluster.until("some parts are here", |cluster| parts_sent(cluster) > parts);
        // They are answered; what the leader sends then is lost.
        cluster.step();
        cluster.cut_off(follower);
        cluster.pass(700);
        cluster.heal();
    }
    cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    all_equal(&mut cluster, follower, 1);
    let sent = parts_sent(&mut cluster);
    // Two windows were lost.
    assert!(
        sent > whole && sent <= whole + 8,
        "{sent} parts in place of {whole}"
    );
}

fn parts_sent(cluster: &mut Cluster) -> u64 {
    let of = |number| cluster.counters(number).checkpoint_parts_sent_total;
    (1..=3).map(of).sum()
}

#[test]
fn a_leader_may_die_at_any_step_of_the_way() {
    let mut anew = 0;
    for step in (0..60).step_by(3) {
        let mut cluster = Cluster::new(3, 1);
        let follower = with_one_behind(&mut cluster);
        slow(&mut cluster, follower);
        let leader = cluster.leader(GROUP).expect("it has just answered");
        cluster.heal();
        cluster.until("some parts are here", |cluster| parts_sent(cluster) > 0);
        cluster.pass(step);
        cluster.kill(leader);
        // Two are left, and one of them has nothing.
        cluster.until("another has brought it there", |cluster| {
            installed(cluster, follower) == 1
        });
        let job = cluster.enqueue("mail", b"by the other");
        anew += cluster
            .counters(6 - follower - leader)
            .checkpoints_under_way;
        cluster.start(leader);
        cluster.pass(500);
        all_equal(&mut cluster, follower, 2);
        assert!(cluster.has(job), "step {step}");
    }
    println!("begun anew {anew} times");
}

#[test]
fn a_checkpoint_arrives_once_under_load_and_on_a_slow_disk() {
    let mut cluster = Cluster::with_checkpoints(3, 1, 1 << 20);
    let follower = with_one_behind(&mut cluster);
    let node = cluster.node(follower);
    (node.write_turns, node.file_turns) = (10, 100);
    cluster.heal();
    // Far more is written meanwhile than a log holds that nobody needs.
    let mut commands = 0;
    while installed(&mut cluster, follower) == 0 {
        write(&mut cluster, 1);
        commands += 1;
        assert!(commands < 200, "it does not come to an end");
    }
    assert!(
        commands > 15,
        "{commands} commands of {COMMAND_BYTES} bytes"
    );
    write(&mut cluster, 20);
    all_equal(&mut cluster, follower, 1);
    cluster.pass(500);
    let under_way = |cluster: &mut Cluster| -> u64 {
        let of = |number| cluster.counters(number).checkpoints_under_way;
        (1..=3).map(of).sum()
    };
    write(&mut cluster, 1);
    cluster.pass(500);
    assert_eq!(
        under_way(&mut cluster),
        0,
        "nothing is kept for it any more"
    );
}

#[test]
fn a_follower_that_is_cut_off_while_it_writes_goes_on() {
    let mut cluster = Cluster::new(3, 1);
    let follower = with_one_behind(&mut cluster);
    cluster.node(follower).file_turns = 1_000;
    cluster.heal();
    cluster.until("all is there, and it writes", |cluster| {
        cluster.counters(follower).checkpoint_pages_taken_total > 0
    });
    cluster.cut_off(follower);
    cluster.pass(4_000);
    assert_eq!(
        installed(&mut cluster, follower),
        1,
        "it needs nobody for that"
    );
    cluster.heal();
    all_equal(&mut cluster, follower, 1);
}

#[test]
fn a_leader_forgets_a_follower_that_does_not_come_back() {
    for dies in [true, false] {
        let mut cluster = Cluster::new(3, 1);
        let follower = with_one_behind(&mut cluster);
        let leader = cluster.leader(GROUP).expect("it has just answered");
        cluster.heal();
        cluster.until("some parts are here", |cluster| parts_sent(cluster) > 0);
        assert_eq!(cluster.counters(leader).checkpoints_under_way, 1);
        if dies {
            cluster.kill(follower);
            cluster.pass(50);
        } else {
            cluster.cut_off(follower);
            cluster.pass(31_000);
        }
        assert_eq!(cluster.counters(leader).checkpoints_under_way, 0);
        if dies {
            cluster.start(follower);
        }
        cluster.heal();
        all_equal(&mut cluster, follower, 2);
    }
}

#[test]
fn a_tail_that_nobody_else_has_is_void_behind_the_new_base() {
    for step in 0..30 {
        let mut cluster = Cluster::new(3, 1);
        cluster.enqueue("mail", b"before");
        cluster.pass(500);
        let old = cluster.leader(GROUP).expect("it has just answered");
        let uid = cluster.queue("mail").uid;
        cluster.cut_off(old);
        // Longer than what the others write, in entries.
        for nth in 0..200_u64 {
            let body = enqueue_body(GROUP, uid, Bytes::copy_from_slice(&nth.to_le_bytes()));
            assert!(cluster.try_ask(old, body, 0).is_none());
        }
        cluster.until("another leads", |cluster| {
            cluster.leader(GROUP).is_some_and(|other| other != old)
        });
        write(&mut cluster, 10);
        slow(&mut cluster, old);
        cluster.heal();
        cluster.until("it is installed", |cluster| installed(cluster, old) == 1);
        cluster.pass(step);
        cluster.kill(old);
        cluster.start(old);
        cluster.until_equal(GROUP);
        assert_eq!(cluster.engine(old).live_jobs(), 1001, "step {step}");
    }
}

#[test]
fn a_member_whose_log_is_damaged_gets_a_checkpoint_too() {
    let mut cluster = Cluster::new(3, 1);
    cluster.enqueue("mail", b"before");
    cluster.pass(500);
    let leader = cluster.leader(GROUP).expect("it has just answered");
    let hurt = 1 + leader % 3;
    for nth in 0..10 {
        cluster.enqueue("mail", &[nth]);
    }
    cluster.pass(500);
    cluster.kill(hurt);
    cluster.node(hurt).damage_log(4);
    write(&mut cluster, 10);
    cluster.start(hurt);
    cluster.step();
    assert_eq!(cluster.counters(hurt).raft_groups_recovering, 1);
    cluster.until("it is installed", |cluster| installed(cluster, hurt) == 1);
    cluster.pass(2_000);
    all_equal(&mut cluster, hurt, 1);
    let recovering = cluster.counters(hurt).raft_groups_recovering;
    assert_eq!(recovering, 0, "it is sound again");
    cluster.kill(hurt);
    cluster.start(hurt);
    cluster.pass(1_000);
    let recovering = cluster.counters(hurt).raft_groups_recovering;
    assert_eq!(recovering, 0, "it stays sound");
    cluster.make_lead(hurt, GROUP);
    assert_eq!(cluster.engine(hurt).live_jobs(), 1011);
}

#[test]
fn many_groups_are_brought_there_one_after_the_other() {
    const GROUPS: u32 = 8;
    let mut cluster = Cluster::new(3, GROUPS);
    let names: Vec<String> = (0..20).map(|nth| format!("queue-{nth}")).collect();
    for name in &names {
        cluster.enqueue(name, b"before");
    }
    cluster.pass(500);
    cluster.cut_off(2);
    for _ in 0..8 {
        for name in &names {
            cluster.fill(name, 100, COMMAND_BYTES / 100);
        }
    }
    cluster.heal();
    for group in 0..GROUPS {
        let group = GroupId(group as u16);
        cluster.until("all have the same state", |cluster| {
            cluster.are_equal(group)
        });
    }
    let counters = cluster.counters(2);
    assert!(counters.checkpoints_installed_total > 3, "{counters:?}");
    assert_eq!(counters.checkpoint_installs_failed_total, 0);
}

#[test]
fn parts_that_nobody_asked_for_are_counted_and_change_nothing() {
    let mut cluster = Cluster::new(3, 1);
    let follower = with_one_behind(&mut cluster);
    let leader = cluster.leader(GROUP).expect("it has just answered");
    let message = |from: u32, to: u32, what| Message {
        from: voter(from),
        to: voter(to),
        group: GROUP,
        incarnation: Incarnation(1),
        term: Term(1),
        life: 1 << 32,
        recovering: false,
        body: Body::Checkpoint(what),
    };
    let part = |id, number| Checkpoint::Part {
        id,
        number,
        bytes: Bytes::from_static(b"\x01\x02\x03"),
    };
    let other_life = |mut message: Message| {
        message.incarnation = Incarnation(2);
        message
    };
    cluster.heal();
    cluster.until("some parts are here", |cluster| parts_sent(cluster) > 6);
    let id = 1 << 32 | 1;
    let refused = |cluster: &mut Cluster| {
        let counters = cluster.counters(follower);
        (
            counters.checkpoint_parts_refused_total,
            counters.peer_messages_refused_total,
        )
    };
    let before = refused(&mut cluster);
    let bad = vec![
        message(leader, follower, part(id + 1, 0)),
        message(leader, follower, part(id, 0)),
        message(leader, follower, part(id, u64::MAX)),
        message(6 - leader - follower, follower, part(id, 2)),
        other_life(message(leader, follower, part(id, 2))),
        message(7, follower, part(id, 2)),
    ];
    cluster.say(follower, bad, 0);
    cluster.step();
    let after = refused(&mut cluster);
    assert_eq!((after.0 - before.0, after.1 - before.1), (5, 1));
    // Nor does it matter what a leader is asked.
    let get = |id, above, next, again| Checkpoint::Get {
        id,
        above: LogIndex(above),
        next,
        again,
        wants_from: 1 << 40,
        wants: vec![PageWanted::default(); 3],
        done: false,
    };
    let asked = vec![
        message(follower, leader, get(id, 0, u64::MAX, true)),
        message(follower, leader, get(id, u64::MAX, 0, false)),
        message(follower, leader, get(u64::MAX, u64::MAX, 0, false)),
        message(follower, leader, get(u64::MAX, 0, 9, false)),
        message(7, leader, get(id, 0, 0, false)),
    ];
    cluster.say(leader, asked, 0);
    cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    all_equal(&mut cluster, follower, 1);
}

#[test]
fn a_checkpoint_that_changed_on_its_way_is_not_installed() {
    let mut cluster = Cluster::new(3, 1);
    let follower = with_one_behind(&mut cluster);
    let leader = cluster.leader(GROUP).expect("it has just answered");
    cluster.heal();
    cluster.until("the first is on its way", |cluster| {
        parts_sent(cluster) >= 1
    });
    // Before the leader's own.
    let part = Checkpoint::Part {
        id: 1 << 32 | 1,
        number: 0,
        bytes: Bytes::from_static(b"\x03abc"),
    };
    let bad = Message {
        from: voter(leader),
        to: voter(follower),
        group: GROUP,
        incarnation: Incarnation(1),
        term: Term(1),
        life: 1 << 32,
        recovering: false,
        body: Body::Checkpoint(part),
    };
    cluster.say_first(follower, bad);
    cluster.step();
    let counted = cluster.counters(follower);
    assert_eq!(counted.checkpoint_installs_failed_total, 1);
    assert!(cluster.engine(follower).install_failure().is_some());
    // Another is tried after a while.
    let took = cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    assert!(took > 4_000, "after {took} ms");
    cluster.until_equal(GROUP);
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_tried_again_later() {
    let mut cluster = Cluster::new(3, 1);
    let follower = with_one_behind(&mut cluster);
    cluster.node(follower).rounds_fail = 2;
    cluster.heal();
    let took = cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    assert!(took > 9_000, "twice 5 s are waited, not {took} ms");
    let counters = cluster.counters(follower);
    assert_eq!(counters.checkpoint_installs_failed_total, 2);
    assert_eq!(counters.checkpoint_rounds_failed_total, 0);
    let failure = cluster.engine(follower).install_failure();
    assert!(failure.is_some_and(|why| why.ends_with("it could not be written")));
    cluster.until_equal(GROUP);
    cluster.kill(follower);
    cluster.start(follower);
    cluster.pass(500);
    all_equal(&mut cluster, follower, 0);
}

#[test]
fn a_checkpoint_that_nobody_wants_any_more_is_not_in_the_way() {
    let mut cluster = Cluster::new(3, 8);
    let groups: Vec<GroupId> = (0..8).map(GroupId).collect();
    cluster.pass(2_000);
    let leaders: Vec<u32> = groups
        .iter()
        .map(|group| cluster.leader(*group).expect("they are elected"))
        .collect();
    // One node leads two of them.
    let is_first = |at: &usize| !leaders[..*at].contains(&leaders[*at]);
    let second = (0..8).find(|at| !is_first(at)).expect("three nodes");
    let leader = leaders[second];
    let first = (0..8).find(|at| leaders[*at] == leader).expect("it is one");
    let pair = [groups[first], groups[second]];
    let follower = 1 + leader % 3;
    let names = (0..1_000).map(|nth| format!("queue-{nth}"));
    let names: Vec<String> = names
        .filter(|name| pair.contains(&cluster.home(name)))
        .take(8)
        .collect();
    cluster.cut_off(follower);
    for name in &names {
        for _ in 0..8 {
            cluster.fill(name, 100, COMMAND_BYTES / 100);
        }
    }
    cluster.heal();
    cluster.until("some parts are here", |cluster| parts_sent(cluster) > 4);
    let next = parts_sent(&mut cluster) - 4;
    for group in pair {
        let part = Checkpoint::Part {
            id: 1 << 32 | 1,
            number: next,
            bytes: Bytes::from_static(b"no item begins or goes on like this"),
        };
        let message = Message {
            from: voter(leader),
            to: voter(follower),
            group,
            incarnation: Incarnation(1),
            term: Term(1),
            life: 1 << 32,
            recovering: false,
            body: Body::Checkpoint(part),
        };
        cluster.say_first(follower, message);
    }
    cluster.step();
    let failed = cluster.counters(follower).checkpoint_installs_failed_total;
    assert_eq!(failed, 1);
    let took = cluster.until("both are installed", |cluster| {
        installed(cluster, follower) == 2
    });
    assert!(took < 15_000, "after {took} ms");
}

#[test]
fn what_lies_behind_the_checkpoint_in_a_log_that_leads_to_it_stays() {
    // Node 3 gets all entries, says nothing, and is told of nothing that is committed.
    let mut cluster = Cluster::new(3, 1);
    cluster.enqueue("mail", b"before");
    cluster.make_lead(1, GROUP);
    let uid = cluster.queue("mail").uid;
    cluster.pass(500);
    cluster.tamper = Some(|to, message| match &mut message.body {
        Body::Append { commit, .. } | Body::Heartbeat { commit, .. } if to == 3 => {
            *commit = LogIndex(0);
        }
        _ => {}
    });
    cluster.silence(3);
    write(&mut cluster, 10);
    // What only nodes 1 and 3 have is not committed.
    cluster.cut_off(2);
    cluster.silence(3);
    let body = enqueue_body(GROUP, uid, Bytes::from_static(b"behind it"));
    assert!(cluster.try_ask(1, body, 20).is_none());
    // The link of node 3 breaks, and the leader finds out what it has.
    cluster.heal();
    cluster.cut_off(2);
    cluster.lost(3, Loss::Broken);
    let reply = cluster.until_answered(1, 5_000).body;
    let ReplyBody::Outcome(Outcome::Enqueued(items)) = reply else {
        panic!("not enqueued: {reply:?}");
    };
    let job = items[0].id().expect("it is new");
    assert_eq!(installed(&mut cluster, 3), 1);
    for number in 1..=3 {
        cluster.kill(number);
    }
    // Node 1 is gone for good.
    cluster.tamper = None;
    cluster.heal();
    cluster.start(2);
    cluster.start(3);
    assert!(cluster.has(job), "it was acknowledged");
}

#[test]
fn a_checkpoint_with_another_index_is_not_what_was_sent() {
    let mut cluster = Cluster::new(3, 1);
    let follower = with_one_behind(&mut cluster);
    cluster.tamper = Some(|_, message| {
        if let Body::Checkpoint(Checkpoint::Part {
            number: 0, bytes, ..
        }) = &mut message.body
        {
            // Length, item, its length, field 1: the index.
            let mut changed = bytes.to_vec();
            assert_eq!(changed[3], 8);
            changed[4] += 1;
            *bytes = changed.into();
        }
    });
    cluster.heal();
    cluster.pass(2_000);
    let counters = cluster.counters(follower);
    assert_eq!(counters.checkpoints_installed_total, 0);
    assert_eq!(counters.checkpoint_installs_failed_total, 1);
    cluster.tamper = None;
    cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    cluster.until_equal(GROUP);
}

#[test]
fn bodies_of_an_installed_checkpoint_are_not_written_again() {
    let mut cluster = Cluster::with_checkpoints(3, 1, 1 << 20);
    let follower = with_one_behind(&mut cluster);
    cluster.heal();
    cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    let written = |cluster: &mut Cluster| {
        let counters = cluster.counters(follower);
        let rounds = counters.checkpoint_rounds_total;
        (rounds, counters.checkpoint_bytes_total)
    };
    let (rounds, bytes) = written(&mut cluster);
    assert!(bytes > 2_000_000, "all that it lacked, not {bytes} bytes");
    while written(&mut cluster).0 == rounds {
        write(&mut cluster, 1);
    }
    let more = written(&mut cluster).1 - bytes;
    assert!(more < 1_800_000, "{more} bytes for what is new");
}
