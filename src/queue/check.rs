//! A proof of all invariants of the machine, by counting everything again: O(n), for tests, the
//! simulator and inspection.
//!
//! Classes, orders and summaries are made anew from records and keys and compared with those that were
//! kept up change by change; counters, names, owners and bytes likewise.

use crate::base::ids::{JobId, Partition, QueueUid, SessionId};
use crate::base::limits::{FINISHED_HELD_BYTES, KEY_HELD_BYTES};
use crate::base::units::{GroupTime, WallTime};
use crate::queue::deadlines::Deadlines;
use crate::queue::job_queue::JobQueue;
use crate::queue::keys::bucket_of;
use crate::queue::leaf::{leaf_of, slot_of};
use crate::queue::outcome::read_outcome;
use crate::queue::partition::{PartitionState, held_bytes};
use crate::queue::record::Record;
use crate::queue::sessions::{WINDOWS, window_len};
use crate::queue::settings::admit;
use crate::queue::tree::{NEVER, Seen, Summary};
use crate::queue::view::{JobEnd, JobState, QueueStats};
use std::collections::{BTreeMap, BTreeSet};

macro_rules! hold {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}

/// What is derived over all partitions.
#[derive(Default)]
struct Derived {
    deadlines: Deadlines,
    held: BTreeMap<SessionId, BTreeSet<JobId>>,
    held_bytes: u64,
}

/// Proves every invariant of a machine.
///
/// # Errors
/// The first that does not hold, as a sentence.
pub fn check(machine: &JobQueue) -> Result<(), String> {
    hold!(
        machine.time <= GroupTime::MAX,
        "time {:?} exceeds 48 bits",
        machine.time
    );
    let mut derived = Derived::default();
    check_queues(machine)?;
    for ((queue, number), partition) in &machine.partitions {
        check_partition(machine, *queue, *number, partition, &mut derived)
            .map_err(|why| format!("queue {queue} partition {number}: {why}"))?;
    }
    hold!(
        derived.deadlines == machine.links.deadlines,
        "deadlines are {:?}, records say {:?}",
        machine.links.deadlines,
        derived.deadlines
    );
    hold!(
        derived.held_bytes == machine.links.held_bytes,
        "jobs are said to hold {} bytes, they hold {}",
        machine.links.held_bytes,
        derived.held_bytes
    );
    check_sessions(machine, &mut derived.held)
}

fn check_queues(machine: &JobQueue) -> Result<(), String> {
    let (queues, names) = (machine.queues.len(), machine.names.len());
    hold!(queues == names, "{queues} queues have {names} names");
    let homed: usize = machine
        .queues
        .values()
        .map(|record| record.groups.len())
        .sum();
    let told = machine.homed;
    hold!(
        homed == told,
        "queues have {homed} partitions, {told} are counted"
    );
    for (uid, record) in &machine.queues {
        let named = machine.names.get(&record.name);
        hold!(named == Some(uid), "queue {uid} has the name of {named:?}");
        let counter = uid.counter();
        let given = machine.queue_counter;
        hold!(
            (1..=given).contains(&counter),
            "queue {uid} is above the counter {given}"
        );
        let home = uid.home();
        hold!(home == machine.group, "queue {uid} is at home in {home}");
        let first = record.groups.first();
        hold!(first == Some(&home), "queue {uid} begins in {first:?}");
        for number in record.places().remove(&home).unwrap_or_default() {
            let head = machine.partitions.get(&(*uid, number));
            let in_force = head.map(|state| state.head.config);
            let wanted = record.config;
            hold!(
                in_force == Some(wanted),
                "queue {uid} partition {number} has {in_force:?} in force, not {wanted:?}"
            );
        }
    }
    check_places(machine)?;
    check_changes(machine)
}

/// Each partition is here because a queue at home here has it here, or because another group said so.
fn check_places(machine: &JobQueue) -> Result<(), String> {
    for ((uid, number), state) in &machine.partitions {
        let group = if uid.home() == machine.group {
            let record = machine.queues.get(uid);
            record.and_then(|record| record.groups.get(usize::from(number.0)))
        } else {
            let told = machine.home_applied.contains_key(&uid.home());
            let inside = (1..state.head.config.settings.partitions).contains(&number.0);
            (told && inside).then_some(&machine.group)
        };
        hold!(
            group == Some(&machine.group),
            "queue {uid} partition {number} is here, its queue has it in {group:?}"
        );
        let (settings, version) = (state.head.config.settings, machine.version);
        hold!(
            admit(&settings, version).is_ok(),
            "queue {uid} partition {number} has {settings:?} in version {version}"
        );
    }
    Ok(())
}

