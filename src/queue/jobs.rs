//! What commands do to jobs: enqueue, lease, the verbs of a token, the dead, and what is due.
//!
//! Each verb first finds its job (`token_of`, `live`), then makes one change through the partition,
//! which keeps all orders. A refusal comes before any change.

use crate::base::bugs::{self, Bug};
use crate::base::checksum::{Hash128, crc32c};
use crate::base::ids::{JobId, LogIndex, Partition, QueueUid, SessionId, Token};
use crate::base::limits::{
    ADVANCE_ITEMS_MAX, HEADERS_BYTES_MAX, HEADERS_MAX, ITEMS_MAX, KEY_BYTES_MAX,
    PAYLOAD_BYTES_HARD_MAX, PRIORITIES, REPLY_JOB_BYTES, REPLY_JOBS_BYTES_MAX, RESULT_BYTES_MAX,
};
use crate::base::units::{GroupTime, WallTime};
use crate::queue::backoff::wait_ms;
use crate::queue::body::StoredBody;
use crate::queue::command::{
    AckItem, Enqueued, Grant, ItemOutcome, NackItem, NewJob, Outcome, Rejection, Start,
};
use crate::queue::deadlines::Place;
use crate::queue::job_queue::JobQueue;
use crate::queue::keys::{KeyRecord, fingerprint};
use crate::queue::leaf::{Order, leaf_of, slot_of};
use crate::queue::partition::{Links, PartitionState, rest};
use crate::queue::record::Record;
use crate::queue::settings::backoff_is_valid;
use crate::queue::view::{JobEnd, JobState};
use bytes::Bytes;

const PRIORITY_DEFAULT: u8 = 4;

/// Why the machine itself ended an attempt, as the last failure tells it.
const REASON_LEASE: &str = "lease expired";
const REASON_WORKER: &str = "worker lost";
const REASON_TTL: &str = "expired";
const REASON_GRANTS: &str = "grants exhausted";

type Done = Result<(), Rejection>;

impl JobQueue {
    /// One outcome per item; too many items are refused whole.
    pub(super) fn each<T>(
        &mut self,
        items: &[T],
        mut one: impl FnMut(&mut Self, &T) -> Done,
    ) -> Outcome {
        if items.len() > ITEMS_MAX {
            return Outcome::Rejected(Rejection::Invalid);
        }
        let outcomes = items.iter().map(|item| match one(self, item) {
            Ok(()) => ItemOutcome::Done,
            Err(rejection) => ItemOutcome::Rejected(rejection),
        });
        Outcome::Items(outcomes.collect())
    }

    /// The partition of a job and what spans partitions.
    fn home_of(&mut self, id: JobId) -> Result<(&mut PartitionState, &mut Links), Rejection> {
        let place = (id.queue(), id.partition());
        let partition = self.partitions.get_mut(&place);
        match partition.filter(|_| id.group() == self.group) {
            Some(partition) => Ok((partition, &mut self.links)),
            None => Err(Rejection::QueueChanged),
        }
    }

    /// The job of a token, if it is that of the present grant.
    fn token_of(
        &mut self,
        token: Token,
    ) -> Result<(&mut PartitionState, &mut Links, Record), Rejection> {
        let (partition, links) = self.home_of(token.job)?;
        let leased = partition.leaves.in_flight(token.job.seq()).copied();
        let fits = |record: &Record| {
            record.lease_gen == token.lease_gen || bugs::on(Bug::StaleTokenAccepted)
        };
        match leased.filter(fits) {
            Some(record) => Ok((partition, links, record)),
            None => Err(Rejection::LeaseLost),
        }
    }

    /// A live job.
    fn live(&mut self, id: JobId) -> Result<(&mut PartitionState, &mut Links, Record), Rejection> {
        let (partition, links) = self.home_of(id)?;
        match partition.leaves.record(id.seq()).copied() {
            Some(record) => Ok((partition, links, record)),
            None if id.seq() < partition.head.next_seq => Err(Rejection::Finished),
            None => Err(Rejection::NotFound),
        }
    }

