//! Checkpoints one after the other, as far as the job machine goes: what each writes, and that it is the
//! state.

use crate::base::checksum::Hash128;
use crate::base::ids::{JobId, LogIndex, Partition};
use crate::base::prng::Prng;
use crate::base::units::GroupTime;
use crate::queue::body::{StoredBody, decode_body, encode_body};
use crate::queue::check::check;
use crate::queue::command::{AckItem, Command, NackItem, NewJob, Op, Outcome, PurgeStates, Start};
use crate::queue::discarded::Discarded;
use crate::queue::frozen::FrozenState;
use crate::queue::job_queue::JobQueue;
use crate::queue::load::stored_pages;
use crate::queue::needs::{PAGES_AHEAD, PageWant};
use crate::queue::residence::{AbsentPage, StoredPart, is_read_at_start};
use crate::queue::tests::{GROUP, apply, enqueue, lease, rich, uid};
use crate::queue::view::{ApplyAt, BodyLocation, PageKey, PageKind, StoredPage};
use crate::queue::writing::{Kept, LeftFiles, Piece, SummaryBytes, WrittenState};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A page, its key, and the places of the bodies of its jobs.
type Page = (PageKey, Bytes, Vec<(u8, BodyLocation)>);
type Node = (PageKey, u8, Vec<(u8, SummaryBytes, StoredPage)>);

/// Files in memory.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) file: u64,
    end: u64,
    pub(super) pages: BTreeMap<(u64, u64), Page>,
    nodes: BTreeMap<(u64, u64), Node>,
    pub(super) bodies: BTreeMap<(u64, u64), (JobId, Bytes)>,
}

/// What a node says of what is below it.
pub(super) fn said_of_node(branches: &[(u8, SummaryBytes, StoredPage)]) -> Vec<u8> {
    let said = branches.iter();
    let said =
        said.flat_map(|(slot, summary, stored)| [&[*slot], &summary[..], &stored.hash.0].concat());
    said.collect()
}

/// How much a checkpoint wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pages: usize,
    nodes: usize,
    bodies: usize,
    /// Pages and nodes that had to be read.
    read: usize,
}

impl Disk {
    fn stored(&mut self, bytes: &[u8]) -> StoredPage {
        self.end += 8;
        StoredPage {
            hash: Hash128::of(bytes),
            file: self.file,
            offset: self.end,
            len: u32::try_from(bytes.len()).expect("small") + 8,
            crc: 0,
        }
    }

    /// Writes a body into the payload file of the round.
    pub(super) fn put_body(&mut self, job: JobId, body: &StoredBody) -> BodyLocation {
        let mut bytes = Vec::new();
        body.encode_into(&mut bytes);
        self.end += 8;
        let at = BodyLocation {
            file: 1000 + self.file,
            offset: self.end,
            len: u32::try_from(bytes.len()).expect("small"),
        };
        self.bodies
            .insert((at.file, at.offset), (job, bytes.into()));
        at
    }

    /// Writes a page or a node into the run file of the round.
    pub(super) fn put(&mut self, piece: Piece) -> StoredPage {
        match piece {
            Piece::Page { key, bytes, bodies } => {
                let stored = self.stored(&bytes);
                let at = (stored.file, stored.offset);
                self.pages.insert(at, (key, bytes, bodies));
                stored
            }
            Piece::Node {
                key,
                level,
                branches,
            } => {
                let stored = self.stored(&said_of_node(&branches));
                let at = (stored.file, stored.offset);
                self.nodes.insert(at, (key, level, branches));
                stored
            }
            Piece::Body { .. } | Piece::Read(_) | Piece::Pause => panic!("it is no page"),
        }
    }

    /// Writes what is not on the disk, into files of their own.
    fn write(&mut self, frozen: &FrozenState) -> (WrittenState, Kept, Count) {
        self.write_leaving(frozen, LeftFiles::default())
    }

