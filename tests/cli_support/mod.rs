//! Runs `rrqctl` for process tests.

// Each test program uses its own part of it.
#![allow(dead_code)]

use super::node_support::{DEADLINE, Node, error_kit};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How a command ended.
pub(crate) struct Done {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    /// It must have succeeded; what it said.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// It must have failed with this status and this code, in the one form and without a panic. The
    /// text is pinned.
    #[track_caller]
    pub(crate) fn failed(self, status: i32, code: &str) -> String {
        assert_eq!(self.status, status, "{}{}", self.out, self.err);
        assert!(
            self.err.contains(&format!("error[{code}]: ")),
            "{code} is not told: {}",
            self.err
        );
        assert!(!self.err.contains("panicked"), "{}", self.err);
        error_kit::compare(&self.err);
        self.err
    }
}

/// `rrqctl` with these arguments, not started yet.
pub(crate) fn command(server: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrqctl"));
    command
        .args(args)
        .env("RRQ_SERVER", server)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs `rrqctl` to its end.
pub(crate) fn rrqctl(node: &Node, args: &[&str]) -> Done {
    finish(start(node, args))
}

/// Runs `rrqctl` with something on its standard input.
pub(crate) fn rrqctl_fed(node: &Node, args: &[&str], input: &[u8]) -> Done {
    let mut child = command(&node.clients().to_string(), args)
        .stdin(Stdio::piped())
        .spawn()
        .expect("rrqctl is built");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input).expect("it reads");
    drop(stdin);
    finish(child)
}

/// Runs `rrqctl` without a server.
pub(crate) fn alone(args: &[&str]) -> Done {
    // Nothing can listen there.
    finish(
        command("127.0.0.1:1", args)
            .spawn()
            .expect("rrqctl is built"),
    )
}

pub(crate) fn start(node: &Node, args: &[&str]) -> Child {
    let server = node.clients().to_string();
    command(&server, args).spawn().expect("rrqctl is built")
}

/// Waits for the end of a command, which must come.
pub(crate) fn finish(child: Child) -> Done {
    let (sender, receiver) = std::sync::mpsc::channel();
    let pid = child.id();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(DEADLINE) else {
        signal(pid, "-KILL");
        panic!("rrqctl does not end");
    };
    let output = output.expect("its output can be read");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Done {
        status: code(output.status),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(-1)
}

pub(crate) fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(
        sent.expect("kill is there").success(),
        "kill {signal} {pid}"
    );
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "{what}: never");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a file is there, and reads it.
#[track_caller]
pub(crate) fn appears(path: &Path) -> String {
    let what = path.display().to_string();
    until(&what, || {
        let text = std::fs::read_to_string(path).ok();
        text.filter(|text| text.ends_with('\n'))
    })
}

/// The counters of a queue.
pub(crate) fn queue(node: &Node, name: &str) -> serde_json::Value {
    let status = rrqctl(node, &["status", "--output", "json"]).ok();
    let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
    let queues = status["queues"].as_array().expect("a list").clone();
    queues
        .into_iter()
        .find(|queue| queue["name"] == name)
        .expect("the queue is there")
}

/// Compares with a file under `tests/snapshots`, or writes it if `UPDATE=1`.
#[track_caller]
pub(crate) fn snapshot(name: &str, text: &str) {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    let path = Path::new(&root).join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        std::fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("it is made");
        std::fs::write(&path, text).expect("the snapshot can be written");
        return;
    }
    let wanted = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; UPDATE=1 writes it", path.display()));
    assert_eq!(wanted, text, "{}: UPDATE=1 rewrites it", path.display());
}

/// The names and types in a JSON value: of a list, those of its first element.
pub(crate) fn shape(value: &serde_json::Value) -> String {
    fn write(value: &serde_json::Value, indent: usize, out: &mut String) {
        use serde_json::Value;
        match value {
            Value::Null => *out += "null",
            Value::Bool(_) => *out += "bool",
            Value::Number(number) if number.is_u64() => *out += "whole number",
            Value::Number(_) => *out += "number",
            Value::String(_) => *out += "text",
            Value::Array(items) => match items.first() {
                None => *out += "list of nothing",
                Some(first) => {
                    *out += "list of ";
                    write(first, indent, out);
                }
            },
            Value::Object(fields) => {
                *out += "{\n";
                for (name, field) in fields {
                    *out += &format!("{:1$}{name}: ", "", indent + 2);
                    write(field, indent + 2, out);
                    out.push('\n');
                }
                *out += &format!("{:1$}}}", "", indent);
            }
        }
    }
    let mut out = String::new();
    write(value, 0, &mut out);
    out + "\n"
}
