//! Several nodes: leaders move, die, freeze and come back, and lists are stale.

use super::world::{Health, World, address};
use super::*;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn a_named_leader_is_followed_at_once_under_the_same_number() {
    let mut world = World::working(3);
    world.elect(2);
    let id = world.client.call(enqueue());
    world.run(ms(0));
    assert!(world.client.result(id).is_ok());
    let (first, again) = (&world.commands_at(1)[0], &world.commands_at(2)[0]);
    assert_eq!(place(&first.what), place(&again.what));
    assert_eq!(world.jobs_made, 2);
}

#[test]
fn a_named_leader_that_no_list_has_is_followed_too() {
    let mut world = World::new(2, &["n1:1"]);
    world.node(1).lists = vec![1];
    world.elect(2);
    let id = world.client.call(enqueue());
    world.run(ms(1));
    assert!(world.client.result(id).is_ok());
    let to = |(_, to): &(Monotonic, String)| to.clone();
    assert_eq!(
        world.connects.iter().map(to).collect::<Vec<_>>(),
        ["n1:1", "n2:1"]
    );
    let listed = &world.client.core.hello().expect("known").nodes;
    assert_eq!(listed.len(), 2, "and is known from then on: {listed:?}");
}

#[test]
fn many_refused_at_once_move_together_and_one_of_them_asks() {
    let mut world = World::working(3);
    world.elect(3);
    let ids: Vec<CallId> = (0..100).map(|_| world.client.call(enqueue())).collect();
    world.run(ms(1));
    for id in ids {
        assert!(world.client.result(id).is_ok());
    }
    assert_eq!(world.commands_at(2).len(), 0);
    assert_eq!(world.commands_at(3).len(), 100);
    assert_eq!(world.jobs_made, 101);
}

#[test]
fn a_new_leader_that_is_busy_for_one_is_asked_by_the_others() {
    let mut world = World::working(3);
    world.elect(2);
    world.busy = 1;
    let ids: Vec<CallId> = (0..10).map(|_| world.client.call(enqueue())).collect();
    world.run(ms(0));
    let done = ids.into_iter().filter(|id| world.client.end(*id).is_some());
    assert_eq!(done.count(), 9);
}

#[test]
fn a_dead_leaders_groups_are_asked_for_elsewhere_at_once_and_found_after_the_election() {
    let mut world = World::working(3);
    let ids: Vec<CallId> = (0..100).map(|_| world.client.call(enqueue())).collect();
    world
        .client
        .effects
        .retain(|effect| !matches!(effect, Effect::Send { .. }));
    world.leader = None;
    world.kill(1);
    world.run(ms(0));
    assert_eq!(world.commands_at(2).len(), 1, "at once, and one for all");
    world.run(ms(40));
    world.elect(3);
    let took = world.run_to_end(ids[0], ms(1000));
    assert!(took <= ms(21), "{took:?} after the election");
    world.run(ms(1));
    for id in ids {
        assert!(world.client.result(id).is_ok());
    }
    assert_eq!(world.jobs_made, 101);
}

#[test]
fn a_leader_that_died_with_the_answer_makes_no_second_job() {
    let mut world = World::working(3);
    let id = world.client.call(enqueue());
    // Applied, but the answer is lost with the node.
    let conn = world.conns_of(1)[0];
    let sent = world.client.only_sent();
    world.answer_nobody(&sent);
    world.client.lose(conn);
    world.kill(1);
    world.elect(2);
    world.run(ms(1));
    assert!(world.client.result(id).is_ok());
    assert_eq!(world.jobs_made, 2);
}

#[test]
fn an_election_is_not_hammered_and_a_long_one_less() {
    let mut world = World::working(3);
    world.leader = None;
    world.all_name(None);
    world.kill(1);
    for _ in 0..200 {
        world.client.call(enqueue());
    }
    world.run(ms(300));
    let short = world.commands_at(2).len() + world.commands_at(3).len();
    assert!((15..=65).contains(&short), "{short} in 300 ms");
    world.run(ms(9_700));
    let long = world.commands_at(2).len() + world.commands_at(3).len();
    assert!(long < 250, "{long} in 10 s");
    let connects = world.connects.len();
    assert!(
        connects <= 3,
        "nobody is dead that must be tried: {connects}"
    );
}

