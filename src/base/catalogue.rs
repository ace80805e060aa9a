//! What each error code means: a title, the usual cause, what to do, and more for who has time.
//!
//! The catalogue behind `rrqctl explain RRQ-nnnn` and `docs/errors.md`. A message that a program
//! prints says what happened in this case; an entry here says what the code stands for. `fix` names
//! only what exists: a test looks up each flag, key, command and file in it.

use crate::base::code::Code;
use std::fmt::Write;

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A few words, without a full stop.
    pub title: &'static str,
    /// What leads to it.
    pub cause: &'static str,
    /// What to do about it.
    pub fix: &'static str,
    /// What else is worth knowing.
    pub more: &'static str,
}

impl Entry {
    /// All of it, as a terminal shows it.
    #[must_use]
    pub fn explain(&self, code: Code) -> String {
        format!(
            "{code} {}: {}\n\n{}\n\nWhat to do: {}\n\n{}\n",
            code.name(),
            self.title,
            self.cause,
            self.fix,
            self.more
        )
    }
}

/// The kinds of codes by their thousands, with the exit status of a program that ends with one.
const KINDS: &[(u16, &str)] = &[
    (
        1,
        "1xxx: the environment (exit status 3; 4 for RRQ-1006 and RRQ-1007)",
    ),
    (2, "2xxx: configuration and command line (exit status 2)"),
    (3, "3xxx: versions and identity (exit status 6)"),
    (4, "4xxx: requests (exit status 1)"),
    (5, "5xxx: the data directory (exit status 5)"),
    (9, "9999: a bug (exit status 1)"),
];

/// The whole catalogue as Markdown: `docs/errors.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# Errors\n\nEach error has a stable code. A message names it with what happened, where, \
         why, and what to\ndo; `rrqctl explain RRQ-1001` prints what stands here. This file is \
         made from\n`src/base/catalogue.rs` by the test that compares them:\n\
         `UPDATE=1 cargo test --release --test errors`.\n",
    );
    for (thousand, title) in KINDS {
        let _ = write!(out, "\n## {title}\n");
        let codes = Code::ALL.iter();
        for code in codes.filter(|code| code.number() / 1000 == *thousand) {
            let entry = entry(*code);
            let _ = write!(
                out,
                "\n### {code} {}\n\n{}.\n\n{}\n\n**What to do**: {}\n\n{}\n",
                code.name(),
                entry.title,
                entry.cause,
                entry.fix,
                entry.more
            );
        }
    }
    out
}

const fn new(
    title: &'static str,
    cause: &'static str,
    fix: &'static str,
    more: &'static str,
) -> Entry {
    Entry {
        title,
        cause,
        fix,
        more,
    }
}

/// What a code stands for.
#[must_use]
pub fn entry(code: Code) -> Entry {
    match code.number() {
        ..2000 => of_environment(code),
        2000..4000 => of_configuration(code),
        4000..4100 => of_requests(code),
        4100..5000 => of_rejections(code),
        _ => of_data(code),
    }
}

