//! `rrq-node check` finds what would go wrong: twelve faults, each injected into an otherwise sound
//! place, each found by its name. A sound place passes in less than 2 s and is left as it was.
#![cfg(all(feature = "server", target_os = "linux"))]

mod node_support;

use node_support::{Node, TestFolder, error_kit, folder, seccomp, skip};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const NODE: &str = env!("CARGO_BIN_EXE_rrq-node");
/// The user and group `nobody`.
const NOBODY: u32 = 65_534;

/// What a check said, and how it ended.
struct Said {
    text: String,
    status: i32,
}

impl Said {
    fn of(command: &mut Command) -> Self {
        let output = command.output().expect("the node's program is built");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            errors.is_empty(),
            "a check says all on standard output: {errors}"
        );
        Self {
            text: String::from_utf8(output.stdout).expect("text"),
            status: output.status.code().expect("it ends by itself"),
        }
    }

    fn line(&self, name: &str) -> &str {
        self.text
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(name))
            .unwrap_or_else(|| panic!("no line of {name} in\n{}", self.text))
    }

    /// Exactly this finding fails, with these words in its line.
    fn fails(&self, name: &str, words: &[&str]) {
        assert_eq!(self.status, 3, "{}", self.text);
        let line = self.line(name);
        assert!(line.starts_with("FAIL "), "{}", self.text);
        for word in words {
            assert!(line.contains(word), "{word} is missing in {line}");
        }
        assert!(line.contains("; fix: "), "no remedy in {line}");
        error_kit::compare(line);
    }
}

