//! Random commands against a naive model of the job machine, all invariants after each.
//!
//! Four groups, each with a machine and a model (`model.rs`); each begins at version 1 and is raised
//! at some time. What a home group asks of others is delivered late, over and over, and out of turn
//! where it was delivered before. What machine and model must agree on: every outcome, and now and
//! then every job, counter, session, change and due time. In between a machine is frozen, written as
//! pages, loaded again and goes on; a frozen state must not see what happens after it.
//!
//! `QUEUE_MODEL_SEED=n` runs one seed alone.

mod draw;
mod model;
mod partition;

use draw::Draw;
use model::{GROUPS, Model, Session};
use partition::{Job, Queue};
use rrq::base::checksum::Hash128;
use rrq::base::ids::{GroupId, JobId, LogIndex, Partition, SessionId};
use rrq::base::prng::{Prng, mix};
use rrq::base::units::GroupTime;
use rrq::queue::command::*;
use rrq::queue::view::*;
use rrq::queue::{FrozenState, JobQueue, check::check, decode_body, encode_body};
use std::collections::BTreeMap;

const ZERO: Partition = Partition(0);
const COMMANDS_PER_SEED: u64 = 125_000;

fn compare(machine: &mut JobQueue, model: &Model) {
    let queues: Vec<(QueueInfo, QueueStats)> = model
        .homes
        .values()
        .map(|info| (info.clone(), model.queues[&(info.uid, ZERO)].stats()))
        .collect();
    assert_eq!(machine.queues(), queues);
    assert_eq!(machine.time(), GroupTime(model.time));
    assert_eq!(machine.next_due(), model.next_due());
    let waits = model
        .waiting()
        .iter()
        .any(|(class, _, _)| *class == 1 || *class == 3);
    assert_eq!(machine.waits_on_time(), waits);
    for info in model.homes.values() {
        assert_eq!(machine.queue_by_name(&info.name).as_ref(), Some(info));
    }
    compare_changes(machine, model);
    for ((uid, number), queue) in &model.queues {
        let (uid, number) = (*uid, *number);
        assert_eq!(machine.partition_stats(uid, number), Ok(queue.stats()));
        let ready = queue.ready();
        let open = if queue.config.paused {
            0
        } else {
            ready.len() as u64
        };
        assert_eq!(machine.ready(uid, number), Ok(open));
        let views = |jobs: Vec<&Job>| -> Vec<JobView> {
            jobs.iter().map(|job| job.view(queue, model.time)).collect()
        };
        let peeked = |state| machine.peek(uid, number, state, usize::MAX).unwrap();
        assert_eq!(peeked(JobState::Pending), views(ready));
        for state in [JobState::Delayed, JobState::InFlight, JobState::Dead] {
            assert_eq!(peeked(state), views(queue.with(state).collect()));
        }
        compare_steps(machine, model, queue);
        for key in &queue.keys {
            let live = queue.jobs.iter().find(|job| job.seq == key.seq);
            let wanted = live
                .map(|job| job.view(queue, model.time))
                .ok_or(Rejection::Finished);
            assert_eq!(machine.job_by_key(uid, number, &key.text), wanted);
        }
        for seq in queue.next_seq.saturating_sub(3)..queue.next_seq + 2 {
            let live = queue.jobs.iter().find(|job| job.seq == seq);
            let gone = if seq < queue.next_seq {
                Rejection::Finished
            } else {
                Rejection::NotFound
            };
            let wanted = live.map(|job| job.view(queue, model.time)).ok_or(gone);
            assert_eq!(machine.job(queue.id(seq)), wanted);
            let over = queue.finished.iter().find(|job| job.id == queue.id(seq));
            assert_eq!(machine.finished(queue.id(seq)).as_ref(), over);
        }
    }
    compare_sessions(machine, model);
}

fn compare_changes(machine: &JobQueue, model: &Model) {
    let next: Vec<(GroupId, &PartitionChange)> = machine.next_changes().collect();
    let first = |group| model.outbox.iter().find(move |(to, _)| *to == group);
    let wanted: Vec<(GroupId, &PartitionChange)> = (0..GROUPS)
        .filter_map(|group| first(GroupId(group)))
        .map(|(group, change)| (*group, change))
        .collect();
    assert_eq!(next, wanted);
    assert_eq!(machine.has_changes(), !wanted.is_empty());
    for (_, change) in &model.outbox {
        assert!(machine.is_changing(change.queue));
    }
    for uid in model.homes.keys() {
        let changing = model.outbox.iter().any(|(_, change)| change.queue == *uid);
        assert_eq!(machine.is_changing(*uid), changing);
    }
}