#[test]
fn a_stale_name_of_a_dead_leader_is_not_followed_but_noticed_when_it_is_back() {
    let mut world = World::working(3);
    world.leader = None;
    world.kill(1);
    let id = world.client.call(enqueue());
    world.run(ms(200));
    let tried = world.connects.iter().filter(|(_, to)| *to == address(1));
    let tried = tried.count();
    assert!((1..=15).contains(&tried), "{tried} attempts in 200 ms");
    let (two, three) = (world.commands_at(2).len(), world.commands_at(3).len());
    assert!(
        two.abs_diff(three) <= 1 && two > 5,
        "in turn: {two} and {three}"
    );
    world.node(1).health = Health::Well;
    world.elect(1);
    for _ in 0..2000 {
        if world.conns_of(1).is_empty() {
            world.asked.clear();
            world.run(ms(1));
        }
    }
    let others = world.commands_at(2).len() + world.commands_at(3).len();
    // The one that named it: then it was reached, and asked.
    assert!(others <= 1, "{others}");
    assert!(world.client.result(id).is_ok());
}

#[test]
fn a_node_that_names_a_dead_address_does_not_hold_up_the_others() {
    let mut world = World::working(3);
    world.elect(3);
    world.node(1).names = Some("gone:1".to_owned());
    world.node(2).names = Some("gone:1".to_owned());
    let id = world.client.call(enqueue());
    let took = world.run_to_end(id, ms(1000));
    assert!(took <= ms(100), "{took:?}");
}

#[test]
fn two_nodes_that_name_each_other_are_asked_with_pauses() {
    let mut world = World::working(3);
    world.leader = None;
    world.node(1).names = Some(address(2));
    world.node(2).names = Some(address(1));
    world.client.call(enqueue());
    world.run(ms(1000));
    let asked = world.commands_at(1).len() + world.commands_at(2).len();
    assert!((20..=200).contains(&asked), "{asked} in a second");
}

#[test]
fn a_frozen_leader_is_left_and_its_late_answer_is_dropped() {
    let mut world = World::working(3);
    world.node(1).health = Health::Frozen;
    let id = world.client.call(enqueue());
    world.run(ms(250));
    assert!(world.commands_at(2).is_empty(), "it may be slow only");
    world.elect(2);
    let took = world.run_to_end(id, ms(1000));
    assert!(took <= ms(100), "{took:?} after 250 ms");
    assert!(world.client.result(id).is_ok());
    world.thaw(1);
    world.run(ms(10));
    assert!(world.client.end(id).is_none(), "one outcome");
    assert_eq!(world.jobs_made, 2);
}

#[test]
fn a_slow_leaders_answer_counts_although_another_was_asked() {
    let mut world = World::working(3);
    world.node(1).health = Health::Frozen;
    let id = world.client.call(enqueue());
    world.run(ms(400));
    assert!(!world.commands_at(2).is_empty() && world.client.is_under_way(id));
    world.thaw(1);
    assert!(world.client.result(id).is_ok());
    world.run(ms(100));
    let next = world.client.call(enqueue());
    let took = world.run_to_end(next, ms(1000));
    assert!(took <= ms(50), "it is asked again: {took:?}");
    assert_eq!(world.jobs_made, 3);
}

#[test]
fn a_request_that_comes_back_to_a_slow_leader_is_not_sent_twice() {
    let mut world = World::working(3);
    world.client.call(lease(20_000));
    world.run(ms(1));
    world.node(1).health = Health::Frozen;
    let id = world.client.call(enqueue());
    world.run(ms(400));
    world.asked.clear();
    world.thaw(1);
    world.run(ms(100));
    assert!(world.client.result(id).is_ok());
    let polls = |world: &World| {
        let polls = world.commands_at(1).into_iter();
        polls
            .filter(|noted| matches!(op(&noted.what), Op::Lease { .. }))
            .count()
    };
    assert_eq!(polls(&world), 0, "it waits there still");
    world.wake();
    world.run(ms(1));
    assert_eq!(world.leases_made, 1);
}

