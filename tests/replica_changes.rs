//! Queues whose partitions are led by other nodes than their home: each change of such a queue comes to
//! all of them, whatever is lost, comes twice or dies on the way, and is answered only then.
#![cfg(feature = "engine")]

mod replica_kit;

use bytes::Bytes;
use replica_kit::{Cluster, queue_in, voter};
use rrq::base::code::Code;
use rrq::base::ids::{GroupId, Incarnation, LogIndex, Partition, QueueUid, SessionId, Term};
use rrq::queue::command::{PartitionChange, PartitionConfig, Rejection};
use rrq::raft::message::{Body, Message, QueueChange};
use rrq::wire::command::encode_command;
use rrq::wire::message::{ReplyBody, RequestBody};
use rrq::wire::{
    Command, Enqueued, NewJob, Op, Outcome, QueueInfo, QueueSettings, SessionCall, Window,
};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const GROUPS: u32 = 8;
const HOME: GroupId = GroupId(0);

fn command(group: GroupId, session: Option<SessionCall>, op: Op) -> RequestBody {
    RequestBody::Command {
        group,
        command: Command { session, op },
        wait_ms: 0,
    }
}

/// Makes a queue with a partition in each group.
fn create() -> Op {
    Op::CreateQueue {
        name: queue_in(HOME, GROUPS),
        settings: QueueSettings {
            partitions: GROUPS as u8,
            ..QueueSettings::default()
        },
        must_be_new: false,
        groups: 0,
    }
}

/// Three nodes, each of which leads some groups.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(3, GROUPS);
    cluster.until("each node leads its share", |cluster| {
        let leaders: Vec<_> = (0..GROUPS as u16)
            .filter_map(|group| cluster.leader(GroupId(group)))
            .collect();
        let count = |node| leaders.iter().filter(|leader| **leader == node).count();
        (1..=3).all(|node| (2..=3).contains(&count(node)))
    });
    // Every group is of the newest version, and rests.
    cluster.pass(2_000);
    cluster
}

/// What the leader of a group answers within so many milliseconds.
fn ask(
    cluster: &mut Cluster,
    group: GroupId,
    body: &RequestBody,
    within: u64,
) -> Option<ReplyBody> {
    let leader = cluster.led_by(group);
    let reply = cluster.try_ask(leader, body.clone(), within);
    reply.map(|reply| reply.body)
}

fn made(body: Option<ReplyBody>) -> QueueInfo {
    match body {
        Some(ReplyBody::Outcome(Outcome::Queue(info))) => *info,
        other => panic!("not made: {other:?}"),
    }
}

/// A change that is not answered at once is asked for again until it is.
fn until_done(cluster: &mut Cluster, op: &Op) -> ReplyBody {
    for _ in 0..20 {
        match ask(cluster, HOME, &command(HOME, None, op.clone()), 2_000) {
            Some(ReplyBody::Error(error)) if error.code == Code::NotLeader => cluster.pass(50),
            Some(body) => return body,
            None => {}
        }
    }
    panic!("{op:?} is not done");
}

/// What each partition says to one more job.
fn enqueue_everywhere(cluster: &mut Cluster, info: &QueueInfo) -> Vec<Outcome> {
    let places = info.groups.clone().into_iter().zip(0..);
    let ask = |(group, number): (GroupId, u8)| {
        let op = Op::Enqueue {
            queue: info.uid,
            partition: Partition(number),
            items: vec![NewJob::default()],
        };
        match ask(cluster, group, &command(group, None, op), 500) {
            Some(ReplyBody::Outcome(outcome)) => outcome,
            other => panic!("partition {number}: {other:?}"),
        }
    };
    places.map(ask).collect()
}

fn must_be_everywhere(cluster: &mut Cluster, info: &QueueInfo) {
    for outcome in enqueue_everywhere(cluster, info) {
        assert!(
            matches!(&outcome, Outcome::Enqueued(items) if matches!(items[..], [Enqueued::New(_)])),
            "{outcome:?}"
        );
    }
}

