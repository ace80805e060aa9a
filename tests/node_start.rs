//! A node starts, says so, stops; and refuses, by name and in one form, what it must not touch.
#![cfg(all(feature = "server", target_os = "linux"))]

mod node_support;

use node_support::{Node, TestFolder, folder, http, refused, skip};
use rrq::base::limits::STARTS_END;
use rrq::runtime::config::NodeConfig;
use rrq::runtime::data_dir::DataDir;
use rrq::runtime::snapshot_files::last_start;
use rrq::snapshot::superblock::Superblock;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The user and group `nobody`.
const NOBODY: u32 = 65_534;

/// Name and content of each file of a folder.
fn contents(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path).expect("it can be read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let bytes = fs::read(&path).expect("it can be read");
            found.insert(path, bytes);
        }
    }
    found
}

/// A directory of a node that was started once and stopped.
fn used(name: &str, args: &[&str]) -> TestFolder {
    let data = folder(name);
    let mut node = Node::start(&data, args);
    node.signal("-TERM");
    assert!(node.wait().success(), "it stops well");
    data
}

#[test]
fn starts_with_one_line_serves_health_and_stops_within_two_seconds() {
    let data = folder("starts");
    let mut node = Node::start(&data, &["--shards", "2"]);
    let expected = format!(
        "2 shards, data {}, stop with Ctrl-C or kill {}",
        data.display(),
        node.pid()
    );
    assert!(
        node.ready
            .starts_with("rrq-node 0.1.0 ready: clients 127.0.0.1:"),
        "{}",
        node.ready
    );
    assert!(node.ready.ends_with(&expected), "{}", node.ready);
    assert_eq!(http(node.admin(), "/livez"), (200, "ok\n".to_owned()));
    assert_eq!(http(node.admin(), "/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(http(node.admin(), "/healthz"), (200, "ready\n".to_owned()));
    let (status, metrics) = http(node.admin(), "/metrics");
    assert_eq!(status, 200);
    for line in ["version=\"0.1.0\"} 1", "rrq_connections{shard=\"1\"} 0"] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    assert!(
        metrics.contains("rrq_recovery_seconds{phase=\"serve\"}"),
        "{metrics}"
    );
    assert_eq!(http(node.admin(), "/nothing").0, 404);
    let begun = Instant::now();
    node.signal("-TERM");
    assert!(node.wait().success());
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(node.errors(), "", "a good run says nothing more");
}

#[test]
fn a_restart_takes_the_directory_as_it_was_made() {
    let data = used("restart", &["--shards", "2", "--id", "7"]);
    // No count given: the directory's own.
    let text = "[node]\n[shards]\npin = false\n";
    let config = data.with_extension("toml");
    fs::write(&config, text).expect("a file can be written");
    let node = Node::start(
        &data,
        &["--config", config.to_str().expect("a path of ours")],
    );
    assert!(node.ready.contains("2 shards"), "{}", node.ready);
}

#[test]
fn a_killed_node_leaves_nothing_in_the_way() {
    let data = folder("killed");
    let mut node = Node::start(&data, &[]);
    node.signal("-KILL");
    let again = Node::start(&data, &[]);
    assert!(again.ready.contains("ready"));
    node.wait();
}

#[test]
fn bad_flags_and_files_are_named_with_their_place() {
    let data = folder("flags");
    for (args, words) in [
        (&["--shards", "0"][..], &["error[RRQ-2001]", "1 to 64"][..]),
        (&["--shards", "many"], &["error[RRQ-2001]", "1 to 64"]),
        (&["--sharts", "2"], &["error[RRQ-2001]", "--shards"]),
        (&["--payload-max", "5MiB"], &["error[RRQ-2001]", "4MiB"]),
        (
            &["--shards", "2", "--shard-per-core"],
            &["error[RRQ-2001]", "cannot be used with"],
        ),
        (
            &["--config", "no/such/file.toml"],
            &["error[RRQ-2002]", "no/such/file.toml"],
        ),
    ] {
        let (status, text) = refused(&data, args);
        assert_eq!(status, 2, "{args:?}: {text}");
        assert!(
            words.iter().all(|word| text.contains(word)),
            "{args:?}: {text}"
        );
    }
    let config = data.with_extension("toml");
    fs::write(&config, "[listen]\nclints = \"x\"\n").expect("a file can be written");
    let (status, text) = refused(
        &data,
        &["--config", config.to_str().expect("a path of ours")],
    );
    assert_eq!(status, 2);
    assert!(
        text.contains("toml:2:1") && text.contains("did you mean `listen.client`"),
        "{text}"
    );
    assert!(!data.exists(), "a refused start makes nothing");
}

#[test]
fn a_taken_port_is_named_with_its_holder() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let address = taken.local_addr().expect("it is bound").to_string();
    let data = folder("port");
    for flag in ["--listen", "--admin"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-node"));
        let other = if flag == "--listen" {
            "--admin"
        } else {
            "--listen"
        };
        command
            .args(["--shards", "1", other, "127.0.0.1:0", "--data-dir"])
            .arg(&*data);
        let output = command.args([flag, &address]).output().expect("it runs");
        let text = String::from_utf8(output.stderr).expect("text");
        node_support::assert_is_report(&text);
        node_support::error_kit::compare(&text);
        assert_eq!(output.status.code(), Some(4), "{text}");
        let pid = format!("pid {}", std::process::id());
        for word in ["error[RRQ-1006]", &address, &pid, flag] {
            assert!(text.contains(word), "{word} is missing in {text}");
        }
    }
}

/// Its shards read meanwhile what is there.
#[test]
fn a_start_that_gets_no_port_counts_for_nothing() {
    let data = used("no-port", &[]);
    let before = contents(&data);
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let address = taken.local_addr().expect("it is bound").to_string();
    for _ in 0..3 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-node"));
        let args = ["--listen", &address, "--admin", "127.0.0.1:0"];
        command.args(args).args(["--shards", "1", "--no-pin"]);
        let output = command.arg("--data-dir").arg(&*data).output();
        assert_eq!(output.expect("it runs").status.code(), Some(4));
    }
    let after = contents(&data);
    // Who starts writes its number there; a spare may have become the next segment.
    let name = |path: &PathBuf| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let may_change = |path: &PathBuf| {
        name(path).is_some_and(|name| name == "lock" || name.starts_with("spare-"))
    };
    for (path, bytes) in before.iter().filter(|(path, _)| !may_change(path)) {
        assert!(after.get(path) == Some(bytes), "{} changed", path.display());
    }
    let new = after.keys().filter(|path| !before.contains_key(*path));
    for path in new {
        let is_log = name(path).is_some_and(|name| name.ends_with(".seg"));
        assert!(is_log, "{} is new", path.display());
    }
    drop(taken);
    let node = Node::start(&data, &[]);
    assert_eq!(http(node.admin(), "/readyz").0, 200);
}