#[test]
fn a_lease_that_two_nodes_answer_is_held_once_and_not_given_back() {
    let mut world = World::working(3);
    world.ready = 1;
    let id = world.client.call(lease(0));
    let conn = world.conns_of(1)[0];
    let sent = world.client.only_sent();
    let granted = world.answer_nobody(&sent);
    world.node(1).health = Health::Frozen;
    world.elect(2);
    let took = world.run_to_end(id, ms(1000));
    assert!(took <= ms(400), "{took:?}");
    let reply = world.client.result(id).expect("leased");
    assert_eq!(reply.body, granted);
    world.asked.clear();
    world.client.reply(conn, sent.id, granted);
    world.run(ms(10));
    let is_release = |noted: &&super::world::Noted| matches!(op(&noted.what), Op::Release { .. });
    assert_eq!(
        world.commands_at(2).into_iter().filter(is_release).count(),
        0
    );
}

#[test]
fn an_idle_poll_moves_from_a_frozen_leader_and_is_probed_rarely() {
    let mut world = World::working(3);
    let id = world.client.call(lease(60_000));
    world.run(ms(10_000));
    let probes = world
        .asked
        .iter()
        .filter(|noted| matches!(noted.what.body, RequestBody::Heartbeat { .. }));
    let probes = probes.count();
    assert!(probes <= 25, "{probes} in 10 s");
    world.node(1).health = Health::Frozen;
    world.elect(2);
    world.run(ms(1000));
    world.wake();
    world.run(ms(10));
    assert!(world.client.is_under_way(id) || world.client.result(id).is_ok());
    assert!(!world.commands_at(2).is_empty());
}

#[test]
fn a_short_poll_does_not_hide_that_a_leader_is_frozen_nor_does_a_long_one_behind_a_command() {
    let mut world = World::working(3);
    world.client.call(enqueue());
    world.run(ms(80));
    world.client.call(lease(50));
    world.run(ms(1));
    world.node(1).health = Health::Frozen;
    world.elect(2);
    world.run(ms(370));
    assert!(!world.commands_at(2).is_empty(), "a short poll");

    let mut world = World::working(3);
    world.client.call(lease(60_000));
    world.run(ms(1_250));
    world.node(1).health = Health::Frozen;
    world.elect(2);
    world.client.call(enqueue());
    world.run(ms(370));
    assert!(!world.commands_at(2).is_empty(), "a long one");
}

/// The client leases a job.
fn holds_a_job(world: &mut World) {
    world.ready = 1;
    let id = world.client.call(lease(0));
    world.run(ms(1));
    assert!(world.client.result(id).is_ok());
    world.asked.clear();
}

/// The first command that reached a node attaches the session.
fn assert_attached(world: &World, node: u32) {
    let attach = world.commands_at(node);
    assert!(
        matches!(op(&attach[0].what), Op::Attach { .. }),
        "{attach:?}"
    );
}

#[test]
fn what_a_worker_holds_is_attached_and_kept_alive_at_the_next_leader() {
    let mut world = World::working(3);
    holds_a_job(&mut world);
    world.elect(3);
    world.kill(1);
    world.run(ms(50));
    assert_attached(&world, 3);
    assert_eq!(
        world.beats_at(3),
        1,
        "at once, not after a third of the timeout"
    );
    world.run(ms(7_000));
    assert!(world.beats_at(3) >= 3, "and on");
}

/// A client that has connections to nodes 1 and 2; node 1 leads.
fn connected_to_two() -> World {
    let mut world = World::working(3);
    for leader in [2, 1] {
        world.elect(leader);
        world.client.call(enqueue());
        world.run(ms(1));
    }
    world.asked.clear();
    world
}

#[test]
fn what_was_lost_is_sent_at_once_where_the_client_was_connected_before() {
    let mut world = connected_to_two();
    world.client.call(enqueue());
    assert_eq!(world.client.take_sent().len(), 1);
    world.elect(2);
    world.kill(1);
    assert_eq!(world.client.take_sent().len(), 1);
}

#[test]
fn what_a_worker_holds_is_attached_where_the_client_was_connected_before() {
    let mut world = connected_to_two();
    holds_a_job(&mut world);
    world.elect(2);
    world.kill(1);
    world.run(ms(50));
    assert_attached(&world, 2);
    assert!(world.beats_at(2) >= 1);
}

