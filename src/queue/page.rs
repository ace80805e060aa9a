//! Pages: the hot state of a group in bytes, and what can be wrong with them.
//!
//! A page's bytes are a function of the state alone: canonical order, zeroed free slots, no
//! history, no location. Little-endian; every page but a leaf begins with the version of its
//! layout, u16. Pages of group, queue and partition have that of the group's machine version, 1 or
//! 2; those of finished jobs have 2, all others 1.
//!
//! ```text
//! group       number 0
//!   0 version u16    2 machine version u16   4 group u16         6 zeros (2)
//!   8 time u64      16 wall offset i64      24 queue counter u32
//!  28 session counter u32                   32 home groups u32, 0 in layout 1
//!  36 changes u32, 0 in layout 1
//!  40 for each home group, rising: group u16, zeros (6), highest applied home index u64
//!     then for each outstanding change, by group and index: group asked u16, partitions u16,
//!     1 sets or 0 removes u8, paused u8, draining u8, zero, home index u64, queue uid u64,
//!     each partition u8; and if it sets: queue version u32, settings (64)
//! queue       number 0
//!   0 version u16    2 paused u8   3 draining u8, 0 in layout 1   4 queue version u32
//!   8 settings (64, `settings.rs`)          72 groups u16       74 name length u16
//!  76 each group u16, then the name
//! partition   number 0
//!   0 version u16    2 paused u8   3 draining u8, 0 in layout 1   4 queue version u32
//!   8 next sequence u64            16 settings (64) of the whole queue
//!  80 thirteen counters u64, in the order of `QueueStats`
//! 184 in layout 2: retained u64, last place u64
//! leaf        number = sequence / 64
//!   0 64 records (64, `record.rs`): 4096 bytes, no version of its own
//! reasons     number of its leaf
//!   0 version u16    2 count u16
//!   4 for each slot, rising: slot u8, zero, length u16, text
//! keys        number = top 12 bits of the hash
//!   0 version u16    2 zeros (2)    4 count u32
//!   8 for each key, rising: hash (16), sequence u64, fingerprint u64, expires u48, zeros (2)
//! session     number = its id
//!   0 version u16    2 ended u8    3 zero    4 epoch u32
//!   8 worker timeout u32           12 zeros (4)
//!  16 for commands, then for polls: lowest u64, last u64, count u32, zeros (4),
//!     and for each outcome, rising: number u64, length u32, outcome (`outcome.rs`)
//! finished    number = place / 64
//!   0 version u16    2 place of the first % 64 u8   3 count u8   4 zeros (4)
//!   8 for each, by place: sequence u64, end u8, has a result u8, attempts u16, enqueued u48,
//!     finished u48, result length u32, result
//! ```
//!
//! To change a layout: raise its version with a machine version, keep reading the old one. Decoders
//! trust nothing: they are bounded, check order and ranges, and name what is wrong.

use crate::base::checksum::Hash128;
use crate::base::ids::{GroupId, JobId};
use crate::base::limits::{FINISHED_PAGE_JOBS, LEAF_JOBS, REASON_BYTES_MAX, RESULT_BYTES_MAX};
use crate::queue::codec::{Read, Reader, len_u16, len_u32, put_u48};
use crate::queue::command::{PartitionConfig, QueueSettings};
use crate::queue::history::{Finished, FinishedPage};
use crate::queue::job_queue::MACHINE_VERSION;
use crate::queue::keys::{KeyRecord, bucket_of};
use crate::queue::leaf::Leaf;
use crate::queue::outcome::read_outcome;
use crate::queue::outcomes::Outcomes;
use crate::queue::partition::Head;
use crate::queue::queues::QueueRecord;
use crate::queue::record::{RECORD_BYTES, Record};
use crate::queue::sessions::{Session, WINDOWS, WindowState, window_len};
use crate::queue::settings::{name_is_valid, put_settings, read_settings};
use crate::queue::view::{JobEnd, PageKey, PageKind, QueueStats};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;

/// The layout of all pages but those that follow the machine version and those that it brought.
const LAYOUT: u16 = 1;
/// Pages of finished jobs are as old as machine version 2.
const LAYOUT_FINISHED: u16 = 2;