    /// Likewise, and what is in these files.
    fn write_leaving(
        &mut self,
        frozen: &FrozenState,
        files: LeftFiles,
    ) -> (WrittenState, Kept, Count) {
        self.file += 1;
        let mut count = Count::default();
        let mut writer = frozen.writer(&Arc::new(files));
        while let Some(piece) = writer.next_piece() {
            match piece {
                Piece::Pause => {}
                Piece::Read(absent) => {
                    count.read += absent.len();
                    for at in &absent {
                        writer.read(self.part(at)).expect("it is whole");
                    }
                }
                Piece::Body { job, body } => {
                    count.bodies += 1;
                    let at = self.put_body(job, &body);
                    writer.body_placed(job, at);
                }
                piece => {
                    match piece {
                        Piece::Page { .. } => count.pages += 1,
                        _ => count.nodes += 1,
                    }
                    let stored = self.put(piece);
                    writer.placed(stored);
                }
            }
        }
        let (written, kept) = writer.finish();
        (written, kept, count)
    }

    /// The pages that a root names, the places of all bodies, and what it has in each file.
    pub(super) fn read(
        &self,
        state: &WrittenState,
    ) -> (Vec<(PageKey, Bytes)>, BTreeMap<JobId, BodyLocation>) {
        let mut pages = Vec::new();
        let mut bodies = BTreeMap::new();
        let mut page = |key: PageKey, stored: &StoredPage| {
            let (own, bytes, places) = &self.pages[&(stored.file, stored.offset)];
            assert_eq!((own, Hash128::of(bytes)), (&key, stored.hash));
            pages.push((key, bytes.clone()));
            for (slot, at) in places {
                let seq = key.number * 64 + u64::from(*slot);
                bodies.insert(JobId::new(GROUP, key.queue, key.partition, seq), *at);
            }
        };
        for (key, stored) in &state.pages {
            page(*key, stored);
        }
        for tree in &state.trees {
            let mut runs: BTreeMap<u64, u64> = BTreeMap::new();
            let mut left = vec![(tree.key, tree.level, tree.stored)];
            while let Some((key, level, stored)) = left.pop() {
                *runs.entry(stored.file).or_default() += u64::from(stored.len);
                if level == 0 {
                    page(key, &stored);
                    continue;
                }
                let (own, own_level, branches) = &self.nodes[&(stored.file, stored.offset)];
                assert_eq!((own, *own_level), (&key, level));
                left.extend(branches.iter().map(|(slot, _, stored)| {
                    let number = key.number << 6 | u64::from(*slot);
                    (PageKey { number, ..key }, level - 1, *stored)
                }));
            }
            assert_eq!(runs, tree.runs, "of the tree of {:?}", tree.key);
        }
        let mut payloads: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for at in bodies.values() {
            let used = payloads.entry(at.file).or_default();
            *used = (used.0 + at.disk_bytes(), used.1 + 1);
        }
        let mut told: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (file, (bytes, count)) in state.trees.iter().flat_map(|tree| &tree.payloads) {
            let used = told.entry(*file).or_default();
            *used = (used.0 + bytes, used.1 + count);
        }
        assert_eq!(told, payloads, "what lives in payload files");
        (stored_pages(pages), bodies)
    }

    /// What a page or node is.
    pub(super) fn part(&self, at: &AbsentPage) -> StoredPart {
        let place = (at.stored.file, at.stored.offset);
        if at.level == 0 {
            let (key, bytes, bodies) = &self.pages[&place];
            assert_eq!(*key, at.key);
            let bodies = bodies.iter().map(|(slot, at)| {
                let (_, bytes) = &self.bodies[&(at.file, at.offset)];
                (*slot, *at, bytes.clone())
            });
            let bodies: Vec<_> = bodies.collect();
            StoredPart::page(GROUP, *at, bytes, &bodies).expect("it is whole")
        } else {
            let (key, level, branches) = &self.nodes[&place];
            assert_eq!((*key, *level), (at.key, at.level));
            StoredPart::node(*at, branches)
        }
    }

