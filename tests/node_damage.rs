//! Every kind of file of a data directory, damaged in every way: the outcome is named, and no job is
//! ever missing without a word.
//!
//! | outcome | means |
//! | --- | --- |
//! | `whole` | every job is as it was |
//! | `halted` | some groups stopped and say so with the remedy; every other job is as it was |
//! | `refused` | the node does not start, and says what, where, why and what to do |

#![cfg(all(feature = "server", feature = "client", target_os = "linux"))]

mod damage_kit;
mod data_kit;
mod node_support;

use damage_kit::{DAMAGES, damage, targets};
use data_kit::{ARGS, Known, copy, make, survey};
use node_support::{DEADLINE, Node, assert_is_report, command, folder, http};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What each file's damages lead to, in the order of [`DAMAGES`]; `-` where there is no such case.
const EXPECTED: &[(&str, [&str; 6])] = &[
    (
        "superblock.0",
        ["whole", "whole", "whole", "whole", "whole", "whole"],
    ),
    (
        "superblock.*",
        ["refused", "refused", "refused", "refused", "-", "-"],
    ),
    ("lock", ["whole", "whole", "whole", "whole", "-", "-"]),
    ("ballast", ["whole", "whole", "whole", "whole", "-", "-"]),
    (
        "first segment",
        ["whole", "whole", "whole", "whole", "halted", "whole"],
    ),
    (
        "last segment",
        ["halted", "halted", "halted", "halted", "halted", "-"],
    ),
    ("run", ["whole", "whole", "whole", "whole", "whole", "-"]),
    (
        "payload",
        ["whole", "whole", "whole", "whole", "whole", "-"],
    ),
    (
        "manifest",
        ["whole", "whole", "whole", "whole", "whole", "-"],
    ),
];

/// Starts a node on the directory and looks at every job.
fn outcome(data: &Path, known: &[Known]) -> (String, String) {
    match Node::start_or_end(data, ARGS) {
        Err((_, said)) => {
            assert_is_report(&said);
            assert!(said.contains("\n  fix:"), "no way out: {said}");
            ("refused".to_owned(), said)
        }
        Ok(node) => {
            let survey = survey(&node, known);
            let outcome = match (survey.wrong.is_empty(), survey.halted) {
                (false, _) => "LOST",
                (true, 0) => "whole",
                (true, _) => "halted",
            };
            (outcome.to_owned(), format!("{survey:?}"))
        }
    }
}

#[test]
fn every_file_damaged_in_every_way_has_a_named_outcome_and_nothing_is_lost_silently() {
    let original = folder("damage-original");
    let older = folder("damage-older");
    let known = make(&original, Some(&older));
    let data = folder("damage");
    let mut wrong = Vec::new();
    for (row, expected) in EXPECTED {
        let mut cells = Vec::new();
        for (how, expected) in DAMAGES.iter().zip(expected) {
            if *expected == "-" {
                cells.push("-".to_owned());
                continue;
            }
            let _ = fs::remove_dir_all(&data);
            copy(&original, &data);
            let (paths, other) = targets(&data, row);
            assert!(!paths.is_empty(), "{row}: no such file");
            for path in &paths {
                let older = older.join(path.strip_prefix(&data).expect("it is in there"));
                damage(path, how, other.as_deref(), &older);
            }
            let (outcome, said) = outcome(&data, &known);
            if outcome != *expected {
                wrong.push(format!("{row}, {how}: {outcome}, not {expected}: {said}"));
            }
            cells.push(outcome);
        }
        println!("{row:14} {cells:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Flips a bit in each 32 bytes behind the head of a file, in its place, as a disk does to one that is open.
fn rot(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path);
    let file = file.expect("it can be opened");
    let length = file.metadata().expect("it is there").len();
    for offset in (4096..length).step_by(32) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("it is read");
        file.write_all_at(&[byte[0] ^ 1], offset)
            .expect("it is written");
    }
    file.sync_all().expect("it is synced");
}

#[test]
fn damage_under_a_running_node_is_told_before_anybody_asks_for_what_is_damaged() {
    let data = folder("damage-scrubbed");
    make(&data, None);
    let mut command = command(&data, ARGS);
    command.env("RRQ_CHECKPOINT__SCRUB_PERIOD", "1s");
    let mut node = Node::spawn_by(&mut command).until_ready();
    let counted = |node: &Node, name: &str| -> u64 {
        let (_, page) = http(node.admin(), "/metrics");
        let name = format!("rrq_scrub_{name}{{");
        let lines = page.lines().filter(|line| line.starts_with(&name));
        let numbers = lines.map(|line| line.rsplit_once(' ').expect("a number").1);
        numbers
            .map(|text| text.parse::<u64>().expect("a number"))
            .sum()
    };
    let until = |node: &Node, what: &str, holds: &dyn Fn(&Node) -> bool| {
        let begun = Instant::now();
        while !holds(node) {
            assert!(
                begun.elapsed() < DEADLINE,
                "it does not come about that {what}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until(&node, "passes are over", &|node| {
        counted(node, "passes_total") >= 4
    });
    assert!(counted(&node, "bytes_total") > 0);
    assert_eq!(counted(&node, "damaged_total"), 0);
    for payload in targets(&data, "payload").0 {
        rot(&payload);
    }
    until(&node, "it is counted", &|node| {
        counted(node, "damaged_total") > 0
    });
    let (_, page) = http(node.admin(), "/metrics");
    assert!(
        page.contains("rrq_groups_halted{shard=\"0\"} 0"),
        "it serves on"
    );
    let begun = Instant::now();
    let mut said = Vec::new();
    while !said
        .iter()
        .any(|line: &String| line.contains("nobody else has"))
    {
        assert!(begun.elapsed() < DEADLINE, "it is not told: {said:?}");
        said.extend(node.heard());
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = said.iter().find(|line| line.contains("nobody else has"));
    let told = told.expect("it was just seen");
    assert!(told.contains("the checkpoint of group "), "{told}");
    assert!(told.contains("what is left of the jobs "), "{told}");
    assert!(told.contains("rrqctl repair"), "{told}");
}
