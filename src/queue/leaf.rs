//! Leaves: 64 consecutive jobs of a partition, with their bodies and the classes that they stand in.
//!
//! Leaf `n` holds the sequences `64 n .. 64 n + 64`. A leaf without a live job does not exist. Leaves
//! are the pages of a [`Tree`], which finds the first job of a class, and the one that is due first.
//!
//! ```text
//! class   0..8 pending by priority   8 delayed   9 in flight   10 dead   11 has a last failure
//! order   0 delays by backoff   1 run-ats   2 leases   3 times to live of jobs that wait
//! ```
//!
//! Which classes and orders a job stands in is derived from its record alone. Locations of bodies are
//! local to a node: never in a page, never in a hash.

use crate::base::limits::{LEAF_JOBS, PRIORITIES};
use crate::queue::body::StoredBody;
use crate::queue::command::PurgeStates;
use crate::queue::partition::held_bytes;
use crate::queue::record::Record;
use crate::queue::tree::{DUES, Fate, NEVER, Page, Seen, Summary, Tree, bits};
use crate::queue::view::{BodyLocation, JobState};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

const SLOTS: usize = LEAF_JOBS as usize;

const DELAYED: usize = PRIORITIES;
pub(super) const IN_FLIGHT: usize = PRIORITIES + 1;
const DEAD: usize = PRIORITIES + 2;
const REASONED: usize = PRIORITIES + 3;
/// Those of pending jobs.
pub(super) const READY: u16 = (1 << PRIORITIES) - 1;
/// Classes that a job stands in one of.
const STATES: usize = PRIORITIES + 3;
const ALL_STATES: u16 = (1 << STATES) - 1;

/// An order of times; what waits in it is told by records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Backoffs, group time.
    Delays,
    /// Run-ats, wall time.
    RunAts,
    /// Leases, group time.
    Leases,
    /// Times to live of jobs that wait, wall time.
    Ttls,
}

impl Order {
    /// As they stand in a summary.
    pub(super) const ALL: [Self; DUES] = [Self::Delays, Self::RunAts, Self::Leases, Self::Ttls];

    /// Those in which jobs of a state can stand.
    fn of_state(state: JobState) -> &'static [Self] {
        match state {
            JobState::Pending => &[Self::Ttls],
            JobState::Delayed => &[Self::Delays, Self::RunAts, Self::Ttls],
            JobState::InFlight => &[Self::Leases],
            JobState::Dead => &[],
        }
    }

    /// The time at which a job is due in this order, if it stands in it.
    fn when(self, record: &Record) -> Option<u64> {
        match (self, record.state?) {
            (Self::Delays, JobState::Delayed) if !record.wall => Some(record.when),
            (Self::RunAts, JobState::Delayed) if record.wall => Some(record.when),
            (Self::Leases, JobState::InFlight) => Some(record.when),
            (Self::Ttls, JobState::Pending | JobState::Delayed) if record.expires_at != 0 => {
                Some(record.expires_at)
            }
            _ => None,
        }
    }
}

/// The class of a state; pending jobs of this priority.
pub(super) fn class_of(state: JobState, priority: u8) -> usize {
    match state {
        JobState::Pending => usize::from(priority),
        JobState::Delayed => DELAYED,
        JobState::InFlight => IN_FLIGHT,
        JobState::Dead => DEAD,
    }
}

/// What a purge of some states makes of the leaves with these classes.
pub(super) fn purged(states: PurgeStates, summary: &Summary) -> Fate {
    let classes = states.all().fold(0, |all, state| match state {
        JobState::Pending => all | READY,
        _ => all | 1 << class_of(state, 0),
    });
    let classes_of_jobs = summary.classes & ALL_STATES;
    if classes_of_jobs & classes == 0 {
        Fate::Stay
    } else if classes_of_jobs & !classes == 0 {
        Fate::Go
    } else {
        Fate::Mixed
    }
}

/// 64 jobs.
#[derive(Clone)]
pub(super) struct Leaf {
    /// Bit n: slot n is live.
    live: u64,
    /// The live slots of each state, pending ones by priority.
    states: [u64; STATES],
    /// Bit n: class n has a live slot, or a reason.
    classes: u16,
    /// The live slots in each order.
    waiting: [u64; DUES],
    /// No later than the first time of each order.
    dues: [u64; DUES],
    payload_bytes: u64,
    /// Memory that its jobs take, about.
    held_bytes: u64,
    records: [Record; SLOTS],
    bodies: [Option<StoredBody>; SLOTS],
    /// Empty until the first body has a location, then one per slot.
    locations: Vec<Option<BodyLocation>>,
    /// Slot to the last failure; never an empty text.
    reasons: BTreeMap<u8, Bytes>,
}

