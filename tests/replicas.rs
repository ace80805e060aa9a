//! Groups of several voters in the shard engine: what was acknowledged survives the death of any
//! minority, and groups at rest cost nothing and wake when they must.
#![cfg(feature = "engine")]

mod replica_kit;

use replica_kit::{Cluster, queue_in, voter};
use rrq::base::code::Code;
use rrq::base::ids::{DiskId, GroupId, Incarnation, LogIndex, Partition, Term};
use rrq::queue::MACHINE_VERSION;
use rrq::raft::message::{Body, Message};
use rrq::shard::input::{Input, Loss};
use rrq::wire::message::{ReplyBody, RequestBody};
use rrq::wire::{Command, JobState, NewJob, Op, Outcome, SessionCall, Window};
use std::time::Instant;

/// Groups that nodes 1 to 3 have handed to others that led fewer.
fn handed_over(cluster: &mut Cluster) -> u64 {
    let mut of = |number| {
        let counters = cluster.engine(number).counters();
        counters.raft_groups_handed_over_total
    };
    (1..=3).map(&mut of).sum()
}

fn all_lead(cluster: &mut Cluster, groups: u32) {
    for group in 0..groups {
        let group = GroupId(group as u16);
        cluster.until("every group has a leader", |cluster| {
            cluster.leader(group).is_some()
        });
    }
}

#[test]
fn three_nodes_elect_serve_and_replicate() {
    let mut cluster = Cluster::new(3, 4);
    all_lead(&mut cluster, 4);
    let jobs: Vec<_> = (0..20)
        .map(|nth| cluster.enqueue("mail", format!("job {nth}").as_bytes()))
        .collect();
    for job in jobs {
        assert!(cluster.has(job));
    }
    // Everybody has applied them.
    cluster.pass(100);
    for number in 1..=3 {
        assert_eq!(cluster.engine(number).live_jobs(), 20, "node {number}");
    }
}

#[test]
fn what_was_acknowledged_survives_the_death_of_each_leader() {
    let mut cluster = Cluster::new(3, 1);
    let mut jobs = Vec::new();
    for round in 0..6 {
        for nth in 0..5 {
            jobs.push(cluster.enqueue("mail", format!("{round} {nth}").as_bytes()));
        }
        let leader = cluster.leader(GroupId(0)).expect("it has just answered");
        cluster.kill(leader);
        cluster.until("another leads", |cluster| {
            cluster.leader(GroupId(0)).is_some()
        });
        for job in &jobs {
            assert!(cluster.has(*job), "round {round}: {job} is lost");
        }
        cluster.start(leader);
        cluster.pass(300);
    }
    cluster.pass(500);
    for number in 1..=3 {
        assert_eq!(cluster.engine(number).live_jobs(), 30, "node {number}");
    }
}

#[test]
fn what_is_acknowledged_is_on_the_disks_of_a_majority_at_that_moment() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(3, 1);
        cluster.reseed(seed);
        cluster.enqueue("mail", b"somebody leads");
        let leader = cluster.leader(GroupId(0)).expect("it has just answered");
        // The disk of the leader is quick, those of the others are not.
        let mut turns = [12, 30].into_iter();
        for number in (1..=3).filter(|number| *number != leader) {
            cluster.node(number).write_turns = turns.next().expect("two others");
        }
        let job = cluster.enqueue("mail", b"safe");
        for number in 1..=3 {
            cluster.kill(number);
        }
        // The leader is gone for good.
        for number in (1..=3).filter(|number| *number != leader) {
            cluster.start(number);
        }
        assert!(
            cluster.has(job),
            "seed {seed}: a majority died at the moment of the ack"
        );
    }
}

#[test]
fn leaders_stay_where_they_are_among_three_of_five() {
    let mut cluster = Cluster::new(5, 16);
    all_lead(&mut cluster, 16);
    cluster.kill(4);
    cluster.kill(5);
    all_lead(&mut cluster, 16);
    cluster.pass(10_000);
    // Six, five and five: nobody leads too many, although two lead none.
    let before = handed_over(&mut cluster);
    assert!(is_level(leads(&mut cluster, 16)));
    cluster.pass(10_000);
    assert_eq!(handed_over(&mut cluster), before);
}

/// How many of the groups each node leads.
fn leads(cluster: &mut Cluster, groups: u16) -> Vec<usize> {
    let leaders: Vec<_> = (0..groups)
        .map(|group| cluster.leader(GroupId(group)))
        .collect();
    let count = |number| {
        leaders
            .iter()
            .filter(|leader| **leader == Some(number))
            .count()
    };
    (1..=3).map(count).collect()
}

