//! These are the promises of the codemap in `src/lib.rs`, as tests.
//!
//! Every file under `src/` is read as tokens, so comments and strings do not count, while grouped
//! imports and the bodies of macros do. Each check is a function from a source to its complaints,
//! and each has a bad and a good example beside it. A complaint names file and line and says what
//! to do; to change a rule, change the table here and say why in the commit.
//!
//! Not checked, because it is taste: length of files and functions, names.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which folder may name which others.
#[rustfmt::skip]
const MAY_NAME: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("queue", &["base"]),
    ("raft", &["base"]),
    ("wal", &["base"]),
    ("snapshot", &["base"]),
    ("wire", &["base", "queue", "raft"]),
    ("shard", &["base", "queue", "raft", "wal", "snapshot", "wire"]),
    ("client", &["base", "wire"]),
    ("test", &["client"]),
    ("workload", &["base", "wire"]),
    ("runtime", &["base", "wire", "wal", "snapshot", "shard"]),
    ("sim", &["base", "queue", "raft", "wire", "wal", "snapshot", "shard", "client", "workload"]),
    // It starts nodes of its own, and simulated ones.
    ("loadtest", &["base", "client", "workload", "wire", "runtime", "sim"]),
    // `repair` works on the files of a stopped node; a hidden command starts one.
    // `demo` shows what the bench does.
    ("cli", &["base", "queue", "wire", "wal", "snapshot", "shard", "client", "runtime", "loadtest"]),
];

/// Folders that decide and never wait: no clock, no I/O, no order that a hasher chose.
const PURE: &[&str] = &[
    "base", "queue", "raft", "wal", "snapshot", "wire", "shard", "sim", "workload",
];

/// Where words may stand.
enum Place {
    /// In these folders or files only (a folder ends in `/`).
    Only(&'static [&'static str]),
    /// Anywhere but in the pure folders, and in these files of them.
    NotPure(&'static [&'static str]),
    /// Nowhere.
    Nowhere,
    /// In tests only.
    Tests,
}

/// What a rule looks for.
enum Word {
    /// Neighbouring names of a path, wherever in it: `std::fs` also finds `use std::{fs, io}`.
    Path(&'static [&'static str]),
    /// Neighbouring tokens.
    Tokens(&'static [&'static str]),
    /// `cfg` in any form that asks for a feature.
    CfgFeature,
}

use Place::{NotPure, Nowhere, Only, Tests};
use Word::{CfgFeature, Path as PathTo, Tokens};

const DRIVERS: Place = Only(&[
    "runtime/",
    "cli/",
    "loadtest/",
    "bin/",
    "test/",
    "client/tcp.rs",
    // A thread for programs without async.
    "client/blocking.rs",
    // Takes a `SystemTime` of its user; asks for none.
    "client/enqueue.rs",
]);