fn of_environment(code: Code) -> Entry {
    match code {
        Code::IoUringUnavailable => new(
            "io_uring is not available",
            "The kernel refuses io_uring_setup(2): a seccomp profile forbids it (Docker's default \
             one does), the setting kernel.io_uring_disabled turns it off, or the kernel is older \
             than 5.8 or built without it.",
            "In a container, run with configs/seccomp.json as the seccomp profile. Else set \
             kernel.io_uring_disabled to 0, or use Linux 5.8 or newer. `rrq-node check` tells \
             which it is.",
            "All reads and writes of the node go through io_uring; there is no other way in it. \
             Nothing was written when this is said.",
        ),
        Code::MemlockTooLow => new(
            "too little memory may be locked",
            "The limit of locked memory (RLIMIT_MEMLOCK) is below 512 KiB, which the rings of an \
             executor take at least.",
            "`ulimit -l unlimited` in the shell, LimitMEMLOCK=infinity in a systemd unit, \
             `--ulimit memlock=-1` for Docker.",
            "Common defaults are 64 KiB on old systems and 8 MiB on new ones. 3 MiB a shard let \
             its buffers be registered too.",
        ),
        Code::BuffersUnregistered => new(
            "buffers cannot be registered with io_uring",
            "Less than 3 MiB a shard may be locked. The node runs and keeps its promises, but the \
             kernel maps its buffers anew for each write.",
            "As for RRQ-1002: raise the limit of locked memory.",
            "A warning of `rrq-node check` only.",
        ),
        Code::NotDurable => new(
            "the data directory is in memory",
            "The directory lies on tmpfs or ramfs: a reboot would lose jobs that were acknowledged \
             as durable.",
            "`--data-dir` with a directory on a disk, or `--dev` if jobs may be lost.",
            "/tmp and /dev/shm are tmpfs on many systems.",
        ),
        Code::DirectIoUnavailable => new(
            "the file system refuses O_DIRECT",
            "The log is written past the page cache, so that one write makes it durable. This file \
             system cannot do that.",
            "`--data-dir` on ext4 or xfs; in a container, on a volume.",
            "Overlay file systems of containers, encrypted home directories and some network file \
             systems refuse it.",
        ),
        Code::PortInUse => new(
            "a port is taken",
            "Another process listens on an address that this node wants. The message names it if \
             this user may see it.",
            "Stop that process, or choose another port with `--listen` or `--admin`; port 0 takes \
             any that is free.",
            "The shards listen on consecutive ports from the one given. A port that a dying node \
             still holds is waited for, up to 30 s.",
        ),
        Code::DirectoryLocked => new(
            "the data directory is in use",
            "Another process works in this directory and holds its lock.",
            "Stop that node, or give this one its own `--data-dir`.",
            "A dead process leaves no lock behind, so nothing ever needs to be deleted. Two nodes \
             on one directory would destroy its log.",
        ),
        Code::DirectoryUnusable => new(
            "the data directory cannot be used",
            "The directory or a file in it cannot be created, read or written: rights, a read-only \
             file system, or a file where a folder should be.",
            "`--data-dir` with a directory that this user may create, read and write.",
            "`rrq-node check` as the user that the node runs as shows the same.",
        ),
        Code::DiskFullAtStart => new(
            "no room on the disk for a start",
            "A start needs some MiB for the log, and the disk has less.",
            "Make room and start again.",
            "Nothing is lost. A node that runs refuses new jobs before its disk is full, and goes \
             on by itself when there is room.",
        ),
        Code::TooManyShards => new(
            "the machine cannot carry so many shards",
            "A thread, an executor or another thing that each shard needs could not be made; or, \
             as a warning, there are more shards than cores.",
            "Fewer `--shards` for a new data directory, or higher limits of threads, files and \
             locked memory.",
            "One shard a core is best. Shards that share a core wait for each other.",
        ),
        Code::LogWriteFailed => new(
            "a write to the log failed",
            "The disk refused a write or sync of the log. What of it is on disk cannot be known, \
             so the process ends.",
            "Look at the kernel's log (`dmesg`) for errors of the disk, then start again: the \
             start finds out what is there.",
            "Nothing acknowledged is lost: an answer is sent after its write has succeeded.",
        ),
        Code::ShardStalled => new(
            "an executor stopped answering",
            "The thread of a shard did not run for 2 s (2 min while it reads back its state), \
             although it was woken again and again. The process ends so that a restart can go on.",
            "Start again; a supervisor such as configs/rrq-node.service does so by itself. If it \
             comes back, look at rrq_shard_stalls_total and at what else uses the machine.",
            "Time in which the whole process was stopped does not count.",
        ),
        Code::NotLinux => new(
            "this system is not Linux",
            "The node needs io_uring, which only Linux has.",
            "Run the node on Linux 5.8 or newer; the client library builds everywhere.",
            "Building the server elsewhere stops with a message of the compiler.",
        ),
        Code::OpenFilesTooFew => new(
            "too few files may be open",
            "The limit of open files (RLIMIT_NOFILE) is below what the node itself needs, or, as a \
             warning, below what limits.connections_max clients could take.",
            "`ulimit -n 65536` in the shell, LimitNOFILE=65536 in a systemd unit, or a smaller \
             limits.connections_max.",
            "The node raises its own limit up to the hard one. Each client takes a descriptor.",
        ),
        Code::KernelTooOld => new(
            "the kernel is too old",
            "The node works with io_uring operations that came with Linux 5.8.",
            "Linux 5.8 or newer.",
            "rrq is made and tested on 6.18.",
        ),
        Code::DirectoryExposed => new(
            "everybody may write to the data directory",
            "The mode of the directory lets every user of this machine replace files in it.",
            "`chmod o-w` on the directory.",
            "A warning of `rrq-node check`, and of each start.",
        ),
        Code::OutOfMemory => new(
            "the process gets no more memory",
            "A limit of memory (RLIMIT_AS, a machine without overcommit) is below what the node takes \
             within its own limits. It ends at once, so that a restart can go on.",
            "A smaller limits.jobs_memory_max or limits.in_flight_max, or more memory; then start \
             again. Both are \"auto\" by default, which fits them to the memory there is.",
            "Nothing acknowledged is lost. A control group or a machine that is out of memory kills \
             the node instead, without a word of its own: look at the kernel's log.",
        ),
        Code::DiskSlow => new(
            "durable writes are slow",
            "Half of the measured writes of 4 KiB took longer than 10 ms, or one in a hundred \
             longer than 100 ms.",
            "`--data-dir` on an SSD that nothing else keeps busy.",
            "Each commit waits for such a write; many jobs share one. A warning of \
             `rrq-node check` only.",
        ),
        other => unreachable!("{other} is not of the environment"),
    }
}

