//! A base made of what is left of a damaged checkpoint, where no other is whole.
//!
//! The pages are written anew, into a run file of their own; the bodies stay where they lie.

use crate::base::ids::JobId;
use crate::base::report::Report;
use crate::cli::offline::{ShardFiles, page_key};
use crate::queue::view::{BodyLocation, PageKey};
use crate::queue::{JobQueue, Lost, PageError, PagePlace};
use crate::runtime::snapshot_files::{self, write_run};
use crate::snapshot::builder::RunBuilder;
use crate::snapshot::layout::{
    BODY_HEAD_BYTES, BodyEntry, BodyPlace, FileHeader, FileKind, GroupMeta, PageName, Root,
};
use crate::snapshot::view::{verify_body, verify_page};
use crate::wal::record::{BaseRecord, RootLocation};
use bytes::Bytes;
use std::io;

/// A checkpoint of which some is lost.
pub(super) struct Salvage {
    /// The state that is left.
    pub(super) machine: JobQueue,
    /// What is not.
    pub(super) lost: Lost,
}

/// What can be had of a base; `None` if it is nothing.
pub(super) fn salvage(shard: &ShardFiles, base: &BaseRecord) -> Option<Salvage> {
    let root = shard.root(base).ok().flatten()?;
    let mut read = snapshot_files::reader(&shard.folder);
    let (mut pages, mut bad) = (Vec::new(), Vec::new());
    for entry in &root.pages {
        let key = page_key(&entry.name)?;
        let whole = read(entry.file, entry.offset, entry.len as usize)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                verify_page(entry, &bytes).map_err(|error| error.to_string())?;
                Ok(bytes)
            });
        match whole {
            Ok(bytes) => pages.push((key, bytes)),
            Err(what) => bad.push(PageError {
                place: PagePlace::Page(key),
                what,
            }),
        }
    }
    let mut body = |job: JobId| body_of(&root, job, &mut read);
    let (machine, lost) = JobQueue::salvage(base.group, &pages, bad, &mut body).ok()?;
    Some(Salvage { machine, lost })
}

/// The body of a job, if it is whole.
fn body_of(
    root: &Root,
    job: JobId,
    read: &mut impl FnMut(u64, u64, usize) -> io::Result<Bytes>,
) -> Option<(Bytes, BodyLocation)> {
    let at = root
        .bodies
        .binary_search_by_key(&job, |body| body.job)
        .ok()?;
    let entry = &root.bodies[at];
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

fn add_group(
    run: &mut RunBuilder,
    machine: &JobQueue,
    base: &BaseRecord,
) -> crate::snapshot::layout::RootRef {
    let frozen = machine.freeze();
    let mut pages = machine.freeze();
    let fits = "what is left is smaller than the checkpoint that it was";
    loop {
        let some = pages.next_pages(1 << 20);
        if some.is_empty() {
            break;
        }
        for (key, bytes) in some {
            run.add_page(base.group, page_name(key), &bytes)
                .expect(fits);
        }
    }
    let mut bodies = Vec::new();
    let mut cursor = frozen.bodies();
    loop {
        let some = cursor.next_bodies(1 << 20);
        if some.is_empty() {
            break;
        }
        bodies.extend(some.into_iter().map(|body| {
            let at = body
                .location
                .expect("a salvaged job has the place of its body");
            BodyEntry {
                job: body.job,
                place: BodyPlace {
                    file: at.file,
                    offset: at.offset,
                    len: at.len,
                },
            }
        }));
    }
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
    run.finish_group(&meta, bodies).expect(fits)
}

fn page_name(key: PageKey) -> PageName {
    PageName {
        kind: key.kind as u8,
        queue: key.queue.to_u64(),
        partition: key.partition.0.into(),
        number: key.number,
    }
}
