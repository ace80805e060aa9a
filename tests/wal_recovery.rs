//! Recovery of the log against every cut, every flipped bit, every subset of writes under way, and
//! files that are missing, short, swapped or stale. The rows of the decision table in
//! `src/wal/recovery.rs` are tests of the same names.
#![cfg(feature = "engine")]

mod wal_kit;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use rrq::base::entry::Entry;
use rrq::base::ids::{DiskId, GroupId, NodeId, Voter};
use rrq::base::members::Member;
use rrq::base::prng::Prng;
use rrq::base::units::Lsn;
use rrq::wal::batch::{BEACON, BatchHeader, FOOTER, SEG_HEAD};
use rrq::wal::codec::Records;
use rrq::wal::extent::PIECE_BYTES;
use rrq::wal::record::{BaseRecord, Record};
use rrq::wal::recovery::{GroupLog, GroupLogStatus, Recovered, Recovery};
use rrq::wal::writer::LogIdentity;
use std::collections::{BTreeMap, BTreeSet};
use wal_kit::{BLOCK, Disk, Fate, Log, Model, Sealed, check, hard, model_of};

const SEGMENT: usize = 4 * BLOCK;

/// Three groups, three segments (the third not full), a conflict, bases, votes; all acknowledged
/// and proved by a beacon.
fn sample() -> Log {
    let mut log = Log::fresh(SEGMENT);
    for group in 1..=3 {
        log.base(group, 0, 0);
        log.hard(group, hard(1, 1, 0));
    }
    log.sync();
    for index in 1..=4 {
        log.entry(1, index, 1, 200);
    }
    log.entry(2, 1, 1, 300);
    log.sync();
    log.entry(2, 2, 1, 1500);
    log.entry(3, 1, 1, 10);
    log.hard(2, hard(2, 2, 1));
    log.sync();
    log.entry(1, 3, 2, 50);
    log.hard(1, hard(2, 1, 3));
    log.base(1, 2, 1);
    log.sync();
    log.entry(3, 2, 1, 700);
    log.sync_proved();
    let segments = log.batches.last().expect("there are batches").segment;
    assert_eq!(segments, 3, "the sample has three segments");
    log
}

/// Whether a batch behind `at` proves it.
fn is_proved(batches: &[Sealed], at: Lsn) -> bool {
    batches
        .iter()
        .any(|b| b.header.lsn > at && b.header.durable_lsn > at)
}

fn batch_at(log: &Log, segment: u64, offset: usize) -> Option<&Sealed> {
    log.batches
        .iter()
        .find(|b| b.segment == segment && (b.offset..b.offset + b.len).contains(&offset))
}

/// The outcome in a word.
fn outcome(recovered: &Recovered) -> &'static str {
    match (recovered.damage.is_empty(), recovered.torn.is_some()) {
        (true, false) => "clean",
        (true, true) => "torn",
        (false, _) => "corrupt",
    }
}

fn is_intact(recovered: &Recovered, group: u16) -> bool {
    recovered.groups[&GroupId(group)].status == GroupLogStatus::Intact
}

#[test]
fn everything_comes_back() {
    let log = sample();
    let recovered = log.disk.recover();
    assert_eq!(outcome(&recovered), "clean");
    let acked = log.acked();
    let fates = check(&recovered, &acked, "undamaged");
    assert!(fates.values().all(|fate| *fate == Fate::Whole));
    assert_eq!(wal_kit::model_of(&recovered), acked);
    assert_eq!(recovered.segments, [1, 2, 3]);
    assert_eq!(recovered.start.lsn, log.writer.end_lsn());
    assert_eq!(recovered.bytes, log.writer.end_lsn().0);
}

#[test]
fn every_bit_flipped() {
    let log = sample();
    let acked = log.acked();
    let flip = |disk: &mut wal_kit::Disk, segment: u64, offset: usize, bit: u8| {
        disk.files.get_mut(&segment).expect("a file")[offset] ^= 1 << bit;
    };
    let places = log
        .disk
        .files
        .iter()
        .flat_map(|(number, bytes)| (0..bytes.len()).map(|offset| (*number, offset)))
        .collect::<Vec<_>>();
    let halves = places.split_at(places.len() / 2);
    let run = |places: &[(u64, usize)]| {
        let mut disk = log.disk.clone();
        let mut counts = BTreeMap::new();
        for (segment, offset) in places {
            for bit in 0..8 {
                flip(&mut disk, *segment, *offset, bit);
                let recovered = disk.recover();
                flip(&mut disk, *segment, *offset, bit);
                let context = format!("segment {segment}, byte {offset}, bit {bit}");
                let expected = match batch_at(&log, *segment, *offset) {
                    None => "clean",
                    Some(batch) if is_proved(&log.batches, batch.header.lsn) => "corrupt",
                    Some(_) => "torn",
                };
                assert_eq!(outcome(&recovered), expected, "{context}: {recovered:#?}");
                check(&recovered, &acked, &context);
                *counts.entry(expected).or_insert(0_usize) += 1;
            }
        }
        counts
    };
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(halves.1));
        (run(halves.0), other.join().expect("the other half passes"))
    });
    let count = |name| first.get(name).unwrap_or(&0) + second.get(name).unwrap_or(&0);
    // Only the last beacon has no proof behind it.
    assert_eq!(count("torn"), BLOCK * 8);
    let used = usize::try_from(log.writer.end_lsn().0).expect("small");
    assert_eq!(count("corrupt"), (used - BLOCK) * 8);
}

#[test]
fn cut_at_every_byte() {
    let log = sample();
    let acked = log.acked();
    let mut counts = BTreeMap::new();
    // From `cut` on, nothing ever reached the disk. Without the last proof this is a torn tail.
    let end = usize::try_from(log.writer.end_lsn().0).expect("small");
    let mut disk = log.disk.clone();
    for cut in (0..end).rev() {
        let place = log
            .batches
            .iter()
            .find(|b| (b.header.lsn.0..b.header.lsn.0 + b.len as u64).contains(&(cut as u64)));
        let batch = place.expect("the batches are dense");
        let offset = batch.offset + cut - batch.header.lsn.0 as usize;
        disk.files.get_mut(&batch.segment).expect("a file")[offset] = 0;
        let recovered = disk.recover();
        assert_ne!(
            outcome(&recovered),
            "corrupt",
            "cut at {cut}: {recovered:#?}"
        );
        let is_whole = recovered.start.lsn.0 >= batch.header.lsn.0 + batch.len as u64;
        assert!(recovered.start.lsn >= batch.header.lsn, "cut at {cut}");
        // Padding that was zero anyway may be cut: the batch is whole then.
        let name = if is_whole {
            "padding"
        } else {
            outcome(&recovered)
        };
        *counts.entry(name).or_insert(0_usize) += 1;
        // A manifest that knows the end makes any of it corrupt.
        if cut % 61 == 0 && !is_whole {
            let recovered = disk.recover_with(log.writer.end_lsn()).expect("ours");
            assert_eq!(outcome(&recovered), "corrupt", "cut at {cut}");
            check(
                &recovered,
                &acked,
                &format!("cut at {cut}, proved by the manifest"),
            );
        }
    }
    assert!(counts["torn"] > 0 && counts["padding"] > 0, "{counts:?}");
}