    /// What is below a node, with what is told of it there.
    pub(super) fn below(&self, at: &AbsentPage) -> Vec<(AbsentPage, SummaryBytes)> {
        let (_, _, branches) = &self.nodes[&(at.stored.file, at.stored.offset)];
        let below = branches.iter().map(|(slot, summary, stored)| {
            let number = at.key.number << 6 | u64::from(*slot);
            let below = AbsentPage {
                key: PageKey { number, ..at.key },
                level: at.level - 1,
                stored: *stored,
            };
            (below, *summary)
        });
        below.collect()
    }

    /// What a start makes of a root, if it reads no more than it must.
    pub(super) fn open(&self, state: &WrittenState) -> JobQueue {
        let mut parts = Vec::new();
        for tree in &state.trees {
            let top = AbsentPage {
                key: tree.key,
                level: tree.level,
                stored: tree.stored,
            };
            let mut left = VecDeque::from([(top, tree.summary)]);
            while let Some((at, summary)) = left.pop_front() {
                if !is_read_at_start(at.key.kind, at.level, &tree.summary, &summary) {
                    continue;
                }
                parts.push(self.part(&at));
                if at.level != 0 {
                    left.extend(self.below(&at));
                }
            }
        }
        let flat = state.pages.iter();
        let flat = flat.map(|(key, at)| (*key, self.pages[&(at.file, at.offset)].1.clone()));
        let flat: Vec<_> = flat.collect();
        let mut machine = JobQueue::absent(GROUP);
        machine
            .open(&flat, &state.trees, parts)
            .expect("it is whole");
        for (key, stored) in &state.pages {
            machine.found(*key, *stored);
        }
        machine
    }

    /// Reads what is wanted; how many parts that were.
    pub(super) fn read_wanted(&self, machine: &mut JobQueue, wants: &[PageWant]) -> usize {
        let mut count = 0;
        for want in wants {
            let mut left = vec![want.at];
            while let Some(at) = left.pop() {
                count += 1;
                machine.take_part(self.part(&at)).expect("it is whole");
                if at.level != 0 {
                    let below = self.below(&at).into_iter();
                    let below = below
                        .filter(|(below, summary)| want.lets_through(below.key.number, summary));
                    left.extend(below.take(want.pages_max()).map(|(below, _)| below));
                }
            }
        }
        count
    }

    /// Reads all that is absent, as a purge of everything would need it, and the keys.
    pub(super) fn read_all(&self, state: &WrittenState, machine: &mut JobQueue) {
        for tree in &state.trees {
            let mut left = vec![AbsentPage {
                key: tree.key,
                level: tree.level,
                stored: tree.stored,
            }];
            while let Some(at) = left.pop() {
                machine.take_part(self.part(&at)).expect("it is whole");
                if at.level != 0 {
                    left.extend(self.below(&at).into_iter().map(|(below, _)| below));
                }
            }
        }
    }

    /// All of what a root names.
    pub(super) fn load(&self, state: &WrittenState) -> JobQueue {
        let mut machine = self.open(state);
        self.read_all(state, &mut machine);
        machine
    }
}

/// All pages of a state.
fn pages(frozen: &FrozenState) -> Vec<(PageKey, Bytes)> {
    let mut frozen = FrozenState {
        shared: frozen.shared.clone(),
        next: Some(crate::queue::frozen::Shared::first_key()),
    };
    let pages = frozen.next_pages(usize::MAX);
    assert!(frozen.next_pages(1).is_empty());
    pages
}

/// A checkpoint that succeeds.
pub(super) fn checkpoint(machine: &mut JobQueue, disk: &mut Disk) -> (WrittenState, Count) {
    checkpoint_leaving(machine, disk, LeftFiles::default())
}

fn checkpoint_leaving(
    machine: &mut JobQueue,
    disk: &mut Disk,
    files: LeftFiles,
) -> (WrittenState, Count) {
    let frozen = machine.cut();
    let (state, mut kept, count) = disk.write_leaving(&frozen, files);
    assert_eq!(disk.read(&state).0, pages(&frozen));
    drop(frozen);
    while machine.keep(&mut kept, 3) {}
    check(machine).expect("all invariants hold");
    (state, count)
}