fn is_level(leads: Vec<usize>) -> bool {
    let (least, most) = (leads.iter().min(), leads.iter().max());
    *most.expect("nodes") <= least.expect("nodes") + 1
}

#[test]
fn zones_lead_as_many_whichever_node_was_away() {
    let mut cluster = Cluster::new(3, 64);
    for (number, zone) in [(1, "east"), (2, "east"), (3, "west")] {
        cluster.kill(number);
        cluster.node(number).zone = zone.to_owned();
    }
    (1..=3).for_each(|number| cluster.start(number));
    for round in 0..12 {
        all_lead(&mut cluster, 64);
        let took = cluster.until("zones are level, and nodes in them", |cluster| {
            let leads = leads(cluster, 64);
            let wanted = [16, 16, 32].into_iter().zip(leads);
            wanted
                .into_iter()
                .all(|(wanted, count): (usize, usize)| count.abs_diff(wanted) <= 1)
        });
        assert!(took < 20_000, "round {round}: {took} ms");
        let number = 1 + round % 3;
        cluster.kill(number);
        all_lead(&mut cluster, 64);
        cluster.pass(u64::from(round) * 300);
        cluster.start(number);
    }
}

#[test]
fn leaders_spread_over_the_nodes_again_after_one_was_away() {
    let mut cluster = Cluster::new(3, 16);
    all_lead(&mut cluster, 16);
    cluster.until("every node leads its share", |cluster| {
        is_level(leads(cluster, 16))
    });
    cluster.kill(2);
    all_lead(&mut cluster, 16);
    assert_eq!(leads(&mut cluster, 16)[1], 0);
    // Between those that are there it is level as well, and nobody waits for the dead one.
    cluster.until("two nodes share", |cluster| leads(cluster, 16) == [8, 0, 8]);
    cluster.pass(5_000);
    assert_eq!(leads(&mut cluster, 16), [8, 0, 8]);
    cluster.start(2);
    let job = cluster.enqueue("mail", b"meanwhile");
    let took = cluster.until("it has its share", |cluster| is_level(leads(cluster, 16)));
    assert!(took < 10_000, "{took} ms");
    assert!(cluster.has(job));
    // Then everything stays where it is.
    let before = handed_over(&mut cluster);
    cluster.pass(10_000);
    assert_eq!(handed_over(&mut cluster), before);
    assert!(before >= 5, "{before}");
}

/// The disk of a node is full, or has room again; the next beat says what follows from it.
fn fill(cluster: &mut Cluster, number: u32, full: bool) {
    let exhausted = false;
    cluster.tell(number, Input::DiskSpace { full, exhausted });
    for other in (1..=3).filter(|other| *other != number) {
        let (peer, on) = (voter(number), full);
        cluster.tell(other, Input::PeerDrains { peer, on });
    }
}

#[test]
fn a_node_whose_disk_is_full_leads_nothing_while_another_has_room() {
    let mut cluster = Cluster::new(3, 16);
    all_lead(&mut cluster, 16);
    cluster.until("every node leads its share", |cluster| {
        is_level(leads(cluster, 16))
    });
    fill(&mut cluster, 2, true);
    let took = cluster.until("others lead", |cluster| leads(cluster, 16)[1] == 0);
    assert!(took < 1_000, "{took} ms");
    // What it comes to lead all the same it gives away again.
    cluster.kill(1);
    cluster.until("it gives away all", |cluster| {
        leads(cluster, 16) == [0, 0, 16]
    });
    cluster.start(1);
    let (peer, on) = (voter(2), true);
    cluster.tell(1, Input::PeerDrains { peer, on });
    cluster.pass(6_000);
    assert_eq!(leads(&mut cluster, 16), [8, 0, 8]);
    // With all full nobody has an heir: everything stays where it is.
    fill(&mut cluster, 1, true);
    fill(&mut cluster, 3, true);
    cluster.pass(1_000);
    let (before, stays) = (handed_over(&mut cluster), leads(&mut cluster, 16));
    cluster.pass(6_000);
    assert_eq!(
        (handed_over(&mut cluster), leads(&mut cluster, 16)),
        (before, stays)
    );
    // The one that has room leads all, and then shares again.
    fill(&mut cluster, 2, false);
    cluster.until("it leads all", |cluster| leads(cluster, 16) == [0, 16, 0]);
    fill(&mut cluster, 1, false);
    fill(&mut cluster, 3, false);
    cluster.until("every node leads its share", |cluster| {
        is_level(leads(cluster, 16))
    });
}

