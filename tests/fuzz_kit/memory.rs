//! Counts the memory that a thread holds, so that a body can be held to a bound.
//!
//! Absent: what other threads take; bodies start none.

#![allow(unsafe_code, reason = "the allocator of the system, with a count")]
#![allow(dead_code, reason = "each user needs one of the counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let held = HELD.get().wrapping_add(bytes);
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
    CALLS.set(CALLS.get() + u64::from(bytes > 0));
}

/// How often the thread has taken memory, or more of it.
pub(crate) fn calls() -> u64 {
    CALLS.get()
}

// SAFETY: every call goes to `System` as it came. The counters are constant-initialized cells
// without a destructor, so that touching them allocates nothing and cannot fail.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes.cast_signed() - layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

/// The most that this thread held at once while `run` ran, beyond what it held before.
pub(crate) fn peak_of(run: impl FnOnce()) -> usize {
    let before = HELD.get();
    PEAK.set(before);
    run();
    PEAK.get().wrapping_sub(before).max(0).cast_unsigned()
}