fn of_configuration(code: Code) -> Entry {
    match code {
        Code::BadArgument => new(
            "a flag or an argument is wrong",
            "A flag is unknown, or its value is out of its bounds.",
            "`rrq-node --help` and `rrqctl --help` list all flags with their bounds.",
            "All wrong values are told in one run.",
        ),
        Code::BadConfig => new(
            "the configuration has an error",
            "A file cannot be read or is not TOML; a key is unknown; a value is out of its bounds, \
             wherever it was set.",
            "configs/single.toml shows every key with its unit and bounds.",
            "An unknown key is an error, so that a slip of the pen is found at the start. An \
             unknown variable that starts with RRQ_ is a warning.",
        ),
        Code::BadJobsFile => new(
            "a jobs file has an error",
            "The file given to `rrqctl enqueue --file` cannot be read, or a job in it is not as it \
             should be.",
            "`rrqctl enqueue --help` shows the format.",
            "The file is read whole before the first job is sent, so a file with an error enqueues \
             nothing.",
        ),
        Code::FormatTooNew => new(
            "the data was written by a newer version",
            "The superblock or the log has a format that this binary does not know.",
            "Run the newer version.",
            "An older version would undo what the newer one did, so it changes nothing. \
             upgrade.machine_version keeps the way back open for what depends on it.",
        ),
        Code::ProtocolMismatch => new(
            "client and node share no protocol version",
            "The versions that the client speaks and those that the node speaks do not overlap, or \
             what answers is no rrq node.",
            "Upgrade the older of the two; check the address in `--server`.",
            "docs/protocol.md describes the protocol and its versions.",
        ),
        Code::WrongIdentity => new(
            "the data directory belongs to another node or cluster",
            "The identity in the directory is not the one that was asked for, or a server is of \
             another cluster than the client first reached.",
            "`--id` with the directory's own number, or another `--data-dir`.",
            "The identity is made with the directory and never changes.",
        ),
        Code::ShardCountChanged => new(
            "the groups of the data directory cannot go to another number of shards",
            "The node is started with another number of shards than before. The groups go to new logs \
             then, but not out of one that is damaged: what is lost in it is judged where it lies. Nor can \
             they if checkpoint files of an early version, which gave one number to files of several \
             shards, would lie in one folder.",
            "`--shards` with the number of before: what is whole serves, and a damaged log is put right by \
             the other nodes or by `rrqctl repair`. Files of an early version do not keep it from a multiple \
             of that number.",
            "Nothing was changed. Without a number, a node takes the directory's own.",
        ),
        Code::ForeignDirectory => new(
            "the directory holds something else",
            "There are files in the data directory that rrq did not make, and none of its own.",
            "`--data-dir` with a directory that is new or empty.",
            "Nothing was changed in it.",
        ),
        other => unreachable!("{other} is not of the configuration"),
    }
}