/// By how many milliseconds the wall time of a job that is enqueued now is too far.
fn wall_off(cluster: &mut Cluster) -> i64 {
    let job = cluster.enqueue("mail", b"now");
    match cluster.ask(&RequestBody::GetJob { job }) {
        ReplyBody::Job(job) => job.enqueued_at.0 as i64 - cluster.clock().wall.0 as i64,
        other => panic!("no job: {other:?}"),
    }
}

#[test]
fn the_wall_time_is_the_median_of_the_voters_clocks() {
    let mut cluster = Cluster::new(3, 1);
    all_lead(&mut cluster, 1);
    wall_off(&mut cluster);
    let leader = cluster.leader(GroupId(0)).expect("it has just answered");
    let others: Vec<u32> = (1..=3).filter(|number| *number != leader).collect();
    let steps = |cluster: &mut Cluster| {
        let mut of = |number| cluster.engine(number).counters().wall_clock_steps_total;
        (1..=3).map(&mut of).sum::<u64>()
    };
    // That the leader's clock is wrong moves nothing.
    for ahead_ms in [30_000, 600_000] {
        cluster.node(leader).wall_ahead_ms = ahead_ms;
        cluster.pass(6_000);
        assert!(wall_off(&mut cluster).abs() < 200);
        let counters = cluster.engine(leader).counters();
        assert!(counters.wall_clock_off_ms.abs_diff(ahead_ms) < 50);
        assert_eq!(counters.wall_clock_disputed, 0);
    }
    assert_eq!(steps(&mut cluster), 0);
    // Two of three are of one mind: a step.
    cluster.node(others[0]).wall_ahead_ms = 600_100;
    cluster.pass(6_000);
    assert!(wall_off(&mut cluster).abs_diff(600_000) < 300);
    assert_eq!(steps(&mut cluster), 1);
    // All differ: none is followed that far, and the next leader follows none either.
    cluster.node(others[0]).wall_ahead_ms = 1_200_000;
    cluster.node(others[1]).wall_ahead_ms = 1_800_000;
    cluster.pass(6_000);
    assert!(wall_off(&mut cluster).abs_diff(600_000) < 300);
    assert_eq!(cluster.engine(leader).counters().wall_clock_disputed, 1);
    cluster.kill(leader);
    cluster.until("another leads", |cluster| {
        cluster.leader(GroupId(0)).is_some()
    });
    cluster.pass(6_000);
    // What passed while nobody led is set right, but no more.
    assert!(wall_off(&mut cluster).abs_diff(600_000) < 2_000);
    let followed = cluster.engine(others[0]).counters().wall_clock_steps_total;
    let followed = followed + cluster.engine(others[1]).counters().wall_clock_steps_total;
    assert_eq!(followed, 0);
}

#[test]
fn a_node_that_stops_hands_its_groups_over_first() {
    let mut cluster = Cluster::new(3, 4);
    all_lead(&mut cluster, 4);
    let job = cluster.enqueue("mail", b"stays");
    let leader = cluster.leader(cluster.home("mail")).expect("it leads");
    cluster.pass(500);
    cluster.ask_to_stop(leader);
    let took = cluster.until("it has stopped", |cluster| cluster.node(leader).has_stopped);
    assert!(took < 20, "{took} ms, without an election timeout");
    cluster.node(leader).engine = None;
    // Nobody had to find out.
    let took = cluster.until("others lead", |cluster| {
        (0..4).all(|group| {
            cluster
                .leader(GroupId(group))
                .is_some_and(|by| by != leader)
        })
    });
    assert!(took < 40, "{took} ms");
    assert!(cluster.has(job));
}

#[test]
fn the_last_node_that_runs_stops_all_the_same() {
    let mut cluster = Cluster::new(3, 4);
    all_lead(&mut cluster, 4);
    let leader = cluster.leader(GroupId(0)).expect("it leads");
    for number in (1..=3).filter(|number| *number != leader) {
        cluster.kill(number);
    }
    cluster.ask_to_stop(leader);
    let took = cluster.until("it has stopped", |cluster| cluster.node(leader).has_stopped);
    assert!(took < 1000, "{took} ms");
}

