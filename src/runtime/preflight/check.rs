//! `rrq-node check`: whether a node could run here, and how well. One finding for each thing looked
//! at, in less than 2 s; nothing is started and nothing is left behind.
//!
//! | finding | fails if | warns if |
//! | --- | --- | --- |
//! | config | it has an error | a variable has no effect |
//! | kernel | too old | |
//! | io_uring | refused, or lacks operations | |
//! | memlock | below what a ring needs | buffers cannot be registered |
//! | nofile | below what the node itself needs | below what the clients may need |
//! | cores | | fewer than shards |
//! | data | not rrq's, another format or node, unusable | others may write to it |
//! | lock | another process works in it | |
//! | filesystem | in memory, no O_DIRECT, no room | new jobs would be refused for lack of room |
//! | disk | a write fails | durable writes are slow |
//! | ports | one is taken | |

use super::{FILES_NODE, FILES_SHARD, MEMLOCK_SHARD_BYTES, MORE_MEMLOCK};
use super::{client_addresses, cores, durable, nearest, no_direct_io};
use crate::base::code::Code;
use crate::base::report::{Report, Severity};
use crate::runtime::config::{CheckFormat, Loaded, NodeConfig, Origin};
use crate::runtime::space::{COMFORT_BYTES, SEGMENT_ROOM_BYTES};
use crate::runtime::{data_dir, lock, sys};
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Durable writes that are timed, unless the time is over before.
const WRITES: usize = 200;
const WRITES_WITHIN: Duration = Duration::from_millis(800);
/// Above this, commits are slow enough to be noticed by people.
const SLOW_P50: Duration = Duration::from_millis(10);
const SLOW_P99: Duration = Duration::from_millis(100);
const BLOCK: usize = 4096;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok,
    /// A node would run, but not well.
    Warn,
    /// A node would not run, or not keep what it acknowledges.
    Fail,
}

impl Status {
    /// The word for it: `ok`, `warn`, `FAIL`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its name: `memlock`, `ports`; see the table of this module.
    pub name: &'static str,
    /// What was seen, in a line.
    pub text: String,
    /// What is wrong with it, if anything is.
    pub report: Option<Report>,
}

