//! Puts a rival of rrq under the load that `rrq-bench load` puts on rrq, through its public client.
//!
//! ```text
//! rrq-compare load RIVAL [OPTIONS]     one measurement, as JSON on standard output
//! rrq-compare table DIR                what all measurements of a folder say, as a table
//! ```
//!
//! `tools/compare/run.sh` starts the servers and calls both. The loop is closed: each connection
//! keeps so many requests under way, and only what the server confirmed is counted. Read
//! `books.rs` for what is counted, `run.rs` for the course of a run, then a rival.

mod beanstalkd;
mod books;
mod keep;
mod nats;
mod options;
mod process;
mod rabbitmq;
mod redis_streams;
mod run;
mod table;

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match carry_out() {
        Ok(is_sound) => ExitCode::from(u8::from(!is_sound)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether every job is accounted for.
fn carry_out() -> Result<bool> {
    use lexopt::Arg::{Long, Short, Value};
    let mut parser = lexopt::Parser::from_env();
    match parser.next()? {
        Some(Value(word)) if word == "load" => {
            let options = options::Options::parse(&mut parser)?;
            let outcome = run::run(&options)?;
            println!("{}", serde_json::to_string_pretty(&outcome)?);
            Ok(outcome.is_sound())
        }
        Some(Value(word)) if word == "table" => {
            let folder = parser.value().context("table needs a folder")?;
            table::show(Path::new(&folder))?;
            Ok(true)
        }
        Some(Long("help") | Short('h')) => {
            print!("{}", options::HELP);
            Ok(true)
        }
        _ => bail!("say load or table; --help says more"),
    }
}