#[test]
fn who_does_not_lead_says_where_the_leader_listens() {
    let mut cluster = Cluster::new(3, 1);
    all_lead(&mut cluster, 1);
    let leader = cluster.leader(GroupId(0)).expect("it leads");
    cluster.pass(100);
    let body = RequestBody::ListQueues { group: GroupId(0) };
    for number in (1..=3).filter(|number| *number != leader) {
        let reply = cluster
            .try_ask(number, body.clone(), 20)
            .expect("an answer");
        let ReplyBody::Error(error) = reply.body else {
            panic!("node {number} does not lead: {reply:?}");
        };
        assert_eq!(error.code, Code::NotLeader);
        assert_eq!(error.leader, Some(format!("127.0.0.{leader}:7411")));
        assert_eq!(error.message, format!("group 0 is led by node {leader}"));
    }
}

#[test]
fn a_version_is_raised_once_every_member_can_apply_it() {
    let mut cluster = Cluster::new(3, 1);
    let version_of = |cluster: &mut Cluster, number: u32| {
        let reply = cluster.try_ask(number, RequestBody::Status, 20);
        match reply.expect("an answer").body {
            ReplyBody::Status(status) => status.groups[0].machine_version,
            other => panic!("no status: {other:?}"),
        }
    };
    for number in 1..=3 {
        cluster.kill(number);
    }
    cluster.node(3).machine_version_max = 1;
    (1..=3).for_each(|number| cluster.start(number));
    all_lead(&mut cluster, 1);
    let job = cluster.enqueue("mail", b"before");
    cluster.pass(500);
    for number in 1..=3 {
        assert_eq!(version_of(&mut cluster, number), 1, "node {number}");
    }
    // The last one is upgraded.
    cluster.kill(3);
    cluster.node(3).machine_version_max = MACHINE_VERSION;
    cluster.start(3);
    all_lead(&mut cluster, 1);
    cluster.pass(500);
    for number in 1..=3 {
        assert_eq!(
            version_of(&mut cluster, number),
            MACHINE_VERSION,
            "node {number}"
        );
    }
    assert!(cluster.has(job));
}

#[test]
fn a_node_on_an_older_image_of_its_disk_elects_nobody_who_lacks_what_it_had() {
    let mut cluster = Cluster::new(3, 1);
    cluster.enqueue("mail", b"before");
    let leader = cluster.leader(GroupId(0)).expect("it has just answered");
    let mut others = (1..=3).filter(|number| *number != leader);
    let (restored, behind) = (others.next().expect("two"), others.next().expect("two"));
    cluster.pass(100);
    let image = cluster.node(restored).disk.clone();
    cluster.node(behind).write_turns = 1_000_000;
    let job = cluster.enqueue("mail", b"on the leader and on the one that is restored");
    cluster.pass(100);
    let heard = cluster.engine(restored).durable_lsn();
    (1..=3).for_each(|number| cluster.kill(number));
    cluster.node(behind).write_turns = 1;
    cluster.start_on(restored, image, heard);
    cluster.start(behind);
    cluster.pass(3_000);
    assert_eq!(
        cluster.leader(GroupId(0)),
        None,
        "neither of them has the job"
    );
    let lost = cluster.engine(restored).counters().log_ends_lost_total;
    assert_eq!(lost, 1);
    cluster.start(leader);
    assert!(cluster.has(job));
    cluster.until("the restored one is sound again", |cluster| {
        cluster.engine(restored).counters().raft_groups_recovering == 0
    });
}

#[test]
fn what_another_has_heard_is_no_news_to_a_whole_log() {
    let mut cluster = Cluster::new(3, 1);
    cluster.enqueue("mail", b"job");
    cluster.pass(100);
    let heard = cluster.engine(2).durable_lsn();
    cluster.kill(2);
    let disk = cluster.node(2).disk.clone();
    cluster.start_on(2, disk, heard);
    cluster.pass(10);
    let counters = cluster.engine(2).counters();
    assert_eq!(
        (
            counters.log_ends_lost_total,
            counters.raft_groups_recovering
        ),
        (0, 0)
    );
}

#[test]
fn what_is_held_for_those_that_are_behind_has_a_bound_over_all_groups() {
    let mut cluster = Cluster::new(3, 8);
    all_lead(&mut cluster, 8);
    for nth in 0..1200 {
        let queue = format!("queue {}", nth % 16).replace(' ', "-");
        cluster.enqueue(&queue, &[7; 4000]);
    }
    let held = |cluster: &mut Cluster, number: u32| {
        cluster.engine(number).counters().raft_entries_held_bytes
    };
    for number in 1..=3 {
        // The kit's nodes have 1 MiB; what is not applied yet comes on top.
        let now = held(&mut cluster, number);
        assert!(
            (512 << 10..1200 << 10).contains(&now),
            "node {number}: {now}"
        );
    }
    cluster.pass(1_000);
    for number in 1..=3 {
        let now = held(&mut cluster, number);
        assert!(
            (256 << 10..1 << 20).contains(&now),
            "node {number} at rest: {now}"
        );
    }
}

