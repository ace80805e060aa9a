//! Pages to machine: the inverse of `frozen.rs`, for bytes that are not trusted.
//!
//! Each page is checked by itself (`page.rs`), then against the others: queues have their
//! partitions, jobs their queue, owners their session, counters what they count. So a missing page
//! is noticed too, but for one of reasons or an idle session, which only the root can miss. Orders
//! are not in pages; they are made anew. On an error the machine is as it was.

use crate::base::checksum::crc32c;
use crate::base::ids::{GroupId, JobId, Partition, QueueUid, SessionId};
use crate::base::limits::{FINISHED_HELD_BYTES, LEAF_JOBS};
use crate::queue::body::{StoredBody, decode_body};
use crate::queue::codec::Read;
use crate::queue::group_page::read_group;
use crate::queue::history::History;
use crate::queue::job_queue::JobQueue;
use crate::queue::keys::KeyTable;
use crate::queue::page::{
    LEAF_BYTES, PageError, PagePlace, read_finished, read_keys, read_leaf, read_partition,
    read_queue, read_reasons, read_session,
};
use crate::queue::partition::{Head, PartitionState};
use crate::queue::record::Record;
use crate::queue::sessions::Sessions;
use crate::queue::tree::Tree;
use crate::queue::view::{BodyLocation, PageKey, PageKind, QueueStats};
use crate::queue::writing::{StoredTree, read_summary};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a body comes from: its bytes and their place on this node's disk.
pub(super) type Bodies<'a> = dyn FnMut(JobId) -> Option<(Bytes, BodyLocation)> + 'a;

/// The pages of a state from those that a checkpoint has, in the order of their keys: there a leaf has its
/// reasons behind it.
#[must_use]
pub fn stored_pages(pages: Vec<(PageKey, Bytes)>) -> Vec<(PageKey, Bytes)> {
    let mut all = Vec::with_capacity(pages.len());
    for (key, mut bytes) in pages {
        if key.kind == PageKind::Leaf && bytes.len() > LEAF_BYTES {
            let reasons = PageKey {
                kind: PageKind::Reasons,
                ..key
            };
            all.push((reasons, bytes.split_off(LEAF_BYTES)));
        }
        all.push((key, bytes));
    }
    all.sort_unstable_by_key(|(key, _)| *key);
    all
}

fn check_keys(pages: &[(PageKey, Bytes)]) -> Result<(), PageError> {
    for pair in pages.windows(2) {
        if pair[0].0 >= pair[1].0 {
            return Err(PageError::of_page(
                pair[1].0,
                "it is out of order or twice there",
            ));
        }
    }
    let first = pages.first();
    if first.is_none_or(|(key, _)| key.kind != PageKind::Group) {
        return Err(PageError {
            place: PagePlace::Set,
            what: "there is no group page".to_owned(),
        });
    }
    Ok(())
}

impl Loading {
    /// From the pages of which a group has few, in the order of their keys.
    pub(super) fn of_pages(group: GroupId, pages: &[(PageKey, Bytes)]) -> Result<Self, PageError> {
        check_keys(pages)?;
        let mut loading = Self::new(group);
        for kind in ORDER {
            for (key, bytes) in pages.iter().filter(|(key, _)| key.kind == kind) {
                let is_of_tree = matches!(
                    kind,
                    PageKind::Leaf | PageKind::Reasons | PageKind::Keys | PageKind::Finished
                );
                if is_of_tree {
                    return Err(PageError::of_page(*key, "it stands beside its tree"));
                }
                loading.page(*key, bytes, &mut |_| None)?;
            }
        }
        Ok(loading)
    }
}