#[test]
fn files_short_at_every_byte() {
    let log = sample();
    let acked = log.acked();
    for number in 1..=4 {
        for len in (0..SEGMENT).step_by(7).chain([SEGMENT - 1]) {
            let mut disk = log.disk.clone();
            disk.files.get_mut(&number).expect("a file").truncate(len);
            let recovered = disk.recover();
            let context = format!("segment {number} has {len} bytes");
            assert_eq!(outcome(&recovered), "corrupt", "{context}");
            check(&recovered, &acked, &context);
        }
    }
}

/// A log with acknowledged content and four batches in flight.
fn four_in_flight() -> Log {
    let mut log = Log::fresh(16 * BLOCK);
    for group in 1..=2 {
        log.base(group, 0, 0);
        log.hard(group, hard(1, 1, 0));
        log.entry(group, 1, 1, 100);
    }
    log.sync();
    // A fifth batch goes on gathering.
    for index in 2..=6 {
        for group in 1..=2 {
            log.entry(group, index, 1, 6000);
        }
        log.hard(1, hard(index, 1, 1));
    }
    log.submit();
    assert_eq!(log.flying.len(), 4, "four batches are in flight");
    log
}

#[test]
fn every_subset_of_four_in_flight() {
    let log = four_in_flight();
    let acked = log.acked();
    for subset in 0..16_u32 {
        let mut disk = log.disk.clone();
        let mut is_prefix = 0;
        for (nth, write) in log.flying.iter().enumerate() {
            if subset & 1 << nth != 0 {
                disk.write(write);
                is_prefix += usize::from(is_prefix == nth);
            }
        }
        let recovered = disk.recover();
        let context = format!("subset {subset:04b}");
        assert!(recovered.damage.is_empty(), "{context}: {recovered:#?}");
        check(&recovered, &acked, &context);
        let end = log.batches[log.batches.len() - 4 + is_prefix.min(3)]
            .header
            .lsn;
        if is_prefix < 4 {
            assert_eq!(recovered.start.lsn, end, "{context}");
        }
        assert_eq!(
            recovered.torn.is_some(),
            subset.count_ones() as usize > is_prefix
        );
    }
}

#[test]
fn torn_to_sectors() {
    let log = four_in_flight();
    let acked = log.acked();
    // The first batch in every prefix of sectors, and its first eight in every subset, with the
    // batch behind it whole.
    let (first, second) = (&log.flying[0], &log.flying[1]);
    let mut bytes = vec![0; first.batch.encoded_len()];
    first.batch.encode_into(&mut bytes);
    let sectors = bytes.len() / 512;
    let subsets = (0..256_u64).map(|subset| subset | !0xff);
    let prefixes = (0..=sectors).map(|count| (1_u64 << count.min(63)) - 1);
    for mask in subsets.chain(prefixes) {
        let mut disk = log.disk.clone();
        let file = disk.files.get_mut(&first.segment).expect("a file");
        let at = first.offset as usize;
        for sector in (0..sectors).filter(|sector| mask & 1 << sector != 0) {
            let range = sector * 512..(sector + 1) * 512;
            file[at + range.start..at + range.end].copy_from_slice(&bytes[range]);
        }
        disk.write(second);
        let recovered = disk.recover();
        assert!(
            recovered.damage.is_empty(),
            "sectors {mask:b}: {recovered:#?}"
        );
        check(&recovered, &acked, &format!("sectors {mask:b}"));
        let is_whole =
            (0..sectors).all(|sector| mask & 1 << sector != 0) || file_holds(&disk, first, &bytes);
        assert_eq!(recovered.torn.is_some(), !is_whole, "sectors {mask:b}");
    }
}

fn file_holds(disk: &wal_kit::Disk, write: &rrq::wal::writer::WalWrite, bytes: &[u8]) -> bool {
    let at = write.offset as usize;
    &disk.files[&write.segment][at..at + bytes.len()] == bytes
}

/// The sample with `damage` done to a copy of its files.
fn damaged(damage: impl FnOnce(&Log, &mut wal_kit::Disk)) -> (Recovered, Model) {
    let log = sample();
    let mut disk = log.disk.clone();
    damage(&log, &mut disk);
    (disk.recover(), log.acked())
}

fn corrupt(log: &Log, disk: &mut wal_kit::Disk, which: impl Fn(&Sealed) -> bool) {
    let batch = log.batches.iter().find(|batch| which(batch));
    let batch = batch.expect("the sample has such a batch");
    disk.files.get_mut(&batch.segment).expect("a file")[batch.offset + 40] ^= 0x10;
}

#[test]
fn clean_end() {
    assert_eq!(outcome(&sample().disk.recover()), "clean");
}

#[test]
fn torn_tail() {
    let mut log = sample();
    let acked = log.acked();
    log.entry(1, 4, 2, 9);
    log.sync();
    let last = log.batches.last().expect("a batch").clone();
    log.disk.files.get_mut(&last.segment).expect("a file")[last.offset + 70] ^= 1;
    let recovered = log.disk.recover();
    let torn = recovered.torn.expect("torn");
    assert_eq!((torn.segment, torn.from), (last.segment, last.header.lsn));
    check(&recovered, &acked, "torn tail");
}

#[test]
fn torn_hole() {
    let log = four_in_flight();
    let mut disk = log.disk.clone();
    disk.write(&log.flying[2]);
    disk.write(&log.flying[3]);
    let recovered = disk.recover();
    assert_eq!(outcome(&recovered), "torn");
    check(&recovered, &log.acked(), "torn hole");
}

#[test]
fn corrupt_middle() {
    let (recovered, acked) = damaged(|log, disk| {
        corrupt(log, disk, |b| b.segment == 1 && b.offset == BLOCK);
    });
    assert_eq!(outcome(&recovered), "corrupt");
    check(&recovered, &acked, "corrupt middle");
    assert!(recovered.groups.values().any(|g| g.entries.len() > 1));
}

#[test]
fn corrupt_before_beacon() {
    let (recovered, acked) = damaged(|log, disk| {
        let beacon = log.batches.iter().position(|b| b.header.flags == BEACON);
        let before = log.batches[beacon.expect("a beacon") - 1].header.lsn;
        corrupt(log, disk, |b| b.header.lsn == before);
    });
    assert_eq!(outcome(&recovered), "corrupt");
    check(&recovered, &acked, "corrupt before beacon");
    assert!(!is_intact(&recovered, 3));
}

#[test]
fn corrupt_by_manifest() {
    let mut log = sample();
    log.entry(1, 4, 2, 9);
    log.sync();
    let last = log.batches.last().expect("a batch").clone();
    log.disk.files.get_mut(&last.segment).expect("a file")[last.offset] ^= 1;
    assert_eq!(outcome(&log.disk.recover()), "torn");
    let proved = log.disk.recover_with(log.writer.durable_lsn());
    let proved = proved.expect("ours");
    assert_eq!(outcome(&proved), "corrupt");
    check(&proved, &log.acked(), "corrupt by manifest");
    assert!(proved.start.lsn >= log.writer.durable_lsn());
}

#[test]
fn corrupt_head() {
    let (recovered, acked) = damaged(|log, disk| {
        corrupt(log, disk, |b| b.segment == 2 && b.header.flags == SEG_HEAD);
    });
    assert_eq!(outcome(&recovered), "corrupt");
    let fates = check(&recovered, &acked, "corrupt head");
    assert_eq!(recovered.segments, [1, 2, 3]);
    // The footer of the segment and the head of the next one clear everybody.
    assert!(
        fates.values().all(|fate| *fate == Fate::Whole),
        "{recovered:#?}"
    );
}

