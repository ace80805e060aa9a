//! Random commands against a naive model of the job machine, all invariants after each.
//!
//! The model keeps plain lists, looks through all of them for everything and knows nothing of
//! leaves, orders, pages or encodings. What both must agree on: every outcome, and now and then
//! every job, counter, session and due time. In between the machine is frozen, written as pages,
//! loaded again and goes on; a frozen state must not see what happens after it.
//!
//! `QUEUE_MODEL_SEED=n` runs one seed alone.

use bytes::Bytes;
use rrq::base::checksum::Hash128;
use rrq::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Token};
use rrq::base::prng::{Prng, mix};
use rrq::base::units::{GroupTime, WallTime};
use rrq::queue::command::*;
use rrq::queue::view::*;
use rrq::queue::{JobQueue, PagesNeeded, check::check, decode_body, encode_body};
use std::collections::BTreeMap;

const GROUP: GroupId = GroupId(5);
const ZERO: Partition = Partition(0);
const COMMANDS_PER_SEED: u64 = 125_000;

#[derive(Clone, Debug)]
struct Job {
    seq: u64,
    state: JobState,
    priority: u8,
    attempts: u16,
    max_attempts: u16,
    lease_ms: u32,
    /// Delayed or leased until; the flag says by which clock.
    when: u64,
    by_wall: bool,
    enqueued: u64,
    expires: u64,
    generation: u32,
    owner: u32,
    reason: Bytes,
    body: Body,
}

#[derive(Clone, Debug)]
struct Key {
    text: Bytes,
    seq: u64,
    payload: Bytes,
    expires: u64,
}

#[derive(Clone, Debug)]
struct Queue {
    info: QueueInfo,
    next_seq: u64,
    jobs: Vec<Job>,
    keys: Vec<Key>,
    totals: QueueStats,
}

#[derive(Clone, Debug)]
struct Session {
    epoch: u32,
    ended: bool,
    timeout: u32,
    lowest: [u64; 2],
    last: u64,
    outcomes: Vec<(usize, u64, Outcome)>,
}

#[derive(Default)]
struct Model {
    time: u64,
    offset: i64,
    queue_counter: u32,
    session_counter: u32,
    queues: BTreeMap<QueueUid, Queue>,
    sessions: BTreeMap<u32, Session>,
}

type Try<T> = Result<T, Rejection>;

fn job_id(queue: QueueUid, seq: u64) -> JobId {
    JobId::new(GROUP, queue, ZERO, seq)
}

fn backoff_ms(backoff: &Backoff, attempts: u16, id: JobId) -> u64 {
    let (base, cap) = (u128::from(backoff.base_ms), u128::from(backoff.cap_ms));
    let curve = match backoff.kind {
        BackoffKind::Fixed => base,
        BackoffKind::Linear => base * u128::from(attempts),
        BackoffKind::Exponential => {
            let factor = u128::from(backoff.factor_milli / 1000);
            base * factor.pow(u32::from(attempts) - 1)
        }
    };
    let wait = curve.min(cap) as u64;
    let raw = u128::from_be_bytes(id.to_bytes());
    let draw = mix(mix(mix((raw >> 64) as u64) ^ raw as u64) ^ u64::from(attempts));
    wait - draw % (wait * u64::from(backoff.jitter_percent) / 100 + 1)
}

impl Queue {
    fn with(&self, state: JobState) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(move |job| job.state == state)
    }

    fn take(&mut self, seq: u64) -> Job {
        let at = self.jobs.iter().position(|job| job.seq == seq).unwrap();
        self.jobs.remove(at)
    }

    fn job(&mut self, seq: u64) -> &mut Job {
        self.jobs.iter_mut().find(|job| job.seq == seq).unwrap()
    }

    fn die(&mut self, seq: u64, reason: &[u8]) {
        self.totals.dead_total += 1;
        if self.info.settings.dead == DeadPolicy::Drop {
            self.take(seq);
            return;
        }
        let job = self.job(seq);
        job.reason = Bytes::copy_from_slice(&reason[..reason.len().min(256)]);
        job.rest(JobState::Dead);
    }

    fn lose(&mut self, seq: u64, reason: &[u8]) {
        self.totals.expired_total += 1;
        let job = self.job(seq);
        if job.attempts == job.max_attempts {
            self.die(seq, reason);
        } else {
            job.rest(JobState::Pending);
        }
    }

    fn stats(&self) -> QueueStats {
        let count = |state| self.with(state).count() as u64;
        QueueStats {
            pending: count(JobState::Pending),
            delayed: count(JobState::Delayed),
            in_flight: count(JobState::InFlight),
            dead: count(JobState::Dead),
            bytes: self
                .jobs
                .iter()
                .map(|job| job.body.payload.len() as u64)
                .sum(),
            keys: self.keys.len() as u64,
            oldest_pending: self
                .with(JobState::Pending)
                .min_by_key(|job| job.seq)
                .map(|job| WallTime(job.enqueued)),
            ..self.totals
        }
    }

    /// Jobs in the order of leases.
    fn ready(&self) -> Vec<&Job> {
        let mut ready: Vec<&Job> = self.with(JobState::Pending).collect();
        ready.sort_by_key(|job| (job.priority, job.seq));
        ready
    }
}

impl Job {
    fn rest(&mut self, state: JobState) {
        self.state = state;
        self.when = 0;
        self.by_wall = false;
        self.owner = 0;
    }

