//! The engine of a shard: requests in, replies out, with a disk that is always done at once.
//!
//! Requests are decoded beforehand and replies dropped as values, so this is all of a node's work
//! but sockets, frames and the disk. Eight queues in as many groups, 256 B a job, every client with
//! a session; up to 64 requests are taken before the engine is drained, as under load. A step is a
//! turn; the cost told is that of a job.

mod support;

use support::Suite;
use support::load::{Load, Performance, QUEUES};

/// Jobs that pass through one engine: few, so that requests that were made beforehand are still near.
const JOBS: u64 = 2_048;
/// Jobs of a turn in which 64 requests of one job are taken.
const SINGLES: u64 = 64;
/// Jobs of a turn in which each queue gets a request of 64.
const BATCHES: u64 = 64 * QUEUES as u64;

fn main() {
    let mut suite = Suite::from_args("engine_step");
    let mut measure = |name: &str, jobs: u64, rehearse: fn(&mut Load, u64)| {
        let make = |turns| {
            let mut load = Load::new();
            rehearse(&mut load, turns);
            load.perform(false)
        };
        suite.operation(name, jobs, JOBS / jobs, make, Performance::turn);
    };
    measure("enqueue, 1 job a request", SINGLES, |load, turns| {
        load.begin();
        for _ in 0..turns {
            let turn = load.enqueues(64, 1);
            load.turn(turn);
        }
    });
    measure(
        "enqueue, 1 job a request, 1 request a turn",
        1,
        |load, turns| {
            load.begin();
            for _ in 0..turns {
                let turn = load.enqueues(1, 1);
                load.turn(turn);
            }
        },
    );
    measure("enqueue, 64 jobs a request", BATCHES, |load, turns| {
        load.begin();
        for _ in 0..turns {
            let turn = load.enqueues(QUEUES as u64, 64);
            load.turn(turn);
        }
    });
    measure("lease, 8 jobs a request", SINGLES, |load, turns| {
        for _ in 0..turns {
            let turn = load.enqueues(64, 1);
            load.turn(turn);
        }
        load.begin();
        for _ in 0..turns {
            let turn = load.leases(8);
            load.turn(turn);
        }
    });
    measure("ack, 1 job a request", SINGLES, |load, turns| {
        for _ in 0..turns {
            let turn = load.enqueues(64, 1);
            load.turn(turn);
            let turn = load.leases(8);
            load.turn(turn);
        }
        load.begin();
        for _ in 0..turns {
            let turn = load.acks(8, 1);
            load.turn(turn);
        }
    });
    measure("whole life, 1 job a request", SINGLES, |load, turns| {
        lives(load, turns, (64, 1), 8, (8, 1));
    });
    measure("whole life, 64 jobs a request", BATCHES, |load, turns| {
        lives(load, turns, (QUEUES as u64, 64), 64, (1, 64));
    });
    suite.finish();
}

/// Turns in which jobs are enqueued, those of the turn before leased, those before them acked:
/// requests and jobs of each for the enqueues, jobs of each lease, and the same of each queue for
/// the acks.
fn lives(load: &mut Load, turns: u64, enqueues: (u64, u64), lease: u32, acks: (usize, usize)) {
    let turn = load.enqueues(enqueues.0, enqueues.1);
    load.turn(turn);
    let mut turn = load.enqueues(enqueues.0, enqueues.1);
    turn.extend(load.leases(lease));
    load.turn(turn);
    load.begin();
    for _ in 0..turns {
        let mut turn = load.enqueues(enqueues.0, enqueues.1);
        turn.extend(load.leases(lease));
        turn.extend(load.acks(acks.0, acks.1));
        load.turn(turn);
    }
}