fn must_be_nowhere(cluster: &mut Cluster, info: &QueueInfo) {
    let gone = Outcome::Rejected(Rejection::QueueChanged);
    for outcome in enqueue_everywhere(cluster, info) {
        assert!(
            matches!(&outcome, Outcome::Enqueued(items)
                if items[..] == [Enqueued::Rejected(Rejection::QueueChanged)])
                || outcome == gone,
            "{outcome:?}"
        );
    }
}

fn must_be_equal(cluster: &mut Cluster) {
    for group in (0..GROUPS as u16).map(GroupId) {
        cluster.until("all have the same", |cluster| cluster.are_equal(group));
    }
}

fn sent(cluster: &mut Cluster) -> u64 {
    let of = |number| {
        let counters = cluster.engine(number).counters();
        counters.partition_changes_sent_total
    };
    (1..=3).map(of).sum()
}

/// Entries that all nodes have applied.
fn applied(cluster: &mut Cluster, group: GroupId) -> LogIndex {
    must_be_equal(cluster);
    let state = cluster.engine(1).state_hash(group);
    state.expect("it serves").0
}

#[test]
fn a_queue_is_made_changed_and_deleted_over_groups_that_other_nodes_lead() {
    let mut cluster = cluster();
    let info = made(ask(&mut cluster, HOME, &command(HOME, None, create()), 20));
    assert_eq!(info.groups.len(), 8);
    must_be_everywhere(&mut cluster, &info);
    // A few groups are led by the node of the home; each of the others was asked once.
    let asked = sent(&mut cluster);
    assert!((5..=6).contains(&asked), "{asked}");
    let queue = info.uid;
    let pause = command(HOME, None, Op::PauseQueue { queue });
    assert!(made(ask(&mut cluster, HOME, &pause, 20)).paused);
    for (group, number) in info.groups.iter().zip(0..) {
        let op = Op::Lease {
            queue,
            partition: Partition(number),
            max: 1,
            lease_ms: 0,
            epoch: 0,
        };
        let leased = ask(&mut cluster, *group, &command(*group, None, op), 20);
        assert!(
            matches!(&leased, Some(ReplyBody::Leased(jobs)) if jobs.is_empty()),
            "partition {number} is paused, and has a job: {leased:?}"
        );
    }
    let delete = command(HOME, None, Op::DeleteQueue { queue });
    let deleted = ask(&mut cluster, HOME, &delete, 20);
    assert_eq!(deleted, Some(ReplyBody::Outcome(Outcome::Done)));
    must_be_nowhere(&mut cluster, &info);
    must_be_equal(&mut cluster);
    // Nothing is asked for that is done.
    let asked = sent(&mut cluster);
    cluster.pass(5_000);
    assert_eq!(sent(&mut cluster), asked);
}

#[test]
fn what_a_home_has_decided_is_done_by_its_next_leader() {
    let mut cluster = cluster();
    cluster.copies = Some(Box::new(|_, message| {
        usize::from(!matches!(message.body, Body::QueueChange(_)))
    }));
    let unanswered = ask(&mut cluster, HOME, &command(HOME, None, create()), 300);
    assert_eq!(unanswered, None, "no other group has followed");
    let first = cluster.led_by(HOME);
    cluster.kill(first);
    cluster.copies = None;
    // Nobody asks for it any more, but it was decided.
    cluster.until("another leads", |cluster| cluster.leader(HOME).is_some());
    cluster.pass(3_000);
    let body = RequestBody::GetQueue {
        name: queue_in(HOME, GROUPS),
        create: false,
    };
    let info = match ask(&mut cluster, HOME, &body, 20) {
        Some(ReplyBody::Queues(queues)) => queues[0].0.clone(),
        other => panic!("no queue: {other:?}"),
    };
    must_be_everywhere(&mut cluster, &info);
    cluster.start(first);
    must_be_equal(&mut cluster);
}

