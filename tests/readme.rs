//! What the README and the guide show was really run: their console blocks, line by line, in one
//! shell each, against the programs of this build. `[..]` stands for what differs from run to run.

#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);
const END: &str = "__end_of_a_command__";

/// A command with the lines that it must print.
#[derive(Debug, Default)]
struct Step {
    command: String,
    expected: Vec<String>,
}

/// The steps of the console blocks of a text, but for the first `skipped`.
fn steps(text: &str, skipped: usize) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let blocks = text.split("```console\n").skip(1 + skipped);
    for line in blocks.flat_map(|block| block.split("```").next().expect("a block").lines()) {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push(Step {
                command: command.to_owned(),
                ..Step::default()
            }),
            None => {
                let step = steps.last_mut().expect("a block starts with a command");
                step.expected.push(line.to_owned());
            }
        }
    }
    steps
}

#[test]
fn the_programs_shown_are_the_examples() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect(path);
    let readme = read("README.md");
    let shown = readme.split("```rust\n").nth(1).expect("a program");
    let shown = shown.split("```").next().expect("its end");
    let example = read("examples/first.rs");
    let (_, program) = example.split_once("\n\n").expect("a head");
    assert_eq!(shown, program);
}

/// Whether a line is the one expected, `[..]` being any text.
fn matches(line: &str, expected: &str) -> bool {
    let mut parts = expected.split("[..]");
    let first = parts.next().expect("a split has a first part");
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    for (at, part) in parts.iter().enumerate() {
        let found = if at + 1 == parts.len() {
            rest.rfind(part)
        } else {
            rest.find(part)
        };
        let Some(found) = found else { return false };
        rest = &rest[found + part.len()..];
    }
    rest.is_empty()
}

#[test]
fn wildcards_stand_for_any_text_and_nothing_else() {
    assert!(matches("node 1 at x:1 ready", "node [..] at [..] ready"));
    assert!(matches("same", "same"));
    assert!(!matches("same ", "same"));
    assert!(!matches("node 1 at x:1", "node [..] at [..] ready"));
}

/// A port with the one after it free: two shards.
fn free_port() -> u16 {
    (0..100)
        .find_map(|_| {
            let first = TcpListener::bind("127.0.0.1:0").ok()?;
            let port = first.local_addr().ok()?.port();
            TcpListener::bind(("127.0.0.1", port.checked_add(1)?))
                .ok()
                .map(|_| port)
        })
        .expect("two ports in a row are free")
}

fn next_line(lines: &Receiver<String>, step: &Step) -> String {
    lines
        .recv_timeout(DEADLINE)
        .unwrap_or_else(|_| panic!("nothing more came of {step:?}"))
}

#[test]
fn the_transcripts_of_the_readme_are_true() {
    // CI runs the first block by itself.
    run("README.md", 1);
}

#[test]
fn the_transcripts_of_the_guide_are_true() {
    run("docs/guide.md", 0);
}

fn run(file: &str, skipped: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join(file)).expect("the document is there");
    let steps = steps(&text, skipped);
    assert!(steps.len() >= 10, "{file} has a tour: {steps:?}");

    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder is made");
    std::os::unix::fs::symlink(root.join("tests"), folder.path().join("tests")).expect("a link");
    let programs = Path::new(env!("CARGO_BIN_EXE_rrq-node"))
        .parent()
        .expect("a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    let port = free_port();
    let mut shell = Command::new("bash")
        .args(["--noprofile", "--norc"])
        .current_dir(folder.path())
        .env("PATH", format!("{}:{path}", programs.display()))
        .env("RRQ_LISTEN__CLIENT", format!("127.0.0.1:{port}"))
        .env("RRQ_LISTEN__ADMIN", "127.0.0.1:0")
        .env("RRQ_SHARDS__COUNT", "2")
        .env("RRQ_SERVER", format!("127.0.0.1:{port}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash is there");
    let mut input = shell.stdin.take().expect("it was asked for");
    let output = shell.stdout.take().expect("it was asked for");
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    // Whatever happens, no node is left behind.
    writeln!(input, "exec 2>/dev/null; trap 'kill -9 $(jobs -p)' EXIT").expect("bash listens");
    for step in &steps {
        if step.command.ends_with('&') {
            writeln!(input, "{}", step.command).expect("bash listens");
        } else {
            writeln!(input, "{} 2>&1\necho; echo {END}", step.command).expect("bash listens");
        }
        let mut printed = Vec::new();
        if step.command.ends_with('&') {
            printed.extend(step.expected.iter().map(|_| next_line(&lines, step)));
        } else {
            loop {
                let line = next_line(&lines, step);
                if line == END {
                    break;
                }
                printed.push(line);
            }
            assert_eq!(
                printed.pop().as_deref(),
                Some(""),
                "the mark has a line of its own"
            );
        }
        let same = printed.len() == step.expected.len()
            && printed
                .iter()
                .zip(&step.expected)
                .all(|(line, expected)| matches(line, expected));
        assert!(same, "`{}` printed\n{}", step.command, printed.join("\n"));
    }
    drop(input);
    let status = shell.wait().expect("bash ends");
    assert!(
        status.success() || status.code().is_some(),
        "bash ended with {status}"
    );
}
