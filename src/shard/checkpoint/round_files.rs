//! The files of one round on their way to the disk: pages, nodes and bodies in, chunks out.
//!
//! A checkpoint round has them, and a checkpoint that is brought here: each under a number of its own, so that
//! both may be under way.
//!
//! A checkpoint round goes on with the files of the one before, behind what is durable of them, until they are
//! a certain part of all that is alive. So there are some hundred files, and some twenty more of each kind where
//! twice as much waits: a start lists them, and roots name all that they are in. They are no larger than that, since
//! a file whose jobs are done one after the other keeps its room until the last is. A checkpoint that is brought here has files of its own, as it may
//! be under way for longer than a round.

use crate::base::ids::{GroupId, JobId};
use crate::queue::view::{BodyLocation, StoredPage};
use crate::queue::{Piece, StoredBody};
use crate::shard::bases::add_piece;
use crate::shard::effect::{CheckpointFile, Effect};
use crate::shard::engine::ShardEngine;
use crate::snapshot::builder::{BuildError, PayloadBuilder, RunBuilder};
use crate::snapshot::layout::{FileKind, Root, RootRef};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes on the way to the disk; what makes more waits beyond it.
const OUTSTANDING_BYTES_MAX: usize = 4 << 20;
/// A payload file is closed at this size, or when nothing is added to it any more if that is later, so that dead
/// ones go piece by piece.
const PAYLOAD_FILE_BYTES: u64 = 64 << 20;
/// The next round adds to a file of less than this part of what is alive in files of its kind.
const FILES_ALIVE: u64 = 32;

/// With what file of a kind the next round goes on.
#[derive(Default)]
pub(super) struct Tail {
    /// That to which bytes were added last, all durable.
    file: Option<u64>,
    /// Nothing is added to a file of so many bytes.
    full_at: u64,
}

impl Tail {
    /// So many bytes are alive in files of this kind.
    pub(super) fn alive(&mut self, bytes: u64) {
        self.full_at = bytes / FILES_ALIVE;
    }

    /// The file, if it is still there, is not among those that are to be left, and is short enough.
    fn to_resume(&self, left: &BTreeSet<u64>, len: impl Fn(u64) -> Option<u64>) -> Option<Resumed> {
        let file = self.file.filter(|file| !left.contains(file))?;
        let len = len(file).filter(|len| *len < self.full_at)?;
        Some(Resumed { file, len })
    }
}

/// A file that an earlier round has made, with the length that it had.
#[derive(Clone, Copy)]
struct Resumed {
    file: u64,
    len: u64,
}

/// The files of a round.
pub(in crate::shard) struct RoundFiles {
    /// The number of the round.
    round: u64,
    run: RunBuilder,
    payload: Option<PayloadBuilder>,
    /// Where bodies go on that there may be.
    payload_tail: Option<Resumed>,
    files: Vec<CheckpointFile>,
    /// Those of them that an earlier round has made, with the length that they had.
    resumed: BTreeMap<CheckpointFile, u64>,
    outstanding: usize,
    /// The body that is being written.
    encoded: Vec<u8>,
}

impl RoundFiles {
    pub(in crate::shard) fn round(&self) -> u64 {
        self.round
    }

    /// Those that an earlier round has made, with the length that they had.
    pub(super) fn resumed(&self) -> impl Iterator<Item = (CheckpointFile, u64)> {
        self.resumed.iter().map(|(file, len)| (*file, *len))
    }

    /// Those that it has made.
    pub(super) fn made(&self) -> Vec<CheckpointFile> {
        let is_made = |file: &&CheckpointFile| !self.resumed.contains_key(file);
        self.files.iter().filter(is_made).copied().collect()
    }

    /// All of them, so far.
    pub(in crate::shard) fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    /// Whether so much is on the way to the disk that no more is to be made.
    pub(in crate::shard) fn is_full(&self) -> bool {
        self.outstanding >= OUTSTANDING_BYTES_MAX
    }

    /// A chunk is on its way no more.
    pub(in crate::shard) fn chunk_written(&mut self, bytes: usize) {
        self.outstanding = self.outstanding.saturating_sub(bytes);
    }

    /// Adds a page or a node of a group.
    ///
    /// # Panics
    /// If a page is 4 GiB or longer.
    pub(in crate::shard) fn add_piece(&mut self, group: GroupId, piece: &Piece) -> StoredPage {
        let added = add_piece(&mut self.run, group, piece);
        added.expect("a page of a leaf, a session or a key bucket is far below 4 GiB")
    }

    /// Adds the root of a group.
    ///
    /// # Errors
    /// If it would be 4 GiB or longer.
    pub(in crate::shard) fn add_root(&mut self, root: Root) -> Result<RootRef, BuildError> {
        self.run.add_root(root)
    }
}

impl ShardEngine {
    /// Begins files of its own for a round of this number.
    pub(in crate::shard) fn begin_files(&mut self, round: u64) -> RoundFiles {
        self.files_from(round, None, None)
    }

