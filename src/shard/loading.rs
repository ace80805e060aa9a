//! Reading the hot state of a group from its bases: newest first, the one before if it is damaged; and
//! later what of it was left on the disk.
//!
//! Drivers run it off the shard thread; `read` is all that differs between a disk and a simulation.

use super::bases::{absent_entry, known_key, stored_page, stored_part, stored_tree};
use super::effect::{CheckpointFile, PageOrder, Reader};
use crate::base::ids::GroupId;
use crate::queue::view::{PageKey, PageKind, StoredPage};
use crate::queue::{AbsentPage, PageWant, StoredPart, StoredTree, SummaryBytes, is_read_at_start};
use crate::snapshot::layout::{Owner, PageName, PayloadUse, RootRef, RunUse};
use crate::snapshot::load::{
    LoadedGroup, Opened, OpenedGroup, Wanted, With, files_of_root, open_group, read_parts,
    read_root,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt::Display;

/// Pages are read ahead of what is wanted as long as the bodies of their jobs take no more.
const BODIES_AHEAD_BYTES: u64 = 4 << 20;

/// What a base keeps alive on this disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseFiles {
    /// Run files, each with the bytes that its pages and nodes have in it; its root's file is one.
    pub runs: BTreeMap<u64, u64>,
    /// Payload files, each with the bytes that live jobs of the base have in it.
    pub payloads: BTreeMap<u64, u64>,
}

impl BaseFiles {
    /// The files of a base with this root.
    pub(super) fn new(root: &RootRef, runs: &[RunUse], payloads: &[PayloadUse]) -> Self {
        let mut files = Self::default();
        for used in runs {
            files.runs.insert(used.file, used.live_bytes);
        }
        *files.runs.entry(root.file).or_default() += u64::from(root.len);
        for used in payloads {
            files.payloads.insert(used.file, used.live_bytes);
        }
        files
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = CheckpointFile> {
        let runs = self.runs.keys().map(|file| CheckpointFile::Run(*file));
        runs.chain(
            self.payloads
                .keys()
                .map(|file| CheckpointFile::Payload(*file)),
        )
    }
}

/// The hot state of a group as of one of its bases.
#[derive(Debug)]
pub struct GroupState {
    /// Which base: 0 is the newest. A higher one means that those before it are damaged.
    pub base: usize,
    /// Pages and bodies.
    pub loaded: Loaded,
    /// The files of each base from this one on; a base whose root cannot be read ends the list,
    /// since it is of no use any more.
    pub files: Vec<BaseFiles>,
    /// Why newer bases could not be used, for the log.
    pub damage: Vec<String>,
}

/// What a start has read of a group.
#[derive(Debug)]
pub enum Loaded {
    /// What it needs.
    Needed {
        /// The pages of which a group has few, in the order of their keys.
        pages: Vec<(PageKey, Bytes)>,
        /// Where each of them lies.
        places: Vec<StoredPage>,
        /// The trees of the others.
        trees: Vec<StoredTree>,
        /// What was read of those, each node before what is below it.
        parts: Vec<StoredPart>,
    },
    /// All of it: its root is of format 1.
    Whole(LoadedGroup),
}

/// Loads a group from the newest of `bases` that is intact, as far as a start needs it.
///
/// `read` takes file, offset and length, and yields that many bytes, or fewer at the file's end.
///
/// # Errors
/// A sentence for each base, if none is intact; and what of the newest is damaged.
pub fn load_group<E: Display>(
    owner: &Owner,
    bases: &[RootRef],
    read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
) -> Result<GroupState, Unread> {
    let mut damage = Vec::new();
    for (base, root) in bases.iter().enumerate() {
        match load_base(owner, root, read) {
            Ok((loaded, own)) => {
                let mut files = vec![own];
                let older = bases[base + 1..].iter();
                files.extend(older.map_while(|older| files_of_base(older, read)));
                return Ok(GroupState {
                    base,
                    loaded,
                    files,
                    damage,
                });
            }
            Err(what) => damage.push(what),
        }
    }
    let newest = bases.first();
    Err(Unread {
        what: damage.join("; "),
        damaged: newest.map_or_else(Vec::new, |root| damaged_at_start(owner, root, read)),
    })
}

/// What a start would read of a base and cannot, as far as its root tells.
fn damaged_at_start<E: Display>(
    owner: &Owner,
    root: &RootRef,
    read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
) -> Vec<AbsentPage> {
    let Ok(Some(root)) = read_root(owner, root, read) else {
        return Vec::new();
    };
    let group = root.meta.group;
    let mut damaged = Vec::new();
    let mut load = |at: AbsentPage, with: With| {
        let parts = load_wants(owner, (group, &[PageWant::only(at)]), with, read);
        if parts.is_err() {
            damaged.push(at);
        }
        parts.unwrap_or_default()
    };
    for page in &root.pages {
        if let Ok(key) = known_key(&page.name) {
            let stored = stored_page(page.hash, &page.place);
            let level = 0;
            load(AbsentPage { key, level, stored }, With::Places);
        }
    }
    for tree in root.trees.iter().filter_map(|tree| stored_tree(tree).ok()) {
        let top = AbsentPage {
            key: tree.key,
            level: tree.level,
            stored: tree.stored,
        };
        let mut left = vec![(top, tree.summary)];
        while let Some((at, summary)) = left.pop() {
            if is_read_at_start(at.key.kind, at.level, &tree.summary, &summary) {
                let parts = load(at, With::Bodies(u64::MAX));
                left.extend(parts.iter().flat_map(StoredPart::below));
            }
        }
    }
    damaged
}

/// The files that a base names; `None` if its root cannot be read, or is damaged.
///
/// `read` is that of [`load_group`].
pub(crate) fn files_of_base<E>(
    root: &RootRef,
    read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
) -> Option<BaseFiles> {
    let bytes = read(root.file, root.offset, root.len as usize).ok()?;
    let (runs, payloads) = files_of_root(&bytes, root.hash).ok()?;
    Some(BaseFiles::new(root, &runs, &payloads))
}

fn load_base<E: Display>(
    owner: &Owner,
    root: &RootRef,
    read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
) -> Result<(Loaded, BaseFiles), String> {
    let opened = open_group(owner, root, &reads_at_start, read);
    match opened.map_err(|error| error.to_string())? {
        Opened::Some(opened) => {
            let named = &opened.root;
            let files = BaseFiles::new(root, &named.run_files(), &named.payload_files());
            Ok((needed(opened)?, files))
        }
        Opened::All(group) => {
            let files = BaseFiles::new(root, &group.run_files, &group.payload_files);
            Ok((Loaded::Whole(group), files))
        }
    }
}

/// What was read of a group, in the words of the job machine.
fn needed(opened: OpenedGroup) -> Result<Loaded, String> {
    let OpenedGroup { root, pages, parts } = opened;
    let named = root.pages.iter().zip(pages);
    let pages = named.map(|(entry, bytes)| Ok((known_key(&entry.name)?, bytes)));
    let places = root.pages.iter();
    let places = places.map(|entry| stored_page(entry.hash, &entry.place));
    let parts = parts.into_iter();
    let parts = parts.map(|part| stored_part(root.meta.group, part));
    Ok(Loaded::Needed {
        pages: pages.collect::<Result<_, String>>()?,
        places: places.collect(),
        trees: root
            .trees
            .iter()
            .map(stored_tree)
            .collect::<Result<_, _>>()?,
        parts: parts.collect::<Result<_, _>>()?,
    })
}

fn reads_at_start(tree: &SummaryBytes, name: &PageName, level: u8, summary: &SummaryBytes) -> bool {
    // What is of no known kind is read, and refused by name.
    PageKind::from_u8(name.kind).is_none_or(|kind| is_read_at_start(kind, level, tree, summary))
}

/// Why pages cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The first thing that is wrong, in a sentence for the operator.
    pub what: String,
    /// All that cannot be read of what was wanted.
    pub damaged: Vec<AbsentPage>,
}