impl Default for Leaf {
    fn default() -> Self {
        Self {
            live: 0,
            states: [0; STATES],
            classes: 0,
            waiting: [0; DUES],
            dues: [NEVER; DUES],
            payload_bytes: 0,
            held_bytes: 0,
            records: [Record::default(); SLOTS],
            bodies: [const { None }; SLOTS],
            locations: Vec::new(),
            reasons: BTreeMap::new(),
        }
    }
}

impl Page for Leaf {
    fn summary(&self) -> Summary {
        Summary {
            live: self.live.count_ones().into(),
            bytes: self.payload_bytes,
            classes: self.classes,
            dues: self.dues,
        }
    }

    fn all_dues(&self, order: usize) -> impl Iterator<Item = u64> {
        let slots = bits(self.waiting[order]);
        let order = Order::ALL[order];
        slots.filter_map(move |slot| order.when(&self.records[slot]))
    }

    fn set_due(&mut self, order: usize, when: u64) {
        self.dues[order] = when;
    }

    fn lies_in(&self, payloads: &BTreeSet<u64>) -> bool {
        let mut places = self.locations.iter().flatten();
        places.any(|at| payloads.contains(&at.file))
    }
}

/// The slot of a sequence in its leaf.
pub(super) fn slot_of(seq: u64) -> usize {
    (seq % LEAF_JOBS) as usize
}

/// The leaf of a sequence.
pub(super) fn leaf_of(seq: u64) -> u64 {
    seq / LEAF_JOBS
}

impl Leaf {
    /// All records, free ones zero.
    pub(super) fn records(&self) -> &[Record; SLOTS] {
        &self.records
    }

    /// The live slots, rising.
    pub(super) fn live_slots(&self) -> impl Iterator<Item = usize> + use<> {
        bits(self.live)
    }

    /// The body of a live slot.
    pub(super) fn body(&self, slot: usize) -> &StoredBody {
        self.bodies[slot]
            .as_ref()
            .expect("a live slot has its body")
    }

    /// Memory that its jobs take, about.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Where the body of a slot is on this node's disk.
    pub(super) fn location(&self, slot: usize) -> Option<BodyLocation> {
        self.locations.get(slot).copied().flatten()
    }

    /// Where the bodies of its jobs are on this node's disk, as far as they are.
    pub(super) fn locations(&self) -> impl Iterator<Item = BodyLocation> {
        self.locations.iter().copied().flatten()
    }

    /// The last failures, by slot.
    pub(super) fn reasons(&self) -> &BTreeMap<u8, Bytes> {
        &self.reasons
    }

    /// The last failure of a slot; empty if there was none.
    pub(super) fn reason(&self, slot: usize) -> Bytes {
        self.reasons.get(&(slot as u8)).cloned().unwrap_or_default()
    }

    /// The last failure of a slot, not copied; empty if there was none.
    pub(super) fn reason_bytes(&self, slot: usize) -> &[u8] {
        self.reasons.get(&(slot as u8)).map_or(&[], |text| text)
    }

    /// Sets where the body of a slot is; where it was said to be before.
    pub(super) fn set_location(&mut self, slot: usize, at: BodyLocation) -> Option<BodyLocation> {
        if self.locations.is_empty() {
            self.locations = vec![None; SLOTS];
        }
        self.locations[slot].replace(at)
    }

    /// The slots of a class that is a state, rising.
    pub(super) fn of_class(&self, class: usize) -> impl Iterator<Item = usize> + use<> {
        bits(self.states[class])
    }

    /// The jobs that sessions hold: their slots and their owners.
    pub(super) fn owned(&self) -> impl Iterator<Item = (usize, u32)> {
        let owners = self
            .of_class(IN_FLIGHT)
            .map(|slot| (slot, self.records[slot].owner));
        owners.filter(|(_, owner)| *owner != 0)
    }

    /// The oldest pending slot.
    pub(super) fn first_ready(&self) -> Option<usize> {
        let ready = self.states[..PRIORITIES].iter();
        bits(ready.fold(0, |all, one| all | one)).next()
    }