#[test]
fn a_headless_segment_is_read_in_the_same_way_at_the_next_start() {
    // The head of the last segment is damaged, and a later write went astray into its last block; a
    // manifest proves more than is there. Once the next head names the segment, both could tell its
    // place: the batch does that this head names.
    let log = sample();
    let mut later = sample();
    for index in 4..8 {
        later.entry(1, index, 2, 3000);
        later.submit();
    }
    let astray = later.flying.last().expect("it was submitted").clone();
    let header = later.batches.last().expect("a batch").header;
    let place = 3 * BLOCK;
    assert!(batch_at(&log, 3, place).is_none(), "the block is free");
    assert!(header.lsn.0 - place as u64 >= header.durable_lsn.0);
    let mut disk = log.disk.clone();
    corrupt(&log, &mut disk, |b| {
        b.segment == 3 && b.header.flags == SEG_HEAD
    });
    let mut bytes = vec![0; astray.batch.encoded_len()];
    astray.batch.encode_into(&mut bytes);
    disk.files.get_mut(&3).expect("a file")[place..place + BLOCK].copy_from_slice(&bytes[..BLOCK]);
    let proof = Lsn(log.writer.durable_lsn().0 + 1);
    let first = disk.recover_with(proof).expect("ours");
    assert_eq!(first.segments, [1, 2, 3], "{first:#?}");
    let mut second = Log::start(disk, first.start.clone(), model_of(&first), 8);
    second.sync_proved();
    let recovered = second.disk.recover();
    assert_eq!(recovered.segments[..3], [1, 2, 3], "{recovered:#?}");
    check(&recovered, &log.acked(), "read again");
    let written = second.writer.end_lsn().0 - first.start.lsn.0;
    assert_eq!(recovered.bytes, first.bytes + written, "{recovered:#?}");
}

/// Batches of another group, as many as say again what a batch has held; the number of the last batch before.
fn followed_by_others(log: &mut Log) -> u64 {
    let last = log.batches.last().expect("a batch").header.batch_seq;
    for index in 1..=4 {
        log.entry(2, index, 1, 10);
        log.sync();
    }
    last
}

/// The log without batch `first` and those that [`followed_by_others`] has put behind it.
fn lost_untold(log: &Log, first: u64) -> Disk {
    let mut disk = log.disk.clone();
    for lost in first..first + 5 {
        corrupt(log, &mut disk, |b| b.header.batch_seq == lost);
    }
    disk
}

/// Entries 1 and 2, then 3, then 4 and 5 of a later or the same term; the batch with 3 rots, and all that
/// tell of it.
fn without_the_third(last_term: u64) -> GroupLog {
    let mut log = Log::fresh(16 * BLOCK);
    log.base(2, 0, 0);
    log.base(1, 0, 0);
    log.hard(1, hard(1, 1, 0));
    log.entry(1, 1, 1, 10);
    log.entry(1, 2, 1, 10);
    log.sync();
    log.entry(1, 3, 1, 10);
    log.sync();
    let third = followed_by_others(&mut log);
    log.hard(1, hard(last_term, 1, 0));
    log.entry(1, 4, last_term, 10);
    log.entry(1, 5, last_term, 10);
    log.sync_proved();
    lost_untold(&log, third).recover().groups[&GroupId(1)].clone()
}

#[test]
fn what_lies_beyond_a_hole_is_kept_and_clears_what_lies_before_it() {
    let indexes =
        |entries: &[Entry]| -> Vec<u64> { entries.iter().map(|entry| entry.index.0).collect() };
    let same_term = without_the_third(1);
    assert!(matches!(same_term.status, GroupLogStatus::Damaged { .. }));
    assert_eq!(indexes(&same_term.entries), [1, 2]);
    assert_eq!(same_term.sound.last.0, 2, "one leader, one log");
    assert_eq!(indexes(&same_term.sound.beyond), [4, 5]);
    assert!(same_term.sound.end.is_some() && same_term.sound.vote_is_known);
    // A later leader may have replaced entries 1 and 2 in the hole.
    let later_term = without_the_third(2);
    assert_eq!(later_term.sound.last.0, 0, "they may be another's");
    assert_eq!(indexes(&later_term.sound.beyond), [4, 5]);
}

/// Entries 1 and 2 of term 1; in term 2 another replaces 2, and that batch rots, and all that tell of it. The
/// commit mark is `before` ahead of it, and 2 behind it.
fn with_a_mark_beyond_the_hole(before: u64) -> GroupLog {
    let mut log = Log::fresh(16 * BLOCK);
    log.base(1, 0, 0);
    log.base(2, 0, 0);
    log.entry(1, 1, 1, 10);
    log.entry(1, 2, 1, 10);
    log.hard(1, hard(1, 1, before));
    log.sync();
    log.entry(1, 2, 2, 10);
    log.sync();
    let second = followed_by_others(&mut log);
    log.hard(1, hard(2, 1, 2));
    log.sync_proved();
    lost_untold(&log, second).recover().groups[&GroupId(1)].clone()
}

#[test]
fn a_commit_mark_beyond_a_hole_says_nothing_of_what_lies_before_it() {
    let none = with_a_mark_beyond_the_hole(0);
    assert!(matches!(none.status, GroupLogStatus::Damaged { .. }));
    assert_eq!(none.sound.last.0, 0, "both may have been replaced");
    assert_eq!(none.hard.commit.0, 0);
    // What was committed before cannot have been replaced.
    let one = with_a_mark_beyond_the_hole(1);
    assert_eq!((one.sound.last.0, one.hard.commit.0), (1, 1));
}

#[test]
fn an_entry_that_may_have_been_replaced_in_a_hole_is_gone_at_the_next_start() {
    // 3 of term 2 goes on behind what replaced 2 in the hole, and looks as if behind what was there before:
    // a leader whose log has it too would take the whole for its own.
    let mut log = Log::fresh(16 * BLOCK);
    log.base(2, 0, 0);
    let mut members = wal_kit::base(1, 0, 0);
    let other = Voter {
        node: NodeId(2),
        disk: DiskId([0xd2; 16]),
    };
    members.members.push(Member::voting(other));
    log.append(Record::Base(members));
    log.entry(1, 1, 1, 10);
    log.entry(1, 2, 1, 10);
    log.hard(1, hard(1, 1, 1));
    log.sync();
    log.entry(1, 2, 2, 10);
    log.sync();
    let second = followed_by_others(&mut log);
    log.hard(1, hard(2, 1, 1));
    log.entry(1, 3, 2, 10);
    log.sync_proved();
    let (mut next, first) = Log::restart(lost_untold(&log, second), 8);
    let sound = &first.groups[&GroupId(1)].sound;
    assert_eq!((sound.last.0, sound.beyond[0].index.0), (1, 3));
    assert!(sound.end.is_some() && sound.beyond.len() == 1);
    next.sync_proved();
    let again = next.disk.recover();
    let found = &again.groups[&GroupId(1)];
    let indexes: Vec<u64> = found.entries.iter().map(|entry| entry.index.0).collect();
    assert_eq!(indexes, [1], "{found:#?}");
}

