//! A live job as people and programs see it.

use crate::cli::terminal::{harmless, moment, span, table};
use crate::client::{FinishedJob, JobEnd, JobState, JobView};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A reason or a payload in a table is cut at so many characters.
const CELL_CHARS: usize = 48;

/// The word for a state.
pub(super) fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Pending => "pending",
        JobState::Delayed => "delayed",
        JobState::InFlight => "in flight",
        JobState::Dead => "dead",
    }
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

/// Adds a field.
pub(super) fn insert(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

/// Adds a field with bytes: as text, or under `<name>_hex`.
pub(super) fn insert_bytes(object: &mut Value, name: &str, bytes: &[u8]) {
    if let Some(object) = object.as_object_mut() {
        object.extend([text_or_hex(name, bytes)]);
    }
}

/// Bytes as text if they are, else as hexadecimal digits under another name.
fn text_or_hex(name: &str, bytes: &[u8]) -> (String, Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), json!(text)),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (format!("{name}_hex"), json!(hex))
        }
    }
}

/// A job, for programs.
pub(super) fn as_json(job: &JobView) -> Value {
    let mut value = json!({
        "id": job.id.to_string(),
        "state": state_word(job.state).replace(' ', "_"),
        "priority": job.priority,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "enqueued_at_ms": job.enqueued_at.0,
        "run_at_ms": job.run_at.map(|at| at.0),
        "expires_at_ms": job.expires_at.map(|at| at.0),
        "remaining_ms": job.remaining_ms,
        "run_limit_ms": job.body.run_limit_ms,
    });
    let headers = job.body.headers.iter();
    let headers = headers.map(|(name, bytes)| text_or_hex(name, bytes));
    if let Some(object) = value.as_object_mut() {
        object.insert("headers".to_owned(), Value::Object(headers.collect()));
        object.extend([text_or_hex("payload", &job.body.payload)]);
        object.extend([text_or_hex("last_failure", &job.last_failure)]);
        object.extend(job.body.key.iter().map(|key| text_or_hex("key", key)));
    }
    value
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
            end_word(job.end).to_owned(),
            job.attempts.to_string(),
            moment(job.finished_at.0),
            cell(job.result.as_deref().unwrap_or_default()),
        ]
    }));
    table(&rows)
}

/// A finished job, for programs.
pub(super) fn finished_json(job: &FinishedJob) -> Value {
    let mut value = json!({
        "id": job.id.to_string(),
        "state": "finished",
        "end": end_word(job.end),
        "attempts": job.attempts,
        "enqueued_at_ms": job.enqueued_at.0,
        "finished_at_ms": job.finished_at.0,
    });
    match &job.result {
        Some(result) => insert_bytes(&mut value, "result", result),
        None => insert(&mut value, "result", Value::Null),
    }
    value
}

/// The word for an end.
pub(super) fn end_word(end: JobEnd) -> &'static str {
    match end {
        JobEnd::Completed => "completed",
        JobEnd::Cancelled => "cancelled",
        JobEnd::Dropped => "dropped",
    }
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
