//! What the threads of [`peers`](crate::runtime::peers) know together: this node's hello, its cluster,
//! and what was heard of the others.

use crate::base::ids::{NodeId, Voter};
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
    /// How far the logs of each other node were durable, as it said.
    durable: BTreeMap<NodeId, Durable>,
    /// What was said of each other node since it was last heard, so that it is not said again and again.
    said: BTreeMap<NodeId, BTreeSet<String>>,
}

impl Known {
    /// What this node says of itself to another, and of what it has heard of that one.
    #[must_use]
    pub fn hello_to(&self, node: NodeId) -> PeerHello {
        PeerHello {
            heard: self.durable.get(&node).cloned(),
            ..self.hello.clone()
        }
    }

    /// Another node said how far its logs are durable.
    pub fn heard_durable(&mut self, node: NodeId, durable: Durable) {
        match self.durable.get_mut(&node) {
            Some(known) => known.hear(durable),
            None => drop(self.durable.insert(node, durable)),
        }
    }

    /// The disk with which another node is a member.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<Voter> {
        let members = &self.formation.as_ref()?.members;
        members.iter().find(|member| member.node == node).copied()
    }
}

impl Roster {
    /// A node that says this of itself, and belongs to this cluster, if to any.
    #[must_use]
    pub fn new(
        others: Vec<Member>,
        boxes: Arc<[Mailbox<Letter>]>,
        process: Process,
        hello: PeerHello,
        formation: Option<Formation>,
    ) -> Self {
        Self {
            others,
            boxes,
            process,
            known: Mutex::new(Known {
                hello,
                formation,
                asked: None,
                heard: BTreeMap::new(),
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
        for (shard, lsn) in heard.flat_map(|heard| heard.lsns.iter().enumerate()) {
            if let Some(mailbox) = self.boxes.get(shard) {
                let input = Input::HeardDurable { lsn: *lsn };
                mailbox.send(Letter::Happened(input));
            }
        }
        let peer = Peer {
            voter: Voter {
                node: hello.node,
                disk: hello.disk,
            },
            client_addresses: hello.client_addresses.clone(),
            machine_version_max: hello.machine_version_max,
        };
        self.tell(|| Input::PeerKnown(peer.clone()));
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
