//! Where the leader of each group is thought to be, and how it is looked for.
//!
//! A group whose node refuses it, or cannot be reached, is *searched*: one request of it, the scout, is
//! sent to one node after the other until one takes it; all others wait. A node that names a leader is
//! believed, unless who is named cannot be reached: then others are asked on, while a connection to
//! the named one is tried.
//!
//! ```text
//! NotLeader, leader X ──> X at once; after a few in a row, with pauses
//! NotLeader, nobody   ──> the next node: the first time at once, then with pauses; if all others are away,
//!                         a connection to one of them is tried
//! lost or silent node ──> the next node at once; if all are away, connections to it and to others are tried
//! ```
//!
//! Pauses are a tenth of the time that the search has lasted, within bounds: an election takes some
//! tens or hundreds of milliseconds, so the first are short; who is away for long is asked rarely.

use super::{LinkState, Links, Target};
use crate::base::ids::{GroupId, NodeId};
use crate::base::units::Monotonic;
use crate::client::session::CallId;
use std::time::Duration;

/// Named leaders are followed at once so often in one search.
const FOLLOWED_MAX: u32 = 3;
/// A scout that is not refused within this was taken, and waits for its answer.
const SCOUT_PATIENCE: Duration = Duration::from_millis(50);
/// A search in which nothing happened for so long has ended.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// Addresses that are named as a leader's and not listed, or not as those of its shard, are remembered up to
/// so many.
const HINTS_MAX: usize = 16;

/// Where a leader is thought to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Node(NodeId),
    /// An address that was named and is not listed so, by its number.
    Hint(u32),
}

/// A group whose leader is looked for.
#[derive(Debug)]
pub(super) struct Search {
    since: Monotonic,
    /// When something last happened in it.
    last: Monotonic,
    /// The request that asks, and since when.
    scout: Option<(CallId, Monotonic)>,
    /// No scout before this; 0 = at once.
    not_before: Monotonic,
    followed: u32,
    turned: u32,
    /// Named as the leader's, but not reached.
    named: Option<Place>,
}

/// What follows from a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::client) enum Refused {
    /// There is nobody else to ask.
    Alone,
    /// Another is asked, or was already; a connection to this one is to be tried, too.
    Elsewhere(Option<Target>),
}

impl Links {
    /// Whether there is, or may be, more than one node.
    pub(in crate::client) fn has_others(&self) -> bool {
        self.nodes.count() > 1
    }

    /// Whether one node is known where several addresses were given.
    pub(in crate::client) fn is_lonely(&self) -> bool {
        self.nodes.count() < 2 && self.seeds.len() > 1
    }

    pub(super) fn place(&self, group: GroupId) -> Option<Place> {
        let home = self.home.map(Place::Node);
        self.leaders.get(&group).copied().or(home)
    }

    pub(super) fn target_of(&self, place: Place, group: GroupId) -> Option<Target> {
        match place {
            Place::Hint(number) => Some(Target::Hint(number)),
            Place::Node(node) => {
                let shard = self.nodes.shard_of(node, group)?;
                Some(Target::Shard(node, shard))
            }
        }
    }

    /// The next node that a group may be asked for at.
    fn other(&self, group: GroupId, than: Place) -> Option<Place> {
        self.ring(than).find(|place| {
            let target = self.target_of(*place, group);
            target.is_some_and(|target| !self.is_away(target))
        })
    }

    /// All nodes that are known, from the one after this place on.
    fn ring(&self, than: Place) -> impl Iterator<Item = Place> {
        let node = match than {
            Place::Node(node) => Some(node),
            Place::Hint(_) => None,
        };
        self.nodes.after(node).map(Place::Node)
    }

    /// A node that is away, and may be back: an attempt to reach it may start.
    fn far(&self, now: Monotonic, group: GroupId, than: Place) -> Option<Place> {
        let mut places = self.ring(than);
        places.find(|place| {
            let target = self.target_of(*place, group);
            target.is_some_and(|target| self.may_connect(now, target).is_some())
        })
    }

    /// Where to connect, too, for a group: a node that is away and may be back, if so is the node where the
    /// group is thought to be, and every other.
    pub(in crate::client) fn elsewhere(&self, now: Monotonic, group: GroupId) -> Option<Target> {
        let place = self.place(group)?;
        let is_away = self.is_away(self.target_of(place, group)?);
        if !is_away || self.other(group, place).is_some() {
            return None;
        }
        let far = self.far(now, group, place)?;
        self.target_of(far, group)
    }