#[test]
fn what_a_worker_holds_is_attached_at_a_leader_that_was_named() {
    let mut world = connected_to_two();
    world.ready = 1;
    let id = world.client.call(lease(0));
    world.run(ms(1));
    assert!(world.client.result(id).is_ok());
    world.elect(2);
    world.client.call(enqueue());
    world.run(ms(1));
    assert_attached(&world, 2);
}

#[test]
fn a_worker_without_a_request_under_way_leaves_a_frozen_leader() {
    let mut world = World::working(3);
    world.ready = 1;
    let id = world.client.call(lease(0));
    world.run(ms(1));
    assert!(world.client.result(id).is_ok());
    world.node(1).health = Health::Frozen;
    world.elect(2);
    world.run(ms(4_500));
    assert!(world.beats_at(2) >= 1, "its next heartbeat shows it");
}

#[test]
fn a_connection_that_broke_to_a_leader_that_lives_is_made_again() {
    let mut world = World::working(3);
    holds_a_job(&mut world);
    let conn = world.conns_of(1)[0];
    world.client.lose(conn);
    world.run(ms(200));
    assert!(
        world.beats_at(1) >= 1,
        "within the grace of a closed connection"
    );
}

#[test]
fn a_leader_that_cannot_be_heard_but_is_named_for_long_gets_a_new_connection() {
    let mut world = World::working(3);
    let old = world.conns_of(1)[0];
    world.deafen(old);
    let id = world.client.call(enqueue());
    let took = world.run_to_end(id, ms(5000));
    assert!((ms(1000)..ms(1700)).contains(&took), "{took:?}");
}

#[test]
fn the_next_seed_is_asked_when_one_refuses_and_soon_when_one_is_silent() {
    let mut world = World::new(3, &["gone:1", "n2:1"]);
    let id = world.client.call(RequestBody::Status);
    world.run(ms(0));
    assert!(world.client.result(id).is_ok());
    assert_eq!(world.connects.len(), 2);

    let mut world = World::new(3, &["n1:1", "n2:1", "n3:1"]);
    world.node(1).health = Health::Frozen;
    let id = world.client.call(RequestBody::Status);
    let took = world.run_to_end(id, ms(1000));
    assert!((ms(100)..=ms(250)).contains(&took), "{took:?}");
    world.run(ms(1000));
    assert_eq!(world.connects.len(), 2, "the third was not needed");
}

#[test]
fn seeds_that_are_all_gone_are_not_hammered() {
    let mut world = World::new(1, &["a:1", "b:1", "c:1"]);
    world.client.call(RequestBody::Status);
    world.run(ms(10_000));
    let attempts = world.connects.len();
    assert!((30..=120).contains(&attempts), "{attempts} in 10 s");
}

#[test]
fn a_list_of_a_first_moment_is_made_up_for_by_the_other_seeds() {
    let mut world = World::new(3, &["n1:1", "n2:1", "n3:1"]);
    world.node(1).lists = vec![1];
    let id = world.client.call(enqueue());
    world.run(ms(1));
    assert!(world.client.result(id).is_ok());
    world.elect(3);
    world.kill(1);
    let id = world.client.call(enqueue());
    let took = world.run_to_end(id, ms(1000));
    assert!(took <= ms(50), "{took:?}");
}

#[test]
fn a_frozen_node_that_listed_only_itself_is_left_too() {
    let mut world = World::new(3, &["n1:1", "n2:1", "n3:1"]);
    world.node(1).lists = vec![1];
    let id = world.client.call(enqueue());
    world.run(ms(1));
    assert!(world.client.result(id).is_ok());
    world.node(1).health = Health::Frozen;
    world.elect(2);
    let id = world.client.call(enqueue());
    let took = world.run_to_end(id, ms(2000));
    assert!(took <= ms(500), "{took:?}");
}

#[test]
fn names_of_one_node_alone_are_no_reason_to_connect_without_end() {
    let mut world = World::new(1, &["n1:1", "n1:1"]);
    let id = world.client.call(lease(60_000));
    world.run(ms(10_000));
    assert!(world.client.is_under_way(id));
    assert!(world.connects.len() <= 2, "{:?}", world.connects);
}