#[test]
fn a_vote_that_was_lost_is_still_lost_at_the_next_start() {
    // The head of the second start's segment repeats the vote that the first one has found. It lies
    // behind the hole, and is older than what the hole took.
    let mut log = Log::fresh(16 * BLOCK);
    log.base(1, 0, 0);
    log.base(2, 0, 0);
    log.hard(1, hard(1, 1, 0));
    log.entry(1, 1, 1, 10);
    log.sync();
    log.hard(1, hard(2, 2, 0));
    log.sync();
    let vote = followed_by_others(&mut log);
    log.entry(2, 5, 1, 10);
    log.sync_proved();
    let (mut second, first) = Log::restart(lost_untold(&log, vote), 8);
    let found = &first.groups[&GroupId(1)];
    assert!(matches!(found.status, GroupLogStatus::Damaged { .. }));
    assert!(!found.sound.vote_is_known);
    second.sync_proved();
    let again = second.disk.recover();
    let found = &again.groups[&GroupId(1)];
    assert!(
        !matches!(found.status, GroupLogStatus::Intact),
        "{found:#?}"
    );
    assert_eq!(found.hard.term.0, 1, "the later term is gone");
    let sound = &found.sound;
    assert!(!sound.vote_is_known && sound.end.is_none() && sound.beyond.is_empty());
}

#[test]
fn the_place_of_a_headless_segment_lies_before_the_next_one() {
    // The heads of two segments are damaged, and a later write went astray over the footer of the first
    // of them. It says that it lies beyond the second, and so says nothing about its segment.
    let log = sample();
    let mut later = sample();
    for index in 4..8 {
        later.entry(1, index, 2, 3000);
        later.submit();
    }
    let footer = log
        .batches
        .iter()
        .find(|b| b.segment == 2 && b.header.flags == FOOTER);
    let place = footer.expect("segment 2 is full").offset;
    let third = log.batches.iter().find(|b| b.segment == 3);
    let third = third.expect("there is a third").header.lsn.0;
    // Its segment would begin behind the third, and what it says is durable lies behind that.
    let begins = |header: &BatchHeader| header.lsn.0 - place as u64;
    let headers = later.batches.iter().map(|batch| batch.header).rev();
    let mut flying = later.flying.iter().rev().zip(headers);
    let fits = |header: &BatchHeader| (third + 1..header.durable_lsn.0).contains(&begins(header));
    let (astray, _) = flying.find(|(_, header)| fits(header)).expect("one fits");
    let mut disk = log.disk.clone();
    for segment in [2, 3] {
        corrupt(&log, &mut disk, |b| {
            b.segment == segment && b.header.flags == SEG_HEAD
        });
    }
    let mut bytes = vec![0; astray.batch.encoded_len()];
    astray.batch.encode_into(&mut bytes);
    disk.files.get_mut(&2).expect("a file")[place..place + BLOCK].copy_from_slice(&bytes[..BLOCK]);
    let recovered = disk.recover();
    assert_eq!(recovered.segments, [1, 2, 3], "{recovered:#?}");
    check(&recovered, &log.acked(), "two heads and a footer");
}

/// The groups that a batch says anything of.
fn groups_in(log: &Log, batch: &Sealed) -> BTreeSet<u16> {
    let file = Bytes::copy_from_slice(&log.disk.files[&batch.segment]);
    let (_, records) = BatchHeader::read(&file, batch.offset).expect("it is intact");
    let groups = Records::new(records).map(|record| match record.expect("it was written") {
        Record::Entry { group, .. } | Record::HardState { group, .. } => vec![group.0],
        Record::Base(base) => vec![base.group.0],
        Record::GroupTable(rows) => rows.iter().map(|row| row.group.0).collect(),
        Record::SegmentHead(_) | Record::Footer(_) | Record::Recap(_) => Vec::new(),
    });
    groups.flatten().collect()
}

/// Many small batches, each of few of 6 groups; the entries of a group are replaced now and then.
fn many_batches(seed: u64) -> Log {
    let mut prng = Prng::new(seed);
    let mut log = Log::fresh(16 * BLOCK);
    let mut groups = BTreeMap::new();
    for group in 1..=6 {
        log.base(group, 0, 0);
        log.hard(group, hard(1, 1, 0));
        groups.insert(group, (0, 1));
    }
    log.sync();
    for _ in 0..60 {
        for _ in 0..1 + prng.below(3) {
            let group = 1 + prng.below(6) as u16;
            let (last, term) = groups.get_mut(&group).expect("one of six");
            match prng.below(4) {
                0 => {
                    *term += 1;
                    log.hard(group, hard(*term, 1 + prng.below(3) as u32, 0));
                }
                1 => {
                    *last = prng.below(*last + 1) + 1;
                    *term += 1;
                    log.entry(group, *last, *term, 30);
                }
                _ => {
                    *last += 1;
                    log.entry(group, *last, *term, prng.below(900) as usize);
                }
            }
        }
        log.submit();
        while log.flying.len() > prng.below(3) as usize {
            log.complete(0);
        }
    }
    log.sync_proved();
    log
}

#[test]
fn a_batch_that_is_damaged_puts_no_group_in_doubt_but_those_in_it() {
    let (mut told, mut whole) = (0, 0);
    for seed in 1..=8 {
        let log = many_batches(seed);
        let acked = log.acked();
        let with_next = log.batches.iter().zip(&log.batches[1..]);
        let is_told = |batch: &Sealed| {
            batch.header.batch_seq > 1 && is_proved(&log.batches, batch.header.lsn)
        };
        for (batch, next) in with_next.filter(|(batch, _)| is_told(batch)) {
            let mut disk = log.disk.clone();
            corrupt(&log, &mut disk, |b| b.header.lsn == batch.header.lsn);
            let recovered = disk.recover();
            let context = format!("seed {seed}, batch {}", batch.header.batch_seq);
            assert_eq!(outcome(&recovered), "corrupt", "{context}");
            let fates = check(&recovered, &acked, &context);
            let named = groups_in(&log, batch);
            let is_cleared = next.header.flags == SEG_HEAD || batch.header.flags == SEG_HEAD;
            for (group, fate) in fates {
                let is_untouched = is_cleared || !named.contains(&group);
                assert!(
                    fate == Fate::Whole || !is_untouched,
                    "{context}: group {group} is not in it: {recovered:#?}"
                );
                told += usize::from(fate == Fate::Reported);
                whole += usize::from(fate == Fate::Whole && named.contains(&group));
                if fate == Fate::Reported {
                    let found = &recovered.groups[&GroupId(group)];
                    assert!(
                        found.sound.end.is_some() && found.sound.vote_is_known,
                        "{context}"
                    );
                }
            }
        }
    }
    // Entries that are missing are; a hard state is not, since the next batch says it again.
    assert!(told > 100 && whole > 20, "{told} {whole}");
}

