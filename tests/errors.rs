//! The catalogue of errors: each code is explained, its document is what the code says, a test
//! provokes it, and what it advises exists.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use rrq::base::catalogue;
use rrq::base::code::Code;
use rrq::runtime::config::KEYS;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which test provokes a code: a file, and a function in it. It compares the whole text with a file
/// under `tests/snapshots/errors` that is named after both; a unit test holds the text itself. A
/// script under `tests/scripts` is run whole and says the code's name; its text is one of
/// `rejections.txt`.
#[rustfmt::skip]
const PROVOKED: &[(Code, &str, &str)] = &[
    (Code::IoUringUnavailable, "tests/node_check.rs", "io_uring_refused_by_a_profile"),
    (Code::MemlockTooLow, "tests/node_start.rs", "too_little_locked_memory_is_named"),
    (Code::BuffersUnregistered, "tests/node_check.rs", "too_little_locked_memory"),
    (Code::NotDurable, "tests/node_start.rs", "memory_is_refused_unless_jobs_may_be_lost"),
    (Code::PortInUse, "tests/node_check.rs", "a_port_that_is_taken"),
    (Code::DirectoryLocked, "tests/node_start.rs", "a_second_node_on_a_directory_is_refused_and_the_first_named"),
    (Code::DirectoryUnusable, "tests/node_start.rs", "a_directory_that_cannot_be_written_is_named"),
    (Code::DiskFullAtStart, "tests/node_check.rs", "a_disk_that_is_full"),
    (Code::OpenFilesTooFew, "tests/node_check.rs", "too_few_open_files"),
    (Code::KernelTooOld, "src/runtime/preflight/mod.rs", "an_old_kernel_is_named_and_an_odd_version_is_tried"),
    (Code::DirectoryExposed, "tests/node_check.rs", "a_directory_with_the_wrong_mode"),
    (Code::OutOfMemory, "tests/overload.rs", "without_memory_the_node_ends_by_name_and_loses_nothing"),
    (Code::BadArgument, "tests/node_start.rs", "bad_flags_and_files_are_named_with_their_place"),
    (Code::BadConfig, "tests/node_check.rs", "a_typo_in_the_configuration"),
    (Code::BadJobsFile, "tests/cli_enqueue.rs", "a_bad_jobs_file_is_refused_whole_with_its_line"),
    (Code::FormatTooNew, "tests/node_start.rs", "a_newer_format_is_refused_by_name"),
    (Code::ProtocolMismatch, "tests/wire_client.rs", "another_protocol_is_told_at_once"),
    (Code::WrongIdentity, "tests/node_start.rs", "another_node_is_refused_by_name"),
    (Code::ShardCountChanged, "tests/node_shards.rs", "a_damaged_log_refuses_another_number_by_name"),
    (Code::ForeignDirectory, "tests/node_start.rs", "a_foreign_directory_is_refused_and_untouched"),
    (Code::Unreachable, "tests/cli_enqueue.rs", "a_server_that_is_away_is_named_with_what_to_do"),
    (Code::Busy, "tests/node_clients.rs", "a_client_too_many_is_told_so"),
    (Code::DiskFull, "tests/node_full_disk.rs", "a_full_disk_stops_new_jobs_only_and_everything_goes_on_when_there_is_room"),
    (Code::MemoryFull, "tests/overload.rs", "jobs_in_flight_that_take_all_memory_stop_new_jobs_only"),
    (Code::MembersRefused, "tests/cluster_members.rs", "what_cannot_be_is_refused_by_name"),
    (Code::Stopping, "tests/node_kill.rs", "a_stop_is_told_to_who_waits"),
    (Code::BadRequest, "tests/node_clients.rs", "what_is_no_protocol_is_answered_once_and_cut_off"),
    (Code::BadFrame, "tests/node_clients.rs", "what_is_no_protocol_is_answered_once_and_cut_off"),
    (Code::Unknown, "tests/client_calls.rs", "what_nobody_can_know_is_said"),
    (Code::GroupHalted, "tests/cli_repair.rs", "a_flipped_byte_is_shown_then_given_up"),
    (Code::PayloadTooLarge, "tests/error_texts.rs", "what_is_out_of_its_bounds_is_named"),
    (Code::ConnectionTimeout, "tests/node_clients.rs", "a_truncated_frame_and_a_silent_client_are_let_go"),
    (Code::NoSuchQueue, "tests/error_texts.rs", "a_job_refuses"),
    (Code::QueueChanged, "tests/error_texts.rs", "a_job_refuses"),
    (Code::QueueExists, "tests/error_texts.rs", "a_queue_refuses"),
    (Code::VersionMismatch, "tests/error_texts.rs", "a_queue_refuses"),
    (Code::Invalid, "tests/error_texts.rs", "what_is_out_of_its_bounds_is_named"),
    (Code::Unsupported, "tests/error_texts.rs", "a_group_of_version_1_refuses_what_came_later"),
    (Code::QuotaExceeded, "tests/error_texts.rs", "a_queue_refuses"),
    (Code::IdempotencyWindowFull, "tests/error_texts.rs", "a_queue_refuses"),
    (Code::IdempotencyConflict, "tests/error_texts.rs", "a_queue_refuses"),
    (Code::LeaseLost, "tests/error_texts.rs", "a_job_refuses"),
    (Code::Finished, "tests/error_texts.rs", "a_job_refuses"),
    (Code::NotFound, "tests/error_texts.rs", "a_job_refuses"),
    (Code::WrongState, "tests/error_texts.rs", "a_job_refuses"),
    (Code::SessionExpired, "tests/scripts/queue/session_unknown_applies_nothing.txt", ""),
    (Code::Superseded, "tests/scripts/queue/session_number_seen_is_superseded.txt", ""),
    (Code::WindowExceeded, "tests/scripts/queue/session_window_is_bounded.txt", ""),
    (Code::Reattach, "tests/scripts/queue/session_end_gives_the_leases_back.txt", ""),
    (Code::Draining, "tests/error_texts.rs", "a_queue_refuses"),
    (Code::Timeout, "tests/cli_jobs.rs", "the_end_of_a_job_is_waited_for"),
    (Code::TooManySessions, "tests/client_script.rs", "a_part_of_a_batch_that_fails_makes_the_rest_uncertain"),
    (Code::LogDamaged, "tests/cli_repair.rs", "a_flipped_byte_is_shown_then_given_up"),
    (Code::CheckpointDamaged, "tests/cli_repair.rs", "a_group_without_a_checkpoint_to_go_on_from_is_named_and_left"),
    (Code::SuperblockDamaged, "tests/node_start.rs", "one_damaged_superblock_is_healed_two_are_refused"),
    (Code::FileMissing, "tests/node_start.rs", "a_missing_log_is_refused_by_name"),
];