impl Unread {
    /// What cannot be read, by key and level.
    pub(super) fn parts(&self) -> impl Iterator<Item = (PageKey, u8)> {
        self.damaged.iter().map(|at| (at.key, at.level))
    }
}

/// Reads pages of a group, each with the bodies of its jobs; or without, for who compares them with those of
/// another node.
///
/// `read` is that of [`load_group`].
///
/// # Errors
/// What is wrong. A file may have been dropped meanwhile.
pub fn load_pages<E: Display>(
    owner: &Owner,
    order: &PageOrder,
    read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
) -> Result<Vec<StoredPart>, Unread> {
    let with = match order.reader {
        Reader::Receiving { .. } => With::Places,
        _ => With::Bodies(BODIES_AHEAD_BYTES),
    };
    let mut load = |wants: &[PageWant]| load_wants(owner, (order.group, wants), with, read);
    let what = match load(&order.wants) {
        Ok(parts) => return Ok(parts),
        Err(what) => what,
    };
    // One by one: what is beside it, or below, may be whole.
    let mut damaged = Vec::new();
    for want in &order.wants {
        let mut left = vec![want.at];
        while let Some(at) = left.pop() {
            match load(&[PageWant::only(at)]) {
                Ok(parts) => {
                    let below = parts.iter().flat_map(StoredPart::below);
                    let below = below
                        .filter(|(below, summary)| want.lets_through(below.key.number, summary));
                    left.extend(below.take(want.pages_max()).map(|(below, _)| below));
                }
                Err(_) => damaged.push(at),
            }
        }
    }
    Err(Unread { what, damaged })
}

/// Reads parts of a group, each with what belongs to its jobs.
///
/// `read` is that of [`load_group`].
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn load_wants<E: Display>(
    owner: &Owner,
    (group, wants): (GroupId, &[PageWant]),
    with: With,
    read: &mut dyn FnMut(u64, u64, usize) -> Result<Bytes, E>,
) -> Result<Vec<StoredPart>, String> {
    let filters: Vec<_> = wants
        .iter()
        .map(|want| {
            move |name: &PageName, _: u8, summary: &SummaryBytes| {
                want.lets_through(name.number, summary)
            }
        })
        .collect();
    let wanted: Vec<_> = wants
        .iter()
        .zip(&filters)
        .map(|(want, lets_through)| Wanted {
            from: absent_entry(&want.at),
            lets_through,
            pages_max: want.pages_max(),
        })
        .collect();
    let parts = read_parts(owner, group, &wanted, with, read);
    let parts = parts.map_err(|error| error.to_string())?.into_iter();
    parts.map(|part| stored_part(group, part)).collect()
}