    pub(super) fn enqueue(
        &mut self,
        index: LogIndex,
        queue: QueueUid,
        number: Partition,
        items: &[NewJob],
    ) -> Outcome {
        if items.len() > ITEMS_MAX {
            return Outcome::Rejected(Rejection::Invalid);
        }
        let (time, wall, group) = (self.time, self.wall(), self.group);
        let Some(partition) = self.partitions.get_mut(&(queue, number)) else {
            return Outcome::Rejected(Rejection::QueueChanged);
        };
        let links = &mut self.links;
        let outcomes = items.iter().enumerate().map(|(position, item)| {
            let id = |seq| JobId::new(group, queue, number, seq);
            let new = match examine(partition, item) {
                Ok(Examined::New(key)) => key,
                Ok(Examined::Existing(seq)) => return Enqueued::Existing(id(seq)),
                Err(rejection) => return Enqueued::Rejected(rejection),
            };
            let id = id(partition.head.next_seq);
            partition.head.next_seq += 1;
            let stats = &mut partition.head.stats;
            stats.enqueued_total = stats.enqueued_total.saturating_add(1);
            if let Some((hash, fingerprint)) = new {
                let window_ms = partition.head.config.settings.idempotency_window_ms;
                let expires = time.plus_ms(window_ms).0;
                let key = KeyRecord {
                    hash,
                    seq: id.seq(),
                    fingerprint,
                    expires,
                };
                partition.remember((queue, number), key, links);
            }
            let position = u16::try_from(position).expect("items are bounded by ITEMS_MAX");
            let max_attempts = partition.head.config.settings.max_attempts;
            let record = new_record(item, wall, max_attempts, index, position);
            let body = StoredBody::of_job(item, &mut links.scratch);
            partition.insert(id, record, body, links);
            Enqueued::New(id)
        });
        Outcome::Enqueued(outcomes.collect())
    }

    /// Grants up to `max` jobs, to a session of this epoch or to nobody.
    pub(super) fn lease(
        &mut self,
        queue: QueueUid,
        number: Partition,
        max: u32,
        lease_ms: u32,
        holder: Option<(SessionId, u32)>,
    ) -> Outcome {
        if max as usize > ITEMS_MAX {
            return Outcome::Rejected(Rejection::Invalid);
        }
        if let Some((session, epoch)) = holder {
            let slot = self.links.sessions.get(session);
            let page = &slot.expect("its command was let through").page;
            let ended = page.ended && !bugs::on(Bug::GrantAfterEnd);
            if page.epoch != epoch || ended {
                return Outcome::Rejected(Rejection::Reattach);
            }
        }
        let (time, group, version) = (self.time, self.group, self.version);
        let Some(partition) = self.partitions.get_mut(&(queue, number)) else {
            return Outcome::Rejected(Rejection::QueueChanged);
        };
        let holding = Holding {
            owner: holder.map_or(0, |(session, _)| session.0),
            since: if version >= 2 { time.0 } else { 0 },
        };
        let mut grants = Vec::new();
        let mut room = ReplyRoom::default();
        while grants.len() < max as usize && !partition.head.config.paused {
            let Some(seq) = partition.leaves.first_ready() else {
                break;
            };
            let record = partition.leaves.record(seq);
            if !room.takes(record.expect("a ready job is live").payload_len) {
                break;
            }
            let id = JobId::new(group, queue, number, seq);
            let links = &mut self.links;
            grants.extend(grant(partition, links, id, time, lease_ms, holding));
        }
        Outcome::Leased(grants)
    }

    pub(super) fn extend(&mut self, token: Token, lease_ms: u32) -> Done {
        let time = self.time;
        let (partition, links, record) = self.token_of(token)?;
        let lease_ms = lease_time(lease_ms, &record, partition);
        partition.change(token.job, links, |record| {
            record.when = time.plus_ms(u64::from(lease_ms)).0;
        });
        Ok(())
    }

