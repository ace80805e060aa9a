//! A naive model of the job machine: plain lists, looked through for everything.
//!
//! It knows nothing of leaves, orders, pages or encodings, and shares no rule with the machine.

use bytes::Bytes;
use rrq::base::checksum::Hash128;
use rrq::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Token};
use rrq::base::units::GroupTime;
use rrq::queue::command::*;
use rrq::queue::view::*;
use std::collections::BTreeMap;

use crate::partition::{Job, Queue, Try, backoff_ms, enqueue};

/// Groups of the cluster.
pub(crate) const GROUPS: u16 = 4;

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) epoch: u32,
    pub(crate) ended: bool,
    pub(crate) timeout: u32,
    pub(crate) lowest: [u64; 2],
    pub(crate) last: u64,
    pub(crate) outcomes: Vec<(usize, u64, Outcome)>,
}

pub(crate) struct Model {
    pub(crate) group: GroupId,
    pub(crate) version: u16,
    pub(crate) time: u64,
    pub(crate) offset: i64,
    pub(crate) queue_counter: u32,
    pub(crate) session_counter: u32,
    pub(crate) homes: BTreeMap<QueueUid, QueueInfo>,
    pub(crate) queues: BTreeMap<(QueueUid, Partition), Queue>,
    /// The highest home index applied of each home group.
    pub(crate) applied: BTreeMap<GroupId, LogIndex>,
    /// What others have yet to do, in the order of the log.
    pub(crate) outbox: Vec<(GroupId, PartitionChange)>,
    pub(crate) sessions: BTreeMap<u32, Session>,
}

impl Model {
    pub(crate) fn new(group: GroupId) -> Self {
        Self {
            group,
            version: 1,
            time: 0,
            offset: 0,
            queue_counter: 0,
            session_counter: 0,
            homes: BTreeMap::new(),
            queues: BTreeMap::new(),
            applied: BTreeMap::new(),
            outbox: Vec::new(),
            sessions: BTreeMap::new(),
        }
    }

    pub(crate) fn wall(&self) -> u64 {
        GroupTime(self.time).wall(self.offset).0
    }

