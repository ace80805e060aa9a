//! What a supervisor such as systemd is told: that the node serves, that it stops, that it lives.
//!
//! Nothing is said unless `NOTIFY_SOCKET` asks for it. A watchdog is answered only while the shards
//! run; the poker would end the process before, but a watchdog also sees a process whose poker is
//! stuck.

use crate::runtime::metrics::NodeMetrics;
use sd_notify::NotifyState;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The node serves.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The node stops.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Answers the watchdog, if there is one, from a thread of its own.
///
/// # Errors
/// If there is no thread for it.
pub fn watch(metrics: Arc<NodeMetrics>) -> io::Result<()> {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return Ok(());
    };
    let pause = (interval / 3).max(Duration::from_millis(10));
    let answer = move || {
        let pokes = |metrics: &NodeMetrics| -> Vec<u64> {
            let beats = metrics.shards.iter();
            beats.map(|shard| shard.pulse.beats()).collect()
        };
        let mut before = pokes(&metrics);
        loop {
            std::thread::sleep(pause);
            let now = pokes(&metrics);
            // A beat moves at least every 5 ms while its executor answers; before a shard serves,
            // and while the node stops, it may take its time.
            let moves = before.iter().zip(&now).all(|(before, now)| before != now);
            if moves || metrics.not_ready().is_some() || metrics.stopping.load(Relaxed) {
                tell(&[NotifyState::Watchdog]);
            }
            before = now;
        }
    };
    std::thread::Builder::new()
        .name("rrq-watchdog".to_owned())
        .spawn(answer)
        .map(drop)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the supervisor cannot be told");
    }
}
