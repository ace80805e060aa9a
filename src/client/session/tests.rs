//! Named situations: what the core sends, and what it says of calls, when things go wrong.

mod cluster;
mod world;

use super::*;
use crate::base::ids::{ClusterId, JobId, LogIndex, NodeId, Partition, QueueUid, SessionId, Token};
use crate::base::units::WallTime;
use crate::wire::message::{ErrorReply, LeasedJob, NodeAddresses, ReplyBody};
use crate::wire::{
    AckItem, Body, Enqueued, ItemOutcome, JobState, JobView, NewJob, Outcome, Rejection,
};

const GROUP: GroupId = GroupId(3);
const PATIENCE: Duration = Duration::from_secs(30);

/// A core, and what it asked for that was not looked at yet.
struct Client {
    core: ClientCore,
    now: Monotonic,
    effects: Vec<Effect>,
}

impl Client {
    fn new() -> Self {
        let core = ClientCore::new(vec!["seed:1".to_owned()], CoreOptions::default());
        let now = Monotonic(1);
        Self {
            core,
            now,
            effects: Vec::new(),
        }
    }

    /// A client that is connected to the only shard.
    fn connected() -> (Self, ConnNo) {
        let mut client = Self::new();
        let id = client.call(RequestBody::Status);
        let conn = client.take_connect();
        client.hello(conn);
        let sent = client.take_sent();
        assert_eq!(sent.len(), 1);
        client.reply(conn, sent[0].id, ReplyBody::Jobs(Vec::new()));
        assert!(client.result(id).is_ok());
        (client, conn)
    }

    /// A client with an open session of id 7, epoch 1.
    fn with_session() -> (Self, ConnNo) {
        let (mut client, conn) = Self::connected();
        let id = client.call(enqueue());
        client.open_session(conn, 7);
        let sent = client.take_sent();
        client.reply(conn, sent[0].id, enqueued(1));
        assert!(client.result(id).is_ok());
        (client, conn)
    }

    fn input(&mut self, input: Input) {
        self.core.handle(self.now, input);
        self.core.drain(&mut self.effects);
    }

    fn call(&mut self, body: RequestBody) -> CallId {
        let id = self.core.take_id();
        let route = match &body {
            RequestBody::Command { group, .. } => Route::Group(*group),
            _ => Route::Any,
        };
        self.input(Input::Call {
            id,
            route,
            body,
            patience: PATIENCE,
        });
        id
    }

    fn hello(&mut self, conn: ConnNo) {
        let hello = ServerHello {
            protocol: 1,
            version: "test".to_owned(),
            cluster: ClusterId([1; 16]),
            node: NodeId(1),
            shard: 0,
            groups: 64,
            payload_bytes_max: 1 << 20,
            nodes: vec![NodeAddresses {
                node: NodeId(1),
                addresses: vec!["shard:1".to_owned()],
            }],
        };
        self.input(Input::Connected { conn, hello });
    }

    fn reply(&mut self, conn: ConnNo, id: u64, body: ReplyBody) {
        let stamp = None;
        self.input(Input::Received {
            conn,
            reply: Reply { id, stamp, body },
        });
    }

    fn refuse(&mut self, conn: ConnNo, id: u64, code: Code, maybe_applied: bool) {
        let message = "no".to_owned();
        let error = ErrorReply {
            code,
            message,
            leader: None,
            maybe_applied,
        };
        self.reply(conn, id, ReplyBody::Error(error));
    }

    fn lose(&mut self, conn: ConnNo) {
        let error = Error::new(Code::Unreachable, "gone");
        self.input(Input::Disconnected { conn, error });
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.input(Input::Tick);
    }

    /// Lets time pass to the next deadline, as a driver does.
    fn wait(&mut self) {
        let next = self.core.next_deadline().expect("something is due");
        self.now = self.now.max(next);
        self.input(Input::Tick);
    }

