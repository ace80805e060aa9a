//! Clients that ask one thing at a time, of memory alone, and look into each answer that is late.

use crate::machine::{CoreTimes, Pauses};
use crate::node_support::client::Client;
use hdrhistogram::Histogram;
use rrq::base::ids::GroupId;
use rrq::base::prng::Prng;
use rrq::wire::message::{ReplyBody, RequestBody};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A request that waited so long is looked into.
const LATE: Duration = Duration::from_millis(10);
/// From so much on that nothing explains, the shard's task lay there though it could have run.
const LAY: Duration = Duration::from_millis(5);

/// What one client does.
pub(crate) struct Probe {
    /// Where the shard listens that holds its connection.
    pub(crate) address: SocketAddr,
    /// What it asks about: group g is on shard g.
    pub(crate) group: u16,
    /// The threads of the shards that its requests pass through.
    pub(crate) shards: Vec<CoreTimes>,
    /// When the node was stopped.
    pub(crate) stops: Pauses,
    /// When the machine stood still.
    pub(crate) host: Pauses,
    /// Whether it asks now.
    pub(crate) on: Arc<AtomicBool>,
}

/// What it saw.
pub(crate) struct Seen {
    /// How long each request took, in microseconds.
    pub(crate) took_us: Histogram<u64>,
    /// Of each late one what was left after all that explains it, if it was more than 5 ms.
    pub(crate) lay: Vec<Duration>,
}

impl Probe {
    /// Asks, with short pauses between, until the flag is set.
    pub(crate) fn run(self, over: &AtomicBool) -> Seen {
        let (mut client, _) = Client::greeted(self.address);
        client.stream.set_nodelay(true).expect("a socket of ours");
        let own = CoreTimes::own();
        let mut prng = Prng::new(u64::from(self.address.port()) << 8 | u64::from(self.group));
        let mut seen = Seen {
            took_us: Histogram::new(3).expect("three digits"),
            lay: Vec::new(),
        };
        while !over.load(Relaxed) {
            if prng.chance(1, 8) {
                std::thread::sleep(Duration::from_micros(prng.below(2000)));
            }
            if !self.on.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let busy = |own: &CoreTimes| {
                let shards = self.shards.iter().map(CoreTimes::read);
                shards.sum::<Duration>() + own.read()
            };
            let (begun, before) = (Instant::now(), busy(&own));
            let body = RequestBody::ListQueues {
                group: GroupId(self.group),
            };
            match client.ask(body) {
                ReplyBody::Queues(_) => {}
                other => panic!("not queues: {other:?}"),
            }
            let ended = Instant::now();
            let took = ended - begun;
            seen.took_us += took.as_micros() as u64;
            if took < LATE {
                continue;
            }
            let busy = busy(&own) - before;
            // Who notes the pauses may have woken later than we did.
            std::thread::sleep(Duration::from_millis(50));
            let paused = self.stops.between(begun, ended) + self.host.between(begun, ended);
            let lay = took.saturating_sub(busy + paused);
            if lay > LAY {
                seen.lay.push(lay);
            }
        }
        seen
    }
}