#[test]
fn batches_that_are_damaged_together_are_told_by_the_one_behind_them() {
    let log = many_batches(3);
    let acked = log.acked();
    let is_small = |batches: &[Sealed]| batches.iter().all(|b| b.header.flags == 0);
    let named = |run: &[Sealed]| -> BTreeSet<u16> {
        let groups = run[1..4].iter().flat_map(|batch| groups_in(&log, batch));
        groups.collect()
    };
    let mut runs = log.batches.windows(5).filter(|run| is_small(run));
    let run = runs.find(|run| named(run).len() < 6);
    let run = run.expect("five in a segment, and a group that is not in them");
    let mut disk = log.disk.clone();
    for batch in &run[1..4] {
        corrupt(&log, &mut disk, |b| b.header.lsn == batch.header.lsn);
    }
    let recovered = disk.recover();
    let fates = check(&recovered, &acked, "three in a row");
    let named = named(run);
    for (group, fate) in fates {
        assert!(fate == Fate::Whole || named.contains(&group), "{group}");
    }
}

#[test]
fn what_is_told_of_a_hole_is_the_vote_the_base_and_what_lies_before_it() {
    let mut log = Log::fresh(16 * BLOCK);
    for group in 1..=3 {
        log.base(group, 0, 0);
        log.hard(group, hard(1, 1, 0));
        log.entry(group, 1, 1, 10);
        log.entry(group, 2, 1, 10);
    }
    log.sync();
    // Group 1 votes; group 2 gets a checkpoint in place of its log; another replaces the last of group 3.
    log.hard(1, hard(7, 2, 0));
    let mut installed = wal_kit::base(2, 9, 3);
    installed.log_start_lsn = log.writer.end_lsn();
    log.append(Record::Base(installed.clone()));
    log.entry(3, 2, 2, 10);
    log.sync();
    let lost = log.batches.last().expect("a batch").header.lsn;
    log.entry(2, 10, 3, 10);
    log.entry(3, 3, 3, 10);
    log.sync_proved();
    let mut disk = log.disk.clone();
    corrupt(&log, &mut disk, |b| b.header.lsn == lost);
    let recovered = disk.recover();
    check(&recovered, &log.acked(), "told");
    let [one, two, three] = [1, 2, 3].map(|group| &recovered.groups[&GroupId(group)]);
    assert_eq!(one.status, GroupLogStatus::Intact);
    assert_eq!(one.hard, hard(7, 2, 0));
    assert_eq!(two.status, GroupLogStatus::Intact);
    assert_eq!(two.bases, [installed], "what it replaces is void");
    let indexes: Vec<u64> = two.entries.iter().map(|entry| entry.index.0).collect();
    assert_eq!(indexes, [10]);
    assert!(matches!(three.status, GroupLogStatus::Damaged { .. }));
    assert_eq!(three.sound.last.0, 1, "as it was");
    assert_eq!(three.sound.beyond[0].index.0, 3);
    assert_eq!(
        three.sound.end.map(|(index, term)| (index.0, term.0)),
        Some((3, 3))
    );
}

#[test]
fn what_a_start_has_judged_is_told_by_no_recap() {
    // The head that a second process begins with says where the log before it ends, and whom it has
    // found damaged. With it gone nobody is believed.
    let log = many_batches(5);
    let (mut second, _) = Log::restart(log.disk.clone(), 8);
    second.entry(1, 1, 99, 10);
    second.sync();
    second.entry(1, 2, 99, 10);
    second.sync_proved();
    let first = second.batches.first().expect("its head").header;
    assert_eq!(first.flags, SEG_HEAD);
    let mut disk = second.disk.clone();
    corrupt(&second, &mut disk, |b| b.header.lsn == first.lsn);
    let recovered = disk.recover();
    check(&recovered, &second.acked(), "its head");
    let is_whole = |group: &u16| is_intact(&recovered, *group);
    assert!(!(2..=6).any(|group| is_whole(&group)), "{recovered:#?}");
}

#[test]
fn of_two_bases_at_one_index_the_newer_is_in_force() {
    // A group without a leader is checkpointed where it was: its next base replaces the newest, whose files
    // then go. What batches say again of those before them must not bring it back.
    let mut log = Log::fresh(64 * BLOCK);
    log.base(1, 0, 0);
    log.hard(1, hard(1, 1, 0));
    for index in 1..=3 {
        log.entry(1, index, 1, 10);
    }
    log.base(1, 2, 1);
    log.sync();
    for (file, batches_more) in [(7, 1), (8, 1), (9, 6)] {
        let mut base = wal_kit::base(1, 3, 1);
        let root = base.root.as_mut().expect("it is above 0");
        root.file = file;
        log.append(Record::Base(base));
        log.sync();
        for batches in 0..batches_more {
            let recovered = log.disk.recover();
            let group = &recovered.groups[&GroupId(1)];
            let bases = group.bases.iter();
            let bases: Vec<_> = bases
                .map(|base| (base.index.0, base.root.map(|root| root.file)))
                .collect();
            let before = wal_kit::base(1, 2, 1).root.map(|root| root.file);
            let wanted = [(3, Some(file)), (2, before)];
            assert_eq!(bases, wanted, "after {batches} more batches");
            if batches + 1 < batches_more {
                log.hard(1, hard(1, 1, batches));
                log.sync();
            }
        }
    }
}

#[test]
fn corrupt_footer() {
    let (recovered, acked) = damaged(|log, disk| {
        corrupt(log, disk, |b| b.segment == 1 && b.header.flags == FOOTER);
    });
    assert_eq!(outcome(&recovered), "corrupt");
    let fates = check(&recovered, &acked, "corrupt footer");
    assert!(
        fates.values().all(|fate| *fate == Fate::Whole),
        "{recovered:#?}"
    );
}

#[test]
fn missing_segment() {
    for number in 1..=4 {
        let (recovered, acked) = damaged(|_, disk| {
            disk.files.remove(&number);
        });
        let context = format!("segment {number} is missing");
        if number < 4 {
            check(&recovered, &acked, &context);
            assert!(
                recovered
                    .groups
                    .keys()
                    .any(|id| !is_intact(&recovered, id.0))
            );
        } else {
            // Segment 3 has no footer: the next one need not exist.
            assert_eq!(outcome(&recovered), "clean", "{context}");
        }
    }
}

#[test]
fn missing_successor() {
    let (recovered, acked) = damaged(|_, disk| {
        disk.files.retain(|number, _| *number <= 2);
    });
    assert_eq!(outcome(&recovered), "corrupt");
    check(&recovered, &acked, "missing successor");
}

#[test]
fn missing_among_prepared() {
    let (recovered, acked) = damaged(|_, disk| {
        disk.files.remove(&3);
    });
    assert_eq!(outcome(&recovered), "corrupt");
    check(&recovered, &acked, "missing among prepared");
}

#[test]
fn swapped_segments() {
    for (a, b) in [(1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4)] {
        let (recovered, acked) = damaged(|_, disk| {
            let (one, other) = (disk.files[&a].clone(), disk.files[&b].clone());
            disk.files.insert(a, other);
            disk.files.insert(b, one);
        });
        let context = format!("segments {a} and {b} swapped: {recovered:#?}");
        // Blank in place of the first and its content behind the last is a recycled segment to the
        // eye; only the groups show what is missing.
        let is_told = outcome(&recovered) == "corrupt" || !is_intact(&recovered, 2);
        assert!(is_told, "{context}");
        check(&recovered, &acked, &context);
    }
}

