//! A live job as people and programs see it.

use crate::cli::terminal::{harmless, moment, span, table};
use crate::client::{FinishedJob, JobState, JobView};
use crate::runtime::json;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A reason or a payload in a table is cut at so many characters.
const CELL_CHARS: usize = 48;

/// The word for a state, for people.
pub(super) fn state_word(state: JobState) -> String {
    json::state(state).replace('_', " ")
}

/// A job, for people.
pub(super) fn as_text(job: &JobView) -> String {
    let mut out = format!("job {}\n", job.id);
    let mut row = |label: &str, text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {label:<9} {}", text.replace('\n', "\n            "));
    };
    let left = job.remaining_ms.map(|ms| span(Duration::from_millis(ms)));
    let detail = match (job.state, left, job.run_at) {
        (JobState::Delayed, _, Some(at)) => format!(", due at {}", moment(at.0)),
        (JobState::Delayed, Some(left), _) => format!(", next attempt in {left}"),
        (JobState::InFlight, Some(left), _) => format!(", lease ends in {left}"),
        _ => String::new(),
    };
    row("state", format!("{}{detail}", state_word(job.state)));
    row(
        "attempts",
        format!("{} of {}", job.attempts, job.max_attempts),
    );
    row("priority", job.priority.to_string());
    row("enqueued", moment(job.enqueued_at.0));
    if let Some(at) = job.expires_at {
        row("expires", moment(at.0));
    }
    if job.body.run_limit_ms > 0 {
        let limit = Duration::from_millis(job.body.run_limit_ms.into());
        row("run limit", span(limit));
    }
    if let Some(key) = &job.body.key {
        row("key", harmless(key));
    }
    for (name, value) in &job.body.headers {
        row(
            "header",
            format!("{}={}", harmless(name.as_bytes()), harmless(value)),
        );
    }
    if !job.last_failure.is_empty() {
        row("failure", harmless(&job.last_failure).trim_end().to_owned());
    }
    row("payload", harmless(&job.body.payload).trim_end().to_owned());
    out
}

/// Jobs in rows, with their payloads.
pub(super) fn as_rows(jobs: &[JobView], heads: bool) -> String {
    rows("payload", jobs, heads, |job| cell(&job.body.payload))
}

/// Dead jobs in rows, with the reasons.
pub(super) fn dead_rows(jobs: &[JobView], heads: bool) -> String {
    rows("reason", jobs, heads, |job| cell(&job.last_failure))
}

fn rows(what: &str, jobs: &[JobView], heads: bool, last: impl Fn(&JobView) -> String) -> String {
    let now = now_ms();
    let mut rows = Vec::new();
    if heads {
        let heads = ["job", "state", "attempts", "priority", "age", what];
        rows.push(heads.map(str::to_owned).to_vec());
    }
    rows.extend(jobs.iter().map(|job| {
        vec![
            job.id.to_string(),
            state_word(job.state).to_owned(),
            format!("{} of {}", job.attempts, job.max_attempts),
            job.priority.to_string(),
            span(Duration::from_millis(now.saturating_sub(job.enqueued_at.0))),
            last(job),
        ]
    }));
    table(&rows)
}

/// Finished jobs in rows.
pub(super) fn finished_rows(jobs: &[FinishedJob], with_head: bool) -> String {
    let heads = ["job", "end", "attempts", "finished", "result"];
    let heads = with_head.then(|| heads.map(str::to_owned).to_vec());
    let mut rows: Vec<Vec<String>> = heads.into_iter().collect();
    rows.extend(jobs.iter().map(|job| {
        vec![
            job.id.to_string(),
            json::end(job.end).to_owned(),
            job.attempts.to_string(),
            moment(job.finished_at.0),
            cell(job.result.as_deref().unwrap_or_default()),
        ]
    }));
    table(&rows)
}

/// The wall clock, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

/// The first line that says something, cut.
pub(super) fn cell(bytes: &[u8]) -> String {
    let text = harmless(bytes);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    let line = line.unwrap_or("-");
    match line.char_indices().nth(CELL_CHARS) {
        Some((cut, _)) => format!("{}...", &line[..cut]),
        None => line.to_owned(),
    }
}