/// What other groups are asked for is what the queues at home here are.
fn check_changes(machine: &JobQueue) -> Result<(), String> {
    let mut asked = BTreeSet::new();
    let mut last = None;
    for (group, change) in machine.outbox.iter() {
        let uid = change.queue;
        hold!(
            asked.insert((uid, group)) && last < Some((group, change.home_index)),
            "group {group} is asked twice for queue {uid}, or out of order"
        );
        last = Some((group, change.home_index));
        let record = machine.queues.get(&uid);
        let config = record.map(|record| record.config);
        hold!(
            change.config == config,
            "group {group} is asked for {change:?}, queue {uid} is {config:?}"
        );
        let places = record.map(|record| record.places().remove(&group));
        hold!(
            places.is_none_or(|places| places.as_ref() == Some(&change.partitions)),
            "group {group} is asked for {change:?}, which it does not have"
        );
        let foreign = group != machine.group && uid.home() == machine.group;
        hold!(
            foreign && change.home == machine.group && machine.outbox.is_changing(uid),
            "group {group} is asked for {change:?} by another than its home"
        );
    }
    let told = machine.outbox.len();
    hold!(
        asked.len() == told,
        "{} changes are outstanding, {told} are counted",
        asked.len()
    );
    hold!(
        machine.version >= 2 || (told == 0 && machine.home_applied.is_empty()),
        "version 1 has changes of partitions"
    );
    Ok(())
}

fn check_partition(
    machine: &JobQueue,
    queue: QueueUid,
    number: Partition,
    partition: &PartitionState,
    derived: &mut Derived,
) -> Result<(), String> {
    let mut stats = QueueStats::default();
    for (leaf_number, leaf) in partition.leaves.here() {
        leaf.check()
            .map_err(|why| format!("leaf {leaf_number}: {why}"))?;
        let live: Vec<usize> = leaf.live_slots().collect();
        let used = leaf
            .records()
            .iter()
            .enumerate()
            .filter(|(_, record)| record.state.is_some());
        let used: Vec<usize> = used.map(|(slot, _)| slot).collect();
        hold!(
            live == used && !live.is_empty(),
            "leaf {leaf_number} marks {live:?}, uses {used:?}"
        );
        for (slot, reason) in leaf.reasons() {
            let fits = live.contains(&usize::from(*slot)) && (1..=256).contains(&reason.len());
            hold!(
                fits,
                "leaf {leaf_number} has a reason of {} bytes at {slot}",
                reason.len()
            );
        }
        for slot in live {
            let seq = leaf_number * 64 + slot as u64;
            hold!(slot == slot_of(seq), "sequence {seq} stands at slot {slot}");
            let next = partition.head.next_seq;
            hold!(seq < next, "sequence {seq} is live, the next is {next}");
            let record = &leaf.records()[slot];
            record
                .rules()
                .map_err(|why| format!("sequence {seq}: {why}: {record:?}"))?;
            let len = leaf.body(slot).body().payload.len();
            let told = record.payload_len as usize;
            hold!(
                len == told,
                "sequence {seq} has {len} bytes, its record says {told}"
            );
            let id = JobId::new(machine.group, queue, number, seq);
            derive(id, record, &mut stats, derived);
            derived.held_bytes += held_bytes(leaf.body(slot));
        }
    }
    for (bucket, keys) in partition.keys.tree().here() {
        let keys = keys.keys();
        let sorted = keys.is_sorted_by(|a, b| a.hash < b.hash) && !keys.is_empty();
        hold!(sorted, "bucket {bucket} of keys is not in order");
        for key in keys {
            hold!(
                u64::from(bucket_of(key.hash)) == bucket,
                "key {:?} is in bucket {bucket}",
                key.hash
            );
            let next = partition.head.next_seq;
            hold!(
                key.seq < next,
                "a key names {}, the next sequence is {next}",
                key.seq
            );
            stats.keys += 1;
            derived.held_bytes += KEY_HELD_BYTES as u64;
        }
    }
    check_history(machine, (queue, number), partition, &mut stats)?;
    derived.held_bytes += stats.retained * FINISHED_HELD_BYTES as u64;
    derived.held_bytes += partition.history.result_bytes();
    partition.leaves.check()?;
    partition.keys.check()?;
    partition.history.pages().check()?;
    let (place, none) = ((queue, number), Summary::default());
    let deadlines = &mut derived.deadlines;
    deadlines.note_jobs(place, &none, partition.leaves.summary());
    deadlines.note_keys(place, NEVER, partition.keys.first_expiry());
    if !(partition.leaves.is_here() && partition.keys.tree().is_here()) {
        return check_totals(partition, &stats);
    }
    let totals = partition.head.stats;
    let live = QueueStats {
        enqueued_total: totals.enqueued_total,
        leased_total: totals.leased_total,
        completed_total: totals.completed_total,
        nacked_total: totals.nacked_total,
        expired_total: totals.expired_total,
        dead_total: totals.dead_total,
        cancelled_total: totals.cancelled_total,
        ..stats
    };
    hold!(
        totals == live,
        "counters are {totals:?}, records say {live:?}"
    );
    check_oldest(partition)
}