#[test]
fn duplicated_segment() {
    for (from, to) in [(1, 2), (1, 3), (2, 3), (2, 1), (3, 2), (3, 1)] {
        let (recovered, acked) = damaged(|_, disk| {
            let copy = disk.files[&from].clone();
            disk.files.insert(to, copy);
        });
        let context = format!("segment {to} holds a copy of {from}");
        assert_eq!(outcome(&recovered), "corrupt", "{context}: {recovered:#?}");
        check(&recovered, &acked, &context);
    }
}

#[test]
fn short_segment() {
    let (recovered, acked) = damaged(|_, disk| {
        let file = disk.files.get_mut(&2).expect("a file");
        file.truncate(2 * BLOCK);
    });
    assert_eq!(outcome(&recovered), "corrupt");
    check(&recovered, &acked, "short segment");
}

#[test]
fn broken_chain() {
    // Two logs that differ in one batch of the same length: the other's batch fits in all but the
    // chain.
    let (mut log, mut other) = (Log::fresh(SEGMENT), Log::fresh(SEGMENT));
    for (log, term) in [(&mut log, 1), (&mut other, 2)] {
        log.base(1, 0, 0);
        log.hard(1, hard(term, 1, 0));
        log.sync();
        log.entry(1, 1, term, 10);
        log.sync_proved();
    }
    let place = log.batches[1].offset;
    let foreign = other.disk.files[&1][place..place + BLOCK].to_vec();
    let file = log.disk.files.get_mut(&1).expect("a file");
    file[place..place + BLOCK].copy_from_slice(&foreign);
    let recovered = log.disk.recover();
    assert_eq!(outcome(&recovered), "corrupt", "{recovered:#?}");
    check(&recovered, &log.acked(), "broken chain");
}

#[test]
fn broken_seal() {
    let mut log = sample();
    let mut bad = wal_kit::entry(3, 3, 1, 10);
    bad.crc ^= 1;
    log.append(Record::Entry {
        group: GroupId(3),
        incarnation: wal_kit::LIFE,
        entry: bad,
    });
    log.sync();
    log.entry(1, 4, 2, 9);
    log.sync_proved();
    let recovered = log.disk.recover();
    assert_eq!(outcome(&recovered), "corrupt");
    let fates = check(&recovered, &log.acked(), "broken seal");
    assert_eq!(fates[&1], Fate::Whole, "the next entry clears group 1");
    assert_eq!(fates[&3], Fate::Reported);
}

#[test]
fn judged_tail() {
    // Two of four writes under way reach the disk, with a hole before them: cut. A new process
    // goes on; what lies behind the cut stays void for ever.
    let log = four_in_flight();
    let mut disk = log.disk.clone();
    disk.write(&log.flying[0]);
    disk.write(&log.flying[2]);
    let (mut second, recovered) = Log::restart(disk, 8);
    assert_eq!(outcome(&recovered), "torn");
    let last = |recovered: &Recovered, group: u16| {
        let log = &recovered.groups[&GroupId(group)];
        log.entries.last().map_or(0, |entry| entry.index.0)
    };
    let index = last(&recovered, 1);
    second.entry(1, index + 1, 5, 10);
    second.sync_proved();
    let (mut third, recovered) = Log::restart(second.disk.clone(), 9);
    assert_eq!(outcome(&recovered), "clean", "{recovered:#?}");
    check(&recovered, &second.acked(), "judged tail");
    assert_eq!(last(&recovered, 1), index + 1);
    // And twice: a torn batch in the second log too.
    third.sync();
    third.entry(1, index + 2, 5, 5000);
    third.submit();
    let batch = third.batches.last().expect("a batch").clone();
    third.disk.write(&third.flying[0]);
    third.disk.files.get_mut(&batch.segment).expect("a file")[batch.offset + 4500] ^= 4;
    let acked = third.acked();
    let (mut fourth, recovered) = Log::restart(third.disk.clone(), 10);
    assert_eq!(outcome(&recovered), "torn");
    check(&recovered, &acked, "torn again");
    fourth.sync_proved();
    let recovered = fourth.disk.recover();
    assert_eq!(outcome(&recovered), "clean");
    check(&recovered, &acked, "after the second restart");
}

#[test]
fn lost_rest() {
    // As above, but a manifest proves that the hole was acknowledged: its place and all behind it
    // are lost. The next process says so, and the batch behind the hole does not come back later.
    let log = four_in_flight();
    let mut disk = log.disk.clone();
    disk.write(&log.flying[0]);
    disk.write(&log.flying[2]);
    let hole = log.batches[log.batches.len() - 3].header.lsn;
    let first = disk.recover_with(Lsn(hole.0 + 1)).expect("ours");
    assert_eq!(outcome(&first), "corrupt");
    let mut second = Log::start(disk, first.start.clone(), model_of(&first), 8);
    second.sync_proved();
    let recovered = second.disk.recover();
    assert_eq!(outcome(&recovered), "corrupt", "{recovered:#?}");
    let written = second.writer.end_lsn().0 - first.start.lsn.0;
    assert_eq!(recovered.bytes, first.bytes + written, "{recovered:#?}");
}

#[test]
fn passed_over() {
    // The footer and the next head are under way; only the head reaches the disk. The footer's
    // place is cut, and the next process passes the second segment over.
    let mut log = Log::fresh(SEGMENT);
    log.base(1, 0, 0);
    log.hard(1, hard(1, 1, 0));
    log.sync();
    log.entry(1, 1, 1, 10);
    log.sync();
    log.entry(1, 2, 1, 10);
    log.submit();
    let head = log.flying.iter().position(|write| write.segment == 2);
    let head = log.flying[head.expect("the segment rolls")].clone();
    let mut disk = log.disk.clone();
    disk.write(&head);
    let (mut second, recovered) = Log::restart(disk, 8);
    assert_eq!(outcome(&recovered), "torn");
    assert_eq!(recovered.segments, [1]);
    check(&recovered, &log.acked(), "passed over");
    second.entry(1, 2, 2, 20);
    second.sync_proved();
    let recovered = second.disk.recover();
    assert_eq!(outcome(&recovered), "clean", "{recovered:#?}");
    check(&recovered, &second.acked(), "passed over, read again");
    assert_eq!(recovered.segments.first(), Some(&1));
    assert!(!recovered.segments.contains(&2), "{:?}", recovered.segments);
    let dropped = second.drop_segments();
    assert!(dropped.contains(&2), "void files are dropped: {dropped:?}");
    check(&second.disk.recover(), &second.acked(), "void file dropped");
}

#[test]
fn blank_successor() {
    let log = sample();
    assert!(log.disk.files[&4].iter().all(|byte| *byte == 0));
    assert_eq!(outcome(&log.disk.recover()), "clean");
}

/// A log that goes round: segments are dropped and recycled without zeroing.
fn recycled() -> Log {
    let mut log = Log::fresh(SEGMENT);
    for group in 1..=2 {
        log.base(group, 0, 0);
        log.hard(group, hard(1, 1, 0));
    }
    for index in 1..=40 {
        log.entry(1, index, 1, 900);
        log.entry(2, index, 1, 90);
        log.sync();
        if index % 5 == 0 {
            log.base(1, index, 1);
            log.base(2, index - 1, 1);
            log.sync();
        }
        log.drop_segments();
    }
    log.sync_proved();
    log
}