/// Codes that no test can provoke here, and why.
const NOT_PROVOKED: &[(Code, &str)] = &[
    (
        Code::DirectIoUnavailable,
        "every file system that a test can mount takes O_DIRECT",
    ),
    (
        Code::TooManyShards,
        "a thread that cannot be made depends on the machine; as a warning, on its cores",
    ),
    (Code::LogWriteFailed, "needs a disk that fails"),
    (
        Code::ShardStalled,
        "needs a thread that is stuck for 2 s; the judgement has a unit test",
    ),
    (Code::NotLinux, "the tests of the server run on Linux"),
    (Code::DiskSlow, "needs a slow disk"),
    (
        Code::NotLeader,
        "a node that stands alone leads all its groups once it listens",
    ),
    (Code::NoSuchGroup, "no client of ours asks for one"),
    (
        Code::IdsExhausted,
        "16 million queues; the machine's own tests set the counter",
    ),
    (Code::Bug, "a bug that a test knows is mended"),
];

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn each_code_is_provoked_by_a_test_or_says_why_not() {
    for code in Code::ALL {
        let tests = PROVOKED.iter().filter(|(of, ..)| of == code).count();
        let excuses = NOT_PROVOKED.iter().filter(|(of, _)| of == code).count();
        assert_eq!(
            tests + excuses,
            1,
            "{code} {}: name its test here",
            code.name()
        );
    }
    let rejections = read("tests/snapshots/errors/rejections.txt");
    for (code, path, function) in PROVOKED {
        let text = read(path);
        let name = code.name();
        if path.ends_with(".txt") {
            assert!(text.contains(name), "{path} does not say {name}");
            let pinned = rejections
                .lines()
                .any(|line| line.starts_with(&code.to_string()));
            assert!(pinned, "rejections.txt has no text of {code}");
            continue;
        }
        let is_there = text.contains(&format!("fn {function}("));
        assert!(is_there, "{path} has no test {function}");
        if path.starts_with("src/") {
            let pinned = text.contains(&format!("\"error[{code}]: "));
            assert!(pinned, "{path} has no text of {code}");
            continue;
        }
        let program = path.trim_start_matches("tests/").trim_end_matches(".rs");
        let pinned = format!("tests/snapshots/errors/{code}/{program}.{function}.txt");
        assert!(read(&pinned).contains(&code.to_string()), "{pinned}");
    }
}

#[test]
fn the_document_is_what_the_catalogue_says() {
    let path = root().join("docs/errors.md");
    let shown = catalogue::markdown();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &shown).expect("the document can be written");
    }
    let told = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        told, shown,
        "docs/errors.md is not the catalogue: UPDATE=1 writes it anew"
    );
}

