//! A network between nodes that a test can cut, without any right that a user lacks: the list of members
//! names relays, one for each node, and what goes from one node to another waits there while that way is cut.
//!
//! As with a pulled cable nobody is told, connections stay, and what was under way arrives when the cut ends.
//! Otherwise than there, who connects meanwhile gets a connection, and hears nothing on it.
//!
//! A node can be made to say that it is of the next version: its hellos are written anew.

use bytes::BytesMut;
use rrq::wire::frame::{FrameDecoder, FrameKind};
use rrq::wire::peer::{PeerHello, decode_peer_hello, encode_peer_hello};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The relays of a cluster; they go with this value.
pub(crate) struct Relays {
    ways: Arc<Ways>,
    doors: Vec<JoinHandle<()>>,
}

/// What passes from one node to another.
#[derive(Default)]
struct Ways(Mutex<State>, Condvar);

#[derive(Default)]
struct State {
    /// From, to.
    cut: BTreeSet<(u32, u32)>,
    /// Who says that it is of the next version.
    ahead: BTreeSet<u32>,
    is_over: bool,
}

impl Ways {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics with it")
    }

    /// Changes what is cut, or ends it all.
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.1.notify_all();
    }

    /// Waits until something may pass.
    fn pass(&self, from: u32, to: u32) {
        let is_cut = |state: &mut State| !state.is_over && state.cut.contains(&(from, to));
        let passed = self.1.wait_while(self.state(), is_cut);
        drop(passed.expect("nobody panics with it"));
    }

    /// Carries what comes from one node to another, until there is no more.
    fn carry(&self, (from, to): (u32, u32), mut source: TcpStream, mut target: TcpStream) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(read @ 1..) = source.read(&mut bytes) {
            self.pass(from, to);
            if target.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        self.pass(from, to);
        // Only this way ends: of its end the other node may not hear yet.
        let _ = target.shutdown(Shutdown::Write);
        let _ = source.shutdown(Shutdown::Read);
    }

    /// A node has connected: who it is stands in its first frame.
    fn relay(self: &Arc<Self>, mut source: TcpStream, to: u32, address: SocketAddr) -> Option<()> {
        let (hello, said) = self.first_words(&mut source)?;
        let from = hello?.node.0;
        self.pass(from, to);
        let mut target = TcpStream::connect(address).ok()?;
        target.write_all(&said).ok()?;
        for stream in [&source, &target] {
            stream.set_nodelay(true).ok()?;
        }
        let (mut back, mut there) = (target.try_clone().ok()?, source.try_clone().ok()?);
        let ways = self.clone();
        thread::spawn(move || {
            // Nothing, if it hangs up; that is passed on as well.
            let (_, said) = ways.first_words(&mut back).unwrap_or_default();
            ways.pass(to, from);
            let _ = there.write_all(&said);
            ways.carry((to, from), back, there);
        });
        self.carry((from, to), source, target);
        Some(())
    }

    /// The hello that a stream begins with, if it is one, and the bytes to pass on. `None` if it ends before.
    fn first_words(&self, stream: &mut TcpStream) -> Option<(Option<PeerHello>, BytesMut)> {
        let (mut decoder, mut said) = (FrameDecoder::default(), BytesMut::new());
        loop {
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).ok().filter(|read| *read > 0)?;
            decoder.push(&bytes[..read]);
            said.extend_from_slice(&bytes[..read]);
            let Some(frame) = decoder.next().ok()? else {
                continue;
            };
            if frame.kind != FrameKind::PeerHello {
                return Some((None, said));
            }
            let mut hello = decode_peer_hello(&frame.body).ok()?;
            if self.state().ahead.contains(&hello.node.0) {
                hello.protocol_max += 1;
                hello.machine_version_max += 1;
                said.clear();
                encode_peer_hello(&hello, &mut said);
                said.extend_from_slice(decoder.buffer_mut());
            }
            return Some((Some(hello), said));
        }
    }

    fn is_over(&self) -> bool {
        self.state().is_over
    }
}

impl Relays {
    /// Relays between these nodes: number, the address in the list, and where the node itself listens.
    pub(crate) fn start(nodes: impl IntoIterator<Item = (u32, SocketAddr, SocketAddr)>) -> Self {
        let ways: Arc<Ways> = Arc::default();
        let door = |(number, listed, own)| {
            let (ways, listener) = (ways.clone(), TcpListener::bind(listed).expect("it is free"));
            listener.set_nonblocking(true).expect("it can be asked");
            thread::spawn(move || {
                while !ways.is_over() {
                    let Ok((source, _)) = listener.accept() else {
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    source.set_nonblocking(false).expect("it can be waited for");
                    let ways = ways.clone();
                    thread::spawn(move || ways.relay(source, number, own));
                }
            })
        };
        let doors = nodes.into_iter().map(door).collect();
        Self { ways, doors }
    }

    /// Nothing passes from some nodes to others any more.
    pub(crate) fn cut(&self, from: &[u32], to: &[u32]) {
        let ways = from
            .iter()
            .flat_map(|from| to.iter().map(|to| (*from, *to)));
        self.ways.change(|state| state.cut.extend(ways));
    }

    /// Nothing passes between some nodes and others any more.
    pub(crate) fn part(&self, some: &[u32], others: &[u32]) {
        self.cut(some, others);
        self.cut(others, some);
    }

    /// A node says from its next connections on that it is of the next version, and speaks the present one, too.
    pub(crate) fn say_ahead(&self, node: u32) {
        self.ways.change(|state| state.ahead.extend([node]));
    }

    /// All passes again, and what has waited.
    pub(crate) fn heal(&self) {
        self.ways.change(|state| state.cut.clear());
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.ways.change(|state| state.is_over = true);
        for door in self.doors.drain(..) {
            let ended = door.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "a relay does not panic"
            );
        }
    }
}
