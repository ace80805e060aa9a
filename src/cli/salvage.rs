//! A base made of what is left of a damaged checkpoint, where no other is whole.
//!
//! The pages are written anew, into a run file of their own; the bodies stay where they lie.

use crate::base::ids::JobId;
use crate::base::report::Report;
use crate::cli::offline::{ShardFiles, root_of};
use crate::queue::view::BodyLocation;
use crate::queue::{JobQueue, Lost, PageError, PagePlace, stored_pages};
use crate::runtime::snapshot_files::{self, write_run};
use crate::shard::bases::{add_piece, page_key, root};
use crate::snapshot::builder::RunBuilder;
use crate::snapshot::layout::{
    BODY_HEAD_BYTES, BodyEntry, BodyPlace, FileHeader, FileKind, GroupMeta, RootRef,
};
use crate::snapshot::load::{Bad, read_remains};
use crate::snapshot::view::verify_body;
use crate::wal::record::{BaseRecord, RootLocation};
use bytes::Bytes;
use std::io;
use std::sync::Arc;

/// A checkpoint of which some is lost.
pub(super) struct Salvage {
    /// The state that is left.
    pub(super) machine: JobQueue,
    /// What is not.
    pub(super) lost: Lost,
}

/// What can be had of a base; `None` if it is nothing.
pub(super) fn salvage(shard: &ShardFiles, base: &BaseRecord) -> Option<Salvage> {
    let root = root_of(base)?;
    let mut read = snapshot_files::reader(&shard.folder);
    let remains = read_remains(&shard.owner, &root, &mut read).ok()?;
    let mut pages = Vec::new();
    for (name, bytes) in remains.pages {
        pages.push((page_key(&name)?, bytes));
    }
    let mut bad = Vec::new();
    for (what, error) in remains.bad {
        let place = match what {
            Bad::Page(name) => PagePlace::Page(page_key(&name)?),
            Bad::Node(name, level) => PagePlace::Node(page_key(&name)?, level),
        };
        let what = error.to_string();
        bad.push(PageError { place, what });
    }
    let mut body = |job: JobId| body_of(&remains.bodies, job, &mut read);
    let pages = stored_pages(pages);
    let (machine, lost) = JobQueue::salvage(base.group, &pages, bad, &mut body).ok()?;
    Some(Salvage { machine, lost })
}

/// The body of a job, if it is whole.
fn body_of(
    bodies: &[BodyEntry],
    job: JobId,
    read: &mut impl FnMut(u64, u64, usize) -> io::Result<Bytes>,
) -> Option<(Bytes, BodyLocation)> {
    let at = bodies.binary_search_by_key(&job, |body| body.job).ok()?;
    let entry = &bodies[at];
    let BodyPlace { file, offset, len } = entry.place;
    let start = offset.checked_sub(BODY_HEAD_BYTES as u64)?;
    let record = read(file, start, BODY_HEAD_BYTES + len as usize).ok()?;
    let body = verify_body(entry, &record).ok()?;
    let bytes = Bytes::copy_from_slice(body);
    Some((bytes, BodyLocation { file, offset, len }))
}

/// Writes the states that are left into run file `file`, and names it in their bases.
pub(super) fn write(
    shard: &ShardFiles,
    file: u64,
    salvaged: Vec<(&Salvage, &mut BaseRecord)>,
) -> Result<(), Report> {
    let mut run = RunBuilder::new(&FileHeader {
        kind: FileKind::Run,
        owner: shard.owner,
        shard: shard.identity.shard,
        file,
    });
    for (salvage, base) in salvaged {
        let root = add_group(&mut run, &salvage.machine, base);
        base.root_hash = root.hash;
        base.root = Some(RootLocation {
            file: root.file,
            offset: root.offset,
            len: root.len,
        });
    }
    run.finish();
    write_run(&shard.folder, file, || run.take_output())
}

fn add_group(run: &mut RunBuilder, machine: &JobQueue, base: &BaseRecord) -> RootRef {
    let meta = GroupMeta {
        group: base.group,
        incarnation: base.incarnation,
        index: base.index,
        term: base.term,
        time: base.time,
        machine_version: base.machine_version,
        wall_offset_ms: base.wall_offset_ms,
        members: base.members.clone(),
    };
    let fits = "what is left is smaller than the checkpoint that it was";
    // Every job of it has the place of its body.
    let mut writer = machine.freeze().writer(&Arc::default());
    while let Some(piece) = writer.next_piece() {
        let written = add_piece(run, base.group, &piece);
        writer.placed(written.expect(fits));
    }
    let (state, _) = writer.finish();
    run.add_root(root(&meta, &state)).expect(fits)
}