    pub(super) fn ack(&mut self, item: &AckItem) -> Done {
        let (time, wall) = (self.time, self.wall());
        let (partition, links, record) = self.token_of(item.token)?;
        let result_len = item.result.as_ref().map_or(0, Bytes::len);
        if result_len > RESULT_BYTES_MAX {
            return Err(Rejection::Invalid);
        }
        let stats = &mut partition.head.stats;
        stats.completed_total = stats.completed_total.saturating_add(1);
        let result = item.result.as_ref();
        partition.finish(item.token.job, JobEnd::Completed, result, wall, links);
        if record.leased_at != 0 {
            self.run_times.push(time.0.saturating_sub(record.leased_at));
        }
        Ok(())
    }

    pub(super) fn nack(&mut self, item: &NackItem) -> Done {
        let (time, wall, id) = (self.time, self.wall(), item.token.job);
        let (partition, links, record) = self.token_of(item.token)?;
        let stats = &mut partition.head.stats;
        stats.nacked_total = stats.nacked_total.saturating_add(1);
        if record.attempts >= record.max_attempts {
            partition.die(id, &item.reason, wall, links);
            return Ok(());
        }
        let leaf = partition.leaves.get(leaf_of(id.seq()));
        let leaf = leaf.expect("a live job has its leaf");
        let own = leaf.body(slot_of(id.seq())).backoff();
        let backoff = own.unwrap_or(partition.head.config.settings.backoff);
        let wait = item
            .delay_ms
            .unwrap_or_else(|| wait_ms(&backoff, record.attempts, id));
        partition.set_reason(id, &item.reason);
        partition.change(id, links, |record| {
            if wait == 0 {
                rest(record, JobState::Pending);
            } else {
                rest(record, JobState::Delayed);
                record.when = time.plus_ms(wait).0;
            }
        });
        Ok(())
    }

    pub(super) fn release(&mut self, token: Token) -> Done {
        let (partition, links, _) = self.token_of(token)?;
        partition.change(token.job, links, |record| {
            rest(record, JobState::Pending);
            record.attempts -= 1;
        });
        Ok(())
    }

    pub(super) fn bury(&mut self, token: Token, reason: &Bytes) -> Done {
        let (partition, links, _) = self.token_of(token)?;
        partition.bury(token.job, reason, links);
        Ok(())
    }

    pub(super) fn cancel(&mut self, id: JobId) -> Done {
        let wall = self.wall();
        let (partition, links, record) = self.live(id)?;
        if record.state == Some(JobState::Dead) {
            return Err(Rejection::WrongState);
        }
        let stats = &mut partition.head.stats;
        stats.cancelled_total = stats.cancelled_total.saturating_add(1);
        partition.finish(id, JobEnd::Cancelled, None, wall, links);
        Ok(())
    }

    pub(super) fn requeue_dead(&mut self, id: JobId) -> Done {
        let wall = self.wall();
        let (partition, links, record) = self.live(id)?;
        if record.state != Some(JobState::Dead) {
            return Err(Rejection::WrongState);
        }
        requeue(partition, links, id, wall);
        Ok(())
    }

    pub(super) fn delete_dead(&mut self, id: JobId) -> Done {
        let (partition, links, record) = self.live(id)?;
        if record.state != Some(JobState::Dead) {
            return Err(Rejection::WrongState);
        }
        partition.remove(id, links);
        Ok(())
    }

