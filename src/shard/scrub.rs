//! Looking whether the disk has still what was stored: some parts of a group, some bytes a step.
//!
//! Drivers run it off the shard thread; `read` is all that differs between a disk and a simulation. It must
//! read the disk: what a cache has of a file says nothing of the file.
//!
//! ```text
//!   parts ──> a node: its hash ──> what is below it, if that is on the disk alone ──┐
//!        ^ └> a page: its hash, where the bodies of its jobs are ──> their checksums │
//!        └─────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The header of each file is looked at with what is in it. What is damaged is noted, and the rest looked at
//! all the same. Whether the group needs it still, its shard says.

use super::loading::load_wants;
use crate::base::ids::{GroupId, JobId};
use crate::base::limits::LEAF_JOBS;
use crate::queue::view::{BodyLocation, StoredPage};
use crate::queue::{AbsentPage, BodyAt, PageWant, StoredPart, StoredParts};
use crate::snapshot::layout::{BodyEntry, BodyPlace, Owner, RootRef};
use crate::snapshot::load::{SPAN_GAP_BYTES_MAX, With, check_bodies, read_root};
use bytes::Bytes;
use std::cell::Cell;
use std::cmp::Reverse;
use std::fmt::Display;

/// A step ends once so much was read.
const STEP_BYTES: u64 = 1 << 20;
/// A step ends once so many parts were found to be damaged: they cost reads, and may yield no bytes.
const STEP_DAMAGED: usize = 64;
/// Pages that are looked at together, so that neighbours are read at once,
const PAGES_TOGETHER: usize = 32;
/// and bodies.
const BODIES_TOGETHER_BYTES: u64 = 256 << 10;

/// A part that is to be looked at.
#[derive(Clone, Copy, Debug)]
struct Part {
    at: AbsentPage,
    /// What was told above it, if that is on the disk alone.
    above: Option<StoredPage>,
    /// What is below it is to be looked at, too.
    with_all_below: bool,
}

/// A body that is to be looked at.
#[derive(Clone, Copy, Debug)]
struct OwnBody {
    it: BodyAt,
    /// The page that told of it, if that was looked at.
    page: Option<Part>,
}

/// What is damaged.
#[derive(Clone, Copy, Debug)]
pub enum Bad {
    /// The root.
    Root(RootRef),
    /// A page or a node. It was told by what was `above`, if that is on the disk alone.
    Part {
        /// What it is, and where.
        at: AbsentPage,
        /// What was above it.
        above: Option<StoredPage>,
    },
    /// The body of a job.
    Body {
        /// Whose it is, and where.
        it: BodyAt,
        /// The page that told of it, and what was above that, if that was looked at.
        page: Option<(AbsentPage, Option<StoredPage>)>,
    },
}

/// Something that is damaged, or cannot be read.
#[derive(Clone, Debug)]
pub struct Damaged {
    /// Which.
    pub bad: Bad,
    /// What is wrong with it, in a sentence for the operator.
    pub what: String,
}

/// What steps have come to.
#[derive(Debug, Default)]
pub struct Looked {
    /// Bytes that were stored there.
    pub stored_bytes: u64,
    /// Bytes that were read for it.
    pub read_bytes: u64,
    /// What is damaged.
    pub damaged: Vec<Damaged>,
}

/// Parts of a group that are looked at.
#[derive(Debug)]
pub struct Walk {
    group: GroupId,
    root: Option<RootRef>,
    /// The last is the next.
    left: Vec<Part>,
    /// Likewise; by place, from the last on, once a step has begun.
    bodies: Vec<OwnBody>,
    looked: Looked,
}

impl Walk {
    /// Over some parts of a group, and its root if that is given.
    #[must_use]
    pub fn new(group: GroupId, root: Option<RootRef>, stored: &StoredParts) -> Self {
        let parts = stored.parts.iter().rev().map(|part| Part {
            at: part.at,
            above: None,
            with_all_below: part.with_all_below,
        });
        let bodies = stored.bodies.iter();
        let bodies = bodies.map(|it| OwnBody {
            it: *it,
            page: None,
        });
        Self::of(group, root, parts.collect(), bodies.collect())
    }

    /// Over what was found to be damaged: a read may fail in passing.
    #[must_use]
    pub fn again(group: GroupId, damaged: &[Damaged]) -> Self {
        let (mut root, mut left, mut bodies) = (None, Vec::new(), Vec::new());
        // Of a node that can be read now nobody knows yet what is below it.
        let part = |(at, above): (AbsentPage, _)| Part {
            at,
            above,
            with_all_below: at.level == 1,
        };
        for damaged in damaged.iter().rev() {
            match damaged.bad {
                Bad::Root(at) => root = Some(at),
                Bad::Part { at, above } => left.push(part((at, above))),
                Bad::Body { it, page } => {
                    let page = page.map(part);
                    bodies.push(OwnBody { it, page });
                }
            }
        }
        Self::of(group, root, left, bodies)
    }

    fn of(group: GroupId, root: Option<RootRef>, left: Vec<Part>, bodies: Vec<OwnBody>) -> Self {
        Self {
            group,
            root,
            left,
            bodies,
            looked: Looked::default(),
        }
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Whether all was looked at.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.root.is_none() && self.left.is_empty() && self.bodies.is_empty()
    }

    /// What the steps since the last call have come to.
    pub fn take_looked(&mut self) -> Looked {
        std::mem::take(&mut self.looked)
    }

