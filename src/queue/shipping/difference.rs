//! Who lacks the state: holds what another names against what is here, wants what differs, and hands out what
//! is to be written, bottom up, until all of the other's state is on this node's disk.
//!
//! ```text
//!   names ─> Compare ─┬─ same hash at this place ───────────────> stays: nothing below is looked at
//!                     ├─ node ─> wanted ─> its branches ─> Compare, each
//!                     └─ page ─> (its own bodies found) ─> wanted ─> bodies, page written ─┐
//!   node written once all below it is <────────────────────────────────────────────────────┘
//! ```
//!
//! Places are compared depth first, so that few nodes are open at a time, whatever there is to compare.
//!
//! # What is counted
//!
//! A tree knows how much of each file it keeps alive. It begins with what its own tree here keeps; what of
//! that does not stay is taken off, down to the bodies of jobs that are gone, and what is written is added. So
//! parts that only name others are read here too, without bodies. What of them cannot be read cannot be taken
//! off: its files count as alive until a checkpoint leaves them.
//!
//! # Invariants
//! - Wants are answered in their order. What was handed out has its place before the next is.
//! - What is here is believed by place and hash; a part that is known to be damaged, and its bodies, never.

mod own;
mod taking;

use super::{AnyTree, Here, NamedBranch, NamedTree, Names, Wanted, is_of_tree, page_bytes};
use crate::base::bugs::{self, Bug};
use crate::base::checksum::Hash128;
use crate::base::limits::{CHECKPOINT_WANTS_MAX, NODE_BRANCHES};
use crate::queue::body::StoredBody;
use crate::queue::frozen::{FrozenState, Shared};
use crate::queue::record::Record;
use crate::queue::residence::{AbsentPage, Holds};
use crate::queue::tree::BITS;
use crate::queue::view::{BodyLocation, PageKey, PageKind, StoredPage};
use crate::queue::writing::SummaryBytes;
use bytes::Bytes;
use own::OwnBody;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Pages that were written for a state that was given up before it was whole, by key and hash.
#[derive(Debug, Default)]
pub struct Found(BTreeMap<(PageKey, Hash128), FoundPage>);

impl Found {
    /// Pages with these keys are not believed any more.
    pub fn forget<'a>(&mut self, damaged: impl Iterator<Item = &'a (PageKey, u8)>) {
        let keys: BTreeSet<PageKey> = damaged.map(|(key, _)| *key).collect();
        self.0.retain(|(key, _), _| !keys.contains(key));
    }
}

#[derive(Debug)]
struct FoundPage {
    stored: StoredPage,
    /// Payload files with the bytes and the number of the bodies of its jobs.
    payloads: Vec<(u64, u64, u64)>,
}

/// Where something is named.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// Among the pages of which a group has few.
    Flat,
    /// As the highest node of a tree.
    Top,
    /// In a branch of an open node.
    Branch { node: usize, slot: u8 },
}

