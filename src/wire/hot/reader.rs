//! Bytes -> values, or `None`.

use crate::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Term, Token};
use crate::base::limits::ITEMS_MAX;
use crate::base::units::WallTime;
use crate::queue::command::{
    AckItem, Command, Enqueued, ItemOutcome, NewJob, Op, Outcome, Rejection, SessionCall, Start,
    Window,
};
use crate::queue::view::{Body, JobState, JobView};
use crate::wire::message::{CommitStamp, LeasedJob, Reply, ReplyBody, Request, RequestBody};
use bytes::Bytes;

/// The request of a frame's body, its bounds unchecked, and the bytes of its command. They, payloads
/// and keys are slices of the body.
pub(in crate::wire) fn read_request(body: &Bytes) -> Option<(Request, Bytes)> {
    let mut from = Fields::of(body);
    let id = from.only(0x08)?.nonzero()?;
    let mut call = from.only(0x12)?.message()?;
    from.end()?;
    let (mut group, mut command, mut wait_ms) = (GroupId(0), None, 0);
    let mut encoded = Bytes::new();
    while let Some(key) = call.key(NEVER)? {
        match key {
            0x08 => group = GroupId(call.small()?),
            0x12 => {
                let message = call.message()?;
                encoded = body.slice_ref(message.rest);
                command = Some(command_in(message)?);
            }
            0x18 => wait_ms = call.small()?,
            _ => return None,
        }
    }
    let command = command?;
    let body = RequestBody::Command {
        group,
        command,
        wait_ms,
    };
    Some((Request { id, body }, encoded))
}

/// The command of a log entry. Payloads and keys are slices of it.
pub(in crate::wire) fn read_command(payload: &Bytes) -> Option<Command> {
    command_in(Fields::of(payload))
}

fn command_in(mut from: Fields<'_>) -> Option<Command> {
    let (mut session, mut op) = (None, None);
    while let Some(key) = from.key(NEVER)? {
        // One operation, and nothing after it.
        if op.is_some() {
            return None;
        }
        match key {
            0x0a => session = Some(session_call(from.message()?)?),
            0x12 => op = Some(enqueue(from.message()?)?),
            0x1a => op = Some(lease(from.message()?)?),
            0x22 => op = Some(ack(from.message()?)?),
            _ => return None,
        }
    }
    Some(Command { session, op: op? })
}

fn session_call(mut from: Fields<'_>) -> Option<SessionCall> {
    let mut call = SessionCall {
        id: SessionId(0),
        seq: 0,
        lowest: 0,
        window: Window::Commands,
    };
    while let Some(key) = from.key(NEVER)? {
        match key {
            0x08 => call.id = SessionId(from.small()?),
            0x10 => call.seq = from.nonzero()?,
            0x18 => call.lowest = from.nonzero()?,
            0x20 if from.number()? == 1 => call.window = Window::Polls,
            _ => return None,
        }
    }
    Some(call)
}

fn enqueue(mut from: Fields<'_>) -> Option<Op> {
    let (mut queue, mut partition) = (QueueUid::from_u64(0)?, Partition(0));
    let mut items = Vec::new();
    while let Some(key) = from.key(0x1a)? {
        match key {
            0x08 => queue = QueueUid::from_u64(from.nonzero()?)?,
            0x10 => partition = Partition(from.small()?),
            0x1a => push(&mut items, from.message()?, new_job)?,
            _ => return None,
        }
    }
    Some(Op::Enqueue {
        queue,
        partition,
        items,
    })
}

fn new_job(mut from: Fields<'_>) -> Option<NewJob> {
    let mut job = NewJob::default();
    while let Some(key) = from.key(NEVER)? {
        match key {
            0x0a => job.payload = from.some_bytes()?,
            0x10 => job.priority = Some(u8::try_from(from.number()?).ok()?),
            0x18 => job.start = Start::After(from.number()?),
            0x20 if job.start == Start::Now => job.start = Start::At(from.number()?),
            0x28 => job.ttl_ms = from.nonzero()?,
            0x30 => job.lease_ms = from.small()?,
            0x38 => job.max_attempts = from.small()?,
            0x40 => job.run_limit_ms = from.small()?,
            0x52 => job.key = Some(from.shared()?),
            _ => return None,
        }
    }
    Some(job)
}

fn lease(mut from: Fields<'_>) -> Option<Op> {
    let (mut queue, mut partition) = (QueueUid::from_u64(0)?, Partition(0));
    let [mut max, mut lease_ms, mut epoch] = [0; 3];
    while let Some(key) = from.key(NEVER)? {
        match key {
            0x08 => queue = QueueUid::from_u64(from.nonzero()?)?,
            0x10 => partition = Partition(from.small()?),
            0x18 => max = from.small()?,
            0x20 => lease_ms = from.small()?,
            0x28 => epoch = from.small()?,
            _ => return None,
        }
    }
    Some(Op::Lease {
        queue,
        partition,
        max,
        lease_ms,
        epoch,
    })
}

