//! Requests of clients: routed, admitted, then proposed, parked or answered.
//!
//! Everything that can be refused without an entry in the log is refused here: the wrong shard, a
//! group that does not serve, a full disk, a payload or a window out of bounds. What the job
//! machine refuses is an outcome like any other.

use super::effect::Effect;
use super::engine::{Conn, ShardEngine};
use super::group::{Phase, Waiter};
use super::input::Origin;
use super::liveness::Heard;
use super::placement::{home_group, shard_of};
use super::polls::Poll;
use crate::base::code::Code;
use crate::base::entry::EntryKind;
use crate::base::ids::{GroupId, QueueUid, SessionId};
use crate::base::limits::{
    CLUSTER_GROUP, POLL_WAIT_MS_MAX, POLLS_WAITING_MAX, SESSION_POLL_WINDOW, SESSION_WINDOW,
};
use crate::queue::command::{
    Command, NewJob, Op, Outcome, QueueSettings, Rejection, SessionCall, Window,
};
use crate::wire::command::{append_command, encode_command};
use crate::wire::message::{
    CommitStamp, ErrorReply, GroupStatus, Reply, ReplyBody, Request, RequestBody, ShardStatus,
    WaitingNode,
};
use bytes::Bytes;
use std::time::Duration;

/// A proposed command of fewer bytes is kept until it is applied.
const PROPOSED_BYTES_KEPT: usize = 64 << 10;

/// What everybody is told whom a stop sends away.
pub(super) const STOPPING: &str = "the node is stopping and takes nothing new";

/// A request refused as a whole. Nothing of it happened.
pub(super) struct Refusal {
    code: Code,
    message: String,
    /// Where its leader listens for clients, if another node is known to lead.
    leader: Option<String>,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            leader: None,
        }
    }

    /// Another node leads; where its clients connect, if that is known.
    pub(super) fn not_leader(message: String, leader: Option<String>) -> Self {
        Self {
            code: Code::NotLeader,
            message,
            leader,
        }
    }

    pub(super) fn stopping() -> Self {
        Self::new(Code::Stopping, STOPPING)
    }
}

impl ShardEngine {
    /// Takes a request.
    pub(super) fn on_request(&mut self, from: Origin, request: Request, payload: Option<Bytes>) {
        self.counters.requests_total += 1;
        // Made here alone, and removed when the connection closes: what comes later finds none. An
        // engine asks without a connection.
        if !from.is_engine() {
            self.conns.entry(from).or_default();
        }
        let id = request.id;
        let Some(group) = self.target(&request.body) else {
            return self.on_shard_request(from, request);
        };
        if u32::from(group.0) >= self.config.groups {
            let groups = self.config.groups;
            let message = format!("there is no group {group}: this cluster has {groups}");
            return self.refuse(from, id, &Refusal::new(Code::NoSuchGroup, message));
        }
        let shard = shard_of(group, self.config.shards);
        if shard != self.config.shard {
            return self.forward(from, shard, request);
        }
        if let Err(refusal) = self.on_group_request(from, group, request, payload) {
            self.refuse(from, id, &refusal);
        }
    }

    /// The group that a request is for; `None` if it is for the shard.
    fn target(&self, body: &RequestBody) -> Option<GroupId> {
        match body {
            RequestBody::Command { group, .. }
            | RequestBody::ScanJobs { group, .. }
            | RequestBody::GetJobByKey { group, .. }
            | RequestBody::Peek { group, .. }
            | RequestBody::Watch { group, .. }
            | RequestBody::ScanFinished { group, .. }
            | RequestBody::GetPartition { group, .. }
            | RequestBody::ListWorkers { group }
            | RequestBody::ListQueues { group } => Some(*group),
            RequestBody::GetJob { job } | RequestBody::WaitJob { job, .. } => Some(job.group()),
            RequestBody::GetQueue { name, .. } => Some(home_group(name, self.config.groups)),
            RequestBody::ChangeMembers(_) => Some(CLUSTER_GROUP),
            RequestBody::Heartbeat { .. }
            | RequestBody::Drain { .. }
            | RequestBody::Status
            | RequestBody::Bye => None,
        }
    }

