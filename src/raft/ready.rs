//! What a member wants done, and in which order.

use crate::base::entry::Entry;
use crate::base::ids::{LogIndex, Term};
use crate::raft::message::{Message, Voter};

/// What must survive a crash besides the entries (thesis 3.8). `commit` may be older than the truth, but
/// for one thing: it covers every change of the members that another follows in the log (trap R29).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The highest term seen.
    pub term: Term,
    /// Who got the vote of that term.
    pub vote: Option<Voter>,
    /// Committed as far as known.
    pub commit: LogIndex,
}

/// Whether what a member promised may be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Sound,
    /// It may have lost some of it ([`recovering`](crate::raft::recovering)).
    Recovering {
        /// The first index that may be missing.
        since: LogIndex,
    },
}

/// Work for the engine.
///
/// 1. `hard_state`, `entries` and `standing` go into the log in this order, in one batch or in
///    batches.
/// 2. When an entry is durable, [`synced`](crate::raft::node::RaftNode::synced) is told its index
///    and term. Only then does it count as here.
/// 3. `messages` leave when every hard state handed out so far is durable; there seldom is one on its
///    way.
/// 4. `promises` leave when everything handed out so far is durable, this `Ready` included, in their
///    order: votes, and that entries are here (thesis 3.8; traps R14, R15).
/// 5. Committed entries are read by
///    [`next_committed`](crate::raft::node::RaftNode::next_committed) and applied in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// To be written because term or vote changed, or before an entry that changes the members.
    pub hard_state: Option<HardState>,
    /// To be written, in order.
    pub entries: Vec<Entry>,
    /// To be written because it changed.
    pub standing: Option<Standing>,
    /// To be sent.
    pub messages: Vec<Message>,
    /// To be sent once what they promise is durable.
    pub promises: Vec<Message>,
    /// Reads that may go on once this index is applied: the asker's number, the index.
    pub reads: Vec<(u64, LogIndex)>,
}

impl Ready {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hard_state.is_none()
            && self.entries.is_empty()
            && self.standing.is_none()
            && self.messages.is_empty()
            && self.promises.is_empty()
            && self.reads.is_empty()
    }
}
