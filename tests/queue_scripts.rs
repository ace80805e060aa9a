//! Golden scripts: named situations of the job machine, as traces to be read.
//!
//! A script in `tests/scripts/queue/` has blocks: lines of commands, `----`, what they print, an
//! empty line. `#` begins a comment. `UPDATE=1` writes what is printed into the scripts; explain
//! the difference before you keep it. Every command is followed by a proof of all invariants, and
//! every script ends with its pages read back into an equal state.
//!
//! ```text
//! at 500 | wall +1000              the stamp of the next entries; the wall offset
//! create q lease=9 attempts=2 backoff=fixed:100:500:0 dead=drop jobs=3 bytes=9 window=50 keys=2
//! alter q [v=2] ... | pause q | resume q | delete q | purge q pending,delayed,dead
//! enqueue q payload=x prio=0 after=5 at=7 ttl=9 lease=3 attempts=1 key=k backoff=... ; payload=y
//! lease q max=2 ms=100 epoch=1
//! extend 0@1 50 | ack 0@1 | nack 0@1 delay=5 why=text | release 0@1 | bury 0@1 why=text
//! cancel 0 | requeue 0 | delete-dead 0 | advance 10
//! open [timeout] | attach 1 | end 1 epoch=1 | close 1 | drop 1 epoch=1 last=3
//! s1/4/2 <command>                 in session 1 as number 4, lowest unseen 2
//! show q | get 0 | key q k | due | sessions
//! raise                            to machine version 2, and then:
//! create q partitions=3 retain=5 groups=8 | drain q | ack-result 0@1 text
//! sweep q requeue from=0 limit=9 why=text prio=0 attempts=1 since=5 before=9 | sweep q delete
//! scan q dead limit=2 why=text at=4:7 | finished q before=9 limit=2 | result 0
//! told 3.1 index=5 1,9 version=2 partitions=10 jobs=4   (or `gone` for all after the partitions)
//! done group=8 index=5 | changes
//! ```
//! Jobs are written by their sequence, tokens as `sequence@generation`; a queue is named by its
//! name, by `uid:n` or by `home.n`; `name/1` is its partition 1. The queue of jobs is the last one
//! named by `create` or `use`. The group is 7.

use bytes::Bytes;
use rrq::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid, SessionId, Token};
use rrq::base::units::GroupTime;
use rrq::queue::command::*;
use rrq::queue::view::*;
use rrq::queue::{JobQueue, check::check, encode_body};
use std::fmt::Write;
use std::path::{Path, PathBuf};

const GROUP: GroupId = GroupId(7);

struct Runner {
    machine: JobQueue,
    index: u64,
    time: u64,
    uid: QueueUid,
    number: Partition,
}

/// `name=value` fields of a line, each used once.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn of(words: &[&'a str]) -> Self {
        let pair = |word: &&'a str| {
            word.split_once('=')
                .unwrap_or_else(|| panic!("{word} is not name=value"))
        };
        Self(words.iter().map(pair).collect())
    }

    fn text(&mut self, name: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(at).1)
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Option<T> {
        self.text(name).map(|text| number(text))
    }

    fn end(self) {
        assert!(self.0.is_empty(), "unknown fields {:?}", self.0);
    }
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is not a number in range"))
}

fn backoff(text: &str) -> Backoff {
    let parts: Vec<&str> = text.split(':').collect();
    let [kind, base, cap, jitter] = parts[..] else {
        panic!("{text} is not kind:base:cap:jitter");
    };
    Backoff {
        kind: match kind {
            "fixed" => BackoffKind::Fixed,
            "linear" => BackoffKind::Linear,
            "exponential" => BackoffKind::Exponential,
            _ => panic!("unknown backoff {kind}"),
        },
        base_ms: number(base),
        factor_milli: 2000,
        cap_ms: number(cap),
        jitter_percent: number(jitter),
    }
}

