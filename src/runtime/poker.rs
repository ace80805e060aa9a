//! Watches over the executors from outside: wakes one that sleeps though it should not, and ends
//! the process if one does not answer.
//!
//! glommio 0.9 can park an executor with runnable tasks: an event that lands between its poll and
//! its check of the preempt timer is consumed by the park. Only a wake from another thread through
//! a task's own raw waker frees it for certain; a channel, a socket or a timer of the executor can
//! be among what was lost. So each executor has a task that waits for nothing but that waker, a
//! plain thread calls it every 5 ms while the executor's beat stands still, and after 400 calls
//! without an answer (2 s of our own running, so a stopped process is not blamed) the process
//! aborts: a start that hangs included. A supervisor restarts it; nothing acknowledged is lost.
//!
//! The same task is the doorbell of the shard's [`Mailbox`]: other threads ring it once until it
//! has answered. A task holds its wakers in 16 bits, so bells must not pile up.

use crate::base::code::Code;
use crate::base::ids::ShardId;
use crate::base::report::Report;
use crate::runtime::process;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// How often the beats are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// So many looks at a beat that stands still, each with a poke, mean that the executor is deaf.
const DEAF_LOOKS: u32 = 400;
/// The same before the shard serves: reading back a large state and a long log is one turn each, and
/// ending the process for it would only begin it anew. Two minutes.
const DEAF_LOOKS_OPENING: u32 = 24_000;
/// A beat that stood still for so many looks counts as a stall: pokes were not answered at once.
const STALL_LOOKS: u32 = 10;

/// What one executor shares with the threads around it.
#[derive(Debug, Default)]
pub struct Pulse {
    waker: Mutex<Option<Waker>>,
    /// Moves on whenever the executor runs.
    beat: AtomicU64,
    /// Whether the next ring must call the waker: set by the task, cleared by the first ring.
    armed: AtomicBool,
    /// The executor runs, and reads back what its shard holds.
    opening: AtomicBool,
    /// Pokes so far.
    pub pokes: AtomicU64,
    /// Times that pokes went unanswered for 50 ms.
    pub stalls: AtomicU64,
    /// The longest of them, in nanoseconds, less the time in which the thread waited for a core.
    pub longest_stall_ns: AtomicU64,
    /// The executor's thread; 0 until it runs.
    pub thread: AtomicU32,
}

impl Pulse {
    /// Says that the executor runs.
    pub fn beat(&self) {
        self.beat.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it has said so.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beat.load(Ordering::Relaxed)
    }

    /// Says whether the shard is being read back.
    pub fn set_opening(&self, opening: bool) {
        self.opening.store(opening, Ordering::Relaxed);
    }

    /// Wakes the executor unless a ring before this one is still to be answered.
    pub fn ring(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.poke();
        }
    }

    fn poke(&self) {
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake_by_ref();
        }
    }

    /// How long the executor's thread has waited for a core since its start, in nanoseconds.
    fn run_delay_ns(&self) -> u64 {
        process::run_delay_ns(self.thread.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// The task that answers: to be spawned first on the executor. `awake` is called at each wake.
    pub async fn answer(&self, mut awake: impl FnMut()) {
        poll_fn(|context| {
            lock(&self.waker).get_or_insert_with(|| context.waker().clone());
            self.armed.store(true, Ordering::SeqCst);
            self.beat();
            awake();
            Poll::<()>::Pending
        })
        .await;
    }
}

/// What other threads tell a shard. Bounded only where the sender asks: helpers answer what the
/// shard ordered, shards use [`Mailbox::try_send`].
#[derive(Debug)]
pub struct Mailbox<T> {
    letters: Mutex<VecDeque<T>>,
    pulse: Arc<Pulse>,
}

impl<T> Mailbox<T> {
    /// A mailbox whose bell is the executor's.
    #[must_use]
    pub fn new(pulse: Arc<Pulse>) -> Self {
        Self {
            letters: Mutex::default(),
            pulse,
        }
    }

    /// Puts a letter in and rings.
    pub fn send(&self, letter: T) {
        lock(&self.letters).push_back(letter);
        self.pulse.ring();
    }

    /// Puts a letter in and rings, or gives it back if `bound` letters wait.
    ///
    /// # Errors
    /// The letter, if the box is full.
    pub fn try_send(&self, letter: T, bound: usize) -> Result<(), T> {
        {
            let mut letters = lock(&self.letters);
            if letters.len() >= bound {
                return Err(letter);
            }
            letters.push_back(letter);
        }
        self.pulse.ring();
        Ok(())
    }

    /// Moves all letters to `into`.
    pub fn take(&self, into: &mut VecDeque<T>) {
        into.append(&mut lock(&self.letters));
    }

    /// Whether no letter waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.letters).is_empty()
    }
}