    /// The connection asked for, once it is.
    fn take_connect(&mut self) -> ConnNo {
        for _ in 0..10 {
            let found = self.effects.iter().find_map(|effect| match effect {
                Effect::Connect { conn, .. } => Some(*conn),
                _ => None,
            });
            if let Some(conn) = found {
                self.effects
                    .retain(|effect| !matches!(effect, Effect::Connect { .. }));
                return conn;
            }
            self.wait();
        }
        panic!("no connection is asked for");
    }

    fn take_sent(&mut self) -> Vec<Request> {
        let mut sent = Vec::new();
        self.effects.retain(|effect| match effect {
            Effect::Send { id, .. } => {
                sent.push(self.core.request(*id).expect("it is there").clone());
                false
            }
            _ => true,
        });
        sent
    }

    fn only_sent(&mut self) -> Request {
        let mut sent = self.take_sent();
        assert_eq!(sent.len(), 1, "one request was to be sent: {sent:?}");
        sent.remove(0)
    }

    /// Answers the opening of a session.
    fn open_session(&mut self, conn: ConnNo, session: u32) {
        let open = self.only_sent();
        assert!(matches!(op(&open), Op::OpenSession { .. }), "{open:?}");
        let session = SessionId(session);
        let outcome = Outcome::SessionOpened { session, epoch: 1 };
        self.reply(conn, open.id, ReplyBody::Outcome(outcome));
    }

    fn end(&mut self, id: CallId) -> Option<Result<Reply, Error>> {
        let is_it =
            |effect: &Effect| matches!(effect, Effect::Done { id: done, .. } if *done == id);
        let at = self.effects.iter().position(is_it)?;
        match self.effects.remove(at) {
            Effect::Done { result, .. } => Some(result),
            _ => None,
        }
    }

    fn result(&mut self, id: CallId) -> Result<Reply, Error> {
        self.end(id).expect("the call has ended")
    }

    fn is_under_way(&self, id: CallId) -> bool {
        self.core.request(id).is_some()
    }
}

fn queue() -> QueueUid {
    QueueUid::new(GROUP, 1).expect("in range")
}

fn ask(op: Op, wait_ms: u32) -> RequestBody {
    let command = Command { session: None, op };
    RequestBody::Command {
        group: GROUP,
        command,
        wait_ms,
    }
}

fn enqueue() -> RequestBody {
    let items = vec![NewJob::default()];
    ask(
        Op::Enqueue {
            queue: queue(),
            partition: Partition(0),
            items,
        },
        0,
    )
}

fn lease(wait_ms: u32) -> RequestBody {
    let partition = Partition(0);
    ask(
        Op::Lease {
            queue: queue(),
            partition,
            max: 1,
            lease_ms: 0,
            epoch: 0,
        },
        wait_ms,
    )
}

fn token(seq: u64) -> Token {
    let job = JobId::new(GROUP, queue(), Partition(0), seq);
    Token { job, lease_gen: 1 }
}

fn enqueued(seq: u64) -> ReplyBody {
    ReplyBody::Outcome(Outcome::Enqueued(vec![Enqueued::New(token(seq).job)]))
}

fn leased(seq: u64) -> ReplyBody {
    let job = JobView {
        id: token(seq).job,
        state: JobState::InFlight,
        priority: 4,
        attempts: 1,
        max_attempts: 20,
        run_at: None,
        remaining_ms: None,
        enqueued_at: WallTime(0),
        expires_at: None,
        token: Some(token(seq)),
        owner: Some(SessionId(7)),
        last_failure: bytes::Bytes::new(),
        body: Body::default(),
    };
    ReplyBody::Leased(vec![LeasedJob {
        lease_gen: 1,
        job,
        lease_ms: 30_000,
    }])
}

fn rejected(rejection: Rejection) -> ReplyBody {
    ReplyBody::Outcome(Outcome::Rejected(rejection))
}

fn command(request: &Request) -> &Command {
    match &request.body {
        RequestBody::Command { command, .. } => command,
        other => panic!("no command: {other:?}"),
    }
}

fn op(request: &Request) -> &Op {
    &command(request).op
}

fn place(request: &Request) -> (u32, u64, u64) {
    let call = command(request).session.expect("in a session");
    (call.id.0, call.seq, call.lowest)
}

