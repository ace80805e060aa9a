//! `rrqctl explain`: what an error code stands for.

use crate::base::catalogue::entry;
use crate::base::code::Code;
use crate::base::report::Report;
use crate::cli::Output;
use crate::cli::terminal::{print, say_json};
use serde_json::{Value, json};

pub(super) const EXAMPLES: &str = "\
Examples:
  rrqctl explain RRQ-1001
  rrqctl explain                  all codes, a line each";

#[derive(clap::Args, Debug)]
pub(super) struct ExplainArgs {
    /// The code, as a message shows it; without it, all are listed.
    #[arg(value_name = "RRQ-nnnn")]
    code: Option<String>,
}

pub(super) fn run(args: &ExplainArgs, output: Output) -> Result<(), Report> {
    let Some(text) = &args.code else {
        return all(output);
    };
    let digits = text.trim_start_matches("RRQ-").trim_start_matches("rrq-");
    let code = digits.parse().ok().and_then(Code::from_number);
    let Some(code) = code else {
        return Err(Report::error(
            Code::BadArgument,
            format!("there is no error code `{text}`"),
        )
        .fix("rrqctl explain lists all codes"));
    };
    match output {
        Output::Json => say_json(&as_json(code)),
        Output::Table => print(&wrapped(&entry(code).explain(code))),
    }
}

fn all(output: Output) -> Result<(), Report> {
    match output {
        Output::Json => {
            let codes: Vec<Value> = Code::ALL.iter().map(|code| as_json(*code)).collect();
            say_json(&json!({"codes": codes}))
        }
        Output::Table => {
            let line = |code: &Code| format!("{code}  {}\n", entry(*code).title);
            print(&Code::ALL.iter().map(line).collect::<String>())
        }
    }
}

fn as_json(code: Code) -> Value {
    let entry = entry(code);
    json!({
        "code": code.to_string(),
        "name": code.name(),
        "title": entry.title,
        "cause": entry.cause,
        "fix": entry.fix,
        "more": entry.more,
    })
}

/// Lines of at most 80 characters, broken between words.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut width = 0;
        for word in line.split(' ') {
            let len = word.chars().count();
            if width > 0 && width + 1 + len > 80 {
                out.push('\n');
                width = 0;
            } else if width > 0 {
                out.push(' ');
                width += 1;
            }
            out += word;
            width += len;
        }
        out.push('\n');
    }
    out
}
