//! The state of a group at one entry, held still while the machine goes on.
//!
//! Freezing shares leaves, buckets of keys and sessions with the machine, which copies one when it
//! changes it. Pages and bodies are then made in slices, in the order of their keys, so that a
//! shard is never busy with it for long.

use crate::base::bugs::{self, Bug};
use crate::base::checksum::Hash128;
use crate::base::ids::{JobId, Partition, QueueUid, SessionId};
use crate::base::limits::LEAF_JOBS;
use crate::queue::body::StoredBody;
use crate::queue::group_page::{GroupPage, put_group};
use crate::queue::history::FinishedPages;
use crate::queue::job_queue::JobQueue;
use crate::queue::keys::KeyTable;
use crate::queue::leaf::{Leaves, leaf_of, slot_of};
use crate::queue::page::{
    put_finished, put_keys, put_leaf, put_partition, put_queue, put_reasons, put_session,
};
use crate::queue::partition::Head;
use crate::queue::queues::QueueRecord;
use crate::queue::sessions::Session;
use crate::queue::view::{BodyLocation, PageKey, PageKind};
use crate::queue::writing::{Flat, Same};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) struct FrozenPartition {
    pub(super) head: Head,
    pub(super) leaves: Leaves,
    pub(super) keys: KeyTable,
    pub(super) finished: FinishedPages,
    pub(super) payloads: BTreeMap<u64, (u64, u64)>,
}

type Partitions = BTreeMap<(QueueUid, Partition), FrozenPartition>;

pub(super) struct Shared {
    pub(super) group: GroupPage,
    queues: BTreeMap<QueueUid, Arc<QueueRecord>>,
    pub(super) partitions: Partitions,
    sessions: BTreeMap<SessionId, Arc<Session>>,
    pub(super) flat: Arc<Flat>,
}

/// The state at one entry; yields its pages in the order of their keys.
pub struct FrozenState {
    pub(super) shared: Arc<Shared>,
    /// The lowest key that can come next; `None` at the end.
    pub(super) next: Option<PageKey>,
}

/// The bodies of all live jobs of a frozen state, in the order of their ids.
pub struct BodyCursor {
    shared: Arc<Shared>,
    /// The lowest place that can come next; `None` at the end.
    next: Option<(QueueUid, Partition, u64)>,
}

/// The body of a live job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenBody {
    /// The job.
    pub job: JobId,
    /// Where it was on this node's disk at the freeze, if it was.
    pub location: Option<BodyLocation>,
    /// The body.
    pub body: StoredBody,
}

impl JobQueue {
    /// The state as it is now, held still. Costs some pointers a partition, and one each session and each
    /// outstanding change.
    ///
    /// # Panics
    /// If the state is not loaded.
    #[must_use]
    pub fn freeze(&self) -> FrozenState {
        let partitions = self.partitions.iter().map(|(place, state)| {
            let frozen = FrozenPartition {
                head: state.head,
                leaves: state.leaves.clone(),
                keys: state.keys.clone(),
                finished: state.history.pages().clone(),
                payloads: state.payloads.clone(),
            };
            (*place, frozen)
        });
        self.frozen(partitions.collect())
    }

    pub(super) fn frozen(&self, partitions: Partitions) -> FrozenState {
        assert!(
            self.loaded,
            "group {} was frozen before its pages were loaded",
            self.group
        );
        let sessions = &self.links.sessions;
        let shared = Shared {
            group: GroupPage {
                group: self.group,
                version: self.version,
                time: self.time,
                wall_offset_ms: self.wall_offset_ms,
                queue_counter: self.queue_counter,
                session_counter: sessions.last_id(),
                home_applied: self.home_applied.clone(),
                outbox: self.outbox.clone(),
            },
            queues: self.queues.clone(),
            partitions,
            sessions: sessions
                .iter()
                .map(|(id, slot)| (id, frozen_session(&slot.page)))
                .collect(),
            flat: Arc::clone(&self.flat),
        };
        FrozenState {
            shared: Arc::new(shared),
            next: Some(Shared::first_key()),
        }
    }

