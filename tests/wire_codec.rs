//! Every codec yields what it was given, and none panics on anything.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rrq::base::code::Code;
use rrq::base::ids::{
    ClusterId, DiskId, GroupId, JobId, LogIndex, NodeId, Partition, QueueUid, SessionId, Term,
    Token, Voter,
};
use rrq::base::members::{Member, MemberRole};
use rrq::base::units::WallTime;
use rrq::queue::MACHINE_VERSION;
use rrq::queue::command::{PartitionChange, PartitionConfig};
use rrq::wire::client::{
    decode_client_hello, decode_reply, decode_request, decode_server_hello, encode_client_hello,
    encode_reply, encode_request, encode_server_hello,
};
use rrq::wire::command::{decode_command, encode_command};
use rrq::wire::frame::{Frame, FrameDecoder, FrameKind};
use rrq::wire::message::{
    ClientHello, CommitStamp, ErrorReply, GroupStatus, LeasedJob, MemberChange, NodeAddresses,
    Reply, ReplyBody, Request, RequestBody, ServerHello, ShardStatus, WaitingNode, WorkerInfo,
    WorkerSession,
};
use rrq::wire::{
    AckItem, Backoff, BackoffKind, Body, Command, DeadPolicy, Enqueued, FinishedJob, FinishedPage,
    Grant, ItemOutcome, JobCursor, JobEnd, JobFilter, JobPage, JobScan, JobState, JobView,
    NackItem, NewJob, Op, Outcome, PurgeStates, QueueInfo, QueueSettings, QueueStats, Rejection,
    SessionCall, Start, SweepAction, Window, WireError,
};