/// The words, where they may stand, and what to do instead.
#[rustfmt::skip]
const WORDS: &[(Word, Place, &str)] = &[
    (PathTo(&["glommio"]), Only(&["runtime/", "bin/"]),
     "Only runtime/ knows the executor: make it an Effect that runtime/ performs."),
    (PathTo(&["prost"]), Only(&["wire/"]),
     "Only wire/ knows the encoding: use its plain values."),
    (PathTo(&["unsafe"]), Only(&["runtime/sys.rs", "runtime/snapshot_files.rs"]),
     "Put a safe function into runtime/sys.rs, with the reason why it is sound."),
    (PathTo(&["std", "fs"]), DRIVERS,
     "Files are an Effect: let the driver do it."),
    (PathTo(&["std", "net"]), DRIVERS,
     "Sockets are an Effect: let the driver do it."),
    (PathTo(&["std", "thread"]), DRIVERS,
     "Threads belong to the driver."),
    (PathTo(&["Instant", "now"]), DRIVERS,
     "Time is an argument: take a Monotonic."),
    (PathTo(&["SystemTime"]), DRIVERS,
     "Time is an argument: take a WallTime."),
    (PathTo(&["async"]), NotPure(&[]),
     "Decide without waiting: return an Effect instead."),
    (PathTo(&["await"]), NotPure(&[]),
     "Decide without waiting: return an Effect instead."),
    (PathTo(&["HashMap"]), NotPure(&["base/lookup.rs"]),
     "Its order leaks: use a BTreeMap, or base::lookup::Lookup, which cannot be walked."),
    (PathTo(&["HashSet"]), NotPure(&["base/lookup.rs"]),
     "Its order leaks: use a BTreeSet, or base::lookup::Lookup, which cannot be walked."),
    (PathTo(&["thread_rng"]), NotPure(&[]),
     "Randomness is an argument: use base::prng, seeded."),
    (PathTo(&["rand", "rng"]), NotPure(&[]),
     "Randomness is an argument: use base::prng, seeded."),
    (Tokens(&["print", "!"]), NotPure(&[]),
     "Return what should be said."),
    (Tokens(&["println", "!"]), NotPure(&[]),
     "Return what should be said."),
    (Tokens(&["eprint", "!"]), NotPure(&[]),
     "Return what should be said."),
    (Tokens(&["eprintln", "!"]), NotPure(&[]),
     "Return what should be said."),
    (CfgFeature, NotPure(&["base/bugs.rs"]),
     "The pure folders are the same in every build: plant bugs with base::bugs::on."),
    (Tokens(&["crate", "as"]), Nowhere,
     "Name the folder that you need."),
    (Tokens(&["extern", "crate"]), Nowhere,
     "The compiler finds crates without it."),
    (Tokens(&["todo", "!"]), Nowhere,
     "Finish it, or leave the branch out."),
    (Tokens(&["dbg", "!"]), Nowhere,
     "Take it out, or write a tracing event."),
    (Tokens(&["#", "[", "ignore"]), Nowhere,
     "A test runs, or prints `skipped: needs ...`."),
    (Tokens(&[".", "unwrap", "(", ")"]), Tests,
     "Use expect(\"why it cannot fail\"), or handle it."),
];

/// Marks of unfinished work, also in comments.
const UNFINISHED: &[&str] = &["TODO", "FIXME"];

#[test]
fn folders_name_only_what_the_table_allows() {
    assert_none(sources().iter().flat_map(check_dependencies));
}

#[test]
fn words_stand_only_where_they_may() {
    assert_none(sources().iter().flat_map(check_words));
}

#[test]
fn nothing_is_left_unfinished() {
    assert_none(sources().iter().flat_map(check_unfinished));
}

#[test]
fn every_file_tells_its_story() {
    let mut files = sources();
    for folder in ["tests", "benches", "tools", "fuzz"] {
        for (path, text) in files_under(folder) {
            if path.ends_with(".rs") {
                files.push(Source::new(&format!("../{folder}/{path}"), &text));
            }
        }
    }
    assert_none(files.iter().flat_map(check_head));
}

#[test]
fn the_codemap_names_every_folder() {
    let folders = sources()
        .iter()
        .filter_map(Source::folder)
        .collect::<BTreeSet<_>>();
    let codemap = read("src/lib.rs");
    assert_none(check_codemap(&codemap, folders.iter().map(String::as_str)));
}

#[test]
fn every_script_is_run() {
    let scripts = files_under("tests/scripts")
        .into_iter()
        .map(|(path, _)| path);
    let drivers = files_under("tests")
        .into_iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .map(|(_, text)| text)
        .collect::<Vec<_>>();
    assert_none(check_scripts(&scripts.collect::<Vec<_>>(), &drivers));
}

#[test]
fn there_is_no_build_script() {
    let exists = root().join("build.rs").exists();
    assert_none(check_manifest(&read("Cargo.toml"), exists));
}

