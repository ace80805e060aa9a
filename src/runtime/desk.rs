//! Where another thread asks the shards and waits for the answer, but never for long.
//!
//! A question is a request like a client's, with a connection number that no client has; it lies in
//! the shard's mailbox among the others, and the answer is put into the asker's hands. A mailbox
//! that is full, a shard that is not there yet and one that does not answer in time are all an error
//! with a name, and none of it holds a shard up.

use crate::base::code::Code;
use crate::base::ids::{ConnId, GroupId, ShardId};
use crate::runtime::mesh::Letter;
use crate::runtime::poker::Mailbox;
use crate::shard::input::Origin;
use crate::shard::placement::shard_of;
use crate::wire::message::{ErrorReply, Reply, ReplyBody, Request, RequestBody};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Until an answer is not waited for any more.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Letters in a mailbox beyond which nothing is asked.
const LETTERS_MAX: usize = 1024;
/// The connection numbers of askers; clients count up from 1.
const ASKERS_FROM: u64 = 1 << 63;

/// Whether an answer for this connection belongs on the desk.
#[must_use]
pub fn is_asker(conn: ConnId) -> bool {
    conn.0 >= ASKERS_FROM
}

/// Questions under way.
#[derive(Debug)]
pub struct Desk {
    boxes: Arc<[Mailbox<Letter>]>,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<ReplyBody>>>,
    next: AtomicU64,
}

/// A question that was asked.
#[derive(Debug)]
pub struct Question {
    shard: ShardId,
    conn: ConnId,
    answer: oneshot::Receiver<ReplyBody>,
}

impl Desk {
    /// Nobody has asked yet.
    #[must_use]
    pub fn new(boxes: Arc<[Mailbox<Letter>]>) -> Self {
        Self {
            boxes,
            waiting: Mutex::default(),
            next: AtomicU64::new(ASKERS_FROM),
        }
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.boxes.len() as u16
    }

    /// Asks the shard of a group.
    ///
    /// # Errors
    /// `Busy` if too much waits there.
    pub fn ask_group(&self, group: GroupId, body: RequestBody) -> Result<Question, ErrorReply> {
        self.ask(shard_of(group, self.shards()), body)
    }

    /// Asks a shard.
    ///
    /// # Errors
    /// `Busy` if too much waits there.
    pub fn ask(&self, shard: ShardId, body: RequestBody) -> Result<Question, ErrorReply> {
        let conn = ConnId(self.next.fetch_add(1, Relaxed));
        let (sender, answer) = oneshot::channel();
        self.waiting().insert(conn.0, sender);
        let letter = Letter::Request(Origin { shard, conn }, Request { id: 1, body });
        let mailbox = &self.boxes[usize::from(shard.0)];
        if mailbox.try_send(letter, LETTERS_MAX).is_err() {
            self.waiting().remove(&conn.0);
            let text = format!("too many requests wait for shard {shard}");
            return Err(refusal(Code::Busy, text));
        }
        Ok(Question {
            shard,
            conn,
            answer,
        })
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// What the shard says, or `Timeout` if it says nothing before `by`.
    pub async fn answered(&self, question: Question, by: Instant) -> Result<ReplyBody, ErrorReply> {
        let Question {
            shard,
            conn,
            answer,
        } = question;
        let answer = tokio::time::timeout_at(by, answer).await;
        self.waiting().remove(&conn.0);
        // The engine remembers a connection until it is told that it is gone.
        let mailbox = &self.boxes[usize::from(shard.0)];
        mailbox.send(Letter::Closed(Origin { shard, conn }));
        match answer {
            Ok(Ok(ReplyBody::Error(error))) => Err(error),
            Ok(Ok(body)) => Ok(body),
            Ok(Err(_)) | Err(_) => {
                let within = ANSWER_WITHIN.as_secs();
                let text = format!("shard {shard} did not answer within {within} s");
                Err(refusal(Code::Timeout, text))
            }
        }
    }

    /// Puts an answer into the hands of who asked, if it still waits.
    pub fn answer(&self, conn: ConnId, reply: Reply) {
        if let Some(asker) = self.waiting().remove(&conn.0) {
            // Who has just given up needs no answer.
            let _ = asker.send(reply.body);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<ReplyBody>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A refusal that no shard made.
#[must_use]
pub fn refusal(code: Code, message: impl Into<String>) -> ErrorReply {
    ErrorReply {
        code,
        message: message.into(),
        leader: None,
        maybe_applied: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::poker::Pulse;
    use std::collections::VecDeque;

    fn desk() -> Desk {
        let mailbox = Mailbox::new(Arc::new(Pulse::default()));
        Desk::new([mailbox].into())
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build().expect("a runtime");
        runtime.block_on(future)
    }

    #[test]
    fn an_answer_finds_its_asker_and_the_shard_is_told_the_end() {
        let desk = desk();
        let question = desk
            .ask(ShardId(0), RequestBody::Status)
            .expect("there is room");
        let conn = question.conn;
        assert!(is_asker(conn) && !is_asker(ConnId(1)));
        let reply = Reply {
            id: 1,
            stamp: None,
            body: ReplyBody::Ready(7),
        };
        desk.answer(conn, reply.clone());
        let body = run(async {
            let by = Instant::now() + ANSWER_WITHIN;
            desk.answered(question, by).await
        });
        assert_eq!(body, Ok(ReplyBody::Ready(7)));
        desk.answer(conn, reply);
        let mut letters = VecDeque::new();
        desk.boxes[0].take(&mut letters);
        assert!(matches!(
            letters.make_contiguous(),
            [Letter::Request(..), Letter::Closed(_)]
        ));
        assert!(desk.waiting().is_empty());
    }

    #[test]
    fn a_silent_shard_is_not_waited_for_and_a_full_one_not_asked() {
        let desk = desk();
        let error = run(async {
            let question = desk
                .ask(ShardId(0), RequestBody::Status)
                .expect("there is room");
            desk.answered(question, Instant::now()).await
        });
        assert_eq!(error.expect_err("nobody answers").code, Code::Timeout);
        assert!(desk.waiting().is_empty());
        let full = (0..=LETTERS_MAX).find_map(|_| desk.ask(ShardId(0), RequestBody::Status).err());
        assert_eq!(full.expect("it fills up").code, Code::Busy);
    }
}
