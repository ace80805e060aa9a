//! What the program asks: the verbs of the library, with the bodies that it makes of them.

use super::{Batch, Call, CoreClient, Moment, Mood, Purpose};
use crate::client::session::{Input, Route};
use crate::queue::command::{NewJob, Op};
use crate::sim::asking::{
    Place, ack, command, extend, find_queue, give_back, lease_wait_ms, new_job, take_held,
};
use crate::sim::ledger::Ledger;
use crate::wire::message::RequestBody;
use std::time::Duration;

/// Calls under way at once, leases among them, and jobs held.
const CALLS_MAX: usize = 6;
const LEASES_MAX: usize = 2;
const HELD_MAX: usize = 8;
/// Longer than any run drains: such a lease ends in time only if its holder is seen to be gone, or gives it
/// back.
const LEASE_LONG_MS: u32 = 30 * 60 * 1_000;
/// Where all is well, every call has its answer within this.
const PATIENCE_WELL: Duration = Duration::from_secs(60);

impl CoreClient {
    pub(super) fn ask(&mut self, at: &mut Moment<'_>) {
        if self.calls.len() >= CALLS_MAX {
            return;
        }
        let Some(place) = self.place else {
            if self.calls.is_empty() {
                self.find_queue(at);
            }
            return;
        };
        let is_leaving = at.mood == Mood::Leaves;
        if let Some(batch) = self.in_doubt.pop() {
            return self.enqueue(place, batch, at);
        }
        match self.prng.below(20) {
            _ if is_leaving => self.finish(at),
            0..=4 if matches!(at.mood, Mood::Faults | Mood::Heals) => {
                let batch = self.new_jobs(at.ledger);
                self.enqueue(place, batch, at);
            }
            0..=1 | 5..=8 => self.lease(place, at),
            2..=4 | 9..=12 => self.finish(at),
            // When all that is left is worked off, nobody makes that last longer.
            13 | 14 if at.mood == Mood::Drains => self.finish(at),
            13 => self.give_back(at),
            14 => {
                if let Some(token) = self.held.first().copied() {
                    let op = extend(token, &mut self.prng);
                    let body = command(token.job.group(), op, 0);
                    self.call(Purpose::Extend, body, at);
                }
            }
            15 => {
                let body = place.watch(&mut self.prng);
                self.call(Purpose::Watch, body, at);
            }
            16 => {
                if let Some(job) = self.held.first().map(|token| token.job) {
                    let wait_ms = self.prng.below(2_000) as u32;
                    let body = RequestBody::WaitJob { job, wait_ms };
                    self.call(Purpose::Look(job), body, at);
                }
            }
            17 => {
                if let Some(job) = at.ledger.some_job(&mut self.prng) {
                    let body = RequestBody::GetJob { job };
                    self.call(Purpose::Look(job), body, at);
                }
            }
            _ => {}
        }
    }

    fn find_queue(&mut self, at: &mut Moment<'_>) {
        let (purpose, body) = match self.core.home_group(&self.name) {
            None => (Purpose::Reach, RequestBody::Status),
            Some(home) => (Purpose::Queue, find_queue(&self.name, self.settings, home)),
        };
        self.call(purpose, body, at);
    }

    fn new_jobs(&mut self, ledger: &mut Ledger) -> Batch {
        let has_keys = self.prng.chance(1, 2);
        let (mut numbers, mut items) = (Vec::new(), Vec::new());
        for _ in 0..=self.prng.below(3) {
            self.next_job += 1;
            ledger.enqueue_sent(self.next_job);
            numbers.push(self.next_job);
            let job = new_job(self.next_job, self.payload_bytes, &mut self.prng);
            let key = has_keys.then(|| self.next_job.to_be_bytes().to_vec().into());
            items.push(NewJob { key, ..job });
        }
        let again = false;
        Batch {
            numbers,
            items,
            again,
        }
    }

    fn enqueue(&mut self, place: Place, batch: Batch, at: &mut Moment<'_>) {
        let body = command(place.group, place.enqueue(batch.items.clone()), 0);
        self.call(Purpose::Enqueue(batch), body, at);
    }

    fn lease(&mut self, place: Place, at: &mut Moment<'_>) {
        let is_lease = |call: &Call| matches!(call.purpose, Purpose::Lease);
        let leases = self.calls.values().filter(|call| is_lease(call)).count();
        if leases >= LEASES_MAX || self.held.len() >= HELD_MAX {
            return;
        }
        let mut op = place.lease(&mut self.prng, 0);
        // Without a session nobody sees that the holder of a lease is gone.
        if self.sessions
            && self.prng.chance(1, 3)
            && let Op::Lease { lease_ms, .. } = &mut op
        {
            *lease_ms = LEASE_LONG_MS;
        }
        let body = command(place.group, op, lease_wait_ms(&mut self.prng));
        self.call(Purpose::Lease, body, at);
    }

    fn finish(&mut self, at: &mut Moment<'_>) {
        let tokens = take_held(&mut self.held, &mut self.prng);
        let Some(first) = tokens.first() else {
            return;
        };
        tokens
            .iter()
            .for_each(|token| at.ledger.end_sent(token.job));
        let body = command(first.job.group(), ack(&tokens), 0);
        self.call(Purpose::Ack(tokens), body, at);
    }

    fn give_back(&mut self, at: &mut Moment<'_>) {
        let tokens = take_held(&mut self.held, &mut self.prng);
        let Some(first) = tokens.first() else {
            return;
        };
        let group = first.job.group();
        let op = give_back(tokens.clone(), &mut self.prng);
        self.call(Purpose::GiveBack(tokens), command(group, op, 0), at);
    }

    fn call(&mut self, purpose: Purpose, body: RequestBody, at: &mut Moment<'_>) {
        let patience = match at.mood {
            Mood::Drains | Mood::Leaves => PATIENCE_WELL,
            _ if self.prng.chance(1, 4) => Duration::from_millis(20 + self.prng.below(2_000)),
            _ => Duration::from_millis(2_000 + self.prng.below(20_000)),
        };
        let (group, wait_ms) = match &body {
            RequestBody::Command { group, wait_ms, .. }
            | RequestBody::Watch { group, wait_ms, .. } => (Some(*group), *wait_ms),
            RequestBody::WaitJob { job, wait_ms } => (Some(job.group()), *wait_ms),
            RequestBody::GetJob { job } => (Some(job.group()), 0),
            RequestBody::GetQueue { name, .. } => (self.core.home_group(name), 0),
            _ => (None, 0),
        };
        let id = self.core.take_id();
        let wait = Duration::from_millis(wait_ms.into());
        let mut call = Call::new(purpose, at.now.plus(patience).plus(wait), at.mood);
        if let RequestBody::Command { command, .. } = &body {
            call.mutates = !matches!(command.op, Op::Lease { .. });
        }
        if let Some(group) = group {
            call.floor = (group, at.ledger.history.floor(group));
        }
        self.calls.insert(id, call);
        let input = Input::Call {
            id,
            route: group.map_or(Route::Any, Route::Group),
            body,
            patience,
        };
        self.core.handle(at.now, input);
    }
}
