//! What can be had of a damaged state: the last resort of `rrqctl repair`, never part of a start.
//!
//! Takes the pages and bodies that are whole, and leaves out what hangs on the others:
//!
//! | damaged | lost with it |
//! | --- | --- |
//! | the group page | everything: nobody knows which ids were given out |
//! | a queue's page, or a partition's | what this group holds of that queue: likewise |
//! | a leaf | its jobs, up to 64 |
//! | a node | all pages below it, as if each were damaged |
//! | a body | its job |
//! | a session | its outcomes; a lease of it goes on without a session, and ends by time |
//! | reasons, keys | themselves |
//! | finished jobs | all that its partition retains |
//!
//! The key of a job that is lost is forgotten with it, so that the same job can be enqueued again.
//! Counters of what is live are counted anew; totals stay as they were. What comes out holds every
//! invariant of the machine.

use crate::base::ids::{GroupId, JobId, QueueUid};
use crate::base::limits::{LEAF_JOBS, NODE_BRANCHES};
use crate::queue::command::PartitionChange;
use crate::queue::job_queue::JobQueue;
use crate::queue::load::check_owner;
use crate::queue::load::{Bodies, Loading, ORDER};
use crate::queue::page::{PageError, PagePlace, read_keys, read_leaf, read_reasons};
use crate::queue::view::{BodyLocation, PageKey, PageKind};
use bytes::Bytes;

/// What a salvage leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Pages that are damaged or hang on a damaged one, and why.
    pub pages: Vec<PageError>,
    /// Jobs, as ranges of ids of one partition, both ends included, in order. Of a leaf, all that
    /// it can have held.
    pub jobs: Vec<(JobId, JobId)>,
    /// Whole queues.
    pub queues: Vec<QueueUid>,
}

impl JobQueue {
    /// Takes of the state of a group what is whole. `pages` are those that could be read, in the
    /// order of their keys; `bad` are the others. `bodies` yields a body that could be read.
    ///
    /// # Errors
    /// If nothing can be had: the group page is damaged.
    pub fn salvage(
        group: GroupId,
        pages: &[(PageKey, Bytes)],
        bad: Vec<PageError>,
        bodies: &mut dyn FnMut(JobId) -> Option<(Bytes, BodyLocation)>,
    ) -> Result<(Self, Lost), PageError> {
        let mut salvage = Salvage {
            loading: Loading::new(group),
            lost: Lost {
                pages: bad,
                ..Lost::default()
            },
        };
        let is_group =
            |place: PagePlace| matches!(place, PagePlace::Page(key) if key.kind == PageKind::Group);
        if let Some(at) = salvage
            .lost
            .pages
            .iter()
            .position(|page| is_group(page.place))
        {
            return Err(salvage.lost.pages.swap_remove(at));
        }
        salvage.lose_leaves();
        for kind in ORDER {
            for (key, bytes) in pages.iter().filter(|(key, _)| key.kind == kind) {
                salvage.page(*key, bytes, bodies)?;
            }
            if kind == PageKind::Partition {
                salvage.drop_halves();
            }
        }
        salvage.finish()
    }
}

struct Salvage {
    loading: Loading,
    lost: Lost,
}

impl Salvage {
    /// The jobs of the leaves that could not be read.
    fn lose_leaves(&mut self) {
        let group = self.loading.machine.group;
        for page in &self.lost.pages {
            let (key, level) = match page.place {
                PagePlace::Page(key) => (key, 0),
                PagePlace::Node(key, level) => (key, level),
                PagePlace::Body(_) | PagePlace::Set => continue,
            };
            if key.kind == PageKind::Leaf {
                self.lost.jobs.extend(leaves_range(group, key, level));
            }
        }
        self.lost.jobs.sort_unstable();
    }