    /// Handles what is due, in the order that `Op::Advance` documents.
    pub(super) fn advance(&mut self, limit: u32) -> Outcome {
        let limit = limit.min(ADVANCE_ITEMS_MAX);
        let (now, wall_time) = (self.time.0, self.wall());
        let wall = wall_time.0;
        let mut handled = 0;
        while handled < limit {
            if let Some(id) = self.due(Order::Delays, now) {
                self.on_due(id, |partition, id, links| {
                    partition.change(id, links, |record| rest(record, JobState::Pending));
                });
            } else if let Some(id) = self.due(Order::RunAts, wall) {
                self.on_due(id, |partition, id, links| {
                    partition.change(id, links, |record| rest(record, JobState::Pending));
                });
            } else if let Some(id) = self.due(Order::Leases, now) {
                self.on_due(id, |partition, id, links| {
                    partition.lose(id, REASON_LEASE, wall_time, links);
                });
            } else if let Some(id) = self.due(Order::Ttls, wall) {
                self.on_due(id, |partition, id, links| {
                    let reason = Bytes::from_static(REASON_TTL.as_bytes());
                    partition.die(id, &reason, wall_time, links);
                });
            } else if !self.forget_key(now) && !self.drop_surplus() {
                break;
            }
            handled += 1;
        }
        Outcome::Advanced { handled }
    }

    /// The job that is due first in an order, if it is due at `now`.
    fn due(&mut self, order: Order, now: u64) -> Option<JobId> {
        let is_due = |(when, _): &(u64, _)| *when <= now;
        self.links.deadlines.first(order).filter(is_due)?;
        let (_, (queue, number)) = self.settle(order).filter(is_due)?;
        let partition = self.partitions.get_mut(&(queue, number))?;
        let seq = partition.leaves.due_first(order)?;
        Some(JobId::new(self.group, queue, number, seq))
    }

    /// Makes the first time of an order exact; it, and the partition in which it stands.
    pub(super) fn settle(&mut self, order: Order) -> Option<(u64, Place)> {
        let deadlines = &mut self.links.deadlines;
        loop {
            let (when, place) = deadlines.first(order)?;
            let partition = self.partitions.get_mut(&place);
            let partition = partition.expect("what waits for a time has its partition");
            let before = *partition.leaves.summary();
            partition.leaves.settle(order as usize);
            let after = partition.leaves.summary();
            if after.dues[order as usize] == when {
                return Some((when, place));
            }
            deadlines.note_jobs(place, &before, after);
        }
    }

    /// Makes the first time at which a key is forgotten exact; it, and the partition of the key.
    pub(super) fn settle_keys(&mut self) -> Option<(u64, Place)> {
        let deadlines = &mut self.links.deadlines;
        loop {
            let (when, place) = deadlines.first_key()?;
            let partition = self.partitions.get_mut(&place);
            let keys = &mut partition.expect("a remembered key has its partition").keys;
            keys.settle();
            if keys.first_expiry() == when {
                return Some((when, place));
            }
            deadlines.note_keys(place, when, keys.first_expiry());
        }
    }

    fn on_due(&mut self, id: JobId, act: impl FnOnce(&mut PartitionState, JobId, &mut Links)) {
        let (partition, links) = self
            .home_of(id)
            .expect("what waits for a time is live here");
        act(partition, id, links);
    }

    /// Forgets the first key whose window has ended.
    fn forget_key(&mut self, now: u64) -> bool {
        let is_due = |(when, _): &(u64, Place)| *when <= now;
        let bound = self.links.deadlines.first_key().filter(is_due);
        let Some((_, place)) = bound.and_then(|_| self.settle_keys()).filter(is_due) else {
            return false;
        };
        let partition = self.partitions.get_mut(&place);
        let partition = partition.expect("a remembered key has its partition");
        partition.forget_first(place, &mut self.links);
        true
    }

    /// The leases of a session go back, as lost.
    pub(super) fn give_back_all(&mut self, session: SessionId) {
        let slot = self
            .links
            .sessions
            .get(session)
            .expect("the caller found it");
        let held: Vec<JobId> = slot.held.iter().copied().collect();
        let wall = self.wall();
        for id in held {
            self.on_due(id, |partition, id, links| {
                partition.lose(id, REASON_WORKER, wall, links);
            });
        }
    }

