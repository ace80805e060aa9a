//! Members that change: nodes are added, replaced and removed while jobs come, and die on the way.

mod replica_kit;

use replica_kit::{Cluster, enqueue_body, queue_in, voter};
use rrq::base::code::Code;
use rrq::base::ids::{DiskId, GroupId, JobId, NodeId};
use rrq::base::members::{Member, MemberRole};
use rrq::raft::message::Voter;
use rrq::shard::input::Input;
use rrq::wire::message::{MemberChange, ReplyBody, RequestBody};
use rrq::wire::{Enqueued, Outcome};

const GROUPS: u32 = 8;

/// The node with the disk that it gets when it has lost the first one.
fn renewed(node: u32) -> Voter {
    Voter {
        disk: DiskId([0xf0 | node as u8; 16]),
        ..voter(node)
    }
}

/// Node 1 alone, or nodes 1 to `size`, with a few jobs in each of two groups.
fn begun(size: u32) -> (Cluster, Vec<JobId>) {
    let mut cluster = Cluster::new(size, GROUPS);
    let mut jobs = Vec::new();
    for group in [0, 5] {
        let queue = queue_in(GroupId(group), GROUPS);
        jobs.extend((0..5).map(|_| cluster.enqueue(&queue, b"before")));
    }
    (cluster, jobs)
}

fn change(cluster: &mut Cluster, change: MemberChange) -> ReplyBody {
    cluster.ask(&RequestBody::ChangeMembers(change))
}

fn is_done(body: &ReplyBody) -> bool {
    matches!(body, ReplyBody::Outcome(Outcome::Done))
}

/// These nodes wait, are added, and join.
fn add(cluster: &mut Cluster, nodes: &[Voter]) {
    for node in nodes {
        cluster.wait_to_be_added(*node);
    }
    let added = change(cluster, MemberChange::Add(nodes.to_vec()));
    assert!(is_done(&added), "{added:?}");
    for node in nodes {
        cluster.join(*node);
    }
}

fn all_there(cluster: &mut Cluster, jobs: &[JobId]) {
    for job in jobs {
        assert!(cluster.has(*job), "job {job} is lost");
    }
}

/// All nodes have everything.
fn all_equal(cluster: &mut Cluster) {
    cluster.until("all are equal", |cluster| {
        (0..GROUPS).all(|group| cluster.are_equal(GroupId(group as u16)))
    });
}

#[test]
fn one_node_grows_to_three_and_any_of_them_may_die() {
    let (mut cluster, mut jobs) = begun(1);
    add(&mut cluster, &[voter(2), voter(3)]);
    let queue = queue_in(GroupId(5), GROUPS);
    let took = cluster.until("all vote in every group", |cluster| {
        jobs.push(cluster.enqueue(&queue, b"meanwhile"));
        cluster.all_groups_have(&[1, 2, 3].map(voter))
    });
    assert!(took < 5_000, "it took {took} turns");
    all_equal(&mut cluster);
    for dead in 1..=3 {
        cluster.kill(dead);
        all_there(&mut cluster, &jobs);
        jobs.push(cluster.enqueue(&queue, b"with two"));
        cluster.start(dead);
        all_equal(&mut cluster);
    }
}

#[test]
fn a_lost_disk_is_replaced_and_the_new_one_votes_for_the_old() {
    let (mut cluster, mut jobs) = begun(3);
    cluster.kill(3);
    add(&mut cluster, &[renewed(3)]);
    cluster.until("the new disk votes", |cluster| {
        cluster.all_groups_have(&[voter(1), voter(2), renewed(3)])
    });
    all_equal(&mut cluster);
    // It counts as any other: two of three are enough, and it is one of them.
    cluster.kill(1);
    let queue = queue_in(GroupId(0), GROUPS);
    jobs.push(cluster.enqueue(&queue, b"after"));
    all_there(&mut cluster, &jobs);
}

