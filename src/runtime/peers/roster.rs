//! What the threads of [`peers`](crate::runtime::peers) know together: this node's hello, its cluster,
//! and what was heard of the others.

use crate::base::ids::{DiskId, NodeId, Voter};
use crate::base::limits::MEMBERS_MAX;
use crate::runtime::config::Member;
use crate::runtime::mesh::Letter;
use crate::runtime::poker::Mailbox;
use crate::runtime::shard_task::Event;
use crate::shard::input::{Input, Loss, Peer};
use crate::wire::peer::{Durable, Formation, PeerHello};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Different complaints about a node that are said while it is not heard.
const COMPLAINTS_MAX: usize = 8;
/// Nodes that are no members and are heard all the same.
const STRANGERS_MAX: usize = 64;
/// The engine is told so often of a node that waits to be added.
const TELL_WAITING_EVERY: Duration = Duration::from_secs(1);

/// This process.
#[derive(Debug)]
pub struct Process {
    /// Random bits.
    pub id: u64,
    /// To its main thread.
    pub events: Sender<Event>,
}

/// What is known together.
#[derive(Debug)]
pub struct Roster {
    /// The other nodes, as configured.
    pub others: Vec<Member>,
    boxes: Arc<[Mailbox<Letter>]>,
    process: Process,
    known: Mutex<Known>,
    changed: Condvar,
}

/// What changes.
#[derive(Debug)]
pub struct Known {
    /// What this node says of itself.
    pub hello: PeerHello,
    /// The cluster, once this node belongs to one; durable.
    pub formation: Option<Formation>,
    /// A cluster that this node is asked to belong to.
    pub asked: Option<Formation>,
    /// The last hello of each other node, and when it came.
    pub heard: BTreeMap<NodeId, (PeerHello, Instant)>,
    /// Where other nodes are reached, `host:port`: as each says of itself, else as configured here, else as
    /// others say.
    pub addresses: BTreeMap<NodeId, String>,
    /// Nodes that shall get no lead.
    draining: BTreeSet<Voter>,
    /// Members that have gone while this process runs.
    gone: BTreeSet<Voter>,
    /// When the engine was told last of a node that waits to be added.
    waiting: BTreeMap<NodeId, Instant>,
    /// How far the logs of each other node were durable, as it said.
    durable: BTreeMap<NodeId, Durable>,
    /// What was said of each other node since it was last heard, so that it is not said again and again.
    said: BTreeMap<NodeId, BTreeSet<String>>,
}

impl Known {
    /// What this node says of itself to another, and of what it has heard of that one. If it is known which
    /// disk that has, also whether it was a member with it.
    #[must_use]
    pub fn hello_to(&self, node: NodeId, disk: Option<DiskId>) -> PeerHello {
        let addresses = self.addresses.iter().take(MEMBERS_MAX);
        let addresses = addresses.map(|(node, address)| (*node, address.clone()));
        let is_gone = |disk| self.gone.contains(&Voter { node, disk });
        PeerHello {
            heard: self.durable.get(&node).cloned(),
            nodes: addresses.collect(),
            removed: disk.is_some_and(is_gone),
            ..self.hello.clone()
        }
    }

    /// The nodes to which this one has to connect: all others of its cluster, or before there is one those
    /// that are configured.
    #[must_use]
    pub fn wanted(&self, configured: &[Member]) -> BTreeSet<NodeId> {
        let mut wanted: BTreeSet<NodeId> = match &self.formation {
            Some(formation) => formation.members.iter().map(|member| member.node).collect(),
            None => configured.iter().map(|member| member.node).collect(),
        };
        wanted.remove(&self.hello.node);
        wanted
    }

    /// Another node said how far its logs are durable.
    pub fn heard_durable(&mut self, node: NodeId, durable: Durable) {
        match self.durable.get_mut(&node) {
            Some(known) => known.hear(durable),
            None => drop(self.durable.insert(node, durable)),
        }
    }

    /// Another node shall get no lead, or may; whether that is news.
    pub fn heard_draining(&mut self, node: Voter, on: bool) -> bool {
        if on {
            self.draining.insert(node)
        } else {
            self.draining.remove(&node)
        }
    }

    /// The disks with which a node is a member: two while one replaces the other.
    pub fn members_of(&self, node: NodeId) -> impl Iterator<Item = Voter> {
        let members = self
            .formation
            .iter()
            .flat_map(|formation| &formation.members);
        members.filter(move |member| member.node == node).copied()
    }

    fn takes(&self, configured: &[Member], hello: &PeerHello) -> bool {
        let is_configured = configured.iter().any(|member| member.node == hello.node);
        let is_known = self.heard.contains_key(&hello.node);
        let strangers = self.heard.len().saturating_sub(configured.len());
        is_configured
            || is_known
            || self.members_of(hello.node).next().is_some()
            || strangers < STRANGERS_MAX
    }
}

