//! Of a checkpoint a follower gets what it lacks: how much that is, what stays where it is, and that what was
//! brought once is not brought again.
#![cfg(feature = "engine")]

mod replica_kit;

use bytes::Bytes;
use replica_kit::Cluster;
use rrq::base::ids::{GroupId, Partition};
use rrq::base::limits::CHECKPOINT_PART_BYTES;
use rrq::wire::message::{ReplyBody, RequestBody};
use rrq::wire::{JobState, Op, PurgeStates};

const GROUP: GroupId = GroupId(0);
const PAGE_BYTES: u64 = 4096;
const PAYLOAD_BYTES: u64 = 256;

fn installed(cluster: &mut Cluster, number: u32) -> u64 {
    cluster.counters(number).checkpoints_installed_total
}

/// Three nodes that hold little of their logs for who is behind, and so many jobs, all in checkpoints.
fn with_jobs(thousands: usize, jobs_held_bytes_max: u64) -> Cluster {
    let mut cluster = Cluster::with_checkpoints(3, 1, 1 << 20);
    cluster.start_with_little(jobs_held_bytes_max);
    for _ in 0..2 * thousands {
        cluster.fill("mail", 500, PAYLOAD_BYTES as usize);
    }
    cluster.pass(1_000);
    cluster
}

/// A node that does not lead is cut off.
fn cut_off_one(cluster: &mut Cluster) -> u32 {
    let follower = 1 + cluster.led_by(GROUP) % 3;
    cluster.cut_off(follower);
    follower
}

/// Everybody has everything; the follower by one checkpoint.
fn all_equal(cluster: &mut Cluster, follower: u32) {
    cluster.until_equal(GROUP);
    let failure = cluster.engine(follower).install_failure();
    assert_eq!(failure, None);
    assert_eq!(installed(cluster, follower), 1);
}

#[test]
fn who_missed_one_change_in_a_hundred_gets_hardly_more_than_that() {
    for held in [u64::MAX, 1 << 20] {
        let mut cluster = with_jobs(50, held);
        let follower = cut_off_one(&mut cluster);
        // As many come at the tail as go at the head.
        cluster.finish("mail", 500);
        cluster.fill("mail", 500, PAYLOAD_BYTES as usize);
        cluster.pass(100);
        let before = cluster.bytes_sent();
        cluster.heal();
        cluster.until("it is installed", |cluster| {
            installed(cluster, follower) == 1
        });
        let sent = cluster.bytes_sent() - before;
        // One page at the head, which has lost some; those at the tail, of 64 jobs each.
        let pages = 1 + 500_u64.div_ceil(64);
        let lacked = pages * PAGE_BYTES + 500 * PAYLOAD_BYTES;
        let ratio = sent as f64 / lacked as f64;
        let taken = cluster.counters(follower).checkpoint_pages_taken_total;
        println!("{sent} bytes sent, {lacked} lacked: {ratio:.3}; {taken} pages taken");
        assert!(ratio <= 1.25, "{sent} bytes for {lacked}");
        // Those of the group and of the partition beside.
        assert!(taken <= pages + 3, "{taken} pages");
        all_equal(&mut cluster, follower);
        cluster.make_lead(follower, GROUP);
        cluster.finish("mail", 1000);
        let jobs = cluster.engine(follower).live_jobs();
        assert_eq!(jobs, 49_000);
    }
}

#[test]
fn what_stays_is_not_written_again_and_lives_on() {
    let mut cluster = with_jobs(20, u64::MAX);
    let follower = cut_off_one(&mut cluster);
    cluster.finish("mail", 300);
    cluster.fill("mail", 300, PAYLOAD_BYTES as usize);
    cluster.heal();
    cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    let taken = cluster.counters(follower).checkpoint_pages_taken_total;
    assert!(taken <= 10, "{taken} of 313 pages");
    all_equal(&mut cluster, follower);
    // Files that only other bases named are gone; what is left is a whole state at the next start.
    for _ in 0..4 {
        cluster.fill("mail", 500, PAYLOAD_BYTES as usize);
        cluster.finish("mail", 500);
        cluster.pass(200);
    }
    cluster.kill(follower);
    cluster.start(follower);
    cluster.pass(500);
    cluster.until_equal(GROUP);
    let counters = cluster.counters(follower);
    assert_eq!(
        (counters.checkpoints_damaged_total, counters.groups_halted),
        (0, 0)
    );
    cluster.make_lead(follower, GROUP);
    for _ in 0..20 {
        cluster.finish("mail", 1000);
    }
    assert_eq!(cluster.engine(follower).live_jobs(), 0);
}

