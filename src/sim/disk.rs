//! The disk of one shard: segments, checkpoint files, a manifest; what a crash does to them, and what
//! a disk does that fails ([`Harm`]).
//!
//! A clone is an image of the disk; clones share what neither has written since.

use super::kept::Kept;
use super::told::{Told, told_batches};
use crate::base::ids::ShardId;
use crate::base::limits::BLOCK_BYTES;
use crate::base::prng::Prng;
use crate::base::units::Lsn;
use crate::shard::effect::CheckpointFile;
use crate::snapshot::manifest::Manifest;
use crate::wal::batch::{BatchHeader, WalBatch};
use crate::wal::writer::{LogWriter, Need, WalWrite};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

/// A torn write is torn between sectors of this size.
const SECTOR_BYTES: usize = 512;

/// A log write under way.
#[derive(Clone)]
struct PendingWrite {
    segment: u64,
    offset: usize,
    batch: WalBatch,
}

/// The bytes of a segment or file; shared with images and with what was read of it, until it is written again.
#[derive(Clone, Default)]
struct Content(Arc<Vec<u8>>);

impl AsRef<[u8]> for Content {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Content {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    fn make_mut(&mut self) -> &mut Vec<u8> {
        Arc::make_mut(&mut self.0)
    }
}

/// What a disk does to bytes that it said were safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// A bit flips.
    Rot,
    /// A block reads as zeros.
    Zeroed,
    /// A block that was meant for another place lies here.
    Misdirected,
    /// A write was lost: the block is as it was before, in an earlier use of the segment.
    Stale,
}

/// Where harm was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Harmed {
    /// The segment, or `None` for a checkpoint file.
    pub segment: Option<u64>,
    /// The byte.
    pub offset: usize,
}

/// A checkpoint file.
#[derive(Clone, Default)]
struct File {
    bytes: Content,
    /// Everything before this many bytes is synced.
    synced: usize,
}

/// The disk of one shard. A clone is an image of it.
#[derive(Clone)]
pub struct SimDisk {
    segment_bytes: usize,
    segments: BTreeMap<u64, Content>,
    spares: Vec<Content>,
    writes: BTreeMap<u64, PendingWrite>,
    files: BTreeMap<CheckpointFile, File>,
    /// What of files that a dead process had not synced is still on its way to the disk.
    late: Vec<(CheckpointFile, File)>,
    /// Log writes that it will report and not do.
    lies: u32,
    /// Those that it has not done since the last start.
    lied: Vec<(u64, PendingWrite)>,
    /// Reads of checkpoint files fail.
    pub reads_fail: bool,
    /// What of the log is here for good.
    pub kept: Kept,
    /// The newest manifest that was reported written, and one that was not.
    manifest: Option<Bytes>,
    manifest_under_way: Option<Bytes>,
}

impl SimDisk {
    /// An empty disk with segments of this size.
    #[must_use]
    pub fn new(segment_bytes: usize) -> Self {
        Self {
            segment_bytes,
            segments: BTreeMap::new(),
            spares: Vec::new(),
            writes: BTreeMap::new(),
            files: BTreeMap::new(),
            late: Vec::new(),
            lies: 0,
            lied: Vec::new(),
            reads_fail: false,
            kept: Kept::default(),
            manifest: None,
            manifest_under_way: None,
        }
    }

    /// Makes a segment out of a spare, stale bytes and all, or of zeros.
    pub fn prepare_segment(&mut self, number: u64) {
        let spare = self.spares.pop();
        let zeros = || Content(Arc::new(vec![0; self.segment_bytes]));
        let segment = spare.unwrap_or_else(zeros);
        self.segments.entry(number).or_insert(segment);
    }

    /// Turns segments into spares.
    ///
    /// # Panics
    /// If what they hold is not repeated yet: nothing of a later segment is on disk.
    pub fn drop_segments(&mut self, numbers: &[u64]) {
        let head = self.kept.head();
        assert!(
            self.has_lied() || numbers.iter().all(|number| *number < head),
            "segments {numbers:?} are dropped, and the newest that is on disk is {head}"
        );
        self.spares.extend(
            numbers
                .iter()
                .filter_map(|number| self.segments.remove(number)),
        );
    }

    /// Starts a log write.
    ///
    /// # Panics
    /// If it says that more is durable than is on disk.
    pub fn start_write(&mut self, write: &WalWrite) {
        let header = BatchHeader::decode(write.batch.as_bytes());
        let claimed = header.expect("a batch is sealed").durable_lsn;
        self.must_have(claimed, "a batch");
        let pending = PendingWrite {
            segment: write.segment,
            offset: usize::try_from(write.offset).expect("segments are small"),
            batch: write.batch.clone(),
        };
        let before = self.writes.insert(write.batch_seq, pending);
        assert!(
            before.is_none(),
            "batch {} is written twice",
            write.batch_seq
        );
    }

