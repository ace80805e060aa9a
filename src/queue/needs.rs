//! What must be read before a command can be applied, or a read answered: pages that are on the disk
//! alone, told by what stands in the nodes above them.
//!
//! # Invariants
//! - Asking for more than turns out to be needed costs time and nothing else; asking for less is a bug, at
//!   which `apply` panics.
//! - Each part of the machine that looks at pages in an order of its own (grants, scans, what is due) has
//!   its counterpart here, which goes the same way.

use crate::base::bugs::{self, Bug};
use crate::base::checksum::Hash128;
use crate::base::ids::{JobId, Partition, QueueUid};
use crate::base::limits::{ADVANCE_ITEMS_MAX, ITEMS_MAX, LEAF_JOBS, PRIORITIES, SCAN_STEP_JOBS};
use crate::base::units::GroupTime;
use crate::queue::command::{Command, JobFilter, NewJob, Op, PurgeStates};
use crate::queue::deadlines::Place;
use crate::queue::job_queue::JobQueue;
use crate::queue::jobs::ReplyRoom;
use crate::queue::keys::{EXPIRIES, bucket_of};
use crate::queue::leaf::{Leaves, Order, READY, class_of, leaf_of, purged};
use crate::queue::partition::PartitionState;
use crate::queue::record::Record;
use crate::queue::residence::AbsentPage;
use crate::queue::tree::{Absent, Fate, Page, Seen, Summary, Tree};
use crate::queue::view::{ApplyAt, JobScan, JobState, PageKey, PageKind};
use crate::queue::writing::{SummaryBytes, read_summary};

/// Pages that are read at once where one after the other will be needed.
pub const PAGES_AHEAD: usize = 16;
/// Likewise where that is not known yet: a start has better to do.
pub const PAGES_AHEAD_AT_FIRST: usize = 2;
/// Partitions of which the ends are read before anybody has asked.
const ENDS_MAX: usize = 8;
/// Likewise, where all of them are.
const AHEAD_OF_ALL: usize = 256;

/// What must be read before something can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageWant {
    /// A page, or a node and some of the pages below it.
    pub at: AbsentPage,
    below: Below,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    Nothing,
    One(u64),
    /// Those of these classes, so many of them.
    Classes(u16, usize),
    Due {
        order: usize,
        by: u64,
    },
}

impl PageWant {
    /// This and nothing below it.
    #[must_use]
    pub fn only(at: AbsentPage) -> Self {
        let below = Below::Nothing;
        Self { at, below }
    }

    /// This node, and a page below it.
    #[must_use]
    pub(super) fn page_below(at: AbsentPage, page: u64) -> Self {
        let below = Below::One(page);
        Self { at, below }
    }

    /// Whether a page below the node is wanted, too, in whose branch this stands.
    #[must_use]
    pub fn lets_through(&self, number: u64, summary: &SummaryBytes) -> bool {
        let summary = read_summary(summary);
        match self.below {
            Below::Nothing => false,
            Below::One(page) => number == page,
            Below::Classes(classes, _) => summary.classes & classes != 0,
            Below::Due { order, by } => summary.dues[order] <= by,
        }
    }

    /// How many pages below the node are read at the most.
    #[must_use]
    pub fn pages_max(&self) -> usize {
        match self.below {
            Below::Nothing => 0,
            Below::One(_) => 1,
            Below::Classes(_, pages) => pages,
            Below::Due { .. } => PAGES_AHEAD,
        }
    }
}

/// What is absent of the leaves that a purge takes, or of those that it leaves.
#[derive(Default)]
struct Side {
    jobs: u64,
    /// The first of them.
    first: Vec<Absent>,
}

impl Side {
    fn add(&mut self, absent: Absent, summary: &Summary) {
        self.jobs += summary.live;
        if self.first.len() < AHEAD_OF_ALL {
            self.first.push(absent);
        }
    }
}

/// What is wanted, so far.
struct Wants {
    all: Vec<PageWant>,
    /// Pages that are read at once.
    ahead: usize,
}

impl Default for Wants {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            ahead: PAGES_AHEAD,
        }
    }
}

impl Wants {
    fn add(&mut self, kind: PageKind, place: Place, absent: Absent, below: Below) {
        let key = PageKey {
            kind,
            queue: place.0,
            partition: place.1,
            number: absent.number,
        };
        let level = u8::try_from(absent.level).expect("a tree has few levels");
        let stored = absent.stored;
        let at = AbsentPage { key, level, stored };
        if self.all.iter().all(|want| want.at != at) {
            self.all.push(PageWant { at, below });
        }
    }