fn settings(words: &[&str]) -> QueueSettings {
    let mut fields = Fields::of(words);
    let default = QueueSettings::default();
    let settings = QueueSettings {
        lease_ms: fields.number("lease").unwrap_or(default.lease_ms),
        max_attempts: fields.number("attempts").unwrap_or(default.max_attempts),
        backoff: fields.text("backoff").map_or(default.backoff, backoff),
        idempotency_window_ms: fields
            .number("window")
            .unwrap_or(default.idempotency_window_ms),
        idempotency_keys_max: fields
            .number("keys")
            .unwrap_or(default.idempotency_keys_max),
        jobs_max: fields.number("jobs").unwrap_or(0),
        bytes_max: fields.number("bytes").unwrap_or(0),
        retain: fields.number("retain").unwrap_or(0),
        dead: match fields.text("dead") {
            None | Some("keep") => DeadPolicy::Keep,
            Some("drop") => DeadPolicy::Drop,
            Some(other) => panic!("unknown policy {other}"),
        },
        partitions: fields.number("partitions").unwrap_or(1),
    };
    fields.end();
    settings
}

fn bytes(text: &str) -> Bytes {
    // `x*300` is 300 times x.
    match text.split_once('*') {
        Some((unit, times)) => Bytes::from(unit.repeat(number(times))),
        None => Bytes::copy_from_slice(text.as_bytes()),
    }
}

fn new_job(words: &[&str]) -> NewJob {
    let mut fields = Fields::of(words);
    let job = NewJob {
        payload: fields.text("payload").map(bytes).unwrap_or_default(),
        priority: fields.number("prio"),
        start: match (fields.number("after"), fields.number("at")) {
            (Some(ms), None) => Start::After(ms),
            (None, Some(at)) => Start::At(at),
            _ => Start::Now,
        },
        ttl_ms: fields.number("ttl").unwrap_or(0),
        lease_ms: fields.number("lease").unwrap_or(0),
        max_attempts: fields.number("attempts").unwrap_or(0),
        run_limit_ms: fields.number("limit").unwrap_or(0),
        backoff: fields.text("backoff").map(backoff),
        key: fields.text("key").map(bytes),
        headers: fields
            .text("header")
            .map(|text| vec![("h".to_owned(), bytes(text))])
            .unwrap_or_default(),
    };
    fields.end();
    job
}

impl Runner {
    fn new() -> Self {
        Self {
            machine: JobQueue::new(GROUP, 0),
            index: 0,
            time: 0,
            uid: QueueUid::default(),
            number: Partition(0),
        }
    }

    /// A queue and, after a slash, one of its partitions.
    fn place_of(&self, name: &str) -> (QueueUid, Partition) {
        match name.split_once('/') {
            Some((queue, partition)) => (self.uid_of(queue), Partition(number(partition))),
            None => (self.uid_of(name), Partition(0)),
        }
    }

    fn uid_of(&self, name: &str) -> QueueUid {
        let numbers = name
            .split_once('.')
            .filter(|(home, _)| home.parse::<u16>().is_ok());
        if let Some((home, counter)) = numbers {
            return QueueUid::new(GroupId(number(home)), number(counter)).expect("in range");
        }
        if let Some(counter) = name.strip_prefix("uid:") {
            return QueueUid::new(GROUP, number(counter)).expect("in range");
        }
        let info = self.machine.queue_by_name(name);
        info.unwrap_or_else(|| panic!("no queue {name}")).uid
    }

    fn job(&self, text: &str) -> JobId {
        JobId::new(GROUP, self.uid, self.number, number(text))
    }

    fn token(&self, text: &str) -> Token {
        let (seq, generation) = text
            .split_once('@')
            .expect("a token is sequence@generation");
        Token {
            job: self.job(seq),
            lease_gen: number(generation),
        }
    }

    fn apply(&mut self, session: Option<SessionCall>, op: Op) -> Outcome {
        self.index += 1;
        let at = ApplyAt {
            index: LogIndex(self.index),
            time: GroupTime(self.time),
        };
        let outcome = self.machine.apply(at, &Command { session, op });
        check(&self.machine).expect("all invariants hold");
        outcome
    }

    fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (call, words) = match words[0].strip_prefix('s').filter(|rest| rest.contains('/')) {
            Some(call) => (Some(call), &words[1..]),
            None => (None, &words[..]),
        };
        let (verb, rest) = (words[0], &words[1..]);
        if let Some(text) = self.read(verb, rest) {
            return text;
        }
        let op = self.op(verb, rest);
        let session = call.map(|call| session_call(call, &op));
        let created = matches!(op, Op::CreateQueue { .. });
        let outcome = self.apply(session, op);
        if let (true, Outcome::Queue(info)) = (created, &outcome) {
            (self.uid, self.number) = (info.uid, Partition(0));
        }
        show_outcome(&outcome)
    }

    /// What is no command of the log.
    fn read(&mut self, verb: &str, rest: &[&str]) -> Option<String> {
        let none = String::new();
        Some(match verb {
            "at" => {
                self.time = number(rest[0]);
                none
            }
            "raise" => {
                self.machine.raise_version(2);
                check(&self.machine).expect("all invariants hold");
                none
            }
            "use" => {
                (self.uid, self.number) = self.place_of(rest[0]);
                none
            }
            "show" => self.show(rest[0]),
            "scan" => self.scan(rest),
            "finished" => {
                let (uid, partition) = self.place_of(rest[0]);
                let mut fields = Fields::of(&rest[1..]);
                let before = fields.number("before").unwrap_or(0);
                let limit = fields.number("limit").unwrap_or(10);
                fields.end();
                match self.machine.scan_finished(uid, partition, before, limit) {
                    Ok(page) => {
                        let jobs: String = page.jobs.iter().map(show_finished).collect();
                        format!("{jobs}go on before {}\n", page.next)
                    }
                    Err(why) => format!("refused: {why:?}\n"),
                }
            }
            "result" => match self.machine.finished(self.job(rest[0])) {
                Some(job) => show_finished(&job),
                None => "not retained\n".to_owned(),
            },
            "changes" => {
                let changes: String = self.machine.next_changes().map(show_change).collect();
                if changes.is_empty() {
                    "no changes\n".to_owned()
                } else {
                    changes
                }
            }
            "get" => show_job(self.machine.job(self.job(rest[0]))),
            "key" => {
                let uid = self.uid_of(rest[0]);
                show_job(
                    self.machine
                        .job_by_key(uid, Partition(0), rest[1].as_bytes()),
                )
            }
            "due" => match self.machine.next_due() {
                Some(time) => format!("due at {}\n", time.0),
                None => "nothing is due\n".to_owned(),
            },
            "ready" => {
                let (uid, partition) = self.place_of(rest[0]);
                match self.machine.ready(uid, partition) {
                    Ok(jobs) => format!("{jobs} ready\n"),
                    Err(why) => format!("refused: {why:?}\n"),
                }
            }
            "sessions" => {
                let sessions = self.machine.sessions();
                if sessions.is_empty() {
                    return Some("no sessions\n".to_owned());
                }
                sessions.iter().map(show_session).collect()
            }
            _ => return None,
        })
    }

    fn op(&mut self, verb: &str, rest: &[&str]) -> Op {
        let session = |text: &str| SessionId(number(text));
        match verb {
            "wall" => Op::SetWallOffset {
                offset_ms: number(rest[0]),
            },
            "create" | "create-new" => {
                let groups = rest.iter().find_map(|word| word.strip_prefix("groups="));
                let fields = rest[1..].iter().filter(|word| !word.starts_with("groups="));
                Op::CreateQueue {
                    name: rest[0].to_owned(),
                    settings: settings(&fields.copied().collect::<Vec<&str>>()),
                    must_be_new: verb == "create-new",
                    groups: groups.map_or(0, number),
                }
            }
            "drain" => Op::DrainQueue {
                queue: self.uid_of(rest[0]),
            },
            "sweep" => {
                let (queue, partition) = self.place_of(rest[0]);
                let mut fields = Fields::of(&rest[2..]);
                let op = Op::SweepDead {
                    queue,
                    partition,
                    action: match rest[1] {
                        "requeue" => SweepAction::Requeue,
                        "delete" => SweepAction::Delete,
                        other => panic!("unknown action {other}"),
                    },
                    from_seq: fields.number("from").unwrap_or(0),
                    limit: fields.number("limit").unwrap_or(1024),
                    filter: filter(&mut fields),
                };
                fields.end();
                op
            }
            "told" => self.told(rest),
            "done" => {
                let mut fields = Fields::of(rest);
                Op::PartitionsChanged {
                    group: GroupId(fields.number("group").expect("group=n")),
                    home_index: LogIndex(fields.number("index").expect("index=n")),
                }
            }
            "alter" => {
                let version = rest.get(1).and_then(|word| word.strip_prefix("v="));
                Op::AlterQueue {
                    queue: self.uid_of(rest[0]),
                    expected_version: version.map_or(0, number),
                    settings: settings(&rest[if version.is_some() { 2 } else { 1 }..]),
                }
            }
            "delete" => Op::DeleteQueue {
                queue: self.uid_of(rest[0]),
            },
            "pause" => Op::PauseQueue {
                queue: self.uid_of(rest[0]),
            },
            "resume" => Op::ResumeQueue {
                queue: self.uid_of(rest[0]),
            },
            "purge" => Op::Purge {
                queue: self.place_of(rest[0]).0,
                partition: self.place_of(rest[0]).1,
                states: PurgeStates {
                    pending: rest[1].contains("pending"),
                    delayed: rest[1].contains("delayed"),
                    dead: rest[1].contains("dead"),
                },
            },
            "enqueue" => Op::Enqueue {
                queue: self.place_of(rest[0]).0,
                partition: self.place_of(rest[0]).1,
                items: rest[1..].split(|word| *word == ";").map(new_job).collect(),
            },
            "lease" => {
                let mut fields = Fields::of(&rest[1..]);
                let op = Op::Lease {
                    queue: self.place_of(rest[0]).0,
                    partition: self.place_of(rest[0]).1,
                    max: fields.number("max").unwrap_or(1),
                    lease_ms: fields.number("ms").unwrap_or(0),
                    epoch: fields.number("epoch").unwrap_or(1),
                };
                fields.end();
                op
            }
            "extend" => Op::Extend {
                items: vec![(self.token(rest[0]), number(rest[1]))],
            },
            "ack" => {
                let item = |text: &&str| AckItem {
                    token: self.token(text),
                    result: None,
                };
                Op::Ack {
                    items: rest.iter().map(item).collect(),
                }
            }
            "ack-result" => Op::Ack {
                items: vec![AckItem {
                    token: self.token(rest[0]),
                    result: Some(bytes(rest[1])),
                }],
            },
            "nack" => {
                let mut fields = Fields::of(&rest[1..]);
                let item = NackItem {
                    token: self.token(rest[0]),
                    delay_ms: fields.number("delay"),
                    reason: fields.text("why").map(bytes).unwrap_or_default(),
                };
                fields.end();
                Op::Nack { items: vec![item] }
            }
            "release" => Op::Release {
                items: rest.iter().map(|t| self.token(t)).collect(),
            },
            "bury" => {
                let mut fields = Fields::of(&rest[1..]);
                let reason = fields.text("why").map(bytes).unwrap_or_default();
                fields.end();
                Op::Bury {
                    items: vec![(self.token(rest[0]), reason)],
                }
            }
            "cancel" => Op::Cancel {
                items: rest.iter().map(|t| self.job(t)).collect(),
            },
            "requeue" => Op::RequeueDead {
                items: rest.iter().map(|t| self.job(t)).collect(),
            },
            "delete-dead" => Op::DeleteDead {
                items: rest.iter().map(|t| self.job(t)).collect(),
            },
            "advance" => Op::Advance {
                limit: rest.first().map_or(1024, |text| number(text)),
            },
            "open" => Op::OpenSession {
                worker_timeout_ms: rest.first().map_or(0, |text| number(text)),
            },
            "close" => Op::CloseSession {
                session: session(rest[0]),
            },
            "attach" => Op::Attach {
                session: session(rest[0]),
            },
            "end" => Op::EndLeases {
                session: session(rest[0]),
                epoch: Fields::of(&rest[1..]).number("epoch").expect("epoch=n"),
            },
            "drop" => {
                let mut fields = Fields::of(&rest[1..]);
                Op::DropSession {
                    session: session(rest[0]),
                    epoch: fields.number("epoch").expect("epoch=n"),
                    last_seq: fields.number("last").expect("last=n"),
                }
            }
            _ => panic!("unknown command {verb}"),
        }
    }

    /// What a home group tells of a queue: its partitions, and their settings or `gone`.
    fn told(&self, rest: &[&str]) -> Op {
        let queue = self.uid_of(rest[0]);
        let index = rest[1].strip_prefix("index=").expect("index=n");
        let partitions = rest[2].split(',').map(|text| Partition(number(text)));
        let config = rest[3].strip_prefix("version=").map(|version| {
            let modes = rest[4..].iter().filter(|word| !word.contains('='));
            let modes: Vec<&&str> = modes.collect();
            let fields: Vec<&str> = rest[4..]
                .iter()
                .copied()
                .filter(|w| w.contains('='))
                .collect();
            PartitionConfig {
                version: number(version),
                paused: modes.contains(&&"paused"),
                draining: modes.contains(&&"draining"),
                settings: settings(&fields),
            }
        });
        assert!(config.is_some() || rest[3] == "gone", "{rest:?}");
        Op::ChangePartitions(Box::new(PartitionChange {
            home: queue.home(),
            home_index: LogIndex(number(index)),
            queue,
            partitions: partitions.collect(),
            config,
        }))
    }

    fn scan(&self, rest: &[&str]) -> String {
        let (queue, partition) = self.place_of(rest[0]);
        let mut fields = Fields::of(&rest[2..]);
        let cursor = fields.text("at").map(|text| {
            let (priority, seq) = text.split_once(':').expect("priority:sequence");
            JobCursor {
                priority: number(priority),
                seq: number(seq),
            }
        });
        let scan = JobScan {
            queue,
            partition,
            state: match rest[1] {
                "pending" => JobState::Pending,
                "delayed" => JobState::Delayed,
                "in-flight" => JobState::InFlight,
                "dead" => JobState::Dead,
                other => panic!("unknown state {other}"),
            },
            cursor,
            limit: fields.number("limit").unwrap_or(10),
            filter: filter(&mut fields),
            bodies: true,
        };
        fields.end();
        let page = match self.machine.scan(&scan) {
            Ok(page) => page,
            Err(why) => return format!("refused: {why:?}\n"),
        };
        let mut out: String = page.jobs.into_iter().map(|job| show_job(Ok(job))).collect();
        write!(out, "{} of {} fit", page.matched, page.scanned).unwrap();
        match page.next {
            Some(next) => writeln!(out, ", go on at {}:{}", next.priority, next.seq).unwrap(),
            None => writeln!(out, ", all were looked at").unwrap(),
        }
        out
    }

    fn show(&self, name: &str) -> String {
        let mut out = String::new();
        let (uid, partition) = self.place_of(name);
        let queues = self.machine.queues();
        match queues.into_iter().find(|(info, _)| info.uid == uid) {
            Some((info, _)) => {
                let paused = if info.paused { " paused" } else { "" };
                let draining = if info.draining { " draining" } else { "" };
                writeln!(
                    out,
                    "{} uid {} version {}{paused}{draining}",
                    info.name, info.uid, info.version
                )
                .unwrap();
            }
            None => writeln!(out, "{uid} partition {partition}").unwrap(),
        }
        let stats = match self.machine.partition_stats(uid, partition) {
            Ok(stats) => stats,
            Err(why) => return format!("refused: {why:?}\n"),
        };
        writeln!(
            out,
            "  pending {} delayed {} in-flight {} dead {} bytes {} keys {}",
            stats.pending, stats.delayed, stats.in_flight, stats.dead, stats.bytes, stats.keys
        )
        .unwrap();
        if stats.retained != 0 {
            writeln!(out, "  retained {}", stats.retained).unwrap();
        }
        writeln!(
            out,
            "  enqueued {} leased {} completed {} nacked {} expired {} died {} cancelled {}",
            stats.enqueued_total,
            stats.leased_total,
            stats.completed_total,
            stats.nacked_total,
            stats.expired_total,
            stats.dead_total,
            stats.cancelled_total
        )
        .unwrap();
        for state in [
            JobState::Pending,
            JobState::Delayed,
            JobState::InFlight,
            JobState::Dead,
        ] {
            let jobs = self
                .machine
                .peek(uid, partition, state, 100)
                .expect("it is there");
            for job in jobs {
                write!(out, "  {}", show_job(Ok(job))).unwrap();
            }
        }
        out
    }

    /// The state survives its pages.
    fn finish(&self) {
        let mut frozen = self.machine.freeze();
        let mut bodies = frozen.bodies().next_bodies(usize::MAX);
        let pages = frozen.next_pages(usize::MAX);
        let mut loaded = JobQueue::absent(GROUP);
        let mut body = |job| {
            let at = bodies.iter().position(|body| body.job == job)?;
            let bytes = encode_body(&bodies.remove(at).body.body());
            Some((
                bytes,
                BodyLocation {
                    file: 0,
                    offset: 0,
                    len: 0,
                },
            ))
        };
        loaded.load(&pages, &mut body).expect("its own pages load");
        check(&loaded).expect("all invariants hold");
        assert_eq!(loaded.state_hash(), self.machine.state_hash());
    }
}

