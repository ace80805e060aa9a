//! Stored pages that are damaged come again from another member, whoever leads, and at a start: nothing else
//! comes, nobody's job is lost, and the group goes on.
#![cfg(feature = "engine")]

mod replica_kit;

use replica_kit::{Cluster, queue_in, voter};
use rrq::base::ids::GroupId;
use rrq::base::prng::Prng;
use rrq::shard::input::Input;
use rrq::wire::message::{MemberChange, RequestBody};
use std::time::Duration;

const GROUP: GroupId = GroupId(0);
/// 6 MB of pages and bodies.
const JOBS: u32 = 20_000;

/// Nodes whose jobs are on their disks alone, but for a few.
fn with_jobs(nodes: u32) -> Cluster {
    with_jobs_looked_at(nodes, None)
}

/// Likewise; and they look within that time whether the disk has still what was stored.
fn with_jobs_looked_at(nodes: u32, scrub_period: Option<Duration>) -> Cluster {
    let mut cluster = Cluster::with_checkpoints(nodes, 1, 1 << 20);
    for number in 1..=nodes {
        cluster.kill(number);
        cluster.node(number).jobs_held_bytes_max = 1 << 20;
        cluster.node(number).scrub_period = scrub_period;
    }
    for number in 1..=nodes {
        cluster.start(number);
    }
    for _ in 0..JOBS / 500 {
        cluster.fill("mail", 500, 256);
    }
    cluster.pass(2_000);
    cluster
}

fn is_mended(cluster: &mut Cluster, number: u32) -> bool {
    let counters = cluster.counters(number);
    assert_eq!(counters.groups_halted, 0, "others have what is damaged");
    counters.groups_mended_total > 0 && counters.groups_mending == 0
}

/// Works off the rest, on this node's state as much as on the others'. What is damaged there still it meets
/// now; then another leads, and jobs that were leased come back a second later.
fn work_off(cluster: &mut Cluster, number: u32, left: u32) {
    cluster.make_lead(number, GROUP);
    finish_all(cluster, number, left);
}

/// Likewise, whoever leads.
fn finish_all(cluster: &mut Cluster, number: u32, left: u32) {
    let mut finished = 0;
    cluster.until("all is worked off", |cluster| {
        finished += cluster.finish_up_to("mail", 1000);
        finished == left as usize
    });
    cluster.until_equal(GROUP);
    assert_eq!(cluster.engine(number).live_jobs(), 0);
}

#[test]
fn a_follower_gets_pages_that_rotted_from_its_leader() {
    for seed in 0..8 {
        let mut cluster = with_jobs(3);
        let leader = cluster.led_by(GROUP);
        let follower = 1 + leader % 3;
        let mut prng = Prng::new(seed);
        assert!(cluster.node(follower).disk.rot_files(40, &mut prng) > 0);
        let before = cluster.bytes_sent();
        let mut left = JOBS;
        while !is_mended(&mut cluster, follower) && left > 1000 {
            cluster.finish("mail", 1000);
            cluster.pass(100);
            left -= 1000;
        }
        cluster.until("it is mended", |cluster| is_mended(cluster, follower));
        let sent = cluster.bytes_sent() - before;
        let times = cluster.counters(follower).groups_mended_total;
        println!("seed {seed}: mended {times} times by {sent} bytes, {left} jobs left");
        assert!(sent < 2_000_000 * times, "{sent} bytes of 6,000,000");
        cluster.until_equal(GROUP);
        work_off(&mut cluster, follower, left);
    }
}

#[test]
fn a_leader_hands_over_before_it_mends() {
    for seed in 0..4 {
        let mut cluster = with_jobs(3);
        let old = cluster.led_by(GROUP);
        let mut prng = Prng::new(seed);
        assert!(cluster.node(old).disk.rot_files(20, &mut prng) > 0);
        let mut left = JOBS;
        while !is_mended(&mut cluster, old) && left > 1000 {
            cluster.finish_up_to("mail", 1000);
            cluster.pass(100);
            left -= 1000;
        }
        cluster.until("it is mended", |cluster| is_mended(cluster, old));
        println!("seed {seed}: {left} jobs left");
        for _ in 0..100 {
            cluster.finish_up_to("mail", 1000);
            cluster.pass(100);
        }
        cluster.until_equal(GROUP);
        assert_eq!(cluster.engine(old).live_jobs(), 0);
    }
}

