//! Where to send what: the nodes and shards as last heard, and one connection to each shard in use.
//!
//! A connection starts at one of the addresses given (a *seed*), at a shard's listed address, or at
//! one that another node named; the hello says which shard it really reached. A shard that cannot be
//! reached makes the client ask a seed again, since ports may have changed with a restart.
//!
//! A target is *away* while it cannot be reached: its connection was lost and none has been made
//! since, is being made for long, or is silent. Its groups are looked for elsewhere.
//!
//! | file | holds |
//! | --- | --- |
//! | `links/nodes.rs` | the nodes and where they listen |
//! | `links/leaders.rs` | where the leader of each group is thought to be |

mod leaders;
mod nodes;

use crate::base::checksum::crc32c;
use crate::base::code::Code;
use crate::base::ids::{GroupId, NodeId};
use crate::base::prng::Prng;
use crate::base::units::Monotonic;
use crate::client::error::Error;
use crate::wire::message::ServerHello;
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) use leaders::Refused;
use leaders::{Place, Search};
use nodes::Nodes;

/// If a seed does not say hello within this, the next is asked, too.
const SEED_LATE: Duration = Duration::from_millis(150);
/// A shard that does not say hello within this is away until it does.
const SHARD_LATE: Duration = Duration::from_millis(250);
/// Something is asked of a server that was silent for so long while an answer was due.
pub(super) const QUIET: Duration = Duration::from_millis(100);
/// The same while requests wait at the server, as long polls do.
pub(super) const QUIET_WAIT: Duration = Duration::from_millis(500);
/// Who does not answer that within this is away; on a slow network, within four times the way there
/// and back.
const ANSWER: Duration = Duration::from_millis(200);
/// How slow a network is thought to be by the time that a connection took: never more than this.
const ANSWER_CONNECTED_MAX: Duration = Duration::from_secs(1);
/// The same by answers.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Who is silent so long and still named as the leader gets a new connection.
const SILENT_LONG: Duration = Duration::from_secs(1);

/// A connection; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnNo(pub u64);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// Any node: to learn of all.
    AnySeed,
    /// The address given at this place.
    Seed(usize),
    /// An address that a node named, by its number.
    Hint(u32),
    /// This shard of this node.
    Shard(NodeId, u16),
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Anywhere.
    Any,
    /// To the leader of a group.
    Group(GroupId),
    /// To a shard of a node.
    Shard(NodeId, u16),
}

/// A connection that is up.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) conn: ConnNo,
    /// When the next heartbeat is due.
    pub(super) next_beat: Monotonic,
    /// The first heartbeat after which nothing was heard.
    pub(super) unanswered_beat: Option<Monotonic>,
    /// When it was last heard, or last became busy.
    pub(super) lively_at: Monotonic,
    /// When to look whether it is silent; `None` while nothing is due.
    pub(super) look_at: Option<Monotonic>,
    /// Since when it owes an answer that every live server gives at once.
    pub(super) asked_at: Option<Monotonic>,
    /// How long it may owe that.
    pub(super) answer_within: Duration,
    /// The same, at the least.
    answer_least: Duration,
    /// It owed it for longer, since then.
    pub(super) silent_since: Option<Monotonic>,
}

impl Up {
    /// Connecting took that long: there and back twice.
    fn new(conn: ConnNo, now: Monotonic, next_beat: Monotonic, took: Duration) -> Self {
        let answer_least = (took * 2).clamp(ANSWER, ANSWER_CONNECTED_MAX);
        Self {
            conn,
            next_beat,
            unanswered_beat: None,
            lively_at: now,
            look_at: None,
            asked_at: None,
            answer_within: answer_least,
            answer_least,
            silent_since: None,
        }
    }

    fn heard(&mut self, now: Monotonic) {
        self.unanswered_beat = None;
        self.silent_since = None;
        self.lively_at = now;
        if let Some(asked_at) = self.asked_at.take() {
            // A server that was frozen for long is no slow network: it at most doubles.
            let most = (self.answer_within * 2).min(ANSWER_MAX);
            let due = (now.since(asked_at) * 4).min(most);
            self.answer_within = due.max(self.answer_within / 2).max(self.answer_least);
        }
    }

