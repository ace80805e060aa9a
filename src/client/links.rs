//! Where to send what: the nodes and shards as last heard, and one connection to each shard in use.
//!
//! A connection starts at one of the addresses given (a *seed*) or at a shard's listed address; the
//! hello says which shard it really reached. A shard that cannot be reached makes the client ask a
//! seed again, since ports may have changed with a restart.

use crate::base::checksum::crc32c;
use crate::base::code::Code;
use crate::base::ids::{GroupId, NodeId};
use crate::base::prng::Prng;
use crate::base::units::Monotonic;
use crate::client::error::Error;
use crate::wire::message::ServerHello;
use std::collections::BTreeMap;
use std::time::Duration;

/// A connection; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnNo(pub u64);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// Any node: to learn of all.
    Seed,
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
}

#[derive(Debug)]
enum LinkState {
    Connecting(ConnNo),
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
    /// Where the leader of a group is, if it is not the node first reached.
    leaders: BTreeMap<GroupId, NodeId>,
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
            leaders: BTreeMap::new(),
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
        let Some(hello) = &self.hello else {
            return Target::Seed;
        };
        match route {
            Route::Any => self
                .up_links()
                .map(|(target, _)| target)
                .next()
                .unwrap_or(Target::Seed),
            Route::Shard(node, shard) => Target::Shard(node, shard),
            Route::Group(group) => {
                let node = self.leaders.get(&group).copied().unwrap_or(hello.node);
                let shards = hello.nodes.iter().find(|listed| listed.node == node);
                match shards {
                    Some(listed) => {
                        let shard = usize::from(group.0) % listed.addresses.len();
                        Target::Shard(node, u16::try_from(shard).unwrap_or(u16::MAX))
                    }
                    None => Target::Seed,
                }
            }
        }
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
        let failures = match self.links.get(&target) {
            None => 0,
            Some(link) => match link.state {
                LinkState::Waiting(until) if until <= now => link.failures,
                LinkState::Idle => link.failures,
                LinkState::Waiting(_) | LinkState::Connecting(_) | LinkState::Up(_) => return None,
            },
        };
        let address = match target {
            Target::Seed => {
                let address = self.seeds[self.next_seed].clone();
                self.next_seed = (self.next_seed + 1) % self.seeds.len();
                address
            }
            Target::Shard(node, shard) => self.address(node, shard)?,
        };
        self.next_conn += 1;
        let conn = ConnNo(self.next_conn);
        self.targets.insert(conn, target);
        let state = LinkState::Connecting(conn);
        self.links.insert(target, Link { state, failures });
        Some(ToConnect { conn, address })
    }

    fn address(&self, node: NodeId, shard: u16) -> Option<String> {
        let hello = self.hello.as_ref()?;
        let listed = hello.nodes.iter().find(|listed| listed.node == node)?;
        listed.addresses.get(usize::from(shard)).cloned()
    }

    /// A connection said hello.
    pub(super) fn arrived(
        &mut self,
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
        let reached = Target::Shard(hello.node, hello.shard);
        let failures = self.links.get(&asked).map_or(0, |link| link.failures);
        self.hello = Some(hello);
        let mut other = None;
        if asked != reached {
            self.links.remove(&asked);
            self.targets.remove(&conn);
            match self.links.get(&reached).map(|link| &link.state) {
                Some(LinkState::Up(_)) => return Arrival::Superfluous,
                Some(LinkState::Connecting(conn)) => other = Some(*conn),
                Some(LinkState::Waiting(_) | LinkState::Idle) | None => {}
            }
        }
        if let Some(other) = other {
            self.targets.remove(&other);
        }
        let up = Up {
            conn,
            next_beat,
            unanswered_beat: None,
        };
        self.targets.insert(conn, reached);
        let state = LinkState::Up(up);
        self.links.insert(reached, Link { state, failures });
        Arrival::Serves(reached, other)
    }

    /// Something was heard.
    pub(super) fn heard(&mut self, conn: ConnNo) {
        let Some(target) = self.targets.get(&conn) else {
            return;
        };
        if let Some(link) = self.links.get_mut(target) {
            link.failures = 0;
            if let LinkState::Up(up) = &mut link.state {
                up.unanswered_beat = None;
            }
        }
    }

    /// A connection was lost, or was never made. Whether it was ours; the next attempt waits.
    pub(super) fn lost(&mut self, now: Monotonic, conn: ConnNo, error: Error) -> bool {
        let Some(target) = self.targets.remove(&conn) else {
            return false;
        };
        let failures = self.links.get(&target).map_or(0, |link| link.failures);
        let until = now.plus(self.backoff(failures));
        let state = LinkState::Waiting(until);
        let failures = failures + 1;
        self.links.insert(target, Link { state, failures });
        self.last_error = Some(error);
        true
    }

    /// Whether a shard could not be reached at its listed address, so that a seed must be asked.
    pub(super) fn is_astray(&self, target: Target) -> bool {
        target != Target::Seed
            && self
                .links
                .get(&target)
                .is_some_and(|link| link.failures > 1 && !matches!(link.state, LinkState::Up(_)))
    }

    /// Links whose wait is over may be tried.
    pub(super) fn end_waits(&mut self, now: Monotonic) {
        for link in self.links.values_mut() {
            if matches!(link.state, LinkState::Waiting(until) if until <= now) {
                link.state = LinkState::Idle;
            }
        }
    }

    /// When the next attempt may start that now has to wait.
    pub(super) fn next_attempt(&self) -> Option<Monotonic> {
        let waits = self.links.values().filter_map(|link| match link.state {
            LinkState::Waiting(until) => Some(until),
            _ => None,
        });
        waits.min()
    }

    /// The leader of a group is elsewhere: at `address` if that is known, else at another node.
    /// Whether that names a node that was not asked.
    pub(super) fn leader_moved(&mut self, group: GroupId, address: Option<&str>) -> bool {
        let Some(hello) = &self.hello else {
            return false;
        };
        let asked = self.leaders.get(&group).copied().unwrap_or(hello.node);
        let named = address.and_then(|address| {
            let has = |listed: &[String]| listed.iter().any(|known| known == address);
            hello.nodes.iter().find(|node| has(&node.addresses))
        });
        let next = named.or_else(|| {
            let at = hello.nodes.iter().position(|node| node.node == asked)?;
            hello.nodes.get((at + 1) % hello.nodes.len())
        });
        let Some(next) = next.map(|node| node.node) else {
            return false;
        };
        self.leaders.insert(group, next);
        named.is_some() && next != asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
