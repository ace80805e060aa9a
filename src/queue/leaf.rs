//! Leaves: 64 consecutive jobs of a partition, with their bodies; and the map of them.
//!
//! Leaf `n` holds the sequences `64 n .. 64 n + 64`. A leaf without a live job does not exist. Both
//! a leaf and the block of 64 leaves above it are shared with frozen states and copied when they
//! change, so that freezing costs one pointer for each 4096 jobs.
//!
//! Locations of bodies are local to a node: never in a page, never in a hash.

use crate::base::limits::LEAF_JOBS;
use crate::queue::body::StoredBody;
use crate::queue::record::Record;
use crate::queue::view::BodyLocation;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

const SLOTS: usize = LEAF_JOBS as usize;
const BLOCK_LEAVES: u64 = 64;

/// 64 jobs.
#[derive(Clone)]
pub(super) struct Leaf {
    /// Bit n: slot n is live.
    live: u64,
    records: [Record; SLOTS],
    bodies: [Option<StoredBody>; SLOTS],
    /// Empty until the first body has a location, then one per slot.
    locations: Vec<Option<BodyLocation>>,
    /// Slot to the last failure; never an empty text.
    reasons: BTreeMap<u8, Bytes>,
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
    fn new() -> Self {
        Self {
            live: 0,
            records: [Record::default(); SLOTS],
            bodies: [const { None }; SLOTS],
            locations: Vec::new(),
            reasons: BTreeMap::new(),
        }
    }

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

    /// Where the body of a slot is on this node's disk.
    pub(super) fn location(&self, slot: usize) -> Option<BodyLocation> {
        self.locations.get(slot).copied().flatten()
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

    /// The record of a live slot, to change.
    pub(super) fn record_mut(&mut self, slot: usize) -> &mut Record {
        &mut self.records[slot]
    }

    /// Sets where the body of a slot is.
    pub(super) fn set_location(&mut self, slot: usize, at: BodyLocation) {
        if self.locations.is_empty() {
            self.locations = vec![None; SLOTS];
        }
        self.locations[slot] = Some(at);
    }
}

/// The set bits of a word, rising.
pub(super) fn bits(word: u64) -> impl Iterator<Item = usize> + use<> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
        rest &= rest - 1;
        Some(bit)
    })
}

#[derive(Clone)]
struct Block {
    /// Bit n: leaf n exists.
    used: u64,
    /// Bit n: leaf n has a last failure.
    reasoned: u64,
    leaves: [Option<Arc<Leaf>>; BLOCK_LEAVES as usize],
}

impl Block {
    fn new() -> Self {
        Self {
            used: 0,
            reasoned: 0,
            leaves: [const { None }; BLOCK_LEAVES as usize],
        }
    }
}

/// The leaves of a partition, by number. Cloning shares all of them.
#[derive(Default)]
pub(super) struct Leaves {
    blocks: BTreeMap<u64, Arc<Block>>,
    /// The last leaf and block that became empty, for the next: a queue that is nearly empty would
    /// else make and drop a leaf for each job.
    spare_leaf: Option<Arc<Leaf>>,
    spare_block: Option<Arc<Block>>,
}

impl Clone for Leaves {
    fn clone(&self) -> Self {
        Self {
            blocks: self.blocks.clone(),
            spare_leaf: None,
            spare_block: None,
        }
    }
}

impl Leaves {
    /// The leaf of this number.
    pub(super) fn leaf(&self, number: u64) -> Option<&Leaf> {
        let block = self.blocks.get(&(number / BLOCK_LEAVES))?;
        block.leaves[(number % BLOCK_LEAVES) as usize].as_deref()
    }

    /// The leaf of this number, to change; copied first if a frozen state shares it.
    pub(super) fn leaf_mut(&mut self, number: u64) -> Option<&mut Leaf> {
        let block = self.blocks.get_mut(&(number / BLOCK_LEAVES))?;
        let slot = (number % BLOCK_LEAVES) as usize;
        block.leaves[slot].as_ref()?;
        Arc::make_mut(block).leaves[slot]
            .as_mut()
            .map(Arc::make_mut)
    }

    /// The record of a live job.
    pub(super) fn record(&self, seq: u64) -> Option<&Record> {
        let record = &self.leaf(leaf_of(seq))?.records[slot_of(seq)];
        record.state.is_some().then_some(record)
    }

    /// Puts a job in its slot, which must be free.
    pub(super) fn insert(&mut self, seq: u64, record: Record, body: StoredBody) {
        let (number, slot) = (leaf_of(seq), slot_of(seq));
        let spare = &mut self.spare_block;
        let fresh = || spare.take().unwrap_or_else(|| Arc::new(Block::new()));
        let block = self
            .blocks
            .entry(number / BLOCK_LEAVES)
            .or_insert_with(fresh);
        let block = Arc::make_mut(block);
        let place = (number % BLOCK_LEAVES) as usize;
        block.used |= 1 << place;
        let spare = &mut self.spare_leaf;
        let fresh = || spare.take().unwrap_or_else(|| Arc::new(Leaf::new()));
        let leaf = block.leaves[place].get_or_insert_with(fresh);
        let leaf = Arc::make_mut(leaf);
        assert!(
            leaf.live & 1 << slot == 0,
            "sequence {seq} is live already in state {:?}",
            leaf.records[slot].state
        );
        leaf.live |= 1 << slot;
        leaf.records[slot] = record;
        leaf.bodies[slot] = Some(body);
    }

