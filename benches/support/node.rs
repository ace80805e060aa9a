//! The engine of one shard with a disk that is always done at once.
//!
//! It drives [`ShardEngine`] as a shard's task does: many requests, then drains until nothing is
//! left, then what the disk has to say. The disk keeps what it is given, without copying it, where a
//! node is to be started again on it; else it keeps nothing.

use bytes::{Bytes, BytesMut};
use rrq::base::ids::{ClusterId, DiskId, GroupId, NodeId, ShardId};
use rrq::base::limits::{GROUPS_MIN, SEGMENT_BYTES};
use rrq::base::members::ClusterMembers;
use rrq::base::units::{Monotonic, Now, WallTime};
use rrq::queue::MACHINE_VERSION;
use rrq::shard::config::ShardConfig;
use rrq::shard::effect::{CheckpointFile, Effect, GroupReader};
use rrq::shard::engine::ShardEngine;
use rrq::shard::input::{Input, Origin};
use rrq::shard::loading::{GroupState, Unread, load_group};
use rrq::snapshot::layout::{Owner, RootRef};
use rrq::snapshot::manifest::Manifest;
use rrq::wal::recovery::{Recovered, Recovery};
use rrq::wal::writer::{LogIdentity, WalWrite};
use rrq::wire::QueueSettings;
use rrq::wire::client::Received;
use rrq::wire::message::Reply;
use std::collections::BTreeMap;
use std::time::Duration;

/// Groups of the node, all on its one shard.
pub(crate) const GROUPS: u32 = GROUPS_MIN as u32;
/// A turn of the shard's task.
const TURN: Duration = Duration::from_micros(100);

const OWNER: Owner = Owner {
    cluster: ClusterId([0xc1; 16]),
    disk: DiskId([0xd1; 16]),
};

fn identity() -> LogIdentity {
    LogIdentity {
        cluster: OWNER.cluster,
        disk: OWNER.disk,
        shard: ShardId(0),
        wal_set: 1,
    }
}

/// What a stopped node leaves.
#[derive(Default)]
pub(crate) struct Disk {
    segments: BTreeMap<u64, Vec<WalWrite>>,
    chunks: BTreeMap<CheckpointFile, Vec<(u64, Bytes)>>,
    manifest: Option<Bytes>,
}

impl Disk {
    /// The log as it is read at a start: each segment whole.
    pub(crate) fn segments(&self) -> Vec<(u64, Bytes)> {
        let read = |(number, writes): (&u64, &Vec<WalWrite>)| {
            let mut bytes = vec![0; SEGMENT_BYTES];
            for write in writes {
                let at = write.offset as usize;
                write
                    .batch
                    .encode_into(&mut bytes[at..at + write.batch.encoded_len()]);
            }
            (*number, Bytes::from(bytes))
        };
        self.segments.iter().map(read).collect()
    }

    /// The files of the checkpoints, by their numbers.
    pub(crate) fn files(&self) -> BTreeMap<u64, Bytes> {
        let mut files = BTreeMap::new();
        for (file, chunks) in &self.chunks {
            let (CheckpointFile::Run(number) | CheckpointFile::Payload(number)) = file;
            let mut bytes = BytesMut::new();
            for (offset, chunk) in chunks {
                assert_eq!(*offset, bytes.len() as u64, "chunks follow one another");
                bytes.extend_from_slice(chunk);
            }
            files.insert(*number, bytes.freeze());
        }
        files
    }

    /// What the log holds beyond the manifest's word.
    pub(crate) fn recover(&self, segments: &[(u64, Bytes)]) -> Recovered {
        let mut recovery = Recovery::new(identity());
        if let Some(manifest) = &self.manifest {
            let manifest = Manifest::decode(manifest).expect("it was written whole");
            recovery.proof(manifest.durable);
        }
        for (number, bytes) in segments {
            recovery.feed(*number, bytes.clone());
        }
        recovery.finish().expect("the log is whole")
    }
}

/// Reads and verifies the state of a group from checkpoint files.
pub(crate) fn read_state(files: &BTreeMap<u64, Bytes>, bases: &[RootRef]) -> GroupState {
    let mut read = |file: u64, offset: u64, len: usize| match files.get(&file) {
        Some(bytes) => {
            let start = offset as usize;
            Ok(bytes.slice(start..bytes.len().min(start + len)))
        }
        None => Err("there is no such file"),
    };
    load_group(&OWNER, bases, &mut read).expect("the checkpoint is whole")
}

/// One shard.
pub(crate) struct Node {
    engine: ShardEngine,
    now: Now,
    effects: Vec<Effect>,
    disk: Option<Disk>,
    replies: Vec<(Origin, Reply)>,
    loads: Vec<(GroupId, Vec<RootRef>)>,
    stopped: bool,
}

impl Node {
    /// A node with nothing on its disk, ready to serve. `keeps` decides whether its disk does.
    pub(crate) fn new(keeps: bool) -> Self {
        let disk = keeps.then(Disk::default);
        let mut node = Self::start(Recovered::fresh(), disk, 1);
        node.turn();
        node.replies.clear();
        node
    }