fn of_requests(code: Code) -> Entry {
    match code {
        Code::Unreachable => new(
            "the server cannot be reached",
            "No connection could be made to any of the addresses, or it was lost before anything \
             was sent.",
            "Start `rrq-node`; check the address in `--server`.",
            "Nothing of the request has happened, so it can be sent again.",
        ),
        Code::NotLeader => new(
            "this node does not lead the group",
            "Another node leads the group of the request, or the group is still recovering.",
            "Send it again in a moment; the client library does so by itself.",
            "Nothing of the request has happened.",
        ),
        Code::Busy => new(
            "too much is under way",
            "A bound on requests, on what is on the way, on connections, or on the log since the last \
             checkpoint is reached.",
            "Send it again after a pause that grows; the client library does so by itself. If \
             connections are short, raise limits.connections_max (and the limit of open files); if a \
             read's answer found no room, limits.in_flight_max.",
            "Nothing of the request has happened.",
        ),
        Code::DiskFull => new(
            "the disk is full: new jobs must wait",
            "Less than 64 MiB are free. Enqueues are refused so that leases, acks and checkpoints \
             still find room.",
            "Make room on the disk of the data directory; nothing needs to be restarted.",
            "Jobs are handed out and acknowledged all the while. Enqueues resume by themselves at \
             144 MiB free.",
        ),
        Code::MemoryFull => new(
            "jobs and keys take all the memory that they may: new jobs must wait",
            "What is in memory reaches limits.jobs_memory_max: the bodies of jobs and 512 bytes for each, 192 \
             bytes for each key that is remembered, the results of finished jobs that are kept and 192 bytes \
             for each. Jobs that wait are on the disk alone once a checkpoint has stored them, those in \
             flight are not.",
            "Let workers finish jobs, keep fewer finished jobs (retain) or keys for a shorter time \
             (idempotency_window); nothing needs to be restarted. On a machine with more memory, a larger \
             limits.jobs_memory_max.",
            "Jobs are handed out and acknowledged all the while. Enqueues resume by themselves at \
             15/16 of the bound.",
        ),
        Code::MembersRefused => new(
            "the members of the cluster cannot be changed so",
            "The node does not wait to be added, the group would be left without voters or with more than \
             it has room for, or most of the voters that would be left are not there.",
            "Look with rrqctl cluster status: a node waits when it runs with an empty data directory and \
             lists nodes of the cluster; bring nodes back that do not answer.",
            "Nothing was changed. A change that is under way goes on by itself.",
        ),
        Code::Stopping => new(
            "the node is stopping",
            "The node got a signal to stop and takes nothing new.",
            "Send it again when the node is back.",
            "Nothing of the request has happened.",
        ),
        Code::BadRequest => new(
            "the request cannot be understood",
            "A message is not as docs/protocol.md says.",
            "Check the client against docs/protocol.md.",
            "A client of this repository that gets it has a bug, or a much newer or older version.",
        ),
        Code::BadFrame => new(
            "a frame is not of this protocol",
            "A frame is larger than allowed, its checksum is wrong, or the bytes are no frame: \
             often a client of another protocol that reached this port.",
            "Check that the port is the one of clients; docs/protocol.md describes frames.",
            "The node answers once and closes the connection.",
        ),
        Code::Unknown => new(
            "the request may or may not have taken effect",
            "The answer was lost, and with it the knowledge whether the request was applied.",
            "Give jobs a key, so that an enqueue can be repeated; look at the job for the rest.",
            "A session hides most of these: a repeated request gets its first answer. This is what \
             remains when the session has expired meanwhile or the deadline has passed.",
        ),
        Code::NoSuchGroup => new(
            "there is no such group",
            "A request names a group beyond the number that the server's hello gave.",
            "Take the number of groups from the hello, as docs/protocol.md says.",
            "The number of groups is fixed when a cluster is formed.",
        ),
        Code::GroupHalted => new(
            "a group stopped because its log or state is damaged",
            "Acknowledged entries or pages of the group cannot be read. It stands still so that \
             nothing is dropped silently; all others go on.",
            "Stop the node, then `rrqctl repair` shows what is damaged and what would be lost.",
            "Restore the files from a backup if there is one; `rrqctl repair --accept-loss` gives \
             up what cannot be read and lists it.",
        ),
        Code::Timeout => new(
            "no answer within the deadline",
            "The server did not answer in the time that the caller gave.",
            "Look at `rrqctl status`; give more time.",
            "If something had been sent that may have taken effect, the code is RRQ-4008 instead.",
        ),
        Code::PayloadTooLarge => new(
            "the payload is larger than allowed",
            "A payload exceeds limits.payload_max of the node, or the hard bound of 4 MiB.",
            "Keep large things in a store of their own and their name in the job; or raise \
             limits.payload_max.",
            "A job is copied through memory whole on each hop.",
        ),
        Code::ConnectionTimeout => new(
            "the connection was silent too long",
            "The handshake was not finished within 5 s, or nothing was heard for too long.",
            "Check the network between client and node.",
            "The client library sends heartbeats while it holds leases.",
        ),
        Code::NoSuchQueue => new(
            "there is no such queue",
            "The name is not known, and the request does not make queues, or \
             queue_defaults.auto_create is off.",
            "`rrqctl status` lists the queues; `rrqctl enqueue` makes one if the node allows it.",
            "Names are compared byte by byte.",
        ),
        other => unreachable!("{other} is not of requests"),
    }
}