#[test]
fn a_change_outlives_the_leader_of_a_partition_wherever_it_dies() {
    for after in 0..12 {
        let mut cluster = cluster();
        let home = cluster.led_by(HOME);
        let victim = (1..=3).find(|number| *number != home).expect("two others");
        let unanswered = ask(&mut cluster, HOME, &command(HOME, None, create()), after);
        cluster.kill(victim);
        let info = unanswered.map_or_else(
            || match cluster.until_answered(home, 5_000).body {
                ReplyBody::Outcome(Outcome::Queue(info)) => *info,
                other => panic!("after {after} ms: {other:?}"),
            },
            |answer| made(Some(answer)),
        );
        must_be_everywhere(&mut cluster, &info);
        cluster.start(victim);
        must_be_equal(&mut cluster);
    }
}

#[test]
fn lost_messages_delay_a_change_and_no_more() {
    type IsLost = fn(&QueueChange) -> bool;
    let kinds: [IsLost; 2] = [
        |what| matches!(what, QueueChange::Ask { .. }),
        |what| matches!(what, QueueChange::Done { .. }),
    ];
    for is_lost in kinds {
        let mut cluster = cluster();
        let lost = Cell::new(0);
        cluster.copies = Some(Box::new(move |_, message| match &message.body {
            Body::QueueChange(what) if is_lost(what) && lost.get() < 12 => {
                lost.set(lost.get() + 1);
                0
            }
            _ => 1,
        }));
        let info = made(ask(
            &mut cluster,
            HOME,
            &command(HOME, None, create()),
            1_000,
        ));
        must_be_everywhere(&mut cluster, &info);
        must_be_equal(&mut cluster);
    }
}

#[test]
fn what_comes_twice_or_late_is_done_once() {
    let mut cluster = cluster();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let keep = Rc::clone(&seen);
    cluster.copies = Some(Box::new(move |to, message| match &message.body {
        Body::QueueChange(QueueChange::Ask { .. }) => {
            keep.borrow_mut().push((to, message.clone()));
            3
        }
        Body::QueueChange(QueueChange::Done { .. }) => 2,
        _ => 1,
    }));
    let info = made(ask(&mut cluster, HOME, &command(HOME, None, create()), 20));
    let group = seen.borrow()[0].1.group;
    let before = applied(&mut cluster, group);
    let delete = command(HOME, None, Op::DeleteQueue { queue: info.uid });
    let deleted = ask(&mut cluster, HOME, &delete, 20);
    assert_eq!(deleted, Some(ReplyBody::Outcome(Outcome::Done)));
    // One entry: what was on its way already is not proposed again.
    assert_eq!(applied(&mut cluster, group).0, before.0 + 1);
    cluster.copies = None;
    let late = std::mem::take(&mut *seen.borrow_mut());
    let count = late.len();
    for (to, message) in late {
        cluster.say(to, vec![message], 0);
    }
    cluster.pass(200);
    assert!((10..=12).contains(&count), "{count}");
    assert_eq!(applied(&mut cluster, group).0, before.0 + 1);
    must_be_nowhere(&mut cluster, &info);
}

#[test]
fn a_delete_waits_for_a_partition_whose_leader_is_away() {
    let mut cluster = cluster();
    let info = made(ask(&mut cluster, HOME, &command(HOME, None, create()), 20));
    must_be_everywhere(&mut cluster, &info);
    let home = cluster.led_by(HOME);
    let away = (1..=3).find(|number| *number != home).expect("two others");
    let led = (1..GROUPS as u16)
        .map(GroupId)
        .find(|group| cluster.leader(*group) == Some(away));
    let led = led.expect("each node leads some");
    cluster.cut_off(away);
    let queue = info.uid;
    let delete = command(HOME, None, Op::DeleteQueue { queue });
    assert_eq!(
        cluster.try_ask(home, delete, 100),
        None,
        "{led} is not asked"
    );
    // It is done as soon as the group has another leader.
    let deleted = cluster.until_answered(home, 3_000).body;
    assert_eq!(deleted, ReplyBody::Outcome(Outcome::Done));
    assert_ne!(cluster.led_by(led), away);
    must_be_nowhere(&mut cluster, &info);
    cluster.heal();
    must_be_equal(&mut cluster);
    must_be_nowhere(&mut cluster, &info);
}

