//! What a process has used so far, as the kernel counts it.

use std::time::Duration;

/// The unit of CPU times in `/proc` (`USER_HZ`), which is fixed on Linux.
const TICKS_A_SECOND: u64 = 100;

/// CPU time and bytes of a process since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
pub(super) struct Usage {
    /// In user and kernel mode, of all its threads.
    pub(super) cpu: Duration,
    /// Bytes that it caused to be written to disks.
    pub(super) written: u64,
}

impl Usage {
    /// Of a process; `None` if it is gone or somebody else's.
    #[must_use]
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        Some(Self {
            cpu: cpu_of(&stat)?,
            written: written_of(&io)?,
        })
    }

    /// Of several together; `None` if one is gone or somebody else's.
    #[must_use]
    pub(super) fn of_all(pids: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut all = Self::default();
        for pid in pids {
            let Self { cpu, written } = Self::of(pid)?;
            all.cpu += cpu;
            all.written += written;
        }
        Some(all)
    }

    /// What was used since.
    #[must_use]
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            written: self.written.saturating_sub(before.written),
        }
    }
}

/// Fields 14 and 15 (proc(5)); the second may hold spaces and brackets.
fn cpu_of(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(
        (user + system) * 1000 / TICKS_A_SECOND,
    ))
}

fn written_of(io: &str) -> Option<u64> {
    let line = io.lines().find(|line| line.starts_with("write_bytes:"))?;
    line.split_once(':')?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_read() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0";
        assert_eq!(cpu_of(stat), Some(Duration::from_secs(2)));
        assert_eq!(cpu_of("7 (a) S 1"), None);
        let io = "rchar: 1\nwchar: 2\nwrite_bytes: 4096\ncancelled_write_bytes: 0\n";
        assert_eq!(written_of(io), Some(4096));
    }

    #[test]
    fn every_process_has_used_something() {
        assert!(Usage::of(std::process::id()).is_some());
        assert_eq!(Usage::of(u32::MAX), None);
        let own = std::process::id();
        assert!(Usage::of_all([own, own]) > Usage::of(own).map(|_| Usage::default()));
        assert_eq!(Usage::of_all([own, u32::MAX]), None);
    }
}