fn reconnect(client: &mut Client) -> ConnNo {
    let conn = client.take_connect();
    client.hello(conn);
    conn
}

#[test]
fn first_command_opens_a_session_and_only_one() {
    let (mut client, conn) = Client::connected();
    client.call(enqueue());
    client.call(enqueue());
    client.open_session(conn, 7);
    let sent = client.take_sent();
    assert_eq!(
        sent.iter().map(place).collect::<Vec<_>>(),
        [(7, 1, 1), (7, 2, 1)]
    );
}

#[test]
fn retry_after_a_lost_answer_keeps_session_and_number() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(enqueue());
    let first = client.only_sent();
    client.lose(conn);
    assert!(client.is_under_way(id));
    let conn = reconnect(&mut client);
    let again = client.only_sent();
    assert_eq!(place(&again), place(&first));
    client.reply(conn, again.id, enqueued(2));
    assert!(client.result(id).is_ok());
}

#[test]
fn without_sessions_a_lost_answer_is_unknown_at_once() {
    let (mut client, conn) = Client::connected();
    client.core.options.sessions = false;
    let id = client.call(enqueue());
    assert_eq!(command(&client.only_sent()).session, None);
    client.lose(conn);
    let error = client.result(id).expect_err("nobody can know");
    assert_eq!(error.code(), Code::Unknown);
    assert!(error.maybe_applied());
}

#[test]
fn reads_are_asked_again_without_a_session() {
    let (mut client, conn) = Client::connected();
    let id = client.call(RequestBody::GetJob { job: token(1).job });
    client.take_sent();
    client.lose(conn);
    let conn = reconnect(&mut client);
    let again = client.only_sent();
    client.reply(conn, again.id, ReplyBody::Jobs(Vec::new()));
    assert!(client.result(id).is_ok());
}

#[test]
fn lowest_rises_with_the_answers_in_any_order() {
    let (mut client, conn) = Client::with_session();
    let ids: Vec<CallId> = (0..3).map(|_| client.call(enqueue())).collect();
    let sent = client.take_sent();
    assert_eq!(
        sent.iter().map(place).collect::<Vec<_>>(),
        [(7, 2, 2), (7, 3, 2), (7, 4, 2)]
    );
    client.reply(conn, sent[1].id, enqueued(3));
    client.call(enqueue());
    assert_eq!(place(&client.only_sent()), (7, 5, 2));
    client.reply(conn, sent[0].id, enqueued(2));
    client.call(enqueue());
    assert_eq!(place(&client.only_sent()), (7, 6, 4));
    assert!(client.result(ids[0]).is_ok() && client.result(ids[1]).is_ok());
}

#[test]
fn window_full_waits_for_the_lowest() {
    let (mut client, conn) = Client::with_session();
    let ids: Vec<CallId> = (0..65).map(|_| client.call(lease(1000))).collect();
    let sent = client.take_sent();
    assert_eq!(sent.len(), 64);
    client.reply(conn, sent[1].id, leased(1));
    assert!(
        client.take_sent().is_empty(),
        "the lowest poll is still unanswered"
    );
    client.reply(conn, sent[0].id, leased(2));
    let last = client.only_sent();
    assert_eq!(place(&last), (7, 65, 3));
    assert_eq!(last.id, ids[64].0);
}

#[test]
fn session_expired_on_a_first_send_is_retried_in_a_new_session() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(enqueue());
    let first = client.only_sent();
    client.reply(conn, first.id, rejected(Rejection::SessionExpired));
    client.open_session(conn, 8);
    let again = client.only_sent();
    assert_eq!(place(&again), (8, 1, 1));
    client.reply(conn, again.id, enqueued(9));
    assert!(client.result(id).is_ok());
}

#[test]
fn session_expired_after_a_lost_answer_is_unknown_and_new_calls_get_a_new_session() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(enqueue());
    client.take_sent();
    client.lose(conn);
    let conn = reconnect(&mut client);
    let again = client.only_sent();
    client.reply(conn, again.id, rejected(Rejection::SessionExpired));
    let error = client.result(id).expect_err("nobody can know");
    assert_eq!(error.code(), Code::Unknown);
    assert!(error.maybe_applied());
    let id = client.call(enqueue());
    client.open_session(conn, 8);
    let sent = client.only_sent();
    assert_eq!(place(&sent), (8, 1, 1));
    client.reply(conn, sent.id, enqueued(10));
    assert!(client.result(id).is_ok());
}

