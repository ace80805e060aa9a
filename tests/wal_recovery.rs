//! Recovery of the log against every cut, every flipped bit, every subset of writes under way, and
//! files that are missing, short, swapped or stale. The rows of the decision table in
//! `src/wal/recovery.rs` are tests of the same names.

mod wal_kit;

use rrq::base::ids::{GroupId, LogIndex};
use rrq::base::units::Lsn;
use rrq::wal::batch::{BEACON, FOOTER, SEG_HEAD};
use rrq::wal::recovery::{GroupLogStatus, Recovered};
use std::collections::BTreeMap;
use wal_kit::{BLOCK, Fate, Log, Model, Sealed, check, hard};

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
    // Each batch of the four holds an entry of each group.
    for index in 2..=5 {
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
    log.entry(1, 4, 2, 9);
    log.sync();
    let acked = log.model(rrq::wal::writer::Ticket(6));
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
        assert_eq!(outcome(&recovered), "corrupt", "{context}");
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