/// Paths that leave a folder for one that it may not name; `super::super`, which hides where it
/// leads.
fn check_dependencies(source: &Source) -> Vec<String> {
    // The root declares the folders, the programs may use any.
    if source.path == "lib.rs" || source.is_in("bin/") {
        return Vec::new();
    }
    let Some(folder) = source.folder() else {
        return vec![format!(
            "src/{}: lies in no folder. Move it into one of the folders of the codemap.",
            source.path
        )];
    };
    let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == folder) else {
        return vec![format!(
            "src/{}: {folder}/ is not in the table of tests/architecture.rs. Add it there with \
             what it may name, and to the codemap.",
            source.path
        )];
    };
    let mut complaints = BTreeSet::new();
    let mut complain = |line: usize, text: String| {
        complaints.insert((line, text));
    };
    for path in &source.paths {
        let ups = path
            .names
            .iter()
            .take_while(|name| *name == "super")
            .count();
        let target = match path.names[0].as_str() {
            "crate" | "rrq" => path.names.get(1),
            "super" if ups > 1 => {
                complain(
                    path.line,
                    format!("names super::super. Write where it leads: crate::{folder}::..."),
                );
                continue;
            }
            // One step up from the top of a folder is the root.
            "super" if source.depth + path.depth == 1 => path.names.get(1),
            _ => continue,
        };
        match target.map(String::as_str) {
            None => {}
            Some("*" | "self") => complain(
                path.line,
                "names the whole crate. Name the folder that you need.".to_string(),
            ),
            Some(target) if target == folder || allowed.contains(&target) => {}
            Some(target) => complain(
                path.line,
                format!(
                    "names crate::{target}; {folder} may name {}. Pass the data in, or move the \
                     code to the folder that it belongs to.",
                    match allowed {
                        [] => "no other folder".to_string(),
                        _ => format!("only {}", allowed.join(", ")),
                    }
                ),
            ),
        }
    }
    complaints
        .into_iter()
        .map(|(line, text)| format!("{}:{line} {text}", source.path))
        .collect()
}

#[test]
fn check_dependencies_examples() {
    #[rustfmt::skip]
    let bad = [
        ("raft/log.rs", "use crate::wal::Record;"),
        ("raft/log.rs", "use crate::{base::ids::Term, wal};"),
        ("raft/log.rs", "use crate::{base::{self, ids}, wal::{self, record}};"),
        ("raft/log.rs", "use {crate::wal, std::io};"),
        ("raft/log.rs", "fn f(r: &[crate::wal::Record]) {}"),
        ("raft/log.rs", "fn f() { g(crate::wal::seal()) }"),
        ("raft/log.rs", "fn f() { assert!(matches!(x, crate::wal::Seal { .. })) }"),
        ("raft/log.rs", "#[derive(crate::wal::Codec)] struct S;"),
        ("raft/log.rs", "#[cfg(test)] mod tests { use crate::wal::Record; }"),
        ("raft/log.rs", "pub(in crate::wal) fn f() {}"),
        ("raft/log.rs", "use crate::*;"),
        ("raft/log.rs", "use crate::{self as all};"),
        ("raft/log.rs", "use rrq::wal;"),
        ("raft/log.rs", "use super::super::wal;"),
        ("raft/log.rs", "mod tests { use super::super::node; }"),
        ("raft/mod.rs", "use super::wal;"),
        ("raft/mod.rs", "use super::{base, wal};"),
        ("base/ids.rs", "use crate::queue::Job;"),
        ("extra/mod.rs", ""),
        ("helpers.rs", ""),
    ];
    for (path, text) in bad {
        let complaints = check_dependencies(&Source::new(path, text));
        assert_eq!(complaints.len(), 1, "{path}: {text}: {complaints:?}");
    }
    #[rustfmt::skip]
    let good = [
        ("raft/log.rs", "use crate::base::entry::Entry; use crate::raft::role::Role;"),
        ("raft/log.rs", "use crate::{base::{self, ids::Term}, raft};"),
        ("raft/log.rs", "use super::node::Node; pub(crate) fn f() { super::g() }"),
        ("raft/log.rs", "//! [`crate::wal`]\n/* crate::wal */ const S: &str = \"crate::wal\";"),
        ("raft/mod.rs", "use super::base; mod tests { use super::wal; }"),
        ("sim/disk.rs", "use crate::{shard::engine, wal, workload};"),
        ("bin/rrqctl.rs", "use rrq::{cli, runtime};"),
        ("lib.rs", "pub use crate::wal;"),
    ];
    for (path, text) in good {
        let complaints = check_dependencies(&Source::new(path, text));
        assert!(complaints.is_empty(), "{path}: {text}: {complaints:?}");
    }
    let text = "\nuse std::io;\nuse crate::{\n    base::ids,\n    wal,\n};";
    assert_eq!(
        check_dependencies(&Source::new("raft/log.rs", text)),
        [
            "raft/log.rs:5 names crate::wal; raft may name only base. Pass the data in, or move the \
          code to the folder that it belongs to."
        ]
    );
}

