//! What comes of a checkpoint of another node, item by item: held against what is here, and written at once.
//!
//! Of what comes nothing stays in memory but nodes of which something is missing yet, and one page; of each page
//! that was written, its place, and which files need it. The files are the checkpoint's own; what they name beside
//! each other lies in files that are here, and stay as long.

use super::bases::{branches_of, root};
use super::checkpoint::{RoundFiles, SLICE_BYTES};
use super::effect::{CheckpointFile, Effect, files_of};
use super::engine::ShardEngine;
use super::group::Group;
use crate::base::checksum::Hash128;
use crate::base::ids::{GroupId, Incarnation};
use crate::queue::view::{PageKey, StoredPage};
use crate::queue::{Difference, Found, FrozenState, MACHINE_VERSION, Names, PageWant, Piece};
use crate::queue::{StoredPart, Wanted};
use crate::raft::membership::Membership;
use crate::raft::message::Voter;
use crate::snapshot::layout::{GroupMeta, RootRef};
use crate::wire::checkpoint::{CheckpointHead, CheckpointItem, ItemDecoder};
use std::collections::BTreeSet;

/// Places that are compared in one turn, as long as no more than [`SLICE_BYTES`] of pages are hashed for that.
const COMPARED_PER_TURN: usize = 256;

/// What was written of a checkpoint that did not become whole: for the next one of the group.
pub(super) struct Partly {
    files: Option<RoundFiles>,
    found: Found,
    /// Parts of this node's own that are damaged, as far as was known: what was found is none of them.
    damaged: BTreeSet<(PageKey, u8)>,
    /// Files that what was written names beside its own.
    pinned: BTreeSet<CheckpointFile>,
}

impl Partly {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self {
            files: None,
            found: Found::default(),
            damaged: BTreeSet::new(),
            pinned: BTreeSet::new(),
        }
    }

    /// Its files under this number, if any are begun.
    pub(super) fn files_of_round(&mut self, round: u64) -> Option<&mut RoundFiles> {
        let files = self.files.as_mut();
        files.filter(|files| files.round() == round)
    }

    /// The files that it has written.
    pub(super) fn own_files(&self) -> &[CheckpointFile] {
        self.files.as_ref().map_or(&[], RoundFiles::files)
    }

    /// All files that it needs.
    pub(super) fn files(&self) -> impl Iterator<Item = CheckpointFile> {
        self.pinned.iter().chain(self.own_files()).copied()
    }
}

/// A checkpoint that is all on its way to the disk.
pub(super) struct Whole {
    pub(super) meta: GroupMeta,
    pub(super) root: RootRef,
    pub(super) round: u64,
    own_files: Vec<CheckpointFile>,
    pinned: BTreeSet<CheckpointFile>,
}

impl Whole {
    /// The files that it has written.
    pub(super) fn own_files(&self) -> &[CheckpointFile] {
        &self.own_files
    }

    /// Whether a part lies in one of them.
    pub(super) fn has_written(&self, part: &StoredPage) -> bool {
        self.own_files.contains(&CheckpointFile::Run(part.file))
    }

    /// All files that it needs.
    pub(super) fn files(&self) -> impl Iterator<Item = CheckpointFile> {
        self.pinned.iter().chain(&self.own_files).copied()
    }
}

/// A checkpoint of which something is missing.
pub(super) struct Gathering {
    group: GroupId,
    incarnation: Incarnation,
    me: Voter,
    own: FrozenState,
    decoder: ItemDecoder,
    head: Option<CheckpointHead>,
    names: Names,
    difference: Option<Box<Difference>>,
    partly: Partly,
}

impl Gathering {
    /// For a group, of whose state `own` may be kept.
    pub(super) fn new(group: &Group, me: Voter, own: FrozenState, partly: Partly) -> Self {
        let mut partly = partly;
        partly.pinned.extend(files_of(&own.files()));
        // A page that was found may name bodies that were not known to be damaged when it was written.
        let damaged = group.damaged();
        partly.found.forget(damaged.difference(&partly.damaged));
        partly.damaged.extend(damaged);
        Self {
            group: group.id,
            incarnation: group.incarnation,
            me,
            own,
            decoder: ItemDecoder::default(),
            head: None,
            names: Names::default(),
            difference: None,
            partly,
        }
    }

