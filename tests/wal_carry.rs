//! Groups taken over into other logs read back as what they were, whatever they hold.
#![cfg(feature = "engine")]

mod wal_kit;

use bytes::Bytes;
use rrq::base::ids::{GroupId, LogIndex, ShardId};
use rrq::base::prng::Prng;
use rrq::base::units::Lsn;
use rrq::shard::placement::shard_of;
use rrq::shard::redistribution::{NewLog, damage_of, known_ends, moves};
use rrq::wal::record::{GroupRow, Record, RowStatus};
use rrq::wal::recovery::{GroupLogStatus, Recovered, Recovery};
use rrq::wal::segment::Echo;
use rrq::wal::writer::{LogIdentity, Need};
use std::collections::BTreeSet;
use std::convert::Infallible;
use wal_kit::{BLOCK, Disk, LIFE, Log, hard, identity};

const SEGMENT: usize = 16 * BLOCK;
const GROUPS: u16 = 6;

/// The identity of a shard of the set to be.
fn to_be(shard: u16) -> LogIdentity {
    LogIdentity {
        shard: ShardId(shard),
        wal_set: 9,
        ..identity()
    }
}

/// A log with groups of every kind: without an entry, with a tail, with two bases, with votes, one that
/// may have lost something.
fn sample(seed: u64) -> Recovered {
    let mut prng = Prng::new(seed);
    let mut log = Log::fresh(SEGMENT);
    for group in 0..GROUPS {
        log.base(group, 0, 0);
    }
    log.sync();
    for group in 0..GROUPS {
        let mut last = 0;
        for index in 1..=prng.below(12) {
            log.entry(group, index, 1, prng.below(6_000) as usize);
            last = index;
            if prng.chance(1, 4) {
                log.sync();
            }
        }
        let commit = prng.below(last + 1);
        log.hard(group, hard(1 + prng.below(3), prng.below(4) as u32, commit));
        log.sync();
        for index in [commit / 2, commit] {
            if index > 0 && prng.chance(2, 3) {
                log.base(group, index, 1);
                log.sync();
            }
        }
    }
    let doubtful = GroupRow {
        group: GroupId(1),
        incarnation: LIFE,
        status: RowStatus::Recovering { since: LogIndex(3) },
        ..GroupRow::default()
    };
    log.writer.append(Record::GroupTable(vec![doubtful]));
    log.sync_proved();
    let recovered = log.disk.recover_with(Lsn(0)).expect("the log is ours");
    assert!(damage_of(&recovered).is_none(), "{:?}", recovered.damage);
    let of_1 = &recovered.groups[&GroupId(1)].status;
    assert!(
        matches!(of_1, GroupLogStatus::Recovering { .. }),
        "{of_1:?}"
    );
    recovered
}

/// Writes all that a log holds.
fn write(log: &mut NewLog) -> Disk {
    let mut disk = Disk::new(SEGMENT);
    let done = log.writer.drain_proved(&mut |need| {
        match need {
            Need::Segment(number) => drop(disk.files.insert(number, vec![0; SEGMENT])),
            Need::Write(write) => disk.write(&write),
        }
        Ok::<(), Infallible>(())
    });
    let Ok(()) = done;
    disk
}

fn read(disk: &Disk, identity: LogIdentity) -> Recovered {
    let mut recovery = Recovery::with_segment_bytes(identity, disk.segment_bytes);
    for (number, bytes) in &disk.files {
        recovery.feed(*number, Bytes::copy_from_slice(bytes));
    }
    recovery.finish().expect("the log is ours")
}