    /// It was lively all the time.
    pub(super) fn is_lively(&mut self) {
        self.answer_within = (self.answer_within / 8 * 7).max(self.answer_least);
    }
}

#[derive(Debug)]
enum LinkState {
    Connecting {
        conn: ConnNo,
        since: Monotonic,
        /// When it is late; `None` once it is.
        late_at: Option<Monotonic>,
    },
    Up(Up),
    /// No attempt before this.
    Waiting(Monotonic),
    /// May be tried when it is wanted.
    Idle,
}

#[derive(Debug)]
struct Link {
    state: LinkState,
    /// Attempts since something was last heard.
    failures: u32,
}

/// A connection to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ToConnect {
    pub(super) conn: ConnNo,
    pub(super) address: String,
}

/// What became of a connection that said hello.
#[derive(Debug)]
pub(super) enum Arrival {
    /// It serves this target; another connection, if named, is to be closed.
    Serves(Target, Option<ConnNo>),
    /// It is one too many: to be closed.
    Superfluous,
    /// It must not be used: to be closed.
    Refused(Error),
    /// It is not known.
    Stale,
}

#[derive(Debug)]
pub(super) struct Links {
    seeds: Vec<String>,
    next_seed: usize,
    next_conn: u64,
    hello: Option<ServerHello>,
    nodes: Nodes,
    /// What each node that was reached last said of its version.
    versions: BTreeMap<NodeId, String>,
    /// The node first reached: where groups are thought to be of which nothing is known.
    home: Option<NodeId>,
    /// Where the leaders of the others are thought to be.
    leaders: BTreeMap<GroupId, Place>,
    searches: BTreeMap<GroupId, Search>,
    hints: BTreeMap<u32, String>,
    next_hint: u32,
    links: BTreeMap<Target, Link>,
    targets: BTreeMap<ConnNo, Target>,
    backoff: (Duration, Duration),
    prng: Prng,
    /// The last failure of any connection: what a call is told that never got through.
    last_error: Option<Error>,
}

impl Links {
    pub(super) fn new(seeds: Vec<String>, backoff: (Duration, Duration), seed: u64) -> Self {
        assert!(!seeds.is_empty(), "at least one address is needed");
        Self {
            seeds,
            next_seed: 0,
            next_conn: 0,
            hello: None,
            nodes: Nodes::default(),
            versions: BTreeMap::new(),
            home: None,
            leaders: BTreeMap::new(),
            searches: BTreeMap::new(),
            hints: BTreeMap::new(),
            next_hint: 0,
            links: BTreeMap::new(),
            targets: BTreeMap::new(),
            backoff,
            prng: Prng::new(seed),
            last_error: None,
        }
    }

    pub(super) fn hello(&self) -> Option<&ServerHello> {
        self.hello.as_ref()
    }

    pub(super) fn version(&self, node: NodeId) -> Option<&String> {
        self.versions.get(&node)
    }

    /// Connections that are up, or being made.
    pub(super) fn conns(&self) -> usize {
        self.targets.len()
    }

    pub(super) fn last_error(&self) -> Option<&Error> {
        self.last_error.as_ref()
    }