#[test]
fn a_session_is_asked_for_as_long_as_a_call_waits_for_it() {
    let (mut client, conn) = Client::connected();
    let patience = client.core.options.worker_timeout.saturating_mul(10);
    let id = client.core.take_id();
    client.input(Input::Call {
        id,
        route: Route::Group(GROUP),
        body: enqueue(),
        patience,
    });
    let until = client.now.plus(patience);
    let mut asked = Vec::new();
    while client.is_under_way(id) {
        for sent in client.take_sent() {
            match sent.body {
                RequestBody::Heartbeat { .. } => {
                    let unknown = Vec::new();
                    client.reply(conn, sent.id, ReplyBody::HeartbeatTaken { unknown });
                }
                _ => {
                    asked.push(client.now);
                    client.refuse(conn, sent.id, Code::NotLeader, true);
                }
            }
        }
        client.wait();
    }
    assert!(client.now >= until, "the call ends when it says");
    let last = asked.last().expect("it was asked for");
    assert!(last.plus(Duration::from_secs(3)) > until, "{asked:?}");
    let error = client.result(id).expect_err("there was never a session");
    assert_eq!(error.code(), Code::NotLeader);
    assert!(!error.maybe_applied(), "it was never sent");
}

#[test]
fn superseded_is_told_as_it_is() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(enqueue());
    let sent = client.only_sent();
    client.reply(conn, sent.id, rejected(Rejection::Superseded));
    let reply = client.result(id).expect("an answer");
    assert_eq!(reply.body, rejected(Rejection::Superseded));
}

#[test]
fn busy_is_retried_with_the_same_number_after_a_wait() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(enqueue());
    let first = client.only_sent();
    client.refuse(conn, first.id, Code::Busy, false);
    assert!(client.take_sent().is_empty());
    client.wait();
    let again = client.only_sent();
    assert_eq!(place(&again), place(&first));
    client.reply(conn, again.id, enqueued(2));
    assert!(client.result(id).is_ok());
}

#[test]
fn disk_full_to_the_deadline_is_told_as_disk_full() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(enqueue());
    let until = client.now.plus(PATIENCE);
    while client.is_under_way(id) {
        assert!(
            client.now <= until.plus(Duration::from_secs(1)),
            "it never ends"
        );
        for sent in client.take_sent() {
            match sent.body {
                RequestBody::Heartbeat { .. } => {
                    let unknown = Vec::new();
                    client.reply(conn, sent.id, ReplyBody::HeartbeatTaken { unknown });
                }
                _ => client.refuse(conn, sent.id, Code::DiskFull, false),
            }
        }
        client.wait();
    }
    let error = client.result(id).expect_err("no room to the end");
    assert_eq!(error.code(), Code::DiskFull);
    assert!(!error.maybe_applied() && error.is_retryable());
}

#[test]
fn a_final_refusal_ends_the_call() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(enqueue());
    let sent = client.only_sent();
    client.refuse(conn, sent.id, Code::BadRequest, false);
    assert_eq!(
        client.result(id).expect_err("refused").code(),
        Code::BadRequest
    );
    client.call(enqueue());
    assert_eq!(place(&client.only_sent()).2, 3, "its number is settled");
}

#[test]
fn a_final_refusal_after_a_lost_answer_leaves_open_what_the_first_send_did() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(enqueue());
    client.only_sent();
    client.lose(conn);
    let conn = reconnect(&mut client);
    let again = client.only_sent();
    client.refuse(conn, again.id, Code::GroupHalted, false);
    let error = client.result(id).expect_err("it was refused");
    assert_eq!(error.code(), Code::GroupHalted);
    assert!(
        error.maybe_applied(),
        "the first send may have made the job"
    );
}

