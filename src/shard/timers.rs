//! What happens because time goes on: due jobs, stamps, silent sessions, waits that end.
//!
//! Each group stands once among the timers of the shard, with the earliest time at which something of
//! it is due; a group without anything to wait for costs nothing.

use super::engine::ShardEngine;
use super::group::Waiter;
use super::wall::WALL_STEP_MS;
use crate::base::entry::EntryKind;
use crate::base::limits::{ADVANCE_ITEMS_MAX, TIME_STAMP_MS, WALL_DRIFT_MS_MAX};
use crate::base::units::Monotonic;
use crate::queue::command::{Command, Op};
use crate::wire::command::encode_command;
use std::time::Duration;

/// After an entry that found nothing due although something seemed to be.
pub(super) const ADVANCE_BACKOFF: Duration = Duration::from_millis(10);

impl ShardEngine {
    pub(super) fn fire_timers(&mut self) {
        while let Some((_, slot)) = self
            .timers
            .first()
            .copied()
            .filter(|(at, _)| *at <= self.now.mono)
        {
            self.timers.pop_first();
            self.groups[slot].timer = None;
            self.mark(slot);
            if self.groups[slot].serves() {
                self.on_timer(slot);
            }
        }
    }

    fn on_timer(&mut self, slot: usize) {
        let now = self.now.mono;
        while let Some(poll) = self.groups[slot].polls.take_late(now) {
            self.unpark(slot, &poll);
            self.reply_no_jobs(poll.to, poll.request);
        }
        self.answer_late_waits(slot);
        if self.stopping() {
            return;
        }
        let group = &mut self.groups[slot];
        for op in group.liveness.check(now, |id| group.queue.session(id)) {
            self.propose_own(slot, op, None);
        }
        let is_due = |engine: &Self| engine.advance_at(slot).is_some_and(|at| at <= now);
        if is_due(self) {
            // So says a bound: what is due is looked for before an entry is spent on it.
            self.groups[slot].queue.next_due();
        }
        if is_due(self) {
            let op = Op::Advance {
                limit: ADVANCE_ITEMS_MAX,
            };
            let proposed = self.propose_own(slot, op, Some(Waiter::Advance));
            let group = &mut self.groups[slot];
            group.advancing = proposed;
            if !proposed {
                group.advance_not_before = now.plus(ADVANCE_BACKOFF);
            }
        }
        if self.wall_check_at(slot).is_some_and(|at| at <= now) {
            self.correct_wall(slot);
        }
        if self.stamp_at(slot).is_some_and(|at| at <= now) {
            // Too busy means that entries are under way, which carry the time as well.
            let _ = self.propose_kind(slot, EntryKind::Noop);
            self.groups[slot].last_proposed = now;
        }
    }

    /// When due things are to be handled.
    fn advance_at(&self, slot: usize) -> Option<Monotonic> {
        let group = &self.groups[slot];
        let due = group.queue.due_bound().filter(|_| !group.advancing)?;
        Some(
            group
                .clock
                .when(due, self.now.mono)
                .max(group.advance_not_before),
        )
    }

    /// When the time is to be stamped, so that a restart forgets little of it.
    fn stamp_at(&self, slot: usize) -> Option<Monotonic> {
        let group = &self.groups[slot];
        let stamp = group
            .last_proposed
            .plus(Duration::from_millis(TIME_STAMP_MS));
        group.queue.waits_on_time().then_some(stamp)
    }

    /// When the wall time of a group that nobody writes to is to be held against the clock: run-ats
    /// must not wait for a request to learn that the clock was set.
    fn wall_check_at(&self, slot: usize) -> Option<Monotonic> {
        let group = &self.groups[slot];
        let next = group
            .wall_checked
            .plus(Duration::from_millis(TIME_STAMP_MS));
        group.queue.due_bound().map(|_| next)
    }

    pub(super) fn set_timer(&mut self, slot: usize) {
        let group = &self.groups[slot];
        let next = if group.serves() && !self.stopping() {
            let checks = [
                group.liveness.next_check(),
                group.polls.next_deadline(),
                group.waits.next_deadline(),
                group.changes.next_try(),
            ];
            let own = [
                self.advance_at(slot),
                self.stamp_at(slot),
                self.wall_check_at(slot),
            ];
            checks.into_iter().chain(own).flatten().min()
        } else {
            None
        };
        let before = std::mem::replace(&mut self.groups[slot].timer, next);
        if before != next {
            if let Some(at) = before {
                self.timers.remove(&(at, slot));
            }
            self.timers.extend(next.map(|at| (at, slot)));
        }
    }

    /// Before anything else is proposed: sets the group's wall offset right if it has drifted from the clocks
    /// of the voters; by a step only if most of them are of one mind.
    pub(super) fn correct_wall(&mut self, slot: usize) {
        self.groups[slot].wall_checked = self.now.mono;
        let Some((wall, may_step)) = self.wall_time() else {
            return;
        };
        let group = &self.groups[slot];
        let time = group.clock.at(self.now.mono);
        let drift = time.wall(group.queue.wall_offset_ms()).0.abs_diff(wall.0);
        let is_step = drift > WALL_STEP_MS;
        let may_set = drift > WALL_DRIFT_MS_MAX && (may_step || !is_step);
        if !may_set || group.setting_offset || !group.serves() {
            return;
        }
        let offset_ms =
            i64::try_from(wall.0).unwrap_or(i64::MAX) - i64::try_from(time.0).unwrap_or(i64::MAX);
        self.counters.wall_clock_steps_total += u64::from(is_step);
        let command = Command {
            session: None,
            op: Op::SetWallOffset { offset_ms },
        };
        let payload = encode_command(&command);
        let proposed = self.propose(slot, EntryKind::Data, payload, Some(Waiter::WallOffset));
        self.groups[slot].setting_offset = proposed.is_ok();
    }
}