    fn view(&self, queue: QueueUid, now: u64) -> JobView {
        let id = job_id(queue, self.seq);
        let leased = self.state == JobState::InFlight;
        let waits = leased || self.state == JobState::Delayed;
        JobView {
            id,
            state: self.state,
            priority: self.priority,
            attempts: self.attempts,
            max_attempts: self.max_attempts,
            run_at: self.by_wall.then_some(WallTime(self.when)),
            remaining_ms: (waits && !self.by_wall).then(|| self.when.saturating_sub(now)),
            enqueued_at: WallTime(self.enqueued),
            expires_at: (self.expires != 0).then_some(WallTime(self.expires)),
            token: leased.then_some(Token {
                job: id,
                lease_gen: self.generation,
            }),
            owner: (self.owner != 0).then_some(SessionId(self.owner)),
            last_failure: self.reason.clone(),
            body: self.body.clone(),
        }
    }
}

impl Model {
    fn wall(&self) -> u64 {
        GroupTime(self.time).wall(self.offset).0
    }

    fn apply(&mut self, time: u64, command: &Command) -> Outcome {
        self.time = self.time.max(time);
        let Some(call) = command.session else {
            return self.perform(&command.op, None);
        };
        let polls = matches!(command.op, Op::Lease { .. });
        let outside = matches!(
            command.op,
            Op::OpenSession { .. }
                | Op::CloseSession { .. }
                | Op::Attach { .. }
                | Op::EndLeases { .. }
                | Op::DropSession { .. }
                | Op::Advance { .. }
                | Op::SetWallOffset { .. }
        );
        if outside || polls != (call.window == Window::Polls) {
            return Outcome::Rejected(Rejection::Invalid);
        }
        let w = usize::from(polls);
        let size = if polls { 64 } else { 4096 };
        let Some(session) = self.sessions.get_mut(&call.id.0) else {
            return Outcome::Rejected(Rejection::SessionExpired);
        };
        let lowest = session.lowest[w].max(call.lowest);
        if call.seq < lowest {
            return Outcome::Rejected(Rejection::Superseded);
        }
        if call.seq >= lowest + size {
            return Outcome::Rejected(Rejection::WindowExceeded);
        }
        session.lowest[w] = lowest;
        session
            .outcomes
            .retain(|(window, seq, _)| *window != w || *seq >= lowest);
        let known = session
            .outcomes
            .iter()
            .find(|o| o.0 == w && o.1 == call.seq)
            .cloned();
        if let Some((_, _, outcome)) = known {
            return self.again(outcome);
        }
        session.last = session.last.max(call.seq);
        let outcome = self.perform(&command.op, Some(call.id.0));
        let forget = match &outcome {
            Outcome::Leased(grants) => grants.is_empty(),
            Outcome::Rejected(rejection) => *rejection == Rejection::Reattach,
            _ => false,
        };
        if !forget {
            let session = self.sessions.get_mut(&call.id.0).unwrap();
            session.outcomes.push((w, call.seq, outcome.clone()));
        }
        outcome
    }

    fn again(&self, outcome: Outcome) -> Outcome {
        let Outcome::Leased(grants) = outcome else {
            return outcome;
        };
        let still = |grant: Grant| {
            let queue = self.queues.get(&grant.token.job.queue())?;
            let job = queue
                .jobs
                .iter()
                .find(|job| job.seq == grant.token.job.seq())?;
            let valid = job.state == JobState::InFlight && job.generation == grant.token.lease_gen;
            let lease_ms = job.when.saturating_sub(self.time) as u32;
            valid.then_some(Grant { lease_ms, ..grant })
        };
        Outcome::Leased(grants.into_iter().filter_map(still).collect())
    }

    fn queue(&mut self, uid: QueueUid) -> Try<&mut Queue> {
        self.queues.get_mut(&uid).ok_or(Rejection::QueueChanged)
    }

    fn queue_of(&mut self, id: JobId) -> Try<&mut Queue> {
        if id.group() != GROUP || id.partition() != ZERO {
            return Err(Rejection::QueueChanged);
        }
        self.queue(id.queue())
    }

    fn leased(&mut self, token: Token) -> Try<(&mut Queue, Job)> {
        let queue = self.queue_of(token.job)?;
        let seq = token.job.seq();
        let job = queue
            .with(JobState::InFlight)
            .find(|job| job.seq == seq)
            .cloned();
        match job.filter(|job| job.generation == token.lease_gen) {
            Some(job) => Ok((queue, job)),
            None => Err(Rejection::LeaseLost),
        }
    }

    fn live(&mut self, id: JobId) -> Try<(&mut Queue, Job)> {
        let queue = self.queue_of(id)?;
        match queue.jobs.iter().find(|job| job.seq == id.seq()).cloned() {
            Some(job) => Ok((queue, job)),
            None if id.seq() < queue.next_seq => Err(Rejection::Finished),
            None => Err(Rejection::NotFound),
        }
    }

    fn perform(&mut self, op: &Op, session: Option<u32>) -> Outcome {
        self.try_perform(op, session)
            .unwrap_or_else(Outcome::Rejected)
    }

    fn each<T>(&mut self, items: &[T], mut one: impl FnMut(&mut Self, &T) -> Try<()>) -> Outcome {
        Outcome::Items(
            items
                .iter()
                .map(|item| match one(self, item) {
                    Ok(()) => ItemOutcome::Done,
                    Err(why) => ItemOutcome::Rejected(why),
                })
                .collect(),
        )
    }

