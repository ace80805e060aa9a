//! The job machine alone: commands in, outcomes out.
//!
//! Commands are made beforehand, numbered by the sessions of a producer and of a worker, which have
//! 64 of them under way; the cost told is that of a job. A machine lives for 16,384 jobs of 256 B.

mod support;

use rrq::base::ids::{GroupId, LogIndex, Partition, QueueUid, SessionId};
use rrq::base::limits::ADVANCE_ITEMS_MAX;
use rrq::base::units::GroupTime;
use rrq::queue::JobQueue;
use rrq::queue::command::{AckItem, Command, Grant, Op, Outcome, QueueSettings, Start, Window};
use rrq::queue::view::ApplyAt;
use std::collections::VecDeque;
use support::Suite;
use support::load::{command, new_jobs};

/// Jobs that pass through one machine.
const JOBS: u64 = 16_384;
/// Jobs that come due at once.
const DUE: u64 = ADVANCE_ITEMS_MAX as u64;

fn main() {
    let mut suite = Suite::from_args("queue_apply");
    for batch in [1, 64] {
        let jobs = if batch == 1 { "1 job" } else { "64 jobs" };
        let steps = JOBS / batch;
        let mut measure = |what: &str, make: fn(u64, u64) -> Machine| {
            let name = format!("{what}, {jobs} a command");
            suite.operation(
                &name,
                batch,
                steps,
                |steps| make(steps, batch),
                Machine::next,
            );
        };
        measure("enqueue", |steps, batch| {
            Machine::new().enqueues(steps, batch)
        });
        measure("lease", |steps, batch| {
            let enqueued = Machine::new().enqueues(steps, batch).done();
            enqueued.leases(steps, batch)
        });
        measure("ack", |steps, batch| {
            let enqueued = Machine::new().enqueues(steps, batch).done();
            enqueued.leases(steps, batch).done().acks(batch)
        });
    }
    let behind = |steps| Machine::new().enqueues(JOBS, 1).done().lives(steps);
    let name = "whole life behind 16,384 jobs, 1 job a command";
    suite.operation(name, 1, JOBS, behind, |machine| {
        machine.next();
        machine.next();
        let grant = machine.grants.pop_front().expect("a job was granted");
        let ack = machine.ack(vec![grant]);
        machine.apply(&ack);
    });
    let delayed = |steps| Machine::new().delayed(steps);
    suite.operation(
        "delayed job comes due",
        DUE,
        JOBS / DUE,
        delayed,
        |machine| {
            machine.time.0 += 1;
            machine.next();
        },
    );
    suite.finish();
}

/// A machine with one queue, a producer and a worker, and the commands that it is to apply.
struct Machine {
    queue: JobQueue,
    uid: QueueUid,
    producer: SessionId,
    worker: SessionId,
    index: u64,
    time: GroupTime,
    commands: VecDeque<Command>,
    /// What was granted and is not acked.
    grants: VecDeque<Grant>,
    next_job: u64,
    next_poll: u64,
    next_ack: u64,
}

impl Machine {
    fn new() -> Self {
        let mut machine = Self {
            queue: JobQueue::new(GroupId(0), 1_700_000_000_000),
            uid: QueueUid::FIRST,
            producer: SessionId::default(),
            worker: SessionId::default(),
            index: 0,
            time: GroupTime(1),
            commands: VecDeque::new(),
            grants: VecDeque::new(),
            next_job: 0,
            next_poll: 1,
            next_ack: 1,
        };
        let sessionless = |op| Command { session: None, op };
        let made = machine.apply(&sessionless(Op::CreateQueue {
            name: "queue".to_owned(),
            settings: QueueSettings::default(),
            must_be_new: true,
            groups: 0,
        }));
        let Outcome::Queue(info) = made else {
            panic!("no queue was made: {made:?}");
        };
        let mut open = || {
            let op = Op::OpenSession {
                worker_timeout_ms: 0,
            };
            match machine.apply(&sessionless(op)) {
                Outcome::SessionOpened { session, .. } => session,
                other => panic!("no session was opened: {other:?}"),
            }
        };
        let (producer, worker) = (open(), open());
        (machine.uid, machine.producer, machine.worker) = (info.uid, producer, worker);
        machine
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        let at = ApplyAt {
            index: LogIndex(self.index),
            time: self.time,
        };
        self.queue.apply(at, command)
    }

    /// Applies the next command.
    fn next(&mut self) {
        let command = self.commands.pop_front().expect("a command for each step");
        match self.apply(&command) {
            Outcome::Leased(grants) => self.grants.extend(grants),
            Outcome::Rejected(rejection) => panic!("{command:?} was rejected: {rejection:?}"),
            _ => {}
        }
    }

    /// Applies all commands.
    fn done(mut self) -> Self {
        while !self.commands.is_empty() {
            self.next();
        }
        self
    }

    fn enqueues(mut self, commands: u64, jobs: u64) -> Self {
        for _ in 0..commands {
            let enqueue = self.enqueue(jobs, Start::Now);
            self.commands.push_back(enqueue);
        }
        self
    }

    fn leases(mut self, commands: u64, jobs: u64) -> Self {
        for _ in 0..commands {
            let lease = self.lease(jobs);
            self.commands.push_back(lease);
        }
        self
    }

    /// Acks of all that was granted.
    fn acks(mut self, jobs: u64) -> Self {
        while !self.grants.is_empty() {
            let grants = self.grants.drain(..jobs as usize).collect();
            let ack = self.ack(grants);
            self.commands.push_back(ack);
        }
        self
    }

    /// An enqueue and a lease of one job for each life; the ack follows from the lease.
    fn lives(mut self, lives: u64) -> Self {
        for _ in 0..lives {
            self = self.enqueues(1, 1).leases(1, 1);
        }
        self
    }

    /// So many times [`DUE`] delayed jobs, and the commands that find them due.
    fn delayed(mut self, times: u64) -> Self {
        for time in 1..=times {
            let enqueue = self.enqueue(DUE, Start::After(time));
            self.apply(&enqueue);
        }
        let op = Op::Advance {
            limit: ADVANCE_ITEMS_MAX,
        };
        let advance = Command { session: None, op };
        self.commands.extend((0..times).map(|_| advance.clone()));
        self
    }

    fn enqueue(&mut self, jobs: u64, start: Start) -> Command {
        let first = self.next_job;
        self.next_job += jobs;
        let mut items = new_jobs(first, jobs);
        items.iter_mut().for_each(|job| job.start = start);
        let op = Op::Enqueue {
            queue: self.uid,
            partition: Partition(0),
            items,
        };
        // Commands have as many jobs each.
        command(self.producer, Window::Commands, first / jobs + 1, op)
    }

    fn lease(&mut self, jobs: u64) -> Command {
        let op = Op::Lease {
            queue: self.uid,
            partition: Partition(0),
            max: jobs as u32,
            lease_ms: 0,
            epoch: 1,
        };
        self.next_poll += 1;
        command(self.worker, Window::Polls, self.next_poll - 1, op)
    }

    fn ack(&mut self, grants: Vec<Grant>) -> Command {
        let item = |grant: Grant| AckItem {
            token: grant.token,
            result: None,
        };
        let items = grants.into_iter().map(item).collect();
        self.next_ack += 1;
        command(
            self.worker,
            Window::Commands,
            self.next_ack - 1,
            Op::Ack { items },
        )
    }
}