/// Bytes of a leaf page.
pub(super) const LEAF_BYTES: usize = RECORD_BYTES * LEAF_JOBS as usize;

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagePlace {
    /// A page.
    Page(PageKey),
    /// A node of this level, 1 or more, with all pages below it; the key has its own number.
    Node(PageKey, u8),
    /// The body of a job.
    Body(Option<JobId>),
    /// The set of pages as a whole.
    Set,
}

impl fmt::Display for PagePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match self {
            Self::Page(key) => key,
            Self::Node(key, level) => {
                let PageKey {
                    kind,
                    queue,
                    partition,
                    number,
                } = key;
                let of = match kind {
                    PageKind::Keys => "keys",
                    PageKind::Finished => "finished jobs",
                    _ => "leaves",
                };
                return write!(
                    f,
                    "node {number} of level {level} above {of} of queue {queue} partition {partition}"
                );
            }
            Self::Body(Some(job)) => return write!(f, "the body of job {job}"),
            Self::Body(None) => return write!(f, "a body"),
            Self::Set => return write!(f, "the pages of the group"),
        };
        let (queue, partition, number) = (key.queue, key.partition, key.number);
        match key.kind {
            PageKind::Group => write!(f, "the group page"),
            PageKind::Queue => write!(f, "the page of queue {queue}"),
            PageKind::Partition => write!(f, "the page of queue {queue} partition {partition}"),
            PageKind::Leaf => write!(f, "leaf {number} of queue {queue} partition {partition}"),
            PageKind::Reasons => {
                write!(f, "reasons {number} of queue {queue} partition {partition}")
            }
            PageKind::Keys => write!(f, "keys {number} of queue {queue} partition {partition}"),
            PageKind::Session => write!(f, "the page of session {number}"),
            PageKind::Finished => {
                write!(
                    f,
                    "finished {number} of queue {queue} partition {partition}"
                )
            }
        }
    }
}

/// A page or body that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct PageError {
    /// What is damaged.
    pub place: PagePlace,
    /// What is wrong with it.
    pub what: String,
}

impl PageError {
    /// Something is wrong with a page.
    pub(super) fn of_page(key: PageKey, what: impl Into<String>) -> Self {
        Self {
            place: PagePlace::Page(key),
            what: what.into(),
        }
    }

    /// Something is wrong with the bytes of a body.
    pub(super) fn of_body(job: Option<JobId>, what: impl Into<String>) -> Self {
        Self {
            place: PagePlace::Body(job),
            what: what.into(),
        }
    }
}

/// Appends the version of a layout that follows the machine version.
pub(super) fn put_layout(out: &mut Vec<u8>, version: u16) {
    out.extend_from_slice(&version.to_le_bytes());
}

/// The version of a layout must be `wanted`.
pub(super) fn layout(found: u16, wanted: u16) -> Read<()> {
    match found {
        found if found == wanted => Ok(()),
        1..=MACHINE_VERSION => Err("its layout is that of another machine version"),
        _ => Err("its layout has an unknown version"),
    }
}

/// Each value must be above the one before.
pub(super) fn rising<T: PartialOrd + Copy>(last: &mut Option<T>, next: T) -> Read<()> {
    if last.is_some_and(|last| last >= next) {
        return Err("its parts are not in rising order");
    }
    *last = Some(next);
    Ok(())
}

/// The bytes of a queue's page.
pub(super) fn put_queue(record: &QueueRecord, version: u16) -> Bytes {
    let mut out = Vec::with_capacity(76 + 2 * record.groups.len() + record.name.len());
    put_layout(&mut out, version);
    put_mode(&mut out, &record.config);
    put_settings(&mut out, &record.config.settings);
    out.extend_from_slice(&len_u16(record.groups.len()).to_le_bytes());
    out.extend_from_slice(&len_u16(record.name.len()).to_le_bytes());
    for group in &record.groups {
        out.extend_from_slice(&group.0.to_le_bytes());
    }
    out.extend_from_slice(record.name.as_bytes());
    Bytes::from(out)
}

