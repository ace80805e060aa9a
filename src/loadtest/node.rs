//! A node of the bench's own: started, killed and started again on one data directory.
//!
//! It runs in a process group of its own, so that Ctrl-C reaches the bench alone, which then ends
//! it. Dropped, it is killed and reaped.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::runtime::{process, sys};
use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A node that is not ready after this does not start.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long a node may take to end once it has closed its output.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// How long a node may take to tell its metrics.
const METRICS_PATIENCE: Duration = Duration::from_secs(1);
/// How much of a node's messages is kept to be shown.
const LINES_KEPT: usize = 40;
/// What jobs may take of memory; who sets it for the bench sets it for its node.
const JOBS_MEMORY: &str = "RRQ_LIMITS__JOBS_MEMORY_MAX";
/// Ports for a node are looked for from here up to where the kernel's own choices begin. A port of
/// that range would be a trap: who connects to it while nobody listens may be given it as the
/// source, and so reach itself.
pub(super) const PORTS_FROM: u16 = 20_000;

/// How to start a node.
#[derive(Clone, Debug)]
pub(super) struct NodeCommand {
    /// The program.
    pub(super) program: PathBuf,
    /// What comes before the node's own arguments.
    pub(super) leading: Vec<OsString>,
}

impl NodeCommand {
    /// This very program, by its hidden subcommand: always of the same build.
    ///
    /// # Errors
    /// If the kernel does not say which program this is.
    pub(super) fn itself() -> Result<Self, Report> {
        let program = env::current_exe().map_err(|error| {
            Report::error(Code::DirectoryUnusable, "cannot find the program of a node")
                .location(error.to_string())
                .fix("--node FILE with the path of rrq-node")
        })?;
        let leading = vec![super::NODE_SUBCOMMAND.into()];
        Ok(Self { program, leading })
    }

    /// Another program.
    #[must_use]
    pub(super) fn of(program: PathBuf) -> Self {
        let leading = Vec::new();
        Self { program, leading }
    }
}

/// What a node is started with, each time alike.
#[derive(Clone, Debug)]
pub(super) struct NodePlan {
    /// The program.
    pub(super) command: NodeCommand,
    /// Its data directory.
    pub(super) data_dir: PathBuf,
    /// The address of its own: on this machine, or in a network of the bench's.
    pub(super) host: Ipv4Addr,
    /// The port of its first shard.
    pub(super) port: u16,
    /// How many shards; `None` = one for each core.
    pub(super) shards: Option<u16>,
    /// Its place in a cluster; `None` = it is alone.
    pub(super) member: Option<Member>,
}

/// One of several nodes of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// The node's number, from 1.
    pub(super) id: u8,
    /// Where the nodes listen for each other, as all are told: `1=HOST:PORT,2=HOST:PORT,...`.
    pub(super) members: String,
}

impl NodePlan {
    /// Where its first shard listens.
    #[must_use]
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::from((self.host, self.port))
    }
}

/// The address on this machine of a node: of a cluster it has its number as the last part.
#[must_use]
pub(super) fn host_of(id: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, id)
}

/// What ends a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Signal {
    /// At once, as a crash does.
    #[default]
    Kill,
    /// In order: what is under way is finished first.
    Term,
}

/// A node under way.
#[derive(Debug)]
pub(super) struct Node {
    plan: NodePlan,
    child: Child,
    ready: Receiver<SocketAddr>,
    /// Where it tells its metrics, once it is ready.
    admin: Option<SocketAddr>,
    said: Arc<Mutex<VecDeque<String>>>,
    errors: Option<JoinHandle<()>>,
}

/// Half of the memory. The node's own choice leaves room for large payloads at a start; here they are
/// small, and a backlog grows by a million jobs a second.
fn jobs_memory(memory: u64) -> String {
    format!("{}MiB", ((memory / 2) >> 20).max(16))
}

impl Node {
    /// Waits until it is ready, once after it was spawned.
    ///
    /// # Errors
    /// If it does not start: what it said.
    pub(super) fn wait_ready(&mut self) -> Result<(), Report> {
        let begun = Instant::now();
        loop {
            match self.ready.recv_timeout(Duration::from_millis(20)) {
                Ok(admin) => {
                    self.admin = Some(admin);
                    return Ok(());
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure()),
                Err(RecvTimeoutError::Timeout) => self.check()?,
            }
            if begun.elapsed() > START_DEADLINE {
                return Err(self.failure());
            }
        }
    }

    /// How long each part of its start took, in milliseconds, as its metrics tell. Nothing if they
    /// cannot be asked.
    ///
    /// # Errors
    /// If it does not become ready: what it said.
    pub(super) fn start_phases(&mut self) -> Result<BTreeMap<String, f64>, Report> {
        self.metrics().map(|text| phases_in(&text))
    }