#[test]
fn a_port_that_the_node_itself_needs_twice_is_not_blamed_on_another() {
    let data = folder("twice");
    let output = Command::new(env!("CARGO_BIN_EXE_rrq-node"))
        .args(["--shards", "2", "--listen", "127.91.7.1:7411"])
        .args(["--admin", "127.91.7.1:7412", "--data-dir"])
        .arg(&*data)
        .output();
    let output = output.expect("it runs");
    let text = String::from_utf8(output.stderr).expect("text");
    node_support::assert_is_report(&text);
    node_support::error_kit::compare(&text);
    assert_eq!(output.status.code(), Some(4), "{text}");
}

#[test]
fn a_second_node_on_a_directory_is_refused_and_the_first_named() {
    let data = folder("second");
    let first = Node::start(&data, &[]);
    let (status, text) = refused(&data, &[]);
    assert_eq!(status, 4, "{text}");
    let pid = format!("pid {} rrq-node", first.pid());
    assert!(
        text.contains("error[RRQ-1007]") && text.contains(&pid),
        "{text}"
    );
    assert_eq!(http(first.admin(), "/readyz").0, 200, "the first goes on");
}

#[test]
fn a_foreign_directory_is_refused_and_untouched() {
    let data = folder("foreign");
    fs::create_dir_all(data.join("photos")).expect("a folder");
    fs::write(data.join("photos/cat.jpg"), b"a cat").expect("a file");
    let before = contents(&data);
    let (status, text) = refused(&data, &[]);
    assert_eq!(status, 6, "{text}");
    assert!(
        text.contains("error[RRQ-3005]") && text.contains("photos"),
        "{text}"
    );
    assert_eq!(contents(&data), before, "nothing was changed");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let data = used("newer", &[]);
    for copy in ["superblock.0", "superblock.1"] {
        change(&data.join(copy), 8, 9);
    }
    let (status, text) = refused(&data, &[]);
    assert_eq!(status, 6, "{text}");
    assert!(
        text.contains("error[RRQ-3001]") && text.contains("newer"),
        "{text}"
    );
}