    /// Completes a log write: its bytes are on disk, unless the disk lies.
    pub fn complete_write(&mut self, batch_seq: u64) {
        let write = self.take_write(batch_seq);
        if self.lies > 0 {
            self.lies -= 1;
            self.lied.push((batch_seq, write));
            return;
        }
        self.land(batch_seq, &write);
    }

    /// A log write fails: any part of it is on disk.
    pub fn fail_write(&mut self, batch_seq: u64, prng: &mut Prng) {
        let write = self.take_write(batch_seq);
        self.land_some(&write, prng);
    }

    fn must_have(&self, claimed: Lsn, who: &str) {
        let end = self.kept.end();
        assert!(
            self.has_lied() || claimed <= end,
            "{who} says that the log is durable up to {claimed}, and it is up to {end}"
        );
    }

    /// Whether it has lost writes since the last start.
    #[must_use]
    pub fn has_lied(&self) -> bool {
        !self.lied.is_empty()
    }

    /// The writes that it has lost since the last start were late, and not lost.
    pub fn own_up(&mut self) {
        for (batch_seq, write) in std::mem::take(&mut self.lied) {
            // The log may have let go of its segment since.
            if self.segments.contains_key(&write.segment) {
                self.land(batch_seq, &write);
            }
        }
    }

    fn take_write(&mut self, batch_seq: u64) -> PendingWrite {
        let write = self.writes.remove(&batch_seq);
        write.expect("a write completes once")
    }

    /// Its segment.
    fn segment_of(&mut self, write: &PendingWrite) -> &mut [u8] {
        let segment = self.segments.get_mut(&write.segment);
        segment.expect("segments are made first").make_mut()
    }

    fn land(&mut self, batch_seq: u64, write: &PendingWrite) {
        let bytes = write.batch.as_bytes();
        self.segment_of(write)[write.offset..][..bytes.len()].copy_from_slice(bytes);
        self.kept
            .landed(batch_seq, write.segment, write.batch.shared());
    }

