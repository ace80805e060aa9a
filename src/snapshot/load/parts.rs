//! Some of a group: what a start cannot do without, and later what a command asks for.
//!
//! A tree is read from above, level by level, as far as a filter lets through; the rest stays where it is.
//! A page comes with the bodies of its jobs.

use super::{Files, LoadError, NodeEntry, Read, Reading, open_page};
use crate::base::ids::{GroupId, JobId};
use crate::base::limits::LEAF_JOBS;
use crate::snapshot::layout::{
    BodyEntry, BodyPlace, Branch, Node, Owner, PageEntry, PageName, Root, RootRef, SummaryBytes,
};
use crate::snapshot::view::open_pack;
use bytes::Bytes;

/// What a root names, and some of what is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedGroup {
    /// The root: the pages that a group has few of, and the trees of the others.
    pub root: Root,
    /// Those pages.
    pub pages: Vec<Bytes>,
    /// What was read of the trees, each node before what is below it.
    pub parts: Vec<Part>,
}

/// A page or a node of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name, level, hash and place.
    pub entry: NodeEntry,
    /// What it holds.
    pub holds: PartHolds,
}

/// What a part holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartHolds {
    /// The bytes of a page, and the bodies of its jobs by slot.
    Page(Bytes, Vec<(u8, BodyPlace, Bytes)>),
    /// The bytes of a page, and where the bodies of its jobs are, by slot.
    Places(Bytes, Vec<(u8, BodyPlace)>),
    /// The branches of a node.
    Node(Vec<Branch>),
}

/// What comes with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    /// The bodies of their jobs; fewer pages than are wanted where those would take more bytes than this,
    /// but at least one.
    Bodies(u64),
    /// Where those are.
    Places,
}

/// What is to be read of a tree.
pub struct Wanted<'a> {
    /// A page (level 0), or a node with some of what is below it.
    pub from: NodeEntry,
    /// Whether what is below a node is read, too: its name, its level, and what is in it.
    pub lets_through: &'a dyn Fn(&PageName, u8, &SummaryBytes) -> bool,
    /// At most so many pages below it, the first ones.
    pub pages_max: usize,
}

impl<'a, 'r, E> Files<'a, 'r, E> {
    /// Opens a group whose root is of format 2: its pages, and of its trees what `reads` lets through.
    pub(super) fn open(
        &mut self,
        root: Root,
        reads: &dyn Fn(&SummaryBytes, &PageName, u8, &SummaryBytes) -> bool,
    ) -> Result<OpenedGroup, LoadError<E>> {
        let of = |page: &PageEntry| (page.name, page.place);
        let group = root.meta.group;
        let found = self.items(&root.pages, of, Reading::Pages)?;
        let opened = root.pages.iter().zip(found).map(|(entry, bytes)| {
            let (page, _) = open_page((group, true), entry, &bytes)?;
            Ok(page)
        });
        let pages = opened.collect::<Result<_, _>>()?;
        let filters: Vec<_> = root
            .trees
            .iter()
            .map(|tree| {
                move |name: &PageName, level: u8, summary: &SummaryBytes| {
                    reads(&tree.summary, name, level, summary)
                }
            })
            .collect();
        let tops = root.trees.iter().zip(&filters);
        let tops = tops.filter(|(tree, reads)| reads(&tree.name, tree.level, &tree.summary));
        let wanted = tops.map(|(tree, lets_through)| Wanted {
            from: NodeEntry {
                name: tree.name,
                level: tree.level,
                hash: tree.hash,
                place: tree.place,
            },
            lets_through,
            pages_max: usize::MAX,
        });
        let wanted: Vec<_> = wanted.collect();
        let parts = self.parts(group, &wanted, With::Bodies(u64::MAX))?;
        Ok(OpenedGroup { root, pages, parts })
    }