    /// Leaves the node where a group is thought to be, if it is away and another is not. Whether it
    /// did.
    pub(in crate::client) fn leave_if_away(&mut self, now: Monotonic, group: GroupId) -> bool {
        let Some(place) = self.place(group) else {
            return false;
        };
        let is_away = |target| self.is_away(target);
        if !self.target_of(place, group).is_some_and(is_away) {
            return false;
        }
        let Some(next) = self.other(group, place) else {
            return false;
        };
        self.leaders.insert(group, next);
        let pause = matches!(place, Place::Hint(_));
        self.search(now, group, pause);
        true
    }

    /// A search of a group, begun if there is none; with `pause`, the next scout waits.
    fn search(&mut self, now: Monotonic, group: GroupId, pause: bool) -> &mut Search {
        let stale = |search: &Search| search.last.plus(STALE_AFTER) < now;
        if self.searches.get(&group).is_none_or(stale) {
            let fresh = Search {
                since: now,
                last: now,
                scout: None,
                not_before: Monotonic(0),
                followed: 0,
                turned: 0,
                named: None,
            };
            self.searches.insert(group, fresh);
        }
        let (least, most) = self.backoff;
        let search = self.searches.get_mut(&group).expect("it was just made");
        search.last = now;
        if pause {
            // A leader that hands over is followed within a few milliseconds, one that has died within tens.
            let age = now.since(search.since);
            let longest = (age / 10).max(least * 2);
            let bound = age.clamp(least / 5, longest).min(most);
            let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
            let wait = micros / 4 + self.prng.below((micros * 3 / 4).max(1));
            search.not_before = now.plus(Duration::from_micros(wait));
        }
        search
    }

    /// Whether this request may be sent to where its group is thought to be.
    pub(in crate::client) fn may_ask(&self, now: Monotonic, group: GroupId) -> bool {
        let search = self.searches.get(&group);
        search.is_none_or(|search| search.scout.is_none() && search.not_before <= now)
    }

    /// A request of a group was sent.
    pub(in crate::client) fn asked(&mut self, now: Monotonic, group: GroupId, id: CallId) {
        if let Some(search) = self.searches.get_mut(&group) {
            search.scout = Some((id, now));
            search.not_before = Monotonic(0);
            search.last = now;
        }
    }

    /// A request of a group is not under way any more, and nothing was learnt from it.
    pub(in crate::client) fn not_asked(&mut self, group: GroupId, id: CallId) {
        if let Some(search) = self.searches.get_mut(&group)
            && search.scout.is_some_and(|(scout, _)| scout == id)
        {
            search.scout = None;
        }
    }

    /// Where a group is thought to be, there it is. Whether it was searched.
    pub(in crate::client) fn found(&mut self, group: GroupId) -> bool {
        self.searches.remove(&group).is_some()
    }

    /// A node does not lead a group (any more); it names the leader's address, if it knows it.
    pub(in crate::client) fn refused(
        &mut self,
        now: Monotonic,
        group: GroupId,
        by: Target,
        leader: Option<&str>,
    ) -> Refused {
        let asked = self.place(group);
        if asked.and_then(|place| self.target_of(place, group)) != Some(by) {
            // Another request was here before.
            return Refused::Elsewhere(None);
        }
        let asked = asked.expect("its target is known");
        let named = leader.and_then(|address| self.resolve(address, group));
        let mut named = named.filter(|place| *place != asked);
        if named.is_none() && self.nodes.count() < 2 && self.seeds.len() < 2 {
            return Refused::Alone;
        }
        let mut at = named.and_then(|place| self.target_of(place, group));
        if let (Some(place), Some(_)) = (named, at.filter(|target| !self.is_away(*target))) {
            self.leaders.insert(group, place);
            let search = self.search(now, group, false);
            search.scout = None;
            search.named = None;
            search.followed += 1;
            if search.followed > FOLLOWED_MAX {
                self.search(now, group, true);
            }
            return Refused::Elsewhere(None);
        }
        let other = self.other(group, asked);
        if let Some(other) = other {
            self.leaders.insert(group, other);
        } else if named.is_none() {
            named = self.far(now, group, asked);
            at = named.and_then(|place| self.target_of(place, group));
        }
        let search = self.search(now, group, false);
        search.scout = None;
        search.named = named;
        search.turned += 1;
        if search.turned > 1 || other.is_none() {
            self.search(now, group, true);
        }
        let lonely = other.is_none() && self.is_lonely();
        Refused::Elsewhere(at.or(lonely.then_some(Target::AnySeed)))
    }