#[test]
fn a_call_whose_session_may_have_been_opened_was_never_sent() {
    let (mut client, conn) = Client::connected();
    let id = client.call(enqueue());
    let open = client.only_sent();
    client.refuse(conn, open.id, Code::GroupHalted, true);
    let error = client.result(id).expect_err("there is no session");
    assert_eq!(error.code(), Code::GroupHalted);
    assert!(!error.maybe_applied());
}

#[test]
fn unreachable_to_the_deadline_is_not_unknown() {
    let mut client = Client::new();
    let id = client.call(enqueue());
    while client.is_under_way(id) {
        let attempts: Vec<ConnNo> = client
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Connect { conn, .. } => Some(*conn),
                _ => None,
            })
            .collect();
        client
            .effects
            .retain(|effect| matches!(effect, Effect::Done { .. }));
        for conn in attempts {
            client.lose(conn);
        }
        client.wait();
    }
    let error = client.result(id).expect_err("nobody there");
    assert_eq!((error.code(), error.message()), (Code::Unreachable, "gone"));
    assert!(!error.maybe_applied());
}

#[test]
fn sent_and_unanswered_to_the_deadline_is_unknown() {
    let (mut client, _) = Client::with_session();
    let id = client.call(enqueue());
    client.take_sent();
    client.pass(PATIENCE);
    let error = client.result(id).expect_err("no answer");
    assert_eq!(error.code(), Code::Unknown);
    assert!(error.maybe_applied());
}

#[test]
fn attach_after_reconnect_comes_before_polls() {
    let (mut client, conn) = Client::with_session();
    let first = client.call(lease(0));
    let sent = client.only_sent();
    client.reply(conn, sent.id, leased(1));
    assert!(client.result(first).is_ok());
    client.lose(conn);
    let conn = reconnect(&mut client);
    let attach = client.only_sent();
    assert_eq!(
        *op(&attach),
        Op::Attach {
            session: SessionId(7)
        }
    );
    client.call(lease(0));
    assert!(client.take_sent().is_empty(), "leases wait for the epoch");
    let outcome = Outcome::Attached {
        epoch: 2,
        tokens: vec![token(1)],
    };
    client.reply(conn, attach.id, ReplyBody::Outcome(outcome));
    let poll = client.only_sent();
    assert!(matches!(op(&poll), Op::Lease { epoch: 2, .. }), "{poll:?}");
    let acked = client.call(ask(
        Op::Ack {
            items: vec![AckItem {
                token: token(1),
                result: None,
            }],
        },
        0,
    ));
    assert!(client.is_under_way(acked));
}

#[test]
fn grants_that_nobody_was_told_of_are_released() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(lease(5_000));
    let poll = client.only_sent();
    client.lose(conn);
    let conn = reconnect(&mut client);
    let attach = client.only_sent();
    let tokens = vec![token(1), token(2)];
    let outcome = Outcome::Attached { epoch: 2, tokens };
    client.reply(conn, attach.id, ReplyBody::Outcome(outcome));
    let again = client.only_sent();
    assert_eq!(place(&again), place(&poll), "the answer may still come");
    client.reply(conn, again.id, leased(1));
    assert!(client.result(id).is_ok());
    let release = client.only_sent();
    assert_eq!(
        *op(&release),
        Op::Release {
            items: vec![token(2)]
        }
    );
}

#[test]
fn a_lease_that_was_dropped_after_its_connection_leaves_no_jobs_behind() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(lease(30_000));
    client.only_sent();
    client.lose(conn);
    client.input(Input::Abandoned { id, answer: None });
    // Soon enough that the server does not see the session as gone.
    let next = client.call(lease(30_000));
    let conn = reconnect(&mut client);
    let attach = client.only_sent();
    assert!(matches!(op(&attach), Op::Attach { .. }), "{attach:?}");
    let outcome = Outcome::Attached {
        epoch: 2,
        tokens: vec![token(4)],
    };
    client.reply(conn, attach.id, ReplyBody::Outcome(outcome));
    let sent = client.take_sent();
    let is_release = |request: &&Request| {
        let RequestBody::Command { command, .. } = &request.body else {
            return false;
        };
        command.op
            == Op::Release {
                items: vec![token(4)],
            }
    };
    assert!(sent.iter().any(|request| is_release(&request)), "{sent:?}");
    assert!(sent.iter().any(|request| request.id == next.0), "{sent:?}");
}

