//! When the disk is looked at, whether it has still what was stored, and what becomes of what it has not:
//! latent damage is found before anybody needs what is damaged, and before a second copy rots.
//!
//! ```text
//!   a group: root, flat pages, trees ─> some places at a time: a walk, off the shard's thread (`scrub`)
//!        ^                                        │ something cannot be read, or is not what was stored
//!        │ the next group                         v
//!   after the last: a pass is over     after a while once more: a read may fail in passing
//!                                                 │ and the state has it there still
//!                  ┌──────────────────────────────┼──────────────────────────────┐
//!   a root, a flat page: the         another member has it:        nobody else votes: said
//!   next checkpoint, at once         `mend`                        once a pass, and served on
//! ```
//!
//! What is looked at is what the state in memory says of the disk, as of each walk, not what a base named
//! when the pass began: a pass takes days, and the upper nodes of that base are gone with its second successor.
//! What has changed since it was stored is left out, as the next checkpoint stores it anew; but for the bodies of
//! its jobs, which stay. So a dropped file is no damage: nothing that the state has is in it.
//!
//! # Invariants
//! - One step is under way at a time; none while groups load, a round takes note of its places, or the shard
//!   stops.
//! - A pass takes its period, or longer where the rate does not let it: what is wanted of the disk goes first.
//! - Nothing waits for it, and nothing is refused for what it finds: where nobody else votes the group serves
//!   on until it needs what is damaged.

use super::bases::{damaged, root_ref};
use super::config::ShardConfig;
use super::effect::Effect;
use super::engine::ShardEngine;
use super::group::Phase;
use super::scrub::{Bad, Damaged, Walk};
use crate::base::bugs::{self, Bug};
use crate::base::ids::{GroupId, JobId};
use crate::base::limits::{LEAF_JOBS, NODE_BRANCHES};
use crate::base::units::Monotonic;
use crate::queue::StoredPlace;
use crate::queue::view::{PageKey, PageKind};
use std::time::Duration;

/// What the shards of a node read together of its disk in a second, at the most.
const RATE_BYTES: u64 = 16 << 20;
/// Places that one walk looks at. Few, since the shard looks them up, and a leaf that has changed tells of 64
/// bodies. Below each that is on the disk alone there are up to 64 more.
const PLACES: usize = 64;
/// No pause is longer than this part of the period, so that a shard with little is not late with what it gets.
const PAUSE_PART: u32 = 64;
/// Nor is the first, after a start.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// Nothing can be looked at now: it is tried again after this.
const BLOCKED_FOR: Duration = Duration::from_millis(200);
/// What could not be read is read once more so long after the first of it was met. More is looked for
/// meanwhile, without pauses, so that it is mended together.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Or once so much was met.
const DOUBTS_MAX: usize = 4096;
/// Parts that a message names.
const HELD_SHOWN: usize = 4;
/// A group that is mended is looked at further after that; but not if it takes longer than this.
const MENDED_WITHIN: Duration = Duration::from_secs(60);

/// A group that is being looked at.
struct Current {
    slot: usize,
    /// Where the next walk begins; `None` at the end.
    next: Option<StoredPlace>,
    /// What could not be read once.
    doubts: Vec<Damaged>,
    /// When the first of it was met.
    since: Monotonic,
    /// What could not be read twice.
    bad: Vec<Damaged>,
    /// Until then it waits while the group is mended.
    waits_until: Option<Monotonic>,
}

/// A walk between its steps.
struct Resting {
    walk: Box<Walk>,
    /// It is over what could not be read before.
    is_again: bool,
}

/// What a shard has looked at.
pub(super) struct Scrubber {
    /// The group whose turn it is.
    slot: usize,
    current: Option<Current>,
    resting: Option<Resting>,
    /// A step is under way; whether it is over what could not be read before.
    under_way: Option<bool>,
    /// Nothing is looked at before.
    next: Monotonic,
    /// When each group was last looked at from its beginning to its end, by slot; at first when this start was.
    whole: Vec<Monotonic>,
    /// The first of those times.
    oldest: Monotonic,
    /// The group with which a pass ends, and whether something was looked at since it began.
    last: usize,
    has_looked: bool,
    /// Something is damaged that the next checkpoint stores anew.
    wants_round: bool,
}

impl Scrubber {
    /// One that begins with any of so many groups: a node that is started often is to look at all of them.
    pub(super) fn new(config: &ShardConfig, groups: usize, now: Monotonic) -> Self {
        let pause = config.scrub_period.unwrap_or_default() / PAUSE_PART;
        let count = groups.max(1);
        let slot = (config.seed % count as u64) as usize;
        Self {
            slot,
            current: None,
            resting: None,
            under_way: None,
            next: now.plus(pause.min(FIRST_AFTER)),
            whole: vec![now; groups],
            oldest: now,
            last: (slot + count - 1) % count,
            has_looked: false,
            wants_round: false,
        }
    }
}

