//! `rrqctl context`, and which server is asked: flag, variable, context in use, default.
#![cfg(all(feature = "server", feature = "cli", target_os = "linux"))]

mod cli_support;
mod node_support;

use cli_support::{Done, command, finish};
use node_support::{Node, folder};
use std::fs;
use std::path::Path;

/// Runs `rrqctl` with its configuration in `home`, and `server` in the environment if given.
fn run(home: &Path, server: Option<&str>, args: &[&str]) -> Done {
    let mut command = command(server.unwrap_or_default(), args);
    command.env("XDG_CONFIG_HOME", home);
    if server.is_none() {
        command.env_remove("RRQ_SERVER");
    }
    finish(command.spawn().expect("rrqctl is built"))
}

#[test]
fn contexts_are_saved_used_and_forgotten() {
    let home = folder("context-saved");
    let context = |args: &[&str]| run(&home, None, &[&["context"], args].concat());
    assert!(context(&["list"]).ok().starts_with("no contexts yet"));
    assert!(!home.exists(), "a list makes nothing");
    context(&["add", "one", "127.0.0.1:1"]).ok();
    context(&["add", "two", "127.0.0.1:2,127.0.0.1:3", "--use"]).ok();
    let listed = context(&["list"]).ok();
    assert!(
        listed.contains("two         yes  127.0.0.1:2,127.0.0.1:3"),
        "{listed}"
    );
    context(&["use", "one"]).ok();
    let file = home.join("rrq/contexts.toml");
    let text = fs::read_to_string(&file).expect("it is saved");
    assert!(text.starts_with("current = \"one\""), "{text}");
    context(&["use", "three"]).failed(2, "RRQ-2001");
    context(&["remove", "three"]).failed(2, "RRQ-2001");
    context(&["add", "a b", "127.0.0.1:1"]).failed(2, "RRQ-2001");
    context(&["add", "a", " "]).failed(2, "RRQ-2001");
    assert_eq!(fs::read_to_string(&file).expect("it is there"), text);
    context(&["remove", "one"]).ok();
    let text = fs::read_to_string(&file).expect("it is saved");
    assert!(!text.contains("current") && text.contains("two"), "{text}");
}

#[test]
fn a_flag_wins_over_the_variable_and_that_over_the_context() {
    let home = folder("context-order");
    let node = Node::start_new("context-order-data", &["--shards", "1"]);
    let here = node.clients().to_string();
    let nowhere = "127.0.0.1:1";
    run(&home, None, &["context", "add", "here", &here, "--use"]).ok();
    run(&home, None, &["status"]).ok();
    let said = run(&home, Some(nowhere), &["status"]).failed(1, "RRQ-4001");
    assert!(said.contains(nowhere), "{said}");
    run(&home, Some(nowhere), &["status", "--server", &here]).ok();
}

#[test]
fn a_damaged_file_is_named_and_not_in_the_way_of_a_flag() {
    let home = folder("context-damaged");
    fs::create_dir_all(home.join("rrq")).expect("it can be made");
    let file = home.join("rrq/contexts.toml");
    fs::write(&file, "curent = \"one\"\n").expect("it can be written");
    let said = run(&home, None, &["status"]).failed(2, "RRQ-2002");
    assert!(
        said.contains("contexts.toml") && said.contains("curent"),
        "{said}"
    );
    run(&home, None, &["status", "--server", "127.0.0.1:1"]).failed(1, "RRQ-4001");
    run(&home, None, &["context", "add", "a", "b:1"]).failed(2, "RRQ-2002");
    assert_eq!(
        fs::read_to_string(&file).expect("it is there"),
        "curent = \"one\"\n"
    );
}