#[test]
fn a_group_at_rest_keeps_what_it_holds_until_others_need_the_room() {
    let mut cluster = Cluster::new(3, 2);
    let queues = [queue_in(GroupId(0), 2), queue_in(GroupId(1), 2)];
    // Leaders are spread by then: nothing but the test wakes a group.
    cluster.pass(10_000);
    let held = |cluster: &mut Cluster| -> Vec<u64> {
        let mut held = |number| cluster.counters(number).raft_entries_held_bytes >> 10;
        (1..=3).map(&mut held).collect()
    };
    let rest = |cluster: &mut Cluster| {
        cluster.until("all groups rest", |cluster| {
            let mut counters = (1..=3).map(|number| cluster.counters(number));
            counters.all(|counters| counters.raft_groups_awake == 0)
        });
        cluster.pass(5);
    };
    // Of the 1 MiB of the kit's nodes the part of a group at rest is half.
    for _ in 0..900 {
        cluster.fill(&queues[0], 2, 400);
    }
    rest(&mut cluster);
    let first = held(&mut cluster);
    assert!(
        first.iter().all(|kib| (700..1024).contains(kib)),
        "{first:?}"
    );
    for _ in 0..1_200 {
        cluster.fill(&queues[1], 2, 400);
        let now = held(&mut cluster);
        // The other is at rest all the time, and gives up what is more than its part.
        assert!(now.iter().all(|kib| *kib < 1536), "{now:?}");
    }
    rest(&mut cluster);
    let both = held(&mut cluster);
    assert!(
        both.iter().all(|kib| (768..=1024).contains(kib)),
        "{both:?}"
    );
}

#[test]
fn all_nodes_killed_at_once_come_back_with_everything() {
    let mut cluster = Cluster::with_checkpoints(3, 2, 64 << 10);
    let jobs: Vec<_> = (0..200)
        .map(|nth| cluster.enqueue("mail", &vec![nth as u8; 1000]))
        .collect();
    for number in 1..=3 {
        cluster.kill(number);
    }
    for number in 1..=3 {
        cluster.start(number);
    }
    for job in jobs {
        assert!(cluster.has(job));
    }
    let rounds = |cluster: &mut Cluster| {
        (1..=3)
            .map(|number| cluster.engine(number).counters().checkpoint_rounds_total)
            .max()
    };
    cluster.pass(2_000);
    assert!(
        rounds(&mut cluster) > Some(0),
        "checkpoints are cut on the way"
    );
}

#[test]
fn without_a_majority_nothing_is_acknowledged() {
    let mut cluster = Cluster::new(3, 1);
    let job = cluster.enqueue("mail", b"safe");
    let leader = cluster.leader(GroupId(0)).expect("it has just answered");
    cluster.cut_off(leader);
    // It believes to lead for an election timeout, and then refuses.
    let others: Vec<u32> = (1..=3).filter(|number| *number != leader).collect();
    cluster.until("another leads", |cluster| {
        cluster
            .leader(GroupId(0))
            .is_some_and(|number| others.contains(&number))
    });
    let later = cluster.enqueue("mail", b"by the others");
    cluster.heal();
    cluster.pass(500);
    assert!(cluster.has(job) && cluster.has(later));
    for number in 1..=3 {
        assert_eq!(cluster.engine(number).live_jobs(), 2, "node {number}");
    }
}

#[test]
fn groups_at_rest_say_nothing_and_wake_when_their_leader_dies() {
    const GROUPS: u32 = 64;
    let mut cluster = Cluster::new(3, GROUPS);
    all_lead(&mut cluster, GROUPS);
    // Leaders are spread over the nodes.
    cluster.pass(6_000);
    cluster.until("all rest", |cluster| awake(cluster) == 0);
    let sent = cluster.sent;
    cluster.pass(5_000);
    assert_eq!(cluster.sent, sent, "a group at rest says nothing");
    let leader = cluster.leader(GroupId(0)).expect("a leader at rest leads");
    cluster.kill(leader);
    for group in 0..GROUPS {
        let group = GroupId(group as u16);
        cluster.until("another leads", |cluster| {
            cluster.leader(group).is_some_and(|other| other != leader)
        });
    }
}

/// Groups of all nodes that are not at rest.
fn awake(cluster: &mut Cluster) -> u64 {
    let mut all = 0;
    for number in 1..=3 {
        all += cluster.engine(number).counters().raft_groups_awake;
    }
    all
}