fn filter(fields: &mut Fields<'_>) -> JobFilter {
    JobFilter {
        reason_contains: fields.text("why").map(bytes).unwrap_or_default(),
        priority: fields.number("prio"),
        enqueued_from_ms: fields.number("since").unwrap_or(0),
        enqueued_before_ms: fields.number("before").unwrap_or(0),
        attempts_min: fields.number("attempts").unwrap_or(0),
    }
}

fn show_finished(job: &FinishedJob) -> String {
    let mut out = format!(
        "job {} {:?} attempts {} enqueued {} ended {} place {}",
        job.id.seq(),
        job.end,
        job.attempts,
        job.enqueued_at.0,
        job.finished_at.0,
        job.place
    );
    if let Some(result) = &job.result {
        match result.len() {
            0..40 => write!(out, " result {}", String::from_utf8_lossy(result)).unwrap(),
            len => write!(out, " result of {len} bytes").unwrap(),
        }
    }
    out + "\n"
}

fn show_change((group, change): (GroupId, &PartitionChange)) -> String {
    let numbers: Vec<String> = change.partitions.iter().map(Partition::to_string).collect();
    let mut out = format!(
        "group {group}: entry {} has queue {} partitions {}",
        change.home_index,
        change.queue,
        numbers.join(",")
    );
    match &change.config {
        Some(config) => {
            let paused = if config.paused { " paused" } else { "" };
            let draining = if config.draining { " draining" } else { "" };
            write!(out, " at version {}{paused}{draining}", config.version).unwrap();
        }
        None => out.push_str(" removed"),
    }
    out + "\n"
}

