//! What a driver does for an engine, on a simulated disk: one place for every world.
//!
//! An effect is begun at once. What the disk works on is done when its world says so, in any order; what
//! goes to somebody else is handed to the world. A start reads the log as the product does.
//!
//! Deliberately absent: time. How long a work takes, and whether it ends, is up to the world.

use super::disk::SimDisk;
use crate::base::bugs::{self, Bug};
use crate::base::ids::{GroupId, NodeId, ShardId};
use crate::base::limits::PEER_FRAME_BYTES_MAX;
use crate::base::members::ClusterMembers;
use crate::base::prng::{Prng, mix};
use crate::base::units::Lsn;
use crate::raft::message::{Message, Voter};
use crate::shard::bases::root_ref;
use crate::shard::effect::{CheckpointFile, Effect, GroupReader, PageOrder};
use crate::shard::input::{Input, Origin};
use crate::shard::loading::{files_of_base, load_group, load_pages};
use crate::shard::redistribution::{NewLog, damage_of, known_ends, moves};
use crate::shard::scrub::Walk;
use crate::shard::sparing::VoterSets;
use crate::shard::wall::VotersClock;
use crate::snapshot::layout::{Owner, RootRef};
use crate::snapshot::manifest::Manifest;
use crate::wal::extent::{QUIET_BYTES, read_written};
use crate::wal::pieces::Piece;
use crate::wal::recovery::{Recovered, Recovery, RecoveryError};
use crate::wal::writer::LogIdentity;
use crate::wire::frame::FrameDecoder;
use crate::wire::message::{Reply, Request};
use crate::wire::peer::{Link, decode_messages, encode_messages};
use bytes::BytesMut;
use std::time::Duration;

/// What became of an effect.
pub enum Begun {
    /// The disk works on it.
    Work(Work),
    /// It is for somebody else than the disk.
    Out(Out),
    /// It is done, and nothing is told.
    Done,
}

/// What a disk works on.
#[derive(Debug)]
pub enum Work {
    /// A batch of the log, by its number.
    Batch(u64),
    /// A new segment, by its number. A driver makes them one after the other: a gap in the numbers is
    /// damage.
    Segment(u64),
    /// A piece of the log is read.
    Piece(Piece),
    /// The state of a group is read.
    Group(GroupId, GroupReader, Vec<RootRef>),
    /// Pages of a group are read.
    Pages(PageOrder),
    /// What is stored is looked at.
    Scrub(Box<Walk>),
    /// So many bytes of a checkpoint file of a round are written, not yet synced.
    Chunk(u64, usize),
    /// The files of a checkpoint round are synced.
    Files(u64, Vec<CheckpointFile>),
    /// The manifest is replaced.
    Manifest,
}

/// What is for somebody else.
#[derive(Debug)]
pub enum Out {
    /// An answer.
    Reply(Origin, Reply),
    /// Messages for another node, with that disk.
    Messages(Voter, Vec<Message>),
    /// A beat for another node.
    Beat(NodeId),
    /// Every shard of this node is told that another is silent.
    Silent(Voter),
    /// Shard 0 is told that a node which was lost has been heard.
    Heard(Voter),
    /// Every shard of this node is told what the voters' clocks say.
    Clock(VotersClock),
    /// Every other shard of this node is told who belongs to the cluster.
    Members(ClusterMembers),
    /// Shard 0 is told who votes in the groups of another.
    VoterSets(VoterSets),
    /// A request for another shard.
    Forward(ShardId, Origin, Request),
    /// Another shard is told that a connection closed.
    Closed(ShardId, Origin),
    /// The shard can end.
    Stopped,
}

/// The memory of a shard for jobs: of those that write many checkpoints one in two has none, so that all
/// that can be on the disk alone is.
#[must_use]
pub fn jobs_held_bytes_max(checkpoint_log_bytes: u64) -> u64 {
    let has_none = (checkpoint_log_bytes >> 17)
        .trailing_zeros()
        .is_multiple_of(2);
    if has_none { 0 } else { u64::MAX }
}