    /// The first slot that is due at `when` in an order.
    pub(super) fn due_slot(&self, order: Order, when: u64) -> Option<usize> {
        let is_due = |slot: &usize| order.when(&self.records[*slot]) == Some(when);
        bits(self.waiting[order as usize]).find(is_due)
    }

    /// Puts a job in a free slot.
    pub(super) fn insert(&mut self, slot: usize, record: Record, body: StoredBody) {
        assert!(
            self.live & 1 << slot == 0,
            "slot {slot} is live already in state {:?}",
            self.records[slot].state
        );
        self.live |= 1 << slot;
        self.records[slot] = record;
        self.held_bytes += held_bytes(&body);
        self.bodies[slot] = Some(body);
        self.payload_bytes += u64::from(record.payload_len);
        self.enter(slot);
    }

    fn remove(&mut self, slot: usize) -> (Record, StoredBody, Option<BodyLocation>) {
        assert!(self.live & 1 << slot != 0, "slot {slot} is not live");
        self.leave(slot);
        self.live &= !(1 << slot);
        let record = std::mem::take(&mut self.records[slot]);
        let body = self.bodies[slot].take().expect("a live job has a body");
        self.payload_bytes -= u64::from(record.payload_len);
        self.held_bytes -= held_bytes(&body);
        let location = self.locations.get_mut(slot).and_then(Option::take);
        if !self.reasons.is_empty() {
            self.set_reason(slot, Bytes::new());
        }
        if self.live == 0 {
            // Free slots are zero and empty, so what has become empty is as good as new.
            self.locations = Vec::new();
        }
        (record, body, location)
    }

    /// Changes the record of a live slot; how it was before, and is now.
    fn change(&mut self, slot: usize, change: impl FnOnce(&mut Record)) -> (Record, Record) {
        let before = self.records[slot];
        assert!(before.state.is_some(), "slot {slot} is not live");
        self.leave(slot);
        change(&mut self.records[slot]);
        self.enter(slot);
        (before, self.records[slot])
    }

    fn enter(&mut self, slot: usize) {
        let record = &self.records[slot];
        let state = record.state.expect("a live job has a state");
        let class = class_of(state, record.priority);
        self.states[class] |= 1 << slot;
        self.classes |= 1 << class;
        for order in Order::of_state(state) {
            if let Some(when) = order.when(record) {
                self.waiting[*order as usize] |= 1 << slot;
                let first = &mut self.dues[*order as usize];
                *first = when.min(*first);
            }
        }
    }

    fn leave(&mut self, slot: usize) {
        let record = &self.records[slot];
        let state = record.state.expect("a live job has a state");
        let class = class_of(state, record.priority);
        self.states[class] &= !(1 << slot);
        if self.states[class] == 0 {
            self.classes &= !(1 << class);
        }
        for order in Order::of_state(state) {
            self.waiting[*order as usize] &= !(1 << slot);
            if self.waiting[*order as usize] == 0 {
                self.dues[*order as usize] = NEVER;
            }
        }
    }

    /// Sets the last failure of a live slot; empty takes it away.
    pub(super) fn set_reason(&mut self, slot: usize, reason: Bytes) {
        if reason.is_empty() {
            self.reasons.remove(&(slot as u8));
        } else {
            self.reasons.insert(slot as u8, reason);
        }
        if self.reasons.is_empty() {
            self.classes &= !(1 << REASONED);
        } else {
            self.classes |= 1 << REASONED;
        }
    }

    /// Proves that classes and orders are what the records say.
    ///
    /// # Errors
    /// The first that is not, as a sentence.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut anew = Self::default();
        for slot in self.live_slots() {
            anew.insert(slot, self.records[slot], self.body(slot).clone());
            anew.set_reason(slot, self.reason(slot));
        }
        let told = |leaf: &Self| {
            let (states, waiting) = (leaf.states, leaf.waiting);
            let bytes = (leaf.payload_bytes, leaf.held_bytes);
            (states, leaf.classes, waiting, bytes)
        };
        if told(self) != told(&anew) {
            let (kept, derived) = (told(self), told(&anew));
            return Err(format!("its classes are {kept:?}, records say {derived:?}"));
        }
        for (bound, first) in self.dues.into_iter().zip(anew.dues) {
            if bound > first || (bound == NEVER) != (first == NEVER) {
                return Err(format!("{bound} is no bound of {first}, its first time"));
            }
        }
        Ok(())
    }
}

