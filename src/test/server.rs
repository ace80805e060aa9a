//! [`Server`]: finds, starts, kills and restarts a node.

use crate::client::{Code, Error};
use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A node that is not ready after this does not start.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How much of what a node says is kept to be shown.
const LINES_KEPT: usize = 40;
/// The program.
const PROGRAM: &str = if cfg!(windows) {
    "rrq-node.exe"
} else {
    "rrq-node"
};
/// The variable that names another.
const VARIABLE: &str = "RRQ_NODE";

/// Starts its arguments as a program and ends it by the signal that it reads, or kills it when
/// nobody is left to write one. The node is a child of the shell, so that its number is nobody
/// else's until then. The shell lets go of the output, whose end is then the node's.
const SCRIPT: &str = r#"
"$@" </dev/null & node=$!
exec >/dev/null 2>&1
read -r signal || signal=KILL
kill -"$signal" "$node"
wait "$node"
"#;

/// A node for a test; ended and its folder removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    args: Vec<OsString>,
    folder: PathBuf,
    process: Option<Process>,
    address: String,
}

/// A node under way, and the shell that holds it.
#[derive(Debug)]
struct Process {
    shell: Child,
    signals: Option<ChildStdin>,
}

impl Server {
    /// Starts a node with one shard on a new folder, at a port of the system's choice.
    ///
    /// # Errors
    /// [`Code::Unreachable`] if no `rrq-node` is found, or it does not start: what it said.
    pub fn start() -> Result<Self, Error> {
        Self::start_with(["--shards", "1", "--no-pin"])
    }

    /// Starts a node with arguments of your own, besides the folder and the ports; `rrq-node
    /// --help` lists them.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(args: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Self, Error> {
        let program = find_program()?;
        let folder = new_folder()?;
        let mut server = Self {
            program,
            args: args.into_iter().map(Into::into).collect(),
            folder,
            process: None,
            address: "127.0.0.1:0".to_owned(),
        };
        server.restart()?;
        Ok(server)
    }

    /// Where it listens: `host:port`, for [`Client::connect`](crate::client::Client::connect). The
    /// same after a restart.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its data directory.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Kills it as a crash would (`kill -9`), and waits until it is gone. What it acknowledged is
    /// there again after [`Self::restart`].
    pub fn kill_9(&mut self) {
        self.end("KILL");
    }

    /// Stops it in good order (`kill -TERM`), and waits until it is gone.
    pub fn stop(&mut self) {
        self.end("TERM");
    }

    /// Starts it again on its folder and address; kills it before if it still runs.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> Result<(), Error> {
        self.kill_9();
        let (process, ready, said) = self.spawn()?;
        self.process = Some(process);
        let words = match ready.recv_timeout(START_DEADLINE) {
            Ok(line) => match address_of(&line) {
                Some(address) => {
                    self.address = address;
                    return Ok(());
                }
                None => format!("it said something else than where it listens: {line}"),
            },
            Err(RecvTimeoutError::Disconnected) => "it ended".to_owned(),
            Err(RecvTimeoutError::Timeout) => format!("it is not ready after {START_DEADLINE:?}"),
        };
        self.kill_9();
        let said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        Err(failed(format!(
            "{} does not start: {words}; it said:\n{}",
            self.program.display(),
            said.join("\n")
        )))
    }

    #[allow(clippy::type_complexity)]
    fn spawn(&self) -> Result<(Process, Receiver<String>, Arc<Mutex<VecDeque<String>>>), Error> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SCRIPT, "rrq::test"])
            .arg(&self.program)
            .args(["--dev", "--admin", "127.0.0.1:0", "--listen", &self.address])
            .arg("--data-dir")
            .arg(&self.folder)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut shell = command.spawn().map_err(|error| {
            failed(format!("cannot run /bin/sh, which holds the node: {error}"))
        })?;
        let (sender, ready) = channel();
        let said = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(out) = shell.stdout.take() {
            each_line(out, move |line| {
                // Nobody listens any more once it is ready.
                let _ = sender.send(line);
            });
        }
        let keep = said.clone();
        if let Some(err) = shell.stderr.take() {
            each_line(err, move |line| {
                let mut said = keep.lock().unwrap_or_else(PoisonError::into_inner);
                if said.len() == LINES_KEPT {
                    said.pop_front();
                }
                said.push_back(line);
            });
        }
        let signals = shell.stdin.take();
        Ok((Process { shell, signals }, ready, said))
    }

    fn end(&mut self, signal: &str) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        if let Some(mut signals) = process.signals.take() {
            // Fails if the shell is gone, which has then ended the node.
            let _ = writeln!(signals, "{signal}");
        }
        let _ = process.shell.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill_9();
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            let folder = self.folder.display();
            tracing::warn!(%folder, %error, "the folder of a test's server is left behind");
        }
    }
}