    /// A hash over all pages with their keys: equal for equal states, on every replica.
    #[must_use]
    pub fn state_hash(&self) -> Hash128 {
        let mut frozen = self.freeze();
        let mut hashes = Vec::new();
        loop {
            let pages = frozen.next_pages(1 << 20);
            if pages.is_empty() {
                return Hash128::of(&hashes);
            }
            for (key, bytes) in pages {
                hashes.push(key.kind as u8);
                hashes.extend_from_slice(&key.queue.to_u64().to_le_bytes());
                hashes.push(key.partition.0);
                hashes.extend_from_slice(&key.number.to_le_bytes());
                hashes.extend_from_slice(&Hash128::of(&bytes).0);
            }
        }
    }
}

impl FrozenState {
    /// The next pages in the order of their keys, up to `max_bytes` of them but at least one; empty
    /// at the end.
    pub fn next_pages(&mut self, max_bytes: usize) -> Vec<(PageKey, Bytes)> {
        let mut pages = Vec::new();
        let mut bytes = 0;
        while let Some(from) = self.next.filter(|_| pages.is_empty() || bytes < max_bytes) {
            let page = self.shared.page_from(from);
            self.next = page.as_ref().map(|(key, _)| PageKey {
                number: key.number + 1,
                ..*key
            });
            bytes += page.as_ref().map_or(0, |(_, page)| page.len());
            pages.extend(page);
        }
        pages
    }

    /// Live jobs, each of which has a body.
    #[must_use]
    pub fn live_jobs(&self) -> u64 {
        let partitions = self.shared.partitions.values();
        partitions.map(|partition| partition.head.live()).sum()
    }

    /// The bodies of all live jobs, from the first on.
    #[must_use]
    pub fn bodies(&self) -> BodyCursor {
        BodyCursor {
            shared: Arc::clone(&self.shared),
            next: Some((QueueUid::default(), Partition(0), 0)),
        }
    }
}

impl BodyCursor {
    /// The next bodies in the order of job ids, up to `max_bytes` encoded but at least one; empty
    /// at the end.
    pub fn next_bodies(&mut self, max_bytes: usize) -> Vec<FrozenBody> {
        let mut bodies = Vec::new();
        let mut bytes = 0;
        let group = self.shared.group.group;
        if let Some((queue, number, seq)) = self.next.take() {
            let places = self.shared.partitions.range((queue, number)..);
            for ((at_queue, at_number), partition) in places {
                let first = if (*at_queue, *at_number) == (queue, number) {
                    seq
                } else {
                    0
                };
                for (leaf_number, leaf) in partition.leaves.from(leaf_of(first)) {
                    for slot in leaf.live_slots() {
                        let seq = leaf_number * LEAF_JOBS + slot as u64;
                        if seq < first {
                            continue;
                        }
                        if !bodies.is_empty() && bytes >= max_bytes {
                            self.next = Some((*at_queue, *at_number, seq));
                            return bodies;
                        }
                        let body = leaf.body(slot_of(seq)).clone();
                        bytes += body.encoded_len();
                        bodies.push(FrozenBody {
                            job: JobId::new(group, *at_queue, *at_number, seq),
                            location: leaf.location(slot),
                            body,
                        });
                    }
                }
            }
        }
        bodies
    }
}

impl Shared {
    /// The key of the first page.
    pub(super) fn first_key() -> PageKey {
        key(PageKind::Group, QueueUid::default(), Partition(0), 0)
    }

    /// The first key from `from` on of a page that a group has few of, and what tells that it is as it
    /// was.
    pub(super) fn flat_from(&self, from: PageKey) -> Option<(PageKey, Same)> {
        let mut from = from;
        loop {
            let found = self.flat_of_kind(from);
            if found.is_some() {
                return found;
            }
            from = first_of_next_kind(from.kind)?;
        }
    }