fn open_session(cluster: &mut Cluster) -> SessionId {
    let op = Op::OpenSession {
        worker_timeout_ms: 0,
    };
    match until_done(cluster, &op) {
        ReplyBody::Outcome(Outcome::SessionOpened { session, .. }) => session,
        other => panic!("no session: {other:?}"),
    }
}

#[test]
fn who_repeats_a_change_gets_its_first_outcome_when_all_have_followed() {
    let mut cluster = cluster();
    let call = |id, seq| {
        Some(SessionCall {
            id,
            seq,
            lowest: 1,
            window: Window::Commands,
        })
    };
    let id = open_session(&mut cluster);
    let body = command(HOME, call(id, 1), create());
    // No group but those of the home's node follows, and the answer never comes.
    cluster.copies = Some(Box::new(|_, message| {
        usize::from(!matches!(message.body, Body::QueueChange(_)))
    }));
    assert_eq!(ask(&mut cluster, HOME, &body, 100), None);
    let first = cluster.led_by(HOME);
    cluster.kill(first);
    cluster.until("another leads", |cluster| cluster.leader(HOME).is_some());
    cluster.start(first);
    assert_eq!(
        ask(&mut cluster, HOME, &body, 500),
        None,
        "it is decided, and not done"
    );
    cluster.copies = None;
    let info = made(ask(&mut cluster, HOME, &body, 2_000));
    assert!(
        info.created,
        "the first outcome, not one of an existing queue"
    );
    must_be_everywhere(&mut cluster, &info);
    let delete = command(HOME, call(id, 2), Op::DeleteQueue { queue: info.uid });
    for _ in 0..2 {
        let deleted = ask(&mut cluster, HOME, &delete, 20);
        assert_eq!(deleted, Some(ReplyBody::Outcome(Outcome::Done)));
    }
    // The queue is gone, and its making is remembered.
    assert_eq!(made(ask(&mut cluster, HOME, &body, 20)).uid, info.uid);
}

/// A cluster, and a node of it that leads the home and has not loaded another group, which has a
/// checkpoint.
fn with_one_that_does_not_load() -> (Cluster, u32, GroupId) {
    let mut cluster = Cluster::with_checkpoints(3, GROUPS, 128 << 10);
    let target = GroupId(3);
    let name = queue_in(target, GROUPS);
    let rounds = |cluster: &mut Cluster| cluster.engine(1).counters().checkpoint_rounds_total;
    while rounds(&mut cluster) < 3 {
        cluster.fill(&name, 10, 4_000);
    }
    must_be_equal(&mut cluster);
    cluster.kill(1);
    cluster.node(1).loads_late = Some(target);
    cluster.start(1);
    cluster.until("node 1 leads the home", |cluster| {
        let leader = cluster.led_by(HOME);
        if leader != 1 {
            cluster.kill(leader);
            cluster.pass(500);
            cluster.start(leader);
            cluster.pass(500);
        }
        leader == 1
    });
    cluster.pass(1_000);
    (cluster, 1, target)
}

#[test]
fn a_home_whose_own_replica_is_behind_is_told_by_the_leader() {
    let (mut cluster, node, target) = with_one_that_does_not_load();
    let info = made(ask(&mut cluster, HOME, &command(HOME, None, create()), 500));
    assert_eq!(cluster.engine(node).state_hash(target), None, "not loaded");
    must_be_everywhere(&mut cluster, &info);
    cluster.node(node).load_it();
    must_be_equal(&mut cluster);
}

