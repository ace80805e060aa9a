//! Reads: answered from the applied state of the leader, without an entry in the log.
//!
//! A leader first makes sure that it still leads, by one round of heartbeats for all reads of a turn
//! (ReadIndex, Raft thesis 6.4); one that is the only voter is sure. Then the state that it has applied is
//! the latest. Each read looks at a bounded number of jobs and fits into one reply.

use super::engine::ShardEngine;
use super::input::Origin;
use super::requests::Refusal;
use crate::base::code::Code;
use crate::base::ids::{JobId, LogIndex, QueueUid, SessionId};
use crate::base::limits::REPLY_JOBS_BYTES_MAX;
use crate::queue::command::{Outcome, Rejection};
use crate::queue::view::SessionView;
use crate::wire::message::{ReplyBody, RequestBody, WorkerInfo, WorkerSession};
use std::collections::{BTreeMap, VecDeque};

/// More than what a worker takes in a reply besides its name and tags.
const WORKER_BYTES: usize = 64;

/// Reads that wait until the leader is sure.
#[derive(Default)]
pub(super) struct Reads {
    next: u64,
    waiting: BTreeMap<u64, (Origin, u64, RequestBody)>,
    /// Let through once this index is applied.
    sure: VecDeque<(LogIndex, u64)>,
    /// Let through, and waiting for pages that are on the disk alone.
    held: Vec<(Origin, u64, Held)>,
}

/// A read that may have to wait for pages.
pub(super) enum Held {
    /// Of a client.
    Read(RequestBody),
    /// The queue that a command has made or changed.
    Queue(QueueUid),
}

impl Reads {
    /// The reads that are let through.
    pub(super) fn let_through(&mut self, reads: impl Iterator<Item = (u64, LogIndex)>) {
        self.sure.extend(reads.map(|(id, index)| (index, id)));
    }

    /// The next read that may be answered.
    fn take(&mut self, applied: LogIndex) -> Option<(Origin, u64, RequestBody)> {
        while let Some((_, id)) = self.sure.pop_front_if(|(index, _)| *index <= applied) {
            // It may have been refused meanwhile.
            if let Some(read) = self.waiting.remove(&id) {
                return Some(read);
            }
        }
        None
    }

    /// Those that wait for pages.
    pub(super) fn take_held(&mut self) -> Vec<(Origin, u64, Held)> {
        std::mem::take(&mut self.held)
    }

    /// All that wait: who asked, and which request.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = (Origin, u64)> {
        self.sure.clear();
        let held = self.take_held().into_iter();
        let held = held.map(|(from, request, _)| (from, request));
        let waiting = std::mem::take(&mut self.waiting).into_values();
        let waiting = waiting.map(|(from, request, _)| (from, request));
        held.chain(waiting)
    }
}

impl ShardEngine {
    /// A read of a client; it is answered at the next turn, or when the leader is sure.
    pub(super) fn ask_read(
        &mut self,
        slot: usize,
        (from, request): (Origin, u64),
        body: RequestBody,
    ) -> Result<(), Refusal> {
        let group = &mut self.groups[slot];
        group.reads.next += 1;
        let id = group.reads.next;
        let asked = group.raft.read_index(id);
        asked.map_err(|error| Refusal::new(Code::NotLeader, error.to_string()))?;
        group.reads.waiting.insert(id, (from, request, body));
        self.mark(slot);
        Ok(())
    }

    /// Answers the reads that are let through and whose index is applied.
    pub(super) fn answer_reads(&mut self, slot: usize) {
        loop {
            let group = &mut self.groups[slot];
            let applied = group.raft.log().applied();
            let Some((from, request, body)) = group.reads.take(applied) else {
                return;
            };
            self.answer_when_here(slot, (from, request), Held::Read(body));
        }
    }

    /// Answers a read that is let through, once what it needs is here.
    pub(super) fn answer_when_here(
        &mut self,
        slot: usize,
        (from, request): (Origin, u64),
        read: Held,
    ) {
        // The connection may have closed.
        if !from.is_engine() && !self.conns.contains_key(&from) {
            return;
        }
        if self.needs_pages(slot, &read) {
            return self.groups[slot].reads.held.push((from, request, read));
        }
        let answered = match read {
            Held::Read(body) => self.answer_read(slot, (from, request), body),
            Held::Queue(uid) => {
                self.reply_queue(slot, from, request, uid);
                Ok(())
            }
        };
        if let Err(refusal) = answered {
            self.refuse(from, request, &refusal);
        }
    }

    fn answer_read(
        &mut self,
        slot: usize,
        (from, request): (Origin, u64),
        body: RequestBody,
    ) -> Result<(), Refusal> {
        match body {
            RequestBody::GetQueue { name, create } => {
                self.on_get_queue(from, slot, request, &name, create)
            }
            RequestBody::Watch {
                queue,
                partition,
                wait_ms,
                ..
            } => self.on_watch(from, slot, request, (queue, partition), wait_ms),
            RequestBody::WaitJob { job, wait_ms } => {
                self.on_wait_job(from, slot, request, job, wait_ms)
            }
            read => {
                let body = self.read(slot, read);
                let stamp = self.stamp(slot);
                self.reply(from, request, Some(stamp), body);
                Ok(())
            }
        }
    }