#[test]
fn stale_successor() {
    let log = recycled();
    assert!(log.disk.files.len() < 8, "segments were dropped");
    let (last, bytes) = log.disk.files.last_key_value().expect("files");
    assert!(
        bytes.iter().any(|byte| *byte != 0),
        "segment {last} holds old content"
    );
    let recovered = log.disk.recover();
    assert_eq!(outcome(&recovered), "clean", "{recovered:#?}");
    let fates = check(&recovered, &log.acked(), "stale successor");
    assert!(fates.values().all(|fate| *fate == Fate::Whole));
    assert!(
        recovered
            .groups
            .values()
            .all(|group| group.bases.len() == 2)
    );
}

#[test]
fn recycled_log_survives_a_bad_block_anywhere() {
    let log = recycled();
    let acked = log.acked();
    for (number, bytes) in &log.disk.files {
        for offset in (0..bytes.len()).step_by(512) {
            let mut disk = log.disk.clone();
            let file = disk.files.get_mut(number).expect("a file");
            let end = (offset + 4096).min(file.len());
            file[offset..end].fill(0xa5);
            let recovered = disk.recover();
            check(
                &recovered,
                &acked,
                &format!("segment {number}, byte {offset}"),
            );
        }
    }
}

#[test]
fn crash_at_every_step_of_a_recycled_log() {
    // Between any two batches, with any one of those under way lost: what was acknowledged stays.
    let mut log = Log::fresh(SEGMENT);
    for group in 1..=2 {
        log.base(group, 0, 0);
        log.hard(group, hard(1, 1, 0));
    }
    let mut seed = 100;
    for index in 1..=30 {
        log.entry(1, index, 1, 700);
        log.entry(2, index, 1, 70);
        if index % 4 == 0 {
            log.base(1, index - 2, 1);
            log.base(2, index - 2, 1);
        }
        log.submit();
        for lost in 0..log.flying.len() {
            let mut disk = log.disk.clone();
            for (nth, write) in log.flying.iter().enumerate() {
                if nth != lost {
                    disk.write(write);
                }
            }
            seed += 1;
            let acked = log.acked();
            let (mut next, recovered) = Log::restart(disk, seed);
            let context = format!("entry {index}, write {lost} lost");
            assert!(recovered.damage.is_empty(), "{context}: {recovered:#?}");
            check(&recovered, &acked, &context);
            next.sync();
            let again = next.disk.recover();
            assert!(again.damage.is_empty(), "{context}: {again:#?}");
            check(&again, &acked, &context);
            next.drop_segments();
            check(&next.disk.recover(), &acked, &context);
        }
        log.sync();
        log.drop_segments();
    }
}

#[test]
fn a_damaged_group_stays_reported_after_restarts() {
    let (log, mut disk) = (sample(), sample().disk);
    corrupt(&log, &mut disk, |b| b.segment == 1 && b.offset == 2 * BLOCK);
    let acked = log.acked();
    let first = check(&disk.recover(), &acked, "first start");
    let reported = first.iter().filter(|(_, fate)| **fate == Fate::Reported);
    let reported = reported.map(|(group, _)| *group).collect::<Vec<_>>();
    assert!(!reported.is_empty());
    for seed in 8..12 {
        let (mut next, _) = Log::restart(disk.clone(), seed);
        next.sync_proved();
        next.drop_segments();
        disk = next.disk;
        let again = disk.recover();
        check(&again, &acked, "later start");
        for group in &reported {
            assert!(
                !is_intact(&again, *group),
                "group {group} after start {seed}"
            );
        }
    }
}

#[test]
fn what_is_not_read_changes_nothing() {
    const QUIET: usize = 4 * BLOCK;
    let mut log = Log::fresh(64 * BLOCK);
    log.base(1, 0, 0);
    log.hard(1, hard(1, 1, 0));
    log.sync();
    for index in 1..=10 {
        // One is longer than a batch, and than what must be quiet.
        let bytes = match index {
            5 => 20 * BLOCK,
            3 | 6 | 9 => 2 * BLOCK,
            _ => 100,
        };
        log.entry(1, index, 1, bytes);
        log.sync();
    }
    log.sync_proved();
    let used = usize::try_from(log.writer.end_lsn().0).expect("small");
    let (found, read) = log.disk.recover_in_part(QUIET);
    assert_eq!(found, log.disk.recover());
    let files = log.disk.files.len();
    let most = used + files * (QUIET + PIECE_BYTES);
    assert!(
        read <= most && most < files * 64 * BLOCK,
        "{read} of {used}"
    );
    for block in 0..used / BLOCK + 1 {
        for byte in [0x00, 0xa5] {
            let mut disk = log.disk.clone();
            let file = disk.files.get_mut(&1).expect("the log is in it");
            file[block * BLOCK..][..BLOCK].fill(byte);
            let (found, _) = disk.recover_in_part(QUIET);
            // Printed, these are megabytes.
            let same = found == disk.recover();
            assert!(same, "block {block} filled with {byte:#x}");
        }
    }
}

#[test]
fn a_later_entry_voids_the_suffix() {
    let log = sample();
    let recovered = log.disk.recover();
    let group = &recovered.groups[&GroupId(1)];
    let terms = group.entries.iter().map(|e| (e.index.0, e.term.0));
    assert_eq!(terms.collect::<Vec<_>>(), [(1, 1), (2, 1), (3, 2)]);
}

#[test]
fn logs_of_others_are_refused() {
    let log = sample();
    let recover = |change: fn(&mut LogIdentity)| {
        let mut identity = wal_kit::identity();
        change(&mut identity);
        let mut recovery = Recovery::with_segment_bytes(identity, SEGMENT);
        for (number, bytes) in &log.disk.files {
            recovery.feed(*number, bytes.clone().into());
        }
        recovery.finish().expect_err("not ours").to_string()
    };
    let cluster = recover(|id| id.cluster.0[0] = 0);
    assert!(cluster.contains("belongs to cluster c1c1"), "{cluster}");
    let disk = recover(|id| id.disk.0[0] = 0);
    assert!(disk.contains("belongs to disk d1d1"), "{disk}");
    let shard = recover(|id| id.shard.0 = 4);
    assert_eq!(shard, "segment 1 belongs to shard 3, not to 4");
    let set = recover(|id| id.wal_set = 2);
    assert_eq!(set, "segment 1 belongs to WAL set 1, not to 2");
}

#[test]
fn a_base_that_voids_what_comes_after_it_is_refused() {
    for (start, is_refused) in [(0, false), (2 * BLOCK as u64, true)] {
        let mut log = Log::fresh(SEGMENT);
        log.append(Record::Base(BaseRecord {
            log_start_lsn: Lsn(start),
            ..wal_kit::base(1, 0, 0)
        }));
        log.sync();
        log.entry(1, 1, 1, 10);
        log.sync();
        let found = log.disk.recover_with(Lsn(0));
        let said = found.err().map(|error| error.to_string());
        let wanted = "segment 1, batch at byte 4096: the log start of the record at byte 0 of the \
                      batch makes no sense";
        assert_eq!(said.as_deref(), is_refused.then_some(wanted));
    }
}

#[test]
fn a_newer_machine_version_is_refused() {
    let mut log = sample();
    let mut entry = wal_kit::entry(1, 4, 2, 3);
    entry.machine_version = 9;
    log.append(Record::Entry {
        group: GroupId(1),
        incarnation: wal_kit::LIFE,
        entry: entry.sealed(GroupId(1), wal_kit::LIFE),
    });
    log.sync();
    let error = log.disk.recover_with(Lsn(0)).expect_err("refused");
    let text = "segment 4 holds machine version 9; this version knows up to 2";
    assert_eq!(error.to_string(), text);
}