pub(super) fn jobs(count: usize) -> Op {
    enqueue(vec![NewJob::default(); count])
}

/// A machine with one queue of so many waiting jobs.
pub(super) fn waiting(count: usize) -> JobQueue {
    let mut machine = JobQueue::new(GROUP, 0);
    let create = Op::CreateQueue {
        name: "mail".to_owned(),
        settings: Default::default(),
        must_be_new: true,
        groups: 0,
    };
    apply(&mut machine, 0, create);
    for _ in 0..count / 1000 {
        apply(&mut machine, 0, jobs(1000));
    }
    machine
}

#[test]
fn what_has_not_changed_is_not_written_again() {
    let (mut machine, mut disk) = (waiting(10_000), Disk::default());
    let (first, count) = checkpoint(&mut machine, &mut disk);
    // The group, the queue, its partition; 157 leaves; three nodes above them and one above those.
    let all = Count {
        pages: 3 + 157,
        nodes: 4,
        bodies: 10_000,
        read: 0,
    };
    assert_eq!(count, all);
    let (second, count) = checkpoint(&mut machine, &mut disk);
    assert_eq!((second, count), (first, Count::default()));
    // One leased at the head, one enqueued at the tail: two leaves, and the nodes above; the counters.
    apply(&mut machine, 1, lease(1));
    apply(&mut machine, 1, jobs(1));
    let (_, count) = checkpoint(&mut machine, &mut disk);
    let few = Count {
        pages: 2 + 2,
        nodes: 3,
        bodies: 1,
        read: 0,
    };
    assert_eq!(count, few);
}

#[test]
fn what_changes_during_a_checkpoint_is_in_the_next() {
    let (mut machine, mut disk) = (waiting(1000), Disk::default());
    let frozen = machine.cut();
    let before = pages(&frozen);
    let Outcome::Leased(grants) = apply(&mut machine, 1, lease(2)) else {
        panic!("there are jobs");
    };
    let (state, mut kept, _) = disk.write(&frozen);
    let ack = AckItem {
        token: grants[0].token,
        result: None,
    };
    apply(&mut machine, 2, Op::Ack { items: vec![ack] });
    assert_eq!(disk.read(&state).0, before);
    drop(frozen);
    while machine.keep(&mut kept, 7) {}
    check(&machine).expect("all invariants hold");
    // The leaf of both, the node above, the counters and the time.
    let (state, count) = checkpoint(&mut machine, &mut disk);
    let pages = 3;
    let (nodes, bodies, read) = (1, 0, 0);
    assert_eq!(
        count,
        Count {
            pages,
            nodes,
            bodies,
            read
        }
    );
    assert_eq!(disk.load(&state).state_hash(), machine.state_hash());
}

#[test]
fn what_a_failed_checkpoint_wrote_is_written_by_the_next() {
    let (mut machine, mut disk) = (waiting(1000), Disk::default());
    let (_, _, first) = disk.write(&machine.cut());
    let (_, count) = checkpoint(&mut machine, &mut disk);
    assert_eq!(count, first);
}

#[test]
fn files_that_are_left_are_written_anew() {
    let (mut machine, mut disk) = (waiting(2000), Disk::default());
    checkpoint(&mut machine, &mut disk);
    apply(&mut machine, 1, lease(100));
    let (state, _) = checkpoint(&mut machine, &mut disk);
    let files = |state: &WrittenState| {
        let trees = state.trees.iter();
        let runs = trees.clone().flat_map(|tree| tree.runs.keys().copied());
        let payloads = trees.flat_map(|tree| tree.payloads.keys().copied());
        (runs.collect(), payloads.collect())
    };
    let (runs, payloads): (BTreeSet<u64>, BTreeSet<u64>) = files(&state);
    assert_eq!((runs, payloads), ([1, 2].into(), [1001].into()));
    let left = LeftFiles {
        runs: [1].into(),
        payloads: [1001].into(),
    };
    let (state, count) = checkpoint_leaving(&mut machine, &mut disk, left);
    assert_eq!(files(&state), ([3].into(), [1003].into()));
    assert_eq!(count.bodies, 2000);
    assert_eq!(disk.load(&state).state_hash(), machine.state_hash());
}

