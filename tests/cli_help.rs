//! What `rrqctl` says of itself: help as it was agreed on, completions, manual pages.
//!
//! The texts lie in `tests/snapshots/help`, one file a command; `UPDATE=1` rewrites them.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod cli_support;
mod node_support;

use cli_support::{alone, snapshot};
use node_support::folder;
use std::fs;
use std::process::{Command, Stdio};

/// All commands, with their words: those that a help text lists, and so on below them.
fn commands() -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    let mut at = 0;
    while at < found.len() {
        let help = help(&found[at]);
        let listed = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
        let below = listed.lines().take_while(|line| !line.is_empty());
        for line in below.filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
            let word = line.split_whitespace().next().expect("a line has a word");
            if word != "help" {
                let mut words = found[at].clone();
                words.push(word.to_owned());
                found.push(words);
            }
        }
        at += 1;
    }
    found
}

fn help(words: &[String]) -> String {
    let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
    args.push("--help");
    alone(&args).ok()
}

#[test]
fn every_help_text_is_as_agreed() {
    let commands = commands();
    assert!(commands.len() > 30, "only {commands:?} were found");
    for words in commands {
        let text = help(&words);
        let name = format!(
            "help/{}.txt",
            [&["rrqctl".to_owned()], &words[..]].concat().join("-")
        );
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{name}: {line:?} is too wide");
        }
        assert!(text.contains("\nExample"), "{name} has no example");
        assert!(!text.contains('\u{1b}'), "{name} is coloured");
        snapshot(&name, &text);
    }
}

#[test]
fn completions_are_scripts_that_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = alone(&["completions", shell]).ok();
        for word in ["requeue", "snapshot", "--data-dir"] {
            let word = word.trim_start_matches("--");
            assert!(script.contains(word), "{shell}: {word} is missing");
        }
        let checked = Command::new(shell)
            .args(["-n", "/dev/stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        // A shell that is not here cannot be asked.
        let Ok(mut child) = checked else { continue };
        let mut stdin = child.stdin.take().expect("it is piped");
        std::io::Write::write_all(&mut stdin, script.as_bytes()).expect("it reads");
        drop(stdin);
        assert!(
            child.wait().expect("it ends").success(),
            "{shell}: a syntax error"
        );
    }
}

#[test]
fn the_manual_has_a_page_a_command() {
    let dir = folder("cli-man");
    let said = alone(&["man", "--dir", &dir.display().to_string()]).ok();
    let pages = fs::read_dir(&dir).expect("it is made").count();
    assert!(
        said.starts_with(&format!("{pages} pages written")),
        "{said}"
    );
    for words in commands() {
        let name = [&["rrqctl".to_owned()], &words[..]].concat().join("-");
        let page = fs::read_to_string(dir.join(format!("{name}.1")));
        let page = page.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            page.contains(".SH NAME") && page.contains("Example"),
            "{name}"
        );
    }
    // A folder that cannot be made is one clear error.
    alone(&["man", "--dir", "/proc/nowhere"]).failed(2, "RRQ-2001");
}

#[test]
fn the_older_name_of_a_form_goes_on_working() {
    let context = |form| alone(&["context", "list", "--output", form]);
    assert_eq!(context("text").ok(), context("table").ok());
    context("yaml").failed(2, "RRQ-2001");
}
