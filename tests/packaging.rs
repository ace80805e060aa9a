//! The files that put a node to work: systemd unit, seccomp profile, container. What needs a machine
//! booted with systemd or a registry of images is not tested, and the files say so.
#![cfg(all(feature = "server", target_os = "linux"))]

mod node_support;

use node_support::{DEADLINE, Node, command, folder, skip};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

const NODE: &str = env!("CARGO_BIN_EXE_rrq-node");

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_unit_is_one_that_systemd_understands() {
    let unit = read("configs/rrq-node.service");
    for line in [
        "Type=notify",
        "LimitMEMLOCK=infinity",
        "NoNewPrivileges=yes",
    ] {
        assert!(unit.lines().any(|other| other == line), "{line} is missing");
    }
    // Here the program is not where the unit expects it, nor its document.
    let unit = unit
        .replace("/usr/local/bin/rrq-node", NODE)
        .replace("Documentation=", "#");
    let place = folder("packaging-unit");
    fs::create_dir_all(&place).expect("a folder");
    let file = place.join("rrq-node.service");
    fs::write(&file, unit).expect("a file");
    let mut analyze = Command::new("systemd-analyze");
    let Ok(output) = analyze.arg("verify").arg(&file).output() else {
        return skip("systemd-analyze");
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("rrq-node"))
        .collect();
    assert!(ours.is_empty(), "{said}");
}

#[test]
fn a_supervisor_hears_that_the_node_serves_lives_and_stops() {
    let place = folder("packaging-notify");
    fs::create_dir_all(&place).expect("a folder");
    // Names of sockets are short, and the folder's may be long.
    let socket = std::env::temp_dir().join(format!("rrq-notify-{}", std::process::id()));
    let supervisor = UnixDatagram::bind(&socket).expect("a socket");
    supervisor
        .set_read_timeout(Some(DEADLINE))
        .expect("a timeout");
    let heard = || {
        let mut buffer = [0; 4096];
        let length = supervisor
            .recv(&mut buffer)
            .expect("the node says something");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let until = |word: &str| {
        let begun = std::time::Instant::now();
        while !heard().lines().any(|line| line == word) {
            assert!(begun.elapsed() < DEADLINE, "{word} was never said");
        }
    };
    let mut command = command(&place.join("data"), &[]);
    command
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "600000")
        .env_remove("WATCHDOG_PID");
    let mut node = Node::spawn_by(&mut command).until_ready();
    until("READY=1");
    until("WATCHDOG=1");
    node.signal("-TERM");
    until("STOPPING=1");
    assert!(node.wait().success());
    fs::remove_file(&socket).expect("it is ours");
}

/// Names that the profile allows.
fn allowed() -> BTreeSet<String> {
    let profile: serde_json::Value =
        serde_json::from_str(&read("configs/seccomp.json")).expect("it is JSON");
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().expect("rules");
    let allow = rules
        .iter()
        .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW");
    allow
        .flat_map(|rule| rule["names"].as_array().expect("names"))
        .map(|name| name.as_str().expect("a name").to_owned())
        .collect()
}

#[test]
fn the_profile_allows_every_call_that_a_node_makes() {
    let allowed = allowed();
    for name in [
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "membarrier",
    ] {
        assert!(allowed.contains(name), "{name} is not allowed");
    }
    let place = folder("packaging-seccomp");
    fs::create_dir_all(&place).expect("a folder");
    let trace = place.join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-c", "-o"]).arg(&trace).arg(NODE);
    strace
        .args(["--shards", "1", "--no-pin", "--listen", "127.0.0.1:0"])
        .args(["--admin", "127.0.0.1:0", "--data-dir"])
        .arg(place.join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("strace");
    }
    let mut node = Node::spawn_by(&mut strace).until_ready();
    let (_, pid) = node
        .ready
        .rsplit_once("kill ")
        .expect("it says how to stop it");
    let sent = Command::new("kill").args(["-TERM", pid]).status();
    assert!(sent.is_ok_and(|status| status.success()), "kill {pid}");
    node.wait();
    let table = fs::read_to_string(&trace).expect("strace wrote a table");
    let made = table
        .lines()
        .skip(2)
        .take_while(|line| !line.starts_with("---"))
        .filter_map(|line| line.split_whitespace().last());
    let made: BTreeSet<&str> = made.collect();
    assert!(
        made.contains("io_uring_enter") && made.len() > 20,
        "{table}"
    );
    for name in made {
        assert!(
            allowed.contains(name),
            "configs/seccomp.json does not allow {name}"
        );
    }
}

#[test]
fn the_container_names_only_what_is_there() {
    let docker = read("configs/docker/Dockerfile");
    for line in docker.lines().filter(|line| line.starts_with("COPY ")) {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        if words[0].starts_with("--") {
            continue;
        }
        for source in &words[..words.len() - 1] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
            assert!(path.exists(), "{source} is not there");
        }
    }
    let compose = read("configs/docker/compose.yml");
    let known: BTreeSet<String> = rrq::runtime::config::KEYS
        .iter()
        .map(rrq::runtime::config::Key::env)
        .collect();
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let unit = read("configs/rrq-node.service");
    for name in [&docker, &compose, &unit]
        .into_iter()
        .flat_map(|text| text.split(word))
    {
        let is_ours = name.starts_with("RRQ_") && name != rrq::runtime::config::CONFIG_VARIABLE;
        assert!(
            !is_ours || known.contains(name),
            "{name} is no variable of rrq-node"
        );
    }
    for words in ["seccomp=../seccomp.json", "memlock: -1"] {
        assert!(compose.contains(words), "{words} is missing");
    }
}