impl ShardEngine {
    /// When something is looked at next.
    pub(super) fn next_scrub(&self) -> Option<Monotonic> {
        let waits = self.scrub.under_way.is_none() && !self.stopping();
        self.config
            .scrub_period
            .filter(|_| waits)
            .map(|_| self.scrub.next)
    }

    /// Has the next parts looked at, if it is time.
    pub(super) fn step_scrub(&mut self) {
        let now = self.now.mono;
        self.count_age();
        if self.next_scrub().is_none_or(|at| at > now) {
            return;
        }
        if self.is_loading() || self.checkpoints.is_placing() {
            self.scrub.next = now.plus(BLOCKED_FOR);
            return;
        }
        if self.scrub.wants_round && self.checkpoints.is_idle() {
            self.scrub.wants_round = false;
            self.start_round(|_| true);
        }
        if let Some(Resting { walk, is_again }) = self.scrub.resting.take() {
            if !walk.is_done() {
                return self.look(walk, is_again);
            }
            if is_again {
                self.judge_damage();
            }
        }
        self.go_on_scrubbing();
    }

    fn look(&mut self, walk: Box<Walk>, is_again: bool) {
        self.scrub.under_way = Some(is_again);
        self.effects.push(Effect::Scrub(walk));
    }

    /// A step is done.
    pub(super) fn on_scrubbed(&mut self, mut walk: Box<Walk>) {
        let now = self.now.mono;
        let looked = walk.take_looked();
        self.counters.scrub_bytes_total += looked.read_bytes;
        let live = self.newest_bytes();
        let rate = RATE_BYTES / u64::from(self.config.shards.max(1));
        let mut pause = in_time(looked.read_bytes, rate, Duration::from_secs(1));
        let scrub = &mut self.scrub;
        let is_again = scrub.under_way.take().expect("a step was under way");
        let current = scrub.current.as_mut().expect("of a group");
        if is_again {
            current.bad.extend(looked.damaged);
        } else {
            if current.doubts.is_empty() {
                current.since = now;
            }
            current.doubts.extend(looked.damaged);
        }
        let period = self.config.scrub_period.unwrap_or_default();
        if !is_again && current.doubts.is_empty() {
            // A tenth less, so that what is stored meanwhile does not make the pass late.
            let part = in_time(looked.stored_bytes, live, period / 10 * 9);
            pause = pause.max(part.min(period / PAUSE_PART));
        }
        scrub.next = now.plus(pause);
        scrub.resting = Some(Resting { walk, is_again });
    }

    /// What the newest bases of all groups keep alive on the disk.
    fn newest_bytes(&self) -> u64 {
        let newest = self
            .groups
            .iter()
            .filter_map(|group| group.base_files.first());
        let bytes = newest.flat_map(|files| files.runs.values().chain(files.payloads.values()));
        bytes.sum()
    }

    fn go_on_scrubbing(&mut self) {
        let now = self.now.mono;
        let Some(current) = &mut self.scrub.current else {
            return self.scrub_next_group();
        };
        let group = &self.groups[current.slot];
        if group.mending.is_some() {
            let until = *current.waits_until.get_or_insert(now.plus(MENDED_WITHIN));
            self.scrub.next = now.plus(BLOCKED_FOR);
            if until <= now {
                self.end_scrub(false);
            }
            return;
        }
        current.waits_until = None;
        if group.phase != Phase::Serving {
            return self.end_scrub(false);
        }
        let again_at = current.since.plus(AGAIN_AFTER);
        let has_doubts = !current.doubts.is_empty();
        if has_doubts && (again_at <= now || current.doubts.len() >= DOUBTS_MAX) {
            let walk = Walk::again(group.id, &std::mem::take(&mut current.doubts));
            return self.look(Box::new(walk), true);
        }
        match current.next {
            Some(place) => {
                let is_first = place == StoredPlace::FIRST;
                let root = root_ref(&group.bases[0]).filter(|_| is_first);
                let (stored, next) = group.queue.stored_from(place, PLACES);
                current.next = next;
                let walk = Walk::new(group.id, root, &stored);
                self.look(Box::new(walk), false);
            }
            None if has_doubts => self.scrub.next = again_at,
            None => self.end_scrub(true),
        }
    }

    /// Begins with the next group of which something is stored.
    fn scrub_next_group(&mut self) {
        let now = self.now.mono;
        for _ in 0..self.groups.len() {
            let slot = self.scrub.slot;
            let group = &self.groups[slot];
            let is_stored = group.bases[0].root.is_some();
            if group.phase == Phase::Serving && is_stored {
                self.scrub.current = Some(Current {
                    slot,
                    next: Some(StoredPlace::FIRST),
                    doubts: Vec::new(),
                    since: now,
                    bad: Vec::new(),
                    waits_until: None,
                });
                return self.go_on_scrubbing();
            }
            self.end_scrub(group.phase == Phase::Serving);
        }
        let period = self.config.scrub_period.unwrap_or_default();
        self.scrub.next = now.plus((period / PAUSE_PART).max(BLOCKED_FOR));
    }