/// Sets one byte of a superblock and its checksum with it.
fn change(path: &Path, at: usize, value: u8) {
    let mut bytes = fs::read(path).expect("a superblock");
    bytes[at] = value;
    let crc = rrq::base::checksum::crc32c(&[&bytes[..4092]]);
    bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
    fs::write(path, bytes).expect("it can be written");
}

#[test]
fn one_damaged_superblock_is_healed_two_are_refused() {
    let data = used("superblock", &[]);
    let (first, second) = (data.join("superblock.0"), data.join("superblock.1"));
    for copy in [&first, &second] {
        fs::write(copy, b"garbage").expect("it can be written");
        let mut node = Node::start(&data, &[]);
        node.signal("-TERM");
        assert!(node.wait().success());
        let said = node.errors();
        assert!(said.contains("superblock is bad"), "{said}");
        let healed = fs::read(copy).expect("it was written anew");
        assert_eq!(healed.len(), 4096);
    }
    fs::write(&first, b"garbage").expect("it can be written");
    fs::remove_file(&second).expect("it can be removed");
    let (status, text) = refused(&data, &[]);
    assert_eq!(status, 5, "{text}");
    assert!(
        text.contains("error[RRQ-5003]") && text.contains("superblock.0"),
        "{text}"
    );
    fs::remove_file(&first).expect("it can be removed");
    let (status, text) = refused(&data, &[]);
    assert_eq!(status, 5, "{text}");
    assert!(
        text.contains("error[RRQ-5004]") && text.contains("superblock.1"),
        "{text}"
    );
}

#[test]
fn no_start_has_the_number_of_one_before_whichever_superblock_is_lost() {
    let data = used("start-numbers", &[]);
    let config = NodeConfig {
        data_dir: data.to_path_buf(),
        dev: true,
        ..NodeConfig::default()
    };
    // Killed before it has both copies written anew.
    let start = || {
        let mut dir = DataDir::open(&config, 1).expect("it opens");
        let raised = dir.begin().expect("it begins");
        raised.write().expect("it is written");
        dir.superblock.start
    };
    let mut before = start();
    for lost in ["0", "1", "1", "0", "0", "1"] {
        fs::write(data.join(format!("superblock.{lost}")), b"garbage").expect("it can be written");
        let number = start();
        assert!(number > before, "start {before} was before {number}");
        before = number;
    }
}

#[test]
fn superblocks_that_allow_no_more_starts_are_refused_by_name() {
    let data = used("last-start", &[]);
    let say = |start: u64| {
        for copy in ["superblock.0", "superblock.1"].map(|name| data.join(name)) {
            let bytes = fs::read(&copy).expect("a superblock");
            let mut superblock = Superblock::decode(&bytes).expect("it is sound");
            superblock.start = start;
            fs::write(&copy, superblock.encode()).expect("it can be written");
        }
    };
    let last = u64::from(STARTS_END) - 1;
    for start in [last, last + 1, u64::MAX] {
        say(start);
        let before = contents(&data);
        let (status, text) = refused(&data, &[]);
        assert_eq!(status, 5, "{text}");
        assert!(text.contains("error[RRQ-5003]"), "{text}");
        assert!(text.contains(&format!("start {start};")), "{text}");
        assert!(text.contains("backup of the whole directory"), "{text}");
        assert_eq!(contents(&data), before);
    }
    // The last start of all serves, and writes checkpoints.
    say(last - 1);
    let mut node = Node::start(&data, &[]);
    node.signal("-TERM");
    assert!(node.wait().success(), "it stops well");
    let written = last_start(&data.join("shard-0000"));
    assert_eq!(written.expect("it can be read"), last);
}