    /// Its metrics as text. Nothing if they cannot be asked.
    ///
    /// # Errors
    /// If it does not become ready: what it said.
    pub(super) fn metrics(&mut self) -> Result<String, Report> {
        if self.admin.is_none() {
            self.wait_ready()?;
        }
        let text = self.admin.and_then(|admin| metrics(admin).ok());
        Ok(text.unwrap_or_default())
    }

    /// Starts a node without waiting.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub(super) fn spawn(plan: NodePlan) -> Result<Self, Report> {
        let mut command = Command::new(&plan.command.program);
        command
            .args(&plan.command.leading)
            .arg("--data-dir")
            .arg(&plan.data_dir)
            .args(["--listen", &plan.address().to_string()])
            .args(["--admin", &SocketAddr::from((plan.host, 0)).to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if env::var_os(JOBS_MEMORY).is_none() {
            command.env(JOBS_MEMORY, jobs_memory(process::memory_limit()));
        }
        if let Some(shards) = plan.shards {
            command.args(["--shards", &shards.to_string()]);
        }
        if let Some(Member { id, members }) = &plan.member {
            command.args(["--id", &id.to_string(), "--members", members]);
            // Several on one machine: none may have a core for itself.
            command.arg("--no-pin");
        }
        let mut child = command.spawn().map_err(|error| {
            let program = plan.command.program.display();
            Report::error(Code::BadArgument, format!("cannot run {program}"))
                .location(error.to_string())
                .fix("--node FILE with the path of rrq-node, or leave it out")
        })?;
        let (sender, ready) = channel();
        let said = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(out) = child.stdout.take() {
            each_line(out, move |line| {
                if let Some(admin) = admin_of(&line) {
                    // Nobody may wait for it.
                    let _ = sender.send(admin);
                }
            });
        }
        let keep = said.clone();
        let errors = child.stderr.take().map(|err| {
            each_line(err, move |line| {
                let mut said = keep.lock().unwrap_or_else(PoisonError::into_inner);
                if said.len() == LINES_KEPT {
                    said.pop_front();
                }
                said.push_back(line);
            })
        });
        Ok(Self {
            plan,
            child,
            ready,
            admin: None,
            said,
            errors,
        })
    }

    /// What it was started with.
    #[must_use]
    pub(super) fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// Its process.
    #[must_use]
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it has ended before: what it said.
    pub(super) fn signal(&mut self, signal: Signal) -> Result<(), Report> {
        self.check()?;
        match signal {
            Signal::Kill => self.child.kill().map_err(|_| self.failure()),
            Signal::Term => {
                sys::terminate(self.child.id());
                Ok(())
            }
        }
    }

    /// Freezes it, or lets it go on.
    ///
    /// # Errors
    /// If it has ended before: what it said.
    pub(super) fn freeze(&mut self, frozen: bool) -> Result<(), Report> {
        self.check()?;
        match frozen {
            true => sys::freeze(self.child.id()),
            false => sys::thaw(self.child.id()),
        }
        Ok(())
    }

    /// Waits until the kernel has reaped it: all that it held is free.
    ///
    /// # Errors
    /// If it is not ours to wait for.
    pub(super) fn reap(&mut self) -> Result<ExitStatus, Report> {
        self.child.wait().map_err(|error| {
            Report::error(Code::Bug, "the node cannot be waited for").location(error.to_string())
        })
    }

    /// # Errors
    /// If it has ended by itself: what it said.
    pub(super) fn check(&mut self) -> Result<(), Report> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(_)) | Err(_) => Err(self.failure()),
        }
    }

    /// How it ended, if it does by itself now: its output closes a little before.
    fn end_soon(&mut self) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > END_PATIENCE {
                return ended;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it, and says what it said.
    fn failure(&mut self) -> Report {
        let ended = self.end_soon();
        // Fails if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(errors) = self.errors.take() {
            // A thread of ours that does not panic.
            let _ = errors.join();
        }
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = said.iter().map(String::as_str).collect();
        let what = match ended {
            Some(status) => format!("the node ended ({status})"),
            None => "the node does not answer".to_owned(),
        };
        let code = lines.iter().find_map(|line| code_of(line));
        let report = Report::error(code.unwrap_or(Code::Unreachable), what);
        match lines.is_empty() {
            true => report.location("it said nothing"),
            false => report.location(format!("it said:\n{}", lines.join("\n"))),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a node that says to be ready has its metrics.
fn admin_of(line: &str) -> Option<SocketAddr> {
    let (_, said) = line.split_once(" ready: ")?;
    let (_, admin) = said.split_once("admin ")?;
    admin.split(',').next()?.parse().ok()
}

/// The metrics of a node as text.
fn metrics(admin: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(METRICS_PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The parts of a start in a node's metrics, in milliseconds.
fn phases_in(metrics: &str) -> BTreeMap<String, f64> {
    let phase = |line: &str| {
        let rest = line.strip_prefix("rrq_recovery_seconds{phase=\"")?;
        let (name, seconds) = rest.split_once("\"} ")?;
        Some((name.to_owned(), seconds.parse::<f64>().ok()? * 1000.0))
    };
    metrics.lines().filter_map(phase).collect()
}

/// The code in the first line of a report.
fn code_of(line: &str) -> Option<Code> {
    let number = line.strip_prefix("error[RRQ-")?.get(..4)?;
    Code::from_number(number.parse().ok()?)
}

fn each_line(
    source: impl Read + Send + 'static,
    mut see: impl FnMut(String) + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let lines = BufReader::new(source).lines();
        lines.map_while(Result::ok).for_each(&mut see);
    })
}

/// The first of `count` ports in a row that are free at the addresses of all `nodes`, outside of the
/// range from which the kernel takes ports for connections.
///
/// # Errors
/// If none were found.
pub(super) fn free_ports(count: u16, nodes: u8) -> Result<u16, Report> {
    let begin = ephemeral_range_begin();
    let end = begin.saturating_sub(count);
    if end > PORTS_FROM {
        // Two benches at once start at different places.
        let spread = end - PORTS_FROM;
        let offset = (std::process::id().wrapping_mul(97) % u32::from(spread)) as u16;
        let places = (0..spread).map(|step| PORTS_FROM + (offset + step) % spread);
        for first in places.step_by(usize::from(count)) {
            if (first..first + count).all(|port| is_free(port, nodes)) {
                return Ok(first);
            }
        }
    }
    let what = format!("no {count} free ports in a row from {PORTS_FROM} to {begin}");
    Err(Report::error(Code::PortInUse, what).fix("--port N with a port that is free"))
}

fn is_free(port: u16, nodes: u8) -> bool {
    (1..=nodes).all(|id| TcpListener::bind((host_of(id), port)).is_ok())
}

fn ephemeral_range_begin() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let begin = range
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok());
    begin.unwrap_or(32_768)
}

