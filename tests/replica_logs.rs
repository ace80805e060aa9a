//! A follower that lacks more than its leader holds in memory gets it from the leader's log, as long as
//! that has it, and a checkpoint only then.
#![cfg(feature = "engine")]

mod replica_kit;

use replica_kit::{Cluster, queue_in};
use rrq::base::ids::{GroupId, Partition};
use rrq::queue::command::PurgeStates;
use rrq::wire::message::RequestBody;
use rrq::wire::{Command, NewJob, Op};

const GROUP: GroupId = GroupId(0);
/// More than a test writes.
const PLENTY: u64 = 64 << 20;

/// So many commands, each of 200 kB: 1 MiB is held in memory.
fn write(cluster: &mut Cluster, commands: usize) {
    for _ in 0..commands {
        cluster.fill("mail", 100, 2_000);
    }
}

/// Entries that any of the nodes has read from its log for another.
fn sent(cluster: &mut Cluster) -> u64 {
    (1..=3)
        .map(|number| cluster.counters(number).entries_sent_from_log_total)
        .sum()
}

fn installed(cluster: &mut Cluster) -> u64 {
    (1..=3)
        .map(|number| cluster.counters(number).checkpoints_installed_total)
        .sum()
}

/// A follower of the group, whose leader has just answered.
fn follower(cluster: &mut Cluster) -> u32 {
    cluster.enqueue("mail", b"before");
    cluster.pass(500);
    1 + cluster.leader(GROUP).expect("it has just answered") % 3
}

fn must_be_equal(cluster: &mut Cluster, groups: u16) -> u64 {
    let mut took = 0;
    for group in (0..groups).map(GroupId) {
        took += cluster.until("all have the same state", |cluster| {
            cluster.are_equal(group)
        });
    }
    took
}

#[test]
fn what_is_on_the_leaders_disk_is_read_for_who_was_away() {
    let mut cluster = Cluster::reading_logs(3, 1, 64 << 20, PLENTY);
    let follower = follower(&mut cluster);
    cluster.cut_off(follower);
    write(&mut cluster, 20);
    cluster.heal();
    let took = must_be_equal(&mut cluster, 1);
    assert!(took < 1_000, "{took} ms");
    assert_eq!(installed(&mut cluster), 0);
    // Five of the last are in memory.
    let count = sent(&mut cluster);
    assert!((14..=16).contains(&count), "{count} entries");
    // It goes on as ever, and nothing more is read.
    write(&mut cluster, 5);
    must_be_equal(&mut cluster, 1);
    assert_eq!(sent(&mut cluster), count);
    cluster.make_lead(follower, GROUP);
    assert_eq!(cluster.engine(follower).live_jobs(), 2_501);
}

#[test]
fn who_was_not_there_when_the_group_began_gets_all_from_the_log() {
    let mut cluster = Cluster::reading_logs(3, 1, 64 << 20, PLENTY);
    cluster.kill(3);
    cluster.enqueue("mail", b"first");
    write(&mut cluster, 20);
    cluster.start(3);
    must_be_equal(&mut cluster, 1);
    assert_eq!(installed(&mut cluster), 0);
    assert!(sent(&mut cluster) >= 14);
}

#[test]
fn a_follower_that_was_dead_catches_up_under_load() {
    let mut cluster = Cluster::reading_logs(3, 1, 64 << 20, PLENTY);
    let follower = follower(&mut cluster);
    cluster.kill(follower);
    write(&mut cluster, 20);
    cluster.start(follower);
    write(&mut cluster, 20);
    must_be_equal(&mut cluster, 1);
    assert_eq!(installed(&mut cluster), 0);
    assert!(sent(&mut cluster) >= 14);
}

#[test]
fn groups_that_lack_the_same_piece_share_its_reading() {
    const GROUPS: u32 = 8;
    let mut cluster = Cluster::reading_logs(3, GROUPS, 64 << 20, PLENTY);
    let queues: Vec<String> = (0..GROUPS as u16)
        .map(|group| queue_in(GroupId(group), GROUPS))
        .collect();
    for queue in &queues {
        cluster.enqueue(queue, b"before");
    }
    cluster.pass(1_000);
    cluster.kill(3);
    cluster.pass(1_000);
    for _ in 0..30 {
        for queue in &queues {
            cluster.fill(queue, 10, 2_000);
        }
    }
    cluster.start(3);
    must_be_equal(&mut cluster, GROUPS as u16);
    assert_eq!(installed(&mut cluster), 0);
    let count = sent(&mut cluster);
    assert!(count > 150, "{count}");
    // 5 MB by each of two nodes, in pieces of a segment of 256 KiB; the newest as it grew.
    let read: u64 = (1..=3)
        .map(|number| cluster.counters(number).log_pieces_read_total)
        .sum();
    assert!(read < 60, "{read} pieces for {count} entries");
}