/// The logs of so many shards.
fn redistribute(from: &Recovered, shards: u16) -> Vec<NewLog> {
    let ends = [Lsn(0), Lsn(77), from.start.lsn];
    let ends = known_ends(identity(), &ends, &[]);
    let new = |shard| NewLog::new(to_be(shard), ends.clone(), 5, SEGMENT);
    let mut logs: Vec<NewLog> = (0..shards).map(new).collect();
    let mut unread = |_, _, _| Err(());
    for moved in moves(from, ShardId(0), (1, shards), GROUPS.into(), &mut unread) {
        let has_root = moved.log.bases.iter().any(|base| base.root.is_some());
        let wanted = (!has_root).then(BTreeSet::new);
        assert_eq!(moved.files, wanted, "only who reads a root knows its files");
        logs[usize::from(moved.to.0)].take(moved.group, moved.log);
    }
    logs
}

#[test]
fn each_group_reads_back_from_its_new_log_as_what_it_was() {
    for seed in 0..60 {
        let from = sample(seed);
        for shards in 1..=4 {
            let mut found = 0;
            for (shard, mut log) in (0..).zip(redistribute(&from, shards)) {
                let read = read(&write(&mut log), to_be(shard));
                assert!(log.reads_back(&read), "seed {seed}, {shards} shards");
                for (group, now) in &read.groups {
                    let was = &from.groups[group];
                    assert_eq!(shard_of(*group, shards).0, shard);
                    assert_eq!((now.hard, &now.entries), (was.hard, &was.entries));
                    assert_eq!(
                        (now.incarnation, &now.status),
                        (was.incarnation, &was.status)
                    );
                    assert_eq!(now.bases.len(), was.bases.len());
                }
                found += read.groups.len();
                let ended = |echo: &&Echo| (echo.wal_set, echo.shard) == (1, ShardId(2));
                let mut echoes = read.start.echoes.iter().filter(ended);
                let end = echoes
                    .next()
                    .expect("it knows where the logs before it ended");
                assert_eq!(end.durable_lsn, from.start.lsn);
            }
            assert_eq!(found, from.groups.len(), "no group is lost");
        }
    }
}

#[test]
fn what_has_gone_from_a_new_log_is_missed() {
    for seed in 0..20 {
        let from = sample(seed);
        let mut log = redistribute(&from, 1).remove(0);
        let whole = write(&mut log);
        let manifest = log.manifest(3);
        assert_eq!(manifest.groups.len(), from.groups.len());
        assert_eq!((manifest.sequence, manifest.wal_set), (3 << 32, 9));
        let mut batches = 0;
        for (number, file) in &whole.files {
            for block in (0..SEGMENT).step_by(BLOCK) {
                if file[block..block + BLOCK].iter().all(|byte| *byte == 0) {
                    continue;
                }
                let mut disk = whole.clone();
                let bytes = disk.files.get_mut(number).expect("it is there");
                bytes[block..block + BLOCK].fill(0);
                let mut recovery = Recovery::with_segment_bytes(to_be(0), SEGMENT);
                recovery.proof(manifest.durable);
                for (number, bytes) in &disk.files {
                    recovery.feed(*number, Bytes::copy_from_slice(bytes));
                }
                let read = recovery.finish().expect("the log is ours");
                // The last block is the beacon: without it all is there, and it is missed all the same.
                assert!(
                    !log.reads_back(&read),
                    "seed {seed}, segment {number}, byte {block}"
                );
                batches += 1;
            }
        }
        assert!(batches > 2, "seed {seed}");
    }
}

#[test]
fn a_damaged_log_is_named_and_not_taken_over() {
    let mut log = Log::fresh(SEGMENT);
    log.base(0, 0, 0);
    log.base(1, 0, 0);
    log.entry(0, 1, 1, 100);
    log.sync();
    log.entry(0, 2, 1, 100);
    log.sync_proved();
    let place = log.batches[1].offset;
    log.disk.files.get_mut(&1).expect("it is there")[place + 70] ^= 1;
    let read = log.disk.recover_with(Lsn(0)).expect("the log is ours");
    let damage = damage_of(&read).expect("it is damaged");
    assert!(damage.contains("segment 1, byte"), "{damage}");
}
