//! What of a group's jobs is left: its checkpoint and the entries behind it, applied.

use crate::base::entry::Entry;
use crate::cli::offline;
use crate::cli::terminal::count as counted;
use crate::queue::JobQueue;
use crate::snapshot::load::LoadedGroup;
use crate::wal::record::BaseRecord;
use crate::wire::{QueueInfo, QueueStats};
use serde_json::{Value, json};

/// The queues of a group with their counters.
pub(super) struct Survivors {
    queues: Vec<(QueueInfo, QueueStats)>,
}

/// Applies what is left; `None` if it cannot be applied, which a start would say.
pub(super) fn count(
    base: &BaseRecord,
    state: Option<LoadedGroup>,
    entries: &[Entry],
) -> Option<Survivors> {
    let mut machine = offline::machine(base, state).ok()?;
    offline::apply(&mut machine, base, entries).ok()?;
    Some(Survivors::of(&machine))
}

impl Survivors {
    /// The queues of a machine.
    pub(super) fn of(machine: &JobQueue) -> Self {
        Self {
            queues: machine.queues(),
        }
    }

    pub(super) fn as_text(&self) -> String {
        let line = |(info, stats): &(QueueInfo, QueueStats)| {
            let live = stats.pending + stats.delayed + stats.in_flight + stats.dead;
            format!(
                "  queue {}: {} left, {} done; jobs after its first {} are lost, \
                 if there were any\n",
                info.name,
                counted(live, "job"),
                stats.completed_total,
                stats.enqueued_total,
            )
        };
        self.queues.iter().map(line).collect()
    }

    pub(super) fn as_json(&self) -> Value {
        let queue = |(info, stats): &(QueueInfo, QueueStats)| {
            json!({
                "name": info.name,
                "pending": stats.pending,
                "delayed": stats.delayed,
                "in_flight": stats.in_flight,
                "dead": stats.dead,
                "completed_total": stats.completed_total,
                "enqueued_total": stats.enqueued_total,
            })
        };
        self.queues.iter().map(queue).collect()
    }
}
