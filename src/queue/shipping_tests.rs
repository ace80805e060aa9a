//! A state brought from one node to another by difference, as far as the job machine goes: what comes, what
//! stays, and that it is the state.

use crate::base::checksum::Hash128;
use crate::base::ids::Partition;
use crate::base::prng::Prng;
use crate::queue::job_queue::JobQueue;
use crate::queue::needs::PageWant;
use crate::queue::page::PageError;
use crate::queue::residence::StoredPart;
use crate::queue::shipping::{Answer, Difference, Found, NamedTree, Names, Source, Wanted};
use crate::queue::tests::{GROUP, apply, lease, rich, uid};
use crate::queue::view::{PageKey, PageKind, StoredPage};
use crate::queue::writing::{Piece, SummaryBytes, WrittenState};
use crate::queue::writing_tests::{Disk, checkpoint, jobs, random_op, said_of_node, waiting};
use std::collections::{BTreeSet, VecDeque};

/// What came from the other node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Came {
    nodes: usize,
    pages: usize,
    bodies: usize,
}

/// Parts of this node's own that are damaged: those that are known to be, and those that are found to be.
#[derive(Default)]
struct Damage {
    known: BTreeSet<(PageKey, u8)>,
    found: BTreeSet<(PageKey, u8)>,
}

fn hash_node(_: PageKey, _: u8, branches: &[(u8, SummaryBytes, StoredPage)]) -> Hash128 {
    Hash128::of(&said_of_node(branches))
}

/// The answer to a want; what is to be read for it is read from the disk.
fn answer(source: &Source, disk: &Disk, wanted: &Wanted) -> Answer {
    match source.answer(wanted) {
        Answer::Read(want) => {
            let mut at = want.at;
            if (at.key, at.level) != (wanted.key, wanted.level) {
                let below = disk.below(&at);
                let below = below.iter().find(|(below, summary)| {
                    want.lets_through(below.key.number, summary) && below.key == wanted.key
                });
                at = below.expect("it is below that").0;
            }
            let part = disk.part(&at);
            Source::of_part(wanted, &part).expect("it was wanted")
        }
        other => other,
    }
}

/// Own parts, without bodies. Those that are damaged cannot be read.
fn own_parts(
    disk: &Disk,
    wants: &[PageWant],
    damaged: &BTreeSet<(PageKey, u8)>,
) -> Result<Vec<StoredPart>, String> {
    let parts = wants.iter().map(|want| {
        let at = want.at;
        if damaged.contains(&(at.key, at.level)) {
            return Err(PageError::of_page(at.key, "it has rotted").to_string());
        }
        if at.level != 0 {
            return Ok(disk.part(&at));
        }
        let (_, bytes, places) = &disk.pages[&(at.stored.file, at.stored.offset)];
        Ok(StoredPart::places(at, bytes.clone(), places.clone()))
    });
    parts.collect()
}

/// Brings a state here, or breaks off after so many answers.
fn bring(
    (theirs, their_disk): (&JobQueue, &Disk),
    (own, disk): (&JobQueue, &mut Disk),
    found: Found,
    answers: usize,
    damage: &Damage,
) -> (Came, Result<WrittenState, Found>) {
    disk.file += 1;
    let mut source = Source::new(&theirs.freeze());
    while !source.prepare(3, hash_node) {}
    let own = own.freeze();
    let difference = Difference::new(&own, source.names(), found, damage.known.clone());
    let mut difference = difference.expect("the names are in order");
    let mut came = Came::default();
    let mut left = answers;
    let mut told = VecDeque::new();
    while !difference.is_done() {
        difference.step(5);
        write(&mut difference, disk);
        let reads = difference.reads();
        if !reads.is_empty() {
            difference.read(own_parts(disk, &reads, &damage.found));
        }
        // Some are told, and others compared, before the first is answered.
        told.extend(difference.wants(1));
        if told.len() < 3 && (difference.can_step() || difference.has_wants()) {
            continue;
        }
        let Some(wanted) = told.pop_front() else {
            continue;
        };
        if left == 0 {
            return (came, Err(difference.into_found().0));
        }
        left -= 1;
        match answer(&source, their_disk, &wanted) {
            Answer::Node(branches) => {
                came.nodes += 1;
                let stored = branches
                    .iter()
                    .map(|(slot, summary, hash)| (*slot, *summary, StoredPage::nowhere(*hash)));
                let hash = Hash128::of(&said_of_node(&stored.collect::<Vec<_>>()));
                let taken = difference.take_node(hash, branches);
                taken.expect("it was wanted");
            }
            Answer::Page(bytes, bodies) => {
                came.pages += 1;
                difference.take_page(bytes).expect("it was wanted");
                write(&mut difference, disk);
                for (slot, body) in bodies {
                    came.bodies += 1;
                    let mut bytes = Vec::new();
                    body.encode_into(&mut bytes);
                    let taken = difference.take_body(slot, &bytes.into());
                    taken.expect("it was wanted");
                    write(&mut difference, disk);
                }
            }
            Answer::Read(_) | Answer::Nothing => panic!("{wanted:?} is not there"),
        }
        write(&mut difference, disk);
    }
    (came, Ok(difference.finish().0))
}