#[test]
fn a_member_that_can_read_no_base_gets_its_state_from_the_others() {
    for seed in 0..4 {
        let mut cluster = with_jobs(3);
        let leader = cluster.led_by(GROUP);
        let follower = 1 + leader % 3;
        cluster.kill(follower);
        let mut prng = Prng::new(seed);
        let rotted = cluster.node(follower).disk.rot_files(40_000, &mut prng);
        assert_eq!(rotted, 40_000);
        cluster.start(follower);
        cluster.until("it is mended", |cluster| is_mended(cluster, follower));
        cluster.until_equal(GROUP);
        cluster.pass(2_000);
        let recovering = cluster.counters(follower).raft_groups_recovering;
        assert_eq!(recovering, 0, "it is sound again");
        // What it had is of no use any more, and goes.
        cluster.kill(follower);
        cluster.start(follower);
        cluster.pass(1_000);
        assert_eq!(cluster.counters(follower).groups_mended_total, 0);
        work_off(&mut cluster, follower, JOBS);
    }
}

#[test]
fn a_group_at_rest_is_mended_too() {
    let mut cluster = with_jobs(3);
    let leader = cluster.led_by(GROUP);
    let follower = 1 + leader % 3;
    cluster.kill(follower);
    // Its log reaches as far as the others', who are asked for nothing meanwhile.
    let mut prng = Prng::new(1);
    cluster.node(follower).disk.rot_files(40_000, &mut prng);
    cluster.pass(3_000);
    cluster.start(follower);
    cluster.until("it is mended", |cluster| is_mended(cluster, follower));
    cluster.until_equal(GROUP);
}

#[test]
fn who_is_asked_in_vain_is_followed_by_the_next() {
    let mut cluster = with_jobs(3);
    let leader = cluster.led_by(GROUP);
    let follower = 1 + leader % 3;
    let other = 6 - leader - follower;
    cluster.kill(follower);
    let mut prng = Prng::new(1);
    cluster.node(follower).disk.rot_files(40_000, &mut prng);
    // The leader cannot read what it would have to send.
    cluster.node(leader).disk.reads_fail = true;
    cluster.start(follower);
    let took = cluster.until("it is mended", |cluster| is_mended(cluster, follower));
    println!("after {took} ms");
    let sent = cluster.counters(other).checkpoint_part_bytes_sent_total;
    assert!(sent > 1_000_000, "{sent} bytes of the other");
}

#[test]
fn who_mends_hands_over_what_it_comes_to_lead() {
    const GROUPS: u16 = 8;
    let mut cluster = Cluster::with_checkpoints(3, u32::from(GROUPS), 1 << 20);
    for _ in 0..8 {
        for group in (0..GROUPS).map(GroupId) {
            cluster.fill(&queue_in(group, u32::from(GROUPS)), 500, 256);
        }
    }
    let dead = cluster.led_by(GROUP);
    let (mending, intact) = (1 + dead % 3, 1 + (dead + 1) % 3);
    cluster.kill(mending);
    cluster.node(mending).disk.reads_fail = true;
    cluster.start(mending);
    cluster.until("nothing can be read", |cluster| {
        cluster.counters(mending).groups_mending == u64::from(GROUPS)
    });
    // It gets nothing meanwhile.
    cluster.node(intact).disk.reads_fail = true;
    cluster.kill(dead);
    let took = cluster.until("the intact one leads all", |cluster| {
        let mut groups = (0..GROUPS).map(GroupId);
        groups.all(|group| cluster.leader(group) == Some(intact))
    });
    println!("after {took} ms");
    assert!(took < 2_000, "{took} ms");
    assert!(cluster.counters(mending).groups_mending > 0);
    for number in [mending, intact] {
        cluster.node(number).disk.reads_fail = false;
    }
    // One after the other, whichever of them nobody could answer before.
    let took = cluster.until("all are mended", |cluster| is_mended(cluster, mending));
    println!("after {took} ms");
    assert!(took < 8_000, "{took} ms");
}

const PERIOD: Duration = Duration::from_secs(2);