#[test]
fn an_empty_directory_is_a_fresh_log() {
    let recovered = wal_kit::Disk::new(SEGMENT).recover();
    assert_eq!(recovered, Recovered::fresh());
}

#[test]
fn an_empty_directory_with_a_proof_is_damage() {
    let disk = wal_kit::Disk::new(SEGMENT);
    let recovered = disk.recover_with(Lsn(8192)).expect("ours");
    assert_eq!(outcome(&recovered), "corrupt");
    assert!(recovered.start.lsn >= Lsn(8192));
}

proptest! {
    #[test]
    fn no_bytes_make_recovery_panic(
        files in vec((1_u64..6, vec(any::<u8>(), 0..3 * BLOCK)), 0..4),
        proof in 0_u64..100_000,
    ) {
        let mut disk = wal_kit::Disk::new(2 * BLOCK);
        disk.files.extend(files);
        let _ = disk.recover_with(Lsn(proof));
    }

    #[test]
    fn no_mutation_loses_silently(
        edits in vec((1_u64..5, 0..SEGMENT, vec(any::<u8>(), 1..600)), 1..4),
    ) {
        let log = sample();
        let mut disk = log.disk.clone();
        let mut is_tail = false;
        let beacon = log.batches.last().expect("a beacon");
        for (number, at, bytes) in edits {
            let file = disk.files.get_mut(&number).expect("a file");
            let end = (at + bytes.len()).min(SEGMENT);
            file[at..end].copy_from_slice(&bytes[..end - at]);
            // Beacon and last batch both gone: the documented residual.
            is_tail |= number == beacon.segment && end > beacon.offset;
        }
        let recovered = disk.recover_with(Lsn(0));
        if let Ok(recovered) = recovered
            && !is_tail
        {
            check(&recovered, &log.acked(), "mutated");
        }
    }
}

/// A run of random appends, completions, drops, crashes with torn writes, and at last a flipped bit.
fn random_history(seed: u64) {
    let mut prng = Prng::new(seed);
    let mut log = Log::fresh(6 * BLOCK);
    for start in 0..5 {
        // Per group: last index, term, highest base.
        let mut state = BTreeMap::new();
        for group in 1..=3_u16 {
            let known = log.acked().get(&group).cloned();
            if known.is_none() {
                log.base(group, 0, 0);
            }
            let known = known.unwrap_or_default();
            let (last, term) = known
                .entries
                .last_key_value()
                .map_or((known.base, 1), |(index, entry)| (*index, entry.term.0));
            let term = term.max(known.hard.term.0) + 1;
            log.hard(group, hard(term, 1, 0));
            state.insert(group, (last, term, known.base));
        }
        for _ in 0..prng.below(60) {
            let group = 1 + prng.below(3) as u16;
            let (last, term, base) = state.get_mut(&group).expect("all are there");
            match prng.below(12) {
                0 => {
                    *term += 1;
                    log.hard(group, hard(*term, 1 + prng.below(3) as u32, *base));
                }
                1 if *last > *base => {
                    // A new leader overwrites a part of what was not applied.
                    *term += 1;
                    log.hard(group, hard(*term, 0, *base));
                    *last = *base + prng.below(*last - *base);
                }
                2 => {
                    let acked = log.acked();
                    let acked = acked.get(&group).map(|model| &model.entries);
                    let entry = acked.and_then(|entries| entries.last_key_value());
                    if let Some((index, entry)) = entry.filter(|(i, _)| **i > *base && **i <= *last)
                        && is_current(&log, group, entry)
                    {
                        *base = *index;
                        log.base(group, *index, entry.term.0);
                    }
                }
                3 | 4 => {
                    log.submit();
                }
                5 | 6 if !log.flying.is_empty() => {
                    log.complete(prng.below(log.flying.len() as u64) as usize);
                }
                7 => {
                    log.drop_segments();
                    log.writer.beacon();
                }
                _ => {
                    *last += 1;
                    log.entry(group, *last, *term, prng.below(3000) as usize);
                }
            }
        }
        let acked = log.acked();
        let context = format!("seed {seed}, start {start}");
        let mut disk = log.disk.clone();
        for write in &log.flying {
            tear(&mut prng, &mut disk, write);
        }
        let recovered = disk.recover();
        assert!(recovered.damage.is_empty(), "{context}: {recovered:#?}");
        let fates = check(&recovered, &acked, &context);
        assert!(fates.values().all(|fate| *fate == Fate::Whole), "{context}");
        rot(&mut prng, &log, &acked, &context);
        (log, _) = Log::restart(disk, seed << 8 | start);
    }
}

/// Whether the newest entry appended at this index is this one.
fn is_current(log: &Log, group: u16, entry: &rrq::base::entry::Entry) -> bool {
    let all = log.model(rrq::wal::writer::Ticket(u64::MAX));
    all[&group].entries.get(&entry.index.0) == Some(entry)
}

/// Some sectors of a write reach the disk: all, none, or any.
fn tear(prng: &mut Prng, disk: &mut wal_kit::Disk, write: &rrq::wal::writer::WalWrite) {
    let before = disk.files[&write.segment].clone();
    disk.write(write);
    let at = write.offset as usize;
    let kind = prng.below(3);
    let file = disk.files.get_mut(&write.segment).expect("a file");
    for sector in (at..at + write.batch.encoded_len()).step_by(512) {
        if kind == 0 || (kind == 1 && prng.chance(1, 3)) {
            file[sector..sector + 512].copy_from_slice(&before[sector..sector + 512]);
        }
    }
}

/// A bit flips in what was acknowledged and proved.
fn rot(prng: &mut Prng, log: &Log, acked: &Model, context: &str) {
    let live = log.batches.iter().filter(|batch| {
        log.disk.files.contains_key(&batch.segment) && batch.header.lsn < log.writer.durable_lsn()
    });
    let live = live.collect::<Vec<_>>();
    if live.is_empty() {
        return;
    }
    for _ in 0..20 {
        let batch = live[prng.below(live.len() as u64) as usize];
        let mut disk = log.disk.clone();
        let file = disk.files.get_mut(&batch.segment).expect("a file");
        let place = batch.offset + prng.below(batch.len as u64) as usize;
        file[place] ^= 1 << prng.below(8);
        let recovered = disk.recover_with(log.writer.durable_lsn()).expect("ours");
        let context = format!("{context}, batch {} rots", batch.header.batch_seq);
        assert_eq!(outcome(&recovered), "corrupt", "{context}");
        check(&recovered, acked, &context);
    }
}

#[test]
fn random_histories() {
    for seed in 0..1000 {
        random_history(seed);
    }
}

#[cfg(feature = "bug-bank")]
#[test]
fn a_planted_cut_is_seen() {
    use rrq::base::bugs::{Bug, plant};
    plant(Some(Bug::CutOnProof));
    let (recovered, acked) = damaged(|log, disk| {
        corrupt(log, disk, |b| b.segment == 1 && b.offset == 2 * BLOCK);
    });
    plant(None);
    assert_eq!(outcome(&recovered), "torn");
    assert_eq!(wal_kit::fate(&recovered, &acked, 2), Fate::Lost);
}