impl JobQueue {
    /// Takes the state from its pages, in the order of their keys, and from the bodies of its jobs.
    ///
    /// # Errors
    /// [`PageError`] names what is damaged or missing; the machine is then as it was. No bytes make
    /// it panic.
    pub fn load(
        &mut self,
        pages: &[(PageKey, Bytes)],
        bodies: &mut dyn FnMut(JobId) -> Option<(Bytes, BodyLocation)>,
    ) -> Result<(), PageError> {
        check_keys(pages)?;
        let mut loading = Loading::new(self.group);
        for kind in ORDER {
            for (key, bytes) in pages.iter().filter(|(key, _)| key.kind == kind) {
                loading.page(*key, bytes, bodies)?;
            }
        }
        *self = loading.finish()?;
        Ok(())
    }
}

pub(super) struct Loading {
    pub(super) machine: JobQueue,
    /// The counters that the pages of partitions tell, to be compared with what is counted.
    pub(super) counted: BTreeMap<(QueueUid, Partition), QueueStats>,
}

/// The order in which pages are taken: owners of jobs are sessions, so these come before leaves.
pub(super) const ORDER: [PageKind; 8] = [
    PageKind::Group,
    PageKind::Queue,
    PageKind::Partition,
    PageKind::Session,
    PageKind::Leaf,
    PageKind::Reasons,
    PageKind::Keys,
    PageKind::Finished,
];

impl Loading {
    pub(super) fn new(group: GroupId) -> Self {
        Self {
            machine: JobQueue::absent(group),
            counted: BTreeMap::new(),
        }
    }

    pub(super) fn page(
        &mut self,
        key: PageKey,
        bytes: &Bytes,
        bodies: &mut Bodies<'_>,
    ) -> Result<(), PageError> {
        let taken = match key.kind {
            PageKind::Group => self.group(key, bytes),
            PageKind::Queue => self.queue(key, bytes),
            PageKind::Partition => self.partition(key, bytes),
            PageKind::Session => self.session(key, bytes),
            PageKind::Leaf => return self.leaf(key, bytes, bodies),
            PageKind::Reasons => self.reasons(key, bytes),
            PageKind::Keys => self.keys(key, bytes),
            PageKind::Finished => self.finished(key, bytes),
        };
        taken.map_err(|what| PageError::of_page(key, what))
    }

    fn group(&mut self, key: PageKey, bytes: &[u8]) -> Read<()> {
        expect_key(key, QueueUid::default(), Partition(0), Some(0))?;
        let page = read_group(bytes)?;
        let machine = &mut self.machine;
        if page.group != machine.group {
            return Err("it is of another group");
        }
        machine.version = page.version;
        machine.time = page.time;
        machine.wall_offset_ms = page.wall_offset_ms;
        machine.queue_counter = page.queue_counter;
        machine.home_applied = page.home_applied;
        machine.outbox = page.outbox;
        machine.links.sessions = Sessions::with_last_id(page.session_counter);
        Ok(())
    }

    fn queue(&mut self, key: PageKey, bytes: &[u8]) -> Read<()> {
        expect_key(key, key.queue, Partition(0), Some(0))?;
        let record = read_queue(bytes, self.machine.version)?;
        let machine = &mut self.machine;
        let counter = key.queue.counter();
        let given = (1..=machine.queue_counter).contains(&counter);
        if key.queue.home() != machine.group || !given {
            return Err("its uid was never given out here");
        }
        let others = &record.groups[1..];
        let elsewhere = others.iter().any(|group| *group != machine.group);
        if record.groups[0] != machine.group || (machine.version == 1 && elsewhere) {
            return Err("a partition lives in another group");
        }
        if machine
            .names
            .insert(record.name.clone(), key.queue)
            .is_some()
        {
            return Err("its name is that of another queue");
        }
        machine.homed += record.groups.len();
        machine.queues.insert(key.queue, Arc::new(record));
        Ok(())
    }

    fn partition(&mut self, key: PageKey, bytes: &[u8]) -> Read<()> {
        expect_key(key, key.queue, key.partition, Some(0))?;
        let mut head = read_partition(bytes, self.machine.version)?;
        self.check_home(key, &head)?;
        let place = (key.queue, key.partition);
        self.counted.insert(place, head.stats);
        let stats = &mut head.stats;
        for live in [
            &mut stats.pending,
            &mut stats.delayed,
            &mut stats.in_flight,
            &mut stats.dead,
            &mut stats.bytes,
            &mut stats.keys,
            &mut stats.retained,
        ] {
            *live = 0;
        }
        let partition = PartitionState::restored(head);
        self.machine.partitions.insert(place, partition);
        Ok(())
    }

