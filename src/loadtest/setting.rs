//! Where and how a measurement runs: the folder of its data, and the signal that ends it early.

use crate::base::code::Code;
use crate::base::limits::PAYLOAD_BYTES_DEFAULT_MAX;
use crate::base::report::Report;
use crate::loadtest::disk_probe::DiskProbe;
use crate::loadtest::node::TempFolder;
use crate::runtime::sys;
use crate::workload::PAYLOAD_BYTES_MIN;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::{Path, PathBuf};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// Works in a place of its own, with a probe of its disk beside it, until that is done or a signal ends
/// it, if signals are to be obeyed.
///
/// # Errors
/// If there is no such place, the probe cannot write there, a signal came, or what the work says.
pub(super) fn run<T>(
    data_dir: Option<&Path>,
    obey_signals: bool,
    work: impl AsyncFnOnce(&Place, &DiskProbe) -> Result<T, Report>,
) -> Result<T, Report> {
    let place = Place::prepare(data_dir)?;
    let probe = DiskProbe::start(&place.path().join("disk-probe"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| no_runtime(&error))?;
    let done = runtime.block_on(LocalSet::new().run_until(async {
        tokio::select! {
            done = work(&place, &probe) => done,
            () = signalled(obey_signals) => Err(stopped()),
        }
    }));
    // Waits for nodes that are being ended or started; only then may the data go.
    drop(runtime);
    match probe.failure() {
        Some(failure) => {
            let report = Report::error(Code::DirectoryUnusable, "the disk probe cannot write");
            Err(report.location(failure))
        }
        None => done,
    }
}

/// # Errors
/// If a payload cannot have so many bytes.
pub(super) fn check_payload(bytes: usize) -> Result<(), Report> {
    let (least, most) = (PAYLOAD_BYTES_MIN, PAYLOAD_BYTES_DEFAULT_MAX);
    if (least..=most).contains(&bytes) {
        return Ok(());
    }
    let what = format!("--payload must be {least} to {most} bytes");
    Err(Report::error(Code::BadArgument, what))
}

fn no_runtime(error: &std::io::Error) -> Report {
    Report::error(Code::Bug, "cannot start what waits for clients").location(error.to_string())
}

pub(super) fn stopped() -> Report {
    Report::error(Code::Stopping, "stopped by a signal: the node was ended")
}

/// Where the data goes.
#[derive(Debug)]
pub(super) enum Place {
    /// Goes with this.
    Ours(TempFolder),
    /// Stays.
    Given(PathBuf),
}

impl Place {
    /// A new folder on a disk, or the given one, which must be empty.
    ///
    /// # Errors
    /// If it cannot be made, or holds something.
    fn prepare(given: Option<&Path>) -> Result<Self, Report> {
        let Some(path) = given else {
            return TempFolder::new(&disk_folder()).map(Self::Ours);
        };
        let unusable = |what: String, why: String| {
            Report::error(Code::DirectoryUnusable, what)
                .location(why)
                .fix("a new folder on a disk that you may write to")
        };
        let shown = path.display();
        std::fs::create_dir_all(path)
            .map_err(|error| unusable(format!("cannot make {shown}"), error.to_string()))?;
        let mut entries = std::fs::read_dir(path)
            .map_err(|error| unusable(format!("cannot read {shown}"), error.to_string()))?;
        match entries.next() {
            None => Ok(Self::Given(path.to_owned())),
            Some(_) => Err(unusable(
                format!("{shown} is not empty"),
                "jobs of another run would be counted".to_owned(),
            )),
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Ours(folder) => folder.path(),
            Self::Given(path) => path,
        }
    }
}

/// Cargo's target folder if the program lies in one, else where we are; never one in memory.
fn disk_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let target = program
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists());
    let durable = |folder: &&Path| sys::file_system(folder).is_ok_and(|kind| !kind.is_memory());
    target
        .filter(durable)
        .map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Ends at the first signal that asks the program to end.
async fn signalled(obey: bool) {
    if !obey {
        return std::future::pending().await;
    }
    let (sender, received) = oneshot::channel();
    match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        Ok(mut signals) => {
            std::thread::spawn(move || {
                if signals.forever().next().is_some() {
                    // Nobody listens once the run has ended.
                    let _ = sender.send(());
                }
            });
        }
        Err(error) => tracing::warn!(%error, "signals end the program without clearing up"),
    }
    if received.await.is_err() {
        std::future::pending::<()>().await;
    }
}