    fn try_perform(&mut self, op: &Op, session: Option<u32>) -> Try<Outcome> {
        let (now, wall) = (self.time, self.wall());
        Ok(match op {
            Op::OpenSession { worker_timeout_ms } => {
                self.session_counter += 1;
                let timeout = if *worker_timeout_ms == 0 {
                    10_000
                } else {
                    *worker_timeout_ms
                };
                let fresh = Session {
                    epoch: 1,
                    ended: false,
                    timeout,
                    lowest: [1, 1],
                    last: 0,
                    outcomes: Vec::new(),
                };
                self.sessions.insert(self.session_counter, fresh);
                Outcome::SessionOpened {
                    session: SessionId(self.session_counter),
                    epoch: 1,
                }
            }
            Op::CloseSession { session } => {
                if !self.sessions.contains_key(&session.0) {
                    return Err(Rejection::SessionExpired);
                }
                self.lose_all(session.0);
                self.sessions.remove(&session.0);
                Outcome::Done
            }
            Op::Attach { session } => {
                let slot = self
                    .sessions
                    .get_mut(&session.0)
                    .ok_or(Rejection::SessionExpired)?;
                slot.epoch += 1;
                slot.ended = false;
                let epoch = slot.epoch;
                Outcome::Attached {
                    epoch,
                    tokens: self.held(session.0),
                }
            }
            Op::EndLeases { session, epoch } => {
                if self
                    .sessions
                    .get(&session.0)
                    .is_some_and(|slot| slot.epoch == *epoch)
                {
                    self.lose_all(session.0);
                    self.sessions.get_mut(&session.0).unwrap().ended = true;
                }
                Outcome::Done
            }
            Op::DropSession {
                session,
                epoch,
                last_seq,
            } => {
                let idle = self.held(session.0).is_empty();
                let slot = self.sessions.get(&session.0);
                if slot.is_some_and(|s| s.epoch == *epoch && s.last <= *last_seq && idle) {
                    self.sessions.remove(&session.0);
                }
                Outcome::Done
            }
            Op::CreateQueue {
                name,
                settings,
                must_be_new,
                ..
            } => {
                if name.is_empty() || name.contains(' ') {
                    return Err(Rejection::Invalid);
                }
                if let Some(queue) = self.queues.values().find(|queue| queue.info.name == *name) {
                    return match must_be_new {
                        true => Err(Rejection::QueueExists),
                        false => Ok(Outcome::Queue(queue.info.clone())),
                    };
                }
                settings_fit(settings)?;
                self.queue_counter += 1;
                let uid = QueueUid::new(GROUP, self.queue_counter).unwrap();
                let info = QueueInfo {
                    uid,
                    name: name.clone(),
                    version: 1,
                    paused: false,
                    draining: false,
                    groups: vec![GROUP],
                    settings: *settings,
                    created: false,
                };
                let queue = Queue {
                    info: info.clone(),
                    next_seq: 0,
                    jobs: Vec::new(),
                    keys: Vec::new(),
                    totals: QueueStats::default(),
                };
                self.queues.insert(uid, queue);
                Outcome::Queue(QueueInfo {
                    created: true,
                    ..info
                })
            }
            Op::AlterQueue {
                queue,
                expected_version,
                settings,
            } => {
                let info = &mut self.queue(*queue)?.info;
                if *expected_version != 0 && *expected_version != info.version {
                    return Err(Rejection::VersionMismatch);
                }
                settings_fit(settings)?;
                info.version += u32::from(info.settings != *settings);
                info.settings = *settings;
                Outcome::Queue(info.clone())
            }
            Op::DeleteQueue { queue } => {
                self.queues.remove(queue).ok_or(Rejection::QueueChanged)?;
                Outcome::Done
            }
            Op::PauseQueue { queue } => self.pause(*queue, true)?,
            Op::ResumeQueue { queue } => self.pause(*queue, false)?,
            Op::Purge {
                queue,
                partition,
                states,
            } => {
                if *partition != ZERO {
                    return Err(Rejection::QueueChanged);
                }
                let queue = self.queue(*queue)?;
                let before = queue.jobs.len();
                queue.jobs.retain(|job| match job.state {
                    JobState::Pending => !states.pending,
                    JobState::Delayed => !states.delayed,
                    JobState::InFlight => true,
                    JobState::Dead => !states.dead,
                });
                Outcome::Purged {
                    jobs: (before - queue.jobs.len()) as u64,
                }
            }
            Op::Enqueue {
                queue,
                partition,
                items,
            } => {
                if *partition != ZERO {
                    return Err(Rejection::QueueChanged);
                }
                let queue = self.queue(*queue)?;
                let one = |item| enqueue(queue, now, wall, item).unwrap_or_else(Enqueued::Rejected);
                Outcome::Enqueued(items.iter().map(one).collect())
            }
            Op::Lease {
                queue,
                partition,
                max,
                lease_ms,
                epoch,
            } => {
                if *max > 1024 {
                    return Err(Rejection::Invalid);
                }
                if let Some(id) = session {
                    let slot = &self.sessions[&id];
                    if slot.ended || slot.epoch != *epoch {
                        return Err(Rejection::Reattach);
                    }
                }
                if *partition != ZERO {
                    return Err(Rejection::QueueChanged);
                }
                let uid = *queue;
                let queue = self.queue(uid)?;
                let max = if queue.info.paused { 0 } else { *max as usize };
                let seqs: Vec<u64> = queue.ready().iter().take(max).map(|job| job.seq).collect();
                let default_ms = queue.info.settings.lease_ms;
                let mut grants = Vec::new();
                for seq in seqs {
                    let job = queue.job(seq);
                    let own = if job.lease_ms == 0 {
                        default_ms
                    } else {
                        job.lease_ms
                    };
                    let lease_ms = if *lease_ms == 0 { own } else { *lease_ms };
                    job.state = JobState::InFlight;
                    job.when = now + u64::from(lease_ms);
                    job.attempts += 1;
                    job.generation += 1;
                    job.owner = session.unwrap_or(0);
                    let token = Token {
                        job: job_id(uid, seq),
                        lease_gen: job.generation,
                    };
                    grants.push(Grant {
                        token,
                        attempt: job.attempts,
                        lease_ms,
                    });
                    queue.totals.leased_total += 1;
                }
                Outcome::Leased(grants)
            }
            Op::Extend { items } => self.each(items, |model, (token, lease_ms)| {
                let (queue, job) = model.leased(*token)?;
                let default_ms = queue.info.settings.lease_ms;
                let own = if job.lease_ms == 0 {
                    default_ms
                } else {
                    job.lease_ms
                };
                let lease_ms = if *lease_ms == 0 { own } else { *lease_ms };
                queue.job(job.seq).when = now + u64::from(lease_ms);
                Ok(())
            }),
            Op::Ack { items } => self.each(items, |model, item| {
                let (queue, job) = model.leased(item.token)?;
                if item
                    .result
                    .as_ref()
                    .is_some_and(|result| result.len() > 4096)
                {
                    return Err(Rejection::Invalid);
                }
                queue.take(job.seq);
                queue.totals.completed_total += 1;
                Ok(())
            }),
            Op::Nack { items } => self.each(items, |model, item| {
                let (queue, job) = model.leased(item.token)?;
                queue.totals.nacked_total += 1;
                if job.attempts == job.max_attempts {
                    queue.die(job.seq, &item.reason);
                    return Ok(());
                }
                let backoff = job.body.backoff.unwrap_or(queue.info.settings.backoff);
                let wait = match item.delay_ms {
                    Some(delay) => delay,
                    None => backoff_ms(&backoff, job.attempts, item.token.job),
                };
                let job = queue.job(job.seq);
                job.reason = Bytes::copy_from_slice(&item.reason[..item.reason.len().min(256)]);
                job.rest(if wait == 0 {
                    JobState::Pending
                } else {
                    JobState::Delayed
                });
                if wait != 0 {
                    job.when = now + wait;
                }
                Ok(())
            }),
            Op::Release { items } => self.each(items, |model, token| {
                let (queue, job) = model.leased(*token)?;
                let job = queue.job(job.seq);
                job.attempts -= 1;
                job.rest(JobState::Pending);
                Ok(())
            }),
            Op::Bury { items } => self.each(items, |model, (token, reason)| {
                let (queue, job) = model.leased(*token)?;
                queue.totals.dead_total += 1;
                let job = queue.job(job.seq);
                job.rest(JobState::Dead);
                job.reason = Bytes::copy_from_slice(&reason[..reason.len().min(256)]);
                Ok(())
            }),
            Op::Cancel { items } => self.each(items, |model, id| {
                let (queue, job) = model.live(*id)?;
                if job.state == JobState::Dead {
                    return Err(Rejection::WrongState);
                }
                queue.take(job.seq);
                queue.totals.cancelled_total += 1;
                Ok(())
            }),
            Op::RequeueDead { items } => self.each(items, |model, id| {
                let (queue, job) = model.live(*id)?;
                if job.state != JobState::Dead {
                    return Err(Rejection::WrongState);
                }
                let job = queue.job(job.seq);
                job.rest(JobState::Pending);
                job.attempts = 0;
                job.generation += 1;
                if job.expires <= wall {
                    job.expires = 0;
                }
                Ok(())
            }),
            Op::DeleteDead { items } => self.each(items, |model, id| {
                let (queue, job) = model.live(*id)?;
                if job.state != JobState::Dead {
                    return Err(Rejection::WrongState);
                }
                queue.take(job.seq);
                Ok(())
            }),
            Op::Advance { limit } => {
                let mut handled = 0;
                while handled < (*limit).min(1024) && self.advance_one() {
                    handled += 1;
                }
                Outcome::Advanced { handled }
            }
            Op::SetWallOffset { offset_ms } => {
                if offset_ms.unsigned_abs() > 1 << 48 {
                    return Err(Rejection::Invalid);
                }
                self.offset = *offset_ms;
                Outcome::Done
            }
        })
    }