    /// The home of a partition is here and says the same, or has told this group of it.
    fn check_home(&self, key: PageKey, head: &Head) -> Read<()> {
        let machine = &self.machine;
        if key.queue.home() != machine.group {
            let inside = (1..head.config.settings.partitions).contains(&key.partition.0);
            return if inside && machine.home_applied.contains_key(&key.queue.home()) {
                Ok(())
            } else {
                Err("its queue has never sent it here")
            };
        }
        let record = machine
            .queues
            .get(&key.queue)
            .ok_or("its queue has no page")?;
        if record.groups.get(usize::from(key.partition.0)) != Some(&machine.group) {
            return Err("its queue has it in another group");
        }
        if record.config != head.config {
            return Err("its settings differ from those of its queue");
        }
        Ok(())
    }

    fn session(&mut self, key: PageKey, bytes: &[u8]) -> Read<()> {
        expect_key(key, QueueUid::default(), Partition(0), None)?;
        let version = self.machine.version;
        let sessions = &mut self.machine.links.sessions;
        let id = u32::try_from(key.number).map_err(|_| "its id is out of range")?;
        if !(1..=sessions.last_id()).contains(&id) {
            return Err("its id was never given out here");
        }
        sessions.restore(SessionId(id), read_session(bytes, version)?);
        Ok(())
    }

    fn leaf(
        &mut self,
        key: PageKey,
        bytes: &[u8],
        bodies: &mut Bodies<'_>,
    ) -> Result<(), PageError> {
        let of_page = |what| PageError::of_page(key, what);
        let first = key.number.checked_mul(LEAF_JOBS);
        for (slot, record) in read_leaf(bytes).map_err(of_page)? {
            let seq = first.and_then(|first| first.checked_add(slot));
            let (id, partition) = self.place_of(key, seq).map_err(of_page)?;
            check_owner(&self.machine.links.sessions, record.owner).map_err(of_page)?;
            check_version(self.machine.version, &record).map_err(of_page)?;
            self.job(id, partition, record, bodies)?;
        }
        Ok(())
    }

    /// Takes a job with its body.
    pub(super) fn job(
        &mut self,
        id: JobId,
        partition: (QueueUid, Partition),
        record: Record,
        bodies: &mut Bodies<'_>,
    ) -> Result<(), PageError> {
        let missing = || PageError::of_body(Some(id), "it is missing");
        let (bytes, at) = bodies(id).ok_or_else(missing)?;
        let body = body_of(&record, &bytes).map_err(|what| PageError::of_body(Some(id), what))?;
        let state = self.machine.partitions.get_mut(&partition);
        let state = state.expect("its place was found before");
        state.insert(id, record, body, &mut self.machine.links);
        self.machine.set_body_location(id, at, None);
        Ok(())
    }

    /// The job at a sequence of a leaf, and its partition, which has given the sequence out.
    pub(super) fn place_of(
        &self,
        key: PageKey,
        seq: Option<u64>,
    ) -> Read<(JobId, (QueueUid, Partition))> {
        let place = (key.queue, key.partition);
        let partition = self
            .machine
            .partitions
            .get(&place)
            .ok_or("its partition has no page")?;
        match seq.filter(|seq| *seq < partition.head.next_seq) {
            Some(seq) => Ok((JobId::new(self.machine.group, place.0, place.1, seq), place)),
            None => Err("a sequence was never given out"),
        }
    }

