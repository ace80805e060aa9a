//! Starts `rrq-node` for process tests and reads what it says. Waits for events with a deadline.

// Each test program uses its own part of it.
#![allow(dead_code)]

pub(crate) mod client;
#[path = "../error_kit/mod.rs"]
pub(crate) mod error_kit;
pub(crate) mod load;
pub(crate) mod seccomp;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Long enough for a crowded machine; a test that waits so long has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A folder that goes with this value, unless the test failed: a data directory is hundreds of megabytes, and the
/// suite makes more than a hundred.
#[derive(Debug)]
pub(crate) struct TestFolder(PathBuf);

/// A folder of its own for a test, which is not there yet.
pub(crate) fn folder(name: &str) -> TestFolder {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("node-{name}"));
    if path.exists() {
        std::fs::remove_dir_all(&path).expect("an old test folder can be removed");
    }
    TestFolder(path)
}

impl Deref for TestFolder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for TestFolder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.0.exists() {
            std::fs::remove_dir_all(&self.0).expect("a test folder can be removed");
        }
    }
}

/// A node under way.
pub(crate) struct Node {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
    /// The line that says that it is ready.
    pub(crate) ready: String,
    /// Its data directory, if no other node starts on it.
    folder: Option<TestFolder>,
}

impl Node {
    /// Starts a node on `data` with ports of the kernel's choice, and waits until it is ready.
    pub(crate) fn start(data: &Path, args: &[&str]) -> Self {
        Self::spawn(data, args).until_ready()
    }

    /// The same on a folder of this name that goes with the node.
    pub(crate) fn start_new(name: &str, args: &[&str]) -> Self {
        let data = folder(name);
        let mut node = Self::start(&data, args);
        node.folder = Some(data);
        node
    }

    /// Waits until a node of [`Self::spawn_by`] is ready.
    pub(crate) fn until_ready(mut self) -> Self {
        match self.out.recv_timeout(DEADLINE) {
            Ok(line) => self.ready = line,
            Err(_) => panic!("no ready line; it said {:?}", self.stop_and_read()),
        }
        self
    }

    /// Starts a node, and waits until it is ready or has ended; then its status and what it said.
    pub(crate) fn start_or_end(data: &Path, args: &[&str]) -> Result<Self, (i32, String)> {
        Self::spawn(data, args).until_ready_or_end()
    }

    /// The same of a node of [`Self::spawn_by`].
    pub(crate) fn until_ready_or_end(mut self) -> Result<Self, (i32, String)> {
        // Its output ends with it.
        match self.out.recv_timeout(DEADLINE) {
            Ok(line) => {
                self.ready = line;
                Ok(self)
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.wait();
                Err((status.code().expect("it ended by itself"), self.errors()))
            }
            Err(RecvTimeoutError::Timeout) => panic!("it hangs: {:?}", self.stop_and_read()),
        }
    }

    /// Starts a node without waiting.
    pub(crate) fn spawn(data: &Path, args: &[&str]) -> Self {
        Self::spawn_by(&mut command(data, args))
    }

    /// Starts a node by a command of [`command`], without waiting.
    pub(crate) fn spawn_by(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the node's program is built");
        let out = lines(child.stdout.take().expect("it is piped"));
        let err = lines(child.stderr.take().expect("it is piped"));
        Self {
            child,
            out,
            err,
            ready: String::new(),
            folder: None,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn clients(&self) -> SocketAddr {
        self.address("clients ")
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.address("admin ")
    }

    fn address(&self, before: &str) -> SocketAddr {
        let rest = self
            .ready
            .split_once(before)
            .expect("the ready line has it")
            .1;
        rest.split(',')
            .next()
            .expect("a list")
            .parse()
            .expect("an address")
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill")
            .args([signal, &pid])
            .status()
            .expect("kill is there");
        assert!(sent.success(), "kill {signal} {pid}");
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(begun.elapsed() < DEADLINE, "the node does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it said on standard error until its end.
    pub(crate) fn errors(&mut self) -> String {
        self.wait();
        self.err.iter().collect::<Vec<_>>().join("\n")
    }

    /// What it has said on standard error since this was last asked.
    pub(crate) fn heard(&mut self) -> Vec<String> {
        self.err.try_iter().collect()
    }

    fn stop_and_read(&mut self) -> String {
        let _ = self.child.kill();
        self.errors()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let ended = matches!(self.child.try_wait(), Ok(Some(_)));
        let _ = self.child.kill();
        let _ = self.child.wait();
        if ended && std::thread::panicking() {
            let said: Vec<String> = self.err.try_iter().collect();
            println!("the node had ended, and said {said:?}");
        }
    }
}

/// What starts a node on `data` with ports of the kernel's choice.
pub(crate) fn command(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-node"));
    command
        .args([
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(data)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if !args
        .iter()
        .any(|arg| arg.starts_with("--shard") || *arg == "--config")
    {
        command.args(["--shards", "1", "--no-pin"]);
    }
    command
}

fn lines(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Runs a node that is expected to refuse; its status and what it said, which is pinned.
pub(crate) fn refused(data: &Path, args: &[&str]) -> (i32, String) {
    let mut node = Node::spawn(data, args);
    let status = node.wait();
    let text = node.errors();
    assert_is_report(&text);
    error_kit::compare(&text);
    (status.code().expect("it ended by itself"), text)
}

/// One message in the form of a report, and nothing of Rust's own.
pub(crate) fn assert_is_report(text: &str) {
    assert!(text.starts_with("error[RRQ-"), "not a report: {text}");
    assert_eq!(
        text.matches("error[RRQ-").count(),
        1,
        "more than one message: {text}"
    );
    for word in ["panicked", "RUST_BACKTRACE", "stack backtrace", "unwrap"] {
        assert!(!text.contains(word), "{word} is shown: {text}");
    }
}

/// A test that this machine cannot run says so, and fails where everything must run.
pub(crate) fn skip(needs: &str) {
    println!("skipped: needs {needs}");
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "skipped with CI=true"
    );
}

/// Body and status of a request to the admin port.
pub(crate) fn http(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the admin port listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status");
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    (status, body.to_owned())
}

/// Waits until the log of each shard has two files ahead. They are made soon after a start, not before it
/// serves; the next segment, which takes the first of them, comes before.
pub(crate) fn wait_for_spares(data: &Path) {
    let inside = |folder: &Path, prefix: &str| -> Vec<PathBuf> {
        let found = std::fs::read_dir(folder).expect("it is there");
        let paths = found.map(|entry| entry.expect("it can be listed").path());
        let begins = |path: &PathBuf| {
            let name = path.file_name().expect("it has one").to_string_lossy();
            name.starts_with(prefix)
        };
        paths.filter(begins).collect()
    };
    let begun = Instant::now();
    let is_made = || {
        let shards = inside(data, "shard-");
        let mut logs = shards.iter().flat_map(|shard| inside(shard, "wal-"));
        logs.all(|log| inside(&log, "spare-").len() >= 2)
    };
    while !is_made() {
        assert!(begun.elapsed() < DEADLINE, "waited in vain for spares");
        std::thread::sleep(Duration::from_millis(10));
    }
}
