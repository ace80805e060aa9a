//! Nodes of one shard each in one process: the real engines, the real codec between them, and disks that
//! lose what was not synced. Time goes on in steps; a test decides who is cut off or dies.

#![allow(dead_code, reason = "each test uses its part")]

use bytes::Bytes;
use rrq::base::code::Code;
use rrq::base::ids::{
    ClusterId, ConnId, DiskId, GroupId, JobId, LogIndex, NodeId, Partition, QueueUid, ShardId,
};
use rrq::base::limits::{BATCHES_IN_FLIGHT_MAX, BLOCK_BYTES};
use rrq::base::members::{ClusterMembers, Member};
use rrq::base::prng::Prng;
use rrq::base::units::{Lsn, Monotonic, Now, WallTime};
use rrq::queue::MACHINE_VERSION;
use rrq::raft::message::{Message, Voter};
use rrq::shard::config::ShardConfig;
use rrq::shard::counters::Counters;
use rrq::shard::effect::{CheckpointFile, Effect, GroupReader};
use rrq::shard::engine::ShardEngine;
use rrq::shard::input::{Input, Loss, Origin, Peer};
use rrq::shard::loading::Unread;
use rrq::shard::placement::home_group;
use rrq::sim::disk::SimDisk;
use rrq::sim::driver::{self, Begun, Out, Work, carried};
use rrq::wal::batch::{BEACON, BatchHeader};
use rrq::wal::codec::Records;
use rrq::wal::record::Record;
use rrq::wal::writer::LogIdentity;
use rrq::wire::message::{Reply, ReplyBody, Request, RequestBody};
use rrq::wire::peer::{Durable, Link};
use rrq::wire::{
    AckItem, Command, Enqueued, JobState, NewJob, Op, Outcome, QueueInfo, QueueSettings,
    SessionCall, Window,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
const STEP: Duration = Duration::from_millis(1);

pub(crate) fn voter(node: u32) -> Voter {
    Voter {
        node: NodeId(node),
        disk: DiskId([node as u8; 16]),
    }
}

/// The name of a queue whose home is this of so many groups.
pub(crate) fn queue_in(group: GroupId, groups: u32) -> String {
    let mut names = (0..).map(|nth| format!("queue-{nth}"));
    let found = names.find(|name| home_group(name, groups) == group);
    found.expect("names are many")
}

/// Asks for a job in a queue of a group.
pub(crate) fn enqueue_body(group: GroupId, queue: QueueUid, payload: Bytes) -> RequestBody {
    let job = NewJob {
        payload,
        ..NewJob::default()
    };
    let op = Op::Enqueue {
        queue,
        partition: Partition(0),
        items: vec![job],
    };
    RequestBody::Command {
        group,
        command: Command { session: None, op },
        wait_ms: 0,
    }
}

/// One node.
pub(crate) struct Node {
    pub(crate) me: Voter,
    founders: Vec<Voter>,
    /// The members of the cluster, as its superblock keeps them.
    pub(crate) members: ClusterMembers,
    groups: u32,
    start: u32,
    checkpoint_log_bytes: u64,
    /// What it reads of its log for a member that is behind.
    catch_up_bytes: u64,
    /// What it holds of its log in memory for such a member; as of its next start.
    pub(crate) tails_bytes: usize,
    /// The memory that jobs may take; as of its next start.
    pub(crate) jobs_held_bytes_max: u64,
    /// Within which time it looks at what is stored; as of its next start.
    pub(crate) scrub_period: Option<Duration>,
    segment_bytes: usize,
    pub(crate) machine_version_max: u16,
    pub(crate) engine: Option<ShardEngine>,
    pub(crate) disk: SimDisk,
    inbox: VecDeque<Input>,
    /// Log writes under way: how many turns they take yet, and which.
    writing: Vec<(u64, Work)>,
    /// Turns that a log write takes.
    pub(crate) write_turns: u64,
    /// Checkpoint files under way: how many turns they take yet, and what is done then.
    filing: Vec<(u64, Work)>,
    /// Turns that it takes to write or sync checkpoint files, beside the present one.
    pub(crate) file_turns: u64,
    /// Turns that it takes to read pages, beside the present one.
    pub(crate) page_turns: u64,
    /// The first page of each run file that it writes rots at once.
    pub(crate) spoils_runs: bool,
    /// So many rounds cannot be written from now on.
    pub(crate) rounds_fail: u64,
    /// A group that is told what was read of its state only when [`Node::load_it`] says so.
    pub(crate) loads_late: Option<GroupId>,
    /// What it will be told.
    loaded: VecDeque<Input>,
    replies: BTreeMap<u64, Reply>,
    /// What the operator was told of damage that nobody had needed.
    pub(crate) told: Vec<String>,
    /// All is durable, and it could end.
    pub(crate) has_stopped: bool,
    /// It knows that it belongs to the cluster no more.
    is_removed: bool,
    /// Its wall clock was set so much too far.
    pub(crate) wall_ahead_ms: u64,
    /// As of its next start.
    pub(crate) zone: String,
}

impl Node {
    fn identity(&self) -> LogIdentity {
        LogIdentity {
            cluster: CLUSTER,
            disk: self.me.disk,
            shard: ShardId(0),
            wal_set: 1,
        }
    }

    /// What it says of itself.
    fn hello(&self) -> Peer {
        Peer {
            zone: self.zone.clone(),
            voter: self.me,
            client_addresses: vec![format!("127.0.0.{}:7411", self.me.node)],
            machine_version_max: self.machine_version_max,
        }
    }

    /// A batch with an entry that was acknowledged rots, so many eighths into the newest segment with some.
    pub(crate) fn damage_log(&mut self, eighths: usize) {
        let (number, mut found) = self.newest_batches();
        found.retain(|place| self.holds_entry(number, *place));
        self.disk
            .rot(number, found[found.len() * eighths / 8] + 100);
    }

    /// The batch rots with which the log begins behind the head of its segment, and those that tell of it: it
    /// holds the bases of formation.
    pub(crate) fn damage_formation(&mut self) {
        let (number, found) = self.newest_batches();
        for place in &found[1..=1 + BATCHES_IN_FLIGHT_MAX] {
            self.disk.rot(number, place + 100);
        }
    }

    /// Every batch rots behind the head of the log.
    pub(crate) fn damage_all(&mut self) {
        for (number, found) in self.batches() {
            for place in found.into_iter().skip(1) {
                self.disk.rot(number, place + 100);
            }
        }
    }

    /// Where the batches begin of the newest segment that has some.
    fn newest_batches(&self) -> (u64, Vec<usize>) {
        let mut segments = self.batches().into_iter();
        let newest = segments.rfind(|(_, found)| found.len() > 3);
        newest.expect("a segment with batches")
    }

    fn holds_entry(&self, segment: u64, offset: usize) -> bool {
        let mut segments = self.disk.segments();
        let (_, bytes) = segments
            .find(|(number, _)| *number == segment)
            .expect("it is there");
        let records = BatchHeader::read(&bytes, offset).map(|(_, records)| Records::new(records));
        records.is_ok_and(|mut records| {
            records.any(|record| matches!(record, Ok(Record::Entry { .. })))
        })
    }

    /// Where the batches of each segment begin, without beacons.
    fn batches(&self) -> Vec<(u64, Vec<usize>)> {
        let batches = |(number, bytes): (u64, Bytes)| {
            let offsets = (0..bytes.len()).step_by(BLOCK_BYTES);
            let found = offsets.filter(|at| {
                BatchHeader::decode(&bytes[*at..]).is_ok_and(|header| header.flags != BEACON)
            });
            (number, found.collect::<Vec<_>>())
        };
        self.disk.segments().map(batches).collect()
    }

    /// A process starts on the disk.
    fn start(&mut self, now: Now) {
        let identity = self.identity();
        let recovered = driver::start(&mut self.disk, identity, self.segment_bytes, true);
        let recovered = recovered.expect("the log is ours");
        self.start += 1;
        let config = ShardConfig {
            zone: self.zone.clone(),
            identity,
            node: self.me.node,
            founders: self.founders.clone(),
            members: self.members.clone(),
            formed_at: None,
            shard: ShardId(0),
            shards: 1,
            groups: self.groups,
            start_number: self.start,
            seed: u64::from(self.me.node.0) << 32 | u64::from(self.start),
            machine_version_max: self.machine_version_max,
            payload_bytes_max: 1 << 20,
            auto_create: true,
            queue_defaults: QueueSettings::default(),
            checkpoint_log_bytes: self.checkpoint_log_bytes,
            checkpoint_log_bytes_max: 64 << 20,
            jobs_held_bytes_max: self.jobs_held_bytes_max,
            scrub_period: self.scrub_period,
            tails_bytes: self.tails_bytes,
            catch_up_bytes: self.catch_up_bytes,
            segment_bytes: self.segment_bytes,
        };
        self.inbox.clear();
        self.writing.clear();
        self.filing.clear();
        self.loaded.clear();
        let files = self.disk.files();
        self.engine = Some(ShardEngine::new(config, recovered, files, now));
    }

    /// One turn; what is to be sent.
    fn turn(&mut self, now: Now) -> Vec<(NodeId, Vec<Message>)> {
        let Some(mut engine) = self.engine.take() else {
            return Vec::new();
        };
        for (turns, work) in std::mem::take(&mut self.writing) {
            if turns > 1 {
                self.writing.push((turns - 1, work));
            } else {
                self.finish(work);
            }
        }
        for (turns, work) in std::mem::take(&mut self.filing) {
            if turns > 1 {
                self.filing.push((turns - 1, work));
            } else {
                self.finish(work);
            }
        }
        engine.handle(now, Input::TimePassed);
        while let Some(input) = self.inbox.pop_front() {
            engine.handle(now, input);
        }
        let mut sent = Vec::new();
        let mut effects = Vec::new();
        loop {
            engine.drain(&mut effects);
            if effects.is_empty() {
                break;
            }
            for effect in effects.drain(..) {
                self.perform(effect, &mut sent);
            }
        }
        self.engine = Some(engine);
        sent
    }

    /// The oldest log write under way lands. All behind it are reported done, and are not.
    pub(crate) fn lose_all_but_the_oldest_write(&mut self) {
        let (_, oldest) = self.writing.remove(0);
        self.finish(oldest);
        self.disk.lie(u32::MAX);
    }

    /// How many reads of the group that loads late are not told.
    pub(crate) fn loads_waiting(&self) -> usize {
        self.loaded.len()
    }

    /// The oldest of them is told now; the others wait.
    pub(crate) fn load_the_oldest(&mut self) {
        let oldest = self.loaded.pop_front();
        self.inbox.push_back(oldest.expect("a read waits"));
    }

    /// The group that loads late is told now.
    pub(crate) fn load_it(&mut self) {
        self.loads_late = None;
        self.inbox.append(&mut self.loaded);
    }

    /// The group that loads late cannot be read.
    pub(crate) fn fail_to_load_it(&mut self) {
        let group = self.loads_late.take().expect("a group loads late");
        self.loaded.clear();
        let result = Err(Unread {
            what: "its pages are damaged".to_owned(),
            damaged: Vec::new(),
        });
        self.inbox.push_back(Input::GroupLoaded {
            group,
            reader: GroupReader::Group,
            result,
        });
    }

    fn spoilt(&self, mut effect: Effect) -> Effect {
        if let Effect::WriteChunk {
            file: CheckpointFile::Run(_),
            offset,
            bytes,
            ..
        } = &mut effect
            && self.spoils_runs
            // The head of the file is before it.
            && *offset == BLOCK_BYTES as u64
        {
            let mut spoilt = bytes.to_vec();
            spoilt[0] ^= 1;
            *bytes = spoilt.into();
        }
        effect
    }

    fn finish(&mut self, work: Work) {
        let owner = driver::owner_of(&self.identity());
        self.inbox.push_back(work.finish(&mut self.disk, &owner));
    }

    fn perform(&mut self, effect: Effect, sent: &mut Vec<(NodeId, Vec<Message>)>) {
        if let Effect::TellDamage { text, .. } = &effect {
            self.told.push(text.clone());
        }
        let effect = self.spoilt(effect);
        match driver::begin(&mut self.disk, effect) {
            Begun::Work(work @ Work::Batch(_)) => self.writing.push((self.write_turns, work)),
            Begun::Work(work) if work.may_fail() && self.rounds_fail > 0 => {
                self.rounds_fail -= 1;
                self.inbox.push_back(work.fail(&mut self.disk));
            }
            Begun::Work(work @ Work::Group(group, ..)) if self.loads_late == Some(group) => {
                let owner = driver::owner_of(&self.identity());
                self.loaded.push_back(work.finish(&mut self.disk, &owner));
            }
            Begun::Work(work @ (Work::Chunk(..) | Work::Files(..))) if self.file_turns > 0 => {
                self.filing.push((self.file_turns, work));
            }
            Begun::Work(work @ Work::Pages(_)) if self.page_turns > 0 => {
                self.filing.push((self.page_turns, work));
            }
            Begun::Work(work) => self.finish(work),
            Begun::Out(Out::Messages(to, messages)) => sent.push((to.node, messages)),
            // A beat is told apart by being empty.
            Begun::Out(Out::Beat(to)) => sent.push((to, Vec::new())),
            Begun::Out(Out::Silent(peer)) => {
                let loss = Loss::Silent;
                self.inbox.push_back(Input::PeerLost { peer, loss });
            }
            Begun::Out(Out::Clock(clock)) => self.inbox.push_back(Input::VotersClock(clock)),
            Begun::Out(Out::Reply(_, reply)) => {
                self.replies.insert(reply.id, reply);
            }
            Begun::Out(Out::Members(members)) => {
                assert!(members.as_of >= self.members.as_of, "{members:?}");
                self.is_removed = !members.members.iter().any(|member| member.voter == self.me);
                self.members = members;
            }
            Begun::Out(Out::Stopped) => self.has_stopped = true,
            Begun::Out(other) => panic!("one shard has nobody for {other:?}"),
            Begun::Done => {}
        }
    }
}

/// How often a message to a node arrives.
type Copies = Box<dyn FnMut(u32, &Message) -> usize>;

/// Nodes 1 to n.
pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<u32, Node>,
    now: Monotonic,
    /// Links that nothing passes: from, to.
    cut: BTreeSet<(u32, u32)>,
    /// Messages of groups that were sent.
    pub(crate) sent: u64,
    /// Beats of nodes that were sent.
    pub(crate) beats: u64,
    next_request: u64,
    groups: u32,
    checkpoint_log_bytes: u64,
    catch_up_bytes: u64,
    prng: Prng,
    /// A node that knows that it was removed dies at once, as in the end its process does.
    pub(crate) removed_die: bool,
    /// Changes messages on their way to a node.
    pub(crate) tamper: Option<fn(u32, &mut Message)>,
    /// How often a message on its way to a node arrives; 0 = it is lost.
    pub(crate) copies: Option<Copies>,
}