    fn forward(&mut self, from: Origin, shard: crate::base::ids::ShardId, request: Request) {
        if from.shard != self.config.shard {
            let message = "a forwarded request reached the wrong shard";
            return self.refuse(from, request.id, &Refusal::new(Code::NotLeader, message));
        }
        self.counters.requests_forwarded_total += 1;
        self.conn(from).forwarded.insert(shard);
        self.effects.push(Effect::Forward {
            to: shard,
            from,
            request,
        });
    }

    fn on_shard_request(&mut self, from: Origin, request: Request) {
        let body = match request.body {
            RequestBody::Heartbeat { sessions, worker } => {
                if worker.is_some() {
                    self.conn(from).worker = worker;
                }
                let unknown = |at: &(GroupId, SessionId)| !self.on_heartbeat(from, at.0, at.1);
                ReplyBody::HeartbeatTaken {
                    unknown: sessions.into_iter().filter(unknown).collect(),
                }
            }
            RequestBody::Drain { on } => {
                self.drain_leads(on);
                ReplyBody::Outcome(Outcome::Done)
            }
            RequestBody::Bye => {
                self.on_bye(from);
                ReplyBody::Outcome(Outcome::Done)
            }
            _ => ReplyBody::Status(self.status()),
        };
        self.reply(from, request.id, None, body);
    }

    fn on_group_request(
        &mut self,
        from: Origin,
        group: GroupId,
        request: Request,
        payload: Option<Bytes>,
    ) -> Result<(), Refusal> {
        let slot = self.slot(group);
        if from.is_engine() {
            self.on_engine_request(from, slot, request);
            return Ok(());
        }
        if let Phase::Halted(why) = &self.groups[slot].phase {
            return Err(Refusal::new(Code::GroupHalted, why.clone()));
        }
        if !self.groups[slot].serves() {
            return Err(self.not_leader(slot));
        }
        match request.body {
            RequestBody::Command {
                command, wait_ms, ..
            } => self.on_command(from, slot, request.id, (command, payload), wait_ms),
            RequestBody::ChangeMembers(change) => {
                self.on_change_members(from, slot, request.id, change)
            }
            read => self.ask_read(slot, (from, request.id), read),
        }
    }

    pub(super) fn on_get_queue(
        &mut self,
        from: Origin,
        slot: usize,
        request: u64,
        name: &str,
        create: bool,
    ) -> Result<(), Refusal> {
        if let Some(info) = self.groups[slot].queue.queue_by_name(name) {
            self.tell_changed(slot, info.uid, (from, request), None);
            return Ok(());
        }
        if !create || !self.config.auto_create {
            let message = format!("there is no queue named {name}");
            return Err(Refusal::new(Code::NoSuchQueue, message));
        }
        let settings = self.config.queue_defaults;
        let op = Op::CreateQueue {
            name: name.to_owned(),
            settings,
            must_be_new: false,
            groups: self.groups_for(&settings),
        };
        if self.stopping() {
            return Err(Refusal::stopping());
        }
        self.admit(&op)?;
        let waiter = Waiter::Queue { to: from, request };
        self.propose_command(slot, Command { session: None, op }, Some(waiter))
    }

    /// The number of groups over which the partitions of a new queue are placed, as the command
    /// carries it: 0 where its only partition lives at home.
    fn groups_for(&self, settings: &QueueSettings) -> u32 {
        match settings.partitions {
            0 | 1 => 0,
            _ => self.config.groups,
        }
    }

    /// Answers with a queue and the counters of its partition 0.
    pub(super) fn reply_queue(&mut self, slot: usize, to: Origin, request: u64, uid: QueueUid) {
        let stamp = self.stamp(slot);
        let body = match self.groups[slot].queue.queue(uid) {
            Some(queue) => ReplyBody::Queues(vec![queue]),
            None => ReplyBody::Outcome(Outcome::Rejected(Rejection::QueueChanged)),
        };
        self.reply(to, request, Some(stamp), body);
    }

