//! The disk of one shard: segments, checkpoint files, a manifest; and what a crash does to them.

use crate::base::ids::ShardId;
use crate::base::prng::Prng;
use crate::shard::effect::CheckpointFile;
use crate::wal::writer::WalWrite;
use bytes::Bytes;
use std::collections::BTreeMap;

/// A torn write is torn between sectors of this size.
const SECTOR_BYTES: usize = 512;

/// A log write under way.
#[derive(Clone)]
struct PendingWrite {
    segment: u64,
    offset: usize,
    bytes: Vec<u8>,
}

/// A checkpoint file.
#[derive(Clone, Default)]
struct File {
    bytes: Vec<u8>,
    /// Everything before this many bytes is synced.
    synced: usize,
}

/// The disk of one shard. A clone is an image of it.
#[derive(Clone)]
pub struct SimDisk {
    segment_bytes: usize,
    segments: BTreeMap<u64, Vec<u8>>,
    spares: Vec<Vec<u8>>,
    writes: BTreeMap<u64, PendingWrite>,
    files: BTreeMap<CheckpointFile, File>,
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
            manifest: None,
            manifest_under_way: None,
        }
    }

    /// Makes a segment out of a spare, stale bytes and all, or of zeros.
    pub fn prepare_segment(&mut self, number: u64) {
        let bytes = self
            .spares
            .pop()
            .unwrap_or_else(|| vec![0; self.segment_bytes]);
        self.segments.entry(number).or_insert(bytes);
    }

    /// Turns segments into spares.
    pub fn drop_segments(&mut self, numbers: &[u64]) {
        self.spares.extend(
            numbers
                .iter()
                .filter_map(|number| self.segments.remove(number)),
        );
    }

    /// Starts a log write.
    pub fn start_write(&mut self, write: &WalWrite) {
        let mut bytes = vec![0; write.batch.encoded_len()];
        write.batch.encode_into(&mut bytes);
        let offset = usize::try_from(write.offset).expect("segments are small");
        let pending = PendingWrite {
            segment: write.segment,
            offset,
            bytes,
        };
        let before = self.writes.insert(write.batch_seq, pending);
        assert!(
            before.is_none(),
            "batch {} is written twice",
            write.batch_seq
        );
    }

    /// Completes a log write: its bytes are on disk.
    pub fn complete_write(&mut self, batch_seq: u64) {
        let write = self
            .writes
            .remove(&batch_seq)
            .expect("a write completes once");
        self.land(&write, |_| true);
    }

    fn land(&mut self, write: &PendingWrite, mut lands: impl FnMut(usize) -> bool) {
        let segment = self
            .segments
            .get_mut(&write.segment)
            .expect("segments are made first");
        for (sector, bytes) in write.bytes.chunks(SECTOR_BYTES).enumerate() {
            if lands(sector) {
                let at = write.offset + sector * SECTOR_BYTES;
                segment[at..at + bytes.len()].copy_from_slice(bytes);
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
        file.bytes.extend_from_slice(bytes);
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

    /// Starts to replace the manifest.
    pub fn start_manifest(&mut self, bytes: Bytes) {
        self.manifest_under_way = Some(bytes);
    }

    /// The manifest is replaced.
    pub fn complete_manifest(&mut self) {
        self.manifest = self.manifest_under_way.take().or(self.manifest.take());
    }

    /// A bit of a segment rots. Nothing of the simulated runs does that yet.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn rot(&mut self, segment: u64, offset: usize) {
        let segment = self.segments.get_mut(&segment);
        segment.expect("there is such a segment")[offset] ^= 1;
    }

    /// The process died: what was under way lands in part.
    pub fn crash(&mut self, prng: &mut Prng) {
        for (_, write) in std::mem::take(&mut self.writes) {
            // Often all or nothing, else any subset.
            let fate = prng.below(4);
            self.land(&write, |_| match fate {
                0 => false,
                1 => true,
                _ => prng.chance(1, 2),
            });
        }
        let unsynced = |file: &File| file.synced < file.bytes.len();
        let names: Vec<_> = self
            .files
            .iter()
            .filter(|(_, file)| unsynced(file))
            .map(|(name, _)| *name)
            .collect();
        for name in names {
            if prng.chance(1, 3) {
                self.files.remove(&name);
                continue;
            }
            let file = self.files.get_mut(&name).expect("it was just there");
            let synced = file.synced;
            for sector in file.bytes[synced..].chunks_mut(SECTOR_BYTES) {
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
            .map(|(number, bytes)| (*number, Bytes::copy_from_slice(bytes)))
    }

    /// Bytes of a segment; `None` if there is no such segment any more.
    #[must_use]
    pub fn read_log(&self, segment: u64, offset: u32, len: u32) -> Option<Bytes> {
        let (offset, len) = (offset as usize, len as usize);
        let bytes = self.segments.get(&segment)?.get(offset..offset + len)?;
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
    /// If it is not there.
    pub fn read(&self, number: u64, offset: u64, len: usize) -> Result<Bytes, String> {
        let kinds = [CheckpointFile::Run(number), CheckpointFile::Payload(number)];
        let file = kinds.iter().find_map(|name| self.files.get(name));
        let file = file.ok_or_else(|| format!("shard {}: no such file", ShardId(0)))?;
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(file.bytes.len());
        let end = start.saturating_add(len).min(file.bytes.len());
        Ok(Bytes::copy_from_slice(&file.bytes[start..end]))
    }
}