#[test]
fn a_lease_that_ended_open_is_asked_about_although_its_connection_stays() {
    let is_attach = |client: &mut Client| {
        let sent = client.take_sent();
        sent.iter()
            .any(|request| matches!(op(request), Op::Attach { .. }))
    };
    // The refusal comes before nobody waits any more, or after.
    for is_late in [false, true] {
        let (mut client, conn) = Client::with_session();
        let id = client.call(lease(0));
        let sent = client.only_sent();
        let abandoned = || Input::Abandoned { id, answer: None };
        if is_late {
            client.pass(PATIENCE);
            client.take_sent();
        }
        client.refuse(conn, sent.id, Code::NotLeader, true);
        if !is_late {
            client.input(abandoned());
        }
        assert!(is_attach(&mut client), "late: {is_late}");
    }
}

#[test]
fn reattach_attaches_and_polls_again_with_another_number() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(lease(0));
    let poll = client.only_sent();
    client.reply(conn, poll.id, rejected(Rejection::Reattach));
    let attach = client.only_sent();
    let outcome = Outcome::Attached {
        epoch: 2,
        tokens: Vec::new(),
    };
    client.reply(conn, attach.id, ReplyBody::Outcome(outcome));
    let again = client.only_sent();
    assert_eq!(place(&again), (7, 2, 2));
    client.reply(conn, again.id, leased(1));
    assert!(client.result(id).is_ok());
}

/// A lease is answered after its caller is gone; what the client sends then.
fn abandoned_lease() -> (Client, ConnNo, CallId, Request) {
    let (mut client, conn) = Client::with_session();
    let id = client.call(lease(5_000));
    let poll = client.only_sent();
    client.input(Input::Abandoned { id, answer: None });
    client.reply(conn, poll.id, leased(1));
    let sent = client.only_sent();
    (client, conn, id, sent)
}

#[test]
fn jobs_of_an_abandoned_lease_go_back() {
    let (mut client, _, id, release) = abandoned_lease();
    assert_eq!(
        *op(&release),
        Op::Release {
            items: vec![token(1)]
        }
    );
    assert!(client.end(id).is_none());
}

/// Nobody worked on them, and the session that beat kept them from everybody else.
#[test]
fn jobs_that_could_not_be_given_back_are_not_held() {
    let (mut client, conn, _, release) = abandoned_lease();
    client.refuse(conn, release.id, Code::NotLeader, false);
    client.pass(PATIENCE);
    let sent = client.take_sent();
    let attach = sent
        .iter()
        .find(|request| matches!(op(request), Op::Attach { .. }));
    let attach = attach.expect("what is held is asked for").id;
    let outcome = Outcome::Attached {
        epoch: 2,
        tokens: vec![token(1)],
    };
    client.reply(conn, attach, ReplyBody::Outcome(outcome));
    let items = vec![token(1)];
    assert_eq!(*op(&client.only_sent()), Op::Release { items });
}

#[test]
fn a_session_with_jobs_is_kept_alive_until_they_are_done() {
    let (mut client, conn) = Client::with_session();
    client.call(lease(0));
    let poll = client.only_sent();
    client.reply(conn, poll.id, leased(1));
    client.pass(Duration::from_secs(4));
    let beat = client.only_sent();
    let sessions = vec![(GROUP, SessionId(7))];
    let worker = None;
    assert_eq!(beat.body, RequestBody::Heartbeat { sessions, worker });
    client.reply(
        conn,
        beat.id,
        ReplyBody::HeartbeatTaken {
            unknown: Vec::new(),
        },
    );
    client.call(ask(
        Op::Ack {
            items: vec![AckItem {
                token: token(1),
                result: None,
            }],
        },
        0,
    ));
    let ack = client.only_sent();
    let done = Outcome::Items(vec![ItemOutcome::Done]);
    client.reply(conn, ack.id, ReplyBody::Outcome(done));
    client.pass(Duration::from_secs(4));
    assert!(client.take_sent().is_empty(), "nothing is held any more");
}