/// Reads a queue's page.
pub(super) fn read_queue(bytes: &[u8], version: u16) -> Read<QueueRecord> {
    let mut from = Reader::new(bytes);
    layout(from.u16()?, version)?;
    let config = read_mode(&mut from, version)?;
    let settings = read_settings(&mut from, version)?;
    let config = PartitionConfig { settings, ..config };
    let groups_len = from.u16()?;
    let name_len = usize::from(from.u16()?);
    let mut groups = Vec::new();
    for _ in 0..groups_len {
        groups.push(GroupId(from.u16()?));
    }
    let name = std::str::from_utf8(from.take(name_len)?).unwrap_or_default();
    from.end()?;
    if !name_is_valid(name) {
        return Err("its name is none that a queue can have");
    }
    if config.version == 0 || groups.len() != usize::from(settings.partitions) {
        return Err("its version or its partitions are out of range");
    }
    Ok(QueueRecord {
        name: name.to_owned(),
        config,
        groups,
    })
}

/// Appends the first fields of a configuration; its settings follow in a place of their own.
fn put_mode(out: &mut Vec<u8>, config: &PartitionConfig) {
    out.extend_from_slice(&[u8::from(config.paused), u8::from(config.draining)]);
    out.extend_from_slice(&config.version.to_le_bytes());
}

/// Reads the first fields of a configuration, with default settings.
fn read_mode(from: &mut Reader<'_>, version: u16) -> Read<PartitionConfig> {
    let (paused, draining) = (from.flag()?, from.flag()?);
    if draining && version == 1 {
        return Err("a reserved byte is not zero");
    }
    Ok(PartitionConfig {
        version: from.u32()?,
        paused,
        draining,
        settings: QueueSettings::default(),
    })
}

fn counters(stats: &mut QueueStats) -> [&mut u64; 13] {
    [
        &mut stats.pending,
        &mut stats.delayed,
        &mut stats.in_flight,
        &mut stats.dead,
        &mut stats.bytes,
        &mut stats.keys,
        &mut stats.enqueued_total,
        &mut stats.leased_total,
        &mut stats.completed_total,
        &mut stats.nacked_total,
        &mut stats.expired_total,
        &mut stats.dead_total,
        &mut stats.cancelled_total,
    ]
}

/// The bytes of a partition's page.
pub(super) fn put_partition(head: &Head, version: u16) -> Bytes {
    let mut out = Vec::with_capacity(200);
    put_layout(&mut out, version);
    put_mode(&mut out, &head.config);
    out.extend_from_slice(&head.next_seq.to_le_bytes());
    put_settings(&mut out, &head.config.settings);
    for counter in counters(&mut head.stats.clone()) {
        out.extend_from_slice(&counter.to_le_bytes());
    }
    if version >= 2 {
        out.extend_from_slice(&head.stats.retained.to_le_bytes());
        out.extend_from_slice(&head.last_place.to_le_bytes());
    }
    Bytes::from(out)
}

/// Reads a partition's page.
pub(super) fn read_partition(bytes: &[u8], version: u16) -> Read<Head> {
    let mut from = Reader::new(bytes);
    layout(from.u16()?, version)?;
    let config = read_mode(&mut from, version)?;
    let next_seq = from.u64()?;
    let settings = read_settings(&mut from, version)?;
    let mut stats = QueueStats::default();
    for counter in counters(&mut stats) {
        *counter = from.u64()?;
    }
    let mut last_place = 0;
    if version >= 2 {
        stats.retained = from.u64()?;
        last_place = from.u64()?;
    }
    from.end()?;
    if next_seq > JobId::SEQ_MAX + 1 {
        return Err("its next sequence is out of range");
    }
    if last_place > next_seq || stats.retained > last_place {
        return Err("it retains more jobs than it ever had");
    }
    Ok(Head {
        config: PartitionConfig { settings, ..config },
        next_seq,
        last_place,
        stats,
    })
}

/// The bytes of a leaf's page.
pub(super) fn put_leaf(leaf: &Leaf) -> Bytes {
    let mut out = Vec::with_capacity(LEAF_BYTES);
    for record in leaf.records() {
        record.encode(&mut out);
    }
    assert!(
        out.len() == LEAF_BYTES,
        "a leaf took {} bytes, not {LEAF_BYTES}",
        out.len()
    );
    Bytes::from(out)
}

/// Reads a leaf's page: its live records with their slots, at least one.
pub(super) fn read_leaf(bytes: &[u8]) -> Read<Vec<(u64, Record)>> {
    if bytes.len() != LEAF_BYTES {
        return Err("it is not 4096 bytes long");
    }
    let mut live = Vec::new();
    for (slot, record) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
        let record = record.try_into().map_err(|_| "it is cut short")?;
        let record = Record::decode(record)?;
        if record.state.is_some() {
            live.push((slot as u64, record));
        }
    }
    if live.is_empty() {
        return Err("it has no live record");
    }
    Ok(live)
}

