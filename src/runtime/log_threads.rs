//! The thread of each shard that reads its log at a start, and looks after the files of the log from then on.
//!
//! Reading takes most of a start, so it begins before the executors are there, which take some milliseconds to
//! set up; and before the ports are ours, which a process that was killed holds for some milliseconds. The segment
//! with which the log goes on is made, and opened by the shard, meanwhile.
//!
//! Nobody outside is told of what was read before it is synced and the number of this start is durable. A shard
//! that has no peers tells nobody before it has written to its log, so it has what was read at once, and waits
//! only for the segment to write to.

use crate::base::report::Report;
use crate::runtime::data_dir::DataDir;
use crate::runtime::mesh::Letter;
use crate::runtime::metrics::NodeMetrics;
use crate::runtime::node::no_thread;
use crate::runtime::poker::Mailbox;
use crate::runtime::segments::Found;
use crate::runtime::shard_task::Event;
use crate::runtime::{recover, segments};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// What several threads wait for: whatever is written by a start has to wait for its number, which names it.
#[derive(Default)]
pub(super) struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(super) fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    pub(super) fn wait(&self) {
        let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.opened.wait_while(is_open, |is_open| !*is_open);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Where the threads of all shards tell what they have done.
pub(super) struct LogThreads {
    pub(super) boxes: Arc<[Mailbox<Letter>]>,
    pub(super) metrics: Arc<NodeMetrics>,
    pub(super) events: Sender<Event>,
    /// Open once the number of this start is durable.
    pub(super) begun_on_disk: Arc<Gate>,
    /// There are no other nodes to talk to.
    pub(super) is_alone: bool,
}

impl LogThreads {
    /// Starts one for each shard of the directory.
    ///
    /// # Errors
    /// If the machine carries no more threads.
    pub(super) fn start(&self, dir: &DataDir) -> Result<Vec<Sender<segments::Order>>, Report> {
        let shards = 0..dir.superblock.shards;
        shards.map(|shard| self.start_one(dir, shard)).collect()
    }

    fn start_one(&self, dir: &DataDir, shard: u16) -> Result<Sender<segments::Order>, Report> {
        let (sender, orders) = channel();
        let (data_dir, folder, wal) = (dir.path().to_owned(), dir.shard(shard), dir.wal(shard));
        let (identity, owner) = (dir.identity(shard), dir.superblock.owner());
        let (boxes, events) = (self.boxes.clone(), self.events.clone());
        let (metrics, gate) = (self.metrics.clone(), self.begun_on_disk.clone());
        let is_alone = self.is_alone;
        let work = move |orders: &Receiver<segments::Order>| {
            let mine = &boxes[usize::from(shard)];
            let begun = Instant::now();
            let spares = metrics.shards[usize::from(shard)].spares.clone();
            let found = segments::find(&wal, &data_dir, spares)?;
            let next = found.next();
            let Found { segments, mut pool } = found;
            let ahead = boxes.clone();
            let ahead = thread::Builder::new()
                .name(format!("rrq-ahead-{shard}"))
                .spawn(move || {
                    if pool.make_ahead(next) {
                        ahead[usize::from(shard)].send(Letter::SegmentAhead(next));
                    }
                    pool
                })
                .map_err(|error| no_thread("log", &error))?;
            let (remains, unsynced) = recover::recover(&folder, identity, owner, &segments)?;
            metrics.recovered("replay", begun.elapsed().as_secs_f64());
            let remains = Letter::Recovered(Box::new(remains));
            let settle = || {
                gate.wait();
                unsynced.sync()
            };
            if is_alone {
                mine.send(remains);
                settle()?;
            } else {
                settle()?;
                mine.send(remains);
            }
            let made = |number| mine.send(Letter::SegmentMade(number));
            let pool = ahead.join().expect("panics end it all");
            pool.obey(orders, made)
        };
        let name = format!("rrq-log-{shard}");
        let started = thread::Builder::new().name(name.clone()).spawn(move || {
            if let Err(report) = work(&orders) {
                let _ = events.send(Event::Failed(report));
            }
        });
        match started {
            Ok(_) => Ok(sender),
            Err(error) => Err(no_thread(&name, &error)),
        }
    }
}