#[test]
fn an_empty_disk_votes_for_nobody_and_gets_nothing_before_it_is_added() {
    let (mut cluster, jobs) = begun(3);
    cluster.kill(3);
    cluster.join(renewed(3));
    cluster.pass(500);
    cluster.kill(1);
    cluster.pass(2_000);
    // One member of three is there: nobody leads, whatever the new disk is asked.
    assert_eq!(cluster.leader(GroupId(0)), None);
    assert!(cluster.members(3, GroupId(0)).is_empty());
    cluster.start(1);
    all_there(&mut cluster, &jobs);
}

#[test]
fn a_node_that_is_removed_is_asked_for_nothing_any_more() {
    let (mut cluster, mut jobs) = begun(3);
    cluster.until("somebody leads", |cluster| {
        cluster.leader(GroupId(0)).is_some()
    });
    for leader in [GroupId(0), GroupId(5)] {
        cluster.until("somebody leads", |cluster| cluster.leader(leader).is_some());
    }
    // Whoever leads group 0 leads its own removal.
    let gone = cluster.leader(GroupId(0)).expect("it was just seen");
    let removed = change(&mut cluster, MemberChange::Remove(NodeId(gone)));
    assert!(is_done(&removed), "{removed:?}");
    let left: Vec<Voter> = (1..=3).filter(|node| *node != gone).map(voter).collect();
    cluster.until("two are left", |cluster| cluster.all_groups_have(&left));
    cluster.kill(gone);
    let queue = queue_in(GroupId(5), GROUPS);
    jobs.push(cluster.enqueue(&queue, b"with two"));
    all_there(&mut cluster, &jobs);
    // Back with its old data it disturbs nobody.
    cluster.start(gone);
    let before = cluster.leader(GroupId(5));
    cluster.pass(3_000);
    assert_eq!(cluster.leader(GroupId(5)), before);
    // What is so already is done.
    let again = change(&mut cluster, MemberChange::Remove(NodeId(gone)));
    assert!(is_done(&again), "{again:?}");
}

/// A node that is removed stops at once: groups that do not know yet that it is gone must not need it.
#[test]
fn no_node_goes_that_a_group_cannot_do_without() {
    let refused = |body: ReplyBody| match body {
        ReplyBody::Error(error) => assert_eq!(error.code, Code::MembersRefused, "{error:?}"),
        other => panic!("not refused: {other:?}"),
    };
    // Of two each needs the other to agree on being alone.
    let (mut cluster, _) = begun(2);
    refused(change(&mut cluster, MemberChange::Remove(NodeId(2))));
    // Of three that are left two are there, but of four most are three.
    let (mut cluster, mut jobs) = begun(4);
    cluster.removed_die = true;
    cluster.kill(3);
    cluster.until("it leads", |cluster| cluster.leader(GroupId(0)).is_some());
    refused(change(&mut cluster, MemberChange::Remove(NodeId(4))));
    cluster.start(3);
    all_equal(&mut cluster);
    // One after the other, as fast as they are let go.
    for node in [4, 3] {
        cluster.until("it is let go", |cluster| {
            is_done(&change(cluster, MemberChange::Remove(NodeId(node))))
        });
    }
    cluster.until("two are left", |cluster| {
        cluster.all_groups_have(&[1, 2].map(voter))
    });
    let queue = queue_in(GroupId(5), GROUPS);
    jobs.push(cluster.enqueue(&queue, b"with two"));
    all_there(&mut cluster, &jobs);
}

#[test]
fn a_disk_that_was_to_come_and_is_lost_is_replaced() {
    let (mut cluster, jobs) = begun(3);
    cluster.wait_to_be_added(voter(4));
    let added = change(&mut cluster, MemberChange::Add(vec![voter(4)]));
    assert!(is_done(&added), "{added:?}");
    cluster.pass(1_000);
    add(&mut cluster, &[renewed(4)]);
    cluster.until("the other disk votes", |cluster| {
        cluster.all_groups_have(&[voter(1), voter(2), voter(3), renewed(4)])
    });
    all_there(&mut cluster, &jobs);
}