fn blob(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn group() -> impl Strategy<Value = GroupId> {
    any::<u16>().prop_map(GroupId)
}

fn queue() -> impl Strategy<Value = QueueUid> {
    (0_u64..1 << 40).prop_map(|raw| QueueUid::from_u64(raw).expect("40 bits"))
}

fn partition() -> impl Strategy<Value = Partition> {
    any::<u8>().prop_map(Partition)
}

fn job_id() -> impl Strategy<Value = JobId> {
    (group(), queue(), partition(), 0..=JobId::SEQ_MAX)
        .prop_map(|(group, queue, partition, seq)| JobId::new(group, queue, partition, seq))
}

fn token() -> impl Strategy<Value = Token> {
    (job_id(), any::<u32>()).prop_map(|(job, lease_gen)| Token { job, lease_gen })
}

fn session_id() -> impl Strategy<Value = SessionId> {
    (1..=u32::MAX).prop_map(SessionId)
}

fn backoff() -> impl Strategy<Value = Backoff> {
    let kind = prop_oneof![
        Just(BackoffKind::Fixed),
        Just(BackoffKind::Linear),
        Just(BackoffKind::Exponential)
    ];
    let times = any::<(u32, u32)>();
    (kind, times, 1_000_u32.., 0..=100_u8).prop_map(
        |(kind, times, factor_milli, jitter_percent)| Backoff {
            kind,
            base_ms: times.0,
            factor_milli,
            cap_ms: times.1,
            jitter_percent,
        },
    )
}

fn headers() -> impl Strategy<Value = Vec<(String, Bytes)>> {
    vec(("[a-z]{1,9}", blob(30)), 0..4)
}

prop_compose! {
    fn settings()(
        backoff in backoff(),
        from_one in (1..=u32::MAX, 1..=u16::MAX, 1..=u64::MAX, 1..=u8::MAX),
        small in any::<(u32, u32)>(),
        large in any::<(u64, u64)>(),
        drop in any::<bool>(),
    ) -> QueueSettings {
        QueueSettings {
            lease_ms: from_one.0,
            max_attempts: from_one.1,
            backoff,
            idempotency_window_ms: from_one.2,
            idempotency_keys_max: small.0,
            jobs_max: large.0,
            bytes_max: large.1,
            retain: small.1,
            dead: if drop { DeadPolicy::Drop } else { DeadPolicy::Keep },
            partitions: from_one.3,
        }
    }
}

prop_compose! {
    fn new_job()(
        payload in blob(400),
        priority in option::of(0_u8..8),
        start in prop_oneof![
            Just(Start::Now),
            any::<u64>().prop_map(Start::After),
            (0..=WallTime::MAX.0).prop_map(Start::At),
        ],
        numbers in any::<(u64, u32, u16, u32)>(),
        backoff in option::of(backoff()),
        key in option::of(vec(any::<u8>(), 1..40).prop_map(Bytes::from)),
        headers in headers(),
    ) -> NewJob {
        NewJob {
            payload,
            priority,
            start,
            ttl_ms: numbers.0,
            lease_ms: numbers.1,
            max_attempts: numbers.2,
            run_limit_ms: numbers.3,
            backoff,
            key,
            headers,
        }
    }
}

/// What a client may ask inside a session.
fn client_op() -> impl Strategy<Value = Op> {
    let ids = || vec(job_id(), 1..5);
    prop_oneof![
        (queue(), partition(), vec(new_job(), 1..5)).prop_map(|(queue, partition, items)| {
            Op::Enqueue {
                queue,
                partition,
                items,
            }
        }),
        (
            queue(),
            partition(),
            1_u32..=1024,
            any::<u32>(),
            any::<u32>()
        )
            .prop_map(|(queue, partition, max, lease_ms, epoch)| Op::Lease {
                queue,
                partition,
                max,
                lease_ms,
                epoch
            }),
        vec((token(), any::<u32>()), 1..5).prop_map(|items| Op::Extend { items }),
        vec((token(), option::of(blob(50))), 1..5).prop_map(|items| Op::Ack {
            items: items
                .into_iter()
                .map(|(token, result)| AckItem { token, result })
                .collect()
        }),
        vec((token(), option::of(any::<u64>()), blob(50)), 1..5).prop_map(|items| Op::Nack {
            items: items
                .into_iter()
                .map(|(token, delay_ms, reason)| NackItem {
                    token,
                    delay_ms,
                    reason
                })
                .collect()
        }),
        vec(token(), 1..5).prop_map(|items| Op::Release { items }),
        vec((token(), blob(50)), 1..5).prop_map(|items| Op::Bury { items }),
        ids().prop_map(|items| Op::Cancel { items }),
        ids().prop_map(|items| Op::RequeueDead { items }),
        ids().prop_map(|items| Op::DeleteDead { items }),
        ("[A-Za-z0-9._:-]{1,20}", settings(), any::<bool>()).prop_map(
            |(name, settings, must_be_new)| Op::CreateQueue {
                name,
                settings,
                must_be_new,
                groups: 0,
            }
        ),
        (queue(), any::<u32>(), settings()).prop_map(|(queue, expected_version, settings)| {
            Op::AlterQueue {
                queue,
                expected_version,
                settings,
            }
        }),
        queue().prop_map(|queue| Op::DeleteQueue { queue }),
        queue().prop_map(|queue| Op::PauseQueue { queue }),
        queue().prop_map(|queue| Op::DrainQueue { queue }),
        (
            queue(),
            partition(),
            any::<bool>(),
            filter(),
            any::<u64>(),
            1_u32..=1024
        )
            .prop_map(|(queue, partition, requeue, filter, from_seq, limit)| {
                Op::SweepDead {
                    queue,
                    partition,
                    action: if requeue {
                        SweepAction::Requeue
                    } else {
                        SweepAction::Delete
                    },
                    filter,
                    from_seq,
                    limit,
                }
            }),
        queue().prop_map(|queue| Op::ResumeQueue { queue }),
        (queue(), partition(), any::<(bool, bool, bool)>()).prop_map(|(queue, partition, on)| {
            let states = PurgeStates {
                pending: on.0,
                delayed: on.1,
                dead: on.2,
            };
            Op::Purge {
                queue,
                partition,
                states,
            }
        }),
    ]
}

/// What acts on a session.
fn session_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        any::<u32>().prop_map(|worker_timeout_ms| Op::OpenSession { worker_timeout_ms }),
        session_id().prop_map(|session| Op::CloseSession { session }),
        session_id().prop_map(|session| Op::Attach { session }),
    ]
}

/// What only a leader may propose.
fn leader_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (session_id(), any::<u32>()).prop_map(|(session, epoch)| Op::EndLeases { session, epoch }),
        (session_id(), any::<u32>(), any::<u64>()).prop_map(|(session, epoch, last_seq)| {
            Op::DropSession {
                session,
                epoch,
                last_seq,
            }
        }),
        any::<u32>().prop_map(|limit| Op::Advance { limit }),
        any::<i64>().prop_map(|offset_ms| Op::SetWallOffset { offset_ms }),
        (group(), any::<u64>()).prop_map(|(group, index)| Op::PartitionsChanged {
            group,
            home_index: LogIndex(index),
        }),
        (
            (group(), any::<u64>(), queue()),
            vec(partition(), 0..4),
            option::of((any::<u32>(), any::<bool>(), any::<bool>(), settings())),
        )
            .prop_map(|((home, index, queue), partitions, config)| {
                Op::ChangePartitions(Box::new(PartitionChange {
                    home,
                    home_index: LogIndex(index),
                    queue,
                    partitions,
                    config: config.map(|(version, paused, draining, settings)| PartitionConfig {
                        version,
                        paused,
                        draining,
                        settings,
                    }),
                }))
            }),
    ]
}

