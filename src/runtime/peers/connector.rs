//! The threads that make connections: one connects to each other node and connects again when that
//! ends, one accepts, and each accepted connection is greeted on a thread of its own.
//!
//! A node that belongs to a cluster gives the cluster to a listed member that belongs to none yet, over
//! the connection that it has just opened.

use crate::base::ids::Voter;
use crate::runtime::config::Member;
use crate::runtime::mesh::Letter;
use crate::runtime::peers::handshake::{Greeting, Trouble};
use crate::runtime::peers::roster::Roster;
use crate::shard::input::Loss;
use crate::wire::frame::FrameDecoder;
use crate::wire::peer::{Link, PeerHello};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// The first wait before another attempt; it doubles up to the longest.
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(500);
/// Without a cluster the others are asked so often who is there.
const ASK_AGAIN: Duration = Duration::from_millis(100);
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
    for member in &roster.others {
        let connector = Connector {
            roster: roster.clone(),
            member: member.clone(),
            is_refused: false,
        };
        let name = format!("rrq-peer-{}", member.node);
        thread::Builder::new()
            .name(name)
            .spawn(move || connector.run())?;
    }
    let roster = roster.clone();
    thread::Builder::new()
        .name("rrq-peers".to_owned())
        .spawn(move || accept(&roster, &listener))?;
    Ok(())
}

/// Who connects to one node.
struct Connector {
    roster: Arc<Roster>,
    member: Member,
    /// The last attempt was refused, and the engines know.
    is_refused: bool,
}

impl Connector {
    fn run(mut self) {
        let mut wait = RETRY_MIN;
        loop {
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
        let Member { node, address } = &self.member;
        match trouble {
            Trouble::Other(text) => {
                let text = format!("node {node} at {address} cannot be spoken to: {text}");
                self.roster.complain(*node, text);
            }
            Trouble::Refused if self.is_refused => {}
            Trouble::Refused => {
                self.is_refused = true;
                tracing::info!(node = node.0, "no process listens at {address}");
                let member = self.roster.known().member(*node);
                if let Some(member) = member {
                    self.roster.lost(member, Loss::Dead);
                }
            }
        }
    }

    /// Connects and says hello; the node and the end of the connection, or nothing as long as this node
    /// belongs to no cluster.
    fn attempt(&self) -> Result<Option<(Voter, Receiver<()>)>, Trouble> {
        let mut greeting = Greeting::connect(&self.member.address)?;
        let ours = self.roster.known().hello_to(self.member.node);
        greeting.say_hello(&ours)?;
        let mut theirs = greeting.hear_hello()?;
        if theirs.node != self.member.node {
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
        if theirs.cluster.is_none() {
            let formation = self.roster.known().formation.clone();
            let formation = formation.expect("who has a cluster knows how it was formed");
            is_member(&self.roster, &theirs)?;
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
    match roster.known().member(theirs.node) {
        Some(member) if member.disk == theirs.disk => Ok(()),
        Some(member) => Err(Trouble::Other(format!(
            "it has another data directory (disk {}) than the one with which it is a member (disk {}): \
             start it with that one",
            theirs.disk, member.disk
        ))),
        None => Err(Trouble::Other("it is no member of this cluster".to_owned())),
    }
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
    let mut ours = roster.known().hello_to(theirs.node);
    greeting.say_hello(&ours)?;
    if theirs.node == ours.node || !roster.others.iter().any(|other| other.node == theirs.node) {
        let text = format!(
            "node {} is none of the cluster.members of this node",
            theirs.node
        );
        roster.complain(theirs.node, text.clone());
        return Err(Trouble::Other(text));
    }
    roster.heard(&theirs);
    if theirs.cluster.is_none() {
        // It only asks who is there.
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