    /// The turn of a group is over; whether all of it was looked at.
    fn end_scrub(&mut self, is_whole: bool) {
        let now = self.now.mono;
        let scrub = &mut self.scrub;
        scrub.has_looked |= scrub.current.take().is_some();
        if is_whole {
            scrub.whole[scrub.slot] = now;
            scrub.oldest = scrub.whole.iter().copied().min().unwrap_or(now);
        }
        if scrub.slot == scrub.last && std::mem::take(&mut scrub.has_looked) {
            self.counters.scrub_passes_total += 1;
        }
        scrub.slot = (scrub.slot + 1) % scrub.whole.len();
    }

    fn count_age(&mut self) {
        if self.config.scrub_period.is_some() {
            let age = self.now.mono.since(self.scrub.oldest);
            self.counters.scrub_oldest_seconds = age.as_secs();
        }
    }

    // Damage.

    /// What could not be read twice is damaged, if the state has it there still.
    fn judge_damage(&mut self) {
        let current = self.scrub.current.as_mut().expect("of a group");
        let (slot, bad) = (current.slot, std::mem::take(&mut current.bad));
        let group = &mut self.groups[slot];
        // Somebody else has found something meanwhile: the next pass finds what is left of this.
        if group.phase != Phase::Serving || group.mending.is_some() {
            return;
        }
        let newest = root_ref(&group.bases[0]);
        let (mut anew, mut parts) = (Vec::new(), Vec::new());
        for Damaged { bad, what } in bad {
            match bad {
                Bad::Root(root) if Some(root) == newest => anew.push(what),
                Bad::Root(_) => {}
                Bad::Part { at, above } => {
                    let has = group.queue.has_stored(&at, above);
                    if has && group.queue.store_anew(at.key) {
                        anew.push(what);
                    } else if has || bugs::on(Bug::DroppedIsDamage) {
                        parts.push(((at.key, at.level), what));
                    }
                }
                Bad::Body { it, page } => {
                    let is_of = |(at, above)| group.queue.has_stored(&at, above);
                    if page.is_some_and(is_of) || group.queue.has_body(&it) {
                        parts.push(((it.key, 0), what));
                    }
                }
            }
        }
        let id = group.id;
        self.counters.scrub_damaged_total += (anew.len() + parts.len()) as u64;
        if let Some(what) = anew.first() {
            self.scrub.wants_round = true;
            let text = format!("{}; the next checkpoint stores it anew", damaged(id, what));
            self.tell_damage(id, text, false);
        }
        let Some((_, what)) = parts.first() else {
            return;
        };
        let (what, held) = (damaged(id, what), held_by(id, &parts));
        if self.can_mend(slot) {
            let text = format!("{what}; {held} come from another member");
            self.tell_damage(id, text, false);
            self.mend(slot, parts.into_iter().map(|(part, _)| part));
        } else {
            let text = format!(
                "{what}; nobody else has {held}: the group serves until they are needed, and stops \
                 then. Look with `rrqctl repair --data-dir DIR`, which shows what would be lost before \
                 it changes anything"
            );
            self.tell_damage(id, text, true);
        }
    }

    fn tell_damage(&mut self, group: GroupId, text: String, is_lost: bool) {
        self.effects.push(Effect::TellDamage {
            group,
            text,
            is_lost,
        });
    }
}

/// What damaged parts of a group hold, for the operator.
fn held_by(group: GroupId, parts: &[((PageKey, u8), String)]) -> String {
    let mut held: Vec<String> = parts.iter().map(|(part, _)| held(group, *part)).collect();
    held.dedup();
    let more = held.len().saturating_sub(HELD_SHOWN);
    held.truncate(HELD_SHOWN);
    if more > 0 {
        held.push(format!("{more} more such parts"));
    }
    held.join(", ")
}

fn held(group: GroupId, (key, level): (PageKey, u8)) -> String {
    let PageKey {
        kind,
        queue,
        partition,
        number,
    } = key;
    let job = |seq: u64| JobId::new(group, queue, partition, seq.min(JobId::SEQ_MAX));
    let jobs = LEAF_JOBS.saturating_mul(NODE_BRANCHES.saturating_pow(level.into()));
    match kind {
        PageKind::Leaf => {
            let first = number.saturating_mul(jobs);
            let last = first.saturating_add(jobs - 1);
            format!("what is left of the jobs {} to {}", job(first), job(last))
        }
        PageKind::Keys => format!("keys of partition {partition} of queue {queue}"),
        _ => format!("finished jobs of partition {partition} of queue {queue}"),
    }
}

/// The time for so many bytes, of which so many take so long.
fn in_time(bytes: u64, of: u64, take: Duration) -> Duration {
    let nanos = take.as_nanos() * u128::from(bytes) / u128::from(of.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