/// Words in places where they may not stand.
fn check_words(source: &Source) -> Vec<String> {
    let mut complaints = BTreeSet::new();
    for (word, place, remedy) in WORDS {
        let forbidden = match place {
            Only(places) => !places.iter().any(|place| source.is_in(place)),
            NotPure(files) => {
                source
                    .folder()
                    .is_some_and(|folder| PURE.contains(&folder.as_str()))
                    && !files.contains(&source.path.as_str())
            }
            Nowhere | Tests => true,
        };
        if !forbidden {
            continue;
        }
        let tests_too = !matches!(place, Tests);
        let where_it_may = match place {
            Only(places) => format!("it may stand only in {}", places.join(", ")),
            NotPure(_) => "not in a pure folder".to_string(),
            Nowhere => "nowhere in src/".to_string(),
            Tests => "only in tests".to_string(),
        };
        for (line, name) in word.find(source, tests_too) {
            complaints.insert((line, format!("has `{name}`: {where_it_may}. {remedy}")));
        }
    }
    complaints
        .into_iter()
        .map(|(line, text)| format!("{}:{line} {text}", source.path))
        .collect()
}

impl Word {
    /// Lines where the word stands, and how it is written.
    fn find(&self, source: &Source, tests_too: bool) -> Vec<(usize, String)> {
        let tokens = &source.tokens;
        match self {
            Self::Path(names) => source
                .paths
                .iter()
                .filter(|path| {
                    path.names
                        .windows(names.len())
                        .any(|window| window == *names)
                })
                .map(|path| (path.line, names.join("::")))
                .collect(),
            Self::Tokens(words) => tokens
                .windows(words.len())
                .filter(|window| window.iter().map(|token| &token.text).eq(words.iter()))
                .filter(|window| tests_too || !window[0].in_test)
                .map(|window| (window[0].line, words.concat()))
                .collect(),
            Self::CfgFeature => (0..tokens.len())
                .filter(|start| {
                    let after = match &tokens[*start..] {
                        [cfg, bang, open, ..]
                            if cfg.text == "cfg" && bang.text == "!" && open.text == "(" =>
                        {
                            2
                        }
                        [cfg, open, ..]
                            if ["cfg", "cfg_attr"].contains(&cfg.text.as_str())
                                && open.text == "(" =>
                        {
                            1
                        }
                        _ => return false,
                    };
                    let open = start + after;
                    tokens[open..closing(tokens, open)]
                        .iter()
                        .any(|token| token.text == "feature")
                })
                .map(|start| (tokens[start].line, "cfg(feature".to_string()))
                .collect(),
        }
    }
}

