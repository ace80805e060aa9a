//! The examples run against a real node and print what they should.
#![cfg(all(feature = "client", feature = "server", target_os = "linux"))]

use rrq::client::blocking::Client;
use rrq::test::Server;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Lines of `produce` and `work` from the connection to the end of what they are about.
const LINES_MAX: usize = 15;

/// The folder of the examples, which `cargo test` builds; a run of this test alone does not, so
/// cargo is asked for them, and has nothing to do otherwise.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let own = std::env::current_exe().expect("it runs");
        let profile = own
            .parent()
            .and_then(Path::parent)
            .expect("target/PROFILE/deps");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--examples", "--offline", "--quiet"]);
        build.args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ]);
        build
            .arg("--target-dir")
            .arg(profile.parent().expect("target"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let built = build.output().expect("cargo runs");
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        profile.join("examples")
    })
}

/// What an example prints.
fn run(name: &str, args: &[&str]) -> String {
    let output = Command::new(folder().join(name)).args(args).output();
    let output = output.expect("it is built");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    String::from_utf8(output.stdout).expect("it prints text")
}

#[test]
fn produce_and_work() {
    let server = Server::start().expect("it starts");
    let first = run("produce", &[server.address()]);
    assert!(
        first.starts_with("enqueued ") && first.len() == "enqueued \n".len() + 32,
        "{first}"
    );
    assert_eq!(
        run("produce", &[server.address()]),
        first,
        "the key makes it one job"
    );
    let client = Client::connect(server.address()).expect("connected");
    client
        .enqueue("emails", "nobody")
        .max_attempts(1)
        .send()
        .expect("enqueued");
    let worked = run("work", &[server.address(), "--until-empty"]);
    assert_eq!(worked, "sent to ada@example.com\n1 done, 1 failed\n");
}

#[test]
fn batch() {
    let server = Server::start().expect("it starts");
    assert_eq!(
        run("batch", &[server.address()]),
        "10000 enqueued, 0 already there, 10000 pending\n"
    );
}

#[test]
fn delay_and_priority() {
    let server = Server::start().expect("it starts");
    let order = "urgent\nfirst in, first out\nnext\nat a time\nafter a while\n";
    assert_eq!(run("delay_and_priority", &[server.address()]), order);
}

#[test]
fn results() {
    let server = Server::start().expect("it starts");
    assert_eq!(run("results", &[server.address()]), "12 * 12 = b\"144\"\n");
}

#[test]
fn admin() {
    let server = Server::start().expect("it starts");
    let due =
        "dead: b\"November\", the printer is out of paper\n1 to requeue\n1 requeued, 1 pending\n";
    assert_eq!(run("admin", &[server.address()]), due);
}

#[test]
fn producing_and_working_take_few_lines() {
    for name in ["produce", "work"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/{name}.rs"));
        let text = std::fs::read_to_string(path).expect("it is there");
        let (_, main) = text
            .split_once("#[tokio::main")
            .expect("it has a main function");
        let lines = main.lines().count();
        assert!(
            lines <= LINES_MAX,
            "{name}: its main function has {lines} lines"
        );
    }
}