    /// A node that found this in its log. It has yet to take a turn.
    pub(crate) fn start(recovered: Recovered, disk: Option<Disk>, start_number: u32) -> Self {
        let config = ShardConfig {
            identity: identity(),
            node: NodeId(1),
            zone: String::new(),
            founders: Vec::new(),
            members: ClusterMembers::default(),
            formed_at: None,
            shard: ShardId(0),
            shards: 1,
            groups: GROUPS,
            start_number,
            seed: start_number.into(),
            machine_version_max: MACHINE_VERSION,
            payload_bytes_max: 1 << 20,
            auto_create: true,
            queue_defaults: QueueSettings::default(),
            // No round begins by itself.
            checkpoint_log_bytes: u64::MAX,
            checkpoint_log_bytes_max: u64::MAX,
            jobs_held_bytes_max: u64::MAX,
            scrub_period: None,
            tails_bytes: 1 << 20,
            catch_up_bytes: 0,
            segment_bytes: SEGMENT_BYTES,
        };
        let now = Now {
            mono: Monotonic(u64::from(start_number) << 40),
            wall: WallTime(1_700_000_000_000),
        };
        let files = disk.as_ref().map(|disk| {
            let len = |chunks: &Vec<(u64, Bytes)>| {
                chunks.iter().map(|(_, chunk)| chunk.len() as u64).sum()
            };
            let chunks = disk.chunks.iter();
            chunks.map(|(file, chunks)| (*file, len(chunks))).collect()
        });
        Self {
            engine: ShardEngine::new(config, recovered, files.unwrap_or_default(), now),
            now,
            effects: Vec::new(),
            disk,
            replies: Vec::new(),
            loads: Vec::new(),
            stopped: false,
        }
    }

    /// Takes a request.
    pub(crate) fn ask(&mut self, from: Origin, received: Received) {
        let Received { request, payload } = received;
        self.tell(Input::ClientRequest {
            from,
            request,
            payload,
        });
    }

    /// Takes the state of a group.
    pub(crate) fn loaded(&mut self, group: GroupId, state: GroupState) {
        self.tell(Input::GroupLoaded {
            group,
            reader: GroupReader::Group,
            result: Ok(state),
        });
    }

    fn tell(&mut self, input: Input) {
        self.engine.handle(self.now, input);
    }

    /// Drains the engine and does what it wants, until it wants nothing.
    pub(crate) fn turn(&mut self) {
        self.now.mono = self.now.mono.plus(TURN);
        let mut effects = std::mem::take(&mut self.effects);
        loop {
            self.engine.drain(&mut effects);
            if effects.is_empty() {
                break;
            }
            for effect in effects.drain(..) {
                self.perform(effect);
            }
        }
        self.effects = effects;
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::WriteWal(write) => {
                let batch_seq = write.batch_seq;
                if let Some(disk) = &mut self.disk {
                    disk.segments.entry(write.segment).or_default().push(write);
                }
                self.tell(Input::WalSynced { batch_seq });
            }
            Effect::PrepareSegment { number } => self.tell(Input::SegmentReady { number }),
            // There is no other shard.
            Effect::ClusterMembers(_)
            | Effect::VoterSets(_)
            | Effect::TellClock(_)
            | Effect::TellHeard { .. } => {}
            Effect::Reply { to, reply } => self.replies.push((to, reply)),
            Effect::WriteChunk {
                round,
                file,
                offset,
                bytes,
            } => {
                let length = bytes.len();
                if let Some(disk) = &mut self.disk {
                    disk.chunks.entry(file).or_default().push((offset, bytes));
                }
                let bytes = length;
                self.tell(Input::ChunkWritten { round, bytes });
            }
            Effect::SyncFiles { round, .. } => self.tell(Input::FilesSynced { round }),
            Effect::WriteManifest { bytes } => {
                if let Some(disk) = &mut self.disk {
                    disk.manifest = Some(bytes);
                }
                self.tell(Input::ManifestWritten);
            }
            Effect::LoadGroup { group, bases, .. } => self.loads.push((group, bases)),
            Effect::Scrub(_) | Effect::TellDamage { .. } => {
                panic!("nothing stored is looked at")
            }
            // The ends of a queue, before anybody needs them; nobody takes any here.
            Effect::LoadPages(order) => {
                let unread = Unread {
                    what: "nothing is read here".to_owned(),
                    damaged: Vec::new(),
                };
                self.tell(Input::PagesLoaded {
                    group: order.group,
                    reader: order.reader,
                    result: Err(unread),
                });
            }
            Effect::Stopped => self.stopped = true,
            Effect::DropSegments { .. }
            | Effect::DropFiles { .. }
            | Effect::TruncateFiles { .. }
            | Effect::Discard(_)
            | Effect::JobsRan { .. } => {}
            Effect::Forward { .. } | Effect::ForwardClosed { .. } => {
                panic!("one shard has nobody to forward to")
            }
            Effect::SendPeer { .. }
            | Effect::SendBeat { .. }
            | Effect::TellSilent { .. }
            | Effect::ReadLog(_) => {
                panic!("one node has nobody to talk to")
            }
        }
    }

    /// The replies since they were last taken.
    pub(crate) fn replies(&mut self) -> &mut Vec<(Origin, Reply)> {
        &mut self.replies
    }

    /// The groups whose state must be read before they serve, with their bases.
    pub(crate) fn loads(&mut self) -> Vec<(GroupId, Vec<RootRef>)> {
        std::mem::take(&mut self.loads)
    }

    /// Jobs that are live.
    pub(crate) fn live_jobs(&self) -> u64 {
        self.engine.live_jobs()
    }

    /// Cuts the last checkpoint and stops.
    pub(crate) fn stop(&mut self) {
        self.tell(Input::StopRequested);
        while !self.stopped {
            self.turn();
        }
    }

    /// What it leaves.
    pub(crate) fn into_disk(self) -> Disk {
        self.disk.expect("its disk keeps what it is given")
    }
}