#[test]
fn check_words_examples() {
    #[rustfmt::skip]
    let bad = [
        ("shard/engine.rs", "use glommio::LocalExecutor;"),
        ("client/tcp.rs", "fn f() { glommio::yield_if_needed() }"),
        ("shard/engine.rs", "#[derive(::prost::Message)] struct S;"),
        ("runtime/node.rs", "fn f() { unsafe { g() } }"),
        ("wal/segment.rs", "use std::fs::File;"),
        ("wal/segment.rs", "use std::{fs, io};"),
        ("wal/segment.rs", "use std::{fmt, fs::{self, File}};"),
        ("client/session.rs", "use std::{net::{SocketAddr}, io};"),
        ("client/session.rs", "fn f() { let _ = Instant::now(); }"),
        ("client/session.rs", "fn f() { let _ = std::time::Instant::now(); }"),
        ("client/session.rs", "use std::time::{Duration, SystemTime};"),
        ("sim/world.rs", "fn f() { std::thread::yield_now() }"),
        ("sim/world.rs", "async fn f() {}"),
        ("sim/world.rs", "fn f() { g().await }"),
        ("queue/job.rs", "use std::collections::HashMap;"),
        ("queue/job.rs", "use std::collections::{BTreeMap, HashSet};"),
        ("queue/job.rs", "fn f() { rand::rng() }"),
        ("queue/job.rs", "fn f() { println!(\"x\") }"),
        ("queue/job.rs", "fn f() { vec![eprintln!(\"x\")] }"),
        ("queue/job.rs", "#[cfg(feature = \"server\")] fn f() {}"),
        ("queue/job.rs", "#[cfg(all(test, feature = \"server\"))] fn f() {}"),
        ("queue/job.rs", "#[cfg_attr(feature = \"server\", inline)] fn f() {}"),
        ("queue/job.rs", "fn f() -> bool { cfg!(feature = \"server\") }"),
        ("raft/log.rs", "use crate as all;"),
        ("raft/log.rs", "extern crate self as rrq;"),
        ("bin/rrqctl.rs", "fn f() { todo!() }"),
        ("runtime/node.rs", "fn f() { dbg!(1); }"),
        ("runtime/node.rs", "#[test] #[ignore = \"slow\"] fn f() {}"),
        ("runtime/node.rs", "fn f() { g().unwrap(); }"),
        ("runtime/node.rs", "#[cfg(not(test))] fn f() { g().unwrap(); }"),
        ("runtime/node.rs", "#[cfg(test)] mod tests {} fn f() { g().unwrap(); }"),
        ("runtime/node.rs", "#[cfg(test)] use a::b; fn f() { g().unwrap(); }"),
    ];
    for (path, text) in bad {
        let complaints = check_words(&Source::new(path, text));
        assert_eq!(complaints.len(), 1, "{path}: {text}: {complaints:?}");
    }
    #[rustfmt::skip]
    let good = [
        ("runtime/shard_task.rs", "use glommio::Task; async fn f() { g().await }"),
        ("runtime/sys.rs", "fn f() { unsafe { g() } }"),
        ("wire/client.rs", "use prost::Message;"),
        ("client/tcp.rs", "use std::{net::SocketAddr, time::Instant}; fn f() { Instant::now(); }"),
        ("client/session.rs", "use std::time::Duration; thread_local! { static A: u8 = 1; }"),
        ("queue/job.rs", "// HashMap\n/// println!\nconst S: &str = \"todo!() glommio\";"),
        ("queue/job.rs", "fn f() { g().expect(\"x\"); h().unwrap_or(1); }"),
        ("queue/job.rs", "#[cfg(test)] mod tests { fn f() { g().unwrap(); } }"),
        ("queue/job.rs", "#[cfg(all(test, unix))] fn f() { g().unwrap(); }"),
        ("queue/tests.rs", "fn f() { g().unwrap(); }"),
        ("queue/job.rs", "#![cfg_attr(test, allow(unused))] fn feature() {}"),
        ("base/lookup.rs", "use hashbrown::HashMap;"),
        ("base/bugs.rs", "#[cfg(not(feature = \"bug-bank\"))] fn f() {}"),
        ("lib.rs", "#[cfg(feature = \"server\")] pub mod runtime;"),
    ];
    for (path, text) in good {
        let complaints = check_words(&Source::new(path, text));
        assert!(complaints.is_empty(), "{path}: {text}: {complaints:?}");
    }
    assert_eq!(
        check_words(&Source::new(
            "wire/frame.rs",
            "\nuse std::{\n    io,\n    net,\n};"
        )),
        [
            "wire/frame.rs:4 has `std::net`: it may stand only in runtime/, cli/, loadtest/, bin/, \
          test/, client/tcp.rs, client/blocking.rs, client/enqueue.rs. Sockets are an Effect: let \
          the driver do it."
        ]
    );
}