/// Within which time a shard looks at what is stored: in three runs of four never, which would take longer for
/// it, else within four to twelve seconds, so that most passes come to their end.
#[must_use]
pub fn scrub_period(seed: u64) -> Option<Duration> {
    let drawn = mix(!seed) >> 16;
    let period = Duration::from_secs([4, 6, 8, 12][(drawn >> 2 & 3) as usize]);
    (drawn & 3 == 3).then_some(period)
}

/// What a start reads of a segment before anything is known of it.
const FRONT_BYTES: usize = 4 << 10;

/// Begins an effect.
pub fn begin(disk: &mut SimDisk, effect: Effect) -> Begun {
    let work = match effect {
        Effect::WriteWal(write) => {
            disk.start_write(&write);
            Work::Batch(write.batch_seq)
        }
        Effect::PrepareSegment { number } => Work::Segment(number),
        Effect::ReadLog(piece) => Work::Piece(piece),
        Effect::LoadGroup {
            group,
            bases,
            reader,
        } => Work::Group(group, reader, bases),
        Effect::LoadPages(order) => Work::Pages(order),
        Effect::Scrub(walk) => Work::Scrub(walk),
        Effect::WriteChunk {
            round,
            file,
            offset,
            bytes,
        } => {
            disk.write_chunk(file, offset, &bytes);
            Work::Chunk(round, bytes.len())
        }
        Effect::SyncFiles { round, files } => Work::Files(round, files),
        Effect::WriteManifest { bytes } => {
            disk.start_manifest(bytes);
            Work::Manifest
        }
        Effect::DropSegments { numbers } => {
            disk.drop_segments(&numbers);
            return Begun::Done;
        }
        Effect::DropFiles { files } => {
            disk.drop_files(&files);
            return Begun::Done;
        }
        Effect::TruncateFiles { files } => {
            disk.truncate_files(&files);
            return Begun::Done;
        }
        Effect::JobsRan { .. } | Effect::Discard(_) | Effect::TellDamage { .. } => {
            return Begun::Done;
        }
        Effect::Reply { to, reply } => return Begun::Out(Out::Reply(to, reply)),
        Effect::SendPeer { to, messages } => return Begun::Out(Out::Messages(to, messages)),
        Effect::SendBeat { to } => return Begun::Out(Out::Beat(to)),
        Effect::TellSilent { peer } => return Begun::Out(Out::Silent(peer)),
        Effect::TellHeard { peer } => return Begun::Out(Out::Heard(peer)),
        Effect::TellClock(clock) => return Begun::Out(Out::Clock(clock)),
        Effect::ClusterMembers(members) => return Begun::Out(Out::Members(members)),
        Effect::VoterSets(sets) => return Begun::Out(Out::VoterSets(sets)),
        Effect::Forward { to, from, request } => {
            return Begun::Out(Out::Forward(to, from, request));
        }
        Effect::ForwardClosed { to, from } => return Begun::Out(Out::Closed(to, from)),
        Effect::Stopped => return Begun::Out(Out::Stopped),
    };
    Begun::Work(work)
}

impl Work {
    /// It is done; what the engine is told.
    pub fn finish(self, disk: &mut SimDisk, owner: &Owner) -> Input {
        match self {
            Self::Batch(batch_seq) => {
                disk.complete_write(batch_seq);
                Input::WalSynced { batch_seq }
            }
            Self::Segment(number) => {
                disk.prepare_segment(number);
                Input::SegmentReady { number }
            }
            Self::Piece(piece) => {
                let bytes = disk.read_log(piece.segment, piece.offset, piece.bytes);
                Input::LogRead { piece, bytes }
            }
            Self::Group(group, reader, bases) => {
                let mut read = |file, offset, len| disk.read(file, offset, len);
                let result = load_group(owner, &bases, &mut read);
                Input::GroupLoaded {
                    group,
                    reader,
                    result,
                }
            }
            Self::Pages(order) => {
                let mut read = |file, offset, len| disk.read(file, offset, len);
                let result = load_pages(owner, &order, &mut read);
                Input::PagesLoaded {
                    group: order.group,
                    reader: order.reader,
                    result,
                }
            }
            Self::Scrub(mut walk) => {
                let mut read = |file, offset, len| disk.read(file, offset, len);
                walk.step(owner, &mut read);
                Input::Scrubbed(walk)
            }
            Self::Chunk(round, bytes) => Input::ChunkWritten { round, bytes },
            Self::Files(round, files) => {
                disk.sync_files(&files);
                Input::FilesSynced { round }
            }
            Self::Manifest => {
                disk.complete_manifest();
                Input::ManifestWritten
            }
        }
    }

