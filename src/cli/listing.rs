//! Lists of jobs: some from a cursor on, or all, printed as they come.

use crate::base::report::Report;
use crate::cli::Output;
use crate::cli::job_view;
use crate::cli::terminal::{print, warn};
use crate::client::{Error, JobView, Scan, ScanCursor};
use serde_json::{Value, json};

/// Jobs asked for at once.
const PAGE: u32 = 200;

/// Which part of a list.
#[derive(clap::Args, Debug)]
pub(super) struct PartArgs {
    /// At most so many jobs.
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "all")]
    limit: u32,
    /// Go on behind a cursor that an earlier list ended with [default: from the first].
    #[arg(long, value_name = "CURSOR", value_parser = cursor)]
    after: Option<ScanCursor>,
    /// Show all, however many there are.
    #[arg(long)]
    all: bool,
}

fn cursor(text: &str) -> Result<ScanCursor, String> {
    let cursor = text.parse();
    cursor.map_err(|error: Error| error.message().to_owned())
}

impl PartArgs {
    /// Whether it asks for more than the first so many; those.
    pub(super) fn first_only(&self) -> Option<u32> {
        match (self.all, self.after) {
            (true, _) => Some(u32::MAX),
            (false, None) => Some(self.limit),
            (false, Some(_)) => None,
        }
    }
}

/// What can end a list early.
pub(super) enum Broken {
    /// The server.
    Call(Error),
    /// The reader.
    Report(Report),
}

/// How jobs look in rows.
pub(super) type Rows = fn(&[JobView], bool) -> String;

/// Prints the part of a scan that is asked for.
pub(super) async fn list(
    scan: Scan,
    part: &PartArgs,
    rows: Rows,
    output: Output,
) -> Result<(), Broken> {
    let mut scan = match part.after {
        Some(cursor) => scan.from(cursor),
        None => scan,
    };
    let mut left = if part.all {
        u64::MAX
    } else {
        part.limit.into()
    };
    let mut printer = Printer::new(rows, output);
    while left > 0 {
        scan = scan.limit(u32::try_from(left).unwrap_or(PAGE).min(PAGE));
        let Some(page) = scan.next().await.map_err(Broken::Call)? else {
            break;
        };
        left -= page.jobs.len() as u64;
        printer.page(&page.jobs).map_err(Broken::Report)?;
    }
    let next = scan.cursor().map(|cursor| cursor.to_string());
    printer.end(next).map_err(Broken::Report)
}

struct Printer {
    rows: Rows,
    output: Output,
    printed: bool,
}

impl Printer {
    fn new(rows: Rows, output: Output) -> Self {
        Self {
            rows,
            output,
            printed: false,
        }
    }

    fn page(&mut self, jobs: &[JobView]) -> Result<(), Report> {
        if jobs.is_empty() {
            return Ok(());
        }
        match self.output {
            Output::Table => print(&(self.rows)(jobs, !self.printed))?,
            Output::Json => {
                let mut out = String::new();
                for job in jobs {
                    out += if self.printed {
                        ",\n"
                    } else {
                        "{\"jobs\": [\n"
                    };
                    out += &job_view::as_json(job).to_string();
                    self.printed = true;
                }
                print(&out)?;
            }
        }
        self.printed = true;
        Ok(())
    }

    fn end(self, next: Option<String>) -> Result<(), Report> {
        match (self.output, next) {
            (Output::Json, next) => {
                let open = if self.printed { "\n" } else { "{\"jobs\": [" };
                let next = next.map_or(Value::Null, |next| json!(next));
                print(&format!("{open}], \"next\": {next}}}\n"))
            }
            (Output::Table, Some(next)) => {
                warn(&format!("there may be more: --after {next}"));
                Ok(())
            }
            (Output::Table, None) if !self.printed => print("no such jobs\n"),
            (Output::Table, None) => Ok(()),
        }
    }
}
