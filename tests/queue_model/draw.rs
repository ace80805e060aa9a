//! Draws commands that hit something most of the time.

use crate::model::{GROUPS, Model};
use bytes::Bytes;
use rrq::base::ids::{GroupId, JobId, Partition, QueueUid, SessionId, Token};
use rrq::base::prng::Prng;
use rrq::queue::command::*;
use rrq::queue::view::*;

/// Draws commands that hit something most of the time.
pub(crate) struct Draw {
    pub(crate) prng: Prng,
    pub(crate) sent: Vec<Command>,
    /// Only what version 1 can do.
    pub(crate) first: bool,
}

impl Draw {
    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
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

    pub(crate) fn settings(&mut self) -> QueueSettings {
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
            retain: match self.first {
                true if !odd => 0,
                _ => self.pick(&[0, 1, 4, 9]),
            },
            dead: self.pick(&[DeadPolicy::Keep, DeadPolicy::Keep, DeadPolicy::Drop]),
            partitions: match (odd, self.first) {
                (true, _) => self.pick(&[1, 0, 2]),
                (false, true) => 1,
                (false, false) => self.pick(&[1, 1, 2, 3, 6]),
            },
        }
    }

    pub(crate) fn filter(&mut self, model: &Model) -> JobFilter {
        let near = model.wall().saturating_sub(self.prng.below(300));
        JobFilter {
            reason_contains: self.pick(&["", "", "why", "rr", "e"]).into(),
            priority: self.pick(&[None, None, None, Some(4), Some(0), Some(8)]),
            enqueued_from_ms: self.pick(&[0, 0, near]),
            enqueued_before_ms: self.pick(&[0, 0, near]),
            attempts_min: self.pick(&[0, 0, 1, 2]),
        }
    }

    /// A queue at home in this group, most of the time.
    pub(crate) fn home(&mut self, model: &Model) -> QueueUid {
        let known: Vec<QueueUid> = model.homes.keys().copied().collect();
        if known.is_empty() || self.prng.chance(1, 100) {
            return self.odd_queue(model);
        }
        self.pick(&known)
    }

    pub(crate) fn odd_queue(&mut self, model: &Model) -> QueueUid {
        let counter = self.prng.below(u64::from(model.queue_counter) + 2) as u32;
        QueueUid::new(self.pick(&[model.group, model.group, GroupId(2)]), counter).unwrap()
    }

    /// A partition that lives in this group, most of the time.
    pub(crate) fn place(&mut self, model: &Model) -> (QueueUid, Partition) {
        let known: Vec<(QueueUid, Partition)> = model.queues.keys().copied().collect();
        if known.is_empty() || self.prng.chance(1, 100) {
            return (self.odd_queue(model), Partition(self.prng.below(3) as u8));
        }
        self.pick(&known)
    }

    /// A job, live in one of `states` if there is one, else anything near.
    pub(crate) fn job(&mut self, model: &Model, states: &[JobState]) -> (JobId, u32) {
        let place = self.place(model);
        if let Some(queue) = model.queues.get(&place) {
            let fit = queue.jobs.iter().filter(|job| states.contains(&job.state));
            let fit: Vec<(u64, u32)> = fit.map(|job| (job.seq, job.generation)).collect();
            if !fit.is_empty() && !self.prng.chance(1, 12) {
                let (seq, generation) = self.pick(&fit);
                return (queue.id(seq), generation);
            }
            let seq = self.prng.below(queue.next_seq + 3);
            return (queue.id(seq), self.prng.below(4) as u32);
        }
        let group = self.pick(&[model.group, GroupId(3)]);
        (JobId::new(group, place.0, place.1, self.prng.below(9)), 1)
    }

    pub(crate) fn token(&mut self, model: &Model) -> Token {
        let (job, generation) = self.job(model, &[JobState::InFlight]);
        let stale = self.prng.chance(1, 15);
        let lease_gen = if stale {
            generation.wrapping_sub(1)
        } else {
            generation
        };
        Token { job, lease_gen }
    }

    pub(crate) fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let len = self.pick(&[1, 1, 1, 2, 5]);
        (0..len).map(|_| one(self)).collect()
    }

    pub(crate) fn new_job(&mut self, model: &Model) -> NewJob {
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

    pub(crate) fn result(&mut self) -> Option<Bytes> {
        let len = self.pick(&[None, None, Some(0), Some(9), Some(4096), Some(4097)]);
        len.map(|len| Bytes::from(vec![1; len]))
    }

    pub(crate) fn reason(&mut self) -> Bytes {
        self.pick(&[
            Bytes::new(),
            Bytes::from_static(b"why"),
            Bytes::from(vec![b'r'; 300]),
        ])
    }

    pub(crate) fn session(&mut self, model: &Model) -> SessionId {
        let known: Vec<u32> = model.sessions.keys().copied().collect();
        if known.is_empty() || self.prng.chance(1, 30) {
            return SessionId(self.prng.below(u64::from(model.session_counter) + 2) as u32);
        }
        SessionId(self.pick(&known))
    }

    pub(crate) fn epoch(&mut self, model: &Model, session: SessionId) -> u32 {
        let epoch = model.sessions.get(&session.0).map_or(1, |slot| slot.epoch);
        if self.prng.chance(1, 10) {
            epoch - 1
        } else {
            epoch
        }
    }

    pub(crate) fn op(&mut self, model: &Model, holder: SessionId) -> Op {
        let few = model.homes.len() < 3;
        let place = self.place(model);
        let session = self.session(model);
        match self.prng.below(if few { 104 } else { 100 }) {
            0..25 => Op::Enqueue {
                queue: place.0,
                partition: place.1,
                items: self.list(|draw| draw.new_job(model)),
            },
            25..45 => Op::Lease {
                queue: place.0,
                partition: place.1,
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
                    result: draw.result(),
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
            77 if !self.first => Op::SweepDead {
                queue: place.0,
                partition: place.1,
                action: self.pick(&[SweepAction::Requeue, SweepAction::Delete]),
                filter: self.filter(model),
                from_seq: match model.queues.get(&place) {
                    Some(queue) => self.prng.below(queue.next_seq + 2) / self.pick(&[1, 2, 100]),
                    None => 0,
                },
                limit: self.pick(&[0, 1, 2, 1024]),
            },
            76 | 77 => Op::DeleteDead {
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
                let queue = self.home(model);
                let info = model.homes.get(&queue);
                let version = info.map_or(0, |info| info.version);
                let mut settings = self.settings();
                if let Some(info) = info.filter(|_| !self.prng.chance(1, 20)) {
                    settings.partitions = info.settings.partitions;
                }
                Op::AlterQueue {
                    queue,
                    expected_version: self.pick(&[0, version, version + 1]),
                    settings,
                }
            }
            95 if !self.first && self.prng.chance(1, 2) => Op::DrainQueue {
                queue: self.home(model),
            },
            95 => Op::PauseQueue {
                queue: self.home(model),
            },
            96 => Op::ResumeQueue {
                queue: self.home(model),
            },
            97 if self.prng.chance(1, 4) => Op::DeleteQueue {
                queue: self.home(model),
            },
            98 if self.prng.chance(1, 4) => Op::Purge {
                queue: place.0,
                partition: place.1,
                states: PurgeStates {
                    pending: self.prng.chance(1, 2),
                    delayed: self.prng.chance(1, 2),
                    dead: self.prng.chance(1, 2),
                },
            },
            97 | 98 => Op::ResumeQueue {
                queue: self.home(model),
            },
            _ => Op::CreateQueue {
                name: self.pick(&["a", "b", "c", "no good"]).to_owned(),
                settings: self.settings(),
                must_be_new: self.prng.chance(1, 3),
                groups: match self.first {
                    true => 0,
                    false => self.pick(&[u32::from(GROUPS), u32::from(GROUPS), 0]),
                },
            },
        }
    }

    pub(crate) fn command(&mut self, model: &Model) -> Command {
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
