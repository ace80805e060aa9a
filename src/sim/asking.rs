//! What every simulated client asks, and what it learns from an answer: shared by the one that keeps its
//! session by hand and the one that uses the client library.

use super::ledger::Ledger;
use crate::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, Token};
use crate::base::prng::Prng;
use crate::queue::command::{
    AckItem, Command, NackItem, NewJob, Op, QueueInfo, QueueSettings, Start,
};
use crate::queue::view::{FinishedJob, JobEnd};
use crate::wire::message::{LeasedJob, RequestBody};
use bytes::Bytes;

/// A partition of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) queue: QueueUid,
    pub(super) partition: Partition,
    pub(super) group: GroupId,
}

impl Place {
    /// The partition that a client works with.
    pub(super) fn of(info: &QueueInfo, client: u64) -> Self {
        let partition = (client % info.groups.len() as u64) as u8;
        Self {
            queue: info.uid,
            partition: Partition(partition),
            group: info.groups[usize::from(partition)],
        }
    }

    /// Up to four of its jobs, sometimes for a time of the caller's own.
    pub(super) fn lease(self, prng: &mut Prng, epoch: u32) -> Op {
        let max = 1 + prng.below(4) as u32;
        let lease_ms = if prng.chance(1, 3) {
            500 + prng.below(3_000) as u32
        } else {
            0
        };
        Op::Lease {
            queue: self.queue,
            partition: self.partition,
            max,
            lease_ms,
            epoch,
        }
    }

    pub(super) fn watch(self, prng: &mut Prng) -> RequestBody {
        RequestBody::Watch {
            queue: self.queue,
            partition: self.partition,
            group: self.group,
            wait_ms: prng.below(2_000) as u32,
        }
    }

    pub(super) fn enqueue(self, items: Vec<NewJob>) -> Op {
        Op::Enqueue {
            queue: self.queue,
            partition: self.partition,
            items,
        }
    }
}

pub(super) fn command(group: GroupId, op: Op, wait_ms: u32) -> RequestBody {
    RequestBody::Command {
        group,
        command: Command { session: None, op },
        wait_ms,
    }
}

/// Finds a queue, or makes it as the node does or as is said.
pub(super) fn find_queue(
    name: &str,
    settings: Option<QueueSettings>,
    home: GroupId,
) -> RequestBody {
    let name = name.to_owned();
    let Some(settings) = settings else {
        return RequestBody::GetQueue { name, create: true };
    };
    let op = Op::CreateQueue {
        name,
        settings,
        must_be_new: false,
        groups: 0,
    };
    command(home, op, 0)
}

/// How long a lease waits for its first job.
pub(super) fn lease_wait_ms(prng: &mut Prng) -> u32 {
    if prng.chance(1, 2) {
        prng.below(2_000) as u32
    } else {
        0
    }
}

/// A job of this number, with a payload of less than so many bytes, and eight.
pub(super) fn new_job(number: u64, payload_bytes: u64, prng: &mut Prng) -> NewJob {
    let start = match prng.below(4) {
        0 => Start::After(prng.below(3_000)),
        _ => Start::Now,
    };
    NewJob {
        payload: payload_of(number, prng.below(payload_bytes)),
        priority: prng.chance(1, 3).then(|| prng.below(8) as u8),
        start,
        ..NewJob::default()
    }
}

/// The first few of the jobs that are held.
pub(super) fn take_held(held: &mut Vec<Token>, prng: &mut Prng) -> Vec<Token> {
    let count = (prng.below(3) as usize + 1).min(held.len());
    held.drain(..count).collect()
}

pub(super) fn ack(tokens: &[Token]) -> Op {
    let ack = |token: &Token| AckItem {
        token: *token,
        result: Some(result_of(token.job)),
    };
    Op::Ack {
        items: tokens.iter().map(ack).collect(),
    }
}

/// These jobs go back, as not started or as failed.
pub(super) fn give_back(tokens: Vec<Token>, prng: &mut Prng) -> Op {
    if prng.chance(1, 2) {
        return Op::Release { items: tokens };
    }
    let delay_ms = prng.chance(1, 2).then(|| prng.below(1_000));
    let reason = Bytes::from_static(b"simulated");
    let nack = |token| NackItem {
        token,
        delay_ms,
        reason: reason.clone(),
    };
    Op::Nack {
        items: tokens.into_iter().map(nack).collect(),
    }
}

pub(super) fn extend(token: Token, prng: &mut Prng) -> Op {
    Op::Extend {
        items: vec![(token, prng.below(5_000) as u32)],
    }
}

/// Jobs were granted, as of `at`; `repeated` as in [`Ledger::delivered`].
pub(super) fn take_grants(
    jobs: &[LeasedJob],
    at: LogIndex,
    repeated: bool,
    ledger: &mut Ledger,
) -> Vec<Token> {
    let take = |leased: &LeasedJob| {
        let token = leased.token();
        let number = number_of(&leased.job.body.payload);
        ledger.delivered(number, token, at, repeated);
        token
    };
    jobs.iter().map(take).collect()
}

/// Somebody asked how a job ended.
pub(super) fn take_finished(asked: JobId, job: &FinishedJob, ledger: &Ledger) {
    assert!(job.id == asked && job.end == JobEnd::Completed, "{job:?}");
    assert!(job.result == Some(result_of(asked)), "{job:?}");
    ledger.told_finished(asked);
}

/// What a worker gives back for a job.
fn result_of(job: JobId) -> Bytes {
    Bytes::copy_from_slice(&job.to_bytes())
}

/// A payload that tells which job it is of.
fn payload_of(number: u64, padding: u64) -> Bytes {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(8 + usize::try_from(padding).expect("small"), number as u8);
    payload.into()
}

fn number_of(payload: &Bytes) -> u64 {
    let number = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
    assert!(
        payload[8..].iter().all(|byte| *byte == number as u8),
        "payload of {number} changed"
    );
    number
}
