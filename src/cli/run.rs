//! One job in the hands of a command: its process, its run limit, its lease.
//!
//! The command gets a process group of its own, so that the limit ends all that it started, and so
//! that Ctrl-C at the terminal drains the worker instead of killing what runs.

use crate::cli::terminal::warn;
use crate::client::{Client, Code, Error, LeasedJob};
use crate::runtime::sys;
use bytes::Bytes;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::time::Instant;

/// A failure reason is the end of what the command wrote to standard error, at most this much.
const REASON_BYTES: usize = crate::base::limits::REASON_BYTES_MAX;
/// When a command has ended, its standard error is read so much longer: it may have left children
/// that keep it open.
const STDERR_GRACE: Duration = Duration::from_millis(100);
/// A lease is extended when a third of it has passed, but not more often than this.
const EXTEND_MIN: Duration = Duration::from_millis(20);

/// How a command ended.
#[derive(Debug)]
pub(super) enum End {
    /// Exit status 0.
    Done,
    /// Anything else; why.
    Failed(Bytes),
    /// The lease was lost while it ran, and it was killed; the job is no longer ours.
    LeaseLost(Error),
    /// It could not be started at all.
    NotStarted(io::Error),
}

/// Kills the process group of a command when it goes, whatever the reason.
struct Group {
    child: Child,
    id: Option<u32>,
}

impl Group {
    fn kill(&mut self) {
        // Only while the child is not reaped: afterwards the number may be another's.
        if let Some(id) = self.id.filter(|_| self.child.id().is_some()) {
            sys::kill_group(id);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs `command` for a job until it ends, the run limit passes or the lease is lost.
pub(super) async fn run(
    client: &Client,
    queue: &str,
    command: &[OsString],
    leased: &LeasedJob,
) -> End {
    let (mut group, stdin, stderr) = match start(queue, command, leased) {
        Ok(started) => started,
        Err(error) => return End::NotStarted(error),
    };
    let mut tail = Tail::default();
    let limit = Duration::from_millis(leased.job.body.run_limit_ms.into());
    let ended = {
        let feed = feed(stdin, leased.job.body.payload.clone());
        let lost = keep_lease(client, leased);
        let timeout = async {
            match limit {
                Duration::ZERO => std::future::pending().await,
                limit => tokio::time::sleep(limit).await,
            }
        };
        let output = async {
            tokio::join!(feed, tail.read(stderr));
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            status = group.child.wait() => Ended::Exit(status),
            () = timeout => Ended::Timeout,
            error = lost => Ended::LeaseLost(error),
            never = output => match never {},
        }
    };
    match ended {
        Ended::Exit(status) => {
            tail.rest().await;
            match status {
                Ok(status) if status.success() => End::Done,
                Ok(status) => End::Failed(tail.reason(status)),
                Err(error) => End::Failed(format!("cannot wait for the command: {error}").into()),
            }
        }
        Ended::Timeout => {
            group.kill_and_reap().await;
            End::Failed(Bytes::from_static(b"timeout"))
        }
        Ended::LeaseLost(error) => {
            group.kill_and_reap().await;
            End::LeaseLost(error)
        }
    }
}

enum Ended {
    Exit(io::Result<ExitStatus>),
    Timeout,
    LeaseLost(Error),
}

impl Group {
    async fn kill_and_reap(&mut self) {
        self.kill();
        if let Err(error) = self.child.wait().await {
            warn(&format!("cannot wait for a killed command: {error}"));
        }
    }
}

fn start(
    queue: &str,
    command: &[OsString],
    leased: &LeasedJob,
) -> io::Result<(Group, Option<ChildStdin>, Option<ChildStderr>)> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no command"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("RRQ_JOB_ID", leased.job.id.to_string())
        .env("RRQ_ATTEMPT", leased.job.attempts.to_string())
        .env("RRQ_QUEUE", queue)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let id = child.id();
    Ok((Group { child, id }, stdin, stderr))
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

/// Extends the lease over and over; ends when it is lost.
async fn keep_lease(client: &Client, leased: &LeasedJob) -> Error {
    let every = (Duration::from_millis(leased.lease_ms.into()) / 3).max(EXTEND_MIN);
    let mut next = Instant::now() + every;
    loop {
        tokio::time::sleep_until(next).await;
        next = Instant::now() + every;
        let lease = Duration::from_millis(leased.lease_ms.into());
        match client.extend(leased.token(), Some(lease)).await {
            Err(error) if is_lost(&error) => return error,
            // The client has tried for long already; the lease stands still with its server.
            Err(error) => warn(&format!("job {}: not extended: {error}", leased.job.id)),
            Ok(()) => {}
        }
    }
}

/// Whether the job is no longer ours, whatever we do.
pub(super) fn is_lost(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::LeaseLost
            | Code::Finished
            | Code::NotFound
            | Code::QueueChanged
            | Code::WrongState
            | Code::SessionExpired
    )
}

/// The end of what a command writes to standard error, which goes on to ours.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    open: Option<ChildStderr>,
}

impl Tail {
    async fn read(&mut self, stderr: Option<ChildStderr>) {
        self.open = stderr;
        self.read_on().await;
    }

    async fn read_on(&mut self) {
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

    async fn rest(&mut self) {
        if tokio::time::timeout(STDERR_GRACE, self.read_on())
            .await
            .is_err()
        {
            self.open = None;
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