    /// The tokens of all jobs that a session holds, by job.
    pub(super) fn tokens_of(&self, session: SessionId) -> Vec<Token> {
        let slot = self
            .links
            .sessions
            .get(session)
            .expect("the caller found it");
        let token = |id: &JobId| {
            let partition = &self.partitions[&(id.queue(), id.partition())];
            let record = partition
                .leaves
                .record(id.seq())
                .expect("a job that is held is live");
            Token {
                job: *id,
                lease_gen: record.lease_gen,
            }
        };
        slot.held.iter().map(token).collect()
    }

    /// A grant of a repeated poll, with the time that is left, or nothing if it is stale by now.
    pub(super) fn still_valid(&self, grant: Grant) -> Option<Grant> {
        let id = grant.token.job;
        let partition = self.partitions.get(&(id.queue(), id.partition()))?;
        let record = partition.leaves.in_flight(id.seq())?;
        let valid = record.lease_gen == grant.token.lease_gen;
        let left_ms = record.when.saturating_sub(self.time.0);
        valid.then(|| Grant {
            lease_ms: u32::try_from(left_ms).unwrap_or(u32::MAX),
            ..grant
        })
    }
}

/// What an enqueue would do.
enum Examined {
    /// A new job; hash and fingerprint of its key, if it has one.
    New(Option<(Hash128, u64)>),
    /// The key names this sequence already.
    Existing(u64),
}

fn examine(partition: &PartitionState, item: &NewJob) -> Result<Examined, Rejection> {
    if !item_is_valid(item) {
        return Err(Rejection::Invalid);
    }
    let head = &partition.head;
    let key = item
        .key
        .as_ref()
        .map(|key| (Hash128::of(key), fingerprint(&item.payload)));
    if let Some((hash, fingerprint)) = key {
        match partition.keys.get(hash) {
            Some(known) if known.fingerprint == fingerprint => {
                return Ok(Examined::Existing(known.seq));
            }
            Some(_) => return Err(Rejection::IdempotencyConflict),
            None => {}
        }
    }
    if head.config.draining {
        return Err(Rejection::Draining);
    }
    let settings = &head.config.settings;
    if key.is_some() && head.stats.keys >= u64::from(settings.idempotency_keys_max) {
        return Err(Rejection::IdempotencyWindowFull);
    }
    // History takes no room from live jobs: it goes when they need it.
    let jobs = head.live();
    let live_bytes = head.stats.bytes - partition.history.result_bytes();
    let bytes = live_bytes + item.payload.len() as u64;
    let (jobs_max, bytes_max) = head.bounds();
    if (jobs_max != 0 && jobs >= jobs_max) || (bytes_max != 0 && bytes > bytes_max) {
        return Err(Rejection::QuotaExceeded);
    }
    if head.next_seq > JobId::SEQ_MAX {
        return Err(Rejection::IdsExhausted);
    }
    Ok(Examined::New(key))
}

fn item_is_valid(item: &NewJob) -> bool {
    let headers = item
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len());
    let start_fits = !matches!(item.start, Start::At(at) if at > WallTime::MAX.0);
    item.payload.len() <= PAYLOAD_BYTES_HARD_MAX
        && item
            .priority
            .is_none_or(|class| usize::from(class) < PRIORITIES)
        && item
            .key
            .as_ref()
            .is_none_or(|key| (1..=KEY_BYTES_MAX).contains(&key.len()))
        && item.headers.len() <= HEADERS_MAX
        && headers.sum::<usize>() <= HEADERS_BYTES_MAX
        && item.backoff.as_ref().is_none_or(backoff_is_valid)
        && start_fits
}