#[test]
fn a_raised_version_writes_the_few_pages_anew() {
    let (mut machine, mut disk) = (rich(), Disk::default());
    checkpoint(&mut machine, &mut disk);
    let frozen = machine.cut();
    let (_, mut kept, count) = disk.write(&frozen);
    assert_eq!(count, Count::default());
    drop(frozen);
    machine.raise_version(2);
    while machine.keep(&mut kept, 100) {}
    let (state, _) = checkpoint(&mut machine, &mut disk);
    assert_eq!(disk.load(&state).state_hash(), machine.state_hash());
}

pub(super) fn random_op(machine: &JobQueue, prng: &mut Prng) -> Op {
    let one = |prng: &mut Prng| NewJob {
        payload: vec![7; prng.below(40) as usize].into(),
        priority: Some(prng.below(8) as u8),
        start: [Start::Now, Start::Now, Start::After(prng.below(90))][prng.below(3) as usize],
        ttl_ms: prng.below(2) * prng.below(200),
        key: prng
            .chance(1, 3)
            .then(|| prng.below(5_000).to_string().into()),
        ..NewJob::default()
    };
    let tokens = || {
        let leased = machine.peek(
            uid(1),
            Partition(0),
            crate::queue::view::JobState::InFlight,
            200,
        );
        let leased = leased.unwrap_or_default();
        leased
            .iter()
            .filter_map(|job| job.token)
            .collect::<Vec<_>>()
    };
    match prng.below(9) {
        0..=2 => {
            let count = 1 + prng.below(200);
            enqueue((0..count).map(|_| one(prng)).collect())
        }
        3 => lease(1 + prng.below(150) as u32),
        4 | 5 => {
            let mut items: Vec<AckItem> = tokens()
                .into_iter()
                .map(|token| AckItem {
                    token,
                    result: None,
                })
                .collect();
            items.truncate(prng.below(200) as usize);
            Op::Ack { items }
        }
        6 => {
            let items = tokens().into_iter().take(20).map(|token| NackItem {
                token,
                delay_ms: Some(prng.below(50)),
                reason: Bytes::from_static(b"it failed"),
            });
            Op::Nack {
                items: items.collect(),
            }
        }
        7 => Op::Advance { limit: 300 },
        _ => Op::Purge {
            queue: uid(1),
            partition: Partition(0),
            states: PurgeStates {
                pending: prng.chance(1, 8),
                delayed: prng.chance(1, 4),
                dead: true,
            },
        },
    }
}

#[test]
fn checkpoints_are_the_state_whatever_happens_between_them() {
    for seed in 0..30 {
        let mut prng = Prng::new(seed);
        let (mut machine, mut disk) = (rich(), Disk::default());
        let mut time = 10;
        for _ in 0..40 {
            for _ in 0..prng.below(6) {
                time += prng.below(30);
                let op = random_op(&machine, &mut prng);
                apply(&mut machine, time, op);
            }
            let mut left = LeftFiles::default();
            if prng.chance(1, 3) {
                left.runs.insert(prng.below(disk.file + 1));
                left.payloads.insert(1000 + prng.below(disk.file + 1));
            }
            let (runs, payloads) = (left.runs.clone(), left.payloads.clone());
            let frozen = machine.cut();
            let before = pages(&frozen);
            let (state, mut kept, _) = disk.write_leaving(&frozen, left);
            for tree in &state.trees {
                assert!(tree.runs.keys().all(|file| !runs.contains(file)));
                assert!(tree.payloads.keys().all(|file| !payloads.contains(file)));
            }
            let op = random_op(&machine, &mut prng);
            apply(&mut machine, time, op);
            assert_eq!(disk.read(&state).0, before, "seed {seed}");
            drop(frozen);
            if prng.chance(1, 5) {
                // It was not to be durable.
                continue;
            }
            while machine.keep(&mut kept, 1 + prng.below(50) as usize) {}
            check(&machine).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            if prng.chance(1, 6) {
                machine = disk.load(&state);
                check(&machine).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
                let (_, count) = checkpoint(&mut machine, &mut disk);
                assert_eq!(count, Count::default(), "seed {seed}: all of it was found");
            }
        }
    }
}