#[test]
fn more_than_ten_thousand_groups_at_rest_cost_a_beat_a_pair_of_nodes() {
    const GROUPS: u32 = 16_384;
    let mut cluster = Cluster::new(3, GROUPS);
    cluster.pass(1);
    cluster.until("all rest", |cluster| {
        cluster.pass(50);
        awake(cluster) == 0
    });
    let (sent, beats) = (cluster.sent, cluster.beats);
    let begun = Instant::now();
    cluster.pass(1_000);
    println!(
        "{GROUPS} groups at rest: {:?} for a second of three nodes",
        begun.elapsed()
    );
    assert_eq!(cluster.sent, sent, "a group at rest says nothing");
    let beats = cluster.beats - beats;
    assert!(
        (180..=204).contains(&beats),
        "{beats} in six directions, one in 30 ms"
    );
    // They lead on as if nothing were.
    for group in [0, 1, 5_000, 16_383] {
        assert!(cluster.leader(GroupId(group)).is_some());
    }
}

#[test]
fn a_group_at_rest_wakes_for_a_proposal() {
    let mut cluster = Cluster::new(3, 1);
    cluster.enqueue("mail", b"one");
    cluster.pass(1_000);
    assert_eq!(cluster.engine(1).counters().raft_groups_awake, 0);
    cluster.enqueue("mail", b"two");
    cluster.pass(1_000);
    for number in 1..=3 {
        assert_eq!(cluster.engine(number).live_jobs(), 2, "node {number}");
        assert_eq!(cluster.engine(number).counters().raft_groups_awake, 0);
    }
}

#[test]
fn the_heir_of_a_dead_leader_serves_within_a_few_milliseconds() {
    let mut cluster = Cluster::new(3, 1);
    cluster.enqueue("mail", b"one");
    cluster.pass(500);
    let leader = cluster.leader(GroupId(0)).expect("it has just answered");
    cluster.kill(leader);
    let took = cluster.until("another leads", |cluster| {
        cluster.leader(GroupId(0)).is_some()
    });
    assert!(
        took < 10,
        "it took {took} steps, an election timeout is 240 to 480"
    );
}

/// A follower of group 0 among three nodes, which have come to rest, dies.
fn kill_a_follower(cluster: &mut Cluster) -> u32 {
    cluster.pass(500);
    let leader = cluster.leader(GroupId(0)).expect("it has just answered");
    let mut others = (1..=3).filter(|number| *number != leader);
    let follower = others.next().expect("two others");
    cluster.kill(follower);
    follower
}

#[test]
fn a_member_that_lost_its_log_is_put_right_by_the_others() {
    let mut cluster = Cluster::new(3, 1);
    let jobs: Vec<_> = (0..10).map(|nth| cluster.enqueue("mail", &[nth])).collect();
    let hurt = kill_a_follower(&mut cluster);
    cluster.node(hurt).damage_log(4);
    cluster.start(hurt);
    cluster.pass(1_000);
    assert!(jobs.iter().all(|job| cluster.has(*job)));
    assert_eq!(cluster.engine(hurt).live_jobs(), 10);
    let recovering = cluster.engine(hurt).counters().raft_groups_recovering;
    assert_eq!(recovering, 0, "it is sound again");
    // It knows that after a crash too, although the hole is still in its log.
    cluster.kill(hurt);
    cluster.start(hurt);
    cluster.step();
    let recovering = cluster.engine(hurt).counters().raft_groups_recovering;
    assert_eq!(recovering, 0, "it stays sound");
}

#[test]
fn a_member_that_lost_its_base_is_put_right_by_the_others() {
    // Without a base its entries follow nothing. It once ended the process.
    let mut cluster = Cluster::new(3, 1);
    for nth in 0..10 {
        cluster.enqueue("mail", &[nth]);
    }
    let hurt = kill_a_follower(&mut cluster);
    cluster.node(hurt).damage_formation();
    cluster.cut_off(hurt);
    // What it has lost it must not forget to have lost.
    for _ in 0..2 {
        cluster.start(hurt);
        cluster.pass(200);
        let recovering = cluster.engine(hurt).counters().raft_groups_recovering;
        assert_eq!(recovering, 1, "it knows that it knows nothing");
        cluster.kill(hurt);
    }
    cluster.heal();
    cluster.start(hurt);
    cluster.pass(2_000);
    assert_eq!(cluster.engine(hurt).live_jobs(), 10);
    let recovering = cluster.engine(hurt).counters().raft_groups_recovering;
    assert_eq!(recovering, 0, "it is sound again");
}