    /// The answer to a read.
    pub(super) fn read(&self, slot: usize, body: RequestBody) -> ReplyBody {
        let queue = &self.groups[slot].queue;
        let answer = match body {
            RequestBody::GetJob { job } => return self.job_answer(slot, job),
            RequestBody::GetJobByKey {
                queue: uid,
                partition,
                key,
                ..
            } => queue
                .job_by_key(uid, partition, &key)
                .map(|job| ReplyBody::Job(Box::new(job))),
            RequestBody::Peek {
                queue: uid,
                partition,
                state,
                limit,
                ..
            } => {
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                queue
                    .peek(uid, partition, state, limit)
                    .map(ReplyBody::Jobs)
            }
            RequestBody::ScanJobs { scan, .. } => queue.scan(&scan).map(ReplyBody::JobPage),
            RequestBody::ScanFinished {
                queue: uid,
                partition,
                before,
                limit,
                ..
            } => {
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                queue
                    .scan_finished(uid, partition, before, limit)
                    .map(ReplyBody::FinishedPage)
            }
            RequestBody::GetPartition {
                queue: uid,
                partition,
                ..
            } => queue
                .partition_stats(uid, partition)
                .map(|stats| ReplyBody::Partition(Box::new(stats))),
            RequestBody::ListQueues { .. } => Ok(ReplyBody::Queues(queue.queues())),
            RequestBody::ListWorkers { .. } => Ok(ReplyBody::Workers(self.workers(slot))),
            RequestBody::Command { .. }
            | RequestBody::GetQueue { .. }
            | RequestBody::Watch { .. }
            | RequestBody::WaitJob { .. }
            | RequestBody::Heartbeat { .. }
            | RequestBody::ChangeMembers(_)
            | RequestBody::Drain { .. }
            | RequestBody::Status
            | RequestBody::Bye => unreachable!("{body:?} is no read of a group"),
        };
        answer.unwrap_or_else(|rejection| ReplyBody::Outcome(Outcome::Rejected(rejection)))
    }

    /// A job, live or finished and retained, or why there is none.
    pub(super) fn job_answer(&self, slot: usize, id: JobId) -> ReplyBody {
        let queue = &self.groups[slot].queue;
        match queue.job(id) {
            Ok(job) => ReplyBody::Job(Box::new(job)),
            Err(rejection) => match queue.finished(id) {
                Some(job) if rejection == Rejection::Finished => ReplyBody::Finished(Box::new(job)),
                _ => ReplyBody::Outcome(Outcome::Rejected(rejection)),
            },
        }
    }

    /// The sessions of a group that hold jobs, wait for some, or told who they are; as many as a
    /// reply holds.
    fn workers(&self, slot: usize) -> Vec<WorkerSession> {
        let group = &self.groups[slot];
        let mut waiting: BTreeMap<SessionId, u32> = BTreeMap::new();
        for session in group.polls.sessions() {
            *waiting.entry(session).or_default() += 1;
        }
        let mut watching: BTreeMap<Origin, u32> = BTreeMap::new();
        for origin in group.waits.watches() {
            *watching.entry(origin).or_default() += 1;
        }
        let mut room = REPLY_JOBS_BYTES_MAX;
        let one = |session: SessionView| {
            let (conn, heard) = group.liveness.last_heard(session.id)?;
            let worker = conn.and_then(|conn| self.conns.get(&conn)?.worker.clone());
            let polls = waiting.get(&session.id).copied().unwrap_or(0);
            let watches = conn.and_then(|conn| watching.get(&conn)).copied();
            let waiting = polls + watches.unwrap_or(0);
            let works = session.leases > 0 || waiting > 0 || worker.is_some();
            works.then(|| WorkerSession {
                session: session.id,
                leases: session.leases,
                waiting,
                silent_ms: u64::try_from(self.now.mono.since(heard).as_millis())
                    .unwrap_or(u64::MAX),
                ended: session.ended,
                worker,
            })
        };
        let fits = |worker: &WorkerSession| {
            let left = room.checked_sub(worker_bytes(worker.worker.as_ref()));
            room = left.unwrap_or(0);
            left.is_some()
        };
        group
            .queue
            .sessions()
            .into_iter()
            .filter_map(one)
            .take_while(fits)
            .collect()
    }
}

fn worker_bytes(worker: Option<&WorkerInfo>) -> usize {
    let text = |worker: &WorkerInfo| {
        let tags = worker.tags.iter().map(|tag| tag.len() + 4);
        worker.name.len() + tags.sum::<usize>()
    };
    WORKER_BYTES + worker.map_or(0, text)
}