    /// Likewise, of the kind of `from` alone.
    fn flat_of_kind(&self, from: PageKey) -> Option<(PageKey, Same)> {
        match from.kind {
            PageKind::Group => (from.number == 0).then_some((from, Same::Bytes)),
            PageKind::Queue => self.queues.range(from.queue..).find_map(|(uid, record)| {
                let key = key(PageKind::Queue, *uid, Partition(0), 0);
                (key >= from).then(|| (key, Same::Queue(Arc::clone(record))))
            }),
            PageKind::Partition => {
                let mut places = self.partitions.range((from.queue, from.partition)..);
                places.find_map(|((uid, number), _)| {
                    let key = key(PageKind::Partition, *uid, *number, 0);
                    (key >= from).then_some((key, Same::Bytes))
                })
            }
            PageKind::Session => {
                let first = SessionId(u32::try_from(from.number).ok()?);
                let (id, session) = self.sessions.range(first..).next()?;
                let number = u64::from(id.0);
                let key = key(from.kind, QueueUid::default(), Partition(0), number);
                Some((key, Same::Session(Arc::clone(session))))
            }
            PageKind::Leaf | PageKind::Reasons | PageKind::Keys | PageKind::Finished => None,
        }
    }

    /// A page that a group has few of.
    pub(super) fn flat_page(&self, key: PageKey, same: &Same) -> Bytes {
        let version = self.group.version;
        match same {
            Same::Queue(record) => put_queue(record, version),
            Same::Session(session) => put_session(session),
            Same::Bytes if key.kind == PageKind::Group => put_group(&self.group),
            Same::Bytes => {
                let partition = &self.partitions[&(key.queue, key.partition)];
                put_partition(&partition.head, version)
            }
        }
    }

    /// The first page whose key is `from` or above.
    fn page_from(&self, from: PageKey) -> Option<(PageKey, Bytes)> {
        let mut from = from;
        loop {
            let found = match from.kind {
                PageKind::Group | PageKind::Queue | PageKind::Partition | PageKind::Session => {
                    let flat = self.flat_of_kind(from);
                    flat.map(|(key, same)| (key, self.flat_page(key, &same)))
                }
                PageKind::Leaf => self.in_partitions(from, |partition, number| {
                    let (number, leaf) = partition.leaves.from(number).next()?;
                    Some((number, put_leaf(leaf)))
                }),
                PageKind::Reasons => self.in_partitions(from, |partition, number| {
                    let (number, leaf) = partition.leaves.reasoned_from(number).next()?;
                    Some((number, put_reasons(leaf.reasons())))
                }),
                PageKind::Keys => self.in_partitions(from, |partition, number| {
                    let (number, keys) = partition.keys.from(u16::try_from(number).ok()?).next()?;
                    Some((u64::from(number), put_keys(keys)))
                }),
                PageKind::Finished => self.in_partitions(from, |partition, number| {
                    let (number, page) = partition.finished.from(number).next()?;
                    Some((number, put_finished(page)))
                }),
            };
            if found.is_some() {
                return found;
            }
            from = first_of_next_kind(from.kind)?;
        }
    }

    /// The first numbered page of a kind that partitions have many of.
    fn in_partitions(
        &self,
        from: PageKey,
        first: impl Fn(&FrozenPartition, u64) -> Option<(u64, Bytes)>,
    ) -> Option<(PageKey, Bytes)> {
        let mut places = self.partitions.range((from.queue, from.partition)..);
        places.find_map(|((uid, number), partition)| {
            let same = (*uid, *number) == (from.queue, from.partition);
            let (page, bytes) = first(partition, if same { from.number } else { 0 })?;
            Some((key(from.kind, *uid, *number, page), bytes))
        })
    }
}

/// The lowest key of the kind behind this one.
fn first_of_next_kind(kind: PageKind) -> Option<PageKey> {
    let next = PageKind::from_u8(kind as u8 + 1)?;
    Some(key(next, QueueUid::default(), Partition(0), 0))
}

fn key(kind: PageKind, queue: QueueUid, partition: Partition, number: u64) -> PageKey {
    PageKey {
        kind,
        queue,
        partition,
        number,
    }
}

fn frozen_session(session: &Arc<Session>) -> Arc<Session> {
    if !bugs::on(Bug::SessionsForgotten) {
        return Arc::clone(session);
    }
    let mut forgotten = Session::clone(session);
    forgotten
        .windows
        .iter_mut()
        .for_each(|window| window.outcomes.clear());
    Arc::new(forgotten)
}