    pub(super) fn head(&self) -> Option<&CheckpointHead> {
        self.head.as_ref()
    }

    /// All files that it needs.
    pub(super) fn files(&self) -> impl Iterator<Item = CheckpointFile> {
        self.partly.files()
    }

    /// Its files under this number, if any are begun.
    pub(super) fn files_of_round(&mut self, round: u64) -> Option<&mut RoundFiles> {
        self.partly.files_of_round(round)
    }

    /// Whether so much is on the way to the disk that no more is to come.
    pub(super) fn is_full(&self) -> bool {
        self.partly.files.as_ref().is_some_and(RoundFiles::is_full)
    }

    /// Whether the next step can be made at once.
    pub(super) fn wants_a_turn(&self) -> bool {
        let difference = self.difference.as_ref();
        difference.is_some_and(|difference| difference.can_step()) && !self.is_full()
    }

    /// Whether all that is named is here.
    pub(super) fn is_whole(&self) -> bool {
        let difference = self.difference.as_ref();
        difference.is_some_and(|difference| difference.is_done())
    }

    /// Whether something is wanted that was not told, and may be.
    pub(super) fn has_wants(&self) -> bool {
        let difference = self.difference.as_ref();
        difference.is_some_and(|difference| difference.has_wants())
    }

    /// What is wanted and was not told before.
    pub(super) fn wants(&mut self, count: usize) -> Vec<Wanted> {
        let difference = self.difference.as_mut();
        difference.map_or_else(Vec::new, |difference| difference.wants(count))
    }

    /// What was told and has not come.
    pub(super) fn unanswered(&self) -> Vec<Wanted> {
        let difference = self.difference.iter();
        difference.flat_map(|it| it.unanswered()).collect()
    }

    /// What of this node's own is to be read next.
    pub(super) fn reads(&mut self) -> Vec<PageWant> {
        let difference = self.difference.as_mut();
        difference.map_or_else(Vec::new, |difference| difference.reads())
    }

    /// It was read, or cannot be.
    pub(super) fn read(&mut self, result: Result<Vec<StoredPart>, String>) {
        if let Some(difference) = &mut self.difference {
            difference.read(result);
        }
    }

    /// It is given up: what is written of it.
    pub(super) fn into_partly(mut self) -> Partly {
        if let Some(difference) = self.difference {
            (self.partly.found, self.partly.damaged) = difference.into_found();
        }
        self.partly
    }

    fn take(&mut self, item: CheckpointItem) -> Result<(), String> {
        let Some(difference) = &mut self.difference else {
            return self.take_name(item);
        };
        match item {
            CheckpointItem::Node(bytes) => {
                let next = difference.unanswered().next();
                let next = next.ok_or("a node came that nobody waits for")?;
                let branches = branches_of(next.key, next.level, &bytes)?;
                difference.take_node(Hash128::of(&bytes), branches)
            }
            CheckpointItem::Page(_, bytes) => difference.take_page(bytes),
            CheckpointItem::Body(slot, bytes) => difference.take_body(slot, &bytes),
            CheckpointItem::Head(_) | CheckpointItem::Name(..) | CheckpointItem::Tree(_) => {
                Err("it names more than it told".to_owned())
            }
        }
    }

    fn take_name(&mut self, item: CheckpointItem) -> Result<(), String> {
        match (item, &self.head) {
            (CheckpointItem::Head(head), None) => {
                check_head(&head, self.me)?;
                self.head = Some(head);
            }
            (CheckpointItem::Name(key, hash), Some(_)) => self.names.pages.push((key, hash)),
            (CheckpointItem::Tree(tree), Some(_)) => self.names.trees.push(tree),
            _ => return Err("its head is missing, or twice there".to_owned()),
        }
        let names = self.names.pages.len() + self.names.trees.len();
        if self.head.as_ref().map(|head| head.names as usize) == Some(names) {
            let found = std::mem::take(&mut self.partly.found);
            let damaged = std::mem::take(&mut self.partly.damaged);
            let difference = Difference::new(&self.own, &self.names, found, damaged)?;
            self.difference = Some(Box::new(difference));
        }
        Ok(())
    }
}