/// Scans in steps, of live jobs by a filter and of finished ones.
fn compare_steps(machine: &JobQueue, model: &Model, queue: &Queue) {
    let filter = JobFilter {
        reason_contains: "r".into(),
        attempts_min: 1,
        ..JobFilter::default()
    };
    for state in [JobState::Pending, JobState::Dead] {
        let mut scan = JobScan {
            queue: queue.uid,
            partition: queue.number,
            state,
            filter: filter.clone(),
            cursor: None,
            limit: 2,
            bodies: true,
        };
        let (mut seen, mut scanned) = (Vec::new(), 0);
        loop {
            let page = machine.scan(&scan).unwrap();
            assert_eq!(page.matched, page.jobs.len() as u64);
            seen.extend(page.jobs);
            scanned += page.scanned;
            scan.cursor = page.next;
            if page.next.is_none() {
                break;
            }
        }
        let all: Vec<&Job> = match state {
            JobState::Pending => queue.ready(),
            _ => queue.with(state).collect(),
        };
        assert_eq!(scanned, all.len() as u64);
        let fit = all.iter().filter(|job| job.fits(&filter));
        let wanted: Vec<JobView> = fit.map(|job| job.view(queue, model.time)).collect();
        assert_eq!(seen, wanted);
    }
    let (mut seen, mut before) = (Vec::new(), 0);
    loop {
        let page = machine.scan_finished(queue.uid, queue.number, before, 2);
        let page = page.unwrap();
        seen.extend(page.jobs);
        before = page.next;
        if before == 0 {
            break;
        }
    }
    seen.reverse();
    assert_eq!(seen, queue.finished);
}

fn compare_sessions(machine: &JobQueue, model: &Model) {
    let session = |(id, slot): (&u32, &Session)| SessionView {
        id: SessionId(*id),
        epoch: slot.epoch,
        ended: slot.ended,
        leases: model.held(*id).len() as u64,
        worker_timeout_ms: slot.timeout,
        last_seq: slot.last,
    };
    let sessions: Vec<SessionView> = model.sessions.iter().map(session).collect();
    assert_eq!(machine.sessions(), sessions);
    assert_eq!(machine.session_count(), sessions.len());
}

/// Writes the machine as pages and bodies, and reads them back.
fn reload(machine: &JobQueue, group: GroupId, slice: usize) -> JobQueue {
    let mut frozen = machine.freeze();
    let mut stored = BTreeMap::new();
    let mut cursor = frozen.bodies();
    loop {
        let bodies = cursor.next_bodies(slice);
        if bodies.is_empty() {
            break;
        }
        for body in bodies {
            let bytes = encode_body(&body.body.body());
            assert_eq!(bytes.len(), body.body.encoded_len());
            assert_eq!(decode_body(&bytes).as_ref(), Ok(&body.body.body()));
            let at = BodyLocation {
                file: 1,
                offset: 0,
                len: bytes.len() as u32,
            };
            assert!(stored.insert(body.job, (bytes, at)).is_none());
        }
    }
    let mut pages = Vec::new();
    loop {
        let more = frozen.next_pages(slice);
        if more.is_empty() {
            break;
        }
        pages.extend(more);
    }
    let mut loaded = JobQueue::absent(group);
    loaded
        .load(&pages, &mut |job| stored.remove(&job))
        .expect("its own pages load");
    assert!(
        stored.is_empty(),
        "bodies of jobs that are not live: {stored:?}"
    );
    loaded
}

/// One group: the machine, its model, and what has happened to it.
struct Group {
    machine: JobQueue,
    model: Model,
    draw: Draw,
    index: u64,
    held_still: (FrozenState, Hash128),
}

impl Group {
    fn new(group: GroupId, seed: u64, first: bool) -> Self {
        let machine = JobQueue::new(group, 0);
        let held_still = (machine.freeze(), machine.state_hash());
        Self {
            machine,
            model: Model::new(group),
            draw: Draw {
                prng: Prng::new(seed),
                sent: Vec::new(),
                first,
            },
            index: 0,
            held_still,
        }
    }

    /// Applies a command to both, who must agree.
    fn apply(&mut self, seed: u64, command: &Command) -> Outcome {
        let prng = &mut self.draw.prng;
        let step = match prng.below(50) {
            0 => 2_000,
            1..10 => prng.below(200),
            _ => prng.below(4),
        };
        let back = if prng.chance(1, 30) { 50 } else { 0 };
        let time = (self.model.time + step).saturating_sub(back);
        self.index += 1;
        let index = self.index;
        let at = ApplyAt {
            index: LogIndex(index),
            time: GroupTime(time),
        };
        let wanted = self.model.apply(at.index, time, command);
        let outcome = self.machine.apply(at, command);
        let group = self.model.group;
        assert_eq!(
            outcome, wanted,
            "seed {seed} group {group} entry {index} at {time}: {command:?}"
        );
        if let Err(why) = check(&self.machine) {
            panic!("seed {seed} group {group} entry {index} at {time}: {command:?}: {why}");
        }
        if index.is_multiple_of(16) {
            compare(&mut self.machine, &self.model);
        }
        if index.is_multiple_of(1000) {
            let hash = self.machine.state_hash();
            let slice = self.draw.pick(&[1, 5000, usize::MAX]);
            let loaded = reload(&self.machine, group, slice);
            assert_eq!(
                loaded.state_hash(),
                hash,
                "seed {seed} group {group} entry {index}: pages differ"
            );
            self.machine = loaded;
            check(&self.machine).unwrap();
            compare(&mut self.machine, &self.model);
        }
        if index.is_multiple_of(777) {
            self.look_at_what_was_held_still(seed);
        }
        let jobs: usize = self
            .model
            .queues
            .values()
            .map(|queue| queue.jobs.len())
            .sum();
        assert!(jobs <= 400, "{jobs} live jobs");
        outcome
    }