    /// A page, if it exists and is not here.
    fn page<T: Page>(&mut self, kind: PageKind, place: Place, tree: &Tree<T>, number: u64) {
        if let Some(Seen::Absent(absent)) = tree.page(number) {
            self.add(kind, place, absent, Below::One(number));
        }
    }

    /// The next few leaves of some classes that are not here.
    fn leaves(&mut self, place: Place, leaves: &Leaves, (from, classes): (u64, u16)) {
        let of_class = |summary: &Summary| summary.classes & classes != 0;
        let below = Below::Classes(classes, self.ahead);
        for absent in leaves.all_absent(from, of_class).take(self.ahead) {
            self.add(PageKind::Leaf, place, absent, below);
            if absent.level != 0 {
                return;
            }
        }
    }

    /// The leaves of the jobs of some classes, one class after the other and in each from a sequence on,
    /// until `wants_more` does not; and a few behind the first that is not here.
    fn jobs(
        &mut self,
        place: Place,
        leaves: &Leaves,
        classes: impl Iterator<Item = (usize, u64)>,
        mut wants_more: impl FnMut(&Record) -> bool,
    ) {
        if leaves.is_here() {
            return;
        }
        for (class, from_seq) in classes {
            let bit = 1 << class;
            let mut from = Some(leaf_of(from_seq));
            while let Some(number) = from {
                let seen = leaves.look(number, |summary| summary.classes & bit != 0);
                let Some((number, seen)) = seen else { break };
                let Seen::Here(leaf) = seen else {
                    return self.leaves(place, leaves, (number, bit));
                };
                let first = from_seq.saturating_sub(number * LEAF_JOBS);
                let slots = leaf.of_class(class).filter(|slot| *slot as u64 >= first);
                for slot in slots {
                    if !wants_more(&leaf.records()[slot]) {
                        return;
                    }
                }
                from = number.checked_add(1);
            }
        }
    }
}

/// The classes of a scan, each with the sequence where it begins.
fn classes_of(state: JobState, priority: u8, seq: u64) -> impl Iterator<Item = (usize, u64)> {
    let priorities = match state {
        JobState::Pending => priority..PRIORITIES as u8,
        JobState::Delayed | JobState::InFlight | JobState::Dead => 0..1,
    };
    let first = priorities.start;
    priorities.map(move |priority| {
        let from = if priority == first { seq } else { 0 };
        (class_of(state, priority), from)
    })
}

impl JobQueue {
    /// What must be read and taken in before `command` can be applied; nothing if it can be. There may be
    /// more to read after that. Of jobs to be leased, `ahead` pages are read at once:
    /// [`PAGES_AHEAD_AT_FIRST`] to [`PAGES_AHEAD`].
    #[must_use]
    pub fn pages_needed(&self, at: ApplyAt, command: &Command, ahead: usize) -> Vec<PageWant> {
        let mut wants = Wants {
            ahead,
            ..Wants::default()
        };
        let is_lease = matches!(command.op, Op::Lease { .. });
        if is_lease && bugs::on(Bug::AbsentIsNothing) {
            return wants.all;
        }
        match &command.op {
            Op::Enqueue {
                queue,
                partition,
                items,
            } => self.enqueue_needs((*queue, *partition), items, &mut wants),
            Op::Lease {
                queue,
                partition,
                max,
                ..
            } => self.lease_needs((*queue, *partition), *max, &mut wants),
            Op::Cancel { items } | Op::RequeueDead { items } | Op::DeleteDead { items } => {
                for job in items {
                    self.job_needs(*job, &mut wants);
                }
            }
            Op::Purge {
                queue,
                partition,
                states,
            } => self.purge_needs((*queue, *partition), *states, &mut wants),
            Op::SweepDead {
                queue,
                partition,
                from_seq,
                ..
            } => {
                let place = (*queue, *partition);
                if let Some(state) = self.partitions.get(&place) {
                    let classes = classes_of(JobState::Dead, 0, *from_seq);
                    wants.jobs(place, &state.leaves, classes, first_of(SCAN_STEP_JOBS + 1));
                }
            }
            Op::Advance { limit } => self.advance_needs(at.time, *limit, &mut wants),
            // Tokens are of jobs in flight, and so are those that a session gives back.
            Op::OpenSession { .. }
            | Op::CloseSession { .. }
            | Op::Attach { .. }
            | Op::EndLeases { .. }
            | Op::DropSession { .. }
            | Op::Extend { .. }
            | Op::Ack { .. }
            | Op::Nack { .. }
            | Op::Release { .. }
            | Op::Bury { .. }
            // What goes whole is not looked at.
            | Op::CreateQueue { .. }
            | Op::AlterQueue { .. }
            | Op::DeleteQueue { .. }
            | Op::PauseQueue { .. }
            | Op::DrainQueue { .. }
            | Op::ResumeQueue { .. }
            | Op::ChangePartitions(_)
            | Op::PartitionsChanged { .. }
            | Op::SetWallOffset { .. } => {}
        }
        wants.all
    }