/// Who led before was told that it is silent; who leads now is not told again.
#[test]
fn a_new_member_that_is_dead_keeps_nobody_waiting_after_a_change_of_leaders() {
    let (mut cluster, jobs) = begun(3);
    cluster.wait_to_be_added(voter(4));
    cluster.wait_to_be_added(voter(5));
    let both = MemberChange::Add(vec![voter(4), voter(5)]);
    let added = change(&mut cluster, both);
    assert!(is_done(&added), "{added:?}");
    cluster.pass(1_000);
    cluster.kill(1);
    cluster.pass(1_000);
    cluster.join(voter(4));
    let is_voting = Member::voting(voter(4));
    cluster.until("node 4 votes", |cluster| {
        let mut groups = (0..GROUPS).map(|group| GroupId(group as u16));
        groups.all(|group| cluster.members(2, group).contains(&is_voting))
    });
    all_there(&mut cluster, &jobs);
}

/// It stood alone when the image was taken, and would lead all that others have gone on with since.
#[test]
fn an_older_image_of_a_node_that_stood_alone_stops_when_it_hears_of_others() {
    let (mut cluster, jobs) = begun(1);
    let image = cluster.node(1).disk.clone();
    add(&mut cluster, &[voter(2), voter(3)]);
    cluster.until("all vote in every group", |cluster| {
        cluster.all_groups_have(&[1, 2, 3].map(voter))
    });
    all_equal(&mut cluster);
    let heard = cluster.engine(1).durable_lsn();
    cluster.kill(1);
    cluster.start_on(1, image, heard);
    cluster.pass(100);
    assert_eq!(cluster.engine(1).halted().count(), GROUPS as usize);
    cluster.kill(1);
    all_there(&mut cluster, &jobs);
}

#[test]
fn three_become_five_and_two_of_them_may_die() {
    let (mut cluster, mut jobs) = begun(3);
    add(&mut cluster, &[voter(4), voter(5)]);
    cluster.until("five vote", |cluster| {
        cluster.all_groups_have(&[1, 2, 3, 4, 5].map(voter))
    });
    all_equal(&mut cluster);
    cluster.kill(1);
    cluster.kill(2);
    let queue = queue_in(GroupId(0), GROUPS);
    jobs.push(cluster.enqueue(&queue, b"with three of five"));
    all_there(&mut cluster, &jobs);
}

#[test]
fn leaders_that_die_on_the_way_leave_nothing_half_done() {
    for seed in 0..12 {
        let (mut cluster, mut jobs) = begun(3);
        cluster.reseed(seed);
        cluster.kill(3);
        add(&mut cluster, &[renewed(3)]);
        let queue = queue_in(GroupId(5), GROUPS);
        for round in 0..6 {
            cluster.pass(seed * 3 + round * 7);
            let victim = 1 + (seed + round) as u32 % 3;
            cluster.kill(victim);
            cluster.pass(20 + seed);
            cluster.start(victim);
            jobs.push(cluster.enqueue(&queue, b"meanwhile"));
        }
        cluster.until("the new disk votes", |cluster| {
            cluster.all_groups_have(&[voter(1), voter(2), renewed(3)])
        });
        all_equal(&mut cluster);
        all_there(&mut cluster, &jobs);
    }
}

#[test]
fn members_survive_a_checkpoint_and_a_restart_of_all() {
    let mut cluster = Cluster::with_checkpoints(1, GROUPS, 64 << 10);
    let queue = queue_in(GroupId(0), GROUPS);
    let mut jobs = vec![cluster.enqueue(&queue, b"first")];
    add(&mut cluster, &[voter(2), voter(3)]);
    cluster.until("all vote", |cluster| {
        cluster.all_groups_have(&[1, 2, 3].map(voter))
    });
    for _ in 0..40 {
        cluster.fill(&queue, 10, 1_000);
    }
    jobs.push(cluster.enqueue(&queue, b"last"));
    all_equal(&mut cluster);
    (1..=3).for_each(|node| cluster.kill(node));
    (1..=3).for_each(|node| cluster.start(node));
    all_there(&mut cluster, &jobs);
    assert!(cluster.all_groups_have(&[1, 2, 3].map(voter)));
}