fn write(difference: &mut Difference, disk: &mut Disk) {
    while let Some(piece) = difference.next_piece() {
        match piece {
            Piece::Body { job, body } => difference.body_placed(disk.put_body(job, &body)),
            piece => {
                let placed = difference.placed(disk.put(piece));
                placed.expect("it is what was named");
            }
        }
    }
}

fn all(theirs: (&JobQueue, &Disk), own: (&JobQueue, &mut Disk)) -> (Came, WrittenState) {
    all_of_damaged(theirs, own, &Damage::default())
}

fn all_of_damaged(
    theirs: (&JobQueue, &Disk),
    own: (&JobQueue, &mut Disk),
    damage: &Damage,
) -> (Came, WrittenState) {
    let (came, state) = bring(theirs, own, Found::default(), usize::MAX, damage);
    let state = state.map_err(|_| "it broke off");
    (came, state.expect("all is answered"))
}

/// A node: its state, its disk, its last checkpoint.
type Node = (JobQueue, Disk, WrittenState);

/// Two nodes with a checkpoint of the same state.
fn two(machine: impl Fn() -> JobQueue) -> [Node; 2] {
    [(); 2].map(|()| {
        let (mut machine, mut disk) = (machine(), Disk::default());
        let (state, _) = checkpoint(&mut machine, &mut disk);
        (machine, disk, state)
    })
}

fn leaf(number: u64) -> (PageKey, u8) {
    let key = PageKey {
        kind: PageKind::Leaf,
        queue: uid(1),
        partition: Partition(0),
        number,
    };
    (key, 0)
}

#[test]
fn nothing_comes_of_what_is_the_same() {
    let [(theirs, their_disk, _), (own, mut disk, _)] = two(|| waiting(10_000));
    let (came, state) = all((&theirs, &their_disk), (&own, &mut disk));
    assert_eq!(came, Came::default());
    assert_eq!(disk.load(&state).state_hash(), theirs.state_hash());
}

#[test]
fn only_pages_that_differ_come_and_bodies_that_are_not_here() {
    let [(mut theirs, their_disk, _), (own, mut disk, _)] = two(|| waiting(10_000));
    // One leased at the head, and three enqueued at the tail: both in leaves that are here.
    apply(&mut theirs, 1, lease(1));
    apply(&mut theirs, 1, jobs(3));
    let (came, state) = all((&theirs, &their_disk), (&own, &mut disk));
    let few = Came {
        nodes: 3,
        pages: 2 + 2,
        bodies: 3,
    };
    assert_eq!(came, few);
    assert_eq!(disk.load(&state).state_hash(), theirs.state_hash());
    disk.read(&state);
}

#[test]
fn what_is_absent_here_stays_absent_and_what_is_absent_there_is_read() {
    let [(mut theirs, their_disk, stored), (mut own, mut disk, _)] = two(|| waiting(10_000));
    apply(&mut theirs, 1, lease(70));
    theirs.let_go(u64::MAX);
    own.let_go(u64::MAX);
    let (came, state) = all((&theirs, &their_disk), (&own, &mut disk));
    assert_eq!((came.pages, came.bodies), (2 + 2, 0));
    disk.read(&state);
    their_disk.read_all(&stored, &mut theirs);
    assert_eq!(disk.load(&state).state_hash(), theirs.state_hash());
}

#[test]
fn an_empty_node_gets_everything() {
    let (mut theirs, mut their_disk) = (rich(), Disk::default());
    checkpoint(&mut theirs, &mut their_disk);
    let (own, mut disk) = (JobQueue::new(GROUP, 0), Disk::default());
    let (came, state) = all((&theirs, &their_disk), (&own, &mut disk));
    assert_eq!(came.bodies as u64, theirs.freeze().live_jobs());
    assert_eq!(disk.load(&state).state_hash(), theirs.state_hash());
}