    fn pause(&mut self, uid: QueueUid, paused: bool) -> Try<Outcome> {
        let info = &mut self.queue(uid)?.info;
        info.version += u32::from(info.paused != paused);
        info.paused = paused;
        Ok(Outcome::Queue(info.clone()))
    }

    fn held(&self, session: u32) -> Vec<Token> {
        let mut held = Vec::new();
        for (uid, queue) in &self.queues {
            for job in queue
                .with(JobState::InFlight)
                .filter(|job| job.owner == session)
            {
                held.push(Token {
                    job: job_id(*uid, job.seq),
                    lease_gen: job.generation,
                });
            }
        }
        held.sort();
        held
    }

    fn lose_all(&mut self, session: u32) {
        for token in self.held(session) {
            let queue = self.queues.get_mut(&token.job.queue()).unwrap();
            queue.lose(token.job.seq(), b"worker lost");
        }
    }

    /// All that waits: class in the order of Advance, due time by that clock, id.
    fn waiting(&self) -> Vec<(u8, u64, JobId)> {
        let mut waiting = Vec::new();
        for (uid, queue) in &self.queues {
            for job in &queue.jobs {
                let id = job_id(*uid, job.seq);
                match job.state {
                    JobState::Delayed if job.by_wall => waiting.push((2, job.when, id)),
                    JobState::Delayed => waiting.push((1, job.when, id)),
                    JobState::InFlight => waiting.push((3, job.when, id)),
                    _ => {}
                }
                let waits = matches!(job.state, JobState::Pending | JobState::Delayed);
                if waits && job.expires != 0 {
                    waiting.push((4, job.expires, id));
                }
            }
        }
        waiting.sort();
        waiting
    }