fn ack(from: Fields<'_>) -> Option<Op> {
    let items = list(from, ack_item)?;
    Some(Op::Ack { items })
}

fn ack_item(mut from: Fields<'_>) -> Option<AckItem> {
    let (mut job, mut lease_gen, mut result) = (None, 0, None);
    while let Some(key) = from.key(NEVER)? {
        match key {
            0x0a => job = Some(from.job_id()?),
            0x10 => lease_gen = from.small()?,
            0x1a => result = Some(from.shared()?),
            _ => return None,
        }
    }
    let token = Token {
        job: job?,
        lease_gen,
    };
    Some(AckItem { token, result })
}

/// The reply of a frame's body. It is copied only if it holds payloads.
pub(in crate::wire) fn read_reply(body: &Bytes) -> Option<Reply> {
    let mut from = Fields::of(body);
    let (mut id, mut stamp, mut answer) = (0, None, None);
    while let Some(key) = from.key(NEVER)? {
        if answer.is_some() {
            return None;
        }
        match key {
            0x08 => id = from.nonzero()?,
            0x12 => stamp = Some(commit_stamp(from.message()?)?),
            0x1a => answer = Some(ReplyBody::Outcome(outcome(from.message()?)?)),
            0x22 => {
                let copy = Bytes::copy_from_slice(from.bytes()?);
                answer = Some(ReplyBody::Leased(list(Fields::of(&copy), leased_job)?));
            }
            _ => return None,
        }
    }
    Some(Reply {
        id,
        stamp,
        body: answer?,
    })
}

fn commit_stamp(mut from: Fields<'_>) -> Option<CommitStamp> {
    let mut stamp = CommitStamp {
        group: GroupId(0),
        term: Term(0),
        index: LogIndex(0),
    };
    while let Some(key) = from.key(NEVER)? {
        match key {
            0x08 => stamp.group = GroupId(from.small()?),
            0x10 => stamp.term = Term(from.nonzero()?),
            0x18 => stamp.index = LogIndex(from.nonzero()?),
            _ => return None,
        }
    }
    Some(stamp)
}

fn outcome(mut from: Fields<'_>) -> Option<Outcome> {
    let outcome = match from.key(NEVER)?? {
        0x3a => Outcome::Enqueued(list(from.message()?, enqueued)?),
        0x4a => Outcome::Items(item_outcomes(from.message()?)?),
        _ => return None,
    };
    from.end()?;
    Some(outcome)
}

fn item_outcomes(mut from: Fields<'_>) -> Option<Vec<ItemOutcome>> {
    if from.rest.is_empty() {
        return Some(Vec::new());
    }
    let mut packed = from.only(0x0a)?.message()?;
    from.end()?;
    // No item is shorter than a byte.
    let mut items = Vec::with_capacity(packed.rest.len().min(ITEMS_MAX));
    while !packed.rest.is_empty() {
        items.push(item_outcome(packed.number()?)?);
    }
    // The empty list is not written.
    (!items.is_empty()).then_some(items)
}

fn enqueued(mut from: Fields<'_>) -> Option<Enqueued> {
    let enqueued = match from.key(NEVER)?? {
        0x0a => Enqueued::New(from.job_id()?),
        0x12 => Enqueued::Existing(from.job_id()?),
        0x18 => Enqueued::Rejected(rejection(from.number()?)?),
        _ => return None,
    };
    from.end()?;
    Some(enqueued)
}

fn item_outcome(raw: u64) -> Option<ItemOutcome> {
    match raw {
        0 => Some(ItemOutcome::Done),
        raw => rejection(raw).map(ItemOutcome::Rejected),
    }
}

fn rejection(raw: u64) -> Option<Rejection> {
    Rejection::from_u16(u16::try_from(raw).ok()?)
}

fn leased_job(mut from: Fields<'_>) -> Option<LeasedJob> {
    let (mut lease_gen, mut lease_ms, mut job) = (0, 0, None);
    while let Some(key) = from.key(NEVER)? {
        match key {
            0x08 => lease_gen = from.small()?,
            0x10 => lease_ms = from.small()?,
            0x1a => job = Some(job_view(from.message()?)?),
            _ => return None,
        }
    }
    Some(LeasedJob {
        lease_gen,
        job: job?,
        lease_ms,
    })
}