#[test]
fn a_home_whose_own_replica_is_lost_asks_the_others_in_turn() {
    let (mut cluster, node, target) = with_one_that_does_not_load();
    cluster.node(node).fail_to_load_it();
    cluster.pass(10);
    let counters = cluster.engine(node).counters();
    let mended = counters.groups_mending + counters.groups_mended_total;
    assert_eq!((counters.groups_halted, mended), (0, 1));
    let info = made(ask(&mut cluster, HOME, &command(HOME, None, create()), 500));
    assert_ne!(cluster.led_by(target), node);
    must_be_everywhere(&mut cluster, &info);
}

#[test]
fn changes_that_no_home_asks_for_are_refused_and_counted() {
    let mut cluster = cluster();
    let target = GroupId(3);
    let leads = cluster.led_by(target);
    let from = (1..=3).find(|number| *number != leads).expect("two others");
    let refused = |cluster: &mut Cluster| {
        let counters = cluster.engine(leads).counters();
        counters.peer_messages_refused_total
    };
    let sound = |counter: u32| PartitionChange {
        home: HOME,
        home_index: LogIndex(counter.into()),
        queue: QueueUid::new(HOME, counter).expect("in range"),
        partitions: vec![Partition(3)],
        config: Some(PartitionConfig {
            version: 1,
            paused: false,
            draining: false,
            settings: QueueSettings {
                partitions: 8,
                ..QueueSettings::default()
            },
        }),
    };
    let asked = |change: PartitionChange| {
        encode_command(&Command {
            session: None,
            op: Op::ChangePartitions(Box::new(change)),
        })
    };
    let say = |cluster: &mut Cluster, sender, command: Bytes| {
        let message = Message {
            from: voter(sender),
            to: voter(leads),
            group: target,
            incarnation: Incarnation(1),
            term: Term(1),
            life: 1 << 32,
            recovering: false,
            body: Body::QueueChange(QueueChange::Ask { command }),
        };
        cluster.say(leads, vec![message], 0);
        cluster.pass(20);
    };
    say(&mut cluster, from, asked(sound(1)));
    let before = applied(&mut cluster, target);
    let other = PartitionChange {
        home: GroupId(1),
        ..sound(2)
    };
    let elsewhere = PartitionChange {
        partitions: vec![Partition(4)],
        ..sound(2)
    };
    let first = PartitionChange {
        partitions: vec![Partition(0)],
        ..sound(2)
    };
    let nowhere = PartitionChange {
        home: GroupId(8),
        queue: QueueUid::new(GroupId(8), 2).expect("in range"),
        ..sound(2)
    };
    let itself = PartitionChange {
        home: target,
        queue: QueueUid::new(target, 2).expect("in range"),
        ..sound(2)
    };
    let another = encode_command(&Command {
        session: None,
        op: Op::PauseQueue {
            queue: sound(2).queue,
        },
    });
    let mut nonsense: Vec<Bytes> = [other, elsewhere, first, nowhere, itself]
        .map(asked)
        .to_vec();
    nonsense.extend([another, Bytes::from_static(b"no command")]);
    for (nth, command) in nonsense.into_iter().enumerate() {
        let counted = refused(&mut cluster);
        say(&mut cluster, from, command);
        assert_eq!(refused(&mut cluster), counted + 1, "the {nth}. is refused");
    }
    let counted = refused(&mut cluster);
    say(&mut cluster, 9, asked(sound(2)));
    assert_eq!(refused(&mut cluster), counted + 1, "a stranger is refused");
    assert_eq!(applied(&mut cluster, target), before);
    say(&mut cluster, from, asked(sound(2)));
    assert_eq!(refused(&mut cluster), counted + 1, "this one is sound");
    assert_eq!(applied(&mut cluster, target).0, before.0 + 1);
}