    /// Begins the files of a checkpoint round of this number.
    pub(super) fn resume_files(&mut self, round: u64) -> RoundFiles {
        let checkpoints = &self.checkpoints;
        let left = &checkpoints.rewrite;
        let len = |file| checkpoints.files.get(&file).copied();
        let (runs, payloads) = (&checkpoints.run_tail, &checkpoints.payload_tail);
        let run = runs.to_resume(&left.runs, |file| len(CheckpointFile::Run(file)));
        let payload = payloads.to_resume(&left.payloads, |file| len(CheckpointFile::Payload(file)));
        self.files_from(round, run, payload)
    }

    fn files_from(
        &mut self,
        round: u64,
        run: Option<Resumed>,
        payload_tail: Option<Resumed>,
    ) -> RoundFiles {
        let mut resumed = BTreeMap::new();
        let run = match run {
            Some(Resumed { file, len }) => {
                resumed.insert(CheckpointFile::Run(file), len);
                RunBuilder::resume(file, len)
            }
            None => RunBuilder::new(&self.checkpoints.header(FileKind::Run)),
        };
        RoundFiles {
            round,
            files: vec![CheckpointFile::Run(run.file())],
            run,
            payload: None,
            payload_tail,
            resumed,
            outstanding: 0,
            encoded: Vec::new(),
        }
    }

    /// The files of a checkpoint round are durable: the next may go on with them.
    pub(super) fn note_tails(&mut self, files: &RoundFiles) {
        for file in &files.files {
            let (tail, file) = match *file {
                CheckpointFile::Run(file) => (&mut self.checkpoints.run_tail, file),
                CheckpointFile::Payload(file) => (&mut self.checkpoints.payload_tail, file),
            };
            tail.file = Some(file);
        }
    }

    /// A checkpoint round is given up, and the disk has its files as they were before: those that it went on
    /// with are as long as then. The next begins new ones.
    pub(super) fn forget_round(&mut self, files: &RoundFiles) {
        self.checkpoints.forget(&files.made());
        self.checkpoints.files.extend(files.resumed());
        self.checkpoints.run_tail.file = None;
        self.checkpoints.payload_tail.file = None;
    }

    /// Adds the body of a job; where it lies, and how many bytes it takes.
    pub(in crate::shard) fn add_body(
        &mut self,
        to: &mut RoundFiles,
        job: JobId,
        body: &StoredBody,
    ) -> (BodyLocation, usize) {
        to.encoded.clear();
        body.encode_into(&mut to.encoded);
        let payload = to.payload.get_or_insert_with(|| {
            let payload = match to.payload_tail.take() {
                Some(Resumed { file, len }) => {
                    to.resumed.insert(CheckpointFile::Payload(file), len);
                    PayloadBuilder::resume(file, len)
                }
                None => PayloadBuilder::new(&self.checkpoints.header(FileKind::Payload)),
            };
            to.files.push(CheckpointFile::Payload(payload.file()));
            payload
        });
        let place = payload.add_body(job, &to.encoded);
        if payload.len() >= PAYLOAD_FILE_BYTES.max(self.checkpoints.payload_tail.full_at) {
            self.close_payload_file(to);
        }
        let at = BodyLocation {
            file: place.file,
            offset: place.offset,
            len: place.len,
        };
        (at, to.encoded.len())
    }

    fn close_payload_file(&mut self, of: &mut RoundFiles) {
        if let Some(mut payload) = of.payload.take() {
            payload.finish();
            self.emit_payload(of, &mut payload);
        }
    }

    /// Sends what is made to the disk, as far as it fills blocks.
    pub(in crate::shard) fn emit_chunks(&mut self, of: &mut RoundFiles) {
        let run = CheckpointFile::Run(of.run.file());
        while let Some((offset, bytes)) = of.run.take_output() {
            self.emit_chunk(of, run, offset, bytes);
        }
        if let Some(mut payload) = of.payload.take() {
            self.emit_payload(of, &mut payload);
            of.payload = Some(payload);
        }
    }

    fn emit_payload(&mut self, of: &mut RoundFiles, payload: &mut PayloadBuilder) {
        let file = CheckpointFile::Payload(payload.file());
        while let Some((offset, bytes)) = payload.take_output() {
            self.emit_chunk(of, file, offset, bytes);
        }
    }

    fn emit_chunk(&mut self, of: &mut RoundFiles, file: CheckpointFile, offset: u64, bytes: Bytes) {
        of.outstanding += bytes.len();
        self.checkpoints.grow(file, offset + bytes.len() as u64);
        self.counters.checkpoint_bytes_total += bytes.len() as u64;
        self.effects.push(Effect::WriteChunk {
            round: of.round,
            file,
            offset,
            bytes,
        });
    }

    /// Sends the rest to the disk, which is then asked to sync the files that are left in `files`.
    pub(in crate::shard) fn end_files(
        &mut self,
        of: &mut RoundFiles,
        keep: impl Fn(&CheckpointFile) -> bool,
    ) {
        of.run.finish();
        self.close_payload_file(of);
        self.emit_chunks(of);
        let round = of.round;
        let files = of.files.iter().copied().filter(keep).collect();
        self.effects.push(Effect::SyncFiles { round, files });
    }

    /// The files of a round that is given up go.
    pub(in crate::shard) fn drop_files_of(&mut self, files: &[CheckpointFile]) {
        self.checkpoints.forget(files);
        let files = files.to_vec();
        self.effects.push(Effect::DropFiles { files });
    }
}
