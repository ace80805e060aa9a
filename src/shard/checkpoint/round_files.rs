//! The files of one round on their way to the disk: pages, nodes and bodies in, chunks out.
//!
//! A checkpoint round has them, and a checkpoint that is brought here: each under a number of its own, so that
//! both may be under way.

use crate::base::ids::{GroupId, JobId};
use crate::queue::view::{BodyLocation, StoredPage};
use crate::queue::{Piece, StoredBody};
use crate::shard::bases::add_piece;
use crate::shard::effect::{CheckpointFile, Effect};
use crate::shard::engine::ShardEngine;
use crate::snapshot::builder::{BuildError, PayloadBuilder, RunBuilder};
use crate::snapshot::layout::{FileKind, Root, RootRef};
use bytes::Bytes;

/// Bytes on the way to the disk; what makes more waits beyond it.
const OUTSTANDING_BYTES_MAX: usize = 4 << 20;
/// A payload file is closed at this size, so that dead ones go piece by piece.
const PAYLOAD_FILE_BYTES: u64 = 64 << 20;

/// The files of a round.
pub(in crate::shard) struct RoundFiles {
    /// The number of the round.
    round: u64,
    run: RunBuilder,
    run_file: u64,
    payload: Option<(u64, PayloadBuilder)>,
    files: Vec<CheckpointFile>,
    outstanding: usize,
    /// The body that is being written.
    encoded: Vec<u8>,
}

impl RoundFiles {
    pub(in crate::shard) fn round(&self) -> u64 {
        self.round
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
    /// Begins the files of a round of this number.
    pub(in crate::shard) fn begin_files(&mut self, round: u64) -> RoundFiles {
        let header = self.checkpoints.header(FileKind::Run);
        RoundFiles {
            round,
            run: RunBuilder::new(&header),
            run_file: header.file,
            payload: None,
            files: vec![CheckpointFile::Run(header.file)],
            outstanding: 0,
            encoded: Vec::new(),
        }
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
        let (_, payload) = to.payload.get_or_insert_with(|| {
            let header = self.checkpoints.header(FileKind::Payload);
            to.files.push(CheckpointFile::Payload(header.file));
            (header.file, PayloadBuilder::new(&header))
        });
        let place = payload.add_body(job, &to.encoded);
        if payload.len() >= PAYLOAD_FILE_BYTES {
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
        if let Some((file, mut payload)) = of.payload.take() {
            payload.finish();
            while let Some((offset, bytes)) = payload.take_output() {
                self.emit_chunk(of, CheckpointFile::Payload(file), offset, bytes);
            }
        }
    }

    /// Sends what is made to the disk, as far as it fills blocks.
    pub(in crate::shard) fn emit_chunks(&mut self, of: &mut RoundFiles) {
        let run = CheckpointFile::Run(of.run_file);
        while let Some((offset, bytes)) = of.run.take_output() {
            self.emit_chunk(of, run, offset, bytes);
        }
        if let Some((file, mut payload)) = of.payload.take() {
            while let Some((offset, bytes)) = payload.take_output() {
                self.emit_chunk(of, CheckpointFile::Payload(file), offset, bytes);
            }
            of.payload = Some((file, payload));
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