    pub(crate) fn apply(&mut self, index: LogIndex, time: u64, command: &Command) -> Outcome {
        self.time = self.time.max(time);
        let Some(call) = command.session else {
            return self.perform(index, &command.op, None);
        };
        let polls = matches!(command.op, Op::Lease { .. });
        let outside = matches!(
            command.op,
            Op::OpenSession { .. }
                | Op::CloseSession { .. }
                | Op::Attach { .. }
                | Op::EndLeases { .. }
                | Op::DropSession { .. }
                | Op::ChangePartitions(_)
                | Op::PartitionsChanged { .. }
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
        let outcome = self.perform(index, &command.op, Some(call.id.0));
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

    pub(crate) fn again(&self, outcome: Outcome) -> Outcome {
        let Outcome::Leased(grants) = outcome else {
            return outcome;
        };
        let still = |grant: Grant| {
            let id = grant.token.job;
            let queue = self.queues.get(&(id.queue(), id.partition()))?;
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

    pub(crate) fn queue(&mut self, uid: QueueUid, number: Partition) -> Try<&mut Queue> {
        let queue = self.queues.get_mut(&(uid, number));
        queue.ok_or(Rejection::QueueChanged)
    }

    pub(crate) fn queue_of(&mut self, id: JobId) -> Try<&mut Queue> {
        if id.group() != self.group {
            return Err(Rejection::QueueChanged);
        }
        self.queue(id.queue(), id.partition())
    }

    pub(crate) fn leased(&mut self, token: Token) -> Try<(&mut Queue, Job)> {
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

    pub(crate) fn live(&mut self, id: JobId) -> Try<(&mut Queue, Job)> {
        let queue = self.queue_of(id)?;
        match queue.jobs.iter().find(|job| job.seq == id.seq()).cloned() {
            Some(job) => Ok((queue, job)),
            None if id.seq() < queue.next_seq => Err(Rejection::Finished),
            None => Err(Rejection::NotFound),
        }
    }

    pub(crate) fn perform(&mut self, index: LogIndex, op: &Op, session: Option<u32>) -> Outcome {
        let later = match op {
            Op::DrainQueue { .. }
            | Op::SweepDead { .. }
            | Op::ChangePartitions(_)
            | Op::PartitionsChanged { .. } => true,
            Op::CreateQueue { groups, .. } => *groups != 0,
            _ => false,
        };
        if later && self.version < 2 {
            return Outcome::Rejected(Rejection::Unsupported);
        }
        let outcome = self.try_perform(index, op, session);
        for queue in self.queues.values_mut() {
            while queue.forget_finished() {}
        }
        outcome.unwrap_or_else(Outcome::Rejected)
    }

    /// Makes the partitions of a queue follow its home: here at once, elsewhere by asking.
    pub(crate) fn drive(
        &mut self,
        index: LogIndex,
        uid: QueueUid,
        groups: &[GroupId],
        info: Option<&QueueInfo>,
    ) {
        let config = info.map(|info| PartitionConfig {
            version: info.version,
            paused: info.paused,
            draining: info.draining,
            settings: info.settings,
        });
        for group in (0..GROUPS).map(GroupId) {
            let partitions: Vec<Partition> = (0..groups.len())
                .filter(|number| groups[*number] == group)
                .map(|number| Partition(number as u8))
                .collect();
            if partitions.is_empty() {
                continue;
            }
            let change = PartitionChange {
                home: self.group,
                home_index: index,
                queue: uid,
                partitions,
                config,
            };
            if group == self.group {
                self.follow(&change);
            } else {
                let same =
                    |(to, old): &(GroupId, PartitionChange)| *to == group && old.queue == uid;
                self.outbox.retain(|old| !same(old));
                self.outbox.push((group, change));
            }
        }
    }

    pub(crate) fn follow(&mut self, change: &PartitionChange) {
        for number in &change.partitions {
            let place = (change.queue, *number);
            match change.config {
                Some(config) => {
                    let fresh = Queue::new(self.group, place, config);
                    self.queues.entry(place).or_insert(fresh).config = config;
                }
                None => {
                    self.queues.remove(&place);
                }
            }
        }
    }

    /// Changes what can be changed of a queue at home here.
    pub(crate) fn change(
        &mut self,
        index: LogIndex,
        uid: QueueUid,
        change: impl FnOnce(&mut QueueInfo),
    ) -> Try<Outcome> {
        let info = self.homes.get_mut(&uid).ok_or(Rejection::QueueChanged)?;
        let before = info.clone();
        change(info);
        if *info != before {
            info.version += 1;
            let info = info.clone();
            self.drive(index, uid, &info.groups, Some(&info));
        }
        Ok(Outcome::Queue(Box::new(self.homes[&uid].clone())))
    }

    pub(crate) fn each<T>(
        &mut self,
        items: &[T],
        mut one: impl FnMut(&mut Self, &T) -> Try<()>,
    ) -> Outcome {
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

    pub(crate) fn try_perform(
        &mut self,
        index: LogIndex,
        op: &Op,
        session: Option<u32>,
    ) -> Try<Outcome> {
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
                groups,
            } => {
                if name.is_empty() || name.contains(' ') {
                    return Err(Rejection::Invalid);
                }
                if let Some(info) = self.homes.values().find(|info| info.name == *name) {
                    return match must_be_new {
                        true => Err(Rejection::QueueExists),
                        false => Ok(Outcome::Queue(Box::new(info.clone()))),
                    };
                }
                settings_fit(settings, self.version)?;
                if *groups != u32::from(GROUPS) && (*groups != 0 || settings.partitions != 1) {
                    return Err(Rejection::Invalid);
                }
                self.queue_counter += 1;
                let uid = QueueUid::new(self.group, self.queue_counter).unwrap();
                let place = |number: u8| GroupId((self.group.0 + u16::from(number)) % GROUPS);
                let info = QueueInfo {
                    uid,
                    name: name.clone(),
                    version: 1,
                    paused: false,
                    draining: false,
                    groups: (0..settings.partitions).map(place).collect(),
                    settings: *settings,
                    created: false,
                };
                self.homes.insert(uid, info.clone());
                self.drive(index, uid, &info.groups, Some(&info));
                Outcome::Queue(Box::new(QueueInfo {
                    created: true,
                    ..info
                }))
            }
            Op::AlterQueue {
                queue,
                expected_version,
                settings,
            } => {
                let info = self.homes.get(queue).ok_or(Rejection::QueueChanged)?;
                if *expected_version != 0 && *expected_version != info.version {
                    return Err(Rejection::VersionMismatch);
                }
                settings_fit(settings, self.version)?;
                if settings.partitions != info.settings.partitions {
                    return Err(Rejection::Invalid);
                }
                self.change(index, *queue, |info| info.settings = *settings)?
            }
            Op::DeleteQueue { queue } => {
                let info = self.homes.remove(queue).ok_or(Rejection::QueueChanged)?;
                self.drive(index, *queue, &info.groups, None);
                Outcome::Done
            }
            Op::PauseQueue { queue } => self.change(index, *queue, |info| info.paused = true)?,
            Op::DrainQueue { queue } => self.change(index, *queue, |info| info.draining = true)?,
            Op::ResumeQueue { queue } => self.change(index, *queue, |info| {
                info.paused = false;
                info.draining = false;
            })?,
            Op::ChangePartitions(change) => {
                let applied = self.applied.entry(change.home).or_default();
                if *applied < change.home_index {
                    *applied = change.home_index;
                    self.follow(change);
                }
                Outcome::Done
            }
            Op::PartitionsChanged { group, home_index } => {
                self.outbox
                    .retain(|(to, change)| to != group || change.home_index != *home_index);
                Outcome::Done
            }
            Op::SweepDead {
                queue,
                partition,
                action,
                filter,
                from_seq,
                limit,
            } => {
                if *limit == 0 || filter.priority.is_some_and(|class| class > 7) {
                    return Err(Rejection::Invalid);
                }
                let queue = self.queue(*queue, *partition)?;
                let mut scanned = 0;
                let mut found = Vec::new();
                let mut next_seq = None;
                for job in queue
                    .with(JobState::Dead)
                    .filter(|job| job.seq >= *from_seq)
                {
                    if found.len() == *limit as usize {
                        next_seq = Some(job.seq);
                        break;
                    }
                    scanned += 1;
                    if job.fits(filter) {
                        found.push(job.seq);
                    }
                }
                for seq in &found {
                    match action {
                        SweepAction::Requeue => queue.job(*seq).requeue(wall),
                        SweepAction::Delete => {
                            queue.take(*seq);
                        }
                    }
                }
                Outcome::Swept {
                    matched: found.len() as u32,
                    scanned,
                    next_seq,
                }
            }
            Op::Purge {
                queue,
                partition,
                states,
            } => {
                let queue = self.queue(*queue, *partition)?;
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
                let queue = self.queue(*queue, *partition)?;
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
                let queue = self.queue(*queue, *partition)?;
                let max = if queue.config.paused {
                    0
                } else {
                    *max as usize
                };
                let seqs: Vec<u64> = queue.ready().iter().take(max).map(|job| job.seq).collect();
                let default_ms = queue.config.settings.lease_ms;
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
                    let (lease_gen, attempt) = (job.generation, job.attempts);
                    let job = queue.id(seq);
                    grants.push(Grant {
                        token: Token { job, lease_gen },
                        attempt,
                        lease_ms,
                    });
                    queue.totals.leased_total += 1;
                }
                Outcome::Leased(grants)
            }
            Op::Extend { items } => self.each(items, |model, (token, lease_ms)| {
                let (queue, job) = model.leased(*token)?;
                let default_ms = queue.config.settings.lease_ms;
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
                queue.finish(job.seq, JobEnd::Completed, item.result.clone(), wall);
                queue.totals.completed_total += 1;
                Ok(())
            }),
            Op::Nack { items } => self.each(items, |model, item| {
                let (queue, job) = model.leased(item.token)?;
                queue.totals.nacked_total += 1;
                if job.attempts == job.max_attempts {
                    queue.die(job.seq, &item.reason, wall);
                    return Ok(());
                }
                let backoff = job.body.backoff.unwrap_or(queue.config.settings.backoff);
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
                queue.finish(job.seq, JobEnd::Cancelled, None, wall);
                queue.totals.cancelled_total += 1;
                Ok(())
            }),
            Op::RequeueDead { items } => self.each(items, |model, id| {
                let (queue, job) = model.live(*id)?;
                if job.state != JobState::Dead {
                    return Err(Rejection::WrongState);
                }
                queue.job(job.seq).requeue(wall);
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

    pub(crate) fn held(&self, session: u32) -> Vec<Token> {
        let mut held = Vec::new();
        for queue in self.queues.values() {
            for job in queue
                .with(JobState::InFlight)
                .filter(|job| job.owner == session)
            {
                held.push(Token {
                    job: queue.id(job.seq),
                    lease_gen: job.generation,
                });
            }
        }
        held.sort();
        held
    }

    pub(crate) fn lose_all(&mut self, session: u32) {
        let wall = self.wall();
        for token in self.held(session) {
            let queue = self.queue_of(token.job).unwrap();
            queue.lose(token.job.seq(), b"worker lost", wall);
        }
    }

    /// All that waits: class in the order of Advance, due time by that clock, id.
    pub(crate) fn waiting(&self) -> Vec<(u8, u64, JobId)> {
        let mut waiting = Vec::new();
        for queue in self.queues.values() {
            for job in &queue.jobs {
                let id = queue.id(job.seq);
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

    pub(crate) fn advance_one(&mut self) -> bool {
        let (now, wall) = (self.time, self.wall());
        let is_due = |class, when| when <= if class == 2 || class == 4 { wall } else { now };
        let first = self
            .waiting()
            .into_iter()
            .find(|(class, when, _)| is_due(*class, *when));
        if let Some((class, _, id)) = first {
            let queue = self.queue_of(id).unwrap();
            match class {
                1 | 2 => queue.job(id.seq()).rest(JobState::Pending),
                3 => queue.lose(id.seq(), b"lease expired", wall),
                _ => queue.die(id.seq(), b"expired", wall),
            }
            return true;
        }
        let mut keys: Vec<(u64, (QueueUid, Partition), Hash128)> = Vec::new();
        for (place, queue) in &self.queues {
            keys.extend(
                queue
                    .keys
                    .iter()
                    .map(|key| (key.expires, *place, Hash128::of(&key.text))),
            );
        }
        keys.sort();
        let Some((_, place, hash)) = keys.into_iter().find(|(expires, _, _)| *expires <= now)
        else {
            return self.queues.values_mut().any(Queue::forget_finished);
        };
        let queue = self.queues.get_mut(&place).unwrap();
        queue.keys.retain(|key| Hash128::of(&key.text) != hash);
        true
    }

    pub(crate) fn next_due(&self) -> Option<GroupTime> {
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

pub(crate) fn settings_fit(settings: &QueueSettings, version: u16) -> Try<()> {
    if settings.lease_ms == 0 || settings.backoff.jitter_percent > 100 {
        return Err(Rejection::Invalid);
    }
    if version == 1 && (settings.partitions != 1 || settings.retain > 0) {
        return Err(Rejection::Unsupported);
    }
    if settings.partitions == 0 {
        return Err(Rejection::Invalid);
    }
    Ok(())
}