fn session_call(text: &str, op: &Op) -> SessionCall {
    let parts: Vec<&str> = text.split('/').collect();
    SessionCall {
        id: SessionId(number(parts[0])),
        seq: number(parts[1]),
        lowest: number(parts[2]),
        window: match op {
            Op::Lease { .. } => Window::Polls,
            _ => Window::Commands,
        },
    }
}

fn show_session(session: &SessionView) -> String {
    let ended = if session.ended { " ended" } else { "" };
    format!(
        "session {} epoch {}{ended} holds {} timeout {} last {}\n",
        session.id, session.epoch, session.leases, session.worker_timeout_ms, session.last_seq
    )
}

fn show_job(job: Result<JobView, Rejection>) -> String {
    let job = match job {
        Ok(job) => job,
        Err(why) => return format!("refused: {why:?}\n"),
    };
    let mut out = format!("job {} {:?}", job.id.seq(), job.state);
    write!(
        out,
        " prio {} attempts {}/{}",
        job.priority, job.attempts, job.max_attempts
    )
    .unwrap();
    if let Some(at) = job.run_at {
        write!(out, " run-at {}", at.0).unwrap();
    }
    if let Some(ms) = job.remaining_ms {
        write!(out, " left {ms}").unwrap();
    }
    if let Some(at) = job.expires_at {
        write!(out, " expires {}", at.0).unwrap();
    }
    if let Some(token) = job.token {
        write!(out, " token {}@{}", token.job.seq(), token.lease_gen).unwrap();
    }
    if let Some(owner) = job.owner {
        write!(out, " owner {owner}").unwrap();
    }
    if !job.last_failure.is_empty() {
        let reason = String::from_utf8_lossy(&job.last_failure);
        match reason.len() {
            0..40 => write!(out, " failed: {reason}").unwrap(),
            len => write!(out, " failed: {len} bytes").unwrap(),
        }
    }
    if !job.body.payload.is_empty() {
        write!(
            out,
            " payload {}",
            String::from_utf8_lossy(&job.body.payload)
        )
        .unwrap();
    }
    out + "\n"
}