fn client_command() -> impl Strategy<Value = Command> {
    let call = option::of((session_id(), 1_u64..=u64::MAX, any::<u64>()));
    let numbered = (call, client_op()).prop_map(|(call, op)| Command {
        session: call.map(|(id, seq, lowest)| SessionCall {
            id,
            seq,
            lowest: lowest % seq + 1,
            window: if matches!(op, Op::Lease { .. }) {
                Window::Polls
            } else {
                Window::Commands
            },
        }),
        op,
    });
    prop_oneof![8 => numbered, 1 => session_op().prop_map(|op| Command { session: None, op })]
}

fn any_command() -> impl Strategy<Value = Command> {
    let leader = leader_op().prop_map(|op| Command { session: None, op });
    prop_oneof![8 => client_command(), 1 => leader]
}

fn job_state() -> impl Strategy<Value = JobState> {
    (1_u8..=4).prop_map(|raw| JobState::from_u8(raw).expect("1 to 4"))
}

fn filter() -> impl Strategy<Value = JobFilter> {
    (
        blob(50),
        option::of(0_u8..8),
        any::<u64>(),
        any::<u64>(),
        any::<u32>(),
    )
        .prop_map(
            |(reason_contains, priority, enqueued_from_ms, enqueued_before_ms, attempts_min)| {
                JobFilter {
                    reason_contains,
                    priority,
                    enqueued_from_ms,
                    enqueued_before_ms,
                    attempts_min,
                }
            },
        )
}

fn cursor() -> impl Strategy<Value = JobCursor> {
    any::<(u8, u64)>().prop_map(|(priority, seq)| JobCursor { priority, seq })
}

fn worker_info() -> impl Strategy<Value = WorkerInfo> {
    ("[a-z]{0,9}", vec("[a-z]{1,9}", 0..3), any::<u32>()).prop_map(|(name, tags, capacity)| {
        WorkerInfo {
            name,
            tags,
            capacity,
        }
    })
}

prop_compose! {
    fn scan()(
        queue in queue(),
        partition in partition(),
        state in job_state(),
        filter in filter(),
        cursor in option::of(cursor()),
        limit in 0_u32..=1024,
        bodies in any::<bool>(),
    ) -> JobScan {
        JobScan { queue, partition, state, filter, cursor, limit, bodies }
    }
}

prop_compose! {
    fn finished_job()(
        id in job_id(),
        end in 1_u8..=3,
        attempts in any::<u16>(),
        numbers in any::<[u64; 3]>(),
        result in option::of(blob(30)),
    ) -> FinishedJob {
        FinishedJob {
            id,
            end: JobEnd::from_u8(end).expect("1 to 3"),
            attempts,
            enqueued_at: WallTime(numbers[0]),
            finished_at: WallTime(numbers[1]),
            result,
            place: numbers[2],
        }
    }
}

fn voter() -> impl Strategy<Value = Voter> {
    let ids = any::<(u32, [u8; 16])>();
    ids.prop_map(|(node, disk)| Voter {
        node: NodeId(node),
        disk: DiskId(disk),
    })
}