    /// Any of its sectors.
    fn land_some(&mut self, write: &PendingWrite, prng: &mut Prng) {
        let segment = self.segment_of(write);
        let bytes = write.batch.as_bytes();
        for (sector, bytes) in bytes.chunks(SECTOR_BYTES).enumerate() {
            if prng.chance(1, 2) {
                let at = write.offset + sector * SECTOR_BYTES;
                segment[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    /// The next log writes are reported done and are not.
    pub fn lie(&mut self, writes: u32) {
        self.lies = writes;
    }

    /// What a dead process had under way for checkpoint files lands now, where they still are. Their
    /// names are never used again, so that nobody reads it.
    pub fn land_late(&mut self) {
        for (name, late) in std::mem::take(&mut self.late) {
            if let Some(file) = self.files.get_mut(&name) {
                *file = late;
            }
        }
    }

    /// Appends to a checkpoint file; not synced.
    pub fn write_chunk(&mut self, file: CheckpointFile, offset: u64, bytes: &[u8]) {
        let file = self.files.entry(file).or_default();
        let offset = usize::try_from(offset).expect("files are small");
        assert!(
            offset == file.bytes.len(),
            "chunk at {offset} of {} bytes",
            file.bytes.len()
        );
        file.bytes.make_mut().extend_from_slice(bytes);
    }

    /// Syncs checkpoint files.
    pub fn sync_files(&mut self, files: &[CheckpointFile]) {
        for file in files {
            let file = self.files.get_mut(file).expect("a synced file was written");
            file.synced = file.bytes.len();
        }
    }

    /// Unlinks checkpoint files.
    pub fn drop_files(&mut self, files: &[CheckpointFile]) {
        for file in files {
            self.files.remove(file);
        }
    }

    /// Truncates checkpoint files to these lengths.
    pub fn truncate_files(&mut self, files: &[(CheckpointFile, u64)]) {
        for (file, len) in files {
            let file = self.files.get_mut(file).expect("a file has bytes");
            let len = usize::try_from(*len).expect("files are small");
            assert!(len <= file.synced, "more than what was added is cut off");
            file.bytes.make_mut().truncate(len);
            file.synced = len;
        }
    }

    /// What a round has added to files is gone, before any of it is synced.
    pub fn give_up_files(&mut self, files: &[CheckpointFile]) {
        for name in files {
            let file = self.files.get_mut(name).expect("it was written");
            file.bytes.make_mut().truncate(file.synced);
            if file.synced == 0 {
                self.files.remove(name);
            }
        }
    }

    /// Has a checkpoint file of another disk here too, as a link to it.
    pub fn link(&mut self, name: CheckpointFile, from: &Self) {
        let file = from.files.get(&name).cloned();
        self.files.extend(file.map(|file| (name, file)));
    }

    /// Writes all that a log holds which no shard writes yet, and proves it.
    pub fn write_log(&mut self, writer: &mut LogWriter) {
        let done = writer.drain_proved(&mut |need| {
            match need {
                Need::Segment(number) => self.prepare_segment(number),
                Need::Write(write) => {
                    self.start_write(&write);
                    self.complete_write(write.batch_seq);
                }
            }
            Ok::<(), Infallible>(())
        });
        let Ok(()) = done;
    }

    /// Starts to replace the manifest.
    ///
    /// # Panics
    /// If it is none, or says that more is durable than is on disk.
    pub fn start_manifest(&mut self, bytes: Bytes) {
        let manifest = Manifest::decode(&bytes).expect("a manifest is read as it was made");
        self.must_have(manifest.durable, "a manifest");
        self.manifest_under_way = Some(bytes);
    }

    /// The manifest is replaced.
    pub fn complete_manifest(&mut self) {
        self.manifest = self.manifest_under_way.take().or(self.manifest.take());
    }

    /// A bit of a segment rots.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn rot(&mut self, segment: u64, offset: usize) {
        let segment = self.segments.get_mut(&segment);
        let segment = segment.expect("there is such a segment");
        segment.make_mut()[offset] ^= 1;
    }

    /// Does harm to the log, or to a checkpoint file; nothing if there is nothing to harm. Of the log
    /// only what a later batch proves to have been acknowledged, if that is asked for.
    pub fn harm(&mut self, harm: Harm, proved: bool, prng: &mut Prng) -> Option<Harmed> {
        if prng.chance(1, 3) {
            return self.harm_file(harm, prng);
        }
        let batches = self.batches();
        let claimed = batches.iter().map(|(_, _, header)| header.durable_lsn);
        let claimed = claimed.max().unwrap_or(Lsn(0));
        let is_proved =
            |header: &BatchHeader| header.lsn.0 + header.encoded_len() as u64 <= claimed.0;
        let targets = batches.iter();
        let targets = targets.filter(|(_, _, header)| !proved || is_proved(header));
        let targets: Vec<_> = targets.collect();
        let nth = prng.below(targets.len().max(1) as u64) as usize;
        let (number, start, header) = **targets.get(nth)?;
        Some(self.harm_log(harm, (number, start, header.encoded_len()), prng))
    }

    /// Does harm to a block of the `bytes` from `start` of segment `number` on, which are a batch.
    fn harm_log(
        &mut self,
        harm: Harm,
        (number, start, bytes): (u64, usize, usize),
        prng: &mut Prng,
    ) -> Harmed {
        let block = start + prng.below((bytes / BLOCK_BYTES) as u64) as usize * BLOCK_BYTES;
        let before = self.segments.range(..number).next_back();
        let before = before.map(|(_, segment)| segment.0[block..block + BLOCK_BYTES].to_vec());
        let batches = self.batches();
        let (from, at, _) = batches[prng.below(batches.len() as u64) as usize];
        let other = self.segments[&from].0[at..at + BLOCK_BYTES].to_vec();
        let segment = self
            .segments
            .get_mut(&number)
            .expect("there is such a segment");
        let segment = &mut segment.make_mut()[block..block + BLOCK_BYTES];
        let offset = spoil(segment, harm, before, other, prng);
        Harmed {
            segment: Some(number),
            offset: block + offset,
        }
    }

    /// Does harm to one of [`Self::told_batches`].
    pub fn harm_batch(&mut self, batch: &Told, harm: Harm, prng: &mut Prng) {
        self.harm_log(harm, (batch.segment, batch.offset, batch.bytes), prng);
    }

    /// See [`told_batches`].
    #[must_use]
    pub fn told_batches(&self) -> Vec<Told> {
        told_batches(
            self.segments
                .iter()
                .map(|(number, segment)| (*number, segment.bytes())),
        )
    }

    fn harm_file(&mut self, harm: Harm, prng: &mut Prng) -> Option<Harmed> {
        let nth = prng.below(self.files.len().max(1) as u64) as usize;
        let file = self.files.values_mut().nth(nth)?;
        let blocks = file.bytes.len() / SECTOR_BYTES;
        let block = |prng: &mut Prng| prng.below(blocks.max(1) as u64) as usize * SECTOR_BYTES;
        let (start, from) = (block(prng), block(prng));
        let other = file.bytes.0.get(from..from + SECTOR_BYTES)?.to_vec();
        let bytes = &mut file.bytes.make_mut()[start..start + SECTOR_BYTES];
        let offset = spoil(bytes, harm, None, other, prng);
        Some(Harmed {
            segment: None,
            offset: start + offset,
        })
    }

    /// So many bytes of checkpoint files rot; how many did, since there may be no files.
    pub fn rot_files(&mut self, bytes: u64, prng: &mut Prng) -> usize {
        let harmed = (0..bytes).filter_map(|_| self.harm_file(Harm::Rot, prng));
        harmed.count()
    }

    /// All batches whose header is intact: segment, offset, header.
    fn batches(&self) -> Vec<(u64, usize, BatchHeader)> {
        let mut batches = Vec::new();
        for (number, segment) in &self.segments {
            let mut offset = 0;
            while offset < segment.len() {
                let header = BatchHeader::decode(&segment.0[offset..]).ok();
                let header = header.filter(|it| offset + it.encoded_len() <= segment.len());
                offset += match header {
                    Some(header) => {
                        batches.push((*number, offset, header));
                        header.encoded_len()
                    }
                    None => BLOCK_BYTES,
                };
            }
        }
        batches
    }

    /// The process died: what was under way lands in part.
    pub fn crash(&mut self, prng: &mut Prng) {
        self.lies = 0;
        for (batch_seq, write) in std::mem::take(&mut self.writes) {
            // Often all or nothing, else any subset.
            match prng.below(4) {
                0 => {}
                1 => self.land(batch_seq, &write),
                _ => self.land_some(&write, prng),
            }
        }
        self.lied.clear();
        let unsynced = |file: &File| file.synced < file.bytes.len();
        let names: Vec<_> = self
            .files
            .iter()
            .filter(|(_, file)| unsynced(file))
            .map(|(name, _)| *name)
            .collect();
        for name in names {
            let file = self.files.get_mut(&name).expect("it was just there");
            let synced = file.synced;
            if prng.chance(1, 3) {
                file.bytes.make_mut().truncate(synced);
                if synced == 0 {
                    self.files.remove(&name);
                }
                continue;
            }
            if prng.chance(1, 3) {
                self.late.push((name, file.clone()));
            }
            for sector in file.bytes.make_mut()[synced..].chunks_mut(SECTOR_BYTES) {
                if prng.chance(1, 2) {
                    sector.fill(0);
                }
            }
        }
        if prng.chance(1, 2) {
            self.complete_manifest();
        }
        self.manifest_under_way = None;
    }

    /// The segments, ascending, as recovery reads them.
    pub fn segments(&self) -> impl Iterator<Item = (u64, Bytes)> {
        self.segments
            .iter()
            .map(|(number, segment)| (*number, segment.bytes()))
    }

    /// Bytes of a segment; `None` if there is no such segment any more.
    #[must_use]
    pub fn read_log(&self, segment: u64, offset: u32, len: u32) -> Option<Bytes> {
        let (offset, len) = (offset as usize, len as usize);
        let bytes = self.segments.get(&segment)?.0.get(offset..offset + len)?;
        Some(Bytes::copy_from_slice(bytes))
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> Option<&Bytes> {
        self.manifest.as_ref()
    }

    /// The checkpoint files with their lengths.
    #[must_use]
    pub fn files(&self) -> BTreeMap<CheckpointFile, u64> {
        self.files
            .iter()
            .map(|(name, file)| (*name, file.bytes.len() as u64))
            .collect()
    }

    /// Bytes that all segments and checkpoint files take, spares left out.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let segments = self.segments.len() * self.segment_bytes;
        let files: usize = self.files.values().map(|file| file.bytes.len()).sum();
        (segments + files) as u64
    }

    /// Reads from the checkpoint file of this number.
    ///
    /// # Errors
    /// If it is not there, or cannot be read.
    pub fn read(&self, number: u64, offset: u64, len: usize) -> Result<Bytes, String> {
        if self.reads_fail {
            return Err(format!("shard {}: input/output error", ShardId(0)));
        }
        let kinds = [CheckpointFile::Run(number), CheckpointFile::Payload(number)];
        let file = kinds.iter().find_map(|name| self.files.get(name));
        let file = file.ok_or_else(|| format!("shard {}: no such file", ShardId(0)))?;
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(file.bytes.len());
        let end = start.saturating_add(len).min(file.bytes.len());
        Ok(file.bytes.bytes().slice(start..end))
    }
}

/// Does harm to a block; where.
fn spoil(
    block: &mut [u8],
    harm: Harm,
    before: Option<Vec<u8>>,
    other: Vec<u8>,
    prng: &mut Prng,
) -> usize {
    match harm {
        Harm::Rot => {
            let at = prng.below(block.len() as u64) as usize;
            block[at] ^= 1 << prng.below(8);
            return at;
        }
        Harm::Zeroed => block.fill(0),
        Harm::Misdirected => block.copy_from_slice(&other),
        Harm::Stale => match before {
            Some(before) => block.copy_from_slice(&before),
            None => block.fill(0),
        },
    }
    0
}