impl Finding {
    /// How it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        match &self.report {
            None => Status::Ok,
            Some(report) if report.severity == Severity::Warning => Status::Warn,
            Some(_) => Status::Fail,
        }
    }

    /// The finding in one line: `FAIL  memlock     locked-memory limit too low: 64 KiB ...`.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("{:<5} {:<11}{}", self.status().word(), self.name, self.text);
        if let Some(report) = &self.report {
            let _ = write!(line, " [{}]", report.code);
            if let Some(fix) = &report.fix {
                let _ = write!(line, "; fix: {}", one_line(fix));
            }
        }
        line
    }

    fn json(&self) -> Value {
        let report = self.report.as_ref();
        json!({
            "name": self.name,
            "status": self.status().word().to_lowercase(),
            "text": self.text,
            "code": report.map(|report| report.code.to_string()),
            "where": report.and_then(|report| report.location.as_ref()),
            "why": report.and_then(|report| report.why.as_ref()),
            "fix": report.and_then(|report| report.fix.as_ref()),
        })
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Looks at everything. A configuration that is wrong hides what depends on it.
#[must_use]
pub fn check(loaded: Result<&Loaded, &Report>) -> Vec<Finding> {
    let mut findings = vec![config(loaded)];
    let mut add = |name, result: Result<String, Report>| {
        findings.push(match result {
            Ok(text) => Finding {
                name,
                text,
                report: None,
            },
            Err(report) => Finding {
                name,
                text: one_line(&report.what),
                report: Some(report),
            },
        });
    };
    let release = super::kernel_release();
    add(
        "kernel",
        super::kernel_version(&release).map(|()| format!("Linux {release}")),
    );
    add(
        "io_uring",
        super::io_uring().map(|()| "allowed, with all operations needed".to_owned()),
    );
    let Ok(Loaded { config, .. }) = loaded else {
        return findings;
    };
    let path = config.data_dir.as_path();
    let found = data_dir::identify(path);
    let made = found.as_ref().ok().and_then(Option::as_ref);
    let made = made.map(|superblock| superblock.shards);
    let shards = super::shards(config, made);
    add("memlock", memlock(shards));
    add("nofile", open_files(config, shards));
    add("cores", enough_cores(shards));
    let usable = found.is_ok();
    // The logs of a new directory, or of another number of shards, are made at the start.
    let logs = if made == Some(shards) { 1 } else { shards };
    add(
        "data",
        found.and_then(|superblock| {
            if let Some(superblock) = &superblock {
                data_dir::fits(path, superblock, config)?;
                data_dir::fits_members(path, superblock, config)?;
            }
            let state = match superblock {
                Some(of) => format!(
                    "{}: node {}, {} shards{}",
                    path.display(),
                    of.node,
                    of.shards,
                    match of.shards == shards {
                        true => String::new(),
                        false => format!(", to be redistributed to {shards}"),
                    }
                ),
                None => format!("{} would be made", path.display()),
            };
            exposed(path).map(|owner| format!("{state}{owner}"))
        }),
    );
    let free = lock::is_free(path);
    let is_free = free.is_ok();
    add("lock", free.map(|()| "nobody works in it".to_owned()));
    let room = u64::from(logs) * SEGMENT_ROOM_BYTES;
    add("filesystem", file_system(path, config.dev, room));
    add(
        "disk",
        match (usable, is_free) {
            (true, true) => disk(path),
            // Who works there needs the disk, and knows how fast it is.
            (true, false) => Ok("not measured: in use".to_owned()),
            (false, _) => Ok("not measured: the directory is not ours".to_owned()),
        },
    );
    add("ports", ports(config, shards));
    if !config.members.is_empty() {
        add("members", members(config));
    }
    findings
}

/// What a start warns of: what costs nothing to look at, and what a node that runs cannot mend.
#[must_use]
pub fn at_start(config: &NodeConfig, shards: u16) -> Vec<Report> {
    [
        open_files(config, shards),
        enough_cores(shards),
        exposed(&config.data_dir),
    ]
    .into_iter()
    .filter_map(Result::err)
    .collect()
}

/// The worst of them.
#[must_use]
pub fn worst(findings: &[Finding]) -> Status {
    let statuses = findings.iter().map(Finding::status);
    statuses.max().unwrap_or(Status::Ok)
}

/// The exit status: 0 all is well, 1 with warnings, 3 if a node could not run; for Nagios, which
/// counts differently, 2 then.
#[must_use]
pub fn exit_code(findings: &[Finding], format: CheckFormat) -> u8 {
    match (worst(findings), format) {
        (Status::Ok, _) => 0,
        (Status::Warn, _) => 1,
        (Status::Fail, CheckFormat::Nagios) => 2,
        (Status::Fail, _) => 3,
    }
}

/// The findings as text, with a line feed at the end.
#[must_use]
pub fn show(findings: &[Finding], format: CheckFormat) -> String {
    match format {
        CheckFormat::Text => findings.iter().map(|one| one.line() + "\n").collect(),
        CheckFormat::Json => {
            let all: Vec<Value> = findings.iter().map(Finding::json).collect();
            let status = worst(findings).word().to_lowercase();
            format!("{:#}\n", json!({"status": status, "checks": all}))
        }
        CheckFormat::Nagios => {
            let word = match worst(findings) {
                Status::Ok => "OK",
                Status::Warn => "WARNING",
                Status::Fail => "CRITICAL",
            };
            let bad = |one: &&Finding| one.status() != Status::Ok;
            let bad: Vec<String> = findings
                .iter()
                .filter(bad)
                .map(|one| format!("{}: {}", one.name, one.text))
                .collect();
            let said = if bad.is_empty() {
                format!("{} checks passed", findings.len())
            } else {
                bad.join("; ")
            };
            format!("RRQ {word} - {}\n", said.replace('|', "/"))
        }
    }
}

fn config(loaded: Result<&Loaded, &Report>) -> Finding {
    let (text, report) = match loaded {
        Ok(loaded) => {
            let set = |one: &&_| matches!(one, Origin::Default);
            let origins = loaded.settings.iter().map(|setting| &setting.origin);
            let defaults = origins.filter(set).count();
            let told = loaded.settings.len() - defaults;
            match loaded.warnings.first() {
                None => (
                    format!("{told} keys set, {defaults} at their defaults"),
                    None,
                ),
                Some(warning) => (one_line(&warning.what), Some(warning.clone())),
            }
        }
        Err(report) => {
            let place = report
                .location
                .as_deref()
                .and_then(|text| text.lines().next());
            let text = format!("{} ({})", report.what, place.unwrap_or("command line"));
            (one_line(&text), Some(report.clone()))
        }
    };
    Finding {
        name: "config",
        text,
        report,
    }
}

fn memlock(shards: u16) -> Result<String, Report> {
    let limit = sys::memlock_limit();
    super::memlock(limit)?;
    if limit == u64::MAX {
        return Ok("unlimited".to_owned());
    }
    let wanted = MEMLOCK_SHARD_BYTES * u64::from(shards);
    if !super::buffers_fit(shards) {
        let what = format!(
            "{} KiB may be locked; buffers of {shards} shards take {} KiB",
            limit >> 10,
            wanted >> 10
        );
        return Err(Report::warning(Code::BuffersUnregistered, what)
            .location("RLIMIT_MEMLOCK")
            .why("io_uring then copies from ordinary memory: it works, but slower")
            .fix(MORE_MEMLOCK));
    }
    Ok(format!("{} KiB, {} KiB wanted", limit >> 10, wanted >> 10))
}

fn open_files(config: &NodeConfig, shards: u16) -> Result<String, Report> {
    sys::raise_open_files();
    let limit = sys::open_files_limit();
    super::open_files(limit, shards)?;
    let wanted = FILES_NODE + FILES_SHARD * u64::from(shards) + config.connections_max as u64;
    if limit < wanted {
        let what = format!(
            "{limit} files may be open; {} clients and {shards} shards take {wanted}",
            config.connections_max
        );
        return Err(Report::warning(Code::OpenFilesTooFew, what)
            .location("RLIMIT_NOFILE")
            .why("clients beyond it would not be accepted")
            .fix(format!(
                "ulimit -n {wanted}, or a smaller limits.connections_max"
            )));
    }
    Ok(format!("{limit}, {wanted} wanted"))
}

fn enough_cores(shards: u16) -> Result<String, Report> {
    let allowed = sys::allowed_cores().len();
    let usable = cores();
    let text = if usable < allowed {
        format!("{usable} by quota, of {allowed} allowed")
    } else {
        format!("{usable} allowed")
    };
    if usize::from(shards) > usable {
        let what = format!("{shards} shards share {usable} cores ({text})");
        return Err(Report::warning(Code::TooManyShards, what)
            .why("each shard wants a core of its own; shards that share one wait for each other")
            .fix(format!("--shards {usable}")));
    }
    Ok(format!("{text}, {shards} shards"))
}

/// Who owns it, if that is somebody else; a warning if others may write to it.
fn exposed(path: &Path) -> Result<String, Report> {
    const OTHERS_WRITE: u32 = 0o002;
    let Ok(found) = path.metadata() else {
        return Ok(String::new());
    };
    let mode = found.mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        let what = format!("everybody may write to {} (mode {mode:o})", path.display());
        return Err(Report::warning(Code::DirectoryExposed, what)
            .why("any user of this machine could replace the log")
            .fix(format!("chmod o-w {}", path.display())));
    }
    let me = Path::new("/proc/self").metadata().map(|found| found.uid());
    Ok(match me {
        Ok(me) if me != found.uid() => format!(", owned by user {}, not {me}", found.uid()),
        _ => String::new(),
    })
}