#[test]
fn that_all_was_lost_is_known_from_the_head_of_the_next_segment_on() {
    // All that the next start writes behind that head is lost, too: a disk that says it has written what it
    // has not. The group once seemed to be new then, and voted a second time in a term.
    let mut cluster = Cluster::new(3, 1);
    cluster.enqueue("mail", b"one");
    let hurt = kill_a_follower(&mut cluster);
    cluster.node(hurt).damage_all();
    cluster.cut_off(hurt);
    cluster.start(hurt);
    while cluster.engine(hurt).counters().wal_batches_total == 0 {
        cluster.step();
    }
    cluster.node(hurt).lose_all_but_the_oldest_write();
    cluster.pass(500);
    cluster.kill(hurt);
    cluster.start(hurt);
    cluster.step();
    let recovering = cluster.engine(hurt).counters().raft_groups_recovering;
    assert_eq!(recovering, 1, "it knows that it knows nothing");
}

#[test]
fn a_leader_at_rest_that_freezes_is_replaced() {
    let mut cluster = Cluster::new(3, 1);
    let job = cluster.enqueue("mail", b"one");
    cluster.pass(1_000);
    assert_eq!(awake(&mut cluster), 0);
    let leader = cluster.leader(GroupId(0)).expect("it has just answered");
    cluster.pass(1_000);
    // Nobody is told anything: only the silence shows it.
    cluster.cut_off(leader);
    cluster.until("another leads", |cluster| {
        let leads = cluster.leader(GroupId(0));
        leads.is_some_and(|number| number != leader)
    });
    assert!(cluster.has(job));
}

#[test]
fn a_lease_ends_when_it_would_have_although_the_leader_died() {
    let mut cluster = Cluster::new(3, 1);
    // The group has a past, which its next leader must not count again.
    let job = cluster.enqueue("mail", b"one");
    cluster.pass(60_000);
    cluster.lease("mail", 10_000, None);
    cluster.pass(4_000);
    let leader = cluster.leader(GroupId(0)).expect("it has just answered");
    cluster.kill(leader);
    assert_eq!(cluster.state(job), JobState::InFlight);
    cluster.pass(3_000);
    assert_eq!(cluster.state(job), JobState::InFlight, "it has time yet");
    // A leader that wrote nothing for 5 s may forget as much.
    cluster.pass(9_000);
    assert_eq!(cluster.state(job), JobState::Pending);
}

#[test]
fn a_silent_worker_loses_its_lease_at_the_next_leader_too() {
    let mut cluster = Cluster::new(3, 1);
    let job = cluster.enqueue("mail", b"one");
    cluster.lease("mail", 600_000, Some(2_000));
    let leader = cluster.leader(GroupId(0)).expect("it has just answered");
    cluster.pass(1_000);
    cluster.kill(leader);
    cluster.pass(1_500);
    let state = cluster.state(job);
    assert_eq!(state, JobState::InFlight, "its timeout has begun anew");
    cluster.pass(1_500);
    assert_eq!(cluster.state(job), JobState::Pending);
}

#[test]
fn logs_with_different_holes_are_put_right_by_each_other() {
    // Every node finds another of its batches rotten, so that nobody may vote. What each lacks the
    // others have.
    let mut cluster = Cluster::new(3, 1);
    let jobs: Vec<_> = (0..40).map(|nth| cluster.enqueue("mail", &[nth])).collect();
    cluster.pass(500);
    for number in 1..=3 {
        cluster.kill(number);
    }
    for (number, eighths) in [(1, 3), (2, 5), (3, 6)] {
        cluster.node(number).damage_log(eighths);
    }
    for number in 1..=3 {
        cluster.start(number);
    }
    cluster.step();
    for number in 1..=3 {
        let recovering = cluster.engine(number).counters().raft_groups_recovering;
        assert_eq!(recovering, 1, "node {number}");
    }
    assert!(jobs.iter().all(|job| cluster.has(*job)));
    cluster.pass(1_000);
    for number in 1..=3 {
        assert_eq!(cluster.engine(number).live_jobs(), 40, "node {number}");
        let recovering = cluster.engine(number).counters().raft_groups_recovering;
        assert_eq!(recovering, 0, "node {number} is sound again");
    }
}