/// A folder that is removed when this goes.
#[derive(Debug)]
pub(super) struct TempFolder {
    path: PathBuf,
}

impl TempFolder {
    /// Makes an empty folder on the disk that holds `beside`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn new(beside: &Path) -> Result<Self, Report> {
        let begun = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = begun.map_or(0, |since| since.subsec_nanos());
        let path = beside.join(format!("rrq-bench-{}-{nanos}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| {
            let what = format!("cannot make a folder in {}", beside.display());
            Report::error(Code::DirectoryUnusable, what)
                .location(error.to_string())
                .fix("--data-dir DIR with a folder on a disk that you may write to")
        })?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a folder is left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_a_row_are_free_and_not_the_kernels() {
        let first = free_ports(3, 2).expect("a machine has free ports");
        assert!((first..first + 3).all(|port| is_free(port, 2)));
        assert!(first + 3 <= ephemeral_range_begin());
    }

    #[test]
    fn a_node_says_where_its_metrics_are_and_they_tell_of_its_start() {
        let line = "rrq-node 0.1.0 ready: clients 127.0.0.1:7411, admin 127.0.0.1:7480, 2 shards, data d, \
                    stop with Ctrl-C or kill 7";
        assert_eq!(admin_of(line), "127.0.0.1:7480".parse().ok());
        assert_eq!(admin_of("warning: admin 127.0.0.1:7480,"), None);
        let text = "rrq_jobs 7\nrrq_recovery_seconds{phase=\"open\"} 0.0025\n";
        let phases = BTreeMap::from([("open".to_owned(), 2.5)]);
        assert_eq!(phases_in(text), phases);
    }

    #[test]
    fn a_report_is_known_by_its_first_line() {
        assert_eq!(code_of("error[RRQ-1006]: taken"), Some(Code::PortInUse));
        assert_eq!(code_of("error[RRQ-10"), None);
        assert_eq!(code_of("  where: error[RRQ-1006]"), None);
    }

    #[test]
    fn a_folder_goes_with_its_owner() {
        let folder = TempFolder::new(&env::temp_dir()).expect("it can be made");
        let path = folder.path().to_owned();
        std::fs::write(path.join("file"), "x").expect("it can be written to");
        drop(folder);
        assert!(!path.exists());
    }
}