    /// The place of an address that is named as that of a group's leader; it need not be listed.
    fn resolve(&mut self, address: &str, group: GroupId) -> Option<Place> {
        if let Some(node) = self.nodes.leader_at(address, group) {
            return Some(Place::Node(node));
        }
        let known = self.hints.iter().find(|(_, known)| *known == address);
        if let Some((number, _)) = known {
            return Some(Place::Hint(*number));
        }
        if self.hints.len() >= HINTS_MAX {
            let used = |number: &u32| self.leaders.values().any(|at| *at == Place::Hint(*number));
            let target = |number: &u32| Target::Hint(*number);
            let idle = |number: &u32| !used(number) && !self.is_connecting(target(number));
            let spare = self.hints.keys().copied().find(idle)?;
            self.hints.remove(&spare);
            self.links.remove(&Target::Hint(spare));
        }
        self.next_hint += 1;
        self.hints.insert(self.next_hint, address.to_owned());
        Some(Place::Hint(self.next_hint))
    }

    fn is_connecting(&self, target: Target) -> bool {
        let link = self.links.get(&target);
        link.is_some_and(|link| matches!(link.state, LinkState::Connecting { .. }))
    }

    /// A node said hello, on a connection that was asked for as `asked`: groups that wait for it go
    /// there.
    pub(super) fn moved_in(&mut self, asked: Target, node: NodeId) {
        let here = Place::Node(node);
        let mut was = here;
        if let Target::Hint(number) = asked {
            was = Place::Hint(number);
            if let Some(address) = self.hints.remove(&number) {
                self.nodes.reached(address, node);
            }
            let waiting = self.leaders.values_mut().filter(|place| **place == was);
            waiting.for_each(|place| *place = here);
        }
        for (group, search) in &mut self.searches {
            if search
                .named
                .is_some_and(|named| named == here || named == was)
            {
                search.named = Some(here);
                if search.scout.is_none() {
                    search.named = None;
                    search.not_before = Monotonic(0);
                    self.leaders.insert(*group, here);
                }
            }
        }
    }

    /// Scouts that are out for long were taken; searches whose pause is over go on.
    pub(super) fn end_pauses(&mut self, now: Monotonic) {
        self.searches.retain(|_, search| {
            if search.not_before <= now {
                search.not_before = Monotonic(0);
            }
            let is_taken = |(_, since): (CallId, Monotonic)| since.plus(SCOUT_PATIENCE) <= now;
            !search.scout.is_some_and(is_taken)
        });
    }

    /// When [`Self::end_pauses`] has something to do.
    pub(super) fn next_pause_end(&self) -> Option<Monotonic> {
        let ends = self.searches.values().filter_map(|search| {
            let taken = search.scout.map(|(_, since)| since.plus(SCOUT_PATIENCE));
            let pause = (search.not_before > Monotonic(0)).then_some(search.not_before);
            taken.or(pause)
        });
        ends.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_asks_again_soon_at_first_and_less_often_as_it_lasts() {
        let ms = Duration::from_millis;
        let mut links = Links::new(vec!["a:1".to_owned()], (ms(10), ms(1_000)), 7);
        let begun = Monotonic(1);
        links.search(begun, GroupId(3), false);
        for (age, bound) in [(0, 2), (5, 5), (15, 15), (100, 20), (400, 40), (900, 90)] {
            let now = begun.plus(ms(age));
            let mut pause = || links.search(now, GroupId(3), true).not_before.since(now);
            let pauses: Vec<Duration> = (0..1_000).map(|_| pause()).collect();
            let (least, most) = (pauses.iter().min(), pauses.iter().max());
            let (least, most) = (*least.expect("some"), *most.expect("some"));
            assert!(
                least >= ms(bound) / 4 && least < ms(bound) / 3,
                "{age}: {least:?}"
            );
            assert!(
                most <= ms(bound) && most > ms(bound) * 9 / 10,
                "{age}: {most:?}"
            );
        }
    }
}
