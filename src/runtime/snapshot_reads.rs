//! Reads the checkpoints of a shard: groups at a start, and pages when they are needed.
//!
//! On a thread of its own: whoever waits for a page must not wait for the sync of a round that is being
//! written. So a file may be dropped before its turn comes to be read; the engine asks again then.

use crate::base::ids::GroupId;
use crate::runtime::snapshot_files::reader;
use crate::shard::effect::PageOrder;
use crate::shard::input::Input;
use crate::shard::loading::{load_group, load_pages};
use crate::snapshot::layout::{Owner, RootRef};
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
    },
    /// Read pages of a group.
    Pages(PageOrder),
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
        while let Ok(order) = orders.recv() {
            tell(match order {
                Order::Group { group, bases } => self.group(group, &bases),
                Order::Pages(order) => self.pages(&order),
            });
        }
    }

    fn group(&self, group: GroupId, bases: &[RootRef]) -> Input {
        let result = load_group(&self.owner, bases, &mut reader(&self.folder));
        // The state may come from an older checkpoint and the log; the operator must hear of it.
        let damage: &[String] = match &result {
            Ok(state) => &state.damage,
            Err(what) => std::slice::from_ref(what),
        };
        for what in damage {
            tracing::error!(%group, "a checkpoint is damaged: {what}");
        }
        Input::GroupLoaded { group, result }
    }

    fn pages(&self, order: &PageOrder) -> Input {
        let result = load_pages(&self.owner, order, &mut reader(&self.folder));
        let (group, reader) = (order.group, order.reader);
        if let Err(what) = &result {
            tracing::warn!(%group, "pages cannot be read: {what}");
        }
        Input::PagesLoaded {
            group,
            reader,
            result,
        }
    }
}