fn of_rejections(code: Code) -> Entry {
    match code {
        Code::QueueChanged => new(
            "the queue is not here any more",
            "The queue was deleted, or made anew under its name.",
            "Resolve the name again; the client library does so by itself.",
            "Requests carry the queue's own number, so that one for a deleted queue cannot hit its \
             successor.",
        ),
        Code::QueueExists => new(
            "a queue of this name exists",
            "A queue was to be made new, and its name is taken.",
            "Use the one that is there, or choose another name.",
            "Making a queue again with the same settings is no error unless it must be new.",
        ),
        Code::VersionMismatch => new(
            "the settings were changed meanwhile",
            "The change names the version of the settings that it was made from, and another \
             change came first.",
            "Read the settings again and repeat the change.",
            "So two changes at once cannot undo each other unseen.",
        ),
        Code::Invalid => new(
            "a name, setting or field is out of its bounds",
            "For example a queue's name longer than 128 bytes, a lease of 0 ms, or a key longer \
             than 256 bytes.",
            "Check the field against docs/protocol.md.",
            "The request changed nothing; in a batch, the other items are not touched by it.",
        ),
        Code::Unsupported => new(
            "this version of the job machine cannot do this",
            "The group runs a version of the job machine that does not know the command or the \
             setting.",
            "Upgrade every node; if upgrade.machine_version is set, raise it.",
            "The version is raised by an entry in the log, once every member supports it.",
        ),
        Code::QuotaExceeded => new(
            "the queue is at its bound of jobs or bytes",
            "The queue has jobs_max jobs, or bytes_max bytes of payload, in all states.",
            "Let workers catch up, delete dead jobs, or raise the bound.",
            "Everything but enqueues goes on.",
        ),
        Code::IdempotencyWindowFull => new(
            "the queue remembers as many keys as it may",
            "idempotency_keys_max keys are remembered, and none of them is old enough to forget.",
            "Shorten the window, raise the bound, or enqueue without a key.",
            "No key is forgotten early: that could make a second job of one.",
        ),
        Code::IdempotencyConflict => new(
            "the key belongs to a job with another payload",
            "A job with this key was enqueued within the window, and its payload differs.",
            "Use one key for one job; `rrqctl job get --key` shows the job that has it.",
            "Most often a key that is not as unique as it seemed.",
        ),
        Code::LeaseLost => new(
            "the lease is lost",
            "The job was granted anew, went back, or is gone: the lease ended by time, the worker \
             was silent too long, or the job was cancelled.",
            "Stop working on it: the job is in other hands or done. If it happens often, ask for \
             longer leases or extend them in time.",
            "The job was not touched by the request.",
        ),
        Code::Finished => new(
            "the job is finished",
            "The job was acknowledged, cancelled or deleted.",
            "Nothing; a queue that retains finished jobs can say more about it.",
            "Ids are never given out twice.",
        ),
        Code::NotFound => new(
            "no such job was ever made",
            "The id was never given out, or the key is not remembered.",
            "Check the id or the key.",
            "Of a job that is over, the code is RRQ-4110 instead.",
        ),
        Code::WrongState => new(
            "the job is not in a state that allows this",
            "For example requeueing a job that is not dead.",
            "`rrqctl job get` shows its state.",
            "The job was not touched.",
        ),
        Code::SessionExpired => new(
            "the session has expired",
            "The session was silent for 15 min and was dropped, with what it remembered.",
            "Open a new session; the client library does so by itself.",
            "A request that is repeated after this may have been applied before: see RRQ-4008.",
        ),
        Code::Superseded => new(
            "the answer to this was already taken",
            "The client said that it has the outcome of this number, and asks again.",
            "Number requests upwards, as docs/protocol.md says.",
            "It was not applied a second time.",
        ),
        Code::WindowExceeded => new(
            "too many requests of one session are under way",
            "A request is numbered 4096 or more (64 for polls) above the lowest that is \
             unanswered.",
            "Wait for answers before more is sent; the client library does so by itself.",
            "The bound keeps what a group must remember small.",
        ),
        Code::Reattach => new(
            "the leases of the session were ended",
            "The session was silent beyond its worker timeout, and its jobs went back.",
            "Attach again before leasing; the client library does so by itself.",
            "Tokens from before are stale, and acks with them are refused with RRQ-4109.",
        ),
        Code::TooManySessions => new(
            "the group has as many sessions as it may",
            "16,384 sessions, or 64 MiB of remembered outcomes, are open in one group.",
            "Share clients within a process; close them when done.",
            "Sessions that are not used are dropped after 15 min.",
        ),
        Code::IdsExhausted => new(
            "no ids are left in this group",
            "The counter of queues made in this group has reached its end, after 16 million.",
            "Use queues again instead of making new ones.",
            "Ids are never given out twice, so the counter cannot start anew.",
        ),
        Code::Draining => new(
            "the queue is being drained",
            "An operator drains the queue: jobs are handed out, and no new ones are taken.",
            "Enqueue elsewhere, or end the draining.",
            "Jobs that are there are finished as usual.",
        ),
        other => unreachable!("{other} is not of the job machine"),
    }
}

