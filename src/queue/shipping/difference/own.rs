//! What this node has itself at the places that are compared: looked for, read where it is on the disk alone,
//! and taken off what is alive where it does not stay.

use super::{Compare, Difference, NamedBranch, Own, OwnRead, Purpose, Task};
use crate::base::limits::NODE_BRANCHES;
use crate::queue::body::StoredBody;
use crate::queue::needs::PageWant;
use crate::queue::page::{LEAF_BYTES, read_leaf};
use crate::queue::record::Record;
use crate::queue::residence::{AbsentPage, Holds, StoredPart};
use crate::queue::shipping::{AnyTree, Here};
use crate::queue::tree::BITS;
use crate::queue::view::{BodyLocation, PageKind, StoredPage};
use crate::queue::writing::put_summary;
use std::collections::BTreeMap;

/// Parts that are read at a time.
const READS_MAX: usize = 64;

/// The body of a job that is here.
#[derive(Debug)]
pub(super) struct OwnBody {
    /// Where it is on this node's disk, if it is.
    pub(super) at: Option<BodyLocation>,
    /// It, if it is in memory.
    pub(super) body: Option<StoredBody>,
    /// Length and checksum of its payload.
    payload: (u32, u32),
}

impl OwnBody {
    /// Whether it can be the body of a record's job.
    pub(super) fn is_of(&self, record: &Record) -> bool {
        self.payload == (record.payload_len, record.payload_crc)
    }
}

/// The bodies of a page's jobs, by slot; none of a page that is no leaf.
pub(super) fn bodies(holds: &Holds) -> BTreeMap<u8, OwnBody> {
    match holds {
        Holds::Leaf(leaf) => {
            let bodies = leaf.live_slots().map(|slot| {
                let record = &leaf.records()[slot];
                let body = OwnBody {
                    at: leaf.location(slot),
                    body: Some(leaf.body(slot).clone()),
                    payload: (record.payload_len, record.payload_crc),
                };
                (slot as u8, body)
            });
            bodies.collect()
        }
        Holds::Places(bytes, places) => {
            let places: BTreeMap<u8, BodyLocation> = places.iter().copied().collect();
            let records = read_leaf(&bytes[..bytes.len().min(LEAF_BYTES)]);
            let records = records.unwrap_or_default().into_iter();
            let bodies = records.filter_map(|(slot, record)| {
                let slot = slot as u8;
                let body = OwnBody {
                    at: Some(*places.get(&slot)?),
                    body: None,
                    payload: (record.payload_len, record.payload_crc),
                };
                Some((slot, body))
            });
            bodies.collect()
        }
        Holds::Keys(_) | Holds::Finished(_) | Holds::Node(_) => BTreeMap::new(),
    }
}

