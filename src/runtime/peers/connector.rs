//! The threads that make connections: one connects to each other node and connects again when that
//! ends, one accepts, one sees to it that every other member is connected to, and each accepted connection
//! is greeted on a thread of its own.
//!
//! A node that belongs to a cluster gives the cluster to a member that belongs to none yet, over the
//! connection that it has just opened. Who belongs to none and is no member either waits to be added.

use crate::base::ids::{NodeId, Voter};
use crate::runtime::mesh::Letter;
use crate::runtime::peers::handshake::{Greeting, Trouble};
use crate::runtime::peers::roster::Roster;
use crate::shard::input::Loss;
use crate::wire::frame::FrameDecoder;
use crate::wire::peer::{Link, PeerHello};
use std::collections::BTreeSet;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The first wait before another attempt; it doubles up to the longest.
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(500);
/// Without a cluster the others are asked so often who is there.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often it is looked whether all members are connected to, although nothing was heard.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a node may take to write down to which cluster it belongs.
const JOIN_WITHIN: Duration = Duration::from_secs(5);
/// Strangers that are greeted at once; others are let go.
const GREETINGS_MAX: usize = 32;

/// Which way messages go on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the other node.
    In,
    /// To the other node.
    Out,
}

/// A connection whose hellos fit.
#[derive(Debug)]
pub struct Linked {
    /// Who sends and who receives.
    pub link: Link,
    /// Which way.
    pub way: Way,
    /// The connection.
    pub stream: TcpStream,
    /// What was read of it beyond the hellos.
    pub decoder: FrameDecoder,
    /// What is known of all nodes.
    pub roster: Arc<Roster>,
    /// Dropped when the connection has ended.
    pub alive: Sender<()>,
}

/// Starts the threads.
///
/// # Errors
/// If the machine has no room for them.
pub fn start(roster: &Arc<Roster>, listener: TcpListener) -> io::Result<()> {
    let connecting = Connecting::default();
    connect_to_wanted(roster, &connecting)?;
    let keeper = roster.clone();
    thread::Builder::new()
        .name("rrq-members".to_owned())
        .spawn(move || {
            loop {
                drop(keeper.wait(LOOK_EVERY));
                if let Err(error) = connect_to_wanted(&keeper, &connecting) {
                    tracing::warn!(%error, "no thread to connect to another node; it is tried again");
                }
            }
        })?;
    let roster = roster.clone();
    thread::Builder::new()
        .name("rrq-peers".to_owned())
        .spawn(move || accept(&roster, &listener))?;
    Ok(())
}

/// Nodes that a thread connects to.
type Connecting = Arc<Mutex<BTreeSet<NodeId>>>;

/// Starts a thread for each node that one is missing for.
fn connect_to_wanted(roster: &Arc<Roster>, connecting: &Connecting) -> io::Result<()> {
    let wanted = roster.known().wanted(&roster.others);
    for node in wanted {
        if !connecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node)
        {
            continue;
        }
        let connector = Connector {
            roster: roster.clone(),
            node,
            is_refused: false,
        };
        let done = connecting.clone();
        thread::Builder::new()
            .name(format!("rrq-peer-{node}"))
            .spawn(move || {
                connector.run();
                done.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&node);
            })
            .inspect_err(|_| {
                connecting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&node);
            })?;
    }
    Ok(())
}

/// Who connects to one node.
struct Connector {
    roster: Arc<Roster>,
    node: NodeId,
    /// The last attempt was refused, and the engines know.
    is_refused: bool,
}

impl Connector {
    fn run(mut self) {
        let mut wait = RETRY_MIN;
        while self
            .roster
            .known()
            .wanted(&self.roster.others)
            .contains(&self.node)
        {
            match self.attempt() {
                Ok(Some((peer, ended))) => {
                    wait = RETRY_MIN;
                    self.is_refused = false;
                    // Nothing is ever sent here: it ends with the connection.
                    let _ = ended.recv();
                    self.roster.lost(peer, Loss::Broken);
                }
                Ok(None) => drop(self.roster.wait(ASK_AGAIN)),
                Err(trouble) => {
                    self.note(trouble);
                    thread::sleep(wait);
                    wait = (2 * wait).min(RETRY_MAX);
                }
            }
        }
    }

    fn note(&mut self, trouble: Trouble) {
        let node = self.node;
        let known = self.roster.known();
        let address = known.addresses.get(&node).cloned().unwrap_or_default();
        let members: Vec<Voter> = known.members_of(node).collect();
        drop(known);
        match trouble {
            Trouble::Other(text) => {
                let text = format!("node {node} at {address} cannot be spoken to: {text}");
                self.roster.complain(node, text);
            }
            Trouble::Refused if self.is_refused => {}
            Trouble::Refused => {
                self.is_refused = true;
                tracing::info!(node = node.0, "no process listens at {address}");
                for member in members {
                    self.roster.lost(member, Loss::Dead);
                }
            }
        }
    }

