//! Reads the checkpoints of a shard: groups at a start, and pages when they are needed.
//!
//! On a thread of its own: whoever waits for a page must not wait for the sync of a round that is being
//! written. So a file may be dropped before its turn comes to be read; the engine asks again then.
//!
//! What the next entry of a group waits for goes before what others do, every second time.

use crate::base::ids::GroupId;
use crate::runtime::snapshot_files::reader;
use crate::shard::effect::{GroupReader, PageOrder, Reader};
use crate::shard::input::Input;
use crate::shard::loading::{load_group, load_pages};
use crate::snapshot::layout::{Owner, RootRef};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

/// What the thread is asked.
#[derive(Debug)]
pub enum Order {
    /// Read a group.
    Group {
        /// The group.
        group: GroupId,
        /// Its bases, newest first.
        bases: Vec<RootRef>,
        /// Who waits for it.
        reader: GroupReader,
    },
    /// Read pages of a group.
    Pages(PageOrder),
}

/// Orders that are obeyed with the same open files.
const ORDERS_A_READER: usize = 64;

/// Reads from the checkpoint files of a shard.
type Read<'r> = dyn FnMut(u64, u64, usize) -> io::Result<Bytes> + 'r;

/// Which order is obeyed next.
fn take_next(waiting: &mut VecDeque<Order>, turn: usize) -> Option<Order> {
    let is_urgent = |order: &Order| match order {
        Order::Group { .. } => false,
        Order::Pages(order) => order.reader == Reader::Apply,
    };
    let urgent = waiting.iter().position(is_urgent);
    let at = urgent.filter(|_| turn.is_multiple_of(2));
    waiting.remove(at.unwrap_or_default())
}

/// The thread's state.
#[derive(Debug)]
pub struct SnapshotReads {
    folder: PathBuf,
    owner: Owner,
}

impl SnapshotReads {
    /// For the checkpoints in `folder`.
    #[must_use]
    pub fn new(folder: PathBuf, owner: Owner) -> Self {
        Self { folder, owner }
    }

    /// Obeys until the other end is gone.
    pub fn obey(self, orders: &Receiver<Order>, mut tell: impl FnMut(Input)) {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                match orders.recv() {
                    Ok(order) => waiting.push_back(order),
                    Err(_) => return,
                }
            }
            // Files stay open while there is more to read, but not for long: one that was dropped keeps its
            // room on the disk.
            let mut read = reader(&self.folder);
            for turn in 0..ORDERS_A_READER {
                waiting.extend(orders.try_iter());
                let Some(order) = take_next(&mut waiting, turn) else {
                    break;
                };
                tell(match order {
                    Order::Group {
                        group,
                        bases,
                        reader,
                    } => self.group((group, reader), &bases, &mut read),
                    Order::Pages(order) => self.pages(&order, &mut read),
                });
            }
        }
    }

    fn group(
        &self,
        (group, reader): (GroupId, GroupReader),
        bases: &[RootRef],
        read: &mut Read<'_>,
    ) -> Input {
        let result = load_group(&self.owner, bases, read);
        // The state may come from an older checkpoint and the log; the operator must hear of it.
        let damage: &[String] = match &result {
            Ok(state) => &state.damage,
            Err(unread) => std::slice::from_ref(&unread.what),
        };
        for what in damage {
            tracing::error!(%group, "a checkpoint is damaged: {what}");
        }
        Input::GroupLoaded {
            group,
            reader,
            result,
        }
    }

    fn pages(&self, order: &PageOrder, read: &mut Read<'_>) -> Input {
        let result = load_pages(&self.owner, order, read);
        let (group, reader) = (order.group, order.reader);
        if let Err(unread) = &result {
            tracing::warn!(%group, "pages cannot be read: {}", unread.what);
        }
        Input::PagesLoaded {
            group,
            reader,
            result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_waits_goes_first_every_second_time() {
        let pages = |group, reader| {
            Order::Pages(PageOrder {
                group: GroupId(group),
                wants: Vec::new(),
                reader,
            })
        };
        let mut waiting: VecDeque<Order> = (0..6)
            .map(|group| {
                let waits = group >= 3;
                pages(group, if waits { Reader::Apply } else { Reader::Reads })
            })
            .collect();
        let mut obeyed = Vec::new();
        while let Some(order) = take_next(&mut waiting, obeyed.len()) {
            let Order::Pages(order) = order else {
                panic!("only pages were ordered");
            };
            obeyed.push(order.group.0);
        }
        assert_eq!(obeyed, [3, 0, 4, 1, 5, 2]);
    }
}
