//! Jobs files: `[{"id":"job-001","payload":{…},"timeout_ms":5000,"queue":"emails"}, …]`.
//!
//! `id` is the idempotency key, `timeout_ms` the run limit (may be left out), `queue` may be left
//! out. The payload is the compact text of whatever JSON stands there: blanks between tokens go,
//! nothing else changes, neither the order of fields nor the digits of a number. An unknown field
//! is an error, since a misspelt one would be a job that does something else.

use crate::base::code::Code;
use crate::base::limits::KEY_BYTES_MAX;
use crate::base::report::Report;
use crate::wire::bounds::is_queue_name;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Deserializer;

/// A job as the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileJob {
    /// The line in which it begins, from 1.
    pub line: usize,
    /// The idempotency key, 1 to 256 bytes.
    pub id: String,
    /// The compact JSON.
    pub payload: String,
    /// The run limit in milliseconds; 0 = none.
    pub timeout_ms: u32,
    /// Its queue, if it names one.
    pub queue: Option<String>,
}

/// Reads the text of a jobs file called `name`.
///
/// # Errors
/// The first thing that is wrong, with its line.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Vec<FileJob>, Report> {
    let line_of = |at: usize| 1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count();
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let what = format!("{name} is not UTF-8 text");
        Report::error(Code::BadJobsFile, what)
            .location(format!("{name}:{}", line_of(error.valid_up_to())))
            .fix("save it as UTF-8")
    })?;
    let mut reader = Reader {
        text,
        at: 0,
        line: 1,
        counted: 0,
    };
    reader.jobs().map_err(|fault| {
        let line = line_of(fault.at.min(text.len())) + fault.lines_on;
        Report::error(Code::BadJobsFile, fault.what)
            .location(format!("{name}:{line}"))
            .why("a jobs file is a JSON array of objects; no job of it was enqueued")
            .fix(r#"[{"id":"job-001","payload":{"to":"a@b.c"},"timeout_ms":5000}]"#)
    })
}

/// What is wrong, and where.
struct Fault {
    what: String,
    at: usize,
    lines_on: usize,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Lines are counted as they are passed.
    line: usize,
    counted: usize,
}

impl<'a> Reader<'a> {
    fn fault<T>(&self, what: impl Into<String>) -> Result<T, Fault> {
        Err(Fault {
            what: what.into(),
            at: self.at,
            lines_on: 0,
        })
    }

