//! What a process has used so far, as the kernel counts it. The same reading as in rrq-bench.

/// CPU time in microseconds and bytes written, of a process since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// In user and kernel mode, of all its threads and of children that have ended.
    pub cpu_us: u64,
    /// Bytes that it caused to be written to disks.
    pub written: u64,
}

impl Usage {
    /// Of a process; `None` if it is gone or somebody else's.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        // Fields 14 to 17 (proc(5)) in ticks of 10 ms; the second may hold spaces and brackets.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields = rest.split_whitespace().skip(11).take(4);
        let ticks = fields.map(str::parse::<u64>).sum::<Result<u64, _>>().ok()?;
        let written = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes:"))?;
        Some(Self {
            cpu_us: ticks * 10_000,
            written: written.trim().parse().ok()?,
        })
    }
}