    /// There is no room for it, which only the files of a round may find; what the engine is told.
    ///
    /// # Panics
    /// If it is anything else.
    pub fn fail(self, disk: &mut SimDisk) -> Input {
        let Self::Files(round, files) = self else {
            panic!("{self:?} cannot fail");
        };
        disk.give_up_files(&files);
        Input::RoundFailed { round }
    }

    /// A write of the log fails, perhaps half done. Nobody knows then what the disk holds: the process
    /// ends, and nothing is told.
    ///
    /// # Panics
    /// If it is no write of the log.
    pub fn fail_write(self, disk: &mut SimDisk, prng: &mut Prng) -> Option<Input> {
        let Self::Batch(batch_seq) = self else {
            panic!("{self:?} is no write of the log");
        };
        disk.fail_write(batch_seq, prng);
        bugs::on(Bug::WriteErrorIgnored).then_some(Input::WalSynced { batch_seq })
    }

    /// Whether it is the end of a checkpoint round's files.
    #[must_use]
    pub fn may_fail(&self) -> bool {
        matches!(self, Self::Files(..))
    }

    /// How long it takes, about, in microseconds.
    #[must_use]
    pub fn typical_us(&self) -> u64 {
        match self {
            Self::Batch(_) => 150,
            Self::Chunk(..) => 300,
            Self::Group(..) | Self::Pages(..) | Self::Piece(_) => 500,
            Self::Manifest | Self::Scrub(_) => 1_000,
            Self::Segment(_) | Self::Files(..) => 2_000,
        }
    }
}

/// Reads the log of a disk, with the proof that its manifest holds.
///
/// # Errors
/// [`RecoveryError`] if the log is refused as a whole.
///
/// # Panics
/// If the manifest is no manifest of this shard: it is replaced as a whole.
pub fn recover(
    disk: &SimDisk,
    identity: LogIdentity,
    segment_bytes: usize,
) -> Result<Recovered, RecoveryError> {
    let owner = owner_of(&identity);
    let shard = identity.shard;
    let mut recovery = Recovery::with_segment_bytes(identity, segment_bytes);
    if let Some(bytes) = disk.manifest() {
        let manifest = Manifest::decode(bytes).expect("the manifest is replaced as a whole");
        let checked = manifest.check(&owner, shard);
        checked.expect("the manifest is this shard's");
        recovery.proof(manifest.durable);
    }
    for (number, bytes) in disk.segments() {
        let length = bytes.len();
        let front = bytes.slice(..FRONT_BYTES.min(length));
        let read = |from: usize, piece: &mut [u8]| {
            piece.copy_from_slice(&bytes[from..][..piece.len()]);
            Ok::<_, RecoveryError>(())
        };
        let written = read_written(number, front, (length, QUIET_BYTES), read)?;
        recovery.feed_front(number, written, length);
    }
    recovery.finish()
}

/// A start reads the log of a disk.
///
/// # Errors
/// [`RecoveryError`] if the log is refused as a whole.
///
/// # Panics
/// If it does not find what was on the disk for good, although no harm was done to it (`is_harmed`).
pub fn start(
    disk: &mut SimDisk,
    identity: LogIdentity,
    segment_bytes: usize,
    is_harmed: bool,
) -> Result<Recovered, RecoveryError> {
    let recovered = recover(disk, identity, segment_bytes)?;
    if !is_harmed {
        assert!(
            recovered.damage.is_empty(),
            "a torn tail was taken for damage: {:?}",
            recovered.damage
        );
        let missing = disk.kept.missing_in(&recovered);
        assert!(
            missing.is_none(),
            "a start does not find what is on its disk for good: {missing:?} (group, entry)"
        );
    }
    disk.kept.restart(&recovered);
    Ok(recovered)
}