fn request() -> impl Strategy<Value = Request> {
    let key = || vec(any::<u8>(), 1..40).prop_map(Bytes::from);
    let body = prop_oneof![
        6 => (group(), client_command(), 0_u32..=60_000).prop_map(|(group, command, wait_ms)| {
            let wait_ms = if matches!(command.op, Op::Lease { .. }) { wait_ms } else { 0 };
            RequestBody::Command { group, command, wait_ms }
        }),
        1 => job_id().prop_map(|job| RequestBody::GetJob { job }),
        1 => (queue(), partition(), group(), key()).prop_map(|(queue, partition, group, key)| {
            RequestBody::GetJobByKey { queue, partition, group, key }
        }),
        1 => (queue(), partition(), group(), job_state(), 1_u32..=1024).prop_map(
            |(queue, partition, group, state, limit)| RequestBody::Peek {
                queue, partition, group, state, limit
            }),
        1 => ("[A-Za-z0-9._:-]{1,20}", any::<bool>()).prop_map(|(name, create)| RequestBody::GetQueue { name, create }),
        1 => group().prop_map(|group| RequestBody::ListQueues { group }),
        1 => vec((group(), session_id()), 0..5)
            .prop_map(|sessions| RequestBody::Heartbeat { sessions, worker: None }),
        1 => worker_info().prop_map(|worker| RequestBody::Heartbeat {
            sessions: Vec::new(),
            worker: Some(worker),
        }),
        1 => (job_id(), 0_u32..=60_000).prop_map(|(job, wait_ms)| RequestBody::WaitJob { job, wait_ms }),
        1 => (queue(), partition(), group(), 0_u32..=60_000).prop_map(
            |(queue, partition, group, wait_ms)| RequestBody::Watch {
                queue, partition, group, wait_ms
            }),
        1 => (queue(), partition(), group(), any::<u64>(), 1_u32..=1024).prop_map(
            |(queue, partition, group, before, limit)| RequestBody::ScanFinished {
                queue, partition, group, before, limit
            }),
        1 => (queue(), partition(), group()).prop_map(
            |(queue, partition, group)| RequestBody::GetPartition { queue, partition, group }),
        1 => group().prop_map(|group| RequestBody::ListWorkers { group }),
        1 => vec(voter(), 1..4).prop_map(|nodes| RequestBody::ChangeMembers(MemberChange::Add(nodes))),
        1 => any::<u32>().prop_map(|node| {
            RequestBody::ChangeMembers(MemberChange::Remove(NodeId(node)))
        }),
        1 => (group(), scan()).prop_map(|(group, scan)| RequestBody::ScanJobs { group, scan }),
        1 => any::<bool>().prop_map(|on| RequestBody::Drain { on }),
        1 => Just(RequestBody::Status),
        1 => Just(RequestBody::Bye),
    ];
    (1..=u64::MAX, body).prop_map(|(id, body)| Request { id, body })
}

fn rejection() -> impl Strategy<Value = Rejection> {
    (0..Rejection::ALL.len()).prop_map(|index| Rejection::ALL[index])
}

prop_compose! {
    fn queue_info()(
        uid in queue(),
        name in "[a-z]{1,9}",
        version in any::<u32>(),
        paused in any::<bool>(),
        draining in any::<bool>(),
        groups in vec(group(), 1..4),
        settings in settings(),
        created in any::<bool>(),
    ) -> QueueInfo {
        QueueInfo { uid, name, version, paused, draining, groups, settings, created }
    }
}

prop_compose! {
    fn job_view()(
        id in job_id(),
        state in job_state(),
        numbers in any::<(u8, u16, u16, u64)>(),
        times in (option::of(any::<u64>()), option::of(any::<u64>()), option::of(any::<u64>())),
        lease_gen in option::of(any::<u32>()),
        owner in option::of(session_id()),
        last_failure in blob(30),
        payload in blob(300),
        headers in headers(),
        key in option::of(blob(30)),
        run_limit_ms in any::<u32>(),
        backoff in option::of(backoff()),
    ) -> JobView {
        JobView {
            id,
            state,
            priority: numbers.0,
            attempts: numbers.1,
            max_attempts: numbers.2,
            run_at: times.0.map(WallTime),
            remaining_ms: times.1,
            enqueued_at: WallTime(numbers.3),
            expires_at: times.2.map(WallTime),
            token: lease_gen.map(|lease_gen| Token { job: id, lease_gen }),
            owner,
            last_failure,
            body: Body { payload, headers, key, run_limit_ms, backoff },
        }
    }
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let enqueued = prop_oneof![
        job_id().prop_map(Enqueued::New),
        job_id().prop_map(Enqueued::Existing),
        rejection().prop_map(Enqueued::Rejected)
    ];
    let item = prop_oneof![
        Just(ItemOutcome::Done),
        rejection().prop_map(ItemOutcome::Rejected)
    ];
    prop_oneof![
        Just(Outcome::Done),
        rejection().prop_map(Outcome::Rejected),
        (session_id(), any::<u32>())
            .prop_map(|(session, epoch)| Outcome::SessionOpened { session, epoch }),
        (any::<u32>(), vec(token(), 0..4))
            .prop_map(|(epoch, tokens)| Outcome::Attached { epoch, tokens }),
        queue_info().prop_map(|info| Outcome::Queue(Box::new(info))),
        any::<u64>().prop_map(|jobs| Outcome::Purged { jobs }),
        vec(enqueued, 0..5).prop_map(Outcome::Enqueued),
        vec((token(), any::<u16>(), any::<u32>()), 0..5).prop_map(|grants| Outcome::Leased(
            grants
                .into_iter()
                .map(|(token, attempt, lease_ms)| Grant {
                    token,
                    attempt,
                    lease_ms
                })
                .collect()
        )),
        vec(item, 0..5).prop_map(Outcome::Items),
        any::<u32>().prop_map(|handled| Outcome::Advanced { handled }),
        (any::<[u32; 2]>(), option::of(any::<u64>())).prop_map(|([matched, scanned], next_seq)| {
            Outcome::Swept {
                matched,
                scanned,
                next_seq,
            }
        }),
    ]
}