/// What is to be done, the last first.
#[derive(Debug)]
enum Task {
    Compare(Compare),
    /// What is here at a place and not in the other state: it is taken off what is alive. It is on the disk
    /// alone, and nobody knows of it here, if it is `stored`.
    Retire {
        tree: usize,
        level: u8,
        number: u64,
        stored: Option<StoredPage>,
    },
    /// Likewise whatever is not at or below the highest node of the other tree.
    RetireAround {
        tree: usize,
        level: u8,
        number: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Compare {
    tree: usize,
    level: u8,
    number: u64,
    hash: Hash128,
    target: Target,
    /// What is here, if that is told by a node that was read; `None`: it is looked for.
    own: Option<Option<StoredPage>>,
}

/// What a place has here.
#[derive(Debug)]
enum Own {
    /// Nothing that would be of use.
    Nothing,
    /// A node, which is here, or whose branches are looked for.
    Node,
    /// A node, which was read: what is below it, by slot.
    Branches(BTreeMap<u8, StoredPage>),
    /// A leaf: the bodies of its jobs, by slot.
    Bodies(BTreeMap<u8, OwnBody>),
}

/// Something that is wanted and has not come.
#[derive(Debug)]
struct Asked {
    wanted: Wanted,
    hash: Hash128,
    tree: usize,
    target: Target,
    own: Own,
}

/// Why a part of this node's own is read.
enum Purpose {
    Compare(Compare),
    Retire { tree: usize },
}

struct OwnRead {
    at: AbsentPage,
    purpose: Purpose,
}

/// A node of which something is missing yet.
struct OpenNode {
    tree: usize,
    key: PageKey,
    level: u8,
    hash: Hash128,
    target: Target,
    branches: Vec<(NamedBranch, Option<StoredPage>)>,
    /// Branches without a place.
    left: usize,
}

/// A page that is to be written, after the bodies of its jobs.
struct OpenPage {
    tree: usize,
    key: PageKey,
    hash: Hash128,
    bytes: Bytes,
    target: Target,
    records: BTreeMap<u8, Record>,
    /// Bodies that have a place, rising by slot at the end.
    bodies: Vec<(u8, BodyLocation)>,
    /// Bodies that have none: they come, or are here, in the order of slots.
    left: VecDeque<(u8, Option<StoredBody>)>,
}

/// What was handed out last and has no place yet.
#[derive(Clone, Copy)]
enum Open {
    Body(Whose),
    Page(Whose),
    Node(usize),
}

/// A page that is to be written: the one that comes, or one that is here.
#[derive(Clone, Copy)]
enum Whose {
    Theirs,
    Own,
}

/// A tree of the other state.
struct TreeTo {
    key: PageKey,
    level: u8,
    summary: SummaryBytes,
    stored: Option<StoredPage>,
    runs: BTreeMap<u64, u64>,
    payloads: BTreeMap<u64, (u64, u64)>,
}

/// What another state has and this one lacks.
pub struct Difference {
    own: Arc<Shared>,
    /// Parts of this node's own that are damaged, by key and level.
    damaged: BTreeSet<(PageKey, u8)>,
    trees: Vec<TreeTo>,
    pages: BTreeMap<PageKey, Option<StoredPage>>,
    tasks: Vec<Task>,
    nodes: BTreeMap<usize, OpenNode>,
    next_node: usize,
    /// Open nodes below which all is written.
    whole: Vec<usize>,
    asked: VecDeque<Asked>,
    /// How many of those were told.
    told: usize,
    to_read: Vec<OwnRead>,
    reading: Vec<OwnRead>,
    /// A read has failed: they are read one by one.
    reads_one: bool,
    /// The page that comes, and one that is here and in no file.
    arriving: Option<OpenPage>,
    own_page: Option<OpenPage>,
    body: Option<StoredBody>,
    open: Option<Open>,
    found: Found,
    brought: u64,
    /// Bytes that the last step hashed.
    hashed: usize,
}

impl Difference {
    /// Between the state of this node and what another names. Some pages may be on the disk already from a
    /// time before (`found`), and some of this node's own are damaged, by key and level.
    ///
    /// # Errors
    /// If something is named twice, or in the wrong way.
    pub fn new(
        own: &FrozenState,
        names: &Names,
        found: Found,
        damaged: BTreeSet<(PageKey, u8)>,
    ) -> Result<Self, String> {
        let of_tree = |tree: &NamedTree| (tree.key.kind, tree.key.queue, tree.key.partition);
        let mut trees: Vec<_> = names.trees.iter().map(of_tree).collect();
        trees.sort_unstable();
        let is_named_once = names.pages.windows(2).all(|two| two[0].0 < two[1].0)
            && trees.windows(2).all(|two| two[0] < two[1])
            && names.pages.iter().all(|(key, _)| !is_of_tree(key.kind))
            && names.trees.iter().all(|tree| is_of_tree(tree.key.kind));
        if !is_named_once {
            return Err("something is named twice, or as what it is not".to_owned());
        }
        let mut new = Self {
            own: Arc::clone(&own.shared),
            damaged,
            trees: Vec::new(),
            pages: BTreeMap::new(),
            tasks: Vec::new(),
            nodes: BTreeMap::new(),
            next_node: 0,
            whole: Vec::new(),
            asked: VecDeque::new(),
            told: 0,
            to_read: Vec::new(),
            reading: Vec::new(),
            reads_one: false,
            arriving: None,
            own_page: None,
            body: None,
            open: None,
            found,
            brought: 0,
            hashed: 0,
        };
        for named in names.trees.iter().rev() {
            new.begin_tree(named);
        }
        for (key, hash) in &names.pages {
            new.compare_flat(*key, *hash);
        }
        Ok(new)
    }

    fn begin_tree(&mut self, named: &NamedTree) {
        let tree = self.trees.len();
        let (key, level) = (named.key, named.level);
        let mut to = TreeTo {
            key,
            level,
            summary: named.summary,
            stored: None,
            runs: BTreeMap::new(),
            payloads: BTreeMap::new(),
        };
        let mut around = None;
        let place = (key.queue, key.partition);
        if let Some(own) = AnyTree::of(&self.own, key.kind, place) {
            to.runs = own.run_bytes();
            if key.kind == PageKind::Leaf {
                to.payloads
                    .clone_from(&self.own.partitions[&place].payloads);
            }
            around = own.top();
        }
        self.trees.push(to);
        self.tasks.push(Task::Compare(Compare {
            tree,
            level,
            number: key.number,
            hash: named.hash,
            target: Target::Top,
            own: None,
        }));
        self.tasks
            .extend(around.map(|(level, number)| Task::RetireAround {
                tree,
                level,
                number,
            }));
    }

    fn compare_flat(&mut self, key: PageKey, hash: Hash128) {
        let here = self.own.flat_stored(key);
        let here = here.filter(|stored| stored.hash == hash && !self.damaged.contains(&(key, 0)));
        let here = here.or_else(|| Some(self.found.0.get(&(key, hash))?.stored));
        self.pages.insert(key, here);
        if here.is_none() {
            let (level, held) = (0, 0);
            self.asked.push_back(Asked {
                wanted: Wanted { key, level, held },
                hash,
                tree: 0,
                target: Target::Flat,
                own: Own::Nothing,
            });
        }
    }

    /// Compares up to so many places more, as far as nothing has to come or be read first; how many bytes of
    /// pages it hashed for that.
    pub fn step(&mut self, places: usize) -> usize {
        self.hashed = 0;
        for _ in 0..places {
            let under_way = self.asked.len() + self.to_read.len() + self.reading.len();
            if under_way >= CHECKPOINT_WANTS_MAX || self.own_page.is_some() {
                break;
            }
            match self.tasks.pop() {
                Some(Task::Compare(it)) => self.compare(it),
                Some(Task::Retire {
                    tree,
                    level,
                    number,
                    stored,
                }) => self.retire(tree, (level, number), stored),
                Some(Task::RetireAround {
                    tree,
                    level,
                    number,
                }) => self.retire_around(tree, (level, number)),
                None => break,
            }
        }
        self.hashed
    }

    /// Whether [`Self::step`] would do something.
    #[must_use]
    pub fn can_step(&self) -> bool {
        let under_way = self.asked.len() + self.to_read.len() + self.reading.len();
        !self.tasks.is_empty() && under_way < CHECKPOINT_WANTS_MAX && self.own_page.is_none()
    }

    /// Whether all is here.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.tasks.is_empty()
            && self.asked.is_empty()
            && self.to_read.is_empty()
            && self.reading.is_empty()
            && self.nodes.is_empty()
            && self.arriving.is_none()
            && self.own_page.is_none()
            && self.open.is_none()
    }

    /// Pages that were brought.
    #[must_use]
    pub fn brought(&self) -> u64 {
        self.brought
    }

    /// Whether something is wanted that was not told, and may be.
    #[must_use]
    pub fn has_wants(&self) -> bool {
        self.told < self.asked.len().min(CHECKPOINT_WANTS_MAX)
    }

    /// What is wanted that was not told before, up to `count`: it is answered in this order, behind what was
    /// told.
    pub fn wants(&mut self, count: usize) -> Vec<Wanted> {
        let count = count.min(CHECKPOINT_WANTS_MAX - self.told);
        let new = self.asked.iter().skip(self.told).take(count);
        let new: Vec<Wanted> = new.map(|asked| asked.wanted).collect();
        self.told += new.len();
        new
    }

    /// What was told and is not answered, from the first on.
    pub fn unanswered(&self) -> impl Iterator<Item = Wanted> {
        let told = self.asked.iter().take(self.told);
        told.map(|asked| asked.wanted)
    }

    // Places.

    fn key(&self, tree: usize, number: u64) -> PageKey {
        PageKey {
            number,
            ..self.trees[tree].key
        }
    }

    /// Whether something of this node's own at a place, or below it, is damaged.
    fn is_tainted(&self, key: PageKey, level: u8) -> bool {
        let is_below = |(other, at): &(PageKey, u8)| {
            let of = |key: &PageKey| (key.kind, key.queue, key.partition);
            of(other) == of(&key)
                && *at <= level
                && other.number >> (BITS * u32::from(level - at)) == key.number
        };
        self.damaged.iter().any(is_below)
    }

    fn compare(&mut self, it: Compare) {
        let key = self.key(it.tree, it.number);
        let own = match it.own {
            Some(stored) => stored.map_or(Here::Nothing, Here::Absent),
            None => self.own_at(it.tree, it.level, it.number),
        };
        let stored = own.stored();
        let is_tainted = self.is_tainted(key, it.level);
        if let Some(stored) = stored.filter(|_| !is_tainted) {
            if stored.hash == it.hash {
                return self.put(it.tree, it.target, stored);
            }
            if bugs::on(Bug::PlaceWithoutHash) && it.level == 0 {
                let hash = it.hash;
                return self.put(it.tree, it.target, StoredPage { hash, ..stored });
            }
        }
        if it.level == 0 && self.is_found(&it, key) {
            return match it.own {
                Some(None) => {}
                told => self.retire(it.tree, (0, it.number), told.flatten()),
            };
        }
        let is_damaged = self.damaged.contains(&(key, it.level));
        match own {
            Here::Nothing => self.want(&it, Own::Nothing),
            Here::Above => self.want(&it, Own::Node),
            Here::Node(stored, slots) => {
                self.take_off(it.tree, stored);
                let is_same = stored.is_some_and(|stored| stored.hash == it.hash);
                match self.own_branches(&it, &slots).filter(|_| is_same) {
                    Some(branches) => self.open_node(&it, branches, Own::Node),
                    None => self.want(&it, Own::Node),
                }
            }
            Here::Page(holds, stored) => self.compare_page(&it, &holds, stored, is_tainted),
            Here::Absent(stored) => {
                self.take_off(it.tree, Some(stored));
                let is_leaf = key.kind == PageKind::Leaf;
                if is_damaged || (it.level == 0 && !is_leaf) {
                    return self.want(&it, Own::Nothing);
                }
                let level = it.level;
                let at = AbsentPage { key, level, stored };
                let purpose = Purpose::Compare(it);
                self.to_read.push(OwnRead { at, purpose });
            }
            Here::Below => unreachable!("what is below an absent node is told when that is read"),
        }
    }

    /// A page that is here, in memory.
    fn compare_page(
        &mut self,
        it: &Compare,
        holds: &Holds,
        stored: Option<StoredPage>,
        is_tainted: bool,
    ) {
        self.take_off(it.tree, stored);
        let mut bodies = own::bodies(holds);
        self.take_bodies_off(it.tree, &bodies);
        // What is in memory is whole, wherever its bodies lie.
        if is_tainted {
            bodies.values_mut().for_each(|body| body.at = None);
        }
        // What has not changed since it was stored has that hash.
        let may_be_same = stored.is_none_or(|stored| stored.hash == it.hash);
        let bytes = may_be_same.then(|| page_bytes(holds).expect("it is a page"));
        self.hashed += bytes.as_ref().map_or(0, Bytes::len);
        let Some(bytes) = bytes.filter(|bytes| Hash128::of(bytes) == it.hash) else {
            return self.want(it, Own::Bodies(bodies));
        };
        let key = self.key(it.tree, it.number);
        let mut page = OpenPage::new(key, bytes, (it.tree, it.hash, it.target));
        for (slot, body) in bodies {
            page.carry(slot, body);
        }
        self.own_page = Some(page);
    }

    /// A page that was brought before, for another state.
    fn is_found(&mut self, it: &Compare, key: PageKey) -> bool {
        let Some(found) = self.found.0.get(&(key, it.hash)) else {
            return false;
        };
        let (stored, payloads) = (found.stored, found.payloads.clone());
        self.add(it.tree, stored);
        self.add_bodies(it.tree, &payloads);
        self.put(it.tree, it.target, stored);
        true
    }

    /// What is below the highest node of the other's tree is compared; all around it goes.
    fn retire_around(&mut self, tree: usize, (level, number): (u8, u64)) {
        let (top, at) = (self.trees[tree].level, self.trees[tree].key.number);
        let is_within = level <= top && number >> (BITS * u32::from(top - level)) == at;
        if is_within {
            return;
        }
        let is_above = level > top && at >> (BITS * u32::from(level - top)) == number;
        if !is_above {
            return self.retire(tree, (level, number), None);
        }
        let Here::Node(stored, slots) = self.own_at(tree, level, number) else {
            return;
        };
        self.take_off(tree, stored);
        self.tasks
            .extend(slots.iter().map(|slot| Task::RetireAround {
                tree,
                level: level - 1,
                number: number * NODE_BRANCHES + u64::from(*slot),
            }));
    }

    fn want(&mut self, it: &Compare, own: Own) {
        let is_leaf = it.level == 0 && self.trees[it.tree].key.kind == PageKind::Leaf;
        let own = match own {
            Own::Nothing if is_leaf => Own::Bodies(BTreeMap::new()),
            own => own,
        };
        let held = match &own {
            Own::Bodies(bodies) => bodies.keys().fold(0, |held, slot| held | 1 << slot),
            _ => 0,
        };
        self.asked.push_back(Asked {
            wanted: Wanted {
                key: self.key(it.tree, it.number),
                level: it.level,
                held,
            },
            hash: it.hash,
            tree: it.tree,
            target: it.target,
            own,
        });
    }

    /// It lies there.
    fn put(&mut self, tree: usize, target: Target, stored: StoredPage) {
        match target {
            Target::Flat => unreachable!("a page of a tree is not among the others"),
            Target::Top => self.trees[tree].stored = Some(stored),
            Target::Branch { node, slot } => {
                let open = self.nodes.get_mut(&node).expect("something is missing");
                let mut branches = open.branches.iter_mut();
                let branch = branches.find(|((at, ..), _)| *at == slot);
                branch.expect("it was compared").1 = Some(stored);
                open.left -= 1;
                if open.left == 0 {
                    self.whole.push(node);
                }
            }
        }
    }

    fn open_node(&mut self, it: &Compare, branches: Vec<NamedBranch>, own: Own) {
        let node = self.next_node;
        self.next_node += 1;
        let level = it.level - 1;
        let below = |slot: u8| it.number * NODE_BRANCHES + u64::from(slot);
        let tree = it.tree;
        let told = match &own {
            Own::Branches(told) => Some(told.clone()),
            _ => None,
        };
        let own_slots = match &own {
            Own::Node => self.own_slots(tree, it.level, it.number),
            Own::Branches(told) => told.keys().copied().collect(),
            Own::Nothing | Own::Bodies(_) => Vec::new(),
        };
        let is_gone = |slot: &u8| branches.iter().all(|(other, ..)| other != slot);
        let gone = own_slots.into_iter().filter(is_gone);
        self.tasks.extend(gone.map(|slot| Task::Retire {
            tree,
            level,
            number: below(slot),
            stored: told.as_ref().and_then(|told| told.get(&slot).copied()),
        }));
        let is_unknown = matches!(own, Own::Nothing);
        self.tasks
            .extend(branches.iter().rev().map(|(slot, _, hash)| {
                let told = told.as_ref().map(|told| told.get(slot).copied());
                Task::Compare(Compare {
                    tree,
                    level,
                    number: below(*slot),
                    hash: *hash,
                    target: Target::Branch { node, slot: *slot },
                    own: told.or(is_unknown.then_some(None)),
                })
            }));
        self.nodes.insert(
            node,
            OpenNode {
                tree,
                key: self.key(tree, it.number),
                level: it.level,
                hash: it.hash,
                target: it.target,
                left: branches.len(),
                branches: branches.into_iter().map(|branch| (branch, None)).collect(),
            },
        );
    }
}