#[test]
fn another_node_is_refused_by_name() {
    let data = used("identity", &["--shards", "2"]);
    let (status, text) = refused(&data, &["--shards", "3", "--id", "9"]);
    assert_eq!(status, 6, "{text}");
    assert!(
        text.contains("error[RRQ-3003]") && text.contains("node 1"),
        "{text}"
    );
}

#[test]
fn a_missing_log_is_refused_by_name() {
    let data = used("missing", &[]);
    fs::remove_dir_all(data.join("shard-0000/wal-0001")).expect("it can be removed");
    let (status, text) = refused(&data, &[]);
    assert_eq!(status, 5, "{text}");
    assert!(
        text.contains("error[RRQ-5004]") && text.contains("wal-0001"),
        "{text}"
    );
}

#[test]
fn a_first_start_that_was_cut_short_is_taken_up_again() {
    let data = folder("cut-short");
    fs::create_dir_all(data.join("shard-0000/wal-0001")).expect("a folder");
    fs::write(data.join("lock"), "4194305\n").expect("a file");
    fs::write(data.join("superblock.0.tmp"), b"half").expect("a file");
    fs::write(data.join("shard-0000/wal-0001/spare-0.tmp"), b"half").expect("a file");
    let node = Node::start(&data, &[]);
    assert!(node.ready.contains("1 shard,"), "{}", node.ready);
}

#[test]
fn memory_is_refused_unless_jobs_may_be_lost() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        return skip("a tmpfs at /dev/shm");
    }
    let data = shm.join(format!("rrq-test-{}", std::process::id()));
    let (status, text) = refused(&data, &[]);
    assert_eq!(status, 3, "{text}");
    assert!(
        text.contains("error[RRQ-1004]") && text.contains("--dev"),
        "{text}"
    );
    assert!(!data.exists(), "a refused start makes nothing");
    let node = Node::start(&data, &["--dev"]);
    assert!(
        node.ready.contains("--dev: jobs may be lost"),
        "{}",
        node.ready
    );
    drop(node);
    fs::remove_dir_all(&data).expect("it can be removed");
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let parent = folder("read-only");
    fs::create_dir_all(&parent).expect("a folder");
    let file = parent.join("file");
    fs::File::create(&file)
        .and_then(|mut file| file.write_all(b"x"))
        .expect("a file");
    let (status, text) = refused(&file, &[]);
    assert_eq!(status, 3, "{text}");
    assert!(text.contains("error[RRQ-1008]"), "{text}");
    let locked = parent.join("locked");
    fs::create_dir_all(&locked).expect("a folder");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).expect("it is ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rrq-node"));
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--data-dir",
    ]);
    command.arg(&locked);
    if fs::write(locked.join("probe"), b"").is_ok() {
        fs::remove_file(locked.join("probe")).expect("it was just made");
        // Nothing is read-only for root, so somebody else starts it.
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().expect("it runs");
    let text = String::from_utf8(output.stderr).expect("text");
    node_support::assert_is_report(&text);
    node_support::error_kit::compare(&text);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("error[RRQ-1008]"), "{text}");
}

#[test]
fn too_little_locked_memory_is_named() {
    let data = folder("memlock");
    let mut command = Command::new("prlimit");
    command.args([
        "--memlock=65536:65536",
        env!("CARGO_BIN_EXE_rrq-node"),
        "--data-dir",
    ]);
    let Ok(output) = command.arg(&*data).output() else {
        return skip("prlimit");
    };
    let text = String::from_utf8(output.stderr).expect("text");
    node_support::assert_is_report(&text);
    node_support::error_kit::compare(&text);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("error[RRQ-1002]") && text.contains("ulimit -l"),
        "{text}"
    );
    assert!(!data.exists(), "a refused start makes nothing");
}

#[test]
fn a_second_signal_ends_at_once() {
    let data = folder("second-signal");
    let mut node = Node::start(&data, &[]);
    node.signal("-INT");
    node.signal("-INT");
    let status = node.wait();
    assert!(matches!(status.code(), Some(0 | 130)), "{status}");
}