fn of_data(code: Code) -> Entry {
    match code {
        Code::LogDamaged => new(
            "a segment of the log is damaged",
            "A part of the log that held acknowledged entries cannot be read: damage of the disk \
             or of a copy of it.",
            "`rrqctl repair` shows what would be lost; restore the files from a backup if there \
             is one.",
            "A torn tail, which nobody was told of, is cut by itself and is not this.",
        ),
        Code::CheckpointDamaged => new(
            "a checkpoint file is damaged",
            "A page, body or manifest has another checksum than it should.",
            "`rrqctl repair` shows what would be lost.",
            "The log is kept from the checkpoint before, so a start uses that if it is whole.",
        ),
        Code::SuperblockDamaged => new(
            "the superblock is damaged",
            "Neither of the two copies can be trusted; or they are of a backup, and the logs of a later number \
             of shards lie beside them.",
            "Put superblock.0 or superblock.1 back from a backup, one that is not older than the logs.",
            "One damaged copy is healed from the other at the next start.",
        ),
        Code::FileMissing => new(
            "a file of the data directory is missing",
            "A segment, a log folder or both superblocks are not there.",
            "Put it back from a backup; `rrqctl repair` shows what is lost without it.",
            "Copy a data directory only while its node is stopped, and whole.",
        ),
        Code::Bug => new(
            "a bug of rrq",
            "Something happened that the program holds to be impossible. It ends rather than go on \
             with a state that it does not understand.",
            "Start again, and report the message.",
            "Nothing acknowledged is lost: what is on disk is checked at the start.",
        ),
        other => unreachable!("{other} is not of the data directory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_an_entry_and_a_kind() {
        for code in Code::ALL {
            let entry = entry(*code);
            assert!(!entry.title.ends_with('.'), "{code}");
            for text in [entry.cause, entry.fix, entry.more] {
                assert!(text.ends_with('.'), "{code}: {text}");
            }
            let thousand = code.number() / 1000;
            assert!(KINDS.iter().any(|(known, _)| *known == thousand), "{code}");
            assert!(entry.explain(*code).starts_with(&code.to_string()));
        }
    }
}