/// Marks of unfinished work.
fn check_unfinished(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        for mark in UNFINISHED {
            if line
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| word == *mark)
            {
                complaints.push(format!(
                    "{}:{} has {mark}. Finish it, or say in a sentence what is absent and why.",
                    source.path,
                    number + 1
                ));
            }
        }
    }
    complaints
}

#[test]
fn check_unfinished_examples() {
    let complaints = |text| check_unfinished(&Source::new("raft/log.rs", text)).len();
    assert_eq!(complaints("// TODO: cut\nfn f() {} // FIXME"), 2);
    assert_eq!(complaints("const TODOS: u8 = 1; // todo"), 0);
}

/// Files that do not say first what they are for.
fn check_head(source: &Source) -> Vec<String> {
    if source.text.starts_with("//!") {
        return Vec::new();
    }
    vec![format!(
        "{}:1 does not open with `//!`. Say first what the file is for.",
        source.path
    )]
}

#[test]
fn check_head_examples() {
    assert_eq!(
        check_head(&Source::new("raft/log.rs", "use std::io;\n//! Late.")).len(),
        1
    );
    assert_eq!(check_head(&Source::new("raft/log.rs", "")).len(), 1);
    assert_eq!(
        check_head(&Source::new("raft/log.rs", "//! The log.\n")).len(),
        0
    );
}

/// Folders that the head of `src/lib.rs` does not name.
fn check_codemap<'a>(lib: &str, folders: impl Iterator<Item = &'a str>) -> Vec<String> {
    let head = lib
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .collect::<String>();
    folders
        .filter(|folder| *folder != "bin" && !head.contains(&format!("`{folder}`")))
        .map(|folder| {
            format!("lib.rs:1 does not name {folder}/. Give it a line in the codemap's table.")
        })
        .collect()
}

#[test]
fn check_codemap_examples() {
    let lib = "//! | [`base`] | words |\n//! | `cli` | rrqctl |\n\npub mod raft; // `raft`\n";
    assert_eq!(
        check_codemap(lib, ["base", "bin", "cli"].into_iter()),
        [""; 0]
    );
    assert_eq!(check_codemap(lib, ["raft"].into_iter()).len(), 1);
}

/// Scripts (paths under `tests/scripts`) whose folder no test file names.
fn check_scripts(scripts: &[String], drivers: &[String]) -> Vec<String> {
    let folders = scripts
        .iter()
        .map(|script| {
            script
                .rsplit_once('/')
                .map_or(script.as_str(), |(folder, _)| folder)
        })
        .collect::<BTreeSet<_>>();
    folders
        .into_iter()
        .filter(|folder| {
            let written = format!("scripts/{folder}");
            !drivers.iter().any(|driver| {
                driver.match_indices(&written).any(|(at, _)| {
                    !driver[at + written.len()..]
                        .starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-')
                })
            })
        })
        .map(|folder| {
            format!(
                "tests/scripts/{folder} is named by no file of tests/. Let a test run all of it, \
                 or delete it."
            )
        })
        .collect()
}

#[test]
fn check_scripts_examples() {
    let driver = ["const FOLDER: &str = \"tests/scripts/queue\";".to_string()];
    let complaints = |script: &str| check_scripts(&[script.to_string()], &driver).len();
    assert_eq!(complaints("queue/enqueue_twice"), 0);
    assert_eq!(complaints("que/enqueue_twice"), 1);
    assert_eq!(complaints("raft/elect_alone"), 1);
    assert_eq!(complaints("stray"), 1);
}