/// What of the counters can be told where pages are absent: `here` is counted over the others.
fn check_totals(partition: &PartitionState, here: &QueueStats) -> Result<(), String> {
    hold!(
        partition.leaves.all_in_flight_are_here(),
        "a leaf with a job in flight is absent"
    );
    let told = partition.head.stats;
    hold!(
        partition.fits_totals(),
        "counters are {told:?}, leaves have {:?}",
        partition.leaves.summary()
    );
    let known = (told.in_flight, told.retained);
    let counted = (here.in_flight, here.retained);
    hold!(
        known == counted,
        "in flight and retained are {known:?}, records say {counted:?}"
    );
    Ok(())
}

fn check_history(
    machine: &JobQueue,
    place: (QueueUid, Partition),
    partition: &PartitionState,
    stats: &mut QueueStats,
) -> Result<(), String> {
    let (head, history) = (&partition.head, &partition.history);
    let mut result_bytes = 0;
    let mut next = head.last_place + 1 - head.stats.retained;
    for (number, page) in history.pages().from(0) {
        hold!(
            page.first == next && page.first / 64 == number && !page.jobs.is_empty(),
            "page {number} of finished jobs begins at {}, place {next} comes next",
            page.first
        );
        for job in &page.jobs {
            let seq = job.seq;
            let live = match partition.leaves.page(leaf_of(seq)) {
                Some(Seen::Here(leaf)) => leaf.records()[slot_of(seq)].state.is_some(),
                _ => false,
            };
            let over = seq < head.next_seq && !live;
            hold!(over, "sequence {seq} is retained and not over");
            hold!(
                history.place_of(seq) == Some(next) && history.at(next) == Some(job),
                "sequence {seq} is not found at its place {next}"
            );
            let len = job.result_len();
            hold!(
                len <= 4096 && (job.result.is_none() || job.end == JobEnd::Completed),
                "sequence {seq} has a result of {len} bytes at its end {:?}",
                job.end
            );
            result_bytes += len;
            stats.retained += 1;
            next += 1;
        }
        let (last, here) = (head.last_place, (next - 1) / 64);
        hold!(
            next == last + 1 || next % 64 == 0,
            "page {here} of finished jobs ends before its last place"
        );
    }
    let last = head.last_place;
    hold!(
        next == last + 1 && history.len() == stats.retained,
        "finished jobs end before place {next}, the last is {last}"
    );
    let told = history.result_bytes();
    hold!(
        result_bytes == told,
        "results have {result_bytes} bytes, {told} are counted"
    );
    stats.bytes += result_bytes;
    hold!(
        !partition.keeps_too_much() || machine.links.surplus.contains(&place),
        "it keeps more finished jobs than it may, and nothing will drop them"
    );
    Ok(())
}

fn check_oldest(partition: &PartitionState) -> Result<(), String> {
    let mut pending = partition.leaves.jobs().filter(|(_, record)| {
        let state = record.state;
        state == Some(JobState::Pending)
    });
    let oldest = pending
        .next()
        .map(|(_, record)| WallTime(record.enqueued_at));
    let told = partition.stats().oldest_pending;
    hold!(
        told == oldest,
        "the oldest pending job is of {told:?}, records say {oldest:?}"
    );
    Ok(())
}

fn derive(id: JobId, record: &Record, stats: &mut QueueStats, derived: &mut Derived) {
    match record.state {
        Some(JobState::Pending) => stats.pending += 1,
        Some(JobState::Delayed) => stats.delayed += 1,
        Some(JobState::InFlight) => stats.in_flight += 1,
        Some(JobState::Dead) => stats.dead += 1,
        None => {}
    }
    stats.bytes += u64::from(record.payload_len);
    if record.owner != 0 {
        derived
            .held
            .entry(SessionId(record.owner))
            .or_default()
            .insert(id);
    }
}

fn check_sessions(
    machine: &JobQueue,
    held: &mut BTreeMap<SessionId, BTreeSet<JobId>>,
) -> Result<(), String> {
    let sessions = &machine.links.sessions;
    let mut bytes = 0;
    for (id, slot) in sessions.iter() {
        let last = sessions.last_id();
        hold!(
            (1..=last).contains(&id.0),
            "session {id} is above the counter {last}"
        );
        let owned = held.remove(&id).unwrap_or_default();
        hold!(
            owned == slot.held,
            "session {id} holds {:?}, records say {owned:?}",
            slot.held
        );
        let page = &slot.page;
        hold!(
            !page.ended || owned.is_empty(),
            "session {id} is ended and holds {owned:?}"
        );
        for (window, state) in WINDOWS.into_iter().zip(&page.windows) {
            for (seq, outcome) in state.outcomes.iter() {
                let low = state.lowest;
                let inside = seq >= low && seq - low < window_len(window) && seq <= state.last;
                hold!(
                    inside,
                    "session {id} keeps number {seq} outside its window at {low}"
                );
                read_outcome(outcome, machine.version)
                    .map_err(|why| format!("session {id} number {seq}: {why}"))?;
            }
        }
        bytes += page.bytes();
    }
    hold!(
        held.is_empty(),
        "jobs are leased by sessions that are not there: {held:?}"
    );
    let told = sessions.bytes();
    hold!(
        told == bytes,
        "sessions count {told} bytes of outcomes, they keep {bytes}"
    );
    Ok(())
}
