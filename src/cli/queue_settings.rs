//! The settings of a queue: as flags, as text, as JSON.

use crate::cli::arguments;
use crate::cli::terminal::{bytes, span};
use crate::client::{BackoffKind, DeadPolicy, QueueSettings};
use crate::runtime::json;
use clap::ValueEnum;
use std::time::Duration;

/// Flags for settings; those that are not given stay as they are.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub(super) struct SettingsArgs {
    /// How long a worker may hold a job without a word [default: 30s].
    #[arg(long, value_name = "TIME", value_parser = arguments::short_duration)]
    lease: Option<Duration>,
    /// How often a job is tried before it is dead [default: 20].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_attempts: Option<u16>,
    /// How the wait between attempts grows [default: exponential].
    #[arg(long, value_name = "CURVE")]
    backoff: Option<Curve>,
    /// The first wait between attempts [default: 1s].
    #[arg(long, value_name = "TIME", value_parser = arguments::short_duration)]
    backoff_base: Option<Duration>,
    /// By how much each wait is longer than the one before, if exponential [default: 2].
    #[arg(long, value_name = "FACTOR", value_parser = arguments::factor)]
    backoff_factor: Option<u32>,
    /// No wait between attempts is longer [default: 10min].
    #[arg(long, value_name = "TIME", value_parser = arguments::short_duration)]
    backoff_cap: Option<Duration>,
    /// By how many percent a wait may be shortened at random [default: 20].
    #[arg(long, value_name = "0-100", value_parser = clap::value_parser!(u8).range(0..=100))]
    backoff_jitter: Option<u8>,
    /// How long an idempotency key is remembered [default: 1d].
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    idempotency_window: Option<Duration>,
    /// Keys remembered; at the bound a job with a key is refused [default: 1000000].
    #[arg(long, value_name = "N")]
    idempotency_keys_max: Option<u32>,
    /// Jobs in the queue at most, over all states; 0 = no bound [default: 0].
    #[arg(long, value_name = "N")]
    jobs_max: Option<u64>,
    /// Bytes of payload in the queue at most, as 64MiB; 0 = no bound [default: 0].
    #[arg(long, value_name = "BYTES", value_parser = arguments::size)]
    bytes_max: Option<u64>,
    /// Finished jobs kept with their results [default: 0].
    #[arg(long, value_name = "N")]
    retain: Option<u32>,
    /// What becomes of a job that is out of attempts or time [default: keep].
    #[arg(long, value_name = "POLICY")]
    dead: Option<Dead>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Curve {
    /// Always the first wait.
    Fixed,
    /// The first wait times the attempts made.
    Linear,
    /// Each wait is a factor longer than the one before.
    Exponential,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Dead {
    /// It is kept, to be looked at.
    Keep,
    /// It is removed.
    Drop,
}

impl SettingsArgs {
    /// Whether none is given.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `settings`, with what is given in its place.
    pub(super) fn over(&self, mut settings: QueueSettings) -> QueueSettings {
        fn put<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        let ms = |span: Option<Duration>| span.map(|span| arguments::millis_u32(Some(span)));
        put(&mut settings.lease_ms, ms(self.lease));
        put(&mut settings.max_attempts, self.max_attempts);
        let kind = self.backoff.map(|curve| match curve {
            Curve::Fixed => BackoffKind::Fixed,
            Curve::Linear => BackoffKind::Linear,
            Curve::Exponential => BackoffKind::Exponential,
        });
        put(&mut settings.backoff.kind, kind);
        put(&mut settings.backoff.base_ms, ms(self.backoff_base));
        put(&mut settings.backoff.factor_milli, self.backoff_factor);
        put(&mut settings.backoff.cap_ms, ms(self.backoff_cap));
        put(&mut settings.backoff.jitter_percent, self.backoff_jitter);
        let window = self.idempotency_window.map(arguments::millis);
        put(&mut settings.idempotency_window_ms, window);
        put(
            &mut settings.idempotency_keys_max,
            self.idempotency_keys_max,
        );
        put(&mut settings.jobs_max, self.jobs_max);
        put(&mut settings.bytes_max, self.bytes_max);
        put(&mut settings.retain, self.retain);
        let dead = self.dead.map(|dead| match dead {
            Dead::Keep => DeadPolicy::Keep,
            Dead::Drop => DeadPolicy::Drop,
        });
        put(&mut settings.dead, dead);
        settings
    }
}

/// Names and values, for people.
pub(super) fn settings_rows(settings: &QueueSettings) -> Vec<(&'static str, String)> {
    let ms = |ms: u64| span(Duration::from_millis(ms));
    let bound = |number: u64, text: String| match number {
        0 => "no bound".to_owned(),
        _ => text,
    };
    let backoff = &settings.backoff;
    let base = ms(backoff.base_ms.into());
    let growth = match backoff.kind {
        BackoffKind::Fixed => base,
        BackoffKind::Linear => {
            format!("{base} more each time, up to {}", ms(backoff.cap_ms.into()))
        }
        BackoffKind::Exponential => {
            let (whole, places) = (backoff.factor_milli / 1000, backoff.factor_milli % 1000);
            let cap = ms(backoff.cap_ms.into());
            format!("{base}, {whole}.{places:03} times as long each time, up to {cap}")
        }
    };
    vec![
        ("lease", ms(settings.lease_ms.into())),
        ("max attempts", settings.max_attempts.to_string()),
        (
            "backoff",
            format!(
                "{}: {growth}, less up to {} %",
                json::curve(backoff.kind),
                backoff.jitter_percent,
            ),
        ),
        ("key window", ms(settings.idempotency_window_ms)),
        ("keys at most", settings.idempotency_keys_max.to_string()),
        (
            "jobs at most",
            bound(settings.jobs_max, settings.jobs_max.to_string()),
        ),
        (
            "bytes at most",
            bound(settings.bytes_max, bytes(settings.bytes_max)),
        ),
        ("finished kept", settings.retain.to_string()),
        ("dead jobs", json::policy(settings.dead).to_owned()),
        ("partitions", settings.partitions.to_string()),
    ]
}
