//! What befalls a cluster, and when.

use super::options::Fault;
use super::{Cluster, Event};
use std::time::Duration;

impl Cluster<'_> {
    pub(super) fn schedule_fault(&mut self) {
        let gap = Duration::from_millis(1 + self.prng.below(self.options.fault_gap_ms));
        self.schedule(gap, Event::Fault);
    }

    /// One fault, of a kind that is on.
    pub(super) fn on_fault(&mut self) {
        if !self.has_faults || self.options.faults.is_empty() {
            return;
        }
        let kinds = &self.options.faults;
        let fault = kinds[self.prng.below(kinds.len() as u64) as usize];
        *self.report.faults.entry(fault).or_default() += 1;
        let node = self.any_node();
        self.say(|| format!("{fault:?} at node {}", node + 1));
        self.befall(fault, node);
        self.schedule_fault();
    }

    fn any_node(&mut self) -> usize {
        self.prng.below(self.options.nodes as u64) as usize
    }

    fn befall(&mut self, fault: Fault, node: usize) {
        let nodes = self.options.nodes;
        match fault {
            Fault::Crash => {
                self.die(node);
                // Perhaps again, as soon as it has started.
                if self.prng.chance(1, 3) {
                    self.start(node);
                    let start = self.nodes[node].start;
                    let soon = Duration::from_micros(self.prng.below(10_000));
                    self.schedule(soon, Event::Die(node, start));
                }
            }
            Fault::PowerLoss => (0..nodes).for_each(|node| self.die(node)),
            Fault::Pause => {
                let pause = Duration::from_millis(1 << self.prng.below(12));
                let until = self.now.plus(pause);
                self.resume(node);
                self.nodes[node].paused_until = until;
            }
            Fault::Partition => {
                let ms = 1 << self.prng.below(13);
                let side: Vec<bool> = (0..nodes).map(|_| self.prng.chance(1, 2)).collect();
                for from in 0..nodes {
                    for to in 0..nodes {
                        if side[from] != side[to] {
                            self.cut(from, to, ms);
                        }
                    }
                }
            }
            Fault::OneWay => {
                let ms = 1 << self.prng.below(13);
                let to = (node + 1 + self.prng.below(nodes as u64 - 1) as usize) % nodes;
                self.cut(node, to, ms);
            }
            Fault::Reset => {
                let to = (node + 1 + self.prng.below(nodes as u64 - 1) as usize) % nodes;
                self.break_off(node, to);
            }
            Fault::Jump => {
                let wall_ms = self.nodes[node].wall_ms;
                let jump = self.prng.below(400_000);
                self.nodes[node].wall_ms = (wall_ms + jump).saturating_sub(200_000);
            }
            Fault::Stop => self.stop(node),
            Fault::LoseDisk => self.lose_disk(node),
            Fault::SlowDisk => {
                let slow = Duration::from_millis(1 << self.prng.below(13));
                self.nodes[node].slow_until = self.now.plus(slow);
            }
        }
    }
}