fn file_system(path: &Path, dev: bool, needed: u64) -> Result<String, Report> {
    durable(path, dev)?;
    let there = nearest(path);
    let found =
        sys::file_system(there).map_err(|error| data_dir::unusable(there, "look at", &error))?;
    let free = found.free_bytes;
    if free < needed {
        return Err(data_dir::disk_full(path).location(format!(
            "{} MiB free, {} MiB needed",
            free >> 20,
            needed >> 20
        )));
    }
    if free < COMFORT_BYTES {
        let what = format!("{} MiB free: new jobs would be refused", free >> 20);
        return Err(Report::warning(Code::DiskFull, what)
            .location(there.display().to_string())
            .why("room is kept for leases, acks and checkpoints")
            .fix(format!("at least {} MiB free", COMFORT_BYTES >> 20)));
    }
    Ok(format!("{}, {} MiB free", found.name(), free >> 20))
}

/// Tries what the log does: blocks written with O_DIRECT | O_DSYNC, one at a time.
fn disk(path: &Path) -> Result<String, Report> {
    let folder = nearest(path);
    let file = probe_file(folder).map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => data_dir::disk_full(path),
        io::ErrorKind::InvalidInput => no_direct_io(path, &error),
        _ => data_dir::unusable(path, "write to", &error),
    })?;
    let mut buffer = vec![0_u8; 2 * BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    let block = &mut buffer[start..start + BLOCK];
    let begun = Instant::now();
    let mut times = Vec::with_capacity(WRITES);
    for number in 0..WRITES {
        block[0] = number as u8;
        let before = Instant::now();
        file.write_all_at(block, (number * BLOCK) as u64)
            .map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull => data_dir::disk_full(path),
                io::ErrorKind::InvalidInput => no_direct_io(path, &error),
                _ => data_dir::unusable(path, "write to", &error),
            })?;
        times.push(before.elapsed());
        if begun.elapsed() > WRITES_WITHIN {
            break;
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (p50, p99) = (at(50), at(99));
    let text = format!(
        "durable write of 4 KiB: p50 {:.2} ms, p99 {:.2} ms over {} writes",
        ms(p50),
        ms(p99),
        times.len()
    );
    if p50 > SLOW_P50 || p99 > SLOW_P99 {
        return Err(Report::warning(Code::DiskSlow, text)
            .why("each commit waits for such a write")
            .fix("--data-dir on an SSD that nothing else keeps busy"));
    }
    Ok(text)
}