#[test]
fn a_tail_that_nobody_else_has_is_replaced_by_what_is_read() {
    let mut cluster = Cluster::reading_logs(3, 1, 64 << 20, PLENTY);
    follower(&mut cluster);
    let first = cluster.leader(GROUP).expect("it has just answered");
    let uid = cluster.queue("mail").uid;
    cluster.cut_off(first);
    let op = Op::Enqueue {
        queue: uid,
        partition: Partition(0),
        items: vec![NewJob::default()],
    };
    let body = RequestBody::Command {
        group: GROUP,
        command: Command { session: None, op },
        wait_ms: 0,
    };
    for _ in 0..3 {
        assert_eq!(cluster.try_ask(first, body.clone(), 5), None);
    }
    cluster.until("another leads", |cluster| {
        cluster.leader(GROUP).is_some_and(|leader| leader != first)
    });
    write(&mut cluster, 20);
    cluster.heal();
    must_be_equal(&mut cluster, 1);
    assert_eq!(installed(&mut cluster), 0);
    assert!(sent(&mut cluster) >= 14);
    assert_eq!(cluster.engine(first).live_jobs(), 2_001);
    // What its own log holds of these indexes twice, it reads once for another.
    cluster.make_lead(first, GROUP);
    let other = 1 + first % 3;
    cluster.cut_off(other);
    write(&mut cluster, 10);
    cluster.heal();
    must_be_equal(&mut cluster, 1);
}

#[test]
fn a_leader_that_dies_meanwhile_is_followed_by_another_that_reads() {
    let mut cluster = Cluster::reading_logs(3, 1, 64 << 20, PLENTY);
    let follower = follower(&mut cluster);
    cluster.cut_off(follower);
    write(&mut cluster, 30);
    cluster.heal();
    cluster.until("some are sent", |cluster| sent(cluster) > 0);
    let leader = cluster.leader(GROUP).expect("it serves");
    cluster.kill(leader);
    cluster.until("all that run have the same", |cluster| {
        cluster.leader(GROUP).is_some() && cluster.are_equal(GROUP)
    });
    let (mut read, mut installed) = (0, 0);
    for number in (1..=3).filter(|number| *number != leader) {
        let counters = cluster.counters(number);
        read += counters.entries_sent_from_log_total;
        installed += counters.checkpoints_installed_total;
    }
    assert!(
        read > 0 && installed == 0,
        "{read} read, {installed} installed"
    );
}

#[test]
fn what_the_log_does_not_hold_any_more_comes_in_a_checkpoint() {
    let mut cluster = Cluster::reading_logs(3, 1, 256 << 10, PLENTY);
    let follower = follower(&mut cluster);
    cluster.cut_off(follower);
    // Rounds are cut, and the segments before them go.
    write(&mut cluster, 40);
    cluster.heal();
    must_be_equal(&mut cluster, 1);
    let counters = cluster.counters(follower);
    assert_eq!(counters.checkpoints_installed_total, 1);
}

#[test]
fn a_log_that_is_much_longer_than_the_state_is_not_read() {
    let mut cluster = Cluster::reading_logs(3, 1, 64 << 20, 1 << 20);
    let follower = follower(&mut cluster);
    cluster.cut_off(follower);
    write(&mut cluster, 20);
    let op = Op::Purge {
        queue: cluster.queue("mail").uid,
        partition: Partition(0),
        states: PurgeStates {
            pending: true,
            delayed: false,
            dead: false,
        },
    };
    cluster.command("mail", None, op);
    cluster.heal();
    must_be_equal(&mut cluster, 1);
    assert_eq!((sent(&mut cluster), installed(&mut cluster)), (0, 1));
}

#[test]
fn a_log_that_rots_is_noticed_and_a_checkpoint_comes_instead() {
    let mut cluster = Cluster::reading_logs(3, 1, 64 << 20, PLENTY);
    let follower = follower(&mut cluster);
    cluster.cut_off(follower);
    write(&mut cluster, 20);
    let leader = cluster.leader(GROUP).expect("it has just answered");
    let disk = &mut cluster.node(leader).disk;
    let segments: Vec<u64> = disk.segments().map(|(number, _)| number).collect();
    for number in segments {
        disk.rot(number, 100_000);
    }
    cluster.heal();
    must_be_equal(&mut cluster, 1);
    let leader = cluster.counters(leader);
    assert!(leader.log_pieces_bad_total > 0);
    assert_eq!(installed(&mut cluster), 1);
}