fn job_view(mut from: Fields<'_>) -> Option<JobView> {
    let id = from.only(0x0a)?.job_id()?;
    let state = JobState::from_u8(from.only(0x10)?.small()?)?;
    let mut view = JobView {
        id,
        state,
        priority: 0,
        attempts: 0,
        max_attempts: 0,
        run_at: None,
        remaining_ms: None,
        enqueued_at: WallTime(0),
        expires_at: None,
        token: None,
        owner: None,
        last_failure: Bytes::new(),
        body: Body::default(),
    };
    while let Some(key) = from.key(NEVER)? {
        match key {
            0x18 => view.priority = from.small()?,
            0x20 => view.attempts = from.small()?,
            0x28 => view.max_attempts = from.small()?,
            0x30 => view.run_at = Some(WallTime(from.number()?)),
            0x38 => view.remaining_ms = Some(from.number()?),
            0x40 => view.enqueued_at = WallTime(from.nonzero()?),
            0x48 => view.expires_at = Some(WallTime(from.number()?)),
            0x50 => {
                let lease_gen = u32::try_from(from.number()?).ok()?;
                view.token = Some(Token { job: id, lease_gen });
            }
            0x58 => view.owner = Some(SessionId(u32::try_from(from.number()?).ok()?)),
            0x62 => view.last_failure = from.some_bytes()?,
            0x6a => view.body.payload = from.some_bytes()?,
            0x7a => view.body.key = Some(from.shared()?),
            _ => return None,
        }
    }
    Some(view)
}

/// The items of a message whose only field, 1, repeats.
fn list<T>(mut from: Fields<'_>, read: fn(Fields<'_>) -> Option<T>) -> Option<Vec<T>> {
    let mut items = Vec::new();
    while let Some(key) = from.key(0x0a)? {
        if key != 0x0a {
            return None;
        }
        push(&mut items, from.message()?, read)?;
    }
    Some(items)
}

/// Adds one of a repeated message.
fn push<T>(items: &mut Vec<T>, item: Fields<'_>, read: fn(Fields<'_>) -> Option<T>) -> Option<()> {
    if items.len() == ITEMS_MAX {
        return None;
    }
    items.push(read(item)?);
    Some(())
}

/// No field repeats.
const NEVER: u8 = 0;

/// The fields of one message, from the first to the last.
struct Fields<'a> {
    /// What is being read, for slices that share it.
    whole: &'a Bytes,
    rest: &'a [u8],
    last: u8,
}

impl<'a> Fields<'a> {
    fn of(whole: &'a Bytes) -> Self {
        let (rest, last) = (&whole[..], 0);
        Self { whole, rest, last }
    }

    /// The key of the next field (its number and wire type), which must be higher than the last or
    /// `repeats`; `Some(None)` at the end.
    fn key(&mut self, repeats: u8) -> Option<Option<u8>> {
        let Some((&key, rest)) = self.rest.split_first() else {
            return Some(None);
        };
        let rises = key >> 3 > self.last >> 3 || (key == self.last && key == repeats);
        // Keys of more than one byte are of fields that stand in no message here.
        (rises && key < 0x80).then(|| {
            (self.rest, self.last) = (rest, key);
            Some(key)
        })
    }

    /// The next field has this key.
    fn only(&mut self, key: u8) -> Option<&mut Self> {
        (self.key(NEVER)? == Some(key)).then_some(self)
    }

    fn end(&self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }

    /// A number in its shortest form.
    fn number(&mut self) -> Option<u64> {
        let (&first, rest) = self.rest.split_first()?;
        if first < 0x80 {
            self.rest = rest;
            return Some(first.into());
        }
        let mut value = u64::from(first & 0x7f);
        for (at, &byte) in rest.iter().enumerate().take(9) {
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if at == 8 && byte > 1 {
                return None;
            }
            value |= bits << (7 * (at + 1));
            if byte < 0x80 {
                self.rest = &rest[at + 1..];
                return (byte != 0).then_some(value);
            }
        }
        None
    }

    /// A number whose default is left out.
    fn nonzero(&mut self) -> Option<u64> {
        self.number().filter(|number| *number != 0)
    }

    /// A number of fewer bits whose default is left out.
    fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        T::try_from(self.nonzero()?).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    /// Bytes that share the memory of the whole.
    fn shared(&mut self) -> Option<Bytes> {
        let bytes = self.bytes()?;
        Some(self.whole.slice_ref(bytes))
    }

    /// The same, where the empty default is left out.
    fn some_bytes(&mut self) -> Option<Bytes> {
        self.shared().filter(|bytes| !bytes.is_empty())
    }

    fn job_id(&mut self) -> Option<JobId> {
        JobId::from_bytes(self.bytes()?.try_into().ok()?).ok()
    }

    fn message(&mut self) -> Option<Fields<'a>> {
        let rest = self.bytes()?;
        Some(Fields {
            whole: self.whole,
            rest,
            last: 0,
        })
    }
}