fn new_record(
    item: &NewJob,
    wall: WallTime,
    queue_attempts: u16,
    index: LogIndex,
    position: u16,
) -> Record {
    let run_at = match item.start {
        Start::Now => wall,
        Start::After(ms) => wall.plus_ms(ms),
        Start::At(at) => WallTime(at),
    };
    let delayed = run_at > wall;
    let own = item.max_attempts;
    Record {
        state: Some(if delayed {
            JobState::Delayed
        } else {
            JobState::Pending
        }),
        priority: item.priority.unwrap_or(PRIORITY_DEFAULT),
        wall: delayed,
        attempts: 0,
        max_attempts: if own == 0 { queue_attempts } else { own },
        when: if delayed { run_at.0 } else { 0 },
        enqueued_at: wall.0,
        expires_at: if item.ttl_ms == 0 {
            0
        } else {
            wall.plus_ms(item.ttl_ms).0
        },
        log_index: index.0,
        position,
        lease_ms: item.lease_ms,
        payload_len: u32::try_from(item.payload.len()).expect("bounded by 4 MiB"),
        payload_crc: crc32c(&[&item.payload]),
        lease_gen: 0,
        owner: 0,
        leased_at: 0,
    }
}

/// How long a lease is: as asked, else the job's own, else the queue's.
fn lease_time(asked_ms: u32, record: &Record, partition: &PartitionState) -> u32 {
    let settings = &partition.head.config.settings;
    let choices = [asked_ms, record.lease_ms, settings.lease_ms];
    choices
        .into_iter()
        .find(|ms| *ms != 0)
        .unwrap_or(settings.lease_ms)
}

/// What is left of a reply that lists jobs with their payloads. It goes by what a job may take at
/// the most, so that it depends on the records alone.
#[derive(Default)]
pub(super) struct ReplyRoom {
    used: usize,
}

impl ReplyRoom {
    /// Whether a job with this much payload fits; the first always does.
    pub(super) fn takes(&mut self, payload_len: u32) -> bool {
        let before = self.used;
        self.used += payload_len as usize + REPLY_JOB_BYTES;
        before == 0 || self.used <= REPLY_JOBS_BYTES_MAX
    }
}

/// A dead job gets all its attempts anew. A time to live that has ended is taken from it, since it
/// would die of it again at once.
pub(super) fn requeue(
    partition: &mut PartitionState,
    links: &mut Links,
    id: JobId,
    wall: WallTime,
) {
    partition.change(id, links, |record| {
        rest(record, JobState::Pending);
        record.attempts = 0;
        record.lease_gen = record.lease_gen.saturating_add(1);
        if record.expires_at <= wall.0 {
            record.expires_at = 0;
        }
    });
}

/// What a record remembers of a grant.
#[derive(Clone, Copy)]
struct Holding {
    /// The session; 0 = none.
    owner: u32,
    /// The group's time; 0 in machine version 1, which does not remember it.
    since: u64,
}

/// Grants a ready job. One whose generation cannot rise any more is buried, never granted again
/// under an old token.
fn grant(
    partition: &mut PartitionState,
    links: &mut Links,
    id: JobId,
    time: GroupTime,
    asked_ms: u32,
    holding: Holding,
) -> Option<Grant> {
    let record = *partition
        .leaves
        .record(id.seq())
        .expect("a ready job is live");
    let step = u32::from(record.lease_gen == 0 || !bugs::on(Bug::TokenReused));
    let Some(lease_gen) = record.lease_gen.checked_add(step) else {
        partition.bury(id, &Bytes::from_static(REASON_GRANTS.as_bytes()), links);
        return None;
    };
    let lease_ms = lease_time(asked_ms, &record, partition);
    let attempt = record.attempts + 1;
    partition.change(id, links, |record| {
        record.state = Some(JobState::InFlight);
        record.when = time.plus_ms(u64::from(lease_ms)).0;
        record.attempts = attempt;
        record.lease_gen = lease_gen;
        record.owner = holding.owner;
        record.leased_at = holding.since;
    });
    let stats = &mut partition.head.stats;
    stats.leased_total = stats.leased_total.saturating_add(1);
    Some(Grant {
        token: Token { job: id, lease_gen },
        attempt,
        lease_ms,
    })
}