    fn page(
        &mut self,
        key: PageKey,
        bytes: &Bytes,
        bodies: &mut Bodies<'_>,
    ) -> Result<(), PageError> {
        let taken = match key.kind {
            PageKind::Leaf => self.leaf(key, bytes, bodies),
            PageKind::Reasons => self.reasons(key, bytes),
            PageKind::Keys => self.keys(key, bytes),
            PageKind::Finished if self.has_gap(key) => Err(PageError::of_page(
                key,
                "others of its partition are damaged",
            )),
            _ => self.loading.page(key, bytes, bodies),
        };
        match taken {
            Err(error) if key.kind == PageKind::Group => Err(error),
            Err(error) => {
                if key.kind == PageKind::Leaf {
                    self.lose(leaf_range(self.loading.machine.group, key));
                }
                self.lost.pages.push(error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn lose(&mut self, jobs: Option<(JobId, JobId)>) {
        if let Some(range) = jobs {
            let at = self.lost.jobs.partition_point(|other| *other < range);
            self.lost.jobs.insert(at, range);
        }
    }

    fn is_lost(&self, job: JobId) -> bool {
        let behind = self.lost.jobs.partition_point(|(first, _)| *first <= job);
        let before = behind.checked_sub(1).map(|at| self.lost.jobs[at]);
        before.is_some_and(|(_, last)| job <= last)
    }

    fn leaf(
        &mut self,
        key: PageKey,
        bytes: &Bytes,
        bodies: &mut Bodies<'_>,
    ) -> Result<(), PageError> {
        let of_page = |what| PageError::of_page(key, what);
        let first = key.number.checked_mul(LEAF_JOBS);
        let records = read_leaf(bytes).map_err(of_page)?;
        // First all that could refuse the leaf as a whole, so that it is taken or not.
        let mut jobs = Vec::new();
        for (slot, record) in records {
            let seq = first.and_then(|first| first.checked_add(slot));
            let (id, partition) = self.loading.place_of(key, seq).map_err(of_page)?;
            jobs.push((id, partition, record));
        }
        for (id, partition, mut record) in jobs {
            let sessions = &self.loading.machine.links.sessions;
            if check_owner(sessions, record.owner).is_err() {
                record.owner = 0;
            }
            if let Err(error) = self.loading.job(id, partition, record, bodies) {
                self.lost.pages.push(error);
                self.lose(Some((id, id)));
            }
        }
        Ok(())
    }

    fn reasons(&mut self, key: PageKey, bytes: &Bytes) -> Result<(), PageError> {
        let of_page = |what| PageError::of_page(key, what);
        let reasons = read_reasons(bytes).map_err(of_page)?;
        let place = (key.queue, key.partition);
        let partition = self.loading.machine.partitions.get_mut(&place);
        let partition = partition.ok_or_else(|| of_page("its partition has no page"))?;
        for (slot, reason) in reasons {
            let seq = key.number.saturating_mul(LEAF_JOBS);
            let seq = seq.saturating_add(u64::from(slot));
            if partition.leaves.record(seq).is_some() {
                partition.leaves.set_reason(seq, reason);
            }
        }
        Ok(())
    }

    fn keys(&mut self, key: PageKey, bytes: &Bytes) -> Result<(), PageError> {
        let of_page = |what| PageError::of_page(key, what);
        let mut keys = read_keys(bytes, key.number).map_err(of_page)?;
        let (queue, number) = (key.queue, key.partition);
        let group = self.loading.machine.group;
        keys.retain(|record| !self.is_lost(JobId::new(group, queue, number, record.seq)));
        let machine = &mut self.loading.machine;
        let partition = machine.partitions.get_mut(&(queue, number));
        let partition = partition.ok_or_else(|| of_page("its partition has no page"))?;
        let next = partition.head.next_seq;
        for record in keys.into_iter().filter(|record| record.seq < next) {
            partition.remember((queue, number), record, &mut machine.links);
        }
        Ok(())
    }

    /// Queues of which a partition here is lost go whole, before any job is taken.
    fn drop_halves(&mut self) {
        let machine = &mut self.loading.machine;
        let group = machine.group;
        let queues = machine.queues.iter();
        let halves: Vec<QueueUid> = queues
            .filter(|(uid, record)| {
                let here = record.places().remove(&group).unwrap_or_default();
                let is_here = |number| machine.partitions.contains_key(&(**uid, number));
                !here.into_iter().all(is_here)
            })
            .map(|(uid, _)| *uid)
            .collect();
        for uid in &halves {
            let record = machine.queues.remove(uid);
            machine.homed -= record.map_or(0, |record| record.groups.len());
            machine.names.retain(|_, named| named != uid);
            machine.partitions.retain(|(queue, _), _| queue != uid);
            self.loading.counted.retain(|(queue, _), _| queue != uid);
        }
        // What other groups have yet to do for a queue that is gone is to remove it.
        let changes = machine.outbox.iter();
        let orphans: Vec<(GroupId, PartitionChange)> = changes
            .filter(|(_, change)| !machine.queues.contains_key(&change.queue))
            .map(|(group, change)| {
                (
                    group,
                    PartitionChange {
                        config: None,
                        ..change.clone()
                    },
                )
            })
            .collect();
        for (group, change) in orphans {
            machine.outbox.ask(group, change);
        }
        self.lost.queues.extend(halves);
    }

    /// Whether a page of finished jobs of the same partition is damaged: the places of those that
    /// are retained have no gap.
    fn has_gap(&self, key: PageKey) -> bool {
        self.lost.pages.iter().any(|page| {
            matches!(page.place, PagePlace::Page(other) | PagePlace::Node(other, _)
                if other.kind == key.kind
                    && (other.queue, other.partition) == (key.queue, key.partition))
        })
    }

    fn finish(mut self) -> Result<(JobQueue, Lost), PageError> {
        let machine = &mut self.loading.machine;
        let lost = self.lost.pages.iter().filter_map(|page| match page.place {
            PagePlace::Page(key) | PagePlace::Node(key, _) => Some(key.queue),
            PagePlace::Body(_) | PagePlace::Set => None,
        });
        let lost = lost.filter(|uid| *uid != QueueUid::default());
        self.lost.queues = lost
            .filter(|uid| !machine.queues.contains_key(uid))
            .collect();
        self.lost.queues.sort_unstable();
        self.lost.queues.dedup();
        for (place, state) in &machine.partitions {
            self.loading.counted.insert(*place, state.head.stats);
        }
        Ok((self.loading.finish()?, self.lost))
    }
}

/// All jobs that a leaf can hold.
fn leaf_range(group: GroupId, key: PageKey) -> Option<(JobId, JobId)> {
    leaves_range(group, key, 0)
}

/// All jobs that the leaves below a node can hold; at level 0 those of a leaf.
fn leaves_range(group: GroupId, key: PageKey, level: u8) -> Option<(JobId, JobId)> {
    let span = LEAF_JOBS.checked_mul(NODE_BRANCHES.checked_pow(level.into())?)?;
    let first = key.number.checked_mul(span)?;
    let first = Some(first).filter(|first| *first <= JobId::SEQ_MAX)?;
    let last = first.saturating_add(span - 1);
    let job = |seq| JobId::new(group, key.queue, key.partition, seq);
    Some((job(first), job(last.min(JobId::SEQ_MAX))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{LogIndex, Partition};
    use crate::base::units::GroupTime;
    use crate::queue::body::encode_body;
    use crate::queue::check::check;
    use crate::queue::command::{
        Command, Enqueued, NewJob, Op, Outcome, QueueSettings, SessionCall, Window,
    };
    use crate::queue::view::{ApplyAt, JobState};

    const GROUP: GroupId = GroupId(7);

    fn apply(machine: &mut JobQueue, session: Option<SessionCall>, op: Op) -> Outcome {
        let at = ApplyAt {
            index: LogIndex(3),
            time: GroupTime(1000),
        };
        machine.apply(at, &Command { session, op })
    }

    fn uid() -> QueueUid {
        QueueUid::new(GROUP, 1).expect("in range")
    }

    fn job(seq: u64) -> JobId {
        JobId::new(GROUP, uid(), Partition(0), seq)
    }

    /// 130 jobs in three leaves, each with a key; the first is leased by a session.
    fn machine() -> JobQueue {
        let mut machine = JobQueue::new(GROUP, 0);
        let create = Op::CreateQueue {
            name: "emails".to_owned(),
            settings: QueueSettings::default(),
            must_be_new: true,
            groups: 0,
        };
        apply(&mut machine, None, create);
        let items = (0..130_u32).map(|number| NewJob {
            payload: number.to_string().into(),
            key: Some(number.to_string().into()),
            ..NewJob::default()
        });
        let enqueue = Op::Enqueue {
            queue: uid(),
            partition: Partition(0),
            items: items.collect(),
        };
        apply(&mut machine, None, enqueue);
        let open = Op::OpenSession {
            worker_timeout_ms: 0,
        };
        let Outcome::SessionOpened { session, epoch } = apply(&mut machine, None, open) else {
            panic!("no session");
        };
        let lease = Op::Lease {
            queue: uid(),
            partition: Partition(0),
            max: 1,
            lease_ms: 0,
            epoch,
        };
        let call = SessionCall {
            id: session,
            seq: 1,
            lowest: 1,
            window: Window::Polls,
        };
        apply(&mut machine, Some(call), lease);
        machine
    }

    /// The salvage of a state without the pages and bodies that `bad` names.
    fn salvaged(
        bad: impl Fn(PageKey) -> bool,
        bad_body: impl Fn(JobId) -> bool,
    ) -> Result<(JobQueue, Lost), PageError> {
        let machine = machine();
        let pages = machine.freeze().next_pages(usize::MAX);
        let (gone, pages): (Vec<_>, Vec<_>) = pages.into_iter().partition(|(key, _)| bad(*key));
        let gone = gone
            .into_iter()
            .map(|(key, _)| PageError::of_page(key, "bad"));
        JobQueue::salvage(GROUP, &pages, gone.collect(), &mut |id| {
            let location = BodyLocation {
                file: 1,
                offset: 0,
                len: 0,
            };
            let body = machine.job(id).ok().filter(|_| !bad_body(id))?.body;
            Some((encode_body(&body), location))
        })
    }

    fn live(machine: &JobQueue) -> u64 {
        let (_, stats) = machine.queues().remove(0);
        stats.pending + stats.in_flight
    }

    #[test]
    fn whole_pages_are_the_whole_state() {
        let (salvaged, lost) = salvaged(|_| false, |_| false).expect("it can be had");
        assert_eq!(lost, Lost::default());
        assert_eq!(salvaged.state_hash(), machine().state_hash());
    }

    #[test]
    fn a_leaf_takes_its_jobs_and_their_keys() {
        let leaf = |key: PageKey| key.kind == PageKind::Leaf && key.number == 1;
        let (mut salvaged, lost) = salvaged(leaf, |_| false).expect("it can be had");
        check(&salvaged).expect("all invariants hold");
        assert_eq!(lost.jobs, [(job(64), job(127))]);
        assert_eq!(live(&salvaged), 66);
        // A lost job can be enqueued again, another is remembered.
        let items = ["64", "3"].map(|number| NewJob {
            payload: number.into(),
            key: Some(number.into()),
            ..NewJob::default()
        });
        let enqueue = Op::Enqueue {
            queue: uid(),
            partition: Partition(0),
            items: items.to_vec(),
        };
        let Outcome::Enqueued(outcomes) = apply(&mut salvaged, None, enqueue) else {
            panic!("nothing was enqueued");
        };
        let ids: Vec<_> = outcomes.into_iter().map(Enqueued::id).collect();
        assert_eq!(ids, [Some(job(130)), Some(job(3))]);
    }

    #[test]
    fn a_body_takes_its_job_alone() {
        let (salvaged, lost) = salvaged(|_| false, |id| id == job(5)).expect("it can be had");
        check(&salvaged).expect("all invariants hold");
        assert_eq!(lost.jobs, [(job(5), job(5))]);
        assert_eq!(live(&salvaged), 129);
    }

    #[test]
    fn a_lease_outlives_its_session() {
        let session = |key: PageKey| key.kind == PageKind::Session;
        let (salvaged, lost) = salvaged(session, |_| false).expect("it can be had");
        check(&salvaged).expect("all invariants hold");
        assert!(lost.jobs.is_empty() && lost.pages.len() == 1);
        let leased = salvaged.job(job(0)).expect("it is there");
        assert_eq!((leased.state, leased.owner), (JobState::InFlight, None));
    }

    #[test]
    fn a_queue_without_its_page_is_lost_whole() {
        for kind in [PageKind::Queue, PageKind::Partition] {
            let (salvaged, lost) = salvaged(|key| key.kind == kind, |_| false).expect("it can");
            check(&salvaged).expect("all invariants hold");
            assert_eq!(lost.queues, [uid()]);
            assert!(salvaged.queues().is_empty());
        }
    }

    #[test]
    fn without_the_group_page_nothing_can_be_had() {
        assert!(salvaged(|key| key.kind == PageKind::Group, |_| false).is_err());
    }
}
