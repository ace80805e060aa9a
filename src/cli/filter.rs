//! Which jobs are meant, by what they are like.

use crate::cli::arguments;
use crate::cli::job_view::now_ms;
use crate::client::JobFilter;
use std::time::Duration;

/// All that are given hold together.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub(super) struct FilterArgs {
    /// Only jobs whose last failure contains this text [default: any].
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    /// Only jobs of this priority, 0 to 7 [default: any].
    #[arg(long, value_name = "0-7", value_parser = clap::value_parser!(u8).range(0..=7))]
    priority: Option<u8>,
    /// Only jobs that were enqueued longer ago, as 1h [default: any].
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    older_than: Option<Duration>,
    /// Only jobs that were enqueued since, as 1h [default: any].
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    newer_than: Option<Duration>,
    /// Only jobs that were tried at least so often [default: 0].
    #[arg(long, value_name = "N")]
    attempts_min: Option<u32>,
}

fn reason(text: &str) -> Result<String, String> {
    match text.len() {
        1..=256 => Ok(text.to_owned()),
        _ => Err("1 to 256 bytes".to_owned()),
    }
}

impl FilterArgs {
    /// Whether it lets every job through.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As the protocol has it; ages count from now, by this machine's clock.
    pub(super) fn filter(&self) -> JobFilter {
        let now = now_ms();
        let ago = |age: Option<Duration>| {
            age.map_or(0, |age| now.saturating_sub(arguments::millis(age)).max(1))
        };
        JobFilter {
            reason_contains: self.reason.clone().unwrap_or_default().into(),
            priority: self.priority,
            enqueued_from_ms: ago(self.newer_than),
            enqueued_before_ms: ago(self.older_than),
            attempts_min: self.attempts_min.unwrap_or(0),
        }
    }
}
