//! What befalls a cluster, and when. Faults are numbered, and each draws what it needs from a generator of
//! its own number, so that one can be left out and the others stay what they are.

use super::coverage::Doing;
use super::node::Image;
use super::options::Fault;
use super::{Cluster, Event};
use crate::base::prng::{Prng, mix};
use crate::base::units::Monotonic;
use crate::shard::input::Input;
use crate::sim::disk::SimDisk;
use std::time::Duration;

/// A clock jumps by less than this, forth or back. Jobs that were to start later wait for it.
const JUMP_MS: u64 = 30_000;
/// What is left of a disk that failed may be read so much later, or lost at the next start.
const SOON_MS: u64 = 200;
/// A node gets up to so many shards, each of which has a group.
const SHARDS_MAX: u64 = 3;
/// A process soon ends after its disk has lost what it had called safe. What it says until then is heard again by
/// others that start after this long.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// Between one and 2^`below` - 1 milliseconds, short ones as often as long ones.
fn up_to(below: u64, prng: &mut Prng) -> Duration {
    Duration::from_millis(1 << prng.below(below))
}

impl Cluster<'_> {
    /// The next fault, by its number.
    pub(super) fn schedule_fault(&mut self) {
        self.next_fault += 1;
        let mut prng = self.prng_of(self.next_fault);
        let gap = Duration::from_millis(1 + prng.below(self.options.fault_gap_ms));
        self.schedule(gap, Event::Fault(self.next_fault, prng));
    }

    fn prng_of(&self, number: u64) -> Prng {
        Prng::new(mix(self.seed ^ mix(number)))
    }

    /// One fault, of a kind that is on.
    pub(super) fn on_fault(&mut self, number: u64, mut prng: Prng) {
        if !self.has_faults || self.options.faults.is_empty() {
            return;
        }
        let kinds = &self.options.faults;
        let fault = kinds[prng.below(kinds.len() as u64) as usize];
        let place = prng.below(self.options.nodes as u64) as usize;
        let frail = &self.options.frail;
        let node = if fault.is_harm() {
            frail.get(place % frail.len().max(1)).copied()
        } else {
            Some(place)
        };
        let node = node.map(|node| match self.liar() {
            Some(liar) if fault.ends_process() => liar,
            _ => node,
        });
        let happens = self.only.as_ref().is_none_or(|only| only.contains(&number));
        if let (Some(node), true) = (node, happens) {
            *self.report.faults.entry(fault).or_default() += 1;
            self.befallen.push((number, fault));
            self.note_doing(fault, node);
            self.say(|| format!("fault {number}: {fault:?} at node {}", node + 1));
            self.befall(fault, node, &mut prng);
        }
        self.schedule_fault();
    }

    fn befall(&mut self, fault: Fault, node: usize, prng: &mut Prng) {
        let nodes = self.options.nodes;
        match fault {
            Fault::Crash => {
                self.die(node);
                // Perhaps again, as soon as it has started.
                if prng.chance(1, 3) {
                    self.start(node);
                    self.die_soon(node, prng.below(10_000));
                }
            }
            Fault::PowerLoss => {
                self.lose_power();
                // Perhaps again, as soon as one of them has started.
                if prng.chance(1, 3) {
                    self.start(node);
                    let soon = Duration::from_micros(prng.below(10_000));
                    self.schedule(soon, Event::PowerLoss);
                }
            }
            Fault::Pause => {
                let until = self.now.plus(up_to(12, prng));
                self.resume(node);
                self.nodes[node].paused_until = until;
            }
            Fault::Partition => {
                let ms = 1 << prng.below(13);
                let side: Vec<bool> = (0..nodes).map(|_| prng.chance(1, 2)).collect();
                for from in 0..nodes {
                    for to in 0..nodes {
                        if side[from] != side[to] {
                            self.cut(from, to, ms);
                        }
                    }
                }
            }
            Fault::OneWay => {
                let ms = 1 << prng.below(13);
                let to = another(node, nodes, prng);
                self.cut(node, to, ms);
            }
            Fault::Reset => self.break_off(node, another(node, nodes, prng)),
            Fault::Jump => {
                let wall_ms = self.nodes[node].wall_ms;
                self.nodes[node].wall_ms = wall_ms + prng.below(2 * JUMP_MS) - JUMP_MS;
            }
            Fault::Stop => self.stop(node),
            Fault::LoseDisk => self.lose_disk(node),
            Fault::SlowDisk => self.nodes[node].slow_until = self.now.plus(up_to(13, prng)),
            Fault::FullDisk => {
                let pause = up_to(13, prng);
                self.nodes[node].full_until = self.now.plus(pause);
                self.tell_space(node, true, prng.chance(1, 4));
                self.schedule(pause, Event::Space(node));
            }
            Fault::WriteError => self.nodes[node].write_fails = true,
            Fault::ReadError => {
                let until = self.now.plus(up_to(12, prng));
                self.nodes[node].unreadable_until = until;
                if prng.chance(1, 2) {
                    self.die_soon(node, prng.below(SOON_MS * 1_000));
                }
            }
            Fault::LostWrite => {
                let writes = 1 + prng.below(3) as u32;
                let disks = &mut self.nodes[node].disks;
                let shard = prng.below(disks.len() as u64) as usize;
                disks[shard].lie(writes);
                self.nodes[node].is_harmed = true;
                self.lies_from_now(node);
                self.die_soon(node, prng.below(SOON_MS * 1_000));
                if self.options.faults.contains(&Fault::OtherShards) && prng.chance(1, 2) {
                    self.want_other_shards(node, prng);
                }
            }
            Fault::Rot | Fault::Zeroed | Fault::Misdirected | Fault::Stale => {
                self.harm(fault, node, prng);
            }
            Fault::OldImage => self.restore_image(node),
            Fault::OtherShards => {
                // It may be what it is: then this is a crash.
                self.want_other_shards(node, prng);
                self.die(node);
            }
            Fault::DamagedPages => self.damage_pages(node, prng),
        }
    }

    /// How many of the other nodes do not hear what the disk of this one claims.
    fn deaf_to(&self, node: usize) -> usize {
        let hears = |other: &usize| {
            let place = &self.nodes[*other];
            let is_cut = self.is_cut(node, *other) || self.is_cut(*other, node);
            let has_heard = place.durable.contains_key(&self.nodes[node].me.node);
            place.runs() && has_heard && place.paused_until <= self.now && !is_cut
        };
        let others = (0..self.options.nodes).filter(|other| *other != node);
        others.filter(|other| !hears(other)).count()
    }

    /// All others hear how far the logs of a node go, as they soon would. False if one of them does not: of
    /// what the disk loses then nobody could tell it that it is missing.
    fn all_hear(&mut self, node: usize) -> bool {
        if !self.nodes[node].runs() || self.deaf_to(node) > 0 {
            return false;
        }
        let (me, durable) = (self.nodes[node].me.node, self.nodes[node].durable());
        if durable.start == 0 {
            return false;
        }
        for other in (0..self.options.nodes).filter(|other| *other != node) {
            let known = self.nodes[other].durable.get_mut(&me);
            known.expect("it hears").hear(durable.clone());
        }
        true
    }

    /// The node whose disk has lost what it had called safe, and that may not have been told so. Who can tell it
    /// must not forget that before.
    pub(super) fn liar(&self) -> Option<usize> {
        let mut nodes = 0..self.options.nodes;
        nodes.find(|node| self.is_liar(*node))
    }

    fn is_liar(&self, node: usize) -> bool {
        match self.nodes[node].lies_until {
            Monotonic(u64::MAX) => !self.knows_its_loss(node),
            until => until > self.now,
        }
    }

    /// Whether the process of a node has noted what its disk has lost: somebody told it, or nobody is left that
    /// could.
    fn knows_its_loss(&self, node: usize) -> bool {
        let place = &self.nodes[node];
        let said = place.durable();
        let could_tell = self.nodes.iter().any(|other| {
            let heard = other.durable.get(&place.me.node);
            heard.is_some_and(|heard| heard.is_of_the_past(said.disk, said.process))
        });
        place.runs() && said.start != 0 && (place.was_told() || !could_tell)
    }

    fn lies_from_now(&mut self, node: usize) {
        self.nodes
            .iter_mut()
            .for_each(|node| node.write_fails = false);
        if self.nodes[node].lies_until != Monotonic(u64::MAX) || !self.is_liar(node) {
            self.nodes[node].lies_until = self.now.plus(ENDS_WITHIN);
        }
    }

    /// A process is about to be gone: what its disks have said to be written and did not write is lost, if all
    /// others know how much that was.
    pub(super) fn lose_lied(&mut self, node: usize) {
        let has_lied = self.nodes[node].disks.iter().any(SimDisk::has_lied);
        if has_lied && !self.all_hear(node) {
            self.nodes[node].disks.iter_mut().for_each(SimDisk::own_up);
        }
        let lies_until = if self.is_liar(node) { u64::MAX } else { 0 };
        self.nodes[node].lies_until = Monotonic(lies_until);
    }

    /// The next start of a node is for any number of shards.
    fn want_other_shards(&mut self, node: usize, prng: &mut Prng) {
        let most = SHARDS_MAX.min(self.options.groups.into());
        self.nodes[node].shards_wanted = 1 + prng.below(most) as u16;
    }

    /// All nodes are gone at once.
    pub(super) fn lose_power(&mut self) {
        // What a disk has lost and called safe is known to who has heard of it, and to nobody once
        // all have forgotten: the README does not promise that.
        if let Some(liar) = self.liar() {
            return self.die(liar);
        }
        for node in 0..self.options.nodes {
            if self.nodes[node].loads() {
                self.has_met(Fault::PowerLoss, Doing::Loads);
            }
            self.die(node);
        }
    }

    fn die_soon(&mut self, node: usize, micros: u64) {
        let start = self.nodes[node].start;
        self.schedule(Duration::from_micros(micros), Event::Crash(node, start));
    }

    /// Damages what is on a disk. Most of it is found at a start, which may follow.
    fn harm(&mut self, fault: Fault, node: usize, prng: &mut Prng) {
        let harm = fault.harm().expect("it is harm to a disk");
        // Where a majority may be harmed, or nobody else has heard of it, what nobody could prove to be missing
        // stays whole.
        let proved = self.options.is_helpless() || !self.all_hear(node);
        let place = &mut self.nodes[node];
        let shard = prng.below(place.disks.len() as u64) as usize;
        let Some(harmed) = place.disks[shard].harm(harm, proved, prng) else {
            return;
        };
        place.is_harmed = true;
        if !proved {
            self.lies_from_now(node);
        }
        self.say(|| format!("{harm:?} on shard {shard} of node {}: {harmed:?}", node + 1));
        if prng.chance(1, 2) {
            self.die_soon(node, prng.below(SOON_MS * 1_000));
        }
    }

    /// Pages rot, or bodies. That is found when they are needed, or at a start, which may follow.
    fn damage_pages(&mut self, node: usize, prng: &mut Prng) {
        let place = &mut self.nodes[node];
        let shard = prng.below(place.disks.len() as u64) as usize;
        let bytes = 1 << prng.below(6);
        if place.disks[shard].rot_files(bytes, prng) > 0 {
            place.is_harmed = true;
        }
        if prng.chance(1, 4) {
            self.die_soon(node, prng.below(SOON_MS * 1_000));
        }
    }

    /// The first time an image is taken; it is restored the next time, while all others can tell that it is old.
    fn restore_image(&mut self, node: usize) {
        let Some(image) = self.nodes[node].image.take() else {
            let place = &mut self.nodes[node];
            place.image = Some(Image {
                disks: place.disks.clone(),
                wal_set: place.wal_set,
                number: place.number,
            });
            return;
        };
        if !self.all_hear(node) {
            self.nodes[node].image = Some(image);
            return;
        }
        self.die(node);
        self.say(|| format!("node {} goes on with an older image", node + 1));
        self.nodes[node].restore(image, &mut self.prng);
        self.nodes[node].lies_until = Monotonic(u64::MAX);
        self.start(node);
        self.connect_now(node);
        // Its number may have been another process's: it ended, and is started again.
        self.start(node);
        self.connect_now(node);
    }

    /// Whether there is room on a disk.
    pub(super) fn tell_space(&mut self, node: usize, full: bool, exhausted: bool) {
        for shard in 0..self.nodes[node].shards() {
            self.tell(node, shard, Input::DiskSpace { full, exhausted });
        }
    }

    /// A disk may have room again.
    pub(super) fn on_space(&mut self, node: usize) {
        if self.nodes[node].full_until <= self.now {
            self.tell_space(node, false, false);
        }
    }
}

fn another(node: usize, nodes: usize, prng: &mut Prng) -> usize {
    (node + 1 + prng.below(nodes as u64 - 1) as usize) % nodes
}