/// A check with ports of the kernel's choice.
fn check_by(program: &str, data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .args(["check", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--shards", "1", "--data-dir"])
        .arg(data)
        .args(args);
    command
}

fn check(data: &Path, args: &[&str]) -> Command {
    check_by(NODE, data, args)
}

/// An empty folder.
fn empty(name: &str) -> TestFolder {
    let data = folder(name);
    fs::create_dir_all(&data).expect("a folder");
    data
}

/// A check through `prlimit` with one limit lowered; `None` if there is no such program.
fn limited(limit: &str, data: &Path) -> Option<Said> {
    let mut command = Command::new("prlimit");
    command
        .args([limit, NODE, "check", "--shards", "1"])
        .args([
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(data);
    let there = Command::new("prlimit").arg("--version").output().is_ok();
    there.then(|| Said::of(&mut command))
}

/// A mounted file system, gone with the test.
struct Mount(TestFolder);

impl Mount {
    fn new(name: &str, args: &[&str], source: &str) -> Option<Self> {
        let path = empty(name);
        let mut command = Command::new("mount");
        command.args(args).arg(source).arg(&*path);
        let mounted = command.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self(path))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let gone = Command::new("umount").arg("-l").arg(&*self.0).status();
        assert!(gone.is_ok_and(|status| status.success()), "it is in use");
    }
}

#[test]
fn a_sound_place_passes_in_time_and_is_left_as_it_was() {
    let folder = folder("check-sound");
    let data = folder.join("new");
    let begun = Instant::now();
    let said = Said::of(&mut check(&data, &[]));
    let took = begun.elapsed();
    assert!(said.status <= 1, "{}", said.text);
    assert!(!said.text.contains("FAIL"), "{}", said.text);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(said.text.lines().count(), 11, "{}", said.text);
    for (name, words) in [
        ("kernel", "Linux "),
        ("io_uring", "allowed"),
        ("data", "would be made"),
        ("disk", "p99"),
        ("ports", "free"),
    ] {
        assert!(said.line(name).contains(words), "{}", said.text);
    }
    assert!(!data.exists(), "a check makes nothing");

    let json = Said::of(&mut check(&data, &["--format", "json"]));
    let value: serde_json::Value = serde_json::from_str(&json.text).expect("JSON");
    assert_eq!(value["checks"].as_array().map(Vec::len), Some(11));
    let nagios = Said::of(&mut check(&data, &["--format", "nagios"]));
    assert_eq!(nagios.text.lines().count(), 1, "{}", nagios.text);
    assert!(nagios.text.starts_with("RRQ "), "{}", nagios.text);
}

#[test]
fn the_other_nodes_of_a_cluster_are_looked_for() {
    let folder = folder("check-members");
    let data = folder.join("new");
    // Addresses that nobody else uses.
    let there = TcpListener::bind("127.77.0.2:0").expect("loopback has ports");
    let port = there.local_addr().expect("it is bound").port();
    let members = format!("1=127.77.0.1:{port},2=127.77.0.2:{port},3=127.77.0.3:{port}");
    let said = Said::of(&mut check(&data, &["--id", "1", "--members", &members]));
    let line = said.line("members");
    let (second, third) = (
        format!("node 2 at 127.77.0.2:{port} answers"),
        format!("node 3 at 127.77.0.3:{port} does not answer"),
    );
    assert!(line.contains(&second) && line.contains(&third), "{line}");
    // Longer than a part of a name can be: nobody is asked.
    let nobody = "x".repeat(70);
    let nowhere = members.replace("127.77.0.3", &nobody);
    let said = Said::of(&mut check(&data, &["--id", "1", "--members", &nowhere]));
    said.fails("members", &["RRQ-2002", &nobody]);
}

#[test]
fn io_uring_refused_by_a_profile() {
    let data = empty("check-eperm");
    let mut command = check(&data, &[]);
    seccomp::refuse(&mut command, libc::SYS_io_uring_setup, libc::EPERM);
    let said = Said::of(&mut command);
    said.fails("io_uring", &["RRQ-1001", "seccomp.json"]);
}

#[test]
fn io_uring_hidden_by_a_sandbox() {
    let data = empty("check-enosys");
    let mut command = check(&data, &[]);
    seccomp::refuse(&mut command, libc::SYS_io_uring_setup, libc::ENOSYS);
    let said = Said::of(&mut command);
    said.fails("io_uring", &["RRQ-1001"]);
    // A start says the same, and does not panic as the runtime under it would.
    let mut command = Command::new(NODE);
    command.arg("--data-dir").arg(&*data);
    seccomp::refuse(&mut command, libc::SYS_io_uring_setup, libc::ENOSYS);
    let output = command.output().expect("it runs");
    let text = String::from_utf8(output.stderr).expect("text");
    node_support::assert_is_report(&text);
    node_support::error_kit::compare(&text);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("RRQ-1001") && text.contains("hides it"),
        "{text}"
    );
}

#[test]
fn too_little_locked_memory() {
    let Some(said) = limited("--memlock=65536:65536", &empty("check-memlock")) else {
        return skip("prlimit");
    };
    said.fails("memlock", &["RRQ-1002", "64 KiB", "LimitMEMLOCK"]);
    let said = limited("--memlock=1048576:1048576", &empty("check-memlock")).expect("it is there");
    let line = said.line("memlock");
    assert!(
        line.starts_with("warn ") && line.contains("RRQ-1003"),
        "{line}"
    );
    error_kit::compare(line);
}

#[test]
fn too_few_open_files() {
    let Some(said) = limited("--nofile=64:64", &empty("check-nofile")) else {
        return skip("prlimit");
    };
    said.fails("nofile", &["RRQ-1014", "64", "LimitNOFILE"]);
    let said = limited("--nofile=1024:1024", &empty("check-nofile")).expect("it is there");
    let line = said.line("nofile");
    assert!(line.starts_with("warn "), "{line}");
}

#[test]
fn a_directory_in_memory() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        return skip("a tmpfs at /dev/shm");
    }
    let data = shm.join(format!("rrq-check-{}", std::process::id()));
    let said = Said::of(&mut check(&data, &[]));
    said.fails("filesystem", &["RRQ-1004", "tmpfs", "--dev"]);
    assert!(!data.exists(), "a check makes nothing");
    let said = Said::of(&mut check(&data, &["--dev"]));
    assert!(said.line("filesystem").starts_with("ok "), "{}", said.text);
}

#[test]
fn a_file_system_that_is_read_only() {
    let args = ["-t", "tmpfs", "-o", "ro,size=64m"];
    let Some(disk) = Mount::new("check-ro", &args, "tmpfs") else {
        return skip("root, to mount a file system");
    };
    let said = Said::of(&mut check(&disk.0, &["--dev"]));
    said.fails("disk", &["RRQ-1008", "cannot write"]);
}

