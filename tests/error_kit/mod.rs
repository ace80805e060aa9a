//! The whole text of each error that a test provokes is pinned, in
//! `tests/snapshots/errors/RRQ-nnnn/<program>.<test>.txt`, one after the other.
//!
//! A test names nothing: its own name and the code in the text say which file it is. `UPDATE=1` writes
//! the files anew. What a machine or a run decides (folders, ports, process numbers, random ids) is
//! replaced before; everything else must stay as it is.

use regex::Regex;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

/// Between the texts of one file.
const BETWEEN: &str = "----\n";

thread_local! {
    /// How often each code was told in this test, whose thread this is.
    static TOLD: RefCell<BTreeMap<String, usize>> = const { RefCell::new(BTreeMap::new()) };
}

/// What differs from run to run, and what stands for it.
static VARIES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let rules = [
        // Ports that the kernel chose.
        (r":(?:3[2-9]|[45]\d|6[0-5])\d{3}\b", ":[PORT]"),
        (r"\b(pid|kill) \d+", "$1 [PID]"),
        (r"\b\d+ bytes were refused", "[N] bytes were refused"),
        // How many entries a group has had depends on the time that passed between.
        (r"\bentries from \d+ to \d+\b", "entries from [N] to [N]"),
        // Programs of tests have their build in their name, and folders of theirs the process.
        (r"\bnode_start-[0-9a-f]+", "node_start"),
        (r"/rrq-(check|test)-\d+", "/rrq-$1"),
        (r"\b[0-9a-f]{32}\b", "[ID]"),
        // The number of a set of logs is drawn.
        (r"/set-\d+", "/set-[N]"),
        (r"\bkernel \d+\.\d+\.[^ ,)]+", "kernel [VERSION]"),
        (r"/tmp/\.?[A-Za-z0-9]+", "[TMP]"),
    ];
    let rules = rules.map(|(pattern, by)| (Regex::new(pattern).expect("a pattern"), by));
    rules.into()
});

/// Compares the text of an error with the file that pins it.
#[track_caller]
pub(crate) fn compare(text: &str) {
    let code = text
        .split_once("[RRQ-")
        .or_else(|| text.split_once("RRQ-"))
        .map(|(_, rest)| format!("RRQ-{}", rest.chars().take(4).collect::<String>()))
        .unwrap_or_else(|| panic!("no code is told: {text}"));
    let thread = std::thread::current();
    let test = thread.name().expect("a test's thread has its name");
    let times = TOLD.with_borrow_mut(|told| {
        let times = told.entry(code.clone()).or_default();
        *times += 1;
        *times
    });
    let name = format!("{code}/{}.{test}.txt", env!("CARGO_CRATE_NAME"));
    let told = settled(text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/snapshots/errors")
        .join(&name);
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        std::fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("it is made");
        let before = match times {
            1 => String::new(),
            _ => std::fs::read_to_string(&path).expect("it was just written") + BETWEEN,
        };
        std::fs::write(&path, before + &told).expect("it can be written");
        return;
    }
    let pinned = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{name}: {error}; UPDATE=1 writes it:\n{told}"));
    let wanted = pinned.split(BETWEEN).nth(times - 1).unwrap_or_default();
    assert!(
        wanted == told,
        "{name} is not what was told; UPDATE=1 rewrites it.\nwanted:\n{wanted}\ntold:\n{told}"
    );
}

/// The text without what differs from run to run.
fn settled(text: &str) -> String {
    let text = text
        .replace(env!("CARGO_TARGET_TMPDIR"), "[TMP]")
        .replace(env!("CARGO_MANIFEST_DIR"), "[ROOT]");
    let mut text = VARIES.iter().fold(text, |text, (pattern, by)| {
        pattern.replace_all(&text, *by).into_owned()
    });
    text.truncate(text.trim_end().len());
    text + "\n"
}
