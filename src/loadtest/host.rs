//! What a figure was measured on: without it a number says nothing.

use crate::runtime::{preflight, sys};
use serde::Serialize;
use std::path::Path;
use std::process::Command;

/// The machine, the disk and the build.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HostFacts {
    /// Cores that the process may use.
    pub cores: usize,
    /// Model of the processor.
    pub cpu: String,
    /// Release of the kernel.
    pub kernel: String,
    /// File system of the data directory.
    pub file_system: String,
    /// Bytes that may be locked.
    pub memlock: u64,
    /// Whether the buffers of a shard on each core may be registered with io_uring.
    pub registered_buffers: bool,
    /// Version of rrq.
    pub version: &'static str,
    /// The source around the program, if git knows it.
    pub commit: Option<String>,
    /// The command line.
    pub command: String,
}

impl HostFacts {
    /// Asks the kernel.
    #[must_use]
    fn gather(data: &Path) -> Self {
        Self {
            cores: preflight::cores(),
            cpu: cpu_model(),
            kernel: first_line("/proc/sys/kernel/osrelease"),
            file_system: file_system(data),
            memlock: sys::memlock_limit(),
            registered_buffers: preflight::buffers_fit(preflight::per_core()),
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            command: command(),
        }
    }

    /// Asks the kernel, and shows what it said.
    #[must_use]
    pub(super) fn told(data: &Path, say: fn(&str)) -> Self {
        let facts = Self::gather(data);
        say(&facts.lines());
        facts
    }

    /// Two lines for people.
    #[must_use]
    fn lines(&self) -> String {
        format!(
            "host     {} x {}, Linux {}, {}, memlock {}, buffers {}\nbuild    rrq {}, commit {}, {}",
            self.cores,
            self.cpu,
            self.kernel,
            self.file_system,
            self.memlock_shown(),
            self.buffers_shown(),
            self.version,
            self.commit_shown(),
            self.command,
        )
    }

    /// Name and value of each.
    #[must_use]
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        vec![
            ("CPU", format!("{} x {}", self.cores, self.cpu)),
            ("kernel", self.kernel.clone()),
            ("file system", self.file_system.clone()),
            ("memlock", self.memlock_shown()),
            ("io_uring buffers", self.buffers_shown().to_owned()),
            ("rrq", self.version.to_owned()),
            ("commit", self.commit_shown().to_owned()),
            ("command", self.command.clone()),
        ]
    }

    fn memlock_shown(&self) -> String {
        match self.memlock {
            u64::MAX => "unlimited".to_owned(),
            bytes => format!("{} KiB", bytes >> 10),
        }
    }

    fn buffers_shown(&self) -> &'static str {
        match self.registered_buffers {
            true => "registered",
            false => "not registered",
        }
    }

    fn commit_shown(&self) -> &str {
        self.commit.as_deref().unwrap_or("unknown")
    }
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    model.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Type and device of the mount that holds a path.
fn file_system(path: &Path) -> String {
    let Ok(path) = path.canonicalize() else {
        return "unknown file system".to_owned();
    };
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let best = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            path.starts_with(point)
                .then_some((point.len(), kind, device))
        })
        // Of two mounts on one point the later one is seen.
        .max_by_key(|(length, ..)| *length);
    best.map_or_else(
        || "unknown file system".to_owned(),
        |(_, kind, device)| format!("{kind} on {device}"),
    )
}

/// Only if the program lies in a work tree, where it was most likely built.
fn commit() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=10"])
        .current_dir(program.parent()?)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// The command line, with the program's name alone.
fn command() -> String {
    let mut args = std::env::args();
    let program = args.next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    let mut words = vec![name.to_string_lossy().into_owned()];
    words.extend(args);
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_facts() {
        let facts = HostFacts::gather(Path::new("."));
        assert!(facts.cores > 0);
        assert!(facts.kernel.contains('.'), "{}", facts.kernel);
        assert!(facts.file_system.contains(" on "), "{}", facts.file_system);
        assert_eq!(facts.lines().lines().count(), 2);
        assert!(facts.facts().iter().all(|(_, value)| !value.is_empty()));
    }
}