    fn on_command(
        &mut self,
        from: Origin,
        slot: usize,
        request: u64,
        (mut command, payload): (Command, Option<Bytes>),
        wait_ms: u32,
    ) -> Result<(), Refusal> {
        if let Op::CreateQueue {
            settings, groups, ..
        } = &mut command.op
        {
            *groups = self.groups_for(settings);
        }
        if self.stopping() {
            return Err(Refusal::stopping());
        }
        // Whatever becomes of the command, its session is alive.
        if let Some(call) = &command.session {
            self.hear(from, slot, call.id);
        }
        self.admit(&command.op)?;
        if command.op.since() > self.groups[slot].queue.version() {
            let rejected = Outcome::Rejected(Rejection::Unsupported);
            self.reply(from, request, None, ReplyBody::Outcome(rejected));
            return Ok(());
        }
        if let Some(call) = command.session
            && call.seq >= call.lowest.saturating_add(window(call))
        {
            let rejected = Outcome::Rejected(Rejection::WindowExceeded);
            self.reply(from, request, None, ReplyBody::Outcome(rejected));
            return Ok(());
        }
        if let Op::Lease { .. } = command.op {
            return self.on_lease(from, slot, request, command, wait_ms);
        }
        let waiter = Waiter::Client { to: from, request };
        self.propose_written(slot, command, payload, Some(waiter))
    }

    /// Whether the disk and the bounds of this node allow the command.
    fn admit(&mut self, op: &Op) -> Result<(), Refusal> {
        if let Op::Enqueue { items, .. } = op {
            let max = self.config.payload_bytes_max;
            let too_large = |job: &&NewJob| job.payload.len() > max;
            if let Some(job) = items.iter().find(too_large) {
                let bytes = job.payload.len();
                let message = format!("a payload of {bytes} bytes is over the limit of {max}");
                return Err(Refusal::new(Code::PayloadTooLarge, message));
            }
        }
        if self.memory_full && matches!(op, Op::Enqueue { .. }) {
            self.counters.memory_full_refusals_total += 1;
            let message = "jobs and keys take all the memory that they may (limits.jobs_memory_max); \
                           enqueues go on by themselves when some are gone";
            return Err(Refusal::new(Code::MemoryFull, message));
        }
        if matches!(op, Op::Enqueue { .. }) && self.log_is_full() {
            self.counters.log_full_refusals_total += 1;
            let message = "the log grows faster than checkpoints are written, and a start must find \
                           memory for it; enqueues go on when the one under way is done";
            return Err(Refusal::new(Code::Busy, message));
        }
        let grows = matches!(op, Op::Enqueue { .. } | Op::CreateQueue { .. });
        let keeps = matches!(
            op,
            Op::Lease { .. }
                | Op::Extend { .. }
                | Op::Nack { .. }
                | Op::Release { .. }
                | Op::Bury { .. }
                | Op::RequeueDead { .. }
                | Op::SweepDead { .. }
        );
        if (self.disk_full && grows) || (self.disk_exhausted && (grows || keeps)) {
            self.counters.disk_full_refusals_total += 1;
            let until = match self.peers.members().is_empty() {
                true => "when there is room",
                false => "when there is room, or another node leads whose disk has some",
            };
            let node = self.config.node;
            let message =
                format!("the disk of node {node} is full; enqueues go on by themselves {until}");
            return Err(Refusal::new(Code::DiskFull, message));
        }
        Ok(())
    }

    /// A lease is proposed if a job is ready, or if the machine has something to say about the
    /// session; else it waits, or is answered with nothing, without an entry in the log.
    fn on_lease(
        &mut self,
        from: Origin,
        slot: usize,
        request: u64,
        command: Command,
        wait_ms: u32,
    ) -> Result<(), Refusal> {
        let Op::Lease {
            queue,
            partition,
            max,
            epoch,
            ..
        } = command.op
        else {
            unreachable!("only leases come here");
        };
        let machine = &self.groups[slot].queue;
        let session_in_order = command.session.is_none_or(|call| {
            let live = |view: crate::queue::view::SessionView| !view.ended && view.epoch == epoch;
            machine.session(call.id).is_some_and(live) && !machine.has_outcome(&call)
        });
        let ready = machine.ready(queue, partition);
        let wait_ms = u64::from(wait_ms).min(POLL_WAIT_MS_MAX);
        let poll = Poll {
            number: self.next_poll,
            to: from,
            request,
            command,
            place: (queue, partition),
            max,
            deadline: self.now.mono.plus(Duration::from_millis(wait_ms)),
        };
        self.next_poll += 1;
        if ready != Ok(0) || !session_in_order || max == 0 {
            return self.propose_poll(slot, poll);
        }
        if wait_ms == 0 {
            self.reply_no_jobs(from, request);
            return Ok(());
        }
        if self.counters.polls_waiting >= POLLS_WAITING_MAX as u64 {
            return Err(Refusal::new(
                Code::Busy,
                "too many leases are waiting on this shard",
            ));
        }
        self.park(slot, poll);
        Ok(())
    }

