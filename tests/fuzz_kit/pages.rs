//! The pages and bodies of a group's state, as a checkpoint has them.

use super::{Input, assert_is_told};
use bytes::Bytes;
use rrq::base::checksum::crc32c;
use rrq::base::ids::{GroupId, JobId, LogIndex, Partition, QueueUid};
use rrq::base::units::GroupTime;
use rrq::queue::check::check;
use rrq::queue::command::{Command, Op};
use rrq::queue::view::{ApplyAt, BodyLocation, PageKey, PageKind};
use rrq::queue::{JobQueue, decode_body, encode_body};
use std::collections::BTreeMap;

pub(super) const GROUP: GroupId = GroupId(5);

type Pages = Vec<(PageKey, Bytes)>;
type Bodies = BTreeMap<JobId, Bytes>;

/// A set of pages with the bodies of its jobs.
///
/// The input is a list of parts: a kind (0 = a body), a name, a length (u16) and bytes. A page is
/// named by queue (u64), partition and number (u64), a body by its job id (16).
pub(super) fn pages(input: &[u8]) -> bool {
    let (pages, bodies) = parts(input);
    each_body(&bodies);
    let Some(machine) = loaded(&pages, &bodies) else {
        return false;
    };
    check(&machine).expect("what is loaded obeys all rules");
    let again = pages_of(&machine);
    assert_eq!(names(&again), names(&pages));
    assert!(again == pages, "a state has one form");
    let hash = machine.state_hash();
    let same = loaded(&again, &bodies).expect("its own pages");
    assert_eq!(same.state_hash(), hash);
    lives_on(same);
    true
}

fn loaded(pages: &Pages, bodies: &Bodies) -> Option<JobQueue> {
    let mut machine = JobQueue::absent(GROUP);
    let location = BodyLocation {
        file: 1,
        offset: 4096,
        len: 1,
    };
    let found = machine.load(pages, &mut |job| {
        Some((bodies.get(&job)?.clone(), location))
    });
    match found {
        Ok(()) => Some(machine),
        Err(error) => {
            assert_is_told(&error);
            None
        }
    }
}

/// Whatever was accepted can be worked with.
fn lives_on(mut machine: JobQueue) {
    let time = machine.time().0;
    let times = [time, machine.next_due().map_or(time, |due| due.0.max(time))];
    let queue = machine.queues().first().map(|(info, _)| info.uid);
    for (nth, time) in times.into_iter().enumerate() {
        let at = ApplyAt {
            index: LogIndex(1000 + nth as u64),
            time: GroupTime(time),
        };
        let lease = queue.map(|queue| Op::Lease {
            queue,
            partition: Partition(0),
            max: 3,
            lease_ms: 0,
            epoch: 1,
        });
        for op in [Some(Op::Advance { limit: 1024 }), lease]
            .into_iter()
            .flatten()
        {
            machine.apply(at, &Command { session: None, op });
            check(&machine).expect("a command keeps all rules");
        }
    }
}

fn each_body(bodies: &Bodies) {
    for bytes in bodies.values() {
        match decode_body(bytes) {
            Ok(body) => assert_eq!(encode_body(&body), *bytes, "a body has one form"),
            Err(error) => assert_is_told(&error),
        }
    }
}

pub(super) fn pages_of(machine: &JobQueue) -> Pages {
    machine.freeze().next_pages(usize::MAX)
}

fn names(pages: &Pages) -> Vec<PageKey> {
    pages.iter().map(|(key, _)| *key).collect()
}

/// The parts of an input; what has no possible name is left out. Bodies get a fitting checksum.
fn parts(input: &[u8]) -> (Pages, Bodies) {
    let mut input = Input(input);
    let (mut pages, mut bodies) = (Pages::new(), Bodies::new());
    while !input.is_empty() {
        let kind = input.u8();
        let mut name = Input(input.take(if kind == 0 { 16 } else { 17 }));
        let len = usize::from(input.u16());
        let bytes = input.take(len);
        if kind == 0 {
            let mut body = bytes[..bytes.len().saturating_sub(4)].to_vec();
            let crc = crc32c(&[&body]);
            body.extend_from_slice(&crc.to_le_bytes());
            let id = name.0.try_into().ok();
            if let Some(Ok(job)) = id.map(JobId::from_bytes) {
                bodies.insert(job, body.into());
            }
            continue;
        }
        let queue = QueueUid::from_u64(name.u64());
        let (partition, number) = (Partition(name.u8()), name.u64());
        if let (Some(kind), Some(queue)) = (PageKind::from_u8(kind), queue) {
            let key = PageKey {
                kind,
                queue,
                partition,
                number,
            };
            pages.push((key, Bytes::copy_from_slice(bytes)));
        }
    }
    (pages, bodies)
}

/// The state of `machine` as [`pages`] reads it.
pub(super) fn pages_input(machine: &JobQueue) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, bytes) in pages_of(machine) {
        out.push(key.kind as u8);
        out.extend_from_slice(&key.queue.to_u64().to_le_bytes());
        out.push(key.partition.0);
        out.extend_from_slice(&key.number.to_le_bytes());
        out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        out.extend_from_slice(&bytes);
    }
    for body in machine.freeze().bodies().next_bodies(usize::MAX) {
        let bytes = encode_body(&body.body.body());
        out.push(0);
        out.extend_from_slice(&body.job.to_bytes());
        out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        out.extend_from_slice(&bytes);
    }
    out
}