/// A file without a name: gone with its descriptor, whatever happens to us.
fn probe_file(folder: &Path) -> io::Result<File> {
    let name = folder.join(format!(".rrq-check-{}", std::process::id()));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(&name);
    // An open that O_DIRECT fails has made the name even so.
    if file.is_ok()
        || file
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput)
    {
        std::fs::remove_file(&name)?;
    }
    file
}

/// Another node that takes a connection does so within this.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);

fn ports(config: &NodeConfig, shards: u16) -> Result<String, Report> {
    let clients = client_addresses(config, shards)?;
    let mut held = Vec::new();
    for (shard, address) in clients.iter().enumerate() {
        let purpose = format!("client port of shard {shard}");
        held.push(super::bind(*address, &purpose, "--listen", false)?);
    }
    super::bind(config.admin, "admin port", "--admin", false)?;
    Ok(format!(
        "{} for clients from {}, admin {}: free",
        clients.len(),
        config.client,
        config.admin
    ))
}

/// Whether this node can listen for the others, and what it finds where they are.
fn members(config: &NodeConfig) -> Result<String, Report> {
    super::peer_listener(config)?;
    let others = config
        .members
        .iter()
        .filter(|member| Some(member.node) != config.node);
    let states = others.map(|member| {
        let addresses = super::resolve(member)?;
        let answers = |one| TcpStream::connect_timeout(one, ANSWER_WITHIN).is_ok();
        let answers = addresses.iter().any(answers);
        let state = if answers {
            "answers"
        } else {
            "does not answer"
        };
        Ok(format!(
            "node {} at {} {state}",
            member.node, member.address
        ))
    });
    let states: Vec<String> = states.collect::<Result<_, Report>>()?;
    Ok(states.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(report: Option<Report>) -> Finding {
        Finding {
            name: "memlock",
            text: "64 KiB".to_owned(),
            report,
        }
    }

    #[test]
    fn findings_have_three_forms_and_an_exit_status() {
        let good = finding(None);
        let warned = finding(Some(
            Report::warning(Code::BuffersUnregistered, "64 KiB").fix("ulimit\n  -l"),
        ));
        let failed = finding(Some(Report::error(Code::MemlockTooLow, "64 KiB")));
        assert_eq!(good.line(), "ok    memlock    64 KiB");
        assert_eq!(
            warned.line(),
            "warn  memlock    64 KiB [RRQ-1003]; fix: ulimit -l"
        );
        let all = [good.clone(), warned.clone(), failed];
        assert_eq!(exit_code(&all[..1], CheckFormat::Text), 0);
        assert_eq!(exit_code(&all[..2], CheckFormat::Json), 1);
        assert_eq!(exit_code(&all, CheckFormat::Text), 3);
        assert_eq!(exit_code(&all, CheckFormat::Nagios), 2);
        assert_eq!(
            show(&all[..1], CheckFormat::Nagios),
            "RRQ OK - 1 checks passed\n"
        );
        assert_eq!(
            show(&all, CheckFormat::Nagios),
            "RRQ CRITICAL - memlock: 64 KiB; memlock: 64 KiB\n"
        );
        let json: Value = serde_json::from_str(&show(&all, CheckFormat::Json)).expect("JSON");
        assert_eq!(json["status"], "fail");
        assert_eq!(json["checks"][1]["code"], "RRQ-1003");
        assert_eq!(json["checks"][0]["code"], Value::Null);
    }

    #[test]
    fn the_probe_leaves_no_file() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target");
        let folder = folder.expect("a folder");
        let _ = probe_file(folder.path());
        let left = std::fs::read_dir(folder.path())
            .expect("it is there")
            .count();
        assert_eq!(left, 0);
    }
}