#[test]
fn what_is_absent_changes_no_outcome() {
    let mut read = 0;
    for seed in 0..20 {
        let mut prng = Prng::new(seed);
        let (mut whole, mut disk) = (rich(), Disk::default());
        for _ in 0..prng.below(3) * 5 {
            apply(&mut whole, 9, jobs(1000));
        }
        let (state, _) = checkpoint(&mut whole, &mut disk);
        let mut machine = disk.open(&state);
        let mut time = 10;
        for _ in 0..60 {
            check(&machine).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            time += prng.below(30);
            let op = random_op(&whole, &mut prng);
            let at = ApplyAt {
                index: LogIndex(time),
                time: GroupTime(time),
            };
            let session = None;
            let command = Command { session, op };
            loop {
                let wants = machine.pages_needed(at, &command, PAGES_AHEAD);
                if wants.is_empty() {
                    break;
                }
                let count = disk.read_wanted(&mut machine, &wants);
                assert_ne!(count, 0, "seed {seed}: nothing would ever come of it");
                read += count;
            }
            let outcome = machine.apply(at, &command);
            assert_eq!(outcome, whole.apply(at, &command), "seed {seed}");
            assert_eq!(machine.next_due(), whole.next_due(), "seed {seed}");
            match prng.below(8) {
                restart @ 0..=1 => {
                    let (state, _) = checkpoint_absent(&mut machine, &mut disk, &mut prng);
                    if restart == 1 {
                        machine = disk.open(&state);
                    }
                }
                2..=4 => {
                    machine.let_go([1, 50_000, u64::MAX][prng.below(3) as usize]);
                }
                _ => {}
            }
        }
        let (state, _) = checkpoint_absent(&mut machine, &mut disk, &mut prng);
        disk.read_all(&state, &mut machine);
        check(&machine).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        assert_eq!(machine.state_hash(), whole.state_hash(), "seed {seed}");
        let (of_whole, _) = checkpoint(&mut whole, &mut disk);
        assert_eq!(named(&state), named(&of_whole), "seed {seed}");
    }
    assert!(read > 300, "{read} pages were read");
}

/// What a root says, but for places.
fn named(state: &WrittenState) -> Vec<(PageKey, u8, Vec<u8>, Hash128)> {
    let pages = state.pages.iter();
    let pages = pages.map(|(key, stored)| (*key, 0, Vec::new(), stored.hash));
    let trees = state.trees.iter();
    let trees = trees.map(|tree| {
        (
            tree.key,
            tree.level,
            tree.summary.to_vec(),
            tree.stored.hash,
        )
    });
    pages.chain(trees).collect()
}

/// A checkpoint of a state of which not all is here, that leaves some files.
fn checkpoint_absent(
    machine: &mut JobQueue,
    disk: &mut Disk,
    prng: &mut Prng,
) -> (WrittenState, Count) {
    let mut left = LeftFiles::default();
    if prng.chance(1, 2) {
        left.runs.insert(prng.below(disk.file + 1));
        left.payloads.insert(1000 + prng.below(disk.file + 1));
    }
    let frozen = machine.cut();
    if prng.chance(1, 3) {
        machine.let_go(u64::MAX);
    }
    let (state, mut kept, count) = disk.write_leaving(&frozen, left);
    // Proves what each file is said to keep alive.
    disk.read(&state);
    drop(frozen);
    while machine.keep(&mut kept, 1 + prng.below(50) as usize) {}
    check(machine).expect("all invariants hold");
    (state, count)
}

