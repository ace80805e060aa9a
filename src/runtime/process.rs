//! What /proc says of other processes, for messages that name who is in the way.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

/// Whether a process runs and is not about to end. One whose threads still unwind after a
/// `kill -9` counts as dead: what it holds goes away by itself.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    const EXITING: u64 = 0x4;
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name may hold blanks and brackets; what follows the last bracket is numbers.
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return false;
    };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let state = fields.first().copied().unwrap_or_default();
    let flags = fields
        .get(6)
        .and_then(|flags| flags.parse::<u64>().ok())
        .unwrap_or(0);
    !matches!(state, "Z" | "X" | "x") && flags & EXITING == 0
}

/// "pid 4312 rrq-node".
#[must_use]
pub fn describe(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("pid {pid} {}", name.trim()).trim_end().to_owned()
}

/// The process that listens on a TCP port, as far as this user may see.
#[must_use]
pub fn listener_of(address: SocketAddr) -> Option<u32> {
    let inode = listening_inode(address)?;
    let target = format!("socket:[{inode}]");
    let numbers = fs::read_dir("/proc").ok()?;
    numbers.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
        // The first thread of a dying process is gone before the others let go.
        let threads = fs::read_dir(entry.path().join("task")).ok()?;
        threads
            .flatten()
            .any(|thread| holds(&thread.path().join("fd"), &target))
            .then_some(pid)
    })
}

fn holds(files: &Path, target: &str) -> bool {
    let is_target = |file: fs::DirEntry| {
        fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == target)
    };
    fs::read_dir(files).is_ok_and(|files| files.flatten().any(is_target))
}

fn listening_inode(address: SocketAddr) -> Option<u64> {
    const LISTEN: &str = "0A";
    let table = if address.is_ipv4() {
        "/proc/net/tcp"
    } else {
        "/proc/net/tcp6"
    };
    let port = format!(":{:04X}", address.port());
    fs::read_to_string(table)
        .ok()?
        .lines()
        .skip(1)
        .find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&port) && *fields.get(3)? == LISTEN;
            listens.then(|| fields.get(9)?.parse().ok())?
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_itself() {
        let me = std::process::id();
        assert!(is_alive(me));
        assert!(!is_alive(u32::MAX));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        assert_eq!(listener_of(address), Some(me));
        drop(listener);
        assert_eq!(listener_of(address), None);
    }
}