impl Roster {
    /// A node that says this of itself, and belongs to this cluster, if to any; `configured` holds itself
    /// too.
    #[must_use]
    pub fn new(
        configured: &[Member],
        boxes: Arc<[Mailbox<Letter>]>,
        process: Process,
        hello: PeerHello,
        formation: Option<Formation>,
    ) -> Self {
        let addresses = configured.iter();
        let addresses = addresses.map(|member| (member.node, member.address.clone()));
        let others = configured.iter();
        let others = others.filter(|member| member.node != hello.node);
        let others = others.cloned().collect();
        Self {
            others,
            boxes,
            process,
            known: Mutex::new(Known {
                hello,
                formation,
                asked: None,
                heard: BTreeMap::new(),
                addresses: addresses.collect(),
                draining: BTreeSet::new(),
                gone: BTreeSet::new(),
                waiting: BTreeMap::new(),
                durable: BTreeMap::new(),
                said: BTreeMap::new(),
            }),
            changed: Condvar::new(),
        }
    }

    /// What is known now.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and wakes who waits for it.
    pub fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let result = change(&mut self.known());
        self.changed.notify_all();
        result
    }

    /// Waits for a change, at most so long.
    pub fn wait(&self, within: Duration) -> MutexGuard<'_, Known> {
        self.wait_with(self.known(), within)
    }

    /// As [`Self::wait`], without missing a change since the guard was taken.
    pub fn wait_with<'a>(
        &self,
        known: MutexGuard<'a, Known>,
        within: Duration,
    ) -> MutexGuard<'a, Known> {
        let waited = self.changed.wait_timeout(known, within);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Another node said hello. If that is a new process of it, the one before is dead.
    pub fn heard(&self, hello: &PeerHello) {
        let before = self.change(|known| {
            if !known.takes(&self.others, hello) {
                return None;
            }
            for (node, address) in &hello.nodes {
                if *node == known.hello.node {
                    continue;
                }
                // Of strangers nothing is kept but what they say themselves.
                let is_known = known.members_of(*node).next().is_some();
                let place = known.addresses.entry(*node);
                if *node == hello.node {
                    *place.or_default() = address.clone();
                } else if is_known {
                    place.or_insert_with(|| address.clone());
                }
            }
            let now = (hello.clone(), Instant::now());
            known.heard.insert(hello.node, now)
        });
        let peer = Voter {
            node: hello.node,
            disk: hello.disk,
        };
        if let Some((before, _)) = before
            && before.disk == hello.disk
            && before.start < hello.start
        {
            self.lost(peer, Loss::Dead);
        }
    }

    /// The engines are told what another node said of itself, and what it has heard of this one before
    /// it was started.
    pub fn tell_known(&self, hello: &PeerHello) {
        let mut known = self.known();
        known.said.remove(&hello.node);
        let (disk, start) = (known.hello.disk, known.hello.start);
        drop(known);
        let heard = hello.heard.iter();
        let heard = heard.filter(|heard| heard.is_of_the_past(disk, self.process.id));
        if let Some(heard) = heard.clone().find(|heard| heard.start >= start) {
            // Nobody listens any more if the node ends already.
            let _ = self.process.events.send(Event::OlderImage {
                heard_by: hello.node,
                start: heard.start,
            });
        }
        for heard in heard {
            self.tell(|| Input::HeardDurable(heard.clone()));
        }
        let peer = Peer::from(hello);
        self.tell(|| Input::PeerKnown(peer.clone()));
    }

    /// A node of no cluster said hello that is no member with its disk: the engine is told, once in a while,
    /// that it waits to be added.
    pub fn waits(&self, hello: &PeerHello) {
        let mut known = self.known();
        let now = Instant::now();
        let last = known.waiting.get(&hello.node);
        if last.is_some_and(|last| last.elapsed() < TELL_WAITING_EVERY) {
            return;
        }
        if known.waiting.len() >= STRANGERS_MAX {
            known
                .waiting
                .retain(|_, last| last.elapsed() < 10 * TELL_WAITING_EVERY);
        }
        if known.waiting.len() >= STRANGERS_MAX {
            return;
        }
        known.waiting.insert(hello.node, now);
        drop(known);
        self.send(Letter::Happened(Input::PeerWaits(hello.into())));
    }

    /// The members of the cluster are these now.
    pub fn set_members(&self, members: &[Voter]) {
        self.change(|known| {
            let me = known.hello.node;
            let Some(formation) = &mut known.formation else {
                return;
            };
            let gone = formation
                .members
                .iter()
                .filter(|member| !members.contains(member));
            known.gone.extend(gone.filter(|member| member.node != me));
            formation.members = members.to_vec();
        });
    }

    /// Another node knows that this one was removed from the cluster.
    pub fn removed(&self, said_by: NodeId) {
        // Nobody listens any more if the node ends already.
        let _ = self.process.events.send(Event::Removed { said_by });
    }

    /// The engines are told that another node is not what it was.
    pub fn lost(&self, peer: Voter, loss: Loss) {
        self.tell(|| Input::PeerLost { peer, loss });
    }

    fn tell(&self, input: impl Fn() -> Input) {
        for mailbox in self.boxes.iter() {
            mailbox.send(Letter::Happened(input()));
        }
    }

    /// Shard 0 gets a letter.
    pub fn send(&self, letter: Letter) {
        self.boxes[0].send(letter);
    }

    /// Says what is wrong with another node, once until it is heard again.
    pub fn complain(&self, node: NodeId, text: String) {
        let mut known = self.known();
        let said = known.said.entry(node).or_default();
        let is_new = said.len() < COMPLAINTS_MAX && said.insert(text.clone());
        // A log that nobody reads must not keep shard 0 from what is known.
        drop(known);
        if is_new {
            tracing::warn!(node = node.0, "{text}");
        }
    }
}