/// Whether this node can take a checkpoint with such a head.
fn check_head(head: &CheckpointHead, me: Voter) -> Result<(), String> {
    if head.machine_version > MACHINE_VERSION {
        let version = head.machine_version;
        return Err(format!("it needs machine version {version}"));
    }
    let members = Membership::from_list(&head.members);
    match members.is_ok_and(|members| members.contains(me)) {
        true => Ok(()),
        false => Err("this node is no member in it".to_owned()),
    }
}

impl ShardEngine {
    /// Takes a part, and writes what is whole of it.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub(super) fn take_part_of(
        &mut self,
        gathering: &mut Gathering,
        bytes: &[u8],
    ) -> Result<(), String> {
        gathering.decoder.push(bytes);
        loop {
            let item = gathering.decoder.next_item();
            let Some(item) = item.map_err(|error| error.to_string())? else {
                return Ok(());
            };
            gathering.take(item)?;
            self.write_pieces(gathering)?;
        }
    }

    /// Compares some places more, and writes what is whole.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub(super) fn compare(&mut self, gathering: &mut Gathering) -> Result<(), String> {
        let (mut left, mut hashed) = (COMPARED_PER_TURN, 0);
        while left > 0 && hashed < SLICE_BYTES && gathering.wants_a_turn() {
            left -= 1;
            if let Some(difference) = &mut gathering.difference {
                hashed += difference.step(1);
            }
            self.write_pieces(gathering)?;
        }
        Ok(())
    }

    fn write_pieces(&mut self, gathering: &mut Gathering) -> Result<(), String> {
        let group = gathering.group;
        let Some(difference) = &mut gathering.difference else {
            return Ok(());
        };
        while let Some(piece) = difference.next_piece() {
            let files = gathering.partly.files.take();
            let mut files = files.unwrap_or_else(|| {
                let round = self.checkpoints.new_round();
                self.begin_files(round)
            });
            let placed = match &piece {
                Piece::Body { job, body } => {
                    let (at, _) = self.add_body(&mut files, *job, body);
                    difference.body_placed(at);
                    Ok(())
                }
                piece => difference.placed(files.add_piece(group, piece)),
            };
            self.emit_chunks(&mut files);
            gathering.partly.files = Some(files);
            placed?;
        }
        Ok(())
    }

    /// All is here: its root is written, and the files are to be synced.
    ///
    /// # Errors
    /// If it is not the state that was named. Its files are gone then.
    pub(super) fn end_gathering(&mut self, gathering: Gathering) -> Result<Whole, String> {
        let Gathering {
            group,
            incarnation,
            head,
            difference,
            partly,
            ..
        } = gathering;
        let (head, difference) = (head.expect("all is here"), difference.expect("all is here"));
        self.counters.checkpoint_pages_taken_total += difference.brought();
        let meta = GroupMeta {
            group,
            incarnation,
            index: head.index,
            term: head.term,
            time: head.time,
            machine_version: head.machine_version,
            wall_offset_ms: head.wall_offset_ms,
            members: head.members,
        };
        let (written, discarded) = difference.finish();
        self.effects.push(Effect::Discard(discarded));
        let Partly { files, pinned, .. } = partly;
        let mut files = files.unwrap_or_else(|| {
            let round = self.checkpoints.new_round();
            self.begin_files(round)
        });
        let added = files.add_root(root(&meta, &written));
        let root = added.map_err(|error| error.to_string()).and_then(|root| {
            let is_it = root.hash == head.root;
            let other = || "it is not the state that was named".to_owned();
            is_it.then_some(root).ok_or_else(other)
        });
        let root = root.inspect_err(|_| self.drop_files_of(files.files()))?;
        self.end_files(&mut files, |_| true);
        Ok(Whole {
            meta,
            root,
            round: files.round(),
            own_files: files.files().to_vec(),
            pinned,
        })
    }
}