    /// The next byte behind blanks, not taken.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let blanks = rest.iter().take_while(|byte| is_blank(**byte)).count();
        self.at += blanks;
        rest.get(blanks).copied()
    }

    fn take(&mut self, wanted: u8, what: &str) -> Result<(), Fault> {
        if self.peek() != Some(wanted) {
            return match self.text[self.at..].chars().next() {
                Some(found) => self.fault(format!("{what} was expected, not `{found}`")),
                None => self.fault(format!("the file ends where {what} was expected")),
            };
        }
        self.at += 1;
        Ok(())
    }

    /// One JSON value, and the text that it was read from.
    fn value<T: Deserialize<'a>>(&mut self) -> Result<(T, &'a str), Fault> {
        self.peek();
        let rest = &self.text[self.at..];
        let mut values = Deserializer::from_str(rest).into_iter::<T>();
        match values.next() {
            Some(Ok(value)) => {
                let end = values.byte_offset();
                self.at += end;
                Ok((value, &rest[..end]))
            }
            Some(Err(error)) => {
                let text = error.to_string();
                // Its line counts from where this value begins.
                let what = text
                    .rsplit_once(" at line")
                    .map_or(&*text, |(what, _)| what);
                Err(Fault {
                    what: what.to_owned(),
                    at: self.at,
                    lines_on: error.line().saturating_sub(1),
                })
            }
            None => self.fault("the file ends where a value was expected"),
        }
    }

    fn line(&mut self) -> usize {
        let passed = &self.text.as_bytes()[self.counted..self.at];
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.counted = self.at;
        self.line
    }

    fn jobs(&mut self) -> Result<Vec<FileJob>, Fault> {
        let mut jobs = Vec::new();
        self.take(b'[', "the `[` of an array of jobs")?;
        if self.peek() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                jobs.push(self.job()?);
                if self.peek() == Some(b',') {
                    self.at += 1;
                    continue;
                }
                self.take(b']', "`,` or `]`")?;
                break;
            }
        }
        match self.peek() {
            None => Ok(jobs),
            Some(_) => self.fault("something stands behind the array of jobs"),
        }
    }

    fn job(&mut self) -> Result<FileJob, Fault> {
        self.peek();
        let begin = self.at;
        let line = self.line();
        self.take(b'{', "the `{` of a job")?;
        let (mut id, mut payload, mut timeout_ms, mut queue) = (None, None, None, None);
        let mut more = self.peek() != Some(b'}');
        while more {
            self.peek();
            let place = self.at;
            let (field, _) = self.value::<String>()?;
            let known = match field.as_str() {
                "id" => id.is_some(),
                "payload" => payload.is_some(),
                "timeout_ms" => timeout_ms.is_some(),
                "queue" => queue.is_some(),
                _ => {
                    self.at = place;
                    let known = "id, payload, timeout_ms, queue";
                    return self.fault(format!("unknown field `{field}`; a job has {known}"));
                }
            };
            if known {
                self.at = place;
                return self.fault(format!("`{field}` stands twice in one job"));
            }
            self.take(b':', "`:`")?;
            self.peek();
            let place = self.at;
            match field.as_str() {
                "id" => id = Some((self.value::<String>()?.0, place)),
                "payload" => payload = Some(compact(self.value::<IgnoredAny>()?.1)),
                "timeout_ms" => timeout_ms = Some(self.value::<u32>()?.0),
                _ => queue = Some((self.value::<String>()?.0, place)),
            }
            more = self.peek() == Some(b',');
            self.at += usize::from(more);
        }
        self.take(b'}', "`,` or `}`")?;
        let missing = |name: &str| Fault {
            what: format!("a job without `{name}`"),
            at: begin,
            lines_on: 0,
        };
        let (id, id_at) = id.ok_or_else(|| missing("id"))?;
        let payload = payload.ok_or_else(|| missing("payload"))?;
        if id.is_empty() || id.len() > KEY_BYTES_MAX {
            self.at = id_at;
            return self.fault(format!("an id has 1 to {KEY_BYTES_MAX} bytes"));
        }
        if let Some((_, at)) = queue.as_ref().filter(|(name, _)| !is_queue_name(name)) {
            self.at = *at;
            return self.fault("a queue's name is 1 to 128 of A-Z a-z 0-9 . _ : -");
        }
        Ok(FileJob {
            line,
            id,
            payload,
            timeout_ms: timeout_ms.unwrap_or(0),
            queue: queue.map(|(name, _)| name),
        })
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Valid JSON without the blanks between its tokens.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|c| {
            match c {
                _ if escaped => escaped = false,
                '\\' if in_string => escaped = true,
                '"' => in_string = !in_string,
                _ => {}
            }
            in_string || !c.is_ascii_whitespace()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        let report = parse("jobs.json", text.as_bytes()).expect_err("it is wrong");
        assert_eq!(report.code, Code::BadJobsFile);
        format!("{}: {}", report.location.unwrap_or_default(), report.what)
    }

    #[test]
    fn a_job_is_read_as_it_stands() {
        let text = r#"
        [
          {"id": "job-001", "payload": {"z": 1.10, "a": "x \" [ y", "n": [1 , 2]}, "timeout_ms": 5}
          ,
          { "payload" : null , "queue":"other", "id":"job-002" }
        ]"#;
        let jobs = parse("jobs.json", text.as_bytes()).expect("it is right");
        assert_eq!(jobs[0].payload, r#"{"z":1.10,"a":"x \" [ y","n":[1,2]}"#);
        assert_eq!((jobs[0].line, jobs[1].line), (3, 5));
        assert_eq!((jobs[0].timeout_ms, jobs[1].timeout_ms), (5, 0));
        assert_eq!(jobs[1].payload, "null");
        assert_eq!(jobs[1].queue.as_deref(), Some("other"));
        assert_eq!(parse("jobs.json", b" [ ] ").expect("it is right"), []);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let cases = [
            (
                "",
                "jobs.json:1: the file ends where the `[` of an array of jobs was expected",
            ),
            (
                "\n{}",
                "jobs.json:2: the `[` of an array of jobs was expected, not `{`",
            ),
            ("[1]", "jobs.json:1: the `{` of a job was expected, not `1`"),
            ("[\n{\"id\":\"a\"}]", "jobs.json:2: a job without `payload`"),
            ("[{\"payload\":1}]", "jobs.json:1: a job without `id`"),
            (
                "[{\"id\":\"\",\"payload\":1}]",
                "jobs.json:1: an id has 1 to 256 bytes",
            ),
            (
                "[{\"id\":\"a\",\n\"paylod\":1}]",
                "jobs.json:2: unknown field `paylod`; a job has id, payload, timeout_ms, queue",
            ),
            (
                "[{\"id\":\"a\",\"id\":1}]",
                "jobs.json:1: `id` stands twice in one job",
            ),
            (
                "[{\"id\":\"a\",\"payload\":1,\n\"queue\":\"a b\"}]",
                "jobs.json:2: a queue's name is 1 to 128 of A-Z a-z 0-9 . _ : -",
            ),
            (
                "[{\"id\":\"a\",\"payload\":{\n\n\"x\":}}]",
                "jobs.json:3: expected value",
            ),
            (
                "[{\"id\":\"a\",\"payload\":1,\n\"timeout_ms\":-1}]",
                "jobs.json:2: invalid value: integer `-1`, expected u32",
            ),
            (
                "[{\"id\":\"a\",\"payload\":1}",
                "jobs.json:1: the file ends where `,` or `]` was expected",
            ),
            (
                "[] []",
                "jobs.json:1: something stands behind the array of jobs",
            ),
        ];
        for (text, wanted) in cases {
            assert_eq!(fault(text), wanted, "{text:?}");
        }
        let report = parse("jobs.json", b"[\n\xff]").expect_err("it is wrong");
        assert_eq!(report.location.as_deref(), Some("jobs.json:2"));
    }

    #[test]
    fn no_prefix_of_a_file_panics() {
        let text =
            r#"[{"id":"jöb","payload":{"a":[1.5e3,"\u00fc\\"]},"timeout_ms":1,"queue":"q"}]"#;
        for end in 0..text.len() {
            assert!(
                parse("jobs.json", &text.as_bytes()[..end]).is_err(),
                "{end}"
            );
        }
        assert!(parse("jobs.json", text.as_bytes()).is_ok());
    }
}