#[test]
fn a_cluster_that_is_gone_and_back_is_found() {
    let mut world = World::working(3);
    world.leader = None;
    for node in 1..=3 {
        world.kill(node);
    }
    let id = world.client.call(enqueue());
    world.run(ms(5_000));
    let attempts = world.connects.len();
    assert!((5..=150).contains(&attempts), "{attempts} in 5 s");
    for node in 1..=3 {
        world.node(node).health = Health::Well;
    }
    world.elect(2);
    let took = world.run_to_end(id, ms(5000));
    assert!(took <= ms(1100), "{took:?}");
    assert_eq!(world.jobs_made, 2);
}

#[test]
fn a_single_node_that_is_silent_is_waited_for_as_ever() {
    let mut world = World::working(1);
    world.node(1).health = Health::Frozen;
    let id = world.client.call(enqueue());
    world.run(ms(3_000));
    assert_eq!(world.connects.len(), 0);
    world.thaw(1);
    assert!(world.client.result(id).is_ok());
    assert_eq!(world.asked.len(), 1, "no probe: {:?}", world.asked);
}

#[test]
fn a_node_that_stops_in_order_is_left_at_once() {
    let mut world = World::working(3);
    let id = world.client.call(enqueue());
    let conn = world.conns_of(1)[0];
    let sent = world.client.only_sent();
    world.elect(2);
    world.client.refuse(conn, sent.id, Code::Stopping, false);
    world.run(ms(0));
    assert!(world.client.result(id).is_ok());
}

#[test]
fn a_group_that_stopped_at_one_node_is_found_at_another() {
    let mut world = World::working(3);
    world.node(1).has_halted = true;
    world.elect(3);
    let id = world.client.call(enqueue());
    world.run(ms(100));
    assert!(world.client.result(id).is_ok());
    world.node(3).has_halted = true;
    world.node(2).has_halted = true;
    let id = world.client.call(enqueue());
    world.run(PATIENCE);
    let error = world.client.result(id).expect_err("it stopped everywhere");
    assert_eq!(error.code(), Code::GroupHalted);
}

#[test]
fn nodes_that_were_away_are_tried_again_where_the_one_left_knows_no_leader() {
    let mut world = World::working(3);
    world.kill(1);
    world.kill(3);
    world.all_name(None);
    let id = world.client.call(enqueue());
    world.run(ms(500));
    assert!(world.client.is_under_way(id));
    // Node 2 is cut off from the others, and does not name it.
    world.node(3).health = Health::Well;
    world.leader = Some(3);
    world.run_to_end(id, ms(2_000));
    assert!(world.client.result(id).is_ok());
}

#[test]
fn nodes_that_were_away_are_tried_again_while_the_one_that_led_is_gone() {
    let mut world = World::working(3);
    for node in 1..=3 {
        world.kill(node);
    }
    let id = world.client.call(enqueue());
    world.run(ms(500));
    // Neither the only seed is back, nor the last that was asked.
    world.node(2).health = Health::Well;
    world.elect(2);
    world.run_to_end(id, ms(3_000));
    assert!(world.client.result(id).is_ok());
}

#[test]
fn what_was_moved_and_never_answered_is_unknown() {
    let mut world = World::working(3);
    for node in 1..=3 {
        world.node(node).health = Health::Frozen;
    }
    let id = world.client.call(enqueue());
    world.run(PATIENCE + ms(10));
    let error = world.client.result(id).expect_err("no answer");
    assert!(error.maybe_applied(), "{error}");
    let attempts = world.connects.len();
    assert!(attempts < 100, "{attempts} in 30 s");
}

#[test]
fn without_sessions_a_silent_server_is_not_left_with_what_may_be_done_once_only() {
    let mut world = World::working(3);
    world.client.core.options.sessions = false;
    world.node(1).health = Health::Frozen;
    let id = world.client.call(enqueue());
    world.elect(2);
    world.run(ms(1000));
    assert!(world.client.is_under_way(id));
    world.kill(1);
    let error = world.client.result(id).expect_err("nobody can know");
    assert!(error.maybe_applied());
    assert_eq!(world.jobs_made, 1);
}