fn stats(numbers: [u64; 14], oldest: Option<u64>) -> QueueStats {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = numbers;
    QueueStats {
        pending: a,
        delayed: b,
        in_flight: c,
        dead: d,
        bytes: e,
        keys: f,
        enqueued_total: g,
        leased_total: h,
        completed_total: i,
        nacked_total: j,
        expired_total: k,
        dead_total: l,
        cancelled_total: m,
        retained: n,
        oldest_pending: oldest.map(WallTime),
    }
}

prop_compose! {
    fn shard_status()(
        numbers in any::<(u16, u16, u64, u64, u64, u64, bool)>(),
        groups in vec((group(), any::<[u64; 5]>(), any::<bool>(), "[a-z]{0,5}"), 0..4),
        members in vec((voter(), 0_u32..5), 0..4),
        waiting in vec((voter(), vec("[a-z:0-9]{1,9}", 0..3)), 0..3),
    ) -> ShardStatus {
        ShardStatus {
            shard: numbers.0,
            shards: numbers.1,
            uptime_ms: numbers.2,
            connections: numbers.3,
            log_bytes_since_checkpoint: numbers.4,
            durable_lsn: numbers.5,
            disk_full: numbers.6,
            groups: groups
                .into_iter()
                .map(|(group, [term, commit, applied, base, sessions], leader, halted)| {
                    GroupStatus {
                        group,
                        term: Term(term),
                        leader,
                        commit: LogIndex(commit),
                        applied: LogIndex(applied),
                        base: LogIndex(base),
                        sessions,
                        halted,
                        machine_version: 1,
                        members_unsettled: leader,
                    }
                })
                .collect(),
            members: members
                .into_iter()
                .map(|(voter, role)| Member {
                    voter,
                    role: MemberRole::from_u32(role).expect("a role"),
                })
                .collect(),
            waiting: waiting
                .into_iter()
                .map(|(id, addresses)| WaitingNode { id, addresses })
                .collect(),
            draining: numbers.6,
            zone: format!("zone-{}", numbers.1),
        }
    }
}

fn reply() -> impl Strategy<Value = Reply> {
    let leased =
        (any::<(u32, u32)>(), job_view()).prop_map(|((lease_gen, lease_ms), job)| LeasedJob {
            lease_gen,
            job,
            lease_ms,
        });
    let error = (
        0..Code::ALL.len(),
        "[ -~]{0,20}",
        option::of("[a-z:0-9]{1,9}"),
        any::<bool>(),
    )
        .prop_map(|(code, message, leader, maybe_applied)| ErrorReply {
            code: Code::ALL[code],
            message,
            leader,
            maybe_applied,
        });
    let worker_session = (
        session_id(),
        any::<(u64, u32, u64, bool)>(),
        option::of(worker_info()),
    )
        .prop_map(
            |(session, (leases, waiting, silent_ms, ended), worker)| WorkerSession {
                session,
                leases,
                waiting,
                silent_ms,
                ended,
                worker,
            },
        );
    let with_stats = (queue_info(), any::<[u64; 14]>(), option::of(any::<u64>()))
        .prop_map(|(info, numbers, oldest)| (info, stats(numbers, oldest)));
    let body = prop_oneof![
        4 => outcome().prop_map(ReplyBody::Outcome),
        1 => vec(leased, 0..4).prop_map(ReplyBody::Leased),
        1 => job_view().prop_map(|view| ReplyBody::Job(Box::new(view))),
        1 => vec(job_view(), 0..4).prop_map(ReplyBody::Jobs),
        1 => vec(with_stats, 0..3).prop_map(ReplyBody::Queues),
        1 => shard_status().prop_map(ReplyBody::Status),
        1 => vec((group(), session_id()), 0..4)
            .prop_map(|unknown| ReplyBody::HeartbeatTaken { unknown }),
        1 => finished_job().prop_map(|job| ReplyBody::Finished(Box::new(job))),
        1 => any::<u64>().prop_map(ReplyBody::Ready),
        1 => (vec(job_view(), 0..3), any::<[u64; 2]>(), option::of(cursor())).prop_map(
            |(jobs, [matched, scanned], next)| ReplyBody::JobPage(JobPage {
                jobs, matched, scanned, next
            })),
        1 => (vec(finished_job(), 0..3), any::<u64>()).prop_map(
            |(jobs, next)| ReplyBody::FinishedPage(FinishedPage { jobs, next })),
        1 => (any::<[u64; 14]>(), option::of(any::<u64>()))
            .prop_map(|(numbers, oldest)| ReplyBody::Partition(Box::new(stats(numbers, oldest)))),
        1 => vec(worker_session, 0..3).prop_map(ReplyBody::Workers),
        1 => error.prop_map(ReplyBody::Error),
    ];
    let stamp = option::of((group(), any::<u64>(), any::<u64>()));
    (any::<u64>(), stamp, body).prop_map(|(id, stamp, body)| Reply {
        id,
        stamp: stamp.map(|(group, term, index)| CommitStamp {
            group,
            term: Term(term),
            index: LogIndex(index),
        }),
        body,
    })
}