fn failed(words: String) -> Error {
    Error::new(Code::Unreachable, words)
}

/// `rrq-node 0.1.0 ready: clients 127.0.0.1:7411, admin ...`.
fn address_of(ready: &str) -> Option<String> {
    let (_, rest) = ready.split_once(" ready: clients ")?;
    rest.split(',').next().map(str::to_owned)
}

fn find_program() -> Result<PathBuf, Error> {
    let named = env::var_os(VARIABLE).filter(|name| !name.is_empty());
    if let Some(program) = named {
        let program = PathBuf::from(program);
        return match program.is_file() {
            true => Ok(program),
            false => Err(failed(format!(
                "{VARIABLE} names {}, and there is no such file",
                program.display()
            ))),
        };
    }
    let own = env::current_exe().unwrap_or_default();
    let beside: Vec<PathBuf> = own
        .ancestors()
        .skip(1)
        .take(3)
        .map(Path::to_owned)
        .collect();
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = beside.iter().cloned().chain(env::split_paths(&path));
    let mut programs = folders.map(|folder| folder.join(PROGRAM));
    programs.find(|program| program.is_file()).ok_or_else(|| {
        let beside = beside.first().map(|folder| folder.display().to_string());
        failed(format!(
            "{PROGRAM} was not found: {VARIABLE} is not set, it is not beside the test's program \
             (in {} or the two folders above), and not in PATH. Fix: `cargo install` rrq, or set \
             {VARIABLE} to the file",
            beside.unwrap_or_default()
        ))
    })
}

/// A new folder: in cargo's target folder if the test runs from there, which is on a disk, else
/// where temporary files go.
fn new_folder() -> Result<PathBuf, Error> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let own = env::current_exe().unwrap_or_default();
    let target = own
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file());
    let base = target.map_or_else(env::temp_dir, |target| target.join("tmp"));
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = base.join(format!("rrq-test-{}-{number}", std::process::id()));
    if folder.exists() {
        // Of a process of the same number that was killed.
        let _ = fs::remove_dir_all(&folder);
    }
    fs::create_dir_all(&folder)
        .map_err(|error| failed(format!("cannot make {}: {error}", folder.display())))?;
    Ok(folder)
}

fn each_line(source: impl Read + Send + 'static, mut see: impl FnMut(String) + Send + 'static) {
    std::thread::spawn(move || {
        let lines = BufReader::new(source).lines();
        lines.map_while(Result::ok).for_each(&mut see);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_tells_the_address() {
        let line = "rrq-node 0.1.0 ready: clients 127.0.0.1:40123, admin 127.0.0.1:1, 1 shards";
        assert_eq!(address_of(line).as_deref(), Some("127.0.0.1:40123"));
        assert_eq!(address_of("something else"), None);
    }

    #[test]
    fn folders_are_not_shared() {
        let (a, b) = (new_folder().expect("made"), new_folder().expect("made"));
        assert_ne!(a, b);
        for folder in [a, b] {
            fs::remove_dir(folder).expect("it is empty");
        }
    }
}