    fn look_at_what_was_held_still(&mut self, seed: u64) {
        let now = (self.machine.freeze(), self.machine.state_hash());
        let (mut frozen, hash) = std::mem::replace(&mut self.held_still, now);
        let (group, index) = (self.model.group, self.index);
        let mut still = JobQueue::absent(group);
        let mut stored = BTreeMap::new();
        for body in frozen.bodies().next_bodies(usize::MAX) {
            let at = BodyLocation {
                file: 1,
                offset: 0,
                len: 0,
            };
            stored.insert(body.job, (encode_body(&body.body.body()), at));
        }
        let pages = frozen.next_pages(usize::MAX);
        still
            .load(&pages, &mut |job: JobId| stored.remove(&job))
            .expect("frozen pages load");
        assert_eq!(
            still.state_hash(),
            hash,
            "seed {seed} group {group} entry {index}: not held still"
        );
    }
}

/// What carries changes between groups: late, again, and in any order of the groups.
struct Courier {
    prng: Prng,
    /// Changes that were handed to their group before.
    handed: Vec<(GroupId, PartitionChange)>,
}

impl Courier {
    /// The group that gets something, and what.
    fn next(&mut self, groups: &[Group]) -> Option<(usize, Command)> {
        let old = !self.handed.is_empty() && self.prng.chance(1, 2);
        let (to, change) = if old {
            let at = self.prng.below(self.handed.len() as u64) as usize;
            let (to, change) = self.handed[at].clone();
            if self.prng.chance(2, 3) {
                self.handed.swap_remove(at);
                let told = Op::PartitionsChanged {
                    group: to,
                    home_index: change.home_index,
                };
                return Some((usize::from(change.home.0), plain(told)));
            }
            (to, change)
        } else {
            let home = self.prng.below(groups.len() as u64) as usize;
            let next: Vec<_> = groups[home].machine.next_changes().collect();
            let at = self.prng.below(next.len().max(1) as u64) as usize;
            let (to, change) = next.get(at)?;
            (*to, (*change).clone())
        };
        // A group of version 1 does nothing yet, so that it is asked again.
        if groups[usize::from(to.0)].model.version >= 2 {
            self.handed.push((to, change.clone()));
        }
        Some((
            usize::from(to.0),
            plain(Op::ChangePartitions(Box::new(change))),
        ))
    }
}

fn plain(op: Op) -> Command {
    Command { session: None, op }
}

fn run(seed: u64, commands: u64) {
    let mut groups: Vec<Group> = (0..GROUPS)
        .map(|group| Group::new(GroupId(group), mix(seed ^ u64::from(group) << 32), false))
        .collect();
    let mut courier = Courier {
        prng: Prng::new(mix(!seed)),
        handed: Vec::new(),
    };
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for step in 1..=commands {
        for (n, group) in (1u64..).zip(&mut groups) {
            // One after the other, in the first tenth.
            if step == n * commands / 40 {
                group.machine.raise_version(2);
                group.model.version = 2;
            }
        }
        let carried = match courier.prng.below(12) {
            0 => courier.next(&groups),
            _ => None,
        };
        let (at, command) = match carried {
            Some(carried) => carried,
            None => {
                let at = courier.prng.below(u64::from(GROUPS)) as usize;
                let group = &mut groups[at];
                (at, group.draw.command(&group.model))
            }
        };
        let outcome = groups[at].apply(seed, &command);
        tally(&mut outcomes, &outcome);
        if matches!(command.op, Op::ChangePartitions(_)) && outcome == Outcome::Done {
            *outcomes.entry("Changed".to_owned()).or_default() += 1;
        }
    }
    for group in &mut groups {
        compare(&mut group.machine, &group.model);
        let kept = group.model.queues.values().map(|queue| queue.last_place);
        *outcomes.entry("Retained".to_owned()).or_default() += kept.sum::<u64>();
    }
    assert!(outcomes["Retained"] > 0, "nothing was retained");
    // A run that meets only refusals proves nothing.
    for name in [
        "Done",
        "New",
        "Existing",
        "Leased",
        "LeaseLost",
        "Finished",
        "NotFound",
        "WrongState",
        "QueueChanged",
        "QuotaExceeded",
        "IdempotencyConflict",
        "IdempotencyWindowFull",
        "Superseded",
        "WindowExceeded",
        "SessionExpired",
        "Reattach",
        "Unsupported",
        "Invalid",
        "VersionMismatch",
        "QueueExists",
        "Attached",
        "Purged",
        "Draining",
        "Swept",
        "Changed",
    ] {
        assert!(
            outcomes.contains_key(name),
            "seed {seed} never met {name}: {outcomes:?}"
        );
    }
}

