//! The naive model of one partition: its jobs, keys and finished jobs, in lists.

use bytes::Bytes;
use rrq::base::ids::{GroupId, JobId, Partition, QueueUid, SessionId, Token};
use rrq::base::prng::mix;
use rrq::base::units::WallTime;
use rrq::queue::command::*;
use rrq::queue::view::*;

pub(crate) type Try<T> = Result<T, Rejection>;

#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) seq: u64,
    pub(crate) state: JobState,
    pub(crate) priority: u8,
    pub(crate) attempts: u16,
    pub(crate) max_attempts: u16,
    pub(crate) lease_ms: u32,
    /// Delayed or leased until; the flag says by which clock.
    pub(crate) when: u64,
    pub(crate) by_wall: bool,
    pub(crate) enqueued: u64,
    pub(crate) expires: u64,
    pub(crate) generation: u32,
    pub(crate) owner: u32,
    pub(crate) reason: Bytes,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) text: Bytes,
    pub(crate) seq: u64,
    pub(crate) payload: Bytes,
    pub(crate) expires: u64,
}

/// A partition.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) group: GroupId,
    pub(crate) uid: QueueUid,
    pub(crate) number: Partition,
    pub(crate) config: PartitionConfig,
    pub(crate) next_seq: u64,
    pub(crate) finished: Vec<FinishedJob>,
    pub(crate) last_place: u64,
    pub(crate) jobs: Vec<Job>,
    pub(crate) keys: Vec<Key>,
    pub(crate) totals: QueueStats,
}

pub(crate) fn backoff_ms(backoff: &Backoff, attempts: u16, id: JobId) -> u64 {
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
    pub(crate) fn new(
        group: GroupId,
        (uid, number): (QueueUid, Partition),
        config: PartitionConfig,
    ) -> Self {
        Self {
            group,
            uid,
            number,
            config,
            next_seq: 0,
            finished: Vec::new(),
            last_place: 0,
            jobs: Vec::new(),
            keys: Vec::new(),
            totals: QueueStats::default(),
        }
    }

    pub(crate) fn id(&self, seq: u64) -> JobId {
        JobId::new(self.group, self.uid, self.number, seq)
    }

    pub(crate) fn share(&self, whole: u64) -> u64 {
        let parts = u64::from(self.config.settings.partitions);
        whole / parts + u64::from(!whole.is_multiple_of(parts))
    }

    /// A job leaves the live ones, and is remembered if the queue wants that.
    pub(crate) fn finish(&mut self, seq: u64, end: JobEnd, result: Option<Bytes>, wall: u64) {
        let job = self.take(seq);
        if self.config.settings.retain == 0 {
            return;
        }
        self.last_place += 1;
        self.finished.push(FinishedJob {
            id: self.id(seq),
            end,
            attempts: job.attempts,
            enqueued_at: WallTime(job.enqueued),
            finished_at: WallTime(wall),
            result,
            place: self.last_place,
        });
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.jobs
            .iter()
            .map(|job| job.body.payload.len() as u64)
            .sum()
    }

    pub(crate) fn result_bytes(&self) -> u64 {
        let results = self.finished.iter().filter_map(|job| job.result.as_ref());
        results.map(|result| result.len() as u64).sum()
    }

    /// Forgets the oldest finished job if there are more than may be kept.
    pub(crate) fn forget_finished(&mut self) -> bool {
        let settings = self.config.settings;
        let kept = self.finished.len() as u64;
        let jobs_max = self.share(settings.jobs_max);
        let bytes_max = self.share(settings.bytes_max);
        let many = kept > self.share(u64::from(settings.retain))
            || (jobs_max != 0 && self.jobs.len() as u64 + kept > jobs_max)
            || (bytes_max != 0 && self.live_bytes() + self.result_bytes() > bytes_max);
        if many && kept != 0 {
            self.finished.remove(0);
        }
        many && kept != 0
    }

    pub(crate) fn with(&self, state: JobState) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(move |job| job.state == state)
    }

    pub(crate) fn take(&mut self, seq: u64) -> Job {
        let at = self.jobs.iter().position(|job| job.seq == seq).unwrap();
        self.jobs.remove(at)
    }

    pub(crate) fn job(&mut self, seq: u64) -> &mut Job {
        self.jobs.iter_mut().find(|job| job.seq == seq).unwrap()
    }

    pub(crate) fn die(&mut self, seq: u64, reason: &[u8], wall: u64) {
        self.totals.dead_total += 1;
        if self.config.settings.dead == DeadPolicy::Drop {
            self.finish(seq, JobEnd::Dropped, None, wall);
            return;
        }
        let job = self.job(seq);
        job.reason = Bytes::copy_from_slice(&reason[..reason.len().min(256)]);
        job.rest(JobState::Dead);
    }

    pub(crate) fn lose(&mut self, seq: u64, reason: &[u8], wall: u64) {
        self.totals.expired_total += 1;
        let job = self.job(seq);
        if job.attempts == job.max_attempts {
            self.die(seq, reason, wall);
        } else {
            job.rest(JobState::Pending);
        }
    }

    pub(crate) fn stats(&self) -> QueueStats {
        let count = |state| self.with(state).count() as u64;
        QueueStats {
            pending: count(JobState::Pending),
            delayed: count(JobState::Delayed),
            in_flight: count(JobState::InFlight),
            dead: count(JobState::Dead),
            bytes: self.live_bytes() + self.result_bytes(),
            retained: self.finished.len() as u64,
            keys: self.keys.len() as u64,
            oldest_pending: self
                .with(JobState::Pending)
                .min_by_key(|job| job.seq)
                .map(|job| WallTime(job.enqueued)),
            ..self.totals
        }
    }

    /// Jobs in the order of leases.
    pub(crate) fn ready(&self) -> Vec<&Job> {
        let mut ready: Vec<&Job> = self.with(JobState::Pending).collect();
        ready.sort_by_key(|job| (job.priority, job.seq));
        ready
    }
}