/// The bases that a start finds in a log must be there, the newest and the one before, with the files that
/// they name: nothing was done to the disk, and nothing of it was ever unreadable.
///
/// # Panics
/// If a file is missing.
pub fn must_have_bases(disk: &SimDisk, log: &Recovered) {
    if disk.reads_fail {
        return;
    }
    let files = disk.files();
    let mut read = |file, offset, len| disk.read(file, offset, len);
    for (group, log) in &log.groups {
        for base in &log.bases {
            let Some(root) = root_ref(base) else { continue };
            let named = files_of_base(&root, &mut read);
            assert!(
                named.is_some_and(|named| named.all().all(|file| files.contains_key(&file))),
                "the log says that group {group} has a base of entry {}, and its files are gone",
                base.index
            );
        }
    }
}

/// Gives the groups of a node's disks to other shards, as a start does that is for another number of them:
/// `to` is that number, and the WAL set to be. `None` if a log is damaged: then all stays as it is.
///
/// # Panics
/// As [`start`]; and if the new logs do not read back as they were written.
pub fn redistribute(
    disks: &mut [SimDisk],
    before: LogIdentity,
    to: (u16, u32),
    (groups, start_number): (u32, u32),
    segment_bytes: usize,
    is_harmed: bool,
) -> Option<Vec<SimDisk>> {
    let (shards, wal_set) = to;
    let mut logs = Vec::new();
    for (shard, disk) in (0..).zip(disks.iter_mut()) {
        let shard = ShardId(shard);
        let identity = LogIdentity { shard, ..before };
        let log = start(disk, identity, segment_bytes, is_harmed);
        logs.push(log.expect("the log is this node's own"));
    }
    if logs.iter().any(|log| damage_of(log).is_some()) {
        return None;
    }
    let ends: Vec<Lsn> = logs.iter().map(|log| log.start.lsn).collect();
    let ends = known_ends(before, &ends, &logs[0].start.echoes);
    let identity = |shard| LogIdentity {
        shard: ShardId(shard),
        wal_set,
        ..before
    };
    let log = |shard| {
        let seed = u64::from(wal_set) << 16 | u64::from(shard);
        NewLog::new(identity(shard), ends.clone(), seed, segment_bytes)
    };
    let mut made: Vec<(NewLog, SimDisk)> = (0..shards)
        .map(|shard| (log(shard), SimDisk::new(segment_bytes)))
        .collect();
    let old_shards = u16::try_from(disks.len()).expect("few shards");
    for ((shard, disk), log) in (0..).zip(disks.iter()).zip(&logs) {
        let mut read = |file, offset, len| disk.read(file, offset, len);
        let change = (old_shards, shards);
        for moved in moves(log, ShardId(shard), change, groups, &mut read) {
            let (to, new_disk) = &mut made[usize::from(moved.to.0)];
            let any = || disk.files().into_keys().collect();
            let files = moved.files.unwrap_or_else(any);
            files.into_iter().for_each(|file| new_disk.link(file, disk));
            to.take(moved.group, moved.log);
        }
    }
    let finish = |(shard, (mut log, mut disk)): (u16, (NewLog, SimDisk))| {
        disk.write_log(&mut log.writer);
        disk.start_manifest(log.manifest(start_number.into()).encode().into());
        disk.complete_manifest();
        let read = recover(&disk, identity(shard), segment_bytes).expect("it was just written");
        assert!(log.reads_back(&read), "shard {shard} is not what it was");
        disk
    };
    Some((0..).zip(made).map(finish).collect())
}

/// Whose files lie beside a log.
#[must_use]
pub fn owner_of(identity: &LogIdentity) -> Owner {
    Owner {
        cluster: identity.cluster,
        disk: identity.disk,
    }
}

/// Messages on their way through the codec, as bytes.
///
/// # Panics
/// If they do not arrive as they were sent.
#[must_use]
pub fn carried(messages: &[Message], link: &Link) -> Vec<Message> {
    let mut bytes = BytesMut::new();
    encode_messages(messages, &mut bytes);
    let mut decoder = FrameDecoder::default();
    decoder.set_body_bytes_max(PEER_FRAME_BYTES_MAX);
    decoder.push(&bytes);
    let mut received = Vec::new();
    while let Some(frame) = decoder.next().expect("a frame is read as it was sent") {
        let messages = decode_messages(&frame.body, link).expect("messages");
        let sound = messages.into_iter();
        received.extend(sound.map(|message| message.expect("it is sound")));
    }
    assert_eq!(received, messages, "a message changed on its way");
    received
}