    fn advance_one(&mut self) -> bool {
        let (now, wall) = (self.time, self.wall());
        let is_due = |class, when| when <= if class == 2 || class == 4 { wall } else { now };
        let first = self
            .waiting()
            .into_iter()
            .find(|(class, when, _)| is_due(*class, *when));
        if let Some((class, _, id)) = first {
            let queue = self.queues.get_mut(&id.queue()).unwrap();
            match class {
                1 | 2 => queue.job(id.seq()).rest(JobState::Pending),
                3 => queue.lose(id.seq(), b"lease expired"),
                _ => queue.die(id.seq(), b"expired"),
            }
            return true;
        }
        let mut keys: Vec<(u64, QueueUid, Hash128)> = Vec::new();
        for (uid, queue) in &self.queues {
            keys.extend(
                queue
                    .keys
                    .iter()
                    .map(|key| (key.expires, *uid, Hash128::of(&key.text))),
            );
        }
        keys.sort();
        let Some((_, uid, hash)) = keys.into_iter().find(|(expires, _, _)| *expires <= now) else {
            return false;
        };
        let queue = self.queues.get_mut(&uid).unwrap();
        queue.keys.retain(|key| Hash128::of(&key.text) != hash);
        true
    }

    fn next_due(&self) -> Option<GroupTime> {
        let jobs = self
            .waiting()
            .into_iter()
            .map(|(class, when, _)| match class {
                2 | 4 => (when as i64 - self.offset).max(0) as u64,
                _ => when,
            });
        let keys = self
            .queues
            .values()
            .flat_map(|queue| queue.keys.iter().map(|key| key.expires));
        jobs.chain(keys).min().map(GroupTime)
    }
}

fn settings_fit(settings: &QueueSettings) -> Try<()> {
    if settings.lease_ms == 0 || settings.backoff.jitter_percent > 100 {
        return Err(Rejection::Invalid);
    }
    if settings.partitions != 1 || settings.retain > 0 {
        return Err(Rejection::Unsupported);
    }
    Ok(())
}

fn enqueue(queue: &mut Queue, now: u64, wall: u64, item: &NewJob) -> Try<Enqueued> {
    let uid = queue.info.uid;
    let settings = queue.info.settings;
    if item.priority.is_some_and(|class| class > 7) {
        return Err(Rejection::Invalid);
    }
    if let Some(text) = &item.key {
        if let Some(known) = queue.keys.iter().find(|key| key.text == text) {
            return if known.payload == item.payload {
                Ok(Enqueued::Existing(job_id(uid, known.seq)))
            } else {
                Err(Rejection::IdempotencyConflict)
            };
        }
        if queue.keys.len() >= settings.idempotency_keys_max as usize {
            return Err(Rejection::IdempotencyWindowFull);
        }
    }
    let bytes: usize = queue.jobs.iter().map(|job| job.body.payload.len()).sum();
    let many = settings.jobs_max != 0 && queue.jobs.len() as u64 >= settings.jobs_max;
    let after = (bytes + item.payload.len()) as u64;
    if many || (settings.bytes_max != 0 && after > settings.bytes_max) {
        return Err(Rejection::QuotaExceeded);
    }
    let seq = queue.next_seq;
    queue.next_seq += 1;
    queue.totals.enqueued_total += 1;
    if let Some(text) = &item.key {
        queue.keys.push(Key {
            text: text.clone(),
            seq,
            payload: item.payload.clone(),
            expires: now + settings.idempotency_window_ms,
        });
    }
    let run_at = match item.start {
        Start::Now => 0,
        Start::After(ms) => wall + ms,
        Start::At(at) => at,
    };
    let later = run_at > wall;
    queue.jobs.push(Job {
        seq,
        state: if later {
            JobState::Delayed
        } else {
            JobState::Pending
        },
        priority: item.priority.unwrap_or(4),
        attempts: 0,
        max_attempts: if item.max_attempts == 0 {
            settings.max_attempts
        } else {
            item.max_attempts
        },
        lease_ms: item.lease_ms,
        when: if later { run_at } else { 0 },
        by_wall: later,
        enqueued: wall,
        expires: if item.ttl_ms == 0 {
            0
        } else {
            wall + item.ttl_ms
        },
        generation: 0,
        owner: 0,
        reason: Bytes::new(),
        body: Body {
            payload: item.payload.clone(),
            headers: item.headers.clone(),
            key: item.key.clone(),
            run_limit_ms: item.run_limit_ms,
            backoff: item.backoff,
        },
    });
    Ok(Enqueued::New(job_id(uid, seq)))
}

/// Draws commands that hit something most of the time.
struct Draw {
    prng: Prng,
    sent: Vec<Command>,
}