/// The bytes of a page of reasons.
pub(super) fn put_reasons(reasons: &BTreeMap<u8, Bytes>) -> Bytes {
    let mut out = Vec::new();
    out.extend_from_slice(&LAYOUT.to_le_bytes());
    out.extend_from_slice(&len_u16(reasons.len()).to_le_bytes());
    for (slot, reason) in reasons {
        out.extend_from_slice(&[*slot, 0]);
        out.extend_from_slice(&len_u16(reason.len()).to_le_bytes());
        out.extend_from_slice(reason);
    }
    Bytes::from(out)
}

/// Reads a page of reasons, at least one.
pub(super) fn read_reasons(bytes: &[u8]) -> Read<Vec<(u8, Bytes)>> {
    let mut from = Reader::new(bytes);
    layout(from.u16()?, LAYOUT)?;
    let count = from.u16()?;
    let mut reasons = Vec::new();
    let mut last = None;
    for _ in 0..count {
        let slot = from.u8()?;
        from.zeros(1)?;
        rising(&mut last, slot)?;
        let len = usize::from(from.u16()?);
        if u64::from(slot) >= LEAF_JOBS || !(1..=REASON_BYTES_MAX).contains(&len) {
            return Err("a slot or a length is out of range");
        }
        reasons.push((slot, Bytes::copy_from_slice(from.take(len)?)));
    }
    from.end()?;
    if reasons.is_empty() {
        return Err("it has no reason");
    }
    Ok(reasons)
}

/// The bytes of a page of keys.
pub(super) fn put_keys(keys: &[KeyRecord]) -> Bytes {
    let mut out = Vec::with_capacity(8 + 40 * keys.len());
    out.extend_from_slice(&LAYOUT.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&len_u32(keys.len()).to_le_bytes());
    for key in keys {
        out.extend_from_slice(&key.hash.0);
        out.extend_from_slice(&key.seq.to_le_bytes());
        out.extend_from_slice(&key.fingerprint.to_le_bytes());
        put_u48(&mut out, key.expires);
        out.extend_from_slice(&[0; 2]);
    }
    Bytes::from(out)
}

/// Reads the page of keys `bucket`, at least one.
pub(super) fn read_keys(bytes: &[u8], bucket: u64) -> Read<Vec<KeyRecord>> {
    let mut from = Reader::new(bytes);
    layout(from.u16()?, LAYOUT)?;
    from.zeros(2)?;
    let count = from.u32()?;
    let mut keys = Vec::new();
    let mut last = None;
    for _ in 0..count {
        let key = KeyRecord {
            hash: Hash128(from.bytes16()?),
            seq: from.u64()?,
            fingerprint: from.u64()?,
            expires: from.u48()?,
        };
        from.zeros(2)?;
        rising(&mut last, key.hash)?;
        if u64::from(bucket_of(key.hash)) != bucket {
            return Err("a key belongs to another page");
        }
        keys.push(key);
    }
    from.end()?;
    if keys.is_empty() {
        return Err("it has no key");
    }
    Ok(keys)
}

/// The bytes of a page of finished jobs.
pub(super) fn put_finished(page: &FinishedPage) -> Bytes {
    let mut out = Vec::new();
    out.extend_from_slice(&LAYOUT_FINISHED.to_le_bytes());
    let first = page.first % FINISHED_PAGE_JOBS;
    let first = u8::try_from(first).expect("a page has 64 places");
    let count = u8::try_from(page.jobs.len()).expect("a page has 64 places");
    out.extend_from_slice(&[first, count, 0, 0, 0, 0]);
    for job in &page.jobs {
        out.extend_from_slice(&job.seq.to_le_bytes());
        out.extend_from_slice(&[job.end as u8, u8::from(job.result.is_some())]);
        out.extend_from_slice(&job.attempts.to_le_bytes());
        put_u48(&mut out, job.enqueued_at);
        put_u48(&mut out, job.finished_at);
        let result = job.result.as_deref().unwrap_or_default();
        out.extend_from_slice(&len_u32(result.len()).to_le_bytes());
        out.extend_from_slice(result);
    }
    Bytes::from(out)
}