    /// Lets a poll wait, unless its client is gone.
    pub(super) fn park(&mut self, slot: usize, poll: Poll) {
        let Some(conn) = self.conns.get_mut(&poll.to) else {
            return;
        };
        conn.polls.insert((slot, poll.place, poll.number));
        self.counters.polls_waiting += 1;
        self.groups[slot].polls.park(poll);
        self.mark(slot);
    }

    /// A poll does not wait any more.
    pub(super) fn unpark(&mut self, slot: usize, poll: &Poll) {
        self.counters.polls_waiting -= 1;
        if let Some(conn) = self.conns.get_mut(&poll.to) {
            conn.polls.remove(&(slot, poll.place, poll.number));
        }
    }

    pub(super) fn propose_poll(&mut self, slot: usize, poll: Poll) -> Result<(), Refusal> {
        let command = poll.command.clone();
        let (place, max) = (poll.place, poll.max);
        let poll = Box::new(poll);
        self.propose_command(slot, command, Some(Waiter::Lease { poll, place }))?;
        self.groups[slot].polls.claim(place, max);
        Ok(())
    }

    /// Proposes a command; the waiter is told when it is applied.
    pub(super) fn propose_command(
        &mut self,
        slot: usize,
        command: Command,
        waiter: Option<Waiter>,
    ) -> Result<(), Refusal> {
        self.propose_written(slot, command, None, waiter)
    }

    /// The same of a command that may have its bytes already.
    fn propose_written(
        &mut self,
        slot: usize,
        command: Command,
        bytes: Option<Bytes>,
        waiter: Option<Waiter>,
    ) -> Result<(), Refusal> {
        self.correct_wall(slot);
        match bytes {
            // Copied: an entry may stay longer than what came with it should.
            Some(bytes) => {
                debug_assert_eq!(bytes, encode_command(&command));
                self.payloads.extend_from_slice(&bytes);
            }
            None => append_command(&command, &mut self.payloads),
        }
        let payload = self.payloads.split().freeze();
        // A larger one shares the memory of its entry, once it is decoded from there.
        let is_kept = payload.len() < PROPOSED_BYTES_KEPT;
        let index = self.propose(slot, EntryKind::Data, payload, waiter)?;
        if is_kept {
            let group = &mut self.groups[slot];
            let term = group.raft.term();
            group.proposed.keep(index, term, command);
        }
        Ok(())
    }

    /// A session was heard on a connection, by a request of it; false if it is not known here.
    fn hear(&mut self, from: Origin, slot: usize, session: SessionId) -> bool {
        match self.groups[slot]
            .liveness
            .heard(session, from, self.now.mono)
        {
            Heard::Unknown => false,
            Heard::Same => true,
            Heard::Moved { before } => {
                if let Some(conn) = before.and_then(|before| self.conns.get_mut(&before)) {
                    conn.sessions.remove(&(slot, session));
                }
                self.conn(from).sessions.insert((slot, session));
                true
            }
        }
    }

    /// Binds a session that was just opened. If its client is gone already, it is as good as closed.
    pub(super) fn watch_session(&mut self, slot: usize, session: SessionId, conn: Option<Origin>) {
        let now = self.now.mono;
        let group = &mut self.groups[slot];
        let Some(view) = group.queue.session(session) else {
            return;
        };
        let liveness = &mut group.liveness;
        liveness.watch(session, view.worker_timeout_ms, conn, now);
        match conn.map(|origin| (origin, self.conns.get_mut(&origin))) {
            Some((_, Some(conn))) => {
                conn.sessions.insert((slot, session));
            }
            Some((origin, None)) => liveness.closed(session, origin, now),
            None => {}
        }
    }

    /// What the connection of a request holds here.
    pub(super) fn conn(&mut self, from: Origin) -> &mut Conn {
        self.conns
            .get_mut(&from)
            .expect("its request has just come")
    }

    fn on_heartbeat(&mut self, from: Origin, group: GroupId, session: SessionId) -> bool {
        let here = u32::from(group.0) < self.config.groups
            && shard_of(group, self.config.shards) == self.config.shard;
        here && self.hear(from, self.slot(group), session)
    }

