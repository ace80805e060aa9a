//! The bug bank: bugs that tests plant to prove that the tests would catch them.
//!
//! [`on`] is the constant `false` unless the feature `bug-bank` is built, so the product carries
//! neither the branch nor the bug. With the feature, a test switches one bug on for its thread.

/// A bug that can be planted. Each names the promise that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Entries count as durable when their write is submitted, not when it is synced.
    AckBeforeSync,
    /// Recovery cuts the log at the first bad batch even where a later one proves it acknowledged.
    CutOnProof,
    /// A token of an earlier grant is still accepted.
    StaleTokenAccepted,
    /// A checkpoint leaves the outcomes of the sessions out, so that a retry runs twice.
    SessionsForgotten,
    /// Segments are dropped up to the newest base instead of the previous one, before it is durable.
    DropBeforeBase,
}

/// Whether `bug` is planted in this thread.
#[cfg(not(feature = "bug-bank"))]
#[must_use]
pub const fn on(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "bug-bank")]
mod bank {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether `bug` is planted in this thread.
    #[must_use]
    pub fn on(bug: Bug) -> bool {
        PLANTED.with(|planted| planted.get() == Some(bug))
    }

    /// Plants one bug in this thread, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.with(|planted| planted.set(bug));
    }
}

#[cfg(feature = "bug-bank")]
pub use bank::{on, plant};