/// Reads the page of finished jobs `number`: each with its place, at least one, without a gap.
pub(super) fn read_finished(bytes: &[u8], number: u64) -> Read<Vec<(u64, Finished)>> {
    let mut from = Reader::new(bytes);
    layout(from.u16()?, LAYOUT_FINISHED)?;
    let (first, count) = (u64::from(from.u8()?), u64::from(from.u8()?));
    from.zeros(4)?;
    let base = number
        .checked_mul(FINISHED_PAGE_JOBS)
        .ok_or("its number is out of range")?;
    if count == 0 || first + count > FINISHED_PAGE_JOBS {
        return Err("its places are out of range");
    }
    let mut jobs = Vec::new();
    for slot in first..first + count {
        let seq = from.u64()?;
        let end = JobEnd::from_u8(from.u8()?).ok_or("a job has an unknown end")?;
        let has_result = from.flag()?;
        let attempts = from.u16()?;
        let enqueued_at = from.u48()?;
        let finished_at = from.u48()?;
        let len = from.u32()? as usize;
        if len > RESULT_BYTES_MAX || (len != 0 && !has_result) {
            return Err("a result is larger than any may be");
        }
        if has_result && end != JobEnd::Completed {
            return Err("a job that was not completed has a result");
        }
        let result = Bytes::copy_from_slice(from.take(len)?);
        let job = Finished {
            seq,
            end,
            attempts,
            enqueued_at,
            finished_at,
            result: has_result.then_some(result),
        };
        jobs.push((base + slot, job));
    }
    from.end()?;
    Ok(jobs)
}

/// The bytes of a session's page.
pub(super) fn put_session(session: &Session) -> Bytes {
    let mut out = Vec::new();
    out.extend_from_slice(&LAYOUT.to_le_bytes());
    out.extend_from_slice(&[u8::from(session.ended), 0]);
    out.extend_from_slice(&session.epoch.to_le_bytes());
    out.extend_from_slice(&session.worker_timeout_ms.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for window in &session.windows {
        out.extend_from_slice(&window.lowest.to_le_bytes());
        out.extend_from_slice(&window.last.to_le_bytes());
        out.extend_from_slice(&len_u32(window.outcomes.len()).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for (seq, outcome) in window.outcomes.iter() {
            out.extend_from_slice(&seq.to_le_bytes());
            out.extend_from_slice(&len_u32(outcome.len()).to_le_bytes());
            out.extend_from_slice(outcome);
        }
    }
    Bytes::from(out)
}

/// Reads a session's page.
pub(super) fn read_session(bytes: &[u8], version: u16) -> Read<Session> {
    let mut from = Reader::new(bytes);
    layout(from.u16()?, LAYOUT)?;
    let ended = from.flag()?;
    from.zeros(1)?;
    let epoch = from.u32()?;
    let worker_timeout_ms = from.u32()?;
    from.zeros(4)?;
    let mut windows = [WindowState::default(), WindowState::default()];
    for (window, state) in WINDOWS.into_iter().zip(&mut windows) {
        *state = read_window(&mut from, window_len(window), version)?;
    }
    from.end()?;
    if epoch == 0 || worker_timeout_ms == 0 {
        return Err("its epoch or timeout is 0");
    }
    Ok(Session {
        epoch,
        ended,
        worker_timeout_ms,
        windows,
    })
}

fn read_window(from: &mut Reader<'_>, window_len: u64, version: u16) -> Read<WindowState> {
    let lowest = from.u64()?;
    let last = from.u64()?;
    let count = from.u32()?;
    from.zeros(4)?;
    if lowest == 0 {
        return Err("a window begins at 0");
    }
    let mut outcomes = Outcomes::default();
    let mut before = None;
    for _ in 0..count {
        let seq = from.u64()?;
        let len = from.u32()? as usize;
        rising(&mut before, seq)?;
        if seq < lowest || seq - lowest >= window_len || seq > last {
            return Err("an outcome is outside its window");
        }
        let outcome = from.take(len)?;
        read_outcome(outcome, version)?;
        outcomes.insert(seq, outcome);
    }
    Ok(WindowState {
        lowest,
        last,
        outcomes,
    })
}
