//! What of a group's jobs is left: its checkpoint and the entries behind it, applied.

use crate::base::entry::{Entry, EntryKind};
use crate::base::ids::{JobId, Partition, QueueUid};
use crate::cli::terminal::count as counted;
use crate::queue::JobQueue;
use crate::queue::view::{ApplyAt, BodyLocation, PageKey, PageKind};
use crate::snapshot::layout::PageName;
use crate::snapshot::load::LoadedGroup;
use crate::wal::record::BaseRecord;
use crate::wire::command::decode_command;
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
    let mut queue = match state {
        None => JobQueue::new(base.group, base.wall_offset_ms),
        Some(state) => {
            let pages: Option<Vec<_>> = state
                .pages
                .into_iter()
                .map(|(name, bytes)| Some((page_key(&name)?, bytes)))
                .collect();
            let bodies = state.bodies;
            let mut find = |job: JobId| {
                let at = bodies.binary_search_by_key(&job, |body| body.job).ok()?;
                let place = bodies[at].place;
                let (file, offset, len) = (place.file, place.offset, place.len);
                Some((bodies[at].bytes.clone(), BodyLocation { file, offset, len }))
            };
            let mut queue = JobQueue::absent(base.group);
            queue.load(&pages?, &mut find).ok()?;
            queue
        }
    };
    for entry in entries.iter().filter(|entry| entry.index > base.index) {
        let at = ApplyAt {
            index: entry.index,
            time: entry.time,
        };
        match entry.kind {
            EntryKind::Data => {
                let command = decode_command(&entry.payload, entry.machine_version).ok()?;
                queue.apply(at, &command);
            }
            _ => queue.observe_time(entry.time),
        }
    }
    let queues = queue.queues();
    Some(Survivors { queues })
}

fn page_key(name: &PageName) -> Option<PageKey> {
    Some(PageKey {
        kind: PageKind::from_u8(name.kind)?,
        queue: QueueUid::from_u64(name.queue)?,
        partition: Partition(u8::try_from(name.partition).ok()?),
        number: name.number,
    })
}

impl Survivors {
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