    fn parts(
        &mut self,
        group: GroupId,
        wanted: &[Wanted<'_>],
        with: With,
    ) -> Result<Vec<Part>, LoadError<E>> {
        let mut parts = Vec::new();
        let mut pages = Vec::new();
        // Each with the place of its filter, and how many pages that lets through yet.
        let mut level = Vec::new();
        let mut left: Vec<usize> = wanted.iter().map(|wanted| wanted.pages_max).collect();
        for (at, wanted) in wanted.iter().enumerate() {
            match wanted.from.level {
                0 => pages.push(wanted.from),
                _ => level.push((at, wanted.from)),
            }
        }
        while !level.is_empty() {
            let of = |(_, node): &(usize, NodeEntry)| (node.name, node.place);
            let found = self.items(&level, of, Reading::Nodes)?;
            let mut below = Vec::new();
            for ((at, entry), bytes) in level.iter().zip(found) {
                let branches = open_node(entry, &bytes)?;
                for branch in &branches {
                    let name = PageName {
                        number: entry.name.number << 6 | u64::from(branch.slot),
                        ..entry.name
                    };
                    let level = entry.level - 1;
                    if !(wanted[*at].lets_through)(&name, level, &branch.summary) {
                        continue;
                    }
                    let (hash, place) = (branch.hash, branch.place);
                    let entry = NodeEntry {
                        name,
                        level,
                        hash,
                        place,
                    };
                    if level != 0 {
                        below.push((*at, entry));
                    } else if left[*at] != 0 {
                        left[*at] -= 1;
                        pages.push(entry);
                    }
                }
                parts.push(Part {
                    entry: *entry,
                    holds: PartHolds::Node(branches),
                });
            }
            level = below;
        }
        match with {
            With::Bodies(bytes_max) => {
                self.pages_with_bodies(group, pages, bytes_max, &mut parts)?;
            }
            With::Places => self.pages_with_places(group, &pages, &mut parts)?,
        }
        Ok(parts)
    }

    fn pages_with_places(
        &mut self,
        group: GroupId,
        pages: &[NodeEntry],
        parts: &mut Vec<Part>,
    ) -> Result<(), LoadError<E>> {
        let found = self.items(pages, |page| (page.name, page.place), Reading::Pages)?;
        for (entry, bytes) in pages.iter().zip(found) {
            let page = PageEntry {
                name: entry.name,
                hash: entry.hash,
                place: entry.place,
            };
            let (page, bodies) = open_page((group, true), &page, &bytes)?;
            let places = bodies.iter().map(|body| (slot_of(body.job), body.place));
            parts.push(Part {
                entry: *entry,
                holds: PartHolds::Places(page, places.collect()),
            });
        }
        Ok(())
    }

    fn pages_with_bodies(
        &mut self,
        group: GroupId,
        pages: Vec<NodeEntry>,
        bodies_max: u64,
        parts: &mut Vec<Part>,
    ) -> Result<(), LoadError<E>> {
        let found = self.items(&pages, |page| (page.name, page.place), Reading::Pages)?;
        let mut opened = Vec::with_capacity(pages.len());
        let mut bodies: Vec<BodyEntry> = Vec::new();
        let mut bytes_wanted = 0;
        for (entry, bytes) in pages.into_iter().zip(found) {
            let page = PageEntry {
                name: entry.name,
                hash: entry.hash,
                place: entry.place,
            };
            let (page, own) = open_page((group, true), &page, &bytes)?;
            let own_bytes: u64 = own.iter().map(|body| u64::from(body.place.len)).sum();
            bytes_wanted += own_bytes;
            if !opened.is_empty() && bytes_wanted > bodies_max {
                break;
            }
            let jobs: Vec<JobId> = own.iter().map(|body| body.job).collect();
            bodies.extend(own);
            opened.push((entry, page, jobs));
        }
        bodies.sort_unstable_by_key(|body| body.job);
        let found = self.bodies(&bodies)?;
        for (entry, page, jobs) in opened {
            let bodies = jobs.iter().map(|job| {
                let at = found.binary_search_by_key(job, |body| body.job);
                let body = &found[at.expect("all were read")];
                (slot_of(*job), body.place, body.bytes.clone())
            });
            parts.push(Part {
                entry,
                holds: PartHolds::Page(page, bodies.collect()),
            });
        }
        Ok(())
    }
}

fn slot_of(job: JobId) -> u8 {
    (job.seq() % LEAF_JOBS) as u8
}

/// The branches of a node.
pub(super) fn open_node<E>(entry: &NodeEntry, bytes: &Bytes) -> Result<Vec<Branch>, LoadError<E>> {
    let bad_node = |error| LoadError::Node {
        file: entry.place.file,
        offset: entry.place.offset,
        node: entry.name,
        level: entry.level,
        error,
    };
    let (canonical, local) = open_pack(entry.hash, &entry.place, bytes).map_err(bad_node)?;
    let node = Node::decode((&entry.name, entry.level), canonical, local);
    Ok(node.map_err(|error| bad_node(error.into()))?.branches)
}

/// Reads what is wanted of a group's trees, and `with` it what belongs to its jobs.
///
/// # Errors
/// The first thing that is wrong, with file, place and page or job.
pub fn read_parts<E>(
    owner: &Owner,
    group: GroupId,
    wanted: &[Wanted<'_>],
    with: With,
    read: &mut Read<'_, E>,
) -> Result<Vec<Part>, LoadError<E>> {
    Files::new(owner, read).parts(group, wanted, with)
}

/// Reads the bodies of jobs, which ascend by job, and holds them against their heads and checksums.
///
/// # Errors
/// The first thing that is wrong, with file, place and job.
pub fn check_bodies<E>(
    owner: &Owner,
    bodies: &[BodyEntry],
    read: &mut Read<'_, E>,
) -> Result<(), LoadError<E>> {
    Files::new(owner, read).bodies(bodies).map(drop)
}

/// Reads the root of a group; `None` if it is of format 1, which has no trees.
///
/// # Errors
/// If it is not the one that is named.
pub fn read_root<E>(
    owner: &Owner,
    root: &RootRef,
    read: &mut Read<'_, E>,
) -> Result<Option<Root>, LoadError<E>> {
    match Files::new(owner, read).named(root)? {
        super::Named::Trees(root) => Ok(Some(root)),
        super::Named::All(_) => Ok(None),
    }
}

/// What a start has of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Some of it.
    Some(OpenedGroup),
    /// All of it: format 1 has no trees.
    All(super::LoadedGroup),
}

/// Reads what a root names, and of its trees what `reads` lets through: what is in the tree, the name, the
/// level and what is in it.
///
/// # Errors
/// The first thing that is wrong.
pub fn open_group<E>(
    owner: &Owner,
    root: &RootRef,
    reads: &dyn Fn(&SummaryBytes, &PageName, u8, &SummaryBytes) -> bool,
    read: &mut Read<'_, E>,
) -> Result<Opened, LoadError<E>> {
    let mut files = Files::new(owner, read);
    match files.named(root)? {
        super::Named::Trees(root) => files.open(root, reads).map(Opened::Some),
        super::Named::All(_) => super::read_group(owner, root, read).map(Opened::All),
    }
}