fn show_groups(groups: &[GroupId]) -> String {
    if groups == [GROUP] {
        return String::new();
    }
    let groups: Vec<String> = groups.iter().map(GroupId::to_string).collect();
    format!(" in groups {}", groups.join(","))
}

fn show_outcome(outcome: &Outcome) -> String {
    let list = |items: Vec<String>| items.join("\n") + "\n";
    match outcome {
        Outcome::Done => "done\n".to_owned(),
        Outcome::Rejected(why) => format!("refused: {why:?}\n"),
        Outcome::SessionOpened { session, epoch } => format!("session {session} epoch {epoch}\n"),
        Outcome::Attached { epoch, tokens } => {
            let held = tokens
                .iter()
                .map(|t| format!(" {}@{}", t.job.seq(), t.lease_gen));
            format!("epoch {epoch}, holds:{}\n", held.collect::<String>())
        }
        Outcome::Queue(info) => format!(
            "queue {} uid {} version {}{}{}{}{}\n",
            info.name,
            info.uid,
            info.version,
            show_groups(&info.groups),
            if info.paused { " paused" } else { "" },
            if info.draining { " draining" } else { "" },
            if info.created { " created" } else { "" }
        ),
        Outcome::Purged { jobs } => format!("purged {jobs}\n"),
        Outcome::Enqueued(items) => list(
            items
                .iter()
                .map(|item| match item {
                    Enqueued::New(job) => format!("new {}", job.seq()),
                    Enqueued::Existing(job) => format!("existing {}", job.seq()),
                    Enqueued::Rejected(why) => format!("refused: {why:?}"),
                })
                .collect(),
        ),
        Outcome::Leased(grants) if grants.is_empty() => "nothing\n".to_owned(),
        Outcome::Leased(grants) => list(
            grants
                .iter()
                .map(|grant| {
                    let token = grant.token;
                    let (seq, generation) = (token.job.seq(), token.lease_gen);
                    let (attempt, lease_ms) = (grant.attempt, grant.lease_ms);
                    format!("{seq}@{generation} attempt {attempt} for {lease_ms}")
                })
                .collect(),
        ),
        Outcome::Items(items) => list(
            items
                .iter()
                .map(|item| match item {
                    ItemOutcome::Done => "done".to_owned(),
                    ItemOutcome::Rejected(why) => format!("refused: {why:?}"),
                })
                .collect(),
        ),
        Outcome::Swept {
            matched,
            scanned,
            next_seq,
        } => match next_seq {
            Some(seq) => format!("swept {matched} of {scanned}, go on at {seq}\n"),
            None => format!("swept {matched} of {scanned}, all were looked at\n"),
        },
        Outcome::Advanced { handled } => format!("handled {handled}\n"),
    }
}

