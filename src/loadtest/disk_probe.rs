//! Asks the disk every 10 ms how it is: a 4 KiB O_DSYNC write on a file of its own.
//!
//! Shared disks stall for up to seconds, whatever runs on them. A round during which the probe
//! stalled is marked, so that a figure can be told apart from the disk that it was taken on.

use crate::base::code::Code;
use crate::base::report::Report;
use hdrhistogram::Histogram;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(10);
/// A write that takes longer is a stall.
const STALL: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Seen {
    /// When the write that is under way began.
    writing_since: Option<Instant>,
    stalls: Vec<(Instant, Instant)>,
    writes_us: Histogram<u64>,
    failure: Option<String>,
}

/// The probe; ends when it is dropped.
#[derive(Debug)]
pub(super) struct DiskProbe {
    seen: Arc<Mutex<Seen>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DiskProbe {
    /// Starts to write to `file`, which is made.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn start(path: &Path) -> Result<Self, Report> {
        let open = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true);
            let file = options.custom_flags(libc::O_DSYNC).open(path)?;
            // From now on a write changes no metadata.
            file.write_all_at(&[0; 4096], 0)?;
            file.sync_all()?;
            Ok(file)
        };
        let file = open().map_err(|error: std::io::Error| {
            Report::error(
                Code::DirectoryUnusable,
                format!("cannot write {}", path.display()),
            )
            .location(error.to_string())
            .fix("--data-dir DIR with a folder on a disk that you may write to")
        })?;
        let seen = Arc::new(Mutex::new(Seen {
            writing_since: None,
            stalls: Vec::new(),
            writes_us: new_histogram(),
            failure: None,
        }));
        let ended = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (seen, ended) = (seen.clone(), ended.clone());
            move || probe(&file, &seen, &ended)
        });
        Ok(Self {
            seen,
            ended,
            thread: Some(thread),
        })
    }

    /// Whether a write stalled at any time between these two.
    #[must_use]
    pub(super) fn stalled_between(&self, from: Instant, to: Instant) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let overlaps = |begun: Instant, ended: Instant| begun <= to && ended >= from;
        let now = Instant::now();
        let under_way = seen
            .writing_since
            .is_some_and(|since| now - since > STALL && overlaps(since, now));
        under_way
            || seen
                .stalls
                .iter()
                .any(|(begun, ended)| overlaps(*begun, *ended))
    }

    /// How long its writes took, in microseconds.
    #[must_use]
    pub(super) fn writes_us(&self) -> Histogram<u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.writes_us.clone()
    }

    /// Why it ended before its time.
    #[must_use]
    pub(super) fn failure(&self) -> Option<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.failure.clone()
    }
}

impl Drop for DiskProbe {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread of ours that does not panic.
            let _ = thread.join();
        }
    }
}

/// A histogram of up to an hour in microseconds, four digits exact.
#[must_use]
pub(super) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 4).expect("the bounds are sound")
}

fn probe(file: &File, seen: &Mutex<Seen>, ended: &AtomicBool) {
    let lock = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    let mut next = Instant::now();
    while !ended.load(Relaxed) {
        let begun = Instant::now();
        lock().writing_since = Some(begun);
        let written = file.write_all_at(&[1; 4096], 0);
        let done = Instant::now();
        let mut state = lock();
        state.writing_since = None;
        state
            .writes_us
            .saturating_record((done - begun).as_micros() as u64);
        if done - begun > STALL {
            state.stalls.push((begun, done));
        }
        if let Err(error) = written {
            state.failure = Some(error.to_string());
            return;
        }
        drop(state);
        next = (next + EVERY).max(done);
        std::thread::sleep(next - done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::node::TempFolder;

    #[test]
    fn writes_and_finds_stalls_only_where_they_were() {
        let folder = TempFolder::new(&std::env::temp_dir()).expect("it can be made");
        let probe = DiskProbe::start(&folder.path().join("probe")).expect("it can be written");
        let at = |ms| Instant::now() + Duration::from_secs(1000) + Duration::from_millis(ms);
        let (begun, ended) = (at(100), at(200));
        probe
            .seen
            .lock()
            .expect("sound")
            .stalls
            .push((begun, ended));
        assert!(probe.stalled_between(begun - STALL, begun));
        assert!(probe.stalled_between(begun + STALL, begun + STALL));
        assert!(!probe.stalled_between(ended + STALL, ended + STALL * 2));
        while probe.writes_us().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(probe.failure(), None);
    }
}