#[test]
fn a_page_that_is_not_what_is_told_above_it_is_never_left_out() {
    let (mut machine, mut disk) = (waiting(10_000), Disk::default());
    let (state, _) = checkpoint(&mut machine, &mut disk);
    // The same places with other pages: each of these has one job less.
    for (key, bytes, bodies) in disk.pages.values_mut() {
        if key.kind == PageKind::Leaf && key.number >= 2 {
            let mut fewer = bytes.to_vec();
            fewer[..64].fill(0);
            *bytes = fewer.into();
            bodies.remove(0);
        }
    }
    let left = LeftFiles {
        runs: [1].into(),
        payloads: [1001].into(),
    };
    let mut writer = disk.open(&state).cut().writer(&Arc::new(left));
    let mut asked = Vec::new();
    let error = loop {
        match writer.next_piece().expect("it is never at its end") {
            Piece::Pause => {}
            Piece::Read(absent) => {
                asked.push(absent[0].key.number);
                let mut parts = absent.iter().map(|at| disk.part(at));
                if let Err(error) = parts.try_for_each(|part| writer.read(part)) {
                    break error;
                }
            }
            Piece::Body { job, .. } => writer.body_placed(job, BodyLocation::NOWHERE),
            Piece::Page { .. } | Piece::Node { .. } => {
                writer.placed(StoredPage::nowhere(Hash128::default()));
            }
        }
    };
    // The node, its first page with what was read ahead, and then what was no use.
    assert_eq!(asked, [0, 0, 2]);
    let said = error.to_string();
    assert!(said.contains("leaf 2 of"), "{said}");
}

#[test]
fn a_start_reads_the_jobs_in_flight_and_a_lease_the_next() {
    let (mut machine, mut disk) = (waiting(10_000), Disk::default());
    apply(&mut machine, 1, lease(70));
    let (state, _) = checkpoint(&mut machine, &mut disk);
    let mut opened = disk.open(&state);
    check(&opened).expect("all invariants hold");
    let leaves = |machine: &JobQueue| {
        let place = &machine.partitions[&(uid(1), Partition(0))];
        place
            .leaves
            .here()
            .map(|(number, _)| number)
            .collect::<Vec<_>>()
    };
    assert_eq!(leaves(&opened), [0, 1]);
    let at = ApplyAt {
        index: LogIndex(2),
        time: GroupTime(2),
    };
    let command = |op| Command { session: None, op };
    // The last leaf is read before anybody asks, with the node above it. What is first is here; once it is not,
    // so are two leaves.
    let mut early = disk.open(&state);
    let wants = early.pages_of_ends();
    assert_eq!(disk.read_wanted(&mut early, &wants), 2);
    early.apply(at, &command(lease(58)));
    let wants = early.pages_of_ends();
    assert_eq!(disk.read_wanted(&mut early, &wants), 2);
    assert_eq!(leaves(&early), [0, 1, 2, 3, 156]);
    // The rest of leaf 1.
    let few = command(lease(58));
    assert_eq!(opened.pages_needed(at, &few, PAGES_AHEAD), []);
    let more = command(lease(59));
    let wants = opened.pages_needed(at, &more, PAGES_AHEAD);
    assert_eq!(disk.read_wanted(&mut opened, &wants), 16);
    assert_eq!(leaves(&opened), (0..18).collect::<Vec<_>>());
    assert_eq!(opened.pages_needed(at, &more, PAGES_AHEAD), []);
    assert_eq!(opened.apply(at, &more), machine.apply(at, &more));
    // The youngest go first, and no job in flight.
    let held = opened.held_bytes();
    assert!(opened.let_go(1) < held / 15);
    assert_eq!(leaves(&opened), (0..17).collect::<Vec<_>>());
    opened.let_go(u64::MAX);
    assert_eq!(leaves(&opened), [0, 1, 2]);
}