    fn enqueue_needs(&self, place: Place, items: &[NewJob], wants: &mut Wants) {
        let Some(state) = self.partitions.get(&place) else {
            return;
        };
        if !state.leaves.is_here() {
            let first = state.head.next_seq;
            let last = first + items.len() as u64;
            for number in leaf_of(first)..=leaf_of(last) {
                wants.page(PageKind::Leaf, place, &state.leaves, number);
            }
        }
        if !state.keys.tree().is_here() {
            for key in items.iter().filter_map(|item| item.key.as_ref()) {
                let bucket = bucket_of(Hash128::of(key)).into();
                wants.page(PageKind::Keys, place, state.keys.tree(), bucket);
            }
        }
    }

    fn lease_needs(&self, place: Place, max: u32, wants: &mut Wants) {
        let state = self.partitions.get(&place);
        let state = state.filter(|state| !state.head.config.paused);
        // More is refused.
        let Some(state) = state.filter(|_| max as usize <= ITEMS_MAX) else {
            return;
        };
        let mut left = max;
        let mut room = ReplyRoom::default();
        let classes = (0..PRIORITIES).map(|class| (class, 0));
        wants.jobs(place, &state.leaves, classes, |record| {
            // One that was granted too often is not, and the next is.
            left = left.saturating_sub(u32::from(record.lease_gen != u32::MAX));
            room.takes(record.payload_len) && left != 0
        });
    }

    fn job_needs(&self, job: JobId, wants: &mut Wants) {
        let place = (job.queue(), job.partition());
        let state = self.partitions.get(&place);
        if let Some(state) = state.filter(|_| job.group() == self.group) {
            wants.page(PageKind::Leaf, place, &state.leaves, leaf_of(job.seq()));
        }
    }

    fn purge_needs(&self, place: Place, states: PurgeStates, wants: &mut Wants) {
        let Some(state) = self.partitions.get(&place) else {
            return;
        };
        let (mut nodes, mut mixed) = (Vec::new(), Vec::new());
        let (mut going, mut staying) = (Side::default(), Side::default());
        state.leaves.each_absent(
            |absent, summary| match (purged(states, summary), absent.level) {
                (Fate::Stay, _) => staying.add(absent, summary),
                (_, 1..) => nodes.push(absent),
                (Fate::Go, 0) => going.add(absent, summary),
                (Fate::Mixed, 0) => mixed.push(absent),
            },
        );
        let below = Below::Nothing;
        for absent in nodes.iter().chain(&mixed).take(AHEAD_OF_ALL) {
            wants.add(PageKind::Leaf, place, *absent, below);
        }
        if nodes.is_empty() {
            // What lives in payload files is told by either.
            let fewer = std::cmp::min_by_key(going, staying, |side| side.jobs);
            for absent in fewer.first {
                let below = Below::Classes(u16::MAX, PAGES_AHEAD);
                wants.add(PageKind::Leaf, place, absent, below);
            }
        }
    }

    fn advance_needs(&self, time: GroupTime, limit: u32, wants: &mut Wants) {
        let time = self.time.max(time.min(GroupTime::MAX));
        let wall = time.wall(self.wall_offset_ms).0;
        let count = limit.min(ADVANCE_ITEMS_MAX) as usize;
        for order in Order::ALL {
            let by = match order {
                Order::Delays | Order::Leases => time.0,
                Order::RunAts | Order::Ttls => wall,
            };
            let order = order as usize;
            for place in self.links.deadlines.until(Order::ALL[order], by) {
                let leaves = &self.partitions[&place].leaves;
                for absent in leaves.absent_due(order, by, count, PAGES_AHEAD) {
                    let below = Below::Due { order, by };
                    wants.add(PageKind::Leaf, place, absent, below);
                }
            }
        }
        for place in self.links.deadlines.keys_until(time.0) {
            let keys = self.partitions[&place].keys.tree();
            let order = EXPIRIES;
            for absent in keys.absent_due(order, time.0, count, PAGES_AHEAD) {
                let by = time.0;
                wants.add(PageKind::Keys, place, absent, Below::Due { order, by });
            }
        }
    }