fn tally(outcomes: &mut BTreeMap<String, u64>, outcome: &Outcome) {
    let mut count = |name: &str| *outcomes.entry(name.to_owned()).or_default() += 1;
    match outcome {
        Outcome::Rejected(why) => count(&format!("{why:?}")),
        Outcome::Items(items) => items.iter().for_each(|item| match item {
            ItemOutcome::Done => count("Done"),
            ItemOutcome::Rejected(why) => count(&format!("{why:?}")),
        }),
        Outcome::Enqueued(items) => items.iter().for_each(|item| match item {
            Enqueued::New(_) => count("New"),
            Enqueued::Existing(_) => count("Existing"),
            Enqueued::Rejected(why) => count(&format!("{why:?}")),
        }),
        Outcome::Leased(grants) if !grants.is_empty() => count("Leased"),
        Outcome::Attached { .. } => count("Attached"),
        Outcome::Purged { .. } => count("Purged"),
        Outcome::Swept { matched, .. } if *matched != 0 => count("Swept"),
        _ => {}
    }
}

fn chosen(seeds: &[u64]) -> Vec<u64> {
    match std::env::var("QUEUE_MODEL_SEED") {
        Ok(seed) => vec![seed.parse().expect("QUEUE_MODEL_SEED is a number")],
        Err(_) => seeds.to_vec(),
    }
}

#[test]
fn machine_and_model_agree_on_fixed_seeds() {
    for seed in chosen(&[1, 2, 3, 4, 5, 6]) {
        run(seed, COMMANDS_PER_SEED);
    }
}

#[test]
fn machine_and_model_agree_on_fresh_seeds() {
    let entropy = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let first = mix(entropy.as_nanos() as u64);
    for seed in chosen(&[first, mix(first)]) {
        run(seed, COMMANDS_PER_SEED);
    }
}

/// What version 1 can do is the same in version 2, wherever in a history a group is raised.
fn raise_somewhere(seed: u64, commands: u64) {
    let mut first = Group::new(GroupId(1), seed, true);
    let mut raised = JobQueue::new(GroupId(1), 0);
    let at = Prng::new(mix(seed)).below(commands);
    let mut skipped = 0;
    for index in 1..=commands {
        if index == at {
            raised.raise_version(2);
        }
        let command = first.draw.command(&first.model);
        if is_beyond_version_1(&command.op) {
            skipped += 1;
            continue;
        }
        let outcome = first.apply(seed, &command);
        let at = ApplyAt {
            index: LogIndex(index - skipped),
            time: first.machine.time(),
        };
        let again = raised.apply(at, &command);
        assert_eq!(again, outcome, "seed {seed} entry {index}: {command:?}");
        if index.is_multiple_of(100) {
            compare(&mut raised, &first.model);
        }
    }
    assert!(skipped > 0, "nothing beyond version 1 was drawn");
}

/// Whether a group of version 1 refuses this as unsupported, or may.
fn is_beyond_version_1(op: &Op) -> bool {
    match op {
        Op::CreateQueue { settings, .. } | Op::AlterQueue { settings, .. }
            if settings.partitions != 1 || settings.retain != 0 =>
        {
            true
        }
        op => op.since() > 1,
    }
}

#[test]
fn raising_changes_nothing_that_version_1_can_do() {
    for seed in chosen(&[11, 12, 13, 14]) {
        raise_somewhere(seed, 10_000);
    }
}

/// A planted bug must be found, or the model proves nothing.
#[cfg(feature = "bug-bank")]
mod planted {
    use super::run;
    use rrq::base::bugs::{Bug, plant};

    #[test]
    #[should_panic(expected = "left == right")]
    fn a_stale_token_that_is_accepted_is_found() {
        plant(Some(Bug::StaleTokenAccepted));
        run(1, 20_000);
    }

    #[test]
    #[should_panic(expected = "left == right")]
    fn sessions_forgotten_by_a_checkpoint_are_found() {
        plant(Some(Bug::SessionsForgotten));
        run(1, 20_000);
    }
}
