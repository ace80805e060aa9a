//! The way of a command into the log: payload, entry, batch; and back at a start.

mod support;

use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{
    ClusterId, DiskId, GroupId, Incarnation, LogIndex, Partition, QueueUid, SessionId, ShardId,
    Term,
};
use rrq::base::units::GroupTime;
use rrq::queue::MACHINE_VERSION;
use rrq::wal::record::Record;
use rrq::wal::writer::{LogIdentity, LogStart, LogWriter};
use rrq::wire::command::{decode_command, encode_command};
use rrq::wire::{Command, Op, Window};
use std::hint::black_box;
use support::Suite;
use support::load::{command, new_jobs};

const GROUP: GroupId = GroupId(0);
const LIFE: Incarnation = Incarnation(1);
/// Entries of a batch: about what gathers while a write is under way.
const BATCH: u64 = 200;
/// Batches of a writer: one segment bears them.
const BATCHES: u64 = 200;
/// Calls on one state.
const CALLS: u64 = 100_000;

fn main() {
    let mut suite = Suite::from_args("log_encode");
    for jobs in [1, 64] {
        let what = if jobs == 1 { "1 job" } else { "64 jobs" };
        let name = format!("encode a command that enqueues {what}");
        suite.operation(
            &name,
            1,
            CALLS,
            |_| enqueue(jobs),
            |command| {
                black_box(encode_command(command));
            },
        );
        let name = format!("decode a command that enqueues {what}");
        let encoded = |_| encode_command(&enqueue(jobs));
        suite.operation(&name, 1, CALLS, encoded, |payload| {
            black_box(decode_command(payload, MACHINE_VERSION).expect("it is whole"));
        });
    }
    suite.operation(
        "seal an entry of 1 job",
        1,
        CALLS,
        |_| entry(1),
        |entry| {
            entry.crc = entry.seal(GROUP, LIFE);
        },
    );
    suite.operation(
        "entry of 1 job into a batch of 200",
        BATCH,
        BATCHES,
        Log::new,
        Log::batch,
    );
    suite.finish();
}

fn enqueue(jobs: u64) -> Command {
    let op = Op::Enqueue {
        queue: QueueUid::FIRST,
        partition: Partition(0),
        items: new_jobs(0, jobs),
    };
    command(SessionId(1), Window::Commands, 1_000, op)
}

fn entry(index: u64) -> Entry {
    let entry = Entry {
        term: Term(1),
        index: LogIndex(index),
        time: GroupTime(index),
        kind: EntryKind::Data,
        machine_version: MACHINE_VERSION,
        flags: 0,
        crc: 0,
        payload: encode_command(&enqueue(1)),
    };
    entry.sealed(GROUP, LIFE)
}

/// A log that is written batch by batch.
struct Log {
    writer: LogWriter,
    entry: Entry,
}

impl Log {
    fn new(_batches: u64) -> Self {
        let identity = LogIdentity {
            cluster: ClusterId([0xc1; 16]),
            disk: DiskId([0xd1; 16]),
            shard: ShardId(0),
            wal_set: 1,
        };
        let mut writer = LogWriter::new(identity, LogStart::fresh(), 1);
        while let Some(number) = writer.segment_wanted() {
            writer.segment_ready(number);
        }
        let mut log = Self {
            writer,
            entry: entry(1),
        };
        log.write();
        log
    }

    /// A batch of entries is gathered, sealed, and reported as durable.
    fn batch(&mut self) {
        for _ in 0..BATCH {
            self.writer.append(Record::Entry {
                group: GROUP,
                incarnation: LIFE,
                entry: self.entry.clone(),
            });
            self.entry.index = self.entry.index.next();
        }
        self.write();
    }

    fn write(&mut self) {
        while let Some(write) = self.writer.next_write() {
            self.writer.completed(write.batch_seq);
        }
        while let Some(number) = self.writer.segment_wanted() {
            self.writer.segment_ready(number);
        }
    }
}