impl Difference {
    fn own_tree(&self, tree: usize) -> Option<AnyTree<'_>> {
        let key = self.trees[tree].key;
        AnyTree::of(&self.own, key.kind, (key.queue, key.partition))
    }

    pub(super) fn own_at(&self, tree: usize, level: u8, number: u64) -> Here {
        let own = self.own_tree(tree);
        own.map_or(Here::Nothing, |own| own.at(level, number))
    }

    /// The slots of a place below which something is here.
    pub(super) fn own_slots(&self, tree: usize, level: u8, number: u64) -> Vec<u8> {
        match self.own_at(tree, level, number) {
            Here::Node(_, slots) => slots,
            Here::Above => {
                let own = self.own_tree(tree).and_then(|own| own.top());
                let (top, at) = own.expect("its root is below");
                let below = at >> (BITS * u32::from(level - 1 - top));
                vec![(below % NODE_BRANCHES) as u8]
            }
            _ => Vec::new(),
        }
    }

    /// The branches of a node that is here and has not changed since it was stored.
    pub(super) fn own_branches(&self, it: &Compare, slots: &[u8]) -> Option<Vec<NamedBranch>> {
        let own = self.own_tree(it.tree)?;
        let branches = slots.iter().map(|slot| {
            let number = it.number * NODE_BRANCHES + u64::from(*slot);
            let (summary, stored) = own.branch(it.level - 1, number)?;
            Some((*slot, put_summary(&summary), stored?.hash))
        });
        branches.collect()
    }

    // What is alive of files.

    /// Something that was here does not stay.
    pub(super) fn take_off(&mut self, tree: usize, stored: Option<StoredPage>) {
        let runs = &mut self.trees[tree].runs;
        if let Some(stored) = stored
            && let Some(bytes) = runs.get_mut(&stored.file)
        {
            *bytes -= u64::from(stored.len);
            if *bytes == 0 {
                runs.remove(&stored.file);
            }
        }
    }

    /// The places of these bodies do not stay, unless they are added again.
    pub(super) fn take_bodies_off(&mut self, tree: usize, bodies: &BTreeMap<u8, OwnBody>) {
        let payloads = &mut self.trees[tree].payloads;
        for at in bodies.values().filter_map(|body| body.at) {
            if let Some(used) = payloads.get_mut(&at.file) {
                *used = (used.0 - at.disk_bytes(), used.1 - 1);
                if used.1 == 0 {
                    payloads.remove(&at.file);
                }
            }
        }
    }

    pub(super) fn add(&mut self, tree: usize, stored: StoredPage) {
        let runs = &mut self.trees[tree].runs;
        *runs.entry(stored.file).or_default() += u64::from(stored.len);
    }

    pub(super) fn add_bodies(&mut self, tree: usize, bodies: &[(u64, u64, u64)]) {
        for (file, bytes, count) in bodies {
            let used = self.trees[tree].payloads.entry(*file).or_default();
            *used = (used.0 + bytes, used.1 + count);
        }
    }

    /// What is at a place here, and all below it, does not stay. It is on the disk alone if it is `stored`.
    pub(super) fn retire(
        &mut self,
        tree: usize,
        (level, number): (u8, u64),
        stored: Option<StoredPage>,
    ) {
        let here = match stored {
            Some(stored) => Here::Absent(stored),
            None => self.own_at(tree, level, number),
        };
        self.take_off(tree, here.stored());
        let below = |slot: &u8| number * NODE_BRANCHES + u64::from(*slot);
        match here {
            Here::Nothing | Here::Below => {}
            Here::Above => {
                let top = self.own_tree(tree).and_then(|own| own.top());
                let (level, number) = top.expect("its root is below");
                self.tasks.push(Task::Retire {
                    tree,
                    level,
                    number,
                    stored: None,
                });
            }
            Here::Node(_, slots) => self.tasks.extend(slots.iter().map(|slot| Task::Retire {
                tree,
                level: level - 1,
                number: below(slot),
                stored: None,
            })),
            Here::Page(holds, _) => self.take_bodies_off(tree, &bodies(&holds)),
            Here::Absent(stored) => {
                let key = self.key(tree, number);
                // Of others only the page itself counts.
                if level > 0 || key.kind == PageKind::Leaf {
                    let at = AbsentPage { key, level, stored };
                    let purpose = Purpose::Retire { tree };
                    self.to_read.push(OwnRead { at, purpose });
                }
            }
        }
    }

    // What is read.

    /// What of this node's own is to be read next, without bodies; nothing while some is being read.
    pub fn reads(&mut self) -> Vec<PageWant> {
        if !self.reading.is_empty() {
            return Vec::new();
        }
        let count = if self.reads_one { 1 } else { READS_MAX };
        let first = self.to_read.len().saturating_sub(count);
        self.reading = self.to_read.split_off(first);
        let reading = self.reading.iter();
        reading.map(|read| PageWant::only(read.at)).collect()
    }

    /// What was to be read was, or cannot be: then it is read one by one, and what cannot be read alone is
    /// damaged, and wanted like what is not here.
    pub fn read(&mut self, result: Result<Vec<StoredPart>, String>) {
        let reading = std::mem::take(&mut self.reading);
        let Ok(parts) = result else {
            self.reads_one = reading.len() > 1;
            if self.reads_one {
                self.to_read.extend(reading);
                return;
            }
            for read in reading {
                self.damaged.insert((read.at.key, read.at.level));
                if let Purpose::Compare(it) = read.purpose {
                    self.want(&it, Own::Nothing);
                }
            }
            return;
        };
        for read in reading {
            match parts.iter().find(|part| part.at == read.at) {
                Some(part) => self.take_own(&read.at, &part.holds, read.purpose),
                None => self.to_read.push(read),
            }
        }
    }

    fn take_own(&mut self, at: &AbsentPage, holds: &Holds, purpose: Purpose) {
        match (holds, purpose) {
            (Holds::Node(branches), Purpose::Compare(it)) => {
                let places = branches.iter();
                let places = places.map(|(slot, _, stored)| (*slot, *stored));
                let own = Own::Branches(places.collect());
                let named = branches
                    .iter()
                    .map(|(slot, summary, stored)| (*slot, put_summary(summary), stored.hash));
                // The same, but for something damaged below it.
                if at.stored.hash == it.hash {
                    let named = named.collect();
                    return self.open_node(&it, named, own);
                }
                self.want(&it, own);
            }
            (Holds::Node(branches), Purpose::Retire { tree }) => {
                self.tasks
                    .extend(branches.iter().map(|(slot, _, stored)| Task::Retire {
                        tree,
                        level: 0,
                        number: at.key.number * NODE_BRANCHES + u64::from(*slot),
                        stored: Some(*stored),
                    }));
            }
            (holds, Purpose::Compare(it)) => {
                let bodies = bodies(holds);
                self.take_bodies_off(it.tree, &bodies);
                self.want(&it, Own::Bodies(bodies));
            }
            (holds, Purpose::Retire { tree }) => self.take_bodies_off(tree, &bodies(holds)),
        }
    }
}