    /// Looks at some of what is left. `read` takes file, offset and length, and yields that many bytes of the
    /// disk, or fewer at the file's end.
    pub fn step<E: Display>(
        &mut self,
        owner: &Owner,
        read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
    ) {
        let bytes = Cell::new(0);
        let mut counted = |file, offset, len: usize| {
            bytes.set(bytes.get() + len as u64);
            read(file, offset, len)
        };
        // Here, and not where it is made: the shard has no time for it. What is sorted takes none.
        sort_by_place(&mut self.bodies);
        let found_before = self.looked.damaged.len();
        while !self.is_done()
            && bytes.get() < STEP_BYTES
            && self.looked.damaged.len() - found_before < STEP_DAMAGED
        {
            if let Some(root) = self.root.take() {
                self.look_at_root(owner, &root, &mut counted);
            } else if !self.bodies.is_empty() {
                self.look_at_bodies(owner, &mut counted);
            } else {
                self.look_at_parts(owner, &mut counted);
            }
        }
        self.looked.read_bytes += bytes.get();
    }

    fn note(&mut self, bad: Bad, what: String) {
        self.looked.damaged.push(Damaged { bad, what });
    }

    fn look_at_root<E: Display>(
        &mut self,
        owner: &Owner,
        root: &RootRef,
        read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
    ) {
        self.looked.stored_bytes += u64::from(root.len);
        if let Err(error) = read_root(owner, root, read) {
            self.note(Bad::Root(*root), error.to_string());
        }
    }

    /// Looks at the next node, or at the next pages.
    fn look_at_parts<E: Display>(
        &mut self,
        owner: &Owner,
        read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
    ) {
        let is_page = |part: &Part| part.at.level == 0;
        let pages = self.left.iter().rev().take_while(|part| is_page(part));
        let count = pages.take(PAGES_TOGETHER).count().max(1);
        let mut parts = self.left.split_off(self.left.len() - count);
        parts.reverse();
        let mut load = |parts: &[Part]| {
            let wants = parts.iter().map(|part| PageWant::only(part.at));
            let wants: Vec<_> = wants.collect();
            load_wants(owner, (self.group, &wants), With::Places, read)
        };
        // One by one, if something is damaged: what is beside it may be whole.
        let all = load(&parts);
        let mut found = Vec::new();
        for part in &parts {
            self.looked.stored_bytes += u64::from(part.at.stored.len);
            let own = match &all {
                Ok(_) => continue,
                Err(what) if parts.len() == 1 => Err(what.clone()),
                Err(_) => load(std::slice::from_ref(part)),
            };
            found.push((*part, own));
        }
        if let Ok(all) = all {
            self.go_below(&parts, &all);
        }
        for (part, own) in found {
            match own {
                Ok(own) => self.go_below(&[part], &own),
                Err(what) => {
                    let Part { at, above, .. } = part;
                    self.note(Bad::Part { at, above }, what);
                }
            }
        }
    }

    /// Notes what is to be looked at of parts that are whole.
    fn go_below(&mut self, parts: &[Part], read: &[StoredPart]) {
        for stored in read {
            let part = parts.iter().find(|part| part.at == stored.at);
            let part = part.expect("nothing else was asked for");
            if part.with_all_below {
                let below: Vec<_> = stored.below().map(|(at, _)| at).collect();
                self.left.extend(below.into_iter().rev().map(|at| Part {
                    at,
                    above: Some(part.at.stored),
                    with_all_below: at.level > 0,
                }));
            }
            let key = part.at.key;
            self.bodies
                .extend(stored.bodies().map(|(slot, at)| OwnBody {
                    it: BodyAt { key, slot, at },
                    page: Some(*part),
                }));
        }
        sort_by_place(&mut self.bodies);
    }

    /// Looks at the next bodies that lie together.
    fn look_at_bodies<E: Display>(
        &mut self,
        owner: &Owner,
        read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
    ) {
        let first = *self.bodies.last().expect("there are some");
        let first = first.it.at;
        let mut end = first.offset;
        let together = |body: &&OwnBody| {
            let at = body.it.at;
            let (start, last) = (at.offset, at.offset + u64::from(at.len));
            let is_near = at.file == first.file
                && start.saturating_sub(end) <= SPAN_GAP_BYTES_MAX
                && last.saturating_sub(first.offset) <= BODIES_TOGETHER_BYTES;
            end = last;
            is_near || at == first
        };
        let count = self.bodies.iter().rev().take_while(together).count();
        let mut bodies = self.bodies.split_off(self.bodies.len() - count);
        let job = |body: &OwnBody| {
            let BodyAt { key, slot, .. } = body.it;
            let seq = key.number * LEAF_JOBS + u64::from(slot);
            JobId::new(self.group, key.queue, key.partition, seq)
        };
        bodies.sort_unstable_by_key(job);
        let mut check = |bodies: &[OwnBody]| {
            let entries = bodies.iter().map(|body| {
                let BodyLocation { file, offset, len } = body.it.at;
                let place = BodyPlace { file, offset, len };
                BodyEntry {
                    job: job(body),
                    place,
                }
            });
            let entries: Vec<_> = entries.collect();
            check_bodies(owner, &entries, read)
        };
        let stored = bodies.iter().map(|body| body.it.at.disk_bytes());
        self.looked.stored_bytes += stored.sum::<u64>();
        let Err(error) = check(&bodies) else {
            return;
        };
        let mut damaged = vec![(bodies[0], error.to_string())];
        if bodies.len() > 1 {
            damaged.clear();
            for body in &bodies {
                let own = check(std::slice::from_ref(body));
                damaged.extend(own.err().map(|error| (*body, error.to_string())));
            }
        }
        for (body, what) in damaged {
            let page = body.page.map(|page| (page.at, page.above));
            self.note(Bad::Body { it: body.it, page }, what);
        }
    }
}

/// The last is the next.
fn sort_by_place(bodies: &mut [OwnBody]) {
    let place = |body: &OwnBody| (body.it.at.file, body.it.at.offset);
    bodies.sort_unstable_by_key(|body| Reverse(place(body)));
}