    /// What the first leases and enqueues will need: worth reading before there are any.
    #[must_use]
    pub fn pages_of_ends(&self) -> Vec<PageWant> {
        let mut wants = Wants {
            ahead: PAGES_AHEAD_AT_FIRST,
            ..Wants::default()
        };
        for place in self.partitions.keys().take(ENDS_MAX) {
            self.lease_needs(*place, 1, &mut wants);
            self.enqueue_needs(*place, &[], &mut wants);
        }
        wants.all
    }

    /// What must be read before [`Self::job`] can tell of a job.
    #[must_use]
    pub fn pages_of_job(&self, job: JobId) -> Vec<PageWant> {
        let mut wants = Wants::default();
        self.job_needs(job, &mut wants);
        wants.all
    }

    /// What must be read before [`Self::job_by_key`] can answer.
    #[must_use]
    pub fn pages_of_key(&self, queue: QueueUid, partition: Partition, key: &[u8]) -> Vec<PageWant> {
        let mut wants = Wants::default();
        let place = (queue, partition);
        if let Some(state) = self.partitions.get(&place) {
            let hash = Hash128::of(key);
            wants.page(
                PageKind::Keys,
                place,
                state.keys.tree(),
                bucket_of(hash).into(),
            );
            if wants.all.is_empty()
                && let Some(known) = state.keys.get(hash)
            {
                wants.page(PageKind::Leaf, place, &state.leaves, leaf_of(known.seq));
            }
        }
        wants.all
    }

    /// What must be read before [`Self::scan`] can take this step.
    #[must_use]
    pub fn pages_of_scan(&self, scan: &JobScan) -> Vec<PageWant> {
        let mut wants = Wants::default();
        let place = (scan.queue, scan.partition);
        if let Some(state) = self.partitions.get(&place) {
            let lists_all = scan.filter == JobFilter::default() && scan.limit != 0;
            let count = match lists_all {
                true => SCAN_STEP_JOBS.min(scan.limit as usize),
                false => SCAN_STEP_JOBS,
            };
            let cursor = scan.cursor.unwrap_or_default();
            let classes = classes_of(scan.state, cursor.priority, cursor.seq);
            wants.jobs(place, &state.leaves, classes, first_of(count + 1));
        }
        wants.all
    }

    /// What must be read before [`Self::peek`] can tell of so many jobs.
    #[must_use]
    pub fn pages_of_peek(
        &self,
        queue: QueueUid,
        partition: Partition,
        state: JobState,
        limit: usize,
    ) -> Vec<PageWant> {
        let mut wants = Wants::default();
        let place = (queue, partition);
        if let Some(at) = self.partitions.get(&place) {
            let mut room = ReplyRoom::default();
            let mut left = limit;
            wants.jobs(place, &at.leaves, classes_of(state, 0, 0), |record| {
                left = left.saturating_sub(1);
                room.takes(record.payload_len) && left != 0
            });
        }
        wants.all
    }

    /// What must be read before the counters of a partition can be told, which say how long the oldest
    /// job has waited.
    #[must_use]
    pub fn pages_of_stats(&self, queue: QueueUid, partition: Partition) -> Vec<PageWant> {
        let mut wants = Wants::default();
        if let Some(state) = self.partitions.get(&(queue, partition)) {
            stats_need((queue, partition), state, &mut wants);
        }
        wants.all
    }

    /// What must be read before [`Self::queue`] can tell of a queue.
    #[must_use]
    pub fn pages_of_queue(&self, queue: QueueUid) -> Vec<PageWant> {
        self.pages_of_stats(queue, Partition(0))
    }

    /// What must be read before [`Self::queues`] can tell of all queues.
    #[must_use]
    pub fn pages_of_queues(&self) -> Vec<PageWant> {
        let mut wants = Wants::default();
        for uid in self.queues.keys() {
            let place = (*uid, Partition(0));
            stats_need(place, &self.partitions[&place], &mut wants);
        }
        wants.all
    }
}

fn stats_need(place: Place, state: &PartitionState, wants: &mut Wants) {
    if let Some((_, Seen::Absent(absent))) = state.leaves.oldest_ready() {
        wants.add(
            PageKind::Leaf,
            place,
            absent,
            Below::Classes(READY, PAGES_AHEAD),
        );
    }
}

/// Wants so many.
fn first_of(count: usize) -> impl FnMut(&Record) -> bool {
    let mut left = count;
    move |_| {
        left = left.saturating_sub(1);
        left != 0
    }
}
