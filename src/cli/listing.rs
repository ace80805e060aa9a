//! Lists of jobs: some from a cursor on, or all, printed as they come.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::Output;
use crate::cli::terminal::{print, warn};
use crate::client::{Error, FinishedCursor, FinishedJob, FinishedScan, JobView, Scan, ScanCursor};
use serde_json::{Value, json};
use std::fmt::Display;
use std::str::FromStr;

/// Jobs asked for at once.
const PAGE: u32 = 200;

/// Which part of a list.
#[derive(clap::Args, Debug)]
pub(super) struct PartArgs {
    /// At most so many jobs.
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "all")]
    limit: u32,
    /// Go on behind a cursor that an earlier list ended with [default: from the first].
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Show all, however many there are.
    #[arg(long)]
    all: bool,
}

/// What can end a list early.
pub(super) enum Broken {
    /// The server.
    Call(Error),
    /// The reader.
    Report(Report),
}

/// How jobs are shown.
pub(super) struct Look<J> {
    /// As rows, under a head or not.
    pub(super) rows: fn(&[J], bool) -> String,
    /// For programs.
    pub(super) json: fn(&J) -> Value,
}

/// A scan of the client, page by page.
pub(super) trait Pages: Sized {
    type Job;
    type Cursor: FromStr<Err = Error> + Display;

    fn begun_at(self, cursor: Self::Cursor) -> Self;
    fn limited(self, jobs: u32) -> Self;
    async fn page(&mut self) -> Result<Option<Vec<Self::Job>>, Error>;
    fn goes_on_at(&self) -> Option<Self::Cursor>;
}

impl Pages for Scan {
    type Job = JobView;
    type Cursor = ScanCursor;

    fn begun_at(self, cursor: ScanCursor) -> Self {
        self.from(cursor)
    }

    fn limited(self, jobs: u32) -> Self {
        self.limit(jobs)
    }

    async fn page(&mut self) -> Result<Option<Vec<JobView>>, Error> {
        Ok(self.next().await?.map(|page| page.jobs))
    }

    fn goes_on_at(&self) -> Option<ScanCursor> {
        self.cursor()
    }
}

impl Pages for FinishedScan {
    type Job = FinishedJob;
    type Cursor = FinishedCursor;

    fn begun_at(self, cursor: FinishedCursor) -> Self {
        self.from(cursor)
    }

    fn limited(self, jobs: u32) -> Self {
        self.limit(jobs)
    }

    async fn page(&mut self) -> Result<Option<Vec<FinishedJob>>, Error> {
        self.next().await
    }

    fn goes_on_at(&self) -> Option<FinishedCursor> {
        self.cursor()
    }
}

/// Prints the part of a scan that is asked for.
pub(super) async fn list<P: Pages>(
    mut scan: P,
    part: &PartArgs,
    look: Look<P::Job>,
    output: Output,
) -> Result<(), Broken> {
    if let Some(after) = &part.after {
        let cursor = after.parse().map_err(|error: Error| {
            let report = Report::error(Code::BadArgument, error.message());
            Broken::Report(report.fix("--after with what the list before ended with"))
        })?;
        scan = scan.begun_at(cursor);
    }
    let mut left = if part.all {
        u64::MAX
    } else {
        part.limit.into()
    };
    let mut printer = Printer::new(look, output);
    while left > 0 {
        scan = scan.limited(u32::try_from(left).unwrap_or(PAGE).min(PAGE));
        let Some(jobs) = scan.page().await.map_err(Broken::Call)? else {
            break;
        };
        left -= jobs.len() as u64;
        printer.page(&jobs).map_err(Broken::Report)?;
    }
    let next = scan.goes_on_at().map(|cursor| cursor.to_string());
    printer.end(next).map_err(Broken::Report)
}

struct Printer<J> {
    look: Look<J>,
    output: Output,
    printed: bool,
}

impl<J> Printer<J> {
    fn new(look: Look<J>, output: Output) -> Self {
        Self {
            look,
            output,
            printed: false,
        }
    }

    fn page(&mut self, jobs: &[J]) -> Result<(), Report> {
        if jobs.is_empty() {
            return Ok(());
        }
        match self.output {
            Output::Table => print(&(self.look.rows)(jobs, !self.printed))?,
            Output::Json => {
                let mut out = String::new();
                for job in jobs {
                    out += if self.printed {
                        ",\n"
                    } else {
                        "{\"jobs\": [\n"
                    };
                    out += &(self.look.json)(job).to_string();
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