#[test]
fn what_nobody_asks_for_is_found_and_mended() {
    for seed in 0..8 {
        let mut cluster = with_jobs_looked_at(3, Some(PERIOD));
        let leader = cluster.led_by(GROUP);
        // Leaders hand over before they mend.
        let number = 1 + (leader + seed as u32) % 3;
        let before = cluster.counters(number);
        assert_eq!(
            (before.scrub_damaged_total, before.groups_mended_total),
            (0, 0)
        );
        let sent = cluster.bytes_sent();
        let mut prng = Prng::new(seed);
        assert!(cluster.node(number).disk.rot_files(40, &mut prng) > 0);
        let took = cluster.until("it is mended", |cluster| is_mended(cluster, number));
        let after = cluster.counters(number);
        assert_eq!(
            after.pages_read_total, before.pages_read_total,
            "nobody asked"
        );
        assert!(after.scrub_damaged_total > 0, "{after:?}");
        let sent = cluster.bytes_sent() - sent;
        let told = std::mem::take(&mut cluster.node(number).told);
        println!("seed {seed}: {took} ms, {sent} bytes, {told:?}");
        assert!(told[0].contains("is damaged: "), "{told:?}");
        // What is beside it and below it, too: nothing is found any more.
        let pass = |cluster: &mut Cluster| {
            let passes = cluster.counters(number).scrub_passes_total + 2;
            cluster.until("two passes are over", |cluster| {
                cluster.counters(number).scrub_passes_total >= passes
            });
        };
        pass(&mut cluster);
        cluster.until("it is mended", |cluster| is_mended(cluster, number));
        let found = cluster.counters(number).scrub_damaged_total;
        pass(&mut cluster);
        assert_eq!(cluster.counters(number).scrub_damaged_total, found);
        // As a follower, too, it needs every page of it for this.
        finish_all(&mut cluster, number, JOBS);
    }
}

#[test]
fn where_nobody_else_votes_it_is_said_and_the_group_serves() {
    let mut cluster = with_jobs_looked_at(1, Some(PERIOD));
    cluster.led_by(GROUP);
    let mut prng = Prng::new(5);
    assert!(cluster.node(1).disk.rot_files(40, &mut prng) > 0);
    let passes = cluster.counters(1).scrub_passes_total;
    cluster.until("it is found", |cluster| {
        cluster.counters(1).scrub_passes_total == passes + 2
    });
    let told = std::mem::take(&mut cluster.node(1).told);
    let lost = told.iter().filter(|text| text.contains("nobody else has"));
    let count = lost.count();
    assert!((1..=3).contains(&count), "once a pass: {told:#?}");
    assert!(
        told.iter()
            .any(|text| text.contains("what is left of the jobs ")),
        "{told:#?}"
    );
    let counted = cluster.counters(1);
    assert!(counted.scrub_damaged_total > 0, "{counted:?}");
    assert_eq!((counted.groups_halted, counted.groups_mending), (0, 0));
    cluster.enqueue("mail", b"one more");
}

#[test]
fn nothing_is_found_where_nothing_was_done() {
    let mut cluster = with_jobs_looked_at(3, Some(Duration::from_secs(1)));
    let mut left = JOBS;
    while left > 2000 {
        // Files of checkpoints come and go, while they are looked at.
        cluster.finish("mail", 1000);
        cluster.pass(200);
        left -= 1000;
    }
    for number in 1..=3 {
        let counters = cluster.counters(number);
        assert!(counters.checkpoint_rounds_total > 2, "{counters:?}");
        assert!(counters.scrub_passes_total > 2, "{counters:?}");
        assert!(counters.scrub_bytes_total > 6_000_000, "{counters:?}");
        assert_eq!(
            (counters.scrub_damaged_total, counters.groups_mended_total),
            (0, 0)
        );
        assert!(counters.scrub_oldest_seconds <= 2, "{counters:?}");
    }
}

#[test]
fn a_base_that_is_read_again_late_is_not_taken_for_what_comes() {
    let mut cluster = with_jobs(3);
    let leader = cluster.led_by(GROUP);
    let follower = 1 + leader % 3;
    cluster.kill(follower);
    cluster.cut_off(follower);
    cluster.node(follower).disk.reads_fail = true;
    cluster.start(follower);
    cluster.until("it is lost", |cluster| {
        cluster.counters(follower).groups_mending == 1
    });
    // Nobody answers, so that it reads its own base again, which it can by then, and takes long.
    let node = cluster.node(follower);
    (node.disk.reads_fail, node.loads_late) = (false, Some(GROUP));
    cluster.until("it reads again", |cluster| {
        cluster.node(follower).loads_waiting() > 0
    });
    // What the others have is ahead of that base.
    cluster.finish("mail", 1000);
    cluster.heal();
    cluster.pass(8_000);
    while cluster.node(follower).loads_waiting() > 0 {
        cluster.node(follower).load_the_oldest();
        cluster.pass(1);
    }
    cluster.node(follower).loads_late = None;
    cluster.until("it is mended", |cluster| is_mended(cluster, follower));
    assert_eq!(cluster.engine(follower).install_failure(), None);
    cluster.until_equal(GROUP);
    work_off(&mut cluster, follower, JOBS - 1000);
}