impl Draw {
    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.prng.below(of.len() as u64) as usize].clone()
    }

    fn backoff(&mut self) -> Backoff {
        Backoff {
            kind: self.pick(&[
                BackoffKind::Fixed,
                BackoffKind::Linear,
                BackoffKind::Exponential,
            ]),
            base_ms: self.pick(&[0, 1, 50, 300]),
            factor_milli: self.pick(&[1000, 2000, 3000]),
            cap_ms: self.pick(&[10, 400, 5000]),
            jitter_percent: self.pick(&[0, 0, 20, 100]),
        }
    }

    fn settings(&mut self) -> QueueSettings {
        let odd = self.prng.chance(1, 20);
        QueueSettings {
            lease_ms: if odd {
                self.pick(&[0, 1])
            } else {
                self.pick(&[20, 200, 1000])
            },
            max_attempts: self.pick(&[1, 2, 3, 20]),
            backoff: self.backoff(),
            idempotency_window_ms: self.pick(&[1, 100, 2000]),
            idempotency_keys_max: self.pick(&[0, 3, 100]),
            jobs_max: self.pick(&[3, 10, 16]),
            bytes_max: self.pick(&[0, 40, 1000]),
            retain: if odd { self.pick(&[0, 1]) } else { 0 },
            dead: self.pick(&[DeadPolicy::Keep, DeadPolicy::Keep, DeadPolicy::Drop]),
            partitions: if odd { self.pick(&[1, 0, 2]) } else { 1 },
        }
    }

    fn queue(&mut self, model: &Model) -> QueueUid {
        let known: Vec<QueueUid> = model.queues.keys().copied().collect();
        if known.is_empty() || self.prng.chance(1, 100) {
            let counter = self.prng.below(u64::from(model.queue_counter) + 2) as u32;
            return QueueUid::new(self.pick(&[GROUP, GROUP, GroupId(6)]), counter).unwrap();
        }
        self.pick(&known)
    }

    fn partition(&mut self) -> Partition {
        Partition(u8::from(self.prng.chance(1, 200)))
    }

    /// A job, live in one of `states` if there is one, else anything near.
    fn job(&mut self, model: &Model, states: &[JobState]) -> (JobId, u32) {
        let uid = self.queue(model);
        if let Some(queue) = model.queues.get(&uid) {
            let fit = queue.jobs.iter().filter(|job| states.contains(&job.state));
            let fit: Vec<(u64, u32)> = fit.map(|job| (job.seq, job.generation)).collect();
            if !fit.is_empty() && !self.prng.chance(1, 12) {
                let (seq, generation) = self.pick(&fit);
                return (job_id(uid, seq), generation);
            }
            let seq = self.prng.below(queue.next_seq + 3);
            return (job_id(uid, seq), self.prng.below(4) as u32);
        }
        let group = self.pick(&[GROUP, GroupId(6)]);
        (
            JobId::new(group, uid, self.partition(), self.prng.below(9)),
            1,
        )
    }

    fn token(&mut self, model: &Model) -> Token {
        let (job, generation) = self.job(model, &[JobState::InFlight]);
        let stale = self.prng.chance(1, 15);
        let lease_gen = if stale {
            generation.wrapping_sub(1)
        } else {
            generation
        };
        Token { job, lease_gen }
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let len = self.pick(&[1, 1, 1, 2, 5]);
        (0..len).map(|_| one(self)).collect()
    }

    fn new_job(&mut self, model: &Model) -> NewJob {
        let keyed = self.prng.chance(1, 4);
        let text = format!("k{}", self.prng.below(6));
        let with_backoff = self.prng.chance(1, 4);
        let backoff = self.backoff();
        NewJob {
            payload: Bytes::from(vec![b'x'; self.prng.below(7) as usize]),
            priority: self.pick(&[None, None, Some(0), Some(3), Some(7), Some(8)]),
            start: match self.prng.below(6) {
                0 => Start::After(self.prng.below(400)),
                1 => Start::At((model.wall() + self.prng.below(400)).saturating_sub(100)),
                _ => Start::Now,
            },
            ttl_ms: self.pick(&[0, 0, 0, 1, 300]),
            lease_ms: self.pick(&[0, 0, 15]),
            max_attempts: self.pick(&[0, 0, 1, 2]),
            run_limit_ms: self.pick(&[0, 9]),
            backoff: with_backoff.then_some(backoff),
            key: keyed.then(|| Bytes::from(text)),
            headers: match self.prng.below(8) {
                0 => vec![("h".to_owned(), Bytes::from_static(b"v"))],
                _ => Vec::new(),
            },
        }
    }

    fn reason(&mut self) -> Bytes {
        self.pick(&[
            Bytes::new(),
            Bytes::from_static(b"why"),
            Bytes::from(vec![b'r'; 300]),
        ])
    }

    fn session(&mut self, model: &Model) -> SessionId {
        let known: Vec<u32> = model.sessions.keys().copied().collect();
        if known.is_empty() || self.prng.chance(1, 30) {
            return SessionId(self.prng.below(u64::from(model.session_counter) + 2) as u32);
        }
        SessionId(self.pick(&known))
    }

    fn epoch(&mut self, model: &Model, session: SessionId) -> u32 {
        let epoch = model.sessions.get(&session.0).map_or(1, |slot| slot.epoch);
        if self.prng.chance(1, 10) {
            epoch - 1
        } else {
            epoch
        }
    }

    fn op(&mut self, model: &Model, holder: SessionId) -> Op {
        let few = model.queues.len() < 3;
        let session = self.session(model);
        match self.prng.below(if few { 104 } else { 100 }) {
            0..25 => Op::Enqueue {
                queue: self.queue(model),
                partition: self.partition(),
                items: self.list(|draw| draw.new_job(model)),
            },
            25..45 => Op::Lease {
                queue: self.queue(model),
                partition: self.partition(),
                max: self.pick(&[0, 1, 1, 1, 2, 5, 1025]),
                lease_ms: self.pick(&[0, 0, 70]),
                epoch: self.epoch(model, holder),
            },
            45..49 => Op::Extend {
                items: self.list(|d| (d.token(model), d.pick(&[0, 5, 500]))),
            },
            49..58 => Op::Ack {
                items: self.list(|draw| AckItem {
                    token: draw.token(model),
                    result: draw.pick(&[None, None, Some(Bytes::from(vec![1; 4097]))]),
                }),
            },
            58..66 => Op::Nack {
                items: self.list(|draw| NackItem {
                    token: draw.token(model),
                    delay_ms: draw.pick(&[None, None, Some(0), Some(80)]),
                    reason: draw.reason(),
                }),
            },
            66..69 => Op::Release {
                items: self.list(|draw| draw.token(model)),
            },
            69..71 => Op::Bury {
                items: self.list(|draw| (draw.token(model), draw.reason())),
            },
            71..73 => {
                let states = [JobState::Pending, JobState::Delayed, JobState::InFlight];
                Op::Cancel {
                    items: self.list(|draw| draw.job(model, &states).0),
                }
            }
            73..76 => Op::RequeueDead {
                items: self.list(|draw| draw.job(model, &[JobState::Dead]).0),
            },
            76..78 => Op::DeleteDead {
                items: self.list(|draw| draw.job(model, &[JobState::Dead]).0),
            },
            78..88 => Op::Advance {
                limit: self.pick(&[0, 1, 3, 1024, 5000]),
            },
            88 => Op::SetWallOffset {
                offset_ms: match self.prng.below(8) {
                    0 => self.pick(&[i64::MAX, i64::MIN]),
                    _ => 1_000_000 + self.prng.below(600) as i64,
                },
            },
            89 => Op::OpenSession {
                worker_timeout_ms: self.pick(&[0, 77]),
            },
            90 => Op::Attach { session },
            91 => Op::EndLeases {
                session,
                epoch: self.epoch(model, session),
            },
            92 => match self.prng.below(3) {
                0 => Op::CloseSession { session },
                _ => Op::DropSession {
                    session,
                    epoch: self.epoch(model, session),
                    last_seq: match model.sessions.get(&session.0) {
                        Some(slot) => (slot.last + 1).saturating_sub(self.prng.below(3)),
                        None => 0,
                    },
                },
            },
            93 | 94 => {
                let queue = self.queue(model);
                let version = model
                    .queues
                    .get(&queue)
                    .map_or(0, |queue| queue.info.version);
                Op::AlterQueue {
                    queue,
                    expected_version: self.pick(&[0, version, version + 1]),
                    settings: self.settings(),
                }
            }
            95 => Op::PauseQueue {
                queue: self.queue(model),
            },
            96 => Op::ResumeQueue {
                queue: self.queue(model),
            },
            97 if self.prng.chance(1, 4) => Op::DeleteQueue {
                queue: self.queue(model),
            },
            98 if self.prng.chance(1, 4) => Op::Purge {
                queue: self.queue(model),
                partition: self.partition(),
                states: PurgeStates {
                    pending: self.prng.chance(1, 2),
                    delayed: self.prng.chance(1, 2),
                    dead: self.prng.chance(1, 2),
                },
            },
            97 | 98 => Op::ResumeQueue {
                queue: self.queue(model),
            },
            _ => Op::CreateQueue {
                name: self.pick(&["a", "b", "c", "no good"]).to_owned(),
                settings: self.settings(),
                must_be_new: self.prng.chance(1, 3),
                groups: 0,
            },
        }
    }

    fn command(&mut self, model: &Model) -> Command {
        if !self.sent.is_empty() && self.prng.chance(1, 10) {
            return self.pick(&self.sent.clone());
        }
        let id = self.session(model);
        let op = self.op(model, id);
        let plain = matches!(
            op,
            Op::OpenSession { .. }
                | Op::CloseSession { .. }
                | Op::Attach { .. }
                | Op::EndLeases { .. }
                | Op::DropSession { .. }
                | Op::Advance { .. }
                | Op::SetWallOffset { .. }
        );
        if self.prng.chance(if plain { 29 } else { 9 }, 30) {
            return Command { session: None, op };
        }
        let window = match op {
            Op::Lease { .. } => Window::Polls,
            _ => Window::Commands,
        };
        let odd = self.prng.chance(1, 100);
        let window = if odd {
            self.pick(&[Window::Commands, Window::Polls])
        } else {
            window
        };
        let (last, lowest) = model
            .sessions
            .get(&id.0)
            .map_or((0, 1), |slot| (slot.last, slot.lowest[window as usize]));
        let seq = match self.prng.below(40) {
            0 => self.prng.below(last + 1),
            1 => lowest + self.pick(&[63, 64, 4095, 4096]),
            _ => last + 1,
        };
        let seen = match self.prng.below(8) {
            0 => lowest,
            1 => self.prng.below(seq + 2),
            _ => seq.saturating_sub(self.prng.below(20)),
        };
        let call = SessionCall {
            id,
            seq,
            lowest: seen,
            window,
        };
        let command = Command {
            session: Some(call),
            op,
        };
        if self.sent.len() == 16 {
            self.sent.remove(0);
        }
        self.sent.push(command.clone());
        command
    }
}

