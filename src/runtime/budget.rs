//! What the connections of a shard hold together: frames that are half here, requests under way and
//! replies not taken yet. One number, one bound.
//!
//! A connection asks before it reads. Beyond the bound it waits in its client's socket, in one of two
//! lines:
//!
//! | who | what it may read beyond the bound |
//! | --- | --- |
//! | holds less than [`CONNECTION_BYTES_ASSURED`] | up to that: small requests are always served |
//! | is in the middle of a frame | the rest of it, one connection at a time, first come first served |
//! | the others | nothing until there is room |
//!
//! So the bound is passed by what is assured, and by one frame; and frames that are half here cannot
//! wait for each other for ever, since one of them is always finished.
//!
//! Who is let go on and what comes of it is one baton: each turn of a connection ends with
//! [`Budget::pass_on`], and so does its end. A connection that needs nothing hands it to the next.

use crate::base::ids::ConnId;
use crate::base::limits::CONNECTION_BYTES_ASSURED;
use crate::runtime::connection::Connection;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

/// The budget of a shard.
pub struct Budget {
    max: usize,
    used: Cell<usize>,
    /// Who finishes a frame beyond the bound.
    finisher: Cell<Option<ConnId>>,
    /// Those in the middle of a frame.
    finishing: RefCell<VecDeque<Weak<Connection>>>,
    /// The others.
    waiting: RefCell<VecDeque<Weak<Connection>>>,
}

/// What a connection asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Who.
    pub conn: ConnId,
    /// What it holds.
    pub held: usize,
    /// Bytes until the frame that has begun is whole; 0 if none has.
    pub missing: usize,
    /// What it would read at most.
    pub most: usize,
}

impl Budget {
    /// An empty budget of `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            used: Cell::new(0),
            finisher: Cell::new(None),
            finishing: RefCell::default(),
            waiting: RefCell::default(),
        }
    }

    /// The bound.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Bytes held.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Whether so many bytes more are within the bound.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        self.used.get() + bytes <= self.max
    }

    /// A connection that held `before` bytes holds `after`.
    pub fn change(&self, before: usize, after: usize) {
        self.used.set(self.used.get() - before + after);
    }

    /// How much a connection may read now; 0 if it must wait.
    #[must_use]
    pub fn grant(&self, wish: Wish) -> usize {
        if self.has_room(1) {
            return wish.most;
        }
        if wish.held < CONNECTION_BYTES_ASSURED {
            return wish.most.min(CONNECTION_BYTES_ASSURED - wish.held);
        }
        let free = self
            .finisher
            .get()
            .is_none_or(|finisher| finisher == wish.conn);
        if wish.missing == 0 || !free {
            return 0;
        }
        self.finisher.set(Some(wish.conn));
        wish.most.min(wish.missing)
    }

    /// Lets a connection wait that was granted nothing.
    pub fn wait(&self, connection: &Rc<Connection>, in_a_frame: bool) {
        let entry = Rc::downgrade(connection);
        self.line(in_a_frame).borrow_mut().push_back(entry);
    }

    /// The turn of a connection is over: if it is done with its frame, another may finish one; and
    /// if there is room, the next in line goes on.
    pub fn pass_on(&self, conn: ConnId, in_a_frame: bool) {
        let has_room = self.has_room(1);
        if self.finisher.get() == Some(conn) && (has_room || !in_a_frame) {
            self.finisher.set(None);
        }
        if has_room {
            let _ = self.wake_first(true) || self.wake_first(false);
        } else if self.finisher.get().is_none() {
            self.wake_first(true);
        }
    }

    /// Wakes the first of a line that is still there; false if there is none.
    fn wake_first(&self, in_a_frame: bool) -> bool {
        loop {
            let Some(first) = self.line(in_a_frame).borrow_mut().pop_front() else {
                return false;
            };
            if let Some(connection) = first.upgrade() {
                connection.go_on(in_a_frame);
                return true;
            }
        }
    }

    fn line(&self, in_a_frame: bool) -> &RefCell<VecDeque<Weak<Connection>>> {
        if in_a_frame {
            &self.finishing
        } else {
            &self.waiting
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 20;

    fn wish(conn: u64, held: usize, missing: usize) -> Wish {
        Wish {
            conn: ConnId(conn),
            held,
            missing,
            most: 1 << 18,
        }
    }

    #[test]
    fn beyond_the_bound_small_ones_go_on_and_one_frame_is_finished() {
        let budget = Budget::new(MAX);
        assert_eq!(budget.grant(wish(1, 0, 0)), 1 << 18, "there is room");
        budget.change(0, MAX);
        assert_eq!(budget.grant(wish(1, 0, 0)), CONNECTION_BYTES_ASSURED);
        assert_eq!(
            budget.grant(wish(1, CONNECTION_BYTES_ASSURED - 1, 99)),
            1,
            "no more than is assured"
        );
        assert_eq!(budget.grant(wish(1, MAX, 0)), 0, "between two frames");
        assert_eq!(budget.grant(wish(2, MAX / 2, 5000)), 5000);
        assert_eq!(budget.grant(wish(3, MAX / 2, 5000)), 0, "one at a time");
        budget.pass_on(ConnId(2), true);
        assert_eq!(budget.grant(wish(2, MAX / 2, 2000)), 2000, "its rest");
        budget.pass_on(ConnId(2), false);
        assert_eq!(budget.grant(wish(3, MAX / 2, 5000)), 5000);
        budget.change(MAX, 0);
        assert!(budget.has_room(MAX) && !budget.has_room(MAX + 1));
    }

    #[test]
    fn who_waits_is_woken_in_order_and_who_has_left_is_passed_over() {
        let budget = Rc::new(Budget::new(MAX));
        let made: Vec<_> = (1..=4)
            .map(|conn| Rc::new(Connection::new(ConnId(conn), budget.clone())))
            .collect();
        let [first, gone, frame, last] = made.try_into().map_err(|_| ()).expect("four");
        budget.change(0, MAX);
        budget.wait(&first, false);
        budget.wait(&gone, false);
        budget.wait(&frame, true);
        budget.wait(&last, false);
        drop(gone);
        assert_eq!(budget.waiting.borrow().len(), 3, "nobody is let go on yet");
        assert_eq!(
            budget.finishing.borrow().len(),
            0,
            "but a frame: the end of a connection passes the baton"
        );
        budget.change(MAX, 0);
        budget.pass_on(ConnId(9), false);
        assert_eq!(budget.waiting.borrow().len(), 2);
        budget.pass_on(ConnId(1), false);
        assert_eq!(budget.waiting.borrow().len(), 0, "the one that is gone too");
    }
}