/// Build scripts.
fn check_manifest(manifest: &str, build_rs_exists: bool) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut complain = |what: &str| {
        complaints.push(format!(
            "{what}. Check generated code in, with a test that it is what would be generated."
        ));
    };
    if build_rs_exists {
        complain("there is a build.rs");
    }
    for (number, line) in manifest.lines().enumerate() {
        let key = line
            .split(['=', '.'])
            .next()
            .expect("a split has a first part")
            .trim();
        if key == "build" || line.starts_with("[build-dependencies") {
            complain(&format!("Cargo.toml:{} has `{line}`", number + 1));
        }
    }
    complaints
}

#[test]
fn check_manifest_examples() {
    assert_eq!(
        check_manifest("[package]\nname = \"rrq\"\n", false),
        [""; 0]
    );
    assert_eq!(check_manifest("prost-build = \"0.14\"\n", false), [""; 0]);
    assert_eq!(
        check_manifest("[package]\nbuild = \"make.rs\"\n", false).len(),
        1
    );
    assert_eq!(
        check_manifest("[build-dependencies]\nprost-build = \"1\"\n", true).len(),
        2
    );
}

/// A file under `src/`, in the forms that the checks read.
struct Source {
    /// The path, from `src/`.
    path: String,
    text: String,
    /// Its tokens, groups opened out, literals without their content.
    tokens: Vec<Token>,
    /// Every path and single name in it, imports opened out.
    paths: Vec<NamePath>,
    /// How many modules deep the file is: 1 for the head of a folder.
    depth: usize,
}

struct Token {
    text: String,
    line: usize,
    /// Inside an item that only tests have.
    in_test: bool,
    /// How many `mod name { }` it stands in.
    depth: usize,
}

/// `a::b::c`, from the line of its last name.
struct NamePath {
    names: Vec<String>,
    line: usize,
    /// How many `mod name { }` it stands in.
    depth: usize,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let stream = text
            .parse::<TokenStream>()
            .unwrap_or_else(|error| panic!("src/{path} has no valid tokens: {error}"));
        let mut tokens = Vec::new();
        open_out(stream, &mut tokens);
        mark_tests(
            &mut tokens,
            path.ends_with("/tests.rs") || path.contains("/tests/"),
        );
        mark_depths(&mut tokens);
        let mut paths = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            at = read_path(&tokens, at, &[], &mut paths);
        }
        let names = path
            .trim_end_matches(".rs")
            .trim_end_matches("/mod")
            .split('/');
        Self {
            path: path.to_string(),
            text: text.to_string(),
            tokens,
            paths,
            depth: names.count(),
        }
    }

    /// The folder of `src/` that the file lies in.
    fn folder(&self) -> Option<String> {
        self.path
            .split_once('/')
            .map(|(folder, _)| folder.to_string())
    }

    /// Whether the file is `place`, or in it if that is a folder.
    fn is_in(&self, place: &str) -> bool {
        self.path == place || (place.ends_with('/') && self.path.starts_with(place))
    }
}

/// Appends the tokens of `stream`, with the brackets of groups as tokens of their own.
fn open_out(stream: TokenStream, tokens: &mut Vec<Token>) {
    let push = |tokens: &mut Vec<Token>, text: &str, line| {
        tokens.push(Token {
            text: text.to_string(),
            line,
            in_test: false,
            depth: 0,
        });
    };
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(tokens, open, line);
                open_out(group.stream(), tokens);
                push(tokens, close, group.span_close().start().line);
            }
            TokenTree::Ident(name) => push(tokens, &name.to_string(), line),
            TokenTree::Punct(mark) => push(tokens, &mark.as_char().to_string(), line),
            TokenTree::Literal(_) => push(tokens, "literal\0", line),
        }
    }
}

/// The index of the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut level = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => level += 1,
            ")" | "]" | "}" => level -= 1,
            _ => {}
        }
        if level == 0 {
            return at;
        }
    }
    unreachable!("the parser has matched all brackets");
}

