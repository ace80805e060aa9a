//! What people write: the configuration and jobs files.

use rrq::base::report::Report;
use rrq::cli::jobs_file::{FileJob, parse};
use rrq::runtime::config::{Loaded, read};
use std::fs;
use std::path::Path;

thread_local! {
    /// A file for each thread, in memory where the system has such a folder.
    static FILE: tempfile::NamedTempFile = {
        let memory = Path::new("/dev/shm");
        let file = if memory.is_dir() {
            tempfile::NamedTempFile::new_in(memory)
        } else {
            tempfile::NamedTempFile::new()
        };
        file.expect("a file can be made")
    };
}

/// A configuration file.
pub(super) fn config(input: &[u8]) -> bool {
    FILE.with(|file| match loaded(file.path(), input) {
        Ok(first) => {
            let again = loaded(file.path(), as_toml(&first).as_bytes());
            let again = again.unwrap_or_else(|error| panic!("what is shown is refused: {error}"));
            for (one, other) in first.settings.iter().zip(&again.settings) {
                assert_eq!((one.key, &one.value), (other.key, &other.value));
            }
            true
        }
        Err(report) => {
            assert_report(&report, input.len());
            let place = format!("{} {}", report.what, report.location.unwrap_or_default());
            let path = file.path().display().to_string();
            assert!(place.contains(&path), "{place}: where?");
            false
        }
    })
}

fn loaded(path: &Path, text: &[u8]) -> Result<Loaded, Report> {
    fs::write(path, text).expect("the file can be written");
    read(Some(path), std::iter::empty())
}

fn as_toml(loaded: &Loaded) -> String {
    let settings = loaded.settings.iter();
    settings
        .map(|setting| format!("{} = {}\n", setting.key.name, setting.toml()))
        .collect()
}

/// A jobs file.
pub(super) fn jobs_file(input: &[u8]) -> bool {
    match parse("jobs.json", input) {
        Ok(jobs) => {
            let text = as_json(&jobs);
            let again = parse("jobs.json", text.as_bytes());
            let again = again.unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(without_lines(again), without_lines(jobs));
            true
        }
        Err(report) => {
            assert_report(&report, input.len());
            let location = report.location.expect("it says where");
            let line = location.strip_prefix("jobs.json:");
            let line = line.and_then(|line| line.parse::<usize>().ok());
            let lines = 1 + input.iter().filter(|byte| **byte == b'\n').count();
            assert!(
                line.is_some_and(|line| (1..=lines).contains(&line)),
                "{location} in a file of {lines} lines"
            );
            false
        }
    }
}

fn as_json(jobs: &[FileJob]) -> String {
    let word = |text: &str| serde_json::to_string(text).expect("a text is JSON");
    let jobs = jobs.iter().map(|job| {
        let queue = job.queue.as_deref();
        let queue = queue.map_or(String::new(), |name| format!(",\"queue\":{}", word(name)));
        format!(
            "{{\"id\":{},\"payload\":{},\"timeout_ms\":{}{queue}}}",
            word(&job.id),
            job.payload,
            job.timeout_ms
        )
    });
    format!("[{}]", jobs.collect::<Vec<_>>().join(","))
}

fn without_lines(jobs: Vec<FileJob>) -> Vec<FileJob> {
    jobs.into_iter()
        .map(|job| FileJob { line: 0, ..job })
        .collect()
}

/// It has words and a fix, steers no terminal, and is not longer than what is wrong.
fn assert_report(report: &Report, input_bytes: usize) {
    let text = report.to_string();
    assert!(!report.what.is_empty() && report.fix.is_some(), "{text}");
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!text.contains(steers), "{text:?} steers the terminal");
    assert!(
        text.len() < 20_000 + 50 * input_bytes,
        "{} bytes of report for {input_bytes} bytes of text",
        text.len()
    );
}
