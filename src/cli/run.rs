//! One job in the hands of a command: its process, what it is given and what it says.
//!
//! The run limit and the lease are the worker's matter: it drops what has run too long or is no longer
//! ours, and with it goes the process. The command gets a process group of its own, so that the limit ends all that it started, and so
//! that Ctrl-C at the terminal drains the worker instead of killing what runs.

use crate::base::limits::RESULT_BYTES_MAX;
use crate::cli::terminal::warn;
use crate::client::worker::Job;
use crate::runtime::sys;
use bytes::Bytes;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

/// A failure reason is the end of what the command wrote to standard error, at most this much.
const REASON_BYTES: usize = crate::base::limits::REASON_BYTES_MAX;
/// When a command has ended, its outputs are read so much longer: it may have left children that keep
/// them open.
const OUTPUT_GRACE: Duration = Duration::from_millis(100);

/// How a command ended.
#[derive(Debug)]
pub(super) enum End {
    /// Exit status 0, and what it printed if that is its result.
    Done(Option<Bytes>),
    /// Anything else; why.
    Failed(Bytes),
    /// It could not be started at all.
    NotStarted(io::Error),
}

/// Kills the process group of a command when it goes, whatever the reason.
struct Group {
    child: Child,
    id: Option<u32>,
}

impl Drop for Group {
    fn drop(&mut self) {
        // Only while the child is not reaped: afterwards the number may be another's.
        if let Some(id) = self.id.filter(|_| self.child.id().is_some()) {
            sys::kill_group(id);
        }
    }
}

/// What is run for each job.
pub(super) struct Command {
    line: Vec<OsString>,
    /// Whether what it prints is the job's result.
    with_result: bool,
}

impl Command {
    /// Of a program and its arguments, at least the program.
    pub(super) fn new(line: &[OsString], with_result: bool) -> Self {
        let line = line.to_vec();
        Self { line, with_result }
    }

    /// Runs it for a job until it ends. Dropped before, it is killed with all that it started.
    pub(super) async fn run(&self, job: &Job) -> End {
        let mut group = match self.start(job) {
            Ok(group) => group,
            Err(error) => return End::NotStarted(error),
        };
        let stdin = group.child.stdin.take();
        let mut printed = Output::new(group.child.stdout.take(), RESULT_BYTES_MAX + 1);
        let mut errors = Tail::new(group.child.stderr.take());
        let status = {
            let talk = async {
                let feed = feed(stdin, job.payload().clone());
                tokio::join!(feed, printed.read(), errors.read());
                std::future::pending::<Infallible>().await
            };
            tokio::select! {
                status = group.child.wait() => status,
                never = talk => match never {},
            }
        };
        // It may have left children that keep its outputs open.
        let rest = async { tokio::join!(printed.read(), errors.read()) };
        let _ = tokio::time::timeout(OUTPUT_GRACE, rest).await;
        match status {
            Ok(status) if status.success() => printed.into_end(self.with_result),
            Ok(status) => End::Failed(errors.reason(status)),
            Err(error) => End::Failed(format!("cannot wait for the command: {error}").into()),
        }
    }

    fn start(&self, job: &Job) -> io::Result<Group> {
        let mut command = tokio::process::Command::new(&self.line[0]);
        command
            .args(&self.line[1..])
            .env("RRQ_JOB_ID", job.id().to_string())
            .env("RRQ_ATTEMPT", job.attempt().to_string())
            .env("RRQ_QUEUE", job.queue())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if self.with_result {
            command.stdout(Stdio::piped());
        }
        let child = command.spawn()?;
        let id = child.id();
        Ok(Group { child, id })
    }
}

/// Gives the payload to the command. One that does not read it all is right too.
async fn feed(stdin: Option<ChildStdin>, payload: Bytes) {
    if let Some(mut stdin) = stdin
        && let Err(error) = stdin.write_all(&payload).await
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        warn(&format!("cannot write the payload to the command: {error}"));
    }
}

/// What a command prints, if that is its result; else it goes where ours does.
struct Output {
    bytes: Vec<u8>,
    /// How much is kept; what is beyond is read and dropped.
    bytes_max: usize,
    open: Option<ChildStdout>,
}

impl Output {
    fn new(open: Option<ChildStdout>, bytes_max: usize) -> Self {
        let bytes = Vec::new();
        Self {
            bytes,
            bytes_max,
            open,
        }
    }

    async fn read(&mut self) {
        let mut buffer = vec![0; 4 << 10];
        while let Some(stdout) = &mut self.open {
            match stdout.read(&mut buffer).await {
                Ok(0) | Err(_) => self.open = None,
                Ok(count) => {
                    let room = self.bytes_max - self.bytes.len();
                    self.bytes.extend_from_slice(&buffer[..count.min(room)]);
                }
            }
        }
    }

    fn into_end(self, is_result: bool) -> End {
        if self.bytes.len() > RESULT_BYTES_MAX {
            let words = format!("it printed more than {RESULT_BYTES_MAX} bytes as its result");
            return End::Failed(words.into());
        }
        End::Done(is_result.then(|| self.bytes.into()))
    }
}

/// The end of what a command writes to standard error, which goes on to ours.
struct Tail {
    bytes: Vec<u8>,
    open: Option<ChildStderr>,
}

impl Tail {
    fn new(open: Option<ChildStderr>) -> Self {
        let bytes = Vec::new();
        Self { bytes, open }
    }

    async fn read(&mut self) {
        let mut buffer = vec![0; 4 << 10];
        while let Some(stderr) = &mut self.open {
            match stderr.read(&mut buffer).await {
                Ok(0) | Err(_) => self.open = None,
                Ok(count) => {
                    // If nobody reads ours, the reason is still sent to the server.
                    let _ = io::stderr().lock().write_all(&buffer[..count]);
                    self.bytes.extend_from_slice(&buffer[..count]);
                    let surplus = self.bytes.len().saturating_sub(REASON_BYTES);
                    self.bytes.drain(..surplus);
                }
            }
        }
    }

    /// Why the command failed: its last words, else how it ended.
    fn reason(&self, status: ExitStatus) -> Bytes {
        // A cut may have split a character.
        let cut = self
            .bytes
            .iter()
            .take(3)
            .take_while(|byte| **byte & 0xc0 == 0x80)
            .count();
        let words = self.bytes[cut..].trim_ascii();
        if !words.is_empty() {
            return Bytes::copy_from_slice(words);
        }
        match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}").into(),
            (None, Some(signal)) => format!("killed by signal {signal}").into(),
            (None, None) => Bytes::from_static(b"ended"),
        }
    }
}