    /// A wait before attempt `failures + 1`: uniform up to a bound that doubles ("full jitter").
    pub(super) fn backoff(&mut self, failures: u32) -> Duration {
        let (min, max) = self.backoff;
        let bound = min.saturating_mul(1 << failures.min(16)).min(max);
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX - 1);
        Duration::from_micros(self.prng.below(micros + 1))
    }

    /// The home group of a queue, once the number of groups is known.
    pub(super) fn home_group(&self, name: &str) -> Option<GroupId> {
        let groups = self.hello.as_ref()?.groups;
        Some(GroupId((crc32c(&[name.as_bytes()]) & (groups - 1)) as u16))
    }

    pub(super) fn target(&self, route: Route) -> Target {
        let target = match route {
            Route::Any => {
                let mut lively = self.up_links().filter(|(_, up)| up.silent_since.is_none());
                lively.next().map(|(target, _)| target)
            }
            Route::Shard(node, shard) => self.hello.is_some().then_some(Target::Shard(node, shard)),
            Route::Group(group) => {
                let place = self.place(group);
                place.and_then(|place| self.target_of(place, group))
            }
        };
        target.unwrap_or(Target::AnySeed)
    }

    /// The connection to a target, if it is up.
    pub(super) fn up(&self, target: Target) -> Option<ConnNo> {
        match &self.links.get(&target)?.state {
            LinkState::Up(up) => Some(up.conn),
            _ => None,
        }
    }

    pub(super) fn up_links(&self) -> impl Iterator<Item = (Target, &Up)> {
        self.links
            .iter()
            .filter_map(|(target, link)| match &link.state {
                LinkState::Up(up) => Some((*target, up)),
                _ => None,
            })
    }

    /// The target and state of a connection that is up.
    pub(super) fn up_mut(&mut self, conn: ConnNo) -> Option<(Target, &mut Up)> {
        let target = *self.targets.get(&conn)?;
        match &mut self.links.get_mut(&target)?.state {
            LinkState::Up(up) => Some((target, up)),
            _ => None,
        }
    }

    /// Connects to a target, unless that is under way or must wait.
    pub(super) fn want(&mut self, now: Monotonic, target: Target) -> Option<ToConnect> {
        if target == Target::AnySeed {
            return self.want_seed(now);
        }
        let failures = self.may_connect(now, target)?;
        let (address, late_after) = match target {
            Target::AnySeed => return None,
            Target::Seed(at) => (self.seeds.get(at)?.clone(), SEED_LATE),
            Target::Hint(number) => (self.hints.get(&number)?.clone(), SHARD_LATE),
            Target::Shard(node, shard) => (self.nodes.address(node, shard)?.clone(), SHARD_LATE),
        };
        self.next_conn += 1;
        let conn = ConnNo(self.next_conn);
        self.targets.insert(conn, target);
        let late_at = Some(now.plus(late_after));
        let since = now;
        let state = LinkState::Connecting {
            conn,
            since,
            late_at,
        };
        self.links.insert(target, Link { state, failures });
        Some(ToConnect { conn, address })
    }

    /// The failures before, if an attempt may start.
    fn may_connect(&self, now: Monotonic, target: Target) -> Option<u32> {
        let Some(link) = self.links.get(&target) else {
            return Some(0);
        };
        match link.state {
            LinkState::Waiting(until) if until <= now => Some(link.failures),
            LinkState::Idle => Some(link.failures),
            LinkState::Waiting(_) | LinkState::Connecting { .. } | LinkState::Up(_) => None,
        }
    }

    /// One seed after the other: the next when the last has failed, or is late.
    fn want_seed(&mut self, now: Monotonic) -> Option<ToConnect> {
        let count = self.seeds.len();
        let seeds = || (0..count).map(|step| Target::Seed((self.next_seed + step) % count));
        let is_awaited = |target: Target| match self.links.get(&target).map(|link| &link.state) {
            Some(LinkState::Connecting { late_at, .. }) => late_at.is_some(),
            _ => false,
        };
        if seeds().any(is_awaited) {
            return None;
        }
        let target = seeds().find(|target| self.may_connect(now, *target).is_some())?;
        if let Target::Seed(at) = target {
            self.next_seed = (at + 1) % count;
        }
        self.want(now, target)
    }

    /// A connection said hello.
    pub(super) fn arrived(
        &mut self,
        now: Monotonic,
        conn: ConnNo,
        hello: ServerHello,
        next_beat: Monotonic,
    ) -> Arrival {
        let Some(asked) = self.targets.get(&conn).copied() else {
            return Arrival::Stale;
        };
        if let Some(known) = self
            .hello
            .as_ref()
            .filter(|known| known.cluster != hello.cluster)
        {
            return Arrival::Refused(Error::new(
                Code::WrongIdentity,
                format!("cluster {} where {} was", hello.cluster, known.cluster),
            ));
        }
        let node = hello.node;
        let reached = Target::Shard(node, hello.shard);
        let link = self.links.get(&asked);
        let failures = link.map_or(0, |link| link.failures);
        let took = match link.map(|link| &link.state) {
            Some(LinkState::Connecting { since, .. }) => now.since(*since),
            _ => Duration::ZERO,
        };
        self.learn(hello);
        self.home.get_or_insert(node);
        let mut other = None;
        if asked != reached {
            self.targets.remove(&conn);
            let there = self.links.get(&reached).map(|link| &link.state);
            let is_superfluous = matches!(there, Some(LinkState::Up(_)));
            if let Some(LinkState::Connecting { conn, .. }) = there {
                other = Some(*conn);
            }
            // What led to where we are already, or to somebody else, is not asked again at once.
            match asked {
                Target::Hint(_) => drop(self.links.remove(&asked)),
                Target::Seed(_) if !is_superfluous => drop(self.links.remove(&asked)),
                _ => self.wait(now, asked),
            }
            if is_superfluous {
                self.moved_in(asked, node);
                return Arrival::Superfluous;
            }
        }
        if let Some(other) = other {
            self.targets.remove(&other);
        }
        self.targets.insert(conn, reached);
        let state = LinkState::Up(Up::new(conn, now, next_beat, took));
        self.links.insert(reached, Link { state, failures });
        self.moved_in(asked, node);
        Arrival::Serves(reached, other)
    }

    /// Takes what a node says of the cluster.
    fn learn(&mut self, hello: ServerHello) {
        let links = &self.links;
        let is_lost = |node: NodeId| {
            let shards = links.range(Target::Shard(node, 0)..=Target::Shard(node, u16::MAX));
            shards.map(|(_, link)| link.failures).any(|count| count > 0)
        };
        self.nodes.learn(&hello, is_lost);
        let nodes = self.nodes.listed();
        self.versions.insert(hello.node, hello.version.clone());
        self.hello = Some(ServerHello { nodes, ..hello });
    }

    /// Something was heard.
    pub(super) fn heard(&mut self, now: Monotonic, conn: ConnNo) {
        let Some(target) = self.targets.get(&conn) else {
            return;
        };
        if let Some(link) = self.links.get_mut(target) {
            link.failures = 0;
            if let LinkState::Up(up) = &mut link.state {
                up.heard(now);
            }
        }
    }

    /// Something was sent, so that something is to be heard.
    pub(super) fn sent(&mut self, now: Monotonic, conn: ConnNo) {
        // Without another node nothing follows from silence but what heartbeats find.
        if self.has_others()
            && let Some((_, up)) = self.up_mut(conn)
        {
            let due = now.plus(QUIET);
            if up.look_at.is_none() {
                up.lively_at = now;
            }
            up.look_at = Some(up.look_at.map_or(due, |at| at.min(due)));
        }
    }

    /// Whether a target cannot be reached: see the head of this file.
    pub(super) fn is_away(&self, target: Target) -> bool {
        let Some(link) = self.links.get(&target) else {
            return false;
        };
        match &link.state {
            LinkState::Connecting { late_at, .. } => late_at.is_none() || link.failures > 0,
            LinkState::Up(up) => up.silent_since.is_some(),
            LinkState::Waiting(_) | LinkState::Idle => link.failures > 0,
        }
    }

    /// The connection to a target that has been silent for long.
    pub(super) fn long_silent(&self, now: Monotonic, target: Target) -> Option<ConnNo> {
        match &self.links.get(&target)?.state {
            LinkState::Up(up) if up.silent_since?.plus(SILENT_LONG) <= now => Some(up.conn),
            _ => None,
        }
    }

    /// A connection was lost, or was never made. Whether it was ours; the next attempt waits.
    pub(super) fn lost(&mut self, now: Monotonic, conn: ConnNo, error: Error) -> bool {
        let Some(target) = self.targets.remove(&conn) else {
            return false;
        };
        self.wait(now, target);
        self.last_error = Some(error);
        true
    }

    /// Forgets all connections, also those that are being made.
    pub(super) fn forget_all(&mut self) -> Vec<ConnNo> {
        self.links.clear();
        std::mem::take(&mut self.targets).into_keys().collect()
    }

    /// The next attempt waits, longer each time.
    fn wait(&mut self, now: Monotonic, target: Target) {
        let failures = self.links.get(&target).map_or(0, |link| link.failures);
        let until = now.plus(self.backoff(failures));
        let state = LinkState::Waiting(until);
        let failures = failures + 1;
        self.links.insert(target, Link { state, failures });
    }

    /// Whether a shard could not be reached at its listed address, and no other node is there to say
    /// more, so that a seed must be asked; at once if there are several.
    pub(super) fn is_astray(&self, target: Target) -> bool {
        let enough = if self.seeds.len() > 1 { 1 } else { 2 };
        let is_lost = match self.links.get(&target) {
            Some(link) => link.failures >= enough && !matches!(link.state, LinkState::Up(_)),
            None => false,
        };
        let node_of = |target| match target {
            Target::Shard(node, _) => Some(node),
            _ => None,
        };
        let mut others = self
            .up_links()
            .filter(|(other, up)| node_of(*other) != node_of(target) && up.silent_since.is_none());
        is_lost && !matches!(target, Target::Seed(_)) && others.next().is_none()
    }

    /// Links whose wait is over may be tried; those that are not up in time are late.
    pub(super) fn end_waits(&mut self, now: Monotonic) {
        for link in self.links.values_mut() {
            match &mut link.state {
                LinkState::Waiting(until) if *until <= now => link.state = LinkState::Idle,
                LinkState::Connecting { late_at, .. } if late_at.is_some_and(|at| at <= now) => {
                    *late_at = None;
                }
                _ => {}
            }
        }
        self.end_pauses(now);
    }

    /// When the next attempt may start that now has to wait.
    pub(super) fn next_attempt(&self) -> Option<Monotonic> {
        let waits = self.links.values().filter_map(|link| match link.state {
            LinkState::Waiting(until) => Some(until),
            LinkState::Connecting { late_at, .. } => late_at,
            _ => None,
        });
        waits.chain(self.next_pause_end()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a server may take for an answer, each time that one took that long.
    fn within(up: &mut Up, took: &[u64]) -> Vec<u128> {
        let each = took.iter().map(|took| {
            up.asked_at = Some(up.lively_at);
            up.heard(up.lively_at.plus(Duration::from_millis(*took)));
            up.answer_within.as_millis()
        });
        each.collect()
    }

    #[test]
    fn a_slow_server_is_given_more_time_and_a_quick_one_less_by_and_by() {
        let connected = |took| {
            let took = Duration::from_millis(took);
            Up::new(ConnNo(1), Monotonic(1), Monotonic(1), took)
        };
        let mut up = connected(2);
        assert_eq!(within(&mut up, &[1, 300, 300, 300]), [200, 400, 800, 1200]);
        assert_eq!(within(&mut up, &[1, 1, 1]), [600, 300, 200]);
        assert_eq!(within(&mut up, &[9_000]), [400], "it was frozen");
        (0..8).for_each(|_| up.is_lively());
        assert_eq!(up.answer_within.as_millis(), 200);
        let mut far = connected(300);
        assert_eq!(within(&mut far, &[1, 150]), [600, 600]);
        assert_eq!(within(&mut connected(60_000), &[1]), [1000]);
    }

    #[test]
    fn waits_are_drawn_from_zero_to_a_bound_that_doubles_up_to_the_last() {
        let ms = Duration::from_millis;
        let mut links = Links::new(vec!["a:1".to_owned()], (ms(10), ms(100)), 7);
        for (failures, bound) in [(0, 10), (1, 20), (2, 40), (3, 80), (4, 100), (99, 100)] {
            let waits: Vec<Duration> = (0..1000).map(|_| links.backoff(failures)).collect();
            let (least, most) = (waits.iter().min(), waits.iter().max());
            let (least, most) = (*least.expect("some"), *most.expect("some"));
            assert!(
                most <= ms(bound) && most > ms(bound) * 9 / 10,
                "{failures}: {most:?}"
            );
            assert!(least < ms(bound) / 10, "{failures}: {least:?}: full jitter");
        }
    }
}
