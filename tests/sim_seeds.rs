//! The engine under simulated crashes: fixed seeds, then seeds that once failed.
#![cfg(feature = "engine")]

use rrq::sim::cluster::{self, Cluster, Fault, Plan};
use rrq::sim::world::{RunReport, World};

/// Seeds of one run of this test; `RRQ_SIM_SEEDS` sets another number, `RRQ_SIM_FROM` the first;
/// `RRQ_SIM_CLUSTERS` counts those of clusters.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn no_promise_is_broken_by_crashes_anywhere() {
    let from = number("RRQ_SIM_FROM", 1);
    let mut total = RunReport::default();
    for seed in from..from + number("RRQ_SIM_SEEDS", 400) {
        let report = std::panic::catch_unwind(|| World::run(seed))
            .unwrap_or_else(|_| panic!("seed {seed} failed: RRQ_SIM_FROM={seed} RRQ_SIM_SEEDS=1"));
        total.acked += report.acked;
        total.finished += report.finished;
        total.crashes += report.crashes;
        total.crashes_in_recovery += report.crashes_in_recovery;
        total.rounds += report.rounds;
        total.pages_read += report.pages_read;
        total.scrub_passes += report.scrub_passes;
        total.tails_cut += report.tails_cut;
        total.operated += report.operated;
    }
    // A batch that never meets what it is for proves nothing.
    assert!(total.acked > 0 && total.finished > 0, "{total:?}");
    assert!(
        total.crashes_in_recovery > 0 && total.tails_cut > 0 && total.rounds > 0,
        "{total:?}"
    );
    assert!(total.operated > 0 && total.pages_read > 0, "{total:?}");
    assert!(total.scrub_passes > 0, "{total:?}");
    println!("{total:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 2, 3] {
        assert_eq!(World::run(seed), World::run(seed));
    }
}

#[test]
fn a_cluster_keeps_its_promises_whatever_befalls_it() {
    let from = number("RRQ_SIM_FROM", 1);
    let mut total = cluster::RunReport::default();
    for seed in from..from + number("RRQ_SIM_CLUSTERS", 40) {
        let report = std::panic::catch_unwind(|| Cluster::run(seed, None)).unwrap_or_else(|_| {
            panic!("cluster seed {seed} failed: rrq-bench sim --seed {seed} --trace")
        });
        total.add(&report);
    }
    println!("{total:?}");
    assert!(total.acked > 0 && total.finished > 0, "{total:?}");
    assert!(total.operated > 0 && total.changes_sent > 0, "{total:?}");
    assert!(total.installs > 0 && total.entries_read > 0, "{total:?}");
    assert!(total.pages_read > 0 && total.mended > 0, "{total:?}");
    assert!(total.scrub_passes > 0, "{total:?}");
}

#[test]
fn the_same_seed_gives_the_same_cluster() {
    for seed in [1, 2, 3] {
        assert_eq!(Cluster::run(seed, None), Cluster::run(seed, None));
    }
}

/// Faults that follow each other closely.
fn close_faults(seed: u64) -> Plan {
    let mut faults = Fault::ALL.to_vec();
    // A disk is not lost beside another that is harmed: that would be more than a minority.
    let harms = !seed.is_multiple_of(4);
    faults.retain(|fault| match fault {
        Fault::LoseDisk => !harms,
        fault => harms || !fault.is_harm(),
    });
    Plan {
        faults: Some(faults),
        fault_gap_ms: Some(350),
        fault_ms: Some(8_000),
        payload_bytes: Some(8_000),
        think_us: Some(20_000),
        checkpoint_log_bytes: Some(128 << 10),
        helpless: Some(false),
        scrubs: (seed % 2 == 1).then_some(true),
        ..Plan::default()
    }
}

#[test]
fn every_fault_meets_every_state_that_it_must() {
    // So close to each other that a few runs are enough.
    let mut total = cluster::RunReport::default();
    for seed in 201..=330 {
        total.add(&Cluster::run_as(seed, &close_faults(seed), None));
    }
    println!("{total:?}");
    let unmet = total.unmet();
    assert!(unmet.is_empty(), "never met: {unmet:?} of {total:?}");
    assert!(total.damage_found > 0 && total.installs > 0, "{total:?}");
    assert!(total.redistributed > 0, "{total:?}");
    assert!(total.mended > 0 && total.scrub_found > 0, "{total:?}");
}

/// Its nodes have other numbers of shards in the end. Two of them gave each other a group every two seconds, and
/// what a change of the leader forgets of the time kept a lease from ever ending: 196 times in 400 s.
#[test]
fn two_nodes_do_not_give_each_other_a_group_for_ever() {
    let report = Cluster::run_as(276, &close_faults(276), None);
    assert!(report.handed_over < 50, "{report:?}");
}

/// An enqueue that nobody had answered was sent again a second after the last job was gone. Its jobs counted as
/// lost, since only clients of the library were waited for.
#[test]
fn all_is_worked_off_only_when_every_enqueue_is_answered() {
    let _ = Cluster::run(7_001_989, None);
}