#[test]
fn a_learner_is_kept_through_a_restart_of_all() {
    let (mut cluster, jobs) = begun(3);
    // It does not start: it cannot catch up.
    cluster.wait_to_be_added(voter(4));
    let added = change(&mut cluster, MemberChange::Add(vec![voter(4)]));
    assert!(is_done(&added), "{added:?}");
    cluster.until("all know it", |cluster| {
        (0..GROUPS).all(|group| cluster.members(1, GroupId(group as u16)).len() == 4)
    });
    (1..=3).for_each(|node| cluster.kill(node));
    (1..=3).for_each(|node| cluster.start(node));
    all_there(&mut cluster, &jobs);
    let learner = Member {
        voter: voter(4),
        role: MemberRole::Learner,
    };
    assert_eq!(cluster.members(1, GroupId(5)).last(), Some(&learner));
    cluster.join(voter(4));
    cluster.until("it votes", |cluster| {
        cluster.all_groups_have(&[1, 2, 3, 4].map(voter))
    });
    all_equal(&mut cluster);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let (mut cluster, _) = begun(3);
    let code = |body: ReplyBody| match body {
        ReplyBody::Error(error) => (error.code, error.message),
        other => panic!("not refused: {other:?}"),
    };
    let refused = change(&mut cluster, MemberChange::Add(vec![voter(9)]));
    let (of, why) = code(refused);
    assert_eq!(of, Code::MembersRefused);
    assert!(why.contains("node 9 does not wait"), "{why}");
    // Two are left, of which one is not there.
    cluster.kill(3);
    cluster.until("it leads", |cluster| cluster.leader(GroupId(0)).is_some());
    let refused = change(&mut cluster, MemberChange::Remove(NodeId(2)));
    let (of, why) = code(refused);
    assert_eq!(of, Code::MembersRefused);
    assert!(why.contains("most of the nodes"), "{why}");
    // The one that is gone may go.
    let removed = change(&mut cluster, MemberChange::Remove(NodeId(3)));
    assert!(is_done(&removed), "{removed:?}");
    let mut alone = Cluster::new(1, GROUPS);
    let (of, _) = code(change(&mut alone, MemberChange::Remove(NodeId(1))));
    assert_eq!(of, Code::MembersRefused);
}