#[test]
fn a_leader_that_cannot_read_what_a_follower_lacks_is_mended() {
    let mut cluster = with_jobs(3);
    cluster.start_with_little(1 << 20);
    let leader = cluster.led_by(GROUP);
    let follower = 1 + leader % 3;
    cluster.cut_off(follower);
    for _ in 0..10 {
        cluster.fill("mail", 500, 256);
    }
    cluster.pass(2_000);
    // No entry needs what is damaged: the leader finds it when it is to send it.
    let mut prng = Prng::new(1);
    cluster.node(leader).disk.rot_files(40_000, &mut prng);
    cluster.heal();
    cluster.until("the follower has what it lacked", |cluster| {
        cluster.counters(follower).checkpoints_installed_total == 1
    });
    cluster.until("the leader is mended", |cluster| is_mended(cluster, leader));
    cluster.until_equal(GROUP);
}

#[test]
fn what_was_written_badly_is_not_blamed_on_what_was_here() {
    let mut cluster = with_jobs(3);
    cluster.start_with_little(u64::MAX);
    let follower = 1 + cluster.led_by(GROUP) % 3;
    cluster.cut_off(follower);
    for _ in 0..10 {
        cluster.fill("mail", 500, 256);
    }
    cluster.pass(2_000);
    cluster.node(follower).spoils_runs = true;
    cluster.heal();
    cluster.pass(12_000);
    // It is tried once more with nothing that was here, then every 5 s, and the state that is here goes on.
    let counted = cluster.counters(follower);
    let failed = counted.checkpoint_installs_failed_total;
    assert!((3..=4).contains(&failed), "{failed} times in 12 s");
    assert_eq!((counted.groups_mending, counted.groups_halted), (0, 0));
    cluster.node(follower).spoils_runs = false;
    cluster.until("it is installed", |cluster| {
        cluster.counters(follower).checkpoints_installed_total == 1
    });
    cluster.until_equal(GROUP);
}

#[test]
fn a_full_disk_does_not_keep_a_member_from_being_mended() {
    let mut cluster = with_jobs(3);
    let leader = cluster.led_by(GROUP);
    let follower = 1 + leader % 3;
    cluster.kill(follower);
    let mut prng = Prng::new(1);
    cluster.node(follower).disk.rot_files(40_000, &mut prng);
    cluster.start(follower);
    // What it has of files is dropped once the state is here, and not before.
    let (full, exhausted) = (true, false);
    cluster.tell(follower, Input::DiskSpace { full, exhausted });
    cluster.until("it is mended", |cluster| is_mended(cluster, follower));
    cluster.until_equal(GROUP);
}

#[test]
fn where_nobody_else_votes_the_group_stops() {
    stops_alone(with_jobs(1));
}

#[test]
fn where_only_learners_are_beside_the_group_stops_too() {
    let mut cluster = with_jobs(1);
    // It does not start, so that it does not catch up to vote.
    cluster.wait_to_be_added(voter(2));
    let change = MemberChange::Add(vec![voter(2)]);
    cluster.ask(&RequestBody::ChangeMembers(change));
    cluster.until("it is a member", |cluster| {
        cluster.members(1, GROUP).len() == 2
    });
    stops_alone(cluster);
}

/// The one who votes can read no base of its own.
fn stops_alone(mut cluster: Cluster) {
    cluster.led_by(GROUP);
    // Its log does not lead from the beginning any more.
    while cluster.counters(1).checkpoint_rounds_total < 3 {
        cluster.fill("mail", 500, 256);
    }
    cluster.pass(500);
    let mut prng = Prng::new(3);
    cluster.kill(1);
    cluster.node(1).disk.rot_files(40_000, &mut prng);
    cluster.start(1);
    cluster.pass(500);
    let counters = cluster.counters(1);
    assert_eq!((counters.groups_halted, counters.groups_mending), (1, 0));
}