#[test]
fn a_server_that_does_not_answer_is_left() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(enqueue());
    client.take_sent();
    for _ in 0..5 {
        client.pass(Duration::from_secs(4));
    }
    let left = client
        .effects
        .iter()
        .any(|effect| matches!(effect, Effect::Disconnect { conn: closed } if *closed == conn));
    assert!(left && client.is_under_way(id));
}

#[test]
fn another_cluster_at_the_same_address_is_refused() {
    let (mut client, conn) = Client::with_session();
    client.lose(conn);
    let id = client.call(enqueue());
    let conn = client.take_connect();
    let mut hello = client.core.hello().expect("known").clone();
    hello.cluster = ClusterId([2; 16]);
    client.input(Input::Connected { conn, hello });
    assert_eq!(
        client.result(id).expect_err("refused").code(),
        Code::WrongIdentity
    );
}

#[test]
fn a_shard_that_is_not_where_it_was_is_found_through_a_seed() {
    let (mut client, conn) = Client::with_session();
    client.lose(conn);
    let id = client.call(enqueue());
    let mut addresses = Vec::new();
    for _ in 0..20 {
        let connects: Vec<(ConnNo, String)> = client
            .effects
            .drain(..)
            .filter_map(|effect| match effect {
                Effect::Connect { conn, address } => Some((conn, address)),
                _ => None,
            })
            .collect();
        for (conn, address) in connects {
            if address == "seed:1" {
                client.hello(conn);
            } else {
                client.lose(conn);
            }
            addresses.push(address);
        }
        let is_send = |effect: &Effect| matches!(effect, Effect::Send { .. });
        if client.effects.iter().any(is_send) {
            break;
        }
        client.wait();
    }
    assert!(addresses.iter().any(|address| address == "seed:1"));
    assert_eq!(client.only_sent().id, id.0);
}

#[test]
fn close_says_bye_and_ends_all_calls() {
    let (mut client, conn) = Client::with_session();
    let sent_call = client.call(enqueue());
    client.take_sent();
    let id = client.core.take_id();
    client.input(Input::Close { id });
    assert_eq!(
        client.result(sent_call).expect_err("ended").code(),
        Code::Unknown
    );
    let bye = client.only_sent();
    assert_eq!(bye.body, RequestBody::Bye);
    assert!(client.end(id).is_none());
    client.reply(conn, bye.id, ReplyBody::Outcome(Outcome::Done));
    assert!(client.result(id).is_ok());
    let late = client.call(enqueue());
    assert_eq!(
        client.result(late).expect_err("closed").code(),
        Code::Stopping
    );
}

#[test]
fn a_closed_client_keeps_no_connection_and_has_nothing_to_do() {
    let (mut client, conn) = Client::connected();
    client.core.want(client.now, Target::AnySeed);
    let id = client.core.take_id();
    client.input(Input::Close { id });
    let connecting = client.take_connect();
    let bye = client.only_sent();
    client.reply(conn, bye.id, ReplyBody::Outcome(Outcome::Done));
    assert!(client.result(id).is_ok());
    let closes = |effect: &Effect| match effect {
        Effect::Disconnect { conn } => Some(*conn),
        _ => None,
    };
    let closed: Vec<ConnNo> = client.effects.iter().filter_map(closes).collect();
    assert_eq!(closed, [conn, connecting]);
    assert_eq!(client.core.kept(), Kept::default());
    assert_eq!(client.core.next_deadline(), None);
}

#[test]
fn stamps_reach_the_caller() {
    let (mut client, conn) = Client::with_session();
    let id = client.call(enqueue());
    let sent = client.only_sent();
    let stamp = crate::wire::message::CommitStamp {
        group: GROUP,
        term: crate::base::ids::Term(1),
        index: LogIndex(5),
    };
    let reply = Reply {
        id: sent.id,
        stamp: Some(stamp),
        body: enqueued(1),
    };
    client.input(Input::Received { conn, reply });
    assert_eq!(client.result(id).expect("answered").stamp, Some(stamp));
}