/// Marks the items under `#[cfg(test)]`: each goes to the end of its first braces, or to its
/// semicolon.
fn mark_tests(tokens: &mut [Token], all: bool) {
    for token in tokens.iter_mut() {
        token.in_test = all;
    }
    for start in 0..tokens.len() {
        let [hash, open, cfg, ..] = &tokens[start..] else {
            break;
        };
        if hash.text != "#" || open.text != "[" || cfg.text != "cfg" {
            continue;
        }
        let attribute_end = closing(tokens, start + 1);
        let condition = &tokens[start..attribute_end];
        let has = |word| condition.iter().any(|token| token.text == word);
        if !has("test") || has("not") {
            continue;
        }
        let mut end = attribute_end + 1;
        while end < tokens.len() && tokens[end].text != ";" {
            match tokens[end].text.as_str() {
                "{" => {
                    end = closing(tokens, end);
                    break;
                }
                "(" | "[" => end = closing(tokens, end),
                _ => {}
            }
            end += 1;
        }
        for token in tokens.iter_mut().take(end + 1).skip(start) {
            token.in_test = true;
        }
    }
}

/// Counts for each token the modules that it stands in.
fn mark_depths(tokens: &mut [Token]) {
    let mut open: Vec<bool> = Vec::new();
    for at in 0..tokens.len() {
        if tokens[at].text == "}" {
            open.pop();
        }
        tokens[at].depth = open.iter().filter(|is_module| **is_module).count();
        if tokens[at].text == "{" {
            open.push(at >= 2 && tokens[at - 2].text == "mod");
        }
    }
}

/// Reads the path or other token at `at`, under the names of the group that it stands in. Returns
/// the index behind it.
fn read_path(tokens: &[Token], at: usize, above: &[String], paths: &mut Vec<NamePath>) -> usize {
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.text == text);
    let is_name = |at: usize| {
        tokens.get(at).is_some_and(|token| {
            !token.text.ends_with('\0')
                && token
                    .text
                    .starts_with(|c: char| c.is_alphabetic() || c == '_')
        })
    };
    let is_glob = is(at, "*") && !above.is_empty();
    if !is_name(at) && !is_glob {
        return at + 1;
    }
    let mut names = above.to_vec();
    let mut last = at;
    names.push(tokens[at].text.clone());
    loop {
        let next = last + 3;
        if !(is(last + 1, ":") && is(last + 2, ":")) {
            break;
        }
        if is(next, "{") {
            let end = closing(tokens, next);
            let mut inner = next + 1;
            while inner < end {
                inner = read_path(tokens, inner, &names, paths);
                // Behind `a as b` comes no path of the group.
                while inner < end && !is(inner, ",") {
                    inner += 1;
                }
                inner += 1;
            }
            return end + 1;
        }
        if !is_name(next) && !is(next, "*") {
            break;
        }
        names.push(tokens[next].text.clone());
        last = next;
    }
    paths.push(NamePath {
        names,
        line: tokens[last].line,
        depth: tokens[last].depth,
    });
    last + 1
}

/// All files under `src/`.
fn sources() -> Vec<Source> {
    let files = files_under("src");
    assert!(files.len() > 10, "src/ is not where the test looks for it");
    files
        .iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .map(|(path, text)| Source::new(path, text))
        .collect()
}

/// Paths, from `folder`, and texts of all files under it; none if it does not exist. Files that
/// are not text, and what a build or run has left, are passed over.
fn files_under(folder: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, prefix: &str, files: &mut Vec<(String, String)>) {
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        for entry in entries {
            let entry = entry.expect("the folder can be listed");
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || name == "target" || name == "fixtures" {
                continue;
            }
            let path = format!("{prefix}{name}");
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{path}/"), files);
            } else if let Ok(text) = fs::read_to_string(entry.path()) {
                files.push((path, text));
            }
        }
    }
    let mut files = Vec::new();
    walk(&root().join(folder), "", &mut files);
    files.sort();
    files
}

/// The package that is tested: asked when the test runs, since checkouts that share a target
/// directory also share its programs.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Fails with all complaints, if there are any.
fn assert_none(complaints: impl IntoIterator<Item = String>) {
    let complaints = complaints.into_iter().collect::<Vec<_>>();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}