/// A mutex whose holder panicked: the process ends anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From so many looks on, it is known what the thread waited for.
const MEASURE_LOOKS: u32 = 2;

/// How one beat was seen.
#[derive(Default)]
struct Watch {
    beat: u64,
    still: u32,
    /// What the thread had waited for a core when the stillness began to matter.
    run_delay_ns: u64,
}

/// What a look at a beat asks for.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Runs,
    Poke,
    Stalls,
    Deaf,
}

impl Watch {
    fn look(&mut self, beat: u64) -> Verdict {
        if beat != self.beat {
            *self = Self {
                beat,
                ..Self::default()
            };
            return Verdict::Runs;
        }
        self.still += 1;
        match self.still {
            DEAF_LOOKS.. => Verdict::Deaf,
            STALL_LOOKS => Verdict::Stalls,
            _ => Verdict::Poke,
        }
    }
}

impl Watch {
    /// Keeps the longest stall; asks the kernel only of an executor that stands still for long.
    fn measure(&mut self, pulse: &Pulse) {
        if self.still == MEASURE_LOOKS {
            self.run_delay_ns = pulse.run_delay_ns();
        } else if self.still >= STALL_LOOKS {
            let still = (LOOK_EVERY * self.still).as_nanos() as u64;
            let waited = pulse.run_delay_ns().saturating_sub(self.run_delay_ns);
            let stall = still.saturating_sub(waited);
            pulse.longest_stall_ns.fetch_max(stall, Ordering::Relaxed);
        }
    }
}

/// Starts the thread that looks after these executors, before they are started themselves.
///
/// # Errors
/// If no thread can be started.
pub fn start(pulses: Vec<Arc<Pulse>>) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("rrq-poker".into())
        .spawn(move || {
            let mut watches: Vec<Watch> = pulses.iter().map(|_| Watch::default()).collect();
            loop {
                std::thread::sleep(LOOK_EVERY);
                for (shard, (pulse, watch)) in pulses.iter().zip(&mut watches).enumerate() {
                    let verdict = watch.look(pulse.beat.load(Ordering::Relaxed));
                    watch.measure(pulse);
                    let opening = pulse.opening.load(Ordering::Relaxed);
                    match verdict {
                        Verdict::Runs => continue,
                        Verdict::Deaf if opening && watch.still < DEAF_LOOKS_OPENING => {}
                        Verdict::Poke => {}
                        Verdict::Stalls => {
                            pulse.stalls.fetch_add(1, Ordering::Relaxed);
                        }
                        Verdict::Deaf => abort(ShardId(shard as u16)),
                    }
                    pulse.pokes.fetch_add(1, Ordering::Relaxed);
                    pulse.poke();
                }
            }
        })?;
    Ok(())
}

fn abort(shard: ShardId) -> ! {
    let seconds = (LOOK_EVERY * DEAF_LOOKS).as_secs();
    eprintln!(
        "{}",
        Report::error(
            Code::ShardStalled,
            format!("shard {shard} did not run for {seconds} s")
        )
        .why("its thread is stuck; the process ends so that a restart can go on at once")
        .fix("restart rrq-node: nothing acknowledged is lost")
    );
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_that_moves_is_never_poked() {
        let mut watch = Watch::default();
        assert!((1..1000).all(|beat| watch.look(beat) == Verdict::Runs));
    }

    #[test]
    fn a_beat_that_stands_still_is_poked_then_deaf_from_the_start_on() {
        let mut watch = Watch::default();
        for look in 1..DEAF_LOOKS {
            let expected = if look == STALL_LOOKS {
                Verdict::Stalls
            } else {
                Verdict::Poke
            };
            assert_eq!(watch.look(0), expected, "look {look}");
        }
        assert_eq!(watch.look(0), Verdict::Deaf);
        assert_eq!(watch.look(1), Verdict::Runs);
    }

    #[test]
    fn a_full_mailbox_gives_the_letter_back() {
        let mailbox = Mailbox::new(Arc::new(Pulse::default()));
        assert_eq!(mailbox.try_send(1, 2), Ok(()));
        assert_eq!(mailbox.try_send(2, 2), Ok(()));
        assert_eq!(mailbox.try_send(3, 2), Err(3));
        let mut letters = VecDeque::new();
        mailbox.take(&mut letters);
        assert_eq!(letters, [1, 2]);
        assert!(mailbox.is_empty());
    }
}