#[test]
fn a_purge_reads_no_leaf_of_which_nothing_stays() {
    let states = |pending, delayed| PurgeStates {
        pending,
        delayed,
        dead: true,
    };
    // What waits without delay and with one, and of the purge the states, the nodes that it reads, the
    // pages, and the leaves that are here afterwards. Of a backlog with 100 jobs in flight, those.
    for (waits, delayed, purge, nodes, pages, here) in [
        (20_000, 0, states(true, true), 4, 0, vec![0, 1]),
        (1_000, 19_000, states(true, true), 4, 0, vec![0, 1]),
        // Something stays that is absent: the leaf of both kinds, and what goes, which is less.
        (1_000, 19_000, states(true, false), 0, 14, vec![0, 1, 15]),
        // That leaf, and what stays, which is less.
        (1_000, 19_000, states(false, true), 4, 14, (0..16).collect()),
    ] {
        let (mut whole, mut disk) = (waiting(waits), Disk::default());
        let later = NewJob {
            start: Start::After(1_000_000),
            ..NewJob::default()
        };
        for _ in 0..delayed / 1000 {
            apply(&mut whole, 0, enqueue(vec![later.clone(); 1000]));
        }
        apply(&mut whole, 1, lease(100));
        let (state, _) = checkpoint(&mut whole, &mut disk);
        let mut machine = disk.open(&state);
        let at = ApplyAt {
            index: LogIndex(2),
            time: GroupTime(2),
        };
        let command = Command {
            session: None,
            op: Op::Purge {
                queue: uid(1),
                partition: Partition(0),
                states: purge,
            },
        };
        let mut read = (0, 0);
        loop {
            let wants = machine.pages_needed(at, &command, PAGES_AHEAD);
            let Some(want) = wants.first() else { break };
            let count = disk.read_wanted(&mut machine, &[*want]);
            match want.at.level {
                0 => read.1 += count,
                _ => read.0 += count,
            }
        }
        assert_eq!(read, (nodes, pages), "{purge:?}");
        assert_eq!(machine.apply(at, &command), whole.apply(at, &command));
        let leaves = &machine.partitions[&(uid(1), Partition(0))].leaves;
        let left: Vec<u64> = leaves.here().map(|(number, _)| number).collect();
        assert_eq!(left, here, "{purge:?}");
        check(&machine).expect("all invariants hold");
        let (state, _) = checkpoint_absent(&mut machine, &mut disk, &mut Prng::new(1));
        let (of_whole, _) = checkpoint(&mut whole, &mut disk);
        assert_eq!(named(&state), named(&of_whole));
    }
}

#[test]
fn what_takes_long_to_free_is_handed_out() {
    let purge = Op::Purge {
        queue: uid(1),
        partition: Partition(0),
        states: PurgeStates {
            pending: true,
            ..PurgeStates::default()
        },
    };
    let delete = Op::DeleteQueue { queue: uid(1) };
    for op in [purge, delete] {
        for (jobs, is_much) in [(4_000, false), (5_000, true)] {
            let mut machine = waiting(jobs);
            apply(&mut machine, 1, op.clone());
            assert_eq!(machine.held_bytes(), 0);
            assert_eq!(machine.take_discarded().is_some(), is_much, "{op:?}");
            assert!(machine.take_discarded().is_none());
        }
    }
    // A state that another takes the place of, likewise.
    assert!(Discarded::state(waiting(4_000)).is_none());
    assert!(Discarded::state(waiting(5_000)).is_some());
}

#[test]
fn bodies_are_what_was_enqueued() {
    let (mut machine, mut disk) = (rich(), Disk::default());
    let (state, _) = checkpoint(&mut machine, &mut disk);
    let loaded = disk.load(&state);
    let (_, places) = disk.read(&state);
    assert!(places.len() > 60);
    for (job, at) in places {
        let stored = decode_body(&disk.bodies[&(at.file, at.offset)].1).expect("whole");
        let view = loaded.job(job).expect("live");
        assert_eq!(encode_body(&view.body), encode_body(&stored));
    }
}