/// A disk lost its node's vote while of the two others only one ran, which led by it and died. The third, down all
/// the while, made that node the leader of the same term. Of that nobody can know, so it is no fault to inject.
#[test]
fn a_disk_loses_writes_only_where_others_can_tell_of_it() {
    let _ = Cluster::run(7_001_320, None);
}

/// A group without a leader was checkpointed where it stood, and what batches say again of earlier ones brought
/// the base before back, whose files were gone: see `wal::recap`.
#[test]
fn a_base_that_was_replaced_at_its_index_does_not_come_back() {
    let _ = Cluster::run(20_008_712, None);
}

/// A late heartbeat put a group to rest under a leader that all had been told was silent; nobody was told again.
#[test]
fn a_group_that_rests_under_a_silent_leader_wakes() {
    let _ = Cluster::run(20_014_818, None);
}

/// Calls of the library ended with the patience of the opening of their session, and not with their own.
#[test]
fn a_call_outlives_one_attempt_to_open_its_session() {
    let _ = Cluster::run(20_023_831, None);
    let _ = Cluster::run(20_024_100, None);
}

/// The library asked once what is held for it. Nobody answered in time, and it kept a job that it did not know of.
#[test]
fn what_is_held_is_asked_for_until_it_is_known() {
    let _ = Cluster::run(30_011_473, None);
}

/// Nodes with other numbers of shards gave a group to each other every eight seconds, which no silence of a
/// worker outlasts, since each leader waits anew.
#[test]
fn a_group_does_not_go_round_for_ever() {
    let _ = Cluster::run(30_013_780, None);
}

/// A process on an older image of its disk was told that its logs had been longer, said so little of them that the
/// others forgot that, and ended before it had noted it. The next one was told nothing, and voted a second time in a term.
#[test]
fn who_dies_before_its_losses_are_noted_is_told_of_them_again() {
    let briefly = Plan {
        nodes: Some(3),
        groups: Some(8),
        faults: Some(vec![Fault::OldImage, Fault::Crash, Fault::SlowDisk]),
        fault_gap_ms: Some(50),
        fault_ms: Some(10_000),
        helpless: Some(false),
        scrubs: Some(false),
        ..Plan::default()
    };
    for seed in 1..=20 {
        let _ = Cluster::run_as(seed, &briefly, None);
    }
}

/// The library could not give back in time what nobody waited for any more, and went on saying that it holds it.
#[test]
fn what_could_not_be_given_back_is_not_held() {
    let _ = Cluster::run(50_088_898, None);
}

/// Of the voters that a member with a hole knew, the others had other disks since: it asked only those that were
/// gone, and without it there was no majority.
#[test]
fn who_recovers_asks_who_came_beyond_the_hole() {
    let _ = Cluster::run(50_069_698, None);
    let _ = Cluster::run(50_097_183, None);
}

/// Seeds that failed once by a fault of the simulator itself: the end of a log was damaged, or a write lost, of which
/// not all others had heard, which is beyond what is promised; and a client that followed one whose closing was
/// given up was never closed. With the mends they draw other things, and stay as runs like any other.
#[test]
fn what_failed_by_the_simulator_alone_passes() {
    for seed in [20_004_319, 20_012_059, 20_017_575, 20_018_565, 20_047_474] {
        let _ = Cluster::run(seed, None);
    }
}

#[test]
fn logs_that_are_damaged_everywhere_at_different_places_are_made_whole_again() {
    let from = number("RRQ_SIM_FROM", 1);
    let mut total = cluster::RunReport::default();
    let seeds = number("RRQ_SIM_HELIXES", 20);
    for seed in from..from + seeds {
        let plan = Plan {
            faults: Some(vec![Fault::Crash, Fault::Partition, Fault::SlowDisk]),
            fault_ms: Some(1_000),
            helix: Some(true),
            ..Plan::default()
        };
        let report = std::panic::catch_unwind(|| Cluster::run_as(seed, &plan, None));
        let report = report.unwrap_or_else(|_| panic!("seed {seed} failed"));
        total.add(&report);
    }
    println!("{total:?}");
    let per_run = total.harmed_everywhere / seeds;
    assert!(per_run >= 6 && total.damage_found > 0, "{total:?}");
}

#[test]
fn a_fault_that_is_left_out_leaves_the_others_as_they_are() {
    let befallen = |plan: &Plan| {
        let mut befallen = Vec::new();
        let _ = Cluster::run_noting(8, plan, None, &mut befallen);
        befallen
    };
    let close = Plan {
        fault_gap_ms: Some(350),
        ..Plan::default()
    };
    let all = befallen(&close);
    assert!(all.len() > 10, "{all:?}");
    let odd = all.iter().filter(|(number, _)| number % 2 == 1);
    let odd: Vec<_> = odd.copied().collect();
    let plan = Plan {
        only: Some(odd.iter().map(|(number, _)| *number).collect()),
        ..close
    };
    assert_eq!(befallen(&plan), odd);
}
