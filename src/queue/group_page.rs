//! The page of the group itself: time, counters, and as of machine version 2 the changes that other
//! groups have yet to do. The layout is told in `page.rs`.

use crate::base::ids::{GroupId, LogIndex, Partition, QueueUid};
use crate::base::units::GroupTime;
use crate::queue::codec::{Read, Reader, len_u16, len_u32};
use crate::queue::command::{PartitionChange, PartitionConfig};
use crate::queue::job_queue::{MACHINE_VERSION, WALL_OFFSET_MAX_MS};
use crate::queue::outbox::Outbox;
use crate::queue::page::{layout, put_layout, rising};
use crate::queue::settings::{put_settings, read_settings};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What the group page holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupPage {
    /// The group.
    pub(super) group: GroupId,
    /// The version of the machine.
    pub(super) version: u16,
    /// The highest stamp applied.
    pub(super) time: GroupTime,
    /// Wall time = group time + this, in milliseconds.
    pub(super) wall_offset_ms: i64,
    /// The highest counter of a queue uid ever given.
    pub(super) queue_counter: u32,
    /// The highest session id ever given.
    pub(super) session_counter: u32,
    /// The highest home index applied of each home group.
    pub(super) home_applied: BTreeMap<GroupId, LogIndex>,
    /// What other groups have yet to do.
    pub(super) outbox: Outbox,
}

/// The bytes of the group page.
pub(super) fn put_group(page: &GroupPage) -> Bytes {
    let mut out = Vec::with_capacity(40 + 16 * page.home_applied.len() + 128 * page.outbox.len());
    put_layout(&mut out, page.version);
    out.extend_from_slice(&page.version.to_le_bytes());
    out.extend_from_slice(&page.group.0.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&page.time.0.to_le_bytes());
    out.extend_from_slice(&page.wall_offset_ms.to_le_bytes());
    out.extend_from_slice(&page.queue_counter.to_le_bytes());
    out.extend_from_slice(&page.session_counter.to_le_bytes());
    out.extend_from_slice(&len_u32(page.home_applied.len()).to_le_bytes());
    out.extend_from_slice(&len_u32(page.outbox.len()).to_le_bytes());
    for (group, index) in &page.home_applied {
        out.extend_from_slice(&group.0.to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&index.0.to_le_bytes());
    }
    for (group, change) in page.outbox.iter() {
        put_change(&mut out, group, change);
    }
    Bytes::from(out)
}

fn put_change(out: &mut Vec<u8>, group: GroupId, change: &PartitionChange) {
    let config = &change.config;
    let flag = |of: fn(&PartitionConfig) -> bool| u8::from(config.as_ref().is_some_and(of));
    out.extend_from_slice(&group.0.to_le_bytes());
    out.extend_from_slice(&len_u16(change.partitions.len()).to_le_bytes());
    let mode = [
        flag(|_| true),
        flag(|config| config.paused),
        flag(|config| config.draining),
        0,
    ];
    out.extend_from_slice(&mode);
    out.extend_from_slice(&change.home_index.0.to_le_bytes());
    out.extend_from_slice(&change.queue.to_u64().to_le_bytes());
    out.extend(change.partitions.iter().map(|number| number.0));
    if let Some(config) = config {
        out.extend_from_slice(&config.version.to_le_bytes());
        put_settings(out, &config.settings);
    }
}

/// Reads the group page.
pub(super) fn read_group(bytes: &[u8]) -> Read<GroupPage> {
    let mut from = Reader::new(bytes);
    let found = from.u16()?;
    let version = from.u16()?;
    if !(1..=MACHINE_VERSION).contains(&version) {
        return Err("it is of a machine version that this binary does not apply");
    }
    layout(found, version)?;
    let group = GroupId(from.u16()?);
    from.zeros(2)?;
    let time = GroupTime(from.u64()?);
    let wall_offset_ms = from.i64()?;
    let queue_counter = from.u32()?;
    let session_counter = from.u32()?;
    let homes = from.u32()?;
    let changes = from.u32()?;
    if version == 1 && (homes, changes) != (0, 0) {
        return Err("it is of a machine version without changes of partitions");
    }
    let mut home_applied = BTreeMap::new();
    let mut last = None;
    for _ in 0..homes {
        let home = GroupId(from.u16()?);
        from.zeros(6)?;
        rising(&mut last, home)?;
        home_applied.insert(home, LogIndex(from.u64()?));
    }
    let mut outbox = Outbox::default();
    let mut last = None;
    for _ in 0..changes {
        let (asked, change) = read_change(&mut from, group, version)?;
        rising(&mut last, (asked, change.home_index))?;
        if outbox.holds(change.queue, asked) {
            return Err("a group is asked for two changes of a queue");
        }
        outbox.ask(asked, change);
    }
    from.end()?;
    let fits = time <= GroupTime::MAX
        && wall_offset_ms.unsigned_abs() <= WALL_OFFSET_MAX_MS
        && queue_counter <= QueueUid::COUNTER_MAX;
    if !fits {
        return Err("a time or counter is out of range");
    }
    Ok(GroupPage {
        group,
        version,
        time,
        wall_offset_ms,
        queue_counter,
        session_counter,
        home_applied,
        outbox,
    })
}

fn read_change(
    from: &mut Reader<'_>,
    home: GroupId,
    version: u16,
) -> Read<(GroupId, PartitionChange)> {
    let group = GroupId(from.u16()?);
    let count = usize::from(from.u16()?);
    let (some, paused, draining) = (from.flag()?, from.flag()?, from.flag()?);
    from.zeros(1)?;
    let home_index = LogIndex(from.u64()?);
    let queue = QueueUid::from_u64(from.u64()?).ok_or("a change names an impossible queue")?;
    let partitions: Vec<Partition> = from.take(count)?.iter().copied().map(Partition).collect();
    if !partitions.is_sorted_by(|a, b| a < b) || partitions.is_empty() {
        return Err("the partitions of a change are not in rising order");
    }
    let config = match some {
        true => Some(PartitionConfig {
            version: from.u32()?,
            paused,
            draining,
            settings: read_settings(from, version)?,
        }),
        false if paused || draining => {
            return Err("a change that removes partitions has settings");
        }
        false => None,
    };
    let change = PartitionChange {
        home,
        home_index,
        queue,
        partitions,
        config,
    };
    Ok((group, change))
}