/// The leaves of a partition, by number. Cloning shares all of them.
pub(super) type Leaves = Tree<Leaf>;

impl Tree<Leaf> {
    /// The record of a live job.
    pub(super) fn record(&self, seq: u64) -> Option<&Record> {
        let record = &self.get(leaf_of(seq))?.records[slot_of(seq)];
        record.state.is_some().then_some(record)
    }

    /// The record of a job in flight. Its leaf is here, as is that of every such job: they are given back
    /// with their session, and tokens without a job are refused without a look at the disk.
    pub(super) fn in_flight(&self, seq: u64) -> Option<&Record> {
        let Some(Seen::Here(leaf)) = self.page(leaf_of(seq)) else {
            return None;
        };
        let record = &leaf.records[slot_of(seq)];
        (record.state == Some(JobState::InFlight)).then_some(record)
    }

    /// Puts a job in its slot, which must be free.
    pub(super) fn insert(&mut self, seq: u64, record: Record, body: StoredBody) {
        self.update(leaf_of(seq), |leaf| leaf.insert(slot_of(seq), record, body));
    }

    /// Takes a live job out; its leaf goes with its last job. Where its body was on this node's disk is
    /// told, too.
    pub(super) fn remove(&mut self, seq: u64) -> (Record, StoredBody, Option<BodyLocation>) {
        self.update(leaf_of(seq), |leaf| leaf.remove(slot_of(seq)))
    }

    /// Changes the record of a live job; how it was before, and is now.
    pub(super) fn change(
        &mut self,
        seq: u64,
        change: impl FnOnce(&mut Record),
    ) -> (Record, Record) {
        self.update(leaf_of(seq), |leaf| leaf.change(slot_of(seq), change))
    }

    /// Sets the last failure of a live job; empty takes it away.
    pub(super) fn set_reason(&mut self, seq: u64, reason: Bytes) {
        self.update(leaf_of(seq), |leaf| leaf.set_reason(slot_of(seq), reason));
    }

    /// The job that a lease grants next: the oldest of the first priority that has one.
    pub(super) fn first_ready(&self) -> Option<u64> {
        let classes = self.summary().classes;
        let first = (0..PRIORITIES).find(|class| classes & 1 << class != 0)?;
        self.of_class(first, 0).next()
    }

    /// The jobs of a state from a sequence on, rising; pending ones of this priority.
    pub(super) fn of_state(
        &self,
        state: JobState,
        priority: u8,
        from: u64,
    ) -> impl Iterator<Item = u64> {
        self.of_class(class_of(state, priority), from)
    }

    /// Whether the leaves of all jobs in flight are here.
    pub(super) fn all_in_flight_are_here(&self) -> bool {
        let mut absent = self.all_absent(0, |summary| summary.classes & 1 << IN_FLIGHT != 0);
        absent.next().is_none()
    }

    /// The leaf with the oldest job that a lease could grant.
    pub(super) fn oldest_ready(&self) -> Option<(u64, Seen<'_, Leaf>)> {
        self.look(0, |summary| summary.classes & READY != 0)
    }

    fn of_class(&self, class: usize, from: u64) -> impl Iterator<Item = u64> {
        let (first, slot) = (leaf_of(from), slot_of(from));
        let leaves = self.wanted_from(first, move |summary| summary.classes & 1 << class != 0);
        leaves.flat_map(move |(number, leaf)| {
            let skipped = if number == first { slot } else { 0 };
            let slots = leaf.states[class] & (u64::MAX << skipped);
            bits(slots).map(move |slot| number * LEAF_JOBS + slot as u64)
        })
    }

    /// The leaves from `number` on that have a last failure, rising.
    pub(super) fn reasoned_from(&self, number: u64) -> impl Iterator<Item = (u64, &Leaf)> {
        self.wanted_from(number, |summary| summary.classes & 1 << REASONED != 0)
    }

    /// The job that is due first in an order, whose first time is exact; of several, the oldest.
    pub(super) fn due_first(&mut self, order: Order) -> Option<u64> {
        self.settle(order as usize);
        let (number, leaf) = self.first_due(order as usize)?;
        let slot = leaf.due_slot(order, leaf.first_due(order as usize));
        let slot = slot.expect("it was just looked for");
        Some(number * LEAF_JOBS + slot as u64)
    }