    fn reasons(&mut self, key: PageKey, bytes: &[u8]) -> Read<()> {
        let place = (key.queue, key.partition);
        let partition = self.machine.partitions.get_mut(&place);
        let partition = partition.ok_or("its partition has no page")?;
        for (slot, reason) in read_reasons(bytes)? {
            let first = key
                .number
                .checked_mul(LEAF_JOBS)
                .ok_or("its number is out of range")?;
            let seq = first.saturating_add(u64::from(slot));
            if partition.leaves.record(seq).is_none() {
                return Err("a reason is of a job that is not live");
            }
            partition.leaves.set_reason(seq, reason);
        }
        Ok(())
    }

    fn keys(&mut self, key: PageKey, bytes: &[u8]) -> Read<()> {
        let place = (key.queue, key.partition);
        let partition = self.machine.partitions.get_mut(&place);
        let partition = partition.ok_or("its partition has no page")?;
        for record in read_keys(bytes, key.number)? {
            if record.seq >= partition.head.next_seq {
                return Err("a key names a sequence that was never given out");
            }
            partition.remember(place, record, &mut self.machine.links);
        }
        Ok(())
    }

    fn finished(&mut self, key: PageKey, bytes: &[u8]) -> Read<()> {
        let place = (key.queue, key.partition);
        let partition = self.machine.partitions.get_mut(&place);
        let partition = partition.ok_or("its partition has no page")?;
        if self.machine.version == 1 {
            return Err("its group is of a machine version without such pages");
        }
        for (at, job) in read_finished(bytes, key.number)? {
            let (head, history) = (&partition.head, &partition.history);
            // The last places are kept, without a gap; so the count tells which is next.
            let told = self.counted[&place].retained;
            if at != head.last_place - told + 1 + history.len() || history.len() == told {
                return Err("its places are not those that its partition retains");
            }
            let known = partition.leaves.record(job.seq).is_some();
            if job.seq >= head.next_seq || known || history.place_of(job.seq).is_some() {
                return Err("a finished job is live, or twice there, or was never made");
            }
            partition.retain(at, job, &mut self.machine.links);
        }
        Ok(())
    }

    /// What other groups have yet to do is what the queues at home here are.
    fn check_changes(&self) -> Read<()> {
        let machine = &self.machine;
        for (group, change) in machine.outbox.iter() {
            let given = (1..=machine.queue_counter).contains(&change.queue.counter());
            if change.queue.home() != machine.group || !given || group == machine.group {
                return Err("a change is of a queue that is not at home here");
            }
            let record = machine.queues.get(&change.queue);
            if record.map(|record| record.config) != change.config {
                return Err("a change differs from its queue");
            }
            let places = record.map(|record| record.places());
            if places.is_some_and(|places| places.get(&group) != Some(&change.partitions)) {
                return Err("a change is of other partitions than its queue has there");
            }
        }
        Ok(())
    }

    /// Takes what a root says of a tree; nothing of it is here yet.
    pub(super) fn tree(&mut self, tree: &StoredTree) -> Result<(), PageError> {
        let of_tree = |what| PageError::of_page(tree.key, what);
        let place = (tree.key.queue, tree.key.partition);
        let state = self.machine.partitions.get_mut(&place);
        let state = state.ok_or_else(|| of_tree("its partition has no page"))?;
        let top = (u32::from(tree.level), tree.key.number);
        let summary = read_summary(&tree.summary);
        let runs = || tree.runs.iter().map(|(file, bytes)| (*file, *bytes));
        match tree.key.kind {
            PageKind::Leaf => {
                state.leaves = Tree::absent(top, summary, tree.stored, runs());
                state.payloads.clone_from(&tree.payloads);
            }
            PageKind::Keys => {
                let keys = Tree::absent(top, summary, tree.stored, runs());
                state.keys = KeyTable::of_tree(keys);
            }
            PageKind::Finished => {
                let pages = Tree::absent(top, summary, tree.stored, runs());
                state.history = History::of_tree(pages);
            }
            _ => return Err(of_tree("there are no trees of such pages")),
        }
        Ok(())
    }