    /// Takes a live job out; its leaf goes with its last job.
    pub(super) fn remove(&mut self, seq: u64) -> (Record, StoredBody) {
        let (number, slot) = (leaf_of(seq), slot_of(seq));
        let leaf = self.leaf_mut(number).expect("a live job has its leaf");
        assert!(
            leaf.live & 1 << slot != 0,
            "sequence {seq} is not live in leaf {number}"
        );
        leaf.live &= !(1 << slot);
        let record = std::mem::take(&mut leaf.records[slot]);
        let body = leaf.bodies[slot].take().expect("a live job has a body");
        if let Some(location) = leaf.locations.get_mut(slot) {
            *location = None;
        }
        let empty = leaf.live == 0;
        if !leaf.reasons.is_empty() {
            self.set_reason(seq, Bytes::new());
        }
        if empty {
            let key = number / BLOCK_LEAVES;
            let block = self.blocks.get_mut(&key).expect("a leaf has its block");
            let block = Arc::make_mut(block);
            let place = (number % BLOCK_LEAVES) as usize;
            // Free slots are zero and empty, so what has become empty is as good as new.
            let mut leaf = block.leaves[place].take();
            if let Some(leaf) = leaf.as_mut().and_then(Arc::get_mut) {
                leaf.locations = Vec::new();
            }
            self.spare_leaf = leaf;
            block.used &= !(1 << place);
            if block.used == 0 {
                self.spare_block = self.blocks.remove(&key);
            }
        }
        (record, body)
    }

    /// Sets the last failure of a job whose leaf exists; empty takes it away.
    pub(super) fn set_reason(&mut self, seq: u64, reason: Bytes) {
        let (number, slot) = (leaf_of(seq), slot_of(seq) as u8);
        let block = self
            .blocks
            .get_mut(&(number / BLOCK_LEAVES))
            .expect("a leaf has its block");
        let block = Arc::make_mut(block);
        let place = (number % BLOCK_LEAVES) as usize;
        let leaf = Arc::make_mut(block.leaves[place].as_mut().expect("its leaf exists"));
        if reason.is_empty() {
            leaf.reasons.remove(&slot);
        } else {
            leaf.reasons.insert(slot, reason);
        }
        if leaf.reasons.is_empty() {
            block.reasoned &= !(1 << place);
        } else {
            block.reasoned |= 1 << place;
        }
    }

    /// The leaves from `number` on, rising.
    pub(super) fn from(&self, number: u64) -> impl Iterator<Item = (u64, &Leaf)> {
        self.marked_from(number, |block| block.used)
    }

    /// The leaves from `number` on that have a last failure, rising.
    pub(super) fn reasoned_from(&self, number: u64) -> impl Iterator<Item = (u64, &Leaf)> {
        self.marked_from(number, |block| block.reasoned)
    }

    fn marked_from(
        &self,
        number: u64,
        mark: impl Fn(&Block) -> u64,
    ) -> impl Iterator<Item = (u64, &Leaf)> {
        let first = number / BLOCK_LEAVES;
        self.blocks
            .range(first..)
            .flat_map(move |(key, block)| {
                let base = key * BLOCK_LEAVES;
                bits(mark(block)).map(move |place| {
                    let leaf = block.leaves[place]
                        .as_deref()
                        .expect("a used place has its leaf");
                    (base + place as u64, leaf)
                })
            })
            .skip_while(move |(at, _)| *at < number)
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
    use crate::queue::view::JobState;

    fn body() -> StoredBody {
        StoredBody::of_checked(&encode_body(&Body::default()))
    }

    fn pending() -> Record {
        Record {
            state: Some(JobState::Pending),
            max_attempts: 1,
            ..Record::default()
        }
    }

    #[test]
    fn a_leaf_goes_with_its_last_job_and_blocks_go_with_their_last_leaf() {
        let mut leaves = Leaves::default();
        for seq in [0, 63, 64, 5000] {
            leaves.insert(seq, pending(), body());
        }
        let numbers = |leaves: &Leaves| leaves.from(0).map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(numbers(&leaves), [0, 1, 78]);
        assert_eq!(leaves.from(2).map(|(n, _)| n).collect::<Vec<_>>(), [78]);
        leaves.remove(0);
        assert_eq!(numbers(&leaves), [0, 1, 78]);
        leaves.remove(63);
        leaves.remove(5000);
        assert_eq!(numbers(&leaves), [1]);
        assert_eq!(leaves.blocks.len(), 1);
        leaves.remove(64);
        assert!(leaves.blocks.is_empty());
    }

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut leaves = Leaves::default();
        leaves.insert(7, pending(), body());
        let frozen = leaves.clone();
        leaves.leaf_mut(0).expect("there").record_mut(7).attempts = 9;
        leaves.insert(8, pending(), body());
        assert_eq!(frozen.record(7), Some(&pending()));
        assert_eq!(frozen.record(8), None);
    }
}