#[test]
fn a_disk_that_is_full() {
    let image = folder("check-full-image");
    fs::create_dir_all(&image).expect("a folder");
    let image = image.join("disk");
    let file = fs::File::create(&image).expect("a file");
    file.set_len(16 << 20).expect("a sparse file");
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .arg(&image)
        .output();
    if !made.is_ok_and(|output| output.status.success()) {
        return skip("mkfs.ext4");
    }
    let source = image.to_str().expect("a path of ours");
    let Some(disk) = Mount::new("check-full", &["-o", "loop"], source) else {
        return skip("root and a loop device, to mount a small disk");
    };
    let data = disk.0.join("data");
    fs::create_dir(&data).expect("a folder");
    let said = Said::of(&mut check(&data, &[]));
    said.fails("filesystem", &["RRQ-1009", "make room"]);
}

#[test]
fn a_port_that_is_taken() {
    let data = empty("check-port");
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let address = taken.local_addr().expect("it is bound").to_string();
    let mut command = Command::new(NODE);
    command
        .args(["check", "--listen", &address, "--admin", "127.0.0.1:0"])
        .args(["--shards", "1", "--data-dir"])
        .arg(&*data);
    let said = Said::of(&mut command);
    let pid = format!("kill {}", std::process::id());
    said.fails("ports", &["RRQ-1006", &address, &pid]);
}

#[test]
fn a_directory_that_is_in_use() {
    let data = folder("check-lock");
    let node = Node::start(&data, &[]);
    let said = Said::of(&mut check(&data, &[]));
    let pid = format!("pid {} rrq-node", node.pid());
    said.fails("lock", &["RRQ-1007", &pid]);
    assert!(said.line("disk").contains("in use"), "{}", said.text);
}

#[test]
fn a_typo_in_the_configuration() {
    let data = empty("check-typo");
    let file = data.with_extension("toml");
    fs::write(&file, "[limits]\npayload_macks = \"1MiB\"\n").expect("a file");
    let file = file.to_str().expect("a path of ours");
    let said = Said::of(&mut check(&data, &["--config", file]));
    let place = format!("{file}:2:1");
    said.fails(
        "config",
        &["RRQ-2002", "did you mean `limits.payload_max`", &place],
    );
    assert!(said.line("kernel").starts_with("ok "), "{}", said.text);
}

#[test]
fn a_data_directory_of_a_newer_version() {
    let data = folder("check-format");
    let mut node = Node::start(&data, &[]);
    node.signal("-TERM");
    assert!(node.wait().success());
    for copy in ["superblock.0", "superblock.1"] {
        let path = data.join(copy);
        let mut bytes = fs::read(&path).expect("a superblock");
        bytes[8] = 9;
        let crc = rrq::base::checksum::crc32c(&[&bytes[..4092]]);
        bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
        fs::write(path, bytes).expect("it can be written");
    }
    let said = Said::of(&mut check(&data, &[]));
    said.fails("data", &["RRQ-3001", "newer version"]);
}

#[test]
fn a_directory_with_the_wrong_mode() {
    let data = empty("check-mode");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).expect("it is ours");
    let said = Said::of(&mut check(&data, &[]));
    let line = said.line("data");
    assert!(
        line.starts_with("warn ") && line.contains("RRQ-1016") && line.contains("chmod o-w"),
        "{line}"
    );
    error_kit::compare(line);
    assert_eq!(said.status, 1, "{}", said.text);

    fs::set_permissions(&data, fs::Permissions::from_mode(0o555)).expect("it is ours");
    // The program lies where an ordinary user may not look.
    let place = Path::new("/dev/shm").join(format!("rrq-check-mode-{}", std::process::id()));
    let is_root = fs::write(data.join("probe"), b"").is_ok();
    let mut command = check(&data, &[]);
    if is_root {
        fs::remove_file(data.join("probe")).expect("it was just made");
        fs::copy(NODE, &place).expect("the program can be copied");
        command = check_by(place.to_str().expect("a path of ours"), &data, &[]);
        command.uid(NOBODY).gid(NOBODY);
    }
    let said = Said::of(&mut command);
    let _ = fs::remove_file(&place);
    said.fails("disk", &["RRQ-1008", "cannot write"]);
    assert!(is_root || said.status == 3);
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).expect("it is ours");
}