    /// Connects and says hello; the node and the end of the connection, or nothing as long as this node
    /// belongs to no cluster.
    fn attempt(&self) -> Result<Option<(Voter, Receiver<()>)>, Trouble> {
        let known = self.roster.known();
        let address = known.addresses.get(&self.node).cloned();
        let ours = known.hello_to(self.node, None);
        drop(known);
        let address = address
            .ok_or_else(|| Trouble::Other("nobody has said yet where it is reached".to_owned()))?;
        let mut greeting = Greeting::connect(&address)?;
        greeting.say_hello(&ours)?;
        let mut theirs = greeting.hear_hello()?;
        if theirs.node != self.node {
            let text = format!(
                "it says that it is node {}: check cluster.members",
                theirs.node
            );
            return Err(Trouble::Other(text));
        }
        self.roster.heard(&theirs);
        if ours.cluster.is_none() {
            return Ok(None);
        }
        if theirs.removed && theirs.cluster == ours.cluster {
            self.roster.removed(theirs.node);
        }
        if theirs.cluster.is_none() {
            let formation = self.roster.known().formation.clone();
            let formation = formation.expect("who has a cluster knows how it was formed");
            is_member(&self.roster, &theirs).inspect_err(|_| self.roster.waits(&theirs))?;
            greeting.say_formation(&formation)?;
            theirs = greeting.hear_hello()?;
            self.roster.heard(&theirs);
        }
        let heard = fits(&self.roster, &theirs, &ours)?;
        let link = Link {
            from: heard.to,
            start: ours.start,
            to: heard.from,
        };
        self.roster.tell_known(&theirs);
        Ok(Some((
            link.to,
            hand_over(&self.roster, greeting, link, Way::Out)?,
        )))
    }
}

/// Whether a node may be spoken to, as a member of this cluster with its disk.
fn fits(roster: &Roster, theirs: &PeerHello, ours: &PeerHello) -> Result<Link, Trouble> {
    let link = Link::from_hellos(theirs, ours);
    let link = link.map_err(|refusal| Trouble::Other(refusal.to_string()))?;
    is_member(roster, theirs)?;
    Ok(link)
}

fn is_member(roster: &Roster, theirs: &PeerHello) -> Result<(), Trouble> {
    let known = roster.known();
    let mut disks = known.members_of(theirs.node).map(|member| member.disk);
    let disk = match disks.next() {
        None => {
            let text = "it is no member of this cluster".to_owned();
            return Err(Trouble::Other(text));
        }
        Some(disk) if disk == theirs.disk || disks.any(|disk| disk == theirs.disk) => return Ok(()),
        Some(disk) => disk,
    };
    Err(Trouble::Other(format!(
        "it has another data directory (disk {}) than the one with which it is a member (disk {disk}): \
         start it with that one, or if that is lost with an empty one, and then \
         rrqctl cluster replace {}",
        theirs.disk, theirs.node
    )))
}

fn hand_over(
    roster: &Arc<Roster>,
    greeting: Greeting,
    link: Link,
    way: Way,
) -> Result<Receiver<()>, Trouble> {
    let (stream, decoder) = greeting.done()?;
    let (alive, ended) = channel();
    roster.send(Letter::Linked(Box::new(Linked {
        link,
        way,
        stream,
        decoder,
        roster: roster.clone(),
        alive,
    })));
    Ok(ended)
}

fn accept(roster: &Arc<Roster>, listener: &TcpListener) {
    let greeted = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "no other node can be accepted; it is tried again");
                thread::sleep(RETRY_MAX);
                continue;
            }
        };
        if greeted.fetch_add(1, Relaxed) >= GREETINGS_MAX {
            greeted.fetch_sub(1, Relaxed);
            continue;
        }
        let (roster, count) = (roster.clone(), greeted.clone());
        let greet = move || {
            if let Err(Trouble::Other(text)) = greet(&roster, stream) {
                tracing::debug!("a connection to the port of nodes was let go: {text}");
            }
            count.fetch_sub(1, Relaxed);
        };
        let started = thread::Builder::new()
            .name("rrq-greet".to_owned())
            .spawn(greet);
        if let Err(error) = started {
            greeted.fetch_sub(1, Relaxed);
            tracing::warn!(%error, "no other node can be greeted");
        }
    }
}

fn greet(roster: &Arc<Roster>, stream: TcpStream) -> Result<(), Trouble> {
    let mut greeting = Greeting::on(stream)?;
    let theirs = greeting.hear_hello()?;
    let mut ours = roster.known().hello_to(theirs.node, Some(theirs.disk));
    greeting.say_hello(&ours)?;
    let is_configured = roster.others.iter().any(|other| other.node == theirs.node);
    if theirs.node == ours.node
        || (ours.cluster.is_none() && theirs.cluster.is_none() && !is_configured)
    {
        let text = format!(
            "node {} is none of the other cluster.members of this node",
            theirs.node
        );
        roster.complain(theirs.node, text.clone());
        return Err(Trouble::Other(text));
    }
    roster.heard(&theirs);
    if theirs.cluster.is_none() {
        // It only asks who is there, or waits to be added.
        if ours.cluster.is_some() && is_member(roster, &theirs).is_err() {
            roster.waits(&theirs);
        }
        return Ok(());
    }
    if ours.cluster.is_none() {
        let formation = greeting.hear_formation()?;
        ours = join(roster, formation)?;
        greeting.say_hello(&ours)?;
    }
    let link = fits(roster, &theirs, &ours).inspect_err(|trouble| {
        if let Trouble::Other(text) = trouble {
            roster.complain(theirs.node, text.clone());
        }
    })?;
    roster.tell_known(&theirs);
    hand_over(roster, greeting, link, Way::In).map(drop)
}

/// Asks the main thread to write down that this node belongs to a cluster; the hello that says so.
fn join(roster: &Roster, formation: crate::wire::peer::Formation) -> Result<PeerHello, Trouble> {
    roster.change(|known| known.asked = Some(formation));
    let by = Instant::now() + JOIN_WITHIN;
    let mut known = roster.known();
    while known.formation.is_none() {
        let left = by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Trouble::Other(
                "this node does not join that cluster".to_owned(),
            ));
        }
        known = roster.wait_with(known, left);
    }
    Ok(known.hello.clone())
}