/// The script with what it prints now.
fn rerun(script: &str) -> String {
    let mut runner = Runner::new();
    let mut out = String::new();
    let mut printed = String::new();
    let mut in_output = false;
    for line in script.lines() {
        if in_output {
            if line.is_empty() {
                in_output = false;
                out.push('\n');
            }
            continue;
        }
        out.push_str(line);
        out.push('\n');
        if line == "----" {
            out.push_str(&std::mem::take(&mut printed));
            in_output = true;
        } else if !line.is_empty() && !line.starts_with('#') {
            printed.push_str(&runner.line(line));
        }
    }
    assert!(
        printed.is_empty(),
        "the last block has no ----, it prints {printed:?}"
    );
    runner.finish();
    out
}

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/queue");
    let entries = std::fs::read_dir(folder).expect("the folder of scripts is there");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.sort();
    paths
}

#[test]
fn every_script_prints_what_it_says() {
    let update = std::env::var_os("UPDATE").is_some();
    let scripts = scripts();
    assert!(scripts.len() >= 30, "only {} scripts", scripts.len());
    let mut wrong = Vec::new();
    for path in scripts {
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        assert!(name.ends_with(".txt"), "{name} is not a script");
        let script = std::fs::read_to_string(&path).expect("readable");
        let now = rerun(&script);
        if update {
            std::fs::write(&path, &now).expect("writable");
        } else if now != script {
            wrong.push(format!("{name} prints now:\n{now}"));
        }
    }
    assert!(wrong.is_empty(), "UPDATE=1 rewrites:\n{}", wrong.join("\n"));
}