#[test]
fn damaged_parts_come_again_and_nothing_else() {
    let node = |number| (leaf(number).0, 1);
    // A leaf of which this is known, or is found when it is looked at since it differs; a node; both.
    for (known, found, few) in [
        (vec![leaf(7)], vec![], (0, 1, 64)),
        (vec![leaf(7), leaf(90)], vec![], (0, 2, 128)),
        (vec![leaf(0)], vec![], (0, 1, 64)),
        (vec![node(1)], vec![node(1)], (1, 0, 0)),
        (vec![leaf(70)], vec![node(1)], (1, 1, 64)),
    ] {
        let [(theirs, their_disk, _), (mut own, mut disk, _)] = two(|| waiting(10_000));
        own.let_go(u64::MAX);
        let damage = Damage {
            known: known.iter().copied().collect(),
            found: found.iter().copied().collect(),
        };
        let theirs = (&theirs, &their_disk);
        let (came, state) = all_of_damaged(theirs, (&own, &mut disk), &damage);
        let (nodes, pages, bodies) = few;
        let few = Came {
            nodes,
            pages,
            bodies,
        };
        // Below a node that is damaged nobody knows what is here.
        if found.is_empty() {
            assert_eq!(came, few, "{known:?}");
        } else {
            assert!(
                came.nodes == nodes && came.pages <= 64,
                "{known:?}: {came:?}"
            );
        }
        assert_eq!(disk.load(&state).state_hash(), theirs.0.state_hash());
    }
}

#[test]
fn a_page_whose_sequences_cannot_be_is_refused() {
    let [(theirs, their_disk, _), _] = two(|| waiting(1000));
    let mut source = Source::new(&theirs.freeze());
    while !source.prepare(3, hash_node) {}
    let (key, level) = leaf(0);
    let first = Wanted {
        key,
        level,
        held: 0,
    };
    let Answer::Page(bytes, _) = answer(&source, &their_disk, &first) else {
        panic!("a leaf is a page");
    };
    // The same page, named where sequences have more than 56 bits.
    let key = PageKey {
        number: 1 << 44,
        ..key
    };
    let summary = source.names().trees[0].summary;
    let branch = (0, summary, Hash128::of(&bytes));
    let stored = (0, summary, StoredPage::nowhere(branch.2));
    let hash = Hash128::of(&said_of_node(&[stored]));
    let level = 1;
    let tree = NamedTree {
        key,
        level,
        summary,
        hash,
    };
    let names = Names {
        pages: Vec::new(),
        trees: vec![tree],
    };
    let own = JobQueue::new(GROUP, 0).freeze();
    let difference = Difference::new(&own, &names, Found::default(), BTreeSet::new());
    let mut difference = difference.expect("the names are in order");
    difference.step(1);
    assert_eq!(difference.wants(1).len(), 1);
    let taken = difference.take_node(hash, vec![branch]);
    taken.expect("it is what was named");
    difference.step(1);
    assert_eq!(difference.wants(1).len(), 1);
    let refused = difference.take_page(bytes);
    let refused = refused.expect_err("no job has such a sequence");
    assert!(refused.contains("never given out"), "{refused}");
}

#[test]
fn a_difference_is_the_state_whatever_each_has() {
    for seed in 0..60 {
        let mut prng = Prng::new(seed);
        let mut nodes = two(rich);
        let mut time = 10;
        // Both have this, with checkpoints of their own; then one falls behind.
        for behind in [false, true] {
            for _ in 0..prng.below(20) {
                time += prng.below(30);
                let op = random_op(&nodes[0].0, &mut prng);
                for (number, (machine, disk, state)) in nodes.iter_mut().enumerate() {
                    if !(behind && number == 1) {
                        apply(machine, time, op.clone());
                    }
                    if prng.chance(1, 3) {
                        *state = checkpoint(machine, disk).0;
                    }
                }
            }
        }
        let [
            (mut theirs, mut their_disk, mut stored),
            (mut own, mut disk, _),
        ] = nodes;
        if prng.chance(1, 2) {
            own.let_go(u64::MAX);
        }
        let mut found = Found::default();
        // It may break off some times, and go on with a later state.
        let state = loop {
            let answers = match prng.below(3) {
                0 => prng.below(40) as usize,
                _ => usize::MAX,
            };
            if prng.chance(1, 2) {
                theirs.let_go(u64::MAX);
            }
            let theirs_now = (&theirs, &their_disk);
            let own = (&own, &mut disk);
            let brought = bring(theirs_now, own, found, answers, &Damage::default());
            their_disk.read_all(&stored, &mut theirs);
            match brought.1 {
                Ok(state) => break state,
                Err(part) => found = part,
            }
            let op = random_op(&theirs, &mut prng);
            apply(&mut theirs, time, op);
            if prng.chance(1, 2) {
                stored = checkpoint(&mut theirs, &mut their_disk).0;
            }
        };
        let (pages, _) = disk.read(&state);
        assert!(!pages.is_empty(), "seed {seed}");
        let brought = disk.load(&state);
        assert_eq!(brought.state_hash(), theirs.state_hash(), "seed {seed}");
    }
}