impl Job {
    pub(crate) fn requeue(&mut self, wall: u64) {
        self.rest(JobState::Pending);
        self.attempts = 0;
        self.generation += 1;
        if self.expires <= wall {
            self.expires = 0;
        }
    }

    pub(crate) fn fits(&self, filter: &JobFilter) -> bool {
        let text = String::from_utf8_lossy(&self.reason);
        text.contains(&*String::from_utf8_lossy(&filter.reason_contains))
            && filter.priority.is_none_or(|class| class == self.priority)
            && self.enqueued >= filter.enqueued_from_ms
            && (filter.enqueued_before_ms == 0 || self.enqueued < filter.enqueued_before_ms)
            && u32::from(self.attempts) >= filter.attempts_min
    }

    pub(crate) fn rest(&mut self, state: JobState) {
        self.state = state;
        self.when = 0;
        self.by_wall = false;
        self.owner = 0;
    }

    pub(crate) fn view(&self, queue: &Queue, now: u64) -> JobView {
        let id = queue.id(self.seq);
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

pub(crate) fn enqueue(queue: &mut Queue, now: u64, wall: u64, item: &NewJob) -> Try<Enqueued> {
    let settings = queue.config.settings;
    if item.priority.is_some_and(|class| class > 7) {
        return Err(Rejection::Invalid);
    }
    if let Some(text) = &item.key
        && let Some(known) = queue.keys.iter().find(|key| key.text == text)
    {
        return if known.payload == item.payload {
            Ok(Enqueued::Existing(queue.id(known.seq)))
        } else {
            Err(Rejection::IdempotencyConflict)
        };
    }
    if queue.config.draining {
        return Err(Rejection::Draining);
    }
    if item.key.is_some() && queue.keys.len() >= settings.idempotency_keys_max as usize {
        return Err(Rejection::IdempotencyWindowFull);
    }
    let (jobs_max, bytes_max) = (
        queue.share(settings.jobs_max),
        queue.share(settings.bytes_max),
    );
    let many = jobs_max != 0 && queue.jobs.len() as u64 >= jobs_max;
    let after = queue.live_bytes() + item.payload.len() as u64;
    if many || (bytes_max != 0 && after > bytes_max) {
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
    Ok(Enqueued::New(queue.id(seq)))
}