#[test]
fn what_is_gone_with_its_queue_does_not_stay() {
    let mut cluster = with_jobs(5, u64::MAX);
    let follower = cut_off_one(&mut cluster);
    let purge = Op::Purge {
        queue: cluster.queue("mail").uid,
        partition: Partition(0),
        states: PurgeStates {
            pending: true,
            delayed: true,
            dead: true,
        },
    };
    for _ in 0..10 {
        cluster.command("mail", None, purge.clone());
    }
    cluster.fill("other", 50, 2_000);
    let job = cluster.enqueue("mail", b"the only one");
    cluster.heal();
    cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    all_equal(&mut cluster, follower);
    cluster.make_lead(follower, GROUP);
    assert_eq!(cluster.state(job), JobState::Pending);
}

#[test]
fn what_one_leader_has_brought_another_does_not_bring_again() {
    // How much it is if nothing happens.
    let whole = {
        let mut cluster = Cluster::new(3, 1);
        let follower = behind(&mut cluster);
        cluster.heal();
        cluster.until("it is installed", |cluster| {
            installed(cluster, follower) == 1
        });
        cluster.bytes_sent()
    };
    assert!(whole > 3_000_000, "{whole} bytes");
    let mut cluster = Cluster::new(3, 1);
    let follower = behind(&mut cluster);
    let leader = cluster.leader(GROUP).expect("it has just answered");
    cluster.heal();
    cluster.until("most of it is here", |cluster| {
        cluster.bytes_sent() > whole / 2
    });
    let first = cluster.counters(leader).checkpoint_part_bytes_sent_total;
    cluster.kill(leader);
    cluster.until("another has brought the rest", |cluster| {
        installed(cluster, follower) == 1
    });
    let other = 6 - leader - follower;
    let second = cluster.counters(other).checkpoint_part_bytes_sent_total;
    // What was on its way when it died, and the page that was half here.
    let lost = 6 * CHECKPOINT_PART_BYTES as u64;
    assert!(
        first + second <= whole + lost,
        "{first} and {second} bytes of {whole}"
    );
    cluster.start(leader);
    all_equal(&mut cluster, follower);
}

#[test]
fn own_pages_that_take_long_to_read_do_not_begin_it_anew() {
    let mut cluster = with_jobs(20, 1 << 20);
    let follower = cut_off_one(&mut cluster);
    // All leaves of the follower go, each of which it has to read to know whose bodies go with it.
    for _ in 0..20 {
        cluster.finish("mail", 1000);
    }
    cluster.fill("mail", 500, PAYLOAD_BYTES as usize);
    cluster.node(follower).page_turns = 1_200;
    let before = cluster.counters(follower).checkpoint_pages_taken_total;
    cluster.heal();
    let took = cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    assert!(
        took > 6_000,
        "{took} ms are less than a transfer may stand still"
    );
    all_equal(&mut cluster, follower);
    let taken = cluster.counters(follower).checkpoint_pages_taken_total - before;
    assert!(taken > 0, "something came before the reads");
}

/// A follower that lacks 3 MB.
fn behind(cluster: &mut Cluster) -> u32 {
    cluster.enqueue("mail", b"before");
    cluster.pass(500);
    let follower = cut_off_one(cluster);
    for _ in 0..15 {
        cluster.fill("mail", 100, 2_000);
    }
    follower
}

#[test]
fn payloads_of_all_sizes_come_whole() {
    let mut cluster = Cluster::new(3, 1);
    cluster.enqueue("mail", b"before");
    cluster.pass(500);
    let follower = cut_off_one(&mut cluster);
    let mut sizes = vec![0, 1, 100, 5_000, CHECKPOINT_PART_BYTES];
    sizes.extend([200_000; 8]);
    let jobs = sizes.into_iter().map(|size| {
        let payload = Bytes::from(vec![size as u8; size]);
        (cluster.enqueue("mail", &payload), payload)
    });
    let jobs: Vec<_> = jobs.collect();
    cluster.heal();
    cluster.until("it is installed", |cluster| {
        installed(cluster, follower) == 1
    });
    all_equal(&mut cluster, follower);
    cluster.make_lead(follower, GROUP);
    for (job, payload) in jobs {
        match cluster.ask(&RequestBody::GetJob { job }) {
            ReplyBody::Job(job) => assert_eq!(job.body.payload, payload),
            other => panic!("no job: {other:?}"),
        }
    }
}
