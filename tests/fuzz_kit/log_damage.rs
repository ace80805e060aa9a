//! A sound log, and bytes that are no part of it behind what was acknowledged: nothing is lost.

use super::Input;
use super::wal_kit::{BLOCK, Fate, Log, check, hard};
use std::collections::BTreeMap;

const SEGMENT: usize = 8 * BLOCK;
const STEPS_MAX: usize = 200;

/// The history of a log as bytes, then what is written behind its durable end.
pub(super) fn damage(input: &[u8]) -> bool {
    let mut input = Input(input);
    let mut log = Log::fresh(SEGMENT);
    history(&mut log, &mut input);
    let acked = log.acked();
    let durable = log.writer.durable_lsn().0;
    // Where the batches lie that the durable end covers; all other blocks may hold anything.
    let mut kept: BTreeMap<u64, usize> = BTreeMap::new();
    for batch in &log.batches {
        if batch.header.lsn.0 < durable {
            let end = kept.entry(batch.segment).or_default();
            *end = (*end).max(batch.offset + batch.len);
        }
    }
    let mut disk = log.disk.clone();
    let numbers = disk.files.keys().copied().collect::<Vec<_>>();
    while !input.is_empty() && !numbers.is_empty() {
        let number = numbers[usize::from(input.u8()) % numbers.len()];
        let from = kept.get(&number).copied().unwrap_or(0);
        let at = from + usize::from(input.u16()) % (SEGMENT - from + 1);
        let len = usize::from(input.u8());
        let bytes = input.take(len);
        let file = disk.files.get_mut(&number).expect("a number of the list");
        let end = (at + bytes.len()).min(file.len());
        file[at..end].copy_from_slice(&bytes[..end - at]);
    }
    let recovered = disk.recover();
    let fates = check(&recovered, &acked, "behind the durable end");
    for (group, fate) in fates {
        assert!(
            fate == Fate::Whole,
            "group {group} is {fate:?}: {:?}",
            recovered.damage
        );
    }
    acked.values().any(|group| !group.entries.is_empty())
}

#[derive(Clone, Copy, Default)]
struct Member {
    term: u64,
    last: u64,
    base: u64,
}

/// Drives the log until a step says that it ends.
fn history(log: &mut Log, input: &mut Input<'_>) {
    let mut members = [Member::default(); 3];
    for id in 0..3 {
        members[usize::from(id)].term = 1;
        log.base(id, 0, 0);
        log.hard(id, hard(1, 1, 0));
    }
    log.sync_proved();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            return;
        }
        let step = input.u8();
        let id = u16::from(step >> 6) % 3;
        let member = &mut members[usize::from(id)];
        match step % 16 {
            0..=5 => {
                member.last += 1;
                let len = usize::from(input.u8()) * 8;
                log.entry(id, member.last, member.term, len);
            }
            6 => {
                // Another leader voids a suffix.
                member.term += 1;
                let back = u64::from(input.u8()) % 4;
                member.last = member.last.saturating_sub(back).max(member.base + 1);
                log.hard(id, hard(member.term, 2, member.base));
                log.entry(id, member.last, member.term, 100);
            }
            7 => {
                member.term += 1;
                log.hard(id, hard(member.term, u32::from(input.u8()), member.base));
            }
            8 => {
                // A checkpoint is of what was applied, hence durable.
                log.sync();
                member.base = member.last;
                log.base(id, member.last, member.term);
            }
            9 | 10 => log.sync(),
            11 => log.sync_proved(),
            12 => {
                log.submit();
            }
            13 => {
                // A later write may be there before an earlier one.
                if !log.flying.is_empty() {
                    let nth = usize::from(input.u8()) % log.flying.len();
                    let write = log.flying[nth].clone();
                    log.disk.write(&write);
                }
            }
            14 => {
                if !log.flying.is_empty() {
                    log.complete(0);
                }
            }
            _ => return,
        }
    }
}