    /// The client leaves on purpose: its sessions are closed, without grace.
    fn on_bye(&mut self, from: Origin) {
        let Some(conn) = self.conns.get_mut(&from) else {
            return;
        };
        for (slot, session) in std::mem::take(&mut conn.sessions) {
            let command = Command {
                session: None,
                op: Op::CloseSession { session },
            };
            // If the group is too busy to take it, the silence of the session ends its leases.
            if self.groups[slot].serves() {
                let _ = self.propose_command(slot, command, None);
            }
        }
        let conn = self.conns.get(&from).expect("it was just there");
        let shards: Vec<_> = conn.forwarded.iter().copied().collect();
        for to in shards {
            let request = Request {
                id: 0,
                body: RequestBody::Bye,
            };
            self.effects.push(Effect::Forward { to, from, request });
        }
    }

    /// A connection is gone: its polls leave the line, its sessions have a short grace.
    pub(super) fn on_client_closed(&mut self, from: Origin) {
        let Some(conn) = self.conns.remove(&from) else {
            return;
        };
        for (slot, place, number) in conn.polls {
            if self.groups[slot].polls.remove(place, number).is_some() {
                self.counters.polls_waiting -= 1;
                self.mark(slot);
            }
        }
        for (slot, number) in conn.waits {
            self.forget_wait(slot, number);
        }
        for (slot, session) in conn.sessions {
            self.groups[slot]
                .liveness
                .closed(session, from, self.now.mono);
            self.mark(slot);
        }
        for to in conn.forwarded {
            self.effects.push(Effect::ForwardClosed { to, from });
        }
    }

    /// A lease found nothing. It has no place in the history of the group, since nobody was asked whether this
    /// member leads still.
    pub(super) fn reply_no_jobs(&mut self, to: Origin, request: u64) {
        self.reply(to, request, None, ReplyBody::Leased(Vec::new()));
    }

    pub(super) fn stamp(&self, slot: usize) -> CommitStamp {
        let group = &self.groups[slot];
        CommitStamp {
            group: group.id,
            term: group.raft.term(),
            index: group.raft.log().applied(),
        }
    }

    pub(super) fn reply(
        &mut self,
        to: Origin,
        id: u64,
        stamp: Option<CommitStamp>,
        body: ReplyBody,
    ) {
        let reply = Reply { id, stamp, body };
        if to == Origin::engine(self.config.shard) {
            self.on_answered(&reply);
        } else if id != 0 {
            // Ids of clients start at 1; 0 is a bye that was passed on, which nobody waits for.
            self.effects.push(Effect::Reply { to, reply });
        }
    }

    pub(super) fn refuse(&mut self, to: Origin, id: u64, refusal: &Refusal) {
        self.counters.requests_refused_total += 1;
        let error = ErrorReply {
            code: refusal.code,
            message: refusal.message.clone(),
            leader: refusal.leader.clone(),
            maybe_applied: false,
        };
        self.reply(to, id, None, ReplyBody::Error(error));
    }

    fn status(&self) -> ShardStatus {
        let group_status = |group: &super::group::Group| GroupStatus {
            group: group.id,
            term: group.raft.term(),
            leader: group.serves(),
            commit: group.raft.log().committed(),
            applied: group.raft.log().applied(),
            base: group.bases[0].index,
            sessions: group.queue.session_count() as u64,
            halted: match &group.phase {
                Phase::Halted(why) | Phase::Lost(why) => why.clone(),
                Phase::Loading | Phase::Serving => String::new(),
            },
            machine_version: group.queue.version(),
            members_unsettled: *group.raft.members() != *self.cluster.members(),
        };
        let uptime = self.now.mono.since(self.started).as_millis();
        let waiting = self.cluster.waiting(self.now.mono);
        let waiting = waiting.map(|peer| WaitingNode {
            id: peer.voter,
            addresses: peer.client_addresses.clone(),
        });
        ShardStatus {
            shard: self.config.shard.0,
            shards: self.config.shards,
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            connections: self.conns.len() as u64,
            log_bytes_since_checkpoint: self.checkpoints.log_bytes(self.wal.end_lsn()),
            durable_lsn: self.wal.durable_lsn().0,
            disk_full: self.disk_full,
            groups: self.groups.iter().map(group_status).collect(),
            members: self.cluster.members().to_list(),
            waiting: waiting.collect(),
            draining: self.is_draining(),
            zone: self.config.zone.clone(),
        }
    }
}

fn window(call: SessionCall) -> u64 {
    match call.window {
        Window::Commands => SESSION_WINDOW,
        Window::Polls => SESSION_POLL_WINDOW,
    }
}
