//! Performs `WriteWal` in order, and `ReadLog`; decides nothing.
//!
//! What the kernel promises and what we make of it:
//! - A write with O_DIRECT | O_DSYNC that returned is on the disk, with what is needed to find it,
//!   so its completion is `WalSynced`. Buffers, offsets and lengths are multiples of 4 KiB.
//! - The blocks are there: segments are reserved, and but for those that were waited for zeroed, before they
//!   get their name (`segments.rs`), so a write allocates nothing. Only the first into blocks that were
//!   reserved alone needs a second flush, for which O_DSYNC sees.
//! - Several writes are under way at once and may end in any order; which prefix is durable is for
//!   the engine to say.
//! - Without descriptors a segment is not opened but waited for; its batches wait with it.
//! - After a failed or short write nobody knows what the disk holds. It is not tried again: the
//!   process ends by name and recovery decides.
//!
//! The descriptor holds an exclusive lock of its file as long as a write is under way, even if the
//! process is dead by then: a successor waits for it.

use crate::base::code::Code;
use crate::base::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use crate::base::report::Report;
use crate::runtime::lock::holder_retry;
use crate::runtime::sys;
use crate::wal::pieces::Piece;
use crate::wal::writer::WalWrite;
use bytes::Bytes;
use glommio::io::{DmaFile, OpenOptions};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Without descriptors, opening is tried again after this.
const DESCRIPTORS_RETRY: Duration = Duration::from_millis(20);
/// Batches go to the current segment, or the next; older ones are closed.
const OPEN_SEGMENTS: usize = 3;

/// The open segments of a shard.
pub struct WalWriter {
    folder: PathBuf,
    open: RefCell<BTreeMap<u64, Rc<DmaFile>>>,
}

impl WalWriter {
    /// For the log in `folder`.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            open: RefCell::default(),
        }
    }

    /// Opens a segment, whose file is whole, for batches.
    ///
    /// # Errors
    /// Ends the process.
    pub async fn open(&self, number: u64) -> Result<Rc<DmaFile>, Report> {
        if let Some(file) = self.open.borrow().get(&number) {
            return Ok(file.clone());
        }
        let path = self.folder.join(format!("{number:016x}.seg"));
        let file = loop {
            let opened = OpenOptions::new()
                // Without it glommio's first look at a file goes wrong.
                .read(true)
                .write(true)
                .custom_flags(libc::O_DSYNC)
                .dma_open(&path)
                .await;
            match opened {
                Ok(file) => break Rc::new(file),
                Err(error) if sys::lacks_descriptors(error.raw_os_error()) => {
                    glommio::timer::sleep(DESCRIPTORS_RETRY).await;
                }
                Err(error) => return Err(failed(&path, "open", &error.to_string())),
            }
        };
        let begun = Instant::now();
        // A segment used again may still be closing under its old name; or another batch was first.
        while !sys::try_lock(&*file).map_err(|error| failed(&path, "lock", &error.to_string()))? {
            if let Some(file) = self.open.borrow().get(&number) {
                return Ok(file.clone());
            }
            glommio::timer::sleep(holder_retry(begun.elapsed())).await;
        }
        let mut open = self.open.borrow_mut();
        open.insert(number, file.clone());
        while open.len() > OPEN_SEGMENTS {
            open.pop_first();
        }
        Ok(file)
    }

    /// Reads a piece of the log, whose file may be gone or be used again: then nothing, or anything. A
    /// fault of the disk is told and ends nothing: who needed the piece gets a checkpoint.
    pub async fn read(&self, piece: &Piece) -> Option<Bytes> {
        let path = self.folder.join(format!("{:016x}.seg", piece.segment));
        let file = OpenOptions::new().read(true).dma_open(&path).await.ok()?;
        let len = piece.bytes as usize;
        let read = file.read_at_aligned(piece.offset.into(), len).await;
        let bytes = match read {
            Ok(read) => Some(Bytes::copy_from_slice(&read)),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, offset = piece.offset, %error, "the log cannot be read again");
                None
            }
        };
        // Dropped, it would be closed all the same, with a complaint.
        let _ = file.close().await;
        bytes
    }

    /// Forgets segments that are dropped.
    pub fn close(&self, numbers: &[u64]) {
        self.open
            .borrow_mut()
            .retain(|number, _| !numbers.contains(number));
    }

    /// Writes a batch; when this returns, it is durable.
    ///
    /// # Errors
    /// Ends the process.
    pub async fn write(&self, write: &WalWrite) -> Result<(), Report> {
        let file = self.open(write.segment).await?;
        let bytes = write.batch.encoded_len();
        let end = write.offset + bytes as u64;
        assert!(
            bytes.is_multiple_of(BLOCK_BYTES) && write.offset.is_multiple_of(BLOCK_BYTES as u64),
            "a batch of {bytes} bytes at {} is not aligned",
            write.offset
        );
        assert!(
            end <= SEGMENT_BYTES as u64,
            "a batch ends at {end}, beyond its segment"
        );
        let mut buffer = file.alloc_dma_buffer(bytes);
        write.batch.encode_into(buffer.as_bytes_mut());
        let path = || self.folder.join(format!("{:016x}.seg", write.segment));
        match file.write_at(buffer, write.offset).await {
            Ok(written) if written == bytes => Ok(()),
            Ok(written) => {
                let text = format!("{written} of {bytes} bytes at {}", write.offset);
                Err(failed(&path(), "write all of", &text))
            }
            Err(error) => {
                let text = format!("{bytes} bytes at {}: {error}", write.offset);
                Err(failed(&path(), "write to", &text))
            }
        }
    }
}

fn failed(path: &Path, verb: &str, error: &str) -> Report {
    let what = format!("cannot {verb} the log, {}", path.display());
    Report::error(Code::LogWriteFailed, what)
        .location(error.to_owned())
        .why("after a failed write nobody knows what the disk holds, so nothing is tried again")
        .fix("look for errors of the disk (dmesg), then start again: nothing acknowledged is lost")
}