    /// Every live job, rising.
    pub(super) fn jobs(&self) -> impl Iterator<Item = (u64, &Record)> {
        self.from(0).flat_map(|(number, leaf)| {
            leaf.live_slots()
                .map(move |slot| (number * LEAF_JOBS + slot as u64, &leaf.records[slot]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::body::encode_body;
    use crate::queue::view::Body;

    fn body() -> StoredBody {
        StoredBody::of_checked(&encode_body(&Body::default()))
    }

    fn pending(priority: u8) -> Record {
        Record {
            state: Some(JobState::Pending),
            priority,
            max_attempts: 1,
            ..Record::default()
        }
    }

    #[test]
    fn a_leaf_goes_with_its_last_job() {
        let mut leaves = Leaves::default();
        for seq in [0, 63, 64, 5000] {
            leaves.insert(seq, pending(0), body());
        }
        let numbers = |leaves: &Leaves| leaves.from(0).map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(numbers(&leaves), [0, 1, 78]);
        assert_eq!(leaves.from(2).map(|(n, _)| n).collect::<Vec<_>>(), [78]);
        leaves.remove(0);
        assert_eq!(numbers(&leaves), [0, 1, 78]);
        leaves.remove(63);
        leaves.remove(5000);
        assert_eq!(numbers(&leaves), [1]);
        leaves.remove(64);
        assert_eq!(numbers(&leaves), [0; 0]);
    }

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut leaves = Leaves::default();
        leaves.insert(7, pending(0), body());
        let frozen = leaves.clone();
        leaves.change(7, |record| record.attempts = 1);
        leaves.insert(8, pending(0), body());
        assert_eq!(frozen.record(7), Some(&pending(0)));
        assert_eq!(frozen.record(8), None);
    }

    #[test]
    fn the_oldest_of_the_first_priority_is_ready_first() {
        let mut leaves = Leaves::default();
        assert_eq!(leaves.first_ready(), None);
        for (seq, priority) in [(9_000, 1), (3, 4), (70, 1), (71, 4)] {
            leaves.insert(seq, pending(priority), body());
        }
        let mut order = Vec::new();
        while let Some(seq) = leaves.first_ready() {
            order.push(seq);
            leaves.remove(seq);
        }
        assert_eq!(order, [70, 9_000, 3, 71]);
    }

    #[test]
    fn jobs_of_a_class_come_in_order_over_leaves() {
        let mut leaves = Leaves::default();
        for seq in [200, 64, 0, 63, 65] {
            leaves.insert(seq, pending(2), body());
        }
        leaves.insert(66, pending(3), body());
        let from = |seq| {
            let jobs = leaves.of_state(JobState::Pending, 2, seq);
            jobs.collect::<Vec<_>>()
        };
        assert_eq!(from(0), [0, 63, 64, 65, 200]);
        assert_eq!(from(63), [63, 64, 65, 200]);
        assert_eq!(from(66), [200]);
        assert_eq!(from(201), [0; 0]);
        assert_eq!(from(1 << 56), [0; 0]);
    }

    #[test]
    fn what_is_due_first_is_known_as_times_come_and_go() {
        let mut leaves = Leaves::default();
        let delayed = |when, wall| Record {
            state: Some(JobState::Delayed),
            when,
            wall,
            expires_at: 40,
            ..pending(0)
        };
        for (seq, when, wall) in [
            (1, 30, false),
            (200, 20, false),
            (90, 20, false),
            (2, 9, true),
        ] {
            leaves.insert(seq, delayed(when, wall), body());
        }
        assert_eq!(leaves.due_first(Order::RunAts), Some(2));
        assert_eq!(leaves.due_first(Order::Delays), Some(90));
        assert_eq!(leaves.due_first(Order::Ttls), Some(1));
        assert_eq!(leaves.due_first(Order::Leases), None);
        leaves.change(90, |record| record.when = 21);
        assert_eq!(leaves.due_first(Order::Delays), Some(200));
        leaves.remove(200);
        assert_eq!(leaves.due_first(Order::Delays), Some(90));
        assert_eq!(leaves.summary().dues, [21, 9, NEVER, 40]);
        for (_, leaf) in leaves.from(0) {
            assert_eq!(leaf.check(), Ok(()));
        }
    }
}