/// The words of every remedy: in the catalogue, in each `.fix("...")` of the source, and as tests saw
/// them told.
fn remedies() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Code::ALL
        .iter()
        .map(|code| (code.to_string(), catalogue::entry(*code).fix.to_owned()))
        .collect();
    let mut folders = vec![root().join("src"), root().join("tests/snapshots/errors")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "txt") {
                let text = fs::read_to_string(&path).expect("a text");
                let fixes = text.split("fix:").skip(1).map(|fix| {
                    let until = ["----", "error[", "\n  where:", "\n  why:"];
                    let end = until.iter().filter_map(|mark| fix.find(mark)).min();
                    fix[..end.unwrap_or(fix.len())].to_owned()
                });
                let name = path.display().to_string();
                found.extend(fixes.map(|fix| (name.clone(), fix)));
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                let tokens: TokenStream = text.parse().expect("it compiles");
                let mut texts = Vec::new();
                collect(tokens, false, &mut texts);
                let name = path.display().to_string();
                found.extend(texts.into_iter().map(|text| (name.clone(), text)));
            }
        }
    }
    found
}

/// Gathers the literals inside the brackets of `.fix(...)`.
fn collect(tokens: TokenStream, inside: bool, texts: &mut Vec<String>) {
    let mut before = [String::new(), String::new()];
    for token in tokens {
        match &token {
            TokenTree::Group(group) => {
                let is_fix = before == [".", "fix"] && group.delimiter() == Delimiter::Parenthesis;
                collect(group.stream(), inside || is_fix, texts);
            }
            TokenTree::Literal(literal) if inside => texts.push(literal.to_string()),
            _ => {}
        }
        before.rotate_left(1);
        before[1] = token.to_string();
    }
}

/// All flags that a program's help names, over all its verbs.
fn flags(program: &str, verbs: &[&[&str]]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for verb in verbs {
        let output = Command::new(program).args(*verb).arg("--help").output();
        let text = String::from_utf8(output.expect("it runs").stdout).expect("text");
        found.extend(
            words(&text)
                .filter(|word| word.starts_with("--"))
                .map(str::to_owned),
        );
    }
    found
}

/// All flags of `rrqctl`, over all its verbs: its help is pinned, and held to what it says.
fn pinned_flags() -> BTreeSet<String> {
    let folder = root().join("tests/snapshots/help");
    let files = std::fs::read_dir(folder).expect("the help is pinned");
    let mut found = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(file.expect("it is listed").path()).expect("text");
        let flags = words(&text).filter(|word| word.starts_with("--"));
        found.extend(flags.map(str::to_owned));
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || "-_./".contains(c));
    text.split(word)
        .map(|word| word.trim_end_matches(['.', '/']))
        .filter(|word| !word.is_empty())
}

#[test]
fn what_is_advised_exists() {
    let node = env!("CARGO_BIN_EXE_rrq-node");
    let bench = env!("CARGO_BIN_EXE_rrq-bench");
    let mut known = flags(node, &[&[], &["check"]]);
    known.extend(pinned_flags());
    known.extend(flags(bench, &[&[], &["crash-recover"], &["load"]]));
    // Of other programs, which the texts name beside them.
    let others = ["--ulimit", "--security-opt"];
    for (place, text) in remedies() {
        for word in words(&text) {
            let is_file = ["configs/", "docs/"]
                .iter()
                .any(|folder| word.starts_with(folder));
            if word.starts_with("--") && word.len() > 2 {
                let is_known = known.contains(word) || others.contains(&word);
                assert!(is_known, "{place}: {word} is no flag: {text}");
            } else if is_file {
                assert!(
                    root().join(word).exists(),
                    "{place}: {word} is not there: {text}"
                );
            } else if let Some((section, _)) = word.split_once('.')
                && KEYS
                    .iter()
                    .any(|key| key.name.starts_with(&format!("{section}.")))
            {
                let is_key = KEYS.iter().any(|key| key.name == word);
                assert!(is_key, "{place}: {word} is no key: {text}");
            }
        }
        for command in text.split('`').skip(1).step_by(2) {
            let mut parts = command.split_whitespace();
            let program = match parts.next() {
                Some("rrq-node") => node,
                Some("rrqctl") => env!("CARGO_BIN_EXE_rrqctl"),
                _ => continue,
            };
            let verbs: Vec<&str> = parts.take_while(|word| !word.starts_with('-')).collect();
            let output = Command::new(program).args(&verbs).arg("--help").output();
            let output = output.expect("it runs");
            assert!(output.status.success(), "{place}: there is no `{command}`");
        }
    }
}

#[test]
fn remedies_are_found_in_the_source() {
    let places: BTreeSet<String> = remedies().into_iter().map(|(place, _)| place).collect();
    let has = |end: &str| places.iter().any(|place| Path::new(place).ends_with(end));
    assert!(
        has("src/runtime/data_dir.rs") && has("src/cli/complaint.rs"),
        "{places:?}"
    );
    assert!(has("src/runtime/config/mod.rs"), "{places:?}");
}
