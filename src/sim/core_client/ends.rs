//! What the calls of the program may end with, and what that proves.

use super::{Batch, Call, CoreClient, Moment, Mood, Purpose, Through};
use crate::base::code::Code;
use crate::base::ids::{LogIndex, Token};
use crate::client::Error;
use crate::client::session::{CallId, Input};
use crate::queue::command::{Enqueued, ItemOutcome, Outcome, Rejection};
use crate::sim::asking::{Place, take_finished, take_grants};
use crate::sim::ledger::Ledger;
use crate::wire::message::{Reply, ReplyBody};

impl CoreClient {
    pub(super) fn on_done(
        &mut self,
        id: CallId,
        result: Result<Reply, Error>,
        at: &mut Moment<'_>,
    ) {
        let call = self.calls.remove(&id);
        let call = call.unwrap_or_else(|| panic!("{id:?} has ended, and nobody waits for it"));
        let reply = match result {
            Ok(reply) => reply,
            Err(error) => return self.take_error(call, &error, at),
        };
        let is_missed = at.mood == Mood::Faults && self.prng.chance(1, 50);
        if is_missed && self.closing.is_none() {
            // The caller went away at this moment.
            self.note(Through::Abandoned);
            self.put_in_doubt(call.purpose);
            let answer = Some(reply);
            return self.core.handle(at.now, Input::Abandoned { id, answer });
        }
        self.answered += 1;
        let mut index = LogIndex(0);
        if let Some(stamp) = reply.stamp {
            let (group, floor) = call.floor;
            assert_eq!(stamp.group, group, "{call:?} was answered by another group");
            at.ledger.history.answered(group, stamp.index, floor);
            index = stamp.index;
        }
        self.take_answer(call, reply.body, index, at);
    }

    fn take_answer(&mut self, call: Call, body: ReplyBody, index: LogIndex, at: &mut Moment<'_>) {
        let ledger = &mut *at.ledger;
        match (call.purpose, body) {
            (Purpose::Reach, ReplyBody::Status(_)) | (Purpose::Watch, ReplyBody::Ready(_)) => {}
            (Purpose::Queue, ReplyBody::Queues(queues)) => {
                self.place = Some(Place::of(&queues[0].0, self.number));
            }
            (Purpose::Lease, ReplyBody::Leased(jobs)) => {
                // Each grant is told once, however often the lease was sent.
                self.held.extend(take_grants(&jobs, index, false, ledger));
            }
            (Purpose::Look(id), ReplyBody::Job(job)) => {
                assert!(job.id == id, "{job:?}");
                ledger.history.seen_live(id, index);
            }
            (Purpose::Look(id), ReplyBody::Finished(job)) => take_finished(id, &job, ledger),
            (purpose, ReplyBody::Outcome(outcome)) => match (purpose, outcome) {
                (Purpose::Queue, Outcome::Queue(info)) => {
                    self.place = Some(Place::of(&info, self.number));
                }
                // The group is of version 1 still.
                (Purpose::Queue, Outcome::Rejected(Rejection::Unsupported)) => self.settings = None,
                (Purpose::Look(id), Outcome::Rejected(Rejection::Finished)) => {
                    ledger.told_finished(id);
                }
                (Purpose::Enqueue(batch), Outcome::Enqueued(items)) => {
                    self.take_enqueued(&batch, &items, ledger);
                }
                (Purpose::Ack(tokens), Outcome::Items(items)) => {
                    take_ends(&tokens, &items, (index, call.in_doubt), ledger);
                }
                (Purpose::GiveBack(_) | Purpose::Extend, Outcome::Items(_)) => {}
                (Purpose::Close, Outcome::Done) => self.closing = Some(at.now),
                (purpose, outcome) => panic!("{purpose:?} was answered by {outcome:?}"),
            },
            (purpose, body) => panic!("{purpose:?} was answered by {body:?}"),
        }
    }

    fn take_enqueued(&mut self, batch: &Batch, items: &[Enqueued], ledger: &mut Ledger) {
        assert_eq!(batch.numbers.len(), items.len(), "one outcome for each job");
        for (number, item) in batch.numbers.iter().zip(items) {
            match item {
                Enqueued::New(id) => ledger.enqueue_acked(*number, *id),
                Enqueued::Existing(id) if batch.again => {
                    self.note(Through::Repeated);
                    ledger.enqueue_acked(*number, *id);
                }
                other => panic!("job {number} was answered by {other:?}"),
            }
        }
    }

    fn take_error(&mut self, call: Call, error: &Error, at: &mut Moment<'_>) {
        let is_known = matches!(
            error.code(),
            Code::Unknown
                | Code::Timeout
                | Code::Unreachable
                | Code::ConnectionTimeout
                | Code::NotLeader
                | Code::Busy
                | Code::DiskFull
                | Code::MemoryFull
                | Code::Stopping
                | Code::GroupHalted
        );
        assert!(is_known, "{call:?} ended with {error}");
        // Without a session a connection that was lost before leaves it open.
        let may_fail = !call.must_succeed || (!self.sessions && error.maybe_applied());
        assert!(may_fail, "all is well, and {call:?} ended with {error}");
        if self.closing.is_some() {
            self.note(Through::Closed);
        }
        if error.maybe_applied() {
            assert!(call.sent, "{call:?} was never sent, and ended with {error}");
            self.note(Through::Unknown);
            return self.put_in_doubt(call.purpose);
        }
        let may_be_done = call.in_doubt || !call.under_way.is_empty();
        assert!(
            !(call.mutates && may_be_done),
            "{call:?} may have been done, and ended with {error}"
        );
        self.note(Through::Refused);
        match &call.purpose {
            Purpose::Enqueue(batch) if !batch.again => {
                let numbers = batch.numbers.iter();
                numbers.for_each(|number| at.ledger.enqueue_refused(*number));
            }
            Purpose::Enqueue(_) | Purpose::GiveBack(_) => self.put_in_doubt(call.purpose),
            Purpose::Ack(tokens) => {
                tokens
                    .iter()
                    .for_each(|token| at.ledger.end_refused(token.job));
                self.put_in_doubt(call.purpose);
            }
            _ => {}
        }
    }
}

/// Acks were answered, as of `index`; whether they may have been done by an earlier send.
fn take_ends(
    tokens: &[Token],
    items: &[ItemOutcome],
    (index, in_doubt): (LogIndex, bool),
    ledger: &mut Ledger,
) {
    for (token, item) in tokens.iter().zip(items) {
        match item {
            ItemOutcome::Done => ledger.end_acked(*token, index, in_doubt),
            ItemOutcome::Rejected(Rejection::LeaseLost) => ledger.end_refused(token.job),
            // By an ack that ended as unknown.
            ItemOutcome::Rejected(Rejection::Finished) => {
                ledger.end_refused(token.job);
                ledger.told_finished(token.job);
            }
            ItemOutcome::Rejected(other) => panic!("ack of {token:?}: {other:?}"),
        }
    }
}