fn only_frame(bytes: &[u8], kind: FrameKind) -> Frame {
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(1 << 20);
    decoder.push(bytes);
    let frame = decoder.next().expect("sound").expect("whole");
    assert_eq!(frame.kind, kind);
    assert_eq!(decoder.buffered(), 0);
    frame
}

fn request_body(request: &Request) -> Bytes {
    let mut out = BytesMut::new();
    encode_request(request, &mut out);
    only_frame(&out, FrameKind::Request).body
}

fn reply_body(reply: &Reply) -> Bytes {
    let mut out = BytesMut::new();
    encode_reply(reply, &mut out);
    only_frame(&out, FrameKind::Reply).body
}

/// `bytes` with a few of them changed, or cut off.
fn damage(bytes: &Bytes, at: &[(prop::sample::Index, u8)], cut: prop::sample::Index) -> Bytes {
    let mut bad = bytes.to_vec();
    for (index, byte) in at {
        if !bad.is_empty() {
            let index = index.index(bad.len());
            bad[index] = *byte;
        }
    }
    bad.truncate(cut.index(bytes.len() + 1).max(bytes.len() / 2));
    Bytes::from(bad)
}

fn damages() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn commands_come_back(command in any_command()) {
        let payload = encode_command(&command);
        for version in 1..=MACHINE_VERSION {
            let decoded = decode_command(&payload, version);
            if version >= command.op.since() {
                prop_assert_eq!(decoded, Ok(command.clone()));
            } else {
                let newer = WireError::UnknownOperation("a command of its version");
                prop_assert_eq!(decoded, Err(newer));
            }
        }
        for unknown in [0, MACHINE_VERSION + 1] {
            let refused = Err(WireError::MachineVersion(unknown));
            prop_assert_eq!(decode_command(&payload, unknown), refused);
        }
    }

    #[test]
    fn requests_come_back(request in request()) {
        prop_assert_eq!(decode_request(&request_body(&request)), Ok(request));
    }

    #[test]
    fn replies_come_back(reply in reply()) {
        prop_assert_eq!(decode_reply(&reply_body(&reply)), Ok(reply));
    }

    #[test]
    fn hellos_come_back(
        min in 1_u32..9,
        more in 0_u32..9,
        agent in "[ -~]{0,20}",
        cluster in any::<[u8; 16]>(),
        shard in 0_u16..4,
        bits in 0_u32..=16,
        nodes in vec((any::<u32>(), vec("[a-z0-9.:]{1,20}", 1..4)), 0..3),
    ) {
        let hello = ClientHello { protocol_min: min, protocol_max: min + more, agent };
        let mut out = BytesMut::new();
        encode_client_hello(&hello, &mut out);
        let body = only_frame(&out, FrameKind::ClientHello).body;
        prop_assert_eq!(decode_client_hello(&body), Ok(hello.clone()));

        let own = (more, vec!["a:1".to_owned(); 4]);
        let nodes = std::iter::once(own).chain(nodes);
        let hello = ServerHello {
            protocol: min,
            version: hello.agent,
            cluster: ClusterId(cluster),
            node: NodeId(more),
            shard,
            groups: 1 << bits,
            payload_bytes_max: more,
            nodes: nodes
                .map(|(node, addresses)| NodeAddresses { node: NodeId(node), addresses })
                .collect(),
        };
        let mut out = BytesMut::new();
        encode_server_hello(&hello, &mut out);
        let body = only_frame(&out, FrameKind::ServerHello).body;
        prop_assert_eq!(decode_server_hello(&body), Ok(hello));
    }

    #[test]
    fn a_leaders_commands_are_not_for_clients(op in leader_op(), id in 1..u64::MAX) {
        let command = Command { session: None, op };
        let body = RequestBody::Command { group: GroupId(0), command, wait_ms: 0 };
        let error = decode_request(&request_body(&Request { id, body })).expect_err("refused");
        prop_assert_eq!(error.id, Some(id));
        prop_assert!(matches!(error.error, WireError::LeaderOnly(_)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        let _ = decode_command(&bytes, 1);
        let _ = decode_request(&bytes);
        let _ = decode_reply(&bytes);
        let _ = decode_client_hello(&bytes);
        let _ = decode_server_hello(&bytes);
    }

    #[test]
    fn damaged_bytes_never_panic(
        command in any_command(),
        request in request(),
        reply in reply(),
        at in damages(),
        cut in any::<prop::sample::Index>(),
    ) {
        if let Ok(command) = decode_command(&damage(&encode_command(&command), &at, cut), 1) {
            prop_assert!(decode_command(&encode_command(&command), 1).is_ok());
        }
        if let Ok(request) = decode_request(&damage(&request_body(&request), &at, cut)) {
            prop_assert_eq!(decode_request(&request_body(&request)), Ok(request));
        }
        if let Ok(reply) = decode_reply(&damage(&reply_body(&reply), &at, cut)) {
            prop_assert_eq!(decode_reply(&reply_body(&reply)), Ok(reply));
        }
    }
}

/// Requests that are out of one bound each, and the words of the refusal.
#[test]
fn every_bound_is_named() {
    let queue = QueueUid::new(GroupId(1), 1).expect("in range");
    let token = Token {
        job: JobId::new(GroupId(1), queue, Partition(0), 1),
        lease_gen: 1,
    };
    let lease = |max| Op::Lease {
        queue,
        partition: Partition(0),
        max,
        lease_ms: 0,
        epoch: 0,
    };
    let enqueue = |items| Op::Enqueue {
        queue,
        partition: Partition(0),
        items,
    };
    let job = |change: fn(&mut NewJob)| {
        let mut job = NewJob::default();
        change(&mut job);
        enqueue(vec![job])
    };
    let create = |name: &str| Op::CreateQueue {
        name: name.to_owned(),
        settings: QueueSettings::default(),
        must_be_new: false,
        groups: 0,
    };
    let with = |change: fn(&mut QueueSettings)| {
        let mut settings = QueueSettings::default();
        change(&mut settings);
        Op::AlterQueue {
            queue,
            expected_version: 0,
            settings,
        }
    };
    let call = |seq, lowest, window| SessionCall {
        id: SessionId(1),
        seq,
        lowest,
        window,
    };
    let cases: Vec<(Option<SessionCall>, Op, u32, &str)> = vec![
        (None, lease(0), 0, "max is 0, allowed are 1 to 1024"),
        (None, lease(1025), 0, "max is 1025, allowed are 1 to 1024"),
        (
            None,
            lease(1),
            60_001,
            "wait_ms is 60001, allowed are 0 to 60000",
        ),
        (
            None,
            enqueue(vec![]),
            0,
            "items has length 0, allowed are 1 to 1024",
        ),
        (
            None,
            enqueue(vec![NewJob::default(); 1025]),
            0,
            "items has length 1025, allowed are 1 to 1024",
        ),
        (
            None,
            enqueue(vec![NewJob::default()]),
            1,
            "only a lease can wait",
        ),
        (
            None,
            job(|job| job.priority = Some(8)),
            0,
            "priority is 8, allowed are 0 to 7",
        ),
        (
            None,
            job(|job| job.key = Some(Bytes::new())),
            0,
            "key has length 0, allowed are 1 to 256",
        ),
        (
            None,
            job(|job| job.key = Some(vec![0; 257].into())),
            0,
            "key has length 257, allowed are 1 to 256",
        ),
        (
            None,
            job(|job| job.headers = vec![("a".into(), Bytes::new()); 33]),
            0,
            "headers has length 33, allowed are 0 to 32",
        ),
        (
            None,
            job(|job| job.headers = vec![("a".into(), vec![0; 4096].into())]),
            0,
            "headers, in bytes, has length 4097, allowed are 0 to 4096",
        ),
        (
            None,
            job(|job| job.headers = vec![(String::new(), Bytes::new())]),
            0,
            "a header's name has length 0, allowed are 1 to 4096",
        ),
        (
            None,
            job(|job| job.payload = vec![0; (4 << 20) + 1].into()),
            0,
            "a payload of 4194305 bytes, at most 4194304 are allowed",
        ),
        (
            None,
            Op::Ack {
                items: vec![AckItem {
                    token,
                    result: Some(vec![0; 4097].into()),
                }],
            },
            0,
            "result has length 4097, allowed are 0 to 4096",
        ),
        (
            None,
            job(|job| job.start = Start::At(1 << 48)),
            0,
            "run_at is 281474976710656, allowed are 0 to 281474976710655",
        ),
        (
            None,
            job(|job| {
                job.backoff = Some(Backoff {
                    jitter_percent: 101,
                    ..Backoff::default()
                });
            }),
            0,
            "backoff.jitter_percent is 101, allowed are 0 to 100",
        ),
        (
            None,
            with(|settings| settings.partitions = 0),
            0,
            "partitions is 0, allowed are 1 to 255",
        ),
        (
            None,
            with(|settings| settings.backoff.factor_milli = 999),
            0,
            "backoff.factor_milli is 999, allowed are 1000 to 4294967295",
        ),
        (
            None,
            create(""),
            0,
            "a queue's name is 1 to 128 of A-Z a-z 0-9 . _ : -",
        ),
        (
            None,
            create("a b"),
            0,
            "a queue's name is 1 to 128 of A-Z a-z 0-9 . _ : -",
        ),
        (
            None,
            create(&"a".repeat(129)),
            0,
            "a queue's name is 1 to 128 of A-Z a-z 0-9 . _ : -",
        ),
        (
            Some(call(0, 0, Window::Polls)),
            lease(1),
            0,
            "lowest is 0, allowed are 1 to 0",
        ),
        (
            Some(call(1, 2, Window::Polls)),
            lease(1),
            0,
            "lowest is 2, allowed are 1 to 1",
        ),
        (
            Some(call(1, 1, Window::Commands)),
            lease(1),
            0,
            "leases, and only they, are numbered in the window of polls",
        ),
        (
            Some(call(1, 1, Window::Commands)),
            Op::Attach {
                session: SessionId(1),
            },
            0,
            "a command on a session is not numbered in one",
        ),
    ];
    for (session, op, wait_ms, words) in cases {
        let command = Command { session, op };
        let body = RequestBody::Command {
            group: GroupId(1),
            command,
            wait_ms,
        };
        let mut out = BytesMut::new();
        encode_request(&Request { id: 7, body }, &mut out);
        let mut decoder = FrameDecoder::default();
        decoder.set_body_bytes_max(8 << 20);
        decoder.push(&out);
        let frame = decoder.next().expect("sound").expect("whole");
        let error = decode_request(&frame.body).expect_err(words);
        assert_eq!(error.id, Some(7));
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn long_reasons_are_cut() {
    let queue = QueueUid::new(GroupId(1), 1).expect("in range");
    let token = Token {
        job: JobId::new(GroupId(1), queue, Partition(0), 1),
        lease_gen: 1,
    };
    let op = Op::Bury {
        items: vec![(token, vec![b'x'; 1000].into())],
    };
    let command = Command { session: None, op };
    let body = RequestBody::Command {
        group: GroupId(1),
        command,
        wait_ms: 0,
    };
    let request = decode_request(&request_body(&Request { id: 1, body })).expect("let through");
    let RequestBody::Command { command, .. } = request.body else {
        panic!("another request")
    };
    let Op::Bury { items } = command.op else {
        panic!("another command")
    };
    assert_eq!(items[0].1.len(), 256);
}

#[test]
fn a_field_of_a_newer_version_in_the_log_is_refused() {
    let command = Command {
        session: None,
        op: Op::Advance { limit: 5 },
    };
    let mut payload = encode_command(&command).to_vec();
    payload.extend_from_slice(&[0xa0, 0x06, 0x01]); // field 100, varint 1
    let error = decode_command(&payload.into(), 1).expect_err("refused");
    assert_eq!(error, WireError::UnknownFields(3));
    assert_eq!(error.code(), Code::FormatTooNew);
}