impl Cluster {
    pub(crate) fn new(size: u32, groups: u32) -> Self {
        Self::with_checkpoints(size, groups, 16 << 20)
    }

    pub(crate) fn with_checkpoints(size: u32, groups: u32, checkpoint_log_bytes: u64) -> Self {
        Self::reading_logs(size, groups, checkpoint_log_bytes, 0)
    }

    /// Leaders read so much of their logs for members that are behind.
    pub(crate) fn reading_logs(
        size: u32,
        groups: u32,
        checkpoint_log_bytes: u64,
        catch_up_bytes: u64,
    ) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            now: Monotonic(1_000_000_000),
            cut: BTreeSet::new(),
            sent: 0,
            beats: 0,
            next_request: 1,
            groups,
            checkpoint_log_bytes,
            catch_up_bytes,
            prng: Prng::new(7),
            removed_die: false,
            tamper: None,
            copies: None,
        };
        let founders: Vec<Voter> = (1..=size).map(voter).collect();
        for founder in &founders {
            cluster.place(*founder, &founders, &founders);
        }
        cluster
    }

    /// A node on an empty disk starts.
    fn place(&mut self, me: Voter, founders: &[Voter], members: &[Voter]) {
        // The head of a segment names every group.
        let segment_bytes = (256 << 10).max(self.groups as usize * 1024);
        let node = Node {
            me,
            founders: founders.to_vec(),
            members: ClusterMembers {
                as_of: LogIndex(0),
                members: members.iter().copied().map(Member::voting).collect(),
            },
            groups: self.groups,
            start: 0,
            checkpoint_log_bytes: self.checkpoint_log_bytes,
            catch_up_bytes: self.catch_up_bytes,
            tails_bytes: 1 << 20,
            jobs_held_bytes_max: u64::MAX,
            scrub_period: None,
            segment_bytes,
            machine_version_max: MACHINE_VERSION,
            engine: None,
            disk: SimDisk::new(segment_bytes),
            inbox: VecDeque::new(),
            writing: Vec::new(),
            write_turns: 1,
            filing: Vec::new(),
            file_turns: 0,
            page_turns: 0,
            spoils_runs: false,
            rounds_fail: 0,
            loads_late: None,
            loaded: VecDeque::new(),
            replies: BTreeMap::new(),
            told: Vec::new(),
            has_stopped: false,
            is_removed: false,
            wall_ahead_ms: 0,
            zone: String::new(),
        };
        let number = me.node.0;
        assert!(
            self.nodes
                .get(&number)
                .is_none_or(|node| node.engine.is_none()),
            "it runs"
        );
        self.nodes.insert(number, node);
        self.start(number);
    }

    /// A node on an empty disk waits to be added, as the others hear.
    pub(crate) fn wait_to_be_added(&mut self, me: Voter) {
        let peer = Peer {
            zone: String::new(),
            voter: me,
            client_addresses: vec![format!("127.0.0.{}:7411", me.node)],
            machine_version_max: MACHINE_VERSION,
        };
        for number in self.running() {
            let hello = Input::PeerWaits(peer.clone());
            self.node(number).inbox.push_back(hello);
        }
        self.step();
    }

    /// A node that was added starts on its empty disk: one of the members has told it who they are.
    pub(crate) fn join(&mut self, me: Voter) {
        let of = self.running()[0];
        let (founders, members) = (&self.nodes[&of].founders, &self.nodes[&of].members);
        let members = members.members.iter().map(|member| member.voter);
        let (founders, members): (_, Vec<Voter>) = (founders.clone(), members.collect());
        self.place(me, &founders, &members);
    }

    /// The members of a group as a node knows them.
    pub(crate) fn members(&mut self, number: u32, group: GroupId) -> Vec<Member> {
        self.engine(number).member(group).members().to_list()
    }

    /// Whether every group has these voters and nobody else, on all nodes among them.
    pub(crate) fn all_groups_have(&mut self, voters: &[Voter]) -> bool {
        let list: Vec<Member> = voters.iter().copied().map(Member::voting).collect();
        let groups = (0..self.groups).map(|group| GroupId(group as u16));
        let groups: Vec<GroupId> = groups.collect();
        voters.iter().all(|voter| {
            let groups = groups.iter();
            groups
                .clone()
                .all(|group| self.members(voter.node.0, *group) == list)
        })
    }

    /// What a crash leaves of writes under way is drawn anew.
    pub(crate) fn reseed(&mut self, seed: u64) {
        self.prng = Prng::new(seed);
    }

    pub(crate) fn clock(&self) -> Now {
        Now {
            mono: self.now,
            wall: WallTime(1_800_000_000_000 + self.now.0 / 1_000_000),
        }
    }

    pub(crate) fn node(&mut self, number: u32) -> &mut Node {
        self.nodes.get_mut(&number).expect("there is such a node")
    }

    pub(crate) fn engine(&mut self, number: u32) -> &mut ShardEngine {
        let node = self.node(number);
        node.engine.as_mut().expect("the node runs")
    }

    /// The process of a node starts, and says hello to those that run.
    pub(crate) fn start(&mut self, number: u32) {
        let now = self.clock();
        self.node(number).start(now);
        let running = self.running();
        for other in running.into_iter().filter(|other| *other != number) {
            for (to, of) in [(number, other), (other, number)] {
                let hello = Input::PeerKnown(self.node(of).hello());
                self.node(to).inbox.push_back(hello);
            }
        }
    }

    /// The disk of a node that is not running becomes an older image of itself; then it starts, and hears
    /// from another how long its log was.
    pub(crate) fn start_on(&mut self, number: u32, image: SimDisk, heard: Lsn) {
        let node = self.nodes.get_mut(&number).expect("there is such a node");
        node.disk = image;
        node.disk.crash(&mut self.prng);
        self.start(number);
        let node = self.node(number);
        let heard = Input::HeardDurable(Durable {
            disk: node.me.disk,
            wal_set: 1,
            lsns: vec![heard],
            start: 0,
            process: 0,
        });
        self.node(number).inbox.push_back(heard);
    }

    /// The process of a node is asked to stop.
    pub(crate) fn ask_to_stop(&mut self, number: u32) {
        self.node(number).inbox.push_back(Input::StopRequested);
    }

    /// The process of a node dies, as by kill -9. The others see its connections end, and its port
    /// refuse.
    pub(crate) fn kill(&mut self, number: u32) {
        let node = self.nodes.get_mut(&number).expect("there is such a node");
        node.engine = None;
        node.disk.crash(&mut self.prng);
        self.lost(number, Loss::Dead);
    }

    /// The others are told what became of a node.
    pub(crate) fn lost(&mut self, number: u32, loss: Loss) {
        let peer = self.nodes[&number].me;
        for (_, other) in self.nodes.iter_mut().filter(|(of, _)| **of != number) {
            other.inbox.push_back(Input::PeerLost { peer, loss });
        }
    }

    /// Nothing passes between a node and the others.
    pub(crate) fn cut_off(&mut self, number: u32) {
        for other in self.nodes.keys() {
            self.cut.extend([(number, *other), (*other, number)]);
        }
    }

    /// Nothing passes from a node to the others.
    pub(crate) fn silence(&mut self, number: u32) {
        for other in self.nodes.keys() {
            self.cut.insert((number, *other));
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Every node takes a turn, and what it sends arrives.
    pub(crate) fn step(&mut self) {
        self.now = self.now.plus(STEP);
        let now = self.clock();
        let walls: BTreeMap<u32, u64> = self
            .nodes
            .iter()
            .map(|(number, node)| (*number, node.wall_ahead_ms))
            .collect();
        let mut sent = Vec::new();
        for (number, node) in &mut self.nodes {
            let mut clock = now;
            clock.wall.0 += node.wall_ahead_ms;
            let messages = node.turn(clock);
            let from = (node.me, node.start);
            let messages = messages.into_iter();
            sent.extend(messages.map(|(to, messages)| (*number, from, to.0, messages)));
        }
        for number in self.running() {
            let is_removed = std::mem::take(&mut self.node(number).is_removed);
            if is_removed && self.removed_die {
                self.kill(number);
            }
        }
        for (number, (from, start), to, mut messages) in sent {
            self.sent += messages.len() as u64;
            self.beats += u64::from(messages.is_empty());
            let is_cut = self.cut.contains(&(number, to));
            if let Some(node) = self
                .nodes
                .get_mut(&to)
                .filter(|node| !is_cut && node.engine.is_some())
            {
                let (to, is_beat) = (node.me, messages.is_empty());
                // There is no connection to a disk that is gone.
                messages.retain(|message| message.to == to);
                if messages.is_empty() && !is_beat {
                    continue;
                }
                let mut messages = carried(&messages, &Link { from, start, to });
                if let Some(tamper) = self.tamper {
                    let messages = messages.iter_mut();
                    messages.for_each(|message| tamper(to.node.0, message));
                }
                if let Some(copies) = self.copies.as_mut().filter(|_| !messages.is_empty()) {
                    let each = messages.into_iter().flat_map(|message| {
                        let count = copies(to.node.0, &message);
                        std::iter::repeat_n(message, count)
                    });
                    messages = each.collect();
                    if messages.is_empty() {
                        continue;
                    }
                }
                node.inbox.push_back(if messages.is_empty() {
                    let wall = WallTime(now.wall.0 + walls[&number]);
                    Input::PeerBeat { from, wall }
                } else {
                    let refused = 0;
                    Input::PeerMessages { messages, refused }
                });
            }
        }
    }

    /// Something happens on a node.
    pub(crate) fn tell(&mut self, number: u32, input: Input) {
        self.node(number).inbox.push_back(input);
    }

    /// A node is told this by another.
    pub(crate) fn say(&mut self, to: u32, messages: Vec<Message>, refused: u64) {
        let input = Input::PeerMessages { messages, refused };
        self.node(to).inbox.push_back(input);
    }

    /// A node is told this by another, before all that is on its way.
    pub(crate) fn say_first(&mut self, to: u32, message: Message) {
        let (messages, refused) = (vec![message], 0);
        let input = Input::PeerMessages { messages, refused };
        self.node(to).inbox.push_front(input);
    }

    /// What the engine of a node has counted.
    pub(crate) fn counters(&mut self, number: u32) -> Counters {
        self.engine(number).counters().clone()
    }

    /// Bytes of checkpoints that the nodes that run have sent to others.
    pub(crate) fn bytes_sent(&mut self) -> u64 {
        let running = self.running().into_iter();
        running
            .map(|number| self.counters(number).checkpoint_part_bytes_sent_total)
            .sum()
    }

    /// All nodes start anew: they have so much memory for jobs, and hold hardly anything of their logs for who
    /// is behind.
    pub(crate) fn start_with_little(&mut self, jobs_held_bytes_max: u64) {
        let numbers: Vec<u32> = self.nodes.keys().copied().collect();
        for number in &numbers {
            self.kill(*number);
            let node = self.node(*number);
            (node.tails_bytes, node.jobs_held_bytes_max) = (16 << 10, jobs_held_bytes_max);
        }
        for number in numbers {
            self.start(number);
        }
    }

    /// So many milliseconds pass.
    pub(crate) fn pass(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.step();
        }
    }

    /// Milliseconds until it holds.
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) -> u64 {
        for passed in 0..20_000 {
            if holds(self) {
                return passed;
            }
            self.step();
        }
        panic!("it does not come about that {what}");
    }

    /// Until all have the same state of a group.
    pub(crate) fn until_equal(&mut self, group: GroupId) {
        self.until("all have the same state", |cluster| {
            cluster.are_equal(group)
        });
    }

    /// The nodes whose process runs.
    fn running(&self) -> Vec<u32> {
        let nodes = self.nodes.iter();
        let running = nodes.filter(|(_, node)| node.engine.is_some());
        running.map(|(number, _)| *number).collect()
    }

    /// Whether some node serves the group, and which.
    pub(crate) fn leader(&mut self, group: GroupId) -> Option<u32> {
        let body = RequestBody::ListQueues { group };
        let running = self.running();
        running.into_iter().find(|number| {
            let reply = self.try_ask(*number, body.clone(), 3);
            reply.is_some_and(|reply| matches!(reply.body, ReplyBody::Queues(_)))
        })
    }

    /// The answer of a node within so many milliseconds.
    pub(crate) fn try_ask(&mut self, number: u32, body: RequestBody, within: u64) -> Option<Reply> {
        let id = self.next_request;
        self.next_request += 1;
        let from = Origin {
            shard: ShardId(0),
            conn: ConnId(id),
        };
        let request = Request { id, body };
        self.node(number).inbox.push_back(Input::ClientRequest {
            from,
            request,
            payload: None,
        });
        for _ in 0..within {
            self.step();
            if let Some(reply) = self.node(number).replies.remove(&id) {
                return Some(reply);
            }
        }
        None
    }

    /// The answer of a node to the last request, within so many milliseconds.
    pub(crate) fn until_answered(&mut self, number: u32, within: u64) -> Reply {
        let id = self.next_request - 1;
        for _ in 0..within {
            self.step();
            if let Some(reply) = self.node(number).replies.remove(&id) {
                return reply;
            }
        }
        panic!("node {number} does not answer");
    }

    /// Asks nodes until one of them takes it.
    pub(crate) fn ask(&mut self, body: &RequestBody) -> ReplyBody {
        for _ in 0..200 {
            let running = self.running();
            for number in running {
                match self
                    .try_ask(number, body.clone(), 50)
                    .map(|reply| reply.body)
                {
                    Some(ReplyBody::Error(error)) if error.code == Code::NotLeader => {}
                    Some(body) => return body,
                    None => {}
                }
            }
            self.pass(10);
        }
        panic!("nobody answers {body:?}");
    }

    pub(crate) fn queue(&mut self, name: &str) -> QueueInfo {
        let body = RequestBody::GetQueue {
            name: name.to_owned(),
            create: true,
        };
        match self.ask(&body) {
            ReplyBody::Queues(queues) => queues[0].0.clone(),
            other => panic!("no queue: {other:?}"),
        }
    }

    pub(crate) fn home(&self, name: &str) -> GroupId {
        home_group(name, self.groups)
    }

    /// A job that is acknowledged.
    pub(crate) fn enqueue(&mut self, queue: &str, payload: &[u8]) -> JobId {
        let info = self.queue(queue);
        let job = NewJob {
            payload: Bytes::copy_from_slice(payload),
            ..NewJob::default()
        };
        let op = Op::Enqueue {
            queue: info.uid,
            partition: Partition(0),
            items: vec![job],
        };
        match self.command(queue, None, op) {
            Outcome::Enqueued(items) => match &items[0] {
                Enqueued::New(job) => *job,
                other => panic!("not new: {other:?}"),
            },
            other => panic!("not enqueued: {other:?}"),
        }
    }

    /// So many jobs of so many bytes each, in one command.
    pub(crate) fn fill(&mut self, queue: &str, count: usize, bytes: usize) {
        let info = self.queue(queue);
        let payload = Bytes::from(vec![7; bytes]);
        let job = || NewJob {
            payload: payload.clone(),
            ..NewJob::default()
        };
        let op = Op::Enqueue {
            queue: info.uid,
            partition: Partition(0),
            items: (0..count).map(|_| job()).collect(),
        };
        self.command(queue, None, op);
    }

    /// Who leads a group, once somebody does.
    pub(crate) fn led_by(&mut self, group: GroupId) -> u32 {
        self.until("somebody leads", |cluster| cluster.leader(group).is_some());
        self.leader(group).expect("it was just seen")
    }

    /// Whoever leads a group dies, until this node leads it.
    pub(crate) fn make_lead(&mut self, number: u32, group: GroupId) {
        for _ in 0..20 {
            let leader = self.led_by(group);
            if leader == number {
                return;
            }
            self.kill(leader);
            self.until("another leads", |cluster| cluster.leader(group).is_some());
            self.start(leader);
            self.pass(500);
        }
        panic!("node {number} never leads group {group}");
    }

    /// All nodes have applied as much of a group, and have the same state.
    pub(crate) fn are_equal(&mut self, group: GroupId) -> bool {
        let running = self.running();
        let mut states = running
            .into_iter()
            .map(|number| self.engine(number).state_hash(group));
        let first = states.next().expect("a node runs");
        first.is_some() && states.all(|state| state == first)
    }

    /// The outcome of a command to the home of a queue.
    pub(crate) fn command(&mut self, queue: &str, session: Option<SessionCall>, op: Op) -> Outcome {
        let body = RequestBody::Command {
            group: self.home(queue),
            command: Command { session, op },
            wait_ms: 0,
        };
        match self.ask(&body) {
            ReplyBody::Outcome(outcome) => outcome,
            ReplyBody::Leased(_) => Outcome::Done,
            other => panic!("no outcome: {other:?}"),
        }
    }

    /// Leases a job, in a new session that is ended when it is silent for `timeout_ms`, or without one.
    pub(crate) fn lease(&mut self, queue: &str, lease_ms: u32, timeout_ms: Option<u32>) {
        let uid = self.queue(queue).uid;
        let session = timeout_ms.map(|worker_timeout_ms| {
            let op = Op::OpenSession { worker_timeout_ms };
            match self.command(queue, None, op) {
                Outcome::SessionOpened { session, .. } => session,
                other => panic!("no session: {other:?}"),
            }
        });
        let call = session.map(|id| SessionCall {
            id,
            seq: 1,
            lowest: 1,
            window: Window::Polls,
        });
        let op = Op::Lease {
            queue: uid,
            partition: Partition(0),
            max: 1,
            lease_ms,
            epoch: 1,
        };
        self.command(queue, call, op);
    }

    /// Takes up to so many jobs at the head of a queue, at most 1,000, and finishes them; how many. A lease
    /// whose answer is lost with its leader ends after a second.
    pub(crate) fn finish_up_to(&mut self, queue: &str, count: u32) -> usize {
        let op = Op::Lease {
            queue: self.queue(queue).uid,
            partition: Partition(0),
            max: count,
            lease_ms: 1_000,
            epoch: 1,
        };
        let body = RequestBody::Command {
            group: self.home(queue),
            command: Command { session: None, op },
            wait_ms: 0,
        };
        let jobs = match self.ask(&body) {
            ReplyBody::Leased(jobs) => jobs,
            _ => Vec::new(),
        };
        let items = jobs.iter().map(|job| AckItem {
            token: job.token(),
            result: None,
        });
        let items: Vec<_> = items.collect();
        let count = items.len();
        if count > 0 {
            self.command(queue, None, Op::Ack { items });
        }
        count
    }

    /// Likewise, all of them.
    pub(crate) fn finish(&mut self, queue: &str, count: u32) {
        let finished = self.finish_up_to(queue, count);
        assert_eq!(finished, count as usize, "no job is missing");
    }

    /// The state of a job, asked of who leads.
    pub(crate) fn state(&mut self, job: JobId) -> JobState {
        match self.ask(&RequestBody::GetJob { job }) {
            ReplyBody::Job(job) => job.state,
            other => panic!("no job: {other:?}"),
        }
    }

    /// Whether a job is there, asked of who leads.
    pub(crate) fn has(&mut self, job: JobId) -> bool {
        matches!(self.ask(&RequestBody::GetJob { job }), ReplyBody::Job(_))
    }
}