#[test]
fn connections_that_break_again_and_again_cause_no_election() {
    let mut cluster = Cluster::new(3, 8);
    all_lead(&mut cluster, 8);
    // Leaders are spread over the nodes.
    cluster.pass(6_000);
    let changes = |cluster: &mut Cluster| -> Vec<u64> {
        let of = |number| cluster.engine(number).counters().raft_leader_changes_total;
        (1..=3).map(of).collect()
    };
    let before = changes(&mut cluster);
    for round in 0..60 {
        cluster.lost(1 + round % 3, Loss::Broken);
        cluster.pass(40);
    }
    cluster.enqueue("mail", b"as if nothing were");
    assert_eq!(changes(&mut cluster), before);
}

#[test]
fn what_a_bad_peer_says_is_refused_and_counted() {
    let mut cluster = Cluster::new(3, 4);
    let job = cluster.enqueue("mail", b"one");
    cluster.pass(500);
    let good = Message {
        from: voter(2),
        to: voter(1),
        group: GroupId(0),
        incarnation: Incarnation(1),
        term: Term(900),
        life: 1 << 32,
        recovering: false,
        body: Body::TimeoutNow,
    };
    let refused = |cluster: &mut Cluster| cluster.engine(1).counters().peer_messages_refused_total;
    let before = refused(&mut cluster);
    let strange = |change: fn(&mut Message)| {
        let mut message = good.clone();
        change(&mut message);
        message
    };
    let messages = vec![
        strange(|message| message.group = GroupId(9)),
        strange(|message| message.incarnation = Incarnation(2)),
        strange(|message| message.to.disk = DiskId([9; 16])),
        strange(|message| message.from = voter(1)),
        strange(|message| message.term = Term(u64::MAX)),
        strange(|message| {
            message.body = Body::Append {
                prev: (LogIndex(u64::MAX), Term(1)),
                entries: Vec::new().into(),
                commit: LogIndex(u64::MAX),
            };
            message.term = Term(0);
        }),
    ];
    let count = messages.len() as u64;
    cluster.say(1, messages, 2);
    cluster.step();
    assert_eq!(refused(&mut cluster), before + count + 2);
    assert!(cluster.has(job));
}

#[test]
fn a_leader_that_was_cut_off_answers_no_read() {
    let mut cluster = Cluster::new(3, 1);
    let job = cluster.enqueue("mail", b"one");
    cluster.pass(500);
    let leader = cluster.leader(GroupId(0)).expect("it has just answered");
    assert!(
        cluster
            .try_ask(leader, RequestBody::GetJob { job }, 10)
            .is_some()
    );
    cluster.cut_off(leader);
    // It leads for an election timeout yet, as far as it knows, and cannot be sure.
    let answer = cluster.try_ask(leader, RequestBody::GetJob { job }, 100);
    assert!(answer.is_none(), "{answer:?}");
    let answer = cluster.until_answered(leader, 1_000);
    assert!(
        matches!(&answer.body, ReplyBody::Error(error) if error.code == Code::NotLeader),
        "{answer:?}"
    );
}

/// What a command is refused for is one thing, that somebody has sent it another (simulator).
#[test]
fn a_worker_whose_commands_find_no_room_keeps_its_leases() {
    let mut cluster = Cluster::new(1, 1);
    let (group, uid) = (GroupId(0), cluster.queue("mail").uid);
    let job = cluster.enqueue("mail", b"one");
    let worker_timeout_ms = 2_000;
    let opened = cluster.command("mail", None, Op::OpenSession { worker_timeout_ms });
    let Outcome::SessionOpened { session, .. } = opened else {
        panic!("no session: {opened:?}");
    };
    let call = |seq, window| SessionCall {
        id: session,
        seq,
        lowest: seq,
        window,
    };
    let lease = Op::Lease {
        queue: uid,
        partition: Partition(0),
        max: 1,
        lease_ms: 60_000,
        epoch: 1,
    };
    cluster.command("mail", Some(call(1, Window::Polls)), lease);
    cluster.tell(1, Input::Memory { full: true });
    for seq in 1..=12 {
        let op = Op::Enqueue {
            queue: uid,
            partition: Partition(0),
            items: vec![NewJob::default()],
        };
        let session = Some(call(seq, Window::Commands));
        let body = RequestBody::Command {
            group,
            command: Command { session, op },
            wait_ms: 0,
        };
        let reply = cluster.try_ask(1, body, 50).expect("an answer");
        assert!(
            matches!(&reply.body, ReplyBody::Error(error) if error.code == Code::MemoryFull),
            "{reply:?}"
        );
        cluster.pass(500);
        assert_eq!(cluster.state(job), JobState::InFlight);
    }
    // It says nothing any more.
    cluster.pass(3_000);
    assert_eq!(cluster.state(job), JobState::Pending);
}