#[test]
fn a_batch_that_was_proposed_by_a_leader_that_leaves_is_answered() {
    let (mut cluster, _) = begun(3);
    let group = GroupId(5);
    let name = queue_in(group, GROUPS);
    let queue = cluster.queue(&name).uid;
    cluster.until("somebody leads", |cluster| cluster.leader(group).is_some());
    let gone = cluster.leader(group).expect("it was just seen");
    let removed = change(&mut cluster, MemberChange::Remove(NodeId(gone)));
    assert!(is_done(&removed), "{removed:?}");
    // Until it leaves it serves; afterwards it says who leads. Nobody is left without an answer.
    for _ in 0..50 {
        let body = enqueue_body(group, queue, b"on the way".as_slice().into());
        let reply = cluster.try_ask(gone, body, 500).expect("an answer");
        match reply.body {
            ReplyBody::Outcome(Outcome::Enqueued(items)) => {
                assert!(matches!(items[0], Enqueued::New(_)));
            }
            ReplyBody::Error(error) => assert_eq!(error.code, Code::NotLeader),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_node_that_drains_leads_nothing_and_gets_nothing() {
    let (mut cluster, jobs) = begun(3);
    let drain = |cluster: &mut Cluster, on| {
        let done = cluster.try_ask(2, RequestBody::Drain { on }, 10);
        assert!(done.is_some_and(|reply| is_done(&reply.body)));
        for other in [1, 3] {
            let peer = voter(2);
            cluster.tell(other, Input::PeerDrains { peer, on });
        }
    };
    let leads = |cluster: &mut Cluster| {
        let groups = (0..GROUPS).map(|group| GroupId(group as u16));
        groups
            .filter(|group| cluster.leader(*group) == Some(2))
            .count()
    };
    drain(&mut cluster, true);
    cluster.pass(1_000);
    assert_eq!(leads(&mut cluster), 0);
    // Others restart: what it comes to lead meanwhile it gives away again.
    for other in [1, 3] {
        cluster.kill(other);
        cluster.pass(300);
        cluster.start(other);
        // The next beat says so.
        let (peer, on) = (voter(2), true);
        cluster.tell(other, Input::PeerDrains { peer, on });
        cluster.pass(6_000);
        assert_eq!(leads(&mut cluster), 0, "after the restart of {other}");
    }
    all_there(&mut cluster, &jobs);
    drain(&mut cluster, false);
    cluster.pass(8_000);
    assert!(leads(&mut cluster) > 0, "it gets its share again");
}

/// A log leads from older members to those that were known when the process died: a node that believed
/// them took a disk that had just come for one that had been removed.
#[test]
fn what_a_node_knew_of_the_members_is_not_forgotten_by_a_restart() {
    let (mut cluster, jobs) = begun(3);
    cluster.kill(3);
    add(&mut cluster, &[renewed(3)]);
    let voters = [voter(1), voter(2), renewed(3)];
    cluster.until("the new disk votes", |cluster| {
        cluster.all_groups_have(&voters)
    });
    let before = cluster.node(1).members.clone();
    assert_eq!(before.members, voters.map(Member::voting));
    cluster.kill(1);
    cluster.start(1);
    for _ in 0..500 {
        cluster.step();
        let now = &cluster.node(1).members;
        assert!(now.as_of >= before.as_of, "{now:?}");
    }
    all_there(&mut cluster, &jobs);
}

/// Nobody hears a learner that is lost, and it never asks: its leader must not rest before it has been
/// reached (simulator, seed 41).
#[test]
fn a_learner_that_comes_back_to_groups_at_rest_gets_what_it_lacks() {
    let (mut cluster, _) = begun(3);
    cluster.wait_to_be_added(voter(4));
    let added = change(&mut cluster, MemberChange::Add(vec![voter(4)]));
    assert!(is_done(&added), "{added:?}");
    cluster.pass(3_000);
    // It says hello, and for a while nothing reaches it.
    cluster.join(voter(4));
    cluster.cut_off(4);
    cluster.pass(1_000);
    cluster.heal();
    cluster.until("it votes", |cluster| {
        cluster.all_groups_have(&[1, 2, 3, 4].map(voter))
    });
}

/// A commit mark is written along with the next entries, if there are some: a member that forgot that a
/// change was committed would need voters who have left (simulator, seed 82).
#[test]
fn a_change_that_acts_is_not_taken_back_by_a_restart() {
    let (mut cluster, _) = begun(3);
    cluster.kill(3);
    add(&mut cluster, &[renewed(3)]);
    let voters = [voter(1), voter(2), renewed(3)];
    let list = voters.map(Member::voting);
    let group = GroupId(5);
    cluster.until("both know it", |cluster| {
        (1..=2).all(|node| cluster.members(node, group) == list)
    });
    (1..=3).for_each(|node| cluster.kill(node));
    // They come up alone, one after the other: nobody tells them what is committed.
    for node in 1..=2 {
        cluster.start(node);
        cluster.pass(50);
        assert_eq!(cluster.members(node, group), list, "node {node}");
        cluster.kill(node);
    }
}