fn compare(machine: &JobQueue, model: &Model) {
    let queues: Vec<(QueueInfo, QueueStats)> = model
        .queues
        .values()
        .map(|queue| (queue.info.clone(), queue.stats()))
        .collect();
    assert_eq!(machine.queues(), queues);
    assert_eq!(machine.time(), GroupTime(model.time));
    assert_eq!(machine.next_due(), model.next_due());
    let waits = model
        .waiting()
        .iter()
        .any(|(class, _, _)| *class == 1 || *class == 3);
    assert_eq!(machine.waits_on_time(), waits);
    for (uid, queue) in &model.queues {
        assert_eq!(
            machine.queue_by_name(&queue.info.name).as_ref(),
            Some(&queue.info)
        );
        let ready = queue.ready();
        let open = if queue.info.paused {
            0
        } else {
            ready.len() as u64
        };
        assert_eq!(machine.ready(*uid, ZERO), Ok(open));
        let views = |jobs: Vec<&Job>| -> Vec<JobView> {
            jobs.iter().map(|job| job.view(*uid, model.time)).collect()
        };
        let peeked = |state| machine.peek(*uid, ZERO, state, usize::MAX).unwrap();
        assert_eq!(peeked(JobState::Pending), views(ready));
        for state in [JobState::Delayed, JobState::InFlight, JobState::Dead] {
            assert_eq!(peeked(state), views(queue.with(state).collect()));
        }
        for key in &queue.keys {
            let live = queue.jobs.iter().find(|job| job.seq == key.seq);
            let wanted = live
                .map(|job| job.view(*uid, model.time))
                .ok_or(Rejection::Finished);
            assert_eq!(machine.job_by_key(*uid, ZERO, &key.text), wanted);
        }
        for seq in queue.next_seq.saturating_sub(3)..queue.next_seq + 2 {
            let live = queue.jobs.iter().find(|job| job.seq == seq);
            let gone = if seq < queue.next_seq {
                Rejection::Finished
            } else {
                Rejection::NotFound
            };
            let wanted = live.map(|job| job.view(*uid, model.time)).ok_or(gone);
            assert_eq!(machine.job(job_id(*uid, seq)), wanted);
        }
    }
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
fn reload(machine: &JobQueue, slice: usize) -> JobQueue {
    let mut frozen = machine.freeze();
    let mut stored = BTreeMap::new();
    let mut cursor = frozen.bodies();
    loop {
        let bodies = cursor.next_bodies(slice);
        if bodies.is_empty() {
            break;
        }
        for body in bodies {
            let bytes = encode_body(&body.body);
            assert_eq!(bytes.len(), body.encoded_len);
            assert_eq!(decode_body(&bytes).as_ref(), Ok(&*body.body));
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
    let mut loaded = JobQueue::absent(GROUP);
    let any = Command {
        session: None,
        op: Op::Advance { limit: 1 },
    };
    assert_eq!(loaded.pages_needed(&any), PagesNeeded::All);
    loaded
        .load(&pages, &mut |job| stored.remove(&job))
        .expect("its own pages load");
    assert!(
        stored.is_empty(),
        "bodies of jobs that are not live: {stored:?}"
    );
    assert_eq!(loaded.pages_needed(&any), PagesNeeded::None);
    loaded
}

fn run(seed: u64, commands: u64) {
    let mut machine = JobQueue::new(GROUP, 0);
    let mut model = Model::default();
    let mut draw = Draw {
        prng: Prng::new(seed),
        sent: Vec::new(),
    };
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut held_still = (machine.freeze(), machine.state_hash());
    for index in 1..=commands {
        let step = match draw.prng.below(50) {
            0 => 2_000,
            1..10 => draw.prng.below(200),
            _ => draw.prng.below(4),
        };
        let back = if draw.prng.chance(1, 30) { 50 } else { 0 };
        let time = (model.time + step).saturating_sub(back);
        let command = draw.command(&model);
        let at = ApplyAt {
            index: LogIndex(index),
            time: GroupTime(time),
        };
        let wanted = model.apply(time, &command);
        let outcome = machine.apply(at, &command);
        assert_eq!(
            outcome, wanted,
            "seed {seed} entry {index} at {time}: {command:?}"
        );
        if let Err(why) = check(&machine) {
            panic!("seed {seed} entry {index} at {time}: {command:?}: {why}");
        }
        if index % 16 == 0 {
            compare(&machine, &model);
        }
        if index % 1000 == 0 {
            let hash = machine.state_hash();
            let slice = draw.pick(&[1, 5000, usize::MAX]);
            let loaded = reload(&machine, slice);
            assert_eq!(
                loaded.state_hash(),
                hash,
                "seed {seed} entry {index}: pages differ"
            );
            machine = loaded;
            check(&machine).unwrap();
            compare(&machine, &model);
        }
        if index % 777 == 0 {
            let (mut frozen, hash) = held_still;
            let mut still = JobQueue::absent(GROUP);
            let mut stored = BTreeMap::new();
            for body in frozen.bodies().next_bodies(usize::MAX) {
                let at = BodyLocation {
                    file: 1,
                    offset: 0,
                    len: 0,
                };
                stored.insert(body.job, (encode_body(&body.body), at));
            }
            let pages = frozen.next_pages(usize::MAX);
            still
                .load(&pages, &mut |job| stored.remove(&job))
                .expect("frozen pages load");
            assert_eq!(
                still.state_hash(),
                hash,
                "seed {seed} entry {index}: not held still"
            );
            held_still = (machine.freeze(), machine.state_hash());
        }
        let jobs: usize = model.queues.values().map(|queue| queue.jobs.len()).sum();
        assert!(jobs <= 64, "{jobs} live jobs");
        tally(&mut outcomes, &outcome);
    }
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