    /// The state, once all is taken that a start reads.
    pub(super) fn finish_open(mut self) -> Result<JobQueue, PageError> {
        for (place, state) in &mut self.machine.partitions {
            let told = self.counted[place];
            let of_page = |what| {
                let key = PageKey {
                    kind: PageKind::Partition,
                    queue: place.0,
                    partition: place.1,
                    number: 0,
                };
                PageError::of_page(key, what)
            };
            let last = state.head.last_place;
            let first = (last + 1).checked_sub(told.retained);
            let first = first.ok_or_else(|| of_page("it retains more than it ever had"))?;
            let is_open = state.leaves.is_open()
                && state.keys.tree().is_open()
                && state.history.pages().is_here()
                && state.leaves.all_in_flight_are_here();
            if !is_open {
                return Err(of_page("some of what a start reads is missing"));
            }
            state.history.find_all(first, last).map_err(of_page)?;
            state.head.stats = told;
            if !state.fits_totals() {
                return Err(of_page("its counters are not what is in its trees"));
            }
            let links = &mut self.machine.links;
            state.hold(told.retained * FINISHED_HELD_BYTES as u64, links);
            state.hold(state.history.result_bytes(), links);
            state.enter_deadlines(*place, links);
        }
        self.finish()
    }

    pub(super) fn finish(mut self) -> Result<JobQueue, PageError> {
        let group_key = PageKey {
            kind: PageKind::Group,
            queue: QueueUid::default(),
            partition: Partition(0),
            number: 0,
        };
        self.check_changes()
            .map_err(|what| PageError::of_page(group_key, what))?;
        for (uid, record) in &self.machine.queues {
            let here = record.places().remove(&self.machine.group);
            for number in here.unwrap_or_default() {
                if !self.machine.partitions.contains_key(&(*uid, number)) {
                    return Err(PageError {
                        place: PagePlace::Set,
                        what: format!("queue {uid} has no page of its partition {number}"),
                    });
                }
            }
        }
        for ((queue, partition), state) in &self.machine.partitions {
            let told = self.counted[&(*queue, *partition)];
            if told != state.head.stats {
                let key = PageKey {
                    kind: PageKind::Partition,
                    queue: *queue,
                    partition: *partition,
                    number: 0,
                };
                let what = format!(
                    "its counters say {told:?}, its jobs and keys are {:?}",
                    state.head.stats
                );
                return Err(PageError::of_page(key, what));
            }
        }
        for (place, state) in &self.machine.partitions {
            state.mark_surplus(*place, &mut self.machine.links);
        }
        self.machine.loaded = true;
        Ok(self.machine)
    }
}

/// Who holds a job is a session that may.
pub(super) fn check_owner(sessions: &Sessions, owner: u32) -> Read<()> {
    if owner == 0 {
        return Ok(());
    }
    let slot = sessions.get(SessionId(owner));
    let slot = slot.ok_or("a job is leased by a session that has no page")?;
    if slot.page.ended {
        return Err("a job is leased by a session whose leases were ended");
    }
    Ok(())
}

/// A record has nothing that its group's version of the machine does not write.
pub(super) fn check_version(version: u16, record: &Record) -> Read<()> {
    if version == 1 && record.leased_at != 0 {
        return Err("its group is of a machine version without times of grants");
    }
    Ok(())
}

/// The body of a record's job.
pub(super) fn body_of(record: &Record, bytes: &Bytes) -> Result<StoredBody, String> {
    let body = decode_body(bytes).map_err(|error| error.what)?;
    let fits = body.payload.len() == record.payload_len as usize
        && crc32c(&[&body.payload]) == record.payload_crc;
    if fits {
        Ok(StoredBody::of_checked(bytes))
    } else {
        Err("its payload is not the one that its record tells".to_owned())
    }
}

fn expect_key(
    key: PageKey,
    queue: QueueUid,
    partition: Partition,
    number: Option<u64>,
) -> Read<()> {
    let fits = key.queue == queue
        && key.partition == partition
        && number.is_none_or(|number| key.number == number);
    if fits {
        Ok(())
    } else {
        Err("its key names a place that such a page cannot have")
    }
}
